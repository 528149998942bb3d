// 3D convolution as an implicit matrix product through workgroup memory, for adapters whose invocations run side by side.
// A workgroup owns a tile of TILE_A×TILE_B×TILE_R outputs times WIDE channels. For each lot of input channels the tile's
// input with its halo is staged once and read by all taps; the weights of one row of taps are staged step by step. An
// invocation owns RUN neighbouring outputs along the last axis times four (or eight) channels, all in named registers.
// uses: grid
// The axes (a, b, r) are the grid's D, H, W in an order chosen on the host so that runs along r fit the grid.
//
// Cost of the usual shape (128 outputs × 64 channels, 256 invocations, run 8, lot 8, 3×3×3): per step and channel quad an
// invocation loads 10 + 12 vec4 from workgroup memory for 384 multiply-adds (17 a load; neighbours share addresses or lie
// side by side, so no bank conflicts). Traffic from beyond the workgroup: 360 × 32 bytes of input and 55 KiB of weights for
// 128·64·27·8 multiply-adds, 53 operations a byte. 32 sums, 40 inputs, 4 weights and 20 for what is fetched ahead and for
// addresses: about 100 registers and 17.4 KiB, so two to three workgroups on a multiprocessor with 64 Ki registers.
//
// expects: Elem4 (vec4<f32> or vec4<f16>, input), Out4 (output), THREADS, TILE_A, TILE_B, TILE_R, TILES_A, TILES_B, TILES_R, RUN, WIDE4,
// COLUMNS4 (invocations over channels), LOT4, HALO_A, HALO_B, HALO_R, HALO_SLOTS, GRID_A, GRID_B, GRID_R, OUT_A, OUT_B, OUT_R, KERNEL_A, KERNEL_B, KERNEL_R,
// STRIDE_A, STRIDE_B, STRIDE_R, PAD_A, PAD_B, PAD_R, READ_A, READ_B, READ_R (voxels from one to the next along an axis of the input), WRITE_A,
// WRITE_B, WRITE_R (of the output), FACTOR_H, FACTOR_W, FULL_H, FULL_W (a transposed convolution's blocks and its output grid; 1 and the grid otherwise),
// FACTORS (their volume), CHANNELS4 (of the output), CHANNELS4_0, CHANNELS4_1 (of the sources), LOTS_0, LOTS, PANELS, TILE_CELLS
struct Params { first: u32, last: u32, first_tile: u32 }   // workgroups [first, last) of the whole grid; tiles of earlier samples
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem4>;               // [N, D, H, W, CHANNELS4_0]
@group(0) @binding(2) var<storage, read> second: array<Elem4>;              // [N, D, H, W, CHANNELS4_1]
@group(0) @binding(3) var<storage, read> packed: array<vec4<f32>>;          // [PANELS][LOTS][KERNEL_A][KERNEL_B][KERNEL_R][4·LOT4][WIDE4]
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;            // [CHANNELS4]
@group(0) @binding(5) var<storage, read> norm: array<vec4<f32>>;            // [3, CHANNELS4_0] mean, factor, shift
@group(0) @binding(6) var<storage, read> second_norm: array<vec4<f32>>;     // [3, CHANNELS4_1]
@group(0) @binding(7) var<storage, read_write> output: array<Out4>;         // [N, out grid, CHANNELS4]
@group(0) @binding(8) var<storage, read_write> statistics: array<vec4<f32>>;    // [tiles, 3, CHANNELS4]

const STEPS: u32 = KERNEL_A * KERNEL_B;
const WEIGHT_CELLS: u32 = KERNEL_R * LOT4 * 4u * WIDE4;
const INPUT_CELLS: u32 = HALO_SLOTS * LOT4;
// The input's tile [HALO_SLOTS][LOT4], then the weights' [KERNEL_R][4·LOT4][WIDE4].
var<workgroup> tile: array<vec4<f32>, TILE_CELLS>;

struct Place { voxel: u32, inside: bool }

// Voxel of sample `n` at `slot` of the halo tile that begins at `origin`, moved into the grid where it lies outside.
fn place(slot: u32, n: u32, origin: vec3<i32>) -> Place {
    let at = origin + vec3<i32>(vec3<u32>(slot / (HALO_B * HALO_R), slot / HALO_R % HALO_B, slot % HALO_R));
    let last = vec3<i32>(vec3<u32>(GRID_A - 1u, GRID_B - 1u, GRID_R - 1u));
    let c = clamp(at, vec3<i32>(), last);
    let v = vec3<u32>(c);
    return Place((n * GRID_A * GRID_B * GRID_R) + v.x * READ_A + v.y * READ_B + v.z * READ_R, all(c == at));
}

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = p.first + flat_group(wg, count);
    let at = min(group, p.last - 1u);   // surplus workgroups do the last one's work and store nothing
    let panel = at % PANELS;
    let number = at / PANELS;
    let a0 = number / (TILES_R * TILES_B) % TILES_A * TILE_A;
    let b0 = number / TILES_R % TILES_B * TILE_B;
    let r0 = number % TILES_R * TILE_R;
    let n = number / (TILES_R * TILES_B * TILES_A);
    let origin = vec3<i32>(vec3<u32>(a0 * STRIDE_A, b0 * STRIDE_B, r0 * STRIDE_R)) - vec3<i32>(vec3<u32>(PAD_A, PAD_B, PAD_R));
    let column = t % COLUMNS4;
    let run = t / COLUMNS4;
    // This invocation's first output within the tile, and the slot of its first input.
    let a = run / (TILE_R / RUN * TILE_B);
    let b = run / (TILE_R / RUN) % TILE_B;
    let r = run % (TILE_R / RUN) * RUN;
    let home = ((a * STRIDE_A * HALO_B + b * STRIDE_B) * HALO_R + r * STRIDE_R) * LOT4;
    let quad = t % LOT4;
//@places
//@begin
    let weights = panel * LOTS * STEPS * WEIGHT_CELLS;
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
            // What comes next is on its way while this is multiplied.
            let lot = min(current + 1u, LOTS - 1u);
//@fetch_input
        }
        for (var row = 0u; row < STEPS; row++) {
            workgroupBarrier();
//@keep_weights
            workgroupBarrier();
            let step = min(current * STEPS + row + 1u, LOTS * STEPS - 1u);
//@fetch_weights
            let shift = (row / KERNEL_B * HALO_B + row % KERNEL_B) * HALO_R * LOT4;
            for (var q = 0u; q < LOT4; q++) {
                let x = home + shift + q;
                let w = INPUT_CELLS + q * 4u * WIDE4 + column;
//@multiply
            }
        }
    }
    let live = group < p.last && a0 + a < OUT_A && b0 + b < OUT_B;
    let first = n * (OUT_A * OUT_B * OUT_R * FACTORS) + (a0 + a) * WRITE_A + (b0 + b) * WRITE_B + (r0 + r) * WRITE_R;
//@store
//@statistics
}
