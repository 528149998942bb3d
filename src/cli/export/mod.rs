//! `semgen export`.

pub(super) mod network;
mod onnx;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::network::{Known, Part, state_dict};
use super::args::Common;
use super::text;
use crate::config::Variant;
use crate::error::{Error, Result};
use crate::files;
use crate::interop::onnx::Model;
use crate::interop::tensors::File;
use crate::interop::{pt, weights};

/// Options of `export`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint of pretraining or fine-tuning, a run (its best weights), or any file that `semgen import` reads
    #[arg(value_name = "MODEL|RUN")]
    model: PathBuf,
    /// File to write; its ending says what: .safetensors or .pt (for PyTorch), .onnx
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only this part of a Y-Net, for classes that have no more
    #[arg(long)]
    part: Option<Part>,
}

/// What is written.
#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    PyTorch,
    Onnx,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("pt" | "pth") => Ok(Self::PyTorch),
            Some("onnx") => Ok(Self::Onnx),
            _ => Err(Error::Usage(format!("--out {}: expected a file name that ends in .safetensors, .pt or .onnx", path.display()))),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::PyTorch => "PyTorch",
            Self::Onnx => "ONNX",
        }
    }
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let format = Format::of(&a.out)?;
    let path = weights::locate(&a.model)?;
    let of_model = |what: String| Error::input(&path, what);
    let weights = weights::read(&path)?;
    let mut known = Known::of(&weights).map_err(of_model)?;
    if let Some(part) = a.part {
        known.only(part).map_err(of_model)?;
    }
    let graph = known.graph()?;
    let tensors = state_dict(&graph, &weights.tensors).map_err(of_model)?;
    let mut usage = String::new();
    let mut out = json!({
        "out": a.out.to_string_lossy(), "format": format.word(), "network": known.network.to_string(), "tensors": tensors.len(),
    });
    match format {
        Format::Safetensors => File { tensors, metadata: weights.metadata }.write(&a.out)?,
        Format::PyTorch => {
            pt::write(&a.out, &tensors, weights.metadata.as_deref())?;
            let file = a.out.display();
            usage = format!("model.load_state_dict(torch.load(\"{file}\", weights_only=True)[\"state_dict\"])");
        }
        Format::Onnx => {
            let model = onnx::translate(&graph, &tensors, known.output()).map_err(of_model)?;
            let names = |values: &[crate::interop::onnx::Value]| -> Vec<Value> {
                values.iter().map(|v| json!({ "name": v.name, "shape": v.shape() })).collect()
            };
            out["inputs"] = json!(names(&model.input));
            out["outputs"] = json!(names(&model.output));
            let mut about = vec![("network".to_owned(), known.network.to_string())];
            about.extend(weights.metadata.map(|m| ("semgen".to_owned(), m)));
            files::write_bytes(&a.out, &Model::new(model, about).bytes())?;
        }
    }
    if common.json {
        text::say_json(&out);
        return Ok(());
    }
    text::say(format_args!("{}: {}", path.display(), known.network));
    text::say(format_args!("{} tensors in {} ({})", out["tensors"], a.out.display(), format.word()));
    for side in ["inputs", "outputs"] {
        for v in out[side].as_array().into_iter().flatten() {
            let shape: Vec<&str> = v["shape"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            text::say(format_args!("  {:<8}{} [{}]", side.trim_end_matches('s'), v["name"].as_str().unwrap_or_default(), shape.join(", ")));
        }
    }
    if !usage.is_empty() {
        text::say(format_args!("in Python: {usage}"));
    }
    if known.network.variant == Variant::Keras && matches!(format, Format::PyTorch) {
        text::note(false, "the Keras variant has no published PyTorch class; names and layouts are those of README.md");
    }
    Ok(())
}
