//! The draws against the tables of the method, and whole batches on the device.

use super::draw::Rules;
use super::*;
use crate::config::ValTransform;
use crate::kernels::transform::{
    PaintBox, reference_blur, reference_flip, reference_noise, reference_non_linear, reference_point, reference_resample,
    reference_shuffle, reference_shuffle_windows,
};

const CUBE: [usize; 3] = [64, 64, 32];
const PRESETS: [Preset; 5] = [Preset::Paper, Preset::OfficialPyTorch, Preset::OfficialKeras, Preset::ModelsGenesis, Preset::None];

fn draws(preset: Preset, axes: FlipAxes, size: [usize; 3], n: u32) -> Vec<SampleDraw> {
    let rules = Rules::new(preset, axes, size);
    (0..n).map(|s| rules.draw(5, s, Draws::Epoch(s % 3))).collect()
}

/// Share of `draws` for which `f` holds is `want` within four standard deviations.
fn assert_share(draws: &[SampleDraw], want: f64, what: &str, f: impl Fn(&SampleDraw) -> bool) {
    let n = draws.len() as f64;
    let share = draws.iter().filter(|d| f(d)).count() as f64 / n;
    let allowed = 4.0 * (want * (1.0 - want) / n).sqrt();
    assert!((share - want).abs() <= allowed, "{what}: {share}, expected {want} ± {allowed}");
}

/// Paintings inside or outside.
fn paintings(draws: &[SampleDraw], outside: bool) -> Vec<&Paint> {
    draws.iter().filter_map(|d| d.paint.as_ref()).filter(|p| p.outside == outside).collect()
}

/// Smallest and largest side on each axis.
fn sides(paintings: &[&Paint]) -> [(u32, u32); 3] {
    [0, 1, 2].map(|a| {
        let all = || paintings.iter().flat_map(|p| &p.boxes).map(|b| b.side[a]);
        (all().min().unwrap(), all().max().unwrap())
    })
}

fn mean_volume(paintings: &[&Paint], size: [usize; 3]) -> f64 {
    let boxes: Vec<&PaintBox> = paintings.iter().flat_map(|p| &p.boxes).collect();
    boxes.iter().map(|b| b.side.iter().map(|&s| f64::from(s)).product::<f64>()).sum::<f64>()
        / (boxes.len() as f64 * size.iter().product::<usize>() as f64)
}

#[test]
fn one_of_four_is_chosen_equally() {
    for (preset, elastic, windows) in [(Preset::Paper, false, 10_000), (Preset::OfficialPyTorch, true, 5), (Preset::OfficialKeras, true, 5)]
    {
        let all = draws(preset, FlipAxes::Xy, CUBE, 20_000);
        let kinds = |d: &SampleDraw| {
            [d.windows > 0, d.curve.is_some(), d.paint.as_ref().is_some_and(|p| !p.outside), d.paint.as_ref().is_some_and(|p| p.outside)]
        };
        for k in 0..4 {
            assert_share(&all, 0.25, preset.word(), |d| kinds(d)[k]);
        }
        assert!(all.iter().all(|d| kinds(d).iter().filter(|k| **k).count() == 1 && d.elastic == elastic && d.flip == [false; 3]));
        assert!(all.iter().all(|d| d.windows == 0 || d.windows == windows));
        let curves: Vec<SampleDraw> = all.into_iter().filter(|d| d.curve.is_some()).collect();
        assert_share(&curves, 0.5, "inverted", |d| d.curve.is_some_and(|c| c.inverted));
        assert!(curves.iter().flat_map(|d| d.curve.unwrap().points).all(|p| (0.0..1.0).contains(&p)));
    }
}

