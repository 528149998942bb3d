//! Whole networks against PyTorch's numbers: outputs, gradients, optimiser steps, names and shapes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;

use semantic_genesis::config::{Activation, Norm, Optimiser, Variant};
use semantic_genesis::doctor::parity::{Network, Source, compare};
use semantic_genesis::doctor::{self, Row};
use semantic_genesis::gpu::Context;
use semantic_genesis::graph::Graph;
use semantic_genesis::interop::tensors::{Data, File, Tensor};
use semantic_genesis::kernels::check;
use semantic_genesis::kernels::optimiser::Hyper;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::nn;
use semantic_genesis::train::checkpoint::{Named, download, load_state_dict};
use semantic_genesis::train::network::features;
use semantic_genesis::train::update::{Update, together};

use crate::harness::{self, Rig, reference, wide};

fn source(name: &str) -> Source {
    Source::read(&reference(name)).unwrap()
}

fn rows(ctx: &Context, network: &Network, weights: &Source, expected: &Source) -> Vec<Row> {
    let mut rows = Vec::new();
    let ignored = compare(ctx, network, weights, expected, &mut |r| rows.push(r)).unwrap();
    assert!(ignored.is_empty(), "not compared: {ignored:?}");
    rows
}

/// Everything in E is compared and holds within the plain limits; the small pairs are free of kinks.
fn holds(network: &Network, weights: &Source, expected: &str) {
    let Some(ctx) = harness::trusted() else { return };
    let e = source(&format!("{expected}/E.safetensors"));
    let rows = rows(ctx, network, weights, &e);
    let given = ["input", "target", "labels"];
    assert_eq!(rows.len(), e.tensors.keys().filter(|k| !given.contains(&k.as_str())).count(), "{expected}: some tensors are not compared");
    let bad: Vec<String> = rows.iter().filter(|r| !r.passed() || r.note.is_some()).map(doctor::table::line).collect();
    assert!(bad.is_empty(), "{expected}:\n{}", bad.join("\n"));
    // Far inside the limits: what arithmetic in f32 attains.
    for r in rows.iter().filter(|r| r.name.starts_with("grad.") || !r.name.contains('.')) {
        assert!(r.error <= 3e-4, "{expected}: {}", doctor::table::line(r));
    }
}

fn unet(activation: Activation, weights: &Source) -> Network {
    let whole = Network::of(weights).unwrap();
    Network { spec: Spec { activation, ..whole.spec }, classes: None, ..whole }
}

#[test]
fn y_net_with_every_gradient_and_five_steps_of_adam() {
    let w = source("ynet_base2/W.safetensors");
    holds(&Network::of(&w).unwrap(), &w, "ynet_base2");
}

#[test]
fn u_nets_with_relu_elu_and_prelu() {
    let mut w = source("ynet_base2/W.safetensors");
    holds(&unet(Activation::Relu, &w), &w, "unet_base2");
    holds(&unet(Activation::Elu, &w), &w, "unet_elu_base2");
    w.tensors.extend(source("unet_prelu_base2/W.safetensors").tensors);
    let n = unet(Activation::PRelu, &w);
    assert_eq!(n.spec.activation, Network::of(&w).unwrap().spec.activation, "PReLU is found in the names");
    holds(&n, &w, "unet_prelu_base2");
}

#[test]
fn classifier() {
    let w = source("ynet_base2/W.safetensors");
    let whole = Network::of(&w).unwrap();
    holds(&Network { restores: false, ..whole }, &w, "classifier_base2");
}

#[test]
fn keras_y_net_and_autoencoder() {
    for (name, classes, skips) in [("keras_base2", Some(5), true), ("autoencoder_base2", None, false)] {
        let w = source(&format!("{name}/W.safetensors"));
        let n = Network::of(&w).unwrap();
        assert_eq!((n.spec.variant, n.classes, n.skips, n.spec.base), (Variant::Keras, classes, skips, 2));
        holds(&n, &w, name);
    }
}

/// A graph on the device with a state dict loaded.
fn loaded(ctx: &Context, graph: &Graph, weights: &Source) -> Rig {
    let rig = Rig::new(ctx, graph);
    load_state_dict(ctx, &rig.store, &weights.tensors, true).unwrap();
    rig
}

fn close(what: &str, got: &[f32], want: &Tensor, tolerance: f64) {
    let outcome = check::compare(got, &wide(want.floats().unwrap()), tolerance).unwrap();
    assert!(outcome.passed(), "{what}: {outcome:?}");
}

