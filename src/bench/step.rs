//! One training step of a named network, and what it is made of.
//!
//! The parts are timed one after the other, each alone; the whole step is timed as training runs it, so the parts add
//! up to more than the whole where host and device work side by side.

use std::time::Instant;

use super::measure::{Measurement, Rules, Stats, repeat};
use super::peak::Roof;
use super::result::Row;
use crate::config::{Activation, Config, Norm, Optimiser, Precision, Preset, Variant};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context, Program, STAGING, Timing};
use crate::graph::{Graph, LOSS_SCALE, ValueId, producer};
use crate::kernels::check::numbers;
use crate::kernels::optimiser::Hyper;
use crate::model::{Mode, Spec};
use crate::plan::{Options, Plan, Session, Store};
use crate::train::fit::Stage;
use crate::train::network::Objective;
use crate::train::update::{Update, together};
use crate::transform::{Augment, Draws};

/// Loss scale of mixed precision: large enough for gradients to survive, small enough for none to overflow.
const SCALE: f32 = 1024.0;

/// A network with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Restoration and classification.
    Ynet,
    /// Restoration with skip connections.
    Unet,
    /// Encoder and class head.
    Classifier,
    /// The network that describes patients: restores its input through the deepest block alone.
    Autoencoder,
}

impl Model {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ynet, Self::Unet, Self::Classifier, Self::Autoencoder];

    /// As the command line and documents say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ynet => "ynet",
            Self::Unet => "unet",
            Self::Classifier => "classifier",
            Self::Autoencoder => "autoencoder",
        }
    }

    /// The network called `word`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none.
    pub fn parse(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|m| m.word() == word).ok_or_else(|| {
            Error::Usage(format!("--model {word}: there is no such network; there are {}", Self::ALL.map(Self::word).join(", ")))
        })
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The network.
    pub model: Model,
    /// Cubes in a step.
    pub batch: usize,
    /// Size of a cube.
    pub cube: [usize; 3],
    /// Channels of the first convolution.
    pub base: usize,
    /// Classes, where the network names them.
    pub classes: usize,
    /// Image transformations.
    pub preset: Preset,
    /// Storage of activations and their gradients.
    pub precision: Precision,
}

impl Setup {
    fn objective(&self) -> Objective {
        let loss = Config::default().loss;
        match self.model {
            Model::Ynet => Objective::Joint { classes: self.classes, restoration: loss.restoration, classification: loss.classification },
            Model::Unet => Objective::Autoencoder { skips: true },
            Model::Classifier => Objective::Classification { classes: self.classes },
            Model::Autoencoder => Objective::Autoencoder { skips: false },
        }
    }

    fn spec(&self) -> Spec {
        let plain = Spec::autoencoder(self.base, 4);
        match self.model {
            Model::Autoencoder => plain,
            _ => Spec { variant: Variant::PyTorch, activation: Activation::Relu, norm: Norm::Running, ..plain },
        }
    }

    /// The graph of a training step.
    ///
    /// # Errors
    /// [`Error::Shape`] when the cube does not suit the network.
    pub fn graph(&self) -> Result<Graph> {
        Ok(self.objective().graph(&self.spec(), self.batch, self.cube, Mode::Train)?.stored_in(self.precision))
    }

    /// Device memory of the step, as training plans it, without validation.
    fn planned(&self, ctx: &Context) -> Result<u64> {
        let config = Config::default();
        let stage = Stage {
            objective: self.objective(),
            spec: self.spec(),
            batch: self.batch,
            size: self.cube,
            optimiser: Optimiser::Adam,
            precision: self.precision,
            encoder_rate: 1.0,
        };
        let memory = stage.need(&config, ctx.caps(), &Options::of(ctx), self.batch)?.memory;
        Ok(memory.total - memory.validation)
    }

    /// As `--shape` would take it: batch, base channels, cube.
    pub fn shape(&self) -> String {
        let [x, y, z] = self.cube;
        format!("{},{},{x},{y},{z}", self.batch, self.base)
    }
}

/// How much is told about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// The whole step.
    Whole,
    /// Its parts, too.
    Parts,
    /// And every operation of the network.
    Layers,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// The whole step; its `extra` holds what is not a time.
    pub whole: Row,
    /// Its parts, in their order.
    pub parts: Vec<Row>,
    /// Every operation of the network, in order; empty unless asked for, or where the adapter has no timestamps.
    pub layers: Vec<Row>,
}

impl Report {
    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        std::iter::once(&self.whole).chain(&self.parts).chain(&self.layers)
    }
}

