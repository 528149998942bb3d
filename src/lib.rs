//! Portable training of 3D convolutional networks in WGSL on wgpu, and the Semantic Genesis
//! method of self-supervised pretraining on it.

pub mod config;
pub mod error;
pub mod files;
pub mod gpu;
pub mod kernels;
pub mod rng;
pub mod transform;
