//! `semgen demo`: the whole method on synthetic patients.

mod tasks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::args::{Common, RunArgs};
use super::phantom::Set;
use super::run::{DISCOVER, Run};
use super::summary::Card;
use super::{pretrain, stages, text};
use crate::config::Config;
use crate::data::store::{Split, Store};
use crate::discover::features::{Features, neighbour_score};
use crate::error::{Error, Result};
use crate::files;

/// The built-in settings.
const PRESET: &str = include_str!("demo.toml");
const PATIENTS: usize = 24;
const TYPES: usize = 4;
const SIZE: [usize; 3] = [192, 192, 96];
const SPACING: [f64; 3] = [1.9, 1.9, 3.4];
/// Folder of the synthetic scans.
const PHANTOMS: &str = "phantoms";
const RUN: &str = "run";
const REPORT: &str = "report.html";
/// Everything that a demo leaves.
const NAMES: [&str; 7] = [PHANTOMS, RUN, REPORT, tasks::NODULES, tasks::TASKS, tasks::PAGE, tasks::TABLE];

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pretrain for 1500 steps with 24 pseudo labels, and go on to fine-tune on small labelled sets of other synthetic patients, from
    /// the pretrained weights and from scratch, and to compare both (34 runs)
    #[arg(long)]
    finetune: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let begun = Instant::now();
    let out = a.run.out.clone().unwrap_or_else(|| PathBuf::from("semgen-demo"));
    let mut preset = Config::default().overlay_toml(PRESET)?;
    if a.finetune {
        preset = preset.overlay_toml(tasks::PRETRAINING)?;
    }
    // Wrong settings and a missing adapter are told before anything is written.
    let config = a.run.settings.on(preset.clone())?;
    let (scans, run) = (out.join(PHANTOMS), out.join(RUN));
    let foreign = |entry: std::fs::DirEntry| !NAMES.iter().any(|n| entry.file_name() == *n);
    if std::fs::read_dir(&out).is_ok_and(|entries| entries.flatten().any(foreign)) {
        return Err(Error::input(&out, "is not empty and holds no demo; choose another --out"));
    }
    Run::check(&run, a.run.resume, false)?;
    let ctx = common.context()?;

    let set = Set { count: PATIENTS, types: TYPES, seed: config.seed, size: SIZE, spacing: SPACING };
    let picture = scans.join("phantoms.png");
    // The picture is written last.
    if !picture.is_file() {
        let sheet = set.write(&scans, common.json)?;
        files::write_bytes(&picture, &sheet)?;
    }
    let args = RunArgs { out: Some(run), ..a.run.clone() };
    let mut ready = stages::begin(common, stages::open(common, &args, std::slice::from_ref(&scans), preset)?, false, true)?;
    let previews = ready.run.dir().join("previews");
    files::create_dir(&previews)?;
    std::fs::copy(&picture, previews.join("phantoms.png")).map_err(Error::io("copy", &picture))?;
    let manifest = stages::discover(&mut ready)?;
    let card = alike(&ready.run.dir().join(DISCOVER), &ready.store, &scans.join("patients.csv"))?;
    let outcome = pretrain::train(&mut ready, &manifest, begun)?;
    outcome.write_summary(std::slice::from_ref(&card))?;
    let page = out.join(REPORT);
    outcome.report("Semantic Genesis on synthetic patients", &page)?;
    let tried = if a.finetune {
        let weights = out.join(RUN).join("checkpoints/best.safetensors");
        Some(tasks::run(&ctx, common.json, &out, &weights, &config)?)
    } else {
        None
    };
    if common.json {
        let mut result = outcome.json();
        result["neighbours_of_same_type"] = card.3;
        result["report"] = json!(page.to_string_lossy());
        if let Some(tried) = tried {
            result["finetuning"] = tried.json;
        }
        text::say_json(&result);
        return Ok(());
    }
    text::say(format_args!("{}: {} ({})", card.0, card.1, card.2));
    outcome.lines().iter().for_each(text::say);
    text::say(format_args!("report:  {}", page.display()));
    if let Some(tried) = tried {
        tried.lines.iter().for_each(text::say);
        text::say(format_args!("report:  {}", out.join(tasks::PAGE).display()));
    }
    Ok(())
}

/// How often one of a patient's nearest neighbours has its body type, which nobody told the program.
fn alike(discovery: &Path, store: &Store, table: &Path) -> Result<Card> {
    let features = Features::load(discovery)?;
    let known = types(table)?;
    // Rows are the scans to learn from, then those held out, each in the order of the store.
    let of_split = |split| store.scans().iter().filter(move |s| s.split == split);
    let rows = of_split(Split::Train).chain(of_split(Split::Validation));
    let types: Vec<Option<&String>> = rows.map(|s| known.get(&s.id)).collect();
    let score = neighbour_score(&[features.train, features.validation].concat(), &types)?;
    let same = |t| types.iter().filter(|&&u| u == t).count() - 1;
    let pairs: usize = types.iter().map(|&t| same(t)).sum();
    let chance = pairs as f64 / (types.len() * (types.len() - 1)) as f64;
    Ok((
        "Neighbours of the same body type",
        format!("{:.0} %", 100.0 * score),
        format!("found without being told types; by chance {:.0} %", 100.0 * chance),
        json!({ "share": score, "chance": chance }),
    ))
}

/// Body type by scan from `patients.csv`.
fn types(table: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(table).map_err(Error::io("read", table))?;
    let rows = text.lines().skip(1).filter_map(|line| {
        let mut cells = line.split(',');
        Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_settings_are_valid() {
        let config = Config::default().overlay_toml(PRESET).unwrap();
        assert_eq!(config.cube.size, [32, 32, 16]);
        assert!(config.validate().is_ok());
        let longer = config.overlay_toml(tasks::PRETRAINING).unwrap();
        assert!(longer.train.max_steps > 1000 && longer.validate().is_ok());
    }
}
