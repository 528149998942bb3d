//! `semgen restore`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{Common, Settings};
use super::embed::{own_spacing, say_preparation};
use super::predict::{is_array, stem};
use super::scans::{self, new_folder};
use super::text;
use crate::data::arrays::Cubes;
use crate::data::nifti::{Content, Geometry};
use crate::data::volume::{Affine, IDENTITY};
use crate::data::voxels::Kind;
use crate::error::{Error, Result};
use crate::files;
use crate::report::preview::{self, Restoration};
use crate::report::progress::Progress;
use crate::task::encode::{Encoder, Restored, Restorer};
use crate::task::predict::Scan;
use crate::task::predict::slide::Slide;

/// Most cubes of an array that are restored, and most rows of the picture.
const SHOWN: usize = 6;
/// What is written of each scan or cube.
const PARTS: [&str; 3] = ["before", "damaged", "restored"];

/// Options of `restore`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Weights with encoder and decoder: a pretraining run, a checkpoint, a .safetensors or a .pt file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Scans, folders of scans, or arrays of cubes (.npy; the first six cubes)
    #[arg(value_name = "SCAN", required = true)]
    inputs: Vec<PathBuf>,
    /// Folder for the volumes (NIfTI) and restored.png; it must be new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Everything that one scan or cube comes to.
struct Volumes {
    name: String,
    size: [usize; 3],
    affine: Affine,
    /// Intensities of the values 0 and 1.
    range: [f32; 2],
    /// As [`PARTS`], `[x][y][z]`.
    parts: [Vec<f32>; 3],
    what: String,
}

fn error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len().max(1) as f64
}

impl Volumes {
    fn write(&self, out: &Path) -> Result<Value> {
        let mut value = json!({ "id": self.name, "what": self.what, "error": self.errors()[1], "identity_error": self.errors()[0] });
        let [nx, ny, nz] = self.size;
        for (part, data) in PARTS.iter().zip(&self.parts) {
            let path = out.join(format!("{}_{part}.nii.gz", self.name));
            let content = Content { size: self.size, volumes: 1, kind: Kind::F32, labels: false };
            let geometry = Geometry::of(&self.affine).map_err(|what| Error::input(&path, what))?;
            geometry.write(&path, content, |out| {
                for z in 0..nz {
                    for y in 0..ny {
                        let value = |x: usize| self.range[0] + (self.range[1] - self.range[0]) * data[(x * ny + y) * nz + z];
                        let row: Vec<u8> = (0..nx).flat_map(|x| value(x).to_le_bytes()).collect();
                        out.write_all(&row)?;
                    }
                }
                Ok(())
            })?;
            value[*part] = json!(path.to_string_lossy());
        }
        Ok(value)
    }

