//! `semgen tune`.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::args::{Common, Settings};
use super::bench::seconds;
use super::{plan, stop, text};
use crate::bench::tune::{self, Event, Need};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Caps, adapters};
use crate::kernels::fingerprint;
use crate::plan::Options;
use crate::plan::tuning::{Candidate, Entry, Tuning};

/// Options of `tune`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List what was measured and what is forced
    Show,
    /// Say why a variant is used: all candidates, their times and checks
    Explain(Explain),
    /// Measure what the configured networks need, most expensive first
    Run(Run),
    /// Force a variant for a class of shapes; without VARIANT, take the force away
    Force(Force),
    /// Write the table to a file
    Export(Export),
    /// Take over the entries of a file
    Import(Import),
    /// Use the kernels' defaults from now on
    Off,
    /// Use the table again
    On,
    /// Forget everything
    Clear,
}

#[derive(Debug, clap::Args)]
struct Explain {
    /// Key of the class of shapes, as `tune show` lists it
    #[arg(value_name = "KEY", required_unless_present = "layer")]
    key: Option<String>,
    /// Every class that this layer of the configured networks asks for, as `down_tr64.ops.1.conv1`
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    layer: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Stop after this time; what has been found is kept
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    budget: Duration,
    /// Measure also what is in the table already
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, clap::Args)]
struct Force {
    /// Key of the class of shapes, as `tune show` lists it
    #[arg(value_name = "KEY")]
    key: String,
    /// Variant to use
    #[arg(value_name = "VARIANT")]
    variant: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Export {
    /// File to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Import {
    /// File that `tune export` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Take it although it was measured on another adapter
    #[arg(long)]
    force: bool,
}

/// `90`, `90s`, `1.5m`, `200ms`.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let factor = match &text[at..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("the unit `{other}` is none of ms, s, m, h")),
    };
    let n: f64 = text[..at].parse().map_err(|_| "expected a time, as in 60s or 2m".to_owned())?;
    Duration::try_from_secs_f64(n * factor).map_err(|_| "the time is too long".to_owned())
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let caps = match &a.what {
        What::Run(_) => None,
        _ => adapters(common.adapter.as_deref())?.into_iter().find(|r| r.chosen).map(|r| r.caps),
    };
    let Some(caps) = caps else {
        return match &a.what {
            What::Run(r) => search(common, r),
            _ => Err(Error::Gpu("no graphics adapter was found; see `semgen devices`".into())),
        };
    };
    let folder = files::cache_dir().ok_or_else(no_cache)?;
    if matches!(a.what, What::Clear) {
        // A file that cannot be read is no reason to keep it.
        let mut tuning = Tuning::empty(&folder, &caps, &fingerprint(&caps));
        tuning.clear()?;
        return said(common, &json!({ "cleared": tuning.path() }), &format!("forgotten: {}", tuning.path().display()));
    }
    let mut tuning = Tuning::load(&folder, &caps, &fingerprint(&caps))?;
    match &a.what {
        What::Show => show(common, &tuning),
        What::Explain(e) => explain(common, &caps, &tuning, e),
        What::Force(f) => {
            check_key(&caps, f)?;
            tuning.force(&f.key, f.variant.as_deref());
            tuning.save()?;
            let line = match &f.variant {
                Some(v) => format!("`{}` uses {v} from now on (forced)", f.key),
                None => format!("`{}` is no longer forced", f.key),
            };
            said(common, &json!({ "key": f.key, "forced": f.variant }), &line)
        }
        What::Export(e) => {
            tuning.export(&e.file)?;
            let n = tuning.entries().count();
            said(
                common,
                &json!({ "entries": n, "forced": tuning.forced(), "file": e.file }),
                &format!("{n} entries written to {}", e.file.display()),
            )
        }
        What::Import(i) => {
            let found = tuning.import(&i.file, i.force)?;
            tuning.save()?;
            if found.stale > 0 {
                text::note(common.json, &format!("{} entries were measured with other kernels and are left out", found.stale));
            }
            said(
                common,
                &json!({ "entries": found.entries, "forced": found.forced, "stale": found.stale }),
                &format!("{} entries and {} forced ones taken over", found.entries, found.forced),
            )
        }
        What::Off | What::On => {
            tuning.set_off(matches!(a.what, What::Off));
            tuning.save()?;
            let word = if tuning.is_off() { "off: kernels use their defaults" } else { "on" };
            said(common, &json!({ "off": tuning.is_off() }), &format!("tuning is {word}"))
        }
        What::Run(_) | What::Clear => Ok(()),
    }
}

