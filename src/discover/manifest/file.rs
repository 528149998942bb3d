//! The manifest as a file: one JSON object, one line per scan, class and crop.
//!
//! `header`, `scans` and `classes` hold the structures of the same name. `train` and `validation`
//! hold the crops as arrays of ten whole numbers in the order named by `columns`. What is read is
//! checked completely: every crop must be the one that header and classes call for.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::resize;
use crate::data::store::Split;
use crate::discover::manifest::{Class, Crop, Header, Manifest, Scan};
use crate::discover::neighbours::Ranking;
use crate::discover::windows::{WindowRule, window_size};
use crate::error::{Error, Result};
use crate::files;

/// What the file says it is.
pub const FORMAT: &str = "semantic-genesis manifest";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Meaning of the numbers of a crop.
pub const COLUMNS: [&str; 10] = ["label", "rank", "resolution", "scan", "x", "y", "z", "sx", "sy", "sz"];
/// Largest file that is read; a manifest of a hundred times the published size is smaller.
const MAX_BYTES: u64 = 1 << 30;

type Row = [u32; COLUMNS.len()];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    header: Header,
    scans: Vec<Scan>,
    classes: Vec<Class>,
    columns: Vec<String>,
    train: Vec<Row>,
    validation: Vec<Row>,
}

/// The part that every version has.
#[derive(Deserialize)]
struct Head {
    header: Kind,
}

#[derive(Deserialize)]
struct Kind {
    format: String,
    version: u32,
}

impl Manifest {
    /// Writes the manifest to `path`; an older one is replaced when the new one is complete.
    ///
    /// # Errors
    /// An [`Error::Io`] naming `path`.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_atomic(path, |out| self.write(out))
    }

    /// SHA-256 of the file that [`Manifest::save`] writes, in hexadecimal.
    ///
    /// # Panics
    /// Never: writing to memory cannot fail.
    pub fn hash(&self) -> String {
        let mut bytes = Vec::new();
        self.write(&mut bytes).expect("writing to memory cannot fail");
        files::sha256_hex(&bytes)
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let (train, validation) = self.crops.split_at(self.train as usize);
        write!(out, "{{\n\"header\": ")?;
        serde_json::to_writer(&mut *out, &self.header)?;
        lines(out, "scans", self.scans.iter())?;
        lines(out, "classes", self.classes.iter())?;
        write!(out, ",\n\"columns\": ")?;
        serde_json::to_writer(&mut *out, &COLUMNS)?;
        lines(out, "train", train.iter().map(row))?;
        lines(out, "validation", validation.iter().map(row))?;
        writeln!(out, "\n}}")
    }

    /// Reads a manifest back exactly as it was saved.
    ///
    /// # Errors
    /// An unreadable file; one that is not JSON, not a manifest or of another version; any part
    /// that contradicts another or cannot have been written by [`Manifest::save`].
    pub fn load(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_BYTES {
            return Err(Error::input(path, format!("{length} bytes are more than a manifest can have ({MAX_BYTES})")));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        parse(&bytes).map_err(|what| Error::input(path, format!("{what}; make a new one with `semgen discover`")))
    }
}

fn lines<T: Serialize>(out: &mut impl Write, name: &str, items: impl Iterator<Item = T>) -> std::io::Result<()> {
    write!(out, ",\n\"{name}\": [")?;
    for (i, item) in items.enumerate() {
        out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &item)?;
    }
    write!(out, "\n]")
}

fn row(c: &Crop) -> Row {
    let ([x, y, z], [sx, sy, sz]) = (c.start.map(|v| v as u32), c.size.map(|v| v as u32));
    [c.label, c.rank, c.resolution, c.scan, x, y, z, sx, sy, sz]
}

/// A check's outcome: what is wrong.
type Checked<T = ()> = std::result::Result<T, String>;

fn parse(bytes: &[u8]) -> Checked<Manifest> {
    let not_ours = |e: serde_json::Error| format!("this is not a manifest ({e})");
    let Head { header: Kind { format, version } } = serde_json::from_slice(bytes).map_err(not_ours)?;
    if format != FORMAT {
        return Err(format!("its format is {format:?}, expected {FORMAT:?}"));
    }
    if version != VERSION {
        return Err(format!("it has layout version {version}, this program reads version {VERSION}"));
    }
    let Content { header, scans, classes, columns, train, validation } = serde_json::from_slice(bytes).map_err(not_ours)?;
    if columns != COLUMNS {
        return Err(format!("the columns of the crops are {columns:?}, expected {COLUMNS:?}"));
    }
    check_header(&header)?;
    check_scans(&scans)?;
    if classes.len() != header.classes {
        return Err(format!("the header names {} classes, but {} are listed", header.classes, classes.len()));
    }
    for (i, class) in classes.iter().enumerate() {
        check_class(i, class, &header, &scans).map_err(|what| format!("class {i}: {what}"))?;
    }
    let mut crops = check_crops(&header, &classes, Split::Train, &train)?;
    let n_train = crops.len() as u32;
    crops.extend(check_crops(&header, &classes, Split::Validation, &validation)?);
    Ok(Manifest { header, scans, classes, crops, train: n_train })
}

