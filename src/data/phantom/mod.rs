//! Synthetic chest-CT patients: Hounsfield units and labels for trials without clinical data.
//!
//! A patient is a set of solids and signed distances in millimetres (Left, Posterior, Superior;
//! origin at the grid's centre), so any voxel size and any field of view shows the same anatomy.
//! Patients come in up to eight body types that differ in several proportions at once; within a
//! type every number varies a little, and position, nodules, vessels, noise and contrast medium
//! vary freely. Everything is a pure function of `(seed, index, types)`.
//!
//! It is *not* a model of disease or of X-ray physics: contrasts and noise look like CT, no more.
//!
//! | label | meaning |
//! |---|---|
//! | 0 | background (air outside, couch) |
//! | 1 | body: skin, fat (also on the heart), muscle, and every organ without a label of its own |
//! | 2 | bone |
//! | 3 | lung |
//! | 4 | vessel: great vessels and the lung's vessels that fill half a voxel |
//! | 5 | airway (its air) |
//! | 6 | heart: muscle and chambers |
//! | 7 | liver |
//! | 8 | nodule |
//! | 9 | spleen and stomach |

mod build;
mod lungs;
mod noise;
mod organs;
mod regions;
mod render;
mod set;
mod shape;
mod skeleton;
#[cfg(test)]
mod tests;
mod torso;
mod tree;

pub use build::Build;
pub use regions::{CLASSIFY, Regions, SEGMENT};
pub use set::write_set;

use self::organs::Blood;
use self::shape::{Field, Point};
use self::torso::Torso;
use crate::data::volume::Volume;
use crate::rng::{CounterRng, Key, Purpose};

/// Label of air and couch.
pub const BACKGROUND: u8 = 0;
/// Label of soft tissue without a label of its own.
pub const BODY: u8 = 1;
/// Label of bone.
pub const BONE: u8 = 2;
/// Label of lung tissue.
pub const LUNG: u8 = 3;
/// Label of blood vessels.
pub const VESSEL: u8 = 4;
/// Label of the air in trachea and bronchi.
pub const AIRWAY: u8 = 5;
/// Label of the heart's muscle and chambers.
pub const HEART: u8 = 6;
/// Label of the liver.
pub const LIVER: u8 = 7;
/// Label of lung nodules.
pub const NODULE: u8 = 8;
/// Label of spleen and stomach.
pub const SPLEEN_STOMACH: u8 = 9;

/// The most body types [`Patient::draw`] and [`write_set`] can tell apart.
pub const MAX_TYPES: usize = build::TYPES;

/// What a nodule looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texture {
    /// Smooth soft tissue.
    Solid,
    /// Soft tissue with rays into the lung.
    Spiculated,
    /// A hazy rim around a solid core.
    PartSolid,
    /// Hazy throughout.
    GroundGlass,
    /// A small dense granuloma.
    Calcified,
}

impl Texture {
    /// The word for it in `patients.csv`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Solid => "solid",
            Self::Spiculated => "spiculated",
            Self::PartSolid => "part-solid",
            Self::GroundGlass => "ground-glass",
            Self::Calcified => "calcified",
        }
    }
}

/// One lung nodule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nodule {
    /// Centre in RAS+ millimetres, as the scan's affine gives them.
    pub ras: [f32; 3],
    /// Mean diameter, mm.
    pub diameter: f32,
    /// What it looks like.
    pub texture: Texture,
}

/// One synthetic patient, not yet rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct Patient {
    /// Number within the set.
    pub index: u32,
    /// Body type, from 0.
    pub body_type: usize,
    /// Proportions.
    pub build: Build,
    /// Offset of the patient from the middle of the grid: mm to Left, Posterior, Superior.
    pub shift: [f32; 3],
    /// Blood in the left heart, HU: about 45 without contrast medium, up to 190 with.
    pub blood_hu: f32,
    /// Standard deviation of the noise at mid depth in a voxel of about 40 mm³, HU.
    pub noise_hu: f32,
    /// Whether the couch is in the image.
    pub couch: bool,
    /// Nodules in the lungs, possibly none.
    pub nodules: Vec<Nodule>,
    /// Filling of the stomach, 0 (gas) to 1.
    meal: f32,
    key: Key,
}

/// Uniform in `lo..hi`.
fn between(rng: &mut CounterRng, lo: f32, hi: f32) -> f32 {
    lo + (hi - lo) * rng.unit()
}

