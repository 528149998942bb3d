// Cross-entropy of logits with labels, its derivative, and whether the label has the largest logit.
// LANES invocations share a row: 1 for many rows of few classes, 64 (a workgroup) for few rows.
// A label outside the classes gives NaN (and no hit).
// uses: grid
// expects: Elem (f32 or vec4<f32>), LANES (1 or 64)
struct Params {
    rows: u32,
    classes: u32,
    width: u32,                                                         // elements of type Elem in a row
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Elem>;           // [rows, width]
@group(0) @binding(2) var<storage, read> labels: array<u32>;            // [rows]
@group(0) @binding(3) var<storage, read_write> output: array<f32>;      // [rows]
@group(0) @binding(3) var<storage, read> d_output: array<f32>;          // [rows]
@group(0) @binding(4) var<storage, read_write> d_logits: array<Elem>;   // [rows, width]

//@sum_of
//@components

var<workgroup> tile_max: array<f32, 64>;
var<workgroup> tile_rest: array<vec2<f32>, 64>;

fn row_max(v: f32, t: u32) -> f32 {
    if LANES == 1u { return v; }
    tile_max[t] = v;
    workgroupBarrier();
    for (var s = 32u; s > 0u; s /= 2u) {
        if t < s { tile_max[t] = max(tile_max[t], tile_max[t + s]); }
        workgroupBarrier();
    }
    return tile_max[0];
}

fn row_sum(v: vec2<f32>, t: u32) -> vec2<f32> {
    if LANES == 1u { return v; }
    tile_rest[t] = v;
    workgroupBarrier();
    for (var s = 32u; s > 0u; s /= 2u) {
        if t < s { tile_rest[t] += tile_rest[t + s]; }
        workgroupBarrier();
    }
    return tile_rest[0];
}

// Largest logit of the row at `base`, and the sum of the exponentials of the others, relative to
// the largest: the sum over all is 1 more, and stays accurate when that 1 dominates.
fn normaliser(base: u32, lane: u32, t: u32) -> vec2<f32> {
    var own = logits[base];
    for (var c = lane; c < params.width; c += LANES) { own = max(own, logits[base + c]); }
    let top = row_max(max_of(own), t);
    var rest = Elem();
    var ties = Elem();
    for (var c = lane; c < params.width; c += LANES) {
        let z = logits[base + c];
        let hit = z == Elem(top);
        rest += select(exp(z - Elem(top)), Elem(), hit);
        ties += select(Elem(), Elem(1.0), hit);
    }
    let sums = row_sum(vec2<f32>(sum_of(rest), sum_of(ties)), t);
    return vec2<f32>(top, sums.x + (sums.y - 1.0));
}

// ln(1 + e) for e >= 0: in [0, 1] as 2 artanh(e / (2 + e)), to full relative accuracy.
fn log_1p(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let q = s * s;
    let r = 1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q / 13.0))));
    return select(2.0 * (s + s * q * r), log(1.0 + e), e > 1.0);
}

fn not_a_number(bits: u32) -> f32 {
    return bitcast<f32>(bits | 0x7FC00000u);
}

struct Place { row: u32, live: bool, lane: u32 }
fn place(group: u32, t: u32) -> Place {
    let row = (group * 64u + t) / LANES;
    return Place(min(row, params.rows - 1u), row < params.rows, t % LANES);
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let p = place(flat_group(wg, count), t);
    let base = p.row * params.width;
    let n = normaliser(base, p.lane, t);
    let label = labels[p.row];
    let z = component(base, min(label, params.classes - 1u));
    if p.live && p.lane == 0u { output[p.row] = select(not_a_number(label), (n.x - z) + log_1p(n.y), label < params.classes); }
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let p = place(flat_group(wg, count), t);
    let base = p.row * params.width;
    let n = normaliser(base, p.lane, t);
    let label = labels[p.row];
    let factor = select(not_a_number(label), d_output[p.row], label < params.classes);
    let inverse = 1.0 / (1.0 + n.y);
    for (var c = p.lane; c < params.width; c += LANES) {
        let chance = exp(logits[base + c] - Elem(n.x)) * inverse;
        if p.live { d_logits[base + c] = factor * (chance - one_hot(c, label)); }
    }
}

// The label's logit must exceed those before it and reach those after it: the first maximum wins, NaN never.
@compute @workgroup_size(64)
fn correct(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let p = place(flat_group(wg, count), t);
    let base = p.row * params.width;
    let label = labels[p.row];
    let z = component(base, min(label, params.classes - 1u));
    var beaten = 0.0;
    for (var c = p.lane; c < params.width; c += LANES) { beaten += beaten_by(logits[base + c], c, z, label); }
    let sum = row_sum(vec2<f32>(beaten, 0.0), t);
    if p.live && p.lane == 0u { output[p.row] = select(0.0, 1.0, sum.x == f32(params.classes) && label < params.classes); }
}
