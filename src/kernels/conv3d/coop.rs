//! Implicit products on cooperative matrices: activations stored as f16, sums in f32.
//!
//! The kernels' text is written against a handful of functions on matrix fragments, of which there are two versions:
//! `matrix_coop.wgsl`, the real instructions, and `matrix_plain.wgsl`, in which the lanes compute the same products from the
//! same workgroup memory. A tile with a `twin` uses the latter, so that any adapter can check tiling and indexing.

use std::sync::Arc;

use super::plain::{self, bind_some};
use super::product::{Block, Product, vec4};
use super::tile::push_runs;
use super::{Geom, Input, Output, Pass, Problem, Source};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dispatch, Dtype, Recorder, View};
use crate::kernels::{Const, file, specialise};

/// What a workgroup owns, in units of 16 outputs and 16 channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// The variant's name.
    pub(super) name: &'static str,
    /// Subgroups along the outputs and along the channels.
    side: [usize; 2],
    /// Units of each subgroup.
    units: [usize; 2],
    /// Whether weights are loaded from where they are packed, not through workgroup memory.
    direct: bool,
    /// Side of the fragments in plain arithmetic; `None` for the real instructions.
    twin: Option<usize>,
}

const fn tile(name: &'static str, side: [usize; 2], units: [usize; 2], direct: bool) -> Tile {
    Tile { name, side, units, direct, twin: None }
}

/// The tiles, from the one with the most reuse to the one that fills an adapter with the least work.
pub(super) const TILES: [Tile; 6] = [
    tile("coop_256x64", [4, 2], [4, 2], false),
    tile("coop_128x64", [2, 2], [4, 2], false),
    tile("coop_128x64_direct", [2, 2], [4, 2], true),
    tile("coop_128x32", [4, 1], [2, 2], false),
    tile("coop_64x64", [2, 2], [2, 2], false),
    tile("coop_32x64", [2, 2], [1, 2], false),
];

/// The tile of weight gradients: output by input channels.
pub(super) const WEIGHT: Tile = tile("coop_weight_64x64", [2, 2], [2, 2], false);

/// Rows of a product that are staged at once.
const LOT: usize = 16;
/// Halves between rows in workgroup memory, so that rows which are read together lie in different banks.
const PAD: usize = 8;
/// Most invocations of a workgroup on any adapter.
const MOST_THREADS: usize = 256;
/// Workgroups that keep a large GPU busy: two on each of 132 multiprocessors.
const FILL: usize = 264;

/// The fragments that a tile is carried out on.
#[derive(Clone, Copy, Debug)]
struct Fragments {
    /// Rows and columns.
    side: usize,
    /// Lanes that hold one.
    lanes: usize,
    /// Whether in plain arithmetic.
    plain: bool,
}

/// The fragments of an adapter, or `None`: their lanes must be known beforehand, and only N×N×N products can be expressed.
fn fragments(caps: &Caps) -> Option<Fragments> {
    let known = caps.f16 && caps.subgroup_min == caps.subgroup_max && caps.subgroup_min >= 8;
    // Metal has pieces of eight only.
    let side = [16, 8].into_iter().find(|&n| caps.cooperative.contains(&n) && (n == 8 || caps.backend != "metal"))?;
    known.then_some(Fragments { side: side as usize, lanes: caps.subgroup_min as usize, plain: false })
}

impl Tile {
    /// The same arrangement of subgroups in plain arithmetic with fragments of `side`, up to two by two for each, as many as fit the workgroup
    /// memory of a processor's adapter.
    #[must_use]
    pub(super) fn twin(self, side: usize) -> Self {
        let most = if self.subgroups() > 4 { [1, side / 8] } else { [side / 8; 2] };
        Self { twin: Some(side), units: [0, 1].map(|a| self.units[a].min(most[a])), ..self }
    }

    /// The name, with the side of a twin's fragments.
    pub(super) fn full_name(&self) -> String {
        self.twin.map_or_else(|| self.name.to_owned(), |side| format!("{} in plain {side}×{side}", self.name))
    }

    fn fragments(&self, caps: &Caps) -> Option<Fragments> {
        match self.twin {
            Some(side) => Some(Fragments { side, lanes: 32, plain: true }),
            None => fragments(caps),
        }
    }

    fn subgroups(&self) -> usize {
        self.side[0] * self.side[1]
    }

