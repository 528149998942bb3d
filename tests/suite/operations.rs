//! Every operation against PyTorch's numbers, forward and backward: all cases of `tests/reference/ops.json`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use semantic_genesis::doctor::parity::Source;
use semantic_genesis::error::Result;
use semantic_genesis::gpu::{Context, View};
use semantic_genesis::graph::{Graph, NormValues, Shape, Upsampling, ValueId};
use semantic_genesis::interop::tensors::{Data, Tensor};
use semantic_genesis::kernels::activation::Function;
use semantic_genesis::kernels::check::{Trial, compare};
use semantic_genesis::kernels::loss::Pointwise;
use semantic_genesis::kernels::optimiser::{self, Hyper};
use serde_json::Value;

use crate::harness::{self, Rig, reference, target_for, wide};

/// A case and its tensors.
struct Case<'a> {
    entry: &'a Value,
    source: &'a Source,
}

impl Case<'_> {
    fn name(&self) -> &str {
        self.entry["name"].as_str().unwrap()
    }

    fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.source.tensors.get(&format!("{}.{name}", self.name()))
    }

    fn floats(&self, name: &str) -> &[f32] {
        self.tensor(name).and_then(Tensor::floats).unwrap_or_else(|| panic!("{} has no `{name}`", self.name()))
    }

    fn sizes(&self, key: &str) -> [usize; 3] {
        std::array::from_fn(|i| usize::try_from(self.entry[key][i].as_u64().unwrap()).unwrap())
    }

    fn number(&self, key: &str) -> f32 {
        self.entry[key].as_f64().unwrap() as f32
    }
}

/// Shape of a tensor `[N, C]` or `[N, C, D, H, W]`.
fn shape(t: &Tensor) -> Shape {
    match t.shape[..] {
        [n, c] => Shape::new(n, [1; 3], c),
        [n, c, d, h, w] => Shape::new(n, [d, h, w], c),
        _ => panic!("{:?} is no shape of an activation", t.shape),
    }
}

/// `[N, C, …]` to `[N, …, C]`.
fn channels_last(data: &[f32], s: Shape) -> Vec<f32> {
    let v = s.voxels();
    (0..data.len()).map(|i| data[(i / s.channels / v * s.channels + i % s.channels) * v + i / s.channels % v]).collect()
}

/// `[a, b, taps]` to `[taps, a, b]`.
fn taps_first(data: &[f32], t: &Tensor) -> Vec<f32> {
    let taps: usize = t.shape[2..].iter().product();
    let pairs = t.shape[0] * t.shape[1];
    (0..data.len()).map(|i| data[i % pairs * taps + i / pairs]).collect()
}

/// How a tensor lies in the engine.
#[derive(Clone, Copy)]
enum Kind {
    Activation,
    Weight,
    Vector,
}

impl Kind {
    fn convert(self, t: &Tensor) -> Vec<f32> {
        let data = t.floats().unwrap();
        match self {
            Self::Activation => channels_last(data, shape(t)),
            Self::Weight if t.shape.len() > 2 => taps_first(data, t),
            Self::Weight | Self::Vector => data.to_vec(),
        }
    }
}

/// A graph under construction with what is fed to it.
struct Build<'c> {
    case: &'c Case<'c>,
    g: Graph,
    feeds: Vec<(String, Vec<f32>)>,
    /// Values whose gradients are compared, under the names of the expected ones.
    wanted: Vec<(String, ValueId, Kind)>,
}