/// A row of this step without times.
fn blank(setup: &Setup, op: &str, layer: &str, pass: &str) -> Row {
    Row {
        op: op.into(),
        layer: layer.into(),
        shape: setup.shape(),
        pass: pass.into(),
        variant: setup.model.word().into(),
        dtype: if setup.precision == Precision::Mixed { "f16" } else { "f32" }.into(),
        times: 1,
        ..Row::default()
    }
}

/// Everything that a step needs, ready on the device.
struct Rig {
    session: Session,
    update: Update,
    augment: Option<Augment>,
    _stand_in: Option<Buffer>,
    _store: Store,
    cubes: Vec<f32>,
    samples: Vec<u32>,
    labels: Vec<u32>,
}

impl Rig {
    fn new(ctx: &Context, setup: &Setup) -> Result<Self> {
        let (objective, graph) = (setup.objective(), setup.graph()?);
        let store = Store::new(ctx, &graph, 0)?;
        let session = Session::new(ctx, Plan::with(&graph, ctx.caps(), &Options::of(ctx))?, &store)?;
        let losses = objective.losses().iter().map(|name| session.output(name)).collect::<Result<Vec<_>>>()?;
        let update = Update::new(ctx, &store, &together(&store.param_list), Optimiser::Adam, Hyper::default(), 0.0, 1, &losses)?;
        let voxels = setup.batch * setup.cube.iter().product::<usize>();
        let (mut augment, mut stand_in) = (None, None);
        if !matches!(objective, Objective::Autoencoder { .. }) {
            let input = session.input("input")?;
            let target = match session.input("target") {
                Ok(t) => t,
                Err(_) => stand_in.insert(ctx.buffer("semgen.target", input.bytes())?),
            };
            augment = Some(Augment::new(ctx, setup.preset, Config::default().train.flip_axes, setup.batch, setup.cube, 0, input, target)?);
        }
        let batch = u32::try_from(setup.batch).unwrap_or(u32::MAX);
        let classes = u32::try_from(setup.classes).unwrap_or(1).max(1);
        Ok(Self {
            session,
            update,
            augment,
            _stand_in: stand_in,
            _store: store,
            cubes: numbers(77, voxels, 0.5).iter().map(|v| v + 0.5).collect(),
            samples: (0..batch).collect(),
            labels: (0..batch).map(|i| i % classes).collect(),
        })
    }

    /// Gives the device the batch; what is drawn differs from step to step.
    fn feed(&self, ctx: &Context, step: u32) -> Result<()> {
        match &self.augment {
            Some(a) => a.apply(ctx, &self.cubes, &self.samples, Draws::Epoch(step))?,
            None => ctx.upload(self.session.input("input")?, 0, &self.cubes),
        }
        if let Ok(labels) = self.session.input("labels") {
            ctx.upload(labels, 0, &self.labels);
        }
        Ok(())
    }

    /// Reads what training reads in every step.
    fn read(&self, ctx: &Context) -> Result<Vec<f32>> {
        let step = self.update.report(ctx)?;
        Ok(step.losses.into_iter().chain([step.norm]).collect())
    }

    /// What mixed precision sets in every step.
    fn scale(&mut self, ctx: &Context) -> Result<()> {
        if let Ok(input) = self.session.input(LOSS_SCALE) {
            ctx.upload(input, 0, &[SCALE]);
            self.update.set_loss_scale(SCALE);
        }
        Ok(())
    }

    /// A step as training runs it.
    fn step(&mut self, ctx: &Context, step: u32) -> Result<Vec<f32>> {
        self.feed(ctx, step)?;
        self.scale(ctx)?;
        self.session.run(ctx)?;
        self.update.take(ctx, 0)?;
        self.update.apply(ctx, 1e-3)?;
        self.read(ctx)
    }
}

/// Index of the first operation of the gradient: the one after everything that the losses need.
fn backward_begins(graph: &Graph) -> usize {
    let made = |v: ValueId| producer(graph.nodes(), v).map_or(0, |i| i + 1);
    graph.outputs().iter().filter(|o| o.0.starts_with("loss")).map(|o| made(o.1)).max().unwrap_or(0)
}

/// Each dispatch's seconds in repeated runs, and the sum of their medians; `None` without timestamps.
fn dispatches(ctx: &Context, program: &Program, rules: &Rules) -> Result<Option<(Vec<Vec<f64>>, f64)>> {
    let (mut samples, begun): (Vec<Vec<f64>>, Instant) = (vec![Vec::new(); program.len()], Instant::now());
    loop {
        let Some(seconds) = program.run_timed(ctx)? else { return Ok(None) };
        for (all, s) in samples.iter_mut().zip(&seconds) {
            all.push(*s);
        }
        let n = samples.first().map_or(rules.most, Vec::len);
        if n >= rules.least.min(9) || begun.elapsed() >= rules.limit || n >= rules.most {
            let total = samples.iter().map(|s| Stats::of(s).median).sum();
            return Ok(Some((samples, total)));
        }
    }
}

