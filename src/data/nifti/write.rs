//! Writing NIfTI-1, compressed if the name ends in `.gz`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::header::V1_BYTES;
use crate::data::volume::{self, Affine, Volume};
use crate::data::voxels::Kind;
use crate::error::{Error, Result};
use crate::files;

/// How voxels are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    /// Whole numbers `round((value - inter) / slope)`; readers compute `stored * slope + inter`.
    I16 {
        /// Value of one step.
        slope: f32,
        /// Value of a stored 0.
        inter: f32,
    },
    /// Whole numbers 0 to 255, for label maps; the file declares itself a label map.
    U8,
    /// The values themselves.
    F32,
}

/// Writes whole numbers of -32768 to 32767 (Hounsfield units), rounding to the nearest.
///
/// # Errors
/// As [`write()`].
pub fn write_i16(path: &Path, volume: &Volume) -> Result<()> {
    write(path, volume, Stored::I16 { slope: 1.0, inter: 0.0 })
}

/// Writes a label map of whole numbers 0 to 255.
///
/// # Errors
/// As [`write()`].
pub fn write_u8(path: &Path, volume: &Volume) -> Result<()> {
    write(path, volume, Stored::U8)
}

/// Writes the values as they are.
///
/// # Errors
/// As [`write()`].
pub fn write_f32(path: &Path, volume: &Volume) -> Result<()> {
    write(path, volume, Stored::F32)
}

/// Writes `volume` to `path`, which has to end in `.nii` or `.nii.gz`; the file is whole or absent.
///
/// sform and qform are both written (code 1, scanner coordinates); axes that are not
/// perpendicular cannot be a quaternion, and then qform has code 0.
///
/// # Errors
/// A name of another kind, more than 32767 voxels along an axis, an affine that cannot be
/// inverted, a value that does not fit the stored type, or a failed write.
pub fn write(path: &Path, volume: &Volume, stored: Stored) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let gzip = name.ends_with(".nii.gz");
    if !gzip && !name.ends_with(".nii") {
        return Err(Error::input(path, "has to end in .nii or .nii.gz to be written"));
    }
    let header = header(volume, stored).map_err(|what| Error::input(path, what))?;
    check(volume, stored).map_err(|what| Error::input(path, what))?;
    files::write_atomic(path, |out| {
        if gzip {
            let mut gz = GzEncoder::new(out, Compression::new(4));
            gz.write_all(&header)?;
            voxels(&mut gz, volume, stored)?;
            gz.finish().map(|_: &mut BufWriter<File>| ())
        } else {
            out.write_all(&header)?;
            voxels(out, volume, stored)
        }
    })
}

/// The stored number of a value, before it is narrowed.
fn number(value: f32, stored: Stored) -> f64 {
    match stored {
        Stored::I16 { slope, inter } => ((f64::from(value) - f64::from(inter)) / f64::from(slope)).round(),
        _ => f64::from(value),
    }
}

fn check(volume: &Volume, stored: Stored) -> Result<(), String> {
    if volume::voxels(volume.size) != Some(volume.data.len()) {
        return Err(format!("{} values do not fill a grid of {:?}", volume.data.len(), volume.size));
    }
    let fits = |v: f32| match stored {
        Stored::I16 { .. } => (-32768.0..=32767.0).contains(&number(v, stored)),
        Stored::U8 => v.fract() == 0.0 && (0.0..=255.0).contains(&v),
        Stored::F32 => true,
    };
    match volume.data.iter().find(|&&v| !fits(v)) {
        Some(v) if stored == Stored::U8 => Err(format!("value {v} cannot be stored as a label (whole numbers 0 to 255)")),
        Some(v) => Err(format!("value {v} cannot be stored as a 16-bit number; store it as f32")),
        None => Ok(()),
    }
}

fn voxels(out: &mut impl Write, volume: &Volume, stored: Stored) -> std::io::Result<()> {
    let [ni, nj, nk] = volume.size;
    let mut row = Vec::with_capacity(ni * 4);
    for k in 0..nk {
        for j in 0..nj {
            row.clear();
            for i in 0..ni {
                let v = volume.data[(i * nj + j) * nk + k];
                match stored {
                    Stored::I16 { .. } => row.extend_from_slice(&(number(v, stored) as i16).to_le_bytes()),
                    Stored::U8 => row.push(v as u8),
                    Stored::F32 => row.extend_from_slice(&v.to_le_bytes()),
                }
            }
            out.write_all(&row)?;
        }
    }
    Ok(())
}

