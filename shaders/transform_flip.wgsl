// Reversal of axes, per sample.
// uses: grid, rng, transform
// expects: NX, NY, NZ
@group(0) @binding(1) var<storage, read> samples: array<Sample>;        // [N]
@group(0) @binding(2) var<storage, read> input: array<f32>;             // [N, x, y, z]
@group(0) @binding(3) var<storage, read_write> output: array<f32>;      // [N, x, y, z]

@compute @workgroup_size(64)
fn flip(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let at = place(flat_group(wg, count), t);
    if at.x >= arrayLength(&samples) || at.y >= VOXELS { return; }
    let p = position(at.y);
    let reversed = (vec3<u32>(samples[at.x].flip) & vec3<u32>(1u, 2u, 4u)) != vec3<u32>();
    let source = select(p, vec3<u32>(NX, NY, NZ) - 1u - p, reversed);
    output[at.x * VOXELS + at.y] = input[at.x * VOXELS + voxel_at(source)];
}