#[test]
fn models_genesis_draws_independently() {
    let all = draws(Preset::ModelsGenesis, FlipAxes::Xy, CUBE, 20_000);
    assert_share(&all, 0.5, "shuffle", |d| d.windows == 10_000);
    assert_share(&all, 0.9, "non-linear", |d| d.curve.is_some());
    assert_share(&all, 0.72, "out-paint", |d| d.paint.as_ref().is_some_and(|p| p.outside));
    assert_share(&all, 0.18, "in-paint", |d| d.paint.as_ref().is_some_and(|p| !p.outside));
    assert_share(&all, 0.45, "shuffle and non-linear", |d| d.windows > 0 && d.curve.is_some());
    assert!(all.iter().all(|d| !d.elastic && !d.flip[2]));
    // A walk of at most three steps, each taken with p = 0.4, on one of three axes: odd counts of x.
    let [p1, p2, p3] = [0.4 * 0.6, 0.16 * 0.6, 0.064];
    let x = p1 / 3.0 + p2 * 2.0 * (1.0 / 3.0) * (2.0 / 3.0) + p3 * (3.0 * (1.0 / 3.0) * (4.0 / 9.0) + 1.0 / 27.0);
    assert_share(&all, x, "flip x", |d| d.flip[0]);
    assert_share(&all, x, "flip y", |d| d.flip[1]);
    let all = draws(Preset::ModelsGenesis, FlipAxes::Xyz, CUBE, 20_000);
    for a in 0..3 {
        assert_share(&all, x, "flip of three axes", |d| d.flip[a]);
    }
}

#[test]
fn boxes_are_counted_and_filled_as_the_table_says() {
    let counts = |preset, outside| {
        let all = draws(preset, FlipAxes::Xy, CUBE, 20_000);
        let p = paintings(&all, outside);
        let share = |n: usize| p.iter().filter(|p| p.boxes.len() == n).count() as f64 / p.len() as f64;
        let noise = p[0].noise;
        assert!(p.iter().all(|p| p.noise == noise));
        ([0, 1, 2, 3, 4, 5].map(share), noise)
    };
    let one = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    let or_more = [0.0, 0.05, 0.0475, 0.045_125, 0.042_868_75, 0.814_506_25];
    let any = [0.05, 0.0475, 0.045_125, 0.042_868_75, 0.040_725_312_5, 0.773_780_937_5];
    for (preset, outside, want, noise) in [
        (Preset::Paper, false, or_more, false),
        (Preset::Paper, true, or_more, true),
        (Preset::OfficialPyTorch, false, one, true),
        (Preset::OfficialPyTorch, true, one, true),
        (Preset::OfficialKeras, false, one, false),
        (Preset::OfficialKeras, true, one, false),
        (Preset::ModelsGenesis, false, any, true),
        (Preset::ModelsGenesis, true, or_more, true),
    ] {
        let (got, got_noise) = counts(preset, outside);
        assert_eq!(noise, got_noise, "{} outside {outside}", preset.word());
        for (g, w) in got.iter().zip(want) {
            // About 3,600 paintings at least.
            assert!(
                (g - w).abs() <= 4.0 * (w * (1.0 - w) / 3_400.0_f64).sqrt(),
                "{} outside {outside}: {got:?}, expected {want:?}",
                preset.word()
            );
        }
    }
}

#[test]
fn box_sides_and_volumes_are_the_published_ones() {
    let pytorch = [(10, 21), (10, 21), (5, 10)];
    let kept = [(28, 37), (28, 37), (14, 19)];
    for (preset, inside, outside, hidden, left) in [
        (Preset::Paper, pytorch, kept, 0.014, 0.13),
        (Preset::OfficialPyTorch, pytorch, kept, 0.014, 0.13),
        (Preset::ModelsGenesis, pytorch, kept, 0.014, 0.13),
        (Preset::OfficialKeras, [(10, 20); 3], [(44, 54), (44, 54), (12, 22)], 0.026, 0.31),
    ] {
        let all = draws(preset, FlipAxes::Xy, CUBE, 20_000);
        assert_eq!(sides(&paintings(&all, false)), inside, "{}", preset.word());
        assert_eq!(sides(&paintings(&all, true)), outside, "{}", preset.word());
        let (i, o) = (mean_volume(&paintings(&all, false), CUBE), mean_volume(&paintings(&all, true), CUBE));
        assert!((i - hidden).abs() < 0.0007 && (o - left).abs() < 0.006, "{}: {i} {o}", preset.word());
    }
}

