//! Which weights a target task starts from, and what became of each tensor of the file.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Description, Kind};
use crate::config::{Activation, Config, Model, Variant};
use crate::error::{Error, Result};
use crate::graph::{Graph, Home, Init, Op, ValueId, producer};
use crate::interop::network::Network;
use crate::interop::tensors::{Data, Tensor};
use crate::model::Spec;
use crate::train::checkpoint::Named;

/// What became of the tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Taken over.
    pub loaded: Vec<String>,
    /// Taken over after repeating and rescaling the kernel of the first convolution for another number of input channels.
    pub adapted: Vec<String>,
    /// In the file, but not used, with the reason.
    pub dropped: Vec<(String, String)>,
    /// Weights that were made as long as new ones, see [`rescale`].
    pub rescaled: Vec<String>,
    /// Of the network, but not in the file: random.
    pub random: Vec<String>,
    /// Names changed while reading: old and new.
    pub renamed: Vec<(String, String)>,
}

/// The network's settings as far as a file's tensors (and its own record of them) tell; the rest as in `like`.
///
/// # Errors
/// A sentence if the tensors are not of this family of networks.
pub fn network(tensors: &Named, metadata: Option<&str>, like: &Model) -> Result<Model, String> {
    let recorded = recorded(metadata);
    if let Some(task) = recorded.as_ref().and_then(task_of) {
        return task.map(|t| t.model);
    }
    let config = recorded.as_ref().and_then(|r| Config::default().overlay_toml(r["config"].as_str()?).ok());
    let mut model = config.map_or_else(|| like.clone(), |c| c.model);
    let found = Network::of(tensors)?;
    (model.base_channels, model.depth, model.variant) = (found.base, found.depth, found.variant);
    // ReLU and ELU have no tensors: only the file's own word tells them apart.
    if found.activation == Activation::PRelu {
        model.activation = Activation::PRelu;
    }
    Ok(model)
}

/// Whether the weights with this `metadata` end in an output layer for masks. That of pretrained networks restores intensities: with it
/// and without a [`prior`], networks came to a Dice of 0.08 in 40 steps on six scans of the demo, and to 0.40 with a new layer (means of
/// three seeds).
pub fn ends_in_masks(metadata: Option<&str>) -> bool {
    recorded(metadata).as_ref().and_then(task_of).is_some_and(|t| t.is_ok_and(|t| t.kind == Kind::Segment))
}

/// What a file says about itself.
fn recorded(metadata: Option<&str>) -> Option<Value> {
    serde_json::from_str(metadata?).ok()
}

/// The task that weights were fine-tuned for, if they were.
fn task_of(recorded: &Value) -> Option<Result<Description, String>> {
    let task = recorded.get("task").filter(|t| !t.is_null())?;
    Some(Description::parse(task.clone()))
}

/// The tensors of a file that the network `graph` can start from; its output layer is left out unless it `ends_in_masks`.
///
/// # Errors
/// A sentence when nothing fits, which a wrong file or variant would explain.
pub fn fit(tensors: &Named, graph: &Graph, spec: &Spec, ends_in_masks: bool) -> Result<(Named, Report), String> {
    let mut report = Report::default();
    let mut out = Named::new();
    let lists = graph.params.list().iter().chain(graph.state.list());
    let wanted: BTreeMap<&str, Vec<usize>> = lists.map(|p| (p.name.as_str(), p.file_shape())).collect();
    let first = match spec.variant {
        Variant::PyTorch => "down_tr64.ops.0.conv1.weight",
        Variant::Keras => "depth_0.conv.weight",
    };
    for (name, tensor) in tensors {
        let Some(shape) = wanted.get(name.as_str()) else {
            if !name.ends_with(".num_batches_tracked") {
                report.dropped.push((name.clone(), "no part of this network".into()));
            }
            continue;
        };
        if !ends_in_masks && name.strip_prefix(spec.output_layer()).is_some_and(|rest| rest.starts_with('.')) {
            report.dropped.push((name.clone(), "restores intensities".into()));
        } else if tensor.shape == *shape && tensor.floats().is_some() {
            out.insert(name.clone(), tensor.clone());
            report.loaded.push(name.clone());
        } else if let (true, Some(adapted)) = (name == first, repeated(tensor, shape)) {
            out.insert(name.clone(), adapted);
            report.adapted.push(name.clone());
        } else {
            report.dropped.push((name.clone(), format!("has shape {:?}, the network needs {shape:?}", tensor.shape)));
        }
    }
    report.random = wanted.keys().filter(|n| !out.contains_key(**n)).map(|n| (*n).to_owned()).collect();
    if !out.keys().any(|n| spec.in_encoder(n)) {
        return Err(format!(
            "none of its {} tensors fits the encoder of this network (base width {}, variant {}); check model.base_channels and model.variant",
            tensors.len(),
            spec.base,
            spec.variant.word()
        ));
    }
    Ok((out, report))
}

