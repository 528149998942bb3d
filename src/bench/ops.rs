//! Every other operation as a [`Problem`], checked on a few samples and channels of large tensors.

use bytemuck::cast_slice;

use super::op::{Content, Operand, Outputs, Problem, join, judge};
use super::pick::{elements, few};
use super::result::Check;
use crate::error::Result;
use crate::gpu::{Dtype, Recorder, View};
use crate::kernels::activation::{self, Function};
use crate::kernels::batch_norm::{NORM, Use};
use crate::kernels::loss::{self, Pointwise, head};
use crate::kernels::optimiser::{self, Hyper, Rule};
use crate::kernels::transform::{self, Sample};
use crate::kernels::{batch_norm, elementwise, knn, pool, prelu, reduce, upsample};
use crate::rng::{Key, Purpose};

/// Elements that are compared of tensors whose elements do not depend on each other.
const COMPARED: usize = 8192;
/// Elements that the reference of a part of a tensor works on.
const PART: usize = 1 << 19;
/// Rounding of a 16-bit float, relative.
const HALF: f64 = 9.8e-4;

/// Sizes of an activation `[N, D, H, W, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Samples.
    pub batch: usize,
    /// D, H, W.
    pub size: [usize; 3],
    /// Channels.
    pub channels: usize,
}

impl Grid {
    fn voxels(&self) -> usize {
        self.size.iter().product()
    }

    fn len(&self) -> usize {
        self.batch * self.voxels() * self.channels
    }

    pub(super) fn text(&self) -> String {
        let [d, h, w] = self.size;
        format!("{},{},{d},{h},{w}", self.batch, self.channels)
    }
}

/// Some samples and channels of an activation.
struct Part {
    samples: Vec<usize>,
    channels: Vec<usize>,
}

impl Part {
    /// As many as the reference can take, of a tensor with `voxels` voxels a sample.
    fn of(batch: usize, voxels: usize, channels: usize) -> Self {
        let samples = few(batch, (PART / (voxels * channels).max(1)).max(2));
        let most = (PART / (voxels * samples.len()).max(1)).max(1);
        Self { samples, channels: few(channels, most) }
    }

    /// All samples of some channels, where channels are all that is independent.
    fn channels(rows: usize, channels: usize) -> Self {
        Self { samples: vec![0], channels: few(channels, (4 * PART / rows.max(1)).max(1)) }
    }

    /// Flat indices of the part in a tensor `[·, voxels, channels]`.
    fn indices(&self, voxels: usize, channels: usize) -> Vec<usize> {
        let mut out = Vec::with_capacity(self.samples.len() * voxels * self.channels.len());
        for n in &self.samples {
            for v in 0..voxels {
                out.extend(self.channels.iter().map(|c| (n * voxels + v) * channels + c));
            }
        }
        out
    }
}

fn allowed(f32: f64, dtype: Dtype) -> f64 {
    if dtype == Dtype::F16 { f32 + HALF } else { f32 }
}

/// Largest error of sums over `rows` terms.
fn summed(rows: usize) -> f64 {
    1e-5 + 5e-8 * (rows as f64).sqrt()
}

fn input(name: &'static str, n: usize, dtype: Dtype, seed: u32) -> Operand {
    Operand::input(name, n, dtype, Content::random(seed, n, 1.0))
}

fn vector(name: &'static str, n: usize, seed: u32, low: f32, high: f32) -> Operand {
    Operand::input(name, n, Dtype::F32, Content::between(seed, n, low, high))
}

fn words(name: &'static str, words: Vec<u32>) -> Operand {
    Operand::input(name, words.len(), Dtype::F32, Content::Words(words.into()))
}

fn of(grad: bool) -> &'static str {
    if grad { "grad" } else { "forward" }
}

