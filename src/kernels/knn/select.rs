//! The nearest of each row among those listed so far and a tile of distances.

use std::fmt::Write;
use std::sync::Arc;

use super::super::{Const, file, specialise, vector};
use super::MAX_K;
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Recorder, View};

/// How the nearest are selected; [`Variant::chosen`] says which variant runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// `sub8`: a subgroup of eight lanes for a row, which pays for every barrier and every atomic: a bound from
    /// one pass over the row leaves few candidates, and each counts those before it.
    Sub8,
    /// `group`: a workgroup of 64 for a row, radix selection and a sorting network in workgroup memory.
    Group,
}

/// What the choice of a variant is filed under.
const KEY: &str = "knn_select";

const EACH: &str = "
fn least(v: f32) -> u32 { return bitcast<u32>(v); }
fn range_each(v: f32, bound: u32) { range_one(vec2<u32>(bitcast<u32>(v), 0u), bound); }
fn count_each(v: f32, index: u32, bound: u32) { count_one(vec2<u32>(bitcast<u32>(v), index), bound); }
fn gather_each(v: f32, index: u32, bound: u32) { gather_one(vec2<u32>(bitcast<u32>(v), index), bound); }
";
const EACH_4: &str = "
fn least(v: vec4<f32>) -> u32 {
    let w = bitcast<vec4<u32>>(v);
    return min(min(w.x, w.y), min(w.z, w.w));
}
fn range_each(v: vec4<f32>, bound: u32) {
    let w = bitcast<vec4<u32>>(v);
    range_one(vec2<u32>(w.x, 0u), bound);
    range_one(vec2<u32>(w.y, 0u), bound);
    range_one(vec2<u32>(w.z, 0u), bound);
    range_one(vec2<u32>(w.w, 0u), bound);
}
fn count_each(v: vec4<f32>, index: u32, bound: u32) {
    let w = bitcast<vec4<u32>>(v);
    count_one(vec2<u32>(w.x, index), bound);
    count_one(vec2<u32>(w.y, index + 1u), bound);
    count_one(vec2<u32>(w.z, index + 2u), bound);
    count_one(vec2<u32>(w.w, index + 3u), bound);
}
fn gather_each(v: vec4<f32>, index: u32, bound: u32) {
    let w = bitcast<vec4<u32>>(v);
    gather_one(vec2<u32>(w.x, index), bound);
    gather_one(vec2<u32>(w.y, index + 1u), bound);
    gather_one(vec2<u32>(w.z, index + 2u), bound);
    gather_one(vec2<u32>(w.w, index + 3u), bound);
}
";
const UNBOUNDED: &str = "fn tightened(list: u32, tile: u32, t: u32) -> u32 { return 0xFFFFFFFFu; }\n";

impl Variant {
    fn chosen(rec: &Recorder<'_>) -> Self {
        match rec.choices.get(KEY) {
            Some("group") => Self::Group,
            _ if rec.caps.subgroup8() => Self::Sub8,
            _ => Self::Group,
        }
    }

    /// Invocations of a workgroup, and candidates its memory has room for.
    fn workgroup(self) -> (usize, usize) {
        match self {
            Self::Sub8 => (8, 2 * MAX_K),
            Self::Group => (64, MAX_K),
        }
    }

    /// Candidates that are put in order at once: a little room above `keep` saves the digits that would only
    /// separate the last few; what [`Variant::Sub8`] does depends on those there are, not on the room.
    fn size(self, keep: usize) -> usize {
        let room = if self == Self::Sub8 { 2 * keep } else { keep + keep / 4 };
        room.max(32).next_power_of_two().min(self.workgroup().1)
    }

    /// `filled` of the list's entries are valid, `keep` will be; the tile has `elements` of `step` columns each.
    fn source(self, step: usize, elements: usize, filled: usize, keep: usize) -> Arc<str> {
        let parts = match self {
            Self::Sub8 => bound_text(elements, filled, keep) + &rank_text(),
            Self::Group => UNBOUNDED.to_owned() + file("knn_select_bitonic"),
        };
        let (lanes, pairs) = self.workgroup();
        let header = [vector(step == 4).0, ("STEP", Const::U32(step)), ("LANES", Const::U32(lanes)), ("PAIRS", Const::U32(pairs))];
        specialise("knn_select", &header, &[("each", if step == 4 { EACH_4 } else { EACH }), ("parts", &parts)])
    }
}

