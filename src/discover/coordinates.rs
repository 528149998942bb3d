//! Where the classes lie: one accepted coordinate on one reference patient per class.
//!
//! A coordinate is the first voxel of the crop. It is drawn uniformly inside the margins, must
//! keep a least distance from every coordinate accepted before, and its crop must pass the tissue
//! filter. Every draw is judged alone. A reference on which all draws fail is dropped for a fresh
//! one; when all patients have been used, a second pass over them begins.

use rand::seq::SliceRandom;

use crate::config::{Config, Filter, Modality, Reference};
use crate::data::cubes::Voxels;
use crate::data::store::stored;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};

/// Failed references in a row, per patient, after which the search gives up.
const PATIENCE: usize = 10;

/// Which crops are acceptable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tissue {
    /// Places rich in air: at most `fraction` of the crop is tissue. A voxel of at least
    /// `threshold` scores 1, one that has such a voxel next to it along +z scores ½.
    Lung {
        /// Value from which a voxel is tissue.
        threshold: f32,
        /// Largest accepted share of the score, where all tissue is 1.
        fraction: f64,
    },
    /// At least half of the crop is above 0.
    Foreground,
    /// Every place.
    Any,
}

/// What a coordinate has to fulfil.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Voxels of the crop.
    pub crop: [usize; 3],
    /// Voxels kept free at both ends of each axis, where the scan is large enough.
    pub margin: [usize; 3],
    /// Voxels kept free behind the crop.
    pub look_ahead: [usize; 3],
    /// Least distance to every other coordinate, in voxels.
    pub min_distance: f64,
    /// Which crops are acceptable.
    pub tissue: Tissue,
    /// Draws per reference.
    pub draws: usize,
    /// A new reference for every class, or one for all.
    pub reference: Reference,
}

/// An accepted coordinate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Row of the reference among the train patients.
    pub reference: u32,
    /// First voxel of the crop.
    pub start: [usize; 3],
    /// Draws it took on this reference, the accepted one included.
    pub draws: u32,
    /// References dropped for this class before.
    pub dropped: u32,
    /// Score of the tissue filter in voxels: tissue for [`Tissue::Lung`], voxels above 0 for
    /// [`Tissue::Foreground`], 0 for [`Tissue::Any`].
    pub score: f64,
}

impl Rules {
    /// The rules of a configuration for prepared scans of `modality`.
    ///
    /// The tissue threshold is rounded as the voxels of a store are, so that a voxel of exactly
    /// `discover.tissue_threshold` (-150 HU by default) is tissue.
    pub fn new(config: &Config, modality: Modality) -> Self {
        let d = &config.discover;
        let threshold = if (0.0..=1.0).contains(&d.tissue_threshold) { stored(d.tissue_threshold) } else { d.tissue_threshold };
        let lung = Tissue::Lung { threshold, fraction: decimal(d.tissue_fraction) };
        let tissue = match (d.filter, modality) {
            (Filter::Lung, _) | (Filter::Auto, Modality::Ct) => lung,
            (Filter::Foreground, _) | (Filter::Auto, Modality::Mri) => Tissue::Foreground,
            (Filter::None, _) | (Filter::Auto, Modality::Window) => Tissue::Any,
        };
        Self {
            crop: config.cube.size,
            margin: d.margin,
            look_ahead: d.look_ahead,
            min_distance: decimal(d.min_distance),
            tissue,
            draws: d.draws,
            reference: d.reference,
        }
    }

