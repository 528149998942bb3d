//! Cross-entropy of logits with integer labels, and the count of right answers.

use super::super::check::{Case, Trial, compare, numbers, scores, wide, with_bindings};
use super::super::{Const, batch_parts, specialise, vector};
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Recorder, View};
use crate::rng::{Key, Purpose};

const SCALAR: &str = "
fn max_of(v: f32) -> f32 { return v; }
fn component(base: u32, label: u32) -> f32 { return logits[base + label]; }
fn one_hot(c: u32, label: u32) -> f32 { return select(0.0, 1.0, c == label); }
fn beaten_by(v: f32, c: u32, z: f32, label: u32) -> f32 { return select(0.0, 1.0, v < z || (v == z && c >= label)); }
";
const QUADRUPLE: &str = "
fn max_of(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn component(base: u32, label: u32) -> f32 { return logits[base + label / 4u][label % 4u]; }
fn indices(c: u32) -> vec4<u32> { return vec4<u32>(4u * c) + vec4<u32>(0u, 1u, 2u, 3u); }
fn one_hot(c: u32, label: u32) -> vec4<f32> { return select(vec4<f32>(), vec4<f32>(1.0), indices(c) == vec4<u32>(label)); }
fn beaten_by(v: vec4<f32>, c: u32, z: f32, label: u32) -> f32 {
    let hit = (v < vec4<f32>(z)) | ((v == vec4<f32>(z)) & (indices(c) >= vec4<u32>(label)));
    return sum_of(select(vec4<f32>(), vec4<f32>(1.0), hit));
}
";

fn check(op: &'static str, rows: usize, classes: usize, logits: View, labels: View, per_row: View) -> Result<()> {
    let (a, b, c) = (logits.elements(), labels.elements(), per_row.elements());
    if rows == 0 || classes == 0 || a != rows * classes || b != rows || c != rows {
        let what = format!("{a} logits, {b} labels and {c} results, expected {rows} rows of {classes} classes");
        return Err(Error::shape(op, what));
    }
    Ok(())
}

fn launch(entry: &'static str, rows: usize, classes: usize) -> Dispatch {
    // Many rows fill the device alone and short ones leave a workgroup idle; else a workgroup shares a row.
    let lanes = if rows >= 4096 || classes <= 8 { 1 } else { 64 };
    let quadruples = classes.is_multiple_of(4);
    let (elem, sum) = vector(quadruples);
    let blocks = [sum, ("components", if quadruples { QUADRUPLE } else { SCALAR })];
    let source = specialise("cross_entropy", &[elem, ("LANES", Const::U32(lanes))], &blocks);
    let d = Dispatch::new("cross_entropy", entry, source).param("rows", rows).param("classes", classes);
    let d = d.param("width", if quadruples { classes / 4 } else { classes });
    d.items(rows * lanes, 64).flops(8 * (rows * classes) as u64)
}

/// `(first row, rows)` of each dispatch.
fn row_parts(rec: &Recorder<'_>, rows: usize, classes: usize) -> Result<Vec<(usize, usize)>> {
    batch_parts(rec.caps, "cross-entropy", rows, &[classes, 1], 8 * classes as u64)
}

/// `out[r]` = logsumexp of row r of `logits` minus the logit of its label, finite for finite logits.
///
/// `logits` is `[rows, classes]`, `labels` is `[rows]` of u32, `out` is `[rows]`. A label that is
/// not below `classes` gives NaN.
///
/// # Errors
/// [`Error::Shape`] when the views do not fit, [`Error::ExceedsLimit`] when rows cannot be bound.
pub fn cross_entropy(rec: &mut Recorder<'_>, rows: usize, classes: usize, logits: View, labels: View, out: View) -> Result<()> {
    check("cross-entropy", rows, classes, logits, labels, out)?;
    for (first, n) in row_parts(rec, rows, classes)? {
        let d = launch("forward", n, classes).bind(logits.slice(first * classes, n * classes));
        rec.push(d.bind(labels.slice(first, n)).bind(out.slice(first, n)));
    }
    Ok(())
}

/// `d_logits` = `d_out[r]` · (softmax of row r - one-hot of its label); views as in [`cross_entropy`].
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_backward(
    rec: &mut Recorder<'_>,
    rows: usize,
    classes: usize,
    logits: View,
    labels: View,
    d_out: View,
    d_logits: View,
) -> Result<()> {
    check("cross-entropy", rows, classes, logits, labels, d_out)?;
    check("cross-entropy", rows, classes, d_logits, labels, d_out)?;
    for (first, n) in row_parts(rec, rows, classes)? {
        let d = launch("backward", n, classes).bind(logits.slice(first * classes, n * classes)).bind(labels.slice(first, n));
        rec.push(d.bind(d_out.slice(first, n)).bind(d_logits.slice(first * classes, n * classes)));
    }
    Ok(())
}

/// `out[r]` = 1 when the first largest logit of row r is its label's, else 0 (also for NaN or a
/// label that is not below `classes`); views as in [`cross_entropy`].
///
/// # Errors
/// As [`cross_entropy`].
pub fn correct(rec: &mut Recorder<'_>, rows: usize, classes: usize, logits: View, labels: View, out: View) -> Result<()> {
    check("accuracy", rows, classes, logits, labels, out)?;
    for (first, n) in row_parts(rec, rows, classes)? {
        let d = launch("correct", n, classes).bind(logits.slice(first * classes, n * classes));
        rec.push(d.bind(labels.slice(first, n)).bind(out.slice(first, n)));
    }
    Ok(())
}

/// [`cross_entropy`] in f64.
pub fn reference_cross_entropy(classes: usize, logits: &[f64], labels: &[u32]) -> Vec<f64> {
    let row = |(z, &y): (&[f64], &u32)| {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let skip = z.iter().position(|&v| v == top).unwrap_or(0);
        let rest: f64 = z.iter().enumerate().filter(|&(c, _)| c != skip).map(|(_, v)| (v - top).exp()).sum();
        top - z[y as usize] + rest.ln_1p()
    };
    logits.chunks(classes).zip(labels).map(row).collect()
}

/// [`cross_entropy_backward`] in f64.
pub fn reference_cross_entropy_backward(classes: usize, logits: &[f64], labels: &[u32], d_out: &[f64]) -> Vec<f64> {
    let mut out = Vec::with_capacity(logits.len());
    for ((z, &y), r) in logits.chunks(classes).zip(labels).zip(d_out) {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|v| (v - top).exp()).sum();
        out.extend(z.iter().enumerate().map(|(c, v)| r * ((v - top).exp() / sum - f64::from(c == y as usize))));
    }
    out
}

