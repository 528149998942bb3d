//! What the network is shown in training and in validation: windows of scans with their truth.

use std::sync::Arc;

use super::set::{Entry, Set};
use super::table::Part;
use super::{Description, Kind, Output, View};
use crate::config::{Config, Finetune};
use crate::error::{Error, Result};
use crate::rng::{CounterRng, Key, Purpose};
use crate::train::loader::{Look, Sample, Samples};

/// Voxels kept for each class of a scan, to lay windows around.
const VOXELS: usize = 4096;

/// A window of a scan that validation looks at. Windows overlap at the far border; a voxel counts in the first that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The case.
    pub entry: usize,
    /// First voxel.
    pub start: [i64; 3],
    /// First voxel within the window, along each axis, that no earlier window has.
    pub fresh: [usize; 3],
    /// Voxels of the window that lie within the scan.
    pub inside: [usize; 3],
}

impl Tile {
    /// Calls `each` with the place in a window of `window` voxels, and the voxel of the scan, for every voxel that counts here.
    pub fn each(&self, window: [usize; 3], mut each: impl FnMut(usize, [usize; 3])) {
        for x in self.fresh[0]..self.inside[0] {
            for y in self.fresh[1]..self.inside[1] {
                for z in self.fresh[2]..self.inside[2] {
                    let whole = [x as i64 + self.start[0], y as i64 + self.start[1], z as i64 + self.start[2]].map(|v| v as usize);
                    each((x * window[1] + y) * window[2] + z, whole);
                }
            }
        }
    }
}

/// Everything that windows are cut with.
pub struct Windows {
    set: Arc<Set>,
    task: Description,
    settings: Finetune,
    key: Key,
    /// By scan, by class: some of its voxels.
    voxels: Vec<Vec<Vec<u32>>>,
    /// Signed weights of "no" and "yes" for each output, for tasks that take them.
    weights: Vec<[f32; 2]>,
}

/// Starts of windows of `window` voxels that cover `size` voxels without gaps, the last flush with the end; with where each
/// begins to be new.
fn covering(size: usize, window: usize) -> Vec<(i64, usize)> {
    let n = size.div_ceil(window).max(1);
    (0..n)
        .map(|i| {
            let start = (i * window).min(size.saturating_sub(window));
            (start as i64, i * window - start)
        })
        .collect()
}

/// Windows that show every voxel of the cases of a part.
pub fn tiles(set: &Set, task: &Description, part: Part) -> Vec<Tile> {
    let mut out = Vec::new();
    for entry in set.of(part) {
        let size = set.scans[set.entries[entry].scan].size;
        let axes: [Vec<(i64, usize)>; 3] = std::array::from_fn(|a| covering(size[a], task.window[a]));
        for &(x, fx) in &axes[0] {
            for &(y, fy) in &axes[1] {
                for &(z, fz) in &axes[2] {
                    out.push(Tile {
                        entry,
                        start: [x, y, z],
                        fresh: [fx, fy, fz],
                        inside: std::array::from_fn(|a| size[a].min(task.window[a])),
                    });
                }
            }
        }
    }
    out
}

/// Weights of the classes: all 1, or in inverse proportion to `counts`, at most 100 times the least, with mean 1 over the data.
pub fn class_weights(balanced: bool, counts: &[u64]) -> Vec<f32> {
    let total: u64 = counts.iter().sum();
    if !balanced || total == 0 {
        return vec![1.0; counts.len()];
    }
    let raw: Vec<f64> = counts.iter().map(|&c| 1.0 / (c.max(1) as f64)).collect();
    let least = raw.iter().copied().fold(f64::INFINITY, f64::min);
    let capped: Vec<f64> = raw.iter().map(|w| w.min(100.0 * least)).collect();
    let mean = capped.iter().zip(counts).map(|(w, &c)| w * c as f64).sum::<f64>() / total as f64;
    capped.iter().map(|w| (w / mean) as f32).collect()
}

/// How often each class occurs in the training part: voxels for segmentation, cases for classification with one class each.
pub fn counts(set: &Set, task: &Description) -> Vec<u64> {
    let mut out = vec![0; task.classes.len()];
    for i in set.of(Part::Train) {
        let entry = &set.entries[i];
        match task.kind {
            Kind::Segment => out.iter_mut().zip(&set.scans[entry.scan].counts).for_each(|(o, c)| *o += c),
            Kind::Classify => {
                if let Some(class) = entry.labels.first().copied().flatten()
                    && let Some(o) = out.get_mut(class as usize)
                {
                    *o += 1;
                }
            }
        }
    }
    out
}

