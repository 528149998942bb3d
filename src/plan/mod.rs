//! From a graph to a list of dispatches with memory assigned, before anything is allocated.
//!
//! [`Plan::new`] joins operations ([`fuse()`]), lowers each to dispatches for the adapter's capabilities, gives every
//! computed value a slot by lifetime and knows peak memory, operations and bytes. [`Store`] holds
//! the flat parameter, gradient and optimiser buffers; [`Session`] binds a plan to a store and
//! replays it.

pub mod fuse;
mod lower;
mod memory;
pub mod recompute;
mod session;
pub mod tuning;

pub use fuse::{Fusion, fuse};
pub use session::{Session, Store};

use crate::error::{Error, Result};
use crate::gpu::{BufferId, Caps, Choices, Context, Dispatch, Dtype, Program, Recorder};
use crate::graph::{Graph, Home, ValueId};

/// Buffers of a plan by name: the flat ones, then one for each value.
pub(crate) mod ids {
    use crate::gpu::BufferId;

    pub(crate) const PARAMS: BufferId = BufferId(0);
    pub(crate) const GRADS: BufferId = BufferId(1);
    pub(crate) const STATE: BufferId = BufferId(2);
    /// First of the values' ids.
    pub(crate) const VALUES: u32 = 16;
}

/// What one operation became.
#[derive(Clone, Debug)]
pub struct PlannedOp {
    /// The layer.
    pub label: String,
    /// The operation's name.
    pub op: &'static str,
    /// Shape of the first result.
    pub shape: String,
    /// Range within the plan's dispatches.
    pub dispatches: std::ops::Range<usize>,
    /// Multiply-adds × 2, or the like.
    pub flops: u64,
    /// Bytes bound, the least that moves.
    pub bytes: u64,
    /// Slots of its results.
    pub slots: Vec<usize>,
    /// Keys of [`Options::choices`] that its kernels asked for.
    pub keys: Vec<String>,
}

/// How a graph is planned, besides for which adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Values whose lifetimes do not overlap share memory; without, each stays readable after a run.
    pub share: bool,
    /// Variants chosen by measurement or by the user.
    pub choices: Choices,
    /// Which operations are joined; `None` for those that [`Fusion::on`] finds to pay on the adapter.
    pub fusion: Option<Fusion>,
    /// Cheap activations that the gradient needs are computed again there instead of being kept; the results are the same.
    pub recompute: bool,
}

impl Default for Options {
    /// Shared memory, default variants and fusion, nothing computed twice.
    fn default() -> Self {
        Self { share: true, choices: Choices::default(), fusion: None, recompute: false }
    }
}

impl Options {
    /// The default, with the variants that a device is to use.
    pub fn of(ctx: &Context) -> Self {
        Self { choices: ctx.choices(), ..Self::default() }
    }
}

/// A graph made ready for one kind of adapter.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph as it is computed: what was asked for, after fusion.
    pub graph: Graph,
    /// All dispatches; scratch and computed values are already named by slot.
    pub dispatches: Vec<Dispatch>,
    /// The operations.
    pub ops: Vec<PlannedOp>,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// The slot of each computed or input value.
    slot_of: Vec<Option<usize>>,
    /// The most bytes of slots in use at once.
    live_bytes: u64,
    /// Whether the plan computes gradients.
    has_grads: bool,
}

impl Plan {
    /// Lowers `graph` for an adapter; memory is shared between values whose lifetimes do not overlap.
    ///
    /// # Errors
    /// [`Error::ExceedsLimit`] for what the adapter cannot hold however it is sliced, [`Error::Usage`] when values are
    /// stored in 16 bits and the adapter has no such floats.
    pub fn new(graph: &Graph, caps: &Caps) -> Result<Self> {
        Self::with(graph, caps, &Options::default())
    }

