//! Heart, great vessels, large airways, oesophagus and what shows of the abdomen.

use super::lungs::lungs;
use super::shape::{Fill, Form, Point, Solid, add, cross, mix, scale, unit};
use super::torso::Torso;
use super::{AIRWAY, BODY, HEART, VESSEL};
use crate::rng::CounterRng;

/// Values that belong to one examination rather than to the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blood {
    /// Blood in the systemic arteries and the left heart, HU.
    pub(super) left: f32,
    /// Blood in the pulmonary arteries and the right heart, HU.
    pub(super) right: f32,
}

/// The solids of a patient so far.
pub(super) struct Scene<'a> {
    pub(super) t: &'a Torso,
    pub(super) out: Vec<Solid>,
}

impl Scene<'_> {
    /// A point `x` left and `y` behind the cage's centre line, scaled with the cage, at height `z`.
    fn at(&self, x: f32, y: f32, z: f32) -> Point {
        let b = &self.t.build;
        [x * b.width, y * b.depth, z]
    }

    /// A tube through `points` (with radii).
    fn tube(&mut self, points: &[(Point, f32)], fill: Fill, label: Option<u8>) {
        for pair in points.windows(2) {
            let ((a, ra), (b, rb)) = (pair[0], pair[1]);
            self.out.push(Solid::new(Form::capsule(a, b, ra, rb), fill, label));
        }
    }

    fn blob(&mut self, centre: Point, radii: Point, fill: Fill, label: Option<u8>) {
        self.out.push(Solid::new(Form::upright(centre, radii), fill, label));
    }
}

/// A smooth curve through `points`: Catmull–Rom, four pieces to a span.
fn curve(points: &[(Point, f32)]) -> Vec<(Point, f32)> {
    let mut out = Vec::new();
    for i in 0..points.len().saturating_sub(1) {
        let p = |k: usize| points[k.min(points.len() - 1)];
        let (a, b, c, d) = (p(i.saturating_sub(1)), p(i), p(i + 1), p(i + 2));
        for s in 0..4 {
            let t = s as f32 / 4.0;
            let of = |k: usize| {
                let (a, b, c, d) = (a.0[k], b.0[k], c.0[k], d.0[k]);
                0.5 * (2.0 * b + (c - a) * t + (2.0 * a - 5.0 * b + 4.0 * c - d) * t * t + (3.0 * b - a - 3.0 * c + d) * t * t * t)
            };
            out.push(([of(0), of(1), of(2)], mix(b.1, c.1, t)));
        }
    }
    out.extend(points.last());
    out
}

/// Everything soft inside the cage except what [`Torso`] defines, in painting order.
pub(super) fn organs(t: &Torso, blood: Blood, rng: &mut CounterRng) -> Vec<Solid> {
    let mut s = Scene { t, out: Vec::new() };
    lungs(&mut s, blood, rng);
    abdomen(&mut s, blood);
    great_veins(&mut s, blood);
    heart(&mut s, blood);
    great_arteries(&mut s, blood, rng);
    airways(&mut s);
    s.out
}

/// The hilum of one lung (`side` -1 right, +1 left).
pub(super) fn hilum(s: &Scene<'_>, side: f32) -> Point {
    let carina = s.t.at(0.70);
    if side < 0.0 { s.at(-44.0, 8.0, carina - 26.0) } else { s.at(48.0, 14.0, carina - 22.0) }
}

