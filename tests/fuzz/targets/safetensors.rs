//! Safetensors files, as checkpoints and as weights of any origin.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semantic_genesis::interop::network::Network;
use semantic_genesis::interop::tensors::{Data, File};
use semantic_genesis::interop::weights;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = File::parse(data) {
        for t in file.tensors.values() {
            let len = match &t.data {
                Data::F32(v) => v.len(),
                Data::I64(v) => v.len(),
            };
            assert_eq!(len, t.shape.iter().product::<usize>());
        }
    }
    if let Ok(weights) = weights::parse(data) {
        let _ = (weights.origin(), Network::of(&weights.tensors));
    }
});
