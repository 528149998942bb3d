//! Host-side hot paths and the main kernels: `cargo bench`.
//!
//! Kernels are timed by the device's own timestamps where it has them, with pipelines warm and their outputs checked
//! once; the adapter is part of each name. `cargo bench -- --test` runs everything once, `cargo bench -- host` a part.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use semantic_genesis::bench::catalogue::{Kind, Options, problem};
use semantic_genesis::bench::op::Prepared;
use semantic_genesis::config::{Config, FlipAxes, Preset};
use semantic_genesis::data::cubes::{CropEntry, Dense, cut};
use semantic_genesis::data::phantom::Patient;
use semantic_genesis::data::resize::resize;
use semantic_genesis::data::{image, nifti};
use semantic_genesis::gpu::{Caps, Context, Kind as Adapter};
use semantic_genesis::interop::tensors::{File, Tensor};
use semantic_genesis::kernels::check::numbers;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::Plan;
use semantic_genesis::train::network::Objective;
use semantic_genesis::transform::{Augment, Draws};

/// What decides the loader's speed: reading scans, cutting and resizing cubes.
fn data(c: &mut Criterion) {
    let size = [128, 128, 64];
    let volume = Dense::new(size, numbers(1, size.iter().product(), 1.0)).expect("as many values as voxels");
    let entry = CropEntry { source: 0, start: [20, 30, 10], size: [70, 70, 32], out: [64, 64, 32] };
    c.bench_function("host/cut 70x70x32 to 64x64x32", |b| b.iter(|| cut(&volume, black_box(&entry))));
    let same = CropEntry { size: [64, 64, 32], ..entry };
    c.bench_function("host/cut 64x64x32", |b| b.iter(|| cut(&volume, black_box(&same))));
    let values = numbers(2, size.iter().product(), 1.0);
    c.bench_function("host/resize 128x128x64 to 32x32x16", |b| b.iter(|| resize(black_box(&values), size, [32, 32, 16])));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("scan.nii.gz");
    let (scan, _) = Patient::draw(1, 0, 1).render([96, 96, 48], [4.0, 4.0, 6.0]);
    nifti::write_i16(&path, &scan).expect("a file in a temporary folder");
    let mut group = c.benchmark_group("host");
    group.throughput(Throughput::Bytes(96 * 96 * 48 * 2)).sample_size(20);
    group.bench_function("decode a NIfTI of 96x96x48", |b| b.iter(|| image::read(black_box(&path))));
    group.finish();
}

/// What happens before and between steps: graphs, plans, draws, checkpoints.
fn training(c: &mut Criterion) {
    let mut group = c.benchmark_group("host");
    group.sample_size(20);
    let config = Config::default();
    let objective = Objective::Joint { classes: config.model.classes, restoration: 1.0, classification: 0.01 };
    let build = || objective.graph(&Spec::from(&config.model), 1, config.cube.size, Mode::Train).expect("the published network");
    group.bench_function("graph and gradient of the Y-Net", |b| b.iter(build));
    let (graph, caps) = (build(), Caps { max_binding: 1 << 30, max_buffer: 1 << 32, ..Caps::minimal() });
    group.bench_function("plan of the Y-Net", |b| b.iter(|| Plan::new(black_box(&graph), &caps)));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("last.safetensors");
    let tensor = |i: u32| (format!("layer{i}.weight"), Tensor::f32(vec![512, 1024], numbers(i, 512 * 1024, 1.0)));
    let file = File { tensors: (0..16).map(tensor).collect(), metadata: None };
    group.throughput(Throughput::Bytes(16 * 512 * 1024 * 4));
    group.bench_function("write a checkpoint of 32 MiB", |b| b.iter(|| file.write(black_box(&path))));
    group.finish();
}

