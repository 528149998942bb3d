// Maximum of windows, with its place, to start from: one invocation an output.
//
//   semgen bench wgsl FILE.wgsl --op max_pool --shape 1,32,64,64,32
//
// The numbers of the shape are constants, added behind the end of this file: N, C, D, H, W (input), OD, OH, OW (output), KD, KH, KW
// (window), SD, SH, SW (stride), PD, PH, PW (padding).

@group(0) @binding(0) var<storage, read> x: array<f32>;              // [N, D, H, W, C]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;        // [N, OD, OH, OW, C]
@group(0) @binding(2) var<storage, read_write> index: array<u32>;    // [N, OD, OH, OW, C]: which of the D·H·W voxels

const LANES: u32 = 64u;

// The number of this invocation.
fn item(group: vec3<u32>, count: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * count.x) * LANES + lane;
}

// groups forward: div_up(N * OD * OH * OW * C, 64)
@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i >= N * OD * OH * OW * C {
        return;
    }
    let c = i % C;
    let w = i / C % OW;
    let h = i / (C * OW) % OH;
    let d = i / (C * OW * OH) % OD;
    let n = i / (C * OW * OH * OD);
    // The first of equal values counts.
    var best = 0.0;
    var place = 0u;
    var found = false;
    for (var k = 0u; k < KD * KH * KW; k++) {
        let zd = d * SD + k / (KH * KW);
        let zh = h * SH + k / KW % KH;
        let zw = w * SW + k % KW;
        if zd < PD || zh < PH || zw < PW || zd - PD >= D || zh - PH >= H || zw - PW >= W {
            continue;
        }
        let voxel = ((zd - PD) * H + zh - PH) * W + zw - PW;
        let value = x[(n * D * H * W + voxel) * C + c];
        if !found || value > best {
            best = value;
            place = voxel;
            found = true;
        }
    }
    y[i] = best;
    index[i] = place;
}
