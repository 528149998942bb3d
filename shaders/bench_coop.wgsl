// Chains of products of cooperative matrices: what an adapter's matrix units do at best when nothing has to be loaded.
// uses: grid
// expects: SIDE, Left, Right, Sums (matrix types), blocks begin, body, end
struct Params { rounds: u32, groups: u32 }                              // turns of the loop; workgroups
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> factors: array<f16>;           // [2, SIDE, SIDE]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;      // [groups, SIDE, SIDE], then the subgroups of a workgroup

const LANES: u32 = 128u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32,
        @builtin(num_subgroups) subgroups: u32) {
    let left = coopLoadT<Left>(&factors[0], SIDE);
    let right = coopLoadT<Right>(&factors[SIDE * SIDE], SIDE);
    //@begin
    for (var r = 0u; r < params.rounds; r++) {
        //@body
    }
    //@end
    // The subgroups of a workgroup all store the same sums. Surplus groups of a folded grid repeat the last one's.
    let at = min(wg.x + wg.y * count.x, params.groups - 1u) * SIDE * SIDE;
    coopStoreT(sum, &output[at], SIDE);
    if lane == 0u { output[params.groups * SIDE * SIDE] = f32(subgroups); }
}
