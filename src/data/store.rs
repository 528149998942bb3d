//! The prepared store: a folder that later stages read.
//!
//! ```text
//! index.json          format, version, settings, recipe, hash, one record per scan, what was left out
//! volumes/<id>.npy    NumPy array, little-endian u16, [x][y][z] in C order; value = q / 65535
//! ```
//! The index is written last and says `"complete": true`; a store without that is not opened.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::cubes::Voxels;
use super::frame::Frame;
use super::mapped::Mapped;
use super::recipe::{MAX_VOXELS, Recipe};
use super::volume::voxels;
use crate::config::{Modality, Prepare};
use crate::error::{Error, Result};
use crate::files;

/// Value of `format` in an index.
const FORMAT: &str = "semgen-prepared";
/// Raised whenever the layout or the meaning of a store changes.
const VERSION: u32 = 1;
const INDEX: &str = "index.json";
const VOLUMES: &str = "volumes";

/// What a scan is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learnt from.
    Train,
    /// Held out: only measured on.
    Validation,
}

/// What a value in `[0, 1]` is stored as.
pub fn quantise(v: f32) -> u16 {
    (v.clamp(0.0, 1.0) * 65535.0).round() as u16
}

fn dequantise(q: u16) -> f32 {
    f32::from(q) / 65535.0
}

/// The value that a store gives back for `v`: the multiple of 1/65535 nearest to it, within `[0, 1]`.
///
/// Voxels of a store are to be compared with a threshold that went the same way. The nearest
/// number to 0.425 (-150 HU), for one, is 0.424994: below 0.425 itself.
pub fn stored(v: f32) -> f32 {
    dequantise(quantise(v))
}

/// What is known about one prepared scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScanRecord {
    /// Unique within the store; the file's name without ending.
    pub id: String,
    /// The scan's file.
    #[serde(serialize_with = "lossy")]
    pub source: PathBuf,
    /// SHA-256 of the scan's file.
    pub sha256: String,
    /// SHA-256 of the prepared voxels.
    pub content: String,
    /// What it is used for.
    pub split: Split,
    /// Type of the scan's stored voxels, as Rust names it.
    pub stored: String,
    /// Where the scan's affine came from: `sform`, `qform` or `pixdim`.
    pub orientation: String,
    /// The scan's voxel size in mm along its stored axes.
    pub spacing: [f64; 3],
    /// The scan's geometry, the prepared grid's place in it, and the affines between them.
    pub frame: Frame,
    /// Voxels of padding (value 0) in front of and behind the scan along x, y, z.
    pub padded: [[usize; 2]; 3],
    /// Voxels of the resampled scan cut off in front and behind along x, y, z.
    pub cropped: [[usize; 2]; 3],
    /// Intensities that became 0 and 1.
    pub range: [f32; 2],
    /// Voxels that were not finite numbers and became 0.
    pub replaced: usize,
}

/// A file that is not in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// SHA-256 of its content; empty for label maps and for files that could not be read at all.
    pub sha256: String,
    /// Why it is not in the store.
    pub reason: String,
}

/// The content of `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) format: String,
    pub(super) version: u32,
    pub(super) complete: bool,
    pub(super) hash: String,
    pub(super) seed: u32,
    pub(super) settings: Prepare,
    pub(super) recipe: Recipe,
    pub(super) grid: [usize; 3],
    pub(super) scans: Vec<ScanRecord>,
    pub(super) left_out: Vec<Absent>,
    pub(super) failed: Vec<Absent>,
}

/// Paths that are not Unicode are written with replacement characters.
fn lossy<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&path.to_string_lossy())
}

/// An opened store.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    index: Index,
}

