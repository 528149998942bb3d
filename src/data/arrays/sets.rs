//! Folders of cubes that other programs have cut, to pretrain on directly.
//!
//! | files | what |
//! |---|---|
//! | `train_dataN_vwGen_ex_ref_foldP.0.npy` and `val_data1_…`, with `train_labelN_…` and `val_label1_…` | self-discovered cubes with their pseudo labels as the authors of Semantic Genesis publish them: N the resolution, P the part of the classes |
//! | `train_cubes.npy`, `validation_cubes.npy` with `train_labels.npy`, `validation_labels.npy` | the same from `discover.write_cubes` |
//! | `bat_32_s_64x64x32_K.npy`, also without `_s` | cubes of LUNA16's subset K without labels, as Models Genesis has them: 0–4 to learn from, 5 and 6 to validate on, others left out |
//!
//! The first two may carry anything between `data` or `label` and `.npy`, as long as a file of cubes and its labels agree. Cubes are
//! `[n, x, y, z]` with values in `[0, 1]` (see [`Cubes`]), labels `[n]` or `[n, 1]` whole numbers from 0.

use std::path::{Path, PathBuf};

use super::{Cubes, column, listed};
use crate::error::{Error, Result};
use crate::files;

/// Largest pseudo label that is believed.
const MAX_LABEL: f32 = 65_535.0;

/// Cubes to learn from, or to validate on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    arrays: Vec<Cubes>,
    /// Array, row in it, pseudo label.
    rows: Vec<(u32, u32, u32)>,
}

impl Rows {
    /// Number of cubes.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The pseudo label of every cube; 0 where there are none.
    pub fn labels(&self) -> impl Iterator<Item = u32> + '_ {
        self.rows.iter().map(|r| r.2)
    }

    /// Cube `i`, `[x][y][z]`, with values in `[0, 1]`.
    ///
    /// # Errors
    /// As [`Cubes::unit_cube`].
    ///
    /// # Panics
    /// If there is no such cube.
    pub fn cube(&self, i: usize) -> Result<Vec<f32>> {
        let (array, row, _) = self.rows[i];
        self.arrays[array as usize].unit_cube(row as usize)
    }
}

