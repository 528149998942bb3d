//! Which patients look like a reference: its nearest neighbours by Euclidean distance of features.
//!
//! Distances are computed elsewhere (on the adapter for real sets, by [`nearest`] on the host);
//! here they become the lists that the classes are made of.

use crate::error::{Error, Result};

/// Row and distance of the nearest rows, in any order.
pub type Ranking = Vec<(u32, f32)>;

/// How many of `available` patients a class takes when `wanted` are asked for; warns when they are fewer.
pub fn clamp(wanted: usize, available: usize, what: &str) -> usize {
    if wanted > available {
        tracing::warn!(
            "{wanted} {what} neighbours per class were asked for, but there are only {available} {what} scans: all of them are taken"
        );
    }
    wanted.min(available)
}

/// The train neighbours of `reference`: itself first, then the nearest others, `k` in all.
///
/// Equal distances are ordered by row. `ranking` must hold at least the `k` nearest of the `n` train
/// patients; the reference itself may be among them, at any place (a duplicate scan has distance 0 too).
///
/// # Errors
/// A ranking that is too short, names a patient twice or one that does not exist, or holds a
/// distance that is not a finite non-negative number.
pub fn train_list(reference: u32, ranking: &[(u32, f32)], n: usize, k: usize) -> Result<Ranking> {
    if reference as usize >= n {
        return Err(Error::Failed(format!("reference {reference} is not one of the {n} train scans")));
    }
    let others: Ranking = ordered(ranking, n)?.into_iter().filter(|&(row, _)| row != reference).collect();
    let mut list = vec![(reference, 0.0)];
    list.extend(others);
    take(list, k)
}

/// The validation neighbours of a reference: the nearest `k` of `n`, ordered as in [`train_list`].
///
/// # Errors
/// As [`train_list`].
pub fn validation_list(ranking: &[(u32, f32)], n: usize, k: usize) -> Result<Ranking> {
    take(ordered(ranking, n)?, k)
}

fn take(mut list: Ranking, k: usize) -> Result<Ranking> {
    if list.len() < k {
        return Err(Error::Failed(format!("a ranking holds {} neighbours where {k} are needed", list.len())));
    }
    list.truncate(k);
    Ok(list)
}

fn ordered(ranking: &[(u32, f32)], n: usize) -> Result<Ranking> {
    let mut seen = vec![false; n];
    for &(row, distance) in ranking {
        if !(distance >= 0.0 && distance.is_finite()) {
            return Err(Error::Failed(format!(
                "the distance to scan row {row} is {distance}: the features are not finite; check the autoencoder's training losses"
            )));
        }
        match seen.get_mut(row as usize) {
            Some(s) if !*s => *s = true,
            Some(_) => return Err(Error::Failed(format!("a ranking names row {row} twice"))),
            None => return Err(Error::Failed(format!("a ranking names row {row}, but there are {n} rows"))),
        }
    }
    let mut list = ranking.to_vec();
    list.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    Ok(list)
}

/// The `k` rows of `features` (`n × width`, row-major) nearest to `query`, nearest first and equal
/// distances by row; summed in f64.
///
/// # Errors
/// If the lengths do not fit `width`, or a distance is not finite.
pub fn nearest(query: &[f32], features: &[f32], width: usize, k: usize) -> Result<Ranking> {
    if width == 0 || query.len() != width || !features.len().is_multiple_of(width) {
        return Err(Error::shape(
            "nearest",
            format!("a query of {} and {} features do not fit width {width}", query.len(), features.len()),
        ));
    }
    let distance = |row: &[f32]| row.iter().zip(query).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>().sqrt();
    let ranking: Ranking = features.chunks_exact(width).enumerate().map(|(i, row)| (i as u32, distance(row) as f32)).collect();
    let n = ranking.len();
    validation_list(&ranking, n, k.min(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_reference_is_first_even_behind_its_duplicates() {
        // Rows 0, 1 and 3 are the same scan.
        let ranking = [(0, 0.0), (1, 0.0), (3, 0.0), (2, 1.5)];
        assert_eq!(train_list(3, &ranking, 4, 3).unwrap(), [(3, 0.0), (0, 0.0), (1, 0.0)]);
        // Too many duplicates before it: the ranking of the k nearest does not even name it.
        assert_eq!(train_list(3, &ranking[..2], 4, 2).unwrap(), [(3, 0.0), (0, 0.0)]);
    }

    #[test]
    fn ties_go_to_the_smaller_row() {
        let ranking = [(4, 1.0), (2, 1.0), (0, 2.0), (1, 0.5)];
        assert_eq!(validation_list(&ranking, 5, 3).unwrap(), [(1, 0.5), (2, 1.0), (4, 1.0)]);
    }

    #[test]
    fn wrong_rankings_are_refused() {
        for (ranking, says) in [
            (vec![(0, f32::NAN)], "not finite"),
            (vec![(0, f32::INFINITY)], "not finite"),
            (vec![(0, -1.0)], "distance"),
            (vec![(0, 0.0), (0, 1.0)], "twice"),
            (vec![(9, 0.0)], "3 rows"),
            (vec![(1, 0.0)], "1 neighbours where 2"),
        ] {
            let e = validation_list(&ranking, 3, 2).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        assert!(train_list(3, &[], 3, 1).is_err());
    }

    #[test]
    fn distances_of_a_right_triangle() {
        let features = [0.0, 0.0, 3.0, 4.0, 3.0, 0.0];
        assert_eq!(nearest(&features[..2], &features, 2, 9).unwrap(), [(0, 0.0), (2, 3.0), (1, 5.0)]);
        assert!(nearest(&[0.0], &features, 2, 1).is_err());
        assert!(nearest(&[f32::NAN, 0.0], &features, 2, 1).is_err());
        assert!(nearest(&[], &[], 0, 1).is_err());
    }

    #[test]
    fn more_than_available_is_all() {
        assert_eq!((clamp(200, 7, "train"), clamp(5, 7, "train")), (7, 5));
    }

    proptest! {
        #[test]
        fn lists_are_sorted_and_complete(features in prop::collection::vec(-2i8..3, 2..60), k in 1usize..40) {
            let features: Vec<f32> = features[..features.len() / 2 * 2].iter().map(|&v| f32::from(v)).collect();
            let n = features.len() / 2;
            let k = k.min(n);
            let reference = (n / 2) as u32;
            let query = &features[2 * reference as usize..][..2];
            let list = train_list(reference, &nearest(query, &features, 2, k).unwrap(), n, k).unwrap();
            prop_assert_eq!(list.len(), k);
            prop_assert_eq!(list[0], (reference, 0.0));
            prop_assert!(list[1..].windows(2).all(|w| (w[0].1, w[0].0) < (w[1].1, w[1].0)));
            // Nobody who was left out is nearer than the last one taken.
            let last = list[k - 1].1;
            for (row, distance) in nearest(query, &features, 2, n).unwrap() {
                prop_assert!(list.iter().any(|l| l.0 == row) || distance >= last);
            }
        }
    }
}
