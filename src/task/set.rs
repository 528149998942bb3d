//! A labelled data set, prepared: every scan at the model's spacing with values in `[0, 1]`, its truth on the same grid.
//!
//! ```text
//! dir/index.json            what is there and how it was made; written last
//! dir/scans/<n>_<c>.npy     channel c of scan n, u16 `[x][y][z]`, value = q / 65535
//! dir/scans/<n>_truth.npy   number of the class of every voxel, u16 `[x][y][z]`
//! ```
//! Cases of one scan (places in it) share its files. A set that was made from the same files with the same settings is used again.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::table::{Case, Image, Part, Truth};
use super::{Description, View};
use crate::data::frame::{Frame, same_place};
use crate::data::image;
use crate::data::orient::Axes;
use crate::data::recipe::Recipe;
use crate::data::resize::resize;
use crate::data::store::{Prepared, quantise, write_array};
use crate::data::volume::{Volume, apply, inverse};
use crate::error::{Error, Result};
use crate::files;

const FORMAT: &str = "semgen-labelled-1";
const INDEX: &str = "index.json";

/// What a case is to the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Unique name.
    pub id: String,
    /// Place among the scans.
    pub scan: usize,
    /// Part of the set.
    pub part: Part,
    /// Voxel of the prepared grid that the case is about, for tasks about places.
    pub place: Option<[f64; 3]>,
    /// Known classes, as [`Truth::Labels`]; NaN is written as null. Empty for masks.
    pub labels: Vec<Option<f32>>,
}

/// A prepared scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scan {
    /// Its files, one a channel.
    pub images: Vec<PathBuf>,
    /// Its label map, if it has one.
    pub truth: Option<PathBuf>,
    /// Prepared grid.
    pub size: [usize; 3],
    /// Where the grid lies in the scan; `None` for cubes, which lie nowhere.
    pub frame: Option<Frame>,
    /// Voxels of each class.
    pub counts: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    format: String,
    identity: String,
    scans: Vec<Scan>,
    entries: Vec<Entry>,
}

/// A prepared set.
#[derive(Debug)]
pub struct Set {
    dir: PathBuf,
    /// Scans.
    pub scans: Vec<Scan>,
    /// Cases.
    pub entries: Vec<Entry>,
    /// Hash of what it was made from and how.
    pub identity: String,
    volumes: Vec<Vec<Prepared>>,
    truths: Vec<Option<Prepared>>,
}

/// What is said while a set is made.
pub enum Progress {
    /// The set of an earlier call is used again.
    Reused,
    /// So many scans are done.
    Done(usize, usize),
    /// Something a user should know.
    Note(String),
}

