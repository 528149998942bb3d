//! The network that describes patients: an autoencoder on whole scans (method reference, 3.1).
//!
//! It lives in a folder of its own: `last.safetensors` (resumable), `best.safetensors` (lowest
//! validation loss) and `metrics.jsonl`. Both checkpoints say what they were trained on and with
//! which settings; a finished autoencoder is used again as long as these are the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::{Auto, Autoencoder, Config, Optimiser, Precision, Schedule};
use crate::data::resize::resize;
use crate::data::store::{Split, Store};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Caps, Context};
use crate::interop::tensors::Data;
use crate::kernels::optimiser::Hyper;
use crate::model::Spec;
use crate::plan::Options;
use crate::train::checkpoint::Named;
use crate::train::fit::{Fit, Stage, fit};
use crate::train::loader::Samples;
use crate::train::log::MetricsLog;
use crate::train::network::Objective;
use crate::train::phase::{Feed, Observer, Phase, State};
use crate::train::pretrain::read_checkpoint;
use crate::train::schedule::Rules;

/// Resized scans are kept in memory up to this many bytes, a thousand of the published size.
const INPUT_BYTES: usize = 4 << 30;
/// Memory that scans may take together while they are resized; a larger one is resized alone.
const RESIZE_BYTES: usize = 2 << 30;

/// Factor of a reduction of the learning rate, the gain in validation loss that spares it, and its lower bound.
const FACTOR: f32 = 0.5;
const MIN_DELTA: f32 = 1e-4;
const MIN_RATE: f32 = 1e-6;

/// The weights with the lowest validation loss.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Network.
    pub spec: Spec,
    /// Parameters and running statistics.
    pub weights: Named,
    /// Hash of them.
    pub hash: String,
}

/// What is in the folder before anything is done.
pub enum Found {
    /// Nothing that can be used.
    Nothing,
    /// An unfinished training that is to be continued.
    Unfinished(Box<(State, Named)>),
    /// What is needed.
    Finished(Trained),
}

/// Whole scans at the size that the network takes.
#[derive(Clone)]
pub struct Scans {
    store: Store,
    size: [usize; 3],
    /// Resized volumes by position in the store, when they are kept.
    kept: Option<Arc<Vec<Vec<f32>>>>,
}

impl Scans {
    /// Resizes all scans of `store` to `size`, at once if they fit in memory, else each time one is asked for.
    ///
    /// # Errors
    /// A volume that cannot be read; [`Error::Interrupted`].
    pub fn new(store: &Store, size: [usize; 3], interrupted: &AtomicBool) -> Result<Self> {
        Self::within(INPUT_BYTES, store, size, interrupted)
    }

    fn within(bytes: usize, store: &Store, size: [usize; 3], interrupted: &AtomicBool) -> Result<Self> {
        let mut scans = Self { store: store.clone(), size, kept: None };
        let n = store.scans().len();
        if n.saturating_mul(scans.voxels()).saturating_mul(4) > bytes {
            return Ok(scans);
        }
        // A volume and what the first pass makes of it.
        let each = store.grid().iter().product::<usize>().saturating_mul(8).max(1);
        let together = (RESIZE_BYTES / each).clamp(1, rayon::current_num_threads().max(1));
        let mut kept = Vec::with_capacity(n);
        for first in (0..n).step_by(together) {
            stop(interrupted, "resizing the scans")?;
            let wave: Result<Vec<_>> = (first..n.min(first + together)).into_par_iter().map(|i| scans.read(i)).collect();
            kept.extend(wave?);
        }
        scans.kept = Some(Arc::new(kept));
        Ok(scans)
    }

    /// Voxels of one scan.
    pub fn voxels(&self) -> usize {
        self.size.iter().product()
    }

    /// Voxels along x, y, z.
    pub fn size(&self) -> [usize; 3] {
        self.size
    }

    /// The scan at position `i` of the store.
    ///
    /// # Errors
    /// A volume that cannot be read.
    pub fn read(&self, i: usize) -> Result<Vec<f32>> {
        match self.kept.as_ref().and_then(|k| k.get(i)) {
            Some(scan) => Ok(scan.clone()),
            None => Ok(resize(&self.store.volume(i)?.all(), self.store.grid(), self.size)),
        }
    }

    fn samples(&self, split: Split) -> Result<Arc<Samples>> {
        let scans = self.clone();
        let items: Vec<(u32, u32)> = positions(&self.store, split).into_iter().map(|i| (i as u32, 0)).collect();
        Samples::new(items, self.voxels(), move |i| scans.read(i as usize))
    }
}

