//! `MetaImage` files: `.mhd` headers with their voxels beside them (`.raw`, compressed `.zraw`), and `.mha` files with both.
//!
//! Read as ITK reads them: `TransformMatrix` holds the direction of index axis 0, then 1, then 2; world coordinates
//! are left, posterior, superior and become right, anterior, superior here, exactly; `MET_LONG` has 4 bytes;
//! `CenterOfRotation` and `AnatomicalOrientation` play no role. Stricter than ITK: a header without voxel size, with
//! lengths that are not millimetres, or with a function from elements to intensities is an error.
//!
//! The data file has to lie in the header's folder or below: a header cannot point anywhere else.

mod header;
mod read;

pub use read::{files, read, read_header, read_volume, stream};
