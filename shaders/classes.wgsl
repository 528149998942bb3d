// Rows of class scores: softmax and its derivative, the largest, and numbers weighted by the class of their row.
// An invocation takes a row; weigh: an element.
// uses: grid
struct Params {
    rows: u32,
    classes: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;             // [rows, classes]: scores; backward: the softmax; weigh: [rows]
@group(0) @binding(2) var<storage, read> d_output: array<f32>;          // [rows, classes]
@group(0) @binding(3) var<storage, read_write> output: array<f32>;      // [rows, classes]; weigh: [rows]
@group(0) @binding(2) var<storage, read> labels: array<u32>;            // [rows]
@group(0) @binding(4) var<storage, read> weights: array<f32>;           // [classes]
@group(0) @binding(3) var<storage, read_write> largest: array<u32>;     // [rows]

@compute @workgroup_size(64)
fn softmax(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row = flat_group(wg, count) * 64u + t;
    if row >= params.rows { return; }
    let base = row * params.classes;
    var top = input[base];
    for (var c = 1u; c < params.classes; c++) { top = max(top, input[base + c]); }
    var sum = 0.0;
    for (var c = 0u; c < params.classes; c++) { sum += exp(input[base + c] - top); }
    let inverse = 1.0 / sum;
    for (var c = 0u; c < params.classes; c++) { output[base + c] = exp(input[base + c] - top) * inverse; }
}

// d_x = y (d_y - sum(y d_y)).
@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row = flat_group(wg, count) * 64u + t;
    if row >= params.rows { return; }
    let base = row * params.classes;
    var sum = 0.0;
    for (var c = 0u; c < params.classes; c++) { sum += input[base + c] * d_output[base + c]; }
    for (var c = 0u; c < params.classes; c++) { output[base + c] = input[base + c] * (d_output[base + c] - sum); }
}

// The first largest; a NaN is none.
@compute @workgroup_size(64)
fn arg_max(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row = flat_group(wg, count) * 64u + t;
    if row >= params.rows { return; }
    let base = row * params.classes;
    var top = -3.4028234e38;
    var best = 0u;
    var found = false;
    for (var c = 0u; c < params.classes; c++) {
        let v = input[base + c];
        if v > top || (!found && v >= top) {
            top = v;
            best = c;
            found = true;
        }
    }
    largest[row] = best;
}

// A label outside the classes weighs nothing.
@compute @workgroup_size(64)
fn weigh(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let row = flat_group(wg, count) * 64u + t;
    if row >= params.rows { return; }
    let label = labels[row];
    output[row] = input[row] * select(0.0, weights[min(label, params.classes - 1u)], label < params.classes);
}
