//! Portable training of 3D convolutional networks in WGSL on wgpu, and the Semantic Genesis
//! method of self-supervised pretraining on it.

pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod discover;
pub mod doctor;
pub mod error;
pub mod files;
pub mod gpu;
pub mod graph;
pub mod interop;
pub mod kernels;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod plan;
pub mod report;
pub mod rng;
pub mod task;
pub mod train;
pub mod transform;
