//! Labels laid over their scan.

use super::preview;
use super::sheet::{Sheet, Tile};
use crate::data::frame::Frame;
use crate::data::volume::spacing;
use crate::error::{Error, Result};

/// Width in pixels up to which the widest slice is enlarged.
const WIDTH: usize = 480;

/// A slice: size in pixels, relative height of a pixel, values and classes row by row.
struct Cut {
    size: [usize; 2],
    aspect: f64,
    values: Vec<f32>,
    classes: Vec<u16>,
}

/// Axial, coronal and sagittal slice of a scan, each through the most labelled voxels, with the labels laid over it.
///
/// `values` are the scan in `[0, 1]` in its own resolution with the axes left, posterior, superior (`[x][y][z]`), `classes` its labels
/// in the order of the file (`[k][j][i]`), `frame` says how one is turned into the other; `names` are those of the classes from 1 on.
///
/// # Errors
/// [`Error::Shape`] when scan and labels are not of the frame's size.
pub fn sheet(title: &str, values: &[f32], classes: &[u16], frame: &Frame, names: &[String]) -> Result<Sheet> {
    let tile = |c: Cut| Ok(Tile::new(c.values, c.size[0], c.size[1])?.aspect(c.aspect).overlay(c.classes));
    let cuts = cuts(values, classes, frame)?;
    let widest = cuts.iter().map(|c| c.size[0]).max().unwrap_or(1);
    let tiles = cuts.into_iter().map(tile).collect::<Result<_>>()?;
    Ok(Sheet::new(title)
        .scale(WIDTH / widest)
        .note("Slices through the most labelled voxels. The patient's left is on the right.")
        .legend(names)
        .columns(&["axial", "coronal", "sagittal"])
        .row("", tiles))
}

fn cuts(values: &[f32], classes: &[u16], frame: &Frame) -> Result<[Cut; 3]> {
    let axes = frame.axes;
    let source = frame.source_size;
    let size_of = axes.turned_size(source);
    let voxels = size_of.iter().product::<usize>();
    if values.len() != voxels || classes.len() != voxels {
        return Err(Error::shape("overlay", format!("{} values and {} labels for {source:?} voxels", values.len(), classes.len())));
    }
    // Place in the file of a turned voxel.
    let stored = |p: [usize; 3]| {
        let mut q = [0; 3];
        for ((&s, flip), at) in axes.stored.iter().zip(axes.flip).zip(p) {
            q[s] = if flip { source[s] - 1 - at } else { at };
        }
        (q[2] * source[1] + q[1]) * source[0] + q[0]
    };
    let mut counts = source.map(|n| vec![0u64; n]);
    for (n, _) in classes.iter().enumerate().filter(|(_, c)| **c > 0) {
        let at = [n % source[0], n / source[0] % source[1], n / (source[0] * source[1])];
        (0..3).for_each(|a| counts[a][at[a]] += 1);
    }
    let middle: [usize; 3] = std::array::from_fn(|a| {
        let of = &counts[axes.stored[a]];
        let at = preview::fullest(of);
        if axes.flip[a] { of.len() - 1 - at } else { at }
    });
    let s = spacing(&frame.source_affine);
    let mm = axes.stored.map(|a| s[a]);
    let [x, y, z] = middle;
    let cut = |size: [usize; 2], place: &dyn Fn(usize, usize) -> [usize; 3], aspect: f64| {
        let places: Vec<[usize; 3]> = (0..size[0] * size[1]).map(|n| place(n % size[0], n / size[0])).collect();
        Cut {
            size,
            aspect,
            values: places.iter().map(|p| values[(p[0] * size_of[1] + p[1]) * size_of[2] + p[2]]).collect(),
            classes: places.iter().map(|&p| classes[stored(p)]).collect(),
        }
    };
    // The sides are those of `preview`: the patient's left on the right, anterior above or left, superior above.
    Ok([
        cut([size_of[0], size_of[1]], &|c, r| [c, r, z], mm[1] / mm[0]),
        cut([size_of[0], size_of[2]], &|c, r| [c, y, size_of[2] - 1 - r], mm[2] / mm[0]),
        cut([size_of[1], size_of[2]], &|c, r| [x, c, size_of[2] - 1 - r], mm[2] / mm[1]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::volume::{IDENTITY, Volume};

    #[test]
    fn labels_lie_over_the_voxels_that_have_them_whatever_the_order_of_the_file() {
        // Stored as i superior, j right, k anterior; bright and labelled at one corner.
        let affine = [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [2.0, 0.0, 0.0, 0.0], IDENTITY[3]];
        let frame = Frame::whole([4, 5, 6], &affine, [1.0, 1.0, 2.0]).unwrap();
        let mut volume = Volume::new(vec![0.0; 120], [4, 5, 6], affine).unwrap();
        let mut classes = vec![0u16; 120];
        for (i, j, k) in [(3, 4, 5), (3, 4, 4), (2, 4, 5)] {
            volume.data[(i * 5 + j) * 6 + k] = 1.0;
            classes[(k * 5 + j) * 4 + i] = 2;
        }
        let turned = frame.turned(volume.data);
        let bright: Vec<bool> = turned.iter().map(|&v| v > 0.5).collect();
        // Left, posterior, superior: the corner is at the right (x 0), anterior (y 0), superior (z 3).
        assert!(bright[3]);
        let cuts = cuts(&turned, &classes, &frame).unwrap();
        assert_eq!(cuts.each_ref().map(|c| (c.size, c.aspect)), [([5, 6], 1.0), ([5, 4], 2.0), ([6, 4], 2.0)]);
        for c in cuts {
            // All three slices meet in the corner.
            assert!(c.classes.contains(&2));
            assert!(c.values.iter().zip(&c.classes).all(|(v, c)| (*v > 0.5) == (*c == 2)));
        }
        let names = ["a".to_owned(), "b".to_owned()];
        assert!(sheet("t", &turned, &classes, &frame, &names).is_ok());
        assert!(sheet("t", &turned, &[0; 3], &frame, &names).is_err());
    }
}
