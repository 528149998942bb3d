//! Training: from cubes to weights.

pub mod checkpoint;
pub mod fit;
pub mod loader;
pub mod log;
pub mod network;
pub mod phase;
pub mod pretrain;
pub mod scaling;
pub mod schedule;
pub mod update;
