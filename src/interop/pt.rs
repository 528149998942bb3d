//! PyTorch's checkpoint files: the zip archives of PyTorch 1.6 and later, and the row of pickles before it.
//!
//! Both hold one pickle, whose tensors look at *storages*: runs of elements kept outside it. Here the pickle is read, and
//! the storages are found and checked against the sizes that it gives; a tensor's elements are copied when asked for.

mod archive;
mod legacy;
mod write;

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use super::pickle::{Element, Id, Node, Pickle, Storage, View};
use super::tensors::{Data, Tensor};

pub use write::write;

/// How often, in total, the bytes of a file may be copied into tensors: tensors may share a storage, but not without end.
const MOST_COPIES: usize = 4;

/// Which of the two containers a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A zip archive.
    Zip,
    /// Five pickles and the storages, back to back.
    Legacy,
}

impl Container {
    /// What a file of these bytes is, judged by how it begins.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"PK\x03\x04") {
            Some(Self::Zip)
        } else if bytes.starts_with(&legacy::MAGIC) {
            Some(Self::Legacy)
        } else {
            None
        }
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Zip => "PyTorch file (zip)",
            Self::Legacy => "PyTorch file (legacy)",
        }
    }
}

/// A checkpoint file that was read.
#[derive(Debug)]
pub struct Checkpoint<'b> {
    bytes: &'b [u8],
    /// The objects in it.
    pub pickle: Pickle,
    /// Where the elements of each storage lie.
    storages: HashMap<String, Range<usize>>,
    /// Bytes that may still be copied.
    budget: Cell<usize>,
}

impl<'b> Checkpoint<'b> {
    /// Reads the content of a file.
    ///
    /// # Errors
    /// What is wrong, as a phrase about the file.
    pub fn read(bytes: &'b [u8]) -> Result<Self, String> {
        let (pickle, storages) = match Container::of(bytes) {
            Some(Container::Zip) => archive::read(bytes)?,
            Some(Container::Legacy) => legacy::read(bytes)?,
            None => return Err("is no PyTorch file".into()),
        };
        for node in pickle.nodes() {
            if let Node::Storage(s) = node {
                let found = storages.get(&s.key).ok_or_else(|| format!("lacks the storage `{}`, which its tensors need", s.key))?;
                if s.stored.checked_mul(s.element.bytes()) != Some(found.len()) {
                    let (element, stored, found) = (s.element, s.stored, found.len());
                    return Err(format!(
                        "has a storage `{}` of {found} bytes where {stored} elements of type {element:?} should be",
                        s.key
                    ));
                }
            }
        }
        let budget = Cell::new(bytes.len().saturating_mul(MOST_COPIES));
        Ok(Self { bytes, pickle, storages, budget })
    }

    /// The elements of a tensor.
    ///
    /// # Errors
    /// If the tensors asked for share their storages so often that they have several times the bytes of the file.
    ///
    /// # Panics
    /// If `view` is of another pickle.
    pub fn tensor(&self, view: &View) -> Result<Tensor, String> {
        let Node::Storage(storage) = self.pickle.node(view.storage) else { panic!("views look at storages") };
        let size = storage.element.bytes();
        let left = self.budget.get().checked_sub(view.len * size);
        self.budget.set(left.ok_or_else(|| format!("has tensors of more than {MOST_COPIES} times its own size"))?);
        let data = convert(storage.element, &self.gather(view, storage, size));
        Ok(Tensor { shape: view.shape.clone(), data })
    }

    /// The bytes of a tensor's elements in C order.
    fn gather(&self, view: &View, storage: &Storage, size: usize) -> Vec<u8> {
        // An empty tensor may claim any size along its other axes.
        if view.len == 0 {
            return Vec::new();
        }
        let bytes = &self.bytes[self.storages[&storage.key].clone()];
        let start = storage.first + view.offset;
        let mut expected = 1;
        let contiguous = view.shape.iter().zip(&view.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected *= n;
            fits
        });
        if contiguous {
            return bytes[start * size..(start + view.len) * size].to_vec();
        }
        let mut out = Vec::with_capacity(view.len * size);
        let mut index = vec![0; view.shape.len()];
        for _ in 0..view.len {
            let at = start + index.iter().zip(&view.strides).map(|(i, s)| i * s).sum::<usize>();
            out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < view.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        out
    }

    /// The tensor that `id` is, if it is one.
    pub fn view(&self, id: Id) -> Option<&View> {
        match self.pickle.node(id) {
            Node::Tensor(view) => Some(view),
            _ => None,
        }
    }
}

/// Floats of any width as f32, bit for bit where they have 32 bits; integers as i64.
fn convert(element: Element, bytes: &[u8]) -> Data {
    fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        bytes.as_chunks::<N>().0.iter().copied()
    }
    match element {
        Element::Float => Data::F32(words(bytes).map(f32::from_le_bytes).collect()),
        Element::Double => Data::F32(words(bytes).map(|b| f64::from_le_bytes(b) as f32).collect()),
        Element::Half => Data::F32(words(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
        Element::BFloat16 => Data::F32(words(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        Element::Long => Data::I64(words(bytes).map(i64::from_le_bytes).collect()),
        Element::Int => Data::I64(words(bytes).map(|b| i32::from_le_bytes(b).into()).collect()),
        Element::Short => Data::I64(words(bytes).map(|b| i16::from_le_bytes(b).into()).collect()),
        Element::Char => Data::I64(bytes.iter().map(|&b| b.cast_signed().into()).collect()),
        Element::Byte => Data::I64(bytes.iter().map(|&b| b.into()).collect()),
        Element::Bool => Data::I64(bytes.iter().map(|&b| (b != 0).into()).collect()),
    }
}

#[cfg(test)]
mod tests;
