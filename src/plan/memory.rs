//! Which values share memory.
//!
//! A slot is a whole buffer: wgpu tracks state by buffer, and a buffer may not be read and written by one
//! dispatch through two bindings. So two values share a slot only when their lifetimes are disjoint, and a result
//! never takes the slot of an operand.
//!
//! All lifetimes are known before anything is assigned, so the largest values choose first: each slot is as large as
//! the first value in it, and smaller ones fill the gaps in time that larger ones leave.

use crate::graph::{Graph, Home, ValueId};

/// Result of the assignment.
pub(super) struct Assignment {
    /// Bytes of each slot.
    pub(super) slots: Vec<u64>,
    /// Slot of each value that lives in one.
    pub(super) slot_of: Vec<Option<usize>>,
    /// Slots of each operation's scratch buffers.
    pub(super) scratch: Vec<Vec<usize>>,
    /// The most bytes that are in use at once: no assignment can do with less.
    pub(super) live: u64,
}

/// Something that needs memory from one operation to another, both included.
#[derive(Clone, Copy, Debug)]
struct Life {
    bytes: u64,
    first: usize,
    last: usize,
}

impl Life {
    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The most bytes of `lives` in use during one of `steps` operations.
fn most_live(lives: &[Life], steps: usize) -> u64 {
    let mut change = vec![0i128; steps + 1];
    for l in lives {
        change[l.first.min(steps)] += i128::from(l.bytes);
        if l.last < steps {
            change[l.last + 1] -= i128::from(l.bytes);
        }
    }
    let mut now = 0;
    change.into_iter().map(|c| (now += c, now).1).max().map_or(0, |m| u64::try_from(m).unwrap_or(0))
}

/// The slot of each of `lives`, and the bytes of each slot.
fn pack(lives: &[Life]) -> (Vec<usize>, Vec<u64>) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    // Of equal sizes the earlier first: then each takes the place that became free last.
    order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].bytes), lives[i].first, std::cmp::Reverse(lives[i].last), i));
    let mut slots: Vec<(u64, Vec<Life>)> = Vec::new();
    let mut slot_of = vec![0; lives.len()];
    for i in order {
        let life = lives[i];
        // Time between this life and the one before it in the same slot.
        let gap = |held: &[Life]| held.iter().filter(|h| h.last < life.first).map(|h| life.first - h.last).min().unwrap_or(usize::MAX);
        let fitting = slots.iter().enumerate().filter(|(_, (_, held))| !held.iter().any(|h| h.overlaps(&life)));
        let best = fitting.min_by_key(|(_, (bytes, held))| (*bytes, gap(held))).map(|(s, _)| s);
        let slot = best.unwrap_or_else(|| {
            slots.push((life.bytes, Vec::new()));
            slots.len() - 1
        });
        slots[slot].1.push(life);
        slot_of[i] = slot;
    }
    (slot_of, slots.into_iter().map(|s| s.0).collect())
}

/// Assigns slots to the values of `graph` and to the scratch buffers of its operations; with `share` false each has its own.
pub(super) fn assign<'s>(graph: &Graph, scratch: impl Iterator<Item = &'s [u64]>, share: bool) -> Assignment {
    let (values, steps) = (graph.values(), graph.nodes().len());
    let mut lives: Vec<Life> = values.iter().map(|v| Life { bytes: v.bytes(), first: usize::MAX, last: 0 }).collect();
    for (i, node) in graph.nodes().iter().enumerate() {
        for v in node.inputs.iter().chain(&node.outputs) {
            let life = &mut lives[v.0];
            (life.first, life.last) = (life.first.min(i), life.last.max(i));
        }
    }
    // The caller fills inputs before a run and reads outputs, and inputs, after it.
    for &(_, v) in graph.inputs() {
        (lives[v.0].first, lives[v.0].last) = (0, usize::MAX);
    }
    for &(_, v) in graph.outputs() {
        lives[v.0].last = usize::MAX;
    }
    let is_input = |v: usize| graph.inputs().iter().any(|(_, i)| *i == ValueId(v));
    let in_slots: Vec<usize> =
        (0..values.len()).filter(|&v| is_input(v) || (values[v].home == Home::Computed && lives[v].first != usize::MAX)).collect();
    let mut all: Vec<Life> = in_slots.iter().map(|&v| lives[v]).collect();
    let mut counts = Vec::with_capacity(steps);
    for (i, own) in scratch.enumerate() {
        all.extend(own.iter().map(|&bytes| Life { bytes, first: i, last: i }));
        counts.push(own.len());
    }
    let (slot_of_life, slots) = if share { pack(&all) } else { ((0..all.len()).collect(), all.iter().map(|l| l.bytes).collect()) };
    let mut slot_of = vec![None; values.len()];
    for (&v, &slot) in in_slots.iter().zip(&slot_of_life) {
        slot_of[v] = Some(slot);
    }
    let mut rest = slot_of_life[in_slots.len()..].iter().copied();
    let scratch = counts.into_iter().map(|n| rest.by_ref().take(n).collect()).collect();
    Assignment { slots, slot_of, scratch, live: most_live(&all, steps) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life() -> impl Strategy<Value = Life> {
        (1u64..1000, 0usize..40, 0usize..12).prop_map(|(bytes, first, length)| Life { bytes, first, last: first + length })
    }

    proptest! {
        #[test]
        fn lives_in_one_slot_are_apart_and_fit(lives in prop::collection::vec(life(), 1..60)) {
            let (slot_of, slots) = pack(&lives);
            for (i, a) in lives.iter().enumerate() {
                prop_assert!(a.bytes <= slots[slot_of[i]]);
                for (j, b) in lives.iter().enumerate().take(i) {
                    prop_assert!(slot_of[i] != slot_of[j] || !a.overlaps(b), "{a:?} and {b:?}");
                }
            }
            let total: u64 = slots.iter().sum();
            prop_assert!(total >= most_live(&lives, 60) && total <= lives.iter().map(|l| l.bytes).sum());
        }

        /// Equal sizes need exactly as many slots as there are lives at once.
        #[test]
        fn equal_sizes_are_packed_without_loss(lives in prop::collection::vec(life(), 1..60)) {
            let lives: Vec<Life> = lives.into_iter().map(|l| Life { bytes: 8, ..l }).collect();
            prop_assert_eq!(pack(&lives).1.iter().sum::<u64>(), most_live(&lives, 60));
        }
    }
}
