//! Implicit matrix products through workgroup memory, for adapters whose invocations run side by side: any GPU.

use std::sync::Arc;

use super::plain::{self, bind_some};
use super::product::{Block, Product, vec4};
use super::tile::push_runs;
use super::{Geom, Input, Output, Pass, Problem, Source};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dispatch, Dtype, Recorder, View};
use crate::kernels::{Const, specialise};

/// What a workgroup owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// The variant's name.
    pub(super) name: &'static str,
    /// Outputs.
    voxels: usize,
    /// Channels of each output.
    wide: usize,
    /// Neighbouring outputs of an invocation.
    run: usize,
    /// Channel quads of an invocation.
    quads: usize,
}

/// The tiles, from the one with the most reuse to the one that fills an adapter with the least work.
pub(super) const TILES: [Tile; 4] = [
    Tile { name: "simt_128x128", voxels: 128, wide: 128, run: 8, quads: 2 },
    Tile { name: "simt_128x64", voxels: 128, wide: 64, run: 8, quads: 1 },
    Tile { name: "simt_128x32", voxels: 128, wide: 32, run: 8, quads: 1 },
    Tile { name: "simt_64x32", voxels: 64, wide: 32, run: 4, quads: 1 },
];

/// The tile of weight gradients: output by input channels.
pub(super) const WEIGHT: Tile = Tile { name: "simt_weight_64x64", voxels: 0, wide: 64, run: 8, quads: 1 };

/// Workgroups that keep a large GPU busy: two on each of 132 multiprocessors.
const FILL: usize = 264;

/// Channel names of a vector.
const XYZW: [&str; 4] = ["x", "y", "z", "w"];

/// A tile laid out for a product.
#[derive(Clone, Copy, Debug)]
struct Plan {
    tile: Tile,
    product: Product,
    shape: [usize; 3],
    /// Channel quads staged at once.
    lot4: usize,
}

impl Tile {
    fn threads(&self) -> usize {
        self.voxels / self.run * self.wide / (4 * self.quads)
    }

    /// The tile on an adapter, with as many channels staged at once as its workgroup memory holds.
    fn plan(&self, caps: &Caps, product: &Product) -> Option<Plan> {
        let memory = caps.workgroup_memory as usize / 16;
        [2, 1].into_iter().find_map(|lot4| {
            // Which axis is the last is not known before the tile is; the longest row of taps bounds its weights.
            let weights = product.kernel.iter().max().unwrap_or(&1) * lot4 * self.wide;
            let (product, shape) = product.tile(self.voxels, self.run, memory.saturating_sub(weights) / lot4)?;
            let plan = Plan { tile: *self, product, shape, lot4 };
            (plan.cells() <= memory).then_some(plan)
        })
    }
}

/// The tiles that can carry `problem` out on an adapter, the one used without a choice first: the widest that leaves no large
/// adapter idle.
pub(super) fn candidates(caps: &Caps, problem: &Problem) -> Vec<Tile> {
    if problem.pass == Pass::WeightGrad {
        return if weight_fits(caps, problem) { vec![WEIGHT] } else { Vec::new() };
    }
    let Some(product) = Product::of(problem) else { return Vec::new() };
    let narrow = product.all_columns() <= 32;
    let wide = if narrow { 32 } else { 64 };
    let mut plans: Vec<Plan> = TILES.iter().filter(|t| !narrow || t.wide <= 32).filter_map(|t| t.plan(caps, &product)).collect();
    let suited = |p: &Plan| p.tile.wide == wide && p.tile.voxels == 128 && p.groups(problem.geom.batch) >= FILL;
    let first = plans.iter().position(suited).unwrap_or(plans.len().saturating_sub(1));
    if !plans.is_empty() {
        plans[..=first].rotate_right(1);
    }
    plans.into_iter().map(|p| p.tile).collect()
}

impl Plan {
    fn input_cells(&self) -> usize {
        self.product.halo(self.shape).iter().product::<usize>() * self.lot4
    }

    fn weight_cells(&self) -> usize {
        self.product.kernel[2] * self.lot4 * self.tile.wide
    }

    /// vec4 of workgroup memory; the partial statistics go there as well.
    fn cells(&self) -> usize {
        (self.input_cells() + self.weight_cells()).max(self.tile.threads() * self.tile.quads)
    }

