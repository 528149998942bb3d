// Streams over a working set of 2^k vectors: copying, reading, writing; and the smallest dispatch that depends on another.
// uses: grid
// expects: LANES
// Group g begins at g · span and moves on by `step` each round, within `inner` of its beginning and `outer` of the whole.
struct Params { groups: u32, rounds: u32, span: u32, step: u32, inner: u32, outer: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<f32>>;           // [outer + 1]
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;    // [outer + 1]

fn place(group: u32, round: u32, lane: u32) -> u32 {
    return ((min(group, params.groups - 1u) * params.span + ((round * params.step) & params.inner)) & params.outer) + lane;
}

@compute @workgroup_size(LANES)
fn copying(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = flat_group(wg, count);
    for (var r = 0u; r < params.rounds; r++) {
        let i = place(group, r, lane);
        let a = input[i];
        let b = input[i + LANES];
        let c = input[i + 2u * LANES];
        let d = input[i + 3u * LANES];
        output[i] = a;
        output[i + LANES] = b;
        output[i + 2u * LANES] = c;
        output[i + 3u * LANES] = d;
    }
}

@compute @workgroup_size(LANES)
fn reading(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = flat_group(wg, count);
    var a = vec4<f32>();
    var b = vec4<f32>();
    for (var r = 0u; r < params.rounds; r++) {
        let i = place(group, r, lane);
        a += input[i];
        b += input[i + LANES];
        a += input[i + 2u * LANES];
        b += input[i + 3u * LANES];
    }
    output[(group * LANES + lane) & params.outer] = a + b;
}

@compute @workgroup_size(LANES)
fn writing(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = flat_group(wg, count);
    for (var r = 0u; r < params.rounds; r++) {
        let i = place(group, r, lane);
        let v = vec4<f32>(f32(r));
        output[i] = v;
        output[i + LANES] = v;
        output[i + 2u * LANES] = v;
        output[i + 3u * LANES] = v;
    }
}

@compute @workgroup_size(1)
fn touch() {
    output[0] += vec4<f32>(1.0);
}
