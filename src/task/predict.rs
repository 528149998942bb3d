//! A finished model on new scans: what is each voxel, what is this scan, what is at this place.
//!
//! Segmentation slides windows over the prepared scan ([`slide`]), takes the mean of the *probabilities* (softmax or sigmoid of the
//! network's outputs) of all windows over a voxel, interpolates it linearly on the scan's own grid where the model works at
//! another voxel size, and only then decides: the class with the largest probability, or a probability above ½ where there is one
//! output. Deciding last keeps the borders of structures smooth on the scan's grid.

pub mod slide;

use std::path::Path;

pub use slide::{Scan, Target};
use slide::{Slide, reversals};

use super::{Description, Kind, Output, View};
use crate::config::{Config, Flip, Norm};
use crate::data::frame::{Frame, same_place};
use crate::data::recipe::{Recipe, Source};
use crate::data::resize::resize;
use crate::data::store::stored;
use crate::data::volume::{IDENTITY, Volume, apply, inverse};
use crate::error::{Error, Result};
use crate::gpu::Context;
use crate::graph::{Graph, Shape};
use crate::kernels::activation::Function;
use crate::model::{Mode, Spec};
use crate::plan::{Options, Plan, Session, Store};
use crate::train::checkpoint::{Named, load_state_dict};
use crate::train::fit::Budget;

/// Voxels that are worth sending to the device at once.
const TOGETHER: usize = 1 << 19;
/// Most windows at once.
const MOST: usize = 16;
/// Device memory from which on more windows at once are no gain.
const ENOUGH: u64 = 1 << 30;
/// Scores that are decided about at once.
const DECIDED: usize = 1 << 22;

/// A scan whose windows are sampled as they are asked for: one [`Source`] a channel, all on one grid.
#[derive(Debug)]
pub struct Opened {
    sources: Vec<Source>,
}

impl Opened {
    /// Prepares the channels of a scan as `recipe` says.
    ///
    /// # Errors
    /// The channel that is wrong, and a sentence about it: what [`Recipe::source`] finds, or a channel that does not lie on the first.
    pub fn new(recipe: &Recipe, volumes: impl Iterator<Item = Result<Volume>>) -> Result<Self, (usize, Error)> {
        let mut sources: Vec<Source> = Vec::new();
        for (c, volume) in volumes.enumerate() {
            let volume = volume.map_err(|e| (c, e))?;
            let wrong = |what: String| (c, Error::Usage(what));
            if let Some(first) = sources.first() {
                same_place((volume.size, &volume.affine), (first.frame.source_size, &first.frame.source_affine)).map_err(wrong)?;
            }
            let mut source = recipe.source(volume).map_err(wrong)?;
            if let Some(first) = sources.first() {
                // The first channel's place counts; differences within rounding are none.
                source.frame = first.frame.clone();
            }
            sources.push(source);
        }
        if sources.is_empty() {
            return Err((0, Error::Usage("a scan has at least one channel".into())));
        }
        Ok(Self { sources })
    }

    /// Where the prepared grid lies in the scan.
    pub fn frame(&self) -> &Frame {
        &self.sources[0].frame
    }

    /// What a user should know, by channel.
    pub fn notes(&self) -> impl Iterator<Item = (usize, &str)> {
        self.sources.iter().enumerate().flat_map(|(c, s)| s.notes.iter().map(move |n| (c, n.as_str())))
    }

    /// Values of the first channel in `[0, 1]` in the scan's own resolution, axes left, posterior, superior.
    pub fn values(&self) -> &[f32] {
        &self.sources[0].turned
    }

    /// Intensities of the first channel that became 0 and 1.
    pub fn range(&self) -> [f32; 2] {
        self.sources[0].range
    }

    /// The scan's own grid.
    ///
    /// # Errors
    /// [`Error::Failed`] if the frame has no inverse, which [`Frame::whole`] excludes.
    pub fn target(&self) -> Result<Target> {
        let frame = self.frame();
        let to_prepared = inverse(&frame.to_source).ok_or_else(|| Error::Failed("the scan's frame has no inverse".into()))?;
        Ok(Target { size: frame.source_size, to_prepared })
    }
}

impl Scan for Opened {
    fn size(&self) -> [usize; 3] {
        self.frame().grid
    }

