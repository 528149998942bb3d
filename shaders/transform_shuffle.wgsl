// Local shuffling: which window a voxel belongs to, the last one wins; then the voxel whose value it takes.
// A maximum of integers does not depend on the order in which windows arrive, and of the windows
// that cover a voxel only its owner moves it. A workgroup works on one window after the other.
// uses: grid, rng, transform
// expects: NX, NY, NZ, LANES (invocations of a workgroup), WINDOWS (of a workgroup)
struct Params {
    first: u32,     // first window
    windows: u32,   // one past the last window
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> samples: array<Sample>;                // [N]
@group(0) @binding(2) var<storage, read_write> owners: array<atomic<u32>>;      // [N, x, y, z]: 0, window + 1, or MOVED + source

// First counter word pair of a window's sorting keys; those before it draw the window.
const KEYS: u32 = 16u;

@compute @workgroup_size(64)
fn clear(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let i = flat_group(wg, count) * 64u + t;
    if i < arrayLength(&owners) { atomicStore(&owners[i], 0u); }
}

// The sample of a workgroup, the first of its windows and one past the last; none for surplus groups.
fn windows_of(group: u32) -> vec3<u32> {
    let groups = (params.windows - params.first + WINDOWS - 1u) / WINDOWS;
    let n = group / groups;
    let there = min(n, arrayLength(&samples) - 1u);
    let first = params.first + (group - n * groups) * WINDOWS;
    let end = min(min(first + WINDOWS, params.windows), samples[there].windows);
    return vec3<u32>(there, first, select(0u, end, n == there));
}

// Voxel `i` of a window, z fastest.
fn voxel_in(w: Window, i: u32) -> u32 {
    let line = i / w.side.z;
    let x = line / w.side.y;
    return voxel_at(w.start + vec3<u32>(x, line - x * w.side.y, i - line * w.side.z));
}

@compute @workgroup_size(LANES)
fn claim(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let range = windows_of(flat_group(wg, count));
    let key = samples[range.x].shuffle_key;
    for (var index = range.y; index < range.z; index++) {
        let w = shuffle_window(key, index);
        let size = w.side.x * w.side.y * w.side.z;
        for (var i = t; i < size; i += LANES) { atomicMax(&owners[range.x * VOXELS + voxel_in(w, i)], index + 1u); }
    }
}

// Of two keys, the first at position `at`, how many come before key `mine` at position `me`.
fn before(keys: vec2<u32>, at: u32, mine: u32, me: u32) -> u32 {
    return u32(select(keys.x < mine, keys.x <= mine, at < me)) + u32(select(keys.y < mine, keys.y <= mine, at + 1u < me));
}

// count_before(keys, first, pairs, mine, me, t): of the keys of all lanes, lane l's at first + 2 l and the next
// position, how many come before `mine`; at least `pairs` lanes are looked at.
//@count_before

// Position i of a window takes the value at the rank of i's random key among the window's keys
// (ties by position): ranks of independent keys are a uniform permutation.
@compute @workgroup_size(LANES)
fn permute(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let range = windows_of(flat_group(wg, count));
    let key = samples[range.x].shuffle_key;
    for (var index = range.y; index < range.z; index++) {
        let w = shuffle_window(key, index);
        let size = w.side.x * w.side.y * w.side.z;
        for (var start = 0u; start < size; start += LANES) {
            let me = start + t;
            let words = threefry2x32(key, vec2<u32>(index, KEYS + me / 2u));
            let mine = select(words.x, words.y, me % 2u == 1u);
            var rank = 0u;
            for (var first = 0u; first < size; first += 2u * LANES) {
                let i = first + 2u * t;
                let bits = threefry2x32(key, vec2<u32>(index, KEYS + i / 2u));
                // What lies past the end comes before nothing.
                let keys = select(vec2<u32>(0xFFFFFFFFu), bits, vec2<u32>(i, i + 1u) < vec2<u32>(size));
                rank += count_before(keys, first, min((size - first + 1u) / 2u, LANES), mine, me, t);
            }
            let base = range.x * VOXELS;
            let owner = base + voxel_in(w, min(me, size - 1u));
            if me < size && atomicLoad(&owners[owner]) == index + 1u {
                atomicStore(&owners[owner], MOVED | voxel_in(w, rank));
            }
        }
    }
}
