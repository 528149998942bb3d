//! Fusion: the same network by fewer passes over memory.
//!
//! [`fuse`] rewrites a graph, its gradient included, to one that computes the same values. A rule looks only at
//! what operations compute and who uses it: a value that is an output, or that something else needs, stays.

use crate::gpu::Caps;
use crate::graph::{FusedConv, Graph, Head, Home, Node, Op, ValueId, producer};
use crate::kernels::activation::Function;
use crate::kernels::batch_norm::Use;
use crate::kernels::loss::{Pointwise, head};

/// Which rules are applied. Each works alone; the results differ from those of single operations by rounding at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusion {
    /// A convolution gives the statistics that the batch norm after it needs: its output is not read for them.
    pub statistics: bool,
    /// Batch norm and ReLU are one pass; their gradient is one operation that works out from the norm's input again
    /// what passed the ReLU.
    pub activation: bool,
    /// Batch norm and ReLU are applied where the result is read, and it is never stored, if everything that reads it
    /// can do that. Includes `activation` where it applies.
    pub load: bool,
    /// The gradient of a bias before a batch norm with the batch's statistics is zero, because the norm takes the bias out
    /// again: nothing is summed.
    pub bias: bool,
    /// The last layer, its sigmoid, the loss and the gradients of these are one pass.
    pub loss: bool,
    /// The gradient of a max-pool is added to the other one of its input as it is written.
    pub add: bool,
}

impl Fusion {
    /// Every operation by itself.
    pub const NONE: Self = Self { statistics: false, activation: false, load: false, bias: false, loss: false, add: false };
    /// All rules.
    pub const ALL: Self = Self { statistics: true, activation: true, load: true, bias: true, loss: true, add: true };

    /// What pays on an adapter.
    pub fn on(caps: &Caps) -> Self {
        // A processor's convolutions are bound by arithmetic and read each value many times.
        Self { load: caps.kind != crate::gpu::Kind::Cpu, ..Self::ALL }
    }
}

/// `graph` by fewer operations. Values keep their numbers; those that are no longer computed are used by nothing.
pub fn fuse(graph: &Graph, fusion: &Fusion, caps: &Caps) -> Graph {
    let mut w = Work { graph, nodes: graph.nodes().to_vec() };
    if fusion.loss {
        w.everywhere(|w, i| w.loss(i, caps));
    }
    if fusion.bias {
        w.everywhere(Work::bias);
    }
    if fusion.add {
        w.everywhere(Work::add);
    }
    if fusion.activation || fusion.load {
        w.everywhere(Work::activation);
    }
    if fusion.load {
        w.everywhere(|w, i| w.load(i, caps));
    }
    if fusion.statistics {
        w.everywhere(Work::statistics);
    }
    graph.rewritten(w.nodes)
}

/// Replacements of operations, by their place.
type Edits = Vec<(usize, Vec<Node>)>;

/// A graph being rewritten.
struct Work<'g> {
    graph: &'g Graph,
    nodes: Vec<Node>,
}

