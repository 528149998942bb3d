// 3D convolution, weight gradient, register tile: an invocation owns one (kd, kh), one Elem of input channels, all kw and
// WIDE output channels, and walks its split's run of output rows; conv3d_sum.wgsl adds the splits in a fixed order. With
// eight-lane subgroups each output gradient is loaded by one lane and broadcast, and what a tile has read of the input
// beyond its own voxels is kept for the next one of the row.
// uses: grid
// expects: Elem (vec4<f32> or f32), Read (Elem as stored), Gradient (four or eight channels as loaded), VOXEL, OWN (Gradients of a voxel and of a block), LANES, D, H, W, OD, OH, OW, WB, CIN, CO4, KD, KH, SD, SH, SW, PD, PH, PW, BLOCKS
struct Params { samples: u32, splits: u32, first: u32, last: u32 }   // workgroups [first, last) of the whole grid
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Read>;                // [N, D, H, W, CIN]
@group(0) @binding(2) var<storage, read> d_output: array<Gradient>;         // [N, OD, OH, OW, VOXEL]
@group(0) @binding(3) var<storage, read> norm: array<Elem>;                 // [3, CIN] mean, factor, shift
@group(0) @binding(4) var<storage, read_write> part: array<Elem>;           // [splits, KD, KH, KW, 4·CO4, CIN]

//@unpack

@compute @workgroup_size(LANES)
//@signature
    let group = p.first + flat_group(wg, count);
    let items = KD * KH * CIN;
    let blocks = (items + LANES - 1u) / LANES;
    let item = (group % blocks) * LANES + t;
    let block = (group / blocks) % BLOCKS;
    let split = group / (blocks * BLOCKS);
    let live = item < items && group < p.last;
    let at = min(item, items - 1u);
    let c = at % CIN;
    let kh = (at / CIN) % KH;
    let kd = at / (CIN * KH);
//@begin
    let rows = p.samples * OD * OH;
    let run = (rows + p.splits - 1u) / p.splits;
    for (var row = split * run; row < min(rows, split * run + run); row++) {
        let d = i32((row / OH) % OD * SD + kd) - i32(PD);
        let dc = u32(clamp(d, 0, i32(D) - 1));
        let h = i32(row % OH * SH + kh) - i32(PH);
        let hc = u32(clamp(h, 0, i32(H) - 1));
        let x = ((row / (OD * OH) * D + dc) * H + hc) * W * CIN + c;
        let inside = i32(dc) == d && i32(hc) == h;
//@row
        for (var wb = 0u; wb < bound; wb++) {
            let first = i32(wb * TW * SW) - i32(PW);
            let y = (row * OW + wb * TW) * VOXEL + block * OWN;
//@body
        }
    }
    if live {
        let out = (split * KD * KH + at / CIN) * KW * CO4 * 4u * CIN + block * WIDE4 * 4u * CIN + c;
//@store
    }
}
