//! Target tasks that start from PyTorch's files, and what is told about their models.

use std::path::{Path, PathBuf};

use semantic_genesis::config::Config;
use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::Volume;
use semantic_genesis::interop::tensors::{File, Tensor};
use semantic_genesis::interop::weights;
use semantic_genesis::model::Mode;
use semantic_genesis::task::finetune::objective;
use semantic_genesis::task::{Description, start};
use semantic_genesis::train::checkpoint::load_state_dict;
use serde_json::{Value, json};

use super::{Folder, fine_tuned};
use crate::harness::{Rig, checked, reference};

fn description(kind: &str, classes: &[&str], values: &[u32]) -> Value {
    json!({
        "kind": kind, "output": "multiclass", "view": "windows", "classes": classes, "values": values, "channels": ["a", "b"],
        "model": { "base_channels": 2, "classes": 44, "depth": 4, "variant": "pytorch", "activation": "relu", "norm": "running" },
        "window": [8, 8, 8],
        "recipe": { "modality": "ct", "mri": "percentile", "window": [0.0, 1.0], "align": "grid", "spacing": [1.0, 1.0, 1.0], "grid": null },
    })
}

/// The numbers 0, 1, 2 … in 64ths, from -0.25 on.
fn counted(shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product::<usize>()).map(|i| i as f32 / 64.0 - 0.25).collect();
    Tensor::f32(shape.to_vec(), values)
}

/// The whole way: a checkpoint of PyTorch, its first kernel for two channels, a new output layer, the engine; against PyTorch (`tasks()`
/// of exchange.py).
#[test]
fn fine_tuned_networks_from_a_pytorch_checkpoint_answer_as_in_pytorch() {
    let Some(ctx) = checked() else { return };
    let expected = File::read(&reference("exchange/tasks.safetensors")).unwrap().tensors;
    for file in ["official.pt", "official_legacy.pt"] {
        let read = weights::read(&reference(&format!("exchange/{file}"))).unwrap();
        for (kind, values, layer, shape) in
            [("segment", &[0, 1, 2][..], "out_tr.final_conv", &[3, 4, 1, 1, 1][..]), ("classify", &[], "classifier", &[3, 32])]
        {
            let task = Description::parse(description(kind, &["background", "one", "two"], values)).unwrap();
            let graph = objective(&Config::default(), &task).graph(&task.spec(), 1, task.window, Mode::Evaluate).unwrap();
            let (mut tensors, report) = start::fit(&read.tensors, &graph, &task.spec(), true).unwrap();
            assert_eq!(report.adapted, ["down_tr64.ops.0.conv1.weight"]);
            assert_eq!(report.random, [format!("{layer}.bias"), format!("{layer}.weight")]);
            tensors.insert(format!("{layer}.weight"), counted(shape));
            tensors.insert(format!("{layer}.bias"), counted(&[3]));
            let rig = Rig::new(ctx, &graph);
            load_state_dict(ctx, &rig.store, &tensors, true).unwrap();
            let of = |name: &str| expected[&format!("{kind}.{name}")].floats().unwrap();
            rig.feed(ctx, "input", of("input"));
            rig.feed(ctx, "labels", &vec![0u32; if kind == "segment" { 512 } else { 1 }]);
            rig.run(ctx);
            let (got, want) = (rig.read(ctx, "logits"), of("logits"));
            assert_eq!(got.len(), want.len());
            let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= 1e-5 * largest, "{file}, {kind}: {worst:e} of {largest}");
        }
    }
}

