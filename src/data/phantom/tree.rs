//! Branching trees that fill the lungs: arteries with their airways, and veins.
//!
//! A tree grows towards a cloud of end points: each branch runs part of the way to the centre of
//! its points, which are then halved across their longest side (after Tawhai, Pullan, Hunter:
//! "Generation of an anatomically based three-dimensional model of the conducting airways", 2000).

use super::shape::{Point, add, cross, dot, length, scale, sub, unit};
use super::torso::Torso;
use crate::rng::CounterRng;

/// One branch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    pub(super) a: Point,
    pub(super) b: Point,
    pub(super) ra: f32,
    pub(super) rb: f32,
    /// End points it feeds.
    pub(super) feeds: usize,
}

/// `count` points in the lung on one side (`side` -1 right, +1 left), at least `margin` mm inside.
pub(super) fn cloud(t: &Torso, side: f32, count: usize, margin: f32, rng: &mut CounterRng) -> Vec<Point> {
    let mut out = Vec::with_capacity(count);
    // The lung fills about a third of its box; the bound only guards against an empty lung.
    for _ in 0..count * 60 {
        if out.len() == count {
            break;
        }
        let p = [side * t.a * rng.unit(), t.b * (2.2 * rng.unit() - 1.1), t.at(-0.05) + 1.06 * t.height * rng.unit()];
        if t.lung_tissue(p) < -margin {
            out.push(p);
        }
    }
    out
}

/// Grows a tree from `root` (radius `radius`, heading `along`) into `points`.
pub(super) fn grow(root: Point, along: Point, radius: f32, mut points: Vec<Point>, rng: &mut CounterRng) -> Vec<Branch> {
    let mut out = Vec::new();
    let total = points.len().max(1);
    extend(root, along, radius, total, &mut points, rng, &mut out, 0);
    out
}

#[expect(clippy::too_many_arguments, reason = "one private recursive step")]
fn extend(from: Point, along: Point, r0: f32, total: usize, points: &mut [Point], rng: &mut CounterRng, out: &mut Vec<Branch>, depth: u32) {
    let n = points.len();
    if n == 0 || depth > 40 {
        return;
    }
    let centre = scale(points.iter().fold([0.0; 3], |s, p| add(s, *p)), 1.0 / n as f32);
    let radius = |feeds: usize| (r0 * (feeds as f32 / total as f32).powf(0.40)).max(0.62);
    let reach = sub(centre, from);
    if n == 1 {
        out.push(Branch { a: from, b: centre, ra: radius(1), rb: 0.5, feeds: 1 });
        return;
    }
    let wobble = [rng.unit() - 0.5, rng.unit() - 0.5, rng.unit() - 0.5];
    let heading = unit(add(add(unit(reach), scale(along, 0.35)), scale(wobble, 0.35)));
    let run = (length(reach) * 0.42).clamp(3.0, 34.0);
    let to = add(from, scale(heading, run));
    // Two pieces bend the branch a little.
    let middle = add(add(scale(add(from, to), 0.5), scale(wobble, 0.16 * run)), scale(along, 0.05 * run));
    let (ra, rb) = (radius(n), radius(n) * 0.93);
    out.push(Branch { a: from, b: middle, ra, rb: ra, feeds: n });
    out.push(Branch { a: middle, b: to, ra, rb, feeds: n });
    // The plane of division holds the branch and the shorter side of the cloud.
    let spread = widest(points, centre, heading);
    points.sort_by(|p, q| dot(sub(*p, centre), spread).total_cmp(&dot(sub(*q, centre), spread)));
    let cut = (n as f32 * (0.36 + 0.28 * rng.unit())) as usize;
    let (left, right) = points.split_at_mut(cut.clamp(1, n - 1));
    extend(to, heading, r0, total, left, rng, out, depth + 1);
    extend(to, heading, r0, total, right, rng, out, depth + 1);
}

/// The direction across `heading` in which the points spread most (power iteration).
fn widest(points: &[Point], centre: Point, heading: Point) -> Point {
    let helper = if heading[2].abs() < 0.8 { [0.0, 0.0, 1.0] } else { [1.0, 0.0, 0.0] };
    let mut v = unit(cross(heading, helper));
    for _ in 0..4 {
        let mut s = [0.0; 3];
        for p in points {
            let q = sub(*p, centre);
            s = add(s, scale(q, dot(q, v)));
        }
        let across = sub(s, scale(heading, dot(s, heading)));
        if length(across) < 1e-3 {
            break;
        }
        v = unit(across);
    }
    v
}
