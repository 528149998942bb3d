//! Which values are stored in 16 bits.
//!
//! Mixed precision stores activations and their gradients as 16-bit floats; all arithmetic stays in 32 bits. Eligible
//! are computed values over a grid of more than one position with channels in fours: what the convolutions, batch
//! norms, activations, pools and upsamplings of a network make, and the gradients of all that. What stays in 32 bits:
//!
//! - inputs, targets, labels, parameters and their gradients, running and saved statistics;
//! - outputs that are read after a run: restored images, logits, features, losses;
//! - operands and results of losses and means, so a restored image with its sigmoid and their gradients, and the
//!   class head after its mean over the grid;
//! - places of maxima, and the vectors with which batch norms normalise.
//!
//! Kernels other than convolutions, reductions and their reverse take operands of one type, so a value of theirs
//! that must stay in 32 bits keeps the others there as well.

use super::{Graph, Home, Node, Op, ValueId};
use crate::config::Precision;
use crate::gpu::Dtype;

/// Name of the input that the gradient starts from in a graph of mixed precision.
pub const LOSS_SCALE: &str = "loss_scale";

impl Graph {
    /// The graph as it is stored in `precision`; to be called once it is complete.
    ///
    /// In mixed precision the gradient, if the graph computes one, starts from an input of one number called
    /// [`LOSS_SCALE`] instead of 1: all gradients are that many times as large, so that small ones survive 16 bits.
    #[must_use]
    pub fn stored_in(mut self, precision: Precision) -> Self {
        if precision == Precision::Mixed {
            self.scale_gradient();
            self.store_in_halves();
        }
        self
    }

    /// Makes an input of the number that the gradient starts from.
    fn scale_gradient(&mut self) {
        if let Some(seed) = self.seed.take() {
            self.nodes.retain(|n| n.outputs != [seed]);
            self.values[seed.0].home = Home::Input;
            self.inputs.push((LOSS_SCALE.to_owned(), seed));
        }
    }

    fn store_in_halves(&mut self) {
        let mut half: Vec<bool> =
            self.values.iter().map(|v| v.home == Home::Computed && v.shape.voxels() > 1 && v.shape.channels.is_multiple_of(4)).collect();
        for (_, v) in &self.outputs {
            half[v.0] = false;
        }
        for v in self.nodes.iter().flat_map(whole) {
            half[v.0] = false;
        }
        // What is taken back may take back others, earlier or later in the order.
        loop {
            let mut settled = true;
            for node in &self.nodes {
                let same = alike(node);
                if same.iter().any(|v| !half[v.0]) {
                    for v in same {
                        settled &= !std::mem::take(&mut half[v.0]);
                    }
                }
            }
            if settled {
                break;
            }
        }
        for (value, half) in self.values.iter_mut().zip(half) {
            value.dtype = if half { Dtype::F16 } else { Dtype::F32 };
        }
    }
}

/// Values of an operation that stay in 32 bits.
fn whole(node: &Node) -> Vec<ValueId> {
    match &node.op {
        Op::MaxPool(_) | Op::NormMaxPool(_) | Op::BatchNorm { .. } | Op::BatchNormRunning(_) => vec![node.outputs[1]],
        Op::MaxPoolGrad(_) | Op::MaxPoolGradAdd(_) => vec![node.inputs[0]],
        Op::BatchNormGrad { .. } | Op::NormApply { .. } => vec![node.inputs[1]],
        Op::NormStatistics { .. } | Op::NormFixed(_) => vec![node.outputs[0]],
        Op::Pointwise(_)
        | Op::PointwiseGrad(_)
        | Op::CrossEntropy
        | Op::CrossEntropyGrad
        | Op::Correct
        | Op::SoftDice
        | Op::SoftDiceGrad
        | Op::Softmax
        | Op::SoftmaxGrad
        | Op::ClassDice(_)
        | Op::ClassDiceGrad(_)
        | Op::Weigh
        | Op::ArgMax
        | Op::Mean
        | Op::MeanGrad
        | Op::Fill(_) => node.inputs.iter().chain(&node.outputs).copied().collect(),
        _ => Vec::new(),
    }
}

