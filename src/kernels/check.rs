//! Comparing kernels with f64 references on the adapter at hand.
//!
//! Each kernel file lists its [`Case`]s; the tests run them all on the checked device and
//! `semgen doctor` runs them on the user's adapter. Every buffer of a case lies between guard
//! bands whose content must survive.

use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Caps, Context, Dtype, Recorder, View, run_once};
use crate::rng::{Key, Purpose};

/// Result of one comparison.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Largest error found, relative to the reference's scale.
    pub error: f64,
    /// Largest error allowed.
    pub tolerance: f64,
    /// What is wrong, when something is.
    pub failure: Option<String>,
}

impl Outcome {
    /// Whether the comparison holds.
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }
}

type Body = dyn Fn(&Context) -> Result<Outcome> + Send + Sync;

/// One comparison of one kernel variant on one shape.
pub struct Case {
    /// Kernel file.
    pub kernel: &'static str,
    /// Variant or entry point.
    pub variant: &'static str,
    /// How the activations of the case are stored.
    pub dtype: Dtype,
    /// Bytes of workgroup memory that the case needs.
    pub memory: u32,
    /// Shape and other particulars.
    pub what: String,
    body: Box<Body>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name(), self.what)
    }
}

impl Case {
    /// A case that `body` carries out.
    pub fn new(
        kernel: &'static str,
        variant: &'static str,
        what: impl Into<String>,
        body: impl Fn(&Context) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self { kernel, variant, dtype: Dtype::F32, memory: 0, what: what.into(), body: Box::new(body) }
    }

    /// The case, of activations stored as `dtype`.
    #[must_use]
    pub fn stored(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    /// The case, which needs `memory` bytes of workgroup memory.
    #[must_use]
    pub fn within(self, memory: u32) -> Self {
        Self { memory, ..self }
    }

    /// Kernel and variant, and how activations are stored where that is not in 32 bits.
    pub fn name(&self) -> String {
        format!("{} {}{}", self.kernel, self.variant, if self.dtype == Dtype::F16 { " f16" } else { "" })
    }

    /// Why the case cannot be carried out on an adapter, if it cannot.
    pub fn beyond(&self, caps: &Caps) -> Option<&'static str> {
        if self.dtype == Dtype::F16 && !caps.f16 {
            return Some("the adapter has no 16-bit floats in shaders");
        }
        (caps.workgroup_memory < self.memory).then_some("the adapter has too little workgroup memory")
    }

    /// Carries the case out.
    ///
    /// # Errors
    /// What the device reports; a wrong number is an [`Outcome`], not an error.
    pub fn run(&self, ctx: &Context) -> Result<Outcome> {
        (self.body)(ctx)
    }
}

/// Every case of every kernel.
pub fn all_cases() -> Vec<Case> {
    let mut out = Vec::new();
    out.extend(super::activation::cases());
    out.extend(super::batch_norm::cases());
    out.extend(super::classes::cases());
    out.extend(super::conv3d::cases());
    out.extend(super::elementwise::cases());
    out.extend(super::knn::cases());
    out.extend(super::loss::cases());
    out.extend(super::optimiser::cases());
    out.extend(super::pool::cases());
    out.extend(super::prelu::cases());
    out.extend(super::reduce::cases());
    out.extend(super::transform::cases());
    out.extend(super::upsample::cases());
    out
}

/// Bytes of guard band on each side of a buffer; a multiple of every storage alignment.
const GUARD: u64 = 256;
/// The guard's content: a NaN with a payload, so that reading it is as visible as writing it.
const SENTINEL: u32 = 0x7FC5_EE0D;

/// Buffers between guard bands, and one run over them.
pub struct Trial<'c> {
    ctx: &'c Context,
    buffers: Vec<Buffer>,
}

impl<'c> Trial<'c> {
    /// An empty trial.
    pub fn new(ctx: &'c Context) -> Self {
        Self { ctx, buffers: Vec::new() }
    }

