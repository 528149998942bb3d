//! Rows of class scores: softmax, its derivative, the largest score, and numbers weighted by the class of their row.

use super::check::{Case, Trial, compare, numbers, scores, wide, with_bindings};
use super::{batch_parts, specialise};
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Recorder, View};
use crate::rng::{Key, Purpose};

fn check(op: &'static str, rows: usize, classes: usize, full: &[View], per_row: &[View]) -> Result<()> {
    let fits =
        rows > 0 && classes > 0 && full.iter().all(|v| v.elements() == rows * classes) && per_row.iter().all(|v| v.elements() == rows);
    if fits {
        return Ok(());
    }
    let found: Vec<usize> = full.iter().chain(per_row).map(|v| v.elements()).collect();
    Err(Error::shape(op, format!("operands of {found:?} elements are no {rows} rows of {classes} classes")))
}

fn launch(entry: &'static str, rows: usize, classes: usize) -> Dispatch {
    let d = Dispatch::new("classes", entry, specialise("classes", &[], &[]));
    d.param("rows", rows).param("classes", classes).items(rows, 64).flops(4 * (rows * classes) as u64)
}

/// `output` = softmax of each row of `input`, both `[rows, classes]`, finite for finite scores.
///
/// # Errors
/// [`Error::Shape`] when the views do not fit, [`Error::ExceedsLimit`] when a row cannot be bound.
pub fn softmax(rec: &mut Recorder<'_>, rows: usize, classes: usize, input: View, output: View) -> Result<()> {
    check("softmax", rows, classes, &[input, output], &[])?;
    for (first, n) in batch_parts(rec.caps, "softmax", rows, &[classes], 4 * classes as u64)? {
        let part = |v: View| v.slice(first * classes, n * classes);
        rec.push(launch("softmax", n, classes).bind(part(input)).bind(part(output)));
    }
    Ok(())
}

/// `d_input` from the softmax itself and the gradient by it, all `[rows, classes]`.
///
/// # Errors
/// As [`softmax`].
pub fn softmax_backward(rec: &mut Recorder<'_>, rows: usize, classes: usize, output: View, d_output: View, d_input: View) -> Result<()> {
    check("softmax", rows, classes, &[output, d_output, d_input], &[])?;
    for (first, n) in batch_parts(rec.caps, "softmax", rows, &[classes], 4 * classes as u64)? {
        let part = |v: View| v.slice(first * classes, n * classes);
        rec.push(launch("backward", n, classes).bind(part(output)).bind(part(d_output)).bind(part(d_input)));
    }
    Ok(())
}

/// `output[r]` (u32) = the first largest of row r of `input` `[rows, classes]`. NaN is never taken; a row of nothing else gives 0.
///
/// # Errors
/// As [`softmax`].
pub fn arg_max(rec: &mut Recorder<'_>, rows: usize, classes: usize, input: View, output: View) -> Result<()> {
    check("arg_max", rows, classes, &[input], &[output])?;
    for (first, n) in batch_parts(rec.caps, "arg_max", rows, &[classes, 1], classes as u64)? {
        rec.push(launch("arg_max", n, classes).bind(input.slice(first * classes, n * classes)).bind(output.slice(first, n)));
    }
    Ok(())
}

/// `output[r] = input[r] · weights[labels[r]]`; `labels` are u32 `[rows]`, `weights` `[classes]`. A label that is not below `classes`
/// gives 0.
///
/// # Errors
/// As [`softmax`].
pub fn weigh(rec: &mut Recorder<'_>, rows: usize, classes: usize, input: View, labels: View, weights: View, output: View) -> Result<()> {
    check("weigh", rows, classes, &[], &[input, labels, output])?;
    if weights.elements() != classes {
        return Err(Error::shape("weigh", format!("{} weights for {classes} classes", weights.elements())));
    }
    for (first, n) in batch_parts(rec.caps, "weigh", rows, &[1, 1], 1)? {
        let part = |v: View| v.slice(first, n);
        rec.push(launch("weigh", n, classes).bind(part(input)).bind(part(labels)).bind(part(output)).bind(weights).flops(n as u64));
    }
    Ok(())
}

/// [`softmax`] in f64.
pub fn reference_softmax(classes: usize, input: &[f64]) -> Vec<f64> {
    let row = |z: &[f64]| {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|v| (v - top).exp()).sum();
        z.iter().map(|v| (v - top).exp() / sum).collect::<Vec<_>>()
    };
    input.chunks(classes).flat_map(row).collect()
}

/// [`softmax_backward`] in f64.
pub fn reference_softmax_backward(classes: usize, output: &[f64], d_output: &[f64]) -> Vec<f64> {
    let row = |(y, d): (&[f64], &[f64])| {
        let sum: f64 = y.iter().zip(d).map(|(y, d)| y * d).sum();
        y.iter().zip(d).map(|(y, d)| y * (d - sum)).collect::<Vec<_>>()
    };
    output.chunks(classes).zip(d_output.chunks(classes)).flat_map(row).collect()
}

