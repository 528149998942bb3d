// Selection, last part: a bitonic network in workgroup memory, two steps a pass.
// Depends on knn_select.wgsl.

// One step of the network over pairs `gap` apart.
fn exchange(span: u32, gap: u32, t: u32) {
    for (var i = t; i < params.size / 2u; i += LANES) {
        let at = 2u * (i - i % gap) + i % gap;
        let p = tile_pair[at];
        let q = tile_pair[at + gap];
        let swap = before(q, p) == ((at & span) == 0u);
        tile_pair[at] = select(p, q, swap);
        tile_pair[at + gap] = select(q, p, swap);
    }
}

// Two steps at once, over pairs 2 `gap` and then `gap` apart.
fn exchange_twice(span: u32, gap: u32, t: u32) {
    for (var i = t; i < params.size / 4u; i += LANES) {
        let at = 4u * (i - i % gap) + i % gap;
        let up = (at & span) == 0u;
        let p0 = tile_pair[at];
        let p1 = tile_pair[at + gap];
        let p2 = tile_pair[at + 2u * gap];
        let p3 = tile_pair[at + 3u * gap];
        let s02 = before(p2, p0) == up;
        let s13 = before(p3, p1) == up;
        let q0 = select(p0, p2, s02);
        let q2 = select(p2, p0, s02);
        let q1 = select(p1, p3, s13);
        let q3 = select(p3, p1, s13);
        let s01 = before(q1, q0) == up;
        let s23 = before(q3, q2) == up;
        tile_pair[at] = select(q0, q1, s01);
        tile_pair[at + gap] = select(q1, q0, s01);
        tile_pair[at + 2u * gap] = select(q2, q3, s23);
        tile_pair[at + 3u * gap] = select(q3, q2, s23);
    }
}

fn put_in_order(list: u32, live: bool, t: u32) {
    for (var span = 2u; span <= params.size; span *= 2u) {
        for (var gap = span / 2u; gap > 1u; gap /= 4u) {
            exchange_twice(span, gap / 2u, t);
            workgroupBarrier();
        }
        // An odd number of steps leaves one: the bits of `span` at even places have odd numbers.
        if (span & 0xAAAAAAAAu) != 0u {
            exchange(span, 1u, t);
            workgroupBarrier();
        }
    }
    for (var i = t; i < params.keep; i += LANES) {
        if live {
            best_distance[list + i] = bitcast<f32>(tile_pair[i].x);
            best_index[list + i] = tile_pair[i].y;
        }
    }
}
