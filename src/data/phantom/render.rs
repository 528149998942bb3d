//! From solids and distances to voxels: one slab of equal x per task, painted back to front.

use rayon::prelude::*;

use super::noise::{correlated, smooth};
use super::organs::organs;
use super::shape::{Point, Solid, coverage, ellipsoid, mix, smooth_max, step};
use super::skeleton::skeleton;
use super::torso::{Level, Torso};
use super::{BACKGROUND, BODY, LIVER, LUNG, NODULE, Patient, SPLEEN_STOMACH, lungs};
use crate::data::volume::Volume;

/// Hounsfield units a scanner can store.
const RANGE: (f32, f32) = (-1024.0, 3071.0);

/// What all voxels of a patient share.
struct Scene<'a> {
    patient: &'a Patient,
    torso: &'a Torso,
    solids: Vec<Solid>,
    levels: Vec<Level>,
    /// Width over which a surface is blurred by the voxel's extent, mm.
    width: f32,
    /// Height of the couch's upper surface on the midline.
    couch: f32,
    /// Enhancement of the abdominal organs by contrast medium, 0 to 1.
    lit: f32,
}

/// Millimetres from the grid's centre to each voxel's centre along one axis.
fn centres(n: usize, spacing: f64) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "millimetres within a patient")]
    (0..n).map(|i| ((i as f64 - (n as f64 - 1.0) * 0.5) * spacing) as f32).collect()
}

/// The affine of a grid centred on the origin with axes Left, Posterior, Superior, in RAS+.
pub(super) fn affine(size: [usize; 3], spacing: [f64; 3]) -> [[f64; 4]; 4] {
    let half = |i: usize| (size[i] as f64 - 1.0) * 0.5 * spacing[i];
    [[-spacing[0], 0.0, 0.0, half(0)], [0.0, -spacing[1], 0.0, half(1)], [0.0, 0.0, spacing[2], -half(2)], [0.0, 0.0, 0.0, 1.0]]
}

/// Renders `patient`: Hounsfield units and labels.
pub(super) fn render(patient: &Patient, size: [usize; 3], spacing: [f64; 3]) -> (Volume, Volume) {
    let torso = patient.torso();
    let mut rng = patient.key.fold(3, 0).rng();
    let mut solids = organs(&torso, patient.blood(), &mut rng);
    solids.extend(skeleton(&torso));
    let mut rng = patient.key.fold(4, 0).rng();
    for n in &patient.nodules {
        solids.extend(lungs::nodule(n, patient.centre(n), &mut rng));
    }
    let axis = |i: usize| -> Vec<f32> { centres(size[i], spacing[i]).iter().map(|v| v - patient.shift[i]).collect() };
    let (xs, ys, zs) = (axis(0), axis(1), axis(2));
    let back = [0.25, 0.45, 0.65].map(|u| torso.level(torso.at(u)).back()).into_iter().fold(f32::MIN, f32::max);
    #[expect(clippy::cast_possible_truncation, reason = "a voxel width")]
    let width = ((spacing[0] * spacing[1] * spacing[2]).cbrt() * 0.92) as f32;
    let lit = ((patient.blood_hu - 45.0) / 140.0).clamp(0.0, 1.0);
    let scene =
        Scene { patient, torso: &torso, solids, levels: zs.iter().map(|z| torso.level(*z)).collect(), width, couch: back + 3.0, lit };

    let slab = size[1] * size[2];
    let mut hu = vec![0f32; size[0] * slab];
    let mut labels = vec![0f32; size[0] * slab];
    hu.par_chunks_mut(slab).zip(labels.par_chunks_mut(slab)).zip(&xs).for_each(|((hu, labels), x)| {
        let mut marks = vec![BACKGROUND; slab];
        scene.slab(*x, &ys, &zs, hu, &mut marks);
        for (l, m) in labels.iter_mut().zip(marks) {
            *l = f32::from(m);
        }
    });
    // A nodule smaller than a voxel still owns the voxel it lies in.
    for n in &patient.nodules {
        if let Some([i, j, k]) = nearest(patient.centre(n), [&xs, &ys, &zs]) {
            labels[i * slab + j * size[2] + k] = f32::from(NODULE);
        }
    }
    smooth(&mut hu, size, [0.07, 0.07, 0.03]);
    let noise = correlated(patient.key.fold(5, 0), size);
    hu.par_chunks_mut(slab).zip(noise.par_chunks(slab)).zip(&xs).for_each(|((hu, noise), x)| {
        for ((row, noise), y) in hu.chunks_mut(size[2]).zip(noise.chunks(size[2])).zip(&ys) {
            for ((v, n), l) in row.iter_mut().zip(noise).zip(&scene.levels) {
                *v = (*v + scene.noise(*x, *y, l, *n)).round().clamp(RANGE.0, RANGE.1);
            }
        }
    });
    let affine = affine(size, spacing);
    (Volume { data: hu, size, affine }, Volume { data: labels, size, affine })
}

