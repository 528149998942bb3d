//! The acceptance run: every judged point, ours beside PyTorch in the same run.
//!
//! On a CPU adapter the points are ratios to PyTorch on the same processor; on a GPU they are rates, and whole steps
//! beside PyTorch on the same card. What PyTorch does is measured by `benches/pytorch.py`, which is part of the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::catalogue::{self, Kind, problem};
use super::measure::{Rules, Stats, repeat};
use super::op::bench;
use super::peak::Roof;
use super::probe;
use super::result::{Document, Environment, Row};
use super::step::{self, Detail, Model, Setup};
use crate::config::{Precision, Preset};
use crate::doctor;
use crate::error::{Error, Result};
use crate::gpu::{Context, Dtype, Kind as Adapter, Timing};
use crate::kernels::check::numbers;
use crate::kernels::{conv3d, knn};
use crate::plan::tuning::choices_for;

/// The value of `schema`.
pub const SCHEMA: &str = "semgen-accept-1";
/// What measures PyTorch.
const SCRIPT: &str = include_str!("../../benches/pytorch.py");
/// burn 0.21 on wgpu on Mesa's CPU adapter with two cores, 3×3×3, 32→64 on 32³, in GFLOP/s: the best of what was
/// recorded, forward and backward.
const BURN: [(&str, f64); 3] = [("forward", 4.1), ("input-grad", 0.5), ("weight-grad", 0.5)];
/// The layer that burn was recorded on.
const BURN_SHAPE: &str = "1,32,64,32,32,32";
/// Milliseconds that the published Python needs on one core to distort a cube.
const PUBLISHED_MS: f64 = 60.0;
/// Rows of the published feature matrix.
const ROWS: usize = 75_708;

/// What is run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A Python with PyTorch; without, ratios to it are not judged.
    pub pytorch: Option<PathBuf>,
    /// Compare with burn's recorded rates.
    pub burn_anchors: bool,
    /// Parts to run, all if empty: `doctor`, `1` to `5`.
    pub only: Vec<String>,
    /// Time for one measurement of a kernel.
    pub limit: Duration,
    /// Cubes of the GPU's steps.
    pub batch: usize,
    /// Shrinks everything, so that the run itself can be tried in seconds; nothing it says counts.
    pub small: bool,
}

/// A judged point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Its number.
    pub point: String,
    /// What is judged.
    pub what: String,
    /// What has to be reached, in words.
    pub target: String,
    /// What was measured.
    pub measured: Option<f64>,
    /// What it is compared with.
    pub reference: Option<f64>,
    /// Unit of both.
    pub unit: &'static str,
    /// How much of the target is reached: 1 and more passes.
    pub reached: Option<f64>,
    /// Whether it is reached; none where it was not measured.
    pub passed: Option<bool>,
    /// Why it was not measured, or something to know.
    pub note: String,
}

impl Point {
    /// Measured, and at least `least` times `reference` is asked for.
    fn ratio(point: &str, what: String, least: f64, unit: &'static str, measured: Option<f64>, reference: Option<f64>) -> Self {
        let reached = measured.zip(reference).map(|(m, r)| m / r / least);
        Self { target: format!("≥ {least} ×"), ..Self::judged(point, what, unit, measured, reference, reached) }
    }

    /// At least `least` is asked for.
    fn least(point: &str, what: String, least: f64, unit: &'static str, measured: Option<f64>) -> Self {
        Self { target: format!("≥ {least} {unit}"), ..Self::judged(point, what, unit, measured, None, measured.map(|m| m / least)) }
    }

    /// At most `most` is asked for.
    fn most(point: &str, what: String, most: f64, unit: &'static str, measured: Option<f64>) -> Self {
        Self { target: format!("≤ {most:.3} {unit}"), ..Self::judged(point, what, unit, measured, None, measured.map(|m| most / m)) }
    }

