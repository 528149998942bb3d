//! One phase of training: epochs of steps, validation, schedule, checkpoints.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::{Named, load_state_dict, state_dict};
use super::loader::{Batch, Loader, Samples};
use super::log::MetricsLog;
use super::network::Objective;
use super::scaling::Scaling;
use super::schedule::{Rules, Standing};
use super::update::{Report, Update, groups};
use crate::config::{Config, Optimiser, Precision};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context};
use crate::graph::{Graph, LOSS_SCALE};
use crate::interop::tensors::File;
use crate::kernels::optimiser::Hyper;
use crate::model::{Mode, Spec};
use crate::plan::{Fusion, Options, Plan, Session, Store};
use crate::rng::Key;
use crate::transform::{Augment, Draws};

/// Restorations that are shown.
const ROWS: usize = 6;

/// Everything that decides how a phase goes on; saved in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The phase's word.
    pub phase: String,
    /// Optimiser steps of all phases.
    pub step: u64,
    /// Steps of this phase, those left out included.
    pub updates: u64,
    /// Current epoch.
    pub epoch: u32,
    /// Batches of it that are done.
    pub index: u32,
    /// The configured learning rate that the schedule started from.
    pub rate: f32,
    /// Schedule and best loss.
    pub standing: Standing,
    /// Loss scale of mixed precision and the steps left out.
    #[serde(default)]
    pub scaling: Scaling,
    /// Sums over the current epoch's steps of the objective's losses.
    sums: Vec<f64>,
    /// Whether the phase is over.
    pub done: bool,
    /// Whether the bound on steps is what ended it.
    pub ended_by_steps: bool,
    /// Last validation, if any.
    pub validation: Option<Validation>,
}

/// Means over the validation samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// The objective.
    pub loss: f64,
    /// Mean squared restoration error.
    pub restoration: f64,
    /// Mean squared error of the distorted input itself.
    pub identity: f64,
    /// Cross-entropy.
    pub classification: f64,
    /// Share of crops whose class was named.
    pub accuracy: f64,
    /// What the judge of a target task found.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

/// Who says how good the answers to a target task are.
pub trait Judge {
    /// Takes answers: for segmentation the class of every voxel (`u32`), else the bits of the logits (`f32`); with the samples'
    /// numbers and targets, each `[n][…]`.
    fn take(&mut self, samples: &[u32], answers: &[u32], targets: &[u32]);
    /// What came out by name, and the number by which models compare, the higher the better.
    fn verdict(&mut self) -> (BTreeMap<String, f64>, f64);
}

/// Makes a judge for one validation.
pub type Judges<'a> = &'a dyn Fn() -> Box<dyn Judge + 'a>;

/// A validation cube before, distorted and restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Number of the crop.
    pub sample: u32,
    /// Its class.
    pub label: u32,
    /// What was done to it.
    pub what: String,
    /// The crop (after flips).
    pub original: Vec<f32>,
    /// The network's input.
    pub transformed: Vec<f32>,
    /// The network's output.
    pub restored: Vec<f32>,
}

/// Who watches a run.
pub trait Observer {
    /// A record of a step or an epoch, as it goes to `metrics.jsonl`.
    fn record(&mut self, record: &Value);
    /// Some restorations after an epoch that improved.
    ///
    /// # Errors
    /// What writing them meets.
    fn restorations(&mut self, epoch: u32, size: [usize; 3], rows: &[Restored]) -> Result<()>;
    /// Something a user should know.
    fn note(&mut self, text: &str);
    /// The most device memory, in bytes, that a phase has used.
    fn memory(&mut self, phase: &str, bytes: u64) {
        let _ = (phase, bytes);
    }
}

/// How the network's inputs come about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Feed {
    /// As they are.
    Plain,
    /// Distorted as the configuration says.
    Distorted,
}

