// What happens voxel by voxel: the gather of local shuffling, the non-linear map, painting; in this order.
// An invocation has four successive voxels, so that what belongs to the sample is loaded once for them.
// uses: grid, rng, transform
// expects: NX, NY, NZ
struct Params {
    first: u32,     // first workgroup
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> samples: array<Sample>;        // [N]
@group(0) @binding(2) var<storage, read> owners: array<u32>;            // [N, x, y, z]: MOVED + source, or 0
@group(0) @binding(3) var<storage, read> input: array<f32>;             // [N, x, y, z]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;      // [N, x, y, z]

// One coordinate of a cubic Bézier curve from 0 to 1 with inner control values a, b.
fn bezier(u: vec4<f32>, a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let s = 1.0 - u;
    return u * (3.0 * a * s * s + u * (3.0 * b * s + u));
}

// f(X(u)) = Y(u), or Y(1-u) when inverted. The upper half is solved for 1-u, by the curve's
// symmetry, so that rounding is small beside min(v, 1-v).
fn non_linear(v: vec4<f32>, c: vec4<f32>, inverted: bool) -> vec4<f32> {
    let upper = v > vec4<f32>(0.5);
    let goal = select(v, 1.0 - v, upper);
    let a = select(vec4<f32>(c.x), vec4<f32>(1.0 - c.z), upper);
    let b = select(vec4<f32>(c.z), vec4<f32>(1.0 - c.x), upper);
    var low = vec4<f32>();
    var high = vec4<f32>(1.0);
    for (var i = 0u; i < 26u; i++) {
        let mid = 0.5 * (low + high);
        let before = bezier(mid, a, b) < goal;
        low = select(low, mid, before);
        high = select(mid, high, before);
    }
    let u = select(0.5 * (low + high), vec4<f32>(), goal <= vec4<f32>());
    let rising = bezier(u, vec4<f32>(c.y), vec4<f32>(c.w));
    let falling = 1.0 - bezier(u, vec4<f32>(1.0 - c.w), vec4<f32>(1.0 - c.y));
    return select(falling, rising, upper == vec4<bool>(inverted));
}

fn noise(key: vec2<u32>, voxel: u32) -> f32 {
    return unit_f32(threefry2x32(key, vec2<u32>(voxel, 0u)).x);
}

@compute @workgroup_size(64)
fn point(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    // Four voxels are an item; the last item of a sample may have fewer.
    let groups = (VOXELS + 255u) / 256u;
    let group = params.first + flat_group(wg, count);
    let n = group / groups;
    let first = 4u * ((group - n * groups) * 64u + t);
    if n >= arrayLength(&samples) || first >= VOXELS { return; }
    let base = n * VOXELS;
    let voxel = min(first + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(VOXELS - 1u));
    var source = voxel;
    if samples[n].windows > 0u {
        let owner = vec4<u32>(owners[base + voxel.x], owners[base + voxel.y], owners[base + voxel.z], owners[base + voxel.w]);
        source = select(voxel, owner - MOVED, owner >= vec4<u32>(MOVED));
    }
    var value = vec4<f32>(input[base + source.x], input[base + source.y], input[base + source.z], input[base + source.w]);
    let curve_kind = samples[n].curve_kind;
    if curve_kind > 0u { value = non_linear(value, samples[n].curve, curve_kind == 2u); }
    let paint_kind = samples[n].paint_kind;
    if paint_kind > 0u {
        let line = voxel / NZ;
        let z = voxel - line * NZ;
        let x = line / NY;
        let y = line - x * NY;
        var covered = vec4<bool>();
        var fill = vec4<f32>(samples[n].boxes[0].fill);
        for (var k = 0u; k < samples[n].box_count; k++) {
            let start = samples[n].boxes[k].start;
            let side = samples[n].boxes[k].side;
            // A position before the start wraps around and is not inside.
            let inside = (x - start.x < vec4<u32>(side.x)) & (y - start.y < vec4<u32>(side.y)) & (z - start.z < vec4<u32>(side.z));
            covered = covered | inside;
            if paint_kind == 1u { fill = select(fill, vec4<f32>(samples[n].boxes[k].fill), inside); }
        }
        if samples[n].paint_noise == 1u {
            let key = samples[n].paint_key;
            fill = vec4<f32>(noise(key, voxel.x), noise(key, voxel.y), noise(key, voxel.z), noise(key, voxel.w));
        }
        value = select(value, fill, covered == vec4<bool>(paint_kind == 1u));
    }
    output[base + first] = value.x;
    if first + 1u < VOXELS { output[base + first + 1u] = value.y; }
    if first + 2u < VOXELS { output[base + first + 2u] = value.z; }
    if first + 3u < VOXELS { output[base + first + 3u] = value.w; }
}
