//! Nearest neighbours by Euclidean distance: tiles of distances, and the nearest k of each row
//! kept on the device from tile to tile, so that no matrix of all pairs ever exists.

mod checks;

use std::fmt::Write;

pub use checks::{cases, reference_nearest};

use super::{Const, specialise, vector};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Caps, Context, Dispatch, Program, Recorder, View};

/// Most neighbours of a query.
pub const MAX_K: usize = 1024;

/// Register tile of the variant for subgroups of eight: rows of a and of b per invocation.
const BROADCAST: (usize, usize) = (4, 16);
/// Register tile of the portable variant; its workgroups are 8 x 8 invocations.
const PORTABLE: (usize, usize) = (4, 4);

const ADD_SQUARE: &str = "fn add_square(d: f32, s: f32) -> f32 { return fma(d, d, s); }";
const ADD_SQUARE_4: &str =
    "fn add_square(d: vec4<f32>, s: f32) -> f32 { return fma(d.x, d.x, fma(d.y, d.y, fma(d.z, d.z, fma(d.w, d.w, s)))); }";

/// The generated text of one register tile: before, in and after the loop over the width.
///
/// With `broadcast` the lanes of a subgroup of eight share all rows of b: each loads one of
/// every eight and hands it to the others, because there a load costs as much as dozens of
/// multiplications. Otherwise lane 8 u + v owns rows u + 8 r of a and v + 8 c of b.
fn tile_text(broadcast: bool, rows: usize, cols: usize) -> [String; 3] {
    let (mut begin, mut step, mut end) = (String::new(), String::new(), String::new());
    let (row, col) = if broadcast { ("lane", "0u") } else { ("lane / 8u", "lane % 8u") };
    let _ = writeln!(begin, "let row = row0 + {row}; let col = col0 + {col};");
    for r in 0..rows {
        let _ = writeln!(begin, "let a{r} = row_of_a(row + {}u);", 8 * r);
        let _ = writeln!(step, "let x{r} = a[a{r} + i];");
    }
    for c in 0..if broadcast { cols / 8 } else { cols } {
        let lane = if broadcast { " + lane" } else { "" };
        let _ = writeln!(begin, "let b{c} = row_of_b(col + {}u{lane});", 8 * c);
        let _ = writeln!(step, "let q{c} = b[b{c} + i];");
    }
    for c in 0..cols {
        let place = if broadcast { c } else { 8 * c };
        let _ = match broadcast {
            true => writeln!(step, "let y{c} = subgroupBroadcast(q{}, {}u);", c / 8, c % 8),
            false => writeln!(step, "let y{c} = q{c};"),
        };
        for r in 0..rows {
            let _ = writeln!(begin, "var s{r}_{c} = 0.0;");
            let _ = writeln!(step, "s{r}_{c} = add_square(x{r} - y{c}, s{r}_{c});");
            let _ = writeln!(end, "put(row + {}u, col + {place}u, s{r}_{c});", 8 * r);
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
    let broadcast = rec.caps.subgroup8();
    let (tile_rows, tile_cols) = if broadcast { BROADCAST } else { PORTABLE };
    let (group_rows, group_cols, lanes) = if broadcast { (8 * tile_rows, tile_cols, 8) } else { (8 * tile_rows, 8 * tile_cols, 64) };
    let quadruples = width.is_multiple_of(4);
    let [begin, step, end] = tile_text(broadcast, tile_rows, tile_cols);
    let header =
        [vector(quadruples).0, ("TILE_ROWS", Const::U32(group_rows)), ("TILE_COLS", Const::U32(group_cols)), ("LANES", Const::U32(lanes))];
    let add = if quadruples { ADD_SQUARE_4 } else { ADD_SQUARE };
    let source = specialise("knn_distance", &header, &[("add_square", add), ("begin", &begin), ("step", &step), ("end", &end)]);
    let blocks = cols.div_ceil(group_cols);
    let d = Dispatch::new("knn_distance", "forward", source).bind(a).bind(b).bind(out).param("rows", rows).param("cols", cols);
    let d = d.param("width", if quadruples { width / 4 } else { width }).param("blocks", blocks);
    rec.push(d.groups(rows.div_ceil(group_rows) * blocks).flops((3 * rows * cols * width) as u64));
    Ok(())
}

const EACH: &str = "
fn range_each(v: f32, bound: u32) { range_one(vec2<u32>(bitcast<u32>(v), 0u), bound); }
fn count_each(v: f32, index: u32, bound: u32) { count_one(vec2<u32>(bitcast<u32>(v), index), bound); }
fn gather_each(v: f32, index: u32, bound: u32) { gather_one(vec2<u32>(bitcast<u32>(v), index), bound); }
";
const EACH_4: &str = "
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
    let quadruples = cols.is_multiple_of(4);
    let step = if quadruples { 4 } else { 1 };
    let filled = k.min(first);
    let keep = k.min(filled + cols);
    // A little room above `keep` saves the digits that would only separate the last few.
    let size = (keep + keep / 4).max(32).next_power_of_two().min(MAX_K);
    // A subgroup of eight on a processor gains nothing from company and pays for every barrier.
    let lanes = if rec.caps.subgroup8() { 8 } else { 64 };
    let header = [vector(quadruples).0, ("STEP", Const::U32(step)), ("LANES", Const::U32(lanes))];
    let source = specialise("knn_select", &header, &[("each", if quadruples { EACH_4 } else { EACH })]);
    let d = Dispatch::new("knn_select", "forward", source).bind(distances).bind(best_distance).bind(best_index);
    let d = d.param("rows", rows).param("width", cols / step).param("first", first).param("k", k).param("filled", filled);
    rec.push(d.param("keep", keep).param("size", size).groups(rows).flops((10 * rows * cols) as u64));
    Ok(())
}

/// Rows of queries and of the base that are worked on together.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    rows: usize,
    cols: usize,
}

