//! Maximum, average and global average pooling over `[N, D, H, W, C]`; operands and results of the first two are stored alike.

use super::batch_norm::NORM;
use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers, wide};
use super::reduce::{segment_spread, segment_sum};
use super::rows::{Pretend, alike, bound_at_once, elem, expect, index, loaded, reference_loaded, stored, vector_width};
use super::{sample_parts, specialise};
use crate::error::{Error, Result};
use crate::gpu::{Context, Dispatch, Dtype, Recorder, View};

/// Shape of a pooling; axes are in the order depth, height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geom {
    /// Samples.
    pub batch: usize,
    /// Size of the input.
    pub input: [usize; 3],
    /// Channels.
    pub channels: usize,
    /// Size of the window.
    pub kernel: [usize; 3],
    /// Distance between windows.
    pub stride: [usize; 3],
    /// Positions added on each side, at most half the window.
    pub padding: [usize; 3],
}

impl Geom {
    /// A checked geometry.
    ///
    /// # Errors
    /// [`Error::Shape`] when a size is zero, padding is more than half the window, or the window
    /// is larger than the padded input.
    pub fn new(
        batch: usize,
        input: [usize; 3],
        channels: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
        padding: [usize; 3],
    ) -> Result<Self> {
        let g = Self { batch, input, channels, kernel, stride, padding };
        g.check()?;
        Ok(g)
    }

    fn check(&self) -> Result<()> {
        let Self { batch, input, channels, kernel, stride, padding } = *self;
        if batch == 0 || channels == 0 || [input, kernel, stride].concat().contains(&0) {
            return Err(Error::shape(
                "pool",
                format!(
                    "batch {batch}, input {input:?}, {channels} channels, window {kernel:?} and stride {stride:?} must all be at least 1"
                ),
            ));
        }
        for a in 0..3 {
            if padding[a] > kernel[a] / 2 {
                return Err(Error::shape("pool", format!("padding {padding:?} must be at most half the window {kernel:?}")));
            }
            if input[a] + 2 * padding[a] < kernel[a] {
                return Err(Error::shape(
                    "pool",
                    format!("the window {kernel:?} is larger than the input {input:?} with padding {padding:?}"),
                ));
            }
        }
        Ok(())
    }

    /// Size of the output: ⌊(input + 2 · padding - kernel) / stride⌋ + 1 on each axis.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|a| (self.input[a] + 2 * self.padding[a] - self.kernel[a]) / self.stride[a] + 1)
    }

    fn in_sample(&self) -> usize {
        self.input.iter().product::<usize>() * self.channels
    }

    fn out_sample(&self) -> usize {
        self.output().iter().product::<usize>() * self.channels
    }

    /// Whether the entries for 2×2×2 windows apply.
    fn halves(&self) -> bool {
        self.kernel == [2; 3] && self.stride == [2; 3] && self.padding == [0; 3]
    }
}

/// What shape a view of an operation is of.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    In,
    Out,
    /// The vectors of a batch norm.
    Norm,
}