    /// Outputs and channels.
    fn size(&self) -> [usize; 2] {
        [0, 1].map(|a| 16 * self.side[a] * self.units[a])
    }

    fn plan(&self, caps: &Caps, product: &Product) -> Option<Plan> {
        let fragments = self.fragments(caps)?;
        let [voxels, _] = self.size();
        let memory = caps.workgroup_memory as usize;
        // Which axis is the last is not known before the tile is; the longest row of taps bounds its weights.
        let longest = *product.kernel.iter().max().unwrap_or(&1);
        let own = Plan { tile: *self, fragments, product: *product, shape: [1; 3] };
        let rest = own.weight_halves(longest) * 2 + own.sums() * 4;
        let (product, shape) = product.tile(voxels, fragments.side, memory.saturating_sub(rest) / (2 * (LOT + PAD)))?;
        let plan = Plan { product, shape, ..own };
        (plan.bytes() <= memory && plan.threads() <= MOST_THREADS).then_some(plan)
    }
}

/// Whether an adapter's matrices may be used for tensors stored like these.
fn stored(p: &Problem) -> bool {
    match p.pass {
        Pass::Forward => p.input == Dtype::F16,
        Pass::InputGrad => p.output == Dtype::F16,
        Pass::WeightGrad => p.input == Dtype::F16 && p.output == Dtype::F16,
    }
}

/// The tiles that can carry `problem` out on an adapter, the one used without a choice first.
pub(super) fn candidates(caps: &Caps, problem: &Problem) -> Vec<Tile> {
    if !stored(problem) {
        return Vec::new();
    }
    if problem.pass == Pass::WeightGrad {
        let fits = fragments(caps).is_some() && weight_plan(caps, WEIGHT, problem).is_some();
        return if fits { vec![WEIGHT] } else { Vec::new() };
    }
    let Some(product) = Product::of(problem) else { return Vec::new() };
    let narrow = product.all_columns() <= 32;
    let wide = if narrow { 32 } else { 64 };
    let mut plans: Vec<Plan> = TILES.iter().filter(|t| t.size()[1] <= wide).filter_map(|t| t.plan(caps, &product)).collect();
    // Pieces of eight come with small register files: 32 × 32 for a subgroup.
    let most = |p: &Plan| if p.fragments.side == 8 { 64 } else { 128 };
    let suited =
        |p: &Plan| p.tile.size()[1] == wide && p.tile.size()[0] <= most(p) && !p.tile.direct && p.groups(problem.geom.batch) >= FILL;
    let first = plans.iter().position(suited).unwrap_or(plans.len().saturating_sub(1));
    if !plans.is_empty() {
        plans[..=first].rotate_right(1);
    }
    plans.into_iter().map(|p| p.tile).collect()
}

/// A tile laid out for a product.
#[derive(Clone, Copy, Debug)]
struct Plan {
    tile: Tile,
    fragments: Fragments,
    product: Product,
    shape: [usize; 3],
}

impl Plan {
    fn threads(&self) -> usize {
        self.tile.subgroups() * self.fragments.lanes
    }

    /// Halves from one row of weights to the next.
    fn weight_step(&self) -> usize {
        self.tile.size()[1] + if self.tile.direct { 0 } else { PAD }
    }

    /// Halves of workgroup memory for the weights of a row of `taps`.
    fn weight_halves(&self, taps: usize) -> usize {
        if self.tile.direct { 0 } else { taps * LOT * self.weight_step() }
    }

    /// f32 of workgroup memory through which sums leave, and partial statistics.
    fn sums(&self) -> usize {
        sums(&self.tile, &self.fragments).max(9 * self.threads())
    }

    fn slots(&self) -> usize {
        self.product.halo(self.shape).iter().product()
    }

    fn bytes(&self) -> usize {
        (self.slots() * (LOT + PAD) + self.weight_halves(self.product.kernel[2])) * 2 + self.sums() * 4
    }

    fn panels(&self) -> usize {
        self.product.all_columns().div_ceil(self.tile.size()[1])
    }

    fn tiles(&self) -> usize {
        self.product.tiles(self.shape).iter().product()
    }

    fn groups(&self, batch: usize) -> usize {
        batch * self.tiles() * self.panels()
    }

