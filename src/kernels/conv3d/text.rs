//! The texts of the register tiles.
//!
//! Their shapes follow what measured fastest on the CPU adapter, where a load instruction costs as much as a hundred
//! multiply-adds, whatever its width, and no load is shared between lanes: an invocation reuses what it has loaded as
//! often as it can, eight weights come with one load of which each lane holds one (as pairs in 64-bit integers: sixteen),
//! and what a neighbouring lane has loaded comes from it. Within a body the sums of one group of channels come one after
//! the other, so that they stay in registers meanwhile; larger bodies do not fit the instruction cache.

use std::fmt::Write;
use std::sync::Arc;

use super::tile::{Launch, Tile, lot};
use crate::gpu::Dtype;
use crate::kernels::{Const, specialise};

const COMPONENTS: [&str; 4] = ["x", "y", "z", "w"];

/// Takes eight numbers, as loaded, apart.
const UNPACK: &str = "fn low(v: vec4<u64>) -> vec4<f32> { return bitcast<vec4<f32>>(vec4<u32>(v)); }
fn high(v: vec4<u64>) -> vec4<f32> { return bitcast<vec4<f32>>(vec4<u32>(v >> vec4<u32>(32u))); }
";

/// Mean, factor and shift of the channels of `c`.
const NORM: &str = "let mean = norm[c]; let factor = norm[CIN + c]; let shift = norm[2u * CIN + c];\n";
/// The same by one load of which three lanes hold something.
const NORM_SHARED: &str = "let three = norm[min(lane, 2u) * CIN + c];
let mean = subgroupBroadcast(three, 0u); let factor = subgroupBroadcast(three, 1u); let shift = subgroupBroadcast(three, 2u);
";

/// What is at a place of the window that a tile reads along W.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Padding, in every tile.
    Outside,
    /// A voxel, or padding in some tiles.
    Voxel { leaves: bool },
    /// What the tile to the left (or right) has at a place, or padding.
    Neighbour { left: bool, place: usize },
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

impl Tile {
    /// Tiles of a row.
    fn tiles(&self) -> usize {
        self.out[2].div_ceil(self.tw())
    }

    /// Whether the last tile of a row is cut off.
    fn ragged(&self) -> bool {
        !self.out[2].is_multiple_of(self.tw())
    }

    /// Whether some output row reads an input row outside the grid.
    fn rows_leave(&self) -> bool {
        (0..2).any(|a| self.padding[a] > 0 || (self.out[a] - 1) * self.stride[a] + self.kernel[a] > self.grid[a] + self.padding[a])
    }

    /// The window along W, each place by itself.
    fn window(&self) -> Vec<Place> {
        let count = (self.tw() - 1) * self.stride[2] + self.kernel[2];
        let outside = |i: usize, wb: usize| {
            let w = wb * self.tw() * self.stride[2] + i;
            w < self.padding[2] || w - self.padding[2] >= self.grid[2]
        };
        let place = |i| match (0..self.tiles()).filter(|&wb| outside(i, wb)).count() {
            n if n == self.tiles() => Place::Outside,
            n => Place::Voxel { leaves: n > 0 },
        };
        (0..count).map(place).collect()
    }

    /// The window where neighbouring lanes have neighbouring tiles: rows begin at the first lane of a subgroup and end
    /// at its last, so that what is beyond a tile is a neighbour's or padding.
    fn shared_window(&self) -> Vec<Place> {
        let (mut window, tw, left) = (self.window(), self.tw(), self.padding[2]);
        let right = (self.kernel[2] - 1).checked_sub(left);
        let fits = self.sub8
            && self.stride[2] == 1
            && self.out[2] == self.grid[2]
            && !self.ragged()
            && 8usize.is_multiple_of(self.tiles())
            && left <= tw
            && right.is_some_and(|r| r <= tw);
        if fits {
            for (i, place) in window.iter_mut().enumerate().filter(|(_, p)| **p != Place::Outside) {
                if i < left {
                    *place = Place::Neighbour { left: true, place: i + tw };
                } else if i >= left + tw {
                    *place = Place::Neighbour { left: false, place: i - tw };
                }
            }
        }
        window
    }

