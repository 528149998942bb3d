//! How good a model is on the validation part while it is trained.

use std::collections::BTreeMap;

use super::description::probabilities;
use super::windows::Tile;
use super::{Description, Output};
use crate::metrics::overlap::Counts;
use crate::metrics::ranking::auc;
use crate::train::phase::Judge;

/// Dice of every class over all validation voxels together.
pub struct Overlap<'a> {
    task: &'a Description,
    tiles: &'a [Tile],
    /// By case, by class.
    cases: BTreeMap<usize, Vec<Counts>>,
}

impl<'a> Overlap<'a> {
    /// Nothing seen yet; `tiles` are what the samples' numbers stand for.
    pub fn new(task: &'a Description, tiles: &'a [Tile]) -> Self {
        Self { task, tiles, cases: BTreeMap::new() }
    }

    /// Dice of every class but the background in each case, by its place in the set; `None` where neither scan nor answer has it.
    pub fn by_case(&self) -> BTreeMap<usize, Vec<Option<f64>>> {
        self.cases.iter().map(|(&entry, counts)| (entry, counts.iter().skip(1).map(Counts::dice).collect())).collect()
    }
}

impl Judge for Overlap<'_> {
    fn take(&mut self, samples: &[u32], answers: &[u32], targets: &[u32]) {
        let voxels: usize = self.task.window.iter().product();
        let several = self.task.output == Output::Multiclass;
        let class = |bits: u32| if several { bits as usize } else { usize::from(f32::from_bits(bits) > 0.0) };
        for (i, &sample) in samples.iter().enumerate() {
            let tile = self.tiles[sample as usize];
            let base = i * voxels;
            let counts = self.cases.entry(tile.entry).or_insert_with(|| vec![Counts::default(); self.task.classes.len()]);
            tile.each(self.task.window, |within, _| {
                let (found, truth) = (class(answers[base + within]), class(targets[base + within]));
                counts[truth].both += u64::from(found == truth);
                counts[found].predicted += 1;
                counts[truth].truth += 1;
            });
        }
    }

    fn verdict(&mut self) -> (BTreeMap<String, f64>, f64) {
        // A class that neither occurs nor was found says nothing.
        let mut sums = vec![Counts::default(); self.task.classes.len()];
        for counts in self.cases.values() {
            sums.iter_mut().zip(counts).for_each(|(sum, c)| sum.add(c));
        }
        let known: Vec<(usize, f64)> = sums.iter().enumerate().skip(1).filter_map(|(c, n)| Some((c, n.dice()?))).collect();
        let mean = if known.is_empty() { 0.0 } else { known.iter().map(|k| k.1).sum::<f64>() / known.len() as f64 };
        let mut out = BTreeMap::from([("dice".to_owned(), mean)]);
        if self.task.classes.len() > 2 {
            out.extend(known.iter().map(|&(c, d)| (format!("dice_{}", self.task.classes[c]), d)));
        }
        (out, mean)
    }
}

/// Accuracy, and the area under the ROC curve where there are positives and negatives.
pub struct Ranking<'a> {
    task: &'a Description,
    /// By output: scores and truths of the samples whose answer is known.
    known: Vec<(Vec<f32>, Vec<bool>)>,
    right: u64,
    count: u64,
}

impl<'a> Ranking<'a> {
    /// Nothing seen yet.
    pub fn new(task: &'a Description) -> Self {
        Self { task, known: vec![Default::default(); task.outputs()], right: 0, count: 0 }
    }
}

impl Judge for Ranking<'_> {
    fn take(&mut self, samples: &[u32], answers: &[u32], targets: &[u32]) {
        let outputs = self.task.outputs();
        for (i, logits) in answers.chunks_exact(outputs).take(samples.len()).enumerate() {
            let logits: Vec<f32> = logits.iter().map(|&b| f32::from_bits(b)).collect();
            if self.task.output == Output::Multiclass {
                let truth = targets[i] as usize;
                let best = (0..outputs).fold(0, |b, c| if logits[c] > logits[b] { c } else { b });
                self.right += u64::from(best == truth);
                self.count += 1;
                // One against the rest, by probability.
                let found = probabilities(self.task.output, &logits);
                for (c, ((scores, truths), p)) in self.known.iter_mut().zip(found).enumerate() {
                    scores.push(p);
                    truths.push(c == truth);
                }
                continue;
            }
            for (o, (scores, truths)) in self.known.iter_mut().enumerate() {
                let weight = f32::from_bits(targets[i * outputs + o]);
                if weight != 0.0 {
                    scores.push(logits[o]);
                    truths.push(weight > 0.0);
                    self.right += u64::from((logits[o] > 0.0) == (weight > 0.0));
                    self.count += 1;
                }
            }
        }
    }

    fn verdict(&mut self) -> (BTreeMap<String, f64>, f64) {
        let accuracy = self.right as f64 / self.count.max(1) as f64;
        let mut out = BTreeMap::from([("accuracy".to_owned(), accuracy)]);
        let areas: Vec<f64> = self.known.iter().filter_map(|(s, t)| auc(s, t)).collect();
        if areas.is_empty() {
            // One class only: there is nothing to rank.
            return (out, accuracy);
        }
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        out.insert("auc".to_owned(), mean);
        (out, if self.task.output == Output::Multiclass { accuracy } else { mean })
    }
}

/// The metric that the best model is chosen by.
pub fn chosen_by(task: &Description) -> &'static str {
    match (task.kind, task.output) {
        (super::Kind::Segment, _) => "dice",
        (_, Output::Multiclass) => "accuracy",
        _ => "auc",
    }
}
