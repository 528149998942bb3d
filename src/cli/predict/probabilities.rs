//! Probabilities of all voxels, which may be too many for memory: they are gathered in a file beside the result.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::data::nifti::{Content, Geometry};
use crate::data::voxels::Kind;
use crate::error::{Error, Result};
use crate::files;

/// A file of `[output][k][j][i]` that is removed in the end.
pub(super) struct Gathered {
    path: PathBuf,
    file: File,
    size: [usize; 3],
    outputs: usize,
}

impl Gathered {
    /// A place beside `result` for probabilities of a scan of `size` voxels.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn new(result: &Path, size: [usize; 3], outputs: usize) -> Result<Self> {
        let path = files::sibling(&result.with_extension("raw"));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path, file, size, outputs })
    }

    /// Takes slice `k`, `[j][i][output]`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn take(&mut self, k: usize, slice: &[f32]) -> Result<()> {
        let plane = self.size[0] * self.size[1];
        for o in 0..self.outputs {
            let bytes: Vec<u8> = slice[o..].iter().step_by(self.outputs).flat_map(|v| v.to_le_bytes()).collect();
            let at = ((o * self.size[2] + k) * plane * 4) as u64;
            let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(&bytes));
            written.map_err(Error::io("write", &self.path))?;
        }
        Ok(())
    }

    /// Writes `result`: one volume an output.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn finish(mut self, result: &Path, geometry: &Geometry) -> Result<()> {
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io("read", &self.path))?;
        let content = Content { size: self.size, volumes: self.outputs, kind: Kind::F32, labels: false };
        let bytes = (self.size.iter().product::<usize>() * self.outputs * 4) as u64;
        geometry.write(result, content, |mut out| {
            let copied = std::io::copy(&mut BufReader::with_capacity(1 << 20, &self.file).take(bytes), &mut out)?;
            if copied == bytes { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
        })
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
