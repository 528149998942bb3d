//! The page about repeated fine-tuning runs from pretrained weights and from scratch.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::chart::Chart;
use super::comparison::{Difference, Group, correct, differences, section, to_json};
use super::html::Report;
use crate::error::Result;
use crate::metrics::difference::{deviation, mean};
use crate::task::Kind;
use crate::train::log;

/// A run that starts from pretrained weights.
pub const PRETRAINED: &str = "pretrained";
/// A run that starts from random weights.
pub const SCRATCH: &str = "scratch";
/// Both; differences are the second minus the first.
pub const INITS: [&str; 2] = [SCRATCH, PRETRAINED];

/// A finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The task.
    pub task: Kind,
    /// What `value` is: `dice`, `auc` or `accuracy`.
    pub metric: String,
    /// Labelled scans that it learnt from.
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

/// The runs of one task: groups of equal start and number of labels, fewest labels first, and their differences.
pub(crate) struct Compared {
    task: Kind,
    metric: String,
    groups: Vec<Group>,
    differences: Vec<Difference>,
}

/// Mean and standard deviation in words.
fn spread(group: &Group) -> String {
    let values = group.numbers();
    let deviation = deviation(&values).map_or_else(String::new, |d| format!(" ± {d:.3}"));
    format!("{:.3}{deviation}", mean(&values).unwrap_or(f64::NAN))
}

fn task_word(task: Kind) -> &'static str {
    match task {
        Kind::Segment => "Segmentation of nodules",
        Kind::Classify => "Nodule or none",
    }
}

impl Compared {
    /// A line for each number of labels.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.differences.iter().map(|d| {
            let [a, b] = d.of.map(|i| &self.groups[i]);
            let p = d.tests.map_or_else(|| "no test possible".into(), |t| format!("p = {:.2e}", t.0.p));
            let labelled = a.labelled.unwrap_or(0);
            let (task, metric) = (task_word(self.task), &self.metric);
            format!("{task}, {labelled} labelled scans: {metric} {} {}, {} {}, {p}", a.name, spread(a), b.name, spread(b))
        })
    }

    /// As `semgen compare` writes it, with the task.
    pub(crate) fn json(&self) -> Value {
        let mut value = to_json(&self.metric, "test", &self.groups, &self.differences);
        value["task"] = self.task.word().into();
        value
    }
}

