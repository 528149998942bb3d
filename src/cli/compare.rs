//! `semgen compare`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args::Common;
use super::text;
use crate::error::{Error, Result};
use crate::files;
use crate::report::comparison::{Group, METHOD, difference_table, differences, group_table, section, to_json};
use crate::report::html::Report;

/// Options of `compare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Finished fine-tuning runs, or folders of them, grouped by what they began with and the number of labelled cases; or groups of
    /// one's own
    #[arg(value_name = "RUN|NAME=RUN,RUN…", required = true)]
    runs: Vec<String>,
    /// New folder for compare.html and compare.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Metric to compare; without, the one that the runs chose their best model by
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
}

/// A finished run.
struct Run {
    dir: PathBuf,
    summary: Value,
    /// The name that the user gave its group.
    group: Option<String>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let runs = runs(&a.runs)?;
    let metric = metric(&runs, a.metric.as_deref())?;
    // A part that all runs have: numbers of different parts cannot be compared.
    let tested = runs.iter().filter(|r| r.summary["test"].is_object()).count();
    let part = if tested == runs.len() { "test" } else { "validation" };
    if tested > 0 && tested < runs.len() {
        text::note(common.json, &format!("only {tested} of {} runs have a test part; the validation part is compared", runs.len()));
    }
    let groups = groups(&runs, &metric, part)?;
    let found = differences(&groups, a.seed);
    let value = to_json(&metric, part, &groups, &found);
    let mut page = Report::new("Comparison of runs");
    page.subtitle(&format!("{metric} on the {part} part, {} runs in {} groups", runs.len(), groups.len()));
    section(&mut page, "Results", &metric, part, &groups, &found);
    page.section("Runs");
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|r| {
            let shown = |key: &str| r.summary[key].as_str().map_or_else(|| r.summary[key].to_string(), str::to_owned);
            vec![
                r.dir.display().to_string(),
                shown("init"),
                shown("labelled"),
                shown("seed"),
                shown("steps"),
                r.summary[part][&metric].as_f64().map_or_else(|| "none".into(), |v| format!("{v:.4}")),
            ]
        })
        .collect();
    page.table(&["run", "began with", "labelled", "seed", "steps", &metric], &rows);
    page.footer(&format!("Made by semantic-genesis {}. Research software, not a medical device.", env!("CARGO_PKG_VERSION")));
    files::create_dir(&a.out)?;
    files::write_bytes(&a.out.join("compare.json"), format!("{value:#}\n").as_bytes())?;
    let html = a.out.join("compare.html");
    page.write(&html)?;
    if common.json {
        text::say_json(&value);
        return Ok(());
    }
    text::say(format_args!("{metric} on the {part} part"));
    let (head, rows) = group_table(&groups);
    text::say(text::table(&head, &rows));
    if !found.is_empty() {
        let (head, rows) = difference_table(&groups, &found);
        text::say(format_args!("\n{}\n{METHOD}", text::table(&head, &rows)));
    }
    text::say(format_args!("page:    {}", html.display()));
    Ok(())
}

