//! Cubes in arrays: `x_train_64x64x32.npy` with masks `m_train_64x64x32.npy`, and the same for valid and test.

use std::path::{Path, PathBuf};

use super::super::Output;
use super::{Case, Image, Part, Table, Truth};
use crate::data::arrays::Array;
use crate::error::{Error, Result};

pub(super) fn read(dir: &Path) -> Result<Table> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten().map(|e| e.path()).collect();
    names.sort();
    let mut cases = Vec::new();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("x_").filter(|n| n.ends_with(".npy")) else { continue };
        let word = rest.split(['_', '.']).next().unwrap_or_default();
        let part = Part::of(word).map_err(|what| Error::input(&path, what))?;
        let masks = path.with_file_name(format!("m_{rest}"));
        let (x, m) = (Array::open(&path)?, Array::open(&masks)?);
        if x.shape() != m.shape() {
            return Err(Error::input(&masks, format!("holds {:?} numbers, {name} {:?}; every cube needs its mask", m.shape(), x.shape())));
        }
        for row in 0..x.rows() {
            let cube = |path: &Path| Image::Cube { path: path.to_path_buf(), row };
            let id = format!("{word}-{row:05}");
            cases.push(Case {
                id: id.clone(),
                images: vec![cube(&path)],
                truth: Truth::Mask(cube(&masks)),
                point: None,
                group: id,
                part: Some(part),
            });
        }
    }
    let classes = vec!["background".to_owned(), "nodule".to_owned()];
    let notes = vec!["cubes are taken as they are: values in [0, 1], no spacing".to_owned()];
    Ok(Table { cases, classes, values: vec![0, 1], merged: Vec::new(), channels: vec!["CT".into()], output: Output::Binary, notes })
}

/// Cube `row` of an array, `[x][y][z]`, and its size.
///
/// # Errors
/// [`Error::Input`] for a file that is no array of cubes.
pub fn read_cube(path: &Path, row: usize) -> Result<(Vec<f32>, [usize; 3])> {
    let array = Array::open(path)?;
    Ok((array.row(row)?, array.cube()))
}
