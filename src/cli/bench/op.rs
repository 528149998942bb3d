//! `semgen bench op`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::args::{Common, triple};
use super::super::text;
use super::{roof, seconds, three, write};
use crate::bench::catalogue::{self, KINDS, Options};
use crate::bench::measure::Rules;
use crate::bench::page;
use crate::bench::result::{Document, Environment, Row};
use crate::bench::shape;
use crate::bench::suite::{self, Job, NAMES, Scale, Which};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dtype};

/// Options of `bench op`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Operation; --list names them all
    #[arg(value_name = "OP", required_unless_present_any = ["suite", "list"])]
    op: Option<String>,
    /// Sizes, as N,CI,CO,D,H,W for convolutions; a field may be alternatives 8|16, a range 8..64 (doubling), 8..64*4,
    /// 8..20+4, or = for the field before; may be repeated
    #[arg(long, value_name = "SIZES", required_unless_present_any = ["suite", "list"], conflicts_with = "suite")]
    shape: Vec<String>,
    /// Kernel or window, one number or three [default: 3, of transposed convolutions and pools 2]
    #[arg(long, value_name = "D,H,W", conflicts_with = "suite")]
    kernel: Option<String>,
    /// Stride, one number or three [default: 1, of transposed convolutions 2, of pools the window]
    #[arg(long, value_name = "D,H,W", conflicts_with = "suite")]
    stride: Option<String>,
    /// Padding, one number or three [default: half the kernel, of transposed convolutions and pools 0]
    #[arg(long, value_name = "D,H,W", conflicts_with = "suite")]
    padding: Option<String>,
    /// Pass: forward, input-grad, weight-grad, grad, step or all
    #[arg(long, default_value = "all")]
    pass: String,
    /// Implementation: a name, or all [default: the one that is used]
    #[arg(long)]
    variant: Option<String>,
    /// Storage of activations: f32 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: Dtype,
    /// Time a suite: ynet3d, unet3d, knn, transforms, or a TOML or JSON file of shapes
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "op")]
    suite: Option<String>,
    /// Channels of the first convolution of a suite's network
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    base: u16,
    /// Samples of a suite's batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Voxels of a suite's cube
    #[arg(long, value_name = "X,Y,Z", default_value = "64,64,32", value_parser = triple::<usize>)]
    cube: [usize; 3],
    /// Time what the planner makes of a suite's network on this adapter, not each of its layers by itself
    #[arg(long, requires = "suite")]
    fused: bool,
    /// Seconds for each measurement [default: 3]
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<f64>,
    /// Rough numbers soon
    #[arg(long, conflicts_with = "time_limit")]
    quick: bool,
    /// Measure the roof again, whatever is kept
    #[arg(long)]
    fresh: bool,
    /// Write the result to a file, - for the output
    #[arg(id = "json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file: Option<PathBuf>,
    /// Write a page with the roofline and a table of layers
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// List the operations with their shapes and passes
    #[arg(long)]
    list: bool,
}

fn dtype(text: &str) -> std::result::Result<Dtype, String> {
    match text {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        _ => Err("expected f32 or f16".to_owned()),
    }
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    if a.list {
        let rows: Vec<Vec<String>> =
            KINDS.iter().map(|k| vec![k.name.to_owned(), k.fields.to_owned(), k.passes.join(" "), k.what.to_owned()]).collect();
        text::say(text::table(&["operation", "shape", "passes", ""], &rows));
        return Ok(());
    }
    let rules = rules(a)?;
    let ctx = common.context()?;
    let jobs = jobs(ctx.caps(), a)?;
    suite::check(ctx.caps(), &jobs)?;
    let roof = roof(common, &ctx, a.fresh, a.quick)?;
    let mut document = Document::new(Environment::here(ctx.caps()), Some(roof.clone()));
    let to_output = a.file.as_deref() == Some(Path::new("-"));
    let watched = !to_output && jobs.len() > 8;
    suite::run(&ctx, &jobs, &rules, Some(&roof), &mut document, &mut |row, i, n| {
        if watched {
            let time = row.time().map_or_else(|| "no number".to_owned(), |t| seconds(t.median));
            text::note(false, &format!("{i}/{n} {} {} {} {}: {time}", row.op, row.pass, row.shape, row.variant));
        }
    })?;
    if !write(&document, a.file.as_deref())? {
        text::say(table(&document));
        text::say(format_args!("\n{}", summary(&document)));
    }
    if let Some(path) = &a.html {
        page::write(&document, &title(a), path)?;
    }
    let wrong: Vec<String> =
        document.wrong().map(|r| format!("{} {} {} {}: {}", r.op, r.pass, r.shape, r.variant, r.failure().unwrap_or_default())).collect();
    match wrong.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(Error::Failed(format!("{} of {} kernels gave wrong results, first {first}", wrong.len(), document.rows.len()))),
    }
}

fn title(a: &Args) -> String {
    match (&a.suite, &a.op) {
        (Some(s), _) if matches!(s.as_str(), "ynet3d" | "unet3d") => {
            format!("{s}, base {}, batch {}, {}", a.base, a.batch, text::by(&a.cube))
        }
        (Some(s), _) => s.clone(),
        (None, op) => format!("{} {}", op.clone().unwrap_or_default(), a.shape.join(" ")),
    }
}

