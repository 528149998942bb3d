//! Losses: elementwise ones, cross-entropy of class scores, soft Dice; forward and backward.
//!
//! Elementwise losses and cross-entropy give one number per sample or row, so that the mean over
//! a batch and a weighted mean over batches are sums of what is stored; soft Dice is one number
//! over everything.

pub mod class_dice;
mod cross_entropy;
mod dice;
pub mod head;

pub use cross_entropy::{correct, cross_entropy, cross_entropy_backward, reference_cross_entropy, reference_cross_entropy_backward};
pub use dice::{reference_soft_dice, reference_soft_dice_backward, soft_dice, soft_dice_backward};

use super::check::{Case, Trial, compare, numbers, wide, with_bindings};
use super::rows::{successive, turns};
use super::{Const, batch_parts, specialise, vector};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dispatch, Recorder, View};

/// An elementwise loss, averaged over each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pointwise {
    /// (x - y)².
    Mse,
    /// |x - y|, with slope 0 at x = y.
    Mae,
    /// Binary cross-entropy of the logit x with the probability y: max(x, 0) - x y + ln(1 + exp(-|x|)).
    BceLogits,
    /// Logistic loss of the logit x, weighted: |t| ln(1 + exp(-x sign t)) for a signed weight t, positive where the answer is yes,
    /// negative where it is no, 0 where it is unknown.
    Logistic,
}

