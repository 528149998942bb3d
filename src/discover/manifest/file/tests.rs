use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Modality};
use crate::data::cubes::{Dense, Voxels, cut};
use crate::discover::coordinates::{Rules, Tissue, find};
use crate::discover::manifest::Inputs;
use crate::discover::neighbours::nearest;
use crate::rng::{Key, Purpose, unit_f32};
use crate::train::loader::{Batch, Loader};

fn config() -> Config {
    let mut c = Config { seed: 11, ..Config::default() };
    c.model.classes = 5;
    c.cube.size = [16, 16, 8];
    c.discover.neighbours = 4;
    c.discover.validation_neighbours = 2;
    c
}

/// Every third scan is for validation.
fn scans(n: usize) -> Vec<Scan> {
    let split = |i| if i % 3 == 2 { Split::Validation } else { Split::Train };
    (0..n).map(|i| Scan { id: format!("scan-{i}"), sha256: files::sha256_hex(&[i as u8]), split: split(i) }).collect()
}

/// A manifest of `n` scans with made-up features, built as the discovery builds it.
fn build(config: &Config, n: usize, grid: [usize; 3]) -> Result<Manifest> {
    let scans = scans(n);
    let key = Key::new(5).purpose(Purpose::Check, 0);
    let features = |split| -> Vec<f32> {
        let of = |i: usize| (0..8).map(move |f| unit_f32(key.fold(i as u32, f).draw(0)[0]));
        scans.iter().enumerate().filter(|(_, s)| s.split == split).flat_map(|(i, _)| of(i)).collect()
    };
    let (train, validation) = (features(Split::Train), features(Split::Validation));
    let ids: Vec<&str> = scans.iter().filter(|s| s.split == Split::Train).map(|s| s.id.as_str()).collect();
    let rules = Rules { tissue: Tissue::Any, ..Rules::new(config, Modality::Ct) };
    let empty = Dense::from_fn(grid, |_, _, _| 0.0);
    let places = find(&rules, config.model.classes, config.seed, &ids, |_| Ok(&empty), |_| {})?;
    let rank = |features: &[f32], k| -> Result<Vec<Ranking>> {
        places.iter().map(|p| nearest(&train[8 * p.reference as usize..][..8], features, 8, k)).collect()
    };
    let (near, near_validation) = (rank(&train, config.discover.neighbours)?, rank(&validation, config.discover.validation_neighbours)?);
    Manifest::build(Inputs {
        config,
        modality: Modality::Ct,
        grid,
        store: "store-hash",
        autoencoder: "weights-hash",
        scans,
        places: &places,
        train: &near,
        validation: &near_validation,
    })
}

fn small() -> Manifest {
    build(&config(), 9, [40, 36, 20]).unwrap()
}

fn written(m: &Manifest) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.json");
    m.save(&path).unwrap();
    (dir, path)
}

#[test]
fn a_saved_manifest_reads_back_exactly_and_a_rerun_replaces_it() {
    let m = small();
    let (dir, path) = written(&m);
    assert_eq!(Manifest::load(&path).unwrap(), m);
    let first = std::fs::read(&path).unwrap();
    assert_eq!(m.hash(), files::sha256_hex(&first));
    small().save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "the same inputs give the same bytes");
    let other = build(&Config { seed: 12, ..config() }, 9, [40, 36, 20]).unwrap();
    other.save(&path).unwrap();
    assert_eq!(Manifest::load(&path).unwrap(), other);
    assert_ne!(other, m);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Every class and neighbour has all its crops, the last one included.
#[test]
fn all_crops_are_listed_and_can_be_cut() {
    let m = small();
    assert_eq!((m.train(), m.validation()), (0..5 * 4 * 3, 60..60 + 5 * 2));
    let volume = Dense::from_fn(m.header().grid, |x, y, z| (x * 1600 + y * 40 + z) as f32);
    for (i, crop) in (0u32..).zip(m.crops()) {
        let (j, per_class) = if i < 60 { (i, 12) } else { (i - 60, 2) };
        assert_eq!(crop.label, j / per_class);
        assert_eq!((crop.rank, crop.resolution), if i < 60 { (j % 12 / 3, j % 3 + 1) } else { (j % 2, 1) });
        let class = &m.classes()[crop.label as usize];
        let list = if i < 60 { &class.train } else { &class.validation };
        assert_eq!((crop.scan, m.distance(i).unwrap()), list[crop.rank as usize]);
        let cube = cut(&volume, &m.entry(i).unwrap()).unwrap();
        assert_eq!(cube.len(), 16 * 16 * 8);
        if crop.resolution == 1 {
            assert_eq!(cube, volume.window(class.start, [16, 16, 8]));
        }
    }
    assert_eq!((m.entry(70), m.distance(70)), (None, None));
    let windows: HashSet<_> = m.crops().iter().filter(|c| c.resolution > 1).map(|c| (c.start, c.size)).collect();
    assert!(windows.len() > 20, "windows are drawn separately per neighbour and resolution");
}

