// Maximum and average pooling over [N, D, H, W, C]; an invocation makes one channel vector of
// one position. The `_2` entries are for windows of 2×2×2 at stride 2 without padding, where
// every input lies in at most one window: their backward passes go over cells of 2×2×2 inputs.
// uses: grid
// expects: Elem (f32 or vec4<f32>), Stored (Elem, or the same of f16), Index (u32 or vec4<u32>)
struct Params {
    n: u32,           // channel vectors of all samples' outputs; backward: inputs; backward _2: cells
    vectors: u32,     // channel vectors of a position
    in_d: u32, in_h: u32, in_w: u32,
    out_d: u32, out_h: u32, out_w: u32,
    kernel_d: u32, kernel_h: u32, kernel_w: u32,
    stride_d: u32, stride_h: u32, stride_w: u32,
    padding_d: u32, padding_h: u32, padding_w: u32,
    factor: f32,      // 1 / window volume, padding included
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>;                  // [N, D, H, W, C]
@group(0) @binding(2) var<storage, read> norm: array<Elem>;                 // [4, C]
@group(0) @binding(3) var<storage, read> index: array<Index>;               // [N, OD, OH, OW, C] place of the maximum in D·H·W
@group(0) @binding(4) var<storage, read> d_y: array<Stored>;                // [N, OD, OH, OW, C]
@group(0) @binding(5) var<storage, read> other: array<Stored>;              // [N, D, H, W, C] what is added to d_x
@group(0) @binding(6) var<storage, read_write> y: array<Stored>;            // [N, OD, OH, OW, C]
@group(0) @binding(7) var<storage, read_write> index_out: array<Index>;     // [N, OD, OH, OW, C]
@group(0) @binding(8) var<storage, read_write> d_x: array<Stored>;          // [N, D, H, W, C]

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

// Number of a position in its sample, and first element of a channel vector there.
fn in_position(d: u32, h: u32, w: u32) -> u32 { return (d * params.in_h + h) * params.in_w + w; }
fn in_at(sample: u32, position: u32, c: u32) -> u32 {
    return (sample * params.in_d * params.in_h * params.in_w + position) * params.vectors + c;
}
fn out_at(p: Place, d: u32, h: u32, w: u32) -> u32 {
    return (((p.sample * params.out_d + d) * params.out_h + h) * params.out_w + w) * params.vectors + p.c;
}

// Inputs [x, y) of output o's window; never none, as padding is at most half the window.
fn window(o: u32, kernel: u32, stride: u32, padding: u32, size: u32) -> vec2<u32> {
    let start = o * stride;
    return vec2<u32>(max(start, padding) - padding, min(start + kernel - padding, size));
}

// Outputs [x, y) whose windows hold input i.
fn windows(i: u32, kernel: u32, stride: u32, padding: u32, size: u32) -> vec2<u32> {
    let first = (max(i + padding + 1u, kernel) - kernel + stride - 1u) / stride;
    return vec2<u32>(first, min((i + padding) / stride + 1u, size));
}

//@load
//@with_other

struct Best { value: Elem, position: Index }

// A greater value or a first NaN takes over.
fn consider(best: Best, value: Elem, position: u32) -> Best {
    let better = !(value <= best.value) & (best.value == best.value);
    return Best(select(best.value, value, better), select(best.position, Index(position), better));
}

@compute @workgroup_size(LANES)
fn max_forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.out_d, params.out_h, params.out_w);
    let rd = window(p.d, params.kernel_d, params.stride_d, params.padding_d, params.in_d);
    let rh = window(p.h, params.kernel_h, params.stride_h, params.padding_h, params.in_h);
    let rw = window(p.w, params.kernel_w, params.stride_w, params.padding_w, params.in_w);
    let first = in_position(rd.x, rh.x, rw.x);
    let n = norm_of(p.c, params.vectors);
    var best = Best(load(in_at(p.sample, first, p.c), n), Index(first));
    for (var d = rd.x; d < rd.y; d++) {
        for (var h = rh.x; h < rh.y; h++) {
            for (var w = rw.x; w < rw.y; w++) {
                let position = in_position(d, h, w);
                best = consider(best, load(in_at(p.sample, position, p.c), n), position);
            }
        }
    }
    y[i] = Stored(best.value);
    index_out[i] = best.position;
}

@compute @workgroup_size(LANES)
fn max_forward_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.out_d, params.out_h, params.out_w);
    let first = in_position(2u * p.d, 2u * p.h, 2u * p.w);
    let at = in_at(p.sample, first, p.c);
    let row = params.in_w;
    let plane = params.in_h * row;
    let v = params.vectors;
    let n = norm_of(p.c, v);
    var best = Best(load(at, n), Index(first));
    best = consider(best, load(at + v, n), first + 1u);
    best = consider(best, load(at + row * v, n), first + row);
    best = consider(best, load(at + (row + 1u) * v, n), first + row + 1u);
    best = consider(best, load(at + plane * v, n), first + plane);
    best = consider(best, load(at + (plane + 1u) * v, n), first + plane + 1u);
    best = consider(best, load(at + (plane + row) * v, n), first + plane + row);
    best = consider(best, load(at + (plane + row + 1u) * v, n), first + plane + row + 1u);
    y[i] = Stored(best.value);
    index_out[i] = best.position;
}

