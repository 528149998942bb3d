//! 3D convolution (cross-correlation, zero padding) and its two gradients.
//!
//! Weights are `[kd, kh, kw, C_out, C_in]` here and PyTorch's `[C_out, C_in, kd, kh, kw]` in
//! files. A transposed convolution is the input gradient of the convolution it is adjoint to,
//! so it needs no kernels of its own. Several concatenated sources are handled one after the
//! other: each is a range of the weight's input channels.

mod cases;
mod plain;
mod tile;

pub use cases::{cases, reference_backward_input, reference_backward_weight, reference_forward};

use crate::error::{Error, Result};
use crate::gpu::{Recorder, View};

/// Geometry of a convolution, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geom {
    /// Samples N.
    pub batch: usize,
    /// Input grid D, H, W.
    pub input: [usize; 3],
    /// Input channels of all sources together.
    pub in_channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel size.
    pub kernel: [usize; 3],
    /// Stride.
    pub stride: [usize; 3],
    /// Zero padding on both sides.
    pub padding: [usize; 3],
}

/// One source of a convolution: channels `first..first + channels` of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// First channel within the weight's input channels.
    pub first: usize,
    /// Channels of this source.
    pub channels: usize,
}

/// Which implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// One element an invocation; everything.
    Plain,
    /// Register tile; the channels it owns in fours.
    Tile,
    /// Register tile with weights broadcast over subgroups of eight.
    Sub8,
}

impl Geom {
    /// Checks the geometry.
    ///
    /// # Errors
    /// [`Error::Shape`] for a zero size or a kernel larger than the padded input.
    pub fn new(
        batch: usize,
        input: [usize; 3],
        in_channels: usize,
        out_channels: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
        padding: [usize; 3],
    ) -> Result<Self> {
        let zero = batch * in_channels * out_channels == 0 || [input, kernel, stride].iter().any(|v| v.contains(&0));
        if zero {
            return Err(Error::shape("conv3d", "a size is zero"));
        }
        for a in 0..3 {
            if input[a] + 2 * padding[a] < kernel[a] {
                return Err(Error::shape("conv3d", format!("kernel {kernel:?} is larger than the input {input:?} padded by {padding:?}")));
            }
        }
        Ok(Self { batch, input, in_channels, out_channels, kernel, stride, padding })
    }

    /// Output grid.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|a| (self.input[a] + 2 * self.padding[a] - self.kernel[a]) / self.stride[a] + 1)
    }

    /// Kernel positions.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.taps() * self.out_channels * self.in_channels
    }

    /// Elements of one input sample with `channels` channels.
    fn input_sample(&self, channels: usize) -> usize {
        self.input.iter().product::<usize>() * channels
    }

    /// Elements of one output sample.
    fn output_sample(&self) -> usize {
        self.output().iter().product::<usize>() * self.out_channels
    }

    /// Multiply-adds × 2 of one sample over `channels` input channels; the same in all three passes.
    pub fn flops_per_sample(&self, channels: usize) -> u64 {
        2 * (self.output().iter().product::<usize>() * self.taps() * self.out_channels * channels) as u64
    }

    /// An equal convolution over a flat grid, when the kernel is a single tap: long rows suit the tiles.
    fn flattened(mut self) -> Self {
        if self.kernel == [1; 3] && self.stride == [1; 3] && self.padding == [0; 3] {
            let voxels = self.input.iter().product::<usize>();
            self.input = [1, 1, voxels];
            if voxels == 1 {
                self.input = [1, 1, self.batch];
                self.batch = 1;
            }
        }
        self
    }

    /// The whole input as one source.
    pub fn whole(&self) -> Source {
        Source { first: 0, channels: self.in_channels }
    }
}

/// The better tile variant for this adapter.
fn tiles(rec: &Recorder<'_>) -> Variant {
    if rec.caps.subgroup8() { Variant::Sub8 } else { Variant::Tile }
}

/// Which variant [`forward`] uses.
pub fn forward_variant(rec: &Recorder<'_>, g: &Geom) -> Variant {
    if tile::fits(g.out_channels) { tiles(rec) } else { Variant::Plain }
}

