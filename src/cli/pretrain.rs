//! `semgen pretrain`.

use std::path::PathBuf;
use std::time::Instant;

use super::args::{Common, RunArgs};
use super::stages::Ready;
use super::summary::Outcome;
use super::{stages, stop, text};
use crate::config::Config;
use crate::discover;
use crate::discover::manifest::Manifest;
use crate::error::Result;
use crate::train::pretrain;

/// Options of `pretrain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Scan files and folders, one prepared store, or one run of `discover`; with --resume, those of the run if none are given
    #[arg(value_name = "SCANS|STORE|RUN")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let begun = Instant::now();
    let mut ready = stages::begin(common, &a.run, &a.inputs, Config::default(), true)?;
    let manifest = stages::discover(&mut ready)?;
    let outcome = train(&mut ready, &manifest, begun)?;
    outcome.write_summary(&[])?;
    let page = ready.run.dir().join("report.html");
    outcome.report("Semantic Genesis pretraining", &page)?;
    if common.json {
        text::say_json(&outcome.json());
    } else {
        outcome.lines().iter().for_each(text::say);
        text::say(format_args!("report:  {}", page.display()));
    }
    Ok(())
}

/// Trains both phases in the run directory; `begun` is when the run began.
pub(super) fn train(ready: &mut Ready, manifest: &std::sync::Arc<Manifest>, begun: Instant) -> Result<Outcome> {
    let Ready { ctx, config, run, store, watch, .. } = ready;
    let data = discover::run::data(manifest, store)?;
    watch.expect_training(config, data.train.train_batches(config.train.batch_size));
    let interrupted = stop::watch()?;
    let trained = pretrain::run(ctx, config, &data, run.dir(), run.resume, interrupted, watch);
    watch.finish();
    let state = trained?;
    let memory = (ctx.memory().1, watch.memory().clone());
    Outcome::new(run.dir(), config, store, manifest, &state, begun.elapsed(), memory)
}