fn usual(kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> String {
    if (kernel, stride, padding) == ([2; 3], [2; 3], [0; 3]) {
        return String::new();
    }
    let t = |v: [usize; 3]| v.map(|x| x.to_string()).join(",");
    format!(" kernel={} stride={} padding={}", t(kernel), t(stride), t(padding))
}

/// An operation that computes each element of `y` from the elements of the inputs at the same place.
fn pointwise(
    op: &str,
    pass: &'static str,
    grid: Grid,
    inputs: Vec<Operand>,
    dtype: Dtype,
    tolerance: f64,
    record: impl Fn(&mut Recorder<'_>, &[View]) -> Result<()> + Send + Sync + 'static,
    value: impl Fn(&[f64]) -> f64 + Send + Sync + 'static,
) -> Problem {
    let (n, k) = (grid.len(), inputs.len());
    let flops = (n * k.max(1)) as u64;
    let operands: Vec<_> = inputs.into_iter().chain([Operand::output("y", n, dtype)]).collect();
    let check = move |o: &[Operand], out: &Outputs| {
        let picked = elements(&[n], COMPARED);
        let want: Vec<f64> = picked.iter().map(|&i| value(&o[..k].iter().map(|o| o.content.at(i)).collect::<Vec<_>>())).collect();
        judge("y", &out.gather(k, &picked), &want, allowed(tolerance, dtype))
    };
    Problem::new(op, pass, grid.text(), operands, flops, move |rec, _, v| record(rec, v), check)
}

/// `relu`, `elu` or `sigmoid`, or its gradient.
pub fn activation(function: Function, grid: Grid, grad: bool, dtype: Dtype) -> Problem {
    let n = grid.len();
    let name = match function {
        Function::Relu => "relu",
        Function::Elu => "elu",
        Function::Sigmoid => "sigmoid",
        Function::Step => "step",
    };
    if !grad {
        let x = vec![Operand::input("x", n, dtype, Content::random(1, n, 3.0))];
        let record = move |rec: &mut Recorder<'_>, v: &[View]| activation::forward(rec, function, v[0], v[1]);
        return pointwise(name, "forward", grid, x, dtype, 2e-6, record, move |x| activation::reference_value(function, x[0]));
    }
    // The gradient is taken from outputs, here of random inputs.
    let y: Vec<f32> = match Content::random(1, n, 3.0) {
        Content::Numbers(x) => x.iter().map(|&x| activation::reference_value(function, f64::from(x)) as f32).collect(),
        _ => Vec::new(),
    };
    let inputs = vec![Operand::input("y", n, dtype, Content::Numbers(y.into())), input("d_y", n, dtype, 2)];
    let slope = move |y: f64| match function {
        Function::Relu => f64::from(y > 0.0),
        Function::Elu => (y + 1.0).min(1.0),
        Function::Sigmoid => y * (1.0 - y),
        Function::Step => 0.0,
    };
    let record = move |rec: &mut Recorder<'_>, v: &[View]| activation::backward(rec, function, v[0], v[1], v[2]);
    pointwise(name, "grad", grid, inputs, dtype, 4e-6, record, move |x| slope(x[0]) * x[1])
}

/// Sum of two tensors.
pub fn add(grid: Grid, dtype: Dtype) -> Problem {
    let n = grid.len();
    let inputs = vec![input("a", n, dtype, 1), input("b", n, dtype, 2)];
    pointwise("add", "forward", grid, inputs, dtype, 1e-7, |rec, v| elementwise::add(rec, v[0], v[1], v[2]), |x| x[0] + x[1])
}

/// Product with a number.
pub fn scale(grid: Grid, dtype: Dtype) -> Problem {
    let x = vec![input("x", grid.len(), dtype, 1)];
    pointwise("scale", "forward", grid, x, dtype, 1e-7, |rec, v| elementwise::scale(rec, v[0], 0.375, v[1]), |x| x[0] * 0.375)
}

/// One number everywhere.
pub fn fill(grid: Grid, dtype: Dtype) -> Problem {
    pointwise("fill", "forward", grid, Vec::new(), dtype, 0.0, |rec, v| elementwise::fill(rec, 0.75, v[0]), |_| 0.75)
}

/// `n` numbers from one place to another, by a kernel that does nothing else.
pub fn copy(n: usize, dtype: Dtype) -> Problem {
    let grid = Grid { batch: 1, size: [1, 1, n], channels: 1 };
    let x = vec![input("x", n, dtype, 1)];
    let mut p = pointwise("copy", "forward", grid, x, dtype, 0.0, |rec, v| elementwise::scale(rec, v[0], 1.0, v[1]), |x| x[0]);
    (p.shape, p.flops) = (n.to_string(), 0);
    p
}

/// Maximum or average pooling, or its gradient. Where `fused`, maxima are those of the ReLU of a batch norm's result, which
/// is worked out on the way in, and the gradient of maxima is added to another one.
pub fn pooling(g: pool::Geom, max: bool, grad: bool, fused: bool, dtype: Dtype) -> Problem {
    let (voxels, o) = (g.input.iter().product::<usize>(), g.output());
    let outs: usize = o.iter().product();
    let (xs, ys) = (g.batch * voxels * g.channels, g.batch * outs * g.channels);
    let part = Part::of(g.batch, voxels, g.channels);
    let sub = pool::Geom { batch: part.samples.len(), channels: part.channels.len(), ..g };
    let (at_in, at_out) = (part.indices(voxels, g.channels), part.indices(outs, g.channels));
    let grid = Grid { batch: g.batch, size: g.input, channels: g.channels };
    let shape = grid.text() + &usual(g.kernel, g.stride, g.padding);
    let flops = (ys * g.kernel.iter().product::<usize>()) as u64;
    let (x, y) = (input("x", xs, dtype, 1), Operand::output("y", ys, dtype));
    let (d_y, d_x) = (input("d_y", ys, dtype, 3), Operand::output("d_x", xs, dtype));
    let name = match (max, fused) {
        (true, false) => "max_pool",
        (true, true) => "max_pool_fused",
        (false, _) => "avg_pool",
    };
    let c = g.channels;
    match (max, grad) {
        (true, false) => {
            let mut operands = vec![x, y, Operand::output("index", ys, Dtype::F32)];
            operands.extend(fused.then(|| norm_of(c, 20)));
            let check = move |o: &[Operand], out: &Outputs| {
                let mut x = o[0].content.gather(&at_in);
                if fused {
                    // As the device rounds it, so that equal maxima stay equal.
                    x.iter_mut().zip(&at_in).for_each(|(v, i)| *v = loaded(*v, &o[3].content, i % c, c));
                }
                let (want, index) = pool::reference_max(&sub, &x);
                let values = judge("y", &out.gather(1, &at_out), &want, if fused { allowed(2e-6, dtype) } else { 0.0 })?;
                let got = out.words(2);
                // What is rounded may have its maximum at another place of almost the same value.
                let wrong = at_out.iter().zip(&index).find(|&(&i, &w)| !fused && got.get(i) != Some(&w));
                let failure = wrong.map(|(i, w)| format!("`index` of element {i} is {:?}, expected {w}", got.get(*i)));
                Ok(join([values, Check { error: None, tolerance: 0.0, elements: index.len(), failure }]))
            };
            let record =
                move |rec: &mut Recorder<'_>, _: &str, v: &[View]| pool::max_forward(rec, &g, v[0], fused.then(|| v[3]), v[1], v[2]);
            Problem::new(name, "forward", shape, operands, flops, record, check)
        }
        (true, true) => {
            let index = any_index(&g);
            let mut operands = vec![words("index", index), d_y, d_x];
            operands.extend(fused.then(|| input("other", xs, dtype, 4)));
            let check = move |o: &[Operand], out: &Outputs| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "indices are whole and not negative")]
                let index: Vec<u32> = o[0].content.gather(&at_out).iter().map(|&v| v as u32).collect();
                let mut want = pool::reference_max_backward(&sub, &index, &o[1].content.gather(&at_out));
                if fused {
                    want.iter_mut().zip(&at_in).for_each(|(d, &i)| *d += o[3].content.at(i));
                }
                judge("d_x", &out.gather(2, &at_in), &want, allowed(1e-6, dtype))
            };
            let record =
                move |rec: &mut Recorder<'_>, _: &str, v: &[View]| pool::max_backward(rec, &g, v[0], v[1], fused.then(|| v[3]), v[2]);
            Problem::new(name, "grad", shape, operands, flops, record, check)
        }
        (false, false) => {
            let check = move |o: &[Operand], out: &Outputs| {
                let want = pool::reference_avg(&sub, &o[0].content.gather(&at_in));
                judge("y", &out.gather(1, &at_out), &want, allowed(3e-6, dtype))
            };
            Problem::new(name, "forward", shape, vec![x, y], flops, move |rec, _, v| pool::avg_forward(rec, &g, v[0], v[1]), check)
        }
        (false, true) => {
            let check = move |o: &[Operand], out: &Outputs| {
                let want = pool::reference_avg_backward(&sub, &o[0].content.gather(&at_out));
                judge("d_x", &out.gather(1, &at_in), &want, allowed(3e-6, dtype))
            };
            Problem::new(name, "grad", shape, vec![d_y, d_x], flops, move |rec, _, v| pool::avg_backward(rec, &g, v[0], v[1]), check)
        }
    }
}

/// For each output of a pooling, some position of its window.
fn any_index(g: &pool::Geom) -> Vec<u32> {
    let (i, o) = (g.input, g.output());
    let outs: usize = o.iter().product();
    let mut rng = Key::new(0xB001).purpose(Purpose::Check, 0).rng();
    let mut out = Vec::with_capacity(g.batch * outs * g.channels);
    for k in 0..g.batch * outs * g.channels {
        let v = k / g.channels % outs;
        let at = [v / (o[1] * o[2]), v / o[2] % o[1], v % o[2]];
        let p: [usize; 3] = std::array::from_fn(|a| {
            let first = at[a] * g.stride[a];
            let tap = usize::try_from(rng.int(0, g.kernel[a] as i64 - 1)).unwrap_or(0);
            (first + tap).saturating_sub(g.padding[a]).min(i[a] - 1)
        });
        out.push(u32::try_from((p[0] * i[1] + p[1]) * i[2] + p[2]).unwrap_or(0));
    }
    out
}

