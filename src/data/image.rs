//! Scan files of any format that can be read, told apart by name: `.mhd` and `.mha` are `MetaImage`, everything else has to be NIfTI.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::volume::Volume;
use super::{metaimage, nifti};
use crate::error::Result;

pub use super::voxels::{Form, Format, Header, Kind};

/// Endings of scan files, in lower case. A longer one comes before those it ends in.
pub const ENDINGS: [&str; 4] = [".nii.gz", ".nii", ".mhd", ".mha"];

/// The ending of a scan file's name in small letters, if it has one of [`ENDINGS`]; the data files of `.mhd` headers have none.
pub fn ending(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    ENDINGS.into_iter().find(|e| name.ends_with(e) && name.len() > e.len())
}

/// The file's name without the ending of a scan file.
pub fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let cut = ending(path).map_or(0, str::len);
    // The endings are ASCII, so this is a character boundary.
    name[..name.len() - cut].to_owned()
}

fn is_metaimage(path: &Path) -> bool {
    matches!(ending(path), Some(".mhd" | ".mha"))
}

/// Reads and checks a header: size, geometry, type; voxels are not touched.
///
/// # Errors
/// An [`crate::error::Error::Input`] if the file is missing, of another format, contradicts itself, is too short for what it
/// claims, or holds several volumes.
pub fn read_header(path: &Path) -> Result<Header> {
    if is_metaimage(path) { metaimage::read_header(path) } else { nifti::read_header(path) }
}

/// As [`read_header`], also for a file with several volumes on one grid (a series, or one volume a channel).
///
/// # Errors
/// As [`read_header`].
pub fn read_series_header(path: &Path) -> Result<Header> {
    if is_metaimage(path) { metaimage::read_header(path) } else { nifti::read_series_header(path) }
}

/// Reads a whole scan with its scaling applied; values that are not finite are kept.
///
/// # Errors
/// As [`read_header`], and for damaged or truncated voxels.
pub fn read(path: &Path) -> Result<Volume> {
    if is_metaimage(path) { metaimage::read(path) } else { nifti::read(path) }
}

/// Reads volume `index` (from 0) of a file with several.
///
/// # Errors
/// As [`read`], and if there is no such volume.
pub fn read_volume(path: &Path, index: usize) -> Result<Volume> {
    if is_metaimage(path) { metaimage::read_volume(path, index) } else { nifti::read_volume(path, index) }
}

/// Hands the scaled voxels of a scan to `each` in file order (i fastest), in pieces, until it breaks.
///
/// # Errors
/// As [`read`]; damage behind the point where `each` broke is not noticed.
pub fn stream(path: &Path, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<Header> {
    if is_metaimage(path) { metaimage::stream(path, each) } else { nifti::stream(path, each) }
}

/// The geometry of a scan file, for writing another that lies exactly where it lies: that of NIfTI files field by field, that of
/// others from the affine.
///
/// # Errors
/// As [`read_series_header`].
pub fn geometry(path: &Path) -> Result<nifti::Geometry> {
    if is_metaimage(path) {
        let affine = metaimage::read_header(path)?.affine;
        return nifti::Geometry::of(&affine).map_err(|what| crate::error::Error::input(path, what));
    }
    nifti::geometry(path)
}

/// All files that a scan consists of, the named one first.
///
/// # Errors
/// If a header that could name others cannot be read.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if is_metaimage(path) { metaimage::files(path) } else { Ok(vec![path.to_path_buf()]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_lose_only_known_endings() {
        assert_eq!(stem(Path::new("a/b.c.nii.gz")), "b.c");
        assert_eq!(stem(Path::new("b.NII")), "b");
        assert_eq!(stem(Path::new("1.2.3.mhd")), "1.2.3");
        assert_eq!(stem(Path::new(".nii")), ".nii");
        assert_eq!(stem(Path::new("scan.bin")), "scan.bin");
        let endings = ["A.MHA", "a.raw", "a.zraw", "b.NII.gz", "b.gz"].map(|n| ending(Path::new(n)));
        assert_eq!(endings, [Some(".mha"), None, None, Some(".nii.gz"), None]);
    }
}