/// The runs that the arguments name.
fn runs(arguments: &[String]) -> Result<Vec<Run>> {
    let mut out = Vec::new();
    for argument in arguments {
        // A folder may have an equals sign in its name.
        match argument.split_once('=').filter(|_| !Path::new(argument).exists()) {
            Some((name, dirs)) if !name.is_empty() => {
                for dir in dirs.split(',').filter(|d| !d.is_empty()) {
                    add(Path::new(dir), Some(name), &mut out)?;
                }
            }
            _ => add(Path::new(argument), None, &mut out)?,
        }
    }
    if out.iter().any(|r| r.group.is_some()) && out.iter().any(|r| r.group.is_none()) {
        return Err(Error::Usage(
            "some runs are in a group of your own (NAME=RUN,RUN) and some are not; name a group for all or for none".into(),
        ));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = out.iter().find(|r| !seen.insert(r.dir.canonicalize().unwrap_or_else(|_| r.dir.clone()))) {
        return Err(Error::input(&twice.dir, "is named twice; a run counts once"));
    }
    Ok(out)
}

/// Adds the run in `dir`, or the runs in the folders in it.
fn add(dir: &Path, group: Option<&str>, out: &mut Vec<Run>) -> Result<()> {
    let file = dir.join("summary.json");
    if file.is_file() {
        let bytes = std::fs::read(&file).map_err(Error::io("read", &file))?;
        let summary: Value = serde_json::from_slice(&bytes).map_err(|e| Error::input(&file, format!("is not JSON ({e})")))?;
        if !(summary["metric"].is_string() && summary["validation"].is_object()) {
            return Err(Error::input(&file, "is no summary of a finished `semgen finetune`: it has no metric and no validation part"));
        }
        out.push(Run { dir: dir.to_path_buf(), summary, group: group.map(str::to_owned) });
        return Ok(());
    }
    if !dir.is_dir() {
        return Err(Error::input(dir, "is no folder of a run"));
    }
    let mut inner: Vec<PathBuf> = std::fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten().map(|e| e.path()).collect();
    inner.retain(|p| p.join("summary.json").is_file());
    inner.sort();
    if inner.is_empty() {
        return Err(Error::input(dir, "holds no finished run (no summary.json, neither in it nor in a folder in it)"));
    }
    inner.iter().try_for_each(|p| add(p, group, out))
}

/// The metric that is compared.
fn metric(runs: &[Run], asked: Option<&str>) -> Result<String> {
    if let Some(asked) = asked {
        return Ok(asked.to_owned());
    }
    let of = |r: &Run| r.summary["metric"].as_str().unwrap_or_default().to_owned();
    let first = of(&runs[0]);
    match runs.iter().find(|r| of(r) != first) {
        None => Ok(first),
        Some(other) => Err(Error::input(
            &other.dir,
            format!("was judged by {}, but {} by {first}; choose one with --metric", of(other), runs[0].dir.display()),
        )),
    }
}

/// Runs from scratch come first, so that differences are those from it.
fn groups(runs: &[Run], metric: &str, part: &str) -> Result<Vec<Group>> {
    let names = names(runs);
    let mut by_key: BTreeMap<(bool, usize, Option<u64>), Group> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for (run, name) in runs.iter().zip(names) {
        let field = |key: &str| {
            let found = run.summary[key].as_u64();
            found.ok_or_else(|| Error::input(run.dir.join("summary.json"), format!("has no whole number `{key}`")))
        };
        let Some(value) = run.summary[part][metric].as_f64() else {
            let known: Vec<&String> = run.summary[part].as_object().into_iter().flat_map(|o| o.keys()).collect();
            let known = known.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::input(run.dir.join("summary.json"), format!("has no number `{metric}` in its {part} part, only {known}")));
        };
        let labelled = if run.group.is_some() { None } else { Some(field("labelled")?) };
        let place = order.iter().position(|n| *n == name).unwrap_or_else(|| {
            order.push(name.clone());
            order.len() - 1
        });
        let scratch = run.group.is_none() && run.summary["init"] == "scratch";
        let group = by_key.entry((!scratch, place, labelled)).or_insert_with(|| Group { name, labelled, values: Vec::new() });
        group.values.push((field("seed")?, value));
    }
    Ok(by_key.into_values().collect())
}

/// What each run's group is called: the user's name, or the weights it began with, as short as they can be told apart.
fn names(runs: &[Run]) -> Vec<String> {
    let full = |r: &Run| r.group.clone().unwrap_or_else(|| r.summary["init"].as_str().unwrap_or("unknown").to_owned());
    let short = |whole: &str| {
        let path = Path::new(whole.strip_suffix("/checkpoints/best.safetensors").unwrap_or(whole));
        path.file_name().map_or_else(|| whole.to_owned(), |n| n.to_string_lossy().into_owned())
    };
    let of_group = runs.iter().any(|r| r.group.is_some());
    let every: HashSet<String> = runs.iter().map(full).collect();
    let shortened: HashSet<String> = every.iter().map(|w| short(w)).collect();
    let clear = !of_group && shortened.len() == every.len();
    runs.iter().map(|r| if clear { short(&full(r)) } else { full(r) }).collect()
}
