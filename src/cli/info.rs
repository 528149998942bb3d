//! `semgen info`.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::Common;
use super::export::network::Known;
use super::text;
use crate::data::image;
use crate::data::store::{Split, Store};
use crate::discover::manifest::Manifest;
use crate::error::{Error, Result};
use crate::interop::pt::Container;
use crate::interop::tensors::{Data, File, Tensor};
use crate::interop::weights;
use crate::task::Description;
use crate::train::log;

/// Prefix of tensors that only training needs.
const OPTIMISER: &str = "optimizer.";

/// Endings of PyTorch's files.
const PYTORCH: [&str; 4] = [".pt", ".pth", ".ckpt", ".bin"];

/// Options of `info`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A checkpoint, weights of PyTorch, a scan, a manifest, a prepared store or a run directory
    #[arg(value_name = "FILE|RUN")]
    path: PathBuf,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    let value = describe(&a.path)?;
    if common.json {
        text::say_json(&value);
    } else {
        print(&value, 0);
    }
    Ok(())
}

fn describe(path: &Path) -> Result<Value> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(path, "no such file or folder"),
        _ => Error::io("read", path)(e),
    })?;
    if meta.is_dir() {
        return folder(path);
    }
    let name = path.to_string_lossy().to_ascii_lowercase();
    if name.ends_with(".safetensors") {
        checkpoint(path)
    } else if PYTORCH.iter().any(|e| name.ends_with(e)) || pytorch(path)? {
        weights(path)
    } else if image::ending(path).is_some() {
        scan(path)
    } else if name.ends_with(".json") {
        manifest(path)
    } else {
        scan(path).or_else(|_| checkpoint(path)).map_err(|_| {
            Error::input(
                path,
                "is none of a safetensors file, weights of PyTorch, a NIfTI or MetaImage scan, a manifest (.json), a prepared store and a run directory",
            )
        })
    }
}

/// Whether a file begins as one of PyTorch's does.
fn pytorch(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    std::fs::File::open(path).and_then(|f| f.take(64).read_to_end(&mut start)).map_err(Error::io("read", path))?;
    Ok(Container::of(&start).is_some())
}

/// A file of weights as [`super::import`] would take it over.
fn weights(path: &Path) -> Result<Value> {
    let w = weights::read(path)?;
    let of_file = |what: String| Error::input(path, what);
    let known = Known::of(&w).map_err(of_file)?;
    let fit = Known::fit(&known.graph()?, &w.tensors);
    let tensors: Vec<Value> = w.tensors.iter().map(|(name, t)| json!({ "name": name, "shape": t.shape })).collect();
    let left_out = w.dropped.iter().chain(&fit.unexpected);
    Ok(json!({
        "kind": "weights", "file": path.to_string_lossy(), "format": w.source, "sha256": w.sha256, "network": known.network.to_string(),
        "task": known.task, "origin": w.origin(), "values": w.tensors.values().map(count).sum::<usize>(), "renamed": w.renamed.len(),
        "left_out": left_out.map(|(name, why)| json!({ "name": name, "reason": why })).collect::<Vec<_>>(), "missing": fit.missing,
        "tensors": tensors,
    }))
}

/// Elements of a tensor.
fn count(t: &Tensor) -> usize {
    match &t.data {
        Data::F32(v) => v.len(),
        Data::I64(v) => v.len(),
    }
}

fn checkpoint(path: &Path) -> Result<Value> {
    let file = File::read(path)?;
    let mut about: Value = file.metadata.as_deref().and_then(|m| serde_json::from_str(m).ok()).unwrap_or(Value::Null);
    let weights = || file.tensors.iter().filter(|(name, _)| !name.starts_with(OPTIMISER));
    let tensors: Vec<Value> = weights().map(|(name, t)| json!({ "name": name, "shape": t.shape })).collect();
    let mut out = json!({ "kind": "checkpoint", "file": path.to_string_lossy() });
    if about.is_object() {
        out["network"] = about["network"].take();
        for key in ["phase", "step", "epoch", "done", "validation"] {
            out[key] = about["state"][key].take();
        }
        out["best_loss"] = about["state"]["standing"]["best"].take();
        if !about["task"].is_null() {
            let task = Description::parse(about["task"].take()).map_err(|what| Error::input(path, what))?;
            out["task"] = json!(task);
        }
        out["origin"] = about["origin"].take();
        out["config"] = about["config"].take();
    } else {
        out["note"] = json!("was not written by this program; names and shapes are all that is known");
    }
    out["values"] = json!(weights().map(|(_, t)| count(t)).sum::<usize>());
    out["optimiser_state"] = json!(file.tensors.len() > tensors.len());
    out["tensors"] = json!(tensors);
    Ok(out)
}

fn scan(path: &Path) -> Result<Value> {
    let h = image::read_series_header(path)?;
    Ok(json!({
        "kind": "scan", "file": path.to_string_lossy(), "format": h.format.word(), "size": h.size, "volumes": h.volumes, "spacing_mm": h.spacing(),
        "stored_as": h.kind.word(), "big_endian": h.big_endian, "scale": h.scale, "orientation_from": h.form.word(), "affine": h.affine,
        "declared_label_map": h.labels,
    }))
}

