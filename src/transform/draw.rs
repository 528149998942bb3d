//! What happens to one crop, drawn on the host.
//!
//! A preset is a [`Rules`] table; [`Rules::draw`] turns a stream of random numbers into a [`SampleDraw`].

use crate::config::{FlipAxes, Preset};
use crate::kernels::transform::{PaintBox, Sample};
use crate::rng::{CounterRng, Key, Purpose};

/// Strength of the elastic deformation of volumes (published).
const ALPHA: f32 = 991.0;
/// Strength for images, with which they move as far as volumes do: 3.8 pixels RMS at the centre.
const ALPHA_IMAGE: f32 = 186.0;
/// Shuffling windows of a 64×64×32 crop (Models Genesis).
const WINDOWS: u32 = 10_000;
/// Windows of a 224×224 image that touch the same 82 % of it.
const WINDOWS_IMAGE: u32 = 700;
/// Most boxes of one painting.
const MOST_BOXES: u32 = 5;

/// Where the draws of a batch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draws {
    /// New ones for every sample in every epoch.
    Epoch(u32),
    /// The same for a sample in every epoch.
    Fixed,
    /// Nothing is distorted.
    None,
}

impl Draws {
    /// The draws of validation crops in `epoch` under a `train.val_transform`.
    pub fn validation(mode: crate::config::ValTransform, epoch: u32) -> Self {
        use crate::config::ValTransform;
        match mode {
            ValTransform::Fixed => Self::Fixed,
            ValTransform::Random => Self::Epoch(epoch),
            ValTransform::None => Self::None,
        }
    }

    /// The index of the streams; that of [`Draws::Fixed`] is no epoch's.
    fn index(self) -> Option<u32> {
        match self {
            Self::Epoch(e) => Some(e),
            Self::Fixed => Some(u32::MAX),
            Self::None => None,
        }
    }
}

/// A non-linear intensity map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    /// Inner control points P1x, P1y, P2x, P2y.
    pub points: [f32; 4],
    /// Whether it falls from 1 to 0.
    pub inverted: bool,
}

/// In- or out-painting.
#[derive(Clone, Debug, PartialEq)]
pub struct Paint {
    /// Whether what is *outside* the boxes is painted.
    pub outside: bool,
    /// Whether noise is painted; else each box's `fill`.
    pub noise: bool,
    /// The boxes, at most five.
    pub boxes: Vec<PaintBox>,
}

/// Everything that happens to one crop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleDraw {
    /// Whether x, y, z are reversed, in input and target.
    pub flip: [bool; 3],
    /// Whether it is deformed.
    pub elastic: bool,
    /// Windows of local shuffling.
    pub windows: u32,
    /// The non-linear map.
    pub curve: Option<Curve>,
    /// The painting.
    pub paint: Option<Paint>,
}

impl SampleDraw {
    /// The parameters for the kernels, with the sample's noise streams.
    pub(super) fn sample(&self, seed: u32, sample: u32, draws: Draws) -> Sample {
        let noise = Key::new(seed.into()).purpose(Purpose::Noise, draws.index().unwrap_or(0));
        let mut out = Sample {
            elastic_key: noise.fold(sample, 1).0,
            shuffle_key: noise.fold(sample, 2).0,
            paint_key: noise.fold(sample, 3).0,
            windows: self.windows,
            flip: (0..3).map(|a| u32::from(self.flip[a]) << a).sum(),
            ..Sample::default()
        };
        if let Some(c) = &self.curve {
            (out.curve, out.curve_kind) = (c.points, 1 + u32::from(c.inverted));
        }
        if let Some(p) = &self.paint {
            (out.paint_kind, out.paint_noise) = (1 + u32::from(p.outside), u32::from(p.noise));
            for (to, from) in out.boxes.iter_mut().zip(&p.boxes) {
                *to = *from;
                out.box_count += 1;
            }
        }
        out
    }
}

