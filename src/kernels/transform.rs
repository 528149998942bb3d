//! Image transformations of single-channel crops `[N, x, y, z]`, z fastest: flips, elastic
//! deformation, local shuffling, the non-linear intensity map, in- and out-painting.
//!
//! Everything random is a function of a [`Sample`]'s keys and the voxel or window index, so that a
//! sample's draws depend on neither the batch it is in nor the adapter. What is drawn, and for
//! whom, is decided a layer above; here are the kernels, their f64 references and cases.

mod cases;
mod reference;

use std::fmt::Write;
use std::sync::Arc;

use bytemuck::Zeroable;

use super::{Const, batch_parts, specialise};
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Recorder, View};

pub use cases::cases;
pub use reference::{
    Displacement, Window, reference_blur, reference_flip, reference_noise, reference_non_linear, reference_point, reference_resample,
    reference_shuffle, reference_shuffle_windows,
};

/// Half the width of the elastic Gaussian in voxels.
const RADIUS: usize = 32;
/// Outputs of one invocation of the blur.
const BLOCK: usize = 8;
/// Windows of local shuffling that a workgroup works on.
const WINDOWS: usize = 8;
/// Operations a voxel of the kernel that works point by point, at worst.
const POINT_FLOPS: usize = 400;
/// Standard deviation of the elastic Gaussian in voxels.
const SIGMA: f64 = 8.0;

/// One box of in- or out-painting; layout of `PaintBox` in `shaders/common/transform.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PaintBox {
    /// First voxel (x, y, z).
    pub start: [u32; 3],
    /// Value to paint, unless noise is painted.
    pub fill: f32,
    /// Voxels along x, y, z.
    pub side: [u32; 3],
    /// Padding.
    pub unused: u32,
}

/// What happens to one sample; layout of `Sample` in `shaders/common/transform.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sample {
    /// Stream of the elastic noise; draw = voxel, words = dx, dy.
    pub elastic_key: [u32; 2],
    /// Stream of the local shuffling; counter = (window, use).
    pub shuffle_key: [u32; 2],
    /// Stream of the painted noise; draw = voxel, first word.
    pub paint_key: [u32; 2],
    /// Windows of the local shuffling, 0 for none.
    pub windows: u32,
    /// Axes to reverse: bit 0 is x, bit 1 is y, bit 2 is z.
    pub flip: u32,
    /// Inner control points (P1x, P1y, P2x, P2y) of the non-linear map.
    pub curve: [f32; 4],
    /// 0: no non-linear map, 1: rising, 2: inverted.
    pub curve_kind: u32,
    /// 0: no painting, 1: inside the boxes, 2: outside their union.
    pub paint_kind: u32,
    /// Boxes in use.
    pub box_count: u32,
    /// 1: noise in `[0, 1)` per voxel; 0: each box's `fill` (of the first box when painting outside).
    pub paint_noise: u32,
    /// The boxes; where several cover a voxel, the last one paints it.
    pub boxes: [PaintBox; 5],
    /// Padding to 256 bytes, so that every sample can be bound at its own offset.
    pub unused: [u32; 8],
}

impl Default for Sample {
    /// The sample to which nothing happens.
    fn default() -> Self {
        Self::zeroed()
    }
}

impl Sample {
    /// Size in 4-byte words.
    pub const WORDS: usize = size_of::<Self>() / 4;
}

/// Checked shape of a batch of crops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    batch: usize,
    size: [usize; 3],
}

impl Geometry {
    /// `batch` crops of `size` voxels along x, y, z.
    ///
    /// # Errors
    /// [`Error::Shape`] when something is zero or an axis exceeds 65,535 voxels.
    pub fn new(batch: usize, size: [usize; 3]) -> Result<Self> {
        if batch == 0 || size.iter().any(|&s| s == 0 || s > 65_535) {
            return Err(Error::shape("transform", format!("{batch} crops of {size:?} voxels; expected 1 to 65535 along each axis")));
        }
        Ok(Self { batch, size })
    }

    /// Crops.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Voxels of one crop along x, y, z.
    pub fn size(&self) -> [usize; 3] {
        self.size
    }

    /// Voxels of one crop.
    pub fn voxels(&self) -> usize {
        self.size.iter().product()
    }

    /// Groups of the kernels that give each voxel an invocation, with no group on two samples.
    fn groups(&self, samples: usize) -> usize {
        samples * self.voxels().div_ceil(64)
    }

