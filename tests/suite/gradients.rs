//! `Graph::backward` on the device against central differences of an f64 interpreter, for every operation with random
//! cotangents and for whole networks.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashMap;

use semantic_genesis::config::{Activation, Norm, Variant};
use semantic_genesis::doctor::parity::Network;
use semantic_genesis::error::{Error, Result};
use semantic_genesis::gpu::Context;
use semantic_genesis::graph::{FusedConv, Graph, Head, Init, Layout, NormValues, Op, Shape, Upsampling, ValueId};
use semantic_genesis::kernels::activation::Function;
use semantic_genesis::kernels::batch_norm::Use;
use semantic_genesis::kernels::check::{compare, numbers};
use semantic_genesis::kernels::loss::{Pointwise, head};
use semantic_genesis::model::Spec;
use semantic_genesis::plan::{self, Fusion, Plan};

use crate::harness::{self, Rig, target_for, wide};
use crate::interpreter::{Feed, evaluate};

/// The operations by number; a new one does not compile until it has one here, and then fails the test of
/// coverage until some graph below contains it.
fn number(op: &Op) -> usize {
    match op {
        Op::Conv3d { .. } => 0,
        Op::Conv3dInputGrad { .. } => 1,
        Op::Conv3dWeightGrad { .. } => 2,
        Op::ChannelSum => 3,
        Op::MaxPool(_) => 4,
        Op::MaxPoolGrad(_) => 5,
        Op::AvgPool(_) => 6,
        Op::AvgPoolGrad(_) => 7,
        Op::GlobalAvgPool => 8,
        Op::GlobalAvgPoolGrad => 9,
        Op::Upsample(_, Upsampling::Nearest) => 10,
        Op::Upsample(_, Upsampling::Trilinear) => 11,
        Op::UpsampleGrad(_, Upsampling::Nearest) => 12,
        Op::UpsampleGrad(_, Upsampling::Trilinear) => 13,
        Op::BatchNorm { .. } => 14,
        Op::BatchNormGrad { how: Use { fixed: false, relu: false }, .. } => 15,
        Op::BatchNormRunning(_) => 16,
        Op::BatchNormGrad { how: Use { fixed: true, relu: false }, .. } => 17,
        Op::Activation(Function::Relu) => 18,
        Op::Activation(Function::Elu) => 19,
        Op::Activation(Function::Sigmoid) => 20,
        Op::ActivationGrad(Function::Relu) => 21,
        Op::ActivationGrad(Function::Elu) => 22,
        Op::ActivationGrad(Function::Sigmoid) => 23,
        Op::PRelu => 24,
        Op::PReluGrad => 25,
        Op::Add => 26,
        Op::Scale(_) => 27,
        Op::Fill(_) => 28,
        Op::Pointwise(Pointwise::Mse) => 29,
        Op::Pointwise(Pointwise::Mae) => 30,
        Op::Pointwise(Pointwise::BceLogits) => 31,
        Op::PointwiseGrad(Pointwise::Mse) => 32,
        Op::PointwiseGrad(Pointwise::Mae) => 33,
        Op::PointwiseGrad(Pointwise::BceLogits) => 34,
        Op::CrossEntropy => 35,
        Op::CrossEntropyGrad => 36,
        Op::Correct => 37,
        Op::SoftDice => 38,
        Op::SoftDiceGrad => 39,
        Op::Mean => 40,
        Op::MeanGrad => 41,
        Op::Activation(Function::Step) => 55,
        Op::ActivationGrad(Function::Step) => unreachable!("a step has no derivative"),
        Op::Pointwise(Pointwise::Logistic) => 56,
        Op::PointwiseGrad(Pointwise::Logistic) => 57,
        Op::Softmax => 58,
        Op::SoftmaxGrad => 59,
        Op::ClassDice(_) => 60,
        Op::ClassDiceGrad(_) => 61,
        Op::Weigh => 62,
        Op::ArgMax => 63,
        // What the planner makes: in the planned graphs.
        Op::BatchNormGrad { how: Use { fixed: false, relu: true }, .. } => 42,
        Op::BatchNormGrad { how: Use { fixed: true, relu: true }, .. } => 43,
        Op::NormStatistics { .. } => 44,
        Op::NormFixed(_) => 45,
        Op::NormApply { relu: false, .. } => 46,
        Op::NormApply { relu: true, .. } => 47,
        Op::FusedConv3d(FusedConv { statistics: None, .. }) => 48,
        Op::FusedConv3d(FusedConv { statistics: Some(_), .. }) => 49,
        Op::LoadedWeightGrad { .. } => 50,
        Op::NormMaxPool(_) => 51,
        Op::MaxPoolGradAdd(_) => 52,
        Op::Head(Head { parts: head::Parts { norm: false, .. }, .. }) => 53,
        Op::Head(Head { parts: head::Parts { norm: true, .. }, .. }) => 54,
    }
}
const OPERATIONS: usize = 64;

