//! A set of patients on disk.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;

use super::{MAX_TYPES, Patient};
use crate::data::nifti::{write_i16, write_u8};
use crate::error::{Error, Result};
use crate::files::{create_dir, write_bytes};

/// Voxels rendered at once; bounds the memory of patients made side by side (about 16 bytes each).
const AT_ONCE: usize = 1 << 25;

/// Writes `count` patients of `types` body types into `out`: `patient_0000.nii.gz` (Hounsfield
/// units, i16), `patient_0000_labels.nii.gz` (u8, the table in [`super`]) and so on, then
/// `patients.csv` with what was drawn. `on` gets the number of patients finished so far.
///
/// The bytes depend on the other arguments alone.
///
/// # Errors
/// [`Error::Usage`] for `types` outside `1..=`[`MAX_TYPES`] or an impossible grid, [`Error::Io`]
/// for a file that cannot be written. Files already finished stay.
pub fn write_set(
    out: &Path,
    count: usize,
    types: usize,
    seed: u32,
    size: [usize; 3],
    spacing: [f64; 3],
    on: &mut dyn FnMut(usize),
) -> Result<()> {
    let indices = check(count, types, size, spacing)?;
    create_dir(out)?;
    let voxels = size.iter().product::<usize>();
    let batch = (AT_ONCE / voxels).clamp(1, rayon::current_num_threads());
    let patients: Vec<Patient> = (0..indices).into_par_iter().map(|i| Patient::draw(seed, i, types)).collect();
    let mut done = 0;
    for group in patients.chunks(batch) {
        group.par_iter().try_for_each(|p| {
            let (scan, labels) = p.render(size, spacing);
            write_i16(&out.join(format!("{}.nii.gz", name(p))), &scan)?;
            write_u8(&out.join(format!("{}_labels.nii.gz", name(p))), &labels)
        })?;
        for _ in group {
            done += 1;
            on(done);
        }
    }
    write_bytes(&out.join("patients.csv"), table(&patients, size, spacing).as_bytes())
}

fn check(count: usize, types: usize, size: [usize; 3], spacing: [f64; 3]) -> Result<u32> {
    if !(1..=MAX_TYPES).contains(&types) {
        return Err(Error::Usage(format!("{types} body types were asked for; give 1 to {MAX_TYPES}")));
    }
    if size.iter().any(|n| !(1..=4096).contains(n)) {
        return Err(Error::Usage(format!("a phantom of {size:?} voxels was asked for; give 1 to 4096 along each axis")));
    }
    if spacing.iter().any(|s| !(0.1..=50.0).contains(s)) {
        return Err(Error::Usage(format!("a phantom with voxels of {spacing:?} mm was asked for; give 0.1 to 50 mm along each axis")));
    }
    u32::try_from(count).map_err(|_| Error::Usage(format!("{count} phantoms were asked for; give fewer than 2^32")))
}

fn name(p: &Patient) -> String {
    format!("patient_{:04}", p.index)
}

/// `patients.csv`: one line per patient; nodules (those within the grid) as
/// `R A S diameter texture` in mm, separated by semicolons.
fn table(patients: &[Patient], size: [usize; 3], spacing: [f64; 3]) -> String {
    let mut out = String::from(
        "id,body_type,stature,width,depth,fat_mm,muscle,heart,dome,emphysema,breast,kyphosis_mm,lung_hu,shift_left_mm,shift_posterior_mm,\
         shift_superior_mm,blood_hu,noise_hu,couch,nodule_count,nodules\n",
    );
    let within = |ras: [f32; 3]| (0..3).all(|i| f64::from(ras[i].abs()) <= 0.5 * size[i] as f64 * spacing[i]);
    for p in patients {
        let b = &p.build;
        let nodules: Vec<String> = p
            .nodules
            .iter()
            .filter(|n| within(n.ras))
            .map(|n| format!("{:.1} {:.1} {:.1} {:.1} {}", n.ras[0], n.ras[1], n.ras[2], n.diameter, n.texture.word()))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{},{},{:.3},{:.3},{:.3},{:.1},{:.3},{:.3},{:.3},{:.3},{:.3},{:.1},{:.0},{:.1},{:.1},{:.1},{:.0},{:.1},{},{},{}",
            name(p),
            p.body_type,
            b.stature,
            b.width,
            b.depth,
            b.fat,
            b.muscle,
            b.heart,
            b.dome,
            b.emphysema,
            b.breast,
            b.kyphosis,
            b.lung_hu,
            p.shift[0],
            p.shift[1],
            p.shift[2],
            p.blood_hu,
            p.noise_hu,
            u8::from(p.couch),
            nodules.len(),
            nodules.join(";"),
        );
    }
    out
}