fn heart(s: &mut Scene<'_>, blood: Blood) {
    let t = s.t;
    let [lv, rv, ra, la] = t.chambers();
    let k = t.build.heart;
    let axis = unit([0.66, -0.52, -0.50]);
    let across = unit(cross(axis, [0.0, 0.0, 1.0]));
    let up = cross(across, axis);
    let oriented = |c: Point, r: Point| Form::Ellipsoid { centre: c, axes: [axis, across, up], radii: r };
    let grown = |r: Point, by: f32| r.map(|v| (v + by).max(3.0));
    let lv_r = [lv.1[0] * 1.22, lv.1[1] * 0.86, lv.1[1] * 0.88];
    let rv_r = [rv.1[0] * 1.10, rv.1[1] * 0.88, rv.1[2] * 0.95];
    // The tilted ventricles reach out of the upright envelope that carries the fat.
    for form in [oriented(lv.0, grown(lv_r, 3.0)), oriented(rv.0, grown(rv_r, 3.0))] {
        s.out.push(Solid::new(form, Fill::Plain(-85.0), Some(BODY)));
    }
    let muscle = mix(46.0, 95.0, ((blood.left - 45.0) / 140.0).clamp(0.0, 1.0));
    let flesh = |f: Form| Solid::new(f, Fill::Plain(muscle), Some(HEART));
    let pool = |f: Form, hu: f32| Solid::new(f, Fill::Walled { core: hu, wall: hu * 0.9, thick: 4.0, grain: 5.0 }, Some(HEART));
    s.out.push(flesh(oriented(rv.0, rv_r)));
    s.out.push(pool(oriented(rv.0, grown(rv_r, -4.0)), blood.right));
    for ((c, r), hu) in [(ra, blood.right * 0.97), (la, blood.left)] {
        s.out.push(flesh(Form::upright(c, r)));
        s.out.push(pool(Form::upright(c, grown(r, -2.5)), hu));
    }
    s.out.push(flesh(oriented(lv.0, lv_r)));
    s.out.push(pool(oriented(lv.0, [lv_r[0] - 11.0 * k, lv_r[1] - 11.0 * k, lv_r[2] - 11.0 * k]), blood.left));
    // Mitral inflow and aortic outflow open the muscle towards the atrium and the root.
    let inflow = Form::capsule(add(la.0, [6.0 * k, -8.0 * k, -4.0 * k]), add(lv.0, [-6.0 * k, 2.0, 0.0]), 13.0 * k, 12.0 * k);
    s.out.push(Solid::new(inflow, Fill::Plain(blood.left), Some(HEART)));
    let across_right = Form::capsule(add(ra.0, [6.0 * k, -6.0, -4.0]), add(rv.0, [-12.0 * k, 4.0, -2.0]), 13.0 * k, 12.0 * k);
    s.out.push(Solid::new(across_right, Fill::Plain(blood.right), Some(HEART)));
    // Right coronary artery in its groove of fat.
    let groove = add(ra.0, [22.0 * k, -26.0 * k, 6.0]);
    s.blob(groove, [7.0 * k, 8.0 * k, 22.0 * k], Fill::Plain(-80.0), Some(HEART));
    s.tube(&[(add(groove, [0.0, 0.0, 18.0]), 1.8), (add(groove, [-2.0, 0.0, -18.0]), 1.6)], Fill::Plain(blood.left), Some(HEART));
}

