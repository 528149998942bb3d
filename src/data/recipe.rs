//! Everything that decides how one scan is prepared, resolved; kept with a store and with models, so that a new scan is treated alike.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::image;
use super::intensity;
use super::volume::{Volume, inverse, voxels};
use crate::config::{Align, Modality, Mri};
use crate::error::{Error, Result};

/// Largest factor by which an axis is shrunk.
const MAX_SHRINK: f64 = 64.0;
/// Most voxels of a prepared volume.
pub(super) const MAX_VOXELS: usize = 1 << 31;
/// A CT scan without any voxel below this is probably not in Hounsfield units.
const AIR_HU: f32 = -500.0;

/// How one scan becomes numbers in `[0, 1]` on a grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Kind of scan.
    pub modality: Modality,
    /// Intensities that become 0 and 1 for [`Modality::Window`].
    pub window: [f32; 2],
    /// Intensity rule for [`Modality::Mri`].
    pub mri: Mri,
    /// What is centred on the grid.
    pub align: Align,
    /// Voxel size in mm along left, posterior, superior.
    pub spacing: [f64; 3],
    /// Size of the grid; `None`: whatever holds the whole scan.
    pub grid: Option<[usize; 3]>,
}

/// A prepared scan in memory.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Values in `[0, 1]`, `[x][y][z]` on `frame.grid`.
    pub data: Vec<f32>,
    /// Where the grid lies in the scan.
    pub frame: Frame,
    /// Intensities that became 0 and 1.
    pub range: [f32; 2],
    /// Voxels that were not finite and became 0.
    pub replaced: usize,
    /// What a user should know about this scan.
    pub notes: Vec<String>,
}

/// A scan with its values in `[0, 1]`, from which windows of the prepared grid are sampled.
#[derive(Clone, Debug)]
pub struct Source {
    /// Values in the scan's own resolution, axes left, posterior, superior; smoothed if the prepared grid is coarser.
    pub turned: Vec<f32>,
    /// Where the prepared grid lies in the scan.
    pub frame: Frame,
    /// Intensities that became 0 and 1.
    pub range: [f32; 2],
    /// Voxels that were not finite and became 0.
    pub replaced: usize,
    /// What a user should know about this scan.
    pub notes: Vec<String>,
}

impl Recipe {
    /// Reads and prepares a scan file.
    ///
    /// # Errors
    /// As [`image::read`] and [`Recipe::apply`].
    pub fn read(&self, path: &Path) -> Result<Ready> {
        self.apply(image::read(path)?).map_err(|what| Error::input(path, what))
    }

    /// The frame of the whole scan, with its sizes checked.
    ///
    /// # Errors
    /// A sentence if the voxel size cannot be the scan's true one.
    pub fn whole_frame(&self, size: [usize; 3], affine: &super::volume::Affine) -> Result<Frame, String> {
        let s = super::volume::spacing(affine);
        let frame = Frame::whole(size, affine, self.spacing).ok_or("has an affine that cannot be inverted; repair its header")?;
        let shrink = frame.sigma.iter().fold(0.0f64, |m, v| m.max(2.0 * v + 1.0));
        if shrink > MAX_SHRINK {
            return Err(format!(
                "has voxels of {s:.3?} mm, which the common {:.3?} mm would shrink {shrink:.0} times; check its header or prepare.spacing",
                self.spacing
            ));
        }
        let grid = self.grid.unwrap_or(frame.whole);
        if voxels(grid).is_none_or(|n| n > MAX_VOXELS) {
            return Err(format!(
                "has voxels of {s:.3?} mm and would need a grid of {grid:?} at {:.3?} mm; check its header, prepare.spacing and prepare.grid",
                self.spacing
            ));
        }
        Ok(frame)
    }

    /// Prepares a scan: intensities first, then axes, spacing and grid.
    ///
    /// Intensities are clamped to `[0, 1]` before they are interpolated, so that metal or values outside the field of
    /// view do not spread.
    ///
    /// # Errors
    /// A sentence about a scan without contrast, with too many values that are not finite, or with an impossible voxel size.
    pub fn apply(&self, volume: Volume) -> Result<Ready, String> {
        let Source { turned, frame, range, replaced, notes } = self.source(volume)?;
        let data = frame.window(&turned, [0; 3], frame.grid);
        Ok(Ready { data, frame, range, replaced, notes })
    }

