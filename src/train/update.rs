//! The optimiser on the device: the mean gradient over the parts of a batch, its norm, clipping, and the update of all
//! parameters at once.
//!
//! A step runs its plan once for each part of the batch, with [`Update::take`] after each, then [`Update::apply`]. Nothing
//! of that waits for the host: an update with a norm or a loss that is not finite changes nothing, on the device's own
//! account. [`Update::report`] then waits and tells what the step came to.

use super::checkpoint::{Named, download, upload};
use crate::config::Optimiser;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Caps, Context, Dispatch, Program, Recorder, View};
use crate::kernels::elementwise;
use crate::kernels::optimiser::{self, Hyper, SCALARS, UNSCALE};
use crate::plan::Store;

const PARAMS: BufferId = BufferId(0);
const GRADS: BufferId = BufferId(1);
const FIRST: BufferId = BufferId(2);
const SECOND: BufferId = BufferId(3);
const STEP: BufferId = BufferId(4);
const REPORT: BufferId = BufferId(5);
const FACTOR: BufferId = BufferId(6);
const SUM: BufferId = BufferId(7);
/// First of the losses.
const LOSSES: u32 = 8;

/// Elements between two numbers of the report: each is bound alone, at an offset that every adapter allows.
const ROW: usize = 64;

/// An optimiser with its moment buffers.
#[derive(Debug)]
pub struct Update {
    hyper: Hyper,
    first: Buffer,
    second: Option<Buffer>,
    step: Buffer,
    /// The losses' means, then the gradient's norm, each at the start of a row.
    report: Buffer,
    losses: usize,
    /// Inverse of the number by which gradients are too large.
    unscale: f32,
    /// After the first part of a batch, after each further one, and after the last.
    begin: Program,
    more: Program,
    apply: Program,
    /// Kept so that it counts as long as it is there.
    _own: Vec<Buffer>,
    /// Updates done.
    pub steps: u64,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Means of the losses over the batch.
    pub losses: Vec<f32>,
    /// Norm of the mean gradient.
    pub norm: f32,
}

/// Moment buffers that `kind` keeps, each as large as the parameters.
pub fn moments(kind: Optimiser) -> u64 {
    match kind {
        Optimiser::Adam | Optimiser::AdamW => 2,
        Optimiser::Sgd => 1,
    }
}

/// Device bytes of an [`Update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// Moments.
    pub moments: u64,
    /// Sum of the gradients of a batch in parts.
    pub sum: u64,
    /// Everything else.
    pub rest: u64,
}

/// What an optimiser becomes on an adapter.
struct Recorded {
    begin: Vec<Dispatch>,
    more: Vec<Dispatch>,
    apply: Vec<Dispatch>,
    scratch: Vec<u64>,
}

impl Recorded {
    /// For `n` parameters, batches of `parts` parts and `losses` losses, the first of which is the one that counts.
    fn new(caps: &Caps, n: usize, kind: Optimiser, clip_norm: f32, parts: usize, losses: usize) -> Result<Self> {
        let flat = |id| View::whole(id, n);
        let row = |k: usize| View::whole(REPORT, (losses + 1) * ROW).slice(k * ROW, 1);
        let share = 1.0 / parts as f32;
        let (mut begin, mut more) = (Recorder::new(caps), Recorder::new(caps));
        #[expect(clippy::cast_possible_truncation, reason = "there are three losses at most")]
        for k in 0..losses {
            let loss = View::whole(BufferId(LOSSES + k as u32), 1);
            elementwise::scale(&mut begin, loss, share, row(k))?;
            elementwise::accumulate(&mut more, loss, share, row(k))?;
        }
        let gradient = if parts > 1 {
            elementwise::scale(&mut begin, flat(GRADS), share, flat(SUM))?;
            elementwise::accumulate(&mut more, flat(GRADS), share, flat(SUM))?;
            flat(SUM)
        } else {
            flat(GRADS)
        };
        let mut apply = Recorder::new(caps);
        let (norm, factor, step) = (row(losses), View::whole(FACTOR, 1), View::whole(STEP, SCALARS));
        optimiser::norm(&mut apply, gradient, norm)?;
        optimiser::clip(&mut apply, norm, row(0), step, clip_norm, factor)?;
        match kind {
            Optimiser::Adam | Optimiser::AdamW => {
                let decoupled = kind == Optimiser::AdamW;
                optimiser::adam(&mut apply, flat(PARAMS), gradient, flat(FIRST), flat(SECOND), step, factor, decoupled)?;
            }
            Optimiser::Sgd => optimiser::sgd(&mut apply, flat(PARAMS), gradient, flat(FIRST), step, factor)?,
        }
        // A batch in one part has no further ones.
        let more = if parts > 1 { more.dispatches } else { Vec::new() };
        Ok(Self { begin: begin.dispatches, more, apply: apply.dispatches, scratch: apply.scratch })
    }
}

