//! Operations as plain data.

use crate::kernels::activation::Function;
use crate::kernels::conv3d::Source;
use crate::kernels::loss::{Pointwise, class_dice, head};
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
    /// x, γ, β, running mean, running variance → y, norm `[4, C]` (mean, γ/σ, β, 1/σ); updates the running statistics.
    BatchNorm {
        /// Geometry.
        geom: batch_norm::Geom,
        /// Weight of the batch in the running statistics.
        momentum: f32,
    },
    /// x, γ, β, running mean, running variance → y, norm.
    BatchNormRunning(batch_norm::Geom),
    /// x, norm, `d_y` → `d_x`, `d_γ`, `d_β`.
    BatchNormGrad {
        /// Geometry.
        geom: batch_norm::Geom,
        /// Which statistics, and whether `d_y` is the gradient of the ReLU that follows.
        how: batch_norm::Use,
    },
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
    /// x → softmax over channels.
    Softmax,
    /// y, `d_y` → `d_x`.
    SoftmaxGrad,
    /// probabilities, labels → mean of the soft Dice losses of the classes from `first` on.
    ClassDice(class_dice::Geom),
    /// probabilities, labels, `d_loss` → `d_probabilities`.
    ClassDiceGrad(class_dice::Geom),
    /// x of a row, labels, weights of the classes → x times the weight of the row's class; also its own derivative.
    Weigh,
    /// x → the channel with the largest value (u32).
    ArgMax,
    /// x → mean.
    Mean,
    /// `d_mean` → `d_x`.
    MeanGrad,
    // The rest is what the planner makes of the above.
    /// x, γ, β, running mean, running variance → norm; updates the running statistics.
    NormStatistics {
        /// Geometry.
        geom: batch_norm::Geom,
        /// Weight of the batch in the running statistics.
        momentum: f32,
    },
    /// γ, β, running mean, running variance → norm.
    NormFixed(batch_norm::Geom),
    /// x, norm → y, or the ReLU of it.
    NormApply {
        /// Geometry.
        geom: batch_norm::Geom,
        /// Whether the ReLU is taken.
        relu: bool,
    },
    /// sources…, norms…, weight, bias?, (γ, β, running mean, running variance)? → y, norm?.
    FusedConv3d(FusedConv),
    /// sources…, norms…, `d_y` → `d_weight`.
    LoadedWeightGrad {
        /// Geometry over all sources.
        geom: conv3d::Geom,
        /// Channel ranges of the sources.
        sources: Vec<Source>,
        /// Which sources are normalised as they are read; those have an operand among the norms.
        norms: Vec<bool>,
    },
    /// x, norm → y, index of the ReLU of the normalised x.
    NormMaxPool(pool::Geom),
    /// index, `d_y`, other gradient → `d_x`, the sum of both.
    MaxPoolGradAdd(pool::Geom),
    /// x, norm?, weight, bias?, target, `d_loss`? → loss per sample, restored?, (`d_logit`, `d_weight`, `d_bias`?)?: a
    /// 1×1×1 convolution to one channel, sigmoid and loss, and the gradients of the first two.
    Head(Head),
}

/// What [`Op::FusedConv3d`] does.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedConv {
    /// Geometry over all sources.
    pub geom: conv3d::Geom,
    /// Channel ranges of the sources.
    pub sources: Vec<Source>,
    /// Which sources are normalised, and their ReLU taken, as they are read; those have an operand among the norms.
    pub norms: Vec<bool>,
    /// Whether there is a bias.
    pub bias: bool,
    /// The batch norm whose statistics are those of the result, with the weight of the batch in its running ones.
    pub statistics: Option<(batch_norm::Geom, f32)>,
}

/// What [`Op::Head`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Geometry.
    pub geom: head::Geom,
    /// Loss.
    pub loss: Pointwise,
    /// Which of the optional operands and results there are.
    pub parts: head::Parts,
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
            Self::BatchNormRunning(_) => "batch_norm.running",
            Self::BatchNormGrad { how, .. } => match (how.fixed, how.relu) {
                (false, false) => "batch_norm.grad",
                (true, false) => "batch_norm.running.grad",
                (false, true) => "batch_norm.grad+relu",
                (true, true) => "batch_norm.running.grad+relu",
            },
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
            Self::Softmax => "softmax",
            Self::SoftmaxGrad => "softmax.grad",
            Self::ClassDice(_) => "class_dice",
            Self::ClassDiceGrad(_) => "class_dice.grad",
            Self::Weigh => "weigh",
            Self::ArgMax => "arg_max",
            Self::Mean => "mean",
            Self::MeanGrad => "mean.grad",
            Self::NormStatistics { .. } => "batch_norm.statistics",
            Self::NormFixed(_) => "batch_norm.vectors",
            Self::NormApply { relu: false, .. } => "batch_norm.apply",
            Self::NormApply { relu: true, .. } => "batch_norm.apply+relu",
            Self::FusedConv3d(conv) => match (conv.norms.contains(&true), conv.statistics.is_some()) {
                (true, true) => "load+conv3d+statistics",
                (true, false) => "load+conv3d",
                (false, true) => "conv3d+statistics",
                (false, false) => "conv3d",
            },
            Self::LoadedWeightGrad { .. } => "load+conv3d.weight_grad",
            Self::NormMaxPool(_) => "load+max_pool",
            Self::MaxPoolGradAdd(_) => "max_pool.grad+add",
            Self::Head(h) if h.parts.norm => "load+conv3d+sigmoid+loss",
            Self::Head(_) => "conv3d+sigmoid+loss",
        }
    }
}
