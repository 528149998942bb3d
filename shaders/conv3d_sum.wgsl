// Adds the splits of a weight gradient in ascending order and puts them at the source's channels, or adds them there.
// uses: grid
struct Params { splits: u32, accumulate: u32, pairs: u32, ci: u32, c0: u32, ci_total: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> part: array<f32>;                  // [splits, pairs = kd·kh·kw·co, ci]
@group(0) @binding(2) var<storage, read_write> d_weight: array<f32>;        // [pairs, ci_total]

@compute @workgroup_size(64)
fn sum(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    let elements = p.pairs * p.ci;
    if id < elements {
        var total = 0.0;
        for (var s = 0u; s < p.splits; s++) { total += part[s * elements + id]; }
        let place = id / p.ci * p.ci_total + p.c0 + id % p.ci;
        if p.accumulate != 0u { total += d_weight[place]; }
        d_weight[place] = total;
    }
}
