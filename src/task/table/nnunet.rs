//! Folders as nnU-Net (`channel_names`, `case_0000.nii.gz`) and the Medical Segmentation Decathlon (`modality`, `training`,
//! several channels in one file) have them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::classes::{Classes, chosen_channels, pick, resolve};
use super::{Case, Choice, Class, Fold, Image, Part, Table, Truth, output};
use crate::data::image;
use crate::error::{Error, Result};

/// Cross-validation that nnU-Net has drawn.
const FOLDS: &str = "splits_final.json";

pub(super) fn read(dir: &Path, choice: &Choice) -> Result<Table> {
    let about = dir.join("dataset.json");
    let wrong = |what: String| Error::input(&about, what);
    let json = json(&about)?;
    let all = channels(&json).map_err(wrong)?;
    let used = chosen_channels(choice.channels.as_deref(), &all).map_err(wrong)?;
    let named = labels(&json).map_err(wrong)?;
    let Classes { names, values, merged } = resolve(choice.classes.as_deref(), &named).map_err(wrong)?;
    let source = Source { dir, all: &all, used: &used, ending: json["file_ending"].as_str() };
    let mut cases = Vec::new();
    if let Some(listed) = json["dataset"].as_object() {
        for (id, entry) in listed {
            let file = |v: &Value| v.as_str().map(|p| dir.join(p));
            let images: Option<Vec<PathBuf>> = entry["images"].as_array().and_then(|l| l.iter().map(file).collect());
            let (Some(images), Some(mask)) = (images, file(&entry["label"])) else {
                return Err(wrong(format!("lists case `{id}` under `dataset` without `images` and a `label`")));
            };
            if images.len() != all.len() {
                return Err(wrong(format!("lists case `{id}` with {} images, but there are {} channels", images.len(), all.len())));
            }
            cases.push(case(id, pick(images.into_iter().map(Image::Scan).collect(), &used), mask, None));
        }
    } else if let Some(listed) = json["training"].as_array() {
        for entry in listed {
            let (Some(image), Some(mask)) = (entry["image"].as_str(), entry["label"].as_str()) else {
                return Err(wrong(format!("lists {entry} under `training`, but an `image` and its `label` were expected")));
            };
            let (image, mask) = (dir.join(image.trim_start_matches("./")), dir.join(mask.trim_start_matches("./")));
            let id = image::stem(&mask);
            cases.push(case(&id, source.images(&image)?, mask, None));
        }
    } else {
        for mask in scans(&dir.join("labelsTr"))? {
            let image = dir.join("imagesTr").join(mask.file_name().unwrap_or_default());
            cases.push(case(&image::stem(&mask), source.images(&image)?, mask, None));
        }
    }
    // Test images are worth something only where their truth is there too.
    if dir.join("labelsTs").is_dir() {
        for mask in scans(&dir.join("labelsTs"))? {
            let image = dir.join("imagesTs").join(mask.file_name().unwrap_or_default());
            cases.push(case(&image::stem(&mask), source.images(&image)?, mask, Some(Part::Test)));
        }
    }
    let mut notes = Vec::new();
    let splits = dir.join(FOLDS);
    let folds = if splits.is_file() { folds(&splits)? } else { Vec::new() };
    if !folds.is_empty() {
        notes.push(format!("{} divides the cases into {} folds", splits.display(), folds.len()));
    }
    let output = output(names.len());
    let channels = used.iter().map(|&c| all[c].clone()).collect();
    Ok(Table { cases, classes: names, values, merged, channels, output, folds, notes })
}

fn case(id: &str, images: std::sync::Arc<[Image]>, mask: PathBuf, part: Option<Part>) -> Case {
    Case { id: id.to_owned(), images, truth: Truth::Mask(Image::Scan(mask)), point: None, group: id.into(), part }
}

/// The JSON in a file.
fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::input(path, "does not exist; a folder with imagesTr needs it for the names of channels and labels")
        }
        _ => Error::io("read", path)(e),
    })?;
    serde_json::from_slice(&text).map_err(|e| Error::input(path, format!("is not JSON ({e})")))
}

/// How the images of a folder are found.
struct Source<'a> {
    dir: &'a Path,
    /// Names of all channels.
    all: &'a [String],
    /// Those that are used.
    used: &'a [usize],
    /// Ending of all files, if it is said.
    ending: Option<&'a str>,
}

impl Source<'_> {
    /// The images of the case whose image would be called `whole` if it were one file: one file a channel
    /// (`case_0000.nii.gz`), one file for the only channel, or one volume a channel in one file.
    fn images(&self, whole: &Path) -> Result<std::sync::Arc<[Image]>> {
        let stem = image::stem(whole);
        let endings = self.ending.into_iter().chain(image::ending(whole)).chain(image::ENDINGS);
        let sibling = |name: &str| endings.clone().map(|e| whole.with_file_name(format!("{name}{e}"))).find(|p| p.is_file());
        let apart: Vec<Option<PathBuf>> = self.used.iter().map(|c| sibling(&format!("{stem}_{c:04}"))).collect();
        if let Some(files) = apart.iter().cloned().collect::<Option<Vec<_>>>() {
            return Ok(files.into_iter().map(Image::Scan).collect());
        }
        let missing = || {
            let gap = apart.iter().position(Option::is_none).unwrap_or(0);
            let expected = format!("{stem}_{:04} ({})", self.used[gap], self.all[self.used[gap]]);
            let folder = whole.parent().unwrap_or(self.dir);
            Error::input(folder, format!("has no image {expected}, nor one called {stem}"))
        };
        let together = if whole.is_file() { whole.to_path_buf() } else { sibling(&stem).ok_or_else(missing)? };
        if self.all.len() == 1 {
            return Ok([Image::Scan(together)].into());
        }
        let volumes = image::read_series_header(&together)?.volumes;
        if volumes != self.all.len() {
            let what = format!("holds {volumes} volumes, but dataset.json names {} channels ({})", self.all.len(), self.all.join(", "));
            return Err(Error::input(together, what));
        }
        Ok(self.used.iter().map(|&index| Image::Volume { path: together.clone(), index }).collect())
    }
}