    fn text(&self, inputs: &[Input], output: &Output, accumulate: bool) -> Arc<str> {
        let (tile, f, p, threads, u) = (&self.tile, &self.fragments, &self.product, self.threads(), Const::U32);
        let wide = tile.size()[1];
        let frags = tile.units.map(|n| n * 16 / f.side);
        let channels4 = |i: usize| inputs.get(i).map_or(0, |o| o.source.channels / 4);
        let lots = |i: usize| (4 * channels4(i)).div_ceil(LOT);
        let mut header = fragment_header(tile, f, 1, self.sums());
        header.extend([("Elem4", vec4(inputs[0].view.dtype)), ("Out4", vec4(output.view.dtype))]);
        header.extend(p.tile_header(self.shape));
        header.extend([
            ("WIDE4", u(wide / 4)),
            ("HALO_SLOTS", u(self.slots())),
            ("SLOT", u(LOT + PAD)),
            ("A_STEP", u(p.stride[2] * (LOT + PAD))),
            ("B_STEP", u(self.weight_step())),
            ("CHANNELS4_0", u(channels4(0))),
            ("CHANNELS4_1", u(channels4(1))),
            ("LOTS_0", u(lots(0))),
            ("LOTS", u(lots(0) + lots(1))),
            ("PANELS", u(self.panels())),
        ]);
        let cells = self.slots() * LOT / 4;
        let (mut places, mut begin) = (Block::default(), Block::default());
        for i in 0..cells.div_ceil(threads) {
            places.line(format!("    let v{i} = place(min((t + {}u) / (LOT / 4u), HALO_SLOTS - 1u), n, origin);", i * threads));
            begin.line(format!("    var got{i} = Elem4();"));
        }
        for m in 0..frags[0] {
            begin.line(format!("    let c{m} = corner(side_m * FRAGS_M + {m}u); let home{m} = home_of(c{m});"));
            (0..frags[1]).for_each(|n| begin.line(format!("    var s{m}_{n} = zero_c({}u);", m * frags[1] + n)));
        }
        let (fetch_input, keep_input) = staging(inputs, cells, threads);
        let (mut fetch_weights, mut stage_weights) = (Block::default(), Block::default());
        if !tile.direct {
            let weight_cells = p.kernel[2] * LOT * wide / 4;
            let mut keep = Block::default();
            for i in 0..weight_cells.div_ceil(threads) {
                let (at, ragged) = (i * threads, (i + 1) * threads > weight_cells);
                begin.line(format!("    var g{i} = vec4<f16>();"));
                let from = if ragged { format!("min(t + {at}u, WEIGHT_CELLS - 1u)") } else { format!("t + {at}u") };
                fetch_weights.line(format!("g{i} = packed[(panel * LOTS * STEPS + step) * WEIGHT_CELLS + {from}];"));
                let guard = if ragged { format!("if t + {at}u < WEIGHT_CELLS ") } else { String::new() };
                keep.line(format!("{guard}{{ put_b((t + {at}u) / WIDE4 * (B_STEP / 4u) + (t + {at}u) % WIDE4, g{i}); }}"));
            }
            for part in ["workgroupBarrier();\n", &keep, "workgroupBarrier();\n", &fetch_weights] {
                stage_weights.line(part);
            }
        }
        let mut multiply = Block::default();
        multiply.line(if tile.direct {
            "let w = (((panel * LOTS + current) * STEPS + row) * WEIGHT_CELLS) * 4u + column;"
        } else {
            "let w = column;"
        });
        for (kr, k) in (0..p.kernel[2]).flat_map(|kr| (0..LOT / f.side).map(move |k| (kr, k))) {
            multiply.line("{");
            for n in 0..frags[1] {
                multiply.line(format!("let b{n} = load_b(w + {}u * B_STEP + {}u);", kr * LOT + k * f.side, n * f.side));
            }
            for m in 0..frags[0] {
                multiply.line(format!("let x{m} = load_a(home{m} + shift + {kr}u * SLOT + {}u);", k * f.side));
                for n in 0..frags[1] {
                    multiply.line(format!("s{m}_{n} = multiply_add(x{m}, b{n}, s{m}_{n});"));
                }
            }
            multiply.line("}");
        }
        let (finish, store, statistics) = ends(output, accumulate, frags);
        let weights = match (tile.direct, f.side == 8) {
            (false, _) => {
                "@group(0) @binding(3) var<storage, read> packed: array<vec4<f16>>;\nvar<workgroup> matrix_b: array<Cell, KERNEL_R * LOT * B_STEP / UNIT>;"
            }
            (true, _) => "@group(0) @binding(3) var<storage, read> matrix_b: array<Cell>;",
        };
        specialise(
            "conv3d_coop",
            &header,
            &[
                ("weights", weights),
                ("cells", &cell_functions(f, !tile.direct)),
                ("fragments", fragment_functions(f)),
                ("finish", &finish),
                ("signature", &signature("forward", f)),
                ("places", &places),
                ("begin", &begin),
                ("fetch_input", &fetch_input),
                ("keep_input", &keep_input),
                ("ready", if tile.direct { "workgroupBarrier();" } else { "" }),
                ("fetch_weights", &fetch_weights),
                ("stage_weights", &stage_weights),
                ("multiply", &multiply),
                ("store", &store),
                ("statistics", &statistics),
            ],
        )
    }
}

