//! The metrics against scipy, scikit-learn and MONAI: the same masks and scores as in `tests/reference/metrics.py`.

use std::collections::BTreeMap;

use semantic_genesis::metrics::classification::Confusion;
use semantic_genesis::metrics::detection::{Finding, Froc, Mark, RATES, Scan};
use semantic_genesis::metrics::difference::{holm, student, welch, wilcoxon};
use semantic_genesis::metrics::overlap::counts;
use semantic_genesis::metrics::ranking::{auc, average_precision, delong};
use semantic_genesis::metrics::surface::Surfaces;

#[path = "metrics_expected.rs"]
#[rustfmt::skip]
mod expected;

const G: [usize; 3] = [21, 17, 13];

fn near(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6, "{what}: {found} instead of {expected}");
}

fn mask(inside: impl Fn([i64; 3], i64) -> bool) -> Vec<bool> {
    let [ni, nj, nk] = G.map(|n| n as i64);
    (0..ni * nj * nk).map(|n| inside([n / (nj * nk), n / nk % nj, n % nk], n)).collect()
}

fn ellipsoid(centre: [i64; 3], [a, b, c]: [i64; 3]) -> Vec<bool> {
    mask(|p, _| {
        let d = [(p[0] - centre[0]) * b * c, (p[1] - centre[1]) * a * c, (p[2] - centre[2]) * a * b];
        d.iter().map(|d| d * d).sum::<i64>() <= (a * b * c).pow(2)
    })
}

fn cuboid(low: [i64; 3], high: [i64; 3]) -> Vec<bool> {
    mask(|p, _| (0..3).all(|a| (low[a]..high[a]).contains(&p[a])))
}

fn noise(every: i64, start: i64) -> Vec<bool> {
    mask(|_, n| (n * n * 31 + n * 17 + start) % 1009 < every)
}

fn merged(a: &[bool], b: &[bool], how: impl Fn(bool, bool) -> bool) -> Vec<bool> {
    a.iter().zip(b).map(|(&a, &b)| how(a, b)).collect()
}

fn shell(outer: Vec<bool>, inner: &[bool]) -> Vec<bool> {
    merged(&outer, inner, |o, i| o && !i)
}

/// Voxel size, prediction and truth of the case called `name`.
fn case(name: &str) -> ([f64; 3], Vec<bool>, Vec<bool>) {
    let middle = [10, 8, 6];
    match name {
        "two ellipsoids" => ([0.7, 0.7, 2.5], ellipsoid(middle, [7, 5, 4]), ellipsoid([11, 7, 6], [6, 6, 3])),
        "a box inside an ellipsoid" => ([1.0; 3], cuboid([8, 6, 4], [13, 11, 9]), ellipsoid(middle, [9, 7, 5])),
        "boxes at the border" => ([0.9, 1.3, 2.0], cuboid([0; 3], [9, 17, 5]), cuboid([2, 3, 0], [21, 17, 6])),
        "the whole grid and a half" => ([1.5, 0.5, 3.0], cuboid([0; 3], [21, 17, 13]), cuboid([0; 3], [21, 9, 13])),
        "single voxels" => ([0.8, 1.1, 3.0], cuboid([3, 4, 5], [4, 5, 6]), cuboid([10, 4, 7], [11, 5, 8])),
        "a voxel and an ellipsoid" => ([2.0, 1.0, 0.6], cuboid([20, 16, 12], [21, 17, 13]), ellipsoid([9, 8, 6], [6, 6, 5])),
        "scattered voxels" => ([1.0, 2.0, 1.7], noise(40, 3), noise(25, 500)),
        "noise at an ellipsoid" => {
            let clean = ellipsoid(middle, [7, 6, 4]);
            ([0.6, 0.6, 1.25], merged(&clean, &noise(30, 7), |a, b| a != b), clean)
        }
        "shells" => (
            [0.45, 0.9, 1.8],
            shell(ellipsoid(middle, [9, 7, 5]), &ellipsoid(middle, [6, 4, 2])),
            shell(ellipsoid([9, 8, 6], [8, 7, 5]), &ellipsoid([9, 8, 6], [5, 4, 2])),
        ),
        "equal" => ([0.7, 0.8, 0.9], ellipsoid(middle, [7, 5, 4]), ellipsoid(middle, [7, 5, 4])),
        other => panic!("no case {other}"),
    }
}

