//! The networks: encoder, decoder, class head, and what is made of them.
//!
//! Graph axes D, H, W are the scan's x, y, z, so weights go to and from PyTorch without any
//! permutation. Names are PyTorch's: `down_tr64.ops.0.conv1.weight` and so on, whatever the width.
//! The Keras variant has `depth_N.conv`, `depth_N.bn`, `final_conv`, `cls_fc` and `cls_output`.

use crate::config::{Activation, Model, Norm, Variant};
use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Upsampling, ValueId};
use crate::kernels::activation::Function;
use crate::nn::{self, Start, Statistics};

/// Whether a network is built for training or for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics that move the running ones.
    Train,
    /// The statistics of `model.norm`; nothing is changed.
    Evaluate,
}

/// A network's description.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Channels of the first convolution.
    pub base: usize,
    /// Levels, the deepest included.
    pub depth: usize,
    /// Variant.
    pub variant: Variant,
    /// Activation.
    pub activation: Activation,
    /// Statistics when evaluating.
    pub norm: Norm,
    /// Channels of the input; 1 unless a target task has more.
    pub channels: usize,
}

impl From<&Model> for Spec {
    fn from(m: &Model) -> Self {
        Self { base: m.base_channels, depth: m.depth, variant: m.variant, activation: m.activation, norm: m.norm, channels: 1 }
    }
}

/// What the encoder computes.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Block outputs before pooling, shallowest first.
    pub skips: Vec<ValueId>,
    /// Output of the deepest block.
    pub deepest: ValueId,
}

impl Spec {
    /// The network that describes patients: the Keras variant, as published.
    pub fn autoencoder(base: usize, depth: usize) -> Self {
        Self { base, depth, variant: Variant::Keras, activation: Activation::Relu, norm: Norm::Running, channels: 1 }
    }

    /// Channels of the deepest block, the width of a patient's features.
    pub fn features(&self) -> usize {
        self.base << self.depth
    }

    /// Whether a parameter or running statistic of that name belongs to the encoder.
    pub fn in_encoder(&self, name: &str) -> bool {
        match self.variant {
            Variant::PyTorch => name.starts_with("down_tr"),
            Variant::Keras => {
                let index = name.strip_prefix("depth_").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
                index.is_some_and(|i| i < 2 * self.depth)
            }
        }
    }

    /// An input `[N, grid, channels]`.
    pub fn input(&self, g: &mut Graph, name: &str, batch: usize, grid: [usize; 3]) -> ValueId {
        g.input(name, Shape::new(batch, grid, self.channels))
    }

    fn start(&self) -> Start {
        match self.variant {
            Variant::PyTorch => Start::FanIn,
            Variant::Keras => Start::Glorot,
        }
    }

    /// ε and the batch's weight in the running statistics.
    fn norm_constants(&self) -> (f32, f32) {
        match self.variant {
            Variant::PyTorch => (1e-5, 0.1),
            Variant::Keras => (1e-3, 0.01),
        }
    }

    fn statistics(&self, mode: Mode) -> Statistics {
        match (mode, self.norm) {
            (Mode::Train, _) => Statistics::Batch(self.norm_constants().1),
            (Mode::Evaluate, Norm::Batch) => Statistics::Batch(0.0),
            (Mode::Evaluate, Norm::Running) => Statistics::Running,
        }
    }

    /// Convolution 3×3×3, batch norm, activation. `index` counts the blocks of the whole network,
    /// `(part, i)` names the PyTorch module and the block in it.
    fn block(&self, g: &mut Graph, index: usize, part: &str, i: usize, sources: &[ValueId], out: usize, mode: Mode) -> Result<ValueId> {
        let (conv, norm, act) = match self.variant {
            Variant::PyTorch => (format!("{part}.ops.{i}.conv1"), format!("{part}.ops.{i}.bn1"), format!("{part}.ops.{i}.activation")),
            Variant::Keras => (format!("depth_{index}.conv"), format!("depth_{index}.bn"), format!("depth_{index}.activation")),
        };
        let y = nn::conv3d(g, &conv, self.start(), sources, out, 3)?;
        let y = nn::batch_norm(g, &norm, y, self.norm_constants().0, self.statistics(mode))?;
        nn::activation(g, &act, self.activation, y)
    }

    /// The encoder on `x` `[N, D, H, W, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the grid is not divisible by 2^(depth-1).
    pub fn encoder(&self, g: &mut Graph, x: ValueId, mode: Mode) -> Result<Encoded> {
        let (s, unit) = (g.shape(x), 1usize << (self.depth - 1));
        if s.grid.iter().any(|v| v % unit != 0) {
            return Err(Error::shape("encoder", format!("the grid of {s} is not divisible by {unit}")));
        }
        let mut skips = Vec::new();
        let mut x = x;
        for level in 0..self.depth {
            let part = format!("down_tr{}", 64usize << level);
            let first = if level == 0 { self.base } else { self.base << level };
            x = self.block(g, 2 * level, &part, 0, &[x], first, mode)?;
            x = self.block(g, 2 * level + 1, &part, 1, &[x], self.base << (level + 1), mode)?;
            if level + 1 < self.depth {
                skips.push(x);
                x = g.max_pool(&format!("{part}.pool"), x, [2; 3], [2; 3], [0; 3])?;
            }
        }
        Ok(Encoded { skips, deepest: x })
    }

