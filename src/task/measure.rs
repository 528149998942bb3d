//! A finished model on a part of a prepared set.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::finetune::objective;
use super::judge::{Overlap, Ranking};
use super::set::Set;
use super::table::Part;
use super::windows::{Windows, tiles};
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

/// Probabilities from logits.
pub fn probabilities(output: Output, logits: &[f32]) -> Vec<f32> {
    match output {
        Output::Multiclass => {
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let raised: Vec<f32> = logits.iter().map(|z| (z - top).exp()).collect();
            let sum: f32 = raised.iter().sum();
            raised.iter().map(|e| e / sum).collect()
        }
        _ => logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
    }
}

/// Runs the network `weights` over the cases of `part`: segmentation in windows that touch but do not overlap, on the prepared grid.
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
    let tiles = tiles(set, task, part);
    let entries = set.of(part);
    let (mut overlap, mut ranking) = (Overlap::new(task, &tiles), Ranking::new(task));
    let mut cases = Vec::new();
    let mut maps: Vec<(usize, Vec<u16>)> = Vec::new();
    for loaded in Loader::validation(samples, batch)? {
        let loaded = loaded?;
        ctx.upload(session.input("input")?, 0, &loaded.cubes);
        ctx.upload(session.input("labels")?, 0, &loaded.targets);
        if let Ok(weights) = session.input("weights") {
            ctx.upload(weights, 0, &vec![1f32; task.outputs()]);
        }
        session.run(ctx)?;
        let valid = &loaded.samples[..loaded.valid];
        if task.kind == Kind::Segment {
            let decided = session.read::<u32>(ctx, "decided")?;
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
            let logits = session.read::<f32>(ctx, "logits")?;
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