/// Records an entry over the parts of a batch; `items` channel-wide items of a sample get an invocation per channel vector.
fn record(
    rec: &mut Recorder<'_>,
    g: &Geom,
    op: &'static str,
    entry: &'static str,
    operands: &[(&'static str, View, Side)],
    items: usize,
) -> Result<()> {
    g.check()?;
    let sample = |side| match side {
        Side::In => g.in_sample(),
        Side::Out => g.out_sample(),
        Side::Norm => 0,
    };
    let size = |side| if side == Side::Norm { NORM * g.channels } else { g.batch * sample(side) };
    expect(op, &operands.iter().map(|&(name, view, side)| (name, view, size(side))).collect::<Vec<_>>())?;
    let has = |what: &str| operands.iter().any(|o| o.0 == what);
    let with_other = if has("other") {
        "fn with_other(i: u32, v: Elem) -> Elem { return Elem(other[i]) + v; }"
    } else {
        "fn with_other(i: u32, v: Elem) -> Elem { return v; }"
    };
    // Places of maxima are words, and vectors of norms in 32 bits, however the values are stored.
    let plain = |o: &&(&'static str, View, Side)| o.0 != "index" && o.2 != Side::Norm;
    let dtype = alike(op, &operands.iter().filter(plain).map(|&(name, view, _)| (name, view)).collect::<Vec<_>>())?;
    let width = vector_width(g.channels);
    let vectors = g.channels / width;
    let window: usize = g.kernel.iter().product();
    let flops = (g.out_sample() * window) as u64;
    let source = specialise("pool", &[elem(width), stored(width, dtype), index(width)], &[loaded(has("norm")), ("with_other", with_other)]);
    let [od, oh, ow] = g.output();
    let samples: Vec<_> =
        operands.iter().filter(|o| o.2 != Side::Norm).map(|&(_, view, side)| sample(side) as u64 * view.dtype.bytes()).collect();
    for (n0, n) in sample_parts(rec.caps, op, g.batch, &samples, flops)? {
        let d = operands.iter().fold(Dispatch::new("pool", entry, source.clone()), |d, &(_, view, side)| {
            d.bind(if side == Side::Norm { view } else { view.slice(n0 * sample(side), n * sample(side)) })
        });
        let count = n * items * vectors;
        rec.push(
            d.param("n", count)
                .param("vectors", vectors)
                .param("in_d", g.input[0])
                .param("in_h", g.input[1])
                .param("in_w", g.input[2])
                .param("out_d", od)
                .param("out_h", oh)
                .param("out_w", ow)
                .param("kernel_d", g.kernel[0])
                .param("kernel_h", g.kernel[1])
                .param("kernel_w", g.kernel[2])
                .param("stride_d", g.stride[0])
                .param("stride_h", g.stride[1])
                .param("stride_w", g.stride[2])
                .param("padding_d", g.padding[0])
                .param("padding_h", g.padding[1])
                .param("padding_w", g.padding[2])
                .param("factor", 1.0 / window as f32)
                .items(count, 64)
                .flops(flops * n as u64),
        );
    }
    Ok(())
}

/// Positions of a sample that a backward pass covers one by one: inputs, or cells of 2×2×2 inputs.
fn backward_items(g: &Geom) -> usize {
    g.input.iter().map(|s| if g.halves() { s.div_ceil(2) } else { *s }).product()
}

/// `y` = maximum of each window, `index` (u32) = its position (d·H + h)·W + w in the sample. The first in
/// scan order wins among equals; a NaN wins over everything. With `norm` `[4, C]` the maxima are those of the
/// ReLU of a batch norm's result, `max((x - mean) · factor + shift, 0)`.
///
/// # Errors
/// [`Error::Shape`] when a view does not fit `g` or is stored unlike the others, [`Error::ExceedsLimit`] when too few samples can be bound.
pub fn max_forward(rec: &mut Recorder<'_>, g: &Geom, x: View, norm: Option<View>, y: View, index: View) -> Result<()> {
    g.check()?;
    let entry = if g.halves() { "max_forward_2" } else { "max_forward" };
    let mut operands = vec![("x", x, Side::In)];
    operands.extend(norm.map(|v| ("norm", v, Side::Norm)));
    operands.extend([("y", y, Side::Out), ("index", index, Side::Out)]);
    record(rec, g, "max_pool", entry, &operands, g.output().iter().product())
}

/// `d_x` from the `index` that [`max_forward`] left, added to `other` if there is one.
///
/// # Errors
/// As [`max_forward`].
pub fn max_backward(rec: &mut Recorder<'_>, g: &Geom, index: View, d_y: View, other: Option<View>, d_x: View) -> Result<()> {
    let entry = if g.halves() { "max_backward_2" } else { "max_backward" };
    let mut operands = vec![("index", index, Side::Out), ("d_y", d_y, Side::Out)];
    operands.extend(other.map(|v| ("other", v, Side::In)));
    operands.push(("d_x", d_x, Side::In));
    record(rec, g, "max_pool", entry, &operands, backward_items(g))
}

/// `y` = sum of each window / its volume; padding counts as zeros (`count_include_pad` = true).
///
/// # Errors
/// As [`max_forward`].
pub fn avg_forward(rec: &mut Recorder<'_>, g: &Geom, x: View, y: View) -> Result<()> {
    g.check()?;
    let entry = if g.halves() { "avg_forward_2" } else { "avg_forward" };
    record(rec, g, "avg_pool", entry, &[("x", x, Side::In), ("y", y, Side::Out)], g.output().iter().product())
}

/// `d_x` of [`avg_forward`].
///
/// # Errors
/// As [`max_forward`].
pub fn avg_backward(rec: &mut Recorder<'_>, g: &Geom, d_y: View, d_x: View) -> Result<()> {
    let entry = if g.halves() { "avg_backward_2" } else { "avg_backward" };
    record(rec, g, "avg_pool", entry, &[("d_y", d_y, Side::Out), ("d_x", d_x, Side::In)], backward_items(g))
}

/// `y[n, c]` = mean of `x[n, ·, c]` for x `[batch, spatial, channels]`.
///
/// # Errors
/// As [`max_forward`].
pub fn global_avg_forward(rec: &mut Recorder<'_>, batch: usize, spatial: usize, channels: usize, x: View, y: View) -> Result<()> {
    segment_sum(rec, "global_avg_pool", batch, spatial, channels, 1.0 / spatial.max(1) as f32, x, y)
}

/// `d_x[n, s, c] = d_y[n, c] / spatial`.
///
/// # Errors
/// As [`max_forward`].
pub fn global_avg_backward(rec: &mut Recorder<'_>, batch: usize, spatial: usize, channels: usize, d_y: View, d_x: View) -> Result<()> {
    segment_spread(rec, "global_avg_pool", batch, spatial, channels, 1.0 / spatial.max(1) as f32, d_y, d_x)
}

/// Calls `f(output element, input element, position in the sample)` for every input that a window holds, in scan order.
fn for_each_pair(g: &Geom, mut f: impl FnMut(usize, usize, usize)) {
    let (i, o) = (g.input, g.output());
    for n in 0..g.batch {
        for out in 0..o.iter().product() {
            let at = [out / (o[1] * o[2]), out / o[2] % o[1], out % o[2]];
            for k in 0..g.kernel.iter().product() {
                let tap = [k / (g.kernel[1] * g.kernel[2]), k / g.kernel[2] % g.kernel[1], k % g.kernel[2]];
                let p: [usize; 3] = std::array::from_fn(|a| (at[a] * g.stride[a] + tap[a]).wrapping_sub(g.padding[a]));
                if (0..3).any(|a| p[a] >= i[a]) {
                    continue;
                }
                let position = (p[0] * i[1] + p[1]) * i[2] + p[2];
                for c in 0..g.channels {
                    f(n * g.out_sample() + out * g.channels + c, n * g.in_sample() + position * g.channels + c, position);
                }
            }
        }
    }
}

/// Maxima and their positions, in f64.
pub fn reference_max(g: &Geom, x: &[f64]) -> (Vec<f64>, Vec<u32>) {
    let mut y = vec![f64::NEG_INFINITY; g.batch * g.out_sample()];
    let mut index = vec![u32::MAX; y.len()];
    for_each_pair(g, |o, i, position| {
        if index[o] == u32::MAX || x[i] > y[o] || (x[i].is_nan() && !y[o].is_nan()) {
            y[o] = x[i];
            index[o] = u32::try_from(position).unwrap_or(u32::MAX);
        }
    });
    (y, index)
}

/// Gradient of the maxima that `index` names, in f64.
pub fn reference_max_backward(g: &Geom, index: &[u32], d_y: &[f64]) -> Vec<f64> {
    let mut d_x = vec![0.0; g.batch * g.in_sample()];
    for (o, (&p, d)) in index.iter().zip(d_y).enumerate() {
        d_x[o / g.out_sample() * g.in_sample() + p as usize * g.channels + o % g.channels] += d;
    }
    d_x
}

/// Averages, in f64.
pub fn reference_avg(g: &Geom, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; g.batch * g.out_sample()];
    let volume = g.kernel.iter().product::<usize>() as f64;
    for_each_pair(g, |o, i, _| y[o] += x[i] / volume);
    y
}

/// Gradient of the averages, in f64.
pub fn reference_avg_backward(g: &Geom, d_y: &[f64]) -> Vec<f64> {
    let mut d_x = vec![0.0; g.batch * g.in_sample()];
    let volume = g.kernel.iter().product::<usize>() as f64;
    for_each_pair(g, |o, i, _| d_x[i] += d_y[o] / volume);
    d_x
}

/// Compares bit by bit: maxima are copies. NaN equals NaN.
fn same(got: &[f32], want: &[f64], got_index: &[u32], want_index: &[u32]) -> Outcome {
    let wrong = (0..want.len())
        .find(|&i| got_index[i] != want_index[i] || (f64::from(got[i]) != want[i] && !(got[i].is_nan() && want[i].is_nan())));
    let failure = wrong.map(|i| format!("element {i} is {} from {}, expected {} from {}", got[i], got_index[i], want[i], want_index[i]));
    Outcome { error: f64::from(u8::from(failure.is_some())), tolerance: 0.0, failure }
}

fn check_max_forward(ctx: &Context, g: &Geom, x: &[f32], norm: Option<&[f32]>, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let x = &as_stored(x, dtype);
    let mut t = Trial::new(ctx);
    let n = g.batch * g.out_sample();
    let (vx, y, index) = (t.tensor(x, dtype)?, t.empty(n, dtype)?, t.output(n)?);
    let vectors = norm.map(|v| t.input(v)).transpose()?;
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| max_forward(rec, g, vx, vectors, y, index)))?;
    let x = match norm {
        Some(v) => reference_loaded(&wide(x), &wide(v), g.channels),
        None => wide(x),
    };
    let (want, want_index) = reference_max(g, &x);
    // Multiples of 1/16 below 64 have at most ten binary digits: nothing is rounded.
    Ok(same(&t.values(y)?, &want, &t.read(index)?, &want_index))
}