#[test]
fn boxes_keep_their_margin_on_every_shape() {
    for size in [CUBE, [16, 16, 8], [20, 12, 9], [224, 224, 1], [8, 6, 4], [3, 2, 1], [1, 1, 1], [25, 26, 27]] {
        for preset in PRESETS {
            for d in draws(preset, FlipAxes::Xyz, size, 2_000) {
                for b in d.paint.iter().flat_map(|p| &p.boxes) {
                    for a in 0..3 {
                        let (l, side, start) = (size[a], b.side[a] as usize, b.start[a] as usize);
                        assert!(side >= 1 && side <= l, "{size:?} {b:?}");
                        let room = l - side;
                        let margin = if a == 2 && size[2] == 1 { 0 } else { 3.min(room / 2) };
                        assert!((margin..=room - margin).contains(&start), "{size:?} {b:?}");
                        assert!((0.0..1.0).contains(&b.fill));
                    }
                }
            }
        }
    }
    let starts = draws(Preset::OfficialPyTorch, FlipAxes::Xy, CUBE, 60_000);
    for outside in [false, true] {
        let boxes: Vec<PaintBox> = paintings(&starts, outside).iter().flat_map(|p| p.boxes.clone()).collect();
        for (a, &l) in CUBE.iter().enumerate() {
            assert_eq!(boxes.iter().map(|b| b.start[a]).min(), Some(3));
            assert_eq!(boxes.iter().map(|b| l as u32 - b.side[a] - b.start[a]).min(), Some(3));
        }
    }
}

#[test]
fn images_use_the_rules_without_the_slice_axis() {
    let image = [224, 224, 1];
    let all = draws(Preset::Paper, FlipAxes::Xy, image, 20_000);
    assert_eq!(sides(&paintings(&all, false)), [(37, 74), (37, 74), (1, 1)]);
    assert_eq!(
        sides(&paintings(&all, true)),
        [(96, 128), (96, 128), (1, 1)].map(|(a, b)| if b == 1 { (a, b) } else { (224 - b, 224 - a) })
    );
    assert!(all.iter().all(|d| d.windows == 0 || d.windows == 700));
    let all = draws(Preset::OfficialKeras, FlipAxes::Xy, image, 20_000);
    assert_eq!(sides(&paintings(&all, false)), [(35, 70), (35, 70), (1, 1)]);
    assert_eq!(Rules::new(Preset::OfficialKeras, FlipAxes::Xy, image).elastic, Some(186.0));
    let windows = reference_shuffle_windows(&Sample { windows: 20_000, ..key_sample(1) }, image);
    assert_eq!([0, 1, 2].map(|a| windows.iter().map(|w| w.side[a]).max().unwrap()), [22, 22, 1]);
}

#[test]
fn draws_depend_on_seed_epoch_and_sample_alone() {
    let rules = Rules::new(Preset::Paper, FlipAxes::Xy, CUBE);
    let at = |seed, sample, d| (rules.draw(seed, sample, d), rules.draw(seed, sample, d).sample(seed, sample, d));
    let base = at(1, 2, Draws::Epoch(3));
    assert_eq!(base, at(1, 2, Draws::Epoch(3)));
    for other in [at(2, 2, Draws::Epoch(3)), at(1, 3, Draws::Epoch(3)), at(1, 2, Draws::Epoch(4)), at(1, 2, Draws::Fixed)] {
        let keys = |s: &Sample| [s.elastic_key, s.shuffle_key, s.paint_key];
        assert_ne!(keys(&base.1), keys(&other.1));
    }
    let modes = [ValTransform::Fixed, ValTransform::Random, ValTransform::None].map(|m| Draws::validation(m, 8));
    assert_eq!(modes, [Draws::Fixed, Draws::Epoch(8), Draws::None]);
    let differing = (0..100).filter(|&s| rules.draw(1, s, Draws::Epoch(0)) != rules.draw(1, s, Draws::Epoch(1))).count();
    assert!(differing > 90, "{differing}");
    for preset in PRESETS {
        assert_eq!(Rules::new(preset, FlipAxes::Xy, CUBE).draw(1, 1, Draws::None), SampleDraw::default());
    }
}

