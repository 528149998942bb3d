//! Weights from whatever file holds them: safetensors or PyTorch, this program's or the published code's.
//!
//! The rules by which names are cleaned are the authors' own loading recipe (method reference, 7.2), in this order: `module.`
//! is removed wherever it occurs; tensors of `projection_head` and `prototypes` are left out; `classficationNet.` (sic) is
//! removed where a name is not known otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::network::known;
use super::pickle::{Id, Node};
use super::pt::{Checkpoint, Container};
use super::tensors::{File, Tensor};
use crate::error::{Error, Result};
use crate::files;

/// Entries of a checkpoint dictionary that hold the weights, most usual first.
const PLACES: [&str; 7] = ["state_dict", "model_state_dict", "model", "net", "network", "weights", "module"];
/// Longest name of a tensor.
const MOST_NAME: usize = 256;
/// Prefix of the optimiser's tensors in this program's checkpoints.
const OPTIMISER: &str = "optimizer.";

/// The tensors of a network, under the names of this program.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Metadata written by this program (JSON), if any.
    pub metadata: Option<String>,
    /// Names that were changed: old and new.
    pub renamed: Vec<(String, String)>,
    /// What was left out, and why.
    pub dropped: Vec<(String, String)>,
    /// What kind of file it was.
    pub source: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// The file that is meant by a path: itself, or the best weights of a run directory.
///
/// # Errors
/// [`Error::Input`] when there is nothing, or a folder without such weights.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        return Err(Error::input(path, "no such file or folder"));
    }
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let best = path.join("checkpoints/best.safetensors");
    match best.is_file() {
        true => Ok(best),
        false => Err(Error::input(path, "holds no checkpoints/best.safetensors; name a run that has trained, or a file of weights")),
    }
}

/// Reads a file, which is told by its content, not its name.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::Input`] when it is damaged, names a function to call, or holds no tensor of
/// a network of this family.
pub fn read(path: &Path) -> Result<Weights> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    parse(&bytes).map_err(|what| Error::input(path, what))
}

/// Reads the content of a file.
///
/// # Errors
/// What is wrong, as a phrase about the file.
pub fn parse(bytes: &[u8]) -> Result<Weights, String> {
    let mut weights = match Container::of(bytes) {
        Some(container) => pytorch(bytes, container)?,
        None => safetensors(bytes)?,
    };
    weights.sha256 = files::sha256_hex(bytes);
    Ok(weights)
}

fn safetensors(bytes: &[u8]) -> Result<Weights, String> {
    // Eight bytes of length, then JSON.
    if bytes.get(8) != Some(&b'{') {
        return Err(foreign(bytes));
    }
    let File { mut tensors, metadata } = File::parse(bytes)?;
    let mut out = Weights::new("safetensors file", metadata);
    let all = tensors.len();
    tensors.retain(|name, _| !name.starts_with(OPTIMISER));
    if tensors.len() < all {
        out.dropped.push((format!("{OPTIMISER}*"), format!("{} tensors of the optimiser", all - tensors.len())));
    }
    let names: Vec<String> = tensors.keys().cloned().collect();
    out.collect(names.iter().map(String::as_str), |name| tensors.remove(name).ok_or_else(|| format!("lacks the tensor `{name}`")))?;
    Ok(out)
}

fn pytorch(bytes: &[u8], container: Container) -> Result<Weights, String> {
    let checkpoint = Checkpoint::read(bytes)?;
    let pickle = &checkpoint.pickle;
    let root = pickle.root();
    let (dict, place) = state_dict(&checkpoint)?;
    let metadata = place.and_then(|_| pickle.text(pickle.get(root, "semgen")?)).map(str::to_owned);
    let mut out = Weights::new(container.word(), metadata);
    if let Some(place) = place {
        for (&name, &id) in &named(&checkpoint, root) {
            if name != place && name != "semgen" {
                out.dropped.push((name.to_owned(), describe(pickle.node(id), name)));
            }
        }
    }
    let entries = named(&checkpoint, dict);
    let mut views = BTreeMap::new();
    for (&name, &id) in &entries {
        match checkpoint.view(id) {
            Some(view) => drop(views.insert(name, view)),
            None => out.dropped.push((name.to_owned(), describe(pickle.node(id), name))),
        }
    }
    out.collect(views.keys().copied(), |name| checkpoint.tensor(views[name]))?;
    Ok(out)
}

