//! The measured search behind the choice of variants.
//!
//! For every class of shapes that a network needs, each variant that can do it is compiled, compared with the f64
//! reference on the device, and timed; the fastest right one is kept in the table of [`crate::plan::tuning`]. What
//! takes most of a step comes first, and what has been found is saved at once, so that a search may end at any time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::conv::convolution;
use super::measure::Rules;
use super::op::{self, Prepared};
use crate::error::{Error, Result};
use crate::gpu::{Context, Kind};
use crate::kernels::conv3d::{Problem, Variant};
use crate::plan::Plan;
use crate::plan::tuning::{Candidate, Entry, Tuning};

/// By how much another variant must be faster than the default, so that noise does not choose.
const MARGIN: f64 = 0.02;
/// A variant whose first run takes so many times the best one's is not repeated.
const HOPELESS: f64 = 2.5;
/// Time for repeating one variant.
const REPEAT: Duration = Duration::from_millis(600);

/// A class of shapes that some plan asks a variant for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Need {
    /// Its key.
    pub key: String,
    /// Layers that ask, `phase: layer` each.
    pub layers: Vec<String>,
    /// Multiply-adds × 2 of one use.
    pub flops: u64,
    /// Uses in a step.
    pub uses: u64,
}

/// What `plans` (each with the name of its phase) need, most expensive first.
pub fn needs(plans: &[(&str, &Plan)]) -> Vec<Need> {
    let mut found: BTreeMap<String, Need> = BTreeMap::new();
    for (phase, plan) in plans {
        for op in &plan.ops {
            for key in &op.keys {
                let layer = format!("{phase}: {}", op.label);
                let need = found.entry(key.clone()).or_insert_with(|| {
                    let flops = Problem::parse(key).map_or(0, |p| p.geom.batch as u64 * p.geom.flops_per_sample(p.source.channels));
                    Need { key: key.clone(), layers: Vec::new(), flops, uses: 0 }
                });
                need.uses += 1;
                if !need.layers.contains(&layer) {
                    need.layers.push(layer);
                }
            }
        }
    }
    let mut out: Vec<Need> = found.into_values().collect();
    out.sort_by(|a, b| (b.flops * b.uses).cmp(&(a.flops * a.uses)).then_with(|| a.key.cmp(&b.key)));
    out
}

/// What happens during a search.
#[derive(Debug)]
pub enum Event<'a> {
    /// A class of shapes is measured now.
    Begun(&'a Need),
    /// This was found for it.
    Found(&'a Need, &'a Entry),
    /// It cannot be measured, and why.
    Skipped(&'a Need, String),
}

/// How a search ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Classes measured now.
    pub measured: usize,
    /// Classes that were in the table already.
    pub known: usize,
    /// Classes that cannot be measured.
    pub skipped: usize,
    /// Classes for which no time was left.
    pub left: usize,
}