    /// The context of this trial.
    pub fn context(&self) -> &'c Context {
        self.ctx
    }

    /// A buffer holding `data` (4-byte elements).
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn input<T: bytemuck::NoUninit>(&mut self, data: &[T]) -> Result<View> {
        let view = self.output(size_of_val(data) / 4)?;
        self.ctx.upload(&self.buffers[view.buffer.0 as usize], view.offset, data);
        Ok(view)
    }

    /// A buffer holding `values`, stored as `dtype`: see [`as_stored`] for what is kept of them.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn tensor(&mut self, values: &[f32], dtype: Dtype) -> Result<View> {
        let view = self.empty(values.len(), dtype)?;
        let buffer = &self.buffers[view.buffer.0 as usize];
        match dtype {
            Dtype::F32 => self.ctx.upload(buffer, view.offset, values),
            Dtype::F16 => {
                let mut halves: Vec<u16> = values.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
                if halves.len() % 2 == 1 {
                    // Whole words are written; the rest of the last one belongs to the guard band.
                    halves.push((SENTINEL >> 16) as u16);
                }
                self.ctx.upload(buffer, view.offset, &halves);
            }
        }
        Ok(view)
    }

    /// A buffer of `elements` 4-byte elements, filled with NaN.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn output(&mut self, elements: usize) -> Result<View> {
        self.empty(elements, Dtype::F32)
    }

    /// A buffer of `elements` elements stored as `dtype`, filled with NaN.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn empty(&mut self, elements: usize, dtype: Dtype) -> Result<View> {
        let len = elements as u64 * dtype.bytes();
        let buffer = self.ctx.buffer("semgen.trial", GUARD + len.next_multiple_of(GUARD) + GUARD)?;
        let words = usize::try_from(buffer.bytes() / 4).unwrap_or(0);
        self.ctx.upload(&buffer, 0, &vec![SENTINEL; words]);
        self.buffers.push(buffer);
        #[expect(clippy::cast_possible_truncation, reason = "a trial has few buffers")]
        Ok(View { offset: GUARD, ..View::typed(BufferId(self.buffers.len() as u32 - 1), elements, dtype) })
    }

    /// Records with `record` and runs it; then every guard band must be intact.
    ///
    /// # Errors
    /// What recording or the device reports; [`Error::Gpu`] when something wrote outside its buffer.
    pub fn run(&self, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
        let mut rec = Recorder::new(self.ctx.caps());
        record(&mut rec)?;
        run_once(self.ctx, &rec, &self.buffers)
    }

    /// The numbers in `view`, however they are stored; guard bands are checked as by [`Trial::read`].
    ///
    /// # Errors
    /// As [`Trial::read`].
    pub fn values(&self, view: View) -> Result<Vec<f32>> {
        match view.dtype {
            Dtype::F32 => self.read(view),
            Dtype::F16 => Ok(self.read::<u16>(view)?.into_iter().map(|bits| half::f16::from_bits(bits).to_f32()).collect()),
        }
    }

    /// The content of `view`, after a check of its buffer's guard bands.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device failed or something wrote outside the view.
    pub fn read<T: bytemuck::Pod>(&self, view: View) -> Result<Vec<T>> {
        Ok(bytemuck::pod_collect_to_vec(&self.bytes(view)?))
    }

    fn bytes(&self, view: View) -> Result<Vec<u8>> {
        let buffer = &self.buffers[view.buffer.0 as usize];
        let bytes: Vec<u8> = self.ctx.read(buffer, 0, usize::try_from(buffer.bytes()).unwrap_or(0))?;
        let first = GUARD as usize;
        let last = first + usize::try_from(view.len).unwrap_or(0);
        let guard = SENTINEL.to_le_bytes();
        if let Some(i) = (0..first).chain(last..bytes.len()).find(|&i| bytes[i] != guard[i % 4]) {
            return Err(Error::Gpu(format!("a kernel wrote outside its buffer, {} bytes from the start", i as i64 - first as i64)));
        }
        Ok(bytes[first..last].to_vec())
    }
}

/// Records with bindings of at most `bytes`, so that a small tensor is sliced as a large one is.
///
/// # Errors
/// What `record` reports.
pub fn with_bindings(rec: &mut Recorder<'_>, bytes: u64, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
    with_caps(rec, &Caps { max_binding: bytes, ..rec.caps.clone() }, record)
}

