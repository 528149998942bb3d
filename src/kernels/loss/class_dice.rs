//! Soft Dice loss of each class, averaged over classes.

use super::super::check::{Case, Trial, compare, wide, with_bindings};
use super::super::rows::successive;
use super::super::{batch_parts, classes, specialise};
use super::{per_group, targets};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dispatch, Recorder, View};

/// Rows and classes, and the first class that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geom {
    /// Rows: voxels of the batch.
    pub rows: usize,
    /// Classes.
    pub classes: usize,
    /// First class that counts: 1 leaves out the background.
    pub first: usize,
}

impl Geom {
    fn check(&self, prob: View, labels: View, scalar: View) -> Result<()> {
        let (a, b, c) = (prob.elements(), labels.elements(), scalar.elements());
        if self.rows == 0 || self.first >= self.classes || a != self.rows * self.classes || b != self.rows || c != 1 {
            let what = format!("{a} probabilities, {b} labels and {c} losses do not make {self:?}");
            return Err(Error::shape("class Dice", what));
        }
        Ok(())
    }
}

fn launch(caps: &Caps, g: &Geom, entry: &'static str, chunks: usize, chunk: usize) -> Dispatch {
    let source = specialise("class_dice", &[per_group(caps).0, successive(caps)], &[]);
    let d = Dispatch::new("class_dice", entry, source).param("rows", g.rows).param("classes", g.classes);
    d.param("first", g.first).param("chunks", chunks).param("chunk", chunk)
}

/// Records the partial sums of every chunk of rows and class; returns them and the number of chunks.
fn partial_sums(rec: &mut Recorder<'_>, g: &Geom, prob: View, labels: View) -> Result<(View, usize)> {
    let group = per_group(rec.caps).1;
    let parts = batch_parts(rec.caps, "class Dice", g.rows, &[g.classes, 1], 9 * g.classes as u64)?;
    let chunks: usize = parts.iter().map(|p| p.1.div_ceil(group)).sum();
    let sums = rec.scratch(chunks * g.classes * 4);
    let mut chunk = 0;
    for (first, n) in parts {
        let d = launch(rec.caps, &Geom { rows: n, ..*g }, "partial", chunks, chunk);
        let d = d.bind(prob.slice(first * g.classes, n * g.classes)).bind(labels.slice(first, n)).bind(sums);
        rec.push(d.groups(n.div_ceil(group) * g.classes).flops(9 * (n * g.classes) as u64));
        chunk += n.div_ceil(group);
    }
    Ok((sums, chunks))
}

/// `out[0]` = mean over the classes c from `first` on of `1 - (2 Σ p g + 1) / (Σ p + Σ g + 1)`, with p the probability of c in
/// `prob` `[rows, classes]`, g = 1 where `labels` (u32, `[rows]`) is c, and sums over all rows.
///
/// # Errors
/// [`Error::Shape`] when the views do not fit, [`Error::ExceedsLimit`] when a row cannot be bound.
pub fn class_dice(rec: &mut Recorder<'_>, g: &Geom, prob: View, labels: View, out: View) -> Result<()> {
    g.check(prob, labels, out)?;
    let (sums, chunks) = partial_sums(rec, g, prob, labels)?;
    rec.push(launch(rec.caps, g, "finish", chunks, 0).bind(sums).bind(out));
    Ok(())
}

/// `d_prob` = `d_out[0]` times the derivative of [`class_dice`] by `prob`; 0 for classes that do not count.
///
/// # Errors
/// As [`class_dice`].
pub fn class_dice_backward(rec: &mut Recorder<'_>, g: &Geom, prob: View, labels: View, d_out: View, d_prob: View) -> Result<()> {
    g.check(prob, labels, d_out)?;
    g.check(d_prob, labels, d_out)?;
    let (sums, chunks) = partial_sums(rec, g, prob, labels)?;
    let totals = rec.scratch(g.classes * 4);
    rec.push(launch(rec.caps, g, "gather", chunks, 0).bind(sums).bind(totals));
    for (first, n) in batch_parts(rec.caps, "class Dice", g.rows, &[g.classes, 1], 9 * g.classes as u64)? {
        let d = launch(rec.caps, &Geom { rows: n, ..*g }, "backward", chunks, 0).bind(labels.slice(first, n)).bind(totals);
        let d = d.bind(d_out).bind(d_prob.slice(first * g.classes, n * g.classes));
        rec.push(d.items(n, 64).flops(6 * (n * g.classes) as u64));
    }
    Ok(())
}

