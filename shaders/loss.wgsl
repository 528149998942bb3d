// Elementwise losses: mean over each sample, and derivative. Each workgroup stays within a sample.
// uses: grid, group_sum, turns
// expects: Elem (f32 or vec4<f32>), TURNS (values of an invocation), SUCCESSIVE, KIND (0 squared error, 1 absolute error, 2 cross-entropy of a logit and a probability, 3 logistic loss of a logit and a signed weight)
struct Params {
    batch: u32,                                                         // samples of this dispatch
    sample: u32,                                                        // elements of type Elem in a sample
    parts: u32,                                                         // workgroups (and partial sums) of a sample
    first: u32,                                                         // first sample of the views of pred, goal and d_pred
    inverse: f32,                                                       // 1 / numbers in a sample
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> pred: array<Elem>;             // [batch, sample]
@group(0) @binding(2) var<storage, read> goal: array<Elem>;             // [batch, sample]
@group(0) @binding(3) var<storage, read_write> part: array<f32>;        // [batch, parts]
@group(0) @binding(3) var<storage, read> d_output: array<f32>;          // [batch]
@group(0) @binding(4) var<storage, read_write> d_pred: array<Elem>;     // [batch, sample]
@group(0) @binding(1) var<storage, read> sums: array<f32>;              // [batch, parts]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;      // [batch]

//@sum_of

// ln(1 + e) for e in [0, 1] as 2 artanh(e / (2 + e)), to full relative accuracy.
fn log_1p(e: Elem) -> Elem {
    let s = e / (Elem(2.0) + e);
    let q = s * s;
    var r = q * (1.0 / 13.0) + Elem(1.0 / 11.0);
    r = r * q + Elem(1.0 / 9.0);
    r = r * q + Elem(1.0 / 7.0);
    r = r * q + Elem(1.0 / 5.0);
    r = r * q + Elem(1.0 / 3.0);
    return 2.0 * (s + s * q * r);
}

fn value(x: Elem, y: Elem) -> Elem {
    if KIND == 0u { return (x - y) * (x - y); }
    if KIND == 1u { return abs(x - y); }
    if KIND == 3u {
        let z = -sign(y) * x;
        return abs(y) * (max(z, Elem()) + log_1p(exp(-abs(z))));
    }
    return max(x, Elem()) - x * y + log_1p(exp(-abs(x)));
}

fn slope(x: Elem, y: Elem) -> Elem {
    if KIND == 0u { return 2.0 * (x - y); }
    if KIND == 1u { return sign(x - y); }
    if KIND == 3u {
        let z = -sign(y) * x;
        let f = exp(-abs(z));
        return -y * select(f, Elem(1.0), z >= Elem()) / (Elem(1.0) + f);
    }
    let e = exp(-abs(x));
    return select(e, Elem(1.0), x >= Elem()) / (Elem(1.0) + e) - y;
}

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let sample = min(group / params.parts, params.batch - 1u);
    let first = group % params.parts * (64u * TURNS);
    var own = Elem();
    for (var j = 0u; j < TURNS; j++) {
        let i = first + turn_place(t, j);
        if i < params.sample { own += value(pred[sample * params.sample + i], goal[sample * params.sample + i]); }
    }
    let sum = group_sum(vec4<f32>(sum_of(own), 0.0, 0.0, 0.0), t);
    if t == 0u && group < params.batch * params.parts { part[params.first * params.parts + group] = sum.x; }
}

@compute @workgroup_size(64)
fn finish(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let sample = min(group, params.batch - 1u);
    var own = 0.0;
    for (var i = t; i < params.parts; i += 64u) { own += sums[sample * params.parts + i]; }
    let sum = group_sum(vec4<f32>(own, 0.0, 0.0, 0.0), t);
    if t == 0u && group < params.batch { output[group] = sum.x * params.inverse; }
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    let sample = min(group / params.parts, params.batch - 1u);
    let live = group < params.batch * params.parts;
    let factor = d_output[params.first + sample] * params.inverse;
    let first = group % params.parts * (64u * TURNS);
    for (var j = 0u; j < TURNS; j++) {
        let i = first + turn_place(t, j);
        if live && i < params.sample {
            let k = sample * params.sample + i;
            d_pred[k] = factor * slope(pred[k], goal[k]);
        }
    }
}
