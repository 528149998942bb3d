//! A network against numbers that PyTorch computed.
//!
//! Two safetensors files make a pair. The weights are a state dict under PyTorch's names. The
//! expected numbers are `input`, and `target` `[N, 1, A, B, C]` and `labels` `[N]` as far as the
//! network has a use for them, and any of:
//!
//! | tensor | what | compared by | limit |
//! |---|---|---|---|
//! | `restored`, `logits`, `loss`, `loss_rec`, `loss_cls` | one pass with the batch's statistics; loss = loss_rec + 0.01 · loss_cls, means of the squared error and of the cross-entropy | norm | 1e-4 |
//! | `grad.<parameter>` | gradient of loss | norm | 1e-3 |
//! | `adam_losses` `[K]` | loss before each of K steps of Adam (learning rate 1e-3) from these weights on this batch | each loss | 1e-3 |
//! | `after<K>.<parameter or running statistic>` | state after K such steps | norm | 1e-2 |
//!
//! "Norm" is `‖a - b‖ / ‖b‖` over a tensor. Two rules follow from what the numbers are:
//!
//! - The bias of a convolution before a batch norm has the gradient zero, because the norm takes the
//!   bias out again. What finite precision finds there is noise, and so is its norm. A gradient
//!   whose norm is below 1e-5 of the largest gradient's is compared relative to that largest norm.
//! - Adam divides each element by its own size, so noise moves such a bias by up to the learning rate
//!   in each step, in any direction: after K steps two right answers differ by up to 2 K · rate in
//!   each element. That is the limit for those biases, and for the running means of their batch
//!   norms, which follow the biases. Nothing the network computes depends on either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Part, Row};
use crate::config::{Activation, Norm, Optimiser, Variant};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context};
use crate::graph::{Graph, Shape, Tensors, ValueId};
use crate::interop::tensors::{Data, File, Tensor};
use crate::kernels::loss::Pointwise;
use crate::kernels::optimiser::Hyper;
use crate::model::{Mode, Spec};
use crate::nn;
use crate::plan::{Plan, Session, Store};
use crate::train::checkpoint::{Named, download, load_state_dict};
use crate::train::update::Update;

const OUTPUT_LIMIT: f64 = 1e-4;
const GRADIENT_LIMIT: f64 = 1e-3;
const ADAM_LOSS_LIMIT: f64 = 1e-3;
const AFTER_LIMIT: f64 = 1e-2;
/// Below this part of the largest gradient norm a gradient counts as zero.
const ZERO_GRADIENT: f64 = 1e-5;
const CLASS_WEIGHT: f32 = 0.01;
const RATE: f32 = 1e-3;
/// Most steps of Adam that are followed, and most channels and classes of a network.
const MOST: usize = 4096;
/// Levels of every network that has a state dict.
const DEPTH: usize = 4;

/// Tensors and where they come from, for messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its tensors.
    pub tensors: Named,
}

impl Source {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_path_buf(), tensors: File::read(path)?.tensors })
    }

    fn error(&self, what: String) -> Error {
        Error::input(&self.path, what)
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.error(format!("the tensor `{name}` is missing; see `semgen doctor --help`")))
    }

    /// The floats of `name`, which must have `shape`.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<&[f32]> {
        let t = self.get(name)?;
        if t.shape != shape {
            return Err(self.error(format!("the tensor `{name}` has shape {:?}, expected {shape:?}", t.shape)));
        }
        t.floats().ok_or_else(|| self.error(format!("the tensor `{name}` holds integers, expected floats")))
    }
}

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Widths and layers.
    pub spec: Spec,
    /// Whether it restores images.
    pub restores: bool,
    /// Whether its decoder reads the encoder's blocks.
    pub skips: bool,
    /// Classes of its class head, if it has one.
    pub classes: Option<usize>,
}