fn no_cache() -> Error {
    Error::Usage("there is no folder for the tuning table; set SEMGEN_CACHE to one".into())
}

fn said(common: &Common, value: &serde_json::Value, line: &str) -> Result<()> {
    if common.json {
        text::say_json(value);
    } else {
        text::say(line);
    }
    Ok(())
}

/// Refuses keys and variants that no kernel knows.
fn check_key(caps: &Caps, f: &Force) -> Result<()> {
    use crate::kernels::conv3d::Problem;
    let problem = Problem::parse(&f.key)
        .ok_or_else(|| Error::Usage(format!("`{}` is no key; `semgen tune show` and `semgen plan --ops` list them", f.key)))?;
    let able: Vec<&str> = problem.candidates(caps).into_iter().map(|v| v.name()).collect();
    match &f.variant {
        Some(v) if !able.contains(&v.as_str()) => {
            Err(Error::Usage(format!("{v} cannot do `{}` on this adapter; there are {}", f.key, able.join(", "))))
        }
        _ => Ok(()),
    }
}

/// `tile 1.20 ms` and so on, or why not.
fn brief(c: &Candidate) -> String {
    match (c.seconds, &c.refused) {
        (Some(s), None) => format!("{} {}", c.variant, seconds(s)),
        (Some(s), Some(_)) => format!("{} ({})", c.variant, seconds(s)),
        (None, _) => format!("{} (refused)", c.variant),
    }
}

fn time_of<'e>(e: &'e Entry, variant: &str) -> Option<&'e Candidate> {
    e.candidates.iter().find(|c| c.variant == variant)
}

fn show(common: &Common, tuning: &Tuning) -> Result<()> {
    if common.json {
        let entries: Vec<_> = tuning.entries().map(|(k, e)| json!({ "key": k, "entry": e, "forced": tuning.forced().get(k) })).collect();
        text::say_json(&json!({
            "adapter": tuning.adapter(), "file": tuning.path(), "kernels": tuning.kernels(), "off": tuning.is_off(), "stale": tuning.stale(),
            "entries": entries, "forced": tuning.forced(),
        }));
        return Ok(());
    }
    text::say(format_args!("{}\n{}{}", tuning.adapter(), tuning.path().display(), if tuning.is_off() { " (off)" } else { "" }));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (key, e) in tuning.entries() {
        let forced = tuning.forced().get(key);
        let chosen = forced.map_or_else(|| e.chosen.clone(), |f| format!("{f} (forced)"));
        let time = time_of(e, forced.unwrap_or(&e.chosen)).and_then(|c| c.seconds);
        let rate = time.map_or(String::new(), |s| format!("{:.1}", e.flops as f64 / s / 1e9));
        let others: Vec<String> = e.candidates.iter().filter(|c| c.variant != e.chosen).map(brief).collect();
        rows.push(vec![key.to_owned(), chosen, time.map_or(String::new(), seconds), rate, others.join(", ")]);
    }
    for (key, v) in tuning.forced().iter().filter(|(k, _)| tuning.entry(k).is_none()) {
        rows.push(vec![key.clone(), format!("{v} (forced)"), String::new(), String::new(), String::new()]);
    }
    if rows.is_empty() {
        text::say("nothing is measured or forced yet; `semgen tune run` measures what the configured networks need");
    } else {
        text::say(text::table(&["key", "chosen", "time", "GFLOP/s", "others"], &rows));
    }
    if tuning.stale() > 0 {
        text::say(format_args!("{} entries were measured with other kernels and do not count", tuning.stale()));
    }
    Ok(())
}

