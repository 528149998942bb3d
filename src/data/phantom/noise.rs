//! Image noise and blur, applied slab by slab (one slab is all voxels of one x).

use rayon::prelude::*;

use crate::rng::Key;

/// Mean and standard deviation of the sum of four bytes.
const BYTES: (f32, f32) = (510.0, 147.801_9);

/// `size` standard normal numbers (to the accuracy of a sum of four uniforms), one per voxel,
/// a pure function of the key and the voxel.
fn white(key: Key, size: [usize; 3]) -> Vec<f32> {
    let slab = size[1] * size[2];
    let mut out = vec![0.0; size[0] * slab];
    out.par_chunks_mut(slab.max(1)).enumerate().for_each(|(x, slab)| {
        #[expect(clippy::cast_possible_truncation, reason = "a grid has fewer than 2^32 slabs")]
        let key = key.fold(1, x as u32);
        for (i, pair) in slab.chunks_mut(2).enumerate() {
            #[expect(clippy::cast_possible_truncation, reason = "a slab has fewer than 2^33 voxels")]
            let words = key.draw(i as u32);
            for (v, w) in pair.iter_mut().zip(words) {
                let sum: u32 = w.to_le_bytes().iter().map(|b| u32::from(*b)).sum();
                *v = (sum as f32 - BYTES.0) / BYTES.1;
            }
        }
    });
    out
}

/// Convolves with `[side, 1 - 2 side, side]` along each axis; edges repeat.
pub(super) fn smooth(data: &mut Vec<f32>, size: [usize; 3], side: [f32; 3]) {
    let [_, ny, nz] = size;
    let slab = ny * nz;
    if data.is_empty() {
        return;
    }
    data.par_chunks_mut(slab).for_each(|s| {
        if side[2] > 0.0 {
            for row in s.chunks_mut(nz) {
                let mut before = row[0];
                for z in 0..nz {
                    let (here, after) = (row[z], row[(z + 1).min(nz - 1)]);
                    row[z] = here + side[2] * (before + after - 2.0 * here);
                    before = here;
                }
            }
        }
        if side[1] > 0.0 {
            let mut before = s[..nz].to_vec();
            for y in 0..ny {
                let next = (y + 1).min(ny - 1) * nz;
                for z in 0..nz {
                    let (here, after) = (s[y * nz + z], s[next + z]);
                    s[y * nz + z] = here + side[1] * (before[z] + after - 2.0 * here);
                    before[z] = here;
                }
            }
        }
    });
    if side[0] > 0.0 {
        let nx = size[0];
        let from = std::mem::take(data);
        let mut to = vec![0.0; from.len()];
        to.par_chunks_mut(slab).enumerate().for_each(|(x, out)| {
            let at = |x: usize| &from[x * slab..(x + 1) * slab];
            let (before, here, after) = (at(x.saturating_sub(1)), at(x), at((x + 1).min(nx - 1)));
            for (((o, b), h), a) in out.iter_mut().zip(before).zip(here).zip(after) {
                *o = h + side[0] * (b + a - 2.0 * h);
            }
        });
        *data = to;
    }
}

/// The gain that [`smooth`] with `side` takes from white noise.
fn gain(side: [f32; 3]) -> f32 {
    side.iter().map(|s| ((1.0 - 2.0 * s).powi(2) + 2.0 * s * s).sqrt()).product()
}

/// Noise of unit standard deviation, correlated between neighbours as a reconstruction kernel does.
pub(super) fn correlated(key: Key, size: [usize; 3]) -> Vec<f32> {
    let side = [0.22, 0.22, 0.10];
    let mut noise = white(key, size);
    smooth(&mut noise, size, side);
    let k = 1.0 / gain(side);
    noise.par_iter_mut().for_each(|v| *v *= k);
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_unit_spread_and_neighbours_go_together() {
        let size = [40, 41, 42];
        let n = correlated(Key::new(3), size);
        let at = |x: usize, y: usize, z: usize| n[(x * size[1] + y) * size[2] + z];
        // Repeated edges make the border noisier; measure within it.
        let (mut mean, mut square, mut pair, mut count) = (0.0, 0.0, 0.0, 0.0);
        for x in 2..size[0] - 2 {
            for y in 2..size[1] - 2 {
                for z in 2..size[2] - 2 {
                    let v = at(x, y, z);
                    mean += v;
                    square += v * v;
                    pair += v * at(x + 1, y, z);
                    count += 1.0;
                }
            }
        }
        let (mean, square, pair) = (mean / count, square / count, pair / count);
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.03, "mean {mean}, variance {square}");
        assert!((0.3..0.8).contains(&pair), "correlation {pair}");
    }

    #[test]
    fn smoothing_keeps_a_constant_and_spreads_a_point() {
        let size = [3, 4, 5];
        let mut flat = vec![7.0; 60];
        smooth(&mut flat, size, [0.2; 3]);
        assert!(flat.iter().all(|v| (v - 7.0).abs() < 1e-5));
        let mut point = vec![0.0; 60];
        point[(4 + 1) * 5 + 2] = 1.0;
        smooth(&mut point, size, [0.25, 0.0, 0.1]);
        assert!((point[(4 + 1) * 5 + 2] - 0.5 * 0.8).abs() < 1e-6);
        assert!((point[(8 + 1) * 5 + 3] - 0.25 * 0.1).abs() < 1e-6);
        assert_eq!(point[(4 + 2) * 5 + 2], 0.0);
    }
}
