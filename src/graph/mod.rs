//! Networks as data: values with shapes, operations between them, named parameters.
//!
//! Model code records operations; shapes are inferred and checked while recording, so an error
//! points at the layer. [`Graph::backward`] appends the gradient as ordinary operations. Nothing here
//! touches a device.

mod backprop;
mod build;
mod op;
mod params;
mod precision;

pub use build::NormValues;
pub use op::{FusedConv, Head, Op, Upsampling};
pub use params::{Init, Layout, Param, Tensors};
pub use precision::LOSS_SCALE;

use crate::error::{Error, Result};
use crate::gpu::Dtype;
use crate::kernels::batch_norm;

/// Shape of a value: `[N, D, H, W, C]`, C innermost. Vectors are `[1, 1, 1, 1, n]`, per-sample numbers `[N, 1, 1, 1, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Samples N.
    pub batch: usize,
    /// Grid D, H, W.
    pub grid: [usize; 3],
    /// Channels C.
    pub channels: usize,
}

impl Shape {
    /// `[batch, grid, channels]`.
    pub fn new(batch: usize, grid: [usize; 3], channels: usize) -> Self {
        Self { batch, grid, channels }
    }

    /// A vector of `n` elements.
    pub fn vector(n: usize) -> Self {
        Self::new(1, [1; 3], n)
    }

    /// The vectors that a batch norm of `channels` channels normalises with.
    pub fn norm(channels: usize) -> Self {
        Self::new(1, [1, 1, batch_norm::NORM], channels)
    }

    /// One number a sample.
    pub fn per_sample(batch: usize) -> Self {
        Self::new(batch, [1; 3], 1)
    }

    /// Voxels of the grid.
    pub fn voxels(&self) -> usize {
        self.grid.iter().product()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.batch * self.voxels() * self.channels
    }

    /// Whether there is no element; never for a recorded value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [d, h, w] = self.grid;
        write!(f, "{}×{d}×{h}×{w}×{}", self.batch, self.channels)
    }
}

/// Handle of a value in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// Where a value lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Filled by the caller before each run.
    Input,
    /// The parameter of that index.
    Param(usize),
    /// The gradient of the parameter of that index.
    Grad(usize),
    /// The non-trained state (running statistics) of that index.
    State(usize),
    /// Computed by an operation, gone after its last use.
    Computed,
}

/// A value.
#[derive(Clone, Debug)]
pub struct Value {
    /// Shape.
    pub shape: Shape,
    /// Where it lives.
    pub home: Home,
    /// How its elements are stored; see [`Graph::stored_in`].
    pub dtype: Dtype,
}

impl Value {
    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.shape.len() as u64 * self.dtype.bytes()
    }
}

/// An operation with its operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands, in the order that [`Op`] documents.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// The layer that recorded it.
    pub label: String,
}

/// The place among `nodes` of the operation that computes `v`; none computes inputs and parameters.
pub fn producer(nodes: &[Node], v: ValueId) -> Option<usize> {
    nodes.iter().position(|n| n.outputs.contains(&v))
}

/// A recorded network.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
    /// Trained parameters.
    pub params: Tensors,
    /// Running statistics.
    pub state: Tensors,
    inputs: Vec<(String, ValueId)>,
    outputs: Vec<(String, ValueId)>,
    /// The constant that the gradient starts from, if there is a gradient.
    seed: Option<ValueId>,
    /// Parameters that get no gradient.
    frozen: Vec<bool>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The shape of a value.
    pub fn shape(&self, v: ValueId) -> Shape {
        self.values[v.0].shape
    }

    /// All values.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// All operations in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Named inputs.
    pub fn inputs(&self) -> &[(String, ValueId)] {
        &self.inputs
    }

    /// Named outputs; they survive the run.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// Declares an input that the caller fills before each run.
    pub fn input(&mut self, name: &str, shape: Shape) -> ValueId {
        let id = self.value(shape, Home::Input);
        self.inputs.push((name.to_owned(), id));
        id
    }

    /// Declares that `value` can be read after a run.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.to_owned(), value));
    }

    /// The value of the trained parameter `name`, declared on first use.
    ///
    /// # Errors
    /// [`Error::Shape`] when it exists with another layout.
    pub fn param(&mut self, name: &str, layout: Layout, init: Init) -> Result<ValueId> {
        let index = self.params.declare(name, layout, init)?;
        self.frozen.resize(self.params.list().len(), false);
        Ok(self.home(Shape::vector(self.params.list()[index].len()), Home::Param(index)))
    }

    /// Parameters declared so far whose name is `chosen` get no gradient: [`Graph::backward`] takes them for constants.
    pub fn freeze(&mut self, chosen: impl Fn(&str) -> bool) {
        for (frozen, p) in self.frozen.iter_mut().zip(self.params.list()) {
            *frozen |= chosen(&p.name);
        }
    }

    /// Whether the parameter of that index gets no gradient.
    pub fn is_frozen(&self, index: usize) -> bool {
        self.frozen[index]
    }

    /// The value of the running statistic `name`, declared on first use.
    ///
    /// # Errors
    /// [`Error::Shape`] when it exists with another layout.
    pub fn state(&mut self, name: &str, len: usize, init: f32) -> Result<ValueId> {
        let index = self.state.declare(name, Layout::Vector(len), Init::Constant(init))?;
        Ok(self.home(Shape::vector(len), Home::State(index)))
    }

    /// The one value with that home.
    fn home(&mut self, shape: Shape, home: Home) -> ValueId {
        match self.values.iter().position(|v| v.home == home) {
            Some(i) => ValueId(i),
            None => self.value(shape, home),
        }
    }

    fn value(&mut self, shape: Shape, home: Home) -> ValueId {
        self.values.push(Value { shape, home, dtype: Dtype::F32 });
        ValueId(self.values.len() - 1)
    }

    /// Records an operation whose results have the given shapes.
    fn push(&mut self, label: &str, op: Op, inputs: Vec<ValueId>, shapes: &[Shape]) -> Vec<ValueId> {
        let outputs: Vec<_> = shapes.iter().map(|&s| self.value(s, Home::Computed)).collect();
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), label: label.to_owned() });
        outputs
    }

    /// As [`Graph::push`], for one result.
    fn push1(&mut self, label: &str, op: Op, inputs: Vec<ValueId>, shape: Shape) -> ValueId {
        self.push(label, op, inputs, &[shape])[0]
    }

    /// The same network by other operations: all values, inputs and outputs stay.
    pub(crate) fn rewritten(&self, nodes: Vec<Node>) -> Self {
        Self { nodes, ..self.clone() }
    }

    /// A new value like `v`, computed by an operation of its own.
    pub(crate) fn twin(&mut self, v: ValueId) -> ValueId {
        self.values.push(Value { home: Home::Computed, ..self.values[v.0].clone() });
        ValueId(self.values.len() - 1)
    }

    fn expect(&self, op: &'static str, what: &str, value: ValueId, shape: Shape) -> Result<()> {
        let found = self.shape(value);
        if found == shape { Ok(()) } else { Err(Error::shape(op, format!("{what} is {found}, expected {shape}"))) }
    }
}