impl Network {
    /// The network that a state dict belongs to, from its names and shapes: either variant, with or without
    /// decoder and class head, ReLU or PReLU.
    ///
    /// # Errors
    /// [`Error::Input`] when it is none of them.
    pub fn of(weights: &Source) -> Result<Self> {
        let has = |name: &str| weights.tensors.contains_key(name);
        let size = |name: &str, axis: usize, rank: usize| -> Result<usize> {
            let t = weights.get(name)?;
            match t.shape.get(axis) {
                Some(&n) if t.shape.len() == rank && (1..=MOST).contains(&n) => Ok(n),
                _ => Err(weights.error(format!("the tensor `{name}` has shape {:?}, expected {rank} sizes in 1..={MOST}", t.shape))),
            }
        };
        let keras = has("depth_0.conv.weight");
        let (first, restoration, head) = match keras {
            true => ("depth_0.conv.weight", "final_conv.weight", "cls_output.weight"),
            false => ("down_tr64.ops.0.conv1.weight", "out_tr.final_conv.weight", "clc_out.fc1.weight"),
        };
        let base = size(first, 0, 5)?;
        let (restores, classes) = (has(restoration), if has(head) { Some(size(head, 0, 2)?) } else { None });
        if !restores && classes.is_none() {
            return Err(weights.error(format!("neither `{restoration}` nor `{head}` is there; expected the state dict of a whole network")));
        }
        // A decoder without skip connections reads only the map from below.
        let skips = !keras || (restores && size("depth_8.conv.weight", 1, 5)? == 24 * base);
        let prelu = weights.tensors.keys().any(|k| k.ends_with(".activation.weight"));
        let spec = Spec {
            base,
            depth: DEPTH,
            variant: if keras { Variant::Keras } else { Variant::PyTorch },
            activation: if prelu { Activation::PRelu } else { Activation::Relu },
            norm: Norm::Running,
        };
        Ok(Self { spec, restores, skips, classes })
    }

    /// Inputs `input`, `target`, `labels`; outputs `restored`, `logits`, `loss_rec`, `loss_cls` and `loss`, as far as the
    /// network has them; and the gradient of `loss`. Batch statistics.
    ///
    /// # Errors
    /// [`Error::Shape`] when the grid does not suit the network.
    pub fn graph(&self, batch: usize, grid: [usize; 3]) -> Result<Graph> {
        let mut g = Graph::new();
        let x = nn::image(&mut g, "input", batch, grid);
        let encoded = self.spec.encoder(&mut g, x, Mode::Train)?;
        let mut loss: Option<ValueId> = None;
        if self.restores {
            let target = nn::image(&mut g, "target", batch, grid);
            let restored = self.spec.restoration(&mut g, &encoded, self.skips, Mode::Train)?;
            g.output("restored", restored);
            let each = g.pointwise_loss("loss_rec", Pointwise::Mse, restored, target)?;
            let mean = g.mean("loss_rec", each);
            g.output("loss_rec", mean);
            loss = Some(mean);
        }
        if let Some(classes) = self.classes {
            let labels = g.input("labels", Shape::per_sample(batch));
            let logits = self.spec.class_head(&mut g, &encoded, classes, Mode::Train)?;
            g.output("logits", logits);
            let each = g.cross_entropy("loss_cls", logits, labels)?;
            let mean = g.mean("loss_cls", each);
            g.output("loss_cls", mean);
            loss = Some(match loss {
                Some(other) => {
                    let weighted = g.scale("loss", mean, CLASS_WEIGHT);
                    g.add("loss", other, weighted)?
                }
                None => mean,
            });
        }
        let loss = loss.ok_or_else(|| Error::shape("doctor", "a network without restoration and class head has no loss"))?;
        g.output("loss", loss);
        g.backward(loss, &[])?;
        Ok(g)
    }
}

/// What a name among the expected numbers stands for.
enum Meaning<'n> {
    Given,
    Output,
    Gradient(&'n str),
    AdamLosses,
    After(usize, &'n str),
    Unknown,
}

fn meaning(name: &str) -> Meaning<'_> {
    match name {
        "input" | "target" | "labels" => Meaning::Given,
        "restored" | "logits" | "loss" | "loss_rec" | "loss_cls" => Meaning::Output,
        "adam_losses" => Meaning::AdamLosses,
        _ => {
            if let Some(parameter) = name.strip_prefix("grad.") {
                return Meaning::Gradient(parameter);
            }
            match name.strip_prefix("after").and_then(|n| n.split_once('.')).and_then(|(k, n)| Some((k.parse().ok()?, n))) {
                Some((_, n)) if n.ends_with(".num_batches_tracked") => Meaning::Unknown,
                Some((k, n)) => Meaning::After(k, n),
                None => Meaning::Unknown,
            }
        }
    }
}

