//! Windows slid over a scan: overlapping windows are scored one layer after the other, their scores averaged with Gaussian weights,
//! and the averages handed out slice by slice on the grid of the answer. Only the layer in work is in memory.
//!
//! Along each axis the windows of a voxel have weights `exp(-((x - c) / σ)² / 2)` with σ an eighth of the window (as nnU-Net has
//! it) and c its middle, divided by their sum. Starts are the same for every row of windows, so the product of the three axes'
//! shares is the share of a window in a voxel, and no sum of weights has to be kept.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::data::volume::{Affine, apply};
use crate::error::{Error, Result};
use crate::task::windows::flip;

/// σ of the weights in windows.
const SIGMA: f64 = 1.0 / 8.0;
/// A place so close to a grid point lies on it.
const SNAP: f64 = 1e-6;

/// A prepared scan.
pub trait Scan: Sync {
    /// Voxels of the prepared grid.
    fn size(&self) -> [usize; 3];

    /// Values of the window that begins at `start`, which may lie outside (0 there), `[x][y][z]`, channels innermost.
    fn window(&self, start: [i64; 3], size: [usize; 3]) -> Vec<f32>;
}

/// The grid that the answer is given on.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Voxels along i, j, k.
    pub size: [usize; 3],
    /// Index of the target to index of the prepared grid. Places outside take the value at the border.
    pub to_prepared: Affine,
}

/// How windows are laid and scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Slide {
    /// Window along x, y, z.
    pub window: [usize; 3],
    /// Numbers for a voxel that come in.
    pub channels: usize,
    /// Numbers for a voxel that come out.
    pub outputs: usize,
    /// Share of a window that the next one covers again, in `[0, 1)`.
    pub overlap: f64,
    /// Reversals of the axes under which every window is scored; the mean counts.
    pub flips: Vec<[bool; 3]>,
    /// Windows scored at once.
    pub batch: usize,
}

/// All combinations of reversals of the axes that may be reversed, none first.
pub fn reversals(may: [bool; 3]) -> Vec<[bool; 3]> {
    let all = (0..8u8).map(|bits| [bits & 1 > 0, bits & 2 > 0, bits & 4 > 0]);
    all.filter(|f| (0..3).all(|a| may[a] || !f[a])).collect()
}

/// First voxels of the windows along an axis of `size` voxels: evenly spread, the first and the last flush with the ends; one window
/// with the scan in its middle where the axis is shorter, as in training.
fn starts(size: usize, window: usize, overlap: f64) -> Vec<i64> {
    if size <= window {
        return vec![-((window - size) as i64 / 2)];
    }
    let room = (size - window) as f64;
    let step = ((window as f64) * (1.0 - overlap)).floor().max(1.0);
    let steps = (room / step).ceil();
    (0..=steps as usize).map(|i| (i as f64 * room / steps).round() as i64).collect()
}

/// The share of each window in each of its voxels along an axis, `[window][place]`; 0 outside the scan.
fn shares(starts: &[i64], size: usize, window: usize) -> Vec<Vec<f32>> {
    let (middle, sigma) = ((window as f64 - 1.0) / 2.0, window as f64 * SIGMA);
    let weight = |place: usize| (-0.5 * ((place as f64 - middle) / sigma).powi(2)).exp();
    let mut sums = vec![0.0; size];
    let inside = |start: i64, place: usize| usize::try_from(start + place as i64).ok().filter(|&x| x < size);
    for &s in starts {
        (0..window).for_each(|p| inside(s, p).into_iter().for_each(|x| sums[x] += weight(p)));
    }
    starts.iter().map(|&s| (0..window).map(|p| inside(s, p).map_or(0.0, |x| (weight(p) / sums[x]) as f32)).collect()).collect()
}

/// A window that is scored: which one along each axis, and with which axes reversed.
type Item = ([usize; 3], [bool; 3]);

impl Slide {
    fn starts(&self, size: [usize; 3]) -> [Vec<i64>; 3] {
        std::array::from_fn(|a| starts(size[a], self.window[a], self.overlap))
    }

    /// First voxels of all windows of a scan of `size` voxels.
    pub fn places(&self, size: [usize; 3]) -> Vec<[i64; 3]> {
        let [x, y, z] = self.starts(size);
        x.iter()
            .flat_map(|&x| {
                y.iter().flat_map({
                    let z = &z;
                    move |&y| z.iter().map(move |&z| [x, y, z])
                })
            })
            .collect()
    }

    /// How many windows are scored for a scan of `size` voxels.
    pub fn count(&self, size: [usize; 3]) -> usize {
        self.starts(size).iter().map(Vec::len).product::<usize>() * self.flips.len()
    }

