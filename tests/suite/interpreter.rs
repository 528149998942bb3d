//! The graph's forward operations in f64, from the kernels' references.

use std::collections::HashMap;

use semantic_genesis::graph::{Graph, Home, Node, Op, Upsampling, ValueId};
use semantic_genesis::kernels::upsample::{self, Mode};
use semantic_genesis::kernels::{activation, batch_norm, classes, conv3d, loss, pool, prelu};

/// What a graph computes from.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    /// Inputs by name; labels are whole numbers.
    pub(crate) inputs: HashMap<String, Vec<f64>>,
    /// The flat buffer of parameters, in memory order.
    pub(crate) params: Vec<f64>,
    /// The flat buffer of running statistics.
    pub(crate) state: Vec<f64>,
}

/// The value of `wanted`; runs the operations up to the one that computes it.
pub(crate) fn evaluate(g: &Graph, feed: &Feed, wanted: ValueId) -> Vec<f64> {
    let mut values: Vec<Option<Vec<f64>>> = vec![None; g.values().len()];
    for (name, v) in g.inputs() {
        values[v.0] = Some(feed.inputs[name].clone());
    }
    for (i, v) in g.values().iter().enumerate() {
        values[i] = match v.home {
            Home::Param(p) => Some(feed.params[g.params.list()[p].offset..][..v.shape.len()].to_vec()),
            Home::State(s) => Some(feed.state[g.state.list()[s].offset..][..v.shape.len()].to_vec()),
            Home::Input | Home::Grad(_) | Home::Computed => values[i].take(),
        };
    }
    for node in g.nodes() {
        if let Some(found) = &values[wanted.0] {
            return found.clone();
        }
        let x: Vec<&[f64]> = node.inputs.iter().map(|v| values[v.0].as_deref().expect("operands come first")).collect();
        for (result, v) in forward(g, node, &x).into_iter().zip(&node.outputs) {
            values[v.0] = Some(result);
        }
    }
    values[wanted.0].clone().expect("the value is computed")
}

/// Tensors `[.., c]` joined along their last axis.
fn concatenate(x: &[&[f64]], channels: &[usize]) -> Vec<f64> {
    let rows = x[0].len() / channels[0];
    (0..rows).flat_map(|r| x.iter().zip(channels).flat_map(move |(x, &c)| x[r * c..(r + 1) * c].iter().copied())).collect()
}

fn labels(v: &[f64]) -> Vec<u32> {
    v.iter().map(|&l| l as u32).collect()
}

fn mode(how: Upsampling) -> Mode {
    match how {
        Upsampling::Nearest => Mode::Nearest,
        Upsampling::Trilinear => Mode::Trilinear,
    }
}

/// The vectors that a batch norm normalises with.
fn norm(mean: &[f64], var: &[f64], eps: f64, gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let inv_std: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let factor: Vec<f64> = inv_std.iter().zip(gamma).map(|(v, g)| v * g).collect();
    [mean, &factor, beta, &inv_std].concat()
}

