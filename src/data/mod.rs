//! From scan files to prepared volumes on one grid, and the cubes cut from them: reading, telling
//! scans from label maps, orientation, resampling, intensities, and the store that later stages read.
//!
//! Nothing here touches a graphics adapter. Files from outside are treated as hostile: what a
//! header claims is held against the file's length before anything is allocated.

pub mod arrays;
pub mod cubes;
pub mod frame;
pub mod image;
pub mod intensity;
pub mod mapped;
pub mod metaimage;
pub mod nifti;
pub mod orient;
pub mod phantom;
pub mod prepare;
pub mod recipe;
pub mod resample;
pub mod resize;
pub mod scans;
pub mod store;
pub mod volume;
pub mod voxels;
