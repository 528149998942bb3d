//! Mixed precision: the same network as in 32 bits within stated bounds, loss scaling, resumption, memory.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use semantic_genesis::config::{Activation, Config, Norm, Optimiser, Precision, Schedule, Variant};
use semantic_genesis::error::{Error, Result};
use semantic_genesis::gpu::{Caps, Context, Dtype};
use semantic_genesis::graph::{Graph, Home, LOSS_SCALE};
use semantic_genesis::kernels::check::{as_stored, numbers};
use semantic_genesis::kernels::optimiser::Hyper;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::{Fusion, Options, Plan};
use semantic_genesis::train::loader::Samples;
use semantic_genesis::train::log::{self, MetricsLog};
use semantic_genesis::train::network::Objective;
use semantic_genesis::train::phase::{Feed, Observer, Phase, Restored, State};
use semantic_genesis::train::pretrain::read_checkpoint;
use semantic_genesis::train::schedule::Rules;
use serde_json::{Value, json};

use crate::harness::{self, Rig, norm};

const GRID: [usize; 3] = [16, 16, 8];
const JOINT: Objective = Objective::Joint { classes: 3, restoration: 1.0, classification: 0.01 };

/// The device, if it has 16-bit floats.
fn device() -> Option<&'static Context> {
    let ctx = harness::trusted()?;
    if !ctx.caps().f16 {
        eprintln!("{} has no 16-bit floats: mixed precision is not tested", ctx.caps().name);
    }
    ctx.caps().f16.then_some(ctx)
}

fn spec(variant: Variant, activation: Activation) -> Spec {
    Spec { base: 4, depth: 3, variant, activation, norm: Norm::Running, channels: 1 }
}

fn wide(caps: &Caps) -> Caps {
    Caps { f16: true, max_binding: 2 << 30, max_buffer: 1 << 40, ..caps.clone() }
}

/// Losses and gradients of one step, the gradients divided by the loss scale. With `rounded`, the input and the
/// parameters are rounded to 16 bits first.
fn step(ctx: &Context, graph: &Graph, batch: usize, scale: f32, rounded: bool) -> (Vec<f32>, Vec<(String, Vec<f64>)>) {
    step_of(ctx, graph, Plan::new(graph, ctx.caps()).unwrap(), batch, scale, rounded)
}

fn step_of(ctx: &Context, graph: &Graph, plan: Plan, batch: usize, scale: f32, rounded: bool) -> (Vec<f32>, Vec<(String, Vec<f64>)>) {
    let rig = Rig::planned(ctx, graph, plan);
    let voxels = batch * GRID.iter().product::<usize>();
    let given = if rounded { Dtype::F16 } else { Dtype::F32 };
    let params: Vec<f32> = ctx.read(&rig.store.params, 0, graph.params.flat_len()).unwrap();
    ctx.upload(&rig.store.params, 0, &as_stored(&params, given));
    rig.feed(ctx, "input", &as_stored(&numbers(1, voxels, 1.0), given));
    rig.feed(ctx, "target", &numbers(2, voxels, 0.5).iter().map(|v| v + 0.5).collect::<Vec<_>>());
    rig.feed(ctx, "labels", &(0..batch as u32).map(|i| i % 3).collect::<Vec<_>>());
    let mixed = graph.inputs().iter().any(|(n, _)| n == LOSS_SCALE);
    if mixed {
        rig.feed(ctx, LOSS_SCALE, &[scale]);
    }
    rig.run(ctx);
    let losses = ["loss", "loss_rec", "loss_cls"].iter().flat_map(|name| rig.read(ctx, name)).collect();
    let flat: Vec<f32> = ctx.read(&rig.store.grads, 0, graph.params.flat_len()).unwrap();
    let undo = if mixed { 1.0 / f64::from(scale) } else { 1.0 };
    let of = |p: &semantic_genesis::graph::Param| {
        (p.name.clone(), flat[p.offset..p.offset + p.len()].iter().map(|&v| f64::from(v) * undo).collect())
    };
    (losses, graph.params.list().iter().map(of).collect())
}