@compute @workgroup_size(LANES)
fn max_backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.in_d, params.in_h, params.in_w);
    let rd = windows(p.d, params.kernel_d, params.stride_d, params.padding_d, params.out_d);
    let rh = windows(p.h, params.kernel_h, params.stride_h, params.padding_h, params.out_h);
    let rw = windows(p.w, params.kernel_w, params.stride_w, params.padding_w, params.out_w);
    let position = Index(in_position(p.d, p.h, p.w));
    var sum = Elem(0.0);
    for (var d = rd.x; d < rd.y; d++) {
        for (var h = rh.x; h < rh.y; h++) {
            for (var w = rw.x; w < rw.y; w++) {
                let o = out_at(p, d, h, w);
                sum += select(Elem(0.0), Elem(d_y[o]), index[o] == position);
            }
        }
    }
    d_x[i] = Stored(with_other(i, sum));
}

@compute @workgroup_size(LANES)
fn avg_forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.out_d, params.out_h, params.out_w);
    let rd = window(p.d, params.kernel_d, params.stride_d, params.padding_d, params.in_d);
    let rh = window(p.h, params.kernel_h, params.stride_h, params.padding_h, params.in_h);
    let rw = window(p.w, params.kernel_w, params.stride_w, params.padding_w, params.in_w);
    var sum = Elem(0.0);
    for (var d = rd.x; d < rd.y; d++) {
        for (var h = rh.x; h < rh.y; h++) {
            for (var w = rw.x; w < rw.y; w++) { sum += Elem(x[in_at(p.sample, in_position(d, h, w), p.c)]); }
        }
    }
    y[i] = Stored(sum * params.factor);
}

@compute @workgroup_size(LANES)
fn avg_forward_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.out_d, params.out_h, params.out_w);
    let at = in_at(p.sample, in_position(2u * p.d, 2u * p.h, 2u * p.w), p.c);
    let v = params.vectors;
    let row = params.in_w * v;
    let plane = params.in_h * row;
    let near = (Elem(x[at]) + Elem(x[at + v])) + (Elem(x[at + row]) + Elem(x[at + row + v]));
    let behind = at + plane;
    let far = (Elem(x[behind]) + Elem(x[behind + v])) + (Elem(x[behind + row]) + Elem(x[behind + row + v]));
    y[i] = Stored((near + far) * params.factor);
}

@compute @workgroup_size(LANES)
fn avg_backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let p = place(i, params.in_d, params.in_h, params.in_w);
    let rd = windows(p.d, params.kernel_d, params.stride_d, params.padding_d, params.out_d);
    let rh = windows(p.h, params.kernel_h, params.stride_h, params.padding_h, params.out_h);
    let rw = windows(p.w, params.kernel_w, params.stride_w, params.padding_w, params.out_w);
    var sum = Elem(0.0);
    for (var d = rd.x; d < rd.y; d++) {
        for (var h = rh.x; h < rh.y; h++) {
            for (var w = rw.x; w < rw.y; w++) { sum += Elem(d_y[out_at(p, d, h, w)]); }
        }
    }
    d_x[i] = Stored(sum * params.factor);
}

// The i-th cell of 2×2×2 inputs; sizes that are odd end in cells that no window covers.
struct Cell { place: Place, covered: bool }

fn cell(i: u32) -> Cell {
    let p = place(i, (params.in_d + 1u) / 2u, (params.in_h + 1u) / 2u, (params.in_w + 1u) / 2u);
    return Cell(p, p.d < params.out_d && p.h < params.out_h && p.w < params.out_w);
}

// Writes one corner of a cell, if it lies in the volume.
fn put(p: Place, d: u32, h: u32, w: u32, value: Elem, position: Index) {
    let at = vec3<u32>(2u * p.d + d, 2u * p.h + h, 2u * p.w + w);
    if at.x >= params.in_d || at.y >= params.in_h || at.z >= params.in_w { return; }
    let own = in_position(at.x, at.y, at.z);
    let i = in_at(p.sample, own, p.c);
    d_x[i] = Stored(with_other(i, select(Elem(0.0), value, position == Index(own))));
}

@compute @workgroup_size(LANES)
fn max_backward_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let cell = cell(i);
    let p = cell.place;
    var value = Elem(0.0);
    var position = Index(0u);
    if cell.covered {
        let o = out_at(p, p.d, p.h, p.w);
        value = Elem(d_y[o]);
        position = index[o];
    }
    put(p, 0u, 0u, 0u, value, position);
    put(p, 0u, 0u, 1u, value, position);
    put(p, 0u, 1u, 0u, value, position);
    put(p, 0u, 1u, 1u, value, position);
    put(p, 1u, 0u, 0u, value, position);
    put(p, 1u, 0u, 1u, value, position);
    put(p, 1u, 1u, 0u, value, position);
    put(p, 1u, 1u, 1u, value, position);
}

fn put_all(p: Place, d: u32, h: u32, w: u32, value: Elem) {
    let at = vec3<u32>(2u * p.d + d, 2u * p.h + h, 2u * p.w + w);
    if at.x >= params.in_d || at.y >= params.in_h || at.z >= params.in_w { return; }
    d_x[in_at(p.sample, in_position(at.x, at.y, at.z), p.c)] = Stored(value);
}

@compute @workgroup_size(LANES)
fn avg_backward_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    if i >= params.n { return; }
    let cell = cell(i);
    let p = cell.place;
    var value = Elem(0.0);
    if cell.covered { value = Elem(d_y[out_at(p, p.d, p.h, p.w)]) * params.factor; }
    put_all(p, 0u, 0u, 0u, value);
    put_all(p, 0u, 0u, 1u, value);
    put_all(p, 0u, 1u, 0u, value);
    put_all(p, 0u, 1u, 1u, value);
    put_all(p, 1u, 0u, 0u, value);
    put_all(p, 1u, 0u, 1u, value);
    put_all(p, 1u, 1u, 0u, value);
    put_all(p, 1u, 1u, 1u, value);
}