#[test]
fn evaluation_with_running_statistics_and_features() {
    let Some(ctx) = harness::trusted() else { return };
    let extra = source("extra.safetensors");
    for (name, folder) in [("ynet", "ynet_base2"), ("keras", "keras_base2"), ("autoencoder", "autoencoder_base2")] {
        let (w, e) = (source(&format!("{folder}/W.safetensors")), source(&format!("{folder}/E.safetensors")));
        let n = Network::of(&w).unwrap();
        assert_eq!(n.spec.norm, Norm::Running);
        let input = &e.tensors["input"];
        let (batch, grid) = (input.shape[0], [input.shape[2], input.shape[3], input.shape[4]]);
        let mut g = Graph::new();
        let x = nn::image(&mut g, "input", batch, grid);
        let encoded = n.spec.encoder(&mut g, x, Mode::Evaluate).unwrap();
        let restored = n.spec.restoration(&mut g, &encoded, n.skips, Mode::Evaluate).unwrap();
        g.output("restored", restored);
        if let Some(classes) = n.classes {
            let logits = n.spec.class_head(&mut g, &encoded, classes, Mode::Evaluate).unwrap();
            g.output("logits", logits);
        }
        let rig = loaded(ctx, &g, &w);
        rig.feed(ctx, "input", input.floats().unwrap());
        rig.run(ctx);
        for (output, _) in g.outputs() {
            let name = format!("{name}.{output}");
            close(&name, &rig.read(ctx, output), &extra.tensors[&name], 2e-5);
        }
        if name == "autoencoder" {
            let rig = loaded(ctx, &features(&n.spec, batch, grid).unwrap(), &w);
            rig.feed(ctx, "input", input.floats().unwrap());
            rig.run(ctx);
            close("features", &rig.read(ctx, "features"), &extra.tensors["autoencoder.features"], 2e-5);
        }
    }
}

#[test]
fn five_steps_of_sgd() {
    let Some(ctx) = harness::trusted() else { return };
    let (extra, e, w) = (source("extra.safetensors"), source("ynet_base2/E.safetensors"), source("ynet_base2/W.safetensors"));
    let g = Network::of(&w).unwrap().graph(2, [16, 16, 8]).unwrap();
    let rig = loaded(ctx, &g, &w);
    for name in ["input", "target"] {
        rig.feed(ctx, name, e.tensors[name].floats().unwrap());
    }
    let Data::I64(labels) = &e.tensors["labels"].data else { panic!("labels are integers") };
    rig.feed(ctx, "labels", &labels.iter().map(|&l| u32::try_from(l).unwrap()).collect::<Vec<_>>());
    let hyper = Hyper { momentum: 0.9, weight_decay: 1e-4, ..Hyper::default() };
    let mut update = Update::new(ctx, &rig.store, &together(&rig.store.param_list), Optimiser::Sgd, hyper, 0.0, 1, &[]).unwrap();
    let mut losses = Vec::new();
    for _ in 0..5 {
        rig.run(ctx);
        losses.extend(rig.read(ctx, "loss"));
        update.apply(ctx, 0.1).unwrap();
    }
    close("losses", &losses, &extra.tensors["ynet.sgd_losses"], 1e-5);
    let mut after = Named::new();
    download(ctx, &rig.store.params, &rig.store.param_list, "ynet.sgd_after5.", &mut after).unwrap();
    let traced: Vec<&String> = extra.tensors.keys().filter(|k| k.starts_with("ynet.sgd_after5.")).collect();
    assert_eq!(traced.len(), 4);
    for name in traced {
        close(name, after[name].floats().unwrap(), &extra.tensors[name], 1e-4);
    }
}

#[test]
fn names_types_and_shapes_are_those_of_the_published_network() {
    let want: BTreeMap<String, String> = std::fs::read_to_string(reference("ynet_keys.txt"))
        .unwrap()
        .lines()
        .map(|l| l.split_once(' ').map(|(k, s)| (k.to_owned(), s.to_owned())).unwrap())
        .collect();
    let spec = Spec { base: 32, depth: 4, variant: Variant::PyTorch, activation: Activation::Relu, norm: Norm::Running, channels: 1 };
    let g = Network { spec, restores: true, skips: true, classes: Some(44) }.graph(1, [16, 16, 8]).unwrap();
    let mut got = BTreeMap::new();
    for p in g.params.list().iter().chain(g.state.list()) {
        let shape: Vec<String> = p.file_shape().iter().map(ToString::to_string).collect();
        got.insert(p.name.clone(), format!("F32 [{}]", shape.join(",")));
        if let Some(norm) = p.name.strip_suffix(".running_mean") {
            got.insert(format!("{norm}.num_batches_tracked"), "I64 []".to_owned());
        }
    }
    assert_eq!(got.len(), 115);
    assert_eq!(got, want);
}