impl Build<'_> {
    fn input(&mut self, name: &str, kind: Kind) -> ValueId {
        let t = self.case.tensor(name).unwrap();
        let s = match kind {
            Kind::Activation => shape(t),
            Kind::Weight | Kind::Vector => Shape::vector(t.shape.iter().product()),
        };
        let v = self.g.input(name, s);
        self.feeds.push((name.to_owned(), kind.convert(t)));
        if self.case.tensor(&format!("d{name}")).is_some() {
            self.wanted.push((format!("d{name}"), v, kind));
        }
        v
    }

    fn optional(&mut self, name: &str, kind: Kind) -> Option<ValueId> {
        self.case.tensor(name).is_some().then(|| self.input(name, kind))
    }

    fn voxel_labels(&mut self, x: ValueId) -> ValueId {
        self.g.input("labels", Shape { channels: 1, ..self.g.shape(x) })
    }

    /// The operation's result; a tensor when the case has a cotangent, else the loss.
    fn record(&mut self) -> Result<ValueId> {
        use Kind::{Activation, Vector, Weight};
        let case = self.case;
        let op = case.entry["op"].as_str().unwrap();
        let x = self.input("x", Activation);
        let pointwise = |kind| {
            move |b: &mut Self| -> Result<ValueId> {
                let target = b.input("target", Activation);
                let each = b.g.pointwise_loss(op, kind, x, target)?;
                Ok(b.g.mean(op, each))
            }
        };
        match op {
            "conv3d" | "conv_transpose3d" | "linear" => {
                let w = self.input("w", Weight);
                let b = self.optional("b", Vector);
                let y = shape_of_result(case);
                let ([k, s, p], out) = match op {
                    "linear" => ([[1; 3], [1; 3], [0; 3]], y.channels),
                    _ => (["kernel", "stride", "padding"].map(|k| case.sizes(k)), y.channels),
                };
                match op {
                    "conv_transpose3d" => self.g.conv_transpose3d(op, x, w, b, out, k, s, p),
                    _ => self.g.conv3d(op, &[x], w, b, out, k, s, p),
                }
            }
            "max_pool3d" | "avg_pool3d" => {
                let [k, s, p] = ["kernel", "stride", "padding"].map(|k| case.sizes(k));
                if op == "max_pool3d" { self.g.max_pool(op, x, k, s, p) } else { self.g.avg_pool(op, x, k, s, p) }
            }
            "adaptive_avg_pool3d" => Ok(self.g.global_avg_pool(op, x)),
            "interpolate_nearest" => Ok(self.g.upsample(op, x, case.sizes("output"), Upsampling::Nearest)),
            "interpolate_trilinear" => Ok(self.g.upsample(op, x, case.sizes("output"), Upsampling::Trilinear)),
            "batch_norm" => {
                let (gamma, beta) = (self.input("w", Vector), self.input("b", Vector));
                let c = self.g.shape(x).channels;
                let v = NormValues {
                    gamma,
                    beta,
                    running_mean: self.g.state("running_mean", c, 0.0)?,
                    running_var: self.g.state("running_var", c, 0.0)?,
                };
                let eps = case.number("eps");
                match case.entry["training"].as_bool().unwrap() {
                    true => self.g.batch_norm(op, x, v, eps, case.number("momentum")),
                    false => self.g.batch_norm_running(op, x, v, eps),
                }
            }
            "relu" => Ok(self.g.activation(op, Function::Relu, x)),
            "elu" => Ok(self.g.activation(op, Function::Elu, x)),
            "sigmoid" => Ok(self.g.activation(op, Function::Sigmoid, x)),
            "prelu" => {
                let slope = self.input("w", Vector);
                self.g.prelu(op, x, slope)
            }
            "mse" => pointwise(Pointwise::Mse)(self),
            "l1" => pointwise(Pointwise::Mae)(self),
            "bce_with_logits" => pointwise(Pointwise::BceLogits)(self),
            "cross_entropy" => {
                let labels = self.g.input("labels", Shape::per_sample(self.g.shape(x).batch));
                let each = self.g.cross_entropy(op, x, labels)?;
                Ok(self.g.mean(op, each))
            }
            "softmax" => {
                let largest = self.g.arg_max("largest", x);
                self.g.output("largest", largest);
                Ok(self.g.softmax(op, x))
            }
            "class_dice" => {
                let (p, labels) = (self.g.softmax(op, x), self.voxel_labels(x));
                let first = case.entry["first"].as_u64().unwrap();
                self.g.class_dice(op, p, labels, usize::try_from(first).unwrap())
            }
            "voxel_cross_entropy" => {
                let labels = self.voxel_labels(x);
                let mut each = self.g.cross_entropy(op, x, labels)?;
                if let Some(weights) = self.optional("weights", Vector) {
                    each = self.g.weigh(op, each, labels, weights)?;
                }
                Ok(self.g.mean(op, each))
            }
            "soft_dice" | "soft_dice_logits" => {
                let p = if op == "soft_dice" { x } else { self.g.activation(op, Function::Sigmoid, x) };
                let target = self.input("target", Activation);
                self.g.soft_dice(op, p, target)
            }
            other => panic!("no operation `{other}`"),
        }
    }
}

fn shape_of_result(case: &Case<'_>) -> Shape {
    shape(case.tensor("y").unwrap())
}