/// One phase.
pub struct Phase<'a> {
    /// Device.
    pub ctx: &'a Context,
    /// Settings.
    pub config: &'a Config,
    /// Network.
    pub spec: Spec,
    /// Objective.
    pub objective: Objective,
    /// Cube or volume size.
    pub size: [usize; 3],
    /// Inputs.
    pub feed: Feed,
    /// Samples a step.
    pub batch: usize,
    /// Samples on the device at once, a divisor of `batch`.
    pub micro: usize,
    /// Whether cheap activations are computed twice instead of kept.
    pub recompute: bool,
    /// Storage of activations.
    pub precision: Precision,
    /// Optimiser.
    pub optimiser: Optimiser,
    /// Constants of the optimiser.
    pub hyper: Hyper,
    /// Largest gradient norm, 0 for none.
    pub clip_norm: f32,
    /// First learning rate.
    pub rate: f32,
    /// Schedule.
    pub rules: Rules,
    /// Most epochs.
    pub max_epochs: usize,
    /// Most steps of this phase.
    pub max_steps: Option<u64>,
    /// Training samples.
    pub train: Arc<Samples>,
    /// Validation samples.
    pub validation: Arc<Samples>,
    /// Steps between extra checkpoints, 0 for none.
    pub checkpoint_steps: usize,
    /// Where the resumable checkpoint goes.
    pub last: &'a Path,
    /// Where the best weights go.
    pub best: &'a Path,
    /// What checkpoints say besides state and configuration, by key: `origin`, and for target tasks `task`.
    pub about: Value,
    /// Factor of the encoder's learning rate; 0 leaves it as it is.
    pub encoder_rate: f32,
    /// Weights of the classes in the cross-entropy of a target task that has them.
    pub class_weights: &'a [f32],
    /// Who judges a target task.
    pub judges: Option<Judges<'a>>,
    /// Set when the user wants to stop.
    pub interrupted: &'a AtomicBool,
}

/// The sessions of a phase, with what fills their common inputs.
struct Rig {
    train: Session,
    /// In the memory of `train`: they never run at the same time.
    evaluate: Session,
    augment: Option<Augment>,
    class_weights: Vec<f32>,
    /// Stands in for the target of a graph without one.
    _target: Option<Buffer>,
}

/// Samples `first..first + n` of a batch.
#[derive(Clone, Copy)]
struct Part<'a> {
    cubes: &'a [f32],
    samples: &'a [u32],
    targets: &'a [u32],
}

impl<'a> Part<'a> {
    fn of(batch: &'a Batch, first: usize, n: usize) -> Self {
        let samples = batch.samples.len().max(1);
        let range = |len: usize| first * (len / samples)..(first + n) * (len / samples);
        Self {
            cubes: &batch.cubes[range(batch.cubes.len())],
            samples: &batch.samples[first..first + n],
            targets: &batch.targets[range(batch.targets.len())],
        }
    }
}

impl Rig {
    fn feed(&self, ctx: &Context, part: Part<'_>, draws: Draws) -> Result<()> {
        match &self.augment {
            Some(a) => a.apply(ctx, part.cubes, part.samples, draws)?,
            None => ctx.upload(self.train.input("input")?, 0, part.cubes),
        }
        if let Ok(labels) = self.train.input("labels") {
            ctx.upload(labels, 0, part.targets);
        }
        if let Ok(weights) = self.train.input("weights") {
            ctx.upload(weights, 0, &self.class_weights);
        }
        Ok(())
    }
}

