// Squared Euclidean distances of all pairs of rows, as sums of squared differences, with the rows
// of a workgroup's 64 x 64 pairs staged in workgroup memory 16 columns at a time.
// An invocation owns the 4 x 4 pairs of rows ty + 16 r and tx + 16 c in named registers s{r}_{c}.
// What follows is loaded before what is there is used, so that loads and arithmetic overlap.
// Rows past the end are copies of the last one and not stored; columns past the end are zeros.
// uses: grid
// expects: Elem (f32 or vec4<f32>), STEP (components of Elem)
struct Params {
    rows: u32,
    cols: u32,
    width: u32,                                                         // elements of type Elem in a row
    blocks: u32,                                                        // workgroups side by side along the columns
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem>;                // [rows, width]
@group(0) @binding(2) var<storage, read> b: array<Elem>;                // [cols, width]
@group(0) @binding(3) var<storage, read_write> distance: array<f32>;    // [rows, cols]

const SIDE: u32 = 64u;
const DEPTH: u32 = 4u;                                                  // quadruples of columns staged at a time
// Quadruples from row to row; odd, so that neighbouring rows lie in different banks.
const PITCH: u32 = 5u;
var<workgroup> tile_a: array<vec4<f32>, SIDE * PITCH>;
var<workgroup> tile_b: array<vec4<f32>, SIDE * PITCH>;

fn add_square(d: vec4<f32>, s: f32) -> f32 { return fma(d.x, d.x, fma(d.y, d.y, fma(d.z, d.z, fma(d.w, d.w, s)))); }

// Quadruple `quad` of the row that begins at `base`, by load_a and load_b.
//@load

fn put(row: u32, col: u32, value: f32) {
    if row < params.rows && col < params.cols { distance[row * params.cols + col] = value; }
}

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let row0 = group / params.blocks * SIDE;
    let col0 = group % params.blocks * SIDE;
    // What this invocation stages: quadruple t % 4 of row t / 4 of either side.
    let at_a = min(row0 + t / DEPTH, params.rows - 1u) * params.width;
    let at_b = min(col0 + t / DEPTH, params.cols - 1u) * params.width;
    let staged = t / DEPTH * PITCH + t % DEPTH;
    let ty = t / 16u;
    let tx = t % 16u;
    // For r, c: var s{r}_{c} = 0.0;
    //@begin
    let quads = (params.width * STEP + 3u) / 4u;
    var next_a = load_a(at_a, t % DEPTH);
    var next_b = load_b(at_b, t % DEPTH);
    for (var i = 0u; i < quads; i += DEPTH) {
        tile_a[staged] = next_a;
        tile_b[staged] = next_b;
        workgroupBarrier();
        next_a = load_a(at_a, i + DEPTH + t % DEPTH);
        next_b = load_b(at_b, i + DEPTH + t % DEPTH);
        for (var q = 0u; q < DEPTH; q++) {
            // x{r} = tile_a[(ty + 16 r) * PITCH + q], y{c} likewise; for r, c: s{r}_{c} = add_square(x{r} - y{c}, s{r}_{c});
            //@step
        }
        workgroupBarrier();
    }
    // For r, c: put(row0 + ty + 16 r, col0 + tx + 16 c, s{r}_{c});
    //@end
}
