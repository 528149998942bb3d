//! `semgen plan`.

use serde::Serialize;
use serde_json::json;

use super::args::{Common, Settings};
use super::text;
use crate::config::{Config, Precision};
use crate::discover::autoencoder;
use crate::error::Result;
use crate::gpu::{Caps, adapters};
use crate::graph::Home;
use crate::model::Mode;
use crate::plan::tuning::choices_for;
use crate::plan::{Fusion, Options, Plan, PlannedOp};
use crate::train::fit::{self, Fit, Memory, Stage, fit};

/// Largest results that are named.
const LARGEST: usize = 5;

/// Options of `plan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List every operation of a training step
    #[arg(long)]
    ops: bool,
    /// Plan every operation by itself, to compare
    #[arg(long)]
    unfused: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What one phase of training needs.
#[derive(Serialize)]
struct Need {
    phase: &'static str,
    batch: usize,
    /// How the batch is taken apart, and why.
    micro_batch: Fit,
    size: [usize; 3],
    /// Storage of activations.
    precision: Precision,
    parameters: usize,
    /// Multiply-adds × 2 of one step: forward and backward of all its parts.
    flops_per_step: u64,
    /// Bytes that the kernels of one step bind, the least that moves.
    bytes_per_step: u64,
    device_bytes: Memory,
    /// What `device_bytes.training` would be in f32, when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    training_f32: Option<u64>,
    /// The most of `device_bytes.training` that is in use at once.
    live_bytes: u64,
    largest: Vec<Large>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ops: Vec<Row>,
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
        // What is planned for no adapter in particular may be mixed.
        Some("none") => Caps { f16: true, ..Caps::minimal() },
        choice => adapters(choice)?.into_iter().find(|r| r.chosen).map_or_else(Caps::minimal, |r| r.caps),
    };
    let fusion = a.unfused.then_some(Fusion::NONE);
    let options = Options { choices: choices_for(&caps), fusion, ..Options::default() };
    let needs = needs(&config, &caps, &options, a.ops)?;
    if common.json {
        text::say_json(&json!({ "adapter": caps, "phases": needs }));
        return Ok(());
    }
    text::say(format_args!("on {} ({})", caps.name, caps.backend));
    let rows: Vec<Vec<String>> = needs.iter().map(overview).collect();
    text::say(text::table(&["phase", "batch", "size", "precision", "parameters", "GFLOP/step", "bytes/step", "device memory"], &rows));
    for n in &needs {
        let m = &n.device_bytes;
        text::say(format_args!("\n{}: {}; {}", n.phase, text::bytes(m.total), n.micro_batch));
        let parts = [
            ("weights and gradients", m.weights),
            ("optimiser", m.optimiser),
            ("sum of gradients", m.accumulation),
            ("training step", m.training),
            ("validation step, besides", m.validation),
            ("distortion", m.augmentation),
            ("reading back", m.readback),
        ];
        for (name, bytes) in parts {
            let note = match n.training_f32 {
                Some(f32) if name == "training step" => format!("  (in f32 {})", text::bytes(f32)),
                _ => String::new(),
            };
            text::say(format_args!("  {name:<24}{:>12}{note}", text::bytes(bytes)));
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
        n.precision.word().into(),
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

/// The phases of a whole run, in their order, and how each takes its batch apart.
fn stages(config: &Config, caps: &Caps, options: &Options) -> Result<Vec<(Stage, Fit)>> {
    let (ae, fitted) = autoencoder::fitted(config, caps, options, config.discover.autoencoder.batch_size)?;
    let stage = autoencoder::stage(config, ae.batch_size, ae.input.given().unwrap_or_else(|| config.autoencoder_input()));
    let stages = Stage::pretraining(config);
    let fit = fit(config, caps, options, &stages, config.train.micro_batch)?;
    Ok([(stage, fitted)].into_iter().chain(stages.into_iter().map(|s| (s, fit.clone()))).collect())
}

/// The plans of the phases of a whole run, training and validation, each with its phase's name.
///
/// # Errors
/// What does not fit the adapter.
pub(super) fn plans(config: &Config, caps: &Caps, options: &Options) -> Result<Vec<(&'static str, Plan)>> {
    let mut out = Vec::new();
    for (stage, fit) in stages(config, caps, options)? {
        let options = Options { recompute: fit.recompute, ..options.clone() };
        for mode in [Mode::Train, Mode::Evaluate] {
            let graph = stage.graph(fit.micro_batch, mode)?;
            out.push((stage.objective.word(), Plan::with(&graph, caps, &options)?));
        }
    }
    Ok(out)
}

/// What the phases need.
fn needs(config: &Config, caps: &Caps, options: &Options, ops: bool) -> Result<Vec<Need>> {
    stages(config, caps, options)?.into_iter().map(|(stage, fit)| need(config, caps, options, &stage, fit, ops)).collect()
}

fn need(config: &Config, caps: &Caps, options: &Options, stage: &Stage, fit: Fit, ops: bool) -> Result<Need> {
    let options = Options { recompute: fit.recompute, ..options.clone() };
    let fit::Need { train, memory, micro } = stage.need(config, caps, &options, fit.micro_batch)?;
    // What does not fit the adapter in f32 has no such number.
    let plain = Stage { precision: Precision::F32, ..stage.clone() };
    let in_f32 = || plain.need(config, caps, &options, micro).ok().map(|n| n.memory.training);
    let training_f32 = if stage.precision == Precision::Mixed { in_f32() } else { None };
    let parts = (stage.batch / micro) as u64;
    let graph = &train.graph;
    let results = graph.nodes().iter().flat_map(|n| n.outputs.iter().map(move |&v| (n, v)));
    let mut largest: Vec<Large> = results
        .filter(|(_, v)| graph.values().get(v.0).is_some_and(|value| value.home == Home::Computed))
        .map(|(n, v)| {
            let shape = graph.shape(v);
            Large { label: n.label.clone(), op: n.op.name(), shape: shape.to_string(), bytes: graph.values()[v.0].bytes() }
        })
        .collect();
    largest.sort_by_key(|l| std::cmp::Reverse(l.bytes));
    largest.truncate(LARGEST);
    Ok(Need {
        phase: stage.objective.word(),
        batch: stage.batch,
        micro_batch: fit,
        size: stage.size,
        precision: stage.precision,
        parameters: graph.params.count(),
        flops_per_step: train.flops() * parts,
        bytes_per_step: train.bytes() * parts,
        device_bytes: memory,
        training_f32,
        live_bytes: train.live_bytes(),
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
        let of = |extra: &str| needs(&sets(&[&small[..], &[extra]].concat()), &Caps::minimal(), &Options::default(), true).unwrap();
        let (one, two) = (of("train.batch_size=4"), of("train.batch_size=8"));
        let parts = of("train.micro_batch=2");
        assert_eq!(one.iter().map(|n| n.phase).collect::<Vec<_>>(), ["autoencoder", "classification", "joint"]);
        assert_eq!(one[0].flops_per_step, two[0].flops_per_step);
        assert!(one[2].device_bytes.training < two[2].device_bytes.training && one[2].device_bytes.weights == two[2].device_bytes.weights);
        assert!(one[2].device_bytes.optimiser >= 8 * one[2].parameters as u64);
        assert_eq!(one[2].ops.iter().map(|o| o.flops).sum::<u64>(), one[2].flops_per_step);
        assert_eq!(one[2].largest.len(), LARGEST);
        // The default batch of 12 in parts of two does 12 samples' work, three times that of four.
        let ratio = parts[2].flops_per_step as f64 / one[2].flops_per_step as f64;
        assert!((ratio / 3.0 - 1.0).abs() < 0.01 && parts[2].device_bytes.accumulation > 0, "{ratio}");
        assert!(parts[2].device_bytes.training < one[2].device_bytes.training);
    }
}