/// Overlap and size of every class.
fn sums(classes: usize, prob: &[f64], labels: &[u32]) -> Vec<[f64; 2]> {
    let mut out = vec![[0.0; 2]; classes];
    for (p, &l) in prob.chunks(classes).zip(labels) {
        for (c, o) in out.iter_mut().enumerate() {
            let g = f64::from(u8::from(l as usize == c));
            o[0] += p[c] * g;
            o[1] += p[c] + g;
        }
    }
    out
}

/// [`class_dice`] in f64.
pub fn reference_class_dice(classes: usize, first: usize, prob: &[f64], labels: &[u32]) -> f64 {
    let losses: Vec<f64> = sums(classes, prob, labels)[first..].iter().map(|[i, s]| 1.0 - (2.0 * i + 1.0) / (s + 1.0)).collect();
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// [`class_dice_backward`] in f64.
pub fn reference_class_dice_backward(classes: usize, first: usize, prob: &[f64], labels: &[u32], d_out: f64) -> Vec<f64> {
    let sums = sums(classes, prob, labels);
    let factor = d_out / (classes - first) as f64;
    let slope = |l: u32, c: usize| {
        let ([i, s], g) = (sums[c], f64::from(u8::from(l as usize == c)));
        if c < first { 0.0 } else { -factor * (2.0 * g * (s + 1.0) - (2.0 * i + 1.0)) / (s + 1.0).powi(2) }
    };
    labels.iter().flat_map(|&l| (0..classes).map(move |c| slope(l, c))).collect()
}

fn data(g: Geom, spread: f32) -> (Vec<f32>, Vec<u32>) {
    let labels = classes::labels(g.rows, g.classes);
    let noise = targets(52, g.rows * g.classes);
    let prob = (0..g.rows * g.classes).map(|i| {
        let truth = f32::from(u8::from(labels[i / g.classes] as usize == i % g.classes));
        truth + spread * (noise[i] / g.classes as f32 - truth)
    });
    (prob.collect(), labels)
}

fn pair(g: Geom, spread: f32, binding: u64) -> [Case; 2] {
    let what = format!("{g:?} spread {spread} in bindings of {binding} bytes");
    let forward = Case::new("class_dice", "finish", what.clone(), move |ctx| {
        let (p, l) = data(g, spread);
        let mut t = Trial::new(ctx);
        let (prob, labels, out) = (t.input(&p)?, t.input(&l)?, t.output(1)?);
        t.run(|rec| with_bindings(rec, binding, |rec| class_dice(rec, &g, prob, labels, out)))?;
        compare(&t.read(out)?, &[reference_class_dice(g.classes, g.first, &wide(&p), &l)], 4e-6)
    });
    let backward = Case::new("class_dice", "backward", what, move |ctx| {
        let (p, l) = data(g, spread);
        let mut t = Trial::new(ctx);
        let (prob, labels, d_out, d_prob) = (t.input(&p)?, t.input(&l)?, t.input(&[-0.7f32])?, t.output(p.len())?);
        t.run(|rec| with_bindings(rec, binding, |rec| class_dice_backward(rec, &g, prob, labels, d_out, d_prob)))?;
        compare(&t.read(d_prob)?, &reference_class_dice_backward(g.classes, g.first, &wide(&p), &l, f64::from(-0.7f32)), 4e-6)
    });
    [forward, backward]
}

/// Few and many rows and classes, with and without background, slices.
pub(super) fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for (rows, classes, first) in [(1, 1, 0), (5, 2, 1), (130, 3, 1), (8200, 4, 1), (70, 66, 1), (20_001, 2, 0)] {
        let g = Geom { rows, classes, first };
        out.extend(pair(g, 1.0, 1 << 20));
        out.extend(pair(g, 1e-3, 1 << 20));
    }
    out.extend(pair(Geom { rows: 1500, classes: 12, first: 1 }, 0.8, 8192));
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference_error;
    use super::*;

    #[test]
    fn reference_of_class_dice_is_its_derivative() {
        let g = Geom { rows: 20, classes: 3, first: 1 };
        let (p, l) = data(g, 0.8);
        let p = wide(&p);
        let d = reference_class_dice_backward(3, 1, &p, &l, -0.7);
        let error = difference_error(&p, &[-0.7], &d, |p| vec![reference_class_dice(3, 1, p, &l)]);
        assert!(error < 1e-8, "{error}");
    }

    #[test]
    fn one_class_is_the_soft_dice_of_a_mask() {
        let (prob, mask) = ([0.2, 0.9, 0.4], [1.0, 0.0, 1.0]);
        let both: Vec<f64> = prob.iter().flat_map(|p| [1.0 - p, *p]).collect();
        let labels = mask.map(|m| m as u32);
        assert!((reference_class_dice(2, 1, &both, &labels) - super::super::reference_soft_dice(&prob, &mask)).abs() < 1e-12);
    }
}
