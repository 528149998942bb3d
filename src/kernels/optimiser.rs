//! Adam, AdamW and SGD steps in place, and the gradient norm that clipping needs.
//!
//! Parameters, gradients and moments are flat tensors of equal length, each in a buffer of its
//! own or at disjoint ranges of buffers that hold only what is written (the gradient is read, so
//! it may not share a buffer with the parameters or moments). What changes from step to step
//! comes from a buffer of [`SCALARS`] numbers, so that a recorded step can be replayed.

use super::check::{Case, Trial, compare, numbers, with_bindings};
use super::rows::{successive, turns};
use super::{Const, flat_parts, specialise, vector};
use crate::config::Train;
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Recorder, View};

/// Length of the buffer of step scalars.
pub const SCALARS: usize = 9;
/// Place of 1 / loss scale among them.
pub const UNSCALE: usize = 8;

/// What stays the same over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Decay of Adam's first moment.
    pub beta1: f32,
    /// Decay of Adam's second moment.
    pub beta2: f32,
    /// Added to the root of Adam's second moment.
    pub epsilon: f32,
    /// Weight decay of AdamW (decoupled) and SGD.
    pub weight_decay: f32,
    /// Momentum of SGD.
    pub momentum: f32,
}

impl Default for Hyper {
    /// β 0.9 and 0.999, ε 1e-8, no weight decay, momentum 0.9.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, momentum: 0.9 }
    }
}

impl From<&Train> for Hyper {
    /// Those of the settings; the rest as by default.
    fn from(t: &Train) -> Self {
        Self { weight_decay: t.weight_decay, momentum: t.momentum, ..Self::default() }
    }
}

/// The scalars of step `t`, counted from 1: learning rate, β1, β2, ε, weight decay, 1 - β1^t,
/// 1 - β2^t, momentum, 1 / loss scale (1 here). The corrections belong to the rounded β that the device sees.
pub fn scalars(learning_rate: f32, hyper: &Hyper, t: u64) -> [f32; SCALARS] {
    let bias = |beta: f32| -(t.max(1) as f64 * f64::from(beta).ln()).exp_m1() as f32;
    let h = hyper;
    [learning_rate, h.beta1, h.beta2, h.epsilon, h.weight_decay, bias(h.beta1), bias(h.beta2), h.momentum, 1.0]
}

fn same_length(op: &'static str, views: &[(&str, View)], scalars: View, scale: View) -> Result<usize> {
    let n = views[0].1.elements();
    if n == 0 || views.iter().any(|v| v.1.elements() != n) {
        let found: Vec<_> = views.iter().map(|(name, v)| format!("{name} {}", v.elements())).collect();
        return Err(Error::shape(op, format!("the tensors hold {} elements, expected equal numbers above 0", found.join(", "))));
    }
    if scalars.elements() != SCALARS || scale.elements() != 1 {
        let (a, b) = (scalars.elements(), scale.elements());
        return Err(Error::shape(op, format!("{a} step scalars and {b} gradient factors, expected {SCALARS} and 1")));
    }
    Ok(n)
}

/// Number of elements of the shader's type in `len`, and the pieces that select the type.
fn units(len: usize) -> (usize, bool) {
    if len.is_multiple_of(4) { (len / 4, true) } else { (len, false) }
}

fn update(entry: &'static str, len: usize, decoupled: bool) -> Dispatch {
    let (n, quadruples) = units(len);
    let source = specialise("optimiser", &[vector(quadruples).0, ("DECOUPLED", Const::Bool(decoupled))], &[]);
    Dispatch::new("optimiser", entry, source).param("n", n).items(n, 256).flops(12 * len as u64)
}