fn manifest(path: &Path) -> Result<Value> {
    let m = Manifest::load(path)?;
    let classes: Vec<Value> = m
        .classes()
        .iter()
        .map(|c| {
            let reference = m.scans().get(c.reference as usize).map(|s| s.id.as_str());
            json!({ "label": c.label, "reference": reference, "start": c.start, "training_scans": c.train.len(), "validation_scans": c.validation.len() })
        })
        .collect();
    Ok(json!({
        "kind": "manifest", "file": path.to_string_lossy(), "hash": m.hash(), "header": m.header(), "scans": m.scans().len(),
        "training_crops": m.train().len(), "validation_crops": m.validation().len(), "classes": classes,
    }))
}

fn folder(path: &Path) -> Result<Value> {
    if path.join("config.toml").is_file() {
        return run_directory(path);
    }
    if path.join("index.json").is_file() {
        return store(path);
    }
    Err(Error::input(path, "is neither a run directory (no config.toml) nor a prepared store (no index.json)"))
}

fn store(path: &Path) -> Result<Value> {
    let s = Store::open(path)?;
    let scans: Vec<Value> = s
        .scans()
        .iter()
        .map(|r| json!({ "id": r.id, "split": r.split, "source": r.source.to_string_lossy(), "spacing_mm": r.spacing, "range": r.range }))
        .collect();
    let held_out = s.scans().iter().filter(|r| r.split == Split::Validation).count();
    Ok(json!({
        "kind": "prepared store", "folder": path.to_string_lossy(), "hash": s.hash(), "modality": s.modality(), "grid": s.grid(),
        "spacing_mm": s.spacing(), "held_out": held_out, "label_maps": s.left_out().len(), "skipped": s.failed().len(), "scans": scans,
    }))
}

fn run_directory(path: &Path) -> Result<Value> {
    let json_file = |name: &str| std::fs::read(path.join(name)).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    let mut out = json!({ "kind": "run", "folder": path.to_string_lossy() });
    let inputs = json_file("inputs.json").unwrap_or_default();
    let fine_tunes = inputs["task"].is_string();
    out["inputs"] = inputs;
    // A fine-tuning has neither of these stages.
    if !fine_tunes {
        let stage = |done: bool| if done { "complete" } else { "not complete" };
        out["prepared"] = json!(stage(Store::open(&path.join(super::run::PREPARED)).is_ok()));
        out["discovery"] = json!(stage(super::run::patterns(path).is_ok()));
    }
    let last = path.join("checkpoints/last.safetensors");
    if last.is_file() {
        let c = checkpoint(&last)?;
        out["task"] = c["task"].clone();
        out["training"] =
            json!({ "phase": c["phase"], "step": c["step"], "epoch": c["epoch"], "done": c["done"], "validation": c["validation"] });
    } else {
        out["training"] = json!("not begun");
    }
    if let Ok(records) = log::read(&path.join("metrics.jsonl")) {
        out["records"] = json!(records.len());
    }
    if let Some(summary) = json_file("summary.json") {
        out["summary"] = summary;
    }
    let config = path.join("config.toml");
    out["config"] = json!(std::fs::read_to_string(&config).map_err(Error::io("read", &config))?);
    Ok(out)
}

/// A value as indented lines.
fn print(value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    for (key, v) in value.as_object().into_iter().flatten() {
        let key = key.replace('_', " ");
        match v {
            Value::Null => {}
            Value::Object(_) => {
                text::say(format_args!("{pad}{key}:"));
                print(v, indent + 2);
            }
            Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => {
                text::say(format_args!("{pad}{key}:"));
                let headers: Vec<&str> = items[0].as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
                let rows: Vec<Vec<String>> = items.iter().map(|i| headers.iter().map(|h| short(&i[*h])).collect()).collect();
                text::table(&headers, &rows).lines().for_each(|l| text::say(format_args!("{pad}  {l}")));
            }
            Value::String(s) if s.contains('\n') => {
                text::say(format_args!("{pad}{key}:"));
                s.lines().for_each(|l| text::say(format_args!("{pad}  {l}")));
            }
            other => text::say(format_args!("{pad}{key}: {}", short(other))),
        }
    }
}

fn short(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.as_f64().filter(|_| n.is_f64()).map_or_else(|| n.to_string(), real),
        Value::Array(items) if items.iter().all(Value::is_number) => items.iter().map(short).collect::<Vec<_>>().join(" × "),
        Value::Array(items) if items.iter().all(Value::is_string) => items.iter().map(short).collect::<Vec<_>>().join(", "),
        Value::Array(rows) => rows.iter().map(|r| short(r).replace(" × ", " ")).collect::<Vec<_>>().join("; "),
        Value::Bool(b) => if *b { "yes" } else { "no" }.to_owned(),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}

/// Six decimals at most; header numbers are f32 and read better so.
fn real(v: f64) -> String {
    if v != 0.0 && v.abs() < 1e-4 {
        return format!("{v:.3e}");
    }
    let text = format!("{v:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_well() {
        let affine = json!([[-3.5999999046325684, 0.0], [0.0, 171.0]]);
        let shown =
            [json!(0.08627685868863949), json!(1e-7), json!(12), json!([3.5999999046325684, 6.0]), affine, json!(true)].map(|v| short(&v));
        assert_eq!(shown, ["0.086277", "1.000e-7", "12", "3.6 × 6", "-3.6 0; 0 171", "yes"]);
    }
}
