//! Every shader in every specialisation: parsed, validated and translated to SPIR-V, MSL and HLSL, without a GPU.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use naga::back::{hlsl, msl, pipeline_constants, spv};
use semantic_genesis::bench::probe;
use semantic_genesis::config::{Activation, Norm, Precision, Variant};
use semantic_genesis::error::Result;
use semantic_genesis::gpu::{BufferId, Caps, Choices, Dispatch, Dtype, Kind, Recorder, View, reflect};
use semantic_genesis::graph::Graph;
use semantic_genesis::kernels::check::DTYPES;
use semantic_genesis::kernels::conv3d::{self, Geom, Input, Output, Pass, Problem, Source};
use semantic_genesis::kernels::transform::{self, Geometry, Sample};
use semantic_genesis::kernels::{activation, classes as class_rows, elementwise, knn, loss, optimiser, pool, prelu, reduce, upsample};
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::{Fusion, Options, Plan};
use semantic_genesis::train::network::{Objective, features};

use crate::gradients;

/// Adapters unlike each other: the least that WebGPU guarantees, Mesa's CPU adapter, a large GPU.
fn adapters() -> Vec<Caps> {
    let base = Caps::minimal();
    vec![
        Caps { kind: Kind::Cpu, subgroup_min: 8, subgroup_max: 8, int64: true, workgroup_memory: 32 << 10, f16: true, ..base.clone() },
        Caps {
            kind: Kind::Discrete,
            subgroup_min: 32,
            subgroup_max: 32,
            max_binding: (1 << 31) - 4,
            max_buffer: 1 << 40,
            f16: true,
            ..base.clone()
        },
        base,
    ]
}

/// Adapters that products through workgroup memory differ on: little memory, a large GPU with matrices of 16, one with pieces of 8.
fn product_adapters() -> Vec<Caps> {
    let gpu = Caps { kind: Kind::Discrete, f16: true, subgroup_min: 32, subgroup_max: 32, workgroup_memory: 48 << 10, ..Caps::minimal() };
    vec![
        Caps { f16: true, ..Caps::minimal() },
        Caps { cooperative: vec![16], backend: "vulkan".into(), ..gpu.clone() },
        Caps { cooperative: vec![8], backend: "metal".into(), workgroup_memory: 32 << 10, ..gpu },
    ]
}

