//! How well scores tell positives from negatives.

use statrs::distribution::{ContinuousCDF, Normal};

/// Area under the ROC curve: the probability that a positive has a larger score than a negative, ties counting one half; `None`
/// without positives or negatives, or when a score is NaN.
pub fn auc<S: Copy + Into<f64>>(scores: &[S], truth: &[bool]) -> Option<f64> {
    let (positive, negative) = apart(scores, truth)?;
    let both: Vec<f64> = positive.iter().chain(&negative).copied().collect();
    let sum: f64 = ranks(&both)[..positive.len()].iter().sum();
    let (p, n) = (positive.len() as f64, negative.len() as f64);
    Some((sum - p * (p + 1.0) / 2.0) / (p * n))
}

/// The scores of positives and of negatives; `None` without one of them, or when a score is NaN.
fn apart<S: Copy + Into<f64>>(scores: &[S], truth: &[bool]) -> Option<(Vec<f64>, Vec<f64>)> {
    let of = |which: bool| scores.iter().zip(truth).filter(|(_, t)| **t == which).map(|(&s, _)| s.into()).collect::<Vec<f64>>();
    let (positive, negative) = (of(true), of(false));
    let usable = !positive.is_empty() && !negative.is_empty() && !positive.iter().chain(&negative).any(|s| s.is_nan());
    usable.then_some((positive, negative))
}

/// Area under the ROC curve with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    /// The area.
    pub auc: f64,
    /// Its standard error.
    pub error: f64,
    /// Ends of the 95 % confidence interval, within 0 and 1.
    pub interval: (f64, f64),
}

/// The area under the ROC curve with the interval of E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson (Biometrics 44, 1988), by ranks
/// (X. Sun and W. Xu, IEEE Signal Processing Letters 21, 2014): normal approximation, cut off at 0 and 1; `None` with fewer than two
/// positives or negatives, or when a score is NaN. An area of 0 or 1 has the error 0: the method knows no better.
pub fn delong<S: Copy + Into<f64>>(scores: &[S], truth: &[bool]) -> Option<Area> {
    let (positive, negative) = apart(scores, truth)?;
    let (p, n) = (positive.len(), negative.len());
    if p < 2 || n < 2 {
        return None;
    }
    let both: Vec<f64> = positive.iter().chain(&negative).copied().collect();
    let joint = ranks(&both);
    // For each positive the share of negatives below it; for each negative the share of positives above it.
    let above: Vec<f64> = joint[..p].iter().zip(ranks(&positive)).map(|(j, own)| (j - own) / n as f64).collect();
    let below: Vec<f64> = joint[p..].iter().zip(ranks(&negative)).map(|(j, own)| 1.0 - (j - own) / p as f64).collect();
    let auc = above.iter().sum::<f64>() / p as f64;
    let variance = |v: &[f64]| v.iter().map(|x| (x - auc) * (x - auc)).sum::<f64>() / (v.len() - 1) as f64;
    let error = (variance(&above) / p as f64 + variance(&below) / n as f64).sqrt();
    let z = Normal::standard().inverse_cdf(0.975);
    Some(Area { auc, error, interval: ((auc - z * error).max(0.0), (auc + z * error).min(1.0)) })
}

/// Average precision: the precision at every distinct score, weighted by the recall gained there (no interpolation); `None` without
/// positives, or when a score is NaN.
pub fn average_precision<S: Copy + Into<f64>>(scores: &[S], truth: &[bool]) -> Option<f64> {
    let mut order: Vec<(f64, bool)> = scores.iter().zip(truth).map(|(&s, &t)| (s.into(), t)).collect();
    let positives = order.iter().filter(|o| o.1).count();
    if positives == 0 || order.iter().any(|o| o.0.is_nan()) {
        return None;
    }
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut found, mut sum) = (0, 0, 0.0);
    for tied in order.chunk_by(|a, b| a.0 == b.0) {
        let gained = tied.iter().filter(|o| o.1).count();
        seen += tied.len();
        found += gained;
        sum += gained as f64 / positives as f64 * (found as f64 / seen as f64);
    }
    Some(sum)
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

    #[test]
    fn what_cannot_be_told_is_none() {
        let nan = [f64::NAN, 0.5, 0.1, 0.2];
        let t = [true, true, false, false];
        assert_eq!((auc(&nan, &t), delong(&nan, &t), average_precision(&nan, &t)), (None, None, None));
        assert_eq!(delong(&[0.3, 0.2, 0.1], &[true, false, false]), None);
        assert_eq!(average_precision(&[0.3], &[false]), None);
        let sure = delong(&[0.9, 0.8, 0.1, 0.2], &t).unwrap();
        assert_eq!((sure.auc, sure.error, sure.interval), (1.0, 0.0, (1.0, 1.0)));
    }
}
