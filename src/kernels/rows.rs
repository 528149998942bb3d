//! What kernels over `[rows, C]` and elementwise kernels share: how work is cut into chunks,
//! parts and vectors, and checks of operand sizes. The device side is `shaders/common/rows.wgsl`.

use super::{Const, sample_parts};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Context, Dtype, Kind, Recorder, View};

/// Invocations of a workgroup of `shaders/common/rows.wgsl`.
const LANES: usize = 256;

/// Values in a vector: 4 where `length` (channels, or elements) allows, else 1.
pub(super) fn vector_width(length: usize) -> usize {
    if length.is_multiple_of(4) { 4 } else { 1 }
}

/// The header line that makes `Elem` a vector of `width` numbers.
pub(super) fn elem(width: usize) -> (&'static str, Const) {
    storage("Elem", width, Dtype::F32)
}

/// The header line that makes `name` what `width` numbers are stored as: `Elem(x[i])` loads and `Stored(v)` stores them,
/// which for 32 bits change nothing.
pub(super) fn storage(name: &'static str, width: usize, dtype: Dtype) -> (&'static str, Const) {
    let text = match (width == 4, dtype) {
        (true, Dtype::F32) => "vec4<f32>",
        (true, Dtype::F16) => "vec4<f16>",
        (false, Dtype::F32) => "f32",
        (false, Dtype::F16) => "f16",
    };
    (name, Const::Type(text))
}

/// [`storage`] under the name `Stored`.
pub(super) fn stored(width: usize, dtype: Dtype) -> (&'static str, Const) {
    storage("Stored", width, dtype)
}

/// The header line that makes `Index` a vector of `width` unsigned numbers.
pub(super) fn index(width: usize) -> (&'static str, Const) {
    ("Index", Const::Type(if width == 4 { "vec4<u32>" } else { "u32" }))
}

/// The block `load`: how a kernel reads element i of `x`. With `norm` it reads the ReLU of a batch norm's result,
/// from the vectors `norm` `[4, C]` of the channel, loaded beforehand; the result itself is then never stored.
pub(super) fn loaded(norm: bool) -> (&'static str, &'static str) {
    let text = if norm {
        "struct Norm { mean: Elem, factor: Elem, shift: Elem }
fn norm_of(c: u32, vectors: u32) -> Norm { return Norm(norm[c], norm[vectors + c], norm[2u * vectors + c]); }
fn load(i: u32, n: Norm) -> Elem {
    let v = (Elem(x[i]) - n.mean) * n.factor + n.shift;
    return select(v, Elem(0.0), v < Elem(0.0));
}"
    } else {
        "struct Norm { none: u32 }
fn norm_of(c: u32, vectors: u32) -> Norm { return Norm(0u); }
fn load(i: u32, n: Norm) -> Elem { return Elem(x[i]); }"
    };
    ("load", text)
}

/// What the block of [`loaded`] reads of x `[rows, channels]`, in f64.
pub(super) fn reference_loaded(x: &[f64], norm: &[f64], channels: usize) -> Vec<f64> {
    let at = |k: usize, i: usize| norm[k * channels + i % channels];
    x.iter().enumerate().map(|(i, v)| ((v - at(0, i)) * at(1, i) + at(2, i)).max(0.0)).collect()
}

/// The header line that `shaders/common/rows.wgsl` expects.
pub(super) fn successive(caps: &Caps) -> (&'static str, Const) {
    ("SUCCESSIVE", Const::Bool(caps.kind == Kind::Cpu))
}

/// Most chunks of a reduction whose own bound is `most`. A processor is busy with few workgroups, and each barrier of one
/// costs it as much as many loads.
pub(super) fn most_chunks(caps: &Caps, most: usize) -> usize {
    if caps.kind == Kind::Cpu { most.min(16) } else { most }
}

/// The header line for kernels that add up TURNS values an invocation, and those values.
pub(super) fn turns(caps: &Caps) -> ((&'static str, Const), usize) {
    let turns = if caps.kind == Kind::Cpu { 128 } else { 16 };
    (("TURNS", Const::U32(turns)), turns)
}

/// Rows cut into chunks, one workgroup for each chunk and block of channel vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    /// Rows of every chunk but the last, which may be shorter but is never empty.
    pub(super) rows: usize,
    /// Number of chunks.
    pub(super) count: usize,
    /// Workgroups.
    pub(super) groups: usize,
}

/// At most `most` chunks of `rows` rows of `vectors` vectors, with at least `turns` rows for an
/// invocation as far as there are rows.
pub(super) fn row_chunks(rows: usize, vectors: usize, turns: usize, most: usize) -> Chunks {
    let width = vectors.min(LANES);
    let count = rows.div_ceil(LANES / width * turns).clamp(1, most.max(1));
    let chunk = rows.div_ceil(count);
    let count = rows.div_ceil(chunk);
    Chunks { rows: chunk, count, groups: count * vectors.div_ceil(width) }
}

/// `(first row, rows)` of parts of `[rows, channels]`, stored as `dtype`, that can be bound one at a time.
///
/// # Errors
/// As [`sample_parts`].
pub(super) fn row_parts(caps: &Caps, op: &'static str, rows: usize, channels: usize, dtype: Dtype) -> Result<Vec<(usize, usize)>> {
    sample_parts(caps, op, rows, &[channels as u64 * dtype.bytes()], 8 * channels as u64)
}