#[test]
fn captions_say_what_happened() {
    assert_eq!(describe(&SampleDraw::default()), "unchanged");
    let curve = Some(Curve { points: [0.5; 4], inverted: true });
    let paint = Some(Paint { outside: false, noise: true, boxes: vec![PaintBox::default(); 3] });
    let all = SampleDraw { flip: [true, true, false], elastic: true, windows: 5, curve, paint };
    assert_eq!(describe(&all), "flip xy, elastic, shuffle 5 windows, non-linear (inverted), in-paint 3 boxes");
}

fn key_sample(n: u32) -> Sample {
    let rules = Rules::new(Preset::None, FlipAxes::Xy, CUBE);
    rules.draw(9, n, Draws::None).sample(9, n, Draws::Epoch(0))
}

#[test]
fn windows_of_shuffling_are_permuted_in_place() {
    for size in [CUBE, [20, 12, 9]] {
        let at = |i: usize| [i / (size[1] * size[2]), i / size[2] % size[1], i % size[2]];
        // One window: the same voxels, in another order.
        let (mut moved, mut inside) = (0, 0);
        for s in 0..300 {
            let sample = Sample { windows: 1, ..key_sample(s) };
            let from = reference_shuffle(&sample, size);
            let window = reference_shuffle_windows(&sample, size)[0];
            let mut sorted = from.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().enumerate().all(|(i, &f)| i == f), "a value was lost");
            for (i, &f) in from.iter().enumerate() {
                assert!(i == f || (window.contains(at(i)) && window.contains(at(f))));
            }
            inside += window.positions().count();
            moved += from.iter().enumerate().filter(|(i, f)| i != *f).count();
        }
        // A uniform permutation has one fixed point on average.
        let fixed = (inside - moved) as f64 / 300.0;
        assert!((fixed - 1.0).abs() < 0.25, "{size:?}: {fixed} fixed points a window");
        // Many windows: nothing moves further than one window.
        let from = reference_shuffle(&Sample { windows: 10_000, ..key_sample(1) }, size);
        for (i, &f) in from.iter().enumerate() {
            for (a, length) in size.into_iter().enumerate() {
                assert!(at(i)[a].abs_diff(at(f)[a]) < (length / 10).max(1));
            }
        }
    }
}

#[test]
fn shuffling_touches_the_published_share() {
    let share = |windows, samples: u32| {
        let mut touched = vec![false; CUBE.iter().product()];
        let mut count = 0;
        for s in 0..samples {
            touched.fill(false);
            for p in reference_shuffle_windows(&Sample { windows, ..key_sample(s) }, CUBE).into_iter().flat_map(|w| w.positions()) {
                touched[(p[0] * 64 + p[1]) * 32 + p[2]] = true;
            }
            count += touched.iter().filter(|t| **t).count();
        }
        count as f64 / (touched.len() * samples as usize) as f64
    };
    let (many, few) = (share(10_000, 3), share(5, 300));
    assert!((many - 0.82).abs() < 0.01, "{many}");
    assert!((few - 0.001).abs() < 0.000_15, "{few}");
    let sides = reference_shuffle_windows(&Sample { windows: 10_000, ..key_sample(0) }, CUBE);
    for (a, most) in [6, 6, 3].into_iter().enumerate() {
        for side in 1..=most {
            let n = sides.iter().filter(|w| w.side[a] == side).count() as f64;
            assert!((n / 10_000.0 - 1.0 / most as f64).abs() < 0.02, "axis {a} side {side}: {n}");
        }
    }
}

