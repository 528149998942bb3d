//! Learning a target task: the phase of training that it is, from pretrained weights or from scratch.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::judge::{Overlap, Ranking};
use super::set::Set;
use super::start::prior;
use super::table::Part;
use super::windows::{Windows, class_weights, counts, tiles};
use super::{Description, Kind, Output};
use crate::config::{ClassWeights, Config, SegmentationLoss};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::Context;
use crate::graph::Graph;
use crate::interop::tensors::Tensor;
use crate::model::{Mode, Spec};
use crate::train::checkpoint::Named;
use crate::train::fit::Stage;
use crate::train::log::MetricsLog;
use crate::train::network::{Objective, Target};
use crate::train::phase::{Feed, Judge, Observer, Phase, State};
use crate::train::pretrain::read_checkpoint;

/// What is minimised.
pub fn objective(config: &Config, task: &Description) -> Objective {
    let f = &config.finetune;
    let target = Target {
        output: task.output,
        outputs: task.outputs(),
        weighted: task.output == Output::Multiclass && f.class_weights == ClassWeights::Balanced,
        frozen: f.encoder_rate == 0.0,
    };
    match task.kind {
        Kind::Segment => {
            let on = |other: SegmentationLoss| if f.loss == other { 0.0 } else { 1.0 };
            Objective::Segment { target, dice: on(SegmentationLoss::CrossEntropy), cross_entropy: on(SegmentationLoss::Dice) }
        }
        Kind::Classify => Objective::Classify { target },
    }
}

/// The training as far as its needs of the device are concerned.
pub fn stage(config: &Config, task: &Description) -> Stage {
    let t = &config.train;
    let spec = task.spec();
    Stage {
        objective: objective(config, task),
        spec,
        batch: t.batch_size,
        size: task.window,
        precision: t.precision,
        optimiser: t.optimiser,
        encoder_rate: config.finetune.encoder_rate,
    }
}

/// The network as it is trained, for its parameters.
///
/// # Errors
/// [`Error::Shape`] when the window does not suit the network.
pub fn graph(config: &Config, task: &Description) -> Result<Graph> {
    objective(config, task).graph(&task.spec(), 1, task.window, Mode::Evaluate)
}

impl Description {
    /// The network.
    pub fn spec(&self) -> Spec {
        Spec { channels: self.channels.len(), ..Spec::from(&self.model) }
    }
}

/// A fine-tuning in a run directory.
pub struct Job<'a> {
    /// Device.
    pub ctx: &'a Context,
    /// Settings; `train.micro_batch` is decided.
    pub config: &'a Config,
    /// Prepared data.
    pub set: Arc<Set>,
    /// What the model is for.
    pub task: &'a Description,
    /// Weights to start from; what they lack is random, but the bias of an output layer for masks is that of
    /// [`prior`].
    pub start: Option<&'a Named>,
    /// What the checkpoints say about where they come from.
    pub origin: serde_json::Value,
    /// Run directory.
    pub out: &'a Path,
    /// Whether to continue what is there.
    pub resume: bool,
    /// Set when the user wants to stop.
    pub interrupted: &'a AtomicBool,
}

impl Job<'_> {
    /// Trains, or continues to train, and keeps the best model by the task's metric.
    ///
    /// # Errors
    /// As [`Phase::run`]; [`Error::Input`] when `resume` finds a checkpoint made from other data.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<State> {
        let Self { config, task, .. } = *self;
        let folder = self.out.join("checkpoints");
        files::create_dir(&folder)?;
        let (last, best) = (folder.join("last.safetensors"), folder.join("best.safetensors"));
        let resumed = if self.resume && last.exists() { Some(read_checkpoint(&last)?) } else { None };
        let mut origin = self.origin.clone();
        origin["data"] = json!(self.set.identity);
        let bound = (config.train.max_steps > 0).then_some(config.train.max_steps as u64);
        let resumed = match resumed {
            None => None,
            Some((mut state, metadata, tensors)) => {
                if metadata["origin"]["data"] != origin["data"] {
                    return Err(Error::input(&last, "was trained on other data than this run now has; start a new run"));
                }
                observer.note(&format!("continuing after step {}", state.step));
                if state.done && state.ended_by_steps && bound.is_none_or(|b| b > state.updates) {
                    // The bound was raised: there is more to do.
                    state.done = false;
                }
                Some((state, tensors))
            }
        };
        let windows = Windows::new(Arc::clone(&self.set), task, config)?;
        let t = &config.train;
        let stage = stage(config, task);
        let counts = counts(&self.set, task);
        let balanced = class_weights(config.finetune.class_weights == ClassWeights::Balanced, &counts);
        let weighted = stage.objective.target().is_some_and(|t| t.weighted);
        let weights = if weighted { balanced.clone() } else { Vec::new() };
        let mut begin = self.start.cloned().unwrap_or_default();
        if task.kind == Kind::Segment {
            let bias = prior(&counts, &balanced, task.outputs());
            let name = format!("{}.bias", stage.spec.output_layer());
            begin.entry(name).or_insert_with(|| Tensor::f32(vec![bias.len()], bias));
        }
        let tiles = tiles(&self.set, task, Part::Validation);
        let judges = || -> Box<dyn Judge + '_> {
            match task.kind {
                Kind::Segment => Box::new(Overlap::new(task, &tiles)),
                Kind::Classify => Box::new(Ranking::new(task)),
            }
        };
        let phase = Phase {
            ctx: self.ctx,
            config,
            spec: stage.spec.clone(),
            objective: stage.objective,
            size: task.window,
            feed: Feed::Plain,
            batch: t.batch_size,
            micro: t.micro_batch.given().unwrap_or(t.batch_size),
            recompute: t.recompute.given().unwrap_or(false),
            precision: t.precision,
            optimiser: t.optimiser,
            hyper: t.into(),
            clip_norm: t.clip_norm,
            rate: t.learning_rate,
            rules: t.into(),
            max_epochs: t.epochs,
            max_steps: bound,
            train: windows.train()?,
            validation: windows.fixed(Part::Validation)?,
            checkpoint_steps: t.checkpoint_steps,
            last: &last,
            best: &best,
            about: json!({ "origin": origin, "task": task }),
            encoder_rate: config.finetune.encoder_rate,
            class_weights: &weights,
            judges: Some(&judges),
            interrupted: self.interrupted,
        };
        let metrics = self.out.join("metrics.jsonl");
        let (state, tensors, mut log) = match &resumed {
            Some((state, tensors)) => {
                let done = state.step;
                (state.clone(), Some(tensors), MetricsLog::resume(&metrics, done)?)
            }
            None => (phase.start(0), (!begin.is_empty()).then_some(&begin), MetricsLog::create(&metrics)?),
        };
        phase.run(state, tensors, &mut log, observer)
    }
}
