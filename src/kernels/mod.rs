//! Kernels: one Rust file per WGSL file in `shaders/`.
//!
//! Each wrapper takes a checked geometry and [`View`](crate::gpu::View)s and records dispatches; it knows the
//! kernel's variants, which one suits the adapter and the shape, and what it costs. Activations
//! are `[N, D, H, W, C]` with C innermost. Gradients of activations are overwritten (`=`).
//! [`check`] holds the machinery that compares every variant with an f64 reference; each kernel
//! file lists its own cases.

use std::sync::Arc;

pub mod activation;
pub mod batch_norm;
pub mod check;
pub mod classes;
pub mod conv3d;
pub mod elementwise;
mod fingerprint;
pub mod knn;
pub mod loss;
pub mod optimiser;
pub mod pool;
pub mod prelu;
pub mod reduce;
mod rows;
pub mod transform;
pub mod upsample;

pub use fingerprint::fingerprint;

#[cfg(test)]
mod difference;

/// The text of `shaders/<name>.wgsl` or `shaders/common/<name>.wgsl`.
fn file(name: &str) -> &'static str {
    macro_rules! files {
        ($($name:literal => $path:literal,)+) => {
            match name {
                $($name => include_str!(concat!("../../shaders/", $path)),)+
                _ => unreachable!("no shader file `{name}`"),
            }
        };
    }
    files! {
        "activation" => "activation.wgsl",
        "batch_norm" => "batch_norm.wgsl",
        "bench_coop" => "bench_coop.wgsl",
        "bench_fma" => "bench_fma.wgsl",
        "bench_memory" => "bench_memory.wgsl",
        "bench_workgroup" => "bench_workgroup.wgsl",
        "class_dice" => "class_dice.wgsl",
        "classes" => "classes.wgsl",
        "clip" => "clip.wgsl",
        "conv3d" => "conv3d.wgsl",
        "conv3d_coop" => "conv3d_coop.wgsl",
        "conv3d_coop_weight" => "conv3d_coop_weight.wgsl",
        "conv3d_pack" => "conv3d_pack.wgsl",
        "conv3d_panels" => "conv3d_panels.wgsl",
        "conv3d_simt" => "conv3d_simt.wgsl",
        "conv3d_simt_weight" => "conv3d_simt_weight.wgsl",
        "conv3d_statistics" => "conv3d_statistics.wgsl",
        "conv3d_sum" => "conv3d_sum.wgsl",
        "conv3d_tile" => "conv3d_tile.wgsl",
        "conv3d_tile_weight" => "conv3d_tile_weight.wgsl",
        "cross_entropy" => "cross_entropy.wgsl",
        "dice" => "dice.wgsl",
        "elementwise" => "elementwise.wgsl",
        "grid" => "common/grid.wgsl",
        "group_sum" => "common/group_sum.wgsl",
        "head" => "head.wgsl",
        "knn_distance" => "knn_distance.wgsl",
        "knn_distance_tile" => "knn_distance_tile.wgsl",
        "knn_select" => "knn_select.wgsl",
        "knn_select_bitonic" => "knn_select_bitonic.wgsl",
        "knn_select_bound" => "knn_select_bound.wgsl",
        "knn_select_rank" => "knn_select_rank.wgsl",
        "loss" => "loss.wgsl",
        "matrix_coop" => "common/matrix_coop.wgsl",
        "matrix_plain" => "common/matrix_plain.wgsl",
        "norm" => "norm.wgsl",
        "optimiser" => "optimiser.wgsl",
        "pool" => "pool.wgsl",
        "prelu" => "prelu.wgsl",
        "reduce" => "reduce.wgsl",
        "rng" => "common/rng.wgsl",
        "rows" => "common/rows.wgsl",
        "transform" => "common/transform.wgsl",
        "transform_elastic" => "transform_elastic.wgsl",
        "transform_flip" => "transform_flip.wgsl",
        "transform_point" => "transform_point.wgsl",
        "turns" => "common/turns.wgsl",
        "transform_shuffle" => "transform_shuffle.wgsl",
        "upsample" => "upsample.wgsl",
    }
}

/// A constant that a shader expects to be defined before its text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Const {
    /// `const NAME: u32`.
    U32(usize),
    /// `const NAME: bool`.
    Bool(bool),
    /// `alias NAME = TYPE`.
    Type(&'static str),
}

