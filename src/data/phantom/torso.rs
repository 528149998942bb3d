//! The trunk: skin, muscle shell, rib cage, diaphragm and lungs as signed distances in mm.
//!
//! Heights are named by `u`: 0 at the costophrenic recess, 1 at the lung's apex. Cross-sections
//! are ovals whose half axes follow tables over `u`, scaled by the patient's [`Build`].

use super::build::Build;
use super::shape::{Field, Point, add, ellipsoid, mix, profile, smooth_max, smooth_min, step, to_segment};

/// Half width of the rib cage over height, of its largest value.
const CAGE_WIDTH: [(f32, f32); 11] = [
    (-0.6, 0.92),
    (-0.25, 0.97),
    (0.0, 1.0),
    (0.3, 1.0),
    (0.5, 0.97),
    (0.65, 0.90),
    (0.78, 0.80),
    (0.88, 0.675),
    (0.96, 0.50),
    (1.02, 0.33),
    (1.08, 0.2),
];
/// Half depth of the rib cage over height, of its largest value.
const CAGE_DEPTH: [(f32, f32); 11] = [
    (-0.6, 0.92),
    (-0.25, 0.98),
    (0.0, 1.0),
    (0.3, 1.0),
    (0.5, 0.95),
    (0.65, 0.87),
    (0.78, 0.75),
    (0.88, 0.60),
    (0.96, 0.45),
    (1.02, 0.33),
    (1.08, 0.25),
];
/// Half width of the mediastinum, mm over height.
const MEDIASTINUM: [(f32, f32); 9] =
    [(-0.1, 24.0), (0.3, 22.0), (0.5, 22.0), (0.62, 27.0), (0.72, 31.0), (0.82, 31.0), (0.9, 33.0), (1.0, 44.0), (1.1, 60.0)];
/// Half width of the mediastinum from the sternum (0) to the spine (1), of its largest value.
const MEDIASTINUM_SHAPE: [(f32, f32); 6] = [(0.0, 0.22), (0.12, 0.26), (0.38, 0.95), (0.7, 1.0), (0.9, 0.82), (1.0, 0.8)];

/// The trunk of one patient.
pub(super) struct Torso {
    pub(super) build: Build,
    /// Height of the lungs, mm.
    pub(super) height: f32,
    /// Largest half width and half depth of the rib cage, mm.
    pub(super) a: f32,
    pub(super) b: f32,
    /// Tops of the right and left diaphragm domes, mm.
    pub(super) domes: [f32; 2],
    /// Centre of the heart.
    pub(super) heart: Point,
    /// Front-back factor of the heart.
    heart_depth: f32,
    /// Vertical factor of the heart.
    heart_height: f32,
    /// Irregularity of all organ surfaces.
    pub(super) field: Field,
}

/// The cross-section at one height.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub(super) z: f32,
    pub(super) u: f32,
    /// Half axes and centre of the rib cage.
    pub(super) a: f32,
    pub(super) b: f32,
    pub(super) yc: f32,
    /// Centre of the vertebral body.
    pub(super) spine: f32,
    /// Half width, and reach from `yc` forward and backward, of the muscle shell and of the skin.
    muscle: [f32; 3],
    skin: [f32; 3],
    mediastinum: f32,
    /// How far the shoulder girdle has taken over, 0 to 1.
    pub(super) shoulder: f32,
}

/// Signed distance, along the ray from the centre, to an oval between an ellipse (`square` 0) and
/// a rounded box (1).
fn oval(x: f32, y: f32, rx: f32, ry: f32, square: f32) -> f32 {
    let (qx, qy) = ((x / rx).powi(2), (y / ry).powi(2));
    let k = mix((qx + qy).sqrt(), (qx * qx + qy * qy).sqrt().sqrt(), square);
    if k < 1e-3 { -rx.min(ry) } else { (x * x + y * y).sqrt() * (1.0 - 1.0 / k) }
}

impl Level {
    /// The skin of the back, and of the front, on the midline.
    pub(super) fn back(&self) -> f32 {
        self.yc + self.skin[2]
    }

    pub(super) fn front(&self) -> f32 {
        self.yc - self.skin[1]
    }
}

