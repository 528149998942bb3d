//! The header: parsed by the `nifti` crate (version 1) or here (version 2), then checked.

use nifti::{Endianness, NiftiHeader};

use super::geometry::Geometry;
use crate::data::volume::{self, Affine, IDENTITY};
use crate::data::voxels::{self, Form, Format, Header, Kind};

/// Bytes of a NIfTI-1 header.
pub(super) const V1_BYTES: usize = 348;
/// Bytes of a NIfTI-2 header.
pub(super) const V2_BYTES: usize = 540;
/// Most volumes of one file.
const MAX_VOLUMES: usize = 1 << 16;
/// `NIFTI_INTENT_LABEL`.
const INTENT_LABEL: i32 = 1002;

fn kind(code: i16) -> Result<Kind, String> {
    Ok(match code {
        2 => Kind::U8,
        4 => Kind::I16,
        8 => Kind::I32,
        16 => Kind::F32,
        64 => Kind::F64,
        256 => Kind::I8,
        512 => Kind::U16,
        768 => Kind::U32,
        1024 => Kind::I64,
        1280 => Kind::U64,
        other => {
            let what = match other {
                1 => "single bits",
                32 | 1792 | 2048 => "complex numbers",
                128 | 2304 => "colours (RGB)",
                1536 => "128-bit floating numbers",
                _ => "of an unknown type",
            };
            return Err(format!(
                "voxels are {what} (datatype {other}), but only integers and 32- or 64-bit floating numbers can be read; convert the file"
            ));
        }
    })
}

/// Version told by the first four bytes.
pub(super) fn version(start: [u8; 4]) -> Result<u8, String> {
    for n in [i32::from_le_bytes(start), i32::from_be_bytes(start)] {
        match usize::try_from(n) {
            Ok(V1_BYTES) => return Ok(1),
            Ok(V2_BYTES) => return Ok(2),
            _ => {}
        }
    }
    Err(format!("is not a NIfTI file: it starts with {start:02x?} where the header size, 348 or 540, was expected"))
}

/// Parses and checks a whole header (348 or 540 bytes as [`version`] says).
pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let start = bytes.first_chunk::<4>().ok_or("is shorter than a NIfTI header")?;
    let version = version(*start)?;
    let raw = raw(bytes)?;
    let (size, volumes) = raw.size()?;
    let kind = kind(raw.datatype)?;
    let bits = kind.bytes() * 8;
    if raw.bitpix != 0 && usize::try_from(raw.bitpix) != Ok(bits) {
        return Err(format!("header contradicts itself: datatype {} has {bits} bits per voxel, but bitpix is {}", kind.word(), raw.bitpix));
    }
    let scale = match (raw.slope, raw.inter) {
        (s, _) if s == 0.0 || !s.is_finite() => None,
        (_, i) if !i.is_finite() => return Err(format!("scl_inter is {i}; a finite number was expected")),
        (1.0, 0.0) => None,
        (s, i) => Some((s, i)),
    };
    let (affine, form) = raw.affine()?;
    let smallest = if version == 1 { V1_BYTES } else { V2_BYTES } as u64;
    let offset = match raw.offset {
        0 => smallest + 4,
        o if o >= smallest => o,
        o => return Err(format!("vox_offset is {o}; voxels cannot begin inside the header ({smallest} bytes)")),
    };
    let format = if version == 1 { Format::Nifti1 } else { Format::Nifti2 };
    let labels = raw.intent == INTENT_LABEL;
    Ok(Header { format, big_endian: raw.big_endian, size, volumes, kind, offset, scale, affine, form, labels })
}

/// The fields of a whole header that place its voxels.
pub(super) fn geometry(bytes: &[u8]) -> Result<Geometry, String> {
    let raw = raw(bytes)?;
    raw.affine()?;
    Ok(Geometry {
        double: version(*bytes.first_chunk::<4>().ok_or("is shorter than a NIfTI header")?)? == 2,
        pixdim: std::array::from_fn(|i| raw.pixdim[i]),
        units: raw.units & 7,
        qform_code: raw.qform_code,
        sform_code: raw.sform_code,
        quaternion: raw.quaternion,
        shift: raw.shift,
        rows: raw.rows,
    })
}

