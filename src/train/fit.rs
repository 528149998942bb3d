//! What a phase needs of a device, and how many samples at once a device can take.
//!
//! A step of a batch runs its plan once for each part of it. The parts are as large as the adapter's limits and the memory
//! allow, so that any batch can be trained on any adapter. Everything is planned; nothing is allocated.

use serde::Serialize;

use super::network::Objective;
use super::update::{Group, Update, groups};
use crate::config::{Auto, Config, Optimiser, Precision};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Kind, STAGING};
use crate::graph::{Graph, Tensors, Value};
use crate::model::{Mode, Spec};
use crate::plan::{Options, Plan};
use crate::transform::Augment;

const GIB: f64 = (1u64 << 30) as f64;
/// Share of the host's free memory that a CPU adapter may take.
const SHARE: f64 = 0.75;

/// A phase as far as its needs are concerned.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Objective.
    pub objective: Objective,
    /// Network.
    pub spec: Spec,
    /// Samples a step.
    pub batch: usize,
    /// Cube or volume size.
    pub size: [usize; 3],
    /// Storage of activations.
    pub precision: Precision,
    /// Optimiser.
    pub optimiser: Optimiser,
    /// Factor of the encoder's learning rate.
    pub encoder_rate: f32,
}

/// Device memory in bytes, as it is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Parameters, gradients, running statistics.
    pub weights: u64,
    /// Moments of the optimiser, its scalars and scratch.
    pub optimiser: u64,
    /// Sum of the gradients, for a batch in parts.
    pub accumulation: u64,
    /// Inputs, activations, their gradients, scratch and parameters of kernels of a training step.
    pub training: u64,
    /// What validation needs besides, which uses the memory of the training step.
    pub validation: u64,
    /// Distorting the inputs.
    pub augmentation: u64,
    /// Reading back.
    pub readback: u64,
    /// All of it.
    pub total: u64,
}

/// A phase planned for a micro-batch.
#[derive(Clone, Debug)]
pub struct Need {
    /// Samples on the device at once.
    pub micro: usize,
    /// Plan of a training step's part.
    pub train: Plan,
    /// Memory.
    pub memory: Memory,
}

impl Stage {
    /// The two phases of pretraining; a first phase that is left out is not there.
    pub fn pretraining(config: &Config) -> Vec<Self> {
        let (t, classes) = (&config.train, config.model.classes);
        let stage = |objective| Self {
            objective,
            spec: Spec::from(&config.model),
            batch: t.batch_size,
            size: config.cube.size,
            precision: t.precision,
            optimiser: t.optimiser,
            encoder_rate: 1.0,
        };
        let joint = Objective::Joint { classes, restoration: config.loss.restoration, classification: config.loss.classification };
        let first = t.classification_epochs > 0 && t.max_steps != 1;
        first.then_some(Objective::Classification { classes }).into_iter().chain([joint]).map(stage).collect()
    }

    /// The parameters by their learning rates.
    pub fn groups(&self, list: &Tensors) -> Vec<Group> {
        groups(list, |name| if self.spec.in_encoder(name) { self.encoder_rate } else { 1.0 })
    }

    /// The graph of a step or of a validation with `micro` samples.
    ///
    /// # Errors
    /// [`Error::Shape`] for a grid that does not suit the network.
    pub fn graph(&self, micro: usize, mode: Mode) -> Result<Graph> {
        Ok(self.objective.graph(&self.spec, micro, self.size, mode)?.stored_in(self.precision))
    }

    /// Plans a step in parts of `micro` samples as `options` say.
    ///
    /// # Errors
    /// [`Error::ExceedsLimit`] when the adapter cannot do it, [`Error::Shape`] for a grid that does not suit the network.
    pub fn need(&self, config: &Config, caps: &Caps, options: &Options, micro: usize) -> Result<Need> {
        let plan = |mode| Plan::with(&self.graph(micro, mode)?, caps, options);
        let (train, evaluate) = (plan(Mode::Train)?, plan(Mode::Evaluate)?);
        let (t, mut augmentation) = (&config.train, 0);
        if self.objective.classifies() {
            augmentation = Augment::device_bytes(caps, t.preset, t.flip_axes, micro, self.size)?;
            // Without restoration, the undistorted crops need a place of their own.
            if !self.objective.restores() {
                augmentation += (micro * self.size.iter().product::<usize>()) as u64 * 4;
            }
        }
        let clip = t.clip_norm;
        let update = Update::device_bytes(
            caps,
            &self.groups(&train.graph.params),
            self.optimiser,
            clip,
            self.batch / micro,
            self.objective.losses().len(),
        )?;
        let mut memory = Memory {
            weights: train.store_bytes(0),
            optimiser: update.moments + update.rest,
            accumulation: update.sum,
            training: train.session_bytes(caps),
            validation: evaluate.session_bytes_beside(caps, &train),
            augmentation,
            readback: STAGING,
            total: 0,
        };
        let m = &memory;
        memory.total = m.weights + m.optimiser + m.accumulation + m.training + m.validation + m.augmentation + m.readback;
        Ok(Need { micro, train, memory })
    }

