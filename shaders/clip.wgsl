// The factor that undoes a loss scale and brings a gradient whose norm is then above `max_norm` down to it; for
// `max_norm` 0 it only undoes the scale. NaN stays NaN.
struct Params { max_norm: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm: array<f32>;              // [1], of the scaled gradient
@group(0) @binding(2) var<storage, read> unscale: array<f32>;           // [1], 1 / loss scale
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;       // [1]

@compute @workgroup_size(1)
fn forward() {
    let ratio = params.max_norm / (norm[0] * unscale[0] + 1e-6);
    scale[0] = select(ratio, 1.0, ratio >= 1.0 || params.max_norm == 0.0) * unscale[0];
}
