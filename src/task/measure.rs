//! A finished model on a part of a prepared set.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::description::probabilities;
use super::finetune::objective;
use super::judge::{Overlap, Ranking};
use super::set::Set;
use super::table::Part;
use super::windows::{Windows, flip, tiles};
use super::{Description, Kind, Output};
use crate::config::Config;
use crate::error::Result;
use crate::gpu::Context;
use crate::model::Mode;
use crate::plan::{Options, Plan, Session, Store};
use crate::train::checkpoint::{Named, load_state_dict};
use crate::train::loader::Loader;
use crate::train::phase::Judge;

/// What a model does on one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Dice of every class but the background; `None` where neither scan nor answer has it.
    Dice(Vec<Option<f64>>),
    /// Probability of each output.
    Probabilities(Vec<f32>),
}

/// Results on a part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Over the whole part.
    pub metrics: BTreeMap<String, f64>,
    /// By case, in the set's order.
    pub cases: Vec<(String, Answer)>,
    /// Classes of the voxels of the first few scans, `[x][y][z]` on the prepared grid, with the scan's place in the set.
    pub maps: Vec<(usize, Vec<u16>)>,
}

/// Scans whose voxels are kept.
const SHOWN: usize = 4;

/// Every choice of axes to reverse among those that may be, that of none first.
fn reversals(may: [bool; 3]) -> Vec<[bool; 3]> {
    (0..8u8).map(|bits| [0, 1, 2].map(|a| bits >> a & 1 == 1)).filter(|r| (0..3).all(|a| may[a] || !r[a])).collect()
}

/// Reverses each of the samples `data`, `[n][x][y][z]` with `inner` values a voxel.
fn reverse(data: &mut [f32], size: [usize; 3], inner: usize, axes: [bool; 3]) {
    for sample in data.chunks_mut(size.iter().product::<usize>() * inner) {
        (0..3).filter(|&a| axes[a]).for_each(|a| flip(sample, size, inner, a));
    }
}

/// Logits that give the mean of probabilities.
fn logits_of(output: Output, mean: &[f64]) -> Vec<f32> {
    // Rounded to 0 or 1, a probability has no finite logit.
    let known = |p: f64| p.clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON);
    let logit = |p: f64| if output == Output::Multiclass { p.ln() } else { p.ln() - (1.0 - p).ln() };
    mean.iter().map(|&p| logit(known(p)) as f32).collect()
}

/// The decisions that logits mean, as the network's output `decided` has them.
fn decided(task: &Description, logits: &[f32]) -> Vec<u32> {
    let largest = |z: &[f32]| (0..z.len()).fold(0, |b, c| if z[c] > z[b] { c } else { b }) as u32;
    match task.output {
        Output::Multiclass => logits.chunks_exact(task.outputs()).map(largest).collect(),
        _ => logits.iter().map(|&z| f32::from(u8::from(z > 0.0)).to_bits()).collect(),
    }
}

/// Runs the network over `cubes` reversed in each of the ways `over`: logits of the mean probabilities.
fn over_reversals(ctx: &Context, session: &Session, task: &Description, cubes: &[f32], over: &[[bool; 3]]) -> Result<Vec<f32>> {
    let mut sum: Vec<f64> = Vec::new();
    for &axes in over {
        let mut cubes = cubes.to_vec();
        reverse(&mut cubes, task.window, task.channels.len(), axes);
        ctx.upload(session.input("input")?, 0, &cubes);
        session.run(ctx)?;
        let logits = session.read::<f32>(ctx, "logits")?;
        let mut found: Vec<f32> = logits.chunks_exact(task.outputs()).flat_map(|z| probabilities(task.output, z)).collect();
        if task.kind == Kind::Segment {
            reverse(&mut found, task.window, task.outputs(), axes);
        }
        sum.resize(found.len(), 0.0);
        sum.iter_mut().zip(found).for_each(|(s, p)| *s += f64::from(p));
    }
    let mean: Vec<f64> = sum.into_iter().map(|s| s / over.len() as f64).collect();
    Ok(logits_of(task.output, &mean))
}

