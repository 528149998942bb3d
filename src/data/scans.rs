//! Finding scans, and telling them from the label maps that lie beside them.
//!
//! A file is a label map if, in this order:
//! 1. its name is that of another file of the same folder plus a word such as `_mask`, `_seg`, `_organs`;
//! 2. its header says so (`intent_code` 1002);
//! 3. its values are whole numbers, none negative, and either at most 64 different ones, or at most
//!    1024 different ones that are almost constant over neighbours: three of four neighbouring pairs
//!    that are not background are equal.
//!
//! Reading stops at the first value that speaks against a label map, which in a CT scan is nearly at once.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::image;
use crate::error::{Error, Result};

/// What [`find`] found; both lists sorted by path.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Files to be taken as scans. A file that cannot be read is among them, so that reading it tells why.
    pub scans: Vec<PathBuf>,
    /// Files that are label maps, and how that was seen.
    pub left_out: Vec<(PathBuf, String)>,
}

/// Different values up to which whole numbers are labels without further evidence.
const FEW: usize = 64;
/// Different values up to which whole numbers can be labels.
const MANY: usize = 1024;
/// Share of equal neighbours that speaks for labels.
const EQUAL: f64 = 0.75;

/// Words that a label map's name adds to its scan's.
const WORDS: [&str; 15] = [
    "annotation",
    "gt",
    "label",
    "labelmap",
    "labels",
    "mask",
    "masks",
    "organs",
    "roi",
    "seg",
    "segm",
    "segmentation",
    "segmentations",
    "segs",
    "truth",
];

/// Searches files and folders (recursively; hidden entries are ignored) for scans by their names' endings ([`image::ENDINGS`]).
///
/// A file named directly may have any name; its content decides.
///
/// # Errors
/// An [`Error::Input`] for a missing path, a folder without scan files, or if every file is a label map.
pub fn find(inputs: &[PathBuf]) -> Result<Found> {
    let mut files = BTreeSet::new();
    for input in inputs {
        let meta = std::fs::metadata(input).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input(input, "no such file or folder"),
            _ => Error::io("read", input)(e),
        })?;
        if !meta.is_dir() {
            files.insert(input.clone());
            continue;
        }
        let before = files.len();
        let mut others = 0;
        walk(input, &mut BTreeSet::new(), &mut files, &mut others)?;
        if files.len() == before && !files.iter().any(|f| f.starts_with(input)) {
            let what = match others {
                0 => "is an empty folder".to_owned(),
                n => format!("holds {n} files, but none ends in {}", image::ENDINGS.join(", ")),
            };
            return Err(Error::input(input, format!("{what}; give a folder of NIfTI or MetaImage scans (DICOM has to be converted)")));
        }
    }
    let files = once_each(files);
    if files.is_empty() {
        return Err(Error::Usage("no scans were given; name files or folders".into()));
    }
    let verdicts: Vec<Option<String>> = files.par_iter().map(|f| named_after_a_scan(f).or_else(|| labels_inside(f))).collect();
    let mut found = Found { scans: Vec::new(), left_out: Vec::new() };
    for (file, verdict) in files.into_iter().zip(verdicts) {
        match verdict {
            None => found.scans.push(file),
            Some(reason) => found.left_out.push((file, reason)),
        }
    }
    match found.left_out.first() {
        Some((file, reason)) if found.scans.is_empty() => {
            let what = format!(
                "no scan was found; {} files were taken for label maps, the first being {} ({reason})",
                found.left_out.len(),
                file.display()
            );
            Err(Error::input(inputs.first().unwrap_or(file), what))
        }
        _ => Ok(found),
    }
}

fn walk(dir: &Path, visited: &mut BTreeSet<PathBuf>, files: &mut BTreeSet<PathBuf>, others: &mut usize) -> Result<()> {
    // Links may form circles.
    if !visited.insert(dir.canonicalize().map_err(Error::io("read", dir))?) {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        // A dangling link is kept if its name asks for it, and reported when it is read.
        if path.is_dir() {
            walk(&path, visited, files, others)?;
        } else if image::ending(&path).is_some() {
            files.insert(path);
        } else {
            *others += 1;
        }
    }
    Ok(())
}