fn great_veins(s: &mut Scene<'_>, blood: Blood) {
    let t = s.t;
    let carina = t.at(0.70);
    let [_, _, ra, la] = t.chambers();
    let blue = blood.right;
    let fill = Fill::Plain(blue);
    // Superior vena cava and brachiocephalic veins.
    let meet = s.at(-26.0, -20.0, carina + 32.0);
    s.tube(&[(ra.0, 12.0), (s.at(-28.0, -12.0, carina - 30.0), 10.0), (s.at(-28.0, -14.0, carina), 9.5), (meet, 9.0)], fill, Some(VESSEL));
    let l = t.level(t.at(0.95));
    s.tube(&[(meet, 8.0), (s.at(-34.0, -10.0, carina + 55.0), 7.0), ([-46.0, l.yc - 14.0, t.at(1.12)], 6.5)], fill, Some(VESSEL));
    let left = curve(&[
        (meet, 7.0),
        (s.at(2.0, -34.0, carina + 42.0), 6.5),
        (s.at(30.0, -16.0, carina + 56.0), 6.5),
        ([46.0, l.yc - 14.0, t.at(1.12)], 6.5),
    ]);
    s.tube(&left, fill, Some(VESSEL));
    // Azygos vein beside the spine, arching over the right main bronchus.
    let spine = |u: f32| t.level(t.at(u)).spine;
    let arch = carina + 8.0;
    let azygos = curve(&[
        ([-4.0, spine(0.0) - 19.0, t.at(-0.05)], 3.0),
        ([-7.0, spine(0.3) - 18.0, t.at(0.35)], 3.4),
        ([-10.0, spine(0.6) - 16.0, arch - 22.0], 3.8),
        (s.at(-20.0, 14.0, arch), 4.2),
        (s.at(-28.0, -8.0, arch + 2.0), 4.2),
    ]);
    s.tube(&azygos, fill, Some(VESSEL));
    // Inferior vena cava through the back of the liver.
    let down = |z: f32, y: f32| [-24.0 * t.build.width, y, z];
    let base = t.at(-0.05);
    s.tube(
        &[
            (add(ra.0, [4.0, 4.0, -12.0]), 13.0),
            (down(ra.0[2] - 40.0, ra.0[1] + 22.0), 12.0),
            (down(base - 10.0, spine(0.0) - 24.0), 11.5),
            (down(base - 130.0, spine(0.0) - 22.0), 11.0),
        ],
        fill,
        Some(VESSEL),
    );
    // Pulmonary veins into the left atrium.
    for (x, z) in [(-1.0, 6.0), (-1.0, -8.0), (1.0, 8.0), (1.0, -6.0)] {
        let to = [la.0[0] + x * 52.0 * t.build.width, la.0[1] - 4.0, la.0[2] + 1.6 * z];
        s.tube(&[(add(la.0, [x * 16.0, 0.0, z * 0.6]), 9.0), (to, 6.0)], Fill::Plain(blood.left), Some(VESSEL));
    }
}

