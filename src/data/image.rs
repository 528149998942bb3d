//! Scans of every format that is read: NIfTI (`.nii`, `.nii.gz`) and MetaImage (`.mhd`, `.mha`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::metaimage;
pub use super::nifti::Header;
use super::nifti::{self, Opened};
use super::volume::Volume;
use crate::error::Result;

/// Endings of scan files, longest first.
pub const ENDINGS: [&str; 4] = [".nii.gz", ".nii", ".mhd", ".mha"];

/// The ending of a scan file's name in small letters, if it has one of [`ENDINGS`].
pub fn ending(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    ENDINGS.into_iter().find(|e| name.ends_with(e) && name.len() > e.len())
}

/// The file's name without its ending.
pub fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let cut = ending(path).map_or(0, str::len);
    // The endings are ASCII, so this is a character boundary.
    name[..name.len() - cut].to_owned()
}

fn open(path: &Path) -> Result<Opened> {
    match ending(path) {
        Some(".mhd" | ".mha") => metaimage::open(path),
        // Anything else is NIfTI, whatever it is called; its content decides.
        _ => nifti::open(path),
    }
}

/// Reads and checks a header; voxels are not touched.
///
/// # Errors
/// An [`crate::error::Error::Input`] if the file is missing, is no scan, contradicts itself or is too short for what it claims.
pub fn read_header(path: &Path) -> Result<Header> {
    open(path).map(|o| o.header)
}

/// Reads a whole volume with its scaling applied; values that are not finite are kept.
///
/// # Errors
/// As [`read_header`], and for damaged or truncated voxels.
pub fn read(path: &Path) -> Result<Volume> {
    nifti::read_opened(path, open(path)?)
}

/// Hands the scaled voxels to `each` in file order (i fastest), in pieces, until it breaks.
///
/// # Errors
/// As [`read`]; damage behind the point where `each` broke is not noticed.
pub fn stream(path: &Path, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<Header> {
    nifti::stream_opened(path, open(path)?, each)
}

/// The files that a scan consists of: itself, and the data of a header that has them apart.
///
/// # Errors
/// As [`read_header`].
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut out = vec![path.to_path_buf()];
    if ending(path) == Some(".mhd") {
        out.extend(metaimage::data_file(path)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_lose_only_known_endings() {
        assert_eq!(stem(Path::new("a/b.c.nii.gz")), "b.c");
        assert_eq!(stem(Path::new("b.NII")), "b");
        assert_eq!(stem(Path::new("b.mhd")), "b");
        assert_eq!(stem(Path::new(".nii")), ".nii");
        assert_eq!(stem(Path::new("scan.bin")), "scan.bin");
    }
}
