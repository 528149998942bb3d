//! Labelled data: which scan belongs to which truth, and to which part of the set.
//!
//! [`read`] tells the layout by what lies there (see [`Layout`]); [`parts`] divides the cases.

mod csv;
mod cubes;
mod folders;
mod luna;
mod nnunet;
mod split;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use cubes::read_cube;
pub use split::parts;

use super::{Kind, Output};
use crate::error::{Error, Result};

/// Where an image or a mask is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Image {
    /// A scan file.
    Scan(PathBuf),
    /// A row of an array of cubes.
    Cube {
        /// The `.npy` file `[n, x, y, z]`.
        path: PathBuf,
        /// Row.
        row: usize,
    },
}

impl Image {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Scan(path) | Self::Cube { path, .. } => path,
        }
    }
}

/// One labelled example.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Unique name.
    pub id: String,
    /// One image a channel.
    pub images: Vec<Image>,
    /// The truth.
    pub truth: Truth,
    /// The place in the scan, millimetres to the right, anterior, superior (RAS+), for tasks about places.
    pub point: Option<[f64; 3]>,
    /// Cases of one group (a patient) are never divided among parts.
    pub group: String,
    /// The part that the data itself assigns.
    pub part: Option<Part>,
}

/// What is known about a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// A label map on the scan's grid.
    Mask(Image),
    /// One number an output for binary and multi-label tasks (0 or 1, NaN where unknown), or the class's number (one element).
    Labels(Vec<f32>),
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// To learn from.
    Train,
    /// To choose the best model by.
    Validation,
    /// To report on.
    Test,
}

impl Part {
    /// The part that a word in a file means.
    ///
    /// # Errors
    /// A sentence about another word.
    pub fn of(word: &str) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "train" | "training" => Ok(Self::Train),
            "val" | "valid" | "validation" => Ok(Self::Validation),
            "test" | "testing" => Ok(Self::Test),
            _ => Err(format!("`{word}` is no part of a data set; expected train, validation or test")),
        }
    }
}

/// A labelled data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The cases.
    pub cases: Vec<Case>,
    /// Names of the classes, as in [`super::Description::classes`].
    pub classes: Vec<String>,
    /// As [`super::Description::values`].
    pub values: Vec<u32>,
    /// As [`super::Description::merged`].
    pub merged: Vec<Vec<u32>>,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// What the outputs are.
    pub output: Output,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// How the files of a data set lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A table of images and masks or labels.
    Csv,
    /// `imagesTr`, `labelsTr` and `dataset.json`, as nnU-Net and the Medical Segmentation Decathlon have them.
    NnUnet,
    /// `subset0` … `subset9` of MetaImage scans with `candidates_V2.csv` or `candidates.csv`.
    Luna16,
    /// `x_train_64x64x32.npy`, `m_train_64x64x32.npy` and the like: cubes with masks.
    Cubes,
    /// `volume-N.nii` and `segmentation-N.nii`.
    Lits,
    /// `HGG` and `LGG` with a folder a patient of `<id>_flair.nii.gz` … `<id>_seg.nii.gz`.
    Brats,
}

/// What a recipe says about the data.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Layout; told by what lies there if it is not given.
    pub layout: Option<Layout>,
    /// Channels to use, by name, where the data have several.
    pub channels: Option<Vec<String>>,
    /// Classes of segmentation other than the background, each with the label values that count as it.
    pub classes: Option<Vec<Class>>,
}

/// A class of a segmentation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Name.
    pub name: String,
    /// Label values that count as it; the first is the value that predictions have.
    pub values: Vec<u32>,
}

/// A checked-in recipe: what the data are, and the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// About the data.
    pub data: Choice,
    /// Settings as TOML.
    pub settings: String,
}

/// The recipes of the published target tasks (method reference, section 8).
pub const RECIPES: [(&str, &str); 4] = [
    ("luna16-ncc", include_str!("recipes/luna16-ncc.toml")),
    ("lidc-ncs", include_str!("recipes/lidc-ncs.toml")),
    ("lits-lcs", include_str!("recipes/lits-lcs.toml")),
    ("brats-bms", include_str!("recipes/brats-bms.toml")),
];