/// Every variant of products through workgroup memory, over one source and two, with everything fused and with nothing.
fn products(caps: &Caps, into: &mut Collection) {
    let shapes = [
        (4, [64, 64, 32], 192, 64, [3; 3], [1; 3], [1; 3]),
        (2, [8, 8, 4], 256, 512, [3; 3], [1; 3], [1; 3]),
        (2, [3, 5, 7], 8, 12, [3; 3], [1; 3], [1; 3]),
        (2, [4, 6, 8], 16, 20, [2; 3], [2; 3], [0; 3]),
        (1, [1, 9, 40], 24, 72, [1, 5, 3], [1, 2, 2], [0, 2, 1]),
        (2, [3, 1, 5], 64, 96, [1; 3], [1; 3], [0; 3]),
    ];
    let mut names = BTreeSet::new();
    for (batch, input, ci, co, kernel, stride, padding) in shapes {
        let g = Geom::new(batch, input, ci, co, kernel, stride, padding).unwrap();
        let (x, y) = (batch * input.iter().product::<usize>() * ci, batch * g.output().iter().product::<usize>() * co);
        let w = view(2, g.weight_len());
        let (all, half) = (g.whole(), Source { first: ci / 2, channels: ci / 2 });
        for (dtype, fused) in [(Dtype::F32, false), (Dtype::F16, true)] {
            let stored = |id, n| View::typed(BufferId(id), n, dtype);
            let norm = |s: Source| fused.then(|| view(5, 3 * s.channels));
            let read = |s: Source| Input { source: s, view: stored(4, x / ci * s.channels), norm: norm(s) };
            for pass in Pass::ALL {
                let problem = |source| Problem { pass, geom: g, source, input: dtype, output: dtype };
                for variant in
                    problem(all).candidates(caps).into_iter().filter(|v| matches!(v, conv3d::Variant::Simt(_) | conv3d::Variant::Coop(_)))
                {
                    names.insert(variant.name());
                    let choices = [all, half].map(|s| (problem(s).key(), variant.name().to_owned()));
                    let mut rec = Recorder::tuned(caps, &Choices::new(choices.into()));
                    match pass {
                        Pass::Forward => {
                            let lower = Source { first: 0, ..half };
                            for inputs in [vec![read(all)], vec![read(lower), read(half)]] {
                                let partials = conv3d::statistics_partials(&rec, &g, &inputs, dtype).unwrap();
                                let (bias, statistics) = (fused.then(|| view(3, co)), fused.then(|| view(6, partials * 3 * co)));
                                let output = Output { view: stored(1, y), bias, statistics };
                                let before = rec.dispatches.len();
                                conv3d::forward(&mut rec, &g, &inputs, w, &output).unwrap();
                                let runs = rec.dispatches[before..].iter().filter(|d| d.label.ends_with("forward"));
                                assert_eq!(runs.clone().map(|d| &d.source).collect::<BTreeSet<_>>().len(), 1, "sources are read at once");
                            }
                        }
                        Pass::InputGrad => {
                            let bias = fused.then(|| view(3, ci));
                            conv3d::backward_input(&mut rec, &g, all, stored(1, y), w, bias, stored(0, x)).unwrap();
                        }
                        Pass::WeightGrad => conv3d::backward_weight(&mut rec, &g, read(all), stored(1, y), w).unwrap(),
                    }
                    rec.dispatches.iter().for_each(|d| assert_fits(caps, d));
                    into.take(rec.dispatches);
                }
            }
        }
    }
    let matrices = names.iter().filter(|n| n.starts_with("coop")).count();
    assert!(names.len() - matrices >= 4 && (matrices > 3) != caps.cooperative.is_empty(), "{}: {names:?}", caps.backend);
}

/// The twins of products on cooperative matrices.
fn twins(caps: &Caps, into: &mut Collection) {
    let g = Geom::new(2, [3, 5, 7], 8, 12, [3; 3], [1; 3], [1; 3]).unwrap();
    let stored = |id, n| View::typed(BufferId(id), n, Dtype::F16);
    let (x, y, w) = (stored(0, 210 * 8), stored(1, 210 * 12), view(2, g.weight_len()));
    for twin in conv3d::twins() {
        let weight = twin.name().contains("weight");
        into.record(caps, |rec| match weight {
            true => conv3d::backward_weight_with(rec, twin, &g, Input::plain(g.whole(), x), y, w),
            false => conv3d::forward_with(rec, twin, &g, Input::plain(g.whole(), x), w, &Output::plain(y), false),
        });
    }
}

/// A dispatch must keep to the adapter's workgroup memory, to 256 invocations and to its storage buffers.
fn assert_fits(caps: &Caps, d: &Dispatch) {
    let r = reflect(&d.label, &d.source).unwrap();
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(r.module.to_ctx()).unwrap();
    let shared = r.module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let bytes: u32 = shared.map(|(_, v)| layouter[v.ty].size.next_multiple_of(16)).sum();
    let size = r.module.entry_points.iter().find(|e| e.name == d.entry).unwrap().workgroup_size;
    assert!(bytes <= caps.workgroup_memory, "{}: {bytes} bytes of {}", d.label, caps.workgroup_memory);
    assert!(size.iter().product::<u32>() <= 256, "{}: {size:?} invocations", d.label);
    assert!(d.bindings.len() <= caps.max_storage_buffers as usize, "{}: {} buffers", d.label, d.bindings.len());
}

