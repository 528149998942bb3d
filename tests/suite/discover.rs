//! Self-discovery end to end: from prepared scans to pseudo labels, stopped, continued and used again.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use semantic_genesis::config::{Auto, Config, Filter};
use semantic_genesis::data::cubes::cut;
use semantic_genesis::data::nifti;
use semantic_genesis::data::prepare::prepare;
use semantic_genesis::data::store::{Split, Store};
use semantic_genesis::data::volume::Volume;
use semantic_genesis::discover::features::{Features, neighbour_score};
use semantic_genesis::discover::manifest::Manifest;
use semantic_genesis::discover::run::{data, run};
use semantic_genesis::error::{Error, Result};
use semantic_genesis::gpu::Context;
use semantic_genesis::rng::{Key, Purpose};
use semantic_genesis::train::loader::Loader;
use semantic_genesis::train::phase::{Observer, Restored};
use serde_json::Value;

use crate::harness;

const SIZE: [usize; 3] = [40, 32, 24];

/// A body of water with two lungs of air; `kind` decides how tall the lungs are, `seed` the rest.
fn patient(kind: usize, seed: u32) -> Volume {
    let mut rng = Key::new(u64::from(seed)).purpose(Purpose::Check, 0).rng();
    let mut vary = |v: f64| v * (0.95 + 0.1 * f64::from(rng.unit()));
    let lung = [vary(0.3), vary(0.5), vary([0.45, 0.9][kind])];
    let body = [vary(0.9), vary(0.9)];
    let mut data = Vec::with_capacity(SIZE.iter().product());
    for i in 0..SIZE[0] * SIZE[1] * SIZE[2] {
        let at = [i / (SIZE[1] * SIZE[2]), i / SIZE[2] % SIZE[1], i % SIZE[2]];
        let [x, y, z] = std::array::from_fn(|a| 2.0 * (at[a] as f64 + 0.5) / SIZE[a] as f64 - 1.0);
        let in_body = (x / body[0]).powi(2) + (y / body[1]).powi(2) < 1.0;
        let in_lung = ((x.abs() - 0.42) / lung[0]).powi(2) + (y / lung[1]).powi(2) + (z / lung[2]).powi(2) < 1.0;
        let hu = if in_lung {
            -800.0
        } else if in_body {
            40.0
        } else {
            -1000.0
        };
        data.push(if in_body { (hu + 20.0 * rng.normal()).round() as f32 } else { hu as f32 });
    }
    // Stored axes are left, posterior, superior.
    let affine = [[-2.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
    Volume::new(data, SIZE, affine).unwrap()
}

fn config() -> Config {
    let mut c = Config { seed: 3, ..Config::default() };
    c.model.classes = 4;
    c.model.depth = 3;
    c.cube.size = [16, 16, 8];
    c.prepare.validation_fraction = 0.3;
    let d = &mut c.discover;
    (d.neighbours, d.validation_neighbours) = (4, 2);
    d.margin = [2, 2, 1];
    d.min_distance = 3.0;
    d.tissue_fraction = 0.95;
    let ae = &mut d.autoencoder;
    (ae.input, ae.base_channels, ae.batch_size, ae.max_steps) = (Auto::Given([16, 16, 8]), Auto::Given(2), 3, 5);
    c
}

/// `n` prepared patients, two kinds in turn.
fn prepared(dir: &Path, n: usize, config: &Config) -> Store {
    let scans = dir.join("scans");
    std::fs::create_dir_all(&scans).unwrap();
    for i in 0..n {
        nifti::write_i16(&scans.join(format!("patient-{i:02}.nii")), &patient(i % 2, i as u32)).unwrap();
    }
    prepare(&[scans], &dir.join("store"), config, &mut |_| {}).unwrap()
}

/// Counts records and stops the run after some.
struct Watch {
    records: Vec<Value>,
    notes: Vec<String>,
    stop_after: usize,
    interrupted: AtomicBool,
}

/// What goes through an [`Observer`] that shares its flag with the run.
struct Shared<'a>(&'a mut Vec<Value>, &'a mut Vec<String>, usize, &'a AtomicBool);

impl Observer for Shared<'_> {
    fn record(&mut self, record: &Value) {
        self.0.push(record.clone());
        if self.0.len() == self.2 {
            self.3.store(true, Ordering::Relaxed);
        }
    }

    fn restorations(&mut self, _: u32, size: [usize; 3], rows: &[Restored]) -> Result<()> {
        assert!(rows.iter().all(|r| r.restored.len() == size.iter().product::<usize>() && r.original == r.transformed));
        Ok(())
    }

    fn note(&mut self, text: &str) {
        self.1.push(text.to_owned());
    }
}