    fn window(&self, start: [i64; 3], size: [usize; 3]) -> Vec<f32> {
        let grid = self.frame().grid;
        let lo: [usize; 3] = std::array::from_fn(|a| start[a].clamp(0, grid[a] as i64) as usize);
        let inner: [usize; 3] = std::array::from_fn(|a| (start[a] + size[a] as i64).clamp(lo[a] as i64, grid[a] as i64) as usize - lo[a]);
        let channels = self.sources.len();
        let mut out = vec![0.0; size.iter().product::<usize>() * channels];
        for (c, source) in self.sources.iter().enumerate() {
            // As exact as a prepared set keeps it, so that a model sees what it was trained on.
            let values = source.frame.window(&source.turned, lo, inner).into_iter().map(stored);
            let shift: [usize; 3] = std::array::from_fn(|a| (lo[a] as i64 - start[a]) as usize);
            for (n, v) in values.enumerate() {
                let [x, y, z] = [n / (inner[1] * inner[2]), n / inner[2] % inner[1], n % inner[2]];
                out[(((x + shift[0]) * size[1] + y + shift[1]) * size[2] + z + shift[2]) * channels + c] = v;
            }
        }
        out
    }
}

/// Part of an answer: one slice of the target, `[j][i]`.
pub struct Slice<'a> {
    /// Which one.
    pub k: usize,
    /// Class of every voxel.
    pub classes: &'a [u16],
    /// Probabilities, outputs innermost.
    pub probabilities: &'a [f32],
}

/// A model on a device.
pub struct Predictor<'a> {
    ctx: &'a Context,
    task: Description,
    session: Session,
    decider: Option<Session>,
    slide: Slide,
    // The buffers that the sessions use.
    _stores: Vec<Store>,
}

/// The network with probabilities as its output `probabilities`.
fn graph(task: &Description, batch: usize) -> Result<Graph> {
    let spec: Spec = task.spec();
    let mut g = Graph::new();
    let x = spec.input(&mut g, "input", batch, task.window);
    let encoded = spec.encoder(&mut g, x, Mode::Evaluate)?;
    let logits = match task.kind {
        Kind::Segment => spec.segmentation(&mut g, &encoded, task.outputs(), Mode::Evaluate)?,
        Kind::Classify => spec.classifier(&mut g, &encoded, task.outputs())?,
    };
    let p = match task.output {
        Output::Multiclass => g.softmax("probabilities", logits),
        Output::Binary | Output::Multilabel => g.activation("probabilities", Function::Sigmoid, logits),
    };
    g.output("probabilities", p);
    Ok(g)
}

/// From `scores` of `rows` voxels to what is decided: the largest, or whether the only one is above 0.
fn decision(rows: usize, outputs: usize) -> Graph {
    let mut g = Graph::new();
    let x = g.input("scores", Shape::new(1, [rows, 1, 1], outputs));
    let decided = if outputs == 1 { g.activation("decided", Function::Step, x) } else { g.arg_max("decided", x) };
    g.output("decided", decided);
    g
}

impl<'a> Predictor<'a> {
    /// Loads `weights` of the network of `task`. Windows overlap by the share `overlap`; predictions are the mean over the
    /// reversals of axes that `flips` allows.
    ///
    /// # Errors
    /// An overlap outside `[0, 1)`, weights that are not the network's, what the device reports.
    pub fn new(ctx: &'a Context, task: &Description, weights: &Named, overlap: f64, flips: Flip) -> Result<Self> {
        if !(0.0..1.0).contains(&overlap) {
            return Err(Error::Usage(format!("an overlap of {overlap} is not possible; give a share from 0 to below 1, as in 0.5")));
        }
        let (batch, plan) = plan(ctx, task)?;
        let store = Store::new(ctx, &plan.graph, 0)?;
        load_state_dict(ctx, &store, weights, true)?;
        let session = Session::new(ctx, plan, &store)?;
        let mut stores = vec![store];
        let outputs = task.outputs();
        let decider = match task.kind {
            Kind::Classify => None,
            Kind::Segment => {
                let graph = decision(DECIDED / outputs, outputs);
                let store = Store::new(ctx, &graph, 0)?;
                let session = Session::new(ctx, Plan::with(&graph, ctx.caps(), &Options::of(ctx))?, &store)?;
                stores.push(store);
                Some(session)
            }
        };
        let slide = Slide { window: task.window, channels: task.channels.len(), outputs, overlap, flips: reversals(flips.axes()), batch };
        Ok(Self { ctx, task: task.clone(), session, decider, slide, _stores: stores })
    }

    /// What the model is for.
    pub fn task(&self) -> &Description {
        &self.task
    }

    /// Windows scored at once.
    pub fn batch(&self) -> usize {
        self.slide.batch
    }

    /// Windows that [`Predictor::segment`] scores for a scan of `size` prepared voxels.
    pub fn windows(&self, size: [usize; 3]) -> usize {
        self.slide.count(size)
    }