/// Which variant [`backward_input`] uses.
pub fn backward_input_variant(rec: &Recorder<'_>, g: &Geom, source: Source) -> Variant {
    let same = g.stride == [1; 3] && (0..3).all(|a| g.padding[a] < g.kernel[a]);
    if tile::fits(source.channels) && (same || g.blocks()) { tiles(rec) } else { Variant::Plain }
}

/// Which variant [`backward_weight`] uses.
pub fn backward_weight_variant(rec: &Recorder<'_>, g: &Geom) -> Variant {
    if tile::fits(g.out_channels) { tiles(rec) } else { Variant::Plain }
}

impl Geom {
    /// Whether the kernel cuts the input into blocks without overlap or remainder.
    fn blocks(&self) -> bool {
        self.kernel == self.stride && self.padding == [0; 3] && (0..3).all(|a| self.input[a] == self.output()[a] * self.stride[a])
    }
}

/// `output = conv(sources, weight) + bias`; `sources` are concatenated along channels.
///
/// Shapes: source `[N, D, H, W, c]`, weight `[kd, kh, kw, C_out, C_in]`, bias `[C_out]`, output `[N, OD, OH, OW, C_out]`.
///
/// # Errors
/// [`Error::ExceedsLimit`] when one sample does not fit a binding.
pub fn forward(rec: &mut Recorder<'_>, g: &Geom, sources: &[(Source, View)], weight: View, bias: Option<View>, output: View) -> Result<()> {
    for (i, &(source, input)) in sources.iter().enumerate() {
        let variant = forward_variant(rec, g);
        forward_with(rec, variant, g, source, input, weight, bias.filter(|_| i == 0), output, i > 0)?;
    }
    Ok(())
}

/// One source of [`forward`] by a given variant; `accumulate` adds to the output.
///
/// # Errors
/// As [`forward`].
pub fn forward_with(
    rec: &mut Recorder<'_>,
    variant: Variant,
    g: &Geom,
    source: Source,
    input: View,
    weight: View,
    bias: Option<View>,
    output: View,
    accumulate: bool,
) -> Result<()> {
    match variant {
        Variant::Plain => plain::forward(rec, g, source, input, weight, bias, output, accumulate),
        _ => tile::forward(rec, variant == Variant::Sub8, g, source, input, weight, bias, output, accumulate),
    }
}

/// `d_input = ` gradient of one source; with `bias` (`[c]`, added to every voxel) this is a transposed convolution.
///
/// Shapes: `d_output` `[N, OD, OH, OW, C_out]`, `d_input` `[N, D, H, W, c]`.
///
/// # Errors
/// [`Error::ExceedsLimit`] when one sample does not fit a binding.
pub fn backward_input(
    rec: &mut Recorder<'_>,
    g: &Geom,
    source: Source,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    let variant = backward_input_variant(rec, g, source);
    backward_input_with(rec, variant, g, source, d_output, weight, bias, d_input)
}

/// [`backward_input`] by a given variant.
///
/// # Errors
/// As [`backward_input`].
pub fn backward_input_with(
    rec: &mut Recorder<'_>,
    variant: Variant,
    g: &Geom,
    source: Source,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    match variant {
        Variant::Plain => plain::backward_input(rec, g, source, d_output, weight, bias, d_input),
        _ => tile::backward_input(rec, variant == Variant::Sub8, g, source, d_output, weight, bias, d_input),
    }
}

/// `d_weight[.., first..first + c] = ` gradient of the weight's channels of one source; the other
/// channels of `d_weight` are left alone.
///
/// # Errors
/// [`Error::ExceedsLimit`] when one sample or the weight does not fit a binding.
pub fn backward_weight(rec: &mut Recorder<'_>, g: &Geom, source: Source, input: View, d_output: View, d_weight: View) -> Result<()> {
    let variant = backward_weight_variant(rec, g);
    backward_weight_with(rec, variant, g, source, input, d_output, d_weight)
}

/// [`backward_weight`] by a given variant.
///
/// # Errors
/// As [`backward_weight`].
pub fn backward_weight_with(
    rec: &mut Recorder<'_>,
    variant: Variant,
    g: &Geom,
    source: Source,
    input: View,
    d_output: View,
    d_weight: View,
) -> Result<()> {
    match variant {
        Variant::Plain => plain::backward_weight(rec, g, source, input, d_output, d_weight),
        _ => tile::backward_weight(rec, variant == Variant::Sub8, g, source, input, d_output, d_weight),
    }
}
