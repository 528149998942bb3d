//! Target tasks: from a pretrained encoder (and decoder) to a model that answers a question about a scan.

pub mod description;
pub mod table;

pub use description::{Description, Kind, Output, View};
