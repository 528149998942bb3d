//! Recording of forward operations: shape inference and checks.

use super::{Graph, Op, Shape, Upsampling, ValueId};
use crate::error::{Error, Result};
use crate::kernels::activation::Function;
use crate::kernels::conv3d::{self, Source};
use crate::kernels::loss::{Pointwise, class_dice};
use crate::kernels::{batch_norm, pool, upsample};

/// Names of the learned and running vectors of a batch norm, as values.
#[derive(Clone, Copy, Debug)]
pub struct NormValues {
    /// Scale γ `[C]`.
    pub gamma: ValueId,
    /// Shift β `[C]`.
    pub beta: ValueId,
    /// Running mean `[C]`.
    pub running_mean: ValueId,
    /// Running variance `[C]`.
    pub running_var: ValueId,
}

impl Graph {
    /// Convolution of `sources`, concatenated along channels without copying; weight in
    /// [`Layout::Conv`](super::Layout::Conv) with `first` = output and `second` = input channels.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn conv3d(
        &mut self,
        label: &str,
        sources: &[ValueId],
        weight: ValueId,
        bias: Option<ValueId>,
        out_channels: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
        padding: [usize; 3],
    ) -> Result<ValueId> {
        let first = sources.first().map(|&s| self.shape(s)).ok_or_else(|| Error::shape("conv3d", "no source"))?;
        let mut ranges = Vec::new();
        let mut channels = 0;
        for &s in sources {
            let c = self.shape(s).channels;
            self.expect("conv3d", "a source", s, Shape { channels: c, ..first })?;
            ranges.push(Source { first: channels, channels: c });
            channels += c;
        }
        let geom = conv3d::Geom::new(first.batch, first.grid, channels, out_channels, kernel, stride, padding)?;
        self.expect("conv3d", "the weight", weight, Shape::vector(geom.weight_len()))?;
        if let Some(b) = bias {
            self.expect("conv3d", "the bias", b, Shape::vector(out_channels))?;
        }
        let shape = Shape::new(first.batch, geom.output(), out_channels);
        let inputs = sources.iter().copied().chain([weight]).chain(bias).collect();
        Ok(self.push1(label, Op::Conv3d { geom, sources: ranges }, inputs, shape))
    }

    /// Transposed convolution; weight in [`Layout::Conv`](super::Layout::Conv) with `first` = input and
    /// `second` = output channels, as PyTorch stores it.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn conv_transpose3d(
        &mut self,
        label: &str,
        x: ValueId,
        weight: ValueId,
        bias: Option<ValueId>,
        out_channels: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
        padding: [usize; 3],
    ) -> Result<ValueId> {
        let s = self.shape(x);
        let mut grid = [0; 3];
        for a in 0..3 {
            grid[a] = ((s.grid[a] - 1) * stride[a] + kernel[a])
                .checked_sub(2 * padding[a])
                .filter(|&v| v > 0)
                .ok_or_else(|| Error::shape("conv_transpose3d", format!("padding {padding:?} leaves nothing of {s}")))?;
        }
        let geom = conv3d::Geom::new(s.batch, grid, out_channels, s.channels, kernel, stride, padding)?;
        self.expect("conv_transpose3d", "the weight", weight, Shape::vector(geom.weight_len()))?;
        if let Some(b) = bias {
            self.expect("conv_transpose3d", "the bias", b, Shape::vector(out_channels))?;
        }
        let op = Op::Conv3dInputGrad { geom, source: geom.whole() };
        let inputs = [x, weight].into_iter().chain(bias).collect();
        Ok(self.push1(label, op, inputs, Shape::new(s.batch, grid, out_channels)))
    }

    /// Max-pool.
    ///
    /// # Errors
    /// [`Error::Shape`] when the window does not fit.
    pub fn max_pool(&mut self, label: &str, x: ValueId, kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Result<ValueId> {
        let s = self.shape(x);
        let geom = pool::Geom::new(s.batch, s.grid, s.channels, kernel, stride, padding)?;
        let shape = Shape { grid: geom.output(), ..s };
        Ok(self.push(label, Op::MaxPool(geom), vec![x], &[shape, shape])[0])
    }

    /// Average pool; padding counts as zeros.
    ///
    /// # Errors
    /// [`Error::Shape`] when the window does not fit.
    pub fn avg_pool(&mut self, label: &str, x: ValueId, kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Result<ValueId> {
        let s = self.shape(x);
        let geom = pool::Geom::new(s.batch, s.grid, s.channels, kernel, stride, padding)?;
        Ok(self.push1(label, Op::AvgPool(geom), vec![x], Shape { grid: geom.output(), ..s }))
    }

    /// Mean over the grid: `[N, D, H, W, C]` → `[N, 1, 1, 1, C]`.
    pub fn global_avg_pool(&mut self, label: &str, x: ValueId) -> ValueId {
        let s = self.shape(x);
        self.push1(label, Op::GlobalAvgPool, vec![x], Shape { grid: [1; 3], ..s })
    }

    /// Refines (or coarsens) the grid to `grid`.
    pub fn upsample(&mut self, label: &str, x: ValueId, grid: [usize; 3], how: Upsampling) -> ValueId {
        let s = self.shape(x);
        let geom = upsample::Geom { batch: s.batch, input: s.grid, output: grid, channels: s.channels };
        self.push1(label, Op::Upsample(geom, how), vec![x], Shape { grid, ..s })
    }

    /// Batch norm with the batch's statistics; updates the running ones.
    ///
    /// # Errors
    /// [`Error::Shape`] when a vector does not have one element a channel.
    pub fn batch_norm(&mut self, label: &str, x: ValueId, v: NormValues, eps: f32, momentum: f32) -> Result<ValueId> {
        let (geom, inputs) = self.norm(x, v, eps)?;
        let shapes = [self.shape(x), Shape::norm(geom.channels)];
        Ok(self.push(label, Op::BatchNorm { geom, momentum }, inputs, &shapes)[0])
    }

    /// Batch norm with the running statistics.
    ///
    /// # Errors
    /// As [`Graph::batch_norm`].
    pub fn batch_norm_running(&mut self, label: &str, x: ValueId, v: NormValues, eps: f32) -> Result<ValueId> {
        let (geom, inputs) = self.norm(x, v, eps)?;
        let shapes = [self.shape(x), Shape::norm(geom.channels)];
        Ok(self.push(label, Op::BatchNormRunning(geom), inputs, &shapes)[0])
    }

    fn norm(&self, x: ValueId, v: NormValues, eps: f32) -> Result<(batch_norm::Geom, Vec<ValueId>)> {
        let s = self.shape(x);
        for (what, value) in [("γ", v.gamma), ("β", v.beta), ("the running mean", v.running_mean), ("the running variance", v.running_var)]
        {
            self.expect("batch_norm", what, value, Shape::vector(s.channels))?;
        }
        let geom = batch_norm::Geom { batch: s.batch, spatial: s.voxels(), channels: s.channels, eps };
        Ok((geom, vec![x, v.gamma, v.beta, v.running_mean, v.running_var]))
    }

    /// Elementwise activation.
    pub fn activation(&mut self, label: &str, function: Function, x: ValueId) -> ValueId {
        let s = self.shape(x);
        self.push1(label, Op::Activation(function), vec![x], s)
    }

    /// x for x > 0, slope · x otherwise, one slope a channel.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is not one slope a channel.
    pub fn prelu(&mut self, label: &str, x: ValueId, slope: ValueId) -> Result<ValueId> {
        let s = self.shape(x);
        self.expect("prelu", "the slope", slope, Shape::vector(s.channels))?;
        Ok(self.push1(label, Op::PRelu, vec![x, slope], s))
    }

    /// a + b.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes differ.
    pub fn add(&mut self, label: &str, a: ValueId, b: ValueId) -> Result<ValueId> {
        let s = self.shape(a);
        self.expect("add", "the second operand", b, s)?;
        Ok(self.push1(label, Op::Add, vec![a, b], s))
    }

    /// factor · x.
    pub fn scale(&mut self, label: &str, x: ValueId, factor: f32) -> ValueId {
        let s = self.shape(x);
        self.push1(label, Op::Scale(factor), vec![x], s)
    }

    /// An elementwise loss, averaged per sample: `[N, …]` → `[N]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes differ.
    pub fn pointwise_loss(&mut self, label: &str, kind: Pointwise, prediction: ValueId, target: ValueId) -> Result<ValueId> {
        let s = self.shape(prediction);
        self.expect("pointwise_loss", "the target", target, s)?;
        Ok(self.push1(label, Op::Pointwise(kind), vec![prediction, target], Shape::per_sample(s.batch)))
    }

    /// Softmax cross-entropy on logits: `[N, D, H, W, C]` and labels (u32) `[N, D, H, W, 1]` → a loss for each row.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn cross_entropy(&mut self, label: &str, logits: ValueId, labels: ValueId) -> Result<ValueId> {
        self.rows(label, Op::CrossEntropy, logits, labels)
    }

    /// 1 where the largest logit is the label's, else 0, for each row.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn correct(&mut self, label: &str, logits: ValueId, labels: ValueId) -> Result<ValueId> {
        self.rows(label, Op::Correct, logits, labels)
    }

    fn rows(&mut self, label: &str, op: Op, logits: ValueId, labels: ValueId) -> Result<ValueId> {
        let shape = Shape { channels: 1, ..self.shape(logits) };
        self.expect("cross_entropy", "the labels", labels, shape)?;
        Ok(self.push1(label, op, vec![logits, labels], shape))
    }

    /// Soft Dice loss over the whole batch (method reference, section 8) → `[1]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes differ.
    pub fn soft_dice(&mut self, label: &str, probability: ValueId, target: ValueId) -> Result<ValueId> {
        let s = self.shape(probability);
        self.expect("soft_dice", "the target", target, s)?;
        Ok(self.push1(label, Op::SoftDice, vec![probability, target], Shape::vector(1)))
    }

    /// Softmax over channels.
    pub fn softmax(&mut self, label: &str, x: ValueId) -> ValueId {
        let s = self.shape(x);
        self.push1(label, Op::Softmax, vec![x], s)
    }

    /// The channel with the largest value, the first of several (u32): `[N, D, H, W, C]` → `[N, D, H, W, 1]`.
    pub fn arg_max(&mut self, label: &str, x: ValueId) -> ValueId {
        let s = Shape { channels: 1, ..self.shape(x) };
        self.push1(label, Op::ArgMax, vec![x], s)
    }

    /// Soft Dice losses of the classes from `first` on, over the whole batch, averaged over these classes (method reference,
    /// section 8, which has one class): probabilities `[N, D, H, W, C]` and labels (u32) `[N, D, H, W, 1]` → `[1]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit, or no class is left.
    pub fn class_dice(&mut self, label: &str, probability: ValueId, labels: ValueId, first: usize) -> Result<ValueId> {
        let s = self.shape(probability);
        self.expect("class_dice", "the labels", labels, Shape { channels: 1, ..s })?;
        if first >= s.channels {
            return Err(Error::shape("class_dice", format!("of {} classes none is left from class {first} on", s.channels)));
        }
        let geom = class_dice::Geom { rows: s.batch * s.voxels(), classes: s.channels, first };
        Ok(self.push1(label, Op::ClassDice(geom), vec![probability, labels], Shape::vector(1)))
    }

    /// x times the weight of the class of its row: x and labels (u32) `[N, D, H, W, 1]`, weights `[C]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when shapes do not fit.
    pub fn weigh(&mut self, label: &str, x: ValueId, labels: ValueId, weights: ValueId) -> Result<ValueId> {
        let s = self.shape(x);
        self.expect("weigh", "x", x, Shape { channels: 1, ..s })?;
        self.expect("weigh", "the labels", labels, s)?;
        let w = self.shape(weights);
        self.expect("weigh", "the weights", weights, Shape::vector(w.channels))?;
        Ok(self.push1(label, Op::Weigh, vec![x, labels, weights], s))
    }

    /// Mean of all elements → `[1]`.
    pub fn mean(&mut self, label: &str, x: ValueId) -> ValueId {
        self.push1(label, Op::Mean, vec![x], Shape::vector(1))
    }
}
