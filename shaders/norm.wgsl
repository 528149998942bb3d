// Euclidean norm of a flat range, and the factor that clips a gradient to a largest norm.
// Squares are summed in three classes of magnitude, as in Blue's algorithm (ACM TOMS 4, 1978),
// so that neither overflow nor underflow of a square spoils the norm.
// uses: grid, group_sum
// expects: Elem (f32 or vec4<f32>), TURNS (values of an invocation)
struct Params {
    n: u32,                                                             // partial: elements of type Elem; finish: partial sums
    first: u32,                                                         // partial: place of the first partial sum
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem>;            // [n]
@group(0) @binding(2) var<storage, read_write> part: array<vec4<f32>>;  // [groups]: small, middling, large
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;        // [n]
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;        // [1]

// Powers of two: classes divide at 2^-50 and 2^45; the outer ones are scaled by 2^75 and 2^-90.
const SMALL = 8.8817842e-16;
const LARGE = 3.5184372e13;
const UP = 3.7778932e22;
const DOWN = 8.0779357e-28;

//@sum_of

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = flat_group(wg, count);
    var small = Elem();
    var middling = Elem();
    var large = Elem();
    for (var j = 0u; j < TURNS; j++) {
        let i = (group * TURNS + j) * 64u + t;
        if i < params.n {
            let x = abs(input[i]);
            // NaN compares false with both bounds and ends up among the middling.
            let s = select(Elem(), x * UP, x < Elem(SMALL));
            let l = select(Elem(), x * DOWN, x > Elem(LARGE));
            let m = select(select(x, Elem(), x < Elem(SMALL)), Elem(), x > Elem(LARGE));
            small += s * s;
            middling += m * m;
            large += l * l;
        }
    }
    let sum = group_sum(vec4<f32>(sum_of(small), sum_of(middling), sum_of(large), 0.0), t);
    if t == 0u && group * (64u * TURNS) < params.n { part[params.first + group] = sum; }
}

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
    var own = vec4<f32>();
    for (var i = t; i < params.n; i += 64u) { own += sums[i]; }
    let sum = group_sum(own, t);
    if t == 0u {
        var value = sqrt(sum.y + sum.x / UP / UP);
        if sum.y == 0.0 { value = sqrt(sum.x) / UP; }
        if sum.z > 0.0 { value = sqrt(sum.z + sum.y * DOWN * DOWN) / DOWN; }
        norm[0] = value;
    }
}