/// From manifest and volumes to batches: every cube is the one its crop describes.
#[test]
fn the_loader_gives_the_cubes_of_the_manifest() {
    let m = Arc::new(small());
    let grid = m.header().grid;
    let volume = |s: usize| Dense::from_fn(grid, move |x, y, z| ((s * 31 + x * 7 + y * 5 + z * 3) % 64) as f32 / 64.0);
    let volumes: Arc<Vec<Dense>> = Arc::new((0..9).map(volume).collect());
    let check = |b: &Batch| {
        for (i, cube) in b.samples.iter().zip(b.cubes.chunks(16 * 16 * 8)) {
            let entry = m.entry(*i).unwrap();
            assert_eq!(cut(&volumes[entry.source as usize], &entry).unwrap(), cube);
        }
        assert!(b.samples.iter().zip(&b.targets).all(|(&i, &l)| m.crops()[i as usize].label == l));
    };
    let train = m.samples(Split::Train, Arc::clone(&volumes)).unwrap();
    let mut seen: Vec<u32> = Vec::new();
    for b in Loader::train(Arc::clone(&train), 12, Key::new(1), 0, 0).unwrap().take(train.train_batches(12)) {
        let b = b.unwrap();
        check(&b);
        seen.extend(b.samples);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(m.train()));
    let validation = m.samples(Split::Validation, Arc::clone(&volumes)).unwrap();
    let batches: Vec<Batch> = Loader::validation(validation, 4).unwrap().map(Result::unwrap).collect();
    batches.iter().for_each(check);
    assert!(batches.iter().flat_map(|b| &b.samples[..b.valid]).copied().eq(m.validation()));

    let e = m.samples(Split::Train, Arc::new(volumes[1..].to_vec())).err().unwrap().to_string();
    assert!(e.contains("9 scans") && e.contains("holds 8"), "{e}");
    let mut other = volumes.to_vec();
    other[3] = Dense::from_fn([8, 8, 8], |_, _, _| 0.0);
    let e = m.samples(Split::Train, Arc::new(other)).err().unwrap().to_string();
    assert!(e.contains("scan-3") && e.contains("[8, 8, 8]"), "{e}");
}

#[test]
fn one_resolution_only_on_request() {
    let mut c = config();
    c.cube.multi_resolution = false;
    let m = build(&c, 9, [40, 36, 20]).unwrap();
    assert_eq!(m.train(), 0..20);
    assert!(m.crops().iter().all(|crop| crop.resolution == 1));
}

#[test]
fn more_neighbours_than_scans_are_all_scans() {
    let mut c = config();
    c.discover.neighbours = 200;
    c.discover.validation_neighbours = 30;
    let m = build(&c, 9, [40, 36, 20]).unwrap();
    assert!(m.classes().iter().all(|c| c.train.len() == 6 && c.validation.len() == 3));
    // The draws of a neighbour do not depend on how many there are.
    let few = small();
    for (a, b) in m.classes().iter().zip(few.classes()) {
        assert_eq!(a.start, b.start);
        assert_eq!(a.train[..4], b.train[..]);
        let crops = |m: &Manifest| -> Vec<Crop> { m.crops().iter().filter(|c| c.label == a.label && c.rank < 4).copied().collect() };
        assert_eq!(crops(&m)[..12], crops(&few)[..12]);
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let c = config();
    let inputs = |grid, places: &'static [crate::discover::coordinates::Place]| Inputs {
        config: &c,
        modality: Modality::Ct,
        grid,
        store: "s",
        autoencoder: "a",
        scans: scans(9),
        places,
        train: &[],
        validation: &[],
    };
    let e = Manifest::build(inputs([40, 36, 20], &[])).unwrap_err().to_string();
    assert!(e.contains("5 classes"), "{e}");
    let m = small();
    assert!(m.check_store("store-hash").is_ok());
    let e = m.check_store("other-hash").unwrap_err().to_string();
    assert!(e.contains("store-hash") && e.contains("other-hash"), "{e}");
}

#[test]
fn the_published_number_of_crops_loads_fast() {
    let mut c = Config::default();
    c.discover.margin = [0; 3];
    let m = build(&c, 345, [128, 128, 64]).unwrap();
    assert_eq!((m.train().len(), m.validation().len()), (26_400, 1_320));
    let (_dir, path) = written(&m);
    let start = std::time::Instant::now();
    assert_eq!(Manifest::load(&path).unwrap(), m);
    assert!(start.elapsed().as_secs_f64() < 2.0, "{:?}", start.elapsed());
}

/// Applies `change` to the JSON of a good manifest and returns the error of loading it.
fn error_after(change: impl FnOnce(&mut Value)) -> String {
    let (_dir, path) = written(&small());
    let mut v: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut v);
    std::fs::write(&path, v.to_string()).unwrap();
    let e = Manifest::load(&path).unwrap_err();
    assert_eq!(e.exit_code(), 2);
    assert!(e.to_string().contains("manifest.json"), "{e}");
    e.to_string()
}

