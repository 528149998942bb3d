// Soft Dice loss of every class from FIRST on, averaged over them: 1 - (2 I + 1) / (S + 1) with I = sum(p g), S = sum(p) + sum(g)
// over all rows, g = 1 where the row's label is the class; computed as D / (S + 1) with D = S - 2 I, which does not cancel.
// uses: grid, group_sum, turns
// expects: TURNS (rows of an invocation), SUCCESSIVE
struct Params {
    rows: u32,                                                          // of this dispatch
    classes: u32,
    first: u32,                                                         // first class that counts
    chunks: u32,                                                        // of all rows
    chunk: u32,                                                         // first chunk of this dispatch
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> prob: array<f32>;              // [rows, classes]
@group(0) @binding(2) var<storage, read> labels: array<u32>;            // [rows]
@group(0) @binding(3) var<storage, read_write> part: array<vec4<f32>>;  // [chunks, classes]: D, S, I
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;        // [chunks, classes]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;      // [1]
@group(0) @binding(2) var<storage, read_write> whole: array<vec4<f32>>; // [classes]
@group(0) @binding(3) var<storage, read> totals: array<vec4<f32>>;      // [classes]
@group(0) @binding(4) var<storage, read> d_output: array<f32>;          // [1]
@group(0) @binding(5) var<storage, read_write> d_prob: array<f32>;      // [rows, classes]

// A workgroup takes one class of a chunk of rows; the classes of a chunk follow each other, so that its numbers are at hand.
@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let class_ = group % params.classes;
    let chunk = group / params.classes;
    var differ = 0.0;
    var size = 0.0;
    var overlap = 0.0;
    for (var j = 0u; j < TURNS; j++) {
        let row = chunk * (64u * TURNS) + turn_place(t, j);
        if row < params.rows {
            let p = prob[row * params.classes + class_];
            let g = select(0.0, 1.0, labels[row] == class_);
            differ += p * (1.0 - g) + g * (1.0 - p);
            size += p + g;
            overlap += p * g;
        }
    }
    let sum = group_sum(vec4<f32>(differ, size, overlap, 0.0), t);
    if t == 0u && chunk * (64u * TURNS) < params.rows { part[(params.chunk + chunk) * params.classes + class_] = sum; }
}

fn total(class_: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var i = 0u; i < params.chunks; i++) { sum += sums[i * params.classes + class_]; }
    return sum;
}

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
    var own = 0.0;
    for (var c = params.first + t; c < params.classes; c += 64u) {
        let sum = total(c);
        own += sum.x / (sum.y + 1.0);
    }
    let sum = group_sum(vec4<f32>(own, 0.0, 0.0, 0.0), t);
    if t == 0u { output[0] = sum.x / f32(params.classes - params.first); }
}

@compute @workgroup_size(64)
fn gather(@builtin(local_invocation_index) t: u32) {
    for (var c = t; c < params.classes; c += 64u) { whole[c] = total(c); }
}

// d/dp = ((2 I + 1) / (S + 1) - 2 g) / (S + 1), over the number of classes that count.
@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row = flat_group(wg, count) * 64u + t;
    if row >= params.rows { return; }
    let label = labels[row];
    let factor = d_output[0] / f32(params.classes - params.first);
    for (var c = 0u; c < params.classes; c++) {
        let sum = totals[c];
        let g = select(0.0, 1.0, label == c);
        let slope = factor / (sum.y + 1.0) * ((2.0 * sum.z + 1.0) / (sum.y + 1.0) - 2.0 * g);
        d_prob[row * params.classes + c] = select(0.0, slope, c >= params.first);
    }
}
