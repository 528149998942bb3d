//! The register-tile variants, their text generation and the packing of their weights.
//!
//! The shapes follow what measured fastest on the CPU adapter: a load costs about as much as a
//! hundred multiply-adds there, so an invocation reuses each loaded vec4 as often as registers
//! allow, and eight weights are fetched by one load of which each lane holds one.

use std::fmt::Write;
use std::sync::Arc;

use super::plain::{self, bind_some};
use super::{Geom, Input, Output, Pass, Problem, Source};
use crate::error::Result;
use crate::gpu::{Caps, Dispatch, Dtype, Recorder, View};
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

/// The type of `lot` numbers as they are stored.
fn stored(lot: usize, dtype: Dtype) -> Const {
    Const::Type(match (lot, dtype) {
        (4, Dtype::F32) => "vec4<f32>",
        (4, Dtype::F16) => "vec4<f16>",
        (_, Dtype::F32) => "f32",
        (_, Dtype::F16) => "f16",
    })
}

/// The text of `load`ed numbers after batch norm and ReLU.
fn normalised(load: &str) -> String {
    format!("max(({load} - mean) * factor + shift, Elem())")
}

/// Input channels that one load takes: four, or one where their number is no multiple of four.
fn lot(channels: usize) -> usize {
    if channels.is_multiple_of(4) { 4 } else { 1 }
}