impl Windows {
    /// Prepares for cutting windows of `set`.
    ///
    /// # Errors
    /// A training part without cases.
    pub fn new(set: Arc<Set>, task: &Description, config: &Config) -> Result<Arc<Self>> {
        let train = set.of(Part::Train);
        if train.is_empty() {
            return Err(Error::Usage("the data have no training cases; check the split".into()));
        }
        let settings = config.finetune.clone();
        let mut voxels = vec![Vec::new(); set.scans.len()];
        if task.kind == Kind::Segment {
            for &i in &train {
                let scan = set.entries[i].scan;
                if voxels[scan].is_empty() {
                    voxels[scan] = some_voxels(&set, scan, task.classes.len());
                }
            }
        }
        let balanced = settings.class_weights == crate::config::ClassWeights::Balanced;
        let weights = match (task.kind, task.output) {
            (Kind::Segment, _) | (_, Output::Multiclass) => {
                let w = class_weights(balanced, &counts(&set, task));
                vec![[w[0], w.get(1).copied().unwrap_or(1.0)]]
            }
            (Kind::Classify, _) => (0..task.outputs())
                .map(|o| {
                    let known =
                        |v: f32| train.iter().filter(|&&i| set.entries[i].labels.get(o).copied().flatten() == Some(v)).count() as u64;
                    let w = class_weights(balanced, &[known(0.0), known(1.0)]);
                    [w[0], w[1]]
                })
                .collect(),
        };
        Ok(Arc::new(Self { task: task.clone(), settings, key: Key::new(u64::from(config.seed)), voxels, weights, set }))
    }

    fn cube_len(&self) -> usize {
        self.task.window.iter().product::<usize>() * self.task.channels.len()
    }

    fn target_len(&self) -> usize {
        match (self.task.kind, self.task.output) {
            (Kind::Segment, _) => self.task.window.iter().product(),
            (Kind::Classify, Output::Multiclass) => 1,
            (Kind::Classify, _) => self.task.outputs(),
        }
    }

    /// Training samples: random windows of each scan, or every case once; changed at random.
    ///
    /// # Errors
    /// A training part without cases; `finetune.negatives_per_positive` where there are more than two classes.
    pub fn train(self: &Arc<Self>) -> Result<Arc<Samples>> {
        let cases = self.set.of(Part::Train);
        let this = Arc::clone(self);
        if self.task.kind == Kind::Segment {
            let each = self.settings.windows;
            let crops = (0..cases.len() * each).map(|i| i as u32).collect();
            return Samples::with_targets(crops, self.cube_len(), self.target_len(), move |look| {
                let mut rng = this.rng(look);
                let entry = cases[look.position / each];
                let start = this.random_start(entry, &mut rng);
                Ok(this.changed(this.segment_at(entry, start), &mut rng))
            });
        }
        let ratio = self.settings.negatives_per_positive;
        if ratio > 0.0 && self.task.output != Output::Binary {
            return Err(Error::Usage(format!(
                "finetune.negatives_per_positive = {ratio} is for tasks of two classes, but this one has {}; set it to 0",
                self.task.classes.join(", ")
            )));
        }
        let (positive, negative): (Vec<usize>, Vec<usize>) =
            cases.iter().partition(|&&i| ratio <= 0.0 || self.set.entries[i].labels.first().copied().flatten() != Some(0.0));
        let drawn = if ratio > 0.0 { ((positive.len() as f32 * ratio).ceil() as usize).min(negative.len()) } else { 0 };
        let crops = (0..positive.len() + drawn).map(|i| i as u32).collect();
        Samples::with_targets(crops, self.cube_len(), self.target_len(), move |look| {
            let mut rng = this.rng(look);
            let entry = match positive.get(look.position) {
                Some(&entry) => entry,
                // Each place draws from its own share of the negatives, so that none comes twice in an epoch.
                None => {
                    let place = look.position - positive.len();
                    let share = |p: usize| p * negative.len() / drawn;
                    negative[share(place) + rng.int(0, (share(place + 1) - share(place)) as i64 - 1) as usize]
                }
            };
            Ok(this.changed(this.classify_at(entry), &mut rng))
        })
    }

    /// Samples of another part, always the same: tiles of every scan, or every case once.
    ///
    /// # Errors
    /// A part without cases.
    pub fn fixed(self: &Arc<Self>, part: Part) -> Result<Arc<Samples>> {
        let this = Arc::clone(self);
        let none = |_| Error::Usage(format!("the data have no {part:?} cases; check the split").to_lowercase());
        if self.task.kind == Kind::Segment {
            let tiles = tiles(&self.set, &self.task, part);
            let crops = (0..tiles.len()).map(|i| i as u32).collect();
            return Samples::with_targets(crops, self.cube_len(), self.target_len(), move |look| {
                let t = tiles[look.position];
                Ok(this.segment_at(t.entry, t.start))
            })
            .map_err(none);
        }
        let cases = self.set.of(part);
        let crops = (0..cases.len()).map(|i| i as u32).collect();
        Samples::with_targets(crops, self.cube_len(), self.target_len(), move |look| Ok(this.classify_at(cases[look.position])))
            .map_err(none)
    }