/// A convolution weight `[out, in, d, h, w]` for another number of input channels: its kernels repeated over the channels, scaled so
/// that equal channels give the same response.
fn repeated(tensor: &Tensor, shape: &[usize]) -> Option<Tensor> {
    let [out, channels, d, h, w] = *shape else { return None };
    let [from_out, from_channels, fd, fh, fw] = *tensor.shape.as_slice() else { return None };
    if (out, d, h, w) != (from_out, fd, fh, fw) || from_channels == 0 || channels == 0 {
        return None;
    }
    let (values, taps) = (tensor.floats()?, d * h * w);
    let scale = from_channels as f32 / channels as f32;
    let mut data = Vec::with_capacity(out * channels * taps);
    for o in 0..out {
        for c in 0..channels {
            let from = (o * from_channels + c % from_channels) * taps;
            data.extend(values[from..from + taps].iter().map(|v| v * scale));
        }
    }
    Some(Tensor { shape: shape.to_vec(), data: Data::F32(data) })
}

/// Scales each convolution in front of a batch norm to the length that the weight of a new network has, and the norm along with it: the
/// output of the network for running statistics stays what it is. What a batch norm gives depends only on the direction of the weight
/// before it, and Adam's steps have a length of their own, so that a weight which has grown over a pretraining turns that much less
/// with each step (van Laarhoven 2017, "L2 regularization versus batch and weight normalization"): those of the demo had become two to
/// five times as long. Layers that are not trained, or not wholly in `tensors`, are left alone. Returns the names of the weights.
pub fn rescale(tensors: &mut Named, graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    for norm in graph.nodes() {
        let (Op::BatchNorm { geom, .. } | Op::BatchNormRunning(geom)) = norm.op else { continue };
        let [x, gamma, _, mean, variance] = norm.inputs[..] else { continue };
        let Some(conv) = producer(graph.nodes(), x).map(|i| &graph.nodes()[i]) else { continue };
        let (Op::Conv3d { .. }, [.., weight, bias]) = (&conv.op, &conv.inputs[..]) else { continue };
        let named = |v: ValueId| match graph.values()[v.0].home {
            Home::Param(i) if !graph.is_frozen(i) => Some(&graph.params.list()[i]),
            Home::State(i) => Some(&graph.state.list()[i]),
            _ => None,
        };
        let Some([weight, bias, gamma, mean, variance]) = all([*weight, *bias, gamma, mean, variance].map(named)) else { continue };
        let Init::Uniform(bound) = weight.init else { continue };
        let Some([w, b, g, m, v]) = all([weight, bias, gamma, mean, variance].map(|p| tensors.get(&p.name)?.floats())) else { continue };
        let length = w.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        // Expected of uniform numbers.
        let new = f64::from(bound) * (w.len() as f64 / 3.0).sqrt();
        let (s, eps) = (new / length, f64::from(geom.eps));
        if !s.is_normal() {
            continue;
        }
        let by = |values: &[f32], factor: f64| values.iter().map(|&x| (f64::from(x) * factor) as f32).collect();
        // ε does not scale along, so γ makes up for it.
        let makes_up = |(&g, &v): (&f32, &f32)| {
            let v = f64::from(v);
            (f64::from(g) * ((s * s * v + eps) / (v + eps)).sqrt() / s) as f32
        };
        let scaled = [by(w, s), by(b, s), g.iter().zip(v).map(makes_up).collect(), by(m, s), by(v, s * s)];
        for (p, values) in [weight, bias, gamma, mean, variance].into_iter().zip(scaled) {
            tensors.insert(p.name.clone(), Tensor::f32(p.file_shape(), values));
        }
        names.push(weight.name.clone());
    }
    names
}

