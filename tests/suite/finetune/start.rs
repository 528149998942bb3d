//! Weights to start from: what is taken over, repeated over channels, left out, kept as it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use semantic_genesis::data::nifti;
use semantic_genesis::doctor::parity::{Network, Source};
use semantic_genesis::graph::{Graph, Init};
use semantic_genesis::interop::tensors::{Data, File, Tensor};
use semantic_genesis::model::Mode;
use semantic_genesis::task::start::rescale;
use semantic_genesis::train::checkpoint::{Named, load_state_dict};
use serde_json::Value;

use super::{balls, best, finetune_with, folder, labelled, program, refused, set, text, whole};
use crate::harness::{self, norm, wide};

/// A pretraining run of the network that the tests fine-tune.
fn pretrained() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finetune-pretrained");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir_all(&out).unwrap();
        let config = out.join("config.toml.in");
        let width = crate::cli::TINY.replacen("base_channels = 2\nclasses", "base_channels = 4\nclasses", 1);
        std::fs::write(&config, width.replace("max_steps = 14", "max_steps = 4")).unwrap();
        let run = out.join("run");
        program().json(&["pretrain", text(crate::cli::scans()), "--config", text(&config), "--out", text(&run)]);
        run
    })
}

/// What `weights.json` of a run says about tensors.
struct Said(Value);

impl Said {
    fn of(run: &Path) -> Self {
        Self(serde_json::from_slice(&std::fs::read(run.join("weights.json")).unwrap()).unwrap())
    }

    fn names(&self, key: &str) -> BTreeSet<String> {
        let name = |v: &Value| v.as_str().or_else(|| v[0].as_str()).unwrap().to_owned();
        self.0[key].as_array().unwrap().iter().map(name).collect()
    }
}

/// Whether tensors belong to the encoder by PyTorch's names.
fn of_encoder(tensors: &Named) -> Named {
    tensors.iter().filter(|(n, _)| n.starts_with("down_tr")).map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// A column of tensors' names without the counters that PyTorch keeps.
fn without_counters(tensors: &Named) -> Named {
    tensors.iter().filter(|(n, _)| !n.ends_with("num_batches_tracked")).map(|(n, t)| (n.clone(), t.clone())).collect()
}

#[test]
fn weights_of_a_pretraining_run_are_taken_over_and_a_frozen_encoder_keeps_them() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = set(dir.path(), 6, &[50.0]);
    let source = pretrained();
    let given = best(source).tensors;
    // The run, or a file of it, named; the width comes with the file.
    let file = source.join("checkpoints/best.safetensors");
    for (name, weights) in [("of-run", source), ("of-file", file.as_path())] {
        let out = dir.path().join(name);
        let sets = ["finetune.encoder_rate=0", "train.max_steps=3", "model.base_channels=7"];
        let summary = finetune_with("segment", &data, &out, &sets, &["--weights", text(weights)]);
        assert!(summary["init"].as_str().unwrap().contains("finetune-pretrained"), "{summary}");
        let said = Said::of(&out);
        let (loaded, dropped, random) = (said.names("loaded"), said.names("dropped"), said.names("random"));
        // Decoder and encoder come from the file, the output layer does not fit or is not the same question.
        assert!(loaded.contains("down_tr64.ops.0.conv1.weight") && loaded.contains("down_tr64.ops.0.bn1.running_var"));
        assert!(loaded.iter().any(|n| n.starts_with("up_tr64")));
        assert!(dropped.iter().any(|n| n.starts_with("clc_out")), "{dropped:?}");
        assert!(random.iter().all(|n| n.starts_with("out_tr")) && loaded.is_disjoint(&random), "{random:?}");
        assert!(said.names("adapted").is_empty());
        // The encoder is frozen.
        assert!(said.names("rescaled").iter().all(|n| n.starts_with("up_tr")) && said.names("rescaled").len() > 3);
        let page = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert!(page.contains(">What was loaded</h2>"));

        let found = best(&out).tensors;
        let (before, after) = (without_counters(&of_encoder(&given)), without_counters(&of_encoder(&found)));
        assert!(before.len() > 20 && before.keys().eq(after.keys()));
        for (name, tensor) in &before {
            assert!(tensor == &after[name], "{name} of a frozen encoder has changed");
        }
        let decoder = "up_tr64.ops.0.conv1.weight";
        assert!(given[decoder] != found[decoder], "the decoder has not learnt");
    }
    // Slowed, it learns, but less; and so it does at full rate. Kernels are scaled at the start, so that their directions are compared.
    let distance = |rate: &str| {
        let out = dir.path().join(format!("rate{rate}"));
        let set = format!("finetune.encoder_rate={rate}");
        finetune_with("segment", &data, &out, &["train.max_steps=3", &set], &["--weights", text(source)]);
        let [a, b] = [&given, &best(&out).tensors].map(|t| {
            let kernel = wide(t["down_tr128.ops.0.conv1.weight"].floats().unwrap());
            let length = norm(&kernel);
            kernel.into_iter().map(|v| v / length).collect::<Vec<f64>>()
        });
        norm(&a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<f64>>())
    };
    let (slow, full) = (distance("0.1"), distance("1"));
    // Adam's steps are in proportion to the rate; the gradients differ a little after the first.
    assert!(slow > 0.0 && (5.0..20.0).contains(&(full / slow)), "{slow} and {full}");
}

