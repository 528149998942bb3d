//! What the header of a scan file says, whatever the format, and its voxels as numbers.

use std::io::{Error as IoError, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::Path;

use super::volume::{self, Affine, Volume};
use crate::error::{Error, Result};

/// Deflate shrinks no input by more than this factor (1032), so a header that claims more than the file could hold is lying.
pub(super) const MAX_RATIO: u64 = 1032;
/// Most voxels a file may claim (8 GiB as `f32`).
const MAX_VOXELS: u64 = 1 << 31;
/// Voxels decoded at a time, at least one slice.
const PIECE: usize = 1 << 20;
/// Slices decoded at a time: enough to write whole cache lines when the axes are exchanged.
const SLICES: usize = 16;

/// Format of a scan file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NIfTI-1.
    Nifti1,
    /// NIfTI-2.
    Nifti2,
    /// `MetaImage`.
    MetaImage,
}

impl Format {
    /// The name used for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nifti1 => "NIfTI-1",
            Self::Nifti2 => "NIfTI-2",
            Self::MetaImage => "MetaImage",
        }
    }
}

/// Element type of the stored voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Rust's own type names")]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Kind {
    /// Bytes per voxel.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Rust's name of the type.
    pub fn word(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

/// Where a file's affine came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// NIfTI: the matrix in `srow_x`, `srow_y`, `srow_z`.
    Sform,
    /// NIfTI: the quaternion.
    Qform,
    /// NIfTI: voxel sizes only. The file does not say how the patient lies; index axes are taken as right, anterior, superior.
    Pixdim,
    /// `MetaImage`: the direction matrix.
    Matrix,
    /// `MetaImage` without a matrix: index axes are left, posterior, superior, as the format's readers take them.
    Spacing,
}

impl Form {
    /// The word used for it in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sform => "sform",
            Self::Qform => "qform",
            Self::Pixdim => "pixdim",
            Self::Matrix => "matrix",
            Self::Spacing => "spacing",
        }
    }

    /// What a user should know, if the file does not say how the patient lies.
    pub fn remark(self) -> Option<&'static str> {
        let what = match self {
            Self::Pixdim => "(no sform, no qform); index axes are taken as right, anterior, superior",
            Self::Spacing => "(no TransformMatrix); index axes are taken as left, posterior, superior",
            Self::Sform | Self::Qform | Self::Matrix => return None,
        };
        Some(what)
    }
}

/// What a checked header says.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The file's format.
    pub format: Format,
    /// Stored most significant byte first.
    pub big_endian: bool,
    /// Voxels along i, j, k (i is fastest in the file).
    pub size: [usize; 3],
    /// Volumes on this grid in the file, one after the other; 1 for a scan, more for a series or several channels.
    pub volumes: usize,
    /// Element type.
    pub kind: Kind,
    /// Byte at which voxels begin.
    pub offset: u64,
    /// Stored values are multiplied by the first and added to the second number; `None`: taken as they are.
    pub scale: Option<(f64, f64)>,
    /// Maps `(i, j, k, 1)` to millimetres, right, anterior, superior.
    pub affine: Affine,
    /// Source of `affine`.
    pub form: Form,
    /// The file declares itself a label map.
    pub labels: bool,
}

impl Header {
    /// Voxel size in millimetres along i, j, k.
    pub fn spacing(&self) -> [f64; 3] {
        volume::spacing(&self.affine)
    }

    /// Number of voxels of one volume.
    pub fn voxels(&self) -> usize {
        self.size.iter().product()
    }

    /// Bytes of one volume.
    pub(super) fn volume_bytes(&self) -> u64 {
        self.voxels() as u64 * self.kind.bytes() as u64
    }

    /// Bytes from the start of the (decompressed) file to the end of the voxels.
    pub(super) fn claimed_bytes(&self) -> u64 {
        self.offset.saturating_add(self.volume_bytes().saturating_mul(self.volumes as u64))
    }

    /// An error if the file's `possible` bytes cannot hold what the header claims; `packed`: `possible` is an upper bound.
    pub(super) fn check_bytes(&self, possible: u64, packed: bool) -> Result<(), String> {
        let claimed = self.claimed_bytes();
        if claimed <= possible {
            return Ok(());
        }
        let [i, j, k] = self.size;
        let times = if self.volumes > 1 { format!("{} times ", self.volumes) } else { String::new() };
        let holds = if packed { "can hold at most" } else { "has only" };
        Err(format!(
            "header claims {times}{i} x {j} x {k} voxels of {}, {claimed} bytes with the header, but the file {holds} {possible}; it is truncated or damaged",
            self.kind.word()
        ))
    }

    /// An error if the file holds more than one volume.
    pub(super) fn single(&self) -> Result<(), String> {
        match self.volumes {
            1 => Ok(()),
            n => {
                let [i, j, k] = self.size;
                Err(format!(
                    "is a series of {n} volumes of {i} x {j} x {k} voxels, but one three-dimensional volume was expected; extract one volume"
                ))
            }
        }
    }
}

