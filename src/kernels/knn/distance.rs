//! Squared distances of all pairs of rows of two tiles.

use std::fmt::Write;
use std::sync::Arc;

use super::super::{Const, specialise, vector};
use crate::error::{Error, Result};
use crate::gpu::{Dispatch, Recorder, View};

/// How distances are computed; [`Variant::chosen`] says which variant runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// `sub8`: subgroups of eight lanes, registers and broadcasts.
    Sub8,
    /// `tile`: tiles in workgroup memory.
    Tile,
}

/// What the choice of a variant is filed under.
const KEY: &str = "knn_distance";

/// Register tile of [`Variant::Sub8`]: rows of a per lane, and rows of b.
const SUB8: (usize, usize) = (6, 32);
/// Rows of either side in a workgroup of [`Variant::Tile`], as in its shader.
const SIDE: usize = 64;

const ADD_SQUARE: &str = "fn add_square(d: f32, s: f32) -> f32 { return fma(d, d, s); }";
const ADD_SQUARE_4: &str =
    "fn add_square(d: vec4<f32>, s: f32) -> f32 { return fma(d.x, d.x, fma(d.y, d.y, fma(d.z, d.z, fma(d.w, d.w, s)))); }";

const PUT: &str = "
fn put(row: u32, col: u32, v: vec4<f32>) {
    if row < params.rows {
        let at = row * params.cols + col;
        if col < params.cols { distance[at] = v.x; }
        if col + 1u < params.cols { distance[at + 1u] = v.y; }
        if col + 2u < params.cols { distance[at + 2u] = v.z; }
        if col + 3u < params.cols { distance[at + 3u] = v.w; }
    }
}
";
// Columns come in whole quadruples.
const PUT_4: &str = "
fn put(row: u32, col: u32, v: vec4<f32>) {
    if row < params.rows && col < params.cols { distance[(row * params.cols + col) / 4u] = v; }
}
";

const LOAD: &str = "
fn load_a(base: u32, quad: u32) -> vec4<f32> {
    let i = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad;
    let at = base + min(i, vec4<u32>(params.width - 1u));
    return select(vec4<f32>(), vec4<f32>(a[at.x], a[at.y], a[at.z], a[at.w]), i < vec4<u32>(params.width));
}
fn load_b(base: u32, quad: u32) -> vec4<f32> {
    let i = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad;
    let at = base + min(i, vec4<u32>(params.width - 1u));
    return select(vec4<f32>(), vec4<f32>(b[at.x], b[at.y], b[at.z], b[at.w]), i < vec4<u32>(params.width));
}
";
const LOAD_4: &str = "
fn load_a(base: u32, quad: u32) -> vec4<f32> { return select(vec4<f32>(), a[base + min(quad, params.width - 1u)], quad < params.width); }
fn load_b(base: u32, quad: u32) -> vec4<f32> { return select(vec4<f32>(), b[base + min(quad, params.width - 1u)], quad < params.width); }
";

impl Variant {
    /// What was chosen, where it can run; else what suits the adapter.
    fn chosen(rec: &Recorder<'_>) -> Self {
        match rec.choices.get(KEY) {
            Some("tile") => Self::Tile,
            _ if rec.caps.subgroup8() => Self::Sub8,
            _ => Self::Tile,
        }
    }

    /// Rows of a and of b that a workgroup covers.
    fn tile(self) -> (usize, usize) {
        match self {
            Self::Sub8 => (8 * SUB8.0, SUB8.1),
            Self::Tile => (SIDE, SIDE),
        }
    }

    fn source(self, cols: usize, width: usize) -> Arc<str> {
        let (by_four, (elem, _)) = (width.is_multiple_of(4), vector(width.is_multiple_of(4)));
        let [begin, step, end] = match self {
            Self::Sub8 => sub8_text(),
            Self::Tile => tile_text(),
        };
        let unrolled = [("begin", begin.as_str()), ("step", &step), ("end", &end)];
        match self {
            Self::Sub8 => {
                let (out, put) = if cols.is_multiple_of(4) { ("vec4<f32>", PUT_4) } else { ("f32", PUT) };
                let (rows, cols) = self.tile();
                let header = [elem, ("Out", Const::Type(out)), ("TILE_ROWS", Const::U32(rows)), ("TILE_COLS", Const::U32(cols))];
                let add = if by_four { ADD_SQUARE_4 } else { ADD_SQUARE };
                specialise("knn_distance", &header, &[&unrolled[..], &[("add_square", add), ("put", put)]].concat())
            }
            Self::Tile => {
                let header = [elem, ("STEP", Const::U32(if by_four { 4 } else { 1 }))];
                let load = if by_four { LOAD_4 } else { LOAD };
                specialise("knn_distance_tile", &header, &[&unrolled[..], &[("load", load)]].concat())
            }
        }
    }
}