impl Update {
    /// Allocates the moments (zero) and compiles the kernels; `clip_norm` 0 means no clipping. A batch has `parts` equal
    /// parts; `losses` are buffers of one number each that a plan fills, the first of them the objective. The loss scale is 1.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(
        ctx: &Context,
        store: &Store,
        kind: Optimiser,
        hyper: Hyper,
        clip_norm: f32,
        parts: usize,
        losses: &[&Buffer],
    ) -> Result<Self> {
        let recorded = Recorded::new(ctx.caps(), store.param_list.flat_len(), kind, clip_norm, parts, losses.len())?;
        let bytes = store.params.bytes();
        let first = ctx.buffer("semgen.exp_avg", bytes)?;
        let second = (moments(kind) == 2).then(|| ctx.buffer("semgen.exp_avg_sq", bytes)).transpose()?;
        let step = ctx.buffer("semgen.scalars", SCALARS as u64 * 4)?;
        let report = ctx.buffer("semgen.report", ((losses.len() + 1) * ROW) as u64 * 4)?;
        // The factor, the sum, scratch.
        let mut own = vec![ctx.buffer("semgen.scale", 4)?];
        if parts > 1 {
            own.push(ctx.buffer("semgen.grads.sum", bytes)?);
        }
        let scratch = own.len();
        for &b in &recorded.scratch {
            own.push(ctx.buffer("semgen.scratch", b)?);
        }
        let lookup = |id: BufferId| match (id, id.as_scratch()) {
            (_, Some(k)) => &own[scratch + k],
            (PARAMS, _) => &store.params,
            (GRADS, _) => &store.grads,
            (FIRST, _) => &first,
            (SECOND, _) => second.as_ref().unwrap_or(&first),
            (STEP, _) => &step,
            (REPORT, _) => &report,
            (FACTOR, _) => &own[0],
            (SUM, _) => &own[1],
            (BufferId(k), _) => losses[(k - LOSSES) as usize],
        };
        let begin = Program::new(ctx, &recorded.begin, lookup)?;
        let more = Program::new(ctx, &recorded.more, lookup)?;
        let apply = Program::new(ctx, &recorded.apply, lookup)?;
        Ok(Self { hyper, first, second, step, report, losses: losses.len(), unscale: 1.0, begin, more, apply, _own: own, steps: 0 })
    }

    /// Says by how much the gradients of the next steps are too large, a power of two; they are clipped, reported and
    /// updated with as if they were not.
    pub fn set_loss_scale(&mut self, scale: f32) {
        self.unscale = 1.0 / scale;
    }

    /// Takes back the count of the last step, which has changed nothing.
    pub fn leave_out(&mut self) {
        self.steps -= 1;
    }

    /// Bytes of device memory that [`Update::new`] takes for `n` elements of flat parameters.
    ///
    /// # Errors
    /// As [`Update::new`].
    pub fn device_bytes(caps: &Caps, n: usize, kind: Optimiser, clip_norm: f32, parts: usize, losses: usize) -> Result<Bytes> {
        let r = Recorded::new(caps, n, kind, clip_norm, parts, losses)?;
        let flat = n as u64 * 4;
        let programs: u64 = [&r.begin, &r.more, &r.apply].iter().map(|d| Program::device_bytes(caps, d)).sum();
        let rest = SCALARS as u64 * 4 + ((losses + 1) * ROW) as u64 * 4 + 4 + r.scratch.iter().sum::<u64>() + programs;
        Ok(Bytes { moments: flat * moments(kind), sum: if parts > 1 { flat } else { 0 }, rest })
    }

    /// Takes the losses and the gradient of part `part` (from 0) of a batch; returns without waiting.
    ///
    /// # Errors
    /// What the device reports.
    pub fn take(&self, ctx: &Context, part: usize) -> Result<()> {
        if part == 0 { self.begin.run(ctx) } else { self.more.run(ctx) }
    }

    /// What a step replays: taking the first part, and the update.
    pub fn programs(&self) -> [&Program; 2] {
        [&self.begin, &self.apply]
    }

    /// Updates the parameters with the mean gradient of the parts taken, unless its norm or the loss is not finite;
    /// returns without waiting.
    ///
    /// # Errors
    /// What the device reports.
    pub fn apply(&mut self, ctx: &Context, rate: f32) -> Result<()> {
        self.steps += 1;
        let mut scalars = optimiser::scalars(rate, &self.hyper, self.steps);
        scalars[UNSCALE] = self.unscale;
        ctx.upload(&self.step, 0, &scalars);
        self.apply.run(ctx)
    }

    /// Waits for the step and tells what it came to.
    ///
    /// # Errors
    /// What the device reports.
    pub fn report(&self, ctx: &Context) -> Result<Report> {
        let rows: Vec<f32> = ctx.read(&self.report, 0, self.losses * ROW + 1)?;
        let numbers: Vec<f32> = rows.into_iter().step_by(ROW).collect();
        let (losses, norm) = numbers.split_at(self.losses);
        Ok(Report { losses: losses.to_vec(), norm: norm[0] * self.unscale })
    }

    /// Prefix of the first buffer's tensors, PyTorch's word for it.
    fn first_name(&self) -> &'static str {
        if self.second.is_some() { "optimizer.exp_avg." } else { "optimizer.momentum_buffer." }
    }

    /// The moments as tensors called `optimizer.exp_avg.<name>` and `optimizer.exp_avg_sq.<name>` (Adam) or
    /// `optimizer.momentum_buffer.<name>` (SGD).
    ///
    /// # Errors
    /// What the device reports.
    pub fn save(&self, ctx: &Context, store: &Store, into: &mut Named) -> Result<()> {
        download(ctx, &self.first, &store.param_list, self.first_name(), into)?;
        self.second.as_ref().map_or(Ok(()), |s| download(ctx, s, &store.param_list, "optimizer.exp_avg_sq.", into))
    }

    /// Takes back what [`Update::save`] wrote, and the number of updates done.
    ///
    /// # Errors
    /// As [`upload`]; [`Error::Failed`] when they are another optimiser's.
    pub fn load(&mut self, ctx: &Context, store: &Store, steps: u64, from: &Named) -> Result<()> {
        self.steps = steps;
        let mut report = upload(ctx, &self.first, &store.param_list, self.first_name(), from)?;
        if let Some(second) = &self.second {
            report.missing.extend(upload(ctx, second, &store.param_list, "optimizer.exp_avg_sq.", from)?.missing);
        }
        match report.missing.first() {
            None => Ok(()),
            Some(name) => Err(Error::Failed(format!(
                "the checkpoint lacks this optimiser's moments of `{name}`; continue with the train.optimiser it was made with"
            ))),
        }
    }
}
