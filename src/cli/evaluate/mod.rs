//! `semgen evaluate`: predictions against the truth.

mod classes;
mod detection;
mod maps;
mod tables;

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args::Common;
use super::text;
use crate::data::image;
use crate::error::{Error, Result};
use crate::files;

/// Options of `evaluate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What was predicted: a label map or a folder of them (NIfTI, `MetaImage`); a CSV table of probabilities (id and one column a
    /// class); or one of marks as LUNA16 has it (seriesuid, coordX, coordY, coordZ, probability)
    #[arg(value_name = "PREDICTIONS")]
    predictions: PathBuf,
    /// The truth: label maps of the same names (a word such as _labels or _seg at the end plays no role), or labelled scans as
    /// `semgen finetune segment` takes them; a CSV table with id and label, or id and one column of 0 and 1 a class; or LUNA16's
    /// annotations.csv
    #[arg(value_name = "TRUTH")]
    truth: PathBuf,
    /// Folder for cases.csv and summary.json
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Label maps: the recipe that the model was fine-tuned with, which says what the labels are called, which are merged and
    /// which play no role, as well as how the truth is laid out
    #[arg(long, value_name = "NAME|FILE.toml")]
    recipe: Option<String>,
    /// Tolerance of the surface Dice in mm
    #[arg(long, value_name = "MM", default_value_t = 1.0)]
    tolerance: f64,
    /// Evaluate the cases that have a prediction, although others have none
    #[arg(long)]
    partial: bool,
    /// Marks: findings that are neither right nor wrong (LUNA16's `annotations_excluded.csv`)
    #[arg(long, value_name = "FILE.csv")]
    excluded: Option<PathBuf>,
    /// Marks: the scans of the set, one a line (LUNA16's seriesuids.csv); without, those with a mark or a finding
    #[arg(long, value_name = "FILE.csv")]
    scans: Option<PathBuf>,
    /// Marks: where the candidates lie whose probabilities PREDICTIONS has by `seriesuid:row` (LUNA16's `candidates_V2.csv`)
    #[arg(long, value_name = "FILE.csv")]
    candidates: Option<PathBuf>,
}

/// What an evaluation found.
struct Evaluated {
    summary: Value,
    /// Heads of the columns of `cases.csv`, and its rows.
    head: Vec<String>,
    cases: Vec<Vec<String>>,
    /// What is shown.
    lines: Vec<String>,
    notes: Vec<String>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    if !(a.tolerance >= 0.0 && a.tolerance.is_finite()) {
        return Err(Error::Usage(format!("--tolerance {}: give millimetres, 0 or more", a.tolerance)));
    }
    let (table, truths) = (kind(&a.predictions)?, kind(&a.truth)?);
    // Label maps may have their truth named in a table.
    if table && !truths {
        return Err(Error::input(&a.truth, format!("holds label maps, but {} is a table", a.predictions.display())));
    }
    if table && a.recipe.is_some() {
        return Err(Error::Usage("--recipe is for label maps".into()));
    }
    let marks = table && detection::is_list(&a.truth)?;
    if !marks && (a.excluded.is_some() || a.scans.is_some() || a.candidates.is_some()) {
        return Err(Error::Usage("--excluded, --scans and --candidates are for marks and LUNA16's annotations.csv".into()));
    }
    let found = match (table, marks) {
        (_, true) => detection::evaluate(a)?,
        (true, false) => classes::evaluate(&a.predictions, &a.truth, a.partial)?,
        (false, false) => maps::evaluate(a, common.json)?,
    };
    found.notes.iter().for_each(|n| text::note(common.json, n));
    if let Some(out) = &a.out {
        files::create_dir(out)?;
        tables::write(&out.join("cases.csv"), &found.head, &found.cases)?;
        files::write_bytes(&out.join("summary.json"), format!("{:#}\n", found.summary).as_bytes())?;
    }
    if common.json {
        text::say_json(&found.summary);
    } else {
        found.lines.iter().for_each(text::say);
        if let Some(out) = &a.out {
            text::say(format_args!("files:   {} and {}", out.join("cases.csv").display(), out.join("summary.json").display()));
        }
    }
    Ok(())
}

/// Whether `path` is a table; otherwise it is label maps.
fn kind(path: &Path) -> Result<bool> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(path, "no such file or folder"),
        _ => Error::io("read", path)(e),
    })?;
    if meta.is_dir() || image::ending(path).is_some() {
        return Ok(false);
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
        return Ok(true);
    }
    Err(Error::input(path, format!("is neither a folder, nor a CSV table, nor a label map ({})", image::ENDINGS.join(", "))))
}

/// A number for people; a dash where there is none.
fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.4}"))
}

/// A number for a table's cell; empty where there is none.
fn cell(value: Option<f64>) -> String {
    value.map_or_else(String::new, |v| v.to_string())
}
