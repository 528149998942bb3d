// The k nearest of each row among those found so far and a tile of distances; a workgroup per row.
// Candidates are ordered by the pair (bits of the distance, index), so ties go to the smaller
// index and no two are equal. Digits of 8 bits of that pair, from the highest, narrow the
// candidates down (radix selection) until those left fit the tile in workgroup memory, where
// they are sorted.
// uses: grid
// expects: Elem (f32 or vec4<f32>), STEP (components of Elem)
struct Params {
    rows: u32,
    width: u32,                                                         // elements of type Elem in a row of distances
    first: u32,                                                         // index of the tile's first column
    k: u32,                                                             // length of a row of the lists
    filled: u32,                                                        // how many of them are valid
    keep: u32,                                                          // how many will be: min(k, filled + columns)
    size: u32,                                                          // power of two, keep <= size <= 1024
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> distance: array<Elem>;                 // [rows, width], none negative
@group(0) @binding(2) var<storage, read_write> best_distance: array<f32>;       // [rows, k]
@group(0) @binding(3) var<storage, read_write> best_index: array<u32>;          // [rows, k]

var<workgroup> histogram: array<atomic<u32>, 256>;
var<workgroup> tile_sum: array<u32, 64>;
var<workgroup> tile_pair: array<vec2<u32>, 1024>;
var<workgroup> tile_count: atomic<u32>;
// Found by one invocation: digit, candidates below it and with it.
var<workgroup> found: vec3<u32>;

// Candidates whose bits under the mask exceed the prefix are out, those below it are in.
var<private> mask: vec2<u32>;
var<private> prefix: vec2<u32>;
var<private> digit: u32;

fn before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y < b.y);
}

fn count_one(pair: vec2<u32>, bound: u32) {
    if pair.x < bound && all((pair & mask) == prefix) {
        let word = select(pair.x, pair.y, digit > 3u);
        atomicAdd(&histogram[(word >> (24u - digit % 4u * 8u)) & 255u], 1u);
    }
}

fn gather_one(pair: vec2<u32>, bound: u32) {
    if pair.x < bound && !before(prefix, pair & mask) { tile_pair[atomicAdd(&tile_count, 1u)] = pair; }
}

//@each

fn listed(at: u32) -> vec2<u32> {
    return vec2<u32>(bitcast<u32>(best_distance[at]), best_index[at]);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let row = min(group, params.rows - 1u);
    let list = row * params.k;
    let tile = row * params.width;
    // Columns come after those listed, so once the list is full only a smaller distance gets in.
    var bound = 0xFFFFFFFFu;
    if params.filled == params.k { bound = bitcast<u32>(best_distance[list + params.k - 1u]); }
    mask = vec2<u32>();
    prefix = vec2<u32>();
    var sure = 0u;                                                      // candidates below the prefix
    for (digit = 0u; digit < 8u; digit++) {
        for (var i = t; i < 256u; i += 64u) { atomicStore(&histogram[i], 0u); }
        workgroupBarrier();
        for (var i = t; i < params.filled; i += 64u) { count_one(listed(list + i), 0xFFFFFFFFu); }
        for (var i = t; i < params.width; i += 64u) { count_each(distance[tile + i], params.first + i * STEP, bound); }
        workgroupBarrier();
        var sum = 0u;
        for (var i = 0u; i < 4u; i++) { sum += atomicLoad(&histogram[4u * t + i]); }
        tile_sum[t] = sum;
        workgroupBarrier();
        if t == 0u {
            // The digit at which the candidates reach `keep`.
            var below = sure;
            var i = 0u;
            while i < 63u && below + tile_sum[i] < params.keep { below += tile_sum[i]; i++; }
            i *= 4u;
            let last = i + 3u;
            while i < last && below + atomicLoad(&histogram[i]) < params.keep { below += atomicLoad(&histogram[i]); i++; }
            var total = 0u;
            if digit == 0u { for (var j = 0u; j < 64u; j++) { total += tile_sum[j]; } }
            found = vec3<u32>(i, below, atomicLoad(&histogram[i]));
            if digit == 0u && total <= params.size { found = vec3<u32>(256u, 0u, 0u); }
        }
        let hit = workgroupUniformLoad(&found);
        if hit.x == 256u { break; }
        let shift = 24u - digit % 4u * 8u;
        let place = vec2<u32>(select(1u, 0u, digit > 3u), select(0u, 1u, digit > 3u));
        mask |= place * (255u << shift);
        prefix |= place * (hit.x << shift);
        sure = hit.y;
        if hit.y + hit.z <= params.size { break; }
    }

    if t == 0u { atomicStore(&tile_count, 0u); }
    workgroupBarrier();
    for (var i = t; i < params.filled; i += 64u) { gather_one(listed(list + i), 0xFFFFFFFFu); }
    for (var i = t; i < params.width; i += 64u) { gather_each(distance[tile + i], params.first + i * STEP, bound); }
    workgroupBarrier();
    for (var i = atomicLoad(&tile_count) + t; i < params.size; i += 64u) { tile_pair[i] = vec2<u32>(0xFFFFFFFFu); }
    workgroupBarrier();

    for (var span = 2u; span <= params.size; span *= 2u) {
        for (var gap = span / 2u; gap > 0u; gap /= 2u) {
            for (var i = t; i < params.size / 2u; i += 64u) {
                let low = 2u * (i - i % gap) + i % gap;
                let p = tile_pair[low];
                let q = tile_pair[low + gap];
                if before(q, p) == ((low & span) == 0u) {
                    tile_pair[low] = q;
                    tile_pair[low + gap] = p;
                }
            }
            workgroupBarrier();
        }
    }
    for (var i = t; i < params.keep; i += 64u) {
        if group < params.rows {
            best_distance[list + i] = bitcast<f32>(tile_pair[i].x);
            best_index[list + i] = tile_pair[i].y;
        }
    }
}