/// Vectors of a batch norm that compute small multiples of 1/4 exactly.
fn exact_norm(channels: usize) -> Vec<f32> {
    numbers(8, NORM * channels, 8.0).iter().map(|v| v.round() / 4.0).collect()
}

/// Values with many ties, some NaN and some infinite.
fn odd_values(n: usize) -> Vec<f32> {
    numbers(7, n, 3.0)
        .iter()
        .map(|v| match v {
            v if *v > 2.9 => f32::NAN,
            v if *v < -2.5 => f32::NEG_INFINITY,
            v => v.round(),
        })
        .collect()
}

fn check_max_backward(ctx: &Context, g: &Geom, add: bool, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let x: Vec<f64> = numbers(1, g.batch * g.in_sample(), 3.0).iter().map(|v| f64::from(v.round())).collect();
    let (_, index) = reference_max(g, &x);
    let d_y = as_stored(&numbers(2, index.len(), 1.0), dtype);
    let mut t = Trial::new(ctx);
    let (vi, vd, d_x) = (t.input(&index)?, t.tensor(&d_y, dtype)?, t.empty(x.len(), dtype)?);
    let before = as_stored(&numbers(3, x.len(), if add { 1.0 } else { 0.0 }), dtype);
    let other = if add { Some(t.tensor(&before, dtype)?) } else { None };
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| max_backward(rec, g, vi, vd, other, d_x)))?;
    let want: Vec<f64> = reference_max_backward(g, &index, &wide(&d_y)).iter().zip(&before).map(|(d, &b)| d + f64::from(b)).collect();
    // Sums of at most a window's number of terms.
    compare(&t.values(d_x)?, &want, allowed(1e-6, dtype))
}