/// Root of the sum of squares of differences of all gradients, relative to the gradients.
fn apart(a: &[(String, Vec<f64>)], b: &[(String, Vec<f64>)]) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for ((_, a), (_, b)) in a.iter().zip(b) {
        let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        (difference, size) = (difference + norm(&d).powi(2), size + norm(a).powi(2));
    }
    (difference / size).sqrt()
}

/// Bounds: losses within 1e-3 of themselves; all gradients together within 6 %, each within 20 % of its norm (biases
/// before a batch norm, whose gradients are zero but for rounding, within 1e-4 of the largest norm). That is what
/// rounding does to a network with kinks: values near zero change sides. The yardstick is the reference itself with
/// only its input and its parameters rounded to 16 bits, which a few dozen roundings on the way may exceed a few times.
#[test]
fn losses_and_gradients_follow_those_in_32_bits() {
    let Some(ctx) = device() else { return };
    for (variant, activation) in
        [(Variant::PyTorch, Activation::Relu), (Variant::PyTorch, Activation::PRelu), (Variant::Keras, Activation::Elu)]
    {
        let graph = JOINT.graph(&spec(variant, activation), 6, GRID, Mode::Train).unwrap();
        let mixed = graph.clone().stored_in(Precision::Mixed);
        assert!(mixed.values().iter().filter(|v| v.dtype == Dtype::F16).count() > 40);
        let (losses, gradients) = step(ctx, &graph, 6, 1.0, false);
        let yardstick = apart(&gradients, &step(ctx, &graph, 6, 1.0, true).1);
        let apart_too = Options { fusion: Some(Fusion::NONE), ..Options::default() };
        let unfused = step_of(ctx, &mixed, Plan::with(&mixed, ctx.caps(), &apart_too).unwrap(), 6, 1024.0, false);
        let (found, mixed) = step(ctx, &mixed, 6, 1024.0, false);
        let what = format!("{variant:?} {activation:?}");
        for (a, b) in losses.iter().zip(&found) {
            assert!((a - b).abs() <= 1e-3 * a.abs(), "{what}: losses {losses:?}, mixed {found:?}");
        }
        let largest = gradients.iter().map(|g| norm(&g.1)).fold(0.0, f64::max);
        for ((name, a), (_, b)) in gradients.iter().zip(&mixed) {
            let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            let (d, n) = (norm(&d), norm(a));
            assert!(d <= 0.2 * n + 1e-4 * largest, "{what}: the gradient of {name} is off by {d:.2e} of {n:.2e}");
        }
        let error = apart(&gradients, &mixed);
        // Without fusion other values are rounded.
        let error = error.max(apart(&gradients, &unfused.1));
        println!("{what}: gradients differ by {error:.4}, by {yardstick:.4} for rounded inputs and parameters");
        assert!(error > 0.0 && error <= 0.06 && error <= 5.0 * yardstick, "{what}: gradients differ by {error}, yardstick {yardstick}");
    }
}

/// The loss scale changes gradients by that factor and nothing else, as far as nothing leaves the range of 16 bits.
#[test]
fn gradients_are_as_many_times_as_large_as_the_loss_scale() {
    let Some(ctx) = device() else { return };
    let graph = JOINT.graph(&spec(Variant::PyTorch, Activation::Relu), 4, GRID, Mode::Train).unwrap().stored_in(Precision::Mixed);
    let (a, b) = (step(ctx, &graph, 4, 1024.0, false), step(ctx, &graph, 4, 8192.0, false));
    assert_eq!(a.0, b.0);
    let all = |s: &[(String, Vec<f64>)]| s.iter().flat_map(|g| g.1.clone()).collect::<Vec<f64>>();
    let (a, b) = (all(&a.1), all(&b.1));
    let d: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
    assert!(norm(&d) <= 1e-3 * norm(&a), "{} of {}", norm(&d), norm(&a));
}