    /// Ranges of samples that fit a dispatch with `per_voxel` values and `flops` operations a voxel.
    fn parts(&self, rec: &Recorder<'_>, per_voxel: usize, flops: usize) -> Result<Vec<(usize, usize)>> {
        let v = self.voxels();
        batch_parts(rec.caps, "transform", self.batch, &[v * per_voxel, v, Sample::WORDS], (v * flops) as u64)
    }

    fn check(&self, samples: View, images: &[View]) -> Result<()> {
        let (want, found) = (self.batch * Sample::WORDS, samples.elements());
        if want != found {
            return Err(Error::shape("transform", format!("{found} words of parameters, expected {want}")));
        }
        let want = self.batch * self.voxels();
        match images.iter().find(|v| v.elements() != want) {
            Some(v) => Err(Error::shape(
                "transform",
                format!("{} values, expected {want} for {} crops of {:?}", v.elements(), self.batch, self.size),
            )),
            None => Ok(()),
        }
    }

    fn source(&self, name: &str, header: &[(&str, Const)], blocks: &[(&str, &str)]) -> Arc<str> {
        let [x, y, z] = self.size.map(Const::U32);
        specialise(name, &[&[("NX", x), ("NY", y), ("NZ", z)], header].concat(), blocks)
    }

    /// Operations of a shuffling window of mean size: each voxel's key is compared with every other's.
    fn window_flops(&self) -> u64 {
        let sides = self.size.map(|s| (s / 10).max(1) as u64);
        let voxels: u64 = sides.iter().map(|s| s.div_ceil(2)).product();
        let pairs: u64 = sides.iter().map(|s| ((s + 1) * (2 * s + 1)).div_ceil(6)).product();
        300 + 100 * voxels + 8 * pairs
    }
}