    /// The constants of a text that reads a tensor stored as `read`.
    fn header(&self, read: Dtype, wide: usize, blocks: usize) -> Vec<(&'static str, Const)> {
        let u = Const::U32;
        vec![
            ("Elem", stored(lot(self.rows), Dtype::F32)),
            ("Read", stored(lot(self.rows), read)),
            ("LANES", u(self.lanes())),
            ("TW", u(self.tw())),
            ("WIDE4", u(wide / 4)),
            ("D", u(self.grid[0])),
            ("H", u(self.grid[1])),
            ("W", u(self.grid[2])),
            ("OD", u(self.out[0])),
            ("OH", u(self.out[1])),
            ("OW", u(self.out[2])),
            ("WB", u(self.tiles())),
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
            ("BLOCKS", u(blocks)),
        ]
    }

    fn signature(&self, entry: &str) -> String {
        let lane = if self.sub8 { ", @builtin(subgroup_invocation_id) lane: u32" } else { "" };
        format!(
            "fn {entry}(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32{lane}) {{"
        )
    }

    /// How far an inner loop of `whole` turns goes: not at all where nothing that the lanes read is inside the grid.
    fn bound(&self, whole: &str) -> String {
        match (self.rows_leave(), self.sub8) {
            (false, _) => format!("let bound = {whole};\n"),
            (true, true) => format!("let bound = select(0u, {whole}, subgroupAny(inside));\n"),
            (true, false) => format!("let bound = select(0u, {whole}, inside);\n"),
        }
    }

    /// Clamped offsets along W, `o0…`, and validity `v<i>` where a tile can leave the grid.
    fn offsets(window: &[Place]) -> String {
        let mut s = String::new();
        for (i, place) in window.iter().enumerate() {
            let _ = match place {
                Place::Voxel { leaves: true } => writeln!(
                    s,
                    "let o{i} = u32(clamp(first + {i}, 0, i32(W) - 1)) * CIN;\nlet v{i} = first + {i} >= 0 && first + {i} < i32(W);"
                ),
                Place::Voxel { leaves: false } => writeln!(s, "let o{i} = u32(first + {i}) * CIN;"),
                Place::Outside | Place::Neighbour { .. } => Ok(()),
            };
        }
        s
    }

    /// The voxel at `at`, with `norm` normalised, zero where it is not `valid` or its row is outside the grid.
    fn voxel(&self, at: &str, norm: bool, valid: Option<String>) -> String {
        let load = format!("Elem(input[{at}])");
        let load = if norm { format!("max(({load} - mean) * factor + shift, Elem())") } else { load };
        // Where each lane has a loop of its own, a row outside is not read at all.
        let rows = self.rows_leave() && self.sub8;
        match (rows, valid) {
            (false, None) => load,
            (true, None) => format!("select(Elem(), {load}, inside)"),
            (false, Some(v)) => format!("select(Elem(), {load}, {v})"),
            (true, Some(v)) => format!("select(Elem(), {load}, inside && {v})"),
        }
    }

    /// Loads `<x><i>` from `input[base + o<i>]`, and takes the neighbours' from them.
    fn loads(&self, window: &[Place], x: &str, base: &str, norm: bool) -> String {
        let mut s = String::new();
        for (i, place) in window.iter().enumerate() {
            if let &Place::Voxel { leaves } = place {
                let _ = writeln!(s, "let {x}{i} = {};", self.voxel(&format!("{base} + o{i}"), norm, leaves.then(|| format!("v{i}"))));
            }
        }
        for (i, place) in window.iter().enumerate() {
            let _ = match place {
                Place::Neighbour { left: true, place } => {
                    writeln!(s, "let {x}{i} = select(Elem(), subgroupShuffle({x}{place}, (lane + 7u) & 7u), wb > 0u);")
                }
                Place::Neighbour { left: false, place } => {
                    writeln!(s, "let {x}{i} = select(Elem(), subgroupShuffle({x}{place}, (lane + 1u) & 7u), wb + 1u < WB);")
                }
                Place::Voxel { .. } | Place::Outside => Ok(()),
            };
        }
        s
    }

