//! `semgen bench`.

mod accept;
mod compare;
mod loader;
mod op;
mod peak;
mod step;
mod wgsl;

use std::path::Path;
use std::time::Duration;

use super::args::Common;
use super::text;
use crate::bench::measure::Rules;
use crate::bench::peak::Roof;
use crate::bench::probe;
use crate::bench::result::Document;
use crate::error::{Error, Result};
use crate::gpu::Context;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure what the adapter does at best: arithmetic, memory, latencies, transfers; kept as its roof
    Peak(peak::Args),
    /// Check and time operations, or a suite of them, against the roof
    Op(op::Args),
    /// Time one training step of a network, and its parts
    Step(step::Args),
    /// Time the cutting of cubes, against what a step consumes
    Loader(loader::Args),
    /// Run a WGSL file in place of one of our kernels: checked, and timed beside ours
    Wgsl(wgsl::Args),
    /// Measure everything that the engine is judged by, PyTorch beside it
    Accept(accept::Args),
    /// Compare two results: what became faster, what slower
    Compare(compare::Args),
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    match &a.what {
        What::Peak(a) => peak::run(common, a),
        What::Op(a) => op::run(common, a),
        What::Step(a) => step::run(common, a),
        What::Loader(a) => loader::run(common, a),
        What::Wgsl(a) => wgsl::run(common, a),
        What::Accept(a) => accept::run(common, a),
        What::Compare(a) => compare::run(common, a),
    }
}

/// The adapter's roof, measured now where none is kept.
fn roof(common: &Common, ctx: &Context, fresh: bool, quick: bool) -> Result<Roof> {
    let mut said = false;
    probe::known(ctx, fresh, quick, &mut |what| {
        if !said {
            said = true;
            text::note(common.json, &format!("measuring the roof of {}", ctx.caps().name));
        }
        text::note(common.json, &format!("  {what}"));
    })
}

/// Writes a result where `--json` says; whether that is the output.
fn write(document: &Document, path: Option<&Path>) -> Result<bool> {
    match path {
        None => Ok(false),
        Some(path) if path == Path::new("-") => {
            text::say_json(&serde_json::to_value(document).map_err(|e| Error::Failed(format!("the result is no JSON: {e}")))?);
            Ok(true)
        }
        Some(path) => document.write(path).map(|()| false),
    }
}

/// Rules for measurements of at most `limit` seconds each.
fn rules(limit: f64) -> Result<Rules> {
    match limit {
        s if s > 0.0 && s <= 3600.0 => Ok(Rules::within(Duration::from_secs_f64(s))),
        s => Err(Error::Usage(format!("--time-limit {s}: expected seconds above 0 and up to 3600"))),
    }
}

/// `1.23 ms` and the like.
pub(super) fn seconds(s: f64) -> String {
    let (value, unit) = match s {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s if s >= 1e-6 => (s * 1e6, "µs"),
        s => (s * 1e9, "ns"),
    };
    format!("{} {unit}", three(value))
}

/// Three digits or all before the point.
fn three(v: f64) -> String {
    match v {
        v if v >= 100.0 || v == 0.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v if v >= 0.01 => format!("{v:.3}"),
        v => format!("{v:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_short() {
        assert_eq!([2.5, 0.0123, 4.567e-5, 3e-9].map(seconds), ["2.50 s", "12.3 ms", "45.7 µs", "3.00 ns"]);
        assert_eq!([1234.5, 99.94, 1.0, 0.5, 0.00123, 0.0].map(three), ["1234", "99.9", "1.00", "0.500", "1.2e-3", "0"]);
    }
}
