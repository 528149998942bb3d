//! A scan in memory, and the little linear algebra that its geometry needs.

use crate::error::{Error, Result};

/// A 4×4 matrix `[row][column]` that maps homogeneous points; the last row is `0 0 0 1`.
pub type Affine = [[f64; 4]; 4];

/// The affine that changes nothing.
pub const IDENTITY: Affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];

/// A three-dimensional image in any stored axis order.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Intensities, indexed `[i][j][k]` in the file's axis order with k fastest.
    pub data: Vec<f32>,
    /// Voxels along i, j, k.
    pub size: [usize; 3],
    /// Maps `(i, j, k, 1)` to millimetres, +x right, +y anterior, +z superior, as in NIfTI.
    pub affine: Affine,
}

impl Volume {
    /// A volume of `data` indexed `[i][j][k]`.
    ///
    /// # Errors
    /// An [`Error::Shape`] if `data` does not hold `size[0] * size[1] * size[2]` values.
    pub fn new(data: Vec<f32>, size: [usize; 3], affine: Affine) -> Result<Self> {
        if voxels(size) != Some(data.len()) || data.is_empty() {
            return Err(Error::shape("volume", format!("{} values do not fill a grid of {size:?}", data.len())));
        }
        Ok(Self { data, size, affine })
    }

    /// The value at `(i, j, k)`.
    ///
    /// # Panics
    /// If the index is outside the grid.
    pub fn at(&self, i: usize, j: usize, k: usize) -> f32 {
        let [ni, nj, nk] = self.size;
        assert!(i < ni && j < nj && k < nk, "({i}, {j}, {k}) is outside {:?}", self.size);
        self.data[(i * nj + j) * nk + k]
    }

    /// Voxel size in millimetres along i, j, k.
    pub fn spacing(&self) -> [f64; 3] {
        spacing(&self.affine)
    }
}

/// Number of voxels of a grid, if it can be counted.
pub fn voxels(size: [usize; 3]) -> Option<usize> {
    size[0].checked_mul(size[1])?.checked_mul(size[2])
}

/// Lengths of the affine's first three columns: the voxel size along each index axis.
pub fn spacing(a: &Affine) -> [f64; 3] {
    std::array::from_fn(|c| (a[0][c] * a[0][c] + a[1][c] * a[1][c] + a[2][c] * a[2][c]).sqrt())
}

/// `a · b`: first `b`, then `a`.
pub fn multiply(a: &Affine, b: &Affine) -> Affine {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..4).map(|k| a[r][k] * b[k][c]).sum()))
}

/// The image of point `p`.
pub fn apply(a: &Affine, p: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|r| a[r][0] * p[0] + a[r][1] * p[1] + a[r][2] * p[2] + a[r][3])
}

/// The inverse, or `None` if the matrix is singular or not finite.
pub fn inverse(a: &Affine) -> Option<Affine> {
    let cofactor = |r: usize, c: usize| {
        let (r1, r2, c1, c2) = ((r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3);
        a[r1][c1] * a[r2][c2] - a[r1][c2] * a[r2][c1]
    };
    let det = (0..3).map(|c| a[0][c] * cofactor(0, c)).sum::<f64>();
    let volume: f64 = spacing(a).iter().product();
    // Relative to the volume that orthogonal axes of these lengths would span.
    if !(det.is_finite() && volume > 0.0 && det.abs() > 1e-6 * volume) {
        return None;
    }
    let mut out = IDENTITY;
    for (r, row) in out[..3].iter_mut().enumerate() {
        let inner: [f64; 3] = std::array::from_fn(|c| cofactor(c, r) / det);
        row[..3].copy_from_slice(&inner);
        row[3] = -(0..3).map(|k| inner[k] * a[k][3]).sum::<f64>();
    }
    out.iter().flatten().all(|v| v.is_finite()).then_some(out)
}

/// The affine that adds `t`.
pub fn translation(t: [f64; 3]) -> Affine {
    let mut out = IDENTITY;
    for r in 0..3 {
        out[r][3] = t[r];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_undoes_and_singular_matrices_have_none() {
        let a = [[0.0, -2.0, 0.1, 5.0], [1.5, 0.2, 0.0, -7.0], [0.1, 0.0, 3.0, 11.0], [0.0, 0.0, 0.0, 1.0]];
        let product = multiply(&inverse(&a).unwrap(), &a);
        for r in 0..4 {
            for c in 0..4 {
                assert!((product[r][c] - IDENTITY[r][c]).abs() < 1e-12, "{product:?}");
            }
        }
        let mut flat = a;
        flat[2] = [0.0; 4];
        assert!(inverse(&flat).is_none());
        flat[2][2] = f64::NAN;
        assert!(inverse(&flat).is_none());
    }

    #[test]
    fn data_has_to_fill_the_grid() {
        assert!(Volume::new(vec![0.0; 7], [2, 2, 2], IDENTITY).is_err());
        assert!(Volume::new(Vec::new(), [0, 2, 2], IDENTITY).is_err());
        let v = Volume::new((0..8u8).map(f32::from).collect(), [2, 2, 2], IDENTITY).unwrap();
        assert_eq!(v.at(1, 0, 1), 5.0);
    }
}
