//! f64 references and the shapes on which every variant is compared with them.

use super::{Geom, Source, Variant, backward_input_with, backward_weight_with, forward_with, tile};
use crate::error::Result;
use crate::gpu::{Context, Recorder};
use crate::kernels::check::{Case, Outcome, Trial, compare, numbers};

/// Visits every (n, output voxel, input voxel, tap) that a convolution multiplies, as flat voxel indices.
fn visit(g: &Geom, mut f: impl FnMut(usize, usize, usize)) {
    let (i, o, k) = (g.input, g.output(), g.kernel);
    for n in 0..g.batch {
        for od in 0..o[0] {
            for oh in 0..o[1] {
                for ow in 0..o[2] {
                    let y = ((n * o[0] + od) * o[1] + oh) * o[2] + ow;
                    for tap in 0..g.taps() {
                        let at = [od, oh, ow];
                        let t = [tap / (k[1] * k[2]), tap / k[2] % k[1], tap % k[2]];
                        let p: [Option<usize>; 3] =
                            std::array::from_fn(|a| (at[a] * g.stride[a] + t[a]).checked_sub(g.padding[a]).filter(|&v| v < i[a]));
                        if let [Some(d), Some(h), Some(w)] = p {
                            f(y, ((n * i[0] + d) * i[1] + h) * i[2] + w, tap);
                        }
                    }
                }
            }
        }
    }
}

/// `[N, OD, OH, OW, C_out]` from input `[N, D, H, W, C_in]`, weight `[taps, C_out, C_in]` and bias `[C_out]`.
pub fn reference_forward(g: &Geom, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let (ci, co) = (g.in_channels, g.out_channels);
    let mut y = vec![0.0; g.batch * g.output_sample()];
    visit(g, |yo, xi, tap| {
        for o in 0..co {
            let k = (tap * co + o) * ci;
            y[yo * co + o] += (0..ci).map(|c| x[xi * ci + c] * w[k + c]).sum::<f64>();
        }
    });
    if let Some(b) = bias {
        y.iter_mut().enumerate().for_each(|(i, v)| *v += b[i % co]);
    }
    y
}

/// Gradient of the input.
pub fn reference_backward_input(g: &Geom, d_y: &[f64], w: &[f64]) -> Vec<f64> {
    let (ci, co) = (g.in_channels, g.out_channels);
    let mut d_x = vec![0.0; g.batch * g.input_sample(ci)];
    visit(g, |yo, xi, tap| {
        for o in 0..co {
            for c in 0..ci {
                d_x[xi * ci + c] += d_y[yo * co + o] * w[(tap * co + o) * ci + c];
            }
        }
    });
    d_x
}

/// Gradient of the weight.
pub fn reference_backward_weight(g: &Geom, x: &[f64], d_y: &[f64]) -> Vec<f64> {
    let (ci, co) = (g.in_channels, g.out_channels);
    let mut d_w = vec![0.0; g.weight_len()];
    visit(g, |yo, xi, tap| {
        for o in 0..co {
            for c in 0..ci {
                d_w[(tap * co + o) * ci + c] += d_y[yo * co + o] * x[xi * ci + c];
            }
        }
    });
    d_w
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&x| f64::from(x)).collect()
}

/// Channels `[first, first + channels)` of a tensor with `total` channels.
fn channels<T: Copy>(x: &[T], total: usize, s: Source) -> Vec<T> {
    x.chunks(total).flat_map(|row| &row[s.first..s.first + s.channels]).copied().collect()
}

fn variants(ctx: &Context, tile_fits: bool) -> Vec<Variant> {
    let mut out = vec![Variant::Plain];
    if tile_fits {
        out.push(Variant::Tile);
        if ctx.caps().subgroup8() {
            out.push(Variant::Sub8);
        }
    }
    out
}

/// The worst of several outcomes.
fn worst(outcomes: Vec<Outcome>) -> Outcome {
    let key = |o: &Outcome| (o.failure.is_some(), o.error / o.tolerance);
    outcomes.into_iter().max_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)).unwrap_or(Outcome {
        error: f64::INFINITY,
        tolerance: 0.0,
        failure: Some("nothing was compared".into()),
    })
}

