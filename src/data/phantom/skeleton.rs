//! Spine, ribs, sternum and shoulder girdle.

use super::shape::{Fill, Form, Point, Solid, add, cross, mix, scale, sub, unit};
use super::torso::Torso;
use super::{BODY, BONE};

const RIB: Fill = Fill::Walled { core: 170.0, wall: 640.0, thick: 1.3, grain: 60.0 };
const THIN: Fill = Fill::Walled { core: 420.0, wall: 700.0, thick: 1.2, grain: 40.0 };
const FLESH: Fill = Fill::Plain(52.0);

/// Height `u` of the middle of thoracic vertebra `i` (0 = T1; below 0 cervical, from 12 lumbar).
fn vertebra(i: i32) -> f32 {
    1.02 - 0.1015 * i as f32
}

/// All bones, with the cartilage and the muscles that hang on the shoulder blade.
pub(super) fn skeleton(t: &Torso) -> Vec<Solid> {
    let mut out = Vec::new();
    shoulders(t, &mut out);
    spine(t, &mut out);
    for side in [-1.0, 1.0] {
        for i in 0..12 {
            rib(t, i, side, &mut out);
        }
    }
    sternum(t, &mut out);
    out
}

fn bone(form: Form, fill: Fill) -> Solid {
    Solid::new(form, fill, Some(BONE))
}

fn spine(t: &Torso, out: &mut Vec<Solid>) {
    let pitch = 0.1015 * t.height;
    for i in -3..16 {
        let z = t.at(vertebra(i));
        let l = t.level(z);
        let lean = (t.level(z + 8.0).spine - t.level(z - 8.0).spine) / 16.0;
        let grow = mix(0.78, 1.12, ((i as f32 + 1.0) / 13.0).clamp(0.0, 1.0)) * mix(1.0, t.build.width, 0.5);
        let (rx, ry) = (18.0 * grow, 14.5 * grow);
        let c = [0.0, l.spine, z];
        let at = |x: f32, y: f32, dz: f32| [x, l.spine + y + lean * dz, z + dz];
        let body = Form::Column { centre: c, rx, ry, half: pitch * 0.41, waist: 0.09, lean };
        let disc = Form::Column { centre: at(0.0, 0.0, pitch * 0.5), rx: rx * 0.97, ry: ry * 0.97, half: pitch * 0.12, waist: -0.03, lean };
        out.push(Solid::new(disc, Fill::Plain(85.0), Some(BODY)));
        out.push(bone(body, Fill::Walled { core: 185.0, wall: 520.0, thick: 1.5, grain: 70.0 }));
        let canal = ry * 0.85 + 8.5;
        for s in [-1.0, 1.0] {
            let joint = at(s * 11.0, canal + 4.0, -2.0);
            out.push(bone(Form::Capsule { a: at(s * 10.5, ry * 0.6, 4.0), b: joint, ra: 3.4, rb: 4.2, squash: [1.0, 1.0, 1.6] }, THIN));
            // Laminae meet behind the canal; transverse processes point back and out.
            out.push(bone(Form::Capsule { a: joint, b: at(0.0, canal + 11.5, -6.0), ra: 3.0, rb: 2.8, squash: [1.0, 1.0, 2.6] }, THIN));
            out.push(bone(Form::capsule(joint, at(s * 31.0 * grow, canal + 13.0, 1.0), 4.0, 3.6), THIN));
            // Facet joints bridge the pedicles.
            let facet = Form::Capsule { a: joint, b: at(s * 12.0, canal + 5.0, -pitch * 0.55), ra: 3.2, rb: 3.0, squash: [1.0; 3] };
            out.push(bone(facet, THIN));
        }
        let tip = at(0.0, canal + 34.0 * mix(1.0, grow, 0.5), -pitch * if i < 10 { 0.75 } else { 0.3 });
        out.push(bone(Form::Capsule { a: at(0.0, canal + 11.0, -5.0), b: tip, ra: 2.4, rb: 3.0, squash: [1.0, 1.0, 2.2] }, THIN));
        // Fat around the dural sac, the sac, the cord.
        let canal_at = |dz: f32| at(0.0, canal, dz);
        let sac =
            |r: f32, hu: f32| Solid::new(Form::capsule(canal_at(-pitch * 0.5), canal_at(pitch * 0.5), r, r), Fill::Plain(hu), Some(BODY));
        out.push(sac(8.2, -40.0));
        out.push(sac(6.6, 15.0));
        if i < 12 {
            out.push(sac(3.6, 42.0));
        }
    }
}

