//! Sum of two tensors, product with a number, adding such a product to a sum, and filling with a number.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers};
use super::rows::{Pretend, alike, bound_at_once, elem, element_parts, expect, stored, vector_width};
use super::specialise;
use crate::error::Result;
use crate::gpu::{Context, Dispatch, Dtype, Recorder, View};

/// Vectors that one workgroup takes: 64 invocations, 4 turns each.
pub(super) const VECTORS_PER_GROUP: usize = 256;

/// Records `entry` over aligned parts of tensors of the same length.
fn record(rec: &mut Recorder<'_>, entry: &'static str, inputs: &[View], number: f32, out: View) {
    let n = out.elements();
    let width = vector_width(n);
    let source = specialise("elementwise", &[elem(width), stored(width, out.dtype)], &[]);
    for (first, count) in element_parts(rec.caps, n, out.dtype) {
        let d = inputs.iter().fold(Dispatch::new("elementwise", entry, source.clone()), |d, v| d.bind(v.slice(first, count)));
        let d = d.bind(out.slice(first, count)).param("n", count / width).param("number", number);
        rec.push(d.items(count / width, VECTORS_PER_GROUP).flops(count as u64));
    }
}

/// `out = a + b`; all of one length and stored alike, `out` apart from both.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths or types differ or a length is zero.
pub fn add(rec: &mut Recorder<'_>, a: View, b: View, out: View) -> Result<()> {
    let n = out.elements();
    expect("add", &[("out", out, n), ("a", a, n), ("b", b, n)])?;
    alike("add", &[("out", out), ("a", a), ("b", b)])?;
    record(rec, "add", &[a, b], 0.0, out);
    Ok(())
}

/// `out = factor · x`; both of one length and stored alike, apart from each other.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths or types differ or a length is zero.
pub fn scale(rec: &mut Recorder<'_>, x: View, factor: f32, out: View) -> Result<()> {
    let n = out.elements();
    expect("scale", &[("out", out, n), ("x", x, n)])?;
    alike("scale", &[("out", out), ("x", x)])?;
    record(rec, "scale", &[x], factor, out);
    Ok(())
}

/// `sum += factor · x`; both of one length and stored alike, apart from each other.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths or types differ or a length is zero.
pub fn accumulate(rec: &mut Recorder<'_>, x: View, factor: f32, sum: View) -> Result<()> {
    let n = sum.elements();
    expect("accumulate", &[("sum", sum, n), ("x", x, n)])?;
    alike("accumulate", &[("sum", sum), ("x", x)])?;
    record(rec, "accumulate", &[x], factor, sum);
    Ok(())
}

/// `out[i] = value` for every element.
///
/// # Errors
/// [`crate::error::Error::Shape`] when `out` is empty.
pub fn fill(rec: &mut Recorder<'_>, value: f32, out: View) -> Result<()> {
    expect("fill", &[("out", out, out.elements())])?;
    record(rec, "fill", &[], value, out);
    Ok(())
}

/// Runs the operation `variant` on `n` elements, binding at most `limit` bytes at once.
fn check(ctx: &Context, variant: &str, n: usize, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let (a, b) = (as_stored(&numbers(1, n, 3.0), dtype), as_stored(&numbers(2, n, 1.0), dtype));
    let mut t = Trial::new(ctx);
    let (va, vb) = (t.tensor(&a, dtype)?, t.tensor(&b, dtype)?);
    let out = if variant == "accumulate" { t.tensor(&b, dtype)? } else { t.empty(n, dtype)? };
    t.run(|rec| {
        Pretend::limit(ctx, limit).record(rec, |rec| match variant {
            "add" => add(rec, va, vb, out),
            "scale" => scale(rec, va, -0.3, out),
            "accumulate" => accumulate(rec, va, -0.3, out),
            _ => fill(rec, 7.25, out),
        })
    })?;
    let (a, b) = (a.iter().map(|&v| f64::from(v)), b.iter().map(|&v| f64::from(v)));
    let want: Vec<f64> = match variant {
        "add" => a.zip(b).map(|(a, b)| a + b).collect(),
        "scale" => a.map(|a| a * f64::from(-0.3f32)).collect(),
        "accumulate" => a.zip(b).map(|(a, b)| b + a * f64::from(-0.3f32)).collect(),
        _ => vec![7.25; n],
    };
    // One rounding, or two and some cancellation.
    compare(&t.values(out)?, &want, allowed(3e-7, dtype))
}

/// What is too large for 16 bits has to become infinite: that is how loss scaling finds out.
fn check_overflow(ctx: &Context) -> Result<Outcome> {
    let mut t = Trial::new(ctx);
    let (x, out) = (t.tensor(&[60_000.0, -60_000.0, 1.0, 32_752.0], Dtype::F16)?, t.empty(4, Dtype::F16)?);
    t.run(|rec| scale(rec, x, 2.0, out))?;
    let (got, want) = (t.values(out)?, [f32::INFINITY, f32::NEG_INFINITY, 2.0, 65_504.0]);
    let failure = (got != want).then(|| format!("{got:?}, expected {want:?}"));
    Ok(Outcome { error: f64::from(u8::from(failure.is_some())), tolerance: 0.0, failure })
}

/// Every operation over awkward lengths, over a folded grid's worth of parts and over one part.
pub fn cases() -> Vec<Case> {
    let mut out = vec![Case::new("elementwise", "scale", "overflow", check_overflow).stored(Dtype::F16)];
    for variant in ["add", "scale", "accumulate", "fill"] {
        for (n, limit) in
            [(1, u64::MAX), (3, u64::MAX), (4, u64::MAX), (1023, u64::MAX), (1024, u64::MAX), (5000, u64::MAX), (5000, 4096), (4099, 4096)]
        {
            for dtype in DTYPES {
                let what = format!("{n}{}", bound_at_once(limit));
                out.push(Case::new("elementwise", variant, what, move |ctx| check(ctx, variant, n, limit, dtype)).stored(dtype));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{BufferId, Caps};

    #[test]
    fn lengths_that_differ_are_refused() {
        let caps = Caps::minimal();
        let mut rec = Recorder::new(&caps);
        let view = |id, n| View::whole(BufferId(id), n);
        assert!(add(&mut rec, view(0, 4), view(1, 5), view(2, 4)).is_err());
        assert!(scale(&mut rec, view(0, 3), 1.0, view(2, 4)).is_err());
        assert!(accumulate(&mut rec, view(0, 3), 1.0, view(2, 4)).is_err());
        assert!(fill(&mut rec, 0.0, view(0, 0)).is_err());
        let half = View::typed(BufferId(2), 4, Dtype::F16);
        assert!(scale(&mut rec, view(0, 4), 1.0, half).unwrap_err().to_string().contains("stored as"));
        assert!(rec.dispatches.is_empty());
    }
}
