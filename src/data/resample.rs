//! Sampling one grid at the points of another.
//!
//! Data are `[x][y][z]`, z fastest. Every output value is a sum in a fixed order, so results do
//! not depend on the number of threads.

use rayon::prelude::*;

use super::volume::{Affine, apply};

/// How values between grid points are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Trilinear, for intensities.
    Linear,
    /// The nearest voxel, for labels.
    Nearest,
}

/// `data` of size `from` sampled on a grid of size `to`: output index `p` takes the value at index `map · p`.
///
/// Points up to half a voxel outside take the value at the border; points further outside are 0.
pub fn sample(data: &[f32], from: [usize; 3], to: [usize; 3], map: &Affine, rule: Rule) -> Vec<f32> {
    sample_window(data, from, [0; 3], to, map, rule)
}

/// The window of [`sample`]'s result that begins at `start`, bit for bit, of any size.
pub fn sample_window(data: &[f32], from: [usize; 3], start: [usize; 3], to: [usize; 3], map: &Affine, rule: Rule) -> Vec<f32> {
    let mut out = vec![0.0; to.iter().product()];
    let straight = (0..3).all(|r| (0..3).all(|c| r == c || map[r][c] == 0.0));
    let [_, ny, nz] = to;
    let at = |a: usize, p: usize| (start[a] + p) as f64;
    let axis =
        |a: usize| -> Vec<Option<Between>> { (0..to[a]).map(|p| Between::new(map[a][a] * at(a, p) + map[a][3], from[a], rule)).collect() };
    let tables = straight.then(|| [axis(0), axis(1), axis(2)]);
    out.par_chunks_mut((ny * nz).max(1)).enumerate().for_each(|(x, plane)| {
        for (y, row) in plane.chunks_mut(nz).enumerate() {
            for (z, v) in row.iter_mut().enumerate() {
                let place = match &tables {
                    Some([tx, ty, tz]) => [tx[x], ty[y], tz[z]],
                    None => {
                        let p = apply(map, [at(0, x), at(1, y), at(2, z)]);
                        std::array::from_fn(|a| Between::new(p[a], from[a], rule))
                    }
                };
                if let [Some(px), Some(py), Some(pz)] = place {
                    *v = interpolate(data, from, px, py, pz);
                }
            }
        }
    });
    out
}

/// A place along one axis: `low + weight` of the way to `high`.
#[derive(Clone, Copy)]
struct Between {
    low: usize,
    high: usize,
    weight: f32,
}

impl Between {
    fn new(at: f64, n: usize, rule: Rule) -> Option<Self> {
        let last = n as f64 - 1.0;
        // The tolerance keeps border voxels whose place carries rounding error.
        if !(-0.5 - 1e-6..=last + 0.5 + 1e-6).contains(&at) {
            return None;
        }
        let at = at.clamp(0.0, last);
        Some(match rule {
            Rule::Linear => {
                let low = at.floor();
                Self { low: low as usize, high: (low as usize + 1).min(n - 1), weight: (at - low) as f32 }
            }
            Rule::Nearest => {
                let low = ((at + 0.5).floor() as usize).min(n - 1);
                Self { low, high: low, weight: 0.0 }
            }
        })
    }
}

fn interpolate(data: &[f32], [_, ny, nz]: [usize; 3], x: Between, y: Between, z: Between) -> f32 {
    let along_z = |x: usize, y: usize| {
        let row = (x * ny + y) * nz;
        let (a, b) = (data[row + z.low], data[row + z.high]);
        a + (b - a) * z.weight
    };
    let along_y = |x: usize| {
        let a = along_z(x, y.low);
        if y.weight == 0.0 { a } else { a + (along_z(x, y.high) - a) * y.weight }
    };
    let a = along_y(x.low);
    if x.weight == 0.0 { a } else { a + (along_y(x.high) - a) * x.weight }
}

/// Gaussian smoothing with `sigma[a]` voxels along axis `a` (0: none), radius `int(4σ + 0.5)`,
/// mirrored at the border without repeating the edge.
pub fn smooth(mut data: Vec<f32>, size: [usize; 3], sigma: [f64; 3]) -> Vec<f32> {
    let [nx, ny, nz] = size;
    let plane = ny * nz;
    if let Some(taps) = taps(sigma[2]) {
        data.par_chunks_mut(nz).for_each_init(Vec::new, |line, row| {
            line.clear();
            line.extend_from_slice(row);
            for (z, v) in row.iter_mut().enumerate() {
                *v = weigh(&taps, z, nz, |n| line[n]);
            }
        });
    }
    if let Some(taps) = taps(sigma[1]) {
        data.par_chunks_mut(plane).for_each_init(Vec::new, |old, slab| {
            old.clear();
            old.extend_from_slice(slab);
            for (y, row) in slab.chunks_mut(nz).enumerate() {
                add_lines(&taps, y, ny, row, |n| &old[n * nz..][..nz]);
            }
        });
    }
    if let Some(taps) = taps(sigma[0]) {
        let mut out = vec![0.0; data.len()];
        out.par_chunks_mut(plane).enumerate().for_each(|(x, slab)| add_lines(&taps, x, nx, slab, |n| &data[n * plane..][..plane]));
        data = out;
    }
    data
}

/// Weights of the centre and of distances 1, 2, …, which with both sides sum to 1.
fn taps(sigma: f64) -> Option<Vec<f32>> {
    let radius = (4.0 * sigma + 0.5) as usize;
    if radius == 0 {
        return None;
    }
    let raw: Vec<f64> = (0..=radius).map(|d| (-0.5 * (d as f64 / sigma).powi(2)).exp()).collect();
    let sum = 2.0 * raw.iter().sum::<f64>() - raw[0];
    Some(raw.iter().map(|w| (w / sum) as f32).collect())
}