    fn panels(&self) -> usize {
        self.product.all_columns().div_ceil(self.tile.wide)
    }

    /// Tiles of a sample.
    fn tiles(&self) -> usize {
        self.product.tiles(self.shape).iter().product()
    }

    fn groups(&self, batch: usize) -> usize {
        batch * self.tiles() * self.panels()
    }

    fn text(&self, inputs: &[Input], output: &Output, accumulate: bool) -> Arc<str> {
        let (tile, p, threads) = (&self.tile, &self.product, self.tile.threads());
        let (elem, out) = (inputs[0].view.dtype, output.view.dtype);
        let columns4 = tile.wide / 4 / tile.quads;
        let u = Const::U32;
        let channels4 = |i: usize| inputs.get(i).map_or(0, |o| o.source.channels / 4);
        let lots = |i: usize| channels4(i).div_ceil(self.lot4);
        let mut header = vec![("Elem4", vec4(elem)), ("Out4", vec4(out))];
        header.extend(p.tile_header(self.shape));
        header.extend([
            ("THREADS", u(threads)),
            ("RUN", u(tile.run)),
            ("WIDE4", u(tile.wide / 4)),
            ("COLUMNS4", u(columns4)),
            ("LOT4", u(self.lot4)),
            ("HALO_SLOTS", u(p.halo(self.shape).iter().product())),
            ("CHANNELS4_0", u(channels4(0))),
            ("CHANNELS4_1", u(channels4(1))),
            ("LOTS_0", u(lots(0))),
            ("LOTS", u(lots(0) + lots(1))),
            ("PANELS", u(self.panels())),
            ("TILE_CELLS", u(self.cells())),
        ]);
        let staged = self.input_cells().div_ceil(threads);
        let weights = self.weight_cells().div_ceil(threads);
        let (mut places, mut begin) = (Block::default(), Block::default());
        for i in 0..staged {
            places.line(format!("    let v{i} = place(min((t + {}u) / LOT4, HALO_SLOTS - 1u), n, origin);", i * threads));
            begin.line(format!("    var got{i} = Elem4();"));
        }
        for i in 0..weights {
            begin.line(format!("    var g{i} = vec4<f32>();"));
        }
        for t in 0..tile.run {
            (0..tile.quads).for_each(|c| begin.line(format!("    var a{t}_{c} = vec4<f32>();")));
        }
        let (mut fetch_input, mut keep_input) = (Block::default(), Block::default());
        for (i, operand) in inputs.iter().enumerate() {
            let (name, norm) = [("input", "norm"), ("second", "second_norm")][i];
            let opening = match (i, inputs.len()) {
                (0, 1) => "{",
                (0, _) => "if lot < LOTS_0 {",
                _ => "else {",
            };
            let channel = format!("let c = (lot - {}) * LOT4 + quad;", if i == 0 { "0u" } else { "LOTS_0" });
            let clamped = format!("let k = min(c, CHANNELS4_{i} - 1u);");
            for block in [&mut fetch_input, &mut keep_input] {
                block.line(opening);
                block.line(&channel);
                block.line(&clamped);
            }
            if operand.norm.is_some() {
                keep_input.line(format!(
                    "let mean = {norm}[k]; let factor = {norm}[CHANNELS4_{i} + k]; let shift = {norm}[2u * CHANNELS4_{i} + k];"
                ));
            }
            for s in 0..staged {
                fetch_input.line(format!("got{s} = {name}[v{s}.voxel * CHANNELS4_{i} + k];"));
                let x = format!("vec4<f32>(got{s})");
                let x = if operand.norm.is_some() { format!("max(({x} - mean) * factor + shift, vec4<f32>())") } else { x };
                let guard =
                    if (s + 1) * threads > self.input_cells() { format!("if t + {}u < INPUT_CELLS ", s * threads) } else { String::new() };
                keep_input
                    .line(format!("{guard}{{ tile[t + {}u] = select(vec4<f32>(), {x}, v{s}.inside && c < CHANNELS4_{i}); }}", s * threads));
            }
            fetch_input.line("}");
            keep_input.line("}");
        }
        let (mut fetch_weights, mut keep_weights) = (Block::default(), Block::default());
        for i in 0..weights {
            let (at, ragged) = (i * threads, (i + 1) * threads > self.weight_cells());
            let from = if ragged { format!("min(t + {at}u, WEIGHT_CELLS - 1u)") } else { format!("t + {at}u") };
            fetch_weights.line(format!("g{i} = packed[weights + step * WEIGHT_CELLS + {from}];"));
            let guard = if ragged { format!("if t + {at}u < WEIGHT_CELLS ") } else { String::new() };
            keep_weights.line(format!("{guard}{{ tile[INPUT_CELLS + t + {at}u] = g{i}; }}"));
        }
        let mut multiply = Block::default();
        for i in 0..(tile.run - 1) * p.stride[2] + p.kernel[2] {
            multiply.line(format!("let x{i} = tile[x + {i}u * LOT4];"));
        }
        for (kr, j) in (0..p.kernel[2]).flat_map(|kr| (0..4).map(move |j| (kr, j))) {
            for c in 0..tile.quads {
                let mut line = format!("{{ let v = tile[w + ({kr}u * LOT4 * 4u + {j}u) * WIDE4 + {c}u * COLUMNS4];");
                for t in 0..tile.run {
                    line += &format!(" a{t}_{c} += v * x{}.{};", t * p.stride[2] + kr, XYZW[j]);
                }
                multiply.line(line + " }");
            }
        }
        let (store, statistics) = (self.store(output, accumulate), self.statistics(output));
        specialise(
            "conv3d_simt",
            &header,
            &[
                ("places", &places),
                ("begin", &begin),
                ("fetch_input", &fetch_input),
                ("keep_input", &keep_input),
                ("fetch_weights", &fetch_weights),
                ("keep_weights", &keep_weights),
                ("multiply", &multiply),
                ("store", &store),
                ("statistics", &statistics),
            ],
        )
    }

