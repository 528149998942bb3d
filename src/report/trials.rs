//! The page about repeated fine-tuning runs from pretrained weights and from scratch.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::chart::Chart;
use super::html::Report;
use crate::error::Result;
use crate::metrics::difference::{bootstrap, deviation, holm, mean, welch};
use crate::task::Kind;
use crate::train::log;

/// A run that starts from pretrained weights.
pub const PRETRAINED: &str = "pretrained";
/// A run that starts from random weights.
pub const SCRATCH: &str = "scratch";
/// Both.
pub const INITS: [&str; 2] = [PRETRAINED, SCRATCH];

/// A finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The task.
    pub task: Kind,
    /// What `value` is: `dice`, `auc` or `accuracy`.
    pub metric: String,
    /// Share of the training patients whose labels were used.
    pub fraction: f64,
    /// Labelled scans that makes.
    pub labelled: u64,
    /// [`PRETRAINED`] or [`SCRATCH`].
    pub init: &'static str,
    /// Seed.
    pub seed: u32,
    /// The metric on the test part.
    pub value: f64,
    /// Its directory.
    pub run: PathBuf,
}

/// Both kinds of runs at one share of the labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The task.
    pub task: Kind,
    /// What is compared.
    pub metric: String,
    /// Share of the training patients whose labels were used.
    pub fraction: f64,
    /// Labelled scans, mean over the runs.
    pub labelled: f64,
    /// Values from pretrained weights, by seed.
    pub pretrained: Vec<f64>,
    /// Values from scratch, by seed.
    pub scratch: Vec<f64>,
    /// Welch's independent two-sample t-test, two-sided; `None` where it cannot be made.
    pub p: Option<f64>,
    /// The same after Holm's correction over all comparisons of the page.
    pub p_holm: Option<f64>,
    /// 95 % bootstrap interval of the difference of the means.
    pub interval: Option<(f64, f64)>,
}

/// Mean and standard deviation in words.
fn spread(values: &[f64]) -> String {
    let deviation = deviation(values).map_or_else(String::new, |d| format!(" ± {d:.3}"));
    format!("{:.3}{deviation}", mean(values).unwrap_or(f64::NAN))
}

fn task_word(task: Kind) -> &'static str {
    match task {
        Kind::Segment => "Segmentation of nodules",
        Kind::Classify => "Nodule or none",
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {:.0} labelled scans: {} pretrained {}, from scratch {}",
            task_word(self.task),
            self.labelled,
            self.metric,
            spread(&self.pretrained),
            spread(&self.scratch)
        )?;
        match self.p {
            Some(p) => write!(f, ", p = {p:.2e}"),
            None => write!(f, ", no test possible"),
        }
    }
}

/// Compares the runs of each task at each share of the labels.
pub fn compare(trials: &[Trial]) -> Vec<Compared> {
    let mut groups: BTreeMap<(&str, u64), Vec<&Trial>> = BTreeMap::new();
    for t in trials {
        groups.entry((t.task.word(), (t.fraction * 1e6) as u64)).or_default().push(t);
    }
    let mut out: Vec<Compared> = groups
        .into_values()
        .map(|group| {
            let of = |init: &str| group.iter().filter(|t| t.init == init).map(|t| t.value).collect::<Vec<f64>>();
            let (pretrained, scratch) = (of(PRETRAINED), of(SCRATCH));
            Compared {
                task: group[0].task,
                metric: group[0].metric.clone(),
                fraction: group[0].fraction,
                labelled: group.iter().map(|t| t.labelled as f64).sum::<f64>() / group.len() as f64,
                p: welch(&pretrained, &scratch).map(|t| t.p),
                p_holm: None,
                interval: bootstrap(&pretrained, &scratch, 0),
                pretrained,
                scratch,
            }
        })
        .collect();
    let tested: Vec<f64> = out.iter().filter_map(|c| c.p).collect();
    let corrected = holm(&tested);
    out.iter_mut().filter(|c| c.p.is_some()).zip(corrected).for_each(|(c, p)| c.p_holm = Some(p));
    // Segmentation first, as in the story.
    out.sort_by_key(|c| c.task == Kind::Classify);
    out
}

