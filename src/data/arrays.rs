//! Cubes in `.npy` files of `NumPy`, mapped into memory: one array of `[n, x, y, z]`, whose rows are converted when they are asked for.

pub mod sets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mapped::Mapped;
use super::voxels::{Kind, decode};
use crate::error::{Error, Result};

/// How far a cube's values may lie outside `[0, 1]`.
const SLACK: f32 = 1e-3;

/// An opened array of cubes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cubes {
    path: Arc<Path>,
    map: Mapped,
    head: Head,
    rows: usize,
    size: [usize; 3],
}

impl PartialEq for Cubes {
    /// Two of the same file are equal.
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Cubes {
    /// Opens an array of shape `[n, x, y, z]`, also with an axis of length 1 for the channel behind `n` or at the end.
    ///
    /// # Errors
    /// An [`Error::Input`] if the file is missing, is no array of whole or floating numbers in C order, has another shape,
    /// or is too short for what it claims.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        let head = Head::parse(&map).map_err(|what| Error::input(path, what))?;
        let (rows, size) = match *head.shape.as_slice() {
            [n, x, y, z] | [n, 1, x, y, z] | [n, x, y, z, 1] if n * x * y * z > 0 => (n, [x, y, z]),
            _ => return Err(Error::input(path, format!("has shape {:?}, but cubes [n, x, y, z] were expected", head.shape))),
        };
        Ok(Self { path: path.into(), map, head, rows, size })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of cubes.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Voxels of a cube along x, y, z.
    pub fn size(&self) -> [usize; 3] {
        self.size
    }

    /// Element type.
    pub fn kind(&self) -> Kind {
        self.head.kind
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Cube `row` as stored, `[x][y][z]`.
    ///
    /// # Errors
    /// If there is no such cube, or a value is not a finite number.
    pub fn cube(&self, row: usize) -> Result<Vec<f32>> {
        if row >= self.rows {
            return Err(Error::input(&*self.path, format!("holds {} cubes, but cube {row} (counted from 0) was asked for", self.rows)));
        }
        let values = self.head.values(&self.map, row * self.size.iter().product::<usize>(), self.size.iter().product());
        match values.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(Error::input(&*self.path, format!("cube {row} holds {v}, but finite numbers were expected"))),
            None => Ok(values),
        }
    }

    /// Cube `row`, whose values have to lie in `[0, 1]`.
    ///
    /// # Errors
    /// As [`Cubes::cube`], and for a value outside.
    pub fn unit_cube(&self, row: usize) -> Result<Vec<f32>> {
        let mut values = self.cube(row)?;
        if let Some(v) = values.iter().find(|&&v| !(-SLACK..=1.0 + SLACK).contains(&v)) {
            let what = format!("cube {row} holds {v}, but values from 0 to 1 were expected; scale the intensities first");
            return Err(Error::input(&*self.path, what));
        }
        values.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
        Ok(values)
    }
}

/// The numbers of an array `[n]` or `[n, 1]`.
///
/// # Errors
/// As [`Cubes::open`].
pub fn column(path: &Path) -> Result<Vec<f32>> {
    let map = Mapped::open(path)?;
    let head = Head::parse(&map).map_err(|what| Error::input(path, what))?;
    match *head.shape.as_slice() {
        [n] | [n, 1] => Ok(head.values(&map, 0, n)),
        _ => Err(Error::input(path, format!("has shape {:?}, but one number a cube, [n] or [n, 1], was expected", head.shape))),
    }
}

/// Files of the folder `dir` itself, by name.
///
/// # Errors
/// An [`Error::Io`] if the folder cannot be read.
pub fn listed(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        out.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    out.sort();
    Ok(out)
}

/// What the head of a file says, held against its length.
#[derive(Clone, Debug, PartialEq)]
struct Head {
    kind: Kind,
    big_endian: bool,
    shape: Vec<usize>,
    offset: usize,
}

impl Head {
    /// Versions 1 to 3 of the format: magic, version, length of the text, the text of a Python dictionary, data.
    ///
    /// Read here and not by `npyz`, which takes as much memory for the text as the file asks for.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let not = || "is not a .npy file; an array written by numpy.save was expected".to_owned();
        let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(not)?;
        let (length, begin) = match *rest {
            [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([a, b])), 10),
            [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]) as usize, 12),
            _ => return Err(not()),
        };
        let offset = begin + length;
        let text = bytes.get(begin..offset).ok_or("ends inside its head; it is truncated, get it again")?;
        let text: String = std::str::from_utf8(text).map_err(|_| not())?.chars().filter(|c| !c.is_whitespace()).collect();
        let after = |key: &str| {
            let name = format!("'{key}':");
            text.find(&name).map(|at| &text[at + name.len()..]).ok_or_else(|| format!("has a head without {key}; it is damaged"))
        };
        let word = after("descr")?.strip_prefix('\'').and_then(|t| t.split('\'').next()).unwrap_or("a structure");
        let kind = match word.trim_start_matches(['<', '>', '|', '=']) {
            "f4" => Kind::F32,
            "f8" => Kind::F64,
            "u1" | "b1" => Kind::U8,
            "i1" => Kind::I8,
            "u2" => Kind::U16,
            "i2" => Kind::I16,
            "u4" => Kind::U32,
            "i4" => Kind::I32,
            "u8" => Kind::U64,
            "i8" => Kind::I64,
            _ => return Err(format!("holds elements of type {word}, but whole or floating numbers were expected; convert it")),
        };
        if !after("fortran_order")?.starts_with("False") {
            return Err("is stored in Fortran order, but C order was expected; write it with numpy.ascontiguousarray".into());
        }
        let list = after("shape")?.strip_prefix('(').and_then(|t| t.split_once(')')).ok_or("has a head without a shape; it is damaged")?.0;
        let shape: Option<Vec<usize>> = list.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect();
        let shape = shape.ok_or_else(|| format!("has shape ({list}); numbers of rows and voxels were expected"))?;
        let claimed = shape.iter().try_fold(kind.bytes(), |n, &s| n.checked_mul(s));
        let there = bytes.len() - offset;
        if claimed.is_none_or(|n| n > there) {
            return Err(format!(
                "claims {shape:?} values of {}, but only {there} bytes are there; it is truncated or damaged",
                kind.word()
            ));
        }
        Ok(Self { kind, big_endian: word.starts_with('>'), shape, offset })
    }

    /// `count` values from value `first` on, which the array holds.
    fn values(&self, bytes: &[u8], first: usize, count: usize) -> Vec<f32> {
        let (from, width) = (self.offset + first * self.kind.bytes(), self.kind.bytes());
        let mut out = Vec::with_capacity(count);
        decode(self.kind, self.big_endian, None, &bytes[from..from + count * width], &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, head: &str, data: &[u8]) -> Vec<u8> {
        let mut out = b"\x93NUMPY".to_vec();
        out.extend([version, 0]);
        let n = head.len() as u32;
        out.extend(if version == 1 { n.to_le_bytes()[..2].to_vec() } else { n.to_le_bytes().to_vec() });
        out.extend(head.as_bytes());
        out.extend(data);
        out
    }

    fn open(bytes: &[u8]) -> Result<Cubes> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        std::fs::write(&path, bytes).unwrap();
        Cubes::open(&path)
    }

    fn head(descr: &str, order: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n")
    }

    #[test]
    fn cubes_are_rows_whatever_their_type_and_version() {
        let numbers: Vec<f32> = (0..24u8).map(|v| f32::from(v) / 32.0).collect();
        let le: Vec<u8> = numbers.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
        let be: Vec<u8> = numbers.iter().flat_map(|v| v.to_be_bytes()).collect();
        for (version, descr, data) in [(1, "<f8", &le), (2, "<f8", &le), (3, ">f4", &be)] {
            for shape in ["(2, 3, 2, 2)", "(2, 1, 3, 2, 2)", "(2, 3, 2, 2, 1)"] {
                let c = open(&file(version, &head(descr, "False", shape), data)).unwrap();
                assert_eq!((c.len(), c.size()), (2, [3, 2, 2]));
                assert_eq!(c.unit_cube(1).unwrap(), numbers[12..]);
                assert!(c.cube(2).unwrap_err().to_string().contains("cube 2"));
            }
        }
        // What npyz writes is read alike.
        use npyz::WriterBuilder;
        let mut bytes = Vec::new();
        let mut w = npyz::WriteOptions::new().default_dtype().shape(&[2, 3, 2, 2]).writer(&mut bytes).begin_nd().unwrap();
        w.extend(numbers.iter().copied()).unwrap();
        w.finish().unwrap();
        assert_eq!(open(&bytes).unwrap().cube(0).unwrap(), numbers[..12]);
    }

    #[test]
    fn hostile_arrays_are_sentences() {
        let data = [0u8; 96];
        let four = "(2, 3, 2, 2)";
        for (bytes, part) in [
            (b"plain text".to_vec(), "not a .npy"),
            (file(9, &head("<f4", "False", four), &data), "not a .npy"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "inside its head"),
            (file(1, &head("<f4", "False", four), &data[1..]), "truncated or damaged"),
            (file(1, &head("<f4", "False", "(18446744073709551615, 3, 2, 2)"), &data), "truncated or damaged"),
            (file(1, &head("<f4", "False", "(99999999999999999999, 3, 2, 2)"), &data), "numbers of rows"),
            (file(1, &head("<f4", "False", "(-1, 3, 2, 2)"), &data), "numbers of rows"),
            (file(1, &head("<f4", "True", four), &data), "Fortran"),
            (file(1, &head("|O", "False", four), &data), "type |O"),
            (file(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", &data), "a structure"),
            (file(1, "{'shape': (2, 3, 2, 2)}", &data), "without descr"),
            (file(1, &head("<f4", "False", "2"), &data), "without a shape"),
            (file(1, &head("<f4", "False", "(24,)"), &data), "cubes [n, x, y, z]"),
            (file(1, &head("<f4", "False", "(0, 3, 2, 2)"), &data), "cubes [n, x, y, z]"),
        ] {
            let e = open(&bytes).unwrap_err().to_string();
            assert!(e.contains(part) && !e.contains('\n'), "{part}: {e}");
        }
        let wrong = |v: f32| open(&file(1, &head("<f4", "False", "(1, 1, 1, 2)"), &[v.to_le_bytes(), [0; 4]].concat())).unwrap();
        assert!(wrong(f32::NAN).cube(0).unwrap_err().to_string().contains("finite"));
        assert!(wrong(-1000.0).cube(0).is_ok());
        assert!(wrong(-1000.0).unit_cube(0).unwrap_err().to_string().contains("-1000"));
        assert_eq!(wrong(1.0005).unit_cube(0).unwrap()[0], 1.0);
    }

    #[test]
    fn a_column_has_one_number_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("y.npy");
        let data: Vec<u8> = [3.0f64, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        for shape in ["(2,)", "(2, 1)"] {
            std::fs::write(&path, file(1, &head("<f8", "False", shape), &data)).unwrap();
            assert_eq!(column(&path).unwrap(), [3.0, 1.0]);
        }
        std::fs::write(&path, file(1, &head("<f8", "False", "(1, 2)"), &data)).unwrap();
        assert!(column(&path).unwrap_err().to_string().contains("[1, 2]"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(noise in proptest::collection::vec(proptest::num::u8::ANY, 1..60), at in 0usize..160) {
            let mut bytes = file(1, &head("<f4", "False", "(2, 3, 2, 2)"), &[0; 96]);
            let at = at.min(bytes.len());
            bytes.splice(at..(at + noise.len() / 2).min(bytes.len()), noise);
            if let Ok(c) = open(&bytes) {
                let _ = c.cube(c.len() - 1);
            }
        }
    }
}
