//! f64 references and the shapes on which every variant is compared with them.

use super::{
    Geom, Input, Output, Pass, Problem, Source, Variant, backward_input_with, backward_weight_with, forward_joined, forward_with,
    statistics_partials_with,
};
use crate::error::Result;
use crate::gpu::{Caps, Context, Dtype, Recorder};
use crate::kernels::check::{Case, Outcome, Trial, as_stored, compare, numbers, wide, with_caps};

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

/// Channels `[first, first + channels)` of a tensor with `total` channels.
fn channels<T: Copy>(x: &[T], total: usize, s: Source) -> Vec<T> {
    x.chunks(total).flat_map(|row| &row[s.first..s.first + s.channels]).copied().collect()
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

/// What a case asks for besides its shape.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extras {
    pub(super) bias: bool,
    /// Sources are normalised on their way in, and the statistics of the output are asked for.
    pub(super) fused: bool,
    /// How activations are stored.
    pub(super) dtype: Dtype,
    /// Largest binding, where the batch is to be sliced.
    pub(super) binding: Option<u64>,
    /// Bytes of workgroup memory, where tiles are to be small.
    pub(super) memory: Option<u32>,
    /// The only variant to run, whether or not the adapter would use it.
    pub(super) only: Option<Variant>,
}

impl Extras {
    /// Error allowed where `f32` is allowed for numbers stored as such.
    fn tolerance(&self, f32: f64) -> f64 {
        match self.dtype {
            Dtype::F32 => f32,
            // Half a unit in the last place, and once more for what is accumulated.
            Dtype::F16 => 1.5e-3,
        }
    }

    /// The adapter with the limits asked for.
    fn caps(&self, ctx: &Context) -> Caps {
        let (real, at_most) = (ctx.caps(), self.memory.unwrap_or(u32::MAX));
        Caps { max_binding: self.binding.unwrap_or(real.max_binding), workgroup_memory: real.workgroup_memory.min(at_most), ..real.clone() }
    }

    /// Runs `record` as for an adapter with the limits asked for.
    fn run(&self, t: &Trial<'_>, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
        t.run(|rec| with_caps(rec, &self.caps(t.context()), record))
    }

    /// The variants to run for `pass` over each of `sources`: those that can do it on the adapter, or the only one.
    fn variants(&self, ctx: &Context, pass: Pass, g: &Geom, sources: &[Source]) -> Vec<Variant> {
        let can = |v: &Variant| sources.iter().all(|&s| problem(pass, g, s, self.dtype).candidates(ctx.caps()).contains(v));
        self.only.map_or_else(|| Variant::ALL.into_iter().filter(can).collect(), |v| vec![v])
    }
}

impl std::fmt::Display for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bias = if self.bias { " bias" } else { "" };
        let fused = if self.fused { " normalised" } else { "" };
        let dtype = if self.dtype == Dtype::F16 { " f16" } else { "" };
        let sliced = if self.binding.is_some() { " sliced" } else { "" };
        let only = self.only.map(|v| format!(" {}", v.full_name())).unwrap_or_default();
        let memory = self.memory.map(|m| format!(" {m} bytes")).unwrap_or_default();
        write!(f, "{only}{memory}{bias}{fused}{dtype}{sliced}")
    }
}

/// Error allowed of a weight gradient.
fn sum_tolerance(variant: Variant) -> f64 {
    // Matrix instructions take factors rounded to halves, normalised ones after the fact.
    if matches!(variant, Variant::Coop(_)) { 3e-3 } else { 2e-5 }
}

fn problem(pass: Pass, g: &Geom, source: Source, dtype: Dtype) -> Problem {
    Problem { pass, geom: *g, source, input: dtype, output: dtype }
}

/// Mean, factor and shift of `channels` channels, about what batch norm makes of numbers of size 1.
fn normalisation(seed: u32, channels: usize) -> Vec<f32> {
    let n = numbers(seed, 3 * channels, 0.5);
    n.iter().enumerate().map(|(i, v)| if i / channels == 1 { 1.2 + v } else { *v }).collect()
}

/// `x` `[.., channels]` after batch norm and ReLU.
fn normalised(x: &[f64], norm: &[f32]) -> Vec<f64> {
    let (c, n) = (norm.len() / 3, wide(norm));
    x.iter().enumerate().map(|(i, v)| ((v - n[i % c]) * n[c + i % c] + n[2 * c + i % c]).max(0.0)).collect()
}

