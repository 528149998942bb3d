//! Labelled data: which scan belongs to which truth, and to which part of the set.

use std::path::PathBuf;

/// One labelled example.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Unique name.
    pub id: String,
    /// One scan file a channel.
    pub images: Vec<PathBuf>,
    /// The truth.
    pub truth: Truth,
    /// The place in the scan, millimetres to the right, anterior, superior (RAS+), for tasks about places.
    pub point: Option<[f64; 3]>,
    /// Cases of one group (a patient) are never divided among parts.
    pub group: String,
    /// The part that the data itself assigns.
    pub part: Option<Part>,
}

/// What is known about a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// A label map on the scan's grid.
    Mask(PathBuf),
    /// One number an output for binary and multi-label tasks (0 or 1, NaN where unknown), or the class's number (one element).
    Labels(Vec<f32>),
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// To learn from.
    Train,
    /// To choose the best model by.
    Validation,
    /// To report on.
    Test,
}
