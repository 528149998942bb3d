//! The exact Euclidean distance transform on a grid with its own voxel size along every axis.
//!
//! One axis after the other, each by the lower envelope of parabolas (P. F. Felzenszwalb and D. P. Huttenlocher, "Distance transforms of
//! sampled functions", Theory of Computing 8, 2012). The last axis is never written back: its values are asked for line by line, and most
//! are wanted at few voxels only.

use rayon::prelude::*;

/// Squared distances to the nearest site along the two inner axes of a grid `[i][j][k]`; [`Self::at`] adds the outer one.
pub(super) struct Planes {
    squared: Vec<f64>,
    size: [usize; 3],
    step: f64,
}

/// The scratch space of one thread.
#[derive(Default)]
struct Envelope {
    /// Positions of the parabolas that are lowest somewhere, left to right.
    parabolas: Vec<usize>,
    /// From where on each of them is lowest, in the line's unit of length.
    from: Vec<f64>,
    line: Vec<f64>,
}

impl Envelope {
    /// `line[x] = min over q of line[q] + (step · (x − q))²`, in place.
    fn lower(&mut self, line: &mut [f64], step: f64) {
        let Self { parabolas, from, line: f } = self;
        f.clear();
        f.extend_from_slice(line);
        parabolas.clear();
        from.clear();
        for (q, &height) in f.iter().enumerate().filter(|(_, h)| h.is_finite()) {
            let at = step * q as f64;
            let mut start = f64::NEG_INFINITY;
            while let (Some(&p), Some(&begins)) = (parabolas.last(), from.last()) {
                let before = step * p as f64;
                // Where the parabolas of p and q meet.
                start = f64::midpoint(at + before, (height - f[p]) / (at - before));
                if start > begins {
                    break;
                }
                parabolas.pop();
                from.pop();
                start = f64::NEG_INFINITY;
            }
            parabolas.push(q);
            from.push(start);
        }
        if parabolas.is_empty() {
            return;
        }
        let mut k = 0;
        for (x, out) in line.iter_mut().enumerate() {
            let at = step * x as f64;
            while k + 1 < from.len() && from[k + 1] < at {
                k += 1;
            }
            let q = parabolas[k];
            let along = step * x.abs_diff(q) as f64;
            *out = along * along + f[q];
        }
    }
}

impl Planes {
    /// Of the sites in a grid `[i][j][k]` with voxels of `spacing`. Without any site all distances are infinite.
    pub(super) fn new(sites: &[bool], size: [usize; 3], spacing: [f64; 3]) -> Self {
        let [_, nj, nk] = size;
        let mut squared: Vec<f64> = sites.iter().map(|&s| if s { 0.0 } else { f64::INFINITY }).collect();
        squared.par_chunks_mut(nj * nk).for_each_init(
            || (Envelope::default(), vec![0.0; nj]),
            |(envelope, column), plane| {
                plane.chunks_exact_mut(nk).for_each(|row| envelope.lower(row, spacing[2]));
                for k in 0..nk {
                    column.iter_mut().enumerate().for_each(|(j, c)| *c = plane[j * nk + k]);
                    envelope.lower(column, spacing[1]);
                    column.iter().enumerate().for_each(|(j, c)| plane[j * nk + k] = *c);
                }
            },
        );
        Self { squared, size, step: spacing[0] }
    }

    /// Distances at the voxels where `wanted`, in no particular order.
    pub(super) fn at(&self, wanted: &[bool]) -> Vec<f64> {
        let [ni, nj, nk] = self.size;
        let row = |j: usize| {
            let mut found = Vec::new();
            let mut envelope = Envelope::default();
            let mut line = vec![0.0; ni];
            for k in 0..nk {
                let index = |i: usize| (i * nj + j) * nk + k;
                if !(0..ni).any(|i| wanted[index(i)]) {
                    continue;
                }
                line.iter_mut().enumerate().for_each(|(i, l)| *l = self.squared[index(i)]);
                envelope.lower(&mut line, self.step);
                found.extend((0..ni).filter(|&i| wanted[index(i)]).map(|i| line[i].sqrt()));
            }
            found
        };
        (0..nj).into_par_iter().map(row).collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every site tried for every voxel.
    fn slow(sites: &[bool], wanted: &[bool], [ni, nj, nk]: [usize; 3], s: [f64; 3]) -> Vec<f64> {
        let place = |n: usize| [(n / (nj * nk)) as f64 * s[0], (n / nk % nj) as f64 * s[1], (n % nk) as f64 * s[2]];
        let marked = |m: &[bool]| (0..ni * nj * nk).filter(|&n| m[n]).map(place).collect::<Vec<_>>();
        let sites = marked(sites);
        let nearest = |p: [f64; 3]| {
            let squared = |q: &[f64; 3]| (0..3).map(|a| (p[a] - q[a]).powi(2)).sum::<f64>();
            sites.iter().map(squared).fold(f64::INFINITY, f64::min).sqrt()
        };
        marked(wanted).into_iter().map(nearest).collect()
    }

    fn sorted(mut v: Vec<f64>) -> Vec<f64> {
        v.sort_by(f64::total_cmp);
        v
    }

    proptest! {
        #[test]
        fn distances_are_those_to_the_nearest_site(
            size in [1usize..8, 1usize..8, 1usize..8],
            spacing in [0.2f64..4.0, 0.2f64..4.0, 0.2f64..4.0],
            seed in any::<u64>(),
            rarity in 1u64..40,
        ) {
            let n: usize = size.iter().product();
            let mut state = seed | 1;
            let mut draw = |rarity: u64| -> Vec<bool> {
                (0..n).map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) % rarity == 0
                }).collect()
            };
            let (sites, wanted) = (draw(rarity), draw(2));
            let fast = sorted(Planes::new(&sites, size, spacing).at(&wanted));
            let slow = sorted(slow(&sites, &wanted, size, spacing));
            prop_assert_eq!(fast.len(), slow.len());
            for (a, b) in fast.iter().zip(&slow) {
                prop_assert!(a == b || (a - b).abs() < 1e-12 * (1.0 + b), "{} instead of {}", a, b);
            }
        }
    }
}