/// All of them, if none is missing.
fn all<T, const N: usize>(found: [Option<T>; N]) -> Option<[T; N]> {
    found.into_iter().collect::<Option<Vec<T>>>()?.try_into().ok()
}

/// Least share of a class in [`prior`].
const RARE: f64 = 0.01;

/// The bias of a segmentation's output layer at which the network begins by giving each class, everywhere, its share of the training
/// voxels: `counts` of the classes, each times its weight, at least 1 % of all. Otherwise the first steps go into learning that most
/// voxels are background (Lin et al. 2017, "Focal loss for dense object detection", section 4.1). One number for one output, else one
/// a class.
pub fn prior(counts: &[u64], weights: &[f32], outputs: usize) -> Vec<f32> {
    let shares: Vec<f64> = counts.iter().zip(weights).map(|(&n, &w)| n as f64 * f64::from(w)).collect();
    let total = shares.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let logs: Vec<f64> = shares.iter().map(|s| (s / total).clamp(RARE, 1.0 - RARE).ln()).collect();
    match logs[..] {
        [no, yes] if outputs == 1 => vec![(yes - no) as f32],
        _ => logs.into_iter().map(|l| l as f32).collect(),
    }
}

impl Report {
    /// The report in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let mut out = vec![format!(
            "{} tensors loaded, {} adapted, {} renamed, {} left out, {} start at random",
            self.loaded.len(),
            self.adapted.len(),
            self.renamed.len(),
            self.dropped.len(),
            self.random.len()
        )];
        let few = |names: Vec<String>| {
            let more = names.len().saturating_sub(4);
            let list = names.into_iter().take(4).collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{list} and {more} more") } else { list }
        };
        if !self.adapted.is_empty() {
            out.push(format!("  adapted to the input channels: {}", few(self.adapted.clone())));
        }
        if !self.rescaled.is_empty() {
            out.push(format!("  as long as new ones, with equal outputs: {}", few(self.rescaled.clone())));
        }
        if !self.dropped.is_empty() {
            out.push(format!("  left out: {}", few(self.dropped.iter().map(|(n, why)| format!("{n} ({why})")).collect())));
        }
        if !self.random.is_empty() {
            out.push(format!("  random: {}", few(self.random.clone())));
        }
        out
    }
}

