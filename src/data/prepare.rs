//! From scan files to a prepared store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rand::seq::SliceRandom;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::frame::Frame;
use super::image::{self, Header};
use super::recipe::{MAX_VOXELS, Recipe};
use super::scans;
use super::store::{self, Absent, Index, ScanRecord, Split, Store};
use super::volume::{spacing, voxels};
use crate::config::{Config, Prepare};
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};

/// Memory that the scans worked on at the same time may take together; a larger scan is worked on alone.
const MEMORY_BYTES: usize = 2 << 30;
/// Spacing that a set may have, in mm.
const SPACINGS: std::ops::RangeInclusive<f64> = 0.05..=50.0;
/// Longest id in bytes, so that file names stay within 255.
const ID_BYTES: usize = 200;

/// What [`prepare`] reports while it works.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// The inputs were searched.
    Found {
        /// Number of scans.
        scans: usize,
        /// Label maps, and how they were told from scans.
        left_out: Vec<(PathBuf, String)>,
    },
    /// Headers and hashes: so many of `total` are done.
    Read {
        /// Scans done.
        done: usize,
        /// All scans.
        total: usize,
    },
    /// The store in place was made from the same scans with the same settings; nothing is done.
    Reused {
        /// Scans in it.
        scans: usize,
    },
    /// The common geometry is known.
    Grid {
        /// Voxel size in mm.
        spacing: [f64; 3],
        /// Voxels.
        grid: [usize; 3],
    },
    /// Something a user should know about one file, which is used nevertheless.
    Note {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A file that is left out because of `prepare.keep_going`.
    Skipped {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// One more scan is in the store.
    Written {
        /// Scans done.
        done: usize,
        /// All scans.
        total: usize,
    },
}

/// A scan whose header was read.
struct Candidate {
    path: PathBuf,
    sha256: String,
    header: Header,
}

/// Prepares the scans in `inputs` (files or folders) into the store `out`.
///
/// All volumes get one orientation (+x left, +y posterior, +z superior), one spacing, one grid and values in `[0, 1]`.
/// A store that was made from the same files with the same settings is kept. The result does not
/// depend on the number of threads. With `prepare.keep_going`, the common spacing and grid are those of all scans whose
/// header could be read.
///
/// # Errors
/// Missing or empty inputs, no scan among them, an unusable scan (unless `prepare.keep_going`), a folder `out` that
/// holds something else, or a failed write.
pub fn prepare(inputs: &[PathBuf], out: &Path, config: &Config, on: &mut dyn FnMut(Progress)) -> Result<Store> {
    prepare_if(inputs, out, config, &|_, _| Ok(()), on)
}

/// As [`prepare`], but only if `fits` accepts the number of scans and the common grid, before anything is written.
///
/// # Errors
/// As [`prepare`], and what `fits` returns.
pub fn prepare_if(
    inputs: &[PathBuf],
    out: &Path,
    config: &Config,
    fits: &dyn Fn(usize, [usize; 3]) -> Result<()>,
    on: &mut dyn FnMut(Progress),
) -> Result<Store> {
    let settings = &config.prepare;
    config.validate()?;
    store::check_place(out)?;
    let found = scans::find(inputs)?;
    on(Progress::Found { scans: found.scans.len(), left_out: found.left_out.clone() });

    let total = found.scans.len();
    let mut done = 0;
    let read = in_waves(
        &found.scans,
        |_| 0,
        false,
        |path| (hash_scan(path).unwrap_or_default(), image::read_header(path)),
        |_| {
            done += 1;
            on(Progress::Read { done, total });
        },
    );
    let inputs_now: Vec<(PathBuf, String)> = found.scans.iter().zip(&read).map(|(p, (sha, _))| (absolute(p), sha.clone())).collect();
    if let Ok(old) = Store::open(out)
        && unchanged(old.index(), settings, config.seed, &inputs_now)
    {
        fits(old.scans().len(), old.grid())?;
        on(Progress::Reused { scans: old.scans().len() });
        return Ok(old);
    }

    let mut failed = Vec::new();
    let mut candidates = Vec::new();
    for (path, (sha256, header)) in found.scans.iter().zip(read) {
        match header {
            Ok(header) => candidates.push(Candidate { path: path.clone(), sha256, header }),
            Err(e) => skip(settings, path, &sha256, e, &mut failed, on)?,
        }
    }
    notes_before(&candidates, on);
    let recipe = recipe(&candidates, settings, inputs)?;
    let grid = recipe.grid.unwrap_or_default();
    on(Progress::Grid { spacing: recipe.spacing, grid });
    fits(candidates.len(), grid)?;

    store::begin(out)?;
    let ids = ids(&candidates.iter().map(|c| c.path.as_path()).collect::<Vec<_>>());
    let work: Vec<(&Candidate, &String)> = candidates.iter().zip(&ids).collect();
    let grid_bytes = voxels(grid).unwrap_or(MAX_VOXELS).saturating_mul(6);
    let cost = |(c, _): &(&Candidate, &String)| c.header.voxels().saturating_mul(8).saturating_add(grid_bytes);
    let total = work.len();
    let mut done = 0;
    let results = in_waves(
        &work,
        cost,
        !settings.keep_going,
        |(c, id)| one(c, id, &recipe, out),
        |_| {
            done += 1;
            on(Progress::Written { done, total });
        },
    );
    let mut records = Vec::new();
    for (candidate, result) in candidates.iter().zip(results) {
        match result {
            Ok((record, notes)) => {
                notes.into_iter().for_each(|what| on(Progress::Note { path: candidate.path.clone(), what }));
                records.push(record);
            }
            Err(e) => skip(settings, &candidate.path, &candidate.sha256, e, &mut failed, on)?,
        }
    }
    if records.is_empty() {
        return Err(none_left(inputs, &failed));
    }
    split(&mut records, settings.validation_fraction, config.seed);
    failed.sort_by(|a, b| a.path.cmp(&b.path));
    let left_out = found.left_out.into_iter().map(|(p, reason)| Absent { path: absolute(&p), sha256: String::new(), reason }).collect();
    store::finish(
        out,
        Index {
            format: String::new(),
            version: 0,
            complete: false,
            hash: String::new(),
            seed: config.seed,
            settings: settings.clone(),
            recipe,
            grid,
            scans: records,
            left_out,
            failed,
        },
    )
}

/// Prepares one scan and writes its volume; the split is decided later.
fn one(c: &Candidate, id: &str, recipe: &Recipe, out: &Path) -> Result<(ScanRecord, Vec<String>)> {
    let ready = recipe.read(&c.path)?;
    let content = store::write_volume(out, id, &ready.data, ready.frame.grid)?;
    let record = ScanRecord {
        id: id.to_owned(),
        source: absolute(&c.path),
        sha256: c.sha256.clone(),
        content,
        split: Split::Train,
        stored: c.header.kind.word().to_owned(),
        orientation: c.header.form.word().to_owned(),
        spacing: c.header.spacing(),
        padded: ready.frame.padded(),
        cropped: ready.frame.cropped(),
        frame: ready.frame,
        range: ready.range,
        replaced: ready.replaced,
    };
    Ok((record, ready.notes))
}

/// Fails with `e`, or notes the file as failed under `keep_going`.
fn skip(settings: &Prepare, path: &Path, sha256: &str, e: Error, failed: &mut Vec<Absent>, on: &mut dyn FnMut(Progress)) -> Result<()> {
    // A full disk is no property of the scan.
    let about_the_scan = matches!(&e, Error::Input { .. }) || matches!(&e, Error::Io { path: p, .. } if p == path);
    if !settings.keep_going || !about_the_scan {
        return Err(e);
    }
    let reason = match e {
        Error::Input { what, .. } => what,
        other => other.to_string(),
    };
    on(Progress::Skipped { path: path.to_path_buf(), reason: reason.clone() });
    failed.push(Absent { path: absolute(path), sha256: sha256.to_owned(), reason });
    Ok(())
}

fn none_left(inputs: &[PathBuf], failed: &[Absent]) -> Error {
    let first = failed.first().map_or(String::new(), |f| format!("; the first: {}: {}", f.path.display(), f.reason));
    Error::input(inputs.first().cloned().unwrap_or_default(), format!("none of {} scans can be used{first}", failed.len()))
}

/// What is noteworthy before any voxel is read: scans that are the same, and scans that do not say how the patient lies.
fn notes_before(candidates: &[Candidate], on: &mut dyn FnMut(Progress)) {
    let mut seen: BTreeMap<&str, &Path> = BTreeMap::new();
    for c in candidates {
        if let Some(remark) = c.header.form.remark() {
            on(Progress::Note { path: c.path.clone(), what: format!("its header does not say how the patient lies {remark}") });
        }
        if let Some(other) = seen.get(c.sha256.as_str()) {
            on(Progress::Note { path: c.path.clone(), what: format!("is the same file as {}; both are used", other.display()) });
        } else {
            seen.insert(&c.sha256, &c.path);
        }
    }
}

/// Resolves `auto` settings: median spacing of the set along left, posterior, superior, and median size at it,
/// rounded up to a multiple of 8.
fn recipe(candidates: &[Candidate], settings: &Prepare, inputs: &[PathBuf]) -> Result<Recipe> {
    let Some(first) = candidates.first() else {
        return Err(Error::input(inputs.first().cloned().unwrap_or_default(), "none of its scans can be used"));
    };
    let spacing = settings.spacing.given().unwrap_or_else(|| {
        let all: Vec<[f64; 3]> = candidates
            .iter()
            .map(|c| {
                let axes = super::orient::Axes::closest(&c.header.affine);
                let s = spacing(&c.header.affine);
                axes.stored.map(|a| s[a])
            })
            .collect();
        // Header numbers are f32; shorter numbers are kinder to the eye and as exact.
        median(&all).map(|v| (v * 1e5).round() / 1e5)
    });
    if spacing.iter().any(|s| !SPACINGS.contains(s)) {
        return Err(Error::input(
            &first.path,
            format!("the set's median voxel size is {spacing:?} mm, outside {SPACINGS:?}; check the headers or set prepare.spacing"),
        ));
    }
    let mut recipe = Recipe {
        modality: settings.modality,
        window: settings.window,
        mri: settings.mri,
        align: settings.align,
        spacing,
        grid: settings.grid.given(),
    };
    if recipe.grid.is_none() {
        let sizes: Vec<[f64; 3]> = candidates
            .iter()
            .filter_map(|c| Frame::whole(c.header.size, &c.header.affine, spacing))
            .map(|f| f.whole.map(|n| n as f64))
            .collect();
        let grid = median(&sizes).map(|n| (n.ceil() as usize).max(1).div_ceil(8).saturating_mul(8));
        if grid.iter().any(|&n| n > 4096) || voxels(grid).is_none_or(|n| n > MAX_VOXELS) {
            return Err(Error::input(
                &first.path,
                format!(
                    "the set's median size is {grid:?} voxels of {spacing:?} mm, which is too large; set prepare.grid or prepare.spacing"
                ),
            ));
        }
        recipe.grid = Some(grid);
    }
    Ok(recipe)
}

/// Median along each axis; of an even number, the mean of the two in the middle.
fn median(all: &[[f64; 3]]) -> [f64; 3] {
    std::array::from_fn(|a| {
        let mut v: Vec<f64> = all.iter().map(|s| s[a]).collect();
        v.sort_by(f64::total_cmp);
        match (v.get(v.len() / 2), v.get(v.len().wrapping_sub(1) / 2)) {
            (Some(hi), Some(lo)) => (lo + hi) / 2.0,
            _ => 1.0,
        }
    })
}

/// Holds out `fraction` of the scans, at least one and not all; a single scan is for training.
fn split(records: &mut [ScanRecord], fraction: f32, seed: u32) {
    let n = records.len();
    if n < 2 {
        return;
    }
    let held_out = ((n as f64 * f64::from(fraction)).round() as usize).clamp(1, n - 1);
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut Key::new(u64::from(seed)).purpose(Purpose::Split, 0).rng());
    for &i in &order[..held_out] {
        records[i].split = Split::Validation;
    }
}