fn great_arteries(s: &mut Scene<'_>, blood: Blood, rng: &mut CounterRng) {
    let t = s.t;
    let carina = t.at(0.70);
    let h = t.heart;
    let k = mix(1.0, t.build.heart, 0.5);
    let red = Fill::Walled { core: blood.left, wall: 0.5 * (blood.left + 55.0), thick: 1.6, grain: 3.0 };
    let blue = Fill::Plain(blood.right);
    let spine = |u: f32| t.level(t.at(u)).spine;
    // Pulmonary trunk and its two arteries.
    let fork = s.at(12.0, -14.0, carina - 22.0);
    let trunk =
        curve(&[([h[0] + 6.0, h[1] - 20.0, h[2] + 26.0], 13.5 * k), (s.at(18.0, -34.0, carina - 32.0), 13.5 * k), (fork, 12.5 * k)]);
    s.tube(&trunk, blue, Some(VESSEL));
    let (right, left) = (hilum(s, -1.0), hilum(s, 1.0));
    let right_main = curve(&[(fork, 11.0 * k), (s.at(-12.0, -2.0, carina - 24.0), 10.5 * k), (right, 9.0 * k)]);
    let left_main = curve(&[(fork, 11.5 * k), (s.at(32.0, 0.0, carina - 15.0), 10.5 * k), (left, 9.0 * k)]);
    s.tube(&right_main, blue, Some(VESSEL));
    s.tube(&left_main, blue, Some(VESSEL));
    // Aorta: root, ascending part, arch to the left and back, descending beside the spine.
    let side = 25.0 * mix(1.0, t.build.width, 0.5);
    let w = mix(1.0, t.build.width, 0.5) * (1.0 + 0.004 * t.build.kyphosis);
    let aorta = curve(&[
        ([h[0] - 12.0, h[1] + 2.0, h[2] + 14.0], 14.5 * w),
        (s.at(-6.0, -27.0, carina - 30.0), 16.0 * w),
        (s.at(-11.0, -28.0, carina - 2.0), 15.5 * w),
        (s.at(-3.0, -20.0, carina + 17.0), 14.5 * w),
        (s.at(13.0, 1.0, carina + 25.0), 13.5 * w),
        ([side - 1.0, spine(0.78) - 18.0, carina + 14.0], 13.0 * w),
        ([side + 1.0, spine(0.66) - 10.0, carina - 14.0], 12.5 * w),
        ([side - 2.0, spine(0.45) - 9.0, t.at(0.45)], 12.0 * w),
        ([side - 9.0, spine(0.2) - 16.0, t.at(0.20)], 11.5 * w),
        ([5.0, spine(0.0) - 27.0, t.at(-0.02)], 11.0 * w),
        ([3.0, spine(0.0) - 27.0, t.at(-0.60)], 10.0 * w),
    ]);
    s.tube(&aorta, red, Some(VESSEL));
    // Brachiocephalic, left carotid and left subclavian arteries.
    let inlet = t.level(t.at(0.98));
    let y = inlet.spine - 22.0;
    s.tube(
        &[
            (s.at(-6.0, -18.0, carina + 24.0), 7.0),
            (s.at(-16.0, -6.0, carina + 48.0), 6.5),
            ([-24.0, y, t.at(1.0)], 5.0),
            ([-26.0, y - 6.0, t.at(1.3)], 4.0),
        ],
        red,
        Some(VESSEL),
    );
    s.tube(
        &[(s.at(6.0, -10.0, carina + 28.0), 4.8), (s.at(16.0, -2.0, carina + 52.0), 4.3), ([22.0, y - 4.0, t.at(1.3)], 4.0)],
        red,
        Some(VESSEL),
    );
    let sub_left = curve(&[
        (s.at(17.0, 4.0, carina + 26.0), 5.5),
        (s.at(26.0, 14.0, carina + 50.0), 5.2),
        ([44.0, y + 4.0, t.at(1.03)], 5.0),
        ([0.75 * t.a, inlet.yc - 6.0, t.at(1.05)], 4.5),
    ]);
    s.tube(&sub_left, red, Some(VESSEL));
    let sub_right = curve(&[([-24.0, y, t.at(1.0)], 5.0), ([-46.0, y, t.at(1.04)], 5.0), ([-0.75 * t.a, inlet.yc - 6.0, t.at(1.05)], 4.5)]);
    s.tube(&sub_right, red, Some(VESSEL));
    // Calcified plaques come with age, which the bent back stands for.
    let plaques = if t.build.kyphosis > 7.0 { 7 } else { 1 };
    for _ in 0..plaques {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below the curve's length")]
        let i = (rng.unit() * (aorta.len() - 1) as f32) as usize;
        let (c, r) = aorta[i];
        let turn = rng.unit() * std::f32::consts::TAU;
        let p = add(c, [0.9 * r * turn.cos(), 0.9 * r * turn.sin(), 0.0]);
        s.blob(p, [2.5, 2.5, 3.5], Fill::Plain(650.0), Some(VESSEL));
    }
    // Lymph nodes and strands in the mediastinal fat.
    for _ in 0..9 {
        let x = s.at(mix(-22.0, 22.0, rng.unit()), mix(-36.0, -4.0, rng.unit()), carina + mix(-20.0, 55.0, rng.unit()));
        let r = mix(2.0, 4.2, rng.unit());
        s.blob(x, [r, r * 0.8, r * 1.3], Fill::Plain(38.0), Some(BODY));
    }
}

