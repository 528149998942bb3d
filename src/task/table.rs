//! Labelled data: which scan belongs to which truth, and to which part of the set.
//!
//! [`read`] tells the layout by what lies there (see [`Layout`]) and checks that files exist, grids agree and places lie in
//! their scans; [`parts`] divides the cases.

mod check;
mod classes;
mod csv;
mod cubes;
mod folders;
mod luna;
mod nnunet;
mod split;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use classes::{Classes, class_of};
pub use cubes::read_cube;
pub use split::{Division, parts};

use super::{Kind, Output};
use crate::data::image;
use crate::data::volume::Volume;
use crate::error::{Error, Result};

/// Where an image or a mask is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Image {
    /// A scan file.
    Scan(PathBuf),
    /// One of the volumes of a scan file.
    Volume {
        /// The file.
        path: PathBuf,
        /// Which one, from 0.
        index: usize,
    },
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
            Self::Scan(path) | Self::Volume { path, .. } | Self::Cube { path, .. } => path,
        }
    }

    /// The volume in a scan file; `None` for a cube, which lies nowhere: see [`read_cube`].
    ///
    /// # Errors
    /// As [`image::read`].
    pub fn volume(&self) -> Option<Result<Volume>> {
        match self {
            Self::Scan(path) => Some(image::read(path)),
            Self::Volume { path, index } => Some(image::read_volume(path, *index)),
            Self::Cube { .. } => None,
        }
    }
}

/// One labelled example.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Unique name.
    pub id: String,
    /// One image a channel; shared by the cases of one scan.
    pub images: Arc<[Image]>,
    /// The truth.
    pub truth: Truth,
    /// The place in the scan, millimetres to the right, anterior, superior (RAS+), for tasks about places.
    pub point: Option<[f64; 3]>,
    /// Cases of one group (a patient) are never divided among parts.
    pub group: Arc<str>,
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
    /// The word used for it in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

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
    /// The cases; ids are unique.
    pub cases: Vec<Case>,
    /// Names of the classes. Segmentation: the background first. Binary classification: two names, "no" first.
    pub classes: Vec<String>,
    /// Segmentation: the value of each class in label maps, that of the background (0) first. Empty otherwise.
    pub values: Vec<u32>,
    /// Segmentation: which values of label maps count as each class, where that is not `values`. Empty otherwise.
    pub merged: Vec<Vec<u32>>,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// What the outputs are.
    pub output: Output,
    /// Cross-validation that comes with the data.
    pub folds: Vec<Fold>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// A fold of a cross-validation that comes with the data, by ids of cases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    /// To learn from.
    pub train: Vec<String>,
    /// To validate on.
    pub validation: Vec<String>,
}

/// How the files of a data set lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A CSV table of images and masks or labels; its columns are described in `table/csv.rs` and the README.
    Csv,
    /// `imagesTr`, `labelsTr` and `dataset.json`, as nnU-Net and the Medical Segmentation Decathlon have them.
    NnUnet,
    /// `subset0` … `subset9` of `MetaImage` scans with `candidates_V2.csv` or `candidates.csv`.
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
    /// Segmentation: classes other than the background, each with the label values that count as it. Classification: the
    /// classes to use, in this order.
    pub classes: Option<Vec<Class>>,
}

/// A class that a recipe names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Name.
    pub name: String,
    /// Label values that count as it; the first is the value that predictions have. Without any, those that the data give
    /// to this name.
    #[serde(default)]
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
    ("luna16-ncc", include_str!("table/recipes/luna16-ncc.toml")),
    ("lidc-ncs", include_str!("table/recipes/lidc-ncs.toml")),
    ("lits-lcs", include_str!("table/recipes/lits-lcs.toml")),
    ("brats-bms", include_str!("table/recipes/brats-bms.toml")),
];

impl Recipe {
    /// A recipe from its text: the table `[data]`, and settings.
    ///
    /// # Errors
    /// A sentence about text that is not TOML, and about an unknown key or a wrong value of `[data]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let one_line = |e: &dyn std::fmt::Display| e.to_string().trim().replace('\n', " ");
        let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| format!("is not TOML ({})", one_line(&e.message())))?;
        let data = match table.remove("data") {
            None => Choice::default(),
            Some(data) => data.try_into().map_err(|e: toml::de::Error| format!("[data]: {}", one_line(&e.message())))?,
        };
        Ok(Self { data, settings: toml::to_string(&table).map_err(|e| one_line(&e))? })
    }
}

