//! How well scores tell positives from negatives.

/// Area under the ROC curve: the probability that a positive has a larger score than a negative, ties counting one half; `None`
/// without positives or negatives, or when a score is NaN.
pub fn auc(scores: &[f32], truth: &[bool]) -> Option<f64> {
    let positives = truth.iter().filter(|t| **t).count();
    let negatives = truth.len() - positives;
    if positives == 0 || negatives == 0 || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let ranks = ranks(&scores.iter().map(|&s| f64::from(s)).collect::<Vec<_>>());
    let sum: f64 = ranks.iter().zip(truth).filter(|(_, t)| **t).map(|(r, _)| r).sum();
    let (p, n) = (positives as f64, negatives as f64);
    Some((sum - p * (p + 1.0) / 2.0) / (p * n))
}

/// Ranks from 1; equal values share the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut out = vec![0.0; values.len()];
    let mut i = 0;
    while i < order.len() {
        let mut j = i + 1;
        while j < order.len() && values[order[j]] == values[order[i]] {
            j += 1;
        }
        let mean = (i + 1 + j) as f64 / 2.0;
        order[i..j].iter().for_each(|&k| out[k] = mean);
        i = j;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_pairs() {
        let (s, t) = ([0.1f32, 0.4, 0.35, 0.8, 0.4], [false, false, true, true, true]);
        let mut won = 0.0;
        for (a, _) in s.iter().zip(&t).filter(|(_, t)| **t) {
            for (b, _) in s.iter().zip(&t).filter(|(_, t)| !**t) {
                won += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
            }
        }
        assert!((auc(&s, &t).unwrap() - won / 6.0).abs() < 1e-12);
        assert_eq!(auc(&s, &[true; 5]), None);
        assert_eq!(ranks(&[3.0, 1.0, 3.0]), [2.5, 1.0, 2.5]);
    }
}