    /// The decoder down to the full grid; with `concat` the encoder's blocks are read beside the
    /// refined ones, as (refined, skip).
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn decoder(&self, g: &mut Graph, encoded: &Encoded, concat: bool, mode: Mode) -> Result<ValueId> {
        let mut x = encoded.deepest;
        for (step, (level, &skip)) in encoded.skips.iter().enumerate().rev().enumerate() {
            let part = format!("up_tr{}", 64usize << level);
            let up = match self.variant {
                Variant::PyTorch => nn::up_conv(g, &format!("{part}.up_conv"), self.start(), x)?,
                Variant::Keras => g.upsample(&format!("{part}.upsample"), x, g.shape(skip).grid, Upsampling::Nearest),
            };
            let out = self.base << (level + 1);
            let index = 2 * (self.depth + step);
            let sources = if concat { vec![up, skip] } else { vec![up] };
            x = self.block(g, index, &part, 0, &sources, out, mode)?;
            x = self.block(g, index + 1, &part, 1, &[x], out, mode)?;
        }
        Ok(x)
    }

    /// The decoder with the restoration layer: 1×1×1 convolution to one channel and sigmoid.
    ///
    /// # Errors
    /// As [`Spec::decoder`].
    pub fn restoration(&self, g: &mut Graph, encoded: &Encoded, concat: bool, mode: Mode) -> Result<ValueId> {
        let x = self.decoder(g, encoded, concat, mode)?;
        let y = nn::conv3d(g, self.output_layer(), self.start(), &[x], 1, 1)?;
        Ok(g.activation("restored", Function::Sigmoid, y))
    }

    /// Name of the decoder's output layer.
    pub fn output_layer(&self) -> &'static str {
        match self.variant {
            Variant::PyTorch => "out_tr.final_conv",
            Variant::Keras => "final_conv",
        }
    }

    /// The decoder with an output layer of `outputs` logits a voxel: `[N, grid, outputs]`. It is called like the layer that restores,
    /// as in the published networks.
    ///
    /// # Errors
    /// As [`Spec::decoder`].
    pub fn segmentation(&self, g: &mut Graph, encoded: &Encoded, outputs: usize, mode: Mode) -> Result<ValueId> {
        let x = self.decoder(g, encoded, true, mode)?;
        nn::conv3d(g, self.output_layer(), self.start(), &[x], outputs, 1)
    }

    /// A linear layer on the mean of the deepest block over the grid: logits `[N, 1, 1, 1, outputs]` (method reference, section 8).
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn classifier(&self, g: &mut Graph, encoded: &Encoded, outputs: usize) -> Result<ValueId> {
        let y = g.global_avg_pool("classifier.mean", encoded.deepest);
        nn::linear(g, "classifier", self.start(), y, outputs)
    }

    /// The class head on the deepest block: logits `[N, 1, 1, 1, classes]`. Its activation is always ReLU.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn class_head(&self, g: &mut Graph, encoded: &Encoded, classes: usize, mode: Mode) -> Result<ValueId> {
        let (eps, statistics, start) = (self.norm_constants().0, self.statistics(mode), self.start());
        let width = self.features();
        let (conv, norm, out) = match self.variant {
            Variant::PyTorch => ("clc_out.conv1".to_owned(), "clc_out.bn1".to_owned(), 2 * width),
            Variant::Keras => {
                let i = 4 * self.depth - 2;
                (format!("depth_{i}.conv"), format!("depth_{i}.bn"), width)
            }
        };
        let y = nn::conv3d(g, &conv, start, &[encoded.deepest], out, 3)?;
        let y = nn::batch_norm(g, &norm, y, eps, statistics)?;
        let y = g.activation("class_head.relu", Function::Relu, y);
        let y = g.global_avg_pool("class_head.mean", y);
        match self.variant {
            Variant::PyTorch => nn::linear(g, "clc_out.fc1", start, y, classes),
            Variant::Keras => {
                let y = nn::linear(g, "cls_fc", start, y, 2 * width)?;
                let y = g.activation("cls_fc.relu", Function::Relu, y);
                nn::linear(g, "cls_output", start, y, classes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Shape;

    fn count(spec: &Spec, build: impl Fn(&Spec, &mut Graph, &Encoded) -> Result<()>) -> usize {
        let mut g = Graph::new();
        let x = nn::image(&mut g, "input", 1, [16, 16, 8]);
        let e = spec.encoder(&mut g, x, Mode::Train).unwrap();
        assert_eq!(g.shape(e.deepest), Shape::new(1, [2, 2, 1], spec.features()));
        build(spec, &mut g, &e).unwrap();
        g.params.count()
    }

    /// The published parameter counts (method reference, sections 5.1, 5.2, 5.5).
    #[test]
    fn parameter_counts_are_the_published_ones() {
        let pytorch = Spec { variant: Variant::PyTorch, ..Spec::autoencoder(32, 4) };
        let keras = Spec::autoencoder(32, 4);
        let unet = |s: &Spec, g: &mut Graph, e: &Encoded| s.restoration(g, e, true, Mode::Train).map(|_| ());
        let ynet = |s: &Spec, g: &mut Graph, e: &Encoded| {
            s.restoration(g, e, true, Mode::Train)?;
            s.class_head(g, e, 44, Mode::Train).map(|_| ())
        };
        assert_eq!(count(&pytorch, |_, _, _| Ok(())), 7_027_776);
        assert_eq!(count(&pytorch, unet), 19_073_665);
        assert_eq!(count(&pytorch, ynet), 33_277_613);
        assert_eq!(count(&pytorch, |s, g, e| s.class_head(g, e, 44, Mode::Train).map(|_| ())), 21_231_724);
        assert_eq!(count(&keras, unet), 16_320_257);
        assert_eq!(count(&keras, ynet), 23_970_093);
        assert_eq!(count(&keras, |s, g, e| s.restoration(g, e, false, Mode::Train).map(|_| ())), 13_997_825);
    }
}