/// Batch and grid of the input, which must be `[N, 1, A, B, C]` with sizes that the encoder can halve.
fn geometry(expected: &Source) -> Result<(usize, [usize; 3])> {
    let t = expected.get("input")?;
    let unit = 1 << (DEPTH - 1);
    match t.shape[..] {
        [n, 1, a, b, c] if n > 0 && [a, b, c].iter().all(|v| *v > 0 && v % unit == 0) => Ok((n, [a, b, c])),
        _ => Err(expected
            .error(format!("the tensor `input` has shape {:?}, expected [N, 1, A, B, C] with A, B and C multiples of {unit}", t.shape))),
    }
}

/// Labels of `batch` samples below `classes`.
fn labels(expected: &Source, batch: usize, classes: usize) -> Result<Vec<u32>> {
    let t = expected.get("labels")?;
    let Data::I64(values) = &t.data else {
        return Err(expected.error("the tensor `labels` holds floats, expected integers".into()));
    };
    if t.shape != [batch] {
        return Err(expected.error(format!("the tensor `labels` has shape {:?}, expected [{batch}]", t.shape)));
    }
    values
        .iter()
        .map(|&v| {
            u32::try_from(v)
                .ok()
                .filter(|&l| (l as usize) < classes)
                .ok_or_else(|| expected.error(format!("the label {v} is not in 0..{classes}, the classes that the weights have")))
        })
        .collect()
}

/// Refuses weights that lack a tensor of the network or hold one of another shape.
fn check_weights(weights: &Source, graph: &Graph) -> Result<()> {
    let tensors = graph.params.list().iter().chain(graph.state.list());
    tensors.map(|p| (&p.name, p.file_shape())).try_for_each(|(name, shape)| weights.floats(name, &shape).map(|_| ()))
}

/// Refuses expected tensors that the network has not, or not in that shape, before anything is run.
/// Returns the steps of Adam to follow and the names that mean nothing.
fn check_expected(expected: &Source, graph: &Graph, batch: usize, grid: [usize; 3]) -> Result<(usize, Vec<String>)> {
    let (mut steps, mut ignored, mut compared) = (0, Vec::new(), 0);
    for (name, t) in &expected.tensors {
        let file_shape = |lists: &[&Tensors], tensor: &str| {
            lists.iter().find_map(|l| l.find(tensor)).map(|p| p.file_shape()).ok_or_else(|| {
                expected
                    .error(format!("`{name}` names no tensor of the network that the weights belong to; make both files from one network"))
            })
        };
        let shape = match meaning(name) {
            Meaning::Given => continue,
            Meaning::Unknown => {
                ignored.push(name.clone());
                continue;
            }
            Meaning::Output => {
                let value = graph.outputs().iter().find(|(n, _)| n == name).map(|(_, v)| graph.shape(*v)).ok_or_else(|| {
                    expected.error(format!("`{name}` is not computed by the network that the weights belong to; leave it out"))
                })?;
                match name.as_str() {
                    "restored" => vec![batch, 1, grid[0], grid[1], grid[2]],
                    "logits" => vec![batch, value.channels],
                    // A scalar, however it is written.
                    _ if t.shape.iter().all(|&n| n == 1) => t.shape.clone(),
                    _ => vec![],
                }
            }
            Meaning::Gradient(parameter) => file_shape(&[&graph.params], parameter)?,
            Meaning::AdamLosses => {
                steps = steps.max(t.shape.first().copied().unwrap_or(0));
                vec![t.shape.first().copied().unwrap_or(0)]
            }
            Meaning::After(0, _) => {
                return Err(expected.error(format!("`{name}` is the state before any step, which the weights are; leave it out")));
            }
            Meaning::After(k, tensor) => {
                steps = steps.max(k);
                file_shape(&[&graph.params, &graph.state], tensor)?
            }
        };
        expected.floats(name, &shape)?;
        compared += 1;
        if steps > MOST {
            return Err(expected.error(format!("`{name}` asks for {steps} steps of Adam; at most {MOST} are followed")));
        }
    }
    if compared == 0 {
        return Err(expected.error("there is nothing to compare; expected `restored`, `loss` or others, see `semgen doctor --help`".into()));
    }
    Ok((steps, ignored))
}

