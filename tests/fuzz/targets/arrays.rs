//! `.npy` files, as cubes and as a column of numbers.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use semantic_genesis::data::arrays::{Cubes, column};
use semantic_genesis_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new("arrays"));

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.write("a.npy", data);
    if let Ok(cubes) = Cubes::open(&path) {
        for row in [0, cubes.len() - 1, cubes.len()] {
            if let Ok(values) = cubes.cube(row) {
                assert_eq!(values.len(), cubes.size().iter().product::<usize>());
            }
            let _ = cubes.unit_cube(row);
        }
    }
    let _ = column(&path);
});
