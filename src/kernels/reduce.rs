//! Sums and means over rows (bias gradients, means of losses, global pooling) and their derivatives.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers};
use super::rows::{KINDS, Pretend, bound_at_once, elem, expect, most_chunks, row_chunks, row_parts, storage, successive, vector_width};
use super::{sample_parts, specialise};
use crate::error::Result;
use crate::gpu::{Caps, Context, Dispatch, Dtype, Recorder, View};

/// Most chunks of one pass: enough workgroups to fill a large GPU, few enough for one to add them up.
const MOST_CHUNKS: usize = 512;
/// Rows that an invocation sums at least, as far as there are any.
const TURNS_SUM: usize = 32;
/// Rows that an invocation writes.
const TURNS_SPREAD: usize = 8;

/// `segments` blocks of `rows` rows.
#[derive(Clone, Copy)]
struct Blocks {
    segments: usize,
    rows: usize,
    channels: usize,
}

impl Blocks {
    #[expect(clippy::too_many_arguments, reason = "private, and all of them differ between its callers")]
    fn dispatch(
        self,
        caps: &Caps,
        entry: &'static str,
        x: View,
        output: View,
        turns: usize,
        most: usize,
        first: usize,
        factor: f32,
    ) -> Dispatch {
        let width = vector_width(self.channels);
        let vectors = self.channels / width;
        let cut = row_chunks(self.rows, vectors, turns, most);
        let types = [elem(width), storage("Source", width, x.dtype), storage("Target", width, output.dtype), successive(caps)];
        Dispatch::new("reduce", entry, specialise("reduce", &types, &[]))
            .bind(x)
            .bind(output)
            .param("segments", self.segments)
            .param("rows", self.rows)
            .param("vectors", vectors)
            .param("chunk", cut.rows)
            .param("chunks", cut.count)
            .param("first", first)
            .param("factor", factor)
            .groups(cut.groups * self.segments)
            .flops((self.segments * self.rows * self.channels) as u64)
    }

    /// Chunks per segment of a sum in at most `most`.
    fn chunks(self, most: usize) -> usize {
        row_chunks(self.rows, self.channels / vector_width(self.channels), TURNS_SUM, most).count
    }
}

/// `out[s, c] = factor · Σ_r x[s, r, c]` for x `[segments, rows, channels]`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when sizes do not fit or are zero, [`crate::error::Error::ExceedsLimit`] when not even one segment
/// can be bound (a single segment is taken in parts).
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub(super) fn segment_sum(
    rec: &mut Recorder<'_>,
    op: &'static str,
    segments: usize,
    rows: usize,
    channels: usize,
    factor: f32,
    x: View,
    out: View,
) -> Result<()> {
    expect(op, &[("x", x, segments * rows * channels), ("out", out, segments * channels)])?;
    // (view, blocks) of each part of the first pass.
    let parts: Vec<(View, Blocks)> = if segments == 1 {
        // Channel counts that are no multiple of 4 are read in vectors all the same where rows
        // can be joined; the second pass sees the joined rows as more rows.
        let join = [1, 2, 4].into_iter().find(|f| (channels * f).is_multiple_of(4)).unwrap_or(1);
        let join = if rows.is_multiple_of(join) && rows > join * TURNS_SUM { join } else { 1 };
        let (rows, channels) = (rows / join, channels * join);
        let blocks = |n| Blocks { segments: 1, rows: n, channels };
        row_parts(rec.caps, op, rows, channels, x.dtype)?
            .into_iter()
            .map(|(first, n)| (x.slice(first * channels, n * channels), blocks(n)))
            .collect()
    } else {
        let sample = rows * channels;
        sample_parts(rec.caps, op, segments, &[sample as u64 * x.dtype.bytes()], sample as u64)?
            .into_iter()
            .map(|(first, n)| (x.slice(first * sample, n * sample), Blocks { segments: n, rows, channels }))
            .collect()
    };
    let most = (most_chunks(rec.caps, MOST_CHUNKS) / segments).max(1);
    let partial_rows: usize = parts.iter().map(|(_, b)| b.segments * b.chunks(most)).sum();
    let joined = parts[0].1.channels / channels;
    let whole = partial_rows * joined == segments;
    let partials = if whole { out } else { rec.scratch(partial_rows * joined * channels) };
    let mut first = 0;
    for (view, blocks) in &parts {
        rec.push(blocks.dispatch(rec.caps, "sum", *view, partials, TURNS_SUM, most, first, if whole { factor } else { 1.0 }));
        first += blocks.segments * blocks.chunks(most);
    }
    if !whole {
        let blocks = Blocks { segments, rows: partial_rows * joined / segments, channels };
        rec.push(blocks.dispatch(rec.caps, "sum", partials, out, TURNS_SUM, 1, 0, factor));
    }
    Ok(())
}

/// `out[s, r, c] = factor · x[s, c]` for out `[segments, rows, channels]`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when sizes do not fit or are zero, [`crate::error::Error::ExceedsLimit`] when not even one segment can be bound.
#[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
pub(super) fn segment_spread(
    rec: &mut Recorder<'_>,
    op: &'static str,
    segments: usize,
    rows: usize,
    channels: usize,
    factor: f32,
    x: View,
    out: View,
) -> Result<()> {
    let sample = rows * channels;
    expect(op, &[("out", out, segments * sample), ("x", x, segments * channels)])?;
    for (first, n) in sample_parts(rec.caps, op, segments, &[sample as u64 * out.dtype.bytes()], sample as u64)? {
        let blocks = Blocks { segments: n, rows, channels };
        rec.push(blocks.dispatch(rec.caps, "spread", x, out.slice(first * sample, n * sample), TURNS_SPREAD, usize::MAX, first, factor));
    }
    Ok(())
}

