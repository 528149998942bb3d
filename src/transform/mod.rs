//! Image transformations: the distorted network input and the restoration target of a batch.
//!
//! The host draws what happens to each crop from (seed, epoch, sample), so that any sample can be
//! reproduced alone; the device does it ([`crate::kernels::transform`]). Flips act on input and
//! target alike, every distortion on the input only, and the crops themselves are never changed.

mod draw;
#[cfg(test)]
mod tests;

use crate::config::{FlipAxes, Preset};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Caps, Context, Dispatch, Program, Recorder, View};
use crate::kernels::transform::{Geometry, Sample, distort, elastic, flip};

use draw::Rules;
pub use draw::{Curve, Draws, Paint, SampleDraw, describe};

const CROPS: BufferId = BufferId(0);
const SAMPLES: BufferId = BufferId(1);
const INPUT: BufferId = BufferId(2);
const TARGET: BufferId = BufferId(3);

/// A preset made ready for batches of one shape.
#[derive(Debug)]
pub struct Augment {
    rules: Rules,
    geometry: Geometry,
    seed: u32,
    crops: Buffer,
    samples: Buffer,
    /// With every distortion the preset can draw.
    distorted: Program,
    /// Copies the crops to input and target.
    plain: Program,
    /// Keeps what the programs work in.
    _scratch: Vec<Buffer>,
}

/// What a preset becomes on an adapter.
struct Recorded {
    plain: Vec<Dispatch>,
    distorted: Vec<Dispatch>,
    scratch: Vec<u64>,
}

impl Recorded {
    fn new(caps: &Caps, rules: &Rules, geometry: &Geometry) -> Result<Self> {
        let values = geometry.batch() * geometry.voxels();
        let mut rec = Recorder::new(caps);
        let parameters = View::whole(SAMPLES, geometry.batch() * Sample::WORDS);
        let [from, to, kept] = [CROPS, INPUT, TARGET].map(|b| View::whole(b, values));
        flip(&mut rec, geometry, parameters, from, kept)?;
        flip(&mut rec, geometry, parameters, from, to)?;
        let plain = rec.dispatches.split_off(0);

        flip(&mut rec, geometry, parameters, from, kept)?;
        let mut image = kept;
        if let Some(alpha) = rules.elastic {
            image = rec.scratch(values);
            elastic(&mut rec, geometry, alpha, parameters, kept, image)?;
        }
        distort(&mut rec, geometry, rules.windows as usize, parameters, image, to)?;
        Ok(Self { plain, distorted: rec.dispatches, scratch: rec.scratch })
    }
}

impl Augment {
    /// Prepares `preset` for batches of `batch` crops of `size` (x, y, z); one slice makes an image.
    ///
    /// Each [`Augment::apply`] overwrites `input` (distorted crops) and `target` (the crops, flipped
    /// where the input is), both `[batch, x, y, z, 1]` in f32. `flip_axes` matters to presets that flip.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty shape or buffers of another size, [`Error::ExceedsLimit`] when
    /// one crop does not fit the adapter, [`Error::Gpu`] when the device fails.
    #[expect(clippy::too_many_arguments, reason = "every one of them is fixed for the life of the object and has no default")]
    pub fn new(
        ctx: &Context,
        preset: Preset,
        flip_axes: FlipAxes,
        batch: usize,
        size: [usize; 3],
        seed: u32,
        input: &Buffer,
        target: &Buffer,
    ) -> Result<Self> {
        let geometry = Geometry::new(batch, size)?;
        let values = batch * geometry.voxels();
        let bytes = values as u64 * 4;
        for (name, buffer) in [("input", input), ("target", target)] {
            if buffer.bytes() != bytes {
                let found = buffer.bytes();
                return Err(Error::shape("transform", format!("the {name} has {found} bytes, {batch} crops of {size:?} have {bytes}")));
            }
        }
        let rules = Rules::new(preset, flip_axes, size);
        let crops = ctx.buffer("semgen.transform.crops", bytes)?;
        let samples = ctx.buffer("semgen.transform.samples", (batch * size_of::<Sample>()) as u64)?;

        let Recorded { plain, distorted, scratch } = Recorded::new(ctx.caps(), &rules, &geometry)?;
        let scratch = scratch.iter().map(|&b| ctx.buffer("semgen.transform.scratch", b)).collect::<Result<Vec<_>>>()?;
        let lookup = |id: BufferId| match (id, id.as_scratch()) {
            (_, Some(k)) => &scratch[k],
            (CROPS, _) => &crops,
            (SAMPLES, _) => &samples,
            (INPUT, _) => input,
            _ => target,
        };
        let distorted = Program::new(ctx, &distorted, lookup)?;
        let plain = Program::new(ctx, &plain, lookup)?;
        Ok(Self { rules, geometry, seed, crops, samples, distorted, plain, _scratch: scratch })
    }

    /// Bytes of device memory that [`Augment::new`] takes with these arguments.
    ///
    /// # Errors
    /// As [`Augment::new`] for the shape and the limits.
    pub fn device_bytes(caps: &Caps, preset: Preset, flip_axes: FlipAxes, batch: usize, size: [usize; 3]) -> Result<u64> {
        let geometry = Geometry::new(batch, size)?;
        let recorded = Recorded::new(caps, &Rules::new(preset, flip_axes, size), &geometry)?;
        let crops = (batch * geometry.voxels()) as u64 * 4;
        Ok(crops + (batch * size_of::<Sample>()) as u64 + recorded.scratch.iter().sum::<u64>())
    }

    /// What [`Augment::apply`] does to crop `sample`.
    pub fn draw(&self, sample: u32, draws: Draws) -> SampleDraw {
        self.rules.draw(self.seed, sample, draws)
    }

    /// What [`Augment::apply`] replays for a batch in which something is distorted.
    pub fn program(&self) -> &Program {
        &self.distorted
    }

    /// Submits the transformation of a batch: uploads the original `crops` (`[batch, x, y, z]`)
    /// and what was drawn for `samples` (the crops' ids), then replays the kernels. Returns without waiting.
    ///
    /// # Errors
    /// [`Error::Shape`] when the batch has another size, [`Error::Gpu`] when the device has failed.
    pub fn apply(&self, ctx: &Context, crops: &[f32], samples: &[u32], draws: Draws) -> Result<()> {
        let (batch, values) = (self.geometry.batch(), self.geometry.batch() * self.geometry.voxels());
        if crops.len() != values || samples.len() != batch {
            let found = (crops.len(), samples.len());
            return Err(Error::shape("transform", format!("{found:?} values and ids given, expected {:?}", (values, batch))));
        }
        let drawn: Vec<SampleDraw> = samples.iter().map(|&s| self.draw(s, draws)).collect();
        let parameters: Vec<Sample> = drawn.iter().zip(samples).map(|(d, &s)| d.sample(self.seed, s, draws)).collect();
        ctx.upload(&self.crops, 0, crops);
        ctx.upload(&self.samples, 0, &parameters);
        if drawn.iter().all(|d| *d == SampleDraw::default()) { self.plain.run(ctx) } else { self.distorted.run(ctx) }
    }
}
