//! The graphs that are trained: network, losses and, for training, the gradient.

use serde::{Deserialize, Serialize};

use crate::config::Norm;
use crate::error::Result;
use crate::graph::{Graph, Shape, ValueId};
use crate::kernels::activation::Function;
use crate::kernels::loss::Pointwise;
use crate::model::{Mode, Spec};
use crate::nn;

/// How logits answer the question of a target task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// One logit: whether it is class 1 rather than class 0 (sigmoid).
    Binary,
    /// One logit a class, of which one holds (softmax).
    Multiclass,
    /// One logit a class, each of which may hold (sigmoid).
    Multilabel,
}

/// A target task, as far as its network is concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// What logits mean.
    pub output: Output,
    /// Number of logits.
    pub outputs: usize,
    /// Whether there are class weights (an input `weights` `[outputs]`); only for [`Output::Multiclass`].
    pub weighted: bool,
    /// Whether the encoder keeps its parameters and running statistics.
    pub frozen: bool,
}

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Restore the input itself (describes patients).
    Autoencoder {
        /// Skip connections.
        skips: bool,
    },
    /// Name the class of a distorted crop: encoder and class head.
    Classification {
        /// Number of classes.
        classes: usize,
    },
    /// Restore the crop and name its class: the Y-Net.
    Joint {
        /// Number of classes.
        classes: usize,
        /// Weight of the restoration loss.
        restoration: f32,
        /// Weight of the classification loss.
        classification: f32,
    },
    /// Name the class of every voxel: a target task.
    Segment {
        /// The task.
        target: Target,
        /// Weight of the soft Dice loss.
        dice: f32,
        /// Weight of the cross-entropy.
        cross_entropy: f32,
    },
    /// Name the class of the cube: a target task.
    Classify {
        /// The task.
        target: Target,
    },
}

