//! Plans: the same every time, memory shared only between values that never live together, slices of batches.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashMap;

use semantic_genesis::config::{Activation, Norm, Optimiser, Variant};
use semantic_genesis::doctor::parity::Network;
use semantic_genesis::gpu::{Caps, Context, Kind, reflect};
use semantic_genesis::graph::{Graph, Home};
use semantic_genesis::kernels::check::numbers;
use semantic_genesis::kernels::optimiser::Hyper;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::{Fusion, Options, Plan};
use semantic_genesis::train::network::Objective;
use semantic_genesis::train::update::{Update, together};

use crate::harness::{self, Rig, norm, wide};

const GRID: [usize; 3] = [16, 16, 8];

fn network(variant: Variant, activation: Activation) -> Network {
    let spec = Spec { base: 2, depth: 4, variant, activation, norm: Norm::Running, channels: 1 };
    Network { spec, restores: true, skips: true, classes: Some(5) }
}

fn graphs() -> Vec<Graph> {
    [(Variant::PyTorch, Activation::PRelu), (Variant::PyTorch, Activation::Relu), (Variant::Keras, Activation::Relu)]
        .map(|(v, a)| network(v, a).graph(2, GRID).unwrap())
        .into()
}

/// Bindings of a plan name slot s as buffer s + this.
const FIRST_SLOT: u32 = 16;

fn adapters() -> [Caps; 2] {
    [Caps::minimal(), Caps { max_binding: 256 << 10, subgroup_min: 8, subgroup_max: 8, int64: true, ..Caps::minimal() }]
}

#[test]
fn the_same_graph_and_adapter_give_the_same_plan() {
    for (graph, caps) in graphs().iter().flat_map(|g| adapters().map(|c| (g.clone(), c))) {
        let (a, b) = (Plan::new(&graph, &caps).unwrap(), Plan::new(&graph.clone(), &caps).unwrap());
        assert_eq!(a.slots, b.slots);
        assert_eq!(format!("{:?}", a.ops), format!("{:?}", b.ops));
        assert_eq!(a.dispatches.len(), b.dispatches.len());
        assert!(a.dispatches.iter().zip(&b.dispatches).all(|(a, b)| format!("{a:?}") == format!("{b:?}")));
        assert!(
            (0..graph.values().len()).all(|v| a.slot(semantic_genesis::graph::ValueId(v)) == b.slot(semantic_genesis::graph::ValueId(v)))
        );
    }
}

/// First and last operation at which each value of a slot is needed, worked out from the graph alone.
fn lifetimes(plan: &Plan) -> Vec<(usize, usize, usize)> {
    let g = &plan.graph;
    let mut out = Vec::new();
    for (i, value) in g.values().iter().enumerate() {
        let v = semantic_genesis::graph::ValueId(i);
        let Some(slot) = plan.slot(v) else {
            assert!(!matches!(value.home, Home::Input), "an input has no slot");
            continue;
        };
        assert!(plan.slots[slot] >= value.shape.len() as u64 * value.dtype.bytes(), "value {i} does not fit its slot");
        let held = g.inputs().iter().chain(g.outputs()).any(|(_, o)| *o == v);
        let born = g.nodes().iter().position(|n| n.outputs.contains(&v)).unwrap_or(0);
        let uses = g.nodes().iter().enumerate().filter(|(_, n)| n.inputs.contains(&v) || n.outputs.contains(&v)).map(|u| u.0);
        let last = if held { usize::MAX } else { uses.max().unwrap_or(born) };
        let born = if value.home == Home::Input { 0 } else { born };
        out.push((slot, born, last));
    }
    out
}

