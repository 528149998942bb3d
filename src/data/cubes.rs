//! Cubes: windows of a prepared volume, brought to the size that the network takes.

use crate::data::resize::resize;
use crate::error::{Error, Result};

/// Read access to a volume `[x][y][z]` with values in `[0, 1]`.
pub trait Voxels {
    /// Voxels along x, y, z.
    fn size(&self) -> [usize; 3];

    /// The window `start .. start + size`, z fastest.
    ///
    /// # Panics
    /// If the window leaves the volume.
    fn window(&self, start: [usize; 3], size: [usize; 3]) -> Vec<f32>;

    /// One voxel.
    ///
    /// # Panics
    /// If it lies outside the volume.
    fn value(&self, x: usize, y: usize, z: usize) -> f32;
}

impl<V: Voxels + ?Sized> Voxels for &V {
    fn size(&self) -> [usize; 3] {
        (**self).size()
    }

    fn window(&self, start: [usize; 3], size: [usize; 3]) -> Vec<f32> {
        (**self).window(start, size)
    }

    fn value(&self, x: usize, y: usize, z: usize) -> f32 {
        (**self).value(x, y, z)
    }
}

/// A volume in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    size: [usize; 3],
    data: Vec<f32>,
}

impl Dense {
    /// A volume of `size` over `data`, z fastest.
    ///
    /// # Errors
    /// If `data` does not hold `size` voxels.
    pub fn new(size: [usize; 3], data: Vec<f32>) -> Result<Self> {
        if size.iter().try_fold(1usize, |n, &s| n.checked_mul(s)) != Some(data.len()) {
            return Err(Error::shape("volume", format!("{} values cannot fill size {size:?}", data.len())));
        }
        Ok(Self { size, data })
    }

    /// A volume of `size` with the value `f(x, y, z)` in every voxel.
    pub fn from_fn(size: [usize; 3], f: impl Fn(usize, usize, usize) -> f32) -> Self {
        let mut data = Vec::with_capacity(size.iter().product());
        for x in 0..size[0] {
            for y in 0..size[1] {
                data.extend((0..size[2]).map(|z| f(x, y, z)));
            }
        }
        Self { size, data }
    }
}

impl Voxels for Dense {
    fn size(&self) -> [usize; 3] {
        self.size
    }

    fn window(&self, start: [usize; 3], size: [usize; 3]) -> Vec<f32> {
        assert!((0..3).all(|a| start[a] + size[a] <= self.size[a]), "window {start:?} + {size:?} outside {:?}", self.size);
        let mut out = Vec::with_capacity(size.iter().product());
        for x in start[0]..start[0] + size[0] {
            for y in start[1]..start[1] + size[1] {
                out.extend_from_slice(&self.data[(x * self.size[1] + y) * self.size[2] + start[2]..][..size[2]]);
            }
        }
        out
    }

    fn value(&self, x: usize, y: usize, z: usize) -> f32 {
        assert!(x < self.size[0] && y < self.size[1] && z < self.size[2], "voxel ({x}, {y}, {z}) outside {:?}", self.size);
        self.data[(x * self.size[1] + y) * self.size[2] + z]
    }
}

/// Where a cube comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropEntry {
    /// Position of the scan in the prepared store.
    pub source: u32,
    /// First voxel of the window.
    pub start: [usize; 3],
    /// Voxels of the window.
    pub size: [usize; 3],
    /// Voxels of the cube that the window is resized to.
    pub out: [usize; 3],
}

impl CropEntry {
    /// Checks that the window is not empty and lies inside a volume of `size`.
    ///
    /// # Errors
    /// Names the scan's position, the window and the volume.
    pub fn check(&self, size: [usize; 3]) -> Result<()> {
        let inside = (0..3)
            .all(|a| self.size[a] > 0 && self.out[a] > 0 && self.start[a].checked_add(self.size[a]).is_some_and(|end| end <= size[a]));
        if inside {
            return Ok(());
        }
        let what = format!(
            "window of size {:?} at {:?} for a cube of {:?} does not lie inside scan {} of size {size:?}; the crops were listed for another prepared set",
            self.size, self.start, self.out, self.source
        );
        Err(Error::shape("cut", what))
    }
}

/// The cube of `entry`, `out[0] * out[1] * out[2]` values with z fastest; `volume` is the scan that
/// the entry names as its source.
///
/// # Errors
/// If the window leaves the volume.
pub fn cut(volume: &impl Voxels, entry: &CropEntry) -> Result<Vec<f32>> {
    entry.check(volume.size())?;
    let window = volume.window(entry.start, entry.size);
    Ok(if entry.size == entry.out { window } else { resize(&window, entry.size, entry.out) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(size: [usize; 3]) -> Dense {
        Dense::from_fn(size, |x, y, z| (x * 10_000 + y * 100 + z) as f32)
    }

    #[test]
    fn a_window_of_the_cubes_size_is_copied() {
        let v = ramp([9, 8, 7]);
        let entry = CropEntry { source: 0, start: [2, 3, 1], size: [4, 5, 6], out: [4, 5, 6] };
        let cube = cut(&v, &entry).unwrap();
        for (i, got) in cube.iter().enumerate() {
            let (x, y, z) = (i / 30, i / 6 % 5, i % 6);
            assert_eq!(*got, v.value(2 + x, 3 + y, 1 + z));
        }
    }

    #[test]
    fn another_window_is_resized_in_plane_only() {
        let v = ramp([20, 20, 5]);
        let entry = CropEntry { source: 0, start: [1, 2, 0], size: [10, 10, 5], out: [8, 8, 5] };
        let cube = cut(&v, &entry).unwrap();
        assert_eq!(cube, resize(&v.window([1, 2, 0], [10, 10, 5]), [10, 10, 5], [8, 8, 5]));
        // Linear data: the slices still differ by exactly the step along z.
        assert!(cube.chunks(5).all(|row| row.windows(2).all(|w| (w[1] - w[0] - 1.0).abs() < 0.01)));
    }

    #[test]
    fn the_last_voxel_can_be_cut_and_the_one_after_cannot() {
        let v = ramp([6, 6, 6]);
        let mut entry = CropEntry { source: 3, start: [2, 2, 2], size: [4, 4, 4], out: [4, 4, 4] };
        assert_eq!(cut(&v, &entry).unwrap().last(), Some(&v.value(5, 5, 5)));
        for a in 0..3 {
            entry.start[a] += 1;
            let e = cut(&v, &entry).unwrap_err().to_string();
            assert!(e.contains("scan 3") && e.contains("[6, 6, 6]"), "{e}");
            entry.start[a] -= 1;
        }
        entry.start[0] = usize::MAX;
        assert!(cut(&v, &entry).is_err());
        entry.start[0] = 0;
        entry.size[1] = 0;
        assert!(cut(&v, &entry).is_err());
    }

    #[test]
    fn a_dense_volume_needs_all_its_values() {
        assert!(Dense::new([2, 2, 2], vec![0.0; 7]).is_err());
        assert!(Dense::new([usize::MAX, 2, 2], vec![0.0; 8]).is_err());
        assert!(Dense::new([2, 2, 2], vec![0.0; 8]).is_ok());
    }
}