/// Files that are the same one under two paths are kept under the first.
fn once_each(files: BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    files.into_iter().filter(|f| seen.insert(f.canonicalize().unwrap_or_else(|_| f.clone()))).collect()
}

/// The name of a scan in that of a label map: what stands before a word such as `_mask`, `_seg`, `_labels`; `None` without one.
pub fn without_word(stem: &str) -> Option<&str> {
    let (at, _) = stem.char_indices().rev().find(|&(_, c)| "_-. ".contains(c))?;
    WORDS.contains(&stem[at + 1..].to_ascii_lowercase().as_str()).then_some(&stem[..at])
}

/// Rule 1: the name is a sibling's plus a word.
fn named_after_a_scan(path: &Path) -> Option<String> {
    let stem = image::stem(path);
    let scan = without_word(&stem)?;
    let sibling = image::ENDINGS.map(|e| path.with_file_name(format!("{scan}{e}"))).into_iter().find(|p| p.is_file())?;
    Some(format!("named after {} with \"{}\" added", sibling.file_name().unwrap_or_default().to_string_lossy(), &stem[scan.len()..]))
}

/// Rules 2 and 3. A file that cannot be read is no label map.
fn labels_inside(path: &Path) -> Option<String> {
    if image::read_header(path).ok()?.labels {
        return Some("its header declares a label map".into());
    }
    let mut seen = Evidence::default();
    image::stream(path, &mut |values| seen.add(values)).ok()?;
    seen.verdict()
}

/// What the values seen so far say.
#[derive(Default)]
struct Evidence {
    refuted: bool,
    values: BTreeSet<u32>,
    last: f32,
    pairs: u64,
    equal: u64,
}

impl Evidence {
    fn add(&mut self, values: &[f32]) -> ControlFlow<()> {
        for &v in values {
            if v == self.last {
                if v > 0.0 {
                    self.pairs += 1;
                    self.equal += 1;
                }
                continue;
            }
            // Neighbours across the end of a row count too; they are few.
            if v > 0.0 && self.last > 0.0 {
                self.pairs += 1;
            }
            // Beyond 2^24 an f32 no longer tells whole numbers apart.
            if !(v >= 0.0 && v.fract() == 0.0 && v <= 16_777_216.0) {
                self.refuted = true;
            } else {
                self.values.insert(v as u32);
            }
            if self.refuted || self.values.len() > MANY {
                self.refuted = true;
                return ControlFlow::Break(());
            }
            self.last = v;
        }
        ControlFlow::Continue(())
    }

    fn verdict(&self) -> Option<String> {
        if self.refuted {
            return None;
        }
        // Zero is `last` at the start and so never inserted unless it comes back.
        let n = self.values.len().max(1);
        if n <= FEW {
            return Some(format!("holds only {n} different whole numbers, none negative"));
        }
        let share = self.equal as f64 / self.pairs.max(1) as f64;
        (share >= EQUAL)
            .then(|| format!("holds {n} different whole numbers, none negative, and {:.0} % of neighbours are equal", share * 100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(values: &[f32]) -> Option<String> {
        let mut e = Evidence::default();
        let _ = e.add(values);
        e.verdict()
    }

    #[test]
    fn values_tell_labels_from_images() {
        assert!(verdict(&[0.0, 1.0, 1.0, 2.0, 0.0]).unwrap().contains("3 different"));
        assert!(verdict(&[0.0; 9]).unwrap().contains("1 different"));
        assert!(verdict(&[0.0, -1.0]).is_none());
        assert!(verdict(&[0.0, 0.5]).is_none());
        assert!(verdict(&[0.0, f32::NAN]).is_none());
        let organs: Vec<f32> = (0..120u8).flat_map(|l| [f32::from(l); 10]).collect();
        assert!(verdict(&organs).unwrap().contains("neighbours are equal"));
        let ramp: Vec<f32> = (0..1000u16).map(|v| f32::from(v * 37 % 251)).collect();
        assert!(verdict(&ramp).is_none(), "an 8-bit image is no label map");
    }
}
