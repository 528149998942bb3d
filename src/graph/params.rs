//! Named tensors in one flat buffer, and their layout and initial values.

use crate::error::{Error, Result};
use crate::rng::{Key, Purpose, unit_f32};

/// Elements between the starts of two tensors are a multiple of this: 256 bytes, the strictest
/// alignment an adapter may ask of a binding.
const ALIGN: usize = 64;

/// How a tensor lies in memory and in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Convolution weight: `[kd, kh, kw, first, second]` in memory, PyTorch's `[first, second, kd, kh, kw]` in files.
    /// First and second are output and input channels; for a transposed convolution input and output.
    Conv {
        /// Kernel size.
        kernel: [usize; 3],
        /// First channel dimension in files.
        first: usize,
        /// Second channel dimension in files.
        second: usize,
    },
    /// Linear weight `[out, in]`, the same in both.
    Linear(usize, usize),
    /// A vector.
    Vector(usize),
}

/// Initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in `(-bound, bound)`.
    Uniform(f32),
    /// The same everywhere.
    Constant(f32),
}

/// A named tensor and its place in the flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// PyTorch's name.
    pub name: String,
    /// Layout.
    pub layout: Layout,
    /// Initial values.
    pub init: Init,
    /// First element in the flat buffer.
    pub offset: usize,
}

impl Param {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.file_shape().iter().product()
    }

    /// Whether there is no element; never for a declared tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape in files.
    pub fn file_shape(&self) -> Vec<usize> {
        match self.layout {
            Layout::Conv { kernel: [d, h, w], first, second } => vec![first, second, d, h, w],
            Layout::Linear(o, i) => vec![o, i],
            Layout::Vector(n) => vec![n],
        }
    }

    /// Values in file order from values in memory order.
    pub fn to_file(&self, memory: &[f32]) -> Vec<f32> {
        self.reorder(memory, |file, mem, from| file[from.0] = mem[from.1])
    }

    /// Values in memory order from values in file order.
    pub fn to_memory(&self, file: &[f32]) -> Vec<f32> {
        self.reorder(file, |mem, file, from| mem[from.1] = file[from.0])
    }

    /// Calls `copy(out, from, (file index, memory index))` for every element.
    fn reorder(&self, from: &[f32], copy: impl Fn(&mut [f32], &[f32], (usize, usize))) -> Vec<f32> {
        match self.layout {
            Layout::Conv { kernel, first, second } => {
                let taps = kernel.iter().product::<usize>();
                let mut out = vec![0.0; from.len()];
                for pair in 0..first * second {
                    for tap in 0..taps {
                        copy(&mut out, from, (pair * taps + tap, tap * first * second + pair));
                    }
                }
                out
            }
            Layout::Linear(..) | Layout::Vector(_) => from.to_vec(),
        }
    }
}

/// Tensors that share one flat buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    list: Vec<Param>,
}

impl Tensors {
    /// The tensors in order of declaration.
    pub fn list(&self) -> &[Param] {
        &self.list
    }

    /// Elements of the flat buffer, gaps included; a multiple of the alignment.
    pub fn flat_len(&self) -> usize {
        self.list.last().map_or(0, |p| (p.offset + p.len()).next_multiple_of(ALIGN))
    }

    /// Elements of all tensors, without gaps.
    pub fn count(&self) -> usize {
        self.list.iter().map(Param::len).sum()
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&Param> {
        self.list.iter().find(|p| p.name == name)
    }

    pub(super) fn declare(&mut self, name: &str, layout: Layout, init: Init) -> Result<usize> {
        if let Some(i) = self.list.iter().position(|p| p.name == name) {
            if self.list[i].layout == layout {
                return Ok(i);
            }
            return Err(Error::shape("param", format!("`{name}` is {:?} and cannot also be {layout:?}", self.list[i].layout)));
        }
        self.list.push(Param { name: name.to_owned(), layout, init, offset: self.flat_len() });
        Ok(self.list.len() - 1)
    }

    /// Initial values of the flat buffer, in memory order; drawn per tensor *name* and element in
    /// file order, so that a network's common part starts equal in every network that has it.
    pub fn initial(&self, seed: u32) -> Vec<f32> {
        let mut flat = vec![0.0; self.flat_len()];
        for p in &self.list {
            let values: Vec<f32> = match p.init {
                Init::Constant(v) => vec![v; p.len()],
                Init::Uniform(bound) => {
                    let key = p.name.bytes().fold(Key::new(u64::from(seed)).purpose(Purpose::Init, 0), |k, b| k.fold(u32::from(b), 0));
                    let mut words = (0..).flat_map(|i| key.draw(i));
                    (0..p.len()).map(|_| (2.0 * unit_f32(words.next().unwrap_or(0)) - 1.0) * bound).collect()
                }
            };
            flat[p.offset..p.offset + p.len()].copy_from_slice(&p.to_memory(&values));
        }
        flat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conv_weights_go_to_files_and_back() {
        let mut t = Tensors::default();
        t.declare("a.weight", Layout::Conv { kernel: [2, 1, 3], first: 2, second: 3 }, Init::Uniform(0.5)).unwrap();
        t.declare("a.bias", Layout::Vector(2), Init::Constant(1.0)).unwrap();
        let p = &t.list()[0];
        let file: Vec<f32> = (0..36u8).map(f32::from).collect();
        let memory = p.to_memory(&file);
        // First 1, second 0, tap 1 of 6.
        assert_eq!(memory[6 + 3], file[3 * 6 + 1]);
        assert_ne!(memory, file);
        assert_eq!(p.to_file(&memory), file);
        assert_eq!(p.file_shape(), [2, 3, 2, 1, 3]);
        assert_eq!(t.list()[1].offset, 64);
        let flat = t.initial(3);
        assert_eq!(flat.len(), 128);
        assert!(flat[..36].iter().all(|v| v.abs() < 0.5) && flat[0] != flat[1]);
        assert_eq!(flat[64..66], [1.0, 1.0]);
        assert_ne!(flat, t.initial(4));
    }
}
