// Batch normalisation by running statistics, to start from: a stage that prepares the channels, then one invocation an element.
//
//   semgen bench wgsl FILE.wgsl --op batch_norm_running --shape 1,32,64,64,32
//
// The numbers of the shape are constants, added behind the end of this file: N, C, D, H, W.

@group(0) @binding(0) var<storage, read> x: array<f32>;              // [N, D, H, W, C]
@group(0) @binding(1) var<storage, read> gamma: array<f32>;          // [C]
@group(0) @binding(2) var<storage, read> beta: array<f32>;           // [C]
@group(0) @binding(3) var<storage, read> mean: array<f32>;           // [C]
@group(0) @binding(4) var<storage, read> variance: array<f32>;       // [C]
@group(0) @binding(5) var<storage, read_write> norm: array<f32>;     // [4, C]: mean, factor, shift, 1/σ
@group(0) @binding(6) var<storage, read_write> y: array<f32>;        // [N, D, H, W, C]

const LANES: u32 = 64u;

// The number of this invocation.
fn item(group: vec3<u32>, count: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * count.x) * LANES + lane;
}

// groups forward_channels: div_up(C, 64)
@compute @workgroup_size(LANES)
fn forward_channels(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < C {
        let scale = 1.0 / sqrt(variance[i] + 1e-5);
        norm[i] = mean[i];
        norm[C + i] = scale * gamma[i];
        norm[2u * C + i] = beta[i];
        norm[3u * C + i] = scale;
    }
}

// groups forward: div_up(N * D * H * W * C, 64)
@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i < N * D * H * W * C {
        let c = i % C;
        y[i] = (x[i] - norm[c]) * norm[C + c] + norm[2u * C + c];
    }
}
