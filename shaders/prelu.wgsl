// PReLU with a slope per channel over rows [rows, C], and its gradients.
// uses: grid, rows
// expects: Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16)
struct Params {
    rows: u32,            // rows of this part
    vectors: u32,         // channel vectors
    chunk: u32,           // rows per chunk
    first_partial: u32,   // number of this part's first partial
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>;                  // [rows, C]
@group(0) @binding(2) var<storage, read> slope: array<Elem>;                // [C]
@group(0) @binding(3) var<storage, read> d_y: array<Stored>;                // [rows, C]
@group(0) @binding(4) var<storage, read_write> y: array<Stored>;            // [rows, C]
@group(0) @binding(5) var<storage, read_write> d_x: array<Stored>;          // [rows, C]
@group(0) @binding(6) var<storage, read_write> partials: array<Elem>;       // [partials, C] of d_slope

var<workgroup> tile: array<Elem, LANES>;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let s = share(flat_group(wg, count), lane, params.rows, params.vectors, params.chunk);
    let a = slope[s.channel];
    for (var r = s.first; r < s.end; r += s.step) {
        let i = r * params.vectors + s.channel;
        let v = Elem(x[i]);
        y[i] = Stored(select(a * v, v, v > Elem(0.0)));
    }
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let s = share(flat_group(wg, count), lane, params.rows, params.vectors, params.chunk);
    let a = slope[s.channel];
    var sum = Elem(0.0);
    for (var r = s.first; r < s.end; r += s.step) {
        let i = r * params.vectors + s.channel;
        let v = Elem(x[i]);
        let d = Elem(d_y[i]);
        let positive = v > Elem(0.0);
        d_x[i] = Stored(select(a * d, d, positive));
        sum += select(v * d, Elem(0.0), positive);
    }
    tile[lane] = sum;
    workgroupBarrier();
    let side = rows_side_by_side(params.vectors);
    for (var half = tree_start(side); half > 0u; half >>= 1u) {
        if s.row < half && s.row + half < side { tile[lane] += tile[lane + half * s.width]; }
        workgroupBarrier();
    }
    if !s.idle && s.row == 0u { partials[(params.first_partial + s.chunk) * params.vectors + s.channel] = tile[lane]; }
}
