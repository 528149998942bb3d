//! Measuring the roof: arithmetic, memory, latencies and transfers.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::measure::{Rules, Stats, measure, repeat};
use super::peak::{Level, Roof};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Caps, Context, Dispatch, Kind, Program, Timing, View};
use crate::kernels::{Const, specialise};

/// Multiply-adds of each chain in a turn of the loop.
const UNROLLED: usize = 8;
/// Invocations of a workgroup, by shader.
const LANES: usize = 64;
const MATRIX_LANES: usize = 128;
const WORKGROUP_LANES: usize = 128;
/// Vectors that an invocation of `bench_memory` handles in a round.
const TURNS: usize = 4;
/// Working sets in bytes.
const SETS: [u64; 9] = [32 << 10, 128 << 10, 512 << 10, 2 << 20, 8 << 20, 32 << 20, 128 << 20, 512 << 20, 1 << 30];
/// Dispatches in a row when their latency is measured.
const IN_A_ROW: usize = 256;
/// Bytes of a transfer.
const TRANSFER: usize = 32 << 20;

/// An arithmetic that is measured.
#[derive(Clone, Copy)]
struct Arithmetic {
    real: &'static str,
    scalar: &'static str,
    /// Components.
    width: usize,
    /// Chains at once in an invocation.
    chains: usize,
    /// Written as a built-in function or as a product and a sum.
    fused: bool,
}

const F32: [Arithmetic; 6] = [
    Arithmetic { real: "f32", scalar: "f32", width: 1, chains: 12, fused: true },
    Arithmetic { real: "f32", scalar: "f32", width: 1, chains: 12, fused: false },
    Arithmetic { real: "f32", scalar: "f32", width: 1, chains: 16, fused: true },
    Arithmetic { real: "f32", scalar: "f32", width: 1, chains: 8, fused: true },
    Arithmetic { real: "vec4<f32>", scalar: "f32", width: 4, chains: 3, fused: true },
    Arithmetic { real: "vec4<f32>", scalar: "f32", width: 4, chains: 8, fused: true },
];
const F16: [Arithmetic; 4] = [
    Arithmetic { real: "vec2<f16>", scalar: "f16", width: 2, chains: 12, fused: true },
    Arithmetic { real: "vec2<f16>", scalar: "f16", width: 2, chains: 12, fused: false },
    Arithmetic { real: "vec2<f16>", scalar: "f16", width: 2, chains: 6, fused: true },
    Arithmetic { real: "vec4<f16>", scalar: "f16", width: 4, chains: 6, fused: true },
];

/// `text` with extensions of the language switched on, where it does not do so already.
fn enabled(extensions: &[&str], text: &str) -> Arc<str> {
    let missing = extensions.iter().filter(|e| !text.contains(&format!("enable {e};")));
    let mut out: String = missing.map(|e| format!("enable {e};\n")).collect();
    out.push_str(text);
    out.into()
}

impl Arithmetic {
    fn text(&self) -> Arc<str> {
        let (mut begin, mut body, mut sum) = (String::new(), String::new(), String::new());
        for k in 0..self.chains {
            let _ = writeln!(begin, "    var a{k} = Real(start + Scalar({k}.0));");
            sum += &format!("{}a{k}", if k > 0 { " + " } else { "" });
        }
        for _ in 0..UNROLLED {
            for k in 0..self.chains {
                let _ = if self.fused { write!(body, "a{k} = fma(a{k}, m, c); ") } else { write!(body, "a{k} = a{k} * m + c; ") };
            }
            body.push('\n');
        }
        let parts: Vec<_> = ["x", "y", "z", "w"][..self.width].iter().map(|c| format!("f32(v.{c})")).collect();
        let total = if self.width == 1 { "f32(v)".to_owned() } else { parts.join(" + ") };
        let total = format!("fn total(v: Real) -> f32 {{ return {total}; }}\n");
        let header = [("Real", Const::Type(self.real)), ("Scalar", Const::Type(self.scalar))];
        let end = format!("    let sum = {sum};\n");
        let text = specialise("bench_fma", &header, &[("total", &total), ("begin", &begin), ("body", &body), ("end", &end)]);
        if self.scalar == "f16" { enabled(&["f16"], &text) } else { text }
    }

    fn dispatch(&self, groups: usize, rounds: usize) -> Dispatch {
        let n = groups * LANES;
        let flops = 2 * n * rounds * UNROLLED * self.chains * self.width;
        let d = Dispatch::new("bench_fma", "main", self.text()).bind(View::whole(BufferId(0), n));
        d.param("rounds", rounds).param("n", n).param("half", 0.5f32).groups(groups).flops(flops as u64)
    }
}

