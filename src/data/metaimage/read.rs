//! Opening the data: lengths are checked before memory is taken.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flate2::read::{MultiGzDecoder, ZlibDecoder};

use super::header::{self, Data, Fields, MAX_BYTES};
use crate::data::volume::Volume;
use crate::data::voxels::{self, Format, Header, MAX_RATIO, Opened};
use crate::error::{Error, Result};

/// Reads and checks a header and the length of its data; voxels are not touched.
///
/// # Errors
/// An [`Error::Input`] if a file is missing, is no `MetaImage`, contradicts itself or is too short for what it claims.
pub fn read_header(path: &Path) -> Result<Header> {
    open(path).map(|o| o.header)
}

/// Reads a whole volume; values that are not finite are kept.
///
/// # Errors
/// As [`read_header`], and for damaged or truncated voxels.
pub fn read(path: &Path) -> Result<Volume> {
    open(path)?.volume(path, 0)
}

/// Reads volume `index`; a file has one.
///
/// # Errors
/// As [`read`], and if there is no such volume.
pub fn read_volume(path: &Path, index: usize) -> Result<Volume> {
    open(path)?.volume(path, index)
}

/// Hands the voxels to `each` in file order (i fastest), in pieces, until it breaks.
///
/// # Errors
/// As [`read`]; damage behind the point where `each` broke is not noticed.
pub fn stream(path: &Path, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<Header> {
    open(path)?.stream(path, each)
}

/// The files that make up a scan: the header, and the data file that it names, if any.
///
/// # Errors
/// If the header cannot be read.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let (fields, ..) = fields(path)?;
    let data = match fields.data {
        Data::Local(_) => None,
        Data::File(name) => Some(path.with_file_name(name)),
    };
    Ok(std::iter::once(path.to_path_buf()).chain(data).collect())
}

/// The header, and its file with the file's length.
fn fields(path: &Path) -> Result<(Fields, File, u64)> {
    let (mut file, length) = voxels::open_file(path, "a .mhd or .mha file")?;
    let mut start = Vec::new();
    file.by_ref().take(MAX_BYTES).read_to_end(&mut start).map_err(Error::io("read", path))?;
    let fields = header::parse(&start).map_err(|what| Error::input(path, what))?;
    Ok((fields, file, length))
}

fn open(path: &Path) -> Result<Opened> {
    let (fields, own, own_length) = fields(path)?;
    let wrong = |what: String| Error::input(path, what);
    let (mut file, length, start) = match &fields.data {
        Data::Local(end) => (own, own_length, *end),
        Data::File(name) => {
            let (file, length) = voxels::open_file(&path.with_file_name(name), "its data").map_err(|e| match e {
                Error::Input { what, .. } => wrong(format!("its data file {name} cannot be used: {what}")),
                other => other,
            })?;
            (file, length, 0)
        }
    };
    let mut header = Header {
        format: Format::MetaImage,
        big_endian: fields.big_endian,
        size: fields.size,
        volumes: 1,
        kind: fields.kind,
        offset: 0,
        scale: None,
        affine: fields.affine,
        form: fields.form,
        labels: false,
    };
    let first = match fields.skip {
        Some(0) => start,
        Some(n) if n < start => {
            return Err(wrong(format!("HeaderSize is {n}, but the data cannot begin inside the header ({start} bytes)")));
        }
        Some(n) => n,
        // A file that is too short is refused below.
        None => length.saturating_sub(header.volume_bytes()).max(start),
    };
    // A place behind the end is refused below; systems differ about going there.
    file.seek(SeekFrom::Start(first.min(length))).map_err(Error::io("read", path))?;
    let mut reader = BufReader::new(file);
    if !fields.compressed {
        header.offset = first;
        header.check_bytes(length, false).map_err(wrong)?;
        return Ok(Opened { header, reader: Box::new(reader), at: first, packed: false });
    }
    let there = length.saturating_sub(first);
    let packed = fields.compressed_bytes.unwrap_or(there);
    if packed > there {
        return Err(wrong(format!(
            "header claims {packed} bytes of compressed data, but the file has only {there}; it is truncated or damaged"
        )));
    }
    header.check_bytes(packed.saturating_mul(MAX_RATIO), true).map_err(wrong)?;
    let mut magic = Vec::new();
    reader.by_ref().take(2).read_to_end(&mut magic).map_err(Error::io("read", path))?;
    let gzip = magic == [0x1f, 0x8b];
    let data = std::io::Cursor::new(magic).chain(reader).take(packed);
    let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(data)) } else { Box::new(ZlibDecoder::new(data)) };
    Ok(Opened { header, reader, at: 0, packed: true })
}
