//! The graphs that are trained: network, losses and, for training, the gradient.

use crate::error::Result;
use crate::graph::{Graph, Shape, ValueId};
use crate::kernels::loss::Pointwise;
use crate::model::{Mode, Spec};
use crate::nn;

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
}

impl Objective {
    /// The word used for it in records and checkpoints.
    pub fn word(self) -> &'static str {
        match self {
            Self::Autoencoder { .. } => "autoencoder",
            Self::Classification { .. } => "classification",
            Self::Joint { .. } => "joint",
        }
    }

    /// Number that keeps the orders of samples of different phases apart.
    pub(super) fn stream(self) -> u32 {
        match self {
            Self::Autoencoder { .. } => 0,
            Self::Classification { .. } => 1,
            Self::Joint { .. } => 2,
        }
    }

    /// Whether it restores images.
    pub fn restores(self) -> bool {
        !matches!(self, Self::Classification { .. })
    }

    /// Whether it names classes.
    pub fn classifies(self) -> bool {
        !matches!(self, Self::Autoencoder { .. })
    }

    /// The losses that a training step has, by the names of the graph's outputs; the one that is minimised first.
    pub fn losses(self) -> Vec<&'static str> {
        let applies = [("loss", true), ("loss_rec", self.restores()), ("loss_cls", self.classifies())];
        applies.into_iter().filter(|l| l.1).map(|l| l.0).collect()
    }

    /// The graph for batches of `batch` cubes of `grid`.
    ///
    /// Inputs: `input` `[N, x, y, z, 1]`, `target` alike (except for classification), `labels` `[N]` (u32).
    /// Training outputs: `loss`, `loss_rec`, `loss_cls`, one number each, those that apply. Evaluation
    /// outputs, one number a sample: `loss_rec`, `identity` (loss of the input itself), `loss_cls`,
    /// `correct`; besides `restored` and `logits`.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] when the grid does not suit the network.
    pub fn graph(self, spec: &Spec, batch: usize, grid: [usize; 3], mode: Mode) -> Result<Graph> {
        let mut g = Graph::new();
        let x = nn::image(&mut g, "input", batch, grid);
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
                Self::Classification { .. } => unreachable!("classification restores nothing"),
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
            Self::Autoencoder { .. } => None,
            Self::Classification { classes } => Some((classes, 1.0)),
            Self::Joint { classes, classification, .. } => Some((classes, classification)),
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
        }
        Ok(g)
    }
}

/// The graph that describes patients: `features` `[N, 16 · base]`, the mean over space of the deepest block's
/// output with running statistics, from `input`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when the grid does not suit the network.
pub fn features(spec: &Spec, batch: usize, grid: [usize; 3]) -> Result<Graph> {
    let mut g = Graph::new();
    let x = nn::image(&mut g, "input", batch, grid);
    let encoded = spec.encoder(&mut g, x, Mode::Evaluate)?;
    let f = g.global_avg_pool("features", encoded.deepest);
    g.output("features", f);
    Ok(g)
}