    /// Text of the forward kernel with `wide` output channels an invocation.
    pub(super) fn forward_text(&self, wide: usize, blocks: usize, l: &Launch) -> Arc<str> {
        let (tw, quads, lot, kw_n) = (self.tw(), wide / 4, lot(self.rows), self.kernel[2]);
        let window = self.shared_window();
        let mut begin = Self::offsets(&window);
        for t in 0..tw {
            for r in 0..quads {
                let zero = if l.bias.is_some() { format!("bias[block * WIDE4 % CO4 + {r}u]") } else { "vec4<f32>()".into() };
                let _ = writeln!(begin, "var a{t}_{r} = {zero};");
            }
        }
        // A kernel of one tap makes short bodies: two in one share the loop's cost.
        let turns = if self.sub8 && kw_n == 1 && l.norm.is_none() && (self.rows / lot).is_multiple_of(2) { 2 } else { 1 };
        let mut body = String::new();
        if l.norm.is_some() {
            body += if self.sub8 { NORM_SHARED } else { NORM };
        }
        for u in 0..turns {
            for k in 0..if self.sub8 { self.body(wide) / 16 } else { 0 } {
                let _ = writeln!(body, "let u{u}_{k} = packed[k + {u}u * BODY + {}u + lane];", 8 * k);
                let _ = writeln!(body, "let q{u}_{} = low(u{u}_{k}); let q{u}_{} = high(u{u}_{k});", 2 * k, 2 * k + 1);
            }
            body += &self.loads(&window, &format!("x{u}_"), &format!("row + {u}u"), l.norm.is_some());
        }
        for (r, u) in (0..quads).flat_map(|r| (0..turns).map(move |u| (r, u))) {
            for (j, kw) in (0..lot).flat_map(|j| (0..kw_n).map(move |kw| (j, kw))) {
                let place = |t: usize| t * self.stride[2] + kw;
                let inside: Vec<usize> = (0..tw).filter(|&t| window[place(t)] != Place::Outside).collect();
                if inside.is_empty() {
                    continue;
                }
                let i = (j * kw_n + kw) * quads + r;
                let v = if self.sub8 { format!("subgroupBroadcast(q{u}_{}, {}u)", i / 8, i % 8) } else { format!("packed[k + {i}u]") };
                let _ = write!(body, "{{ let v = {v};");
                for t in inside {
                    let x = format!("x{u}_{}", place(t));
                    let x = if lot == 1 { x } else { format!("{x}.{}", COMPONENTS[j]) };
                    let _ = write!(body, " a{t}_{r} += v * {x};");
                }
                body += " }\n";
            }
        }
        let cut = |t: usize| (t > 0 && self.ragged()).then(|| format!("wb * TW + {t}u < OW"));
        let mut store = String::new();
        for t in 0..tw {
            if let Some(within) = cut(t) {
                let _ = writeln!(store, "if {within} {{");
            }
            for r in 0..quads {
                let at = format!("output[out + {t}u * FW * CO4 + {r}u]");
                if l.accumulate {
                    let _ = writeln!(store, "a{t}_{r} += vec4<f32>({at});");
                }
                let _ = writeln!(store, "{at} = Written(a{t}_{r});");
            }
            if cut(t).is_some() {
                store += "}\n";
            }
        }
        let own = |t: usize| cut(t).map_or("live".to_owned(), |within| format!("live && {within}"));
        let statistics = if l.statistics.is_some() { self.statistics(quads, own) } else { String::new() };
        let signature = self.signature("forward");
        let mut header = self.header(l.input.dtype, wide, blocks);
        header.push(("Written", stored(4, l.output.dtype)));
        header.push(("Weight", Const::Type(if self.sub8 { "vec4<u64>" } else { "vec4<f32>" })));
        header.push(("TURNS", Const::U32(turns)));
        header.push(("BODY", Const::U32(self.body(wide) / if self.sub8 { 2 } else { 1 })));
        let blocks = [
            ("unpack", if self.sub8 { UNPACK } else { "" }),
            ("signature", &signature),
            ("begin", &begin),
            ("bound", &self.bound("CIN")),
            ("body", &body),
            ("store", &store),
            ("statistics", &statistics),
        ];
        specialise("conv3d_tile", &header, &blocks)
    }

