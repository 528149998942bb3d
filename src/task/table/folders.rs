//! The archives of LiTS and BraTS.

use std::path::{Path, PathBuf};

use super::{Case, Choice, Image, Part, Table, Truth, classes, output};
use crate::data::image;
use crate::error::{Error, Result};

/// The entries of a folder, sorted by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out: Vec<PathBuf> = std::fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten().map(|e| e.path()).collect();
    out.sort();
    Ok(out)
}

/// LiTS-2017: `volume-N.nii` with `segmentation-N.nii`, also in folders below; cases 0–99, 100–114 and 115–129 are the published
/// parts (method reference, section 8).
pub(super) fn lits(dir: &Path, choice: &Choice) -> Result<Table> {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() && folders.len() < 64 {
                folders.push(path);
            } else if image::ending(&path).is_some() {
                all.push(path);
            }
        }
    }
    all.sort();
    let number = |path: &Path, prefix: &str| -> Option<u32> { image::stem(path).strip_prefix(prefix)?.parse().ok() };
    let mut cases = Vec::new();
    for path in &all {
        let Some(n) = number(path, "volume-") else { continue };
        let mask = all.iter().find(|p| number(p, "segmentation-") == Some(n));
        let mask = mask.ok_or_else(|| Error::input(path, format!("has no segmentation-{n} beside it")))?;
        let part = match n {
            0..=99 => Part::Train,
            100..=114 => Part::Validation,
            _ => Part::Test,
        };
        let id = format!("volume-{n}");
        let (images, truth) = (vec![Image::Scan(path.clone())], Truth::Mask(Image::Scan(mask.clone())));
        cases.push(Case { id: id.clone(), images, truth, point: None, group: id, part: Some(part) });
    }
    let (names, values, merged) = classes(choice, &[("liver".into(), 1), ("tumour".into(), 2)]);
    let output = output(names.len());
    Ok(Table { cases, classes: names, values, merged, channels: vec!["CT".into()], output, notes: Vec::new() })
}

/// Modalities of BraTS, as its file names have them.
const MODALITIES: [&str; 4] = ["flair", "t1", "t1ce", "t2"];

/// BraTS-2018: `{HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz`. The modality is that of the file name.
pub(super) fn brats(dir: &Path, choice: &Choice) -> Result<Table> {
    let channels: Vec<String> = choice.channels.clone().unwrap_or_else(|| MODALITIES.map(str::to_owned).to_vec());
    if let Some(wrong) = channels.iter().find(|c| !MODALITIES.contains(&c.as_str())) {
        return Err(Error::Usage(format!("BraTS has no modality `{wrong}`, only {}", MODALITIES.join(", "))));
    }
    let mut cases = Vec::new();
    for grade in ["HGG", "LGG"] {
        let folder = dir.join(grade);
        if !folder.is_dir() {
            continue;
        }
        for patient in entries(&folder)?.into_iter().filter(|p| p.is_dir()) {
            let id = patient.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let file = |what: &str| {
                let found = image::ENDINGS.iter().map(|e| patient.join(format!("{id}_{what}{e}"))).find(|p| p.is_file());
                found.ok_or_else(|| Error::input(&patient, format!("has no {id}_{what}.nii.gz")))
            };
            let images = channels.iter().map(|c| file(c).map(Image::Scan)).collect::<Result<_>>()?;
            cases.push(Case { id: id.clone(), images, truth: Truth::Mask(Image::Scan(file("seg")?)), point: None, group: id, part: None });
        }
    }
    let (names, values, merged) = classes(choice, &[("necrosis".into(), 1), ("oedema".into(), 2), ("enhancing tumour".into(), 4)]);
    let output = output(names.len());
    Ok(Table { cases, classes: names, values, merged, channels, output, notes: Vec::new() })
}
