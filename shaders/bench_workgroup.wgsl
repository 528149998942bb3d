// Reads of workgroup memory, every lane a vector of its own.
// uses: grid
struct Params { rounds: u32, n: u32 }                                   // turns of the loop; invocations
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;      // [n]

const LANES: u32 = 128u;
const SIZE: u32 = 512u;
var<workgroup> tile: array<vec4<f32>, SIZE>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < SIZE; i += LANES) { tile[i] = vec4<f32>(1.0); }
    workgroupBarrier();
    var a = vec4<f32>();
    var b = vec4<f32>();
    for (var r = 0u; r < params.rounds; r++) {
        let i = lane + 8u * r;
        a += tile[i % SIZE];
        b += tile[(i + 128u) % SIZE];
        a += tile[(i + 256u) % SIZE];
        b += tile[(i + 384u) % SIZE];
    }
    let i = flat_group(wg, count) * LANES + lane;
    if i < params.n { output[i] = a.x + b.y; }
}
