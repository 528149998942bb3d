//! `semgen bench step`.

use std::path::PathBuf;

use super::super::args::{Common, triple};
use super::super::text;
use super::{roof, rules, seconds, write};
use crate::bench::measure::Rules;
use crate::bench::page;
use crate::bench::result::{Document, Environment, Row};
use crate::bench::step::{self, Detail, Model, Report, Setup};
use crate::config::{Precision, Preset};
use crate::error::{Error, Result};

/// Options of `bench step`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Network: ynet, unet, classifier, autoencoder
    #[arg(long, value_name = "NAME", default_value = "ynet")]
    model: String,
    /// Cubes in a step
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Size of a cube
    #[arg(long, value_name = "X,Y,Z", default_value = "64,64,32", value_parser = triple::<usize>)]
    cube: [usize; 3],
    /// Channels of the first convolution
    #[arg(long, value_name = "N", default_value_t = 32)]
    base: usize,
    /// Classes
    #[arg(long, value_name = "N", default_value_t = 44)]
    classes: usize,
    /// Storage of activations and their gradients: f32 or mixed
    #[arg(long, value_name = "KIND", default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// List every operation of the network with its time on the device
    #[arg(long)]
    layers: bool,
    /// Seconds for each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    time_limit: f64,
    /// Write the result to a file, - for the output
    #[arg(id = "json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file: Option<PathBuf>,
    /// Write a page with the roofline and a table of layers
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn precision(text: &str) -> std::result::Result<Precision, String> {
    [Precision::F32, Precision::Mixed].into_iter().find(|p| p.word() == text).ok_or_else(|| "expected f32 or mixed".to_owned())
}

impl Args {
    pub(super) fn setup(&self) -> Result<Setup> {
        if self.batch == 0 || self.base == 0 || self.classes < 2 || self.cube.iter().any(|&s| s == 0 || s % 8 != 0) {
            return Err(Error::Usage(format!(
                "a step of --batch {}, --base {}, --classes {} and --cube {:?} is not possible; cubes are multiples of 8, classes at least 2",
                self.batch, self.base, self.classes, self.cube
            )));
        }
        Ok(Setup {
            model: Model::parse(&self.model)?,
            batch: self.batch,
            cube: self.cube,
            base: self.base,
            classes: self.classes,
            preset: Preset::Paper,
            precision: self.precision,
        })
    }
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let (setup, rules) = (a.setup()?, rules(a.time_limit)?);
    let ctx = common.context()?;
    ctx.choose(crate::plan::tuning::choices_for(ctx.caps()));
    let roof = roof(common, &ctx, false, false)?;
    let report =
        step::measure(&ctx, &setup, &Rules { least: 3, ..rules }, Some(&roof), if a.layers { Detail::Layers } else { Detail::Parts })?;
    let mut document = Document::new(Environment::here(ctx.caps()), Some(roof));
    document.rows = report.rows().cloned().collect();
    let title = format!("{} base {}, {} cubes of {}", a.model, a.base, a.batch, text::by(&a.cube));
    if !write(&document, a.file.as_deref())? {
        text::say(format_args!("{title} on {}", ctx.caps().name));
        lines(&report).iter().for_each(text::say);
        if a.layers && !report.layers.is_empty() {
            text::say(layers(&report));
        }
    }
    match &a.html {
        Some(path) => {
            // The page shows where the time goes: operations, or else the parts.
            document.rows = if report.layers.is_empty() { report.parts } else { report.layers };
            page::write(&document, &title, path)
        }
        None => Ok(()),
    }
}

/// The step and its parts.
pub(super) fn lines(report: &Report) -> Vec<String> {
    let cell = |s: Option<f64>| s.map_or("-".to_owned(), seconds);
    let row = |r: &Row| {
        vec![
            r.pass.clone(),
            cell(r.device_s.map(|s| s.median)),
            cell(r.wall_s.map(|s| s.median)),
            r.gflop_s.map_or("-".into(), |g| format!("{g:.1}")),
            r.roof_percent.map_or("-".into(), |p| format!("{p:.0} %")),
        ]
    };
    let rows: Vec<Vec<String>> = report.parts.iter().map(row).chain([row(&report.whole)]).collect();
    let mut out = vec![text::table(&["part", "device", "wall", "GFLOP/s", "roof"], &rows)];
    let extra = |name: &str| report.whole.extra.get(name).copied();
    let mut facts = Vec::new();
    if let Some(s) = extra("samples_per_s") {
        facts.push(format!("{s:.3} cubes/s"));
    }
    if let Some(idle) = extra("idle_share") {
        facts.push(format!("the device is idle {:.1} % of the step", 100.0 * idle));
    }
    if let (Some(p), Some(m)) = (extra("planned_bytes"), extra("allocated_bytes")) {
        facts.push(format!("memory planned {}, allocated {}", text::bytes(p as u64), text::bytes(m as u64)));
    }
    out.push(facts.join("; "));
    out
}

/// Every operation with its share of the network's time.
fn layers(report: &Report) -> String {
    let of = |r: &Row| r.device_s.map_or(0.0, |s| s.median);
    let total: f64 = report.layers.iter().map(of).sum();
    let rows: Vec<Vec<String>> = report
        .layers
        .iter()
        .map(|r| {
            vec![
                r.layer.clone(),
                r.op.clone(),
                r.shape.clone(),
                seconds(of(r)),
                format!("{:.1} %", 100.0 * of(r) / total.max(1e-12)),
                r.gflop_s.map_or("-".into(), |g| format!("{g:.1}")),
                r.gb_s.map_or("-".into(), |g| format!("{g:.1}")),
                r.roof_s.map_or("-".into(), seconds),
            ]
        })
        .collect();
    text::table(&["layer", "operation", "result", "time", "share", "GFLOP/s", "GB/s", "at roof"], &rows)
}
