//! `semgen demo --finetune`: what the pretrained weights are worth on target tasks with few labels.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::args::{RunArgs, Settings};
use super::super::finetune::{self, TaskArgs};
use super::super::{stop, text};
use super::{SIZE, SPACING, TYPES};
use crate::config::{Auto, Config};
use crate::data::phantom::{CLASSIFY, Regions, SEGMENT};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::Context;
use crate::report::progress::Progress;
use crate::report::trials::{self, Compared, Trial};
use crate::task::Kind;
use crate::task::table::Part;

/// What is tried: the task, its table, the settings on top of those that the pretrained network decides, about how many windows make
/// an epoch, and, from the smallest, the shares of the patients to learn from whose labels are used, each with the number of runs of
/// each kind. Epochs are as long for all, however many scans patients have, since the rate falls with them.
const TRIED: [(Kind, &str, &str, f64, &[(f64, u32)]); 2] = [
    (Kind::Segment, SEGMENT, include_str!("segment.toml"), 240.0, &[(0.0625, 8), (0.5, 3)]),
    // Fewer labelled patients teach a classifier nothing in so few steps, whatever it starts from.
    (Kind::Classify, CLASSIFY, include_str!("classify.toml"), 320.0, &[(0.5, 3), (1.0, 3)]),
];
/// Settings of the pretraining, on top of those of the demo, which is shorter.
pub(super) const PRETRAINING: &str = include_str!("pretrain.toml");
/// Patients of the labelled scans; none of them is among those of the pretraining.
const PATIENTS: usize = 80;
/// Shares of the patients to learn from and to choose models by.
const SHARES: [f64; 2] = [0.4, 0.15];
/// Mean diameters of the nodules, mm: a few of the largest would have most of the voxels.
const DIAMETERS: [f32; 2] = [8.0, 20.0];
/// Folder of the labelled scans.
pub(super) const NODULES: &str = "nodules";
/// Folder of the runs.
pub(super) const TASKS: &str = "tasks";
/// The page about them.
pub(super) const PAGE: &str = "finetuning.html";
/// Their values.
pub(super) const TABLE: &str = "finetuning.json";

/// What the runs came to.
pub(super) struct Tried {
    pub(super) lines: Vec<String>,
    pub(super) json: Value,
}

/// Makes the labelled scans in `out`, fine-tunes from `weights` and from scratch, and writes the page. Runs that `out` holds
/// already are taken from there.
pub(super) fn run(ctx: &Context, json: bool, out: &Path, weights: &Path, pretrained: &Config) -> Result<Tried> {
    let data = out.join(NODULES);
    let regions = Regions {
        patients: PATIENTS,
        types: TYPES,
        seed: pretrained.seed.wrapping_add(1000),
        size: SIZE,
        spacing: SPACING,
        cube: pretrained.cube.size,
        diameters: DIAMETERS,
        each: 3,
        shares: SHARES,
    };
    // The table of the segmentation is written last.
    if !data.join(SEGMENT).is_file() {
        let mut progress = Progress::new("labelled phantoms", PATIENTS as u64, json);
        regions.write(&data, &mut |done| progress.set(done as u64, ""))?;
        progress.finish(&format!("{PATIENTS} patients with nodules in {}", data.display()));
    }
    let tasks = out.join(TASKS);
    files::create_dir(&tasks)?;
    let mut found = Vec::new();
    for (kind, table, preset, windows, shares) in TRIED {
        for &(fraction, seeds) in shares {
            let (split, scans) = labelled(&data.join(table), fraction)?;
            let begin = found.len();
            for seed in 0..seeds {
                for init in trials::INITS {
                    stop::check()?;
                    let mut config = Config::default().overlay_toml(preset)?;
                    config.seed = pretrained.seed.wrapping_add(seed);
                    (config.model, config.cube, config.prepare.modality) =
                        (pretrained.model.clone(), pretrained.cube.clone(), pretrained.prepare.modality);
                    config.prepare.spacing = Auto::Given(SPACING);
                    config.finetune.windows = (windows / scans as f64).round().max(1.0) as usize;
                    let out = tasks.join(format!("{}-{}-{init}-{seed}", kind.word(), permille(fraction)));
                    let settings = Settings { config: None, sets: Vec::new(), seed: None };
                    let args = TaskArgs {
                        data: Some(data.join(table)),
                        weights: (init == trials::PRETRAINED).then(|| weights.to_path_buf()),
                        recipe: None,
                        split: Some(split.clone()),
                        run: RunArgs { resume: out.exists(), out: Some(out), settings },
                    };
                    found.push(one(ctx, json, kind, &args, config, init)?);
                }
            }
            trials::compare(&found[begin..]).iter().flat_map(Compared::lines).for_each(|line| text::note(json, &line));
        }
    }
    let compared = trials::compare(&found);
    trials::report(&found, &compared)?.write(&out.join(PAGE))?;
    let comparisons: Vec<Value> = compared.iter().map(Compared::json).collect();
    let value = json!({ "trials": found, "comparisons": comparisons, "report": out.join(PAGE).to_string_lossy() });
    files::write_bytes(&out.join(TABLE), format!("{value:#}\n").as_bytes())?;
    Ok(Tried { lines: compared.iter().flat_map(Compared::lines).collect(), json: value })
}

fn permille(fraction: f64) -> u32 {
    (fraction * 1000.0).round() as u32
}

/// Writes which cases of a table are used where the labels of the first `fraction` of the training patients are: the same for every
/// seed, and those of a smaller share are among those of a larger. Returns the file and the number of scans to learn from.
fn labelled(table: &Path, fraction: f64) -> Result<(PathBuf, usize)> {
    let text = std::fs::read_to_string(table).map_err(Error::io("read", table))?;
    // The tables are our own: id, file, truth, patient, part.
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split(',').collect()).collect();
    let mut patients: Vec<&str> = rows.iter().filter(|r| r[4] == Part::Train.word()).map(|r| r[3]).collect();
    patients.dedup();
    patients.truncate((patients.len() as f64 * fraction).ceil() as usize);
    let mut out = String::from("id,split\n");
    let mut scans = 0;
    for r in rows.iter().filter(|r| r[4] != Part::Train.word() || patients.contains(&r[3])) {
        out += &format!("{},{}\n", r[0], r[4]);
        scans += usize::from(r[4] == Part::Train.word());
    }
    let path = table.with_extension(format!("{}.csv", permille(fraction)));
    files::write_bytes(&path, out.as_bytes())?;
    Ok((path, scans))
}

/// One run, or what it came to before.
fn one(ctx: &Context, json: bool, kind: Kind, args: &TaskArgs, config: Config, init: &'static str) -> Result<Trial> {
    let (dir, seed) = (args.run.out.clone().unwrap_or_default(), config.seed);
    let known = std::fs::read(dir.join("summary.json")).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    let summary = match known {
        Some(known) => known,
        None => {
            text::note(json, &dir.display().to_string());
            finetune::train(ctx, json, kind, args, config)?.summary
        }
    };
    let metric = summary["metric"].as_str().unwrap_or_default().to_owned();
    let value = summary["test"][&metric]
        .as_f64()
        .ok_or_else(|| Error::input(&dir, "holds a run without a result; remove the folder and try again"))?;
    Ok(Trial { task: kind, metric, labelled: summary["labelled"].as_u64().unwrap_or(0), init, seed, value, run: dir })
}