/// Positions of the scans of `split` in the store.
pub fn positions(store: &Store, split: Split) -> Vec<usize> {
    store.scans().iter().enumerate().filter(|(_, s)| s.split == split).map(|(i, _)| i).collect()
}

/// An [`Error::Interrupted`] when the user wants to stop.
pub(super) fn stop(interrupted: &AtomicBool, what: &str) -> Result<()> {
    if interrupted.load(Ordering::Relaxed) {
        return Err(Error::Interrupted(format!("stopped while {what}; continue with --resume")));
    }
    Ok(())
}

/// The leaves in which two JSON values differ, as dotted names; the first few.
pub(super) fn differences(a: &Value, b: &Value) -> String {
    fn walk(name: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
                for key in keys {
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    walk(&name, &a[key], &b[key], out);
                }
            }
            _ if a != b => out.push(name.to_owned()),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk("", a, b, &mut out);
    let more = out.len().saturating_sub(5);
    out.truncate(5);
    let list = out.join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}

/// Everything that decides the weights, as checkpoints record it.
fn identity(config: &Config, store: &Store) -> Result<Value> {
    let settings = serde_json::to_value(config.autoencoder()).map_err(|e| Error::Failed(e.to_string()))?;
    Ok(json!({
        "prepared set": store.hash(), "seed": config.seed, "model": { "depth": config.model.depth },
        "discover": { "autoencoder": settings },
    }))
}

