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
use crate::graph::Tensors;
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
    /// Factors of the learning rate of the groups.
    rates: Vec<f32>,
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

/// A run of the flat parameters with its own learning rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Elements of the flat buffer.
    pub range: std::ops::Range<usize>,
    /// Factor of the learning rate; with 0 the parameters stay as they are.
    pub rate: f32,
}

/// All parameters with one learning rate.
pub fn together(list: &Tensors) -> Vec<Group> {
    groups(list, |_| 1.0)
}

/// The groups of parameters for which `rate` gives one factor by name, as few runs as possible.
pub fn groups(list: &Tensors, rate: impl Fn(&str) -> f32) -> Vec<Group> {
    let mut out: Vec<Group> = Vec::new();
    let end = list.flat_len();
    for p in list.list() {
        let rate = rate(&p.name);
        match out.last_mut() {
            Some(last) if last.rate == rate => {}
            Some(last) => {
                last.range.end = p.offset;
                out.push(Group { range: p.offset..end, rate });
            }
            None => out.push(Group { range: 0..end, rate }),
        }
    }
    out
}

/// What an optimiser becomes on an adapter.
struct Recorded {
    begin: Vec<Dispatch>,
    more: Vec<Dispatch>,
    apply: Vec<Dispatch>,
    scratch: Vec<u64>,
}

impl Recorded {
    /// For parameters in `groups`, batches of `parts` parts and `losses` losses, the first of which is the one that counts.
    fn new(caps: &Caps, groups: &[Group], kind: Optimiser, clip_norm: f32, parts: usize, losses: usize) -> Result<Self> {
        let n = groups.last().map_or(0, |g| g.range.end);
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
        // The scalars of each group lie in a row of their own.
        let step = |k: usize| View::whole(STEP, groups.len() * ROW).slice(k * ROW, SCALARS);
        let (norm, factor) = (row(losses), View::whole(FACTOR, 1));
        optimiser::norm(&mut apply, gradient, norm)?;
        optimiser::clip(&mut apply, norm, row(0), step(0), clip_norm, factor)?;
        for (k, group) in groups.iter().enumerate().filter(|(_, g)| g.rate > 0.0) {
            let part = |v: View| v.slice(group.range.start, group.range.len());
            let (p, g, m) = (part(flat(PARAMS)), part(gradient), part(flat(FIRST)));
            match kind {
                Optimiser::Adam | Optimiser::AdamW => {
                    optimiser::adam(&mut apply, p, g, m, part(flat(SECOND)), step(k), factor, kind == Optimiser::AdamW)?;
                }
                Optimiser::Sgd => optimiser::sgd(&mut apply, p, g, m, step(k), factor)?,
            }
        }
        // A batch in one part has no further ones.
        let more = if parts > 1 { more.dispatches } else { Vec::new() };
        Ok(Self { begin: begin.dispatches, more, apply: apply.dispatches, scratch: apply.scratch })
    }
}

impl Update {
    /// Allocates the moments (zero) and compiles the kernels for the parameters of `store` in `groups`; `clip_norm` 0 means no
    /// clipping. A batch has `parts` equal parts; `losses` are buffers of one number each that a plan fills, the first of them the objective. The loss scale is 1.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(
        ctx: &Context,
        store: &Store,
        groups: &[Group],
        kind: Optimiser,
        hyper: Hyper,
        clip_norm: f32,
        parts: usize,
        losses: &[&Buffer],
    ) -> Result<Self> {
        if groups.last().map_or(0, |g| g.range.end) != store.param_list.flat_len() {
            return Err(Error::shape("optimiser", "the groups are not the store's parameters"));
        }
        let recorded = Recorded::new(ctx.caps(), groups, kind, clip_norm, parts, losses.len())?;
        let bytes = store.params.bytes();
        let first = ctx.buffer("semgen.exp_avg", bytes)?;
        let second = (moments(kind) == 2).then(|| ctx.buffer("semgen.exp_avg_sq", bytes)).transpose()?;
        let step = ctx.buffer("semgen.scalars", (groups.len() * ROW) as u64 * 4)?;
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
        Ok(Self {
            hyper,
            rates: groups.iter().map(|g| g.rate).collect(),
            first,
            second,
            step,
            report,
            losses: losses.len(),
            unscale: 1.0,
            begin,
            more,
            apply,
            _own: own,
            steps: 0,
        })
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

    /// Bytes of device memory that [`Update::new`] takes for parameters in `groups`.
    ///
    /// # Errors
    /// As [`Update::new`].
    pub fn device_bytes(caps: &Caps, groups: &[Group], kind: Optimiser, clip_norm: f32, parts: usize, losses: usize) -> Result<Bytes> {
        let r = Recorded::new(caps, groups, kind, clip_norm, parts, losses)?;
        let flat = groups.last().map_or(0, |g| g.range.end) as u64 * 4;
        let programs: u64 = [&r.begin, &r.more, &r.apply].iter().map(|d| Program::device_bytes(caps, d)).sum();
        let rest = (groups.len() * ROW) as u64 * 4 + ((losses + 1) * ROW) as u64 * 4 + 4 + r.scratch.iter().sum::<u64>() + programs;
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
        for (k, factor) in self.rates.iter().enumerate() {
            let mut scalars = optimiser::scalars(rate * factor, &self.hyper, self.steps);
            scalars[UNSCALE] = self.unscale;
            ctx.upload(&self.step, (k * ROW) as u64 * 4, &scalars);
        }
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
