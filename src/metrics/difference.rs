//! What a difference between two groups of runs means.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use super::surface::quantile;
use crate::rng::{Key, Purpose};

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation with n − 1; `None` of fewer than two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    variance(values).map(f64::sqrt)
}

fn variance(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    (values.len() > 1).then(|| values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (values.len() - 1) as f64)
}

/// A t-test of two independent groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TTest {
    /// The statistic; positive where the first group's mean is larger.
    pub t: f64,
    /// Degrees of freedom.
    pub freedom: f64,
    /// Two-sided p: the means differ.
    pub p: f64,
    /// One-sided p: the first mean is larger.
    pub p_larger: f64,
}

impl TTest {
    fn of(difference: f64, error: f64, freedom: f64) -> Option<Self> {
        // Groups without any spread leave nothing to measure a difference by.
        if !(error > 0.0 && freedom > 0.0) {
            return None;
        }
        let t = difference / error;
        let distribution = StudentsT::new(0.0, 1.0, freedom).ok()?;
        let beyond = distribution.sf(t.abs());
        Some(Self { t, freedom, p: (2.0 * beyond).min(1.0), p_larger: if t > 0.0 { beyond } else { 1.0 - beyond } })
    }
}

/// Welch's t-test, which does not suppose equal variances; `None` with fewer than two values in a group, or without any spread.
pub fn welch(a: &[f64], b: &[f64]) -> Option<TTest> {
    let (x, y) = (variance(a)? / a.len() as f64, variance(b)? / b.len() as f64);
    let freedom = (x + y) * (x + y) / (x * x / (a.len() - 1) as f64 + y * y / (b.len() - 1) as f64);
    TTest::of(mean(a)? - mean(b)?, (x + y).sqrt(), freedom)
}

/// Student's t-test, which supposes equal variances; `None` as for [`welch`].
pub fn student(a: &[f64], b: &[f64]) -> Option<TTest> {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let freedom = n + m - 2.0;
    let pooled = (variance(a)? * (n - 1.0) + variance(b)? * (m - 1.0)) / freedom;
    TTest::of(mean(a)? - mean(b)?, (pooled * (1.0 / n + 1.0 / m)).sqrt(), freedom)
}

/// Wilcoxon's signed-rank test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedRank {
    /// The smaller of the two sums of ranks.
    pub statistic: f64,
    /// Pairs that differ; the others say nothing and are left out.
    pub pairs: usize,
    /// Two-sided p.
    pub p: f64,
}

/// Pairs up to which the distribution of the sum of ranks is counted out.
const COUNTED: usize = 50;

/// Wilcoxon's signed-rank test of paired differences; `None` if none differs from 0 or one is NaN. Up to 50 pairs p is exact: all signs
/// are equally likely, and the sums of ranks (ties have their mean) are counted out. From there on the normal approximation with the
/// correction for ties, without one for continuity.
pub fn wilcoxon(differences: &[f64]) -> Option<SignedRank> {
    let kept: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    if kept.is_empty() || kept.iter().any(|d| d.is_nan()) {
        return None;
    }
    let pairs = kept.len();
    let ranks = super::ranking::ranks(&kept.iter().map(|d| d.abs()).collect::<Vec<_>>());
    let up: f64 = kept.iter().zip(&ranks).filter(|(d, _)| **d > 0.0).map(|(_, r)| r).sum();
    let statistic = up.min(ranks.iter().sum::<f64>() - up);
    let p = if pairs <= COUNTED { counted(&ranks, statistic) } else { approximated(&ranks, statistic) };
    Some(SignedRank { statistic, pairs, p })
}

/// Twice the chance of a sum of ranks of at most `statistic`.
fn counted(ranks: &[f64], statistic: f64) -> f64 {
    // Mean ranks are multiples of one half. Numbers of ways stay below 2^50, which is exact.
    let doubled: Vec<usize> = ranks.iter().map(|r| (2.0 * r) as usize).collect();
    let mut ways = vec![0.0f64; doubled.iter().sum::<usize>() + 1];
    ways[0] = 1.0;
    let mut most = 0;
    for r in doubled {
        most += r;
        for sum in (r..=most).rev() {
            ways[sum] += ways[sum - r];
        }
    }
    let below: f64 = ways[..=(2.0 * statistic) as usize].iter().sum();
    (2.0 * below / ways.iter().sum::<f64>()).min(1.0)
}