/// Mean over the grid, or its gradient.
pub fn global_avg_pool(grid: Grid, grad: bool, dtype: Dtype) -> Problem {
    let (v, c) = (grid.voxels(), grid.channels);
    let n = grid.batch;
    let part = Part::of(n, v, c);
    let (all, one) = (part.indices(v, c), part.indices(1, c));
    let channels = part.channels.len();
    let whole = Operand::input("x", grid.len(), dtype, Content::between(1, grid.len(), -0.5, 1.0));
    let (flops, shape) = (grid.len() as u64, grid.text());
    if grad {
        // So large that what each voxel gets is about 1, which 16-bit floats hold well.
        let d_y = Operand::input("d_y", n * c, dtype, Content::random(2, n * c, (v as f32).min(3e4)));
        let operands = vec![d_y, Operand::output("d_x", grid.len(), dtype)];
        let check = move |o: &[Operand], out: &Outputs| {
            let d = o[0].content.gather(&one);
            let want: Vec<f64> = (0..all.len()).map(|i| d[i / (v * channels) * channels + i % channels] / v as f64).collect();
            judge("d_x", &out.gather(1, &all), &want, allowed(1e-6, dtype))
        };
        let record = move |rec: &mut Recorder<'_>, _: &str, x: &[View]| pool::global_avg_backward(rec, n, v, c, x[0], x[1]);
        return Problem::new("global_avg_pool", "grad", shape, operands, flops, record, check);
    }
    let operands = vec![whole, Operand::output("y", n * c, dtype)];
    let samples = part.samples.len();
    let check = move |o: &[Operand], out: &Outputs| {
        let want = reduce::reference_segment_sum(&o[0].content.gather(&all), samples, v, channels, 1.0 / v as f64);
        judge("y", &out.gather(1, &one), &want, allowed(summed(v), dtype))
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, x: &[View]| pool::global_avg_forward(rec, n, v, c, x[0], x[1]);
    Problem::new("global_avg_pool", "forward", shape, operands, flops, record, check)
}

/// Nearest or trilinear resampling, or its gradient.
pub fn upsampling(g: upsample::Geom, mode: upsample::Mode, grad: bool, dtype: Dtype) -> Problem {
    let (vi, vo) = (g.input.iter().product::<usize>(), g.output.iter().product::<usize>());
    let (xs, ys) = (g.batch * vi * g.channels, g.batch * vo * g.channels);
    let part = Part::of(g.batch, vo, g.channels);
    let sub = upsample::Geom { batch: part.samples.len(), channels: part.channels.len(), ..g };
    let (at_in, at_out) = (part.indices(vi, g.channels), part.indices(vo, g.channels));
    let (name, taps) = match mode {
        upsample::Mode::Nearest => ("upsample_nearest", 1),
        upsample::Mode::Trilinear => ("upsample_trilinear", 16),
    };
    let mut shape = Grid { batch: g.batch, size: g.input, channels: g.channels }.text();
    if g.output != g.input.map(|v| 2 * v) {
        shape += &format!(" to={}", g.output.map(|v| v.to_string()).join(","));
    }
    let operands = match grad {
        false => vec![input("x", xs, dtype, 1), Operand::output("y", ys, dtype)],
        true => vec![input("d_y", ys, dtype, 2), Operand::output("d_x", xs, dtype)],
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| match (mode, grad) {
        (upsample::Mode::Nearest, false) => upsample::nearest_forward(rec, &g, v[0], v[1]),
        (upsample::Mode::Nearest, true) => upsample::nearest_backward(rec, &g, v[0], v[1]),
        (upsample::Mode::Trilinear, false) => upsample::trilinear_forward(rec, &g, v[0], v[1]),
        (upsample::Mode::Trilinear, true) => upsample::trilinear_backward(rec, &g, v[0], v[1]),
    };
    let check = move |o: &[Operand], out: &Outputs| match grad {
        false => judge(
            "y",
            &out.gather(1, &at_out),
            &upsample::reference_forward(&sub, mode, &o[0].content.gather(&at_in)),
            allowed(3e-6, dtype),
        ),
        true => judge(
            "d_x",
            &out.gather(1, &at_in),
            &upsample::reference_backward(&sub, mode, &o[0].content.gather(&at_out)),
            allowed(3e-6, dtype),
        ),
    };
    Problem::new(name, of(grad), shape, operands, (ys * taps) as u64, record, check)
}

/// What a batch normalisation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Statistics and application.
    Whole(Use),
    /// The vectors that normalise, from the batch or, where fixed, from the running statistics.
    Vectors {
        /// Whether running statistics are used.
        fixed: bool,
    },
    /// Application alone.
    Apply {
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// Gradient.
    Grad(Use),
}

impl Norm {
    fn name(self) -> &'static str {
        let of = |how: Use| match (how.fixed, how.relu) {
            (false, false) => "batch_norm",
            (true, false) => "batch_norm_running",
            (false, true) => "batch_norm_relu",
            (true, true) => "batch_norm_running_relu",
        };
        match self {
            Self::Whole(how) | Self::Grad(how) => of(how),
            Self::Vectors { fixed: false } => "batch_norm_statistics",
            Self::Vectors { fixed: true } => "batch_norm_vectors",
            Self::Apply { relu: false } => "batch_norm_apply",
            Self::Apply { relu: true } => "batch_norm_apply_relu",
        }
    }
}

/// Weight of the batch in running statistics.
const MOMENTUM: f32 = 0.1;
const EPS: f64 = 1e-5;

/// A batch normalisation, or a part of one.
pub fn batch_normalisation(grid: Grid, what: Norm, dtype: Dtype) -> Problem {
    let (rows, c) = (grid.batch * grid.voxels(), grid.channels);
    let g = batch_norm::Geom { batch: grid.batch, spatial: grid.voxels(), channels: c, eps: EPS as f32 };
    let part = Part::channels(rows, c);
    let (all, one) = (part.indices(rows, c), part.channels);
    let n = grid.len();
    let x = Operand::input("x", n, dtype, Content::between(1, n, -1.0, 1.5));
    let y = Operand::output("y", n, dtype);
    let (gamma, beta) = (vector("gamma", c, 2, 0.5, 1.5), vector("beta", c, 3, -0.5, 0.5));
    let (mean, var) = (vector("mean", c, 4, -0.5, 0.5), vector("variance", c, 5, 0.5, 1.5));
    let t = summed(rows);
    let shape = grid.text();
    let vectors = |v: &[View]| batch_norm::Vectors { gamma: v[0], beta: v[1], running_mean: v[2], running_var: v[3] };
    // Of [4, C] the vectors of the channels that are compared.
    let of_norm: Vec<usize> = (0..NORM).flat_map(|k| one.iter().map(move |i| k * c + i)).collect();
    let columns = |mean: &[f64], var: &[f64], gamma: &[f64], beta: &[f64]| -> Vec<f64> {
        let inverse: Vec<f64> = var.iter().map(|v| 1.0 / (v + EPS).sqrt()).collect();
        let factor: Vec<f64> = gamma.iter().zip(&inverse).map(|(g, i)| g * i).collect();
        [mean, &factor, beta, &inverse].concat()
    };
    let again = all.clone();
    let statistics = move |o: &[Operand], at: &[usize], fixed: bool| match fixed {
        true => (o[3].content.gather(at), o[4].content.gather(at)),
        false => batch_norm::reference_statistics(&o[0].content.gather(&again), at.len()),
    };
    match what {
        Norm::Whole(_) | Norm::Vectors { .. } => {
            let (how, apply) = match what {
                Norm::Whole(how) => (how, true),
                Norm::Vectors { fixed } => (Use { fixed, relu: false }, false),
                _ => (Use::default(), false),
            };
            let mut operands = vec![x, gamma, beta];
            // Training moves the running statistics.
            let moved = |o: Operand| if how.fixed { o } else { Operand::updated(o.name, c, o.content) };
            operands.extend([moved(mean), moved(var), Operand::output("norm", NORM * c, Dtype::F32)]);
            operands.extend(apply.then_some(y));
            let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| {
                match how.fixed {
                    true => batch_norm::fixed(rec, &g, vectors(&v[1..]), v[5])?,
                    false => batch_norm::statistics(rec, &g, MOMENTUM, v[0], vectors(&v[1..]), v[5])?,
                }
                if apply { batch_norm::apply(rec, &g, how.relu, v[0], v[5], v[6]) } else { Ok(()) }
            };
            let check = move |o: &[Operand], out: &Outputs| {
                let (mean, var) = statistics(o, &one, how.fixed);
                let (gamma, beta) = (o[1].content.gather(&one), o[2].content.gather(&one));
                let mut checks = vec![judge("norm", &out.gather(5, &of_norm), &columns(&mean, &var, &gamma, &beta), t)?];
                if !how.fixed {
                    let m = f64::from(MOMENTUM);
                    let unbiased = rows as f64 / (rows as f64 - 1.0).max(1.0);
                    let step = |old: Vec<f64>, new: &[f64], factor: f64| -> Vec<f64> {
                        old.iter().zip(new).map(|(o, n)| (1.0 - m) * o + m * n * factor).collect()
                    };
                    checks.push(judge("running_mean", &out.gather(3, &one), &step(o[3].content.gather(&one), &mean, 1.0), t)?);
                    checks.push(judge("running_var", &out.gather(4, &one), &step(o[4].content.gather(&one), &var, unbiased), t)?);
                }
                if apply {
                    let mut y = batch_norm::reference_normalize(&o[0].content.gather(&all), &mean, &var, EPS, &gamma, &beta);
                    if how.relu {
                        y.iter_mut().for_each(|v| *v = v.max(0.0));
                    }
                    checks.push(judge("y", &out.gather(6, &all), &y, allowed(t, dtype))?);
                }
                Ok(join(checks))
            };
            let flops = n as u64 * (if how.fixed { 0 } else { 4 } + if apply { 4 } else { 0 }).max(1);
            Problem::new(what.name(), "forward", shape, operands, flops, record, check)
        }
        Norm::Apply { relu } => {
            let operands = vec![x, norm_of(c, 7), y];
            let check = move |o: &[Operand], out: &Outputs| {
                let norm = o[1].content.gather(&of_norm);
                let k = one.len();
                let value = |(i, x): (usize, f64)| {
                    let v = (x - norm[i % k]) * norm[k + i % k] + norm[2 * k + i % k];
                    if relu { v.max(0.0) } else { v }
                };
                let want: Vec<f64> = o[0].content.gather(&all).into_iter().enumerate().map(value).collect();
                judge("y", &out.gather(2, &all), &want, allowed(2e-6, dtype))
            };
            let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| batch_norm::apply(rec, &g, relu, v[0], v[1], v[2]);
            Problem::new(what.name(), "forward", shape, operands, 4 * n as u64, record, check)
        }
        Norm::Grad(how) => {
            // The vectors are what the forward pass left: here they are computed, for all channels.
            let (gamma, beta) =
                ((0..c).map(|i| gamma.content.at(i)).collect::<Vec<_>>(), (0..c).map(|i| beta.content.at(i)).collect::<Vec<_>>());
            let (mean, var) = match how.fixed {
                true => ((0..c).map(|i| mean.content.at(i)).collect(), (0..c).map(|i| var.content.at(i)).collect()),
                false => statistics_of(&x.content, rows, c),
            };
            let norm: Vec<f32> = columns(&mean, &var, &gamma, &beta).iter().map(|&v| v as f32).collect();
            let operands = vec![
                x,
                Operand::input("norm", NORM * c, Dtype::F32, Content::Numbers(norm.into())),
                input("d_y", n, dtype, 6),
                Operand::output("d_x", n, dtype),
                Operand::output("d_gamma", c, Dtype::F32),
                Operand::output("d_beta", c, Dtype::F32),
            ];
            let pick = |v: &[f64], one: &[usize]| one.iter().map(|&i| v[i]).collect::<Vec<_>>();
            let (mean, var, gamma, beta) = (pick(&mean, &one), pick(&var, &one), pick(&gamma, &one), pick(&beta, &one));
            let check = move |o: &[Operand], out: &Outputs| {
                let x = o[0].content.gather(&all);
                let mut d_y = o[2].content.gather(&all);
                if how.relu {
                    let y = batch_norm::reference_normalize(&x, &mean, &var, EPS, &gamma, &beta);
                    d_y.iter_mut().zip(y).for_each(|(d, y)| *d = if y > 0.0 { *d } else { 0.0 });
                }
                let (d_x, d_gamma, d_beta) = batch_norm::reference_backward(&x, &mean, &var, EPS, &gamma, &d_y, how.fixed);
                // Values within rounding of the ReLU's kink may fall on either side of it: one in a million.
                let kink = if how.relu { 2e-3 } else { 0.0 };
                let near = |name: &str, got: &[f32], want: &[f64], tolerance: f64| -> Result<Check> {
                    if kink == 0.0 {
                        return judge(name, got, want, tolerance);
                    }
                    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64).sqrt();
                    let off = |(g, w): &(&f32, &f64)| !((f64::from(**g) - **w).abs() <= tolerance * (w.abs() + scale));
                    let count = got.iter().zip(want).filter(off).count();
                    if count as f64 > 3.0 + 1e-5 * want.len() as f64 {
                        judge(name, got, want, tolerance)
                    } else {
                        Ok(Check { error: Some(0.0), tolerance, elements: want.len(), failure: None })
                    }
                };
                Ok(join([
                    near("d_x", &out.gather(3, &all), &d_x, allowed(t, dtype))?,
                    judge("d_gamma", &out.gather(4, &one), &d_gamma, t + kink)?,
                    judge("d_beta", &out.gather(5, &one), &d_beta, t + kink)?,
                ]))
            };
            let record =
                move |rec: &mut Recorder<'_>, _: &str, v: &[View]| batch_norm::backward(rec, &g, how, v[0], v[1], v[2], v[3], v[4], v[5]);
            Problem::new(what.name(), "grad", shape, operands, 12 * n as u64, record, check)
        }
    }
}

