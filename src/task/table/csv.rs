//! A CSV table: a row a case, paths relative to the table.
//!
//! | column | meaning |
//! |---|---|
//! | `image`, or `image_NAME` (`image0`, `image1` …) for each channel | scan files |
//! | `mask` | label map (segmentation) |
//! | `label` | name or number of the one class that holds (classification) |
//! | any other column | a class: 1, 0 or empty for unknown (classification, instead of `label`) |
//! | `id` | unique name; the image's without one |
//! | `group` or `patient` | cases that stay together; those of one image without one |
//! | `split` | train, validation or test |
//! | `x`, `y`, `z` | a place in the scan, mm to the right, anterior, superior (as NIfTI's affine) |
//! | `coordX`, `coordY`, `coordZ` | the same, mm to the left, posterior, superior (as LUNA16 has it) |

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::super::{Kind, Output};
use super::classes::{chosen_channels, pick};
use super::{Case, Choice, Image, Part, Table, Truth, near_miss};
use crate::data::image;
use crate::error::{Error, Result};

/// Columns with a meaning of their own, besides those of channels.
const NAMED: [&str; 13] = ["id", "image", "mask", "label", "group", "patient", "split", "x", "y", "z", "coordX", "coordY", "coordZ"];

/// An opened table.
pub(super) struct Rows {
    pub(super) names: Vec<String>,
    pub(super) reader: ::csv::Reader<File>,
}

impl Rows {
    /// Opens a table with a head.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_path(path).map_err(|e| broken(path, &e))?;
        let head = reader.headers().map_err(|e| broken(path, &e))?;
        let names: Vec<String> = head.iter().map(|n| n.trim_start_matches('\u{feff}').to_owned()).collect();
        if let [one] = names.as_slice()
            && one.contains([';', '\t'])
        {
            return Err(Error::input(path, format!("has the one column `{one}`; columns have to be separated by commas")));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
            return Err(Error::input(path, format!("has the column `{twice}` twice")));
        }
        Ok(Self { names, reader })
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// Three columns of coordinates, if they are there.
    fn three(&self, path: &Path, names: [&str; 3]) -> Result<Option<[usize; 3]>> {
        match names.map(|n| self.find(n)) {
            [Some(x), Some(y), Some(z)] => Ok(Some([x, y, z])),
            [None, None, None] => Ok(None),
            _ => Err(Error::input(path, format!("has some of the columns {}, but all three are needed", names.join(", ")))),
        }
    }
}

/// Where the columns of a table are.
struct Columns {
    /// Columns of images and names of the channels.
    images: Vec<(usize, String)>,
    /// The mask or the label, or one column a class.
    truth: Vec<usize>,
    /// Coordinates, and whether they are left, posterior, superior.
    places: Option<([usize; 3], bool)>,
    id: Option<usize>,
    group: Option<usize>,
    split: Option<usize>,
    /// Columns without meaning.
    unused: Vec<String>,
}

impl Columns {
    fn of(path: &Path, rows: &Rows, kind: Kind, choice: &Choice) -> Result<Self> {
        let wrong = |what: String| Error::input(path, what);
        let images = images(rows, choice).map_err(wrong)?;
        let places = match (rows.three(path, ["x", "y", "z"])?, rows.three(path, ["coordX", "coordY", "coordZ"])?) {
            (Some(_), Some(_)) => return Err(wrong("has both x, y, z and coordX, coordY, coordZ; keep one of them".into())),
            (ras, lps) => ras.map(|p| (p, false)).or(lps.map(|p| (p, true))),
        };
        let other: Vec<usize> = (0..rows.names.len())
            .filter(|&c| {
                let n = rows.names[c].as_str();
                !NAMED.contains(&n) && channel(n).is_none()
            })
            .collect();
        let (truth, rest) = match (kind, rows.find("mask"), rows.find("label")) {
            (Kind::Segment, Some(mask), _) => (vec![mask], other),
            (Kind::Segment, None, _) => {
                let near = nearest(rows, &other, "mask");
                return Err(wrong(format!("has no column `mask`{near}; for labels use `semgen finetune classify`")));
            }
            (Kind::Classify, _, Some(label)) => (vec![label], other),
            (Kind::Classify, _, None) => (classes(rows, &other, choice).map_err(wrong)?, Vec::new()),
        };
        // A column that is nearly a known one is a slip; any other is the user's own.
        for &c in &rest {
            let near = near_miss(&rows.names[c], NAMED);
            if !near.is_empty() {
                return Err(wrong(format!("has the unknown column `{}`{near}", rows.names[c])));
            }
        }
        Ok(Self {
            images,
            truth,
            places,
            id: rows.find("id"),
            group: rows.find("group").or_else(|| rows.find("patient")),
            split: rows.find("split"),
            unused: rest.into_iter().map(|c| rows.names[c].clone()).collect(),
        })
    }
}

