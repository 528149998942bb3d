//! A list of dispatches made ready once and replayed.

use std::sync::{Arc, OnceLock};

use super::pipeline::Pipeline;
use super::timing::Stopwatch;
use super::{Buffer, BufferId, Caps, Context, Dispatch, Kind, Recorder};
use crate::error::{Error, Result};

/// Operations that an adapter can do in the time of moving a byte, roughly.
const OPERATIONS_PER_BYTE: u64 = 20;

pub(super) struct Step {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    groups: [u32; 3],
    pub(super) flops: u64,
}

impl Step {
    pub(super) fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.raw);
        pass.set_bind_group(0, &self.group, &[]);
        let [x, y, z] = self.groups;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Dispatches with their pipelines, bind groups and parameters: replaying allocates nothing.
pub struct Program {
    pub(super) steps: Vec<Step>,
    /// Work per submission, so that waiting stays responsive and no queue grows without bound.
    pub(super) flops_per_submit: u64,
    /// The parameters of all dispatches; kept so that they count as long as they are there.
    _uniforms: Buffer,
    /// Timestamps of a whole run and of each dispatch, made when first asked for; none where the adapter has none.
    pub(super) span: OnceLock<Option<Stopwatch>>,
    pub(super) each: OnceLock<Option<Stopwatch>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} dispatches)", self.steps.len())
    }
}

/// `groups` folded over x and y below the adapter's limit per dimension.
fn fold(groups: u64, limit: u32) -> Option<[u32; 3]> {
    let limit = u64::from(limit);
    let y = groups.div_ceil(limit);
    let x = groups.div_ceil(y);
    (y <= limit).then_some([u32::try_from(x).ok()?, u32::try_from(y).ok()?, 1])
}

/// Distance of the parameters of two dispatches in the uniform buffer, in bytes, at least.
fn uniform_align(caps: &Caps) -> usize {
    usize::try_from(caps.uniform_align).unwrap_or(256).max(16)
}

/// Bytes of the parameters of `dispatches`, one after the other: `Params` are structs of 32-bit scalars.
fn uniform_len(caps: &Caps, dispatches: &[Dispatch]) -> u64 {
    let with = dispatches.iter().filter(|d| !d.params.is_empty());
    with.fold(0, |len: usize, d| len.next_multiple_of(uniform_align(caps)) + (4 * d.params.len()).next_multiple_of(16)) as u64
}

impl Program {
    /// Device bytes that [`Program::new`] allocates for `dispatches`, besides the buffers that it is given.
    pub fn device_bytes(caps: &Caps, dispatches: &[Dispatch]) -> u64 {
        uniform_len(caps, dispatches).max(16)
    }

