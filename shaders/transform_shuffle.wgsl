// Local shuffling, first half: which window a voxel belongs to; the last one wins.
// A maximum of integers does not depend on the order in which windows arrive.
// uses: grid, rng, transform
// expects: NX, NY, NZ
struct Params {
    windows: u32,   // most windows of any sample
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> samples: array<Sample>;                // [N]
@group(0) @binding(2) var<storage, read_write> owners: array<atomic<u32>>;      // [N, x, y, z]: window + 1, or 0

@compute @workgroup_size(64)
fn clear(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let i = flat_group(wg, count) * 64u + t;
    if i < arrayLength(&owners) { atomicStore(&owners[i], 0u); }
}

@compute @workgroup_size(64)
fn claim(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let groups = (params.windows + 63u) / 64u;
    let group = flat_group(wg, count);
    let n = group / groups;
    if n >= arrayLength(&samples) { return; }
    let index = (group - n * groups) * 64u + t;
    if index >= samples[n].windows { return; }
    let w = shuffle_window(samples[n].shuffle_key, index);
    for (var x = w.start.x; x < w.start.x + w.side.x; x++) {
        for (var y = w.start.y; y < w.start.y + w.side.y; y++) {
            for (var z = w.start.z; z < w.start.z + w.side.z; z++) {
                atomicMax(&owners[n * VOXELS + voxel_at(vec3<u32>(x, y, z))], index + 1u);
            }
        }
    }
}