    fn judged(point: &str, what: String, unit: &'static str, measured: Option<f64>, reference: Option<f64>, reached: Option<f64>) -> Self {
        let reached = reached.filter(|r| r.is_finite());
        Self {
            point: point.into(),
            what,
            target: String::new(),
            measured,
            reference,
            unit,
            reached,
            passed: reached.map(|r| r >= 1.0),
            note: String::new(),
        }
    }

    fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// `pass`, `miss` or `not measured`.
    pub fn verdict(&self) -> &'static str {
        match self.passed {
            Some(true) => "pass",
            Some(false) => "miss",
            None => "not measured",
        }
    }
}

/// Everything that the run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Where ours was measured, its roof, and every row.
    pub ours: Document,
    /// Where PyTorch was measured, and every row of it.
    pub pytorch: Option<Document>,
    /// The points, in their order.
    pub points: Vec<Point>,
}

impl Report {
    /// How many points passed, missed and were not measured.
    pub fn counts(&self) -> [usize; 3] {
        let of = |p: Option<bool>| self.points.iter().filter(|q| q.passed == p).count();
        [of(Some(true)), of(Some(false)), of(None)]
    }
}

/// A run of the acceptance.
struct Run<'a> {
    ctx: &'a Context,
    options: &'a Options,
    rules: Rules,
    roof: Option<Roof>,
    report: Report,
    say: &'a mut dyn FnMut(&str),
}

/// Runs the acceptance on an adapter; `say` hears what is done next, `on` each point as soon as it is judged.
///
/// # Errors
/// What the device reports; a PyTorch that cannot be run is an error too.
pub fn run(ctx: &Context, options: &Options, say: &mut dyn FnMut(&str)) -> Result<Report> {
    ctx.choose(choices_for(ctx.caps()));
    let report = Report { schema: SCHEMA, ours: Document::new(Environment::here(ctx.caps()), None), pytorch: None, points: Vec::new() };
    let mut r = Run { ctx, options, rules: Rules::within(options.limit), roof: None, report, say };
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|o| o == part);
    if wanted("doctor") {
        r.doctor()?;
    }
    (r.say)("the roof of the adapter");
    r.roof = Some(probe::known(ctx, false, options.small, &mut |_| {})?);
    r.report.ours.roof.clone_from(&r.roof);
    let cpu = ctx.caps().kind == Adapter::Cpu;
    if cpu {
        if wanted("1") {
            r.convolutions()?;
            r.bandwidth("1", 0.6)?;
        }
        let step = if wanted("2") || wanted("4") { r.steps(wanted("2"))? } else { None };
        if wanted("3") {
            r.neighbours()?;
        }
        if wanted("4") {
            r.transformations(step)?;
        }
    } else {
        if wanted("5") {
            r.layers()?;
            r.bandwidth("5", 0.85)?;
        }
        let step = if wanted("5") || wanted("4") { r.gpu_steps()? } else { None };
        if wanted("4") {
            r.transformations(step)?;
        }
    }
    Ok(r.report)
}

/// The median of the time that counts.
fn median(row: &Row) -> Option<f64> {
    row.time().map(|t| t.median)
}