    /// Compiles and binds `dispatches`; `lookup` gives the buffer behind each name.
    ///
    /// # Errors
    /// [`Error::Gpu`] for a shader or binding that does not fit, [`Error::ExceedsLimit`] for a
    /// binding or grid above the adapter's limits.
    pub fn new<'b>(ctx: &Context, dispatches: &[Dispatch], lookup: impl Fn(BufferId) -> &'b Buffer) -> Result<Self> {
        let pipelines = ctx.pipelines_of(dispatches)?;
        let align = uniform_align(ctx.caps());
        let mut arena: Vec<u8> = Vec::new();
        let mut slots = Vec::with_capacity(dispatches.len());
        for (d, p) in dispatches.iter().zip(&pipelines) {
            let start = arena.len().next_multiple_of(align);
            match &p.params {
                Some(layout) => {
                    arena.resize(start, 0);
                    arena.extend(layout.pack(&d.label, &d.params)?);
                }
                None if d.params.is_empty() => {}
                None => return Err(Error::Gpu(format!("{}: parameters given, but the shader has none", d.label))),
            }
            slots.push((start as u64, (arena.len().max(start) - start) as u64));
        }
        debug_assert_eq!(uniform_len(ctx.caps(), dispatches), arena.len() as u64, "what plans predict");
        let uniforms = ctx.uniforms("semgen.params", (arena.len() as u64).max(16))?;
        ctx.queue.write_buffer(&uniforms.raw, 0, &arena);
        let mut steps = Vec::with_capacity(dispatches.len());
        for ((d, pipeline), (offset, size)) in dispatches.iter().zip(pipelines).zip(slots) {
            if d.bindings.len() != pipeline.storage.len() {
                return Err(Error::Gpu(format!(
                    "{}: {} buffers given, the shader binds {}",
                    d.label,
                    d.bindings.len(),
                    pipeline.storage.len()
                )));
            }
            let mut entries = Vec::with_capacity(d.bindings.len() + 1);
            for (view, &binding) in d.bindings.iter().zip(&pipeline.storage) {
                if view.len > ctx.caps().max_binding {
                    return Err(Error::ExceedsLimit {
                        what: format!("a buffer of {}", d.label),
                        need: format!("{:.1} MiB", view.len as f64 / 1_048_576.0),
                        have: format!("{:.1} MiB per binding", ctx.caps().max_binding as f64 / 1_048_576.0),
                        remedy: "use a smaller cube.size or model.base_channels".into(),
                    });
                }
                let buffer = lookup(view.buffer);
                // Bindings are whole words; a tensor of an odd number of 16-bit elements ends within one.
                let len = view.len.next_multiple_of(4);
                if view.offset + len > buffer.bytes() {
                    return Err(Error::Gpu(format!("{}: binding {binding} leaves its buffer", d.label)));
                }
                let raw = wgpu::BufferBinding { buffer: &buffer.raw, offset: view.offset, size: wgpu::BufferSize::new(len) };
                entries.push(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(raw) });
            }
            if let Some(params) = &pipeline.params {
                let raw = wgpu::BufferBinding { buffer: &uniforms.raw, offset, size: wgpu::BufferSize::new(size) };
                entries.push(wgpu::BindGroupEntry { binding: params.binding, resource: wgpu::BindingResource::Buffer(raw) });
            }
            let group = ctx.bind_group(&wgpu::BindGroupDescriptor { label: Some(&d.label), layout: &pipeline.layout, entries: &entries });
            ctx.check().map_err(|e| Error::Gpu(format!("{}: {e}", d.label)))?;
            let groups = fold(d.groups, ctx.caps().max_groups).ok_or_else(|| Error::ExceedsLimit {
                what: format!("the grid of {}", d.label),
                need: format!("{} workgroups", d.groups),
                have: format!("{}²", ctx.caps().max_groups),
                remedy: "use a smaller train.batch_size".into(),
            })?;
            // What only moves data takes time as well: so many operations could be done in the time of moving a byte.
            steps.push(Step { pipeline, group, groups, flops: d.flops + OPERATIONS_PER_BYTE * d.bytes });
        }
        let flops_per_submit = match ctx.caps().kind {
            Kind::Cpu => 100_000_000_000,
            Kind::Discrete => 4_000_000_000_000,
            Kind::Integrated | Kind::Other => 200_000_000_000,
        };
        Ok(Self { steps, flops_per_submit, _uniforms: uniforms, span: OnceLock::new(), each: OnceLock::new() })
    }

    /// Submits every dispatch in order; returns without waiting.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has failed.
    pub fn run(&self, ctx: &Context) -> Result<()> {
        let mut first = 0;
        while first < self.steps.len() {
            let mut flops = 0;
            let mut last = first;
            while last < self.steps.len() && (last == first || flops + self.steps[last].flops <= self.flops_per_submit) {
                flops += self.steps[last].flops;
                last += 1;
            }
            let mut encoder = ctx.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                for step in &self.steps[first..last] {
                    step.encode(&mut pass);
                }
            }
            ctx.queue.submit([encoder.finish()]);
            first = last;
        }
        ctx.check()
    }
}

/// Runs what `recorder` holds once over `buffers` (named by position) and waits: for tests and checks.
///
/// # Errors
/// As [`Program::new`] and [`Program::run`].
pub fn run_once(ctx: &Context, recorder: &Recorder<'_>, buffers: &[Buffer]) -> Result<()> {
    let scratch = recorder.scratch.iter().map(|&bytes| ctx.buffer("semgen.scratch", bytes)).collect::<Result<Vec<_>>>()?;
    let program = Program::new(ctx, &recorder.dispatches, |id| match id.as_scratch() {
        Some(k) => &scratch[k],
        None => &buffers[id.0 as usize],
    })?;
    program.run(ctx)?;
    ctx.wait()
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn folded_grids_cover_all_groups_within_the_limit() {
        for groups in [1, 7, 65_535, 65_536, 65_537, 1_000_003, 65_535 * 65_535] {
            let [x, y, z] = fold(groups, 65_535).unwrap();
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            assert!(u64::from(x) * u64::from(y) >= groups);
        }
        assert_eq!(fold(65_535 * 65_535 + 1, 65_535), None);
    }
}
