//! Whether what a table names can work together, as far as headers tell: files, grids, places, names.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;

use super::{Case, Image, Table, Truth};
use crate::data::frame::same_place;
use crate::data::image::{self, Header};
use crate::data::volume::{Affine, apply, inverse};
use crate::error::{Error, Result};

/// How far outside the outermost voxels' centres a place may lie, in voxels.
const EDGE: f64 = 0.5;

/// Checks every case of the table at `path`; voxels are not touched.
///
/// # Errors
/// Ids that are not unique; files that are missing or cannot be used; channels and masks on another grid than their first
/// channel's; places outside their scan.
pub(super) fn check(path: &Path, table: &Table) -> Result<()> {
    let mut ids = HashSet::new();
    if let Some(twice) = table.cases.iter().find(|c| !ids.insert(c.id.as_str())) {
        return Err(Error::input(path, format!("has two cases called `{}`; give every case an `id` of its own", twice.id)));
    }
    let headers = headers(path, table)?;
    let mut inverses: HashMap<&Path, Option<Affine>> = HashMap::new();
    // Cases of one scan share their images.
    let mut checked: HashSet<*const Image> = HashSet::new();
    for case in &table.cases {
        let Some(first) = case.images.first() else {
            return Err(Error::input(path, format!("case {} has no image", case.id)));
        };
        let Some(scan) = headers.get(first.path()) else { continue };
        let mask = match &case.truth {
            Truth::Mask(mask) => Some(mask),
            Truth::Labels(_) => None,
        };
        let others = if checked.insert(case.images.as_ptr()) { &case.images[1..] } else { &[] };
        for other in others.iter().chain(mask) {
            if let Some(header) = headers.get(other.path()) {
                same_place((header.size, &header.affine), (scan.size, &scan.affine))
                    .map_err(|what| Error::input(other.path(), format!("(case {}) {what}", case.id)))?;
            }
        }
        if let Some(point) = case.point {
            let to_voxels = inverses.entry(first.path()).or_insert_with(|| inverse(&scan.affine));
            let voxel = to_voxels.map(|a| apply(&a, point));
            let inside = |v: &[f64; 3]| (0..3).all(|a| v[a] >= -EDGE && v[a] <= scan.size[a] as f64 - 1.0 + EDGE);
            if !voxel.as_ref().is_some_and(inside) {
                let what = format!(
                    "case {}: the place {point:.1?} mm (right, anterior, superior) is voxel {:.1?} of {}, outside its {:?} voxels; check the signs and columns of the coordinates",
                    case.id,
                    voxel.unwrap_or([f64::NAN; 3]),
                    first.path().display(),
                    scan.size
                );
                return Err(Error::input(path, what));
            }
        }
    }
    Ok(())
}

/// The headers of all scan files, read once each.
fn headers<'a>(path: &Path, table: &'a Table) -> Result<HashMap<&'a Path, Header>> {
    let mut first_use: HashMap<&Path, (&Case, bool)> = HashMap::new();
    let mut paths = Vec::new();
    for case in &table.cases {
        let mask = match &case.truth {
            Truth::Mask(mask) => Some(mask),
            Truth::Labels(_) => None,
        };
        for image in case.images.iter().chain(mask) {
            let series = match image {
                Image::Scan(_) => false,
                Image::Volume { .. } => true,
                Image::Cube { .. } => continue,
            };
            first_use.entry(image.path()).or_insert_with(|| {
                paths.push(image.path());
                (case, series)
            });
        }
    }
    let read = |p: &&'a Path| {
        let series = first_use.get(p).is_some_and(|u| u.1);
        if series { image::read_series_header(p) } else { image::read_header(p) }
    };
    let results: Vec<Result<Header>> = paths.par_iter().map(read).collect();
    let failed = results.iter().filter(|r| r.is_err()).count();
    let mut out = HashMap::with_capacity(paths.len());
    for (p, result) in paths.into_iter().zip(results) {
        match result {
            Ok(header) => {
                out.insert(p, header);
            }
            Err(Error::Input { path: file, what }) => {
                let more = if failed > 1 { format!("; {} other files cannot be used either", failed - 1) } else { String::new() };
                let case = first_use.get(p).map_or("", |u| u.0.id.as_str());
                return Err(Error::input(file, format!("{what} (case {case} of {}{more})", path.display())));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(out)
}
