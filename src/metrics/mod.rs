//! How good predictions are: overlap and distance of masks, decisions and ranking of scores, detection, and what differences between
//! runs mean.

pub mod classification;
pub mod detection;
pub mod difference;
mod distance;
pub mod overlap;
pub mod ranking;
pub mod surface;