/// f32 that hold a fragment of each subgroup.
fn sums(tile: &Tile, f: &Fragments) -> usize {
    tile.subgroups() * f.side * (f.side + 4)
}

/// The constants that both kernels and the fragments' functions expect; a subgroup holds as many sums `times` over.
fn fragment_header(tile: &Tile, f: &Fragments, times: usize, sums: usize) -> Vec<(&'static str, Const)> {
    let (u, share) = (Const::U32, (f.side * f.side).div_ceil(f.lanes));
    let mut out = vec![
        ("Cell", Const::Type(if f.side == 8 { "f16" } else { "vec4<f16>" })),
        // A pointer to vectors of halves is no pointer to halves on Metal.
        ("UNIT", u(if f.side == 8 { 1 } else { 4 })),
        ("FRAG", u(f.side)),
        ("LANES", u(f.lanes)),
        ("SHARE", u(share)),
        ("SUMS", u(share * tile.units[0] * tile.units[1] * (16 / f.side).pow(2) * times)),
        ("SUBGROUPS", u(tile.subgroups())),
        ("SIDE_M", u(tile.side[0])),
        ("FRAGS_M", u(tile.units[0] * 16 / f.side)),
        ("FRAGS_N", u(tile.units[1] * 16 / f.side)),
        ("THREADS", u(tile.subgroups() * f.lanes)),
        ("C_STEP", u(f.side + 4)),
        ("C_CELLS", u(sums)),
    ];
    if !f.plain {
        let types = match f.side {
            8 => ["coop_mat8x8<f16, A>", "coop_mat8x8<f16, B>", "coop_mat8x8<f32, C>"],
            _ => ["coop_mat16x16<f16, A>", "coop_mat16x16<f16, B>", "coop_mat16x16<f32, C>"],
        };
        out.extend(["FragA", "FragB", "FragC"].into_iter().zip(types.map(Const::Type)));
    }
    out
}

fn fragment_functions(f: &Fragments) -> &'static str {
    file(if f.plain { "matrix_plain" } else { "matrix_coop" })
}

/// Storing a vector of halves to workgroup memory, and what the plain fragments read.
fn cell_functions(f: &Fragments, staged: bool) -> String {
    let mut out = String::new();
    for name in if staged { &["a", "b"][..] } else { &["a"] } {
        out += &if f.side == 8 {
            let each: String = (0..4).map(|i| format!(" matrix_{name}[4u * cell + {i}u] = v[{i}];")).collect();
            format!("fn put_{name}(cell: u32, v: vec4<f16>) {{{each} }}\n")
        } else {
            format!("fn put_{name}(cell: u32, v: vec4<f16>) {{ matrix_{name}[cell] = v; }}\n")
        };
    }
    if f.plain {
        let at = if f.side == 8 { "[i]" } else { "[i / 4u][i % 4u]" };
        for name in ["a", "b"] {
            out += &format!("fn {name}_value(i: u32) -> f32 {{ return f32(matrix_{name}{at}); }}\n");
        }
    }
    out
}

/// The head of an entry point; `subgroup` and `lane` say which lane of which subgroup this is.
fn signature(entry: &str, f: &Fragments) -> String {
    let arguments =
        "@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32";
    let head = format!("@compute @workgroup_size(THREADS)\nfn {entry}({arguments}");
    if f.plain {
        format!("{head}) {{\n    let subgroup = t / LANES;\n    lane = t % LANES;\n    turns = SHARE * FRAG * min(count.x, 1u);")
    } else {
        format!("{head}, @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {{")
    }
}

