//! Descriptions of labelled data, beside scans that are there: CSV tables, dataset.json, splits, candidates, recipes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::Volume;
use semantic_genesis::task::Kind;
use semantic_genesis::task::table::{self, Division, Recipe};
use semantic_genesis_fuzz::{Folder, choice};

const DIVISION: Division = Division { seed: 1, folds: 0, fold: 0, validation: 0.3, test: 0.3, fraction: 0.5 };

/// What the descriptions may name.
static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new("tables");
    let affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
    let scan = Volume::new((0..64).map(|i| (i % 3) as f32).collect(), [4; 3], affine).expect("a volume");
    for place in ["csv", "splits/labelsTr", "splits/imagesTr", "json/imagesTr", "json/labelsTr"] {
        std::fs::create_dir_all(folder.path(place)).expect("folders can be made");
        for name in if place.ends_with("imagesTr") { ["a_0000", "b_0000"] } else { ["a", "b"] } {
            nifti::write_u8(&folder.path(&format!("{place}/{name}.nii")), &scan).expect("a scan");
        }
    }
    folder.write("splits/dataset.json", br#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "one": 1, "two": 2}}"#);
    for subset in [0, 5, 7] {
        let header = include_bytes!("../../reference/metaimage/local.mha");
        folder.write(&format!("luna/subset{subset}/{subset}.mha"), header);
    }
    folder
});

fuzz_target!(|data: &[u8]| {
    let Some((which, text)) = choice(data, 7) else { return };
    let read = |path: &str, kind| {
        if let Ok(table) = table::read(&FOLDER.path(path), kind, None) {
            let _ = table::parts(&table, None, &DIVISION);
        }
    };
    match which {
        0 => {
            FOLDER.write("csv/table.csv", text);
            read("csv/table.csv", Kind::Classify);
        }
        1 => {
            FOLDER.write("csv/table.csv", text);
            read("csv/table.csv", Kind::Segment);
        }
        2 => {
            FOLDER.write("json/dataset.json", text);
            read("json", Kind::Segment);
        }
        3 => {
            FOLDER.write("splits/splits_final.json", text);
            read("splits", Kind::Segment);
        }
        4 => {
            FOLDER.write("luna/candidates_V2.csv", text);
            read("luna", Kind::Classify);
        }
        5 => {
            let file = FOLDER.write("split.csv", text);
            let _ = std::fs::remove_file(FOLDER.path("splits/splits_final.json"));
            let table = table::read(&FOLDER.path("splits"), Kind::Segment, None).expect("a good folder");
            let _ = table::parts(&table, Some(&file), &DIVISION);
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(text) {
                let _ = Recipe::parse(text);
            }
        }
    }
});
