//! What a user sees of a training: a bar, notes, pictures, and event files for `TensorBoard`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{previews, text};
use crate::config::Config;
use crate::error::Result;
use crate::files;
use crate::report::events::EventWriter;
use crate::report::progress::Progress;
use crate::train::phase::{Observer, Restored};

const AUTOENCODER: &str = "autoencoder";
const PREFIX: &str = "restoration_epoch_";

/// How many steps a phase takes at most.
#[derive(Clone, Copy)]
struct Bounds {
    per_epoch: u64,
    epochs: u64,
    /// Last step, counted as records count.
    last: Option<u64>,
}

/// Watches the phases of one run.
pub(super) struct Watch {
    run: PathBuf,
    json: bool,
    bounds: Vec<(&'static str, Bounds)>,
    phase: String,
    step: u64,
    progress: Option<Progress>,
    /// Events of the phase; `None` before the first record or after a failed write.
    events: Option<EventWriter>,
    events_failed: bool,
    shown: String,
    memory: BTreeMap<String, u64>,
}

impl Watch {
    /// Watches what goes on in the run directory `run`.
    pub(super) fn new(run: &Path, json: bool) -> Self {
        Self {
            run: run.to_path_buf(),
            json,
            bounds: Vec::new(),
            phase: String::new(),
            step: 0,
            progress: None,
            events: None,
            events_failed: false,
            shown: String::new(),
            memory: BTreeMap::new(),
        }
    }

    /// The most device memory that each phase of this call has used, in bytes.
    pub(super) fn memory(&self) -> &BTreeMap<String, u64> {
        &self.memory
    }

    /// Says how long the autoencoder can take with `scans` training scans.
    pub(super) fn expect_autoencoder(&mut self, config: &Config, scans: usize) {
        let a = &config.discover.autoencoder;
        let last = (a.max_steps > 0).then_some(a.max_steps as u64);
        let per_epoch = (scans / a.batch_size.max(1)).max(1) as u64;
        self.bounds.push((AUTOENCODER, Bounds { per_epoch, epochs: a.epochs as u64, last }));
    }

    /// Says how long both training phases can take with `per_epoch` batches.
    pub(super) fn expect_training(&mut self, config: &Config, per_epoch: usize) {
        let t = &config.train;
        let bound = (t.max_steps > 0).then_some(t.max_steps as u64);
        let per_epoch = per_epoch as u64;
        self.bounds.push(("classification", Bounds { per_epoch, epochs: t.classification_epochs as u64, last: bound.map(|b| b / 2) }));
        self.bounds.push(("joint", Bounds { per_epoch, epochs: t.epochs as u64, last: bound }));
    }

    /// Says how long a target task can take with `samples` training samples an epoch.
    pub(super) fn expect_task(&mut self, word: &'static str, config: &Config, samples: usize) {
        let t = &config.train;
        let last = (t.max_steps > 0).then_some(t.max_steps as u64);
        let per_epoch = (samples / t.batch_size.max(1)).max(1) as u64;
        self.bounds.push((word, Bounds { per_epoch, epochs: t.epochs as u64, last }));
    }

