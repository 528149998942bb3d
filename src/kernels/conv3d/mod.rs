//! 3D convolution (cross-correlation, zero padding) and its two gradients.
//!
//! Weights are `[kd, kh, kw, C_out, C_in]` here and PyTorch's `[C_out, C_in, kd, kh, kw]` in
//! files. A transposed convolution is the input gradient of the convolution it is adjoint to,
//! so it needs no kernels of its own. Concatenated sources are each a range of the weight's input
//! channels; two are read at once where the variant can, others one after the other.
//!
//! What stands around a convolution can be done by it: an input may be the unnormalised output of an earlier layer,
//! whose batch norm and ReLU are then applied as it is read ([`Input::norm`]), and the partial statistics for the batch
//! norm that follows come out of the last source's dispatch ([`Output::statistics`]). Activations and their gradients
//! may be stored as f16; weights, biases, statistics and all arithmetic are f32.

mod cases;
pub mod coop;
mod plain;
mod product;
mod product_cases;
pub mod simt;
mod statistics;
mod text;
mod tile;

pub use cases::{cases, reference_backward_input, reference_backward_weight, reference_forward};

use crate::error::{Error, Result};
use crate::gpu::{Caps, Context, Dtype, Kind, Recorder, View};
use crate::kernels::sample_parts;

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

/// A source and where its activations lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Input {
    /// Which of the weight's input channels.
    pub source: Source,
    /// `[N, D, H, W, c]`.
    pub view: View,
    /// f32 `[3, c]`: mean, factor, shift. A value x is then taken as max((x - mean) · factor + shift, 0); padding stays 0.
    pub norm: Option<View>,
}

impl Input {
    /// A source that is taken as it is.
    pub fn plain(source: Source, view: View) -> Self {
        Self { source, view, norm: None }
    }
}

/// Where a forward pass writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Output {
    /// `[N, OD, OH, OW, C_out]`.
    pub view: View,
    /// `[C_out]`, added to every voxel.
    pub bias: Option<View>,
    /// f32 `[partials, 3, C_out]`: count, mean and sum of squared differences from it of disjoint sets of output rows
    /// that together are all of them; [`statistics_partials`] says how many. A count may be 0.
    pub statistics: Option<View>,
}

impl Output {
    /// The output alone.
    pub fn plain(view: View) -> Self {
        Self { view, bias: None, statistics: None }
    }
}

/// One of the three computations of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pass {
    /// Output from input and weight.
    Forward,
    /// Gradient of the input; the forward pass of a transposed convolution.
    InputGrad,
    /// Gradient of the weight.
    WeightGrad,
}

impl Pass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::InputGrad, Self::WeightGrad];

    /// `forward`, `input-grad` or `weight-grad`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::InputGrad => "input-grad",
            Self::WeightGrad => "weight-grad",
        }
    }
}

/// Which implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// One element an invocation; everything.
    Plain,
    /// Register tile; the channels it owns in fours.
    Tile,
    /// Register tile for subgroups of eight that share what they load, eight numbers a lane; needs 64-bit integers.
    Sub8,
    /// Tile in workgroup memory.
    Simt(simt::Tile),
    /// Tile in workgroup memory, multiplied on cooperative matrices.
    Coop(coop::Tile),
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Plain,
        Self::Tile,
        Self::Sub8,
        Self::Simt(simt::TILES[0]),
        Self::Simt(simt::TILES[1]),
        Self::Simt(simt::TILES[2]),
        Self::Simt(simt::TILES[3]),
        Self::Simt(simt::WEIGHT),
        Self::Coop(coop::TILES[0]),
        Self::Coop(coop::TILES[1]),
        Self::Coop(coop::TILES[2]),
        Self::Coop(coop::TILES[3]),
        Self::Coop(coop::TILES[4]),
        Self::Coop(coop::TILES[5]),
        Self::Coop(coop::WEIGHT),
    ];

    /// Its name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tile => "tile",
            Self::Sub8 => "sub8",
            Self::Simt(tile) => tile.name,
            Self::Coop(tile) => tile.name,
        }
    }

    /// Its name, and what it is a twin of.
    fn full_name(self) -> String {
        match self {
            Self::Coop(tile) => tile.full_name(),
            _ => self.name().to_owned(),
        }
    }

    /// Whether it takes two sources at once, so that their sums are never stored in between.
    fn joins(self) -> bool {
        matches!(self, Self::Simt(_) | Self::Coop(_))
    }

    /// The variant called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.name() == name)
    }
}

