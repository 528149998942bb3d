//! LUNA16: candidates for nodules in `MetaImage` scans.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::Output;
use super::csv::{Rows, broken};
use super::{Case, Image, Part, Table, Truth, folders};
use crate::data::image;
use crate::error::{Error, Result};

/// Subsets of the archive.
const SUBSETS: usize = 10;
/// Names of the list of candidates, the current one first.
const LISTS: [&str; 2] = ["candidates_V2.csv", "candidates.csv"];

/// A scan of the set, and what all its candidates share.
struct Scan {
    images: Arc<[Image]>,
    group: Arc<str>,
    part: Part,
}

/// The list of candidates in `dir` or the folder that an archive of lists unpacks to.
pub(super) fn candidates(dir: &Path) -> Option<PathBuf> {
    let places = [dir.to_path_buf(), dir.join("CSVFILES"), dir.join("candidates_V2")];
    LISTS.iter().find_map(|list| places.iter().map(|p| p.join(list)).find(|p| p.is_file()))
}

/// Subsets 0–4 to train, 5–6 to validate, 7–9 to test (method reference, section 8); world coordinates become RAS+.
pub(super) fn read(dir: &Path) -> Result<Table> {
    let mut scans: HashMap<String, Scan> = HashMap::new();
    for subset in 0..SUBSETS {
        let folder = dir.join(format!("subset{subset}"));
        if !folder.is_dir() {
            continue;
        }
        let part = match subset {
            0..=4 => Part::Train,
            5..=6 => Part::Validation,
            _ => Part::Test,
        };
        for path in folders::scans(&folder)? {
            let series = image::stem(&path);
            let scan = Scan { images: [Image::Scan(path.clone())].into(), group: series.as_str().into(), part };
            if let Some(other) = scans.insert(series, scan) {
                return Err(Error::input(&path, format!("is there a second time as {}; keep one", other.images[0].path().display())));
            }
        }
    }
    if scans.is_empty() {
        return Err(Error::input(dir, "has no subset0 … subset9 with .mhd scans"));
    }
    let list = candidates(dir).ok_or_else(|| Error::input(dir, format!("has no {}", LISTS.join(" or "))))?;
    let mut notes = Vec::new();
    if list.ends_with(LISTS[1]) {
        notes.push(format!("{} is the obsolete list of candidates; {} replaces it", list.display(), LISTS[0]));
    }
    let mut rows = Rows::open(&list)?;
    let column = |name: &str| {
        let found = rows.names.iter().position(|n| n.eq_ignore_ascii_case(name));
        found.ok_or_else(|| Error::input(&list, format!("has no column `{name}`, only {}", rows.names.join(", "))))
    };
    let [series, x, y, z, class] = [column("seriesuid")?, column("coordX")?, column("coordY")?, column("coordZ")?, column("class")?];
    let (mut cases, mut without) = (Vec::new(), 0usize);
    let mut record = ::csv::StringRecord::new();
    let mut number = 0usize;
    while rows.reader.read_record(&mut record).map_err(|e| broken(&list, &e))? {
        number += 1;
        let cell = |c: usize| record.get(c).unwrap_or("");
        let Some(scan) = scans.get(cell(series)) else {
            without += 1;
            continue;
        };
        let bad = |what: String| Error::input(&list, format!("candidate {number}: {what}"));
        let place = |c: usize| {
            let v = cell(c).parse().ok().filter(|v: &f64| v.is_finite());
            v.ok_or_else(|| bad(format!("`{}` is no coordinate in millimetres", cell(c))))
        };
        let label = match cell(class) {
            "0" => 0.0,
            "1" => 1.0,
            other => return Err(bad(format!("class `{other}`, but 1 (nodule) or 0 was expected"))),
        };
        cases.push(Case {
            id: format!("{}:{number}", cell(series)),
            images: Arc::clone(&scan.images),
            truth: Truth::Labels(vec![label]),
            // World coordinates of MetaImage are left, posterior, superior.
            point: Some([-place(x)?, -place(y)?, place(z)?]),
            group: Arc::clone(&scan.group),
            part: Some(scan.part),
        });
    }
    if without > 0 {
        notes.push(format!("{without} of {number} candidates lie in scans that are not here"));
    }
    Ok(Table {
        cases,
        classes: vec!["no nodule".to_owned(), "nodule".to_owned()],
        values: Vec::new(),
        merged: Vec::new(),
        channels: vec!["CT".into()],
        output: Output::Binary,
        folds: Vec::new(),
        notes,
    })
}