/// A convolution's inputs: what the device is given and what the reference takes.
struct Sources {
    geom: Geom,
    sources: Vec<Source>,
    extras: Extras,
    stored: Vec<f32>,
    norm: Vec<f32>,
    taken: Vec<f64>,
}

impl Sources {
    fn new(seed: u32, g: &Geom, sources: &[Source], extras: Extras) -> Self {
        let stored = as_stored(&numbers(seed, g.batch * g.input_sample(g.in_channels), 1.0), extras.dtype);
        let norm = normalisation(seed + 1, g.in_channels);
        let taken = if extras.fused { normalised(&wide(&stored), &norm) } else { wide(&stored) };
        Self { geom: *g, sources: sources.to_vec(), extras, stored, norm, taken }
    }

    fn upload(&self, t: &mut Trial<'_>) -> Result<Vec<Input>> {
        let total = self.geom.in_channels;
        let mut out = Vec::new();
        for &source in &self.sources {
            let view = t.tensor(&channels(&self.stored, total, source), self.extras.dtype)?;
            let norm = if self.extras.fused { Some(t.input(&channels(&self.norm, total, source))?) } else { None };
            out.push(Input { source, view, norm });
        }
        Ok(out)
    }
}

/// Merges partials `[.., 3, channels]` and compares them with the statistics of `y` `[rows, channels]`: count, mean
/// and sum of squared differences.
fn compare_statistics(partials: &[f32], y: &[f64], channels: usize, tolerance: f64) -> Result<Outcome> {
    let mut merged = vec![[0.0f64; 3]; channels];
    for p in partials.chunks(3 * channels) {
        for (c, into) in merged.iter_mut().enumerate() {
            let [n, mean, squares] = [0, 1, 2].map(|k| f64::from(p[k * channels + c]));
            let total = into[0] + n;
            let share = n / total.max(1.0);
            let delta = mean - into[1];
            *into = [total, into[1] + delta * share, into[2] + squares + delta * delta * into[0] * share];
        }
    }
    let rows = (y.len() / channels) as f64;
    let mut want = Vec::new();
    for c in 0..channels {
        let column: Vec<f64> = y.iter().skip(c).step_by(channels).copied().collect();
        let mean = column.iter().sum::<f64>() / rows;
        want.extend([rows, mean, column.iter().map(|v| (v - mean).powi(2)).sum()]);
    }
    let got: Vec<f32> = merged.iter().flatten().map(|&v| v as f32).collect();
    if got.iter().step_by(3).any(|&n| f64::from(n) != rows) {
        let failure = Some(format!("the partials count {} rows, expected {rows}", got[0]));
        return Ok(Outcome { error: f64::INFINITY, tolerance, failure });
    }
    compare(&got, &want, tolerance)
}

/// All variants of the forward pass.
pub(super) fn forward_case(ctx: &Context, g: &Geom, sources: &[Source], extras: Extras) -> Result<Outcome> {
    let x = Sources::new(11, g, sources, extras);
    let w = numbers(13, g.weight_len(), 1.0);
    let b = extras.bias.then(|| numbers(14, g.out_channels, 1.0));
    let want = reference_forward(g, &x.taken, &wide(&w), b.as_deref().map(wide).as_deref());
    let mut outcomes = Vec::new();
    let variants = extras.variants(ctx, Pass::Forward, g, sources).into_iter().map(|v| (v, false));
    let joined = sources.len() == 2;
    let both = variants.flat_map(|v| [Some(v), (joined && v.0.joins()).then_some((v.0, true))]).flatten();
    for (variant, joined) in both {
        let mut t = Trial::new(ctx);
        let (inputs, weight) = (x.upload(&mut t)?, t.input(&w)?);
        let bias = b.as_ref().map(|b| t.input(b)).transpose()?;
        let view = t.empty(want.len(), extras.dtype)?;
        let last = sources[sources.len() - 1];
        let count = statistics_partials_with(&extras.caps(ctx), variant, &problem(Pass::Forward, g, last, extras.dtype))?;
        let statistics = if extras.fused { Some(t.output(count * 3 * g.out_channels)?) } else { None };
        let output = Output { view, bias, statistics };
        extras.run(&t, |rec| {
            if joined {
                return forward_joined(rec, variant, g, &inputs, weight, &output, false);
            }
            for (i, &input) in inputs.iter().enumerate() {
                let own = Output { bias: bias.filter(|_| i == 0), statistics: statistics.filter(|_| i + 1 == inputs.len()), ..output };
                forward_with(rec, variant, g, input, weight, &own, i > 0)?;
            }
            Ok(())
        })?;
        outcomes.push(compare(&t.values(view)?, &want, extras.tolerance(1e-5))?);
        if let Some(partials) = statistics {
            outcomes.push(compare_statistics(&t.read(partials)?, &want, g.out_channels, extras.tolerance(1e-5))?);
        }
    }
    Ok(worst(outcomes))
}

