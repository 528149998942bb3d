//! Repeating a measurement until its noise is small, and what the repeats say.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::gpu::{Context, Program, Timing};

/// Most runs in one sample, however short a run is.
const MOST_RUNS: usize = 4096;
/// By how much the halves of a measurement may differ before it counts as drifting.
const DRIFT: f64 = 0.03;

/// When a measurement is finished.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Half the width of the 95 % interval of the median, relative to the median, that is good enough.
    pub precision: f64,
    /// Fewest samples, unless the time is up.
    pub least: usize,
    /// Most samples.
    pub most: usize,
    /// Time for all samples together; two are taken whatever they take.
    pub limit: Duration,
    /// Time of running before the first sample.
    pub warm_up: Duration,
    /// What a sample takes at least: short programs are run several times in it.
    pub sample: Duration,
}

impl Rules {
    /// 1 % of noise, 5 to 200 samples within `limit`.
    pub fn within(limit: Duration) -> Self {
        Self {
            precision: 0.01,
            least: 5,
            most: 200,
            limit,
            warm_up: (limit / 20).min(Duration::from_millis(200)),
            sample: (limit / 50).clamp(Duration::from_millis(1), Duration::from_millis(20)),
        }
    }

    /// Rough numbers soon: 5 % of noise, 3 to 20 samples within a fraction of a second.
    pub fn quick() -> Self {
        Self { precision: 0.05, least: 3, most: 20, ..Self::within(Duration::from_millis(300)) }
    }
}

impl Default for Rules {
    /// Within three seconds.
    fn default() -> Self {
        Self::within(Duration::from_secs(3))
    }
}

/// What samples of a time, in seconds, say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Median.
    pub median: f64,
    /// Minimum.
    pub min: f64,
    /// Lower end of the 95 % interval of the median.
    pub low: f64,
    /// Upper end of the 95 % interval of the median.
    pub high: f64,
    /// Interquartile range, relative to the median.
    pub spread: f64,
    /// Number of samples.
    pub count: usize,
}

impl Stats {
    /// Of at least one sample; they must be finite.
    pub fn of(samples: &[f64]) -> Self {
        let mut s = samples.to_vec();
        s.sort_by(f64::total_cmp);
        let n = s.len();
        if n == 0 {
            return Self { median: f64::NAN, min: f64::NAN, low: f64::NAN, high: f64::NAN, spread: f64::NAN, count: 0 };
        }
        let quantile = |q: f64| {
            let at = q * (n - 1) as f64;
            let (i, rest) = (at.floor() as usize, at.fract());
            s[i] + rest * (s[(i + 1).min(n - 1)] - s[i])
        };
        let median = quantile(0.5);
        // How many samples lie below the median is binomial: order statistics this far from the middle hold it with
        // a probability of 95 %. Few samples have no such ones: then the extremes.
        let reach = 0.98 * (n as f64).sqrt();
        let rank = (n as f64 / 2.0 - reach).floor().max(0.0) as usize;
        let spread = if median > 0.0 { (quantile(0.75) - quantile(0.25)) / median } else { 0.0 };
        Self { median, min: s[0], low: s[rank.min(n / 2)], high: s[n - 1 - rank.min((n - 1) / 2)], spread, count: n }
    }

    /// Half the width of the 95 % interval of the median, relative to the median; 0 for a median of 0.
    pub fn noise(&self) -> f64 {
        if self.median > 0.0 { (self.high - self.low) / 2.0 / self.median } else { 0.0 }
    }
}

/// The times of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Seconds of a run on the device, where it has timestamps.
    pub device: Option<Stats>,
    /// Seconds of a run from submission to idle device.
    pub wall: Stats,
    /// Runs in each sample.
    pub runs: usize,
    /// Whether later samples differ from earlier ones by more than noise: clocks, heat, other load.
    pub drift: bool,
    /// Whether the time was up before the noise was small.
    pub unstable: bool,
}

impl Measurement {
    /// The time that counts: the device's where it is known.
    pub fn time(&self) -> &Stats {
        self.device.as_ref().unwrap_or(&self.wall)
    }
}

/// Whether `samples` are enough after `spent` seconds.
fn settled(rules: &Rules, samples: &[f64], spent: f64) -> bool {
    let n = samples.len();
    if n >= rules.most || (n >= 2 && spent >= rules.limit.as_secs_f64()) {
        return true;
    }
    n >= rules.least && Stats::of(samples).noise() <= rules.precision
}

/// Whether the second half of `samples` is unlike the first: medians further apart than 3 % and than both halves' noise.
fn drifts(samples: &[f64]) -> bool {
    if samples.len() < 6 {
        return false;
    }
    let (a, b) = samples.split_at(samples.len() / 2);
    let (a, b) = (Stats::of(a), Stats::of(b));
    let apart = a.high < b.low || b.high < a.low;
    apart && (a.median - b.median).abs() > DRIFT * a.median.min(b.median)
}

/// Takes samples with `sample`, which runs something `runs` times, until `rules` are content.
///
/// # Errors
/// What `sample` reports.
pub fn repeat(rules: &Rules, runs: usize, sample: impl FnMut() -> Result<Timing>) -> Result<Measurement> {
    repeat_after(rules, runs, None, sample)
}

