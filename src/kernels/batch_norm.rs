//! Batch normalisation over N and space (Ioffe and Szegedy, 2015), as PyTorch's `BatchNorm3d`:
//! normalised with the biased variance, the running variance kept unbiased.
//!
//! Activations are `[batch, spatial, channels]`, those of one operation stored alike; vectors `[channels]`, in 32 bits.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers, wide, worst};
use super::rows::{
    Chunks, KINDS, Pretend, alike, bound_at_once, elem, expect, most_chunks, row_chunks, row_parts, stored, successive, vector_width,
};
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
        if activations.is_empty() { Ok(Dtype::F32) } else { alike("batch_norm", activations) }
    }
}

/// Most chunks of one part in a reduction: enough workgroups to fill a large GPU.
const MOST_CHUNKS: usize = 1024;
/// Rows that an invocation sums at least, as far as there are any.
const TURNS_REDUCE: usize = 32;
/// Rows that an invocation maps.
const TURNS_MAP: usize = 8;

/// Number of vectors that normalise.
pub const NORM: usize = 4;

/// What a batch norm has learnt and keeps, a number a channel each.
#[derive(Clone, Copy, Debug)]
pub struct Vectors {
    /// Scale γ.
    pub gamma: View,
    /// Shift β.
    pub beta: View,
    /// Running mean.
    pub running_mean: View,
    /// Running variance.
    pub running_var: View,
}

/// What follows from how a batch norm is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Use {
    /// The statistics do not depend on x: they are the running ones.
    pub fixed: bool,
    /// A ReLU follows.
    pub relu: bool,
}

impl Use {
    /// For the names of cases.
    fn text(self) -> String {
        [(self.fixed, ", fixed statistics"), (self.relu, ", ReLU")].iter().filter(|u| u.0).map(|u| u.1).collect()
    }
}