impl Store {
    /// Opens the store in `dir` and checks that every volume has its size.
    ///
    /// # Errors
    /// An [`Error::Input`] if `dir` holds no store, an unfinished one, one of another version, or a damaged one.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        let value = match read_index(dir)? {
            Some(v) => v,
            None => return Err(Error::input(dir, "holds no prepared store (no index.json); run `semgen prepare` first")),
        };
        if value["version"] != VERSION {
            return Err(Error::input(
                &path,
                format!("is of store version {}, but this program reads version {VERSION}; prepare the scans again", value["version"]),
            ));
        }
        if value["complete"] != true {
            return Err(Error::input(&path, "belongs to a preparation that was interrupted; run `semgen prepare` again"));
        }
        let index: Index =
            serde_json::from_value(value).map_err(|e| Error::input(&path, format!("is damaged ({e}); prepare the scans again")))?;
        let store = Self { dir: dir.to_path_buf(), index };
        if voxels(store.grid()).is_none_or(|n| n == 0 || n > MAX_VOXELS) {
            return Err(Error::input(&path, format!("has an impossible grid of {:?}; prepare the scans again", store.grid())));
        }
        let want = npy_header(store.grid()).len() + 2 * voxels(store.grid()).unwrap_or(0);
        for scan in store.scans() {
            if scan.id.is_empty() || scan.id.contains(['/', '\\']) || scan.id == ".." {
                return Err(Error::input(&path, format!("has a scan named {:?}, which is no file name; prepare the scans again", scan.id)));
            }
            let volume = store.volume_path(&scan.id);
            let found = std::fs::metadata(&volume)
                .map_err(|e| Error::input(&volume, format!("is missing from the store ({e}); prepare the scans again")))?
                .len();
            if found != want as u64 {
                return Err(Error::input(&volume, format!("has {found} bytes where {want} were expected; prepare the scans again")));
            }
        }
        Ok(store)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One record per scan, in the sorted order of their files.
    pub fn scans(&self) -> &[ScanRecord] {
        &self.index.scans
    }

    /// Size of every volume along x, y, z.
    pub fn grid(&self) -> [usize; 3] {
        self.index.grid
    }

    /// Voxel size in mm along x, y, z.
    pub fn spacing(&self) -> [f64; 3] {
        self.index.recipe.spacing
    }

    /// Hash over grid, spacing, and id, split and voxels of every scan; paths do not matter.
    pub fn hash(&self) -> &str {
        &self.index.hash
    }

    /// Kind of scan.
    pub fn modality(&self) -> Modality {
        self.index.recipe.modality
    }

    /// How every scan was prepared, for treating further scans alike.
    pub fn recipe(&self) -> &Recipe {
        &self.index.recipe
    }

    /// Label maps that lay beside the scans.
    pub fn left_out(&self) -> &[Absent] {
        &self.index.left_out
    }

    /// Scans that could not be used (`prepare.keep_going`).
    pub fn failed(&self) -> &[Absent] {
        &self.index.failed
    }

    /// Maps scan number `i` into memory.
    ///
    /// # Errors
    /// An [`Error::Usage`] if there is no such scan, an [`Error::Input`] if its file is missing or damaged.
    pub fn volume(&self, i: usize) -> Result<Prepared> {
        let scan = self
            .scans()
            .get(i)
            .ok_or_else(|| Error::Usage(format!("there is no scan {i} in {}; it holds {}", self.dir.display(), self.scans().len())))?;
        Prepared::open(&self.volume_path(&scan.id), self.grid())
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    fn volume_path(&self, id: &str) -> PathBuf {
        volume_path(&self.dir, id)
    }
}

/// One volume of a store, read from disk as it is touched.
#[derive(Clone, Debug)]
pub struct Prepared {
    bytes: Mapped,
    start: usize,
    size: [usize; 3],
}

impl Prepared {
    /// Maps the file at `path`, which [`write_array`] has written with `size`.
    ///
    /// # Errors
    /// An [`Error::Input`] if it is missing, damaged or of another size.
    pub fn open(path: &Path, size: [usize; 3]) -> Result<Self> {
        let bytes = Mapped::open(path)?;
        let header = npy_header(size);
        if !bytes.starts_with(&header) || bytes.len() != header.len() + 2 * voxels(size).unwrap_or(usize::MAX / 4) {
            return Err(Error::input(path, format!("is not a u16 array of {size:?}; prepare the scans again")));
        }
        Ok(Self { bytes, start: header.len(), size })
    }

    /// Voxels along x, y, z.
    pub fn size(&self) -> [usize; 3] {
        self.size
    }

    /// The value in `[0, 1]` at `(x, y, z)`.
    ///
    /// # Panics
    /// If the index is outside the grid.
    pub fn value(&self, x: usize, y: usize, z: usize) -> f32 {
        self.window([x, y, z], [1; 3])[0]
    }

    /// The values of the window that begins at `start`, `[x][y][z]`.
    ///
    /// # Panics
    /// If the window reaches outside the grid.
    pub fn window(&self, start: [usize; 3], size: [usize; 3]) -> Vec<f32> {
        self.collect(start, size, dequantise)
    }

