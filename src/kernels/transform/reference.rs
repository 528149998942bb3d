//! The same transformations on the host, in f64 and in the plainest order, from the same draws.

use super::{Sample, gaussian};
use crate::rng::{threefry2x32, unit_f32};

/// Displacements (dx along y, dy along x) of every voxel.
pub type Displacement = Vec<[f64; 2]>;

/// A window of a crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First voxel.
    pub start: [usize; 3],
    /// Voxels along each axis.
    pub side: [usize; 3],
}

impl Window {
    /// Whether the voxel lies in the window.
    pub fn contains(&self, p: [usize; 3]) -> bool {
        (0..3).all(|a| p[a] >= self.start[a] && p[a] < self.start[a] + self.side[a])
    }

    /// The voxels of the window, z fastest.
    pub fn positions(self) -> impl Iterator<Item = [usize; 3]> {
        let Self { start: s, side: n } = self;
        (s[0]..s[0] + n[0]).flat_map(move |x| (s[1]..s[1] + n[1]).flat_map(move |y| (s[2]..s[2] + n[2]).map(move |z| [x, y, z])))
    }
}

fn positions(size: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    Window { start: [0; 3], side: size }.positions()
}

fn index(size: [usize; 3], p: [usize; 3]) -> usize {
    (p[0] * size[1] + p[1]) * size[2] + p[2]
}

#[expect(clippy::cast_possible_truncation, reason = "counters are 32 bits wide")]
fn word(i: usize) -> u32 {
    i as u32
}

/// The elastic noise of `voxels` voxels: two numbers in `[-1, 1)` each.
pub fn reference_noise(sample: &Sample, voxels: usize) -> Displacement {
    (0..voxels).map(|v| threefry2x32(sample.elastic_key, [word(v), 0]).map(|bits| 2.0 * f64::from(unit_f32(bits)) - 1.0)).collect()
}

/// The displacement: `field` smoothed along all axes (not across the slice of an image), times `alpha`.
pub fn reference_blur(field: &Displacement, size: [usize; 3], alpha: f64) -> Displacement {
    let weights = gaussian();
    let mut field = field.clone();
    for axis in 0..if size[2] == 1 { 2 } else { 3 } {
        field = positions(size)
            .map(|p| {
                let mut sum = [0.0; 2];
                for (i, w) in weights.iter().enumerate() {
                    let Some(q) = (p[axis] + i).checked_sub(32).filter(|&q| q < size[axis]) else { continue };
                    let mut from = p;
                    from[axis] = q;
                    for c in 0..2 {
                        sum[c] += w * field[index(size, from)][c];
                    }
                }
                sum
            })
            .collect();
    }
    field.iter().map(|d| d.map(|d| d * alpha)).collect()
}

/// `input` sampled at (x + dy, y + dx, z), linearly, mirrored with the edge voxel repeated.
pub fn reference_resample(input: &[f32], size: [usize; 3], field: &Displacement) -> Vec<f64> {
    let mirror = |n: i64, length: usize| {
        let length = length as i64;
        let m = n.rem_euclid(2 * length);
        usize::try_from(if m >= length { 2 * length - 1 - m } else { m }).unwrap_or(0)
    };
    positions(size)
        .map(|p| {
            let [dx, dy] = field[index(size, p)];
            let (px, py) = (p[0] as f64 + dy, p[1] as f64 + dx);
            let mut sum = 0.0;
            for (ix, wx) in [(px.floor(), 1.0 - px + px.floor()), (px.floor() + 1.0, px - px.floor())] {
                for (iy, wy) in [(py.floor(), 1.0 - py + py.floor()), (py.floor() + 1.0, py - py.floor())] {
                    #[expect(clippy::cast_possible_truncation, reason = "displacements are far below 2^63")]
                    let from = [mirror(ix as i64, size[0]), mirror(iy as i64, size[1]), p[2]];
                    sum += wx * wy * f64::from(input[index(size, from)]);
                }
            }
            sum
        })
        .collect()
}

