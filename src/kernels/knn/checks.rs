//! Comparisons of distances and neighbours with brute force in f64.

use super::super::check::{Case, Outcome, Trial, compare, numbers};
use super::{Tiles, distances, nearest_tiled, select};
use crate::error::Result;
use crate::gpu::{Caps, Context, Recorder};

/// [`super::nearest`] by brute force in f64; distances are returned squared.
pub fn reference_nearest(queries: &[f32], base: &[f32], width: usize, k: usize) -> Vec<Vec<(u32, f64)>> {
    let square = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>();
    let near = |q: &[f32]| {
        let mut all: Vec<(u32, f64)> = base.chunks(width).zip(0u32..).map(|(b, i)| (i, square(q, b))).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all
    };
    queries.chunks(width).map(near).collect()
}

/// Small whole numbers: their distances are exact in f32 and many of them equal.
fn whole_numbers(seed: u32, n: usize, largest: f32) -> Vec<f32> {
    numbers(seed, n, largest + 0.5).iter().map(|x| x.round()).collect()
}

/// Records for an adapter without subgroups, whatever this one has.
fn without_subgroups(rec: &mut Recorder<'_>, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
    let caps = Caps { subgroup_min: 0, subgroup_max: 0, ..rec.caps.clone() };
    let mut plain = Recorder::new(&caps);
    record(&mut plain)?;
    rec.dispatches.append(&mut plain.dispatches);
    Ok(())
}

fn distance_case(portable: bool, rows: usize, cols: usize, width: usize) -> Case {
    let variant = if portable { "portable" } else { "adapter's" };
    Case::new("knn_distance", variant, format!("{rows} x {cols} of {width}"), move |ctx| {
        let (a, mut b) = (numbers(60, rows * width, 1.0), numbers(61, cols * width, 1.0));
        b[..width].copy_from_slice(&a[..width]);
        let mut t = Trial::new(ctx);
        let (va, vb, out) = (t.input(&a)?, t.input(&b)?, t.output(rows * cols)?);
        t.run(|rec| match portable {
            true => without_subgroups(rec, |rec| distances(rec, rows, cols, width, va, vb, out)),
            false => distances(rec, rows, cols, width, va, vb, out),
        })?;
        let got: Vec<f32> = t.read(out)?;
        let mut want = vec![0.0; rows * cols];
        for (row, near) in want.chunks_mut(cols).zip(reference_nearest(&a, &b, width, cols)) {
            near.iter().for_each(|&(c, d)| row[c as usize] = d);
        }
        let outcome = compare(&got, &want, 2e-6)?;
        if got[0] != 0.0 && outcome.passed() {
            return Ok(Outcome { failure: Some(format!("equal rows have distance {}, expected exactly 0", got[0])), ..outcome });
        }
        Ok(outcome)
    })
}

/// Distances given as numbers, in tiles of `tile` columns: order and ties must be exact.
fn select_case(portable: bool, what: &'static str, [rows, cols, tile, k]: [usize; 4], value: fn(f32) -> f32) -> Case {
    let variant = if portable { "portable" } else { "adapter's" };
    Case::new("knn_select", variant, format!("{what} {rows} x {cols} by {tile}, k {k}"), move |ctx| {
        let d: Vec<f32> = numbers(62, rows * cols, 1.0).iter().map(|&x| value(x.abs())).collect();
        let mut t = Trial::new(ctx);
        let (best, index) = (t.output(rows * k)?, t.output(rows * k)?);
        for first in (0..cols).step_by(tile) {
            let n = tile.min(cols - first);
            let part: Vec<f32> = d.chunks(cols).flat_map(|row| row[first..first + n].iter().copied()).collect();
            let part = t.input(&part)?;
            t.run(|rec| match portable {
                true => without_subgroups(rec, |rec| select(rec, rows, n, first, k, part, best, index)),
                false => select(rec, rows, n, first, k, part, best, index),
            })?;
        }
        let (best, index): (Vec<f32>, Vec<u32>) = (t.read(best)?, t.read(index)?);
        let mut wrong = None;
        for (r, row) in d.chunks(cols).enumerate() {
            let mut want: Vec<u32> = (0u32..).take(cols).collect();
            want.sort_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]).then(a.cmp(&b)));
            for (i, &c) in want.iter().take(k).enumerate() {
                let (got, d) = (index[r * k + i], best[r * k + i]);
                if got != c || d != row[c as usize] {
                    wrong.get_or_insert(format!("neighbour {i} of row {r} is {got} at {d}, expected {c} at {}", row[c as usize]));
                }
            }
        }
        Ok(Outcome { error: if wrong.is_some() { 1.0 } else { 0.0 }, tolerance: 0.0, failure: wrong })
    })
}