/// The entries of a dictionary that have a name; of two with the same name the last, as in Python.
fn named<'c>(checkpoint: &'c Checkpoint<'_>, dict: Id) -> BTreeMap<&'c str, Id> {
    let pickle = &checkpoint.pickle;
    let entries = pickle.entries(dict).unwrap_or_default();
    entries.iter().filter_map(|&(k, v)| Some((pickle.text(k).filter(|n| n.len() <= MOST_NAME)?, v))).collect()
}

/// The dictionary of the weights, and the entry of the checkpoint that it is unless it is the whole.
fn state_dict<'c>(checkpoint: &'c Checkpoint<'_>) -> Result<(Id, Option<&'c str>), String> {
    let pickle = &checkpoint.pickle;
    let root = pickle.root();
    let Some(entries) = pickle.entries(root) else {
        return Err(format!("holds {}, expected a dictionary of tensors or a checkpoint with `state_dict`", pickle.node(root).word()));
    };
    let holds =
        |id: Id| pickle.entries(id).is_some_and(|e| e.iter().any(|&(k, v)| pickle.text(k).is_some() && checkpoint.view(v).is_some()));
    for place in PLACES {
        if let Some(id) = pickle.get(root, place).filter(|&id| id != root && holds(id)) {
            return Ok((id, Some(place)));
        }
    }
    if holds(root) {
        return Ok((root, None));
    }
    let mut others: BTreeMap<&str, Id> = named(checkpoint, root);
    others.retain(|_, &mut id| holds(id));
    let found: Vec<&str> = others.keys().copied().collect();
    match found[..] {
        [place] => Ok((others[place], Some(place))),
        [] => {
            let keys: Vec<&str> =
                entries.iter().filter_map(|e| pickle.text(e.0)).take(6).map(|k| &k[..k.floor_char_boundary(40)]).collect();
            Err(format!("holds no dictionary of tensors; its entries are {keys:?}, expected `state_dict`"))
        }
        _ => Err(format!("holds several dictionaries of tensors ({}); save the one that is meant", found.join(", "))),
    }
}

/// What an entry without tensors is.
fn describe(node: &Node, name: &str) -> String {
    match node {
        Node::Int(v) => format!("the number {v}"),
        Node::Float(v) => format!("the number {v}"),
        _ if name.contains("optim") => "state of the optimiser".to_owned(),
        other => format!("{}, no weights", other.word()),
    }
}

/// The name under which a tensor is kept.
fn clean(name: &str) -> Result<String, String> {
    let plain = name.replace("module.", "");
    if plain.contains("projection_head") || plain.contains("prototypes") {
        return Err("only the pretraining of its authors uses it".into());
    }
    let shorter = plain.replace("classficationNet.", "");
    match [plain, shorter].into_iter().find(|n| known(n)) {
        Some(name) => Ok(name),
        None => Err("no part of this family of networks".into()),
    }
}

impl Weights {
    /// Where the file itself says that its weights come from.
    pub fn origin(&self) -> Option<serde_json::Value> {
        let metadata: serde_json::Value = serde_json::from_str(self.metadata.as_deref()?).ok()?;
        metadata.get("origin").cloned()
    }

    fn new(source: &str, metadata: Option<String>) -> Self {
        Self {
            tensors: BTreeMap::new(),
            metadata,
            renamed: Vec::new(),
            dropped: Vec::new(),
            source: source.to_owned(),
            sha256: String::new(),
        }
    }

