//! A convolution as the matrix product that the workgroup-memory variants carry out: its axes, its tiles, its weights.

use super::plain::bind_some;
use super::tile::push_runs;
use super::{Geom, Input, Output, Pass, Problem, Source};
use crate::error::Result;
use crate::gpu::{Dispatch, Dtype, Recorder, View};
use crate::kernels::{Const, sample_parts, specialise};

/// How a product's weights are taken from the layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// As they are.
    Forward = 0,
    /// Taps flipped, channels swapped: the input gradient at stride 1.
    Flipped = 1,
    /// Channels swapped, one range of columns per tap: the input gradient where stride and kernel are equal.
    Blocks = 2,
}

/// A convolution to carry out, which for an input gradient is not the layer's own. Its axes (a, b, r) are the grid's
/// D, H, W in an order of choice: tiles hold runs along r, and any axis may be the one long enough for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) mode: Mode,
    /// Grid read from.
    pub(super) grid: [usize; 3],
    /// Grid of outputs, before the factor.
    pub(super) out: [usize; 3],
    pub(super) kernel: [usize; 3],
    pub(super) stride: [usize; 3],
    pub(super) padding: [usize; 3],
    /// Voxels from one to the next along each axis of the tensor read.
    pub(super) read: [usize; 3],
    /// The same of the tensor written.
    pub(super) write: [usize; 3],
    /// Steps in the weight's taps along each axis.
    pub(super) tap: [usize; 3],
    /// Each output becomes a block of this size, in the order D, H, W.
    pub(super) factor: [usize; 3],
    /// Grid written, in the order D, H, W.
    pub(super) full: [usize; 3],
    /// Channels of the tensor written.
    pub(super) columns: usize,
}

/// Voxels from one to the next along each axis of a grid.
fn steps(grid: [usize; 3]) -> [usize; 3] {
    [grid[1] * grid[2], grid[2], 1]
}

impl Product {
    fn new(mode: Mode, grid: [usize; 3], out: [usize; 3], columns: usize, kernel: [usize; 3], factor: [usize; 3]) -> Self {
        let full = std::array::from_fn(|a| out[a] * factor[a]);
        let write = steps(full);
        Self {
            mode,
            grid,
            out,
            kernel,
            stride: [1; 3],
            padding: [0; 3],
            read: steps(grid),
            write: std::array::from_fn(|a| write[a] * factor[a]),
            tap: steps(kernel),
            factor,
            full,
            columns,
        }
    }

    /// What a forward pass or an input gradient carries out, where that is a product of channels in fours.
    pub(super) fn of(p: &Problem) -> Option<Self> {
        let product = match p.pass {
            Pass::Forward => Some(Self::forward(&p.geom)),
            Pass::InputGrad => Self::backward_input(&p.geom, p.source.channels),
            Pass::WeightGrad => None,
        };
        product.filter(|_| p.geom.out_channels.is_multiple_of(4) && p.source.channels.is_multiple_of(4))
    }

    /// The layer's own convolution.
    pub(super) fn forward(g: &Geom) -> Self {
        let p = Self::new(Mode::Forward, g.input, g.output(), g.out_channels, g.kernel, [1; 3]);
        Self { stride: g.stride, padding: g.padding, ..p }
    }

    /// The input gradient of `channels` channels, where it is a product.
    fn backward_input(g: &Geom, channels: usize) -> Option<Self> {
        if g.blocks() && g.kernel != [1; 3] {
            return Some(Self::new(Mode::Blocks, g.output(), g.output(), channels, [1; 3], g.kernel));
        }
        let regular = g.stride == [1; 3] && (0..3).all(|a| g.padding[a] < g.kernel[a]);
        let padding = std::array::from_fn(|a| (g.kernel[a] - 1).saturating_sub(g.padding[a]));
        regular.then(|| Self { padding, ..Self::new(Mode::Flipped, g.output(), g.input, channels, g.kernel, [1; 3]) })
    }