/// Results of one operation.
fn forward(g: &Graph, node: &Node, x: &[&[f64]]) -> Vec<Vec<f64>> {
    let shape = |i: usize| g.shape(node.inputs[i]);
    match &node.op {
        Op::Conv3d { geom, sources } => {
            let n = sources.len();
            let whole = concatenate(&x[..n], &sources.iter().map(|s| s.channels).collect::<Vec<_>>());
            vec![conv3d::reference_forward(geom, &whole, x[n], x.get(n + 1).copied())]
        }
        Op::Conv3dInputGrad { geom, source } => {
            assert_eq!(*source, geom.whole(), "a transposed convolution has one source");
            let mut y = conv3d::reference_backward_input(geom, x[0], x[1]);
            if let Some(bias) = x.get(2) {
                y.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % bias.len()]);
            }
            vec![y]
        }
        Op::MaxPool(geom) => {
            let (y, index) = pool::reference_max(geom, x[0]);
            vec![y, index.into_iter().map(f64::from).collect()]
        }
        Op::AvgPool(geom) => vec![pool::reference_avg(geom, x[0])],
        Op::GlobalAvgPool => {
            let s = shape(0);
            let mut y = vec![0.0; s.batch * s.channels];
            for (i, v) in x[0].iter().enumerate() {
                y[i / (s.voxels() * s.channels) * s.channels + i % s.channels] += v / s.voxels() as f64;
            }
            vec![y]
        }
        Op::Upsample(geom, how) => vec![upsample::reference_forward(geom, mode(*how), x[0])],
        Op::BatchNorm { geom, .. } => {
            let (mean, var) = batch_norm::reference_statistics(x[0], geom.channels);
            let eps = f64::from(geom.eps);
            let y = batch_norm::reference_normalize(x[0], &mean, &var, eps, x[1], x[2]);
            vec![y, norm(&mean, &var, eps, x[1], x[2])]
        }
        Op::BatchNormRunning(geom) => {
            let eps = f64::from(geom.eps);
            vec![batch_norm::reference_normalize(x[0], x[3], x[4], eps, x[1], x[2]), norm(x[3], x[4], eps, x[1], x[2])]
        }
        Op::Activation(f) => vec![x[0].iter().map(|&v| activation::reference_value(*f, v)).collect()],
        Op::PRelu => vec![prelu::reference_forward(x[0], x[1])],
        Op::Add => vec![x[0].iter().zip(x[1]).map(|(a, b)| a + b).collect()],
        Op::Scale(factor) => vec![x[0].iter().map(|v| v * f64::from(*factor)).collect()],
        Op::Fill(value) => vec![vec![f64::from(*value); g.shape(node.outputs[0]).len()]],
        Op::Pointwise(kind) => vec![loss::reference_pointwise(*kind, shape(0).batch, x[0], x[1])],
        Op::CrossEntropy => vec![loss::reference_cross_entropy(shape(0).channels, x[0], &labels(x[1]))],
        Op::Correct => {
            let rows = x[0].chunks(shape(0).channels).zip(labels(x[1]));
            vec![
                rows.map(|(z, l)| f64::from((0..z.len()).all(|c| z[c] < z[l as usize] || (c >= l as usize && z[c] <= z[l as usize]))))
                    .collect(),
            ]
        }
        Op::SoftDice => vec![vec![loss::reference_soft_dice(x[0], x[1])]],
        Op::Softmax => vec![classes::reference_softmax(shape(0).channels, x[0])],
        Op::ClassDice(g) => vec![vec![loss::class_dice::reference_class_dice(g.classes, g.first, x[0], &labels(x[1]))]],
        Op::Weigh => vec![classes::reference_weigh(x[0], &labels(x[1]), x[2])],
        Op::ArgMax => vec![classes::reference_arg_max(shape(0).channels, x[0]).into_iter().map(f64::from).collect()],
        Op::Mean => vec![vec![x[0].iter().sum::<f64>() / x[0].len() as f64]],
        Op::Conv3dWeightGrad { .. }
        | Op::ChannelSum
        | Op::MaxPoolGrad(_)
        | Op::AvgPoolGrad(_)
        | Op::GlobalAvgPoolGrad
        | Op::UpsampleGrad(..)
        | Op::BatchNormGrad { .. }
        | Op::ActivationGrad(_)
        | Op::PReluGrad
        | Op::PointwiseGrad(_)
        | Op::CrossEntropyGrad
        | Op::SoftDiceGrad
        | Op::SoftmaxGrad
        | Op::ClassDiceGrad(_)
        | Op::MeanGrad => panic!("{} is a derivative: differences of the loss stand for it", node.op.name()),
        Op::NormStatistics { .. }
        | Op::NormFixed(_)
        | Op::NormApply { .. }
        | Op::FusedConv3d(_)
        | Op::LoadedWeightGrad { .. }
        | Op::NormMaxPool(_)
        | Op::MaxPoolGradAdd(_)
        | Op::Head(_) => panic!("{} is made by the planner: the graph as recorded stands for it", node.op.name()),
    }
}