/// [`arg_max`] in f64.
pub fn reference_arg_max(classes: usize, input: &[f64]) -> Vec<u32> {
    let row = |z: &[f64]| {
        let best = z.iter().enumerate().filter(|(_, v)| !v.is_nan()).fold(None, |b: Option<(usize, f64)>, (c, &v)| match b {
            Some((_, top)) if v <= top => b,
            _ => Some((c, v)),
        });
        u32::try_from(best.map_or(0, |b| b.0)).unwrap_or(0)
    };
    input.chunks(classes).map(row).collect()
}

/// [`weigh`] in f64.
pub fn reference_weigh(input: &[f64], labels: &[u32], weights: &[f64]) -> Vec<f64> {
    input.iter().zip(labels).map(|(v, &l)| v * weights.get(l as usize).copied().unwrap_or(0.0)).collect()
}

/// Labels of which every ninth is no class.
pub(super) fn labels(rows: usize, classes: usize) -> Vec<u32> {
    let mut rng = Key::new(0xC1A55).purpose(Purpose::Check, 0).rng();
    (0..rows).map(|r| if r % 9 == 8 { classes as u32 } else { rng.int(0, classes as i64 - 1) as u32 }).collect()
}

fn on(rows: usize, classes: usize, binding: u64) -> [Case; 4] {
    let what = format!("{rows} x {classes} in bindings of {binding} bytes");
    [
        Case::new("classes", "softmax", what.clone(), move |ctx| {
            let z = scores(60, rows, classes);
            let mut t = Trial::new(ctx);
            let (input, output) = (t.input(&z)?, t.output(rows * classes)?);
            t.run(|rec| with_bindings(rec, binding, |rec| softmax(rec, rows, classes, input, output)))?;
            compare(&t.read(output)?, &reference_softmax(classes, &wide(&z)), 4e-6)
        }),
        Case::new("classes", "backward", what.clone(), move |ctx| {
            let y: Vec<f32> = reference_softmax(classes, &wide(&numbers(61, rows * classes, 3.0))).iter().map(|&v| v as f32).collect();
            let d = numbers(62, rows * classes, 1.0);
            let mut t = Trial::new(ctx);
            let (output, d_output, d_input) = (t.input(&y)?, t.input(&d)?, t.output(rows * classes)?);
            t.run(|rec| with_bindings(rec, binding, |rec| softmax_backward(rec, rows, classes, output, d_output, d_input)))?;
            compare(&t.read(d_input)?, &reference_softmax_backward(classes, &wide(&y), &wide(&d)), 4e-6)
        }),
        Case::new("classes", "arg_max", what.clone(), move |ctx| {
            let mut z = scores(60, rows, classes);
            z[0] = f32::NAN;
            if let Some(row) = z.chunks_mut(classes).nth(1) {
                row.fill(f32::NEG_INFINITY);
                row[classes - 1] = -3.0;
            }
            let mut t = Trial::new(ctx);
            let (input, output) = (t.input(&z)?, t.output(rows)?);
            t.run(|rec| with_bindings(rec, binding, |rec| arg_max(rec, rows, classes, input, output)))?;
            let got: Vec<u32> = t.read(output)?;
            let want: Vec<f64> = reference_arg_max(classes, &wide(&z)).into_iter().map(f64::from).collect();
            compare(&got.iter().map(|&v| v as f32).collect::<Vec<_>>(), &want, 0.0)
        }),
        Case::new("classes", "weigh", what, move |ctx| {
            let (x, l, w) = (numbers(63, rows, 2.0), labels(rows, classes), numbers(64, classes, 3.0));
            let mut t = Trial::new(ctx);
            let (input, label, weights, output) = (t.input(&x)?, t.input(&l)?, t.input(&w)?, t.output(rows)?);
            t.run(|rec| with_bindings(rec, binding, |rec| weigh(rec, rows, classes, input, label, weights, output)))?;
            compare(&t.read(output)?, &reference_weigh(&wide(&x), &l, &wide(&w)), 1e-6)
        }),
    ]
}

/// One class, two, many; few rows, many rows, slices.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for (rows, classes) in [(1, 1), (3, 2), (65, 3), (64, 4), (7, 42), (4099, 5), (130, 1)] {
        out.extend(on(rows, classes, 1 << 20));
    }
    out.extend(on(400, 12, 8192));
    out.extend(on(640, 3, 2048));
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference::{assert_gradient, dot, numbers};
    use super::*;

    #[test]
    fn the_reference_of_softmax_has_its_derivative() {
        let (x, r) = (numbers(1, 35, 2.0), numbers(2, 35, 1.0));
        let d = reference_softmax_backward(7, &reference_softmax(7, &x), &r);
        assert_gradient("softmax", &x, &d, |x| dot(&reference_softmax(7, x), &r));
    }

    #[test]
    fn ties_and_nan_have_their_rule() {
        assert_eq!(reference_arg_max(3, &[1.0, 1.0, 0.0, f64::NAN, -5.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN]), [0, 1, 0]);
    }
}