/// Four scans of 16 × 16 × 8 with a bright block, their masks, and a table of both kinds of truth.
fn scans(f: &Folder) -> [PathBuf; 2] {
    let (mut masks, mut labels) = ("image,mask,split\n".to_owned(), "image,label,split\n".to_owned());
    for i in 0..4usize {
        let inside = |v: usize| i % 2 == 1 && (v % 16 > 4 + i) && (v / 16 % 16 > 6);
        let affine = semantic_genesis::data::volume::translation([i as f64, 0.0, 0.0]);
        let volume = |data: Vec<f32>| Volume::new(data, [16, 16, 8], affine).unwrap();
        let scan = (0..2048).map(|v| if inside(v) { 0.9 } else { (v * 7 % 10) as f32 / 20.0 }).collect();
        nifti::write_f32(&f.path(&format!("s{i}.nii")), &volume(scan)).unwrap();
        nifti::write_u8(&f.path(&format!("m{i}.nii")), &volume((0..2048).map(|v| f32::from(u8::from(inside(v) || v == 0))).collect()))
            .unwrap();
        let split = if i < 2 { "train" } else { "validation" };
        masks += &format!("s{i}.nii,m{i}.nii,{split}\n");
        labels += &format!("s{i}.nii,{},{split}\n", ["dark", "bright"][i % 2]);
    }
    [("masks.csv", masks), ("labels.csv", labels)].map(|(name, text)| {
        std::fs::write(f.path(name), text).unwrap();
        f.path(name)
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn tasks_start_from_a_pytorch_file_and_their_models_go_back_to_pytorch() {
    if checked().is_none() {
        return;
    }
    let f = Folder::new();
    let official = reference("exchange/official_legacy.pt");
    let [masks, labels] = scans(&f);
    for (kind, table, layer) in [("segment", masks, "out_tr.final_conv"), ("classify", labels, "classifier")] {
        let run = f.path(kind);
        let mut args = vec!["finetune", kind, text(&table), "--weights", text(&official), "--out", text(&run)];
        for set in ["cube.size=[16,16,8]", "train.max_steps=2", "train.batch_size=2", "train.tune=\"off\"", "prepare.modality=\"mri\""] {
            args.extend(["--set", set]);
        }
        let summary = f.program().json(&args);
        assert_eq!((&summary["task"], &summary["init"]), (&json!(kind), &json!(text(&official))));
        // What became of each tensor is told, the renamed one included.
        let report: Value = serde_json::from_slice(&std::fs::read(run.join("weights.json")).unwrap()).unwrap();
        let list = |key: &str| report[key].as_array().unwrap().clone();
        assert!(list("loaded").contains(&json!("down_tr64.ops.0.conv1.weight")));
        assert!(list("renamed").contains(&json!(["module.classficationNet.clc_out.fc1.bias", "clc_out.fc1.bias"])));
        assert!(list("dropped").iter().any(|d| d[0] == "optimizer_state_dict"));
        assert!(list("random").contains(&json!(format!("{layer}.weight"))));
        // The model says what it is for.
        let best = run.join("checkpoints/best.safetensors");
        let info = f.program().json(&["info", text(&best)]);
        let task = &info["task"];
        assert_eq!((&task["kind"], &task["window"], &task["output"]), (&json!(kind), &json!([16, 16, 8]), &json!("binary")));
        assert_eq!(task["recipe"]["modality"], "mri");
        assert_eq!(task["classes"].as_array().unwrap().len(), 2);
        assert_eq!(info["origin"]["weights"], text(&official));
        let shown = String::from_utf8(f.program().run(&["info", text(&run)], 0).stdout).unwrap();
        assert!(shown.contains("window: 16 × 16 × 8") && shown.contains("modality: mri") && !shown.contains("discovery"), "{shown}");
        // And goes back: the same tensors and description through a .pt file, which is read in turn.
        let (_, pt) = f.export(&run, "model.pt", &[]);
        let about = f.program().json(&["info", text(&pt)]);
        assert_eq!((&about["kind"], &about["task"]), (&json!("weights"), task));
        assert_eq!((&about["missing"], &about["left_out"]), (&json!([]), &json!([])));
        let (_, imported) = f.import(&pt, "back.safetensors");
        let own = Description::load(&best).unwrap();
        let again = Description::load(&f.path("back.safetensors")).unwrap();
        assert_eq!(again.0, own.0);
        let trained = own.1.iter().filter(|(n, _)| !n.starts_with("optimizer."));
        assert!(trained.clone().all(|(n, t)| again.1.get(n) == Some(t)) && trained.count() == imported.tensors.len());
    }
}

#[test]
fn info_tells_what_a_pytorch_file_holds() {
    let f = Folder::new();
    let official = reference("exchange/official.pt");
    let info = f.program().json(&["info", text(&official)]);
    assert_eq!((&info["kind"], &info["format"]), (&json!("weights"), &json!("PyTorch file (zip)")));
    assert_eq!(info["network"], "Y-Net, pytorch variant, base width 2, 4 levels, 5 pseudo classes");
    assert_eq!(info["tensors"].as_array().unwrap().len(), 115);
    assert!(info["left_out"].as_array().unwrap().iter().any(|e| e["name"] == "module.prototypes.weight"));
    // By content where the name does not tell.
    std::fs::copy(reference("exchange/official_legacy.pt"), f.path("weights")).unwrap();
    assert_eq!(f.program().json(&["info", text(&f.path("weights"))])["format"], "PyTorch file (legacy)");
    std::fs::write(f.path("page.pth"), "<html>").unwrap();
    assert!(f.program().refused(&["info", text(&f.path("page.pth"))]).contains("web page"));
}

/// A model whose description was changed by hand is refused wherever it is used, before anything is computed from it.
#[test]
fn models_that_lie_about_their_task_are_refused() {
    let f = Folder::new();
    let path = fine_tuned(&f, "segment", "multiclass", 3, 3);
    let whole = File::read(&path).unwrap();
    let [masks, _] = scans(&f);
    for (at, value) in [("/task/model/depth", json!(60)), ("/task/values", json!([0])), ("/task/window", json!([0, 0, 0]))] {
        let mut about: Value = serde_json::from_str(whole.metadata.as_deref().unwrap()).unwrap();
        *about.pointer_mut(at).unwrap() = value;
        let lie = f.path("lie.safetensors");
        File { metadata: Some(about.to_string()), ..whole.clone() }.write(&lie).unwrap();
        let (onnx, run) = (f.path("x.onnx"), f.path("run"));
        let calls = [
            vec!["info", text(&lie)],
            vec!["export", text(&lie), "--out", text(&onnx)],
            vec!["finetune", "segment", text(&masks), "--weights", text(&lie), "--out", text(&run)],
        ];
        for call in calls {
            let refused = f.program().refused(&call);
            assert!(refused.contains("describes its task wrongly") && refused.contains("lie.safetensors"), "{refused}");
        }
        assert!(!onnx.exists() && !run.exists());
    }
}
