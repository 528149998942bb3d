// Euclidean norm of a flat range, and the factor that clips a gradient to a largest norm.
// Squares are summed at three scales at once; one of the sums has neither overflowed nor lost what counts to underflow.
// uses: grid, group_sum, turns
// expects: Elem (f32 or vec4<f32>), TURNS (values of an invocation), SUCCESSIVE
struct Params {
    n: u32,                                                             // partial: elements of type Elem; finish: partial sums
    first: u32,                                                         // partial: place of the first partial sum
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem>;            // [n]
@group(0) @binding(2) var<storage, read_write> part: array<vec4<f32>>;  // [groups]: scaled up, as is, scaled down
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;        // [n]
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;        // [1]

// 2^75 and 2^-90.
const UP = 3.7778932e22;
const DOWN = 8.0779357e-28;

//@sum_of

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    var up = Elem();
    var plain = Elem();
    var down = Elem();
    for (var j = 0u; j < TURNS; j++) {
        let i = group * TURNS * 64u + turn_place(t, j);
        if i < params.n {
            let x = input[i];
            let u = x * UP;
            let d = x * DOWN;
            up += u * u;
            plain += x * x;
            down += d * d;
        }
    }
    let sum = group_sum(vec4<f32>(sum_of(up), sum_of(plain), sum_of(down), 0.0), t);
    if t == 0u && group * (64u * TURNS) < params.n { part[params.first + group] = sum; }
}

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
    var own = vec4<f32>();
    for (var i = t; i < params.n; i += 64u) { own += sums[i]; }
    let sum = group_sum(own, t);
    if t == 0u {
        // Below 1e-20 squares may have been lost that count, above 1e37 some may have overflowed; NaN is neither.
        var value = sqrt(sum.y);
        if sum.y < 1e-20 { value = sqrt(sum.x) / UP; }
        if sum.y > 1e37 { value = sqrt(sum.z) / DOWN; }
        norm[0] = value;
    }
}
