//! The page of a pretraining run, made from the files of its directory.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::Table;

use crate::error::{Error, Result};
use crate::report::chart::Chart;
use crate::report::html::Report;
use crate::train::log;

/// Phases that train the network, in order; the autoencoder of the self-discovery is shown apart.
const TRAINING: [&str; 2] = ["classification", "joint"];
const AUTOENCODER: &str = "autoencoder";

/// The page about the pretraining run in `run_dir`, to be written as its `report.html`; more sections may be added before.
///
/// Used as far as they are there: `summary.json` (an object of label and number or text, or of label and
/// `{"value", "note"}`), `config.toml`, `environment.json`, `metrics.jsonl` (also of the autoencoder in
/// `discover/autoencoder`) and `previews/*.png`. A file that
/// cannot be used is named on the page.
///
/// # Errors
/// [`Error::Input`] if `run_dir` is not a directory.
pub fn pretraining_report(run_dir: &Path, title: &str) -> Result<Report> {
    if !run_dir.is_dir() {
        return Err(Error::input(run_dir, "is not a directory, expected a run's; give the directory that a run was told to write"));
    }
    let mut problems = Vec::new();
    let config_text = read_text(&run_dir.join("config.toml"), &mut problems);
    let environment = read_text(&run_dir.join("environment.json"), &mut problems);
    let summary = read_text(&run_dir.join("summary.json"), &mut problems);
    let mut records = Vec::new();
    // The autoencoder is trained in a folder of its own.
    for metrics in [run_dir.join("discover/autoencoder/metrics.jsonl"), run_dir.join("metrics.jsonl")] {
        if metrics.exists() {
            match log::read(&metrics) {
                Ok(found) => records.extend(found),
                Err(e) => problems.push(e.to_string()),
            }
        }
    }
    let config: Table = config_text.as_deref().and_then(|t| t.parse().ok()).unwrap_or_default();
    let previews = Previews::find(&run_dir.join("previews"));

    let mut report = Report::new(title);
    if let Some(line) = setup_line(&config) {
        report.subtitle(&line);
    }
    report.footer(&format!("Made by semantic-genesis {} from the files of the run.", env!("CARGO_PKG_VERSION")));
    let epochs = Phase::all(&records);
    match summary.as_deref().map(serde_json::from_str::<Value>) {
        Some(Ok(Value::Object(entries))) => entries.iter().for_each(|(label, value)| summary_card(&mut report, label, value)),
        Some(_) => problems.push("summary.json: is not a JSON object".into()),
        None => derived_cards(&mut report, &epochs),
    }
    for problem in &problems {
        report.paragraph(&format!("Left out: {problem}"));
    }
    discovery(&mut report, &records, &previews);
    training(&mut report, &epochs, &config);
    restoration(&mut report, &previews);
    further(&mut report, &previews);
    settings(&mut report, &config, config_text.as_deref(), environment.as_deref());
    Ok(report)
}

/// The text of a file; `None` if it is missing, and with a word in `problems` if it cannot be read.
fn read_text(path: &Path, problems: &mut Vec<String>) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => {
            problems.push(Error::io("read", path)(e).to_string());
            None
        }
    }
}

/// The value at a dotted key.
fn setting<'a>(config: &'a Table, key: &str) -> Option<&'a toml::Value> {
    let (table, key) = key.split_once('.').map_or((Some(config), key), |(t, k)| (config.get(t).and_then(toml::Value::as_table), k));
    table?.get(key)
}

fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(s) => s.clone(),
        toml::Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(" × "),
        other => other.to_string(),
    }
}

fn setup_line(config: &Table) -> Option<String> {
    let modality = setting(config, "prepare.modality").map(shown)?;
    let part = |key: &str, text: &str| setting(config, key).map(|v| format!("{} {text}", shown(v)));
    let parts: Vec<String> = [
        Some(format!("Self-supervised pretraining on {}", modality.to_uppercase())),
        part("model.classes", "anatomical patterns"),
        part("cube.size", "voxels per crop"),
    ]
    .into_iter()
    .flatten()
    .collect();
    Some(parts.join(" · "))
}