    /// Probabilities of at most [`Predictor::batch`] windows `[n][x][y][z][channel]`: `[n][…][output]`.
    fn score(&self, mut cubes: Vec<f32>, n: usize) -> Result<Vec<f32>> {
        let one = self.slide.window.iter().product::<usize>() * self.slide.channels;
        if n > self.slide.batch || cubes.len() != n * one {
            return Err(Error::shape("predict", format!("{} values do not make {n} windows, at most {}", cubes.len(), self.slide.batch)));
        }
        // The plan takes whole batches; what fills the last one is not looked at.
        cubes.resize(self.slide.batch * one, 0.0);
        self.ctx.upload(self.session.input("input")?, 0, &cubes);
        self.session.run(self.ctx)?;
        let mut out: Vec<f32> = self.session.read(self.ctx, "probabilities")?;
        out.truncate(out.len() / self.slide.batch * n);
        if out.iter().any(|p| !p.is_finite()) {
            return Err(Error::Failed("the model's answer holds numbers that are not finite; its weights are not usable".into()));
        }
        Ok(out)
    }

    /// The class of every voxel with these probabilities.
    fn decide(&self, probabilities: &[f32]) -> Result<Vec<u16>> {
        let session =
            self.decider.as_ref().ok_or_else(|| Error::Usage("the model classifies scans; it has nothing to say of voxels".into()))?;
        let outputs = self.slide.outputs;
        let rows = DECIDED / outputs;
        let mut out = Vec::with_capacity(probabilities.len() / outputs);
        for part in probabilities.chunks(rows * outputs) {
            let input = session.input("scores")?;
            if outputs == 1 {
                let above: Vec<f32> = part.iter().map(|p| p - 0.5).collect();
                self.ctx.upload(input, 0, &above);
            } else {
                self.ctx.upload(input, 0, part);
            }
            session.run(self.ctx)?;
            let decided: Vec<u32> = self.ctx.read(session.output("decided")?, 0, part.len() / outputs)?;
            // The step function gives floats.
            out.extend(decided.iter().map(|&d| if outputs == 1 { u16::from(d != 0) } else { d as u16 }));
        }
        Ok(out)
    }

