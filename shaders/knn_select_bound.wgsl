// Selection, first part, for subgroups of eight lanes: a bound on the distances that can get into
// the list. The smallest of each group of columns, and each entry of the list, are distances of
// different columns; so the `keep`-th smallest of these few is at least the `keep`-th of all.
// Depends on knn_select.wgsl; the `least` of an Elem's components comes with its other functions.
// expects: GROUPS (groups of columns per lane), LISTED (entries of the list per lane)
var<private> smallest: array<u32, GROUPS + LISTED>;

// How many of all lanes' smallest are below `limit`.
fn smallest_below(limit: u32) -> u32 {
    var n = 0u;
    // For i: n += u32(smallest[i] < limit);
    //@count
    return subgroupAdd(n);
}

fn tightened(list: u32, tile: u32, t: u32) -> u32 {
    let steps = (params.width + LANES - 1u) / LANES;
    let per = (steps + GROUPS - 1u) / GROUPS;
    for (var g = 0u; g < GROUPS; g++) {
        var here = 0xFFFFFFFFu;
        let end = min((g + 1u) * per, steps);
        for (var i = g * per; i < end; i++) {
            let at = i * LANES + t;
            here = min(here, select(0xFFFFFFFFu, least(distance[tile + min(at, params.width - 1u)]), at < params.width));
        }
        smallest[g] = here;
    }
    for (var g = 0u; g < LISTED; g++) {
        let at = g * LANES + t;
        smallest[GROUPS + g] = select(0xFFFFFFFFu, bitcast<u32>(best_distance[list + min(at, params.k - 1u)]), at < params.filled);
    }
    // The largest multiple of 256 that fewer than `keep` are below; what is that close to the bound is not worth more steps.
    var lower = 0u;
    for (var bit = 0x40000000u; bit >= 0x100u; bit /= 2u) {
        if smallest_below(lower | bit) < params.keep { lower |= bit; }
    }
    return lower + 0x100u;
}
