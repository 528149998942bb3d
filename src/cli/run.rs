//! Run directories: what may be started where, and the files that every run has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::Config;
use crate::data::arrays::sets;
use crate::data::store::Store;
use crate::discover::run::MANIFEST;
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Choices, Context};
use crate::plan::tuning::{read_choices, write_choices};
use crate::train::fit::Fit;

const CONFIG: &str = "config.toml";
const INPUTS: &str = "inputs.json";
const CHOICES: &str = "choices.json";
/// Folder of the discovery.
pub(super) const DISCOVER: &str = "discover";
/// Folder of the prepared store.
pub(super) const PREPARED: &str = "prepared";

/// How the batches of stages are taken apart, as far as this call has decided it.
pub(super) type Fits = BTreeMap<&'static str, Fit>;

/// What a run begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    /// Files and folders of scans.
    Scans(Vec<PathBuf>),
    /// A prepared store.
    Store(PathBuf),
    /// A run whose patterns are taken over.
    Run(PathBuf),
    /// A folder of cubes that another program has cut.
    Cubes(PathBuf),
}

impl Source {
    /// Tells by what lies there.
    ///
    /// # Errors
    /// A path that does not exist; a store, run or folder of cubes among several inputs.
    pub(super) fn of(inputs: &[PathBuf]) -> Result<Self> {
        let kind = |path: &PathBuf| -> Option<Self> {
            if path.join(CONFIG).is_file() && (path.join(DISCOVER).is_dir() || path.join(INPUTS).is_file()) {
                Some(Self::Run(absolute(path)))
            } else if path.join("index.json").is_file() && path.join("volumes").is_dir() {
                Some(Self::Store(absolute(path)))
            } else if sets::holds(path) {
                Some(Self::Cubes(absolute(path)))
            } else {
                None
            }
        };
        match inputs {
            [one] => Ok(kind(one).unwrap_or_else(|| Self::Scans(vec![absolute(one)]))),
            many => match many.iter().find(|p| kind(p).is_some()) {
                Some(p) => Err(Error::input(p, "is a prepared store, a run or a folder of cubes, which has to be the only input")),
                None => Ok(Self::Scans(many.iter().map(|p| absolute(p)).collect())),
            },
        }
    }
}

impl Source {
    /// As `inputs.json` has it.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Scans(paths) => json!({ "scans": paths.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>() }),
            Self::Store(path) => json!({ "store": path.to_string_lossy() }),
            Self::Run(path) => json!({ "run": path.to_string_lossy() }),
            Self::Cubes(path) => json!({ "cubes": path.to_string_lossy() }),
        }
    }
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// What is in a folder that a run shall use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Absent,
    Empty,
    Run,
}

/// A run directory that may be used.
#[derive(Debug)]
pub(super) struct Run {
    dir: PathBuf,
    found: Found,
    /// Whether what is there is continued.
    pub(super) resume: bool,
}

