//! Scans as files, the prepared store, and what is cut from it.

pub mod cubes;
pub mod resize;
