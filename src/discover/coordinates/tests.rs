use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::data::cubes::Dense;

fn rules(crop: [usize; 3]) -> Rules {
    Rules {
        crop,
        margin: [0; 3],
        look_ahead: [0, 0, 3],
        min_distance: 2.0,
        tissue: Tissue::Any,
        draws: 200,
        reference: Reference::PerClass,
    }
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("patient-{i}")).collect()
}

/// A volume whose values look random.
fn noise(size: [usize; 3], seed: u64) -> Dense {
    let key = Key::new(seed).purpose(Purpose::Check, 0);
    Dense::from_fn(size, |x, y, z| crate::rng::unit_f32(key.fold(x as u32, y as u32).draw(z as u32)[0]))
}

fn run(rules: &Rules, classes: usize, seed: u32, volumes: &[Dense]) -> Result<Vec<Place>> {
    find(rules, classes, seed, &names(volumes.len()), |i| Ok(&volumes[i]), |_| {})
}

#[test]
fn the_published_ranges_come_out_at_the_published_size() {
    let r = Rules::new(&Config::default(), Modality::Ct);
    assert_eq!(r.starts("a", [512, 500, 300]).unwrap(), [[100, 512 - 165], [100, 500 - 165], [30, 300 - 66]]);
    // The least sizes that allow the published margins, and one less: a quarter of the room.
    assert_eq!(r.starts("a", [265, 265, 96]).unwrap(), [[100, 100], [100, 100], [30, 30]]);
    assert_eq!(r.starts("a", [264, 265, 95]).unwrap(), [[49, 150], [100, 100], [14, 45]]);
    assert_eq!(r.starts("a", [65, 240, 36]).unwrap(), [[0, 0], [43, 132], [0, 0]]);
    let e = r.starts("scan-7", [265, 265, 35]).unwrap_err().to_string();
    assert!(e.contains("scan-7") && e.contains("35 voxels along z") && e.contains("at least 36"), "{e}");
}

#[test]
fn images_have_one_slice() {
    let r = Rules { look_ahead: [0, 0, 3], ..rules([4, 4, 1]) };
    assert_eq!(r.starts("a", [9, 9, 1]).unwrap()[2], [0, 0]);
    assert!(r.starts("a", [9, 9, 2]).is_err());
}

#[test]
fn the_filter_follows_the_modality() {
    let mut c = Config::default();
    assert_eq!(Rules::new(&c, Modality::Ct).tissue, Tissue::Lung { threshold: 27852.0 / 65535.0, fraction: 0.15 });
    assert_eq!(Rules::new(&c, Modality::Mri).tissue, Tissue::Foreground);
    assert_eq!(Rules::new(&c, Modality::Window).tissue, Tissue::Any);
    c.discover.filter = Filter::None;
    assert_eq!(Rules::new(&c, Modality::Ct).tissue, Tissue::Any);
}

/// 0.425 is no multiple of 1/65535: in a store such a voxel is 0.424994, and tissue nevertheless.
#[test]
fn a_stored_voxel_of_exactly_the_threshold_is_tissue() {
    let r = Rules { crop: [4; 3], ..Rules::new(&Config::default(), Modality::Ct) };
    let tissue = Dense::from_fn([5; 3], |_, _, _| stored(0.425));
    assert!(stored(0.425) < 0.425);
    assert_eq!(r.judge(&tissue, [0; 3]), None);
    let below = Dense::from_fn([5; 3], |_, _, _| 27_851.0 / 65_535.0);
    assert_eq!(r.judge(&below, [0; 3]), Some(0.0));
    // A threshold beyond all values stays beyond them.
    let mut c = Config::default();
    c.discover.tissue_threshold = 1.5;
    let r = Rules { crop: [4; 3], ..Rules::new(&c, Modality::Ct) };
    assert_eq!(r.judge(&Dense::from_fn([5; 3], |_, _, _| 1.0), [0; 3]), Some(0.0));
}