    fn rng(&self, look: Look) -> CounterRng {
        self.key.fold(look.epoch.unwrap_or(u32::MAX), look.crop).purpose(Purpose::Crop, 0).rng()
    }

    /// A window around a voxel of a random class, or anywhere.
    fn random_start(&self, entry: usize, rng: &mut CounterRng) -> [i64; 3] {
        let scan = self.set.entries[entry].scan;
        let (size, window) = (self.set.scans[scan].size, self.task.window);
        let classes: Vec<&Vec<u32>> = self.voxels[scan].iter().skip(1).filter(|v| !v.is_empty()).collect();
        let around = (rng.unit() < self.settings.foreground && !classes.is_empty()).then(|| {
            let voxels = classes[rng.int(0, classes.len() as i64 - 1) as usize];
            let v = voxels[rng.int(0, voxels.len() as i64 - 1) as usize] as usize;
            [v / (size[1] * size[2]), v / size[2] % size[1], v % size[2]]
        });
        std::array::from_fn(|a| {
            let room = size[a] as i64 - window[a] as i64;
            if room <= 0 {
                // The scan lies in the middle of the window.
                return -((-room) / 2);
            }
            match around {
                // The voxel lies in the middle half of the window.
                Some(v) => {
                    let w = window[a] as i64;
                    (v[a] as i64 - rng.int(w / 4, (3 * w / 4).max(w / 4 + 1) - 1)).clamp(0, room)
                }
                None => rng.int(0, room),
            }
        })
    }

    fn segment_at(&self, entry: usize, start: [i64; 3]) -> Sample {
        let scan = self.set.entries[entry].scan;
        let classes = self.set.truth(scan, start, self.task.window);
        let target = match self.task.output {
            Output::Multiclass => classes.into_iter().map(u32::from).collect(),
            _ => {
                let [no, yes] = self.weights[0];
                classes.into_iter().map(|c| if c == 0 { -no } else { yes }.to_bits()).collect()
            }
        };
        Sample { cube: self.set.window(scan, start, self.task.window), target }
    }

    fn classify_at(&self, entry: usize) -> Sample {
        let e = &self.set.entries[entry];
        let (start, window) = (seen_from(&self.set, &self.task, e), self.task.window);
        let target = match self.task.output {
            Output::Multiclass => vec![e.labels.first().copied().flatten().unwrap_or(0.0) as u32],
            _ => self.weights.iter().enumerate().map(|(o, w)| signed(e.labels.get(o).copied().flatten(), *w).to_bits()).collect(),
        };
        Sample { cube: self.set.window(e.scan, start, window), target }
    }

    /// Random flips and intensities.
    fn changed(&self, mut sample: Sample, rng: &mut CounterRng) -> Sample {
        let channels = self.task.channels.len();
        let per_voxel = self.task.kind == Kind::Segment;
        for (axis, may) in self.settings.flip.axes().into_iter().enumerate() {
            if may && rng.unit() < 0.5 {
                flip(&mut sample.cube, self.task.window, channels, axis);
                if per_voxel {
                    flip(&mut sample.target, self.task.window, 1, axis);
                }
            }
        }
        let strength = self.settings.intensity;
        if strength > 0.0 {
            for c in 0..channels {
                recolour(&mut sample.cube, channels, c, strength, rng);
            }
        }
        sample
    }
}

/// First voxel of the window that a classification is shown of a case.
pub fn seen_from(set: &Set, task: &Description, e: &Entry) -> [i64; 3] {
    let window = task.window;
    match (task.view, e.place) {
        (View::Point, Some(p)) => std::array::from_fn(|a| (p[a] - (window[a] as f64 - 1.0) / 2.0).round() as i64),
        // Cubes and resized scans; in the middle where sizes differ.
        _ => std::array::from_fn(|a| (set.scans[e.scan].size[a] as i64 - window[a] as i64).div_euclid(2)),
    }
}

/// The signed weight of a known answer (see [`crate::kernels::loss::Pointwise::Logistic`]); 0 where it is unknown.
fn signed(answer: Option<f32>, [no, yes]: [f32; 2]) -> f32 {
    match answer {
        None => 0.0,
        Some(a) if a > 0.5 => yes,
        Some(_) => -no,
    }
}

