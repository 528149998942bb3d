//! What checkpoints say of themselves: the JSON beside the tensors of a whole network.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use semantic_genesis::config::Config;
use semantic_genesis::interop::tensors::{File, Tensor};
use semantic_genesis::interop::weights;
use semantic_genesis::task::{Description, start};
use semantic_genesis::train::pretrain;
use semantic_genesis_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new("metadata"));

fuzz_target!(|text: &str| {
    let path = FOLDER.path("a.safetensors");
    let mut file = File { metadata: Some(text.to_owned()), ..File::default() };
    for (name, shape) in [("down_tr64.ops.0.conv1.weight", [2, 1, 1, 1, 1]), ("down_tr64.ops.1.conv1.weight", [4, 2, 1, 1, 1])] {
        file.tensors.insert(name.to_owned(), Tensor::f32(shape.to_vec(), vec![0.5; shape.iter().product()]));
    }
    file.write(&path).expect("files can be written");
    let _ = pretrain::read_checkpoint(&path);
    if let Ok((description, _)) = Description::load(&path) {
        let again = serde_json::to_string(&description).expect("descriptions can be written");
        assert_eq!(serde_json::from_str::<Description>(&again).expect("what was written is read"), description);
        let _ = (0..5).map(|v| description.class_of(v as f32)).max();
    }
    let weights = weights::read(&path).expect("a good file");
    let _ = weights.origin();
    let _ = start::network(&weights.tensors, weights.metadata.as_deref(), &Config::default().model);
});
