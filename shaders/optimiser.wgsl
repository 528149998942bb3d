// One optimiser step over a flat range of parameters, in place; four elements an invocation. Nothing changes when the
// gradient's factor is 0.
// uses: grid
// expects: Elem (f32 or vec4<f32>), DECOUPLED (adam: decay the parameters themselves)
struct Params { n: u32 }                                                // elements of type Elem
struct Step {
    learning_rate: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
    bias1: f32,                                                         // 1 - beta1^t
    bias2: f32,                                                         // 1 - beta2^t
    momentum: f32,
    unscale: f32,                                                       // 1 / loss scale; clip.wgsl has put it into `scale`
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> d_param: array<Elem>;          // [n]
@group(0) @binding(2) var<storage, read> step: Step;
@group(0) @binding(3) var<storage, read> scale: array<f32>;             // [1], multiplies the gradient
@group(0) @binding(4) var<storage, read_write> param: array<Elem>;      // [n]
@group(0) @binding(5) var<storage, read_write> first: array<Elem>;      // [n]: adam m, sgd momentum buffer
@group(0) @binding(6) var<storage, read_write> second: array<Elem>;     // [n]: adam v

@compute @workgroup_size(64)
fn adam(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let s = step;
    let factor = scale[0];
    let base = flat_group(wg, count) * 256u + t;
    for (var j = 0u; j < 4u; j++) {
        let i = base + j * 64u;
        if i < params.n && factor != 0.0 {
            let g = d_param[i] * factor;
            let m = first[i] * s.beta1 + g * (1.0 - s.beta1);
            let v = second[i] * s.beta2 + g * g * (1.0 - s.beta2);
            first[i] = m;
            second[i] = v;
            var p = param[i];
            if DECOUPLED { p -= p * (s.learning_rate * s.weight_decay); }
            param[i] = p - s.learning_rate * (m / s.bias1) / (sqrt(v / s.bias2) + s.epsilon);
        }
    }
}

@compute @workgroup_size(64)
fn sgd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let s = step;
    let factor = scale[0];
    let base = flat_group(wg, count) * 256u + t;
    for (var j = 0u; j < 4u; j++) {
        let i = base + j * 64u;
        if i < params.n && factor != 0.0 {
            let p = param[i];
            let b = first[i] * s.momentum + (d_param[i] * factor + p * s.weight_decay);
            first[i] = b;
            param[i] = p - b * s.learning_rate;
        }
    }
}