/// The complete text of kernel `name`: the constants of `header`, the common pieces named on
/// the file's `// uses:` line, and the file itself with each `//@<marker>` line replaced by its
/// generated block. 16-bit floats and cooperative matrices are enabled where a type of the header needs them.
pub fn specialise(name: &str, header: &[(&str, Const)], blocks: &[(&str, &str)]) -> Arc<str> {
    use std::fmt::Write;
    let body = file(name);
    let mut out = String::with_capacity(body.len() + 2048);
    if header.iter().any(|(_, c)| matches!(c, Const::Type(t) if t.contains("f16"))) {
        out.push_str("enable f16;\n");
    }
    if header.iter().any(|(_, c)| matches!(c, Const::Type(t) if t.contains("coop_mat"))) {
        out.push_str("enable wgpu_cooperative_matrix;\n");
    }
    for (name, value) in header {
        let _ = match value {
            Const::U32(v) => writeln!(out, "const {name}: u32 = {v}u;"),
            Const::Bool(v) => writeln!(out, "const {name}: bool = {v};"),
            Const::Type(v) => writeln!(out, "alias {name} = {v};"),
        };
    }
    for line in body.lines().take_while(|l| l.starts_with("//")) {
        if let Some(uses) = line.strip_prefix("// uses:") {
            for piece in uses.split(',') {
                out.push_str(file(piece.trim()));
            }
        }
    }
    for line in body.lines() {
        match line.trim_start().strip_prefix("//@") {
            Some(marker) => {
                let block = blocks.iter().find(|b| b.0 == marker.trim());
                out.push_str(block.unwrap_or_else(|| panic!("{name}: no block for marker `{marker}`")).1);
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out.into()
}

/// Splits a batch of tensors of 4-byte elements, `elements` a sample each: see [`sample_parts`].
///
/// # Errors
/// As [`sample_parts`].
pub fn batch_parts(
    caps: &crate::gpu::Caps,
    op: &'static str,
    batch: usize,
    elements: &[usize],
    flops: u64,
) -> crate::error::Result<Vec<(usize, usize)>> {
    let bytes: Vec<u64> = elements.iter().map(|&e| e as u64 * 4).collect();
    sample_parts(caps, op, batch, &bytes, flops)
}

/// Splits a batch so that each part's largest tensor fits a binding, and each part's work (of `flops` a sample) stays
/// below the adapter's bound for one dispatch. `bytes` lists the bytes per sample of every tensor that is sliced.
///
/// Returns `(first sample, samples)` pairs; every part begins at an offset at which each of the tensors can be bound.
///
/// # Errors
/// [`crate::error::Error::ExceedsLimit`] when not even one sample, or as few as can begin at such an offset, fit.
pub fn sample_parts(
    caps: &crate::gpu::Caps,
    op: &'static str,
    batch: usize,
    bytes: &[u64],
    flops: u64,
) -> crate::error::Result<Vec<(usize, usize)>> {
    use crate::error::Error;
    let largest = bytes.iter().copied().max().unwrap_or(1).max(1);
    let by_binding = caps.max_binding / largest;
    if by_binding == 0 {
        return Err(Error::ExceedsLimit {
            what: format!("one sample of {op}"),
            need: format!("{:.1} MiB", largest as f64 / 1_048_576.0),
            have: format!("{:.1} MiB per binding", caps.max_binding as f64 / 1_048_576.0),
            remedy: "use a smaller cube.size or model.base_channels".into(),
        });
    }
    let by_flops = (caps.max_dispatch_flops() / flops.max(1)).max(1);
    let [by_binding, by_flops] = [by_binding, by_flops].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let most = by_binding.min(by_flops);
    if most >= batch {
        return Ok(vec![(0, batch)]);
    }
    // Alignments are powers of two, and so is the least number of samples that keeps them all.
    let shift = bytes.iter().filter(|&&b| b > 0).map(|b| b.trailing_zeros()).min().unwrap_or(0);
    let unit = usize::try_from(caps.storage_align.max(1).next_power_of_two() >> shift).unwrap_or(1).max(1);
    let step = (most / unit * unit).max(unit);
    if step.min(batch) > by_binding {
        return Err(Error::ExceedsLimit {
            what: format!("{unit} samples of {op}, the fewest that can be bound together,"),
            need: format!("{:.1} MiB", unit as f64 * largest as f64 / 1_048_576.0),
            have: format!("{:.1} MiB per binding", caps.max_binding as f64 / 1_048_576.0),
            remedy: "use a smaller train.micro_batch or cube.size".into(),
        });
    }
    Ok((0..batch).step_by(step).map(|n0| (n0, step.min(batch - n0))).collect())
}

/// Element ranges `(first, elements)` of a flat tensor of 4-byte elements that each fit a binding, begin at an
/// aligned offset and, but for a tail shorter than 64 elements, hold a multiple of four.
pub fn flat_parts(caps: &crate::gpu::Caps, elements: usize) -> Vec<(usize, usize)> {
    let align = usize::try_from(caps.storage_align.max(256)).unwrap_or(256) / 4;
    let most = usize::try_from(caps.max_binding / 4).unwrap_or(usize::MAX) / align * align;
    let even = if elements.is_multiple_of(4) { elements } else { elements / align * align };
    let mut parts: Vec<_> = (0..even).step_by(most.max(align)).map(|first| (first, most.max(align).min(even - first))).collect();
    if even < elements {
        parts.push((even, elements - even));
    }
    parts
}

/// What kernels that work on scalars or on quadruples alike are specialised with: the alias
/// `Elem` and the block `sum_of`, which adds the components of an `Elem` up.
pub(crate) fn vector(quadruples: bool) -> ((&'static str, Const), (&'static str, &'static str)) {
    if quadruples {
        let sum = "fn sum_of(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }";
        (("Elem", Const::Type("vec4<f32>")), ("sum_of", sum))
    } else {
        (("Elem", Const::Type("f32")), ("sum_of", "fn sum_of(v: f32) -> f32 { return v; }"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Const, flat_parts, sample_parts, specialise};
    use crate::gpu::Caps;

    #[test]
    fn flat_parts_cover_everything_once_at_aligned_offsets() {
        let caps = Caps { max_binding: 4000, ..Caps::minimal() };
        for n in [1, 3, 4, 63, 64, 65, 67, 959, 960, 961, 964, 1000, 5001, 9600] {
            let parts = flat_parts(&caps, n);
            let mut next = 0;
            for &(first, len) in &parts {
                assert_eq!(first, next, "{n}");
                assert!(len > 0 && len * 4 <= 4000 && first * 4 % 256 == 0 && (len % 4 == 0 || len < 64), "{n}: {parts:?}");
                next += len;
            }
            assert_eq!(next, n);
        }
    }

    #[test]
    fn parts_of_a_batch_begin_where_every_tensor_can_be_bound() {
        let caps = Caps { max_binding: 40_000, ..Caps::minimal() };
        for bytes in [&[1024, 512][..], &[96, 6], &[3000, 2], &[20_480, 256], &[64]] {
            let Ok(parts) = sample_parts(&caps, "test", 1000, bytes, 1) else {
                assert_eq!(bytes, [3000, 2], "two bytes a sample need 128 samples at once");
                continue;
            };
            let mut next = 0;
            for &(first, n) in &parts {
                assert_eq!(first, next);
                assert!(
                    n > 0 && bytes.iter().all(|b| (first as u64 * b).is_multiple_of(256) && n as u64 * b <= 40_000),
                    "{bytes:?}: {parts:?}"
                );
                next += n;
            }
            assert_eq!(next, 1000);
        }
        for (batch, bytes) in [(2, 40_001), (3, 20_002)] {
            assert!(sample_parts(&caps, "test", batch, &[bytes], 1).is_err(), "{bytes}");
        }
    }

    #[test]
    fn halves_are_enabled_where_a_type_needs_them() {
        let types = |t| [("Input", Const::Type(t)), ("Gradient", Const::Type("f32")), ("Output", Const::Type("f32"))];
        let load = [("load", "fn load(i: u32, c: u32) -> f32 { return f32(input[i]); }")];
        assert!(specialise("conv3d", &types("f16"), &load).starts_with("enable f16;"));
        assert!(!specialise("conv3d", &types("f32"), &load).contains("enable"));
    }
}
