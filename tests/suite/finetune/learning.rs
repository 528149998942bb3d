//! Tasks that are easy are learnt, whatever the loss and the kind of answer; and the run's files say so.

use std::path::Path;

use serde_json::{Value, json};

use super::{best, finetune, folder, labelled, set};
use crate::harness;

/// Head and cells of a table that a run wrote.
fn rows(path: &Path) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let head = reader.headers().unwrap().iter().map(str::to_owned).collect();
    (head, reader.records().map(|r| r.unwrap().iter().map(str::to_owned).collect()).collect())
}

#[test]
fn a_bright_ball_is_found_with_every_loss() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = set(dir.path(), 10, &[50.0]);
    for (loss, weights) in [("dice+ce", "none"), ("dice", "none"), ("ce", "balanced")] {
        let out = dir.path().join(loss);
        let (loss, weights) = (format!("finetune.loss={loss}"), format!("finetune.class_weights={weights}"));
        let sets = [&*loss, &*weights, "train.max_steps=64", "finetune.windows=4"];
        let summary = finetune("segment", &data, &out, &sets);
        for part in ["validation", "test"] {
            let dice = summary[part]["dice"].as_f64().unwrap();
            assert!(dice > 0.8, "{loss}: Dice of the {part} part is {dice}");
            // Cases and the whole are said in the same file.
            let (head, rows) = rows(&out.join(format!("{part}.csv")));
            assert_eq!(head, ["id", "foreground"]);
            let mean = rows.iter().map(|r| r[1].parse::<f64>().unwrap()).sum::<f64>() / rows.len() as f64;
            assert!((mean - summary[part]["dice_per_case"].as_f64().unwrap()).abs() < 1e-9);
        }
        assert_eq!(summary["metric"], "dice");
    }
}

#[test]
fn what_a_run_leaves_describes_it() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = set(dir.path(), 8, &[50.0, 600.0]);
    let out = dir.path().join("run");
    let summary = finetune("segment", &data, &out, &["train.max_steps=120", "finetune.windows=4", "train.checkpoint_steps=0"]);
    // Eight cases, of which 15 % each validate and test.
    assert_eq!((&summary["task"], &summary["labelled"], &summary["steps"]), (&json!("segment"), &json!(6), &json!(120)));
    assert_eq!((&summary["seed"], &summary["init"]), (&json!(3), &json!("scratch")));
    assert_eq!(summary["classes"], json!(["background", "label 1", "label 2"]));
    let kept: Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(kept, summary);
    let v = &summary["validation"];
    let (one, two) = (v["dice_label 1"].as_f64().unwrap(), v["dice_label 2"].as_f64().unwrap());
    assert!((v["dice"].as_f64().unwrap() - (one + two) / 2.0).abs() < 1e-9);
    assert!(one > 0.8 && two > 0.8, "{v}");

    // The model file says what it is for.
    let file = best(&out);
    let about: Value = serde_json::from_str(file.metadata.as_deref().unwrap()).unwrap();
    let task = &about["task"];
    assert_eq!((&task["kind"], &task["output"], &task["view"]), (&json!("segment"), &json!("multiclass"), &json!("windows")));
    assert_eq!((&task["values"], &task["window"]), (&json!([0, 1, 2]), &json!([16, 16, 8])));
    assert_eq!(file.tensors["out_tr.final_conv.weight"].shape, [3, 8, 1, 1, 1]);
    assert!(!file.tensors.keys().any(|n| n.starts_with("clc_out") || n.starts_with("classifier")), "no other head");

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for section in ["Training", "What the model does", "Metrics", "Data", "Settings and environment"] {
        assert!(page.contains(&format!(">{section}</h2>")), "{section}");
    }
    assert!(page.contains("data:image/png") && page.contains("label 2") && !page.contains("What was loaded"));
    for file in ["config.toml", "environment.json", "inputs.json", "metrics.jsonl", "validation.csv", "test.csv"] {
        assert!(out.join(file).is_file(), "{file}");
    }
}

#[test]
fn scans_with_a_ball_are_told_from_those_without() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let word = |n: usize| ["empty", "ball"][n % 2].to_owned();
    let data = labelled(dir.path(), 20, "label", |n| if n % 2 == 1 { vec![900.0] } else { vec![] }, word);
    let out = dir.path().join("run");
    let summary =
        finetune("classify", &data, &out, &["train.max_steps=40", "finetune.class_weights=balanced", "finetune.validation_fraction=0.2"]);
    assert_eq!((&summary["metric"], &summary["classes"]), (&json!("auc"), &json!(["ball", "empty"])));
    assert!(summary["validation"]["auc"].as_f64().unwrap() > 0.9, "{summary}");
    assert!(summary["test"]["auc"].as_f64().unwrap() > 0.9, "{summary}");
    let (head, rows) = rows(&out.join("test.csv"));
    assert_eq!(head, ["id", "empty"]);
    assert!(rows.len() == 3 && rows.iter().all(|r| (0.0..=1.0).contains(&r[1].parse::<f32>().unwrap())));
    let tensors = best(&out).tensors;
    assert_eq!(tensors["classifier.weight"].shape, [1, 32]);
    assert!(!tensors.keys().any(|n| n.starts_with("up_tr") || n.starts_with("out_tr")), "no decoder");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Area under the ROC curve") && page.contains(">Metrics</h2>"));
}

#[test]
fn one_of_several_classes_and_several_at_once_are_learnt() {
    if harness::trusted().is_none() {
        return;
    }
    // Which of three: nothing, a soft ball, a bright one.
    let dir = folder();
    let seen = |n: usize| [vec![], vec![0.0], vec![900.0, 900.0]][n % 3].clone();
    let data = labelled(dir.path(), 24, "label", seen, |n| ["none", "soft", "bright"][n % 3].to_owned());
    let out = dir.path().join("run");
    let sets = ["train.max_steps=60", "finetune.validation_fraction=0.25", "finetune.class_weights=balanced", "finetune.intensity=0"];
    let summary = finetune("classify", &data, &out, &sets);
    assert_eq!((&summary["metric"], &summary["classes"]), (&json!("accuracy"), &json!(["bright", "none", "soft"])));
    assert!(summary["validation"]["accuracy"].as_f64().unwrap() > 0.8, "{summary}");
    let (head, found) = rows(&out.join("validation.csv"));
    assert_eq!(head, ["id", "bright", "none", "soft"]);
    for r in &found {
        let sum: f32 = r[1..].iter().map(|p| p.parse::<f32>().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "probabilities of {} add up to {sum}", r[0]);
    }

    // Each of two, unknown in some.
    let dir = folder();
    let seen = |n: usize| [vec![], vec![0.0], vec![900.0, 900.0], vec![0.0, 900.0, 900.0]][n % 4].clone();
    let cell = |known: bool, holds: bool| if known { u8::from(holds).to_string() } else { String::new() };
    let cells = |n: usize| format!("{},{}", cell(n != 4, n % 2 == 1), cell(n != 5, n % 4 >= 2));
    let data = labelled(dir.path(), 24, "soft,bright", seen, cells);
    let out = dir.path().join("run");
    let summary = finetune("classify", &data, &out, &sets);
    assert_eq!((&summary["metric"], &summary["classes"]), (&json!("auc"), &json!(["soft", "bright"])));
    assert!(summary["validation"]["auc"].as_f64().unwrap() > 0.8, "{summary}");
    assert_eq!(rows(&out.join("validation.csv")).0, ["id", "soft", "bright"]);
    assert_eq!(best(&out).tensors["classifier.bias"].shape, [2]);
}
