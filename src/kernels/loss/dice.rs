//! Soft Dice loss over a whole tensor.

use super::super::check::{Case, Trial, compare, numbers, wide, with_bindings};
use super::super::{flat_parts, specialise, vector};
use super::{per_group, targets};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dispatch, Recorder, View};

fn check(prob: View, target: View, scalar: View) -> Result<usize> {
    let (a, b, c) = (prob.elements(), target.elements(), scalar.elements());
    if a == 0 || a != b || c != 1 {
        return Err(Error::shape("soft Dice", format!("{a} probabilities, {b} targets and {c} losses, expected equal numbers and 1")));
    }
    Ok(a)
}

/// A launch over `len` numbers, and how many elements of the shader's type those are.
fn launch(caps: &Caps, entry: &'static str, len: usize) -> (Dispatch, usize) {
    let quadruples = len.is_multiple_of(4);
    let (elem, block) = vector(quadruples);
    (Dispatch::new("dice", entry, specialise("dice", &[elem, per_group(caps).0], &[block])), if quadruples { len / 4 } else { len })
}

/// Records the partial sums; returns them and their number.
fn partial_sums(rec: &mut Recorder<'_>, prob: View, target: View, n: usize) -> (View, usize) {
    let parts = flat_parts(rec.caps, n);
    let total: usize = parts.iter().map(|&(_, len)| launch(rec.caps, "partial", len).1.div_ceil(per_group(rec.caps).1)).sum();
    let sums = rec.scratch(total * 4);
    let mut place = 0;
    for (first, len) in parts {
        let (d, n) = launch(rec.caps, "partial", len);
        let d = d.bind(prob.slice(first, len)).bind(target.slice(first, len)).bind(sums);
        rec.push(d.param("n", n).param("first", place).items(n, per_group(rec.caps).1).flops(9 * len as u64));
        place += n.div_ceil(per_group(rec.caps).1);
    }
    (sums, total)
}

/// `out[0] = 1 - (2 Σ p g + 1) / (Σ p + Σ g + 1)` over all elements of `prob` p and `target` g,
/// which have the same length.
///
/// # Errors
/// [`Error::Shape`] when the lengths do not fit.
pub fn soft_dice(rec: &mut Recorder<'_>, prob: View, target: View, out: View) -> Result<()> {
    let n = check(prob, target, out)?;
    let (sums, total) = partial_sums(rec, prob, target, n);
    rec.push(launch(rec.caps, "finish", 4).0.bind(sums).bind(out).param("n", total).param("first", 0u32));
    Ok(())
}

/// `d_prob` = `d_out[0]` times the derivative of [`soft_dice`] by `prob`, shaped as `prob`.
///
/// # Errors
/// As [`soft_dice`].
pub fn soft_dice_backward(rec: &mut Recorder<'_>, prob: View, target: View, d_out: View, d_prob: View) -> Result<()> {
    let n = check(prob, target, d_out)?;
    check(d_prob, target, d_out)?;
    let (sums, total) = partial_sums(rec, prob, target, n);
    let whole = rec.scratch(4);
    rec.push(launch(rec.caps, "gather", 4).0.bind(sums).bind(whole).param("n", total).param("first", 0u32));
    for (first, len) in flat_parts(rec.caps, n) {
        let (d, n) = launch(rec.caps, "backward", len);
        let d = d.bind(target.slice(first, len)).bind(whole).bind(d_out).bind(d_prob.slice(first, len));
        rec.push(d.param("n", n).param("first", 0u32).items(n, per_group(rec.caps).1).flops(3 * len as u64));
    }
    Ok(())
}

/// [`soft_dice`] in f64.
pub fn reference_soft_dice(prob: &[f64], target: &[f64]) -> f64 {
    let common: f64 = prob.iter().zip(target).map(|(p, g)| p * g).sum();
    let size: f64 = prob.iter().chain(target).sum();
    1.0 - (2.0 * common + 1.0) / (size + 1.0)
}

/// [`soft_dice_backward`] in f64.
pub fn reference_soft_dice_backward(prob: &[f64], target: &[f64], d_out: f64) -> Vec<f64> {
    let common: f64 = prob.iter().zip(target).map(|(p, g)| p * g).sum();
    let size: f64 = prob.iter().chain(target).sum();
    target.iter().map(|g| -d_out * (2.0 * g * (size + 1.0) - (2.0 * common + 1.0)) / (size + 1.0).powi(2)).collect()
}

/// Masks and predictions of them: `spread` 0 is perfect, 1 has nothing to do with the mask.
fn masks(n: usize, spread: f32) -> (Vec<f32>, Vec<f32>) {
    let mask: Vec<f32> = numbers(50, n, 1.0).iter().map(|&v| f32::from(u8::from(v > 0.4))).collect();
    let prob = mask.iter().zip(targets(51, n)).map(|(&g, u)| g + spread * (u - g)).collect();
    (prob, mask)
}

fn pair(n: usize, spread: f32, binding: u64) -> [Case; 2] {
    let what = format!("{n} spread {spread} in bindings of {binding} bytes");
    let forward = Case::new("dice", "finish", what.clone(), move |ctx| {
        let (p, g) = masks(n, spread);
        let mut t = Trial::new(ctx);
        let (prob, target, out) = (t.input(&p)?, t.input(&g)?, t.output(1)?);
        t.run(|rec| with_bindings(rec, binding, |rec| soft_dice(rec, prob, target, out)))?;
        compare(&t.read(out)?, &[reference_soft_dice(&wide(&p), &wide(&g))], 2e-6)
    });
    let backward = Case::new("dice", "backward", what, move |ctx| {
        let (p, g) = masks(n, spread);
        let mut t = Trial::new(ctx);
        let (prob, target, d_out, d_prob) = (t.input(&p)?, t.input(&g)?, t.input(&[-0.7f32])?, t.output(n)?);
        t.run(|rec| with_bindings(rec, binding, |rec| soft_dice_backward(rec, prob, target, d_out, d_prob)))?;
        compare(&t.read(d_prob)?, &reference_soft_dice_backward(&wide(&p), &wide(&g), f64::from(-0.7f32)), 2e-6)
    });
    [forward, backward]
}

/// Good and bad predictions, awkward lengths, slices.
pub(super) fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for (n, binding) in [(1, 1 << 20), (3, 1 << 20), (8, 1 << 20), (4095, 1 << 20), (4100, 1 << 20), (20_001, 8192), (200_000, 1 << 20)] {
        out.extend(pair(n, 1.0, binding));
        out.extend(pair(n, 1e-4, binding));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference_error;
    use super::*;

    #[test]
    fn reference_of_soft_dice_is_its_derivative() {
        let (p, g) = masks(40, 0.8);
        let (p, g) = (wide(&p), wide(&g));
        let d = reference_soft_dice_backward(&p, &g, -0.7);
        let error = difference_error(&p, &[-0.7], &d, |p| vec![reference_soft_dice(p, &g)]);
        assert!(error < 1e-8, "{error}");
    }

    #[test]
    fn a_perfect_mask_costs_nothing() {
        assert!(reference_soft_dice(&[1.0, 0.0, 1.0], &[1.0, 0.0, 1.0]).abs() < 1e-15);
    }
}