    /// Count, mean and squared differences over the workgroup's output rows; `own` says which outputs are some.
    fn statistics(&self, quads: usize, own: impl Fn(usize) -> String) -> String {
        let tw = self.tw();
        let mut s = String::new();
        let total = |v: &str| if self.sub8 { format!("subgroupAdd({v})") } else { format!("group_sum({v}, t)") };
        for t in 0..tw {
            let _ = writeln!(s, "let own{t} = {};", own(t));
        }
        let sum_of = |f: &dyn Fn(usize) -> String| (0..tw).map(f).collect::<Vec<_>>().join(" + ");
        let counted = sum_of(&|t| format!("select(0.0, 1.0, own{t})"));
        let _ = writeln!(s, "let rows_n = {};", total(&format!("vec4<f32>({counted})")));
        s += "let to = (p.first_partial + group % blocks) * 3u * CO4 + block * WIDE4;\n";
        for r in 0..quads {
            let sum = total(&sum_of(&|t| format!("select(vec4<f32>(), a{t}_{r}, own{t})")));
            let _ = writeln!(s, "let mean{r} = {sum} / max(rows_n, vec4<f32>(1.0));");
            for t in 0..tw {
                let _ = writeln!(s, "let d{t}_{r} = select(vec4<f32>(), a{t}_{r} - mean{r}, own{t});");
            }
            let _ = writeln!(s, "let squares{r} = {};", total(&sum_of(&|t| format!("d{t}_{r} * d{t}_{r}"))));
        }
        s += "if t == 0u && group < p.last {\n";
        for r in 0..quads {
            let _ = writeln!(s, "statistics[to + {r}u] = rows_n;");
            let _ = writeln!(s, "statistics[to + CO4 + {r}u] = mean{r};");
            let _ = writeln!(s, "statistics[to + 2u * CO4 + {r}u] = squares{r};");
        }
        s + "}\n"
    }