/// Compares the runs of each task, segmentation first, at each number of labels. Holm's correction is over all tasks.
pub(crate) fn compare(trials: &[Trial]) -> Vec<Compared> {
    let mut out: Vec<Compared> = [Kind::Segment, Kind::Classify]
        .into_iter()
        .filter_map(|task| {
            let of_task: Vec<&Trial> = trials.iter().filter(|t| t.task == task).collect();
            let mut groups: BTreeMap<(u64, Option<usize>), Group> = BTreeMap::new();
            for t in &of_task {
                let place = INITS.iter().position(|i| *i == t.init);
                let group = groups.entry((t.labelled, place)).or_insert_with(|| Group {
                    name: t.init.to_owned(),
                    labelled: Some(t.labelled),
                    values: Vec::new(),
                });
                group.values.push((u64::from(t.seed), t.value));
            }
            let groups: Vec<Group> = groups.into_values().collect();
            Some(Compared { task, metric: of_task.first()?.metric.clone(), differences: differences(&groups, 0), groups })
        })
        .collect();
    correct(out.iter_mut().flat_map(|c| &mut c.differences));
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
pub(crate) fn report(trials: &[Trial], compared: &[Compared]) -> Result<Report> {
    let mut report = Report::new("What pretraining is worth on synthetic patients");
    let seeds = compared.iter().flat_map(|c| &c.groups).map(|g| g.values.len()).max().unwrap_or(0);
    report
        .subtitle(&format!("Fine-tuning from pretrained weights and from scratch · up to {seeds} seeds each · test patients seen by none"));
    for c in compared {
        let Some(least) = c.differences.first() else { continue };
        let verdict = match least.tests.map(|t| t.0.p) {
            Some(p) if p < 0.05 && least.mean > 0.0 => format!("higher after pretraining, p = {p:.1e}"),
            Some(p) if p < 0.05 => format!("lower after pretraining, p = {p:.1e}"),
            Some(p) => format!("no difference shown, p = {p:.2}"),
            None => "no test possible".into(),
        };
        let [pretrained, scratch] = least.of.map(|i| mean(&c.groups[i].numbers()).unwrap_or(f64::NAN));
        report.card(
            &format!("{}, fewest labels", task_word(c.task)),
            &format!("{pretrained:.2} / {scratch:.2}"),
            &format!("{} pretrained / from scratch; {verdict}", c.metric),
        );
    }
    for c in compared {
        let called = if c.task == Kind::Segment { "Dice" } else { "AUC" };
        section(&mut report, task_word(c.task), called, "test", &c.groups, &c.differences);
        let fewest = c.groups.first().and_then(|g| g.labelled);
        let smallest: Vec<&Trial> = trials.iter().filter(|t| t.task == c.task && Some(t.labelled) == fewest).collect();
        let curve = |init: &str, kind: &str, name: &str| -> Result<Vec<(f64, f64)>> {
            let mut runs = Vec::new();
            for t in smallest.iter().filter(|t| t.init == init) {
                let records = log::read(&t.run.join("metrics.jsonl"))?;
                let points = |r: &Value| Some((r["step"].as_f64()?, r[name].as_f64()?));
                runs.push(records.iter().filter(|r| r["kind"] == kind).filter_map(points).collect());
            }
            Ok(average(&runs))
        };
        let (mut loss, mut validation) = (
            Chart::new("Training loss over steps", "step"),
            Chart::new(format!("Validation {called} over steps"), "step").y_range(0.0, 1.0),
        );
        for init in INITS {
            loss = loss.line(init, curve(init, "step", "loss")?);
            validation = validation.line(init, curve(init, "epoch", &format!("val_{}", c.metric))?);
        }
        report.charts(&[
            (loss, "Fewest labels: training loss, mean over the seeds"),
            (validation, "Fewest labels: the metric that models are chosen by, mean over the seeds"),
        ]);
        for t in smallest.iter().filter(|t| t.seed == smallest[0].seed) {
            if let Ok(png) = std::fs::read(t.run.join("examples.png")) {
                let start = if t.init == PRETRAINED { "from pretrained weights" } else { "from scratch" };
                report.picture(&png, &format!("Test scans, fine-tuned {start} with the fewest labels (seed {}).", t.seed));
            }
        }
    }
    report.section("How it was measured");
    report.paragraph(
        "Both kinds of runs have the same data, settings, seeds and number of steps; they differ in the weights they start from. They stop \
         after the few steps that fit into a demo; the curves show how far either kind had come. The labelled \
         patients are the same for all seeds; a seed decides the order of the scans, the random changes, and the random weights. The best model is chosen on \
         validation patients, and the value is that of test patients, whom neither the pretraining nor any run has seen. Holm's \
         correction is over both tasks. Phantoms are simpler than patients: the page shows \
         that the method works, not how much it gives in a clinic.",
    );
    report.footer(&format!("Made by semantic-genesis {}. Research software, not a medical device.", env!("CARGO_PKG_VERSION")));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(task: Kind, labelled: u64, init: &'static str, seed: u32, value: f64) -> Trial {
        Trial { task, metric: "dice".into(), labelled, init, seed, value, run: PathBuf::from("nowhere") }
    }

    #[test]
    fn groups_are_compared_share_by_share() {
        let mut all = Vec::new();
        for (seed, (a, b)) in [(0.5, 0.1), (0.6, 0.2), (0.55, 0.1)].into_iter().enumerate() {
            all.push(trial(Kind::Classify, 8, SCRATCH, seed as u32, a));
            for init in INITS {
                all.push(trial(Kind::Segment, 80, init, seed as u32, a));
                all.push(trial(Kind::Segment, 8, init, seed as u32, if init == PRETRAINED { a } else { b }));
            }
        }
        let found = compare(&all);
        assert_eq!((found.len(), found[0].task, found[1].task), (2, Kind::Segment, Kind::Classify));
        let p = |n: usize| (found[0].differences[n].tests.map(|t| t.0.p), found[0].differences[n].corrected);
        assert_eq!(found[0].differences.len(), 2);
        assert!(p(0).0 < Some(0.01) && p(0).1 > p(0).0 && p(1).0 > Some(0.9));
        assert!(found[1].differences.is_empty());
        let line = found[0].lines().next().unwrap();
        assert!(line.contains("8 labelled scans: dice pretrained 0.550 ± 0.050, scratch 0.133 ± 0.058, p = "), "{line}");
        assert_eq!(found[0].json()["differences"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn curves_are_averaged_where_every_run_has_a_value() {
        let runs = [vec![(2.0, 1.0), (4.0, 3.0)], vec![(3.0, 2.0), (5.0, 9.0)]];
        assert_eq!(average(&runs), [(3.0, 1.5), (4.0, 2.5)]);
        assert!(average(&[Vec::new()]).is_empty() && average(&[]).is_empty());
    }
}