    /// Adds the bias, and what is there when accumulating, and stores.
    fn store(&self, output: &Output, accumulate: bool) -> Block {
        let mut store = Block::default();
        for c in 0..self.tile.quads {
            store.line(format!("    let q{c} = panel * WIDE4 + {c}u * COLUMNS4 + column;"));
            store.line(format!("    let c{c} = q{c} % CHANNELS4;"));
            let shift = if self.product.factors() > 1 {
                store.line(format!("    let tap{c} = q{c} / CHANNELS4;"));
                format!(" + (tap{c} / (FACTOR_H * FACTOR_W) * FULL_H + tap{c} / FACTOR_W % FACTOR_H) * FULL_W + tap{c} % FACTOR_W")
            } else {
                String::new()
            };
            store.line(format!("    let to{c} = (first{shift}) * CHANNELS4 + c{c};"));
            if output.bias.is_some() {
                store.line(format!("    let bias{c} = bias[c{c}];"));
                (0..self.tile.run).for_each(|t| store.line(format!("    a{t}_{c} += bias{c};")));
            }
            store.line(format!("    if live && q{c} < CHANNELS4 * FACTORS {{"));
            for t in 0..self.tile.run {
                let mut line = format!("        if r0 + r + {t}u < OUT_R {{ let at = to{c} + {t}u * WRITE_R * CHANNELS4;");
                if accumulate {
                    line += &format!(" a{t}_{c} += vec4<f32>(output[at]);");
                }
                store.line(line + &format!(" output[at] = Out4(a{t}_{c}); }}"));
            }
            store.line("    }");
        }
        store
    }