    /// Ends what is shown.
    pub(super) fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish(&format!("{} steps{}{}", self.step, if self.shown.is_empty() { "" } else { ", " }, self.shown));
        }
        self.events = None;
    }

    fn enter(&mut self, phase: &str, step: u64, epoch: u64) {
        self.finish();
        phase.clone_into(&mut self.phase);
        self.shown.clear();
        let total = self.bounds.iter().find(|(name, _)| *name == phase).map_or(0, |(_, b)| {
            let by_epochs = (step - 1).saturating_add(b.epochs.saturating_sub(epoch).saturating_mul(b.per_epoch));
            b.last.unwrap_or(u64::MAX).min(by_epochs)
        });
        self.progress = Some(Progress::new(phase, total, self.json));
        if !self.events_failed {
            let opened = self.open_events(step);
            self.keep(opened);
        }
    }

    /// The autoencoder counts its own steps, so its events have a folder of their own.
    fn open_events(&mut self, step: u64) -> Result<()> {
        let dir = if self.phase == AUTOENCODER { self.run.join("discover").join(AUTOENCODER) } else { self.run.clone() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let events = self.events.insert(EventWriter::create(&dir, now, "")?);
        if step > 1 { events.resumed_at(step) } else { Ok(()) }
    }

    /// A lost event file is no reason to lose a training.
    fn keep(&mut self, written: Result<()>) {
        if let Err(e) = written {
            self.events = None;
            self.events_failed = true;
            self.note(&format!("no TensorBoard events from here on: {e}"));
        }
    }

    fn write_events(&mut self, record: &Value) {
        let Some(events) = &mut self.events else { return };
        let fields = record.as_object().into_iter().flatten().filter(|(name, _)| !["step", "epoch"].contains(&name.as_str()));
        let numbers = fields.filter_map(|(name, value)| Some((name, value.as_f64()?)));
        let mut written = Ok(());
        for (name, value) in numbers {
            #[expect(clippy::cast_possible_truncation, reason = "the format holds f32")]
            let point = events.scalar(self.step, &format!("{}/{name}", self.phase), value as f32);
            written = written.and(point);
        }
        self.keep(written);
    }

    fn write_picture(&self, epoch: u32, png: &[u8]) -> Result<()> {
        let folder = self.run.join("previews");
        files::create_dir(&folder)?;
        if self.phase == AUTOENCODER {
            return files::write_bytes(&folder.join("autoencoder.png"), png);
        }
        files::write_bytes(&folder.join(format!("{PREFIX}{epoch}.png")), png)?;
        // Of many epochs a few are kept, and the last.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number: Option<u32> = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".png")?.parse().ok());
            if number.is_some_and(|n| n > epoch || n < epoch && !milestone(n)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// 1, 2, 5, 10, 20, 50, 100 and so on.
fn milestone(mut n: u32) -> bool {
    while n >= 10 && n.is_multiple_of(10) {
        n /= 10;
    }
    matches!(n, 1 | 2 | 5)
}

fn number(record: &Value, name: &str) -> Option<f64> {
    record.get(name)?.as_f64()
}

/// The loss scale of mixed precision, in words, once it has made a step be left out.
fn scaling_words(record: &Value) -> String {
    match (number(record, "loss_scale"), number(record, "skipped")) {
        (Some(scale), Some(skipped)) if skipped > 0.0 => format!(", loss scale {scale} ({skipped} skipped)"),
        _ => String::new(),
    }
}

/// What an epoch came to, in words.
fn epoch_line(record: &Value) -> String {
    let mut parts = vec![format!("{} epoch {}", record["phase"].as_str().unwrap_or_default(), record["epoch"].as_u64().unwrap_or(0) + 1)];
    if let Some(v) = number(record, "val_loss") {
        parts.push(format!("validation loss {v:.5}"));
    }
    if let (Some(r), Some(i)) = (number(record, "val_loss_rec"), number(record, "identity_error").filter(|&i| i > 0.0)) {
        parts.push(format!("restoration error {r:.5} (input {i:.5})"));
    }
    for name in ["dice", "auc"] {
        if let Some(v) = number(record, &format!("val_{name}")) {
            parts.push(format!("{name} {v:.4}"));
        }
    }
    if let Some(a) = number(record, "val_accuracy") {
        parts.push(format!("accuracy {:.1} %", 100.0 * a));
    }
    parts.join(", ")
}

impl Observer for Watch {
    fn record(&mut self, record: &Value) {
        let phase = record["phase"].as_str().unwrap_or_default().to_owned();
        let (step, epoch) = (record["step"].as_u64().unwrap_or(0), record["epoch"].as_u64().unwrap_or(0));
        if phase != self.phase || self.progress.is_none() {
            self.enter(&phase, step.max(1), epoch);
        }
        self.step = step;
        self.write_events(record);
        if record["kind"] == "epoch" {
            self.shown = number(record, "val_loss").map_or(String::new(), |v| format!("validation loss {v:.5}"));
            self.note(&epoch_line(record));
        } else if let Some(progress) = &mut self.progress {
            let loss = number(record, "loss").unwrap_or(f64::NAN);
            let speed = number(record, "cubes_per_s").map_or(String::new(), |s| format!(", {s:.1} cubes/s"));
            progress.set(step, &format!("loss {loss:.5}{speed}{}", scaling_words(record)));
        }
    }

    fn restorations(&mut self, epoch: u32, size: [usize; 3], rows: &[Restored]) -> Result<()> {
        let title = if self.phase == AUTOENCODER { "Autoencoder" } else { "Restoration" };
        let sheet = previews::restorations(&format!("{title}, epoch {epoch}"), size, rows)?.draw();
        let png = sheet.encode()?;
        self.write_picture(epoch, &png)?;
        if let Some(events) = &mut self.events {
            let written = events.image(self.step, &format!("{}/restorations", self.phase), &png, sheet.width, sheet.height);
            self.keep(written);
        }
        Ok(())
    }

    fn memory(&mut self, phase: &str, bytes: u64) {
        self.memory.insert(phase.to_owned(), bytes);
    }

    fn note(&mut self, text: &str) {
        match &mut self.progress {
            Some(progress) => progress.note(text),
            None => text::note(self.json, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn milestones_are_few() {
        let kept: Vec<u32> = (1..=1000).filter(|&n| milestone(n)).collect();
        assert_eq!(kept, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]);
    }

    #[test]
    fn skipped_steps_are_shown_and_only_they() {
        assert_eq!(scaling_words(&json!({"loss": 1.0})), "");
        assert_eq!(scaling_words(&json!({"loss_scale": 65536.0, "skipped": 0})), "");
        assert_eq!(scaling_words(&json!({"loss_scale": 32768.0, "skipped": 1})), ", loss scale 32768 (1 skipped)");
    }

    #[test]
    fn of_many_pictures_a_few_and_the_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path(), true);
        watch.phase = "joint".into();
        // A picture of a later epoch, as a killed run leaves it.
        std::fs::create_dir(dir.path().join("previews")).unwrap();
        std::fs::write(dir.path().join("previews/restoration_epoch_30.png"), b"").unwrap();
        for epoch in 1..=13 {
            watch.write_picture(epoch, b"").unwrap();
        }
        let entries = std::fs::read_dir(dir.path().join("previews")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, [1, 10, 13, 2, 5].map(|n| format!("restoration_epoch_{n}.png")));
    }

    #[test]
    fn records_become_events_beside_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path(), true);
        let step = |phase: &str, step: u64| json!({"kind": "step", "phase": phase, "step": step, "epoch": 0, "loss": 0.5});
        watch.record(&step("autoencoder", 1));
        watch.record(&step("classification", 1));
        watch.record(&json!({"kind": "epoch", "phase": "classification", "epoch": 0, "step": 1, "val_loss": 2.0, "val_accuracy": 0.25}));
        watch.finish();
        let has = |folder: &Path, tag: &[u8]| {
            let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
            files.map(|p| std::fs::read(p).unwrap()).any(|b| b.windows(tag.len()).any(|w| w == tag))
        };
        assert!(has(&dir.path().join("discover/autoencoder"), b"autoencoder/loss"));
        assert!(has(dir.path(), b"classification/val_accuracy") && !has(dir.path(), b"autoencoder/loss"));
    }
}
