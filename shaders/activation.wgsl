// Elementwise activations and their derivatives; an invocation takes TURNS vectors.
// uses: grid
// expects: FUNCTION (0 relu, 1 elu, 2 sigmoid, 3 step), Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16)
struct Params { n: u32 }                                                // vectors
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<Stored>;          // [n]; backward: the forward output
@group(0) @binding(2) var<storage, read> d_output: array<Stored>;       // [n]
@group(0) @binding(3) var<storage, read_write> output: array<Stored>;   // [n]; backward: d_input

const LANES: u32 = 64u;
const TURNS: u32 = 4u;

// The comparisons are such that NaN passes through.
fn value(x: Elem) -> Elem {
    if FUNCTION == 0u { return select(x, Elem(0.0), x < Elem(0.0)); }
    if FUNCTION == 1u { return select(x, exp(x) - 1.0, x < Elem(0.0)); }
    if FUNCTION == 3u { return select(Elem(0.0), Elem(1.0), x > Elem(0.0)); }
    return 1.0 / (1.0 + exp(-x));
}

// Derivative in terms of the output y.
fn slope(y: Elem) -> Elem {
    if FUNCTION == 0u { return select(Elem(0.0), Elem(1.0), y > Elem(0.0)); }
    if FUNCTION == 1u { return select(y + 1.0, Elem(1.0), y > Elem(0.0)); }
    if FUNCTION == 3u { return Elem(0.0); }
    return y * (1.0 - y);
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = flat_group(wg, count) * LANES * TURNS + lane;
    for (var turn = 0u; turn < TURNS; turn++) {
        let i = first + turn * LANES;
        if i < params.n { output[i] = Stored(value(Elem(input[i]))); }
    }
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = flat_group(wg, count) * LANES * TURNS + lane;
    for (var turn = 0u; turn < TURNS; turn++) {
        let i = first + turn * LANES;
        if i < params.n { output[i] = Stored(Elem(d_output[i]) * slope(Elem(input[i]))); }
    }
}
