//! Cheap activations are computed again where the gradient needs them instead of being kept until then.
//!
//! What is between convolutions (normalised, activated, pooled, refined values) costs one pass over memory. The rewrite
//! looks at the operation during which the most memory is in use. A value that merely waits there for a later use, and that
//! a cheap operation can make again from what is kept anyway, is given up, and made again right before its next use. That is
//! repeated as long as the most memory in use gets less. The same operation on the same operands gives the same bits, so
//! results do not change.

use std::collections::HashSet;

use crate::graph::{Graph, Home, Node, Op, ValueId, producer};

/// Rounds per operation, after which the search ends at the latest.
const ROUNDS: usize = 4;

/// `graph` with what pays computed twice. Values keep their numbers; those that are computed again get another one.
pub fn recompute(graph: &Graph) -> Graph {
    let mut work = graph.clone();
    let (mut best, mut least) = (None, peak(&work).1);
    let mut refused: HashSet<ValueId> = HashSet::new();
    for _ in 0..ROUNDS * graph.nodes().len() {
        let (at, bytes) = peak(&work);
        let Some((value, next)) = waiting(&work, at, &refused) else { break };
        match again(&work, value, next) {
            // It must not make another place the worse.
            Some(changed) if peak(&changed).1 <= bytes => work = changed,
            _ => {
                refused.insert(value);
            }
        }
        let now = peak(&work).1;
        if now < least {
            (best, least) = (Some(work.clone()), now);
        }
    }
    best.unwrap_or_else(|| graph.clone())
}

/// First and last operation that has to do with each computed value; outputs last for ever.
fn lives(graph: &Graph) -> Vec<Option<(usize, usize)>> {
    let mut out: Vec<Option<(usize, usize)>> = vec![None; graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        for v in node.inputs.iter().chain(&node.outputs).filter(|v| graph.values()[v.0].home == Home::Computed) {
            out[v.0] = Some(out[v.0].map_or((i, i), |(first, _)| (first, i)));
        }
    }
    for (_, v) in graph.outputs() {
        if let Some(life) = &mut out[v.0] {
            life.1 = usize::MAX;
        }
    }
    out
}

/// The first operation during which the most bytes are in use, and these bytes.
pub fn peak(graph: &Graph) -> (usize, u64) {
    let mut change = vec![(0u64, 0u64); graph.nodes().len() + 1];
    for (v, life) in graph.values().iter().zip(lives(graph)) {
        if let Some((first, last)) = life {
            change[first].0 += v.bytes();
            if let Some(after) = last.checked_add(1).and_then(|i| change.get_mut(i)) {
                after.1 += v.bytes();
            }
        }
    }
    let (mut now, mut most) = (0, (0, 0));
    for (i, (more, less)) in change.into_iter().enumerate() {
        now = now + more - less;
        if now > most.1 {
            most = (i, now);
        }
    }
    most
}

/// The largest value that is not used by operation `at` but by an earlier and a later one, and that later one.
fn waiting(graph: &Graph, at: usize, refused: &HashSet<ValueId>) -> Option<(ValueId, usize)> {
    let lives = lives(graph);
    let candidates = (0..graph.values().len()).map(ValueId).filter(|v| !refused.contains(v)).filter_map(|v| {
        let (first, last) = lives[v.0].filter(|l| l.0 < at && at < l.1 && l.1 != usize::MAX)?;
        let uses = |i: usize| graph.nodes()[i].inputs.contains(&v);
        if uses(at) || cheap(&graph.nodes()[first]).is_none_or(|c| c.result != v) {
            return None;
        }
        (at + 1..=last).find(|&i| uses(i)).map(|next| (v, next))
    });
    candidates.max_by_key(|(v, _)| (graph.values()[v.0].bytes(), std::cmp::Reverse(v.0)))
}

/// How a result is computed a second time.
struct Cheap {
    op: Op,
    inputs: Vec<ValueId>,
    result: ValueId,
    /// Results that are computed besides, of which nobody takes note.
    besides: Vec<ValueId>,
}

