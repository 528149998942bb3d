//! Every operation by name: what shape it takes, which passes it has, and the problem it becomes.

use super::op::Problem;
use super::ops::{self, Grid, Norm, Transform};
use super::shape;
use super::{classes, conv};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dtype};
use crate::graph::{Graph, Node, Op, Upsampling};
use crate::kernels::activation::Function;
use crate::kernels::batch_norm::Use;
use crate::kernels::conv3d::{Geom, Pass};
use crate::kernels::loss::{Pointwise, head};
use crate::kernels::optimiser::Rule;
use crate::kernels::{pool, upsample};

/// An operation that can be asked for by name.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Names of the numbers of its shape.
    pub fields: &'static str,
    /// Its passes, the first one first.
    pub passes: &'static [&'static str],
    /// In a few words.
    pub what: &'static str,
}

const CONV: &str = "N,CI,CO,D,H,W";
const GRID: &str = "N,C,D,H,W";
const PASSES: &[&str] = &["forward", "input-grad", "weight-grad"];
const BOTH: &[&str] = &["forward", "grad"];
const FORWARD: &[&str] = &["forward"];
const STEP: &[&str] = &["step"];

const fn kind(name: &'static str, fields: &'static str, passes: &'static [&'static str], what: &'static str) -> Kind {
    Kind { name, fields, passes, what }
}

/// Every operation.
pub const KINDS: [Kind; 54] = [
    kind("conv3d", CONV, PASSES, "convolution; D,H,W is the input's grid"),
    kind("conv_transpose3d", CONV, PASSES, "transposed convolution; D,H,W is the input's grid, kernel and stride 2"),
    kind("conv3d_load", CONV, &["forward", "weight-grad"], "the same, of an input that is normalised as it is read"),
    kind("conv3d_statistics", CONV, FORWARD, "the same, with the statistics of the result"),
    kind("conv3d_load_statistics", CONV, FORWARD, "both"),
    kind("max_pool", GRID, BOTH, "maximum of windows of 2×2×2"),
    kind("max_pool_fused", GRID, BOTH, "of an input that is normalised as it is read; the gradient added to another one"),
    kind("head", GRID, FORWARD, "the last layer with sigmoid, loss and gradients"),
    kind("avg_pool", GRID, BOTH, "mean of windows of 2×2×2"),
    kind("global_avg_pool", GRID, BOTH, "mean over the grid"),
    kind("upsample_nearest", GRID, BOTH, "every voxel repeated to twice the grid"),
    kind("upsample_trilinear", GRID, BOTH, "trilinear to twice the grid"),
    kind("batch_norm", GRID, BOTH, "by the batch's statistics"),
    kind("batch_norm_running", GRID, BOTH, "by running statistics"),
    kind("batch_norm_relu", GRID, BOTH, "by the batch's statistics, with the ReLU that follows"),
    kind("batch_norm_statistics", GRID, FORWARD, "the vectors that normalise, from the batch"),
    kind("batch_norm_apply", GRID, FORWARD, "normalisation by given vectors"),
    kind("batch_norm_apply_relu", GRID, FORWARD, "the same, with the ReLU that follows"),
    kind("relu", GRID, BOTH, "max(0, x)"),
    kind("elu", GRID, BOTH, "exponential linear unit"),
    kind("sigmoid", GRID, BOTH, "logistic function"),
    kind("step", GRID, FORWARD, "1 above 0, else 0"),
    kind("prelu", GRID, BOTH, "a slope per channel below 0"),
    kind("add", GRID, FORWARD, "sum of two tensors"),
    kind("scale", GRID, FORWARD, "product with a number"),
    kind("fill", GRID, FORWARD, "one number everywhere"),
    kind("channel_sum", GRID, FORWARD, "sum over all but channels: the gradient of a bias"),
    kind("mean", "ELEMENTS", BOTH, "mean of everything"),
    kind("mse", GRID, BOTH, "mean squared error per sample"),
    kind("mae", GRID, BOTH, "mean absolute error per sample"),
    kind("bce", GRID, BOTH, "binary cross-entropy of logits per sample"),
    kind("logistic", GRID, BOTH, "logistic loss of logits with signed weights, per sample"),
    kind("soft_dice", GRID, BOTH, "soft Dice loss over everything"),
    kind("class_dice", "ROWS,CLASSES", BOTH, "soft Dice loss of every class but the first"),
    kind("softmax", "ROWS,CLASSES", BOTH, "softmax of class scores"),
    kind("weigh", "ROWS,CLASSES", FORWARD, "numbers weighted by the class of their row"),
    kind("arg_max", "ROWS,CLASSES", FORWARD, "the class with the largest score"),
    kind("cross_entropy", "ROWS,CLASSES", BOTH, "cross-entropy of class scores"),
    kind("correct", "ROWS,CLASSES", FORWARD, "whether the largest score is the label's"),
    kind("adam", "ELEMENTS", STEP, "a step of Adam"),
    kind("adamw", "ELEMENTS", STEP, "a step of Adam with decoupled weight decay"),
    kind("sgd", "ELEMENTS", STEP, "a step of SGD with momentum"),
    kind("norm", "ELEMENTS", FORWARD, "norm of a gradient"),
    kind("knn_distance", "ROWS,COLS,WIDTH", FORWARD, "squared distances of rows"),
    kind("knn_select", "ROWS,COLS,K", FORWARD, "the K nearest of each row"),
    kind("transform", "N,D,H,W", FORWARD, "the full augmentation: flips, elastic, shuffling, non-linear map, painting"),
    kind("transform_flip", "N,D,H,W", FORWARD, "axes reversed"),
    kind("transform_elastic", "N,D,H,W", FORWARD, "elastic deformation"),
    kind("transform_shuffle", "N,D,H,W", FORWARD, "local shuffling in 1000 windows"),
    kind("transform_non_linear", "N,D,H,W", FORWARD, "non-linear map of intensities"),
    kind("transform_paint", "N,D,H,W", FORWARD, "in-painting of five boxes"),
    kind("copy", "ELEMENTS", FORWARD, "from one buffer to another: what bandwidth-bound kernels are measured against"),
    kind("linear", "ROWS,CI,CO", PASSES, "a dense layer: a 1×1×1 convolution of one voxel a row"),
    kind("clip", "ELEMENTS", FORWARD, "norm of a gradient and the factor that bounds it"),
];

