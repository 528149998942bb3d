// 3D convolution on matrix fragments: f16 factors, f32 sums. A workgroup owns a tile of outputs times WIDE channels. For each
// lot of 16 input channels the tile's input with its halo is staged once, as halves, and read by all taps straight from
// workgroup memory: the fragment of a tap is the same memory at a shifted place. The weights of one row of taps are staged
// step by step, or read from where they are packed. The fragments leave through workgroup memory: bias, statistics, stores.
// uses: grid
// The axes (a, b, r) are as in conv3d_simt.wgsl; a fragment's rows lie along r.
//
// Cost of the usual shape (128 outputs × 64 channels, four subgroups of 32, fragments of 16, 3×3×3; a subgroup owns 64 × 32):
// per tap a subgroup loads 4 + 2 fragments (3 KiB) for 8 products of 4096 multiply-adds, 21 operations a byte of workgroup memory.
// From beyond the workgroup, per lot: 432 × 32 bytes of input and 54 KiB of weights for 128·64·27·16 multiply-adds, 105 operations
// a byte (256 outputs: 186). 64 registers of sums, 24 of factors, 28 + 12 of what is fetched ahead, 14 of places: about 160, so three
// workgroups on a multiprocessor with 64 Ki registers; 32 KiB of workgroup memory. Voxels are 48 bytes apart and rows of weights
// 144, so that the eight rows of 16 bytes that are read at once fall into different banks.
//
// expects: Elem4 (input), Out4 (output), Cell (vec4<f16> or f16), UNIT, FRAG, LANES, SUBGROUPS, SIDE_M (subgroups along the outputs), FRAGS_M,
// FRAGS_N (fragments of a subgroup), THREADS, WIDE4, TILE_A … TILES_R, HALO_A … HALO_R, HALO_SLOTS, GRID_A … WRITE_R, FACTOR_H … CHANNELS4, CHANNELS4_0,
// CHANNELS4_1, LOTS_0, LOTS, PANELS as in conv3d_simt.wgsl; A_STEP (STRIDE_R · SLOT), B_STEP, C_STEP, SLOT (halves from one voxel to the next), C_CELLS
struct Params { first: u32, last: u32, first_tile: u32 }   // workgroups [first, last) of the whole grid; tiles of earlier samples
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem4>;               // [N, D, H, W, CHANNELS4_0]
@group(0) @binding(2) var<storage, read> second: array<Elem4>;              // [N, D, H, W, CHANNELS4_1]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;            // [CHANNELS4]
@group(0) @binding(5) var<storage, read> norm: array<vec4<f32>>;            // [3, CHANNELS4_0] mean, factor, shift
@group(0) @binding(6) var<storage, read> second_norm: array<vec4<f32>>;     // [3, CHANNELS4_1]
@group(0) @binding(7) var<storage, read_write> output: array<Out4>;         // [N, out grid, CHANNELS4]
@group(0) @binding(8) var<storage, read_write> statistics: array<vec4<f32>>;    // [tiles, 3, CHANNELS4]

const LOT: u32 = 16u;
const STEPS: u32 = KERNEL_A * KERNEL_B;
const WEIGHT_CELLS: u32 = KERNEL_R * LOT * WIDE4;   // vec4 of a row of taps
const INPUT_CELLS: u32 = HALO_SLOTS * LOT / 4u;
var<workgroup> matrix_a: array<Cell, HALO_SLOTS * SLOT / UNIT>;     // [HALO_SLOTS][SLOT] the input's lot
var<workgroup> matrix_c: array<f32, C_CELLS>;                       // [SUBGROUPS][FRAG][C_STEP]
// The weights [KERNEL_R][LOT][B_STEP] of a row of taps, or all of them [PANELS][LOTS][KERNEL_A][KERNEL_B][KERNEL_R][LOT][4·WIDE4] at binding 3.
//@weights
//@cells
// matrix_coop.wgsl or matrix_plain.wgsl
//@fragments

struct Place { voxel: u32, inside: bool }

// Voxel of sample `n` at `slot` of the halo tile that begins at `origin`, moved into the grid where it lies outside.
fn place(slot: u32, n: u32, origin: vec3<i32>) -> Place {
    let at = origin + vec3<i32>(vec3<u32>(slot / (HALO_B * HALO_R), slot / HALO_R % HALO_B, slot % HALO_R));
    let last = vec3<i32>(vec3<u32>(GRID_A - 1u, GRID_B - 1u, GRID_R - 1u));
    let c = clamp(at, vec3<i32>(), last);
    let v = vec3<u32>(c);
    return Place((n * GRID_A * GRID_B * GRID_R) + v.x * READ_A + v.y * READ_B + v.z * READ_R, all(c == at));
}

// First output, within the tile, of fragment `f`.
fn corner(f: u32) -> vec3<u32> {
    const ROW: u32 = TILE_R / FRAG;
    return vec3<u32>(f / (ROW * TILE_B), f / ROW % TILE_B, f % ROW * FRAG);
}

// Where the input of output `c` begins in matrix_a.
fn home_of(c: vec3<u32>) -> u32 {
    return ((c.x * STRIDE_A * HALO_B + c.y * STRIDE_B) * HALO_R + c.z * STRIDE_R) * SLOT;
}

// What a lane has seen of a channel quad: sums of differences from the first value, and of their squares.
struct Seen { count: f32, pivot: vec4<f32>, sum: vec4<f32>, squares: vec4<f32> }