    /// First and last start of a crop on each axis of a scan of `size`.
    ///
    /// An axis too short for its margin takes a quarter of the free room as margin. An axis that
    /// one voxel fills (images) has the start 0.
    ///
    /// # Errors
    /// Names the scan `id` and the axis that is too short for any margin.
    pub fn starts(&self, id: &str, size: [usize; 3]) -> Result<[[usize; 2]; 3]> {
        let mut ranges = [[0; 2]; 3];
        for (a, range) in ranges.iter_mut().enumerate() {
            if size[a] == 1 && self.crop[a] == 1 {
                continue;
            }
            let need = self.crop[a].saturating_add(1).saturating_add(self.look_ahead[a]);
            let Some(room) = size[a].checked_sub(need) else {
                let axis = ["x", "y", "z"][a];
                return Err(Error::Usage(format!(
                    "scan {id} has {} voxels along {axis}, but a crop of {} with {} behind it needs at least {need}; use a smaller cube.size, a smaller discover.look_ahead or a larger prepare.grid",
                    size[a], self.crop[a], self.look_ahead[a]
                )));
            };
            let margin = if self.margin[a] <= room / 2 { self.margin[a] } else { room / 4 };
            *range = [margin, room - margin];
        }
        Ok(ranges)
    }

    /// The filter's score of the crop at `start`, if the filter accepts it.
    ///
    /// # Panics
    /// If the crop leaves the volume.
    pub fn judge(&self, volume: &impl Voxels, start: [usize; 3]) -> Option<f64> {
        let n: usize = self.crop.iter().product();
        match self.tissue {
            Tissue::Lung { threshold, fraction } => {
                // One slice past the crop is looked at where there is one.
                let mut size = self.crop;
                size[2] = (size[2] + 1).min(volume.size()[2] - start[2]);
                let score = lung_score(&volume.window(start, size), size[2], self.crop[2], threshold);
                (score <= fraction * n as f64).then_some(score)
            }
            Tissue::Foreground => {
                let above = volume.window(start, self.crop).iter().filter(|&&v| v > 0.0).count();
                (2 * above >= n).then_some(above as f64)
            }
            Tissue::Any => Some(0.0),
        }
    }
}

/// The number that a user wrote: 0.7 and not the nearest f32 to it.
fn decimal(v: f32) -> f64 {
    v.to_string().parse().unwrap_or_else(|_| f64::from(v))
}

/// Tissue score of rows of `held` slices, of which the first `slices` belong to the crop.
///
/// The published form looks at three slices `v0, v1, v2` per voxel, takes `d`, the first index with
/// `v ≥ threshold` or else 2, and sums `1 - d / 2`.
fn lung_score(window: &[f32], held: usize, slices: usize, threshold: f32) -> f64 {
    let mut halves = 0u64;
    for row in window.chunks_exact(held) {
        let next = row.iter().skip(1).map(|&v| v >= threshold).chain([false]);
        for (&v, next) in row.iter().zip(next).take(slices) {
            halves += if v >= threshold { 2 } else { u64::from(next) };
        }
    }
    halves as f64 / 2.0
}

/// Why draws failed since the last accepted coordinate.
#[derive(Default)]
struct Failures {
    references: usize,
    close: usize,
    filtered: usize,
}

