//! Nearest and trilinear resampling of `[N, D, H, W, C]` to any size, up or down; both tensors are stored alike.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers};
use super::rows::{Pretend, alike, bound_at_once, elem, expect, stored, vector_width};
use super::{sample_parts, specialise};
use crate::error::{Error, Result};
use crate::gpu::{Context, Dispatch, Dtype, Recorder, View};

/// Shape of a resampling; axes are in the order depth, height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geom {
    /// Samples.
    pub batch: usize,
    /// Size of the input.
    pub input: [usize; 3],
    /// Size of the output.
    pub output: [usize; 3],
    /// Channels.
    pub channels: usize,
}

/// Largest size of an axis, so that the products in the kernel fit 32 bits.
const MOST: usize = 16_384;

impl Geom {
    fn check(&self) -> Result<()> {
        if self.input.iter().chain(&self.output).any(|s| !(1..=MOST).contains(s)) || self.batch == 0 || self.channels == 0 {
            return Err(Error::shape("upsample", format!("{self:?}: every size must be at least 1, those of axes at most {MOST}")));
        }
        Ok(())
    }

    /// Whether the entries for twice the size apply.
    fn doubles(&self) -> bool {
        (0..3).all(|a| self.output[a] == 2 * self.input[a])
    }

    fn in_sample(&self) -> usize {
        self.input.iter().product::<usize>() * self.channels
    }

    fn out_sample(&self) -> usize {
        self.output.iter().product::<usize>() * self.channels
    }
}

/// Records `entry` from `from` to `to` over the parts of a batch; backward, `from` has the output's shape.
fn record(rec: &mut Recorder<'_>, g: &Geom, entry: &'static str, backward: bool, from: View, to: View) -> Result<()> {
    g.check()?;
    let names = if backward { ["d_y", "d_x"] } else { ["x", "y"] };
    let (from_sample, to_sample) = if backward { (g.out_sample(), g.in_sample()) } else { (g.in_sample(), g.out_sample()) };
    expect("upsample", &[(names[0], from, g.batch * from_sample), (names[1], to, g.batch * to_sample)])?;
    let dtype = alike("upsample", &[(names[0], from), (names[1], to)])?;
    let width = vector_width(g.channels);
    let source = specialise("upsample", &[elem(width), stored(width, dtype)], &[]);
    let flops = 16 * g.out_sample() as u64;
    for (n0, n) in sample_parts(rec.caps, "upsample", g.batch, &[from_sample, to_sample].map(|n| n as u64 * dtype.bytes()), flops)? {
        let vectors = n * (if entry == "nearest_forward_2" { from_sample } else { to_sample }) / width;
        rec.push(
            Dispatch::new("upsample", entry, source.clone())
                .bind(from.slice(n0 * from_sample, n * from_sample))
                .bind(to.slice(n0 * to_sample, n * to_sample))
                .param("n", vectors)
                .param("vectors", g.channels / width)
                .param("in_d", g.input[0])
                .param("in_h", g.input[1])
                .param("in_w", g.input[2])
                .param("out_d", g.output[0])
                .param("out_h", g.output[1])
                .param("out_w", g.output[2])
                .items(vectors, 64)
                .flops(flops * n as u64),
        );
    }
    Ok(())
}

/// `y[o] = x[⌊o · input / output⌋]` on each axis, exactly.
///
/// # Errors
/// [`Error::Shape`] when a view does not fit `g`, types differ or a size is zero, [`Error::ExceedsLimit`] when too few samples
/// can be bound.
pub fn nearest_forward(rec: &mut Recorder<'_>, g: &Geom, x: View, y: View) -> Result<()> {
    record(rec, g, if g.doubles() { "nearest_forward_2" } else { "nearest_forward" }, false, x, y)
}

/// `d_x` of [`nearest_forward`]; 0 for an input that no output reads.
///
/// # Errors
/// As [`nearest_forward`].
pub fn nearest_backward(rec: &mut Recorder<'_>, g: &Geom, d_y: View, d_x: View) -> Result<()> {
    record(rec, g, if g.doubles() { "nearest_backward_2" } else { "nearest_backward" }, true, d_y, d_x)
}

