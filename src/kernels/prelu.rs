//! PReLU (He et al., 2015) with one slope per channel.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers, wide};
use super::reduce::channel_sum;
use super::rows::{
    Chunks, KINDS, Pretend, alike, bound_at_once, elem, expect, row_chunks, row_parts, rows_of, stored, successive, vector_width,
};
use super::specialise;
use crate::error::Result;
use crate::gpu::{Caps, Context, Dispatch, Dtype, Recorder, View};

/// Most chunks of one part in the gradient of the slopes.
const MOST_CHUNKS: usize = 1024;
/// Rows that an invocation takes in the backward pass, at least, as far as there are any.
const TURNS_BACKWARD: usize = 16;
/// Rows that an invocation takes in the forward pass.
const TURNS_FORWARD: usize = 8;

fn dispatch(caps: &Caps, entry: &'static str, channels: usize, views: &[View], rows: usize, cut: Chunks, first_partial: usize) -> Dispatch {
    let width = vector_width(channels);
    let d = Dispatch::new("prelu", entry, specialise("prelu", &[elem(width), stored(width, views[0].dtype), successive(caps)], &[]));
    let d = views.iter().fold(d, |d, &v| d.bind(v));
    d.param("rows", rows)
        .param("vectors", channels / width)
        .param("chunk", cut.rows)
        .param("first_partial", first_partial)
        .groups(cut.groups)
        .flops(2 * (rows * channels) as u64)
}

/// `y = x` where x > 0, `slope[c] · x` elsewhere; x `[rows, channels]`, stored as y is, slope `[channels]`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when sizes or types do not fit or a size is zero, [`crate::error::Error::ExceedsLimit`] when not even
/// 64 rows can be bound.
pub fn forward(rec: &mut Recorder<'_>, channels: usize, x: View, slope: View, y: View) -> Result<()> {
    let rows = rows_of("prelu", "x", x, channels)?;
    expect("prelu", &[("y", y, x.elements()), ("slope", slope, channels)])?;
    let dtype = alike("prelu", &[("x", x), ("y", y)])?;
    for (first, n) in row_parts(rec.caps, "prelu", rows, channels, dtype)? {
        let part = |v: View| v.slice(first * channels, n * channels);
        let cut = row_chunks(n, channels / vector_width(channels), TURNS_FORWARD, usize::MAX);
        rec.push(dispatch(rec.caps, "forward", channels, &[part(x), slope, part(y)], n, cut, 0));
    }
    Ok(())
}

/// `d_x = d_y` where x > 0, `slope[c] · d_y` elsewhere; `d_slope[c] = Σ x · d_y` over x ≤ 0.
///
/// # Errors
/// As [`forward`].
pub fn backward(rec: &mut Recorder<'_>, channels: usize, x: View, slope: View, d_y: View, d_x: View, d_slope: View) -> Result<()> {
    let rows = rows_of("prelu", "x", x, channels)?;
    let n = x.elements();
    expect("prelu", &[("d_y", d_y, n), ("d_x", d_x, n), ("slope", slope, channels), ("d_slope", d_slope, channels)])?;
    let dtype = alike("prelu", &[("x", x), ("d_y", d_y), ("d_x", d_x)])?;
    let vectors = channels / vector_width(channels);
    let parts: Vec<(usize, usize, Chunks)> = row_parts(rec.caps, "prelu", rows, channels, dtype)?
        .into_iter()
        .map(|(first, n)| (first, n, row_chunks(n, vectors, TURNS_BACKWARD, MOST_CHUNKS)))
        .collect();
    let count: usize = parts.iter().map(|p| p.2.count).sum();
    // A single partial is the gradient itself.
    let partials = if count == 1 { d_slope } else { rec.scratch(count * channels) };
    let mut first_partial = 0;
    for (first, n, cut) in parts {
        let part = |v: View| v.slice(first * channels, n * channels);
        rec.push(dispatch(rec.caps, "backward", channels, &[part(x), slope, part(d_y), part(d_x), partials], n, cut, first_partial));
        first_partial += cut.count;
    }
    if count > 1 {
        channel_sum(rec, count, channels, partials, d_slope)?;
    }
    Ok(())
}

