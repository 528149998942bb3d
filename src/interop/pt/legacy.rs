//! The container before PyTorch 1.6: five pickles back to back, then the storages.

use std::collections::HashMap;
use std::ops::Range;

use crate::interop::pickle::{Element, Id, Node, Pickle};

/// How such a file begins: the pickle of the number 0x1950a86a20f9469cfc6c.
pub(super) const MAGIC: [u8; 15] = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e];
/// Version of the container.
const VERSION: i64 = 1001;

/// The object, and where in `bytes` each storage lies.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle, HashMap<String, Range<usize>>), String> {
    let mut at = MAGIC.len();
    let mut next = |what: &str| -> Result<Pickle, String> {
        let p = Pickle::read(&bytes[at..]).map_err(|e| format!("{e}, in its {what}"))?;
        at += p.length;
        Ok(p)
    };
    let version = next("version")?;
    if version.node(version.root()) != &Node::Int(VERSION) {
        return Err(format!("is a legacy PyTorch file of an unknown version, expected {VERSION}"));
    }
    let system = next("description of the system")?;
    let flag = |name: &str| system.get(system.root(), name).map(|id| system.node(id));
    match flag("little_endian") {
        Some(Node::Bool(true)) => {}
        Some(Node::Bool(false)) => {
            return Err("was written on a big-endian machine; load and save it with PyTorch 1.6 or later".into());
        }
        _ => return Err("does not say its byte order; it is damaged".into()),
    }
    let object = next("objects")?;
    let keys = next("list of storages")?;
    let Node::List(order) = keys.node(keys.root()) else { return Err("lacks its list of storages; it is damaged".into()) };
    let mut elements: HashMap<&str, Element> = HashMap::new();
    for node in object.nodes() {
        if let Node::Storage(s) = node {
            elements.insert(&s.key, s.element);
        }
    }
    let mut storages = HashMap::new();
    for &key in order {
        let (key, range) = storage(bytes, at, &keys, key, &elements)?;
        at = range.end;
        if storages.insert(key.clone(), range).is_some() {
            return Err(format!("has the storage `{key}` twice"));
        }
    }
    if at != bytes.len() {
        return Err(format!("has {} bytes after its last storage; copy or make it again", bytes.len() - at));
    }
    Ok((object, storages))
}

/// Key and place of the storage at `at`: a count, then as many elements.
fn storage(bytes: &[u8], at: usize, keys: &Pickle, key: Id, elements: &HashMap<&str, Element>) -> Result<(String, Range<usize>), String> {
    let key = keys.text(key).ok_or("has a storage whose key is no text")?;
    let element =
        elements.get(key).ok_or_else(|| format!("has a storage `{}` that no tensor uses", key.chars().take(40).collect::<String>()))?;
    let cut = || format!("ends within the storage `{key}`; copy or make it again");
    let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(cut)?;
    let start = at + 8;
    let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|n| n.checked_mul(element.bytes()));
    let end = length.and_then(|n| n.checked_add(start)).filter(|&e| e <= bytes.len()).ok_or_else(cut)?;
    Ok((key.to_owned(), start..end))
}