fn airways(s: &mut Scene<'_>) {
    let t = s.t;
    let carina = t.at(0.70);
    let w = mix(1.0, t.build.width, 0.7);
    let top = t.level(t.at(1.35));
    let mid = t.level(t.at(0.97));
    let fork = s.at(0.0, 6.0, carina);
    let trachea = curve(&[
        ([1.0, top.spine - 31.0, t.at(1.40)], 8.3 * w),
        ([1.0, mid.spine - 33.0, t.at(0.97)], 8.6 * w),
        (s.at(0.0, 3.0, carina + 26.0), 8.8 * w),
        (fork, 8.4 * w),
    ]);
    let mut hila = [hilum(s, -1.0), hilum(s, 1.0)];
    for h in &mut hila {
        h[1] += 9.0;
        h[2] -= 10.0;
    }
    let right = curve(&[(fork, 7.2 * w), (s.at(-22.0, 10.0, carina - 15.0), 6.6 * w), (hila[0], 5.2 * w)]);
    let left = curve(&[(fork, 6.8 * w), (s.at(26.0, 14.0, carina - 19.0), 5.8 * w), (hila[1], 4.8 * w)]);
    let lower = |h: Point, x: f32| {
        let reach = t.build.stature * (1.1 - t.build.dome).min(0.85);
        [(h, 4.8 * w), (add(h, [x * 9.0, 9.0, -26.0 * reach]), 3.6 * w), (add(h, [x * 18.0, 17.0, -50.0 * reach]), 2.3 * w)]
    };
    let upper = |h: Point, x: f32| {
        [(add(h, [-x * 8.0, 0.0, 8.0]), 4.2 * w), (add(h, [x * 12.0, -4.0, 22.0]), 3.2 * w), (add(h, [x * 24.0, -8.0, 38.0]), 2.2 * w)]
    };
    let lobes = [lower(hila[0], -1.0), upper(hila[0], -1.0), lower(hila[1], 1.0), upper(hila[1], 1.0)];
    // Oesophagus behind the trachea and the left atrium, to the stomach.
    let spine = |u: f32| t.level(t.at(u)).spine;
    let gullet = curve(&[
        ([5.0, top.spine - 19.0, t.at(1.40)], 5.5),
        ([5.0, mid.spine - 22.0, t.at(0.97)], 6.5),
        ([5.0, (spine(0.7) - 22.0).max(fork[1] + 15.0), carina], 6.8),
        ([5.0, spine(0.4) - 22.0, t.at(0.45)], 7.2),
        ([12.0, spine(0.2) - 36.0, t.at(0.22)], 7.5),
        ([30.0, spine(0.1) - 50.0, t.domes[1] - 28.0], 8.0),
    ]);
    for pair in gullet.windows(2) {
        let form = Form::Capsule { a: pair[0].0, b: pair[1].0, ra: pair[0].1, rb: pair[1].1, squash: [1.25, 0.85, 1.0] };
        s.out.push(Solid::new(form, Fill::Plain(38.0), Some(BODY)));
    }
    for i in [3, 9] {
        if let Some((p, _)) = gullet.get(i) {
            s.blob(add(*p, [1.0, -1.0, 0.0]), [3.0, 2.2, 9.0], Fill::Plain(-820.0), Some(BODY));
        }
    }
    // All walls first, then all lumens, so that no wall closes a fork.
    let paths: Vec<&[(Point, f32)]> =
        [trachea.as_slice(), right.as_slice(), left.as_slice()].into_iter().chain(lobes.iter().map(|l| l.as_slice())).collect();
    for path in &paths {
        let wall: Vec<_> = path.iter().map(|(p, r)| (*p, r + 1.0 + 0.06 * r)).collect();
        s.tube(&wall, Fill::Plain(30.0), None);
    }
    for path in &paths {
        s.tube(path, Fill::Plain(-990.0), Some(AIRWAY));
    }
}

