//! Dispatches as plain data, and the recorder that kernels write them to.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Caps;

/// Name of a buffer; what it stands for is decided when a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

impl BufferId {
    const SCRATCH: u32 = 1 << 31;

    /// The `k`-th scratch buffer of a [`Recorder`].
    pub fn scratch(k: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a recorder holds few scratch buffers")]
        Self(k as u32 | Self::SCRATCH)
    }

    /// The index of a scratch buffer, or `None` for any other.
    pub fn as_scratch(self) -> Option<usize> {
        (self.0 & Self::SCRATCH != 0).then_some((self.0 & !Self::SCRATCH) as usize)
    }
}

/// How an element of a tensor is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// A 32-bit word: `f32`, or `u32` where the operation says so.
    #[default]
    F32,
    /// A 16-bit float; arithmetic on it is done in f32.
    F16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A byte range of a buffer, seen as a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// First byte; a multiple of the adapter's storage alignment when bound.
    pub offset: u64,
    /// Length in bytes, a multiple of an element's.
    pub len: u64,
    /// Element type.
    pub dtype: Dtype,
}

impl View {
    /// The first `elements` 4-byte elements of `buffer`.
    pub fn whole(buffer: BufferId, elements: usize) -> Self {
        Self::typed(buffer, elements, Dtype::F32)
    }

    /// The first `elements` elements of `buffer`, stored as `dtype`.
    pub fn typed(buffer: BufferId, elements: usize, dtype: Dtype) -> Self {
        Self { buffer, offset: 0, len: elements as u64 * dtype.bytes(), dtype }
    }

    /// `elements` elements from element `start` of this view.
    ///
    /// # Panics
    /// If the range leaves the view: a planning error, never a user's.
    #[must_use]
    pub fn slice(self, start: usize, elements: usize) -> Self {
        let (offset, len) = (start as u64 * self.dtype.bytes(), elements as u64 * self.dtype.bytes());
        assert!(offset + len <= self.len, "slice {start}+{elements} leaves a view of {} elements", self.elements());
        Self { offset: self.offset + offset, len, ..self }
    }

    /// Number of elements.
    pub fn elements(self) -> usize {
        usize::try_from(self.len / self.dtype.bytes()).unwrap_or(usize::MAX)
    }
}

/// A value of a `Params` field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// `u32`.
    U32(u32),
    /// `i32`.
    I32(i32),
    /// `f32`.
    F32(f32),
}

impl From<u32> for Scalar {
    fn from(v: u32) -> Self {
        Self::U32(v)
    }
}

impl From<usize> for Scalar {
    /// # Panics
    /// If `v` needs more than 32 bits; the planner slices work below that.
    fn from(v: usize) -> Self {
        Self::U32(u32::try_from(v).expect("counts in shaders are 32 bits wide"))
    }
}

impl From<i32> for Scalar {
    fn from(v: i32) -> Self {
        Self::I32(v)
    }
}

impl From<f32> for Scalar {
    fn from(v: f32) -> Self {
        Self::F32(v)
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// `semgen.<kernel>.<entry>`.
    pub label: String,
    /// Complete WGSL text.
    pub source: Arc<str>,
    /// Entry point.
    pub entry: &'static str,
    /// Storage buffers of the entry point in ascending binding order.
    pub bindings: Vec<View>,
    /// Fields of the `Params` uniform by name; exactly the struct's fields.
    pub params: Vec<(&'static str, Scalar)>,
    /// Total number of workgroups; folded over x and y when it exceeds the adapter's limit, so
    /// the kernel must number its groups with `flat_group` of `shaders/common/grid.wgsl` and
    /// ignore the surplus.
    pub groups: u64,
    /// Multiply-adds × 2, or the like.
    pub flops: u64,
    /// Bytes that have to move at least once.
    pub bytes: u64,
}

impl Dispatch {
    /// A launch of `entry` in `source` with one workgroup; complete it with the builder methods.
    pub fn new(kernel: &str, entry: &'static str, source: Arc<str>) -> Self {
        Self {
            label: format!("semgen.{kernel}.{entry}"),
            source,
            entry,
            bindings: Vec::new(),
            params: Vec::new(),
            groups: 1,
            flops: 0,
            bytes: 0,
        }
    }

    /// Appends the next storage binding.
    #[must_use]
    pub fn bind(mut self, view: View) -> Self {
        self.bytes += view.len;
        self.bindings.push(view);
        self
    }

    /// Sets a field of `Params`.
    #[must_use]
    pub fn param(mut self, name: &'static str, value: impl Into<Scalar>) -> Self {
        self.params.push((name, value.into()));
        self
    }

    /// Sets the number of workgroups.
    #[must_use]
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups as u64;
        self
    }

    /// Sets the number of workgroups so that each of `items` gets an invocation.
    #[must_use]
    pub fn items(self, items: usize, workgroup_size: usize) -> Self {
        self.groups(items.div_ceil(workgroup_size))
    }

    /// Sets the operation count.
    #[must_use]
    pub fn flops(mut self, flops: u64) -> Self {
        self.flops = flops;
        self
    }
}

/// Which variant a kernel uses for a class of shapes: from a key that the kernel makes up (operation, pass, channels,
/// grid) to the variant's name. Without an entry a kernel uses its default; an entry that does not fit is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(Arc<BTreeMap<String, String>>);

impl Choices {
    /// Choices from key to variant.
    pub fn new(table: BTreeMap<String, String>) -> Self {
        Self(Arc::new(table))
    }

    /// The variant chosen for `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// Collects the dispatches of one operation and the scratch buffers they need.
#[derive(Debug)]
pub struct Recorder<'a> {
    /// The adapter planned for.
    pub caps: &'a Caps,
    /// Variants chosen by measurement or by the user; kernels ask it before they use their default.
    pub choices: Choices,
    /// What has been recorded, in order.
    pub dispatches: Vec<Dispatch>,
    /// Size in bytes of each scratch buffer asked for.
    pub scratch: Vec<u64>,
    /// Keys for which a variant was asked.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Recorder<'a> {
    /// An empty recorder for an adapter.
    pub fn new(caps: &'a Caps) -> Self {
        Self::tuned(caps, &Choices::default())
    }

    /// An empty recorder for an adapter, with chosen variants.
    pub fn tuned(caps: &'a Caps, choices: &Choices) -> Self {
        Self { caps, choices: choices.clone(), dispatches: Vec::new(), scratch: Vec::new(), asked: RefCell::default() }
    }

    /// A new buffer of `elements` 4-byte elements that lives only during this operation; its
    /// content is undefined at first.
    pub fn scratch(&mut self, elements: usize) -> View {
        self.scratch.push(elements as u64 * 4);
        View::whole(BufferId::scratch(self.scratch.len() - 1), elements)
    }

    /// The variant chosen for `key`, if any; that it was asked for is remembered.
    pub fn choice(&self, key: &str) -> Option<&str> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.choices.get(key)
    }

    /// The keys for which a variant was asked, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().iter().cloned().collect()
    }

    /// Appends a launch; one without workgroups is a programming error.
    ///
    /// # Panics
    /// If the dispatch has no workgroup.
    pub fn push(&mut self, dispatch: Dispatch) {
        assert!(dispatch.groups > 0, "{} has no workgroup", dispatch.label);
        self.dispatches.push(dispatch);
    }
}