    /// Whether a plan of `micro` samples is out of the question, found without making it.
    fn hopeless(&self, caps: &Caps, micro: usize, budget: Option<u64>) -> Result<bool> {
        let graph = self.graph(micro, Mode::Train)?;
        let largest = graph.values().iter().map(Value::bytes).max().unwrap_or(0);
        Ok(largest > caps.max_buffer || budget.is_some_and(|b| largest > b))
    }
}

/// How much device memory may be used, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Bytes; `None`: nothing is known.
    pub bytes: Option<u64>,
    /// In words.
    pub why: String,
    /// Whether the user has said so.
    given: bool,
}

impl Budget {
    /// The memory that `config` allows on an adapter, or that is free there.
    pub fn new(config: &Config, caps: &Caps) -> Self {
        let free = || if caps.kind == Kind::Cpu { free_memory() } else { None };
        Self::of(config.train.memory, free)
    }

    fn of(setting: Auto<f64>, free: impl Fn() -> Option<u64>) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive numbers of bytes")]
        let whole = |bytes: f64| bytes as u64;
        match (setting.given(), free()) {
            (Some(gib), _) => Self { bytes: Some(whole(gib * GIB)), why: format!("train.memory = {gib} GiB"), given: true },
            (None, Some(free)) => {
                let bytes = whole(free as f64 * SHARE);
                let why = format!("{:.1} GiB, three quarters of the free memory", bytes as f64 / GIB);
                Self { bytes: Some(bytes), why, given: false }
            }
            (None, None) => Self { bytes: None, why: "memory unknown; train.memory bounds it".into(), given: false },
        }
    }
}

/// Bytes of the host's memory that are free, where the system tells.
fn free_memory() -> Option<u64> {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| text(path)?.trim().parse::<u64>().ok();
    let line = text("/proc/meminfo")?.lines().find_map(|l| l.strip_prefix("MemAvailable:").map(str::to_owned))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()? << 10;
    // A container may be allowed less.
    let limit =
        number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current")).map(|(most, now)| most.saturating_sub(now));
    Some(free.min(limit.unwrap_or(u64::MAX)))
}

/// How a batch is taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Samples on the device at once.
    pub micro_batch: usize,
    /// Samples of a step.
    pub batch_size: usize,
    /// Whether cheap activations are computed twice.
    pub recompute: bool,
    /// Device bytes that the largest phase needs.
    pub device_bytes: u64,
    /// Why.
    pub why: String,
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.batch_size / self.micro_batch.max(1);
        let gib = self.device_bytes as f64 / GIB;
        write!(f, "micro_batch = {} of {} ({parts} a step, {gib:.2} GiB", self.micro_batch, self.batch_size)?;
        write!(f, "{}): {}", if self.recompute { ", recomputing" } else { "" }, self.why)
    }
}

/// Limits name the phase that meets them.
fn of_phase(objective: Objective, e: Error) -> Error {
    match e {
        Error::ExceedsLimit { what, need, have, remedy } => {
            Error::ExceedsLimit { what: format!("the {} phase: {what}", objective.word()), need, have, remedy }
        }
        other => other,
    }
}

