//! `semgen plan`.

use serde::Serialize;
use serde_json::json;

use super::args::{Common, Settings};
use super::text;
use crate::config::{Config, Optimiser};
use crate::discover::autoencoder;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Choices, adapters};
use crate::graph::Home;
use crate::model::{Mode, Spec};
use crate::plan::tuning::choices_for;
use crate::plan::{Options, Plan, PlannedOp};
use crate::train::network::Objective;
use crate::train::update::moments;
use crate::transform::Augment;

/// Largest results that are named.
const LARGEST: usize = 5;

/// Options of `plan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List every operation of a training step
    #[arg(long)]
    ops: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What one phase of training needs.
#[derive(Serialize)]
struct Need {
    phase: &'static str,
    batch: usize,
    size: [usize; 3],
    parameters: usize,
    /// Multiply-adds × 2 of one step: forward and backward.
    flops_per_step: u64,
    /// Bytes that the kernels of one step bind, the least that moves.
    bytes_per_step: u64,
    device_bytes: Memory,
    largest: Vec<Large>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ops: Vec<Row>,
}

/// Device memory in bytes.
#[derive(Serialize)]
struct Memory {
    /// Parameters, gradients, running statistics.
    weights: u64,
    /// Moments of the optimiser.
    optimiser: u64,
    /// Inputs, activations and their gradients of a training step.
    training: u64,
    /// The same for validation, which stays ready beside it.
    validation: u64,
    /// Distorting the inputs of both.
    augmentation: u64,
    total: u64,
}

