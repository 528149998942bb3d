//! Vessels and bronchi within the lungs, and nodules.

use super::organs::{Blood, Scene, hilum};
use super::shape::{Fill, Form, Point, Solid, add, cross, mix, scale, sub, unit};
use super::tree::{Branch, cloud, grow};
use super::{AIRWAY, NODULE, Nodule, Texture, VESSEL};
use crate::rng::CounterRng;

/// Arteries with their bronchi, then veins, of both lungs.
pub(super) fn lungs(s: &mut Scene<'_>, blood: Blood, rng: &mut CounterRng) {
    let t = s.t;
    let thin_out = 1.0 - 0.35 * t.build.emphysema;
    for side in [-1.0, 1.0] {
        let root = hilum(s, side);
        // About as many end points per volume in every body.
        let volume = t.build.width * t.build.depth * t.build.stature;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive count")]
        let count = |n: f32| (n * volume * thin_out) as usize;
        let ends = cloud(t, side, count(720.0), 4.0, rng);
        let arteries = grow(root, [side * 0.8, 0.1, -0.2], 8.0, ends, rng);
        for b in &arteries {
            s.out.push(Solid::new(Form::capsule(b.a, b.b, b.ra, b.rb), Fill::Plain(vessel_hu(b, blood.right)), Some(VESSEL)));
        }
        // All walls first, then all lumens, so that no wall closes a fork.
        let bronchi: Vec<_> = arteries.iter().filter(|b| b.feeds >= 14).map(airway_beside).collect();
        for (fill, label, more) in [(Fill::Plain(-80.0), None, 0.8), (Fill::Plain(-985.0), Some(AIRWAY), 0.0)] {
            for b in &bronchi {
                s.out.push(Solid::new(Form::capsule(b.a, b.b, b.ra + more, b.rb + more), fill, label));
            }
        }
        let h = t.heart;
        let low = [h[0] + side * 46.0 * t.build.width, h[1] + 34.0 * t.build.depth, h[2] + 16.0];
        let ends = cloud(t, side, count(500.0), 4.0, rng);
        for b in grow(low, [side, 0.2, 0.0], 4.9, ends, rng) {
            s.out.push(Solid::new(Form::capsule(b.a, b.b, b.ra, b.rb), Fill::Plain(vessel_hu(&b, blood.left)), Some(VESSEL)));
        }
    }
}

fn vessel_hu(b: &Branch, blood: f32) -> f32 {
    // Small vessels carry the same blood; their lower value in the image comes from partial volume.
    if b.feeds > 3 { blood } else { 0.8 * blood }
}

/// The bronchus that runs with an artery.
fn airway_beside(b: &Branch) -> Branch {
    let aside = unit(cross(unit(sub(b.b, b.a)), [0.3, 0.2, 0.93]));
    let off = scale(if aside[0] * b.a[0] > 0.0 { scale(aside, -1.0) } else { aside }, 1.65 * b.ra + 0.7);
    let r = 0.68 * b.ra;
    Branch { a: add(b.a, off), b: add(b.b, off), ra: r, rb: 0.93 * r, feeds: b.feeds }
}

/// The solids of one nodule.
pub(super) fn nodule(n: &Nodule, centre: Point, rng: &mut CounterRng) -> Vec<Solid> {
    let r = n.diameter * 0.5;
    let (hu, core, rough) = match n.texture {
        Texture::Solid => (35.0, 45.0, 0.16),
        Texture::Spiculated => (25.0, 40.0, 0.34),
        Texture::PartSolid => (-560.0, 20.0, 0.24),
        Texture::GroundGlass => (-610.0, -520.0, 0.24),
        Texture::Calcified => (180.0, 520.0, 0.06),
    };
    let mut out = Vec::new();
    if n.texture == Texture::Spiculated {
        for _ in 0..13 {
            let z = 2.0 * rng.unit() - 1.0;
            let turn = rng.unit() * std::f32::consts::TAU;
            let flat = (1.0 - z * z).sqrt();
            let way = [flat * turn.cos(), flat * turn.sin(), z];
            let tip = add(centre, scale(way, r * mix(1.4, 2.1, rng.unit())));
            out.push(Solid::new(Form::capsule(add(centre, scale(way, 0.6 * r)), tip, 1.5, 0.4), Fill::Plain(-60.0), None));
        }
    }
    out.push(Solid::new(Form::upright(centre, [r; 3]), Fill::Rough { hu, core, rough }, Some(NODULE)));
    out
}