fn weigh(taps: &[f32], at: usize, n: usize, value: impl Fn(usize) -> f32) -> f32 {
    let mut sum = taps[0] * value(at);
    for (d, w) in taps.iter().enumerate().skip(1) {
        sum += w * (value(mirror(at as isize - d as isize, n)) + value(mirror(at as isize + d as isize, n)));
    }
    sum
}

/// [`weigh`] for whole lines at once.
fn add_lines<'a>(taps: &[f32], at: usize, n: usize, out: &mut [f32], line: impl Fn(usize) -> &'a [f32]) {
    out.iter_mut().zip(line(at)).for_each(|(o, v)| *o = taps[0] * v);
    for (d, w) in taps.iter().enumerate().skip(1) {
        let (a, b) = (line(mirror(at as isize - d as isize, n)), line(mirror(at as isize + d as isize, n)));
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o += w * (a + b));
    }
}

/// Index `at` reflected into `0..n`; the edge is not repeated.
fn mirror(at: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n - 1);
    let m = at.unsigned_abs() % period;
    if m < n { m } else { period - m }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::volume::{IDENTITY, translation};
    use crate::rng::Key;

    fn noise(n: usize) -> Vec<f32> {
        let mut rng = Key::new(3).rng();
        (0..n).map(|_| rng.unit()).collect()
    }

    #[test]
    fn the_identity_copies_and_a_shift_pads_with_zero() {
        let data = noise(4 * 5 * 6);
        for rule in [Rule::Linear, Rule::Nearest] {
            assert_eq!(sample(&data, [4, 5, 6], [4, 5, 6], &IDENTITY, rule), data);
            let shifted = sample(&data, [4, 5, 6], [4, 5, 8], &translation([0.0, 0.0, -1.0]), rule);
            assert_eq!(shifted[0], 0.0);
            assert_eq!(shifted[1..7], data[..6]);
            assert_eq!(shifted[7..9], [0.0, 0.0]);
        }
    }

    #[test]
    fn a_linear_image_is_resampled_exactly_by_any_affine() {
        let size = [7, 8, 9];
        let f = |p: [f64; 3]| (0.01 * p[0] + 0.02 * p[1] - 0.03 * p[2] + 0.5) as f32;
        let mut data = Vec::new();
        for x in 0..7u8 {
            for y in 0..8u8 {
                for z in 0..9u8 {
                    data.push(f([x, y, z].map(f64::from)));
                }
            }
        }
        let straight = [[0.6, 0.0, 0.0, 0.7], [0.0, 1.3, 0.0, 0.2], [0.0, 0.0, 0.9, 1.1], IDENTITY[3]];
        let turned = [[0.6, 0.1, 0.0, 0.7], [-0.1, 1.0, 0.1, 0.4], [0.05, 0.0, 0.9, 1.1], IDENTITY[3]];
        for map in [straight, turned] {
            let out = sample(&data, size, [6, 5, 7], &map, Rule::Linear);
            for (n, v) in out.iter().enumerate() {
                let p = apply(&map, [(n / 35) as f64, (n / 7 % 5) as f64, (n % 7) as f64]);
                if (0..3).all(|a| (0.0..=size[a] as f64 - 1.0).contains(&p[a])) {
                    assert!((v - f(p)).abs() < 1e-6, "{v} {p:?}");
                }
            }
        }
    }

    #[test]
    fn a_window_of_a_resampled_image_has_its_bits() {
        let (size, to) = ([7, 8, 9], [10, 11, 12]);
        let data = noise(504);
        let straight = [[0.61, 0.0, 0.0, 0.7], [0.0, 0.73, 0.0, 0.2], [0.0, 0.0, 0.7, 0.1], IDENTITY[3]];
        let turned = [[0.61, 0.1, 0.0, 0.7], [-0.1, 0.8, 0.1, 0.4], [0.05, 0.0, 0.7, 0.1], IDENTITY[3]];
        for map in [straight, turned] {
            let whole = sample(&data, size, to, &map, Rule::Linear);
            let part = sample_window(&data, size, [3, 5, 4], [6, 2, 7], &map, Rule::Linear);
            for (n, v) in part.iter().enumerate() {
                let (x, y, z) = (3 + n / 14, 5 + n / 7 % 2, 4 + n % 7);
                assert_eq!(*v, whole[(x * 11 + y) * 12 + z]);
            }
        }
    }

    #[test]
    fn smoothing_keeps_constants_matches_a_plain_sum_and_commutes_with_axes() {
        let size = [6, 7, 8];
        let flat = smooth(vec![0.7; 336], size, [1.5, 0.8, 0.4]);
        assert!(flat.iter().all(|v| (v - 0.7).abs() < 1e-6));
        let data = noise(336);
        for axis in 0..3 {
            let mut sigma = [0.0; 3];
            sigma[axis] = 1.1;
            let out = smooth(data.clone(), size, sigma);
            let stride = [56, 8, 1][axis];
            // 1.1 · 4 + 0.5 = 4.9: radius 4.
            let w: Vec<f64> = (-4i32..=4).map(|d| (-0.5 * (f64::from(d) / 1.1).powi(2)).exp()).collect();
            let sum: f64 = w.iter().sum();
            for n in 0..336 {
                let p = n / stride % size[axis];
                let mut want = 0.0;
                for (i, w) in w.iter().enumerate() {
                    let last = size[axis] as i32 - 1;
                    let mut q = (p as i32 + i as i32 - 4).abs();
                    if q > last {
                        q = 2 * last - q;
                    }
                    want += w / sum * f64::from(data[n - p * stride + q as usize * stride]);
                }
                assert!((f64::from(out[n]) - want).abs() < 1e-6, "axis {axis}, voxel {n}");
            }
        }
    }
}
