//! Operations as plain data.

use crate::kernels::activation::Function;
use crate::kernels::conv3d::Source;
use crate::kernels::loss::Pointwise;
use crate::kernels::{batch_norm, conv3d, pool, upsample};

/// How a grid is refined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Upsampling {
    /// Each voxel repeated.
    Nearest,
    /// Trilinear with half-pixel centres (PyTorch's `align_corners=False`).
    Trilinear,
}

/// What a [`Node`](super::Node) computes. Each variant lists operands → results; a trailing `?` marks optional ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// sources…, weight, bias? → y.
    Conv3d {
        /// Geometry over all sources.
        geom: conv3d::Geom,
        /// Channel ranges of the sources.
        sources: Vec<Source>,
    },
    /// `d_y`, weight, bias? → `d_x` of one source. As an operation of its own this is the transposed convolution.
    Conv3dInputGrad {
        /// Geometry of the convolution it is adjoint to.
        geom: conv3d::Geom,
        /// The source concerned.
        source: Source,
    },
    /// sources…, `d_y` → `d_weight`.
    Conv3dWeightGrad {
        /// Geometry over all sources.
        geom: conv3d::Geom,
        /// Channel ranges of the sources.
        sources: Vec<Source>,
    },
    /// x → sum over all but channels.
    ChannelSum,
    /// x → y, index.
    MaxPool(pool::Geom),
    /// index, `d_y` → `d_x`.
    MaxPoolGrad(pool::Geom),
    /// x → y.
    AvgPool(pool::Geom),
    /// `d_y` → `d_x`.
    AvgPoolGrad(pool::Geom),
    /// x → mean over the grid.
    GlobalAvgPool,
    /// `d_y` → `d_x`.
    GlobalAvgPoolGrad,
    /// x → y.
    Upsample(upsample::Geom, Upsampling),
    /// `d_y` → `d_x`.
    UpsampleGrad(upsample::Geom, Upsampling),
    /// x, γ, β, running mean, running variance → y, mean, 1/σ; updates the running statistics.
    BatchNorm {
        /// Geometry.
        geom: batch_norm::Geom,
        /// Weight of the batch in the running statistics.
        momentum: f32,
    },
    /// x, γ, mean, 1/σ, `d_y` → `d_x`, `d_γ`, `d_β`.
    BatchNormGrad(batch_norm::Geom),
    /// x, γ, β, running mean, running variance → y.
    BatchNormRunning(batch_norm::Geom),
    /// x, γ, running mean, running variance, `d_y` → `d_x`, `d_γ`, `d_β`.
    BatchNormRunningGrad(batch_norm::Geom),
    /// x → f(x).
    Activation(Function),
    /// y, `d_y` → `d_x`.
    ActivationGrad(Function),
    /// x, slope → y.
    PRelu,
    /// x, slope, `d_y` → `d_x`, `d_slope`.
    PReluGrad,
    /// a, b → a + b.
    Add,
    /// x → factor · x.
    Scale(f32),
    /// → constant.
    Fill(f32),
    /// prediction, target → mean per sample.
    Pointwise(Pointwise),
    /// prediction, target, `d_loss` → `d_prediction`.
    PointwiseGrad(Pointwise),
    /// logits `[N, 1, 1, 1, C]`, labels → loss per row.
    CrossEntropy,
    /// logits, labels, `d_loss` → `d_logits`.
    CrossEntropyGrad,
    /// logits, labels → 1 where the largest logit is the label's, else 0.
    Correct,
    /// probability, target → loss over everything.
    SoftDice,
    /// probability, target, `d_loss` → `d_probability`.
    SoftDiceGrad,
    /// x → mean.
    Mean,
    /// `d_mean` → `d_x`.
    MeanGrad,
}

impl Op {
    /// Short name, as plans print it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conv3d { .. } => "conv3d",
            Self::Conv3dInputGrad { .. } => "conv3d.input_grad",
            Self::Conv3dWeightGrad { .. } => "conv3d.weight_grad",
            Self::ChannelSum => "channel_sum",
            Self::MaxPool(_) => "max_pool",
            Self::MaxPoolGrad(_) => "max_pool.grad",
            Self::AvgPool(_) => "avg_pool",
            Self::AvgPoolGrad(_) => "avg_pool.grad",
            Self::GlobalAvgPool => "global_avg_pool",
            Self::GlobalAvgPoolGrad => "global_avg_pool.grad",
            Self::Upsample(..) => "upsample",
            Self::UpsampleGrad(..) => "upsample.grad",
            Self::BatchNorm { .. } => "batch_norm",
            Self::BatchNormGrad(_) => "batch_norm.grad",
            Self::BatchNormRunning(_) => "batch_norm.running",
            Self::BatchNormRunningGrad(_) => "batch_norm.running.grad",
            Self::Activation(_) => "activation",
            Self::ActivationGrad(_) => "activation.grad",
            Self::PRelu => "prelu",
            Self::PReluGrad => "prelu.grad",
            Self::Add => "add",
            Self::Scale(_) => "scale",
            Self::Fill(_) => "fill",
            Self::Pointwise(_) => "pointwise_loss",
            Self::PointwiseGrad(_) => "pointwise_loss.grad",
            Self::CrossEntropy => "cross_entropy",
            Self::CrossEntropyGrad => "cross_entropy.grad",
            Self::Correct => "correct",
            Self::SoftDice => "soft_dice",
            Self::SoftDiceGrad => "soft_dice.grad",
            Self::Mean => "mean",
            Self::MeanGrad => "mean.grad",
        }
    }
}