impl Run<'_> {
    fn point(&mut self, p: Point) {
        self.report.points.push(p);
    }

    fn doctor(&mut self) -> Result<()> {
        (self.say)("every kernel against its reference (doctor)");
        let summary = doctor::run(self.ctx, None, &mut |_| {})?;
        let failures = summary.failures();
        let wrong: Vec<&str> = summary.rows.iter().filter(|r| !r.passed()).map(|r| r.name.as_str()).take(5).collect();
        let mut p = Point::judged("6", format!("doctor: {} comparisons hold on this adapter", summary.rows.len()), "", None, None, None);
        (p.target, p.measured, p.passed, p.note) = ("no failure".into(), Some(failures as f64), Some(summary.passed()), wrong.join(", "));
        self.point(p);
        Ok(())
    }

    /// Runs PyTorch with `commands` (joined by `+`); `None` without one.
    fn pytorch(&mut self, commands: &[String]) -> Result<Vec<Row>> {
        let Some(python) = self.options.pytorch.clone() else { return Ok(Vec::new()) };
        (self.say)(&format!("PyTorch: {}", commands.join(" + ")));
        let device = if self.ctx.caps().kind == Adapter::Cpu { "cpu" } else { "cuda" };
        let document = pytorch(&python, commands, device, self.options.limit)?;
        let rows = document.rows.clone();
        match &mut self.report.pytorch {
            Some(all) => all.rows.extend(document.rows),
            none => *none = Some(document),
        }
        Ok(rows)
    }

    /// One of our operations by name, by the variant that training would use.
    fn ours(&mut self, op: &str, pass: &'static str, shape: &str, dtype: Dtype) -> Result<Row> {
        (self.say)(&format!("{op} {pass} {shape}"));
        let kind = Kind::find(op)?;
        let n: Vec<usize> = shape.split(',').filter_map(|v| v.parse().ok()).collect();
        let options = catalogue::Options { dtype, ..catalogue::Options::default() };
        let problem = problem(self.ctx.caps(), &kind, pass, &n, &options)?;
        let mut variant = problem.variants.first().cloned().unwrap_or_default();
        if op == "conv3d"
            && let Some(chosen) = conv_choice(self.ctx, pass, &n, dtype).filter(|c| problem.variants.contains(c))
        {
            variant = chosen;
        }
        let (row, kernels) = bench(self.ctx, &problem, &variant, &self.rules, self.roof.as_ref())?;
        self.report.ours.environment.note_kernels(kernels.iter().map(|(label, text)| (label.as_str(), &**text)));
        self.report.ours.rows.push(row.clone());
        Ok(row)
    }

    /// Point 1: the judged convolutions.
    fn convolutions(&mut self) -> Result<()> {
        let shapes: &[&str] = match self.options.small {
            true => &["1,8,8,8,8,8"],
            false => &["1,32,64,32,32,32", "1,64,64,32,32,32", "1,128,128,16,16,16", "1,192,64,32,32,32"],
        };
        let command = format!("conv3d {}", shapes.iter().map(|s| format!("--shape {s}")).collect::<Vec<_>>().join(" "));
        let torch = self.pytorch(&[command])?;
        let mut rates = Vec::new();
        for &shape in shapes {
            for pass in conv3d::Pass::ALL.map(conv3d::Pass::name) {
                let row = self.ours("conv3d", pass, shape, Dtype::F32)?;
                let theirs = torch.iter().find(|r| r.shape == shape && r.pass == pass).and_then(|r| r.gflop_s);
                let what = format!("conv3d {shape} {pass} of PyTorch");
                self.point(Point::ratio("1", what, 0.18, "GFLOP/s", row.gflop_s, theirs).noted(problems(&row, theirs.is_none())));
                if self.options.burn_anchors && shape == BURN_SHAPE {
                    let anchor = BURN.iter().find(|b| b.0 == pass).map(|b| b.1);
                    let what = format!("conv3d {shape} {pass} of burn");
                    self.point(
                        Point::ratio("1", what, 10.0, "GFLOP/s", row.gflop_s, anchor).noted("burn as recorded elsewhere, not in this run"),
                    );
                }
                rates.push((shape, pass, row.gflop_s));
            }
        }
        let shape = if self.options.small { "1,8,8,8,8,8" } else { "1,128,128,16,16,16" };
        for pass in conv3d::Pass::ALL.map(conv3d::Pass::name) {
            let row = self.ours("conv_transpose3d", pass, shape, Dtype::F32)?;
            let own = rates.iter().find(|r| r.0 == shape && r.1 == pass).and_then(|r| r.2);
            let what = format!("transposed convolution {shape} {pass} of the convolution");
            self.point(Point::ratio("1", what, 0.5, "GFLOP/s", row.gflop_s, own).noted(problems(&row, false)));
        }
        Ok(())
    }

    /// Kernels that move data, against a copy of as many bytes.
    fn bandwidth(&mut self, point: &str, least: f64) -> Result<()> {
        let (shape, elements) = match (self.options.small, self.ctx.caps().kind) {
            (true, _) => ("1,8,16,16,16", 8 * 4096),
            (false, Adapter::Cpu) => ("1,32,64,64,32", 32 * 131_072),
            (false, _) => ("16,64,64,64,32", 16 * 64 * 131_072),
        };
        let copy = self.ours("copy", "forward", &elements.to_string(), Dtype::F32)?;
        for (op, pass) in [
            ("add", "forward"),
            ("relu", "forward"),
            ("relu", "grad"),
            ("batch_norm", "forward"),
            ("batch_norm", "grad"),
            ("batch_norm_running", "forward"),
            ("max_pool", "forward"),
            ("max_pool", "grad"),
            ("upsample_nearest", "forward"),
        ] {
            let row = self.ours(op, pass, shape, Dtype::F32)?;
            let what = format!("{op} {pass} {shape} of a copy");
            self.point(Point::ratio(point, what, least, "GB/s", row.gb_s, copy.gb_s).noted(problems(&row, false)));
        }
        Ok(())
    }

    fn setup(batch: usize, base: usize, cube: [usize; 3]) -> Setup {
        Setup { model: Model::Ynet, batch, cube, base, classes: 44, preset: Preset::Paper, precision: Precision::F32 }
    }

    /// One of our steps.
    fn step(&mut self, setup: &Setup) -> Result<Row> {
        (self.say)(&format!("a step of the Y-Net {}", setup.shape()));
        let rules = Rules { least: 3, ..Rules::within(self.options.limit * 10) };
        let report = step::measure(self.ctx, setup, &rules, self.roof.as_ref(), Detail::Whole)?;
        self.report.ours.rows.extend(report.rows().cloned());
        Ok(report.whole)
    }

    /// Point 2; the time of the published step, if it is measured.
    fn steps(&mut self, judged: bool) -> Result<Option<f64>> {
        let cases: &[(usize, usize, [usize; 3], f64)] = match self.options.small {
            true => &[(1, 2, [16, 16, 8], 0.17)],
            false => &[(1, 32, [64, 64, 32], 0.17), (4, 8, [32, 32, 32], 0.2)],
        };
        let command = |&(batch, base, [x, y, z], _): &(usize, usize, [usize; 3], f64)| {
            format!("step --base {base} --batch {batch} --cube {x},{y},{z}")
        };
        let torch = if judged { self.pytorch(&cases.iter().map(command).collect::<Vec<_>>())? } else { Vec::new() };
        let mut first = None;
        for &(batch, base, cube, least) in if judged { cases } else { &cases[..1] } {
            let setup = Self::setup(batch, base, cube);
            let row = self.step(&setup)?;
            let ours = row.extra.get("samples_per_s").copied();
            first = first.or(median(&row));
            if !judged {
                continue;
            }
            let theirs = torch.iter().find(|r| r.shape == setup.shape()).and_then(|r| r.extra.get("samples_per_s").copied());
            let what = format!("step of the Y-Net, base {base}, {batch} cubes of {}×{}×{}, of PyTorch", cube[0], cube[1], cube[2]);
            self.point(Point::ratio("2", what, least, "cubes/s", ours, theirs).noted(problems(&row, theirs.is_none())));
            if base == 32 {
                self.point(Point::most("2", "step of the Y-Net, base 32, one cube of 64×64×32".into(), 30.0, "s", median(&row)));
            }
        }
        Ok(first)
    }

    /// Point 3.
    fn neighbours(&mut self) -> Result<()> {
        let (rows, width, k) = if self.options.small { (256, 64, 20) } else { (4096, 512, 200) };
        let torch = self.pytorch(&[format!("knn --shape {rows},{rows},{width},{k}")])?;
        (self.say)(&format!("the {k} nearest of {rows} rows of {width}"));
        let features = numbers(5, rows * width, 1.0);
        let ctx = self.ctx;
        let mut found = Vec::new();
        let m = repeat(&self.rules, 1, || {
            let begun = Instant::now();
            found = knn::nearest(ctx, &features, &features, width, k)?;
            Ok(Timing { device: None, wall: begun.elapsed().as_secs_f64() })
        })?;
        let wrong = (0..rows).step_by(rows / 8).find(|&r| !nearest_is_right(&features, width, r, &found[r]));
        let flops = 2 * (rows * rows * width) as u64;
        let mut row = blank("knn", &format!("{rows},{rows},{width},{k}"), flops, Some(m.wall));
        row.skipped = wrong.map(|r| format!("the neighbours of row {r} are wrong"));
        self.report.ours.rows.push(row.clone());
        let ours = (row.skipped.is_none()).then_some(1.0 / m.wall.median);
        let theirs = torch.iter().find(|r| r.op == "knn").and_then(median).map(|t| 1.0 / t);
        let what = format!("distances of {rows}×{width} and the {k} nearest, of PyTorch's cdist + topk");
        self.point(Point::ratio("3", what, 0.4, "1/s", ours, theirs).noted(problems(&row, theirs.is_none())));
        // Memory: as many rows as the published features have, for a few of them.
        let (base, queries) = if self.options.small { (2000, 16) } else { (ROWS, 256) };
        (self.say)(&format!("memory with {base} rows"));
        let features = numbers(6, base * width, 1.0);
        ctx.restart_peak();
        let before = ctx.memory().0;
        knn::nearest(ctx, &features[..queries * width], &features, width, k)?;
        let peak = (ctx.recent_peak().max(before) - before) as f64 / f64::from(1 << 20);
        let whole = (base * base * 4) as f64 / f64::from(1 << 20);
        let what = format!("device memory for {base} rows, where the whole matrix has {whole:.0} MiB");
        self.point(Point::most("3", what, whole / 20.0, "MiB", Some(peak)));
        Ok(())
    }

    /// Point 4; `step` is the time of a step with one such cube.
    fn transformations(&mut self, step: Option<f64>) -> Result<()> {
        let shape = if self.options.small { "1,16,16,8" } else { "1,64,64,32" };
        let row = self.ours("transform", "forward", shape, Dtype::F32)?;
        let seconds = median(&row);
        let what = format!("full augmentation of a cube of {shape}");
        self.point(Point::most("4", what.clone(), PUBLISHED_MS, "ms", seconds.map(|s| s * 1e3)).noted(problems(&row, false)));
        let share = seconds.zip(step).map(|(s, t)| 100.0 * s / t);
        self.point(Point::most("4", format!("{what}, share of a training step"), 5.0, "%", share));
        Ok(())
    }

    /// Point 5: the three big layers of the decoder.
    fn layers(&mut self) -> Result<()> {
        let batch = self.options.batch;
        for (ci, co, [d, h, w]) in [(192, 64, [64, 64, 32]), (384, 128, [32, 32, 16]), (768, 256, [16, 16, 8])] {
            let shape = format!("{batch},{ci},{co},{d},{h},{w}");
            for (dtype, word, least) in [(Dtype::F32, "f32", 30.0), (Dtype::F16, "f16", 150.0)] {
                if dtype == Dtype::F16 && !self.ctx.caps().f16 {
                    continue;
                }
                for pass in conv3d::Pass::ALL.map(conv3d::Pass::name) {
                    let row = self.ours("conv3d", pass, &shape, dtype)?;
                    let rate = row.gflop_s.map(|g| g * 1e-3);
                    let note = [format!("by {}", row.variant), problems(&row, false)].join(" ");
                    self.point(Point::least("5", format!("conv3d {shape} {pass} {word}"), least, "TFLOP/s", rate).noted(note.trim()));
                }
            }
        }
        Ok(())
    }

    /// Point 5: whole steps; the time of one cube.
    fn gpu_steps(&mut self) -> Result<Option<f64>> {
        let batch = self.options.batch;
        let setup = Self::setup(batch, 32, [64, 64, 32]);
        let torch = self.pytorch(&[format!("step --base 32 --batch {batch} --cube 64,64,32")])?;
        let theirs = |precision: &str| torch.iter().find(|r| r.variant.starts_with(&format!("torch/{precision}/")));
        let row = self.step(&setup)?;
        let extra = |r: &Row, name: &str| r.extra.get(name).copied();
        self.point(Point::least(
            "5",
            format!("step of the Y-Net, base 32, {batch} cubes, f32"),
            25.0,
            "TFLOP/s",
            row.gflop_s.map(|g| g * 1e-3),
        ));
        let tf32 = theirs("tf32").and_then(|r| extra(r, "samples_per_s"));
        let what = format!("step of the Y-Net, base 32, {batch} cubes, f32, of PyTorch with TF32");
        self.point(Point::ratio("5", what, 1.0, "cubes/s", extra(&row, "samples_per_s"), tf32).noted(problems(&row, tf32.is_none())));
        let memory = |r: Option<&Row>, name: &str| r.and_then(|r| extra(r, name)).map(|b| b / f64::from(1 << 20));
        if let (Some(ours), Some(theirs)) = (memory(Some(&row), "allocated_bytes"), memory(theirs("tf32"), "peak_bytes")) {
            self.point(Point::most(
                "5",
                format!("peak device memory at {batch} cubes, half of PyTorch's"),
                theirs / 2.0,
                "MiB",
                Some(ours),
            ));
        }
        if self.ctx.caps().f16 {
            let mixed = self.step(&Setup { precision: Precision::Mixed, ..setup })?;
            let amp = theirs("amp");
            let rate = amp.and_then(|r| extra(r, "samples_per_s"));
            let what = format!("step of the Y-Net, base 32, {batch} cubes, mixed, of PyTorch with AMP");
            self.point(
                Point::ratio("5", what, 1.0, "cubes/s", extra(&mixed, "samples_per_s"), rate).noted(problems(&mixed, rate.is_none())),
            );
            if let (Some(ours), Some(theirs)) = (memory(Some(&mixed), "allocated_bytes"), memory(amp, "peak_bytes")) {
                self.point(Point::most(
                    "5",
                    format!("peak device memory at {batch} cubes, mixed, half of PyTorch's"),
                    theirs / 2.0,
                    "MiB",
                    Some(ours),
                ));
            }
        }
        Ok(median(&row).map(|s| s / batch as f64))
    }
}

