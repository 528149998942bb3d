//! `semgen finetune`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{Common, RunArgs};
use super::run::{Fits, PREPARED, Run, absolute};
use super::watch::Watch;
use super::{stop, text, tune};
use crate::config::{Auto, Config, Tune};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Choices, Context};
use crate::interop::weights::{self, Weights};
use crate::plan::Options;
use crate::plan::tuning::choices_for;
use crate::report::finetuning;
use crate::report::progress::Progress;
use crate::task::finetune::{self, Job};
use crate::task::judge::chosen_by;
use crate::task::measure::{Answer, Measured, measure};
use crate::task::set::{self, Set};
use crate::task::start;
use crate::task::table::{self, Division, Part};
use crate::task::{Description, Kind, View};
use crate::train::fit::fit;
use crate::train::pretrain::read_checkpoint;

/// Options of `finetune`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// What is this scan, or this place in it? (encoder and a linear layer)
    Classify(TaskArgs),
    /// What is each voxel? (encoder, decoder and a new output layer)
    Segment(TaskArgs),
}

/// Options of both tasks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TaskArgs {
    /// Labelled data: a CSV table, or a folder in one of the layouts that the README lists (nnU-Net, LUNA16 and others);
    /// with --resume, that of the run if none is given
    #[arg(value_name = "DATA")]
    pub(super) data: Option<PathBuf>,
    /// Weights to start from: a checkpoint or run of this program, a .safetensors or a .pt file; without, from scratch
    #[arg(long, value_name = "FILE|RUN")]
    pub(super) weights: Option<PathBuf>,
    /// Settings, layout and classes of a task: those published, luna16-ncc, lidc-ncs, lits-lcs, brats-bms, or a TOML file of your own
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(super) recipe: Option<String>,
    /// Which cases are learnt from, validated on and reported on: a CSV file with the columns id and split
    #[arg(long, value_name = "FILE.csv")]
    pub(super) split: Option<PathBuf>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

/// What a run was begun with, as `inputs.json` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    task: Kind,
    labelled: PathBuf,
    weights: Option<PathBuf>,
    recipe: Option<String>,
    split: Option<PathBuf>,
}

/// A finished fine-tuning.
pub(super) struct Finished {
    pub(super) summary: Value,
    pub(super) lines: Vec<String>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let (kind, args) = match &a.task {
        Task::Classify(args) => (Kind::Classify, args),
        Task::Segment(args) => (Kind::Segment, args),
    };
    let ctx = common.context()?;
    let done = train(&ctx, common.json, kind, args, Config::default())?;
    if common.json {
        text::say_json(&done.summary);
    } else {
        done.lines.iter().for_each(text::say);
    }
    Ok(())
}