fn check_avg_forward(ctx: &Context, g: &Geom, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let x = as_stored(&numbers(1, g.batch * g.in_sample(), 1.0), dtype);
    let mut t = Trial::new(ctx);
    let (vx, y) = (t.tensor(&x, dtype)?, t.empty(g.batch * g.out_sample(), dtype)?);
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| avg_forward(rec, g, vx, y)))?;
    compare(&t.values(y)?, &reference_avg(g, &wide(&x)), allowed(2e-6, dtype))
}

fn check_avg_backward(ctx: &Context, g: &Geom, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let d_y = as_stored(&numbers(1, g.batch * g.out_sample(), 1.0), dtype);
    let mut t = Trial::new(ctx);
    let (vd, d_x) = (t.tensor(&d_y, dtype)?, t.empty(g.batch * g.in_sample(), dtype)?);
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| avg_backward(rec, g, vd, d_x)))?;
    compare(&t.values(d_x)?, &reference_avg_backward(g, &wide(&d_y)), allowed(2e-6, dtype))
}

fn check_global(ctx: &Context, batch: usize, spatial: usize, channels: usize, dtype: Dtype) -> Result<Outcome> {
    let (x, d_y) = (as_stored(&numbers(1, batch * spatial * channels, 1.0), dtype), numbers(2, batch * channels, spatial as f32));
    let mut t = Trial::new(ctx);
    let (vx, vd) = (t.tensor(&x, dtype)?, t.input(&d_y)?);
    let (y, d_x) = (t.output(batch * channels)?, t.empty(x.len(), dtype)?);
    t.run(|rec| {
        global_avg_forward(rec, batch, spatial, channels, vx, y)?;
        global_avg_backward(rec, batch, spatial, channels, vd, d_x)
    })?;
    // The same thing as one window over the whole input.
    let g = Geom::new(batch, [1, 1, spatial], channels, [1, 1, spatial], [1; 3], [0; 3])?;
    let forward = compare(&t.read(y)?, &reference_avg(&g, &wide(&x)), 3e-6)?;
    if !forward.passed() {
        return Ok(forward);
    }
    compare(&t.values(d_x)?, &reference_avg_backward(&g, &wide(&d_y)), allowed(3e-6, dtype))
}

