// The k nearest of each row among those found so far and a tile of distances; a workgroup per row.
// Candidates are ordered by the pair (bits of the distance, index), so ties go to the smaller
// index and no two are equal. Digits of 8 bits of that pair, from the highest in which distances
// differ, narrow the candidates down (radix selection) until those left fit the tile in
// workgroup memory, where they are put in order. What bounds them beforehand and how they are put
// in order depends on the adapter: knn_select_bound, knn_select_rank, knn_select_bitonic.
// uses: grid
// expects: Elem (f32 or vec4<f32>), STEP (components of Elem), LANES (invocations, 8 to 256), PAIRS (room for candidates, at least 64)
struct Params {
    rows: u32,
    width: u32,                                                         // elements of type Elem in a row of distances
    first: u32,                                                         // index of the tile's first column
    k: u32,                                                             // length of a row of the lists
    filled: u32,                                                        // how many of them are valid
    keep: u32,                                                          // how many will be: min(k, filled + columns)
    size: u32,                                                          // candidates that are put in order: keep <= size <= PAIRS, a power of two
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> distance: array<Elem>;                 // [rows, width], none negative
@group(0) @binding(2) var<storage, read_write> best_distance: array<f32>;       // [rows, k]
@group(0) @binding(3) var<storage, read_write> best_index: array<u32>;          // [rows, k]

const BINS: u32 = 256u / LANES;                                         // of the histogram, per invocation
var<workgroup> histogram: array<atomic<u32>, 256>;
var<workgroup> tile_sum: array<u32, LANES>;
var<workgroup> tile_range: array<vec3<u32>, LANES>;
var<workgroup> tile_pair: array<vec2<u32>, PAIRS>;
var<workgroup> tile_count: atomic<u32>;
// What one invocation found for all: smallest and largest distance and number of candidates;
// then digit, candidates below it and with it.
var<workgroup> found: vec3<u32>;

// Distances count from the smallest, `low`. Of the candidates' bits under the mask, those above
// the prefix are out, those below it are in.
var<private> low: u32;
var<private> mask: vec2<u32>;
var<private> prefix: vec2<u32>;
var<private> shift: u32;
var<private> by_index: bool;
var<private> range: vec3<u32>;

fn before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y < b.y);
}

fn range_one(pair: vec2<u32>, bound: u32) {
    let live = pair.x < bound;
    range = vec3<u32>(select(range.x, min(range.x, pair.x), live), select(range.y, max(range.y, pair.x), live), range.z + u32(live));
}

fn count_one(pair: vec2<u32>, bound: u32) {
    let p = vec2<u32>(pair.x - low, pair.y);
    if pair.x < bound && all((p & mask) == prefix) { atomicAdd(&histogram[(select(p.x, p.y, by_index) >> shift) & 255u], 1u); }
}

fn gather_one(pair: vec2<u32>, bound: u32) {
    let p = vec2<u32>(pair.x - low, pair.y);
    if pair.x < bound && !before(prefix, p & mask) { tile_pair[atomicAdd(&tile_count, 1u)] = pair; }
}

//@each

fn listed(at: u32) -> vec2<u32> {
    return vec2<u32>(bitcast<u32>(best_distance[at]), best_index[at]);
}

// tightened(list, tile, t): what the distance of a candidate is below, 0xFFFFFFFF when nothing is known.
// put_in_order(list, live, t): the first `keep` of the candidates in tile_pair to the lists, unless they are not `live`.
//@parts

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let row = min(group, params.rows - 1u);
    let list = row * params.k;
    let tile = row * params.width;
    // Columns come after those listed, so once the list is full only a smaller distance gets in.
    let tight = tightened(list, tile, t);
    var bound = tight;
    if params.filled == params.k { bound = min(tight, bitcast<u32>(best_distance[list + params.k - 1u])); }

    range = vec3<u32>(0xFFFFFFFFu, 0u, 0u);
    for (var i = t; i < params.filled; i += LANES) { range_one(listed(list + i), tight); }
    for (var i = t; i < params.width; i += LANES) { range_each(distance[tile + i], bound); }
    tile_range[t] = range;
    workgroupBarrier();
    if t == 0u {
        var r = range;
        for (var i = 1u; i < LANES; i++) {
            let other = tile_range[i];
            r = vec3<u32>(min(r.x, other.x), max(r.y, other.y), r.z + other.z);
        }
        found = r;
    }
    let all_found = workgroupUniformLoad(&found);
    low = all_found.x;
    mask = vec2<u32>();
    prefix = vec2<u32>();
    by_index = false;
    shift = max(32u - countLeadingZeros(all_found.y - low), 8u) - 8u;
    var left = all_found.z;                                             // candidates that are not out
    var sure = 0u;                                                      // candidates below the prefix
    while left > params.size {
        for (var i = 0u; i < BINS; i++) { atomicStore(&histogram[t * BINS + i], 0u); }
        workgroupBarrier();
        for (var i = t; i < params.filled; i += LANES) { count_one(listed(list + i), tight); }
        for (var i = t; i < params.width; i += LANES) { count_each(distance[tile + i], params.first + i * STEP, bound); }
        workgroupBarrier();
        var sum = 0u;
        for (var i = 0u; i < BINS; i++) { sum += atomicLoad(&histogram[t * BINS + i]); }
        tile_sum[t] = sum;
        workgroupBarrier();
        if t == 0u {
            // The digit at which the candidates reach `keep`.
            var below = sure;
            var i = 0u;
            while i < LANES - 1u && below + tile_sum[i] < params.keep { below += tile_sum[i]; i++; }
            i *= BINS;
            let last = i + BINS - 1u;
            while i < last && below + atomicLoad(&histogram[i]) < params.keep { below += atomicLoad(&histogram[i]); i++; }
            found = vec3<u32>(i, below, atomicLoad(&histogram[i]));
        }
        let hit = workgroupUniformLoad(&found);
        let place = select(vec2<u32>(1u, 0u), vec2<u32>(0u, 1u), by_index);
        mask |= place * (255u << shift);
        prefix |= place * (hit.x << shift);
        sure = hit.y;
        left = hit.y + hit.z;
        // The distance's last digit may overlap the one before; the index follows.
        by_index = by_index || shift == 0u;
        shift = select(max(shift, 8u) - 8u, 24u, shift == 0u);
    }

    if t == 0u { atomicStore(&tile_count, 0u); }
    workgroupBarrier();
    for (var i = t; i < params.filled; i += LANES) { gather_one(listed(list + i), tight); }
    for (var i = t; i < params.width; i += LANES) { gather_each(distance[tile + i], params.first + i * STEP, bound); }
    workgroupBarrier();
    for (var i = atomicLoad(&tile_count) + t; i < max(params.size, 64u); i += LANES) { tile_pair[i] = vec2<u32>(0xFFFFFFFFu); }
    workgroupBarrier();
    put_in_order(list, group < params.rows, t);
}