fn explain(common: &Common, caps: &Caps, tuning: &Tuning, a: &Explain) -> Result<()> {
    use crate::kernels::conv3d::Problem;
    let keys: Vec<String> = match (&a.key, &a.layer) {
        (Some(key), _) => vec![key.clone()],
        (None, layer) => {
            let name = layer.as_deref().unwrap_or_default();
            let all = needs(&a.settings.on(Config::default())?, caps, tuning)?;
            let of_layer = |n: &&Need| n.layers.iter().any(|l| l.rsplit(": ").next() == Some(name));
            let keys: Vec<String> = all.iter().filter(of_layer).map(|n| n.key.clone()).collect();
            if keys.is_empty() {
                return Err(Error::Usage(format!("no layer `{name}` asks for a variant; `semgen plan --ops` lists the layers")));
            }
            keys
        }
    };
    let mut values = Vec::new();
    for key in &keys {
        let problem = Problem::parse(key).ok_or_else(|| Error::Usage(format!("`{key}` is no key; `semgen tune show` lists them")))?;
        let default = problem.candidates(caps).first().map_or("plain", |v| v.name());
        let (entry, forced) = (tuning.entry(key), tuning.forced().get(key));
        let used = match (tuning.is_off(), forced, entry) {
            (true, ..) => (default.to_owned(), "tuning is off, so the default is used"),
            (_, Some(f), _) => (f.clone(), "it is forced"),
            (_, None, Some(e)) if e.chosen == e.default => (e.chosen.clone(), "it is the default, and no other is clearly faster"),
            (_, None, Some(e)) => (e.chosen.clone(), "it was the fastest that gave the reference's numbers"),
            (_, None, None) => (default.to_owned(), "nothing is measured, so the default is used"),
        };
        if common.json {
            values.push(json!({ "key": key, "used": used.0, "why": used.1, "default": default, "forced": forced, "entry": entry }));
            continue;
        }
        text::say(format_args!("{key}\n  {} is used: {} (default: {default})", used.0, used.1));
        let Some(e) = entry else { continue };
        let rows: Vec<Vec<String>> = e
            .candidates
            .iter()
            .map(|c| {
                vec![
                    c.variant.clone(),
                    c.seconds.map_or("-".into(), seconds),
                    c.seconds.map_or("-".into(), |s| format!("{:.1}", e.flops as f64 / s / 1e9)),
                    c.error.map_or("-".into(), |x| format!("{x:.1e}")),
                    c.refused.clone().unwrap_or_else(|| "may win".into()),
                ]
            })
            .collect();
        text::say(text::table(&["  variant", "time", "GFLOP/s", "error", "verdict"], &rows));
        text::say(format_args!("  measured on {} with the {} clock", e.shape, e.clock));
    }
    if common.json {
        text::say_json(&json!(values));
    }
    Ok(())
}

/// What the configured networks ask for, most expensive first.
fn needs(config: &Config, caps: &Caps, tuning: &Tuning) -> Result<Vec<Need>> {
    let options = Options { choices: tuning.choices(), ..Options::default() };
    let plans = plan::plans(config, caps, &options)?;
    Ok(tune::needs(&plans.iter().map(|(phase, plan)| (*phase, plan)).collect::<Vec<_>>()))
}

/// Searches what `config` needs on a device within `budget`; used before the first step of a run, too.
pub(super) fn search_for(
    ctx: &crate::gpu::Context,
    config: &Config,
    budget: Duration,
    again: bool,
    json: bool,
) -> Result<(Tuning, tune::Summary)> {
    let folder = files::cache_dir().ok_or_else(no_cache)?;
    let mut tuning = Tuning::load(&folder, ctx.caps(), &fingerprint(ctx.caps()))?;
    let needs = needs(config, ctx.caps(), &tuning)?;
    let interrupted = stop::watch()?;
    let stopped = || interrupted.load(std::sync::atomic::Ordering::Relaxed);
    let total = needs.len();
    let mut done = 0;
    let summary = tune::search(ctx, &mut tuning, &needs, budget, again, &stopped, &mut |event| match event {
        Event::Begun(_) => done += 1,
        Event::Found(n, e) => {
            let others: Vec<String> = e.candidates.iter().filter(|c| c.variant != e.chosen).map(brief).collect();
            let own = time_of(e, &e.chosen).map_or_else(|| e.chosen.clone(), brief);
            text::note(json, &format!("{done}/{total} {}: {own}; {}", n.key, others.join(", ")));
        }
        Event::Skipped(n, why) => text::note(json, &format!("{done}/{total} {}: {why}", n.key)),
    })?;
    Ok((tuning, summary))
}

fn search(common: &Common, a: &Run) -> Result<()> {
    let ctx = common.context()?;
    let config = a.settings.on(Config::default())?;
    let (tuning, s) = search_for(&ctx, &config, a.budget, a.again, common.json)?;
    let mut line = format!("{} classes of shapes measured, {} known before: {}", s.measured, s.known, tuning.path().display());
    if s.skipped > 0 {
        line += &format!("; {} cannot be measured", s.skipped);
    }
    if s.left > 0 {
        line += &format!("; {} are left, run it again or give a larger --budget", s.left);
    }
    if tuning.is_off() {
        line += "; tuning is off, `semgen tune on` uses it";
    }
    said(common, &json!({ "summary": s, "file": tuning.path() }), &line)?;
    stop::check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let of = |t: &str| duration(t).map(|d| d.as_secs_f64());
        assert_eq!([of("60s"), of("1.5m"), of("200ms"), of("7"), of("1h")], [60.0, 90.0, 0.2, 7.0, 3600.0].map(Ok));
        for wrong in ["", "s", "5 apples", "-3s", "1e9h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