fn summary_card(report: &mut Report, label: &str, value: &Value) {
    let plain = |v: &Value| match v {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), number),
        other => other.to_string(),
    };
    match value {
        Value::Object(parts) => {
            let part = |key: &str| parts.get(key).map(&plain).unwrap_or_default();
            report.card(label, &part("value"), &part("note"));
        }
        other => {
            report.card(label, &plain(other), "");
        }
    }
}

/// `value` with four significant digits; whole numbers in full with their thousands apart.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    if value.fract() == 0.0 && value.abs() < 1e15 {
        let digits = format!("{:.0}", value.abs());
        let grouped: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|c| std::str::from_utf8(c).ok()).collect();
        return format!("{}{}", if value < 0.0 { "−" } else { "" }, grouped.join("\u{202f}"));
    }
    let magnitude = value.abs().log10().floor();
    if (-5.0..6.0).contains(&magnitude) { format!("{value:.*}", (3.0 - magnitude).max(0.0) as usize) } else { format!("{value:.3e}") }
}

/// The numeric field of a record; `None` if it is missing, `null` (not finite) or not a number.
fn field(record: &Value, name: &str) -> Option<f64> {
    record.get(name)?.as_f64()
}

/// What the log says about one phase.
struct Phase<'a> {
    name: &'a str,
    steps: Vec<&'a Value>,
    epochs: Vec<&'a Value>,
    /// Added to step numbers, so that a phase which counts from 1 again follows the one before.
    offset: f64,
    /// Where the phase before ended, on the common count of steps.
    begin: f64,
}

impl<'a> Phase<'a> {
    fn new(records: &'a [Value], name: &'a str) -> Self {
        let kind = |kind: &str| records.iter().filter(|r| r["kind"] == kind && r["phase"] == name).collect();
        Self { name, steps: kind("step"), epochs: kind("epoch"), offset: 0.0, begin: 0.0 }
    }

    /// The training phases that left records.
    fn all(records: &'a [Value]) -> Vec<Self> {
        let mut end = 0.0;
        let mut phases = Vec::new();
        for name in TRAINING {
            let mut phase = Self::new(records, name);
            let steps: Vec<f64> = phase.steps.iter().chain(&phase.epochs).filter_map(|r| field(r, "step")).collect();
            if steps.is_empty() {
                continue;
            }
            let first = steps.iter().copied().fold(f64::INFINITY, f64::min);
            phase.begin = end;
            phase.offset = if first <= end { end } else { 0.0 };
            end = steps.iter().copied().fold(end, |end, s| end.max(s + phase.offset));
            phases.push(phase);
        }
        phases
    }

    /// `(step, value)` of the records that have the field; what was not finite is a gap.
    fn points(&self, records: &[&Value], name: &str) -> Vec<(f64, f64)> {
        let point = |r: &&Value| Some((field(r, "step")? + self.offset, r.get(name).map(|v| v.as_f64().unwrap_or(f64::NAN))?));
        records.iter().filter_map(point).collect()
    }

    /// The smallest value of a field over the epochs, with its epoch.
    fn least(&self, name: &str) -> Option<(f64, f64)> {
        self.epochs.iter().filter_map(|r| Some((field(r, name)?, field(r, "epoch").unwrap_or(f64::NAN)))).min_by(|a, b| a.0.total_cmp(&b.0))
    }

    fn most(&self, name: &str) -> Option<f64> {
        self.epochs.iter().filter_map(|r| field(r, name)).max_by(f64::total_cmp)
    }

    fn speed(&self) -> Option<f64> {
        let mut speeds: Vec<f64> = self.steps.iter().filter_map(|r| field(r, "cubes_per_s")).collect();
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    }

    /// The last step on the common count.
    fn end(&self) -> Option<f64> {
        self.steps.iter().chain(&self.epochs).filter_map(|r| field(r, "step")).max_by(f64::total_cmp).map(|s| s + self.offset)
    }
}

