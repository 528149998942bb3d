// Elastic deformation: two noise fields, a separable Gaussian of 65 taps, resampling in the x-y plane.
// The blur computes eight outputs along its axis from up to 72 taps of (dx, dy) pairs. Where NZ is
// even a load gives the pairs of two neighbours along z: two lines side by side, or two taps along z.
// uses: grid, rng, transform
// expects: NX, NY, NZ, Pairs (vec4<f32> for even NZ, else vec2<f32>), BLOCK (of eight outputs, in loads)
struct Params {
    length: u32,    // of the blurred axis, in loads
    stride: u32,    // of the blurred axis, in loads
    blocks: u32,    // length / BLOCK, rounded up
    scale: f32,     // of the result
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> samples: array<Sample>;            // [N]
@group(0) @binding(2) var<storage, read> field: array<Pairs>;               // [N, x, y, z] of (dx, dy)
@group(0) @binding(3) var<storage, read> input: array<f32>;                 // [N, x, y, z]
@group(0) @binding(4) var<storage, read_write> field_out: array<Pairs>;     // [N, x, y, z]
@group(0) @binding(5) var<storage, read_write> output: array<f32>;          // [N, x, y, z]

// The noise of one voxel, in [-1, 1).
fn noise_at(key: vec2<u32>, voxel: u32) -> vec2<f32> {
    let bits = threefry2x32(key, vec2<u32>(voxel, 0u));
    return vec2<f32>(unit_f32(bits.x), unit_f32(bits.y)) * 2.0 - 1.0;
}

// noise_pairs(key, i): the noise of the i-th Pairs of a sample; pair_at(voxel): one pair of `field`; const WIDTH: pairs in a Pairs.
//@pairs

@compute @workgroup_size(64)
fn noise(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let item = flat_group(wg, count) * 64u + t;
    if item >= arrayLength(&field_out) { return; }
    let n = item / (VOXELS / WIDTH);
    field_out[item] = noise_pairs(samples[n].elastic_key, item - n * (VOXELS / WIDTH));
}

// Zero outside the crop, without a load.
fn tap(base: u32, p: i32) -> Pairs {
    var v = Pairs();
    if bitcast<u32>(p) < params.length { v = field[base + bitcast<u32>(p) * params.stride]; }
    return v;
}

@compute @workgroup_size(64)
fn blur(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let item = flat_group(wg, count) * 64u + t;
    let rest = item / params.stride;
    let block = rest % params.blocks;
    let base = (rest / params.blocks) * params.length * params.stride + item % params.stride;
    if base >= arrayLength(&field_out) { return; }
    let first = i32(block * BLOCK);
    // For k in 0..8: var a{k}; for every tap: let v = tap(base, first + i); a{k} += v * weight;
    //@taps
    let end = base + params.length * params.stride;
    let at = base + block * BLOCK * params.stride;
    // The eight sums, times scale, where they are on the axis.
    //@stores
}

// Index n on an axis of `length`, mirrored with the edge voxel repeated.
fn mirror(n: i32, length: i32) -> u32 {
    let period = 2 * length;
    var m = n % period;
    m = select(m, m + period, m < 0);
    return u32(select(m, period - 1 - m, m >= length));
}

@compute @workgroup_size(64)
fn resample(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let at = place(flat_group(wg, count), t);
    let first = at.x * VOXELS;
    if at.y >= VOXELS || first >= arrayLength(&output) { return; }
    let p = position(at.y);
    let d = pair_at(first + at.y);
    let px = f32(p.x) + d.y;
    let py = f32(p.y) + d.x;
    let ix = floor(px);
    let iy = floor(py);
    let x0 = mirror(i32(ix), i32(NX)) * NY;
    let x1 = mirror(i32(ix) + 1, i32(NX)) * NY;
    let y0 = mirror(i32(iy), i32(NY));
    let y1 = mirror(i32(iy) + 1, i32(NY));
    let zn = first + p.z;
    let low = mix(input[(x0 + y0) * NZ + zn], input[(x0 + y1) * NZ + zn], py - iy);
    let high = mix(input[(x1 + y0) * NZ + zn], input[(x1 + y1) * NZ + zn], py - iy);
    output[first + at.y] = mix(low, high, px - ix);
}
