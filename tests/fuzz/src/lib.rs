//! A folder to put the fuzzer's input into, for readers that take a path.

use std::path::{Path, PathBuf};

/// A folder of this process. It stays behind when the process dies, so that a crash can be looked into.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder for `target`.
    pub fn new(target: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("semgen-fuzz-{target}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the temporary folder can be written");
        Self(dir)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, and the folders that it is in.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("folders can be made");
        std::fs::write(&path, bytes).expect("files can be written");
        path
    }
}

/// The first byte of the input as a choice among `n`, and the rest.
pub fn choice(data: &[u8], n: u8) -> Option<(u8, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((first % n, rest))
}
