//! Tables of probabilities.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Answers, Args};
use crate::cli::scans::{self, Case, Failures, new_folder};
use crate::data::arrays::Cubes;
use crate::data::resize::resize;
use crate::data::store::stored;
use crate::error::{Error, Result};
use crate::files;
use crate::report::progress::Progress;
use crate::task::Description;
use crate::task::predict::{Predictor, around, shrunk};

/// Name of the table.
const TABLE: &str = "predictions.csv";
/// Windows that are read before they are classified.
const AHEAD: usize = 256;
/// Columns of a table of points, as LUNA16 names them.
const POINTS: [&str; 4] = ["seriesuid", "coordX", "coordY", "coordZ"];

pub(super) fn run(predictor: &Predictor<'_>, a: &Args, json: bool, failures: &mut Failures) -> Result<Answers> {
    let task = predictor.task();
    let (cubes, files): (Vec<PathBuf>, Vec<PathBuf>) = a.scans.iter().cloned().partition(|p| is_array(p));
    let (table, rows, skipped) = match &a.points {
        Some(points) => {
            if let Some(array) = cubes.first() {
                return Err(Error::input(array, "is an array of cubes, which have no places in millimetres; give scans"));
            }
            let cases = scans::cases(&files, &task.channels, json)?;
            places(predictor, a, &cases, points, json, failures)?
        }
        None => {
            let cases = if files.is_empty() { Vec::new() } else { scans::cases(&files, &task.channels, json)? };
            whole(predictor, a, &cases, &cubes, json, failures)?
        }
    };
    let path = a.out.join(TABLE);
    files::write_bytes(&path, &table)?;
    let mut lines = vec![format!("{rows} rows: {}", path.display())];
    if skipped > 0 {
        lines.push(format!("{skipped} places of the table are left out: their scans were not given or could not be used"));
    }
    Ok(Answers { json: json!({ "table": path.to_string_lossy(), "rows": rows, "left_out": skipped }), lines })
}

/// Whether a path names an array of cubes.
pub(in crate::cli) fn is_array(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy"))
}

/// The columns with probabilities.
fn columns(task: &Description) -> Vec<&str> {
    match task.outputs() {
        1 => vec![task.classes.get(1).map_or("probability", String::as_str)],
        _ => task.classes.iter().map(String::as_str).collect(),
    }
}

/// A row of text and numbers.
fn row(out: &mut csv::Writer<Vec<u8>>, cells: impl IntoIterator<Item = String>) -> Result<()> {
    out.write_record(cells.into_iter().collect::<Vec<_>>()).map_err(|e| Error::Failed(format!("a table cannot be written ({e})")))
}

fn bytes(out: csv::Writer<Vec<u8>>) -> Result<Vec<u8>> {
    out.into_inner().map_err(|e| Error::Failed(format!("a table cannot be written ({e})")))
}

/// One row for each scan and each cube: the table, its rows.
fn whole(
    predictor: &Predictor<'_>,
    a: &Args,
    cases: &[Case],
    arrays: &[PathBuf],
    json: bool,
    failures: &mut Failures,
) -> Result<(Vec<u8>, usize, usize)> {
    let task = predictor.task();
    if task.channels.len() != 1
        && let Some(array) = arrays.first()
    {
        return Err(Error::input(array, format!("has cubes of one channel, but the model takes {}", task.channels.join(", "))));
    }
    let mut table = csv::Writer::from_writer(Vec::new());
    row(&mut table, std::iter::once("id").chain(columns(task)).map(str::to_owned))?;
    let opened: Vec<(String, Cubes)> = arrays.iter().map(|p| Ok((stem(p), Cubes::open(p)?))).collect::<Result<_>>()?;
    let mut names = std::collections::HashSet::new();
    for name in cases.iter().map(|c| &c.name).chain(opened.iter().map(|o| &o.0)) {
        if !names.insert(name.to_lowercase()) {
            return Err(Error::Usage(format!("two inputs have the name `{name}`; predict them into different folders")));
        }
    }
    new_folder(&a.out)?;
    let total = cases.len() + opened.iter().map(|o| o.1.len()).sum::<usize>();
    let mut progress = Progress::new("classify", total as u64, json);
    let (mut done, mut rows) = (0, 0);
    for case in cases {
        let made = case.open(&task.recipe, json).map(|scan| shrunk(&scan, task.window));
        if let Some(window) = failures.take(&case.name, made, json)? {
            for p in predictor.classify(&mut std::iter::once(window))? {
                row(&mut table, std::iter::once(case.name.clone()).chain(p.iter().map(f32::to_string)))?;
                rows += 1;
            }
        }
        done += 1;
        progress.set(done, &case.name);
    }
    for (name, cubes) in &opened {
        for first in (0..cubes.len()).step_by(AHEAD) {
            let range = first..(first + AHEAD).min(cubes.len());
            let read = |r: usize| Ok(resize(&cubes.unit_cube(r)?, cubes.size(), task.window).into_iter().map(stored).collect());
            let windows: Vec<Vec<f32>> = range.clone().map(read).collect::<Result<_>>()?;
            for (r, p) in range.clone().zip(predictor.classify(&mut windows.into_iter())?) {
                row(&mut table, std::iter::once(format!("{name}:{r}")).chain(p.iter().map(f32::to_string)))?;
                rows += 1;
            }
            done += range.len() as u64;
            progress.set(done, name);
        }
    }
    progress.finish(&format!("{rows} rows"));
    Ok((bytes(table)?, rows, 0))
}

