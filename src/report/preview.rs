//! The sheets of a run: middle slices of volumes, restorations, neighbours, crops.
//!
//! Volumes are indexed `data[(x * ny + y) * nz + z]` with +x to the patient's left, +y posterior, +z superior.
//! Pictures follow the radiological convention: the patient's left is on the right side of axial and
//! coronal pictures; anterior is at the top of axial and on the left of sagittal ones; superior is up.

use crate::error::{Error, Result};
use crate::report::sheet::{Sheet, Tile, Tone};

/// Magnitude at which a difference has its full colour; fixed, so that sheets of one run compare.
const FULL_DIFFERENCE: f32 = 0.25;

fn check(volume: &[f32], size: [usize; 3]) -> Result<()> {
    if volume.is_empty() || size.iter().try_fold(1usize, |n, &s| n.checked_mul(s)) != Some(volume.len()) {
        return Err(Error::shape("slice", format!("{} values do not make a volume of {size:?}", volume.len())));
    }
    Ok(())
}

fn cut(volume: &[f32], size: [usize; 3], [width, height]: [usize; 2], voxel: impl Fn(usize, usize) -> [usize; 3]) -> Result<Tile> {
    check(volume, size)?;
    let mut pixels = Vec::with_capacity(width * height);
    for row in 0..height {
        for column in 0..width {
            // An index beyond the volume is brought to its border.
            let [x, y, z] = std::array::from_fn(|a| voxel(column, row)[a].min(size[a] - 1));
            pixels.push(volume[(x * size[1] + y) * size[2] + z]);
        }
    }
    Tile::new(pixels, width, height)
}

/// The slice at `z`: x to the right (patient's left on the right side), y down (anterior at the top).
///
/// # Errors
/// [`Error::Shape`] if `volume` is not of `size`.
pub fn axial(volume: &[f32], size: [usize; 3], z: usize) -> Result<Tile> {
    cut(volume, size, [size[0], size[1]], |column, row| [column, row, z])
}

/// The slice at `y`: x to the right (patient's left on the right side), superior up.
///
/// # Errors
/// [`Error::Shape`] if `volume` is not of `size`.
pub fn coronal(volume: &[f32], size: [usize; 3], y: usize) -> Result<Tile> {
    cut(volume, size, [size[0], size[2]], |column, row| [column, y, size[2] - 1 - row])
}

/// The slice at `x`: y to the right (anterior on the left side), superior up.
///
/// # Errors
/// [`Error::Shape`] if `volume` is not of `size`.
pub fn sagittal(volume: &[f32], size: [usize; 3], x: usize) -> Result<Tile> {
    cut(volume, size, [size[1], size[2]], |column, row| [x, column, size[2] - 1 - row])
}

/// The middle axial, coronal and sagittal slices.
///
/// # Errors
/// [`Error::Shape`] if `volume` is not of `size`.
pub fn slices(volume: &[f32], size: [usize; 3]) -> Result<[Tile; 3]> {
    Ok([axial(volume, size, size[2] / 2)?, coronal(volume, size, size[1] / 2)?, sagittal(volume, size, size[0] / 2)?])
}

/// One crop of [`restoration_sheet`]; all three volumes have `size` and values in `[0, 1]`.
pub struct Restoration<'a> {
    /// Which crop, and what was done to it.
    pub label: String,
    /// Size along x, y, z.
    pub size: [usize; 3],
    /// The target.
    pub original: &'a [f32],
    /// The network's input.
    pub transformed: &'a [f32],
    /// The network's output.
    pub restored: &'a [f32],
    /// What was measured, shown below the restored crop.
    pub metrics: String,
}

/// Original, transformed, restored and difference (restored − original) of every crop: its middle
/// axial slice and, below it, its middle coronal one (for pictures of depth 1 the former alone).
///
/// # Errors
/// [`Error::Shape`] if a volume is not of its size.
pub fn restoration_sheet(title: &str, rows: &[Restoration]) -> Result<Sheet> {
    let mut sheet = Sheet::new(title)
        .note(format!("Middle slices. Difference: orange too bright, blue too dark, full at {FULL_DIFFERENCE}."))
        .columns(&["original", "transformed", "restored", "difference"]);
    for row in rows {
        for volume in [row.original, row.transformed, row.restored] {
            check(volume, row.size)?;
        }
        let difference: Vec<f32> = row.restored.iter().zip(row.original).map(|(r, o)| r - o).collect();
        let views = |volume: &[f32]| slices(volume, row.size);
        let [original, transformed, restored, difference] =
            [views(row.original)?, views(row.transformed)?, views(row.restored)?, views(&difference)?];
        let deep = row.size[2] > 1;
        let [oa, oc, _] = original;
        let [ta, tc, _] = transformed;
        let [ra, rc, _] = restored;
        let [da, dc, _] = difference.map(|tile| tile.tone(Tone::Signed(FULL_DIFFERENCE)));
        let (axial, coronal) = if deep { (ra, rc.caption(&row.metrics)) } else { (ra.caption(&row.metrics), rc) };
        sheet = sheet.row(&row.label, vec![oa, ta, axial, da]);
        if deep {
            sheet = sheet.row("", vec![oc, tc, coronal, dc]);
        }
    }
    Ok(sheet)
}

