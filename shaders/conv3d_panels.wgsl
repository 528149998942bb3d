// Weights in panels, the order in which conv3d_simt.wgsl and conv3d_coop.wgsl read them; four output columns an invocation.
// uses: grid
// expects: Cell4 (vec4<f32> or vec4<f16>), MODE; 0: forward; 1: input gradient at stride 1 (taps flipped, channels swapped);
// 2: input gradient at stride = kernel (columns are taps × channels, channels swapped).
// Rows are the channels of up to two sources, each filled up to whole lots with zeros; so are the columns up to whole panels.
struct Params {
    ka: u32, kb: u32, kr: u32,      // the product's kernel, in the order of its axes: (1, 1, 1) in mode 2
    ta: u32, tb: u32, tr: u32,      // steps in the weight's taps along these axes
    taps: u32,                      // the weight's taps
    lots0: u32, rows0: u32, first0: u32,    // first source: lots, channels, its first channel in the weight
    lots1: u32, rows1: u32, first1: u32,    // second source, or nothing
    columns: u32, c0: u32,          // channels written, and their first in the weight (modes 1 and 2)
    co: u32, ci_total: u32,         // the weight's channels
    lot: u32, wide: u32,            // rows and columns of a panel
    total: u32,                     // vec4 in all
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;            // [taps, co, ci_total]
@group(0) @binding(2) var<storage, read_write> packed: array<Cell4>;    // [panels of columns][lots][ka][kb][kr][lot][wide / 4]

fn element(row: u32, column: u32, tap: u32) -> f32 {
    if MODE == 0u {
        if column >= p.columns { return 0.0; }
        return weight[(tap * p.co + column) * p.ci_total + row];
    }
    if MODE == 1u {
        if column >= p.columns { return 0.0; }
        return weight[((p.taps - 1u - tap) * p.co + row) * p.ci_total + p.c0 + column];
    }
    if column >= p.columns * p.taps { return 0.0; }
    return weight[(column / p.columns * p.co + row) * p.ci_total + p.c0 + column % p.columns];
}

@compute @workgroup_size(64)
fn pack(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    if id < p.total {
        // Neighbours take neighbouring rows: in the weight these lie side by side.
        let quads = p.wide / 4u;
        let i = id % p.lot;
        let quad = (id / p.lot) % quads;
        let panel = id / (p.lot * quads);
        let kr = panel % p.kr;
        let kb = (panel / p.kr) % p.kb;
        let ka = (panel / (p.kr * p.kb)) % p.ka;
        let lots = p.lots0 + p.lots1;
        let lot = (panel / (p.kr * p.kb * p.ka)) % lots;
        let block = panel / (p.kr * p.kb * p.ka * lots);
        let second = lot >= p.lots0;
        let row = (lot - select(0u, p.lots0, second)) * p.lot + i;
        var v = vec4<f32>();
        if row < select(p.rows0, p.rows1, second) {
            let r = select(p.first0, p.first1, second) + row;
            let c = block * p.wide + quad * 4u;
            let tap = ka * p.ta + kb * p.tb + kr * p.tr;
            v = vec4<f32>(element(r, c, tap), element(r, c + 1u, tap), element(r, c + 2u, tap), element(r, c + 3u, tap));
        }
        packed[(panel * p.lot + i) * quads + quad] = Cell4(v);
    }
}
