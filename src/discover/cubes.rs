//! All cubes of a manifest as files, for other programs (`discover.write_cubes`).
//!
//! `train_cubes.npy` and `validation_cubes.npy` are f32 `[n, x, y, z]`, exactly what training sees
//! before any distortion (windows at resolutions 2 and 3 are interpolated, so 16 bits would not do);
//! `train_labels.npy` and `validation_labels.npy` are i64 `[n]`. Row i is crop i of the split in the
//! manifest's order. `cubes.json` is written last and says which manifest they belong to.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use npyz::WriterBuilder;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::autoencoder::stop;
use super::manifest::Manifest;
use crate::data::cubes::cut;
use crate::data::store::{Prepared, Store};
use crate::error::{Error, Result};
use crate::files;

/// Cubes in the making take at most this much memory.
const BYTES: usize = 64 << 20;
const ABOUT: &str = "cubes.json";
const SPLITS: [&str; 2] = ["train", "validation"];

/// Writes the cubes of `manifest` to the folder `dir`, unless they are there already; returns whether they had to be.
///
/// # Errors
/// A manifest of another prepared set, a volume that cannot be read, a failed write;
/// [`Error::Interrupted`].
pub fn write(manifest: &Manifest, store: &Store, dir: &Path, interrupted: &AtomicBool) -> Result<bool> {
    manifest.check_store(store.hash())?;
    let about = json!({ "format": "semantic-genesis cubes", "manifest": manifest.hash() });
    let path = dir.join(ABOUT);
    let found = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if found.is_some_and(|f| f == about) {
        return Ok(false);
    }
    files::create_dir(dir)?;
    remove(dir)?;
    let volumes = (0..store.scans().len()).map(|i| store.volume(i)).collect::<Result<Vec<_>>>()?;
    for (name, crops) in SPLITS.into_iter().zip([manifest.train(), manifest.validation()]) {
        split(manifest, &volumes, crops.clone(), &dir.join(format!("{name}_cubes.npy")), interrupted)?;
        let labels: Vec<i64> = crops.filter_map(|i| manifest.crops().get(i as usize)).map(|c| i64::from(c.label)).collect();
        files::write_atomic(&dir.join(format!("{name}_labels.npy")), |out| {
            let mut writer = npyz::WriteOptions::new().default_dtype().shape(&[labels.len() as u64]).writer(out).begin_nd()?;
            writer.extend(labels)?;
            writer.finish()
        })?;
    }
    files::write_atomic(&path, |out| writeln!(out, "{about}"))?;
    Ok(true)
}

/// Removes the cubes in `dir`, if there are any, their mark first.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let arrays = SPLITS.iter().flat_map(|split| ["cubes", "labels"].map(|what| format!("{split}_{what}.npy")));
    for path in std::iter::once(ABOUT.to_owned()).chain(arrays).map(|name| dir.join(name)) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn split(manifest: &Manifest, volumes: &[Prepared], crops: Range<u32>, path: &Path, interrupted: &AtomicBool) -> Result<()> {
    let size = manifest.header().cube.size;
    let together = (BYTES / (4 * size.iter().product::<usize>().max(1))).max(1);
    let [x, y, z] = size.map(|n| n as u64);
    let crop = |&i: &u32| -> Result<Vec<f32>> {
        let gone = || Error::Failed(format!("the manifest has no crop {i}"));
        let entry = manifest.entry(i).ok_or_else(gone)?;
        cut(volumes.get(entry.source as usize).ok_or_else(gone)?, &entry)
    };
    // Why cutting ended early; the writer itself only knows errors of files.
    let mut failure = None;
    let written = files::write_atomic(path, |out| {
        let shape = [crops.len() as u64, x, y, z];
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
        let numbers: Vec<u32> = crops.collect();
        for chunk in numbers.chunks(together) {
            let cubes = stop(interrupted, "writing cubes").and_then(|()| chunk.par_iter().map(crop).collect::<Result<Vec<_>>>());
            match cubes {
                Ok(cubes) => writer.extend(cubes.into_iter().flatten())?,
                Err(e) => {
                    failure = Some(e);
                    return Err(std::io::Error::other("the cubes could not be cut"));
                }
            }
        }
        writer.finish()
    });
    failure.map_or(written, Err)
}