/// All variants of the forward pass; sources are given by their channel counts.
fn forward_case(ctx: &Context, g: &Geom, sources: &[Source], bias: bool) -> Result<Outcome> {
    let x = numbers(11, g.batch * g.input_sample(g.in_channels), 1.0);
    let w = numbers(12, g.weight_len(), 1.0);
    let b = bias.then(|| numbers(13, g.out_channels, 1.0));
    let want = reference_forward(g, &wide(&x), &wide(&w), b.as_deref().map(wide).as_deref());
    let fits = tile::fits(g.out_channels);
    let mut outcomes = Vec::new();
    for variant in variants(ctx, fits) {
        let mut t = Trial::new(ctx);
        let inputs = sources.iter().map(|&s| Ok((s, t.input(&channels(&x, g.in_channels, s))?))).collect::<Result<Vec<_>>>()?;
        let weight = t.input(&w)?;
        let bias = b.as_ref().map(|b| t.input(b)).transpose()?;
        let output = t.output(want.len())?;
        t.run(|rec| {
            for (i, &(s, input)) in inputs.iter().enumerate() {
                forward_with(rec, variant, g, s, input, weight, bias.filter(|_| i == 0), output, i > 0)?;
            }
            Ok(())
        })?;
        outcomes.push(compare(&t.read(output)?, &want, 1e-5)?);
    }
    Ok(worst(outcomes))
}

fn backward_input_case(ctx: &Context, g: &Geom, sources: &[Source], bias: bool) -> Result<Outcome> {
    let y = numbers(21, g.batch * g.output_sample(), 1.0);
    let w = numbers(22, g.weight_len(), 1.0);
    let want = reference_backward_input(g, &wide(&y), &wide(&w));
    let regular = g.blocks() || g.stride == [1; 3] && (0..3).all(|a| g.padding[a] < g.kernel[a]);
    let fits = regular && sources.iter().all(|s| tile::fits(s.channels));
    let mut outcomes = Vec::new();
    for variant in variants(ctx, fits) {
        for &s in sources {
            let mut want = channels(&want, g.in_channels, s);
            let mut t = Trial::new(ctx);
            let (d_output, weight) = (t.input(&y)?, t.input(&w)?);
            let b = numbers(23, s.channels, 1.0);
            let bias = if bias { Some(t.input(&b)?) } else { None };
            if bias.is_some() {
                want.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(b[i % s.channels]));
            }
            let d_input = t.output(want.len())?;
            t.run(|rec| backward_input_with(rec, variant, g, s, d_output, weight, bias, d_input))?;
            outcomes.push(compare(&t.read(d_input)?, &want, 1e-5)?);
        }
    }
    Ok(worst(outcomes))
}

fn backward_weight_case(ctx: &Context, g: &Geom, sources: &[Source]) -> Result<Outcome> {
    let x = numbers(31, g.batch * g.input_sample(g.in_channels), 1.0);
    let y = numbers(32, g.batch * g.output_sample(), 1.0);
    let want = reference_backward_weight(g, &wide(&x), &wide(&y));
    let fits = tile::fits(g.out_channels);
    let mut outcomes = Vec::new();
    for variant in variants(ctx, fits) {
        let mut t = Trial::new(ctx);
        let inputs = sources.iter().map(|&s| Ok((s, t.input(&channels(&x, g.in_channels, s))?))).collect::<Result<Vec<_>>>()?;
        let (d_output, d_weight) = (t.input(&y)?, t.output(want.len())?);
        t.run(|rec| inputs.iter().try_for_each(|&(s, input)| backward_weight_with(rec, variant, g, s, input, d_output, d_weight)))?;
        outcomes.push(compare(&t.read(d_weight)?, &want, 2e-5)?);
    }
    Ok(worst(outcomes))
}