#[test]
fn a_perturbed_number_fails() {
    let Some(ctx) = harness::trusted() else { return };
    let (w, e) = (source("ynet_base2/W.safetensors"), source("ynet_base2/E.safetensors"));
    let n = Network::of(&w).unwrap();
    // Only what is perturbed, and the gradients that tell sizes, to be quick.
    let gradient = "grad.down_tr64.ops.0.conv1.weight";
    let names = ["restored", "logits", "loss", "loss_rec", "loss_cls", gradient, "grad.clc_out.conv1.bias", "grad.out_tr.final_conv.bias"];
    let kept = |k: &str| ["input", "target", "labels"].contains(&k) || names.contains(&k);
    let mut small = e.clone();
    small.tensors.retain(|k, _| kept(k));
    assert!(rows(ctx, &n, &w, &small).iter().all(Row::passed));
    let largest = e
        .tensors
        .iter()
        .filter(|(k, _)| k.starts_with("grad."))
        .map(|(_, t)| t.floats().unwrap().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt())
        .fold(0.0, f64::max);
    for name in names {
        for value in ["limit", "NaN"] {
            let mut bad = small.clone();
            let Data::F32(v) = &mut bad.tensors.get_mut(name).unwrap().data else { panic!("{name} holds floats") };
            let norm = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            // Twice what is allowed, in one element.
            let step = match name {
                "grad.clc_out.conv1.bias" => 2e-3 * largest,
                n if n.starts_with("grad.") => 2e-3 * norm,
                _ => 2e-4 * norm,
            };
            v[0] = if value == "NaN" { f32::NAN } else { (f64::from(v[0]) + step) as f32 };
            let failed: Vec<String> = rows(ctx, &n, &w, &bad).into_iter().filter(|r| !r.passed()).map(|r| r.name).collect();
            assert_eq!(failed, [name], "{value}");
        }
    }
    // Weights that are not those of the numbers.
    let mut other = w.clone();
    let Data::F32(v) = &mut other.tensors.get_mut("down_tr128.ops.0.conv1.weight").unwrap().data else { panic!("weights are floats") };
    v.iter_mut().for_each(|x| *x *= 1.05);
    v[0] += 0.05;
    let failed = rows(ctx, &n, &other, &small).iter().filter(|r| !r.passed()).count();
    assert!(failed >= 3, "{failed} comparisons fail with other weights");
}

#[test]
fn a_perturbed_trace_of_adam_fails() {
    let Some(ctx) = harness::trusted() else { return };
    let (w, mut e) = (source("ynet_base2/W.safetensors"), source("ynet_base2/E.safetensors"));
    let traced = ["after5.out_tr.final_conv.weight", "after5.down_tr64.ops.0.conv1.bias", "after5.down_tr64.ops.1.bn1.running_var"];
    e.tensors.retain(|k, _| ["input", "target", "labels", "adam_losses"].contains(&k.as_str()) || traced.contains(&k.as_str()));
    let mut spoil = |name: &str, change: &dyn Fn(f32) -> f32| {
        let Data::F32(v) = &mut e.tensors.get_mut(name).unwrap().data else { panic!("{name} holds floats") };
        let last = v.len() - 1;
        v[last] = change(v[last]);
    };
    spoil("adam_losses", &|v| v * 1.003);
    spoil(traced[0], &|v| v + 0.05);
    spoil(traced[1], &|v| v + 0.02);
    spoil(traced[2], &|v| v * 1.5);
    let rows = rows(ctx, &Network::of(&w).unwrap(), &w, &e);
    assert_eq!(rows.len(), 4);
    let passed: Vec<&Row> = rows.iter().filter(|r| r.passed()).collect();
    assert!(passed.is_empty(), "{passed:?}");
}