/// What a variant is chosen for: one pass of a convolution over one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The pass.
    pub pass: Pass,
    /// The convolution.
    pub geom: Geom,
    /// The source.
    pub source: Source,
    /// How the source, or its gradient, is stored.
    pub input: Dtype,
    /// How the output, or its gradient, is stored.
    pub output: Dtype,
}

impl Problem {
    /// The name under which a choice is kept, as `conv3d forward 32>64 1x32x32x32 k3 s1 p1 f32`: channels of the
    /// source and of the output, batch and input grid, kernel, stride, padding, element type (`f16>f32` where input
    /// and output differ).
    pub fn key(&self) -> String {
        let g = &self.geom;
        let three = |v: [usize; 3]| if v == [v[0]; 3] { v[0].to_string() } else { format!("{}x{}x{}", v[0], v[1], v[2]) };
        let [d, h, w] = g.input;
        let dtype = match (self.input, self.output) {
            (a, b) if a == b => name_of(a).to_owned(),
            (a, b) => format!("{}>{}", name_of(a), name_of(b)),
        };
        format!(
            "conv3d {} {}>{} {}x{d}x{h}x{w} k{} s{} p{} {dtype}",
            self.pass.name(),
            self.source.channels,
            g.out_channels,
            g.batch,
            three(g.kernel),
            three(g.stride),
            three(g.padding)
        )
    }

    /// The problem with this key, up to where its source lies among the weight's channels: alone, as the first.
    pub fn parse(key: &str) -> Option<Self> {
        let words: Vec<&str> = key.split(' ').collect();
        let ["conv3d", pass, channels, grid, kernel, stride, padding, dtype] = words[..] else { return None };
        let pass = Pass::ALL.into_iter().find(|p| p.name() == pass)?;
        let sizes = |text: &str| text.split('x').map(|n| n.parse::<usize>().ok()).collect::<Option<Vec<_>>>();
        let three = |text: &str, letter: char| match sizes(text.strip_prefix(letter)?)?[..] {
            [n] => Some([n; 3]),
            [d, h, w] => Some([d, h, w]),
            _ => None,
        };
        let (ci, co) = channels.split_once('>')?;
        let [batch, d, h, w] = sizes(grid)?[..] else { return None };
        let (ci, co) = (ci.parse().ok()?, co.parse().ok()?);
        let geom = Geom::new(batch, [d, h, w], ci, co, three(kernel, 'k')?, three(stride, 's')?, three(padding, 'p')?).ok()?;
        let stored = |name: &str| [Dtype::F32, Dtype::F16].into_iter().find(|&d| name_of(d) == name);
        let (input, output) = dtype.split_once('>').unwrap_or((dtype, dtype));
        Some(Self { pass, geom, source: geom.whole(), input: stored(input)?, output: stored(output)? })
    }

    /// The variants that can do it on an adapter, the one used without a choice first.
    pub fn candidates(&self, caps: &Caps) -> Vec<Variant> {
        let flat = Self { geom: self.geom.flattened(), ..*self };
        let mut out: Vec<Variant> = coop::candidates(caps, &flat).into_iter().map(Variant::Coop).collect();
        // On a processor workgroup memory is only a detour.
        if caps.kind != Kind::Cpu && !caps.subgroup8() {
            out.extend(simt::candidates(caps, &flat).into_iter().map(Variant::Simt));
        }
        if tile::fits(self) {
            if caps.subgroup8() && caps.int64 {
                out.push(Variant::Sub8);
            }
            out.push(Variant::Tile);
        }
        out.push(Variant::Plain);
        out
    }

    /// The variant to use: the one chosen, where it can do it, or the default.
    pub fn variant(&self, rec: &Recorder<'_>) -> Variant {
        let candidates = self.candidates(rec.caps);
        let chosen = rec.choice(&self.key()).and_then(Variant::parse).filter(|v| candidates.contains(v));
        chosen.or(candidates.first().copied()).unwrap_or(Variant::Plain)
    }

    /// Bytes of a sample of the source and of one of the output.
    fn sample_bytes(&self) -> [u64; 2] {
        let g = &self.geom;
        [g.input_sample(self.source.channels) as u64 * self.input.bytes(), g.output_sample() as u64 * self.output.bytes()]
    }

    /// `(first sample, samples)` of the parts in which the batch is done.
    fn parts(&self, caps: &Caps) -> Result<Vec<(usize, usize)>> {
        let g = &self.geom;
        sample_parts(caps, "conv3d", g.batch, &self.sample_bytes(), g.flops_per_sample(self.source.channels))
    }
}

