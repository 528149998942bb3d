//! `semgen bench`.

mod loader;
mod step;
mod wgsl;

use std::path::Path;

pub(super) use super::tune::seconds;

use super::args::Common;
use super::text;
use crate::bench::result::Document;
use crate::error::{Error, Result};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Time one training step and its parts
    Step(step::Args),
    /// Time the cutting of cubes, against what a step consumes
    Loader(loader::Args),
    /// Run a WGSL file in place of one of our kernels: checked, and timed beside ours
    Wgsl(wgsl::Args),
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    match &a.what {
        What::Step(a) => step::run(common, a),
        What::Loader(a) => loader::run(common, a),
        What::Wgsl(a) => wgsl::run(common, a),
    }
}

/// Writes the document where it is asked for, and shows the result.
fn finish(common: &Common, document: &Document, file: Option<&Path>, show: impl FnOnce()) -> Result<()> {
    if let Some(file) = file {
        document.write(file)?;
    }
    if common.json {
        text::say_json(&serde_json::to_value(document).map_err(|e| Error::Failed(e.to_string()))?);
    } else {
        show();
    }
    Ok(())
}

/// A time with three digits and its unit.
fn micro(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}
