//! Turning a stored axis order into left, posterior, superior.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::volume::{Affine, IDENTITY, spacing};

/// For each of the axes left, posterior, superior: which stored axis runs along it, and whether backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axes {
    /// Stored axis (0 = i, 1 = j, 2 = k) of each turned axis; a permutation.
    pub stored: [usize; 3],
    /// The stored axis runs the other way.
    pub flip: [bool; 3],
}

/// All orders of three axes.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl Axes {
    /// The axes closest to left, posterior, superior: the order with the largest sum of |cosine|.
    pub fn closest(affine: &Affine) -> Self {
        let cosine = lps_cosines(affine);
        let fit = |o: &[usize; 3]| (0..3).map(|a| cosine[a][o[a]].abs()).sum::<f64>();
        // A tie keeps the earlier order.
        let stored = ORDERS.into_iter().reduce(|best, o| if fit(&o) > fit(&best) + 1e-9 { o } else { best }).unwrap_or([0, 1, 2]);
        Self { stored, flip: std::array::from_fn(|a| cosine[a][stored[a]] < 0.0) }
    }

    /// Size of the turned grid.
    pub fn turned_size(&self, size: [usize; 3]) -> [usize; 3] {
        self.stored.map(|s| size[s])
    }

    /// Maps a turned index to the stored one, for a stored grid of `size`.
    pub fn to_stored(&self, size: [usize; 3]) -> Affine {
        let mut out = [[0.0; 4]; 4];
        for a in 0..3 {
            let s = self.stored[a];
            out[s][a] = if self.flip[a] { -1.0 } else { 1.0 };
            out[s][3] = if self.flip[a] { size[s] as f64 - 1.0 } else { 0.0 };
        }
        out[3] = IDENTITY[3];
        out
    }

    /// Stored data `[i][j][k]` of `size` as turned data `[x][y][z]`.
    pub fn turn(&self, data: Vec<f32>, size: [usize; 3]) -> Vec<f32> {
        if *self == (Self { stored: [0, 1, 2], flip: [false; 3] }) {
            return data;
        }
        let strides = [size[1] * size[2], size[2], 1];
        let [_, ny, nz] = self.turned_size(size);
        let at = |axis: usize, p: usize| {
            let s = self.stored[axis];
            strides[s] * if self.flip[axis] { size[s] - 1 - p } else { p }
        };
        let mut out = vec![0.0; data.len()];
        out.par_chunks_mut(ny * nz).enumerate().for_each(|(x, plane)| {
            for (y, row) in plane.chunks_mut(nz).enumerate() {
                let base = at(0, x) + at(1, y);
                for (z, v) in row.iter_mut().enumerate() {
                    *v = data[base + at(2, z)];
                }
            }
        });
        out
    }

    /// Turned data back in the stored order of a grid of `size`.
    pub fn turn_back(&self, data: Vec<f32>, size: [usize; 3]) -> Vec<f32> {
        let mut stored = [0; 3];
        let mut flip = [false; 3];
        for a in 0..3 {
            stored[self.stored[a]] = a;
            flip[self.stored[a]] = self.flip[a];
        }
        Self { stored, flip }.turn(data, self.turned_size(size))
    }
}

/// Cosines `[left, posterior, superior][stored axis]` of the affine's columns.
pub(super) fn lps_cosines(a: &Affine) -> [[f64; 3]; 3] {
    let s = spacing(a);
    let sign = [-1.0, -1.0, 1.0];
    std::array::from_fn(|r| std::array::from_fn(|c| sign[r] * a[r][c] / s[c]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::volume::{apply, multiply};

    #[test]
    fn turning_back_undoes_turning_and_indices_agree() {
        let size = [3, 4, 5];
        let data: Vec<f32> = (0..60u8).map(f32::from).collect();
        for stored in ORDERS {
            for bits in 0..8 {
                let axes = Axes { stored, flip: [bits & 1 > 0, bits & 2 > 0, bits & 4 > 0] };
                let turned = axes.turn(data.clone(), size);
                let [nx, ny, nz] = axes.turned_size(size);
                let m = axes.to_stored(size);
                for (x, y, z) in [(0, 0, 0), (nx - 1, 1, 2), (1, ny - 1, nz - 1)] {
                    let [i, j, k] = apply(&m, [x as f64, y as f64, z as f64]).map(|v| v as usize);
                    assert_eq!(turned[(x * ny + y) * nz + z], data[(i * 4 + j) * 5 + k]);
                }
                assert_eq!(axes.turn_back(turned, size), data);
            }
        }
    }

    #[test]
    fn the_closest_axes_of_a_rotated_scan_are_found() {
        // RAS turned by 20 degrees about z.
        let (s, c) = 20f64.to_radians().sin_cos();
        let a = [[c, -s, 0.0, 3.0], [s, c, 0.0, 4.0], [0.0, 0.0, 2.0, 5.0], IDENTITY[3]];
        let axes = Axes::closest(&a);
        assert_eq!(axes, Axes { stored: [0, 1, 2], flip: [true, true, false] });
        let turned = multiply(&a, &axes.to_stored([10, 10, 10]));
        assert!(lps_cosines(&turned)[0][0] > 0.9);
        // Coronal storage: i left, j inferior, k anterior.
        let coronal = [[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0], IDENTITY[3]];
        assert_eq!(Axes::closest(&coronal), Axes { stored: [0, 2, 1], flip: [false, true, true] });
    }
}