    /// The class and the probabilities of every voxel of `target`, slice by slice; `on` hears of windows that are done.
    ///
    /// # Errors
    /// A model that classifies, what the device reports, what `take` returns.
    pub fn segment(
        &self,
        scan: &dyn Scan,
        target: &Target,
        on: &mut dyn FnMut(usize),
        take: &mut dyn FnMut(&Slice<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut score = |cubes: Vec<f32>, n: usize| {
            let out = self.score(cubes, n);
            on(n);
            out
        };
        self.slide.run(scan, target, &mut score, &mut |k, probabilities| {
            let classes = self.decide(probabilities)?;
            take(&Slice { k, classes: &classes, probabilities })
        })
    }

    /// The class of every voxel of the prepared grid, `[x][y][z]`.
    ///
    /// # Errors
    /// As [`Predictor::segment`].
    pub fn classes(&self, scan: &dyn Scan) -> Result<Vec<u16>> {
        let size = scan.size();
        let mut out = vec![0; size.iter().product()];
        self.segment(scan, &Target { size, to_prepared: IDENTITY }, &mut |_| (), &mut |slice| {
            for (n, &c) in slice.classes.iter().enumerate() {
                out[(n % size[0] * size[1] + n / size[0]) * size[2] + slice.k] = c;
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Probabilities of each output for windows `[x][y][z][channel]`, the mean over the reversals: one row a window.
    ///
    /// # Errors
    /// What the device reports.
    pub fn classify(&self, windows: &mut dyn Iterator<Item = Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let (window, channels, outputs) = (self.slide.window, self.slide.channels, self.slide.outputs);
        let count = self.slide.flips.len();
        let mut rows: Vec<Vec<f32>> = Vec::new();
        let mut waiting: Vec<f32> = Vec::new();
        let (mut held, mut done) = (0, 0);
        let mut flush = |waiting: &mut Vec<f32>, held: &mut usize, rows: &mut Vec<Vec<f32>>| -> Result<()> {
            for p in self.score(std::mem::take(waiting), *held)?.chunks_exact(outputs) {
                let row = &mut rows[done / count];
                row.iter_mut().zip(p).for_each(|(r, p)| *r += p / count as f32);
                done += 1;
            }
            *held = 0;
            Ok(())
        };
        for cube in windows {
            rows.push(vec![0.0; outputs]);
            for flips in &self.slide.flips {
                let mut turned = cube.clone();
                (0..3).filter(|&a| flips[a]).for_each(|a| super::windows::flip(&mut turned, window, channels, a));
                waiting.extend(turned);
                held += 1;
                if held == self.slide.batch {
                    flush(&mut waiting, &mut held, &mut rows)?;
                }
            }
        }
        if held > 0 {
            flush(&mut waiting, &mut held, &mut rows)?;
        }
        Ok(rows)
    }
}

/// The window around a point (millimetres right, anterior, superior) of a scan, as in training.
///
/// # Errors
/// A sentence if the point lies outside the scan.
pub fn around(scan: &Opened, window: [usize; 3], point: [f64; 3]) -> Result<Vec<f32>, String> {
    let frame = scan.frame();
    let place = apply(&inverse(&frame.affine).ok_or("has a grid without an inverse")?, point);
    if (0..3).any(|a| place[a] < -0.5 || place[a] > frame.grid[a] as f64 - 0.5) {
        return Err(format!("the point {point:?} mm (right, anterior, superior) lies outside the scan"));
    }
    Ok(scan.window(std::array::from_fn(|a| (place[a] - (window[a] as f64 - 1.0) / 2.0).round() as i64), window))
}

/// What a model that sees whole scans is shown of one: the prepared scan, each axis resized to the window, as in training.
pub fn shrunk(scan: &Opened, window: [usize; 3]) -> Vec<f32> {
    let (grid, channels) = (scan.frame().grid, scan.sources.len());
    let parts: Vec<Vec<f32>> = scan.sources.iter().map(|s| resize(&s.frame.window(&s.turned, [0; 3], grid), grid, window)).collect();
    (0..window.iter().product::<usize>() * channels).map(|i| stored(parts[i % channels][i / channels])).collect()
}

/// How many windows are scored at once, and the plan for them.
fn plan(ctx: &Context, task: &Description) -> Result<(usize, Plan)> {
    let voxels: usize = task.window.iter().product();
    let mut batch = match task.model.norm {
        // A window's answer must not depend on its neighbours in the batch.
        Norm::Batch => 1,
        Norm::Running => (TOGETHER / voxels.max(1)).clamp(1, MOST),
    };
    let budget = Budget::new(&Config::default(), ctx.caps()).bytes.unwrap_or(u64::MAX).min(ENOUGH);
    loop {
        let planned = graph(task, batch).and_then(|g| Plan::with(&g, ctx.caps(), &Options::of(ctx)));
        match planned {
            Ok(plan) if batch == 1 || plan.session_bytes(ctx.caps()) <= budget => return Ok((batch, plan)),
            Err(e) if batch == 1 || !matches!(e, Error::ExceedsLimit { .. }) => return Err(e),
            _ => batch /= 2,
        }
    }
}

/// Loads the model in `path` (a file, or the best of a run) for prediction.
///
/// # Errors
/// [`Error::Input`] for anything but a fine-tuned model.
pub fn load(path: &Path) -> Result<(Description, Named)> {
    let file = crate::interop::weights::locate(path)?;
    let (task, weights) = Description::load(&file)?;
    check(&task).map_err(|what| Error::input(&file, what))?;
    Ok((task, weights))
}

/// What is impossible about a description, which a file from elsewhere may claim.
fn check(task: &Description) -> Result<(), String> {
    let classes = task.classes.len();
    if task.window.iter().any(|&n| !(1..=4096).contains(&n)) {
        return Err(format!("describes windows of {:?} voxels; 1 to 4096 along each axis were expected", task.window));
    }
    if task.channels.is_empty() || !(2..=usize::from(u16::MAX)).contains(&classes) && task.output != Output::Multilabel || classes == 0 {
        return Err(format!("describes {} channels and {classes} classes, which no task has", task.channels.len()));
    }
    if task.kind == Kind::Segment && (task.values.len() != classes || task.output == Output::Multilabel || task.view != View::Windows) {
        return Err(format!("describes a segmentation into {classes} classes with {} label values", task.values.len()));
    }
    if task.output == Output::Binary && classes != 2 {
        return Err(format!("describes a task of two answers with {classes} classes"));
    }
    if task.recipe.spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(format!("describes voxels of {:?} mm", task.recipe.spacing));
    }
    let m = &task.model;
    if !(1..=1024).contains(&m.base_channels) || !(1..=8).contains(&m.depth) {
        return Err(format!("describes a network of {} levels with {} channels", m.depth, m.base_channels));
    }
    Ok(())
}

/// Whether cases of the model are places in scans.
pub fn about_places(task: &Description) -> bool {
    task.kind == Kind::Classify && task.view == View::Point
}
