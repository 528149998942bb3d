//! Host-side hot paths and the main kernels. Kernel times are whole submissions waited for, with pipelines warm;
//! the adapter is part of each name.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use semantic_genesis::data::cubes::{CropEntry, Dense, cut};
use semantic_genesis::data::resize::resize;
use semantic_genesis::error::Result;
use semantic_genesis::gpu::{Buffer, BufferId, Context, Program, Recorder, View};
use semantic_genesis::kernels::check::numbers;
use semantic_genesis::kernels::conv3d::{self, Geom, Input, Output};

/// What decides the loader's speed: cutting and resizing cubes.
fn host(c: &mut Criterion) {
    let size = [128, 128, 64];
    let volume = Dense::new(size, numbers(1, size.iter().product(), 1.0)).expect("as many values as voxels");
    let entry = CropEntry { source: 0, start: [20, 30, 10], size: [70, 70, 32], out: [64, 64, 32] };
    c.bench_function("host/cut 70x70x32 to 64x64x32", |b| b.iter(|| cut(&volume, black_box(&entry))));
    let data = numbers(2, size.iter().product(), 1.0);
    c.bench_function("host/resize 128x128x64 to 32x32x16", |b| b.iter(|| resize(black_box(&data), size, [32, 32, 16])));
}

/// One pass of a convolution as a program over freshly made buffers.
fn program(ctx: &Context, g: &Geom, record: impl Fn(&mut Recorder<'_>, [View; 3]) -> Result<()>) -> Result<(Program, Vec<Buffer>)> {
    let voxels = |grid: [usize; 3]| grid.iter().product::<usize>() * g.batch;
    let lengths = [voxels(g.input) * g.in_channels, g.weight_len(), voxels(g.output()) * g.out_channels];
    let mut buffers = Vec::new();
    for (seed, &len) in (0..).zip(&lengths) {
        let buffer = ctx.buffer("bench", len as u64 * 4)?;
        ctx.upload(&buffer, 0, &numbers(seed, len, 1.0));
        buffers.push(buffer);
    }
    let mut rec = Recorder::new(ctx.caps());
    record(&mut rec, [0, 1, 2].map(|i| View::whole(BufferId(i), lengths[i as usize])))?;
    for &bytes in &rec.scratch {
        buffers.push(ctx.buffer("bench.scratch", bytes)?);
    }
    let made = Program::new(ctx, &rec.dispatches, |id| &buffers[id.as_scratch().map_or(id.0 as usize, |k| 3 + k)])?;
    made.run(ctx)?;
    ctx.wait()?;
    Ok((made, buffers))
}

fn kernels(c: &mut Criterion) {
    let ctx = match Context::new(None) {
        Ok(ctx) => ctx,
        Err(e) => {
            eprintln!("kernels are not timed: {e}");
            return;
        }
    };
    let mut group = c.benchmark_group(format!("conv3d on {}", ctx.caps().name));
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    for (ci, co, side) in [(16, 16, 32), (32, 64, 32), (64, 64, 32), (128, 128, 16)] {
        let g = Geom::new(1, [side; 3], ci, co, [3; 3], [1; 3], [1; 3]).expect("a valid shape");
        group.throughput(Throughput::Elements(g.flops_per_sample(ci)));
        let shape = format!("{ci}to{co} at {side}^3");
        let passes: [(&str, Box<dyn Fn(&mut Recorder<'_>, [View; 3]) -> Result<()>>); 3] = [
            ("forward", Box::new(move |r, [x, w, y]| conv3d::forward(r, &g, &[Input::plain(g.whole(), x)], w, &Output::plain(y)))),
            ("input_grad", Box::new(move |r, [x, w, y]| conv3d::backward_input(r, &g, g.whole(), y, w, None, x))),
            ("weight_grad", Box::new(move |r, [x, w, y]| conv3d::backward_weight(r, &g, Input::plain(g.whole(), x), y, w))),
        ];
        for (pass, record) in passes {
            let (program, _buffers) = program(&ctx, &g, record).expect("the kernels run on this adapter");
            group.bench_function(BenchmarkId::new(pass, &shape), |b| {
                b.iter_custom(|n| {
                    let begun = Instant::now();
                    for _ in 0..n {
                        program.run(&ctx).expect("the device works");
                    }
                    ctx.wait().expect("the device works");
                    begun.elapsed()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, host, kernels);
criterion_main!(benches);