    /// Count, mean and squared differences of the tile's outputs: sums over the invocations of a column in their order.
    fn statistics(&self, output: &Output) -> Block {
        let (tile, mut out) = (&self.tile, Block::default());
        if output.statistics.is_none() {
            return out;
        }
        let each = |f: &dyn Fn(usize) -> String| (0..tile.run).map(f).collect::<Vec<_>>().join(" + ");
        for t in 0..tile.run {
            out.line(format!("    let own{t} = a0 + a < OUT_A && b0 + b < OUT_B && r0 + r + {t}u < OUT_R;"));
        }
        out.line("    let counted = vec4<f32>(f32(min(TILE_A, OUT_A - a0) * min(TILE_B, OUT_B - b0) * min(TILE_R, OUT_R - r0)));");
        out.line("    var mean = vec4<f32>(); var squares = vec4<f32>();");
        let gather = |out: &mut Block, value: &dyn Fn(usize) -> String, into: &str| {
            out.line("    workgroupBarrier();");
            (0..tile.quads).for_each(|c| out.line(format!("    tile[run * WIDE4 + {c}u * COLUMNS4 + column] = {};", value(c))));
            out.line("    workgroupBarrier();");
            out.line(format!("    if t < WIDE4 {{ for (var i = 0u; i < THREADS / COLUMNS4; i++) {{ {into} += tile[i * WIDE4 + t]; }} }}"));
        };
        gather(&mut out, &|c| each(&|t| format!("select(vec4<f32>(), a{t}_{c}, own{t})")), "mean");
        out.line("    mean /= counted;");
        out.line("    if t < WIDE4 { tile[t] = mean; }");
        out.line("    workgroupBarrier();");
        for c in 0..tile.quads {
            out.line(format!("    let mean{c} = tile[{c}u * COLUMNS4 + column];"));
            for t in 0..tile.run {
                out.line(format!("    let d{t}_{c} = select(vec4<f32>(), a{t}_{c} - mean{c}, own{t});"));
            }
        }
        gather(&mut out, &|c| each(&|t| format!("d{t}_{c} * d{t}_{c}")), "squares");
        out.line("    if t < WIDE4 && panel * WIDE4 + t < CHANNELS4 && group < p.last {");
        out.line("        let at = (p.first_tile + number) * 3u * CHANNELS4 + panel * WIDE4 + t;");
        out.line("        statistics[at] = counted; statistics[at + CHANNELS4] = mean; statistics[at + 2u * CHANNELS4] = squares;");
        out.line("    }");
        out
    }
}

fn plan(caps: &Caps, tile: Tile, problem: &Problem) -> Result<Plan> {
    let p = Product::of(problem).and_then(|product| tile.plan(caps, &product));
    p.ok_or_else(|| Error::shape("conv3d", format!("{} cannot carry out {}", tile.name, problem.key())))
}

/// Partial statistics that [`forward`] writes.
pub(super) fn partials(caps: &Caps, tile: Tile, problem: &Problem) -> Result<usize> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    Ok(plan(caps, tile, p)?.tiles() * p.geom.batch)
}

/// The forward pass over one source, or over two stored alike at once; `problem` is the last's.
pub(super) fn forward(
    rec: &mut Recorder<'_>,
    tile: Tile,
    problem: &Problem,
    inputs: &[Input],
    weight: View,
    output: &Output,
    accumulate: bool,
) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let rows: Vec<Source> = inputs.iter().map(|i| i.source).collect();
    run(rec, &plan(rec.caps, tile, p)?, &p.geom, (&rows, 0), inputs, weight, output, accumulate)
}

/// The input gradient over one source.
pub(super) fn backward_input(
    rec: &mut Recorder<'_>,
    tile: Tile,
    problem: &Problem,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let rows = Source { first: 0, channels: p.geom.out_channels };
    let output = Output { bias, ..Output::plain(d_input) };
    run(rec, &plan(rec.caps, tile, p)?, &p.geom, (&[rows], p.source.first), &[Input::plain(rows, d_output)], weight, &output, false)
}

fn run(
    rec: &mut Recorder<'_>,
    plan: &Plan,
    g: &Geom,
    (rows, first): (&[Source], usize),
    inputs: &[Input],
    weight: View,
    output: &Output,
    accumulate: bool,
) -> Result<()> {
    let packed = plan.product.pack(rec, g, rows, first, (plan.tile.wide, plan.lot4 * 4), Dtype::F32, weight);
    let d = Dispatch::new("conv3d", "forward", plan.text(inputs, output, accumulate));
    plan.product.launch(rec, g.batch, &d, (inputs, &[Some(packed), output.bias]), output, (plan.tiles(), plan.panels()))
}

/// What a workgroup of the weight gradient owns.
#[derive(Clone, Copy, Debug)]
struct WeightPlan {
    product: Product,
    /// Output and input channels.
    wide: usize,
    deep: usize,
    /// Outputs staged at once.
    span: usize,
}

/// Outputs along the last axis that are multiplied with one load of each input.
const WEIGHT_RUN: usize = 8;

