//! Target tasks: from a pretrained encoder (and decoder) to a model that answers a question about a scan.

pub mod description;
pub mod encode;
pub mod finetune;
pub mod judge;
pub mod measure;
pub mod predict;
pub mod set;
pub mod start;
pub mod table;
pub mod windows;

pub use crate::train::network::Output;
pub use description::{Description, Kind, View};