impl Objective {
    /// The word used for it in records and checkpoints.
    pub fn word(self) -> &'static str {
        match self {
            Self::Autoencoder { .. } => "autoencoder",
            Self::Classification { .. } => "classification",
            Self::Joint { .. } => "joint",
            Self::Segment { .. } => "segment",
            Self::Classify { .. } => "classify",
        }
    }

    /// Number that keeps the orders of samples of different phases apart.
    pub(super) fn stream(self) -> u32 {
        match self {
            Self::Autoencoder { .. } => 0,
            Self::Classification { .. } => 1,
            Self::Joint { .. } => 2,
            Self::Segment { .. } => 3,
            Self::Classify { .. } => 4,
        }
    }

    /// Whether it restores images.
    pub fn restores(self) -> bool {
        matches!(self, Self::Autoencoder { .. } | Self::Joint { .. })
    }

    /// Whether it names pseudo classes.
    pub fn classifies(self) -> bool {
        matches!(self, Self::Classification { .. } | Self::Joint { .. })
    }

    /// The target task, if it is one.
    pub fn target(self) -> Option<Target> {
        match self {
            Self::Segment { target, .. } | Self::Classify { target } => Some(target),
            _ => None,
        }
    }

    /// The losses that a training step has, by the names of the graph's outputs; the one that is minimised first.
    pub fn losses(self) -> Vec<&'static str> {
        let applies = match self {
            Self::Segment { dice, cross_entropy, .. } => [("loss_dice", dice > 0.0), ("loss_ce", cross_entropy > 0.0)],
            Self::Classify { .. } => [("loss_dice", false), ("loss_ce", true)],
            _ => [("loss_rec", self.restores()), ("loss_cls", self.classifies())],
        };
        std::iter::once("loss").chain(applies.into_iter().filter(|l| l.1).map(|l| l.0)).collect()
    }

    /// The graph for batches of `batch` cubes of `grid`.
    ///
    /// Inputs: `input` `[N, x, y, z, 1]`, `target` alike (except for classification), `labels` `[N]` (u32).
    /// Training outputs: `loss`, `loss_rec`, `loss_cls`, one number each, those that apply. Evaluation
    /// outputs, one number a sample: `loss_rec`, `identity` (loss of the input itself), `loss_cls`,
    /// `correct`; besides `restored` and `logits`.
    ///
    /// Target tasks take `labels` for each voxel `[N, x, y, z, 1]` or cube `[N, 1, 1, 1, outputs or 1]`: classes (u32) where one
    /// of several holds, signed weights (see [`Pointwise::Logistic`]) else. Training outputs: `loss`, `loss_dice`, `loss_ce`, those
    /// that apply. Evaluation outputs: `loss_ce` per sample, `logits`, and for segmentation `decided`: the class of every voxel,
    /// u32 where one of several holds, else 0 or 1 as floats.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] when the grid does not suit the network.
    pub fn graph(self, spec: &Spec, batch: usize, grid: [usize; 3], mode: Mode) -> Result<Graph> {
        let mut g = Graph::new();
        let x = spec.input(&mut g, "input", batch, grid);
        if let Some(target) = self.target() {
            return self.target_graph(g, x, spec, target, mode);
        }
        let encoded = spec.encoder(&mut g, x, mode)?;
        let mut losses: Vec<(ValueId, f32)> = Vec::new();
        // A loss in both forms: the mean for training, per sample for evaluation.
        let loss = |g: &mut Graph, name: &str, per_sample: ValueId| match mode {
            Mode::Train => {
                let mean = g.mean(name, per_sample);
                g.output(name, mean);
                mean
            }
            Mode::Evaluate => {
                g.output(name, per_sample);
                per_sample
            }
        };
        if self.restores() {
            let (target, concat, weight) = match self {
                Self::Autoencoder { skips } => (x, skips, 1.0),
                Self::Joint { restoration, .. } => (nn::image(&mut g, "target", batch, grid), true, restoration),
                _ => unreachable!("the others restore nothing"),
            };
            let restored = spec.restoration(&mut g, &encoded, concat, mode)?;
            let mse = g.pointwise_loss("loss_rec", Pointwise::Mse, restored, target)?;
            losses.push((loss(&mut g, "loss_rec", mse), weight));
            if mode == Mode::Evaluate {
                g.output("restored", restored);
                let identity = g.pointwise_loss("identity", Pointwise::Mse, x, target)?;
                g.output("identity", identity);
            }
        }
        let head = match self {
            Self::Classification { classes } => Some((classes, 1.0)),
            Self::Joint { classes, classification, .. } => Some((classes, classification)),
            _ => None,
        };
        if let Some((classes, weight)) = head {
            let labels = g.input("labels", Shape::per_sample(batch));
            let logits = spec.class_head(&mut g, &encoded, classes, mode)?;
            let ce = g.cross_entropy("loss_cls", logits, labels)?;
            losses.push((loss(&mut g, "loss_cls", ce), weight));
            if mode == Mode::Evaluate {
                g.output("logits", logits);
                let correct = g.correct("correct", logits, labels)?;
                g.output("correct", correct);
            }
        }
        if mode == Mode::Train {
            minimise(&mut g, losses)?;
        }
        Ok(g)
    }

    /// [`Objective::graph`] of a target task.
    fn target_graph(self, mut g: Graph, x: ValueId, spec: &Spec, target: Target, mode: Mode) -> Result<Graph> {
        let Target { output, outputs, weighted, frozen } = target;
        let s = g.shape(x);
        let encoded = if frozen {
            let fixed = Spec { norm: Norm::Running, ..spec.clone() };
            let encoded = fixed.encoder(&mut g, x, Mode::Evaluate)?;
            g.freeze(|_| true);
            encoded
        } else {
            spec.encoder(&mut g, x, mode)?
        };
        let (logits, dice, cross_entropy) = match self {
            Self::Segment { dice, cross_entropy, .. } => (spec.segmentation(&mut g, &encoded, outputs, mode)?, dice, cross_entropy),
            _ => (spec.classifier(&mut g, &encoded, outputs)?, 0.0, 1.0),
        };
        let of = g.shape(logits);
        let several = output == Output::Multiclass;
        let labels = g.input("labels", if several { Shape { channels: 1, ..of } } else { of });
        let mut losses: Vec<(ValueId, f32)> = Vec::new();
        if cross_entropy > 0.0 || mode == Mode::Evaluate {
            let mut loss = if several {
                let mut rows = g.cross_entropy("loss_ce", logits, labels)?;
                if weighted {
                    let weights = g.input("weights", Shape::vector(outputs));
                    rows = g.weigh("loss_ce", rows, labels, weights)?;
                }
                if mode == Mode::Evaluate { g.global_avg_pool("loss_ce", rows) } else { rows }
            } else {
                g.pointwise_loss("loss_ce", Pointwise::Logistic, logits, labels)?
            };
            if mode == Mode::Train {
                loss = g.mean("loss_ce", loss);
                losses.push((loss, cross_entropy));
            }
            g.output("loss_ce", loss);
        }
        if dice > 0.0 && mode == Mode::Train {
            let loss = if several {
                let probability = g.softmax("softmax", logits);
                g.class_dice("loss_dice", probability, labels, 1)?
            } else {
                let mask = g.activation("mask", Function::Step, labels);
                let probability = g.activation("probability", Function::Sigmoid, logits);
                g.soft_dice("loss_dice", probability, mask)?
            };
            g.output("loss_dice", loss);
            losses.push((loss, dice));
        }
        if mode == Mode::Train {
            minimise(&mut g, losses)?;
        } else {
            g.output("logits", logits);
            if of.grid == s.grid {
                let decided = if several { g.arg_max("decided", logits) } else { g.activation("decided", Function::Step, logits) };
                g.output("decided", decided);
            }
        }
        Ok(g)
    }
}

/// Appends the weighted sum of losses of one number each as the output `loss`, and its gradient.
fn minimise(g: &mut Graph, losses: Vec<(ValueId, f32)>) -> Result<()> {
    let mut total: Option<ValueId> = None;
    for (value, weight) in losses {
        let term = if weight == 1.0 { value } else { g.scale("loss", value, weight) };
        total = Some(match total {
            Some(t) => g.add("loss", t, term)?,
            None => term,
        });
    }
    if let Some(total) = total {
        g.output("loss", total);
        g.backward(total, &[])?;
    }
    Ok(())
}

/// The graph that describes patients: `features` `[N, 16 · base]`, the mean over space of the deepest block's
/// output with running statistics, from `input`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when the grid does not suit the network.
pub fn features(spec: &Spec, batch: usize, grid: [usize; 3]) -> Result<Graph> {
    let mut g = Graph::new();
    let x = spec.input(&mut g, "input", batch, grid);
    let encoded = spec.encoder(&mut g, x, Mode::Evaluate)?;
    let f = g.global_avg_pool("features", encoded.deepest);
    g.output("features", f);
    Ok(g)
}