    /// Scores `scan` and hands the means to `take`, for each k of `target` in order: `[j][i][output]`.
    ///
    /// `score` maps at most `batch` windows `[n][x][y][z][channel]` to `[n][x][y][z][output]`.
    ///
    /// # Errors
    /// What `score` and `take` return, and [`Error::Shape`] when `score` returns something else than asked.
    pub fn run(
        &self,
        scan: &dyn Scan,
        target: &Target,
        score: &mut dyn FnMut(Vec<f32>, usize) -> Result<Vec<f32>>,
        take: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let size = scan.size();
        let starts = self.starts(size);
        let shares: [Vec<Vec<f32>>; 3] = std::array::from_fn(|a| shares(&starts[a], size[a], self.window[a]));
        // The prepared axis that k runs along.
        let m = &target.to_prepared;
        let along = (1..3).fold(0, |best, a| if m[a][2].abs() > m[best][2].abs() { a } else { best });
        let backwards = m[along][2] < 0.0;
        let mut layers: Vec<usize> = (0..starts[along].len()).collect();
        if backwards {
            layers.reverse();
        }
        let mut layers = layers.into_iter().peekable();
        let mut slab = Slab { along, size, outputs: self.outputs, planes: BTreeMap::new() };
        for k in 0..target.size[2] {
            let (low, high) = slab.needed(target, k);
            let asked = |layer: usize| {
                let first = starts[along][layer];
                if backwards { first + self.window[along] as i64 > low as i64 } else { first <= high as i64 }
            };
            while let Some(layer) = layers.next_if(|&l| asked(l)) {
                let begin = starts[along][layer];
                slab.extend(begin, self.window[along], (low, high), backwards);
                self.layer(scan, &starts, &shares, along, layer, score, &mut slab)?;
            }
            slab.forget(low, high, backwards);
            take(k, &slab.slice(target, k))?;
        }
        Ok(())
    }

    /// Scores the windows of a layer.
    fn layer(
        &self,
        scan: &dyn Scan,
        starts: &[Vec<i64>; 3],
        shares: &[Vec<Vec<f32>>; 3],
        along: usize,
        layer: usize,
        score: &mut dyn FnMut(Vec<f32>, usize) -> Result<Vec<f32>>,
        slab: &mut Slab,
    ) -> Result<()> {
        let range = |a: usize| if a == along { layer..layer + 1 } else { 0..starts[a].len() };
        let mut items: Vec<Item> = Vec::new();
        for x in range(0) {
            for y in range(1) {
                for z in range(2) {
                    items.extend(self.flips.iter().map(|&f| ([x, y, z], f)));
                }
            }
        }
        let voxels: usize = self.window.iter().product();
        for chunk in items.chunks(self.batch.max(1)) {
            let cut = |&(at, flips): &Item| {
                let mut cube = scan.window(std::array::from_fn(|a| starts[a][at[a]]), self.window);
                (0..3).filter(|&a| flips[a]).for_each(|a| flip(&mut cube, self.window, self.channels, a));
                cube
            };
            let cubes: Vec<f32> = chunk.iter().flat_map(cut).collect();
            let scores = score(cubes, chunk.len())?;
            if scores.len() != chunk.len() * voxels * self.outputs {
                return Err(Error::shape("slide", format!("{} scores for {} windows of {voxels} voxels", scores.len(), chunk.len())));
            }
            slab.planes.par_iter_mut().for_each(|(&plane, sums)| {
                for (item, scores) in chunk.iter().zip(scores.chunks_exact(voxels * self.outputs)) {
                    self.add(sums, plane, along, starts, shares, item, scores, slab.size);
                }
            });
        }
        Ok(())
    }

    /// Adds a window's part of one plane.
    fn add(
        &self,
        sums: &mut [f32],
        plane: usize,
        along: usize,
        starts: &[Vec<i64>; 3],
        shares: &[Vec<Vec<f32>>; 3],
        (at, flips): &Item,
        scores: &[f32],
        size: [usize; 3],
    ) {
        let start = |a: usize| starts[a][at[a]];
        let share = |a: usize, place: usize| shares[a][at[a]][place];
        let strides = [self.window[1] * self.window[2], self.window[2], 1];
        let within = |a: usize, place: usize| strides[a] * if flips[a] { self.window[a] - 1 - place } else { place };
        let Some(depth) = usize::try_from(plane as i64 - start(along)).ok().filter(|&d| d < self.window[along]) else { return };
        let [b, c] = across(along);
        let inside = |a: usize| {
            let first = (-start(a)).max(0) as usize;
            first..self.window[a].min((size[a] as i64 - start(a)) as usize)
        };
        let whole = share(along, depth) / self.flips.len() as f32;
        for u in inside(b) {
            let row = (start(b) + u as i64) as usize * size[c];
            let weight = whole * share(b, u);
            for v in inside(c) {
                let to = (row + (start(c) + v as i64) as usize) * self.outputs;
                let from = (within(along, depth) + within(b, u) + within(c, v)) * self.outputs;
                let weight = weight * share(c, v);
                let scores = &scores[from..from + self.outputs];
                sums[to..to + self.outputs].iter_mut().zip(scores).for_each(|(sum, s)| *sum += weight * s);
            }
        }
    }
}