/// The unrolled text of `knn_distance`: before, in and after the loop over the width.
fn sub8_text() -> [String; 3] {
    let (rows, cols) = SUB8;
    let (mut begin, mut step, mut end) = (String::new(), String::new(), String::new());
    for r in 0..rows {
        let _ = writeln!(begin, "let a{r} = row_of_a(row + {}u);", 8 * r);
        let _ = writeln!(step, "let x{r} = a[a{r} + i];");
    }
    for q in 0..cols / 8 {
        let _ = writeln!(begin, "let b{q} = row_of_b(col + {}u + lane);", 8 * q);
        let _ = writeln!(step, "let q{q} = b[b{q} + i];");
    }
    for c in 0..cols {
        let _ = writeln!(step, "let y{c} = subgroupBroadcast(q{}, {}u);", c / 8, c % 8);
        for r in 0..rows {
            let _ = writeln!(begin, "var s{r}_{c} = 0.0;");
            let _ = writeln!(step, "s{r}_{c} = add_square(x{r} - y{c}, s{r}_{c});");
        }
    }
    for r in 0..rows {
        for c in (0..cols).step_by(4) {
            let sums = [0, 1, 2, 3].map(|i| format!("s{r}_{}", c + i)).join(", ");
            let _ = writeln!(end, "put(row + {}u, col + {c}u, vec4<f32>({sums}));", 8 * r);
        }
    }
    [begin, step, end]
}

/// The unrolled text of `knn_distance_tile`: before, in and after the loop over the width.
fn tile_text() -> [String; 3] {
    let (mut begin, mut step, mut end) = (String::new(), String::new(), String::new());
    for i in 0..4 {
        let _ = writeln!(step, "let x{i} = tile_a[(ty + {}u) * PITCH + q];", 16 * i);
        let _ = writeln!(step, "let y{i} = tile_b[(tx + {}u) * PITCH + q];", 16 * i);
    }
    for r in 0..4 {
        for c in 0..4 {
            let _ = writeln!(begin, "var s{r}_{c} = 0.0;");
            let _ = writeln!(step, "s{r}_{c} = add_square(x{r} - y{c}, s{r}_{c});");
            let _ = writeln!(end, "put(row0 + ty + {}u, col0 + tx + {}u, s{r}_{c});", 16 * r, 16 * c);
        }
    }
    [begin, step, end]
}

/// `out[r, c]` = squared Euclidean distance of row r of `a`, `[rows, width]`, and row c of `b`,
/// `[cols, width]`; `out` is `[rows, cols]`. Exactly 0 for equal rows.
///
/// # Errors
/// [`Error::Shape`] when the views do not fit.
pub fn distances(rec: &mut Recorder<'_>, rows: usize, cols: usize, width: usize, a: View, b: View, out: View) -> Result<()> {
    let (na, nb, no) = (a.elements(), b.elements(), out.elements());
    if rows * cols * width == 0 || na != rows * width || nb != cols * width || no != rows * cols {
        let what = format!("{na} and {nb} features and {no} distances, expected {rows} and {cols} rows of {width} and {rows} x {cols}");
        return Err(Error::shape("distances", what));
    }
    let variant = Variant::chosen(rec);
    let (tile_rows, tile_cols) = variant.tile();
    let blocks = cols.div_ceil(tile_cols);
    let source = variant.source(cols, width);
    let kernel = if variant == Variant::Sub8 { "knn_distance" } else { "knn_distance_tile" };
    let d = Dispatch::new(kernel, "forward", source).bind(a).bind(b).bind(out).param("rows", rows).param("cols", cols);
    let d = d.param("width", if width.is_multiple_of(4) { width / 4 } else { width }).param("blocks", blocks);
    rec.push(d.groups(rows.div_ceil(tile_rows) * blocks).flops((3 * rows * cols * width) as u64));
    Ok(())
}