/// Linear interpolation on each axis at max(0, (o + ½) · input / output - ½), the last input repeated
/// beyond the end: PyTorch's `trilinear` with `align_corners=False`.
///
/// # Errors
/// As [`nearest_forward`].
pub fn trilinear_forward(rec: &mut Recorder<'_>, g: &Geom, x: View, y: View) -> Result<()> {
    record(rec, g, "trilinear_forward", false, x, y)
}

/// `d_x` of [`trilinear_forward`].
///
/// # Errors
/// As [`nearest_forward`].
pub fn trilinear_backward(rec: &mut Recorder<'_>, g: &Geom, d_y: View, d_x: View) -> Result<()> {
    record(rec, g, "trilinear_backward", true, d_y, d_x)
}

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The input at the rounded-down place.
    Nearest,
    /// Between the two inputs around the place.
    Trilinear,
}

/// `(input, weight)` of what output `o` of an axis reads.
fn reads(mode: Mode, o: usize, size_in: usize, size_out: usize) -> [(usize, f64); 2] {
    if mode == Mode::Nearest {
        return [(o * size_in / size_out, 1.0), (0, 0.0)];
    }
    let place = ((o as f64 + 0.5) * size_in as f64 / size_out as f64 - 0.5).max(0.0);
    let near = (place.floor() as usize).min(size_in - 1);
    let weight = place - near as f64;
    [(near, 1.0 - weight), ((near + 1).min(size_in - 1), weight)]
}

/// Calls `f(output element, input element, weight)` for all pairs of the linear map.
fn for_each_pair(g: &Geom, mode: Mode, mut f: impl FnMut(usize, usize, f64)) {
    let (i, o) = (g.input, g.output);
    for n in 0..g.batch {
        for out in 0..o.iter().product() {
            let at = [out / (o[1] * o[2]), out / o[2] % o[1], out % o[2]];
            let axes: [_; 3] = std::array::from_fn(|a| reads(mode, at[a], i[a], o[a]));
            for (d, wd) in axes[0] {
                for (h, wh) in axes[1] {
                    for (w, ww) in axes[2] {
                        for c in 0..g.channels {
                            let from = n * g.in_sample() + ((d * i[1] + h) * i[2] + w) * g.channels + c;
                            f(n * g.out_sample() + out * g.channels + c, from, wd * wh * ww);
                        }
                    }
                }
            }
        }
    }
}

/// Resampling in f64.
pub fn reference_forward(g: &Geom, mode: Mode, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; g.batch * g.out_sample()];
    for_each_pair(g, mode, |o, i, weight| y[o] += weight * x[i]);
    y
}

/// Its gradient in f64.
pub fn reference_backward(g: &Geom, mode: Mode, d_y: &[f64]) -> Vec<f64> {
    let mut d_x = vec![0.0; g.batch * g.in_sample()];
    for_each_pair(g, mode, |o, i, weight| d_x[i] += weight * d_y[o]);
    d_x
}

fn check(ctx: &Context, g: &Geom, mode: Mode, backward: bool, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let (from, to) = if backward { (g.out_sample(), g.in_sample()) } else { (g.in_sample(), g.out_sample()) };
    let data = as_stored(&numbers(1, g.batch * from, 1.0), dtype);
    let mut t = Trial::new(ctx);
    let (input, output) = (t.tensor(&data, dtype)?, t.empty(g.batch * to, dtype)?);
    let record = match (mode, backward) {
        (Mode::Nearest, false) => nearest_forward,
        (Mode::Nearest, true) => nearest_backward,
        (Mode::Trilinear, false) => trilinear_forward,
        (Mode::Trilinear, true) => trilinear_backward,
    };
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| record(rec, g, input, output)))?;
    let data: Vec<f64> = data.into_iter().map(f64::from).collect();
    let want = if backward { reference_backward(g, mode, &data) } else { reference_forward(g, mode, &data) };
    // Weights are exact to one rounding; sums are over the few outputs that read an input.
    compare(&t.values(output)?, &want, allowed(3e-6, dtype))
}

