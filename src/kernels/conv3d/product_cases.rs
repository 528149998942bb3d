//! Cases for the variants that few adapters choose by themselves: every tile of the workgroup-memory products, and the
//! twins in plain arithmetic of those on cooperative matrices, with either size of fragments. Any adapter runs them.

use super::cases::{Extras, backward_input_case, backward_weight_case, forward_case, runs_case, sources_of};
use super::{Geom, Pass, Problem, Variant, coop, simt};
use crate::gpu::{Context, Dtype};
use crate::kernels::check::Case;

/// A shape: batch, grid, channels of each source, output channels, kernel, stride, padding.
type Shape = (usize, [usize; 3], &'static [usize], usize, [usize; 3], [usize; 3], [usize; 3]);

/// Two sources, neither of whole lots; a grid that is no multiple of any tile.
const TWO: Shape = (2, [3, 5, 7], &[4, 20], 24, [3; 3], [1; 3], [1; 3]);
/// More than one panel of columns, and rows longer than a tile.
const WIDE: Shape = (1, [2, 3, 18], &[20], 72, [1, 3, 3], [1; 3], [0, 1, 1]);
/// No axis but the first is long enough for a run.
const TALL: Shape = (1, [9, 4, 2], &[16], 40, [3, 1, 3], [1; 3], [1, 0, 1]);
/// Blocks without overlap: a transposed convolution and its gradients; a batch above one.
const BLOCKS: Shape = (2, [4, 6, 8], &[12], 20, [2; 3], [2; 3], [0; 3]);
/// The same with sides that differ.
const BRICKS: Shape = (1, [2, 6, 3], &[4], 12, [2, 3, 1], [2, 3, 1], [0; 3]);
/// A single tap over a grid, and over samples without one.
const POINT: Shape = (2, [3, 1, 5], &[8], 36, [1; 3], [1; 3], [0; 3]);
const SAMPLES: Shape = (5, [1, 1, 1], &[20], 12, [1; 3], [1; 3], [0; 3]);
/// Strides unlike each other, for which the input gradient is no product.
const STRIDES: Shape = (2, [6, 5, 11], &[8], 12, [3; 3], [2, 1, 2], [1; 3]);
/// More than a workgroup's channels on either side.
const DEEP: Shape = (1, [3, 2, 5], &[68], 36, [1, 3, 3], [1; 3], [0, 1, 1]);

struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, shape: Shape, passes: &[Pass], extras: Extras) {
        let (batch, input, counts, co, kernel, stride, padding) = shape;
        let Ok(g) = Geom::new(batch, input, counts.iter().sum(), co, kernel, stride, padding) else { return };
        for &pass in passes {
            let what = format!("{batch}×{input:?} {counts:?}→{co} kernel {kernel:?} stride {stride:?} padding {padding:?}{extras}");
            let s = sources_of(counts);
            let case = match pass {
                Pass::Forward => Case::new("conv3d", "forward", what, move |ctx| forward_case(ctx, &g, &s, extras)),
                Pass::InputGrad => Case::new("conv3d", "backward_input", what, move |ctx| backward_input_case(ctx, &g, &s, extras)),
                Pass::WeightGrad => Case::new("conv3d", "backward_weight", what, move |ctx| backward_weight_case(ctx, &g, &s, extras)),
            };
            self.0.push(case.stored(extras.dtype).within(extras.memory.unwrap_or(32 << 10)));
        }
    }
}

