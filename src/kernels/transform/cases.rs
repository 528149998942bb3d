//! Comparisons of the transformations with their references.

use super::*;
use crate::gpu::{Caps, Context};
use crate::kernels::check::{Case, Outcome, Trial, compare, numbers};
use crate::rng::{Key, Purpose};

/// Cubes as published, small ones, odd ones, an image.
const SHAPES: [[usize; 3]; 4] = [[64, 64, 32], [16, 16, 8], [20, 12, 9], [45, 31, 1]];

/// Sample `n` of a trial: keys of its own, nothing switched on.
fn sample(n: u32) -> Sample {
    let key = |what| Key::new(0xE1A5).purpose(Purpose::Check, n).fold(what, 0).0;
    Sample { elastic_key: key(1), shuffle_key: key(2), paint_key: key(3), ..Sample::default() }
}

/// Values in (0, 1).
fn crops(n: usize) -> Vec<f32> {
    numbers(11, n, 0.5).iter().map(|v| v + 0.5).collect()
}

/// Runs `distort` over samples and returns them with their crops and results.
fn distorted(ctx: &Context, size: [usize; 3], samples: &[Sample]) -> Result<(Vec<f32>, Vec<f32>)> {
    let geometry = Geometry::new(samples.len(), size)?;
    let image = crops(samples.len() * geometry.voxels());
    let mut t = Trial::new(ctx);
    let (s, input, output) = (t.input(samples)?, t.input(&image)?, t.output(image.len())?);
    let most = samples.iter().map(|s| s.windows as usize).max().unwrap_or(0);
    t.run(|rec| distort(rec, &geometry, most, s, input, output))?;
    Ok((image, t.read(output)?))
}

/// A case of `distort` recorded for an adapter without subgroups, in dispatches of few operations.
fn portable_shuffle(size: [usize; 3], samples: Vec<Sample>, most_flops: u64) -> Case {
    Case::new("transform", "shuffle, portable", format!("{size:?} x{} by {most_flops}", samples.len()), move |ctx| {
        let geometry = Geometry::new(samples.len(), size)?;
        let image = crops(samples.len() * geometry.voxels());
        let mut t = Trial::new(ctx);
        let (s, input, output) = (t.input(&samples)?, t.input(&image)?, t.output(image.len())?);
        let most = samples.iter().map(|s| s.windows as usize).max().unwrap_or(0);
        t.run(|rec| {
            let caps = Caps { subgroup_min: 0, subgroup_max: 0, ..rec.caps.clone() };
            let mut plain = Recorder::new(&caps);
            distort_within(&mut plain, &geometry, most_flops, most, s, input, output)?;
            rec.dispatches.append(&mut plain.dispatches);
            rec.scratch.append(&mut plain.scratch);
            Ok(())
        })?;
        let want: Vec<f64> = samples.iter().zip(image.chunks(geometry.voxels())).flat_map(|(s, i)| reference_point(s, size, i)).collect();
        compare(&t.read(output)?, &want, 1e-7)
    })
}

/// A case of `distort` in which every value has to be the reference's, but for rounding.
fn exact(variant: &'static str, size: [usize; 3], samples: Vec<Sample>) -> Case {
    Case::new("transform", variant, format!("{size:?} x{}", samples.len()), move |ctx| {
        let (image, got) = distorted(ctx, size, &samples)?;
        let voxels = image.len() / samples.len();
        let want: Vec<f64> = samples.iter().zip(image.chunks(voxels)).flat_map(|(s, i)| reference_point(s, size, i)).collect();
        compare(&got, &want, 1e-7)
    })
}

/// Curves that are steep, flat, kinked and ordinary; `n` chooses.
fn curve(n: u32) -> [f32; 4] {
    match n % 6 {
        0 => [0.0, 1.0, 0.0, 1.0],
        1 => [1.0, 0.0, 1.0, 0.0],
        2 => [1.0, 0.2, 0.0, 0.9],
        3 => [0.0, 0.0, 1.0, 1.0],
        _ => {
            let mut rng = Key::new(n.into()).rng();
            std::array::from_fn(|_| rng.unit())
        }
    }
}