/// A chain of products of `side`×`side` cooperative matrices.
fn matrices(side: u32, groups: usize, rounds: usize) -> Dispatch {
    const CHAINS: usize = 8;
    let (mut begin, mut body, mut end) = (String::new(), String::new(), String::new());
    for k in 0..CHAINS {
        let _ = writeln!(begin, "    var c{k} = Sums();");
        let _ = writeln!(body, "c{k} = coopMultiplyAdd(left, right, c{k});");
    }
    let _ = writeln!(end, "    let s0 = c0 + c1; let s1 = c2 + c3; let s2 = c4 + c5; let s3 = c6 + c7;");
    let _ = writeln!(end, "    let t0 = s0 + s1; let t1 = s2 + s3; let sum = t0 + t1;");
    let types: [&'static str; 3] = if side == 8 {
        ["coop_mat8x8<f16, A>", "coop_mat8x8<f16, B>", "coop_mat8x8<f32, C>"]
    } else {
        ["coop_mat16x16<f16, A>", "coop_mat16x16<f16, B>", "coop_mat16x16<f32, C>"]
    };
    let n = side as usize;
    let header =
        [("SIDE", Const::U32(n)), ("Left", Const::Type(types[0])), ("Right", Const::Type(types[1])), ("Sums", Const::Type(types[2]))];
    let text = specialise("bench_coop", &header, &[("begin", &begin), ("body", &body), ("end", &end)]);
    let d = Dispatch::new("bench_coop", "main", enabled(&["f16", "wgpu_cooperative_matrix"], &text));
    let d = d.bind(View::whole(BufferId(0), n * n)).bind(View::whole(BufferId(1), groups * n * n + 1));
    d.param("rounds", rounds).param("groups", groups).groups(groups).flops((2 * n * n * n * CHAINS * rounds * groups) as u64)
}

fn workgroup(groups: usize, rounds: usize) -> Dispatch {
    let n = groups * WORKGROUP_LANES;
    let d = Dispatch::new("bench_workgroup", "main", specialise("bench_workgroup", &[], &[])).bind(View::whole(BufferId(0), n));
    d.param("rounds", rounds).param("n", n).groups(groups).flops((4 * n * rounds) as u64)
}

/// Invocations of a workgroup of `bench_memory`. On a processor one subgroup: the lanes of others would follow its whole
/// stream with one of their own, each over every second or fourth line of memory.
fn stream_lanes(caps: &Caps) -> usize {
    if caps.kind == Kind::Cpu { 8 } else { 64 }
}

fn memory_text(caps: &Caps) -> Arc<str> {
    specialise("bench_memory", &[("LANES", Const::U32(stream_lanes(caps)))], &[])
}

/// A stream over `vectors` (a power of two) vectors of the input, the output, or both, and the bytes that it moves.
fn stream(entry: &'static str, caps: &Caps, vectors: usize, passes: usize) -> (Dispatch, u64) {
    let block = stream_lanes(caps) * TURNS;
    // On a processor each group keeps to a part of its own; on a GPU all groups move over the whole together.
    let (groups, span, step, inner, rounds) = if caps.kind == Kind::Cpu {
        let groups = (vectors / (8 * block)).clamp(1, 32);
        let chunk = vectors / groups;
        (groups, chunk, block, chunk - 1, chunk / block * passes)
    } else {
        let groups = 4096;
        let together = groups * block;
        (groups, block, together + block, u32::MAX as usize, vectors.div_ceil(together).max(1) * passes)
    };
    let (input, output) = (View::whole(BufferId(0), vectors * 4), View::whole(BufferId(1), vectors * 4));
    let d = Dispatch::new("bench_memory", entry, memory_text(caps));
    let d = match entry {
        "writing" => d.bind(output),
        _ => d.bind(input).bind(output),
    };
    let d = d.param("groups", groups).param("rounds", rounds).param("span", span).param("step", step);
    let bytes = groups * rounds * block * 16 * if entry == "copying" { 2 } else { 1 };
    (d.param("inner", inner).param("outer", vectors - 1).groups(groups), bytes as u64)
}

fn touch(caps: &Caps) -> Dispatch {
    Dispatch::new("bench_memory", "touch", memory_text(caps)).bind(View::whole(BufferId(1), 4))
}

/// Every dispatch that the roof is measured with, for tests of translation: those of cooperative matrices last.
pub fn dispatches(caps: &Caps) -> Vec<Dispatch> {
    let mut out: Vec<_> = F32.iter().chain(&F16).map(|a| a.dispatch(64, 4)).collect();
    out.extend(["copying", "reading", "writing"].map(|entry| stream(entry, caps, 2048, 1).0));
    out.extend([touch(caps), workgroup(4, 4), matrices(8, 4, 4), matrices(16, 4, 4)]);
    out
}

/// Measures on one device.
struct Probe<'c> {
    ctx: &'c Context,
    rules: Rules,
    /// What a dispatch should take at least.
    target: f64,
}

