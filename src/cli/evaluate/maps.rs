//! Label maps against label maps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Args, Evaluated, cell, shown};
use crate::cli::text;
use crate::data::frame::same_place;
use crate::data::image;
use crate::data::scans::without_word;
use crate::data::volume::Volume;
use crate::error::{Error, Result};
use crate::metrics::difference::{deviation, mean};
use crate::metrics::overlap::{Counts, Thresholds, counts};
use crate::metrics::surface::Surfaces;
use crate::report::progress::Progress;
use crate::task::Kind;
use crate::task::table::{self, Choice, Classes, Image, Layout, Table, Truth};

/// What the name of a map of probabilities has behind the case's.
const PROBABILITIES: &str = "_probabilities";

const CONVENTIONS: &str = "Surface voxels have one of six neighbours outside the mask or the grid; distances in mm between centres of voxels; HD95 is the larger of the two directed 95th percentiles, linearly interpolated. Where prediction and truth lack a label, Dice, IoU and surface Dice are 1 and there are no distances; where one of them lacks it, Dice, IoU and surface Dice are 0 and distances, being infinite, are left out of the means and counted as missed or spurious. Volume errors are prediction minus truth.";

/// A case with its files.
struct Pair {
    case: String,
    predicted: PathBuf,
    truth: PathBuf,
    probabilities: Option<PathBuf>,
}

/// One label in one case.
#[derive(Clone, Debug)]
struct Measured {
    counts: Counts,
    surface_dice: f64,
    /// HD, HD95, ASSD.
    distances: Option<[f64; 3]>,
    /// One voxel in ml.
    voxel: f64,
}

impl Measured {
    /// Of a label that neither map has.
    fn absent(voxel: f64) -> Self {
        Self { counts: Counts::default(), surface_dice: 1.0, distances: None, voxel }
    }

    fn predicted_ml(&self) -> f64 {
        self.counts.predicted as f64 * self.voxel
    }

    fn truth_ml(&self) -> f64 {
        self.counts.truth as f64 * self.voxel
    }

    /// Prediction minus truth as part of the truth.
    fn relative(&self) -> Option<f64> {
        let (p, t) = (self.counts.predicted as f64, self.counts.truth as f64);
        (t > 0.0).then(|| (p - t) / t)
    }
}