fn raw(bytes: &[u8]) -> Result<Raw, String> {
    let start = bytes.first_chunk::<4>().ok_or("is shorter than a NIfTI header")?;
    match version(*start)? {
        1 => raw_v1(bytes.get(..V1_BYTES).ok_or("is shorter than a NIfTI-1 header (348 bytes)")?),
        _ => raw_v2(bytes.first_chunk::<V2_BYTES>().ok_or("is shorter than a NIfTI-2 header (540 bytes)")?),
    }
}

/// The fields that both versions have, in common types.
struct Raw {
    big_endian: bool,
    dim: [i64; 8],
    pixdim: [f64; 8],
    datatype: i16,
    bitpix: i16,
    offset: u64,
    slope: f64,
    inter: f64,
    units: i32,
    intent: i32,
    qform_code: i32,
    sform_code: i32,
    quaternion: [f64; 3],
    shift: [f64; 3],
    rows: [[f64; 4]; 3],
}

fn raw_v1(bytes: &[u8]) -> Result<Raw, String> {
    if bytes[344..348] == *b"ni1\0" {
        return Err("is the header of a .hdr/.img pair, which cannot be read; convert it to one .nii file".into());
    }
    let not_nifti =
        || format!("is not a NIfTI file: its magic is {:?} where \"n+1\\0\" was expected", bytes[344..348].escape_ascii().to_string());
    let h = NiftiHeader::from_reader(bytes).map_err(|_| not_nifti())?;
    if h.sizeof_hdr != 348 {
        return Err("header contradicts itself: its byte order differs between sizeof_hdr and dim".into());
    }
    let offset = f64::from(h.vox_offset);
    if !(offset >= 0.0 && offset.fract() == 0.0 && offset < 1e15) {
        return Err(format!("vox_offset is {offset}; a whole number of bytes was expected"));
    }
    Ok(Raw {
        big_endian: h.endianness == Endianness::Big,
        // The crate reads the signed field as unsigned.
        dim: h.dim.map(|d| i64::from(d.cast_signed())),
        pixdim: h.pixdim.map(f64::from),
        datatype: h.datatype,
        bitpix: h.bitpix,
        offset: offset as u64,
        slope: f64::from(h.scl_slope),
        inter: f64::from(h.scl_inter),
        units: i32::from(h.xyzt_units),
        intent: i32::from(h.intent_code),
        qform_code: i32::from(h.qform_code),
        sform_code: i32::from(h.sform_code),
        quaternion: [h.quatern_b, h.quatern_c, h.quatern_d].map(f64::from),
        shift: [h.quatern_x, h.quatern_y, h.quatern_z].map(f64::from),
        rows: [h.srow_x, h.srow_y, h.srow_z].map(|r| r.map(f64::from)),
    })
}

/// NIfTI-2: field offsets of the `nifti2.h` of the format's working group.
fn raw_v2(b: &[u8; V2_BYTES]) -> Result<Raw, String> {
    if b[4..12] != *b"n+2\0\r\n\x1a\n" {
        return Err(if b[4..7] == *b"ni2" {
            "is the header of a .hdr/.img pair, which cannot be read; convert it to one .nii file".into()
        } else {
            format!("is not a NIfTI-2 file: its magic is {:?} where \"n+2\" was expected", b[4..12].escape_ascii().to_string())
        });
    }
    let big_endian = i32::from_be_bytes([b[0], b[1], b[2], b[3]]) == 540;
    let eight = |at: usize| -> u64 {
        let mut w = [0; 8];
        w.copy_from_slice(&b[at..at + 8]);
        if big_endian { u64::from_be_bytes(w) } else { u64::from_le_bytes(w) }
    };
    let four = |at: usize| -> i32 {
        let w = [b[at], b[at + 1], b[at + 2], b[at + 3]];
        if big_endian { i32::from_be_bytes(w) } else { i32::from_le_bytes(w) }
    };
    let two = |at: usize| if big_endian { i16::from_be_bytes([b[at], b[at + 1]]) } else { i16::from_le_bytes([b[at], b[at + 1]]) };
    let real = |at: usize| f64::from_bits(eight(at));
    let offset = eight(168).cast_signed();
    Ok(Raw {
        big_endian,
        dim: std::array::from_fn(|i| eight(16 + 8 * i).cast_signed()),
        pixdim: std::array::from_fn(|i| real(104 + 8 * i)),
        datatype: two(12),
        bitpix: two(14),
        offset: u64::try_from(offset).map_err(|_| format!("vox_offset is {offset}; a number of bytes was expected"))?,
        slope: real(176),
        inter: real(184),
        units: four(500),
        intent: four(504),
        qform_code: four(344),
        sform_code: four(348),
        quaternion: [real(352), real(360), real(368)],
        shift: [real(376), real(384), real(392)],
        rows: std::array::from_fn(|r| std::array::from_fn(|c| real(400 + 32 * r + 8 * c))),
    })
}

