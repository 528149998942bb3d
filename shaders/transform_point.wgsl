// What happens voxel by voxel: the gather of local shuffling, the non-linear map, painting; in this order.
// uses: grid, rng, transform
// expects: NX, NY, NZ
@group(0) @binding(1) var<storage, read> samples: array<Sample>;        // [N]
@group(0) @binding(2) var<storage, read> owners: array<u32>;            // [N, x, y, z]: window + 1, or 0
@group(0) @binding(3) var<storage, read> input: array<f32>;             // [N, x, y, z]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;      // [N, x, y, z]

// First counter word pair of a window's sorting keys; those before it draw the window.
const KEYS: u32 = 16u;

// The voxel that a window's permutation puts at p: the rank of p's random key among the window's
// keys (ties by position). Ranks of independent keys are a uniform permutation, and need no memory.
fn shuffled(key: vec2<u32>, index: u32, p: vec3<u32>) -> u32 {
    let w = shuffle_window(key, index);
    let q = p - w.start;
    let me = (q.x * w.side.y + q.y) * w.side.z + q.z;
    let own = threefry2x32(key, vec2<u32>(index, KEYS + me / 2u));
    let mine = select(own.x, own.y, me % 2u == 1u);
    let size = w.side.x * w.side.y * w.side.z;
    var rank = 0u;
    for (var i = 0u; i < size; i += 2u) {
        let bits = threefry2x32(key, vec2<u32>(index, KEYS + i / 2u));
        rank += u32(bits.x < mine || (bits.x == mine && i < me));
        rank += u32(i + 1u < size && (bits.y < mine || (bits.y == mine && i + 1u < me)));
    }
    let line = rank / w.side.z;
    return voxel_at(w.start + vec3<u32>(line / w.side.y, line % w.side.y, rank % w.side.z));
}

// One coordinate of a cubic Bézier curve from 0 to 1 with inner control values a, b.
fn bezier(u: f32, a: f32, b: f32) -> f32 {
    let s = 1.0 - u;
    return u * (3.0 * a * s * s + u * (3.0 * b * s + u));
}

// f(X(u)) = Y(u), or Y(1-u) when inverted. The upper half is solved for 1-u, by the curve's
// symmetry, so that rounding is small beside min(v, 1-v).
fn non_linear(v: f32, c: vec4<f32>, inverted: bool) -> f32 {
    let upper = v > 0.5;
    let goal = select(v, 1.0 - v, upper);
    let a = select(c.x, 1.0 - c.z, upper);
    let b = select(c.z, 1.0 - c.x, upper);
    var low = 0.0;
    var high = 1.0;
    for (var i = 0u; i < 26u; i++) {
        let mid = 0.5 * (low + high);
        let before = bezier(mid, a, b) < goal;
        low = select(low, mid, before);
        high = select(mid, high, before);
    }
    let u = select(0.5 * (low + high), 0.0, goal <= 0.0);
    if upper == inverted { return bezier(u, c.y, c.w); }
    return 1.0 - bezier(u, 1.0 - c.w, 1.0 - c.y);
}

@compute @workgroup_size(64)
fn point(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let at = place(flat_group(wg, count), t);
    if at.x >= arrayLength(&samples) || at.y >= VOXELS { return; }
    let n = at.x;
    let p = position(at.y);
    var source = at.y;
    if samples[n].windows > 0u {
        let owner = owners[n * VOXELS + at.y];
        if owner > 0u { source = shuffled(samples[n].shuffle_key, owner - 1u, p); }
    }
    var value = input[n * VOXELS + source];
    let curve_kind = samples[n].curve_kind;
    if curve_kind > 0u { value = non_linear(value, samples[n].curve, curve_kind == 2u); }
    let paint_kind = samples[n].paint_kind;
    if paint_kind > 0u {
        var covered = false;
        var fill = samples[n].boxes[0].fill;
        for (var k = 0u; k < samples[n].box_count; k++) {
            // A position before the start wraps around and is not inside.
            if all(p - samples[n].boxes[k].start < samples[n].boxes[k].side) {
                covered = true;
                if paint_kind == 1u { fill = samples[n].boxes[k].fill; }
            }
        }
        if covered == (paint_kind == 1u) {
            if samples[n].paint_noise == 1u { fill = unit_f32(threefry2x32(samples[n].paint_key, vec2<u32>(at.y, 0u)).x); }
            value = fill;
        }
    }
    output[n * VOXELS + at.y] = value;
}
