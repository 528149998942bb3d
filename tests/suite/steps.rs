//! Steps of training: batches in parts, updates that must not happen, and what a step costs the host.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use semantic_genesis::config::{Config, Optimiser, Precision};
use semantic_genesis::gpu::{Context, Counters};
use semantic_genesis::graph::{Graph, Init, Layout, Shape};
use semantic_genesis::kernels::activation::Function;
use semantic_genesis::kernels::check::numbers;
use semantic_genesis::kernels::loss::Pointwise;
use semantic_genesis::kernels::optimiser::Hyper;
use semantic_genesis::train::loader::Samples;
use semantic_genesis::train::log::MetricsLog;
use semantic_genesis::train::phase::{Feed, Observer, Phase, Restored, State};
use semantic_genesis::train::schedule::Rules;
use semantic_genesis::train::update::{Report, Update, together};
use semantic_genesis::train::{fit::Stage, network::Objective};
use serde_json::{Value, json};

use crate::harness::{self, Rig};

const GRID: [usize; 3] = [6, 5, 4];
const SAMPLE: usize = 6 * 5 * 4 * 3;

/// A network without batch norm, whose gradient of a batch is the mean of its samples'.
fn plain(batch: usize) -> Graph {
    let mut g = Graph::new();
    let x = g.input("input", Shape::new(batch, GRID, 3));
    let t = g.input("target", Shape::new(batch, GRID, 5));
    let w = g.param("w", Layout::Conv { kernel: [3; 3], first: 5, second: 3 }, Init::Uniform(0.2)).unwrap();
    let b = g.param("b", Layout::Vector(5), Init::Uniform(0.1)).unwrap();
    let y = g.conv3d("conv", &[x], w, Some(b), 5, [3; 3], [1; 3], [1; 3]).unwrap();
    let y = g.activation("act", Function::Elu, y);
    let per_sample = g.pointwise_loss("mse", Pointwise::Mse, y, t).unwrap();
    let loss = g.mean("loss", per_sample);
    g.output("loss", loss);
    g.backward(loss, &[]).unwrap();
    g
}

/// One step of SGD on a batch of `batch` samples, `micro` at once: what it reports, and the parameters after it.
fn step(ctx: &Context, batch: usize, micro: usize, input: &[f32]) -> (Report, Vec<f32>) {
    let rig = Rig::new(ctx, &plain(micro));
    let hyper = Hyper { momentum: 0.0, ..Hyper::default() };
    let loss = rig.session.output("loss").unwrap();
    let mut update =
        Update::new(ctx, &rig.store, &together(&rig.store.param_list), Optimiser::Sgd, hyper, 0.0, batch / micro, &[loss]).unwrap();
    let target = numbers(2, batch * SAMPLE / 3 * 5, 1.0);
    for (part, first) in (0..batch).step_by(micro).enumerate() {
        let range = |len: usize| first * len..(first + micro) * len;
        rig.feed(ctx, "input", &input[range(SAMPLE)]);
        rig.feed(ctx, "target", &target[range(SAMPLE / 3 * 5)]);
        rig.run(ctx);
        update.take(ctx, part).unwrap();
    }
    update.apply(ctx, 1.0).unwrap();
    let report = update.report(ctx).unwrap();
    (report, ctx.read(&rig.store.params, 0, rig.store.param_list.flat_len()).unwrap())
}

#[test]
fn a_batch_in_parts_steps_as_a_whole_one() {
    let Some(ctx) = harness::trusted() else { return };
    let input = numbers(1, 6 * SAMPLE, 1.0);
    let (whole, after) = step(ctx, 6, 6, &input);
    let before = plain(1).params.initial(0);
    let moved = after.iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    assert!((moved / f64::from(whole.norm) - 1.0).abs() < 1e-4 && whole.norm > 1e-3, "{moved} and {whole:?}");
    for micro in [1, 2, 3] {
        let (report, parts) = step(ctx, 6, micro, &input);
        assert!((report.losses[0] / whole.losses[0] - 1.0).abs() < 1e-5, "{micro}: {report:?}, {whole:?}");
        assert!((report.norm / whole.norm - 1.0).abs() < 1e-5, "{micro}: {report:?}, {whole:?}");
        let far = parts.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        assert!(far < 1e-5 * moved, "{micro}: {far} of {moved}");
        assert!((report.clone(), parts) == step(ctx, 6, micro, &input), "a second time gives other bits");
    }
    // Another sample in the last part is noticed.
    let mut other = input.clone();
    other[6 * SAMPLE - 1] += 1.0;
    assert!(step(ctx, 6, 2, &other).0.losses[0] != step(ctx, 6, 2, &input).0.losses[0]);
}

