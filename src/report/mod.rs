//! What a run shows: progress while it lasts, pictures, charts, event files, and one page to hand on.
//!
//! [`progress`] is the one place of the library that writes to the terminal.

pub mod chart;
pub(crate) mod comparison;
pub mod events;
pub mod finetuning;
mod font;
pub mod html;
pub mod overlay;
mod pretraining;
pub mod preview;
pub mod progress;
pub mod roofline;
pub mod sheet;
pub mod trials;

pub use pretraining::pretraining_report;
