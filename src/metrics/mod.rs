//! How good predictions are: overlap and distance of masks, ranking of scores, and what differences between runs mean.

pub mod overlap;
pub mod ranking;
