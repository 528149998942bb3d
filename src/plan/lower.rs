//! From one operation to the dispatches of its kernels.

use super::ids;
use crate::error::Result;
use crate::gpu::{BufferId, Recorder, View};
use crate::graph::{Graph, Home, Node, Op, Upsampling, ValueId};
use crate::kernels::conv3d::{Input, Output};
use crate::kernels::{activation, batch_norm, conv3d, elementwise, loss, pool, prelu, reduce, upsample};

/// Where a value lies.
pub(super) fn view(graph: &Graph, v: ValueId) -> View {
    let value = &graph.values()[v.0];
    let flat = |buffer: BufferId, offset: usize| View { offset: offset as u64 * 4, ..View::whole(buffer, value.shape.len()) };
    match value.home {
        Home::Param(i) => flat(ids::PARAMS, graph.params.list()[i].offset),
        Home::Grad(i) => flat(ids::GRADS, graph.params.list()[i].offset),
        Home::State(i) => flat(ids::STATE, graph.state.list()[i].offset),
        #[expect(clippy::cast_possible_truncation, reason = "graphs have few values")]
        Home::Input | Home::Computed => flat(BufferId(v.0 as u32 + ids::VALUES), 0),
    }
}

/// Records the dispatches of `node`.
pub(super) fn lower(graph: &Graph, node: &Node, rec: &mut Recorder<'_>) -> Result<()> {
    let x: Vec<View> = node.inputs.iter().map(|&v| view(graph, v)).collect();
    let y: Vec<View> = node.outputs.iter().map(|&v| view(graph, v)).collect();
    let shape = |i: usize| graph.shape(node.inputs[i]);
    let out = graph.shape(node.outputs[0]);
    match &node.op {
        Op::Conv3d { geom, sources } => {
            let n = sources.len();
            let inputs: Vec<_> = sources.iter().zip(&x).map(|(&s, &v)| Input::plain(s, v)).collect();
            conv3d::forward(rec, geom, &inputs, x[n], &Output { bias: x.get(n + 1).copied(), ..Output::plain(y[0]) })
        }
        Op::Conv3dInputGrad { geom, source } => conv3d::backward_input(rec, geom, *source, x[0], x[1], x.get(2).copied(), y[0]),
        Op::Conv3dWeightGrad { geom, sources } => {
            let d_y = x[sources.len()];
            sources.iter().zip(&x).try_for_each(|(&s, &v)| conv3d::backward_weight(rec, geom, Input::plain(s, v), d_y, y[0]))
        }
        Op::ChannelSum => {
            let s = shape(0);
            reduce::channel_sum(rec, s.batch * s.voxels(), s.channels, x[0], y[0])
        }
        Op::MaxPool(g) => pool::max_forward(rec, g, x[0], y[0], y[1]),
        Op::MaxPoolGrad(g) => pool::max_backward(rec, g, x[0], x[1], y[0]),
        Op::AvgPool(g) => pool::avg_forward(rec, g, x[0], y[0]),
        Op::AvgPoolGrad(g) => pool::avg_backward(rec, g, x[0], y[0]),
        Op::GlobalAvgPool => {
            let s = shape(0);
            pool::global_avg_forward(rec, s.batch, s.voxels(), s.channels, x[0], y[0])
        }
        Op::GlobalAvgPoolGrad => pool::global_avg_backward(rec, out.batch, out.voxels(), out.channels, x[0], y[0]),
        Op::Upsample(g, Upsampling::Nearest) => upsample::nearest_forward(rec, g, x[0], y[0]),
        Op::Upsample(g, Upsampling::Trilinear) => upsample::trilinear_forward(rec, g, x[0], y[0]),
        Op::UpsampleGrad(g, Upsampling::Nearest) => upsample::nearest_backward(rec, g, x[0], y[0]),
        Op::UpsampleGrad(g, Upsampling::Trilinear) => upsample::trilinear_backward(rec, g, x[0], y[0]),
        Op::BatchNorm { geom, momentum } => batch_norm::forward(rec, geom, *momentum, x[0], x[1], x[2], x[3], x[4], y[1], y[2], y[0]),
        Op::BatchNormGrad(g) => batch_norm::backward(rec, g, x[0], x[1], x[2], x[3], x[4], y[0], y[1], y[2]),
        Op::BatchNormRunning(g) => batch_norm::forward_running(rec, g, x[0], x[1], x[2], x[3], x[4], y[0]),
        Op::BatchNormRunningGrad(g) => batch_norm::backward_running(rec, g, x[0], x[1], x[2], x[3], x[4], y[0], y[1], y[2]),
        Op::Activation(f) => activation::forward(rec, *f, x[0], y[0]),
        Op::ActivationGrad(f) => activation::backward(rec, *f, x[0], x[1], y[0]),
        Op::PRelu => prelu::forward(rec, out.channels, x[0], x[1], y[0]),
        Op::PReluGrad => prelu::backward(rec, out.channels, x[0], x[1], x[2], y[0], y[1]),
        Op::Add => elementwise::add(rec, x[0], x[1], y[0]),
        Op::Scale(factor) => elementwise::scale(rec, x[0], *factor, y[0]),
        Op::Fill(value) => elementwise::fill(rec, *value, y[0]),
        Op::Pointwise(kind) => loss::pointwise(rec, *kind, shape(0).batch, x[0], x[1], y[0]),
        Op::PointwiseGrad(kind) => loss::pointwise_backward(rec, *kind, shape(0).batch, x[0], x[1], x[2], y[0]),
        Op::CrossEntropy => loss::cross_entropy(rec, out.len(), shape(0).channels, x[0], x[1], y[0]),
        Op::CrossEntropyGrad => loss::cross_entropy_backward(rec, out.len() / out.channels, out.channels, x[0], x[1], x[2], y[0]),
        Op::Correct => loss::correct(rec, out.len(), shape(0).channels, x[0], x[1], y[0]),
        Op::SoftDice => loss::soft_dice(rec, x[0], x[1], y[0]),
        Op::SoftDiceGrad => loss::soft_dice_backward(rec, x[0], x[1], x[2], y[0]),
        Op::Mean => reduce::mean(rec, x[0], y[0]),
        Op::MeanGrad => reduce::mean_backward(rec, out.len(), x[0], y[0]),
    }
}