/// `input` with the axes of `sample.flip` reversed.
pub fn reference_flip(sample: &Sample, size: [usize; 3], input: &[f32]) -> Vec<f64> {
    positions(size)
        .map(|mut p| {
            for a in 0..3 {
                if sample.flip >> a & 1 == 1 {
                    p[a] = size[a] - 1 - p[a];
                }
            }
            f64::from(input[index(size, p)])
        })
        .collect()
}

/// The windows of a sample's local shuffling, in the order in which they are written.
pub fn reference_shuffle_windows(sample: &Sample, size: [usize; 3]) -> Vec<Window> {
    let below = |bits: u32, span: usize| usize::try_from((u64::from(bits) * span as u64) >> 32).unwrap_or(0);
    (0..sample.windows)
        .map(|w| {
            let words: Vec<u32> = (0..3).flat_map(|use_| threefry2x32(sample.shuffle_key, [w, use_])).collect();
            let side = [0, 1, 2].map(|a| 1 + below(words[a], (size[a] / 10).max(1)));
            Window { start: [0, 1, 2].map(|a| below(words[3 + a], size[a] - side[a] + 1)), side }
        })
        .collect()
}

/// For every voxel, the voxel whose value it takes in the local shuffling.
pub fn reference_shuffle(sample: &Sample, size: [usize; 3]) -> Vec<usize> {
    let mut from: Vec<usize> = (0..size.iter().product()).collect();
    for (w, window) in reference_shuffle_windows(sample, size).into_iter().enumerate() {
        let here: Vec<usize> = window.positions().map(|p| index(size, p)).collect();
        let key = |i: usize| threefry2x32(sample.shuffle_key, [word(w), 16 + word(i / 2)])[i % 2];
        let mut order: Vec<usize> = (0..here.len()).collect();
        order.sort_by_key(|&i| (key(i), i));
        for (rank, &i) in order.iter().enumerate() {
            from[here[i]] = here[rank];
        }
    }
    from
}

/// The non-linear map and its slope at `v`, for `curve_kind` 1 (rising) or 2 (inverted).
pub fn reference_non_linear(sample: &Sample, v: f64) -> (f64, f64) {
    let [ax, ay, bx, by] = sample.curve.map(f64::from);
    let inverted = sample.curve_kind == 2;
    let bezier = |u: f64, a: f64, b: f64| 3.0 * u * (1.0 - u) * (1.0 - u) * a + 3.0 * u * u * (1.0 - u) * b + u * u * u;
    let slope = |u: f64, a: f64, b: f64| 3.0 * ((1.0 - u) * (1.0 - u) * a + 2.0 * u * (1.0 - u) * (b - a) + u * u * (1.0 - b));
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..80 {
        let mid = 0.5 * (low + high);
        if bezier(mid, ax, bx) < v { low = mid } else { high = mid }
    }
    let u = match v {
        v if v <= 0.0 => 0.0,
        v if v >= 1.0 => 1.0,
        _ => 0.5 * (low + high),
    };
    let (t, sign) = if inverted { (1.0 - u, -1.0) } else { (u, 1.0) };
    (bezier(t, ay, by), sign * slope(t, ay, by) / slope(u, ax, bx))
}

/// Local shuffling, non-linear map and painting of one crop.
pub fn reference_point(sample: &Sample, size: [usize; 3], input: &[f32]) -> Vec<f64> {
    let from = reference_shuffle(sample, size);
    let used = sample.box_count as usize;
    let boxes: Vec<Window> =
        sample.boxes[..used].iter().map(|b| Window { start: b.start.map(|v| v as usize), side: b.side.map(|v| v as usize) }).collect();
    positions(size)
        .enumerate()
        .map(|(v, p)| {
            let mut value = f64::from(input[from[v]]);
            if sample.curve_kind > 0 {
                value = reference_non_linear(sample, value).0;
            }
            let last = boxes.iter().rposition(|b| b.contains(p));
            let fill = match (sample.paint_kind, last) {
                (1, Some(k)) => sample.boxes[k].fill,
                (2, None) => sample.boxes[0].fill,
                _ => return value,
            };
            if sample.paint_noise == 1 { f64::from(unit_f32(threefry2x32(sample.paint_key, [word(v), 0])[0])) } else { f64::from(fill) }
        })
        .collect()
}
