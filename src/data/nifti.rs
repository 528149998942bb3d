//! NIfTI-1 and NIfTI-2 files, `.nii` and `.nii.gz`.
//!
//! Compression is decided by content, not by name. All integer and floating types and both byte
//! orders are read; scaling is applied. A file holds one three-dimensional volume, or several along a
//! fourth axis, which are read one by one; single slices, colour and complex images are errors that say so.

mod geometry;
mod header;
mod read;
mod write;

pub use geometry::{Content, Geometry};
pub use read::{geometry, read, read_header, read_series_header, read_volume, stream};
pub use write::{Stored, write, write_f32, write_i16, write_u8};
