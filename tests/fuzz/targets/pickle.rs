//! Pickles alone, without a container.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semantic_genesis::interop::pickle::{Node, Pickle};

fuzz_target!(|data: &[u8]| {
    let Ok(pickle) = Pickle::read(data) else { return };
    assert!(pickle.length <= data.len() && pickle.nodes().len() <= data.len());
    for node in pickle.nodes() {
        if let Node::Tensor(view) = node {
            let Node::Storage(storage) = pickle.node(view.storage) else { panic!("a tensor without a storage") };
            let last: usize = view.shape.iter().zip(&view.strides).map(|(n, s)| n.saturating_sub(1) * s).sum();
            assert!(view.len == 0 || view.offset + last < storage.len && view.len <= storage.len);
        }
    }
});
