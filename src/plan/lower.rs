//! From one operation to the dispatches of its kernels.

use super::ids;
use crate::error::{Error, Result};
use crate::gpu::{BufferId, Recorder, View};
use crate::graph::{Graph, Home, Node, Op, Upsampling, ValueId};
use crate::kernels::batch_norm::{NORM, Vectors};
use crate::kernels::conv3d::{Input, Output, Source};
use crate::kernels::loss::head;
use crate::kernels::{activation, batch_norm, classes, conv3d, elementwise, loss, pool, prelu, reduce, upsample};

/// Where a value lies.
pub(super) fn view(graph: &Graph, v: ValueId) -> View {
    let value = &graph.values()[v.0];
    let flat = |buffer: BufferId, offset: usize| View { offset: offset as u64 * 4, ..View::typed(buffer, value.shape.len(), value.dtype) };
    match value.home {
        Home::Param(i) => flat(ids::PARAMS, graph.params.list()[i].offset),
        Home::Grad(i) => flat(ids::GRADS, graph.params.list()[i].offset),
        Home::State(i) => flat(ids::STATE, graph.state.list()[i].offset),
        #[expect(clippy::cast_possible_truncation, reason = "graphs have few values")]
        Home::Input | Home::Computed => flat(BufferId(v.0 as u32 + ids::VALUES), 0),
    }
}

/// The vectors of a batch norm among its operands.
fn vectors(x: &[View]) -> Vectors {
    Vectors { gamma: x[0], beta: x[1], running_mean: x[2], running_var: x[3] }
}

/// The sources of a convolution and the place of the first operand after them and their norms.
fn inputs(ranges: &[Source], norms: &[bool], x: &[View]) -> (Vec<Input>, usize) {
    let mut next = ranges.len();
    let mut out = Vec::new();
    for (i, &source) in ranges.iter().enumerate() {
        // A convolution has no use for the last of the vectors, 1/σ.
        let norm = norms[i].then(|| x[next].slice(0, (NORM - 1) * source.channels));
        next += usize::from(norms[i]);
        out.push(Input { source, view: x[i], norm });
    }
    (out, next)
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
        Op::MaxPool(g) => pool::max_forward(rec, g, x[0], None, y[0], y[1]),
        Op::MaxPoolGrad(g) => pool::max_backward(rec, g, x[0], x[1], None, y[0]),
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
        Op::BatchNorm { geom, momentum } => {
            batch_norm::statistics(rec, geom, *momentum, x[0], vectors(&x[1..]), y[1])?;
            batch_norm::apply(rec, geom, false, x[0], y[1], y[0])
        }
        Op::BatchNormRunning(geom) => {
            batch_norm::fixed(rec, geom, vectors(&x[1..]), y[1])?;
            batch_norm::apply(rec, geom, false, x[0], y[1], y[0])
        }
        Op::BatchNormGrad { geom, how } => batch_norm::backward(rec, geom, *how, x[0], x[1], x[2], y[0], y[1], y[2]),
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
        Op::Softmax => classes::softmax(rec, out.len() / out.channels, out.channels, x[0], y[0]),
        Op::SoftmaxGrad => classes::softmax_backward(rec, out.len() / out.channels, out.channels, x[0], x[1], y[0]),
        Op::ClassDice(g) => loss::class_dice::class_dice(rec, g, x[0], x[1], y[0]),
        Op::ClassDiceGrad(g) => loss::class_dice::class_dice_backward(rec, g, x[0], x[1], x[2], y[0]),
        Op::Weigh => classes::weigh(rec, out.len(), shape(2).channels, x[0], x[1], x[2], y[0]),
        Op::ArgMax => classes::arg_max(rec, out.len(), shape(0).channels, x[0], y[0]),
        Op::Mean => reduce::mean(rec, x[0], y[0]),
        Op::MeanGrad => reduce::mean_backward(rec, out.len(), x[0], y[0]),
        Op::NormStatistics { geom, momentum } => batch_norm::statistics(rec, geom, *momentum, x[0], vectors(&x[1..]), y[0]),
        Op::NormFixed(geom) => batch_norm::fixed(rec, geom, vectors(&x), y[0]),
        Op::NormApply { geom, relu } => batch_norm::apply(rec, geom, *relu, x[0], x[1], y[0]),
        Op::FusedConv3d(conv) => {
            let (inputs, at) = inputs(&conv.sources, &conv.norms, &x);
            let mut output = Output { bias: conv.bias.then(|| x[at + 1]), ..Output::plain(y[0]) };
            let Some((g, momentum)) = conv.statistics else { return conv3d::forward(rec, &conv.geom, &inputs, x[at], &output) };
            let count = conv3d::statistics_partials(rec, &conv.geom, &inputs, y[0].dtype)?;
            let partials = rec.scratch(count * 3 * conv.geom.out_channels);
            output.statistics = Some(partials);
            conv3d::forward(rec, &conv.geom, &inputs, x[at], &output)?;
            batch_norm::finish(rec, &g, momentum, partials, count, vectors(&x[at + 1 + usize::from(conv.bias)..]), y[1])
        }
        Op::LoadedWeightGrad { geom, sources, norms } => {
            let (inputs, at) = inputs(sources, norms, &x);
            inputs.iter().try_for_each(|&input| conv3d::backward_weight(rec, geom, input, x[at], y[0]))
        }
        Op::NormMaxPool(g) => pool::max_forward(rec, g, x[0], Some(x[1]), y[0], y[1]),
        Op::MaxPoolGradAdd(g) => pool::max_backward(rec, g, x[0], x[1], Some(x[2]), y[0]),
        Op::Head(h) => {
            let (mut x, mut y) = (x.iter().copied(), y.iter().copied());
            let next = |it: &mut dyn Iterator<Item = View>| it.next().ok_or_else(|| Error::shape("head", "an operand is missing"));
            let input = next(&mut x)?;
            let norm = h.parts.norm.then(|| next(&mut x)).transpose()?;
            let (weight, bias, target) = (next(&mut x)?, next(&mut x)?, next(&mut x)?);
            let per_sample = next(&mut y)?;
            let restored = h.parts.restored.then(|| next(&mut y)).transpose()?;
            let gradient = match h.parts.gradient {
                true => {
                    Some(head::Gradient { d_loss: next(&mut x)?, d_logit: next(&mut y)?, d_weight: next(&mut y)?, d_bias: next(&mut y)? })
                }
                false => None,
            };
            head::forward(rec, &h.geom, h.loss, input, norm, weight, bias, target, per_sample, restored, gradient)
        }
    }
}