/// Vectors `[4, C]` that normalise values around 0.25 to values of which about half pass a ReLU.
pub(super) fn norm_of(c: usize, seed: u32) -> Operand {
    let part = |k: u32, low, high| Content::between(seed + k, c, low, high);
    let columns = [part(0, -0.5, 0.5), part(1, 0.5, 1.5), part(2, -0.5, 0.5), part(3, 0.5, 1.5)];
    let values: Vec<f32> = columns.iter().flat_map(|v| (0..c).map(|i| v.at(i) as f32)).collect();
    Operand::input("norm", NORM * c, Dtype::F32, Content::Numbers(values.into()))
}

/// A value as a kernel reads it that normalises on the way in: channel `c` of `channels`.
pub(super) fn loaded(x: f64, norm: &Content, c: usize, channels: usize) -> f64 {
    ((x - norm.at(c)) * norm.at(channels + c) + norm.at(2 * channels + c)).max(0.0)
}

/// Mean and biased variance of every channel, without a copy of the tensor.
fn statistics_of(x: &Content, rows: usize, c: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut sum, mut square) = (vec![0.0; c], vec![0.0; c]);
    for r in 0..rows {
        for k in 0..c {
            let v = x.at(r * c + k);
            sum[k] += v;
            square[k] += v * v;
        }
    }
    let mean: Vec<f64> = sum.iter().map(|s| s / rows as f64).collect();
    let var = square.iter().zip(&mean).map(|(s, m)| (s / rows as f64 - m * m).max(0.0)).collect();
    (mean, var)
}