/// The variant that the device's table names for a convolution.
fn conv_choice(ctx: &Context, pass: &str, n: &[usize], dtype: Dtype) -> Option<String> {
    let &[batch, ci, co, d, h, w] = n else { return None };
    let geom = conv3d::Geom::new(batch, [d, h, w], ci, co, [3; 3], [1; 3], [1; 3]).ok()?;
    let pass = conv3d::Pass::ALL.into_iter().find(|p| p.name() == pass)?;
    let problem = conv3d::Problem { pass, geom, source: geom.whole(), input: dtype, output: dtype };
    ctx.choices().get(&problem.key()).map(str::to_owned)
}

/// What keeps a row from counting.
fn problems(row: &Row, no_reference: bool) -> String {
    match (row.failure(), &row.skipped) {
        (Some(f), _) => format!("wrong: {f}"),
        (None, Some(s)) => s.clone(),
        (None, None) if no_reference => "PyTorch was not run; name a Python that has it with --pytorch".into(),
        (None, None) => row.flags.join(", "),
    }
}

fn blank(op: &str, shape: &str, flops: u64, wall: Option<Stats>) -> Row {
    let seconds = wall.map(|w| w.median);
    Row {
        op: op.into(),
        shape: shape.into(),
        pass: "forward".into(),
        variant: "default".into(),
        dtype: "f32".into(),
        times: 1,
        flops,
        wall_s: wall,
        gflop_s: seconds.map(|s| flops as f64 / s / 1e9),
        extra: std::collections::BTreeMap::new(),
        ..Row::default()
    }
}

