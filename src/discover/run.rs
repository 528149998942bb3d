//! The whole self-discovery: from a prepared set to the manifest of its pseudo labels.
//!
//! ```text
//! out/autoencoder/                       see `autoencoder`
//! out/{train,validation}_features.npy    see `features`
//! out/cubes/                             see `cubes`; only with discover.write_cubes
//! out/manifest.json                      see `manifest`; written last
//! ```
//! Coordinates are searched first, although classes need both them and the neighbours: the search
//! takes seconds and fails for settings that cannot work, the autoencoder takes hours.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::autoencoder::{self, Found, Scans, Trained, differences, positions, stop};
use super::coordinates::{self, Place, Rules, Tissue};
use super::cubes;
use super::features::Features;
use super::manifest::{Header, Inputs, Manifest, Scan};
use super::neighbours::Ranking;
use crate::config::{Config, Filter};
use crate::data::store::{Split, Store};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::Context;
use crate::kernels::knn;
use crate::plan::Options;
use crate::train::phase::Observer;
use crate::train::pretrain::Data;

/// Name of the manifest in the folder of a discovery.
pub const MANIFEST: &str = "manifest.json";

/// Discovers the pseudo labels of `store` and keeps all that belongs to them in `out`.
///
/// What is in `out` already is used again as far as seed, settings and scans are the same. With
/// `resume`, an unfinished autoencoder is continued, to the same bytes as without the stop, and one
/// of other settings is an error; otherwise both are trained from the start.
///
/// # Errors
/// Settings, scans or a grid that cannot work, before anything is done; [`Error::Interrupted`]
/// after an orderly stop; what training, the device or the files report.
pub fn run(
    ctx: &Context,
    config: &Config,
    store: &Store,
    out: &Path,
    resume: bool,
    interrupted: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Arc<Manifest>> {
    check(config, store)?;
    let (mut config, places) = decide(config, store, interrupted, observer)?;
    let batch = config.discover.autoencoder.batch_size.min(positions(store, Split::Train).len());
    let (fitted, fit) = autoencoder::fitted(&config, ctx.caps(), &Options::of(ctx), batch)?;
    if config.discover.autoencoder.micro_batch.given().is_none() {
        observer.note(&format!("autoencoder: {fit}"));
    }
    if fitted.input.given() != Some(config.autoencoder_input()) {
        observer.note(&format!(
            "discover.autoencoder.input is {:?}, the most that fits this adapter",
            fitted.input.given().unwrap_or_default()
        ));
    }
    config.discover.autoencoder = fitted;
    let config = &config;
    let (folder, path) = (out.join("autoencoder"), out.join(MANIFEST));
    let found = autoencoder::find(config, store, &folder, resume, observer)?;
    if let Found::Finished(trained) = &found
        && let Some(manifest) = reusable(config, store, trained, &path, observer)?
    {
        if config.discover.write_cubes {
            cubes::write(&manifest, store, &out.join("cubes"), interrupted)?;
        }
        return Ok(Arc::new(manifest));
    }
    files::create_dir(out)?;
    // The manifest stands for a complete discovery, and what was there is not one of these settings.
    if path.exists() {
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    cubes::remove(&out.join("cubes"))?;
    let size = config.autoencoder_input();
    let mut scans = None;
    let trained = match found {
        Found::Finished(trained) => {
            observer.note(&format!("the autoencoder in {} is used again", folder.display()));
            trained
        }
        unfinished => {
            let unfinished = if let Found::Unfinished(u) = unfinished { Some(*u) } else { None };
            let scans = scans.insert(Scans::new(store, size, interrupted)?);
            autoencoder::train(ctx, config, scans, &folder, unfinished, interrupted, observer)?
        }
    };
    let features = match Features::stored(out, store, &trained) {
        Some(features) => features,
        None => {
            let scans = match scans {
                Some(scans) => scans,
                None => Scans::new(store, size, interrupted)?,
            };
            let batch = config.discover.autoencoder.micro_batch.given().unwrap_or(batch);
            let features = Features::compute(ctx, &trained, &scans, store, batch, interrupted)?;
            features.save(out, store, &trained)?;
            features
        }
    };
    if features.alike() {
        observer.note(
            "all patients have the same features, so neighbours mean nothing; train the autoencoder longer (discover.autoencoder.epochs, max_steps)",
        );
    }
    stop(interrupted, "looking for neighbours")?;
    let (train, validation) = neighbours(ctx, config, &features, &places)?;
    let manifest = Manifest::build(Inputs {
        config,
        modality: store.modality(),
        grid: store.grid(),
        store: store.hash(),
        autoencoder: &trained.hash,
        scans: store.scans().iter().map(|s| Scan { id: s.id.clone(), sha256: s.content.clone(), split: s.split }).collect(),
        places: &places,
        train: &train,
        validation: &validation,
    })?;
    if config.discover.write_cubes {
        cubes::write(&manifest, store, &out.join("cubes"), interrupted)?;
    }
    manifest.save(&path)?;
    Ok(Arc::new(manifest))
}

/// What pretraining learns from: the crops of `manifest`, cut from the volumes of `store` as they are asked for.
///
/// # Errors
/// A manifest that was made from another prepared set, and volumes that cannot be opened.
pub fn data(manifest: &Arc<Manifest>, store: &Store) -> Result<Data> {
    manifest.check_store(store.hash())?;
    let volumes = Arc::new((0..store.scans().len()).map(|i| store.volume(i)).collect::<Result<Vec<_>>>()?);
    Ok(Data {
        train: manifest.samples(Split::Train, Arc::clone(&volumes))?,
        validation: manifest.samples(Split::Validation, volumes)?,
        manifest: manifest.hash(),
        recipe: Some(store.recipe().clone()),
    })
}

/// Whether settings and scans can work at all.
fn check(config: &Config, store: &Store) -> Result<()> {
    config.validate()?;
    let (train, validation) = (positions(store, Split::Train), positions(store, Split::Validation));
    let n = store.scans().len();
    if n < 2 {
        return Err(Error::input(
            store.dir(),
            format!("holds {n} scans, but discovery needs one to learn from and one to validate on; prepare at least 2 scans"),
        ));
    }
    let (Some(&first), false) = (train.first(), validation.is_empty()) else {
        return Err(Error::input(
            store.dir(),
            format!(
                "holds {} train and {} validation scans, but at least one of each is needed; set prepare.validation_fraction and prepare again",
                train.len(),
                validation.len()
            ),
        ));
    };
    let (id, grid, cube) = (&store.scans()[first].id, store.grid(), config.cube.size);
    if let Some(a) = (0..3).find(|&a| grid[a] < cube[a]) {
        return Err(Error::input(
            store.dir(),
            format!(
                "scan {id} has the prepared grid {grid:?}, smaller than the cube of {cube:?} along {}; set a smaller cube.size, or prepare again with a finer prepare.spacing or a larger prepare.grid",
                ["x", "y", "z"][a]
            ),
        ));
    }
    let d = &config.discover;
    for (key, k, n) in
        [("discover.neighbours", d.neighbours, train.len()), ("discover.validation_neighbours", d.validation_neighbours, validation.len())]
    {
        if k.min(n) > knn::MAX_K {
            return Err(Error::Usage(format!("configuration key `{key}`: {k} is too large; at most {} neighbours are found", knn::MAX_K)));
        }
    }
    Rules::new(config, store.modality()).starts(id, grid).map(|_| ())
}

/// The manifest at `path` if it is the one that `config` and `trained` make of `store`.
fn reusable(config: &Config, store: &Store, trained: &Trained, path: &Path, observer: &mut dyn Observer) -> Result<Option<Manifest>> {
    if !path.exists() {
        return Ok(None);
    }
    let manifest = match Manifest::load(path) {
        Ok(manifest) => manifest,
        Err(e) => {
            observer.note(&format!("the manifest is made again: {e}"));
            return Ok(None);
        }
    };
    let mut expected = Header::new(config, store.modality(), store.grid(), store.hash(), &trained.hash);
    // Whether cubes are written as well changes no crop.
    expected.discover.write_cubes = manifest.header().discover.write_cubes;
    if *manifest.header() == expected {
        observer.note(&format!("{} is used again", path.display()));
        return Ok(Some(manifest));
    }
    let json = |h: &Header| serde_json::to_value(h).map_err(|e| Error::Failed(e.to_string()));
    let what = differences(&json(manifest.header())?, &json(&expected)?);
    observer.note(&format!("{} is made again: it was made with other settings or scans ({what} differ)", path.display()));
    Ok(None)
}

/// The configuration with its tissue filter decided, and the coordinates. Where the filter is left to the program and no
/// lung is to be found in scans by CT (of an abdomen, say), it is the one for other tissue.
fn decide(config: &Config, store: &Store, interrupted: &AtomicBool, observer: &mut dyn Observer) -> Result<(Config, Vec<Place>)> {
    let lung = Rules::new(config, store.modality());
    let mut config = config.clone();
    let found = match places(&config, store, &lung, interrupted) {
        Err(Error::Failed(why)) if config.discover.filter == Filter::Auto && matches!(lung.tissue, Tissue::Lung { .. }) => {
            observer.note(&format!("discover.filter is foreground instead of lung, as the scans show too little lung: {why}"));
            config.discover.filter = Filter::Foreground;
            places(&config, store, &Rules::new(&config, store.modality()), interrupted)?
        }
        found => found?,
    };
    Ok((config, found))
}

fn places(config: &Config, store: &Store, rules: &Rules, interrupted: &AtomicBool) -> Result<Vec<Place>> {
    let train = positions(store, Split::Train);
    let ids: Vec<&str> = train.iter().map(|&i| store.scans()[i].id.as_str()).collect();
    let volume = |row: usize| {
        stop(interrupted, "looking for coordinates")?;
        store.volume(train[row])
    };
    coordinates::find(rules, config.model.classes, config.seed, &ids, volume, |_| {})
}

/// Per class, the train and the validation rows nearest to its reference; only rows of references are compared.
fn neighbours(ctx: &Context, config: &Config, features: &Features, places: &[Place]) -> Result<(Vec<Ranking>, Vec<Ranking>)> {
    let width = features.width;
    let row = |p: &Place| features.train.chunks_exact(width).nth(p.reference as usize);
    let references: Vec<f32> = places.iter().filter_map(row).flatten().copied().collect();
    let near = |base: &[f32], k: usize| knn::nearest(ctx, &references, base, width, k.min(base.len() / width));
    let d = &config.discover;
    Ok((near(&features.train, d.neighbours)?, near(&features.validation, d.validation_neighbours)?))
}