impl Raw {
    /// Voxels along i, j, k, and the number of volumes along the fourth axis.
    fn size(&self) -> Result<([usize; 3], usize), String> {
        let rank = self.dim[0];
        if !(1..=7).contains(&rank) {
            return Err(format!("dim[0] is {rank}; a number of dimensions from 1 to 7 was expected"));
        }
        let dims = &self.dim[1..=rank as usize];
        if let Some(d) = dims.iter().find(|&&d| d < 1) {
            return Err(format!("dim is {dims:?}, and {d} is not a number of voxels"));
        }
        let &[i, j, k, ref rest @ ..] = dims else {
            return Err(format!("is a two-dimensional image (dim {dims:?}), but a three-dimensional volume was expected"));
        };
        if let Some(n) = rest.get(1..).and_then(|more| more.iter().find(|&&d| d > 1)) {
            return Err(format!("has {n} values along an axis beyond the fourth (dim {dims:?}); extract one three-dimensional volume"));
        }
        let volumes = rest.first().map_or(Ok(1), |&n| usize::try_from(n)).ok().filter(|&n| n <= MAX_VOLUMES);
        let volumes =
            volumes.ok_or_else(|| format!("is a series of more than {MAX_VOLUMES} volumes (dim {dims:?}); extract one volume"))?;
        Ok((voxels::grid([i, j, k])?, volumes))
    }

    /// sform, else qform, else voxel sizes; a form whose code is set but whose numbers cannot work gives way to the next.
    fn affine(&self) -> Result<(Affine, Form), String> {
        // Lengths are in the unit that xyzt_units names: 1 metre, 2 millimetre, 3 micrometre; 0 is unknown and taken as millimetre.
        let unit = match self.units & 7 {
            1 => 1000.0,
            3 => 0.001,
            _ => 1.0,
        };
        let usable = |mut a: Affine| {
            a[..3].iter_mut().flatten().for_each(|v| *v *= unit);
            volume::inverse(&a).map(|_| a)
        };
        if self.sform_code > 0
            && let Some(a) = usable([self.rows[0], self.rows[1], self.rows[2], IDENTITY[3]])
        {
            return Ok((a, Form::Sform));
        }
        let zooms = [self.pixdim[1].abs(), self.pixdim[2].abs(), self.pixdim[3].abs()];
        if self.qform_code > 0
            && let Some(a) = usable(self.quaternion_affine(zooms))
        {
            return Ok((a, Form::Qform));
        }
        if self.sform_code > 0 || self.qform_code > 0 {
            return Err("has no usable geometry: the coded sform or qform is singular or not finite; repair its header".into());
        }
        let mut a = IDENTITY;
        for c in 0..3 {
            a[c][c] = zooms[c];
        }
        usable(a).map(|a| (a, Form::Pixdim)).ok_or_else(|| {
            format!("has voxel sizes {zooms:?} (pixdim), but positive numbers of millimetres were expected; repair its header")
        })
    }

    /// Method 2 of the NIfTI-1 standard: rotation from the quaternion (1 − b² − c² − d² gives a²), third axis times qfac.
    fn quaternion_affine(&self, zooms: [f64; 3]) -> Affine {
        let [mut b, mut c, mut d] = self.quaternion;
        let rest = 1.0 - (b * b + c * c + d * d);
        let a = if rest < 1e-7 {
            // A half turn; rounding may have made the vector part longer than 1.
            let n = (b * b + c * c + d * d).sqrt();
            (b, c, d) = (b / n, c / n, d / n);
            0.0
        } else {
            rest.sqrt()
        };
        let r = [
            [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
            [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
            [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ];
        let qfac = if self.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        let z = [zooms[0], zooms[1], zooms[2] * qfac];
        let mut out = IDENTITY;
        for row in 0..3 {
            for col in 0..3 {
                out[row][col] = r[row][col] * z[col];
            }
            out[row][3] = self.shift[row];
        }
        out
    }
}
