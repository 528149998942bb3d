// Elastic deformation: two noise fields, a separable Gaussian of 65 taps, resampling in the x-y plane.
// The blur computes eight outputs along its axis from 72 loads of (dx, dy) pairs.
// uses: grid, rng, transform
// expects: NX, NY, NZ
struct Params {
    length: u32,    // of the blurred axis
    stride: u32,    // of the blurred axis, in pairs
    blocks: u32,    // length / 8, rounded up
    scale: f32,     // of the result
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> samples: array<Sample>;            // [N]
@group(0) @binding(2) var<storage, read> field: array<vec2<f32>>;           // [N, x, y, z] of (dx, dy)
@group(0) @binding(3) var<storage, read> input: array<f32>;                 // [N, x, y, z]
@group(0) @binding(4) var<storage, read_write> field_out: array<vec2<f32>>; // [N, x, y, z]
@group(0) @binding(5) var<storage, read_write> output: array<f32>;          // [N, x, y, z]

@compute @workgroup_size(64)
fn noise(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let at = place(flat_group(wg, count), t);
    if at.x >= arrayLength(&samples) || at.y >= VOXELS { return; }
    let bits = threefry2x32(samples[at.x].elastic_key, vec2<u32>(at.y, 0u));
    field_out[at.x * VOXELS + at.y] = vec2<f32>(unit_f32(bits.x), unit_f32(bits.y)) * 2.0 - 1.0;
}

// Zero outside the crop; the clamped load keeps the address valid.
fn tap(base: u32, p: i32) -> vec2<f32> {
    let inside = clamp(p, 0, i32(params.length) - 1);
    return select(vec2<f32>(), field[base + u32(inside) * params.stride], inside == p);
}

@compute @workgroup_size(64)
fn blur(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let item = flat_group(wg, count) * 64u + t;
    let rest = item / params.stride;
    let block = rest % params.blocks;
    let base = (rest / params.blocks) * params.length * params.stride + item % params.stride;
    if base >= arrayLength(&field_out) { return; }
    let first = i32(block * 8u);
    //@taps
    let end = base + params.length * params.stride;
    let at = base + block * 8u * params.stride;
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
    let d = field[first + at.y];
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