/// The recipe called `name`.
///
/// # Errors
/// [`Error::Usage`] for another name.
pub fn recipe(name: &str) -> Result<Recipe> {
    let names: Vec<&str> = RECIPES.iter().map(|r| r.0).collect();
    let text = RECIPES.iter().find(|r| r.0 == name).map(|r| r.1);
    let text = text.ok_or_else(|| Error::Usage(format!("there is no recipe `{name}`; there are {}", names.join(", "))))?;
    let broken = |e: &dyn std::fmt::Display| Error::Usage(format!("recipe {name}: {e}"));
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| broken(&e))?;
    let data = table.remove("data").map_or_else(|| Ok(Choice::default()), toml::Value::try_into).map_err(|e| broken(&e))?;
    Ok(Recipe { data, settings: toml::to_string(&table).map_err(|e| broken(&e))? })
}

/// Reads the labelled data at `path` for a task of `kind`, as `choice` says where it says something.
///
/// # Errors
/// What is missing or contradicts itself, with the file and the row.
pub fn read(path: &Path, kind: Kind, choice: Option<&Choice>) -> Result<Table> {
    let choice = choice.cloned().unwrap_or_default();
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(path, "no such file or folder"),
        _ => Error::io("read", path)(e),
    })?;
    let layout = match choice.layout {
        Some(layout) => layout,
        None if meta.is_file() => Layout::Csv,
        None => told(path)?,
    };
    let fits = match layout {
        Layout::Csv => true,
        Layout::Luna16 => kind == Kind::Classify,
        _ => kind == Kind::Segment,
    };
    if !fits {
        return Err(Error::input(
            path,
            "holds data of the other kind of task; use `semgen finetune classify` for labels, `semgen finetune segment` for masks",
        ));
    }
    let table = match layout {
        Layout::Csv => csv::read(path, kind, &choice),
        Layout::NnUnet => nnunet::read(path, &choice),
        Layout::Luna16 => luna::read(path),
        Layout::Cubes => cubes::read(path),
        Layout::Lits => folders::lits(path, &choice),
        Layout::Brats => folders::brats(path, &choice),
    }?;
    if table.cases.is_empty() {
        return Err(Error::input(path, "holds no labelled case"));
    }
    let mut ids = std::collections::HashSet::new();
    if let Some(twice) = table.cases.iter().find(|c| !ids.insert(&c.id)) {
        return Err(Error::input(path, format!("has two cases called `{}`; give them an `id` of their own", twice.id)));
    }
    Ok(table)
}

/// The layout of a folder.
fn told(dir: &Path) -> Result<Layout> {
    let names: Vec<String> =
        std::fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|n| test(n));
    if has("dataset.json") || has("imagesTr") {
        Ok(Layout::NnUnet)
    } else if has("candidates_V2.csv") || has("candidates.csv") {
        Ok(Layout::Luna16)
    } else if has("HGG") || has("LGG") {
        Ok(Layout::Brats)
    } else if any(&|n| n.starts_with("volume-")) {
        Ok(Layout::Lits)
    } else if any(&|n| n.starts_with("x_train") && n.ends_with(".npy")) {
        Ok(Layout::Cubes)
    } else {
        Err(Error::input(
            dir,
            "has no layout of labelled data that is known; give a CSV table, or a folder with dataset.json, candidates_V2.csv, HGG/LGG, volume-N.nii or x_train_….npy",
        ))
    }
}

/// Classes of a segmentation from those that a choice names, or from names and values in the data; with the background.
fn classes(choice: &Choice, found: &[(String, u32)]) -> (Vec<String>, Vec<u32>, Vec<Vec<u32>>) {
    let Some(chosen) = &choice.classes else {
        let mut found = found.to_vec();
        found.retain(|f| f.1 != 0);
        let names = std::iter::once("background".to_owned()).chain(found.iter().map(|f| f.0.clone())).collect();
        return (names, std::iter::once(0).chain(found.iter().map(|f| f.1)).collect(), Vec::new());
    };
    let named: Vec<u32> = chosen.iter().flat_map(|c| c.values.clone()).collect();
    let rest =
        std::iter::once(0).chain(found.iter().map(|f| f.1)).filter(|v| !named.contains(v)).collect::<std::collections::BTreeSet<_>>();
    (
        std::iter::once("background".to_owned()).chain(chosen.iter().map(|c| c.name.clone())).collect(),
        std::iter::once(0).chain(chosen.iter().map(|c| c.values.first().copied().unwrap_or(1))).collect(),
        std::iter::once(rest.into_iter().collect()).chain(chosen.iter().map(|c| c.values.clone())).collect(),
    )
}

/// How the outputs of a segmentation of so many classes are read: with one besides the background, as one logit.
fn output(classes: usize) -> Output {
    if classes == 2 { Output::Binary } else { Output::Multiclass }
}
