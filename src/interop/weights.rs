//! Weights from any file that holds them, under the names that this program uses.

use std::collections::BTreeMap;
use std::path::Path;

use super::tensors::{File, Tensor};
use crate::error::{Error, Result};

/// Tensors under this program's names, and how they came to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// Tensors by name, in PyTorch's layouts.
    pub tensors: BTreeMap<String, Tensor>,
    /// What this program wrote into the file (JSON), if it did.
    pub metadata: Option<String>,
    /// Names that were changed: old and new.
    pub renamed: Vec<(String, String)>,
    /// Entries that were left out, and why.
    pub dropped: Vec<(String, String)>,
    /// What kind of file it was, in words.
    pub kind: String,
}

/// Names of tensors that belong to the optimiser of this program's checkpoints.
const OPTIMISER: [&str; 3] = ["optimizer.exp_avg.", "optimizer.exp_avg_sq.", "optimizer.momentum_buffer."];

/// Reads weights from a `.safetensors` file or a PyTorch checkpoint; the content decides which, not the name.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Input`] when it is damaged, lies, wants something executed or holds no weights.
pub fn read(path: &Path) -> Result<Weights> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    parse(&bytes).map_err(|what| Error::input(path, what))
}

/// As [`read`], of the content of a file.
///
/// # Errors
/// What is wrong, as a phrase.
pub fn parse(bytes: &[u8]) -> Result<Weights, String> {
    let file = File::parse(bytes)?;
    let (kind, tensors, metadata) = ("safetensors".to_owned(), file.tensors, file.metadata);
    let mut out = Weights { metadata, kind, ..Weights::default() };
    for (name, tensor) in tensors {
        let renamed = clean(&name);
        if OPTIMISER.iter().any(|p| name.starts_with(p)) {
            continue;
        }
        // Heads of later methods by the same authors, which no network here has.
        if let Some(word) = ["projection_head", "prototypes"].into_iter().find(|w| renamed.contains(w)) {
            out.dropped.push((name, format!("belongs to a {} of another method", word.replace('_', " "))));
            continue;
        }
        if renamed != name {
            if out.tensors.contains_key(&renamed) {
                return Err(format!("holds `{renamed}` twice, once as `{name}`; keep one of them"));
            }
            out.renamed.push((name, renamed.clone()));
        }
        out.tensors.insert(renamed, tensor);
    }
    if out.tensors.is_empty() {
        return Err("holds no weights".into());
    }
    Ok(out)
}

/// The name without what wrappers have put into it (method reference, 7.2): `module.` of multi-GPU training wherever it occurs,
/// and `classficationNet.` (sic) of the authors' fine-tuning code.
fn clean(name: &str) -> String {
    name.replace("module.", "").replace("classficationNet.", "")
}

impl Weights {
    /// Where checkpoints that start from these weights come from, as their metadata say: the origin that the file itself records,
    /// if it does.
    pub fn origin(&self) -> Option<serde_json::Value> {
        let metadata: serde_json::Value = serde_json::from_str(self.metadata.as_deref()?).ok()?;
        metadata.get("origin").cloned()
    }
}