/// The micro-batch for phases of one batch size: the one that is `given`, or else the largest with which every phase keeps
/// within the adapter's limits and the memory that `config` allows, planned as `options` say but for recomputation, which
/// `config` decides. Where even one sample needs more than the memory that
/// is merely found free, it is tried all the same.
///
/// # Errors
/// [`Error::ExceedsLimit`] when nothing fits, or not what is given.
pub fn fit(config: &Config, caps: &Caps, options: &Options, stages: &[Stage], given: Auto<usize>) -> Result<Fit> {
    let budget = Budget::new(config, caps);
    let batch = stages.first().map_or(1, |s| s.batch);
    let sizes: Vec<usize> = match given.given() {
        Some(micro) => vec![micro],
        None => (1..=batch).rev().filter(|m| batch.is_multiple_of(*m)).collect(),
    };
    let ways: &[bool] = match config.train.recompute {
        Auto::Given(false) => &[false],
        Auto::Given(true) => &[true],
        Auto::Auto(_) => &[false, true],
    };
    // The largest need of all phases, or what does not fit.
    let needs = |micro: usize, recompute: bool| -> Result<u64> {
        let (mut most, options) = (0, Options { recompute, ..options.clone() });
        for s in stages {
            most = most.max(s.need(config, caps, &options, micro).map_err(|e| of_phase(s.objective, e))?.memory.total);
        }
        Ok(most)
    };
    let mut least: Option<(usize, bool, u64)> = None;
    let mut refused: Option<Error> = None;
    for &micro in &sizes {
        let last = Some(&micro) == sizes.last();
        let mut hopeless = false;
        for s in stages {
            hopeless |= s.hopeless(caps, micro, budget.bytes)?;
        }
        if hopeless && !last {
            continue;
        }
        for &recompute in ways {
            match needs(micro, recompute) {
                Ok(bytes) if budget.bytes.is_none_or(|b| bytes <= b) => {
                    let why = match (given.given(), micro == batch) {
                        (Some(_), _) => "as set".into(),
                        (None, true) => format!("the whole batch ({})", budget.why),
                        (None, false) => format!("the most that the adapter and its memory allow ({})", budget.why),
                    };
                    return Ok(Fit { micro_batch: micro, batch_size: batch, recompute, device_bytes: bytes, why });
                }
                Ok(bytes) => {
                    if least.is_none_or(|l| bytes < l.2) {
                        least = Some((micro, recompute, bytes));
                    }
                }
                Err(e @ Error::ExceedsLimit { .. }) => refused = Some(e),
                Err(e) => return Err(e),
            }
        }
    }
    match (least, refused) {
        (Some((micro, recompute, bytes)), _) if !budget.given => {
            let why = format!("more than seems to be free ({}), tried all the same", budget.why);
            Ok(Fit { micro_batch: micro, batch_size: batch, recompute, device_bytes: bytes, why })
        }
        (Some((micro, _, bytes)), _) => Err(Error::ExceedsLimit {
            what: format!("a micro-batch of {micro}"),
            need: format!("{:.2} GiB of device memory", bytes as f64 / GIB),
            have: format!("{:.2} GiB (train.memory)", budget.bytes.unwrap_or(0) as f64 / GIB),
            remedy: "set a larger train.memory, a smaller micro_batch, train.recompute=true, a smaller cube.size or model.base_channels"
                .into(),
        }),
        (None, Some(e)) => Err(e),
        (None, None) => Err(Error::Usage("train.batch_size is 0; at least 1 is needed".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Config {
        let small = ["model.base_channels=2", "cube.size=[16,16,8]", "train.batch_size=12"];
        Config::load(None, &[&small[..], more].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn fitted(caps: &Caps, more: &[&str]) -> Result<Fit> {
        let c = config(more);
        fit(&c, caps, &Options::default(), &Stage::pretraining(&c), c.train.micro_batch)
    }

    #[test]
    fn the_largest_divisor_within_limits_and_memory_is_taken() {
        let caps = Caps::minimal();
        let whole = fitted(&caps, &[]).unwrap();
        assert_eq!((whole.micro_batch, whole.batch_size, whole.recompute), (12, 12, false));
        assert!(whole.why.contains("whole batch"), "{whole}");
        let c = config(&[]);
        let stages = Stage::pretraining(&c);
        let of = |micro| stages.iter().map(|s| s.need(&c, &caps, &Options::default(), micro).unwrap().memory.total).max().unwrap();
        // Just enough for each divisor, and a little less.
        let divisors = [12, 6, 4, 3, 2, 1];
        for (i, &m) in divisors.iter().enumerate() {
            let gib = |bytes: u64| format!("train.memory={:.12}", bytes as f64 / GIB);
            let found = fitted(&caps, &[&gib(of(m) + 16)]).unwrap();
            assert_eq!(found.micro_batch, m);
            assert!(found.device_bytes == of(m) && found.to_string().contains("train.memory"), "{found}");
            let less = fitted(&caps, &[&gib(of(m) - 16)]);
            match divisors.get(i + 1) {
                Some(&next) => assert_eq!(less.unwrap().micro_batch, next),
                None => assert!(less.unwrap_err().to_string().contains("train.memory")),
            }
        }
        assert_eq!(fitted(&caps, &["train.micro_batch=3"]).unwrap().micro_batch, 3);
    }

    #[test]
    fn batches_beyond_the_adapters_buffers_are_taken_apart() {
        let caps = Caps { max_buffer: 1 << 20, ..Caps::minimal() };
        // The largest scratch of one sample takes 0.8 MiB.
        let found = fitted(&caps, &[]).unwrap();
        assert!(found.micro_batch < 12 && 12 % found.micro_batch == 0, "{found}");
        let many = fitted(&Caps::minimal(), &["train.batch_size=4096", "train.memory=0.05"]).unwrap();
        assert!(many.micro_batch.is_power_of_two() && many.micro_batch < 256, "{many}");
        let tiny = Caps { max_binding: 16 << 10, max_buffer: 16 << 10, ..Caps::minimal() };
        let e = fitted(&tiny, &[]).unwrap_err().to_string();
        assert!(e.contains("classification phase") && e.contains("needs"), "{e}");
    }

    #[test]
    fn what_is_merely_found_free_is_no_reason_to_refuse() {
        let free = Budget::of(Auto::AUTO, || Some(4 << 30));
        assert_eq!((free.bytes, free.given), (Some(3 << 30), false));
        let given = Budget::of(Auto::Given(0.5), || Some(4 << 30));
        assert_eq!((given.bytes, given.given), (Some(1 << 29), true));
        assert_eq!(Budget::of(Auto::AUTO, || None).bytes, None);
    }
}
