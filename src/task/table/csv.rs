//! A CSV table: a row a case, paths relative to the table.
//!
//! | column | meaning |
//! |---|---|
//! | `image`, or `image_NAME` for each channel | scan files |
//! | `mask` | label map (segmentation) |
//! | `label` | name or number of the one class that holds (classification) |
//! | any other column | a class: 1, 0 or empty for unknown (classification, instead of `label`) |
//! | `id` | unique name; the image's without one |
//! | `group` or `patient` | cases that stay together |
//! | `split` | train, validation or test |
//! | `x`, `y`, `z` | a place in the scan, mm to the right, anterior, superior (as NIfTI's affine) |
//! | `coordX`, `coordY`, `coordZ` | the same, mm to the left, posterior, superior (as LUNA16 has it) |

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use super::super::{Kind, Output};
use super::{Case, Choice, Image, Part, Table, Truth, classes, output};
use crate::data::image;
use crate::error::{Error, Result};

/// Most different values of a label map.
const MAX_VALUES: usize = 1024;

const NAMED: [&str; 12] = ["id", "image", "mask", "label", "group", "patient", "split", "x", "y", "z", "", "seriesuid"];

struct Columns {
    names: Vec<String>,
}

impl Columns {
    fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }
}

pub(super) fn read(path: &Path, kind: Kind, choice: &Choice) -> Result<Table> {
    let bad = |line: u64, what: String| Error::input(path, format!("line {line}: {what}"));
    let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_path(path).map_err(|e| broken(path, &e))?;
    let names = reader.headers().map_err(|e| broken(path, &e))?.iter().map(|n| n.trim_start_matches('\u{feff}').to_owned()).collect();
    let columns = Columns { names };
    let folder = path.parent().unwrap_or(Path::new(""));
    let images = image_columns(path, &columns, choice)?;
    let truth_columns = truth_columns(path, kind, &columns)?;
    let places: Option<([usize; 3], bool)> = {
        let all =
            |names: [&str; 3]| -> Option<[usize; 3]> { Some([columns.find(names[0])?, columns.find(names[1])?, columns.find(names[2])?]) };
        all(["x", "y", "z"]).map(|p| (p, false)).or_else(|| all(["coordX", "coordY", "coordZ"]).map(|p| (p, true)))
    };
    let (id, split) = (columns.find("id"), columns.find("split"));
    let group = columns.find("group").or_else(|| columns.find("patient"));
    let mut rows: Vec<(Case, u64, Vec<String>)> = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| broken(path, &e))?;
        let line = record.position().map_or(0, ::csv::Position::line);
        let cell = |c: usize| record.get(c).unwrap_or("");
        let mut files = Vec::new();
        for &(c, ref name) in &images {
            if cell(c).is_empty() {
                return Err(bad(line, format!("has no file in column `{name}`")));
            }
            let file = folder.join(cell(c));
            if !file.is_file() {
                return Err(bad(line, format!("names {}, which does not exist", file.display())));
            }
            files.push(Image::Scan(file));
        }
        let mut point = None;
        if let Some((at, lps)) = places {
            let mut p = [0.0; 3];
            for a in 0..3 {
                p[a] = cell(at[a])
                    .parse()
                    .ok()
                    .filter(|v: &f64| v.is_finite())
                    .ok_or_else(|| bad(line, format!("`{}` is no coordinate", cell(at[a]))))?;
            }
            point = Some(if lps { [-p[0], -p[1], p[2]] } else { p });
        }
        let mut name = id.map_or_else(|| image::stem(files[0].path()), |c| cell(c).to_owned());
        if id.is_none() && point.is_some() {
            name = format!("{name}:{}", rows.len());
        }
        let truth = match kind {
            Kind::Segment => {
                let mask = folder.join(cell(truth_columns[0]));
                if cell(truth_columns[0]).is_empty() || !mask.is_file() {
                    return Err(bad(line, format!("names the mask `{}`, which does not exist", cell(truth_columns[0]))));
                }
                Truth::Mask(Image::Scan(mask))
            }
            Kind::Classify => Truth::Labels(Vec::new()),
        };
        let part = match split.map(cell) {
            None | Some("") => None,
            Some(word) => Some(Part::of(word).map_err(|what| bad(line, what))?),
        };
        let together = group.map(cell).filter(|g| !g.is_empty()).map_or_else(|| image::stem(files[0].path()), str::to_owned);
        let cells = truth_columns.iter().map(|&c| cell(c).to_owned()).collect();
        rows.push((Case { id: name, images: files, truth, point, group: together, part }, line, cells));
    }
    let channels = images.iter().map(|(_, name)| name.strip_prefix("image_").unwrap_or(name).to_owned()).collect();
    if kind == Kind::Segment {
        let cases: Vec<Case> = rows.into_iter().map(|r| r.0).collect();
        let (names, values, merged) = classes(choice, &if choice.classes.is_some() { Vec::new() } else { values_of(&cases)? });
        let output = output(names.len());
        return Ok(Table { cases, classes: names, values, merged, channels, output, notes: Vec::new() });
    }
    let one = columns.find("label").is_some();
    let (names, output) = if one {
        let found: BTreeSet<String> = rows.iter().map(|r| r.2[0].clone()).collect();
        if let Some(r) = rows.iter().find(|r| r.2[0].is_empty()) {
            return Err(bad(r.1, "has no label".into()));
        }
        let mut names: Vec<String> = found.into_iter().collect();
        if names.len() < 2 {
            return Err(Error::input(
                path,
                format!("has only the label `{}`; at least two classes are needed", names.first().map_or("", String::as_str)),
            ));
        }
        // 10 comes after 2.
        if names.iter().all(|n| n.parse::<u64>().is_ok()) {
            names.sort_by_key(|n| n.parse::<u64>().unwrap_or(0));
        }
        let output = if names.len() == 2 { Output::Binary } else { Output::Multiclass };
        (names, output)
    } else {
        let names: Vec<String> = truth_columns.iter().map(|&c| columns.names[c].clone()).collect();
        match names.as_slice() {
            [yes] => (vec![format!("not {yes}"), yes.clone()], Output::Binary),
            _ => (names, Output::Multilabel),
        }
    };
    let mut cases = Vec::with_capacity(rows.len());
    for (mut case, line, cells) in rows {
        let labels = if one {
            vec![names.iter().position(|n| *n == cells[0]).unwrap_or(0) as f32]
        } else {
            let known = |c: &String| match c.as_str() {
                "" => Ok(f32::NAN),
                "0" | "0.0" => Ok(0.0),
                "1" | "1.0" => Ok(1.0),
                other => Err(bad(line, format!("`{other}` is no answer; expected 1, 0 or nothing"))),
            };
            cells.iter().map(known).collect::<Result<_>>()?
        };
        case.truth = Truth::Labels(labels);
        cases.push(case);
    }
    Ok(Table { cases, classes: names, values: Vec::new(), merged: Vec::new(), channels, output, notes: Vec::new() })
}