/// Fine-tunes, or continues to, as `args` say, on top of the settings in `preset`.
pub(super) fn train(ctx: &Context, json: bool, kind: Kind, args: &TaskArgs, preset: Config) -> Result<Finished> {
    let begun = Instant::now();
    let out = args.run.out.clone().ok_or_else(|| Error::Usage("--out is missing: name a new folder for the run".into()))?;
    let run = Run::check(&out, args.run.resume, false)?;
    if args.run.resume && !run.resume {
        text::note(json, &format!("{} holds no run yet, so one is started", out.display()));
    }
    let inputs = inputs(kind, args, &run)?;
    let before = run.settings()?;
    let recipe = inputs.recipe.as_deref().map(table::recipe).transpose()?;
    let base = match (&before, &recipe) {
        (Some(before), _) => before.clone(),
        (None, Some(recipe)) => preset.overlay_toml(&recipe.settings)?,
        (None, None) => preset,
    };
    let mut config = args.run.settings.on(base)?;
    let weights = inputs.weights.as_deref().map(read_weights).transpose()?;
    if let (Some((path, w)), None) = (&weights, &before) {
        let model = start::at(path, start::network(&w.tensors, w.metadata.as_deref(), &config.model))?;
        // The file decides the network; its number of pseudo labels plays no role.
        config.model = model;
        config.validate()?;
    }
    if let Some(before) = &before {
        run.check_settings(before, &config)?;
    }
    let table = table::read(&inputs.labelled, kind, recipe.as_ref().map(|r| &r.data))?;
    table.notes.iter().for_each(|n| text::note(json, n));
    let cases = table::parts(&table, inputs.split.as_deref(), &division(&config))?;
    let spacing = match config.prepare.spacing.given() {
        Some(given) => given,
        None => set::median_spacing(&cases)?,
    };
    config.prepare.spacing = Auto::Given(spacing);
    let task = describe(kind, &table, &config, spacing)?;
    let prepared = (|| {
        run.begin(&config, to_json(&inputs)?, ctx, &Fits::new())?;
        let set = prepare(&out.join(PREPARED), &cases, &task, json)?;
        let recorded = run.choices()?;
        let fresh = recorded.is_none();
        ctx.choose(recorded.unwrap_or_else(|| if config.train.tune == Tune::Off { Choices::default() } else { choices_for(ctx.caps()) }));
        let mut fits = Fits::new();
        if config.train.micro_batch.given().is_none() || config.train.recompute.given().is_none() {
            let found = fit(&config, ctx.caps(), &Options::of(ctx), &[finetune::stage(&config, &task)], config.train.micro_batch)?;
            config.train.micro_batch = Auto::Given(found.micro_batch);
            config.train.recompute = Auto::Given(found.recompute);
            text::note(json, &format!("training: {found}"));
            fits.insert("training", found);
        }
        if fresh && config.train.tune == Tune::Full {
            let budget = Duration::from_secs(config.train.tune_seconds as u64);
            ctx.choose(tune::search_for(ctx, &config, budget, false, json)?.0.choices());
        }
        run.keep_choices(&ctx.choices())?;
        let begin = match &weights {
            Some((path, w)) => Some(start_from(path, w, &config, &task, &out, json)?),
            None => None,
        };
        run.begin(&config, to_json(&inputs)?, ctx, &fits)?;
        Ok((set, begin))
    })();
    let (set, begin) = match prepared {
        Ok(ready) => ready,
        Err(e) => {
            run.undo();
            run.restore(before.as_ref());
            return Err(e);
        }
    };
    let origin = match &weights {
        Some((path, w)) => json!({ "weights": path.to_string_lossy(), "sha256": w.sha256, "from": w.origin() }),
        None => json!({ "weights": "scratch" }),
    };
    let mut watch = Watch::new(&out, json);
    let each = if kind == Kind::Segment { config.finetune.windows } else { 1 };
    watch.expect_task(kind.word(), &config, set.of(Part::Train).len() * each);
    let interrupted = stop::watch()?;
    let job = Job {
        ctx,
        config: &config,
        set: Arc::clone(&set),
        task: &task,
        start: begin.as_ref(),
        origin,
        out: &out,
        resume: run.resume,
        interrupted,
    };
    let trained = job.run(&mut watch);
    watch.finish();
    let state = trained?;
    let best = out.join("checkpoints/best.safetensors");
    let (best_state, _, tensors) = read_checkpoint(&best)?;
    let mut parts: BTreeMap<&str, Measured> = BTreeMap::new();
    for (name, part) in [("validation", Part::Validation), ("test", Part::Test)] {
        if !set.of(part).is_empty() {
            parts.insert(name, measure(ctx, &config, &set, &task, &tensors, part)?);
        }
        stop::check()?;
    }
    for (name, found) in &parts {
        write_cases(&out.join(format!("{name}.csv")), &task, found)?;
    }
    let metrics = |name: &str| parts.get(name).map(|m| json!(m.metrics));
    let mut summary = json!({
        "task": kind.word(), "metric": chosen_by(&task), "classes": task.classes, "validation": metrics("validation"),
        "seed": config.seed, "init": inputs.weights.as_ref().map_or("scratch".into(), |w| w.to_string_lossy().into_owned()),
        "labelled": set.of(Part::Train).len(), "steps": state.step, "best_epoch": best_state.epoch,
        "parameters": finetune::graph(&config, &task)?.params.count(),
        "device_bytes_peak": ctx.memory().1, "seconds": begun.elapsed().as_secs_f64(), "weights": best.to_string_lossy(),
    });
    if let Some(test) = metrics("test") {
        summary["test"] = test;
    }
    files::write_bytes(&out.join("summary.json"), format!("{summary:#}\n").as_bytes())?;
    let page = out.join("report.html");
    finetuning::report(&out, &task, &set, &parts)?.write(&page)?;
    let mut lines = Vec::new();
    for (name, found) in &parts {
        let list: Vec<String> = found.metrics.iter().map(|(k, v)| format!("{k} {v:.4}")).collect();
        lines.push(format!("{name}: {}", list.join(", ")));
    }
    lines.push(format!("{} steps, the best model is that of epoch {}", state.step, best_state.epoch));
    lines.push(format!("model:   {}", best.display()));
    lines.push(format!("report:  {}", page.display()));
    Ok(Finished { summary, lines })
}

