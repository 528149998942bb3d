//! Training: from cubes to weights.

pub mod loader;
