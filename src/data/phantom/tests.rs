use super::*;

const SIZE: [usize; 3] = [64, 64, 40];
const SPACING: [f64; 3] = [5.6, 5.6, 8.0];

/// Mean Hounsfield value and number of voxels under a label.
fn mean(hu: &Volume, labels: &Volume, label: u8) -> (f32, usize) {
    let values: Vec<f32> = hu.data.iter().zip(&labels.data).filter(|(_, l)| **l == f32::from(label)).map(|(v, _)| *v).collect();
    (values.iter().sum::<f32>() / values.len().max(1) as f32, values.len())
}

#[test]
fn a_patient_is_a_pure_function_of_seed_and_index() {
    let draw = |seed, index| Patient::draw(seed, index, 4).render([24, 23, 22], [14.0, 14.0, 14.0]);
    let (a, b) = (draw(5, 3), draw(5, 3));
    assert_eq!(a.0.data, b.0.data);
    assert_eq!(a.1.data, b.1.data);
    assert_ne!(a.0.data, draw(6, 3).0.data);
    assert_ne!(a.0.data, draw(5, 2).0.data);
}

#[test]
fn labels_agree_with_hounsfield_units() {
    for index in 0..MAX_TYPES {
        let p = Patient::draw(11, u32::try_from(index).unwrap(), MAX_TYPES);
        let (hu, labels) = p.render(SIZE, SPACING);
        let total = hu.data.len();
        let ranges = [
            (BACKGROUND, -1010.0, -900.0, 0.25),
            (BODY, -70.0, 60.0, 0.10),
            (BONE, 200.0, 700.0, 0.005),
            (LUNG, -950.0, -600.0, 0.02),
            // Vessels little wider than these voxels are mixed with lung.
            (VESSEL, -100.0, 200.0, 0.002),
            (AIRWAY, -1000.0, -600.0, 0.000_05),
            (HEART, 0.0, 180.0, 0.005),
            (LIVER, 30.0, 130.0, 0.008),
            (SPLEEN_STOMACH, -500.0, 130.0, 0.001),
        ];
        for (label, lo, hi, share) in ranges {
            let (mean, n) = mean(&hu, &labels, label);
            assert!((lo..hi).contains(&mean), "type {}: label {label} has mean {mean} HU", p.body_type);
            assert!(n as f32 >= share * total as f32, "type {}: label {label} has {n} of {total} voxels", p.body_type);
        }
        assert!(labels.data.iter().all(|l| (0.0..=9.0).contains(l) && l.fract() == 0.0));
        assert!(hu.data.iter().all(|v| (-1024.0..=3071.0).contains(v) && v.fract() == 0.0));
    }
}

#[test]
fn sides_and_affine_follow_the_convention() {
    let p = Patient::draw(2, 0, 4);
    let (_, labels) = p.render(SIZE, SPACING);
    let centre = |label: u8| {
        let mut sum = [0.0f64; 4];
        for x in 0..SIZE[0] {
            for y in 0..SIZE[1] {
                for z in 0..SIZE[2] {
                    if labels.data[(x * SIZE[1] + y) * SIZE[2] + z] == f32::from(label) {
                        let v = [x as f64, y as f64, z as f64, 1.0];
                        for (s, row) in sum.iter_mut().zip(&labels.affine) {
                            *s += row.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
                        }
                    }
                }
            }
        }
        [sum[0] / sum[3], sum[1] / sum[3], sum[2] / sum[3]]
    };
    let (liver, stomach, heart, lung, bone) = (centre(LIVER), centre(SPLEEN_STOMACH), centre(HEART), centre(LUNG), centre(BONE));
    assert!(liver[0] > 10.0 && stomach[0] < -10.0, "liver right, stomach left: {liver:?} {stomach:?}");
    assert!(heart[0] < -3.0, "heart left: {heart:?}");
    assert!(heart[1] > bone[1] + 20.0, "heart in front of most bone: {heart:?} {bone:?}");
    assert!(lung[2] > liver[2] + 40.0, "lung above liver: {lung:?} {liver:?}");
}

#[test]
fn every_nodule_of_the_table_is_labelled_where_it_says() {
    let (size, spacing) = ([88, 80, 56], [4.0, 4.0, 5.5]);
    let mut seen = 0;
    let mut without = 0;
    for index in 0..12 {
        let p = Patient::draw(4, index, 4);
        let (hu, labels) = p.render(size, spacing);
        without += usize::from(p.nodules.is_empty());
        let (_, n) = mean(&hu, &labels, NODULE);
        assert_eq!(n == 0, p.nodules.is_empty(), "patient {index}");
        for nodule in &p.nodules {
            assert!((4.0..=30.0).contains(&nodule.diameter));
            let at: Vec<usize> =
                (0..3).map(|i| ((f64::from(nodule.ras[i]) - hu.affine[i][3]) / hu.affine[i][i]).round() as usize).collect();
            let i = (at[0] * size[1] + at[1]) * size[2] + at[2];
            assert_eq!(labels.data[i], f32::from(NODULE), "patient {index}: {nodule:?}");
            if nodule.diameter > 14.0 && nodule.texture == Texture::Solid {
                assert!(hu.data[i] > -150.0, "patient {index}: {nodule:?} is {}", hu.data[i]);
            }
            seen += 1;
        }
    }
    assert!(seen >= 6 && without >= 1, "{seen} nodules, {without} patients without");
}

