//! Nearest neighbours by Euclidean distance: tiles of distances, and the nearest k of each row
//! kept on the device from tile to tile, so that no matrix of all pairs ever exists.

mod checks;
mod distance;
mod select;

pub use checks::{cases, reference_nearest};
pub use distance::distances;
pub use select::select;

use crate::error::{Error, Result};
use crate::gpu::{Buffer, BufferId, Caps, Context, Kind, Program, Recorder, View};

/// Most neighbours of a query.
pub const MAX_K: usize = 1024;

/// Rows of queries and of the base that are worked on together.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    rows: usize,
    cols: usize,
}

impl Tiles {
    /// Tiles of at most 64 MiB of distances that fit the adapter.
    ///
    /// A processor selects at a price per tile, so its tiles are wide, and pays for memory when it is first touched;
    /// elsewhere each tile of queries costs a transfer of the whole base, so tiles are high.
    fn new(caps: &Caps, queries: usize, base: usize, width: usize) -> Self {
        let floats = usize::try_from(caps.max_binding / 4).unwrap_or(usize::MAX);
        let features = (floats / width).max(1);
        let widest = if caps.kind == Kind::Cpu { 16_384 } else { 4_096 };
        let cols = base.min(widest).min(features);
        let pairs = if caps.kind == Kind::Cpu && cols == base { 4 << 20 } else { 16 << 20 };
        let work = usize::try_from(caps.max_dispatch_flops() / (3 * cols * width) as u64).unwrap_or(usize::MAX);
        let rows = queries.min(pairs / cols).min(floats / cols).min(features).min(work).min(floats / MAX_K);
        Self { rows: rows.max(1), cols }
    }

    /// Names and elements of the buffers that a search for `k` neighbours works in.
    fn buffers(self, width: usize, k: usize) -> [(&'static str, usize); 5] {
        [
            ("knn.queries", self.rows * width),
            ("knn.base", self.cols * width),
            ("knn.distances", self.rows * self.cols),
            ("knn.best_distance", self.rows * k),
            ("knn.best_index", self.rows * k),
        ]
    }
}

/// Bytes of device memory that [`nearest`] takes for rows of `width`; from a few thousand rows on they no longer
/// depend on the numbers of rows.
pub fn device_bytes(caps: &Caps, queries: usize, base: usize, width: usize, k: usize) -> u64 {
    if queries == 0 || base == 0 || width == 0 || k == 0 {
        return 0;
    }
    let width = width.next_multiple_of(4);
    Tiles::new(caps, queries, base, width).buffers(width, k.min(base)).iter().map(|b| b.1 as u64 * 4).sum()
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
        // Whole blocks first, without an exit, so that the compiler makes vectors of them.
        let bad = |block: &[f32]| block.iter().fold(false, |bad, x| bad | !x.is_finite());
        let block = v.chunks(1024).position(bad).map(|b| 1024 * b);
        if let Some(i) = block.and_then(|b| Some(b + v[b..].iter().position(|x| !x.is_finite())?)) {
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
    let tile = given.unwrap_or_else(|| Tiles::new(ctx.caps(), n, m, padded));
    let sizes = tile.buffers(padded, k);
    let buffers = sizes.iter().map(|&(name, n)| ctx.buffer(name, n as u64 * 4)).collect::<Result<Vec<_>>>()?;
    let view = |i: u32, n: usize| View::whole(BufferId(i), n);
    // One program for each tile of the base; all tiles of queries but a smaller last one share them.
    let program = |rows: usize, c0: usize| -> Result<Program> {
        let cols = tile.cols.min(m - c0);
        let mut rec = Recorder::new(ctx.caps());
        distances(&mut rec, rows, cols, padded, view(0, rows * padded), view(1, cols * padded), view(2, rows * cols))?;
        select(&mut rec, rows, cols, c0, k, view(2, rows * cols), view(3, rows * k), view(4, rows * k))?;
        Program::new(ctx, &rec.dispatches, |id| &buffers[id.0 as usize])
    };
    let firsts: Vec<usize> = (0..m).step_by(tile.cols).collect();
    let (mut programs, mut recorded) = (Vec::new(), 0);
    let mut out = Vec::with_capacity(n);
    for q0 in (0..n).step_by(tile.rows) {
        let rows = tile.rows.min(n - q0);
        if rows != recorded {
            programs = firsts.iter().map(|&c0| program(rows, c0)).collect::<Result<Vec<_>>>()?;
            recorded = rows;
        }
        upload(ctx, &buffers[0], &queries[q0 * width..(q0 + rows) * width], width, padded);
        for (program, &c0) in programs.iter().zip(&firsts) {
            let cols = tile.cols.min(m - c0);
            if q0 == 0 || m > tile.cols {
                upload(ctx, &buffers[1], &base[c0 * width..(c0 + cols) * width], width, padded);
            }
            program.run(ctx)?;
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