/// Fetching a lot of the inputs, and keeping it as halves, normalised where asked for, zero outside the grid.
fn staging(inputs: &[Input], cells: usize, threads: usize) -> (Block, Block) {
    let (mut fetch, mut keep) = (Block::default(), Block::default());
    for (i, input) in inputs.iter().enumerate() {
        let (name, norm) = [("input", "norm"), ("second", "second_norm")][i];
        let opening = match (i, inputs.len()) {
            (0, 1) => "{",
            (0, _) => "if lot < LOTS_0 {",
            _ => "else {",
        };
        for block in [&mut fetch, &mut keep] {
            block.line(opening);
            block.line(format!("let c = (lot - {}) * (LOT / 4u) + quad;", if i == 0 { "0u" } else { "LOTS_0" }));
            block.line(format!("let k = min(c, CHANNELS4_{i} - 1u);"));
        }
        if input.norm.is_some() {
            keep.line(format!("let mean = {norm}[k]; let factor = {norm}[CHANNELS4_{i} + k]; let shift = {norm}[2u * CHANNELS4_{i} + k];"));
        }
        for s in 0..cells.div_ceil(threads) {
            fetch.line(format!("got{s} = {name}[v{s}.voxel * CHANNELS4_{i} + k];"));
            let x = match input.norm {
                Some(_) => format!("vec4<f16>(max((vec4<f32>(got{s}) - mean) * factor + shift, vec4<f32>()))"),
                None => format!("vec4<f16>(got{s})"),
            };
            let at = s * threads;
            let guard = if at + threads > cells { format!("if t + {at}u < INPUT_CELLS ") } else { String::new() };
            keep.line(format!(
                "{guard}{{ put_a((t + {at}u) / (LOT / 4u) * (SLOT / 4u) + quad, select(vec4<f16>(), {x}, v{s}.inside && c < CHANNELS4_{i})); }}"
            ));
        }
        fetch.line("}");
        keep.line("}");
    }
    (fetch, keep)
}

/// What happens to each vector of outputs, how the fragments leave, and the tile's statistics.
fn ends(output: &Output, accumulate: bool, frags: [usize; 2]) -> (Block, Block, Block) {
    let (mut finish, mut store, mut statistics) = (Block::default(), Block::default(), Block::default());
    if output.bias.is_some() {
        finish.line("            v += bias[channel];");
    }
    if accumulate {
        finish.line("            v += vec4<f32>(output[at]);");
    }
    if output.statistics.is_some() {
        finish.line("            seen = see(seen, v);");
    }
    for n in 0..frags[1] {
        store.line(format!("    var seen{n} = Seen();"));
        for m in 0..frags[0] {
            store.line(format!("    store_c(s{m}_{n}, own);"));
            store.line("    workgroupBarrier();");
            store.line(format!(
                "    seen{n} = finish(own, lane, corner0, c{m}, n, panel * WIDE4 + (column + {n}u * FRAG) / 4u, live, seen{n});"
            ));
            store.line("    workgroupBarrier();");
        }
        if output.statistics.is_some() {
            statistics.line(format!("    put_seen(subgroup * LANES + lane, seen{n});"));
            statistics.line("    workgroupBarrier();");
            statistics.line(format!("    write_statistics(t, {n}u, panel, number, live);"));
            statistics.line("    workgroupBarrier();");
        }
    }
    (finish, store, statistics)
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
    let packed = plan.product.pack(rec, g, rows, first, (plan.tile.size()[1], LOT), Dtype::F16, weight);
    let d = Dispatch::new("conv3d", "forward", plan.text(inputs, output, accumulate));
    plan.product.launch(rec, g.batch, &d, (inputs, &[Some(packed), output.bias]), output, (plan.tiles(), plan.panels()))
}

/// A weight gradient laid out.
#[derive(Clone, Copy, Debug)]
struct WeightPlan {
    tile: Tile,
    fragments: Fragments,
    product: Product,
    /// Outputs staged at once.
    span: usize,
}