/// Scan files of a folder, sorted; hidden ones, which archives of other systems carry, are left out.
fn scans(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(dir, "does not exist, but the layout has it"),
        _ => Error::io("read", dir)(e),
    })?;
    let mut out: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    out.retain(|p| image::ending(p).is_some() && !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')));
    out.sort();
    Ok(out)
}

/// The labels besides the background, by their lowest value: `{"0": "background"}`, `{"background": 0}` or, for regions,
/// `{"tumour": [1, 2, 3]}`.
fn labels(json: &Value) -> Result<Vec<Class>, String> {
    let entries = json["labels"].as_object().ok_or("lacks `labels`")?;
    let number = |v: &Value| v.as_u64().or_else(|| v.as_str()?.parse().ok()).and_then(|v| u32::try_from(v).ok());
    let mut out = Vec::new();
    for (key, value) in entries {
        let strange = || format!("has the label `{key}`: {value}, but a name and a whole number were expected");
        let class = match (key.parse::<u32>(), value) {
            (Ok(v), Value::String(name)) if number(value).is_none() => Class { name: name.clone(), values: vec![v] },
            (_, Value::Array(list)) => {
                Class { name: key.clone(), values: list.iter().map(number).collect::<Option<_>>().ok_or_else(strange)? }
            }
            (_, other) => Class { name: key.clone(), values: vec![number(other).ok_or_else(strange)?] },
        };
        if class.name.eq_ignore_ascii_case("ignore") {
            return Err("has a label `ignore` for voxels without a truth, which is not supported; give these voxels a label or leave their cases out".into());
        }
        if class.values.is_empty() {
            return Err(strange());
        }
        out.push(class);
    }
    out.retain(|c| c.values != [0]);
    out.sort_by_key(|c| c.values.iter().min().copied());
    Ok(out)
}

/// Names of the channels in order: `{"0": "CT"}`.
fn channels(json: &Value) -> Result<Vec<String>, String> {
    let entries = ["channel_names", "modality"].iter().find_map(|k| json[*k].as_object()).ok_or("lacks `channel_names` (or `modality`)")?;
    let mut out: BTreeMap<usize, String> = BTreeMap::new();
    for (key, value) in entries {
        let i = key.parse().map_err(|_| format!("has a channel numbered `{key}`"))?;
        out.insert(i, value.as_str().unwrap_or("channel").to_owned());
    }
    if out.is_empty() || out.keys().copied().ne(0..entries.len()) {
        return Err("does not number its channels 0, 1, 2 …".into());
    }
    Ok(out.into_values().collect())
}

/// The folds of a `splits_final.json`: a list of `{"train": [ids], "val": [ids]}`.
///
/// # Errors
/// Another content, or a case that a fold has in both lists.
pub(super) fn folds(path: &Path) -> Result<Vec<Fold>> {
    let strange = || Error::input(path, "holds something else than a list of {\"train\": [ids], \"val\": [ids]}");
    let json = json(path)?;
    let mut out = Vec::new();
    for (n, fold) in json.as_array().ok_or_else(strange)?.iter().enumerate() {
        let list = |key: &str| -> Result<Vec<String>> {
            let ids = fold[key].as_array().ok_or_else(strange)?;
            ids.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(strange)).collect()
        };
        let (train, validation) = (list("train")?, list("val")?);
        if let Some(both) = validation.iter().find(|v| train.contains(v)) {
            return Err(Error::input(path, format!("has case `{both}` both to train and to validate with in fold {n}")));
        }
        out.push(Fold { train, validation });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_three_styles_are_read() {
        let of = |text: &str| labels(&serde_json::from_str(text).unwrap());
        let class = |name: &str, values: &[u32]| Class { name: name.into(), values: values.to_vec() };
        let two = vec![class("liver", &[1]), class("tumour", &[2])];
        assert_eq!(of(r#"{"labels": {"0": "background", "2": "tumour", "1": "liver"}}"#), Ok(two.clone()));
        assert_eq!(of(r#"{"labels": {"background": 0, "tumour": 2, "liver": 1}}"#), Ok(two));
        let regions = of(r#"{"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}}"#).unwrap();
        assert_eq!(regions, [class("whole", &[1, 2, 3]), class("core", &[2, 3])]);
        for (text, part) in [
            (r#"{}"#, "lacks `labels`"),
            (r#"{"labels": {"a": 1, "ignore": 2}}"#, "`ignore`"),
            (r#"{"labels": {"a": -1}}"#, "`a`: -1"),
            (r#"{"labels": {"a": [1, "x"]}}"#, "whole number"),
            (r#"{"labels": {"a": []}}"#, "whole number"),
        ] {
            let e = of(text).unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn channels_are_numbered_from_zero() {
        let of = |text: &str| channels(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"modality": {"1": "T1", "0": "FLAIR"}}"#).unwrap(), ["FLAIR", "T1"]);
        assert!(of(r#"{"channel_names": {"1": "CT"}}"#).is_err() && of("{}").is_err());
    }
}
