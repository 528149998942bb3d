// Soft Dice loss 1 - (2 I + 1) / (S + 1) with I = sum(p g), S = sum(p) + sum(g), computed as
// D / (S + 1) with D = S - 2 I = sum(p (1 - g) + g (1 - p)), which does not cancel.
// uses: grid, group_sum
// expects: Elem (f32 or vec4<f32>), TURNS (values of an invocation)
struct Params {
    n: u32,                                                             // elements of type Elem; total: partial sums
    first: u32,                                                         // partial: place of the first partial sum
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> prob: array<Elem>;             // [n]
@group(0) @binding(2) var<storage, read> goal: array<Elem>;             // [n]
@group(0) @binding(3) var<storage, read_write> part: array<vec4<f32>>;  // [groups]: D, S, I
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;        // [n]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;      // [1]
@group(0) @binding(2) var<storage, read_write> whole: array<vec4<f32>>; // [1]
@group(0) @binding(3) var<storage, read> totals: array<vec4<f32>>;      // [1]
@group(0) @binding(4) var<storage, read> d_output: array<f32>;          // [1]
@group(0) @binding(5) var<storage, read_write> d_prob: array<Elem>;     // [n]

//@sum_of

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    var differ = Elem();
    var size = Elem();
    var overlap = Elem();
    for (var j = 0u; j < TURNS; j++) {
        let i = (group * TURNS + j) * 64u + t;
        if i < params.n {
            let p = prob[i];
            let g = goal[i];
            differ += p * (Elem(1.0) - g) + g * (Elem(1.0) - p);
            size += p + g;
            overlap += p * g;
        }
    }
    let sum = group_sum(vec4<f32>(sum_of(differ), sum_of(size), sum_of(overlap), 0.0), t);
    if t == 0u && group * (64u * TURNS) < params.n { part[params.first + group] = sum; }
}

fn total(t: u32) -> vec4<f32> {
    var own = vec4<f32>();
    for (var i = t; i < params.n; i += 64u) { own += sums[i]; }
    return group_sum(own, t);
}

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
    let sum = total(t);
    if t == 0u { output[0] = sum.x / (sum.y + 1.0); }
}

@compute @workgroup_size(64)
fn gather(@builtin(local_invocation_index) t: u32) {
    let sum = total(t);
    if t == 0u { whole[0] = sum; }
}

// d/dp = (2 I + 1) / (S + 1)^2 - 2 g / (S + 1).
@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let sum = totals[0];
    let factor = d_output[0] / (sum.y + 1.0);
    let level = (2.0 * sum.z + 1.0) / (sum.y + 1.0);
    for (var j = 0u; j < TURNS; j++) {
        let i = (group * TURNS + j) * 64u + t;
        if i < params.n { d_prob[i] = factor * (Elem(level) - 2.0 * goal[i]); }
    }
}