/// Key numbers for a run without a summary.
fn derived_cards(report: &mut Report, phases: &[Phase]) {
    let Some(last) = phases.last() else { return };
    if let Some(accuracy) = phases.iter().filter_map(|p| p.most("val_accuracy")).max_by(f64::total_cmp) {
        report.card("Best validation accuracy", &format!("{:.1} %", 100.0 * accuracy), "finding the anatomical pattern");
    }
    if let Some((error, epoch)) = last.least("val_loss_rec") {
        let unchanged = last.epochs.iter().filter_map(|r| field(r, "identity_error")).next_back();
        let note = unchanged.map_or_else(|| format!("epoch {}", number(epoch)), |e| format!("the distorted input has {}", number(e)));
        report.card("Restoration error (MSE)", &number(error), &note);
    }
    if let Some((loss, epoch)) = last.least("val_loss") {
        report.card("Best validation loss", &number(loss), &format!("epoch {}", number(epoch)));
    }
    if let Some(step) = last.end() {
        report.card("Optimiser steps", &number(step), "");
    }
    if let Some(speed) = last.speed() {
        report.card("Training speed", &number(speed), "crops per second, median");
    }
}

fn discovery(report: &mut Report, records: &[Value], previews: &Previews) {
    let phase = Phase::new(records, AUTOENCODER);
    let pictures = [
        ("phantoms", "Synthetic patients: middle slices."),
        ("neighbours", "The same place in a reference patient and in those that the autoencoder finds most similar."),
        ("crops", "Crops that share a row share a label, which the network has to find."),
    ];
    let pictures: Vec<_> = pictures.iter().filter_map(|(stem, caption)| Some((previews.read(stem)?, *caption))).collect();
    if phase.steps.is_empty() && phase.epochs.is_empty() && pictures.is_empty() {
        return;
    }
    report.section("Self-discovered patterns");
    report.paragraph(
        "An autoencoder describes every patient by numbers; patients with similar numbers look alike. The same place in similar \
         patients shows the same anatomy, so it gets the same label without anyone having drawn or named it.",
    );
    for (png, caption) in &pictures {
        report.picture(png, caption);
    }
    if !phase.steps.is_empty() || !phase.epochs.is_empty() {
        let chart = Chart::new("Autoencoder loss over steps", "step")
            .log_y()
            .smoothed("training", phase.points(&phase.steps, "loss"))
            .marked("validation", phase.points(&phase.epochs, "val_loss"));
        report.charts(&[(chart, "Autoencoder: mean squared error")]);
    }
}