impl WeightPlan {
    /// Blocks of up to 64 × 64 channels and segments along the axis that wastes least.
    fn new(caps: &Caps, g: &Geom, s: Source) -> Option<Self> {
        let memory = caps.workgroup_memory as usize / 16;
        let block = |c: usize| [64, 32, 16, 8, 4].into_iter().find(|b| c.is_multiple_of(*b) || c + c / 3 > *b && c >= *b).unwrap_or(4);
        let (wide, deep) = (block(g.out_channels), block(s.channels));
        let product = Product::forward(g);
        let waste = |r: usize, span: usize| product.out[r].next_multiple_of(span) * 100 / product.out[r] + 4 * usize::from(span < 16);
        let mut best: Option<(usize, Self)> = None;
        for (r, span) in [(2, 16), (1, 16), (0, 16), (2, 8), (1, 8), (0, 8)] {
            let plan = Self { product: product.along(r), wide, deep, span };
            if plan.cells() <= memory && best.as_ref().is_none_or(|b| waste(r, span) < b.0) {
                best = Some((waste(r, span), plan));
            }
        }
        best.map(|b| b.1)
    }

    fn threads(&self) -> usize {
        self.wide * self.deep / 16
    }

    /// Inputs that a segment of outputs meets.
    fn reach(&self) -> usize {
        (self.span - 1) * self.product.stride[2] + self.product.kernel[2]
    }

    fn input_cells(&self) -> usize {
        self.reach() * self.deep / 4
    }

    fn grad_cells(&self) -> usize {
        self.span * self.wide / 4
    }

    fn cells(&self) -> usize {
        self.input_cells() + self.grad_cells()
    }

    fn segments(&self) -> usize {
        self.product.out[2].div_ceil(self.span)
    }

    fn groups(&self, g: &Geom, s: Source) -> usize {
        let kernel = self.product.kernel;
        kernel[0] * kernel[1] * g.out_channels.div_ceil(self.wide) * s.channels.div_ceil(self.deep)
    }

    fn text(&self, g: &Geom, input: &Input, grad: Dtype) -> Arc<str> {
        let (p, threads, u) = (&self.product, self.threads(), Const::U32);
        let elem = input.view.dtype;
        let run = WEIGHT_RUN.min(self.span);
        let mut header = vec![("Elem4", vec4(elem)), ("Grad4", vec4(grad))];
        header.extend(p.header());
        header.extend([
            ("THREADS", u(threads)),
            ("SPAN", u(self.span)),
            ("SEGMENTS", u(self.segments())),
            ("REACH", u(self.reach())),
            ("RUN", u(run)),
            ("WIDE4", u(self.wide / 4)),
            ("DEEP4", u(self.deep / 4)),
            ("TAP_A", u(p.tap[0])),
            ("TAP_B", u(p.tap[1])),
            ("TAP_R", u(p.tap[2])),
            ("TAPS", u(g.taps())),
            ("CI4", u(input.source.channels / 4)),
            ("CO4", u(g.out_channels / 4)),
            ("PANELS_I", u(input.source.channels.div_ceil(self.deep))),
            ("PANELS_O", u(g.out_channels.div_ceil(self.wide))),
            ("TILE_CELLS", u(self.cells())),
        ]);
        let (mut places, mut begin, mut fetch, mut keep) = (Block::default(), Block::default(), Block::default(), Block::default());
        if input.norm.is_some() {
            begin.line("    let mean = norm[x_quad]; let factor = norm[CI4 + x_quad]; let shift = norm[2u * CI4 + x_quad];");
        }
        let (inputs, grads) = (self.input_cells().div_ceil(threads), self.grad_cells().div_ceil(threads));
        for i in 0..inputs {
            places.line(format!("    let x{i} = min((t + {}u) / DEEP4, REACH - 1u);", i * threads));
            begin.line(format!("    var got{i} = Elem4(); var inside{i} = false;"));
            fetch.line(format!("let at{i} = i32(segment.first * STRIDE_R + x{i}) - i32(PAD_R);"));
            fetch.line(format!("inside{i} = at{i} >= 0 && at{i} < i32(GRID_R) && x_live;"));
            fetch.line(format!("got{i} = input[(segment.x + u32(clamp(at{i}, 0, i32(GRID_R) - 1)) * READ_R) * CI4 + x_quad];"));
            let x = format!("vec4<f32>(got{i})");
            let x = if input.norm.is_some() { format!("max(({x} - mean) * factor + shift, vec4<f32>())") } else { x };
            let guard =
                if (i + 1) * threads > self.input_cells() { format!("if t + {}u < INPUT_CELLS ", i * threads) } else { String::new() };
            keep.line(format!("{guard}{{ tile[t + {}u] = select(vec4<f32>(), {x}, inside{i}); }}", i * threads));
        }
        for i in 0..grads {
            places.line(format!("    let y{i} = min((t + {}u) / WIDE4, SPAN - 1u);", i * threads));
            begin.line(format!("    var g{i} = Grad4(); var within{i} = false;"));
            fetch.line(format!("within{i} = segment.first + y{i} < OUT_R && y_live;"));
            fetch.line(format!("g{i} = d_output[(segment.y + min(segment.first + y{i}, OUT_R - 1u) * WRITE_R) * CO4 + y_quad];"));
            let guard =
                if (i + 1) * threads > self.grad_cells() { format!("if t + {}u < SPAN * WIDE4 ", i * threads) } else { String::new() };
            keep.line(format!("{guard}{{ tile[INPUT_CELLS + t + {}u] = select(vec4<f32>(), vec4<f32>(g{i}), within{i}); }}", i * threads));
        }
        let (mut multiply, mut store) = (Block::default(), Block::default());
        multiply.line("for (var s = 0u; s < SPAN; s += RUN) {");
        multiply.line("let x = s * STRIDE_R * DEEP4 + depth;");
        multiply.line("let y = INPUT_CELLS + s * WIDE4 + column;");
        for i in 0..(run - 1) * p.stride[2] + p.kernel[2] {
            multiply.line(format!("let x{i} = tile[x + {i}u * DEEP4];"));
        }
        for t in 0..run {
            let mut line = format!("{{ let v = tile[y + {t}u * WIDE4];");
            for (kr, o) in (0..p.kernel[2]).flat_map(|kr| (0..4).map(move |o| (kr, o))) {
                line += &format!(" a{kr}_{o} += x{} * v.{};", t * p.stride[2] + kr, XYZW[o]);
            }
            multiply.line(line + " }");
        }
        multiply.line("}");
        for (kr, o) in (0..p.kernel[2]).flat_map(|kr| (0..4).map(move |o| (kr, o))) {
            begin.line(format!("    var a{kr}_{o} = vec4<f32>();"));
            store.line(format!("        part[out + ({kr}u * TAP_R * CO4 * 4u + {o}u) * CI4] = a{kr}_{o};"));
        }
        specialise(
            "conv3d_simt_weight",
            &header,
            &[("places", &places), ("begin", &begin), ("fetch", &fetch), ("keep", &keep), ("multiply", &multiply), ("store", &store)],
        )
    }
}