/// The recipe called `name`, or that in the file `name` if it ends in `.toml`.
///
/// # Errors
/// [`Error::Usage`] for another name, [`Error::Input`] for a file that is no recipe.
pub fn recipe(name: &str) -> Result<Recipe> {
    if name.ends_with(".toml") {
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        return Recipe::parse(&text).map_err(|what| Error::input(path, what));
    }
    let text = RECIPES.iter().find(|r| r.0 == name).map(|r| r.1).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().map(|r| r.0).collect();
        Error::Usage(format!("there is no recipe `{name}`; there are {}, and files that end in .toml", names.join(", ")))
    })?;
    Recipe::parse(text).map_err(|what| Error::Usage(format!("recipe {name} {what}")))
}

/// Reads the labelled data at `path` for a task of `kind`, as `choice` says where it says something.
///
/// # Errors
/// What is missing or contradicts itself, with the file and the row or case.
pub fn read(path: &Path, kind: Kind, choice: Option<&Choice>) -> Result<Table> {
    let choice = choice.cloned().unwrap_or_default();
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(path, "no such file or folder"),
        _ => Error::io("read", path)(e),
    })?;
    let layout = match choice.layout {
        Some(layout) => layout,
        None => told(path)?.ok_or_else(|| {
            Error::input(
                path,
                "has no layout of labelled data that is known; give a CSV table, or a folder with dataset.json, candidates_V2.csv, HGG or LGG, volume-N.nii or x_train_….npy",
            )
        })?,
    };
    if meta.is_file() != (layout == Layout::Csv) {
        let expected = if meta.is_file() { "a folder" } else { "a CSV file" };
        return Err(Error::input(path, format!("is something else than the layout asks for, which is {expected}")));
    }
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
    let mut table = match layout {
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
    check::check(path, &table)?;
    if kind == Kind::Segment && layout == Layout::Csv {
        classes::from_masks(path, &mut table, &choice)?;
    }
    Ok(table)
}

/// The layout of a table or a folder; `None` for a folder of another kind.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be listed.
pub fn told(path: &Path) -> Result<Option<Layout>> {
    if path.is_file() {
        return Ok(Some(Layout::Csv));
    }
    let names: Vec<String> =
        std::fs::read_dir(path).map_err(Error::io("read", path))?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|n| test(n));
    Ok(if has("dataset.json") || has("imagesTr") {
        Some(Layout::NnUnet)
    } else if luna::candidates(path).is_some() {
        Some(Layout::Luna16)
    } else if has("HGG") || has("LGG") {
        Some(Layout::Brats)
    } else if any(&|n| n.starts_with("x_train") && n.ends_with(".npy")) {
        Some(Layout::Cubes)
    } else if !folders::volumes(path)?.is_empty() {
        Some(Layout::Lits)
    } else {
        None
    })
}

/// How the outputs of a segmentation of so many classes are read: with one besides the background, as one logit.
fn output(classes: usize) -> Output {
    if classes == 2 { Output::Binary } else { Output::Multiclass }
}

/// The known name nearest to `name`, as the end of a sentence; empty if none is near.
fn near_miss<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|k| (strsim::jaro_winkler(&k.to_lowercase(), &name.to_lowercase()), k));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((similar, k)) if similar >= 0.84 => format!("; did you mean `{k}`?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn checked_in_recipes_are_read_whole() {
        for (name, _) in RECIPES {
            let r = recipe(name).unwrap();
            assert!(r.data.layout.is_some(), "{name}");
            let mut settings: toml::Table = r.settings.parse().unwrap();
            assert!(settings.remove("finetune").is_some(), "{name}");
            let config = Config::default().overlay_toml(&settings.to_string()).unwrap();
            config.validate().unwrap();
            assert_eq!(config.cube.size, [64, 64, 32]);
        }
        assert!(recipe("luna").unwrap_err().to_string().contains("luna16-ncc"));
        assert!(Recipe::parse("[data]\nlayuot = \"lits\"\n").unwrap_err().contains("layuot"));
        assert!(Recipe::parse("[data]\nlayout = \"lits2\"\n").unwrap_err().contains("lits2"));
        assert!(Recipe::parse("[data\n").unwrap_err().contains("TOML"));
    }
}