/// Doubling, awkward ratios up and down, flat volumes, single positions, several parts.
pub fn cases() -> Vec<Case> {
    let whole = u64::MAX;
    let shapes = [
        (1, [1; 3], [1; 3], 1, whole),
        (2, [3, 4, 5], [6, 8, 10], 4, whole),
        (1, [8; 3], [16; 3], 16, whole),
        (2, [1, 3, 5], [2, 6, 10], 3, whole),
        (2, [3, 5, 2], [7, 4, 9], 3, whole),
        (1, [1, 6, 7], [1, 13, 5], 5, whole),
        (1, [7, 10, 9], [1, 3, 4], 8, whole),
        (1, [1; 3], [4, 3, 5], 2, whole),
        (1, [10, 3, 33], [3, 10, 32], 1, whole),
        (1, [2, 3, 2], [5, 7, 3], 33, whole),
        (3, [4, 2, 6], [4, 2, 6], 12, whole),
        (1, [17, 2, 1], [16, 1, 3], 4, whole),
        (5, [4; 3], [8; 3], 4, 20_000),
    ];
    let mut out = Vec::new();
    for (batch, input, output, channels, limit) in shapes {
        let g = Geom { batch, input, output, channels };
        for (mode, backward, variant) in [
            (Mode::Nearest, false, "nearest_forward"),
            (Mode::Nearest, true, "nearest_backward"),
            (Mode::Trilinear, false, "trilinear_forward"),
            (Mode::Trilinear, true, "trilinear_backward"),
        ] {
            let what = format!("{batch}x{input:?} to {output:?}x{channels}{}", bound_at_once(limit));
            for dtype in DTYPES {
                let check = move |ctx: &Context| check(ctx, &g, mode, backward, limit, dtype);
                out.push(Case::new("upsample", variant, what.clone(), check).stored(dtype));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference::{assert_gradient, dot, numbers};
    use super::*;

    #[test]
    fn the_reference_gradients_are_derivatives() {
        let g = Geom { batch: 2, input: [3, 4, 2], output: [5, 3, 4], channels: 2 };
        for mode in [Mode::Nearest, Mode::Trilinear] {
            let (x, r) = (numbers(1, 96, 1.0), numbers(2, 240, 1.0));
            assert_gradient(&format!("{mode:?}"), &x, &reference_backward(&g, mode, &r), |x| dot(&reference_forward(&g, mode, x), &r));
        }
    }

    // torch.nn.functional.interpolate(torch.tensor([[[1., 2., 4.]]]), size=n, mode="linear", align_corners=False)
    // for n = 6 and 2; by hand: places -¼, ¼, ¾, 1¼, 1¾, 2¼ and ¼, 1¾.
    #[test]
    fn the_reference_is_linear_between_half_pixel_centres() {
        for (n, want) in [(6, vec![1.0, 1.25, 1.75, 2.5, 3.5, 4.0]), (2, vec![1.25, 3.5])] {
            let g = Geom { batch: 1, input: [1, 1, 3], output: [1, 1, n], channels: 1 };
            let got = reference_forward(&g, Mode::Trilinear, &[1.0, 2.0, 4.0]);
            assert!(got.iter().zip(&want).all(|(g, w): (&f64, &f64)| (g - w).abs() < 1e-12), "{got:?}");
        }
    }

    #[test]
    fn bad_sizes_are_refused() {
        let caps = crate::gpu::Caps::minimal();
        let mut rec = Recorder::new(&caps);
        let view = |id, n| View::whole(crate::gpu::BufferId(id), n);
        let g = Geom { batch: 1, input: [1, 1, 0], output: [1, 1, 2], channels: 1 };
        assert!(nearest_forward(&mut rec, &g, view(0, 0), view(1, 2)).is_err());
        let g = Geom { batch: 1, input: [1, 1, 1], output: [1, 1, 2], channels: 1 };
        assert!(nearest_forward(&mut rec, &g, view(0, 1), view(1, 3)).is_err());
        assert!(nearest_forward(&mut rec, &g, view(0, 1), view(1, 2)).is_ok());
    }
}