#[test]
fn masks_as_scipy_and_monai_measure_them() {
    for (name, expected) in expected::MASKS {
        let (spacing, predicted, truth) = case(name);
        let label = |m: &[bool]| m.iter().map(|&v| u32::from(v)).collect::<Vec<_>>();
        let overlap = counts(2, &label(&predicted), &label(&truth))[1];
        let surfaces = Surfaces::of(&predicted, &truth, G, spacing);
        let d = surfaces.distances().unwrap();
        let found = [
            overlap.dice().unwrap(),
            overlap.iou().unwrap(),
            d.hausdorff(),
            d.hd95(),
            d.assd(),
            surfaces.dice(0.5),
            surfaces.dice(1.0),
            surfaces.dice(2.5),
        ];
        for (n, (f, e)) in found.into_iter().zip(expected).enumerate() {
            near(&format!("{name}, {n}"), f, e);
        }
        // Which mask is the truth makes no difference.
        let turned = Surfaces::of(&truth, &predicted, G, spacing);
        assert_eq!(turned.distances().unwrap().hd95(), d.hd95(), "{name}");
        assert_eq!(turned.dice(1.0), surfaces.dice(1.0), "{name}");
    }
}

#[test]
fn empty_masks_have_no_distances() {
    let (none, some) = (mask(|_, _| false), ellipsoid([10, 8, 6], [3, 3, 3]));
    let both = Surfaces::of(&none, &none, G, [1.0; 3]);
    assert_eq!((both.dice(1.0), both.distances()), (1.0, None));
    for (p, t) in [(&none, &some), (&some, &none)] {
        let one = Surfaces::of(p, t, G, [1.0; 3]);
        assert_eq!((one.dice(1e9), one.distances()), (0.0, None));
    }
}

#[test]
fn a_tolerance_includes_its_own_distance() {
    // Three voxels of 0.7 mm are 2.0999999999999996 mm in f64, and files keep 0.7 as 0.699999988.
    let (a, b) = (cuboid([3, 4, 5], [4, 5, 6]), cuboid([6, 4, 5], [7, 5, 6]));
    for spacing in [0.7, f64::from(0.7f32), 0.6, f64::from(0.6f32)] {
        let s = Surfaces::of(&a, &b, G, [spacing, 1.0, 1.0]);
        let tolerance = (spacing * 30.0).round() / 10.0;
        assert_eq!((s.dice(tolerance), s.dice(tolerance - 0.01)), (1.0, 0.0), "{spacing}");
    }
}

fn scores(n: i64, seed: i64) -> (Vec<f64>, Vec<bool>) {
    let one = |i: i64| {
        let s = ((i * i * 37 + i * 11 + seed) % 101) as f64 / 100.0;
        (s, ((i * 29 + seed * 7) % 97) as f64 / 97.0 < 0.25 + 0.5 * s)
    };
    (0..n).map(one).unzip()
}

#[test]
fn rankings_and_decisions_as_scikit_learn_has_them() {
    for (n, seed, expected) in expected::RANKINGS {
        let (s, t) = scores(n, seed);
        let area = delong(&s, &t).unwrap();
        near("AUC", auc(&s, &t).unwrap(), area.auc);
        let decided: Vec<usize> = s.iter().map(|&s| usize::from(s > 0.5)).collect();
        let truth: Vec<usize> = t.iter().map(|&t| usize::from(t)).collect();
        let table = Confusion::of(2, &decided, &truth);
        let one = table.one(1);
        let found = [
            area.auc,
            area.error,
            area.interval.0,
            area.interval.1,
            average_precision(&s, &t).unwrap(),
            table.accuracy().unwrap(),
            table.balanced_accuracy().unwrap(),
            one.sensitivity.unwrap(),
            one.specificity.unwrap(),
            one.precision.unwrap(),
            one.f1.unwrap(),
        ];
        for (k, (f, e)) in found.into_iter().zip(expected).enumerate() {
            near(&format!("{n} scores, {k}"), f, e);
        }
    }
}

#[test]
fn confusion_of_four_classes() {
    let base = |i: usize| i * i * 7 % 13;
    let truth: Vec<usize> = (0..200).map(|i| base(i) % 4).collect();
    let predicted: Vec<usize> = (0..200).map(|i| (base(i) + if i % 5 == 0 { i % 3 } else { 0 }) % 4).collect();
    let table = Confusion::of(4, &predicted, &truth);
    assert_eq!(table.counts.concat(), expected::CONFUSION);
    let found = [table.accuracy(), table.balanced_accuracy(), table.macro_f1()];
    found.into_iter().zip(expected::FOUR).for_each(|(f, e)| near("four classes", f.unwrap(), e));
}

