//! How fast cubes come out of a prepared store, or out of volumes in memory.

use std::sync::Arc;
use std::time::Instant;

use super::measure::{Rules, repeat};
use super::result::Row;
use crate::data::cubes::{CropEntry, Dense, Voxels, cut};
use crate::data::phantom::Patient;
use crate::data::store::Store;
use crate::error::{Error, Result};
use crate::gpu::Timing;
use crate::rng::{Key, Purpose};
use crate::train::loader::{Loader, Samples};

/// Crops that are listed; more than any cache holds.
const CROPS: u32 = 4096;
/// Made-up patients and their grid.
const PHANTOMS: u32 = 4;
const PHANTOM_GRID: [usize; 3] = [128, 128, 64];
/// Batches of a sample.
const TOGETHER: usize = 8;

/// Where cubes are cut from.
#[derive(Debug)]
pub enum Volumes {
    /// The volumes of a prepared store, as training maps them.
    Store(Box<Store>),
    /// Synthetic patients in memory.
    Phantoms(Vec<Dense>),
}

impl Volumes {
    /// A few synthetic patients.
    ///
    /// # Errors
    /// Never for the sizes used here.
    pub fn phantoms() -> Result<Self> {
        let volumes = (0..PHANTOMS).map(|i| {
            let (scan, _) = Patient::draw(1, i, 2).render(PHANTOM_GRID, [3.0, 3.0, 4.5]);
            Dense::new(PHANTOM_GRID, scan.data.iter().map(|hu| ((hu + 1000.0) / 2000.0).clamp(0.0, 1.0)).collect())
        });
        Ok(Self::Phantoms(volumes.collect::<Result<_>>()?))
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Store(_) => "store",
            Self::Phantoms(_) => "phantoms",
        }
    }
}

/// Windows at the three resolutions that training uses: one in three as large as the cube, one larger, one smaller.
fn crops(volumes: usize, grid: [usize; 3], cube: [usize; 3]) -> Result<Vec<CropEntry>> {
    if volumes == 0 || (0..3).any(|a| grid[a] < cube[a]) {
        return Err(Error::Usage(format!("cubes of {cube:?} do not fit volumes of {grid:?}; give a smaller --cube")));
    }
    let mut rng = Key::new(0x10AD).purpose(Purpose::Check, 2).rng();
    let mut below = |n: usize| usize::try_from(rng.int(0, n as i64 - 1)).unwrap_or(0);
    Ok((0..CROPS)
        .map(|i| {
            let size: [usize; 3] = std::array::from_fn(|a| match i % 3 {
                0 => cube[a],
                1 => (cube[a] * 4 / 3).min(grid[a]),
                _ => (cube[a] * 2 / 3).max(1),
            });
            let start = std::array::from_fn(|a| below(grid[a] - size[a] + 1));
            CropEntry { source: u32::try_from(below(volumes)).unwrap_or(0), start, size, out: cube }
        })
        .collect())
}

fn samples<V: Voxels + Send + Sync + 'static>(volumes: Vec<V>, cube: [usize; 3]) -> Result<Arc<Samples>> {
    let grid = volumes.first().map_or([0; 3], Voxels::size);
    let entries = crops(volumes.len(), grid, cube)?;
    let items = (0..CROPS).map(|i| (i, i % 2));
    Samples::new(items, cube.iter().product(), move |i| {
        let e = entries.get(i as usize).ok_or_else(|| Error::Failed(format!("there is no crop {i}")))?;
        cut(volumes.get(e.source as usize).ok_or_else(|| Error::Failed(format!("there is no volume {}", e.source)))?, e)
    })
}

/// Times batches of `batch` cubes as training gets them: seconds a batch, and in `extra` cubes a second.
///
/// # Errors
/// [`Error::Usage`] when a cube does not fit, [`Error::Input`] for a volume that cannot be read.
pub fn measure(volumes: Volumes, batch: usize, cube: [usize; 3], rules: &Rules) -> Result<Row> {
    let word = volumes.word();
    let samples = match volumes {
        Volumes::Phantoms(list) => samples(list, cube)?,
        Volumes::Store(store) => samples((0..store.scans().len()).map(|i| store.volume(i)).collect::<Result<Vec<_>>>()?, cube)?,
    };
    let mut loader = Loader::train(samples, batch, Key::new(3), 0, 0)?;
    let mut next = || loader.next().ok_or_else(|| Error::Failed("the loader ended early".into()))?;
    // What was cut ahead while nobody asked is no measure of speed.
    for _ in 0..4 {
        next()?;
    }
    // Batches come in bursts, as they are cut side by side: a sample is several of them.
    let m = repeat(rules, TOGETHER, || {
        let begun = Instant::now();
        for _ in 0..TOGETHER {
            next()?;
        }
        Ok(Timing { device: None, wall: begun.elapsed().as_secs_f64() / TOGETHER as f64 })
    })?;
    let [x, y, z] = cube;
    let bytes = (batch * cube.iter().product::<usize>()) as u64 * 4;
    let mut row = Row {
        op: "loader".into(),
        shape: format!("{batch},{x},{y},{z}"),
        pass: "forward".into(),
        variant: word.into(),
        dtype: "f32".into(),
        times: 1,
        bytes,
        wall_s: Some(m.wall),
        ..Row::default()
    };
    row.measured(&m, None);
    row.extra.insert("cubes_per_s".into(), batch as f64 / m.wall.median);
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_lie_inside_and_take_all_three_resolutions() {
        let list = crops(3, [40, 30, 20], [24, 24, 16]).unwrap();
        assert!(list.iter().all(|c| c.check([40, 30, 20]).is_ok() && c.source < 3));
        let sizes: std::collections::BTreeSet<_> = list.iter().map(|c| c.size).collect();
        assert_eq!(sizes.len(), 3);
        assert!(crops(3, [40, 30, 20], [24, 24, 32]).is_err());
    }
}