/// Names for the scans: the file's stem; where stems meet, with the folder's name before it; where those meet, with a number.
fn ids(paths: &[&Path]) -> Vec<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for p in paths {
        *times.entry(image::stem(p).to_lowercase()).or_default() += 1;
    }
    // File systems may not tell upper from lower case.
    let mut used = BTreeSet::new();
    paths
        .iter()
        .map(|p| {
            let mut id = image::stem(p);
            if times[&id.to_lowercase()] > 1
                && let Some(folder) = absolute(p).parent().and_then(Path::file_name)
            {
                id = format!("{}_{id}", folder.to_string_lossy());
            }
            let mut end = id.len().min(ID_BYTES);
            while !id.is_char_boundary(end) {
                end -= 1;
            }
            id.truncate(end);
            let mut unique = id.clone();
            let mut number = 2;
            while !used.insert(unique.to_lowercase()) {
                unique = format!("{id}-{number}");
                number += 1;
            }
            unique
        })
        .collect()
}

/// Whether a store was made from these scans with these settings.
fn unchanged(old: &Index, settings: &Prepare, seed: u32, inputs: &[(PathBuf, String)]) -> bool {
    let was: BTreeSet<(String, &str)> = (old.scans.iter().map(|s| (&s.source, &s.sha256)))
        .chain(old.failed.iter().map(|f| (&f.path, &f.sha256)))
        .map(|(p, s)| (p.to_string_lossy().into_owned(), s.as_str()))
        .collect();
    let is: BTreeSet<(String, &str)> = inputs.iter().map(|(p, s)| (p.to_string_lossy().into_owned(), s.as_str())).collect();
    old.settings == *settings && old.seed == seed && was == is
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// SHA-256 of the files of a scan; `None` if one cannot be read, which reading the scan will tell.
fn hash_scan(path: &Path) -> Option<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    for source in image::files(path).ok()? {
        let mut file = File::open(source).ok()?;
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Some(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Does `work` for every item on all cores, so many at a time that their costs together stay below [`MEMORY_BYTES`].
///
/// `each` is called on this thread as results come in. If `stop` is set, no further wave begins after
/// an error; results then end there.
fn in_waves<T: Sync, R: Send + Outcome>(
    items: &[T],
    cost: impl Fn(&T) -> usize,
    stop: bool,
    work: impl Fn(&T) -> R + Sync,
    mut each: impl FnMut(&R),
) -> Vec<R> {
    let mut results: Vec<Option<R>> = Vec::new();
    results.resize_with(items.len(), || None);
    let mut start = 0;
    while start < items.len() {
        let mut end = start + 1;
        let mut sum = cost(&items[start]);
        while let Some(next) = items.get(end)
            && sum.saturating_add(cost(next)) <= MEMORY_BYTES
        {
            sum += cost(next);
            end += 1;
        }
        let (send, receive) = mpsc::channel();
        let (wave, work) = (&items[start..end], &work);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                wave.par_iter().enumerate().for_each_with(send, |send, (n, item)| {
                    // The receiver lives until all senders are gone.
                    let _ = send.send((n, work(item)));
                });
            });
            for (n, result) in receive {
                each(&result);
                results[start + n] = Some(result);
            }
        });
        if stop && results[start..end].iter().flatten().any(Outcome::is_bad) {
            break;
        }
        start = end;
    }
    results.into_iter().flatten().collect()
}

/// Lets [`in_waves`] see whether a result is an error.
trait Outcome {
    fn is_bad(&self) -> bool;
}

impl<T> Outcome for Result<T> {
    fn is_bad(&self) -> bool {
        self.is_err()
    }
}

impl<T> Outcome for (String, Result<T>) {
    fn is_bad(&self) -> bool {
        self.1.is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_even_without_case() {
        let paths = ["a/imaging.nii.gz", "b/imaging.nii.gz", "c/Imaging.nii", "c/x.nii", "c/x.nii.gz", "d/y.nii"].map(Path::new);
        assert_eq!(ids(&paths), ["a_imaging", "b_imaging", "c_Imaging", "c_x", "c_x-2", "y"]);
        let long = format!("{}ä.nii", "n".repeat(199));
        assert_eq!(ids(&[Path::new(&long)])[0].len(), 199);
    }

    #[test]
    fn medians_of_odd_and_even_sets() {
        assert_eq!(median(&[[1.0; 3], [9.0; 3], [2.0; 3]]), [2.0; 3]);
        assert_eq!(median(&[[1.0; 3], [9.0; 3], [2.0; 3], [4.0; 3]]), [3.0; 3]);
    }
}
