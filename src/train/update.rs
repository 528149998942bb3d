//! The optimiser on the device: gradient norm, clipping, and the update of all parameters at once.

use super::checkpoint::{Named, download, upload};
use crate::config::Optimiser;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Context, Program, Recorder, View};
use crate::kernels::optimiser::{self, Hyper, SCALARS};
use crate::plan::Store;

/// An optimiser with its moment buffers.
#[derive(Debug)]
pub struct Update {
    hyper: Hyper,
    first: Buffer,
    second: Option<Buffer>,
    scalars: Buffer,
    norm: Buffer,
    measure: Program,
    apply: Program,
    /// Updates done.
    pub steps: u64,
}

/// Moment buffers that `kind` keeps, each as large as the parameters.
pub fn moments(kind: Optimiser) -> u64 {
    match kind {
        Optimiser::Adam | Optimiser::AdamW => 2,
        Optimiser::Sgd => 1,
    }
}

impl Update {
    /// Allocates the moments (zero) and compiles the kernels; `clip_norm` 0 means no clipping.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(ctx: &Context, store: &Store, kind: Optimiser, hyper: Hyper, clip_norm: f32) -> Result<Self> {
        let bytes = store.params.bytes();
        let first = ctx.buffer("semgen.exp_avg", bytes)?;
        let second = (moments(kind) == 2).then(|| ctx.buffer("semgen.exp_avg_sq", bytes)).transpose()?;
        let scalars = ctx.buffer("semgen.scalars", SCALARS as u64 * 4)?;
        let (norm, scale) = (ctx.buffer("semgen.norm", 4)?, ctx.buffer("semgen.scale", 4)?);
        let n = store.param_list.flat_len();
        let view = |id: u32, len: usize| View::whole(BufferId(id), len);
        let (p, g, m, v) = (view(0, n), view(1, n), view(2, n), view(3, n));
        let (sc, no, fa) = (view(4, SCALARS), view(5, 1), view(6, 1));
        let mut measure = Recorder::new(ctx.caps());
        optimiser::norm(&mut measure, g, no)?;
        let mut apply = Recorder::new(ctx.caps());
        optimiser::clip(&mut apply, no, clip_norm, fa)?;
        match kind {
            Optimiser::Adam => optimiser::adam(&mut apply, p, g, m, v, sc, fa, false)?,
            Optimiser::AdamW => optimiser::adam(&mut apply, p, g, m, v, sc, fa, true)?,
            Optimiser::Sgd => optimiser::sgd(&mut apply, p, g, m, sc, fa)?,
        }
        let program = |rec: &Recorder<'_>| -> Result<Program> {
            let scratch = rec.scratch.iter().map(|&b| ctx.buffer("semgen.scratch", b)).collect::<Result<Vec<_>>>()?;
            let named = [&store.params, &store.grads, &first, second.as_ref().unwrap_or(&first), &scalars, &norm, &scale];
            // The bind groups keep the scratch buffers alive.
            Program::new(ctx, &rec.dispatches, |id| id.as_scratch().map_or_else(|| named[id.0 as usize], |k| &scratch[k]))
        };
        let (measure, apply) = (program(&measure)?, program(&apply)?);
        Ok(Self { hyper, first, second, scalars, norm, measure, apply, steps: 0 })
    }

    /// Computes the gradient's norm; returns without waiting.
    ///
    /// # Errors
    /// What the device reports.
    pub fn measure(&self, ctx: &Context) -> Result<()> {
        self.measure.run(ctx)
    }

    /// What [`Update::measure`] and [`Update::apply`] replay.
    pub fn programs(&self) -> [&Program; 2] {
        [&self.measure, &self.apply]
    }

    /// The buffer that [`Update::measure`] fills, one f32.
    pub fn norm(&self) -> &Buffer {
        &self.norm
    }

    /// Updates the parameters; returns without waiting. [`Update::measure`] must have run.
    ///
    /// # Errors
    /// What the device reports.
    pub fn apply(&mut self, ctx: &Context, rate: f32) -> Result<()> {
        self.steps += 1;
        ctx.upload(&self.scalars, 0, &optimiser::scalars(rate, &self.hyper, self.steps));
        self.apply.run(ctx)
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
