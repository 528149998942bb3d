//! `semgen pretrain`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::args::{Common, RunArgs};
use super::run::{Fits, Run, Source};
use super::stages::{Opened, Ready};
use super::summary::{Card, Outcome};
use super::watch::Watch;
use super::{stages, stop, text};
use crate::config::{Auto, Config};
use crate::data::arrays::sets::CubeSet;
use crate::discover;
use crate::discover::manifest::Manifest;
use crate::error::{Error, Result};
use crate::gpu::Context;
use crate::plan::Options;
use crate::train::fit::{Stage, fit};
use crate::train::pretrain::{self, Data};

/// Options of `pretrain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Scan files and folders, one prepared store, one run of `discover`, or one folder of cubes that are cut already
    /// (`train_data1_vwGen_ex_ref_fold1.0.npy` and the like); with --resume, those of the run if none are given
    #[arg(value_name = "SCANS|STORE|RUN|CUBES")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let begun = Instant::now();
    let opened = stages::open(common, &a.run, &a.inputs, Config::default())?;
    let outcome = if let Source::Cubes(dir) = &opened.source {
        let dir = dir.clone();
        cubes(common, opened, &dir, begun)?
    } else {
        let mut ready = stages::begin(common, opened, a.inputs.is_empty(), true)?;
        let manifest = stages::discover(&mut ready)?;
        train(&mut ready, &manifest, begun)?
    };
    outcome.write_summary(&[])?;
    let page = outcome.run().join("report.html");
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
    let (scans, crops) = (store.scans().len(), manifest.crops().len());
    let learnt: Card = ("Scans", scans.to_string(), format!("{crops} crops"), json!(scans));
    learn(ctx, config, run, watch, &data, learnt, begun)
}

/// Learns from cubes that are cut already: the steps that scans need before are left out.
fn cubes(common: &Common, opened: Opened, dir: &Path, begun: Instant) -> Result<Outcome> {
    let Opened { run, source, before, mut config } = opened;
    let ctx = common.context()?;
    let ready = (|| {
        let set = CubeSet::open(dir, config.model.classes)?;
        if config.cube.size != set.size {
            let what = format!("holds cubes of {0:?}, but cube.size is {1:?}; set cube.size={0:?}", set.size, config.cube.size);
            return Err(Error::input(dir, what));
        }
        set.notes.iter().for_each(|n| text::note(common.json, n));
        if set.classes.is_none() && (config.loss.classification != 0.0 || config.train.classification_epochs != 0) {
            text::note(
                common.json,
                "the cubes have no pseudo labels, so restoration alone is learnt (loss.classification = 0, train.classification_epochs = 0)",
            );
            (config.loss.classification, config.train.classification_epochs) = (0.0, 0);
        }
        run.begin(&config, source.json(), &ctx, &Fits::new())?;
        stages::settle(&mut config, &ctx, &run, &source, common.json, |config| {
            let mut fits = Fits::new();
            if config.train.micro_batch.given().is_none() {
                let fit = fit(config, ctx.caps(), &Options::of(&ctx), &Stage::pretraining(config), config.train.micro_batch)?;
                config.train.micro_batch = Auto::Given(fit.micro_batch);
                fits.insert("training", fit);
            }
            Ok(fits)
        })?;
        Ok(set)
    })();
    let set = match ready {
        Ok(set) => set,
        Err(e) => {
            run.undo();
            run.restore(before.as_ref());
            return Err(e);
        }
    };
    let mut watch = Watch::new(run.dir(), common.json);
    let (train, validation) = (set.train.len(), set.validation.len());
    let learnt: Card = ("Cubes", train.to_string(), format!("and {validation} to validate on"), json!(train));
    learn(&ctx, &config, &run, &mut watch, &Data::of_cubes(&set)?, learnt, begun)
}

/// Trains both phases on `data`, of which `learnt` says how much there is.
fn learn(ctx: &Context, config: &Config, run: &Run, watch: &mut Watch, data: &Data, learnt: Card, begun: Instant) -> Result<Outcome> {
    watch.expect_training(config, data.train.train_batches(config.train.batch_size));
    let interrupted = stop::watch()?;
    let trained = pretrain::run(ctx, config, data, run.dir(), run.resume, interrupted, watch);
    watch.finish();
    let state = trained?;
    let memory = (ctx.memory().1, watch.memory().clone());
    Outcome::new(run.dir(), config, learnt, &state, begun.elapsed(), memory)
}
