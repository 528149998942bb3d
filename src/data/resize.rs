//! Resizing of volumes: one rule for crops and for whole scans.
//!
//! Linear interpolation at half-pixel centres, `src = (i + 0.5) * n_in / n_out - 0.5` on every
//! axis by itself; beyond the ends the axis is mirrored without repeating the edge sample. An
//! axis that shrinks by `f = n_in / n_out > 1` is first smoothed by a Gaussian of
//! `sigma = (f - 1) / 2` and radius `floor(4 sigma + 0.5)`. Both steps are linear, so one table
//! of weights per axis holds their product and every axis is passed over once.
//!
//! The result does not depend on the number of threads. Crops (`f < 1.25`) have radius 0, so
//! their weights come from the four basic operations alone and are the same on every machine.

use rayon::prelude::*;

/// The rule in words, for files that have to say how their cubes were made.
pub const RULE: &str = "linear, half-pixel centres, mirror without edge repeat, gaussian (f-1)/2 when shrinking";

/// Elements of one block of sums; small enough for the first-level cache.
const BLOCK: usize = 1024;
/// Outputs below this many are not worth handing to other threads.
const PARALLEL_FROM: usize = 1 << 19;

/// One output sample of an axis: input indices with their weights.
type Taps = Vec<(usize, f64)>;

/// Resizes `data`, a volume `[x][y][z]` of size `from` with z fastest, to size `to`.
///
/// An axis whose size does not change is left untouched. Sums are taken in f64.
///
/// # Panics
/// If `data` does not hold `from` voxels, or an axis of either size is 0.
pub fn resize(data: &[f32], from: [usize; 3], to: [usize; 3]) -> Vec<f32> {
    assert_eq!(data.len(), from.iter().product::<usize>(), "a volume of size {from:?}");
    assert!(from.iter().chain(&to).all(|&n| n > 0), "cannot resize {from:?} to {to:?}: an axis is empty");
    let mut axes: Vec<usize> = (0..3).filter(|&a| from[a] != to[a]).collect();
    // The axis that shrinks most goes first: the later passes then have less to do.
    axes.sort_by(|&a, &b| (to[a] * from[b]).cmp(&(to[b] * from[a])));
    let mut size = from;
    let mut current: Option<Vec<f32>> = None;
    for a in axes {
        let next = along(current.as_deref().unwrap_or(data), size, a, &taps(from[a], to[a]));
        size[a] = to[a];
        current = Some(next);
    }
    current.unwrap_or_else(|| data.to_vec())
}

/// Applies `taps` to axis `axis` of `data`.
fn along(data: &[f32], size: [usize; 3], axis: usize, taps: &[Taps]) -> Vec<f32> {
    let inner: usize = size[axis + 1..].iter().product();
    let (n_in, n_out) = (size[axis], taps.len());
    let outer: usize = size[..axis].iter().product();
    let mut out = vec![0f32; outer * n_out * inner];
    // A row is all that one output index of the axis holds for one outer index.
    let rows = |(first, rows): (usize, &mut [f32])| {
        for (r, row) in rows.chunks_mut(inner).enumerate() {
            let r = first + r;
            let slab = &data[r / n_out * n_in * inner..][..n_in * inner];
            weighted_sum(slab, inner, &taps[r % n_out], row);
        }
    };
    if out.len() < PARALLEL_FROM {
        rows((0, &mut out));
    } else {
        let per_task = (BLOCK * 8).div_ceil(inner);
        out.par_chunks_mut(per_task * inner).enumerate().for_each(|(i, chunk)| rows((i * per_task, chunk)));
    }
    out
}