/// A sentence fragment for captions, for example `flip x, non-linear (inverted), in-paint 3 boxes`.
pub fn describe(draw: &SampleDraw) -> String {
    let mut parts = Vec::new();
    let flipped: String = ["x", "y", "z"].iter().zip(draw.flip).filter(|f| f.1).map(|f| *f.0).collect();
    if !flipped.is_empty() {
        parts.push(format!("flip {flipped}"));
    }
    if draw.elastic {
        parts.push("elastic".into());
    }
    if draw.windows > 0 {
        parts.push(format!("shuffle {} windows", draw.windows));
    }
    if let Some(c) = &draw.curve {
        parts.push(format!("non-linear ({})", if c.inverted { "inverted" } else { "rising" }));
    }
    if let Some(p) = &draw.paint {
        let (name, n) = (if p.outside { "out-paint" } else { "in-paint" }, p.boxes.len());
        parts.push(format!("{name} {n} box{}", if n == 1 { "" } else { "es" }));
    }
    if parts.is_empty() { "unchanged".into() } else { parts.join(", ") }
}

/// Sides of painting boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sides {
    /// Fractions of the axis: hidden `L/6..L/3`, removed `3L/7..4L/7`.
    PyTorch,
    /// Hidden and removed 10 to 20 voxels on every axis.
    Keras,
}

impl Sides {
    /// The range of a box's side on an axis of `length`; `image` when the crop has one slice.
    fn range(self, outside: bool, length: usize, image: bool) -> (i64, i64) {
        let l = length as i64;
        let (low, high) = match self {
            Self::PyTorch if outside => (3 * l / 7, 4 * l / 7),
            Self::PyTorch => (l / 6, l / 3),
            // 35 to 70 of the 224 pixels of an image.
            Self::Keras if image => (35 * l / 224, 70 * l / 224),
            Self::Keras if l >= 26 => (10, 20),
            Self::Keras => (l / 3, l / 2),
        };
        let (low, high) = if outside { (l - high, l - low) } else { (low, high) };
        (low.clamp(1, l), high.clamp(1, l))
    }
}

/// How many boxes a painting has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// One.
    One,
    /// One, and each of up to four more with p = 0.95 as long as the one before came.
    OneOrMore,
    /// As [`Count::OneOrMore`], the first one included.
    AnyNumber,
}

/// One kind of painting.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PaintRules {
    count: Count,
    noise: bool,
}

/// Which distortions a crop gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    /// None.
    Nothing,
    /// Exactly one of shuffling, non-linear, in-painting, out-painting, equally likely.
    OneOfFour,
    /// Shuffling p 0.5, non-linear p 0.9, painting p 0.9 (of it out 0.8, in 0.2), independently.
    Independent,
}

/// A preset for crops of one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rules {
    size: [usize; 3],
    /// The last of the three "axes" that are flipped with equal chance; no flips when absent.
    flip: Option<FlipAxes>,
    /// Strength of the elastic deformation, if any.
    pub(super) elastic: Option<f32>,
    choice: Choice,
    /// Windows of local shuffling.
    pub(super) windows: u32,
    sides: Sides,
    inside: PaintRules,
    outside: PaintRules,
}

impl Rules {
    /// The table of `preset` for crops of `size`; one slice makes an image.
    pub(super) fn new(preset: Preset, flip_axes: FlipAxes, size: [usize; 3]) -> Self {
        let image = size[2] == 1;
        let alpha = if image { ALPHA_IMAGE } else { ALPHA };
        let many = if image { WINDOWS_IMAGE } else { WINDOWS };
        let paint = |count, noise| PaintRules { count, noise };
        let none = Self {
            size,
            flip: None,
            elastic: None,
            choice: Choice::Nothing,
            windows: 0,
            sides: Sides::PyTorch,
            inside: paint(Count::One, true),
            outside: paint(Count::One, true),
        };
        match preset {
            Preset::None => none,
            Preset::Paper => Self {
                choice: Choice::OneOfFour,
                windows: many,
                inside: paint(Count::OneOrMore, false),
                outside: paint(Count::OneOrMore, true),
                ..none
            },
            Preset::OfficialPyTorch => Self { elastic: Some(alpha), choice: Choice::OneOfFour, windows: 5, ..none },
            Preset::OfficialKeras => Self {
                elastic: Some(alpha),
                choice: Choice::OneOfFour,
                windows: 5,
                sides: Sides::Keras,
                inside: paint(Count::One, false),
                outside: paint(Count::One, false),
                ..none
            },
            Preset::ModelsGenesis => Self {
                flip: Some(flip_axes),
                choice: Choice::Independent,
                windows: many,
                inside: paint(Count::AnyNumber, true),
                outside: paint(Count::OneOrMore, true),
                ..none
            },
        }
    }

