//! Files that other programs read and write.

pub mod network;
pub mod onnx;
pub mod pickle;
pub mod pt;
pub mod tensors;
pub mod weights;