/// `row[i] = sum over taps of weight * slab[index * inner + i]`.
fn weighted_sum(slab: &[f32], inner: usize, taps: &Taps, row: &mut [f32]) {
    if inner == 1 {
        row[0] = taps.iter().map(|&(j, w)| w * f64::from(slab[j])).sum::<f64>() as f32;
        return;
    }
    let mut sums = [0f64; BLOCK];
    for (b, block) in row.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..block.len()];
        sums.fill(0.0);
        let n = sums.len();
        let source = |j: usize| &slab[j * inner + b * BLOCK..][..n];
        let mut groups = taps.chunks_exact(4);
        // Four taps per walk over the sums, added in the same order as one by one.
        for group in &mut groups {
            let [a, b, c, d] = std::array::from_fn(|t| source(group[t].0));
            let [wa, wb, wc, wd] = std::array::from_fn(|t| group[t].1);
            for i in 0..n {
                sums[i] = sums[i] + wa * f64::from(a[i]) + wb * f64::from(b[i]) + wc * f64::from(c[i]) + wd * f64::from(d[i]);
            }
        }
        for &(j, w) in groups.remainder() {
            for (s, &v) in sums.iter_mut().zip(source(j)) {
                *s += w * f64::from(v);
            }
        }
        for (o, &s) in block.iter_mut().zip(&*sums) {
            *o = s as f32;
        }
    }
}

/// The weights of every output sample of an axis that goes from `n_in` to `n_out` samples.
fn taps(n_in: usize, n_out: usize) -> Vec<Taps> {
    let factor = n_in as f64 / n_out as f64;
    let filter = gaussian((factor - 1.0) / 2.0);
    let radius = (filter.len() / 2) as i64;
    (0..n_out)
        .map(|i| {
            // Exact in integers: src = ((2 i + 1) n_in - n_out) / (2 n_out).
            let numerator = ((2 * i + 1) * n_in) as i64 - n_out as i64;
            let denominator = 2 * n_out as i64;
            let low = numerator.div_euclid(denominator);
            let share = numerator.rem_euclid(denominator) as f64 / denominator as f64;
            let mut weights = vec![0f64; n_in];
            for (at, w) in [(low, 1.0 - share), (low + 1, share)] {
                // The mirrored axis is smoothed, so the filter is centred on the mirrored place.
                let centre = mirror(at, n_in) as i64;
                for (d, g) in (-radius..=radius).zip(&filter) {
                    weights[mirror(centre + d, n_in)] += w * g;
                }
            }
            weights.into_iter().enumerate().filter(|&(_, w)| w != 0.0).collect()
        })
        .collect()
}