/// The header line of these kernels, and how many elements of the shader's type one workgroup handles.
fn per_group(caps: &Caps) -> ((&'static str, Const), usize) {
    let (header, turns) = turns(caps);
    (header, 64 * turns)
}

/// How a sample is worked on: elements of the shader's type and workgroups.
fn sample(op: &'static str, batch: usize, pred: View, goal: View, per_sample: View) -> Result<(usize, bool, usize)> {
    let n = pred.elements();
    if batch == 0 || n == 0 || !n.is_multiple_of(batch) || goal.elements() != n || per_sample.elements() != batch {
        let (b, c) = (goal.elements(), per_sample.elements());
        let what = format!("{n} predictions, {b} targets and {c} losses do not make a batch of {batch}");
        return Err(Error::shape(op, what));
    }
    let per = n / batch;
    let quadruples = per.is_multiple_of(4);
    Ok((per, quadruples, if quadruples { per / 4 } else { per }))
}

fn launch(caps: &Caps, kind: Pointwise, entry: &'static str, batch: usize, per: usize, first: usize) -> Dispatch {
    let quadruples = per.is_multiple_of(4);
    let n = if quadruples { per / 4 } else { per };
    let (elem, block) = vector(quadruples);
    let (turns, group) = per_group(caps);
    let parts = n.div_ceil(group);
    let d =
        Dispatch::new("loss", entry, specialise("loss", &[elem, turns, successive(caps), ("KIND", Const::U32(kind as usize))], &[block]));
    let d = d.param("batch", batch).param("sample", n).param("parts", parts).param("first", first);
    d.param("inverse", (1.0 / per as f64) as f32).groups(batch * parts).flops((4 * batch * per) as u64)
}

/// `out[b]` = mean of the loss over sample b; `pred` and `target` are `[batch, ...]`, `out` is `[batch]`.
///
/// # Errors
/// [`Error::Shape`] when the views do not make a batch, [`Error::ExceedsLimit`] when a sample
/// does not fit a binding.
pub fn pointwise(rec: &mut Recorder<'_>, kind: Pointwise, batch: usize, pred: View, target: View, out: View) -> Result<()> {
    let (per, _, n) = sample("loss", batch, pred, target, out)?;
    let parts = n.div_ceil(per_group(rec.caps).1);
    let sums = rec.scratch(batch * parts);
    for (first, count) in batch_parts(rec.caps, "loss", batch, &[per], 4 * per as u64)? {
        let d = launch(rec.caps, kind, "partial", count, per, first).bind(pred.slice(first * per, count * per));
        rec.push(d.bind(target.slice(first * per, count * per)).bind(sums));
    }
    rec.push(launch(rec.caps, kind, "finish", batch, per, 0).bind(sums).bind(out).groups(batch).flops((batch * parts) as u64));
    Ok(())
}

/// `d_pred` = `d_out[b]` times the derivative of [`pointwise`] by `pred`, shaped as `pred`.
///
/// # Errors
/// As [`pointwise`].
pub fn pointwise_backward(
    rec: &mut Recorder<'_>,
    kind: Pointwise,
    batch: usize,
    pred: View,
    target: View,
    d_out: View,
    d_pred: View,
) -> Result<()> {
    let (per, ..) = sample("loss", batch, pred, target, d_out)?;
    if d_pred.elements() != pred.elements() {
        let (a, b) = (d_pred.elements(), pred.elements());
        return Err(Error::shape("loss", format!("the gradient has {a} elements, the prediction {b}; they must agree")));
    }
    for (first, count) in batch_parts(rec.caps, "loss", batch, &[per], 4 * per as u64)? {
        let part = |v: View| v.slice(first * per, count * per);
        let d = launch(rec.caps, kind, "backward", count, per, first);
        rec.push(d.bind(part(pred)).bind(part(target)).bind(d_out).bind(part(d_pred)));
    }
    Ok(())
}

/// [`pointwise`] in f64.
pub fn reference_pointwise(kind: Pointwise, batch: usize, pred: &[f64], target: &[f64]) -> Vec<f64> {
    let per = pred.len() / batch;
    let value = |(&x, &y): (&f64, &f64)| match kind {
        Pointwise::Mse => (x - y).powi(2),
        Pointwise::Mae => (x - y).abs(),
        Pointwise::BceLogits => -(y * -(-x).exp().ln_1p() + (1.0 - y) * -x.exp().ln_1p()),
        Pointwise::Logistic if y == 0.0 => 0.0,
        Pointwise::Logistic => y.abs() * (-x * y.signum()).exp().ln_1p(),
    };
    pred.chunks(per).zip(target.chunks(per)).map(|(p, t)| p.iter().zip(t).map(value).sum::<f64>() / per as f64).collect()
}

/// [`pointwise_backward`] in f64.
pub fn reference_pointwise_backward(kind: Pointwise, batch: usize, pred: &[f64], target: &[f64], d_out: &[f64]) -> Vec<f64> {
    let per = pred.len() / batch;
    let slope = |x: f64, y: f64| match kind {
        Pointwise::Mse => 2.0 * (x - y),
        Pointwise::Mae if x == y => 0.0,
        Pointwise::Mae => (x - y).signum(),
        Pointwise::BceLogits => 1.0 / (1.0 + (-x).exp()) - y,
        Pointwise::Logistic if y == 0.0 => 0.0,
        Pointwise::Logistic => -y / (1.0 + (x * y.signum()).exp()),
    };
    (0..pred.len()).map(|i| d_out[i / per] * slope(pred[i], target[i]) / per as f64).collect()
}

/// Targets in `[0, 1)`, as probabilities and voxel values are.
pub(super) fn targets(seed: u32, n: usize) -> Vec<f32> {
    numbers(seed, n, 0.5).iter().map(|x| x + 0.5).collect()
}

/// Targets of a loss; signed weights, some of them 0, for the logistic one.
fn goals(kind: Pointwise, seed: u32, n: usize) -> Vec<f32> {
    let mut out = targets(seed, n);
    if kind == Pointwise::Logistic {
        out.iter_mut().enumerate().for_each(|(i, v)| *v = if i % 5 == 3 { 0.0 } else { 4.0 * *v - 2.0 });
    }
    out
}

/// Predictions of a batch, every seventh equal to its target.
fn predictions(kind: Pointwise, target: &[f32]) -> Vec<f32> {
    let scale = if matches!(kind, Pointwise::BceLogits | Pointwise::Logistic) { 30.0 } else { 1.5 };
    let mut x = numbers(31, target.len(), scale);
    for i in (0..x.len()).step_by(7) {
        x[i] = target[i];
    }
    x
}

fn forward_case(kind: Pointwise, batch: usize, per: usize, binding: u64) -> Case {
    Case::new("loss", "finish", format!("{kind:?} {batch} x {per} in bindings of {binding} bytes"), move |ctx| {
        let y = goals(kind, 30, batch * per);
        let x = predictions(kind, &y);
        let mut t = Trial::new(ctx);
        let (pred, target, out) = (t.input(&x)?, t.input(&y)?, t.output(batch)?);
        t.run(|rec| with_bindings(rec, binding, |rec| pointwise(rec, kind, batch, pred, target, out)))?;
        compare(&t.read(out)?, &reference_pointwise(kind, batch, &wide(&x), &wide(&y)), 2e-6)
    })
}

fn backward_case(kind: Pointwise, batch: usize, per: usize, binding: u64) -> Case {
    Case::new("loss", "backward", format!("{kind:?} {batch} x {per} in bindings of {binding} bytes"), move |ctx| {
        let y = goals(kind, 30, batch * per);
        let (x, r) = (predictions(kind, &y), numbers(32, batch, 1.0));
        let mut t = Trial::new(ctx);
        let (pred, target, d_out, d_pred) = (t.input(&x)?, t.input(&y)?, t.input(&r)?, t.output(batch * per)?);
        t.run(|rec| with_bindings(rec, binding, |rec| pointwise_backward(rec, kind, batch, pred, target, d_out, d_pred)))?;
        compare(&t.read(d_pred)?, &reference_pointwise_backward(kind, batch, &wide(&x), &wide(&y), &wide(&r)), 2e-6)
    })
}

/// Logits far out on either side, where the textbook form overflows or loses all digits.
fn extreme_logits(kind: Pointwise) -> Case {
    Case::new("loss", "finish", format!("{kind:?} far out"), move |ctx| {
        let x = [-200.0f32, -20.0, -1e-3, 0.0, 1e-3, 20.0, 200.0, 1e6, -1e6, 17.0, -17.0, 90.0];
        let y = [0.0f32, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0];
        let n = x.len();
        let goal = if kind == Pointwise::Logistic { y.map(|y| 2.0 * y - 1.0) } else { y };
        let mut t = Trial::new(ctx);
        let (pred, target, out) = (t.input(&x)?, t.input(&goal)?, t.output(n)?);
        t.run(|rec| pointwise(rec, kind, n, pred, target, out))?;
        let got: Vec<f32> = t.read(out)?;
        let want: Vec<f64> = x
            .iter()
            .zip(&y)
            .map(|(&x, &y)| {
                let (x, y) = (f64::from(x), f64::from(y));
                x.max(0.0) - x * y + (-x.abs()).exp().ln_1p()
            })
            .collect();
        // Relative to each value alone: right answers have losses of 1e-8, far below the others'.
        let ratio: Vec<f32> = got.iter().zip(&want).map(|(&g, &w)| if w < 1e-37 { 1.0 + g } else { (f64::from(g) / w) as f32 }).collect();
        compare(&ratio, &vec![1.0; n], 5e-6)
    })
}

/// Every loss, forward and backward, on awkward shapes and across slices of the batch.
pub fn cases() -> Vec<Case> {
    let mut out = vec![extreme_logits(Pointwise::BceLogits), extreme_logits(Pointwise::Logistic)];
    for kind in [Pointwise::Mse, Pointwise::Mae, Pointwise::BceLogits, Pointwise::Logistic] {
        for (batch, per, binding) in [
            (1, 1, 1 << 20),
            (3, 5, 1 << 20),
            (2, 12, 1 << 20),
            (2, 4100, 1 << 20),
            (3, 1027, 1 << 20),
            (5, 64, 512),
            (1, 70_000, 1 << 20),
            (130, 3, 1024),
        ] {
            out.push(forward_case(kind, batch, per, binding));
            out.push(backward_case(kind, batch, per, binding));
        }
    }
    out.extend(class_dice::cases());
    out.extend(cross_entropy::cases());
    out.extend(dice::cases());
    out.extend(head::cases());
    out
}

/// Largest difference between `d_input` and central differences of `<f(input), d_output>`,
/// relative to the largest derivative.
#[cfg(test)]
pub(super) fn difference_error(input: &[f64], d_output: &[f64], d_input: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> f64 {
    let dot = |x: &[f64]| f(x).iter().zip(d_output).map(|(y, r)| y * r).sum::<f64>();
    let h = 1e-5;
    let largest = d_input.iter().fold(1e-300, |m: f64, d| m.max(d.abs()));
    let mut worst: f64 = 0.0;
    for i in 0..input.len() {
        let mut x = input.to_vec();
        x[i] += h;
        let up = dot(&x);
        x[i] = input[i] - h;
        let slope = (up - dot(&x)) / (2.0 * h);
        worst = worst.max((slope - d_input[i]).abs() / largest);
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_elementwise_losses_are_derivatives() {
        for kind in [Pointwise::Mse, Pointwise::Mae, Pointwise::BceLogits, Pointwise::Logistic] {
            let (x, y, r) = (wide(&numbers(1, 30, 3.0)), wide(&goals(kind, 2, 30)), wide(&numbers(3, 3, 1.0)));
            let d = reference_pointwise_backward(kind, 3, &x, &y, &r);
            let error = difference_error(&x, &r, &d, |x| reference_pointwise(kind, 3, x, &y));
            assert!(error < 1e-8, "{kind:?}: {error}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let caps = Caps::minimal();
        let mut rec = Recorder::new(&caps);
        let view = |n| View::whole(crate::gpu::BufferId(0), n);
        assert!(pointwise(&mut rec, Pointwise::Mse, 3, view(8), view(8), view(3)).is_err());
        assert!(pointwise(&mut rec, Pointwise::Mse, 2, view(8), view(6), view(2)).is_err());
        assert!(pointwise_backward(&mut rec, Pointwise::Mae, 2, view(8), view(8), view(2), view(7)).is_err());
        assert!(rec.dispatches.is_empty());
    }
}