pub(super) fn backward_input_case(ctx: &Context, g: &Geom, sources: &[Source], extras: Extras) -> Result<Outcome> {
    let y = as_stored(&numbers(21, g.batch * g.output_sample(), 1.0), extras.dtype);
    let w = numbers(22, g.weight_len(), 1.0);
    let want = reference_backward_input(g, &wide(&y), &wide(&w));
    let mut outcomes = Vec::new();
    for &s in sources {
        for variant in extras.variants(ctx, Pass::InputGrad, g, &[s]) {
            let mut want = channels(&want, g.in_channels, s);
            let mut t = Trial::new(ctx);
            let (d_output, weight) = (t.tensor(&y, extras.dtype)?, t.input(&w)?);
            let b = numbers(23, s.channels, 1.0);
            let bias = if extras.bias { Some(t.input(&b)?) } else { None };
            if bias.is_some() {
                want.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(b[i % s.channels]));
            }
            let d_input = t.empty(want.len(), extras.dtype)?;
            extras.run(&t, |rec| backward_input_with(rec, variant, g, s, d_output, weight, bias, d_input))?;
            outcomes.push(compare(&t.values(d_input)?, &want, extras.tolerance(1e-5))?);
        }
    }
    Ok(worst(outcomes))
}

pub(super) fn backward_weight_case(ctx: &Context, g: &Geom, sources: &[Source], extras: Extras) -> Result<Outcome> {
    let x = Sources::new(31, g, sources, extras);
    let y = as_stored(&numbers(33, g.batch * g.output_sample(), 1.0), extras.dtype);
    let want = reference_backward_weight(g, &x.taken, &wide(&y));
    let mut outcomes = Vec::new();
    for variant in extras.variants(ctx, Pass::WeightGrad, g, sources) {
        let mut t = Trial::new(ctx);
        let inputs = x.upload(&mut t)?;
        let (d_output, d_weight) = (t.tensor(&y, extras.dtype)?, t.output(want.len())?);
        // Each by itself: scratch buffers of sliced recorders are numbered from the first.
        for &input in &inputs {
            extras.run(&t, |rec| backward_weight_with(rec, variant, g, input, d_output, d_weight))?;
        }
        outcomes.push(compare(&t.read(d_weight)?, &want, sum_tolerance(variant))?);
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

/// Forward pass and weight gradient, each pair by the variants given, in runs of workgroups, with workgroups to spare.
pub(super) fn runs_case(ctx: &Context, g: &Geom, variants: &[(Variant, Variant)]) -> Result<Outcome> {
    let (x, w) = (numbers(41, g.batch * g.input_sample(g.in_channels), 1.0), numbers(42, g.weight_len(), 1.0));
    let y = numbers(43, g.batch * g.output_sample(), 1.0);
    let wants = [reference_forward(g, &wide(&x), &wide(&w), None), reference_backward_weight(g, &wide(&x), &wide(&y))];
    let mut outcomes = Vec::new();
    for &(variant, weight_variant) in variants {
        let mut t = Trial::new(ctx);
        let (input, weight, d_output) = (t.input(&x)?, t.input(&w)?, t.input(&y)?);
        let (output, d_weight) = (t.output(wants[0].len())?, t.output(wants[1].len())?);
        t.run(|rec| {
            let input = Input::plain(g.whole(), input);
            forward_with(rec, variant, g, input, weight, &Output::plain(output), false)?;
            backward_weight_with(rec, weight_variant, g, input, d_output, d_weight)?;
            cut_into_runs(rec, 3);
            Ok(())
        })?;
        outcomes.push(compare(&t.read(output)?, &wants[0], 1e-5)?);
        outcomes.push(compare(&t.read(d_weight)?, &wants[1], 2e-5)?);
    }
    Ok(worst(outcomes))
}

/// Sources of these channel counts, one after the other.
pub(super) fn sources_of(counts: &[usize]) -> Vec<Source> {
    let mut first = 0;
    let next = |&channels: &usize| {
        first += channels;
        Source { first: first - channels, channels }
    };
    counts.iter().map(next).collect()
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
        (3, [4, 4, 8], &[8, 4], 16, k3.0, k3.1, k3.2),
        (3, [2, 8, 4], &[3], 8, k3.0, k3.1, k3.2),
        (3, [4, 4, 8], &[8], 8, [2; 3], [2; 3], [0; 3]),
    ];
    let mut out = Vec::new();
    for &(batch, input, counts, co, kernel, stride, padding) in shapes {
        let Ok(g) = Geom::new(batch, input, counts.iter().sum(), co, kernel, stride, padding) else { continue };
        let sources = sources_of(counts);
        let what = format!("{batch}×{input:?} {counts:?}→{co} kernel {kernel:?} stride {stride:?} padding {padding:?}");
        let mut add = |extras: Extras| {
            let (s, w) = (sources.clone(), format!("{what}{extras}"));
            out.push(Case::new("conv3d", "forward", w.clone(), move |ctx| forward_case(ctx, &g, &s, extras)).stored(extras.dtype));
            let s = sources.clone();
            out.push(
                Case::new("conv3d", "backward_input", w.clone(), move |ctx| backward_input_case(ctx, &g, &s, extras)).stored(extras.dtype),
            );
            let s = sources.clone();
            out.push(Case::new("conv3d", "backward_weight", w, move |ctx| backward_weight_case(ctx, &g, &s, extras)).stored(extras.dtype));
        };
        add(Extras::default());
        add(Extras { bias: true, fused: true, ..Extras::default() });
        // Halves are bound in pairs.
        let even = sources.iter().all(|s| (batch * g.input_sample(s.channels)).is_multiple_of(2));
        if even && (batch * g.output_sample()).is_multiple_of(2) {
            add(Extras { fused: true, dtype: Dtype::F16, ..Extras::default() });
        }
        // A part of a batch begins at a multiple of 256 bytes.
        if batch == 3 && counts.iter().chain([&co]).all(|c| (g.input_sample(1) * c).is_multiple_of(128)) {
            let binding = Some(4 * (g.input_sample(g.in_channels).max(g.output_sample()) as u64));
            add(Extras { bias: true, fused: true, binding, ..Extras::default() });
            add(Extras { fused: true, dtype: Dtype::F16, binding: binding.map(|b| b / 2), ..Extras::default() });
        }
        if co == 24 {
            out.push(Case::new("conv3d", "runs", what.clone(), move |ctx| {
                let tiles = Extras::default().variants(ctx, Pass::Forward, &g, &[g.whole()]);
                let pairs: Vec<_> = tiles.into_iter().filter(|v| matches!(v, Variant::Tile | Variant::Sub8)).map(|v| (v, v)).collect();
                runs_case(ctx, &g, &pairs)
            }));
        }
    }
    out.extend(super::product_cases::cases());
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
        let caps = Caps { max_binding: 2 << 30, ..Caps::minimal() };
        let g = Geom::new(1, [128, 128, 64], 128, 64, [3; 3], [1; 3], [1; 3]).unwrap();
        let mut rec = Recorder::new(&caps);
        let [x, w, y] = [128 << 20, g.weight_len(), 64 << 20].map(|n| crate::gpu::View::whole(crate::gpu::BufferId(0), n));
        super::super::forward(&mut rec, &g, &[Input::plain(g.whole(), x)], w, &Output::plain(y)).unwrap();
        let runs: Vec<_> = rec.dispatches.iter().filter(|d| d.label.ends_with("forward")).collect();
        assert!(runs.len() > 10 && runs.iter().all(|d| d.flops <= caps.max_dispatch_flops()), "{}", runs.len());
        let flops = g.flops_per_sample(128);
        assert!(runs.iter().map(|d| d.flops).sum::<u64>().abs_diff(flops) < 1000);
    }

    /// Each shape gives at least two sets of three cases; a shape that is not valid would give none.
    /// However many rows, no invocation of a weight gradient on a processor walks more than Mesa grants it.
    #[test]
    fn weight_gradients_of_many_rows_are_split() {
        let caps =
            Caps { kind: crate::gpu::Kind::Cpu, subgroup_min: 8, subgroup_max: 8, int64: true, max_binding: 2 << 30, ..Caps::minimal() };
        for (grid, ci, co) in [([64, 64, 32], 16, 1), ([64, 64, 32], 4, 4), ([128, 128, 64], 16, 8)] {
            let g = Geom::new(16, grid, ci, co, [1; 3], [1; 3], [0; 3]).unwrap();
            let [x, w, y] = [16 * g.input_sample(ci), g.weight_len(), 16 * g.output_sample()]
                .map(|n| crate::gpu::View::whole(crate::gpu::BufferId(0), n));
            let mut rec = Recorder::new(&caps);
            super::super::backward_weight(&mut rec, &g, Input::plain(g.whole(), x), y, w).unwrap();
            let splits = rec.dispatches[0].params.iter().find(|p| p.0 == "splits").map(|p| p.1);
            let Some(crate::gpu::Scalar::U32(splits)) = splits else { panic!("no splits: {:?}", rec.dispatches[0].params) };
            let voxels = 16 * grid.iter().product::<usize>();
            let side_by_side = if co % 4 == 0 { 4 } else { 1 };
            assert!(voxels.div_ceil(splits as usize) / side_by_side < 65_535, "{grid:?} {ci} {co}: {splits} splits");
        }
    }

    #[test]
    fn every_listed_shape_is_valid() {
        let cases = cases();
        let plain = cases.iter().filter(|c| c.variant == "forward" && c.what.ends_with(']')).count();
        assert_eq!(plain, 26);
        for extra in ["bias normalised", "f16", "bias normalised sliced", "f16 sliced"] {
            let n = cases.iter().filter(|c| c.what.ends_with(extra)).count();
            assert!(n >= 6, "{n} cases end with {extra}");
        }
    }

    #[test]
    fn statistics_that_are_wrong_are_found() {
        // Rows 1, 3 and 8 of one channel as partials of two rows, one row and none.
        let good = [2.0, 2.0, 2.0, 1.0, 8.0, 0.0, 0.0, 5.0, 0.0];
        let y = [1.0, 3.0, 8.0];
        assert!(compare_statistics(&good, &y, 1, 1e-6).unwrap().passed());
        for (i, v) in [(0, 3.0), (1, 2.1), (2, 2.5), (3, 0.0), (4, f32::NAN), (8, 1.0)] {
            let mut bad = good;
            bad[i] = v;
            assert!(!compare_statistics(&bad, &y, 1, 1e-6).unwrap().passed(), "element {i} = {v}");
        }
    }

    #[test]
    fn choices_are_named_and_followed_where_they_can_be() {
        let caps = Caps { subgroup_min: 8, subgroup_max: 8, int64: true, ..Caps::minimal() };
        let g = Geom::new(1, [32; 3], 32, 64, [3; 3], [1; 3], [1; 3]).unwrap();
        let p = problem(Pass::Forward, &g, g.whole(), Dtype::F32);
        assert_eq!(p.key(), "conv3d forward 32>64 1x32x32x32 k3 s1 p1 f32");
        let odd = Geom::new(2, [1, 8, 8], 3, 5, [1, 3, 3], [1, 2, 2], [0, 1, 1]).unwrap();
        let half = Problem { pass: Pass::WeightGrad, geom: odd, source: odd.whole(), input: Dtype::F16, output: Dtype::F32 };
        assert_eq!(half.key(), "conv3d weight-grad 3>5 2x1x8x8 k1x3x3 s1x2x2 p0x1x1 f16>f32");
        assert!(Variant::ALL.iter().all(|&v| Variant::parse(v.name()) == Some(v)));
        let chosen = |p: &Problem, name: &str| {
            let table = [(p.key(), name.to_owned())].into();
            p.variant(&Recorder::tuned(&caps, &crate::gpu::Choices::new(table)))
        };
        let default = p.candidates(&caps)[0];
        assert_eq!((chosen(&p, "tile"), chosen(&p, "nonsense")), (Variant::Tile, default));
        // Five output channels are no tile's.
        assert_eq!(chosen(&half, "tile"), Variant::Plain);
    }
}
