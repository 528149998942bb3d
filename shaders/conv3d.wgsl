// 3D convolution, the plain variant: any kernel, stride, padding and channel count; one output element an
// invocation. One source of a concatenation at a time: its channels are [c0, c0 + ci) of the weight's ci_total.
// uses: grid
// expects: Input, Gradient, Output (f32 or f16, as stored); load(i, c): element i of the input, of channel c, normalised where asked for
struct Params {
    batch: u32, d: u32, h: u32, w: u32, od: u32, oh: u32, ow: u32,
    ci: u32, co: u32, c0: u32, ci_total: u32,
    kd: u32, kh: u32, kw: u32, sd: u32, sh: u32, sw: u32, pd: u32, ph: u32, pw: u32,
    bias: u32, accumulate: u32, splits: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<Input>;       // [N, D, H, W, ci]
@group(0) @binding(2) var<storage, read> weight: array<f32>;        // [kd, kh, kw, co, ci_total]
@group(0) @binding(3) var<storage, read> bias: array<f32>;          // [co]
@group(0) @binding(4) var<storage, read> d_output: array<Gradient>; // [N, OD, OH, OW, co]
@group(0) @binding(5) var<storage, read> norm: array<f32>;          // [3, ci] mean, factor, shift
@group(0) @binding(6) var<storage, read_write> output: array<Output>;   // forward: [N, OD, OH, OW, co]; backward_input: [N, D, H, W, ci];
                                                                        // backward_weight: [splits, kd, kh, kw, co, ci]

//@load

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    if id < p.batch * p.od * p.oh * p.ow * p.co {
        let o = id % p.co;
        let ow = (id / p.co) % p.ow;
        let oh = (id / (p.co * p.ow)) % p.oh;
        let od = (id / (p.co * p.ow * p.oh)) % p.od;
        let n = id / (p.co * p.ow * p.oh * p.od);
        var sum = 0.0;
        for (var kd = 0u; kd < p.kd; kd++) {
            let d = od * p.sd + kd - p.pd;
            if d >= p.d { continue; }   // below zero wraps to a large number
            for (var kh = 0u; kh < p.kh; kh++) {
                let h = oh * p.sh + kh - p.ph;
                if h >= p.h { continue; }
                for (var kw = 0u; kw < p.kw; kw++) {
                    let w = ow * p.sw + kw - p.pw;
                    if w >= p.w { continue; }
                    let x = (((n * p.d + d) * p.h + h) * p.w + w) * p.ci;
                    let k = (((kd * p.kh + kh) * p.kw + kw) * p.co + o) * p.ci_total + p.c0;
                    for (var c = 0u; c < p.ci; c++) { sum += load(x + c, c) * weight[k + c]; }
                }
            }
        }
        if p.bias != 0u { sum += bias[o]; }
        if p.accumulate != 0u { sum += f32(output[id]); }
        output[id] = Output(sum);
    }
}

@compute @workgroup_size(64)
fn backward_input(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    if id < p.batch * p.d * p.h * p.w * p.ci {
        let c = id % p.ci;
        let w = (id / p.ci) % p.w;
        let h = (id / (p.ci * p.w)) % p.h;
        let d = (id / (p.ci * p.w * p.h)) % p.d;
        let n = id / (p.ci * p.w * p.h * p.d);
        var sum = 0.0;
        for (var kd = 0u; kd < p.kd; kd++) {
            let fd = d + p.pd - kd;
            if fd >= p.od * p.sd || fd % p.sd != 0u { continue; }
            for (var kh = 0u; kh < p.kh; kh++) {
                let fh = h + p.ph - kh;
                if fh >= p.oh * p.sh || fh % p.sh != 0u { continue; }
                for (var kw = 0u; kw < p.kw; kw++) {
                    let fw = w + p.pw - kw;
                    if fw >= p.ow * p.sw || fw % p.sw != 0u { continue; }
                    let y = (((n * p.od + fd / p.sd) * p.oh + fh / p.sh) * p.ow + fw / p.sw) * p.co;
                    let k = ((kd * p.kh + kh) * p.kw + kw) * p.co * p.ci_total + p.c0 + c;
                    for (var o = 0u; o < p.co; o++) { sum += f32(d_output[y + o]) * weight[k + o * p.ci_total]; }
                }
            }
        }
        if p.bias != 0u { sum += bias[c]; }
        output[id] = Output(sum);
    }
}

@compute @workgroup_size(64)
fn backward_weight(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let id = flat_group(wg, count) * 64u + t;
    let elements = p.kd * p.kh * p.kw * p.co * p.ci;
    if id < elements * p.splits {
        let split = id / elements;
        let c = id % p.ci;
        let o = (id / p.ci) % p.co;
        let tap = (id / (p.ci * p.co)) % (p.kd * p.kh * p.kw);
        let kw = tap % p.kw;
        let kh = (tap / p.kw) % p.kh;
        let kd = tap / (p.kw * p.kh);
        var sum = 0.0;
        for (var row = split; row < p.batch * p.od * p.oh; row += p.splits) {
            let d = (row / p.oh) % p.od * p.sd + kd - p.pd;
            let h = row % p.oh * p.sh + kh - p.ph;
            if d >= p.d || h >= p.h { continue; }
            let x = (((row / (p.od * p.oh)) * p.d + d) * p.h + h) * p.w;
            for (var ow = 0u; ow < p.ow; ow++) {
                let w = ow * p.sw + kw - p.pw;
                if w >= p.w { continue; }
                sum += load((x + w) * p.ci + c, c) * f32(d_output[(row * p.ow + ow) * p.co + o]);
            }
        }
        output[id] = Output(sum);
    }
}
