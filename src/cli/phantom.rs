//! `semgen phantom`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Common, triple};
use super::{previews, text};
use crate::data::phantom::{self, MAX_TYPES};
use crate::error::{Error, Result};
use crate::report::progress::Progress;

/// Patients on the preview sheet.
const SHOWN: usize = 6;

/// Options of `phantom`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder for the scans, label maps, patients.csv and phantoms.png; it must be new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Patients
    #[arg(long, value_name = "N", default_value_t = 8)]
    count: usize,
    /// Body types, which the patients take in turn
    #[arg(long, value_name = "T", default_value_t = 4)]
    types: usize,
    /// Seed of all random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
    /// Voxels along left, posterior, superior
    #[arg(long, value_name = "X,Y,Z", default_value = "192,160,96", value_parser = triple::<usize>)]
    size: [usize; 3],
    /// Voxel size in mm along left, posterior, superior
    #[arg(long, value_name = "A,B,C", default_value = "2,2,3", value_parser = triple::<f64>)]
    spacing: [f64; 3],
}

/// A set of synthetic patients.
pub(super) struct Set {
    pub(super) count: usize,
    pub(super) types: usize,
    pub(super) seed: u32,
    pub(super) size: [usize; 3],
    pub(super) spacing: [f64; 3],
}

impl Set {
    /// Writes the set into `out`, and returns its preview sheet as a PNG file.
    pub(super) fn write(&self, out: &Path, json: bool) -> Result<Vec<u8>> {
        let mut progress = Progress::new("phantom", self.count as u64, json);
        phantom::write_set(out, self.count, self.types, self.seed, self.size, self.spacing, &mut |done| progress.set(done as u64, ""))?;
        progress.finish(&format!("{} patients of {} body types in {}", self.count, self.types.min(self.count), out.display()));
        previews::phantoms(self.seed, self.count.min(SHOWN), self.types, self.size, self.spacing)?.encode()
    }
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    if a.count == 0 {
        return Err(Error::Usage("--count 0: at least one patient is needed".into()));
    }
    if !(1..=MAX_TYPES).contains(&a.types) {
        return Err(Error::Usage(format!("--types {}: give 1 to {MAX_TYPES} body types", a.types)));
    }
    if std::fs::read_dir(&a.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(&a.out, "is not empty; choose another --out"));
    }
    let set = Set { count: a.count, types: a.types, seed: a.seed, size: a.size, spacing: a.spacing };
    let sheet = set.write(&a.out, common.json)?;
    let picture = a.out.join("phantoms.png");
    crate::files::write_bytes(&picture, &sheet)?;
    if common.json {
        text::say_json(&json!({
            "out": a.out.to_string_lossy(), "patients": a.count, "types": a.types, "seed": a.seed, "size": a.size, "spacing": a.spacing,
            "picture": picture.to_string_lossy(),
        }));
    } else {
        text::say(format_args!("{} patients of {} voxels in {}", a.count, text::by(&a.size), a.out.display()));
        text::say(format_args!("what was drawn: {}", a.out.join("patients.csv").display()));
        text::say(format_args!("preview:        {}", picture.display()));
    }
    Ok(())
}