    /// As [`Recipe::apply`], but nothing is sampled yet: windows of the prepared grid are taken from it one by one, so that a
    /// scan that becomes larger does not have to fit in memory.
    ///
    /// # Errors
    /// As [`Recipe::apply`].
    pub fn source(&self, volume: Volume) -> Result<Source, String> {
        let Volume { mut data, size, affine } = volume;
        if voxels(size) != Some(data.len()) {
            return Err(format!("{} values do not fill a grid of {size:?}", data.len()));
        }
        let whole = self.whole_frame(size, &affine)?;
        let range = intensity::range(&data, self.modality, self.window, self.mri)?;
        let mut notes = Vec::new();
        if self.modality == Modality::Ct && !data.iter().any(|&v| v < AIR_HU) {
            notes.push(format!("no voxel is below {AIR_HU} HU; is it CT in Hounsfield units? (prepare.modality)"));
        }
        let replaced = intensity::apply(&mut data, range);
        if replaced > 0 {
            notes.push(format!("{replaced} voxels that were not finite numbers were set to the padding value"));
        }
        let grid = self.grid.unwrap_or(whole.whole);
        let centre = match self.align {
            Align::Grid => None,
            Align::Body => self.body(&data, &whole),
        };
        let frame = whole.on_grid(grid, centre);
        let turned = frame.turned(data);
        Ok(Source { turned, frame, range, replaced, notes })
    }

    /// The centroid of the body as a point of the whole scan's grid: for CT voxels above -300 HU, else the upper half of the range.
    fn body(&self, stored: &[f32], whole: &Frame) -> Option<[f64; 3]> {
        let threshold = if self.modality == Modality::Ct { 0.35 } else { 0.5 };
        let [_, nj, nk] = whole.source_size;
        let (mut count, mut sum) = (0u64, [0u64; 3]);
        for (row, values) in stored.chunks(nk).enumerate() {
            let mut in_row = 0;
            for (k, _) in values.iter().enumerate().filter(|&(_, &v)| v > threshold) {
                in_row += 1;
                sum[2] += k as u64;
            }
            count += in_row;
            sum[0] += in_row * (row / nj) as u64;
            sum[1] += in_row * (row % nj) as u64;
        }
        if count == 0 {
            return None;
        }
        // Whole numbers until the division: the result is the same bits for any stored axis order.
        let turned = std::array::from_fn(|a| {
            let s = whole.axes.stored[a];
            let total = if whole.axes.flip[a] { count * (whole.source_size[s] as u64 - 1) - sum[s] } else { sum[s] };
            total as f64 / count as f64
        });
        Some(super::volume::apply(&inverse(&whole.to_turned)?, turned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::volume::IDENTITY;

    fn recipe() -> Recipe {
        Recipe { modality: Modality::Ct, window: [0.0, 1.0], mri: Mri::MinMax, align: Align::Grid, spacing: [1.0; 3], grid: Some([16; 3]) }
    }

    fn cube_at(corner: [usize; 3]) -> Volume {
        let mut data = vec![-1000.0; 12 * 12 * 12];
        for i in 0..4 {
            for j in 0..4 {
                for k in 0..4 {
                    data[((corner[0] + i) * 12 + corner[1] + j) * 12 + corner[2] + k] = 0.0;
                }
            }
        }
        Volume::new(data, [12; 3], IDENTITY).unwrap()
    }

    #[test]
    fn body_alignment_brings_the_body_to_the_middle() {
        let r = Recipe { align: Align::Body, ..recipe() };
        let a = r.apply(cube_at([1, 2, 7])).unwrap();
        let b = r.apply(cube_at([6, 0, 3])).unwrap();
        assert_eq!(a.data, b.data);
        assert_eq!(a.data[(7 * 16 + 7) * 16 + 7], 0.5);
        assert_ne!(recipe().apply(cube_at([1, 2, 7])).unwrap().data, a.data);
        // The chain still points at the source: prepared (7, 7, 7) is inside the cube.
        let p = crate::data::volume::apply(&a.frame.to_source, [7.0; 3]);
        assert!((0..3).all(|d| p[d] >= [1.0, 2.0, 7.0][d] && p[d] < [5.0, 6.0, 11.0][d]), "{p:?}");
    }

    #[test]
    fn ct_without_air_is_remarked_and_absurd_spacing_refused() {
        let mut v = cube_at([1, 1, 1]);
        assert!(recipe().apply(v.clone()).unwrap().notes.is_empty());
        v.data.iter_mut().for_each(|x| *x += 1024.0);
        assert!(recipe().apply(v.clone()).unwrap().notes[0].contains("Hounsfield"));
        v.affine[0][0] = 1e-9;
        assert!(recipe().apply(v.clone()).unwrap_err().contains("mm"));
        v.affine[0][0] = 1e9;
        assert!(Recipe { grid: None, ..recipe() }.apply(v).unwrap_err().contains("grid"));
    }
}
