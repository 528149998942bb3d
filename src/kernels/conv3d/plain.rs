//! The plain variant: one element an invocation, and the splits of weight gradients.

use std::sync::Arc;

use super::{Geom, Input, Output, Problem, Source, statistics};
use crate::error::Result;
use crate::gpu::{Dispatch, Dtype, Kind, Recorder, View};
use crate::kernels::{Const, specialise};

/// Bytes of input and output gradient that a run of rows should touch on the processor.
const CACHED: usize = 512 << 10;
/// Turns of all its loops together that Mesa's CPU adapter grants an invocation are 65,535; it ends loops silently there.
const MOST_TURNS: usize = 50_000;
/// Most bytes of partials.
const PARTIALS: usize = 48 << 20;

/// The text for tensors stored as given; with `norm`, the input is normalised as it is read.
fn text(input: Dtype, gradient: Dtype, output: Dtype, norm: bool) -> Arc<str> {
    let stored = |d| Const::Type(if d == Dtype::F16 { "f16" } else { "f32" });
    let load = if norm {
        "fn load(i: u32, c: u32) -> f32 { return max((f32(input[i]) - norm[c]) * norm[p.ci + c] + norm[2u * p.ci + c], 0.0); }"
    } else {
        "fn load(i: u32, c: u32) -> f32 { return f32(input[i]); }"
    };
    let header = [("Input", stored(input)), ("Gradient", stored(gradient)), ("Output", stored(output))];
    specialise("conv3d", &header, &[("load", load)])
}

/// Appends a binding where there is one.
pub(super) fn bind_some(d: Dispatch, view: Option<View>) -> Dispatch {
    match view {
        Some(v) => d.bind(v),
        None => d,
    }
}

fn geometry(d: Dispatch, g: &Geom, batch: usize, s: Source, bias: bool, accumulate: bool, splits: usize) -> Dispatch {
    let (o, k) = (g.output(), g.kernel);
    d.param("batch", batch)
        .param("d", g.input[0])
        .param("h", g.input[1])
        .param("w", g.input[2])
        .param("od", o[0])
        .param("oh", o[1])
        .param("ow", o[2])
        .param("ci", s.channels)
        .param("co", g.out_channels)
        .param("c0", s.first)
        .param("ci_total", g.in_channels)
        .param("kd", k[0])
        .param("kh", k[1])
        .param("kw", k[2])
        .param("sd", g.stride[0])
        .param("sh", g.stride[1])
        .param("sw", g.stride[2])
        .param("pd", g.padding[0])
        .param("ph", g.padding[1])
        .param("pw", g.padding[2])
        .param("bias", u32::from(bias))
        .param("accumulate", u32::from(accumulate))
        .param("splits", splits)
}

pub(super) fn forward(
    rec: &mut Recorder<'_>,
    problem: &Problem,
    input: Input,
    weight: View,
    output: &Output,
    accumulate: bool,
) -> Result<()> {
    let (g, s) = (&problem.geom, problem.source);
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let text = text(problem.input, Dtype::F32, problem.output, input.norm.is_some());
    let mut partial = 0;
    for (n0, n) in problem.parts(rec.caps)? {
        let to = output.view.slice(n0 * ys, n * ys);
        let d = Dispatch::new("conv3d", "forward", text.clone()).bind(input.view.slice(n0 * xs, n * xs)).bind(weight);
        let d = bind_some(d.bind(output.bias.unwrap_or(weight)), input.norm).bind(to);
        rec.push(geometry(d, g, n, s, output.bias.is_some(), accumulate, 1).items(n * ys, 64).flops(flops * n as u64));
        if let Some(view) = output.statistics {
            partial = statistics::record(rec, problem, to, n, view, partial);
        }
    }
    Ok(())
}

pub(super) fn backward_input(
    rec: &mut Recorder<'_>,
    problem: &Problem,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    let (g, s) = (&problem.geom, problem.source);
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let text = text(Dtype::F32, problem.output, problem.input, false);
    for (n0, n) in problem.parts(rec.caps)? {
        let d = Dispatch::new("conv3d", "backward_input", text.clone())
            .bind(weight)
            .bind(bias.unwrap_or(weight))
            .bind(d_output.slice(n0 * ys, n * ys))
            .bind(d_input.slice(n0 * xs, n * xs));
        rec.push(geometry(d, g, n, s, bias.is_some(), false, 1).items(n * xs, 64).flops(flops * n as u64));
    }
    Ok(())
}

pub(super) fn backward_weight(rec: &mut Recorder<'_>, problem: &Problem, input: Input, d_output: View, d_weight: View) -> Result<()> {
    let (g, s) = (&problem.geom, problem.source);
    let elements = g.taps() * g.out_channels * s.channels;
    let (xs, ys, flops) = (g.input_sample(s.channels), g.output_sample(), g.flops_per_sample(s.channels));
    let parts = problem.parts(rec.caps)?;
    let o = g.output();
    let rows = parts[0].1 * o[0] * o[1];
    let splits = split_count(rec, elements, rows, 0, o[2] + 1, elements.div_ceil(64));
    let part = rec.scratch(elements * splits);
    let text = text(problem.input, problem.output, Dtype::F32, input.norm.is_some());
    for (i, &(n0, n)) in parts.iter().enumerate() {
        let d = Dispatch::new("conv3d", "backward_weight", text.clone())
            .bind(input.view.slice(n0 * xs, n * xs))
            .bind(d_output.slice(n0 * ys, n * ys));
        let d = bind_some(d, input.norm).bind(part);
        rec.push(geometry(d, g, n, s, false, false, splits).items(elements * splits, 64).flops(flops * n as u64));
        sum(rec, g, s, part, splits, i > 0, d_weight);
    }
    Ok(())
}

/// How many splits of `rows` rows a weight gradient uses: enough workgroups to fill the adapter and, on the
/// processor, runs of rows (of `row_bytes`) that stay in its cache; few enough that the partials of `elements`
/// elements stay small. A row takes an invocation `turns` turns of its loops, of which there is a bound on the processor.
pub(super) fn split_count(rec: &Recorder<'_>, elements: usize, rows: usize, row_bytes: usize, turns: usize, groups: usize) -> usize {
    let cpu = rec.caps.kind == Kind::Cpu;
    let wanted = (if cpu { 32 } else { 2048 } / groups.max(1)).max(if cpu { rows * row_bytes / CACHED } else { 0 });
    let bound = PARTIALS.min(usize::try_from(rec.caps.max_binding / 2).unwrap_or(usize::MAX)) / 4 / elements.max(1);
    let least = if cpu { (rows * turns).div_ceil(MOST_TURNS) } else { 1 };
    wanted.min(bound).max(least).clamp(1, rows.max(1))
}

/// Writes the sum of `splits` partials `[taps, C_out, c]` to the source's channels of `d_weight`, or adds it to them.
pub(super) fn sum(rec: &mut Recorder<'_>, g: &Geom, s: Source, part: View, splits: usize, accumulate: bool, d_weight: View) {
    let pairs = g.taps() * g.out_channels;
    let d = Dispatch::new("conv3d", "sum", specialise("conv3d_sum", &[], &[])).bind(part).bind(d_weight);
    let d = d
        .param("splits", splits)
        .param("accumulate", u32::from(accumulate))
        .param("pairs", pairs)
        .param("ci", s.channels)
        .param("c0", s.first);
    rec.push(d.param("ci_total", g.in_channels).items(pairs * s.channels, 64).flops((splits * pairs * s.channels) as u64));
}