/// What an input is filled with.
#[derive(Clone, Copy)]
enum Fill {
    /// Numbers in (-1.5, 1.5).
    Numbers,
    /// Numbers in (0, 1).
    Unit,
    /// 0 or 1.
    Mask,
    /// Labels below this.
    Labels(u32),
}

/// A graph under construction; `wanted` inputs get their gradient checked, and so do all parameters.
#[derive(Default)]
struct Build {
    g: Graph,
    fills: Vec<(String, Fill)>,
    wanted: Vec<ValueId>,
}

impl Build {
    fn fixed(&mut self, name: &str, shape: Shape, fill: Fill) -> ValueId {
        self.fills.push((name.to_owned(), fill));
        self.g.input(name, shape)
    }

    fn wanted(&mut self, name: &str, shape: Shape, fill: Fill) -> ValueId {
        let v = self.fixed(name, shape, fill);
        self.wanted.push(v);
        v
    }

    fn x(&mut self, batch: usize, grid: [usize; 3], channels: usize) -> ValueId {
        self.wanted("x", Shape::new(batch, grid, channels), Fill::Numbers)
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<ValueId> {
        self.g.param(name, Layout::Vector(n), Init::Constant(0.0))
    }

    fn weight(&mut self, name: &str, kernel: [usize; 3], first: usize, second: usize) -> Result<ValueId> {
        self.g.param(name, Layout::Conv { kernel, first, second }, Init::Constant(0.0))
    }

    fn norm(&mut self, x: ValueId, running: bool) -> Result<ValueId> {
        let c = self.g.shape(x).channels;
        let v = NormValues {
            gamma: self.vector("gamma", c)?,
            beta: self.vector("beta", c)?,
            running_mean: self.g.state("mean", c, 0.0)?,
            running_var: self.g.state("var", c, 1.0)?,
        };
        if running { self.g.batch_norm_running("norm", x, v, 1e-3) } else { self.g.batch_norm("norm", x, v, 1e-3, 0.1) }
    }
}

impl Build {
    /// Convolution with bias, batch norm and ReLU.
    fn block(&mut self, index: usize, sources: &[ValueId], out: usize) -> Result<ValueId> {
        let channels = sources.iter().map(|&s| self.g.shape(s).channels).sum();
        let w = self.weight(&format!("w{index}"), [3; 3], out, channels)?;
        let c = self.vector(&format!("b{index}"), out)?;
        let y = self.g.conv3d(&format!("conv{index}"), sources, w, Some(c), out, [3; 3], [1; 3], [1; 3])?;
        let v = NormValues {
            gamma: self.vector(&format!("gamma{index}"), out)?,
            beta: self.vector(&format!("beta{index}"), out)?,
            running_mean: self.g.state(&format!("mean{index}"), out, 0.0)?,
            running_var: self.g.state(&format!("var{index}"), out, 1.0)?,
        };
        let y = self.g.batch_norm(&format!("norm{index}"), y, v, 1e-3, 0.1)?;
        Ok(self.g.activation(&format!("relu{index}"), Function::Relu, y))
    }

