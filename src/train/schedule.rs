//! Learning rate and early stopping as pure functions of the validation losses so far.

use serde::{Deserialize, Serialize};

use crate::config;

/// What decides the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Kind.
    pub schedule: config::Schedule,
    /// Factor of a reduction.
    pub factor: f32,
    /// Epochs between reductions of `step`.
    pub step_epochs: usize,
    /// Epochs that `plateau` waits.
    pub plateau_patience: usize,
    /// Improvement that `plateau` asks for.
    pub min_delta: f32,
    /// Lower bound.
    pub min_rate: f32,
    /// Epochs without a lower loss before training stops.
    pub stop_patience: usize,
}

impl From<&config::Train> for Rules {
    /// Those of the settings.
    fn from(t: &config::Train) -> Self {
        Self {
            schedule: t.schedule,
            factor: t.factor,
            step_epochs: t.step_epochs,
            plateau_patience: t.plateau_patience,
            min_delta: t.min_delta,
            min_rate: t.min_learning_rate,
            stop_patience: t.stop_patience,
        }
    }
}

/// Where a phase stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Learning rate of the current epoch.
    pub rate: f32,
    /// Lowest validation loss so far; `None` before the first epoch.
    pub best: Option<f64>,
    /// Epochs since then.
    pub since_best: usize,
    /// The plateau rule's own best and wait.
    plateau_best: Option<f64>,
    plateau_wait: usize,
    /// Epochs finished.
    pub epochs: usize,
}

impl Standing {
    /// The start of a phase.
    pub fn new(rate: f32) -> Self {
        Self { rate, best: None, since_best: 0, plateau_best: None, plateau_wait: 0, epochs: 0 }
    }

    /// Takes the validation loss of a finished epoch; returns whether it is the lowest so far (strictly).
    pub fn epoch(&mut self, rules: &Rules, loss: f64) -> bool {
        self.epochs += 1;
        let improved = self.best.is_none_or(|b| loss < b);
        if improved {
            self.best = Some(loss);
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
        let lower = |rate: f32| (rate * rules.factor).max(rules.min_rate.min(rate));
        match rules.schedule {
            config::Schedule::Constant => {}
            config::Schedule::Step => {
                if self.epochs.is_multiple_of(rules.step_epochs) {
                    self.rate = lower(self.rate);
                }
            }
            config::Schedule::Plateau => {
                if self.plateau_best.is_none_or(|b| loss < b - f64::from(rules.min_delta)) {
                    self.plateau_best = Some(loss);
                    self.plateau_wait = 0;
                } else {
                    self.plateau_wait += 1;
                    if self.plateau_wait >= rules.plateau_patience {
                        self.rate = lower(self.rate);
                        self.plateau_wait = 0;
                    }
                }
            }
        }
        improved
    }

    /// Whether training has waited long enough for a lower loss.
    pub fn stops(&self, rules: &Rules) -> bool {
        self.since_best >= rules.stop_patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(schedule: config::Schedule) -> Rules {
        Rules { schedule, factor: 0.5, step_epochs: 3, plateau_patience: 2, min_delta: 0.1, min_rate: 0.1, stop_patience: 4 }
    }

    #[test]
    fn step_halves_every_so_many_epochs_and_respects_the_minimum() {
        let r = rules(config::Schedule::Step);
        let mut s = Standing::new(1.0);
        let rates: Vec<f32> = (0..15)
            .map(|_| {
                s.epoch(&r, 1.0);
                s.rate
            })
            .collect();
        assert_eq!(rates, [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.1, 0.1, 0.1, 0.1]);
    }

    #[test]
    fn plateau_waits_for_its_patience_and_ignores_small_gains() {
        let r = rules(config::Schedule::Plateau);
        let mut s = Standing::new(1.0);
        // Best 1.0; two epochs that gain less than min_delta; halved; a real gain resets.
        let rates: Vec<f32> = [1.0, 0.95, 0.94, 0.5, 0.5, 0.5]
            .iter()
            .map(|&l| {
                s.epoch(&r, l);
                s.rate
            })
            .collect();
        assert_eq!(rates, [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]);
    }

    #[test]
    fn stops_after_its_patience_without_a_strictly_lower_loss() {
        let r = rules(config::Schedule::Constant);
        let mut s = Standing::new(1.0);
        assert!(s.epoch(&r, 2.0) && s.epoch(&r, 1.0));
        for i in 0..4 {
            assert!(!s.stops(&r), "stopped after {i}");
            assert!(!s.epoch(&r, 1.0));
        }
        assert!(s.stops(&r));
    }
}