/// The weight gradient of `problem` by `tile`, halved along sides where there are no more than 32 channels.
fn weight_plan(caps: &Caps, tile: Tile, problem: &Problem) -> Option<WeightPlan> {
    let (g, channels) = (problem.geom.flattened(), problem.source.channels);
    let fours = g.out_channels.is_multiple_of(4) && channels.is_multiple_of(4);
    let fragments = tile.fragments(caps).filter(|_| fours)?;
    let narrow = [g.out_channels, channels].map(|c| c <= 32);
    let tile = Tile { units: [0, 1].map(|a| if narrow[a] { 1 } else { tile.units[a] }), ..tile };
    let product = Product::forward(&g);
    let mut best: Option<(usize, WeightPlan)> = None;
    for (r, span) in [(2, 32), (1, 32), (0, 32), (2, 16), (1, 16), (0, 16), (2, 8), (1, 8), (0, 8)] {
        let plan = WeightPlan { tile, fragments, product: product.along(r), span };
        let out = plan.product.out[2];
        // Percent of what is multiplied against what is there; short segments meet more barriers.
        let waste = out.next_multiple_of(span) * 100 / out + 64 / span;
        // More sums than this do not stay in registers.
        let few = plan.product.kernel[2] <= 4;
        let whole = span.is_multiple_of(fragments.side) && plan.bytes() <= caps.workgroup_memory as usize;
        if few && whole && plan.threads() <= MOST_THREADS && best.as_ref().is_none_or(|b| waste < b.0) {
            best = Some((waste, plan));
        }
    }
    best.map(|b| b.1)
}

impl WeightPlan {
    fn threads(&self) -> usize {
        self.tile.subgroups() * self.fragments.lanes
    }

    /// Inputs that a segment of outputs meets.
    fn reach(&self) -> usize {
        (self.span - 1) * self.product.stride[2] + self.product.kernel[2]
    }

    fn bytes(&self) -> usize {
        let [wide, deep] = self.tile.size();
        2 * (self.span * (wide + PAD) + self.reach() * (deep + PAD)) + 4 * sums(&self.tile, &self.fragments)
    }

    fn segments(&self) -> usize {
        self.product.out[2].div_ceil(self.span)
    }

