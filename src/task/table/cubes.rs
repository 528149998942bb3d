//! Cubes in arrays: `x_train_64x64x32.npy` with masks `m_train_64x64x32.npy`, and the same for valid and test.

use std::path::Path;
use std::sync::Arc;

use super::super::Output;
use super::{Case, Image, Part, Table, Truth};
use crate::data::arrays::{Cubes, listed};
use crate::error::{Error, Result};

pub(super) fn read(dir: &Path) -> Result<Table> {
    let (mut cases, mut found, mut size) = (Vec::new(), Vec::new(), None);
    for (name, path) in listed(dir)? {
        let Some(rest) = name.strip_prefix("x_").filter(|n| n.ends_with(".npy")) else { continue };
        let word = rest.split(['_', '.']).next().unwrap_or_default();
        let part = Part::of(word).map_err(|what| Error::input(&path, what))?;
        if found.contains(&part) {
            return Err(Error::input(&path, format!("is a second array of cubes to {} with; keep one", part.word())));
        }
        found.push(part);
        let masks = path.with_file_name(format!("m_{rest}"));
        let (x, m) = (Cubes::open(&path)?, Cubes::open(&masks)?);
        if (x.len(), x.size()) != (m.len(), m.size()) {
            return Err(Error::input(
                &masks,
                format!(
                    "holds {} masks of {:?}, but {name} {} cubes of {:?}; every cube needs its mask",
                    m.len(),
                    m.size(),
                    x.len(),
                    x.size()
                ),
            ));
        }
        if *size.get_or_insert(x.size()) != x.size() {
            return Err(Error::input(&path, format!("holds cubes of {:?}, but another array of the folder of {:?}", x.size(), size)));
        }
        // That intensities were scaled is seen on a few.
        for row in [0, x.len() / 2, x.len() - 1] {
            x.unit_cube(row)?;
            if let Some(v) = m.cube(row)?.into_iter().find(|&v| v != 0.0 && v != 1.0) {
                return Err(Error::input(&masks, format!("mask {row} holds {v}, but 0 and 1 were expected")));
            }
        }
        for row in 0..x.len() {
            let cube = |path: &Path| Image::Cube { path: path.to_path_buf(), row };
            let id = format!("{word}-{row:05}");
            let group: Arc<str> = id.as_str().into();
            let images = Arc::new([cube(&path)]);
            cases.push(Case { id, images, truth: Truth::Mask(cube(&masks)), point: None, group, part: Some(part) });
        }
    }
    if !found.contains(&Part::Train) {
        return Err(Error::input(dir, "has no cubes to train with (x_train_….npy)"));
    }
    let notes = vec!["cubes are taken as they are: values in [0, 1], no voxel size".to_owned()];
    Ok(Table {
        cases,
        classes: vec!["background".to_owned(), "nodule".to_owned()],
        values: vec![0, 1],
        merged: Vec::new(),
        channels: vec!["CT".into()],
        output: Output::Binary,
        folds: Vec::new(),
        notes,
    })
}

/// Cube `row` of an array, `[x][y][z]`, and its size.
///
/// # Errors
/// [`Error::Input`] for a file that is no array of cubes, or a value that is not a finite number.
pub fn read_cube(path: &Path, row: usize) -> Result<(Vec<f32>, [usize; 3])> {
    let array = Cubes::open(path)?;
    Ok((array.cube(row)?, array.size()))
}
