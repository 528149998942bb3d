// Nearest and trilinear resampling of [N, D, H, W, C], up or down; an invocation makes one
// channel vector of one position, or in the `_2` entries eight. Source places are ratios of integers, so both directions see
// exactly the same ones. The backward passes gather: every input adds up the outputs that read it.
// Trilinear: output o reads input place max(0, ((2·o + 1) · in - out) / (2·out)), the half-pixel
// centres of PyTorch's align_corners = False; at the far border the last input is read twice.
// uses: grid
// expects: Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16)
struct Params {
    n: u32,          // channel vectors of all samples' outputs; backward: inputs
    vectors: u32,    // channel vectors of a position
    in_d: u32, in_h: u32, in_w: u32,
    out_d: u32, out_h: u32, out_w: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>;            // [N, D, H, W, C]
@group(0) @binding(2) var<storage, read> d_y: array<Stored>;          // [N, OD, OH, OW, C]
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;      // [N, OD, OH, OW, C]
@group(0) @binding(4) var<storage, read_write> d_x: array<Stored>;    // [N, D, H, W, C]

const LANES: u32 = 64u;

struct Place { sample: u32, d: u32, h: u32, w: u32, c: u32 }

// The i-th channel vector of [N, size_d, size_h, size_w, vectors].
fn place(i: u32, size_d: u32, size_h: u32, size_w: u32) -> Place {
    let iw = i / params.vectors;
    let ih = iw / size_w;
    let id = ih / size_h;
    let sample = id / size_d;
    return Place(sample, id - sample * size_d, ih - id * size_h, iw - ih * size_w, i - iw * params.vectors);
}

fn in_at(p: Place, d: u32, h: u32, w: u32) -> u32 {
    return (((p.sample * params.in_d + d) * params.in_h + h) * params.in_w + w) * params.vectors + p.c;
}
fn out_at(p: Place, d: u32, h: u32, w: u32) -> u32 {
    return (((p.sample * params.out_d + d) * params.out_h + h) * params.out_w + w) * params.vectors + p.c;
}

@compute @workgroup_size(LANES)
fn nearest_forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.out_d, params.out_h, params.out_w);
    y[i] = x[in_at(p, p.d * params.in_d / params.out_d, p.h * params.in_h / params.out_h, p.w * params.in_w / params.out_w)];
}

// Twice as large on each axis: an invocation takes one input, which eight outputs repeat.
@compute @workgroup_size(LANES)
fn nearest_forward_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.in_d, params.in_h, params.in_w);
    let value = x[i];
    let v = params.vectors;
    let row = params.out_w * v;
    let plane = params.out_h * row;
    let at = out_at(p, 2u * p.d, 2u * p.h, 2u * p.w);
    y[at] = value;
    y[at + v] = value;
    y[at + row] = value;
    y[at + row + v] = value;
    y[at + plane] = value;
    y[at + plane + v] = value;
    y[at + plane + row] = value;
    y[at + plane + row + v] = value;
}

@compute @workgroup_size(LANES)
fn nearest_backward_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.in_d, params.in_h, params.in_w);
    let v = params.vectors;
    let row = params.out_w * v;
    let plane = params.out_h * row;
    let at = out_at(p, 2u * p.d, 2u * p.h, 2u * p.w);
    let near = (Elem(d_y[at]) + Elem(d_y[at + v])) + (Elem(d_y[at + row]) + Elem(d_y[at + row + v]));
    let far = (Elem(d_y[at + plane]) + Elem(d_y[at + plane + v])) + (Elem(d_y[at + plane + row]) + Elem(d_y[at + plane + row + v]));
    d_x[i] = Stored(near + far);
}

// Outputs [x, y) with ⌊o · size_in / size_out⌋ = i.
fn nearest_readers(i: u32, size_in: u32, size_out: u32) -> vec2<u32> {
    return vec2<u32>((i * size_out + size_in - 1u) / size_in, ((i + 1u) * size_out + size_in - 1u) / size_in);
}

