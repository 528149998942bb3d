// 3D convolution, register tile: an invocation owns TW neighbouring outputs along W times WIDE output channels.
// Output channels in fours, input channels in fours or one by one (Elem); out-of-grid reads are clamped and masked, so
// tensors carry no halo. Weights come packed by conv3d_pack.wgsl. With eight-lane subgroups each is loaded by one lane
// and broadcast, and neighbours along W hand each other the voxels between their tiles.
// The input may be normalised on its way in (padding stays zero), and the statistics of the output rows of a workgroup
// written as one partial for the batch norm that follows.
// uses: grid, group_sum
// expects: Elem; Read, Written (Elem and vec4<f32> as stored); Weight (as loaded); LANES, D, H, W, OD, OH, OW, WB (tiles per
// row), CIN (Elems per input voxel), CO4, KD, KH, SD, SH, SW, PD, PH, PW, BODY (Weights per block, kd, kh, Elem), BLOCKS;
// TURNS: Elems of a body; FD, FH, FW: each output goes to its FD×FH×FW block, the tap chosen by the channel block (1, 1, 1 otherwise)
struct Params { samples: u32, first: u32, last: u32, first_partial: u32 }   // workgroups [first, last) of the whole grid
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Read>;                // [N, D, H, W, CIN]
@group(0) @binding(2) var<storage, read> packed: array<Weight>;             // [block][KD][KH][CIN][BODY]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;            // [CO4]
@group(0) @binding(4) var<storage, read> norm: array<Elem>;                 // [3, CIN] mean, factor, shift
@group(0) @binding(5) var<storage, read_write> output: array<Written>;      // [N, OD·FD, OH·FH, OW·FW, CO4]
@group(0) @binding(6) var<storage, read_write> statistics: array<vec4<f32>>; // [partials, 3, CO4]

//@unpack

@compute @workgroup_size(LANES)
//@signature
    let group = p.first + flat_group(wg, count);
    let items = p.samples * OD * OH * WB;
    let blocks = (items + LANES - 1u) / LANES;
    let block = min(group / blocks, BLOCKS - 1u);
    let item = (group % blocks) * LANES + t;
    let live = item < items && group < p.last;
    let at = min(item, items - 1u);
    let wb = at % WB;
    let oh = (at / WB) % OH;
    let od = (at / (WB * OH)) % OD;
    let n = at / (WB * OH * OD);
    let first = i32(wb * TW * SW) - i32(PW);
    let tap = block * WIDE4 / CO4;
    let out_w = (((n * OD + od) * FD + tap / (FH * FW)) * OH + oh) * FH + tap / FW % FH;
    let out = ((out_w * OW + wb * TW) * FW + tap % FW) * CO4 + block * WIDE4 % CO4;
//@begin
    for (var kd = 0u; kd < KD; kd++) {
        let d = i32(od * SD + kd) - i32(PD);
        let dc = u32(clamp(d, 0, i32(D) - 1));
        for (var kh = 0u; kh < KH; kh++) {
            let h = i32(oh * SH + kh) - i32(PH);
            let hc = u32(clamp(h, 0, i32(H) - 1));
            let line = ((n * D + dc) * H + hc) * W * CIN;
            let inside = i32(dc) == d && i32(hc) == h;
//@bound
            for (var c = 0u; c < bound; c += TURNS) {
                let row = line + c;
                let k = (((block * KD + kd) * KH + kh) * CIN + c) * BODY;
//@body
            }
        }
    }
    if live {
//@store
    }
//@statistics
}
