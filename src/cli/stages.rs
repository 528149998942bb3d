//! The stages that runs are made of; what is missing is made first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::args::{Common, RunArgs};
use super::run::{self, DISCOVER, Fits, PREPARED, Run, Source};
use super::watch::Watch;
use super::{previews, stop, text, tune};
use crate::config::{Auto, Config, Filter, Tune};
use crate::data::prepare::{Progress as Step, prepare_if};
use crate::data::store::{Split, Store};
use crate::discover::autoencoder::{self, positions};
use crate::discover::coordinates::Rules;
use crate::discover::manifest::{Header, Manifest};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Choices, Context};
use crate::plan::Options;
use crate::plan::tuning::choices_for;
use crate::report::progress::Progress;
use crate::train::fit::{Stage, fit};

/// Label maps that are named one by one.
const NAMED: usize = 5;

/// A run with its scans prepared.
pub(super) struct Ready {
    pub(super) ctx: Context,
    pub(super) config: Config,
    pub(super) run: Run,
    pub(super) store: Store,
    pub(super) watch: Watch,
    source: Source,
    /// Settings before this call, if it continues a run.
    before: Option<Config>,
}

/// A run directory with what it begins from.
pub(super) struct Opened {
    pub(super) run: Run,
    pub(super) source: Source,
    /// Settings before this call, if it continues a run.
    pub(super) before: Option<Config>,
    pub(super) config: Config,
}

/// Opens the run that the options name; nothing is created. `preset` are the settings of a new one.
pub(super) fn open(common: &Common, args: &RunArgs, inputs: &[PathBuf], preset: Config) -> Result<Opened> {
    let given = if inputs.is_empty() { None } else { Some(Source::of(inputs)?) };
    let out = match (&args.out, &given) {
        (Some(out), _) => out.clone(),
        (None, Some(Source::Run(dir))) => dir.clone(),
        (None, _) => return Err(Error::Usage("--out is missing: name a new folder for the run".into())),
    };
    let here = std::path::absolute(&out).unwrap_or_else(|_| out.clone());
    let in_place = given == Some(Source::Run(here));
    let run = Run::check(&out, args.resume, in_place)?;
    if args.resume && !run.resume {
        text::note(common.json, &format!("{} holds no run yet, so one is started", out.display()));
    }
    if let (true, Some(given), Some(recorded)) = (run.resume && !in_place, &given, run.source())
        && *given != recorded
    {
        return Err(Error::input(&out, "was begun with other scans; resume it without naming any, or start a new run in another --out"));
    }
    let source = match (if in_place { None } else { given }, run.source()) {
        (Some(given), _) => given,
        (None, Some(recorded)) => recorded,
        (None, None) => return Err(Error::Usage("no scans were given; name scan files or folders, a prepared store, or a run".into())),
    };
    let before = run.settings()?;
    let base = match (&before, &source) {
        (Some(before), _) => before.clone(),
        (None, Source::Run(other)) => Config::load(Some(&other.join("config.toml")), &[])?,
        (None, _) => preset,
    };
    let config = args.settings.on(base)?;
    if let Some(before) = &before {
        run.check_settings(before, &config)?;
    }
    Ok(Opened { run, source, before, config })
}

/// Opens or starts the run that the options name, and prepares its scans. `preset` are the settings of a new run, which
/// `trains` or only discovers.
///
/// A new run directory is taken back if its scans or settings cannot be used.
pub(super) fn begin(common: &Common, opened: Opened, recorded: bool, trains: bool) -> Result<Ready> {
    let Opened { run, source, before, mut config } = opened;
    let ctx = common.context()?;
    let published = Config::default().cube.size;
    if config.cube.size != published {
        let text = format!("cube.size is {}; published results are for {}", text::by(&config.cube.size), text::by(&published));
        text::note(common.json, &text);
    }
    let ready = (|| {
        run.begin(&config, source.json(), &ctx, &Fits::new())?;
        let store = store(&run, &source, recorded, &config, common.json)?;
        adopt(&mut config, &source, &store);
        settle(&mut config, &ctx, &run, &source, common.json, |config| decide(config, &ctx, &source, &store, trains))?;
        Ok(store)
    })();
    match ready {
        Ok(store) => {
            let watch = Watch::new(run.dir(), common.json);
            Ok(Ready { ctx, config, run, store, watch, source, before })
        }
        Err(e) => {
            run.undo();
            run.restore(before.as_ref());
            Err(e)
        }
    }
}

