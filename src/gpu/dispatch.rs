//! Dispatches as plain data, and the recorder that kernels write them to.

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

/// A byte range of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// First byte; a multiple of the adapter's storage alignment when bound.
    pub offset: u64,
    /// Length in bytes, a multiple of 4.
    pub len: u64,
}

impl View {
    /// The first `elements` 4-byte elements of `buffer`.
    pub fn whole(buffer: BufferId, elements: usize) -> Self {
        Self { buffer, offset: 0, len: elements as u64 * 4 }
    }

    /// `elements` 4-byte elements from element `start` of this view.
    ///
    /// # Panics
    /// If the range leaves the view: a planning error, never a user's.
    #[must_use]
    pub fn slice(self, start: usize, elements: usize) -> Self {
        let (offset, len) = (start as u64 * 4, elements as u64 * 4);
        assert!(offset + len <= self.len, "slice {start}+{elements} leaves a view of {} elements", self.len / 4);
        Self { buffer: self.buffer, offset: self.offset + offset, len }
    }

    /// Number of 4-byte elements.
    pub fn elements(self) -> usize {
        usize::try_from(self.len / 4).unwrap_or(usize::MAX)
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

/// Collects the dispatches of one operation and the scratch buffers they need.
#[derive(Debug)]
pub struct Recorder<'a> {
    /// The adapter planned for.
    pub caps: &'a Caps,
    /// What has been recorded, in order.
    pub dispatches: Vec<Dispatch>,
    /// Size in bytes of each scratch buffer asked for.
    pub scratch: Vec<u64>,
}

impl<'a> Recorder<'a> {
    /// An empty recorder for an adapter.
    pub fn new(caps: &'a Caps) -> Self {
        Self { caps, dispatches: Vec::new(), scratch: Vec::new() }
    }

    /// A new buffer of `elements` 4-byte elements that lives only during this operation; its
    /// content is undefined at first.
    pub fn scratch(&mut self, elements: usize) -> View {
        self.scratch.push(elements as u64 * 4);
        View::whole(BufferId::scratch(self.scratch.len() - 1), elements)
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
