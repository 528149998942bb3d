//! Arrays of cubes in `.npy` files, read from disk as they are touched: `[n, x, y, z]` of any number type, never held whole.

use std::path::Path;

use super::mapped::Mapped;
use crate::error::{Error, Result};

/// An array of cubes, or of numbers (`[n]`, `[n, 1]`).
#[derive(Clone, Debug)]
pub struct Array {
    bytes: Mapped,
    begin: usize,
    width: usize,
    kind: char,
    shape: Vec<usize>,
    path: std::path::PathBuf,
}

impl Array {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Input`] for a missing or damaged file, one in Fortran order or big-endian, or with elements that are no numbers.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = Mapped::open(path)?;
        let (begin, width, kind, shape) = header(&bytes).map_err(|what| Error::input(path, what))?;
        Ok(Self { bytes, begin, width, kind, shape, path: path.to_path_buf() })
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows: the first dimension.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Size of a row as a cube: its last three dimensions, 1 for those it lacks.
    pub fn cube(&self) -> [usize; 3] {
        let at = |back: usize| if self.shape.len() > back { self.shape[self.shape.len() - back] } else { 1 };
        if self.shape.len() < 2 {
            [1; 3]
        } else {
            [if self.shape.len() > 3 { at(3) } else { 1 }, if self.shape.len() > 2 { at(2) } else { 1 }, at(1)]
        }
    }

    /// The numbers of a row.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such row.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        if row >= self.rows() {
            return Err(Error::Usage(format!("there is no row {row} in {}; it has {}", self.path.display(), self.rows())));
        }
        let n: usize = self.shape[1..].iter().product();
        let from = self.begin + row * n * self.width;
        Ok(decode(&self.bytes[from..from + n * self.width], self.kind, self.width))
    }
}

/// Where data begin, bytes of an element, its kind (`f`, `i`, `u`, `b`) and the shape.
fn header(bytes: &[u8]) -> Result<(usize, usize, char, Vec<usize>), String> {
    let mut rest = bytes;
    let head = npyz::NpyHeader::from_reader(&mut rest).map_err(|e| format!("is no .npy array ({e})").replace('\n', " "))?;
    let begin = bytes.len() - rest.len();
    let descr = head.dtype().descr();
    let word = descr.trim_matches('\'');
    let mut letters = word.chars();
    let (order, kind) = (letters.next().unwrap_or(' '), letters.next().unwrap_or(' '));
    let width: usize = letters.as_str().parse().unwrap_or(0);
    let known = matches!((kind, width), ('f', 2 | 4 | 8) | ('i' | 'u', 1 | 2 | 4 | 8) | ('b', 1));
    if !known || order == '>' {
        return Err(format!("holds elements of type {word}; little-endian numbers were expected"));
    }
    if head.order() != npyz::Order::C {
        return Err("is stored in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape: Option<Vec<usize>> = head.shape().iter().map(|&n| usize::try_from(n).ok()).collect();
    let shape = shape.filter(|s| !s.is_empty() && s.len() <= 5).ok_or("has no dimensions, or more than 5")?;
    let claimed = shape.iter().try_fold(width, |n, &d| n.checked_mul(d)).and_then(|n| n.checked_add(begin));
    if claimed != Some(bytes.len()) {
        return Err(format!(
            "claims a shape of {shape:?} of {word}, which its {} bytes do not hold; it is truncated or damaged",
            bytes.len()
        ));
    }
    if shape.contains(&0) {
        return Err(format!("has the empty shape {shape:?}"));
    }
    Ok((begin, width, kind, shape))
}

fn decode(bytes: &[u8], kind: char, width: usize) -> Vec<f32> {
    macro_rules! as_f32 {
        ($t:ty) => {
            bytes.as_chunks::<{ size_of::<$t>() }>().0.iter().map(|b| <$t>::from_le_bytes(*b) as f32).collect()
        };
    }
    match (kind, width) {
        ('f', 2) => bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        ('f', 4) => as_f32!(f32),
        ('f', _) => as_f32!(f64),
        ('i', 1) => as_f32!(i8),
        ('i', 2) => as_f32!(i16),
        ('i', 4) => as_f32!(i32),
        ('i', _) => as_f32!(i64),
        (_, 1) => as_f32!(u8),
        (_, 2) => as_f32!(u16),
        (_, 4) => as_f32!(u32),
        _ => as_f32!(u64),
    }
}

#[cfg(test)]
mod tests {
    use npyz::WriterBuilder;

    use super::*;

    fn write<T: npyz::AutoSerialize + npyz::Serialize + Copy>(path: &Path, shape: &[u64], data: &[T]) {
        let mut out = Vec::new();
        let mut w = npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut out).begin_nd().unwrap();
        w.extend(data.iter().copied()).unwrap();
        w.finish().unwrap();
        std::fs::write(path, out).unwrap();
    }

    #[test]
    fn rows_of_doubles_and_bytes_are_floats() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        write(&path, &[2, 2, 1, 3], &(0..12).map(|v| f64::from(v) / 16.0).collect::<Vec<_>>());
        let a = Array::open(&path).unwrap();
        assert_eq!((a.rows(), a.cube()), (2, [2, 1, 3]));
        assert_eq!(a.row(1).unwrap(), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0].map(|v: f32| v / 16.0));
        assert!(a.row(2).is_err());
        write(&path, &[3, 1], &[7u8, 8, 9]);
        let a = Array::open(&path).unwrap();
        assert_eq!((a.rows(), a.cube(), a.row(2).unwrap()), (3, [1, 1, 1], vec![9.0]));
    }

    #[test]
    fn truncated_and_lying_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        write(&path, &[2, 2], &[1f32, 2.0, 3.0, 4.0]);
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 5, 9, 40, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Array::open(&path).is_err(), "{cut}");
        }
        let text = String::from_utf8_lossy(&whole[..whole.len() - 16]).replace("(2, 2, )", "(9, 9, )").replace("(2, 2)", "(9, 9)");
        std::fs::write(&path, [text.as_bytes(), &whole[whole.len() - 16..]].concat()).unwrap();
        assert!(Array::open(&path).is_err());
    }
}