impl Probe<'_> {
    fn buffer(&self, bytes: u64) -> Result<Buffer> {
        self.ctx.buffer("bench.peak", bytes)
    }

    /// The fastest run of what `make` makes, in seconds, with as many rounds as take long enough; and the rounds.
    fn fastest(&self, buffers: &[&Buffer], make: impl Fn(usize) -> Dispatch) -> Result<(f64, usize)> {
        let mut rounds = 1;
        loop {
            let program = Program::new(self.ctx, &[make(rounds)], |id| buffers[id.0 as usize])?;
            program.time(self.ctx, 1)?;
            let t = program.time(self.ctx, 1)?;
            let seconds = t.device.filter(|d| *d > 0.0).unwrap_or(t.wall);
            if seconds >= self.target || rounds >= 1 << 20 {
                return Ok((measure(self.ctx, &program, &self.rules)?.time().min, rounds));
            }
            rounds *= ((1.3 * self.target / seconds.max(1e-7)).ceil() as usize).clamp(2, 64);
        }
    }

    fn groups(&self) -> usize {
        if self.ctx.caps().kind == Kind::Cpu { 64 } else { 8192 }
    }

    fn arithmetic(&self, kinds: &[Arithmetic]) -> Result<f64> {
        let groups = self.groups();
        let out = self.buffer((groups * LANES * 4) as u64)?;
        let mut best = 0.0f64;
        for a in kinds {
            // Enough rounds for every chain to reach its end.
            let (seconds, rounds) = self.fastest(&[&out], |rounds| a.dispatch(groups, 16 * rounds))?;
            let got: Vec<f32> = self.ctx.read(&out, 0, groups * LANES)?;
            let want = (2 * a.chains * a.width) as f32;
            if let Some(v) = got.iter().find(|v| **v != want) {
                return Err(self.wrong("multiply-adds", f64::from(*v), f64::from(want)));
            }
            best = best.max(a.dispatch(groups, 16 * rounds).flops as f64 / seconds / 1e9);
        }
        Ok(best)
    }

    fn cooperative(&self, side: u32) -> Result<f64> {
        let (groups, n) = (self.groups() / 4, side as usize);
        let factors = self.buffer((4 * n * n) as u64)?;
        let out = self.buffer(((groups * n * n + 1) * 4) as u64)?;
        self.ctx.upload(&factors, 0, &vec![half::f16::from_f32(0.25).to_bits(); 2 * n * n]);
        let (seconds, rounds) = self.fastest(&[&factors, &out], |rounds| matrices(side, groups, rounds))?;
        let got: Vec<f32> = self.ctx.read(&out, 0, groups * n * n + 1)?;
        let subgroups = f64::from(got[groups * n * n]);
        let want = (8 * rounds * n) as f32 / 16.0;
        if let Some(v) = got[..groups * n * n].iter().find(|v| **v != want) {
            return Err(self.wrong("products of cooperative matrices", f64::from(*v), f64::from(want)));
        }
        if !(1.0..=MATRIX_LANES as f64).contains(&subgroups) {
            return Err(self.wrong("subgroups of a workgroup", subgroups, 4.0));
        }
        Ok(subgroups * matrices(side, groups, rounds).flops as f64 / seconds / 1e9)
    }

    fn wrong(&self, what: &str, found: f64, expected: f64) -> Error {
        Error::Failed(format!(
            "{}: {what} gave {found}, expected {expected}; this adapter's results are not to be trusted: run `semgen doctor`",
            self.ctx.caps().name
        ))
    }

    /// Bandwidth by working set; `two` streams use both buffers.
    fn levels(&self, entry: &'static str, a: &Buffer, b: &Buffer) -> Result<Vec<Level>> {
        let two = entry == "copying";
        let mut out = Vec::new();
        for bytes in SETS {
            let each = if two { bytes / 2 } else { bytes };
            if each > a.bytes() {
                break;
            }
            let vectors = usize::try_from(each / 16).unwrap_or(usize::MAX);
            let caps = self.ctx.caps();
            let (seconds, passes) = self.fastest(&[a, b], |passes| stream(entry, caps, vectors, passes).0)?;
            if two {
                let got: Vec<u32> = self.ctx.read(b, each - 64, 16)?;
                let want: Vec<u32> = self.ctx.read(a, each - 64, 16)?;
                if got != want {
                    return Err(self.wrong("a copy", f64::from(got[0]), f64::from(want[0])));
                }
            }
            out.push(Level { bytes, gb_s: stream(entry, caps, vectors, passes).1 as f64 / seconds / 1e9 });
        }
        Ok(out)
    }

    /// Seconds of the fastest of several runs of `what`, on the wall.
    fn wall(&self, what: impl Fn() -> Result<()>) -> Result<Stats> {
        what()?;
        let m = repeat(&self.rules, 1, || {
            let begun = Instant::now();
            what()?;
            Ok(Timing { device: None, wall: begun.elapsed().as_secs_f64() })
        })?;
        Ok(m.wall)
    }
}

