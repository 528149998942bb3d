//! A made-up run directory, written and read through the public interface.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use semantic_genesis::report::events::EventWriter;
use semantic_genesis::report::pretraining_report;
use semantic_genesis::report::preview::{self, Neighbours, Restoration};
use semantic_genesis::rng::{Key, Purpose, unit_f32};
use semantic_genesis::train::log::{self, MetricsLog};
use serde_json::json;

/// A chest-like volume of `size` in `[0, 1]`, different for every `patient`.
fn patient(size: [usize; 3], patient: u32, detail: f32) -> Vec<f32> {
    let wobble: [f32; 5] = std::array::from_fn(|i| unit_f32(Key::new(7).purpose(Purpose::Phantom, patient).draw(i as u32)[0]) - 0.5);
    let mut data = Vec::with_capacity(size.iter().product());
    let ellipse = |p: [f32; 3], c: [f32; 3], r: [f32; 3]| (0..3).map(|a| ((p[a] - c[a]) / r[a]).powi(2)).sum::<f32>();
    for x in 0..size[0] {
        for y in 0..size[1] {
            for z in 0..size[2] {
                let p = [x, y, z].map(|i| i as f32);
                let p: [f32; 3] = std::array::from_fn(|a| p[a] / size[a] as f32 * 2.0 - 1.0);
                let wide = 0.82 + 0.1 * wobble[0];
                let mut value = 0.0;
                if ellipse(p, [0.0; 3], [wide, 0.62, 3.0]) < 1.0 {
                    value = 0.52;
                }
                for side in [-1.0, 1.0] {
                    if ellipse(p, [side * 0.4, -0.02 + 0.1 * wobble[1], 0.05], [0.32, 0.45 + 0.1 * wobble[2], 0.85]) < 1.0 {
                        let vessel = (p[0] * 31.0 + wobble[3]).sin() * (p[1] * 29.0).sin() * (p[2] * 23.0 + 1.0).sin();
                        value = 0.09 + if vessel > 0.45 { 0.3 * detail } else { 0.0 };
                    }
                }
                if ellipse(p, [0.12, -0.1 + 0.1 * wobble[4], -0.1], [0.28, 0.3, 0.5]) < 1.0 {
                    value = 0.56;
                }
                if ellipse(p, [0.0, 0.48, 0.0], [0.13, 0.12, 3.0]) < 1.0 {
                    value = 0.72;
                }
                data.push(value);
            }
        }
    }
    data
}

