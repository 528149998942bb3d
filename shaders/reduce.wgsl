// Sums over the rows of segments of [segments, rows, C], and the reverse: one row spread over a segment.
// Sums go through chunks; a second pass of the same entry adds up the chunks.
// uses: grid, rows
// expects: Elem (f32 or vec4<f32>), Source and Target (Elem, or the same of f16)
struct Params {
    segments: u32,
    rows: u32,            // rows of a segment
    vectors: u32,         // channel vectors
    chunk: u32,           // rows per chunk
    chunks: u32,          // chunks per segment
    first: u32,           // sum: first row of `output` to write; spread: first row of `x` to read
    factor: f32,          // of every result
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Source>;              // sum: [segments, rows, C]; spread: [.., C]
@group(0) @binding(2) var<storage, read_write> output: array<Target>;   // sum: [.., C]; spread: [segments, rows, C]

var<workgroup> tile: array<Elem, LANES>;

struct Segment { number: u32, group: u32, rows: u32 }

// Segment of a workgroup and the workgroup's number in it; surplus workgroups find no rows.
fn segment(group: u32) -> Segment {
    let groups = params.chunks * ((params.vectors + LANES - 1u) / LANES);
    let number = group / groups;
    return Segment(number, group - number * groups, select(0u, params.rows, number < params.segments));
}

@compute @workgroup_size(LANES)
fn sum(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let segment = segment(flat_group(wg, count));
    let s = share(segment.group, lane, segment.rows, params.vectors, params.chunk);
    let start = segment.number * params.rows;
    var total = Elem(0.0);
    for (var r = s.first; r < s.end; r += s.step) { total += Elem(x[(start + r) * params.vectors + s.channel]); }
    tile[lane] = total;
    workgroupBarrier();
    let side = rows_side_by_side(params.vectors);
    for (var half = tree_start(side); half > 0u; half >>= 1u) {
        if s.row < half && s.row + half < side { tile[lane] += tile[lane + half * s.width]; }
        workgroupBarrier();
    }
    if !s.idle && s.row == 0u {
        output[(params.first + segment.number * params.chunks + s.chunk) * params.vectors + s.channel] = Target(tile[lane] * params.factor);
    }
}

@compute @workgroup_size(LANES)
fn spread(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let segment = segment(flat_group(wg, count));
    let s = share(segment.group, lane, segment.rows, params.vectors, params.chunk);
    if s.idle { return; }
    let start = segment.number * params.rows;
    let value = Target(Elem(x[(params.first + segment.number) * params.vectors + s.channel]) * params.factor);
    for (var r = s.first; r < s.end; r += s.step) { output[(start + r) * params.vectors + s.channel] = value; }
}
