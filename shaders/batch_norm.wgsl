// Batch normalisation of rows [rows, C]: statistics over the rows, normalisation, gradients.
// Statistics: every invocation sums about its first value, workgroups and then the finishing
// entry merge (count, mean, squares) as Chan et al. do, so that a large mean costs no digits.
// What normalises is kept as four vectors, `norm`: mean, factor = γ/std, shift = β, 1/std.
// uses: grid, rows
// expects: Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16), FIXED (the statistics do not depend on x), RELU (a ReLU follows)
struct Params {
    rows: u32,            // rows of this part
    vectors: u32,         // channel vectors
    chunk: u32,           // rows per chunk
    first_partial: u32,   // number of this part's first partial
    partials: u32,        // partials of all parts
    count: f32,           // rows of all parts
    eps: f32,
    momentum: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>;                          // [rows, C]
@group(0) @binding(2) var<storage, read> d_y: array<Stored>;                        // [rows, C]
@group(0) @binding(3) var<storage, read> partials: array<Elem>;                     // [partials, 3 or 2, C]
@group(0) @binding(4) var<storage, read> norm: array<Elem>;                         // [4, C] mean, factor, shift, 1/std
@group(0) @binding(5) var<storage, read> gamma: array<Elem>;                        // [C]
@group(0) @binding(6) var<storage, read> beta: array<Elem>;                         // [C]
@group(0) @binding(7) var<storage, read> fixed_mean: array<Elem>;                   // [C]
@group(0) @binding(8) var<storage, read> fixed_var: array<Elem>;                    // [C]
@group(0) @binding(9) var<storage, read> coefficients: array<Elem>;                 // [2, C] b, c
@group(0) @binding(10) var<storage, read_write> running_mean: array<Elem>;          // [C]
@group(0) @binding(11) var<storage, read_write> running_var: array<Elem>;           // [C]
@group(0) @binding(12) var<storage, read_write> norm_out: array<Elem>;              // [4, C]
@group(0) @binding(13) var<storage, read_write> y: array<Stored>;                   // [rows, C]
@group(0) @binding(14) var<storage, read_write> d_x: array<Stored>;                 // [rows, C]
@group(0) @binding(15) var<storage, read_write> d_gamma: array<Elem>;               // [C]
@group(0) @binding(16) var<storage, read_write> d_beta: array<Elem>;                // [C]
@group(0) @binding(17) var<storage, read_write> partials_out: array<Elem>;          // [partials, 3 or 2, C]
@group(0) @binding(18) var<storage, read_write> coefficients_out: array<Elem>;      // [2, C]

// Invocations of a finishing workgroup.
const FINISHERS: u32 = 64u;

var<workgroup> tile_count: array<Elem, LANES>;
var<workgroup> tile_a: array<Elem, LANES>;
var<workgroup> tile_b: array<Elem, LANES>;

// What normalises a channel vector.
struct Norm { mean: Elem, factor: Elem, shift: Elem }

fn norm_of(c: u32) -> Norm {
    return Norm(norm[c], norm[params.vectors + c], norm[2u * params.vectors + c]);
}

fn normalized(n: Norm, x: Elem) -> Elem { return (x - n.mean) * n.factor + n.shift; }

fn put_norm(c: u32, mean: Elem, inv_std: Elem) {
    norm_out[c] = mean;
    norm_out[params.vectors + c] = inv_std * gamma[c];
    norm_out[2u * params.vectors + c] = beta[c];
    norm_out[3u * params.vectors + c] = inv_std;
}

// Merges (count, mean, squares) of entries `width` apart, `number` of them, into the first.
fn merge_statistics(lane: u32, row: u32, width: u32, number: u32) {
    workgroupBarrier();
    for (var half = tree_start(number); half > 0u; half >>= 1u) {
        if row < half && row + half < number {
            let other = lane + half * width;
            let n = tile_count[lane] + tile_count[other];
            let share_of_other = tile_count[other] / max(n, Elem(1.0));
            let delta = tile_a[other] - tile_a[lane];
            tile_b[lane] += tile_b[other] + delta * delta * (tile_count[lane] * share_of_other);
            tile_a[lane] += delta * share_of_other;
            tile_count[lane] = n;
        }
        workgroupBarrier();
    }
}

// Adds up both tiles over entries `width` apart, `number` of them, into the first.
fn merge_sums(lane: u32, row: u32, width: u32, number: u32) {
    workgroupBarrier();
    for (var half = tree_start(number); half > 0u; half >>= 1u) {
        if row < half && row + half < number {
            tile_a[lane] += tile_a[lane + half * width];
            tile_b[lane] += tile_b[lane + half * width];
        }
        workgroupBarrier();
    }
}

// Count, mean and sum of squared differences from it of one chunk.
@compute @workgroup_size(LANES)
fn statistics(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let s = share(flat_group(wg, count), lane, params.rows, params.vectors, params.chunk);
    let pivot = Elem(x[min(s.first, max(s.end, 1u) - 1u) * params.vectors + s.channel]);
    var n = 0.0;
    var sum = Elem(0.0);
    var squares = Elem(0.0);
    for (var r = s.first; r < s.end; r += s.step) {
        let d = Elem(x[r * params.vectors + s.channel]) - pivot;
        sum += d;
        squares += d * d;
        n += 1.0;
    }
    let mean_of_lane = sum / max(n, 1.0);
    tile_count[lane] = Elem(n);
    tile_a[lane] = pivot + mean_of_lane;
    tile_b[lane] = max(squares - sum * mean_of_lane, Elem(0.0));
    merge_statistics(lane, s.row, s.width, rows_side_by_side(params.vectors));
    if !s.idle && s.row == 0u {
        let to = (params.first_partial + s.chunk) * 3u * params.vectors + s.channel;
        partials_out[to] = tile_count[lane];
        partials_out[to + params.vectors] = tile_a[lane];
        partials_out[to + 2u * params.vectors] = tile_b[lane];
    }
}

// One workgroup per channel vector.
@compute @workgroup_size(FINISHERS)
fn finish_statistics(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = flat_group(wg, count);
    let surplus = c >= params.vectors;
    var n = Elem(0.0);
    var m = Elem(0.0);
    var squares = Elem(0.0);
    for (var p = lane; p < select(params.partials, 0u, surplus); p += FINISHERS) {
        let at = p * 3u * params.vectors + c;
        let other = partials[at];
        let total = n + other;
        let share_of_other = other / max(total, Elem(1.0));
        let delta = partials[at + params.vectors] - m;
        squares += partials[at + 2u * params.vectors] + delta * delta * (n * share_of_other);
        m += delta * share_of_other;
        n = total;
    }
    tile_count[lane] = n;
    tile_a[lane] = m;
    tile_b[lane] = squares;
    merge_statistics(lane, lane, 1u, min(params.partials, FINISHERS));
    if lane == 0u && !surplus {
        let k = params.momentum;
        put_norm(c, tile_a[0], 1.0 / sqrt(tile_b[0] / params.count + params.eps));
        running_mean[c] = (1.0 - k) * running_mean[c] + k * tile_a[0];
        running_var[c] = (1.0 - k) * running_var[c] + k * tile_b[0] / max(params.count - 1.0, 1.0);
    }
}

// What normalises with statistics that are given; an invocation a channel vector.
@compute @workgroup_size(FINISHERS)
fn finish_fixed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = flat_group(wg, count) * FINISHERS + lane;
    if c < params.vectors { put_norm(c, fixed_mean[c], 1.0 / sqrt(fixed_var[c] + params.eps)); }
}

