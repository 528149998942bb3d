//! Training: from cubes to weights.

pub mod checkpoint;
pub mod loader;
pub mod log;
pub mod schedule;
pub mod update;
