//! What a fine-tuned network is for, kept with its weights so that a scan is treated as in training.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table;
use crate::config::{Config, Model};
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::interop::tensors::File;
use crate::train::checkpoint::Named;
use crate::train::network::Output;

/// Most voxels of a window along an axis.
const MAX_WINDOW: usize = 512;
/// Most voxels of a recipe's grid along an axis.
const MAX_GRID: usize = 1 << 16;
/// Most classes and channels.
const MAX_NAMES: usize = 1 << 12;

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

/// Probabilities from the logits of a voxel or a scan.
pub fn probabilities(output: Output, logits: &[f32]) -> Vec<f32> {
    match output {
        Output::Multiclass => {
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let raised: Vec<f32> = logits.iter().map(|z| (z - top).exp()).collect();
            let sum: f32 = raised.iter().sum();
            raised.iter().map(|e| e / sum).collect()
        }
        _ => logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
    }
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
        let class = table::class_of(&self.values, &self.merged, value);
        class.and_then(|c| u16::try_from(c).ok())
    }

    /// A description that a file has, checked so that what uses it can rely on it.
    ///
    /// # Errors
    /// A phrase about the file: what is unknown or contradicts itself.
    pub fn parse(value: Value) -> Result<Self, String> {
        let description: Self =
            serde_json::from_value(value).map_err(|e| format!("describes its task in a way this program does not know ({e})"))?;
        match description.contradiction() {
            None => Ok(description),
            Some(what) => Err(format!("describes its task wrongly: {what}; it is damaged or was changed by hand")),
        }
    }

    /// What cannot be true of a fine-tuned network.
    fn contradiction(&self) -> Option<String> {
        let model = Config { model: self.model.clone(), ..Config::default() };
        if let Err(e) = model.validate() {
            return Some(e.to_string());
        }
        let unit = 1 << (self.model.depth - 1);
        if self.window.iter().any(|&n| n == 0 || n % unit != 0 || n > MAX_WINDOW) {
            return Some(format!("the window {:?} is not of multiples of {unit} up to {MAX_WINDOW}", self.window));
        }
        let (classes, least) = (self.classes.len(), if self.output == Output::Multilabel { 1 } else { 2 });
        if classes < least || classes > MAX_NAMES || (self.output == Output::Binary && classes != 2) {
            return Some(format!("{classes} classes for {:?} outputs", self.output));
        }
        if self.channels.is_empty() || self.channels.len() > MAX_NAMES {
            return Some(format!("{} input channels", self.channels.len()));
        }
        let segments = self.kind == Kind::Segment;
        if segments && self.output == Output::Multilabel {
            return Some("several labels for one voxel".into());
        }
        let values: BTreeSet<u32> = self.values.iter().copied().collect();
        if values.len() != self.values.len() || self.values.len() != if segments { classes } else { 0 } {
            return Some(format!("{classes} classes with the label values {:?}", self.values));
        }
        if !self.merged.is_empty() && self.merged.len() != self.values.len() {
            return Some(format!("{} merged label values for {} classes", self.merged.len(), classes));
        }
        let r = &self.recipe;
        if !r.spacing.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Some(format!("voxels of {:?} mm", r.spacing));
        }
        if !(r.window[0] < r.window[1] && r.window.iter().all(|v| v.is_finite())) {
            return Some(format!("the intensity window {:?}", r.window));
        }
        r.grid.filter(|g| g.iter().any(|&n| n == 0 || n > MAX_GRID)).map(|g| format!("a grid of {g:?} voxels"))
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
        let description = Self::parse(known).map_err(|what| Error::input(path, what))?;
        Ok((description, file.tensors))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good(kind: &str, output: &str, classes: &[&str], values: &[u32]) -> Value {
        json!({
            "kind": kind, "output": output, "view": "windows", "classes": classes, "values": values, "channels": ["CT"],
            "model": { "base_channels": 2, "classes": 44, "depth": 4, "variant": "pytorch", "activation": "relu", "norm": "running" },
            "window": [16, 16, 8],
            "recipe": { "modality": "ct", "mri": "percentile", "window": [-1000.0, 1000.0], "align": "grid", "spacing": [1.0, 1.0, 2.0], "grid": null },
        })
    }

    #[test]
    fn descriptions_read_back_as_they_were() {
        for value in [
            good("segment", "binary", &["background", "liver"], &[0, 1]),
            good("segment", "multiclass", &["background", "a", "b"], &[0, 7, 2]),
            good("classify", "binary", &["no", "yes"], &[]),
            good("classify", "multilabel", &["only"], &[]),
        ] {
            let d = Description::parse(value).unwrap();
            assert_eq!(Description::parse(serde_json::to_value(&d).unwrap()), Ok(d));
        }
    }

    #[test]
    fn descriptions_that_contradict_themselves_are_refused() {
        for (at, value, what) in [
            ("/model/depth", json!(60), "model.depth"),
            ("/model/depth", json!(0), "model.depth"),
            ("/model/base_channels", json!(1_u64 << 60), "model.base_channels"),
            ("/window", json!([16, 16, 0]), "the window"),
            ("/window", json!([16, 12, 8]), "multiples of 8"),
            ("/window", json!([16, 16, 1 << 30]), "up to 512"),
            ("/classes", json!(["background"]), "1 classes"),
            ("/classes", json!(["background", "a", "b"]), "3 classes"),
            ("/channels", json!([]), "0 input channels"),
            ("/output", json!("multilabel"), "several labels"),
            ("/kind", json!("classify"), "label values"),
            ("/values", json!([0]), "label values"),
            ("/values", json!([1, 1]), "label values"),
            ("/recipe/spacing", json!([1.0, 0.0, 1.0]), "mm"),
            ("/recipe/spacing", json!([1.0, -1.0, 1.0]), "mm"),
            ("/recipe/window", json!([5.0, 5.0]), "intensity window"),
            ("/recipe/grid", json!([0, 1, 1]), "grid"),
            ("/recipe/grid", json!([1, 1, 1_u64 << 40]), "grid"),
            ("/kind", json!("paint"), "does not know"),
            ("/window", json!([-1, 1, 1]), "does not know"),
        ] {
            let mut changed = good("segment", "binary", &["background", "liver"], &[0, 1]);
            *changed.pointer_mut(at).unwrap() = value;
            let e = Description::parse(changed).unwrap_err();
            assert!(e.contains(what), "{at}: {e}");
        }
        let mut merged = good("segment", "binary", &["background", "liver"], &[0, 1]);
        merged["merged"] = json!([[0]]);
        assert!(Description::parse(merged).unwrap_err().contains("1 merged"));
    }
}
