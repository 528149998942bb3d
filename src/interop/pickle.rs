//! Reading of Python pickles without running anything in them.
//!
//! A pickle is a program for a small stack machine that may name any function of Python and call it. This reader knows
//! the instructions that build plain data, and of functions only those with which PyTorch writes tensors; it does their
//! work itself. Any other function is refused by its name.
//!
//! What is read lies in one flat list, and containers hold places in it: a pickle may refer to an object again, or to a
//! container from within itself, and neither reading nor dropping recurses. An instruction makes one object at most and
//! objects own nothing but bytes of the pickle, so memory is bounded by its length.

use std::collections::HashMap;

/// Most objects in one pickle; checkpoints have some thousands.
const MOST_OBJECTS: usize = 1 << 20;
/// Most axes of a tensor.
const MOST_AXES: usize = 16;
/// Most characters of a string that stands for bytes: those of one number.
const MOST_ENCODED: usize = 16;
/// Most characters of a storage's key, and of a name in a message.
const MOST_NAME: usize = 80;

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
    /// A NumPy type: its word, and whether it is known to be little-endian.
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

/// Types of NumPy numbers that occur beside the weights.
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
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }.run()
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

struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, String> {
        loop {
            let (start, op) = (self.at, self.byte()?);
            if op == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { nodes: self.nodes, root, length: self.at });
            }
            self.step(op).map_err(|e| format!("{e} (pickle instruction at byte {start})"))?;
        }
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => match self.byte()? {
                2..=5 => {}
                v => return Err(format!("is a pickle of protocol {v}, expected 2 to 5")),
            },
            // FRAME: a hint for readers of streams.
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let v = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(v.into()))?;
            }
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                let v = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(v))?;
            }
            0x8c => self.string(1)?,
            b'X' => self.string(4)?,
            0x8d => self.string(8)?,
            b'C' => self.raw(1)?,
            b'B' => self.raw(4)?,
            0x8e => self.raw(8)?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b']' => self.push(Node::List(Vec::new()))?,
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let items = self.top(n)?;
                self.push(Node::Tuple(items))?;
            }
            b'a' => {
                let items = self.top(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.top(2)?;
                self.set(&items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(&items)?;
            }
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => {
                let (index, id) = (self.memo.len() as u64, self.peek()?);
                self.memo.insert(index, id);
            }
            b'h' => self.fetch(1)?,
            b'j' => self.fetch(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let items = self.top(2)?;
                let [module, name] = [items[0], items[1]].map(|i| match self.at(i) {
                    Node::Str(s) => Some(s.clone()),
                    _ => None,
                });
                let (module, name) = module.zip(name).ok_or("names a function by something that is no text")?;
                self.global(&module, &name)?;
            }
            b'R' => {
                let items = self.top(2)?;
                let made = self.call(items[0], items[1])?;
                self.push(made)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            b'Q' => {
                let name = self.pop()?;
                let storage = self.persistent(name)?;
                self.push(Node::Storage(storage))?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(refused(&format!("makes an object of `{}.{}`", short(&module), short(&name))));
            }
            b'o' | 0x81 | 0x92 => return Err(refused("makes an object of a class of its own")),
            other => {
                return Err(format!("has the pickle instruction {other:#04x}, which no checkpoint needs; it is damaged or no checkpoint"));
            }
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len());
        let end = end.ok_or_else(|| "ends within its pickle; copy or make it again".to_owned())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    /// An unsigned number of `width` bytes, at most 8, little-endian.
    fn unsigned(&mut self, width: usize) -> Result<u64, String> {
        let mut all = [0; 8];
        all[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(all))
    }

    /// As many bytes as a number of `width` bytes says.
    fn counted(&mut self, width: usize) -> Result<&[u8], String> {
        let n = self.unsigned(width)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// A line of text, without its end.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let line = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn at(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= MOST_OBJECTS {
            return Err(format!("has more than {MOST_OBJECTS} objects in its pickle; give a checkpoint of a network"));
        }
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
        Ok(())
    }

    /// The lowest place of the stack that may be taken now.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn peek(&self) -> Result<Id, String> {
        self.stack.last().copied().filter(|_| self.stack.len() > self.floor()).ok_or_else(empty)
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.peek()?;
        self.stack.pop();
        Ok(id)
    }

    /// The uppermost `n` objects, lowest first.
    fn top(&mut self, n: usize) -> Result<Vec<Id>, String> {
        let from = self.stack.len().checked_sub(n).filter(|&f| f >= self.floor()).ok_or_else(empty)?;
        Ok(self.stack.split_off(from))
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let from = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(from))
    }

    fn int(&mut self, width: usize) -> Result<(), String> {
        let v = self.unsigned(width)?;
        self.push(Node::Int(v.cast_signed()))
    }

    fn long(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.counted(width)?;
        let node = if bytes.len() <= 8 {
            let mut all = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            Node::Int(i64::from_le_bytes(all))
        } else {
            Node::Long(bytes.to_vec())
        };
        self.push(node)
    }

    fn string(&mut self, width: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.counted(width)?).map_err(|_| "has a text that is not UTF-8")?.to_owned();
        self.push(Node::Str(text))
    }

    fn raw(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.counted(width)?.to_vec();
        self.push(Node::Bytes(bytes))
    }

    fn put(&mut self, width: usize) -> Result<(), String> {
        let (index, id) = (self.unsigned(width)?, self.peek()?);
        self.memo.insert(index, id);
        Ok(())
    }

    fn fetch(&mut self, width: usize) -> Result<(), String> {
        let index = self.unsigned(width)?;
        let id = *self.memo.get(&index).ok_or_else(|| format!("refers to object {index}, which it has not made"))?;
        // A reference is a byte or two of the pickle and eight here: no bound of its own is needed.
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.peek()?;
        match &mut self.nodes[list.0] {
            Node::List(l) => l.extend(items),
            other => return Err(format!("appends to {}, expected a list", other.word())),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.peek()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("sets a key of a dictionary without a value".into());
        }
        match &mut self.nodes[dict.0] {
            Node::Dict(d) => d.extend(pairs.iter().map(|p| (p[0], p[1]))),
            other => return Err(format!("sets keys of {}, expected a dictionary", other.word())),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let known = Global::find(module, name).ok_or_else(|| refused(&format!("names `{}.{}`", short(module), short(name))))?;
        self.push(Node::Global(known))
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match self.at(id) {
            Node::Tuple(items) => Ok(items),
            other => Err(format!("has {} where a tuple is expected", other.word())),
        }
    }

    /// A number that is a size, a count or a place.
    fn size(&self, id: Id) -> Result<usize, String> {
        match self.at(id) {
            Node::Int(v) => usize::try_from(*v).map_err(|_| format!("has a tensor with the size or offset {v}")),
            other => Err(format!("has {} where a size is expected", other.word())),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        let items = self.tuple(id)?;
        if items.len() > MOST_AXES {
            return Err(format!("has a tensor with {} axes, more than {MOST_AXES}", items.len()));
        }
        items.iter().map(|&i| self.size(i)).collect()
    }

    /// What `function(*args)` would return.
    fn call(&self, function: Id, args: Id) -> Result<Node, String> {
        let Node::Global(function) = self.at(function) else {
            return Err(format!("calls {}, expected a function", self.at(function).word()));
        };
        let args = self.tuple(args)?;
        let wrong = || format!("calls {function:?} with {} arguments", args.len());
        match (function, args) {
            (Global::OrderedDict, []) => Ok(Node::Dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, shape, strides])
            | (Global::RebuildTensorV2, &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _]) => {
                self.view(storage, offset, shape, strides).map(Node::Tensor)
            }
            (Global::RebuildParameter, &[tensor, _, _]) => match self.at(tensor) {
                Node::Tensor(view) => Ok(Node::Tensor(view.clone())),
                other => Err(format!("makes a parameter of {}", other.word())),
            },
            (Global::NumpyDtype, &[word, _, _]) => match self.at(word) {
                Node::Str(w) if w == "f8" => Ok(Node::Dtype(Dtype::F8, false)),
                Node::Str(w) if w == "f4" => Ok(Node::Dtype(Dtype::F4, false)),
                Node::Str(w) if w == "i8" => Ok(Node::Dtype(Dtype::I8, false)),
                Node::Str(w) => Err(format!("has a NumPy number of type `{}`, expected f8, f4 or i8", short(w))),
                other => Err(format!("has a NumPy type that is {}", other.word())),
            },
            (Global::NumpyScalar, &[dtype, bytes]) => self.scalar(dtype, bytes),
            (Global::Encode, &[text, encoding]) => match (self.at(text), self.at(encoding)) {
                (Node::Str(text), Node::Str(encoding)) if matches!(encoding.as_str(), "latin1" | "latin-1") => {
                    let bytes: Option<Vec<u8>> = text.chars().take(MOST_ENCODED + 1).map(|c| u8::try_from(u32::from(c)).ok()).collect();
                    let bytes = bytes.filter(|b| b.len() <= MOST_ENCODED);
                    bytes.map(Node::Bytes).ok_or_else(|| "encodes a text that is not the bytes of one number".into())
                }
                _ => Err("encodes something that is not Latin-1 text".into()),
            },
            _ => Err(wrong()),
        }
    }

    fn scalar(&self, dtype: Id, bytes: Id) -> Result<Node, String> {
        let (Node::Dtype(dtype, little), Node::Bytes(bytes)) = (self.at(dtype), self.at(bytes)) else {
            return Err("has a NumPy number without type or bytes".into());
        };
        if !little {
            return Err("has a NumPy number of unknown byte order".into());
        }
        let node = match dtype {
            Dtype::F8 => bytes.as_slice().try_into().map(|b| Node::Float(f64::from_le_bytes(b))),
            Dtype::F4 => bytes.as_slice().try_into().map(|b| Node::Float(f32::from_le_bytes(b).into())),
            Dtype::I8 => bytes.as_slice().try_into().map(|b| Node::Int(i64::from_le_bytes(b))),
        };
        node.map_err(|_| format!("has a NumPy number of {} bytes that do not fit its type", bytes.len()))
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<View, String> {
        let Node::Storage(s) = self.at(storage) else {
            return Err(format!("has a tensor on {}, expected a storage", self.at(storage).word()));
        };
        let (offset, shape, strides) = (self.size(offset)?, self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(format!("has a tensor of shape {shape:?} with strides {strides:?}"));
        }
        let outside = || {
            format!(
                "has a tensor of shape {shape:?}, strides {strides:?} and offset {offset}, which does not fit its storage `{}` of {} elements",
                s.key, s.len
            )
        };
        let len = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).ok_or_else(outside)?;
        if len > 0 {
            let steps = shape.iter().zip(&strides);
            let last = steps.map(|(&n, &s)| (n - 1).checked_mul(s)).try_fold(offset, |at, step| at.checked_add(step?));
            if last.is_none_or(|l| l >= s.len) || len > s.len {
                return Err(outside());
            }
        }
        Ok(View { storage, offset, shape, strides, len })
    }

    /// The storage with the persistent name `(word, type, key, device, count)`, behind it a view where there is one.
    fn persistent(&self, name: Id) -> Result<Storage, String> {
        let items = self.tuple(name)?;
        let (parts, view) = match *items {
            [a, b, c, d, e] => ([a, b, c, d, e], None),
            [a, b, c, d, e, view] => ([a, b, c, d, e], Some(view)),
            _ => return Err(format!("names something outside its pickle with {} parts, expected a storage's 5 or 6", items.len())),
        };
        let [word, kind, key, _device, count] = parts.map(|i| self.at(i));
        match (word, kind, key) {
            (Node::Str(word), Node::Global(Global::Storage(element)), Node::Str(key)) if word == "storage" => {
                if key.len() > MOST_NAME {
                    return Err(format!("has a storage whose key has {} bytes, more than {MOST_NAME}", key.len()));
                }
                let Node::Int(count) = count else {
                    return Err(format!("has a storage whose number of elements is {}", count.word()));
                };
                let stored = usize::try_from(*count).map_err(|_| format!("has a storage of {count} elements"))?;
                let (first, len) = match view.map(|v| (v, self.at(v))) {
                    None | Some((_, Node::None)) => (0, stored),
                    Some((v, _)) => match *self.tuple(v)? {
                        [_, first, len] => (self.size(first)?, self.size(len)?),
                        _ => return Err("has a view of a storage without offset and size".into()),
                    },
                };
                if first.checked_add(len).is_none_or(|end| end > stored) {
                    return Err(format!("has a view of elements {first} to {first} + {len} of a storage of {stored}"));
                }
                Ok(Storage { element: *element, key: key.clone(), stored, first, len })
            }
            _ => {
                Err("names something outside its pickle that is no storage; save the state_dict of the model rather than the model".into())
            }
        }
    }

    /// Gives the uppermost object its state.
    fn build(&mut self, state: Id) -> Result<(), String> {
        let object = self.peek()?;
        match self.at(object) {
            // The `_metadata` of a state dict: versions of its modules.
            Node::Dict(_) => Ok(()),
            &Node::Dtype(dtype, _) => {
                let order = self.tuple(state)?.get(1).map(|&o| self.at(o));
                match order {
                    Some(Node::Str(o)) if o == "<" => {
                        self.nodes[object.0] = Node::Dtype(dtype, true);
                        Ok(())
                    }
                    Some(Node::Str(o)) => Err(format!("has a NumPy number of byte order `{}`, expected `<`", short(o))),
                    _ => Err("has a NumPy number without byte order".into()),
                }
            }
            other => Err(format!("sets the state of {}", other.word())),
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

fn empty() -> String {
    "takes more objects from its pickle's stack than there are; it is damaged".into()
}

/// A name in a message.
fn short(name: &str) -> String {
    name.chars().take(MOST_NAME).filter(|c| !c.is_control()).collect()
}

fn refused(what: &str) -> String {
    format!(
        "{what}, which is no part of plain weights, and nothing in a pickle is ever run; \
         load it where it comes from and save only the weights: torch.save(model.state_dict(), …)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Pickle, String> {
        Pickle::read(bytes)
    }

    /// `(b'\x80\x02' + body + b'.')`
    fn program(body: &[u8]) -> Vec<u8> {
        [b"\x80\x02", body, b"."].concat()
    }

    fn error(body: &[u8]) -> String {
        read(&program(body)).unwrap_err()
    }

    #[test]
    fn plain_data_is_read_with_references_to_earlier_objects() {
        // {'a': [1, -2, 70000, True, None, 1.5, 2**40], 'b': (the same list, 'é')}
        let body = b"}q\x00(X\x01\0\0\0a]q\x01(K\x01J\xfe\xff\xff\xffJ\x70\x11\x01\0\x88NG\x3f\xf8\0\0\0\0\0\0\x8a\x06\0\0\0\0\0\x01eX\x01\0\0\0bh\x01X\x02\0\0\0\xc3\xa9\x86u";
        let p = read(&program(body)).unwrap();
        assert_eq!(p.length, body.len() + 3);
        let list = p.get(p.root(), "a").unwrap();
        let Node::List(items) = p.node(list) else { panic!() };
        let items: Vec<&Node> = items.iter().map(|&i| p.node(i)).collect();
        assert_eq!(
            items,
            [&Node::Int(1), &Node::Int(-2), &Node::Int(70000), &Node::Bool(true), &Node::None, &Node::Float(1.5), &Node::Int(1 << 40)]
        );
        let Node::Tuple(pair) = p.node(p.get(p.root(), "b").unwrap()) else { panic!() };
        assert_eq!((pair[0], p.text(pair[1])), (list, Some("é")));
    }

    #[test]
    fn frames_short_strings_and_memoized_names_of_protocol_4_are_read() {
        // pickle.dumps(collections.OrderedDict(a=b'xy'), 4)
        let bytes = b"\x80\x04\x95\x2b\0\0\0\0\0\0\0\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\x8c\x01a\x94C\x02xy\x94s.";
        let p = read(bytes).unwrap();
        assert_eq!(p.node(p.get(p.root(), "a").unwrap()), &Node::Bytes(b"xy".to_vec()));
    }

    #[test]
    fn numpy_numbers_are_read_and_other_byte_orders_refused() {
        let scalar = |module: &[u8], order: u8| {
            [
                b"c".as_slice(),
                module,
                b"\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0",
                &[order],
                b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbc_codecs\nencode\nX\x09\0\0\0\0\0\0\0\0\0\xc3\xb8?X\x06\0\0\0latin1\x86R\x86R",
            ]
            .concat()
        };
        for module in [b"numpy.core.multiarray".as_slice(), b"numpy._core.multiarray"] {
            let p = read(&program(&scalar(module, b'<'))).unwrap();
            assert_eq!(p.node(p.root()), &Node::Float(1.5));
        }
        assert!(error(&scalar(b"numpy.core.multiarray", b'>')).contains("byte order `>`"));
    }

    #[test]
    fn whatever_calls_something_else_is_refused_by_name() {
        for (body, name) in [
            (b"cos\nsystem\nX\x04\0\0\0rm x\x85R".as_slice(), "`os.system`"),
            (b"cposix\nsystem\n", "`posix.system`"),
            (b"cbuiltins\neval\n", "`builtins.eval`"),
            (b"c__builtin__\nexec\n", "`__builtin__.exec`"),
            (b"X\x0a\0\0\0subprocessX\x05\0\0\0Popen\x93", "`subprocess.Popen`"),
            (b"ctorch\nload\n", "`torch.load`"),
            (b"cnumpy.core.multiarray\n_reconstruct\n", "`numpy.core.multiarray._reconstruct`"),
            (b"c__main__\nNet\n", "`__main__.Net`"),
        ] {
            let e = error(body);
            assert!(e.contains(name) && e.contains("nothing in a pickle is ever run"), "{e}");
        }
        assert!(error(b"ccollections\nOrderedDict\n)\x81").contains("an object of a class"));
        assert!(error(b"(ios\nsystem\n").contains("an object of `os.system`"));
        // What is allowed may not be called with something else.
        assert!(error(b"ccollections\nOrderedDict\n]\x85R").contains("OrderedDict with 1 arguments"));
        assert!(error(b"K\x01)R").contains("calls an integer"));
        assert!(error(b"]}b").contains("sets the state of a list"));
    }

    const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";

    fn tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
        let int = |v: i32| [b"J".as_slice(), &v.to_le_bytes()].concat();
        let tuple = |v: &[i32]| [b"(".to_vec(), v.iter().flat_map(|&x| int(x)).collect(), b"t".to_vec()].concat();
        let parts: [&[u8]; 6] = [b"ctorch._utils\n_rebuild_tensor\n(", STORAGE, &int(offset), &tuple(shape), &tuple(strides), b"tR"];
        parts.concat()
    }

    #[test]
    fn tensors_must_stay_inside_their_storage() {
        let p = read(&program(&tensor(1, &[2, 2], &[3, 1]))).unwrap();
        let Node::Tensor(v) = p.node(p.root()) else { panic!() };
        assert_eq!((v.offset, v.len, v.shape.as_slice(), v.strides.as_slice()), (1, 4, [2, 2].as_slice(), [3, 1].as_slice()));
        let scalar = tensor(5, &[], &[]);
        assert!(read(&program(&scalar)).is_ok());
        for (offset, shape, strides) in [
            (0, vec![7], vec![1]),
            (6, vec![], vec![]),
            (2, vec![2, 2], vec![3, 2]),
            (0, vec![i32::MAX; 4], vec![i32::MAX; 4]),
            (i32::MAX, vec![2], vec![i32::MAX]),
            // Not outside, but more elements than are stored.
            (0, vec![i32::MAX], vec![0]),
            (0, vec![7], vec![0]),
        ] {
            let e = error(&tensor(offset, &shape, &strides));
            assert!(e.contains("does not fit its storage"), "{e}");
        }
        assert!(error(&tensor(-1, &[1], &[1])).contains("offset -1"));
        assert!(error(&tensor(0, &[-1], &[1])).contains("size"));
        assert!(error(&tensor(0, &[1], &[])).contains("strides"));
        assert!(error(&tensor(0, &[1; 17], &[1; 17])).contains("17 axes"));
    }

    #[test]
    fn damage_is_said_and_never_panics() {
        for (body, what) in [
            (b"".as_slice(), "than there are"),
            (b"\x85", "than there are"),
            (b"(K\x01K\x02\x87", "than there are"),
            (b"(K\x01.", "instruction"),
            (b"h\x05", "object 5"),
            (b"}(K\x01u", "without a value"),
            (b"K\x01K\x02a", "appends to an integer"),
            (b"K\x01K\x02K\x03s", "sets keys of an integer"),
            (b"\xff", "instruction 0xff"),
            (b"K\x01Q", "a tuple is expected"),
            (b")Q", "0 parts"),
        ] {
            let bytes = if body.ends_with(b".") { [b"\x80\x02", body].concat() } else { program(body) };
            let result = read(&bytes);
            match result {
                Err(e) => assert!(e.contains(what) || body.ends_with(b"."), "{e}"),
                Ok(p) => panic!("{body:?} gives {p:?}"),
            }
        }
        assert!(read(b"\x80\x01.").unwrap_err().contains("protocol 1"));
        // Lengths that lie.
        for body in [
            b"X\xff\xff\xff\xff".as_slice(),
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\x7f",
            b"B\xff\xff\xff\xff",
            b"cos",
        ] {
            assert!(error(body).contains("ends within its pickle"), "{body:?}");
        }
        let whole = program(&tensor(1, &[2, 2], &[3, 1]));
        for n in 0..whole.len() {
            assert!(read(&whole[..n]).is_err());
        }
    }

    #[test]
    fn cycles_and_deep_nesting_are_only_places_in_a_list() {
        // A list that holds itself.
        let p = read(&program(b"]q\x00h\x00a")).unwrap();
        let Node::List(items) = p.node(p.root()) else { panic!() };
        assert_eq!(items, &[p.root()]);
        // A million tuples, each in the next.
        let deep = [b")".to_vec(), vec![0x85; 1_000_000]].concat();
        drop(read(&program(&deep)).unwrap());
        assert!(error(&vec![b'N'; MOST_OBJECTS + 1]).contains("objects"));
    }
}