/// `given` is none of `known`: in a sentence, with the near miss.
pub fn unknown<'a>(what: &str, given: &str, known: impl Iterator<Item = &'a str> + Clone) -> Error {
    let near = known.clone().map(|k| (strsim::damerau_levenshtein(given, k), k)).min().filter(|(d, k)| *d <= 2.max(k.len() / 3));
    let hint = near.map(|(_, k)| format!(" (did you mean `{k}`?)")).unwrap_or_default();
    Error::Usage(format!("{what} `{given}` is unknown{hint}; there are {}", known.collect::<Vec<_>>().join(", ")))
}

impl Kind {
    /// The operation called `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the near miss.
    pub fn find(name: &str) -> Result<Self> {
        KINDS.iter().find(|k| k.name == name).copied().ok_or_else(|| unknown("the operation", name, KINDS.iter().map(|k| k.name)))
    }

    /// The passes that `--pass pass` selects.
    ///
    /// # Errors
    /// [`Error::Usage`] for one that the operation has not.
    pub fn select(&self, pass: &str) -> Result<Vec<&'static str>> {
        match self.passes.iter().find(|p| **p == pass) {
            _ if pass == "all" => Ok(self.passes.to_vec()),
            Some(p) => Ok(vec![p]),
            None => {
                let known = || self.passes.iter().copied().chain(["all"]);
                Err(unknown(&format!("--pass: {} has passes, but", self.name), pass, known().collect::<Vec<_>>().into_iter()))
            }
        }
    }
}

/// What is asked of an operation besides its shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Kernel or window, where there is one.
    pub kernel: Option<[usize; 3]>,
    /// Stride.
    pub stride: Option<[usize; 3]>,
    /// Padding.
    pub padding: Option<[usize; 3]>,
    /// Storage of activations.
    pub dtype: Dtype,
}

