// 3D convolution, weight gradient through workgroup memory: a workgroup owns one (a, b) tap, WIDE output channels, DEEP input channels and
// all taps along the last axis, and walks its split's share of the output rows; conv3d_sum.wgsl adds the splits in a fixed order.
// uses: grid
// Segments of SPAN outputs along r are staged: the output gradient [SPAN][WIDE] and the input it met [REACH][DEEP]. An invocation owns four
// input channels × four output channels × KERNEL_R taps. Only rows whose tap lies inside the grid are walked.
//
// Cost of the usual shape (64 × 64 channels, 256 invocations, three taps, runs of 8): per run an invocation loads 10 + 8 vec4 for 384
// multiply-adds, 21 a load. Traffic: 34 voxels × 256 bytes for 16·64·64·3 multiply-adds, 45 operations a byte. 48 sums, 40 inputs, 4 gradients
// and 12 fetched ahead: about 120 registers; 8.5 KiB.
//
// expects: Elem4 (input), Grad4 (output gradient), THREADS, SPAN, SEGMENTS, REACH, RUN, WIDE4, DEEP4, GRID_A … PAD_R, READ_A … WRITE_R as in conv3d_simt.wgsl, TAP_A, TAP_B, TAP_R (steps in the
// weight's taps), TAPS, CI4, CO4, PANELS_I, PANELS_O (workgroups over input and output channels), TILE_CELLS
struct Params { samples: u32, splits: u32, first: u32, last: u32 }   // workgroups [first, last) of the whole grid
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem4>;               // [N, D, H, W, CI4]
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;            // [3, CI4]
@group(0) @binding(3) var<storage, read> d_output: array<Grad4>;            // [N, OD, OH, OW, CO4]
@group(0) @binding(4) var<storage, read_write> part: array<vec4<f32>>;      // [splits, TAPS, 4·CO4, CI4]

const INPUT_CELLS: u32 = REACH * DEEP4;
// The input's segment [REACH][DEEP4], then the gradient's [SPAN][WIDE4].
var<workgroup> tile: array<vec4<f32>, TILE_CELLS>;

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

@compute @workgroup_size(THREADS)
fn backward_weight(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
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
    let column = t % WIDE4;     // quad of output channels
    let depth = t / WIDE4;      // quad of input channels
    // What this invocation fetches: always the same quads.
    let x_live = deep * DEEP4 + t % DEEP4 < CI4;
    let x_quad = min(deep * DEEP4 + t % DEEP4, CI4 - 1u);
    let y_live = wide * WIDE4 + column < CO4;
    let y_quad = min(wide * WIDE4 + column, CO4 - 1u);
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
    if group < p.last && deep * DEEP4 + depth < CI4 && y_live {
        let tap = ka * TAP_A + kb * TAP_B;
        let out = ((split * TAPS + tap) * CO4 + wide * WIDE4 + column) * 4u * CI4 + deep * DEEP4 + depth;
//@store
    }
}