/// One class of [`neighbours_sheet`].
pub struct Neighbours {
    /// Which class.
    pub label: String,
    /// The reference patient at the class's coordinate.
    pub reference: Tile,
    /// Its neighbours with their distances in feature space, nearest first.
    pub nearest: Vec<(Tile, f32)>,
}

/// The reference of every class, framed, and its neighbours side by side with their distances.
pub fn neighbours_sheet(title: &str, rows: Vec<Neighbours>) -> Sheet {
    rows.into_iter().fold(
        Sheet::new(title)
            .note("The same place in the reference patient (framed) and its nearest neighbours; d is the distance of their features."),
        |sheet, row| {
            let mut tiles = vec![row.reference.accent()];
            tiles.extend(row.nearest.into_iter().map(|(tile, distance)| tile.append_caption(&format!("d {distance:.3}"))));
            sheet.row(row.label, tiles)
        },
    )
}

/// One row of crops for every label; crops of a row share the label that the network has to find.
pub fn crops_sheet(title: &str, rows: Vec<(String, Vec<Tile>)>) -> Sheet {
    rows.into_iter().fold(Sheet::new(title), |sheet, (label, tiles)| sheet.row(label, tiles))
}

/// The plane along an axis with the most marked voxels, of which `counts` says how many each has; the middle one if none has any.
pub(super) fn fullest(counts: &[u64]) -> usize {
    let most = counts.iter().copied().max().unwrap_or(0);
    if most == 0 { counts.len() / 2 } else { counts.iter().position(|&c| c == most).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value = 100 x + 10 y + z.
    fn coded(size: [usize; 3]) -> Vec<f32> {
        let mut data = Vec::new();
        for x in 0..size[0] {
            for y in 0..size[1] {
                for z in 0..size[2] {
                    data.push((100 * x + 10 * y + z) as f32);
                }
            }
        }
        data
    }

    #[test]
    fn slices_put_left_on_the_right_and_superior_up() {
        let (size, data) = ([2, 3, 4], coded([2, 3, 4]));
        let pixels = |t: Tile| t.into_pixels();
        assert_eq!(pixels(axial(&data, size, 1).unwrap()), [1., 101., 11., 111., 21., 121.]);
        assert_eq!(pixels(coronal(&data, size, 2).unwrap()), [23., 123., 22., 122., 21., 121., 20., 120.]);
        assert_eq!(pixels(sagittal(&data, size, 1).unwrap()), [103., 113., 123., 102., 112., 122., 101., 111., 121., 100., 110., 120.]);
        assert_eq!(pixels(axial(&data, size, 99).unwrap())[0], 3.0);
        let [a, c, s] = slices(&data, size).unwrap().map(pixels);
        assert_eq!((a[0], c[0], s[0]), (2.0, 13.0, 103.0));
    }

    #[test]
    fn a_volume_of_another_size_is_refused() {
        for size in [[2, 3, 5], [0, 3, 4], [usize::MAX, 2, 2]] {
            assert!(slices(&coded([2, 3, 4]), size).unwrap_err().to_string().contains("24 values"));
        }
        let (good, bad) = (vec![0.0; 8], vec![0.0; 7]);
        let row =
            Restoration { label: String::new(), size: [2; 3], original: &good, transformed: &bad, restored: &good, metrics: String::new() };
        assert!(restoration_sheet("t", &[row]).is_err());
    }

    #[test]
    fn pictures_of_depth_one_have_one_row() {
        let data = vec![0.5; 64];
        let row = |size| Restoration { label: "a".into(), size, original: &data, transformed: &data, restored: &data, metrics: "m".into() };
        let flat = restoration_sheet("t", &[row([8, 8, 1])]).unwrap().draw();
        let deep = restoration_sheet("t", &[row([4, 4, 4])]).unwrap().draw();
        assert!(deep.height > flat.height + 200);
        assert_eq!(deep.width, flat.width);
    }
}