/// The columns of images, one a channel.
fn image_columns(path: &Path, columns: &Columns, choice: &Choice) -> Result<Vec<(usize, String)>> {
    if let Some(c) = columns.find("image") {
        return Ok(vec![(c, "image".into())]);
    }
    let mut found: Vec<(usize, String)> =
        columns.names.iter().enumerate().filter(|(_, n)| n.starts_with("image_")).map(|(c, n)| (c, n.clone())).collect();
    if let Some(wanted) = &choice.channels {
        found = wanted
            .iter()
            .map(|w| {
                let c = columns.find(&format!("image_{w}")).ok_or_else(|| Error::input(path, format!("has no column `image_{w}`")))?;
                Ok((c, format!("image_{w}")))
            })
            .collect::<Result<_>>()?;
    }
    if found.is_empty() {
        let near = columns.names.iter().max_by(|a, b| strsim::jaro_winkler(a, "image").total_cmp(&strsim::jaro_winkler(b, "image")));
        let near = near.map_or(String::new(), |n| format!("; did you mean `{n}`?"));
        return Err(Error::input(path, format!("has no column `image` (or `image_NAME` for each channel){near}")));
    }
    Ok(found)
}

/// The columns of the truth.
fn truth_columns(path: &Path, kind: Kind, columns: &Columns) -> Result<Vec<usize>> {
    match kind {
        Kind::Segment => {
            let c = columns
                .find("mask")
                .ok_or_else(|| Error::input(path, "has no column `mask`; for labels of whole scans use `semgen finetune classify`"))?;
            Ok(vec![c])
        }
        Kind::Classify => {
            if let Some(c) = columns.find("label") {
                return Ok(vec![c]);
            }
            let other = |n: &String| !NAMED.contains(&n.as_str()) && !n.starts_with("image_") && !n.starts_with("coord");
            let found: Vec<usize> = (0..columns.names.len()).filter(|&c| other(&columns.names[c])).collect();
            if found.is_empty() {
                return Err(Error::input(
                    path,
                    "has neither a column `label` nor columns of classes; for masks use `semgen finetune segment`",
                ));
            }
            Ok(found)
        }
    }
}

/// The values of all masks, with names.
fn values_of(cases: &[Case]) -> Result<Vec<(String, u32)>> {
    use rayon::prelude::*;
    let of = |case: &Case| -> Result<BTreeSet<u32>> {
        let Truth::Mask(mask) = &case.truth else { return Ok(BTreeSet::new()) };
        let mut found = BTreeSet::new();
        let (mut last, mut wrong) = (0.0f32, None);
        image::stream(mask.path(), &mut |values| {
            for &v in values {
                if v == last {
                    continue;
                }
                last = v;
                if !(v >= 0.0 && v.fract() == 0.0 && v <= 65535.0) {
                    wrong = Some(format!("holds the value {v}; label maps hold whole numbers from 0 on"));
                    return ControlFlow::Break(());
                }
                found.insert(v as u32);
                if found.len() > MAX_VALUES {
                    wrong = Some(format!("holds more than {MAX_VALUES} different values; is it a label map?"));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        match wrong {
            Some(what) => Err(Error::input(mask.path(), what)),
            None => Ok(found),
        }
    };
    let found: Vec<Result<BTreeSet<u32>>> = cases.par_iter().map(of).collect();
    let mut all = BTreeSet::new();
    for one in found {
        all.extend(one?);
    }
    all.remove(&0);
    if all.is_empty() {
        return Err(Error::Usage("all masks are empty; there is nothing to learn".into()));
    }
    let single = all.len() == 1;
    Ok(all.into_iter().map(|v| (if single { "foreground".to_owned() } else { format!("label {v}") }, v)).collect())
}

/// An error of the CSV reader.
pub(super) fn broken(path: &Path, e: &::csv::Error) -> Error {
    Error::input(path, format!("is not a CSV table ({e})").replace('\n', " "))
}
