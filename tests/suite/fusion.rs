//! Fused plans against plans of single operations: outputs, losses, every gradient, running statistics.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use semantic_genesis::config::{Activation, Norm, Variant};
use semantic_genesis::gpu::Context;
use semantic_genesis::graph::Graph;
use semantic_genesis::kernels::check::numbers;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::{Fusion, Options, Plan};
use semantic_genesis::train::network::Objective;

use crate::harness::{self, Rig, norm, wide};

const GRID: [usize; 3] = [16, 16, 8];
const BATCH: usize = 2;

/// Each rule by its name, then all of them.
fn rules() -> Vec<(&'static str, Fusion)> {
    let n = Fusion::NONE;
    vec![
        ("statistics", Fusion { statistics: true, ..n }),
        ("activation", Fusion { activation: true, ..n }),
        ("load", Fusion { load: true, ..n }),
        ("bias", Fusion { bias: true, ..n }),
        ("loss", Fusion { loss: true, ..n }),
        ("add", Fusion { add: true, ..n }),
        ("all but load", Fusion { load: false, ..Fusion::ALL }),
        ("all", Fusion::ALL),
    ]
}

fn graph(variant: Variant, activation: Activation, objective: Objective, mode: Mode) -> Graph {
    let spec = Spec { base: 4, depth: 4, variant, activation, norm: Norm::Running, channels: 1 };
    objective.graph(&spec, BATCH, GRID, mode).unwrap()
}

const JOINT: Objective = Objective::Joint { classes: 5, restoration: 1.5, classification: 0.1 };

fn planned(ctx: &Context, graph: &Graph, fusion: Fusion) -> Plan {
    Plan::with(graph, ctx.caps(), &Options { fusion: Some(fusion), ..Options::default() }).unwrap()
}

/// Everything that a run leaves, by name.
fn results(ctx: &Context, graph: &Graph, plan: Plan) -> Vec<(String, Vec<f32>)> {
    let rig = Rig::planned(ctx, graph, plan);
    // The norms' shifts start at zero, where half of a ReLU's inputs are cut off exactly; in general position they are not.
    let params: Vec<f32> = ctx.read(&rig.store.params, 0, graph.params.flat_len()).unwrap();
    let moved: Vec<f32> = params.iter().zip(numbers(7, params.len(), 0.05)).map(|(p, n)| p + n).collect();
    ctx.upload(&rig.store.params, 0, &moved);
    let voxels = BATCH * GRID.iter().product::<usize>();
    for (name, value) in graph.inputs() {
        match name.as_str() {
            "labels" => rig.feed(ctx, name, &[3u32, 1]),
            _ => {
                assert_eq!(graph.shape(*value).len(), voxels);
                rig.feed(ctx, name, &numbers(u32::from(name == "input"), voxels, 0.5).iter().map(|v| v + 0.5).collect::<Vec<_>>());
            }
        }
    }
    rig.run(ctx);
    let mut out: Vec<(String, Vec<f32>)> = graph.outputs().iter().map(|(n, _)| (n.clone(), rig.read(ctx, n))).collect();
    let state: Vec<f32> = ctx.read(&rig.store.state, 0, graph.state.flat_len()).unwrap();
    out.extend(graph.state.list().iter().map(|p| (p.name.clone(), state[p.offset..p.offset + p.len()].to_vec())));
    if rig.session.plan().store_bytes(0) > 2 * graph.params.flat_len() as u64 * 4 {
        let grads: Vec<f32> = ctx.read(&rig.store.grads, 0, graph.params.flat_len()).unwrap();
        out.extend(graph.params.list().iter().map(|p| (format!("grad.{}", p.name), grads[p.offset..p.offset + p.len()].to_vec())));
    }
    out
}

/// What differs by more than rounding, relative to each tensor's norm; biases before batch norms, whose gradient is zero, are
/// judged against the largest gradient.
fn differences(got: &[(String, Vec<f32>)], want: &[(String, Vec<f32>)], tolerance: f64) -> Vec<String> {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().filter(|(n, _)| n.starts_with("grad.")).map(|(_, v)| norm(&wide(v))).fold(0.0, f64::max);
    let mut out = Vec::new();
    for ((name, a), (other, b)) in got.iter().zip(want) {
        assert_eq!(name, other);
        let (a, b) = (wide(a), wide(b));
        let difference: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        let zero = name.starts_with("grad.") && norm(&b) < 1e-4 * largest;
        let scale = if zero { 1e-2 * largest } else { norm(&b) };
        let error = norm(&difference) / scale.max(1e-30);
        if !(error <= tolerance) {
            out.push(format!("{name}: {error:.1e}"));
        }
    }
    out
}