/// A normalised Gaussian of radius `floor(4 sigma + 0.5)`; `[1]` when nothing is to be smoothed.
fn gaussian(sigma: f64) -> Vec<f64> {
    let radius = if sigma > 0.0 { (4.0 * sigma + 0.5).floor() } else { 0.0 };
    if radius == 0.0 {
        return vec![1.0];
    }
    let radius = radius as i64;
    let weights: Vec<f64> = (-radius..=radius).map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// The index in `0..n` that stands for `i` on an axis mirrored without repeating the edge sample.
fn mirror(i: i64, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let last = n as i64 - 1;
    let i = i.rem_euclid(2 * last);
    (if i > last { 2 * last - i } else { i }) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same closed form as `pattern` in `tests/reference/resize.py`.
    fn pattern(size: [usize; 3]) -> Vec<f32> {
        let mut out = Vec::new();
        for x in 0..size[0] {
            for y in 0..size[1] {
                for z in 0..size[2] {
                    out.push(((x * 37 + y * 101 + z * 29 + x * y * 7 + y * z * 3) % 97) as f32 / 96.0);
                }
            }
        }
        out
    }

    /// Largest difference; NaN anywhere is infinite.
    fn largest_error(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
    }

    /// Input size, output size, expected output: printed by `tests/reference/resize.py`
    /// (scikit-image over scipy).
    #[rustfmt::skip]
    const REFERENCE: &[([usize; 3], [usize; 3], &[f32])] = &[
        // numpy 2.4.6, scipy 1.17.1, scikit-image 0.26.0
        (
            [12, 9, 10],
            [3, 4, 5],
            &[0.4943172, 0.50876254, 0.5035373, 0.5072719, 0.46595848, 0.49231976, 0.4994201, 0.51779246, 0.45117927, 0.51383984, 0.5268329, 0.45117328, 0.51196444, 0.5155931, 0.47826678, 0.50453246, 0.5430241, 0.47643274, 0.46204433, 0.4815685, 0.48679686, 0.5436746, 0.49599808, 0.47570676, 0.5363382, 0.4850209, 0.5163768, 0.48493394, 0.4848803, 0.48328424, 0.5300614, 0.46068496, 0.5510107, 0.4824741, 0.45226866, 0.45176977, 0.48884127, 0.5167465, 0.5487931, 0.47189993, 0.4568234, 0.46497098, 0.52268344, 0.53465223, 0.4548905, 0.50833434, 0.49997562, 0.47022632, 0.5102294, 0.42864847, 0.5042213, 0.5128107, 0.5332023, 0.48262048, 0.4962722, 0.5007491, 0.450823, 0.47130674, 0.5304013, 0.5314855],
        ),
        (
            [3, 2, 4],
            [4, 5, 4],
            &[0.06341146, 0.3748698, 0.6484375, 0.60625, 0.053255208, 0.35846356, 0.6510417, 0.75416666, 0.07356771, 0.39127603, 0.6458333, 0.45833334, 0.09388021, 0.42408854, 0.640625, 0.1625, 0.083723955, 0.4076823, 0.6432292, 0.31041667, 0.2670573, 0.57851565, 0.7005208, 0.45625, 0.24960938, 0.55481774, 0.796875, 0.49583334, 0.28450522, 0.60221356, 0.6041667, 0.41666666, 0.31940106, 0.6496094, 0.41145834, 0.3375, 0.30195314, 0.6259115, 0.5078125, 0.37708333, 0.57252604, 0.50507814, 0.62708336, 0.49648437, 0.54414064, 0.4704427, 0.7125, 0.44934896, 0.60091144, 0.53971356, 0.5416667, 0.5436198, 0.6576823, 0.60898435, 0.37083334, 0.63789064, 0.6292969, 0.574349, 0.45625, 0.5907552, 0.77617186, 0.20351562, 0.47708333, 0.7001302, 0.7404948, 0.16158853, 0.45416668, 0.64570314, 0.81184894, 0.2454427, 0.5, 0.7545573, 0.88320315, 0.3292969, 0.54583335, 0.8634115, 0.847526, 0.2873698, 0.5229167, 0.8089844],
        ),
        (
            [16, 3, 1],
            [2, 7, 1],
            &[0.4854015, 0.47413266, 0.5079393, 0.54174584, 0.4991645, 0.4565831, 0.4707769, 0.52678543, 0.5330523, 0.51425165, 0.4954509, 0.5488765, 0.60230213, 0.58449364],
        ),
        (
            [15, 2, 1],
            [12, 2, 1],
            &[0.048177082, 0.098958336, 0.52994794, 0.671875, 0.38020834, 0.61328125, 0.4830729, 0.8072917, 0.8385417, 0.36979166, 0.4361979, 0.56380206, 0.28645834, 0.5052083, 0.3893229, 0.19401042, 0.7447917, 0.51432294, 0.3424479, 0.203125, 0.82421875, 0.7760417, 0.421875, 0.46484375],
        ),
        (
            [79, 1, 2],
            [64, 1, 2],
            &[0.045166016, 0.34724936, 0.52091473, 0.46777344, 0.4046224, 0.28833008, 0.46199545, 0.7640788, 0.882487, 0.22941081, 0.40307617, 0.7051595, 0.3499349, 0.65201825, 0.3441569, 0.64624023, 0.8199056, 0.11946615, 0.28523764, 0.587321, 0.7609863, 0.59733075, 0.5341797, 0.5284017, 0.7020671, 0.06477865, 0.1673991, 0.46948242, 0.64314777, 0.54264325, 0.4794922, 0.41056314, 0.5842285, 0.8863118, 0.049560547, 0.3516439, 0.52530926, 0.48795572, 0.4248047, 0.2927246, 0.46638998, 0.7684733, 0.90266925, 0.23380534, 0.4074707, 0.709554, 0.3701172, 0.6722005, 0.34855142, 0.65063477, 0.8243001, 0.13964844, 0.28963217, 0.5917155, 0.76538086, 0.617513, 0.554362, 0.5327962, 0.7064616, 0.08496094, 0.17179362, 0.47387695, 0.6475423, 0.5628255, 0.49967447, 0.41495767, 0.58862305, 0.89070636, 0.053955078, 0.35603842, 0.5297038, 0.508138, 0.44498697, 0.29711914, 0.47078452, 0.77286786, 0.92285156, 0.23819987, 0.41186523, 0.71394855, 0.39029947, 0.6923828, 0.35294595, 0.6550293, 0.82869464, 0.15983073, 0.2940267, 0.59611005, 0.7697754, 0.6376953, 0.57454425, 0.53719074, 0.71085614, 0.10514323, 0.17618816, 0.47827148, 0.6519368, 0.5830078, 0.51985675, 0.4193522, 0.5930176, 0.8951009, 0.05834961, 0.36043295, 0.5340983, 0.5283203, 0.46516928, 0.30151367, 0.47517905, 0.7772624, 0.9430339, 0.2425944, 0.41625977, 0.4736328, 0.41048178, 0.18367513, 0.35734048, 0.6594238, 0.8330892, 0.18001302, 0.29842123, 0.6005046, 0.7741699, 0.6578776, 0.59472656, 0.54158527, 0.7152507, 0.12532552],
        ),
    ];

    #[test]
    fn agrees_with_the_reference_implementation() {
        for (from, to, expected) in REFERENCE {
            let e = largest_error(&resize(&pattern(*from), *from, *to), expected);
            assert!(e <= 3e-7, "{from:?} to {to:?}: largest error {e}");
        }
    }

    #[test]
    fn the_comparison_can_fail() {
        let (from, to, expected) = REFERENCE[0];
        let mut input = pattern(from);
        input[0] += 1e-3;
        assert!(largest_error(&resize(&input, from, to), expected) > 3e-7);
        assert!(largest_error(&[f32::NAN], &[0.0]) > 3e-7);
    }

    #[test]
    fn an_unchanged_size_is_the_same_bits() {
        let v = pattern([5, 4, 3]);
        assert_eq!(resize(&v, [5, 4, 3], [5, 4, 3]), v);
    }

    #[test]
    fn a_line_is_reproduced_away_from_the_ends() {
        let v: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let out = resize(&v, [40, 1, 1], [64, 1, 1]);
        for (i, o) in out.iter().enumerate().skip(2).take(60) {
            let expected = (i as f32 + 0.5) * 40.0 / 64.0 - 0.5;
            assert!((o - expected).abs() < 1e-5, "{i}: {o} for {expected}");
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        // 96 * 96 * 64 outputs are over the threshold at which work is shared out.
        let (from, to) = ([100, 60, 64], [96, 96, 64]);
        assert!(to.iter().product::<usize>() > PARALLEL_FROM);
        let v = pattern(from);
        let run = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| resize(&v, from, to));
        let one = run(1);
        assert!(one == run(3));
        // The serial path gives the same rows: a thin slice of the volume, resized alone.
        let thin: Vec<f32> = v.chunks(64).map(|row| row[5]).collect();
        let alone = resize(&thin, [100, 60, 1], [96, 96, 1]);
        assert!(one.chunks(64).map(|row| row[5]).eq(alone.iter().copied()));
    }

    /// `cargo test --release -- --ignored resize_speed --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn resize_speed() {
        let from = [512, 512, 400];
        let v = vec![0.5f32; from.iter().product()];
        let start = std::time::Instant::now();
        let out = resize(&v, from, [128, 128, 64]);
        assert!(out.iter().all(|v| (v - 0.5).abs() < 1e-6));
        assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn a_constant_stays_and_the_range_is_kept(
            from in prop::array::uniform3(1usize..12),
            to in prop::array::uniform3(1usize..12),
            value in 0f32..1.0,
        ) {
            let n = from.iter().product();
            for v in resize(&vec![value; n], from, to) {
                prop_assert!((v - value).abs() <= 1e-6);
            }
            for v in resize(&pattern(from), from, to) {
                prop_assert!((0.0..=1.0).contains(&v), "{v}");
            }
        }
    }
}
