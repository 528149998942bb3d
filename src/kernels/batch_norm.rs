//! Batch normalisation over N and space (Ioffe and Szegedy, 2015), as PyTorch's `BatchNorm3d`:
//! normalised with the biased variance, the running variance kept unbiased.
//!
//! Activations are `[batch, spatial, channels]`, all stored alike; vectors `[channels]`, in 32 bits.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers};
use super::rows::{Chunks, KINDS, Pretend, alike, bound_at_once, elem, expect, row_chunks, row_parts, stored, successive, vector_width};
use super::{Const, specialise};
use crate::error::Result;
use crate::gpu::{Context, Dispatch, Dtype, Recorder, View};

/// Shape of a batch normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geom {
    /// Samples.
    pub batch: usize,
    /// Positions of a sample (depth × height × width).
    pub spatial: usize,
    /// Channels.
    pub channels: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl Geom {
    fn rows(&self) -> usize {
        self.batch * self.spatial
    }

    /// Checks that activations and vectors have this geometry's sizes; returns how activations are stored.
    fn expect(&self, activations: &[(&str, View)], vectors: &[(&str, View)]) -> Result<Dtype> {
        let sizes = [(activations, self.rows() * self.channels), (vectors, self.channels)];
        let operands: Vec<_> = sizes.iter().flat_map(|(views, n)| views.iter().map(move |&(name, view)| (name, view, *n))).collect();
        expect("batch_norm", &operands)?;
        alike("batch_norm", activations)
    }
}

/// Most chunks of one part in a reduction: enough workgroups to fill a large GPU.
const MOST_CHUNKS: usize = 1024;
/// Rows that an invocation sums at least, as far as there are any.
const TURNS_REDUCE: usize = 32;
/// Rows that an invocation maps.
const TURNS_MAP: usize = 8;