pub(super) fn evaluate(a: &Args, json: bool) -> Result<Evaluated> {
    let tolerance = a.tolerance;
    let mut notes = Vec::new();
    let choice = a.recipe.as_deref().map(table::recipe).transpose()?.map(|r| r.data).unwrap_or_default();
    let (pairs, classes) = pairs(a, &choice, &mut notes)?;
    for p in &pairs {
        let (a, b) = (image::read_header(&p.predicted)?, image::read_header(&p.truth)?);
        same_place((a.size, &a.affine), (b.size, &b.affine)).map_err(|what| {
            Error::input(
                &p.predicted,
                format!("does not lie on the grid of {}: {}", p.truth.display(), what.replace("its scan", "the truth")),
            )
        })?;
    }
    let mut progress = Progress::new("evaluate", pairs.len() as u64, json);
    let mut found: Vec<(BTreeMap<u32, Measured>, f64)> = Vec::new();
    let mut thresholds: Option<Thresholds> = None;
    for (n, pair) in pairs.iter().enumerate() {
        let (mut labels, size, spacing) = labels(&pair.predicted)?;
        let (mut true_labels, ..) = self::labels(&pair.truth)?;
        if let Some(classes) = &classes {
            labels.iter_mut().chain(&mut true_labels).for_each(|v| *v = classes.value_of(*v));
        }
        if let Some(path) = &pair.probabilities {
            take(path, &pair.truth, size, &true_labels, thresholds.get_or_insert_default())?;
        }
        let voxel = spacing.iter().product::<f64>() / 1000.0;
        let most = labels.iter().chain(&true_labels).copied().max().unwrap_or(0);
        let every = counts(most as usize + 1, &labels, &true_labels);
        let mut measured = BTreeMap::new();
        for (label, c) in (0u32..).zip(every).skip(1).filter(|(_, c)| c.predicted + c.truth > 0) {
            let of = |map: &[u32]| map.iter().map(|&v| v == label).collect::<Vec<bool>>();
            let surfaces = Surfaces::of(&of(&labels), &of(&true_labels), size, spacing);
            let distances = surfaces.distances().map(|d| [d.hausdorff(), d.hd95(), d.assd()]);
            measured.insert(label, Measured { counts: c, surface_dice: surfaces.dice(tolerance), distances, voxel });
        }
        found.push((measured, voxel));
        progress.set(n as u64 + 1, "");
    }
    progress.finish(&format!("{} cases", pairs.len()));
    let with = pairs.iter().filter(|p| p.probabilities.is_some()).count();
    if with > 0 && with < pairs.len() {
        notes.push(format!("only {with} of {} cases have probabilities; the IoU over thresholds is theirs", pairs.len()));
    }
    let mut labels: BTreeSet<u32> = found.iter().flat_map(|f| f.0.keys().copied()).collect();
    labels.extend(classes.iter().flat_map(|c| c.values.iter().skip(1)));
    let name = |label: u32| {
        let class = classes.as_ref().and_then(|c| c.names.get(c.values.iter().position(|&v| v == label)?));
        class.cloned().unwrap_or_else(|| label.to_string())
    };
    if labels.is_empty() {
        notes.push("no map has a label other than the background".to_owned());
    }
    let by_label = |label: u32| -> Vec<Measured> {
        found.iter().map(|(m, voxel)| m.get(&label).cloned().unwrap_or_else(|| Measured::absent(*voxel))).collect()
    };
    let mut rows = Vec::new();
    for (pair, (measured, voxel)) in pairs.iter().zip(&found) {
        for &label in &labels {
            let m = measured.get(&label).cloned().unwrap_or_else(|| Measured::absent(*voxel));
            rows.push(row(&pair.case, label, name(label), &m));
        }
    }
    let of_label = |l: u32| {
        let mut about = of_label(&by_label(l));
        about["name"] = json!(name(l));
        about
    };
    let summaries: Vec<(u32, Value)> = labels.iter().map(|&l| (l, of_label(l))).collect();
    let mut summary = json!({ "kind": "segmentation", "cases": pairs.len(), "tolerance_mm": tolerance });
    summary["labels"] = summaries.iter().map(|(l, s)| (l.to_string(), s.clone())).collect::<serde_json::Map<_, _>>().into();
    let over = |key: &str| mean(&summaries.iter().filter_map(|(_, s)| s[key].as_f64()).collect::<Vec<_>>());
    summary["mean_over_labels"] =
        json!(AVERAGED.iter().map(|k| ((*k).to_owned(), json!(over(k)))).collect::<serde_json::Map<String, Value>>());
    if let Some(t) = &thresholds {
        summary["foreground_probabilities"] = json!({ "cases": with, "iou_pooled": t.pooled_iou(), "miou_thresholds": t.mean_iou() });
    }
    summary["conventions"] = json!(CONVENTIONS);
    let mut lines = table(&summaries, tolerance);
    if let Some(t) = &thresholds {
        lines.push(format!(
            "probabilities: IoU of the foreground at 0.5 over the whole set {}, mean over thresholds 0.5 to 0.95 and both classes {:.4}",
            shown(t.pooled_iou()),
            t.mean_iou()
        ));
    }
    lines.push(CONVENTIONS.to_owned());
    let head = HEAD.map(str::to_owned).to_vec();
    Ok(Evaluated { summary, head, cases: rows, lines, notes })
}

const HEAD: [&str; 16] = [
    "case",
    "label",
    "name",
    "dice",
    "iou",
    "precision",
    "recall",
    "surface_dice",
    "hd_mm",
    "hd95_mm",
    "assd_mm",
    "predicted_ml",
    "truth_ml",
    "volume_error_ml",
    "volume_error_relative",
    "note",
];

fn row(case: &str, label: u32, name: String, m: &Measured) -> Vec<String> {
    let d = |n: usize| cell(m.distances.map(|d| d[n]));
    let note = match (m.counts.predicted, m.counts.truth) {
        (0, 0) => "absent",
        (0, _) => "missed",
        (_, 0) => "spurious",
        _ => "",
    };
    vec![
        case.to_owned(),
        label.to_string(),
        name,
        cell(Some(m.counts.dice().unwrap_or(1.0))),
        cell(Some(m.counts.iou().unwrap_or(1.0))),
        cell(m.counts.precision()),
        cell(m.counts.recall()),
        cell(Some(m.surface_dice)),
        d(0),
        d(1),
        d(2),
        cell(Some(m.predicted_ml())),
        cell(Some(m.truth_ml())),
        cell(Some(m.predicted_ml() - m.truth_ml())),
        cell(m.relative()),
        note.to_owned(),
    ]
}

/// What is averaged over labels.
const AVERAGED: [&str; 8] = ["dice_case", "dice_pooled", "iou_case", "iou_pooled", "surface_dice", "hd_mm", "hd95_mm", "assd_mm"];

