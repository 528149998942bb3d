//! Groups of repeated runs against each other: numbers, tests, and their place on a page.

use std::fmt::Write;

use serde_json::{Value, json};

use super::chart::Chart;
use super::html::{Report, escape};
use crate::metrics::difference::{SignedRank, TTest, bootstrap, deviation, holm, mean, student, welch, wilcoxon};

/// Runs that differ in their seed only.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// What the runs began with, or what the user calls them.
    pub(crate) name: String,
    /// Labelled cases they learnt from; groups are compared with those of the same number.
    pub(crate) labelled: Option<u64>,
    /// Seed of each run, and the metric it reached.
    pub(crate) values: Vec<(u64, f64)>,
}

impl Group {
    /// The metric of each run.
    pub(crate) fn numbers(&self) -> Vec<f64> {
        self.values.iter().map(|v| v.1).collect()
    }

    fn called(&self) -> String {
        self.labelled.map_or_else(|| self.name.clone(), |n| format!("{}, {n} labelled", self.name))
    }
}

/// Two groups with the same number of labelled cases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    /// Places of the two in the list of groups; differences are the first minus the second.
    pub(crate) of: [usize; 2],
    /// Difference of the means.
    pub(crate) mean: f64,
    /// Its 95 % bootstrap interval.
    pub(crate) interval: Option<(f64, f64)>,
    /// Welch's test, and Student's.
    pub(crate) tests: Option<(TTest, TTest)>,
    /// Welch's two-sided p with Holm's correction for all differences that were tested.
    pub(crate) corrected: Option<f64>,
    /// Wilcoxon's test of the pairs, where both have the same seeds, each once.
    pub(crate) paired: Option<SignedRank>,
}

/// Every pair of groups with the same number of labelled cases, the later one minus the earlier one.
pub(crate) fn differences(groups: &[Group], seed: u32) -> Vec<Difference> {
    let mut out = Vec::new();
    for first in 0..groups.len() {
        for second in first + 1..groups.len() {
            let (b, a) = (&groups[first], &groups[second]);
            let (x, y) = (a.numbers(), b.numbers());
            let (true, Some(mean_a), Some(mean_b)) = (a.labelled == b.labelled, mean(&x), mean(&y)) else { continue };
            out.push(Difference {
                of: [second, first],
                mean: mean_a - mean_b,
                interval: bootstrap(&x, &y, seed),
                tests: welch(&x, &y).zip(student(&x, &y)),
                corrected: None,
                paired: pairs(a, b).and_then(|d| wilcoxon(&d)),
            });
        }
    }
    correct(&mut out);
    out
}

/// Holm's correction over all of `differences` that were tested.
pub(crate) fn correct<'d>(differences: impl IntoIterator<Item = &'d mut Difference>) {
    let tested: Vec<(&mut Difference, f64)> = differences.into_iter().filter_map(|d| d.tests.map(|t| t.0.p).map(|p| (d, p))).collect();
    let p: Vec<f64> = tested.iter().map(|t| t.1).collect();
    for ((d, _), p) in tested.into_iter().zip(holm(&p)) {
        d.corrected = Some(p);
    }
}

/// Differences by seed, if both groups have the same seeds, each once.
fn pairs(a: &Group, b: &Group) -> Option<Vec<f64>> {
    let sorted = |g: &Group| {
        let mut v = g.values.clone();
        v.sort_by_key(|v| v.0);
        v
    };
    let (a, b) = (sorted(a), sorted(b));
    let once = a.windows(2).all(|w| w[0].0 != w[1].0);
    let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0);
    (once && same).then(|| a.iter().zip(&b).map(|(a, b)| a.1 - b.1).collect())
}

/// The comparison as JSON.
pub(crate) fn to_json(metric: &str, part: &str, groups: &[Group], differences: &[Difference]) -> Value {
    let group = |g: &Group| {
        let v = g.numbers();
        let runs: Vec<Value> = g.values.iter().map(|(seed, value)| json!({ "seed": seed, "value": value })).collect();
        json!({ "name": g.name, "labelled": g.labelled, "n": v.len(), "mean": mean(&v), "sd": deviation(&v), "runs": runs })
    };
    let test = |t: TTest| json!({ "t": t.t, "freedom": t.freedom, "p": t.p, "p_one_sided_larger": t.p_larger });
    let difference = |d: &Difference| {
        let [a, b] = d.of.map(|i| &groups[i]);
        json!({
            "labelled": a.labelled, "first": a.name, "second": b.name, "mean_difference": d.mean,
            "bootstrap_95": d.interval.map(|(low, high)| [low, high]), "welch": d.tests.map(|t| test(t.0)), "student": d.tests.map(|t| test(t.1)),
            "welch_p_holm": d.corrected, "wilcoxon": d.paired.map(|w| json!({ "statistic": w.statistic, "pairs": w.pairs, "p": w.p })),
        })
    };
    json!({
        "metric": metric, "part": part, "groups": groups.iter().map(group).collect::<Vec<_>>(),
        "differences": differences.iter().map(difference).collect::<Vec<_>>(),
    })
}