/// The form in which the score was published: three slices, index of the first tissue.
fn published_score(v: &Dense, start: [usize; 3], crop: [usize; 3], t: f32) -> f64 {
    let mut sum = 0.0;
    for x in 0..crop[0] {
        for y in 0..crop[1] {
            for z in 0..crop[2] {
                let d = (0..3).find(|i| v.value(start[0] + x, start[1] + y, start[2] + z + i) >= t).unwrap_or(2);
                sum += 1.0 - d as f64 / 2.0;
            }
        }
    }
    sum
}

#[test]
fn the_lung_filter_is_exact_at_its_limit() {
    // 10 voxels, fraction 0.3: a score of 3 passes, 3.5 does not. In f32, 0.7 * 10 is below 7.
    for (fraction, limit) in [(0.3f32, 3usize), (0.7, 7)] {
        let r = Rules { tissue: Tissue::Lung { threshold: 0.5, fraction: decimal(fraction) }, ..rules([10, 1, 1]) };
        let at = Dense::from_fn([10, 1, 4], |x, _, z| if x < limit && z == 0 { 0.5 } else { 0.0 });
        assert_eq!(r.judge(&at, [0; 3]), Some(limit as f64));
        let over = Dense::from_fn([10, 1, 4], |x, _, z| if x < limit && z == 0 || x == limit && z == 1 { 0.5 } else { 0.0 });
        assert_eq!(r.judge(&over, [0; 3]), None);
    }
}

#[test]
fn the_foreground_filter_asks_for_half() {
    let r = Rules { tissue: Tissue::Foreground, ..rules([4, 1, 1]) };
    let v = |n| Dense::from_fn([4, 1, 1], |x, _, _| if x < n { 0.1 } else { 0.0 });
    assert_eq!(r.judge(&v(2), [0; 3]), Some(2.0));
    assert_eq!(r.judge(&v(1), [0; 3]), None);
}

/// One draw too close to another class must not spoil the later draws: with two possible
/// starts, the second class finds the other one whatever it drew first.
#[test]
fn every_draw_is_judged_alone() {
    let v = [Dense::from_fn([6, 5, 8], |_, _, _| 0.0)];
    let r = Rules { min_distance: 1.0, ..rules([4, 4, 4]) };
    assert_eq!(r.starts("a", [6, 5, 8]).unwrap(), [[0, 1], [0, 0], [0, 0]]);
    let mut first_failed = 0;
    for seed in 0..40 {
        let places = run(&r, 2, seed, &v).unwrap();
        assert_ne!(places[0].start, places[1].start);
        assert_eq!(places[1].dropped, 0);
        first_failed += usize::from(places[1].draws > 1);
    }
    assert!((5..35).contains(&first_failed), "{first_failed} of 40 searches drew the taken start first");
}

/// More classes than patients: every patient is used once per pass, and the search ends.
#[test]
fn used_up_references_begin_a_second_pass() {
    let volumes: Vec<Dense> = (0..3).map(|s| noise([30, 30, 30], s)).collect();
    let places = run(&rules([8, 8, 8]), 9, 1, &volumes).unwrap();
    for pass in places.chunks(3) {
        let mut rows: Vec<u32> = pass.iter().map(|p| p.reference).collect();
        rows.sort_unstable();
        assert_eq!(rows, [0, 1, 2]);
    }
}

#[test]
fn an_impossible_search_ends_and_says_what_to_change() {
    let solid = [Dense::from_fn([20, 20, 20], |_, _, _| 1.0), Dense::from_fn([20, 20, 20], |_, _, _| 1.0)];
    let r = Rules { tissue: Tissue::Lung { threshold: 0.425, fraction: 0.15 }, ..rules([8, 8, 8]) };
    let e = run(&r, 2, 0, &solid).unwrap_err();
    assert_eq!(e.exit_code(), 1);
    let e = e.to_string();
    assert!(e.contains("20 references in a row") && e.contains("4000 did not pass") && e.contains("discover.filter=none"), "{e}");
    let r = Rules { min_distance: 100.0, ..rules([8, 8, 8]) };
    let e = run(&r, 2, 0, &solid).unwrap_err().to_string();
    assert!(e.contains("class 1 of 2") && e.contains("4000 draws were closer than 100") && e.contains("discover.min_distance"), "{e}");
    assert!(run(&r, 2, 0, &[]).is_err());
}