#[test]
fn a_network_is_stored_in_half_the_memory_but_for_its_ends() {
    for mode in [Mode::Train, Mode::Evaluate] {
        let plain = JOINT.graph(&spec(Variant::PyTorch, Activation::PRelu), 2, GRID, mode).unwrap();
        let mixed = plain.clone().stored_in(Precision::Mixed);
        let bytes = |g: &Graph| {
            let volumes = g.values().iter().filter(|v| v.home == Home::Computed && v.shape.voxels() > 1);
            volumes.map(|v| v.shape.len() as u64 * v.dtype.bytes()).sum::<u64>() as f64
        };
        let ratio = bytes(&mixed) / bytes(&plain);
        assert!((0.5..0.56).contains(&ratio), "{mode:?}: {ratio}");
    }
    // The published network: what a plan holds, weights apart.
    let c = Config::default();
    let objective = Objective::Joint { classes: c.model.classes, restoration: 1.0, classification: 0.01 };
    let plain = objective.graph(&Spec::from(&c.model), c.train.batch_size, c.cube.size, Mode::Train).unwrap();
    let caps = wide(&Caps::minimal());
    let plan = |g: &Graph| Plan::new(g, &caps).unwrap();
    let (f32, mixed) = (plan(&plain), plan(&plain.clone().stored_in(Precision::Mixed)));
    let ratio = mixed.slot_bytes() as f64 / f32.slot_bytes() as f64;
    println!("{} MiB in 32 bits, {} MiB mixed", f32.slot_bytes() >> 20, mixed.slot_bytes() >> 20);
    assert!((0.45..0.65).contains(&ratio), "{ratio}");
    assert!(mixed.bytes() < f32.bytes() * 7 / 10, "{} and {} bytes move", mixed.bytes(), f32.bytes());
}

/// The loss scale comes in where the gradient starts, and the last layer still computes its own gradient.
#[test]
fn the_same_operations_are_fused_as_in_32_bits() {
    let graph = JOINT.graph(&spec(Variant::PyTorch, Activation::Relu), 2, GRID, Mode::Train).unwrap();
    let caps = wide(&Caps::minimal());
    let options = Options { fusion: Some(Fusion::ALL), ..Options::default() };
    let names = |g: &Graph| Plan::with(g, &caps, &options).unwrap().ops.iter().map(|o| o.op).collect::<Vec<_>>();
    let (mut plain, mixed) = (names(&graph), names(&graph.clone().stored_in(Precision::Mixed)));
    let start = plain.iter().position(|n| *n == "fill").unwrap();
    plain.remove(start);
    assert_eq!(plain, mixed);
    assert!(mixed.iter().any(|n| n.contains("sigmoid+loss")) && !mixed.contains(&"pointwise_loss.grad"), "{mixed:?}");
}

#[test]
fn an_adapter_without_16_bit_floats_is_an_error_that_says_what_to_do() {
    let graph = JOINT.graph(&spec(Variant::PyTorch, Activation::Relu), 2, GRID, Mode::Train).unwrap().stored_in(Precision::Mixed);
    let error = Plan::new(&graph, &Caps::minimal()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("minimal") && text.contains("train.precision = \"f32\"") && text.contains("--adapter"), "{text}");
    assert_eq!(error.exit_code(), 2);
}

/// Keeps the records, and stops the run after a step.
struct Watcher<'a> {
    records: Vec<Value>,
    stop: Option<u64>,
    interrupted: &'a AtomicBool,
}

impl Observer for Watcher<'_> {
    fn record(&mut self, record: &Value) {
        if record["kind"] == "step" {
            self.records.push(record.clone());
            if record["step"].as_u64() == self.stop {
                self.interrupted.store(true, Ordering::Relaxed);
            }
        }
    }

    fn restorations(&mut self, _: u32, _: [usize; 3], _: &[Restored]) -> Result<()> {
        Ok(())
    }

    fn note(&mut self, _: &str) {}
}