    /// The numbers of the window that begins at `start` as they are stored, `[x][y][z]`.
    ///
    /// # Panics
    /// If the window reaches outside the grid.
    pub fn raw(&self, start: [usize; 3], size: [usize; 3]) -> Vec<u16> {
        self.collect(start, size, |q| q)
    }

    fn collect<T>(&self, start: [usize; 3], size: [usize; 3], take: impl Fn(u16) -> T) -> Vec<T> {
        let inside = (0..3).all(|a| start[a].checked_add(size[a]).is_some_and(|end| end <= self.size[a]));
        assert!(inside, "the window of {size:?} at {start:?} reaches outside the grid of {:?}", self.size);
        let [_, ny, nz] = self.size;
        let mut out = Vec::with_capacity(size.iter().product());
        for x in start[0]..start[0] + size[0] {
            for y in start[1]..start[1] + size[1] {
                let from = self.start + 2 * ((x * ny + y) * nz + start[2]);
                out.extend(self.bytes[from..from + 2 * size[2]].chunks_exact(2).map(|q| take(u16::from_le_bytes([q[0], q[1]]))));
            }
        }
        out
    }

    /// All values, `[x][y][z]`.
    pub fn all(&self) -> Vec<f32> {
        self.window([0; 3], self.size)
    }
}

impl Voxels for Prepared {
    fn size(&self) -> [usize; 3] {
        self.size
    }

    fn window(&self, start: [usize; 3], size: [usize; 3]) -> Vec<f32> {
        Self::window(self, start, size)
    }

    fn value(&self, x: usize, y: usize, z: usize) -> f32 {
        Self::value(self, x, y, z)
    }
}

/// The index of the store in `dir` as plain JSON; `None` if there is none.
fn read_index(dir: &Path) -> Result<Option<serde_json::Value>> {
    let path = dir.join(INDEX);
    let text = match std::fs::read_to_string(&path) {
        Ok(t) => t,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => String::new(),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(v) if v["format"] == FORMAT => Ok(Some(v)),
        _ => Err(Error::input(&path, "is not the index of a prepared store; choose another folder")),
    }
}

/// Whether a store may be written to `dir`: it is missing, empty but for an index that a stop left unfinished, or already a store of ours.
pub(super) fn check_place(dir: &Path) -> Result<()> {
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("read", dir)(e)),
        Ok(entries) => {
            let unfinished = files::sibling(Path::new(INDEX));
            let foreign = entries.flatten().any(|e| unfinished != Path::new(&e.file_name()));
            if foreign && read_index(dir)?.is_none() {
                return Err(Error::input(dir, "is not empty and not a prepared store; choose another folder for the prepared scans"));
            }
            Ok(())
        }
    }
}

/// Begins a store: from here on an old one in `dir` is no longer valid.
pub(super) fn begin(dir: &Path) -> Result<()> {
    files::create_dir(dir)?;
    let text = format!("{{\n  \"format\": \"{FORMAT}\",\n  \"version\": {VERSION},\n  \"complete\": false\n}}\n");
    // The index comes first: with it the folder is known as a store's, whenever a stop comes.
    files::write_bytes(&dir.join(INDEX), text.as_bytes())?;
    files::create_dir(&dir.join(VOLUMES))
}

/// Writes one volume and returns the SHA-256 of its voxels.
pub(super) fn write_volume(dir: &Path, id: &str, data: &[f32], size: [usize; 3]) -> Result<String> {
    write_array(&volume_path(dir, id), data.iter().map(|&v| quantise(v)), size)
}

/// Writes `[x][y][z]` numbers as an `.npy` file of u16 and returns the SHA-256 of their bytes.
///
/// # Errors
/// An [`Error::Io`] naming `path`.
pub fn write_array(path: &Path, values: impl Iterator<Item = u16>, size: [usize; 3]) -> Result<String> {
    let bytes: Vec<u8> = values.flat_map(u16::to_le_bytes).collect();
    files::write_atomic(path, |out| {
        use std::io::Write;
        out.write_all(&npy_header(size))?;
        out.write_all(&bytes)
    })?;
    Ok(files::sha256_hex(&bytes))
}