/// Whether `found` are the nearest of row `r`, by f64; ties and rounding may exchange neighbours.
fn nearest_is_right(features: &[f32], width: usize, r: usize, found: &[(u32, f32)]) -> bool {
    let row = |i: usize| &features[i * width..(i + 1) * width];
    let distance = |i: usize| row(r).iter().zip(row(i)).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
    let mut all: Vec<f64> = (0..features.len() / width).map(distance).collect();
    let of_found: Vec<f64> = found.iter().map(|f| distance(f.0 as usize)).collect();
    all.sort_by(f64::total_cmp);
    of_found.iter().zip(&all).all(|(a, b)| (a - b).abs() <= 1e-4 * b.max(1.0))
}

/// Runs the script with `commands` on `device` and reads what it wrote.
///
/// # Errors
/// [`Error::Usage`] when the program cannot be started, [`Error::Failed`] with the last thing it said when it fails.
pub fn pytorch(python: &Path, commands: &[String], device: &str, limit: Duration) -> Result<Document> {
    let folder = std::env::temp_dir().join(format!("semgen-pytorch-{}", std::process::id()));
    crate::files::create_dir(&folder)?;
    let (script, result) = (folder.join("pytorch.py"), folder.join("result.json"));
    crate::files::write_bytes(&script, SCRIPT.as_bytes())?;
    let mut command = Command::new(python);
    command.arg(&script);
    for (i, c) in commands.iter().enumerate() {
        if i > 0 {
            command.arg("+");
        }
        command.args(c.split_whitespace());
        command.args(["--device", device, "--limit", &limit.as_secs_f64().to_string()]);
        if i == 0 {
            command.arg("--json").arg(&result);
        }
    }
    let outcome = (|| {
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::Usage(format!("--pytorch {}: it cannot be started ({e})", python.display())))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").to_owned();
            return Err(Error::Failed(format!("--pytorch {}: {last}", python.display())));
        }
        Document::read(&result)
    })();
    // Nothing of it is needed again.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_pass_at_their_target_and_not_below() {
        let p = |m, r| Point::ratio("1", "x".into(), 0.18, "GFLOP/s", m, r);
        assert_eq!((p(Some(36.0), Some(200.0)).passed, p(Some(35.9), Some(200.0)).passed), (Some(true), Some(false)));
        assert_eq!((p(None, Some(200.0)).verdict(), p(Some(36.0), None).verdict()), ("not measured", "not measured"));
        assert_eq!(Point::most("4", "x".into(), 60.0, "ms", Some(60.0)).passed, Some(true));
        assert_eq!(Point::most("4", "x".into(), 60.0, "ms", Some(60.1)).verdict(), "miss");
        assert_eq!(Point::least("5", "x".into(), 30.0, "TFLOP/s", Some(29.0)).passed, Some(false));
        assert_eq!(Point::least("5", "x".into(), 30.0, "TFLOP/s", Some(f64::NAN)).passed, None);
    }

    #[test]
    fn wrong_neighbours_are_noticed() {
        let features = numbers(1, 50 * 8, 1.0);
        let row = |i: usize| &features[i * 8..(i + 1) * 8];
        let d = |i: usize| row(3).iter().zip(row(i)).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let mut all: Vec<(u32, f32)> = (0..50).map(|i| (i, d(i as usize))).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
        assert!(nearest_is_right(&features, 8, 3, &all[..5]));
        assert!(!nearest_is_right(&features, 8, 3, &all[1..6]));
    }
}
