// Every voxel repeated to twice the grid, and the gradient, to start from: one invocation an element.
//
//   semgen bench wgsl FILE.wgsl --op upsample_nearest --shape 1,32,32,32,16
//
// The numbers of the shape are constants, added behind the end of this file: N, C, D, H, W (input), OD, OH, OW (output).

@group(0) @binding(0) var<storage, read> x: array<f32>;              // [N, D, H, W, C]     forward
@group(0) @binding(1) var<storage, read_write> y: array<f32>;        // [N, OD, OH, OW, C]  forward
@group(0) @binding(0) var<storage, read> d_y: array<f32>;            // [N, OD, OH, OW, C]  grad
@group(0) @binding(1) var<storage, read_write> d_x: array<f32>;      // [N, D, H, W, C]     grad

const LANES: u32 = 64u;

// The number of this invocation.
fn item(group: vec3<u32>, count: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * count.x) * LANES + lane;
}

// groups forward: div_up(N * OD * OH * OW * C, 64)
@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < N * OD * OH * OW * C {
        let c = i % C;
        let w = i / C % OW / 2u;
        let h = i / (C * OW) % OH / 2u;
        let d = i / (C * OW * OH) % OD / 2u;
        let n = i / (C * OW * OH * OD);
        y[i] = x[(((n * D + d) * H + h) * W + w) * C + c];
    }
}

// groups backward: div_up(N * D * H * W * C, 64)
@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < N * D * H * W * C {
        let c = i % C;
        let w = i / C % W * 2u;
        let h = i / (C * W) % H * 2u;
        let d = i / (C * W * H) % D * 2u;
        let n = i / (C * W * H * D);
        var sum = 0.0;
        for (var k = 0u; k < 8u; k++) {
            sum += d_y[(((n * OD + d + k / 4u) * OH + h + k / 2u % 2u) * OW + w + k % 2u) * C + c];
        }
        d_x[i] = sum;
    }
}