impl Torso {
    pub(super) fn new(build: Build, field: Field) -> Self {
        let height = 232.0 * build.stature;
        let (a, b) = (124.0 * build.width, 82.0 * build.depth);
        let at = |u: f32| (u - 0.5) * height;
        let domes = [at(build.dome), at(build.dome) - 13.0];
        // The heart fills the room between the diaphragm and the pulmonary arteries, within limits.
        let (floor, ceiling) = (domes[1] - 6.0, at(0.70) - 18.0);
        let heart_height = ((ceiling - floor) / 88.0).clamp(0.88 * build.heart, 1.30 * build.heart);
        let z = (floor + 42.0 * heart_height).min(ceiling - 46.0 * heart_height);
        // The left atrium lies on the oesophagus; a deep heart is flattened to fit the cage.
        let behind = b - 36.0 - 24.0;
        let heart_depth = build.heart * mix(1.0, build.depth, 0.5).min((behind + b - 5.0) / (97.0 * build.heart));
        let heart = [18.0 * build.width, behind - 50.0 * heart_depth, z];
        Self { build, height, a, b, domes, heart, heart_depth, heart_height, field }
    }

    /// The height in mm at `u`.
    pub(super) fn at(&self, u: f32) -> f32 {
        (u - 0.5) * self.height
    }

    pub(super) fn level(&self, z: f32) -> Level {
        let u = z / self.height + 0.5;
        let bld = &self.build;
        let (a, b) = (self.a * profile(&CAGE_WIDTH, u), self.b * profile(&CAGE_DEPTH, u));
        let spine = self.spine_at(u);
        let yc = spine + 35.0 - b;
        let shoulder = step(0.52, 0.88, u);
        let neck = step(1.04, 1.40, u);
        let m = bld.muscle;
        let b_out = b.max(0.52 * self.b);
        let wide = mix(a + 12.0 * m, self.a * 0.99 + 19.0 * m, shoulder);
        let wide = mix(wide, 58.0 + 8.0 * m, neck);
        // The windpipe runs in front of the spine; the neck has room for it.
        let throat = (yc - spine + 50.0) * step(0.90, 1.0, u);
        let muscle = [wide, (b_out + mix(9.0, 18.0, shoulder) * m + 4.0).max(throat), b_out + 20.0 + 9.0 * m];
        let fat = bld.fat;
        let belly = 1.0 - step(-0.1, 0.45, u);
        let skin =
            [muscle[0] + fat * mix(1.0, 0.8, shoulder) + 2.0, muscle[1] + fat * mix(0.75, 1.15, belly) + 2.0, muscle[2] + fat * 0.85 + 2.0];
        let mediastinum = profile(&MEDIASTINUM, u) * mix(1.0, bld.width, 0.6);
        Level { z, u, a, b, yc, spine, muscle, skin, mediastinum, shoulder }
    }

    /// To the pleura: inside is negative.
    pub(super) fn cage(&self, x: f32, y: f32, l: &Level) -> f32 {
        // The gutters beside the spine reach further back than its front.
        let q = y - l.yc;
        let notch = if q > 0.0 { 17.0 * (-(x / 27.0).powi(2)).exp() * (q / l.b).min(1.0) } else { 0.0 };
        oval(x, q + notch, l.a, l.b, 0.42)
    }

    /// To the outside of the muscle shell.
    pub(super) fn muscle(&self, x: f32, y: f32, l: &Level) -> f32 {
        let q = y - l.yc;
        let notch = if q > 0.0 { 5.0 * (-(x / 9.0).powi(2)).exp() } else { 0.0 };
        oval(x, q + notch, l.muscle[0], if q < 0.0 { l.muscle[1] } else { l.muscle[2] }, 0.45)
    }

    /// To the skin.
    pub(super) fn skin(&self, x: f32, y: f32, l: &Level) -> f32 {
        let q = y - l.yc;
        let notch = if q > 0.0 { 6.0 * (-(x / 16.0).powi(2)).exp() } else { 0.0 };
        let d = oval(x, q + notch, l.skin[0], if q < 0.0 { l.skin[1] } else { l.skin[2] }, 0.40);
        let d = if d.abs() < 12.0 { d + 2.2 * self.field.at([x, y, l.z], 52.0) } else { d };
        let d = if l.u > 0.75 {
            let [joint, elbow] = self.arm();
            let arm = to_segment([x.abs(), y, l.z], add(joint, [0.0, 0.0, -16.0]), elbow) - self.arm_radius() - 2.0 - 0.5 * self.build.fat;
            smooth_min(d, arm, 26.0)
        } else {
            d
        };
        let size = self.build.breast;
        if size < 0.05 || q > 0.0 {
            return d;
        }
        let g = (0.4 + 0.6 * size).min(1.1);
        let front = self.level_front(0.42);
        let p = [x.abs() - 0.62 * self.a, y - front - 2.0, l.z - self.at(0.42)];
        smooth_min(d, ellipsoid(p, [56.0 * g, 50.0 * g, 60.0 * g]), 16.0)
    }

    /// The left socket of the shoulder.
    pub(super) fn socket(&self) -> Point {
        let z = self.at(1.02);
        [self.a, self.spine_at(0.97) + 51.0 - self.b * profile(&CAGE_DEPTH, 0.97), z]
    }

