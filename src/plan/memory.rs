//! Which values share memory.
//!
//! A slot is a whole buffer: wgpu tracks state by buffer, and a buffer may not be read and written by one
//! dispatch through two bindings. So a result never takes the slot of an operand, and two values share a slot
//! only when their lifetimes are disjoint.

use crate::graph::{Graph, Home, ValueId};

/// Result of the assignment.
pub(super) struct Assignment {
    /// Bytes of each slot.
    pub(super) slots: Vec<u64>,
    /// Slot of each value that lives in one.
    pub(super) slot_of: Vec<Option<usize>>,
    /// Slots of each operation's scratch buffers.
    pub(super) scratch: Vec<Vec<usize>>,
}

/// Free slots and their sizes.
#[derive(Default)]
struct Slots {
    bytes: Vec<u64>,
    free: Vec<usize>,
}

impl Slots {
    /// The smallest free slot that is large enough, else the largest free one, grown; else a new one.
    fn take(&mut self, bytes: u64) -> usize {
        let fitting = (0..self.free.len()).filter(|&i| self.bytes[self.free[i]] >= bytes).min_by_key(|&i| self.bytes[self.free[i]]);
        let any = || (0..self.free.len()).max_by_key(|&i| self.bytes[self.free[i]]);
        match fitting.or_else(any) {
            Some(i) => {
                let slot = self.free.swap_remove(i);
                self.bytes[slot] = self.bytes[slot].max(bytes);
                slot
            }
            None => {
                self.bytes.push(bytes);
                self.bytes.len() - 1
            }
        }
    }

    fn give(&mut self, slot: usize) {
        self.free.push(slot);
        // The order of giving must not decide who takes.
        self.free.sort_unstable();
    }
}

/// Walks the operations in order and assigns slots; with `share` false every value keeps its own.
pub(super) fn assign<'s>(graph: &Graph, scratch: impl Iterator<Item = &'s [u64]>, share: bool) -> Assignment {
    let values = graph.values();
    let mut last_use = vec![0; values.len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        for v in node.inputs.iter().chain(&node.outputs) {
            last_use[v.0] = i;
        }
    }
    for (_, v) in graph.inputs().iter().chain(graph.outputs()) {
        last_use[v.0] = usize::MAX;
    }
    let mut slots = Slots::default();
    let mut slot_of = vec![None; values.len()];
    let bytes = |v: ValueId| values[v.0].shape.len() as u64 * values[v.0].dtype.bytes();
    for &(_, v) in graph.inputs() {
        slot_of[v.0] = Some(slots.take(bytes(v)));
    }
    let mut scratch_of = Vec::new();
    for (i, (node, scratch)) in graph.nodes().iter().zip(scratch).enumerate() {
        for &v in &node.outputs {
            if values[v.0].home == Home::Computed {
                slot_of[v.0] = Some(slots.take(bytes(v)));
            }
        }
        let own: Vec<usize> = scratch.iter().map(|&b| slots.take(b)).collect();
        if share {
            own.iter().for_each(|&s| slots.give(s));
            let mut ended: Vec<ValueId> = node.inputs.iter().chain(&node.outputs).copied().filter(|v| last_use[v.0] == i).collect();
            ended.sort_unstable();
            ended.dedup();
            for v in ended {
                if let Some(s) = slot_of[v.0].filter(|_| values[v.0].home == Home::Computed) {
                    slots.give(s);
                }
            }
        }
        scratch_of.push(own);
    }
    Assignment { slots: slots.bytes, slot_of, scratch: scratch_of }
}