#[test]
fn kernels_before_batch_norms_are_as_long_as_new_ones_and_the_outputs_stay() {
    let Some(ctx) = harness::trusted() else { return };
    for name in ["ynet_base2", "keras_base2"] {
        let mut weights = Source::read(&harness::reference(&format!("{name}/W.safetensors"))).unwrap();
        let spec = Network::of(&weights).unwrap().spec;
        let mut g = Graph::new();
        let x = spec.input(&mut g, "input", 1, [16, 16, 16]);
        let e = spec.encoder(&mut g, x, Mode::Evaluate).unwrap();
        let y = spec.segmentation(&mut g, &e, 1, Mode::Evaluate).unwrap();
        g.output("logits", y);
        // As after a long training; the numbers that a batch norm divides by are then small beside ε, and one channel is dead.
        for (n, t) in &mut weights.tensors {
            let Data::F32(values) = &mut t.data else { continue };
            if n.ends_with("conv1.weight") || n.ends_with(".conv.weight") {
                values.iter_mut().for_each(|v| *v *= 4.0);
            } else if n.ends_with("running_var") {
                values.iter_mut().for_each(|v| *v *= 0.01);
                values[0] = 0.0;
            }
        }
        let longer = weights.tensors;
        let mut scaled = longer.clone();
        let names = rescale(&mut scaled, &g);
        let [before, after] = [&longer, &scaled].map(|tensors| {
            let rig = harness::Rig::new(ctx, &g);
            load_state_dict(ctx, &rig.store, tensors, true).unwrap();
            rig.feed(ctx, "input", &(0..16 * 16 * 16).map(|i| ((i * 37) % 101) as f32 / 100.0).collect::<Vec<f32>>());
            rig.run(ctx);
            wide(&rig.read(ctx, "logits"))
        });
        let apart = norm(&before.iter().zip(&after).map(|(a, b)| a - b).collect::<Vec<f64>>()) / norm(&before);
        assert!(before.iter().any(|v| *v != before[0]) && apart < 1e-4, "{name}: {apart}");
        for p in g.params.list().iter().filter(|p| p.name.ends_with("conv1.weight") || p.name.ends_with(".conv.weight")) {
            let Init::Uniform(bound) = p.init else { panic!("{}: {:?}", p.name, p.init) };
            let [was, is] = [&longer, &scaled].map(|t| norm(&wide(t[&p.name].floats().unwrap())));
            let new = f64::from(bound) * (p.len() as f64 / 3.0).sqrt();
            assert!((is / new - 1.0).abs() < 1e-5 && (3.0..5.0).contains(&(was / is)), "{name}: {} {was} {is} {new}", p.name);
            assert!(names.contains(&p.name));
        }
        assert_eq!(names.len(), 4 * spec.depth - 2, "{name}");
        // What has no batch norm behind it, what is frozen, and what a file lacks in part, stays.
        assert!(scaled.iter().filter(|(n, _)| n.contains("up_conv") || n.contains("final")).all(|(n, t)| *t == longer[n]));
        let mut part = longer.clone();
        part.retain(|n, _| !n.ends_with("running_mean"));
        let whole = part.clone();
        assert!(rescale(&mut part, &g).is_empty() && part == whole);
        g.freeze(|_| true);
        let mut frozen = longer.clone();
        assert!(rescale(&mut frozen, &g).is_empty() && frozen == longer);
    }
}