    /// The left upper arm, raised beside the head: centre of the humeral head, and a point on the shaft.
    pub(super) fn arm(&self) -> [Point; 2] {
        let head = add(self.socket(), [26.0, -4.0, 16.0]);
        [head, add(head, [34.0, -14.0, 90.0])]
    }

    /// Radius of the muscles around the humerus.
    pub(super) fn arm_radius(&self) -> f32 {
        29.0 * self.build.muscle.sqrt()
    }

    /// Centre of the vertebral column at height `u`.
    fn spine_at(&self, u: f32) -> f32 {
        let bend = ((u - 0.42) / 0.58).min(1.1);
        self.b - 36.0 - 13.0 * bend * bend - if bend > 0.0 { self.build.kyphosis * bend * bend } else { 0.0 }
    }

    /// The front of the muscle shell off the midline at height `u`.
    fn level_front(&self, u: f32) -> f32 {
        let b = self.b * profile(&CAGE_DEPTH, u);
        self.b - 1.0 - 2.0 * b + 12.0
    }

    /// Height of the diaphragm's upper surface.
    pub(super) fn diaphragm(&self, x: f32, y: f32) -> f32 {
        let base = self.at(-0.05) + 0.13 * self.height * (-(y - 0.15 * self.b) / self.b).clamp(-0.1, 1.0).max(0.0);
        let flat = 0.5 + 0.15 * self.build.emphysema;
        let one = |cx: f32, cy: f32, rx: f32, ry: f32, top: f32| {
            let r2 = ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2);
            let h = if r2 < 1.0 { (1.0 - r2).powf(flat) } else { 0.8 * (1.0 - r2) };
            base + (top - base).max(8.0) * h
        };
        let right = one(-0.49 * self.a, -4.0, 0.53 * self.a, 0.98 * self.b, self.domes[0]);
        let left = one(0.50 * self.a, -4.0, 0.52 * self.a, 0.98 * self.b, self.domes[1]);
        let middle = one(0.0, -0.12 * self.b, 0.62 * self.a, 0.80 * self.b, self.domes[1] - 7.0);
        smooth_max(smooth_max(right, left, 8.0), middle, 10.0) + 2.5 * self.field.at([x, y, 0.0], 38.0)
    }

    /// To the surface of either lung, ignoring the heart and the vessels; `cage` and `dome` are
    /// [`Self::cage`] and [`Self::diaphragm`] there.
    pub(super) fn lung(&self, x: f32, y: f32, l: &Level, cage: f32, dome: f32) -> f32 {
        let front = l.yc - l.b;
        let t = (y - front) / (l.spine - front);
        let half = l.mediastinum * profile(&MEDIASTINUM_SHAPE, t);
        let half = half.max(23.0 * step(0.6, 0.98, t));
        let beside = half + 2.0 * self.field.at([x, y, l.z], 25.0) - (x - 2.0).abs();
        (cage + 2.0).max((dome + 1.5 - l.z) * 0.85).max(beside)
    }

    /// To the outside of the pericardial fat.
    pub(super) fn pericardium(&self, p: Point) -> f32 {
        let mut d = f32::INFINITY;
        for (centre, radii) in self.chambers() {
            let q = [p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]];
            d = smooth_min(d.min(1e4), ellipsoid(q, radii), 17.0);
        }
        d - 2.5 - 0.05 * self.build.fat
    }

    /// Upright envelopes (centre, radii) of the left ventricle, right ventricle, right atrium and
    /// left atrium.
    pub(super) fn chambers(&self) -> [(Point, Point); 4] {
        let s = self.build.heart;
        let (d, h) = (self.heart_depth, self.heart);
        let at = |x: f32, y: f32, z: f32| [h[0] + x * s, h[1] + y * d, h[2] + z * self.heart_height];
        let r = |x: f32, y: f32, z: f32| [x * s, y * d, z * self.heart_height];
        [
            (at(17.0, -2.0, -5.0), r(43.0, 39.0, 41.0)),
            (at(-7.0, -20.0, -5.0), r(46.0, 27.0, 37.0)),
            (at(-40.0, -1.0, 3.0), r(28.0, 33.0, 37.0)),
            (at(-11.0, 28.0, 19.0), r(38.0, 22.0, 27.0)),
        ]
    }

    /// Inside either lung and outside the heart: what vessels and nodules are placed by.
    pub(super) fn lung_tissue(&self, p: Point) -> f32 {
        let l = self.level(p[2]);
        let cage = self.cage(p[0], p[1], &l);
        if cage > 0.0 {
            return cage;
        }
        self.lung(p[0], p[1], &l, cage, self.diaphragm(p[0], p[1])).max(-self.pericardium(p))
    }
}