/// The non-linear map against the accuracy asked for: 1e-5 + 4e-7 |f′|.
fn non_linear(size: [usize; 3], first: u32, batch: u32) -> Case {
    Case::new("transform", "non_linear", format!("{size:?} x{batch} curves {first}.."), move |ctx| {
        let samples: Vec<Sample> =
            (first..first + batch).map(|n| Sample { curve: curve(n), curve_kind: 1 + (n / 6) % 2, ..sample(n) }).collect();
        let geometry = Geometry::new(samples.len(), size)?;
        let mut image = crops(samples.len() * geometry.voxels());
        // The ends, what lies beyond, and the places where rounding hurts most.
        let special = [0.0, 1.0, -0.25, 1.5, 0.5, 1e-7, 1e-4, 0.999_999_94, 0.500_000_06, 0.499_999_97];
        for chunk in image.chunks_mut(geometry.voxels()) {
            chunk[..special.len()].copy_from_slice(&special);
        }
        let mut t = Trial::new(ctx);
        let (s, input, output) = (t.input(&samples)?, t.input(&image)?, t.output(image.len())?);
        t.run(|rec| distort(rec, &geometry, 0, s, input, output))?;
        let got: Vec<f32> = t.read(output)?;
        Ok(judge_non_linear(&samples, geometry.voxels(), &image, &got))
    })
}

/// The largest error in units of the one allowed, times the allowed error of a map without slope.
fn judge_non_linear(samples: &[Sample], voxels: usize, image: &[f32], got: &[f32]) -> Outcome {
    let mut worst = (0.0, 0, 0.0);
    for (i, (&v, &g)) in image.iter().zip(got).enumerate() {
        let (want, slope) = reference_non_linear(&samples[i / voxels], f64::from(v));
        let slope = if v > 0.0 && v < 1.0 { slope.abs() } else { 0.0 };
        let error = (f64::from(g) - want).abs() / (1e-5 + 4e-7 * slope);
        if !(error <= worst.0) {
            worst = (if error.is_nan() { f64::INFINITY } else { error }, i, want);
        }
    }
    let (error, i, want) = worst;
    let failure = (!(error <= 1.0)).then(|| format!("f({}) is {}, expected {want}", image[i], got[i]));
    Outcome { error: error * 1e-5, tolerance: 1e-5, failure }
}

fn painted(n: u32, size: [usize; 3], kind: u32, noise: u32, count: u32) -> Sample {
    let mut rng = Key::new(0xB0C5).fold(n, kind).rng();
    let mut s = Sample { paint_kind: kind, paint_noise: noise, box_count: count, ..sample(n) };
    for b in &mut s.boxes[..count as usize] {
        for (a, &length) in size.iter().enumerate() {
            let side = rng.int(1, length as i64);
            b.side[a] = u32::try_from(side).unwrap_or(1);
            b.start[a] = u32::try_from(rng.int(0, length as i64 - side)).unwrap_or(0);
        }
        b.fill = rng.unit();
    }
    s
}

fn elastic_cases(size: [usize; 3], batch: u32) -> [Case; 2] {
    let samples: Vec<Sample> = (0..batch).map(sample).collect();
    let again = samples.clone();
    let alpha = if size[2] == 1 { 186.0 } else { 991.0 };
    let want = move |s: &Sample| reference_blur(&reference_noise(s, size.iter().product()), size, alpha);
    [
        Case::new("transform", "displacement", format!("{size:?} x{batch}"), move |ctx| {
            let geometry = Geometry::new(samples.len(), size)?;
            let n = 2 * samples.len() * geometry.voxels();
            let mut t = Trial::new(ctx);
            let (s, a, b) = (t.input(&samples)?, t.output(n)?, t.output(n)?);
            let mut field = a;
            t.run(|rec| {
                field = displacement(rec, &geometry, alpha as f32, s, samples.len(), [a, b]);
                Ok(())
            })?;
            // Three sums of 65 products in f32.
            compare(&t.read(field)?, &samples.iter().flat_map(want).flatten().collect::<Vec<f64>>(), 3e-6)
        }),
        Case::new("transform", "elastic", format!("{size:?} x{batch}"), move |ctx| {
            let geometry = Geometry::new(again.len(), size)?;
            let image = crops(again.len() * geometry.voxels());
            let mut t = Trial::new(ctx);
            let (s, input, output) = (t.input(&again)?, t.input(&image)?, t.output(image.len())?);
            t.run(|rec| elastic(rec, &geometry, alpha as f32, s, input, output))?;
            let pairs = again.iter().zip(image.chunks(geometry.voxels()));
            let want: Vec<f64> = pairs.flat_map(|(s, i)| reference_resample(i, size, &want(s))).collect();
            // Positions up to 64 carry 4e-6 of rounding; neighbours in these crops differ by up to 1.
            compare(&t.read(output)?, &want, 4e-5)
        }),
    ]
}