/// Finds `classes` coordinates.
///
/// `ids` names the train patients in the order of their rows and `volume` opens one of them by its
/// row. Every accepted coordinate is handed to `on`. With [`Reference::Shared`] all classes take
/// the same reference as long as it yields coordinates; when it does not, the remaining classes go
/// on with a fresh one. The result depends on `seed`, the rules and the volumes alone.
///
/// # Errors
/// No patients; a scan too small for the crop; what `volume` returns; no coordinate on ten times
/// as many references in a row as there are patients.
pub fn find<V: Voxels>(
    rules: &Rules,
    classes: usize,
    seed: u32,
    ids: &[impl AsRef<str>],
    mut volume: impl FnMut(usize) -> Result<V>,
    mut on: impl FnMut(&Place),
) -> Result<Vec<Place>> {
    if ids.is_empty() {
        return Err(Error::Usage(
            "there are no train scans to take references from; lower prepare.validation_fraction or add scans".into(),
        ));
    }
    let root = Key::new(u64::from(seed));
    let mut references = References::new(root.purpose(Purpose::Discover, 0), ids.len());
    let draws = root.purpose(Purpose::Discover, 1);
    let mut places: Vec<Place> = Vec::with_capacity(classes);
    // The reference in use: its number in the order of use, its row, its volume, its range of starts.
    let mut current: Option<(u32, usize, V, [[usize; 2]; 3])> = None;
    for class in 0..classes {
        let mut failures = Failures::default();
        let place = loop {
            let (turn, row, voxels, starts) = match current.take() {
                Some(c) => c,
                None => {
                    let (turn, row) = references.next();
                    let id = ids[row].as_ref();
                    let voxels = volume(row)?;
                    let starts = rules.starts(id, voxels.size())?;
                    (turn, row, voxels, starts)
                }
            };
            let key = draws.fold(turn, class as u32);
            if let Some((start, n, score)) = draw(rules, key, &voxels, starts, &places, &mut failures) {
                let place = Place { reference: row as u32, start, draws: n, dropped: failures.references as u32, score };
                if rules.reference == Reference::Shared {
                    current = Some((turn, row, voxels, starts));
                }
                break place;
            }
            failures.references += 1;
            if failures.references >= PATIENCE * ids.len() {
                return Err(give_up(rules, class, classes, ids[row].as_ref(), &failures));
            }
        };
        on(&place);
        places.push(place);
    }
    Ok(places)
}

/// The first acceptable start within the allowed draws: start, draws taken, filter score.
fn draw(
    rules: &Rules,
    key: Key,
    volume: &impl Voxels,
    starts: [[usize; 2]; 3],
    places: &[Place],
    failures: &mut Failures,
) -> Option<([usize; 3], u32, f64)> {
    let mut rng = key.rng();
    for n in 1..=rules.draws {
        let start = starts.map(|[lo, hi]| rng.int(lo as i64, hi as i64) as usize);
        if places.iter().any(|p| squared_distance(p.start, start) < rules.min_distance * rules.min_distance) {
            failures.close += 1;
        } else if let Some(score) = rules.judge(volume, start) {
            return Some((start, n as u32, score));
        } else {
            failures.filtered += 1;
        }
    }
    None
}

fn squared_distance(a: [usize; 3], b: [usize; 3]) -> f64 {
    (0..3).map(|i| a[i].abs_diff(b[i]) as f64).map(|d| d * d).sum()
}

fn give_up(rules: &Rules, class: usize, classes: usize, last: &str, failures: &Failures) -> Error {
    let Failures { references, close, filtered } = failures;
    let remedy = if close > filtered {
        "lower discover.min_distance or discover.margin, or ask for fewer model.classes"
    } else {
        match rules.tissue {
            Tissue::Lung { .. } => {
                "raise discover.tissue_fraction, lower discover.margin, or set discover.filter=none if the scans do not show lungs"
            }
            Tissue::Foreground | Tissue::Any => "lower discover.margin or set discover.filter=none",
        }
    };
    Error::Failed(format!(
        "no coordinate was found for class {class} of {classes} on {references} references in a row (the last was scan {last}): {close} draws were closer than {} voxels to another class and {filtered} did not pass the tissue filter; {remedy}",
        rules.min_distance
    ))
}

/// Patients in random order without repetition, pass after pass.
struct References {
    key: Key,
    turn: usize,
    order: Vec<usize>,
}

impl References {
    fn new(key: Key, n: usize) -> Self {
        Self { key, turn: 0, order: (0..n).collect() }
    }

    /// The number of this turn and the patient's row.
    fn next(&mut self) -> (u32, usize) {
        let n = self.order.len();
        if self.turn.is_multiple_of(n) {
            self.order.sort_unstable();
            self.order.shuffle(&mut self.key.fold((self.turn / n) as u32, 0).rng());
        }
        let turn = self.turn;
        self.turn += 1;
        (turn as u32, self.order[turn % n])
    }
}

#[cfg(test)]
mod tests;