/// One phase of training on made-up cubes.
#[derive(Clone, Copy)]
struct Trial {
    precision: Precision,
    objective: Objective,
    steps: u64,
    /// First loss scale, if not the usual one.
    scale: Option<f32>,
    /// The step after which the run is stopped and continued.
    stop: Option<u64>,
    /// What the cubes hold instead of numbers.
    spoilt: Option<f32>,
    /// Samples on the device at once.
    micro: usize,
}

const USUAL: Trial = Trial { precision: Precision::Mixed, objective: JOINT, steps: 12, scale: None, stop: None, spoilt: None, micro: 4 };

impl Trial {
    fn run(self, ctx: &Context, dir: &Path) -> Result<(State, Vec<Value>)> {
        let config = Config::default();
        let voxels = GRID.iter().product();
        let samples = |n: u32| {
            let spoilt = self.spoilt;
            Samples::new((0..n).map(|i| (i, i % 3)), voxels, move |i| {
                let mut cube: Vec<f32> = numbers(100 + i, voxels, 0.5).iter().map(|v| v + 0.5).collect();
                cube[7] = spoilt.unwrap_or(cube[7]);
                Ok(cube)
            })
            .unwrap()
        };
        let (train, validation): (Arc<Samples>, Arc<Samples>) = (samples(16), samples(4));
        let (last, best, metrics) = (dir.join("last.safetensors"), dir.join("best.safetensors"), dir.join("metrics.jsonl"));
        let interrupted = AtomicBool::new(false);
        let phase = Phase {
            ctx,
            config: &config,
            spec: spec(Variant::PyTorch, Activation::Relu),
            objective: self.objective,
            size: GRID,
            feed: Feed::Distorted,
            batch: 4,
            micro: self.micro,
            recompute: false,
            precision: self.precision,
            optimiser: Optimiser::Adam,
            hyper: Hyper::default(),
            clip_norm: 1.0,
            rate: 1e-3,
            rules: Rules {
                schedule: Schedule::Constant,
                factor: 0.5,
                step_epochs: 1,
                plateau_patience: 1,
                min_delta: 0.0,
                min_rate: 0.0,
                stop_patience: 1000,
            },
            max_epochs: 1000,
            max_steps: Some(self.steps),
            train,
            validation,
            checkpoint_steps: 0,
            last: &last,
            best: &best,
            about: json!({}),
            encoder_rate: 1.0,
            class_weights: &[],
            judges: None,
            interrupted: &interrupted,
        };
        let mut watcher = Watcher { records: Vec::new(), stop: self.stop, interrupted: &interrupted };
        let mut start = phase.start(0);
        if let Some(scale) = self.scale {
            start.scaling.scale = scale;
        }
        let mut log = MetricsLog::create(&metrics)?;
        let result = phase.run(start, None, &mut log, &mut watcher);
        let state = match (result, self.stop) {
            (Err(Error::Interrupted(_)), Some(stop)) => {
                interrupted.store(false, Ordering::Relaxed);
                let (state, _, tensors) = read_checkpoint(&last)?;
                assert_eq!(state.step, stop);
                phase.run(state, Some(&tensors), &mut log, &mut watcher)?
            }
            (result, _) => result?,
        };
        assert_eq!(log::read(&metrics)?.iter().filter(|r| r["kind"] == "step").count() as u64, self.steps);
        Ok((state, watcher.records))
    }
}

fn numbers_of(records: &[Value], name: &str) -> Vec<f64> {
    records.iter().map(|r| r[name].as_f64().unwrap_or(f64::NAN)).collect()
}

#[test]
fn training_follows_the_run_in_32_bits() {
    let Some(ctx) = device() else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plain = Trial { precision: Precision::F32, steps: 24, ..USUAL }.run(ctx, dirs[0].path()).unwrap();
    let mixed = Trial { steps: 24, ..USUAL }.run(ctx, dirs[1].path()).unwrap();
    let (a, b) = (numbers_of(&plain.1, "loss"), numbers_of(&mixed.1, "loss"));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= 0.02 * a, "step {}: {a} in 32 bits, {b} mixed", i + 1);
    }
    assert!(a != b && b[23] < 0.9 * b[0], "{b:?}");
    assert!(plain.1.iter().all(|r| r.get("loss_scale").is_none() && r.get("skipped").is_none()));
    assert!(mixed.1.iter().all(|r| r["loss_scale"] == 65_536.0 && r["skipped"] == 0), "{:?}", mixed.1[0]);
    let (a, b) = (plain.0.validation.unwrap().loss, mixed.0.validation.unwrap().loss);
    assert!((a - b).abs() <= 0.03 * a, "validation {a} in 32 bits, {b} mixed");
}

