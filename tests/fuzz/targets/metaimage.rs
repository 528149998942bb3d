//! MetaImage scans: the input as one file with its data, and as a header beside data files, plain and packed.
#![no_main]

use std::ops::ControlFlow;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use semantic_genesis::data::image;
use semantic_genesis_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new("metaimage");
    folder.write("short.raw", include_bytes!("../../reference/metaimage/short.raw"));
    folder.write("packed.zraw", include_bytes!("../../reference/metaimage/packed.zraw"));
    folder
});

fuzz_target!(|data: &[u8]| {
    for name in ["a.mha", "a.mhd"] {
        let path = FOLDER.write(name, data);
        let _ = image::files(&path);
        if let Ok(volume) = image::read(&path) {
            assert_eq!(volume.data.len(), volume.size.iter().product::<usize>());
            let _ = image::stream(&path, &mut |_| ControlFlow::Continue(()));
        }
    }
});