/// Runs the network `weights` over the cases of `part`: segmentation in windows that touch but do not overlap, on the prepared grid.
/// With `finetune.test_flips` probabilities are means over all flips that `finetune.flip` allows.
///
/// # Errors
/// A part without cases, weights that are not the network's, what the device reports.
pub fn measure(ctx: &Context, config: &Config, set: &Arc<Set>, task: &Description, weights: &Named, part: Part) -> Result<Measured> {
    let windows = Windows::new(Arc::clone(set), task, config)?;
    let samples = windows.fixed(part)?;
    let batch = config.train.micro_batch.given().unwrap_or(1).min(samples.len());
    let graph = objective(config, task).graph(&task.spec(), batch, task.window, Mode::Evaluate)?;
    let store = Store::new(ctx, &graph, config.seed)?;
    load_state_dict(ctx, &store, weights, true)?;
    let session = Session::new(ctx, Plan::with(&graph, ctx.caps(), &Options::of(ctx))?, &store)?;
    let over = reversals(if config.finetune.test_flips { config.finetune.flip.axes() } else { [false; 3] });
    let tiles = tiles(set, task, part);
    let entries = set.of(part);
    let (mut overlap, mut ranking) = (Overlap::new(task, &tiles), Ranking::new(task));
    let mut cases = Vec::new();
    let mut maps: Vec<(usize, Vec<u16>)> = Vec::new();
    for loaded in Loader::validation(samples, batch)? {
        let loaded = loaded?;
        ctx.upload(session.input("labels")?, 0, &loaded.targets);
        if let Ok(weights) = session.input("weights") {
            ctx.upload(weights, 0, &vec![1f32; task.outputs()]);
        }
        let mean = if over.len() > 1 {
            Some(over_reversals(ctx, &session, task, &loaded.cubes, &over)?)
        } else {
            ctx.upload(session.input("input")?, 0, &loaded.cubes);
            session.run(ctx)?;
            None
        };
        let valid = &loaded.samples[..loaded.valid];
        if task.kind == Kind::Segment {
            let decided = match &mean {
                Some(logits) => decided(task, logits),
                None => session.read::<u32>(ctx, "decided")?,
            };
            overlap.take(valid, &decided, &loaded.targets);
            let class = |bits: u32| if task.output == Output::Multiclass { bits as u16 } else { u16::from(f32::from_bits(bits) > 0.0) };
            for (i, &s) in valid.iter().enumerate() {
                let tile = tiles[s as usize];
                let scan = set.entries[tile.entry].scan;
                let size = set.scans[scan].size;
                if maps.iter().all(|m| m.0 != scan) {
                    if maps.len() == SHOWN {
                        continue;
                    }
                    maps.push((scan, vec![0; size.iter().product()]));
                }
                let Some((_, map)) = maps.iter_mut().find(|m| m.0 == scan) else { continue };
                tile.each(task.window, |within, whole| {
                    map[(whole[0] * size[1] + whole[1]) * size[2] + whole[2]] =
                        class(decided[i * task.window.iter().product::<usize>() + within]);
                });
            }
        } else {
            let logits = match mean {
                Some(logits) => logits,
                None => session.read::<f32>(ctx, "logits")?,
            };
            let bits: Vec<u32> = logits.iter().map(|z| z.to_bits()).collect();
            ranking.take(valid, &bits, &loaded.targets);
            for (&s, z) in valid.iter().zip(logits.chunks_exact(task.outputs())) {
                let id = set.entries[entries[s as usize]].id.clone();
                cases.push((id, Answer::Probabilities(probabilities(task.output, z))));
            }
        }
    }
    if task.kind == Kind::Segment {
        cases = overlap.by_case().into_iter().map(|(entry, dice)| (set.entries[entry].id.clone(), Answer::Dice(dice))).collect();
        let (mut metrics, _) = overlap.verdict();
        let every: Vec<f64> = cases.iter().filter_map(|(_, a)| mean_dice(a)).collect();
        if !every.is_empty() {
            metrics.insert("dice_per_case".into(), every.iter().sum::<f64>() / every.len() as f64);
        }
        return Ok(Measured { metrics, cases, maps });
    }
    Ok(Measured { metrics: ranking.verdict().0, cases, maps })
}

/// Mean Dice over the classes that a case or its answer has.
fn mean_dice(answer: &Answer) -> Option<f64> {
    let Answer::Dice(values) = answer else { return None };
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_may_be_reversed_are_in_all_choices() {
        assert_eq!(reversals([false; 3]), [[false; 3]]);
        assert_eq!(reversals([true, false, false]), [[false; 3], [true, false, false]]);
        assert_eq!(reversals([true, true, false]).len(), 4);
        let all = reversals([true; 3]);
        assert_eq!((all.len(), all[0], all[7]), (8, [false; 3], [true; 3]));
    }

    #[test]
    fn every_sample_is_reversed_by_itself_and_twice_is_not_at_all() {
        let before: Vec<f32> = (0..24u8).map(f32::from).collect();
        let mut data = before.clone();
        reverse(&mut data, [1, 2, 3], 2, [true, false, true]);
        assert_eq!(data[..12], [4.0, 5.0, 2.0, 3.0, 0.0, 1.0, 10.0, 11.0, 8.0, 9.0, 6.0, 7.0]);
        assert_eq!(data[12..14], [16.0, 17.0]);
        reverse(&mut data, [1, 2, 3], 2, [true, false, true]);
        assert_eq!(data, before);
    }

    #[test]
    fn logits_of_means_give_the_means_again() {
        for (output, mean) in [(Output::Multiclass, vec![0.2, 0.7, 0.1]), (Output::Multilabel, vec![0.9, 0.0, 1.0])] {
            let logits = logits_of(output, &mean);
            assert!(logits.iter().all(|z| z.is_finite()));
            for (p, m) in probabilities(output, &logits).iter().zip(&mean) {
                assert!((f64::from(*p) - m).abs() < 1e-6, "{p} and {m}");
            }
        }
    }
}