/// Distinct (text, entry point) pairs with a label each.
#[derive(Default)]
struct Collection(BTreeMap<(Arc<str>, &'static str), String>);

impl Collection {
    fn take(&mut self, dispatches: Vec<Dispatch>) {
        self.0.extend(dispatches.into_iter().map(|d| ((d.source, d.entry), d.label)));
    }

    fn record(&mut self, caps: &Caps, what: impl FnOnce(&mut Recorder<'_>) -> Result<()>) {
        let mut rec = Recorder::new(caps);
        what(&mut rec).unwrap();
        self.take(rec.dispatches);
    }

    fn plan(&mut self, caps: &Caps, graph: &Graph) {
        for fusion in [Fusion::NONE, Fusion::ALL, Fusion { load: false, ..Fusion::ALL }] {
            match Plan::with(graph, caps, &Options { fusion: Some(fusion), ..Options::default() }) {
                Ok(plan) => self.take(plan.dispatches),
                Err(e) => panic!("{}: {e}", caps.name),
            }
        }
    }
}

fn view(id: u32, elements: usize) -> View {
    View::whole(BufferId(id), elements)
}

/// Networks in training and in evaluation, over widths, sizes and batches.
fn networks(caps: &Caps, into: &mut Collection) {
    for (base, size, batch) in [(2, [16, 16, 8], 2), (4, [16, 24, 8], 3), (32, [64, 64, 32], 2), (16, [32, 32, 16], 1)] {
        for (variant, activation) in
            [(Variant::PyTorch, Activation::Relu), (Variant::PyTorch, Activation::PRelu), (Variant::Keras, Activation::Elu)]
        {
            let objectives = [
                Objective::Joint { classes: 44, restoration: 1.0, classification: 0.01 },
                Objective::Classification { classes: 5 },
                Objective::Autoencoder { skips: false },
                Objective::Autoencoder { skips: true },
            ];
            for objective in objectives {
                let spec = Spec { base, depth: 4, variant, activation, norm: Norm::Running, channels: 1 };
                for mode in [Mode::Train, Mode::Evaluate] {
                    let graph = objective.graph(&spec, batch, size, mode).unwrap();
                    into.plan(caps, &graph);
                    if caps.f16 {
                        into.plan(caps, &graph.stored_in(Precision::Mixed));
                    }
                }
                into.plan(caps, &features(&spec, batch, size).unwrap());
            }
        }
    }
}

/// Convolutions of every kind, in tiles where channels allow and plain where not.
fn convolutions(caps: &Caps, into: &mut Collection) {
    let shapes = [
        ([3, 4, 5], 3, 5, [3; 3], [1; 3], [1; 3]),
        ([3, 2, 7], 12, 24, [3; 3], [1; 3], [1; 3]),
        ([4, 6, 8], 8, 16, [2; 3], [2; 3], [0; 3]),
        ([3, 1, 5], 8, 4, [1; 3], [1; 3], [0; 3]),
        ([6, 5, 11], 8, 12, [3; 3], [2, 1, 2], [1; 3]),
        ([1, 224, 224], 4, 64, [1, 7, 7], [1, 2, 2], [0, 3, 3]),
    ];
    for (input, ci, co, kernel, stride, padding) in shapes {
        let g = Geom::new(2, input, ci, co, kernel, stride, padding).unwrap();
        let (x, y) = (2 * input.iter().product::<usize>() * ci, 2 * g.output().iter().product::<usize>() * co);
        let (w, s) = (view(2, g.weight_len()), g.whole());
        // The second of two sources adds to the result of the first.
        let halves = [Source { first: 0, channels: ci - ci / 2 }, Source { first: ci - ci / 2, channels: ci / 2 }];
        for (dtype, normal) in [(Dtype::F32, false), (Dtype::F32, true), (Dtype::F16, true)] {
            let stored = |id, n| View::typed(BufferId(id), n, dtype);
            let input = |source: Source| Input {
                source,
                view: stored(4, x / ci * source.channels),
                norm: normal.then(|| view(5, 3 * source.channels)),
            };
            for bias in [None, Some(view(3, co))] {
                for inputs in [vec![input(s)], halves.map(input).to_vec()] {
                    into.record(caps, |rec| {
                        let partials = conv3d::statistics_partials(rec, &g, &inputs, dtype)?;
                        let statistics = normal.then(|| view(6, partials * 3 * co));
                        conv3d::forward(rec, &g, &inputs, w, &Output { view: stored(1, y), bias, statistics })
                    });
                }
            }
            for bias in [None, Some(view(3, ci))] {
                into.record(caps, |rec| conv3d::backward_input(rec, &g, s, stored(1, y), w, bias, stored(0, x)));
            }
            into.record(caps, |rec| conv3d::backward_weight(rec, &g, input(s), stored(1, y), w));
        }
    }
}

/// Kernels over flat tensors, in scalars and in vectors.
fn flat(caps: &Caps, into: &mut Collection) {
    use activation::Function;
    for n in [4096, 4097] {
        for dtype in DTYPES {
            let v = |id| View::typed(BufferId(id), n, dtype);
            for f in [Function::Relu, Function::Elu, Function::Sigmoid, Function::Step] {
                into.record(caps, |rec| {
                    activation::forward(rec, f, v(0), v(1)).and_then(|()| activation::backward(rec, f, v(0), v(1), v(2)))
                });
            }
            into.record(caps, |rec| {
                elementwise::add(rec, v(0), v(1), v(2))?;
                elementwise::scale(rec, v(0), 2.0, v(1))?;
                elementwise::fill(rec, 1.0, v(0))?;
                reduce::mean(rec, v(0), view(1, 1))?;
                reduce::mean_backward(rec, n, view(0, 1), v(1))
            });
        }
        let v = |id| view(id, n);
        into.record(caps, |rec| {
            elementwise::accumulate(rec, v(0), 2.0, v(1))?;
            loss::soft_dice(rec, v(0), v(1), view(2, 1))?;
            loss::soft_dice_backward(rec, v(0), v(1), view(2, 1), v(3))
        });
        for kind in [loss::Pointwise::Mse, loss::Pointwise::Mae, loss::Pointwise::BceLogits, loss::Pointwise::Logistic] {
            into.record(caps, |rec| {
                loss::pointwise(rec, kind, 1, v(0), v(1), view(2, 1))?;
                loss::pointwise_backward(rec, kind, 1, v(0), v(1), view(2, 1), v(3))
            });
        }
        let (scalars, one) = (view(8, optimiser::SCALARS), view(9, 1));
        into.record(caps, |rec| {
            optimiser::adam(rec, v(0), v(1), v(2), v(3), scalars, one, false)?;
            optimiser::adam(rec, v(0), v(1), v(2), v(3), scalars, one, true)?;
            optimiser::sgd(rec, v(0), v(1), v(2), scalars, one)?;
            optimiser::norm(rec, v(1), one)?;
            optimiser::clip(rec, view(4, 1), view(5, 1), scalars, 1.0, one)
        });
        for classes in [2, 4, 44, 45] {
            let (rows, logits) = (view(1, n), view(0, n * classes));
            for rows_n in [n, 3] {
                let (rows, logits) = (rows.slice(0, rows_n), logits.slice(0, rows_n * classes));
                into.record(caps, |rec| {
                    loss::cross_entropy(rec, rows_n, classes, logits, rows, view(2, rows_n))?;
                    loss::cross_entropy_backward(rec, rows_n, classes, logits, rows, view(2, rows_n), view(3, rows_n * classes))?;
                    loss::correct(rec, rows_n, classes, logits, rows, view(2, rows_n))?;
                    let (full, geom) = (view(3, rows_n * classes), loss::class_dice::Geom { rows: rows_n, classes, first: 1 });
                    class_rows::softmax(rec, rows_n, classes, logits, full)?;
                    class_rows::softmax_backward(rec, rows_n, classes, logits, full, view(4, rows_n * classes))?;
                    class_rows::arg_max(rec, rows_n, classes, logits, view(2, rows_n))?;
                    class_rows::weigh(rec, rows_n, classes, view(4, rows_n), rows, view(5, classes), view(2, rows_n))?;
                    loss::class_dice::class_dice(rec, &geom, logits, rows, view(2, 1))?;
                    loss::class_dice::class_dice_backward(rec, &geom, logits, rows, view(2, 1), full)
                });
            }
        }
    }
}

/// Kernels over grids, channels alone and in fours.
fn grids(caps: &Caps, into: &mut Collection) {
    for (channels, dtype) in [3, 8].into_iter().flat_map(|c| DTYPES.map(|dtype| (c, dtype))) {
        let stored = |id, n| View::typed(BufferId(id), n, dtype);
        let g = pool::Geom::new(2, [4, 6, 8], channels, [2; 3], [2; 3], [0; 3]).unwrap();
        let (x, y) = (2 * 192 * channels, 2 * 24 * channels);
        let u = upsample::Geom { batch: 2, input: [2, 3, 4], output: [4, 6, 8], channels };
        into.record(caps, |rec| {
            pool::max_forward(rec, &g, stored(0, x), None, stored(1, y), view(2, y))?;
            pool::max_backward(rec, &g, view(2, y), stored(1, y), None, stored(0, x))?;
            pool::avg_forward(rec, &g, stored(0, x), stored(1, y))?;
            pool::avg_backward(rec, &g, stored(1, y), stored(0, x))?;
            pool::global_avg_forward(rec, 2, 192, channels, stored(0, x), view(1, 2 * channels))?;
            pool::global_avg_backward(rec, 2, 192, channels, view(1, 2 * channels), stored(0, x))?;
            upsample::nearest_forward(rec, &u, stored(1, y), stored(0, x))?;
            upsample::nearest_backward(rec, &u, stored(0, x), stored(1, y))?;
            upsample::trilinear_forward(rec, &u, stored(1, y), stored(0, x))?;
            upsample::trilinear_backward(rec, &u, stored(0, x), stored(1, y))?;
            let other = upsample::Geom { output: [3, 6, 8], ..u };
            upsample::nearest_forward(rec, &other, stored(1, y), stored(0, x / 4 * 3))?;
            upsample::nearest_backward(rec, &other, stored(0, x / 4 * 3), stored(1, y))?;
            prelu::forward(rec, channels, stored(0, x), view(3, channels), stored(1, x))?;
            prelu::backward(rec, channels, stored(0, x), view(3, channels), stored(1, x), stored(2, x), view(4, channels))?;
            reduce::channel_sum(rec, 384, channels, stored(0, x), view(3, channels))
        });
    }
    for size in [[64, 64, 32], [16, 16, 8], [5, 7, 3], [32, 32, 1]] {
        let g = Geometry::new(2, size).unwrap();
        let n = 2 * g.voxels();
        let samples = view(0, 2 * Sample::WORDS);
        into.record(caps, |rec| {
            transform::flip(rec, &g, samples, view(1, n), view(2, n))?;
            transform::elastic(rec, &g, 991.0, samples, view(1, n), view(2, n))?;
            [0, 700, 10_000].iter().try_for_each(|&w| transform::distort(rec, &g, w, samples, view(1, n), view(2, n)))
        });
    }
    for (rows, cols, width) in [(40, 300, 512), (7, 33, 30)] {
        into.record(caps, |rec| {
            knn::distances(rec, rows, cols, width, view(0, rows * width), view(1, cols * width), view(2, rows * cols))?;
            knn::select(rec, rows, cols, 0, 5, view(2, rows * cols), view(3, rows * 5), view(4, rows * 5))
        });
    }
}

fn everything() -> Collection {
    let mut out = Collection::default();
    for caps in &adapters() {
        networks(caps, &mut out);
        gradients::graphs().iter().for_each(|g| out.plan(caps, g));
        convolutions(caps, &mut out);
        flat(caps, &mut out);
        grids(caps, &mut out);
        out.take(probe::dispatches(caps));
    }
    for caps in &product_adapters() {
        products(caps, &mut out);
    }
    // A processor's adapter, where twins are checked, has as much.
    twins(&Caps { f16: true, workgroup_memory: 32 << 10, ..Caps::minimal() }, &mut out);
    out
}

/// What is wrong with one entry point of one text.
fn translate(label: &str, source: &str, entry: &str) -> Result<(), String> {
    let r = reflect(label, source).map_err(|e| e.to_string())?;
    let stage = naga::ShaderStage::Compute;
    let constants = naga::back::PipelineConstants::default();
    let (module, info) = pipeline_constants::process_overrides(&r.module, &r.info, Some((stage, entry)), &constants)
        .map_err(|e| format!("overrides: {e}"))?;
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    let point = spv::PipelineOptions { shader_stage: stage, entry_point: entry.to_owned() };
    let words = spv::write_vec(&module, &info, &options, Some(&point)).map_err(|e| format!("SPIR-V: {e}"))?;
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let point = msl::PipelineOptions { entry_point: Some((stage, entry.to_owned())), ..Default::default() };
    let matrices = |side| source.contains(&format!("coop_mat{side}x{side}<"));
    if matrices(16) {
        // Neither Metal nor Direct3D has these.
        return if words.is_empty() { Err("a translation is empty".into()) } else { Ok(()) };
    }
    let (metal, names) = msl::write_string(&module, &info, &options, &point).map_err(|e| format!("MSL: {e}"))?;
    names.entry_point_names.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| format!("MSL: {e}"))?;
    // HLSL has no cooperative matrices.
    if source.contains("enable wgpu_cooperative_matrix;") {
        return if words.is_empty() || metal.is_empty() { Err("a translation is empty".into()) } else { Ok(()) };
    }
    if matrices(8) {
        return if words.is_empty() || metal.is_empty() { Err("a translation is empty".into()) } else { Ok(()) };
    }
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, fake_missing_bindings: true, ..Default::default() };
    let point = hlsl::PipelineOptions { entry_point: Some((stage, entry.to_owned())) };
    let mut text = String::new();
    let names = hlsl::Writer::new(&mut text, &options, &point).write(&module, &info, None).map_err(|e| format!("HLSL: {e}"))?;
    names.entry_point_names.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| format!("HLSL: {e}"))?;
    if words.is_empty() || metal.is_empty() || text.is_empty() {
        return Err("a translation is empty".into());
    }
    Ok(())
}

