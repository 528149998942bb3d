//! Two results side by side: what became faster, what slower.

use serde::Serialize;

use super::measure::Stats;
use super::result::{Document, Row};
use crate::error::{Error, Result};

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Surely faster than the threshold asks.
    Faster,
    /// Surely slower than the threshold allows.
    Slower,
    /// Surely within the threshold.
    Same,
    /// The noise reaches over the threshold.
    Unclear,
    /// The outputs became wrong.
    Wrong,
    /// Not among the second result's.
    Gone,
    /// Not among the first result's.
    New,
}

impl Verdict {
    /// As tables say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "SLOWER",
            Self::Same => "same",
            Self::Unclear => "unclear",
            Self::Wrong => "WRONG",
            Self::Gone => "gone",
            Self::New => "new",
        }
    }
}

/// One measurement in both results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Operation, pass, shape, storage and layer.
    pub what: String,
    /// Its variants, one where they agree.
    pub variant: String,
    /// Seconds in the first result.
    pub before: Option<f64>,
    /// Seconds in the second result.
    pub after: Option<f64>,
    /// Speed of the second relative to the first: 2 is twice as fast.
    pub speed: Option<f64>,
    /// What became of it.
    pub verdict: Verdict,
}

/// A threshold as `3%` or `0.03`.
///
/// # Errors
/// [`Error::Usage`] for anything else.
pub fn threshold(text: &str) -> Result<f64> {
    let (number, factor) = text.trim().strip_suffix('%').map_or((text.trim(), 1.0), |n| (n.trim(), 0.01));
    number
        .parse::<f64>()
        .ok()
        .map(|v| v * factor)
        .filter(|v| v.is_finite() && *v >= 0.0 && *v < 10.0)
        .ok_or_else(|| Error::Usage(format!("--threshold {text}: expected a part of the time, as in 3% or 0.03")))
}

/// How times `a` and then `b` compare, where less than `threshold` counts as nothing.
pub fn judge(a: &Stats, b: &Stats, threshold: f64) -> Verdict {
    // The ratios that the intervals of both medians allow.
    let (low, high) = (b.low / a.high, b.high / a.low);
    let (fast, slow) = (1.0 / (1.0 + threshold), 1.0 + threshold);
    if !(low.is_finite() && high.is_finite()) {
        Verdict::Unclear
    } else if low > slow {
        Verdict::Slower
    } else if high < fast {
        Verdict::Faster
    } else if low >= fast && high <= slow {
        Verdict::Same
    } else {
        Verdict::Unclear
    }
}

fn what(r: &Row) -> String {
    let layer = if r.layer.is_empty() { String::new() } else { format!(" ({})", r.layer) };
    format!("{} {} {} {}{layer}", r.op, r.pass, r.shape, r.dtype)
}

/// Every measurement of `a` and `b`. Rows are matched by operation, pass, shape, storage, layer and variant; those
/// whose variant has no partner are matched with the fastest of what is left of the other's, so that another default
/// or another engine can be compared.
pub fn compare(a: &Document, b: &Document, threshold: f64) -> Vec<Line> {
    let mut left: Vec<Option<&Row>> = b.rows.iter().map(Some).collect();
    let mut pairs: Vec<(Option<&Row>, Option<&Row>)> = Vec::new();
    let mut single: Vec<usize> = Vec::new();
    for (i, row) in a.rows.iter().enumerate() {
        let exact = left.iter().position(|o| o.is_some_and(|o| what(o) == what(row) && o.variant == row.variant));
        pairs.push((Some(row), exact.and_then(|k| left[k].take())));
        if exact.is_none() {
            single.push(i);
        }
    }
    // Another engine names no layers: there the layer does not count.
    let engines = a.environment.engine != b.environment.engine;
    let alike =
        |x: &Row, y: &Row| (&x.op, &x.pass, &x.shape, &x.dtype) == (&y.op, &y.pass, &y.shape, &y.dtype) && (engines || x.layer == y.layer);
    let seconds = |r: &Row| r.time().map_or(f64::INFINITY, |t| t.median);
    // The fastest first, so that the best of one side meets the best of the other.
    single.sort_by(|&x, &y| seconds(&a.rows[x]).total_cmp(&seconds(&a.rows[y])));
    for i in single {
        let row = &a.rows[i];
        let candidates = (0..left.len()).filter(|&k| left[k].is_some_and(|o| alike(o, row)));
        if let Some(k) =
            candidates.min_by(|&x, &y| left[x].map_or(f64::INFINITY, seconds).total_cmp(&left[y].map_or(f64::INFINITY, seconds)))
        {
            pairs[i].1 = left[k].take();
        }
    }
    pairs.extend(left.into_iter().flatten().map(|row| (None, Some(row))));
    pairs.iter().map(|&(x, y)| line(x, y, threshold)).collect()
}

fn line(a: Option<&Row>, b: Option<&Row>, threshold: f64) -> Line {
    let (ta, tb) = (a.and_then(Row::time), b.and_then(Row::time));
    // Device and wall times are not comparable: where one side has no device time, the wall decides.
    let (ta, tb) = match (a, b) {
        (Some(a), Some(b)) if a.device_s.is_some() != b.device_s.is_some() => (a.wall_s.as_ref().or(ta), b.wall_s.as_ref().or(tb)),
        _ => (ta, tb),
    };
    let verdict = match (a, b, ta, tb) {
        (Some(_), None, ..) => Verdict::Gone,
        (None, Some(_), ..) => Verdict::New,
        (_, Some(b), ..) if b.failure().is_some() => Verdict::Wrong,
        (_, _, Some(ta), Some(tb)) => judge(ta, tb, threshold),
        (_, _, Some(_), None) => Verdict::Gone,
        (_, _, None, Some(_)) => Verdict::New,
        _ => Verdict::Unclear,
    };
    let variant = match (a, b) {
        (Some(a), Some(b)) if a.variant != b.variant => format!("{} → {}", a.variant, b.variant),
        (Some(r), _) | (None, Some(r)) => r.variant.clone(),
        (None, None) => String::new(),
    };
    let (before, after) = (ta.map(|t| t.median), tb.map(|t| t.median));
    let speed = before.zip(after).map(|(a, b)| a / b).filter(|s| s.is_finite());
    Line { what: a.or(b).map(what).unwrap_or_default(), variant, before, after, speed, verdict }
}

