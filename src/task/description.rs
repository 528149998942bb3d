//! What a fine-tuned network is for, kept with its weights so that a scan is treated as in training.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Model;
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::interop::tensors::File;
use crate::train::checkpoint::Named;
use crate::train::network::Output;

/// The question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What is this scan, or this place in it?
    Classify,
    /// What is each voxel?
    Segment,
}

impl Kind {
    /// The word used for it in files and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Segment => "segment",
        }
    }
}

/// What the network is shown of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// Windows of the prepared scan: random ones in training, overlapping ones in prediction.
    Windows,
    /// The window around a given point.
    Point,
    /// The whole prepared scan, each axis resized to the window.
    Whole,
}

/// A fine-tuned network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The question.
    pub kind: Kind,
    /// How outputs answer it.
    pub output: Output,
    /// What the network is shown.
    pub view: View,
    /// Names of the classes. Segmentation: the background first. Binary classification: two names, "no" first.
    pub classes: Vec<String>,
    /// Segmentation: the value of each class in label maps, that of the background (0) first. Empty otherwise.
    pub values: Vec<u32>,
    /// Segmentation: which values of label maps count as each class, where that is not `values`. Empty otherwise.
    #[serde(default)]
    pub merged: Vec<Vec<u32>>,
    /// Names of the input channels (one scan file each).
    pub channels: Vec<String>,
    /// Network; its number of pseudo classes plays no role.
    pub model: Model,
    /// Window along x, y, z, in prepared voxels.
    pub window: [usize; 3],
    /// How a scan becomes numbers; `grid` is `None`: whatever holds the whole scan.
    pub recipe: Recipe,
}

impl Description {
    /// Logits of a voxel or a scan.
    pub fn outputs(&self) -> usize {
        match self.output {
            Output::Binary => 1,
            Output::Multiclass | Output::Multilabel => self.classes.len(),
        }
    }

    /// The class that a value of a label map stands for.
    pub fn class_of(&self, value: f32) -> Option<u16> {
        let is = |&v: &u32| v as f32 == value;
        let class =
            if self.merged.is_empty() { self.values.iter().position(is) } else { self.merged.iter().position(|m| m.iter().any(is)) };
        class.and_then(|c| u16::try_from(c).ok())
    }

    /// A model file of `semgen finetune`: what it is for, and its tensors by PyTorch's names.
    ///
    /// # Errors
    /// [`Error::Input`] when the file is something else, [`Error::Io`] when it cannot be read.
    pub fn load(path: &Path) -> Result<(Self, Named)> {
        let file = File::read(path)?;
        let task = file.metadata.as_deref().and_then(|m| serde_json::from_str::<Value>(m).ok()).map(|m| m["task"].clone());
        let known = task.filter(|t| !t.is_null());
        let known = known
            .ok_or_else(|| Error::input(path, "is no fine-tuned model; give checkpoints/best.safetensors of a run of `semgen finetune`"))?;
        let description = serde_json::from_value(known)
            .map_err(|e| Error::input(path, format!("describes its task in a way this program does not know ({e})")))?;
        Ok((description, file.tensors))
    }
}