fn group(n: i64, seed: i64, shift: f64) -> Vec<f64> {
    (0..n).map(|i| ((i * i * 53 + i * 19 + seed) % 211) as f64 / 1000.0 + shift).collect()
}

#[test]
fn differences_as_scipy_tests_them() {
    for (n, m, x, y, expected) in expected::GROUPS {
        let (a, b) = (group(n, 3, x), group(m, 8, y));
        let (w, s) = (welch(&a, &b).unwrap(), student(&a, &b).unwrap());
        let found = [w.t, w.freedom, w.p, w.p_larger, s.t, s.p];
        for (k, (f, e)) in found.into_iter().zip(expected).enumerate() {
            near(&format!("{n} against {m}, {k}"), f, e);
        }
        // The smallest p is tiny, so that its size is held too.
        assert!((w.p / expected[2] - 1.0).abs() < 1e-6, "{} instead of {}", w.p, expected[2]);
    }
    for (n, shift, expected) in expected::PAIRS {
        let d: Vec<f64> = (0..n).map(|i| ((i * i * 53 + i * 19) % 211 - 105) as f64 + i as f64 * 1e-4 + shift).collect();
        let w = wilcoxon(&d).unwrap();
        near(&format!("{n} pairs"), w.statistic, expected[0]);
        near(&format!("{n} pairs"), w.p, expected[1]);
    }
    holm(&[0.04, 0.001, 0.03, 0.5, 0.012]).into_iter().zip(expected::HOLM).for_each(|(f, e)| near("Holm", f, e));
}

/// Scans with nodules, findings to ignore, and marks at and off them.
fn luna() -> BTreeMap<String, Scan> {
    let place = |x: i64, y: i64, z: i64| [x, y, z].map(|v| v as f64);
    let scan = |s: i64| {
        let findings: Vec<Finding> = (0..s % 4)
            .map(|n| Finding {
                place: place(100 + 300 * n, 50 * s, 70 * n),
                diameter: (60 + 20 * ((s + n) % 4)) as f64,
                ignored: (s + n) % 5 == 4,
            })
            .collect();
        let mark = |m: i64| {
            let h = (s * 131 + m * m * 17 + m * 5) % 1000;
            match findings.get((m / 2) as usize) {
                Some(f) => Mark {
                    place: [f.place[0] + (h % 45) as f64, f.place[1] + (m % 7) as f64, f.place[2] - (h % 11) as f64],
                    probability: (h % 60 + 40) as f64 / 100.0,
                },
                None => Mark { place: place(h * 3, 500 + h, m * 20), probability: (h % 80) as f64 / 100.0 },
            }
        };
        let marks = (0..12 + s).map(mark).collect();
        (format!("scan {s}"), Scan { marks, findings })
    };
    (0..8).map(scan).collect()
}

#[test]
fn froc_as_the_challenge_computes_it() {
    let froc = Froc::of(&luna()).unwrap();
    for (rate, e) in RATES.into_iter().zip(expected::FROC) {
        near(&format!("at {rate}"), froc.sensitivity(rate), e);
    }
    near("CPM", froc.cpm(), expected::FROC[7]);
}

#[test]
fn froc_at_its_ends() {
    let nodule = Finding { place: [0.0; 3], diameter: -1.0, ignored: false };
    let mark = |x: f64, probability: f64| Mark { place: [x, 0.0, 0.0], probability };
    let set = |marks: Vec<Mark>| BTreeMap::from([("a".to_owned(), Scan { marks, findings: vec![nodule] })]);
    // A mark on the sphere of the unknown diameter misses; without false positives the curve is its last point.
    assert_eq!(Froc::of(&set(vec![mark(5.0, 0.9)])).unwrap().hit, 0);
    let all = Froc::of(&set(vec![mark(4.9, 0.9)])).unwrap();
    assert_eq!((all.cpm(), all.false_positives), (1.0, 0));
    assert_eq!(Froc::of(&set(Vec::new())).unwrap().cpm(), 0.0);
    assert_eq!(Froc::of(&set(vec![mark(0.0, f64::NAN)])), None);
    assert_eq!(Froc::of(&BTreeMap::from([("a".to_owned(), Scan::default())])), None);
    // The hundred most probable marks of a scan count: a hit with less is not seen.
    let mut many: Vec<Mark> = (0..100).map(|i| mark(100.0, 0.5 + f64::from(i) / 1000.0)).collect();
    many.push(mark(0.0, 0.4));
    let froc = Froc::of(&set(many)).unwrap();
    assert_eq!((froc.hit, froc.false_positives), (0, 100));
}