/// Decides what the bits of a run depend on besides its settings, and keeps it with the run: the kernels' variants, and how batches
/// are taken apart, which `decide` says.
pub(super) fn settle(
    config: &mut Config,
    ctx: &Context,
    run: &Run,
    source: &Source,
    json: bool,
    decide: impl FnOnce(&mut Config) -> Result<Fits>,
) -> Result<()> {
    let begun = run.choices()?;
    let fresh = begun.is_none();
    ctx.choose(begun.unwrap_or_else(|| if config.train.tune == Tune::Off { Choices::default() } else { choices_for(ctx.caps()) }));
    let fits = decide(config)?;
    if fresh && config.train.tune == Tune::Full {
        let budget = Duration::from_secs(config.train.tune_seconds as u64);
        ctx.choose(tune::search_for(ctx, config, budget, false, json)?.0.choices());
        stop::check()?;
    }
    run.keep_choices(&ctx.choices())?;
    for (stage, fit) in &fits {
        text::note(json, &format!("{stage}: {fit}"));
    }
    run.begin(config, source.json(), ctx, &fits)
}

/// Decides how the batches are taken apart as far as that is left to the program. The settings keep it, so that the run
/// goes on as it began.
fn decide(config: &mut Config, ctx: &Context, source: &Source, store: &Store, trains: bool) -> Result<Fits> {
    let (mut fits, options) = (Fits::new(), Options::of(ctx));
    // The patterns of another run are found already.
    if config.discover.autoencoder.micro_batch.given().is_none() && !matches!(source, Source::Run(_)) {
        let batch = config.discover.autoencoder.batch_size.min(positions(store, Split::Train).len().max(1));
        let (_, fit) = autoencoder::fitted(config, ctx.caps(), &options, batch)?;
        config.discover.autoencoder.micro_batch = Auto::Given(fit.micro_batch);
        fits.insert("autoencoder", fit);
    }
    if trains && config.train.micro_batch.given().is_none() {
        let fit = fit(config, ctx.caps(), &options, &Stage::pretraining(config), config.train.micro_batch)?;
        config.train.micro_batch = Auto::Given(fit.micro_batch);
        fits.insert("training", fit);
    }
    Ok(fits)
}

/// Scans that others prepared are described by their own settings.
fn adopt(config: &mut Config, source: &Source, store: &Store) {
    if !matches!(source, Source::Scans(_)) {
        let (p, r) = (&mut config.prepare, store.recipe());
        (p.modality, p.window, p.mri, p.align) = (r.modality, r.window, r.mri, r.align);
        (p.spacing, p.grid) = (Auto::Given(r.spacing), Auto::Given(store.grid()));
    }
}

/// The prepared store of a run. With `recorded`, inputs that are gone are no obstacle if their store is complete.
fn store(run: &Run, source: &Source, recorded: bool, config: &Config, json: bool) -> Result<Store> {
    let fits = |name: &Path| {
        let name = name.display().to_string();
        move |scans: usize, grid: [usize; 3]| fits(config, &name, scans, grid)
    };
    match source {
        Source::Scans(inputs) => {
            let dir = run.dir().join(PREPARED);
            if recorded
                && inputs.iter().any(|p| !p.exists())
                && let Ok(store) = Store::open(&dir)
            {
                text::note(json, &format!("the scans are gone; {} is used as it is", dir.display()));
                return Ok(store);
            }
            prepare(inputs, &dir, config, json, &fits(inputs.first().map_or(Path::new(""), |p| p.as_path())))
        }
        Source::Store(dir) => {
            let store = Store::open(dir)?;
            fits(dir)(store.scans().len(), store.grid())?;
            Ok(store)
        }
        Source::Run(dir) => Ok(run::patterns(dir)?.0),
        Source::Cubes(dir) => {
            Err(Error::input(dir, "holds cubes that are cut already, from which only `semgen pretrain` can learn; give scans"))
        }
    }
}

/// Whether patterns can be found on this many scans of this grid; `name` is what they came from.
fn fits(config: &Config, name: &str, scans: usize, grid: [usize; 3]) -> Result<()> {
    if scans < 2 {
        return Err(Error::input(
            name,
            format!("holds {scans} scan, but one to learn from and one to validate on are needed; give at least 2"),
        ));
    }
    Rules::new(config, config.prepare.modality).starts(&format!("grid of {name}"), grid).map(|_| ()).map_err(|_| {
        let (cube, ahead) = (config.cube.size, config.discover.look_ahead);
        Error::input(
            name,
            format!(
                "the common grid of its scans is {} voxels, too small for cubes of {} with {} free behind them; set a smaller cube.size (and discover.look_ahead), a larger prepare.grid or a finer prepare.spacing",
                text::by(&grid),
                text::by(&cube),
                text::by(&ahead.map(|a| a + 1)),
            ),
        )
    })
}

