//! One operation on one shape, made ready to be checked and timed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::measure::{Rules, measure};
use super::peak::Roof;
use super::result::{Check, Row};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Context, Dispatch, Dtype, Program, Recorder, View};
use crate::kernels::check::{compare, numbers};

/// What fills outputs before the first run: a NaN, so that what a kernel leaves out is seen.
const UNWRITTEN: u32 = 0x7FC5_EE0D;
/// Length after which made-up numbers repeat: even, and twice a prime, so that no shape is in step with it.
const PERIOD: usize = 2 * 524_287;

/// What an operand holds before a run.
#[derive(Clone, Debug)]
pub enum Content {
    /// Numbers that repeat after the block's length.
    Numbers(Arc<[f32]>),
    /// 32-bit words: labels, indices, parameters.
    Words(Arc<[u32]>),
    /// Nothing yet: the operation writes it.
    Output,
}

impl Content {
    /// Reproducible numbers in `(-scale, scale)`; `seed` tells operands apart.
    pub fn random(seed: u32, elements: usize, scale: f32) -> Self {
        Self::between(seed, elements, -scale, scale)
    }

    /// Reproducible numbers in `[low, high)`.
    pub fn between(seed: u32, elements: usize, low: f32, high: f32) -> Self {
        // Drawing takes longer than everything else about a problem, and problems use the same few seeds.
        static DRAWN: Mutex<BTreeMap<u32, Arc<[f32]>>> = Mutex::new(BTreeMap::new());
        let n = elements.min(PERIOD);
        let mut drawn = DRAWN.lock().unwrap_or_else(PoisonError::into_inner);
        let block = drawn.entry(seed).or_insert_with(|| [].into());
        if block.len() < n {
            *block = numbers(0x0B00 + seed, if n > PERIOD / 64 { PERIOD } else { n }, 1.0).into();
        }
        let half = (high - low) / 2.0;
        Self::Numbers(block[..n].iter().map(|v| v * half + (low + half)).collect())
    }

    /// The value of element `i`, as the device sees it.
    pub fn at(&self, i: usize) -> f64 {
        match self {
            Self::Numbers(block) => f64::from(block[i % block.len()]),
            Self::Words(words) => f64::from(words[i]),
            Self::Output => f64::NAN,
        }
    }

    /// The values of elements `i`.
    pub fn gather(&self, i: &[usize]) -> Vec<f64> {
        i.iter().map(|&i| self.at(i)).collect()
    }
}

/// A tensor of an operation.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Its name in the operation's formula.
    pub name: &'static str,
    /// Number of elements.
    pub elements: usize,
    /// How they are stored.
    pub dtype: Dtype,
    /// What they are before a run.
    pub content: Content,
    /// Whether the operation writes it.
    pub written: bool,
}

impl Operand {
    /// One that is read.
    pub fn input(name: &'static str, elements: usize, dtype: Dtype, content: Content) -> Self {
        // Where storage is narrower, the reference reads what the device reads.
        let content = match (dtype, content) {
            (Dtype::F16, Content::Numbers(block)) => Content::Numbers(block.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect()),
            (_, content) => content,
        };
        Self { name, elements, dtype, content, written: false }
    }

    /// One that is written.
    pub fn output(name: &'static str, elements: usize, dtype: Dtype) -> Self {
        Self { name, elements, dtype, content: Content::Output, written: true }
    }

    /// One that is read and written.
    pub fn updated(name: &'static str, elements: usize, content: Content) -> Self {
        Self { name, elements, dtype: Dtype::F32, content, written: true }
    }

    /// Bytes of its storage.
    pub fn bytes(&self) -> u64 {
        self.elements as u64 * self.dtype.bytes()
    }
}

/// What an operation wrote, by operand.
#[derive(Debug, Default)]
pub struct Outputs(HashMap<usize, Vec<u32>>);

impl Outputs {
    /// The numbers of operand `operand`; empty for one that is not written.
    pub fn numbers(&self, operand: usize) -> Vec<f32> {
        self.words(operand).iter().map(|&w| f32::from_bits(w)).collect()
    }

