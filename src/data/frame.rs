//! Where a prepared grid lies in a scan, and the way back.

use serde::{Deserialize, Serialize};

use super::orient::{Axes, lps_cosines};
use super::resample::{Rule, sample, sample_window, smooth};
use super::volume::{Affine, IDENTITY, Volume, apply, inverse, multiply, spacing, translation, voxels};

/// Off-axis direction cosine up to which a scan counts as aligned with the patient's axes: over
/// 512 voxels this is a shift of half a voxel. A scan more oblique than that is resampled
/// through its true affine.
const OBLIQUE: f64 = 1e-3;
/// A spacing that differs by less than this many voxels over the whole axis counts as equal, so that rounding
/// in a header does not blur a scan.
const SAME: f64 = 0.05;
/// Relative difference of affine entries (in voxels) that a label map may have from its scan.
const SAME_PLACE: f64 = 0.1;

/// A grid with axes left, posterior, superior laid into a scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// The scan's size along its stored axes.
    pub source_size: [usize; 3],
    /// The scan's affine: stored index to millimetres right, anterior, superior.
    pub source_affine: Affine,
    /// Which stored axis runs along left, posterior, superior.
    pub axes: Axes,
    /// The scan's axes are not the patient's; it was resampled through its true affine.
    pub oblique: bool,
    /// Size of the whole scan at the prepared spacing.
    pub whole: [usize; 3],
    /// Size of the prepared grid.
    pub grid: [usize; 3],
    /// Index on the prepared grid of the whole scan's first voxel; negative where the scan is cropped.
    pub offset: [i64; 3],
    /// Prepared index to the index of the scan after its axes were turned to left, posterior, superior.
    pub to_turned: Affine,
    /// Prepared index to stored index.
    pub to_source: Affine,
    /// Prepared index to millimetres right, anterior, superior.
    pub affine: Affine,
    /// Standard deviation in source voxels along left, posterior, superior of the Gaussian that
    /// goes before shrinking by f: (f - 1) / 2.
    pub sigma: [f64; 3],
}

impl Frame {
    /// The frame that holds a whole scan at `spacing` mm (along left, posterior, superior).
    pub fn whole(size: [usize; 3], affine: &Affine, target: [f64; 3]) -> Option<Self> {
        let axes = Axes::closest(affine);
        let turn = axes.to_stored(size);
        let turned = axes.turned_size(size);
        let world = multiply(affine, &turn);
        let s = spacing(&world);
        let cosines = lps_cosines(&world);
        let aligned = (0..3).all(|r| (0..3).all(|c| r == c || cosines[r][c].abs() <= OBLIQUE));
        let oblique = !aligned;
        let (whole, to_turned) = if oblique { slanted(turned, &world, target)? } else { straight(turned, s, target) };
        let to_source = multiply(&turn, &to_turned);
        let sigma = std::array::from_fn(|a| {
            let f = if oblique { target[a] / s[a] } else { to_turned[a][a] };
            ((f - 1.0) / 2.0).max(0.0)
        });
        let out = Self {
            source_size: size,
            source_affine: *affine,
            axes,
            oblique,
            whole,
            grid: whole,
            offset: [0; 3],
            to_turned,
            affine: multiply(affine, &to_source),
            to_source,
            sigma,
        };
        out.affine.iter().flatten().all(|v| v.is_finite()).then_some(out)
    }

    /// This frame with a grid of `grid` voxels, on which `centre` (a point of the whole scan's grid; default its
    /// middle) lies in the middle, to the nearest voxel.
    #[must_use]
    pub fn on_grid(mut self, grid: [usize; 3], centre: Option<[f64; 3]>) -> Self {
        self.offset = std::array::from_fn(|a| match centre {
            None => (grid[a] as i64 - self.whole[a] as i64).div_euclid(2),
            Some(c) => (grid[a] as f64 / 2.0 - 0.5 - c[a]).round() as i64,
        });
        self.to_turned = multiply(&self.to_turned, &translation(self.offset.map(|o| -(o as f64))));
        self.to_source = multiply(&self.axes.to_stored(self.source_size), &self.to_turned);
        self.affine = multiply(&self.source_affine, &self.to_source);
        self.grid = grid;
        self
    }

    /// Voxels added in front of and behind the scan along each axis.
    pub fn padded(&self) -> [[usize; 2]; 3] {
        self.ends(|v| v)
    }

    /// Voxels of the scan cut off at the front and at the back of each axis.
    pub fn cropped(&self) -> [[usize; 2]; 3] {
        self.ends(|v| -v)
    }

