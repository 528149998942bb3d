//! `semgen prepare`.

use std::path::PathBuf;

use serde_json::json;

use super::args::{Common, Settings};
use super::{previews, stages, text};
use crate::config::Config;
use crate::data::store::{Split, Store};
use crate::error::Result;

/// Options of `prepare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NIfTI files, and folders that are searched for them
    #[arg(required = true, value_name = "SCANS")]
    scans: Vec<PathBuf>,
    /// Folder for the prepared store; a store in it is made anew only if scans or settings have changed
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let config = a.settings.on(Config::default())?;
    let new = std::fs::read_dir(&a.out).map_or(true, |mut entries| entries.next().is_none());
    let existed = a.out.exists();
    let store = match stages::prepare(&a.scans, &a.out, &config, common.json, &|_, _| Ok(())) {
        Ok(store) => store,
        Err(e) => {
            // Half a store is of no use to anyone.
            if new {
                let _ = std::fs::remove_dir_all(&a.out);
                if existed {
                    let _ = std::fs::create_dir(&a.out);
                }
            }
            return Err(e);
        }
    };
    let picture = a.out.join("preview.png");
    previews::prepared(&store)?.write(&picture)?;
    if common.json {
        text::say_json(&json!({
            "out": a.out.to_string_lossy(), "scans": store.scans().len(), "training": count(&store, Split::Train),
            "validation": count(&store, Split::Validation), "label_maps": store.left_out(), "skipped": store.failed(),
            "grid": store.grid(), "spacing": store.spacing(), "modality": store.modality(), "hash": store.hash(),
            "picture": picture.to_string_lossy(),
        }));
        return Ok(());
    }
    text::say(format_args!(
        "{} scans ({} to learn from, {} held out) of {} voxels, {} mm, in {}",
        store.scans().len(),
        count(&store, Split::Train),
        count(&store, Split::Validation),
        text::by(&store.grid()),
        text::by(&store.spacing()),
        a.out.display()
    ));
    text::say(format_args!("preview: {}", picture.display()));
    Ok(())
}

fn count(store: &Store, split: Split) -> usize {
    store.scans().iter().filter(|s| s.split == split).count()
}
