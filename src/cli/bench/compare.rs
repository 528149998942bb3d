//! `semgen bench compare`.

use std::path::PathBuf;

use serde_json::json;

use super::super::args::Common;
use super::super::text;
use super::seconds;
use crate::bench::compare::{compare, regressed, summary, threshold};
use crate::bench::result::Document;
use crate::error::{Error, Result};

/// Options of `bench compare`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The result before
    #[arg(value_name = "A.json")]
    before: PathBuf,
    /// The result after
    #[arg(value_name = "B.json")]
    after: PathBuf,
    /// What counts as a change, as 3% or 0.03
    #[arg(long, value_name = "PART", default_value = "3%")]
    threshold: String,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let threshold = threshold(&a.threshold)?;
    let (before, after) = (Document::read(&a.before)?, Document::read(&a.after)?);
    let lines = compare(&before, &after, threshold);
    let (worse, said) = (regressed(&lines), summary(&lines));
    let differences = differences(&before, &after);
    if common.json {
        text::say_json(&json!({ "threshold": threshold, "regressed": worse, "summary": said, "differences": differences, "lines": lines }));
    } else {
        let rows: Vec<Vec<String>> = lines
            .iter()
            .map(|l| {
                let time = |s: Option<f64>| s.map_or_else(String::new, seconds);
                let speed = l.speed.map_or_else(String::new, |s| format!("{s:.3}×"));
                vec![l.what.clone(), l.variant.clone(), time(l.before), time(l.after), speed, l.verdict.word().to_owned()]
            })
            .collect();
        text::say(text::table(&["measurement", "variant", "before", "after", "speed", "verdict"], &rows));
        for d in &differences {
            text::say(format_args!("\nnote: {d}"));
        }
        text::say(format_args!("\n{said}"));
    }
    if worse { Err(Error::Failed(format!("{} is worse than {}: {said}", a.after.display(), a.before.display()))) } else { Ok(()) }
}

/// What differs between the environments.
fn differences(a: &Document, b: &Document) -> Vec<String> {
    let (a, b) = (&a.environment, &b.environment);
    let pairs = [
        ("engine", &a.engine, &b.engine),
        ("adapter", &a.adapter, &b.adapter),
        ("driver", &a.driver, &b.driver),
        ("processor", &a.cpu, &b.cpu),
    ];
    pairs.iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("another {what}: `{a}`, then `{b}`")).collect()
}