impl Work<'_> {
    /// Applies `rule` to every operation until it finds nothing.
    fn everywhere(&mut self, rule: impl Fn(&Self, usize) -> Option<Edits>) {
        let mut i = 0;
        while i < self.nodes.len() {
            match rule(self, i) {
                Some(edits) => {
                    let mut slots: Vec<Vec<Node>> = self.nodes.drain(..).map(|n| vec![n]).collect();
                    for (place, nodes) in edits {
                        slots[place] = nodes;
                    }
                    self.nodes = slots.into_iter().flatten().collect();
                    i = 0;
                }
                None => i += 1,
            }
        }
    }

    fn users(&self, v: ValueId) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].inputs.contains(&v)).collect()
    }

    /// Whether `v` is read after the run.
    fn kept(&self, v: ValueId) -> bool {
        self.graph.outputs().iter().any(|(_, o)| *o == v) || self.graph.values()[v.0].home != Home::Computed
    }

    /// The one operation that uses `v`, once, if nothing else needs it.
    fn only_user(&self, v: ValueId) -> Option<usize> {
        match self.users(v)[..] {
            [i] if !self.kept(v) && self.nodes[i].inputs.iter().filter(|&&x| x == v).count() == 1 => Some(i),
            _ => None,
        }
    }

    /// Operation `i` as `op` with other operands and results.
    fn like(&self, i: usize, op: Op, inputs: Vec<ValueId>, outputs: Vec<ValueId>) -> Node {
        Node { op, inputs, outputs, label: self.nodes[i].label.clone() }
    }

    /// `ChannelSum` of what a batch norm passes back.
    fn bias(&self, i: usize) -> Option<Edits> {
        let node = &self.nodes[i];
        let source = match node.op {
            Op::ChannelSum => producer(&self.nodes, node.inputs[0])?,
            _ => return None,
        };
        let from = &self.nodes[source];
        match from.op {
            Op::BatchNormGrad { how, .. } if !how.fixed && from.outputs[0] == node.inputs[0] => {
                Some(vec![(i, vec![self.like(i, Op::Fill(0.0), vec![], node.outputs.clone())])])
            }
            _ => None,
        }
    }

    /// Sum of a max-pool's gradient and another.
    fn add(&self, i: usize) -> Option<Edits> {
        let node = &self.nodes[i];
        if node.op != Op::Add {
            return None;
        }
        [[0, 1], [1, 0]].into_iter().find_map(|[pooled, other]| {
            let pool = producer(&self.nodes, node.inputs[pooled])?;
            match self.nodes[pool].op {
                Op::MaxPoolGrad(geom) if self.only_user(node.inputs[pooled]) == Some(i) => {
                    let from = &self.nodes[pool].inputs;
                    let inputs = vec![from[0], from[1], node.inputs[other]];
                    Some(vec![(pool, vec![]), (i, vec![self.like(i, Op::MaxPoolGradAdd(geom), inputs, node.outputs.clone())])])
                }
                _ => None,
            }
        })
    }

    /// What gives `norm` from the operands of batch norm `i`.
    fn vectors(&self, i: usize) -> Option<Node> {
        let node = &self.nodes[i];
        let norm = vec![*node.outputs.get(1)?];
        match node.op {
            Op::BatchNorm { geom, momentum } => Some(self.like(i, Op::NormStatistics { geom, momentum }, node.inputs.clone(), norm)),
            Op::BatchNormRunning(geom) => Some(self.like(i, Op::NormFixed(geom), node.inputs[1..].to_vec(), norm)),
            _ => None,
        }
    }

    /// Batch norm and the ReLU after it, with the gradients of both.
    fn activation(&self, i: usize) -> Option<Edits> {
        let node = &self.nodes[i];
        let (Op::BatchNorm { geom, .. } | Op::BatchNormRunning(geom)) = node.op else { return None };
        let (x, y, norm) = (node.inputs[0], node.outputs[0], *node.outputs.get(1)?);
        let relu = self.only_user(y).filter(|&j| self.nodes[j].op == Op::Activation(Function::Relu))?;
        let a = self.nodes[relu].outputs[0];
        let apply = self.like(i, Op::NormApply { geom, relu: true }, vec![x, norm], vec![a]);
        let mut edits = vec![(i, vec![self.vectors(i)?, apply]), (relu, vec![])];
        for j in self.users(a) {
            let node = &self.nodes[j];
            if node.op != Op::ActivationGrad(Function::Relu) || node.inputs[0] != a {
                continue;
            }
            let back = self.only_user(node.outputs[0])?;
            let Node { op: Op::BatchNormGrad { geom, how }, inputs, outputs, .. } = &self.nodes[back] else { return None };
            if inputs[..] != [x, norm, node.outputs[0]] {
                return None;
            }
            let op = Op::BatchNormGrad { geom: *geom, how: Use { relu: true, ..*how } };
            edits.extend([(j, vec![]), (back, vec![self.like(back, op, vec![x, norm, node.inputs[1]], outputs.clone())])]);
        }
        Some(edits)
    }

    /// Batch norm and ReLU whose result is read only by what can apply them itself.
    fn load(&self, i: usize, caps: &Caps) -> Option<Edits> {
        let node = &self.nodes[i];
        if !matches!(node.op, Op::NormApply { relu: true, .. }) {
            return None;
        }
        let (x, norm, a) = (node.inputs[0], node.inputs[1], node.outputs[0]);
        if self.kept(a) {
            return None;
        }
        let mut edits = vec![(i, vec![])];
        for j in self.users(a) {
            edits.push((j, vec![self.loading(j, a, x, norm, caps)?]));
        }
        Some(edits)
    }

    /// Operation `j` with `x`, normalised as it is read, in place of `a`.
    fn loading(&self, j: usize, a: ValueId, x: ValueId, norm: ValueId, caps: &Caps) -> Option<Node> {
        let node = &self.nodes[j];
        // Where sources may be: the first `n` operands, `a` nowhere else.
        let sources = |n: usize| !node.inputs[n..].contains(&a);
        let (op, inputs) = match &node.op {
            Op::Conv3d { .. } | Op::FusedConv3d(_) => {
                let (mut conv, mut inputs) = fused(node)?;
                let n = conv.sources.len();
                if !sources(n) {
                    return None;
                }
                load_sources(&mut conv.norms, &mut inputs, a, x, norm);
                (Op::FusedConv3d(conv), inputs)
            }
            Op::Conv3dWeightGrad { geom, sources: ranges } | Op::LoadedWeightGrad { geom, sources: ranges, .. } => {
                let n = ranges.len();
                if !sources(n) {
                    return None;
                }
                let mut norms = if let Op::LoadedWeightGrad { norms, .. } = &node.op { norms.clone() } else { vec![false; n] };
                let mut inputs = node.inputs.clone();
                load_sources(&mut norms, &mut inputs, a, x, norm);
                (Op::LoadedWeightGrad { geom: *geom, sources: ranges.clone(), norms }, inputs)
            }
            Op::MaxPool(geom) => (Op::NormMaxPool(*geom), vec![x, norm]),
            Op::Head(h) if !h.parts.norm && sources(1) => {
                let parts = head::Parts { norm: true, ..h.parts };
                if parts.buffers() > caps.max_storage_buffers {
                    return None;
                }
                let inputs = [x, norm].into_iter().chain(node.inputs[1..].iter().copied()).collect();
                (Op::Head(Head { parts, ..*h }), inputs)
            }
            _ => return None,
        };
        Some(self.like(j, op, inputs, node.outputs.clone()))
    }

    /// A batch norm's statistics, where what it normalises comes out of a convolution.
    fn statistics(&self, i: usize) -> Option<Edits> {
        let node = &self.nodes[i];
        let (geom, momentum) = match node.op {
            Op::BatchNorm { geom, momentum } | Op::NormStatistics { geom, momentum } => (geom, momentum),
            _ => return None,
        };
        let (x, norm) = (node.inputs[0], *node.outputs.last()?);
        let conv = producer(&self.nodes, x)?;
        let (mut op, mut inputs) = fused(&self.nodes[conv])?;
        if op.statistics.is_some() {
            return None;
        }
        op.statistics = Some((geom, momentum));
        inputs.extend(&node.inputs[1..]);
        let with = self.like(conv, Op::FusedConv3d(op), inputs, vec![x, norm]);
        let rest = match node.op {
            Op::BatchNorm { .. } => vec![self.like(i, Op::NormApply { geom, relu: false }, vec![x, norm], vec![node.outputs[0]])],
            _ => vec![],
        };
        Some(vec![(conv, vec![with]), (i, rest)])
    }

    /// A 1×1×1 convolution to one channel, its sigmoid and an elementwise loss, with their gradients.
    fn loss(&self, i: usize, caps: &Caps) -> Option<Edits> {
        let conv = &self.nodes[i];
        let Op::Conv3d { geom: g, sources } = &conv.op else { return None };
        let [x, weight, bias] = conv.inputs[..] else { return None };
        let shape = self.graph.shape(x);
        let geom = head::Geom { batch: shape.batch, voxels: shape.voxels(), channels: shape.channels };
        let single = g.kernel == [1; 3] && g.stride == [1; 3] && g.padding == [0; 3] && g.out_channels == 1 && sources.len() == 1;
        if !single || !geom.fits() {
            return None;
        }
        let sigmoid = self.only_user(conv.outputs[0]).filter(|&j| self.nodes[j].op == Op::Activation(Function::Sigmoid))?;
        let r = self.nodes[sigmoid].outputs[0];
        let users = self.users(r);
        let losses: Vec<usize> = users.iter().copied().filter(|&j| matches!(self.nodes[j].op, Op::Pointwise(_))).collect();
        let [loss] = losses[..] else { return None };
        let (Op::Pointwise(kind), [prediction, target]) = (&self.nodes[loss].op, &self.nodes[loss].inputs[..]) else { return None };
        if !matches!(kind, Pointwise::Mse | Pointwise::Mae)
            || *prediction != r
            || *target == r
            || producer(&self.nodes, *target).is_some_and(|p| p >= i)
        {
            return None;
        }
        let backs: Vec<usize> = users.iter().copied().filter(|j| ![sigmoid, loss].contains(j)).collect();
        let is_gradient = |&&j: &&usize| matches!(self.nodes[j].op, Op::PointwiseGrad(_) | Op::ActivationGrad(_));
        let gradient = match backs.iter().filter(is_gradient).count() {
            0 => None,
            _ => Some(self.loss_gradient(i, r, *kind, *target, x, weight)?),
        };
        let ours = if gradient.is_some() { 2 } else { 0 };
        let parts = head::Parts { norm: false, restored: self.kept(r) || backs.len() > ours, gradient: gradient.is_some() };
        if parts.buffers() > caps.max_storage_buffers {
            return None;
        }
        let mut inputs = vec![x, weight, bias, *target];
        let mut outputs = vec![self.nodes[loss].outputs[0]];
        if parts.restored {
            outputs.push(r);
        }
        let mut edits = vec![(sigmoid, vec![]), (loss, vec![])];
        let mut nodes = Vec::new();
        if let Some(g) = gradient {
            inputs.push(g.d_loss);
            outputs.extend(g.results);
            nodes.extend(g.before.iter().map(|&j| self.nodes[j].clone()));
            edits.extend(g.before.iter().chain(&g.replaced).map(|&j| (j, vec![])));
        }
        nodes.push(self.like(i, Op::Head(Head { geom, loss: *kind, parts }), inputs, outputs));
        edits.push((i, nodes));
        Some(edits)
    }

    /// The gradient of the head whose convolution is `i` and whose sigmoid is `r`, if it is nothing but that.
    fn loss_gradient(&self, i: usize, r: ValueId, kind: Pointwise, target: ValueId, x: ValueId, weight: ValueId) -> Option<HeadGradient> {
        let find = |op: Op, inputs: &[Option<ValueId>]| {
            let fits = |n: &Node| n.op == op && n.inputs.iter().zip(inputs).all(|(a, b)| b.is_none_or(|b| *a == b));
            let mut found = (0..self.nodes.len()).filter(|&j| fits(&self.nodes[j]));
            found.next().filter(|_| found.next().is_none())
        };
        let of_loss = find(Op::PointwiseGrad(kind), &[Some(r), Some(target), None])?;
        let of_sigmoid = self.only_user(self.nodes[of_loss].outputs[0])?;
        let d_logit = self.nodes[of_sigmoid].outputs[0];
        if self.nodes[of_sigmoid].op != Op::ActivationGrad(Function::Sigmoid) || self.nodes[of_sigmoid].inputs[0] != r {
            return None;
        }
        let Op::Conv3d { geom, sources } = &self.nodes[i].op else { return None };
        let of_weight = find(Op::Conv3dWeightGrad { geom: *geom, sources: sources.clone() }, &[Some(x), Some(d_logit)])?;
        let of_bias = find(Op::ChannelSum, &[Some(d_logit)])?;
        // What else takes the gradient of the logits is the gradient of x.
        let of_x = |&j: &usize| matches!(self.nodes[j].op, Op::Conv3dInputGrad { .. }) && self.nodes[j].inputs[..] == [d_logit, weight];
        if !self.users(d_logit).iter().filter(|j| ![of_weight, of_bias].contains(j)).all(of_x) {
            return None;
        }
        let d_loss = self.nodes[of_loss].inputs[2];
        let mut before = Vec::new();
        self.constants(d_loss, &mut before)?;
        before.sort_unstable();
        before.dedup();
        before.retain(|&j| j > i);
        let results = vec![d_logit, self.nodes[of_weight].outputs[0], self.nodes[of_bias].outputs[0]];
        Some(HeadGradient { d_loss, results, before, replaced: vec![of_loss, of_sigmoid, of_weight, of_bias] })
    }

    /// The operations that `v` comes from, if that is a constant or a loss scale: the gradient of a loss depends on
    /// nothing else.
    fn constants(&self, v: ValueId, into: &mut Vec<usize>) -> Option<()> {
        if self.graph.values()[v.0].home == Home::Input {
            return Some(());
        }
        let from = producer(&self.nodes, v)?;
        let node = &self.nodes[from];
        if !matches!(node.op, Op::Fill(_) | Op::Scale(_) | Op::Add | Op::MeanGrad) {
            return None;
        }
        into.push(from);
        node.inputs.iter().try_for_each(|&x| self.constants(x, into))
    }
}

