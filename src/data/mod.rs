//! From scan files to prepared volumes on one grid: reading, telling scans from label maps,
//! orientation, resampling, intensities, and the store that later stages read.
//!
//! Nothing here touches a graphics adapter. Files from outside are treated as hostile: what a
//! header claims is held against the file's length before anything is allocated.

pub mod frame;
pub mod intensity;
pub mod mapped;
pub mod nifti;
pub mod orient;
pub mod prepare;
pub mod recipe;
pub mod resample;
pub mod scans;
pub mod store;
pub mod volume;
