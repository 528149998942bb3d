//! The last layer of a network that restores, in one pass: 1×1×1 convolution to one channel, sigmoid, elementwise
//! loss, and in training the gradients of logits, weight and bias.

use super::{Pointwise, reference_pointwise, reference_pointwise_backward, targets};
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Dtype, Recorder, View};
use crate::kernels::batch_norm::NORM;
use crate::kernels::check::{Case, DTYPES, Outcome, Trial, as_stored, compare, numbers, wide, with_bindings, worst};
use crate::kernels::rows::{elem, expect, loaded, reference_loaded, stored, vector_width};
use crate::kernels::{Const, sample_parts, specialise, vector};

/// Invocations of a workgroup, and voxels of a tile.
const LANES: usize = 64;
/// Tiles of a workgroup.
const TURNS: usize = 8;

/// Shape of the layer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geom {
    /// Samples.
    pub batch: usize,
    /// Voxels of a sample.
    pub voxels: usize,
    /// Channels.
    pub channels: usize,
}

impl Geom {
    /// Whether a workgroup has an invocation for every channel vector.
    pub fn fits(&self) -> bool {
        self.channels / vector_width(self.channels) <= LANES
    }
}

/// Which of the optional operands and results there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The input is `max((x - mean) · factor + shift, 0)` of what is given.
    pub norm: bool,
    /// The sigmoid is kept.
    pub restored: bool,
    /// The gradients are computed.
    pub gradient: bool,
}

impl Parts {
    /// Storage buffers that the kernel binds at once.
    pub fn buffers(self) -> u32 {
        5 + u32::from(self.norm) + u32::from(self.restored) + 2 * u32::from(self.gradient)
    }
}

/// Operands and results of the gradient.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    /// Gradient of each sample's loss `[N]`.
    pub d_loss: View,
    /// Gradient of the logits `[N, voxels]`.
    pub d_logit: View,
    /// Gradient of the weight `[C]`.
    pub d_weight: View,
    /// Gradient of the bias `[1]`.
    pub d_bias: View,
}

/// `loss[n]` = mean over the voxels of sample n of the loss between `restored` = sigmoid(`x` · `weight` + `bias`) and
/// `target`, for `x` `[N, voxels, C]`, with the ReLU of a batch norm's result in its place where `norm` is given.
///
/// # Errors
/// [`Error::Shape`] when a view does not fit `g`, `g` has too many channels or the loss is not one of the sigmoid's value;
/// [`Error::ExceedsLimit`] when a sample does not fit a binding.
pub fn forward(
    rec: &mut Recorder<'_>,
    g: &Geom,
    kind: Pointwise,
    x: View,
    norm: Option<View>,
    weight: View,
    bias: View,
    target: View,
    loss: View,
    restored: Option<View>,
    gradient: Option<Gradient>,
) -> Result<()> {
    let (n, c) = (g.batch * g.voxels, g.channels);
    let mut operands = vec![("x", x, n * c), ("weight", weight, c), ("bias", bias, 1), ("target", target, n), ("loss", loss, g.batch)];
    operands.extend(norm.map(|v| ("norm", v, NORM * c)));
    operands.extend(restored.map(|v| ("restored", v, n)));
    if let Some(d) = gradient {
        operands.extend([("d_loss", d.d_loss, g.batch), ("d_logit", d.d_logit, n), ("d_weight", d.d_weight, c), ("d_bias", d.d_bias, 1)]);
    }
    expect("head", &operands)?;
    if !g.fits() || kind == Pointwise::BceLogits {
        return Err(Error::shape("head", format!("{kind:?} of {c} channels is not computed in one pass")));
    }
    let width = vector_width(c);
    let header = [elem(width), stored(width, x.dtype), ("VECTORS", Const::U32(c / width)), ("KIND", Const::U32(kind as usize))];
    let first_of = if width == 4 { "fn first_of(v: vec4<f32>) -> f32 { return v.x; }" } else { "fn first_of(v: f32) -> f32 { return v; }" };
    let keep = if restored.is_some() { "fn keep(i: u32, r: f32) { restored[i] = r; }" } else { "fn keep(i: u32, r: f32) {}" };
    let blocks = [vector(width == 4).1, ("first_of", first_of), loaded(norm.is_some()), ("keep", keep)];
    let source = specialise("head", &header, &blocks);
    let parts = g.voxels.div_ceil(LANES * TURNS);
    let partials = rec.scratch(g.batch * parts * (c + 2 * width));
    let launch = |entry, samples: usize, first: usize| {
        let d = Dispatch::new("head", entry, source.clone()).param("batch", samples).param("voxels", g.voxels).param("parts", parts);
        d.param("turns", TURNS).param("first", first).param("inverse", (1.0 / g.voxels as f64) as f32)
    };
    let flops = (if gradient.is_some() { 4 } else { 2 } * g.voxels * c) as u64;
    let sample = [(g.voxels * c) as u64 * x.dtype.bytes(), g.voxels as u64 * 4];
    for (first, count) in sample_parts(rec.caps, "head", g.batch, &sample, flops)? {
        let part = |v: View| v.slice(first * g.voxels, count * g.voxels);
        let d = launch(if gradient.is_some() { "train" } else { "evaluate" }, count, first);
        let mut views = vec![x.slice(first * g.voxels * c, count * g.voxels * c)];
        views.extend(norm);
        views.extend([weight, bias, part(target)]);
        views.extend(gradient.map(|d| d.d_loss));
        views.extend(restored.map(part));
        views.extend(gradient.map(|d| part(d.d_logit)));
        let d = views.into_iter().fold(d, Dispatch::bind).bind(partials);
        rec.push(d.groups(count * parts).flops(flops * count as u64));
    }
    rec.push(launch("finish_loss", g.batch, 0).bind(partials).bind(loss).groups(g.batch).flops((g.batch * parts) as u64));
    if let Some(d) = gradient {
        let groups = c / width + 1;
        let finish = launch("finish_gradient", g.batch, 0).bind(partials).bind(d.d_weight).bind(d.d_bias);
        rec.push(finish.groups(groups).flops((g.batch * parts * c) as u64));
    }
    Ok(())
}

