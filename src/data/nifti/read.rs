//! Reading: lengths are checked before memory is taken, voxels are decoded in pieces.

use std::fs::File;
use std::io::{BufReader, Error as IoError, ErrorKind, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::header::{self, Header, Kind, V1_BYTES, V2_BYTES};
use crate::data::volume::Volume;
use crate::error::{Error, Result};

/// Deflate shrinks no input by more than this factor (1032), so a header that claims more than the file could hold is lying.
pub(in crate::data) const MAX_RATIO: u64 = 1032;
/// Voxels decoded at a time, at least one slice.
const PIECE: usize = 1 << 20;
/// Slices decoded at a time: enough to write whole cache lines when the axes are exchanged.
const SLICES: usize = 16;

/// An open file: the header is read and believable, the reader stands behind it.
pub(in crate::data) struct Opened {
    /// What the header says.
    pub(in crate::data) header: Header,
    /// What follows.
    pub(in crate::data) reader: Box<dyn Read>,
    /// Where the reader stands.
    pub(in crate::data) at: u64,
    /// Whether it unpacks.
    pub(in crate::data) gzip: bool,
}

/// Reads a whole volume with its scaling applied; values that are not finite are kept.
pub(in crate::data) fn read_opened(path: &Path, opened: Opened) -> Result<Volume> {
    let header = opened.header.clone();
    let [ni, nj, nk] = header.size;
    let mut data = reserve(path, header.voxels())?;
    data.resize(header.voxels(), 0.0f32);
    let slice = ni * nj;
    let piece = slice * (PIECE / slice).clamp(1, SLICES);
    let mut k0 = 0;
    decode_pieces(path, opened, piece, &mut |values| {
        let slices = values.len() / slice;
        for i in 0..ni {
            for j in 0..nj {
                let to = &mut data[(i * nj + j) * nk + k0..][..slices];
                let from = values[j * ni + i..].iter().step_by(slice);
                to.iter_mut().zip(from).for_each(|(t, f)| *t = *f);
            }
        }
        k0 += slices;
        ControlFlow::Continue(())
    })?;
    Ok(Volume { data, size: header.size, affine: header.affine })
}

/// Hands the scaled voxels to `each` in file order (i fastest), in pieces, until it breaks.
pub(in crate::data) fn stream_opened(path: &Path, opened: Opened, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<Header> {
    let header = opened.header.clone();
    decode_pieces(path, opened, 1 << 16, each)?;
    Ok(header)
}

/// Opens a file: its header is read and checked.
pub(in crate::data) fn open(path: &Path) -> Result<Opened> {
    let mut file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::input(path, "no such file"),
        _ => Error::io("open", path)(e),
    })?;
    let meta = file.metadata().map_err(Error::io("read", path))?;
    if !meta.is_file() {
        return Err(Error::input(path, "is not a regular file, but a .nii or .nii.gz file was expected"));
    }
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    let gzip = magic == [0x1f, 0x8b];
    let mut reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(BufReader::new(file)) };

    let mut bytes = vec![0; V1_BYTES];
    reader.read_exact(&mut bytes).map_err(|e| broken(path, gzip, "header", e))?;
    if header::version([bytes[0], bytes[1], bytes[2], bytes[3]]).map_err(|what| Error::input(path, what))? == 2 {
        bytes.resize(V2_BYTES, 0);
        reader.read_exact(&mut bytes[V1_BYTES..]).map_err(|e| broken(path, gzip, "header", e))?;
    }
    let header = header::parse(&bytes).map_err(|what| Error::input(path, what))?;
    let claimed = header.claimed_bytes();
    let possible = if gzip { meta.len().saturating_mul(MAX_RATIO) } else { meta.len() };
    if claimed > possible {
        let [i, j, k] = header.size;
        let holds = if gzip { "can hold at most" } else { "has only" };
        return Err(Error::input(
            path,
            format!(
                "header claims {i} x {j} x {k} voxels of {}, {claimed} bytes with the header, but the file {holds} {possible}; it is truncated or damaged",
                header.kind.word()
            ),
        ));
    }
    Ok(Opened { header, reader, at: bytes.len() as u64, gzip })
}