/// Mean over runs of the latest value at each of the steps 1, 2, … that every run has one for.
fn average(runs: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let last = runs.iter().filter_map(|r| r.last()).map(|p| p.0).fold(f64::INFINITY, f64::min);
    if !last.is_finite() {
        return Vec::new();
    }
    let at = |run: &Vec<(f64, f64)>, step: f64| run.iter().take_while(|p| p.0 <= step).last().map(|p| p.1);
    (1..=last as u64)
        .filter_map(|s| {
            let values: Option<Vec<f64>> = runs.iter().map(|r| at(r, s as f64)).collect();
            Some((s as f64, mean(&values?)?))
        })
        .collect()
}

/// The page.
///
/// # Errors
/// A log of a run that cannot be read.
pub fn report(trials: &[Trial]) -> Result<Report> {
    let compared = compare(trials);
    let mut report = Report::new("What pretraining is worth on synthetic patients");
    let seeds = compared.first().map_or(0, |c| c.pretrained.len());
    report.subtitle(&format!("Fine-tuning from pretrained weights and from scratch · {seeds} seeds each · test patients seen by none"));
    for task in [Kind::Segment, Kind::Classify] {
        let mut of_task = compared.iter().filter(|c| c.task == task);
        let Some(least) = of_task.next() else { continue };
        let verdict = match least.p {
            Some(p) if p < 0.05 && mean(&least.pretrained) > mean(&least.scratch) => format!("pretraining helps, p = {p:.1e}"),
            Some(p) if p < 0.05 => format!("pretraining harms, p = {p:.1e}"),
            Some(p) => format!("no difference shown, p = {p:.2}"),
            None => "no test possible".into(),
        };
        report.card(
            &format!("{}, fewest labels", task_word(task)),
            &format!("{:.2} / {:.2}", mean(&least.pretrained).unwrap_or(f64::NAN), mean(&least.scratch).unwrap_or(f64::NAN)),
            &format!("{} pretrained / from scratch; {verdict}", least.metric),
        );
    }
    for task in [Kind::Segment, Kind::Classify] {
        let of_task: Vec<&Compared> = compared.iter().filter(|c| c.task == task).collect();
        let Some(least) = of_task.first() else { continue };
        report.section(task_word(task));
        let called = if task == Kind::Segment { "Dice" } else { "AUC" };
        let line = |of: fn(&Compared) -> &Vec<f64>| of_task.iter().filter_map(|c| Some((c.labelled, mean(of(c))?))).collect::<Vec<_>>();
        let mut charts = vec![(
            Chart::new(format!("Test {called} over labelled scans"), "labelled scans")
                .y_range(0.0, 1.0)
                .marked("pretrained", line(|c| &c.pretrained))
                .marked("from scratch", line(|c| &c.scratch)),
            "Mean over the seeds; deviations are in the table",
        )];
        let smallest: Vec<&Trial> = trials.iter().filter(|t| t.task == task && t.fraction == least.fraction).collect();
        let curve = |init: &str, kind: &str, name: &str| -> Result<Vec<(f64, f64)>> {
            let mut runs = Vec::new();
            for t in smallest.iter().filter(|t| t.init == init) {
                let records = log::read(&t.run.join("metrics.jsonl"))?;
                let points = |r: &Value| Some((r["step"].as_f64()?, r[name].as_f64()?));
                runs.push(records.iter().filter(|r| r["kind"] == kind).filter_map(points).collect());
            }
            Ok(average(&runs))
        };
        let validation = format!("val_{}", least.metric);
        charts.push((
            Chart::new("Training loss over steps", "step")
                .line("pretrained", curve(PRETRAINED, "step", "loss")?)
                .line("from scratch", curve(SCRATCH, "step", "loss")?),
            "Fewest labels: training loss, mean over the seeds",
        ));
        charts.push((
            Chart::new(format!("Validation {called} over steps"), "step")
                .y_range(0.0, 1.0)
                .line("pretrained", curve(PRETRAINED, "epoch", &validation)?)
                .line("from scratch", curve(SCRATCH, "epoch", &validation)?),
            "Fewest labels: the metric that models are chosen by, mean over the seeds",
        ));
        report.charts(&charts);
        let p = |p: Option<f64>| p.map_or_else(|| "–".into(), |p| format!("{p:.2e}"));
        let rows: Vec<Vec<String>> = of_task
            .iter()
            .map(|c| {
                vec![
                    format!("{:.0} ({:.1} % of the patients)", c.labelled, 100.0 * c.fraction),
                    spread(&c.pretrained),
                    spread(&c.scratch),
                    c.interval.map_or_else(|| "–".into(), |(lo, hi)| format!("{lo:+.3} … {hi:+.3}")),
                    p(c.p),
                    p(c.p_holm),
                ]
            })
            .collect();
        let headers = [
            "Labelled scans",
            &format!("Test {called}, pretrained"),
            &format!("Test {called}, from scratch"),
            "95 % interval of the difference",
            "p",
            "p after Holm",
        ];
        report.table(&headers, &rows);
        for t in smallest.iter().filter(|t| t.seed == smallest[0].seed) {
            if let Ok(png) = std::fs::read(t.run.join("examples.png")) {
                let start = if t.init == PRETRAINED { "from pretrained weights" } else { "from scratch" };
                report.picture(&png, &format!("Test scans, fine-tuned {start} with the fewest labels (seed {}).", t.seed));
            }
        }
    }
    report.section("How it was measured");
    report.paragraph(
        "Both kinds of runs have the same data, settings, seeds and number of steps; they differ in the weights they start from. The labelled \
         patients are the same for all seeds; a seed decides the order of the scans, the random changes, and the random weights. The best model is chosen on \
         validation patients, and the value is that of test patients, whom neither the pretraining nor any run has seen. The mean ± the \
         standard deviation over the seeds; p is that of Welch's two-sided t-test for independent samples; Holm's correction is over \
         all comparisons of this page; the interval is a bootstrap of the seeds. Phantoms are simpler than patients: the page shows \
         that the method works, not how much it gives in a clinic.",
    );
    report.footer(&format!("Made by semantic-genesis {}. Research software, not a medical device.", env!("CARGO_PKG_VERSION")));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(task: Kind, fraction: f64, init: &'static str, seed: u32, value: f64) -> Trial {
        Trial { task, metric: "dice".into(), fraction, labelled: 8, init, seed, value, run: PathBuf::from("nowhere") }
    }

    #[test]
    fn groups_are_compared_share_by_share() {
        let mut all = Vec::new();
        for (seed, (a, b)) in [(0.5, 0.1), (0.6, 0.2), (0.55, 0.1)].into_iter().enumerate() {
            all.push(trial(Kind::Segment, 0.1, PRETRAINED, seed as u32, a));
            all.push(trial(Kind::Segment, 0.1, SCRATCH, seed as u32, b));
            all.push(trial(Kind::Segment, 1.0, PRETRAINED, seed as u32, a));
            all.push(trial(Kind::Segment, 1.0, SCRATCH, seed as u32, a));
            all.push(trial(Kind::Classify, 1.0, SCRATCH, seed as u32, a));
        }
        let found = compare(&all);
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].fraction, found[1].fraction, found[2].task), (0.1, 1.0, Kind::Classify));
        assert!(found[0].p < Some(0.01) && found[0].p_holm > found[0].p && found[1].p > Some(0.9));
        assert_eq!((found[2].p, found[2].p_holm), (None, None));
        assert!(found[0].to_string().contains("0.550 ± 0.050"), "{}", found[0]);
    }

    #[test]
    fn curves_are_averaged_where_every_run_has_a_value() {
        let runs = [vec![(2.0, 1.0), (4.0, 3.0)], vec![(3.0, 2.0), (5.0, 9.0)]];
        assert_eq!(average(&runs), [(3.0, 1.5), (4.0, 2.5)]);
        assert!(average(&[Vec::new()]).is_empty() && average(&[]).is_empty());
    }
}