impl Watch {
    fn new(stop_after: usize) -> Self {
        Self { records: Vec::new(), notes: Vec::new(), stop_after, interrupted: AtomicBool::new(false) }
    }

    fn run(&mut self, ctx: &Context, config: &Config, store: &Store, out: &Path, resume: bool) -> Result<Arc<Manifest>> {
        let mut observer = Shared(&mut self.records, &mut self.notes, self.stop_after, &self.interrupted);
        run(ctx, config, store, out, resume, &self.interrupted, &mut observer)
    }
}

fn discover(ctx: &Context, config: &Config, store: &Store, out: &Path) -> (Arc<Manifest>, Watch) {
    let mut watch = Watch::new(usize::MAX);
    let manifest = watch.run(ctx, config, store, out, false).unwrap();
    (manifest, watch)
}

/// The files that a stop, a restart or a reuse must not change.
const RESULTS: [&str; 6] = [
    "autoencoder/last.safetensors",
    "autoencoder/best.safetensors",
    "train_features.npy",
    "validation_features.npy",
    "features.json",
    "manifest.json",
];

fn bytes(out: &Path) -> Vec<Vec<u8>> {
    RESULTS.iter().map(|name| std::fs::read(out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))).collect()
}

fn assert_same(a: &[Vec<u8>], b: &[Vec<u8>]) {
    for ((name, a), b) in RESULTS.iter().zip(a).zip(b) {
        assert!(a == b, "{name} differs");
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files_below(&p) } else { vec![p] }).collect()
}

#[test]
fn a_discovery_is_complete_valid_and_used_again() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, c) = (tempfile::tempdir().unwrap(), config());
    let store = prepared(dir.path(), 9, &c);
    let out = dir.path().join("out");
    let (manifest, watch) = discover(ctx, &c, &store, &out);

    // Six train scans make two steps of three an epoch; the fifth step ends the third.
    let of = |kind: &str| watch.records.iter().filter(|r| r["kind"] == kind).count();
    assert_eq!((of("step"), of("epoch")), (5, 3));
    assert!(watch.records.iter().all(|r| r["phase"] == "autoencoder"));
    let log = semantic_genesis::train::log::read(&out.join("autoencoder/metrics.jsonl")).unwrap();
    assert_eq!(log, watch.records);

    // The manifest on disk is the one returned, and calls for the right patients.
    assert_eq!(Manifest::load(&out.join("manifest.json")).unwrap(), *manifest);
    assert_eq!((manifest.classes().len(), manifest.train().len(), manifest.validation().len()), (4, 4 * 4 * 3, 4 * 2));
    assert_eq!(manifest.header().store, store.hash());
    for (scan, record) in manifest.scans().iter().zip(store.scans()) {
        assert_eq!((&scan.id, &scan.sha256, scan.split), (&record.id, &record.content, record.split));
    }

    // Features are what NumPy would read, and the neighbours are the nearest by brute force.
    let features = Features::load(&out).unwrap();
    assert_eq!(features.width, 2 << 3);
    assert!(!features.alike());
    for (name, rows) in [("train_features.npy", 6), ("validation_features.npy", 3)] {
        let npy = npyz::NpyFile::new(std::fs::File::open(out.join(name)).unwrap()).unwrap();
        assert_eq!((npy.shape(), npy.order()), (&[rows, 16][..], npyz::Order::C));
        assert_eq!(npy.into_vec::<f32>().unwrap(), if rows == 6 { features.train.clone() } else { features.validation.clone() });
    }
    let all = features.all(&store);
    assert_eq!(all.len(), 9 * 16);
    let row = |scan: u32| &all[scan as usize * 16..][..16];
    let distance = |a: u32, b: u32| row(a).iter().zip(row(b)).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
    for class in manifest.classes() {
        for (split, list) in [(Split::Train, &class.train), (Split::Validation, &class.validation)] {
            let mut others: Vec<f64> = (0..9u32)
                .filter(|&s| store.scans()[s as usize].split == split && s != class.reference)
                .map(|s| distance(class.reference, s))
                .collect();
            others.sort_by(f64::total_cmp);
            let listed: Vec<f64> = list.iter().filter(|n| n.0 != class.reference).map(|n| f64::from(n.1)).collect();
            for (a, b) in listed.iter().zip(&others) {
                assert!((a - b).abs() < 1e-5 * (1.0 + b), "{listed:?} {others:?}");
            }
        }
    }
    assert!(neighbour_score(&all, &(0..9).map(|i| i % 2).collect::<Vec<_>>()).is_ok());

    // Another run on the same folder changes nothing, one in another folder gives the same bytes.
    let before = bytes(&out);
    let (again, watch) = discover(ctx, &c, &store, &out);
    assert_eq!(again, manifest);
    assert!(watch.records.is_empty() && watch.notes.iter().any(|n| n.contains("used again")), "{:?}", watch.notes);
    assert_same(&before, &bytes(&out));
    let other = dir.path().join("other");
    discover(ctx, &c, &store, &other);
    assert_same(&before, &bytes(&other));
    assert!(files_below(&out).iter().all(|p| p.extension().is_some_and(|e| e != "partial")));
}