/// A point `off` mm outside the pleura in direction `angle` (0 back, π front), and the unit vector outward.
fn on_cage(t: &Torso, z: f32, angle: f32, side: f32, off: f32) -> Point {
    let l = t.level(z);
    let (dx, dy) = (side * angle.sin() * l.a, angle.cos() * l.b);
    // The cage's distance is measured along the ray, so one correction lands on it.
    let d = t.cage(dx, l.yc + dy, &l);
    let r = (dx * dx + dy * dy).sqrt();
    let k = (r - d + off) / r;
    [dx * k, l.yc + dy * k, z]
}

fn rib(t: &Torso, i: i32, side: f32, out: &mut Vec<Solid>) {
    use std::f32::consts::PI;
    let f = i as f32;
    let top = vertebra(i) + 0.03;
    let drop = [0.10, 0.145, 0.19, 0.22, 0.25, 0.27, 0.285, 0.29, 0.28, 0.26, 0.20, 0.13][usize::try_from(i).unwrap_or(0)];
    let end = [0.86, 0.85, 0.85, 0.85, 0.845, 0.83, 0.80, 0.76, 0.72, 0.68, 0.55, 0.38][usize::try_from(i).unwrap_or(0)] * PI;
    let start = 0.10 * PI + if i < 2 { 0.06 } else { 0.0 };
    // Falls from the neck on, most steeply at the side; no chest is quite even.
    let uneven = 2.5 * t.field.at([side * 40.0, 9.0 * f, 0.0], 13.0);
    let height = |angle: f32| {
        let s = (angle - start).max(0.0) / (end - start);
        t.at(top - drop * (0.5 * s + 0.5 * (0.5 - 0.5 * (s * PI * 0.95).cos()))) + uneven * s
    };
    let size = if i == 0 { 0.95 } else { 1.0 } * mix(1.0, t.build.width, 0.5);
    let radius = |s: f32| mix(3.4, 3.9, s) * size;
    let squash = [1.0, 1.0, if i == 0 { 1.1 } else { 1.75 }];
    let steps = 22;
    let l = t.level(t.at(top));
    let mut a = [side * 17.0, l.spine + 12.0, t.at(top)];
    for k in 0..=steps {
        let s = k as f32 / steps as f32;
        let angle = mix(start, end, s);
        let b = on_cage(t, height(angle), angle, side, 5.6);
        let form = Form::Capsule { a, b, ra: radius(s), rb: radius(s), squash };
        out.push(bone(form, RIB));
        a = b;
    }
    if i >= 10 {
        return;
    }
    // Cartilage climbs to the sternum, or to the costal margin.
    let target = if i < 7 { 0.90 - 0.083 * f } else { 0.375 - 0.03 * (f - 6.0) };
    let (z0, z1) = (height(end), t.at(target.max(0.30)));
    let finish = if i < 7 { 0.955 } else { 0.90 - 0.02 * (f - 6.0) } * PI;
    for k in 1..=8 {
        let s = k as f32 / 8.0;
        let b = on_cage(t, mix(z0, z1, s * s), mix(end, finish, s), side, 6.2);
        let form = Form::Capsule { a, b, ra: 4.2, rb: 4.2, squash: [1.0, 1.0, 1.4] };
        out.push(Solid::new(form, Fill::Walled { core: 75.0, wall: 130.0, thick: 1.2, grain: 12.0 }, Some(BODY)));
        a = b;
    }
}

