//! A network against numbers that PyTorch computed.
//!
//! Two safetensors files make a pair. The weights are a state dict under PyTorch's names. The
//! expected numbers are `input`, and `target` `[N, 1, A, B, C]` and `labels` `[N]` as far as the
//! network has a use for them, and any of:
//!
//! | tensor | what | compared by | limit |
//! |---|---|---|---|
//! | `restored`, `logits`, `loss`, `loss_rec`, `loss_cls` | one pass with the batch's statistics; `loss = loss_rec + 0.01 · loss_cls`, means of the squared error and of the cross-entropy | norm | 1e-4 |
//! | `grad.<parameter>` | gradient of loss | norm | 1e-3 |
//! | `adam_losses` `[K]` | loss before each of K steps of Adam (learning rate 1e-3) from these weights on this batch | each loss | 1e-3 |
//! | `after<K>.<parameter or running statistic>` | state after K such steps | norm | 1e-2 |
//!
//! "Norm" is `‖a - b‖ / ‖b‖` over a tensor. Three rules follow from what the numbers are:
//!
//! - The bias of a convolution before a batch norm has the gradient zero, because the norm takes the
//!   bias out again. What finite precision finds there is noise, and so is its norm. A gradient
//!   whose norm is below 1e-5 of the largest gradient's is compared relative to that largest norm.
//! - Adam divides each element by its own size, so noise moves such a bias by up to the learning rate
//!   in each step, in any direction: after K steps two right answers differ by up to 2 K · rate in
//!   each element. That is the limit for those biases. The running means of their batch norms
//!   follow the biases: their limit grows by as much. Nothing the network computes in training depends on either.
//! - Among millions of values some lie so close to the kink of a ReLU, or to a tie of a max-pool, that rounding
//!   decides on which side they fall; one such value of a layer of n changes the gradients below it by
//!   about 1/√n, and Adam carries that on. So when a gradient, an Adam loss or a state exceeds its limit, the
//!   network is measured again from weights that are moved by rounding (2e-6, relative, at random), and
//!   the limit grows by twice what that changes, to at most ten times itself. The row says so.

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
use crate::rng::{Key, Purpose};
use crate::train::checkpoint::{Named, download, load_state_dict};
use crate::train::update::{Update, together};

const OUTPUT_LIMIT: f64 = 1e-4;
const GRADIENT_LIMIT: f64 = 1e-3;
const ADAM_LOSS_LIMIT: f64 = 1e-3;
const AFTER_LIMIT: f64 = 1e-2;
/// Below this part of the largest gradient norm a gradient counts as zero.
const ZERO_GRADIENT: f64 = 1e-5;
const CLASS_WEIGHT: f32 = 0.01;
const RATE: f32 = 1e-3;
/// Largest relative change of a weight that stands for rounding, and how often it is tried.
const ROUNDING: f32 = 2e-6;
const ROUNDINGS: u32 = 3;
/// Most times its own size that a limit grows to because of rounding.
const MOST_WIDENED: f64 = 10.0;
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
            channels: 1,
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

/// Numbers by the names under which they are expected.
type Numbers = BTreeMap<String, Vec<f32>>;

/// How far two tensors lie apart.
#[derive(Clone, Copy, Debug)]
enum Metric {
    /// Euclidean norm of the difference, divided by this.
    Norm(f64),
    /// Largest difference of two elements.
    Element,
    /// Largest difference of two elements, relative to the expected one.
    EachRelative,
}

/// What is expected under one name.
struct Check<'a> {
    name: &'a str,
    want: &'a [f32],
    metric: Metric,
    limit: f64,
    /// Whether the limit may grow by what rounding does, see the module's text.
    rounding: bool,
}