/// Tiles of at most 16,384 base rows and 64 MiB of distances that fit the adapter.
fn tiles(caps: &Caps, queries: usize, base: usize, width: usize) -> Tiles {
    let floats = usize::try_from(caps.max_binding / 4).unwrap_or(usize::MAX);
    let features = (floats / width).max(1);
    let cols = base.min(16_384).min(features);
    let work = usize::try_from(caps.max_dispatch_flops() / (3 * cols * width) as u64).unwrap_or(usize::MAX);
    let rows = queries.min((16 << 20) / cols).min(floats / cols).min(features).min(work).min(floats / MAX_K);
    Tiles { rows: rows.max(1), cols }
}

/// The `k` nearest rows of `base` for each row of `queries`, both `[n, width]`: pairs of index and
/// Euclidean distance, ascending by (distance, index); all rows when `base` has fewer than `k`.
///
/// Device memory is bounded by a tile, whatever the numbers of rows.
///
/// # Errors
/// [`Error::Shape`] when a length is not a multiple of `width` or `k` exceeds [`MAX_K`],
/// [`Error::Failed`] when a feature is not finite, and what the device reports.
pub fn nearest(ctx: &Context, queries: &[f32], base: &[f32], width: usize, k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
    nearest_tiled(ctx, queries, base, width, k, None)
}

fn check(queries: &[f32], base: &[f32], width: usize, k: usize) -> Result<()> {
    let fits = |v: &[f32]| width > 0 && v.len().is_multiple_of(width) && u32::try_from(v.len() / width).is_ok();
    if !fits(queries) || !fits(base) {
        let (a, b) = (queries.len(), base.len());
        return Err(Error::shape("nearest", format!("{a} and {b} features do not make whole rows of {width}")));
    }
    if k > MAX_K {
        return Err(Error::shape("nearest", format!("{k} neighbours were asked for; at most {MAX_K} are kept")));
    }
    for (what, v) in [("query", queries), ("base", base)] {
        if let Some(i) = v.iter().position(|x| !x.is_finite()) {
            let (row, column, x) = (i / width, i % width, v[i]);
            return Err(Error::Failed(format!("feature {column} of {what} row {row} is {x}; distances need finite features")));
        }
    }
    Ok(())
}

/// Uploads rows of `width` padded with zeros to rows of `padded`, which changes no distance.
fn upload(ctx: &Context, buffer: &Buffer, features: &[f32], width: usize, padded: usize) {
    if width == padded {
        return ctx.upload(buffer, 0, features);
    }
    let mut rows = vec![0.0f32; features.len() / width * padded];
    for (to, from) in rows.chunks_exact_mut(padded).zip(features.chunks_exact(width)) {
        to[..width].copy_from_slice(from);
    }
    ctx.upload(buffer, 0, &rows);
}

fn nearest_tiled(
    ctx: &Context,
    queries: &[f32],
    base: &[f32],
    width: usize,
    k: usize,
    given: Option<Tiles>,
) -> Result<Vec<Vec<(u32, f32)>>> {
    check(queries, base, width, k)?;
    let (n, m) = (queries.len() / width, base.len() / width);
    let k = k.min(m);
    if n == 0 || k == 0 {
        return Ok(vec![Vec::new(); n]);
    }
    let padded = width.next_multiple_of(4);
    let tile = given.unwrap_or_else(|| tiles(ctx.caps(), n, m, padded));
    let sizes = [
        ("knn.queries", tile.rows * padded),
        ("knn.base", tile.cols * padded),
        ("knn.distances", tile.rows * tile.cols),
        ("knn.best_distance", tile.rows * k),
        ("knn.best_index", tile.rows * k),
    ];
    let buffers = sizes.iter().map(|&(name, n)| ctx.buffer(name, n as u64 * 4)).collect::<Result<Vec<_>>>()?;
    let view = |i: u32, n: usize| View::whole(BufferId(i), n);
    let mut out = Vec::with_capacity(n);
    for q0 in (0..n).step_by(tile.rows) {
        let rows = tile.rows.min(n - q0);
        upload(ctx, &buffers[0], &queries[q0 * width..(q0 + rows) * width], width, padded);
        for c0 in (0..m).step_by(tile.cols) {
            let cols = tile.cols.min(m - c0);
            if q0 == 0 || m > tile.cols {
                upload(ctx, &buffers[1], &base[c0 * width..(c0 + cols) * width], width, padded);
            }
            let mut rec = Recorder::new(ctx.caps());
            distances(&mut rec, rows, cols, padded, view(0, rows * padded), view(1, cols * padded), view(2, rows * cols))?;
            select(&mut rec, rows, cols, c0, k, view(2, rows * cols), view(3, rows * k), view(4, rows * k))?;
            Program::new(ctx, &rec.dispatches, |id| &buffers[id.0 as usize])?.run(ctx)?;
            // Staging memory of uploads returns only when what uses it has run.
            ctx.wait()?;
        }
        let squares: Vec<f32> = ctx.read(&buffers[3], 0, rows * k)?;
        let indices: Vec<u32> = ctx.read(&buffers[4], 0, rows * k)?;
        let rows = indices.chunks_exact(k).zip(squares.chunks_exact(k));
        out.extend(rows.map(|(i, d)| i.iter().copied().zip(d.iter().map(|d| d.sqrt())).collect::<Vec<_>>()));
    }
    Ok(out)
}
