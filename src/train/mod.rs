//! Training: the metrics log of a run.

pub mod log;