/// One step of Adam: with `g` the gradient times `scale`, `m = β1 m + (1-β1) g`,
/// `v = β2 v + (1-β2) g²`, `p -= lr · (m / (1-β1^t)) / (√(v / (1-β2^t)) + ε)`.
/// With `decoupled`, `p *= 1 - lr · weight_decay` comes first (AdamW); without, weights do not decay.
///
/// `p`, `g`, `m` and `v` have the same length, `scalars` holds [`scalars`], `scale` one number; nothing changes when it is 0.
///
/// # Errors
/// [`Error::Shape`] when the lengths do not fit.
#[expect(clippy::too_many_arguments, reason = "one view for each tensor of the formula")]
pub fn adam(rec: &mut Recorder<'_>, p: View, g: View, m: View, v: View, scalars: View, scale: View, decoupled: bool) -> Result<()> {
    let n = same_length("adam", &[("p", p), ("g", g), ("m", m), ("v", v)], scalars, scale)?;
    for (first, len) in flat_parts(rec.caps, n) {
        let d = update("adam", len, decoupled).bind(g.slice(first, len)).bind(scalars).bind(scale);
        rec.push(d.bind(p.slice(first, len)).bind(m.slice(first, len)).bind(v.slice(first, len)));
    }
    Ok(())
}

/// One step of SGD: with `g` the gradient times `scale` plus `weight_decay · p`,
/// `b = momentum · b + g`, `p -= lr · b`; `b` is zero before the first step.
///
/// `p`, `g` and `momentum_buffer` have the same length, `scalars` holds [`scalars`], `scale` one number; nothing changes
/// when it is 0.
///
/// # Errors
/// [`Error::Shape`] when the lengths do not fit.
pub fn sgd(rec: &mut Recorder<'_>, p: View, g: View, momentum_buffer: View, scalars: View, scale: View) -> Result<()> {
    let n = same_length("sgd", &[("p", p), ("g", g), ("momentum", momentum_buffer)], scalars, scale)?;
    for (first, len) in flat_parts(rec.caps, n) {
        let d = update("sgd", len, false).bind(g.slice(first, len)).bind(scalars).bind(scale);
        rec.push(d.bind(p.slice(first, len)).bind(momentum_buffer.slice(first, len)));
    }
    Ok(())
}

/// `out[0] = √Σ g²`, without overflow or underflow of the squares; NaN and infinity show.
///
/// # Errors
/// [`Error::Shape`] when `g` is empty or `out` is not one element.
pub fn norm(rec: &mut Recorder<'_>, g: View, out: View) -> Result<()> {
    if g.elements() == 0 || out.elements() != 1 {
        let (a, b) = (g.elements(), out.elements());
        return Err(Error::shape("norm", format!("{a} elements in and {b} out, expected at least 1 in and 1 out")));
    }
    let parts = flat_parts(rec.caps, g.elements());
    let ((header, turns), order) = (turns(rec.caps), successive(rec.caps));
    let group = 64 * turns;
    let total: usize = parts.iter().map(|&(_, len)| units(len).0.div_ceil(group)).sum();
    let sums = rec.scratch(total * 4);
    let mut place = 0;
    for (first, len) in parts {
        let (n, quadruples) = units(len);
        let (elem, block) = vector(quadruples);
        let d = Dispatch::new("norm", "partial", specialise("norm", &[elem, header, order], &[block])).bind(g.slice(first, len)).bind(sums);
        rec.push(d.param("n", n).param("first", place).items(n, group).flops(6 * len as u64));
        place += n.div_ceil(group);
    }
    let (elem, block) = vector(true);
    let d = Dispatch::new("norm", "finish", specialise("norm", &[elem, header, order], &[block])).bind(sums).bind(out);
    rec.push(d.param("n", total).param("first", 0u32));
    Ok(())
}