/// The text of `tightened`: `knn_select_bound` where there are enough groups of columns for a bound.
fn bound_text(elements: usize, filled: usize, keep: usize) -> String {
    // Four groups for each that is kept bound all but a tenth of the others out; 256 a lane are the most that are worth it.
    let groups = (keep / 2).next_power_of_two().clamp(8, 256);
    if filled + elements.min(8 * groups) < keep {
        return UNBOUNDED.to_owned();
    }
    let listed = filled.div_ceil(8);
    let count = (0..groups + listed).fold(String::new(), |mut s, i| {
        let _ = writeln!(s, "n += u32(smallest[{i}] < limit);");
        s
    });
    specialise("knn_select_bound", &[("GROUPS", Const::U32(groups)), ("LISTED", Const::U32(listed))], &[("count", &count)]).to_string()
}

/// The text of `knn_select_rank` with its eight candidates a lane.
fn rank_text() -> String {
    let (mut own, mut rank, mut put) = (String::new(), String::new(), String::new());
    for s in 0..8 {
        let _ = writeln!(own, "let p{s} = tile_pair[first + {}u + t]; var r{s} = 0u;", 8 * s);
        let _ = writeln!(put, "if live && r{s} < params.keep {{");
        let _ = writeln!(put, "best_distance[list + r{s}] = bitcast<f32>(p{s}.x);\nbest_index[list + r{s}] = p{s}.y;\n}}");
    }
    for l in 0..8 {
        let _ = writeln!(rank, "let q{l} = subgroupBroadcast(others, {l}u);");
        for s in 0..8 {
            let _ = writeln!(rank, "r{s} += u32(before(q{l}, p{s}));");
        }
    }
    specialise("knn_select_rank", &[], &[("own", &own), ("rank", &rank), ("put", &put)]).to_string()
}

/// Merges a tile of distances into the lists of the nearest: afterwards row r of
/// `best_distance` and `best_index`, both `[rows, k]`, holds the `min(k, first + cols)` nearest
/// columns below `first + cols`, ascending by (distance, index).
///
/// `distances` is `[rows, cols]`, none negative, of the columns from `first` on; the lists
/// hold the result for the columns before (nothing when `first` is 0).
///
/// # Errors
/// [`Error::Shape`] when the views do not fit or `k` is not in 1..=[`MAX_K`].
#[expect(clippy::too_many_arguments, reason = "one number for each extent and one view for each tensor")]
pub fn select(
    rec: &mut Recorder<'_>,
    rows: usize,
    cols: usize,
    first: usize,
    k: usize,
    distances: View,
    best_distance: View,
    best_index: View,
) -> Result<()> {
    let (n, a, b) = (distances.elements(), best_distance.elements(), best_index.elements());
    if rows * cols == 0 || n != rows * cols || a != rows * k || b != rows * k || k == 0 || k > MAX_K {
        let what = format!("{n} distances and lists of {a} and {b}, expected {rows} x {cols} and {rows} x k with k = {k} in 1..={MAX_K}");
        return Err(Error::shape("nearest", what));
    }
    let step = if cols.is_multiple_of(4) { 4 } else { 1 };
    let (filled, keep) = (k.min(first), k.min(first + cols));
    let variant = Variant::chosen(rec);
    let source = variant.source(step, cols / step, filled, keep);
    let d = Dispatch::new("knn_select", "forward", source).bind(distances).bind(best_distance).bind(best_index);
    let d = d.param("rows", rows).param("width", cols / step).param("first", first).param("k", k).param("filled", filled);
    rec.push(d.param("keep", keep).param("size", variant.size(keep)).groups(rows).flops((10 * rows * cols) as u64));
    Ok(())
}