/// The statistics of the sums of several dispatches' samples.
fn sum(samples: &[Vec<f64>]) -> Option<Stats> {
    let runs = samples.first()?.len();
    let sums: Vec<f64> = (0..runs).map(|r| samples.iter().map(|s| s[r]).sum()).collect();
    Some(Stats::of(&sums))
}

fn rates(row: &mut Row, roof: Option<&Roof>) {
    let wall = row.wall_s.or(row.device_s);
    // What the host does is no matter of the adapter's roof.
    let roof = roof.filter(|_| row.flops > 0);
    if let Some(wall) = wall {
        let device = row.device_s;
        let m = Measurement { device, wall, runs: 1, drift: false, unstable: false };
        let known = row.wall_s;
        row.measured(&m, roof);
        row.wall_s = known;
    }
}

/// Times a step of `setup`.
///
/// # Errors
/// [`Error::Failed`] when a loss is not finite, what the device and its limits refuse.
pub fn measure(ctx: &Context, setup: &Setup, rules: &Rules, roof: Option<&Roof>, detail: Detail) -> Result<Report> {
    let planned = setup.planned(ctx)?;
    // The buffer for readback is made once for the life of a device: here, so that it can be counted.
    ctx.read::<f32>(&ctx.buffer("semgen.step", 4)?, 0, 1)?;
    ctx.restart_peak();
    let before = ctx.memory().0;
    let mut rig = Rig::new(ctx, setup)?;
    let plan = rig.session.plan();
    let (flops, bytes, count) = (plan.flops(), plan.bytes(), plan.dispatches.len());
    // Compiles, fills caches, and shows whether the step does what it should.
    let first = rig.step(ctx, 0)?;
    if let Some(wrong) = first.iter().find(|v| !v.is_finite()) {
        return Err(Error::Failed(format!(
            "the first step of the {} gives the loss or gradient norm {wrong}; see `semgen doctor`",
            setup.model.word()
        )));
    }
    ctx.wait()?;

    let mut step = 0;
    let mut clock = Instant::now();
    let whole = repeat(rules, 1, || {
        step += 1;
        rig.step(ctx, step)?;
        let wall = clock.elapsed().as_secs_f64();
        clock = Instant::now();
        Ok(Timing { device: None, wall })
    })?;
    ctx.wait()?;
    let allocated = ctx.recent_peak() - before + STAGING;
    let mut row = blank(setup, "step", "", "step");
    (row.flops, row.bytes, row.dispatches) = (flops, bytes, count);
    row.intensity = flops as f64 / bytes.max(1) as f64;
    row.measured(&whole, roof);
    let seconds = whole.wall.median;
    row.extra.insert("samples_per_s".into(), setup.batch as f64 / seconds);
    row.extra.insert("planned_bytes".into(), planned as f64);
    row.extra.insert("allocated_bytes".into(), allocated as f64);
    row.extra.insert("parameters".into(), rig.session.plan().graph.params.count() as f64);
    if detail == Detail::Whole {
        return Ok(Report { whole: row, parts: Vec::new(), layers: Vec::new() });
    }

    let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<Stats> {
        let quick = Rules { limit: rules.limit / 4, ..*rules };
        let m = repeat(&quick, 1, || {
            let begun = Instant::now();
            work()?;
            ctx.wait()?;
            Ok(Timing { device: None, wall: begun.elapsed().as_secs_f64() })
        })?;
        Ok(m.wall)
    };
    let program = |p: &Program| -> Result<Measurement> {
        let quick = Rules { limit: rules.limit / 4, ..*rules };
        repeat(&quick, 1, || p.time(ctx, 1))
    };
    let mut parts = Vec::new();
    let input = rig.session.input("input")?;
    let mut upload = blank(setup, "step", "", "upload");
    upload.bytes = (rig.cubes.len() + rig.labels.len()) as u64 * 4;
    upload.wall_s = Some(timed(&mut || {
        ctx.upload(input, 0, &rig.cubes);
        if let Ok(labels) = rig.session.input("labels") {
            ctx.upload(labels, 0, &rig.labels);
        }
        ctx.flush();
        Ok(())
    })?);
    parts.push(upload);
    let mut device = Some(0.0);
    let mut add = |seconds: Option<f64>| device = device.zip(seconds).map(|(a, b)| a + b);
    if let Some(a) = &rig.augment {
        let m = program(a.program())?;
        add(m.device.map(|d| d.median));
        let mut row = blank(setup, "step", "", "transform");
        (row.device_s, row.wall_s, row.dispatches) = (m.device, Some(m.wall), a.program().len());
        parts.push(row);
    }
    rig.feed(ctx, 0)?;
    let network = if seconds > rules.limit.as_secs_f64() / 4.0 {
        let once = rig.session.program().time(ctx, 1)?;
        Measurement { device: once.device.map(|d| Stats::of(&[d])), wall: Stats::of(&[once.wall]), runs: 1, drift: false, unstable: true }
    } else {
        program(rig.session.program())?
    };
    let split = backward_begins(&rig.session.plan().graph);
    let each = dispatches(ctx, rig.session.program(), rules)?;
    add(network.device.map(|d| d.median));
    let plan = rig.session.plan();
    for (pass, ops) in [("forward", &plan.ops[..split.min(plan.ops.len())]), ("backward", &plan.ops[split.min(plan.ops.len())..])] {
        let mut row = blank(setup, "step", "", pass);
        let range = ops.first().map_or(0, |o| o.dispatches.start)..ops.last().map_or(0, |o| o.dispatches.end);
        (row.flops, row.bytes) = (ops.iter().map(|o| o.flops).sum(), ops.iter().map(|o| o.bytes).sum());
        (row.dispatches, row.device_s) = (range.len(), each.as_ref().and_then(|(s, _)| sum(&s[range])));
        parts.push(row);
    }
    let mut both = blank(setup, "step", "", "forward and backward");
    (both.flops, both.bytes, both.dispatches, both.device_s, both.wall_s) = (flops, bytes, count, network.device, Some(network.wall));
    parts.push(both);
    let mut optimiser = blank(setup, "step", "", "optimiser");
    let (mut walls, mut devices) = (Vec::new(), Vec::new());
    for p in rig.update.programs() {
        let m = program(p)?;
        add(m.device.map(|d| d.median));
        optimiser.dispatches += p.len();
        walls.push(m.wall);
        devices.extend(m.device);
    }
    let total = |all: &[Stats]| Stats {
        median: all.iter().map(|s| s.median).sum(),
        min: all.iter().map(|s| s.min).sum(),
        low: all.iter().map(|s| s.low).sum(),
        high: all.iter().map(|s| s.high).sum(),
        spread: all.iter().map(|s| s.spread).fold(0.0, f64::max),
        count: all.iter().map(|s| s.count).min().unwrap_or(0),
    };
    optimiser.wall_s = Some(total(&walls));
    optimiser.device_s = (devices.len() == walls.len()).then(|| total(&devices));
    parts.push(optimiser);
    let mut readback = blank(setup, "step", "", "readback");
    readback.bytes = first.len() as u64 * 4;
    readback.wall_s = Some(timed(&mut || rig.read(ctx).map(|_| ()))?);
    parts.push(readback);
    parts.iter_mut().for_each(|r| rates(r, roof));

    if let Some(busy) = device {
        row.extra.insert("device_s".into(), busy);
        row.extra.insert("idle_share".into(), (1.0 - busy / seconds).max(0.0));
    }

    let mut rows = Vec::new();
    if let Some((samples, _)) = each.as_ref().filter(|_| detail == Detail::Layers) {
        for op in &rig.session.plan().ops {
            let mut row = blank(setup, op.op, &op.label, "step");
            row.shape = op.shape.clone();
            (row.flops, row.bytes, row.dispatches) = (op.flops, op.bytes, op.dispatches.len());
            row.intensity = op.flops as f64 / op.bytes.max(1) as f64;
            row.device_s = sum(&samples[op.dispatches.clone()]);
            rates(&mut row, roof);
            rows.push(row);
        }
    }
    Ok(Report { whole: row, parts, layers: rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_begins_after_the_losses() {
        let setup =
            |model| Setup { model, batch: 2, cube: [16, 16, 8], base: 2, classes: 5, preset: Preset::Paper, precision: Precision::F32 };
        for model in Model::ALL {
            let graph = setup(model).graph().unwrap();
            let begins = backward_begins(&graph);
            let labels: Vec<&str> = graph.nodes().iter().map(|n| n.label.as_str()).collect();
            assert!(begins > 10 && begins < labels.len(), "{model:?}");
            let gradient = |label: &&str| label.ends_with(".grad");
            assert!(!labels[..begins].iter().any(gradient), "{model:?}: {:?}", &labels[..begins]);
            assert!(labels[begins..].iter().all(|l| l.ends_with(".grad")), "{model:?}: {:?}", &labels[begins..]);
            assert_eq!(Model::parse(model.word()).unwrap(), model);
        }
        assert!(Model::parse("vnet").is_err());
    }
}