/// Euclidean norm.
fn norm(v: &[f32]) -> f64 {
    v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Place and size of the largest difference, for the message of a failure.
fn largest_difference(got: &[f32], want: &[f32]) -> (usize, f64) {
    let mut worst = (0, 0.0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let d = (f64::from(g) - f64::from(w)).abs();
        if !(d <= worst.1) {
            worst = (i, if d.is_nan() { f64::INFINITY } else { d });
        }
    }
    worst
}

fn row(name: &str, got: &[f32], want: &[f32], error: f64, tolerance: f64) -> Row {
    let (at, _) = largest_difference(got, want);
    let failure = if got.len() != want.len() {
        Some(format!("{} values, expected {}", got.len(), want.len()))
    } else {
        (!(error <= tolerance)).then(|| format!("element {at} is {}, expected {}", got[at], want[at]))
    };
    Row { part: Part::Parity, name: name.to_owned(), count: want.len(), error, tolerance, failure }
}

/// `‖got - want‖ / scale`, by default relative to `‖want‖` (absolute where that is zero).
fn by_norm(name: &str, got: &[f32], want: &[f32], scale: Option<f64>, tolerance: f64) -> Row {
    let difference = got.iter().zip(want).map(|(&g, &w)| (f64::from(g) - f64::from(w)).powi(2)).sum::<f64>().sqrt();
    let scale = scale.unwrap_or_else(|| norm(want));
    let error = if scale > 0.0 { difference / scale } else { difference };
    row(name, got, want, if error.is_nan() { f64::INFINITY } else { error }, tolerance)
}

/// The largest single difference.
fn by_element(name: &str, got: &[f32], want: &[f32], tolerance: f64) -> Row {
    row(name, got, want, largest_difference(got, want).1, tolerance)
}

/// What [`compare`] has at hand while it runs.
struct Trial<'a> {
    ctx: &'a Context,
    expected: &'a Source,
    session: Session,
    store: Store,
}

impl Trial<'_> {
    /// A flat buffer's tensors, in file order.
    fn tensors(&self, buffer: &Buffer, list: &Tensors) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut named = Named::new();
        download(self.ctx, buffer, list, "", &mut named)?;
        Ok(named.into_iter().filter_map(|(name, t)| t.floats().map(|f| (name, f.to_vec()))).collect())
    }

    fn wanted(&self, name: &str) -> Option<&[f32]> {
        self.expected.tensors.get(name).and_then(Tensor::floats)
    }

    fn outputs(&self, on_row: &mut dyn FnMut(Row)) -> Result<()> {
        for name in ["restored", "logits", "loss_rec", "loss_cls", "loss"] {
            if let Some(want) = self.wanted(name) {
                on_row(by_norm(name, &self.session.read::<f32>(self.ctx, name)?, want, None, OUTPUT_LIMIT));
            }
        }
        Ok(())
    }

    /// Compares the gradients; returns the parameters whose gradient is zero but for rounding.
    fn gradients(&self, on_row: &mut dyn FnMut(Row)) -> Result<Vec<String>> {
        let found = self.tensors(&self.store.grads, &self.store.param_list)?;
        let want = |name: &str| self.wanted(&format!("grad.{name}"));
        // The norm that PyTorch found, or else ours.
        let norms: Vec<(&String, f64)> = found.iter().map(|(name, g)| (name, norm(want(name).unwrap_or(g)))).collect();
        let largest = norms.iter().fold(0.0, |m: f64, n| m.max(n.1));
        let mut zero = Vec::new();
        for p in self.store.param_list.list() {
            let (name, got) = (&p.name, &found[&p.name]);
            let is_zero = norms.iter().any(|n| n.0 == name && n.1 < ZERO_GRADIENT * largest);
            if let Some(want) = want(name) {
                on_row(by_norm(&format!("grad.{name}"), got, want, is_zero.then_some(largest), GRADIENT_LIMIT));
            }
            if is_zero {
                zero.push(name.clone());
            }
        }
        Ok(zero)
    }

    /// Compares the state after `steps` steps, as far as it is expected.
    fn after(&self, steps: usize, zero: &[String], on_row: &mut dyn FnMut(Row)) -> Result<()> {
        let prefix = format!("after{steps}.");
        if !self.expected.tensors.keys().any(|k| k.starts_with(&prefix)) {
            return Ok(());
        }
        let lists = [(&self.store.params, &self.store.param_list), (&self.store.state, &self.store.state_list)];
        for (buffer, list) in lists {
            let found = self.tensors(buffer, list)?;
            for p in list.list() {
                let name = format!("{prefix}{}", p.name);
                let Some(want) = self.wanted(&name) else { continue };
                // The bias that a running mean follows.
                let bias = p.name.strip_suffix("bn1.running_mean").map(|n| format!("{n}conv1.bias"));
                let bias = bias.or_else(|| p.name.strip_suffix("bn.running_mean").map(|n| format!("{n}conv.bias")));
                let noise = zero.contains(&p.name) || bias.is_some_and(|b| zero.contains(&b));
                on_row(match noise {
                    true => by_element(&name, &found[&p.name], want, 2.0 * steps as f64 * f64::from(RATE)),
                    false => by_norm(&name, &found[&p.name], want, None, AFTER_LIMIT),
                });
            }
        }
        Ok(())
    }
}

