//! `metrics.jsonl`: one JSON object per line, whole after every line, readable while the run goes on.
//!
//! A killed process can leave at most one torn line, the last. [`read`] leaves it out and
//! [`MetricsLog::resume`] removes it, together with the records of steps that will be run again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;

/// A growing file of JSON objects, one per line.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts an empty log at `path`; an old one is replaced.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        files::write_bytes(path, b"")?;
        Self::open(path)
    }

    /// Continues the log at `path` with the records of steps up to `done`, a torn last line dropped.
    ///
    /// The file is rewritten whole before anything is appended; kept lines keep their bytes. A missing
    /// file counts as empty (the earlier run was stopped before its first record).
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or written, [`Error::Input`] as [`read`].
    pub fn resume(path: &Path, done: u64) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(Error::io("read", path))?,
        };
        let records = parse(path, &bytes)?;
        let keep = |record: &Value| record["step"].as_u64().is_some_and(|s| s <= done);
        files::write_atomic(path, |out| {
            for (line, _) in records.iter().filter(|(_, record)| keep(record)) {
                out.write_all(line)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })?;
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("append to", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one record, a JSON object, in a single write.
    ///
    /// JSON has no NaN or infinity: `serde_json` makes `null` of them.
    ///
    /// # Errors
    /// [`Error::Failed`] if `record` is not an object, [`Error::Io`] if it cannot be written.
    pub fn append(&mut self, record: &Value) -> Result<()> {
        if !record.is_object() {
            return Err(Error::Failed(format!("{}: a record has to be a JSON object, found {record}", self.path.display())));
        }
        let line = format!("{record}\n");
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush()).map_err(Error::io("append to", &self.path))
    }

    /// Waits until all records are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// All records of the log at `path`; a torn last line is left out.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Input`] naming the line if any other line is not a JSON object.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Ok(parse(path, &bytes)?.into_iter().map(|(_, record)| record).collect())
}

/// The lines of a log with their records; blank lines and a torn last line are left out.
fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(&'a [u8], Value)>> {
    let mut records = Vec::new();
    let mut number = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        number += 1;
        let (text, complete) = line.strip_suffix(b"\n").map_or((line, false), |text| (text, true));
        if text.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Value>(text) {
            Ok(record) if record.is_object() => records.push((text, record)),
            // A proper prefix of an object is never valid JSON, so what is torn is recognised as such.
            _ if !complete => {}
            Ok(_) => return Err(Error::input(path, format!("line {number} is not a JSON object; remove the line or the file"))),
            Err(e) => return Err(Error::input(path, format!("line {number} is not JSON ({e}); remove the line or the file"))),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_appended_is_read_back_at_once() {
        let (_dir, path) = with(b"old\n");
        let mut log = MetricsLog::create(&path).unwrap();
        log.append(&json!({"kind": "step", "loss": 0.1, "text": "a\nb"})).unwrap();
        log.append(&json!({"kind": "step", "loss": f64::NAN})).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back, [json!({"kind": "step", "loss": 0.1, "text": "a\nb"}), json!({"kind": "step", "loss": null})]);
        assert!(log.append(&json!([1])).unwrap_err().to_string().contains("object"));
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn every_cut_of_the_file_is_readable() {
        let whole = b"{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":\"\xc3\xa9\"}\n";
        for cut in 0..=whole.len() {
            let (_dir, path) = with(&whole[..cut]);
            let expected = usize::from(cut >= 21) + usize::from(cut >= whole.len() - 1);
            assert_eq!(read(&path).unwrap().len(), expected, "cut at {cut}");
            let mut log = MetricsLog::resume(&path, u64::MAX).unwrap();
            log.append(&json!({"step": 3})).unwrap();
            assert_eq!(read(&path).unwrap().len(), expected + 1, "cut at {cut}");
        }
    }

    #[test]
    fn resume_keeps_the_bytes_of_kept_lines_and_drops_the_others() {
        let (_dir, path) = with(b"{\"step\": 1, \"x\": 1.50}\n\n{\"step\":2}\n{\"step\":3}\n{\"st\0\0\0");
        let mut log = MetricsLog::resume(&path, 2).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"step\": 1, \"x\": 1.50}\n{\"step\":2}\n");
        log.append(&json!({"step": 3})).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"step\": 1, \"x\": 1.50}\n{\"step\":2}\n{\"step\":3}\n");
    }

    #[test]
    fn resume_without_a_file_starts_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsLog::resume(&path, u64::MAX).unwrap();
        assert!(read(&path).unwrap().is_empty());
    }

    #[test]
    fn damage_elsewhere_is_an_error_that_names_the_line_and_leaves_the_file() {
        for text in [&b"{\"step\":1}\n{\"st\n{\"step\":3}\n"[..], b"{\"step\":1}\n17\n", b"{\"step\":1}\n{\"st\n"] {
            let (_dir, path) = with(text);
            assert!(read(&path).unwrap_err().to_string().contains("line 2"));
            assert!(MetricsLog::resume(&path, u64::MAX).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), text);
        }
    }
}
