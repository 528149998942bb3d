// Weights in the order in which conv3d_tile.wgsl reads them; one vec4 over four output channels an invocation.
// uses: grid
// PAIRED: every sixteen vec4 are stored as eight groups of eight numbers, one a lane: those of the lane's vec4 of the
// first eight and of the last eight in turn.
// MODE 0: forward; 1: input gradient at stride 1 (taps flipped, channels swapped);
// 2: input gradient at stride = kernel (one output channel block per tap, channels swapped).
struct Params {
    kd: u32, kh: u32, kw: u32,      // the weight's kernel
    rows: u32, columns: u32,        // input and output channels of the tile kernel's convolution (columns without taps)
    c0: u32, co: u32, ci_total: u32,
    bkd: u32, bkh: u32, bkw: u32,   // kernel of the tile kernel's convolution: (1, 1, 1) in mode 2
    wide: u32,                      // output channels per block
    lot: u32,                       // input channels that are read at once: 4 or 1
    body: u32,                      // vec4 per (block, kd, kh, input lot)
    total: u32,                     // vec4 in all
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;                // [kd, kh, kw, co, ci_total]
@group(0) @binding(2) var<storage, read_write> packed: array<vec4<f32>>;    // [block][kd][kh][input lot][body]

fn element(row: u32, column: u32, tap: u32) -> f32 {
    let taps = p.kd * p.kh * p.kw;
    if MODE == 0u { return weight[(tap * p.co + column) * p.ci_total + p.c0 + row]; }
    if MODE == 1u { return weight[((taps - 1u - tap) * p.co + row) * p.ci_total + p.c0 + column]; }
    return weight[(column / p.columns * p.co + row) * p.ci_total + p.c0 + column % p.columns];
}

// Number n of vec4 i of a body: output channel 4r + n of the block for one input channel and tap.
fn number(i: u32, n: u32, lot: u32, kh: u32, kd: u32, block: u32) -> f32 {
    let quads = p.wide / 4u;
    if i >= p.lot * p.bkw * quads { return 0.0; }
    let kw = (i / quads) % p.bkw;
    let row = lot * p.lot + i / (quads * p.bkw);
    return element(row, block * p.wide + i % quads * 4u + n, (kd * p.bkh + kh) * p.bkw + kw);
}

@compute @workgroup_size(64)
fn pack(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    if id < p.total {
        let i = id % p.body;
        let groups = p.rows / p.lot;
        let lot = (id / p.body) % groups;
        let kh = (id / (p.body * groups)) % p.bkh;
        let kd = (id / (p.body * groups * p.bkh)) % p.bkd;
        let block = id / (p.body * groups * p.bkh * p.bkd);
        if PAIRED {
            let a = i / 16u * 16u + i % 16u / 2u;
            let n = i % 2u * 2u;
            packed[id] = vec4<f32>(
                number(a, n, lot, kh, kd, block), number(a + 8u, n, lot, kh, kd, block),
                number(a, n + 1u, lot, kh, kd, block), number(a + 8u, n + 1u, lot, kh, kd, block),
            );
        } else {
            packed[id] = vec4<f32>(
                number(i, 0u, lot, kh, kd, block), number(i, 1u, lot, kh, kd, block),
                number(i, 2u, lot, kh, kd, block), number(i, 3u, lot, kh, kd, block),
            );
        }
    }
}
