//! The register-tile variants, their text generation and the packing of their weights.
//!
//! The shapes follow what measured fastest on the CPU adapter: a load costs about as much as a
//! hundred multiply-adds there, so an invocation reuses each loaded vec4 as often as registers
//! allow, and eight weights are fetched by one load of which each lane holds one.

use std::fmt::Write;
use std::sync::Arc;

use super::{Geom, Source, plain};
use crate::error::Result;
use crate::gpu::{Dispatch, Recorder, View};
use crate::kernels::{Const, batch_parts, specialise};

/// Whether `columns`, the channels a tile kernel owns in fours, suit it; those it sums over always do.
pub(super) fn fits(columns: usize) -> bool {
    columns.is_multiple_of(4)
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

    fn header(&self, tw: usize, wide: usize, blocks: usize, body: usize) -> Vec<(&'static str, Const)> {
        let u = Const::U32;
        vec![
            ("Elem", Const::Type(if lot(self.rows) == 4 { "vec4<f32>" } else { "f32" })),
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

    /// Loads `x<i>` from `input[base + o<i>]`, zero outside the grid.
    fn loads(&self, outside: &[bool], base: &str) -> String {
        let mut s = String::new();
        let rows = rows_leave(self);
        for (i, &leaves) in outside.iter().enumerate() {
            let valid = match (rows, leaves) {
                (false, false) => None,
                (true, false) => Some("inside".to_owned()),
                (false, true) => Some(format!("v{i}")),
                (true, true) => Some(format!("inside && v{i}")),
            };
            let load = format!("input[{base} + o{i}]");
            let _ = match valid {
                None => writeln!(s, "let x{i} = {load};"),
                Some(v) => writeln!(s, "let x{i} = select(Elem(), {load}, {v});"),
            };
        }
        s
    }

    /// Text of the forward kernel with `wide` output channels an invocation.
    fn forward_text(&self, wide: usize, blocks: usize, bias: bool, accumulate: bool) -> Arc<str> {
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
        body += &self.loads(&outside, "row");
        for i in 0..weights {
            let (r, kw, j) = (i % quads, i / quads % self.kernel[2], i / (quads * self.kernel[2]));
            let v = if self.sub8 { format!("subgroupBroadcast(q{}, {}u)", i / 8, i % 8) } else { format!("packed[k + {i}u]") };
            let _ = write!(body, "{{ let v = {v};");
            for t in 0..tw {
                let _ = write!(body, " a{t}_{r} += v * {};", component(t * self.stride[2] + kw, j, lot));
            }
            body += " }\n";
        }
        let mut store = String::new();
        for t in 0..tw {
            let ragged = t > 0 && !self.out[2].is_multiple_of(tw);
            if ragged {
                let _ = writeln!(store, "if wb * TW + {t}u < OW {{");
            }
            for r in 0..quads {
                let at = format!("output[out + {t}u * FW * CO4 + {r}u]");
                let _ = if accumulate { writeln!(store, "{at} += a{t}_{r};") } else { writeln!(store, "{at} = a{t}_{r};") };
            }
            if ragged {
                store += "}\n";
            }
        }
        let signature = self.signature("forward");
        specialise(
            "conv3d_tile",
            &self.header(tw, wide, blocks, body_len),
            &[("signature", &signature), ("begin", &begin), ("body", &body), ("store", &store)],
        )
    }

    /// vec4 per packed (block, kd, kh, input lot), rounded up so that every lane's load stays inside.
    fn body(&self, wide: usize) -> usize {
        (self.kernel[2] * wide / 4 * lot(self.rows)).next_multiple_of(8)
    }

    /// Text of the weight-gradient kernel.
    fn weight_text(&self, wide: usize, blocks: usize) -> Arc<str> {
        let (tw, quads, kw_n) = (self.tw(), wide / 4, self.kernel[2]);
        let outside = taps_along_w(self, tw);
        let mut begin = String::new();
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
                        "let q{k} = select(vec4<f32>(), d_output[select(row * OW * CO4, y + {voxel} * CO4 + e{k} % {quads}u, f{k})], f{k});"
                    );
                } else {
                    let _ = writeln!(body, "let q{k} = d_output[y + {voxel} * CO4 + e{k} % {quads}u];");
                }
            }
        }
        body += &self.loads(&outside, "x");
        for i in 0..values {
            let (t, r) = (i / quads, i % quads);
            let v = if self.sub8 {
                format!("subgroupBroadcast(q{}, {}u)", i / 8, i % 8)
            } else if ragged && t > 0 {
                format!(
                    "select(vec4<f32>(), d_output[select(row * OW * CO4, y + {t}u * CO4 + {r}u, wb * TW + {t}u < OW)], wb * TW + {t}u < OW)"
                )
            } else {
                format!("d_output[y + {t}u * CO4 + {r}u]")
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
        specialise(
            "conv3d_tile_weight",
            &self.header(tw, wide, blocks, 0),
            &[("signature", &signature), ("begin", &begin), ("body", &body), ("store", &store)],
        )
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

pub(super) fn forward(
    rec: &mut Recorder<'_>,
    sub8: bool,
    g: &Geom,
    s: Source,
    input: View,
    weight: View,
    bias: Option<View>,
    output: View,
    accumulate: bool,
) -> Result<()> {
    let g = &g.flattened();
    let t = Tile::of(g, s, sub8);
    let wide = wide(g.out_channels, 16);
    let blocks = g.out_channels / wide;
    let packed = pack(rec, Pack::Forward, g, s, &t, wide, blocks, weight);
    launch(rec, &t, g, s, wide, blocks, (input, g.input_sample(s.channels)), packed, bias, (output, g.output_sample()), accumulate)
}

pub(super) fn backward_input(
    rec: &mut Recorder<'_>,
    sub8: bool,
    g: &Geom,
    s: Source,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    let g = &g.flattened();
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
    launch(rec, &t, g, s, wide, blocks, (d_output, g.output_sample()), packed, bias, (d_input, g.input_sample(s.channels)), false)
}

fn launch(
    rec: &mut Recorder<'_>,
    t: &Tile,
    g: &Geom,
    s: Source,
    wide: usize,
    blocks: usize,
    (input, xs): (View, usize),
    packed: View,
    bias: Option<View>,
    (output, ys): (View, usize),
    accumulate: bool,
) -> Result<()> {
    let text = t.forward_text(wide, blocks, bias.is_some(), accumulate);
    let flops = g.flops_per_sample(s.channels);
    let items = t.out[0] * t.out[1] * t.out[2].div_ceil(t.tw());
    for (n0, n) in batch_parts(rec.caps, "conv3d", g.batch, &[xs, ys], flops)? {
        let mut d = Dispatch::new("conv3d", "forward", text.clone()).bind(input.slice(n0 * xs, n * xs)).bind(packed);
        if let Some(bias) = bias {
            d = d.bind(bias);
        }
        let d = d.bind(output.slice(n0 * ys, n * ys)).param("samples", n);
        push_runs(rec, &d, (n * items).div_ceil(t.lanes()) * blocks, flops * n as u64);
    }
    Ok(())
}

/// Records `d` with `groups` workgroups in as many runs as keep each below the adapter's bound for one dispatch.
fn push_runs(rec: &mut Recorder<'_>, d: &Dispatch, groups: usize, flops: u64) {
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
    g: &Geom,
    s: Source,
    input: View,
    d_output: View,
    d_weight: View,
) -> Result<()> {
    let g = &g.flattened();
    let t = Tile::of(g, s, sub8);
    let wide = wide(g.out_channels, if g.kernel[2] <= 2 { 16 } else { 8 });
    let blocks = g.out_channels / wide;
    let elements = g.taps() * g.out_channels * s.channels;
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let parts = batch_parts(rec.caps, "conv3d", g.batch, &[xs, ys], flops)?;
    let groups = (g.kernel[0] * g.kernel[1] * (s.channels / lot(s.channels))).div_ceil(t.lanes()) * blocks;
    let rows = parts[0].1 * t.out[0] * t.out[1];
    let row_bytes = (g.input[2] * s.channels + t.out[2] * g.out_channels) * 4;
    let splits = plain::split_count(rec, elements, rows, row_bytes, groups);
    let part = rec.scratch(elements * splits);
    let text = t.weight_text(wide, blocks);
    for (i, &(n0, n)) in parts.iter().enumerate() {
        let d = Dispatch::new("conv3d", "backward_weight", text.clone())
            .bind(input.slice(n0 * xs, n * xs))
            .bind(d_output.slice(n0 * ys, n * ys))
            .bind(part)
            .param("samples", n)
            .param("splits", splits);
        push_runs(rec, &d, groups * splits, flops * n as u64);
        plain::sum(rec, g, s, part, splits, i > 0, d_weight);
    }
    Ok(())
}