#[test]
fn no_two_live_values_share_a_slot_and_slots_are_shared() {
    for (graph, caps) in graphs().iter().flat_map(|g| adapters().map(|c| (g.clone(), c))) {
        let plan = Plan::new(&graph, &caps).unwrap();
        let lives = lifetimes(&plan);
        for (i, a) in lives.iter().enumerate() {
            for b in lives[..i].iter().filter(|b| b.0 == a.0) {
                assert!(a.2 < b.1 || b.2 < a.1, "slot {} holds two values at once: {a:?} and {b:?}", a.0);
            }
        }
        // Scratch: what an operation binds besides its operands and results is nobody's.
        for (i, (node, op)) in plan.graph.nodes().iter().zip(&plan.ops).enumerate() {
            let own: Vec<usize> = node.inputs.iter().chain(&node.outputs).filter_map(|&v| plan.slot(v)).collect();
            for d in &plan.dispatches[op.dispatches.clone()] {
                for slot in d.bindings.iter().filter_map(|b| b.buffer.0.checked_sub(FIRST_SLOT)).map(|s| s as usize) {
                    let foreign = !own.contains(&slot) && lives.iter().any(|l| l.0 == slot && l.1 <= i && i <= l.2);
                    assert!(!foreign, "{} ({}) binds the slot of a value that is not its own", op.label, op.op);
                }
                for b in &d.bindings {
                    let size = b.buffer.0.checked_sub(FIRST_SLOT).map(|s| plan.slots[s as usize]);
                    assert!(size.is_none_or(|s| b.offset + b.len <= s), "{} leaves its slot", d.label);
                }
            }
        }
        let apart = Plan::unshared(&graph, &caps).unwrap();
        assert!(plan.slot_bytes() * 2 < apart.slot_bytes(), "{} of {} bytes", plan.slot_bytes(), apart.slot_bytes());
    }
}

/// Whether each storage binding of an entry point, in ascending order, is (read, written).
fn uses(label: &str, source: &str, entry: &str) -> Vec<(bool, bool)> {
    let r = reflect(label, source).unwrap();
    let index = r.module.entry_points.iter().position(|e| e.name == entry).unwrap();
    let used = r.info.get_entry_point(index);
    let mut out: Vec<_> = r
        .module
        .global_variables
        .iter()
        .filter(|(h, v)| matches!(v.space, naga::AddressSpace::Storage { .. }) && !used[*h].is_empty())
        .map(|(h, v)| {
            let flags = used[h];
            (
                v.binding.as_ref().unwrap().binding,
                flags.contains(naga::valid::GlobalUse::READ),
                flags.contains(naga::valid::GlobalUse::WRITE),
            )
        })
        .collect();
    out.sort_unstable();
    out.into_iter().map(|(_, read, write)| (read, write)).collect()
}

#[test]
fn everything_is_written_before_it_is_read() {
    for graph in graphs() {
        let caps = Caps::minimal();
        let plan = Plan::unshared(&graph, &caps).unwrap();
        let mut written: Vec<bool> = vec![false; plan.slots.len()];
        for (_, v) in graph.inputs() {
            written[plan.slot(*v).unwrap()] = true;
        }
        let mut cache = HashMap::new();
        for d in &plan.dispatches {
            let flags = cache.entry((d.source.clone(), d.entry)).or_insert_with(|| uses(&d.label, &d.source, d.entry));
            assert_eq!(flags.len(), d.bindings.len(), "{}", d.label);
            let slots = |b: &semantic_genesis::gpu::View| b.buffer.0.checked_sub(FIRST_SLOT).map(|s| s as usize);
            for (b, (read, write)) in d.bindings.iter().zip(flags.iter()) {
                if let Some(slot) = slots(b) {
                    // What is written and read by one dispatch is its own business.
                    assert!(written[slot] || !*read || *write, "{} reads slot {slot} before anything wrote it", d.label);
                }
            }
            d.bindings.iter().zip(flags.iter()).filter(|(_, f)| f.1).filter_map(|(b, _)| slots(b)).for_each(|s| written[s] = true);
        }
        assert!(written.iter().all(|&w| w), "some slots are never written");
    }
}

