//! `semgen bench loader`.

use std::path::PathBuf;

use super::super::args::{Common, triple};
use super::super::text;
use super::{rules, write};
use crate::bench::loader::{self, Volumes};
use crate::bench::measure::Rules;
use crate::bench::result::{Document, Environment};
use crate::bench::step::{self, Detail, Model, Setup};
use crate::config::{Precision, Preset};
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
    /// Seconds for each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    time_limit: f64,
    /// Write the result to a file, - for the output
    #[arg(id = "json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file: Option<PathBuf>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let volumes = match &a.store {
        Some(dir) => Volumes::Store(Box::new(Store::open(dir)?)),
        None => Volumes::phantoms()?,
    };
    let rules = rules(a.time_limit)?;
    let ctx = common.context()?;
    let mut document = Document::new(Environment::here(ctx.caps()), None);
    let row = loader::measure(volumes, a.batch.max(1), a.cube, &rules)?;
    let supply = row.extra.get("cubes_per_s").copied().unwrap_or(0.0);
    document.rows.push(row);
    let mut demand = None;
    if !a.alone {
        // A step's speed per cube hardly depends on the batch; one cube is measured soonest.
        let setup = Setup {
            model: Model::Ynet,
            batch: 1,
            cube: a.cube,
            base: a.base,
            classes: 44,
            preset: Preset::Paper,
            precision: Precision::F32,
        };
        ctx.choose(crate::plan::tuning::choices_for(ctx.caps()));
        let report = step::measure(&ctx, &setup, &Rules { least: 2, ..rules }, None, Detail::Whole)?;
        demand = report.whole.extra.get("samples_per_s").copied();
        document.rows.push(report.whole);
    }
    if !write(&document, a.file.as_deref())? {
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
    }
    Ok(())
}