/// Euclidean norm.
fn norm(v: &[f32]) -> f64 {
    v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

impl Check<'_> {
    /// Distance of two versions of the tensor; infinite when one has a number that is not finite, or another length.
    fn distance(&self, a: &[f32], b: &[f32]) -> f64 {
        if a.len() != b.len() {
            return f64::INFINITY;
        }
        let differences = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
        // `f64::max` would pass over a NaN.
        let largest = |m: f64, d: f64| if m.is_nan() || d <= m { m } else { d };
        let distance = match self.metric {
            Metric::Norm(scale) => differences.map(|d| d * d).sum::<f64>().sqrt() / scale,
            Metric::Element => differences.fold(0.0, largest),
            Metric::EachRelative => {
                let relative = differences.zip(self.want).map(|(d, &w)| d / f64::from(w).abs().max(f64::MIN_POSITIVE));
                relative.fold(0.0, largest)
            }
        };
        if distance.is_finite() { distance } else { f64::INFINITY }
    }

    /// The row for `got`, with `spread`, what rounding moves the tensor by.
    fn row(&self, got: &[f32], spread: f64) -> Row {
        let error = self.distance(got, self.want);
        let tolerance = (self.limit + 2.0 * spread).min(MOST_WIDENED * self.limit);
        let worst = (0..self.want.len().min(got.len())).max_by(|&i, &j| {
            let d = |i: usize| (f64::from(got[i]) - f64::from(self.want[i])).abs();
            d(i).total_cmp(&d(j))
        });
        let failure = (!(error <= tolerance)).then(|| match worst {
            Some(i) => format!("element {i} is {}, expected {}", got[i], self.want[i]),
            None => "has no elements".to_owned(),
        });
        let note = (spread > 0.0).then(|| format!("rounding alone moves it by {spread:.1e}"));
        Row { part: Part::Parity, name: self.name.to_owned(), count: self.want.len(), error, tolerance, failure, note }
    }
}

/// A network on the device, ready to be measured from any weights.
struct Rig<'a> {
    ctx: &'a Context,
    expected: &'a Source,
    steps: usize,
    session: Session,
    store: Store,
    /// Statistics at the start, in memory order.
    state: Vec<f32>,
}

impl Rig<'_> {
    /// A flat buffer's tensors in file order, under `prefix` + name.
    fn tensors(&self, buffer: &Buffer, list: &Tensors, prefix: &str, into: &mut Numbers) -> Result<()> {
        let mut named = Named::new();
        download(self.ctx, buffer, list, prefix, &mut named)?;
        into.extend(named.into_iter().filter_map(|(name, t)| t.floats().map(|f| (name, f.to_vec()))));
        Ok(())
    }

    /// Everything that can be expected, from the parameters `flat`; always all gradients.
    fn measure(&self, flat: &[f32]) -> Result<Numbers> {
        let (ctx, store) = (self.ctx, &self.store);
        ctx.upload(&store.params, 0, flat);
        ctx.upload(&store.state, 0, &self.state);
        self.session.run(ctx)?;
        let mut out = Numbers::new();
        for (name, _) in self.session.plan().graph.outputs() {
            out.insert(name.clone(), self.session.read(ctx, name)?);
        }
        self.tensors(&store.grads, &store.param_list, "grad.", &mut out)?;
        if self.steps == 0 {
            return Ok(out);
        }
        let mut update = Update::new(ctx, store, &together(&store.param_list), Optimiser::Adam, Hyper::default(), 0.0, 1, &[])?;
        let mut losses = out["loss"].clone();
        for step in 1..=self.steps {
            update.apply(ctx, RATE)?;
            let prefix = format!("after{step}.");
            if self.expected.tensors.keys().any(|k| k.starts_with(&prefix)) {
                self.tensors(&store.params, &store.param_list, &prefix, &mut out)?;
                self.tensors(&store.state, &store.state_list, &prefix, &mut out)?;
            }
            if step < self.steps {
                self.session.run(ctx)?;
                losses.extend(self.session.read::<f32>(ctx, "loss")?);
            }
        }
        let traced = self.expected.tensors.get("adam_losses").and_then(Tensor::floats).map_or(0, <[f32]>::len);
        losses.truncate(traced);
        out.insert("adam_losses".into(), losses);
        Ok(out)
    }
}

