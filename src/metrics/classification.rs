//! How good decisions among classes are: the confusion table and what follows from it.

/// Decisions against the truth, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// `counts[t][p]`: cases of class `t` that were taken for class `p`.
    pub counts: Vec<Vec<u64>>,
}

/// One class against the rest; a share of nothing is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OneClass {
    /// Cases of the class.
    pub cases: u64,
    /// Share of the class's cases that were found (recall).
    pub sensitivity: Option<f64>,
    /// Share of the other cases that were not taken for it.
    pub specificity: Option<f64>,
    /// Share of what was taken for it that is of it.
    pub precision: Option<f64>,
    /// 2TP / (2TP + FP + FN).
    pub f1: Option<f64>,
}

impl Confusion {
    /// Counts decisions; both lists hold numbers of classes.
    ///
    /// # Panics
    /// If the lists differ in length or hold numbers from `classes` on.
    pub fn of(classes: usize, predicted: &[usize], truth: &[usize]) -> Self {
        assert_eq!(predicted.len(), truth.len(), "one decision a case");
        let mut counts = vec![vec![0; classes]; classes];
        for (&p, &t) in predicted.iter().zip(truth) {
            counts[t][p] += 1;
        }
        Self { counts }
    }

    /// Number of cases.
    pub fn cases(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Share of right decisions.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.right(), self.cases())
    }

    fn right(&self) -> u64 {
        (0..self.counts.len()).map(|c| self.counts[c][c]).sum()
    }

    /// Mean sensitivity of the classes that have cases.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        mean(self.classes().filter_map(|c| c.sensitivity))
    }

    /// Mean F1 of the classes that have cases or were predicted.
    pub fn macro_f1(&self) -> Option<f64> {
        mean(self.classes().filter_map(|c| c.f1))
    }

    /// Every class against the rest.
    pub fn classes(&self) -> impl Iterator<Item = OneClass> + '_ {
        (0..self.counts.len()).map(|c| self.one(c))
    }

    /// Class `c` against the rest.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn one(&self, c: usize) -> OneClass {
        let found = self.counts[c][c];
        let cases: u64 = self.counts[c].iter().sum();
        let taken: u64 = self.counts.iter().map(|row| row[c]).sum();
        let others = self.cases() - cases;
        let (missed, wrong) = (cases - found, taken - found);
        OneClass {
            cases,
            sensitivity: share(found, cases),
            specificity: share(others - wrong, others),
            precision: share(found, taken),
            f1: share(2 * found, 2 * found + wrong + missed),
        }
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(s, n), v| (s + v, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_nothing_are_none() {
        let c = Confusion::of(3, &[0, 0], &[0, 0]);
        assert_eq!((c.accuracy(), c.balanced_accuracy(), c.macro_f1()), (Some(1.0), Some(1.0), Some(1.0)));
        assert_eq!(c.one(1), OneClass { cases: 0, specificity: Some(1.0), ..OneClass::default() });
        assert_eq!(c.one(0).specificity, None);
        assert_eq!(Confusion::of(2, &[], &[]).accuracy(), None);
    }
}
