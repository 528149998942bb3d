//! Body types and the numbers drawn around them.

use crate::rng::CounterRng;

/// The proportions of one patient; factors are relative to a middling adult.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Build {
    /// Vertical factor of spine and lungs.
    pub stature: f32,
    /// Left-right factor of the rib cage.
    pub width: f32,
    /// Front-back factor of the rib cage.
    pub depth: f32,
    /// Thickness of the fat under the skin of the flank, mm.
    pub fat: f32,
    /// Thickness factor of the muscles.
    pub muscle: f32,
    /// Size factor of the heart.
    pub heart: f32,
    /// Height of the right diaphragm dome, as a fraction of the lung's height.
    pub dome: f32,
    /// Emphysema, 0 (none) to 1 (severe).
    pub emphysema: f32,
    /// Breast size, 0 (male) to 1.
    pub breast: f32,
    /// Rounding of the upper back, mm by which the apex leans forward.
    pub kyphosis: f32,
    /// Density of normal lung at mid height, HU.
    pub lung_hu: f32,
}

/// The most body types there are.
pub(super) const TYPES: usize = 8;

/// The middles of the body types; the first four are the default set.
const MIDDLES: [Build; TYPES] = [
    // Stocky: broad, thick fat, large heart, high diaphragm.
    Build {
        stature: 0.87,
        width: 1.08,
        depth: 1.06,
        fat: 23.0,
        muscle: 1.10,
        heart: 1.17,
        dome: 0.37,
        emphysema: 0.0,
        breast: 0.0,
        kyphosis: 4.0,
        lung_hu: -815.0,
    },
    // Tall and slim: long lungs, small heart, low diaphragm.
    Build {
        stature: 1.13,
        width: 0.95,
        depth: 0.90,
        fat: 6.0,
        muscle: 0.95,
        heart: 0.88,
        dome: 0.25,
        emphysema: 0.0,
        breast: 0.0,
        kyphosis: 2.0,
        lung_hu: -860.0,
    },
    // Small woman.
    Build {
        stature: 0.88,
        width: 0.84,
        depth: 0.85,
        fat: 13.0,
        muscle: 0.80,
        heart: 0.88,
        dome: 0.30,
        emphysema: 0.0,
        breast: 0.75,
        kyphosis: 4.0,
        lung_hu: -845.0,
    },
    // Barrel chest: deep, over-inflated, emphysematous, flat diaphragm.
    Build {
        stature: 1.07,
        width: 1.02,
        depth: 1.20,
        fat: 9.0,
        muscle: 0.80,
        heart: 0.84,
        dome: 0.16,
        emphysema: 0.75,
        breast: 0.0,
        kyphosis: 10.0,
        lung_hu: -895.0,
    },
    // Athlete: broad, muscular, lean.
    Build {
        stature: 1.04,
        width: 1.10,
        depth: 0.98,
        fat: 5.0,
        muscle: 1.65,
        heart: 1.10,
        dome: 0.28,
        emphysema: 0.0,
        breast: 0.0,
        kyphosis: 0.0,
        lung_hu: -850.0,
    },
    // Obese woman: narrow cage in thick fat, very high diaphragm.
    Build {
        stature: 0.90,
        width: 0.90,
        depth: 0.95,
        fat: 38.0,
        muscle: 0.85,
        heart: 1.05,
        dome: 0.42,
        emphysema: 0.0,
        breast: 1.10,
        kyphosis: 6.0,
        lung_hu: -800.0,
    },
    // Frail and bent: short spine, strong kyphosis, little muscle.
    Build {
        stature: 0.82,
        width: 0.90,
        depth: 1.10,
        fat: 6.0,
        muscle: 0.65,
        heart: 1.02,
        dome: 0.28,
        emphysema: 0.25,
        breast: 0.25,
        kyphosis: 24.0,
        lung_hu: -865.0,
    },
    // Enlarged heart in a middling body.
    Build {
        stature: 0.98,
        width: 1.00,
        depth: 0.97,
        fat: 14.0,
        muscle: 0.90,
        heart: 1.36,
        dome: 0.33,
        emphysema: 0.0,
        breast: 0.0,
        kyphosis: 5.0,
        lung_hu: -805.0,
    },
];

impl Build {
    /// Draws a patient of body type `kind` (below [`TYPES`]): the type's middle with every number
    /// moved by a few per cent, much less than the types differ.
    pub(super) fn draw(kind: usize, rng: &mut CounterRng) -> Self {
        let m = &MIDDLES[kind % TYPES];
        let mut vary = |middle: f32, spread: f32| {
            #[expect(clippy::cast_possible_truncation, reason = "a deviation of order 1")]
            let n = rng.normal().clamp(-2.0, 2.0) as f32;
            middle + spread * n
        };
        Self {
            stature: vary(m.stature, 0.025),
            width: vary(m.width, 0.022),
            depth: vary(m.depth, 0.022),
            fat: vary(m.fat, 1.0 + 0.07 * m.fat).max(2.5),
            muscle: vary(m.muscle, 0.06),
            heart: vary(m.heart, 0.035),
            dome: vary(m.dome, 0.018),
            emphysema: vary(m.emphysema, 0.15 * m.emphysema).max(0.0),
            breast: vary(m.breast, 0.12 * m.breast).max(0.0),
            kyphosis: vary(m.kyphosis, 2.0),
            lung_hu: vary(m.lung_hu, 10.0),
        }
    }
}