/// What the run is begun or continued with.
fn inputs(kind: Kind, args: &TaskArgs, run: &Run) -> Result<Inputs> {
    let recorded: Option<Inputs> = if run.resume { run.inputs() } else { None };
    if run.resume && recorded.is_none() {
        return Err(Error::input(run.dir(), "holds a run of another kind; name the folder of a fine-tuning, or a new one"));
    }
    let place = |p: &PathBuf| absolute(p);
    if let Some(recorded) = recorded {
        let differs = [
            ("task", recorded.task != kind),
            ("data", args.data.as_ref().is_some_and(|d| place(d) != recorded.labelled)),
            ("--weights", args.weights.as_ref().is_some_and(|w| Some(place(w)) != recorded.weights)),
            ("--recipe", args.recipe.is_some() && args.recipe.as_deref().map(recipe_place) != recorded.recipe),
            ("--split", args.split.as_ref().is_some_and(|s| Some(place(s)) != recorded.split)),
        ];
        return match differs.iter().find(|d| d.1) {
            Some((what, _)) => Err(Error::input(
                run.dir(),
                format!("was begun with another {what}; resume it as it was, or start a new run in another --out"),
            )),
            None => Ok(recorded),
        };
    }
    let data = args.data.as_ref().ok_or_else(|| Error::Usage("no labelled data were given; name a CSV file or a folder".into()))?;
    Ok(Inputs {
        task: kind,
        labelled: place(data),
        weights: args.weights.as_ref().map(place),
        recipe: args.recipe.as_deref().map(recipe_place),
        split: args.split.as_ref().map(place),
    })
}

/// The name of a recipe, or where its file is from anywhere.
fn recipe_place(name: &str) -> String {
    if name.ends_with(".toml") { absolute(Path::new(name)).to_string_lossy().into_owned() } else { name.to_owned() }
}

/// How cases are divided where the data do not say.
fn division(config: &Config) -> Division {
    let f = &config.finetune;
    Division {
        seed: config.seed,
        folds: f.folds,
        fold: f.fold,
        validation: f.validation_fraction,
        test: f.test_fraction,
        fraction: f.fraction,
    }
}

fn to_json(inputs: &Inputs) -> Result<Value> {
    serde_json::to_value(inputs).map_err(|e| Error::Failed(e.to_string()))
}

/// The weights in a file, or the best of a run.
fn read_weights(path: &Path) -> Result<(PathBuf, Weights)> {
    let file = weights::locate(path)?;
    let weights = weights::read(&file)?;
    Ok((file, weights))
}

