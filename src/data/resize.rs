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
        for &(j, w) in taps {
            let source = &slab[j * inner + b * BLOCK..][..block.len()];
            for (s, &v) in sums.iter_mut().zip(source) {
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
    #[expect(clippy::type_complexity, reason = "a table of literals")]
    const REFERENCE: &[([usize; 3], [usize; 3], &[f32])] = &[
        // numpy 2.4.6, scipy 1.17.1, scikit-image 0.26.0
        (
            [12, 9, 10],
            [3, 4, 5],
            &[0.4943172, 0.5087626, 0.5035373, 0.5072719, 0.4659585, 0.4923198, 0.4994201, 0.5177924, 0.4511793, 0.5138398, 0.5268329, 0.4511733, 0.5119644, 0.5155931, 0.4782668, 0.5045325, 0.5430241, 0.4764327, 0.4620443, 0.4815685, 0.4867969, 0.5436746, 0.4959981, 0.4757067, 0.5363382, 0.4850209, 0.5163768, 0.4849340, 0.4848803, 0.4832842, 0.5300614, 0.4606850, 0.5510108, 0.4824741, 0.4522687, 0.4517698, 0.4888413, 0.5167465, 0.5487931, 0.4718999, 0.4568234, 0.4649710, 0.5226835, 0.5346523, 0.4548905, 0.5083343, 0.4999756, 0.4702263, 0.5102294, 0.4286485, 0.5042213, 0.5128107, 0.5332023, 0.4826205, 0.4962722, 0.5007491, 0.4508230, 0.4713067, 0.5304013, 0.5314855],
        ),
        (
            [3, 2, 4],
            [4, 5, 4],
            &[0.0634115, 0.3748698, 0.6484375, 0.6062500, 0.0532552, 0.3584635, 0.6510417, 0.7541667, 0.0735677, 0.3912760, 0.6458333, 0.4583333, 0.0938802, 0.4240885, 0.6406250, 0.1625000, 0.0837240, 0.4076823, 0.6432292, 0.3104167, 0.2670573, 0.5785156, 0.7005208, 0.4562500, 0.2496094, 0.5548177, 0.7968750, 0.4958333, 0.2845052, 0.6022135, 0.6041667, 0.4166667, 0.3194010, 0.6496094, 0.4114583, 0.3375000, 0.3019531, 0.6259115, 0.5078125, 0.3770833, 0.5725260, 0.5050781, 0.6270833, 0.4964844, 0.5441406, 0.4704427, 0.7125000, 0.4493490, 0.6009115, 0.5397135, 0.5416667, 0.5436198, 0.6576823, 0.6089844, 0.3708333, 0.6378906, 0.6292969, 0.5743490, 0.4562500, 0.5907552, 0.7761719, 0.2035156, 0.4770833, 0.7001302, 0.7404948, 0.1615885, 0.4541667, 0.6457031, 0.8118490, 0.2454427, 0.5000000, 0.7545573, 0.8832031, 0.3292969, 0.5458333, 0.8634115, 0.8475260, 0.2873698, 0.5229167, 0.8089844],
        ),
        (
            [16, 3, 1],
            [2, 7, 1],
            &[0.4854015, 0.4741326, 0.5079393, 0.5417459, 0.4991645, 0.4565831, 0.4707769, 0.5267854, 0.5330523, 0.5142516, 0.4954509, 0.5488765, 0.6023021, 0.5844936],
        ),
        (
            [15, 2, 1],
            [12, 2, 1],
            &[0.0481771, 0.0989583, 0.5299479, 0.6718750, 0.3802083, 0.6132813, 0.4830729, 0.8072917, 0.8385417, 0.3697917, 0.4361979, 0.5638021, 0.2864583, 0.5052083, 0.3893229, 0.1940104, 0.7447917, 0.5143229, 0.3424479, 0.2031250, 0.8242187, 0.7760417, 0.4218750, 0.4648438],
        ),
        (
            [79, 1, 2],
            [64, 1, 2],
            &[0.0451660, 0.3472493, 0.5209147, 0.4677734, 0.4046224, 0.2883301, 0.4619954, 0.7640788, 0.8824870, 0.2294108, 0.4030762, 0.7051595, 0.3499349, 0.6520182, 0.3441569, 0.6462402, 0.8199056, 0.1194661, 0.2852376, 0.5873210, 0.7609863, 0.5973307, 0.5341797, 0.5284017, 0.7020671, 0.0647786, 0.1673991, 0.4694824, 0.6431478, 0.5426432, 0.4794922, 0.4105632, 0.5842285, 0.8863118, 0.0495605, 0.3516439, 0.5253092, 0.4879557, 0.4248047, 0.2927246, 0.4663900, 0.7684733, 0.9026693, 0.2338053, 0.4074707, 0.7095540, 0.3701172, 0.6722005, 0.3485514, 0.6506348, 0.8243001, 0.1396484, 0.2896322, 0.5917155, 0.7653809, 0.6175130, 0.5543620, 0.5327962, 0.7064616, 0.0849609, 0.1717936, 0.4738770, 0.6475423, 0.5628255, 0.4996745, 0.4149577, 0.5886230, 0.8907064, 0.0539551, 0.3560384, 0.5297038, 0.5081380, 0.4449870, 0.2971191, 0.4707845, 0.7728678, 0.9228516, 0.2381999, 0.4118652, 0.7139486, 0.3902995, 0.6923828, 0.3529460, 0.6550293, 0.8286947, 0.1598307, 0.2940267, 0.5961100, 0.7697754, 0.6376953, 0.5745443, 0.5371908, 0.7108561, 0.1051432, 0.1761882, 0.4782715, 0.6519368, 0.5830078, 0.5198568, 0.4193522, 0.5930176, 0.8951009, 0.0583496, 0.3604329, 0.5340983, 0.5283203, 0.4651693, 0.3015137, 0.4751790, 0.7772624, 0.9430339, 0.2425944, 0.4162598, 0.4736328, 0.4104818, 0.1836751, 0.3573405, 0.6594238, 0.8330892, 0.1800130, 0.2984212, 0.6005046, 0.7741699, 0.6578776, 0.5947266, 0.5415853, 0.7152507, 0.1253255],
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