@compute @workgroup_size(LANES)
fn nearest_backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.in_d, params.in_h, params.in_w);
    let rd = nearest_readers(p.d, params.in_d, params.out_d);
    let rh = nearest_readers(p.h, params.in_h, params.out_h);
    let rw = nearest_readers(p.w, params.in_w, params.out_w);
    var sum = Elem(0.0);
    for (var d = rd.x; d < rd.y; d++) {
        for (var h = rh.x; h < rh.y; h++) {
            for (var w = rw.x; w < rw.y; w++) { sum += Elem(d_y[out_at(p, d, h, w)]); }
        }
    }
    d_x[i] = Stored(sum);
}

// The two inputs that an output reads and the second one's weight.
struct Tap { near: u32, far: u32, weight: f32 }

// Place of output o in input units, times 2 · size_out.
fn numerator(o: u32, size_in: u32, size_out: u32) -> u32 {
    let shifted = (2u * o + 1u) * size_in;
    return max(shifted, size_out) - size_out;
}

fn tap(o: u32, size_in: u32, size_out: u32) -> Tap {
    let place = numerator(o, size_in, size_out);
    let near = place / (2u * size_out);
    return Tap(near, min(near + 1u, size_in - 1u), f32(place - near * 2u * size_out) / f32(2u * size_out));
}

@compute @workgroup_size(LANES)
fn trilinear_forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.out_d, params.out_h, params.out_w);
    let d = tap(p.d, params.in_d, params.out_d);
    let h = tap(p.h, params.in_h, params.out_h);
    let w = tap(p.w, params.in_w, params.out_w);
    let w0 = 1.0 - w.weight;
    let w1 = w.weight;
    let near_near = Elem(x[in_at(p, d.near, h.near, w.near)]) * w0 + Elem(x[in_at(p, d.near, h.near, w.far)]) * w1;
    let near_far = Elem(x[in_at(p, d.near, h.far, w.near)]) * w0 + Elem(x[in_at(p, d.near, h.far, w.far)]) * w1;
    let far_near = Elem(x[in_at(p, d.far, h.near, w.near)]) * w0 + Elem(x[in_at(p, d.far, h.near, w.far)]) * w1;
    let far_far = Elem(x[in_at(p, d.far, h.far, w.near)]) * w0 + Elem(x[in_at(p, d.far, h.far, w.far)]) * w1;
    let near = near_near * (1.0 - h.weight) + near_far * h.weight;
    let far = far_near * (1.0 - h.weight) + far_far * h.weight;
    y[i] = Stored(near * (1.0 - d.weight) + far * d.weight);
}

// Outputs [x, y) that may read input i: those whose place lies in (i - 1, i + 1), or before the first input.
fn trilinear_readers(i: u32, size_in: u32, size_out: u32) -> vec2<u32> {
    let below = (2u * max(i, 1u) - 1u) * size_out;      // 2 · in · first ≥ below - in
    let above = (2u * i + 3u) * size_out;               // 2 · in · last < above - in
    let first = select((max(below, size_in) - size_in + 2u * size_in - 1u) / (2u * size_in), 0u, i == 0u);
    return vec2<u32>(first, min((max(above, size_in) - size_in + 2u * size_in - 1u) / (2u * size_in), size_out));
}

// Weight of input i in output o: a hat about i, flat beyond the borders.
fn hat(i: u32, o: u32, size_in: u32, size_out: u32) -> f32 {
    let unit = 2u * size_out;
    let place = min(numerator(o, size_in, size_out), (size_in - 1u) * unit);
    let centre = i * unit;
    let distance = max(place, centre) - min(place, centre);
    return f32(unit - min(distance, unit)) / f32(unit);
}

@compute @workgroup_size(LANES)
fn trilinear_backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.in_d, params.in_h, params.in_w);
    let rd = trilinear_readers(p.d, params.in_d, params.out_d);
    let rh = trilinear_readers(p.h, params.in_h, params.out_h);
    let rw = trilinear_readers(p.w, params.in_w, params.out_w);
    var sum = Elem(0.0);
    for (var d = rd.x; d < rd.y; d++) {
        let weight_d = hat(p.d, d, params.in_d, params.out_d);
        for (var h = rh.x; h < rh.y; h++) {
            let weight_h = weight_d * hat(p.h, h, params.in_h, params.out_h);
            for (var w = rw.x; w < rw.y; w++) {
                sum += Elem(d_y[out_at(p, d, h, w)]) * (weight_h * hat(p.w, w, params.in_w, params.out_w));
            }
        }
    }
    d_x[i] = Stored(sum);
}