/// `scale[0] = u · min(1, max_norm / (u · norm[0] + 1e-6))`, where u, among the [`scalars`] of the step, is the inverse of the
/// loss scale; u alone when `max_norm` is 0, which means no clipping. It is 0 when `norm` or `loss` is not finite: then
/// [`adam`] and [`sgd`] leave everything as it is. `scale` lies in a buffer of its own.
///
/// # Errors
/// [`Error::Shape`] when a view has not its length or `max_norm` is negative or not finite.
pub fn clip(rec: &mut Recorder<'_>, norm: View, loss: View, scalars: View, max_norm: f32, scale: View) -> Result<()> {
    let fits = [norm, loss, scale].iter().all(|v| v.elements() == 1) && scalars.elements() == SCALARS;
    if !(fits && max_norm >= 0.0 && max_norm.is_finite()) {
        let [a, b, c, d] = [norm, loss, scale, scalars].map(View::elements);
        return Err(Error::shape(
            "clip",
            format!(
                "{a} norms, {b} losses, {c} factors, {d} step scalars and the bound {max_norm}, expected 1, 1, 1, {SCALARS} and a finite bound"
            ),
        ));
    }
    let source = specialise("clip", &[("UNSCALE", Const::U32(UNSCALE))], &[]);
    let d = Dispatch::new("clip", "forward", source).bind(norm).bind(loss).bind(scalars).bind(scale);
    rec.push(d.param("max_norm", max_norm));
    Ok(())
}

/// Which update a reference carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Adam without weight decay.
    Adam,
    /// Adam with decoupled weight decay.
    AdamW,
    /// SGD with momentum.
    Sgd,
}

/// Step `t` of `rule` in f64 on parameters `p` with gradient `g` and the moments `m` and `v`
/// (`m` is the momentum buffer of SGD, which leaves `v` alone).
#[expect(clippy::too_many_arguments, reason = "one slice for each tensor of the formula")]
pub fn reference_step(rule: Rule, learning_rate: f64, hyper: &Hyper, t: u64, p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64]) {
    let [b1, b2, eps, decay, momentum] = [hyper.beta1, hyper.beta2, hyper.epsilon, hyper.weight_decay, hyper.momentum].map(f64::from);
    for i in 0..p.len() {
        if rule == Rule::Sgd {
            m[i] = momentum * m[i] + g[i] + decay * p[i];
            p[i] -= learning_rate * m[i];
            continue;
        }
        if rule == Rule::AdamW {
            p[i] *= 1.0 - learning_rate * decay;
        }
        m[i] = b1 * m[i] + (1.0 - b1) * g[i];
        v[i] = b2 * v[i] + (1.0 - b2) * g[i] * g[i];
        let (m_hat, v_hat) = (m[i] / (1.0 - b1.powf(t as f64)), v[i] / (1.0 - b2.powf(t as f64)));
        p[i] -= learning_rate * m_hat / (v_hat.sqrt() + eps);
    }
}

/// Norm of `g` in f64.
pub fn reference_norm(g: &[f32]) -> f64 {
    g.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Five steps of a rule, each with its own gradient, compared after the last. The moments lie
/// in one buffer, as they do where all of a kind share a flat one.
fn trace(rule: Rule, n: usize, binding: u64) -> Case {
    Case::new("optimiser", "step", format!("{rule:?} {n} in bindings of {binding} bytes"), move |ctx| {
        let hyper = Hyper { weight_decay: 0.02, ..Hyper::default() };
        let (lr, factor) = (0.05f32, 0.75f32);
        let start = numbers(1, n, 1.0);
        let mut t = Trial::new(ctx);
        let far = n.next_multiple_of(64);
        let (p, moments) = (t.input(&start)?, t.input(&vec![0.0f32; far + n])?);
        let (m, v) = (moments.slice(0, n), moments.slice(far, n));
        let scale = t.input(&[factor])?;
        let (mut rp, mut rm, mut rv) = (start.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), vec![0.0; n], vec![0.0; n]);
        for step in 1..=5 {
            // Gradients over many orders of magnitude: Adam divides by their size.
            let gradient: Vec<f32> = numbers(10 + step, n, 1.0).iter().enumerate().map(|(i, x)| x * 10f32.powi(i as i32 % 7 - 4)).collect();
            let (g, s) = (t.input(&gradient)?, t.input(&scalars(lr, &hyper, u64::from(step)))?);
            t.run(|rec| {
                with_bindings(rec, binding, |rec| match rule {
                    Rule::Sgd => sgd(rec, p, g, m, s, scale),
                    _ => adam(rec, p, g, m, v, s, scale, rule == Rule::AdamW),
                })
            })?;
            let wide: Vec<f64> = gradient.iter().map(|&x| f64::from(x) * f64::from(factor)).collect();
            reference_step(rule, f64::from(lr), &hyper, u64::from(step), &mut rp, &wide, &mut rm, &mut rv);
        }
        let got: Vec<f32> = t.read(moments)?;
        if got[n..far].iter().any(|&gap| gap != 0.0) {
            return Err(Error::Gpu("a step wrote between the moments".into()));
        }
        let outcome = compare(&got[..n], &rm, 1e-6)?;
        if !outcome.passed() {
            return Ok(outcome);
        }
        let outcome = compare(&got[far..], &rv, 1e-6)?;
        if !outcome.passed() {
            return Ok(outcome);
        }
        compare(&t.read(p)?, &rp, 1e-6)
    })
}

