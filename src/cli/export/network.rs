//! The network of a weights file as a graph, for use rather than training.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::{Activation, Config};
use crate::graph::{Graph, Shape};
use crate::interop::network::Network;
use crate::interop::tensors::{Data, Tensor};
use crate::interop::weights::Weights;
use crate::kernels::activation::Function;
use crate::model::{Mode, Spec};
use crate::nn::{self, Start};
use crate::task::{Description, Output};

/// Which of a Y-Net's parts are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Part {
    /// Encoder and decoder, without the class head
    Unet,
    /// Encoder and class head, without the decoder
    Classifier,
}

/// A network and what is known of it.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Known {
    /// What names and shapes tell, and of the activation what the file says.
    pub(in crate::cli) network: Network,
    /// The target task, if it was fine-tuned.
    pub(in crate::cli) task: Option<Description>,
}

/// How far tensors fit the network that they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct Fit {
    /// Of the network, but not among the tensors.
    pub(in crate::cli) missing: Vec<String>,
    /// Among the tensors, but not of the network or of another shape: name and reason.
    pub(in crate::cli) unexpected: Vec<(String, String)>,
}

impl Known {
    /// The network of a file.
    ///
    /// # Errors
    /// A phrase about the file if it is none of this family.
    pub(in crate::cli) fn of(weights: &Weights) -> Result<Self, String> {
        let mut network = Network::of(&weights.tensors)?;
        let about: Option<Value> = weights.metadata.as_deref().and_then(|m| serde_json::from_str(m).ok());
        let task = match about.as_ref().map(|a| &a["task"]) {
            None | Some(Value::Null) => None,
            Some(task) => Some(Description::parse(task.clone())?),
        };
        let config = about.as_ref().and_then(|a| Config::default().overlay_toml(a["config"].as_str()?).ok());
        // ELU has no tensors: only the file's own word tells it from ReLU.
        if let Some(model) = task.as_ref().map(|t| &t.model).or(config.as_ref().map(|c| &c.model))
            && network.activation == Activation::Relu
            && model.activation == Activation::Elu
        {
            network.activation = Activation::Elu;
        }
        Ok(Self { network, task })
    }

    /// Leaves out what is not of `part`.
    ///
    /// # Errors
    /// A phrase if the network has no such part.
    pub(in crate::cli) fn only(&mut self, part: Part) -> Result<(), String> {
        let n = &mut self.network;
        let (keeps, drops) = match part {
            Part::Unet => (n.restored, &mut n.classes),
            Part::Classifier => (n.classes, &mut n.restored),
        };
        if keeps.is_none() {
            return Err(format!("is of the kind \"{}\" and has no such part", n.word()));
        }
        *drops = None;
        Ok(())
    }

    /// Input `input` `[1, grid, channels]`; outputs, as far as the network has them: `restored` (after the sigmoid) and `logits`
    /// of pretraining, or `logits` of a target task; `features` of an encoder alone. Running statistics.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] when the sizes do not fit together.
    pub(in crate::cli) fn graph(&self) -> crate::error::Result<Graph> {
        let n = &self.network;
        let spec = Spec { variant: n.variant, activation: n.activation, ..Spec::autoencoder(n.base, n.depth) };
        let mut g = Graph::new();
        // Twice as large as needed, so that no axis is one voxel long anywhere.
        let x = g.input("input", Shape::new(1, [2 << (n.depth - 1); 3], n.channels));
        let encoded = spec.encoder(&mut g, x, Mode::Evaluate)?;
        if let Some(channels) = n.restored {
            let y = spec.decoder(&mut g, &encoded, n.skips, Mode::Evaluate)?;
            let y = nn::conv3d(&mut g, n.output_layer(), Start::FanIn, &[y], channels, 1)?;
            if self.task.is_some() || channels > 1 {
                g.output("logits", y);
            } else {
                let y = g.activation("restored", Function::Sigmoid, y);
                g.output("restored", y);
            }
        }
        if let Some(classes) = n.classes {
            let logits = spec.class_head(&mut g, &encoded, classes, Mode::Evaluate)?;
            g.output("logits", logits);
        }
        if let Some(outputs) = n.answers {
            let mean = g.global_avg_pool("classifier.mean", encoded.deepest);
            let logits = nn::linear(&mut g, "classifier", Start::FanIn, mean, outputs)?;
            g.output("logits", logits);
        }
        if g.outputs().is_empty() {
            let features = g.global_avg_pool("features", encoded.deepest);
            g.output("features", features);
        }
        Ok(g)
    }

    /// What turns the logits into probabilities, if the file says so.
    pub(in crate::cli) fn output(&self) -> Option<Output> {
        self.task.as_ref().map(|t| t.output)
    }

    /// How far `tensors` fit `graph`.
    pub(in crate::cli) fn fit(graph: &Graph, tensors: &BTreeMap<String, Tensor>) -> Fit {
        let lists = graph.params.list().iter().chain(graph.state.list());
        let wanted: BTreeMap<&str, Vec<usize>> = lists.map(|p| (p.name.as_str(), p.file_shape())).collect();
        let mut fit = Fit::default();
        for (name, t) in tensors {
            if let Some(norm) = name.strip_suffix(".num_batches_tracked") {
                let scalar = t.shape.is_empty() && matches!(t.data, Data::I64(_));
                if !wanted.contains_key(format!("{norm}.running_mean").as_str()) || !scalar {
                    fit.unexpected.push((name.clone(), "counts the batches of no batch norm of the network".into()));
                }
                continue;
            }
            match wanted.get(name.as_str()) {
                None => fit.unexpected.push((name.clone(), "no part of the network that the other tensors are".into())),
                Some(shape) if *shape != t.shape => {
                    fit.unexpected.push((name.clone(), format!("has shape {:?}, the network needs {shape:?}", t.shape)));
                }
                Some(_) if t.floats().is_none() => fit.unexpected.push((name.clone(), "holds integers, expected floats".into())),
                Some(_) => {}
            }
        }
        let bad = |name: &str| fit.unexpected.iter().any(|(n, _)| n == name);
        fit.missing = wanted.keys().filter(|n| !tensors.contains_key(**n) || bad(n)).map(|n| (*n).to_owned()).collect();
        fit
    }
}

/// The state dict of `graph` from `tensors`, with the counts that PyTorch's batch norms have.
///
/// # Errors
/// A phrase that names the first tensor that is missing or unfit.
pub(in crate::cli) fn state_dict(graph: &Graph, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, String> {
    let fit = Known::fit(graph, tensors);
    if let Some(name) = fit.missing.first() {
        let why = fit.unexpected.iter().find(|(n, _)| n == name).map_or("is missing", |(_, why)| why.as_str());
        let more = fit.missing.len() - 1;
        return Err(format!(
            "cannot be exported: `{name}` {why}{}",
            if more > 0 { format!(", and {more} more do not fit") } else { String::new() }
        ));
    }
    let mut out = BTreeMap::new();
    for p in graph.params.list().iter().chain(graph.state.list()) {
        out.insert(p.name.clone(), tensors[&p.name].clone());
    }
    for p in graph.state.list() {
        if let Some(norm) = p.name.strip_suffix(".running_mean") {
            let name = format!("{norm}.num_batches_tracked");
            let count = tensors.get(&name).filter(|t| t.shape.is_empty()).cloned();
            out.insert(name, count.unwrap_or(Tensor { shape: vec![], data: Data::I64(vec![0]) }));
        }
    }
    Ok(out)
}
