//! From stored intensities to numbers in `[0, 1]`.

use crate::config::{Modality, Mri};

/// Share of voxels that may be NaN or infinite; they become 0, the value of padding.
pub const MAX_NOT_FINITE: f64 = 0.01;

/// The intensities that become 0 and 1.
///
/// | modality | rule |
/// |---|---|
/// | CT | -1000 and 1000 HU |
/// | MRI, minmax | the scan's smallest and largest value |
/// | MRI, clip4000 | 0 and 4000 |
/// | MRI, percentile | the 0.5 and 99.5 percentiles of the voxels that are not 0 (nearest rank) |
/// | window | as given |
///
/// # Errors
/// A sentence, if the scan has too many values that are not finite or only one value.
pub fn range(data: &[f32], modality: Modality, window: [f32; 2], mri: Mri) -> Result<[f32; 2], String> {
    let finite = || data.iter().copied().filter(|v| v.is_finite());
    let bad = data.len() - finite().count();
    if bad as f64 > MAX_NOT_FINITE * data.len() as f64 {
        return Err(format!(
            "{bad} of {} voxels are not finite numbers, but at most {} % can be replaced; repair the scan",
            data.len(),
            MAX_NOT_FINITE * 100.0
        ));
    }
    let (lo, hi) = finite().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    // Nothing finite leaves lo above hi.
    if lo >= hi {
        return Err(format!("every voxel has the value {lo}; there is no image in it"));
    }
    let range = match (modality, mri) {
        (Modality::Ct, _) => [-1000.0, 1000.0],
        (Modality::Window, _) => window,
        (Modality::Mri, Mri::MinMax) => [lo, hi],
        (Modality::Mri, Mri::Clip4000) => [0.0, 4000.0],
        (Modality::Mri, Mri::Percentile) => {
            let mut inside: Vec<f32> = finite().filter(|&v| v != 0.0).collect();
            let mut rank = |p: f64| {
                let n = (p * (inside.len() - 1) as f64).round() as usize;
                *inside.select_nth_unstable_by(n, f32::total_cmp).1
            };
            [rank(0.005), rank(0.995)]
        }
    };
    if range[0] >= range[1] {
        return Err(format!("its 0.5 and 99.5 percentiles are both {}; use another rule (prepare.mri)", range[0]));
    }
    if lo >= range[1] || hi <= range[0] {
        return Err(format!(
            "its values lie in {lo}..{hi}, all outside the intensity window {}..{}; check the kind of scan (prepare.modality)",
            range[0], range[1]
        ));
    }
    Ok(range)
}

/// Maps `range` to `[0, 1]`, clamps, and replaces what is not finite by 0; returns how many were.
pub fn apply(data: &mut [f32], range: [f32; 2]) -> usize {
    let lo = f64::from(range[0]);
    let width = f64::from(range[1]) - lo;
    let mut replaced = 0;
    for v in data {
        if v.is_finite() {
            *v = ((f64::from(*v) - lo) / width).clamp(0.0, 1.0) as f32;
        } else {
            *v = 0.0;
            replaced += 1;
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_and_window_map_their_ends_and_clamp() {
        let data = [-3024.0, -1000.0, -150.0, 0.0, 1000.0, 3071.0];
        let mut v = data;
        let r = range(&data, Modality::Ct, [0.0, 1.0], Mri::MinMax).unwrap();
        assert_eq!(apply(&mut v, r), 0);
        assert_eq!(v, [0.0, 0.0, 0.425, 0.5, 1.0, 1.0]);
        let r = range(&data, Modality::Window, [-150.0, 50.0], Mri::MinMax).unwrap();
        let mut v = data;
        apply(&mut v, r);
        assert_eq!(v, [0.0, 0.0, 0.0, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn mri_rules() {
        let mut data: Vec<f32> = vec![0.0; 500];
        data.extend((1..=1001u16).map(f32::from));
        data.push(1e6);
        let rule = |m| range(&data, Modality::Mri, [0.0, 1.0], m).unwrap();
        assert_eq!(rule(Mri::MinMax), [0.0, 1e6]);
        assert_eq!(rule(Mri::Clip4000), [0.0, 4000.0]);
        assert_eq!(rule(Mri::Percentile), [6.0, 997.0]);
    }

    #[test]
    fn few_values_that_are_not_finite_become_padding_and_many_are_an_error() {
        let mut data: Vec<f32> = (0..1000u16).map(f32::from).collect();
        data[3] = f32::NAN;
        data[4] = f32::INFINITY;
        let r = range(&data, Modality::Mri, [0.0, 1.0], Mri::MinMax).unwrap();
        assert_eq!(r, [0.0, 999.0]);
        let mut v = data.clone();
        assert_eq!(apply(&mut v, r), 2);
        assert_eq!(v[3], 0.0);
        assert!(v.iter().all(|x| (0.0..=1.0).contains(x)));
        data[..11].fill(f32::NAN);
        assert!(range(&data, Modality::Mri, [0.0, 1.0], Mri::MinMax).unwrap_err().contains("11 of 1000"));
        assert!(range(&[f32::NAN; 4], Modality::Ct, [0.0, 1.0], Mri::MinMax).is_err());
    }

    #[test]
    fn images_without_contrast_are_errors() {
        assert!(range(&[5.0; 8], Modality::Ct, [0.0, 1.0], Mri::MinMax).unwrap_err().contains("every voxel has the value 5"));
        assert!(range(&[2000.0, 3000.0], Modality::Ct, [0.0, 1.0], Mri::MinMax).unwrap_err().contains("outside the intensity window"));
        let mut mostly_one = vec![1.0; 1000];
        mostly_one.push(2.0);
        assert!(range(&mostly_one, Modality::Mri, [0.0, 1.0], Mri::Percentile).unwrap_err().contains("percentiles"));
    }
}