/// What [`forward`] computes, in f64.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Loss per sample.
    pub loss: Vec<f64>,
    /// Sigmoid of the logits.
    pub restored: Vec<f64>,
    /// Gradient of the logits.
    pub d_logit: Vec<f64>,
    /// Gradient of the weight.
    pub d_weight: Vec<f64>,
    /// Gradient of the bias.
    pub d_bias: f64,
}

/// [`forward`] in f64.
pub fn reference(g: &Geom, kind: Pointwise, x: &[f64], weight: &[f64], bias: f64, target: &[f64], d_loss: &[f64]) -> Reference {
    let logit = |v: &[f64]| v.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>() + bias;
    let restored: Vec<f64> = x.chunks(g.channels).map(|v| 1.0 / (1.0 + (-logit(v)).exp())).collect();
    let d_restored = reference_pointwise_backward(kind, g.batch, &restored, target, d_loss);
    let d_logit: Vec<f64> = d_restored.iter().zip(&restored).map(|(d, r)| d * r * (1.0 - r)).collect();
    let mut d_weight = vec![0.0; g.channels];
    for (i, v) in x.iter().enumerate() {
        d_weight[i % g.channels] += v * d_logit[i / g.channels];
    }
    let loss = reference_pointwise(kind, g.batch, &restored, target);
    Reference { loss, d_bias: d_logit.iter().sum(), restored, d_logit, d_weight }
}