/// Whether the weight gradient suits these channels: fewer leave most of a subgroup idle.
fn weight_fits(caps: &Caps, p: &Problem) -> bool {
    let fours = p.geom.out_channels.is_multiple_of(4) && p.source.channels.is_multiple_of(4);
    fours && WeightPlan::new(caps, &p.geom, p.source).is_some_and(|p| p.threads() >= 16)
}

/// The gradient of the weight's channels of one source.
pub(super) fn backward_weight(rec: &mut Recorder<'_>, problem: &Problem, input: Input, d_output: View, d_weight: View) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let (g, s) = (&p.geom, p.source);
    let plan = WeightPlan::new(rec.caps, g, s)
        .ok_or_else(|| Error::shape("conv3d", format!("{} exceeds {} bytes of workgroup memory", p.key(), rec.caps.workgroup_memory)))?;
    let elements = g.taps() * g.out_channels * s.channels;
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let parts = p.parts(rec.caps)?;
    let rows = parts[0].1 * plan.product.out[0] * plan.product.out[1] * plan.segments();
    let groups = plan.groups(g, s);
    let splits = plain::split_count(rec, elements, rows, 0, 1, groups);
    let part = rec.scratch(elements * splits);
    let text = plan.text(g, &input, d_output.dtype);
    for (i, &(n0, n)) in parts.iter().enumerate() {
        let d = Dispatch::new("conv3d", "backward_weight", text.clone()).bind(input.view.slice(n0 * xs, n * xs));
        let d = bind_some(d, input.norm).bind(d_output.slice(n0 * ys, n * ys)).bind(part).param("samples", n).param("splits", splits);
        push_runs(rec, &d, groups * splits, flops * n as u64);
        plain::sum(rec, g, s, part, splits, i > 0, d_weight);
    }
    Ok(())
}