fn of_label(cases: &[Measured]) -> Value {
    let mut pooled = Counts::default();
    cases.iter().for_each(|m| pooled.add(&m.counts));
    let list = |f: &dyn Fn(&Measured) -> Option<f64>| cases.iter().filter_map(f).collect::<Vec<f64>>();
    let dice = list(&|m| Some(m.counts.dice().unwrap_or(1.0)));
    let number = |f: &dyn Fn(&Counts) -> bool| cases.iter().filter(|m| f(&m.counts)).count();
    let distance = |n: usize| mean(&list(&|m| m.distances.map(|d| d[n])));
    json!({
        "dice_case": mean(&dice), "dice_case_sd": deviation(&dice), "dice_pooled": pooled.dice(),
        "iou_case": mean(&list(&|m| Some(m.counts.iou().unwrap_or(1.0)))), "iou_pooled": pooled.iou(),
        "precision_pooled": pooled.precision(), "recall_pooled": pooled.recall(),
        "surface_dice": mean(&list(&|m| Some(m.surface_dice))),
        "hd_mm": distance(0), "hd95_mm": distance(1), "assd_mm": distance(2),
        "volume_error_ml": mean(&list(&|m| Some(m.predicted_ml() - m.truth_ml()))),
        "volume_error_relative": mean(&list(&Measured::relative)),
        "volume_error_relative_absolute": mean(&list(&|m| m.relative().map(f64::abs))),
        "measured": number(&|c| c.predicted > 0 && c.truth > 0), "missed": number(&|c| c.predicted == 0 && c.truth > 0),
        "spurious": number(&|c| c.predicted > 0 && c.truth == 0), "absent": number(&|c| c.predicted == 0 && c.truth == 0),
    })
}

fn table(labels: &[(u32, Value)], tolerance: f64) -> Vec<String> {
    let surface = format!("surface Dice {tolerance} mm");
    let headers = [
        "label",
        "Dice",
        "± sd",
        "Dice pooled",
        "IoU",
        "IoU pooled",
        &surface,
        "HD95 mm",
        "ASSD mm",
        "volume ml",
        "missed",
        "spurious",
        "absent",
    ];
    let rows: Vec<Vec<String>> = labels
        .iter()
        .map(|(_, s)| {
            let real = |k: &str| shown(s[k].as_f64());
            let mut row = vec![s["name"].as_str().unwrap_or_default().to_owned()];
            row.extend(
                ["dice_case", "dice_case_sd", "dice_pooled", "iou_case", "iou_pooled", "surface_dice", "hd95_mm", "assd_mm"].map(real),
            );
            row.push(s["volume_error_ml"].as_f64().map_or_else(String::new, |v| format!("{v:+.3}")));
            row.extend(["missed", "spurious", "absent"].map(|k| s[k].to_string()));
            row
        })
        .collect();
    text::table(&headers, &rows).lines().map(str::to_owned).collect()
}

/// The cases, matched by name, and the classes where the truth or the recipe names them.
fn pairs(a: &Args, choice: &Choice, notes: &mut Vec<String>) -> Result<(Vec<Pair>, Option<Classes>)> {
    let (predicted, truth) = (a.predictions.as_path(), a.truth.as_path());
    let pair = |case: String, predicted: PathBuf, truth: PathBuf| {
        let near = |e: &str| predicted.with_file_name(format!("{}{PROBABILITIES}{e}", image::stem(&predicted)));
        let probabilities = image::ENDINGS.iter().map(|e| near(e)).find(|p| p.is_file());
        Pair { case, predicted, truth, probabilities }
    };
    let named = || Classes::chosen(choice).map_err(Error::Usage);
    if predicted.is_file() && image::ending(truth).is_some() && truth.is_file() {
        return Ok((vec![pair(image::stem(predicted), predicted.to_path_buf(), truth.to_path_buf())], named()?));
    }
    let predictions =
        if predicted.is_dir() { cases(predicted)? } else { BTreeMap::from([(image::stem(predicted), predicted.to_path_buf())]) };
    // A folder of label maps alone has no layout, also where a list of its labels lies beside them.
    let maps_alone = truth.is_dir()
        && match table::told(truth)? {
            None => true,
            Some(Layout::NnUnet) => !truth.join("labelsTr").is_dir(),
            Some(_) => false,
        };
    let (mut truths, classes) = if maps_alone {
        let list = cases(truth)?.into_iter().map(|(case, path)| (BTreeSet::from([case]), path)).collect();
        (list, named()?)
    } else {
        let table = table::read(truth, Kind::Segment, Some(choice))?;
        (listed(&table)?, Some(Classes { names: table.classes, values: table.values, merged: table.merged }))
    };
    let mut out = Vec::new();
    for (case, file) in predictions {
        let Some(at) = truths.iter().position(|(names, _)| names.contains(&case)) else {
            return Err(Error::input(&file, format!("there is no truth for the case {case} in {}", truth.display())));
        };
        out.push(pair(case, file, truths.swap_remove(at).1));
    }
    if let Some((case, file)) = truths.iter().filter_map(|(names, file)| Some((names.first()?, file))).min() {
        let what = format!("{} cases of {} have no prediction, the first being {case}", truths.len(), truth.display());
        if !a.partial {
            return Err(Error::input(
                predicted,
                format!("{what} ({}); predict them, or give --partial to evaluate the others", file.display()),
            ));
        }
        notes.push(format!("{what}; they are left out"));
    }
    Ok((out, classes))
}