    fn ends(&self, sign: impl Fn(i64) -> i64) -> [[usize; 2]; 3] {
        std::array::from_fn(|a| {
            let behind = self.grid[a] as i64 - self.whole[a] as i64 - self.offset[a];
            [self.offset[a], behind].map(|v| sign(v).max(0) as usize)
        })
    }

    /// Intensities stored as in the source on this frame's grid, `[x][y][z]`: turned, smoothed if shrunk, trilinear; 0 outside.
    pub fn image(&self, stored: Vec<f32>) -> Vec<f32> {
        self.window(&self.turned(stored), [0; 3], self.grid)
    }

    /// Intensities stored as in the source, ready for [`Frame::window`]: turned, and smoothed if the grid is coarser.
    pub fn turned(&self, stored: Vec<f32>) -> Vec<f32> {
        smooth(self.axes.turn(stored, self.source_size), self.axes.turned_size(self.source_size), self.sigma)
    }

    /// The window of [`Frame::image`] that begins at `start` and lies within the grid, from what [`Frame::turned`] made.
    pub fn window(&self, turned: &[f32], start: [usize; 3], size: [usize; 3]) -> Vec<f32> {
        sample_window(turned, self.axes.turned_size(self.source_size), start, size, &self.to_turned, Rule::Linear)
    }

    /// A label map that belongs to the source on this frame's grid, nearest neighbour; 0 outside.
    ///
    /// # Errors
    /// A sentence if the map's size or place is not the scan's.
    pub fn labels(&self, map: &Volume) -> Result<Vec<f32>, String> {
        same_place((map.size, &map.affine), (self.source_size, &self.source_affine))?;
        let turned = self.axes.turned_size(self.source_size);
        let data = self.axes.turn(map.data.clone(), self.source_size);
        Ok(sample(&data, turned, self.grid, &self.to_turned, Rule::Nearest))
    }

    /// Data on this frame's grid (`[x][y][z]`) in the source's own geometry; 0 where the grid does not reach.
    ///
    /// Use [`Rule::Nearest`] for labels, [`Rule::Linear`] for probabilities.
    ///
    /// # Panics
    /// If `data` does not fill the grid.
    pub fn back(&self, data: &[f32], rule: Rule) -> Volume {
        assert_eq!(Some(data.len()), voxels(self.grid), "data of {} values on a grid of {:?}", data.len(), self.grid);
        let turned = self.axes.turned_size(self.source_size);
        // A frame is made from affines that have an inverse.
        let map = inverse(&self.to_turned).unwrap_or(IDENTITY);
        let out = sample(data, self.grid, turned, &map, rule);
        Volume { data: self.axes.turn_back(out, self.source_size), size: self.source_size, affine: self.source_affine }
    }
}

/// Whether a map of some size and affine has the grid of its scan, and lies where it lies.
///
/// # Errors
/// A sentence about the map if not.
pub fn same_place(map: ([usize; 3], &Affine), scan: ([usize; 3], &Affine)) -> Result<(), String> {
    if map.0 != scan.0 {
        return Err(format!("has {:?} voxels, but its scan has {:?}; resample it to the scan", map.0, scan.0));
    }
    let last = map.0.map(|n| n as f64 - 1.0);
    let smallest = spacing(scan.1).into_iter().fold(f64::INFINITY, f64::min);
    for corner in [[0.0; 3], last, [last[0], 0.0, 0.0], [0.0, last[1], 0.0]] {
        let (a, b) = (apply(map.1, corner), apply(scan.1, corner));
        let same = (0..3).all(|r| (a[r] - b[r]).abs() <= SAME_PLACE * smallest);
        if !same {
            return Err(format!("voxel {corner:?} lies at {a:.2?} mm, but in its scan at {b:.2?} mm; resample it to the scan"));
        }
    }
    Ok(())
}

/// Grid and map for axes that are the patient's: the middles coincide.
fn straight(size: [usize; 3], s: [f64; 3], target: [f64; 3]) -> ([usize; 3], Affine) {
    let mut whole = [0; 3];
    let mut map = IDENTITY;
    for a in 0..3 {
        let n = size[a] as f64;
        let ratio = if (target[a] / s[a] - 1.0).abs() * n < SAME { 1.0 } else { target[a] / s[a] };
        whole[a] = (n / ratio).round().max(1.0) as usize;
        map[a][a] = ratio;
        map[a][3] = (0.5 - whole[a] as f64 / 2.0) * ratio + n / 2.0 - 0.5;
    }
    (whole, map)
}