/// The other two axes.
fn across(along: usize) -> [usize; 2] {
    match along {
        0 => [1, 2],
        1 => [0, 2],
        _ => [0, 1],
    }
}

/// The planes in work.
struct Slab {
    along: usize,
    size: [usize; 3],
    outputs: usize,
    /// By place along the axis: `[other axis][other axis][output]`.
    planes: BTreeMap<usize, Vec<f32>>,
}

/// A place along one axis: `weight` of the way from `low` to the next.
fn place(at: f64, n: usize) -> (usize, f32) {
    let at = if (at - at.round()).abs() < SNAP { at.round() } else { at };
    let at = at.clamp(0.0, n as f64 - 1.0);
    (at.floor() as usize, (at - at.floor()) as f32)
}

impl Slab {
    /// The first and the last plane that slice k of the target lies between.
    fn needed(&self, target: &Target, k: usize) -> (usize, usize) {
        let n = self.size[self.along];
        let last = |a: usize| (target.size[a] - 1) as f64;
        let corners = [[0.0, 0.0], [last(0), 0.0], [0.0, last(1)], [last(0), last(1)]];
        let places = corners.map(|[i, j]| place(apply(&target.to_prepared, [i, j, k as f64])[self.along], n));
        let low = places.iter().map(|p| p.0).min().unwrap_or(0);
        let high = places.iter().map(|p| p.0 + usize::from(p.1 > 0.0)).max().unwrap_or(0);
        (low, high)
    }

    /// Makes room for the planes of a window that are still asked for, and those that slices need.
    fn extend(&mut self, begin: i64, window: usize, (low, high): (usize, usize), backwards: bool) {
        let n = self.size[self.along] as i64;
        let (mut first, mut end) = (begin.max(0), (begin + window as i64).min(n));
        if backwards {
            end = end.min(high as i64 + 1);
        } else {
            first = first.max(low as i64);
        }
        let [b, c] = across(self.along);
        let length = self.size[b] * self.size[c] * self.outputs;
        for p in first..end {
            self.planes.entry(p as usize).or_insert_with(|| vec![0.0; length]);
        }
    }

    /// Drops the planes that no later slice needs.
    fn forget(&mut self, low: usize, high: usize, backwards: bool) {
        self.planes.retain(|&p, _| if backwards { p <= high } else { p >= low });
    }

    /// Slice k of the target, interpolated: `[j][i][output]`.
    fn slice(&self, target: &Target, k: usize) -> Vec<f32> {
        let [ni, nj, _] = target.size;
        let [b, c] = across(self.along);
        let c_size = self.size[c];
        let mut out = vec![0.0; ni * nj * self.outputs];
        out.par_chunks_mut(ni * self.outputs).enumerate().for_each(|(j, row)| {
            for (i, values) in row.chunks_exact_mut(self.outputs).enumerate() {
                let p = apply(&target.to_prepared, [i as f64, j as f64, k as f64]);
                let [(d, wd), (u, wu), (v, wv)] = [self.along, b, c].map(|a| place(p[a], self.size[a]));
                let ends = |low: usize, w: f32| [(low, 1.0 - w), (low + 1, w)];
                for (d, wd) in ends(d, wd).into_iter().filter(|e| e.1 > 0.0) {
                    let Some(plane) = self.planes.get(&d) else { continue };
                    for (u, wu) in ends(u, wu).into_iter().filter(|e| e.1 > 0.0) {
                        for (v, wv) in ends(v, wv).into_iter().filter(|e| e.1 > 0.0) {
                            let weight = wd * wu * wv;
                            let from = (u * c_size + v) * self.outputs;
                            let scores = &plane[from..from + self.outputs];
                            values.iter_mut().zip(scores).for_each(|(o, s)| *o += weight * s);
                        }
                    }
                }
            }
        });
        out
    }
}

#[cfg(test)]
mod tests;
