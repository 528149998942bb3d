// Chains of multiply-adds in registers: what an adapter's arithmetic does at best.
// uses: grid
// expects: Real (f32, vec2<f16>, vec4<f32>), Scalar (its component), blocks total, begin, body, end
struct Params { rounds: u32, n: u32, half: f32 }                        // turns of the loop; invocations; 0.5, unknown to the compiler
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;      // [n]

const LANES: u32 = 64u;

//@total

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = flat_group(wg, count) * LANES + lane;
    // Every chain is x = x / 2 + 1, which ends at 2 wherever it starts.
    let m = Real(Scalar(params.half));
    let c = m + m;
    let start = Scalar(f32(lane) * params.half);
    //@begin
    for (var r = 0u; r < params.rounds; r++) {
        //@body
    }
    //@end
    if i < params.n { output[i] = total(sum); }
}
