//! Small scans cut around lung nodules, and from lungs without any: data for target tasks.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;

use super::{LUNG, NODULE, Nodule, Patient};
use crate::data::nifti::{write_i16, write_u8};
use crate::data::volume::{Volume, apply, inverse, multiply, translation};
use crate::error::{Error, Result};
use crate::files::{create_dir, write_bytes};
use crate::rng::{CounterRng, Key};

/// Tries at a place without a nodule.
const TRIES: usize = 2000;

/// What to cut out of which patients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regions {
    /// Patients; only those with a nodule within `diameters` count.
    pub patients: usize,
    /// Body types.
    pub types: usize,
    /// Seed of all draws.
    pub seed: u32,
    /// Grid of the whole scans.
    pub size: [usize; 3],
    /// Voxel size, mm.
    pub spacing: [f64; 3],
    /// Voxels of what is cut out.
    pub cube: [usize; 3],
    /// Least and largest mean diameter of a nodule that is cut out, mm.
    pub diameters: [f32; 2],
    /// Scans cut out around each nodule, and as many without any.
    pub each: usize,
    /// Shares of the patients to learn from and to choose models by; the rest is to report on.
    pub shares: [f64; 2],
}

/// The table of the segmentation of nodules.
pub const SEGMENT: &str = "segment.csv";
/// The table of the classification into scans with and without a nodule.
pub const CLASSIFY: &str = "classify.csv";

/// A region of a scan.
fn cut(v: &Volume, start: [usize; 3], size: [usize; 3]) -> Volume {
    let mut data = Vec::with_capacity(size.iter().product());
    for i in start[0]..start[0] + size[0] {
        for j in start[1]..start[1] + size[1] {
            let at = (i * v.size[1] + j) * v.size[2] + start[2];
            data.extend_from_slice(&v.data[at..at + size[2]]);
        }
    }
    Volume { data, size, affine: multiply(&v.affine, &translation(start.map(|s| s as f64))) }
}

impl Regions {
    /// Writes the scans, the masks of their nodules (1) and two tables, `segment.csv` and `classify.csv`, into `out`. `on` gets
    /// the number of patients finished so far. The bytes depend on `self` alone.
    ///
    /// # Errors
    /// [`Error::Usage`] for a region larger than the scans, or when hardly any patient has such a nodule; [`Error::Io`] for a file
    /// that cannot be written.
    pub fn write(&self, out: &Path, on: &mut dyn FnMut(usize)) -> Result<()> {
        if (0..3).any(|a| self.cube[a] > self.size[a]) {
            return Err(Error::Usage(format!("regions of {:?} voxels do not fit into scans of {:?}", self.cube, self.size)));
        }
        create_dir(out)?;
        let many = u32::try_from(self.patients.saturating_mul(100)).unwrap_or(u32::MAX);
        let drawn = (0..many).map(|i| Patient::draw(self.seed, i, self.types));
        let patients: Vec<Patient> = drawn.filter(|p| p.nodules.iter().any(|n| self.counts(n))).take(self.patients).collect();
        if patients.len() < self.patients {
            let [least, most] = self.diameters;
            return Err(Error::Usage(format!("hardly any patient has a nodule of {least} to {most} mm; ask for others")));
        }
        let (mut segment, mut classify) = (String::from("id,image,mask,patient,split\n"), String::from("id,image,label,patient,split\n"));
        let mut done = 0;
        for group in patients.chunks(rayon::current_num_threads()) {
            let found: Vec<Result<[Vec<String>; 2]>> = group.par_iter().map(|p| self.one(p, out)).collect();
            for (p, ids) in group.iter().zip(found) {
                let part = done as f64 / self.patients as f64;
                let split = match part {
                    _ if part < self.shares[0] => "train",
                    _ if part < self.shares[0] + self.shares[1] => "validation",
                    _ => "test",
                };
                let [with, without] = ids?;
                // Writing to a string cannot fail.
                for id in &with {
                    let _ = writeln!(segment, "{id},{id}.nii.gz,{id}_mask.nii.gz,{},{split}", p.index);
                }
                for (label, ids) in [("nodule", &with), ("no nodule", &without)] {
                    for id in ids {
                        let _ = writeln!(classify, "{id},{id}.nii.gz,{label},{},{split}", p.index);
                    }
                }
                done += 1;
                on(done);
            }
        }
        write_bytes(&out.join(CLASSIFY), classify.as_bytes())?;
        write_bytes(&out.join(SEGMENT), segment.as_bytes())
    }

    fn counts(&self, n: &Nodule) -> bool {
        let half = |a: usize| 0.5 * self.size[a] as f64 * self.spacing[a];
        let [least, most] = self.diameters;
        (least..=most).contains(&n.diameter) && (0..3).all(|a| f64::from(n.ras[a].abs()) < half(a))
    }

