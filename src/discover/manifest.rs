//! The manifest: which crop of which scan belongs to which class.
//!
//! With the prepared volumes it determines every cube bit for bit. Crops are numbered: those of the
//! train scans first, by class, rank of the neighbour and resolution, then those of the
//! validation scans in the same order. On disk it is one JSON file, described in [`mod@file`].

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Cube, Discover, Filter, Modality};
use crate::data::cubes::{CropEntry, Voxels, cut};
use crate::data::resize;
use crate::data::store::Split;
use crate::discover::coordinates::{Place, Rules, Tissue};
use crate::discover::neighbours::{Ranking, clamp, train_list, validation_list};
use crate::discover::windows::WindowRule;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};
use crate::train::loader::Samples;

pub mod file;

/// How the crops came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Always [`file::FORMAT`].
    pub format: String,
    /// Version of the layout, [`file::VERSION`].
    pub version: u32,
    /// Seed of all draws.
    pub seed: u32,
    /// Hash of the prepared set.
    pub store: String,
    /// Hash of the weights of the autoencoder that described the patients.
    pub autoencoder: String,
    /// What kind of scans.
    pub modality: Modality,
    /// Voxels of every prepared volume.
    pub grid: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Size and resolutions of the cubes.
    pub cube: Cube,
    /// All settings of the discovery, with the filter that was in effect.
    pub discover: Discover,
    /// Ranges of the windows at resolutions 2 and 3.
    pub windows: WindowRule,
    /// How windows become cubes, [`resize::RULE`].
    pub resize: String,
}

/// A scan of the prepared set; its position in the list is the one in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// Name in the store.
    pub id: String,
    /// SHA-256 of its content in hexadecimal.
    pub sha256: String,
    /// What it is used for.
    pub split: Split,
}

/// A pseudo label: a place and the patients it is taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Number of the class.
    pub label: u32,
    /// Position of the reference scan.
    pub reference: u32,
    /// First voxel of the crop at resolution 1.
    pub start: [usize; 3],
    /// Draws it took on the reference.
    pub draws: u32,
    /// References dropped before.
    pub dropped: u32,
    /// Score of the tissue filter, in voxels.
    pub score: f64,
    /// Position and distance of the train neighbours; the first is the reference itself.
    pub train: Ranking,
    /// Position and distance of the validation neighbours.
    pub validation: Ranking,
}

/// One crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Its class.
    pub label: u32,
    /// Rank of its scan among the neighbours of the class.
    pub rank: u32,
    /// 1, or 2 and 3 for the scaled and shifted windows.
    pub resolution: u32,
    /// Position of its scan.
    pub scan: u32,
    /// First voxel of its window.
    pub start: [usize; 3],
    /// Voxels of its window.
    pub size: [usize; 3],
}

/// What a manifest is made of.
pub struct Inputs<'a> {
    /// Seed, cube and discovery settings, number of classes.
    pub config: &'a Config,
    /// What kind of scans.
    pub modality: Modality,
    /// Voxels of every prepared volume.
    pub grid: [usize; 3],
    /// Hash of the prepared set.
    pub store: &'a str,
    /// Hash of the autoencoder's weights.
    pub autoencoder: &'a str,
    /// All scans in the order of the store. Row `i` of the train features is the `i`-th train scan,
    /// and likewise for validation.
    pub scans: Vec<Scan>,
    /// The accepted coordinates, one per class.
    pub places: &'a [Place],
    /// Per class, the train rows nearest to its reference.
    pub train: &'a [Ranking],
    /// Per class, the validation rows nearest to its reference.
    pub validation: &'a [Ranking],
}

/// All crops with where they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    header: Header,
    scans: Vec<Scan>,
    classes: Vec<Class>,
    crops: Vec<Crop>,
    /// Number of crops of train scans.
    train: u32,
}

