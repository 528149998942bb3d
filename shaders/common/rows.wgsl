// Rows of channel vectors spread over a workgroup of LANES invocations: neighbours take
// neighbouring vectors of memory, and an invocation stays with one channel vector, so that what
// belongs to the channel is loaded once. A workgroup covers one chunk of rows and one block of
// up to LANES vectors; `row_chunks` of src/kernels/rows.rs counts the workgroups. Where
// invocations run together (GPUs) their rows interleave; where eight at a time run to the next
// barrier (CPU adapter) each takes successive rows, so that memory is walked in order.
// expects: SUCCESSIVE (rows of an invocation follow each other)
const LANES: u32 = 256u;

struct Share {
    channel: u32,   // channel vector; 0 when idle
    first: u32,     // first row
    end: u32,       // one past the last row; an idle invocation has first = end = 0
    step: u32,      // rows from one turn to the next
    row: u32,       // place among the invocations of the channel vector
    width: u32,     // invocations per row
    chunk: u32,     // number of the chunk
    idle: bool,
}

fn share(group: u32, lane: u32, rows: u32, vectors: u32, chunk_rows: u32) -> Share {
    let width = min(vectors, LANES);
    let blocks = (vectors + width - 1u) / width;
    let chunk = group / blocks;
    let row = lane / width;
    let channel = (group - chunk * blocks) * width + (lane - row * width);
    let start = chunk * chunk_rows;
    let side = LANES / width;
    let idle = row >= side || channel >= vectors || start >= rows;
    if idle { return Share(0u, 0u, 0u, side, row, width, chunk, true); }
    let end = min(start + chunk_rows, rows);
    if SUCCESSIVE {
        let own = (chunk_rows + side - 1u) / side;
        let first = min(start + row * own, end);
        return Share(channel, first, min(first + own, end), 1u, row, width, chunk, false);
    }
    return Share(channel, min(start + row, end), end, side, row, width, chunk, false);
}

// Invocations of one channel vector in a workgroup.
fn rows_side_by_side(vectors: u32) -> u32 {
    return LANES / min(vectors, LANES);
}

// First distance of a tree reduction over `count` values: the largest power of two below it, 0 for one value.
fn tree_start(count: u32) -> u32 {
    return select(0u, 1u << firstLeadingBit(max(count, 2u) - 1u), count > 1u);
}