/// Builds `network` with `weights`, runs it on the input among the expected numbers and compares everything that
/// is expected; returns the names of tensors that stand for nothing.
///
/// # Errors
/// [`Error::Input`] when a tensor is missing or does not fit, [`Error::ExceedsLimit`] when the adapter cannot hold
/// the network, and what the device reports.
pub fn compare(ctx: &Context, network: &Network, weights: &Source, expected: &Source, on_row: &mut dyn FnMut(Row)) -> Result<Vec<String>> {
    let (batch, grid) = geometry(expected)?;
    let image = [batch, 1, grid[0], grid[1], grid[2]];
    let graph = network.graph(batch, grid)?;
    check_weights(weights, &graph)?;
    let (steps, ignored) = check_expected(expected, &graph, batch, grid)?;
    let input = expected.floats("input", &image)?;
    let target = if network.restores { Some(expected.floats("target", &image)?) } else { None };
    let labels = network.classes.map(|classes| labels(expected, batch, classes)).transpose()?;

    let store = Store::new(ctx, &graph, 0)?;
    load_state_dict(ctx, &store, &weights.tensors, true)?;
    let session = Session::new(ctx, Plan::new(&graph, ctx.caps())?, &store)?;
    ctx.upload(session.input("input")?, 0, input);
    if let Some(target) = target {
        ctx.upload(session.input("target")?, 0, target);
    }
    if let Some(labels) = &labels {
        ctx.upload(session.input("labels")?, 0, labels);
    }
    let trial = Trial { ctx, expected, session, store };
    trial.session.run(ctx)?;
    trial.outputs(on_row)?;
    let zero = trial.gradients(on_row)?;

    if steps == 0 {
        return Ok(ignored);
    }
    let mut update = Update::new(ctx, &trial.store, Optimiser::Adam, Hyper::default(), 0.0)?;
    let mut losses: Vec<f32> = trial.session.read(ctx, "loss")?;
    for step in 1..=steps {
        update.measure(ctx)?;
        update.apply(ctx, RATE)?;
        trial.after(step, &zero, on_row)?;
        if step < steps {
            trial.session.run(ctx)?;
            losses.extend(trial.session.read::<f32>(ctx, "loss")?);
        }
    }
    if let Some(want) = trial.wanted("adam_losses") {
        // Each loss is judged alone; the row shows the worst.
        let of = |i: usize| by_norm("adam_losses", &losses[i..=i], &want[i..=i], None, ADAM_LOSS_LIMIT).error;
        let error = (0..want.len()).map(of).fold(0.0, f64::max);
        on_row(row("adam_losses", &losses[..want.len()], want, error, ADAM_LOSS_LIMIT));
    }
    Ok(ignored)
}