/// The last layer of a network that restores: 1×1×1 convolution to one channel, sigmoid, loss, and in training their gradients.
pub fn head(g: head::Geom, kind: Pointwise, parts: head::Parts) -> Problem {
    let (n, c, batch) = (g.batch * g.voxels, g.channels, g.batch);
    let mut operands = vec![input("x", n * c, Dtype::F32, 1)];
    let mut place = |o: Operand| {
        operands.push(o);
        operands.len() - 1
    };
    let norm = parts.norm.then(|| place(norm_of(c, 20)));
    let weight = place(vector("weight", c, 2, -0.3, 0.3));
    let bias = place(vector("bias", 1, 3, -0.1, 0.1));
    let target = place(vector("target", n, 4, 0.0, 1.0));
    let loss = place(Operand::output("loss", batch, Dtype::F32));
    let restored = parts.restored.then(|| place(Operand::output("restored", n, Dtype::F32)));
    let gradient = parts.gradient.then(|| {
        [
            place(vector("d_loss", batch, 5, 0.5, 1.5)),
            place(Operand::output("d_logit", n, Dtype::F32)),
            place(Operand::output("d_weight", c, Dtype::F32)),
            place(Operand::output("d_bias", 1, Dtype::F32)),
        ]
    });
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| {
        let d = gradient.map(|[a, b, c, d]| head::Gradient { d_loss: v[a], d_logit: v[b], d_weight: v[c], d_bias: v[d] });
        head::forward(rec, &g, kind, v[0], norm.map(|i| v[i]), v[weight], v[bias], v[target], v[loss], restored.map(|i| v[i]), d)
    };
    let check = move |o: &[Operand], out: &Outputs| {
        let x: Vec<f64> = (0..n * c)
            .map(|i| {
                let v = o[0].content.at(i);
                norm.map_or(v, |k| loaded(v, &o[k].content, i % c, c))
            })
            .collect();
        let values = |i: usize| (0..o[i].elements).map(|k| o[i].content.at(k)).collect::<Vec<_>>();
        let d = gradient.map_or_else(|| vec![1.0; batch], |[a, ..]| values(a));
        let want = head::reference(&g, kind, &x, &values(weight), o[bias].content.at(0), &values(target), &d);
        let t = summed(g.voxels);
        let mut checks = vec![judge("loss", &out.numbers(loss), &want.loss, t)?];
        if let Some(i) = restored {
            checks.push(judge("restored", &out.numbers(i), &want.restored, 1e-5)?);
        }
        if let Some([_, logit, d_weight, d_bias]) = gradient {
            checks.push(judge("d_logit", &out.numbers(logit), &want.d_logit, 2e-5)?);
            checks.push(judge("d_weight", &out.numbers(d_weight), &want.d_weight, 2e-5 + t)?);
            checks.push(judge("d_bias", &out.numbers(d_bias), &[want.d_bias], 2e-5 + t)?);
        }
        Ok(join(checks))
    };
    let flops = (n * c) as u64 * if parts.gradient { 4 } else { 2 };
    let shape = format!("{batch},{c},1,1,{}", g.voxels);
    Problem::new("head", "forward", shape, operands, flops, record, check)
}

/// PReLU with a slope per channel, or its gradient.
pub fn prelu(grid: Grid, grad: bool, dtype: Dtype) -> Problem {
    let (rows, c, n) = (grid.batch * grid.voxels(), grid.channels, grid.len());
    let part = Part::channels(rows, c);
    let (all, one) = (part.indices(rows, c), part.channels);
    let (x, slope) = (input("x", n, dtype, 1), vector("slope", c, 2, 0.1, 0.4));
    let (shape, flops) = (grid.text(), 2 * n as u64);
    if grad {
        let operands =
            vec![x, slope, input("d_y", n, dtype, 3), Operand::output("d_x", n, dtype), Operand::output("d_slope", c, Dtype::F32)];
        let check = move |o: &[Operand], out: &Outputs| {
            let (x, slope, d_y) = (o[0].content.gather(&all), o[1].content.gather(&one), o[2].content.gather(&all));
            let (d_x, d_slope) = prelu::reference_backward(&x, &slope, &d_y);
            let first = judge("d_x", &out.gather(3, &all), &d_x, allowed(1e-6, dtype))?;
            Ok(join([first, judge("d_slope", &out.gather(4, &one), &d_slope, summed(rows))?]))
        };
        let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| prelu::backward(rec, c, v[0], v[1], v[2], v[3], v[4]);
        return Problem::new("prelu", "grad", shape, operands, flops, record, check);
    }
    let check = move |o: &[Operand], out: &Outputs| {
        let want = prelu::reference_forward(&o[0].content.gather(&all), &o[1].content.gather(&one));
        judge("y", &out.gather(2, &all), &want, allowed(1e-6, dtype))
    };
    let operands = vec![x, slope, Operand::output("y", n, dtype)];
    Problem::new("prelu", "forward", shape, operands, flops, move |rec, _, v| prelu::forward(rec, c, v[0], v[1], v[2]), check)
}

/// Sum over all but channels.
pub fn channel_sum(grid: Grid, dtype: Dtype) -> Problem {
    let (rows, c, n) = (grid.batch * grid.voxels(), grid.channels, grid.len());
    let part = Part::channels(rows, c);
    let (all, one) = (part.indices(rows, c), part.channels);
    let x = Operand::input("x", n, dtype, Content::between(1, n, -0.9, 1.1));
    let check = move |o: &[Operand], out: &Outputs| {
        let want = reduce::reference_segment_sum(&o[0].content.gather(&all), 1, rows, one.len(), 1.0);
        judge("sum", &out.gather(1, &one), &want, summed(rows))
    };
    let operands = vec![x, Operand::output("sum", c, Dtype::F32)];
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| reduce::channel_sum(rec, rows, c, v[0], v[1]);
    Problem::new("channel_sum", "forward", grid.text(), operands, n as u64, record, check)
}

