//! The stack machine.

use std::collections::HashMap;

use super::{Dtype, Global, Id, Node, Pickle, Storage, View};

/// Most objects in one pickle; checkpoints have some thousands.
pub(super) const MOST_OBJECTS: usize = 1 << 20;
/// Most axes of a tensor.
const MOST_AXES: usize = 16;
/// Most characters of a string that stands for bytes: those of one number.
const MOST_ENCODED: usize = 16;
/// Most characters of a storage's key, and of a name in a message.
const MOST_NAME: usize = 80;

/// Reads the pickle at the start of `bytes`.
pub(super) fn run(bytes: &[u8]) -> Result<Pickle, String> {
    Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }.run()
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