    /// What happens to crop `sample`.
    pub(super) fn draw(&self, seed: u32, sample: u32, draws: Draws) -> SampleDraw {
        let Some(index) = draws.index() else { return SampleDraw::default() };
        let mut rng = Key::new(seed.into()).purpose(Purpose::Transform, index).fold(sample, 0).rng();
        let mut out = SampleDraw { flip: self.draw_flip(&mut rng), elastic: self.elastic.is_some(), ..SampleDraw::default() };
        match self.choice {
            Choice::Nothing => {}
            Choice::OneOfFour => match rng.unit() {
                r if r <= 0.25 => out.windows = self.windows,
                r if r <= 0.5 => out.curve = Some(draw_curve(&mut rng)),
                r if r <= 0.75 => out.paint = Some(self.draw_paint(&mut rng, false)),
                _ => out.paint = Some(self.draw_paint(&mut rng, true)),
            },
            Choice::Independent => {
                if rng.unit() < 0.5 {
                    out.windows = self.windows;
                }
                if rng.unit() < 0.9 {
                    out.curve = Some(draw_curve(&mut rng));
                }
                if rng.unit() < 0.9 {
                    let outside = rng.unit() < 0.8;
                    out.paint = Some(self.draw_paint(&mut rng, outside));
                }
            }
        }
        out
    }

    /// Up to three flips, each after the last with p = 0.4, of one of three axes. The published
    /// three are the channel axis (no effect), x and y.
    fn draw_flip(&self, rng: &mut CounterRng) -> [bool; 3] {
        let mut flip = [false; 3];
        let Some(axes) = self.flip else { return flip };
        for _ in 0..3 {
            if rng.unit() >= 0.4 {
                break;
            }
            let third = match axes {
                FlipAxes::Xy => None,
                FlipAxes::Xyz => Some(2),
            };
            if let Some(axis) = [Some(0), Some(1), third][usize::try_from(rng.int(0, 2)).unwrap_or(0)] {
                flip[axis] = !flip[axis];
            }
        }
        flip
    }

    fn draw_paint(&self, rng: &mut CounterRng, outside: bool) -> Paint {
        let rules = if outside { self.outside } else { self.inside };
        let (mut count, most) = match rules.count {
            Count::One => (1, 1),
            Count::OneOrMore => (1, MOST_BOXES),
            Count::AnyNumber => (0, MOST_BOXES),
        };
        while count < most && rng.unit() >= 0.05 {
            count += 1;
        }
        Paint { outside, noise: rules.noise, boxes: (0..count).map(|_| self.draw_box(rng, outside)).collect() }
    }

    /// A box with sides by the preset's rule and three voxels to the crop's faces; on axes with
    /// less room, half the room. The slice of an image is not an axis.
    fn draw_box(&self, rng: &mut CounterRng, outside: bool) -> PaintBox {
        let image = self.size[2] == 1;
        let mut out = PaintBox { side: [1; 3], ..PaintBox::default() };
        for axis in 0..if image { 2 } else { 3 } {
            let (low, high) = self.sides.range(outside, self.size[axis], image);
            let side = rng.int(low, high);
            let room = self.size[axis] as i64 - side;
            let margin = if room < 6 { room / 2 } else { 3 };
            let start = rng.int(margin, room - margin);
            out.side[axis] = u32::try_from(side).unwrap_or(1);
            out.start[axis] = u32::try_from(start).unwrap_or(0);
        }
        out.fill = rng.unit();
        out
    }
}

fn draw_curve(rng: &mut CounterRng) -> Curve {
    let inverted = rng.unit() < 0.5;
    Curve { points: std::array::from_fn(|_| rng.unit()), inverted }
}
