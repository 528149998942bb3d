//! `semgen bench peak`.

use std::path::PathBuf;

use super::super::args::Common;
use super::super::text;
use super::{roof, seconds, three, write};
use crate::bench::peak::{Level, Roof};
use crate::bench::result::{Document, Environment};
use crate::error::Result;

/// Options of `bench peak`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Measure again, whatever is kept
    #[arg(long)]
    fresh: bool,
    /// Rough numbers soon; they are not kept
    #[arg(long)]
    quick: bool,
    /// Write the result to a file, - for the output
    #[arg(id = "json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file: Option<PathBuf>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let ctx = common.context()?;
    let roof = roof(common, &ctx, a.fresh || a.quick, a.quick)?;
    let document = Document::new(Environment::here(ctx.caps()), Some(roof.clone()));
    if write(&document, a.file.as_deref())? {
        return Ok(());
    }
    text::say(format_args!("{} ({}, {})\n", roof.adapter, roof.backend, roof.driver));
    text::say(text::table(&["", "measured", ""], &rates(&roof)));
    text::say(format_args!("\n{}", text::table(&["working set", "copy GB/s", "read GB/s", "write GB/s"], &levels(&roof))));
    if let Some(path) = Roof::path(ctx.caps()).filter(|p| p.is_file() && !a.quick) {
        text::say(format_args!("\nkept in {}; measure again with --fresh", path.display()));
    }
    Ok(())
}

fn rates(r: &Roof) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<f64>, unit: &str| {
        let (value, unit) = value.map_or(("–".to_owned(), "not on this adapter"), |v| (three(v), unit));
        rows.push(vec![name.to_owned(), value, unit.to_owned()]);
    };
    row("multiply-adds, f32", Some(r.f32_gflop_s), "GFLOP/s");
    row("multiply-adds, f16", r.f16_gflop_s, "GFLOP/s");
    row("cooperative matrices, f16 with f32 sums", r.cooperative_gflop_s, "GFLOP/s");
    row("workgroup memory, read", Some(r.workgroup_gb_s), "GB/s");
    row("upload", Some(r.upload_gb_s), "GB/s");
    row("readback", Some(r.readback_gb_s), "GB/s");
    for (name, s) in [("dispatch that depends on the one before", r.dispatch_s), ("submission, until done", r.submit_s)] {
        let (value, unit) = seconds(s).split_once(' ').map(|(v, u)| (v.to_owned(), u.to_owned())).unwrap_or_default();
        rows.push(vec![name.to_owned(), value, unit]);
    }
    rows
}

fn levels(r: &Roof) -> Vec<Vec<String>> {
    let mut sizes: Vec<u64> = r.copy.iter().chain(&r.read).chain(&r.write).map(|l| l.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let of = |levels: &[Level], bytes: u64| levels.iter().find(|l| l.bytes == bytes).map_or_else(|| "–".to_owned(), |l| three(l.gb_s));
    sizes.into_iter().map(|b| vec![text::bytes(b), of(&r.copy, b), of(&r.read, b), of(&r.write, b)]).collect()
}
