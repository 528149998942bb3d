//! `semgen doctor`.

use std::path::PathBuf;

use serde_json::json;

use super::args::Common;
use super::text;
use crate::doctor::{self, Part, table};
use crate::error::{Error, Result};

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Compare this network alone: a safetensors file with PyTorch's weights
    #[arg(long, value_name = "FILE", requires = "expected")]
    weights: Option<PathBuf>,
    /// The inputs, outputs and gradients that PyTorch computed with these weights
    #[arg(long, value_name = "FILE", requires = "weights")]
    expected: Option<PathBuf>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let ctx = common.context()?;
    let pair = a.weights.as_deref().zip(a.expected.as_deref());
    let mut part: Option<Part> = None;
    let summary = doctor::run(&ctx, pair, &mut |row| {
        if common.json {
            return;
        }
        if part != Some(row.part) {
            text::say(table::heading(row.part));
            part = Some(row.part);
        }
        text::say(table::line(&row));
    })?;
    let verdict = table::verdict(&summary);
    if common.json {
        text::say_json(&json!({ "adapter": ctx.caps(), "passed": summary.passed(), "rows": summary.rows, "ignored": summary.ignored }));
    } else {
        text::say(format_args!("\n{verdict}"));
    }
    if summary.passed() { Ok(()) } else { Err(Error::Failed(format!("{}: {verdict} Its results are not to be trusted", ctx.caps().name))) }
}