    /// As [`Plan::new`], with a slot of its own for every value: each stays readable after a run.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn unshared(graph: &Graph, caps: &Caps) -> Result<Self> {
        Self::with(graph, caps, &Options { share: false, ..Options::default() })
    }

    /// As [`Plan::new`], planned as `options` say.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with(graph: &Graph, caps: &Caps, options: &Options) -> Result<Self> {
        if !caps.f16 && graph.values().iter().any(|v| v.dtype == Dtype::F16) {
            return Err(Error::Usage(format!(
                "train.precision is \"mixed\", but the adapter {} has no 16-bit floats in shaders; set train.precision = \"f32\" or choose another adapter with --adapter",
                caps.name
            )));
        }
        let fused = fuse(graph, &options.fusion.unwrap_or_else(|| Fusion::on(caps)), caps);
        let graph = &if options.recompute { recompute::recompute(&fused) } else { fused };
        let mut lowered = Vec::with_capacity(graph.nodes().len());
        for node in graph.nodes() {
            let mut rec = Recorder::tuned(caps, &options.choices);
            lower::lower(graph, node, &mut rec)?;
            let keys = rec.asked();
            lowered.push((rec.dispatches, rec.scratch, keys));
        }
        let assignment = memory::assign(graph, lowered.iter().map(|l| l.1.as_slice()), options.share);
        let mut plan = Self {
            graph: graph.clone(),
            dispatches: Vec::new(),
            ops: Vec::new(),
            slots: assignment.slots,
            slot_of: assignment.slot_of,
            live_bytes: assignment.live,
            has_grads: graph.values().iter().any(|v| matches!(v.home, Home::Grad(_))),
        };
        for ((node, (dispatches, _, keys)), scratch_slots) in graph.nodes().iter().zip(lowered).zip(assignment.scratch) {
            let first = plan.dispatches.len();
            for mut d in dispatches {
                for view in &mut d.bindings {
                    view.buffer = match view.buffer.as_scratch() {
                        Some(k) => slot_id(scratch_slots[k]),
                        None => plan.resolve(view.buffer),
                    };
                }
                plan.dispatches.push(d);
            }
            let range = first..plan.dispatches.len();
            plan.ops.push(PlannedOp {
                label: node.label.clone(),
                op: node.op.name(),
                shape: graph.shape(node.outputs[0]).to_string(),
                flops: plan.dispatches[range.clone()].iter().map(|d| d.flops).sum(),
                bytes: plan.dispatches[range.clone()].iter().map(|d| d.bytes).sum(),
                dispatches: range,
                slots: node.outputs.iter().filter_map(|o| plan.slot_of[o.0]).collect(),
                keys,
            });
        }
        plan.check(caps)?;
        Ok(plan)
    }

    /// Whether the adapter has buffers and bindings as large as the plan's.
    fn check(&self, caps: &Caps) -> Result<()> {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
        let exceeds = |what: String, need: u64, have: String| Error::ExceedsLimit {
            what,
            need: mib(need),
            have,
            remedy: "use a smaller train.micro_batch, cube.size or model.base_channels".into(),
        };
        if let Some(&bytes) = self.slots.iter().find(|&&b| b > caps.max_buffer) {
            return Err(exceeds("a tensor".into(), bytes, format!("{} per buffer", mib(caps.max_buffer))));
        }
        let largest = self.dispatches.iter().flat_map(|d| d.bindings.iter().map(move |b| (b.len, d))).max_by_key(|(len, _)| *len);
        match largest {
            Some((len, d)) if len > caps.max_binding => {
                Err(exceeds(format!("a buffer of {}", d.label), len, format!("{} per binding", mib(caps.max_binding))))
            }
            _ => Ok(()),
        }
    }

    /// The buffer behind a value's id.
    fn resolve(&self, id: BufferId) -> BufferId {
        match id.0.checked_sub(ids::VALUES) {
            Some(value) => self.slot_of[value as usize].map_or(id, slot_id),
            None => id,
        }
    }

    /// The slot that holds `value`, unless it lives in a flat buffer.
    pub fn slot(&self, value: ValueId) -> Option<usize> {
        self.slot_of[value.0]
    }

    /// Multiply-adds × 2 of one run.
    pub fn flops(&self) -> u64 {
        self.ops.iter().map(|o| o.flops).sum()
    }

    /// Bytes bound over one run.
    pub fn bytes(&self) -> u64 {
        self.ops.iter().map(|o| o.bytes).sum()
    }

    /// Device bytes of the slots: inputs, activations, gradients of activations and scratch.
    pub fn slot_bytes(&self) -> u64 {
        self.slots.iter().map(|b| b.max(&4).next_multiple_of(4)).sum()
    }

    /// The most bytes of inputs, activations, gradients of activations and scratch in use at once: what [`Plan::slot_bytes`]
    /// cannot fall below.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Device bytes of a [`Session`] of this plan: slots, and the parameters of its kernels.
    pub fn session_bytes(&self, caps: &Caps) -> u64 {
        self.slot_bytes() + Program::device_bytes(caps, &self.dispatches)
    }

    /// Slots of `other` that the slots of this plan can use while the other does not run, each at most once: inputs those
    /// of the same name and size, the rest what is large enough.
    pub fn borrow(&self, other: &Self) -> Vec<Option<usize>> {
        let mut out = vec![None; self.slots.len()];
        let mut free = vec![true; other.slots.len()];
        let input = |plan: &Self, name: &str| plan.graph.inputs().iter().find(|(n, _)| n == name).and_then(|(_, v)| plan.slot(*v));
        for (name, value) in other.graph.inputs() {
            let (theirs, own) = (other.slot(*value), input(self, name));
            if let Some(theirs) = theirs {
                // An input that is not common keeps what its caller has put there.
                free[theirs] = false;
                if let Some(own) = own
                    && self.slots[own] == other.slots[theirs]
                {
                    out[own] = Some(theirs);
                }
            }
        }
        let mut rest: Vec<usize> = (0..self.slots.len()).filter(|&s| out[s].is_none()).collect();
        rest.sort_by_key(|&s| (std::cmp::Reverse(self.slots[s]), s));
        for own in rest {
            let fitting = (0..free.len()).filter(|&s| free[s] && other.slots[s] >= self.slots[own]);
            if let Some(theirs) = fitting.min_by_key(|&s| (other.slots[s], s)) {
                free[theirs] = false;
                out[own] = Some(theirs);
            }
        }
        out
    }

    /// Device bytes of a [`Session`] of this plan beside one of `other`, without what they share.
    pub fn session_bytes_beside(&self, caps: &Caps, other: &Self) -> u64 {
        let own = self.slots.iter().zip(self.borrow(other)).filter(|(_, b)| b.is_none());
        own.map(|(b, _)| b.max(&4).next_multiple_of(4)).sum::<u64>() + Program::device_bytes(caps, &self.dispatches)
    }

    /// Device bytes of the flat buffers of a [`Store`] for this graph with `moments` moment buffers.
    pub fn store_bytes(&self, moments: u64) -> u64 {
        let params = (self.graph.params.flat_len() as u64 * 4).max(4);
        let grads = if self.has_grads { params } else { 0 };
        params * (1 + moments) + grads + (self.graph.state.flat_len() as u64 * 4).max(4)
    }
}

/// Name of a slot among the buffers of a finished plan.
fn slot_id(slot: usize) -> BufferId {
    #[expect(clippy::cast_possible_truncation, reason = "plans have few slots")]
    BufferId(slot as u32 + ids::VALUES)
}
