//! CSV tables in and out.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;

/// A table with a head; every row has as many cells.
pub(super) struct Table {
    pub(super) names: Vec<String>,
    /// The line in the file, and the cells.
    pub(super) rows: Vec<(u64, Vec<String>)>,
}

impl Table {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(|e| broken(path, &e))?;
        let head = reader.headers().map_err(|e| broken(path, &e))?;
        let names: Vec<String> = head.iter().map(|n| n.trim_start_matches('\u{feff}').to_owned()).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
            return Err(Error::input(path, format!("has the column `{twice}` twice")));
        }
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| broken(path, &e))?;
            rows.push((record.position().map_or(0, csv::Position::line), record.iter().map(str::to_owned).collect()));
        }
        Ok(Self { names, rows })
    }

    /// The column called `name`, small and capital letters alike.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n.eq_ignore_ascii_case(name))
    }

    /// As [`Self::find`]; an error where there is none.
    pub(super) fn column(&self, path: &Path, name: &str) -> Result<usize> {
        self.find(name).ok_or_else(|| Error::input(path, format!("has no column `{name}`, only {}", self.names.join(", "))))
    }
}

/// The number in a cell, which has to be finite.
pub(super) fn number(path: &Path, line: u64, name: &str, cell: &str) -> Result<f64> {
    let found = cell.parse().ok().filter(|v: &f64| v.is_finite());
    found.ok_or_else(|| Error::input(path, format!("line {line}: column `{name}` holds `{cell}`, but a number was expected")))
}

/// Lines that are not empty.
pub(super) fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.lines().map(|l| l.trim().trim_end_matches(',').to_owned()).filter(|l| !l.is_empty()).collect())
}

pub(super) fn write(path: &Path, head: &[String], rows: &[Vec<String>]) -> Result<()> {
    files::write_atomic(path, |f| {
        let mut out = csv::Writer::from_writer(f);
        out.write_record(head)?;
        rows.iter().try_for_each(|r| out.write_record(r))?;
        out.flush()
    })
}

fn broken(path: &Path, e: &csv::Error) -> Error {
    match e.kind() {
        csv::ErrorKind::Io(io) => Error::io("read", path)(std::io::Error::new(io.kind(), io.to_string())),
        _ => Error::input(path, format!("is not a CSV table ({e})").replace('\n', " ")),
    }
}