/// The channel that a column of images is for: `image_flair` or `image0`.
fn channel(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("image")?;
    match rest.strip_prefix('_') {
        Some(named) if !named.is_empty() => Some(named),
        _ => (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())).then_some(rest),
    }
}

/// The columns of images that a recipe asks for, and the names of the channels.
fn images(rows: &Rows, choice: &Choice) -> Result<Vec<(usize, String)>, String> {
    let mut found: Vec<(usize, String)> = rows.names.iter().enumerate().filter_map(|(c, n)| Some((c, channel(n)?.to_owned()))).collect();
    match (rows.find("image"), found.is_empty()) {
        (Some(_), false) => return Err("has both `image` and a column for each channel; keep one of them".into()),
        (Some(c), true) => found.push((c, "image".to_owned())),
        (None, false) => {}
        (None, true) => {
            let near = nearest(rows, &(0..rows.names.len()).collect::<Vec<_>>(), "image");
            return Err(format!("has no column `image` (or `image_NAME` for each channel){near}"));
        }
    }
    if found.iter().all(|f| f.1.parse::<u64>().is_ok()) {
        found.sort_by_key(|f| f.1.parse::<u64>().unwrap_or(0));
    }
    let names: Vec<String> = found.iter().map(|f| f.1.clone()).collect();
    let used = chosen_channels(choice.channels.as_deref(), &names)?;
    Ok(used.into_iter().map(|i| found[i].clone()).collect())
}

/// The columns of classes.
fn classes(rows: &Rows, other: &[usize], choice: &Choice) -> Result<Vec<usize>, String> {
    if other.is_empty() {
        return Err("has neither a column `label` nor columns of classes; for masks use `semgen finetune segment`".into());
    }
    let Some(chosen) = &choice.classes else { return Ok(other.to_vec()) };
    let find = |name: &str| {
        let near = || near_miss(name, other.iter().map(|&c| rows.names[c].as_str()));
        other.iter().copied().find(|&c| rows.names[c] == name).ok_or_else(|| format!("has no column of the class `{name}`{}", near()))
    };
    chosen.iter().map(|c| find(&c.name)).collect()
}

/// Of some columns, the one whose name is nearest to `wanted`, as the end of a sentence.
fn nearest(rows: &Rows, columns: &[usize], wanted: &str) -> String {
    near_miss(wanted, columns.iter().map(|&c| rows.names[c].as_str()))
}

