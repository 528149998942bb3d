//! The pictures of a run.

use crate::data::cubes::cut;
use crate::data::phantom::Patient;
use crate::data::store::{Prepared, Store};
use crate::discover::manifest::{Class, Manifest};
use crate::error::Result;
use crate::report::preview::{self, Neighbours, Restoration};
use crate::report::sheet::{Sheet, Tile};
use crate::train::phase::Restored;

/// Rows of neighbours and neighbours in a row.
const NEIGHBOURS: [usize; 2] = [5, 5];
/// Rows of crops and crops in a row.
const CROPS: [usize; 2] = [10, 6];
/// Scans on the sheet of a prepared store.
const SCANS: usize = 6;

/// Middle slices of the first `count` synthetic patients.
pub(super) fn phantoms(seed: u32, count: usize, types: usize, size: [usize; 3], spacing: [f64; 3]) -> Result<Sheet> {
    let mut sheet = Sheet::new("Synthetic patients")
        .note("Middle slices; -1000 to 600 HU. The patient's left is on the right.")
        .columns(&["axial", "coronal", "sagittal"]);
    for index in (0u32..).take(count) {
        let patient = Patient::draw(seed, index, types);
        let (scan, _) = patient.render(size, spacing);
        let values: Vec<f32> = scan.data.iter().map(|hu| (hu + 1000.0) / 1600.0).collect();
        sheet = sheet.row(format!("patient {index}, type {}", patient.body_type), slices(&values, size, spacing)?);
    }
    Ok(sheet)
}

/// Middle slices of the first scans of a store.
pub(super) fn prepared(store: &Store) -> Result<Sheet> {
    let note = format!("{} scans, values in [0, 1]. The patient's left is on the right.", store.scans().len());
    let mut sheet = Sheet::new("Prepared scans").note(note).columns(&["axial", "coronal", "sagittal"]);
    for (i, scan) in store.scans().iter().enumerate().take(SCANS) {
        sheet = sheet.row(&scan.id, slices(&store.volume(i)?.all(), store.grid(), store.spacing())?);
    }
    Ok(sheet)
}

fn slices(values: &[f32], size: [usize; 3], spacing: [f64; 3]) -> Result<Vec<Tile>> {
    let [axial, coronal, sagittal] = preview::slices(values, size)?;
    let [x, y, z] = spacing;
    Ok(vec![axial.aspect(y / x), coronal.aspect(z / x), sagittal.aspect(z / y)])
}

/// Some classes: the reference patient and its nearest neighbours, at the class's place.
pub(super) fn neighbours(manifest: &Manifest, store: &Store) -> Result<Sheet> {
    let mut rows: Vec<(&Class, Neighbours)> = Vec::new();
    for class in manifest.classes() {
        // One row per reference patient shows more.
        if rows.len() == NEIGHBOURS[0] || rows.iter().any(|(c, _)| c.reference == class.reference) {
            continue;
        }
        let tile = |scan: u32| -> Result<Tile> {
            let scan = scan as usize;
            let name = store.scans().get(scan).map_or("", |s| s.id.as_str());
            place(&store.volume(scan)?, store.spacing(), class, manifest.header().cube.size).map(|t| t.caption(name))
        };
        let others = class.train.iter().filter(|(scan, _)| *scan != class.reference).take(NEIGHBOURS[1]);
        let nearest = others.map(|&(scan, d)| Ok((tile(scan)?, d))).collect::<Result<_>>()?;
        rows.push((class, Neighbours { label: format!("class {}", class.label), reference: tile(class.reference)?, nearest }));
    }
    let title = "The same place in patients that look alike";
    Ok(preview::neighbours_sheet(title, rows.into_iter().map(|(_, row)| row).collect()))
}

/// The axial slice through the middle of a class's crop, with the crop framed.
fn place(volume: &Prepared, spacing: [f64; 3], class: &Class, cube: [usize; 3]) -> Result<Tile> {
    let [nx, ny, nz] = volume.size();
    let z = (class.start[2] + cube[2] / 2).min(nz - 1);
    let mut slice = volume.window([0, 0, z], [nx, ny, 1]);
    let ([x0, y0], [x1, y1]) = ([class.start[0], class.start[1]], [class.start[0] + cube[0] - 1, class.start[1] + cube[1] - 1]);
    let frame = (x0..=x1).flat_map(|x| [(x, y0), (x, y1)]).chain((y0..=y1).flat_map(|y| [(x0, y), (x1, y)]));
    for (x, y) in frame.filter(|&(x, y)| x < nx && y < ny) {
        slice[x * ny + y] = 1.0;
    }
    Ok(preview::axial(&slice, [nx, ny, 1], 0)?.aspect(spacing[1] / spacing[0]))
}

/// One row of training crops for every class, as far as they fit.
pub(super) fn crops(manifest: &Manifest, store: &Store) -> Result<Sheet> {
    let size = manifest.header().cube.size;
    let mut rows = Vec::new();
    for class in manifest.classes().iter().take(CROPS[0]) {
        let mut tiles = Vec::new();
        let of_class =
            manifest.train().filter(|&i| manifest.crops().get(i as usize).is_some_and(|c| c.label == class.label && c.resolution == 1));
        for i in of_class.take(CROPS[1]) {
            if let Some(entry) = manifest.entry(i) {
                let cube = cut(&store.volume(entry.source as usize)?, &entry)?;
                tiles.push(preview::axial(&cube, size, size[2] / 2)?);
            }
        }
        rows.push((format!("label {}", class.label), tiles));
    }
    Ok(preview::crops_sheet("Crops that share a label share a row", rows))
}

/// Crops before, distorted and restored.
pub(super) fn restorations(title: &str, size: [usize; 3], rows: &[Restored]) -> Result<Sheet> {
    let error = |a: &[f32], b: &[f32]| {
        let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        sum / a.len().max(1) as f64
    };
    let rows: Vec<Restoration> = rows
        .iter()
        .map(|r| Restoration {
            label: if r.what.is_empty() { format!("scan {}", r.sample) } else { r.what.clone() },
            size,
            original: &r.original,
            transformed: &r.transformed,
            restored: &r.restored,
            metrics: format!("MSE {:.5} (input {:.5})", error(&r.restored, &r.original), error(&r.transformed, &r.original)),
        })
        .collect();
    preview::restoration_sheet(title, &rows)
}
