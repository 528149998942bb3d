//! A result as one page: the roofline, where the time goes, and what each layer would take at the roof.

use std::path::Path;

use super::peak::Roof;
use super::result::{Document, Row};
use crate::error::Result;
use crate::report::html::{Cell, Report};
use crate::report::roofline::Plot;

/// Points of the roofline that are named: those that take the most time.
const NAMED: usize = 14;
/// Operations that have a colour of their own.
const COLOURED: usize = 10;

/// Writes the page of `document`.
///
/// # Errors
/// [`crate::error::Error::Io`] when the file cannot be written.
pub fn write(document: &Document, title: &str, path: &Path) -> Result<()> {
    report(document, title).write(path)
}

/// Seconds that a row stands for.
fn total(r: &Row) -> f64 {
    r.time().map_or(0.0, |t| t.median) * r.times as f64
}

fn time(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

fn rate(v: f64) -> String {
    match v {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn percent(v: f64) -> String {
    format!("{v:.1} %")
}

/// Layer or shape, as a short name.
fn name(r: &Row) -> String {
    if r.layer.is_empty() { format!("{} {}", r.op, r.shape) } else { r.layer.clone() }
}

fn report(document: &Document, title: &str) -> Report {
    let rows = &document.rows;
    let e = &document.environment;
    let sum: f64 = rows.iter().map(total).sum();
    let flops: f64 = rows.iter().filter(|r| r.time().is_some()).map(|r| r.flops as f64 * r.times as f64).sum();
    let at_roof: f64 = rows.iter().filter(|r| r.time().is_some()).filter_map(|r| Some(r.roof_s? * r.times as f64)).sum();
    let wrong = document.wrong().count();
    let flagged = rows.iter().filter(|r| !r.flags.is_empty()).count();

    let mut page = Report::new(format!("Bench: {title}"));
    page.subtitle(&format!("{} · {} · {}", e.adapter, e.backend, e.driver));
    page.card("Time together", &time(sum), &format!("{} measurements", rows.iter().filter(|r| r.time().is_some()).count()));
    page.card("GFLOP/s", &rate(flops / sum.max(1e-12) / 1e9), &format!("{} GFLOP", rate(flops / 1e9)));
    if let Some(roof) = &document.roof {
        page.card("Part of the roof", &percent(100.0 * at_roof / sum.max(1e-12)), &format!("{} if all were at the roof", time(at_roof)));
        let memory = roof.copy.last().map_or(0.0, |l| l.gb_s);
        page.card(
            "Roof, f32",
            &format!("{} GFLOP/s", rate(roof.f32_gflop_s)),
            &format!("{} GB/s from memory, both measured", rate(memory)),
        );
    }
    let outputs = if wrong == 0 { "all right".to_owned() } else { format!("{wrong} wrong") };
    page.card("Outputs", &outputs, &format!("checked in this run; {flagged} flagged as noisy"));

    page.section("Where the time goes");
    page.paragraph("Operations of one kind together. A bar is a share of the whole; the last column is what a perfect implementation could save by the measured roof.");
    by_operation(&mut page, rows, sum);

    page.section("Roofline");
    page.figure(
        &roofline(document, sum),
        "Rate over arithmetic intensity: lines are the measured roofs, a point is a measurement, its area the share of the time",
    );

    page.section("Layers");
    page.paragraph(
        "Click a heading to sort. Times are medians on the device where it has timestamps; ± is half the width of the 95 % interval of the median, in percent. \
         Intensity counts every operand once. A kernel whose outputs are wrong has no number.",
    );
    layers(&mut page, rows, sum);

    if let Some(roof) = &document.roof {
        page.section("The roof");
        peaks(&mut page, roof);
    }
    page.section("Environment");
    let mut facts = vec![
        vec!["Measured by".to_owned(), e.engine.clone()],
        vec!["Processor".to_owned(), e.cpu.clone()],
        vec!["System".to_owned(), e.os.clone()],
        vec!["Command".to_owned(), e.command.join(" ")],
    ];
    facts.extend(e.versions.iter().map(|(name, version)| vec![name.clone(), version.clone()]));
    page.table(&[], &facts);
    let kernels: String = e.kernels.iter().map(|(label, hash)| format!("{hash}  {label}\n")).collect();
    if !kernels.is_empty() {
        page.details("SHA-256 of each kernel's text", &kernels);
    }
    page.details("Limits and features of the adapter", &serde_json::to_string_pretty(&e.limits).unwrap_or_default());
    page.footer(&format!("semgen bench · {} · {}", document.schema, e.time));
    page
}

fn by_operation(page: &mut Report, rows: &[Row], sum: f64) {
    let mut kinds: Vec<(String, f64, f64, f64, usize)> = Vec::new();
    for r in rows.iter().filter(|r| r.time().is_some()) {
        let key = format!("{} {}", r.op, r.pass);
        let (t, roof, flops) = (total(r), r.roof_s.unwrap_or(0.0) * r.times as f64, r.flops as f64 * r.times as f64);
        match kinds.iter_mut().find(|k| k.0 == key) {
            Some(k) => (k.1, k.2, k.3, k.4) = (k.1 + t, k.2 + roof, k.3 + flops, k.4 + 1),
            None => kinds.push((key, t, roof, flops, 1)),
        }
    }
    kinds.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = kinds.first().map_or(1.0, |k| k.1);
    let cells: Vec<Vec<Cell>> = kinds
        .into_iter()
        .map(|(key, t, roof, flops, n)| {
            vec![
                Cell::text(key),
                Cell::number(Some(n as f64), |v| format!("{v:.0}")),
                Cell::number(Some(t), time),
                Cell::number(Some(100.0 * t / sum), percent).bar(t / most),
                Cell::number(Some(flops / t / 1e9), rate),
                Cell::number(Some(roof).filter(|r| *r > 0.0), time),
                Cell::number(Some((t - roof).max(0.0)).filter(|_| roof > 0.0), time),
            ]
        })
        .collect();
    page.sortable_table(&["operation", "times", "time", "share", "GFLOP/s", "time if at roof", "could save"], &cells);
}

fn roofline(document: &Document, sum: f64) -> String {
    let mut plot = Plot::new("Roofline", "arithmetic intensity, FLOP per byte", "GFLOP/s");
    let timed: Vec<&Row> = document.rows.iter().filter(|r| r.gflop_s.is_some()).collect();
    let mut order: Vec<usize> = (0..timed.len()).collect();
    order.sort_by(|&a, &b| total(timed[b]).total_cmp(&total(timed[a])));
    let largest = order.first().map_or(1.0, |&i| total(timed[i]));
    let mut ops: Vec<(&str, f64)> = Vec::new();
    for r in &timed {
        match ops.iter_mut().find(|o| o.0 == r.op) {
            Some(o) => o.1 += total(r),
            None => ops.push((&r.op, total(r))),
        }
    }
    ops.sort_by(|a, b| b.1.total_cmp(&a.1));
    let coloured: Vec<&str> = ops.iter().take(if ops.len() <= COLOURED { COLOURED } else { COLOURED - 1 }).map(|o| o.0).collect();
    for (rank, &i) in order.iter().enumerate() {
        let r = timed[i];
        let t = total(r);
        let label = if rank < NAMED {
            format!("{}{}", name(r), if r.pass == "forward" { String::new() } else { format!(" {}", r.pass) })
        } else {
            String::new()
        };
        let title = format!(
            "{} {} {} {} {}: {}, {} GFLOP/s, {:.1} FLOP/B, {} of the roof, {} of the time",
            r.layer,
            r.op,
            r.pass,
            r.shape,
            r.variant,
            time(t),
            rate(r.gflop_s.unwrap_or(0.0)),
            r.intensity,
            r.roof_percent.map_or_else(|| "–".to_owned(), percent),
            percent(100.0 * t / sum)
        );
        plot.point(
            r.intensity,
            r.gflop_s.unwrap_or(f64::NAN),
            if coloured.contains(&r.op.as_str()) { &r.op } else { "others" },
            t / largest,
            &label,
            &title,
        );
    }
    if let Some(roof) = &document.roof {
        let x: Vec<f64> = timed.iter().map(|r| r.intensity).filter(|x| *x > 0.0).collect();
        let low = x.iter().copied().fold(f64::INFINITY, f64::min).min(0.1);
        let high = x.iter().copied().fold(0.0, f64::max).max(1000.0);
        let top = roof.cooperative_gflop_s.unwrap_or(roof.f32_gflop_s).max(roof.f32_gflop_s);
        let slope = |gb_s: f64| {
            let ridge = (top / gb_s).clamp(low, high);
            vec![(low, low * gb_s), (ridge, ridge * gb_s)]
        };
        let cached = roof.copy.iter().map(|l| l.gb_s).fold(0.0, f64::max);
        if let Some(memory) = roof.copy.last() {
            plot.roof(slope(memory.gb_s), &format!("memory {} GB/s", rate(memory.gb_s)), false);
            if cached > 1.2 * memory.gb_s {
                plot.roof(slope(cached), &format!("cache {} GB/s", rate(cached)), true);
            }
            let flat = |g: f64| vec![((g / cached.max(memory.gb_s)).clamp(low, high), g), (high, g)];
            plot.roof(flat(roof.f32_gflop_s), &format!("f32 {} GFLOP/s", rate(roof.f32_gflop_s)), false);
            if let Some(c) = roof.cooperative_gflop_s {
                plot.roof(flat(c), &format!("cooperative matrices {} GFLOP/s", rate(c)), false);
            }
        }
    }
    plot.svg()
}

fn layers(page: &mut Report, rows: &[Row], sum: f64) {
    let most = rows.iter().map(total).fold(1e-12, f64::max);
    // Without layers there is no column for them.
    let without = usize::from(rows.iter().all(|r| r.layer.is_empty()));
    let lines: Vec<Vec<(&str, Cell)>> = rows
        .iter()
        .map(|r| {
            let t = r.time();
            let dtype = if r.dtype == "f32" { String::new() } else { format!(" {}", r.dtype) };
            let state = match (r.failure(), &r.skipped) {
                (Some(f), _) => format!("WRONG: {f}"),
                (None, Some(s)) => format!("skipped: {s}"),
                (None, None) => r.flags.join(", "),
            };
            vec![
                ("layer", Cell::text(r.layer.clone())),
                ("operation", Cell::text(r.op.clone())),
                ("pass", Cell::text(r.pass.clone())),
                ("shape", Cell::text(r.shape.clone())),
                ("variant", Cell::text(format!("{}{dtype}", r.variant))),
                ("time", Cell::number(t.map(|t| t.median), time)),
                ("share of step", Cell::number(t.map(|_| 100.0 * total(r) / sum), percent).bar(total(r) / most)),
                ("time if at roof", Cell::number(r.roof_s, time)),
                ("% of roof", Cell::number(r.roof_percent, |v| format!("{v:.0}"))),
                ("bound", Cell::text(r.bound.map_or("", super::result::Bound::word))),
                ("GFLOP/s", Cell::number(r.gflop_s, rate)),
                ("GB/s", Cell::number(r.gb_s, rate)),
                ("FLOP/B", Cell::number(Some(r.intensity), rate)),
                ("± %", Cell::number(t.map(|t| 100.0 * t.noise()), |v| format!("{v:.1}"))),
                ("n", Cell::number(t.map(|t| t.count as f64), |v| format!("{v:.0}"))),
                ("error", Cell::number(r.check.as_ref().and_then(|c| c.error), |e| format!("{e:.0e}"))),
                ("flags", Cell::text(state)),
            ]
        })
        .map(|mut line| line.split_off(without))
        .collect();
    let headers: Vec<&str> = lines.first().map_or_else(Vec::new, |line| line.iter().map(|c| c.0).collect());
    let cells: Vec<Vec<Cell>> = lines.into_iter().map(|line| line.into_iter().map(|c| c.1).collect()).collect();
    page.sortable_table(&headers, &cells);
}

fn peaks(page: &mut Report, roof: &Roof) {
    let mut plot = Plot::new("Bandwidth by working set", "working set", "GB/s").low().bytes();
    for (name, levels) in [("copy", &roof.copy), ("read", &roof.read), ("write", &roof.write)] {
        plot.line(levels.iter().map(|l| (l.bytes as f64, l.gb_s)).collect(), name);
    }
    page.figure(&plot.svg(), "Bandwidth by working set: caches are the steps");
    let or = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{} GFLOP/s", rate(v)));
    page.table(
        &["what", "measured"],
        &[
            vec!["Multiply-adds, f32".into(), or(Some(roof.f32_gflop_s))],
            vec!["Multiply-adds, f16".into(), or(roof.f16_gflop_s)],
            vec!["Cooperative matrices".into(), or(roof.cooperative_gflop_s)],
            vec!["Workgroup memory".into(), format!("{} GB/s", rate(roof.workgroup_gb_s))],
            vec!["Dispatch that depends on the one before".into(), time(roof.dispatch_s)],
            vec!["Submission, until done".into(), time(roof.submit_s)],
            vec!["Upload".into(), format!("{} GB/s", rate(roof.upload_gb_s))],
            vec!["Readback".into(), format!("{} GB/s", rate(roof.readback_gb_s))],
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::super::result::Check;
    use super::super::result::tests::{document, row};
    use super::*;

    /// Whether every element is closed in order; void ones stand alone.
    fn well_formed(html: &str) -> std::result::Result<usize, String> {
        let (mut open, mut count, mut rest) = (Vec::new(), 0, html);
        while let Some(at) = rest.find('<') {
            let end = at + rest[at..].find('>').ok_or_else(|| format!("no end of {}", &rest[at..rest.len().min(at + 40)]))?;
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            let name: String = tag.trim_start_matches('/').chars().take_while(|c| c.is_alphanumeric()).collect();
            if tag.starts_with('!') || tag.ends_with('/') || matches!(name.as_str(), "meta" | "img" | "br") {
                continue;
            }
            if tag.starts_with('/') {
                if open.pop() != Some(name.clone()) {
                    return Err(format!("</{name}> closes nothing"));
                }
                continue;
            }
            count += 1;
            if matches!(name.as_str(), "script" | "style") {
                let close = format!("</{name}>");
                rest = rest.split_once(&close).ok_or(close)?.1;
                continue;
            }
            open.push(name);
        }
        if open.is_empty() { Ok(count) } else { Err(format!("{open:?} are not closed")) }
    }

    #[test]
    fn the_page_is_well_formed_and_holds_every_row() {
        let mut doc = document("semgen", (0..30).map(|i| row(&format!("op{i}"), "v", 1e-3 * f64::from(i + 1), 0.01)).collect());
        doc.rows[3].layer = "layer <3>".into();
        doc.rows[4].check = Some(Check { error: None, tolerance: 0.0, elements: 1, failure: Some("element 7 is 1".into()) });
        (doc.rows[4].device_s, doc.rows[4].wall_s, doc.rows[4].gflop_s) = (None, None, None);
        doc.rows[5].skipped = Some("needs more".into());
        doc.roof = Some(Roof::plain(100.0, 10.0));
        let html = report(&doc, "a <title>").html();
        let elements = well_formed(&html).unwrap();
        assert!(elements > 500, "{elements}");
        for r in &doc.rows {
            assert!(html.contains(&format!("<td>{}</td>", r.op)), "{}", r.op);
        }
        assert!(html.contains("layer &lt;3&gt;") && html.contains("WRONG: element 7 is 1") && html.contains("skipped: needs more"));
        assert!(html.contains("share of step") && html.contains("time if at roof") && html.contains("f32 100 GFLOP/s"));
        assert!(!html.contains("NaN") && !html.contains("http:") || html.matches("http:").count() == html.matches("xmlns=").count());
        doc.roof = None;
        doc.rows.clear();
        well_formed(&report(&doc, "empty").html()).unwrap();
    }

    #[test]
    fn broken_pages_are_found() {
        for bad in ["<p>", "<p></b>", "</p>", "<p"] {
            assert!(well_formed(bad).is_err(), "{bad}");
        }
        assert_eq!(well_formed("<!DOCTYPE html><p>a<br>b</p>"), Ok(1));
    }
}