/// The main kernels: name, pass, shape on a processor, shape on a graphics card.
const KERNELS: [(&str, &str, &str, &str); 17] = [
    ("conv3d", "forward", "1,32,64,32,32,32", "16,32,64,64,64,32"),
    ("conv3d", "input-grad", "1,32,64,32,32,32", "16,32,64,64,64,32"),
    ("conv3d", "weight-grad", "1,32,64,32,32,32", "16,32,64,64,64,32"),
    ("conv3d", "forward", "1,128,128,16,16,16", "16,192,64,64,64,32"),
    ("conv3d", "input-grad", "1,128,128,16,16,16", "16,192,64,64,64,32"),
    ("conv3d", "weight-grad", "1,128,128,16,16,16", "16,192,64,64,64,32"),
    ("conv_transpose3d", "forward", "1,128,128,16,16,16", "16,128,128,32,32,16"),
    ("batch_norm", "forward", "1,32,32,32,32", "16,64,64,64,32"),
    ("batch_norm", "grad", "1,32,32,32,32", "16,64,64,64,32"),
    ("relu", "forward", "1,32,32,32,32", "16,64,64,64,32"),
    ("max_pool", "forward", "1,32,32,32,32", "16,64,64,64,32"),
    ("max_pool", "grad", "1,32,32,32,32", "16,64,64,64,32"),
    ("adam", "step", "1048576", "33277613"),
    ("knn_distance", "forward", "512,512,512", "4096,4096,512"),
    ("knn_select", "forward", "512,512,200", "4096,4096,200"),
    ("transform", "forward", "1,64,64,32", "16,64,64,32"),
    ("copy", "forward", "1048576", "67108864"),
];

fn kernels(c: &mut Criterion) {
    let ctx = match Context::new(None) {
        Ok(ctx) => ctx,
        Err(e) => {
            eprintln!("kernels are not timed: {e}");
            return;
        }
    };
    let mut group = c.benchmark_group(format!("on {}", ctx.caps().name));
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
    for (op, pass, small, large) in KERNELS {
        let shape = if ctx.caps().kind == Adapter::Cpu { small } else { large };
        let kind = Kind::find(op).expect("an operation of the catalogue");
        let pass = kind.select(pass).expect("a pass of the operation")[0];
        let n: Vec<usize> = shape.split(',').map(|v| v.parse().expect("a number")).collect();
        let problem = problem(ctx.caps(), &kind, pass, &n, &Options::default()).expect("a valid shape");
        let prepared = Prepared::new(&ctx, &problem, &problem.variants[0]).expect("the kernels run on this adapter");
        let outputs = prepared.outputs(&problem).expect("the device works");
        let check = problem.check(&outputs).expect("a reference");
        assert_eq!(check.failure, None, "{op} {pass} {shape}");
        match problem.flops {
            0 => group.throughput(Throughput::Bytes(problem.bytes())),
            flops => group.throughput(Throughput::Elements(flops)),
        };
        group.bench_function(BenchmarkId::new(format!("{op} {pass}"), shape), |b| {
            b.iter_custom(|runs| {
                let runs = usize::try_from(runs).unwrap_or(usize::MAX);
                let time = prepared.program().time(&ctx, runs).expect("the device works");
                Duration::from_secs_f64(time.device.unwrap_or(time.wall) * runs as f64)
            });
        });
    }
    let size = [64, 64, 32];
    let bytes = size.iter().product::<usize>() as u64 * 4;
    let (input, target) = (ctx.buffer("bench.input", bytes).expect("memory"), ctx.buffer("bench.target", bytes).expect("memory"));
    let augment = Augment::new(&ctx, Preset::Paper, FlipAxes::Xy, 1, size, 0, &input, &target).expect("the kernels run on this adapter");
    group.bench_function("draws of a distortion (host)", |b| {
        let mut sample = 0;
        b.iter_batched(
            || {
                sample += 1;
                sample
            },
            |sample| augment.draw(black_box(sample), Draws::Epoch(1)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, data, training, kernels);
criterion_main!(benches);