/// Heads and cells of the table of groups.
pub(crate) fn group_table(groups: &[Group]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let row = |g: &Group| {
        let v = g.numbers();
        let ends = v.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
        vec![
            g.name.clone(),
            g.labelled.map_or_else(|| "–".to_owned(), |n| n.to_string()),
            v.len().to_string(),
            number(mean(&v)),
            number(deviation(&v)),
            number(Some(ends.0)),
            number(Some(ends.1)),
        ]
    };
    (vec!["group", "labelled", "n", "mean", "± sd", "least", "most"], groups.iter().map(row).collect())
}

/// Heads and cells of the table of differences.
pub(crate) fn difference_table(groups: &[Group], differences: &[Difference]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let row = |d: &Difference| {
        let [a, b] = d.of.map(|i| &groups[i]);
        let (welch, student) = d.tests.unzip();
        vec![
            format!("{} − {}", a.name, b.name),
            a.labelled.map_or_else(|| "–".to_owned(), |n| n.to_string()),
            format!("{:+.4}", d.mean),
            d.interval.map_or_else(|| "–".to_owned(), |(low, high)| format!("{low:+.4} to {high:+.4}")),
            probability(welch.map(|t| t.p)),
            probability(d.corrected),
            probability(welch.map(|t| t.p_larger)),
            probability(student.map(|t| t.p)),
            probability(d.paired.map(|w| w.p)),
            d.corrected.map_or("", stars).to_owned(),
        ]
    };
    let head = vec!["difference", "labelled", "of means", "bootstrap 95 %", "Welch p", "Holm", "one-sided", "Student p", "Wilcoxon p", ""];
    (head, differences.iter().map(row).collect())
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.4}"))
}

/// A p-value.
fn probability(p: Option<f64>) -> String {
    match p {
        None => "–".to_owned(),
        Some(p) if p < 1e-4 => format!("{p:.1e}"),
        Some(p) => format!("{p:.4}"),
    }
}

/// The published figures' stars.
fn stars(p: f64) -> &'static str {
    match p {
        p if p < 0.001 => "***",
        p if p < 0.01 => "**",
        p if p < 0.05 => "*",
        _ => "n.s.",
    }
}

/// What was compared and how, in words.
pub(crate) const METHOD: &str = "Runs differ in their seed. Tests are two-sided unless said: Welch's and Student's t-test of independent groups, Wilcoxon's signed-rank test where both groups have the same seeds (exact up to 50 pairs). Holm's correction is over all Welch tests shown. Intervals are percentiles of 10,000 seeded bootstrap resamples of both groups. Stars: * p < 0.05, ** < 0.01, *** < 0.001 after correction.";