impl Run {
    /// Checks `dir`; nothing is created. `take_over` lets a run that has not begun to train go on without `resume`.
    ///
    /// # Errors
    /// A folder that holds something else, or a run without `resume`.
    pub(super) fn check(dir: &Path, resume: bool, take_over: bool) -> Result<Self> {
        let found = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Found::Absent,
            Err(e) => return Err(Error::io("read", dir)(e)),
            Ok(entries) => {
                // A run that was killed while its first file was written.
                let partial = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().ends_with(".partial");
                match (dir.join(CONFIG).is_file(), entries.flatten().all(|e| partial(&e))) {
                    (true, _) => Found::Run,
                    (false, true) => Found::Empty,
                    (false, false) => return Err(Error::input(dir, "is not empty and holds no run; choose another --out")),
                }
            }
        };
        let trained = dir.join("checkpoints").is_dir();
        if found == Found::Run && !resume && (trained || !take_over) {
            return Err(Error::input(dir, "already holds a run; continue it with --resume or choose another --out"));
        }
        Ok(Self { dir: dir.to_path_buf(), found, resume: found == Found::Run })
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `inputs.json` says, if it can be read as that.
    pub(super) fn inputs<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        inputs(&self.dir)
    }

    /// The settings of the run, if there is one.
    pub(super) fn settings(&self) -> Result<Option<Config>> {
        (self.found == Found::Run).then(|| Config::load(Some(&self.dir.join(CONFIG)), &[])).transpose()
    }

    /// Whether training may go on with `config` after it began with `before`.
    ///
    /// # Errors
    /// Names the setting that decides what has been made already.
    pub(super) fn check_settings(&self, before: &Config, config: &Config) -> Result<()> {
        if !self.dir.join("checkpoints/last.safetensors").is_file() {
            return Ok(());
        }
        let fixed = [
            ("seed", before.seed != config.seed),
            ("prepare", before.prepare != config.prepare),
            ("cube", before.cube != config.cube),
            ("discover", before.discover != config.discover),
            ("model", before.model != config.model),
            ("finetune", before.finetune != config.finetune),
        ];
        match fixed.iter().find(|(_, differs)| *differs) {
            Some((key, _)) => Err(Error::input(
                &self.dir,
                format!("has begun to train with other settings under `{key}` than are asked for; set them back or start a new run"),
            )),
            None => Ok(()),
        }
    }

    /// Puts settings back with which the run could go on.
    pub(super) fn restore(&self, before: Option<&Config>) {
        if let Some(before) = before {
            // What made this necessary is reported already.
            let _ = files::write_bytes(&self.dir.join(CONFIG), before.to_toml().as_bytes());
        }
    }

    /// What the run began with, if it is known.
    pub(super) fn source(&self) -> Option<Source> {
        source(&self.dir)
    }

    /// Creates the folder with the files that say what is run, and how and where.
    pub(super) fn begin(&self, config: &Config, inputs: serde_json::Value, ctx: &Context, fits: &Fits) -> Result<()> {
        files::create_dir(&self.dir)?;
        let to_bytes = |v: serde_json::Value| format!("{v:#}\n").into_bytes();
        files::write_bytes(&self.dir.join("environment.json"), &to_bytes(environment(ctx, fits)))?;
        files::write_bytes(&self.dir.join(INPUTS), &to_bytes(inputs))?;
        // Its presence makes the folder a run.
        files::write_bytes(&self.dir.join(CONFIG), config.to_toml().as_bytes())
    }

    /// The kernels' variants that the run began with; `None` while it has not begun to train.
    pub(super) fn choices(&self) -> Result<Option<Choices>> {
        let (path, trained) = (self.dir.join(CHOICES), self.dir.join("checkpoints").is_dir());
        match (self.resume && path.is_file(), trained) {
            (true, _) => read_choices(&path).map(Some),
            // Begun by a program that knew defaults only.
            (false, true) => Ok(Some(Choices::default())),
            (false, false) => Ok(None),
        }
    }

    /// Keeps the kernels' variants for the day the run is continued.
    pub(super) fn keep_choices(&self, choices: &Choices) -> Result<()> {
        write_choices(&self.dir.join(CHOICES), choices)
    }

    /// Takes back what this program has put into a folder that was not a run before.
    pub(super) fn undo(&self) {
        match self.found {
            Found::Run => {}
            Found::Absent => {
                let _ = std::fs::remove_dir_all(&self.dir);
            }
            Found::Empty => {
                for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                    let path = entry.path();
                    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
                }
            }
        }
    }
}

fn source(dir: &Path) -> Option<Source> {
    inputs(dir)
}

fn inputs<T: serde::de::DeserializeOwned>(dir: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(dir.join(INPUTS)).ok()?).ok()
}

/// The store and the manifest file of the run in `dir`, whether it made them or took them over.
///
/// # Errors
/// A run without a complete discovery, a store that is gone.
pub(super) fn patterns(dir: &Path) -> Result<(Store, PathBuf)> {
    let manifest = dir.join(DISCOVER).join(MANIFEST);
    match source(dir) {
        Some(Source::Run(other)) if other != dir => patterns(&other),
        source if manifest.is_file() => Ok((store(dir, source)?, manifest)),
        _ => Err(Error::input(dir, "holds a run without a complete discovery; finish it with `semgen discover --resume`")),
    }
}

fn store(dir: &Path, source: Option<Source>) -> Result<Store> {
    match source {
        Some(Source::Store(path)) => Store::open(&path),
        _ => Store::open(&dir.join(PREPARED)),
    }
}

/// The folder of the store that the run in `dir` learns from.
pub(super) fn store_folder(dir: &Path) -> PathBuf {
    match source(dir) {
        Some(Source::Store(path)) => path,
        Some(Source::Run(other)) if other != dir => store_folder(&other),
        _ => dir.join(PREPARED),
    }
}

/// Program, adapter and machine.
fn environment(ctx: &Context, fits: &Fits) -> serde_json::Value {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    json!({
        "program": concat!("semgen ", env!("CARGO_PKG_VERSION")),
        "command": std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "started": seconds,
        "adapter": ctx.caps(),
        "micro_batches": fits,
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "threads": std::thread::available_parallelism().map_or(1, usize::from),
    })
}