/// Some voxels of each class of a scan, evenly spread over its voxels in order.
fn some_voxels(set: &Set, scan: usize, classes: usize) -> Vec<Vec<u32>> {
    let s = &set.scans[scan];
    let mut out = vec![Vec::new(); classes];
    let mut seen = vec![0u64; classes];
    let plane = s.size[1] * s.size[2];
    for x in 0..s.size[0] {
        for (i, class) in set.truth(scan, [x as i64, 0, 0], [1, s.size[1], s.size[2]]).into_iter().enumerate() {
            let c = usize::from(class);
            // The background is not asked for.
            if c == 0 {
                continue;
            }
            let step = s.counts[c].div_ceil(VOXELS as u64).max(1);
            if seen[c].is_multiple_of(step)
                && let Ok(v) = u32::try_from(x * plane + i)
            {
                out[c].push(v);
            }
            seen[c] += 1;
        }
    }
    out
}

/// Reverses `[x][y][z]` data with `inner` values a voxel along an axis.
pub(super) fn flip<T: Copy>(data: &mut [T], size: [usize; 3], inner: usize, axis: usize) {
    let stride: usize = size[axis + 1..].iter().product::<usize>() * inner;
    for block in data.chunks_mut(size[axis] * stride) {
        for i in 0..size[axis] / 2 {
            let j = size[axis] - 1 - i;
            let (a, b) = block.split_at_mut(j * stride);
            a[i * stride..(i + 1) * stride].swap_with_slice(&mut b[..stride]);
        }
    }
}

/// Changes contrast about the mean, brightness and gamma of a channel, and adds noise; each with probability one half.
fn recolour(cube: &mut [f32], channels: usize, channel: usize, strength: f32, rng: &mut CounterRng) {
    let mut draw = |half: f32| if rng.unit() < 0.5 { (2.0 * rng.unit() - 1.0) * half * strength } else { 0.0 };
    let (contrast, brightness, gamma, noise) = (1.0 + draw(0.15), draw(0.05), draw(0.2).exp(), draw(0.02).abs());
    let values = || (channel..cube.len()).step_by(channels);
    let mean = (values().map(|i| f64::from(cube[i])).sum::<f64>() / values().count().max(1) as f64) as f32;
    for i in (channel..cube.len()).step_by(channels) {
        let v = ((cube[i] - mean) * contrast + mean + brightness).clamp(0.0, 1.0).powf(gamma);
        let v = if noise > 0.0 { v + noise * rng.normal() as f32 } else { v };
        cube[i] = v.clamp(0.0, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_an_axis_and_every_voxel_is_fresh_once() {
        for (size, window) in [(16, 16), (17, 16), (40, 16), (8, 16), (33, 8)] {
            let mut seen = vec![0; size];
            for (start, fresh) in covering(size, window) {
                for i in fresh..window.min(size) {
                    seen[start as usize + i] += 1;
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{size} {window} {seen:?}");
        }
    }

    #[test]
    fn flips_reverse_one_axis() {
        let mut data: Vec<u8> = (0..24).collect();
        flip(&mut data, [2, 3, 2], 2, 1);
        assert_eq!(data[..12], [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]);
        flip(&mut data, [2, 3, 2], 2, 1);
        flip(&mut data, [2, 3, 2], 2, 2);
        assert_eq!(data[..4], [2, 3, 0, 1]);
        flip(&mut data, [2, 3, 2], 2, 2);
        flip(&mut data, [2, 3, 2], 2, 0);
        assert_eq!((data[0], data[12]), (12, 0));
    }

    #[test]
    fn balanced_weights_make_classes_count_alike() {
        let w = class_weights(true, &[900, 100]);
        assert!((w[0] * 900.0 - w[1] * 100.0).abs() < 1e-2 && (w[0] * 900.0 + w[1] * 100.0 - 1000.0).abs() < 1e-2, "{w:?}");
        let w = class_weights(true, &[1_000_000, 1]);
        assert!((w[1] / w[0] - 100.0).abs() < 1e-3);
        assert_eq!(class_weights(false, &[5, 1]), [1.0, 1.0]);
    }

    #[test]
    fn colours_stay_in_range_and_repeat() {
        let make = || (0..64u8).map(|v| f32::from(v) / 63.0).collect::<Vec<f32>>();
        let (mut a, mut b) = (make(), make());
        recolour(&mut a, 2, 1, 5.0, &mut Key::new(4).rng());
        recolour(&mut b, 2, 1, 5.0, &mut Key::new(4).rng());
        assert_eq!(a, b);
        assert!(a.iter().all(|v| (0.0..=1.0).contains(v)) && a != make());
        assert!(a.iter().zip(make()).step_by(2).all(|(a, b)| *a == b), "the other channel stays");
    }
}