    /// The numbers of operand `operand` at elements `i`.
    pub fn gather(&self, operand: usize, i: &[usize]) -> Vec<f32> {
        let words = self.words(operand);
        i.iter().map(|&i| words.get(i).map_or(f32::NAN, |&w| f32::from_bits(w))).collect()
    }

    /// The words of operand `operand`; those of 16-bit floats widened.
    pub fn words(&self, operand: usize) -> &[u32] {
        self.0.get(&operand).map_or(&[], Vec::as_slice)
    }

    /// For tests of checks: outputs given by hand.
    pub fn of(outputs: impl IntoIterator<Item = (usize, Vec<u32>)>) -> Self {
        Self(outputs.into_iter().collect())
    }
}

type RecordFn = dyn Fn(&mut Recorder<'_>, &str, &[View]) -> Result<()> + Send + Sync;
type CheckFn = dyn Fn(&[Operand], &Outputs) -> Result<Check> + Send + Sync;

/// An operation on a shape: what it needs, how it is recorded, what it costs, and what it should give.
pub struct Problem {
    /// Operation.
    pub op: String,
    /// Layer of a network, if it is one's.
    pub layer: String,
    /// Shape, as `--shape` takes it.
    pub shape: String,
    /// Which of the operation's functions.
    pub pass: &'static str,
    /// Storage of activations.
    pub dtype: Dtype,
    /// Implementations, the default first.
    pub variants: Vec<String>,
    /// Tensors.
    pub operands: Vec<Operand>,
    /// Multiply-adds × 2, or the like.
    pub flops: u64,
    /// Whether a second run gives the same as the first: not where state is updated in place.
    pub repeatable: bool,
    record: Box<RecordFn>,
    check: Box<CheckFn>,
}

impl std::fmt::Debug for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.op, self.pass, self.shape)
    }
}

