//! Detection of nodules: the free-response ROC curve of the LUNA16 challenge.
//!
//! A mark hits a nodule if it lies nearer to the nodule's centre than its radius. A nodule has the largest probability of the marks that
//! hit it; the other hits count for nothing. A mark that hits no nodule is a false positive, unless it hits a finding that is to be
//! ignored. At most [`MARKS`] marks of a scan count, the most probable ones. Between operating points the curve is linear. The rules are
//! those of the challenge's evaluation script (A. A. A. Setio et al., Medical Image Analysis 42, 2017).

use std::collections::BTreeMap;

/// False positives a scan at which the competition performance metric takes the sensitivity.
pub const RATES: [f64; 7] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
/// Marks of a scan that count.
pub const MARKS: usize = 100;
/// Diameter in millimetres of findings that have none.
const UNKNOWN_DIAMETER: f64 = 10.0;

/// A place that was said to be a nodule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// World coordinates in millimetres.
    pub place: [f64; 3],
    /// How sure.
    pub probability: f64,
}

/// A nodule, or something to be ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// Centre in millimetres.
    pub place: [f64; 3],
    /// Diameter in millimetres; negative if it is not known, which stands for 10.
    pub diameter: f64,
    /// Marks on it are neither right nor wrong.
    pub ignored: bool,
}

impl Finding {
    fn hit(&self, mark: &Mark) -> bool {
        let diameter = if self.diameter < 0.0 { UNKNOWN_DIAMETER } else { self.diameter };
        let squared: f64 = (0..3).map(|a| (self.place[a] - mark.place[a]).powi(2)).sum();
        squared < (diameter / 2.0).powi(2)
    }
}

/// One scan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// What was said.
    pub marks: Vec<Mark>,
    /// What is there.
    pub findings: Vec<Finding>,
}

/// A free-response ROC curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Froc {
    /// Scans.
    pub scans: usize,
    /// Nodules.
    pub nodules: usize,
    /// Nodules that were hit by a mark of any probability.
    pub hit: usize,
    /// Marks that hit nothing.
    pub false_positives: usize,
    /// False positives a scan, sensitivity and the least probability, from the strictest threshold on; begins with 0, 0 and infinity.
    pub curve: Vec<(f64, f64, f64)>,
}

impl Froc {
    /// Of all scans of a set, also those without marks or findings; `None` without scans or nodules, or when a number is NaN.
    pub fn of(scans: &BTreeMap<String, Scan>) -> Option<Self> {
        // Probability, and whether it is that of a nodule.
        let mut scored: Vec<(f64, bool)> = Vec::new();
        let mut nodules = 0;
        for scan in scans.values() {
            let marks = counting(&scan.marks);
            let nan = |m: &Mark| m.probability.is_nan() || m.place.iter().any(|v| v.is_nan());
            if marks.iter().any(nan) || scan.findings.iter().any(|f| f.diameter.is_nan() || f.place.iter().any(|v| v.is_nan())) {
                return None;
            }
            let mut used = vec![false; marks.len()];
            for finding in &scan.findings {
                nodules += usize::from(!finding.ignored);
                let mut best: Option<f64> = None;
                for (mark, used) in marks.iter().zip(&mut used).filter(|(m, _)| finding.hit(m)) {
                    *used = true;
                    best = Some(best.map_or(mark.probability, |b| b.max(mark.probability)));
                }
                scored.extend(best.filter(|_| !finding.ignored).map(|p| (p, true)));
            }
            scored.extend(marks.iter().zip(used).filter(|(_, used)| !used).map(|(m, _)| (m.probability, false)));
        }
        if nodules == 0 || scans.is_empty() {
            return None;
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut hit, mut wrong) = (0, 0);
        let mut curve = vec![(0.0, 0.0, f64::INFINITY)];
        for tied in scored.chunk_by(|a, b| a.0 == b.0) {
            let right = tied.iter().filter(|s| s.1).count();
            hit += right;
            wrong += tied.len() - right;
            curve.push((wrong as f64 / scans.len() as f64, hit as f64 / nodules as f64, tied[0].0));
        }
        Some(Self { scans: scans.len(), nodules, hit, false_positives: wrong, curve })
    }

    /// The sensitivity at so many false positives a scan: linear between the curve's points, the last one's beyond them.
    pub fn sensitivity(&self, rate: f64) -> f64 {
        let next = self.curve.partition_point(|p| p.0 <= rate);
        let (x0, y0, _) = self.curve[next - 1];
        match self.curve.get(next) {
            Some(&(x1, y1, _)) => y0 + (y1 - y0) * (rate - x0) / (x1 - x0),
            None => y0,
        }
    }

    /// The competition performance metric: the mean sensitivity at the seven [`RATES`].
    pub fn cpm(&self) -> f64 {
        RATES.iter().map(|&r| self.sensitivity(r)).sum::<f64>() / RATES.len() as f64
    }
}

/// The marks that count: all, or where there are too many those more probable than the first one too many.
fn counting(marks: &[Mark]) -> Vec<Mark> {
    let mut sorted = marks.to_vec();
    sorted.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    if let Some(least) = sorted.get(MARKS).map(|m| m.probability) {
        sorted.retain(|m| m.probability > least);
    }
    sorted
}