#[derive(Serialize)]
struct Large {
    label: String,
    op: &'static str,
    shape: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Row {
    label: String,
    op: &'static str,
    shape: String,
    slots: Vec<usize>,
    flops: u64,
    bytes: u64,
}

impl From<&PlannedOp> for Row {
    fn from(o: &PlannedOp) -> Self {
        Self { label: o.label.clone(), op: o.op, shape: o.shape.clone(), slots: o.slots.clone(), flops: o.flops, bytes: o.bytes }
    }
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let config = a.settings.on(Config::default())?;
    let caps = match common.adapter.as_deref() {
        Some("none") => Caps::minimal(),
        choice => adapters(choice)?.into_iter().find(|r| r.chosen).map_or_else(Caps::minimal, |r| r.caps),
    };
    let choices = choices_for(&caps);
    let needs = needs(&config, &caps, &choices, a.ops)?;
    if common.json {
        text::say_json(&json!({ "adapter": caps, "phases": needs }));
        return Ok(());
    }
    text::say(format_args!("on {} ({})", caps.name, caps.backend));
    let rows: Vec<Vec<String>> = needs.iter().map(overview).collect();
    text::say(text::table(&["phase", "batch", "size", "parameters", "GFLOP/step", "bytes/step", "device memory"], &rows));
    for n in &needs {
        let m = &n.device_bytes;
        text::say(format_args!("\n{}: {}", n.phase, text::bytes(m.total)));
        let parts = [
            ("weights and gradients", m.weights),
            ("optimiser", m.optimiser),
            ("training step", m.training),
            ("validation step", m.validation),
            ("distortion", m.augmentation),
        ];
        for (name, bytes) in parts {
            text::say(format_args!("  {name:<24}{:>12}", text::bytes(bytes)));
        }
        text::say("  largest results:");
        for l in &n.largest {
            text::say(format_args!("    {:>10}  {} {} {}", text::bytes(l.bytes), l.shape, l.op, l.label));
        }
        if a.ops {
            text::say(text::table(
                &["layer", "operation", "result", "slot", "GFLOP", "MiB"],
                &n.ops.iter().map(op_row).collect::<Vec<_>>(),
            ));
        }
    }
    text::say("\nNothing was allocated. The first two phases end before the next begins, so the largest total counts.");
    Ok(())
}

fn giga(flops: u64) -> String {
    format!("{:.3}", flops as f64 * 1e-9)
}

fn overview(n: &Need) -> Vec<String> {
    vec![
        n.phase.into(),
        n.batch.to_string(),
        text::by(&n.size),
        n.parameters.to_string(),
        giga(n.flops_per_step),
        text::bytes(n.bytes_per_step),
        text::bytes(n.device_bytes.total),
    ]
}

fn op_row(o: &Row) -> Vec<String> {
    let slots = o.slots.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    vec![o.label.clone(), o.op.into(), o.shape.clone(), slots, giga(o.flops), format!("{:.2}", o.bytes as f64 / 1_048_576.0)]
}

/// A phase of a run.
struct Stage {
    objective: Objective,
    spec: Spec,
    batch: usize,
    size: [usize; 3],
    optimiser: Optimiser,
}

/// The phases of a whole run, in their order.
fn stages(config: &Config, caps: &Caps) -> Result<Vec<Stage>> {
    let (t, classes) = (&config.train, config.model.classes);
    let ae = autoencoder::fitted(config, caps, config.discover.autoencoder.batch_size)?;
    let network = Spec::from(&config.model);
    let joint = Objective::Joint { classes, restoration: config.loss.restoration, classification: config.loss.classification };
    let own = |objective| Stage { objective, spec: network.clone(), batch: t.batch_size, size: config.cube.size, optimiser: t.optimiser };
    let mut list = vec![Stage {
        objective: Objective::Autoencoder { skips: ae.skips },
        spec: Spec::autoencoder(config.autoencoder_base(), config.model.depth),
        batch: ae.batch_size,
        size: ae.input.given().unwrap_or_else(|| config.autoencoder_input()),
        optimiser: Optimiser::Adam,
    }];
    if t.classification_epochs > 0 && t.max_steps != 1 {
        list.push(own(Objective::Classification { classes }));
    }
    list.push(own(joint));
    Ok(list)
}

/// The plans of the phases of a whole run, training and validation, each with its phase's name.
///
/// # Errors
/// What does not fit the adapter.
pub(super) fn plans(config: &Config, caps: &Caps, choices: &Choices) -> Result<Vec<(&'static str, Plan)>> {
    let options = Options { choices: choices.clone(), ..Options::default() };
    let mut out = Vec::new();
    for s in stages(config, caps)? {
        for mode in [Mode::Train, Mode::Evaluate] {
            let graph = s.objective.graph(&s.spec, s.batch, s.size, mode)?;
            out.push((s.objective.word(), Plan::with(&graph, caps, &options).map_err(|e| of_phase(s.objective, e))?));
        }
    }
    Ok(out)
}

/// What the phases need.
fn needs(config: &Config, caps: &Caps, choices: &Choices, ops: bool) -> Result<Vec<Need>> {
    stages(config, caps)?.iter().map(|s| need(config, caps, choices, s, ops)).collect()
}

/// Limits name the phase that meets them, and its own settings.
fn of_phase(objective: Objective, e: Error) -> Error {
    match e {
        Error::ExceedsLimit { what, need, have, remedy } => {
            Error::ExceedsLimit { what: format!("the {} phase: {what}", objective.word()), need, have, remedy }
        }
        other => other,
    }
}

fn need(config: &Config, caps: &Caps, choices: &Choices, stage: &Stage, ops: bool) -> Result<Need> {
    let Stage { objective, spec, batch, size, optimiser } = stage;
    let (objective, batch, size, optimiser) = (*objective, *batch, *size, *optimiser);
    let options = Options { choices: choices.clone(), ..Options::default() };
    let plan = |mode| Plan::with(&objective.graph(spec, batch, size, mode)?, caps, &options);
    let (train, evaluate) = (plan(Mode::Train), plan(Mode::Evaluate));
    let (train, evaluate) = (train.map_err(|e| of_phase(objective, e))?, evaluate.map_err(|e| of_phase(objective, e))?);
    let distorted = !matches!(objective, Objective::Autoencoder { .. });
    let mut augmentation = 0;
    if distorted {
        let crops = (batch * size.iter().product::<usize>()) as u64 * 4;
        augmentation = 2 * Augment::device_bytes(caps, config.train.preset, config.train.flip_axes, batch, size)?;
        // Without restoration, the undistorted crops need a place of their own.
        if !objective.restores() {
            augmentation += 2 * crops;
        }
    }
    let weights = train.store_bytes(0);
    let optimiser = train.store_bytes(moments(optimiser)) - weights;
    let (training, validation) = (train.slot_bytes(), evaluate.slot_bytes());
    let graph = &train.graph;
    let results = graph.nodes().iter().flat_map(|n| n.outputs.iter().map(move |&v| (n, v)));
    let mut largest: Vec<Large> = results
        .filter(|(_, v)| graph.values().get(v.0).is_some_and(|value| value.home == Home::Computed))
        .map(|(n, v)| {
            let shape = graph.shape(v);
            Large { label: n.label.clone(), op: n.op.name(), shape: shape.to_string(), bytes: shape.len() as u64 * 4 }
        })
        .collect();
    largest.sort_by_key(|l| std::cmp::Reverse(l.bytes));
    largest.truncate(LARGEST);
    Ok(Need {
        phase: objective.word(),
        batch,
        size,
        parameters: graph.params.count(),
        flops_per_step: train.flops(),
        bytes_per_step: train.bytes(),
        device_bytes: Memory {
            weights,
            optimiser,
            training,
            validation,
            augmentation,
            total: weights + optimiser + training + validation + augmentation,
        },
        largest,
        ops: if ops { train.ops.iter().map(Row::from).collect() } else { Vec::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_grow_with_the_batch() {
        let sets = |pairs: &[&str]| Config::load(None, &pairs.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap();
        let small = [
            "model.base_channels=2",
            "discover.autoencoder.base_channels=2",
            "cube.size=[16,16,8]",
            "discover.autoencoder.input=[16,16,8]",
        ];
        let of = |extra: &str| needs(&sets(&[&small[..], &[extra]].concat()), &Caps::minimal(), &Choices::default(), true).unwrap();
        let (one, two) = (of("train.batch_size=4"), of("train.batch_size=8"));
        assert_eq!(one.iter().map(|n| n.phase).collect::<Vec<_>>(), ["autoencoder", "classification", "joint"]);
        assert_eq!(one[0].flops_per_step, two[0].flops_per_step);
        assert!(one[2].device_bytes.training < two[2].device_bytes.training && one[2].device_bytes.weights == two[2].device_bytes.weights);
        assert!(one[2].device_bytes.optimiser >= 8 * one[2].parameters as u64);
        assert_eq!(one[2].ops.iter().map(|o| o.flops).sum::<u64>(), one[2].flops_per_step);
        assert_eq!(one[2].largest.len(), LARGEST);
    }
}