/// Volume fractions and spans that need no knowledge of how a patient was drawn.
fn measures(p: &Patient) -> [f32; 5] {
    let (_, labels) = p.render([48, 48, 32], [7.5, 7.5, 10.0]);
    let share = |label: u8| labels.data.iter().filter(|l| **l == f32::from(label)).count() as f32;
    let (lung, heart, body, liver) = (share(LUNG), share(HEART), share(BODY), share(LIVER));
    let all = labels.data.len() as f32 - share(BACKGROUND);
    [all / 1e4, lung / all * 5.0, heart / lung * 2.0, body / all * 3.0, liver / all * 5.0]
}

#[test]
fn types_differ_more_between_than_within() {
    for types in [4, MAX_TYPES] {
        let patients: Vec<Patient> = (0..u32::try_from(types * 5).unwrap()).map(|i| Patient::draw(9, i, types)).collect();
        let found: Vec<[f32; 5]> = patients.iter().map(measures).collect();
        let apart = |a: &[f32; 5], b: &[f32; 5]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        let (mut within, mut between) = ((0.0, 0), (0.0, 0));
        let mut agree = 0;
        for (i, a) in found.iter().enumerate() {
            let mut nearest = (f32::INFINITY, 0);
            for (j, b) in found.iter().enumerate().filter(|(j, _)| *j != i) {
                let d = apart(a, b);
                let sum = if patients[i].body_type == patients[j].body_type { &mut within } else { &mut between };
                *sum = (sum.0 + d, sum.1 + 1);
                if d < nearest.0 {
                    nearest = (d, j);
                }
            }
            agree += usize::from(patients[i].body_type == patients[nearest.1].body_type);
        }
        let (within, between) = (within.0 / within.1 as f32, between.0 / between.1 as f32);
        assert!(between > 2.0 * within, "{types} types: {within} within, {between} between");
        assert!(agree * 10 >= patients.len() * 7, "{types} types: nearest neighbour agrees for {agree} of {}", patients.len());
    }
}

#[test]
fn every_type_comes_once_in_each_run() {
    for types in 1..=MAX_TYPES {
        for run in 0..3 {
            let mut found: Vec<usize> =
                (0..types).map(|i| Patient::draw(1, u32::try_from(run * types + i).unwrap(), types).body_type).collect();
            found.sort_unstable();
            assert_eq!(found, (0..types).collect::<Vec<_>>());
        }
    }
}

#[test]
fn odd_grids_render() {
    let p = Patient::draw(3, 1, 3);
    for (size, spacing) in
        [([1, 1, 1], [3.0; 3]), ([1, 9, 2], [40.0, 30.0, 50.0]), ([37, 5, 13], [9.7, 60.0, 25.1]), ([2, 31, 64], [1.0, 11.0, 5.0])]
    {
        let (hu, labels) = p.render(size, spacing);
        assert_eq!(hu.data.len(), size.iter().product::<usize>());
        assert_eq!(labels.data.len(), hu.data.len());
        assert!(hu.data.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn the_same_anatomy_at_two_voxel_sizes() {
    let p = Patient::draw(8, 0, 4);
    let litres = |size: [usize; 3], spacing: [f64; 3]| {
        let (_, labels) = p.render(size, spacing);
        labels.data.iter().filter(|l| **l == f32::from(LUNG)).count() as f64 * spacing.iter().product::<f64>() * 1e-6
    };
    let (coarse, fine) = (litres([48, 48, 40], [7.5, 7.5, 8.0]), litres([96, 96, 80], [3.75, 3.75, 4.0]));
    assert!((1.5..8.0).contains(&fine), "{fine} litres of lung");
    assert!((coarse / fine - 1.0).abs() < 0.06, "{coarse} and {fine} litres");
}

#[test]
fn a_set_is_written_the_same_twice_and_wrong_requests_are_named() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut seen = Vec::new();
    for dir in [&a, &b] {
        write_set(dir.path(), 3, 2, 7, [20, 18, 12], [17.0, 17.0, 27.0], &mut |n| seen.push(n)).unwrap();
    }
    assert_eq!(seen, [1, 2, 3, 1, 2, 3]);
    let mut names: Vec<_> = std::fs::read_dir(a.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 7);
    for name in &names {
        let read = |d: &tempfile::TempDir| std::fs::read(d.path().join(name)).unwrap();
        assert!(read(&a) == read(&b), "{name:?}");
    }
    let csv = std::fs::read_to_string(a.path().join("patients.csv")).unwrap();
    let columns: Vec<usize> = csv.lines().map(|l| l.split(',').count()).collect();
    assert_eq!(columns, [columns[0]; 4]);
    for (types, size, spacing, word) in [
        (0, [8; 3], [3.0; 3], "body types"),
        (9, [8; 3], [3.0; 3], "body types"),
        (4, [8, 0, 8], [3.0; 3], "voxels"),
        (4, [8; 3], [3.0, f64::NAN, 3.0], "mm"),
    ] {
        let e = write_set(a.path(), 1, types, 7, size, spacing, &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    }
}