/// Neighbours of whole-number features, some rows equal: indices and distances must be exact.
fn exact_case(n: usize, m: usize, width: usize, k: usize, tiles: Option<Tiles>) -> Case {
    let what = format!("{n} among {m} of {width}, k {k}, {tiles:?}");
    Case::new("knn", "nearest", what, move |ctx: &Context| {
        let (queries, mut base) = (whole_numbers(63, n * width, 2.0), whole_numbers(64, m * width, 2.0));
        for r in (1..m).step_by(3) {
            base.copy_within((r - 1) * width..r * width, r * width);
        }
        base[..width].copy_from_slice(&queries[..width]);
        let got = nearest_tiled(ctx, &queries, &base, width, k, tiles)?;
        let want = reference_nearest(&queries, &base, width, k);
        let wrong = (0..n).find(|&r| {
            let want = want[r].iter().map(|&(i, d)| (i, (d as f32).sqrt()));
            !got[r].iter().copied().eq(want)
        });
        let failure = wrong.map(|r| format!("query {r} has neighbours {:?}, expected {:?}", got[r], want[r]));
        Ok(Outcome { error: if failure.is_some() { 1.0 } else { 0.0 }, tolerance: 0.0, failure })
    })
}

/// Neighbours of real-valued features: distances as in f64, and each really that of its index.
fn real_case(n: usize, width: usize, k: usize, tiles: Option<Tiles>) -> Case {
    Case::new("knn", "nearest", format!("{n} reals of {width}, k {k}, {tiles:?}"), move |ctx| {
        let x = numbers(65, n * width, 1.0);
        let got = nearest_tiled(ctx, &x, &x, width, k, tiles)?;
        let want = reference_nearest(&x, &x, width, k);
        let all = reference_nearest(&x, &x, width, n);
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        for r in 0..n {
            let mut of = vec![0.0; n];
            all[r].iter().for_each(|&(i, d)| of[i as usize] = d.sqrt());
            a.extend(got[r].iter().map(|g| g.1));
            b.extend(want[r].iter().map(|w| w.1.sqrt()));
            c.extend(got[r].iter().map(|g| of[g.0 as usize]));
        }
        let outcome = compare(&a, &b, 1e-6)?;
        if outcome.passed() { compare(&a, &c, 1e-6) } else { Ok(outcome) }
    })
}