/// Header and the four zero bytes that say "no extension"; offsets are those of `nifti1.h`.
fn header(volume: &Volume, stored: Stored) -> Result<[u8; V1_BYTES + 4], String> {
    let (kind, code, slope, inter, intent) = match stored {
        Stored::I16 { slope, inter } if slope.is_finite() && slope != 0.0 && inter.is_finite() => (Kind::I16, 4i16, slope, inter, 0i16),
        Stored::I16 { slope, inter } => {
            return Err(format!(
                "slope {slope} and intercept {inter} cannot be used; finite numbers and a slope other than 0 were expected"
            ));
        }
        Stored::U8 => (Kind::U8, 2, 1.0, 0.0, 1002),
        Stored::F32 => (Kind::F32, 16, 1.0, 0.0, 0),
    };
    if volume::inverse(&volume.affine).is_none() {
        return Err("its affine is singular or not finite and cannot be written".into());
    }
    let mut h = [0; V1_BYTES + 4];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    put(38, b"r");
    for (d, &n) in [3].iter().chain(&volume.size).chain(&[1; 4]).enumerate() {
        let n = i16::try_from(n).map_err(|_| format!("{n} voxels along an axis cannot be written; NIfTI-1 allows 32767"))?;
        put(40 + 2 * d, &n.to_le_bytes());
    }
    put(68, &intent.to_le_bytes());
    put(70, &code.to_le_bytes());
    put(72, &((kind.bytes() * 8) as i16).to_le_bytes());
    let spacing = volume.spacing();
    let quaternion = quaternion(&volume.affine, spacing);
    let qfac = quaternion.map_or(1.0, |q| q.1);
    for (d, v) in [qfac, spacing[0], spacing[1], spacing[2], 0.0, 0.0, 0.0, 0.0].into_iter().enumerate() {
        put(76 + 4 * d, &(v as f32).to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &slope.to_le_bytes());
    put(116, &inter.to_le_bytes());
    put(123, &[2]); // Lengths are millimetres.
    if let Some(([b, c, d], _)) = quaternion {
        put(252, &1i16.to_le_bytes());
        for (n, v) in [b, c, d, volume.affine[0][3], volume.affine[1][3], volume.affine[2][3]].into_iter().enumerate() {
            put(256 + 4 * n, &(v as f32).to_le_bytes());
        }
    }
    put(254, &1i16.to_le_bytes());
    for (n, v) in volume.affine[..3].iter().flatten().enumerate() {
        put(280 + 4 * n, &(*v as f32).to_le_bytes());
    }
    put(344, b"n+1\0");
    Ok(h)
}

/// `(b, c, d)` and qfac of the affine's rotation, or `None` if its axes are not perpendicular.
pub(super) fn quaternion(a: &Affine, spacing: [f64; 3]) -> Option<([f64; 3], f64)> {
    let mut r: [[f64; 3]; 3] = std::array::from_fn(|row| std::array::from_fn(|col| a[row][col] / spacing[col]));
    let dot = |p: usize, q: usize| (0..3).map(|row| r[row][p] * r[row][q]).sum::<f64>();
    if [dot(0, 1), dot(0, 2), dot(1, 2)].iter().any(|d| d.abs() > 1e-4) {
        return None;
    }
    let det = r[0][0] * (r[1][1] * r[2][2] - r[1][2] * r[2][1]) - r[0][1] * (r[1][0] * r[2][2] - r[1][2] * r[2][0])
        + r[0][2] * (r[1][0] * r[2][1] - r[1][1] * r[2][0]);
    let qfac = if det < 0.0 { -1.0 } else { 1.0 };
    r.iter_mut().for_each(|row| row[2] *= qfac);
    // The largest of the four squared parts is the safe one to divide by.
    let four = [
        1.0 + r[0][0] + r[1][1] + r[2][2],
        1.0 + r[0][0] - r[1][1] - r[2][2],
        1.0 - r[0][0] + r[1][1] - r[2][2],
        1.0 - r[0][0] - r[1][1] + r[2][2],
    ];
    let largest = (0..4).max_by(|&p, &q| four[p].total_cmp(&four[q])).unwrap_or(0);
    let s = 0.5 / four[largest].sqrt();
    let (wx, wy, wz) = (r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]);
    let (xy, xz, yz) = (r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]);
    let whole = 0.5 * four[largest].sqrt();
    let q = match largest {
        0 => [whole, wx * s, wy * s, wz * s],
        1 => [wx * s, whole, xy * s, xz * s],
        2 => [wy * s, xy * s, whole, yz * s],
        _ => [wz * s, xz * s, yz * s, whole],
    };
    let sign = if q[0] < 0.0 { -1.0 } else { 1.0 };
    Some(([q[1] * sign, q[2] * sign, q[3] * sign], qfac))
}