/// `out[c] = Σ_r x[r, c]` for x `[rows, channels]`: the gradient of a bias.
///
/// # Errors
/// [`crate::error::Error::Shape`] when sizes do not fit or are zero, [`crate::error::Error::ExceedsLimit`] when not even 64 rows can be bound.
pub fn channel_sum(rec: &mut Recorder<'_>, rows: usize, channels: usize, x: View, out: View) -> Result<()> {
    segment_sum(rec, "channel_sum", 1, rows, channels, 1.0, x, out)
}

/// `out[0] = Σ x / n` for x `[n]`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when `out` has not one element or `x` has none.
pub fn mean(rec: &mut Recorder<'_>, x: View, out: View) -> Result<()> {
    let n = x.elements();
    segment_sum(rec, "mean", 1, n, 1, 1.0 / n.max(1) as f32, x, out)
}

/// `d_x[i] = d_out[0] / n` for `d_x [n]`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when sizes do not fit or are zero.
pub fn mean_backward(rec: &mut Recorder<'_>, n: usize, d_out: View, d_x: View) -> Result<()> {
    segment_spread(rec, "mean", 1, n, 1, 1.0 / n.max(1) as f32, d_out, d_x)
}

/// `factor · Σ_r x[s, r, c]` in f64.
pub fn reference_segment_sum(x: &[f64], segments: usize, rows: usize, channels: usize, factor: f64) -> Vec<f64> {
    let mut out = vec![0.0; segments * channels];
    for s in 0..segments {
        for r in 0..rows {
            for c in 0..channels {
                out[s * channels + c] += x[(s * rows + r) * channels + c] * factor;
            }
        }
    }
    out
}

fn check_sum(ctx: &Context, [segments, rows, channels]: [usize; 3], adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    let x: Vec<f32> = numbers(1, segments * rows * channels, 1.0).iter().map(|v| v + 0.1).collect();
    let x = as_stored(&x, dtype);
    let mut t = Trial::new(ctx);
    let (input, out) = (t.tensor(&x, dtype)?, t.output(segments * channels)?);
    t.run(|rec| {
        adapter.record(rec, |rec| match (segments, channels) {
            (1, 1) => mean(rec, input, out),
            (1, _) => channel_sum(rec, rows, channels, input, out),
            _ => segment_sum(rec, "check", segments, rows, channels, 0.5, input, out),
        })
    })?;
    let factor = match (segments, channels) {
        (1, 1) => 1.0 / rows as f64,
        (1, _) => 1.0,
        _ => 0.5,
    };
    let x: Vec<f64> = x.into_iter().map(f64::from).collect();
    // Partial sums of a few dozen terms, added up in trees.
    compare(&t.read(out)?, &reference_segment_sum(&x, segments, rows, channels, factor), 3e-6)
}

fn check_spread(ctx: &Context, [segments, rows, channels]: [usize; 3], adapter: Pretend, dtype: Dtype) -> Result<Outcome> {
    // Results of about 1: in 16 bits there is little below 6e-5.
    let d = numbers(1, segments * channels, rows as f32);
    let mut t = Trial::new(ctx);
    let (d_out, d_x) = (t.input(&d)?, t.empty(segments * rows * channels, dtype)?);
    t.run(|rec| {
        adapter.record(rec, |rec| match (segments, channels) {
            (1, 1) => mean_backward(rec, rows, d_out, d_x),
            _ => segment_spread(rec, "check", segments, rows, channels, 1.0 / rows as f32, d_out, d_x),
        })
    })?;
    let want: Vec<f64> =
        (0..segments * rows * channels).map(|i| f64::from(d[i / (rows * channels) * channels + i % channels]) / rows as f64).collect();
    compare(&t.values(d_x)?, &want, allowed(2e-7, dtype))
}

/// One segment and several, awkward channels and rows, joined rows, chunks, blocks and parts.
pub fn cases() -> Vec<Case> {
    let whole = u64::MAX;
    let shapes = [
        ([1, 1, 1], whole),
        ([1, 7, 1], whole),
        ([1, 16, 1], whole),
        ([1, 1000, 1], whole),
        ([1, 1001, 1], whole),
        ([1, 200_000, 1], whole),
        ([1, 4096, 2], whole),
        ([1, 4097, 2], whole),
        ([1, 30_000, 3], whole),
        ([1, 129, 5], whole),
        ([1, 700, 6], whole),
        ([1, 40_000, 8], whole),
        ([1, 343, 12], whole),
        ([1, 1000, 33], whole),
        ([1, 33, 1030], whole),
        ([1, 5000, 4], 16_384),
        ([1, 5000, 3], 16_384),
        ([1, 3001, 5], 16_384),
        ([3, 1, 4], whole),
        ([2, 512, 16], whole),
        ([3, 5000, 3], whole),
        ([2, 20_000, 8], whole),
        ([2, 9, 1030], whole),
        ([130, 65, 1], 20_000),
        ([7, 60, 12], 10_000),
    ];
    let mut out = Vec::new();
    for (shape, limit) in shapes {
        for (kind, dtype) in KINDS.into_iter().flat_map(|kind| DTYPES.map(|dtype| (kind, dtype))) {
            let adapter = Pretend { limit, kind };
            let what = format!("{shape:?} {kind:?}{}", bound_at_once(limit));
            let sum = move |ctx: &Context| check_sum(ctx, shape, adapter, dtype);
            out.push(Case::new("reduce", "sum", what.clone(), sum).stored(dtype));
            if limit == whole || shape[0] > 1 {
                let spread = move |ctx: &Context| check_spread(ctx, shape, adapter, dtype);
                out.push(Case::new("reduce", "spread", what, spread).stored(dtype));
            }
        }
    }
    out
}