    /// One channel from `x`, its sigmoid and a weighted loss.
    fn head(&mut self, x: ValueId, kind: Pointwise, weight: f32) -> Result<End> {
        let s = self.g.shape(x);
        let (w, c) = (self.weight("head", [1; 3], 1, s.channels)?, self.vector("head.bias", 1)?);
        let y = self.g.conv3d("head", &[x], w, Some(c), 1, [1; 3], [1; 3], [0; 3])?;
        let r = self.g.activation("restored", Function::Sigmoid, y);
        let t = self.fixed("target", Shape { channels: 1, ..s }, Fill::Unit);
        let each = self.g.pointwise_loss("loss", kind, r, t)?;
        let mean = self.g.mean("loss", each);
        Ok(End::Loss(self.g.scale("weighted", mean, weight)))
    }
}

/// What a check ends in.
enum End {
    /// A tensor; its loss gives it a random gradient.
    Tensor(ValueId),
    /// The loss itself.
    Loss(ValueId),
}

type Record = fn(&mut Build) -> Result<End>;

/// The checks: each records one operation, or one way in which gradients meet.
fn checks() -> Vec<(&'static str, Record)> {
    use End::{Loss, Tensor};
    vec![
        ("convolution of two sources with bias, odd channels", |b| {
            let x = b.x(2, [3, 4, 5], 3);
            let z = b.wanted("z", Shape::new(2, [3, 4, 5], 2), Fill::Numbers);
            let (w, c) = (b.weight("w", [3, 3, 3], 3, 5)?, b.vector("b", 3)?);
            Ok(Tensor(b.g.conv3d("conv", &[x, z], w, Some(c), 3, [3; 3], [1; 3], [1; 3])?))
        }),
        ("convolution of two sources, channels in fours", |b| {
            let x = b.x(2, [3, 2, 6], 4);
            let z = b.wanted("z", Shape::new(2, [3, 2, 6], 8), Fill::Numbers);
            let (w, c) = (b.weight("w", [3, 3, 3], 8, 12)?, b.vector("b", 8)?);
            Ok(Tensor(b.g.conv3d("conv", &[x, z], w, Some(c), 8, [3; 3], [1; 3], [1; 3])?))
        }),
        ("strided convolution", |b| {
            let x = b.x(2, [5, 4, 6], 4);
            let w = b.weight("w", [3, 2, 1], 8, 4)?;
            Ok(Tensor(b.g.conv3d("conv", &[x], w, None, 8, [3, 2, 1], [2, 1, 3], [1, 0, 0])?))
        }),
        ("transposed convolution", |b| {
            let x = b.x(2, [2, 3, 2], 8);
            let (w, c) = (b.weight("w", [2, 2, 2], 8, 4)?, b.vector("b", 4)?);
            Ok(Tensor(b.g.conv_transpose3d("up", x, w, Some(c), 4, [2; 3], [2; 3], [0; 3])?))
        }),
        ("transposed convolution with overlap", |b| {
            let x = b.x(1, [2, 3, 2], 3);
            let (w, c) = (b.weight("w", [3, 3, 3], 3, 2)?, b.vector("b", 2)?);
            Ok(Tensor(b.g.conv_transpose3d("up", x, w, Some(c), 2, [3; 3], [2; 3], [1; 3])?))
        }),
        ("maximum pool", |b| {
            let x = b.x(2, [4, 5, 6], 3);
            Ok(Tensor(b.g.max_pool("pool", x, [2, 3, 2], [2, 1, 2], [0, 1, 0])?))
        }),
        ("average pool", |b| {
            let x = b.x(2, [4, 5, 6], 4);
            Ok(Tensor(b.g.avg_pool("pool", x, [2, 3, 2], [2, 2, 1], [0, 1, 0])?))
        }),
        ("mean over the grid", |b| {
            let x = b.x(3, [2, 3, 4], 5);
            Ok(Tensor(b.g.global_avg_pool("pool", x)))
        }),
        ("nearest", |b| {
            let x = b.x(2, [2, 3, 2], 4);
            Ok(Tensor(b.g.upsample("up", x, [4, 6, 4], Upsampling::Nearest)))
        }),
        ("trilinear", |b| {
            let x = b.x(2, [2, 3, 4], 3);
            Ok(Tensor(b.g.upsample("up", x, [5, 2, 7], Upsampling::Trilinear)))
        }),
        ("batch norm", |b| {
            let x = b.x(3, [2, 3, 2], 5);
            Ok(Tensor(b.norm(x, false)?))
        }),
        ("batch norm of four channels", |b| {
            let x = b.x(2, [2, 3, 3], 4);
            Ok(Tensor(b.norm(x, false)?))
        }),
        ("batch norm and ReLU", |b| {
            let x = b.x(2, [2, 3, 3], 4);
            let y = b.norm(x, false)?;
            Ok(Tensor(b.g.activation("f", Function::Relu, y)))
        }),
        ("batch norm with running statistics", |b| {
            let x = b.x(2, [2, 3, 2], 4);
            Ok(Tensor(b.norm(x, true)?))
        }),
        ("ReLU", |b| {
            let x = b.x(2, [3, 3, 3], 3);
            Ok(Tensor(b.g.activation("f", Function::Relu, x)))
        }),
        ("ELU", |b| {
            let x = b.x(2, [3, 3, 3], 3);
            Ok(Tensor(b.g.activation("f", Function::Elu, x)))
        }),
        ("sigmoid", |b| {
            let x = b.x(2, [3, 3, 3], 3);
            Ok(Tensor(b.g.activation("f", Function::Sigmoid, x)))
        }),
        ("PReLU", |b| {
            let x = b.x(2, [3, 2, 3], 3);
            let slope = b.vector("slope", 3)?;
            Ok(Tensor(b.g.prelu("f", x, slope)?))
        }),
        ("a value used three times, scaled and added", |b| {
            let x = b.x(2, [3, 2, 3], 4);
            let (s, f) = (b.g.scale("scale", x, -1.75), b.g.activation("f", Function::Sigmoid, x));
            let sum = b.g.add("sum", s, f)?;
            Ok(Tensor(b.g.add("sum", sum, x)?))
        }),
        ("a parameter used twice", |b| {
            let x = b.x(1, [2, 3, 4], 4);
            let w = b.weight("w", [1, 1, 1], 4, 4)?;
            let y = b.g.conv3d("first", &[x], w, None, 4, [1; 3], [1; 3], [0; 3])?;
            Ok(Tensor(b.g.conv3d("second", &[y], w, None, 4, [1; 3], [1; 3], [0; 3])?))
        }),
        ("squared error", |b| {
            let x = b.x(3, [2, 3, 2], 2);
            let t = b.fixed("target", Shape::new(3, [2, 3, 2], 2), Fill::Numbers);
            Ok(Tensor(b.g.pointwise_loss("loss", Pointwise::Mse, x, t)?))
        }),
        ("absolute error", |b| {
            let x = b.x(3, [2, 3, 2], 2);
            let t = b.fixed("target", Shape::new(3, [2, 3, 2], 2), Fill::Numbers);
            Ok(Tensor(b.g.pointwise_loss("loss", Pointwise::Mae, x, t)?))
        }),
        ("logistic loss", |b| {
            let x = b.x(3, [1; 3], 14);
            let t = b.fixed("target", Shape::new(3, [1; 3], 14), Fill::Mask);
            Ok(Tensor(b.g.pointwise_loss("loss", Pointwise::BceLogits, x, t)?))
        }),
        ("cross-entropy of each voxel, besides the count of right answers", |b| {
            let x = b.x(2, [2, 3, 2], 5);
            let l = b.fixed("labels", Shape::new(2, [2, 3, 2], 1), Fill::Labels(5));
            let loss = b.g.cross_entropy("loss", x, l)?;
            let hits = b.g.correct("correct", x, l)?;
            Ok(Tensor(b.g.add("sum", loss, hits)?))
        }),
        ("logistic loss with signed weights", |b| {
            let x = b.x(3, [1; 3], 14);
            let t = b.fixed("target", Shape::new(3, [1; 3], 14), Fill::Numbers);
            Ok(Tensor(b.g.pointwise_loss("loss", Pointwise::Logistic, x, t)?))
        }),
        ("softmax", |b| {
            let x = b.x(2, [2, 3, 2], 5);
            Ok(Tensor(b.g.softmax("softmax", x)))
        }),
        ("Dice of the classes of a softmax, besides the largest", |b| {
            let x = b.x(2, [2, 3, 2], 4);
            let l = b.fixed("labels", Shape::new(2, [2, 3, 2], 1), Fill::Labels(4));
            let p = b.g.softmax("softmax", x);
            let best = b.g.arg_max("best", x);
            b.g.output("best", best);
            let dice = b.g.class_dice("dice", p, l, 1)?;
            Ok(Loss(b.g.scale("weighted", dice, 3.5)))
        }),
        ("cross-entropy of each voxel, weighted by class", |b| {
            let x = b.x(2, [2, 3, 2], 5);
            let l = b.fixed("labels", Shape::new(2, [2, 3, 2], 1), Fill::Labels(5));
            let w = b.fixed("weights", Shape::vector(5), Fill::Unit);
            let loss = b.g.cross_entropy("loss", x, l)?;
            Ok(Tensor(b.g.weigh("weigh", loss, l, w)?))
        }),
        ("Dice of a mask that is a step", |b| {
            let x = b.wanted("x", Shape::new(2, [2, 3, 4], 1), Fill::Unit);
            let t = b.fixed("target", Shape::new(2, [2, 3, 4], 1), Fill::Numbers);
            let mask = b.g.activation("mask", Function::Step, t);
            let dice = b.g.soft_dice("dice", x, mask)?;
            Ok(Loss(b.g.scale("weighted", dice, 3.5)))
        }),
        ("soft Dice", |b| {
            let x = b.wanted("x", Shape::new(2, [2, 3, 4], 1), Fill::Unit);
            let t = b.fixed("target", Shape::new(2, [2, 3, 4], 1), Fill::Mask);
            let dice = b.g.soft_dice("dice", x, t)?;
            Ok(Loss(b.g.scale("weighted", dice, 3.5)))
        }),
        ("batch norm and ReLU between convolutions, read twice by one that is pooled", |b| {
            let x = b.x(2, [4, 2, 4], 3);
            let y = b.block(0, &[x], 4)?;
            let z = b.block(1, &[y], 8)?;
            let pooled = b.g.max_pool("pool", z, [2; 3], [2; 3], [0; 3])?;
            let deep = b.block(2, &[pooled], 4)?;
            let up = b.g.upsample("up", deep, [4, 2, 4], Upsampling::Nearest);
            let w = b.weight("last", [3; 3], 4, 12)?;
            Ok(Tensor(b.g.conv3d("last", &[up, z], w, None, 4, [3; 3], [1; 3], [1; 3])?))
        }),
        ("running statistics and ReLU before a pool and a convolution", |b| {
            let x = b.x(2, [2, 4, 2], 4);
            let y = b.norm(x, true)?;
            let a = b.g.activation("f", Function::Relu, y);
            let pooled = b.g.max_pool("pool", a, [2; 3], [2; 3], [0; 3])?;
            let w = b.weight("w", [3; 3], 4, 4)?;
            let z = b.g.conv3d("conv", &[a], w, None, 4, [3; 3], [2; 3], [1; 3])?;
            Ok(Tensor(b.g.add("sum", pooled, z)?))
        }),
        ("convolution, batch norm and ELU", |b| {
            let x = b.x(2, [3, 2, 3], 4);
            let (w, c) = (b.weight("w", [3; 3], 8, 4)?, b.vector("b", 8)?);
            let y = b.g.conv3d("conv", &[x], w, Some(c), 8, [3; 3], [1; 3], [1; 3])?;
            let y = b.norm(y, false)?;
            Ok(Tensor(b.g.activation("f", Function::Elu, y)))
        }),
        ("restoration with its loss", |b| {
            let x = b.x(2, [2, 3, 4], 4);
            b.head(x, Pointwise::Mse, -0.75)
        }),
        ("restoration of a batch norm and ReLU with its loss", |b| {
            let x = b.x(2, [2, 3, 4], 3);
            let y = b.block(0, &[x], 8)?;
            b.head(y, Pointwise::Mae, 1.0)
        }),
        ("mean", |b| {
            let x = b.x(3, [1; 3], 7);
            let m = b.g.mean("mean", x);
            Ok(Tensor(b.g.scale("weighted", m, -2.0)))
        }),
    ]
}

/// The graphs of all checks with their gradients.
pub(crate) fn graphs() -> Vec<Graph> {
    let build = |record: Record| {
        let mut b = Build::default();
        let loss = match record(&mut b)? {
            End::Loss(v) => v,
            End::Tensor(y) => {
                let t = b.g.input("cotangent", b.g.shape(y));
                let each = b.g.pointwise_loss("loss", Pointwise::Mse, y, t)?;
                b.g.mean("loss", each)
            }
        };
        b.g.backward(loss, &b.wanted)?;
        Ok(b.g)
    };
    checks().into_iter().map(|(name, record)| build(record).unwrap_or_else(|e: Error| panic!("{name}: {e}"))).collect()
}

/// What `name` is filled with.
fn filled(fill: Fill, seed: u32, n: usize) -> Vec<f32> {
    let v = numbers(seed, n, 1.5);
    match fill {
        Fill::Numbers => v,
        Fill::Unit => v.iter().map(|v| (v + 1.5) / 3.0).collect(),
        Fill::Mask => v.iter().map(|v| f32::from(u8::from(*v > 0.0))).collect(),
        Fill::Labels(n) => v.iter().map(|v| ((v + 1.5) / 3.0 * n as f32).floor().min(n as f32 - 1.0)).collect(),
    }
}

/// Parameters and running statistics in general position.
fn flat(g: &Graph) -> (Vec<f32>, Vec<f32>) {
    let params = numbers(90, g.params.flat_len(), 0.6);
    let state = numbers(91, g.state.flat_len(), 0.5).iter().map(|v| v + 1.0).collect();
    (params, state)
}

/// The feeds of a graph in f32, as the device gets them.
struct Feeds {
    inputs: Vec<(String, Vec<f32>)>,
    params: Vec<f32>,
    state: Vec<f32>,
    labels: Vec<String>,
}

impl Feeds {
    fn wide(&self) -> Feed {
        let inputs: HashMap<_, _> = self.inputs.iter().map(|(n, v)| (n.clone(), wide(v))).collect();
        Feed { inputs, params: wide(&self.params), state: wide(&self.state) }
    }

