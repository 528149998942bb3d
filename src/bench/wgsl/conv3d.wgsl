// A convolution to start from: one invocation an element, nothing used twice. All three passes.
//
//   semgen bench wgsl FILE.wgsl --op conv3d --shape 1,32,64,32,32,32 [--pass forward|input-grad|weight-grad|all]
//
// The numbers of the shape are constants, added behind the end of this file so that its lines keep their numbers:
// N, CI, CO, D, H, W (input), OD, OH, OW (output), KD, KH, KW (kernel), SD, SH, SW (stride), PD, PH, PW (padding).
// `// groups ENTRY: FORMULA` says how many workgroups are launched; they are numbered along x, and above the adapter's
// limit they fold over y. An entry point called forward_something runs before forward if its line comes first.
// `// scratch: FORMULA` asks for so many 32-bit elements, bound as the number after the last operand (here 3).

@group(0) @binding(0) var<storage, read> x: array<f32>;               // [N, D, H, W, CI]       forward, weight-grad
@group(0) @binding(1) var<storage, read> weight: array<f32>;          // [KD, KH, KW, CO, CI]   forward, input-grad
@group(0) @binding(2) var<storage, read_write> y: array<f32>;         // [N, OD, OH, OW, CO]    forward
@group(0) @binding(0) var<storage, read> d_y: array<f32>;             // [N, OD, OH, OW, CO]    input-grad
@group(0) @binding(2) var<storage, read_write> d_x: array<f32>;       // [N, D, H, W, CI]       input-grad
@group(0) @binding(1) var<storage, read> d_out: array<f32>;           // [N, OD, OH, OW, CO]    weight-grad
@group(0) @binding(2) var<storage, read_write> d_weight: array<f32>;  // [KD, KH, KW, CO, CI]   weight-grad

const LANES: u32 = 64u;

// The number of this invocation.
fn item(group: vec3<u32>, count: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * count.x) * LANES + lane;
}

// groups forward: div_up(N * OD * OH * OW * CO, 64)
@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i >= N * OD * OH * OW * CO {
        return;
    }
    let o = i % CO;
    let w = i / CO % OW;
    let h = i / (CO * OW) % OH;
    let d = i / (CO * OW * OH) % OD;
    let n = i / (CO * OW * OH * OD);
    var sum = 0.0;
    for (var kd = 0u; kd < KD; kd++) {
        let zd = d * SD + kd;
        if zd < PD || zd - PD >= D {
            continue;
        }
        for (var kh = 0u; kh < KH; kh++) {
            let zh = h * SH + kh;
            if zh < PH || zh - PH >= H {
                continue;
            }
            for (var kw = 0u; kw < KW; kw++) {
                let zw = w * SW + kw;
                if zw < PW || zw - PW >= W {
                    continue;
                }
                let start = (((n * D + zd - PD) * H + zh - PH) * W + zw - PW) * CI;
                let tap = (((kd * KH + kh) * KW + kw) * CO + o) * CI;
                for (var c = 0u; c < CI; c++) {
                    sum += x[start + c] * weight[tap + c];
                }
            }
        }
    }
    y[i] = sum;
}

// groups backward_input: div_up(N * D * H * W * CI, 64)
@compute @workgroup_size(LANES)
fn backward_input(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i >= N * D * H * W * CI {
        return;
    }
    let c = i % CI;
    let w = i / CI % W;
    let h = i / (CI * W) % H;
    let d = i / (CI * W * H) % D;
    let n = i / (CI * W * H * D);
    var sum = 0.0;
    for (var kd = 0u; kd < KD; kd++) {
        // The output voxel that sees this voxel through tap kd, if there is one.
        let zd = d + PD - min(kd, d + PD);
        if kd > d + PD || zd % SD != 0u || zd / SD >= OD {
            continue;
        }
        for (var kh = 0u; kh < KH; kh++) {
            let zh = h + PH - min(kh, h + PH);
            if kh > h + PH || zh % SH != 0u || zh / SH >= OH {
                continue;
            }
            for (var kw = 0u; kw < KW; kw++) {
                let zw = w + PW - min(kw, w + PW);
                if kw > w + PW || zw % SW != 0u || zw / SW >= OW {
                    continue;
                }
                let start = (((n * OD + zd / SD) * OH + zh / SH) * OW + zw / SW) * CO;
                let tap = ((kd * KH + kh) * KW + kw) * CO * CI + c;
                for (var o = 0u; o < CO; o++) {
                    sum += d_y[start + o] * weight[tap + o * CI];
                }
            }
        }
    }
    d_x[i] = sum;
}

// groups backward_weight: div_up(KD * KH * KW * CO * CI, 64)
@compute @workgroup_size(LANES)
fn backward_weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = item(group, count, lane);
    if i >= KD * KH * KW * CO * CI {
        return;
    }
    let c = i % CI;
    let o = i / CI % CO;
    let kw = i / (CI * CO) % KW;
    let kh = i / (CI * CO * KW) % KH;
    let kd = i / (CI * CO * KW * KH);
    var sum = 0.0;
    for (var n = 0u; n < N; n++) {
        for (var d = 0u; d < OD; d++) {
            let zd = d * SD + kd;
            if zd < PD || zd - PD >= D {
                continue;
            }
            for (var h = 0u; h < OH; h++) {
                let zh = h * SH + kh;
                if zh < PH || zh - PH >= H {
                    continue;
                }
                for (var w = 0u; w < OW; w++) {
                    let zw = w * SW + kw;
                    if zw < PW || zw - PW >= W {
                        continue;
                    }
                    let start = (((n * D + zd - PD) * H + zh - PH) * W + zw - PW) * CI;
                    let end = (((n * OD + d) * OH + h) * OW + w) * CO;
                    sum += x[start + c] * d_out[end + o];
                }
            }
        }
    }
    d_weight[i] = sum;
}