/// Every transformation, alone and together, over the shapes, with one sample and with three.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for size in SHAPES {
        for batch in [1, 3] {
            let make = |f: &dyn Fn(u32) -> Sample| (0..batch).map(f).collect::<Vec<_>>();
            for flip_bits in 0..8 {
                let samples = make(&|n| Sample { flip: (flip_bits + n) % 8, ..sample(n) });
                out.push(Case::new("transform", "flip", format!("{size:?} x{batch} from {flip_bits}"), move |ctx| {
                    let geometry = Geometry::new(samples.len(), size)?;
                    let image = crops(samples.len() * geometry.voxels());
                    let mut t = Trial::new(ctx);
                    let (s, input, output) = (t.input(&samples)?, t.input(&image)?, t.output(image.len())?);
                    t.run(|rec| flip(rec, &geometry, s, input, output))?;
                    let pairs = samples.iter().zip(image.chunks(geometry.voxels()));
                    compare(&t.read(output)?, &pairs.flat_map(|(s, i)| reference_flip(s, size, i)).collect::<Vec<_>>(), 1e-7)
                }));
            }
            for windows in [1, 5, 700, 10_000] {
                // Samples that do and do not shuffle, side by side.
                out.push(exact("shuffle", size, make(&|n| Sample { windows: if n == 1 { 0 } else { windows }, ..sample(n) })));
            }
            for (windows, most_flops) in [(5, u64::MAX), (700, 1_000_000)] {
                out.push(portable_shuffle(size, make(&|n| Sample { windows: if n == 1 { 3 } else { windows }, ..sample(n) }), most_flops));
            }
            for (kind, noise, count) in [(1, 0, 1), (1, 0, 5), (1, 1, 3), (1, 1, 0), (2, 0, 1), (2, 1, 5)] {
                out.push(exact("paint", size, make(&|n| painted(n, size, kind, noise, count))));
            }
            out.push(non_linear(size, batch, batch));
            out.extend(elastic_cases(size, batch));
        }
        out.push(exact("none", size, vec![sample(0), sample(1)]));
        // A gentle rising curve, so that rounding stays rounding, between shuffling and painting.
        let all = move |n| Sample { windows: 300, curve: [0.3, 0.4, 0.6, 0.5], curve_kind: 1, ..painted(n, size, 1 + n % 2, 1, 2) };
        out.push(Case::new("transform", "all", format!("{size:?} x3"), move |ctx| {
            let samples: Vec<Sample> = (0..3).map(all).collect();
            let (image, got) = distorted(ctx, size, &samples)?;
            let pairs = samples.iter().zip(image.chunks(image.len() / 3));
            compare(&got, &pairs.flat_map(|(s, i)| reference_point(s, size, i)).collect::<Vec<_>>(), 2e-6)
        }));
    }
    out.push(non_linear([16, 16, 8], 0, 48));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::run_once;

    #[test]
    fn judging_the_non_linear_map_can_fail() {
        let samples = [Sample { curve: [0.3, 0.4, 0.6, 0.5], curve_kind: 2, ..sample(0) }];
        let image = crops(500);
        let good: Vec<f32> = image.iter().map(|&v| reference_non_linear(&samples[0], f64::from(v)).0 as f32).collect();
        assert!(judge_non_linear(&samples, 500, &image, &good).passed());
        for (i, v) in [(3, good[3] + 2e-5), (7, f32::NAN), (499, 1.0 - good[499])] {
            let mut bad = good.clone();
            bad[i] = v;
            assert!(!judge_non_linear(&samples, 500, &image, &bad).passed(), "element {i} = {v}");
        }
    }

    /// Limits that let only part of the batch into a dispatch change nothing.
    #[test]
    fn a_split_batch_equals_a_whole_one() {
        if std::env::var("SEMGEN_GPU").as_deref() == Ok("none") {
            return;
        }
        let ctx = Context::new(None).unwrap();
        let size = [20, 12, 8];
        let geometry = Geometry::new(6, size).unwrap();
        let samples: Vec<Sample> =
            (0..6).map(|n| Sample { windows: 200, flip: n, curve: curve(4), curve_kind: 1, ..painted(n, size, 1 + n % 2, 1, 2) }).collect();
        let image = crops(6 * geometry.voxels());
        let run = |caps: &Caps| {
            let buffers = [0; 5].map(|_| ctx.buffer("semgen.trial", (image.len() * 4) as u64).unwrap());
            ctx.upload(&buffers[0], 0, &samples);
            ctx.upload(&buffers[1], 0, &image);
            let view = |id| View::whole(crate::gpu::BufferId(id), image.len());
            let parameters = view(0).slice(0, samples.len() * Sample::WORDS);
            let mut rec = Recorder::new(caps);
            flip(&mut rec, &geometry, parameters, view(1), view(2)).unwrap();
            elastic(&mut rec, &geometry, 300.0, parameters, view(2), view(3)).unwrap();
            distort(&mut rec, &geometry, 200, parameters, view(3), view(4)).unwrap();
            run_once(&ctx, &rec, &buffers).unwrap();
            (rec.dispatches.len(), ctx.read::<f32>(&buffers[4], 0, image.len()).unwrap())
        };
        let whole = run(ctx.caps());
        let four = (geometry.voxels() * 4 * 4) as u64;
        let split = run(&Caps { max_binding: four, storage_align: 256, ..ctx.caps().clone() });
        assert_eq!((whole.0, split.0), (10, 25));
        assert_eq!(whole.1, split.1);
        let small = Caps { max_binding: four / 8, ..ctx.caps().clone() };
        let error = elastic(
            &mut Recorder::new(&small),
            &geometry,
            1.0,
            View::whole(crate::gpu::BufferId(0), 6 * Sample::WORDS),
            whole_view(&image),
            whole_view(&image),
        );
        assert!(matches!(error, Err(Error::ExceedsLimit { .. })), "{error:?}");
    }

    /// No dispatch of one large crop is longer than the adapter's bound.
    #[test]
    fn a_large_crop_is_cut_into_short_dispatches() {
        for kind in [crate::gpu::Kind::Other, crate::gpu::Kind::Discrete] {
            let caps = Caps { kind, max_binding: 1 << 32, ..Caps::minimal() };
            for size in [[256; 3], [512; 3], [512, 512, 1]] {
                let geometry = Geometry::new(1, size).unwrap();
                let view = |id, n| View::whole(crate::gpu::BufferId(id), n);
                let mut rec = Recorder::new(&caps);
                let voxels = geometry.voxels();
                distort(&mut rec, &geometry, 10_000, view(0, Sample::WORDS), view(1, voxels), view(2, voxels)).unwrap();
                let most = rec.dispatches.iter().map(|d| d.flops).max().unwrap();
                assert!(most <= caps.max_dispatch_flops(), "{size:?}: {most}");
                let windows = |d: &Dispatch| d.params.iter().map(|p| p.1).collect::<Vec<_>>();
                let permuted: Vec<_> = rec.dispatches.iter().filter(|d| d.entry == "permute").map(windows).collect();
                assert!(size != [256; 3] || permuted.len() > 1, "{permuted:?}");
            }
        }
    }

    fn whole_view(image: &[f32]) -> View {
        View::whole(crate::gpu::BufferId(1), image.len())
    }
}