    /// Names of the regions with and without nodules that were cut out of a patient.
    fn one(&self, p: &Patient, out: &Path) -> Result<[Vec<String>; 2]> {
        let (scan, labels) = p.render(self.size, self.spacing);
        let inverse = inverse(&scan.affine).ok_or_else(|| Error::Failed("a phantom's grid has no inverse".into()))?;
        let mut rng = Key::new(u64::from(self.seed)).fold(8, p.index).rng();
        let mut ids = [Vec::new(), Vec::new()];
        let name = |word: &str, n: usize| format!("{word}_{:04}_{n}", p.index);
        for n in p.nodules.iter().filter(|n| self.counts(n)) {
            let centre = apply(&inverse, n.ras.map(f64::from));
            for _ in 0..self.each {
                let start = self.around(centre, &mut rng);
                let id = name("nodule", ids[0].len());
                write_i16(&out.join(format!("{id}.nii.gz")), &cut(&scan, start, self.cube))?;
                let mut mask = cut(&labels, start, self.cube);
                mask.data.iter_mut().for_each(|v| *v = f32::from(u8::from(*v == f32::from(NODULE))));
                write_u8(&out.join(format!("{id}_mask.nii.gz")), &mask)?;
                ids[0].push(id);
            }
        }
        for _ in 0..TRIES {
            if ids[1].len() == ids[0].len() {
                break;
            }
            let voxel: [usize; 3] = std::array::from_fn(|a| rng.int(0, self.size[a] as i64 - 1) as usize);
            let [i, j, k] = voxel;
            let start = self.around(voxel.map(|v| v as f64), &mut rng);
            if labels.at(i, j, k) == f32::from(LUNG) && !cut(&labels, start, self.cube).data.contains(&f32::from(NODULE)) {
                let id = name("plain", ids[1].len());
                write_i16(&out.join(format!("{id}.nii.gz")), &cut(&scan, start, self.cube))?;
                ids[1].push(id);
            }
        }
        Ok(ids)
    }

    /// The start of a region in whose middle half along each axis the voxel `centre` lies, unless the scan ends before.
    fn around(&self, centre: [f64; 3], rng: &mut CounterRng) -> [usize; 3] {
        std::array::from_fn(|a| {
            let (n, room) = (self.cube[a] as i64, (self.size[a] - self.cube[a]) as i64);
            let within = rng.int(n / 4, (3 * n / 4 - 1).max(n / 4));
            (centre[a].round() as i64 - within).clamp(0, room) as usize
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image;

    #[test]
    fn regions_hold_what_the_tables_say_at_the_place_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let regions = Regions {
            patients: 3,
            types: 2,
            seed: 5,
            size: [96, 96, 48],
            spacing: [3.8, 3.8, 6.8],
            cube: [16, 16, 8],
            diameters: [12.0, 30.0],
            each: 2,
            shares: [0.3, 0.3],
        };
        regions.write(dir.path(), &mut |_| {}).unwrap();
        let table = std::fs::read_to_string(dir.path().join(CLASSIFY)).unwrap();
        let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|l| l.split(',').collect()).collect();
        let label = |word: &str| rows.iter().filter(|r| r[2] == word).count();
        assert!(label("nodule") >= 6 && label("nodule") == label("no nodule"), "{table}");
        assert_eq!(rows.iter().map(|r| r[4]).collect::<std::collections::BTreeSet<_>>(), ["test", "train", "validation"].into());
        let patient: u32 = rows[0][3].parse().unwrap();
        let whole = Patient::draw(5, patient, 2).render(regions.size, regions.spacing);
        for row in rows.iter().filter(|r| r[3].parse() == Ok(patient)) {
            let scan = image::read(&dir.path().join(row[1])).unwrap();
            assert_eq!(scan.size, [16, 16, 8]);
            // The region lies where it was cut: its first voxel is that of the whole scan at the same place.
            let at = apply(&inverse(&whole.0.affine).unwrap(), apply(&scan.affine, [0.0; 3])).map(|v| v.round() as usize);
            assert_eq!(scan.at(0, 0, 0), whole.0.at(at[0], at[1], at[2]));
            let marked = cut(&whole.1, at, scan.size).data.into_iter().filter(|&v| v == f32::from(NODULE)).count();
            assert_eq!(marked > 0, row[2] == "nodule", "{row:?}");
            if marked > 0 {
                let mask = image::read(&dir.path().join(format!("{}_mask.nii.gz", row[0]))).unwrap();
                assert_eq!(mask.data.iter().filter(|&&v| v == 1.0).count(), marked);
            }
        }
        let wide = Regions { cube: [100, 16, 8], ..regions };
        assert!(wide.write(dir.path(), &mut |_| {}).is_err());
    }
}