impl Problem {
    /// A problem that `record` records (given the variant's name and a view of each operand) and whose outputs
    /// `check` judges. It has one variant, `default`, until told otherwise.
    pub fn new(
        op: impl Into<String>,
        pass: &'static str,
        shape: impl Into<String>,
        operands: Vec<Operand>,
        flops: u64,
        record: impl Fn(&mut Recorder<'_>, &str, &[View]) -> Result<()> + Send + Sync + 'static,
        check: impl Fn(&[Operand], &Outputs) -> Result<Check> + Send + Sync + 'static,
    ) -> Self {
        let dtype = if operands.iter().any(|o| o.dtype == Dtype::F16) { Dtype::F16 } else { Dtype::F32 };
        Self {
            op: op.into(),
            layer: String::new(),
            shape: shape.into(),
            pass,
            dtype,
            variants: vec!["default".into()],
            repeatable: !operands.iter().any(|o| o.written && !matches!(o.content, Content::Output)),
            operands,
            flops,
            record: Box::new(record),
            check: Box::new(check),
        }
    }

    /// Bytes of all operands, each counted once, those that are read and written twice.
    pub fn bytes(&self) -> u64 {
        let passes = |o: &Operand| if o.written && !matches!(o.content, Content::Output) { 2 } else { 1 };
        self.operands.iter().map(|o| o.bytes() * passes(o)).sum()
    }

    /// Views of the operands, as the problem's recordings name them.
    pub fn views(&self) -> Vec<View> {
        #[expect(clippy::cast_possible_truncation, reason = "operations have few operands")]
        self.operands.iter().enumerate().map(|(i, o)| View::typed(BufferId(i as u32), o.elements, o.dtype)).collect()
    }

    /// Records the operation by `variant`.
    ///
    /// # Errors
    /// What the kernel's geometry and the adapter's limits refuse.
    pub fn record(&self, rec: &mut Recorder<'_>, variant: &str) -> Result<()> {
        (self.record)(rec, variant, &self.views())
    }

    /// Judges outputs.
    ///
    /// # Errors
    /// Where a reference cannot be computed.
    pub fn check(&self, outputs: &Outputs) -> Result<Check> {
        for (i, o) in self.operands.iter().enumerate().filter(|(_, o)| o.written) {
            let words = outputs.words(i);
            // Indices and labels have no exponent; everything else must be finite.
            let wrong = words.iter().position(|&w| w == UNWRITTEN || (o.name != "index" && !f32::from_bits(w).is_finite()));
            if let Some(at) = wrong {
                let what = if words[at] == UNWRITTEN { "was not written".to_owned() } else { format!("is {}", f32::from_bits(words[at])) };
                let failure = Some(format!("element {at} of `{}` {what}", o.name));
                return Ok(Check { error: None, tolerance: 0.0, elements: words.len(), failure });
            }
        }
        (self.check)(&self.operands, outputs)
    }

    /// The row of a measurement by `variant` that is still to be made.
    pub fn row(&self, variant: &str) -> Row {
        Row {
            op: self.op.clone(),
            layer: self.layer.clone(),
            shape: self.shape.clone(),
            pass: self.pass.to_owned(),
            variant: variant.to_owned(),
            dtype: if self.dtype == Dtype::F16 { "f16" } else { "f32" }.to_owned(),
            times: 1,
            flops: self.flops,
            bytes: self.bytes(),
            intensity: self.flops as f64 / self.bytes().max(1) as f64,
            ..Row::default()
        }
    }
}

/// What two lists of numbers have to do with each other, as [`Check`]; several are joined with [`join`].
///
/// # Errors
/// Never; the type fits the end of a check.
pub fn judge(name: &str, got: &[f32], want: &[f64], tolerance: f64) -> Result<Check> {
    let o = compare(got, want, tolerance)?;
    let failure = o.failure.map(|f| format!("`{name}`: {f}"));
    Ok(Check { error: Some(o.error).filter(|e| e.is_finite()), tolerance, elements: want.len(), failure })
}

/// The worst of several checks with the elements of all.
pub fn join(checks: impl IntoIterator<Item = Check>) -> Check {
    let part = |c: &Check| if c.tolerance > 0.0 { c.error.unwrap_or(f64::INFINITY) / c.tolerance } else { 0.0 };
    let mut elements = 0;
    let mut worst: Option<Check> = None;
    for c in checks {
        elements += c.elements;
        let worse = worst.as_ref().is_none_or(|w| match (&w.failure, &c.failure) {
            (Some(_), None) => false,
            (None, Some(_)) => true,
            _ => part(&c) > part(w),
        });
        if worse {
            worst = Some(c);
        }
    }
    let nothing = || Check { error: None, tolerance: 0.0, elements: 0, failure: Some("nothing was compared".into()) };
    Check { elements, ..worst.unwrap_or_else(nothing) }
}

/// A problem on the device: buffers filled, pipelines made.
pub struct Prepared<'c> {
    ctx: &'c Context,
    buffers: Vec<Buffer>,
    _scratch: Vec<Buffer>,
    program: Program,
    /// `(label, text)` of each kernel.
    pub kernels: Vec<(String, Arc<str>)>,
}

impl std::fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({:?})", self.program)
    }
}

impl<'c> Prepared<'c> {
    /// `problem` by `variant`.
    ///
    /// # Errors
    /// What recording, compiling and the adapter's limits refuse.
    pub fn new(ctx: &'c Context, problem: &Problem, variant: &str) -> Result<Self> {
        let mut rec = Recorder::new(ctx.caps());
        problem.record(&mut rec, variant)?;
        Self::of(ctx, problem, &rec.dispatches, &rec.scratch)
    }