#[test]
fn each_rule_and_all_together_compute_what_single_operations_do() {
    let Some(ctx) = harness::trusted() else { return };
    let cases = [
        (Variant::PyTorch, Activation::Relu, JOINT),
        (Variant::Keras, Activation::Relu, JOINT),
        (Variant::PyTorch, Activation::PRelu, JOINT),
        (Variant::Keras, Activation::Elu, Objective::Autoencoder { skips: false }),
        (Variant::PyTorch, Activation::Relu, Objective::Classification { classes: 5 }),
    ];
    let mut failures = Vec::new();
    for (variant, activation, objective) in cases {
        for mode in [Mode::Train, Mode::Evaluate] {
            let graph = graph(variant, activation, objective, mode);
            let single = planned(ctx, &graph, Fusion::NONE);
            assert_eq!(single.graph.nodes().len(), graph.nodes().len(), "nothing is fused");
            let want = results(ctx, &graph, single);
            assert!(want.iter().all(|(_, v)| v.iter().all(|x| x.is_finite())));
            for (name, fusion) in rules() {
                let plan = planned(ctx, &graph, fusion);
                if plan.graph.nodes() == graph.nodes() {
                    continue;
                }
                let bad = differences(&results(ctx, &graph, plan), &want, 1e-4);
                failures.extend(bad.iter().map(|b| format!("{name}: {variant:?} {activation:?} {} {mode:?}: {b}", objective.word())));
            }
        }
    }
    assert!(failures.is_empty(), "{} results differ:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn rules_without_arithmetic_of_their_own_give_the_same_bits() {
    let Some(ctx) = harness::trusted() else { return };
    let bits = |r: &[(String, Vec<f32>)]| r.iter().flat_map(|(_, v)| v.iter().map(|x| x.to_bits())).collect::<Vec<_>>();
    for mode in [Mode::Train, Mode::Evaluate] {
        let graph = graph(Variant::PyTorch, Activation::Relu, JOINT, mode);
        let want = bits(&results(ctx, &graph, planned(ctx, &graph, Fusion::NONE)));
        for (name, fusion) in [("activation", Fusion { activation: true, ..Fusion::NONE }), ("add", Fusion { add: true, ..Fusion::NONE })] {
            assert!(bits(&results(ctx, &graph, planned(ctx, &graph, fusion))) == want, "{name}, {mode:?}");
        }
    }
}

#[test]
fn every_rule_does_something_in_training_a_y_net() {
    let Some(ctx) = harness::trusted() else { return };
    let graph = graph(Variant::PyTorch, Activation::Relu, JOINT, Mode::Train);
    let single = planned(ctx, &graph, Fusion::NONE);
    for (name, fusion) in rules() {
        let plan = planned(ctx, &graph, fusion);
        assert!(plan.graph.nodes() != graph.nodes(), "{name} leaves the graph as it is");
        assert!(plan.bytes() < single.bytes(), "{name} moves {} bytes instead of {}", plan.bytes(), single.bytes());
    }
}

#[test]
fn a_difference_is_noticed() {
    let Some(ctx) = harness::trusted() else { return };
    let graph = graph(Variant::PyTorch, Activation::Relu, JOINT, Mode::Train);
    let want = results(ctx, &graph, planned(ctx, &graph, Fusion::NONE));
    for i in [0, want.len() / 2, want.len() - 1] {
        let mut other = want.clone();
        other[i].1[0] += 0.01 * norm(&wide(&want[i].1)) as f32 + 1e-3;
        assert_eq!(differences(&other, &want, 1e-4).len(), 1, "{}", want[i].0);
        other[i].1[0] = f32::NAN;
        assert_eq!(differences(&other, &want, 1e-4).len(), 1, "{}", want[i].0);
    }
}