/// PReLU in f64.
pub fn reference_forward(x: &[f64], slope: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, &v)| if v > 0.0 { v } else { slope[i % slope.len()] * v }).collect()
}

/// `(d_x, d_slope)` in f64.
pub fn reference_backward(x: &[f64], slope: &[f64], d_y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut d_x = d_y.to_vec();
    let mut d_slope = vec![0.0; slope.len()];
    for (i, &v) in x.iter().enumerate().filter(|x| *x.1 <= 0.0) {
        let c = i % slope.len();
        d_x[i] *= slope[c];
        d_slope[c] += v * d_y[i];
    }
    (d_x, d_slope)
}

fn check_forward(ctx: &Context, rows: usize, channels: usize, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let (x, a) = (as_stored(&numbers(1, rows * channels, 2.0), dtype), numbers(2, channels, 1.0));
    let mut t = Trial::new(ctx);
    let (vx, slope, y) = (t.tensor(&x, dtype)?, t.input(&a)?, t.empty(x.len(), dtype)?);
    t.run(|rec| adapter.record(rec, |rec| forward(rec, channels, vx, slope, y)))?;
    // One rounding.
    compare(&t.values(y)?, &reference_forward(&wide(&x), &wide(&a)), allowed(1e-7, dtype))
}

fn check_backward(ctx: &Context, rows: usize, channels: usize, adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let [x, r] = [(1, 2.0), (3, 1.0)].map(|(seed, scale)| as_stored(&numbers(seed, rows * channels, scale), dtype));
    let a = numbers(2, channels, 1.0);
    let mut t = Trial::new(ctx);
    let (vx, slope, d_y) = (t.tensor(&x, dtype)?, t.input(&a)?, t.tensor(&r, dtype)?);
    let (d_x, d_slope) = (t.empty(x.len(), dtype)?, t.output(channels)?);
    t.run(|rec| adapter.record(rec, |rec| backward(rec, channels, vx, slope, d_y, d_x, d_slope)))?;
    let (want_x, want_slope) = reference_backward(&wide(&x), &wide(&a), &wide(&r));
    let outcome = compare(&t.values(d_x)?, &want_x, allowed(1e-7, dtype))?;
    if !outcome.passed() {
        return Ok(outcome);
    }
    // Partial sums of a few dozen terms, added up in trees.
    compare(&t.read(d_slope)?, &want_slope, 3e-6)
}

/// Awkward channels and rows, several chunks, blocks and parts.
pub fn cases() -> Vec<Case> {
    let whole = u64::MAX;
    let shapes = [
        (1, 1, whole),
        (9, 2, whole),
        (1, 8, whole),
        (343, 3, whole),
        (255, 4, whole),
        (60, 5, whole),
        (65, 12, whole),
        (1024, 16, whole),
        (54, 33, whole),
        (20, 258, whole),
        (20, 1028, whole),
        (40_000, 8, whole),
        (20_001, 1, whole),
        (3000, 6, 16_384),
        (3001, 8, 16_384),
    ];
    let mut out = Vec::new();
    for (rows, channels, limit) in shapes {
        for (kind, dtype) in KINDS.into_iter().flat_map(|kind| DTYPES.map(|dtype| (kind, dtype))) {
            let adapter = Pretend { limit, kind };
            let what = format!("{rows}x{channels} {kind:?}{}", bound_at_once(limit));
            let forward = move |ctx: &Context| check_forward(ctx, rows, channels, adapter, dtype);
            out.push(Case::new("prelu", "forward", what.clone(), forward).stored(dtype));
            let backward = move |ctx: &Context| check_backward(ctx, rows, channels, adapter, dtype);
            out.push(Case::new("prelu", "backward", what, backward).stored(dtype));
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
        let (x, a, r) = (numbers(1, 21, 2.0), numbers(2, 3, 1.0), numbers(3, 21, 1.0));
        let (d_x, d_slope) = reference_backward(&x, &a, &r);
        assert_gradient("d_x", &x, &d_x, |x| dot(&reference_forward(x, &a), &r));
        assert_gradient("d_slope", &a, &d_slope, |a| dot(&reference_forward(&x, a), &r));
    }
}
