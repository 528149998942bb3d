//! `semgen bench loader`.

use std::path::PathBuf;
use std::time::Duration;

use super::super::args::{Common, triple};
use super::super::text;
use super::{finish, seconds};
use crate::bench::loader::{self, Volumes};
use crate::bench::measure::Rules;
use crate::bench::result::{Document, Environment};
use crate::bench::step::{self, Model, Setup};
use crate::config::Preset;
use crate::data::store::Store;
use crate::error::Result;

/// Options of `bench loader`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Prepared store to cut from [default: synthetic patients in memory]
    #[arg(value_name = "STORE")]
    store: Option<PathBuf>,
    /// Cubes in a batch
    #[arg(long, value_name = "N", default_value_t = 12)]
    batch: usize,
    /// Size of a cube
    #[arg(long, value_name = "X,Y,Z", default_value = "64,64,32", value_parser = triple::<usize>)]
    cube: [usize; 3],
    /// Channels of the first convolution of the network that consumes the cubes
    #[arg(long, value_name = "N", default_value_t = 32)]
    base: usize,
    /// Do not time a training step beside it
    #[arg(long)]
    alone: bool,
    /// Most time for each measurement
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = seconds)]
    limit: Duration,
    /// Write the measurements to a file
    #[arg(long = "json-file", value_name = "FILE.json")]
    json_file: Option<PathBuf>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let volumes = match &a.store {
        Some(dir) => Volumes::Store(Store::open(dir)?),
        None => Volumes::phantoms()?,
    };
    let rules = Rules::within(a.limit);
    let ctx = common.context()?;
    let mut document = Document::new(Environment::here(ctx.caps()), None);
    let row = loader::measure(volumes, a.batch.max(1), a.cube, &rules)?;
    let supply = row.extra.get("cubes_per_s").copied().unwrap_or(0.0);
    document.rows.push(row);
    let mut demand = None;
    if !a.alone {
        // A step's speed per cube hardly depends on the batch; one cube is measured soonest.
        let setup = Setup { model: Model::Ynet, batch: 1, cube: a.cube, base: a.base, classes: 44, preset: Preset::Paper };
        ctx.choose(crate::plan::tuning::choices_for(ctx.caps()));
        let report = step::measure(&ctx, &setup, &Rules { least: 2, ..rules }, None, false)?;
        demand = report.whole.extra.get("samples_per_s").copied();
        document.rows.push(report.whole);
    }
    finish(common, &document, a.json_file.as_deref(), || {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        text::say(format_args!("the loader cuts {supply:.1} cubes of {} a second with {threads} threads", text::by(&a.cube)));
        if let Some(demand) = demand {
            text::say(format_args!(
                "a step of the Y-Net, base {}, on {} takes {demand:.3} cubes a second: {:.0} times less",
                a.base,
                ctx.caps().name,
                supply / demand
            ));
        }
    })
}