/// Every tile and twin.
pub(super) fn cases() -> Vec<Case> {
    let mut out = Cases(Vec::new());
    let all = [TWO, WIDE, TALL, BLOCKS, BRICKS, POINT, SAMPLES, STRIDES, DEEP];
    let (forward, both, weight) = (&[Pass::Forward][..], &[Pass::Forward, Pass::InputGrad][..], &[Pass::WeightGrad][..]);
    let fused = Extras { bias: true, fused: true, ..Extras::default() };
    let halves = Extras { dtype: Dtype::F16, ..fused };
    for (i, tile) in simt::TILES.into_iter().enumerate() {
        let only = Some(Variant::Simt(tile));
        for shape in [TWO, BLOCKS, TALL] {
            out.add(shape, both, Extras { only, ..fused });
        }
        out.add(TWO, both, Extras { only, ..halves });
        if i == 1 {
            // One tile meets every shape.
            [WIDE, BRICKS, POINT, SAMPLES, DEEP].iter().for_each(|&shape| out.add(shape, both, Extras { only, ..fused }));
            out.add(STRIDES, forward, Extras { only, ..fused });
        }
        if i > 0 {
            // The least memory that an adapter may have; the largest tile does not fit.
            out.add(WIDE, both, Extras { only, memory: Some(16 << 10), ..Extras::default() });
        }
    }
    for extras in [fused, halves] {
        all.iter().for_each(|&shape| out.add(shape, weight, Extras { only: Some(Variant::Simt(simt::WEIGHT)), ..extras }));
    }
    for side in [16, 8] {
        for (i, tile) in coop::TILES.into_iter().enumerate() {
            let only = Some(Variant::Coop(tile.twin(side)));
            for shape in [TWO, TALL] {
                out.add(shape, both, Extras { only, ..halves });
            }
            out.add(BLOCKS, &[Pass::InputGrad], Extras { only, ..halves });
            if i == 1 {
                [WIDE, BRICKS, POINT, SAMPLES, DEEP].iter().for_each(|&shape| out.add(shape, both, Extras { only, ..halves }));
            }
            if i == 5 {
                // What a tile reads at larger strides only fits where it is small.
                [BLOCKS, STRIDES].iter().for_each(|&shape| out.add(shape, forward, Extras { only, ..halves }));
            }
        }
        let only = Some(Variant::Coop(coop::WEIGHT.twin(side)));
        all.iter().for_each(|&shape| out.add(shape, weight, Extras { only, ..halves }));
    }
    for (tile, weight) in
        [(simt::TILES[1], simt::WEIGHT), (simt::TILES[3], simt::WEIGHT)].map(|(a, b)| (Variant::Simt(a), Variant::Simt(b)))
    {
        if let Ok(g) = Geom::new(2, [3, 2, 7], 16, 24, [3; 3], [1; 3], [1; 3]) {
            let what = format!("2×[3, 2, 7] [16]→24 {}", tile.full_name());
            out.0.push(Case::new("conv3d", "runs", what, move |ctx| runs_case(ctx, &g, &[(tile, weight)])).within(32 << 10));
        }
    }
    out.0
}

/// Carries out every tile that an adapter's cooperative matrices are offered for, and says what is wrong with the numbers, if something is:
/// factors are random, so that a product whose operands are turned or swapped is found.
pub(super) fn probe(ctx: &Context) -> Option<String> {
    let Ok(g) = Geom::new(1, [3, 4, 17], 24, 72, [3; 3], [1; 3], [1; 3]) else { return None };
    let sources = sources_of(&[24]);
    let of = |pass| Problem { pass, geom: g, source: g.whole(), input: Dtype::F16, output: Dtype::F16 };
    let extras = |tile| Extras { bias: true, fused: true, dtype: Dtype::F16, only: Some(Variant::Coop(tile)), ..Extras::default() };
    let forward = coop::candidates(ctx.caps(), &of(Pass::Forward)).into_iter().map(|t| (t, forward_case(ctx, &g, &sources, extras(t))));
    let weight =
        coop::candidates(ctx.caps(), &of(Pass::WeightGrad)).into_iter().map(|t| (t, backward_weight_case(ctx, &g, &sources, extras(t))));
    forward.chain(weight).find_map(|(tile, outcome)| match outcome {
        Ok(o) => o.failure.map(|f| format!("{}: {f}", tile.name)),
        Err(e) => Some(format!("{}: {e}", tile.name)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_valid_and_every_tile_is_among_the_cases() {
        let cases = cases();
        assert_eq!(cases.len(), 4 * 8 + 11 + 3 * 2 + 18 + 2 * (6 * 5 + 10 + 2 + 9) + 2);
        let names =
            simt::TILES.map(|t| t.name).into_iter().chain(coop::TILES.map(|t| t.name)).chain([simt::WEIGHT.name, coop::WEIGHT.name]);
        for name in names {
            assert!(cases.iter().any(|c| c.what.contains(name)), "{name}");
        }
    }
}