    /// Mean squared error of what was damaged and of what was restored.
    fn errors(&self) -> [f64; 2] {
        [error(&self.parts[1], &self.parts[0]), error(&self.parts[2], &self.parts[0])]
    }
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let encoder = Encoder::load(&a.model)?;
    let config = a.settings.on(encoder.config.clone())?;
    let (arrays, files): (Vec<PathBuf>, Vec<PathBuf>) = a.inputs.iter().cloned().partition(|p| is_array(p));
    let cases = if files.is_empty() { Vec::new() } else { scans::cases(&files, &["scan".to_owned()], common.json)? };
    let cubes: Vec<(String, Cubes)> = arrays.iter().map(|p| Ok((stem(p), Cubes::open(p)?))).collect::<Result<_>>()?;
    if !cases.is_empty() {
        say_preparation(&encoder, &config, common.json);
    }
    let ctx = common.context()?;
    // What is wrong with the weights is said before anything is written.
    let mut restorers: BTreeMap<[usize; 3], Restorer<'_>> = BTreeMap::new();
    for size in cubes.iter().map(|c| c.1.size()).chain((!cases.is_empty()).then_some(config.cube.size)) {
        if let Entry::Vacant(place) = restorers.entry(size) {
            place.insert(Restorer::new(&ctx, &encoder, size, config.train.preset, config.seed)?);
        }
    }
    new_folder(&a.out)?;
    let mut found: Vec<Value> = Vec::new();
    let mut shown: Vec<Volumes> = Vec::new();
    let mut keep = |v: Volumes| -> Result<()> {
        found.push(v.write(&a.out)?);
        if shown.len() < SHOWN {
            shown.push(v);
        }
        Ok(())
    };
    for case in &cases {
        let size = config.cube.size;
        let r = &restorers[&size];
        let scan = case.open(&encoder.recipe(&config, own_spacing(case.path())?), common.json)?;
        // Cubes that touch, spread evenly where they do not fit; where two overlap the later one is seen.
        let slide = Slide { window: size, channels: 1, outputs: 1, overlap: 0.0, flips: vec![[false; 3]], batch: 1 };
        let starts = slide.places(scan.size());
        let whole = scan.size();
        let mut parts: [Vec<f32>; 3] = std::array::from_fn(|_| vec![0.0; whole.iter().product()]);
        let mut progress = Progress::new(case.name.clone(), starts.len() as u64, common.json);
        for (n, &start) in starts.iter().enumerate() {
            let Restored { before, damaged, restored, .. } = r.restore(&scan.window(start, size), n as u32)?;
            for (part, cube) in parts.iter_mut().zip([&before, &damaged, &restored]) {
                place(part, whole, cube, start, size);
            }
            progress.set(n as u64 + 1, "");
        }
        progress.finish(&format!("{} cubes", starts.len()));
        let what = format!("{} cubes, each damaged in its own way", starts.len());
        keep(Volumes { name: case.name.clone(), size: whole, affine: scan.frame().affine, range: scan.range(), parts, what })?;
    }
    for (name, array) in &cubes {
        let r = &restorers[&array.size()];
        for row in 0..array.len().min(SHOWN) {
            let Restored { before, damaged, restored, what } = r.restore(&array.unit_cube(row)?, row as u32)?;
            let parts = [before, damaged, restored];
            keep(Volumes { name: format!("{name}_{row}"), size: array.size(), affine: IDENTITY, range: [0.0, 1.0], parts, what })?;
        }
    }
    let rows: Vec<Restoration<'_>> = shown
        .iter()
        .map(|v| Restoration {
            label: format!("{}: {}", v.name, v.what),
            size: v.size,
            original: &v.parts[0],
            transformed: &v.parts[1],
            restored: &v.parts[2],
            metrics: format!("MSE {:.5} (input {:.5})", v.errors()[1], v.errors()[0]),
        })
        .collect();
    let picture = a.out.join("restored.png");
    files::write_bytes(&picture, &preview::restoration_sheet("Damaged and restored", &rows)?.encode()?)?;
    if common.json {
        text::say_json(&json!({ "volumes": found, "picture": picture.to_string_lossy(), "preset": config.train.preset.word() }));
        return Ok(());
    }
    for v in &found {
        let number = |key: &str| v[key].as_f64().unwrap_or(f64::NAN);
        let name = v["id"].as_str().unwrap_or_default();
        text::say(format_args!("{name}: error {:.5}, of the damaged {:.5}", number("error"), number("identity_error")));
    }
    text::say(format_args!("picture: {}", picture.display()));
    Ok(())
}

/// Lays a cube that begins at `start` into a volume, as far as it lies inside.
fn place(volume: &mut [f32], whole: [usize; 3], cube: &[f32], start: [i64; 3], size: [usize; 3]) {
    for (n, v) in cube.iter().enumerate() {
        let p = [n / (size[1] * size[2]), n / size[2] % size[1], n % size[2]];
        let q: [i64; 3] = std::array::from_fn(|a| start[a] + p[a] as i64);
        if (0..3).all(|a| (0..whole[a] as i64).contains(&q[a])) {
            let [x, y, z] = q.map(|v| v as usize);
            volume[(x * whole[1] + y) * whole[2] + z] = *v;
        }
    }
}