fn labels(rows: usize, classes: usize) -> Vec<u32> {
    let mut rng = Key::new(0xC0FFEE).purpose(Purpose::Check, 41).rng();
    (0..rows).map(|_| ((rng.unit() * classes as f32) as u32).min(classes as u32 - 1)).collect()
}

fn triple(rows: usize, classes: usize, binding: u64) -> [Case; 3] {
    let what = format!("{rows} x {classes} in bindings of {binding} bytes");
    let forward = Case::new("cross_entropy", "forward", what.clone(), move |ctx| {
        let (z, y) = (scores(40, rows, classes), labels(rows, classes));
        let mut t = Trial::new(ctx);
        let (logits, label, out) = (t.input(&z)?, t.input(&y)?, t.output(rows)?);
        t.run(|rec| with_bindings(rec, binding, |rec| cross_entropy(rec, rows, classes, logits, label, out)))?;
        // Logits near 1000 lose nothing: differences of neighbouring f32 are exact.
        compare(&t.read(out)?, &reference_cross_entropy(classes, &wide(&z), &y), 2e-6)
    });
    let backward = Case::new("cross_entropy", "backward", what.clone(), move |ctx| {
        let (z, y, r) = (scores(40, rows, classes), labels(rows, classes), numbers(42, rows, 1.0));
        let mut t = Trial::new(ctx);
        let (logits, label, d_out, d_logits) = (t.input(&z)?, t.input(&y)?, t.input(&r)?, t.output(rows * classes)?);
        t.run(|rec| with_bindings(rec, binding, |rec| cross_entropy_backward(rec, rows, classes, logits, label, d_out, d_logits)))?;
        compare(&t.read(d_logits)?, &reference_cross_entropy_backward(classes, &wide(&z), &y, &wide(&r)), 4e-6)
    });
    let correct = Case::new("cross_entropy", "correct", what, move |ctx| {
        let (mut z, mut y) = (scores(40, rows, classes), labels(rows, classes));
        // Every other label is the first largest; some of the rest tie with a smaller or larger class.
        let mut want = Vec::new();
        for (r, (row, label)) in z.chunks_mut(classes).zip(&mut y).enumerate() {
            if r % 11 == 0 {
                row[classes - 1] = row[0];
            }
            let best = (0..classes).fold(0, |best, c| if row[c] > row[best] { c } else { best });
            if r % 2 == 0 {
                *label = best as u32;
            }
            want.push(f64::from(*label == best as u32));
        }
        let mut t = Trial::new(ctx);
        let (logits, label, out) = (t.input(&z)?, t.input(&y)?, t.output(rows)?);
        t.run(|rec| with_bindings(rec, binding, |rec| correct(rec, rows, classes, logits, label, out)))?;
        compare(&t.read(out)?, &want, 0.0)
    });
    [forward, backward, correct]
}