/// How the first result of `node` is computed again without a convolution or another effect, if it can be.
fn cheap(node: &Node) -> Option<Cheap> {
    let as_it_is =
        || Cheap { op: node.op.clone(), inputs: node.inputs.clone(), result: node.outputs[0], besides: node.outputs[1..].to_vec() };
    match &node.op {
        // The statistics are kept, and the running ones have moved already.
        Op::BatchNorm { geom, .. } | Op::BatchNormRunning(geom) => Some(Cheap {
            op: Op::NormApply { geom: *geom, relu: false },
            inputs: vec![node.inputs[0], node.outputs[1]],
            result: node.outputs[0],
            besides: Vec::new(),
        }),
        Op::NormApply { .. }
        | Op::MaxPool(_)
        | Op::NormMaxPool(_)
        | Op::AvgPool(_)
        | Op::Upsample(..)
        | Op::Activation(_)
        | Op::PRelu
        | Op::Add
        | Op::Scale(_) => Some(as_it_is()),
        // Convolutions and their gradients, reductions, losses, and gradients of activations, which are used at once.
        Op::Conv3d { .. }
        | Op::Conv3dInputGrad { .. }
        | Op::Conv3dWeightGrad { .. }
        | Op::FusedConv3d(_)
        | Op::LoadedWeightGrad { .. }
        | Op::Head(_)
        | Op::ChannelSum
        | Op::MaxPoolGrad(_)
        | Op::MaxPoolGradAdd(_)
        | Op::AvgPoolGrad(_)
        | Op::GlobalAvgPool
        | Op::GlobalAvgPoolGrad
        | Op::UpsampleGrad(..)
        | Op::BatchNormGrad { .. }
        | Op::NormStatistics { .. }
        | Op::NormFixed(_)
        | Op::ActivationGrad(_)
        | Op::PReluGrad
        | Op::Fill(_)
        | Op::Pointwise(_)
        | Op::PointwiseGrad(_)
        | Op::CrossEntropy
        | Op::CrossEntropyGrad
        | Op::Correct
        | Op::SoftDice
        | Op::SoftDiceGrad
        | Op::Softmax
        | Op::SoftmaxGrad
        | Op::ClassDice(_)
        | Op::ClassDiceGrad(_)
        | Op::Weigh
        | Op::ArgMax
        | Op::Mean
        | Op::MeanGrad => None,
    }
}

/// `graph` with `value` computed again before operation `next`, which and whose successors use the new one.
fn again(graph: &Graph, value: ValueId, next: usize) -> Option<Graph> {
    let mut out = graph.clone();
    let (mut nodes, mut longer) = (Vec::new(), 0);
    let new = make(&mut out, &lives(graph), value, next, &mut nodes, &mut longer)?;
    // What has to be kept longer for it must be less.
    if longer >= graph.values()[value.0].bytes() {
        return None;
    }
    let mut all = graph.nodes().to_vec();
    for node in &mut all[next..] {
        for input in node.inputs.iter_mut().filter(|i| **i == value) {
            *input = new;
        }
    }
    all.splice(next..next, nodes);
    Some(out.rewritten(all))
}

/// Adds to `nodes` what makes `value` before operation `next`, and to `longer` the bytes that are kept longer for that.
fn make(
    graph: &mut Graph,
    lives: &[Option<(usize, usize)>],
    value: ValueId,
    next: usize,
    nodes: &mut Vec<Node>,
    longer: &mut u64,
) -> Option<ValueId> {
    let node = graph.nodes()[producer(graph.nodes(), value)?].clone();
    let Cheap { op, mut inputs, result, besides } = cheap(&node).filter(|c| c.result == value)?;
    for input in &mut inputs {
        // Parameters and inputs stay, and what is used later is there.
        if lives[input.0].is_none_or(|l| l.1 >= next) {
            continue;
        }
        let before = (nodes.len(), *longer);
        match make(graph, lives, *input, next, nodes, longer) {
            Some(new) => *input = new,
            None => {
                nodes.truncate(before.0);
                *longer = before.1 + graph.values()[input.0].bytes();
            }
        }
    }
    let outputs: Vec<ValueId> = [result].into_iter().chain(besides).map(|v| graph.twin(v)).collect();
    let new = outputs[0];
    nodes.push(Node { op, inputs, outputs, label: format!("{}.again", node.label) });
    Some(new)
}
