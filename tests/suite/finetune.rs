//! Fine-tuning through the program: what is learnt, from which weights, on which cases, and what happens to wrong input.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};

use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::{Affine, Volume};
use semantic_genesis::interop::tensors::File;
use serde_json::Value;

use crate::harness::Program;

mod inputs;
mod learning;
mod resume;
mod splits;
mod start;

/// Settings with which a run takes a second or two.
pub(crate) const SMALL: &str = "
seed = 3
[cube]
size = [16, 16, 8]
[model]
base_channels = 4
depth = 3
[train]
batch_size = 4
micro_batch = 2
max_steps = 6
checkpoint_steps = 1
learning_rate = 3e-3
[finetune]
windows = 2
";

/// Millimetres of a voxel of what [`ball`] makes.
const AFFINE: Affine = [[-2.0, 0.0, 0.0, 20.0], [0.0, -2.0, 0.0, 10.0], [0.0, 0.0, 3.0, -5.0], [0.0, 0.0, 0.0, 1.0]];

/// The program with a folder for caches that all these tests share.
pub(crate) fn program() -> Program<'static> {
    Program::new(Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/cache")))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder for one test, with the settings of [`SMALL`] in `small.toml`.
pub(crate) fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("small.toml"), SMALL).unwrap();
    dir
}

/// Numbers in [0, 1) that look random and are always the same.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// A scan in Hounsfield units of dark noise, with a ball of each of `balls` (brightness) somewhere, and the numbers of the balls,
/// counted from 1, as label map.
pub(crate) fn balls(seed: u64, size: [usize; 3], balls: &[f32]) -> (Volume, Volume) {
    let mut noise = Noise::new(seed);
    let mut scan: Vec<f32> = (0..size.iter().product()).map(|_| -800.0 + 200.0 * noise.next()).collect();
    let mut map = vec![0.0; scan.len()];
    for (label, &hu) in balls.iter().enumerate() {
        let at: [f32; 3] = std::array::from_fn(|a| 4.0 + noise.next() * (size[a] as f32 - 8.0));
        for i in 0..scan.len() {
            let p = [i / (size[1] * size[2]), i / size[2] % size[1], i % size[2]];
            if (0..3).map(|a| (p[a] as f32 - at[a]).powi(2)).sum::<f32>() < 12.0 {
                scan[i] = hu + 100.0 * noise.next();
                map[i] = label as f32 + 1.0;
            }
        }
    }
    (Volume::new(scan, size, AFFINE).unwrap(), Volume::new(map, size, AFFINE).unwrap())
}

/// Writes `count` scans of 20 × 18 × 12 voxels with their label maps and the table `data.csv`, which is returned. Every second
/// scan of those with one ball has it outside; the rest of the columns is `more` (head, and a cell for each).
pub(crate) fn set(dir: &Path, count: usize, brightness: &[f32]) -> PathBuf {
    let mut table = "image,mask\n".to_owned();
    for n in 0..count {
        let (scan, map) = balls(n as u64, [20, 18, 12], brightness);
        nifti::write_i16(&dir.join(format!("scan{n}.nii.gz")), &whole(scan)).unwrap();
        nifti::write_u8(&dir.join(format!("map{n}.nii.gz")), &map).unwrap();
        table += &format!("scan{n}.nii.gz,map{n}.nii.gz\n");
    }
    let path = dir.join("data.csv");
    std::fs::write(&path, table).unwrap();
    path
}

/// A scan whose intensities are whole numbers.
fn whole(mut scan: Volume) -> Volume {
    scan.data.iter_mut().for_each(|v| *v = v.round());
    scan
}

/// Writes `count` scans, of which number `n` has the balls that `brightness(n)` says, and a table with the columns `columns`,
/// whose cells `cells(n)` gives; it is returned.
pub(crate) fn labelled(
    dir: &Path,
    count: usize,
    columns: &str,
    brightness: impl Fn(usize) -> Vec<f32>,
    cells: impl Fn(usize) -> String,
) -> PathBuf {
    let mut table = format!("image,{columns}\n");
    for n in 0..count {
        let (scan, _) = balls(n as u64, [20, 18, 12], &brightness(n));
        nifti::write_i16(&dir.join(format!("scan{n}.nii.gz")), &whole(scan)).unwrap();
        table += &format!("scan{n}.nii.gz,{}\n", cells(n));
    }
    let path = dir.join("data.csv");
    std::fs::write(&path, table).unwrap();
    path
}

/// The arguments of `finetune KIND DATA --out OUT --config small.toml --set …`.
pub(crate) fn arguments(kind: &str, data: &Path, out: &Path, sets: &[&str]) -> Vec<String> {
    let config = data.parent().unwrap().join("small.toml");
    let mut args: Vec<String> = ["finetune", kind, text(data), "--out", text(out)].map(str::to_owned).to_vec();
    if config.is_file() {
        args.extend(["--config".to_owned(), text(&config).to_owned()]);
    }
    for set in sets {
        args.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    args
}

/// Fine-tunes and gives the summary.
pub(crate) fn finetune(kind: &str, data: &Path, out: &Path, sets: &[&str]) -> Value {
    finetune_with(kind, data, out, sets, &[])
}

/// The same with more options.
pub(crate) fn finetune_with(kind: &str, data: &Path, out: &Path, sets: &[&str], more: &[&str]) -> Value {
    let args = arguments(kind, data, out, sets);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    program().json(&args)
}

/// The sentence with which a fine-tuning is refused; nothing is left of its folder.
pub(crate) fn refused(kind: &str, data: &Path, out: &Path, sets: &[&str], more: &[&str]) -> String {
    let args = arguments(kind, data, out, sets);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let sentence = program().refused(&args);
    assert!(!out.exists(), "{} is left: {sentence}", out.display());
    sentence
}

/// The best model of a run.
pub(crate) fn best(run: &Path) -> File {
    File::read(&run.join("checkpoints/best.safetensors")).unwrap()
}
