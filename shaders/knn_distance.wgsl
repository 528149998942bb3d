// Squared Euclidean distances of all pairs of rows, for subgroups of eight lanes, where a load
// costs as much as dozens of multiplications: the lanes share all rows of b of a tile, each loads
// one of every eight and hands it to the others. They are sums of squared differences: exactly 0
// for equal rows, and no cancellation, unlike norms and a product.
// An invocation owns a tile of pairs in named registers s{r}_{c}; the unrolled text of a tile is
// generated. Rows past the end are computed as copies of the last one and not stored.
// uses: grid
// expects: Elem (f32 or vec4<f32>), Out (f32 or vec4<f32>), TILE_ROWS and TILE_COLS (of a workgroup)
struct Params {
    rows: u32,
    cols: u32,
    width: u32,                                                         // elements of type Elem in a row
    blocks: u32,                                                        // workgroups side by side along the columns
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem>;                // [rows, width]
@group(0) @binding(2) var<storage, read> b: array<Elem>;                // [cols, width]
@group(0) @binding(3) var<storage, read_write> distance: array<Out>;    // [rows, cols]

//@add_square
//@put

fn row_of_a(row: u32) -> u32 { return min(row, params.rows - 1u) * params.width; }
fn row_of_b(col: u32) -> u32 { return min(col, params.cols - 1u) * params.width; }

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = flat_group(wg, count);
    let row = group / params.blocks * TILE_ROWS + lane;
    let col = group % params.blocks * TILE_COLS;
    let width = params.width;
    // Offsets of this lane's rows, a{r} of row + 8 r and b{q} of col + 8 q + lane; for r, c: var s{r}_{c} = 0.0;
    //@begin
    for (var i = 0u; i < width; i++) {
        // Loads x{r} and q{q}; for c, with y = lane c % 8's q{c / 8}, for r: s{r}_{c} = add_square(x{r} - y, s{r}_{c});
        //@step
    }
    // For r, c: put(row + 8 r, col + c, s{r}_{c});
    //@end
}