/// Distances of awkward shapes in both variants, selection with ties, neighbours over tiles.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for portable in [false, true] {
        for (rows, cols, width) in [(1, 1, 1), (3, 5, 3), (31, 15, 4), (32, 16, 8), (33, 17, 5), (70, 131, 64), (9, 300, 100)] {
            out.push(distance_case(portable, rows, cols, width));
        }
    }
    let spread: fn(f32) -> f32 = |x| x * x * 40.0;
    let shapes = [
        [1, 1, 1, 1],
        [5, 7, 7, 3],
        [3, 64, 64, 64],
        [4, 4096, 4096, 200],
        [3, 5000, 1000, 200],
        [2, 3000, 1501, 1024],
        [3, 1100, 300, 1000],
        [70, 90, 32, 10],
    ];
    for portable in [false, true] {
        for shape in shapes {
            out.push(select_case(portable, "spread", shape, spread));
        }
        for shape in [[2, 5000, 5000, 10], [2, 5000, 1250, 700], [2, 70_000, 70_000, 33]] {
            out.push(select_case(portable, "all equal", shape, |_| 2.5));
            out.push(select_case(portable, "few values", shape, |x| (x * 4.0).floor()));
            out.push(select_case(portable, "overflown", shape, |x| if x < 0.001 { x } else { f32::INFINITY }));
        }
    }
    let by = |rows, cols| Some(Tiles { rows, cols });
    for (n, m, width, k, tiles) in [
        (5, 40, 3, 1, None),
        (50, 40, 3, 40, None),
        (50, 40, 3, 41, by(16, 12)),
        (33, 700, 5, 30, by(20, 101)),
        (10, 2000, 4, 1024, by(7, 640)),
        (3, 1, 2, 5, None),
    ] {
        out.push(exact_case(n, m, width, k, tiles));
    }
    out.push(real_case(700, 64, 200, None));
    out.push(real_case(300, 33, 20, by(128, 96)));
    out
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_K, check, device_bytes, nearest};
    use super::*;
    use crate::gpu::STAGING;

    #[test]
    fn tiles_are_bounded_for_the_largest_data_on_every_adapter() {
        let software = Caps { kind: crate::gpu::Kind::Cpu, ..Caps::minimal() };
        for caps in [Caps::minimal(), software] {
            for (n, m, width) in [(75_708, 75_708, 512), (1, 1, 4), (10, 1_000_000, 4), (1_000_000, 3, 4), (5, 5, 1 << 24)] {
                let t = Tiles::new(&caps, n, m, width);
                assert!(t.rows >= 1 && t.cols >= 1 && t.rows <= n && t.cols <= m, "{t:?}");
                let largest = [t.rows * t.cols, t.rows * width, t.cols * width, t.rows * MAX_K];
                assert!(largest.iter().all(|&e| e as u64 * 4 <= caps.max_binding), "{t:?}");
                assert!(t.rows * t.cols * 4 <= 64 << 20, "{t:?}");
                assert!((3 * t.rows * t.cols * width) as u64 <= caps.max_dispatch_flops(), "{t:?}");
            }
        }
    }

    /// A hash of the position as a number in [-1, 1): the plain generators are slow for so many.
    fn feature(i: usize) -> f32 {
        let mut h = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        h = (h ^ (h >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (h >> 40) as f32 / 8_388_608.0 - 1.0
    }

    #[test]
    fn memory_is_bounded_by_the_tile_at_the_published_size() {
        let (n, width, k) = (75_708, 512, 1000);
        for caps in [Caps::minimal(), Caps { kind: crate::gpu::Kind::Cpu, ..Caps::minimal() }] {
            let bytes = device_bytes(&caps, n, n, width, k);
            assert!(bytes < 150 << 20, "{bytes}");
            assert_eq!(bytes, device_bytes(&caps, 10 * n, 10 * n, width, k));
        }
        if std::env::var("SEMGEN_GPU").as_deref() == Ok("none") {
            return;
        }
        let ctx = Context::new(None).unwrap();
        let base: Vec<f32> = (0..n * width).map(feature).collect();
        let queries: Vec<f32> = [0, 40_000, n - 1].iter().flat_map(|&r| base[r * width..][..width].to_vec()).collect();
        let got = nearest(&ctx, &queries, &base, width, k).unwrap();
        // Besides, what every readback goes through, and the kernels' parameters.
        let besides = ctx.memory().1 - device_bytes(ctx.caps(), 3, n, width, k);
        assert!((STAGING..STAGING + 4096).contains(&besides), "{besides}");
        let want = reference_nearest(&queries, &base, width, k);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!((got.len(), got[0]), (k, (want[0].0, 0.0)));
            for (g, w) in got.iter().zip(want) {
                assert!((f64::from(g.1) - w.1.sqrt()).abs() < 1e-4, "{g:?}, expected {w:?}");
            }
        }
    }

    #[test]
    fn features_that_make_no_distances_are_errors() {
        let message = |q: &[f32], b: &[f32], width, k| check(q, b, width, k).unwrap_err().to_string();
        assert!(message(&[1.0; 6], &[1.0; 7], 3, 1).contains("rows of 3"));
        assert!(message(&[1.0; 6], &[1.0; 6], 0, 1).contains("rows of 0"));
        assert!(message(&[1.0; 6], &[1.0; 6], 3, 1025).contains("1024"));
        let nan = message(&[1.0; 6], &[1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0], 3, 1);
        assert!(nan.contains("feature 1 of base row 1 is NaN"), "{nan}");
        assert!(message(&[f32::INFINITY; 3], &[1.0; 3], 3, 1).contains("query row 0"));
    }

    #[test]
    fn reference_puts_the_smaller_index_first() {
        let near = reference_nearest(&[0.0], &[1.0, -1.0, 0.5, 1.0], 1, 3);
        assert_eq!(near[0], vec![(2, 0.25), (0, 1.0), (1, 1.0)]);
    }
}