/// Whether one of the measurements became worse.
pub fn regressed(lines: &[Line]) -> bool {
    lines.iter().any(|l| matches!(l.verdict, Verdict::Slower | Verdict::Wrong))
}

/// How many of each verdict, in a sentence.
pub fn summary(lines: &[Line]) -> String {
    use Verdict::{Faster, Gone, New, Same, Slower, Unclear, Wrong};
    let words =
        [(Faster, "faster"), (Slower, "slower"), (Same, "the same"), (Unclear, "unclear"), (Wrong, "wrong"), (Gone, "gone"), (New, "new")];
    let count = |v: Verdict| lines.iter().filter(|l| l.verdict == v).count();
    let parts: Vec<String> = words.iter().filter(|w| count(w.0) > 0).map(|w| format!("{} {}", count(w.0), w.1)).collect();
    let speeds: Vec<f64> = lines.iter().filter_map(|l| l.speed).collect();
    let mean = (speeds.iter().map(|s| s.ln()).sum::<f64>() / speeds.len().max(1) as f64).exp();
    let mean = if speeds.is_empty() { String::new() } else { format!("; speed {mean:.3} in the geometric mean of {}", speeds.len()) };
    format!("{} compared: {}{mean}", lines.len(), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::result::Check;
    use super::super::result::tests::{document, row};
    use super::*;

    fn verdicts(a: Vec<Row>, b: Vec<Row>, t: f64) -> Vec<Verdict> {
        compare(&document("semgen", a), &document("semgen", b), t).iter().map(|l| l.verdict).collect()
    }

    #[test]
    fn verdicts_follow_the_threshold_and_the_noise() {
        use Verdict::{Faster, Same, Slower, Unclear};
        for (before, after, noise, want) in [
            (1.0, 1.1, 0.005, Slower),
            (1.0, 0.9, 0.005, Faster),
            (1.0, 1.01, 0.005, Same),
            (1.0, 0.99, 0.005, Same),
            (1.0, 1.03, 0.01, Unclear),
            (1.0, 1.1, 0.06, Unclear),
            (1.0, 1.0, 0.1, Unclear),
            (1.0, 2.0, 0.1, Slower),
        ] {
            let (a, b) = (row("x", "v", before, noise), row("x", "v", after, noise));
            assert_eq!(verdicts(vec![a], vec![b], 0.03), [want], "{before} {after} {noise}");
        }
        assert_eq!(verdicts(vec![row("x", "v", 1.0, 0.001)], vec![row("x", "v", 1.02, 0.001)], 0.01), [Slower]);
    }

    #[test]
    fn missing_new_and_wrong_rows_are_named() {
        let wrong = Row {
            device_s: None,
            wall_s: None,
            check: Some(Check { error: None, tolerance: 1e-5, elements: 1, failure: Some("bad".into()) }),
            ..row("b", "v", 1.0, 0.0)
        };
        let (a, b) = (vec![row("a", "v", 1.0, 0.0), row("b", "v", 1.0, 0.0)], vec![wrong, row("c", "v", 1.0, 0.0)]);
        let lines = compare(&document("semgen", a), &document("semgen", b), 0.03);
        assert_eq!(lines.iter().map(|l| l.verdict).collect::<Vec<_>>(), [Verdict::Gone, Verdict::Wrong, Verdict::New]);
        assert!(lines[0].what.starts_with("a forward 1,8,8,4,4,4 f32") && regressed(&lines));
        assert_eq!(summary(&lines), "3 compared: 1 wrong, 1 gone, 1 new");
        assert!(!regressed(&lines[..1]));
    }

    #[test]
    fn other_variants_and_engines_are_compared_by_their_best() {
        let a = vec![row("x", "tile", 2.0, 0.0), row("x", "plain", 9.0, 0.0)];
        let b = vec![row("x", "coop", 1.0, 0.0), row("x", "plain", 9.0, 0.0)];
        let lines = compare(&document("semgen", a.clone()), &document("semgen", b), 0.03);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].variant.as_str(), lines[0].verdict, lines[0].speed), ("tile → coop", Verdict::Faster, Some(2.0)));
        assert_eq!(lines[1].verdict, Verdict::Same);
        let mut torch = row("x", "torch", 1.0, 0.0);
        torch.device_s = None;
        let named = a.into_iter().map(|r| Row { layer: "down".into(), ..r }).collect();
        let lines = compare(&document("semgen", named), &document("torch", vec![torch]), 0.03);
        assert_eq!(lines.iter().map(|l| l.verdict).collect::<Vec<_>>(), [Verdict::Faster, Verdict::Gone]);
        assert!(summary(&lines).contains("speed 2.000"));
    }

    #[test]
    fn thresholds_are_parts_or_percent() {
        assert_eq!(threshold("0.05").unwrap(), 0.05);
        assert!((threshold("3%").unwrap() - 0.03).abs() < 1e-12);
        for bad in ["", "x", "-1%", "nan", "2000%"] {
            assert!(threshold(bad).unwrap_err().to_string().contains("as in 3%"), "{bad}");
        }
    }
}