/// What a run would leave in `dir`.
fn made_up_run(dir: &Path) {
    let previews = dir.join("previews");
    std::fs::create_dir_all(&previews).unwrap();
    let crop = [48, 48, 24];
    let volume = [64, 56, 32];

    let rows = (0..3).map(|r| {
        let tile =
            |p: u32| preview::axial(&patient(volume, 10 * r + p, 1.0), volume, 15).unwrap().caption(format!("patient {:02}", 10 * r + p));
        Neighbours { label: format!("class {r}"), reference: tile(0), nearest: (1..5).map(|p| (tile(p), p as f32 * 0.217 + 0.1)).collect() }
    });
    preview::neighbours_sheet("Nearest neighbours", rows.collect()).write(&previews.join("neighbours.png")).unwrap();
    let rows = (0..4).map(|r| {
        let tiles = (0..6).map(|p| preview::axial(&patient(crop, 10 * r + p, 1.0), crop, 4 + 4 * r as usize).unwrap());
        (format!("class {r}"), tiles.collect())
    });
    preview::crops_sheet("Crops by pseudo label", rows.collect()).write(&previews.join("crops.png")).unwrap();

    for (epoch, blur) in [(1, 0.2), (10, 0.6), (30, 0.9)] {
        let crops: Vec<_> = (0..3)
            .map(|i| {
                let (original, restored) = (patient(crop, i, 1.0), patient(crop, i, blur));
                let transformed: Vec<f32> = match i {
                    0 => original.iter().map(|v| (1.0 - v).powi(2)).collect(),
                    1 => original.iter().enumerate().map(|(j, v)| if (j / 24 / 48) % 48 < 20 { 0.6 } else { *v }).collect(),
                    _ => original.iter().enumerate().map(|(j, v)| v + 0.3 * (unit_f32(Key::new(1).draw(j as u32)[0]) - 0.5)).collect(),
                };
                (original, transformed, restored)
            })
            .collect();
        let rows: Vec<_> = crops
            .iter()
            .zip(["intensity curve", "in-painting", "local shuffling"])
            .map(|((original, transformed, restored), label)| Restoration {
                label: label.into(),
                size: crop,
                original,
                transformed,
                restored,
                metrics: format!("MSE {:.4}", 0.03 / f64::from(epoch)),
            })
            .collect();
        let sheet = preview::restoration_sheet(&format!("Restoration, epoch {epoch}"), &rows).unwrap();
        sheet.write(&previews.join(format!("restoration_epoch_{epoch}.png"))).unwrap();
    }

    let mut metrics = MetricsLog::create(&dir.join("metrics.jsonl")).unwrap();
    let mut events = EventWriter::create(dir, 1_700_000_000, "").unwrap();
    let noise = |i: u32| f64::from(unit_f32(Key::new(3).draw(i)[0])) - 0.5;
    for step in 1..=600u32 {
        let t = f64::from(step) / 600.0;
        metrics.append(&json!({"kind": "step", "phase": "autoencoder", "step": step, "loss": 0.05 * (-5.0 * t).exp() + 0.004 + 0.002 * noise(step)})).unwrap();
        if step % 60 == 0 {
            metrics.append(&json!({"kind": "epoch", "phase": "autoencoder", "epoch": step / 60, "step": step, "val_loss": 0.05 * (-5.0 * t).exp() + 0.0045})).unwrap();
        }
    }
    for step in 1..=3000u32 {
        let t = f64::from(step) / 3000.0;
        let joint = step > 1200;
        let cls = 3.78 * (-4.0 * t).exp() + 0.15 + 0.4 * noise(step) * (1.0 - t);
        let rec = 0.06 * (-4.0 * (t - 0.4)).exp() * (1.0 + 0.4 * noise(step + 9000)) + 0.003;
        let mut record = json!({"kind": "step", "phase": if joint { "joint" } else { "classification" }, "step": step, "epoch": step / 100,
            "loss": if joint { rec + 0.01 * cls } else { cls }, "loss_cls": cls, "lr": 1e-3 * 0.5f64.powi(step as i32 / 1200), "cubes_per_s": 212.0 + 12.0 * noise(step + 5000)});
        if joint {
            record["loss_rec"] = json!(rec);
        }
        metrics.append(&record).unwrap();
        if step % 50 == 0 {
            events.scalar(u64::from(step), "train/loss", record["loss"].as_f64().unwrap() as f32).unwrap();
        }
        if step % 100 == 0 {
            let accuracy = 1.0 - 0.98 * (-3.5 * t).exp() + 0.03 * noise(step);
            let mut record = json!({"kind": "epoch", "phase": if joint { "joint" } else { "classification" }, "epoch": step / 100, "step": step,
                "val_loss": if joint { rec + 0.01 * cls } else { cls * 1.1 }, "val_loss_cls": cls * 1.1, "val_accuracy": accuracy});
            if joint {
                record["val_loss_rec"] = json!(rec * 1.08);
                record["identity_error"] = json!(0.0712);
            }
            metrics.append(&record).unwrap();
        }
    }
    let png = std::fs::read(previews.join("crops.png")).unwrap();
    events.image(3000, "previews/crops", &png, 640, 480).unwrap();
    let mut config = semantic_genesis::config::Config::default();
    config.cube.size = crop;
    std::fs::write(dir.join("config.toml"), config.to_toml()).unwrap();
    let environment =
        json!({"program": "semgen 0.1.0", "adapter": {"name": "llvmpipe <LLVM 19>", "backend": "Vulkan"}, "os": "linux", "threads": 2});
    std::fs::write(dir.join("environment.json"), environment.to_string()).unwrap();
}