/// Measures every need that the table does not know (`again`: every one), most expensive first, until `budget` is used
/// up or `stop` says so. Each finding is saved at once.
///
/// # Errors
/// [`Error::Gpu`] when the device fails, and what writing the table reports.
pub fn search(
    ctx: &Context,
    tuning: &mut Tuning,
    needs: &[Need],
    budget: Duration,
    again: bool,
    stop: &dyn Fn() -> bool,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Summary> {
    let begun = Instant::now();
    let mut summary = Summary::default();
    for need in needs {
        if !again && tuning.entry(&need.key).is_some() {
            summary.known += 1;
            continue;
        }
        let left = budget.saturating_sub(begun.elapsed());
        if left.is_zero() || stop() {
            summary.left += 1;
            continue;
        }
        on(Event::Begun(need));
        match measure(ctx, &need.key, left, tuning.kernels()) {
            Ok(entry) => {
                tuning.insert(&need.key, entry);
                tuning.save()?;
                summary.measured += 1;
                if let Some(entry) = tuning.entry(&need.key) {
                    on(Event::Found(need, entry));
                }
            }
            Err(e @ Error::Gpu(_)) => return Err(e),
            Err(e) => {
                summary.skipped += 1;
                on(Event::Skipped(need, e.to_string()));
            }
        }
    }
    Ok(summary)
}

/// The problem behind a key, as it is timed and checked.
///
/// # Errors
/// [`Error::Usage`] for a key that names none.
fn problem(ctx: &Context, key: &str) -> Result<(Problem, op::Problem)> {
    let p = Problem::parse(key).ok_or_else(|| Error::Usage(format!("`{key}` names no class of shapes; see `semgen tune show`")))?;
    if p.input != p.output {
        return Err(Error::Usage(format!("`{key}`: classes whose element type changes are not measured; the default is used")));
    }
    Ok((p, convolution(ctx.caps(), p.geom, &[p.source], p.pass, false, p.input)?))
}

/// Checks and times every variant for `key`; `left` is the time there is.
///
/// # Errors
/// [`Error::Usage`] for a key that cannot be measured, [`Error::Failed`] when no variant gives the right numbers, what
/// the device reports.
pub fn measure(ctx: &Context, key: &str, left: Duration, kernels: &str) -> Result<Entry> {
    let (kernel, problem) = problem(ctx, key)?;
    let variants = kernel.candidates(ctx.caps());
    let default = variants.first().copied().unwrap_or(Variant::Plain);
    let mut tried: Vec<Candidate> = Vec::new();
    let (mut best, mut clock) = (None::<f64>, "wall");
    let begun = Instant::now();
    for &variant in &variants {
        let name = variant.name();
        let mut candidate = Candidate { variant: name.into(), seconds: None, error: None, refused: None };
        let spent = begun.elapsed();
        if best.is_some() && (spent >= left || hopeless(ctx, variant, problem.flops)) {
            candidate.refused =
                Some(if spent >= left { "not tried: the time was up" } else { "not tried: far too slow for so large a shape" }.into());
            tried.push(candidate);
            continue;
        }
        let prepared = match Prepared::new(ctx, &problem, name) {
            Ok(p) => p,
            Err(e @ Error::Gpu(_)) => return Err(e),
            Err(e) => {
                candidate.refused = Some(e.to_string());
                tried.push(candidate);
                continue;
            }
        };
        let first = prepared.program().time(ctx, 1)?;
        let first = first.device.unwrap_or(first.wall);
        if best.is_some_and(|b| first > HOPELESS * b) {
            candidate.seconds = Some(first);
            candidate.refused = Some("not repeated: far slower than the best".into());
            tried.push(candidate);
            continue;
        }
        let rules = Rules { precision: 0.02, ..Rules::within(REPEAT.min(left / 2).max(Duration::from_millis(50))) };
        let row = prepared.measure(&problem, name, &rules, None)?;
        candidate.error = row.check.as_ref().and_then(|c| c.error);
        match (row.failure(), row.time()) {
            (None, Some(time)) => {
                clock = if row.device_s.is_some() { "device" } else { "wall" };
                candidate.seconds = Some(time.median);
                best = Some(best.map_or(time.median, |b| b.min(time.median)));
            }
            (failure, _) => candidate.refused = Some(failure.unwrap_or("was not timed").to_owned()),
        }
        tried.push(candidate);
    }
    let chosen = choose(&tried, default.name()).ok_or_else(|| Error::Failed(format!("no variant gives the right numbers for `{key}`")))?;
    tried.sort_by(|a, b| {
        let key = |c: &Candidate| (c.refused.is_some(), c.seconds.unwrap_or(f64::INFINITY));
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    Ok(Entry {
        chosen,
        default: default.name().into(),
        candidates: tried,
        shape: problem.shape.clone(),
        flops: problem.flops,
        clock: clock.into(),
        kernels: kernels.to_owned(),
    })
}

/// Whether trying a variant would cost more than it can bring.
fn hopeless(ctx: &Context, variant: Variant, flops: u64) -> bool {
    let most = if ctx.caps().kind == Kind::Cpu { 1_000_000_000 } else { 100_000_000_000 };
    variant == Variant::Plain && flops > most
}

/// The fastest of those that may win; the default unless another is clearly faster.
fn choose(tried: &[Candidate], default: &str) -> Option<String> {
    let able = || tried.iter().filter(|c| c.refused.is_none()).filter_map(|c| Some((c, c.seconds?)));
    let (fastest, seconds) = able().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let own = able().find(|(c, _)| c.variant == default);
    let winner = own.filter(|(_, s)| *s <= seconds * (1.0 + MARGIN)).map_or(fastest, |(c, _)| c);
    Some(winner.variant.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(variant: &str, seconds: Option<f64>, refused: Option<&str>) -> Candidate {
        Candidate { variant: variant.into(), seconds, error: None, refused: refused.map(str::to_owned) }
    }

    #[test]
    fn the_fastest_right_one_wins_and_noise_does_not() {
        let tried = [
            candidate("a", Some(1.0), None),
            candidate("b", Some(0.99), None),
            candidate("c", Some(0.5), Some("wrong")),
            candidate("d", None, Some("does not fit")),
        ];
        assert_eq!(choose(&tried, "a").as_deref(), Some("a"), "one percent is noise");
        assert_eq!(choose(&tried, "d").as_deref(), Some("b"));
        let clear = [candidate("a", Some(1.0), None), candidate("b", Some(0.9), None)];
        assert_eq!(choose(&clear, "a").as_deref(), Some("b"));
        assert_eq!(choose(&tried[2..], "c"), None);
    }
}
