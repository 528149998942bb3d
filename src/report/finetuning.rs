//! The page of a fine-tuning run, made from the files of its directory and what the finished model does.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::chart::Chart;
use super::html::{Cell, Report};
use super::preview;
use super::sheet::{Sheet, Tile};
use crate::error::Result;
use crate::files;
use crate::task::measure::{Answer, Measured};
use crate::task::set::Set;
use crate::task::table::Part;
use crate::task::windows::seen_from;
use crate::task::{Description, Kind, Output};
use crate::train::log;

/// The picture of examples in a run's directory.
const EXAMPLES: &str = "examples.png";
/// Examples of a classification in a row, and rows.
const ACROSS: usize = 6;
const DOWN: usize = 3;
/// Rows of the table of cases.
const CASES: usize = 200;

/// What the metrics are called.
fn called(name: &str) -> String {
    match name {
        "dice" => "Dice, all voxels of the part together".into(),
        "dice_per_case" => "Dice, mean over cases".into(),
        "auc" => "Area under the ROC curve".into(),
        "accuracy" => "Accuracy".into(),
        other => other.strip_prefix("dice_").map_or_else(|| other.to_owned(), |c| format!("Dice of {c}")),
    }
}

/// The page about the run in `dir`; `parts` is what the finished model does on the validation and test parts of `set`.
///
/// # Errors
/// A log of the run that cannot be read, a set whose volumes are gone.
pub fn report(dir: &Path, task: &Description, set: &Set, parts: &BTreeMap<&str, Measured>) -> Result<Report> {
    let json = |name: &str| std::fs::read(dir.join(name)).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    let (summary, weights, environment) = (json("summary.json"), json("weights.json"), json("environment.json"));
    let records = log::read(&dir.join("metrics.jsonl"))?;
    let mut report = Report::new(match task.kind {
        Kind::Segment => "Fine-tuning: segmentation",
        Kind::Classify => "Fine-tuning: classification",
    });
    let summary = summary.unwrap_or_default();
    let init = summary["init"].as_str().unwrap_or("scratch");
    let start = if init == "scratch" { "from random weights".to_owned() } else { format!("from {init}") };
    report.subtitle(&format!("{} · {start}", task.classes.join(", ")));
    for (name, what) in [("test", "test part"), ("validation", "validation part")] {
        let Some(found) = parts.get(name) else { continue };
        let metric = summary["metric"].as_str().unwrap_or("dice");
        if let Some(v) = found.metrics.get(metric) {
            report.card(&format!("{} ({what})", called(metric)), &format!("{v:.4}"), &format!("{} cases", found.cases.len()));
        }
    }
    for (key, label, note) in [
        ("labelled", "Training cases", ""),
        ("steps", "Optimiser steps", ""),
        ("best_epoch", "Epoch of the best model", "chosen on the validation part"),
    ] {
        if let Some(v) = summary[key].as_u64() {
            report.card(label, &v.to_string(), note);
        }
    }
    if let Some(s) = summary["seconds"].as_f64() {
        report.card("Time", &format!("{s:.0} s"), "this call, data preparation and testing included");
    }
    curves(&mut report, &records);
    if let Some((part, sheet)) = match task.kind {
        Kind::Segment => overlays(task, set, parts)?,
        Kind::Classify => answers(task, set, parts)?,
    } {
        let png = sheet.encode()?;
        files::write_bytes(&dir.join(EXAMPLES), &png)?;
        report.section("What the model does");
        report.picture(&png, &format!("Scans of the {part} part, on which nothing was learnt, with the truth and the model's answer."));
    }
    metrics(&mut report, parts);
    cases(&mut report, task, parts);
    data(&mut report, task, set);
    if let Some(w) = weights {
        start_weights(&mut report, &w);
    }
    report.section("Settings and environment");
    if let Ok(text) = std::fs::read_to_string(dir.join("config.toml")) {
        report.details("Complete configuration (config.toml)", &text);
    }
    if let Ok(text) = serde_json::to_string_pretty(task) {
        report.details("What the model is for (task)", &text);
    }
    if let Some(e) = environment {
        report.details("Environment (environment.json)", &format!("{e:#}"));
    }
    report.footer(&format!(
        "Made by semantic-genesis {} from the files of the run. Research software, not a medical device.",
        env!("CARGO_PKG_VERSION")
    ));
    Ok(report)
}

