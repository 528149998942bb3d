//! Solids as signed distances, and the smooth random field that roughens them.

use crate::rng::Key;

/// A point or vector in patient millimetres: `[Left, Posterior, Superior]`.
pub(super) type Point = [f32; 3];

pub(super) fn add(a: Point, b: Point) -> Point {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

pub(super) fn sub(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub(super) fn scale(a: Point, s: f32) -> Point {
    a.map(|v| v * s)
}

pub(super) fn dot(a: Point, b: Point) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(super) fn cross(a: Point, b: Point) -> Point {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

pub(super) fn length(a: Point) -> f32 {
    dot(a, a).sqrt()
}

pub(super) fn unit(a: Point) -> Point {
    scale(a, 1.0 / length(a).max(1e-6))
}

pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 below `lo`, 1 above `hi`, smooth between.
pub(super) fn step(lo: f32, hi: f32, v: f32) -> f32 {
    let t = ((v - lo) / (hi - lo)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Minimum with a fillet of about `k` mm.
pub(super) fn smooth_min(a: f32, b: f32, k: f32) -> f32 {
    let h = (k - (a - b).abs()).max(0.0) / k;
    a.min(b) - h * h * k * 0.25
}

/// Maximum with a fillet of about `k` mm.
pub(super) fn smooth_max(a: f32, b: f32, k: f32) -> f32 {
    -smooth_min(-a, -b, k)
}

/// Distance from `p` to the segment from `a` to `b`.
pub(super) fn to_segment(p: Point, a: Point, b: Point) -> f32 {
    let (ap, ab) = (sub(p, a), sub(b, a));
    let t = (dot(ap, ab) / dot(ab, ab).max(1e-9)).clamp(0.0, 1.0);
    length(sub(ap, scale(ab, t)))
}

/// The share of a voxel of width `w` on the inner side of a surface at signed distance `d`.
pub(super) fn coverage(d: f32, w: f32) -> f32 {
    (0.5 - d / w).clamp(0.0, 1.0)
}

/// Signed distance (first order) to an ellipsoid at the origin with radii `r`.
pub(super) fn ellipsoid(p: Point, r: Point) -> f32 {
    let q = [p[0] / r[0], p[1] / r[1], p[2] / r[2]];
    let k0 = length(q);
    let k1 = length([q[0] / r[0], q[1] / r[1], q[2] / r[2]]);
    if k1 < 1e-9 { -r[0].min(r[1]).min(r[2]) } else { k0 * (k0 - 1.0) / k1 }
}

/// Linear interpolation in a table of `(position, value)` sorted by position, constant outside.
pub(super) fn profile(table: &[(f32, f32)], at: f32) -> f32 {
    let Some(&(first, value)) = table.first() else { return 0.0 };
    if at <= first {
        return value;
    }
    for pair in table.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if at <= x1 {
            return mix(y0, y1, step(0.0, 1.0, (at - x0) / (x1 - x0)) * 0.5 + (at - x0) / (x1 - x0) * 0.5);
        }
    }
    table.last().map_or(0.0, |p| p.1)
}

/// A smooth periodic random field in `[-1, 1]`: values on a lattice of 32³ points.
pub(super) struct Field {
    values: Vec<f32>,
}

impl Field {
    const SIDE: i32 = 32;

    pub(super) fn new(key: Key) -> Self {
        let mut rng = key.rng();
        Self { values: (0..Self::SIDE.pow(3)).map(|_| rng.unit() * 2.0 - 1.0).collect() }
    }

    /// The field at `p` with features of about `mm` millimetres.
    pub(super) fn at(&self, p: Point, mm: f32) -> f32 {
        let mut base = [0i32; 3];
        let mut t = [0f32; 3];
        for i in 0..3 {
            let q = p[i] / mm;
            let floor = q.floor();
            #[expect(clippy::cast_possible_truncation, reason = "a lattice cell number")]
            {
                base[i] = floor as i32;
            }
            let f = q - floor;
            t[i] = f * f * (3.0 - 2.0 * f);
        }
        let mask = Self::SIDE - 1;
        let row = |dx: i32, dy: i32| {
            let at = |dz: i32| {
                let i = (((base[0] + dx) & mask) * Self::SIDE + ((base[1] + dy) & mask)) * Self::SIDE + ((base[2] + dz) & mask);
                self.values[i as usize]
            };
            mix(at(0), at(1), t[2])
        };
        mix(mix(row(0, 0), row(0, 1), t[1]), mix(row(1, 0), row(1, 1), t[1]), t[0])
    }
}

/// The outline of a solid.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A round cone from `a` (radius `ra`) to `b` (radius `rb`); `squash` divides each axis first,
    /// so that 2 makes the section twice as long along that axis.
    Capsule { a: Point, b: Point, ra: f32, rb: f32, squash: Point },
    /// An ellipsoid with unit `axes`.
    Ellipsoid { centre: Point, axes: [Point; 3], radii: Point },
    /// An upright elliptic cylinder with a waist, tilted by `lean` mm of y per mm of z.
    Column { centre: Point, rx: f32, ry: f32, half: f32, waist: f32, lean: f32 },
    /// A thin sheet of thickness 2 `half[2]`, bent by `bend` mm at the ends of its first axis and
    /// narrowing along its second.
    Plate { centre: Point, axes: [Point; 3], half: Point, bend: f32, taper: f32 },
}

/// What a solid is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill {
    /// One value.
    Plain(f32),
    /// A `wall` of the given thickness around a `core`; the core varies by `grain`.
    Walled { core: f32, wall: f32, thick: f32, grain: f32 },
    /// Subsolid or irregular growth: the outline is pushed in and out by `rough` (of the radius).
    Rough { hu: f32, core: f32, rough: f32 },
    /// A hollow organ: wall, fluid, and gas in front of the plane y = `level`.
    Hollow { wall: f32, thick: f32, fluid: f32, level: f32 },
}

/// A solid of the scene, painted over what was there before.
#[derive(Clone, Debug)]
pub(super) struct Solid {
    pub(super) form: Form,
    pub(super) fill: Fill,
    /// The label it leaves; `None` keeps the label below.
    pub(super) label: Option<u8>,
    pub(super) lo: Point,
    pub(super) hi: Point,
}

impl Solid {
    pub(super) fn new(form: Form, fill: Fill, label: Option<u8>) -> Self {
        let (lo, hi) = form.bounds();
        let pad = match fill {
            Fill::Rough { rough, .. } => (hi[0] - lo[0]) * 0.5 * rough,
            _ => 0.0,
        };
        Self { form, fill, label, lo: lo.map(|v| v - pad), hi: hi.map(|v| v + pad) }
    }

    /// Half the smallest width: what is thinner than a voxel fills it only partly.
    fn thinness(&self) -> f32 {
        match &self.form {
            Form::Capsule { ra, rb, .. } => ra.max(*rb),
            _ => f32::INFINITY,
        }
    }

    /// Paints one voxel of width `w`.
    pub(super) fn paint(&self, p: Point, w: f32, field: &Field, hu: &mut f32, label: &mut u8) {
        let mut d = self.form.distance(p);
        if let Fill::Rough { rough, .. } = self.fill {
            let size = (self.hi[0] - self.lo[0]) * 0.5;
            d += size * rough * (0.6 * field.at(p, size * 0.5) + 0.4 * field.at(p, size * 0.23));
        }
        let mut c = coverage(d, w);
        if c <= 0.0 {
            return;
        }
        let thin = 2.0 * self.thinness() / w;
        if thin < 1.0 {
            c *= thin * thin.sqrt();
        }
        let value = match self.fill {
            Fill::Plain(hu) => hu,
            Fill::Walled { core, wall, thick, grain } => {
                let core = if grain > 0.0 { core + grain * (field.at(p, 4.0) + field.at(p, 2.3)) } else { core };
                mix(wall, core, coverage(d + thick, w))
            }
            Fill::Rough { hu, core, .. } => {
                let size = (self.hi[0] - self.lo[0]) * 0.5;
                mix(hu, core, step(0.15, 0.65, -d / size)) + 12.0 * field.at(p, size * 0.4)
            }
            Fill::Hollow { wall, thick, fluid, level } => {
                let content = mix(fluid + 12.0 * field.at(p, 9.0), -985.0, coverage(p[1] - level, w));
                mix(wall, content, coverage(d + thick + 1.5 * field.at(p, 12.0), w))
            }
        };
        *hu = mix(*hu, value, c);
        if c >= 0.5
            && let Some(l) = self.label
        {
            *label = l;
        }
    }
}

impl Form {
    pub(super) fn capsule(a: Point, b: Point, ra: f32, rb: f32) -> Self {
        Self::Capsule { a, b, ra, rb, squash: [1.0; 3] }
    }

    pub(super) fn upright(centre: Point, radii: Point) -> Self {
        Self::Ellipsoid { centre, axes: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], radii }
    }

    /// Signed distance in mm, of first order near the surface.
    pub(super) fn distance(&self, p: Point) -> f32 {
        match self {
            Self::Capsule { a, b, ra, rb, squash } => {
                let div = |v: Point| [v[0] / squash[0], v[1] / squash[1], v[2] / squash[2]];
                let (ap, ab) = (div(sub(p, *a)), div(sub(*b, *a)));
                let t = (dot(ap, ab) / dot(ab, ab).max(1e-9)).clamp(0.0, 1.0);
                length(sub(ap, scale(ab, t))) - mix(*ra, *rb, t)
            }
            Self::Ellipsoid { centre, axes, radii } => {
                let q = sub(p, *centre);
                ellipsoid([dot(q, axes[0]), dot(q, axes[1]), dot(q, axes[2])], *radii)
            }
            Self::Column { centre, rx, ry, half, waist, lean } => {
                let q = sub(p, *centre);
                let t = (q[2] / half).clamp(-1.0, 1.0);
                let narrow = 1.0 - waist * (1.0 - t * t);
                // A vertebral body is flat behind: the back half is shallower.
                let y = q[1] - lean * q[2];
                let k = ((q[0] / rx).powi(2) + (y / if y > 0.0 { ry * 0.85 } else { *ry }).powi(2)).sqrt();
                let side = (k - narrow) * rx.min(*ry);
                side.max(q[2].abs() - half)
            }
            Self::Plate { centre, axes, half, bend, taper } => {
                let q = sub(p, *centre);
                let (u, v) = (dot(q, axes[0]), dot(q, axes[1]));
                let w = half[0] * (1.0 - taper * (0.5 - 0.5 * v / half[1]).clamp(0.0, 1.0));
                let n = dot(q, axes[2]) - bend * (u / half[0]).powi(2);
                // Rounded edges: the box shrunk by the radius, grown again.
                let round = half[2] * 0.9;
                let out = [u.abs() - w + round, v.abs() - half[1] + round, n.abs() - half[2] + round];
                length(out.map(|d| d.max(0.0))) + out[0].max(out[1]).max(out[2]).min(0.0) - round
            }
        }
    }

    fn bounds(&self) -> (Point, Point) {
        let around = |centre: Point, reach: Point| (sub(centre, reach), add(centre, reach));
        match self {
            Self::Capsule { a, b, ra, rb, squash } => {
                let r = ra.max(*rb);
                let of = |i: usize, hi: bool| {
                    if hi { a[i].max(b[i]) + r * squash[i] } else { a[i].min(b[i]) - r * squash[i] }
                };
                ([of(0, false), of(1, false), of(2, false)], [of(0, true), of(1, true), of(2, true)])
            }
            Self::Ellipsoid { centre, axes, radii } => {
                around(*centre, [0, 1, 2].map(|i| (0..3).map(|k| (axes[k][i] * radii[k]).powi(2)).sum::<f32>().sqrt()))
            }
            Self::Column { centre, rx, ry, half, lean, .. } => around(*centre, [*rx, ry + lean.abs() * half, *half]),
            Self::Plate { centre, axes, half, bend, .. } => {
                let r = [half[0], half[1], half[2] + bend.abs()];
                around(*centre, [0, 1, 2].map(|i| (0..3).map(|k| (axes[k][i] * r[k]).abs()).sum::<f32>()))
            }
        }
    }
}
