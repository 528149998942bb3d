//! Files that other programs read and write.

pub mod tensors;
pub mod weights;