/// Measures the roof of the adapter; `note` hears what is measured next.
///
/// # Errors
/// [`Error::Gpu`] when the device failed, [`Error::Failed`] when it computes wrong numbers.
pub fn roof(ctx: &Context, quick: bool, note: &mut dyn FnMut(&str)) -> Result<Roof> {
    let limit = Duration::from_millis(if quick { 60 } else { 400 });
    let rules = Rules { precision: 0.01, least: 5, most: 50, ..Rules::within(limit) };
    let caps = ctx.caps();
    let probe = Probe { ctx, rules, target: if quick { 2e-3 } else { 10e-3 } };
    note("arithmetic");
    let f32_gflop_s = probe.arithmetic(&F32)?;
    let f16_gflop_s = if caps.f16 { Some(probe.arithmetic(&F16)?) } else { None };
    let cooperative = caps.cooperative.iter().filter(|n| matches!(n, 8 | 16)).map(|&n| probe.cooperative(n)).collect::<Result<Vec<_>>>()?;
    note("memory");
    // The largest power of two that can be bound, and no more than what a small machine can spare.
    let most = caps.max_binding.min(caps.max_buffer).min(1 << 30);
    let bytes = if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 };
    let (a, b) = (probe.buffer(bytes)?, probe.buffer(bytes)?);
    let pattern: Vec<u32> = (0..1 << 18).map(|i: u32| i.wrapping_mul(0x9E37_79B9) & 0x3FFF_FFFF).collect();
    for first in (0..bytes).step_by(pattern.len() * 4) {
        let n = pattern.len().min(usize::try_from((bytes - first) / 4).unwrap_or(0));
        ctx.upload(&a, first, &pattern[..n]);
        ctx.flush();
    }
    ctx.wait()?;
    let copy = probe.levels("copying", &a, &b)?;
    let read = probe.levels("reading", &a, &b)?;
    let write = probe.levels("writing", &a, &b)?;
    note("workgroup memory");
    let groups = probe.groups();
    let out = probe.buffer((groups * WORKGROUP_LANES * 4) as u64)?;
    let (seconds, rounds) = probe.fastest(&[&out], |rounds| workgroup(groups, 4 * rounds))?;
    let workgroup_gb_s = (groups * WORKGROUP_LANES * 4 * rounds * 4 * 16) as f64 / seconds / 1e9;
    let got: Vec<f32> = ctx.read(&out, 0, 1)?;
    if got[0] != (16 * rounds) as f32 {
        return Err(probe.wrong("reads of workgroup memory", f64::from(got[0]), (16 * rounds) as f64));
    }
    note("latencies and transfers");
    let row = Program::new(ctx, &vec![touch(caps); IN_A_ROW], |_| &b)?;
    let dispatch_s = measure(ctx, &row, &rules)?.time().min / IN_A_ROW as f64;
    let single = Program::new(ctx, &[touch(caps)], |_| &b)?;
    let submit_s = probe.wall(|| single.run(ctx).and_then(|()| ctx.wait()))?.median;
    let n = TRANSFER.min(usize::try_from(bytes).unwrap_or(TRANSFER));
    let data = vec![1u8; n];
    let upload = probe.wall(|| {
        ctx.upload(&a, 0, &data);
        ctx.flush();
        ctx.wait()
    })?;
    let readback = probe.wall(|| ctx.read::<u8>(&a, 0, n).map(drop))?;
    let rate = |s: Stats| n as f64 / s.median / 1e9;
    Ok(Roof::new(
        caps,
        f32_gflop_s,
        f16_gflop_s,
        cooperative.into_iter().reduce(f64::max),
        [copy, read, write],
        workgroup_gb_s,
        [dispatch_s, submit_s],
        [rate(upload), rate(readback)],
    ))
}

/// The roof of the adapter: the kept one, or a new one that is kept, where there is none or `fresh` asks for it.
///
/// # Errors
/// As [`roof`]; one that cannot be kept is no error.
pub fn known(ctx: &Context, fresh: bool, quick: bool, note: &mut dyn FnMut(&str)) -> Result<Roof> {
    if let Some(roof) = Roof::kept(ctx.caps()).filter(|_| !fresh) {
        return Ok(roof);
    }
    let measured = roof(ctx, quick, note)?;
    // A rough roof is not worth keeping, and one that cannot be kept is as good for now.
    if !quick && let Err(e) = measured.keep(ctx.caps()) {
        tracing::warn!("the roof is not kept: {e}");
    }
    Ok(measured)
}
