// The last layer of a network that restores: a logit for each voxel of [voxels, C], its sigmoid and the loss; in
// training also the gradients of logits, weight and bias, while the voxel's channels are at hand.
// A workgroup takes `turns` tiles of 64 voxels of one sample: an invocation first makes a voxel's logit, then it adds up
// the weight gradient of one channel vector over every few voxels of the tile.
// uses: grid, group_sum
// expects: Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16), VECTORS (channel vectors of a voxel, at most 64), KIND (0 squared, 1 absolute error)
struct Params {
    batch: u32,           // samples of this dispatch
    voxels: u32,          // of a sample
    parts: u32,           // workgroups, and partial sums, of a sample
    turns: u32,           // tiles of a workgroup
    first: u32,           // first sample of this dispatch
    inverse: f32,         // 1 / voxels
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>;                      // [batch, voxels, C]
@group(0) @binding(2) var<storage, read> norm: array<Elem>;                     // [4, C]
@group(0) @binding(3) var<storage, read> weight: array<Elem>;                   // [C]
@group(0) @binding(4) var<storage, read> bias: array<f32>;                      // [1]
@group(0) @binding(5) var<storage, read> goal: array<f32>;                      // [batch, voxels]
@group(0) @binding(6) var<storage, read> d_loss: array<f32>;                    // [all samples]
@group(0) @binding(7) var<storage, read_write> restored: array<f32>;            // [batch, voxels]
@group(0) @binding(8) var<storage, read_write> d_logit: array<f32>;             // [batch, voxels]
@group(0) @binding(9) var<storage, read_write> part: array<Elem>;               // [all samples, parts, C and two more]
@group(0) @binding(1) var<storage, read> sums: array<Elem>;                     // the same
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;                // [all samples]
@group(0) @binding(2) var<storage, read_write> d_weight: array<Elem>;           // [C]
@group(0) @binding(3) var<storage, read_write> d_bias: array<f32>;              // [1]

const LANES: u32 = 64u;
// A partial: the weight's gradient, then loss and sum of the logits' gradients, each repeated in a vector.
const STRIDE: u32 = VECTORS + 2u;
// Voxels whose weight gradient a workgroup adds up side by side.
const SIDE: u32 = LANES / VECTORS;

// Gradients of a tile's logits, then zeros.
var<workgroup> slopes: array<f32, 2u * LANES>;
var<workgroup> tile: array<Elem, LANES>;

//@sum_of
//@first_of
//@load
//@keep

// The voxels of a workgroup: first, and one past the last, of those that a sample has for it; and of the sample.
struct Run { first: u32, end: u32, last: u32 }

fn run(group: u32) -> Run {
    let number = group / params.parts;
    let sample = min(number, params.batch - 1u) * params.voxels;
    let first = (group - number * params.parts) * params.turns * LANES;
    return Run(sample + first, select(sample, sample + params.voxels, number < params.batch), sample + params.voxels - 1u);
}

fn sigmoid_of_logit(at: u32) -> f32 {
    var sum = Elem(0.0);
    for (var c = 0u; c < VECTORS; c++) { sum += load(at * VECTORS + c, norm_of(c, VECTORS)) * weight[c]; }
    return 1.0 / (1.0 + exp(-(sum_of(sum) + bias[0])));
}

fn value(difference: f32) -> f32 { return select(abs(difference), difference * difference, KIND == 0u); }
fn slope(difference: f32) -> f32 { return select(sign(difference), 2.0 * difference, KIND == 0u); }

@compute @workgroup_size(LANES)
fn evaluate(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let run = run(group);
    var own = 0.0;
    for (var turn = 0u; turn < params.turns; turn++) {
        let i = run.first + turn * LANES + t;
        let r = sigmoid_of_logit(min(i, run.last));
        if i < run.end {
            keep(i, r);
            own += value(r - goal[i]);
        }
    }
    let sum = group_sum(vec4<f32>(own, 0.0, 0.0, 0.0), t);
    if t == 0u && group < params.batch * params.parts {
        part[(params.first * params.parts + group) * STRIDE + VECTORS] = Elem(sum.x);
    }
}

@compute @workgroup_size(LANES)
fn train(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let run = run(group);
    let row = t / VECTORS;
    let c = t - row * VECTORS;
    // Invocations without a channel vector of their own find zeros.
    let first = select(row, LANES, row >= SIDE);
    slopes[LANES + t] = 0.0;
    let n = norm_of(c, VECTORS);
    let factor = d_loss[params.first + min(group / params.parts, params.batch - 1u)] * params.inverse;
    var own = vec4<f32>();
    var gradient = Elem(0.0);
    for (var turn = 0u; turn < params.turns; turn++) {
        let start = run.first + turn * LANES;
        let i = start + t;
        let r = sigmoid_of_logit(min(i, run.last));
        var d = 0.0;
        if i < run.end {
            keep(i, r);
            let difference = r - goal[i];
            d = factor * slope(difference) * (r * (1.0 - r));
            d_logit[i] = d;
            own += vec4<f32>(value(difference), d, 0.0, 0.0);
        }
        slopes[t] = d;
        workgroupBarrier();
        for (var k = 0u; k < (LANES + SIDE - 1u) / SIDE; k++) {
            let j = first + k * SIDE;
            gradient += load(min(start + j, run.last) * VECTORS + c, n) * slopes[min(j, 2u * LANES - 1u)];
        }
        workgroupBarrier();
    }
    tile[t] = gradient;
    // With the barriers that the sum of the workgroup has, the tile is complete after it.
    let sum = group_sum(own, t);
    let to = (params.first * params.parts + group) * STRIDE;
    if group < params.batch * params.parts {
        if t < VECTORS {
            var total = tile[t];
            for (var j = 1u; j < SIDE; j++) { total += tile[j * VECTORS + t]; }
            part[to + t] = total;
        }
        if t == 0u {
            part[to + VECTORS] = Elem(sum.x);
            part[to + VECTORS + 1u] = Elem(sum.y);
        }
    }
}

// One workgroup a sample.
@compute @workgroup_size(LANES)
fn finish_loss(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let sample = min(group, params.batch - 1u);
    var own = 0.0;
    for (var i = t; i < params.parts; i += LANES) { own += first_of(sums[(sample * params.parts + i) * STRIDE + VECTORS]); }
    let sum = group_sum(vec4<f32>(own, 0.0, 0.0, 0.0), t);
    if t == 0u && group < params.batch { loss[group] = sum.x * params.inverse; }
}

// One workgroup a channel vector, and one for the bias.
@compute @workgroup_size(LANES)
fn finish_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = min(flat_group(wg, count), VECTORS);
    let slot = select(group, VECTORS + 1u, group == VECTORS);
    var own = Elem(0.0);
    for (var i = t; i < params.batch * params.parts; i += LANES) { own += sums[i * STRIDE + slot]; }
    tile[t] = own;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        if t < half { tile[t] += tile[t + half]; }
        workgroupBarrier();
    }
    if t == 0u {
        if group < VECTORS { d_weight[group] = tile[0]; } else { d_bias[0] = first_of(tile[0]); }
    }
}