/// The shader files below `dir` and their texts.
fn shader_files(dir: &Path, out: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            shader_files(&path, out);
        } else {
            assert_eq!(path.extension().and_then(|e| e.to_str()), Some("wgsl"), "{}", path.display());
            out.push((path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_specialisation_translates_and_every_file_and_entry_point_is_among_them() {
    let all = everything();
    assert!(all.0.len() > 300, "only {} shaders", all.0.len());
    let mut failures = Vec::new();
    for ((source, entry), label) in &all.0 {
        if let Err(e) = translate(label, source, entry) {
            failures.push(format!("{label}: {e}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), all.0.len(), failures.join("\n"));

    let mut files = Vec::new();
    shader_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"), &mut files);
    assert!(files.len() > 20);
    let mut missing = Vec::new();
    for (name, text) in files {
        // A text contains a file when it contains its first line, a sentence of its own.
        let first = text.lines().next().unwrap();
        let with: Vec<_> = all.0.keys().filter(|k| k.0.lines().any(|l| l == first)).collect();
        if with.is_empty() {
            missing.push(name);
            continue;
        }
        let used: BTreeSet<&str> = with.iter().map(|k| k.1).collect();
        let module = reflect(&name, &with[0].0).unwrap().module;
        missing.extend(module.entry_points.iter().filter(|e| !used.contains(e.name.as_str())).map(|e| format!("{name}: {}", e.name)));
    }
    assert!(missing.is_empty(), "never asked for: {missing:?}");
}

#[test]
fn a_text_that_does_not_translate_is_found() {
    let good = "@group(0) @binding(0) var<storage, read_write> x: array<f32>;\n@compute @workgroup_size(1) fn main() { x[0] = 1.0; }";
    assert_eq!(translate("good", good, "main"), Ok(()));
    for (text, entry) in [(good, "other"), (&good.replace("1.0", "1u")[..], "main"), (&good[..70], "main")] {
        assert!(translate("bad", text, entry).is_err(), "{text}");
    }
}
