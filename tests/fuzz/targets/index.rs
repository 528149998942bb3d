//! Files that runs leave for later ones: the manifest of patterns, the index of a prepared store, the log of training.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use semantic_genesis::data::store::{Store, write_array};
use semantic_genesis::discover::manifest::Manifest;
use semantic_genesis::train::log;
use semantic_genesis_fuzz::{Folder, choice};

/// The store has the volumes that its seed lists.
static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new("index");
    std::fs::create_dir_all(folder.path("store/volumes")).expect("folders can be made");
    for id in ["patient_0000", "patient_0001"] {
        write_array(&folder.path(&format!("store/volumes/{id}.npy")), 0..4, [2, 2, 1]).expect("files can be written");
    }
    folder
});

fuzz_target!(|data: &[u8]| {
    let Some((which, text)) = choice(data, 3) else { return };
    match which {
        0 => {
            let path = FOLDER.write("manifest.json", text);
            if let Ok(manifest) = Manifest::load(&path) {
                for i in manifest.train().chain(manifest.validation()) {
                    assert!(manifest.entry(i).is_some());
                    let _ = manifest.distance(i);
                }
                manifest.save(&path).expect("manifests can be written");
                assert_eq!(Manifest::load(&path).expect("what was written is read").hash(), manifest.hash());
            }
        }
        1 => {
            FOLDER.write("store/index.json", text);
            if let Ok(store) = Store::open(&FOLDER.path("store")) {
                for i in 0..store.scans().len() {
                    if let Ok(volume) = store.volume(i) {
                        assert_eq!(volume.all().len(), store.grid().iter().product::<usize>());
                    }
                }
            }
        }
        _ => {
            let _ = log::read(&FOLDER.write("metrics.jsonl", text));
        }
    }
});
