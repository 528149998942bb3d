//! Files that lie exactly where another file lies: its geometry is copied field by field, not computed anew.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::header::{V1_BYTES, V2_BYTES};
use super::write::quaternion;
use crate::data::volume::{self, Affine};
use crate::data::voxels::Kind;
use crate::error::{Error, Result};
use crate::files;

/// The fields of a header that place its voxels, as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// They need 64-bit numbers (NIfTI-2); otherwise 32 bits hold them exactly (NIfTI-1).
    pub(super) double: bool,
    /// qfac and the voxel sizes.
    pub(super) pixdim: [f64; 4],
    /// Unit of lengths.
    pub(super) units: i32,
    pub(super) qform_code: i32,
    pub(super) sform_code: i32,
    pub(super) quaternion: [f64; 3],
    pub(super) shift: [f64; 3],
    pub(super) rows: [[f64; 4]; 3],
}

/// What the voxels of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Voxels along i, j, k.
    pub size: [usize; 3],
    /// Volumes along the fourth axis; 1 makes a three-dimensional file.
    pub volumes: usize,
    /// Element type.
    pub kind: Kind,
    /// The file declares itself a label map.
    pub labels: bool,
}

impl Geometry {
    /// The geometry of an affine: sform and, where the axes are perpendicular, qform, both with code 1 (scanner coordinates).
    ///
    /// # Errors
    /// A sentence if the affine has no inverse.
    pub fn of(affine: &Affine) -> Result<Self, String> {
        volume::inverse(affine).ok_or("its affine is singular or not finite and cannot be written")?;
        let s = volume::spacing(affine);
        let q = quaternion(affine, s);
        Ok(Self {
            // Sizes and the quaternion are rounded anyway; the sform counts.
            double: affine.iter().flatten().any(|&v| f64::from(v as f32) != v),
            pixdim: [q.map_or(1.0, |q| q.1), s[0], s[1], s[2]],
            units: 2,
            qform_code: i32::from(q.is_some()),
            sform_code: 1,
            quaternion: q.map_or([0.0; 3], |q| q.0),
            shift: [affine[0][3], affine[1][3], affine[2][3]],
            rows: [affine[0], affine[1], affine[2]],
        })
    }

    /// Writes a compressed file with this geometry; `voxels` writes its voxels, little-endian, i fastest, volumes one after the other.
    ///
    /// # Errors
    /// Sizes that the format cannot hold, and failed writes.
    pub fn write(&self, path: &Path, content: Content, voxels: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let header = if self.double || content.size.iter().chain([&content.volumes]).any(|&n| i16::try_from(n).is_err()) {
            self.second(content)
        } else {
            self.first(content)
        };
        let header = header.map_err(|what| Error::input(path, what))?;
        files::write_atomic(path, |out| {
            let mut gz = GzEncoder::new(out, Compression::new(4));
            gz.write_all(&header)?;
            voxels(&mut gz)?;
            gz.finish().map(|_| ())
        })
    }

    /// A NIfTI-1 header and the four zero bytes that say "no extension"; offsets are those of `nifti1.h`.
    fn first(&self, content: Content) -> Result<Vec<u8>, String> {
        let mut h = vec![0; V1_BYTES + 4];
        let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
        let code = |v: i32| i16::try_from(v).map_err(|_| format!("has a form code of {v}"));
        put(0, &348i32.to_le_bytes());
        put(38, b"r");
        for (d, n) in dims(content).into_iter().enumerate() {
            let n = i16::try_from(n).map_err(|_| format!("{n} voxels along an axis cannot be written; NIfTI-1 allows 32767"))?;
            put(40 + 2 * d, &n.to_le_bytes());
        }
        put(68, &(if content.labels { 1002i16 } else { 0 }).to_le_bytes());
        put(70, &datatype(content.kind).to_le_bytes());
        put(72, &bits(content.kind).to_le_bytes());
        for (d, &v) in self.pixdim.iter().enumerate() {
            put(76 + 4 * d, &(v as f32).to_le_bytes());
        }
        put(108, &352f32.to_le_bytes());
        put(112, &1f32.to_le_bytes());
        put(123, &[self.units.to_le_bytes()[0]]);
        put(252, &code(self.qform_code)?.to_le_bytes());
        put(254, &code(self.sform_code)?.to_le_bytes());
        for (n, &v) in self.quaternion.iter().chain(&self.shift).chain(self.rows.iter().flatten()).enumerate() {
            put(256 + 4 * n, &(v as f32).to_le_bytes());
        }
        put(344, b"n+1\0");
        Ok(h)
    }