/// Mean of `n` numbers, or its gradient.
pub fn mean(n: usize, grad: bool) -> Problem {
    let one = |name| Operand::input(name, 1, Dtype::F32, Content::between(2, 1, 0.5, 1.0));
    if grad {
        let operands = vec![one("d_mean"), Operand::output("d_x", n, Dtype::F32)];
        let check = move |o: &[Operand], out: &Outputs| {
            let picked = elements(&[n], COMPARED);
            judge("d_x", &out.gather(1, &picked), &vec![o[0].content.at(0) / n as f64; picked.len()], 1e-6)
        };
        return Problem::new(
            "mean",
            "grad",
            n.to_string(),
            operands,
            n as u64,
            move |rec, _, v| reduce::mean_backward(rec, n, v[0], v[1]),
            check,
        );
    }
    let operands = vec![Operand::input("x", n, Dtype::F32, Content::between(1, n, -0.5, 1.0)), Operand::output("mean", 1, Dtype::F32)];
    let check = move |o: &[Operand], out: &Outputs| {
        let sum: f64 = (0..n).map(|i| o[0].content.at(i)).sum();
        judge("mean", &out.numbers(1), &[sum / n as f64], summed(n))
    };
    Problem::new("mean", "forward", n.to_string(), operands, n as u64, |rec, _, v| reduce::mean(rec, v[0], v[1]), check)
}

/// An elementwise loss per sample, or its gradient.
pub fn pointwise_loss(kind: Pointwise, grid: Grid, grad: bool) -> Problem {
    let (name, scale) = match kind {
        Pointwise::Mse => ("mse", 1.0),
        Pointwise::Mae => ("mae", 1.0),
        Pointwise::BceLogits => ("bce", 3.0),
        Pointwise::Logistic => ("logistic", 3.0),
    };
    let (n, batch) = (grid.len(), grid.batch);
    let per = n / batch;
    let x = Operand::input("prediction", n, Dtype::F32, Content::random(1, n, scale));
    let t = if kind == Pointwise::Logistic { vector("weight", n, 2, -2.0, 2.0) } else { vector("target", n, 2, 0.0, 1.0) };
    let (shape, flops) = (grid.text(), 4 * n as u64);
    if grad {
        let operands = vec![x, t, vector("d_loss", batch, 3, 0.5, 1.5), Operand::output("d_prediction", n, Dtype::F32)];
        let check = move |o: &[Operand], out: &Outputs| {
            // Each element is a sample of its own, with the derivative of a mean over `per` of them.
            let picked = elements(&[n], COMPARED);
            let (x, t) = (o[0].content.gather(&picked), o[1].content.gather(&picked));
            let d: Vec<f64> = picked.iter().map(|i| o[2].content.at(i / per) / per as f64).collect();
            let want = loss::reference_pointwise_backward(kind, picked.len(), &x, &t, &d);
            judge("d_prediction", &out.gather(3, &picked), &want, 5e-6)
        };
        let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| loss::pointwise_backward(rec, kind, batch, v[0], v[1], v[2], v[3]);
        return Problem::new(name, "grad", shape, operands, flops, record, check);
    }
    let operands = vec![x, t, Operand::output("loss", batch, Dtype::F32)];
    let check = move |o: &[Operand], out: &Outputs| {
        let samples = few(batch, (4 * PART / per.max(1)).max(1));
        let all: Vec<usize> = samples.iter().flat_map(|s| s * per..(s + 1) * per).collect();
        let want = loss::reference_pointwise(kind, samples.len(), &o[0].content.gather(&all), &o[1].content.gather(&all));
        judge("loss", &out.gather(2, &samples), &want, summed(per))
    };
    Problem::new(name, "forward", shape, operands, flops, move |rec, _, v| loss::pointwise(rec, kind, batch, v[0], v[1], v[2]), check)
}

/// Soft Dice over everything, or its gradient.
pub fn soft_dice(grid: Grid, grad: bool) -> Problem {
    let n = grid.len();
    let target: Vec<f32> = match Content::random(2, n, 1.0) {
        Content::Numbers(v) => v.iter().map(|&v| f32::from(u8::from(v > 0.3))).collect(),
        _ => Vec::new(),
    };
    let (p, t) = (vector("probability", n, 1, 0.0, 1.0), Operand::input("target", n, Dtype::F32, Content::Numbers(target.into())));
    // The sums that everything depends on, without copies of the tensors.
    let sums = |o: &[Operand], n: usize| {
        let (mut common, mut size) = (0.0, 0.0);
        for i in 0..n {
            let (p, g) = (o[0].content.at(i), o[1].content.at(i));
            common += p * g;
            size += p + g;
        }
        (common, size)
    };
    let (shape, flops) = (grid.text(), 4 * n as u64);
    if grad {
        let operands = vec![p, t, vector("d_loss", 1, 3, 0.5, 1.5), Operand::output("d_probability", n, Dtype::F32)];
        let check = move |o: &[Operand], out: &Outputs| {
            let (common, size) = sums(o, n);
            let picked = elements(&[n], COMPARED);
            let d = o[2].content.at(0);
            let slope = |g: f64| -d * (2.0 * g * (size + 1.0) - (2.0 * common + 1.0)) / (size + 1.0).powi(2);
            let want: Vec<f64> = picked.iter().map(|&i| slope(o[1].content.at(i))).collect();
            judge("d_probability", &out.gather(3, &picked), &want, summed(n))
        };
        return Problem::new(
            "soft_dice",
            "grad",
            shape,
            operands,
            flops,
            |rec, _, v| loss::soft_dice_backward(rec, v[0], v[1], v[2], v[3]),
            check,
        );
    }
    let operands = vec![p, t, Operand::output("loss", 1, Dtype::F32)];
    let check = move |o: &[Operand], out: &Outputs| {
        let (common, size) = sums(o, n);
        judge("loss", &out.numbers(2), &[1.0 - (2.0 * common + 1.0) / (size + 1.0)], summed(n))
    };
    Problem::new("soft_dice", "forward", shape, operands, flops, |rec, _, v| loss::soft_dice(rec, v[0], v[1], v[2]), check)
}

