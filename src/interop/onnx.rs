//! ONNX models as ONNX's own messages (onnx.proto, fields by number), as far as networks need them.
//!
//! Only what is written is declared; a reader skips the rest, as Protocol Buffers have it.

use prost::Message;

use super::tensors::{Data, Tensor};

/// Version of the file format: that of ONNX 1.12.
const IR_VERSION: i64 = 8;
/// Version of the operators.
pub const OPSET: i64 = 17;

/// A model file.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Entry>,
}

/// Operators that a model uses.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// Something that is said about a model.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Operations in the order in which they can be computed.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Constant>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Value>,
}

/// An operation.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

/// A setting of an operation.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

impl Attribute {
    fn new(name: &str, r#type: i32) -> Self {
        Self { name: name.to_owned(), r#type, ..Self::default() }
    }

    /// A real number.
    pub fn float(name: &str, value: f32) -> Self {
        Self { f: Some(value), ..Self::new(name, 1) }
    }

    /// An integer.
    pub fn int(name: &str, value: i64) -> Self {
        Self { i: Some(value), ..Self::new(name, 2) }
    }

    /// A word.
    pub fn word(name: &str, value: &str) -> Self {
        Self { s: Some(value.as_bytes().to_vec()), ..Self::new(name, 3) }
    }

    /// Integers.
    pub fn ints(name: &str, values: &[usize]) -> Self {
        Self { ints: values.iter().map(|&v| size(v)).collect(), ..Self::new(name, 7) }
    }
}

/// A tensor that is part of the model.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Constant {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

/// ONNX's numbers of the element types f32 and i64.
const FLOAT: i32 = 1;
const INT64: i32 = 7;

impl Constant {
    /// `tensor` under a name.
    pub fn new(name: &str, tensor: &Tensor) -> Self {
        let (data_type, raw_data) = match &tensor.data {
            Data::F32(v) => (FLOAT, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Data::I64(v) => (INT64, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        Self { dims: tensor.shape.iter().map(|&n| size(n)).collect(), data_type, name: name.to_owned(), raw_data }
    }
}

/// An input or output.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Value {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// Type of a value.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// Type of a tensor.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

/// Sizes of a tensor.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// One size of a tensor.
#[derive(Clone, PartialEq, Eq, Message)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub struct Dimension {
    #[prost(oneof = "Size", tags = "1, 2")]
    pub value: Option<Size>,
}

/// A size: a number, or a name where it is free.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
#[expect(missing_docs, reason = "the names are ONNX's")]
pub enum Size {
    #[prost(int64, tag = "1")]
    DimValue(i64),
    #[prost(string, tag = "2")]
    DimParam(String),
}

impl Value {
    /// Floats of a shape.
    pub fn floats(name: &str, shape: Vec<Size>) -> Self {
        let dim = shape.into_iter().map(|s| Dimension { value: Some(s) }).collect();
        let tensor_type = Some(TensorType { elem_type: FLOAT, shape: Some(Shape { dim }) });
        Self { name: name.to_owned(), r#type: Some(Type { tensor_type }) }
    }

    /// Its sizes; free ones by name.
    pub fn shape(&self) -> Vec<String> {
        let shape = self.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).and_then(|t| t.shape.as_ref());
        let dims = shape.map(|s| s.dim.as_slice()).unwrap_or_default();
        dims.iter()
            .map(|d| match &d.value {
                Some(Size::DimValue(n)) => n.to_string(),
                Some(Size::DimParam(name)) => name.clone(),
                None => "?".to_owned(),
            })
            .collect()
    }
}

impl Model {
    /// A model of `graph`, with what is said about it.
    pub fn new(graph: Graph, about: Vec<(String, String)>) -> Self {
        Self {
            ir_version: IR_VERSION,
            producer_name: "semgen".to_owned(),
            graph: Some(graph),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
            metadata_props: about.into_iter().map(|(key, value)| Entry { key, value }).collect(),
        }
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

/// A size as ONNX has it.
pub fn size(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against bytes that Google's library writes for the same message: fields are where ONNX has them.
    #[test]
    fn messages_have_the_wire_format_of_onnx() {
        let node = Node {
            input: vec!["a".into()],
            output: vec!["b".into()],
            name: "n".into(),
            op_type: "Elu".into(),
            attribute: vec![Attribute::float("alpha", 1.0), Attribute::int("k", 0)],
        };
        let constant = Constant::new("c", &Tensor { shape: vec![1], data: Data::I64(vec![2]) });
        let value = Value::floats("a", vec![Size::DimParam("batch".into()), Size::DimValue(3)]);
        assert_eq!(value.shape(), ["batch", "3"]);
        let graph = Graph { node: vec![node], name: "g".into(), initializer: vec![constant], input: vec![value], output: vec![] };
        let bytes = Model::new(graph, vec![("k".into(), "v".into())]).bytes();
        let expected = include_bytes!("../../tests/reference/exchange/message.onnx");
        assert_eq!(bytes, expected);
        assert_eq!(Model::decode(bytes.as_slice()).unwrap().bytes(), bytes);
    }
}