/// The displacement is linear in its noise, so its variance follows from responses to one voxel:
/// a product of one factor an axis, taken here from columns of voxels.
#[test]
fn elastic_displacement_has_the_published_size() {
    let factor = |length: usize| -> Vec<f64> {
        let centre = reference_blur(&vec![[1.0; 2]], [1, 1, 1], 1.0)[0][0];
        (0..length)
            .map(|i| {
                let mut field = vec![[0.0; 2]; length];
                field[i] = [1.0; 2];
                // Both axes of an image are smoothed; the other one contributes √centre.
                reference_blur(&field, [length, 1, 1], 1.0).iter().map(|d| d[0] * d[0] / centre).sum()
            })
            .collect()
    };
    let (long, short) = (factor(64), factor(32));
    let mean = |f: &[f64]| f.iter().sum::<f64>() / f.len() as f64;
    let rms = |product: f64| 991.0 * (product / 3.0).sqrt();
    let (centre, corner) = (rms(long[32] * long[32] * short[16]), rms(long[0] * long[0] * short[0]));
    let all = rms(mean(&long) * mean(&long) * mean(&short));
    assert!((centre - 3.8).abs() < 0.05 && (corner - 1.5).abs() < 0.05 && (all - 3.3).abs() < 0.05, "{centre} {corner} {all}");
    let mut squares = 0.0;
    for s in 0..12 {
        let field = reference_blur(&reference_noise(&key_sample(s), CUBE.iter().product()), CUBE, 991.0);
        squares += field.iter().flatten().map(|d| d * d).sum::<f64>() / (2.0 * 12.0 * field.len() as f64);
    }
    assert!((squares.sqrt() / all - 1.0).abs() < 0.1, "{}", squares.sqrt());
}

#[test]
fn non_linear_maps_are_monotone_between_the_ends() {
    for s in 0..300 {
        let draw = Rules::new(Preset::ModelsGenesis, FlipAxes::Xy, CUBE).draw(3, s, Draws::Fixed);
        let Some(curve) = draw.curve else { continue };
        let sample = draw.sample(3, s, Draws::Fixed);
        let f = |v: f64| reference_non_linear(&sample, v).0;
        let ends = if curve.inverted { [1.0, 0.0] } else { [0.0, 1.0] };
        for (v, want) in [(0.0, ends[0]), (-3.0, ends[0]), (1.0, ends[1]), (7.0, ends[1])] {
            assert!((f(v) - want).abs() < 1e-9, "f({v}) = {}", f(v));
        }
        let values: Vec<f64> = (0..=200).map(|i| f(f64::from(i) / 200.0)).collect();
        assert!(values.windows(2).all(|w| if curve.inverted { w[1] <= w[0] } else { w[1] >= w[0] }), "{curve:?}");
    }
}

/// The Rust layout of the parameters is the one the shaders read.
#[test]
fn parameters_have_the_shaders_layout() {
    use std::mem::offset_of;
    let header = [("NX", crate::kernels::Const::U32(4)), ("NY", crate::kernels::Const::U32(4)), ("NZ", crate::kernels::Const::U32(4))];
    let module = crate::gpu::reflect("transform_point", &crate::kernels::specialise("transform_point", &header, &[])).unwrap();
    let layout = |name: &str| module.structure(name).unwrap();
    macro_rules! check {
        ($name:ident: $($field:ident)+) => {
            let want = vec![$((stringify!($field).to_owned(), offset_of!($name, $field)),)+];
            assert_eq!(layout(stringify!($name)), (want, size_of::<$name>()));
        };
    }
    check!(PaintBox: start fill side unused);
    check!(Sample: elastic_key shuffle_key paint_key windows flip curve curve_kind paint_kind box_count paint_noise boxes unused);
}

fn context() -> Option<Context> {
    (std::env::var("SEMGEN_GPU").as_deref() != Ok("none")).then(|| Context::new(None).unwrap())
}

struct Rig {
    ctx: Context,
    augment: Augment,
    input: Buffer,
    target: Buffer,
}

fn rig(ctx: Context, preset: Preset, batch: usize, size: [usize; 3]) -> Rig {
    let bytes = (batch * size.iter().product::<usize>() * 4) as u64;
    let (input, target) = (ctx.buffer("input", bytes).unwrap(), ctx.buffer("target", bytes).unwrap());
    let augment = Augment::new(&ctx, preset, FlipAxes::Xyz, batch, size, 77, &input, &target).unwrap();
    Rig { ctx, augment, input, target }
}

impl Rig {
    fn run(&self, crops: &[f32], samples: &[u32], draws: Draws) -> [Vec<f32>; 2] {
        self.augment.apply(&self.ctx, crops, samples, draws).unwrap();
        [&self.input, &self.target].map(|b| self.ctx.read(b, 0, crops.len()).unwrap())
    }
}