    /// A NIfTI-2 header and the four zero bytes; offsets are those of `nifti2.h`.
    fn second(&self, content: Content) -> Result<Vec<u8>, String> {
        let mut h = vec![0; V2_BYTES + 4];
        let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &540i32.to_le_bytes());
        put(4, b"n+2\0\r\n\x1a\n");
        put(12, &datatype(content.kind).to_le_bytes());
        put(14, &bits(content.kind).to_le_bytes());
        for (d, n) in dims(content).into_iter().enumerate() {
            let n = i64::try_from(n).map_err(|_| format!("{n} voxels along an axis cannot be written"))?;
            put(16 + 8 * d, &n.to_le_bytes());
        }
        for (d, &v) in self.pixdim.iter().enumerate() {
            put(104 + 8 * d, &v.to_le_bytes());
        }
        put(168, &(V2_BYTES as i64 + 4).to_le_bytes());
        put(176, &1f64.to_le_bytes());
        put(344, &self.qform_code.to_le_bytes());
        put(348, &self.sform_code.to_le_bytes());
        for (n, &v) in self.quaternion.iter().chain(&self.shift).chain(self.rows.iter().flatten()).enumerate() {
            put(352 + 8 * n, &v.to_le_bytes());
        }
        put(500, &self.units.to_le_bytes());
        put(504, &(if content.labels { 1002i32 } else { 0 }).to_le_bytes());
        Ok(h)
    }
}

fn dims(c: Content) -> [usize; 8] {
    let rank = if c.volumes > 1 { 4 } else { 3 };
    [rank, c.size[0], c.size[1], c.size[2], c.volumes, 1, 1, 1]
}

fn bits(kind: Kind) -> i16 {
    (kind.bytes() * 8) as i16
}

/// Codes of `nifti1.h`.
fn datatype(kind: Kind) -> i16 {
    match kind {
        Kind::U8 => 2,
        Kind::I16 => 4,
        Kind::I32 => 8,
        Kind::F32 => 16,
        Kind::F64 => 64,
        Kind::I8 => 256,
        Kind::U16 => 512,
        Kind::U32 => 768,
        Kind::I64 => 1024,
        Kind::U64 => 1280,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{geometry, read, read_header, read_series_header, write_i16};
    use super::*;
    use crate::data::volume::{IDENTITY, Volume};
    use crate::data::voxels::{Form, Format};

    const SLANT: Affine = [[-1.7, 0.3, 0.1, 90.123], [0.3, 1.7, -0.2, -40.7], [-0.11, 0.2, 2.9, 1.0 / 3.0], IDENTITY[3]];

    fn labels(path: &Path, g: &Geometry, kind: Kind, voxels: &[u8]) {
        let content = Content { size: [3, 2, 2], volumes: 1, kind, labels: true };
        g.write(path, content, |out| out.write_all(voxels)).unwrap();
    }

    #[test]
    fn the_geometry_of_a_file_is_copied_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.nii"), dir.path().join("b.nii.gz"));
        let rounded = SLANT.map(|r| r.map(|v| f64::from(v as f32)));
        write_i16(&a, &Volume::new((0..12u8).map(f32::from).collect(), [3, 2, 2], rounded).unwrap()).unwrap();
        let mut bytes = std::fs::read(&a).unwrap();
        // Metres, forms with codes of their own, and a qform that differs from the sform.
        bytes[123] = 1;
        bytes[252..254].copy_from_slice(&3i16.to_le_bytes());
        bytes[254..256].copy_from_slice(&4i16.to_le_bytes());
        bytes[256..260].copy_from_slice(&0.123f32.to_le_bytes());
        for forms in [[3u8, 4], [3, 0], [0, 0]] {
            (bytes[252], bytes[254]) = (forms[0], forms[1]);
            std::fs::write(&a, &bytes).unwrap();
            labels(&b, &geometry(&a).unwrap(), Kind::U8, &[7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
            let (of, copy) = (read_header(&a).unwrap(), read_header(&b).unwrap());
            assert_eq!((copy.affine, copy.form, copy.size), (of.affine, of.form, of.size));
            assert_eq!(geometry(&b).unwrap(), geometry(&a).unwrap());
            assert!(copy.labels && copy.format == Format::Nifti1);
        }
        assert_eq!(read(&b).unwrap().at(1, 1, 0), 3.0);
    }

    #[test]
    fn an_affine_that_needs_64_bits_gets_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii.gz");
        labels(&path, &Geometry::of(&SLANT).unwrap(), Kind::U16, &[1; 24]);
        let h = read_header(&path).unwrap();
        assert_eq!((h.affine, h.format, h.form), (SLANT, Format::Nifti2, Form::Sform));
        assert_eq!(read(&path).unwrap().data, [257.0; 12]);
        // And is copied with them.
        labels(&path.with_file_name("b.nii.gz"), &geometry(&path).unwrap(), Kind::U8, &[0; 12]);
        assert_eq!(read_header(&path.with_file_name("b.nii.gz")).unwrap().affine, SLANT);
        let half = SLANT.map(|r| r.map(|v| (v * 4.0).round() / 4.0));
        let content = Content { size: [3, 2, 2], volumes: 2, kind: Kind::F32, labels: false };
        Geometry::of(&half).unwrap().write(&path, content, |out| out.write_all(&[0; 96])).unwrap();
        let h = read_series_header(&path).unwrap();
        assert_eq!((h.affine, h.format, h.volumes, h.labels), (half, Format::Nifti1, 2, false));
        assert!(Geometry::of(&[[0.0; 4]; 4]).is_err());
    }
}
