//! Files that are either whole or absent: written beside their final name, flushed to disk, renamed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Name of the temporary sibling that [`write_atomic`] writes before `path` takes its place.
pub fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Writes `path` through `write`; the old content stays in place until the new one is durable.
///
/// # Errors
/// An [`Error::Io`] naming `path`; nothing is left under the final name or the temporary one.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let temporary = sibling(path);
    let attempt = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(&temporary)?);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&temporary, path)
    };
    attempt().map_err(|e| {
        // The first error is the one worth reporting.
        let _ = std::fs::remove_file(&temporary);
        Error::io("write", path)(e)
    })
}

/// [`write_atomic`] of bytes at hand.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |out| out.write_all(bytes))
}

/// Creates `dir` and its parents.
///
/// # Errors
/// An [`Error::Io`] naming `dir`.
pub fn create_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))
}

/// SHA-256 of `bytes` in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Where measurements and compiled pipelines are kept between runs: `SEMGEN_CACHE` where it is set, else `semgen` in
/// the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`; `~/Library/Caches` on macOS, `LOCALAPPDATA` on Windows).
/// `None` where there is no such place. The folder may not exist yet.
pub fn cache_dir() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    cache_dir_from(of)
}

/// [`cache_dir`] with the environment given.
fn cache_dir_from(of: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(dir) = of("SEMGEN_CACHE") {
        return Some(dir);
    }
    let home = || of("HOME");
    let base = if cfg!(windows) {
        of("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home().map(|h| h.join("Library/Caches"))
    } else {
        of("XDG_CACHE_HOME").filter(|d| d.is_absolute()).or_else(|| home().map(|h| h.join(".cache")))
    };
    base.map(|dir| dir.join("semgen"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let e = write_atomic(&path, |out| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(e.unwrap_err().to_string().contains("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sha256_of_nothing_is_the_known_one() {
        assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let set = |pairs: &'static [(&str, &str)]| move |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| PathBuf::from(p.1));
        assert_eq!(cache_dir_from(set(&[("SEMGEN_CACHE", "/x"), ("HOME", "/h")])), Some(PathBuf::from("/x")));
        if cfg!(target_os = "linux") {
            assert_eq!(cache_dir_from(set(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")])), Some(PathBuf::from("/c/semgen")));
            assert_eq!(cache_dir_from(set(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")])), Some(PathBuf::from("/h/.cache/semgen")));
        }
        assert_eq!(cache_dir_from(set(&[])), None);
    }
}