/// The tensors to start from, with a report in words and as `weights.json`.
fn start_from(
    path: &Path,
    weights: &Weights,
    config: &Config,
    task: &Description,
    out: &Path,
    json: bool,
) -> Result<crate::train::checkpoint::Named> {
    let graph = finetune::graph(config, task)?;
    let (mut tensors, mut report) =
        start::at(path, start::fit(&weights.tensors, &graph, &task.spec(), start::ends_in_masks(weights.metadata.as_deref())))?;
    report.rescaled = start::rescale(&mut tensors, &graph);
    report.renamed.clone_from(&weights.renamed);
    report.dropped.extend(weights.dropped.iter().cloned());
    text::note(json, &format!("{}:", path.display()));
    report.lines().iter().for_each(|l| text::note(json, l));
    let value = serde_json::to_value(&report).map_err(|e| Error::Failed(e.to_string()))?;
    files::write_bytes(&out.join("weights.json"), format!("{value:#}\n").as_bytes())?;
    Ok(tensors)
}

/// What the model will be for.
fn describe(kind: Kind, table: &table::Table, config: &Config, spacing: [f64; 3]) -> Result<Description> {
    let view = match kind {
        Kind::Segment => View::Windows,
        Kind::Classify if table.cases.iter().all(|c| c.point.is_some()) => View::Point,
        Kind::Classify => View::Whole,
    };
    Ok(Description {
        kind,
        output: table.output,
        view,
        classes: table.classes.clone(),
        values: table.values.clone(),
        merged: table.merged.clone(),
        channels: table.channels.clone(),
        model: config.model.clone(),
        window: config.cube.size,
        recipe: set::recipe(config, spacing),
    })
}

fn prepare(dir: &Path, cases: &[(table::Case, Part)], task: &Description, json: bool) -> Result<Arc<Set>> {
    let count = |part| cases.iter().filter(|c| c.1 == part).count();
    let counts =
        format!("{} cases to learn from, {} to validate on, {} to test on", count(Part::Train), count(Part::Validation), count(Part::Test));
    text::note(json, &counts);
    if count(Part::Train) == 0 || count(Part::Validation) == 0 {
        return Err(Error::Usage(format!("{counts}; at least one to learn from and one to validate on are needed")));
    }
    let mut progress: Option<Progress> = None;
    let set = Set::make(dir, cases, task, &mut |step| match step {
        set::Progress::Reused => text::note(json, &format!("{} was made from the same files and is used again", dir.display())),
        set::Progress::Note(what) => match &mut progress {
            Some(p) => p.note(&what),
            None => text::note(json, &what),
        },
        set::Progress::Done(done, total) => {
            progress.get_or_insert_with(|| Progress::new("prepare", total as u64, json)).set(done as u64, "")
        }
    })?;
    if let Some(progress) = progress {
        progress.finish(&format!("{} scans", set.scans.len()));
    }
    Ok(Arc::new(set))
}

/// One line a case.
fn write_cases(path: &Path, task: &Description, found: &Measured) -> Result<()> {
    let names: Vec<&String> = match task.kind {
        Kind::Segment => task.classes.iter().skip(1).collect(),
        Kind::Classify if task.outputs() == 1 => vec![&task.classes[1]],
        Kind::Classify => task.classes.iter().collect(),
    };
    files::write_atomic(path, |f| {
        let mut table = csv::Writer::from_writer(f);
        table.write_record(std::iter::once("id").chain(names.iter().map(|n| n.as_str())))?;
        for (id, answer) in &found.cases {
            let cells: Vec<String> = match answer {
                Answer::Dice(values) => values.iter().map(|v| v.map_or(String::new(), |v| v.to_string())).collect(),
                Answer::Probabilities(values) => values.iter().map(f32::to_string).collect(),
            };
            table.write_record(std::iter::once(id).chain(&cells))?;
        }
        table.flush()
    })
}