#[test]
fn a_stopped_discovery_continues_to_the_same_bytes() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, c) = (tempfile::tempdir().unwrap(), config());
    let store = prepared(dir.path(), 9, &c);
    let whole = dir.path().join("whole");
    discover(ctx, &c, &store, &whole);
    let want = bytes(&whole);
    // Records: step, step, epoch, step, step, epoch, step, epoch. After the first step, within an
    // epoch, at its end, and after the last.
    for records in [1, 3, 4, 8] {
        let out = dir.path().join(format!("stopped-{records}"));
        let mut first = Watch::new(records);
        let e = first.run(ctx, &c, &store, &out, false).unwrap_err();
        assert!(matches!(e, Error::Interrupted(_)) && e.to_string().contains("--resume"), "{e}");
        assert!(!out.join("manifest.json").exists());
        let mut second = Watch::new(usize::MAX);
        second.run(ctx, &c, &store, &out, true).unwrap();
        assert!(second.records.len() < 8, "work was done twice");
        assert_same(&want, &bytes(&out));
        let without_speed = |path: &Path| -> Vec<Value> {
            let mut log = semantic_genesis::train::log::read(path).unwrap();
            log.iter_mut().for_each(|r| drop(r.as_object_mut().unwrap().remove("cubes_per_s")));
            log
        };
        assert_eq!(without_speed(&out.join("autoencoder/metrics.jsonl")), without_speed(&whole.join("autoencoder/metrics.jsonl")));
    }
    // Without resume the unfinished one is trained from the start, and a user is told.
    let out = dir.path().join("anew");
    Watch::new(4).run(ctx, &c, &store, &out, false).unwrap_err();
    let (_, watch) = discover(ctx, &c, &store, &out);
    assert_eq!(watch.records.len(), 8);
    assert!(watch.notes.iter().any(|n| n.contains("--resume")), "{:?}", watch.notes);
    assert_same(&want, &bytes(&out));
}

#[test]
fn only_what_changed_is_made_again() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, c) = (tempfile::tempdir().unwrap(), config());
    let store = prepared(dir.path(), 6, &c);
    let out = dir.path().join("out");
    let (manifest, _) = discover(ctx, &c, &store, &out);
    let before = bytes(&out);

    // Coordinates only: autoencoder and features stay.
    let mut moved = c.clone();
    moved.discover.min_distance = 4.0;
    let (other, watch) = discover(ctx, &moved, &store, &out);
    assert!(watch.records.is_empty(), "the autoencoder was trained again");
    assert!(watch.notes.iter().any(|n| n.contains("discover.min_distance")), "{:?}", watch.notes);
    assert_ne!(other.hash(), manifest.hash());
    let after = bytes(&out);
    assert_same(&before[..5], &after[..5]);
    assert_ne!(before[5], after[5]);
    // A manifest of its own bytes comes back with its settings, and so does one that was damaged or lost.
    discover(ctx, &c, &store, &out);
    assert_same(&before, &bytes(&out));
    for name in ["manifest.json", "train_features.npy"] {
        let path = out.join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        if name != "manifest.json" {
            std::fs::remove_file(out.join("manifest.json")).unwrap();
        }
        let (_, watch) = discover(ctx, &c, &store, &out);
        assert!(watch.records.is_empty());
        assert_same(&before, &bytes(&out));
    }

    // Settings of the autoencoder: trained again, unless the run was to be continued.
    let mut trained = c.clone();
    trained.discover.autoencoder.learning_rate = 2e-3;
    let e = Watch::new(usize::MAX).run(ctx, &trained, &store, &out, true).unwrap_err().to_string();
    assert!(e.contains("discover.autoencoder.learning_rate") && e.contains("start a new run"), "{e}");
    assert_same(&before, &bytes(&out));
    let (_, watch) = discover(ctx, &trained, &store, &out);
    assert!(!watch.records.is_empty());
    assert!(watch.notes.iter().any(|n| n.contains("discover.autoencoder.learning_rate")), "{:?}", watch.notes);

    // Weights that do not belong to the finished training are not taken for its own.
    let best = out.join("autoencoder/best.safetensors");
    std::fs::write(&best, &before[1]).unwrap();
    let (_, watch) = discover(ctx, &trained, &store, &out);
    assert!(!watch.records.is_empty() && watch.notes.iter().any(|n| n.contains("does not belong")), "{:?}", watch.notes);
}

