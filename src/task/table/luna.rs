//! LUNA16: candidates for nodules in MetaImage scans.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::Output;
use super::csv::broken;
use super::{Case, Image, Part, Table, Truth};
use crate::error::{Error, Result};

/// Subsets of the archive.
const SUBSETS: usize = 10;

pub(super) fn read(dir: &Path) -> Result<Table> {
    let mut scans: HashMap<String, (PathBuf, usize)> = HashMap::new();
    for subset in 0..SUBSETS {
        let folder = dir.join(format!("subset{subset}"));
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "mhd")) {
            let series = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            scans.insert(series, (path, subset));
        }
    }
    if scans.is_empty() {
        return Err(Error::input(dir, "has no subset0 … subset9 with .mhd scans"));
    }
    let (old, new) = (dir.join("candidates.csv"), dir.join("candidates_V2.csv"));
    let mut notes = Vec::new();
    let table = if new.is_file() {
        new
    } else {
        notes.push(format!("{} is the obsolete list of candidates; candidates_V2.csv replaces it", old.display()));
        old
    };
    let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_path(&table).map_err(|e| broken(&table, &e))?;
    let names: Vec<String> = reader.headers().map_err(|e| broken(&table, &e))?.iter().map(str::to_owned).collect();
    let column = |name: &str| {
        let found = names.iter().position(|n| n.eq_ignore_ascii_case(name));
        found.ok_or_else(|| Error::input(&table, format!("has no column `{name}`, only {}", names.join(", "))))
    };
    let columns = [column("seriesuid")?, column("coordX")?, column("coordY")?, column("coordZ")?, column("class")?];
    let (mut cases, mut without) = (Vec::new(), 0usize);
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|e| broken(&table, &e))?;
        let line = i + 2;
        let cell = |k: usize| record.get(columns[k]).unwrap_or("");
        let number = |k: usize| {
            let v = cell(k).parse().ok().filter(|v: &f64| v.is_finite());
            v.ok_or_else(|| Error::input(&table, format!("line {line}: `{}` is no coordinate", cell(k))))
        };
        let Some((path, subset)) = scans.get(cell(0)) else {
            without += 1;
            continue;
        };
        let label = match cell(4) {
            "0" => 0.0,
            "1" => 1.0,
            other => return Err(Error::input(&table, format!("line {line}: class `{other}`, expected 1 (nodule) or 0"))),
        };
        let part = match subset {
            0..=4 => Part::Train,
            5..=6 => Part::Validation,
            _ => Part::Test,
        };
        cases.push(Case {
            id: format!("{}:{i}", cell(0)),
            images: vec![Image::Scan(path.clone())],
            truth: Truth::Labels(vec![label]),
            // World coordinates of MetaImage are left, posterior, superior.
            point: Some([-number(1)?, -number(2)?, number(3)?]),
            group: cell(0).to_owned(),
            part: Some(part),
        });
    }
    if without > 0 {
        notes.push(format!("{without} candidates lie in scans that are not here"));
    }
    let classes = vec!["no nodule".to_owned(), "nodule".to_owned()];
    Ok(Table { cases, classes, values: Vec::new(), merged: Vec::new(), channels: vec!["CT".into()], output: Output::Binary, notes })
}
