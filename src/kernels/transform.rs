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

    fn source(&self, name: &str, blocks: &[(&str, &str)]) -> Arc<str> {
        let [x, y, z] = self.size.map(Const::U32);
        specialise(name, &[("NX", x), ("NY", y), ("NZ", z)], blocks)
    }
}

/// The elastic Gaussian: `exp(-i²/128)` for i in -32..=32, normalised to sum 1.
fn gaussian() -> Vec<f64> {
    let raw: Vec<f64> = (0..=2 * RADIUS).map(|i| (-(i as f64 - RADIUS as f64).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
    let sum: f64 = raw.iter().sum();
    raw.iter().map(|w| w / sum).collect()
}

/// The unrolled text of the blur: loads with their contributions, and the guarded stores.
fn blur_blocks() -> (String, String) {
    let weights = gaussian();
    let (mut taps, mut stores) = (String::new(), String::new());
    for k in 0..BLOCK {
        let _ = writeln!(taps, "    var a{k} = vec2<f32>();");
        let guard = format!("at + {k}u * params.stride");
        let _ = writeln!(stores, "    if {guard} < end {{ field_out[{guard}] = a{k} * params.scale; }}");
    }
    for t in 0..BLOCK + 2 * RADIUS {
        let _ = write!(taps, "    {{ let v = tap(base, first + {}i);", t as i64 - RADIUS as i64);
        for k in 0..BLOCK {
            if let Some(w) = t.checked_sub(k).and_then(|i| weights.get(i)) {
                let _ = write!(taps, " a{k} += v * {:.9e}f;", *w as f32);
            }
        }
        taps.push_str(" }\n");
    }
    (taps, stores)
}

/// `output` = `input` with each sample's axes reversed as its `flip` says.
///
/// `samples` holds a [`Sample`] per crop; `input` and `output` are `[N, x, y, z]` and do not overlap.
///
/// # Errors
/// [`Error::Shape`] when the views do not fit `geometry`, [`Error::ExceedsLimit`] when one crop does not fit a binding.
pub fn flip(rec: &mut Recorder<'_>, geometry: &Geometry, samples: View, input: View, output: View) -> Result<()> {
    geometry.check(samples, &[input, output])?;
    let (v, source) = (geometry.voxels(), geometry.source("transform_flip", &[]));
    for (n0, n) in geometry.parts(rec, 1, 1)? {
        let d = Dispatch::new("transform", "flip", source.clone()).groups(geometry.groups(n)).flops((n * v) as u64);
        rec.push(
            d.bind(samples.slice(n0 * Sample::WORDS, n * Sample::WORDS)).bind(input.slice(n0 * v, n * v)).bind(output.slice(n0 * v, n * v)),
        );
    }
    Ok(())
}

/// The smoothed displacement of `count` samples from scratch `fields`; returns the one that holds the result.
fn displacement(
    rec: &mut Recorder<'_>,
    geometry: &Geometry,
    source: &Arc<str>,
    alpha: f32,
    samples: View,
    count: usize,
    fields: [View; 2],
) -> View {
    let [nx, ny, nz] = geometry.size;
    let pairs = count * geometry.voxels();
    let [mut from, mut to] = fields.map(|f| f.slice(0, 2 * pairs));
    rec.push(
        Dispatch::new("transform", "noise", source.clone())
            .bind(samples)
            .bind(from)
            .groups(geometry.groups(count))
            .flops(100 * pairs as u64),
    );
    // In an image (one slice) nothing is smoothed across slices. The last pass scales.
    let passes = [(nz, 1), (ny, nz), (nx, ny * nz)];
    for (k, (length, stride)) in passes.into_iter().enumerate().skip(usize::from(nz == 1)) {
        let blocks = length.div_ceil(BLOCK);
        let d = Dispatch::new("transform", "blur", source.clone())
            .bind(from)
            .bind(to)
            .param("length", length)
            .param("stride", stride)
            .param("blocks", blocks)
            .param("scale", if k == 2 { alpha } else { 1.0 });
        rec.push(d.items(pairs / length * blocks, 64).flops(4 * (2 * RADIUS as u64 + 1) * pairs as u64));
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
    let (taps, stores) = blur_blocks();
    let source = geometry.source("transform_elastic", &[("taps", &taps), ("stores", &stores)]);
    let v = geometry.voxels();
    let parts = geometry.parts(rec, 2, 260)?;
    let most = parts.iter().map(|p| p.1).max().unwrap_or(0);
    let fields = [rec.scratch(2 * most * v), rec.scratch(2 * most * v)];
    for (n0, n) in parts {
        let field = displacement(rec, geometry, &source, alpha, samples.slice(n0 * Sample::WORDS, n * Sample::WORDS), n, fields);
        let d = Dispatch::new("transform", "resample", source.clone()).bind(field).bind(input.slice(n0 * v, n * v));
        rec.push(d.bind(output.slice(n0 * v, n * v)).groups(geometry.groups(n)).flops(20 * (n * v) as u64));
    }
    Ok(())
}

/// `output` = `input` after each sample's local shuffling, non-linear map and painting, in this order.
///
/// `most_windows` is the largest number of shuffling windows of any sample. Needs one value of scratch a voxel.
///
/// # Errors
/// As [`flip`].
pub fn distort(rec: &mut Recorder<'_>, geometry: &Geometry, most_windows: usize, samples: View, input: View, output: View) -> Result<()> {
    geometry.check(samples, &[input, output])?;
    let v = geometry.voxels();
    let (shuffle, point) = (geometry.source("transform_shuffle", &[]), geometry.source("transform_point", &[]));
    // A voxel evaluates a key for each voxel of the largest window at worst.
    let window: usize = geometry.size.iter().map(|s| (s / 10).max(1)).product();
    let work = 400 + 60 * window;
    let parts = geometry.parts(rec, 1, work)?;
    let owners = rec.scratch(parts.iter().map(|p| p.1).max().unwrap_or(0) * v);
    for (n0, n) in parts {
        let samples = samples.slice(n0 * Sample::WORDS, n * Sample::WORDS);
        let owners = owners.slice(0, n * v);
        if most_windows > 0 {
            rec.push(Dispatch::new("transform", "clear", shuffle.clone()).bind(owners).items(n * v, 64));
            rec.push(
                Dispatch::new("transform", "claim", shuffle.clone())
                    .bind(samples)
                    .bind(owners)
                    .param("windows", most_windows)
                    .groups(n * most_windows.div_ceil(64))
                    .flops((n * most_windows * (300 + window)) as u64),
            );
        }
        let d = Dispatch::new("transform", "point", point.clone()).bind(samples).bind(owners).bind(input.slice(n0 * v, n * v));
        rec.push(d.bind(output.slice(n0 * v, n * v)).groups(geometry.groups(n)).flops((n * v * work) as u64));
    }
    Ok(())
}