fn norm_case(what: &'static str, g: Vec<f32>, binding: u64) -> Case {
    Case::new("norm", "finish", format!("{what} {} in bindings of {binding} bytes", g.len()), move |ctx| {
        let mut t = Trial::new(ctx);
        let (input, out) = (t.input(&g)?, t.output(1)?);
        t.run(|rec| with_bindings(rec, binding, |rec| norm(rec, input, out)))?;
        compare(&t.read(out)?, &[reference_norm(&g)], 1e-6)
    })
}

fn clip_case(value: f32, loss: f32, max_norm: f32, loss_scale: f32) -> Case {
    let what = format!("norm {value} loss {loss} bound {max_norm} loss scale {loss_scale}");
    Case::new("clip", "forward", what, move |ctx| {
        let mut step = scalars(0.1, &Hyper::default(), 1);
        step[UNSCALE] = 1.0 / loss_scale;
        let mut t = Trial::new(ctx);
        let (norm, loss_view, s, scale) = (t.input(&[value * loss_scale])?, t.input(&[loss])?, t.input(&step)?, t.output(1)?);
        t.run(|rec| clip(rec, norm, loss_view, s, max_norm, scale))?;
        let want = match () {
            () if !(value.is_finite() && loss.is_finite()) => 0.0,
            () if max_norm == 0.0 => 1.0,
            () => (f64::from(max_norm) / (f64::from(value) + 1e-6)).min(1.0),
        };
        compare(&t.read(scale)?, &[want / f64::from(loss_scale)], 1e-6)
    })
}

/// A gradient that is not finite: the norm shows it, and an update changes neither parameters nor moments.
fn spoilt(what: &'static str, rule: Rule, value: f32) -> Case {
    Case::new("norm", "finish", format!("numbers with {what}, then {rule:?}"), move |ctx| {
        let mut g = numbers(5, 1000, 1.0);
        g[777] = value;
        let (p, m, v) = (numbers(6, 1000, 1.0), numbers(7, 1000, 1.0), vec![0.5f32; 1000]);
        let mut t = Trial::new(ctx);
        let (input, out, scale) = (t.input(&g)?, t.output(1)?, t.output(1)?);
        let (vp, vm, vv, s) = (t.input(&p)?, t.input(&m)?, t.input(&v)?, t.input(&scalars(0.1, &Hyper::default(), 3))?);
        t.run(|rec| {
            norm(rec, input, out)?;
            clip(rec, out, out, s, 1.0, scale)?;
            match rule {
                Rule::Sgd => sgd(rec, vp, input, vm, s, scale),
                _ => adam(rec, vp, input, vm, vv, s, scale, rule == Rule::AdamW),
            }
        })?;
        let (n, factor): (Vec<f32>, Vec<f32>) = (t.read(out)?, t.read(scale)?);
        let kept: [Vec<f32>; 3] = [t.read(vp)?, t.read(vm)?, t.read(vv)?];
        let good = !n[0].is_finite() && n[0].is_nan() == value.is_nan() && factor[0] == 0.0 && kept == [p.clone(), m.clone(), v.clone()];
        compare(&[f32::from(u8::from(good))], &[1.0], 0.0)
    })
}

