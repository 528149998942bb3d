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

/// The user's folder for what this program can make again (compiled pipelines, tuned variants): `SEMGEN_CACHE`, where
/// `none` means no folder, else the system's place for caches.
pub fn cache_dir() -> Option<PathBuf> {
    cache_dir_of(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from), std::env::consts::OS)
}

fn cache_dir_of(variable: impl Fn(&str) -> Option<PathBuf>, os: &str) -> Option<PathBuf> {
    match variable("SEMGEN_CACHE") {
        Some(word) if word.as_os_str() == "none" => return None,
        Some(given) => return Some(given),
        None => {}
    }
    let home = |rest: &str| variable("HOME").map(|home| home.join(rest));
    let place = match os {
        "windows" => variable("LOCALAPPDATA"),
        "macos" => home("Library/Caches"),
        _ => variable("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| home(".cache")),
    };
    place.map(|p| p.join("semgen"))
}

/// SHA-256 of `bytes` in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
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
    fn the_cache_lies_where_the_system_or_the_user_says() {
        let of = |os: &str, set: &[(&str, &str)]| {
            let dir = cache_dir_of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)), os);
            dir.map(|d| d.to_string_lossy().replace('\\', "/"))
        };
        let home = ("HOME", "/h");
        assert_eq!(of("linux", &[home]).as_deref(), Some("/h/.cache/semgen"));
        assert_eq!(of("macos", &[home]).as_deref(), Some("/h/Library/Caches/semgen"));
        assert_eq!(of("windows", &[("LOCALAPPDATA", "/l")]).as_deref(), Some("/l/semgen"));
        assert_eq!(of("linux", &[]), None);
        for os in ["linux", "macos", "windows"] {
            assert_eq!(of(os, &[home, ("SEMGEN_CACHE", "/c")]).as_deref(), Some("/c"));
            assert_eq!(of(os, &[home, ("LOCALAPPDATA", "/l"), ("SEMGEN_CACHE", "none")]), None);
        }
        if cfg!(unix) {
            assert_eq!(of("linux", &[home, ("XDG_CACHE_HOME", "/x")]).as_deref(), Some("/x/semgen"));
            assert_eq!(of("linux", &[home, ("XDG_CACHE_HOME", "relative")]).as_deref(), Some("/h/.cache/semgen"));
        }
    }

    #[test]
    fn sha256_of_nothing_is_the_known_one() {
        assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
