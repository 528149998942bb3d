//! The register-tile variants: their geometry, the packing of their weights and their launches.

use super::plain::{self, bind_some};
use super::{Geom, Input, Output, Pass, Problem, Source};
use crate::error::Result;
use crate::gpu::{Caps, Dispatch, Recorder, View};
use crate::kernels::{Const, specialise};

/// Whether the tiles can do it: the channels that they own come in fours (those they sum over may be any number), and
/// an input gradient is a convolution itself, at stride 1 or over blocks.
pub(super) fn fits(p: &Problem) -> bool {
    let g = &p.geom;
    match p.pass {
        Pass::Forward | Pass::WeightGrad => g.out_channels.is_multiple_of(4),
        Pass::InputGrad => {
            let same = g.stride == [1; 3] && (0..3).all(|a| g.padding[a] < g.kernel[a]);
            p.source.channels.is_multiple_of(4) && (same || g.blocks())
        }
    }
}

/// Input channels that one load takes: four, or one where their number is no multiple of four.
pub(super) fn lot(channels: usize) -> usize {
    if channels.is_multiple_of(4) { 4 } else { 1 }
}

/// Output channels an invocation owns.
fn wide(channels: usize, most: usize) -> usize {
    let mut w = most;
    while !channels.is_multiple_of(w) {
        w /= 2;
    }
    w
}

/// The convolution that a tile kernel carries out; for input gradients not the layer's own.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Grid read from.
    pub(super) grid: [usize; 3],
    /// Grid of tiles (before the block factor).
    pub(super) out: [usize; 3],
    /// Channels summed over.
    pub(super) rows: usize,
    /// Channels of the tensor written.
    pub(super) columns: usize,
    pub(super) kernel: [usize; 3],
    pub(super) stride: [usize; 3],
    pub(super) padding: [usize; 3],
    /// Each output becomes a block of this size.
    pub(super) factor: [usize; 3],
    /// For subgroups of eight.
    pub(super) sub8: bool,
}

impl Tile {
    /// The layer's own convolution over one source.
    fn of(g: &Geom, s: Source, sub8: bool) -> Self {
        Self {
            grid: g.input,
            out: g.output(),
            rows: s.channels,
            columns: g.out_channels,
            kernel: g.kernel,
            stride: g.stride,
            padding: g.padding,
            factor: [1; 3],
            sub8,
        }
    }

    /// Outputs along W that an invocation owns.
    pub(super) fn tw(&self) -> usize {
        [4, 2, 1].into_iter().find(|&t| t <= self.out[2]).unwrap_or(1)
    }

    /// Invocations of a workgroup.
    pub(super) fn lanes(&self) -> usize {
        if self.sub8 { 8 } else { 64 }
    }

    /// Most channels that an invocation should own: more where a narrow kernel reuses little of what is loaded.
    fn widest(&self) -> usize {
        if self.sub8 && self.kernel[2] <= 2 { 32 } else { 16 }
    }

    /// vec4 per packed (block, kd, kh, input lot), rounded up so that every lane's load stays inside.
    pub(super) fn body(&self, wide: usize) -> usize {
        let used = self.kernel[2] * wide / 4 * lot(self.rows);
        if self.sub8 { used.next_multiple_of(16) } else { used }
    }
}

/// How the packed weights are taken from the layer's.
#[derive(Clone, Copy)]
enum Pack {
    Forward = 0,
    Flipped = 1,
    Blocks = 2,
}

fn pack(rec: &mut Recorder<'_>, mode: Pack, g: &Geom, s: Source, t: &Tile, wide: usize, blocks: usize, weight: View) -> View {
    let body = t.body(wide);
    let total = blocks * (t.rows / lot(t.rows)) * t.kernel[0] * t.kernel[1] * body;
    let packed = rec.scratch(total * 4);
    let text = specialise("conv3d_pack", &[("MODE", Const::U32(mode as usize)), ("PAIRED", Const::Bool(t.sub8))], &[]);
    let d = Dispatch::new("conv3d", "pack", text)
        .bind(weight)
        .bind(packed)
        .param("kd", g.kernel[0])
        .param("kh", g.kernel[1])
        .param("kw", g.kernel[2])
        .param("rows", t.rows)
        .param("columns", t.columns)
        .param("c0", s.first)
        .param("co", g.out_channels)
        .param("ci_total", g.in_channels)
        .param("bkd", t.kernel[0])
        .param("bkh", t.kernel[1])
        .param("bkw", t.kernel[2])
        .param("wide", wide)
        .param("lot", lot(t.rows))
        .param("body", body)
        .param("total", total);
    rec.push(d.items(total, 64));
    packed
}

/// The tensors of a launch of the forward kernel, which input gradients use as well.
pub(super) struct Launch {
    pub(super) input: View,
    pub(super) norm: Option<View>,
    pub(super) bias: Option<View>,
    pub(super) output: View,
    pub(super) statistics: Option<View>,
    pub(super) accumulate: bool,
}

pub(super) fn forward(
    rec: &mut Recorder<'_>,
    sub8: bool,
    problem: &Problem,
    input: Input,
    weight: View,
    output: &Output,
    accumulate: bool,
) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let (g, s) = (&p.geom, p.source);
    let t = Tile::of(g, s, sub8);
    let wide = wide(g.out_channels, t.widest());
    let blocks = g.out_channels / wide;
    let packed = pack(rec, Pack::Forward, g, s, &t, wide, blocks, weight);
    let &Output { view, bias, statistics } = output;
    let l = Launch { input: input.view, norm: input.norm, bias, output: view, statistics, accumulate };
    launch(rec, &t, p, wide, blocks, packed, &l)
}