/// Traces of every rule, norms of all magnitudes, clipping above, below and at the bound.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for rule in [Rule::Adam, Rule::AdamW, Rule::Sgd] {
        for (n, binding) in [(1, 1 << 20), (3, 1 << 20), (4, 1 << 20), (67, 1 << 20), (4096, 1 << 20), (4099, 4096), (2048, 1024)] {
            out.push(trace(rule, n, binding));
        }
    }
    for (n, binding) in [(1, 1 << 20), (3, 1 << 20), (4, 1 << 20), (4095, 1 << 20), (4096, 1 << 20), (20_001, 8192), (300_000, 1 << 20)] {
        out.push(norm_case("numbers", numbers(3, n, 2.0), binding));
    }
    let spread = |scale: fn(usize) -> f32| numbers(4, 1003, 1.0).iter().enumerate().map(|(i, x)| x * scale(i)).collect::<Vec<f32>>();
    out.push(norm_case("zeros", vec![0.0; 70], 1 << 20));
    out.push(norm_case("tiny", spread(|_| 1e-28), 1 << 20));
    out.push(norm_case("huge", spread(|_| 1e30), 1 << 20));
    out.push(norm_case("mixed tiny", spread(|i| [1.0, 1e-25, 1e-12, 1e-16][i % 4]), 1 << 20));
    out.push(norm_case("mixed huge", spread(|i| [1.0, 1e25, 1e12, 1e14][i % 4]), 1 << 20));
    out.push(norm_case("mixed", spread(|i| [1e-25, 1.0, 1e25][i % 3]), 1 << 20));
    for rule in [Rule::Adam, Rule::AdamW, Rule::Sgd] {
        out.push(spoilt("NaN", rule, f32::NAN));
        out.push(spoilt("an infinity", rule, f32::INFINITY));
    }
    for (value, max_norm) in [(0.5, 1.0), (1.0, 1.0), (4.0, 1.0), (4.0, 0.0), (0.0, 2.5), (1e20, 2.5)] {
        out.extend([1.0, 65_536.0].map(|loss_scale| clip_case(value, 0.7, max_norm, loss_scale)));
    }
    for (value, loss) in
        [(f32::NAN, 0.5), (1.0, f32::NAN), (1.0, f32::INFINITY), (f32::INFINITY, 0.5), (1.0, f32::NEG_INFINITY), (2.0, -f32::MAX)]
    {
        out.extend([0.0, 1.0].map(|max_norm| clip_case(value, loss, max_norm, 1.0)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{BufferId, Caps};

    #[test]
    fn bias_corrections_hold_for_the_first_and_for_very_late_steps() {
        let h = Hyper::default();
        let s = scalars(1e-3, &h, 1);
        assert_eq!(s[5], 1.0 - h.beta1);
        assert_eq!(s[6], 1.0 - h.beta2);
        let s = scalars(1e-3, &h, 10_000_000);
        assert_eq!(&s[5..7], &[1.0, 1.0]);
        assert_eq!(scalars(0.5, &h, 3)[0], 0.5);
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        let caps = Caps::minimal();
        let mut rec = Recorder::new(&caps);
        let view = |n| View::whole(BufferId(0), n);
        assert!(adam(&mut rec, view(8), view(8), view(7), view(8), view(SCALARS), view(1), false).is_err());
        assert!(adam(&mut rec, view(8), view(8), view(8), view(8), view(8), view(1), false).is_err());
        assert!(sgd(&mut rec, view(0), view(0), view(0), view(SCALARS), view(1)).is_err());
        assert!(norm(&mut rec, view(3), view(2)).is_err());
        assert!(clip(&mut rec, view(1), view(1), view(SCALARS), f32::NAN, view(1)).is_err());
        assert!(clip(&mut rec, view(1), view(2), view(SCALARS), 1.0, view(1)).is_err());
        assert!(rec.dispatches.is_empty());
    }
}
