//! Options that several verbs share.

use std::path::PathBuf;
use std::str::FromStr;

use crate::config::Config;
use crate::error::Result;
use crate::files;
use crate::gpu::Context;
use crate::kernels::conv3d::with_proven_matrices;

/// Options of every verb.
#[derive(Debug)]
pub(super) struct Common {
    /// Whether results are written as JSON.
    pub(super) json: bool,
    /// The adapter asked for.
    pub(super) adapter: Option<String>,
}

/// [`Common`] as it is parsed. `--json` is a path so that verbs whose result is a file of JSON can take its name there;
/// without one it stands for the output.
#[derive(Debug, clap::Args)]
struct Raw {
    /// Write the result as JSON, and progress as one JSON object a line
    #[arg(long, global = true, num_args = 0, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Adapter to use: a part of its name or its index in `semgen devices` [default: the best kind]
    #[arg(long, global = true, value_name = "NAME|INDEX")]
    adapter: Option<String>,
}

impl clap::FromArgMatches for Common {
    fn from_arg_matches(matches: &clap::ArgMatches) -> std::result::Result<Self, clap::Error> {
        let raw = Raw::from_arg_matches(matches)?;
        Ok(Self { json: raw.json.is_some(), adapter: raw.adapter })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Common {
    fn augment_args(command: clap::Command) -> clap::Command {
        Raw::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Raw::augment_args_for_update(command)
    }
}

impl Common {
    /// Opens the adapter; its compiled pipelines are kept in the user's cache.
    pub(super) fn context(&self) -> Result<Context> {
        let ctx = with_proven_matrices(|| {
            let ctx = Context::new(self.adapter.as_deref())?;
            Ok(match files::cache_dir() {
                Some(folder) => ctx.keep_pipelines(&folder),
                None => ctx,
            })
        })?;
        if let Some(why) = ctx.distrusted() {
            tracing::warn!("{}: cooperative matrices are not used, they gave wrong numbers ({why})", ctx.caps().name);
        }
        Ok(ctx)
    }
}

/// Where settings come from.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Settings {
    /// TOML file with settings; those it lacks keep their defaults
    #[arg(long, value_name = "FILE.toml")]
    pub(super) config: Option<PathBuf>,
    /// One setting, on top of the file; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) sets: Vec<String>,
    /// Seed of all random draws (the same as --set seed=N)
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u32>,
}

impl Settings {
    /// `base`, overlaid by the file, the `--set` options and the seed.
    pub(super) fn on(&self, base: Config) -> Result<Config> {
        let mut config = base.overlay(self.config.as_deref(), &self.sets)?;
        if let Some(seed) = self.seed {
            config.seed = seed;
        }
        Ok(config)
    }
}

/// Options of verbs that work in a run directory.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Run directory; it must be new or empty unless --resume is given
    #[arg(long, value_name = "RUN")]
    pub(super) out: Option<PathBuf>,
    /// Continue the run in --out, with its own settings as the base
    #[arg(long)]
    pub(super) resume: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// Three values separated by commas.
pub(super) fn triple<T: FromStr + Copy>(text: &str) -> std::result::Result<[T; 3], String> {
    let parts: Option<Vec<T>> = text.split(',').map(|p| p.trim().parse().ok()).collect();
    parts.and_then(|p| p.try_into().ok()).ok_or_else(|| "expected three numbers separated by commas, as in 96,96,48".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_and_nothing_else() {
        assert_eq!(triple::<usize>("1, 2,3"), Ok([1, 2, 3]));
        assert_eq!(triple::<f64>("3.6,3.6,6"), Ok([3.6, 3.6, 6.0]));
        for wrong in ["", "1,2", "1,2,3,4", "1,2,x", "-1,2,3"] {
            assert!(triple::<usize>(wrong).is_err(), "{wrong}");
        }
    }
}