fn see(s: Seen, v: vec4<f32>) -> Seen {
    let pivot = select(s.pivot, v, s.count == 0.0);
    let d = v - pivot;
    return Seen(s.count + 1.0, pivot, s.sum + d, s.squares + d * d);
}

// The outputs of a fragment that lies in matrix_c from `start` on: its first output is `c` and its first column quad `quad`.
fn finish(start: u32, turn: u32, tile: vec3<u32>, c: vec3<u32>, n: u32, quad: u32, live: bool, before: Seen) -> Seen {
    const QUADS: u32 = FRAG / 4u;
    var seen = before;
    let q = quad + turn % QUADS;
    let channel = q % CHANNELS4;
    let tap = q / CHANNELS4;
    let shift = (tap / (FACTOR_H * FACTOR_W) * FULL_H + tap / FACTOR_W % FACTOR_H) * FULL_W + tap % FACTOR_W;
    for (var row = turn / QUADS; row < FRAG; row += LANES / QUADS) {
        let o = tile + c + vec3<u32>(0u, 0u, row);
        if q < CHANNELS4 * FACTORS && o.x < OUT_A && o.y < OUT_B && o.z < OUT_R {
            let k = start + row * C_STEP + turn % QUADS * 4u;
            var v = vec4<f32>(matrix_c[k], matrix_c[k + 1u], matrix_c[k + 2u], matrix_c[k + 3u]);
            let at = (n * (OUT_A * OUT_B * OUT_R * FACTORS) + o.x * WRITE_A + o.y * WRITE_B + o.z * WRITE_R + shift) * CHANNELS4 + channel;
//@finish
            if live { output[at] = Out4(v); }
        }
    }
    return seen;
}

// Puts what a lane has seen into matrix_c: count, mean and squared differences.
fn put_seen(slot: u32, s: Seen) {
    let n = max(s.count, 1.0);
    let mean = s.pivot + s.sum / n;
    let squares = s.squares - s.sum * s.sum / n;
    let k = slot * 9u;
    matrix_c[k] = s.count;
    for (var i = 0u; i < 4u; i++) {
        matrix_c[k + 1u + i] = mean[i];
        matrix_c[k + 5u + i] = squares[i];
    }
}

// Merges what the lanes of one column quad, for which invocation `t` stands, have seen, in their order, and writes it.
fn write_statistics(t: u32, fragment: u32, panel: u32, number: u32, live: bool) {
    const QUADS: u32 = FRAG / 4u;
    if t < SUBGROUPS / SIDE_M * QUADS {
        let side = t / QUADS;
        var count = 0.0;
        var mean = vec4<f32>();
        var squares = vec4<f32>();
        for (var m = 0u; m < SIDE_M; m++) {
            for (var l = t % QUADS; l < LANES; l += QUADS) {
                let k = ((side * SIDE_M + m) * LANES + l) * 9u;
                let c = matrix_c[k];
                let total = max(count + c, 1.0);
                let d = vec4<f32>(matrix_c[k + 1u], matrix_c[k + 2u], matrix_c[k + 3u], matrix_c[k + 4u]) - mean;
                mean += d * (c / total);
                squares += vec4<f32>(matrix_c[k + 5u], matrix_c[k + 6u], matrix_c[k + 7u], matrix_c[k + 8u]) + d * d * (count * c / total);
                count += c;
            }
        }
        let q = panel * WIDE4 + (side * FRAGS_N + fragment) * QUADS + t % QUADS;
        if live && q < CHANNELS4 {
            let at = (p.first_tile + number) * 3u * CHANNELS4 + q;
            statistics[at] = vec4<f32>(count);
            statistics[at + CHANNELS4] = mean;
            statistics[at + 2u * CHANNELS4] = squares;
        }
    }
}

//@signature
    let group = p.first + flat_group(wg, count);
    let at = min(group, p.last - 1u);   // surplus workgroups do the last one's work and store nothing
    let panel = at % PANELS;
    let number = at / PANELS;
    let corner0 = vec3<u32>(number / (TILES_R * TILES_B) % TILES_A * TILE_A, number / TILES_R % TILES_B * TILE_B, number % TILES_R * TILE_R);
    let n = number / (TILES_R * TILES_B * TILES_A);
    let origin = vec3<i32>(corner0 * vec3<u32>(STRIDE_A, STRIDE_B, STRIDE_R)) - vec3<i32>(vec3<u32>(PAD_A, PAD_B, PAD_R));
    let side_m = subgroup % SIDE_M;
    let side_n = subgroup / SIDE_M;
    let column = side_n * FRAGS_N * FRAG;
    let quad = t % (LOT / 4u);
//@places
//@begin
    {
        let lot = 0u;
        let step = 0u;
//@fetch_input
//@fetch_weights
    }
    for (var current = 0u; current < LOTS; current++) {
        workgroupBarrier();
        {
            let lot = current;
//@keep_input
        }
        {
            // The next lot is on its way while this one is multiplied.
            let lot = min(current + 1u, LOTS - 1u);
//@fetch_input
        }
//@ready
        for (var row = 0u; row < STEPS; row++) {
            let step = min(current * STEPS + row + 1u, LOTS * STEPS - 1u);
//@stage_weights
            let shift = (row / KERNEL_B * HALO_B + row % KERNEL_B) * HALO_R * SLOT;
//@multiply
        }
    }
    let live = group < p.last;
    let own = subgroup * FRAG * C_STEP;
//@store
//@statistics
}
