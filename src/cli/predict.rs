//! `semgen predict`.

mod classify;
mod probabilities;
mod segment;

pub(super) use classify::{is_array, stem};

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::args::Common;
use super::scans::Failures;
use super::text;
use crate::config::Flip;
use crate::error::{Error, Result};
use crate::task::Kind;
use crate::task::predict::{self, Predictor};

/// Options of `predict`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Fine-tuned model: a run of `finetune`, or its checkpoints/best.safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Scans, or folders of scans; a classifier of whole scans also takes arrays of cubes (.npy)
    #[arg(value_name = "SCAN", required = true)]
    scans: Vec<PathBuf>,
    /// Folder for the answers; it must be new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of a window that the next one covers again
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    overlap: f64,
    /// Also look at each window reversed along these axes, and take the mean: none, x, xy or xyz
    #[arg(long, value_name = "AXES", default_value = "none", value_parser = flips)]
    flips: Flip,
    /// Segmentation: also write the probabilities
    #[arg(long)]
    probabilities: bool,
    /// Segmentation: also write a picture of each scan with its labels laid over it
    #[arg(long)]
    preview: bool,
    /// Classification of places: a table of them as LUNA16 has it (seriesuid,coordX,coordY,coordZ; millimetres left, posterior,
    /// superior)
    #[arg(long, value_name = "FILE.csv")]
    points: Option<PathBuf>,
    /// Report a scan that cannot be used and go on; the exit status tells in the end
    #[arg(long)]
    keep_going: bool,
}

fn flips(text: &str) -> std::result::Result<Flip, String> {
    let all = [Flip::None, Flip::X, Flip::Xy, Flip::Xyz];
    all.into_iter().find(|f| f.word() == text).ok_or_else(|| "expected none, x, xy or xyz".to_owned())
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let begun = Instant::now();
    let (task, weights) = predict::load(&a.model)?;
    let places = predict::about_places(&task);
    let wrong = |what: &str| Err(Error::Usage(format!("{what}: {} {}", a.model.display(), says(&task))));
    match (&a.points, places) {
        (Some(_), false) => return wrong("--points does not apply"),
        (None, true) => return wrong("--points FILE.csv is missing"),
        _ => {}
    }
    if task.kind == Kind::Classify && (a.probabilities || a.preview) {
        return wrong("--probabilities and --preview do not apply");
    }
    let ctx = common.context()?;
    let predictor = Predictor::new(&ctx, &task, &weights, a.overlap, a.flips)?;
    let mut failures = Failures::new(a.keep_going);
    let answers = match task.kind {
        Kind::Segment => segment::run(&predictor, a, common.json, &mut failures)?,
        Kind::Classify => classify::run(&predictor, a, common.json, &mut failures)?,
    };
    if common.json {
        text::say_json(&json!({
            "task": task.kind.word(), "classes": task.classes, "out": a.out.to_string_lossy(), "answers": answers.json,
            "failed": failures.json(), "seconds": begun.elapsed().as_secs_f64(), "device_bytes_peak": ctx.memory().1,
        }));
    } else {
        answers.lines.iter().for_each(text::say);
    }
    failures.end()
}

/// What a model is for, in words.
fn says(task: &crate::task::Description) -> &'static str {
    match (task.kind, predict::about_places(task)) {
        (Kind::Segment, _) => "segments scans",
        (Kind::Classify, true) => "classifies places in scans",
        (Kind::Classify, false) => "classifies whole scans",
    }
}

/// What was answered.
struct Answers {
    json: serde_json::Value,
    lines: Vec<String>,
}
