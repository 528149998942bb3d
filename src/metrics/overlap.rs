//! Overlap of a predicted mask with the true one.

/// Voxels of a class, in the prediction, in the truth, and in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In both.
    pub both: u64,
    /// In the prediction.
    pub predicted: u64,
    /// In the truth.
    pub truth: u64,
}

impl Counts {
    /// Adds the voxels of another part.
    pub fn add(&mut self, other: &Self) {
        self.both += other.both;
        self.predicted += other.predicted;
        self.truth += other.truth;
    }

    /// Dice 2|A∩B| / (|A| + |B|); `None` where both are empty.
    pub fn dice(&self) -> Option<f64> {
        let sum = self.predicted + self.truth;
        (sum > 0).then(|| 2.0 * self.both as f64 / sum as f64)
    }

    /// Intersection over union; `None` where both are empty.
    pub fn iou(&self) -> Option<f64> {
        let union = self.predicted + self.truth - self.both;
        (union > 0).then(|| self.both as f64 / union as f64)
    }

    /// Share of the predicted voxels that are true; `None` without a prediction.
    pub fn precision(&self) -> Option<f64> {
        (self.predicted > 0).then(|| self.both as f64 / self.predicted as f64)
    }

    /// Share of the true voxels that are predicted; `None` without a truth.
    pub fn recall(&self) -> Option<f64> {
        (self.truth > 0).then(|| self.both as f64 / self.truth as f64)
    }
}

/// Counts of every class from two label maps; values from `classes` on count for nothing.
///
/// # Panics
/// If the maps differ in length.
pub fn counts(classes: usize, predicted: &[u32], truth: &[u32]) -> Vec<Counts> {
    assert_eq!(predicted.len(), truth.len(), "label maps of one grid");
    let mut out = vec![Counts::default(); classes];
    for (&p, &t) in predicted.iter().zip(truth) {
        let (p, t) = (p as usize, t as usize);
        if let Some(c) = out.get_mut(p) {
            c.predicted += 1;
            c.both += u64::from(p == t);
        }
        if let Some(c) = out.get_mut(t) {
            c.truth += 1;
        }
    }
    out
}

/// Thresholds of [`Thresholds::mean_iou`].
const STEPS: usize = 10;

/// The published training metric: for t = 0.50, 0.55 … 0.95 a voxel is predicted where p > t; `IoU` of foreground and background, each
/// pooled over everything seen, their mean, and the mean over the ten t (method reference, section 8).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thresholds {
    foreground: [Counts; STEPS],
    background: [Counts; STEPS],
}

impl Thresholds {
    /// Takes probabilities of the foreground and the truth (not 0: foreground).
    pub fn take(&mut self, probability: &[f32], truth: &[bool]) {
        for (&p, &t) in probability.iter().zip(truth) {
            for k in 0..STEPS {
                let found = f64::from(p) > 0.5 + 0.05 * k as f64;
                let (f, b) = (&mut self.foreground[k], &mut self.background[k]);
                f.predicted += u64::from(found);
                f.truth += u64::from(t);
                f.both += u64::from(found && t);
                b.predicted += u64::from(!found);
                b.truth += u64::from(!t);
                b.both += u64::from(!found && !t);
            }
        }
    }

    /// `IoU` of the foreground at p > 0.5 over everything seen; `None` where neither has any.
    pub fn pooled_iou(&self) -> Option<f64> {
        self.foreground[0].iou()
    }

    /// The mean over thresholds and both classes; a class that neither has counts as 1.
    pub fn mean_iou(&self) -> f64 {
        let pair = |k: usize| f64::midpoint(self.foreground[k].iou().unwrap_or(1.0), self.background[k].iou().unwrap_or(1.0));
        (0..STEPS).map(pair).sum::<f64>() / STEPS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_ratios() {
        let c = counts(3, &[0, 1, 1, 2, 7], &[0, 1, 2, 2, 1]);
        assert_eq!(c[1], Counts { both: 1, predicted: 2, truth: 2 });
        assert_eq!((c[1].dice(), c[1].iou(), c[2].precision(), c[2].recall()), (Some(0.5), Some(1.0 / 3.0), Some(1.0), Some(0.5)));
        assert_eq!((Counts::default().dice(), Counts::default().iou()), (None, None));
    }

    #[test]
    fn thresholds_follow_the_definition() {
        let (p, t) = ([0.2f32, 0.52, 0.72, 0.97, 0.5], [false, true, false, true, true]);
        let mut m = Thresholds::default();
        m.take(&p, &t);
        // At 0.5: predicted 3, true 3, both 2.
        assert_eq!(m.pooled_iou(), Some(0.5));
        let want: f64 = (0..10)
            .map(|k| {
                let th = 0.5 + 0.05 * f64::from(k);
                let found: Vec<bool> = p.iter().map(|&p| f64::from(p) > th).collect();
                let iou = |v: bool| {
                    let both = found.iter().zip(&t).filter(|(a, b)| **a == v && **b == v).count() as f64;
                    let any = found.iter().zip(&t).filter(|(a, b)| **a == v || **b == v).count() as f64;
                    both / any
                };
                f64::midpoint(iou(true), iou(false))
            })
            .sum::<f64>()
            / 10.0;
        assert!((m.mean_iou() - want).abs() < 1e-12);
        assert_eq!(Thresholds::default().mean_iou(), 1.0);
    }
}
