//! The archives of `LiTS` and `BraTS`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::classes::{Classes, chosen_channels, resolve};
use super::{Case, Choice, Class, Image, Part, Table, Truth, output};
use crate::data::image;
use crate::error::{Error, Result};

/// Folders within folders that are searched.
const DEPTH: usize = 6;

/// Scan files in `dir` and the folders below, sorted; hidden ones are left out.
pub(super) fn scans(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![(dir.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let path = entry.map_err(Error::io("read", &folder))?.path();
            if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
                continue;
            }
            if path.is_dir() {
                if depth < DEPTH {
                    folders.push((path, depth + 1));
                }
            } else if image::ending(&path).is_some() {
                found.insert(path);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Scans called `volume-N`, by number.
pub(super) fn volumes(dir: &Path) -> Result<BTreeMap<u32, PathBuf>> {
    numbered(&scans(dir)?, "volume-")
}

/// Files whose stem is `prefix` and a number.
fn numbered(files: &[PathBuf], prefix: &str) -> Result<BTreeMap<u32, PathBuf>> {
    let mut out = BTreeMap::new();
    for path in files {
        if let Some(n) = image::stem(path).strip_prefix(prefix).and_then(|n| n.parse().ok())
            && let Some(other) = out.insert(n, path.clone())
        {
            return Err(Error::input(path, format!("is there a second time as {}; keep one", other.display())));
        }
    }
    Ok(out)
}

/// LiTS-2017: `volume-N.nii` with `segmentation-N.nii`, also in folders below; cases 0–99, 100–114 and 115–129 are the published
/// parts (method reference, section 8).
pub(super) fn lits(dir: &Path, choice: &Choice) -> Result<Table> {
    let all = scans(dir)?;
    let (volumes, masks) = (numbered(&all, "volume-")?, numbered(&all, "segmentation-")?);
    if let Some((n, path)) = masks.iter().find(|(n, _)| !volumes.contains_key(n)) {
        return Err(Error::input(path, format!("has no volume-{n} to go with it")));
    }
    let mut cases = Vec::new();
    for (n, path) in volumes {
        let mask = masks.get(&n).ok_or_else(|| Error::input(&path, format!("has no segmentation-{n} to go with it")))?;
        let part = match n {
            0..=99 => Part::Train,
            100..=114 => Part::Validation,
            115..=129 => Part::Test,
            _ => return Err(Error::input(&path, "has a number that is in none of the published parts, which end at 129")),
        };
        let id = format!("volume-{n}");
        let group = id.as_str().into();
        let truth = Truth::Mask(Image::Scan(mask.clone()));
        cases.push(Case { id, images: [Image::Scan(path)].into(), truth, point: None, group, part: Some(part) });
    }
    let named = [("liver", 1), ("tumour", 2)];
    let Classes { names, values, merged } = known(dir, choice, &named)?;
    let output = output(names.len());
    let channels = vec!["CT".to_owned()];
    Ok(Table { cases, classes: names, values, merged, channels, output, folds: Vec::new(), notes: Vec::new() })
}

/// Modalities of `BraTS`, as its file names have them.
const MODALITIES: [&str; 4] = ["flair", "t1", "t1ce", "t2"];

/// BraTS-2018: `{HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz`. The modality is that of the file name.
pub(super) fn brats(dir: &Path, choice: &Choice) -> Result<Table> {
    let all = MODALITIES.map(str::to_owned);
    let used = chosen_channels(choice.channels.as_deref(), &all).map_err(|what| Error::input(dir, what))?;
    let mut cases = Vec::new();
    for grade in ["HGG", "LGG"] {
        let folder = dir.join(grade);
        if !folder.is_dir() {
            continue;
        }
        let mut patients: Vec<PathBuf> =
            std::fs::read_dir(&folder).map_err(Error::io("read", &folder))?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
        patients.sort();
        for patient in patients {
            let id = patient.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if id.starts_with('.') {
                continue;
            }
            let file = |what: &str| {
                let found = image::ENDINGS.iter().map(|e| patient.join(format!("{id}_{what}{e}"))).find(|p| p.is_file());
                found.map(Image::Scan).ok_or_else(|| Error::input(&patient, format!("has no {id}_{what}.nii.gz")))
            };
            let wanted = used.iter().map(|&c| file(MODALITIES[c])).collect::<Result<Vec<_>>>()?;
            let (truth, group) = (Truth::Mask(file("seg")?), id.as_str().into());
            cases.push(Case { id, images: wanted.into(), truth, point: None, group, part: None });
        }
    }
    let named = [("necrosis", 1), ("oedema", 2), ("enhancing tumour", 4)];
    let Classes { names, values, merged } = known(dir, choice, &named)?;
    let output = output(names.len());
    let channels = used.iter().map(|&c| all[c].clone()).collect();
    Ok(Table { cases, classes: names, values, merged, channels, output, folds: Vec::new(), notes: Vec::new() })
}

/// Classes of a layout that has names for its labels.
fn known(dir: &Path, choice: &Choice, named: &[(&str, u32)]) -> Result<Classes> {
    let named: Vec<Class> = named.iter().map(|&(name, v)| Class { name: name.into(), values: vec![v] }).collect();
    resolve(choice.classes.as_deref(), &named).map_err(|what| Error::input(dir, what))
}