#[test]
fn a_part_that_is_not_finite_is_reported_and_changes_nothing() {
    let Some(ctx) = harness::trusted() else { return };
    let before = plain(1).params.initial(0);
    for at in [0, 3 * SAMPLE, 6 * SAMPLE - 1] {
        let mut input = numbers(1, 6 * SAMPLE, 1.0);
        input[at] = f32::NAN;
        for micro in [2, 6] {
            let (report, after) = step(ctx, 6, micro, &input);
            assert!(!report.losses[0].is_finite() && !report.norm.is_finite(), "{report:?}");
            assert!(after == before, "NaN at {at} changed parameters");
        }
    }
}

/// Keeps what the device had made after every record.
struct Counting<'a>(&'a Context, Vec<(String, Counters)>, u64);

impl Observer for Counting<'_> {
    fn record(&mut self, record: &Value) {
        self.1.push((record["kind"].as_str().unwrap().to_owned(), self.0.counters()));
    }
    fn restorations(&mut self, _: u32, _: [usize; 3], _: &[Restored]) -> semantic_genesis::error::Result<()> {
        Ok(())
    }
    fn note(&mut self, _: &str) {}
    fn memory(&mut self, _: &str, bytes: u64) {
        self.2 = bytes;
    }
}

/// Trains the stage for `steps` steps, `micro` samples at once, in `dir`.
fn train(
    ctx: &Context,
    config: &Config,
    stage: &Stage,
    micro: usize,
    steps: u64,
    dir: &std::path::Path,
) -> (State, Vec<(String, Counters)>, u64) {
    let len = stage.size.iter().product::<usize>();
    let samples = |n: u32| {
        Samples::new((0..n).map(|i| (i, i % 3)), len, move |i| Ok(numbers(i, len, 0.5).iter().map(|v| v + 0.5).collect())).unwrap()
    };
    let (train, validation): (Arc<Samples>, Arc<Samples>) = (samples(16), samples(5));
    let (last, best) = (dir.join("last.safetensors"), dir.join("best.safetensors"));
    let interrupted = AtomicBool::new(false);
    let phase = Phase {
        ctx,
        config,
        spec: stage.spec.clone(),
        objective: stage.objective,
        size: stage.size,
        feed: Feed::Distorted,
        batch: stage.batch,
        micro,
        recompute: false,
        precision: stage.precision,
        optimiser: stage.optimiser,
        hyper: Hyper::default(),
        clip_norm: 1.0,
        rate: 1e-3,
        rules: Rules {
            schedule: config.train.schedule,
            factor: 0.5,
            step_epochs: 1,
            plateau_patience: 1,
            min_delta: 0.0,
            min_rate: 1e-6,
            stop_patience: 100,
        },
        max_epochs: 2,
        max_steps: Some(steps),
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
    let mut observer = Counting(ctx, Vec::new(), 0);
    let mut log = MetricsLog::create(&dir.join("metrics.jsonl")).unwrap();
    let state = phase.run(phase.start(0), None, &mut log, &mut observer).unwrap();
    (state, observer.1, observer.2)
}

fn config() -> Config {
    let sets = ["model.base_channels=2", "model.depth=3", "model.classes=3", "cube.size=[16,16,8]", "train.batch_size=4"];
    Config::load(None, &sets.map(str::to_owned)).unwrap()
}

#[test]
fn from_the_second_step_on_nothing_is_made_and_memory_is_as_planned() {
    if harness::trusted().is_none() {
        return;
    }
    // A device of its own: others make things on the shared one meanwhile.
    let ctx = Context::new(None).unwrap();
    let config = config();
    let mut stages = Stage::pretraining(&config);
    if ctx.caps().f16 {
        stages.extend(Stage::pretraining(&config).into_iter().map(|s| Stage { precision: Precision::Mixed, ..s }));
    }
    for stage in stages {
        for micro in [4, 2] {
            let dir = tempfile::tempdir().unwrap();
            let (state, counts, peak) = train(&ctx, &config, &stage, micro, 6, dir.path());
            assert_eq!(state.updates, 6);
            let steps: Vec<&Counters> = counts.iter().filter(|c| c.0 == "step").map(|c| &c.1).collect();
            assert_eq!(steps.len(), 6);
            // Of two epochs of four and two steps; validation and its checkpoints make nothing either.
            assert!(steps[1..].iter().all(|c| *c == steps[0]), "{steps:?}");
            assert!(steps[0].buffers > 10 && steps[0].pipelines > 10 && steps[0].bind_groups > 10, "{steps:?}");
            let options = semantic_genesis::plan::Options::default();
            let planned = stage.need(&config, ctx.caps(), &options, micro).unwrap().memory;
            assert!(peak.abs_diff(planned.total) as f64 <= 0.01 * planned.total as f64, "{peak} used, planned {planned:?}");
        }
    }
    let first = Stage::pretraining(&config).remove(0);
    assert_eq!(first.objective, Objective::Classification { classes: 3 });
}
