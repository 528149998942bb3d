// Elementwise activations and their derivatives, four values an invocation.
// uses: grid
// expects: FUNCTION (0 relu, 1 elu, 2 sigmoid)
struct Params { n: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;             // [n]; backward: the forward output
@group(0) @binding(2) var<storage, read> d_output: array<f32>;          // [n]
@group(0) @binding(3) var<storage, read_write> output: array<f32>;      // [n]; backward: d_input

fn value(x: f32) -> f32 {
    if FUNCTION == 0u { return max(x, 0.0); }
    if FUNCTION == 1u { return select(exp(min(x, 0.0)) - 1.0, x, x > 0.0); }
    return 1.0 / (1.0 + exp(-x));
}

// Derivative in terms of the output y.
fn slope(y: f32) -> f32 {
    if FUNCTION == 0u { return select(0.0, 1.0, y > 0.0); }
    if FUNCTION == 1u { return select(y + 1.0, 1.0, y > 0.0); }
    return y * (1.0 - y);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let first = (flat_group(wg, count) * 64u + t) * 4u;
    for (var i = first; i < min(first + 4u, params.n); i++) { output[i] = value(input[i]); }
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let first = (flat_group(wg, count) * 64u + t) * 4u;
    for (var i = first; i < min(first + 4u, params.n); i++) { output[i] = d_output[i] * slope(input[i]); }
}
