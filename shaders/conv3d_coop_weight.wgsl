// 3D convolution, weight gradient on matrix fragments: f16 factors, f32 sums. A workgroup owns one (a, b) tap, WIDE output channels, DEEP
// input channels and all taps along the last axis, and walks its split's share of the output rows; conv3d_sum.wgsl adds the splits in a fixed order.
// uses: grid
// Segments of SPAN outputs along r are staged as halves: the output gradient [SPAN][WIDE], read turned, and the input it met [REACH][DEEP],
// of which each tap reads a shifted part.
//
// Cost of the usual shape (64 × 64 channels, four subgroups of 32 with 32 × 32 channels × 3 taps each, fragments of 16): per 16 outputs a
// subgroup loads 2 + 6 fragments (4 KiB) for 12 products, 24 operations a byte of workgroup memory. From beyond the workgroup: 66 voxels × 128
// bytes for 32·64·64·3 multiply-adds, 93 operations a byte. 96 registers of sums, 32 of factors, 20 fetched ahead: about 170; 14.6 KiB.
//
// expects: as conv3d_simt_weight.wgsl and conv3d_coop.wgsl
struct Params { samples: u32, splits: u32, first: u32, last: u32 }   // workgroups [first, last) of the whole grid
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem4>;               // [N, D, H, W, CI4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;            // [3, CI4] mean, factor, shift
@group(0) @binding(3) var<storage, read> d_output: array<Grad4>;            // [N, OD, OH, OW, CO4]
@group(0) @binding(4) var<storage, read_write> part: array<vec4<f32>>;      // [splits, TAPS, 4·CO4, CI4]

const INPUT_CELLS: u32 = REACH * DEEP4;     // vec4 of a segment's input
const GRAD_CELLS: u32 = SPAN * WIDE4;       // and of its gradient
var<workgroup> matrix_a: array<Cell, SPAN * A_STEP / UNIT>;             // [SPAN][A_STEP] the output gradient
var<workgroup> matrix_b: array<Cell, REACH * ROW_STEP / UNIT>;          // [REACH][ROW_STEP] the input
var<workgroup> matrix_c: array<f32, C_CELLS>;                           // [SUBGROUPS][FRAG][C_STEP]
//@cells
// matrix_coop.wgsl or matrix_plain.wgsl
//@fragments

struct Segment { x: u32, y: u32, first: u32 }

// Segment number `turn` of tap `tap`: the voxels where its rows of the input and of the gradient begin, and its first output along r.
// `a` and `b` hold the first output and the number of outputs that the tap connects with the grid.
fn segment_of(turn: u32, tap: vec2<u32>, a: vec2<u32>, b: vec2<u32>) -> Segment {
    let line = turn / SEGMENTS;
    let oa = a.x + line / b.y % a.y;
    let ob = b.x + line % b.y;
    let n = line / (b.y * a.y);
    let x = n * (GRID_A * GRID_B * GRID_R) + (oa * STRIDE_A + tap.x - PAD_A) * READ_A + (ob * STRIDE_B + tap.y - PAD_B) * READ_B;
    let y = n * (OUT_A * OUT_B * OUT_R) + oa * WRITE_A + ob * WRITE_B;
    return Segment(x, y, turn % SEGMENTS * SPAN);
}

// First output along an axis whose input at tap `k` lies in the grid, and the number of such outputs.
fn valid(k: u32, grid: u32, out: u32, stride: u32, pad: u32) -> vec2<u32> {
    let first = (max(pad, k) - k + stride - 1u) / stride;
    let end = min(out, (max(grid + pad, k) - k + stride - 1u) / stride);
    return vec2<u32>(first, max(first, end) - first);
}

// Writes a fragment that lies in matrix_c from `start` on to `part`: rows are output channels from `o`, columns input channels from quad `i`.
fn finish(start: u32, turn: u32, out: u32, o: u32, i: u32, live: bool) {
    const QUADS: u32 = FRAG / 4u;
    let q = i + turn % QUADS;
    for (var row = turn / QUADS; row < FRAG; row += LANES / QUADS) {
        if live && o + row < CO4 * 4u && q < CI4 {
            let k = start + row * C_STEP + turn % QUADS * 4u;
            part[out + (o + row) * CI4 + q] = vec4<f32>(matrix_c[k], matrix_c[k + 1u], matrix_c[k + 2u], matrix_c[k + 3u]);
        }
    }
}

//@signature
    let group = p.first + flat_group(wg, count);
    let at = min(group, p.last - 1u);
    let deep = at % PANELS_I;
    let wide = at / PANELS_I % PANELS_O;
    let kb = at / (PANELS_I * PANELS_O) % KERNEL_B;
    let ka = at / (PANELS_I * PANELS_O * KERNEL_B) % KERNEL_A;
    let split = at / (PANELS_I * PANELS_O * KERNEL_B * KERNEL_A);
    let range_a = valid(ka, GRID_A, OUT_A, STRIDE_A, PAD_A);
    let range_b = valid(kb, GRID_B, OUT_B, STRIDE_B, PAD_B);
    let rows = p.samples * range_a.y * range_b.y * SEGMENTS;
    let share = (rows + p.splits - 1u) / p.splits;
    let begin = min(rows, split * share);
    let end = min(rows, begin + share);
    // What this invocation fetches: always the same quads.
    let x_live = deep * DEEP4 + t % DEEP4 < CI4;
    let x_quad = min(deep * DEEP4 + t % DEEP4, CI4 - 1u);
    let y_live = wide * WIDE4 + t % WIDE4 < CO4;
    let y_quad = min(wide * WIDE4 + t % WIDE4, CO4 - 1u);
    let first_o = subgroup % SIDE_M * FRAGS_M * FRAG;
    let first_i = subgroup / SIDE_M * FRAGS_N * FRAG;
//@places
//@begin
    if begin < end {
        let segment = segment_of(begin, vec2<u32>(ka, kb), range_a, range_b);
//@fetch
    }
    for (var turn = begin + 1u; turn <= end; turn++) {
        workgroupBarrier();
//@keep
        workgroupBarrier();
        {
            // What comes next is on its way while this is multiplied.
            let segment = segment_of(min(turn, end - 1u), vec2<u32>(ka, kb), range_a, range_b);
//@fetch
        }
//@multiply
    }
    let live = group < p.last;
    let own = subgroup * FRAG * C_STEP;
    let out = (split * TAPS + ka * TAP_A + kb * TAP_B) * CO4 * 4u * CI4;
//@store
}
