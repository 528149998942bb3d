//! Models whose answers are known.

use std::path::{Path, PathBuf};

use semantic_genesis::config::{Align, Config, Modality, Mri};
use semantic_genesis::data::recipe::Recipe;
use semantic_genesis::graph::Graph;
use semantic_genesis::interop::tensors::{File, Tensor};
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::task::{self, Description, Output, View};
use semantic_genesis::train::checkpoint::Named;

/// Prepared values above which the classes 1 and 2 begin.
pub(super) const FIRST: f64 = 0.45;
/// See [`FIRST`].
pub(super) const SECOND: f64 = 0.6;
/// Logits rise by this for each unit of the prepared value.
pub(super) const STEEP: f64 = 60.0;
/// Values of the classes in label maps.
pub(super) const VALUES: [u32; 3] = [0, 3, 300];

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Three classes of voxels.
    Three,
    /// One output a voxel.
    Mask,
    /// One output a scan.
    Whole,
    /// One output a place.
    Point,
    /// Restores its input; no task.
    Pretrained,
}

/// A model to be written.
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) channels: Vec<String>,
    pub(super) window: [usize; 3],
}

impl Made {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, channels: vec!["CT".into()], window: [8; 3] }
    }
}

/// Writes a model whose channel 0 is the mean of the input's channels.
pub(super) fn write_model(path: &Path, made: &Made) -> PathBuf {
    let mut model = Config::default().model;
    // A pretrained network has two levels at least.
    (model.base_channels, model.depth) = (2, if made.kind == Kind::Pretrained { 2 } else { 1 });
    let spec = Spec { channels: made.channels.len(), ..Spec::from(&model) };
    let outputs = if made.kind == Kind::Three { 3 } else { 1 };
    let mut g = Graph::new();
    let x = spec.input(&mut g, "input", 1, [8; 3]);
    let e = spec.encoder(&mut g, x, Mode::Evaluate).unwrap();
    match made.kind {
        Kind::Whole | Kind::Point => spec.classifier(&mut g, &e, outputs).map(drop).unwrap(),
        _ => spec.segmentation(&mut g, &e, outputs, Mode::Evaluate).map(drop).unwrap(),
    }
    let mut tensors = Named::new();
    for p in g.params.list().iter().chain(g.state.list()) {
        let shape = p.file_shape();
        let mut data = vec![0.0; p.len()];
        let last = p.name.rsplit('.').next().unwrap();
        if p.name.contains("bn1") {
            data.fill(if matches!(last, "weight" | "running_var") { 1.0 } else { 0.0 });
        } else if p.name.contains("conv1.weight") {
            // Output 0 takes the middle tap of its inputs; in the decoder of what comes past it, behind the refined channels.
            let (inputs, taps) = (shape[1], 27);
            let used = match p.name.as_str() {
                "down_tr64.ops.0.conv1.weight" => 0..inputs,
                "up_tr64.ops.0.conv1.weight" => spec.features()..spec.features() + 1,
                _ => 0..1,
            };
            used.clone().for_each(|c| data[c * taps + 13] = 1.0 / used.len() as f32);
        } else if p.name.starts_with("out_tr") || p.name.starts_with("classifier") {
            // Class 1 rises above 0 at FIRST, class 2 above class 1 at SECOND.
            let steep = STEEP as f32;
            let (first, second) = (-steep * FIRST as f32, -steep * (FIRST + SECOND) as f32);
            match (last, outputs) {
                ("weight", 1) => data[0] = steep,
                ("weight", _) => (data[4], data[8]) = (steep, 2.0 * steep),
                (_, 1) => data[0] = first,
                _ => (data[1], data[2]) = (first, second),
            }
        }
        tensors.insert(p.name.clone(), Tensor::f32(shape, data));
    }
    let recipe =
        Recipe { modality: Modality::Ct, window: [0.0, 1.0], mri: Mri::MinMax, align: Align::Grid, spacing: [2.0, 2.0, 3.0], grid: None };
    let segments = matches!(made.kind, Kind::Three | Kind::Mask);
    let classes: &[&str] = match made.kind {
        Kind::Three => &["background", "soft", "hard"],
        _ => &["no nodule", "nodule"],
    };
    let task = Description {
        kind: if segments { task::Kind::Segment } else { task::Kind::Classify },
        output: if outputs == 3 { Output::Multiclass } else { Output::Binary },
        view: match made.kind {
            Kind::Whole => View::Whole,
            Kind::Point => View::Point,
            _ => View::Windows,
        },
        classes: classes.iter().map(|&c| c.to_owned()).collect(),
        values: match made.kind {
            Kind::Three => VALUES.to_vec(),
            Kind::Mask => vec![0, 1],
            _ => Vec::new(),
        },
        merged: Vec::new(),
        channels: made.channels.clone(),
        model: model.clone(),
        window: made.window,
        recipe,
    };
    let mut about = serde_json::json!({ "format": "semgen-checkpoint-1" });
    if made.kind == Kind::Pretrained {
        let mut config = Config::default();
        (config.model, config.cube.size) = (model, made.window);
        about["config"] = serde_json::json!(config.to_toml());
    } else {
        about["task"] = serde_json::to_value(task).unwrap();
    }
    File { tensors, metadata: Some(about.to_string()) }.write(path).unwrap();
    path.to_path_buf()
}
