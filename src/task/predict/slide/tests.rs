use super::*;
use crate::data::volume::{IDENTITY, inverse, multiply};
use crate::rng::Key;

/// Random numbers on a grid.
struct Noise {
    data: Vec<f32>,
    size: [usize; 3],
}

impl Noise {
    fn new(size: [usize; 3]) -> Self {
        let mut rng = Key::new(7).rng();
        Self { data: (0..size.iter().product()).map(|_| rng.unit()).collect(), size }
    }

    fn at(&self, p: [i64; 3]) -> f32 {
        let inside = (0..3).all(|a| (0..self.size[a] as i64).contains(&p[a]));
        let [x, y, z] = p.map(|v| v as usize);
        if inside { self.data[(x * self.size[1] + y) * self.size[2] + z] } else { 0.0 }
    }
}

impl Scan for Noise {
    fn size(&self) -> [usize; 3] {
        self.size
    }

    fn window(&self, start: [i64; 3], size: [usize; 3]) -> Vec<f32> {
        grid(size).map(|p| self.at(std::array::from_fn(|a| start[a] + p[a] as i64))).collect()
    }
}

fn grid([x, y, z]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..x).flat_map(move |i| (0..y).flat_map(move |j| (0..z).map(move |k| [i, j, k])))
}

fn slide(window: [usize; 3], outputs: usize) -> Slide {
    Slide { window, channels: 1, outputs, overlap: 0.5, flips: vec![[false; 3]], batch: 3 }
}

/// The answer in one piece, `[k][j][i][output]`.
fn whole(s: &Slide, scan: &Noise, target: &Target, score: &mut dyn FnMut(Vec<f32>, usize) -> Result<Vec<f32>>) -> Vec<f32> {
    let mut out = Vec::new();
    s.run(scan, target, score, &mut |k, slice| {
        assert_eq!(out.len(), k * slice.len(), "slices come in order");
        out.extend_from_slice(slice);
        Ok(())
    })
    .unwrap();
    out
}

/// A score that depends on the place in the window, so that weights matter: value and value × distance from the first corner.
fn uneven(window: [usize; 3]) -> impl FnMut(Vec<f32>, usize) -> Result<Vec<f32>> {
    move |cubes, n| {
        assert_eq!(cubes.len(), n * window.iter().product::<usize>());
        let places: Vec<f32> = grid(window).map(|[x, y, z]| 1.0 + (x + 2 * y + 3 * z) as f32).collect();
        Ok(cubes.chunks(places.len()).flat_map(|c| c.iter().zip(&places).flat_map(|(v, p)| [*v, v * p])).collect())
    }
}

/// The same with everything in memory and weights summed up, straight from the definition.
fn plain(s: &Slide, scan: &Noise, target: &Target) -> Vec<f32> {
    let n: usize = scan.size.iter().product();
    let (mut sums, mut weights) = (vec![0f64; n * 2], vec![0f64; n]);
    let axes: [Vec<i64>; 3] = std::array::from_fn(|a| starts(scan.size[a], s.window[a], s.overlap));
    for at in grid(std::array::from_fn(|a| axes[a].len())) {
        let start: [i64; 3] = std::array::from_fn(|a| axes[a][at[a]]);
        for p in grid(s.window) {
            let q: [i64; 3] = std::array::from_fn(|a| start[a] + p[a] as i64);
            if (0..3).any(|a| q[a] < 0 || q[a] >= scan.size[a] as i64) {
                continue;
            }
            let w: f64 = (0..3)
                .map(|a| {
                    let (n, x) = (s.window[a] as f64, p[a] as f64);
                    (-0.5 * ((x - (n - 1.0) / 2.0) / (n / 8.0)).powi(2)).exp()
                })
                .product();
            let i = (q[0] as usize * scan.size[1] + q[1] as usize) * scan.size[2] + q[2] as usize;
            let v = f64::from(scan.at(q));
            sums[2 * i] += w * v;
            sums[2 * i + 1] += w * v * (1 + p[0] + 2 * p[1] + 3 * p[2]) as f64;
            weights[i] += w;
        }
    }
    let mut out = Vec::new();
    for k in 0..target.size[2] {
        for j in 0..target.size[1] {
            for i in 0..target.size[0] {
                let p = apply(&target.to_prepared, [i, j, k].map(|v| v as f64));
                let p: [f64; 3] = std::array::from_fn(|a| p[a].clamp(0.0, scan.size[a] as f64 - 1.0));
                for o in 0..2 {
                    let mut sum = 0.0;
                    for corner in 0..8usize {
                        let mut w = 1.0;
                        let c: [usize; 3] = std::array::from_fn(|a| {
                            let (low, up) = (p[a].floor(), corner >> a & 1);
                            w *= if up == 1 { p[a] - low } else { 1.0 - (p[a] - low) };
                            (low as usize + up).min(scan.size[a] - 1)
                        });
                        let at = (c[0] * scan.size[1] + c[1]) * scan.size[2] + c[2];
                        sum += w * sums[2 * at + o] / weights[at];
                    }
                    out.push(sum as f32);
                }
            }
        }
    }
    out
}

fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (n, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{n}: {a} {b}");
    }
}

#[test]
fn starts_cover_the_axis_evenly() {
    assert_eq!(starts(10, 4, 0.5), [0, 2, 4, 6]);
    assert_eq!(starts(11, 4, 0.5), [0, 2, 4, 5, 7]);
    assert_eq!(starts(10, 4, 0.0), [0, 3, 6]);
    assert_eq!(starts(4, 4, 0.5), [0]);
    assert_eq!(starts(3, 8, 0.5), [-2]);
    assert_eq!(starts(9, 8, 0.99), [0, 1]);
    for (size, window) in [(37, 16), (16, 16), (100, 7), (5, 9)] {
        for s in shares(&starts(size, window, 0.5), size, window).into_iter().flatten() {
            assert!((0.0..=1.0).contains(&s));
        }
    }
    assert_eq!(reversals([true, false, true]).len(), 4);
    assert_eq!(reversals([false; 3]), [[false; 3]]);
}

#[test]
fn streaming_gives_what_everything_at_once_gives_on_any_grid() {
    let scan = Noise::new([13, 10, 17]);
    let permuted = [[0.0, 0.0, -1.0, 12.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 16.0], IDENTITY[3]];
    let finer = [[0.0, 0.5, 0.0, -0.25], [0.0, 0.0, 0.4, -0.3], [1.3, 0.0, 0.0, 0.1], IDENTITY[3]];
    let (sin, cos) = 0.3f64.sin_cos();
    let slant = [[cos, -sin, 0.0, 3.0], [sin, cos, 0.0, -1.0], [0.0, 0.2, -1.0, 15.0], IDENTITY[3]];
    for (size, to_prepared) in [([13, 10, 17], IDENTITY), ([10, 17, 13], permuted), ([13, 27, 25], finer), ([12, 11, 18], slant)] {
        let target = Target { size, to_prepared };
        for window in [[8, 4, 8], [16, 16, 16]] {
            let s = slide(window, 2);
            close(&whole(&s, &scan, &target, &mut uneven(window)), &plain(&s, &scan, &target));
        }
    }
    // The permuted grid is one that voxels of the scan map to exactly.
    assert!(multiply(&permuted, &inverse(&permuted).unwrap()) == IDENTITY);
}

#[test]
fn the_size_of_batches_does_not_matter() {
    let (scan, target) = (Noise::new([20, 12, 9]), Target { size: [20, 12, 9], to_prepared: IDENTITY });
    let mut s = slide([8; 3], 2);
    let one = whole(&s, &scan, &target, &mut uneven(s.window));
    for batch in [1, 5, 100] {
        s.batch = batch;
        assert_eq!(whole(&s, &scan, &target, &mut uneven(s.window)), one);
    }
}

#[test]
fn reversed_windows_are_turned_back() {
    // A score that only looks at the voxel gives the same under all reversals; one that looks at the place becomes even.
    let (scan, target) = (Noise::new([11, 9, 10]), Target { size: [11, 9, 10], to_prepared: IDENTITY });
    let mut s = slide([8, 4, 6], 2);
    s.flips = reversals([true; 3]);
    let mut calls = 0;
    let found = whole(&s, &scan, &target, &mut |cubes, n| {
        calls += n;
        uneven([8, 4, 6])(cubes, n)
    });
    assert_eq!(calls, s.count(scan.size));
    // The mean of a place and its mirror image is the middle: 1 + 7/2 + 2 · 3/2 + 3 · 5/2.
    for (pair, p) in found.chunks(2).zip(0..) {
        let value = scan.at([p % 11, p / 11 % 9, p / 99]);
        assert!((pair[0] - value).abs() < 1e-5, "{p}");
        assert!((pair[1] - value * 15.0).abs() < 1e-4, "{p}: {} {}", pair[1], value * 15.0);
    }
}

#[test]
fn only_the_layer_in_work_is_kept() {
    let (scan, target) = (Noise::new([8, 8, 200]), Target { size: [8, 8, 200], to_prepared: IDENTITY });
    let (scored, mut s) = (std::cell::Cell::new(0usize), slide([8; 3], 1));
    s.batch = 1;
    s.run(
        &scan,
        &target,
        &mut |cubes, _| {
            scored.set(scored.get() + 1);
            Ok(cubes)
        },
        &mut |k, _| {
            // Windows begin every 4 voxels: those that begin behind the slice have not been looked at.
            assert!(scored.get() <= k / 4 + 2, "{} windows before slice {k}", scored.get());
            Ok(())
        },
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let stop = s.run(&scan, &target, &mut |_, _| Err(Error::Failed("no".into())), &mut |_, _| Ok(()));
    assert!(stop.is_err());
    assert!(s.run(&scan, &target, &mut |_, _| Ok(vec![0.0]), &mut |_, _| Ok(())).unwrap_err().to_string().contains("scores"));
}