pub(super) fn read(path: &Path, kind: Kind, choice: &Choice) -> Result<Table> {
    let mut rows = Rows::open(path)?;
    let columns = Columns::of(path, &rows, kind, choice)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let one_label = rows.find("label").is_some();
    let mut cases: Vec<Case> = Vec::new();
    let mut answers: Vec<(u64, Vec<String>)> = Vec::new();
    // Rows about one scan share its images.
    let mut shared: HashMap<Vec<String>, (Arc<[Image]>, Arc<str>)> = HashMap::new();
    let mut record = ::csv::StringRecord::new();
    while rows.reader.read_record(&mut record).map_err(|e| broken(path, &e))? {
        let line = record.position().map_or(0, ::csv::Position::line);
        let bad = |what: String| Error::input(path, format!("line {line}: {what}"));
        let cell = |c: usize| record.get(c).unwrap_or("");
        let names: Vec<String> = columns.images.iter().map(|&(c, _)| cell(c).to_owned()).collect();
        if let Some(i) = names.iter().position(String::is_empty) {
            return Err(bad(format!("has no file in column `{}`", rows.names[columns.images[i].0])));
        }
        let (images, stem) = match shared.get(&names) {
            Some(known) => known.clone(),
            None => {
                let files: Vec<Image> = names.iter().map(|n| Image::Scan(folder.join(n))).collect();
                let stem: Arc<str> = image::stem(files[0].path()).into();
                let new = (pick(files, &(0..names.len()).collect::<Vec<_>>()), stem);
                shared.insert(names, new.clone());
                new
            }
        };
        let point = match columns.places {
            None => None,
            Some((at, lps)) => {
                let mut p = [0.0; 3];
                for a in 0..3 {
                    let number = cell(at[a]).parse().ok().filter(|v: &f64| v.is_finite());
                    p[a] = number.ok_or_else(|| bad(format!("`{}` is no coordinate in millimetres", cell(at[a]))))?;
                }
                Some(if lps { [-p[0], -p[1], p[2]] } else { p })
            }
        };
        let id = match columns.id.map(cell) {
            Some("") => return Err(bad("has no id".into())),
            Some(id) => id.to_owned(),
            None if point.is_some() => format!("{stem}:{}", cases.len() + 1),
            None => stem.to_string(),
        };
        let truth = match kind {
            Kind::Segment if cell(columns.truth[0]).is_empty() => return Err(bad("has no mask; leave the row out".into())),
            Kind::Segment => Truth::Mask(Image::Scan(folder.join(cell(columns.truth[0])))),
            Kind::Classify => Truth::Labels(Vec::new()),
        };
        let part = match columns.split.map(cell) {
            None | Some("") => None,
            Some(word) => Some(Part::of(word).map_err(bad)?),
        };
        let group = columns.group.map(cell).filter(|g| !g.is_empty()).map_or_else(|| Arc::clone(&stem), Arc::from);
        if kind == Kind::Classify {
            answers.push((line, columns.truth.iter().map(|&c| cell(c).to_owned()).collect()));
        }
        cases.push(Case { id, images, truth, point, group, part });
    }
    let mut notes = Vec::new();
    if !columns.unused.is_empty() {
        notes.push(format!("{}: columns that are not used: {}", path.display(), columns.unused.join(", ")));
    }
    if cases.is_empty() {
        return Err(Error::input(path, "holds no labelled case, only the names of columns"));
    }
    let (classes, output) = match kind {
        // Classes are told from the masks.
        Kind::Segment => (Vec::new(), Output::Binary),
        Kind::Classify if one_label => {
            let names = label_names(path, &answers, choice)?;
            let output = if names.len() == 2 { Output::Binary } else { Output::Multiclass };
            (names, output)
        }
        Kind::Classify => {
            let names: Vec<String> = columns.truth.iter().map(|&c| rows.names[c].clone()).collect();
            match names.as_slice() {
                [yes] => (vec![format!("no {yes}"), yes.clone()], Output::Binary),
                _ => (names, Output::Multilabel),
            }
        }
    };
    for (case, (line, cells)) in cases.iter_mut().zip(answers) {
        let bad = |what: String| Error::input(path, format!("line {line}: {what}"));
        case.truth = Truth::Labels(if one_label {
            let class = classes.iter().position(|n| *n == cells[0]);
            vec![class.ok_or_else(|| bad(format!("has the label `{}`, which is none of {}", cells[0], classes.join(", "))))? as f32]
        } else {
            let known = |(i, c): (usize, &String)| match c.to_ascii_lowercase().as_str() {
                "" | "nan" => Ok(f32::NAN),
                "0" | "0.0" => Ok(0.0),
                "1" | "1.0" => Ok(1.0),
                _ => {
                    let name = &rows.names[columns.truth[i]];
                    Err(bad(format!("column `{name}` holds `{c}`, but a class's column holds 1, 0 or nothing{}", near_miss(name, NAMED))))
                }
            };
            cells.iter().enumerate().map(known).collect::<Result<_>>()?
        });
    }
    let channels = columns.images.into_iter().map(|i| i.1).collect();
    Ok(Table { cases, classes, values: Vec::new(), merged: Vec::new(), channels, output, folds: Vec::new(), notes })
}

/// The names of the classes in the column `label`: as a recipe orders them, else numbers by size, else by the alphabet.
fn label_names(path: &Path, answers: &[(u64, Vec<String>)], choice: &Choice) -> Result<Vec<String>> {
    if let Some((line, _)) = answers.iter().find(|a| a.1[0].is_empty()) {
        return Err(Error::input(path, format!("line {line}: has no label; leave the row out")));
    }
    let mut names: Vec<String> = match &choice.classes {
        Some(chosen) => chosen.iter().map(|c| c.name.clone()).collect(),
        None => answers.iter().map(|a| a.1[0].clone()).collect::<BTreeSet<_>>().into_iter().collect(),
    };
    // 10 comes after 2.
    if choice.classes.is_none() && names.iter().all(|n| n.parse::<u64>().is_ok()) {
        names.sort_by_key(|n| n.parse::<u64>().unwrap_or(0));
    }
    if names.len() < 2 {
        let only = names.first().map_or("", String::as_str);
        return Err(Error::input(path, format!("has only the label `{only}`; at least two classes are needed")));
    }
    Ok(names)
}

/// An error of the CSV reader.
pub(super) fn broken(path: &Path, e: &::csv::Error) -> Error {
    match e.kind() {
        ::csv::ErrorKind::Io(io) => Error::io("read", path)(std::io::Error::new(io.kind(), io.to_string())),
        _ => Error::input(path, format!("is not a CSV table ({e})").replace('\n', " ")),
    }
}
