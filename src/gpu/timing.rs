//! Device time: timestamps around compute passes.

use std::time::Instant;

use super::program::Step;
use super::{Context, Program};
use crate::error::{Error, Result};

/// Bytes of a timestamp.
const TICK: u64 = 8;

/// How long a run took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Seconds from the first dispatch's begin to the last one's end on the device; `None` without timestamps.
    pub device: Option<f64>,
    /// Seconds from before the first command was encoded until the device was idle again.
    pub wall: f64,
}

/// Queries for the beginning and end of some passes, made once and used again.
pub(super) struct Stopwatch {
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
    passes: usize,
    /// Seconds a tick.
    period: f64,
}

impl Stopwatch {
    /// Room for the two timestamps of each of `passes` passes; `None` where the adapter has none.
    fn new(ctx: &Context, passes: usize) -> Option<Self> {
        if !ctx.caps().timestamps {
            return None;
        }
        let queries = 2 * passes;
        let most = wgpu::QUERY_SET_MAX_QUERIES as usize;
        #[expect(clippy::cast_possible_truncation, reason = "at most QUERY_SET_MAX_QUERIES")]
        let sets = (0..queries)
            .step_by(most)
            .map(|first| {
                ctx.device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("semgen.timestamps"),
                    ty: wgpu::QueryType::Timestamp,
                    count: most.min(queries - first) as u32,
                })
            })
            .collect();
        let buffer = |label, usage| {
            ctx.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: queries as u64 * TICK,
                usage,
                mapped_at_creation: false,
            })
        };
        Some(Self {
            sets,
            resolved: buffer("semgen.ticks", wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer("semgen.ticks.read", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            passes,
            period: f64::from(ctx.queue.get_timestamp_period()) * 1e-9,
        })
    }

    /// The timestamps of pass `pass`, of its beginning and end as asked.
    fn writes(&self, pass: usize, begin: bool, end: bool) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let most = wgpu::QUERY_SET_MAX_QUERIES as usize;
        #[expect(clippy::cast_possible_truncation, reason = "below QUERY_SET_MAX_QUERIES")]
        let first = (2 * pass % most) as u32;
        (begin || end).then(|| wgpu::ComputePassTimestampWrites {
            query_set: &self.sets[2 * pass / most],
            beginning_of_pass_write_index: begin.then_some(first),
            end_of_pass_write_index: end.then_some(first + 1),
        })
    }

    /// Waits for the device and reads every pass's duration in seconds.
    fn read(&self, ctx: &Context) -> Result<Vec<f64>> {
        let mut encoder = ctx.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut left = 2 * self.passes as u64;
        for (i, set) in self.sets.iter().enumerate() {
            let count = left.min(u64::from(wgpu::QUERY_SET_MAX_QUERIES));
            left -= count;
            #[expect(clippy::cast_possible_truncation, reason = "at most QUERY_SET_MAX_QUERIES")]
            encoder.resolve_query_set(set, 0..count as u32, &self.resolved, i as u64 * u64::from(wgpu::QUERY_SET_MAX_QUERIES) * TICK);
        }
        let bytes = 2 * self.passes as u64 * TICK;
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, bytes);
        ctx.queue.submit([encoder.finish()]);
        self.readable.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        ctx.wait()?;
        let ticks: Vec<u64> = {
            let view = self
                .readable
                .slice(..)
                .get_mapped_range()
                .map_err(|e| Error::Gpu(format!("{}: reading timestamps failed: {e}", ctx.caps().name)))?;
            bytemuck::pod_collect_to_vec(&view[..])
        };
        self.readable.unmap();
        Ok(ticks.chunks_exact(2).map(|t| elapsed(t[0], t[1]) as f64 * self.period).collect())
    }
}

/// Ticks from `begin` to `end` of a counter that may have wrapped in between. How wide the counter is, is not
/// known here: it is the narrowest of the usual widths that holds `begin`.
fn elapsed(begin: u64, end: u64) -> u64 {
    if end >= begin {
        return end - begin;
    }
    let bits = [32, 36, 40, 48, 56].into_iter().find(|&b| begin >> b == 0);
    bits.map_or_else(|| end.wrapping_sub(begin), |b| (1u64 << b) - begin + end)
}

fn encode(encoder: &mut wgpu::CommandEncoder, steps: &[&Step], writes: Option<wgpu::ComputePassTimestampWrites<'_>>) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes });
    for step in steps {
        step.encode(&mut pass);
    }
}

impl Program {
    /// Number of dispatches.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Runs once with each dispatch in a pass of its own, waits, and gives each one's seconds on the device, in
    /// order; `None` where the adapter has no timestamps (the program has run all the same).
    ///
    /// Between passes the device drains, so the sum is what the dispatches take one by one: a little more than
    /// [`Program::time`] gives for all of them.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has failed.
    pub fn run_timed(&self, ctx: &Context) -> Result<Option<Vec<f64>>> {
        if self.steps.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let watch = self.each.get_or_init(|| Stopwatch::new(ctx, self.steps.len()));
        let mut encoder = ctx.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut flops = 0;
        for (i, step) in self.steps.iter().enumerate() {
            if flops > 0 && flops + step.flops > self.flops_per_submit {
                let full = std::mem::replace(&mut encoder, ctx.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
                ctx.queue.submit([full.finish()]);
                flops = 0;
            }
            flops += step.flops;
            encode(&mut encoder, &[step], watch.as_ref().and_then(|w| w.writes(i, true, true)));
        }
        ctx.queue.submit([encoder.finish()]);
        match watch {
            Some(w) => w.read(ctx).map(Some),
            None => ctx.wait().map(|()| None),
        }
    }

    /// Runs `runs` times in as few submissions as [`Program::run`] would make of them, and waits: seconds of one run.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device has failed.
    pub fn time(&self, ctx: &Context, runs: usize) -> Result<Timing> {
        let total = self.steps.len() * runs;
        if total == 0 {
            return Ok(Timing { device: None, wall: 0.0 });
        }
        let watch = self.span.get_or_init(|| Stopwatch::new(ctx, 1));
        ctx.wait()?;
        let begun = Instant::now();
        let mut first = 0;
        while first < total {
            let (mut flops, mut last) = (0, first);
            while last < total {
                let next = self.steps[last % self.steps.len()].flops;
                if last > first && flops + next > self.flops_per_submit {
                    break;
                }
                flops += next;
                last += 1;
            }
            let steps: Vec<&Step> = (first..last).map(|i| &self.steps[i % self.steps.len()]).collect();
            let mut encoder = ctx.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encode(&mut encoder, &steps, watch.as_ref().and_then(|w| w.writes(0, first == 0, last == total)));
            ctx.queue.submit([encoder.finish()]);
            first = last;
        }
        ctx.wait()?;
        let wall = begun.elapsed().as_secs_f64() / runs as f64;
        let device = watch.as_ref().map(|w| w.read(ctx)).transpose()?.map(|s| s[0] / runs as f64);
        Ok(Timing { device, wall })
    }
}

#[cfg(test)]
mod tests {
    use super::elapsed;

    #[test]
    fn a_counter_that_wraps_still_counts() {
        assert_eq!(elapsed(10, 25), 15);
        assert_eq!(elapsed(u64::MAX - 1, 3), 5);
        assert_eq!(elapsed((1 << 36) - 4, 6), 10);
        assert_eq!(elapsed((1 << 32) - 1, 0), 1);
        assert_eq!(elapsed(7, 7), 0);
    }
}