/// Compares, and adds what is wrong to `failures`.
fn hold(failures: &mut Vec<String>, case: &Case<'_>, what: &str, got: &[f32], want: &[f32]) {
    // Results of f32 against f64, judged by each tensor's own size.
    let outcome = compare(got, &wide(want), 1e-5).unwrap();
    failures.extend(outcome.failure.map(|f| format!("{} {what}: {f}", case.name())));
}

/// An operation of the graph, forward and backward.
fn through_the_graph(ctx: &Context, case: &Case<'_>, failures: &mut Vec<String>) {
    let mut b = Build { case, g: Graph::new(), feeds: Vec::new(), wanted: Vec::new() };
    let y = b.record().unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    b.g.output("y", y);
    let (expected, cotangent) = (case.tensor("y").unwrap(), case.tensor("r"));
    let want = if cotangent.is_some() { Kind::Activation.convert(expected) } else { case.floats("y").to_vec() };
    let loss = match cotangent {
        Some(r) => {
            let t = b.g.input("cotangent", b.g.shape(y));
            b.feeds.push(("cotangent".into(), target_for(&want, &Kind::Activation.convert(r))));
            let each = b.g.pointwise_loss("loss", Pointwise::Mse, y, t).unwrap();
            b.g.mean("loss", each)
        }
        None => y,
    };
    let values: Vec<ValueId> = b.wanted.iter().map(|w| w.1).collect();
    assert!(!values.is_empty(), "{}: no gradient", case.name());
    let gradients = b.g.backward(loss, &values).unwrap();
    for (gradient, (name, ..)) in gradients.iter().zip(&b.wanted) {
        b.g.output(name, *gradient);
    }
    let rig = Rig::new(ctx, &b.g);
    for (name, data) in &b.feeds {
        rig.feed(ctx, name, data);
    }
    if let Some(Tensor { data: Data::I64(labels), .. }) = case.tensor("labels") {
        rig.feed(ctx, "labels", &labels.iter().map(|&l| u32::try_from(l).unwrap()).collect::<Vec<_>>());
    }
    let state = |name: &str| b.g.state.find(name).map(|p| (p.offset as u64 * 4, p.len()));
    for name in ["running_mean", "running_var"] {
        if let Some((offset, _)) = state(name) {
            ctx.upload(&rig.store.state, offset, case.floats(name));
        }
    }
    rig.run(ctx);
    hold(failures, case, "y", &rig.read(ctx, "y"), &want);
    for (name, _, kind) in &b.wanted {
        hold(failures, case, name, &rig.read(ctx, name), &kind.convert(case.tensor(name).unwrap()));
    }
    if let Some(Tensor { data: Data::I64(largest), .. }) = case.tensor("largest") {
        let got: Vec<u32> = rig.read(ctx, "largest").into_iter().map(f32::to_bits).collect();
        if !got.iter().zip(largest).all(|(g, w)| i64::from(*g) == *w) {
            failures.push(format!("{} largest: {got:?} instead of {largest:?}", case.name()));
        }
    }
    for name in ["running_mean", "running_var"] {
        let Some((offset, n)) = state(name) else { continue };
        let got: Vec<f32> = ctx.read(&rig.store.state, offset, n).unwrap();
        let after = case.tensor(&format!("{name}_after")).and_then(Tensor::floats);
        // Evaluation leaves them alone.
        hold(failures, case, name, &got, after.unwrap_or(case.floats(name)));
    }
}

