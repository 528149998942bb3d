//! `semgen bench accept`.

use std::path::{Path, PathBuf};

use super::super::args::Common;
use super::super::text;
use super::{rules, three};
use crate::bench::accept::{self, Options, Point, Report};
use crate::error::{Error, Result};
use crate::files;
use crate::report::html;

/// Options of `bench accept`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Python with PyTorch, which is measured beside us; without, ratios to it are not judged
    #[arg(long, value_name = "PYTHON")]
    pytorch: Option<PathBuf>,
    /// Compare with burn's rates as they were recorded on a CPU adapter with two cores
    #[arg(long)]
    burn_anchors: bool,
    /// Run these parts only: doctor, 1, 2, 3, 4, 5; may be repeated
    #[arg(long, value_name = "PART", value_parser = ["doctor", "1", "2", "3", "4", "5"])]
    only: Vec<String>,
    /// Cubes of a step on a GPU
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Seconds for each measurement of a kernel; whole steps get ten times as many
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    time_limit: f64,
    /// Shrink every shape, to try the run itself in seconds; nothing it says counts
    #[arg(long)]
    small: bool,
    /// Write everything that was measured to a file, - for the output
    #[arg(id = "json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file: Option<PathBuf>,
    /// Write a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let limit = rules(a.time_limit)?.limit;
    let ctx = common.context()?;
    let options = Options {
        pytorch: a.pytorch.clone(),
        burn_anchors: a.burn_anchors,
        only: a.only.clone(),
        limit,
        batch: a.batch.max(1),
        small: a.small,
    };
    let to_output = a.file.as_deref() == Some(Path::new("-"));
    let report = accept::run(&ctx, &options, &mut |what| text::note(to_output, what))?;
    let value = serde_json::to_value(&report).map_err(|e| Error::Failed(format!("the result is no JSON: {e}")))?;
    match &a.file {
        Some(_) if to_output => text::say_json(&value),
        Some(path) => files::write_bytes(path, format!("{value:#}\n").as_bytes())?,
        None => {}
    }
    if !to_output {
        text::say(heading(&report));
        text::say(text::table(&HEADERS, &report.points.iter().map(row).collect::<Vec<_>>()));
        text::say(verdict(&report, a.small));
    }
    match &a.html {
        Some(path) => page(&report, a.small).write(path),
        None => Ok(()),
    }
}

const HEADERS: [&str; 8] = ["point", "what", "target", "measured", "beside", "ratio", "verdict", ""];

fn heading(r: &Report) -> String {
    let e = &r.ours.environment;
    let beside = r.pytorch.as_ref().map_or(String::new(), |t| {
        let t = &t.environment;
        format!("\nbeside torch {} on {}, {}", t.versions.get("torch").map_or("", String::as_str), t.adapter, t.cpu)
    });
    format!("{} ({}, {}), {}{beside}", e.adapter, e.backend, e.driver, e.cpu)
}

fn row(p: &Point) -> Vec<String> {
    let cell = |v: Option<f64>| v.map_or("-".into(), |v| format!("{} {}", three(v), p.unit).trim_end().to_owned());
    let ratio = p.measured.zip(p.reference).map_or("-".into(), |(m, r)| three(m / r));
    vec![p.point.clone(), p.what.clone(), p.target.clone(), cell(p.measured), cell(p.reference), ratio, p.verdict().into(), p.note.clone()]
}

fn verdict(r: &Report, small: bool) -> String {
    let [passed, missed, not] = r.counts();
    let text = format!("\n{passed} points pass, {missed} miss, {not} were not measured");
    if small { format!("{text}; with --small nothing of it counts") } else { text }
}

fn page(r: &Report, small: bool) -> html::Report {
    let mut page = html::Report::new("semgen bench accept");
    page.subtitle(&heading(r));
    let [passed, missed, not] = r.counts();
    page.card("pass", &passed.to_string(), "").card("miss", &missed.to_string(), "").card("not measured", &not.to_string(), "");
    if small {
        page.paragraph("Made with --small: nothing of it counts.");
    }
    page.section("Points");
    page.table(&HEADERS, &r.points.iter().map(row).collect::<Vec<_>>());
    page.section("Environment");
    for document in std::iter::once(&r.ours).chain(&r.pytorch) {
        let text = serde_json::to_string_pretty(&document.environment).unwrap_or_default();
        page.details(&document.environment.engine, &text);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::result::{Document, Environment};
    use crate::gpu::Caps;

    #[test]
    fn the_page_and_the_table_say_the_same() {
        let point = |passed| Point {
            point: "1".into(),
            what: "conv3d <1,2>".into(),
            target: "≥ 0.18 ×".into(),
            measured: Some(36.0),
            reference: Some(200.0),
            unit: "GFLOP/s",
            reached: Some(1.0),
            passed,
            note: "drift".into(),
        };
        let r = Report {
            schema: accept::SCHEMA,
            ours: Document::new(Environment::here(&Caps::minimal()), None),
            pytorch: None,
            points: vec![point(Some(true)), point(Some(false)), point(None)],
        };
        assert_eq!(row(&r.points[0])[3..], ["36.0 GFLOP/s", "200 GFLOP/s", "0.180", "pass", "drift"]);
        assert!(verdict(&r, false).contains("1 points pass, 1 miss, 1 were not measured"));
        let html = page(&r, false).html();
        assert!(html.contains("conv3d &lt;1,2&gt;") && html.contains("not measured") && html.contains("minimal"));
    }
}
