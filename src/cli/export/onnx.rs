//! From a recorded network to an ONNX graph.
//!
//! Values are `[N, C, D, H, W]`, as PyTorch has them; parameters keep their names and layouts. Batch and grid are free sizes.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::graph::{Graph, Home, Layout, Node, Op, Shape, Upsampling, ValueId};
use crate::interop::onnx::{self, Attribute, Constant, Size};
use crate::interop::tensors::Tensor;
use crate::kernels::activation::Function;
use crate::task::Output;

/// The ONNX graph that computes the outputs of `graph` from its input; with `squash` also `probabilities` from `logits`.
///
/// # Errors
/// A phrase if the network has an operation that has no counterpart.
pub(super) fn translate(graph: &Graph, tensors: &BTreeMap<String, Tensor>, squash: Option<Output>) -> Result<onnx::Graph, String> {
    let mut t = Translator { graph, tensors, names: HashMap::new(), flat: HashSet::new(), out: onnx::Graph::default() };
    t.out.name = "semgen".to_owned();
    for (name, id) in graph.inputs() {
        t.names.insert(*id, name.clone());
        let value = t.value(name, *id);
        t.out.input.push(value);
    }
    // The name of an output is its value's name.
    for (name, id) in graph.outputs() {
        t.names.insert(*id, name.clone());
    }
    for node in graph.nodes() {
        t.node(node)?;
    }
    for (name, id) in graph.outputs() {
        let value = t.value(name, *id);
        t.out.output.push(value);
        if name == "logits"
            && let Some(output) = squash
        {
            let (op, attributes) = match output {
                Output::Binary | Output::Multilabel => ("Sigmoid", vec![]),
                Output::Multiclass => ("Softmax", vec![Attribute::int("axis", 1)]),
            };
            t.push(op, "probabilities", vec![name.clone()], "probabilities".to_owned(), attributes);
            let value = t.value("probabilities", *id);
            t.out.output.push(value);
        }
    }
    Ok(t.out)
}

struct Translator<'g> {
    graph: &'g Graph,
    tensors: &'g BTreeMap<String, Tensor>,
    names: HashMap<ValueId, String>,
    /// Values that have lost their grid: `[N, C]`.
    flat: HashSet<ValueId>,
    out: onnx::Graph,
}