/// The elastic Gaussian: `exp(-i²/128)` for i in -32..=32, normalised to sum 1.
fn gaussian() -> Vec<f64> {
    let raw: Vec<f64> = (0..=2 * RADIUS).map(|i| (-(i as f64 - RADIUS as f64).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
    let sum: f64 = raw.iter().sum();
    raw.iter().map(|w| w / sum).collect()
}

const ONE_PAIR: &str = "
const WIDTH: u32 = 1u;
fn noise_pairs(key: vec2<u32>, i: u32) -> Pairs { return noise_at(key, i); }
fn pair_at(voxel: u32) -> vec2<f32> { return field[voxel]; }
";
const TWO_PAIRS: &str = "
const WIDTH: u32 = 2u;
fn noise_pairs(key: vec2<u32>, i: u32) -> Pairs { return vec4<f32>(noise_at(key, 2u * i), noise_at(key, 2u * i + 1u)); }
fn pair_at(voxel: u32) -> vec2<f32> {
    let v = field[voxel / 2u];
    return select(v.xy, v.zw, voxel % 2u == 1u);
}
";

/// The unrolled text of the blur: loads with their contributions, and the guarded stores. With `along` a load holds
/// two taps of the axis, and so does a store.
fn blur_blocks(along: bool) -> (String, String) {
    let weights = gaussian();
    let per = if along { 2 } else { 1 };
    let (mut taps, mut stores) = (String::new(), String::new());
    for k in 0..BLOCK {
        let _ = writeln!(taps, "    var a{k} = {}();", if along { "vec2<f32>" } else { "Pairs" });
    }
    for k in 0..BLOCK / per {
        let guard = format!("at + {k}u * params.stride");
        let sum = if along { format!("vec4<f32>(a{}, a{})", 2 * k, 2 * k + 1) } else { format!("a{k}") };
        let _ = writeln!(stores, "    if {guard} < end {{ field_out[{guard}] = {sum} * params.scale; }}");
    }
    for t in (0..BLOCK + 2 * RADIUS).step_by(per) {
        let _ = write!(taps, "    {{ let v = tap(base, first + {}i);", (t as i64 - RADIUS as i64) / per as i64);
        for (tap, value) in (t..t + per).zip(if along { ["v.xy", "v.zw"] } else { ["v"; 2] }) {
            for k in 0..BLOCK {
                if let Some(w) = tap.checked_sub(k).and_then(|i| weights.get(i)) {
                    let _ = write!(taps, " a{k} += {value} * {:.9e}f;", *w as f32);
                }
            }
        }
        taps.push_str(" }\n");
    }
    (taps, stores)
}

/// The elastic kernels with a blur along z or across it, where z is even.
fn elastic_source(geometry: &Geometry, along: bool) -> Arc<str> {
    let two = geometry.size[2].is_multiple_of(2);
    let (taps, stores) = blur_blocks(along);
    let block = if along { BLOCK / 2 } else { BLOCK };
    let header = [("Pairs", Const::Type(if two { "vec4<f32>" } else { "vec2<f32>" })), ("BLOCK", Const::U32(block))];
    let pairs = if two { TWO_PAIRS } else { ONE_PAIR };
    geometry.source("transform_elastic", &header, &[("taps", &taps), ("stores", &stores), ("pairs", pairs)])
}

/// `output` = `input` with each sample's axes reversed as its `flip` says.
///
/// `samples` holds a [`Sample`] per crop; `input` and `output` are `[N, x, y, z]` and do not overlap.
///
/// # Errors
/// [`Error::Shape`] when the views do not fit `geometry`, [`Error::ExceedsLimit`] when one crop does not fit a binding.
pub fn flip(rec: &mut Recorder<'_>, geometry: &Geometry, samples: View, input: View, output: View) -> Result<()> {
    geometry.check(samples, &[input, output])?;
    let (v, source) = (geometry.voxels(), geometry.source("transform_flip", &[], &[]));
    for (n0, n) in geometry.parts(rec, 1, 1)? {
        let d = Dispatch::new("transform", "flip", source.clone()).groups(geometry.groups(n)).flops((n * v) as u64);
        rec.push(
            d.bind(samples.slice(n0 * Sample::WORDS, n * Sample::WORDS)).bind(input.slice(n0 * v, n * v)).bind(output.slice(n0 * v, n * v)),
        );
    }
    Ok(())
}

/// The smoothed displacement of `count` samples from scratch `fields`; returns the one that holds the result.
fn displacement(rec: &mut Recorder<'_>, geometry: &Geometry, alpha: f32, samples: View, count: usize, fields: [View; 2]) -> View {
    let [nx, ny, nz] = geometry.size;
    let per = if nz.is_multiple_of(2) { 2 } else { 1 };
    let [across, along] = [false, per == 2].map(|along| elastic_source(geometry, along));
    let pairs = count * geometry.voxels();
    let [mut from, mut to] = fields.map(|f| f.slice(0, 2 * pairs));
    let d = Dispatch::new("transform", "noise", across.clone()).bind(samples).bind(from);
    rec.push(d.items(pairs / per, 64).flops(100 * pairs as u64));
    // In an image (one slice) nothing is smoothed across slices. The last pass scales.
    let line = nz / per;
    let passes = [(line, 1, BLOCK / per, along), (ny, line, BLOCK, across.clone()), (nx, ny * line, BLOCK, across)];
    for (k, (length, stride, block, source)) in passes.into_iter().enumerate().skip(usize::from(nz == 1)) {
        let blocks = length.div_ceil(block);
        let d = Dispatch::new("transform", "blur", source)
            .bind(from)
            .bind(to)
            .param("length", length)
            .param("stride", stride)
            .param("blocks", blocks)
            .param("scale", if k == 2 { alpha } else { 1.0 });
        rec.push(d.items(pairs / per / length * blocks, 64).flops(4 * (2 * RADIUS as u64 + 1) * pairs as u64));
        (from, to) = (to, from);
    }
    from
}

/// `output` = `input` under an elastic deformation of strength `alpha`, new for every sample.
///
/// Two fields of noise in `[-1, 1)`, smoothed by a Gaussian (σ = 8 voxels, 65 taps, zeros outside,
/// no renormalisation) and multiplied by `alpha`, displace the linear sampling along y (first) and
/// x (second); positions outside are mirrored with the edge voxel repeated. Needs four values of scratch a voxel.
///
/// # Errors
/// As [`flip`].
pub fn elastic(rec: &mut Recorder<'_>, geometry: &Geometry, alpha: f32, samples: View, input: View, output: View) -> Result<()> {
    geometry.check(samples, &[input, output])?;
    let source = elastic_source(geometry, false);
    let v = geometry.voxels();
    let parts = geometry.parts(rec, 2, 260)?;
    let most = parts.iter().map(|p| p.1).max().unwrap_or(0);
    let fields = [rec.scratch(2 * most * v), rec.scratch(2 * most * v)];
    for (n0, n) in parts {
        let field = displacement(rec, geometry, alpha, samples.slice(n0 * Sample::WORDS, n * Sample::WORDS), n, fields);
        let d = Dispatch::new("transform", "resample", source.clone()).bind(field).bind(input.slice(n0 * v, n * v));
        rec.push(d.bind(output.slice(n0 * v, n * v)).groups(geometry.groups(n)).flops(20 * (n * v) as u64));
    }
    Ok(())
}

const COUNT_TILE: &str = "
var<workgroup> tile_keys: array<vec2<u32>, LANES>;
fn count_before(keys: vec2<u32>, first: u32, pairs: u32, mine: u32, me: u32, t: u32) -> u32 {
    workgroupBarrier();
    tile_keys[t] = keys;
    workgroupBarrier();
    var n = 0u;
    for (var l = 0u; l < pairs; l++) { n += before(tile_keys[l], first + 2u * l, mine, me); }
    return n;
}
";
const COUNT_BROADCAST: &str = "
fn count_before(keys: vec2<u32>, first: u32, pairs: u32, mine: u32, me: u32, t: u32) -> u32 {
    var n = before(subgroupBroadcast(keys, 0u), first, mine, me);
    n += before(subgroupBroadcast(keys, 1u), first + 2u, mine, me);
    n += before(subgroupBroadcast(keys, 2u), first + 4u, mine, me);
    n += before(subgroupBroadcast(keys, 3u), first + 6u, mine, me);
    n += before(subgroupBroadcast(keys, 4u), first + 8u, mine, me);
    n += before(subgroupBroadcast(keys, 5u), first + 10u, mine, me);
    n += before(subgroupBroadcast(keys, 6u), first + 12u, mine, me);
    n += before(subgroupBroadcast(keys, 7u), first + 14u, mine, me);
    return n;
}
";

/// Ranges `(first, end)` of `units`, of `flops` each, that stay below `most`.
fn ranges(units: usize, flops: u64, most: u64) -> impl Iterator<Item = (usize, usize)> {
    let step = usize::try_from(most / flops.max(1)).unwrap_or(usize::MAX).max(1);
    (0..units).step_by(step).map(move |first| (first, first.saturating_add(step).min(units)))
}

/// `output` = `input` after each sample's local shuffling, non-linear map and painting, in this order.
///
/// `most_windows` is the largest number of shuffling windows of any sample. Needs one value of scratch a voxel.
///
/// # Errors
/// As [`flip`].
pub fn distort(rec: &mut Recorder<'_>, geometry: &Geometry, most_windows: usize, samples: View, input: View, output: View) -> Result<()> {
    let most_flops = rec.caps.max_dispatch_flops();
    distort_within(rec, geometry, most_flops, most_windows, samples, input, output)
}

/// [`distort`] in dispatches of `most_flops`.
fn distort_within(
    rec: &mut Recorder<'_>,
    geometry: &Geometry,
    most_flops: u64,
    most_windows: usize,
    samples: View,
    input: View,
    output: View,
) -> Result<()> {
    geometry.check(samples, &[input, output])?;
    let v = geometry.voxels();
    // A subgroup of eight on a processor gains nothing from company; elsewhere a window has voxels for 64.
    let lanes = if rec.caps.subgroup8() { 8 } else { 64 };
    let header = [("LANES", Const::U32(lanes)), ("WINDOWS", Const::U32(WINDOWS))];
    let count = if lanes == 8 { COUNT_BROADCAST } else { COUNT_TILE };
    let shuffle = geometry.source("transform_shuffle", &header, &[("count_before", count)]);
    let point = geometry.source("transform_point", &[], &[]);
    let parts = geometry.parts(rec, 1, POINT_FLOPS)?;
    let owners = rec.scratch(parts.iter().map(|p| p.1).max().unwrap_or(0) * v);
    for (n0, n) in parts {
        let samples = samples.slice(n0 * Sample::WORDS, n * Sample::WORDS);
        let owners = owners.slice(0, n * v);
        if most_windows > 0 {
            rec.push(Dispatch::new("transform", "clear", shuffle.clone()).bind(owners).items(n * v, 64));
            let over = |entry, (first, end): (usize, usize), flops: u64| {
                let d = Dispatch::new("transform", entry, shuffle.clone()).bind(samples).bind(owners);
                let d = d.param("first", first).param("windows", end).groups(n * (end - first).div_ceil(WINDOWS));
                d.flops((n * (end - first)) as u64 * flops)
            };
            let flops = geometry.window_flops();
            rec.push(over("claim", (0, most_windows), 300));
            rec.dispatches.extend(ranges(most_windows, n as u64 * flops, most_flops).map(|range| over("permute", range, flops)));
        }
        let flops = (256 * POINT_FLOPS) as u64;
        for (first, end) in ranges(n * v.div_ceil(256), flops, most_flops) {
            let d = Dispatch::new("transform", "point", point.clone()).bind(samples).bind(owners).bind(input.slice(n0 * v, n * v));
            let d = d.bind(output.slice(n0 * v, n * v)).param("first", first).groups(end - first);
            rec.push(d.flops((end - first) as u64 * flops));
        }
    }
    Ok(())
}