/// What is to be compared, and how; `found` gives the norms of gradients that are not among the expected.
fn checks<'a>(expected: &'a Source, found: &Numbers) -> Vec<Check<'a>> {
    let wanted = |name: &str| expected.tensors.get(name).and_then(Tensor::floats);
    let gradient = |parameter: &str| {
        let name = format!("grad.{parameter}");
        wanted(&name).or_else(|| found.get(&name).map(Vec::as_slice)).map(norm)
    };
    let largest = found.keys().filter_map(|k| gradient(k.strip_prefix("grad.")?)).fold(0.0, f64::max);
    let is_zero = |parameter: &str| gradient(parameter).is_some_and(|n| n < ZERO_GRADIENT * largest);
    let relative = |want: &[f32]| Metric::Norm(Some(norm(want)).filter(|&n| n > 0.0).unwrap_or(1.0));
    let mut out: Vec<(u32, Check<'a>)> = Vec::new();
    for name in expected.tensors.keys() {
        let Some(want) = wanted(name) else { continue };
        let (place, metric, limit) = match meaning(name) {
            Meaning::Given | Meaning::Unknown => continue,
            Meaning::Output => (0, relative(want), OUTPUT_LIMIT),
            Meaning::Gradient(p) => (1, if is_zero(p) { Metric::Norm(largest) } else { relative(want) }, GRADIENT_LIMIT),
            Meaning::AdamLosses => (2, Metric::EachRelative, ADAM_LOSS_LIMIT),
            Meaning::After(k, tensor) => {
                let reach = 2.0 * k as f64 * f64::from(RATE);
                // The bias that a running mean follows.
                let bias = tensor.strip_suffix("bn1.running_mean").map(|n| format!("{n}conv1.bias"));
                let bias = bias.or_else(|| tensor.strip_suffix("bn.running_mean").map(|n| format!("{n}conv.bias")));
                match bias {
                    _ if is_zero(tensor) => (3, Metric::Element, reach),
                    Some(b) if is_zero(&b) => {
                        let size = norm(want).max(f64::MIN_POSITIVE);
                        (3, relative(want), AFTER_LIMIT + reach * (want.len() as f64).sqrt() / size)
                    }
                    _ => (3, relative(want), AFTER_LIMIT),
                }
            }
        };
        out.push((place, Check { name, want, metric, limit, rounding: place > 0 }));
    }
    out.sort_by_key(|c| c.0);
    out.into_iter().map(|c| c.1).collect()
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
    let params: Vec<f32> = ctx.read(&store.params, 0, store.param_list.flat_len())?;
    let state = ctx.read(&store.state, 0, store.state_list.flat_len())?;
    let rig = Rig { ctx, expected, steps, session, store, state };
    let found = rig.measure(&params)?;
    let checks = checks(expected, &found);
    let mut rows: Vec<Row> = checks.iter().map(|c| c.row(&found[c.name], 0.0)).collect();
    let doubtful = |rows: &[Row]| checks.iter().zip(rows).any(|(c, r)| c.rounding && !r.passed() && r.error.is_finite());
    if doubtful(&rows) {
        let mut spread = vec![0.0f64; checks.len()];
        for repeat in 0..ROUNDINGS {
            let mut rng = Key::new(u64::from(repeat)).purpose(Purpose::Check, 0).rng();
            let moved: Vec<f32> = params.iter().map(|&p| p * (1.0 + ROUNDING * (2.0 * rng.unit() - 1.0))).collect();
            let other = rig.measure(&moved)?;
            for (s, c) in spread.iter_mut().zip(&checks).filter(|(_, c)| c.rounding) {
                *s = s.max(c.distance(&other[c.name], &found[c.name]));
            }
        }
        for ((row, c), s) in rows.iter_mut().zip(&checks).zip(spread) {
            if !row.passed() && s.is_finite() {
                *row = c.row(&found[c.name], s);
            }
        }
    }
    rows.into_iter().for_each(on_row);
    Ok(ignored)
}
