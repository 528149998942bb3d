//! Reading: lengths are checked before memory is taken, voxels are decoded in pieces.

use std::io::{BufReader, ErrorKind, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::geometry::Geometry;
use super::header::{self, V1_BYTES, V2_BYTES};
use crate::data::volume::Volume;
use crate::data::voxels::{self, Header, MAX_RATIO, Opened};
use crate::error::{Error, Result};

/// Reads and checks the header of a file that holds one or, along the fourth axis, several volumes; voxels are not touched.
///
/// # Errors
/// An [`Error::Input`] if the file is missing, is not NIfTI, contradicts itself or is too short for what it claims.
pub fn read_series_header(path: &Path) -> Result<Header> {
    open(path).map(|o| o.header)
}

/// Reads and checks the header of a file with one volume; voxels are not touched.
///
/// # Errors
/// As [`read_series_header`], and for several volumes.
pub fn read_header(path: &Path) -> Result<Header> {
    single(path).map(|o| o.header)
}

/// Reads a whole volume with its scaling applied; values that are not finite are kept.
///
/// # Errors
/// As [`read_header`], and for damaged or truncated voxels.
pub fn read(path: &Path) -> Result<Volume> {
    single(path)?.volume(path, 0)
}

/// Reads volume `index` (from 0) along the fourth axis, as [`read`] reads the only one.
///
/// # Errors
/// As [`read_series_header`], if there is no such volume, and for damaged or truncated voxels.
pub fn read_volume(path: &Path, index: usize) -> Result<Volume> {
    open(path)?.volume(path, index)
}

/// Hands the scaled voxels to `each` in file order (i fastest), in pieces, until it breaks.
///
/// # Errors
/// As [`read`]; damage behind the point where `each` broke is not noticed.
pub fn stream(path: &Path, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<Header> {
    single(path)?.stream(path, each)
}

fn single(path: &Path) -> Result<Opened> {
    let opened = open(path)?;
    opened.header.single().map_err(|what| Error::input(path, what))?;
    Ok(opened)
}

/// The fields by which a file says where its voxels lie, so that another file can say the same.
///
/// # Errors
/// As [`read_series_header`].
pub fn geometry(path: &Path) -> Result<Geometry> {
    let bytes = start(path)?.0;
    header::geometry(&bytes).map_err(|what| Error::input(path, what))
}

fn open(path: &Path) -> Result<Opened> {
    let (bytes, reader, length, packed) = start(path)?;
    let header = header::parse(&bytes).map_err(|what| Error::input(path, what))?;
    let possible = if packed { length.saturating_mul(MAX_RATIO) } else { length };
    header.check_bytes(possible, packed).map_err(|what| Error::input(path, what))?;
    Ok(Opened { header, reader, at: bytes.len() as u64, packed })
}

/// The bytes of the header, the reader behind it, the file's length, and whether it is compressed.
fn start(path: &Path) -> Result<(Vec<u8>, Box<dyn Read>, u64, bool)> {
    let (mut file, length) = voxels::open_file(path, "a .nii or .nii.gz file")?;
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    let packed = magic == [0x1f, 0x8b];
    let mut reader: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(BufReader::new(file)) };

    let broken = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof if !packed => Error::input(path, "is shorter than a NIfTI header; it is truncated or not a NIfTI file"),
        _ => voxels::broken(path, packed, "header", e),
    };
    let mut bytes = vec![0; V1_BYTES];
    reader.read_exact(&mut bytes).map_err(broken)?;
    if header::version([bytes[0], bytes[1], bytes[2], bytes[3]]).map_err(|what| Error::input(path, what))? == 2 {
        bytes.resize(V2_BYTES, 0);
        reader.read_exact(&mut bytes[V1_BYTES..]).map_err(broken)?;
    }
    Ok((bytes, reader, length, packed))
}