/// Records as for an adapter with other capabilities.
///
/// # Errors
/// What `record` reports.
pub fn with_caps(rec: &mut Recorder<'_>, caps: &Caps, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
    let mut small = Recorder::new(caps);
    record(&mut small)?;
    rec.dispatches.append(&mut small.dispatches);
    rec.scratch.append(&mut small.scratch);
    Ok(())
}

/// `n` reproducible numbers in `(-scale, scale)`, none of them special.
pub fn numbers(seed: u32, n: usize, scale: f32) -> Vec<f32> {
    let mut rng = Key::new(0xC0FFEE).purpose(Purpose::Check, seed).rng();
    (0..n).map(|_| (rng.unit() * 2.0 - 1.0) * scale).collect()
}

/// f64 copies.
pub(super) fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&x| f64::from(x)).collect()
}

/// `[rows, classes]` scores of which some rows are constant, some confident and some beyond the range of exp.
pub(super) fn scores(seed: u32, rows: usize, classes: usize) -> Vec<f32> {
    let mut z = numbers(seed, rows * classes, 4.0);
    for (r, row) in z.chunks_mut(classes).enumerate() {
        match r % 5 {
            1 => row.fill(0.25),
            2 => row.iter_mut().for_each(|v| *v *= 100.0),
            3 => row.iter_mut().for_each(|v| *v += 1000.0),
            _ => {}
        }
    }
    z
}

/// `values` as they are after being stored as `dtype`: references start from what kernels read.
pub fn as_stored(values: &[f32], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => values.to_vec(),
        Dtype::F16 => values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect(),
    }
}

/// The error allowed in a result stored as `dtype` where `arithmetic` is allowed in 32 bits: half a unit in the last
/// place of a 16-bit float is 2⁻¹¹ of a number, and adapters may round toward zero.
pub fn allowed(arithmetic: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => arithmetic,
        Dtype::F16 => arithmetic + 1e-3,
    }
}

/// Both ways to store activations.
pub const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::F16];

/// Compares with a reference: the largest `|got - want| / (|want| + scale)` must not exceed
/// `tolerance`, where scale is the reference's root mean square (so that sums that cancel are
/// judged against the size of what was summed). NaN and infinity never pass.
///
/// # Errors
/// Never; the type fits the end of a case.
pub fn compare(got: &[f32], want: &[f64], tolerance: f64) -> Result<Outcome> {
    if got.len() != want.len() {
        let failure = Some(format!("{} values, expected {}", got.len(), want.len()));
        return Ok(Outcome { error: f64::INFINITY, tolerance, failure });
    }
    let scale = (want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64).sqrt().max(1e-30);
    let mut worst = (0.0, 0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / (w.abs() + scale);
        if !(error <= worst.0) {
            worst = (if error.is_nan() { f64::INFINITY } else { error }, i);
        }
    }
    let failure = (!(worst.0 <= tolerance)).then(|| {
        format!("element {} is {}, expected {} (error {:.2e}, allowed {tolerance:.0e})", worst.1, got[worst.1], want[worst.1], worst.0)
    });
    Ok(Outcome { error: worst.0, tolerance, failure })
}

/// The first comparison that failed, or else the one closest to failing.
///
/// # Errors
/// Never; the type fits the end of a case.
pub(super) fn worst(outcomes: impl IntoIterator<Item = (&'static str, Outcome)>) -> Result<Outcome> {
    let mut out = Outcome { error: 0.0, tolerance: f64::MIN_POSITIVE, failure: None };
    for (name, o) in outcomes {
        if let Some(f) = o.failure {
            return Ok(Outcome { failure: Some(format!("{name}: {f}")), ..o });
        }
        if o.error / o.tolerance >= out.error / out.tolerance {
            out = o;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_fails_when_it_should() {
        let want: Vec<f64> = (0..100).map(|i| f64::from(i) * 0.1).collect();
        let good: Vec<f32> = want.iter().map(|&w| w as f32).collect();
        assert!(compare(&good, &want, 1e-6).unwrap().passed());
        for (i, v) in [(3, 0.31), (99, f32::NAN), (0, f32::INFINITY), (50, 5.001)] {
            let mut bad = good.clone();
            bad[i] = v;
            assert!(!compare(&bad, &want, 1e-5).unwrap().passed(), "element {i} = {v}");
        }
        assert!(!compare(&good[1..], &want, 1e-6).unwrap().passed());
    }
}