    /// The operands of `problem` under dispatches of one's own over [`Problem::views`], with scratch buffers of the
    /// given bytes.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub fn of(ctx: &'c Context, problem: &Problem, dispatches: &[Dispatch], scratch: &[u64]) -> Result<Self> {
        let buffers = problem.operands.iter().map(|o| ctx.buffer(o.name, o.bytes())).collect::<Result<Vec<_>>>()?;
        let scratch = scratch.iter().map(|&bytes| ctx.buffer("bench.scratch", bytes)).collect::<Result<Vec<_>>>()?;
        let program = Program::new(ctx, dispatches, |id| match id.as_scratch() {
            Some(k) => &scratch[k],
            None => &buffers[id.0 as usize],
        })?;
        let kernels = dispatches.iter().map(|d| (d.label.clone(), d.source.clone())).collect();
        let out = Self { ctx, buffers, _scratch: scratch, program, kernels };
        out.fill(problem)?;
        Ok(out)
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Puts every operand's first content into its buffer.
    fn fill(&self, problem: &Problem) -> Result<()> {
        for (o, buffer) in problem.operands.iter().zip(&self.buffers) {
            let put = |words: &[u8], first: usize| self.ctx.upload(buffer, first as u64, words);
            match (&o.content, o.dtype) {
                (Content::Words(words), _) => put(bytemuck::cast_slice(words), 0),
                (Content::Numbers(block), Dtype::F32) => {
                    tiled(o.elements, block.len(), |first, n| put(bytemuck::cast_slice(&block[..n]), first * 4));
                }
                (Content::Numbers(block), Dtype::F16) => {
                    let mut narrow: Vec<u16> = block.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
                    narrow.push(0);
                    // Uploads are whole words; the period is even, so only the very end is rounded up.
                    tiled(o.elements, block.len(), |first, n| put(bytemuck::cast_slice(&narrow[..n.next_multiple_of(2)]), first * 2));
                }
                (Content::Output, _) => {
                    let block = vec![UNWRITTEN; PERIOD.min(o.elements)];
                    let words = usize::try_from(buffer.bytes() / 4).unwrap_or(0);
                    tiled(words, block.len(), |first, n| put(bytemuck::cast_slice(&block[..n]), first * 4));
                }
            }
            // Uploads are staged until something is submitted: keep the staging small.
            self.ctx.flush();
        }
        self.ctx.wait()
    }

    /// Runs once from the first contents and reads what is written.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has failed.
    pub fn outputs(&self, problem: &Problem) -> Result<Outputs> {
        self.program.run(self.ctx)?;
        self.ctx.wait()?;
        self.read(problem)
    }

    /// What the operands that are written hold now.
    fn read(&self, problem: &Problem) -> Result<Outputs> {
        let mut out = HashMap::new();
        for (i, (o, buffer)) in problem.operands.iter().zip(&self.buffers).enumerate().filter(|(_, (o, _))| o.written) {
            let words = match o.dtype {
                Dtype::F32 => self.ctx.read(buffer, 0, o.elements)?,
                Dtype::F16 => {
                    let halves: Vec<u16> = self.ctx.read(buffer, 0, o.elements.next_multiple_of(2))?;
                    halves[..o.elements].iter().map(|&h| half::f16::from_bits(h).to_f32().to_bits()).collect()
                }
            };
            out.insert(i, words);
        }
        Ok(Outputs(out))
    }

    /// Checks the outputs, then times the program into a row: a wrong program gets no number.
    ///
    /// After the timing the outputs must still be those of the first run, where a run does not depend on the one before.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has failed.
    pub fn measure(&self, problem: &Problem, variant: &str, rules: &Rules, roof: Option<&Roof>) -> Result<Row> {
        let mut row = problem.row(variant);
        row.dispatches = self.program.len();
        let before = self.outputs(problem)?;
        let check = problem.check(&before)?;
        let failed = check.failure.is_some();
        row.check = Some(check);
        if failed {
            return Ok(row);
        }
        let measured = measure(self.ctx, &self.program, rules)?;
        if problem.repeatable {
            let after = self.read(problem)?;
            let changed = before.0.iter().find_map(|(i, a)| {
                let at = a.iter().zip(after.words(*i)).position(|(a, b)| a != b)?;
                Some(format!("element {at} of `{}` differs from run to run", problem.operands[*i].name))
            });
            if let Some(check) = row.check.as_mut().filter(|_| changed.is_some()) {
                check.failure = changed;
                return Ok(row);
            }
        }
        row.measured(&measured, roof);
        Ok(row)
    }
}

/// Calls `put` with (first element, elements) for blocks that cover `elements`.
fn tiled(elements: usize, block: usize, mut put: impl FnMut(usize, usize)) {
    for first in (0..elements).step_by(block.max(1)) {
        put(first, block.min(elements - first));
    }
}