fn training(report: &mut Report, phases: &[Phase], config: &Table) {
    if phases.is_empty() {
        return;
    }
    report.section("Training");
    let classes = setting(config, "model.classes").and_then(toml::Value::as_integer).filter(|c| *c > 1).map(|c| c as f64);
    let steps = |name: &str, alone: &str| -> Vec<(f64, f64)> {
        let of = |p: &Phase| {
            let points = p.points(&p.steps, name);
            // A phase with a single loss may log it as `loss` alone.
            if points.is_empty() && p.name == alone { p.points(&p.steps, "loss") } else { points }
        };
        phases.iter().flat_map(of).collect()
    };
    let epochs = |name: &str, alone: &str| -> Vec<(f64, f64)> {
        let of = |p: &Phase| {
            let points = p.points(&p.epochs, name);
            if points.is_empty() && p.name == alone { p.points(&p.epochs, "val_loss") } else { points }
        };
        phases.iter().flat_map(of).collect()
    };
    let chart = |title: &str| {
        phases.iter().skip(1).fold(Chart::new(title, "step"), |chart, p| chart.boundary(p.begin, format!("{} phase", p.name)))
    };
    let mut charts = Vec::new();
    let any = |points: &[&Vec<(f64, f64)>]| points.iter().any(|p| !p.is_empty());

    let (train, val) = (steps("loss_cls", TRAINING[0]), epochs("val_loss_cls", TRAINING[0]));
    if any(&[&train, &val]) {
        let mut chart = chart("Classification loss over steps").smoothed("training", train).marked("validation", val);
        if let Some(c) = classes {
            chart = chart.level(c.ln(), "guessing");
        }
        charts.push((chart, "Classification: cross-entropy"));
    }
    let accuracy = epochs("val_accuracy", "");
    if any(&[&accuracy]) {
        let mut chart = chart("Validation accuracy over steps").y_range(0.0, 0.1).marked("validation", accuracy);
        if let Some(c) = classes {
            chart = chart.level(1.0 / c, "guessing");
        }
        charts.push((chart, "Classification: share of crops whose label is found"));
    }
    let (train, val, unchanged) = (steps("loss_rec", ""), epochs("val_loss_rec", ""), epochs("identity_error", ""));
    if any(&[&train, &val]) {
        let mut chart = chart("Restoration error over steps").log_y().smoothed("training", train).marked("validation", val);
        if any(&[&unchanged]) {
            chart = chart.line("distorted input itself", unchanged);
        }
        charts.push((chart, "Restoration: mean squared error"));
    }
    for (name, title, caption) in
        [("cubes_per_s", "Crops per second over steps", "Speed: crops per second"), ("lr", "Learning rate over steps", "Learning rate")]
    {
        let points = steps(name, "");
        if any(&[&points]) {
            let chart = chart(title);
            charts.push(if name == "lr" {
                (chart.line(name, points), caption)
            } else {
                (chart.y_range(0.0, 0.0).smoothed("training", points), caption)
            });
        }
    }
    report.charts(&charts);

    let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), number);
    let percent = |value: Option<f64>| value.map_or_else(|| "–".into(), |v| format!("{:.1} %", 100.0 * v));
    let rows: Vec<Vec<String>> = phases
        .iter()
        .map(|p| {
            let best = p.least("val_loss");
            vec![
                p.name.to_owned(),
                cell(p.end().map(|end| end - p.begin)),
                p.epochs.len().to_string(),
                cell(p.epochs.first().and_then(|r| field(r, "val_loss"))),
                cell(best.map(|b| b.0)),
                cell(best.map(|b| b.1)),
                cell(p.least("val_loss_rec").map(|b| b.0)),
                percent(p.most("val_accuracy")),
                cell(p.speed()),
            ]
        })
        .collect();
    report.table(
        &[
            "Phase",
            "Steps",
            "Epochs",
            "First validation loss",
            "Best validation loss",
            "in epoch",
            "Best restoration error",
            "Best accuracy",
            "Crops/s (median)",
        ],
        &rows,
    );
}

fn restoration(report: &mut Report, previews: &Previews) {
    let mut pictures = previews.starting_with("restoration_");
    let Some((png, caption)) = pictures.pop() else { return };
    report.section("Restoration");
    report.paragraph(
        "Validation crops that the network has not learnt from: as they are, as they were distorted, and as the network restored them from the \
         distorted ones alone.",
    );
    report.picture(&png, &caption);
    if !pictures.is_empty() {
        report.folded_pictures("Earlier in the run", &pictures);
    }
}

fn further(report: &mut Report, previews: &Previews) {
    let known = |name: &str| ["phantoms", "neighbours", "crops"].contains(&name) || name.starts_with("restoration_");
    let pictures: Vec<_> = previews.names.iter().filter(|n| !known(n)).filter_map(|n| Some((previews.read(n)?, caption(n)))).collect();
    if !pictures.is_empty() {
        report.section("Further pictures");
        for (png, caption) in &pictures {
            report.picture(png, caption);
        }
    }
}