impl Manifest {
    /// Lists the crops of every class. More neighbours than there are scans is all of them, with a
    /// warning.
    ///
    /// # Errors
    /// Lists that do not fit the number of classes, rankings that are not usable, a coordinate at
    /// which the cube leaves the grid.
    pub fn build(inputs: Inputs<'_>) -> Result<Self> {
        let Inputs { config, modality, grid, store, autoencoder, scans, places, train, validation } = inputs;
        let n = config.model.classes;
        if [places.len(), train.len(), validation.len()] != [n; 3] {
            let (p, t, v) = (places.len(), train.len(), validation.len());
            return Err(Error::Failed(format!(
                "{n} classes need as many places and rankings, not {p} places, {t} train and {v} validation rankings"
            )));
        }
        let positions = |split| -> Vec<u32> { (0u32..).zip(&scans).filter(|(_, s)| s.split == split).map(|(i, _)| i).collect() };
        let rows = [positions(Split::Train), positions(Split::Validation)];
        let k = clamp(config.discover.neighbours, rows[0].len(), "train");
        let k_validation = clamp(config.discover.validation_neighbours, rows[1].len(), "validation");

        let header = Header::new(config, modality, grid, store, autoencoder);
        let to_positions = |list: Ranking, rows: &[u32]| -> Ranking { list.into_iter().map(|(row, d)| (rows[row as usize], d)).collect() };
        let classes = (0u32..)
            .zip(places)
            .zip(train.iter().zip(validation))
            .map(|((label, place), (near, near_validation))| {
                let near = train_list(place.reference, near, rows[0].len(), k)?;
                let near_validation = validation_list(near_validation, rows[1].len(), k_validation)?;
                Ok(Class {
                    label,
                    reference: rows[0][place.reference as usize],
                    start: place.start,
                    draws: place.draws,
                    dropped: place.dropped,
                    score: place.score,
                    train: to_positions(near, &rows[0]),
                    validation: to_positions(near_validation, &rows[1]),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut crops = Vec::new();
        for class in &classes {
            for (rank, &(scan, _)) in (0u32..).zip(&class.train) {
                for resolution in 1..=header.resolutions(Split::Train) {
                    crops.push(header.crop(class, rank, resolution, scan)?);
                }
            }
        }
        let train = crops.len() as u32;
        for class in &classes {
            for (rank, &(scan, _)) in (0u32..).zip(&class.validation) {
                crops.push(header.crop(class, rank, 1, scan)?);
            }
        }
        Ok(Self { header, scans, classes, crops, train })
    }

    /// How the crops came about.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The scans in the order of the store.
    pub fn scans(&self) -> &[Scan] {
        &self.scans
    }

    /// The classes by label.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// All crops by number.
    pub fn crops(&self) -> &[Crop] {
        &self.crops
    }

    /// Numbers of the crops to learn from.
    pub fn train(&self) -> Range<u32> {
        0..self.train
    }

    /// Numbers of the crops to measure on.
    pub fn validation(&self) -> Range<u32> {
        self.train..self.crops.len() as u32
    }

    /// Where the cube of crop `i` is cut, or `None` if there is no such crop.
    pub fn entry(&self, i: u32) -> Option<CropEntry> {
        let crop = self.crops.get(i as usize)?;
        Some(CropEntry { source: crop.scan, start: crop.start, size: crop.size, out: self.header.cube.size })
    }

    /// The crops of `split` for a [`crate::train::loader::Loader`], cut from `volumes`: one per
    /// scan, in the order of the store.
    ///
    /// # Errors
    /// Volumes that do not fit the manifest, or no crops of this split.
    pub fn samples<V>(self: &Arc<Self>, split: Split, volumes: Arc<Vec<V>>) -> Result<Arc<Samples>>
    where
        V: Voxels + Send + Sync + 'static,
    {
        if volumes.len() != self.scans.len() {
            return Err(Error::Usage(format!(
                "the manifest lists {} scans, but the prepared set holds {}",
                self.scans.len(),
                volumes.len()
            )));
        }
        if let Some((v, scan)) = volumes.iter().zip(&self.scans).find(|(v, _)| v.size() != self.header.grid) {
            return Err(Error::Usage(format!(
                "scan {} has size {:?}, but the manifest was made for {:?}",
                scan.id,
                v.size(),
                self.header.grid
            )));
        }
        let range = match split {
            Split::Train => self.train(),
            Split::Validation => self.validation(),
        };
        if range.is_empty() {
            return Err(Error::Usage(format!(
                "the manifest lists no {split:?} crops; check prepare.validation_fraction and the number of scans"
            )));
        }
        let items: Vec<(u32, u32)> = range.map(|i| (i, self.crops[i as usize].label)).collect();
        let manifest = Arc::clone(self);
        Samples::new(items, self.header.cube.size.iter().product(), move |i| {
            let entry = manifest.entry(i).ok_or_else(|| Error::Failed(format!("the manifest has no crop {i}")))?;
            let volume = volumes.get(entry.source as usize).ok_or_else(|| Error::Failed(format!("there is no scan {}", entry.source)))?;
            cut(volume, &entry)
        })
    }

    /// Distance of the features of crop `i`'s scan to those of its class's reference.
    pub fn distance(&self, i: u32) -> Option<f32> {
        let crop = self.crops.get(i as usize)?;
        let class = self.classes.get(crop.label as usize)?;
        let split = if i < self.train { Split::Train } else { Split::Validation };
        class.neighbours(split).get(crop.rank as usize).map(|n| n.1)
    }

    /// Checks that the manifest was made from the prepared set with content `hash`.
    ///
    /// # Errors
    /// If it was made from another one.
    pub fn check_store(&self, hash: &str) -> Result<()> {
        if self.header.store == hash {
            return Ok(());
        }
        let short = |h: &str| h.chars().take(12).collect::<String>();
        Err(Error::Usage(format!(
            "the manifest was made from prepared set {}, but this one is {}; run `semgen discover` on it again",
            short(&self.header.store),
            short(hash)
        )))
    }
}

impl Class {
    /// Position and distance of the neighbours of `split`.
    pub fn neighbours(&self, split: Split) -> &Ranking {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }
}

impl Header {
    /// The header of what `config` makes of a prepared set.
    pub fn new(config: &Config, modality: Modality, grid: [usize; 3], store: &str, autoencoder: &str) -> Self {
        let mut discover = config.discover.clone();
        discover.autoencoder = config.autoencoder();
        discover.filter = match Rules::new(config, modality).tissue {
            Tissue::Lung { .. } => Filter::Lung,
            Tissue::Foreground => Filter::Foreground,
            Tissue::Any => Filter::None,
        };
        Self {
            format: file::FORMAT.to_owned(),
            version: file::VERSION,
            seed: config.seed,
            store: store.to_owned(),
            autoencoder: autoencoder.to_owned(),
            modality,
            grid,
            classes: config.model.classes,
            cube: config.cube.clone(),
            discover,
            windows: WindowRule::new(config.cube.size),
            resize: resize::RULE.to_owned(),
        }
    }

    /// How many resolutions a scan of `split` is cropped at.
    fn resolutions(&self, split: Split) -> u32 {
        if split == Split::Train && self.cube.multi_resolution { 3 } else { 1 }
    }

    /// One crop of `class`; the draws of its window depend on the seed, the class, the rank and the resolution alone.
    fn crop(&self, class: &Class, rank: u32, resolution: u32, scan: u32) -> Result<Crop> {
        let (cube, start, label) = (self.cube.size, class.start, class.label);
        let window = if resolution == 1 {
            (0..3).all(|a| start[a] + cube[a] <= self.grid[a]).then_some((start, cube))
        } else {
            let key = Key::new(u64::from(self.seed)).purpose(Purpose::Crop, label).fold(rank, resolution);
            self.windows.draw(key, cube, start, self.grid)
        };
        let Some((start, size)) = window else {
            return Err(Error::Failed(format!("the cube of {cube:?} at {start:?} of class {label} leaves the grid of {:?}", self.grid)));
        };
        Ok(Crop { label, rank, resolution, scan, start, size })
    }
}
