//! What a pretraining run came to: `summary.json`, the report page, and the last lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::text;
use crate::config::Config;
use crate::error::Result;
use crate::files;
use crate::report::pretraining_report;
use crate::train::log;
use crate::train::phase::{State, Validation};
use crate::train::pretrain::read_checkpoint;

/// Results of a finished run.
pub(super) struct Outcome {
    run: PathBuf,
    /// What was learnt from.
    learnt: Card,
    /// Pseudo labels; `None` where restoration alone was learnt.
    classes: Option<usize>,
    steps: u64,
    /// Epoch and validation of the best weights.
    best: (u32, Validation),
    wall: Duration,
    /// Seconds of all training steps, those before a resumption included.
    training_seconds: f64,
    /// Most device memory in use at once during this call.
    peak_bytes: u64,
    /// Last loss scale and steps left out in both phases, in mixed precision.
    scaling: Option<(f64, u64)>,
    /// The same for each phase of this call.
    phase_bytes: BTreeMap<String, u64>,
}

/// A key number: name, value in words, remark, value for machines.
pub(super) type Card = (&'static str, String, String, Value);

impl Outcome {
    /// Collects the results from the files of `run`.
    pub(super) fn new(
        run: &Path,
        config: &Config,
        learnt: Card,
        state: &State,
        wall: Duration,
        (peak_bytes, phase_bytes): (u64, BTreeMap<String, u64>),
    ) -> Result<Self> {
        let (best, ..) = read_checkpoint(&run.join("checkpoints/best.safetensors"))?;
        let records = log::read(&run.join("metrics.jsonl"))?;
        let batch = config.train.batch_size as f64;
        let training_seconds = records.iter().filter_map(|r| r["cubes_per_s"].as_f64()).map(|speed| batch / speed.max(1e-9)).sum();
        Ok(Self {
            run: run.to_path_buf(),
            learnt,
            classes: (config.loss.classification > 0.0).then_some(config.model.classes),
            steps: state.step,
            best: (best.epoch, best.validation.unwrap_or_default()),
            wall,
            training_seconds,
            peak_bytes,
            scaling: scaling(&records),
            phase_bytes,
        })
    }

    /// The run directory.
    pub(super) fn run(&self) -> &Path {
        &self.run
    }

    fn cards(&self) -> Vec<Card> {
        let (epoch, v) = (&self.best.0, &self.best.1);
        let less = 100.0 * (1.0 - v.restoration / v.identity);
        let restored = match less {
            l if !l.is_finite() => String::new(),
            l if l >= 0.0 => format!("{l:.0} % below the distorted input's {:.5}", v.identity),
            l => format!("{:.0} % above the distorted input's {:.5}", -l, v.identity),
        };
        let accuracy = self.classes.map(|classes| {
            let chance = 100.0 / classes as f64;
            let note = format!("of {classes} labels; guessing finds {chance:.1} %");
            ("Validation accuracy", format!("{:.1} %", 100.0 * v.accuracy), note, json!(v.accuracy))
        });
        let mut cards: Vec<Card> = accuracy.into_iter().collect();
        cards.extend([
            ("Restoration error (MSE)", format!("{:.5}", v.restoration), restored, json!(v.restoration)),
            ("Best validation loss", format!("{:.5}", v.loss), format!("epoch {epoch} of the joint phase"), json!(v.loss)),
            ("Optimiser steps", self.steps.to_string(), "both phases".into(), json!(self.steps)),
            self.learnt.clone(),
            (
                "Training time",
                seconds(self.training_seconds),
                format!("this call: {}", seconds(self.wall.as_secs_f64())),
                json!(self.training_seconds),
            ),
            ("Device memory", text::bytes(self.peak_bytes), "most in use at once".into(), json!(self.peak_bytes)),
        ]);
        if let Some((scale, skipped)) = self.scaling {
            let note = format!("mixed precision; the loss scale ended at {scale}");
            cards.push(("Skipped steps", skipped.to_string(), note, json!(skipped)));
        }
        cards
    }

    /// Writes `summary.json`, with `more` key numbers first.
    pub(super) fn write_summary(&self, more: &[Card]) -> Result<()> {
        let own = self.cards();
        let entries: Map<String, Value> = (more.iter().chain(&own))
            .map(|(name, value, note, number)| ((*name).to_owned(), json!({ "value": value, "note": note, "number": number })))
            .collect();
        files::write_bytes(&self.run.join("summary.json"), format!("{:#}\n", Value::Object(entries)).as_bytes())
    }

    /// Writes the report page from the files of the run.
    pub(super) fn report(&self, title: &str, path: &Path) -> Result<()> {
        pretraining_report(&self.run, title)?.write(path)
    }

    /// The results for machines.
    pub(super) fn json(&self) -> Value {
        let v = &self.best.1;
        json!({
            "run": self.run.to_string_lossy(), "weights": self.weights().to_string_lossy(), "steps": self.steps, "classes": self.classes,
            "best_epoch": self.best.0, "validation_loss": v.loss, "validation_accuracy": self.classes.map(|_| v.accuracy), "chance": self.classes.map(|n| 1.0 / n as f64),
            "restoration_error": v.restoration, "identity_error": v.identity, "training_seconds": self.training_seconds,
            "device_bytes_peak": self.peak_bytes, "device_bytes_by_phase": self.phase_bytes, "wall_seconds": self.wall.as_secs_f64(), "report": self.run.join("report.html").to_string_lossy(),
        })
    }

    /// The results in a few lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .cards()
            .into_iter()
            .map(|(name, value, note, _)| if note.is_empty() { format!("{name}: {value}") } else { format!("{name}: {value} ({note})") })
            .collect();
        lines.push(format!("weights: {}", self.weights().display()));
        lines
    }

    fn weights(&self) -> PathBuf {
        self.run.join("checkpoints").join("best.safetensors")
    }
}

/// The last loss scale, and the steps left out over all phases; `None` when there was no loss scale.
fn scaling(records: &[Value]) -> Option<(f64, u64)> {
    let scale = records.iter().rev().find_map(|r| r["loss_scale"].as_f64())?;
    let mut skipped: Vec<(&str, u64)> = Vec::new();
    for r in records {
        let (Some(phase), Some(n)) = (r["phase"].as_str(), r["skipped"].as_u64()) else { continue };
        match skipped.iter_mut().find(|s| s.0 == phase) {
            Some(s) => s.1 = n,
            None => skipped.push((phase, n)),
        }
    }
    Some((scale, skipped.iter().map(|s| s.1).sum()))
}

fn seconds(s: f64) -> String {
    match s {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_steps_are_added_up_over_phases() {
        let step = |phase: &str, scale: f64, skipped: u64| json!({"phase": phase, "loss_scale": scale, "skipped": skipped});
        assert_eq!(scaling(&[json!({"phase": "joint", "loss": 1.0})]), None);
        let records = [
            step("classification", 65_536.0, 0),
            step("classification", 65_536.0, 1),
            step("joint", 65_536.0, 1),
            step("joint", 32_768.0, 2),
        ];
        assert_eq!(scaling(&records), Some((32_768.0, 3)));
    }
}
