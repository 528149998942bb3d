//! How far the surfaces of two masks lie from each other, in millimetres.
//!
//! A voxel of a mask is on its surface if one of its six neighbours is outside the mask or outside the grid: what a binary erosion with
//! the 6-neighbourhood takes away, the convention of scipy and MONAI. Distances are Euclidean between centres of voxels, from each surface
//! voxel of one mask to the nearest of the other. Percentiles interpolate linearly; HD95 is the larger of the two directed ones.
//!
//! Where one mask is empty, distances are infinite: there is no number for them, and the normalised surface Dice is 0. Where both are
//! empty, there are no distances, and it is 1.

use super::distance::Planes;

/// Rounding that is granted to a tolerance: files keep voxel sizes in 32 bits.
const GRANTED: f64 = 1e-6;

/// Distances in millimetres between two surfaces, in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Distances {
    /// From each surface voxel of the prediction to the truth's surface, ascending.
    predicted: Vec<f64>,
    /// From each surface voxel of the truth to the prediction's surface, ascending.
    truth: Vec<f64>,
}

/// Two masks' surfaces.
#[derive(Clone, Debug, PartialEq)]
pub enum Surfaces {
    /// Neither mask has a voxel.
    BothEmpty,
    /// One of the masks has none.
    OneEmpty,
    /// Both have surfaces.
    Apart(Distances),
}

impl Surfaces {
    /// Of two masks on one grid `[i][j][k]` with voxels of `spacing` millimetres.
    ///
    /// Memory: 10 bytes a voxel of the box that holds both masks.
    ///
    /// # Panics
    /// If the masks do not fill the grid.
    pub fn of(predicted: &[bool], truth: &[bool], size: [usize; 3], spacing: [f64; 3]) -> Self {
        let voxels: usize = size.iter().product();
        assert_eq!((predicted.len(), truth.len()), (voxels, voxels), "masks of one grid");
        let any = |m: &[bool]| m.contains(&true);
        match (any(predicted), any(truth)) {
            (false, false) => return Self::BothEmpty,
            (true, true) => {}
            _ => return Self::OneEmpty,
        }
        let (low, high) = bounds(predicted, truth, size);
        let inner: [usize; 3] = std::array::from_fn(|a| high[a] - low[a] + 1);
        // Voxels outside the box are in neither mask, so that surfaces inside it are those of the whole grid.
        let p = surface(&crop(predicted, size, low, inner), inner);
        let t = surface(&crop(truth, size, low, inner), inner);
        let from = |sites: &[bool], wanted: &[bool]| {
            let mut found = Planes::new(sites, inner, spacing).at(wanted);
            found.sort_by(f64::total_cmp);
            found
        };
        Self::Apart(Distances { predicted: from(&t, &p), truth: from(&p, &t) })
    }

    /// The normalised surface Dice at a tolerance of `mm`.
    pub fn dice(&self, mm: f64) -> f64 {
        match self {
            Self::BothEmpty => 1.0,
            Self::OneEmpty => 0.0,
            Self::Apart(d) => d.surface_dice(mm),
        }
    }

    /// The distances, where both masks have surfaces.
    pub fn distances(&self) -> Option<&Distances> {
        match self {
            Self::Apart(d) => Some(d),
            _ => None,
        }
    }
}

impl Distances {
    /// The Hausdorff distance: the largest of all.
    pub fn hausdorff(&self) -> f64 {
        self.directed(1.0)
    }

    /// The larger of the two directed 95th percentiles.
    pub fn hd95(&self) -> f64 {
        self.directed(0.95)
    }

    fn directed(&self, q: f64) -> f64 {
        quantile(&self.predicted, q).max(quantile(&self.truth, q))
    }

    /// The average symmetric surface distance: the mean over the voxels of both surfaces.
    pub fn assd(&self) -> f64 {
        let sum: f64 = self.predicted.iter().chain(&self.truth).sum();
        sum / (self.predicted.len() + self.truth.len()) as f64
    }

    /// Share of the voxels of both surfaces that lie within `mm` of the other surface.
    pub fn surface_dice(&self, mm: f64) -> f64 {
        let within = |d: &[f64]| d.partition_point(|&d| d <= mm * (1.0 + GRANTED));
        (within(&self.predicted) + within(&self.truth)) as f64 / (self.predicted.len() + self.truth.len()) as f64
    }
}

/// The `q` quantile of ascending numbers, linear between neighbours as NumPy has it by default.
///
/// # Panics
/// Without numbers.
pub fn quantile(ascending: &[f64], q: f64) -> f64 {
    let at = q * (ascending.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(ascending.len() - 1);
    ascending[below] + (ascending[above] - ascending[below]) * (at - below as f64)
}

/// First and last indices of the box that holds both masks, one of which is not empty.
fn bounds(a: &[bool], b: &[bool], [_, nj, nk]: [usize; 3]) -> ([usize; 3], [usize; 3]) {
    let (mut low, mut high) = ([usize::MAX; 3], [0; 3]);
    for (r, (a, b)) in a.chunks_exact(nk).zip(b.chunks_exact(nk)).enumerate() {
        let inside = |k: &usize| a[*k] || b[*k];
        let Some(first) = (0..nk).find(inside) else { continue };
        let last = (0..nk).rfind(inside).unwrap_or(first);
        for (axis, (lowest, highest)) in [(r / nj, r / nj), (r % nj, r % nj), (first, last)].into_iter().enumerate() {
            low[axis] = low[axis].min(lowest);
            high[axis] = high[axis].max(highest);
        }
    }
    (low, high)
}

fn crop(mask: &[bool], [_, nj, nk]: [usize; 3], low: [usize; 3], inner: [usize; 3]) -> Vec<bool> {
    let mut out = Vec::with_capacity(inner.iter().product());
    for i in low[0]..low[0] + inner[0] {
        for j in low[1]..low[1] + inner[1] {
            let at = (i * nj + j) * nk + low[2];
            out.extend_from_slice(&mask[at..at + inner[2]]);
        }
    }
    out
}

/// Voxels of the mask with a neighbour that is not of it.
fn surface(mask: &[bool], [ni, nj, nk]: [usize; 3]) -> Vec<bool> {
    let inside = |i: usize, j: usize, k: usize| {
        let at = (i * nj + j) * nk + k;
        let within =
            (1..ni.saturating_sub(1)).contains(&i) && (1..nj.saturating_sub(1)).contains(&j) && (1..nk.saturating_sub(1)).contains(&k);
        within && mask[at - 1] && mask[at + 1] && mask[at - nk] && mask[at + nk] && mask[at - nj * nk] && mask[at + nj * nk]
    };
    let mut out = mask.to_vec();
    for (at, o) in out.iter_mut().enumerate().filter(|(_, o)| **o) {
        *o = !inside(at / (nj * nk), at / nk % nj, at % nk);
    }
    out
}