/// Decodes `piece` voxels at a time (fewer at the end).
fn decode_pieces(path: &Path, opened: Opened, piece: usize, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<()> {
    let Opened { header, mut reader, at, gzip } = opened;
    let skip = header.offset - at;
    let skipped =
        std::io::copy(&mut reader.by_ref().take(skip), &mut std::io::sink()).map_err(|e| broken(path, gzip, "header extension", e))?;
    if skipped < skip {
        return Err(broken(path, gzip, "header extension", ErrorKind::UnexpectedEof.into()));
    }
    let mut left = header.voxels();
    let piece = piece.min(left);
    let width = header.kind.bytes();
    let mut bytes: Vec<u8> = reserve(path, piece * width)?;
    let mut values: Vec<f32> = reserve(path, piece)?;
    while left > 0 {
        let n = piece.min(left);
        bytes.resize(n * width, 0);
        reader.read_exact(&mut bytes).map_err(|e| broken(path, gzip, "voxels", e))?;
        values.clear();
        decode(&header, &bytes, &mut values);
        left -= n;
        if each(&values).is_break() {
            return Ok(());
        }
    }
    if gzip {
        // The checksum sits behind the data; what a well-formed file has there is a few bytes, so no more is read of what may be a bomb.
        std::io::copy(&mut reader.take(1 << 16), &mut std::io::sink()).map_err(|e| broken(path, gzip, "voxels", e))?;
    }
    Ok(())
}

fn decode(header: &Header, bytes: &[u8], out: &mut Vec<f32>) {
    macro_rules! go {
        ($t:ty, $f64:expr) => {{
            const N: usize = size_of::<$t>();
            let number = |chunk: &[u8]| -> $t {
                let mut w = [0; N];
                w.copy_from_slice(chunk);
                if header.big_endian { <$t>::from_be_bytes(w) } else { <$t>::from_le_bytes(w) }
            };
            let f64 = $f64;
            match header.scale {
                None => out.extend(bytes.chunks_exact(N).map(|c| f64(number(c)) as f32)),
                Some((slope, inter)) => out.extend(bytes.chunks_exact(N).map(|c| (f64(number(c)) * slope + inter) as f32)),
            }
        }};
    }
    match header.kind {
        Kind::U8 => go!(u8, f64::from),
        Kind::I8 => go!(i8, f64::from),
        Kind::U16 => go!(u16, f64::from),
        Kind::I16 => go!(i16, f64::from),
        Kind::U32 => go!(u32, f64::from),
        Kind::I32 => go!(i32, f64::from),
        Kind::U64 => go!(u64, |v| v as f64),
        Kind::I64 => go!(i64, |v| v as f64),
        Kind::F32 => go!(f32, f64::from),
        Kind::F64 => go!(f64, |v| v),
    }
}

/// An empty vector with room for `n`, or an error instead of an abort.
fn reserve<T>(path: &Path, n: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| {
        Error::input(
            path,
            format!("needs {} MiB of memory, which this machine cannot give; crop or downsample it", (n * size_of::<T>()) >> 20),
        )
    })?;
    Ok(v)
}

/// The sentence for a read that failed inside `part`.
fn broken(path: &Path, gzip: bool, part: &str, e: IoError) -> Error {
    match e.kind() {
        ErrorKind::UnexpectedEof if part == "header" && !gzip => {
            Error::input(path, "is shorter than a NIfTI header; it is truncated or not a NIfTI file")
        }
        ErrorKind::UnexpectedEof => Error::input(path, format!("ends inside its {part}; it is truncated, get it again")),
        ErrorKind::InvalidData | ErrorKind::InvalidInput if gzip => {
            Error::input(path, format!("its compressed {part} cannot be unpacked ({e}); it is damaged, get it again"))
        }
        _ => Error::io("read", path)(e),
    }
}