/// The problem of operation `kind` on the shape `n`.
///
/// # Errors
/// [`Error::Shape`] for sizes that the operation refuses, [`Error::Usage`] for options that it has not.
pub fn problem(caps: &Caps, kind: &Kind, pass: &'static str, n: &[usize], options: &Options) -> Result<Problem> {
    let Options { kernel, stride, padding, dtype } = *options;
    let windows =
        kind.name.starts_with("conv") || kind.name.ends_with("_pool") && !kind.name.starts_with("global") || kind.name == "max_pool_fused";
    if !windows && (kernel.is_some() || stride.is_some() || padding.is_some()) {
        return Err(Error::Usage(format!("{} has no --kernel, --stride or --padding", kind.name)));
    }
    if dtype == Dtype::F16 {
        if kind.fields != CONV && kind.fields != GRID || matches!(kind.name, "mse" | "mae" | "bce" | "logistic" | "soft_dice" | "head") {
            return Err(Error::Usage(format!("--dtype f16: {} works on 32-bit values only", kind.name)));
        }
        if !caps.f16 {
            return Err(Error::Usage(format!("--dtype f16: {} has no 16-bit floats in shaders", caps.name)));
        }
    }
    let grid = || Grid { batch: n[0], size: [n[2], n[3], n[4]], channels: n[1] };
    let grad = pass == "grad";
    let conv_pass = Pass::ALL.into_iter().find(|p| p.name() == pass).unwrap_or(Pass::Forward);
    Ok(match kind.name {
        "conv3d" => {
            let k = kernel.unwrap_or([3; 3]);
            let p = padding.unwrap_or(k.map(|k| k / 2));
            let g = Geom::new(n[0], [n[3], n[4], n[5]], n[1], n[2], k, stride.unwrap_or([1; 3]), p)?;
            conv::convolution(caps, g, &[g.whole()], conv_pass, false, dtype)?
        }
        "conv3d_load" | "conv3d_statistics" | "conv3d_load_statistics" => {
            let k = kernel.unwrap_or([3; 3]);
            let p = padding.unwrap_or(k.map(|k| k / 2));
            let g = Geom::new(n[0], [n[3], n[4], n[5]], n[1], n[2], k, stride.unwrap_or([1; 3]), p)?;
            let (load, statistics) = (kind.name.contains("load"), kind.name.contains("statistics"));
            conv::fused(caps, g, &[g.whole()], &[load], conv_pass, false, statistics, dtype)?
        }
        "head" => {
            let g = head::Geom { batch: n[0], voxels: n[2] * n[3] * n[4], channels: n[1] };
            let mut p = ops::head(g, Pointwise::Mse, head::Parts { norm: false, restored: false, gradient: true });
            p.shape = grid().text();
            p
        }
        "conv_transpose3d" => {
            let (k, s, p) = (kernel.unwrap_or([2; 3]), stride.unwrap_or([2; 3]), padding.unwrap_or([0; 3]));
            let mut fine = [0; 3];
            for a in 0..3 {
                fine[a] = ((n[3 + a] - 1) * s[a] + k[a])
                    .checked_sub(2 * p[a])
                    .filter(|v| *v > 0)
                    .ok_or_else(|| Error::shape("conv_transpose3d", format!("padding {p:?} leaves nothing of the output")))?;
            }
            let g = Geom::new(n[0], fine, n[2], n[1], k, s, p)?;
            conv::transposed(caps, g, conv_pass, false, dtype)?
        }
        "linear" => {
            let g = Geom::new(n[0], [1; 3], n[1], n[2], [1; 3], [1; 3], [0; 3])?;
            let mut p = conv::convolution(caps, g, &[g.whole()], conv_pass, conv_pass == Pass::Forward, dtype)?;
            (p.op, p.shape) = ("linear".into(), format!("{},{},{}", n[0], n[1], n[2]));
            p
        }
        "max_pool" | "max_pool_fused" | "avg_pool" => {
            let k = kernel.unwrap_or([2; 3]);
            let g = pool::Geom::new(n[0], [n[2], n[3], n[4]], n[1], k, stride.unwrap_or(k), padding.unwrap_or([0; 3]))?;
            ops::pooling(g, kind.name != "avg_pool", grad, kind.name == "max_pool_fused", dtype)
        }
        "global_avg_pool" => ops::global_avg_pool(grid(), grad, dtype),
        "upsample_nearest" | "upsample_trilinear" => {
            let input = [n[2], n[3], n[4]];
            let g = upsample::Geom { batch: n[0], input, output: input.map(|v| 2 * v), channels: n[1] };
            let mode = if kind.name == "upsample_nearest" { upsample::Mode::Nearest } else { upsample::Mode::Trilinear };
            ops::upsampling(g, mode, grad, dtype)
        }
        "batch_norm" | "batch_norm_running" | "batch_norm_relu" => {
            let how = Use { fixed: kind.name == "batch_norm_running", relu: kind.name == "batch_norm_relu" };
            ops::batch_normalisation(grid(), if grad { Norm::Grad(how) } else { Norm::Whole(how) }, dtype)
        }
        "batch_norm_statistics" => ops::batch_normalisation(grid(), Norm::Vectors { fixed: false }, dtype),
        "batch_norm_apply" => ops::batch_normalisation(grid(), Norm::Apply { relu: false }, dtype),
        "batch_norm_apply_relu" => ops::batch_normalisation(grid(), Norm::Apply { relu: true }, dtype),
        "relu" => ops::activation(Function::Relu, grid(), grad, dtype),
        "elu" => ops::activation(Function::Elu, grid(), grad, dtype),
        "sigmoid" => ops::activation(Function::Sigmoid, grid(), grad, dtype),
        "step" => ops::activation(Function::Step, grid(), grad, dtype),
        "prelu" => ops::prelu(grid(), grad, dtype),
        "add" => ops::add(grid(), dtype),
        "scale" => ops::scale(grid(), dtype),
        "fill" => ops::fill(grid(), dtype),
        "channel_sum" => ops::channel_sum(grid(), dtype),
        "mean" => ops::mean(n[0], grad),
        "mse" => ops::pointwise_loss(Pointwise::Mse, grid(), grad),
        "mae" => ops::pointwise_loss(Pointwise::Mae, grid(), grad),
        "bce" => ops::pointwise_loss(Pointwise::BceLogits, grid(), grad),
        "logistic" => ops::pointwise_loss(Pointwise::Logistic, grid(), grad),
        "class_dice" => classes::dice(n[0], n[1], grad),
        "softmax" => classes::softmax(n[0], n[1], grad),
        "weigh" => classes::weigh(n[0], n[1]),
        "arg_max" => classes::arg_max(n[0], n[1]),
        "soft_dice" => ops::soft_dice(grid(), grad),
        "cross_entropy" => ops::cross_entropy(n[0], n[1], pass),
        "correct" => ops::cross_entropy(n[0], n[1], "correct"),
        "adam" => ops::optimiser(Rule::Adam, n[0]),
        "adamw" => ops::optimiser(Rule::AdamW, n[0]),
        "sgd" => ops::optimiser(Rule::Sgd, n[0]),
        "norm" => ops::norm(n[0]),
        "clip" => ops::clip(n[0]),
        "knn_distance" => ops::knn_distance(n[0], n[1], n[2]),
        "knn_select" => ops::knn_select(n[0], n[1], n[2]),
        "transform" => ops::transformation(Transform::All, n[0], [n[1], n[2], n[3]])?,
        "transform_flip" => ops::transformation(Transform::Flip, n[0], [n[1], n[2], n[3]])?,
        "transform_elastic" => ops::transformation(Transform::Elastic, n[0], [n[1], n[2], n[3]])?,
        "transform_shuffle" => ops::transformation(Transform::Shuffle, n[0], [n[1], n[2], n[3]])?,
        "transform_non_linear" => ops::transformation(Transform::NonLinear, n[0], [n[1], n[2], n[3]])?,
        "transform_paint" => ops::transformation(Transform::Paint, n[0], [n[1], n[2], n[3]])?,
        _ => ops::copy(n[0], dtype),
    })
}