/// What all dispatches of one operation share.
struct Plan {
    geom: Geom,
    momentum: f32,
    /// Constants of the kernel's text.
    header: [(&'static str, Const); 5],
    width: usize,
    /// `(first row, rows)` of each part that can be bound at once.
    parts: Vec<(usize, usize)>,
}

impl Plan {
    /// For activations stored as `dtype`; without any, that is F32.
    fn new(rec: &Recorder<'_>, geom: &Geom, dtype: Dtype, momentum: f32, how: Use) -> Result<Self> {
        let parts = row_parts(rec.caps, "batch_norm", geom.rows(), geom.channels, dtype)?;
        let width = vector_width(geom.channels);
        let flags = [("FIXED", Const::Bool(how.fixed)), ("RELU", Const::Bool(how.relu))];
        let header = [elem(width), stored(width, dtype), successive(rec.caps), flags[0], flags[1]];
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
        let cuts: Vec<Chunks> =
            self.parts.iter().map(|p| row_chunks(p.1, self.vectors(), TURNS_REDUCE, most_chunks(rec.caps, MOST_CHUNKS))).collect();
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

/// Training: `norm` `[4, C]` (mean, factor γ/σ, shift β, 1/σ with σ = √(biased variance + ε)) from the statistics
/// of `x`; moves the running statistics: `running = (1 - momentum) · running + momentum · batch`, with the
/// unbiased variance, n/(n-1) times the biased one. With a single value per channel (n = 1), where
/// PyTorch refuses, the variance is 0 in both senses.
///
/// # Errors
/// [`crate::error::Error::Shape`] when a view does not fit `g`, types differ or a size is zero, [`crate::error::Error::ExceedsLimit`] when
/// not even 64 rows can be bound.
pub fn statistics(rec: &mut Recorder<'_>, g: &Geom, momentum: f32, x: View, v: Vectors, norm: View) -> Result<()> {
    let dtype = g.expect(&[("x", x)], &[])?;
    let plan = Plan::new(rec, g, dtype, momentum, Use::default())?;
    let (partials, count) = plan.reduce(rec, "statistics", 3, &[x], &[]);
    finish(rec, g, momentum, partials, count, v, norm)
}

/// The second half of [`statistics`]: from `count` partials `[count, 3, C]`, each the number of values, their mean and
/// the sum of squared differences from it.
///
/// # Errors
/// As [`statistics`].
pub fn finish(rec: &mut Recorder<'_>, g: &Geom, momentum: f32, partials: View, count: usize, v: Vectors, norm: View) -> Result<()> {
    expect("batch_norm", &[("partials", partials, count * 3 * g.channels)])?;
    expect_norm(g, v, norm)?;
    let plan = Plan::new(rec, g, Dtype::F32, momentum, Use::default())?;
    let views = [partials, v.gamma, v.beta, v.running_mean, v.running_var, norm];
    rec.push(plan.dispatch("finish_statistics", &views, 0, 0, 0, count).groups(plan.vectors()).flops(8 * partials.elements() as u64));
    Ok(())
}

/// Inference: `norm` as [`statistics`] gives it, from the running statistics.
///
/// # Errors
/// As [`statistics`].
pub fn fixed(rec: &mut Recorder<'_>, g: &Geom, v: Vectors, norm: View) -> Result<()> {
    expect_norm(g, v, norm)?;
    let plan = Plan::new(rec, g, Dtype::F32, 0.0, Use::default())?;
    let views = [v.gamma, v.beta, v.running_mean, v.running_var, norm];
    rec.push(plan.dispatch("finish_fixed", &views, 0, 0, 0, 0).items(plan.vectors(), 64).flops(4 * g.channels as u64));
    Ok(())
}

fn expect_norm(g: &Geom, v: Vectors, norm: View) -> Result<()> {
    let running = [("running_mean", v.running_mean), ("running_var", v.running_var)];
    g.expect(&[], &[&[("gamma", v.gamma), ("beta", v.beta)], &running[..]].concat())?;
    expect("batch_norm", &[("norm", norm, NORM * g.channels)])
}

/// `y = (x - mean) · factor + shift`; with `relu` the larger of that and 0.
///
/// # Errors
/// As [`statistics`].
pub fn apply(rec: &mut Recorder<'_>, g: &Geom, relu: bool, x: View, norm: View, y: View) -> Result<()> {
    let dtype = g.expect(&[("x", x), ("y", y)], &[])?;
    expect("batch_norm", &[("norm", norm, NORM * g.channels)])?;
    Plan::new(rec, g, dtype, 0.0, Use { fixed: false, relu })?.map(rec, "apply", &[x], &[norm], y);
    Ok(())
}

/// Gradients of statistics and [`apply`] together with respect to x, γ and β, from the gradient of what `apply` gives.
/// Whether a value passed the ReLU is worked out again from x.
///
/// # Errors
/// As [`statistics`].
pub fn backward(
    rec: &mut Recorder<'_>,
    g: &Geom,
    how: Use,
    x: View,
    norm: View,
    d_y: View,
    d_x: View,
    d_gamma: View,
    d_beta: View,
) -> Result<()> {
    let dtype = g.expect(&[("x", x), ("d_y", d_y), ("d_x", d_x)], &[("d_gamma", d_gamma), ("d_beta", d_beta)])?;
    expect("batch_norm", &[("norm", norm, NORM * g.channels)])?;
    let plan = Plan::new(rec, g, dtype, 0.0, how)?;
    let (partials, count) = plan.reduce(rec, "backward_sums", 2, &[x, d_y], &[norm]);
    let coefficients = rec.scratch(2 * g.channels);
    let views = [partials, norm, d_gamma, d_beta, coefficients];
    rec.push(plan.dispatch("finish_backward", &views, 0, 0, 0, count).groups(plan.vectors()).flops(2 * partials.elements() as u64));
    plan.map(rec, "backward_input", &[x, d_y], &[norm, coefficients], d_x);
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

fn check_forward(ctx: &Context, g: &Geom, how: Use, offset: f32, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let (i, momentum) = (Inputs::new(g, offset, dtype), 0.3f32);
    let mut t = Trial::new(ctx);
    let x = t.tensor(&i.x, dtype)?;
    let (_, parameters) = pack(&mut t, &[&i.gamma, &i.beta], g.channels)?;
    let (buffers, running) = pack(&mut t, &[&i.mean, &i.var], g.channels)?;
    let (norm, y) = (t.output(NORM * g.channels)?, t.empty(i.x.len(), dtype)?);
    let v = Vectors { gamma: parameters[0], beta: parameters[1], running_mean: running[0], running_var: running[1] };
    t.run(|rec| {
        adapter.record(rec, |rec| {
            if how.fixed {
                fixed(rec, g, v, norm)?
            } else {
                statistics(rec, g, momentum, x, v, norm)?
            };
            apply(rec, g, how.relu, x, norm, y)
        })
    })?;
    let (mean, var) = if how.fixed { (wide(&i.mean), wide(&i.var)) } else { reference_statistics(&wide(&i.x), g.channels) };
    let n = g.rows() as f64;
    let eps = f64::from(g.eps);
    let mut want_y = reference_normalize(&wide(&i.x), &mean, &var, eps, &wide(&i.gamma), &wide(&i.beta));
    if how.relu {
        want_y.iter_mut().for_each(|v| *v = v.max(0.0));
    }
    let moved = |old: &[f32], new: &[f64], factor: f64| -> Vec<f64> {
        let m = if how.fixed { 0.0 } else { f64::from(momentum) };
        old.iter().zip(new).map(|(&o, v)| (1.0 - m) * f64::from(o) + m * v * factor).collect()
    };
    let (got, norm) = (unpack(&t, buffers, g.channels)?, t.read::<f32>(norm)?);
    let part = |k: usize| &norm[k * g.channels..(k + 1) * g.channels];
    // Sums of a few dozen f32 terms, merged in a tree; x - mean inherits the rounding of the mean.
    // Means are judged against means, which are smaller than the values summed.
    let tolerance = 2e-6 + 3e-7 * f64::from(offset);
    let inv_std: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let factor: Vec<f64> = inv_std.iter().zip(&i.gamma).map(|(v, &g)| v * f64::from(g)).collect();
    worst([
        ("y", compare(&t.values(y)?, &want_y, allowed(tolerance, dtype))?),
        ("mean", compare(part(0), &mean, 4e-6)?),
        ("factor", compare(part(1), &factor, 2e-6)?),
        ("shift", compare(part(2), &wide(&i.beta), 1e-9)?),
        ("1/std", compare(part(3), &inv_std, 2e-6)?),
        ("running_mean", compare(&got[0], &moved(&i.mean, &mean, 1.0), 1e-6)?),
        ("running_var", compare(&got[1], &moved(&i.var, &var, n / (n - 1.0).max(1.0)), 2e-6)?),
    ])
}

fn check_backward(ctx: &Context, g: &Geom, how: Use, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let i = Inputs::new(g, 0.5, dtype);
    let eps = f64::from(g.eps);
    let (mean, var) = if how.fixed { (wide(&i.mean), wide(&i.var)) } else { reference_statistics(&wide(&i.x), g.channels) };
    let mut t = Trial::new(ctx);
    let inv_std: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let factor = inv_std.iter().zip(&i.gamma).map(|(v, &g)| v * f64::from(g));
    let norm: Vec<f64> = mean.iter().copied().chain(factor).chain(wide(&i.beta)).chain(inv_std.iter().copied()).collect();
    let (mut given, mut passed) = (i.d_y.clone(), wide(&i.d_y));
    if how.relu {
        let y = reference_normalize(&wide(&i.x), &mean, &var, eps, &wide(&i.gamma), &wide(&i.beta));
        for (k, y) in y.iter().enumerate() {
            // So close to the kink rounding decides; no gradient comes in there.
            if y.abs() < 1e-5 {
                given[k] = 0.0;
            }
            passed[k] = if *y > 0.0 { f64::from(given[k]) } else { 0.0 };
        }
    }
    let (x, d_y, d_x) = (t.tensor(&i.x, dtype)?, t.tensor(&given, dtype)?, t.empty(i.x.len(), dtype)?);
    let norm_view = t.input(&norm.iter().map(|&v| v as f32).collect::<Vec<_>>())?;
    let empty = vec![f32::NAN; g.channels];
    let (gradients, d) = pack(&mut t, &[&empty, &empty], g.channels)?;
    t.run(|rec| adapter.record(rec, |rec| backward(rec, g, how, x, norm_view, d_y, d_x, d[0], d[1])))?;
    let (want_x, want_gamma, want_beta) = reference_backward(&wide(&i.x), &mean, &var, eps, &wide(&i.gamma), &passed, how.fixed);
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
            for (how, offset) in
                [([false, false], 0.0), ([false, false], 100.0), ([false, true], 0.0), ([true, false], 0.0), ([true, true], 0.0)]
            {
                let how = Use { fixed: how[0], relu: how[1] };
                let what = format!("{what}{}, mean {offset}", how.text());
                let check = move |ctx: &Context| check_forward(ctx, &g, how, offset, adapter, dtype);
                out.push(Case::new("batch_norm", "forward", what, check).stored(dtype));
            }
            for how in [[false, false], [false, true], [true, false], [true, true]] {
                let how = Use { fixed: how[0], relu: how[1] };
                let what = format!("{what}{}", how.text());
                let check = move |ctx: &Context| check_backward(ctx, &g, how, adapter, dtype);
                out.push(Case::new("batch_norm", "backward", what, check).stored(dtype));
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
