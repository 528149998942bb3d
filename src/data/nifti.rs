//! NIfTI-1 and NIfTI-2 files, `.nii` and `.nii.gz`.
//!
//! Compression is decided by content, not by name. All integer and floating types and both byte
//! orders are read; scaling is applied. A file holds one three-dimensional volume; series, single
//! slices, colour and complex images are errors that say so.

mod header;
mod read;
mod write;

pub use header::{Form, Header, Kind};
pub(in crate::data) use read::{MAX_RATIO, Opened, open, read_opened, stream_opened};
pub use write::{Stored, write, write_f32, write_i16, write_u8};
