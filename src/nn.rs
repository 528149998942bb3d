//! Layers: they declare parameters under PyTorch's names and record operations.

use crate::config::Activation;
use crate::error::Result;
use crate::graph::{Graph, Init, Layout, NormValues, Shape, ValueId};
use crate::kernels::activation::Function;

/// How weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Weight and bias uniform in ±1/√(inputs × taps) (PyTorch's default).
    FanIn,
    /// Weight uniform in ±√(6 / (inputs + outputs) / taps) (Glorot and Bengio, 2010), bias 0 (Keras's default).
    Glorot,
}

impl Start {
    /// Initial weight and bias for the given fans.
    fn init(self, fan_in: usize, fan_out: usize) -> (Init, Init) {
        match self {
            Self::FanIn => {
                let b = Init::Uniform((1.0 / (fan_in as f64).sqrt()) as f32);
                (b, b)
            }
            Self::Glorot => (Init::Uniform((6.0 / (fan_in + fan_out) as f64).sqrt() as f32), Init::Constant(0.0)),
        }
    }
}

/// Which statistics a batch norm uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistics {
    /// The batch's, which also move the running ones by this weight (0: not at all).
    Batch(f32),
    /// The running ones.
    Running,
}

/// Convolution with bias, stride 1 and "same" padding, of concatenated sources.
///
/// # Errors
/// [`crate::error::Error::Shape`] when shapes do not fit.
pub fn conv3d(g: &mut Graph, name: &str, start: Start, sources: &[ValueId], out: usize, kernel: usize) -> Result<ValueId> {
    let channels: usize = sources.iter().map(|&s| g.shape(s).channels).sum();
    let taps = kernel * kernel * kernel;
    let (weight, bias) = start.init(channels * taps, out * taps);
    let layout = Layout::Conv { kernel: [kernel; 3], first: out, second: channels };
    let w = g.param(&format!("{name}.weight"), layout, weight)?;
    let b = g.param(&format!("{name}.bias"), Layout::Vector(out), bias)?;
    g.conv3d(name, sources, w, Some(b), out, [kernel; 3], [1; 3], [kernel / 2; 3])
}

/// Transposed convolution 2×2×2 with stride 2 and bias: doubles the grid, keeps the channels.
///
/// # Errors
/// [`crate::error::Error::Shape`] when shapes do not fit.
pub fn up_conv(g: &mut Graph, name: &str, start: Start, x: ValueId) -> Result<ValueId> {
    let c = g.shape(x).channels;
    // PyTorch takes dimension 1 of the weight, the output channels, for the fan-in.
    let (weight, bias) = start.init(c * 8, c * 8);
    let w = g.param(&format!("{name}.weight"), Layout::Conv { kernel: [2; 3], first: c, second: c }, weight)?;
    let b = g.param(&format!("{name}.bias"), Layout::Vector(c), bias)?;
    g.conv_transpose3d(name, x, w, Some(b), c, [2; 3], [2; 3], [0; 3])
}

/// Linear layer on `[N, 1, 1, 1, C]`: a convolution with a single tap.
///
/// # Errors
/// [`crate::error::Error::Shape`] when shapes do not fit.
pub fn linear(g: &mut Graph, name: &str, start: Start, x: ValueId, out: usize) -> Result<ValueId> {
    let c = g.shape(x).channels;
    let (weight, bias) = start.init(c, out);
    let w = g.param(&format!("{name}.weight"), Layout::Linear(out, c), weight)?;
    let b = g.param(&format!("{name}.bias"), Layout::Vector(out), bias)?;
    g.conv3d(name, &[x], w, Some(b), out, [1; 3], [1; 3], [0; 3])
}

/// Batch norm.
///
/// # Errors
/// [`crate::error::Error::Shape`] when shapes do not fit.
pub fn batch_norm(g: &mut Graph, name: &str, x: ValueId, eps: f32, statistics: Statistics) -> Result<ValueId> {
    let c = g.shape(x).channels;
    let v = NormValues {
        gamma: g.param(&format!("{name}.weight"), Layout::Vector(c), Init::Constant(1.0))?,
        beta: g.param(&format!("{name}.bias"), Layout::Vector(c), Init::Constant(0.0))?,
        running_mean: g.state(&format!("{name}.running_mean"), c, 0.0)?,
        running_var: g.state(&format!("{name}.running_var"), c, 1.0)?,
    };
    match statistics {
        Statistics::Batch(momentum) => g.batch_norm(name, x, v, eps, momentum),
        Statistics::Running => g.batch_norm_running(name, x, v, eps),
    }
}

/// Activation; the slopes of a PReLU are called `<name>.weight`.
///
/// # Errors
/// [`crate::error::Error::Shape`] when shapes do not fit.
pub fn activation(g: &mut Graph, name: &str, kind: Activation, x: ValueId) -> Result<ValueId> {
    let c = g.shape(x).channels;
    Ok(match kind {
        Activation::Relu => g.activation(name, Function::Relu, x),
        Activation::Elu => g.activation(name, Function::Elu, x),
        Activation::PRelu => {
            let slope = g.param(&format!("{name}.weight"), Layout::Vector(c), Init::Constant(0.25))?;
            g.prelu(name, x, slope)?
        }
    })
}

/// A single-channel image input `[N, grid, 1]`.
pub fn image(g: &mut Graph, name: &str, batch: usize, grid: [usize; 3]) -> ValueId {
    g.input(name, Shape::new(batch, grid, 1))
}
