// Selection, last part, for subgroups of eight lanes: a candidate's place is the number of
// candidates before it, counted for eight candidates a lane at a time.
// Depends on knn_select.wgsl.
fn put_in_order(list: u32, live: bool, t: u32) {
    let n = atomicLoad(&tile_count);
    for (var first = 0u; first < n; first += 64u) {
        // For s: let p{s} = tile_pair[first + 8 s + t]; var r{s} = 0u;
        //@own
        for (var i = 0u; i < n; i += 8u) {
            let others = tile_pair[i + t];
            // For l: with q = lane l's of others, for s: r{s} += u32(before(q, p{s}));
            //@rank
        }
        // For s: if live && r{s} < params.keep { put p{s} at r{s} }
        //@put
    }
}