    /// Text of the weight-gradient kernel, from tensors stored as given.
    pub(super) fn weight_text(&self, wide: usize, blocks: usize, input: Dtype, gradient: Dtype, norm: bool) -> Arc<str> {
        let (tw, kw_n, lot, window) = (self.tw(), self.kernel[2], lot(self.rows), self.window());
        // Channels of a loaded gradient.
        let unit = if self.sub8 && gradient == Dtype::F32 && wide.is_multiple_of(8) { 8 } else { 4 };
        let per = wide / unit;
        // What a tile shares with the next one of the row.
        let kept = if self.sub8 && self.stride[2] == 1 { kw_n - 1 } else { 0 };
        let mut begin = String::new();
        if norm {
            begin += NORM;
        }
        // Four input channels by each output channel, or one input channel by output channels in fours.
        let owned = if lot == 4 { wide } else { wide / 4 };
        for (kw, o) in (0..kw_n).flat_map(|kw| (0..owned).map(move |o| (kw, o))) {
            let _ = writeln!(begin, "var a{kw}_{o} = vec4<f32>();");
        }
        let loads = if self.sub8 { (tw * per).div_ceil(8) } else { 0 };
        for k in 0..loads {
            // Lane l fetches element l: voxel l / per, unit l % per of the block.
            let element = format!("min(lane + {}u, {}u)", 8 * k, tw * per - 1);
            let _ = writeln!(begin, "let t{k} = {element} / {per}u;\nlet e{k} = t{k} * VOXEL + {element} % {per}u;");
        }
        let mut row = self.bound("WB");
        for (i, place) in window.iter().enumerate().take(kept) {
            // Places of the row's first tile.
            let w = i.checked_sub(self.padding[2]).filter(|&w| w < self.grid[2] && *place != Place::Outside);
            let x = w.map_or("Elem()".to_owned(), |w| self.voxel(&format!("x + {w}u * CIN"), norm, None));
            let _ = writeln!(row, "var x{i} = {x};");
        }
        let fresh: Vec<Place> = window.iter().enumerate().map(|(i, p)| if i < kept { Place::Outside } else { *p }).collect();
        let mut body = Self::offsets(&fresh);
        for k in 0..loads {
            let at = if self.ragged() {
                let _ = writeln!(body, "let f{k} = wb * TW + t{k} < OW;");
                format!("d_output[select(row * OW * VOXEL, y + e{k}, f{k})]")
            } else {
                format!("d_output[y + e{k}]")
            };
            let masked = |v: &str| if self.ragged() { format!("select(vec4<f32>(), {v}, f{k})") } else { v.to_owned() };
            let _ = if unit == 8 {
                writeln!(
                    body,
                    "let g{k} = {at}; let q{k}_0 = {}; let q{k}_1 = {};",
                    masked(&format!("low(g{k})")),
                    masked(&format!("high(g{k})"))
                )
            } else {
                writeln!(body, "let q{k}_0 = {};", masked(&format!("vec4<f32>({at})")))
            };
        }
        body += &self.loads(&fresh, "x", "x", norm);
        // Output gradient of voxel t and channel o of the block.
        let scalar = |t: usize, o: usize| {
            let (e, n) = (t * per + o / unit, o % unit);
            let (part, n) = if unit == 8 { (n % 2, n / 2) } else { (0, n) };
            format!("subgroupBroadcast(q{}_{part}.{}, {}u)", e / 8, COMPONENTS[n], e % 8)
        };
        let vector = |t: usize, r: usize| {
            if self.sub8 {
                let four: Vec<String> = (0..4).map(|n| scalar(t, 4 * r + n)).collect();
                format!("vec4<f32>({})", four.join(", "))
            } else if self.ragged() && t > 0 {
                let valid = format!("wb * TW + {t}u < OW");
                format!("select(vec4<f32>(), vec4<f32>(d_output[select(row * OW * VOXEL, y + {t}u * VOXEL + {r}u, {valid})]), {valid})")
            } else {
                format!("vec4<f32>(d_output[y + {t}u * VOXEL + {r}u])")
            }
        };
        let place = |t: usize, kw: usize| t * self.stride[2] + kw;
        let inside = |t: usize, kw: usize| window[place(t, kw)] != Place::Outside;
        if self.sub8 && lot == 4 {
            for o in 0..wide {
                body += "{";
                for t in 0..tw {
                    let _ = write!(body, " let v{t} = {};", scalar(t, o));
                }
                for (kw, t) in (0..kw_n).flat_map(|kw| (0..tw).map(move |t| (kw, t))).filter(|&(kw, t)| inside(t, kw)) {
                    let _ = write!(body, " a{kw}_{o} += x{} * v{t};", place(t, kw));
                }
                body += " }\n";
            }
        } else {
            for (t, r) in (0..tw).flat_map(|t| (0..wide / 4).map(move |r| (t, r))) {
                let _ = write!(body, "{{ let v = {};", vector(t, r));
                for kw in (0..kw_n).filter(|&kw| inside(t, kw)) {
                    let x = place(t, kw);
                    if lot == 1 {
                        let _ = write!(body, " a{kw}_{r} += v * x{x};");
                        continue;
                    }
                    for (n, c) in COMPONENTS.iter().enumerate() {
                        let _ = write!(body, " a{kw}_{} += x{x} * v.{c};", 4 * r + n);
                    }
                }
                body += " }\n";
            }
        }
        for i in 0..kept {
            let next = i + tw;
            let x = if window[next] == Place::Outside { "Elem()".to_owned() } else { format!("x{next}") };
            let _ = writeln!(body, "x{i} = {x};");
        }
        let mut store = String::new();
        for (kw, o) in (0..kw_n).flat_map(|kw| (0..wide).map(move |o| (kw, o))) {
            let value = if lot == 4 { format!("a{kw}_{o}") } else { format!("a{kw}_{}.{}", o / 4, COMPONENTS[o % 4]) };
            let _ = writeln!(store, "part[out + {kw}u * CO4 * 4u * CIN + {o}u * CIN] = {value};");
        }
        let signature = self.signature("backward_weight");
        let mut header = self.header(input, wide, blocks);
        header.push(("Gradient", if unit == 8 { Const::Type("vec4<u64>") } else { stored(4, gradient) }));
        header.push(("VOXEL", Const::U32(self.columns / unit)));
        header.push(("OWN", Const::U32(per)));
        let blocks = [
            ("unpack", if unit == 8 { UNPACK } else { "" }),
            ("signature", &signature[..]),
            ("begin", &begin),
            ("row", &row),
            ("body", &body),
            ("store", &store),
        ];
        specialise("conv3d_tile_weight", &header, &blocks)
    }
}