/// What becomes part of the last layer.
struct HeadGradient {
    d_loss: ValueId,
    /// Gradients of logits, weight and bias.
    results: Vec<ValueId>,
    /// Operations that must come before.
    before: Vec<usize>,
    /// Operations that it stands for.
    replaced: Vec<usize>,
}

/// A convolution as one that more can be added to.
fn fused(node: &Node) -> Option<(FusedConv, Vec<ValueId>)> {
    match &node.op {
        Op::Conv3d { geom, sources } => {
            let n = sources.len();
            let conv = FusedConv {
                geom: *geom,
                sources: sources.clone(),
                norms: vec![false; n],
                bias: node.inputs.len() > n + 1,
                statistics: None,
            };
            Some((conv, node.inputs.clone()))
        }
        Op::FusedConv3d(conv) => Some((conv.clone(), node.inputs.clone())),
        _ => None,
    }
}

/// Replaces `a` among the sources by `x`, to be normalised with `norm`; the norms follow the sources in their order.
fn load_sources(norms: &mut [bool], inputs: &mut Vec<ValueId>, a: ValueId, x: ValueId, norm: ValueId) {
    let n = norms.len();
    for s in 0..n {
        if inputs[s] == a && !norms[s] {
            inputs[s] = x;
            let place = n + norms[..s].iter().filter(|&&l| l).count();
            inputs.insert(place, norm);
            norms[s] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Init, Layout, NormValues, Shape};

    const GRID: [usize; 3] = [4, 4, 4];

    struct Build(Graph);

    impl Build {
        fn new() -> (Self, ValueId) {
            let mut g = Graph::new();
            let x = g.input("x", Shape::new(2, GRID, 4));
            (Self(g), x)
        }

        fn conv(&mut self, name: &str, sources: &[ValueId], out: usize, kernel: usize) -> ValueId {
            let channels = sources.iter().map(|&s| self.0.shape(s).channels).sum();
            let layout = Layout::Conv { kernel: [kernel; 3], first: out, second: channels };
            let w = self.0.param(&format!("{name}.weight"), layout, Init::Constant(0.1)).unwrap();
            let b = self.0.param(&format!("{name}.bias"), Layout::Vector(out), Init::Constant(0.0)).unwrap();
            self.0.conv3d(name, sources, w, Some(b), out, [kernel; 3], [1; 3], [kernel / 2; 3]).unwrap()
        }

        fn norm(&mut self, x: ValueId, running: bool) -> ValueId {
            let c = self.0.shape(x).channels;
            let v = NormValues {
                gamma: self.0.param(&format!("gamma{}", x.0), Layout::Vector(c), Init::Constant(1.0)).unwrap(),
                beta: self.0.param(&format!("beta{}", x.0), Layout::Vector(c), Init::Constant(0.0)).unwrap(),
                running_mean: self.0.state(&format!("mean{}", x.0), c, 0.0).unwrap(),
                running_var: self.0.state(&format!("var{}", x.0), c, 1.0).unwrap(),
            };
            if running { self.0.batch_norm_running("norm", x, v, 1e-5) } else { self.0.batch_norm("norm", x, v, 1e-5, 0.1) }.unwrap()
        }

        fn relu(&mut self, x: ValueId) -> ValueId {
            self.0.activation("relu", Function::Relu, x)
        }

        /// Convolution, batch norm, ReLU: each of the three values.
        fn block(&mut self, name: &str, x: ValueId) -> [ValueId; 3] {
            let c = self.conv(name, &[x], 4, 3);
            let y = self.norm(c, false);
            let a = self.relu(y);
            [c, y, a]
        }

        /// Appends a loss of `v` and its gradient.
        fn train(&mut self, v: ValueId) {
            let t = self.0.input("target", self.0.shape(v));
            let each = self.0.pointwise_loss("loss", Pointwise::Mse, v, t).unwrap();
            let mean = self.0.mean("loss", each);
            self.0.backward(mean, &[]).unwrap();
        }

        /// Names of the operations after fusion; operands are always computed before they are used.
        fn fused(&self, fusion: Fusion) -> Vec<&'static str> {
            let g = fuse(&self.0, &fusion, &Caps::minimal());
            let mut computed: Vec<bool> = g.values().iter().map(|v| v.home != Home::Computed).collect();
            for n in g.nodes() {
                assert!(n.inputs.iter().all(|v| computed[v.0]), "{} comes before its operands", n.op.name());
                n.outputs.iter().for_each(|v| computed[v.0] = true);
            }
            assert!(g.outputs().iter().all(|(_, v)| computed[v.0]), "an output is gone");
            g.nodes().iter().map(|n| n.op.name()).collect()
        }
    }

    const N: Fusion = Fusion::NONE;
    const ACTIVATION: Fusion = Fusion { activation: true, ..N };
    const LOAD: Fusion = Fusion { load: true, ..N };
    const STATISTICS: Fusion = Fusion { statistics: true, ..N };
    const LOSS: Fusion = Fusion { loss: true, ..N };

    fn count(names: &[&str], name: &str) -> usize {
        names.iter().filter(|n| **n == name).count()
    }

    #[test]
    fn nothing_is_changed_without_rules_or_patterns() {
        let (mut b, x) = Build::new();
        let [.., a] = b.block("one", x);
        b.train(a);
        assert_eq!(fuse(&b.0, &N, &Caps::minimal()).nodes(), b.0.nodes());
        let (mut b, x) = Build::new();
        let e = b.0.activation("elu", Function::Elu, x);
        b.0.output("e", e);
        assert_eq!(fuse(&b.0, &Fusion::ALL, &Caps::minimal()).nodes(), b.0.nodes());
    }

    #[test]
    fn batch_norm_and_relu_become_one_with_their_gradient() {
        let (mut b, x) = Build::new();
        let [.., a] = b.block("one", x);
        b.train(a);
        let names = b.fused(ACTIVATION);
        assert_eq!(names[..3], ["conv3d", "batch_norm.statistics", "batch_norm.apply+relu"]);
        assert_eq!(count(&names, "batch_norm.grad+relu"), 1);
        assert_eq!(count(&names, "activation.grad") + count(&names, "batch_norm.grad") + count(&names, "activation"), 0);
        let names = b.fused(Fusion::ALL);
        assert_eq!(names[..2], ["conv3d+statistics", "batch_norm.apply+relu"], "the loss cannot normalise");
        assert_eq!((count(&names, "channel_sum"), count(&names, "fill")), (0, 2), "the bias gradient is a fill, as is the loss's");
    }

    #[test]
    fn batch_norm_stays_by_itself_where_its_result_is_needed() {
        // As an output, by another operation, by another function.
        for other in 0..3 {
            let (mut b, x) = Build::new();
            let c = b.conv("one", &[x], 4, 3);
            let y = b.norm(c, false);
            match other {
                0 => b.0.output("y", y),
                1 => {
                    let z = b.0.scale("twice", y, 2.0);
                    b.0.output("z", z);
                }
                _ => {}
            }
            let a = b.0.activation("f", if other == 2 { Function::Elu } else { Function::Relu }, y);
            b.train(a);
            assert_eq!(b.fused(ACTIVATION), b.fused(N), "{other}");
            let names = b.fused(Fusion::ALL);
            assert_eq!(names[..2], ["conv3d+statistics", "batch_norm.apply"], "{other}");
        }
    }

    #[test]
    fn loads_replace_an_activation_only_if_all_its_readers_can() {
        let (mut b, x) = Build::new();
        let [_, _, a] = b.block("one", x);
        let pooled = b.0.max_pool("pool", a, [2; 3], [2; 3], [0; 3]).unwrap();
        let up = b.0.upsample("up", pooled, GRID, crate::graph::Upsampling::Nearest);
        let z = b.conv("two", &[up, a], 4, 3);
        b.train(z);
        let names = b.fused(LOAD);
        assert_eq!(count(&names, "batch_norm.apply+relu"), 0);
        assert_eq!(names[..5], ["conv3d", "batch_norm.statistics", "load+max_pool", "upsample", "load+conv3d"]);
        assert_eq!(count(&names, "load+conv3d.weight_grad"), 1);
        // The same activation as an output, and read by what cannot normalise.
        let mut kept = Build(b.0.clone());
        kept.0.output("a", a);
        assert_eq!(count(&kept.fused(LOAD), "batch_norm.apply+relu"), 1);
        let (mut b, x) = Build::new();
        let [_, _, a] = b.block("one", x);
        b.conv("two", &[a], 4, 3);
        b.0.scale("three", a, 2.0);
        assert_eq!(b.fused(LOAD), ["conv3d", "batch_norm.statistics", "batch_norm.apply+relu", "conv3d", "scale"]);
    }

    #[test]
    fn an_activation_read_twice_by_one_convolution_is_loaded_twice() {
        let (mut b, x) = Build::new();
        let [_, _, a] = b.block("one", x);
        let [_, _, d] = b.block("two", x);
        b.conv("three", &[a, x, a, d], 4, 3);
        let g = fuse(&b.0, &LOAD, &Caps::minimal());
        let last = g.nodes().last().unwrap();
        let Op::FusedConv3d(conv) = &last.op else { panic!("{:?}", last.op) };
        assert_eq!(conv.norms, [true, false, true, true]);
        let norm_of = |label: &str| {
            let place = g.nodes().iter().position(|n| n.label == label).unwrap();
            (g.nodes()[place].outputs[0], g.nodes()[place + 1].outputs[0])
        };
        let ((c1, n1), (c2, n2)) = (norm_of("one"), norm_of("two"));
        assert_eq!(last.inputs[..7], [c1, x, c1, c2, n1, n1, n2]);
    }

    #[test]
    fn statistics_join_convolutions_but_not_other_operations() {
        let (mut b, x) = Build::new();
        b.norm(x, false);
        assert_eq!(b.fused(STATISTICS), ["batch_norm"], "an input");
        let (mut b, x) = Build::new();
        let c = b.conv("one", &[x], 4, 3);
        b.norm(c, true);
        assert_eq!(b.fused(STATISTICS), ["conv3d", "batch_norm.running"], "running statistics");
        let (mut b, x) = Build::new();
        let c = b.conv("one", &[x], 4, 3);
        b.0.output("c", c);
        b.norm(c, false);
        let y = b.norm(c, false);
        b.0.output("y", y);
        assert_eq!(b.fused(STATISTICS), ["conv3d+statistics", "batch_norm.apply", "batch_norm"], "once a convolution");
    }

    /// The last layer on `x`, with its loss; the sigmoid's result.
    fn head(b: &mut Build, x: ValueId, out: usize, kernel: usize) -> ValueId {
        let l = b.conv("head", &[x], out, kernel);
        b.0.activation("restored", Function::Sigmoid, l)
    }

    #[test]
    fn the_last_layer_is_one_pass_in_training_and_in_use() {
        for kept in [false, true] {
            let (mut b, x) = Build::new();
            let [_, _, a] = b.block("one", x);
            let r = head(&mut b, a, 1, 1);
            if kept {
                b.0.output("restored", r);
            }
            let mut used = Build(b.0.clone());
            let t = used.0.input("target", used.0.shape(r));
            let each = used.0.pointwise_loss("loss", Pointwise::Mae, r, t).unwrap();
            used.0.output("loss", each);
            assert_eq!(used.fused(LOSS)[3..], ["conv3d+sigmoid+loss"]);
            b.train(r);
            let names = b.fused(LOSS);
            assert_eq!(
                names[3..],
                [
                    "fill",
                    "mean.grad",
                    "conv3d+sigmoid+loss",
                    "mean",
                    "conv3d.input_grad",
                    "activation.grad",
                    "batch_norm.grad",
                    "conv3d.weight_grad",
                    "channel_sum"
                ]
            );
            let names = b.fused(Fusion::ALL);
            let whole = if kept { "conv3d+sigmoid+loss" } else { "load+conv3d+sigmoid+loss" };
            assert_eq!(count(&names, whole), 1, "eight buffers are the most: {names:?}");
        }
    }

    #[test]
    fn other_last_layers_stay() {
        // Two channels, a larger kernel, another function, a second use of the logits, a second loss.
        for other in 0..5 {
            let (mut b, x) = Build::new();
            let l = b.conv("head", &[x], if other == 0 { 2 } else { 1 }, if other == 1 { 3 } else { 1 });
            let r = b.0.activation("restored", if other == 2 { Function::Elu } else { Function::Sigmoid }, l);
            if other == 3 {
                b.0.output("logits", l);
            }
            if other == 4 {
                let t = b.0.input("mask", b.0.shape(r));
                let dice = b.0.soft_dice("dice", r, t).unwrap();
                b.0.output("dice", dice);
                let s = b.0.input("other", b.0.shape(r));
                let each = b.0.pointwise_loss("loss", Pointwise::Mae, r, s).unwrap();
                b.0.output("each", each);
            }
            b.train(r);
            assert_eq!(b.fused(LOSS), b.fused(N), "{other}");
        }
    }

    #[test]
    fn a_sum_that_is_not_only_of_a_pool_stays() {
        let (mut b, x) = Build::new();
        let p = b.0.max_pool("pool", x, [2; 3], [2; 3], [0; 3]).unwrap();
        let u = b.0.upsample("up", p, GRID, crate::graph::Upsampling::Nearest);
        let s = b.0.add("sum", u, x).unwrap();
        b.0.output("s", s);
        let add = Fusion { add: true, ..N };
        assert_eq!(b.fused(add), b.fused(N));
        let t = b.0.input("target", b.0.shape(s));
        let each = b.0.pointwise_loss("loss", Pointwise::Mse, s, t).unwrap();
        let mean = b.0.mean("loss", each);
        b.0.backward(mean, &[x]).unwrap();
        let (with, without) = (b.fused(add), b.fused(N));
        assert_eq!((with.len() + 1, count(&with, "max_pool.grad+add")), (without.len(), 1));
    }
}
