// max(0, x) and its gradient, to start from: one invocation an element.
//
//   semgen bench wgsl FILE.wgsl --op relu --shape 1,32,64,64,32
//
// The numbers of the shape are constants, added behind the end of this file: N, C, D, H, W.

@group(0) @binding(0) var<storage, read> x: array<f32>;              // [N, D, H, W, C]  forward
@group(0) @binding(1) var<storage, read_write> y: array<f32>;        // [N, D, H, W, C]  forward
@group(0) @binding(0) var<storage, read> out: array<f32>;            // [N, D, H, W, C]  grad: what forward gave
@group(0) @binding(1) var<storage, read> d_y: array<f32>;            // [N, D, H, W, C]  grad
@group(0) @binding(2) var<storage, read_write> d_x: array<f32>;      // [N, D, H, W, C]  grad

const LANES: u32 = 64u;

// The number of this invocation.
fn item(group: vec3<u32>, count: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * count.x) * LANES + lane;
}

// groups forward: div_up(N * D * H * W * C, 64)
@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < N * D * H * W * C {
        y[i] = max(x[i], 0.0);
    }
}

// groups backward: div_up(N * D * H * W * C, 64)
@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < N * D * H * W * C {
        d_x[i] = select(0.0, d_y[i], out[i] > 0.0);
    }
}