/// What all dispatches of one operation share.
struct Plan {
    geom: Geom,
    momentum: f32,
    /// Constants of the kernel's text.
    header: [(&'static str, Const); 4],
    width: usize,
    /// `(first row, rows)` of each part that can be bound at once.
    parts: Vec<(usize, usize)>,
}

impl Plan {
    fn new(rec: &Recorder<'_>, geom: &Geom, dtype: Dtype, momentum: f32, running: bool) -> Result<Self> {
        let parts = row_parts(rec.caps, "batch_norm", geom.rows(), geom.channels, dtype)?;
        let width = vector_width(geom.channels);
        let header = [elem(width), stored(width, dtype), successive(rec.caps), ("RUNNING", Const::Bool(running))];
        Ok(Self { geom: *geom, momentum, header, width, parts })
    }

    fn vectors(&self) -> usize {
        self.geom.channels / self.width
    }

    /// Elements of one part of an activation.
    fn slice(&self, view: View, (first, rows): (usize, usize)) -> View {
        view.slice(first * self.geom.channels, rows * self.geom.channels)
    }

    fn dispatch(&self, entry: &'static str, views: &[View], rows: usize, chunk: usize, first_partial: usize, partials: usize) -> Dispatch {
        let source = specialise("batch_norm", &self.header, &[]);
        let d = views.iter().fold(Dispatch::new("batch_norm", entry, source), |d, &v| d.bind(v));
        d.param("rows", rows)
            .param("vectors", self.vectors())
            .param("chunk", chunk)
            .param("first_partial", first_partial)
            .param("partials", partials)
            .param("count", self.geom.rows() as f32)
            .param("eps", self.geom.eps)
            .param("momentum", self.momentum)
    }

    /// Reduces the parts of `inputs`, together with the whole of `vectors`, to partials of `fields` vectors
    /// each; returns them and their number.
    fn reduce(&self, rec: &mut Recorder<'_>, entry: &'static str, fields: usize, inputs: &[View], vectors: &[View]) -> (View, usize) {
        let cuts: Vec<Chunks> = self.parts.iter().map(|p| row_chunks(p.1, self.vectors(), TURNS_REDUCE, MOST_CHUNKS)).collect();
        let count = cuts.iter().map(|c| c.count).sum();
        let partials = rec.scratch(count * fields * self.geom.channels);
        let mut first = 0;
        for (&part, cut) in self.parts.iter().zip(&cuts) {
            let views: Vec<View> = inputs.iter().map(|&v| self.slice(v, part)).chain(vectors.iter().copied()).chain([partials]).collect();
            let flops = 4 * (part.1 * self.geom.channels) as u64;
            rec.push(self.dispatch(entry, &views, part.1, cut.rows, first, count).groups(cut.groups).flops(flops));
            first += cut.count;
        }
        (partials, count)
    }

    /// Maps the parts of `inputs`, together with the whole of `vectors`, to those of `output`.
    fn map(&self, rec: &mut Recorder<'_>, entry: &'static str, inputs: &[View], vectors: &[View], output: View) {
        for &part in &self.parts {
            let cut = row_chunks(part.1, self.vectors(), TURNS_MAP, usize::MAX);
            let views: Vec<View> =
                inputs.iter().map(|&v| self.slice(v, part)).chain(vectors.iter().copied()).chain([self.slice(output, part)]).collect();
            let flops = 4 * (part.1 * self.geom.channels) as u64;
            rec.push(self.dispatch(entry, &views, part.1, cut.rows, 0, 0).groups(cut.groups).flops(flops));
        }
    }
}

/// Training: normalises with the statistics of this batch, keeps them in `saved_mean` and
/// `saved_inv_std` (1 / √(biased variance + ε)) for the gradient, and moves the running
/// statistics: `running = (1 - momentum) · running + momentum · batch`, with the unbiased
/// variance, n/(n-1) times the biased one. With a single value per channel (n = 1), where
/// PyTorch refuses, the variance is 0 in both senses.
///
/// # Errors
/// [`crate::error::Error::Shape`] when a view does not fit `g` or a size is zero, [`crate::error::Error::ExceedsLimit`] when
/// not even 64 rows can be bound.
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub fn forward(
    rec: &mut Recorder<'_>,
    g: &Geom,
    momentum: f32,
    x: View,
    gamma: View,
    beta: View,
    running_mean: View,
    running_var: View,
    saved_mean: View,
    saved_inv_std: View,
    y: View,
) -> Result<()> {
    let running = [("running_mean", running_mean), ("running_var", running_var)];
    let saved = [("saved_mean", saved_mean), ("saved_inv_std", saved_inv_std)];
    let dtype = g.expect(&[("x", x), ("y", y)], &[&[("gamma", gamma), ("beta", beta)], &running[..], &saved[..]].concat())?;
    let plan = Plan::new(rec, g, dtype, momentum, false)?;
    let (partials, count) = plan.reduce(rec, "statistics", 3, &[x], &[]);
    let views = [partials, running_mean, running_var, saved_mean, saved_inv_std];
    rec.push(plan.dispatch("finish_statistics", &views, 0, 0, 0, count).groups(plan.vectors()).flops(8 * partials.elements() as u64));
    plan.map(rec, "normalize", &[x], &[saved_mean, saved_inv_std, gamma, beta], y);
    Ok(())
}

/// Inference: normalises with the running statistics.
///
/// # Errors
/// As [`forward`].
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub fn forward_running(
    rec: &mut Recorder<'_>,
    g: &Geom,
    x: View,
    gamma: View,
    beta: View,
    running_mean: View,
    running_var: View,
    y: View,
) -> Result<()> {
    let vectors = [("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)];
    let dtype = g.expect(&[("x", x), ("y", y)], &vectors)?;
    Plan::new(rec, g, dtype, 0.0, true)?.map(rec, "normalize", &[x], &[running_mean, running_var, gamma, beta], y);
    Ok(())
}

/// Gradients of [`forward`] with respect to x, gamma and beta (the running statistics have none).
///
/// # Errors
/// As [`forward`].
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub fn backward(
    rec: &mut Recorder<'_>,
    g: &Geom,
    x: View,
    gamma: View,
    saved_mean: View,
    saved_inv_std: View,
    d_y: View,
    d_x: View,
    d_gamma: View,
    d_beta: View,
) -> Result<()> {
    record_backward(rec, g, false, x, gamma, [saved_mean, saved_inv_std], d_y, d_x, d_gamma, d_beta)
}

/// Gradients of [`forward_running`] with respect to x, gamma and beta.
///
/// # Errors
/// As [`forward`].
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub fn backward_running(
    rec: &mut Recorder<'_>,
    g: &Geom,
    x: View,
    gamma: View,
    running_mean: View,
    running_var: View,
    d_y: View,
    d_x: View,
    d_gamma: View,
    d_beta: View,
) -> Result<()> {
    record_backward(rec, g, true, x, gamma, [running_mean, running_var], d_y, d_x, d_gamma, d_beta)
}

#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
fn record_backward(
    rec: &mut Recorder<'_>,
    g: &Geom,
    running: bool,
    x: View,
    gamma: View,
    [mean, spread]: [View; 2],
    d_y: View,
    d_x: View,
    d_gamma: View,
    d_beta: View,
) -> Result<()> {
    let vectors = [("gamma", gamma), ("mean", mean), ("variance", spread), ("d_gamma", d_gamma), ("d_beta", d_beta)];
    let dtype = g.expect(&[("x", x), ("d_y", d_y), ("d_x", d_x)], &vectors)?;
    let plan = Plan::new(rec, g, dtype, 0.0, running)?;
    let (partials, count) = plan.reduce(rec, "backward_sums", 2, &[x, d_y], &[mean, spread]);
    let coefficients = rec.scratch(4 * g.channels);
    let views = [partials, mean, spread, gamma, d_gamma, d_beta, coefficients];
    rec.push(plan.dispatch("finish_backward", &views, 0, 0, 0, count).groups(plan.vectors()).flops(2 * partials.elements() as u64));
    plan.map(rec, "backward_input", &[x, d_y], &[coefficients], d_x);
    Ok(())
}

/// Mean and biased variance of each channel of `x [rows, channels]`.
pub fn reference_statistics(x: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (x.len() / channels) as f64;
    (0..channels)
        .map(|c| {
            let mean = x.iter().skip(c).step_by(channels).sum::<f64>() / n;
            (mean, x.iter().skip(c).step_by(channels).map(|v| (v - mean).powi(2)).sum::<f64>() / n)
        })
        .unzip()
}

/// `(x - mean) / √(var + eps) · gamma + beta` for x `[rows, channels]`.
pub fn reference_normalize(x: &[f64], mean: &[f64], var: &[f64], eps: f64, gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let channels = mean.len();
    x.iter()
        .enumerate()
        .map(|(i, v)| {
            let c = i % channels;
            (v - mean[c]) / (var[c] + eps).sqrt() * gamma[c] + beta[c]
        })
        .collect()
}

/// `(d_x, d_gamma, d_beta)`; with `fixed` the statistics do not depend on x.
pub fn reference_backward(
    x: &[f64],
    mean: &[f64],
    var: &[f64],
    eps: f64,
    gamma: &[f64],
    d_y: &[f64],
    fixed: bool,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = mean.len();
    let n = (x.len() / channels) as f64;
    let ones = vec![1.0; channels];
    let normal = reference_normalize(x, mean, var, eps, &ones, &vec![0.0; channels]);
    let (mut d_gamma, mut d_beta) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, d) in d_y.iter().enumerate() {
        d_gamma[i % channels] += d * normal[i];
        d_beta[i % channels] += d;
    }
    let d_x = (0..x.len())
        .map(|i| {
            let c = i % channels;
            let common = if fixed { 0.0 } else { (d_beta[c] + normal[i] * d_gamma[c]) / n };
            gamma[c] / (var[c] + eps).sqrt() * (d_y[i] - common)
        })
        .collect();
    (d_x, d_gamma, d_beta)
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| f64::from(v)).collect()
}

/// Inputs of a case: values of standard deviation about 1 around `offset`, activations as they are stored.
struct Inputs {
    x: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
    d_y: Vec<f32>,
}

impl Inputs {
    fn new(g: &Geom, offset: f32, dtype: Dtype) -> Self {
        let (n, c) = (g.rows() * g.channels, g.channels);
        let x: Vec<f32> = numbers(1, n, 2.0).iter().enumerate().map(|(i, v)| v + offset * (1.0 + (i % c) as f32 / c as f32)).collect();
        let d_y: Vec<f32> = numbers(6, n, 1.0).iter().map(|v| v + 0.25).collect();
        Self {
            x: as_stored(&x, dtype),
            gamma: numbers(2, c, 1.0).iter().map(|v| v + 1.5).collect(),
            beta: numbers(3, c, 1.0),
            mean: numbers(4, c, 1.0).iter().map(|v| v + offset).collect(),
            var: numbers(5, c, 0.9).iter().map(|v| v + 1.0).collect(),
            d_y: as_stored(&d_y, dtype),
        }
    }
}

/// The first comparison that failed, or else the one closest to failing.
fn worst(outcomes: impl IntoIterator<Item = (&'static str, Outcome)>) -> Result<Outcome> {
    let mut out = Outcome { error: 0.0, tolerance: f64::MIN_POSITIVE, failure: None };
    for (name, o) in outcomes {
        if let Some(f) = o.failure {
            return Ok(Outcome { failure: Some(format!("{name}: {f}")), ..o });
        }
        if o.error / o.tolerance >= out.error / out.tolerance {
            out = o;
        }
    }
    Ok(out)
}

/// Several vectors of `channels` elements in one buffer, at aligned offsets, as parameters and gradients lie.
fn pack(t: &mut Trial<'_>, vectors: &[&[f32]], channels: usize) -> Result<(View, Vec<View>)> {
    let step = channels.next_multiple_of(64);
    let mut data = vec![f32::NAN; step * vectors.len()];
    for (i, v) in vectors.iter().enumerate() {
        data[i * step..i * step + v.len()].copy_from_slice(v);
    }
    let whole = t.input(&data)?;
    Ok((whole, (0..vectors.len()).map(|i| whole.slice(i * step, channels)).collect()))
}

fn unpack(t: &Trial<'_>, whole: View, channels: usize) -> Result<Vec<Vec<f32>>> {
    let all: Vec<f32> = t.read(whole)?;
    Ok(all.chunks(channels.next_multiple_of(64)).map(|v| v[..channels].to_vec()).collect())
}

fn check_forward(ctx: &Context, g: &Geom, offset: f32, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let (i, momentum) = (Inputs::new(g, offset, dtype), 0.3f32);
    let mut t = Trial::new(ctx);
    let x = t.tensor(&i.x, dtype)?;
    let (_, parameters) = pack(&mut t, &[&i.gamma, &i.beta], g.channels)?;
    let (buffers, running) = pack(&mut t, &[&i.mean, &i.var], g.channels)?;
    let (saved_mean, saved_inv_std, y) = (t.output(g.channels)?, t.output(g.channels)?, t.empty(i.x.len(), dtype)?);
    t.run(|rec| {
        adapter.record(rec, |rec| {
            forward(rec, g, momentum, x, parameters[0], parameters[1], running[0], running[1], saved_mean, saved_inv_std, y)
        })
    })?;
    let (mean, var) = reference_statistics(&wide(&i.x), g.channels);
    let n = g.rows() as f64;
    let eps = f64::from(g.eps);
    let want_y = reference_normalize(&wide(&i.x), &mean, &var, eps, &wide(&i.gamma), &wide(&i.beta));
    let moved = |old: &[f32], new: &[f64], factor: f64| -> Vec<f64> {
        let m = f64::from(momentum);
        old.iter().zip(new).map(|(&o, v)| (1.0 - m) * f64::from(o) + m * v * factor).collect()
    };
    let got = unpack(&t, buffers, g.channels)?;
    // Sums of a few dozen f32 terms, merged in a tree; x - mean inherits the rounding of the mean.
    // Means are judged against means, which are smaller than the values summed.
    let tolerance = 2e-6 + 3e-7 * f64::from(offset);
    let inv_std: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    worst([
        ("y", compare(&t.values(y)?, &want_y, allowed(tolerance, dtype))?),
        ("saved_mean", compare(&t.read(saved_mean)?, &mean, 4e-6)?),
        ("saved_inv_std", compare(&t.read(saved_inv_std)?, &inv_std, 2e-6)?),
        ("running_mean", compare(&got[0], &moved(&i.mean, &mean, 1.0), 1e-6)?),
        ("running_var", compare(&got[1], &moved(&i.var, &var, n / (n - 1.0).max(1.0)), 2e-6)?),
    ])
}

fn check_forward_running(ctx: &Context, g: &Geom, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let i = Inputs::new(g, 0.0, dtype);
    let mut t = Trial::new(ctx);
    let (x, y) = (t.tensor(&i.x, dtype)?, t.empty(i.x.len(), dtype)?);
    let (_, v) = pack(&mut t, &[&i.gamma, &i.beta, &i.mean, &i.var], g.channels)?;
    t.run(|rec| adapter.record(rec, |rec| forward_running(rec, g, x, v[0], v[1], v[2], v[3], y)))?;
    let want = reference_normalize(&wide(&i.x), &wide(&i.mean), &wide(&i.var), f64::from(g.eps), &wide(&i.gamma), &wide(&i.beta));
    compare(&t.values(y)?, &want, allowed(1e-6, dtype))
}

fn check_backward(ctx: &Context, g: &Geom, fixed: bool, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let i = Inputs::new(g, 0.5, dtype);
    let eps = f64::from(g.eps);
    let (mean, var) = if fixed { (wide(&i.mean), wide(&i.var)) } else { reference_statistics(&wide(&i.x), g.channels) };
    let mut t = Trial::new(ctx);
    let (x, d_y, d_x) = (t.tensor(&i.x, dtype)?, t.tensor(&i.d_y, dtype)?, t.empty(i.x.len(), dtype)?);
    let gamma = t.input(&i.gamma)?;
    let mean32: Vec<f32> = mean.iter().map(|&v| v as f32).collect();
    let spread: Vec<f32> = var.iter().map(|&v| if fixed { v as f32 } else { (1.0 / (v + eps).sqrt()) as f32 }).collect();
    let (mean_view, spread_view) = (t.input(&mean32)?, t.input(&spread)?);
    let empty = vec![f32::NAN; g.channels];
    let (gradients, d) = pack(&mut t, &[&empty, &empty], g.channels)?;
    t.run(|rec| {
        adapter.record(rec, |rec| {
            let f = if fixed { backward_running } else { backward };
            f(rec, g, x, gamma, mean_view, spread_view, d_y, d_x, d[0], d[1])
        })
    })?;
    let (want_x, want_gamma, want_beta) = reference_backward(&wide(&i.x), &mean, &var, eps, &wide(&i.gamma), &wide(&i.d_y), fixed);
    let got = unpack(&t, gradients, g.channels)?;
    // Sums cancel to about √rows of their terms; d_x is a difference of three terms.
    let d_gamma = compare(&got[0], &want_gamma, 5e-6)?;
    let d_x = compare(&t.values(d_x)?, &want_x, allowed(5e-6, dtype))?;
    worst([("d_x", d_x), ("d_gamma", d_gamma), ("d_beta", compare(&got[1], &want_beta, 5e-6)?)])
}

/// Training and inference, forward and backward: awkward channels and rows, large means, several
/// chunks, several blocks of channels, several parts.
pub fn cases() -> Vec<Case> {
    let whole = u64::MAX;
    let shapes = [
        (1, 1, 1, whole),
        (1, 9, 2, whole),
        (1, 1, 8, whole),
        (2, 15, 3, whole),
        (3, 343, 4, whole),
        (2, 60, 5, whole),
        (1, 65, 12, whole),
        (2, 128, 16, whole),
        (2, 27, 33, whole),
        (1, 12, 258, whole),
        (2, 10, 1028, whole),
        (2, 20_000, 8, whole),
        (3, 5000, 3, whole),
        (3, 1000, 6, 16_384),
        (2, 1500, 8, 16_384),
    ];
    let mut out = Vec::new();
    for (batch, spatial, channels, limit) in shapes {
        let g = Geom { batch, spatial, channels, eps: 1e-5 };
        for (kind, dtype) in KINDS.into_iter().flat_map(|kind| DTYPES.map(|dtype| (kind, dtype))) {
            let adapter = Pretend { limit, kind };
            let what = format!("{batch}x{spatial}x{channels} {kind:?}{}", bound_at_once(limit));
            for offset in [0.0, 100.0] {
                let what = format!("{what}, mean {offset}");
                let check = move |ctx: &Context| check_forward(ctx, &g, offset, adapter, dtype);
                out.push(Case::new("batch_norm", "forward", what, check).stored(dtype));
            }
            let check = move |ctx: &Context| check_forward_running(ctx, &g, adapter, dtype);
            out.push(Case::new("batch_norm", "forward_running", what.clone(), check).stored(dtype));
            for (variant, fixed) in [("backward", false), ("backward_running", true)] {
                let check = move |ctx: &Context| check_backward(ctx, &g, fixed, adapter, dtype);
                out.push(Case::new("batch_norm", variant, what.clone(), check).stored(dtype));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference::{assert_gradient, dot, numbers};
    use super::*;

    #[test]
    fn the_reference_gradients_are_derivatives() {
        let (channels, n, eps) = (3, 21, 1e-2);
        let (x, r) = (numbers(1, n, 2.0), numbers(2, n, 1.0));
        let (gamma, beta) = (numbers(3, channels, 1.0), numbers(4, channels, 1.0));
        for fixed in [false, true] {
            let running = (numbers(5, channels, 1.0), vec![0.5, 1.0, 2.0]);
            let statistics = |x: &[f64]| if fixed { running.clone() } else { reference_statistics(x, channels) };
            let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| {
                let (mean, var) = statistics(x);
                dot(&reference_normalize(x, &mean, &var, eps, gamma, beta), &r)
            };
            let (mean, var) = statistics(&x);
            let (d_x, d_gamma, d_beta) = reference_backward(&x, &mean, &var, eps, &gamma, &r, fixed);
            assert_gradient("d_x", &x, &d_x, |x| loss(x, &gamma, &beta));
            assert_gradient("d_gamma", &gamma, &d_gamma, |gamma| loss(&x, gamma, &beta));
            assert_gradient("d_beta", &beta, &d_beta, |beta| loss(&x, &gamma, beta));
        }
    }
}