#[test]
fn files_that_do_not_fit_are_one_sentence_that_names_file_and_tensor() {
    let Some(ctx) = harness::trusted() else { return };
    let (w, e) = (source("ynet_base2/W.safetensors"), source("ynet_base2/E.safetensors"));
    let dir = tempfile::tempdir().unwrap();
    let floats = |shape: &[usize]| Tensor::f32(shape.to_vec(), vec![0.5; shape.iter().product()]);
    let integers = |v: &[i64]| Tensor { shape: vec![v.len()], data: Data::I64(v.to_vec()) };
    // (whether the weights are changed, the tensor, its replacement, what the message must say)
    let changes: Vec<(bool, &str, Option<Tensor>, &str)> = vec![
        (false, "input", None, "`input` is missing"),
        (false, "target", None, "`target` is missing"),
        (false, "labels", None, "`labels` is missing"),
        (false, "input", Some(floats(&[2, 1, 16, 20, 8])), "multiples of 8"),
        (false, "input", Some(floats(&[0, 1, 16, 16, 8])), "multiples of 8"),
        (false, "input", Some(floats(&[2, 3, 16, 16, 8])), "[N, 1, A, B, C]"),
        (false, "input", Some(floats(&[16])), "[N, 1, A, B, C]"),
        (false, "target", Some(floats(&[2, 1, 16, 16, 16])), "`target` has shape"),
        (false, "labels", Some(integers(&[1, 5])), "label 5 is not in 0..5"),
        (false, "labels", Some(integers(&[-1, 0])), "label -1"),
        (false, "labels", Some(integers(&[1])), "`labels` has shape"),
        (false, "labels", Some(floats(&[2])), "integers"),
        (false, "restored", Some(floats(&[2, 1, 16, 16])), "`restored` has shape"),
        (false, "loss", Some(floats(&[2])), "`loss` has shape"),
        (false, "loss", Some(integers(&[1])), "`loss` holds integers"),
        (false, "grad.nonsense.weight", Some(floats(&[2])), "grad.nonsense.weight"),
        (false, "after5.nonsense", Some(floats(&[2])), "after5.nonsense"),
        (false, "after0.clc_out.fc1.bias", Some(floats(&[5])), "before any step"),
        (false, "after99999999.clc_out.fc1.bias", Some(floats(&[5])), "99999999 steps"),
        (false, "adam_losses", Some(floats(&[])), "`adam_losses` has shape"),
        (true, "down_tr64.ops.0.conv1.weight", None, "down_tr64.ops.0.conv1.weight"),
        (true, "down_tr64.ops.0.conv1.weight", Some(floats(&[1_000_000, 0, 3, 3, 3])), "1..="),
        (true, "down_tr64.ops.0.conv1.weight", Some(floats(&[3, 1, 3, 3, 3])), "expected [3]"),
        (true, "up_tr256.up_conv.bias", None, "`up_tr256.up_conv.bias` is missing"),
        (true, "up_tr256.up_conv.bias", Some(integers(&[0; 32])), "integers"),
        (true, "clc_out.fc1.weight", Some(floats(&[5])), "`clc_out.fc1.weight` has shape"),
        (true, "down_tr64.ops.0.bn1.running_var", None, "running_var"),
    ];
    for (i, (weights, name, tensor, says)) in changes.into_iter().enumerate() {
        let paths = ["W", "E"].map(|n| dir.path().join(format!("{n}{i}.safetensors")));
        for (path, from, changed) in [(&paths[0], &w, weights), (&paths[1], &e, !weights)] {
            let mut file = File { tensors: from.tensors.clone(), metadata: None };
            match (&tensor, changed) {
                (Some(t), true) => drop(file.tensors.insert(name.to_owned(), t.clone())),
                (None, true) => drop(file.tensors.remove(name)),
                (_, false) => {}
            }
            file.write(path).unwrap();
        }
        let error = doctor::run(ctx, Some((&paths[0], &paths[1])), &mut |_| {}).expect_err(says);
        let text = error.to_string();
        let file = paths[usize::from(!weights)].display().to_string();
        assert!(text.contains(says) && text.starts_with(&file) && !text.contains('\n'), "{name}: {text}");
        assert_eq!(error.exit_code(), 2, "{text}");
    }
    let mut nothing = e.clone();
    nothing.tensors.retain(|k, _| ["input", "target", "labels"].contains(&k.as_str()));
    let error = compare(ctx, &Network::of(&w).unwrap(), &w, &nothing, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("nothing to compare"), "{error}");
    let mut more = e.clone();
    more.tensors.retain(|k, _| ["input", "target", "labels", "loss"].contains(&k.as_str()));
    more.tensors.insert("notes".into(), floats(&[1]));
    let ignored = compare(ctx, &Network::of(&w).unwrap(), &w, &more, &mut |r| assert!(r.passed())).unwrap();
    assert_eq!(ignored, ["notes"]);
}
