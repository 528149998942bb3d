//! `semgen discover`.

use std::path::PathBuf;

use serde_json::json;

use super::args::{Common, RunArgs};
use super::run::{Source, store_folder};
use super::{stages, text};
use crate::config::Config;
use crate::error::Result;

/// Options of `discover`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Scan files and folders, or one prepared store; with --resume, those of the run if none are given
    #[arg(value_name = "STORE|SCANS")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let mut inputs = a.inputs.clone();
    // To discover anew on another run's scans is to begin with its store.
    if let (Source::Run(other), Some(_)) = (Source::of(&inputs)?, &a.run.out) {
        inputs = vec![store_folder(&other)];
    }
    let mut ready = stages::begin(common, stages::open(common, &a.run, &inputs, Config::default())?, inputs.is_empty(), false)?;
    let manifest = stages::discover(&mut ready)?;
    let dir = ready.run.dir();
    let file = dir.join(super::run::DISCOVER).join(crate::discover::run::MANIFEST);
    if common.json {
        text::say_json(&json!({
            "run": dir.to_string_lossy(), "manifest": file.to_string_lossy(), "hash": manifest.hash(), "classes": manifest.classes().len(),
            "training_crops": manifest.train().len(), "validation_crops": manifest.validation().len(),
        }));
        return Ok(());
    }
    text::say(format_args!(
        "{} classes, {} crops to learn from and {} held out: {}",
        manifest.classes().len(),
        manifest.train().len(),
        manifest.validation().len(),
        file.display()
    ));
    text::say(format_args!("pictures: {}", dir.join("previews").display()));
    text::say(format_args!("next:     semgen pretrain {}", dir.display()));
    Ok(())
}