    fn text(&self, g: &Geom, input: &Input, gradient: Dtype) -> Arc<str> {
        let (tile, f, p, threads, u) = (&self.tile, &self.fragments, &self.product, self.threads(), Const::U32);
        let [wide, deep] = tile.size();
        let frags = tile.units.map(|n| n * 16 / f.side);
        let mut header = fragment_header(tile, f, p.kernel[2], sums(tile, f));
        header.extend([("Elem4", vec4(input.view.dtype)), ("Grad4", vec4(gradient))]);
        header.extend(p.header());
        header.extend([
            ("SPAN", u(self.span)),
            ("SEGMENTS", u(self.segments())),
            ("REACH", u(self.reach())),
            ("WIDE4", u(wide / 4)),
            ("DEEP4", u(deep / 4)),
            ("ROW_STEP", u(deep + PAD)),
            ("A_STEP", u(wide + PAD)),
            ("B_STEP", u(p.stride[2] * (deep + PAD))),
            ("TAP_A", u(p.tap[0])),
            ("TAP_B", u(p.tap[1])),
            ("TAP_R", u(p.tap[2])),
            ("TAPS", u(g.taps())),
            ("CI4", u(input.source.channels / 4)),
            ("CO4", u(g.out_channels / 4)),
            ("PANELS_I", u(input.source.channels.div_ceil(deep))),
            ("PANELS_O", u(g.out_channels.div_ceil(wide))),
        ]);
        let (mut places, mut begin, mut fetch, mut keep) = (Block::default(), Block::default(), Block::default(), Block::default());
        if input.norm.is_some() {
            begin.line("    let mean = norm[x_quad]; let factor = norm[CI4 + x_quad]; let shift = norm[2u * CI4 + x_quad];");
        }
        let (inputs, grads) = (self.reach() * deep / 4, self.span * wide / 4);
        for i in 0..inputs.div_ceil(threads) {
            let at = i * threads;
            places.line(format!("    let x{i} = min((t + {at}u) / DEEP4, REACH - 1u);"));
            begin.line(format!("    var got{i} = Elem4(); var inside{i} = false;"));
            fetch.line(format!("let at{i} = i32(segment.first * STRIDE_R + x{i}) - i32(PAD_R);"));
            fetch.line(format!("inside{i} = at{i} >= 0 && at{i} < i32(GRID_R) && x_live;"));
            fetch.line(format!("got{i} = input[(segment.x + u32(clamp(at{i}, 0, i32(GRID_R) - 1)) * READ_R) * CI4 + x_quad];"));
            let x = match input.norm {
                Some(_) => format!("vec4<f16>(max((vec4<f32>(got{i}) - mean) * factor + shift, vec4<f32>()))"),
                None => format!("vec4<f16>(got{i})"),
            };
            let guard = if at + threads > inputs { format!("if t + {at}u < INPUT_CELLS ") } else { String::new() };
            keep.line(format!("{guard}{{ put_b(x{i} * (ROW_STEP / 4u) + t % DEEP4, select(vec4<f16>(), {x}, inside{i})); }}"));
        }
        for i in 0..grads.div_ceil(threads) {
            let at = i * threads;
            places.line(format!("    let y{i} = min((t + {at}u) / WIDE4, SPAN - 1u);"));
            begin.line(format!("    var g{i} = Grad4(); var within{i} = false;"));
            fetch.line(format!("within{i} = segment.first + y{i} < OUT_R && y_live;"));
            fetch.line(format!("g{i} = d_output[(segment.y + min(segment.first + y{i}, OUT_R - 1u) * WRITE_R) * CO4 + y_quad];"));
            let guard = if at + threads > grads { format!("if t + {at}u < GRAD_CELLS ") } else { String::new() };
            keep.line(format!("{guard}{{ put_a(y{i} * (A_STEP / 4u) + t % WIDE4, select(vec4<f16>(), vec4<f16>(g{i}), within{i})); }}"));
        }
        let (mut multiply, mut store) = (Block::default(), Block::default());
        let each = |n: usize| (0..p.kernel[2]).flat_map(move |kr| (0..n).map(move |i| (kr, i)));
        for k in (0..self.span).step_by(f.side) {
            multiply.line("{");
            (0..frags[0]).for_each(|m| multiply.line(format!("let y{m} = load_a_turned({k}u * A_STEP + first_o + {}u);", m * f.side)));
            for (kr, n) in each(frags[1]) {
                let from = format!("({k}u * STRIDE_R + {kr}u) * ROW_STEP + first_i + {}u", n * f.side);
                multiply.line(format!("let x{kr}_{n} = load_b({from});"));
                for m in 0..frags[0] {
                    multiply.line(format!("s{kr}_{m}_{n} = multiply_add(y{m}, x{kr}_{n}, s{kr}_{m}_{n});"));
                }
            }
            multiply.line("}");
        }
        for (i, (kr, n)) in each(frags[1]).enumerate() {
            for m in 0..frags[0] {
                begin.line(format!("    var s{kr}_{m}_{n} = zero_c({}u);", i * frags[0] + m));
                store.line(format!("    store_c(s{kr}_{m}_{n}, own);"));
                store.line("    workgroupBarrier();");
                let (o, i) =
                    (format!("wide * WIDE4 * 4u + first_o + {}u", m * f.side), format!("deep * DEEP4 + (first_i + {}u) / 4u", n * f.side));
                store.line(format!("    finish(own, lane, out + {kr}u * TAP_R * CO4 * 4u * CI4, {o}, {i}, live);"));
                store.line("    workgroupBarrier();");
            }
        }
        specialise(
            "conv3d_coop_weight",
            &header,
            &[
                ("cells", &cell_functions(f, true)),
                ("fragments", fragment_functions(f)),
                ("signature", &signature("backward_weight", f)),
                ("places", &places),
                ("begin", &begin),
                ("fetch", &fetch),
                ("keep", &keep),
                ("multiply", &multiply),
                ("store", &store),
            ],
        )
    }
}

/// The gradient of the weight's channels of one source.
pub(super) fn backward_weight(
    rec: &mut Recorder<'_>,
    tile: Tile,
    problem: &Problem,
    input: Input,
    d_output: View,
    d_weight: View,
) -> Result<()> {
    let p = &Problem { geom: problem.geom.flattened(), ..*problem };
    let (g, s) = (&p.geom, p.source);
    let plan =
        weight_plan(rec.caps, tile, p).ok_or_else(|| Error::shape("conv3d", format!("{} cannot carry out {}", tile.name, p.key())))?;
    let [wide, deep] = plan.tile.size();
    let elements = g.taps() * g.out_channels * s.channels;
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let parts = p.parts(rec.caps)?;
    let kernel = plan.product.kernel;
    let groups = kernel[0] * kernel[1] * g.out_channels.div_ceil(wide) * s.channels.div_ceil(deep);
    let rows = parts[0].1 * plan.product.out[0] * plan.product.out[1] * plan.segments();
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