impl Translator<'_> {
    /// Name of a value that is there; a parameter's tensor is added when it is first used.
    fn operand(&mut self, id: ValueId) -> Result<String, String> {
        if let Some(name) = self.names.get(&id) {
            return Ok(name.clone());
        }
        let (name, _) = self.parameter(id).ok_or("has an operand that nothing computes")?;
        let tensor = &self.tensors[&name];
        self.out.initializer.push(Constant::new(&name, tensor));
        self.names.insert(id, name.clone());
        Ok(name)
    }

    /// Name and layout of a parameter or running statistic.
    fn parameter(&self, id: ValueId) -> Option<(String, Layout)> {
        let p = match self.graph.values()[id.0].home {
            Home::Param(i) => &self.graph.params.list()[i],
            Home::State(i) => &self.graph.state.list()[i],
            _ => return None,
        };
        Some((p.name.clone(), p.layout))
    }

    /// Adds an operation.
    fn push(&mut self, op: &str, label: &str, input: Vec<String>, output: String, attribute: Vec<Attribute>) {
        let node = onnx::Node { input, output: vec![output], name: label.to_owned(), op_type: op.to_owned(), attribute };
        self.out.node.push(node);
    }

    /// An input or output of the model.
    fn value(&self, name: &str, id: ValueId) -> onnx::Value {
        let Shape { grid, channels, .. } = self.graph.shape(id);
        let mut shape = vec![Size::DimParam("batch".into()), Size::DimValue(onnx::size(channels))];
        if grid != [1; 3] {
            shape.extend(["depth", "height", "width"].map(|axis| Size::DimParam(axis.into())));
        } else if !self.flat.contains(&id) {
            shape.extend([1, 1, 1].map(Size::DimValue));
        }
        onnx::Value::floats(name, shape)
    }

    fn node(&mut self, node: &Node) -> Result<(), String> {
        let y = node.outputs[0];
        let output = self.names.entry(y).or_insert_with(|| format!("v{}", y.0)).clone();
        let label = node.label.as_str();
        let unknown = || format!("has the operation {} (`{label}`), which is not exported", node.op.name());
        match &node.op {
            Op::Conv3d { geom, sources } => {
                let (from, parameters) = node.inputs.split_at(sources.len());
                if let Some((_, Layout::Linear(..))) = parameters.first().and_then(|&w| self.parameter(w)) {
                    return self.linear(label, from[0], parameters, output, y);
                }
                let mut inputs = from.iter().map(|&v| self.operand(v)).collect::<Result<Vec<_>, _>>()?;
                if inputs.len() > 1 {
                    let joined = format!("{output}.joined");
                    self.push("Concat", &format!("{label}.concat"), inputs, joined.clone(), vec![Attribute::int("axis", 1)]);
                    inputs = vec![joined];
                }
                for &p in parameters {
                    inputs.push(self.operand(p)?);
                }
                self.push("Conv", label, inputs, output, windows(geom.kernel, geom.stride, geom.padding));
            }
            Op::Conv3dInputGrad { geom, source } if *source == geom.whole() => {
                let inputs = node.inputs.iter().map(|&v| self.operand(v)).collect::<Result<_, _>>()?;
                self.push("ConvTranspose", label, inputs, output, windows(geom.kernel, geom.stride, geom.padding));
            }
            Op::MaxPool(geom) => {
                let x = self.operand(node.inputs[0])?;
                self.push("MaxPool", label, vec![x], output, windows(geom.kernel, geom.stride, geom.padding));
            }
            Op::AvgPool(geom) => {
                let x = self.operand(node.inputs[0])?;
                let mut attributes = windows(geom.kernel, geom.stride, geom.padding);
                attributes.push(Attribute::int("count_include_pad", 1));
                self.push("AveragePool", label, vec![x], output, attributes);
            }
            Op::GlobalAvgPool => {
                let x = self.operand(node.inputs[0])?;
                self.push("GlobalAveragePool", label, vec![x], output, vec![]);
            }
            Op::Upsample(geom, how) => {
                if (0..3).any(|a| geom.output[a] % geom.input[a] != 0) {
                    return Err(unknown());
                }
                let (x, scales) = (self.operand(node.inputs[0])?, format!("{output}.scales"));
                let factors = (0..3).map(|a| (geom.output[a] / geom.input[a]) as f32);
                let factors: Vec<f32> = [1.0, 1.0].into_iter().chain(factors).collect();
                self.out.initializer.push(Constant::new(&scales, &Tensor::f32(vec![5], factors)));
                let attributes = match how {
                    Upsampling::Nearest => vec![
                        Attribute::word("mode", "nearest"),
                        Attribute::word("coordinate_transformation_mode", "asymmetric"),
                        Attribute::word("nearest_mode", "floor"),
                    ],
                    Upsampling::Trilinear => {
                        vec![Attribute::word("mode", "linear"), Attribute::word("coordinate_transformation_mode", "half_pixel")]
                    }
                };
                // The empty name stands for the region of interest, which these modes do not have.
                self.push("Resize", label, vec![x, String::new(), scales], output, attributes);
            }
            Op::BatchNormRunning(geom) => {
                let inputs = node.inputs.iter().map(|&v| self.operand(v)).collect::<Result<_, _>>()?;
                self.push("BatchNormalization", label, inputs, output, vec![Attribute::float("epsilon", geom.eps)]);
            }
            Op::Activation(function) => {
                let x = self.elementwise(node, y)?;
                let (op, attributes) = match function {
                    Function::Relu => ("Relu", vec![]),
                    Function::Elu => ("Elu", vec![Attribute::float("alpha", 1.0)]),
                    Function::Sigmoid => ("Sigmoid", vec![]),
                    Function::Step => return Err(unknown()),
                };
                self.push(op, label, vec![x], output, attributes);
            }
            Op::PRelu => {
                let (x, slope) = (self.operand(node.inputs[0])?, self.parameter(node.inputs[1]).ok_or_else(unknown)?.0);
                // One slope a channel, to be repeated along the axes after it.
                let vector = &self.tensors[&slope];
                let shape = vector.shape.iter().copied().chain([1; 3]).collect();
                self.out.initializer.push(Constant::new(&slope, &Tensor { shape, data: vector.data.clone() }));
                self.push("PRelu", label, vec![x, slope], output, vec![]);
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// The operand of an elementwise operation, whose result `y` has its shape.
    fn elementwise(&mut self, node: &Node, y: ValueId) -> Result<String, String> {
        if self.flat.contains(&node.inputs[0]) {
            self.flat.insert(y);
        }
        self.operand(node.inputs[0])
    }

    /// A linear layer: what has a grid of one voxel loses it first.
    fn linear(&mut self, label: &str, x: ValueId, parameters: &[ValueId], output: String, y: ValueId) -> Result<(), String> {
        let mut inputs = vec![self.operand(x)?];
        if !self.flat.contains(&x) {
            let rows = format!("{output}.rows");
            self.push("Flatten", &format!("{label}.flatten"), inputs, rows.clone(), vec![Attribute::int("axis", 1)]);
            inputs = vec![rows];
        }
        for &p in parameters {
            inputs.push(self.operand(p)?);
        }
        self.push("Gemm", label, inputs, output, vec![Attribute::int("transB", 1)]);
        self.flat.insert(y);
        Ok(())
    }
}

/// Kernel, stride and padding (at the beginnings, then at the ends of the axes).
fn windows(kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Vec<Attribute> {
    vec![
        Attribute::ints("kernel_shape", &kernel),
        Attribute::ints("strides", &stride),
        Attribute::ints("pads", &[padding, padding].concat()),
    ]
}
