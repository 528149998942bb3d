//! Files mapped into memory: the one place that uses `memmap2`.
#![expect(unsafe_code, reason = "mapping a file is unsafe because another process could change it")]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file's bytes, read by the operating system when touched; cheap to clone.
#[derive(Clone, Debug)]
pub struct Mapped(Arc<Mmap>);

impl Mapped {
    /// Maps `path` for reading.
    ///
    /// # Errors
    /// An [`Error::Input`] for a missing or empty file, an [`Error::Io`] if the system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input(path, "no such file"),
            _ => Error::io("open", path)(e),
        })?;
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        if len == 0 {
            return Err(Error::input(path, "is empty"));
        }
        // SAFETY: the map is read-only. The program never changes a file that it maps: `files::write_atomic` puts a new
        // file under the name and leaves the mapped one alone. If another program shortens it meanwhile, touching the
        // lost pages ends the process; if it writes, readers see other plain bytes, which every reader of a map accepts:
        // bytes are copied out one by one and never taken for anything with forbidden values.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self(Arc::new(map)))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_missing_or_empty_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(Mapped::open(&path).unwrap_err().to_string().contains("no such file"));
        std::fs::write(&path, b"").unwrap();
        assert!(Mapped::open(&path).unwrap_err().to_string().contains("empty"));
        std::fs::write(&path, b"abc").unwrap();
        let m = Mapped::open(&path).unwrap();
        assert_eq!(m.clone()[..], *b"abc");
    }
}