fn name_of(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
    }
}

/// Opens a device, and uses its cooperative matrices only if all kernels that would run on them give the reference's numbers there;
/// otherwise [`Context::distrusted`] says what they gave.
///
/// # Errors
/// As `open`.
pub fn with_proven_matrices(open: impl Fn() -> Result<Context>) -> Result<Context> {
    let ctx = open()?;
    if ctx.caps().cooperative.is_empty() {
        return Ok(ctx);
    }
    Ok(match product_cases::probe(&ctx) {
        None => ctx,
        // A device that has reported a failure goes on reporting it.
        Some(why) if ctx.check().is_err() => open()?.without_matrices(why),
        Some(why) => ctx.without_matrices(why),
    })
}

/// Variants that compute with matrix fragments in plain arithmetic: for tests of the texts that the real ones share with them.
pub fn twins() -> Vec<Variant> {
    let tiles = coop::TILES.into_iter().chain([coop::WEIGHT]);
    tiles.flat_map(|tile| [16, 8].map(|side| Variant::Coop(tile.twin(side)))).collect()
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

    /// An equal convolution over a flat grid, when the kernel is a single tap: long rows suit the tiles. Not longer than
    /// what one invocation may walk, though (`plain::split_count`).
    fn flattened(mut self) -> Self {
        let voxels = self.input.iter().product::<usize>();
        if self.kernel == [1; 3] && self.stride == [1; 3] && self.padding == [0; 3] && voxels <= 1 << 17 {
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

impl Geom {
    /// Whether the kernel cuts the input into blocks without overlap or remainder.
    fn blocks(&self) -> bool {
        self.kernel == self.stride && self.padding == [0; 3] && (0..3).all(|a| self.input[a] == self.output()[a] * self.stride[a])
    }
}

/// `output = conv(sources, weight) + bias`; `inputs` are concatenated along channels.
///
/// Shapes: source `[N, D, H, W, c]`, weight `[kd, kh, kw, C_out, C_in]`, bias `[C_out]`, output `[N, OD, OH, OW, C_out]`.
/// Where several sources are not read at once, the sums so far are kept in the output, as it is stored.
///
/// # Errors
/// [`crate::error::Error::ExceedsLimit`] when one sample does not fit a binding.
pub fn forward(rec: &mut Recorder<'_>, g: &Geom, inputs: &[Input], weight: View, output: &Output) -> Result<()> {
    let variant = |rec: &Recorder<'_>, input: &Input| forward_problem(g, input, output.view.dtype).variant(rec);
    if let [a, b] = inputs
        && variant(rec, a).joins()
        && variant(rec, a) == variant(rec, b)
        && a.view.dtype == b.view.dtype
    {
        return forward_joined(rec, variant(rec, a), g, inputs, weight, output, false);
    }
    for (i, input) in inputs.iter().enumerate() {
        let variant = variant(rec, input);
        let (first, last) = (i == 0, i + 1 == inputs.len());
        let own = Output { bias: output.bias.filter(|_| first), statistics: output.statistics.filter(|_| last), ..*output };
        forward_with(rec, variant, g, *input, weight, &own, !first)?;
    }
    Ok(())
}

fn forward_problem(g: &Geom, input: &Input, output: Dtype) -> Problem {
    Problem { pass: Pass::Forward, geom: *g, source: input.source, input: input.view.dtype, output }
}

/// How many partials [`forward`] writes to [`Output::statistics`] for these inputs and an output stored as `output`.
///
/// # Errors
/// As [`forward`].
pub fn statistics_partials(rec: &Recorder<'_>, g: &Geom, inputs: &[Input], output: Dtype) -> Result<usize> {
    match inputs.last() {
        Some(last) => {
            let problem = forward_problem(g, last, output);
            statistics_partials_with(rec.caps, problem.variant(rec), &problem)
        }
        None => Ok(0),
    }
}

/// How many partials [`forward_with`] writes for `problem` by a given variant.
///
/// # Errors
/// As [`forward`].
pub fn statistics_partials_with(caps: &Caps, variant: Variant, problem: &Problem) -> Result<usize> {
    match variant {
        Variant::Plain => statistics::partials(caps, problem),
        Variant::Tile => tile::partials(caps, false, problem),
        Variant::Sub8 => tile::partials(caps, true, problem),
        Variant::Simt(tile) => simt::partials(caps, tile, problem),
        Variant::Coop(tile) => coop::partials(caps, tile, problem),
    }
}

/// One source of [`forward`] by a given variant; `accumulate` adds to the output.
///
/// # Errors
/// As [`forward`].
pub fn forward_with(
    rec: &mut Recorder<'_>,
    variant: Variant,
    g: &Geom,
    input: Input,
    weight: View,
    output: &Output,
    accumulate: bool,
) -> Result<()> {
    forward_joined(rec, variant, g, &[input], weight, output, accumulate)
}

/// One source, or two by a variant that [joins](Variant::joins) them.
fn forward_joined(
    rec: &mut Recorder<'_>,
    variant: Variant,
    g: &Geom,
    inputs: &[Input],
    weight: View,
    output: &Output,
    accumulate: bool,
) -> Result<()> {
    let input = inputs[0];
    let problem = forward_problem(g, &input, output.view.dtype);
    match variant {
        Variant::Simt(tile) => simt::forward(rec, tile, &problem, inputs, weight, output, accumulate),
        Variant::Coop(tile) => coop::forward(rec, tile, &problem, inputs, weight, output, accumulate),
        Variant::Plain => plain::forward(rec, &problem, input, weight, output, accumulate),
        Variant::Tile => tile::forward(rec, false, &problem, input, weight, output, accumulate),
        Variant::Sub8 => tile::forward(rec, true, &problem, input, weight, output, accumulate),
    }
}

/// `d_input = ` gradient of one source; with `bias` (`[c]`, added to every voxel) this is a transposed convolution.
///
/// Shapes: `d_output` `[N, OD, OH, OW, C_out]`, `d_input` `[N, D, H, W, c]`. Of a source that is normalised on its way
/// in, this is the gradient of what the convolution sees, after the ReLU.
///
/// # Errors
/// [`crate::error::Error::ExceedsLimit`] when one sample does not fit a binding.
pub fn backward_input(
    rec: &mut Recorder<'_>,
    g: &Geom,
    source: Source,
    d_output: View,
    weight: View,
    bias: Option<View>,
    d_input: View,
) -> Result<()> {
    let problem = Problem { pass: Pass::InputGrad, geom: *g, source, input: d_input.dtype, output: d_output.dtype };
    backward_input_with(rec, problem.variant(rec), g, source, d_output, weight, bias, d_input)
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
    let problem = Problem { pass: Pass::InputGrad, geom: *g, source, input: d_input.dtype, output: d_output.dtype };
    match variant {
        Variant::Plain => plain::backward_input(rec, &problem, d_output, weight, bias, d_input),
        Variant::Tile => tile::backward_input(rec, false, &problem, d_output, weight, bias, d_input),
        Variant::Sub8 => tile::backward_input(rec, true, &problem, d_output, weight, bias, d_input),
        Variant::Simt(tile) => simt::backward_input(rec, tile, &problem, d_output, weight, bias, d_input),
        Variant::Coop(tile) => coop::backward_input(rec, tile, &problem, d_output, weight, bias, d_input),
    }
}

/// `d_weight[.., first..first + c] = ` gradient of the weight's channels of one source; the other
/// channels of `d_weight` are left alone.
///
/// # Errors
/// [`crate::error::Error::ExceedsLimit`] when one sample or the weight does not fit a binding.
pub fn backward_weight(rec: &mut Recorder<'_>, g: &Geom, input: Input, d_output: View, d_weight: View) -> Result<()> {
    let problem = Problem { pass: Pass::WeightGrad, geom: *g, source: input.source, input: input.view.dtype, output: d_output.dtype };
    backward_weight_with(rec, problem.variant(rec), g, input, d_output, d_weight)
}

/// [`backward_weight`] by a given variant.
///
/// # Errors
/// As [`backward_weight`].
pub fn backward_weight_with(
    rec: &mut Recorder<'_>,
    variant: Variant,
    g: &Geom,
    input: Input,
    d_output: View,
    d_weight: View,
) -> Result<()> {
    let problem = Problem { pass: Pass::WeightGrad, geom: *g, source: input.source, input: input.view.dtype, output: d_output.dtype };
    match variant {
        Variant::Plain => plain::backward_weight(rec, &problem, input, d_output, d_weight),
        Variant::Tile => tile::backward_weight(rec, false, &problem, input, d_output, d_weight),
        Variant::Sub8 => tile::backward_weight(rec, true, &problem, input, d_output, d_weight),
        Variant::Simt(_) => simt::backward_weight(rec, &problem, input, d_output, d_weight),
        Variant::Coop(tile) => coop::backward_weight(rec, tile, &problem, input, d_output, d_weight),
    }
}
