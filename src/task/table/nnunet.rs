//! Folders as nnU-Net (`channel_names`, `case_0000.nii.gz`) and the Medical Segmentation Decathlon (`modality`, `training`) have them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Case, Choice, Image, Part, Table, Truth, classes, output};
use crate::data::image;
use crate::error::{Error, Result};

pub(super) fn read(dir: &Path, choice: &Choice) -> Result<Table> {
    let path = dir.join("dataset.json");
    let text = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::input(&path, "does not exist; a folder with imagesTr needs it for the names of channels and labels")
        }
        _ => Error::io("read", &path)(e),
    })?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| Error::input(&path, format!("is not JSON ({e})")))?;
    let named = labels(&json).map_err(|what| Error::input(&path, what))?;
    let all_channels = channels(&json).map_err(|what| Error::input(&path, what))?;
    let used: Vec<(usize, String)> = match &choice.channels {
        None => all_channels.iter().cloned().enumerate().collect(),
        Some(wanted) => wanted
            .iter()
            .map(|w| {
                let i = all_channels.iter().position(|c| c.eq_ignore_ascii_case(w));
                let i = i.ok_or_else(|| Error::input(&path, format!("has no channel `{w}`, only {}", all_channels.join(", "))))?;
                Ok((i, all_channels[i].clone()))
            })
            .collect::<Result<_>>()?,
    };
    let masks = files(&dir.join("labelsTr"))?;
    let images = files(&dir.join("imagesTr"))?;
    let by_stem: BTreeMap<String, &PathBuf> = images.iter().map(|p| (image::stem(p), p)).collect();
    let mut cases = Vec::new();
    for mask in masks {
        let id = image::stem(&mask);
        let mut files = Vec::new();
        for &(channel, ref name) in &used {
            // The Decathlon's single-channel images have no number.
            let found =
                by_stem.get(&format!("{id}_{channel:04}")).or_else(|| if all_channels.len() == 1 { by_stem.get(&id) } else { None });
            match found {
                Some(p) => files.push(Image::Scan((*p).clone())),
                None if by_stem.contains_key(&id) => {
                    return Err(Error::input(
                        by_stem[&id],
                        format!(
                            "stands for {} channels; save each of them as a volume of its own ({id}_0000, {id}_0001 …)",
                            all_channels.len()
                        ),
                    ));
                }
                None => return Err(Error::input(&mask, format!("has no image {id}_{channel:04} ({name}) in imagesTr"))),
            }
        }
        cases.push(Case { id: id.clone(), images: files, truth: Truth::Mask(Image::Scan(mask)), point: None, group: id, part: None });
    }
    let mut notes = Vec::new();
    if let Some(found) = folds(dir, &mut cases)? {
        notes.push(found);
    }
    let (names, values, merged) = classes(choice, &named);
    let output = output(names.len());
    Ok(Table { cases, classes: names, values, merged, channels: used.into_iter().map(|u| u.1).collect(), output, notes })
}

/// Scan files of a folder, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(dir, "does not exist, but the layout has it"),
        _ => Error::io("read", dir)(e),
    })?;
    let mut out: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    // The Decathlon's archives carry the files of another system beside each.
    out.retain(|p| image::ending(p).is_some() && !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')));
    out.sort();
    Ok(out)
}

/// Names and values of the labels, in the order of values: `{"0": "background"}` or `{"background": 0}`.
fn labels(json: &Value) -> Result<Vec<(String, u32)>, String> {
    let entries = json["labels"].as_object().ok_or("lacks `labels`")?;
    let mut out = Vec::new();
    for (key, value) in entries {
        let pair = match (key.parse::<u32>(), value) {
            (Ok(v), Value::String(name)) => (name.clone(), v),
            (_, Value::Number(n)) => {
                let v = n.as_u64().and_then(|v| u32::try_from(v).ok()).ok_or_else(|| format!("has the label value {n}"))?;
                (key.clone(), v)
            }
            (_, Value::Array(_)) => {
                return Err(format!("defines `{key}` as a region of several labels, which is not supported; merge them in the masks"));
            }
            _ => return Err(format!("has the label `{key}`: {value}, which is neither a name nor a number")),
        };
        if pair.0 == "ignore" {
            return Err("has an `ignore` label, which is not supported; give these voxels a label".into());
        }
        out.push(pair);
    }
    out.sort_by_key(|p| p.1);
    if out.len() < 2 {
        return Err("names fewer than two labels".into());
    }
    Ok(out)
}

/// Names of the channels in order: `{"0": "CT"}`.
fn channels(json: &Value) -> Result<Vec<String>, String> {
    let entries = ["channel_names", "modality"].iter().find_map(|k| json[*k].as_object()).ok_or("lacks `channel_names` (or `modality`)")?;
    let mut out: Vec<(usize, String)> = Vec::new();
    for (key, value) in entries {
        let i = key.parse().map_err(|_| format!("numbers a channel `{key}`"))?;
        out.push((i, value.as_str().unwrap_or("channel").to_owned()));
    }
    out.sort();
    if out.iter().enumerate().any(|(i, c)| c.0 != i) || out.is_empty() {
        return Err("does not number its channels 0, 1, 2 …".into());
    }
    Ok(out.into_iter().map(|c| c.1).collect())
}

/// Takes fold 0 of `splits_final.json` for validation, if it is there.
fn folds(dir: &Path, cases: &mut [Case]) -> Result<Option<String>> {
    let path = dir.join("splits_final.json");
    let Ok(text) = std::fs::read(&path) else { return Ok(None) };
    let json: Value = serde_json::from_slice(&text).map_err(|e| Error::input(&path, format!("is not JSON ({e})")))?;
    let names = |key: &str| -> Vec<String> {
        json[0][key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let (train, val) = (names("train"), names("val"));
    for case in cases.iter_mut() {
        case.part = if val.contains(&case.id) {
            Some(Part::Validation)
        } else if train.contains(&case.id) {
            Some(Part::Train)
        } else {
            Some(Part::Test)
        };
    }
    Ok(Some(format!("{}: its first fold divides the cases", path.display())))
}
