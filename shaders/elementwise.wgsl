// Sum of two tensors, product with a number, adding such a product to a sum, and filling with a number; an invocation
// takes TURNS vectors.
// uses: grid
// expects: Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16)
struct Params { n: u32, number: f32 }                                   // vectors; factor or value
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Stored>;              // [n]
@group(0) @binding(2) var<storage, read> b: array<Stored>;              // [n]
@group(0) @binding(3) var<storage, read_write> output: array<Stored>;   // [n]

const LANES: u32 = 64u;
const TURNS: u32 = 4u;

@compute @workgroup_size(LANES)
fn add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = flat_group(wg, count) * LANES * TURNS + lane;
    for (var turn = 0u; turn < TURNS; turn++) {
        let i = first + turn * LANES;
        if i < params.n { output[i] = Stored(Elem(a[i]) + Elem(b[i])); }
    }
}

@compute @workgroup_size(LANES)
fn scale(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = flat_group(wg, count) * LANES * TURNS + lane;
    for (var turn = 0u; turn < TURNS; turn++) {
        let i = first + turn * LANES;
        if i < params.n { output[i] = Stored(Elem(a[i]) * params.number); }
    }
}

@compute @workgroup_size(LANES)
fn accumulate(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = flat_group(wg, count) * LANES * TURNS + lane;
    for (var turn = 0u; turn < TURNS; turn++) {
        let i = first + turn * LANES;
        if i < params.n { output[i] = Stored(Elem(output[i]) + Elem(a[i]) * params.number); }
    }
}

@compute @workgroup_size(LANES)
fn fill(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = flat_group(wg, count) * LANES * TURNS + lane;
    for (var turn = 0u; turn < TURNS; turn++) {
        let i = first + turn * LANES;
        if i < params.n { output[i] = Stored(Elem(params.number)); }
    }
}