/// Cubes that another program has cut, mapped into memory.
#[derive(Clone, Debug, PartialEq)]
pub struct CubeSet {
    /// To learn from.
    pub train: Rows,
    /// To validate on.
    pub validation: Rows,
    /// Number of pseudo labels: one more than the largest; `None` for cubes without labels.
    pub classes: Option<usize>,
    /// Voxels of a cube along x, y, z.
    pub size: [usize; 3],
    /// Hash of what the files hold: names, shapes, labels, and some of the cubes of each.
    pub identity: String,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// What a file is by its name: whether it validates, and its labels' name if it has labels.
enum Role {
    /// Cubes with labels in another file.
    Labelled { validates: bool, labels: String },
    /// Labels of the file of this name.
    Labels { cubes: String },
    /// Cubes of a subset without labels.
    Subset(u32),
}

fn role(name: &str) -> Option<Role> {
    let stem = name.strip_suffix(".npy")?;
    for (part, validates) in [("train", false), ("validation", true), ("val", true)] {
        let Some(rest) = stem.strip_prefix(part).and_then(|r| r.strip_prefix('_')) else { continue };
        for (data, label) in [("data", "label"), ("cubes", "labels")] {
            let other = |word: &str, rest: &str| format!("{part}_{word}{rest}.npy");
            if let Some(rest) = rest.strip_prefix(data) {
                return Some(Role::Labelled { validates, labels: other(label, rest) });
            }
            if let Some(rest) = rest.strip_prefix(label)
                && (label == "labels" || !rest.starts_with('s'))
            {
                return Some(Role::Labels { cubes: other(data, rest) });
            }
        }
    }
    let (shape, subset) = stem.strip_prefix("bat_")?.rsplit_once('_')?;
    shape.contains('x').then(|| subset.parse().ok().map(Role::Subset))?
}

/// Whether `dir` is a folder of cubes.
pub fn holds(dir: &Path) -> bool {
    dir.is_dir() && listed(dir).is_ok_and(|l| l.iter().any(|(n, _)| matches!(role(n), Some(Role::Labelled { .. } | Role::Subset(_)))))
}

impl CubeSet {
    /// Opens the cubes in the folder `dir`, of which those of the first `classes` pseudo labels are used.
    ///
    /// # Errors
    /// An [`Error::Input`] about files that are no arrays of cubes, that lack their labels or have others than whole numbers, whose
    /// sizes differ or whose values lie outside `[0, 1]`; about a missing part; and about fewer pseudo labels than `classes`.
    pub fn open(dir: &Path, classes: usize) -> Result<Self> {
        let files = listed(dir)?;
        let has = |name: &str| files.iter().any(|f| f.0 == name);
        let mut set = Builder::default();
        for (name, path) in &files {
            match role(name) {
                Some(Role::Labelled { validates, labels }) => {
                    if !has(&labels) {
                        return Err(Error::input(path, format!("has no {labels} beside it, which holds the pseudo labels of its cubes")));
                    }
                    set.labelled(path, &path.with_file_name(labels), validates)?;
                }
                Some(Role::Labels { cubes }) if !has(&cubes) => {
                    return Err(Error::input(path, format!("has no {cubes} beside it, whose pseudo labels it holds")));
                }
                Some(Role::Subset(k @ 0..=6)) => set.subset(path, k > 4)?,
                Some(Role::Subset(_)) => set.left_out.push(name.clone()),
                Some(Role::Labels { .. }) | None => {}
            }
        }
        set.finish(dir, classes)
    }
}

#[derive(Default)]
struct Builder {
    train: Rows,
    validation: Rows,
    size: Option<([usize; 3], PathBuf)>,
    labelled: bool,
    unlabelled: bool,
    /// What the identity is the hash of.
    text: String,
    left_out: Vec<String>,
}

impl Builder {
    /// Opens an array, whose cubes have the size of those before.
    fn cubes(&mut self, path: &Path) -> Result<Cubes> {
        let cubes = Cubes::open(path)?;
        let (size, first) = self.size.get_or_insert_with(|| (cubes.size(), path.to_path_buf()));
        if *size != cubes.size() {
            return Err(Error::input(
                path,
                format!("holds cubes of {:?}, but {} cubes of {size:?}; give them in folders of their own", cubes.size(), first.display()),
            ));
        }
        // That intensities were scaled, and that it is the same array, is seen on a few.
        let mut some = Vec::new();
        for row in [0, cubes.len() / 2, cubes.len() - 1] {
            some.extend(cubes.unit_cube(row)?.iter().flat_map(|v| v.to_le_bytes()));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.text += &format!("{name} {} {:?} {} {}\n", cubes.len(), cubes.size(), cubes.kind().word(), files::sha256_hex(&some));
        if u32::try_from(cubes.len()).is_err() {
            return Err(Error::input(path, format!("holds {} cubes, more than can be told apart", cubes.len())));
        }
        Ok(cubes)
    }

    fn labelled(&mut self, path: &Path, labels: &Path, validates: bool) -> Result<()> {
        let cubes = self.cubes(path)?;
        let values = column(labels)?;
        if values.len() != cubes.len() {
            return Err(Error::input(
                labels,
                format!("holds {} labels, but {} holds {} cubes; every cube needs its own", values.len(), path.display(), cubes.len()),
            ));
        }
        if let Some((row, v)) = values.iter().enumerate().find(|(_, v)| !(v.fract() == 0.0 && (0.0..=MAX_LABEL).contains(*v))) {
            return Err(Error::input(labels, format!("label {row} is {v}; whole numbers from 0 to {MAX_LABEL} were expected")));
        }
        self.labelled = true;
        let part = if validates { &mut self.validation } else { &mut self.train };
        let array = part.arrays.len() as u32;
        part.rows.extend(values.iter().enumerate().map(|(row, &v)| (array, row as u32, v as u32)));
        part.arrays.push(cubes);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.text += &format!("{}\n", files::sha256_hex(&bytes));
        Ok(())
    }

    fn subset(&mut self, path: &Path, validates: bool) -> Result<()> {
        let cubes = self.cubes(path)?;
        self.unlabelled = true;
        let part = if validates { &mut self.validation } else { &mut self.train };
        let array = part.arrays.len() as u32;
        part.rows.extend((0..cubes.len() as u32).map(|row| (array, row, 0)));
        part.arrays.push(cubes);
        Ok(())
    }

    fn finish(mut self, dir: &Path, classes: usize) -> Result<CubeSet> {
        let wrong = |what: String| Err(Error::input(dir, what));
        if self.labelled && self.unlabelled {
            return wrong("holds cubes with labels and cubes without; give them in folders of their own".into());
        }
        for (part, what, expected) in [
            (&self.train, "to learn from", "train_data1_….npy, train_cubes.npy, or bat_…_0.npy to bat_…_4.npy"),
            (&self.validation, "to validate on", "val_data1_….npy, validation_cubes.npy, or bat_…_5.npy and bat_…_6.npy"),
        ] {
            if part.is_empty() {
                return wrong(format!("has no cubes {what}; {expected} were expected"));
            }
        }
        let Some((size, _)) = self.size else { return wrong("holds no cubes".into()) };
        let mut notes = Vec::new();
        if !self.left_out.is_empty() {
            notes.push(format!("left out, kept for testing: {}", self.left_out.join(", ")));
        }
        let mut found = None;
        if self.labelled {
            let most = self.train.labels().max().unwrap_or(0) as usize + 1;
            found = Some(most);
            if most < classes {
                return wrong(format!("has {most} pseudo labels, but {classes} were asked for; set model.classes={most}"));
            }
            if most > classes {
                notes.push(format!("of {most} pseudo labels the first {classes} are used; model.classes says how many"));
            }
            for (part, what) in [(&mut self.train, "to learn from"), (&mut self.validation, "to validate on")] {
                part.rows.retain(|r| (r.2 as usize) < classes);
                if part.is_empty() {
                    return wrong(format!("has no cubes {what} among the first {classes} pseudo labels; raise model.classes"));
                }
            }
        }
        let identity = files::sha256_hex(self.text.as_bytes());
        Ok(CubeSet { train: self.train, validation: self.validation, classes: found, size, identity, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Describes what a name is taken for.
    fn told(name: &str) -> String {
        match role(name) {
            None => "nothing".into(),
            Some(Role::Labelled { validates: false, labels }) => format!("train with {labels}"),
            Some(Role::Labelled { validates: true, labels }) => format!("validation with {labels}"),
            Some(Role::Labels { cubes }) => format!("labels of {cubes}"),
            Some(Role::Subset(k)) => format!("subset {k}"),
        }
    }

    #[test]
    fn names_are_told_apart() {
        for (name, expected) in [
            ("train_data1_vwGen_ex_ref_fold1.0.npy", "train with train_label1_vwGen_ex_ref_fold1.0.npy"),
            ("train_label3_vwGen_ex_ref_fold2.0.npy", "labels of train_data3_vwGen_ex_ref_fold2.0.npy"),
            ("val_data1_vwGen_ex_ref_fold1.0.npy", "validation with val_label1_vwGen_ex_ref_fold1.0.npy"),
            ("train_cubes.npy", "train with train_labels.npy"),
            ("validation_cubes.npy", "validation with validation_labels.npy"),
            ("validation_labels.npy", "labels of validation_cubes.npy"),
            ("bat_32_s_64x64x32_7.npy", "subset 7"),
            ("bat_32_64x64x32_0.npy", "subset 0"),
            ("bat_32_s_64x64x32_x.npy", "nothing"),
            ("bat_32_0.npy", "nothing"),
            ("train_features.npy", "nothing"),
            ("validation_features.npy", "nothing"),
            ("train_data1.txt", "nothing"),
            ("x_train_64x64x32.npy", "nothing"),
        ] {
            assert_eq!(told(name), expected, "{name}");
        }
    }
}
