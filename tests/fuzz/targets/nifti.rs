//! NIfTI scans, plain and packed, with one and with several volumes.
#![no_main]

use std::ops::ControlFlow;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use semantic_genesis::data::image;
use semantic_genesis_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new("nifti"));

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.write("a.nii", data);
    if let Ok(header) = image::read_series_header(&path) {
        for index in [0, header.volumes - 1, header.volumes] {
            let _ = image::read_volume(&path, index);
        }
    }
    if let Ok(volume) = image::read(&path) {
        assert_eq!(volume.data.len(), volume.size.iter().product::<usize>());
        let _ = image::stream(&path, &mut |_| ControlFlow::Continue(()));
    }
});