/// As [`repeat`], with a sample that was taken already.
fn repeat_after(rules: &Rules, runs: usize, mut first: Option<Timing>, mut sample: impl FnMut() -> Result<Timing>) -> Result<Measurement> {
    let (mut device, mut wall, mut spent) = (Vec::new(), Vec::new(), 0.0);
    loop {
        let t = first.take().map_or_else(&mut sample, Ok)?;
        device.extend(t.device.filter(|d| *d > 0.0));
        wall.push(t.wall);
        spent += t.wall * runs as f64;
        // A device whose timestamps fail now and then is timed by the wall.
        let counted = if device.len() == wall.len() { &device } else { &wall };
        if settled(rules, counted, spent) {
            let stats = Stats::of(counted);
            return Ok(Measurement {
                device: (device.len() == wall.len()).then(|| Stats::of(&device)),
                wall: Stats::of(&wall),
                runs,
                drift: drifts(counted),
                unstable: counted.len() < rules.least || stats.noise() > rules.precision,
            });
        }
    }
}

/// Times `program`: warm-up, then samples until `rules` are content. Its buffers keep what the last run left.
///
/// # Errors
/// [`crate::error::Error::Gpu`] when the device has failed.
pub fn measure(ctx: &Context, program: &Program, rules: &Rules) -> Result<Measurement> {
    let first = program.time(ctx, 1)?;
    // What takes most of the time by itself has no cold start to speak of.
    if first.wall >= rules.limit.as_secs_f64() / 2.0 {
        return repeat_after(rules, 1, Some(first), || program.time(ctx, 1));
    }
    let (mut spent, mut last) = (0.0, first.wall);
    while spent + last < rules.warm_up.as_secs_f64() {
        let runs = ((rules.warm_up.as_secs_f64() - spent) / last.max(1e-7)).clamp(1.0, 64.0) as usize;
        last = program.time(ctx, runs)?.wall;
        spent += last * runs as f64;
    }
    let runs = ((rules.sample.as_secs_f64() / last.max(1e-9)).ceil() as usize).clamp(1, MOST_RUNS);
    repeat(rules, runs, || program.time(ctx, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(amplitude: f64) -> impl FnMut() -> Result<Timing> {
        let mut rng = crate::rng::Key::new(5).rng();
        move || {
            let t = 1e-3 * (1.0 + amplitude * (f64::from(rng.unit()) - 0.5));
            Ok(Timing { device: Some(t), wall: 2.0 * t })
        }
    }

    #[test]
    fn statistics_are_those_of_the_samples() {
        let s = Stats::of(&[5.0, 1.0, 2.0, 4.0, 3.0]);
        assert_eq!((s.median, s.min, s.low, s.high, s.count), (3.0, 1.0, 1.0, 5.0, 5));
        assert!((s.spread - 2.0 / 3.0).abs() < 1e-12 && (s.noise() - 2.0 / 3.0).abs() < 1e-12);
        let s = Stats::of(&(0..100).map(f64::from).collect::<Vec<_>>());
        assert_eq!((s.median, s.low, s.high), (49.5, 40.0, 59.0));
        assert_eq!(Stats::of(&[2.0]), Stats { median: 2.0, min: 2.0, low: 2.0, high: 2.0, spread: 0.0, count: 1 });
        assert_eq!(Stats::of(&[1.0, 2.0]).median, 1.5);
        assert_eq!(Stats::of(&[]).count, 0);
    }

    #[test]
    fn the_interval_holds_the_median_in_most_repeats() {
        let mut rng = crate::rng::Key::new(9).rng();
        for n in [6, 15, 40] {
            let held = (0..400)
                .filter(|_| {
                    let s = Stats::of(&(0..n).map(|_| f64::from(rng.unit())).collect::<Vec<_>>());
                    s.low <= 0.5 && 0.5 <= s.high
                })
                .count();
            assert!(held > 368, "{n}: {held} of 400");
        }
    }

    #[test]
    fn quiet_samples_stop_early_and_noisy_ones_late() {
        let rules = Rules::default();
        let quiet = repeat(&rules, 1, noisy(0.001)).unwrap();
        assert_eq!((quiet.wall.count, quiet.unstable, quiet.drift), (5, false, false));
        assert!((quiet.wall.median - 2e-3).abs() < 1e-5 && (quiet.time().median - 1e-3).abs() < 1e-5);
        let middling = repeat(&rules, 1, noisy(0.1)).unwrap();
        assert!(middling.wall.count > 10 && middling.wall.count < 200 && !middling.unstable, "{middling:?}");
        let noisy = repeat(&rules, 1, noisy(1.9)).unwrap();
        assert!(noisy.wall.count == 200 && noisy.unstable, "{noisy:?}");
    }

    #[test]
    fn the_time_limit_ends_it_and_is_admitted() {
        let rules = Rules::within(Duration::from_millis(500));
        let m = repeat(&rules, 100, noisy(0.0)).unwrap();
        assert_eq!((m.wall.count, m.runs, m.unstable), (3, 100, true), "0.2 s a sample");
        let m = repeat(&rules, 100_000, noisy(0.0)).unwrap();
        assert_eq!((m.wall.count, m.unstable), (2, true));
    }

    #[test]
    fn drift_is_seen_and_noise_is_no_drift() {
        let steps: Vec<f64> = (0..20).map(|i| if i < 10 { 1.0 } else { 1.1 } + 0.001 * f64::from(i % 3)).collect();
        assert!(drifts(&steps));
        let back: Vec<f64> = steps.iter().rev().copied().collect();
        assert!(drifts(&back));
        let noise: Vec<f64> = (0..20).map(|i| 1.0 + 0.1 * f64::from(i * 7 % 5)).collect();
        assert!(!drifts(&noise));
        let small: Vec<f64> = (0..20).map(|i| 1.0 + 0.001 * f64::from(i)).collect();
        assert!(!drifts(&small));
        assert!(!drifts(&[1.0, 2.0, 3.0]));
    }

    #[test]
    fn without_timestamps_the_wall_counts() {
        let m = repeat(&Rules::default(), 1, || Ok(Timing { device: None, wall: 0.5 })).unwrap();
        assert_eq!((m.device, m.time().median), (None, 0.5));
    }
}
