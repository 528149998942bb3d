//! Self-discovery: places that look alike in patients that look alike become pseudo labels.

pub mod coordinates;
pub mod manifest;
pub mod neighbours;
pub mod windows;