fn settings(report: &mut Report, config: &Table, text: Option<&str>, environment: Option<&str>) {
    let keys = [
        ("Crop size (voxels)", "cube.size"),
        ("Anatomical patterns (classes)", "model.classes"),
        ("Patients per pattern", "discover.neighbours"),
        ("Network variant", "model.variant"),
        ("First channels", "model.base_channels"),
        ("Image transformations", "train.preset"),
        ("Optimiser", "train.optimiser"),
        ("Learning rate", "train.learning_rate"),
        ("Batch size", "train.batch_size"),
        ("Seed", "seed"),
    ];
    let rows: Vec<Vec<String>> = keys.iter().filter_map(|(label, key)| Some(vec![(*label).into(), shown(setting(config, key)?)])).collect();
    if text.is_none() && environment.is_none() {
        return;
    }
    report.section("Settings and environment");
    if !rows.is_empty() {
        report.table(&["Setting", "Value"], &rows);
    }
    if let Some(text) = text {
        report.details("Complete configuration (config.toml)", text);
    }
    if let Some(text) = environment {
        let value: Option<Value> = serde_json::from_str(text).ok();
        let pretty = value.and_then(|v| serde_json::to_string_pretty(&v).ok());
        report.details("Environment (environment.json)", pretty.as_deref().unwrap_or(text));
    }
}

/// `restoration_epoch_3` as words.
fn caption(stem: &str) -> String {
    let words = stem.replace(['_', '-'], " ");
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The PNG files of a directory.
struct Previews {
    dir: PathBuf,
    /// Names without `.png`, numbers in them in numeric order.
    names: Vec<String>,
}

impl Previews {
    fn find(dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".png")?.to_owned())).collect();
        names.sort_by_cached_key(|n| natural(n));
        Self { dir: dir.to_path_buf(), names }
    }

    /// The file's bytes; `None` if it is missing or not a PNG file.
    fn read(&self, stem: &str) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.dir.join(format!("{stem}.png"))).ok()?;
        bytes.starts_with(b"\x89PNG\r\n\x1a\n").then_some(bytes)
    }

    fn starting_with(&self, prefix: &str) -> Vec<(Vec<u8>, String)> {
        self.names.iter().filter(|n| n.starts_with(prefix)).filter_map(|n| Some((self.read(n)?, caption(n)))).collect()
    }
}

/// A key that sorts `a2` before `a10`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - text);
        parts.push((rest[..text].to_owned(), rest[text..text + digits].parse().unwrap_or(0)));
        rest = &rest[text + digits..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_short_and_readable() {
        let shown: Vec<_> = [0.0, 44.0, 1_234_567.0, -1000.0, 0.012_341, 3.784_19, 123_456.7, 1e-9, 2.5e20, f64::NAN].map(number).into();
        assert_eq!(
            shown,
            ["0", "44", "1\u{202f}234\u{202f}567", "−1\u{202f}000", "0.01234", "3.784", "123457", "1.000e-9", "2.500e20", "–"]
        );
    }

    #[test]
    fn pictures_sort_by_number() {
        let mut names = vec!["restoration_10", "restoration_2", "restoration_2b", "a", "restoration_1"];
        names.sort_by_cached_key(|n| natural(n));
        assert_eq!(names, ["a", "restoration_1", "restoration_2", "restoration_2b", "restoration_10"]);
    }

    #[test]
    fn phases_follow_each_other_whether_they_count_on_or_anew() {
        let step = |phase: &str, step: u32| json!({"kind": "step", "phase": phase, "step": step, "loss": 1.0});
        for (again, end) in [([1, 2], 12.0), ([11, 12], 12.0)] {
            let records = [step("classification", 5), step("classification", 10), step("joint", again[0]), step("joint", again[1])];
            let phases = Phase::all(&records);
            assert_eq!((phases[1].begin, phases[1].end()), (10.0, Some(end)));
            assert_eq!(phases[1].points(&phases[1].steps, "loss")[0].0, 11.0);
        }
    }

    #[test]
    fn a_loss_that_was_not_finite_is_a_gap() {
        let records =
            [json!({"kind": "step", "phase": "joint", "step": 1, "loss": null}), json!({"kind": "step", "phase": "joint", "step": 2})];
        let phases = Phase::all(&records);
        let points = phases[0].points(&phases[0].steps, "loss");
        assert!(points.len() == 1 && points[0].1.is_nan());
    }

    #[test]
    fn captions_are_words() {
        assert_eq!((caption("restoration_epoch_3").as_str(), caption("").as_str()), ("Restoration epoch 3", ""));
    }
}
