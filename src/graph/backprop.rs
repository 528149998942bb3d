//! All derivatives, in one place.
//!
//! [`Graph::backward`] walks the operations in reverse and appends, for each one on the path to
//! the loss, the operations that compute its operands' gradients. A value used more than once
//! gets the sum of its contributions. The match has no wildcard: a new operation does not compile
//! until its derivative, or the reason for having none, is written here.

use std::collections::HashMap;

use super::{Graph, Home, Node, Op, Shape, Value, ValueId};
use crate::error::{Error, Result};
use crate::kernels::activation::Function;
use crate::kernels::batch_norm::Use;

/// Gradients found so far, by value.
type Gradients = HashMap<ValueId, ValueId>;

impl Graph {
    /// Appends the gradient of the scalar `loss` with respect to every parameter it depends on;
    /// parameter gradients live in [`Home::Grad`]. Values in `wanted` get their gradient too, returned in order.
    ///
    /// # Errors
    /// [`Error::Shape`] when `loss` is not one number, or when it does not depend on a value of `wanted`
    /// or passes through an operation without a derivative.
    pub fn backward(&mut self, loss: ValueId, wanted: &[ValueId]) -> Result<Vec<ValueId>> {
        self.expect("backward", "the loss", loss, Shape::vector(1))?;
        let needed = self.needing_gradient(wanted);
        let mut grads = Gradients::new();
        let seed = self.push1("loss.grad", Op::Fill(1.0), vec![], Shape::vector(1));
        self.seed = Some(seed);
        grads.insert(loss, seed);
        for i in (0..self.nodes.len()).rev() {
            let node = self.nodes[i].clone();
            if node.outputs.iter().any(|o| grads.contains_key(o)) {
                self.derive(&node, &needed, &mut grads)?;
            }
        }
        // The sum, when there were several contributions, is itself a computed value: parameters
        // take theirs at the operation that makes the last contribution.
        for index in 0..self.params.list().len() {
            let Some(param) = self.values.iter().position(|v| v.home == Home::Param(index)) else { continue };
            if let Some(&g) = grads.get(&ValueId(param)) {
                // A gradient that is passed through, or that is two parameters', needs a place of its own.
                let shared = self.values[g.0].home != Home::Computed || self.nodes.iter().any(|n| n.inputs.contains(&g));
                let shape = self.shape(g);
                let own = if shared { self.push1("param.grad", Op::Scale(1.0), vec![g], shape) } else { g };
                self.values[own.0].home = Home::Grad(index);
                grads.insert(ValueId(param), own);
            }
        }
        wanted
            .iter()
            .map(|w| grads.get(w).copied().ok_or_else(|| Error::shape("backward", "the loss does not depend on a wanted value")))
            .collect()
    }

    /// Which values lie between a parameter (or a wanted value) and anything computed from it.
    fn needing_gradient(&self, wanted: &[ValueId]) -> Vec<bool> {
        let trained = |v: &Value| matches!(v.home, Home::Param(i) if !self.frozen[i]);
        let mut needed: Vec<bool> = self.values.iter().map(trained).collect();
        for w in wanted {
            needed[w.0] = true;
        }
        for node in &self.nodes {
            if node.inputs.iter().any(|i| needed[i.0]) {
                for o in &node.outputs {
                    needed[o.0] = true;
                }
            }
        }
        needed
    }

    /// Adds `gradient` to what `value` has so far.
    fn contribute(&mut self, grads: &mut Gradients, label: &str, value: ValueId, gradient: ValueId) {
        let total = match grads.get(&value) {
            Some(&old) => {
                let s = self.shape(old);
                self.push1(label, Op::Add, vec![old, gradient], s)
            }
            None => gradient,
        };
        grads.insert(value, total);
    }

