//! Named tensors in safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize};

use crate::error::{Error, Result};
use crate::files;

/// The one metadata key that this program writes; several would be written in random order.
const KEY: &str = "semgen";

/// A tensor in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

/// Elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// 32-bit floats; 16-bit and 64-bit ones are converted when read.
    F32(Vec<f32>),
    /// 64-bit integers; smaller ones are converted when read.
    I64(Vec<i64>),
}

impl Tensor {
    /// A tensor of floats.
    pub fn f32(shape: Vec<usize>, data: Vec<f32>) -> Self {
        Self { shape, data: Data::F32(data) }
    }

    /// The floats, if it holds floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            Data::I64(_) => None,
        }
    }
}

/// A file's tensors and this program's metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Metadata written by this program (JSON), if any.
    pub metadata: Option<String>,
}

impl File {
    /// Writes the file, whole or not at all; equal content gives equal bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes: Vec<(&str, Dtype, &[usize], Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, t)| match &t.data {
                Data::F32(v) => (name.as_str(), Dtype::F32, t.shape.as_slice(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
                Data::I64(v) => (name.as_str(), Dtype::I64, t.shape.as_slice(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.to_vec(), data)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| Error::input(path, format!("cannot be written: {e}")))?;
        let metadata = self.metadata.as_ref().map(|m| HashMap::from([(KEY.to_owned(), m.clone())]));
        let out = serialize(views, metadata).map_err(|e| Error::input(path, format!("cannot be written: {e}")))?;
        files::write_atomic(path, |f| f.write_all(&out))
    }

    /// Reads a file made by this or any other program.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Input`] when it is truncated, lies about its
    /// sizes or holds a type that is neither float nor integer.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::parse(&bytes).map_err(|what| Error::input(path, what))
    }

    /// Reads the content of a file.
    ///
    /// # Errors
    /// What is wrong, as a phrase.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let broken = |e: safetensors::SafeTensorError| format!("not a whole safetensors file ({e}); copy or make it again");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let metadata = header.metadata().as_ref().and_then(|m| m.get(KEY).cloned());
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(broken)?.iter() {
            let data =
                convert(view.dtype(), view.data()).ok_or_else(|| format!("tensor `{name}` has the unsupported type {:?}", view.dtype()))?;
            tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), data });
        }
        Ok(Self { tensors, metadata })
    }
}

fn convert(dtype: Dtype, bytes: &[u8]) -> Option<Data> {
    fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        bytes.as_chunks::<N>().0.iter().copied()
    }
    Some(match dtype {
        Dtype::F32 => Data::F32(words(bytes).map(f32::from_le_bytes).collect()),
        Dtype::F64 => Data::F32(words(bytes).map(|b| f64::from_le_bytes(b) as f32).collect()),
        Dtype::F16 => Data::F32(words(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Data::F32(words(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        Dtype::I64 => Data::I64(words(bytes).map(i64::from_le_bytes).collect()),
        Dtype::I32 => Data::I64(words(bytes).map(|b| i32::from_le_bytes(b).into()).collect()),
        Dtype::I16 => Data::I64(words(bytes).map(|b| i16::from_le_bytes(b).into()).collect()),
        Dtype::I8 => Data::I64(bytes.iter().map(|&b| b.cast_signed().into()).collect()),
        Dtype::U8 | Dtype::BOOL => Data::I64(bytes.iter().map(|&b| b.into()).collect()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> File {
        let mut f = File { metadata: Some("{\"a\":1}".into()), ..File::default() };
        f.tensors.insert("b.weight".into(), Tensor::f32(vec![2, 3], vec![1.0, -2.0, 3.5, 0.0, f32::MIN_POSITIVE, 6.0]));
        f.tensors.insert("a".into(), Tensor { shape: vec![], data: Data::I64(vec![-7]) });
        f
    }

    #[test]
    fn files_read_back_and_equal_content_gives_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        sample().write(&a).unwrap();
        sample().write(&b).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(File::read(&a).unwrap(), sample());
    }

    #[test]
    fn every_truncation_and_random_damage_is_an_error_or_a_file_but_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        sample().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            assert!(File::parse(&whole[..n]).is_err(), "{n} bytes were accepted");
        }
        let mut rng = crate::rng::Key::new(1).rng();
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            let at = usize::try_from(rng.int(0, bytes.len() as i64 - 1)).unwrap();
            bytes[at] = u8::try_from(rng.int(0, 255)).unwrap();
            let _ = File::parse(&bytes);
        }
    }
}