fn sternum(t: &Torso, out: &mut Vec<Solid>) {
    let fill = Fill::Walled { core: 130.0, wall: 430.0, thick: 1.3, grain: 50.0 };
    let front = |u: f32| {
        let l = t.level(t.at(u));
        [0.0, l.yc - l.b - 5.5, t.at(u)]
    };
    let plate = |u0: f32, u1: f32, half: f32, thick: f32, taper: f32| {
        let (p, q) = (front(u0), front(u1));
        let up = unit(sub(q, p));
        let x = [1.0, 0.0, 0.0];
        Form::Plate {
            centre: scale(add(p, q), 0.5),
            axes: [x, up, cross(up, x)],
            half: [half, 0.5 * (t.at(u1) - t.at(u0)) / up[2].max(0.3), thick],
            bend: 0.0,
            taper,
        }
    };
    out.push(bone(plate(0.40, 0.755, 17.0, 4.8, 0.15), fill));
    out.push(bone(plate(0.765, 0.91, 29.0, 5.6, 0.42), fill));
    out.push(bone(Form::capsule(front(0.40), front(0.35), 4.0, 2.5), fill));
    for side in [-1.0, 1.0] {
        let l = t.level(t.at(0.96));
        let a = [side * 24.0, l.yc - l.b - 9.0, t.at(0.91)];
        let m = [side * 62.0, l.yc - l.b - 6.0, t.at(0.975)];
        let b = [side * 0.92 * t.a, l.yc + 14.0, t.at(1.07)];
        out.push(bone(Form::capsule(a, m, 8.0, 5.8), RIB));
        out.push(bone(Form::capsule(m, b, 5.8, 6.4), RIB));
    }
}

fn shoulders(t: &Torso, out: &mut Vec<Solid>) {
    for side in [-1.0, 1.0] {
        // Arms raised: the blade has swung out along the back of the cage.
        let low = on_cage(t, t.at(0.50), 0.36 * std::f32::consts::PI, side, 22.0);
        let medial = on_cage(t, t.at(0.93), 0.20 * std::f32::consts::PI, side, 26.0);
        let mirror = |p: Point| [side * p[0], p[1], p[2]];
        let socket = mirror(t.socket());
        let up = unit(sub(scale(add(medial, socket), 0.5), low));
        let across = unit(sub(socket, medial));
        let normal = unit(cross(across, up));
        let across = unit(cross(up, normal));
        let span = sub(socket, medial);
        let half_width = 0.5 * (span[0] * span[0] + span[1] * span[1]).sqrt();
        let top = scale(add(medial, socket), 0.5);
        let half_height = 0.5 * super::shape::length(sub(top, low));
        let centre = scale(add(top, low), 0.5);
        let bend = -side * 5.0;
        let plate = |thick: f32, shift: f32, grow: f32| Form::Plate {
            centre: add(centre, scale(normal, shift)),
            axes: [across, up, normal],
            half: [half_width * grow, half_height * grow, thick],
            bend,
            taper: 0.78,
        };
        let m = t.build.muscle;
        let meat = Form::Ellipsoid {
            centre: add(centre, scale(up, half_height * 0.25)),
            axes: [across, up, normal],
            radii: [half_width * 1.05, half_height * 1.02, 15.0 * m],
        };
        out.push(Solid::new(meat, FLESH, Some(BODY)));
        out.push(Solid::new(plate(5.5 * m, 0.0, 1.0), FLESH, Some(BODY)));
        out.push(bone(plate(1.7, 0.0, 0.96), Fill::Walled { core: 480.0, wall: 640.0, thick: 1.0, grain: 60.0 }));
        // Lateral border, spine and acromion, socket, humeral head and shaft.
        let rim = Fill::Walled { core: 300.0, wall: 720.0, thick: 1.4, grain: 50.0 };
        out.push(bone(Form::capsule(low, socket, 3.4, 5.5), rim));
        let back = if normal[1] > 0.0 { normal } else { scale(normal, -1.0) };
        let root = add(medial, scale(sub(low, medial), 0.2));
        let acromion = add(socket, [side * 8.0, 20.0, 12.0]);
        out.push(bone(Form::capsule(root, add(scale(add(root, acromion), 0.5), scale(back, 10.0)), 2.5, 4.0), rim));
        out.push(bone(Form::capsule(add(scale(add(root, acromion), 0.5), scale(back, 10.0)), acromion, 4.0, 6.0), rim));
        out.push(bone(Form::capsule(socket, add(socket, [side * 4.0, 0.0, 2.0]), 12.0, 13.0), rim));
        let [head, elbow] = t.arm().map(mirror);
        let marrow = Fill::Walled { core: 150.0, wall: 620.0, thick: 1.8, grain: 60.0 };
        let deltoid = Form::capsule(add(head, [0.0, 0.0, -16.0]), elbow, t.arm_radius(), t.arm_radius());
        out.insert(0, Solid::new(deltoid, FLESH, Some(BODY)));
        out.push(bone(Form::upright(head, [23.0, 23.0, 24.0]), marrow));
        out.push(bone(Form::capsule(head, elbow, 14.0, 11.5), marrow));
    }
}