#[test]
fn hostile_files_are_errors_that_say_what_is_wrong() {
    type Change = fn(&mut Value);
    let cases: &[(Change, &str)] = &[
        (|v| v["header"]["format"] = json!("cubes"), "\"cubes\""),
        (|v| v["header"]["version"] = json!(2), "version 2"),
        (|v| v["header"]["version"] = json!("one"), "not a manifest"),
        (|v| v["header"]["grid"] = json!([40, 36, 0]), "grid [40, 36, 0]"),
        (|v| v["header"]["grid"] = json!([40, 36, 1e30]), "not a manifest"),
        (|v| v["header"]["grid"] = json!([40, 36, u64::MAX]), "grid"),
        (|v| v["header"]["grid"] = json!([17, 36, 20]), "leaves the grid"),
        (|v| v["header"]["cube"]["size"] = json!([41, 16, 8]), "does not fit the grid"),
        (|v| v["header"]["cube"]["size"] = json!([0, 16, 8]), "does not fit the grid"),
        (|v| v["header"]["windows"]["side"] = json!([1, 4000]), "window ranges"),
        (|v| v["header"]["resize"] = json!("nearest"), "resize rule"),
        (|v| v["header"]["classes"] = json!(44), "44 classes"),
        (|v| v["header"]["surprise"] = json!(1), "surprise"),
        (|v| v["scans"][1]["id"] = json!("scan-0"), "taken"),
        (|v| v["scans"][1]["sha256"] = json!("é".repeat(32)), "64 hexadecimal"),
        (|v| v["classes"][2]["label"] = json!(1), "class 2: its label is 1"),
        (|v| v["classes"][0]["start"] = json!([u64::MAX, 0, 0]), "class 0: the cube"),
        (|v| v["classes"][0]["train"][0] = json!([99, 0.0]), "the reference"),
        (|v| v["classes"][0]["train"][1] = json!([99, 0.5]), "scan 99"),
        (|v| v["classes"][0]["train"][1][0] = json!(2), "not a Train scan"),
        (|v| v["classes"][0]["train"][3] = v["classes"][0]["train"][2].clone(), "twice"),
        (|v| v["classes"][0]["train"][1][1] = json!(1e30), "ordered"),
        (|v| v["classes"][0]["train"][1][1] = json!(-1.0), "ordered"),
        (|v| v["classes"][0]["train"] = json!([]), "the reference"),
        (|v| v["columns"][0] = json!("class"), "columns"),
        (|v| v["train"][7][0] = json!(3), "train crop 7: label 3"),
        (|v| v["train"][7][3] = json!(4_000_000_000u32), "scan 4000000000"),
        (|v| v["train"][0][4] = json!(0), "train crop 0: the window"),
        (|v| v["train"][1][7] = json!(u32::MAX), "train crop 1: the window"),
        (|v| v["train"][1][6] = json!(13), "train crop 1: the window"),
        (|v| v["train"][0][4] = json!(-1), "not a manifest"),
        (|v| v["train"][0] = json!([1, 2]), "not a manifest"),
        (|v| drop(v["train"].as_array_mut().unwrap().pop()), "59 train crops"),
        (|v| drop(v["validation"].as_array_mut().unwrap().pop()), "9 validation crops"),
        (|v| drop(v.as_object_mut().unwrap().remove("classes")), "classes"),
        (|v| *v = json!([]), "not a manifest"),
    ];
    for (change, says) in cases {
        let e = error_after(change);
        assert!(e.contains(says), "expected {says:?} in: {e}");
    }
}

#[test]
fn truncated_files_are_errors() {
    let (_dir, path) = written(&small());
    let bytes = std::fs::read(&path).unwrap();
    for n in [0, 1, 10, bytes.len() / 2, bytes.len() - 3] {
        std::fs::write(&path, &bytes[..n]).unwrap();
        assert!(Manifest::load(&path).unwrap_err().to_string().contains("not a manifest"), "{n} bytes");
    }
    std::fs::write(&path, "[".repeat(1_000_000)).unwrap();
    assert!(Manifest::load(&path).is_err());
    assert!(Manifest::load(&path.with_file_name("none.json")).unwrap_err().to_string().contains("none.json"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_manifest_reads_back(
        seed in any::<u32>(),
        classes in 2usize..6,
        n in 3usize..12,
        k in 1usize..9,
        cube in prop::array::uniform3(1usize..12),
        room in prop::array::uniform3(12usize..24),
        threshold in 0f32..1.0,
        multi_resolution in any::<bool>(),
    ) {
        let mut c = Config { seed, ..Config::default() };
        c.model.classes = classes;
        c.cube.size = cube;
        c.cube.multi_resolution = multi_resolution;
        c.discover.neighbours = k;
        c.discover.tissue_threshold = threshold;
        c.discover.min_distance = 1.0;
        let grid = std::array::from_fn(|a| cube[a] + room[a]);
        let m = build(&c, n, grid).unwrap();
        for crop in m.crops() {
            prop_assert!((0..3).all(|a| crop.size[a] > 0 && crop.start[a] + crop.size[a] <= grid[a]));
        }
        let (_dir, path) = written(&m);
        prop_assert_eq!(Manifest::load(&path).unwrap(), m);
    }
}
