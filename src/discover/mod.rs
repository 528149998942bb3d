//! Self-discovery: places that look alike in patients that look alike become pseudo labels.

pub mod autoencoder;
pub mod coordinates;
pub mod cubes;
pub mod features;
pub mod manifest;
pub mod neighbours;
pub mod run;
pub mod windows;