fn check(ctx: &crate::gpu::Context, g: &Geom, kind: Pointwise, parts: Parts, binding: u64, dtype: Dtype) -> Result<Outcome> {
    let (n, c) = (g.batch * g.voxels, g.channels);
    let (x, goal, r) = (as_stored(&numbers(1, n * c, 1.0), dtype), targets(2, n), numbers(3, g.batch, 1.0));
    let (weight, bias, norm) = (numbers(4, c, 0.7), numbers(5, 1, 0.5), numbers(6, NORM * c, 1.0));
    let mut t = Trial::new(ctx);
    let (vx, vw, vb, vt) = (t.tensor(&x, dtype)?, t.input(&weight)?, t.input(&bias)?, t.input(&goal)?);
    let vn = if parts.norm { Some(t.input(&norm)?) } else { None };
    let (loss, restored) = (t.output(g.batch)?, if parts.restored { Some(t.output(n)?) } else { None });
    let gradient = match parts.gradient {
        true => Some(Gradient { d_loss: t.input(&r)?, d_logit: t.output(n)?, d_weight: t.output(c)?, d_bias: t.output(1)? }),
        false => None,
    };
    t.run(|rec| {
        with_bindings(rec, binding, |rec| {
            forward(rec, g, kind, vx, vn, vw, vb, vt, loss, restored, gradient)?;
            // Folded grids have surplus workgroups.
            rec.dispatches.iter_mut().for_each(|d| d.groups += 3);
            Ok(())
        })
    })?;
    let x = if parts.norm { reference_loaded(&wide(&x), &wide(&norm), c) } else { wide(&x) };
    let want = reference(g, kind, &x, &wide(&weight), f64::from(bias[0]), &wide(&goal), &wide(&r));
    let mut outcomes = vec![("loss", compare(&t.read(loss)?, &want.loss, 3e-6)?)];
    if let Some(v) = restored {
        outcomes.push(("restored", compare(&t.read(v)?, &want.restored, 3e-6)?));
    }
    if let Some(d) = gradient {
        outcomes.push(("d_logit", compare(&t.read(d.d_logit)?, &want.d_logit, 1e-5)?));
        outcomes.push(("d_weight", compare(&t.read(d.d_weight)?, &want.d_weight, 1e-5)?));
        // One sum that may cancel: judged against the size of its terms.
        let size = want.d_logit.iter().map(|d| d.abs()).sum::<f64>();
        let got: Vec<f32> = t.read(d.d_bias)?;
        outcomes.push(("d_bias", compare(&[(f64::from(got[0]) / size + 1.0) as f32], &[want.d_bias / size + 1.0], 1e-6)?));
    }
    worst(outcomes)
}

/// Every combination of parts over awkward shapes and across slices of the batch.
pub(super) fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    let whole = 1 << 20;
    for (batch, voxels, channels, binding) in [
        (1, 1, 1, whole),
        (2, 65, 3, whole),
        (1, 513, 4, whole),
        (3, 64, 20, whole),
        (2, 1100, 64, whole),
        (1, 70, 61, whole),
        (6, 64, 8, 4096),
    ] {
        let g = Geom { batch, voxels, channels };
        for bits in 0..8 {
            let parts = Parts { norm: bits & 1 != 0, restored: bits & 2 != 0, gradient: bits & 4 != 0 };
            let kind = if bits == 5 { Pointwise::Mae } else { Pointwise::Mse };
            let what = format!("{batch}x{voxels}x{channels} {kind:?} {parts:?} in bindings of {binding} bytes");
            for dtype in DTYPES {
                let check = move |ctx: &crate::gpu::Context| check(ctx, &g, kind, parts, binding, dtype);
                out.push(Case::new("head", if parts.gradient { "train" } else { "evaluate" }, what.clone(), check).stored(dtype));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference_error;
    use super::*;

    #[test]
    fn the_reference_gradients_are_derivatives() {
        let g = Geom { batch: 2, voxels: 5, channels: 3 };
        let (x, w, b, t, r) = (numbers(1, 30, 1.0), numbers(2, 3, 1.0), numbers(3, 1, 1.0), targets(4, 10), numbers(5, 2, 1.0));
        let (x, w, b, t, r) = (wide(&x), wide(&w), wide(&b), wide(&t), wide(&r));
        for kind in [Pointwise::Mse, Pointwise::Mae] {
            let want = reference(&g, kind, &x, &w, b[0], &t, &r);
            let loss = |w: &[f64], b: f64| reference(&g, kind, &x, w, b, &t, &r).loss;
            assert!(difference_error(&w, &r, &want.d_weight, |w| loss(w, b[0])) < 1e-7, "{kind:?}");
            assert!(difference_error(&b, &r, &[want.d_bias], |b| loss(&w, b[0])) < 1e-7, "{kind:?}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let caps = crate::gpu::Caps::minimal();
        let mut rec = Recorder::new(&caps);
        let view = |n| View::whole(crate::gpu::BufferId(0), n);
        let g = Geom { batch: 2, voxels: 3, channels: 4 };
        let mut record =
            |g: &Geom, kind, x, goal| forward(&mut rec, g, kind, view(x), None, view(g.channels), view(1), view(goal), view(2), None, None);
        assert!(record(&g, Pointwise::Mse, 23, 6).is_err());
        assert!(record(&g, Pointwise::Mse, 24, 5).is_err());
        assert!(record(&g, Pointwise::BceLogits, 24, 6).is_err());
        assert!(record(&Geom { channels: 260, ..g }, Pointwise::Mse, 1560, 6).is_err());
        assert!(record(&g, Pointwise::Mae, 24, 6).is_ok());
    }
}