/// SHA-256 over names, shapes and values of tensors, in hexadecimal.
pub fn weights_hash(weights: &Named) -> String {
    let mut h = Sha256::new();
    for (name, tensor) in weights {
        h.update(format!("{name} {:?}\n", tensor.shape));
        match &tensor.data {
            Data::F32(v) => v.iter().for_each(|x| h.update(x.to_le_bytes())),
            Data::I64(v) => v.iter().for_each(|x| h.update(x.to_le_bytes())),
        }
    }
    h.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn last(dir: &Path) -> PathBuf {
    dir.join("last.safetensors")
}

fn best(dir: &Path) -> PathBuf {
    dir.join("best.safetensors")
}

fn spec(config: &Config) -> Spec {
    Spec::autoencoder(config.autoencoder_base(), config.model.depth)
}

/// A step of `batch` scans of `size`, as far as its needs are concerned.
pub fn stage(config: &Config, batch: usize, size: [usize; 3]) -> Stage {
    let objective = Objective::Autoencoder { skips: config.discover.autoencoder.skips };
    // Patients are described alike whatever precision the network is pretrained in.
    Stage { objective, spec: spec(config), batch, size, precision: Precision::F32, optimiser: Optimiser::Adam, encoder_rate: 1.0 }
}

/// The autoencoder's settings for an adapter, with nothing left to derive, and how its steps of `batch` scans are taken
/// apart. An input that is left to the program is halved along its longest axis until the adapter can take one scan (or
/// as many at once as are asked for).
///
/// # Errors
/// [`Error::ExceedsLimit`] when an input that was given, or the smallest one, does not fit.
pub fn fitted(config: &Config, caps: &Caps, options: &Options, batch: usize) -> Result<(Autoencoder, Fit)> {
    let (mut settings, unit) = (config.autoencoder(), 1usize << (config.model.depth - 1));
    let micro = match settings.micro_batch.given() {
        // There may be fewer scans than a step was meant to take.
        Some(most) => (1..=most.min(batch)).rev().find(|m| batch.is_multiple_of(*m)).map_or(Auto::AUTO, Auto::Given),
        None => Auto::AUTO,
    };
    let mut size = config.autoencoder_input();
    loop {
        settings.input = Auto::Given(size);
        let longest = (0..3).max_by_key(|&a| (size[a], 2 - a)).unwrap_or(0);
        match fit(config, caps, options, &[stage(config, batch, size)], micro) {
            Ok(fit) => {
                settings.micro_batch = Auto::Given(fit.micro_batch);
                return Ok((settings, fit));
            }
            Err(Error::ExceedsLimit { .. }) if config.discover.autoencoder.input.given().is_none() && size[longest] > unit => {
                size[longest] = (size[longest] / 2).next_multiple_of(unit);
            }
            Err(Error::ExceedsLimit { what, need, have, .. }) => {
                let remedy = "use a smaller discover.autoencoder.input, micro_batch or base_channels".into();
                return Err(Error::ExceedsLimit { what, need, have, remedy });
            }
            Err(e) => return Err(e),
        }
    }
}

/// Looks for an autoencoder for `store` in `dir`; `resume` tells whether an unfinished one is to be continued.
///
/// # Errors
/// When resuming, a checkpoint that is damaged or belongs to other scans or settings.
pub fn find(config: &Config, store: &Store, dir: &Path, resume: bool, observer: &mut dyn Observer) -> Result<Found> {
    let path = last(dir);
    if !path.exists() {
        return Ok(Found::Nothing);
    }
    let identity = identity(config, store)?;
    let (state, metadata, tensors) = match read_checkpoint(&path) {
        Ok(found) => found,
        Err(e) if resume => return Err(e),
        Err(e) => {
            observer.note(&format!("the autoencoder is trained again: {e}"));
            return Ok(Found::Nothing);
        }
    };
    if metadata["origin"] != identity {
        let what = format!("was trained with other settings or scans ({} differ)", differences(&metadata["origin"], &identity));
        if resume {
            return Err(Error::input(&path, format!("{what}; set them back or start a new run")));
        }
        observer.note(&format!("the autoencoder is trained again: {} {what}", path.display()));
        return Ok(Found::Nothing);
    }
    if !state.done {
        if resume {
            return Ok(Found::Unfinished(Box::new((state, tensors))));
        }
        observer.note(&format!("the unfinished autoencoder in {} is trained from the start; --resume would continue it", dir.display()));
        return Ok(Found::Nothing);
    }
    match read_best(config, &identity, dir, &state) {
        Ok(trained) => Ok(Found::Finished(trained)),
        Err(e) if resume => Err(e),
        Err(e) => {
            observer.note(&format!("the autoencoder is trained again: {e}"));
            Ok(Found::Nothing)
        }
    }
}

/// The best weights of the training that ended in `state`.
fn read_best(config: &Config, identity: &Value, dir: &Path, state: &State) -> Result<Trained> {
    let path = best(dir);
    let (at, metadata, weights) = read_checkpoint(&path)?;
    if metadata["origin"] != *identity || at.standing.best != state.standing.best {
        return Err(Error::input(&path, "does not belong to last.safetensors beside it; remove both to train the autoencoder again"));
    }
    let hash = weights_hash(&weights);
    Ok(Trained { spec: spec(config), weights, hash })
}

/// Trains the autoencoder in `dir`, from the start or from `unfinished`.
///
/// With fewer train scans than `discover.autoencoder.batch_size` a step takes all of them once.
///
/// # Errors
/// As [`Phase::run`], and what the files report.
pub fn train(
    ctx: &Context,
    config: &Config,
    scans: &Scans,
    dir: &Path,
    unfinished: Option<(State, Named)>,
    interrupted: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Trained> {
    let (last, best, metrics) = (last(dir), best(dir), dir.join("metrics.jsonl"));
    let settings = &config.discover.autoencoder;
    let identity = identity(config, &scans.store)?;
    files::create_dir(dir)?;
    if unfinished.is_none() {
        // What is left of another training must never be taken for this one's.
        for path in [&last, &best] {
            if path.exists() {
                std::fs::remove_file(path).map_err(Error::io("remove", path))?;
            }
        }
    }
    let (train, validation) = (scans.samples(Split::Train)?, scans.samples(Split::Validation)?);
    let batch = settings.batch_size.min(train.len());
    if batch < settings.batch_size {
        observer.note(&format!(
            "{} train scans are fewer than discover.autoencoder.batch_size = {}; a step takes {batch}",
            train.len(),
            settings.batch_size
        ));
    }
    let stage = stage(config, batch, scans.size());
    let fit = fit(config, ctx.caps(), &Options::of(ctx), std::slice::from_ref(&stage), settings.micro_batch)?;
    let phase = Phase {
        ctx,
        config,
        spec: stage.spec,
        objective: stage.objective,
        size: stage.size,
        feed: Feed::Plain,
        batch,
        micro: fit.micro_batch,
        recompute: fit.recompute,
        precision: stage.precision,
        optimiser: stage.optimiser,
        hyper: Hyper::default(),
        clip_norm: 0.0,
        rate: settings.learning_rate,
        rules: Rules {
            schedule: Schedule::Plateau,
            factor: FACTOR,
            step_epochs: 1,
            plateau_patience: settings.plateau_patience,
            min_delta: MIN_DELTA,
            min_rate: MIN_RATE,
            stop_patience: settings.stop_patience,
        },
        max_epochs: settings.epochs,
        max_steps: (settings.max_steps > 0).then_some(settings.max_steps as u64),
        train,
        validation,
        checkpoint_steps: config.train.checkpoint_steps,
        last: &last,
        best: &best,
        about: json!({ "origin": identity }),
        encoder_rate: 1.0,
        class_weights: &[],
        judges: None,
        interrupted,
    };
    let (state, weights, mut log) = match unfinished {
        Some((state, tensors)) => {
            observer.note(&format!("continuing after step {} (autoencoder)", state.step));
            let done = state.step;
            let log = MetricsLog::resume(&metrics, done)?;
            (state, Some(tensors), log)
        }
        None => (phase.start(0), None, MetricsLog::create(&metrics)?),
    };
    let state = phase.run(state, weights.as_ref(), &mut log, observer)?;
    read_best(config, &identity, dir, &state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::nifti::write_f32;
    use crate::data::prepare::prepare;
    use crate::data::volume::{IDENTITY, Volume};
    use crate::interop::tensors::Tensor;

    fn store(dir: &Path) -> Store {
        let scans = dir.join("scans");
        std::fs::create_dir_all(&scans).unwrap();
        for i in 0..3u16 {
            let data = (0..16 * 8 * 8u16).map(|v| f32::from(v * (7 + i) % 997) - 600.0).collect();
            write_f32(&scans.join(format!("{i}.nii")), &Volume::new(data, [16, 8, 8], IDENTITY).unwrap()).unwrap();
        }
        prepare(&[scans], &dir.join("store"), &Config::default(), &mut |_| {}).unwrap()
    }

    #[test]
    fn scans_are_the_same_kept_and_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let (store, go) = (store(dir.path()), AtomicBool::new(false));
        let size = [8, 8, 4];
        let kept = Scans::new(&store, size, &go).unwrap();
        // The last size that is kept, and the first that is not.
        let bytes = 3 * 8 * 8 * 4 * 4;
        let fits = Scans::within(bytes, &store, size, &go).unwrap();
        let demand = Scans::within(bytes - 1, &store, size, &go).unwrap();
        assert!(kept.kept.is_some() && fits.kept.is_some() && demand.kept.is_none());
        for i in 0..3 {
            let want = resize(&store.volume(i).unwrap().all(), store.grid(), size);
            assert_eq!(kept.read(i).unwrap(), want);
            assert_eq!(demand.read(i).unwrap(), want);
        }
        assert!(demand.read(3).is_err() && kept.read(3).is_err());
        let mut all = [positions(&store, Split::Train), positions(&store, Split::Validation)].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
        go.store(true, Ordering::Relaxed);
        assert!(matches!(Scans::new(&store, size, &go), Err(Error::Interrupted(_))));
    }

    #[test]
    fn everything_that_decides_the_weights_is_in_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let c = Config::default();
        let of = |set: &str| identity(&Config::load(None, &[set.to_owned()]).unwrap(), &store).unwrap();
        let plain = identity(&c, &store).unwrap();
        // As read back from a checkpoint.
        assert_eq!(serde_json::from_str::<Value>(&plain.to_string()).unwrap(), plain);
        for (set, name) in [
            ("seed=1", "seed"),
            ("model.depth=3", "model.depth"),
            ("discover.autoencoder.input=[64,64,64]", "discover.autoencoder.input"),
            ("discover.autoencoder.learning_rate=0.01", "discover.autoencoder.learning_rate"),
            ("discover.autoencoder.skips=true", "discover.autoencoder.skips"),
        ] {
            assert_eq!(differences(&of(set), &plain), name);
        }
        assert_eq!(differences(&of("discover.draws=7"), &plain), "");
    }

    #[test]
    fn differences_are_named_from_both_sides_and_cut_short() {
        let (a, b) = (json!({"a": 1, "b": {"c": [1, 2], "d": 2}}), json!({"b": {"c": [1, 3], "d": 2}, "e": null, "f": 0}));
        assert_eq!(differences(&a, &b), "a, b.c, f");
        let many = json!({"1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1, "7": 1});
        assert_eq!(differences(&many, &json!({})), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn the_hash_sees_names_shapes_and_values() {
        let named = |name: &str, shape: &[usize], v: &[f32]| Named::from([(name.to_owned(), Tensor::f32(shape.to_vec(), v.to_vec()))]);
        let hash = weights_hash(&named("a", &[1, 2], &[1.0, 2.0]));
        assert_eq!(hash, weights_hash(&named("a", &[1, 2], &[1.0, 2.0])));
        for other in [named("b", &[1, 2], &[1.0, 2.0]), named("a", &[2, 1], &[1.0, 2.0]), named("a", &[1, 2], &[1.0, 2.5])] {
            assert_ne!(hash, weights_hash(&other));
        }
    }
}