/// A file's name without its ending.
pub(in crate::cli) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A table of places.
struct Points {
    /// Names of all columns.
    names: Vec<String>,
    /// All cells.
    rows: Vec<Vec<String>>,
    /// Name of the scan and the place in millimetres right, anterior, superior, row by row.
    places: Vec<(String, [f64; 3])>,
}

impl Points {
    fn read(path: &Path) -> Result<Self> {
        let bad = |e: csv::Error| match e.into_kind() {
            csv::ErrorKind::Io(e) => Error::io("read", path)(e),
            other => Error::input(path, format!("is no table of places ({other:?})")),
        };
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(bad)?;
        let names: Vec<String> = reader.headers().map_err(bad)?.iter().map(|n| n.trim_start_matches('\u{feff}').to_owned()).collect();
        let column = |name: &str| {
            let found = names.iter().position(|n| n.eq_ignore_ascii_case(name));
            found.ok_or_else(|| Error::input(path, format!("has no column `{name}`, only {}", names.join(", "))))
        };
        let [series, x, y, z] = [column(POINTS[0])?, column(POINTS[1])?, column(POINTS[2])?, column(POINTS[3])?];
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for record in reader.records() {
            let record = record.map_err(bad)?;
            let number = |c: usize| {
                let v = record[c].parse().ok().filter(|v: &f64| v.is_finite());
                v.ok_or_else(|| Error::input(path, format!("row {}: `{}` is no coordinate in millimetres", rows.len() + 1, &record[c])))
            };
            // The table's are left, posterior, superior.
            places.push((record[series].to_owned(), [-number(x)?, -number(y)?, number(z)?]));
            rows.push(record.iter().map(str::to_owned).collect());
        }
        if rows.is_empty() {
            return Err(Error::input(path, "has no places in it"));
        }
        Ok(Self { names, rows, places })
    }
}

/// One row for each place in the scans: the table, its rows, places left out.
fn places(
    predictor: &Predictor<'_>,
    a: &Args,
    cases: &[Case],
    path: &Path,
    json: bool,
    failures: &mut Failures,
) -> Result<(Vec<u8>, usize, usize)> {
    let task = predictor.task();
    let points = Points::read(path)?;
    let added = if task.outputs() == 1 { vec!["probability"] } else { columns(task) };
    if let Some(name) = added.iter().find(|n| points.names.iter().any(|p| p == *n)) {
        return Err(Error::input(path, format!("has a column `{name}` already; remove it")));
    }
    let mut by_scan: HashMap<&str, Vec<usize>> = HashMap::new();
    for (n, (scan, _)) in points.places.iter().enumerate() {
        by_scan.entry(scan).or_default().push(n);
    }
    if !cases.iter().any(|c| by_scan.contains_key(c.name.as_str())) {
        let (first, scan) = (&points.places[0].0, &cases[0].name);
        return Err(Error::input(path, format!("names none of the scans: its first place is in `{first}`, the first scan is `{scan}`")));
    }
    new_folder(&a.out)?;
    let mut found: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    let mut progress = Progress::new("classify", points.places.len() as u64, json);
    for case in cases {
        let Some(rows) = by_scan.get(case.name.as_str()) else {
            progress.note(&format!("{} has no place in {}", case.path().display(), path.display()));
            continue;
        };
        let Some(scan) = failures.take(&case.name, case.open(&task.recipe, json), json)? else { continue };
        for part in rows.chunks(AHEAD) {
            let (mut known, mut windows) = (Vec::new(), Vec::new());
            for &n in part {
                let cut = around(&scan, task.window, points.places[n].1);
                let cut = cut.map_err(|what| Error::input(path, format!("row {}: {what} {}", n + 1, case.path().display())));
                if let Some(window) = failures.take(&case.name, cut, json)? {
                    known.push(n);
                    windows.push(window);
                }
            }
            found.extend(known.into_iter().zip(predictor.classify(&mut windows.into_iter())?));
            progress.set(found.len() as u64, &case.name);
        }
    }
    progress.finish(&format!("{} places", found.len()));
    let mut table = csv::Writer::from_writer(Vec::new());
    row(&mut table, points.names.iter().map(String::as_str).chain(added).map(str::to_owned))?;
    for (n, p) in &found {
        row(&mut table, points.rows[*n].iter().cloned().chain(p.iter().map(f32::to_string)))?;
    }
    Ok((bytes(table)?, found.len(), points.places.len() - found.len()))
}