/// The problems of operation `name` for every shape that `text` stands for and the passes that `pass` selects, as
/// (kind, pass, shape).
///
/// # Errors
/// As [`shape::parse`] and [`Kind::select`].
pub fn requests(name: &str, text: &str, pass: &str) -> Result<Vec<(Kind, &'static str, Vec<usize>)>> {
    let kind = Kind::find(name)?;
    let passes = kind.select(pass)?;
    let shapes = shape::parse(name, kind.fields, text)?;
    Ok(shapes.into_iter().flat_map(|s| passes.iter().map(move |&p| (kind, p, s.clone()))).collect())
}

/// The problem of an operation of a graph.
///
/// # Errors
/// [`Error::Shape`] where its geometry is refused, [`Error::Usage`] for an operation that no problem is made of.
pub fn of_node(caps: &Caps, graph: &Graph, node: &Node, dtype: Dtype) -> Result<Problem> {
    let shape = |i: usize| graph.shape(node.inputs[i]);
    let out = graph.shape(node.outputs[0]);
    let grid = |s: crate::graph::Shape| Grid { batch: s.batch, size: s.grid, channels: s.channels };
    // A convolution that cuts its input into blocks is a transposed one's adjoint.
    let blocks = |g: &Geom| g.kernel == g.stride && g.padding == [0; 3] && g.kernel != [1; 3];
    let biased = |sources: usize| node.inputs.len() > sources + 1;
    let mode = |m: &Upsampling| if *m == Upsampling::Nearest { upsample::Mode::Nearest } else { upsample::Mode::Trilinear };
    let mut p = match &node.op {
        Op::Conv3d { geom, .. } if blocks(geom) => conv::transposed(caps, *geom, Pass::InputGrad, false, dtype)?,
        Op::Conv3d { geom, sources } => conv::convolution(caps, *geom, sources, Pass::Forward, biased(sources.len()), dtype)?,
        Op::Conv3dInputGrad { geom, .. } if blocks(geom) => conv::transposed(caps, *geom, Pass::Forward, biased(1), dtype)?,
        Op::Conv3dInputGrad { geom, source } => conv::convolution(caps, *geom, &[*source], Pass::InputGrad, false, dtype)?,
        Op::Conv3dWeightGrad { geom, .. } if blocks(geom) => conv::transposed(caps, *geom, Pass::WeightGrad, false, dtype)?,
        Op::Conv3dWeightGrad { geom, sources } => conv::convolution(caps, *geom, sources, Pass::WeightGrad, false, dtype)?,
        Op::ChannelSum => ops::channel_sum(grid(shape(0)), dtype),
        Op::MaxPool(g) => ops::pooling(*g, true, false, false, dtype),
        Op::MaxPoolGrad(g) => ops::pooling(*g, true, true, false, dtype),
        Op::NormMaxPool(g) => ops::pooling(*g, true, false, true, dtype),
        Op::MaxPoolGradAdd(g) => ops::pooling(*g, true, true, true, dtype),
        Op::AvgPool(g) => ops::pooling(*g, false, false, false, dtype),
        Op::AvgPoolGrad(g) => ops::pooling(*g, false, true, false, dtype),
        Op::FusedConv3d(f) => conv::fused(caps, f.geom, &f.sources, &f.norms, Pass::Forward, f.bias, f.statistics.is_some(), dtype)?,
        Op::LoadedWeightGrad { geom, sources, norms } => conv::fused(caps, *geom, sources, norms, Pass::WeightGrad, false, false, dtype)?,
        Op::Head(h) => ops::head(h.geom, h.loss, h.parts),
        Op::GlobalAvgPool => ops::global_avg_pool(grid(shape(0)), false, dtype),
        Op::GlobalAvgPoolGrad => ops::global_avg_pool(grid(out), true, dtype),
        Op::Upsample(g, m) => ops::upsampling(*g, mode(m), false, dtype),
        Op::UpsampleGrad(g, m) => ops::upsampling(*g, mode(m), true, dtype),
        Op::BatchNorm { .. } => ops::batch_normalisation(grid(out), Norm::Whole(Use::default()), dtype),
        Op::BatchNormRunning(_) => ops::batch_normalisation(grid(out), Norm::Whole(Use { fixed: true, relu: false }), dtype),
        Op::BatchNormGrad { how, .. } => ops::batch_normalisation(grid(out), Norm::Grad(*how), dtype),
        Op::NormStatistics { .. } => ops::batch_normalisation(grid(shape(0)), Norm::Vectors { fixed: false }, dtype),
        Op::NormFixed(g) => {
            let grid = Grid { batch: g.batch, size: [1, 1, g.spatial], channels: g.channels };
            ops::batch_normalisation(grid, Norm::Vectors { fixed: true }, dtype)
        }
        Op::NormApply { relu, .. } => ops::batch_normalisation(grid(out), Norm::Apply { relu: *relu }, dtype),
        Op::Activation(f) => ops::activation(*f, grid(out), false, dtype),
        Op::ActivationGrad(f) => ops::activation(*f, grid(out), true, dtype),
        Op::PRelu => ops::prelu(grid(out), false, dtype),
        Op::PReluGrad => ops::prelu(grid(out), true, dtype),
        Op::Add => ops::add(grid(out), dtype),
        Op::Scale(_) => ops::scale(grid(out), dtype),
        Op::Fill(_) => ops::fill(grid(out), dtype),
        Op::Pointwise(k) => ops::pointwise_loss(*k, grid(shape(0)), false),
        Op::PointwiseGrad(k) => ops::pointwise_loss(*k, grid(out), true),
        Op::CrossEntropy => ops::cross_entropy(out.len(), shape(0).channels, "forward"),
        Op::CrossEntropyGrad => ops::cross_entropy(out.len() / out.channels, out.channels, "grad"),
        Op::Correct => ops::cross_entropy(out.len(), shape(0).channels, "correct"),
        Op::SoftDice => ops::soft_dice(grid(shape(0)), false),
        Op::SoftDiceGrad => ops::soft_dice(grid(out), true),
        Op::Softmax => classes::softmax(out.len() / out.channels, out.channels, false),
        Op::SoftmaxGrad => classes::softmax(out.len() / out.channels, out.channels, true),
        Op::ClassDice(g) => classes::dice(g.rows, g.classes, false),
        Op::ClassDiceGrad(g) => classes::dice(g.rows, g.classes, true),
        Op::Weigh => classes::weigh(out.len(), shape(2).channels),
        Op::ArgMax => classes::arg_max(out.len(), shape(0).channels),
        Op::Mean => ops::mean(shape(0).len(), false),
        Op::MeanGrad => ops::mean(out.len(), true),
    };
    p.layer.clone_from(&node.label);
    Ok(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_near_misses_are_suggested() {
        for (i, k) in KINDS.iter().enumerate() {
            assert!(KINDS[..i].iter().all(|o| o.name != k.name), "{} twice", k.name);
        }
        let e = Kind::find("conv3").unwrap_err();
        assert!(e.to_string().contains("did you mean `conv3d`?") && e.exit_code() == 2, "{e}");
        assert!(!Kind::find("something else").unwrap_err().to_string().contains("did you mean"));
        let k = Kind::find("relu").unwrap();
        assert_eq!(k.select("all").unwrap(), ["forward", "grad"]);
        assert_eq!(k.select("grad").unwrap(), ["grad"]);
        assert!(k.select("forwrd").unwrap_err().to_string().contains("did you mean `forward`?"));
    }

    #[test]
    fn every_operation_and_pass_makes_a_problem_of_its_shape() {
        let caps = Caps { f16: true, ..Caps::minimal() };
        for k in KINDS {
            let n: Vec<usize> = k.fields.split(',').map(|f| if f == "N" { 2 } else { 4 }).collect();
            for pass in k.passes {
                let p = problem(&caps, &k, pass, &n, &Options::default()).unwrap_or_else(|e| panic!("{} {pass}: {e}", k.name));
                let text = n.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
                assert_eq!((p.op.as_str(), p.pass, p.shape.as_str()), (k.name, *pass, text.as_str()));
                assert!(p.operands.iter().any(|o| o.written) && p.bytes() > 0, "{} {pass}", k.name);
                let mut rec = crate::gpu::Recorder::new(&caps);
                p.record(&mut rec, &p.variants[0]).unwrap_or_else(|e| panic!("{} {pass}: {e}", k.name));
                assert!(!rec.dispatches.is_empty(), "{} {pass}", k.name);
            }
        }
    }

    #[test]
    fn options_are_refused_where_there_are_none() {
        let caps = Caps::minimal();
        let relu = Kind::find("relu").unwrap();
        let options = Options { kernel: Some([3; 3]), ..Options::default() };
        assert!(problem(&caps, &relu, "forward", &[1, 1, 1, 1, 1], &options).unwrap_err().to_string().contains("no --kernel"));
        let half = Options { dtype: Dtype::F16, ..Options::default() };
        assert!(problem(&caps, &relu, "forward", &[1, 1, 1, 1, 1], &half).unwrap_err().to_string().contains("no 16-bit floats"));
        let adam = Kind::find("adam").unwrap();
        assert!(problem(&caps, &adam, "step", &[9], &half).unwrap_err().to_string().contains("32-bit values only"));
        let conv = Kind::find("conv3d").unwrap();
        let wide = Options { kernel: Some([9; 3]), padding: Some([0; 3]), ..Options::default() };
        assert!(problem(&caps, &conv, "forward", &[1, 1, 1, 4, 4, 4], &wide).unwrap_err().to_string().contains("larger than the input"));
    }
}