/// Cross-entropy of rows of class scores: `forward`, `grad`; or, as `correct`, whether the largest score is the label's.
pub fn cross_entropy(rows: usize, classes: usize, pass: &'static str) -> Problem {
    let mut rng = Key::new(0xCE).purpose(Purpose::Check, 0).rng();
    let labels: Vec<u32> = (0..rows).map(|_| u32::try_from(rng.int(0, classes as i64 - 1)).unwrap_or(0)).collect();
    let n = rows * classes;
    let logits = Operand::input("logits", n, Dtype::F32, Content::random(1, n, 4.0));
    let picked = few(rows, (PART / classes.max(1)).max(1));
    let all: Vec<usize> = picked.iter().flat_map(|r| r * classes..(r + 1) * classes).collect();
    let some: Vec<u32> = picked.iter().map(|&r| labels[r]).collect();
    let labels = words("labels", labels);
    let (shape, flops) = (format!("{rows},{classes}"), 8 * n as u64);
    let (at, rows_at) = (all.clone(), picked.clone());
    match pass {
        "grad" => {
            let operands = vec![logits, labels, vector("d_loss", rows, 3, 0.5, 1.5), Operand::output("d_logits", n, Dtype::F32)];
            let check = move |o: &[Operand], out: &Outputs| {
                let d = o[2].content.gather(&rows_at);
                let want = loss::reference_cross_entropy_backward(classes, &o[0].content.gather(&at), &some, &d);
                judge("d_logits", &out.gather(3, &at), &want, 1e-5)
            };
            let record =
                move |rec: &mut Recorder<'_>, _: &str, v: &[View]| loss::cross_entropy_backward(rec, rows, classes, v[0], v[1], v[2], v[3]);
            Problem::new("cross_entropy", "grad", shape, operands, flops, record, check)
        }
        "correct" => {
            let check = move |o: &[Operand], out: &Outputs| {
                let right = |(z, &y): (&[f64], &u32)| {
                    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    f64::from(u8::from(z.iter().position(|&v| v == top) == Some(y as usize)))
                };
                let want: Vec<f64> = o[0].content.gather(&at).chunks(classes).zip(&some).map(right).collect();
                judge("correct", &out.gather(2, &rows_at), &want, 0.0)
            };
            let operands = vec![logits, labels, Operand::output("correct", rows, Dtype::F32)];
            let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| loss::correct(rec, rows, classes, v[0], v[1], v[2]);
            Problem::new("correct", "forward", shape, operands, flops, record, check)
        }
        _ => {
            let check = move |o: &[Operand], out: &Outputs| {
                let want = loss::reference_cross_entropy(classes, &o[0].content.gather(&at), &some);
                judge("loss", &out.gather(2, &rows_at), &want, 5e-6)
            };
            let operands = vec![logits, labels, Operand::output("loss", rows, Dtype::F32)];
            let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| loss::cross_entropy(rec, rows, classes, v[0], v[1], v[2]);
            Problem::new("cross_entropy", "forward", shape, operands, flops, record, check)
        }
    }
}

/// A step of Adam, AdamW or SGD on `n` parameters.
pub fn optimiser(rule: Rule, n: usize) -> Problem {
    let name = match rule {
        Rule::Adam => "adam",
        Rule::AdamW => "adamw",
        Rule::Sgd => "sgd",
    };
    let hyper = Hyper { weight_decay: 0.02, ..Hyper::default() };
    // So small a rate that thousands of steps on one gradient lead nowhere far.
    let rate = 1e-6f32;
    let scalars = optimiser::scalars(rate, &hyper, 3).to_vec();
    let mut operands = vec![
        Operand::input("g", n, Dtype::F32, Content::random(1, n, 1.0)),
        Operand::input("scalars", scalars.len(), Dtype::F32, Content::Numbers(scalars.into())),
        Operand::input("scale", 1, Dtype::F32, Content::Numbers([0.75].into())),
        Operand::updated("p", n, Content::random(2, n, 1.0)),
        Operand::updated("m", n, Content::random(3, n, 0.1)),
    ];
    if rule != Rule::Sgd {
        operands.push(Operand::updated("v", n, Content::between(4, n, 0.01, 0.2)));
    }
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| match rule {
        Rule::Sgd => optimiser::sgd(rec, v[3], v[0], v[4], v[1], v[2]),
        _ => optimiser::adam(rec, v[3], v[0], v[4], v[5], v[1], v[2], rule == Rule::AdamW),
    };
    let check = move |o: &[Operand], out: &Outputs| {
        let picked = elements(&[n], COMPARED);
        let g: Vec<f64> = o[0].content.gather(&picked).iter().map(|g| g * 0.75).collect();
        let (mut p, mut m) = (o[3].content.gather(&picked), o[4].content.gather(&picked));
        let mut v = o.get(5).map_or_else(|| vec![0.0; p.len()], |o| o.content.gather(&picked));
        let old = p.clone();
        optimiser::reference_step(rule, f64::from(rate), &hyper, 3, &mut p, &g, &mut m, &mut v);
        let mut checks = vec![judge("m", &out.gather(4, &picked), &m, 2e-6)?, judge("p", &out.gather(3, &picked), &p, 2e-6)?];
        if rule != Rule::Sgd {
            checks.push(judge("v", &out.gather(5, &picked), &v, 2e-6)?);
        }
        // The step itself is small beside the parameter: it must have been taken all the same.
        let moved = out.gather(3, &picked).iter().zip(&old).any(|(a, b)| f64::from(*a) != *b);
        checks[0].failure = checks[0].failure.take().or_else(|| (!moved).then(|| "`p` was not changed".to_owned()));
        Ok(join(checks))
    };
    let flops = if rule == Rule::Sgd { 5 } else { 12 };
    Problem::new(name, "step", n.to_string(), operands, flops * n as u64, record, check)
}

/// Norm of `n` numbers.
pub fn norm(n: usize) -> Problem {
    let operands = vec![input("g", n, Dtype::F32, 1), Operand::output("norm", 1, Dtype::F32)];
    let check = move |o: &[Operand], out: &Outputs| {
        let sum: f64 = (0..n).map(|i| o[0].content.at(i).powi(2)).sum();
        judge("norm", &out.numbers(1), &[sum.sqrt()], summed(n))
    };
    Problem::new("norm", "forward", n.to_string(), operands, 2 * n as u64, |rec, _, v| optimiser::norm(rec, v[0], v[1]), check)
}

/// Norm of `n` numbers and the factor that bounds it by 1.
pub fn clip(n: usize) -> Problem {
    let scalars = optimiser::scalars(1e-3, &Hyper::default(), 1).to_vec();
    let operands = vec![
        input("g", n, Dtype::F32, 1),
        vector("loss", 1, 2, 0.5, 1.0),
        Operand::input("scalars", scalars.len(), Dtype::F32, Content::Numbers(scalars.into())),
        Operand::output("norm", 1, Dtype::F32),
        Operand::output("factor", 1, Dtype::F32),
    ];
    let check = move |o: &[Operand], out: &Outputs| {
        let norm = (0..n).map(|i| o[0].content.at(i).powi(2)).sum::<f64>().sqrt();
        let factor = (1.0 / (norm + 1e-6)).min(1.0);
        Ok(join([judge("norm", &out.numbers(3), &[norm], summed(n))?, judge("factor", &out.numbers(4), &[factor], summed(n))?]))
    };
    let record = |rec: &mut Recorder<'_>, _: &str, v: &[View]| {
        optimiser::norm(rec, v[0], v[3])?;
        optimiser::clip(rec, v[3], v[1], v[2], 1.0, v[4])
    };
    Problem::new("clip", "forward", n.to_string(), operands, 2 * n as u64, record, check)
}

/// Squared distances of `rows` rows to `cols` rows of `width` features.
pub fn knn_distance(rows: usize, cols: usize, width: usize) -> Problem {
    let operands = vec![
        input("a", rows * width, Dtype::F32, 1),
        input("b", cols * width, Dtype::F32, 2),
        Operand::output("distances", rows * cols, Dtype::F32),
    ];
    let check = move |o: &[Operand], out: &Outputs| {
        let picked = elements(&[rows, cols], (4_000_000 / width.max(1)).clamp(64, COMPARED));
        let square = |i: usize| {
            let (r, c) = (i / cols, i % cols);
            (0..width).map(|k| (o[0].content.at(r * width + k) - o[1].content.at(c * width + k)).powi(2)).sum::<f64>()
        };
        judge("distances", &out.gather(2, &picked), &picked.iter().map(|&i| square(i)).collect::<Vec<_>>(), 5e-6)
    };
    let flops = 3 * (rows * cols * width) as u64;
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| knn::distances(rec, rows, cols, width, v[0], v[1], v[2]);
    Problem::new("knn_distance", "forward", format!("{rows},{cols},{width}"), operands, flops, record, check)
}