impl Patient {
    /// Draws patient `index` of the set named by `seed`, of one of `types` body types (clamped to
    /// `1..=`[`MAX_TYPES`]). Each run of `types` successive patients has every type once, in
    /// random order.
    pub fn draw(seed: u32, index: u32, types: usize) -> Self {
        use rand::seq::SliceRandom;
        let types = types.clamp(1, MAX_TYPES);
        let root = Key::new(u64::from(seed));
        let key = root.purpose(Purpose::Phantom, index);
        let mut order: Vec<usize> = (0..types).collect();
        #[expect(clippy::cast_possible_truncation, reason = "at most eight types")]
        let (block, place) = (index / types as u32, (index % types as u32) as usize);
        order.shuffle(&mut root.purpose(Purpose::Phantom, block).fold(7, 7).rng());
        let body_type = order[place];
        let build = Build::draw(body_type, &mut key.fold(0, 0).rng());
        let mut rng = key.fold(1, 0).rng();
        let enhanced = rng.unit() < 0.55;
        let blood_hu = if enhanced { between(&mut rng, 110.0, 185.0) } else { between(&mut rng, 40.0, 50.0) };
        let mut patient = Self {
            index,
            body_type,
            build,
            shift: [between(&mut rng, -7.0, 7.0), between(&mut rng, -6.0, 6.0), between(&mut rng, -8.0, 8.0)],
            blood_hu,
            noise_hu: between(&mut rng, 6.5, 11.0),
            couch: rng.unit() < 0.75,
            nodules: Vec::new(),
            meal: rng.unit(),
            key,
        };
        let torso = patient.torso();
        let level = torso.level(torso.at(0.45));
        // Body and couch together sit in the middle of the field of view.
        patient.shift[1] -= 0.5 * (level.front() + level.back()) + 9.0;
        patient.place_nodules(&torso, &mut key.fold(2, 0).rng());
        patient
    }

    fn place_nodules(&mut self, torso: &Torso, rng: &mut CounterRng) {
        let wanted = [0, 0, 0, 1, 1, 1, 2, 2, 3, 5][usize::try_from(rng.int(0, 9)).unwrap_or(0)];
        for _ in 0..400 {
            if self.nodules.len() == wanted {
                break;
            }
            let p = [torso.a * between(rng, -1.0, 1.0), torso.b * between(rng, -1.1, 1.1), torso.at(between(rng, 0.0, 1.0))];
            // Small nodules are commoner: uniform in the logarithm.
            let diameter = 4.0 * (30.0f32 / 4.0).powf(rng.unit().powf(1.3));
            let kind = rng.unit();
            let texture = match () {
                () if diameter < 8.0 && kind < 0.2 => Texture::Calcified,
                () if kind < 0.5 || diameter < 6.0 => Texture::Solid,
                () if kind < 0.72 && diameter > 9.0 => Texture::Spiculated,
                () if kind < 0.87 => Texture::PartSolid,
                () => Texture::GroundGlass,
            };
            let near = |n: &Nodule| shape::length(shape::sub(self.centre(n), p)) < 0.8 * (n.diameter + diameter) + 4.0;
            if torso.lung_tissue(p) > -(0.45 * diameter + 2.0) || self.nodules.iter().any(near) {
                continue;
            }
            let ras = [-(p[0] + self.shift[0]), -(p[1] + self.shift[1]), p[2] + self.shift[2]];
            self.nodules.push(Nodule { ras, diameter, texture });
        }
    }

    /// A nodule's centre in the patient's own frame.
    fn centre(&self, n: &Nodule) -> Point {
        [-n.ras[0] - self.shift[0], -n.ras[1] - self.shift[1], n.ras[2] - self.shift[2]]
    }

    fn torso(&self) -> Torso {
        Torso::new(self.build, Field::new(self.key.fold(6, 0)))
    }

    fn blood(&self) -> Blood {
        // The venous side is less enhanced at the usual time of the scan.
        Blood { left: self.blood_hu, right: 42.0 + (self.blood_hu - 42.0) * 0.8 }
    }

    /// The scan (whole Hounsfield units, within -1024..=3071) and its label map on a grid of
    /// `size` voxels of `spacing` mm, both `[x][y][z]` with z fastest and the affine in RAS+.
    pub fn render(&self, size: [usize; 3], spacing: [f64; 3]) -> (Volume, Volume) {
        render::render(self, size, spacing)
    }
}