// y = (x - mean) · factor + shift, or the ReLU of it, which lets NaN pass.
@compute @workgroup_size(LANES)
fn apply(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let s = share(flat_group(wg, count), lane, params.rows, params.vectors, params.chunk);
    let n = norm_of(s.channel);
    for (var r = s.first; r < s.end; r += s.step) {
        let i = r * params.vectors + s.channel;
        var v = normalized(n, Elem(x[i]));
        if RELU { v = select(v, Elem(0.0), v < Elem(0.0)); }
        y[i] = Stored(v);
    }
}

// The gradient that arrives at the norm: with RELU, where its result is positive.
fn arriving(n: Norm, i: u32, x: Elem) -> Elem {
    if RELU { return select(Elem(0.0), Elem(d_y[i]), normalized(n, x) > Elem(0.0)); }
    return Elem(d_y[i]);
}

// Sums of d_y and of d_y · (x - mean) / std over one chunk.
@compute @workgroup_size(LANES)
fn backward_sums(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let s = share(flat_group(wg, count), lane, params.rows, params.vectors, params.chunk);
    let n = norm_of(s.channel);
    var sum = Elem(0.0);
    var products = Elem(0.0);
    for (var r = s.first; r < s.end; r += s.step) {
        let i = r * params.vectors + s.channel;
        let value = Elem(x[i]);
        let d = arriving(n, i, value);
        sum += d;
        products += d * (value - n.mean);
    }
    tile_a[lane] = sum;
    tile_b[lane] = products * norm[3u * params.vectors + s.channel];
    merge_sums(lane, s.row, s.width, rows_side_by_side(params.vectors));
    if !s.idle && s.row == 0u {
        let to = (params.first_partial + s.chunk) * 2u * params.vectors + s.channel;
        partials_out[to] = tile_a[lane];
        partials_out[to + params.vectors] = tile_b[lane];
    }
}

// One workgroup per channel vector: the sums, and d_x = factor · (d_y - b - c · (x - mean)).
@compute @workgroup_size(FINISHERS)
fn finish_backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = flat_group(wg, count);
    let surplus = c >= params.vectors;
    var sum = Elem(0.0);
    var products = Elem(0.0);
    for (var p = lane; p < select(params.partials, 0u, surplus); p += FINISHERS) {
        sum += partials[p * 2u * params.vectors + c];
        products += partials[(p * 2u + 1u) * params.vectors + c];
    }
    tile_a[lane] = sum;
    tile_b[lane] = products;
    merge_sums(lane, lane, 1u, min(params.partials, FINISHERS));
    if lane == 0u && !surplus {
        d_beta[c] = tile_a[0];
        d_gamma[c] = tile_b[0];
        let share_of_row = select(1.0 / params.count, 0.0, FIXED);
        coefficients_out[c] = tile_a[0] * share_of_row;
        coefficients_out[params.vectors + c] = tile_b[0] * norm[3u * params.vectors + c] * share_of_row;
    }
}

@compute @workgroup_size(LANES)
fn backward_input(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let s = share(flat_group(wg, count), lane, params.rows, params.vectors, params.chunk);
    let n = norm_of(s.channel);
    let b = coefficients[s.channel];
    let c = coefficients[params.vectors + s.channel];
    for (var r = s.first; r < s.end; r += s.step) {
        let i = r * params.vectors + s.channel;
        let value = Elem(x[i]);
        d_x[i] = Stored(n.factor * (arriving(n, i, value) - b - c * (value - n.mean)));
    }
}
