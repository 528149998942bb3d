//! Reading of Python pickles without running anything in them.
//!
//! A pickle is a program for a small stack machine that may name any function of Python and call it. This reader knows
//! the instructions that build plain data, and of functions only those with which PyTorch writes tensors; it does their
//! work itself. Any other function is refused by its name.
//!
//! What is read lies in one flat list, and containers hold places in it: a pickle may refer to an object again, or to a
//! container from within itself, and neither reading nor dropping recurses. An instruction makes one object at most and
//! objects own nothing but bytes of the pickle, so memory is bounded by its length.

mod machine;

/// The place of an object in its pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(usize);

/// Type of a storage's elements, named as PyTorch's storages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Element {
    Float,
    Double,
    Half,
    BFloat16,
    Long,
    Int,
    Short,
    Char,
    Byte,
    Bool,
}

impl Element {
    /// The type of `torch.<name>`.
    fn of_storage(name: &str) -> Option<Self> {
        Some(match name.strip_suffix("Storage")? {
            "Float" => Self::Float,
            "Double" => Self::Double,
            "Half" => Self::Half,
            "BFloat16" => Self::BFloat16,
            "Long" => Self::Long,
            "Int" => Self::Int,
            "Short" => Self::Short,
            "Char" => Self::Char,
            "Byte" => Self::Byte,
            "Bool" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Double | Self::Long => 8,
            Self::Float | Self::Int => 4,
            Self::Half | Self::BFloat16 | Self::Short => 2,
            Self::Char | Self::Byte | Self::Bool => 1,
        }
    }
}

/// Elements that tensors look at, kept outside the pickle under a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Type of the elements.
    pub element: Element,
    /// Name of the elements in the file.
    pub key: String,
    /// How many there are under that key.
    pub stored: usize,
    /// First of them that belongs to this storage.
    pub first: usize,
    /// How many belong to it.
    pub len: usize,
}

/// A tensor: a way to walk through a storage that has been checked to stay inside.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The [`Node::Storage`].
    pub storage: Id,
    /// First element, from the start of the storage.
    pub offset: usize,
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Elements between neighbours along each axis.
    pub strides: Vec<usize>,
    /// Number of elements; at most those of the storage.
    pub len: usize,
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian two's complement.
    Long(Vec<u8>),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// A dictionary, ordered or not: keys and values as they were set.
    Dict(Vec<(Id, Id)>),
    Storage(Storage),
    Tensor(View),
    /// A function or type by itself.
    Global(Global),
    /// A `NumPy` type: its word, and whether it is known to be little-endian.
    Dtype(Dtype, bool),
}

/// Functions and types that checkpoints name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Python's")]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Storage(Element),
    NumpyScalar,
    NumpyDtype,
    Encode,
}

/// Types of `NumPy` numbers that occur beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are NumPy's")]
pub enum Dtype {
    F8,
    F4,
    I8,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::NumpyScalar,
            ("numpy", "dtype") => Self::NumpyDtype,
            ("_codecs", "encode") => Self::Encode,
            ("torch", storage) => Self::Storage(Element::of_storage(storage)?),
            _ => return None,
        })
    }
}

/// A pickle that was read.
#[derive(Clone, Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: Id,
    /// Bytes that it took.
    pub length: usize,
}

impl Pickle {
    /// Reads the pickle at the start of `bytes`; what follows it is left alone.
    ///
    /// # Errors
    /// What is wrong, as a phrase about the file.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        machine::run(bytes)
    }

    /// The object that the pickle is.
    pub fn root(&self) -> Id {
        self.root
    }

    /// An object.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    /// All objects.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The text of a string.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The value of `key` in a dictionary; of several the last, as in Python.
    pub fn get(&self, dict: Id, key: &str) -> Option<Id> {
        self.entries(dict)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|e| e.1)
    }

    /// The entries of a dictionary.
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }
}

impl Node {
    /// What it is, for messages.
    pub fn word(&self) -> &'static str {
        match self {
            Self::None => "nothing (None)",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::Long(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Str(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Global(_) => "a function",
            Self::Dtype(..) => "a NumPy type",
        }
    }
}

#[cfg(test)]
mod tests;