    fn upload(&self, ctx: &Context, rig: &Rig) {
        for (name, data) in &self.inputs {
            match self.labels.contains(name) {
                true => rig.feed(ctx, name, &data.iter().map(|&v| v as u32).collect::<Vec<_>>()),
                false => rig.feed(ctx, name, data),
            }
        }
        ctx.upload(&rig.store.params, 0, &self.params);
        ctx.upload(&rig.store.state, 0, &self.state);
    }
}

/// Central difference of the loss by what `place` points at.
fn difference(g: &Graph, feed: &Feed, loss: ValueId, h: f64, place: impl Fn(&mut Feed) -> &mut f64) -> f64 {
    let mut at = feed.clone();
    *place(&mut at) += h;
    let up = evaluate(g, &at, loss)[0];
    *place(&mut at) -= 2.0 * h;
    (up - evaluate(g, &at, loss)[0]) / (2.0 * h)
}

/// Checks one graph; returns what is wrong, and marks the operations it contains.
fn check(ctx: &Context, name: &str, record: Record, seen: &mut [bool], spoil: f32) -> Vec<String> {
    let mut b = Build::default();
    let end = record(&mut b).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut feeds = Feeds { inputs: Vec::new(), params: Vec::new(), state: Vec::new(), labels: Vec::new() };
    (feeds.params, feeds.state) = flat(&b.g);
    for (i, (input, fill)) in (0u32..).zip(&b.fills) {
        let (_, v) = b.g.inputs()[i as usize];
        feeds.inputs.push((input.clone(), filled(*fill, 100 + i, b.g.shape(v).len())));
        if matches!(fill, Fill::Labels(_)) {
            feeds.labels.push(input.clone());
        }
    }
    let loss = match end {
        End::Loss(v) => v,
        End::Tensor(y) => {
            let shape = b.g.shape(y);
            let value: Vec<f32> = evaluate(&b.g, &feeds.wide(), y).iter().map(|&v| v as f32).collect();
            let t = b.g.input("cotangent", shape);
            feeds.inputs.push(("cotangent".into(), target_for(&value, &numbers(92, value.len(), 1.0))));
            let each = b.g.pointwise_loss("loss", Pointwise::Mse, y, t).unwrap();
            b.g.mean("loss", each)
        }
    };
    let gradients = b.g.backward(loss, &b.wanted).unwrap_or_else(|e| panic!("{name}: {e}"));
    let names: Vec<String> = b.wanted.iter().map(|w| b.g.inputs().iter().find(|(_, v)| v == w).map(|(n, _)| n.clone()).unwrap()).collect();
    for (gradient, input) in gradients.iter().zip(&names) {
        b.g.output(input, *gradient);
    }
    let mut failures = Vec::new();
    for fusion in [Fusion::NONE, Fusion::ALL] {
        let options = plan::Options { fusion: Some(fusion), ..plan::Options::default() };
        let plan = Plan::with(&b.g, ctx.caps(), &options).unwrap();
        let name = if fusion == Fusion::NONE { name.to_owned() } else { format!("{name} (fused)") };
        if fusion == Fusion::NONE || plan.graph.nodes() != b.g.nodes() {
            plan.graph.nodes().iter().for_each(|n| seen[number(&n.op)] = true);
            let rig = Rig::planned(ctx, &b.g, plan);
            failures.extend(check_planned(ctx, &name, &b, &rig, &feeds, loss, &names, spoil));
        }
    }
    failures
}

/// Checks the gradients of a graph as it was planned.
fn check_planned(
    ctx: &Context,
    name: &str,
    b: &Build,
    rig: &Rig,
    feeds: &Feeds,
    loss: ValueId,
    names: &[String],
    spoil: f32,
) -> Vec<String> {
    feeds.upload(ctx, rig);
    rig.run(ctx);
    let mut failures = Vec::new();
    let mut hold = |what: &str, mut got: Vec<f32>, want: Vec<f64>| {
        got[0] += spoil;
        // A bias before a batch norm: what is found there is rounding.
        if want.iter().all(|w| w.abs() < 1e-8) && got.iter().all(|g| g.abs() < 1e-5) {
            return;
        }
        let outcome = compare(&got, &want, 5e-5).unwrap();
        failures.extend(outcome.failure.map(|f| format!("{name}, gradient of {what}: {f}")));
    };
    let feed = feeds.wide();
    for input in names {
        let got = rig.read(ctx, input);
        let want = (0..got.len()).map(|i| difference(&b.g, &feed, loss, 1e-5, |f| &mut f.inputs.get_mut(input).unwrap()[i])).collect();
        hold(input, got, want);
    }
    let grads: Vec<f32> = if feeds.params.is_empty() { vec![] } else { ctx.read(&rig.store.grads, 0, feeds.params.len()).unwrap() };
    for p in b.g.params.list() {
        let range = p.offset..p.offset + p.len();
        let want = range.clone().map(|i| difference(&b.g, &feed, loss, 1e-5, |f| &mut f.params[i])).collect();
        hold(&p.name, grads[range].to_vec(), want);
    }
    failures
}

#[test]
fn every_operation_has_the_derivative_that_differences_show() {
    let Some(ctx) = harness::trusted() else { return };
    let mut seen = vec![false; OPERATIONS];
    let failures: Vec<String> = checks().into_iter().flat_map(|(name, record)| check(ctx, name, record, &mut seen, 0.0)).collect();
    assert!(failures.is_empty(), "{} gradients are wrong:\n{}", failures.len(), failures.join("\n"));
    let missing: Vec<usize> = (0..OPERATIONS).filter(|&i| !seen[i]).collect();
    assert!(missing.is_empty(), "operations {missing:?} of `number` are in no check");
}

#[test]
fn a_spoilt_gradient_is_noticed() {
    let Some(ctx) = harness::trusted() else { return };
    let (name, record) = checks().swap_remove(0);
    assert_eq!(check(ctx, name, record, &mut [false; OPERATIONS], 1e-2).len(), 4, "two sources, a weight and a bias");
    let (name, record) = checks().into_iter().find(|(name, _)| name.starts_with("restoration with")).unwrap();
    let failures = check(ctx, name, record, &mut [false; OPERATIONS], 1e-2);
    assert_eq!(failures.len(), 6, "an input, a weight and a bias, each by itself and fused: {failures:?}");
}

#[test]
fn whole_y_nets_have_the_gradients_that_differences_show() {
    let Some(ctx) = harness::trusted() else { return };
    for (variant, activation) in
        [(Variant::PyTorch, Activation::PRelu), (Variant::Keras, Activation::Elu), (Variant::PyTorch, Activation::Relu)]
    {
        let spec = Spec { base: 1, depth: 4, variant, activation, norm: Norm::Running, channels: 1 };
        let network = Network { spec, restores: true, skips: true, classes: Some(3) };
        let (batch, grid) = (2, [16, 8, 8]);
        let g = network.graph(batch, grid).unwrap();
        let loss = g.outputs().iter().find(|(n, _)| n == "loss").map(|o| o.1).unwrap();
        let (params, state) = flat(&g);
        let voxels = batch * grid.iter().product::<usize>();
        let inputs = vec![
            ("input".to_owned(), filled(Fill::Unit, 1, voxels)),
            ("target".to_owned(), filled(Fill::Unit, 2, voxels)),
            ("labels".to_owned(), vec![2.0, 0.0]),
        ];
        let feeds = Feeds { inputs, params, state, labels: vec!["labels".into()] };
        let rig = Rig::new(ctx, &g);
        feeds.upload(ctx, &rig);
        rig.run(ctx);
        let grads: Vec<f32> = ctx.read(&rig.store.grads, 0, g.params.flat_len()).unwrap();
        let feed = feeds.wide();
        let value = evaluate(&g, &feed, loss)[0];
        assert!((f64::from(rig.read(ctx, "loss")[0]) - value).abs() < 1e-5 * value, "the loss is {value}");
        let largest = grads.iter().fold(0f32, |m, g| m.max(g.abs()));
        let mut failures = Vec::new();
        for p in g.params.list() {
            // The first and the last element, and the one that matters most.
            let own = &grads[p.offset..p.offset + p.len()];
            let most = (0..own.len()).max_by(|&i, &j| own[i].abs().total_cmp(&own[j].abs())).unwrap();
            // A bias before a batch norm has the gradient zero; a tie of a max-pool that f32 decides otherwise than
            // f64 moves a gradient by a thousandth (the step of the differences is small to meet few of them).
            let scale = f64::from(own[most].abs().max(5e-3 * largest));
            for i in [0, most, own.len() - 1] {
                let want = difference(&g, &feed, loss, 1e-6, |f| &mut f.params[p.offset + i]);
                if !((f64::from(own[i]) - want).abs() <= 3e-3 * scale) {
                    failures.push(format!("{variant:?} {} element {i} is {}, differences say {want}", p.name, own[i]));
                }
            }
        }
        assert!(failures.is_empty(), "{} gradients are wrong:\n{}", failures.len(), failures.join("\n"));
    }
}