/// A trace of an optimiser: parameters after every step, moments after the last.
fn optimiser_case(ctx: &Context, case: &Case<'_>, failures: &mut Vec<String>) -> Result<()> {
    let sgd = case.entry["op"] == "sgd";
    let mut hyper = Hyper { weight_decay: case.number("weight_decay"), ..Hyper::default() };
    if sgd {
        hyper.momentum = case.number("momentum");
    } else {
        hyper.epsilon = case.number("eps");
        (hyper.beta1, hyper.beta2) = (case.entry["betas"][0].as_f64().unwrap() as f32, case.entry["betas"][1].as_f64().unwrap() as f32);
    }
    let start = case.floats("p0");
    let n = start.len();
    let mut t = Trial::new(ctx);
    let (p, m, v, scale) = (t.input(start)?, t.input(&vec![0f32; n])?, t.input(&vec![0f32; n])?, t.input(&[1f32])?);
    for (step, (gradient, want)) in case.floats("g").chunks(n).zip(case.floats("p").chunks(n)).enumerate() {
        let g = t.input(gradient)?;
        let s = t.input(&optimiser::scalars(case.number("lr"), &hyper, step as u64 + 1))?;
        t.run(|rec| match sgd {
            true => optimiser::sgd(rec, p, g, m, s, scale),
            false => optimiser::adam(rec, p, g, m, v, s, scale, case.entry["op"] == "adamw"),
        })?;
        hold(failures, case, &format!("p after {}", step + 1), &t.read(p)?, want);
    }
    for (name, view) in [("momentum_buffer", m), ("exp_avg", m), ("exp_avg_sq", v)] {
        let Some(want) = case.tensor(name).and_then(Tensor::floats) else { continue };
        // 1 - β of a β2 rounded to f32 differs by 1.3e-5; the corrections share it, so parameters do not notice.
        let outcome = compare(&t.read(view)?, &wide(want), if name == "exp_avg_sq" { 2e-5 } else { 1e-5 })?;
        failures.extend(outcome.failure.map(|f| format!("{} {name}: {f}", case.name())));
    }
    Ok(())
}

/// Norm and clipping: a step of SGD from zero with rate 1 leaves minus the clipped gradient.
fn clip_case(ctx: &Context, case: &Case<'_>, failures: &mut Vec<String>) -> Result<()> {
    let join = |prefix: &str| (0..3).flat_map(|i| case.floats(&format!("{prefix}{i}")).to_vec()).collect::<Vec<f32>>();
    let (gradient, want) = (join("g"), join("c"));
    let n = gradient.len();
    let mut t = Trial::new(ctx);
    let (g, p, m) = (t.input(&gradient)?, t.input(&vec![0f32; n])?, t.input(&vec![0f32; n])?);
    let hyper = Hyper { momentum: 0.0, weight_decay: 0.0, ..Hyper::default() };
    let (s, norm, scale): (View, View, View) = (t.input(&optimiser::scalars(1.0, &hyper, 1))?, t.output(1)?, t.output(1)?);
    t.run(|rec| {
        optimiser::norm(rec, g, norm)?;
        optimiser::clip(rec, norm, norm, s, case.number("max_norm"), scale)?;
        optimiser::sgd(rec, p, g, m, s, scale)
    })?;
    hold(failures, case, "norm", &t.read(norm)?, case.floats("y"));
    let moved: Vec<f32> = t.read(p)?;
    hold(failures, case, "clipped", &moved.iter().map(|v| -v).collect::<Vec<_>>(), &want);
    Ok(())
}

#[test]
fn all_cases_agree_with_pytorch() {
    let Some(ctx) = harness::trusted() else { return };
    let source = Source::read(&reference("ops.safetensors")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(reference("ops.json")).unwrap()).unwrap();
    assert_eq!(list.len(), 105);
    let mut failures = Vec::new();
    for entry in &list {
        let case = Case { entry, source: &source };
        match entry["op"].as_str().unwrap() {
            "sgd" | "adam" | "adamw" => optimiser_case(ctx, &case, &mut failures).unwrap(),
            "clip_grad_norm" => clip_case(ctx, &case, &mut failures).unwrap(),
            _ => through_the_graph(ctx, &case, &mut failures),
        }
    }
    assert!(failures.is_empty(), "{} comparisons fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_perturbed_case_fails() {
    let Some(ctx) = harness::trusted() else { return };
    let source = Source::read(&reference("ops.safetensors")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(reference("ops.json")).unwrap()).unwrap();
    for (name, tensor) in [
        ("batch_norm_train", "dx"),
        ("batch_norm_train", "running_var_after"),
        ("prelu_3", "dw"),
        ("elu", "y"),
        ("class_dice_from_1", "dx"),
    ] {
        let entry = list.iter().find(|c| c["name"] == name).unwrap();
        let mut bad = source.clone();
        let Data::F32(v) = &mut bad.tensors.get_mut(&format!("{name}.{tensor}")).unwrap().data else { panic!("{tensor} holds floats") };
        v[1] += 1e-3;
        let mut failures = Vec::new();
        through_the_graph(ctx, &Case { entry, source: &bad }, &mut failures);
        assert!(!failures.is_empty(), "{name}: a wrong {tensor} is not noticed");
    }
}