fn approximated(ranks: &[f64], statistic: f64) -> f64 {
    let mean = ranks.iter().sum::<f64>() / 2.0;
    // The sum of squares of mean ranks is smaller by what the correction for ties takes away.
    let variance = ranks.iter().map(|r| r * r).sum::<f64>() / 4.0;
    (2.0 * Normal::standard().cdf((statistic - mean) / variance.sqrt())).min(1.0)
}

/// Resamples of a bootstrap.
const RESAMPLES: u32 = 10_000;

/// The 95 % percentile bootstrap interval of mean(a) − mean(b): both groups are drawn again, each from itself, 10,000 times; `None` with
/// fewer than two values in a group. The same seed gives the same interval.
pub fn bootstrap(a: &[f64], b: &[f64], seed: u32) -> Option<(f64, f64)> {
    if a.len() < 2 || b.len() < 2 {
        return None;
    }
    let mut rng = Key::new(u64::from(seed)).purpose(Purpose::Bootstrap, 0).rng();
    let mut again = |values: &[f64]| {
        let last = values.len() as i64 - 1;
        (0..values.len()).map(|_| values[rng.int(0, last) as usize]).sum::<f64>() / values.len() as f64
    };
    let mut found: Vec<f64> = (0..RESAMPLES).map(|_| again(a) - again(b)).collect();
    found.sort_by(f64::total_cmp);
    Some((quantile(&found, 0.025), quantile(&found, 0.975)))
}

/// Holm's correction of several p-values (S. Holm, Scandinavian Journal of Statistics 6, 1979), in the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut out = vec![0.0; p.len()];
    let mut largest = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[i]).min(1.0);
        out[i] = largest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_tested_is_none() {
        let (one, same, two) = ([0.5], [0.5, 0.5], [0.1, 0.2]);
        assert_eq!((welch(&one, &two), student(&two, &one), bootstrap(&one, &two, 0)), (None, None, None));
        assert_eq!((welch(&same, &same), student(&same, &same)), (None, None));
        assert_eq!((wilcoxon(&[]), wilcoxon(&[0.0, 0.0]), wilcoxon(&[f64::NAN])), (None, None, None));
        assert!(welch(&same, &two).is_some());
        assert_eq!((mean(&[]), deviation(&one)), (None, None));
        assert_eq!(holm(&[]), Vec::<f64>::new());
    }

    #[test]
    fn the_bootstrap_is_seeded_and_near_the_normal_interval() {
        let a: Vec<f64> = (0..40).map(|i| f64::from(i * 7 % 40) / 40.0).collect();
        let b: Vec<f64> = a.iter().map(|v| v - 0.3).collect();
        let (low, high) = bootstrap(&a, &b, 5).unwrap();
        assert_eq!(bootstrap(&a, &b, 5), Some((low, high)));
        assert_ne!(bootstrap(&a, &b, 6), Some((low, high)));
        let n = a.len() as f64;
        // The plug-in variance is what a bootstrap of means has.
        let half = 1.96 * (2.0 * variance(&a).unwrap() * (n - 1.0) / n / n).sqrt();
        assert!((low - (0.3 - half)).abs() < 0.01 && (high - (0.3 + half)).abs() < 0.01, "{low} {high} {half}");
    }

    #[test]
    fn signs_are_counted_out() {
        // Every assignment of signs to ranks with ties, one by one.
        let d = [0.3, -0.1, 0.3, 0.7, -0.2, 0.2, 1.5, 0.9];
        let found = wilcoxon(&d).unwrap();
        let ranks = crate::metrics::ranking::ranks(&d.map(f64::abs));
        let total: f64 = ranks.iter().sum();
        let extreme = (0..1u32 << d.len()).filter(|signs| {
            let up: f64 = ranks.iter().enumerate().filter(|(i, _)| signs >> i & 1 == 1).map(|(_, r)| r).sum();
            up.min(total - up) <= found.statistic
        });
        let p = extreme.count() as f64 / f64::from(1u32 << d.len());
        assert!((found.p - p).abs() < 1e-12, "{} {p}", found.p);
    }
}