fn abdomen(s: &mut Scene<'_>, blood: Blood) {
    let t = s.t;
    // Hepatic and portal veins; their label stays the liver's.
    let gate = [-24.0 * t.build.width, t.heart[1] + 26.0, t.domes[0] - 22.0];
    let vein = Fill::Plain(mix(38.0, 128.0, ((blood.right - 42.0) / 115.0).clamp(0.0, 1.0)));
    for (x, y, z) in [(-0.62, 0.30, -38.0), (-0.55, -0.35, -20.0), (-0.12, -0.55, -16.0)] {
        let end = [gate[0] + x * 0.95 * t.a, y * t.b, gate[2] + z];
        let middle = add(scale(add(gate, end), 0.5), [0.0, -4.0, 7.0]);
        s.tube(&curve(&[(gate, 5.0), (middle, 3.8), (end, 1.8)]), vein, None);
    }
    let portal = [-30.0 * t.build.width, 4.0, t.domes[0] - 62.0];
    for (x, y, z) in [(-42.0, 16.0, 14.0), (-38.0, -26.0, 4.0), (10.0, -44.0, 18.0), (-30.0, 22.0, -26.0)] {
        s.tube(&curve(&[(portal, 6.0), (add(portal, [0.55 * x, 0.5 * y + 4.0, 0.4 * z]), 4.2), (add(portal, [x, y, z]), 2.0)]), vein, None);
    }
    let base = t.at(-0.05);
    let spine = t.level(base).spine;
    let lit = ((blood.left - 45.0) / 140.0).clamp(0.0, 1.0);
    // Crura, psoas, kidneys, adrenal limbs, pancreas and bowel loops below the domes.
    for side in [-1.0, 1.0] {
        let crus = Form::Capsule {
            a: [side * 11.0, spine - 26.0, base + 34.0],
            b: [side * 13.0, spine - 10.0, base - 80.0],
            ra: 4.0,
            rb: 6.0,
            squash: [1.0, 1.6, 1.0],
        };
        s.out.push(Solid::new(crus, Fill::Plain(50.0), Some(BODY)));
        let psoas = Form::capsule([side * 24.0, spine + 2.0, base - 30.0], [side * 36.0, spine + 2.0, base - 120.0], 8.0, 18.0);
        s.out.push(Solid::new(psoas, Fill::Plain(54.0), Some(BODY)));
        let kidney = [side * 58.0 * t.build.width, spine + 2.0, base - if side < 0.0 { 62.0 } else { 46.0 }];
        s.blob(kidney, [38.0, 34.0, 64.0], Fill::Plain(-100.0), Some(BODY));
        s.blob(
            kidney,
            [29.0, 27.0, 54.0],
            Fill::Walled { core: mix(30.0, 110.0, lit), wall: mix(32.0, 170.0, lit), thick: 13.0, grain: 6.0 },
            Some(BODY),
        );
        s.blob(add(kidney, [-side * 10.0, -4.0, 0.0]), [13.0, 9.0, 24.0], Fill::Plain(-60.0), Some(BODY));
        let gland = add(kidney, [-side * 22.0, -14.0, 52.0]);
        s.tube(&[(gland, 2.6), (add(gland, [side * 12.0, 12.0, -6.0]), 2.0)], Fill::Plain(mix(25.0, 60.0, lit)), Some(BODY));
    }
    let gas = |level: f32| Fill::Hollow { wall: 42.0, thick: 3.0, fluid: 5.0, level };
    let colon = [0.72 * t.a, -0.40 * t.b, base - 30.0];
    s.blob(colon, [24.0, 22.0, 30.0], gas(colon[1] + 6.0), Some(BODY));
    let second = [0.40 * t.a, -0.64 * t.b, base - 52.0];
    s.blob(second, [26.0, 17.0, 20.0], gas(second[1] - 2.0), Some(BODY));
    let third = [0.05 * t.a, -0.55 * t.b, base - 66.0];
    s.blob(third, [34.0, 18.0, 19.0], gas(third[1] + 4.0), Some(BODY));
    s.tube(
        &[([-14.0, spine - 52.0, base - 58.0], 11.0), ([28.0, spine - 46.0, base - 48.0], 9.0), ([62.0, spine - 26.0, base - 36.0], 8.0)],
        Fill::Plain(mix(38.0, 90.0, lit)),
        Some(BODY),
    );
}
