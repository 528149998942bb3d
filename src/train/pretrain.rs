//! The two phases of Semantic Genesis: self-classification, then restoration and classification at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::checkpoint::Named;
use super::fit::{Stage, fit};
use super::loader::Samples;
use super::log::MetricsLog;
use super::network::Objective;
use super::phase::{Feed, Observer, Phase, State};
use crate::config::Config;
use crate::data::arrays::sets::{CubeSet, Rows};
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::Context;
use crate::interop::tensors::File;
use crate::plan::Options;

/// What a pretraining run learns from.
#[derive(Clone)]
pub struct Data {
    /// Training crops.
    pub train: Arc<Samples>,
    /// Validation crops.
    pub validation: Arc<Samples>,
    /// Hash of the pattern manifest or of the files of cubes they come from; a run only resumes on the same.
    pub manifest: String,
    /// How the scans were prepared, which checkpoints keep; `None` for cubes that another program has cut.
    pub recipe: Option<Recipe>,
}

impl Data {
    /// Cubes that another program has cut.
    ///
    /// # Errors
    /// A part without cubes.
    pub fn of_cubes(set: &CubeSet) -> Result<Self> {
        let samples = |rows: &Rows| {
            let (rows, items) = (rows.clone(), (0u32..).zip(rows.labels()).collect::<Vec<_>>());
            Samples::new(items, set.size.iter().product(), move |i| rows.cube(i as usize))
        };
        Ok(Self { train: samples(&set.train)?, validation: samples(&set.validation)?, manifest: set.identity.clone(), recipe: None })
    }
}

/// The state saved in a checkpoint, and its tensors.
///
/// # Errors
/// [`Error::Input`] when the file is not a checkpoint of this program.
pub fn read_checkpoint(path: &Path) -> Result<(State, Value, Named)> {
    let file = File::read(path)?;
    let not_ours = || Error::input(path, "is not a checkpoint of this program; give a file from a run's checkpoints folder");
    let metadata: Value = serde_json::from_str(&file.metadata.ok_or_else(not_ours)?).map_err(|_| not_ours())?;
    let state = serde_json::from_value(metadata["state"].clone()).map_err(|_| not_ours())?;
    Ok((state, metadata, file.tensors))
}

/// Trains both phases, or continues them, in the run directory `out`.
///
/// # Errors
/// As [`Phase::run`]; [`Error::Input`] when `resume` finds a checkpoint made from other data.
pub fn run(
    ctx: &Context,
    config: &Config,
    data: &Data,
    out: &Path,
    resume: bool,
    interrupted: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<State> {
    let folder = out.join("checkpoints");
    files::create_dir(&folder)?;
    let last = folder.join("last.safetensors");
    let resumed = if resume && last.exists() { Some(read_checkpoint(&last)?) } else { None };
    if let Some((state, metadata, _)) = &resumed {
        if metadata["origin"]["manifest"] != json!(data.manifest) {
            return Err(Error::input(&last, "was trained on other patterns than this run directory now has; start a new run"));
        }
        observer.note(&format!("continuing after step {} ({} phase)", state.step, state.phase));
    }
    let t = &config.train;
    let bound = (t.max_steps > 0).then_some(t.max_steps as u64);
    let resumed = resumed.map(|(mut state, metadata, tensors)| {
        let joint = state.phase == "joint";
        if joint && state.done && state.ended_by_steps && bound.is_none_or(|b| b > state.step) {
            // The bound was raised: there is more to do.
            state.done = false;
        } else if joint && state.done {
            observer.note("the run is finished; other settings of train have no effect on it");
        }
        (state, metadata, tensors)
    });
    let fit = fit(config, ctx.caps(), &Options::of(ctx), &Stage::pretraining(config), t.micro_batch)?;
    if t.micro_batch.given().is_none() {
        observer.note(&format!("training: {fit}"));
    }
    let metrics = out.join("metrics.jsonl");
    let done = resumed.as_ref().map_or(0, |(s, ..)| s.step);
    let mut log = if resumed.is_some() { MetricsLog::resume(&metrics, done)? } else { MetricsLog::create(&metrics)? };
    let classification = folder.join("classification.safetensors");
    let best = folder.join("best.safetensors");
    let phase = |objective: Objective, steps_before: u64| {
        let joint = matches!(objective, Objective::Joint { .. });
        Phase {
            ctx,
            config,
            spec: (&config.model).into(),
            objective,
            size: config.cube.size,
            feed: Feed::Distorted,
            batch: t.batch_size,
            micro: fit.micro_batch,
            recompute: fit.recompute,
            precision: t.precision,
            optimiser: t.optimiser,
            hyper: t.into(),
            clip_norm: t.clip_norm,
            rate: t.learning_rate,
            rules: t.into(),
            max_epochs: if joint { t.epochs } else { t.classification_epochs },
            // The joint phase is the goal: the first may take at most half of the steps.
            max_steps: bound.map(|b| if joint { b.saturating_sub(steps_before) } else { b / 2 }),
            train: data.train.clone(),
            validation: data.validation.clone(),
            checkpoint_steps: t.checkpoint_steps,
            last: &last,
            best: if joint { &best } else { &classification },
            about: json!({ "origin": { "manifest": data.manifest }, "recipe": data.recipe }),
            encoder_rate: 1.0,
            class_weights: &[],
            judges: None,
            interrupted,
        }
    };
    let classes = config.model.classes;
    let first = Objective::Classification { classes };
    let joint = Objective::Joint { classes, restoration: config.loss.restoration, classification: config.loss.classification };
    let mut step = 0;
    let mut weights: Option<Named> = None;
    let in_joint = resumed.as_ref().is_some_and(|(s, ..)| s.phase == joint.word());
    if t.classification_epochs > 0 && bound.is_none_or(|b| b / 2 > 0) && !in_joint {
        let p = phase(first, 0);
        let (state, tensors) = match &resumed {
            Some((s, _, tensors)) => (s.clone(), Some(tensors)),
            None => (p.start(0), None),
        };
        step = p.run(state, tensors, &mut log, observer)?.step;
        // Both phases keep the weights with the lowest validation loss.
        weights = Some(File::read(&classification)?.tensors);
    }
    match resumed {
        Some((state, _, tensors)) if in_joint => phase(joint, state.step - state.updates).run(state, Some(&tensors), &mut log, observer),
        _ => {
            let p = phase(joint, step);
            p.run(p.start(step), weights.as_ref(), &mut log, observer)
        }
    }
}