fn check_header(h: &Header) -> Checked {
    if h.grid.iter().any(|&s| s == 0 || s > 1 << 16) {
        return Err(format!("grid {:?} is outside 1..=65536", h.grid));
    }
    let cube = h.cube.size;
    if (0..3).any(|a| cube[a] == 0 || cube[a] > h.grid[a]) {
        return Err(format!("a cube of {cube:?} does not fit the grid {:?}", h.grid));
    }
    if h.windows != WindowRule::new(cube) {
        return Err(format!("the window ranges {:?} are not those of a cube of {cube:?}", h.windows));
    }
    if h.resize != resize::RULE {
        return Err(format!("the resize rule is {:?}, this program has {:?}", h.resize, resize::RULE));
    }
    if h.classes == 0 {
        return Err("it has no classes".into());
    }
    Ok(())
}

fn check_scans(scans: &[Scan]) -> Checked {
    let mut ids = HashSet::new();
    for (i, scan) in scans.iter().enumerate() {
        if scan.id.is_empty() || !ids.insert(scan.id.as_str()) {
            return Err(format!("scan {i} has the id {:?}, which is empty or taken", scan.id));
        }
        if scan.sha256.len() != 64 || !scan.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("the hash {:?} of scan {:?} is not 64 hexadecimal digits", scan.sha256, scan.id));
        }
    }
    Ok(())
}

fn check_class(i: usize, class: &Class, header: &Header, scans: &[Scan]) -> Checked {
    if class.label as usize != i {
        return Err(format!("its label is {}", class.label));
    }
    let start = class.start;
    if (0..3).any(|a| start[a].checked_add(header.cube.size[a]).is_none_or(|end| end > header.grid[a])) {
        return Err(format!("the cube at {start:?} leaves the grid {:?}", header.grid));
    }
    if class.train.first() != Some(&(class.reference, 0.0)) {
        return Err(format!("the first train neighbour must be the reference, scan {}, with distance 0", class.reference));
    }
    check_ranking(&class.train, scans, Split::Train)?;
    check_ranking(&class.validation, scans, Split::Validation)
}

fn check_ranking(list: &Ranking, scans: &[Scan], split: Split) -> Checked {
    let mut seen = HashSet::new();
    let mut previous = 0.0;
    for &(scan, distance) in list {
        match scans.get(scan as usize) {
            None => return Err(format!("a neighbour is scan {scan}, but there are {} scans", scans.len())),
            Some(s) if s.split != split => return Err(format!("neighbour {:?} is not a {split:?} scan", s.id)),
            Some(s) if !seen.insert(scan) => return Err(format!("neighbour {:?} is listed twice", s.id)),
            Some(_) => {}
        }
        if !(distance >= previous && distance.is_finite()) {
            return Err(format!("distance {distance} follows {previous}: the neighbours must be ordered by distance"));
        }
        previous = distance;
    }
    Ok(())
}

fn check_crops(header: &Header, classes: &[Class], split: Split, rows: &[Row]) -> Checked<Vec<Crop>> {
    let name = if split == Split::Train { "train" } else { "validation" };
    let resolutions = header.resolutions(split);
    let expected: usize = classes.iter().map(|c| c.neighbours(split).len() * resolutions as usize).sum();
    if rows.len() != expected {
        return Err(format!("{} {name} crops are listed, but the classes call for {expected}", rows.len()));
    }
    let mut rows = rows.iter().enumerate();
    let mut crops = Vec::with_capacity(expected);
    for class in classes {
        for (rank, &(scan, _)) in (0u32..).zip(class.neighbours(split)) {
            for resolution in 1..=resolutions {
                let Some((i, &[l, r, m, s, x, y, z, sx, sy, sz])) = rows.next() else {
                    return Err(format!("{name} crops are missing"));
                };
                let wrong = |what: String| format!("{name} crop {i}: {what}");
                if [l, r, m, s] != [class.label, rank, resolution, scan] {
                    let found = format!("label {l}, rank {r}, resolution {m}, scan {s}");
                    return Err(wrong(format!(
                        "{found} where label {}, rank {rank}, resolution {resolution}, scan {scan} belong",
                        class.label
                    )));
                }
                let crop =
                    Crop { label: l, rank, resolution, scan, start: [x, y, z].map(|v| v as usize), size: [sx, sy, sz].map(|v| v as usize) };
                if !is_window(header, class, &crop) {
                    return Err(wrong(format!(
                        "the window of {:?} at {:?} is not one of class {l} at {:?}",
                        crop.size, crop.start, class.start
                    )));
                }
                crops.push(crop);
            }
        }
    }
    Ok(crops)
}

/// Whether `crop` can be a window of `class`: inside the grid, and of an allowed size and place.
fn is_window(header: &Header, class: &Class, crop: &Crop) -> bool {
    let (cube, w) = (header.cube.size, &header.windows);
    if crop.resolution == 1 {
        return crop.start == class.start && crop.size == cube;
    }
    let shift = |a: usize| crop.start[a] as i64 - class.start[a] as i64;
    (w.side[0]..=w.side[1]).contains(&crop.size[0])
        && crop.size == window_size(cube, crop.size[0])
        && (w.shift_x[0]..=w.shift_x[1]).contains(&shift(0))
        && (w.shift_y[0]..=w.shift_y[1]).contains(&shift(1))
        && shift(2) == 0
        && (0..3).all(|a| crop.start[a] + crop.size[a] <= header.grid[a])
}

#[cfg(test)]
mod tests;