    /// Appends the derivative of one operation.
    fn derive(&mut self, node: &Node, needed: &[bool], grads: &mut Gradients) -> Result<()> {
        let (x, y) = (&node.inputs, &node.outputs);
        let Some(&dy) = grads.get(&y[0]) else {
            return Err(Error::shape("backward", format!("{} ({}): only its first result has a derivative", node.label, node.op.name())));
        };
        let label = format!("{}.grad", node.label);
        let wants = |v: ValueId| needed.get(v.0).copied().unwrap_or(false);
        let shape = |g: &Self, v: ValueId| g.shape(v);
        // Records `op` with one result for operand `of` and adds it to that operand's gradient.
        let one = |g: &mut Self, grads: &mut Gradients, op: Op, inputs: Vec<ValueId>, of: ValueId| {
            if wants(of) {
                let s = shape(g, of);
                let d = g.push1(&label, op, inputs, s);
                g.contribute(grads, &label, of, d);
            }
        };
        match &node.op {
            Op::Conv3d { geom, sources } => {
                let n = sources.len();
                let weight = x[n];
                if wants(weight) {
                    let inputs = x[..n].iter().copied().chain([dy]).collect();
                    one(self, grads, Op::Conv3dWeightGrad { geom: *geom, sources: sources.clone() }, inputs, weight);
                }
                if let Some(&bias) = x.get(n + 1) {
                    one(self, grads, Op::ChannelSum, vec![dy], bias);
                }
                for (&source, &input) in sources.iter().zip(x) {
                    one(self, grads, Op::Conv3dInputGrad { geom: *geom, source }, vec![dy, weight], input);
                }
            }
            // The adjoint of an adjoint is the convolution itself.
            Op::Conv3dInputGrad { geom, source } => {
                if *source != geom.whole() {
                    return Err(Error::shape("backward", format!("{label}: second derivatives of a concatenation are not supported")));
                }
                one(self, grads, Op::Conv3dWeightGrad { geom: *geom, sources: vec![*source] }, vec![dy, x[0]], x[1]);
                if let Some(&bias) = x.get(2) {
                    one(self, grads, Op::ChannelSum, vec![dy], bias);
                }
                one(self, grads, Op::Conv3d { geom: *geom, sources: vec![*source] }, vec![dy, x[1]], x[0]);
            }
            Op::MaxPool(geom) => one(self, grads, Op::MaxPoolGrad(*geom), vec![y[1], dy], x[0]),
            Op::AvgPool(geom) => one(self, grads, Op::AvgPoolGrad(*geom), vec![dy], x[0]),
            Op::GlobalAvgPool => one(self, grads, Op::GlobalAvgPoolGrad, vec![dy], x[0]),
            Op::Upsample(geom, how) => one(self, grads, Op::UpsampleGrad(*geom, *how), vec![dy], x[0]),
            Op::BatchNorm { geom, .. } | Op::BatchNormRunning(geom) => {
                let how = Use { fixed: matches!(node.op, Op::BatchNormRunning(_)), relu: false };
                let shapes = [self.shape(x[0]), self.shape(x[1]), self.shape(x[2])];
                let d = self.push(&label, Op::BatchNormGrad { geom: *geom, how }, vec![x[0], y[1], dy], &shapes);
                for (&v, &g) in x[..3].iter().zip(&d).filter(|(v, _)| wants(**v)) {
                    self.contribute(grads, &label, v, g);
                }
            }
            Op::Activation(Function::Step) => {}
            Op::Activation(f) => one(self, grads, Op::ActivationGrad(*f), vec![y[0], dy], x[0]),
            Op::PRelu => {
                let shapes = [self.shape(x[0]), self.shape(x[1])];
                let d = self.push(&label, Op::PReluGrad, vec![x[0], x[1], dy], &shapes);
                for (&v, &g) in x.iter().zip(&d).filter(|(v, _)| wants(**v)) {
                    self.contribute(grads, &label, v, g);
                }
            }
            Op::Add => {
                for &operand in x {
                    if wants(operand) {
                        self.contribute(grads, &label, operand, dy);
                    }
                }
            }
            Op::Scale(factor) => one(self, grads, Op::Scale(*factor), vec![dy], x[0]),
            Op::Pointwise(kind) => one(self, grads, Op::PointwiseGrad(*kind), vec![x[0], x[1], dy], x[0]),
            Op::CrossEntropy => one(self, grads, Op::CrossEntropyGrad, vec![x[0], x[1], dy], x[0]),
            Op::SoftDice => one(self, grads, Op::SoftDiceGrad, vec![x[0], x[1], dy], x[0]),
            Op::Softmax => one(self, grads, Op::SoftmaxGrad, vec![y[0], dy], x[0]),
            Op::ClassDice(geom) => one(self, grads, Op::ClassDiceGrad(*geom), vec![x[0], x[1], dy], x[0]),
            // Linear in x; the weights are no parameters.
            Op::Weigh => one(self, grads, Op::Weigh, vec![dy, x[1], x[2]], x[0]),
            Op::Mean => one(self, grads, Op::MeanGrad, vec![dy], x[0]),
            // A constant, a count and a choice depend on nothing smoothly.
            Op::Fill(_) | Op::Correct | Op::ArgMax => {}
            // Second derivatives: nothing in training asks for them.
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
            | Op::MeanGrad
            // What the planner makes of a graph that has its gradient.
            | Op::NormStatistics { .. }
            | Op::NormFixed(_)
            | Op::NormApply { .. }
            | Op::FusedConv3d(_)
            | Op::LoadedWeightGrad { .. }
            | Op::NormMaxPool(_)
            | Op::MaxPoolGradAdd(_)
            | Op::Head(_) => {
                return Err(Error::shape("backward", format!("{}: {} has no derivative", node.label, node.op.name())));
            }
        }
        Ok(())
    }
}