/// The text of component `j` of the loaded `x<i>`.
fn component(i: usize, j: usize, lot: usize) -> String {
    if lot == 1 { format!("x{i}") } else { format!("x{i}.{}", ["x", "y", "z", "w"][j]) }
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
struct Tile {
    /// Grid read from.
    grid: [usize; 3],
    /// Grid of tiles (before the block factor).
    out: [usize; 3],
    rows: usize,
    /// Channels of the tensor written.
    columns: usize,
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    /// Each output becomes a block of this size.
    factor: [usize; 3],
    sub8: bool,
}

/// Where along W a tile reads: constant offset `i`, and whether some tile reads outside the grid there.
fn taps_along_w(t: &Tile, tw: usize) -> Vec<bool> {
    let tiles = t.out[2].div_ceil(tw);
    let count = (tw - 1) * t.stride[2] + t.kernel[2];
    (0..count)
        .map(|i| {
            (0..tiles).any(|wb| {
                let w = wb * tw * t.stride[2] + i;
                w < t.padding[2] || w - t.padding[2] >= t.grid[2]
            })
        })
        .collect()
}

/// Whether some output row reads an input row outside the grid.
fn rows_leave(t: &Tile) -> bool {
    (0..2).any(|a| t.padding[a] > 0 || (t.out[a] - 1) * t.stride[a] + t.kernel[a] > t.grid[a] + t.padding[a])
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

    fn tw(&self) -> usize {
        [4, 2, 1].into_iter().find(|&t| t <= self.out[2]).unwrap_or(1)
    }

    fn lanes(&self) -> usize {
        if self.sub8 { 8 } else { 64 }
    }

    /// The constants of a text that reads a tensor stored as `read`.
    fn header(&self, read: Dtype, tw: usize, wide: usize, blocks: usize, body: usize) -> Vec<(&'static str, Const)> {
        let u = Const::U32;
        vec![
            ("Elem", stored(lot(self.rows), Dtype::F32)),
            ("Read", stored(lot(self.rows), read)),
            ("LANES", u(self.lanes())),
            ("TW", u(tw)),
            ("WIDE4", u(wide / 4)),
            ("D", u(self.grid[0])),
            ("H", u(self.grid[1])),
            ("W", u(self.grid[2])),
            ("OD", u(self.out[0])),
            ("OH", u(self.out[1])),
            ("OW", u(self.out[2])),
            ("WB", u(self.out[2].div_ceil(tw))),
            ("CIN", u(self.rows / lot(self.rows))),
            ("CO4", u(self.columns / 4)),
            ("KD", u(self.kernel[0])),
            ("KH", u(self.kernel[1])),
            ("KW", u(self.kernel[2])),
            ("SD", u(self.stride[0])),
            ("SH", u(self.stride[1])),
            ("SW", u(self.stride[2])),
            ("PD", u(self.padding[0])),
            ("PH", u(self.padding[1])),
            ("PW", u(self.padding[2])),
            ("FD", u(self.factor[0])),
            ("FH", u(self.factor[1])),
            ("FW", u(self.factor[2])),
            ("BODY", u(body)),
            ("BLOCKS", u(blocks)),
        ]
    }

    fn signature(&self, entry: &str) -> String {
        let lane = if self.sub8 { ", @builtin(subgroup_invocation_id) lane: u32" } else { "" };
        format!(
            "fn {entry}(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32{lane}) {{"
        )
    }

    /// Clamped offsets along W, `o0…`, and validity `v<i>` where a tile can leave the grid.
    fn offsets(&self, outside: &[bool], indent: &str) -> String {
        let mut s = String::new();
        for (i, &leaves) in outside.iter().enumerate() {
            if leaves {
                let _ = writeln!(s, "{indent}let o{i} = u32(clamp(first + {i}, 0, i32(W) - 1)) * CIN;");
                let _ = writeln!(s, "{indent}let v{i} = first + {i} >= 0 && first + {i} < i32(W);");
            } else {
                let _ = writeln!(s, "{indent}let o{i} = u32(first + {i}) * CIN;");
            }
        }
        s
    }

    /// Loads `x<i>` from `input[base + o<i>]`, with `norm` normalised, zero outside the grid.
    fn loads(&self, outside: &[bool], base: &str, norm: bool) -> String {
        let mut s = String::new();
        let rows = rows_leave(self);
        for (i, &leaves) in outside.iter().enumerate() {
            let valid = match (rows, leaves) {
                (false, false) => None,
                (true, false) => Some("inside".to_owned()),
                (false, true) => Some(format!("v{i}")),
                (true, true) => Some(format!("inside && v{i}")),
            };
            let load = format!("Elem(input[{base} + o{i}])");
            let load = if norm { normalised(&load) } else { load };
            let _ = match valid {
                None => writeln!(s, "let x{i} = {load};"),
                Some(v) => writeln!(s, "let x{i} = select(Elem(), {load}, {v});"),
            };
        }
        s
    }

    /// Text of the forward kernel with `wide` output channels an invocation.
    fn forward_text(&self, wide: usize, blocks: usize, l: &Launch) -> Arc<str> {
        let (bias, norm) = (l.bias.is_some(), l.norm.is_some());
        let (tw, quads) = (self.tw(), wide / 4);
        let outside = taps_along_w(self, tw);
        let body_len = self.body(wide);
        let mut begin = self.offsets(&outside, "    ");
        for t in 0..tw {
            for r in 0..quads {
                let zero = if bias { format!("bias[block * WIDE4 % CO4 + {r}u]") } else { "vec4<f32>()".into() };
                let _ = writeln!(begin, "    var a{t}_{r} = {zero};");
            }
        }
        let mut body = String::new();
        let lot = lot(self.rows);
        let weights = lot * self.kernel[2] * quads;
        if self.sub8 {
            for k in 0..weights.div_ceil(8) {
                let _ = writeln!(body, "let q{k} = packed[k + {}u + lane];", 8 * k);
            }
        }
        if norm {
            body += "let mean = norm[c]; let factor = norm[CIN + c]; let shift = norm[2u * CIN + c];\n";
        }
        body += &self.loads(&outside, "row", norm);
        for i in 0..weights {
            let (r, kw, j) = (i % quads, i / quads % self.kernel[2], i / (quads * self.kernel[2]));
            let v = if self.sub8 { format!("subgroupBroadcast(q{}, {}u)", i / 8, i % 8) } else { format!("packed[k + {i}u]") };
            let _ = write!(body, "{{ let v = {v};");
            for t in 0..tw {
                let _ = write!(body, " a{t}_{r} += v * {};", component(t * self.stride[2] + kw, j, lot));
            }
            body += " }\n";
        }
        let ragged = |t: usize| t > 0 && !self.out[2].is_multiple_of(tw);
        let mut store = String::new();
        for t in 0..tw {
            if ragged(t) {
                let _ = writeln!(store, "if wb * TW + {t}u < OW {{");
            }
            for r in 0..quads {
                let at = format!("output[out + {t}u * FW * CO4 + {r}u]");
                if l.accumulate {
                    let _ = writeln!(store, "a{t}_{r} += vec4<f32>({at});");
                }
                let _ = writeln!(store, "{at} = Written(a{t}_{r});");
            }
            if ragged(t) {
                store += "}\n";
            }
        }
        let mut statistics = String::new();
        if l.statistics.is_some() {
            // Over the workgroup's rows: lanes and the tile's outputs that are none count nothing.
            let total = |v: &str| if self.sub8 { format!("subgroupAdd({v})") } else { format!("group_sum({v}, t)") };
            let own = |t: usize| if ragged(t) { format!("live && wb * TW + {t}u < OW") } else { "live".to_owned() };
            for t in 0..tw {
                let _ = writeln!(statistics, "let own{t} = {};", own(t));
            }
            let sum_of = |f: &dyn Fn(usize) -> String| (0..tw).map(f).collect::<Vec<_>>().join(" + ");
            let counted = sum_of(&|t| format!("select(0.0, 1.0, own{t})"));
            let _ = writeln!(statistics, "let rows_n = {};", total(&format!("vec4<f32>({counted})")));
            statistics += "let to = (p.first_partial + group % blocks) * 3u * CO4 + block * WIDE4;\n";
            for r in 0..quads {
                let sum = total(&sum_of(&|t| format!("select(vec4<f32>(), a{t}_{r}, own{t})")));
                let _ = writeln!(statistics, "let mean{r} = {sum} / max(rows_n, vec4<f32>(1.0));");
                for t in 0..tw {
                    let _ = writeln!(statistics, "let d{t}_{r} = select(vec4<f32>(), a{t}_{r} - mean{r}, own{t});");
                }
                let _ = writeln!(statistics, "let squares{r} = {};", total(&sum_of(&|t| format!("d{t}_{r} * d{t}_{r}"))));
            }
            statistics += "if t == 0u && group < p.last {\n";
            for r in 0..quads {
                let _ = writeln!(statistics, "statistics[to + {r}u] = rows_n;");
                let _ = writeln!(statistics, "statistics[to + CO4 + {r}u] = mean{r};");
                let _ = writeln!(statistics, "statistics[to + 2u * CO4 + {r}u] = squares{r};");
            }
            statistics += "}\n";
        }
        let signature = self.signature("forward");
        let mut header = self.header(l.input.dtype, tw, wide, blocks, body_len);
        header.push(("Written", stored(4, l.output.dtype)));
        let blocks = [("signature", &signature[..]), ("begin", &begin), ("body", &body), ("store", &store), ("statistics", &statistics)];
        specialise("conv3d_tile", &header, &blocks)
    }

    /// vec4 per packed (block, kd, kh, input lot), rounded up so that every lane's load stays inside.
    fn body(&self, wide: usize) -> usize {
        (self.kernel[2] * wide / 4 * lot(self.rows)).next_multiple_of(8)
    }

    /// Text of the weight-gradient kernel, from tensors stored as given.
    fn weight_text(&self, wide: usize, blocks: usize, input: Dtype, gradient: Dtype, norm: bool) -> Arc<str> {
        let (tw, quads, kw_n) = (self.tw(), wide / 4, self.kernel[2]);
        let outside = taps_along_w(self, tw);
        let mut begin = String::new();
        if norm {
            begin += "    let mean = norm[c]; let factor = norm[CIN + c]; let shift = norm[2u * CIN + c];\n";
        }
        // Four input channels by each output channel, or one input channel by output channels in fours.
        let lot = lot(self.rows);
        let owned = if lot == 4 { wide } else { quads };
        for kw in 0..kw_n {
            for o in 0..owned {
                let _ = writeln!(begin, "    var a{kw}_{o} = vec4<f32>();");
            }
        }
        let mut body = self.offsets(&outside, "");
        let ragged = !self.out[2].is_multiple_of(tw);
        let values = tw * quads;
        if self.sub8 {
            // Lane l fetches element l: voxel l / quads, channel quad l % quads.
            for k in 0..values.div_ceil(8) {
                let _ = writeln!(body, "let e{k} = min(lane + {}u, {}u);", 8 * k, values - 1);
                let voxel = format!("e{k} / {quads}u");
                if ragged {
                    let _ = writeln!(body, "let f{k} = wb * TW + {voxel} < OW;");
                    let _ = writeln!(
                        body,
                        "let q{k} = select(vec4<f32>(), vec4<f32>(d_output[select(row * OW * CO4, y + {voxel} * CO4 + e{k} % {quads}u, f{k})]), f{k});"
                    );
                } else {
                    let _ = writeln!(body, "let q{k} = vec4<f32>(d_output[y + {voxel} * CO4 + e{k} % {quads}u]);");
                }
            }
        }
        body += &self.loads(&outside, "x", norm);
        for i in 0..values {
            let (t, r) = (i / quads, i % quads);
            let v = if self.sub8 {
                format!("subgroupBroadcast(q{}, {}u)", i / 8, i % 8)
            } else if ragged && t > 0 {
                format!(
                    "select(vec4<f32>(), vec4<f32>(d_output[select(row * OW * CO4, y + {t}u * CO4 + {r}u, wb * TW + {t}u < OW)]), wb * TW + {t}u < OW)"
                )
            } else {
                format!("vec4<f32>(d_output[y + {t}u * CO4 + {r}u])")
            };
            let _ = write!(body, "{{ let v = {v};");
            for kw in 0..kw_n {
                let x = t * self.stride[2] + kw;
                if lot == 1 {
                    let _ = write!(body, " a{kw}_{r} += v * x{x};");
                    continue;
                }
                for (n, c) in ["x", "y", "z", "w"].iter().enumerate() {
                    let _ = write!(body, " a{kw}_{} += x{x} * v.{c};", 4 * r + n);
                }
            }
            body += " }\n";
        }
        let mut store = String::new();
        for kw in 0..kw_n {
            for o in 0..wide {
                let value = if lot == 4 { format!("a{kw}_{o}") } else { format!("a{kw}_{}.{}", o / 4, ["x", "y", "z", "w"][o % 4]) };
                let _ = writeln!(store, "part[out + {kw}u * CO4 * 4u * CIN + {o}u * CIN] = {value};");
            }
        }
        let signature = self.signature("backward_weight");
        let mut header = self.header(input, tw, wide, blocks, 0);
        header.push(("Gradient", stored(4, gradient)));
        specialise("conv3d_tile_weight", &header, &[("signature", &signature), ("begin", &begin), ("body", &body), ("store", &store)])
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
    let d = Dispatch::new("conv3d", "pack", specialise("conv3d_pack", &[("MODE", Const::U32(mode as usize))], &[]))
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
struct Launch {
    input: View,
    norm: Option<View>,
    bias: Option<View>,
    output: View,
    statistics: Option<View>,
    accumulate: bool,
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
    let wide = wide(g.out_channels, 16);
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
    let wide = wide(s.channels, 16);
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
    let wide = wide(g.out_channels, if g.kernel[2] <= 2 { 16 } else { 8 });
    let blocks = g.out_channels / wide;
    let elements = g.taps() * g.out_channels * s.channels;
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let parts = p.parts(rec.caps)?;
    let groups = (g.kernel[0] * g.kernel[1] * (s.channels / lot(s.channels))).div_ceil(t.lanes()) * blocks;
    let rows = parts[0].1 * t.out[0] * t.out[1];
    let row_bytes = (g.input[2] * s.channels + t.out[2] * g.out_channels) * 4;
    let splits = plain::split_count(rec, elements, rows, row_bytes, groups);
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