/// Voxel whose centre is nearest to `p`, if `p` lies in the grid.
fn nearest(p: Point, axes: [&[f32]; 3]) -> Option<[usize; 3]> {
    let mut out = [0; 3];
    for i in 0..3 {
        let axis = axes[i];
        let half = if axis.len() > 1 { (axis[1] - axis[0]) * 0.5 } else { 0.0 };
        if p[i] < axis.first()? - half || p[i] > axis.last()? + half {
            return None;
        }
        out[i] = axis.iter().enumerate().min_by(|a, b| (a.1 - p[i]).abs().total_cmp(&(b.1 - p[i]).abs()))?.0;
    }
    Some(out)
}

/// Indices of `axis` (ascending) within `lo..=hi`.
fn span(axis: &[f32], lo: f32, hi: f32) -> std::ops::Range<usize> {
    let from = axis.partition_point(|v| *v < lo);
    from..axis.partition_point(|v| *v <= hi).max(from)
}

impl Scene<'_> {
    fn slab(&self, x: f32, ys: &[f32], zs: &[f32], hu: &mut [f32], labels: &mut [u8]) {
        let nz = zs.len();
        for (j, y) in ys.iter().enumerate() {
            let dome = self.torso.diaphragm(x, *y);
            let outside = self.air(x, *y);
            for (k, level) in self.levels.iter().enumerate() {
                (hu[j * nz + k], labels[j * nz + k]) = self.tissue(x, *y, level, dome, outside);
            }
        }
        let (w, field) = (self.width, &self.torso.field);
        for s in self.solids.iter().filter(|s| x >= s.lo[0] - w && x <= s.hi[0] + w) {
            for j in span(ys, s.lo[1] - w, s.hi[1] + w) {
                for k in span(zs, s.lo[2] - w, s.hi[2] + w) {
                    let at = j * nz + k;
                    // Nothing outside the skin is anatomy.
                    if labels[at] != BACKGROUND {
                        s.paint([x, ys[j], zs[k]], w, field, &mut hu[at], &mut labels[at]);
                    }
                }
            }
        }
    }

    /// Air and the couch in it: a sandwich of two carbon skins on foam, its sides turned up.
    fn air(&self, x: f32, y: f32) -> f32 {
        if !self.patient.couch || x.abs() > 205.0 {
            return -1000.0;
        }
        let depth = y - self.couch + 24.0 * (x / 190.0).powi(2);
        let skin = |at: f32| ((depth - at).abs() - 1.1) / self.width;
        let foam = coverage((depth - 15.0).abs() - 15.0, self.width);
        let carbon = (0.5 - skin(1.0)).clamp(0.0, 1.0).max((0.5 - skin(29.0)).clamp(0.0, 1.0)) * (2.2 / self.width).min(1.0);
        mix(mix(-1000.0, -935.0, foam), -180.0, carbon)
    }

    fn tissue(&self, x: f32, y: f32, l: &Level, dome: f32, outside: f32) -> (f32, u8) {
        let (t, w) = (self.torso, self.width);
        let skin = t.skin(x, y, l);
        if skin > 0.5 * w {
            return (outside, BACKGROUND);
        }
        let cage = t.cage(x, y, l);
        let mut hu = 0.0;
        let mut label = if skin <= 0.0 { BODY } else { BACKGROUND };
        if cage > -0.5 * w {
            hu = mix(outside, self.wall([x, y, l.z], l, skin, cage), coverage(skin, w));
        }
        if cage < 0.5 * w {
            let (inner, mark) = self.inside([x, y, l.z], l, cage, dome);
            hu = mix(hu, inner, coverage(cage, w));
            if cage < 0.0 {
                label = mark;
            }
        }
        (hu, label)
    }

    /// Skin, fat and muscle around the cage.
    fn wall(&self, p: Point, l: &Level, skin: f32, cage: f32) -> f32 {
        let (t, w, f) = (self.torso, self.width, &self.torso.field);
        let build = &t.build;
        let grain = f.at(p, 13.0);
        let septa = (1.0 - grain.abs() / 0.10).max(0.0);
        let mut hu = mix(18.0, -104.0 + 8.0 * f.at(p, 34.0) + 38.0 * septa, coverage(skin + 2.0, w));
        let muscle = t.muscle(p[0], p[1], l) + 2.5 * f.at(p, 24.0);
        if build.breast > 0.05 && muscle > 3.0 && p[1] < l.yc {
            // Glandular tissue in the middle of the breast.
            let c = [p[0].abs() - 0.58 * t.a, p[1] - (l.yc - l.b - 30.0), p[2] - t.at(0.40)];
            let g = ellipsoid(c, [34.0, 26.0, 38.0]) + 22.0 * f.at(p, 11.0);
            hu = mix(hu, 30.0, 0.8 * coverage(g, 3.0 * w) * step(6.0, 12.0, -skin));
        }
        if muscle > 0.5 * w {
            return hu;
        }
        // Two sheets of muscle: on the ribs, and the girdle under the skin; fat of the armpit between.
        let front = step(0.0, -0.7, (p[1] - l.yc) / l.b);
        let flank = step(0.75, 0.25, ((p[1] - l.yc) / l.b.max(40.0)).abs()) * l.shoulder;
        let outer = (9.0 + 9.0 * l.shoulder * (0.45 + 0.55 * front)) * (1.0 - 0.75 * flank) * build.muscle + 4.0 * f.at(p, 31.0);
        let on_ribs = 12.5 + 2.0 * build.muscle + if p[1] > l.yc { 14.0 * step(60.0, 30.0, p[0].abs()) } else { 0.0 };
        // Bundles of the girdle and of the neck cross that fat.
        let bundle = 26.0 * (f.at([p[0], p[1], p[2] * 0.35], 30.0) - 0.30 + 0.5 * step(1.0, 1.2, l.u));
        let gap = (-muscle - outer).min(cage - on_ribs).min(-bundle);
        let flesh = 54.0 + 6.0 * grain;
        let flesh = mix(hu, flesh, coverage(gap, w) * coverage(muscle, w));
        // Planes of fat between and within the muscles.
        let plane = (1.0 - (cage - 10.6 - 1.2 * grain).abs() / 1.6).max(0.0) * step(0.2, 0.5, grain.abs() + 0.3);
        let marble = (1.0 - f.at([p[0], p[1], p[2] * 0.45], 15.0).abs() / 0.07).max(0.0) * step(3.0, 7.0, cage - 9.0);
        let lean = (0.35 + 0.014 * build.fat).min(0.75);
        mix(flesh, -85.0, (plane * 0.8).max(0.65 * marble) * lean * step(0.0, 4.0, -muscle))
    }

    /// Everything within the pleura or the abdominal wall that is not a [`Solid`].
    fn inside(&self, p: Point, l: &Level, cage: f32, dome: f32) -> (f32, u8) {
        let (t, w, f) = (self.torso, self.width, &self.torso.field);
        let [x, y, z] = p;
        let mut label = BODY;
        let mut hu = 46.0;
        let cavity = (cage + 4.0).max((z - dome + 3.5) * 0.85);
        if cavity < w {
            hu = mix(hu, -102.0 + 30.0 * (1.0 - f.at(p, 15.0).abs() / 0.12).max(0.0), coverage(cavity, w));
            self.belly(p, cavity, &mut hu, &mut label);
        }
        let chest = (cage + 2.5).max((dome + 1.0 - z) * 0.85);
        if chest < w {
            let strand = (1.0 - f.at(p, 11.0).abs() / 0.12).max(0.0);
            hu = mix(hu, -94.0 + 45.0 * strand, coverage(chest, w));
            let lung = t.lung(x, y, l, cage, dome);
            if lung < w {
                hu = mix(hu, self.air_spaces(p, l, lung), coverage(lung, w));
                if lung < 0.0 {
                    label = LUNG;
                }
            }
            let heart = t.heart;
            let reach = 105.0 * t.build.heart;
            if (x - heart[0]).abs() < reach && (z - heart[2]).abs() < reach {
                let fat = t.pericardium(p);
                if fat < w {
                    hu = mix(hu, -88.0 + 30.0 * (1.0 - f.at(p, 12.0).abs() / 0.1).max(0.0), coverage(fat, w));
                    if fat < 0.0 {
                        label = BODY;
                    }
                }
            }
        }
        (hu, label)
    }

    /// Liver, spleen and stomach.
    fn belly(&self, p: Point, cavity: f32, hu: &mut f32, label: &mut u8) {
        let (t, w, f) = (self.torso, self.width, &self.torso.field);
        let [x, y, z] = p;
        let mut put = |d: f32, value: f32, mark: u8| {
            *hu = mix(*hu, value, coverage(d, w));
            if d < 0.0 {
                *label = mark;
            }
        };
        // The liver ends on an oblique plane: its left lobe crosses the midline in front only.
        // Lower down only the right lobe is left.
        let low = (t.domes[0] - 58.0 - z).max(0.0);
        let edge = 0.80 * x + 0.60 * y - 0.06 * t.a + 11.0 * f.at(p, 46.0) + 0.55 * low;
        let behind = y - t.b * 0.62 + 0.35 * low - 0.25 * x.abs();
        let liver = smooth_max(cavity - 0.5 + 2.5 * f.at(p, 36.0), smooth_max(edge, behind, 12.0), 6.0);
        put(liver, mix(58.0, 104.0, self.lit) + 3.0 * f.at(p, 12.0), LIVER);
        let top = t.domes[1];
        let at = |c: Point, r: Point| ellipsoid([x - c[0], y - c[1], z - c[2]], r);
        let spleen = at([0.74 * t.a, 0.44 * t.b, top - 44.0], [29.0, 44.0, 50.0]).max(cavity + 1.5);
        put(spleen, mix(48.0, 118.0, self.lit) + 3.0 * f.at(p, 12.0), SPLEEN_STOMACH);
        let middle = [0.38 * t.a, -0.06 * t.b, top - 46.0];
        let stomach = (at(middle, [39.0, 40.0, 45.0]) + 3.0 * f.at(p, 22.0)).max(cavity + 2.0);
        if stomach < w {
            let level = middle[1] - 12.0 + 20.0 * self.patient.meal;
            let content = mix(14.0 + 22.0 * f.at(p, 8.0), -990.0, coverage(y - level, w));
            put(stomach, mix(44.0, content, coverage(stomach + 4.0, w)), SPLEEN_STOMACH);
        }
    }

    /// Lung tissue: gravity gradient, texture, emphysema, fissures, dependent density.
    fn air_spaces(&self, p: Point, l: &Level, lung: f32) -> f32 {
        let (t, w, f) = (self.torso, self.width, &self.torso.field);
        let low = (p[1] - l.yc) / l.b;
        let mut hu = t.build.lung_hu + 32.0 * low + 18.0 * f.at(p, 30.0) + 12.0 * f.at(p, 7.0);
        hu += 70.0 * step(-9.0, 0.0, lung) * step(0.55, 1.0, low);
        let e = t.build.emphysema;
        if e > 0.0 {
            let hole = f.at(p, 17.0) + 0.7 * f.at(p, 8.0) + 0.45 * (l.u - 0.5);
            hu = mix(hu, -972.0, e.min(1.0) * step(0.10, 0.45, hole + 0.35 * (e - 0.5)));
        }
        let tilt = if p[0] < 0.0 { 0.72 } else { 0.95 } * t.height / (2.0 * t.b) + 0.0022 * p[0].abs();
        let oblique = p[2] - (t.at(0.37) + tilt * (p[1] - l.yc) + 14.0 * f.at([p[0], p[1], 0.0], 45.0));
        let mut off = (oblique * 0.66).abs();
        if p[0] < 0.0 && oblique > 0.0 {
            off = off.min((p[2] - t.at(0.53) - 6.0 * f.at([p[0], p[1], 50.0], 50.0)).abs());
        }
        let seen = step(-0.5, 0.3, f.at(p, 33.0));
        hu + 330.0 * seen * (1.0 - off / w).max(0.0) * (0.8 / w).min(1.0)
    }

    /// Quantum noise: strongest on the axis, where fewest photons arrive, and streaked between the
    /// shoulders.
    fn noise(&self, x: f32, y: f32, l: &Level, unit: f32) -> f32 {
        let build = &self.torso.build;
        let r2 = (x / (120.0 * build.width)).powi(2) + ((y - 15.0) / (90.0 * build.depth)).powi(2);
        let path = (1.0 + 0.011 * build.fat) * (1.0 + 0.45 * l.shoulder);
        let sigma = self.patient.noise_hu * path * (0.42 + 0.75 * (-r2).exp());
        // Smaller voxels gather fewer photons.
        let sigma = sigma * (3.4 / self.width.max(0.5)).clamp(0.5, 2.2).powf(0.75);
        let streak = if l.shoulder > 0.5 {
            (l.shoulder - 0.5) * 26.0 * (-r2 * 0.5).exp() * self.torso.field.at([x * 0.10, y, l.z], self.width * 1.3)
        } else {
            0.0
        };
        sigma * unit + streak
    }
}