/// The median voxel size of scans along left, posterior, superior, mm.
///
/// # Errors
/// A header that cannot be read, or no scan with a voxel size.
pub fn median_spacing(cases: &[(Case, Part)]) -> Result<[f64; 3]> {
    let mut found: Vec<[f64; 3]> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (case, part) in cases {
        if *part != Part::Train {
            continue;
        }
        if let Some(Image::Scan(path) | Image::Volume { path, .. }) = case.images.first()
            && seen.insert(path)
        {
            let header = image::read_series_header(path)?;
            let axes = Axes::closest(&header.affine);
            let stored = crate::data::volume::spacing(&header.affine);
            found.push(std::array::from_fn(|a| stored[axes.stored[a]]));
        }
    }
    if found.is_empty() {
        return Ok([1.0; 3]);
    }
    Ok(std::array::from_fn(|a| {
        let mut values: Vec<f64> = found.iter().map(|s| s[a]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }))
}

impl Set {
    /// Prepares `cases` for the model of `description` in `dir`, or takes what is there if it is the same.
    ///
    /// # Errors
    /// Scans and masks that cannot be used, each named; what the files report.
    pub fn make(dir: &Path, cases: &[(Case, Part)], description: &Description, on: &mut dyn FnMut(Progress)) -> Result<Self> {
        let identity = identity(cases, description)?;
        if let Ok(bytes) = std::fs::read(dir.join(INDEX))
            && let Ok(index) = serde_json::from_slice::<Index>(&bytes)
            && index.format == FORMAT
            && index.identity == identity
            && let Ok(set) = Self::open(dir, index)
        {
            on(Progress::Reused);
            return Ok(set);
        }
        let folder = dir.join("scans");
        files::create_dir(&folder)?;
        let mut places: HashMap<(&[Image], Option<&Image>), usize> = HashMap::new();
        let mut firsts: Vec<&Case> = Vec::new();
        let mut scan_of = Vec::with_capacity(cases.len());
        for (case, _) in cases {
            let mask = match &case.truth {
                Truth::Mask(mask) => Some(mask),
                Truth::Labels(_) => None,
            };
            let next = firsts.len();
            let scan = *places.entry((&case.images, mask)).or_insert(next);
            if scan == next {
                firsts.push(case);
            }
            scan_of.push(scan);
        }
        let mut scans: Vec<Scan> = Vec::with_capacity(firsts.len());
        // As many at once as there are threads: a scan in preparation takes some copies of itself.
        let together = rayon::current_num_threads().clamp(1, 4);
        for (wave, group) in firsts.chunks(together).enumerate() {
            let made: Vec<Result<(Scan, Vec<String>)>> =
                group.par_iter().enumerate().map(|(i, case)| write_scan(&folder, wave * together + i, case, description)).collect();
            for outcome in made {
                let (scan, notes) = outcome?;
                notes.into_iter().for_each(|n| on(Progress::Note(n)));
                scans.push(scan);
                on(Progress::Done(scans.len(), firsts.len()));
            }
        }
        let mut entries = Vec::with_capacity(cases.len());
        for ((case, part), scan) in cases.iter().zip(scan_of) {
            let labels = match &case.truth {
                Truth::Mask(_) => Vec::new(),
                Truth::Labels(values) => values.iter().map(|v| v.is_finite().then_some(*v)).collect(),
            };
            let place = case
                .point
                .map(|p| {
                    place(&scans[scan], p).ok_or_else(|| Error::Usage(format!("case {}: cubes have no places in millimetres", case.id)))
                })
                .transpose()?;
            if let Some(p) = place
                && (0..3).any(|a| p[a] < -0.5 || p[a] > scans[scan].size[a] as f64 - 0.5)
            {
                return Err(Error::Usage(format!(
                    "case {}: the point {:?} mm lies outside its scan {}",
                    case.id,
                    case.point.unwrap_or_default(),
                    name(&case.images[0])
                )));
            }
            entries.push(Entry { id: case.id.clone(), scan, part: *part, place, labels });
        }
        let index = Index { format: FORMAT.into(), identity, scans, entries };
        let text = serde_json::to_string(&index).map_err(|e| Error::Failed(format!("cannot write the set's index ({e})")))?;
        files::write_bytes(&dir.join(INDEX), text.as_bytes())?;
        Self::open(dir, index)
    }

    fn open(dir: &Path, index: Index) -> Result<Self> {
        let folder = dir.join("scans");
        let Index { identity, scans, entries, .. } = index;
        let volume = |(n, s): (usize, &Scan)| (0..s.images.len()).map(|c| Prepared::open(&channel_path(&folder, n, c), s.size)).collect();
        let volumes = scans.iter().enumerate().map(volume).collect::<Result<Vec<Vec<_>>>>()?;
        let truth = |(n, s): (usize, &Scan)| s.truth.as_ref().map(|_| Prepared::open(&truth_path(&folder, n), s.size)).transpose();
        let truths = scans.iter().enumerate().map(truth).collect::<Result<_>>()?;
        Ok(Self { dir: dir.to_path_buf(), scans, entries, identity, volumes, truths })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Positions of the cases of a part.
    pub fn of(&self, part: Part) -> Vec<usize> {
        (0..self.entries.len()).filter(|&i| self.entries[i].part == part).collect()
    }

    /// Values of the window that begins at `start` (which may lie outside: 0 there), `[x][y][z]`, channels innermost.
    pub fn window(&self, scan: usize, start: [i64; 3], size: [usize; 3]) -> Vec<f32> {
        let channels = &self.volumes[scan];
        let parts: Vec<Vec<f32>> = channels.iter().map(|v| padded(v.size(), start, size, |s, n| v.window(s, n))).collect();
        if let [one] = parts.as_slice() {
            return one.clone();
        }
        (0..size.iter().product()).flat_map(|i| parts.iter().map(move |p| p[i])).collect()
    }

    /// Classes of the window that begins at `start` (which may lie outside: the background there), `[x][y][z]`.
    ///
    /// # Panics
    /// If the scan has no mask.
    pub fn truth(&self, scan: usize, start: [i64; 3], size: [usize; 3]) -> Vec<u16> {
        let truth = self.truths[scan].as_ref().expect("a set for segmentation has masks");
        padded(truth.size(), start, size, |s, n| truth.raw(s, n))
    }
}

/// Hash of everything that decides what is in a set.
fn identity(cases: &[(Case, Part)], description: &Description) -> Result<String> {
    let mut text = format!("{FORMAT} {:?} {:?} {:?} {:?}\n", description.kind, description.view, description.values, description.recipe);
    if description.view == View::Whole {
        text.push_str(&format!("{:?}\n", description.window));
    }
    let mut stamps: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (case, part) in cases {
        text.push_str(&format!("{} {part:?} {:?} {:?} {:?}\n", case.id, case.images, case.truth, case.point));
        let mask = match &case.truth {
            Truth::Mask(mask) => Some(mask),
            Truth::Labels(_) => None,
        };
        for image in case.images.iter().chain(mask) {
            let path = image.path();
            if !stamps.contains_key(path) {
                let meta = std::fs::metadata(path).map_err(Error::io("read", path))?;
                let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
                stamps.insert(path.to_path_buf(), format!("{} {modified}", meta.len()));
            }
        }
    }
    for (path, stamp) in stamps {
        text.push_str(&format!("{} {stamp}\n", path.display()));
    }
    Ok(files::sha256_hex(text.as_bytes()))
}

fn name(image: &Image) -> String {
    image.path().display().to_string()
}

fn channel_path(folder: &Path, scan: usize, channel: usize) -> PathBuf {
    folder.join(format!("{scan}_{channel}.npy"))
}

fn truth_path(folder: &Path, scan: usize) -> PathBuf {
    folder.join(format!("{scan}_truth.npy"))
}

/// The prepared voxel at a point in millimetres (RAS+).
fn place(scan: &Scan, point: [f64; 3]) -> Option<[f64; 3]> {
    Some(apply(&inverse(&scan.frame.as_ref()?.affine)?, point))
}

/// What [`Scan`] says, after its arrays are written; and what a user should know.
fn write_scan(folder: &Path, n: usize, case: &Case, description: &Description) -> Result<(Scan, Vec<String>)> {
    let mut notes = Vec::new();
    if case.images.len() != description.channels.len() {
        return Err(Error::Usage(format!(
            "case {} has {} images, but the task has {} channels ({})",
            case.id,
            case.images.len(),
            description.channels.len(),
            description.channels.join(", ")
        )));
    }
    let mut frame: Option<Frame> = None;
    let mut size = [0; 3];
    for (c, source) in case.images.iter().enumerate() {
        let (data, grid) = match source {
            Image::Scan(_) | Image::Volume { .. } => {
                let path = source.path();
                let volume = source.volume().ok_or_else(|| Error::input(path, "is no scan"))??;
                if let Some(f) = &frame {
                    same_place((volume.size, &volume.affine), (f.source_size, &f.source_affine))
                        .map_err(|what| Error::input(path, what))?;
                }
                let ready = description.recipe.apply(volume).map_err(|what| Error::input(path, what))?;
                notes.extend(ready.notes.iter().map(|n| format!("{}: {n}", path.display())));
                let grid = ready.frame.grid;
                frame.get_or_insert(ready.frame);
                (ready.data, grid)
            }
            Image::Cube { path, row } => super::table::read_cube(path, *row)?,
        };
        let (data, grid) = match description.view {
            View::Whole => (resize(&data, grid, description.window), description.window),
            View::Windows | View::Point => (data, grid),
        };
        if c > 0 && grid != size {
            return Err(Error::input(
                source.path(),
                format!("has {grid:?} voxels, the first channel of its case {size:?}; channels need one grid"),
            ));
        }
        size = grid;
        write_array(&channel_path(folder, n, c), data.iter().map(|&v| quantise(v)), size)?;
    }
    let (mut truth, mut counts) = (None, Vec::new());
    if let Truth::Mask(mask) = &case.truth {
        let path = mask.path();
        let values: Vec<f32> = match (mask, &frame) {
            (Image::Scan(_) | Image::Volume { .. }, Some(frame)) => {
                let volume = mask.volume().ok_or_else(|| Error::input(path, "is no scan"))??;
                frame.labels(&volume).map_err(|what| Error::input(path, what))?
            }
            (Image::Cube { path, row }, _) => {
                let (data, grid) = super::table::read_cube(path, *row)?;
                if grid != size {
                    return Err(Error::input(path, format!("has cubes of {grid:?}, the images {size:?}")));
                }
                data
            }
            (_, None) => return Err(Error::input(path, "is a scan, but the images of its case are cubes")),
        };
        let classes = classes_of(&values, description).map_err(|what| Error::input(path, what))?;
        counts = vec![0u64; description.classes.len()];
        classes.iter().for_each(|&c| counts[usize::from(c)] += 1);
        write_array(&truth_path(folder, n), classes.into_iter(), size)?;
        truth = Some(path.to_path_buf());
    }
    Ok((Scan { images: case.images.iter().map(|i| i.path().to_path_buf()).collect(), truth, size, frame, counts }, notes))
}

/// Numbers of the classes that the values of a label map stand for.
fn classes_of(values: &[f32], description: &Description) -> Result<Vec<u16>, String> {
    let mut out = Vec::with_capacity(values.len());
    // Neighbours mostly share their value.
    let mut last: Option<(f32, u16)> = None;
    for &v in values {
        let class = match last {
            Some((value, class)) if value == v => class,
            _ => {
                let class = description.class_of(v).ok_or_else(|| {
                    format!("holds the value {v}, but the task's labels are {:?}; name all labels, or merge them", description.values)
                })?;
                last = Some((v, class));
                class
            }
        };
        out.push(class);
    }
    Ok(out)
}

/// A window of a volume of `whole` voxels that may reach outside it, where values are the default.
fn padded<T: Copy + Default>(
    whole: [usize; 3],
    start: [i64; 3],
    size: [usize; 3],
    read: impl Fn([usize; 3], [usize; 3]) -> Vec<T>,
) -> Vec<T> {
    let lo: [i64; 3] = std::array::from_fn(|a| start[a].clamp(0, whole[a] as i64));
    let hi: [i64; 3] = std::array::from_fn(|a| (start[a] + size[a] as i64).clamp(lo[a], whole[a] as i64));
    let inner: [usize; 3] = std::array::from_fn(|a| (hi[a] - lo[a]) as usize);
    let begin = lo.map(|v| v as usize);
    if inner == size {
        return read(begin, size);
    }
    let mut out = vec![T::default(); size.iter().product()];
    if inner.contains(&0) {
        return out;
    }
    let data = read(begin, inner);
    let shift: [usize; 3] = std::array::from_fn(|a| (lo[a] - start[a]) as usize);
    for x in 0..inner[0] {
        for y in 0..inner[1] {
            let from = (x * inner[1] + y) * inner[2];
            let to = ((x + shift[0]) * size[1] + y + shift[1]) * size[2] + shift[2];
            out[to..to + inner[2]].copy_from_slice(&data[from..from + inner[2]]);
        }
    }
    out
}

/// The volume of a case in the scan's own grid, for measuring whole predictions.
///
/// # Errors
/// As [`image::read`].
pub fn read_truth(scan: &Scan) -> Result<Option<Volume>> {
    scan.truth.as_deref().map(image::read).transpose()
}

/// How scans are prepared for `config`, with the spacing resolved.
pub fn recipe(config: &crate::config::Config, spacing: [f64; 3]) -> Recipe {
    let p = &config.prepare;
    Recipe { modality: p.modality, window: p.window, mri: p.mri, align: crate::config::Align::Grid, spacing, grid: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_may_reach_outside() {
        let data: Vec<u16> = (0..24).collect();
        let read = |s: [usize; 3], n: [usize; 3]| {
            let mut out: Vec<u16> = Vec::new();
            for x in s[0]..s[0] + n[0] {
                for y in s[1]..s[1] + n[1] {
                    out.extend(&data[(x * 3 + y) * 4 + s[2]..][..n[2]]);
                }
            }
            out
        };
        assert_eq!(padded([2, 3, 4], [0; 3], [2, 3, 4], read), data);
        assert_eq!(padded([2, 3, 4], [-1, 1, 3], [2, 1, 2], read), [0, 0, 7, 0]);
        assert_eq!(padded([2, 3, 4], [1, 2, 2], [2, 2, 3], read), [22, 23, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(padded([2, 3, 4], [9, 0, 0], [1, 1, 2], read), [0, 0]);
        assert_eq!(padded([2, 3, 4], [-9, 0, 0], [1, 1, 2], read), [0, 0]);
    }
}