fn curves(report: &mut Report, records: &[Value]) {
    let points = |kind: &str, name: &str| -> Vec<(f64, f64)> {
        records.iter().filter(|r| r["kind"] == kind).filter_map(|r| Some((r["step"].as_f64()?, r[name].as_f64()?))).collect()
    };
    report.section("Training");
    let mut charts = vec![(
        Chart::new("Loss over steps", "step")
            .smoothed("training", points("step", "loss"))
            .marked("validation cross-entropy", points("epoch", "val_loss")),
        "Loss: what is minimised in training; cross-entropy in validation",
    )];
    for (name, title, caption) in [
        ("val_dice", "Validation Dice over steps", "Dice of the validation part, all voxels together"),
        ("val_auc", "Validation AUC over steps", "Area under the ROC curve of the validation part"),
        ("val_accuracy", "Validation accuracy over steps", "Accuracy on the validation part"),
    ] {
        let found = points("epoch", name);
        if !found.is_empty() {
            charts.push((Chart::new(title, "step").y_range(0.0, 1.0).marked("validation", found), caption));
        }
    }
    for (name, title) in [("cubes_per_s", "Windows per second"), ("lr", "Learning rate")] {
        charts.push((Chart::new(format!("{title} over steps"), "step").smoothed(title, points("step", name)), title));
    }
    report.charts(&charts);
}

/// Scans with the truth and the answer laid over them, where the truth is largest.
fn overlays<'p>(task: &Description, set: &Set, parts: &'p BTreeMap<&str, Measured>) -> Result<Option<(&'p str, Sheet)>> {
    let Some((part, found)) = shown(parts) else { return Ok(None) };
    let mut sheet = Sheet::new(format!("Segmentation of the {part} part"))
        .note("Slices through the largest area of the truth. The patient's left is on the right.")
        .legend(&task.classes[1..])
        .columns(&["truth", "model", "truth", "model"]);
    for (scan, map) in &found.maps {
        let s = &set.scans[*scan];
        let values: Vec<f32> = set.window(*scan, [0; 3], s.size).into_iter().step_by(task.channels.len()).collect();
        let truth = set.truth(*scan, [0; 3], s.size);
        let [_, y, z] = largest(&truth, s.size);
        let spacing = task.recipe.spacing;
        let as_tile = |classes: &[u16]| classes.iter().map(|&c| f32::from(c)).collect::<Vec<f32>>();
        let over = |cut: &dyn Fn(&[f32]) -> Result<Tile>, classes: &[u16], aspect: f64| -> Result<Tile> {
            let marks = cut(&as_tile(classes))?.into_pixels().into_iter().map(|c| c as u16).collect();
            Ok(cut(&values)?.aspect(aspect).overlay(marks))
        };
        let axial = |v: &[f32]| preview::axial(v, s.size, z);
        let coronal = |v: &[f32]| preview::coronal(v, s.size, y);
        let (flat, high) = (spacing[1] / spacing[0], spacing[2] / spacing[0]);
        let name = set.entries.iter().find(|e| e.scan == *scan).map_or("", |e| e.id.as_str());
        let tiles = vec![over(&axial, &truth, flat)?, over(&axial, map, flat)?, over(&coronal, &truth, high)?, over(&coronal, map, high)?];
        sheet = sheet.row(name, tiles);
    }
    Ok(Some((part, sheet)))
}

/// Scans with the true class and the probability that the model gives, spread evenly over the cases; nothing for several labels a case.
fn answers<'p>(task: &Description, set: &Set, parts: &'p BTreeMap<&str, Measured>) -> Result<Option<(&'p str, Sheet)>> {
    let Some((part, found)) = shown(parts) else { return Ok(None) };
    if task.output == Output::Multilabel {
        return Ok(None);
    }
    let mut sheet = Sheet::new(format!("Classification of the {part} part"))
        .note("The middle slice of what the network sees: the truth, and the probability that the model gives it.");
    let count = found.cases.len().min(ACROSS * DOWN);
    let picked: Vec<&(String, Answer)> = (0..count).map(|i| &found.cases[i * found.cases.len() / count]).collect();
    for row in picked.chunks(ACROSS) {
        let mut tiles = Vec::new();
        for (id, answer) in row {
            let (Some(entry), Answer::Probabilities(p)) = (set.entries.iter().find(|e| e.id == *id), answer) else { continue };
            let Some(truth) = entry.labels.first().copied().flatten() else { continue };
            let values = set.window(entry.scan, seen_from(set, task, entry), task.window);
            let values: Vec<f32> = values.into_iter().step_by(task.channels.len()).collect();
            let class = truth as usize;
            let probability = match task.output {
                Output::Multiclass => p[class],
                _ if class == 1 => p[0],
                _ => 1.0 - p[0],
            };
            let spacing = task.recipe.spacing;
            tiles.push(
                preview::axial(&values, task.window, task.window[2] / 2)?
                    .aspect(spacing[1] / spacing[0])
                    .caption(format!("{}: {probability:.2}", task.classes[class])),
            );
        }
        if !tiles.is_empty() {
            sheet = sheet.row("", tiles);
        }
    }
    Ok(Some((part, sheet)))
}