/// Removes volumes of earlier runs, then writes the index, which makes the store valid.
pub(super) fn finish(dir: &Path, mut index: Index) -> Result<Store> {
    let volumes = dir.join(VOLUMES);
    for entry in std::fs::read_dir(&volumes).map_err(Error::io("read", &volumes))? {
        let path = entry.map_err(Error::io("read", &volumes))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = name.strip_suffix(".npy").is_some_and(|id| index.scans.iter().any(|s| s.id == id));
        if !known && (name.ends_with(".npy") || name.ends_with(".npy.partial")) {
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    index.format = FORMAT.to_owned();
    index.version = VERSION;
    index.complete = true;
    index.hash = content_hash(&index);
    let path = dir.join(INDEX);
    let mut text = serde_json::to_string_pretty(&index).map_err(|e| Error::input(&path, format!("cannot be written ({e})")))?;
    text.push('\n');
    files::write_bytes(&path, text.as_bytes())?;
    Store::open(dir)
}

fn content_hash(index: &Index) -> String {
    let mut h = Sha256::new();
    h.update(format!("{FORMAT} {VERSION} {:?} {:?} {}\n", index.grid, index.recipe.spacing, index.recipe.modality.word()));
    for s in &index.scans {
        h.update(format!("{} {:?} {}\n", s.id, s.split, s.content));
    }
    h.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn volume_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(VOLUMES).join(format!("{id}.npy"))
}

/// Head of a version 1.0 `.npy` file; data begin at a multiple of 64 bytes.
fn npy_header([x, y, z]: [usize; 3]) -> Vec<u8> {
    let mut text = format!("{{'descr': '<u2', 'fortran_order': False, 'shape': ({x}, {y}, {z}), }}");
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_reads_back_and_is_a_npy_file() {
        let dir = tempfile::tempdir().unwrap();
        begin(dir.path()).unwrap();
        let data: Vec<f32> = (0..3 * 4 * 5u8).map(|v| f32::from(v) / 59.0).collect();
        write_volume(dir.path(), "a", &data, [3, 4, 5]).unwrap();
        let path = volume_path(dir.path(), "a");
        let p = Prepared::open(&path, [3, 4, 5]).unwrap();
        for (v, w) in p.all().iter().zip(&data) {
            assert!((v - w).abs() <= 0.5 / 65535.0 + 1e-7, "{v} {w}");
        }
        assert_eq!(p.value(2, 3, 4), 1.0);
        assert_eq!(p.window([1, 2, 1], [2, 1, 3]), [31, 32, 33, 51, 52, 53].map(|n| p.all()[n]));
        let npy = npyz::NpyFile::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!((npy.shape(), npy.order()), (&[3, 4, 5][..], npyz::Order::C));
        let back: Vec<u16> = npy.into_vec().unwrap();
        assert_eq!(back.iter().map(|&q| f32::from(q) / 65535.0).collect::<Vec<_>>(), p.all());
        // Another shape or a byte less is refused.
        assert!(Prepared::open(&path, [5, 4, 3]).is_err());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(Prepared::open(&path, [3, 4, 5]).is_err());
    }

    #[test]
    fn a_threshold_goes_the_way_of_the_voxels() {
        // -150 HU of -1000 ..= 1000.
        assert!(stored(0.425) < 0.425, "{}", stored(0.425));
        assert_eq!((stored(-1.0), stored(0.0), stored(1.0), stored(2.0)), (0.0, 0.0, 1.0, 1.0));
        assert!((0..=u16::MAX).all(|q| stored(dequantise(q)) == dequantise(q)), "a stored value stays as it is");
    }

    #[test]
    #[should_panic(expected = "reaches outside")]
    fn windows_have_to_lie_inside() {
        let dir = tempfile::tempdir().unwrap();
        begin(dir.path()).unwrap();
        write_volume(dir.path(), "a", &[0.0; 8], [2; 3]).unwrap();
        Prepared::open(&volume_path(dir.path(), "a"), [2; 3]).unwrap().window([1, 0, 0], [2, 1, 1]);
    }

    #[test]
    fn an_unfinished_store_is_not_opened_and_foreign_folders_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("semgen prepare"));
        begin(dir.path()).unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("interrupted"));
        assert!(check_place(dir.path()).is_ok());
        std::fs::write(dir.path().join(INDEX), "{}").unwrap();
        assert!(check_place(dir.path()).is_err());
        std::fs::remove_file(dir.path().join(INDEX)).unwrap();
        assert!(check_place(dir.path()).unwrap_err().to_string().contains("not empty"));
        assert!(check_place(&dir.path().join("new")).is_ok());
    }
}