#[test]
fn a_run_directory_becomes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    made_up_run(dir.path());
    let report = pretraining_report(dir.path(), "Pretraining <demo>").unwrap();
    let page = dir.path().join("report.html");
    report.write(&page).unwrap();
    let html = std::fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("data:image/png;base64,").count(), 5);
    assert_eq!(html.matches("<svg").count(), 6);
    assert!(html.contains("llvmpipe &lt;LLVM 19&gt;") && html.contains("Pretraining &lt;demo&gt;"));
    assert!(html.contains("48 × 48 × 24") && html.contains("joint phase") && html.contains("guessing"));
    assert!(!html.contains("Left out") && !html.contains("NaN"));
    // The last restoration stands open, the earlier ones are folded away.
    assert!(html.find("Restoration epoch 30").unwrap() < html.find("Restoration epoch 1<").unwrap());
}

#[test]
fn missing_and_damaged_parts_leave_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let empty = pretraining_report(dir.path(), "t").unwrap().html();
    assert!(empty.contains("<h1>t</h1>") && !empty.contains("<h2") && !empty.contains("Left out"));

    std::fs::create_dir(dir.path().join("previews")).unwrap();
    std::fs::write(dir.path().join("previews/crops.png"), b"not a picture").unwrap();
    std::fs::write(dir.path().join("config.toml"), b"not = = toml <b>").unwrap();
    std::fs::write(dir.path().join("environment.json"), b"{").unwrap();
    std::fs::write(dir.path().join("summary.json"), b"[]").unwrap();
    std::fs::write(dir.path().join("metrics.jsonl"), b"oops\n{}\n").unwrap();
    let html = pretraining_report(dir.path(), "t").unwrap().html();
    assert_eq!(html.matches("Left out").count(), 2);
    assert!(html.contains("line 1 is not JSON") && html.contains("not = = toml &lt;b&gt;") && !html.contains("base64,"));

    assert_eq!(pretraining_report(&dir.path().join("none"), "t").err().map(|e| e.exit_code()), Some(2));
}

#[test]
fn headline_numbers_come_from_the_summary() {
    let dir = tempfile::tempdir().unwrap();
    let summary = json!({"Scans": 1623, "Speed": {"value": "212 crops/s", "note": "on <X>"}, "AUC": 0.98765, "Finished": true});
    std::fs::write(dir.path().join("summary.json"), summary.to_string()).unwrap();
    let html = pretraining_report(dir.path(), "t").unwrap().html();
    for part in ["1\u{202f}623", "212 crops/s", "on &lt;X&gt;", "0.9877", "true"] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn a_torn_log_is_reported_up_to_the_tear() {
    let dir = tempfile::tempdir().unwrap();
    made_up_run(dir.path());
    let path = dir.path().join("metrics.jsonl");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 7]).unwrap();
    assert_eq!(log::read(&path).unwrap().len(), 600 + 10 + 3000 + 30 - 1);
    assert!(!pretraining_report(dir.path(), "t").unwrap().html().contains("Left out"));
}

#[test]
fn two_writers_of_one_second_have_files_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let first = EventWriter::create(dir.path(), 12, "").unwrap();
    let second = EventWriter::create(dir.path(), 12, "").unwrap();
    assert_eq!(first.path().file_name().unwrap(), "events.out.tfevents.0000000012.semgen");
    assert_ne!(first.path(), second.path());
    let mut second = second;
    assert!(second.image(1, "t", b"no picture", 1, 1).unwrap_err().to_string().contains("not a PNG"));
}