/// The `k` nearest of `cols` columns for each of `rows` rows of distances.
pub fn knn_select(rows: usize, cols: usize, k: usize) -> Problem {
    let kept = k.min(cols);
    let operands = vec![
        vector("distances", rows * cols, 1, 0.0, 9.0),
        Operand::output("best", rows * k, Dtype::F32),
        Operand::output("index", rows * k, Dtype::F32),
    ];
    let check = move |o: &[Operand], out: &Outputs| {
        let picked = few(rows, (PART / cols.max(1)).max(2));
        let (distances, index) = (out.numbers(1), out.words(2));
        for r in &picked {
            let mut want: Vec<(f64, u32)> = (0..cols).map(|c| (o[0].content.at(r * cols + c), u32::try_from(c).unwrap_or(0))).collect();
            want.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (i, w) in want.iter().take(kept).enumerate() {
                let got = (f64::from(distances[r * k + i]), index[r * k + i]);
                if got != *w {
                    let failure = Some(format!("neighbour {i} of row {r} is {} at {}, expected {} at {}", got.1, got.0, w.1, w.0));
                    return Ok(Check { error: Some(1.0), tolerance: 0.0, elements: picked.len() * kept, failure });
                }
            }
        }
        Ok(Check { error: Some(0.0), tolerance: 0.0, elements: picked.len() * kept, failure: None })
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| knn::select(rec, rows, cols, 0, k, v[0], v[1], v[2]);
    let mut p = Problem::new("knn_select", "forward", format!("{rows},{cols},{k}"), operands, (10 * rows * cols) as u64, record, check);
    // Lists are kept in place, but begin anew here.
    p.repeatable = true;
    p
}

/// Which transformation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Axes reversed.
    Flip,
    /// Elastic deformation.
    Elastic,
    /// Local shuffling in 1000 windows.
    Shuffle,
    /// Non-linear map of intensities.
    NonLinear,
    /// In-painting of five boxes with noise.
    Paint,
    /// All of them one after the other.
    All,
}

/// Windows of the local shuffling, as published.
const WINDOWS: u32 = 1000;
/// Strength of the elastic deformation, as published.
const ALPHA: f32 = 991.0;

fn sample(kind: Transform, n: u32, size: [usize; 3]) -> Sample {
    let key = |what| Key::new(0x7E57).purpose(Purpose::Check, n).fold(what, 0).0;
    let mut s = Sample { elastic_key: key(1), shuffle_key: key(2), paint_key: key(3), ..Sample::default() };
    let all = kind == Transform::All;
    if all || kind == Transform::Flip {
        s.flip = 1 + n % 7;
    }
    if all || kind == Transform::Shuffle {
        s.windows = WINDOWS;
    }
    if all || kind == Transform::NonLinear {
        // A gentle curve: a steep one magnifies the rounding of what goes in.
        (s.curve, s.curve_kind) = ([0.3, 0.45, 0.6, 0.7], 1 + n % 2);
    }
    if all || kind == Transform::Paint {
        (s.paint_kind, s.paint_noise, s.box_count) = (1, 1, 5);
        let mut rng = Key::new(0xB0).purpose(Purpose::Check, n).rng();
        for b in &mut s.boxes {
            for (a, &length) in size.iter().enumerate() {
                let side = (length as i64 / 4).max(1);
                b.side[a] = u32::try_from(side).unwrap_or(1);
                b.start[a] = u32::try_from(rng.int(0, length as i64 - side)).unwrap_or(0);
            }
        }
    }
    s
}

/// A transformation of `batch` crops of `size` voxels.
///
/// # Errors
/// [`crate::error::Error::Shape`] for a size that is refused.
pub fn transformation(kind: Transform, batch: usize, size: [usize; 3]) -> Result<Problem> {
    let g = transform::Geometry::new(batch, size)?;
    let (v, n) = (g.voxels(), batch * g.voxels());
    let samples: Vec<Sample> = (0..).take(batch).map(|i| sample(kind, i, size)).collect();
    let most = samples.iter().map(|s| s.windows as usize).max().unwrap_or(0);
    let name = match kind {
        Transform::Flip => "transform_flip",
        Transform::Elastic => "transform_elastic",
        Transform::Shuffle => "transform_shuffle",
        Transform::NonLinear => "transform_non_linear",
        Transform::Paint => "transform_paint",
        Transform::All => "transform",
    };
    let operands =
        vec![words("samples", cast_slice(&samples).to_vec()), vector("crops", n, 1, 0.0, 1.0), Operand::output("output", n, Dtype::F32)];
    let flops = match kind {
        Transform::Flip => 1,
        Transform::Elastic => 2 * 3 * 2 * 65,
        Transform::Shuffle => 20,
        Transform::NonLinear => 60,
        Transform::Paint => 30,
        Transform::All => 2 * 3 * 2 * 65 + 111,
    } * n as u64;
    let record = move |rec: &mut Recorder<'_>, _: &str, x: &[View]| match kind {
        Transform::Flip => transform::flip(rec, &g, x[0], x[1], x[2]),
        Transform::Elastic => transform::elastic(rec, &g, ALPHA, x[0], x[1], x[2]),
        Transform::All => {
            let (a, b) = (rec.scratch(n), rec.scratch(n));
            transform::flip(rec, &g, x[0], x[1], a)?;
            transform::elastic(rec, &g, ALPHA, x[0], a, b)?;
            transform::distort(rec, &g, most, x[0], b, x[2])
        }
        _ => transform::distort(rec, &g, most, x[0], x[1], x[2]),
    };
    let check = move |o: &[Operand], out: &Outputs| {
        let got = out.numbers(2);
        // What is displaced by rounding alone is off by that times the slope of noise.
        let tolerance = match kind {
            Transform::Flip => 1e-7,
            Transform::Elastic => 1e-4,
            Transform::All => 4e-4,
            _ => 2e-5,
        };
        let narrow = |v: Vec<f64>| -> Vec<f32> { v.into_iter().map(|v| v as f32).collect() };
        let mut checks = Vec::new();
        for i in few(batch, 2) {
            let s = &samples[i];
            let crop: Vec<f32> = (i * v..(i + 1) * v).map(|i| o[1].content.at(i) as f32).collect();
            let bent = |crop: &[f32]| {
                let field = transform::reference_blur(&transform::reference_noise(s, v), size, f64::from(ALPHA));
                transform::reference_resample(crop, size, &field)
            };
            let want = match kind {
                Transform::Flip => transform::reference_flip(s, size, &crop),
                Transform::Elastic => bent(&crop),
                Transform::All => {
                    let bent = narrow(bent(&narrow(transform::reference_flip(s, size, &crop))));
                    transform::reference_point(s, size, &bent)
                }
                _ => transform::reference_point(s, size, &crop),
            };
            checks.push(judge("output", &got[i * v..(i + 1) * v], &want, tolerance)?);
        }
        Ok(join(checks))
    };
    let [x, y, z] = size;
    Ok(Problem::new(name, "forward", format!("{batch},{x},{y},{z}"), operands, flops, record, check))
}