#[test]
fn cubes_come_from_the_volumes_for_training_and_as_files() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, mut c) = (tempfile::tempdir().unwrap(), config());
    let store = prepared(dir.path(), 6, &c);
    let out = dir.path().join("out");
    let (manifest, _) = discover(ctx, &c, &store, &out);
    assert!(!out.join("cubes").exists());
    // Asked for later, they are written without anything being made again.
    c.discover.write_cubes = true;
    let (again, watch) = discover(ctx, &c, &store, &out);
    assert!(again == manifest && watch.records.is_empty());

    let data = data(&manifest, &store).unwrap();
    assert_eq!((data.train.len(), data.validation.len(), data.manifest.len()), (manifest.train().len(), manifest.validation().len(), 64));
    let voxels = 16 * 16 * 8;
    for (name, crops, samples) in [("train", manifest.train(), &data.train), ("validation", manifest.validation(), &data.validation)] {
        let array = |what: &str| npyz::NpyFile::new(std::fs::File::open(out.join(format!("cubes/{name}_{what}.npy"))).unwrap()).unwrap();
        let (cubes, labels) = (array("cubes"), array("labels"));
        assert_eq!(cubes.shape(), [crops.len() as u64, 16, 16, 8]);
        let (cubes, labels): (Vec<f32>, Vec<i64>) = (cubes.into_vec().unwrap(), labels.into_vec().unwrap());
        assert_eq!(labels.len(), crops.len());
        for ((i, cube), label) in crops.clone().zip(cubes.chunks(voxels)).zip(labels) {
            let entry = manifest.entry(i).unwrap();
            assert_eq!(cut(&store.volume(entry.source as usize).unwrap(), &entry).unwrap(), cube, "crop {i}");
            assert_eq!(i64::from(manifest.crops()[i as usize].label), label);
        }
        let mut seen = HashSet::new();
        for batch in Loader::validation(Arc::clone(samples), 5).unwrap() {
            let batch = batch.unwrap();
            for (&i, cube) in batch.samples.iter().zip(batch.cubes.chunks(voxels)).take(batch.valid) {
                assert_eq!(cube, &cubes[(i - crops.start) as usize * voxels..][..voxels]);
                seen.insert(i);
            }
        }
        assert_eq!(seen.len(), crops.len());
    }
    // They are not written twice, and not taken for those of another manifest.
    let path = out.join("cubes/train_cubes.npy");
    let when = |p: &Path| std::fs::metadata(p).unwrap().modified().unwrap();
    let first = when(&path);
    discover(ctx, &c, &store, &out);
    assert_eq!(when(&path), first);
    c.discover.min_distance = 4.0;
    let (other, _) = discover(ctx, &c, &store, &out);
    let about = std::fs::read_to_string(out.join("cubes/cubes.json")).unwrap();
    assert!(about.contains(&other.hash()) && when(&path) != first, "{about}");
    // Those of an older manifest do not stay beside a new one.
    (c.discover.min_distance, c.discover.write_cubes) = (5.0, false);
    discover(ctx, &c, &store, &out);
    assert_eq!(files_below(&out.join("cubes")), [] as [PathBuf; 0]);

    let elsewhere = tempfile::tempdir().unwrap();
    let another = prepared(elsewhere.path(), 5, &c);
    assert!(semantic_genesis::discover::run::data(&manifest, &another).err().unwrap().to_string().contains("semgen discover"));
}