fn rules(a: &Args) -> Result<Rules> {
    match a.time_limit {
        _ if a.quick => Ok(Rules::quick()),
        None => Ok(Rules::default()),
        Some(s) if s > 0.0 && s <= 3600.0 => Ok(Rules::within(Duration::from_secs_f64(s))),
        Some(s) => Err(Error::Usage(format!("--time-limit {s}: expected seconds above 0 and up to 3600"))),
    }
}

fn jobs(caps: &Caps, a: &Args) -> Result<Vec<Job>> {
    let which = Which::parse(a.variant.as_deref());
    if let Some(suite) = &a.suite {
        let path = Path::new(suite);
        let scale = Scale { base: a.base.into(), batch: a.batch.into(), cube: a.cube, fused: a.fused };
        let is_file = path.extension().is_some_and(|e| e == "toml" || e == "json") || path.is_file();
        let mut jobs = match NAMES.contains(&suite.as_str()) || !is_file {
            true => suite::named(caps, suite, scale, &which, a.dtype)?,
            false => suite::file(path, &which, a.dtype)?,
        };
        suite::only(&mut jobs, &a.pass);
        return Ok(jobs);
    }
    let triple = |name: &str, text: &Option<String>, least| text.as_ref().map(|t| shape::triple(name, t, least)).transpose();
    let options = Options {
        kernel: triple("kernel", &a.kernel, 1)?,
        stride: triple("stride", &a.stride, 1)?,
        padding: triple("padding", &a.padding, 0)?,
        dtype: a.dtype,
    };
    let op = a.op.as_deref().unwrap_or_default();
    let mut jobs = Vec::new();
    for text in &a.shape {
        for (kind, pass, n) in catalogue::requests(op, text, &a.pass)? {
            jobs.push(Job::of_kind(&which, kind, pass, n, options.clone()));
        }
    }
    Ok(jobs)
}

/// All rows, aligned; a column that says nothing is left out.
fn table(document: &Document) -> String {
    let layers = document.rows.iter().any(|r| !r.layer.is_empty());
    let head =
        ["layer", "op", "pass", "shape", "variant", "device", "wall", "±", "n", "GFLOP/s", "GB/s", "FLOP/B", "roof", "bound", "check", ""];
    let first = usize::from(!layers);
    let rows: Vec<Vec<String>> = document.rows.iter().map(|r| cells(r)[first..].to_vec()).collect();
    text::table(&head[first..], &rows)
}

fn cells(r: &Row) -> Vec<String> {
    let none = || String::new();
    let number = |v: Option<f64>| v.map_or_else(none, three);
    let check = match (&r.check, &r.skipped) {
        (_, Some(_)) => "skipped".to_owned(),
        (Some(c), _) if c.failure.is_some() => "WRONG".to_owned(),
        (Some(c), _) => c.error.map_or_else(none, |e| if e == 0.0 { "exact".to_owned() } else { format!("{e:.0e}") }),
        (None, None) => none(),
    };
    let said = r.failure().or(r.skipped.as_deref()).map_or_else(|| r.flags.join(", "), str::to_owned);
    let f16 = if r.dtype == "f32" { String::new() } else { format!(" {}", r.dtype) };
    vec![
        r.layer.clone(),
        r.op.clone(),
        r.pass.clone(),
        r.shape.clone(),
        format!("{}{f16}", r.variant),
        r.device_s.map_or_else(none, |t| seconds(t.median)),
        r.wall_s.map_or_else(none, |t| seconds(t.median)),
        r.time().map_or_else(none, |t| format!("{:.1}%", 100.0 * t.noise())),
        r.time().map_or_else(none, |t| t.count.to_string()),
        number(r.gflop_s),
        number(r.gb_s),
        three(r.intensity),
        r.roof_percent.map_or_else(none, |p| format!("{p:.0}%")),
        r.bound.map_or_else(none, |b| b.word().to_owned()),
        check,
        said,
    ]
}

/// What it comes to, in a sentence.
fn summary(document: &Document) -> String {
    let total: f64 = document.rows.iter().filter_map(|r| r.time().map(|t| t.median)).sum();
    let flops: u64 = document.rows.iter().filter(|r| r.time().is_some()).map(|r| r.flops).sum();
    let at_roof: f64 = document.rows.iter().filter_map(|r| r.roof_s).sum();
    let (wrong, skipped) = (document.wrong().count(), document.rows.iter().filter(|r| r.skipped.is_some()).count());
    let mut out = format!(
        "{} measurements on {}: {} together, {} GFLOP/s, {:.0}% of the roof",
        document.rows.len() - wrong - skipped,
        document.environment.adapter,
        seconds(total),
        three(flops as f64 / total.max(1e-12) / 1e9),
        100.0 * at_roof / total.max(1e-12)
    );
    if wrong > 0 {
        out += &format!("; {wrong} WRONG");
    }
    if skipped > 0 {
        out += &format!("; {skipped} skipped");
    }
    out
}
