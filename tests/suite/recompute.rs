//! What recomputation gives up and computes again, on graphs alone.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashSet;

use semantic_genesis::config::{Activation, Variant};
use semantic_genesis::gpu::Caps;
use semantic_genesis::graph::Shape;
use semantic_genesis::graph::{Graph, Home, ValueId};
use semantic_genesis::kernels::activation::Function;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::nn::{self, Start, Statistics};
use semantic_genesis::plan::recompute::{peak, recompute};
use semantic_genesis::plan::{Fusion, fuse};

fn conv(g: &mut Graph, name: &str, x: ValueId) -> ValueId {
    nn::conv3d(g, name, Start::FanIn, &[x], 4, 3).unwrap()
}

/// Convolutions with batch norm and ReLU between, and the gradient of the mean of what comes out.
fn chain(length: usize) -> Graph {
    let mut g = Graph::new();
    let mut x = g.input("input", Shape::new(2, [4; 3], 4));
    for i in 0..length {
        let c = conv(&mut g, &format!("c{i}"), x);
        let n = nn::batch_norm(&mut g, &format!("n{i}"), c, 1e-5, Statistics::Batch(0.1)).unwrap();
        x = g.activation(&format!("a{i}"), Function::Relu, n);
    }
    let loss = g.mean("loss", x);
    g.output("loss", loss);
    g.backward(loss, &[]).unwrap();
    g
}

fn names(g: &Graph) -> Vec<&str> {
    g.nodes().iter().filter(|n| n.label.ends_with(".again")).map(|n| n.op.name()).collect()
}

/// Everything is computed before it is used, once.
fn check(g: &Graph) {
    let mut there: HashSet<ValueId> =
        (0..g.values().len()).map(ValueId).filter(|v| !matches!(g.values()[v.0].home, Home::Computed | Home::Grad(_))).collect();
    for node in g.nodes() {
        for i in &node.inputs {
            assert!(there.contains(i), "{} ({}) uses value {} too early", node.label, node.op.name(), i.0);
        }
        for o in &node.outputs {
            assert!(there.insert(*o), "{} is computed twice", o.0);
        }
    }
    assert!(g.outputs().iter().all(|(_, o)| there.contains(o)));
}

#[test]
fn activations_between_convolutions_are_given_up() {
    let g = chain(6);
    let r = recompute(&g);
    check(&r);
    let (before, after) = (peak(&g).1, peak(&r).1);
    assert!(after * 10 <= before * 7, "{after} of {before} bytes");
    let again = names(&r);
    assert!(again.contains(&"batch_norm.apply") && again.contains(&"activation"), "{again:?}");
    assert!(!again.iter().any(|n| n.contains("conv3d")) && r.nodes().iter().filter(|n| n.op.name() == "batch_norm").count() == 6);
    // Fused, the same happens by one operation each.
    let f = fuse(&g, &Fusion { load: false, ..Fusion::ALL }, &Caps::minimal());
    let r = recompute(&f);
    check(&r);
    assert!(names(&r).iter().all(|n| *n == "batch_norm.apply+relu") && !names(&r).is_empty(), "{:?}", names(&r));
    assert!(peak(&r).1 * 10 <= peak(&f).1 * 8, "{} of {} bytes", peak(&r).1, peak(&f).1);
}

#[test]
fn where_nothing_can_be_gained_nothing_is_changed() {
    let mut g = Graph::new();
    let x = g.input("input", Shape::new(2, [4; 3], 4));
    let y = conv(&mut g, "one", x);
    let y = conv(&mut g, "two", y);
    let loss = g.mean("loss", y);
    g.output("loss", loss);
    g.backward(loss, &[]).unwrap();
    let r = recompute(&g);
    assert_eq!(format!("{:?}", r.nodes()), format!("{:?}", g.nodes()));
    // An output is kept in any case.
    let mut g = chain(1);
    let a = g.nodes().iter().find(|n| n.label == "a0").unwrap().outputs[0];
    g.output("a", a);
    assert!(recompute(&g).nodes().iter().all(|n| n.label != "a0.again"));
}

#[test]
fn networks_need_less_in_every_variant() {
    for (variant, activation) in
        [(Variant::PyTorch, Activation::Relu), (Variant::PyTorch, Activation::PRelu), (Variant::Keras, Activation::Elu)]
    {
        let spec = Spec { variant, activation, ..Spec::autoencoder(4, 4) };
        let mut g = Graph::new();
        let x = nn::image(&mut g, "input", 1, [16, 16, 8]);
        let e = spec.encoder(&mut g, x, Mode::Train).unwrap();
        let y = spec.decoder(&mut g, &e, true, Mode::Train).unwrap();
        let loss = g.mean("loss", y);
        g.output("loss", loss);
        g.backward(loss, &[]).unwrap();
        let r = recompute(&g);
        check(&r);
        assert!(peak(&r).1 * 100 <= peak(&g).1 * 85, "{variant:?} {activation:?}: {} of {} bytes", peak(&r).1, peak(&g).1);
    }
}