#[test]
fn few_scans_make_small_steps() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, mut c) = (tempfile::tempdir().unwrap(), config());
    c.discover.autoencoder.max_steps = 2;
    let store = prepared(dir.path(), 2, &c);
    let (manifest, watch) = discover(ctx, &c, &store, &dir.path().join("out"));
    assert!(watch.notes.iter().any(|n| n.contains("1 train scans are fewer")), "{:?}", watch.notes);
    assert_eq!((manifest.train().len(), manifest.validation().len()), (4 * 3, 4));
}

#[test]
fn without_lungs_an_undecided_filter_is_the_one_for_other_tissue() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, mut c) = (tempfile::tempdir().unwrap(), config());
    c.discover.autoencoder.max_steps = 1;
    let store = prepared(dir.path(), 3, &c);
    // No place has no tissue at all.
    c.discover.tissue_fraction = 0.0;
    let (manifest, watch) = discover(ctx, &c, &store, &dir.path().join("out"));
    assert_eq!(manifest.header().discover.filter, Filter::Foreground);
    assert!(watch.notes.iter().any(|n| n.contains("discover.filter is foreground instead of lung")), "{:?}", watch.notes);
    // The decision is part of what the manifest was made with, and is made again alike.
    let (again, watch) = discover(ctx, &c, &store, &dir.path().join("out"));
    assert_eq!(again.hash(), manifest.hash());
    assert!(watch.notes.iter().any(|n| n.contains("is used again")), "{:?}", watch.notes);
}

#[test]
fn what_cannot_work_is_an_error_before_any_work() {
    let Some(ctx) = harness::trusted() else { return };
    let (dir, c) = (tempfile::tempdir().unwrap(), config());
    let store = prepared(dir.path(), 4, &c);
    let out = dir.path().join("out");
    let error = |c: &Config, store: &Store| {
        let e = Watch::new(usize::MAX).run(ctx, c, store, &out, false).unwrap_err().to_string();
        assert!(!out.exists(), "work was done before: {e}");
        e
    };
    let says = |e: String, words: &[&str]| assert!(words.iter().all(|w| e.contains(w)), "{words:?} in: {e}");

    let mut large = c.clone();
    large.cube.size = [32, 32, 32];
    says(error(&large, &store), &["patient-", "[40, 32, 24]", "[32, 32, 32]", "along z", "cube.size", "prepare.spacing", "prepare.grid"]);
    let mut tight = c.clone();
    tight.cube.size = [16, 16, 24];
    says(error(&tight, &store), &["patient-", "along z", "discover.look_ahead"]);
    let mut airy = c.clone();
    (airy.discover.tissue_fraction, airy.discover.filter) = (0.0, Filter::Lung);
    says(error(&airy, &store), &["no coordinate was found for class 0 of 4", "discover.tissue_fraction"]);
    let mut apart = c.clone();
    apart.discover.min_distance = 1e4;
    says(error(&apart, &store), &["class 1 of 4", "discover.min_distance"]);
    let mut none = c.clone();
    none.model.classes = 1;
    says(error(&none, &store), &["model.classes"]);

    let mut one = c.clone();
    one.prepare.grid = Auto::Given(SIZE);
    let alone = tempfile::tempdir().unwrap();
    says(error(&one, &prepared(alone.path(), 1, &one)), &["holds 1 scans", "at least 2"]);
}

#[test]
fn an_autoencoder_left_to_the_program_fits_the_adapter() {
    use semantic_genesis::discover::autoencoder::fitted;
    use semantic_genesis::error::Error;
    use semantic_genesis::gpu::Caps;
    use semantic_genesis::plan::Options;
    let caps = Caps::minimal();
    let mut c = Config::default();
    // Published: 128×128×64 at width 32, more than the smallest adapter binds.
    let settings = fitted(&c, &caps, &Options::default(), 2).unwrap().0;
    assert_eq!((settings.input, settings.base_channels), (Auto::Given([64, 64, 64]), Auto::Given(32)));
    let roomy = Caps { max_binding: 2 << 30, max_buffer: 8 << 30, ..caps.clone() };
    assert_eq!(fitted(&c, &roomy, &Options::default(), 2).unwrap().0.input, Auto::Given([128, 128, 64]));
    // What was given is kept or refused.
    c.discover.autoencoder.input = Auto::Given([128, 128, 64]);
    match fitted(&c, &caps, &Options::default(), 2) {
        Err(Error::ExceedsLimit { remedy, .. }) => assert!(remedy.contains("discover.autoencoder.input"), "{remedy}"),
        other => panic!("{other:?}"),
    }
}