/// The masks of labelled scans with the names that predictions of them may have: the case's, and its first scan's.
fn listed(table: &Table) -> Result<Vec<(BTreeSet<String>, PathBuf)>> {
    let mut out: BTreeMap<&Path, BTreeSet<String>> = BTreeMap::new();
    for case in &table.cases {
        let Truth::Mask(Image::Scan(mask)) = &case.truth else {
            let what = "holds cubes, which lie nowhere; label maps of scans were expected";
            return Err(Error::input(case.images.first().map_or(Path::new(""), |i| i.path()), what));
        };
        let names = out.entry(mask).or_default();
        names.insert(case.id.clone());
        names.extend(case.images.first().map(|i| image::stem(i.path())));
    }
    Ok(out.into_iter().map(|(mask, names)| (names, mask.to_path_buf())).collect())
}

/// The label maps of a folder by the names of their cases: the name without a word such as `_labels`. A file with such a word stands
/// before one without, which is the scan.
fn cases(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut out: BTreeMap<String, (bool, PathBuf)> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let stem = image::stem(&path);
        if image::ending(&path).is_none() || stem.starts_with('.') || stem.ends_with(PROBABILITIES) {
            continue;
        }
        // LiTS has segmentation-N for volume-N.
        let of_lits = stem.strip_prefix("segmentation-").filter(|n| n.parse::<u32>().is_ok()).map(|n| format!("volume-{n}"));
        let (case, word) = match of_lits.as_deref().or_else(|| without_word(&stem)) {
            Some(case) => (case, true),
            None => (stem.as_str(), false),
        };
        match out.get(case) {
            Some((before, other)) if *before == word => {
                return Err(Error::input(&path, format!("is of the case {case}, and so is {}; keep one of them", other.display())));
            }
            Some((true, _)) => {}
            _ => drop(out.insert(case.to_owned(), (word, path))),
        }
    }
    if out.is_empty() {
        return Err(Error::input(dir, format!("holds no label map ({})", image::ENDINGS.join(", "))));
    }
    Ok(out.into_iter().map(|(case, (_, path))| (case, path)).collect())
}

/// Largest label.
const MOST: f32 = 65535.0;

/// A label map as whole numbers, its size and voxel size.
fn labels(path: &Path) -> Result<(Vec<u32>, [usize; 3], [f64; 3])> {
    let volume = image::read(path)?;
    let spacing = volume.spacing();
    let Volume { data, size, .. } = volume;
    if let Some((at, v)) = data.iter().enumerate().find(|(_, v)| !(**v >= 0.0 && **v <= MOST && v.fract() == 0.0)) {
        let [_, nj, nk] = size;
        let place = [at / (nj * nk), at / nk % nj, at % nk];
        return Err(Error::input(path, format!("voxel {place:?} holds {v}, but a label map has whole numbers from 0 to {MOST}")));
    }
    Ok((data.into_iter().map(|v| v as u32).collect(), size, spacing))
}

/// Adds a map of probabilities. A series has one volume a class, the background first.
fn take(path: &Path, truth: &Path, size: [usize; 3], labels: &[u32], thresholds: &mut Thresholds) -> Result<()> {
    let header = image::read_series_header(path)?;
    if header.size != size {
        return Err(Error::input(path, format!("has {:?} voxels, but {} has {size:?}", header.size, truth.display())));
    }
    let foreground = if header.volumes == 1 { image::read(path)? } else { image::read_volume(path, 0)? };
    let mut p = foreground.data;
    if let Some(v) = p.iter().find(|v| !(-1e-3..=1.001).contains(*v)) {
        return Err(Error::input(path, format!("holds {v}, which is no probability")));
    }
    if header.volumes > 1 {
        p.iter_mut().for_each(|p| *p = 1.0 - *p);
    }
    thresholds.take(&p, &labels.iter().map(|&l| l > 0).collect::<Vec<_>>());
    Ok(())
}
