//! `semgen import`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::Common;
use super::export::network::{Fit, Known};
use super::text;
use crate::error::{Error, Result};
use crate::interop::tensors::File;
use crate::interop::weights::{self, Weights};

/// Names that are printed of a long list.
const SHOWN: usize = 8;

/// Options of `import`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Weights from PyTorch (.pt, .pth, .ckpt, .bin) or in a safetensors file; told by content, not by name
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    if a.out.extension().is_none_or(|e| e != "safetensors") {
        return Err(Error::Usage(format!("--out {}: expected a file name that ends in .safetensors", a.out.display())));
    }
    let of_file = |what: String| Error::input(&a.file, what);
    let mut weights = weights::read(&a.file)?;
    let all = weights.tensors.len();
    let known = Known::of(&weights).map_err(of_file)?;
    let Fit { missing, unexpected } = Known::fit(&known.graph()?, &weights.tensors);
    for (name, why) in unexpected {
        weights.tensors.remove(&name);
        weights.dropped.push((name, why));
    }
    let metadata = describe(&a.file, &weights, &known);
    let report = json!({
        "file": a.file.to_string_lossy(), "sha256": weights.sha256, "source": weights.source, "out": a.out.to_string_lossy(),
        "network": known.network.to_string(), "loaded": weights.tensors.keys().collect::<Vec<_>>(), "missing": missing,
        "renamed": weights.renamed, "left_out": weights.dropped,
    });
    File { tensors: weights.tensors, metadata: Some(metadata.to_string()) }.write(&a.out)?;
    if common.json {
        text::say_json(&report);
        return Ok(());
    }
    text::say(format_args!("{}: {}, {all} tensors of a network", a.file.display(), weights.source));
    text::say(format_args!("network: {}", known.network));
    let count = |key: &str| report[key].as_array().map_or(0, Vec::len);
    text::say(format_args!(
        "{} loaded, {} of them renamed, {} missing, {} left out",
        count("loaded"),
        count("renamed"),
        count("missing"),
        count("left_out")
    ));
    list("renamed", weights.renamed.iter().map(|(old, new)| format!("{old} → {new}")));
    list("missing", missing.iter().cloned());
    list("left out", weights.dropped.iter().map(|(name, why)| format!("{name}: {why}")));
    text::say(format_args!("wrote {}", a.out.display()));
    Ok(())
}

/// Some of the items, and how many there are beyond.
fn list(title: &str, items: impl ExactSizeIterator<Item = String>) {
    let more = items.len().saturating_sub(SHOWN);
    for item in items.take(SHOWN) {
        text::say(format_args!("  {title}: {item}"));
    }
    if more > 0 {
        text::say(format_args!("  {title}: … {more} more (--json lists all)"));
    }
}

/// The new file's metadata: what the file said of itself if this program wrote it, else what is seen; and where it is from.
fn describe(path: &Path, weights: &Weights, known: &Known) -> Value {
    let own: Option<Value> = weights.metadata.as_deref().and_then(|m| serde_json::from_str(m).ok()).filter(Value::is_object);
    let mut origin = json!({
        "imported": path.file_name().unwrap_or_default().to_string_lossy(), "sha256": weights.sha256, "source": weights.source,
    });
    let mut about = own.unwrap_or_else(|| {
        let n = &known.network;
        let word = match (n.restored, n.classes) {
            (Some(_), Some(_)) => "joint",
            (None, Some(_)) => "classification",
            (Some(_), None) if !n.skips => "autoencoder",
            _ => n.word(),
        };
        let classes = n.classes.map_or(String::new(), |c| format!("classes = {c}\n"));
        let config = format!(
            "[model]\nbase_channels = {}\ndepth = {}\nvariant = \"{}\"\nactivation = \"{}\"\n{classes}",
            n.base,
            n.depth,
            n.variant.word(),
            n.activation.word()
        );
        json!({ "format": "semgen-checkpoint-1", "network": word, "config": config })
    });
    if !about["origin"].is_null() {
        origin["before"] = about["origin"].take();
    }
    about["origin"] = origin;
    about
}
