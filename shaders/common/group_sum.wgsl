// Sum of `v` over the 64 invocations of a workgroup by a fixed tree.
var<workgroup> tile_sum: array<vec4<f32>, 64>;
fn group_sum(v: vec4<f32>, t: u32) -> vec4<f32> {
    workgroupBarrier();     // an earlier sum has been read
    tile_sum[t] = v;
    workgroupBarrier();
    for (var s = 32u; s > 0u; s /= 2u) {
        if t < s { tile_sum[t] += tile_sum[t + s]; }
        workgroupBarrier();
    }
    return tile_sum[0];
}
