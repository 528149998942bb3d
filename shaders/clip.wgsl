// The factor that brings a gradient of norm above `max_norm` down to it, 1 for `max_norm` 0. It is 0, with which an update
// changes nothing, when norm or loss is not finite.
struct Params { max_norm: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> norm: array<f32>;              // [1]
@group(0) @binding(2) var<storage, read> loss: array<f32>;              // [1]
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;       // [1]

// By its bits: compilers may take for granted that no number is NaN.
fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }

@compute @workgroup_size(1)
fn forward() {
    let ratio = params.max_norm / (norm[0] + 1e-6);
    let factor = select(ratio, 1.0, ratio >= 1.0 || params.max_norm == 0.0);
    scale[0] = select(0.0, factor, finite(norm[0]) && finite(loss[0]));
}
