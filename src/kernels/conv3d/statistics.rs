//! Statistics of an output that has been written, for variants that do not come by them on the way.

use super::Problem;
use crate::error::Result;
use crate::gpu::{Caps, Dispatch, Dtype, Recorder, View};
use crate::kernels::{Const, specialise};

/// Output rows that one partial is about.
const RUN: usize = 256;

/// Partials of `samples` samples.
fn of_part(problem: &Problem, samples: usize) -> usize {
    (samples * problem.geom.output().iter().product::<usize>()).div_ceil(RUN)
}

/// Partials of the whole batch.
pub(super) fn partials(caps: &Caps, problem: &Problem) -> Result<usize> {
    Ok(problem.parts(caps)?.iter().map(|p| of_part(problem, p.1)).sum())
}

/// Writes the partials of `output`, `samples` samples of the batch, from partial `first` on; returns the next one.
pub(super) fn record(rec: &mut Recorder<'_>, problem: &Problem, output: View, samples: usize, statistics: View, first: usize) -> usize {
    let (partials, channels) = (of_part(problem, samples), problem.geom.out_channels);
    let stored = Const::Type(if output.dtype == Dtype::F16 { "f16" } else { "f32" });
    let d = Dispatch::new("conv3d", "statistics_of_rows", specialise("conv3d_statistics", &[("Output", stored)], &[]))
        .bind(output)
        .bind(statistics)
        .param("rows", output.elements() / channels)
        .param("channels", channels)
        .param("run", RUN)
        .param("partials", partials)
        .param("first_partial", first)
        .items(partials * channels, 64)
        .flops(4 * output.elements() as u64);
    rec.push(d);
    first + partials
}