/// A confident row's tiny loss, to full relative accuracy; a label outside the classes and a NaN, in plain sight.
fn special(classes: usize) -> Case {
    Case::new("cross_entropy", "forward", format!("confident, mislabelled and spoilt rows of {classes}"), move |ctx| {
        let mut z = vec![0.0f32; 4 * classes];
        z[0] = 25.0;
        z[classes] = 3.0;
        z[3 * classes + 1] = f32::NAN;
        let y = [0u32, classes as u32, 1, 0];
        let r = [1.0f32; 4];
        let mut t = Trial::new(ctx);
        let (logits, label, d_out) = (t.input(&z)?, t.input(&y)?, t.input(&r)?);
        let (out, hits, d_logits) = (t.output(4)?, t.output(4)?, t.output(4 * classes)?);
        t.run(|rec| {
            cross_entropy(rec, 4, classes, logits, label, out)?;
            correct(rec, 4, classes, logits, label, hits)?;
            cross_entropy_backward(rec, 4, classes, logits, label, d_out, d_logits)
        })?;
        let (loss, hits, slopes): (Vec<f32>, Vec<f32>, Vec<f32>) = (t.read(out)?, t.read(hits)?, t.read(d_logits)?);
        let tiny = ((classes - 1) as f64 * (-25.0f64).exp()).ln_1p();
        let got = [
            (f64::from(loss[0]) / tiny) as f32,
            f32::from(u8::from(loss[1].is_nan() && slopes[classes..2 * classes].iter().all(|v| v.is_nan()))),
            loss[2],
            f32::from(u8::from(loss[3].is_nan())),
            hits.iter().sum(),
        ];
        compare(&got, &[1.0, 1.0, (classes as f64).ln(), 1.0, 1.0], 5e-6)
    })
}

/// Rows shared by a workgroup and rows of one invocation, quadruples and scalars, slices, extremes.
pub(super) fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    let shapes =
        [(1, 1), (3, 2), (5, 3), (70, 4), (64, 8), (7, 44), (3, 33), (2, 100), (3, 1000), (2, 4099), (4100, 12), (4097, 9), (9000, 2)];
    for (rows, classes) in shapes {
        out.extend(triple(rows, classes, 1 << 20));
    }
    out.extend(triple(300, 12, 8192));
    out.extend(triple(200, 3, 1024));
    out.extend([3, 4, 44, 45].map(special));
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference_error;
    use super::*;

    #[test]
    fn reference_of_cross_entropy_is_its_derivative() {
        let (z, y, r) = (wide(&numbers(1, 35, 3.0)), labels(5, 7), wide(&numbers(3, 5, 1.0)));
        let d = reference_cross_entropy_backward(7, &z, &y, &r);
        let error = difference_error(&z, &r, &d, |z| reference_cross_entropy(7, z, &y));
        assert!(error < 1e-8, "{error}");
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let loss = reference_cross_entropy(44, &[0.5; 44], &[17]);
        assert!((loss[0] - 44f64.ln()).abs() < 1e-12);
    }
}
