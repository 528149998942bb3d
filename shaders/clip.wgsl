// The factor that undoes a loss scale and brings a gradient whose norm is then above `max_norm` down to it; for `max_norm` 0
// it only undoes the scale. It is 0, with which an update changes nothing, when norm or loss is not finite.
// expects: UNSCALE (place of 1 / loss scale among the scalars of a step)
struct Params { max_norm: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm: array<f32>;              // [1], of the scaled gradient
@group(0) @binding(2) var<storage, read> loss: array<f32>;              // [1]
@group(0) @binding(3) var<storage, read> scalars: array<f32>;           // of a step
@group(0) @binding(4) var<storage, read_write> scale: array<f32>;       // [1]

// By its bits: compilers may take for granted that no number is NaN.
fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }

@compute @workgroup_size(1)
fn forward() {
    let unscale = scalars[UNSCALE];
    let ratio = params.max_norm / (norm[0] * unscale + 1e-6);
    let factor = select(ratio, 1.0, ratio >= 1.0 || params.max_norm == 0.0) * unscale;
    scale[0] = select(0.0, factor, finite(norm[0]) && finite(loss[0]));
}
