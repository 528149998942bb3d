//! `semgen embed`.

use std::path::PathBuf;

use serde_json::json;

use super::args::{Common, Settings};
use super::predict::{is_array, stem};
use super::scans::{self, Failures, new_folder};
use super::text;
use crate::config::Config;
use crate::data::arrays::Cubes;
use crate::data::frame::Frame;
use crate::data::image;
use crate::data::orient::Axes;
use crate::data::volume::{apply, spacing};
use crate::discover::features::npy;
use crate::error::{Error, Result};
use crate::files;
use crate::report::progress::Progress;
use crate::task::encode::{Encoder, Features};
use crate::task::predict::Scan;
use crate::task::predict::slide::Slide;

/// Options of `embed`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Weights with an encoder: a run, a checkpoint, a .safetensors or a .pt file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Scans, folders of scans, or arrays of cubes (.npy)
    #[arg(value_name = "SCAN", required = true)]
    inputs: Vec<PathBuf>,
    /// Folder for features.npy and features.csv; it must be new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One row for each window of a scan instead of their mean
    #[arg(long)]
    windows: bool,
    /// Report a scan that cannot be used and go on; the exit status tells in the end
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Rows that are found.
struct Rows {
    features: Vec<f32>,
    table: csv::Writer<Vec<u8>>,
    count: usize,
    width: usize,
}

impl Rows {
    fn push(&mut self, features: &[f32], id: &str, place: Option<[f64; 3]>) -> Result<()> {
        let place = place.map_or_else(|| vec![String::new(); 3], |p| p.iter().map(|v| format!("{v:.3}")).collect());
        let record: Vec<String> = [self.count.to_string(), id.to_owned()].into_iter().chain(place).collect();
        self.table.write_record(record).map_err(|e| Error::Failed(format!("a table cannot be written ({e})")))?;
        self.features.extend_from_slice(features);
        self.count += 1;
        Ok(())
    }
}

/// Voxel sizes of a scan along left, posterior, superior.
pub(super) fn own_spacing(path: &std::path::Path) -> Result<[f64; 3]> {
    let affine = image::read_series_header(path)?.affine;
    let (axes, s) = (Axes::closest(&affine), spacing(&affine));
    Ok(axes.stored.map(|a| s[a]))
}

/// Says what the weights leave open about the preparation of scans.
pub(super) fn say_preparation(encoder: &Encoder, config: &Config, json: bool) {
    if encoder.task.is_some() {
        return;
    }
    if !encoder.told {
        text::note(json, "the weights do not say how scans were prepared: --set prepare.modality=…, prepare.spacing and cube.size do");
    } else if config.prepare.spacing.given().is_none() {
        text::note(json, "scans keep their own voxel size; --set prepare.spacing=[…] gives them that of the pretraining");
    }
}

/// The middle of a window in millimetres right, anterior, superior.
fn middle(frame: &Frame, start: [i64; 3], window: [usize; 3]) -> [f64; 3] {
    apply(&frame.affine, std::array::from_fn(|a| start[a] as f64 + (window[a] as f64 - 1.0) / 2.0))
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let encoder = Encoder::load(&a.model)?;
    let config = a.settings.on(encoder.config.clone())?;
    let window = encoder.task.as_ref().map_or(config.cube.size, |t| t.window);
    let (arrays, files): (Vec<PathBuf>, Vec<PathBuf>) = a.inputs.iter().cloned().partition(|p| is_array(p));
    let channels = match &encoder.task {
        Some(task) => task.channels.clone(),
        None => (0..encoder.network.channels).map(|c| format!("{c:04}")).collect(),
    };
    let cases = if files.is_empty() { Vec::new() } else { scans::cases(&files, &channels, common.json)? };
    let cubes: Vec<(String, Cubes)> = arrays.iter().map(|p| Ok((stem(p), Cubes::open(p)?))).collect::<Result<_>>()?;
    if let (Some((_, c)), true) = (cubes.first(), channels.len() > 1) {
        return Err(Error::input(c.path(), format!("has cubes of one channel, but the encoder takes {}", channels.len())));
    }
    if !cases.is_empty() {
        say_preparation(&encoder, &config, common.json);
    }
    let ctx = common.context()?;
    let mut failures = Failures::new(a.keep_going);
    let width = encoder.spec.features();
    let mut rows = Rows { features: Vec::new(), table: csv::Writer::from_writer(Vec::new()), count: 0, width };
    let failed = |e: csv::Error| Error::Failed(format!("a table cannot be written ({e})"));
    rows.table.write_record(["row", "id", "x", "y", "z"]).map_err(failed)?;
    let features = if cases.is_empty() { None } else { Some(Features::new(&ctx, &encoder, window)?) };
    new_folder(&a.out)?;
    let mut progress = Progress::new("embed", (cases.len() + cubes.iter().map(|c| c.1.len()).sum::<usize>()) as u64, common.json);
    let mut done = 0;
    // Windows that touch, spread evenly where they do not fit.
    let slide = Slide { window, channels: channels.len(), outputs: 1, overlap: 0.0, flips: vec![[false; 3]], batch: 1 };
    for case in &cases {
        let opened = own_spacing(case.path()).and_then(|own| case.open(&encoder.recipe(&config, own), common.json));
        if let (Some(scan), Some(features)) = (failures.take(&case.name, opened, common.json)?, &features) {
            let starts = slide.places(scan.size());
            let found = features.of(&mut starts.iter().map(|&s| Ok(scan.window(s, window))))?;
            if a.windows {
                for (row, &start) in found.chunks_exact(width).zip(&starts) {
                    rows.push(row, &case.name, Some(middle(scan.frame(), start, window)))?;
                }
            } else {
                let mean: Vec<f32> = (0..width)
                    .map(|f| (found.iter().skip(f).step_by(width).map(|&v| f64::from(v)).sum::<f64>() / starts.len() as f64) as f32)
                    .collect();
                rows.push(&mean, &case.name, None)?;
            }
        }
        done += 1;
        progress.set(done, &case.name);
    }
    for (name, array) in &cubes {
        let features = Features::new(&ctx, &encoder, array.size())?;
        let found = features.of(&mut (0..array.len()).map(|r| array.unit_cube(r)))?;
        for (r, row) in found.chunks_exact(width).enumerate() {
            rows.push(row, &format!("{name}:{r}"), None)?;
        }
        done += array.len() as u64;
        progress.set(done, name);
    }
    progress.finish(&format!("{} rows of {width} numbers", rows.count));
    let (array, table) = (a.out.join("features.npy"), a.out.join("features.csv"));
    files::write_bytes(&array, &npy(&rows.features, rows.width).map_err(Error::io("write", &array))?)?;
    let bytes = rows.table.into_inner().map_err(|e| Error::Failed(format!("a table cannot be written ({e})")))?;
    files::write_bytes(&table, &bytes)?;
    if common.json {
        text::say_json(&json!({
            "features": array.to_string_lossy(), "table": table.to_string_lossy(), "rows": rows.count, "width": width,
            "network": encoder.network.to_string(), "failed": failures.json(),
        }));
    } else {
        text::say(format_args!("{} rows of {width} numbers: {}", rows.count, array.display()));
        text::say(format_args!("what they are: {}", table.display()));
    }
    failures.end()
}