/// Cuts each tile dispatch of `rec` into runs of `run` workgroups, as an adapter with a watchdog makes the planner do.
fn cut_into_runs(rec: &mut Recorder<'_>, run: u64) {
    for d in std::mem::take(&mut rec.dispatches) {
        if !d.params.iter().any(|p| p.0 == "last") {
            rec.push(d);
            continue;
        }
        for first in (0..d.groups).step_by(usize::try_from(run).unwrap_or(1)) {
            let last = d.groups.min(first + run);
            let mut piece = d.clone();
            piece.params.retain(|p| p.0 != "first" && p.0 != "last");
            // Workgroups beyond the last are what folded grids have too many.
            let surplus = piece.param("first", first as u32).param("last", last as u32).groups((last - first) as usize + 2);
            rec.push(surplus);
        }
    }
}

/// Forward pass and weight gradient in runs of workgroups, with workgroups to spare.
fn runs_case(ctx: &Context, g: &Geom) -> Result<Outcome> {
    let (x, w) = (numbers(41, g.batch * g.input_sample(g.in_channels), 1.0), numbers(42, g.weight_len(), 1.0));
    let y = numbers(43, g.batch * g.output_sample(), 1.0);
    let wants = [reference_forward(g, &wide(&x), &wide(&w), None), reference_backward_weight(g, &wide(&x), &wide(&y))];
    let mut outcomes = Vec::new();
    for variant in variants(ctx, true).into_iter().skip(1) {
        let mut t = Trial::new(ctx);
        let (input, weight, d_output) = (t.input(&x)?, t.input(&w)?, t.input(&y)?);
        let (output, d_weight) = (t.output(wants[0].len())?, t.output(wants[1].len())?);
        t.run(|rec| {
            forward_with(rec, variant, g, g.whole(), input, weight, None, output, false)?;
            backward_weight_with(rec, variant, g, g.whole(), input, d_output, d_weight)?;
            cut_into_runs(rec, 3);
            Ok(())
        })?;
        outcomes.push(compare(&t.read(output)?, &wants[0], 1e-5)?);
        outcomes.push(compare(&t.read(d_weight)?, &wants[1], 2e-5)?);
    }
    Ok(worst(outcomes))
}