/// Workgroups along the output's rows of `samples` samples, each of which writes one partial.
fn row_groups(t: &Tile, samples: usize) -> usize {
    (samples * t.out[0] * t.out[1] * t.out[2].div_ceil(t.tw())).div_ceil(t.lanes())
}

/// Partial statistics that [`forward`] writes.
pub(super) fn partials(caps: &Caps, sub8: bool, problem: &Problem) -> Result<usize> {
    let p = Problem { geom: problem.geom.flattened(), ..*problem };
    let t = Tile::of(&p.geom, p.source, sub8);
    Ok(p.parts(caps)?.iter().map(|part| row_groups(&t, part.1)).sum())
}

pub(super) fn backward_input(
    rec: &mut Recorder<'_>,
    sub8: bool,
    problem: &Problem,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let (g, s) = (&p.geom, p.source);
    let blocks_mode = g.blocks() && g.kernel != [1; 3];
    let t = if blocks_mode {
        Tile {
            grid: g.output(),
            out: g.output(),
            rows: g.out_channels,
            columns: s.channels,
            kernel: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            factor: g.kernel,
            sub8,
        }
    } else {
        Tile {
            grid: g.output(),
            out: g.input,
            rows: g.out_channels,
            columns: s.channels,
            kernel: g.kernel,
            stride: [1; 3],
            padding: std::array::from_fn(|a| g.kernel[a] - 1 - g.padding[a]),
            factor: [1; 3],
            sub8,
        }
    };
    let wide = wide(s.channels, t.widest());
    let blocks = s.channels / wide * t.factor.iter().product::<usize>();
    let mode = if blocks_mode { Pack::Blocks } else { Pack::Flipped };
    let packed = pack(rec, mode, g, s, &t, wide, blocks, weight);
    let l = Launch { input: d_output, norm: None, bias, output: d_input, statistics: None, accumulate: false };
    launch(rec, &t, p, wide, blocks, packed, &l)
}

fn launch(rec: &mut Recorder<'_>, t: &Tile, p: &Problem, wide: usize, blocks: usize, packed: View, l: &Launch) -> Result<()> {
    let (g, channels) = (&p.geom, p.source.channels);
    let [xs, ys] = match p.pass {
        Pass::InputGrad => [g.output_sample(), g.input_sample(channels)],
        Pass::Forward | Pass::WeightGrad => [g.input_sample(channels), g.output_sample()],
    };
    let text = t.forward_text(wide, blocks, l);
    let flops = g.flops_per_sample(channels);
    let mut partial = 0;
    for (n0, n) in p.parts(rec.caps)? {
        let d = Dispatch::new("conv3d", "forward", text.clone()).bind(l.input.slice(n0 * xs, n * xs)).bind(packed);
        let d = bind_some(bind_some(d, l.bias), l.norm).bind(l.output.slice(n0 * ys, n * ys));
        let d = bind_some(d, l.statistics).param("samples", n).param("first_partial", partial);
        push_runs(rec, &d, row_groups(t, n) * blocks, flops * n as u64);
        partial += row_groups(t, n);
    }
    Ok(())
}

/// Records `d` with `groups` workgroups in as many runs as keep each below the adapter's bound for one dispatch.
pub(super) fn push_runs(rec: &mut Recorder<'_>, d: &Dispatch, groups: usize, flops: u64) {
    let runs = usize::try_from(flops.div_ceil(rec.caps.max_dispatch_flops())).unwrap_or(groups).clamp(1, groups);
    let run = groups.div_ceil(runs);
    for first in (0..groups).step_by(run) {
        let last = groups.min(first + run);
        let share = flops * (last - first) as u64 / groups as u64;
        rec.push(d.clone().param("first", first).param("last", last).groups(last - first).flops(share));
    }
}

pub(super) fn backward_weight(
    rec: &mut Recorder<'_>,
    sub8: bool,
    problem: &Problem,
    input: Input,
    d_output: View,
    d_weight: View,
) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let (g, s) = (&p.geom, p.source);
    let t = Tile::of(g, s, sub8);
    // Fewer where lanes share no loads: registers are dear there.
    let most = if sub8 || g.kernel[2] <= 2 { t.widest() } else { 8 };
    let wide = wide(g.out_channels, most);
    let blocks = g.out_channels / wide;
    let elements = g.taps() * g.out_channels * s.channels;
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let parts = p.parts(rec.caps)?;
    let groups = (g.kernel[0] * g.kernel[1] * (s.channels / lot(s.channels))).div_ceil(t.lanes()) * blocks;
    let rows = parts[0].1 * t.out[0] * t.out[1];
    let row_bytes = (g.input[2] * s.channels + t.out[2] * g.out_channels) * 4;
    let splits = plain::split_count(rec, elements, rows, row_bytes, t.out[2].div_ceil(t.tw()) + 1, groups);
    let part = rec.scratch(elements * splits);
    let text = t.weight_text(wide, blocks, p.input, p.output, input.norm.is_some());
    for (i, &(n0, n)) in parts.iter().enumerate() {
        let d = Dispatch::new("conv3d", "backward_weight", text.clone())
            .bind(input.view.slice(n0 * xs, n * xs))
            .bind(d_output.slice(n0 * ys, n * ys));
        let d = bind_some(d, input.norm).bind(part).param("samples", n).param("splits", splits);
        push_runs(rec, &d, groups * splits, flops * n as u64);
        plain::sum(rec, g, s, part, splits, i > 0, d_weight);
    }
    Ok(())
}