/// Values of an operation that its kernels take only if they are stored alike.
fn alike(node: &Node) -> Vec<ValueId> {
    let (x, y) = (&node.inputs, &node.outputs);
    match &node.op {
        Op::MaxPool(_) | Op::BatchNorm { .. } | Op::BatchNormRunning(_) | Op::PRelu | Op::NormApply { .. } | Op::NormMaxPool(_) => {
            vec![x[0], y[0]]
        }
        Op::MaxPoolGrad(_) => vec![x[1], y[0]],
        Op::MaxPoolGradAdd(_) => vec![x[1], x[2], y[0]],
        Op::BatchNormGrad { .. } => vec![x[0], x[2], y[0]],
        Op::PReluGrad => vec![x[0], x[2], y[0]],
        Op::AvgPool(_)
        | Op::AvgPoolGrad(_)
        | Op::Upsample(..)
        | Op::UpsampleGrad(..)
        | Op::Activation(_)
        | Op::ActivationGrad(_)
        | Op::Add
        | Op::Scale(_) => x.iter().chain(y).copied().collect(),
        // Each operand of these is read and each result written as it is stored, or all stay in 32 bits.
        Op::Conv3d { .. }
        | Op::Conv3dInputGrad { .. }
        | Op::Conv3dWeightGrad { .. }
        | Op::ChannelSum
        | Op::GlobalAvgPool
        | Op::GlobalAvgPoolGrad
        | Op::Fill(_)
        | Op::Pointwise(_)
        | Op::PointwiseGrad(_)
        | Op::CrossEntropy
        | Op::CrossEntropyGrad
        | Op::Correct
        | Op::SoftDice
        | Op::SoftDiceGrad
        | Op::Softmax
        | Op::SoftmaxGrad
        | Op::ClassDice(_)
        | Op::ClassDiceGrad(_)
        | Op::Weigh
        | Op::ArgMax
        | Op::Mean
        | Op::MeanGrad
        | Op::NormStatistics { .. }
        | Op::NormFixed(_)
        | Op::FusedConv3d(_)
        | Op::LoadedWeightGrad { .. }
        | Op::Head(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Init, Layout, Shape};
    use crate::kernels::activation::Function;
    use crate::kernels::loss::Pointwise;

    /// Stored types by label and operation, in order.
    fn types(g: &Graph) -> Vec<(String, Vec<Dtype>)> {
        let of = |n: &Node| n.outputs.iter().map(|v| g.values()[v.0].dtype).collect();
        g.nodes().iter().map(|n| (format!("{} {}", n.label, n.op.name()), of(n))).collect()
    }

    fn conv(g: &mut Graph, name: &str, x: ValueId, out: usize, kernel: usize) -> ValueId {
        let layout = Layout::Conv { kernel: [kernel; 3], first: out, second: g.shape(x).channels };
        let w = g.param(&format!("{name}.weight"), layout, Init::Constant(0.0)).unwrap();
        let b = g.param(&format!("{name}.bias"), Layout::Vector(out), Init::Constant(0.0)).unwrap();
        g.conv3d(name, &[x], w, Some(b), out, [kernel; 3], [1; 3], [kernel / 2; 3]).unwrap()
    }

    /// Convolution, activation, pool, and a head to one channel whose sigmoid meets a loss.
    fn small(channels: usize) -> Graph {
        let mut g = Graph::new();
        let x = g.input("input", Shape::new(2, [4; 3], 1));
        let t = g.input("target", Shape::new(2, [2; 3], 1));
        let y = conv(&mut g, "first", x, channels, 3);
        let y = g.activation("relu", Function::Relu, y);
        let y = g.max_pool("pool", y, [2; 3], [2; 3], [0; 3]).unwrap();
        let y = conv(&mut g, "last", y, 1, 1);
        let y = g.activation("restored", Function::Sigmoid, y);
        let mse = g.pointwise_loss("loss", Pointwise::Mse, y, t).unwrap();
        let loss = g.mean("loss", mse);
        g.output("loss", loss);
        g.backward(loss, &[]).unwrap();
        g
    }

    #[test]
    fn activations_and_their_gradients_are_halved_and_nothing_else() {
        let g = small(8).stored_in(Precision::Mixed);
        let (h, w) = (Dtype::F16, Dtype::F32);
        let found = types(&g);
        let want: &[(&str, &[Dtype])] = &[
            ("first conv3d", &[h]),
            ("relu activation", &[h]),
            ("pool max_pool", &[h, w]),
            ("last conv3d", &[w]),
            ("restored activation", &[w]),
            ("loss pointwise_loss", &[w]),
            ("loss mean", &[w]),
            ("loss.grad mean.grad", &[w]),
            ("loss.grad pointwise_loss.grad", &[w]),
            ("restored.grad activation.grad", &[w]),
            ("last.grad conv3d.weight_grad", &[w]),
            ("last.grad channel_sum", &[w]),
            ("last.grad conv3d.input_grad", &[h]),
            ("pool.grad max_pool.grad", &[h]),
            ("relu.grad activation.grad", &[h]),
            ("first.grad conv3d.weight_grad", &[w]),
            ("first.grad channel_sum", &[w]),
        ];
        assert_eq!(found.len(), want.len(), "{found:?}");
        for ((name, types), (n, t)) in found.iter().zip(want) {
            assert_eq!((name.as_str(), types.as_slice()), (*n, *t));
        }
        assert!(g.inputs().iter().all(|(_, v)| g.values()[v.0].dtype == w));
    }

    #[test]
    fn the_gradient_starts_from_an_input() {
        let plain = small(8);
        let fills = |g: &Graph| g.nodes().iter().filter(|n| matches!(n.op, Op::Fill(_))).count();
        let g = plain.clone().stored_in(Precision::Mixed);
        assert_eq!((fills(&plain), fills(&g), plain.nodes().len()), (1, 0, g.nodes().len() + 1));
        assert_eq!(g.inputs().last().map(|(n, v)| (n.as_str(), g.shape(*v))), Some((LOSS_SCALE, Shape::vector(1))));
        assert_eq!(types(&plain.clone().stored_in(Precision::F32)), types(&plain));
        // A graph without a gradient has nothing to scale.
        let mut forward = Graph::new();
        let x = forward.input("input", Shape::new(1, [2; 3], 4));
        let y = forward.activation("relu", Function::Relu, x);
        forward.output("y", y);
        assert_eq!(forward.stored_in(Precision::Mixed).inputs().len(), 1);
    }

    #[test]
    fn what_cannot_be_halved_takes_its_company_along() {
        // Six channels do not come in fours.
        assert!(types(&small(6).stored_in(Precision::Mixed)).iter().all(|(_, t)| t.iter().all(|&t| t == Dtype::F32)));
        // An output in 32 bits keeps what it is computed from elementwise there, but not the convolution's source.
        let mut g = Graph::new();
        let x = g.input("input", Shape::new(1, [4; 3], 4));
        let a = conv(&mut g, "a", x, 4, 3);
        let b = conv(&mut g, "b", a, 4, 3);
        let c = g.activation("c", Function::Relu, b);
        let d = g.scale("d", c, 2.0);
        g.output("d", d);
        let g = g.stored_in(Precision::Mixed);
        let dtype = |v: ValueId| g.values()[v.0].dtype;
        assert_eq!([a, b, c, d].map(dtype), [Dtype::F16, Dtype::F32, Dtype::F32, Dtype::F32]);
    }
}