/// Every pass and variant over awkward shapes.
pub fn cases() -> Vec<Case> {
    type Shape = (usize, [usize; 3], &'static [usize], usize, [usize; 3], [usize; 3], [usize; 3]);
    let k3 = ([3; 3], [1; 3], [1; 3]);
    // batch, grid, channels of each source, output channels, kernel, stride, padding
    let shapes: &[Shape] = &[
        (1, [1, 1, 1], &[1], 1, [1; 3], [1; 3], [0; 3]),
        (2, [3, 4, 5], &[1], 3, k3.0, k3.1, k3.2),
        (1, [2, 3, 2], &[3, 2], 5, k3.0, k3.1, k3.2),
        (2, [3, 4, 6], &[1], 8, k3.0, k3.1, k3.2),
        (1, [3, 2, 5], &[3, 4], 20, k3.0, k3.1, k3.2),
        (1, [3, 2, 9], &[12], 1, [1; 3], [1; 3], [0; 3]),
        (3, [5, 4, 3], &[2], 3, [2, 3, 1], [2, 1, 3], [1, 0, 0]),
        (1, [4, 3, 8], &[4], 4, k3.0, k3.1, k3.2),
        (2, [3, 5, 4], &[8], 16, k3.0, k3.1, k3.2),
        (1, [2, 2, 1], &[16], 32, k3.0, k3.1, k3.2),
        (2, [3, 2, 7], &[4, 12], 24, k3.0, k3.1, k3.2),
        (1, [4, 4, 9], &[36], 8, k3.0, k3.1, k3.2),
        (1, [5, 6, 2], &[32], 20, [5, 1, 3], [1, 1, 1], [2, 0, 1]),
        (2, [6, 5, 11], &[8], 12, [3; 3], [2, 1, 2], [1; 3]),
        (1, [3, 3, 6], &[4], 8, [3; 3], [1; 3], [0; 3]),
        (1, [4, 3, 5], &[4], 8, [2; 3], [1; 3], [1, 0, 1]),
        (2, [3, 1, 5], &[8], 4, [1; 3], [1; 3], [0; 3]),
        (5, [1, 1, 1], &[20], 12, [1; 3], [1; 3], [0; 3]),
        (2, [4, 6, 8], &[8], 16, [2; 3], [2; 3], [0; 3]),
        (1, [2, 4, 10], &[20], 4, [2; 3], [2; 3], [0; 3]),
        (1, [2, 6, 3], &[4], 12, [2, 3, 1], [2, 3, 1], [0; 3]),
        (1, [4, 4, 4], &[64, 32], 64, k3.0, k3.1, k3.2),
        (1, [16, 16, 8], &[16], 16, k3.0, k3.1, k3.2),
    ];
    let mut out = Vec::new();
    for &(batch, input, counts, co, kernel, stride, padding) in shapes {
        let Ok(g) = Geom::new(batch, input, counts.iter().sum(), co, kernel, stride, padding) else { continue };
        let mut first = 0;
        let sources: Vec<Source> = counts
            .iter()
            .map(|&channels| {
                first += channels;
                Source { first: first - channels, channels }
            })
            .collect();
        let what = format!("{batch}×{input:?} {counts:?}→{co} kernel {kernel:?} stride {stride:?} padding {padding:?}");
        for bias in [false, true] {
            let (s, w) = (sources.clone(), format!("{what}{}", if bias { " bias" } else { "" }));
            out.push(Case::new("conv3d", "forward", w.clone(), move |ctx| forward_case(ctx, &g, &s, bias)));
            let s = sources.clone();
            out.push(Case::new("conv3d", "backward_input", w, move |ctx| backward_input_case(ctx, &g, &s, bias)));
        }
        if co == 24 {
            out.push(Case::new("conv3d", "runs", what.clone(), move |ctx| runs_case(ctx, &g)));
        }
        out.push(Case::new("conv3d", "backward_weight", what, move |ctx| backward_weight_case(ctx, &g, &sources)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three references are adjoint: ⟨conv(x, w), r⟩ is ⟨x, gradient of x⟩ and ⟨w, gradient of w⟩.
    #[test]
    fn references_are_adjoint() {
        let g = Geom::new(2, [4, 3, 5], 3, 2, [3, 2, 1], [2, 1, 2], [1, 1, 0]).unwrap();
        let (x, w) = (wide(&numbers(1, 2 * 60 * 3, 1.0)), wide(&numbers(2, g.weight_len(), 1.0)));
        let y = reference_forward(&g, &x, &w, None);
        let r = wide(&numbers(3, y.len(), 1.0));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (a, b, c) = (dot(&y, &r), dot(&x, &reference_backward_input(&g, &r, &w)), dot(&w, &reference_backward_weight(&g, &x, &r)));
        assert!((a - b).abs() < 1e-9 && (a - c).abs() < 1e-9, "{a} {b} {c}");
    }

    /// One sample that is too much for one dispatch becomes several, which together are the whole grid.
    #[test]
    fn long_dispatches_are_cut() {
        let caps = crate::gpu::Caps { max_binding: 2 << 30, ..crate::gpu::Caps::minimal() };
        let g = Geom::new(1, [128, 128, 64], 128, 64, [3; 3], [1; 3], [1; 3]).unwrap();
        let mut rec = Recorder::new(&caps);
        let [x, w, y] = [128 << 20, g.weight_len(), 64 << 20].map(|n| crate::gpu::View::whole(crate::gpu::BufferId(0), n));
        super::super::forward(&mut rec, &g, &[(g.whole(), x)], w, None, y).unwrap();
        let runs: Vec<_> = rec.dispatches.iter().filter(|d| d.label.ends_with("forward")).collect();
        assert!(runs.len() > 10 && runs.iter().all(|d| d.flops <= caps.max_dispatch_flops()), "{}", runs.len());
        let flops = g.flops_per_sample(128);
        assert!(runs.iter().map(|d| d.flops).sum::<u64>().abs_diff(flops) < 1000);
    }

    #[test]
    fn every_listed_shape_is_valid() {
        assert_eq!(cases().len(), 23 * 5 + 1);
    }
}