fn crops(n: usize) -> Vec<f32> {
    crate::kernels::check::numbers(4, n, 0.5).iter().map(|v| v + 0.5).collect()
}

#[test]
fn a_batch_is_what_its_draws_say() {
    let size = [20, 12, 9];
    let voxels: usize = size.iter().product();
    for preset in PRESETS {
        let Some(ctx) = context() else { return };
        let rig = rig(ctx, preset, 8, size);
        let crops = crops(8 * voxels);
        let samples: Vec<u32> = (100..108).collect();
        for draws in [Draws::Epoch(2), Draws::Fixed, Draws::None] {
            let [input, target] = rig.run(&crops, &samples, draws);
            for (k, (&s, crop)) in samples.iter().zip(crops.chunks(voxels)).enumerate() {
                let draw = rig.augment.draw(s, draws);
                let p = draw.sample(77, s, draws);
                let here = k * voxels..(k + 1) * voxels;
                let flipped: Vec<f32> = reference_flip(&p, size, crop).iter().map(|&v| v as f32).collect();
                assert_eq!(target[here.clone()], flipped, "{} {s}: target", preset.word());
                let mut image = flipped;
                if draw.elastic {
                    let field = reference_blur(&reference_noise(&p, voxels), size, 991.0);
                    image = reference_resample(&image, size, &field).iter().map(|&v| v as f32).collect();
                }
                for ((v, got), want) in image.iter().zip(&input[here]).zip(reference_point(&p, size, &image)) {
                    // A steep curve amplifies the rounding of the elastic step too.
                    let slope = if draw.curve.is_some() { reference_non_linear(&p, f64::from(*v)).1.abs() } else { 1.0 };
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 1e-5 + 4e-5 * slope, "{} {}: {got}, expected {want}", preset.word(), describe(&draw));
                }
            }
            if draws == Draws::None || preset == Preset::None {
                assert_eq!((&input, &target), (&crops, &crops));
            } else {
                assert_ne!(input, crops);
            }
        }
    }
}

#[test]
fn a_sample_alone_is_the_sample_in_any_batch_and_any_run() {
    let size = [20, 12, 9];
    let voxels: usize = size.iter().product();
    for preset in PRESETS {
        let (Some(a), Some(b)) = (context(), context()) else { return };
        let (many, one) = (rig(a, preset, 6, size), rig(b, preset, 1, size));
        let crops = crops(6 * voxels);
        let samples = [5, 0, 9, 1_000_000, 3, 4];
        let first = many.run(&crops, &samples, Draws::Epoch(1));
        many.run(&crops, &[1, 2, 3, 4, 5, 6], Draws::Epoch(7));
        assert_eq!(many.run(&crops, &samples, Draws::Epoch(1)), first, "{}", preset.word());
        for (k, crop) in crops.chunks(voxels).enumerate() {
            let alone = one.run(crop, &samples[k..=k], Draws::Epoch(1));
            for (alone, first) in alone.iter().zip(&first) {
                assert_eq!(alone[..], first[k * voxels..(k + 1) * voxels], "{} sample {}", preset.word(), samples[k]);
            }
        }
    }
}

#[test]
fn wrong_batches_are_errors() {
    let Some(ctx) = context() else { return };
    let rig = rig(ctx, Preset::Paper, 2, [8, 8, 8]);
    let crops = crops(1024);
    for (crops, samples) in [(&crops[1..], &[1, 2][..]), (&crops[..], &[1][..]), (&crops[..], &[1, 2, 3][..])] {
        assert!(matches!(rig.augment.apply(&rig.ctx, crops, samples, Draws::Fixed), Err(Error::Shape { .. })));
    }
    for (batch, size) in [(0, [8, 8, 8]), (2, [8, 0, 8]), (2, [8, 8, 16])] {
        assert!(Augment::new(&rig.ctx, Preset::Paper, FlipAxes::Xy, batch, size, 1, &rig.input, &rig.target).is_err());
    }
}