#[test]
fn a_classifier_takes_the_encoder_alone() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = labelled(dir.path(), 8, "label", |_| vec![0.0], |n| (n % 2).to_string());
    let out = dir.path().join("run");
    finetune_with("classify", &data, &out, &["finetune.encoder_rate=0"], &["--weights", text(pretrained())]);
    let said = Said::of(&out);
    assert!(said.names("loaded").iter().all(|n| n.starts_with("down_tr")));
    assert_eq!(said.names("random"), BTreeSet::from(["classifier.bias".to_owned(), "classifier.weight".to_owned()]));
    let dropped = said.names("dropped");
    assert!(dropped.iter().any(|n| n.starts_with("up_tr")) && dropped.iter().any(|n| n.starts_with("clc_out")));
    let (given, found) = (best(pretrained()).tensors, best(&out).tensors);
    assert!(without_counters(&of_encoder(&given)) == without_counters(&of_encoder(&found)));
    // From what was fine-tuned, another task can start.
    let next = dir.path().join("next");
    finetune_with("classify", &data, &next, &["finetune.encoder_rate=0"], &["--weights", text(&out)]);
    assert!(Said::of(&next).names("loaded").contains("classifier.weight"));
}

#[test]
fn the_first_kernel_is_repeated_over_channels_and_rescaled() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let mut table = "image_ct,image_pet,image_mr,mask\n".to_owned();
    for n in 0..4u64 {
        let (scan, map) = balls(n, [20, 18, 12], &[50.0]);
        for (c, name) in ["ct", "pet", "mr"].into_iter().enumerate() {
            let mut other = whole(scan.clone());
            other.data.iter_mut().for_each(|v| *v += 20.0 * c as f32);
            nifti::write_i16(&dir.path().join(format!("{name}{n}.nii.gz")), &other).unwrap();
        }
        nifti::write_u8(&dir.path().join(format!("map{n}.nii.gz")), &map).unwrap();
        table += &format!("ct{n}.nii.gz,pet{n}.nii.gz,mr{n}.nii.gz,map{n}.nii.gz\n");
    }
    let data = dir.path().join("data.csv");
    std::fs::write(&data, table).unwrap();
    let out = dir.path().join("run");
    finetune_with("segment", &data, &out, &["finetune.encoder_rate=0"], &["--weights", text(pretrained())]);
    let name = "down_tr64.ops.0.conv1.weight";
    assert_eq!(Said::of(&out).names("adapted"), BTreeSet::from([name.to_owned()]));
    let (given, found) = (best(pretrained()).tensors, best(&out).tensors);
    let (one, three) = (&given[name], &found[name]);
    assert_eq!((one.shape[1], three.shape[1]), (1, 3));
    let scale = 1.0 / 3.0f32;
    for (o, taps) in one.floats().unwrap().chunks(27).enumerate() {
        for c in 0..3 {
            let expected: Vec<f32> = taps.iter().map(|t| t * scale).collect();
            assert_eq!(three.floats().unwrap()[(o * 3 + c) * 27..][..27], expected, "output {o}, channel {c}");
        }
    }
    let about: Value = serde_json::from_str(best(&out).metadata.as_deref().unwrap()).unwrap();
    assert_eq!(about["task"]["channels"], serde_json::json!(["ct", "pet", "mr"]));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = set(dir.path(), 4, &[50.0]);
    let out = dir.path().join("run");
    let ask = |weights: &Path| refused("segment", &data, &out, &[], &["--weights", text(weights)]);
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    // Tensors of something else.
    let foreign = dir.path().join("resnet.safetensors");
    let tensors = Named::from([("layer1.0.conv1.weight".to_owned(), Tensor::f32(vec![2, 2], vec![0.0; 4]))]);
    File { tensors, metadata: None }.write(&foreign).unwrap();
    // A network of this family without what an encoder has.
    let head = dir.path().join("head.safetensors");
    let tensors = best(pretrained()).tensors.into_iter().filter(|(n, _)| n.starts_with("clc_out")).collect();
    File { tensors, metadata: None }.write(&head).unwrap();
    let whole = std::fs::read(pretrained().join("checkpoints/best.safetensors")).unwrap();
    for weights in
        [foreign, head, file("cut.safetensors", &whole[..whole.len() / 2]), file("text.pt", b"no weights"), dir.path().join("none.pt")]
    {
        let e = ask(&weights);
        assert!(e.contains(weights.file_name().unwrap().to_str().unwrap()), "{e}");
    }
}