/// Adds the comparison to a page: the plot of all runs, curves over labelled cases where there are several numbers of them, the two
/// tables and a sentence on method. `metric` names the metric, `part` the part of the data it was measured on.
pub(crate) fn section(report: &mut Report, heading: &str, metric: &str, part: &str, groups: &[Group], differences: &[Difference]) {
    report.section(heading);
    report.figure(&strips(metric, groups), &format!("{metric} on the {part} part: every run, mean and standard deviation of each group"));
    let mut numbers: Vec<u64> = groups.iter().filter_map(|g| g.labelled).collect();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.len() > 1 {
        let mut names: Vec<&str> = Vec::new();
        groups.iter().for_each(|g| {
            if !names.contains(&g.name.as_str()) {
                names.push(&g.name);
            }
        });
        let mut chart = Chart::new(format!("{metric} over labelled cases"), "labelled cases");
        for name in names {
            let mut points: Vec<(f64, f64)> =
                groups.iter().filter(|g| g.name == name).filter_map(|g| Some((g.labelled? as f64, mean(&g.numbers())?))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            chart = chart.marked(name, points);
        }
        report.charts(&[(chart, "Means over the number of labelled cases")]);
    }
    let (head, rows) = group_table(groups);
    report.table(&head, &rows);
    let (head, rows) = difference_table(groups, differences);
    if rows.is_empty() {
        report.paragraph("No two groups have the same number of labelled cases, so that there is nothing to compare.");
    } else {
        report.table(&head, &rows);
        report.paragraph(METHOD);
    }
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 240.0;
const RIGHT: f64 = 24.0;
const ROW: f64 = 34.0;

/// A row a group: a dot a run, a bar at the mean, a line over one standard deviation to each side.
fn strips(metric: &str, groups: &[Group]) -> String {
    let finite = || groups.iter().flat_map(Group::numbers).filter(|v| v.is_finite());
    let (mut low, mut high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    for g in groups {
        let v = g.numbers();
        if let (Some(m), Some(s)) = (mean(&v), deviation(&v)) {
            low = low.min(m - s);
            high = high.max(m + s);
        }
    }
    if !(low.is_finite() && high.is_finite()) {
        (low, high) = (0.0, 1.0);
    }
    if high - low < 1e-9 {
        (low, high) = (low - 0.01, high + 0.01);
    }
    let x = |v: f64| LEFT + (v - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let bottom = ROW * groups.len() as f64 + 8.0;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\" fill=\"none\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12.5\"><title>{}</title>",
        bottom + 44.0,
        escape(&format!("{metric} of every run"))
    );
    for tick in 0..=4 {
        let v = low + (high - low) * f64::from(tick) / 4.0;
        let _ = write!(
            out,
            "<path d=\"M{0:.1} 4V{bottom}\" stroke=\"currentColor\" stroke-opacity=\".13\"/>\
             <text x=\"{0:.1}\" y=\"{1}\" fill=\"currentColor\" opacity=\".72\" text-anchor=\"middle\">{v:.3}</text>",
            x(v),
            bottom + 17.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{}\" fill=\"currentColor\" opacity=\".72\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        bottom + 36.0,
        escape(metric)
    );
    for (n, g) in groups.iter().enumerate() {
        let y = ROW * (n as f64 + 0.5) + 4.0;
        let colour = COLOURS[groups.iter().position(|o| o.name == g.name).unwrap_or(0) % COLOURS.len()];
        let mut name: String = g.called();
        if name.chars().count() > 36 {
            name = std::iter::once('…').chain(name.chars().skip(name.chars().count() - 35)).collect();
        }
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" fill=\"currentColor\" text-anchor=\"end\">{}</text>",
            LEFT - 14.0,
            y + 4.0,
            escape(&name)
        );
        let v = g.numbers();
        if let (Some(m), Some(s)) = (mean(&v).filter(|m| m.is_finite()), deviation(&v)) {
            let _ = write!(out, "<path d=\"M{:.1} {y:.1}H{:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>", x(m - s), x(m + s));
        }
        for v in v.iter().filter(|v| v.is_finite()) {
            let _ = write!(out, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\" fill-opacity=\".55\"/>", x(*v));
        }
        if let Some(m) = mean(&v).filter(|m| m.is_finite()) {
            let _ = write!(out, "<path d=\"M{:.1} {:.1}v18\" stroke=\"{colour}\" stroke-width=\"3\"/>", x(m), y - 9.0);
        }
    }
    out.push_str("</svg>");
    out
}

const COLOURS: [&str; 6] = ["#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#0ea5b7"];

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, labelled: u64, values: &[f64]) -> Group {
        Group { name: name.into(), labelled: Some(labelled), values: (1..).zip(values.iter().copied()).collect() }
    }

    #[test]
    fn groups_are_compared_at_the_same_number_of_labels() {
        let groups = [
            group("scratch", 4, &[0.50, 0.52, 0.49, 0.53, 0.51]),
            group("scratch", 8, &[0.70, 0.71, 0.69]),
            group("pretrained", 4, &[0.60, 0.61, 0.62, 0.58, 0.6]),
            group("pretrained", 8, &[0.71]),
        ];
        let found = differences(&groups, 1);
        assert_eq!(found.iter().map(|d| d.of).collect::<Vec<_>>(), [[2, 0], [3, 1]]);
        assert!((found[0].mean - 0.092).abs() < 1e-12);
        // One test is made, so that Holm changes nothing; five pairs of one sign have the p of 2/32.
        assert_eq!(found[0].corrected, found[0].tests.map(|t| t.0.p));
        assert_eq!(found[0].paired.unwrap().p, 0.0625);
        assert_eq!((found[1].tests, found[1].corrected, found[1].paired), (None, None, None));
    }

    #[test]
    fn the_page_holds_every_run_and_escapes_names() {
        let groups = [group("<scratch>", 4, &[0.5, 0.6, f64::NAN]), group("own", 4, &[0.5, 0.5]), group("own", 9, &[])];
        let mut page = Report::new("t");
        section(&mut page, "h", "Dice", "test", &groups, &differences(&groups, 1));
        let html = page.html();
        assert_eq!(html.matches("<circle").count() - html.matches("r=\"2.8\"").count(), 4);
        assert!(!html.contains("<scratch>") && html.contains("&lt;scratch&gt;"));
        let plots = html.split("<svg").skip(1).filter_map(|s| s.split("</svg>").next());
        assert!(plots.into_iter().all(|svg| !svg.contains("NaN") && !svg.contains("inf")));
    }
}