/// Halving of even, odd and flat volumes; overlapping, strided and padded windows; several parts.
pub fn cases() -> Vec<Case> {
    type Shape = (usize, [usize; 3], usize, [usize; 3], [usize; 3], [usize; 3]);
    let shapes: [(Shape, u64); 13] = [
        ((2, [4, 6, 8], 4, [2; 3], [2; 3], [0; 3]), u64::MAX),
        ((1, [5, 7, 3], 8, [2; 3], [2; 3], [0; 3]), u64::MAX),
        ((3, [2, 3, 5], 3, [2; 3], [2; 3], [0; 3]), u64::MAX),
        ((1, [2; 3], 1, [2; 3], [2; 3], [0; 3]), u64::MAX),
        ((2, [16; 3], 16, [2; 3], [2; 3], [0; 3]), u64::MAX),
        ((2, [1, 9, 11], 33, [1, 3, 3], [1, 2, 2], [0, 1, 1]), u64::MAX),
        ((1, [1, 8, 6], 12, [1, 2, 2], [1, 2, 2], [0; 3]), u64::MAX),
        ((2, [5, 6, 7], 4, [3; 3], [1; 3], [1; 3]), u64::MAX),
        ((1, [7, 8, 9], 5, [3, 2, 4], [2, 3, 1], [1, 1, 2]), u64::MAX),
        ((1, [4, 5, 6], 2, [1; 3], [3, 2, 1], [0; 3]), u64::MAX),
        ((2, [3, 1, 4], 16, [3, 1, 4], [1; 3], [0; 3]), u64::MAX),
        ((5, [4; 3], 16, [2; 3], [2; 3], [0; 3]), 12_000),
        ((70, [3, 3, 5], 3, [3; 3], [2; 3], [1; 3]), 35_000),
    ];
    let mut out = Vec::new();
    for ((batch, input, channels, kernel, stride, padding), limit) in shapes {
        let g = Geom { batch, input, channels, kernel, stride, padding };
        let what = format!("{batch}x{input:?}x{channels}, window {kernel:?} stride {stride:?} padding {padding:?}{}", bound_at_once(limit));
        let n = batch * g.in_sample();
        for dtype in DTYPES {
            let mut case = |variant, what: String, check: Box<dyn Fn(&Context) -> Result<Outcome> + Send + Sync>| {
                out.push(Case::new("pool", variant, what, check).stored(dtype));
            };
            let plain = move |ctx: &Context| check_max_forward(ctx, &g, &numbers(1, n, 3.0), None, limit, dtype);
            case("max_forward", what.clone(), Box::new(plain));
            let ties = move |ctx: &Context| check_max_forward(ctx, &g, &odd_values(n), None, limit, dtype);
            case("max_forward", format!("{what}, ties and NaN"), Box::new(ties));
            let loads = move |ctx: &Context| {
                let x: Vec<f32> = numbers(1, n, 12.0).iter().map(|v| v.round() / 4.0).collect();
                check_max_forward(ctx, &g, &x, Some(&exact_norm(channels)), limit, dtype)
            };
            case("max_forward", format!("{what}, of a batch norm and ReLU"), Box::new(loads));
            case("max_backward", what.clone(), Box::new(move |ctx| check_max_backward(ctx, &g, false, limit, dtype)));
            case("max_backward", format!("{what}, added"), Box::new(move |ctx| check_max_backward(ctx, &g, true, limit, dtype)));
            case("avg_forward", what.clone(), Box::new(move |ctx| check_avg_forward(ctx, &g, limit, dtype)));
            case("avg_backward", what.clone(), Box::new(move |ctx| check_avg_backward(ctx, &g, limit, dtype)));
        }
    }
    for (batch, spatial, channels) in [(1, 1, 1), (2, 27, 3), (3, 64, 12), (2, 4096, 16), (1, 5000, 33), (4, 8, 512), (1, 7, 1)] {
        for dtype in DTYPES {
            let check = move |ctx: &Context| check_global(ctx, batch, spatial, channels, dtype);
            out.push(Case::new("pool", "global_avg", format!("{batch}x{spatial}x{channels}"), check).stored(dtype));
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
        for (kernel, stride, padding) in [([2; 3], [2; 3], [0; 3]), ([3, 2, 3], [1, 2, 2], [1, 0, 1])] {
            let g = Geom::new(2, [4, 5, 3], 2, kernel, stride, padding).unwrap();
            let (x, r) = (numbers(1, 240, 3.0), numbers(2, 2 * g.out_sample(), 1.0));
            assert_gradient("max", &x, &reference_max_backward(&g, &reference_max(&g, &x).1, &r), |x| dot(&reference_max(&g, x).0, &r));
            assert_gradient("avg", &x, &reference_avg_backward(&g, &r), |x| dot(&reference_avg(&g, x), &r));
        }
    }

    #[test]
    fn sizes_are_those_of_floor_mode_and_bad_ones_are_refused() {
        assert_eq!(Geom::new(1, [112, 112, 7], 1, [3, 3, 2], [2; 3], [1, 1, 0]).unwrap().output(), [56, 56, 3]);
        for (input, kernel, stride, padding) in [
            ([4; 3], [3; 3], [1; 3], [2; 3]),
            ([4, 1, 4], [2; 3], [2; 3], [0; 3]),
            ([4; 3], [0, 2, 2], [2; 3], [0; 3]),
            ([4; 3], [2; 3], [2, 2, 0], [0; 3]),
            ([4, 0, 4], [1; 3], [1; 3], [0; 3]),
        ] {
            assert!(Geom::new(1, input, 1, kernel, stride, padding).is_err(), "{input:?} {kernel:?} {stride:?} {padding:?}");
        }
    }
}