    /// Takes the tensors called `names`, cleaned.
    fn collect<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        mut tensor: impl FnMut(&str) -> Result<Tensor, String>,
    ) -> Result<(), String> {
        let (mut count, mut example) = (0, None);
        for name in names {
            count += 1;
            example = example.or(Some(name));
            match clean(name) {
                Err(why) => self.dropped.push((name.to_owned(), why)),
                Ok(new) => {
                    if self.tensors.contains_key(&new) {
                        return Err(format!("has two tensors that become `{new}`, one of them `{name}`"));
                    }
                    let t = tensor(name)?;
                    if new != name {
                        self.renamed.push((name.to_owned(), new.clone()));
                    }
                    self.tensors.insert(new, t);
                }
            }
        }
        if self.tensors.values().any(|t| t.floats().is_some_and(|v| !v.is_empty())) {
            return Ok(());
        }
        Err(match example {
            None => "holds no tensors".to_owned(),
            Some(name) => format!(
                "has {count} tensors, but none of a network of this family; found `{name}`, expected `down_tr64.ops.0.conv1.weight` and the like"
            ),
        })
    }
}

/// What is wrong with a file that is neither.
fn foreign(bytes: &[u8]) -> String {
    let is = if bytes.is_empty() {
        "is empty"
    } else if bytes.starts_with(b"version https://git-lfs") {
        "is only the pointer to a file that git-lfs keeps; fetch it with `git lfs pull`"
    } else if bytes.trim_ascii_start().starts_with(b"<") {
        "is a web page, as a download that failed leaves it"
    } else if bytes.starts_with(b"\x89HDF") {
        "is an HDF5 file, which is not read; only PyTorch and safetensors files are"
    } else {
        "is neither a safetensors nor a PyTorch file, or its beginning is damaged"
    };
    is.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_by_the_published_recipe() {
        let conv = "down_tr64.ops.0.conv1.weight";
        for (old, new) in [
            (conv.to_owned(), Some(conv)),
            (format!("module.{conv}"), Some(conv)),
            ("down_tr64.module.ops.0.conv1.weight".into(), Some(conv)),
            (format!("module.classficationNet.{conv}"), Some(conv)),
            ("module.projection_head.0.weight".into(), None),
            ("prototypes.weight".into(), None),
            ("conv1.weight".into(), None),
        ] {
            assert_eq!(clean(&old).ok().as_deref(), new, "{old}");
        }
    }

    fn named(names: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let tensors = names.iter().map(|n| ((*n).to_owned(), Tensor::f32(vec![1], vec![1.0]))).collect();
        File { tensors, metadata: None }.write(&path).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn safetensors_files_are_cleaned_too() {
        let w = parse(&named(&["module.out_tr.final_conv.bias", "optimizer.exp_avg.a", "optimizer.exp_avg_sq.a", "other"])).unwrap();
        assert_eq!(w.tensors.keys().collect::<Vec<_>>(), ["out_tr.final_conv.bias"]);
        assert_eq!(w.renamed, [("module.out_tr.final_conv.bias".to_owned(), "out_tr.final_conv.bias".to_owned())]);
        assert_eq!(w.dropped[0], ("optimizer.*".to_owned(), "2 tensors of the optimiser".to_owned()));
        assert_eq!(w.dropped[1].0, "other");
        assert_eq!(w.sha256.len(), 64);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let twice = parse(&named(&["module.out_tr.final_conv.bias", "out_tr.final_conv.bias"])).unwrap_err();
        assert!(twice.contains("two tensors that become `out_tr.final_conv.bias`"), "{twice}");
        assert!(parse(&named(&["fc.weight"])).unwrap_err().contains("found `fc.weight`"));
        assert!(parse(&named(&[])).unwrap_err().contains("no tensors"));
        for (bytes, what) in [
            (b"".as_slice(), "empty"),
            (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (b"\n<!DOCTYPE html>", "web page"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"something else", "neither"),
        ] {
            let e = parse(bytes).unwrap_err();
            assert!(e.contains(what), "{e}");
        }
    }
}