/// Outputs and gradients as bits, after one more run.
fn measure(ctx: &Context, rig: &Rig, graph: &Graph) -> Vec<f32> {
    rig.run(ctx);
    let mut out: Vec<f32> = ctx.read(&rig.store.grads, 0, graph.params.flat_len()).unwrap();
    graph.outputs().iter().for_each(|(name, _)| out.extend(rig.read(ctx, name)));
    out
}

fn rig(ctx: &Context, graph: &Graph, plan: Plan, batch: usize) -> Rig {
    let rig = Rig::planned(ctx, graph, plan);
    let voxels = batch * GRID.iter().product::<usize>();
    rig.feed(ctx, "input", &numbers(1, voxels, 1.0));
    rig.feed(ctx, "target", &numbers(2, voxels, 1.0));
    rig.feed(ctx, "labels", &(0..batch as u32).map(|i| i % 5).collect::<Vec<_>>());
    rig
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_shared_plan_computes_the_bits_of_an_unshared_one_again_and_again() {
    let Some(ctx) = harness::trusted() else { return };
    for graph in graphs() {
        let shared = rig(ctx, &graph, Plan::new(&graph, ctx.caps()).unwrap(), 2);
        let apart = rig(ctx, &graph, Plan::unshared(&graph, ctx.caps()).unwrap(), 2);
        let first = measure(ctx, &shared, &graph);
        assert!(first.iter().all(|v| v.is_finite()) && first.iter().any(|&v| v != 0.0));
        assert!(bits(&first) == bits(&measure(ctx, &apart, &graph)), "sharing memory changes results");
        assert!(bits(&first) == bits(&measure(ctx, &shared, &graph)), "a second run gives other bits");
    }
}

#[test]
fn predicted_bytes_are_those_allocated() {
    if harness::trusted().is_none() {
        return;
    }
    // A device of its own: others allocate on the shared one meanwhile.
    let ctx = Context::new(None).unwrap();
    let graph = &graphs()[0];
    let plan = Plan::new(graph, ctx.caps()).unwrap();
    let close = |predicted: u64, found: u64| predicted.abs_diff(found) as f64 <= 0.01 * found as f64;
    let (slots, store, trained) = (plan.slot_bytes(), plan.store_bytes(0), plan.store_bytes(2));
    let rig = Rig::planned(&ctx, graph, plan);
    let found = ctx.memory().0;
    assert!(close(slots + store, found), "{slots} + {store} bytes predicted, {found} allocated");
    let update = Update::new(&ctx, &rig.store, &together(&rig.store.param_list), Optimiser::Adam, Hyper::default(), 0.0, 1, &[]).unwrap();
    let found = ctx.memory().0;
    assert!(close(slots + trained, found), "{slots} + {trained} bytes predicted, {found} allocated");
    drop((rig, update));
    assert_eq!(ctx.memory().0, 0, "what is dropped is given back");
}

#[test]
fn batches_in_slices_compute_the_same() {
    let Some(ctx) = harness::trusted() else { return };
    let batch = 12;
    let graph = network(Variant::PyTorch, Activation::PRelu).graph(batch, GRID).unwrap();
    let small = Caps { max_binding: 256 << 10, ..ctx.caps().clone() };
    let (whole, sliced) = (Plan::new(&graph, ctx.caps()).unwrap(), Plan::new(&graph, &small).unwrap());
    assert!(sliced.dispatches.len() > whole.dispatches.len() + 30, "{} and {}", sliced.dispatches.len(), whole.dispatches.len());
    let largest = sliced.dispatches.iter().flat_map(|d| d.bindings.iter().map(move |b| (b.len, &d.label))).max().unwrap();
    assert!(largest.0 <= small.max_binding, "{} binds {} bytes", largest.1, largest.0);
    let a = measure(ctx, &rig(ctx, &graph, whole, batch), &graph);
    let b = measure(ctx, &rig(ctx, &graph, sliced, batch), &graph);
    let (a, b) = (wide(&a), wide(&b));
    let difference: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
    assert!(norm(&difference) <= 1e-5 * norm(&a), "{} of {}", norm(&difference), norm(&a));
}

#[test]
fn what_cannot_be_sliced_is_an_error_that_says_what_to_do() {
    let graph = network(Variant::PyTorch, Activation::PRelu).graph(2, GRID).unwrap();
    let error = Plan::new(&graph, &Caps { max_binding: 16 << 10, ..Caps::minimal() }).unwrap_err();
    let text = error.to_string();
    for part in ["one sample of conv3d", "needs", "MiB per binding", "cube.size", "model.base_channels"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert_eq!(error.exit_code(), 2);
}

/// The Y-Net at the published cube.
fn ynet(base: usize, batch: usize) -> Graph {
    let joint = Objective::Joint { classes: 44, restoration: 1.0, classification: 0.01 };
    let spec = Spec { base, depth: 4, variant: Variant::PyTorch, activation: Activation::Relu, norm: Norm::Running, channels: 1 };
    joint.graph(&spec, batch, [64, 64, 32], Mode::Train).unwrap()
}

/// Total of the slots against the most that is in use at once.
#[test]
fn slots_take_little_more_than_what_is_in_use_at_once() {
    let cpu = Caps {
        kind: Kind::Cpu,
        max_binding: u64::MAX,
        max_buffer: u64::MAX,
        subgroup_min: 8,
        subgroup_max: 8,
        int64: true,
        ..Caps::minimal()
    };
    let gpu = Caps { kind: Kind::Discrete, subgroup_min: 32, subgroup_max: 32, ..cpu.clone() };
    for (base, batch) in [(8, 1), (8, 12), (32, 1), (32, 12)] {
        let graph = ynet(base, batch);
        for (caps, name) in [(&cpu, "cpu"), (&gpu, "gpu")] {
            let of = |recompute| {
                let plan = Plan::with(&graph, caps, &Options { recompute, ..Options::default() }).unwrap();
                let (slots, live) = (plan.slot_bytes(), plan.live_bytes());
                println!(
                    "{name}, base {base}, batch {batch}, recompute {recompute}: {} KiB in slots, {} KiB live",
                    slots >> 10,
                    live >> 10
                );
                // With one sample the scratch of the weights' gradients, large where activations are small, weighs on the rest.
                let most = if batch == 1 { 1.4 } else { 1.02 };
                assert!(slots >= live && slots as f64 <= most * live as f64, "{name} base {base} batch {batch}: {slots} bytes for {live}");
                live
            };
            let (kept, again) = (of(false), of(true));
            assert!(again <= kept && (name == "gpu" || again * 10 < kept * 9), "{again} of {kept}");
        }
    }
}

#[test]
fn what_is_computed_twice_has_the_bits_of_what_is_kept() {
    let Some(ctx) = harness::trusted() else { return };
    for graph in graphs() {
        for fusion in [Fusion::NONE, Fusion::on(ctx.caps()), Fusion::ALL] {
            let plan =
                |recompute| Plan::with(&graph, ctx.caps(), &Options { recompute, fusion: Some(fusion), ..Options::default() }).unwrap();
            let (kept, again) = (plan(false), plan(true));
            assert!(again.ops.len() > kept.ops.len() || fusion.load, "{fusion:?}");
            assert!(again.live_bytes() < kept.live_bytes() || fusion.load, "{fusion:?}: {} and {}", again.live_bytes(), kept.live_bytes());
            let a = measure(ctx, &rig(ctx, &graph, kept, 2), &graph);
            let b = measure(ctx, &rig(ctx, &graph, again, 2), &graph);
            assert!(bits(&a) == bits(&b), "recomputing changes results under {fusion:?}");
        }
    }
}