#[test]
fn a_reference_without_a_place_is_dropped() {
    let volumes = [Dense::from_fn([20, 20, 20], |_, _, _| 1.0), Dense::from_fn([20, 20, 20], |_, _, _| 0.0)];
    for reference in [Reference::PerClass, Reference::Shared] {
        let r = Rules { tissue: Tissue::Lung { threshold: 0.425, fraction: 0.15 }, reference, ..rules([8, 8, 8]) };
        let mut dropped = 0;
        for seed in 0..10 {
            let places = run(&r, 6, seed, &volumes).unwrap();
            assert!(places.iter().all(|p| p.reference == 1));
            dropped += places.iter().map(|p| p.dropped).sum::<u32>();
        }
        assert!(dropped > 0);
    }
}

#[test]
fn a_shared_reference_serves_all_classes() {
    let volumes: Vec<Dense> = (0..4).map(|s| noise([30, 30, 30], s)).collect();
    let r = Rules { reference: Reference::Shared, ..rules([8, 8, 8]) };
    let places = run(&r, 10, 5, &volumes).unwrap();
    assert_eq!(places.iter().map(|p| p.reference).collect::<HashSet<_>>().len(), 1);
    assert_eq!(places.iter().map(|p| p.start).collect::<HashSet<_>>().len(), 10);
}

#[test]
fn an_unreadable_scan_stops_the_search() {
    let r = rules([8, 8, 8]);
    let e = find(&r, 1, 0, &names(2), |_| Err::<Dense, _>(Error::Failed("gone".into())), |_| {}).unwrap_err();
    assert_eq!(e.to_string(), "gone");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_score_equals_the_published_form(seed in any::<u64>(), t in 0.05f32..0.95) {
        let v = noise([7, 6, 12], seed);
        let r = Rules { tissue: Tissue::Lung { threshold: t, fraction: 1.0 }, ..rules([4, 5, 6]) };
        for start in [[0, 0, 0], [3, 1, 4]] {
            prop_assert_eq!(r.judge(&v, start), Some(published_score(&v, start, r.crop, t)));
        }
    }

    #[test]
    fn places_are_inside_apart_and_accepted(
        seed in any::<u32>(),
        crop in prop::array::uniform3(2usize..7),
        extra in prop::array::uniform3(4usize..14),
        margin in prop::array::uniform3(0usize..8),
        look_ahead in prop::array::uniform3(0usize..4),
        distance in 0f64..3.0,
        shared in any::<bool>(),
    ) {
        let size = std::array::from_fn(|a| crop[a] + extra[a]);
        let volumes: Vec<Dense> = (0..3).map(|s| noise(size, s)).collect();
        let reference = if shared { Reference::Shared } else { Reference::PerClass };
        let tissue = Tissue::Lung { threshold: 0.5, fraction: 0.76 };
        let r = Rules { crop, margin, look_ahead, min_distance: distance, tissue, draws: 50, reference };
        let Ok(places) = run(&r, 5, seed, &volumes) else { return Ok(()) };
        prop_assert_eq!(places.len(), 5);
        for (i, p) in places.iter().enumerate() {
            for a in 0..3 {
                let m = if size[a] > crop[a] + look_ahead[a] + 2 * margin[a] { margin[a] } else { 0 };
                prop_assert!(p.start[a] >= m && p.start[a] + crop[a] + look_ahead[a] + m < size[a], "{:?}", p);
            }
            prop_assert!(p.score <= 0.76 * crop.iter().product::<usize>() as f64);
            prop_assert_eq!(r.judge(&volumes[p.reference as usize], p.start), Some(p.score));
            prop_assert!((1..=50).contains(&p.draws));
            for q in &places[..i] {
                prop_assert!(squared_distance(p.start, q.start).sqrt() >= distance - 1e-9);
            }
        }
        prop_assert_eq!(run(&r, 5, seed, &volumes).unwrap(), places);
    }
}