/// The part to show cases of.
fn shown<'p>(parts: &'p BTreeMap<&str, Measured>) -> Option<(&'p str, &'p Measured)> {
    ["test", "validation"].iter().find_map(|p| parts.get_key_value(p)).map(|(&name, found)| (name, found)).filter(|p| !p.1.cases.is_empty())
}

/// For each axis the plane with the most voxels that are not background; the middle one if there are none.
fn largest(truth: &[u16], size: [usize; 3]) -> [usize; 3] {
    let mut counts: [Vec<u64>; 3] = size.map(|n| vec![0; n]);
    for (i, _) in truth.iter().enumerate().filter(|(_, c)| **c > 0) {
        let at = [i / (size[1] * size[2]), i / size[2] % size[1], i % size[2]];
        (0..3).for_each(|a| counts[a][at[a]] += 1);
    }
    counts.map(|c| preview::fullest(&c))
}

fn metrics(report: &mut Report, parts: &BTreeMap<&str, Measured>) {
    report.section("Metrics");
    let names: std::collections::BTreeSet<&String> = parts.values().flat_map(|p| p.metrics.keys()).collect();
    let columns = ["validation", "test"];
    let rows: Vec<Vec<String>> = names
        .into_iter()
        .map(|n| {
            let value = |p: &&str| parts.get(*p).and_then(|m| m.metrics.get(n)).map_or_else(|| "–".into(), |v| format!("{v:.4}"));
            std::iter::once(called(n)).chain(columns.iter().map(value)).collect()
        })
        .collect();
    report.table(&["Metric", "Validation", "Test"], &rows);
    report.paragraph("Measured on the prepared grid, in windows that touch but do not overlap. `semgen predict` and `semgen evaluate` measure whole scans in their own grid.");
}

fn cases(report: &mut Report, task: &Description, parts: &BTreeMap<&str, Measured>) {
    let Some((part, found)) = ["test", "validation"].iter().find_map(|p| Some((p, parts.get(p)?))) else { return };
    report.section(&format!("Cases of the {part} part"));
    let names: Vec<&str> = match (task.kind, task.outputs()) {
        (Kind::Segment, _) => task.classes.iter().skip(1).map(String::as_str).collect(),
        (_, 1) => vec![task.classes[1].as_str()],
        _ => task.classes.iter().map(String::as_str).collect(),
    };
    let rows: Vec<Vec<Cell>> = found
        .cases
        .iter()
        .take(CASES)
        .map(|(id, answer)| {
            let values: Vec<Option<f64>> = match answer {
                Answer::Dice(v) => v.clone(),
                Answer::Probabilities(v) => v.iter().map(|&p| Some(f64::from(p))).collect(),
            };
            let cell = |v: Option<f64>| Cell::number(v, |v| format!("{v:.4}")).bar(v.unwrap_or(0.0));
            std::iter::once(Cell::text(id.clone())).chain(values.into_iter().map(cell)).collect()
        })
        .collect();
    let headers: Vec<&str> = std::iter::once("Case").chain(names).collect();
    report.sortable_table(&headers, &rows);
    if found.cases.len() > CASES {
        report.paragraph(&format!("The first {CASES} of {}; all are in {part}.csv.", found.cases.len()));
    }
}

fn data(report: &mut Report, task: &Description, set: &Set) {
    report.section("Data");
    let count = |part| set.of(part).len().to_string();
    let by = |v: &[f64; 3]| {
        v.iter().map(|x| format!("{x:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()).collect::<Vec<_>>().join(" × ")
    };
    report.table(
        &["", ""],
        &[
            vec!["Training cases".into(), count(Part::Train)],
            vec!["Validation cases".into(), count(Part::Validation)],
            vec!["Test cases".into(), count(Part::Test)],
            vec!["Scans".into(), set.scans.len().to_string()],
            vec!["Channels".into(), task.channels.join(", ")],
            vec!["Voxel size, mm".into(), by(&task.recipe.spacing)],
            vec!["Window, voxels".into(), task.window.map(|n| n.to_string()).join(" × ")],
        ],
    );
}

fn start_weights(report: &mut Report, weights: &Value) {
    report.section("What was loaded");
    let count = |key: &str| weights[key].as_array().map_or(0, Vec::len).to_string();
    report.table(
        &["Tensors", "Number"],
        &[
            vec!["loaded".into(), count("loaded")],
            vec!["adapted to the input channels".into(), count("adapted")],
            vec!["kernels made as long as new ones".into(), count("rescaled")],
            vec!["renamed".into(), count("renamed")],
            vec!["left out".into(), count("dropped")],
            vec!["random".into(), count("random")],
        ],
    );
    report.details("Names (weights.json)", &format!("{weights:#}"));
}