/// As a library error about a file.
///
/// # Errors
/// [`Error::Input`] with the sentence.
pub fn at<T>(path: &std::path::Path, result: Result<T, String>) -> Result<T> {
    result.map_err(|what| Error::input(path, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    fn spec(channels: usize) -> Spec {
        Spec { base: 2, channels, variant: Variant::PyTorch, ..Spec::autoencoder(2, 2) }
    }

    fn graph(spec: &Spec, outputs: usize) -> Graph {
        let mut g = Graph::new();
        let x = spec.input(&mut g, "input", 1, [4; 3]);
        let e = spec.encoder(&mut g, x, Mode::Evaluate).unwrap();
        spec.segmentation(&mut g, &e, outputs, Mode::Evaluate).unwrap();
        g
    }

    fn file(g: &Graph) -> Named {
        let list = g.params.list().iter().chain(g.state.list());
        list.map(|p| (p.name.clone(), Tensor::f32(p.file_shape(), (0..p.len()).map(|i| i as f32 + 1.0).collect()))).collect()
    }

    #[test]
    fn tensors_are_loaded_adapted_or_left_out() {
        let mut tensors = file(&graph(&spec(1), 1));
        tensors.insert("clc_out.fc1.weight".into(), Tensor::f32(vec![2, 2], vec![0.0; 4]));
        let s = spec(3);
        let g = graph(&s, 4);
        let (out, report) = fit(&tensors, &g, &s, true).unwrap();
        assert_eq!(report.adapted, ["down_tr64.ops.0.conv1.weight"]);
        let (old, new) = (tensors["down_tr64.ops.0.conv1.weight"].floats().unwrap(), out["down_tr64.ops.0.conv1.weight"].floats().unwrap());
        for (o, taps) in old.chunks(27).enumerate() {
            for c in 0..3 {
                assert!(new[(o * 3 + c) * 27..][..27].iter().zip(taps).all(|(a, b)| (a - b / 3.0).abs() < 1e-6 * b.abs()));
            }
        }
        let dropped: Vec<&str> = report.dropped.iter().map(|d| d.0.as_str()).collect();
        assert_eq!(dropped, ["clc_out.fc1.weight", "out_tr.final_conv.bias", "out_tr.final_conv.weight"]);
        assert_eq!(report.random, ["out_tr.final_conv.bias", "out_tr.final_conv.weight"]);
        assert_eq!(report.loaded.len() + 3, g.params.list().len() + g.state.list().len());
        assert_eq!(network(&tensors, None, &Config::default().model).unwrap().depth, 2);
    }

    #[test]
    fn a_layer_that_restores_is_no_start_for_masks() {
        let s = spec(1);
        let g = graph(&s, 1);
        let whole = fit(&file(&g), &g, &s, true).unwrap();
        assert!(whole.1.random.is_empty() && whole.1.dropped.is_empty());
        let (out, report) = fit(&file(&g), &g, &s, false).unwrap();
        assert_eq!(report.random, ["out_tr.final_conv.bias", "out_tr.final_conv.weight"]);
        assert!(report.dropped.iter().all(|d| d.1 == "restores intensities") && report.dropped.len() == 2);
        assert_eq!(out.len() + 2, whole.0.len());
        assert!(!ends_in_masks(None) && !ends_in_masks(Some("{}")) && !ends_in_masks(Some("{\"task\": null}")));
    }

    #[test]
    fn networks_begin_with_the_shares_of_the_classes() {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let of = |counts: &[u64], weights: &[f32], outputs: usize| prior(counts, weights, outputs);
        assert!((sigmoid(of(&[75, 25], &[1.0, 1.0], 1)[0]) - 0.25).abs() < 1e-6);
        assert!((sigmoid(of(&[75, 25], &[1.0, 3.0], 1)[0]) - 0.5).abs() < 1e-6);
        // Rare classes begin at 1 %.
        assert!((sigmoid(of(&[1_000_000, 1], &[1.0, 1.0], 1)[0]) - 0.01).abs() < 1e-6);
        let many = of(&[50, 30, 20], &[1.0; 3], 3);
        let total: f32 = many.iter().map(|v| v.exp()).sum();
        assert!((many[1].exp() / total - 0.3).abs() < 1e-6 && of(&[0, 0], &[1.0; 2], 1)[0].is_finite());
    }

    #[test]
    fn a_file_without_a_fitting_encoder_is_refused() {
        let tensors = file(&graph(&spec(1), 1));
        let wide = Spec { base: 4, ..spec(1) };
        assert!(fit(&tensors, &graph(&wide, 1), &wide, true).unwrap_err().contains("base width 4"));
        assert!(network(&Named::new(), None, &Config::default().model).is_err());
    }
}