/// Prepares, checks and times `problem` by `variant`; what does not fit the adapter becomes a row that says so.
///
/// # Errors
/// [`Error::Gpu`] when the device has failed.
pub fn bench(
    ctx: &Context,
    problem: &Problem,
    variant: &str,
    rules: &Rules,
    roof: Option<&Roof>,
) -> Result<(Row, Vec<(String, Arc<str>)>)> {
    match Prepared::new(ctx, problem, variant) {
        Ok(p) => Ok((p.measure(problem, variant, rules, roof)?, p.kernels)),
        Err(e @ (Error::ExceedsLimit { .. } | Error::Shape { .. } | Error::Usage(_))) => {
            Ok((Row { skipped: Some(e.to_string()), ..problem.row(variant) }, Vec::new()))
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernels::elementwise;

    /// `y = factor · x`, where variant `wrong` multiplies by something else.
    pub(in crate::bench) fn scaling(n: usize) -> Problem {
        let operands = vec![Operand::input("x", n, Dtype::F32, Content::random(0, n, 1.0)), Operand::output("y", n, Dtype::F32)];
        let mut p = Problem::new(
            "scale",
            "forward",
            n.to_string(),
            operands,
            n as u64,
            |rec, variant, v| match variant {
                "wrong" => elementwise::scale(rec, v[0], 2.001, v[1]),
                "infinite" => elementwise::scale(rec, v[0], f32::INFINITY, v[1]),
                "short" => elementwise::scale(rec, v[0].slice(0, 64), 2.0, v[1].slice(0, 64)),
                _ => elementwise::scale(rec, v[0], 2.0, v[1]),
            },
            move |o, out| {
                let want: Vec<f64> = (0..n).map(|i| 2.0 * o[0].content.at(i)).collect();
                judge("y", &out.numbers(1), &want, 1e-6)
            },
        );
        p.variants = ["right", "wrong", "infinite", "short"].map(str::to_owned).into();
        p
    }

    #[test]
    fn a_wrong_kernel_gets_no_number() {
        if std::env::var("SEMGEN_GPU").as_deref() == Ok("none") {
            return;
        }
        let ctx = Context::new(None).unwrap();
        let p = scaling(1000);
        let rules = Rules::quick();
        let (row, kernels) = bench(&ctx, &p, "right", &rules, None).unwrap();
        let check = row.check.clone().unwrap();
        assert!(check.failure.is_none() && check.elements == 1000 && row.time().unwrap().median > 0.0, "{row:?}");
        assert!(row.gb_s.unwrap() > 0.0 && row.flops == 1000 && row.bytes == 8000 && row.dispatches == 1);
        assert_eq!(kernels[0].0, "semgen.elementwise.scale");
        for (variant, reason) in [("wrong", "expected"), ("infinite", "inf"), ("short", "was not written")] {
            let (row, _) = bench(&ctx, &p, variant, &rules, None).unwrap();
            assert!(row.failure().is_some_and(|f| f.contains(reason)), "{variant}: {row:?}");
            assert_eq!((row.time(), row.gflop_s, row.gb_s, row.roof_percent), (None, None, None, None), "{variant}");
        }
    }

    #[test]
    fn checks_are_joined_to_the_worst() {
        let ok = |error| Check { error: Some(error), tolerance: 1e-5, elements: 3, failure: None };
        let bad = Check { failure: Some("x".into()), ..ok(1.0) };
        assert_eq!(join([ok(1e-7), ok(5e-6), ok(1e-6)]), Check { elements: 9, ..ok(5e-6) });
        assert_eq!(join([ok(1e-7), bad.clone(), ok(9e-6)]).failure, bad.failure);
        assert!(join([]).failure.is_some());
    }

    #[test]
    fn contents_repeat_and_narrow_to_what_the_device_sees() {
        let c = Content::random(1, 3 * PERIOD, 1.0);
        assert_eq!(c.at(5), c.at(5 + PERIOD));
        assert_ne!(c.at(5), c.at(5 + PERIOD / 2));
        let o = Operand::input("x", 8, Dtype::F16, Content::random(1, 8, 1.0));
        assert!((0..8).all(|i| f64::from(half::f16::from_f64(o.content.at(i)).to_f32()) == o.content.at(i)));
        assert_eq!(o.bytes(), 16);
    }
}