/// The size of a grid of `dims` voxels, checked: at least 2 along each axis, and no more than can be read.
pub(super) fn grid([i, j, k]: [i64; 3]) -> Result<[usize; 3], String> {
    if let Some(d) = [i, j, k].iter().find(|&&d| d < 1) {
        return Err(format!("has a size of {i} x {j} x {k}, and {d} is not a number of voxels"));
    }
    if [i, j, k].contains(&1) {
        return Err(format!("is a single slice ({i} x {j} x {k} voxels), but at least 2 voxels along each axis were expected"));
    }
    let count = (i as u64).checked_mul(j as u64).and_then(|n| n.checked_mul(k as u64));
    match count {
        Some(n) if n <= MAX_VOXELS => Ok([i as usize, j as usize, k as usize]),
        _ => Err(format!("claims {i} x {j} x {k} voxels, more than the {MAX_VOXELS} that can be read; crop or downsample it")),
    }
}

/// An open scan: the header is believable, the reader stands at `at` bytes from the start.
pub(super) struct Opened {
    pub(super) header: Header,
    pub(super) reader: Box<dyn Read>,
    pub(super) at: u64,
    /// The reader decompresses.
    pub(super) packed: bool,
}

impl Opened {
    /// Volume `index` of the file, scaled; values that are not finite are kept.
    ///
    /// # Errors
    /// If there is no such volume, and for damaged or truncated voxels.
    pub(super) fn volume(self, path: &Path, index: usize) -> Result<Volume> {
        let (size, affine) = (self.header.size, self.header.affine);
        let [ni, nj, nk] = size;
        let mut data = reserve(path, self.header.voxels())?;
        data.resize(self.header.voxels(), 0.0f32);
        let slice = ni * nj;
        let piece = slice * (PIECE / slice).clamp(1, SLICES);
        let mut k0 = 0;
        self.pieces(path, index, piece, &mut |values| {
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
        Ok(Volume { data, size, affine })
    }

    /// Hands the scaled voxels of the first volume to `each` in file order, until it breaks.
    pub(super) fn stream(self, path: &Path, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<Header> {
        let header = self.header.clone();
        self.pieces(path, 0, 1 << 16, each)?;
        Ok(header)
    }

    /// Decodes `piece` voxels at a time (fewer at the end).
    fn pieces(self, path: &Path, index: usize, piece: usize, each: &mut dyn FnMut(&[f32]) -> ControlFlow<()>) -> Result<()> {
        let Self { header, mut reader, at, packed } = self;
        if index >= header.volumes {
            return Err(Error::input(path, format!("holds {} volumes, but volume {} was asked for", header.volumes, index + 1)));
        }
        let behind_header = header.offset.checked_sub(at).ok_or_else(|| Error::input(path, "voxels begin inside the header"))?;
        let skip = behind_header.saturating_add(header.volume_bytes().saturating_mul(index as u64));
        let skipped = std::io::copy(&mut reader.by_ref().take(skip), &mut std::io::sink())
            .map_err(|e| broken(path, packed, "header extension", e))?;
        if skipped < skip {
            return Err(broken(path, packed, "header extension", ErrorKind::UnexpectedEof.into()));
        }
        let mut left = header.voxels();
        let piece = piece.min(left);
        let width = header.kind.bytes();
        let mut bytes: Vec<u8> = reserve(path, piece * width)?;
        let mut values: Vec<f32> = reserve(path, piece)?;
        while left > 0 {
            let n = piece.min(left);
            bytes.resize(n * width, 0);
            reader.read_exact(&mut bytes).map_err(|e| broken(path, packed, "voxels", e))?;
            values.clear();
            decode(header.kind, header.big_endian, header.scale, &bytes, &mut values);
            left -= n;
            if each(&values).is_break() {
                return Ok(());
            }
        }
        if packed {
            // The checksum sits behind the data; what a well-formed file has there is a few bytes, so no more is read of what may be a bomb.
            std::io::copy(&mut reader.take(1 << 16), &mut std::io::sink()).map_err(|e| broken(path, packed, "voxels", e))?;
        }
        Ok(())
    }
}

/// Appends stored numbers, scaled, to `out`.
pub(super) fn decode(kind: Kind, big_endian: bool, scale: Option<(f64, f64)>, bytes: &[u8], out: &mut Vec<f32>) {
    macro_rules! go {
        ($t:ty, $f64:expr) => {{
            const N: usize = size_of::<$t>();
            let number = |chunk: &[u8]| -> $t {
                let mut w = [0; N];
                w.copy_from_slice(chunk);
                if big_endian { <$t>::from_be_bytes(w) } else { <$t>::from_le_bytes(w) }
            };
            let f64 = $f64;
            match scale {
                None => out.extend(bytes.chunks_exact(N).map(|c| f64(number(c)) as f32)),
                Some((slope, inter)) => out.extend(bytes.chunks_exact(N).map(|c| (f64(number(c)) * slope + inter) as f32)),
            }
        }};
    }
    match kind {
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
pub(super) fn broken(path: &Path, packed: bool, part: &str, e: IoError) -> Error {
    match e.kind() {
        ErrorKind::UnexpectedEof => Error::input(path, format!("ends inside its {part}; it is truncated, get it again")),
        ErrorKind::InvalidData | ErrorKind::InvalidInput if packed => {
            Error::input(path, format!("its compressed {part} cannot be unpacked ({e}); it is damaged, get it again"))
        }
        _ => Error::io("read", path)(e),
    }
}

/// Opens a regular file; anything else (a folder, a pipe that would never end) is an error.
pub(super) fn open_file(path: &Path, expected: &str) -> Result<(std::fs::File, u64)> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::input(path, "no such file"),
        _ => Error::io("read", path)(e),
    })?;
    if !meta.is_file() {
        return Err(Error::input(path, format!("is not a regular file, but {expected} was expected")));
    }
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    Ok((file, meta.len()))
}