/// Prepares scans and says what was found.
pub(super) fn prepare(
    inputs: &[PathBuf],
    out: &Path,
    config: &Config,
    json: bool,
    fits: &dyn Fn(usize, [usize; 3]) -> Result<()>,
) -> Result<Store> {
    let mut progress: Option<Progress> = None;
    let note = |progress: &mut Option<Progress>, line: &str| match progress {
        Some(p) => p.note(line),
        None => text::note(json, line),
    };
    let store = prepare_if(inputs, out, config, fits, &mut |step| match step {
        Step::Found { scans, left_out } => {
            text::note(json, &format!("{scans} scans, {} label maps left out", left_out.len()));
            for (path, reason) in left_out.iter().take(NAMED) {
                text::note(json, &format!("  {}: {reason}", path.display()));
            }
            if left_out.len() > NAMED {
                text::note(json, &format!("  and {} more", left_out.len() - NAMED));
            }
        }
        // Headers are read fast; only much work is worth a bar of its own.
        Step::Read { .. } => {}
        Step::Reused { scans } => text::note(json, &format!("{} was made from the same {scans} scans and is used again", out.display())),
        Step::Grid { spacing, grid } => {
            let how = if config.prepare.spacing.given().is_some() { "as set" } else { "the set's median" };
            text::note(json, &format!("voxels of {} mm ({how}), grid of {}", text::by(&spacing), text::by(&grid)));
        }
        Step::Note { path, what } => note(&mut progress, &format!("{}: {what}", path.display())),
        Step::Skipped { path, reason } => note(&mut progress, &format!("{}: skipped: {reason}", path.display())),
        Step::Written { done, total } => {
            progress.get_or_insert_with(|| Progress::new("prepare", total as u64, json)).set(done as u64, "");
        }
    })?;
    if let Some(progress) = progress {
        progress.finish(&format!("{} scans", store.scans().len()));
    }
    Ok(store)
}

/// The patterns of a run, with their pictures.
pub(super) fn discover(ready: &mut Ready) -> Result<Arc<Manifest>> {
    let Ready { ctx, config, run, store, watch, source, before } = ready;
    let manifest = if let Source::Run(other) = source {
        taken_over(other, config, store)?
    } else {
        let interrupted = stop::watch()?;
        let train = store.scans().iter().filter(|s| s.split == Split::Train).count();
        watch.expect_autoencoder(config, train);
        let found = crate::discover::run::run(ctx, config, store, &run.dir().join(DISCOVER), run.resume, interrupted, watch);
        watch.finish();
        if found.as_ref().is_err_and(|e| e.exit_code() == 2) {
            run.restore(before.as_ref());
        }
        found?
    };
    let folder = run.dir().join("previews");
    files::create_dir(&folder)?;
    previews::neighbours(&manifest, store)?.write(&folder.join("neighbours.png"))?;
    previews::crops(&manifest, store)?.write(&folder.join("crops.png"))?;
    stop::check()?;
    Ok(manifest)
}

/// The patterns of another run, if they are those that `config` asks for.
fn taken_over(other: &Path, config: &Config, store: &Store) -> Result<Arc<Manifest>> {
    let (_, path) = run::patterns(other)?;
    let manifest = Manifest::load(&path)?;
    manifest.check_store(store.hash())?;
    let found = manifest.header();
    let mut wanted = Header::new(config, store.modality(), store.grid(), store.hash(), &found.autoencoder);
    wanted.discover.write_cubes = found.discover.write_cubes;
    if config.discover.filter == Filter::Auto {
        wanted.discover.filter = found.discover.filter;
    }
    let (own, theirs) = (&mut wanted.discover.autoencoder, &found.discover.autoencoder);
    if config.discover.autoencoder.input.given().is_none() {
        own.input = theirs.input;
    }
    if config.discover.autoencoder.micro_batch.given().is_none() {
        own.micro_batch = theirs.micro_batch;
    }
    let keys = [
        ("seed", found.seed != wanted.seed),
        ("cube", found.cube != wanted.cube),
        ("model.classes", found.classes != wanted.classes),
        ("discover", found.discover != wanted.discover),
    ];
    match keys.iter().find(|(_, differs)| *differs) {
        Some((key, _)) => Err(Error::input(&path, format!("was made with another `{key}` than is asked for; discover again in a new run"))),
        None => Ok(Arc::new(manifest)),
    }
}
