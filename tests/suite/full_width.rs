//! The published network at its published size on the adapter at hand.

use std::time::Instant;

use semantic_genesis::config::{Config, Optimiser};
use semantic_genesis::gpu::Context;
use semantic_genesis::kernels::check::numbers;
use semantic_genesis::kernels::optimiser::Hyper;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::{Plan, Session, Store};
use semantic_genesis::train::fit::Stage;
use semantic_genesis::train::network::Objective;
use semantic_genesis::train::update::{Update, moments, together};

use crate::harness;

/// The whole training step, planned: within every limit of the adapter, and within 8 GiB.
fn planned() -> Option<(Plan, u64)> {
    let ctx = harness::trusted()?;
    let c = Config::default();
    let objective = Objective::Joint { classes: c.model.classes, restoration: c.loss.restoration, classification: c.loss.classification };
    let graph = objective.graph(&Spec::from(&c.model), 1, c.cube.size, Mode::Train).unwrap();
    assert_eq!(graph.params.count(), 33_277_613);
    let plan = Plan::new(&graph, ctx.caps()).unwrap();
    let bytes = plan.slot_bytes() + plan.store_bytes(moments(Optimiser::Adam));
    assert!(plan.dispatches.iter().all(|d| d.bindings.iter().all(|b| b.len <= ctx.caps().max_binding)));
    assert!(bytes < 8 << 30, "{bytes} bytes");
    Some((plan, bytes))
}

#[test]
fn a_step_of_the_published_network_fits() {
    if let Some((plan, _)) = planned() {
        // 3 × 251.5 GFLOP, less the input gradient of the first layer.
        let gflop = plan.flops() as f64 / 1e9;
        assert!((750.0..760.0).contains(&gflop), "{gflop} GFLOP");
    }
}

/// Prints the time of a step: `cargo test --test suite full_width -- --ignored --nocapture`.
#[test]
#[ignore = "computes 1.5 TFLOP: a minute on a processor; run it by name"]
fn a_step_of_the_published_network_is_timed() {
    let (Some(ctx), Some((plan, bytes))) = (harness::trusted(), planned()) else { return };
    let gflop = plan.flops() as f64 / 1e9;
    let store = Store::new(ctx, &plan.graph, 0).unwrap();
    let mut update = Update::new(ctx, &store, &together(&store.param_list), Optimiser::Adam, Hyper::default(), 0.0, 1, &[]).unwrap();
    let session = Session::new(ctx, plan, &store).unwrap();
    for (seed, name) in [(1, "input"), (2, "target")] {
        let values: Vec<f32> = numbers(seed, 64 * 64 * 32, 0.5).iter().map(|v| v + 0.5).collect();
        ctx.upload(session.input(name).unwrap(), 0, &values);
    }
    // The first step compiles.
    let mut losses = Vec::new();
    let mut seconds = 0.0;
    for _ in 0..2 {
        let begun = Instant::now();
        session.run(ctx).unwrap();
        losses.push(session.read::<f32>(ctx, "loss").unwrap()[0]);
        update.apply(ctx, 1e-3).unwrap();
        ctx.wait().unwrap();
        seconds = begun.elapsed().as_secs_f64();
    }
    println!(
        "{}: {seconds:.1} s a step, {:.1} GFLOP/s, {} MiB of device memory, losses {losses:?}",
        ctx.caps().name,
        gflop / seconds,
        bytes >> 20
    );
    assert!(losses.iter().all(|l| l.is_finite()) && losses[0] != losses[1] && seconds < 90.0, "{losses:?} in {seconds} s");
}

/// Prints what passes from nothing to the end of the first step, with compiled pipelines kept in `SEMGEN_CACHE`, for the
/// width and the cube in `SEMGEN_STEP` (`32,64,64,32` unless given):
/// `cargo test --release --test suite first_step -- --ignored --nocapture`.
#[test]
#[ignore = "computes for a minute on a processor; run it by name"]
fn the_first_step_is_timed() {
    let given = std::env::var("SEMGEN_STEP").unwrap_or_else(|_| "32,64,64,32".into());
    let [base, size @ ..]: [usize; 4] = given.split(',').map(|n| n.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap();
    let config = Config::load(None, &[format!("model.base_channels={base}"), format!("cube.size={size:?}"), "train.batch_size=1".into()]);
    let config = config.unwrap();
    let begun = Instant::now();
    let passed = |what: &str| println!("{:>7.2} s  {what}", begun.elapsed().as_secs_f64());
    let ctx = Context::new(None).unwrap();
    let ctx = match semantic_genesis::files::cache_dir() {
        Some(dir) => ctx.keep_pipelines(&dir),
        None => ctx,
    };
    passed("the device is open");
    let stage = Stage::pretraining(&config).pop().unwrap();
    let graph = stage.objective.graph(&stage.spec, 1, stage.size, Mode::Train).unwrap();
    let plan = Plan::new(&graph, ctx.caps()).unwrap();
    passed(&format!("planned, {} dispatches", plan.dispatches.len()));
    let store = Store::new(&ctx, &graph, 0).unwrap();
    passed("parameters are there");
    let session = Session::new(&ctx, plan, &store).unwrap();
    passed(&format!("the step is ready, {:?}", ctx.counters()));
    let losses = [session.output("loss").unwrap()];
    let mut update = Update::new(&ctx, &store, &together(&store.param_list), Optimiser::Adam, Hyper::default(), 0.0, 1, &losses).unwrap();
    passed("the optimiser is ready");
    for step in 1..=3 {
        session.run(&ctx).unwrap();
        update.take(&ctx, 0).unwrap();
        update.apply(&ctx, 1e-3).unwrap();
        let submitted = begun.elapsed().as_secs_f64();
        let report = update.report(&ctx).unwrap();
        passed(&format!("step {step}, submitted at {submitted:.2} s, {report:?}"));
    }
}
