//! Sum of two tensors, product with a number, adding such a product to a sum, and filling with a number.

use super::check::{Case, Outcome, Trial, compare, numbers};
use super::rows::{Pretend, bound_at_once, elem, element_parts, expect, vector_width};
use super::specialise;
use crate::error::Result;
use crate::gpu::{Context, Dispatch, Recorder, View};

/// Vectors that one workgroup takes: 64 invocations, 4 turns each.
pub(super) const VECTORS_PER_GROUP: usize = 256;

/// Records `entry` over aligned parts of tensors of the same length.
fn record(rec: &mut Recorder<'_>, entry: &'static str, inputs: &[View], number: f32, out: View) {
    let n = out.elements();
    let width = vector_width(n);
    let source = specialise("elementwise", &[elem(width)], &[]);
    for (first, count) in element_parts(rec.caps, n) {
        let d = inputs.iter().fold(Dispatch::new("elementwise", entry, source.clone()), |d, v| d.bind(v.slice(first, count)));
        let d = d.bind(out.slice(first, count)).param("n", count / width).param("number", number);
        rec.push(d.items(count / width, VECTORS_PER_GROUP).flops(count as u64));
    }
}

/// `out = a + b`; all of one length, `out` apart from both.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths differ or are zero.
pub fn add(rec: &mut Recorder<'_>, a: View, b: View, out: View) -> Result<()> {
    let n = out.elements();
    expect("add", &[("out", out, n), ("a", a, n), ("b", b, n)])?;
    record(rec, "add", &[a, b], 0.0, out);
    Ok(())
}

/// `out = factor · x`; both of one length, apart from each other.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths differ or are zero.
pub fn scale(rec: &mut Recorder<'_>, x: View, factor: f32, out: View) -> Result<()> {
    let n = out.elements();
    expect("scale", &[("out", out, n), ("x", x, n)])?;
    record(rec, "scale", &[x], factor, out);
    Ok(())
}

/// `sum += factor · x`; both of one length, apart from each other.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths differ or are zero.
pub fn accumulate(rec: &mut Recorder<'_>, x: View, factor: f32, sum: View) -> Result<()> {
    let n = sum.elements();
    expect("accumulate", &[("sum", sum, n), ("x", x, n)])?;
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
fn check(ctx: &Context, variant: &str, n: usize, limit: u64) -> Result<Outcome> {
    let (a, b) = (numbers(1, n, 3.0), numbers(2, n, 1.0));
    let mut t = Trial::new(ctx);
    let (va, vb) = (t.input(&a)?, t.input(&b)?);
    let out = if variant == "accumulate" { t.input(&b)? } else { t.output(n)? };
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
    // One rounding, or two.
    compare(&t.read(out)?, &want, 1e-7)
}

/// Every operation over awkward lengths, over a folded grid's worth of parts and over one part.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for variant in ["add", "scale", "accumulate", "fill"] {
        for (n, limit) in
            [(1, u64::MAX), (3, u64::MAX), (4, u64::MAX), (1023, u64::MAX), (1024, u64::MAX), (5000, u64::MAX), (5000, 4096), (4099, 4096)]
        {
            out.push(Case::new("elementwise", variant, format!("{n}{}", bound_at_once(limit)), move |ctx| check(ctx, variant, n, limit)));
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
        assert!(rec.dispatches.is_empty());
    }
}