/// `(first, count)` of parts of a tensor of `n` elements, stored as `dtype`, that can be bound one at a time.
pub(super) fn element_parts(caps: &Caps, n: usize, dtype: Dtype) -> impl Iterator<Item = (usize, usize)> {
    let unit = caps.storage_align.max(16);
    let step = usize::try_from((caps.max_binding / unit).max(1) * unit / dtype.bytes()).unwrap_or(usize::MAX);
    (0..n).step_by(step).map(move |first| (first, step.min(n - first)))
}

/// Checks that each named operand has the number of elements given with it, and at least one.
///
/// # Errors
/// [`Error::Shape`] for the first that has not.
pub(super) fn expect(op: &'static str, operands: &[(&str, View, usize)]) -> Result<()> {
    match operands.iter().find(|(_, view, n)| view.elements() != *n || *n == 0) {
        None => Ok(()),
        Some((name, _, 0)) => Err(Error::shape(op, format!("`{name}` is empty; every size must be at least 1"))),
        Some((name, view, n)) => Err(Error::shape(op, format!("`{name}` has {} elements, expected {n}", view.elements()))),
    }
}

/// How all of the named tensors are stored.
///
/// # Errors
/// [`Error::Shape`] when they are not all stored alike.
pub(super) fn alike(op: &'static str, tensors: &[(&str, View)]) -> Result<Dtype> {
    let (first, view) = tensors[0];
    match tensors.iter().find(|(_, v)| v.dtype != view.dtype) {
        None => Ok(view.dtype),
        Some((name, v)) => {
            Err(Error::shape(op, format!("`{name}` is stored as {:?} and `{first}` as {:?}; they must agree", v.dtype, view.dtype)))
        }
    }
}

/// Rows of `[rows, channels]` in a view.
///
/// # Errors
/// [`Error::Shape`] when the view is empty or no whole number of rows.
pub(super) fn rows_of(op: &'static str, name: &str, view: View, channels: usize) -> Result<usize> {
    let n = view.elements();
    if channels == 0 || n == 0 || !n.is_multiple_of(channels) {
        return Err(Error::shape(op, format!("`{name}` has {n} elements, expected a positive multiple of {channels} channels")));
    }
    Ok(n / channels)
}

/// An adapter that a case pretends to have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pretend {
    /// Most bytes bound at once, so that an operation is seen in parts without needing gigabytes.
    pub(super) limit: u64,
    /// Kind, where kernels have variants for kinds.
    pub(super) kind: Kind,
}

/// Both kinds for which kernels over rows have variants.
pub(super) const KINDS: [Kind; 2] = [Kind::Cpu, Kind::Discrete];

impl Pretend {
    /// The real adapter but for a limit.
    pub(super) fn limit(ctx: &Context, limit: u64) -> Self {
        Self { limit, kind: ctx.caps().kind }
    }

    /// Records with `record` as if on this adapter, with a few workgroups too many.
    ///
    /// # Errors
    /// What `record` reports.
    pub(super) fn record(self, rec: &mut Recorder<'_>, record: impl FnOnce(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
        let caps = Caps { max_binding: self.limit.min(rec.caps.max_binding), kind: self.kind, ..rec.caps.clone() };
        let mut own = Recorder::new(&caps);
        record(&mut own)?;
        if let Some(d) = own.dispatches.iter().find(|d| d.bindings.iter().any(|b| b.len > caps.max_binding)) {
            return Err(Error::Gpu(format!("{} binds more than {} bytes", d.label, caps.max_binding)));
        }
        rec.dispatches = own.dispatches;
        // Folded grids have surplus workgroups; they must do nothing on any shape.
        rec.dispatches.iter_mut().for_each(|d| d.groups += 3);
        rec.scratch = own.scratch;
        Ok(())
    }
}

/// The part of a case's name that tells its limit, if there is one.
pub(super) fn bound_at_once(limit: u64) -> String {
    if limit == u64::MAX { String::new() } else { format!(", at most {limit} bytes bound at once") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_and_none_is_empty() {
        for rows in [1, 2, 31, 32, 33, 1000, 65_537, 10_000_000] {
            for vectors in [1, 3, 16, 255, 256, 257, 1025] {
                for most in [1, 7, 1024] {
                    let c = row_chunks(rows, vectors, 32, most);
                    assert!(c.count <= most && c.rows * c.count >= rows && c.rows * (c.count - 1) < rows, "{rows} {vectors} {most}: {c:?}");
                    assert_eq!(c.groups, c.count * vectors.div_ceil(256));
                }
            }
        }
    }

    #[test]
    fn element_parts_are_aligned_and_cover_everything() {
        let caps = Caps { max_binding: 1000, ..Caps::minimal() };
        let parts: Vec<_> = element_parts(&caps, 500, Dtype::F32).collect();
        assert_eq!(parts, [(0, 192), (192, 192), (384, 116)]);
        let parts: Vec<_> = element_parts(&caps, 500, Dtype::F16).collect();
        assert_eq!(parts, [(0, 384), (384, 116)]);
    }
}