#[test]
fn overflows_are_skipped_counted_and_survived() {
    let Some(ctx) = device() else { return };
    for micro in [4, 2] {
        survived(ctx, micro);
    }
}

fn survived(ctx: &Context, micro: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (state, records) = Trial { scale: Some(2f32.powi(36)), steps: 20, micro, ..USUAL }.run(ctx, dir.path()).unwrap();
    let (scales, skipped) = (numbers_of(&records, "loss_scale"), numbers_of(&records, "skipped"));
    let last = skipped[skipped.len() - 1];
    assert!((2.0..18.0).contains(&last) && state.scaling.skipped as f64 == last, "{skipped:?}");
    assert_eq!((state.step, state.updates), (20, 20));
    for (i, r) in records.iter().enumerate() {
        let new = skipped[i] - if i == 0 { 0.0 } else { skipped[i - 1] };
        // A step that is left out has no gradient to speak of, and halves the scale of the next.
        assert_eq!(r["grad_norm"].is_null(), new == 1.0, "{r}");
        if let Some(next) = scales.get(i + 1) {
            assert_eq!(*next, if new == 1.0 { scales[i] / 2.0 } else { scales[i] });
        }
    }
    // Parameters stand still as long as steps are left out.
    let losses = numbers_of(&records, "loss");
    assert!(losses.iter().all(|l| l.is_finite()) && losses[19] < losses[0], "{losses:?}");
}

#[test]
fn a_stopped_and_continued_run_has_the_same_bits() {
    let Some(ctx) = device() else { return };
    // Stopped among the steps that are left out, and after them.
    let whole = Trial { scale: Some(2f32.powi(34)), ..USUAL };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (state, records) = whole.run(ctx, dirs[0].path()).unwrap();
    assert!(state.scaling.skipped > 2 && state.scaling.skipped < 10);
    for (dir, stop) in [(&dirs[1], 2), (&dirs[2], 10)] {
        let (again, found) = Trial { stop: Some(stop), ..whole }.run(ctx, dir.path()).unwrap();
        assert_eq!(again, state);
        let same = |r: &[Value]| ["loss", "grad_norm", "loss_scale", "skipped"].map(|n| r.iter().map(|r| r[n].clone()).collect::<Vec<_>>());
        assert_eq!(same(&found), same(&records));
        for name in ["last.safetensors", "best.safetensors"] {
            let read = |d: &tempfile::TempDir| std::fs::read(d.path().join(name)).unwrap();
            assert!(read(dir) == read(&dirs[0]), "{name} differs after a stop at {stop}");
        }
    }
}

#[test]
fn what_no_scale_can_help_ends_the_run_and_names_the_layer() {
    let Some(ctx) = device() else { return };
    let dir = tempfile::tempdir().unwrap();
    // A loss that is not a number.
    let error = Trial { spoilt: Some(f32::NAN), ..USUAL }.run(ctx, dir.path()).unwrap_err().to_string();
    assert!(error.contains("first not finite at layer down_tr64.ops.0.conv1") && error.contains("step 1"), "{error}");
    // Gradients that are too large without any scale.
    let objective = Objective::Joint { classes: 3, restoration: 1e12, classification: 0.01 };
    let trial = Trial { objective, scale: Some(4.0), ..USUAL };
    let error = trial.run(ctx, dir.path()).unwrap_err().to_string();
    assert!(error.contains("step 3") && error.contains(".grad") || error.contains("conv3d.input_grad"), "{error}");
    assert!(error.contains("train.precision = \"f32\""), "{error}");
}