    /// The same with axis `r` of D, H, W as the last.
    pub(super) fn along(&self, r: usize) -> Self {
        let order = [[1, 2, 0], [0, 2, 1], [0, 1, 2]][r];
        let turn = |v: [usize; 3]| order.map(|a| v[a]);
        Self {
            grid: turn(self.grid),
            out: turn(self.out),
            kernel: turn(self.kernel),
            stride: turn(self.stride),
            padding: turn(self.padding),
            read: turn(self.read),
            write: turn(self.write),
            tap: turn(self.tap),
            ..*self
        }
    }

    /// Blocks that an output becomes.
    pub(super) fn factors(&self) -> usize {
        self.factor.iter().product()
    }

    /// Columns of the matrix product.
    pub(super) fn all_columns(&self) -> usize {
        self.columns * self.factors()
    }

    /// Multiply-adds × 2 of a sample with `rows` channels read.
    pub(super) fn flops(&self, rows: usize) -> u64 {
        2 * (self.out.iter().chain(&self.kernel).product::<usize>() * self.all_columns() * rows) as u64
    }

    /// Voxels that a tile of outputs reads, along each axis.
    pub(super) fn halo(&self, tile: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| (tile[a] - 1) * self.stride[a] + self.kernel[a])
    }

    /// Tiles along each axis.
    pub(super) fn tiles(&self, tile: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| self.out[a].div_ceil(tile[a]))
    }

    /// The order of axes and the tile of `voxels` outputs, in runs of `run` along the last axis, that wastes least: outputs beyond
    /// the grid, and halo. `None` when no tile's halo stays within `most` voxels.
    pub(super) fn tile(&self, voxels: usize, run: usize, most: usize) -> Option<(Self, [usize; 3])> {
        let mut best: Option<(usize, Self, [usize; 3])> = None;
        for r in [2, 1, 0] {
            let p = self.along(r);
            let powers = || (0..).map(|e| 1usize << e).take_while(|&v| v <= voxels);
            for (b, a) in powers().flat_map(|b| powers().map(move |a| (b, a))) {
                if !voxels.is_multiple_of(a * b * run) {
                    continue;
                }
                let tile = [a, b, voxels / (a * b)];
                let halo = p.halo(tile).iter().product::<usize>();
                // Staging a voxel costs about as much as multiplying it by four taps.
                let taps = p.kernel.iter().product::<usize>();
                let cost = p.tiles(tile).iter().product::<usize>() * (voxels * taps + 4 * halo);
                if halo <= most && best.as_ref().is_none_or(|b| cost < b.0) {
                    best = Some((cost, p, tile));
                }
            }
        }
        best.map(|(_, p, tile)| (p, tile))
    }

    /// The constants that say where the product reads and writes.
    pub(super) fn header(&self) -> Vec<(&'static str, Const)> {
        let mut out = Vec::new();
        let mut axes = |names: [&'static str; 3], v: [usize; 3]| out.extend(names.into_iter().zip(v.map(Const::U32)));
        axes(["GRID_A", "GRID_B", "GRID_R"], self.grid);
        axes(["OUT_A", "OUT_B", "OUT_R"], self.out);
        axes(["KERNEL_A", "KERNEL_B", "KERNEL_R"], self.kernel);
        axes(["STRIDE_A", "STRIDE_B", "STRIDE_R"], self.stride);
        axes(["PAD_A", "PAD_B", "PAD_R"], self.padding);
        axes(["READ_A", "READ_B", "READ_R"], self.read);
        axes(["WRITE_A", "WRITE_B", "WRITE_R"], self.write);
        out
    }

    /// The constants of a tile of outputs.
    pub(super) fn tile_header(&self, tile: [usize; 3]) -> Vec<(&'static str, Const)> {
        let mut out = self.header();
        let mut axes = |names: [&'static str; 3], v: [usize; 3]| out.extend(names.into_iter().zip(v.map(Const::U32)));
        axes(["TILE_A", "TILE_B", "TILE_R"], tile);
        axes(["TILES_A", "TILES_B", "TILES_R"], self.tiles(tile));
        axes(["HALO_A", "HALO_B", "HALO_R"], self.halo(tile));
        axes(["FACTOR_H", "FACTOR_W", "FACTORS"], [self.factor[1], self.factor[2], self.factors()]);
        axes(["FULL_H", "FULL_W", "CHANNELS4"], [self.full[1], self.full[2], self.columns / 4]);
        out
    }

    /// Records `d` in as many parts as the batch needs, with the tensors of each: `inputs`, then `rest`, then the output and the
    /// partial statistics, of which each tile of `tiles` a sample writes one; `panels` workgroups share a tile.
    pub(super) fn launch(
        &self,
        rec: &mut Recorder<'_>,
        batch: usize,
        d: &Dispatch,
        (inputs, rest): (&[Input], &[Option<View>]),
        output: &Output,
        (tiles, panels): (usize, usize),
    ) -> Result<()> {
        let grid: usize = self.grid.iter().product();
        let rows: usize = inputs.iter().map(|i| i.source.channels).sum();
        let mut sizes: Vec<(usize, u64)> = inputs.iter().map(|i| (grid * i.source.channels, i.view.dtype.bytes())).collect();
        sizes.push((self.full.iter().product::<usize>() * self.columns, output.view.dtype.bytes()));
        let bytes: Vec<u64> = sizes.iter().map(|&(n, b)| n as u64 * b).collect();
        let flops = self.flops(rows);
        for (n0, n) in sample_parts(rec.caps, "conv3d", batch, &bytes, flops)? {
            let slice = |view: View, k: usize| view.slice(n0 * sizes[k].0, n * sizes[k].0);
            let mut d = d.clone();
            for (k, i) in inputs.iter().enumerate() {
                d = d.bind(slice(i.view, k));
            }
            for view in rest.iter().copied().chain(inputs.iter().map(|i| i.norm)).flatten() {
                d = d.bind(view);
            }
            d = bind_some(d.bind(slice(output.view, inputs.len())), output.statistics);
            push_runs(rec, &d.param("first_tile", n0 * tiles), n * tiles * panels, flops * n as u64);
        }
        Ok(())
    }

    /// Packs the layer's weights into panels of `wide` columns and `lot` rows of `dtype`.
    pub(super) fn pack(
        &self,
        rec: &mut Recorder<'_>,
        g: &Geom,
        rows: &[Source],
        first: usize,
        (wide, lot): (usize, usize),
        dtype: Dtype,
        weight: View,
    ) -> View {
        let lots = |s: &Source| s.channels.div_ceil(lot);
        let panels = self.all_columns().div_ceil(wide) * rows.iter().map(lots).sum::<usize>() * self.kernel.iter().product::<usize>();
        let total = panels * lot * wide / 4;
        let bytes = usize::try_from(4 * dtype.bytes()).unwrap_or(16);
        let packed = rec.scratch(total * bytes / 4);
        let none = Source { first: 0, channels: 0 };
        let (one, two) = (rows[0], rows.get(1).copied().unwrap_or(none));
        let text = specialise("conv3d_panels", &[("Cell4", vec4(dtype)), ("MODE", Const::U32(self.mode as usize))], &[]);
        let d = Dispatch::new("conv3d", "pack", text)
            .bind(weight)
            .bind(packed)
            .param("ka", self.kernel[0])
            .param("kb", self.kernel[1])
            .param("kr", self.kernel[2])
            .param("ta", self.tap[0])
            .param("tb", self.tap[1])
            .param("tr", self.tap[2])
            .param("taps", g.taps())
            .param("lots0", lots(&one))
            .param("rows0", one.channels)
            .param("first0", one.first)
            .param("lots1", lots(&two))
            .param("rows1", two.channels)
            .param("first1", two.first)
            .param("columns", self.columns)
            .param("c0", first)
            .param("co", g.out_channels)
            .param("ci_total", g.in_channels)
            .param("lot", lot)
            .param("wide", wide)
            .param("total", total);
        rec.push(d.items(total, 64));
        packed
    }
}

/// Four elements of a type.
pub(super) fn vec4(dtype: Dtype) -> Const {
    Const::Type(if dtype == Dtype::F16 { "vec4<f16>" } else { "vec4<f32>" })
}

/// A place to write shader text to, line by line.
#[derive(Default)]
pub(super) struct Block(String);

impl Block {
    /// Appends a line.
    pub(super) fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }
}

impl std::ops::Deref for Block {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}