impl Phase<'_> {
    /// The state at the start of the phase.
    pub fn start(&self, step: u64) -> State {
        State {
            phase: self.objective.word().into(),
            step,
            updates: 0,
            epoch: 0,
            index: 0,
            rate: self.rate,
            standing: Standing::new(self.rate),
            scaling: Scaling::default(),
            sums: vec![0.0; self.objective.losses().len()],
            done: false,
            ended_by_steps: false,
            validation: None,
        }
    }

    fn options(&self) -> Options {
        Options { recompute: self.recompute, ..Options::of(self.ctx) }
    }

    fn graph(&self, mode: Mode) -> Result<Graph> {
        Ok(self.objective.graph(&self.spec, self.micro, self.size, mode)?.stored_in(self.precision))
    }

    fn rig(&self, graph: &Graph, store: &Store) -> Result<Rig> {
        let (ctx, config) = (self.ctx, self.config);
        let train = Session::new(ctx, Plan::with(graph, ctx.caps(), &self.options())?, store)?;
        let evaluate = Plan::with(&self.graph(Mode::Evaluate)?, ctx.caps(), &self.options())?;
        let evaluate = Session::beside(ctx, evaluate, store, &train)?;
        let (mut augment, mut stand_in) = (None, None);
        if self.feed == Feed::Distorted {
            let input = train.input("input")?;
            let target = match train.input("target") {
                Ok(t) => t,
                Err(_) => stand_in.insert(ctx.buffer("semgen.target", input.bytes())?),
            };
            let t = &config.train;
            augment = Some(Augment::new(ctx, t.preset, t.flip_axes, self.micro, self.size, config.seed, input, target)?);
        }
        Ok(Rig { train, evaluate, augment, class_weights: self.class_weights.to_vec(), _target: stand_in })
    }

    /// Trains from `state`. `weights` are loaded first: all of them when resuming (with the optimiser's), those that
    /// match when starting from an earlier phase.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after an orderly stop, [`Error::Failed`] for a loss that is not finite, and what
    /// the device or the files report.
    pub fn run(&self, mut state: State, weights: Option<&Named>, log: &mut MetricsLog, observer: &mut dyn Observer) -> Result<State> {
        let ctx = self.ctx;
        let parts = self.batch / self.micro.max(1);
        if self.micro == 0 || parts * self.micro != self.batch {
            return Err(Error::Usage(format!("a micro-batch of {} does not divide a batch of {}", self.micro, self.batch)));
        }
        ctx.restart_peak();
        let graph = self.graph(Mode::Train)?;
        let store = Store::new(ctx, &graph, self.config.seed)?;
        let rig = self.rig(&graph, &store)?;
        let names = self.objective.losses();
        let losses = names.iter().map(|name| rig.train.output(name)).collect::<Result<Vec<_>>>()?;
        let rate = |name: &str| if self.spec.in_encoder(name) { self.encoder_rate } else { 1.0 };
        let mut update =
            Update::new(ctx, &store, &groups(&store.param_list, rate), self.optimiser, self.hyper, self.clip_norm, parts, &losses)?;
        let resuming = state.updates > 0;
        if state.rate != self.rate {
            // Another learning rate was asked for; the schedule's reductions so far stay.
            state.standing.rate *= self.rate / state.rate;
            state.rate = self.rate;
        }
        if let Some(named) = weights {
            load_state_dict(ctx, &store, named, resuming)?;
            if resuming {
                update.load(ctx, &store, state.updates - state.scaling.skipped.min(state.updates), named)?;
            }
        }
        if self.train.len() < self.batch {
            observer.note(&format!(
                "{} training samples are fewer than one batch of {}; samples repeat within a step",
                self.train.len(),
                self.batch
            ));
        }
        let per_epoch = u32::try_from(self.train.train_batches(self.batch)).unwrap_or(u32::MAX);
        if state.index >= per_epoch && !state.done {
            return Err(Error::Usage(format!(
                "the run stopped after batch {} of an epoch, but epochs now have {per_epoch} batches; continue with the train.batch_size it was started with",
                state.index
            )));
        }
        let key = Key::new(u64::from(self.config.seed)).fold(self.objective.stream(), 0);
        let mut loader = Loader::train(self.train.clone(), self.batch, key, state.epoch, state.index)?;
        let mixed = self.precision == Precision::Mixed;
        let mut clock = Instant::now();
        while !state.done {
            let batch = loader.next().ok_or_else(|| Error::Failed("the loader ended early".into()))??;
            let draws = Draws::Epoch(batch.epoch);
            let scale = if mixed { state.scaling.scale } else { 1.0 };
            if mixed {
                // Validation has used its memory for something else.
                ctx.upload(rig.train.input(LOSS_SCALE)?, 0, &[scale]);
                update.set_loss_scale(scale);
            }
            for part in 0..parts {
                rig.feed(ctx, Part::of(&batch, part * self.micro, self.micro), draws)?;
                rig.train.run(ctx)?;
                update.take(ctx, part)?;
            }
            update.apply(ctx, state.standing.rate)?;
            let Report { losses: found, norm } = update.report(ctx)?;
            let sound = found.iter().all(|l| l.is_finite());
            // Gradients too large for 16 bits: without this step and with a smaller scale training goes on.
            let skip = mixed && sound && !norm.is_finite() && state.scaling.overflow();
            if !sound || !(norm.is_finite() || skip) {
                let place =
                    self.first_non_finite(&store, &rig, &batch, draws).unwrap_or_else(|e| format!("a layer that was not found ({e})"));
                return Err(Error::Failed(format!(
                    "step {} ({}): the loss is {} and the gradient norm {norm}, first not finite at {place}; the last good checkpoint is {}; lower train.learning_rate or set {}",
                    state.step + 1,
                    self.objective.word(),
                    found[0],
                    self.last.display(),
                    if mixed { "train.precision = \"f32\"" } else { "train.clip_norm" }
                )));
            }
            if skip {
                update.leave_out();
            } else if mixed {
                state.scaling.good();
            }
            state.step += 1;
            state.updates += 1;
            state.index += 1;
            for (sum, &l) in state.sums.iter_mut().zip(&found) {
                *sum += f64::from(l);
            }
            let seconds = clock.elapsed().as_secs_f64();
            clock = Instant::now();
            let mut record = json!({
                "kind": "step", "phase": state.phase, "step": state.step, "epoch": state.epoch,
            });
            for (name, loss) in names.iter().zip(&found) {
                record[name] = json!(loss);
            }
            record["grad_norm"] = json!(norm);
            record["lr"] = json!(state.standing.rate);
            if mixed {
                record["loss_scale"] = json!(scale);
                record["skipped"] = json!(state.scaling.skipped);
            }
            record["cubes_per_s"] = json!(self.batch as f64 / seconds.max(1e-9));
            log.append(&record)?;
            observer.record(&record);
            let limit = self.max_steps.is_some_and(|m| state.updates >= m);
            if state.index == per_epoch || limit {
                self.end_epoch(&mut state, &store, &rig, log, observer)?;
                state.ended_by_steps = limit;
                state.done = limit || state.epoch as usize >= self.max_epochs || state.standing.stops(&self.rules);
                self.save_last(&state, &store, &update, log)?;
                clock = Instant::now();
            } else if self.checkpoint_steps > 0 && state.updates.is_multiple_of(self.checkpoint_steps as u64) {
                self.save_last(&state, &store, &update, log)?;
            }
            if self.interrupted.load(Ordering::Relaxed) {
                observer.memory(self.objective.word(), ctx.recent_peak());
                self.save_last(&state, &store, &update, log)?;
                return Err(Error::Interrupted(format!("stopped after step {}; continue with --resume", state.step)));
            }
        }
        observer.memory(self.objective.word(), ctx.recent_peak());
        Ok(state)
    }

    fn end_epoch(&self, state: &mut State, store: &Store, rig: &Rig, log: &mut MetricsLog, observer: &mut dyn Observer) -> Result<()> {
        let steps = f64::from(state.index.max(1));
        let (validation, rows, cost) = self.validate(rig, state.epoch)?;
        let improved = state.standing.epoch(&self.rules, cost);
        let mut record = json!({
            "kind": "epoch", "phase": state.phase, "epoch": state.epoch, "step": state.step,
            "loss": state.sums[0] / steps, "val_loss": validation.loss,
        });
        if self.objective.restores() {
            record["val_loss_rec"] = json!(validation.restoration);
            record["identity_error"] = json!(validation.identity);
        }
        if self.objective.classifies() {
            record["val_loss_cls"] = json!(validation.classification);
            record["val_accuracy"] = json!(validation.accuracy);
        }
        for (name, value) in &validation.metrics {
            record[format!("val_{name}")] = json!(value);
        }
        record["lr"] = json!(state.standing.rate);
        log.append(&record)?;
        observer.record(&record);
        if !validation.loss.is_finite() {
            return Err(Error::Failed(format!(
                "epoch {}: the validation loss is {}; lower train.learning_rate",
                state.epoch, validation.loss
            )));
        }
        state.validation = Some(validation);
        state.epoch += 1;
        state.index = 0;
        state.sums.fill(0.0);
        if improved {
            if !rows.is_empty() {
                observer.restorations(state.epoch, self.size, &rows)?;
            }
            let file = File { tensors: state_dict(self.ctx, store, self.batches_seen(state))?, metadata: Some(self.metadata(state)?) };
            file.write(self.best)?;
        }
        Ok(())
    }

    /// Means over all validation samples, some restorations, and the number by which models compare, the lower the better.
    fn validate(&self, rig: &Rig, epoch: u32) -> Result<(Validation, Vec<Restored>, f64)> {
        let ctx = self.ctx;
        let draws = Draws::validation(self.config.train.val_transform, epoch);
        let (mut v, mut count, mut rows) = (Validation::default(), 0.0, Vec::new());
        let (restores, classifies) = (self.objective.restores(), self.objective.classifies());
        let task = self.objective.target().is_some();
        let names: Vec<&str> =
            [("loss_rec", restores), ("identity", restores), ("loss_cls", classifies), ("correct", classifies), ("loss_ce", task)]
                .into_iter()
                .filter(|n| n.1)
                .map(|n| n.0)
                .collect();
        let mut judge = self.judges.map(|new| new());
        let answers = if matches!(self.objective, Objective::Segment { .. }) { "decided" } else { "logits" };
        for batch in Loader::validation(self.validation.clone(), self.micro)? {
            let batch = batch?;
            rig.feed(ctx, Part::of(&batch, 0, self.micro), draws)?;
            rig.evaluate.run(ctx)?;
            for (name, values) in names.iter().zip(rig.evaluate.read_all::<f32>(ctx, &names)?) {
                let into = match *name {
                    "loss_rec" => &mut v.restoration,
                    "identity" => &mut v.identity,
                    "loss_cls" | "loss_ce" => &mut v.classification,
                    _ => &mut v.accuracy,
                };
                *into += values[..batch.valid].iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            count += batch.valid as f64;
            if let Some(judge) = &mut judge {
                let found = rig.evaluate.read::<u32>(ctx, answers)?;
                let part = |values: &[u32]| values[..values.len() / self.micro * batch.valid].to_vec();
                judge.take(&batch.samples[..batch.valid], &part(&found), &part(&batch.targets));
            }
            if rows.len() < ROWS && restores {
                rows.extend(self.rows(rig, &batch, draws, ROWS - rows.len())?);
            }
        }
        for x in [&mut v.restoration, &mut v.identity, &mut v.classification, &mut v.accuracy] {
            *x /= count;
        }
        v.loss = match self.objective {
            Objective::Autoencoder { .. } => v.restoration,
            Objective::Classification { .. } => v.classification,
            Objective::Joint { restoration, classification, .. } => {
                f64::from(restoration) * v.restoration + f64::from(classification) * v.classification
            }
            Objective::Segment { .. } | Objective::Classify { .. } => v.classification,
        };
        let mut cost = v.loss;
        if let Some(judge) = &mut judge {
            let (metrics, score) = judge.verdict();
            v.metrics = metrics;
            cost = -score;
        }
        Ok((v, rows, cost))
    }

    /// The first restorations, `most` at most, of the validation batch that has just run.
    fn rows(&self, rig: &Rig, batch: &Batch, draws: Draws, most: usize) -> Result<Vec<Restored>> {
        let n = batch.valid.min(most);
        let voxels: usize = self.size.iter().product();
        let read = |buffer: &Buffer| self.ctx.read::<f32>(buffer, 0, n * voxels);
        let input = read(rig.evaluate.input("input")?)?;
        let target = if self.feed == Feed::Distorted { read(rig.evaluate.input("target")?)? } else { input.clone() };
        let restored = read(rig.evaluate.output("restored")?)?;
        Ok((0..n)
            .map(|i| {
                let part = |v: &[f32]| v[i * voxels..(i + 1) * voxels].to_vec();
                let what = rig.augment.as_ref().map_or(String::new(), |a| crate::transform::describe(&a.draw(batch.samples[i], draws)));
                Restored {
                    sample: batch.samples[i],
                    label: batch.targets[i],
                    what,
                    original: part(&target),
                    transformed: part(&input),
                    restored: part(&restored),
                }
            })
            .collect())
    }

    /// Batches that the batch norms have seen, which PyTorch counts.
    fn batches_seen(&self, state: &State) -> u64 {
        state.updates * (self.batch / self.micro.max(1)) as u64
    }

    fn metadata(&self, state: &State) -> Result<String> {
        let mut value = json!({
            "format": "semgen-checkpoint-1",
            "network": self.objective.word(),
            "state": serde_json::to_value(state).map_err(|e| Error::Failed(e.to_string()))?,
            "config": self.config.to_toml(),
        });
        for (key, what) in self.about.as_object().into_iter().flatten() {
            value[key] = what.clone();
        }
        Ok(value.to_string())
    }

    fn save_last(&self, state: &State, store: &Store, update: &Update, log: &MetricsLog) -> Result<()> {
        // A checkpoint that survives a power cut must not outlive the records of its steps.
        log.sync()?;
        let mut tensors = state_dict(self.ctx, store, self.batches_seen(state))?;
        update.save(self.ctx, store, &mut tensors)?;
        File { tensors, metadata: Some(self.metadata(state)?) }.write(self.last)
    }

    /// Runs the step again with every value kept and names the first operation whose result is not finite.
    fn first_non_finite(&self, store: &Store, rig: &Rig, batch: &Batch, draws: Draws) -> Result<String> {
        let ctx = self.ctx;
        let graph = self.graph(Mode::Train)?;
        // Every operation by itself: the more there are, the better the place is known.
        let options = Options { share: false, fusion: Some(Fusion::NONE), ..Options::of(ctx) };
        let trace = Session::new(ctx, Plan::with(&graph, ctx.caps(), &options)?, store)?;
        for first in (0..self.batch).step_by(self.micro) {
            rig.feed(ctx, Part::of(batch, first, self.micro), draws)?;
            for (name, value) in graph.inputs() {
                let data: Vec<u32> = ctx.read(rig.train.input(name)?, 0, graph.shape(*value).len())?;
                ctx.upload(trace.input(name)?, 0, &data);
            }
            trace.run(ctx)?;
            for (node, op) in graph.nodes().iter().zip(&trace.plan().ops) {
                for &value in &node.outputs {
                    if let Some(values) = trace.read_value(ctx, value)?
                        && values.iter().any(|v| !v.is_finite())
                    {
                        return Ok(format!("layer {} ({})", node.label, op.op));
                    }
                }
            }
        }
        Ok("a parameter's gradient".into())
    }
}