/// Grid and map for oblique axes: the box along the patient's axes that holds the scan.
fn slanted(size: [usize; 3], world: &Affine, target: [f64; 3]) -> Option<([usize; 3], Affine)> {
    let lps = |p: [f64; 3]| [-p[0], -p[1], p[2]];
    let (mut lo, mut hi) = ([f64::INFINITY; 3], [f64::NEG_INFINITY; 3]);
    for corner in 0..8 {
        let p = std::array::from_fn(|a| if corner >> a & 1 == 0 { -0.5 } else { size[a] as f64 - 0.5 });
        for (a, v) in lps(apply(world, p)).into_iter().enumerate() {
            (lo[a], hi[a]) = (lo[a].min(v), hi[a].max(v));
        }
    }
    let whole: [usize; 3] = std::array::from_fn(|a| ((hi[a] - lo[a]) / target[a]).round().max(1.0) as usize);
    let mut place = IDENTITY;
    for a in 0..3 {
        let sign = if a < 2 { -1.0 } else { 1.0 };
        place[a][a] = sign * target[a];
        place[a][3] = sign * ((lo[a] + hi[a]) / 2.0 - (whole[a] as f64 - 1.0) / 2.0 * target[a]);
    }
    Some((whole, multiply(&inverse(world)?, &place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAS: Affine = [[2.0, 0.0, 0.0, -10.0], [0.0, 2.0, 0.0, 20.0], [0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]];

    #[test]
    fn the_affine_chain_closes() {
        let (s, c) = 15f64.to_radians().sin_cos();
        let slant = [[2.0 * c, -2.0 * s, 0.0, 1.0], [2.0 * s, 2.0 * c, 0.0, 2.0], [0.0, 0.0, 3.0, 3.0], IDENTITY[3]];
        for affine in [RAS, slant] {
            let f = Frame::whole([20, 30, 10], &affine, [1.5, 2.5, 3.0]).unwrap().on_grid([32, 16, 16], None);
            assert_eq!(f.oblique, affine == slant);
            // +x is left, +y posterior, +z superior, at the target spacing.
            for (r, want) in [[-1.5, 0.0, 0.0], [0.0, -2.5, 0.0], [0.0, 0.0, 3.0]].into_iter().enumerate() {
                assert!(f.affine[r].iter().zip(want).all(|(got, want): (&f64, f64)| (got - want).abs() < 1e-9), "{:?}", f.affine);
            }
            // The middles coincide to half a prepared voxel.
            let a = apply(&f.affine, f.grid.map(|n| n as f64 / 2.0 - 0.5));
            let b = apply(&affine, [9.5, 14.5, 4.5]);
            assert!((0..3).all(|r| (a[r] - b[r]).abs() <= 1.5), "{a:?} {b:?}");
        }
    }

    #[test]
    fn equal_spacing_is_an_exact_copy_whatever_the_rounding_of_the_header() {
        let data: Vec<f32> = (0..5 * 6 * 7u16).map(|v| f32::from(v) / 256.0).collect();
        let mut affine = RAS;
        affine[0][0] = -2.000_01;
        affine[1][1] = -2.0;
        let f = Frame::whole([5, 6, 7], &affine, [2.0, 2.0, 3.0]).unwrap();
        assert_eq!(f.image(data.clone()), data);
        let f = f.on_grid([5, 8, 5], None);
        assert_eq!((f.padded(), f.cropped()), ([[0, 0], [1, 1], [0, 0]], [[0, 0], [0, 0], [1, 1]]));
        let out = f.image(data.clone());
        assert_eq!(out[(8 + 2) * 5 + 3], data[(6 + 1) * 7 + 4]);
    }

    #[test]
    fn labels_go_there_and_back() {
        let mut data = vec![0.0; 12 * 14 * 10];
        for i in 3..9 {
            for j in 4..10 {
                for k in 2..8 {
                    data[(i * 14 + j) * 10 + k] = 7.0;
                }
            }
        }
        let map = Volume::new(data, [12, 14, 10], RAS).unwrap();
        let f = Frame::whole(map.size, &RAS, [1.0, 1.0, 1.5]).unwrap();
        let on_grid = f.labels(&map).unwrap();
        assert_eq!(on_grid.iter().filter(|&&v| v == 7.0).count(), 6 * 6 * 6 * 8);
        assert_eq!(f.back(&on_grid, Rule::Nearest), map);
        let mut elsewhere = map.clone();
        elsewhere.affine[0][3] += 1.0;
        assert!(f.labels(&elsewhere).unwrap_err().contains("resample it"));
        let smaller = Volume::new(vec![0.0; 8], [2, 2, 2], RAS).unwrap();
        assert!(f.labels(&smaller).unwrap_err().contains("[2, 2, 2]"));
    }
}
