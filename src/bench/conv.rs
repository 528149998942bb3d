//! Convolutions and transposed convolutions, checked at single elements.

use rayon::prelude::*;

use super::op::{Content, Operand, Outputs, Problem, join, judge};
use super::ops::{loaded, norm_of};
use super::pick::{elements, few, unflatten};
use super::result::Check;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dtype, Recorder, View};
use crate::kernels::batch_norm::{self, NORM, Vectors};
use crate::kernels::conv3d::{self, Geom, Input, Output, Pass, Source, Variant};

/// Multiply-adds that the reference of one check may cost.
const BUDGET: usize = 10_000_000;
/// Rounding of a 16-bit float, relative.
const HALF: f64 = 4.9e-4;

/// Multiply-adds that each element of a result sums.
fn terms(g: &Geom, pass: Pass) -> usize {
    match pass {
        Pass::Forward => g.taps() * g.in_channels,
        Pass::InputGrad => g.taps() * g.out_channels,
        Pass::WeightGrad => g.batch * g.output().iter().product::<usize>(),
    }
}

/// Largest error allowed of sums of `terms` products, relative to their size.
fn tolerance(terms: usize, dtype: Dtype) -> f64 {
    // Rounding errors of a sum walk at random.
    let sum = 2e-6 + 2.5e-7 * (terms as f64).sqrt();
    if dtype == Dtype::F16 { sum + 2.0 * HALF } else { sum }
}

/// A source as the convolution sees it.
#[derive(Clone, Copy)]
struct Seen<'o> {
    x: &'o Content,
    /// Vectors by which it is normalised on its way in.
    norm: Option<&'o Content>,
}

impl Seen<'_> {
    fn at(&self, voxel: usize, c: usize, channels: usize) -> f64 {
        let v = self.x.at(voxel * channels + c);
        self.norm.map_or(v, |norm| loaded(v, norm, c, channels))
    }
}

/// The element of a convolution's result at (n, d, h, w, o).
fn forward_at(g: &Geom, sources: &[Source], x: &[Seen<'_>], w: &Content, bias: Option<&Content>, [n, d, h, wd, o]: [usize; 5]) -> f64 {
    let mut sum = bias.map_or(0.0, |b| b.at(o));
    let at = [d, h, wd];
    for tap in 0..g.taps() {
        let t = unflatten(tap, g.kernel);
        let from: [Option<usize>; 3] =
            std::array::from_fn(|a| (at[a] * g.stride[a] + t[a]).checked_sub(g.padding[a]).filter(|&v| v < g.input[a]));
        let [Some(d), Some(h), Some(wd)] = from else { continue };
        let voxel = ((n * g.input[0] + d) * g.input[1] + h) * g.input[2] + wd;
        for (s, x) in sources.iter().zip(x) {
            let k = (tap * g.out_channels + o) * g.in_channels + s.first;
            sum += (0..s.channels).map(|c| x.at(voxel, c, s.channels) * w.at(k + c)).sum::<f64>();
        }
    }
    sum
}

/// The element of the gradient of `s` at (n, d, h, w, c).
fn input_grad_at(g: &Geom, s: Source, d_y: &Content, w: &Content, bias: Option<&Content>, [n, d, h, wd, c]: [usize; 5]) -> f64 {
    let (o, at) = (g.output(), [d, h, wd]);
    let mut sum = bias.map_or(0.0, |b| b.at(c));
    for tap in 0..g.taps() {
        let t = unflatten(tap, g.kernel);
        let from: [Option<usize>; 3] = std::array::from_fn(|a| {
            let v = (at[a] + g.padding[a]).checked_sub(t[a])?;
            (v % g.stride[a] == 0 && v / g.stride[a] < o[a]).then_some(v / g.stride[a])
        });
        let [Some(d), Some(h), Some(wd)] = from else { continue };
        let voxel = ((n * o[0] + d) * o[1] + h) * o[2] + wd;
        for q in 0..g.out_channels {
            sum += d_y.at(voxel * g.out_channels + q) * w.at((tap * g.out_channels + q) * g.in_channels + s.first + c);
        }
    }
    sum
}

/// The element of the gradient of the weight of `s` at (tap, o, channel of the source).
fn weight_grad_at(g: &Geom, s: Source, x: Seen<'_>, d_y: &Content, [tap, q, c]: [usize; 3]) -> f64 {
    let (o, t) = (g.output(), unflatten(tap, g.kernel));
    let inside = |a: usize, v: usize| (v * g.stride[a] + t[a]).checked_sub(g.padding[a]).filter(|&v| v < g.input[a]);
    let mut sum = 0.0;
    for n in 0..g.batch {
        for d in 0..o[0] {
            let Some(xd) = inside(0, d) else { continue };
            for h in 0..o[1] {
                let Some(xh) = inside(1, h) else { continue };
                for w in 0..o[2] {
                    let Some(xw) = inside(2, w) else { continue };
                    let from = ((n * g.input[0] + xd) * g.input[1] + xh) * g.input[2] + xw;
                    let to = ((n * o[0] + d) * o[1] + h) * o[2] + w;
                    sum += x.at(from, c, s.channels) * d_y.at(to * g.out_channels + q);
                }
            }
        }
    }
    sum
}

/// Compares the picked elements of an output of `shape` with `reference`.
fn sampled<const N: usize>(
    name: &str,
    outputs: &Outputs,
    operand: usize,
    shape: [usize; N],
    terms: usize,
    dtype: Dtype,
    reference: impl Fn([usize; N]) -> f64 + Sync,
) -> Result<Check> {
    let picked = elements(&shape, (BUDGET / terms.max(1)).clamp(48, 8192));
    let want: Vec<f64> = picked.par_iter().map(|&i| reference(unflatten(i, shape))).collect();
    judge(name, &outputs.gather(operand, &picked), &want, tolerance(terms, dtype))
}

fn variant(name: &str) -> Result<Variant> {
    Variant::parse(name).ok_or_else(|| Error::Usage(format!("--variant {name}: there is no such convolution")))
}

/// Names of the implementations of a pass on an adapter, the default first.
fn candidates(caps: &Caps, g: &Geom, pass: Pass, source: Source, dtype: Dtype) -> Vec<String> {
    let problem = conv3d::Problem { pass, geom: *g, source, input: dtype, output: dtype };
    problem.candidates(caps).into_iter().map(|v| v.name().to_owned()).collect()
}

/// Kernel, stride and padding in words where they are not the usual 3×3×3, 1 and 1.
fn particulars(g: &Geom, usual: ([usize; 3], [usize; 3], [usize; 3])) -> String {
    let triple = |v: [usize; 3]| v.map(|x| x.to_string()).join(",");
    let mut out = String::new();
    for (word, value, usual) in [("kernel", g.kernel, usual.0), ("stride", g.stride, usual.1), ("padding", g.padding, usual.2)] {
        if value != usual {
            out += &format!(" {word}={}", triple(value));
        }
    }
    out
}

/// A pass of a convolution of `sources` (ranges of its input channels); the input's gradient is that of the first source.
///
/// Shape: `N,CI,CO,D,H,W` of the input's grid.
///
/// # Errors
/// [`Error::Shape`] when no source is given.
pub fn convolution(caps: &Caps, g: Geom, sources: &[Source], pass: Pass, bias: bool, dtype: Dtype) -> Result<Problem> {
    fused(caps, g, sources, &vec![false; sources.len()], pass, bias, false, dtype)
}

/// As [`convolution`], where sources marked in `norms` are normalised, and their ReLU taken, as they are read, and a
/// forward pass with `statistics` leaves those of its result for the batch norm that follows.
///
/// # Errors
/// As [`convolution`].
pub fn fused(
    caps: &Caps,
    g: Geom,
    sources: &[Source],
    norms: &[bool],
    pass: Pass,
    bias: bool,
    statistics: bool,
    dtype: Dtype,
) -> Result<Problem> {
    let Some(&source) = sources.first() else { return Err(Error::shape("conv3d", "no source is given")) };
    let sources = if pass == Pass::InputGrad { vec![source] } else { sources.to_vec() };
    let voxels = |grid: [usize; 3]| g.batch * grid.iter().product::<usize>();
    let (xs, ys) = (voxels(g.input), voxels(g.output()) * g.out_channels);
    // Weights as small as a trained network's keep sums of thousands of products near 1.
    let scale = (3.0 / (g.taps() * g.in_channels) as f32).sqrt();
    let n = sources.len();
    let mut operands: Vec<Operand> = Vec::new();
    let mut place = |o: Operand| {
        operands.push(o);
        operands.len() - 1
    };
    let mut normed = vec![None; n];
    if pass != Pass::InputGrad {
        for (s, seed) in sources.iter().zip(10..) {
            place(Operand::input("x", xs * s.channels, dtype, Content::random(seed, xs * s.channels, 1.0)));
        }
        for (i, s) in sources.iter().enumerate().filter(|(i, _)| norms.get(*i) == Some(&true)) {
            normed[i] = Some(place(norm_of(s.channels, 20)));
        }
    }
    let d_y = (pass != Pass::Forward).then(|| place(Operand::input("d_y", ys, dtype, Content::random(3, ys, 1.0))));
    let weight = (pass != Pass::WeightGrad)
        .then(|| place(Operand::input("weight", g.weight_len(), Dtype::F32, Content::random(2, g.weight_len(), scale))));
    let co = g.out_channels;
    let vector = |name, seed, low, high| Operand::input(name, co, Dtype::F32, Content::between(seed, co, low, high));
    let bias = (bias && pass == Pass::Forward).then(|| place(vector("bias", 4, -1.0, 1.0)));
    let out = place(match pass {
        Pass::Forward => Operand::output("y", ys, dtype),
        Pass::InputGrad => Operand::output("d_x", xs * source.channels, dtype),
        Pass::WeightGrad => Operand::output("d_weight", g.weight_len(), Dtype::F32),
    });
    // γ, β and the running statistics, then the vectors that normalise.
    let after = (statistics && pass == Pass::Forward).then(|| {
        let first = place(vector("gamma", 5, 0.5, 1.5));
        place(vector("beta", 6, -0.5, 0.5));
        place(Operand::updated("mean", co, Content::between(7, co, -0.5, 0.5)));
        place(Operand::updated("variance", co, Content::between(8, co, 0.5, 1.5)));
        place(Operand::output("norm", NORM * co, Dtype::F32));
        first
    });
    let ci: usize = if pass == Pass::InputGrad { source.channels } else { sources.iter().map(|s| s.channels).sum() };
    let [d, h, w] = g.input;
    let shape = format!("{},{ci},{},{d},{h},{w}", g.batch, g.out_channels) + &particulars(&g, ([3; 3], [1; 3], [1; 3]));
    let flops = g.batch as u64 * g.flops_per_sample(ci);
    let rows = voxels(g.output());
    let norm_geom = batch_norm::Geom { batch: g.batch, spatial: rows / g.batch, channels: co, eps: 1e-5 };
    let loads = normed.iter().any(Option::is_some);
    let (recorded, norms_at) = (sources.clone(), normed.clone());
    let record = move |rec: &mut Recorder<'_>, name: &str, v: &[View]| {
        let variant = variant(name)?;
        let source_at = |i: usize| {
            let s = recorded[i];
            Input { source: s, view: v[i], norm: norms_at[i].map(|k| v[k].slice(0, (NORM - 1) * s.channels)) }
        };
        match (pass, weight, d_y) {
            (Pass::Forward, Some(weight), _) => {
                let last = recorded.len() - 1;
                let count = match after {
                    Some(_) => {
                        let problem = conv3d::Problem { pass, geom: g, source: recorded[last], input: dtype, output: dtype };
                        conv3d::statistics_partials_with(rec.caps, variant, &problem)?
                    }
                    None => 0,
                };
                let partials = after.map(|_| rec.scratch(count * 3 * co));
                for i in 0..recorded.len() {
                    let own =
                        Output { view: v[out], bias: bias.filter(|_| i == 0).map(|b| v[b]), statistics: partials.filter(|_| i == last) };
                    conv3d::forward_with(rec, variant, &g, source_at(i), v[weight], &own, i > 0)?;
                }
                match after.zip(partials) {
                    Some((k, partials)) => {
                        let own = Vectors { gamma: v[k], beta: v[k + 1], running_mean: v[k + 2], running_var: v[k + 3] };
                        batch_norm::finish(rec, &norm_geom, 0.1, partials, count, own, v[k + 4])
                    }
                    None => Ok(()),
                }
            }
            (Pass::InputGrad, Some(weight), Some(d_y)) => {
                conv3d::backward_input_with(rec, variant, &g, source, v[d_y], v[weight], None, v[out])
            }
            (_, _, Some(d_y)) => {
                (0..recorded.len()).try_for_each(|i| conv3d::backward_weight_with(rec, variant, &g, source_at(i), v[d_y], v[out]))
            }
            _ => Ok(()),
        }
    };
    let check = move |o: &[Operand], outputs: &Outputs| {
        let terms = terms(&g, pass);
        let content = |k: Option<usize>| k.map_or(&Content::Output, |k| &o[k].content);
        let seen: Vec<Seen<'_>> = match pass {
            Pass::InputGrad => Vec::new(),
            _ => (0..n).map(|i| Seen { x: &o[i].content, norm: normed[i].map(|k| &o[k].content) }).collect(),
        };
        match pass {
            Pass::Forward => {
                let [od, oh, ow] = g.output();
                let b = bias.map(|b| &o[b].content);
                let at = |p| forward_at(&g, &sources, &seen, content(weight), b, p);
                let first = sampled("y", outputs, out, [g.batch, od, oh, ow, co], terms, dtype, at)?;
                let Some(k) = after else { return Ok(first) };
                // The statistics are those of the result, of which the elements were compared.
                let few = few(co, (1 << 21) / rows.max(1) + 1);
                let all: Vec<usize> = (0..rows).flat_map(|r| few.iter().map(move |c| r * co + c)).collect();
                let y: Vec<f64> = outputs.gather(out, &all).iter().map(|&v| f64::from(v)).collect();
                let (mean, var) = batch_norm::reference_statistics(&y, few.len());
                let inverse: Vec<f64> = var.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect();
                let got = |column: usize| outputs.gather(k + 4, &few.iter().map(|c| column * co + c).collect::<Vec<_>>());
                // Means near zero are judged beside the spread of what they are means of.
                let spread: Vec<f64> = var.iter().map(|v| v.sqrt()).collect();
                let shifted = |v: f64, s: f64| v + 3.0 * s;
                let t = 2e-5 + if dtype == Dtype::F16 { 2.0 * HALF } else { 0.0 };
                let means: Vec<f32> = got(0).iter().zip(&spread).map(|(&m, &s)| shifted(f64::from(m), s) as f32).collect();
                let wanted: Vec<f64> = mean.iter().zip(&spread).map(|(&m, &s)| shifted(m, s)).collect();
                Ok(join([first, judge("mean", &means, &wanted, t)?, judge("1/σ", &got(3), &inverse, t)?]))
            }
            Pass::InputGrad => {
                let shape = [g.batch, g.input[0], g.input[1], g.input[2], source.channels];
                sampled("d_x", outputs, out, shape, terms, dtype, |p| input_grad_at(&g, source, content(d_y), content(weight), None, p))
            }
            Pass::WeightGrad => sampled("d_weight", outputs, out, [g.taps(), co, g.in_channels], terms, Dtype::F32, |[tap, q, c]| {
                let (i, s) = sources.iter().enumerate().find(|(_, s)| (s.first..s.first + s.channels).contains(&c)).unwrap_or((0, &source));
                weight_grad_at(&g, *s, seen[i], content(d_y), [tap, q, c - s.first])
            }),
        }
    };
    let op = match (loads, after.is_some()) {
        (false, false) => "conv3d",
        (false, true) => "conv3d_statistics",
        (true, false) => "conv3d_load",
        (true, true) => "conv3d_load_statistics",
    };
    let mut p = Problem::new(op, pass.name(), shape, operands, flops, record, check);
    p.variants = candidates(caps, &g, pass, source, dtype);
    Ok(p)
}

/// A pass of a transposed convolution, the adjoint of `g` seen as a layer from `g.out_channels` to `g.in_channels`.
///
/// Shape: `N,CI,CO,D,H,W` of the layer's input, the grid that is refined.
///
/// # Errors
/// [`Error::Shape`] where the convolution's geometry is refused.
pub fn transposed(caps: &Caps, g: Geom, pass: Pass, bias: bool, dtype: Dtype) -> Result<Problem> {
    let s = g.whole();
    let coarse = g.batch * g.output().iter().product::<usize>() * g.out_channels;
    let fine = g.batch * g.input.iter().product::<usize>() * g.in_channels;
    let scale = (3.0 / g.out_channels as f32).sqrt();
    let weight = || Operand::input("weight", g.weight_len(), Dtype::F32, Content::random(2, g.weight_len(), scale));
    let x = || Operand::input("x", coarse, dtype, Content::random(1, coarse, 1.0));
    let d_y = || Operand::input("d_y", fine, dtype, Content::random(3, fine, 1.0));
    let mut operands = match pass {
        Pass::Forward => vec![x(), weight()],
        Pass::InputGrad => vec![d_y(), weight(), Operand::output("d_x", coarse, dtype)],
        Pass::WeightGrad => vec![d_y(), x(), Operand::output("d_weight", g.weight_len(), Dtype::F32)],
    };
    if pass == Pass::Forward {
        if bias {
            operands.push(Operand::input("bias", g.in_channels, Dtype::F32, Content::random(4, g.in_channels, 1.0)));
        }
        operands.push(Operand::output("y", fine, dtype));
    }
    let [d, h, w] = g.output();
    let shape = format!("{},{},{},{d},{h},{w}", g.batch, g.out_channels, g.in_channels) + &particulars(&g, ([2; 3], [2; 3], [0; 3]));
    let adjoint = match pass {
        Pass::Forward => Pass::InputGrad,
        Pass::InputGrad => Pass::Forward,
        Pass::WeightGrad => Pass::WeightGrad,
    };
    let record = move |rec: &mut Recorder<'_>, name: &str, v: &[View]| {
        let variant = variant(name)?;
        match pass {
            Pass::Forward => conv3d::backward_input_with(rec, variant, &g, s, v[0], v[1], bias.then(|| v[2]), v[2 + usize::from(bias)]),
            Pass::InputGrad => conv3d::forward_with(rec, variant, &g, Input::plain(s, v[0]), v[1], &Output::plain(v[2]), false),
            Pass::WeightGrad => conv3d::backward_weight_with(rec, variant, &g, Input::plain(s, v[0]), v[1], v[2]),
        }
    };
    let check = move |o: &[Operand], out: &Outputs| {
        let terms = terms(&g, adjoint);
        let fine = [g.batch, g.input[0], g.input[1], g.input[2], g.in_channels];
        let coarse = [g.batch, g.output()[0], g.output()[1], g.output()[2], g.out_channels];
        match pass {
            Pass::Forward => {
                let b = bias.then(|| &o[2].content);
                sampled("y", out, 2 + usize::from(bias), fine, terms, dtype, |p| input_grad_at(&g, s, &o[0].content, &o[1].content, b, p))
            }
            Pass::InputGrad => sampled("d_x", out, 2, coarse, terms, dtype, |p| {
                forward_at(&g, &[s], &[Seen { x: &o[0].content, norm: None }], &o[1].content, None, p)
            }),
            Pass::WeightGrad => sampled("d_weight", out, 2, [g.taps(), g.out_channels, g.in_channels], terms, Dtype::F32, |p| {
                weight_grad_at(&g, s, Seen { x: &o[0].content, norm: None }, &o[1].content, p)
            }),
        }
    };
    let flops = g.batch as u64 * g.flops_per_sample(g.in_channels);
    let mut p = Problem::new("conv_transpose3d", pass.name(), shape, operands, flops, record, check);
    p.variants = candidates(caps, &g, adjoint, s, dtype);
    Ok(p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::conv3d::{reference_backward_input, reference_backward_weight, reference_forward};

    fn shapes() -> [Geom; 4] {
        let g = |batch, input, ci, co, k, s, p| Geom::new(batch, input, ci, co, k, s, p).unwrap();
        [
            g(2, [3, 4, 5], 3, 5, [3; 3], [1; 3], [1; 3]),
            g(1, [6, 5, 7], 4, 8, [3, 2, 3], [2, 1, 2], [1, 0, 1]),
            g(1, [4, 4, 4], 8, 4, [2; 3], [2; 3], [0; 3]),
            g(1, [3, 1, 5], 8, 4, [1; 3], [1; 3], [0; 3]),
        ]
    }

    /// Outputs that the whole references give, in the order of the problem's operands.
    fn exact(p: &Problem, want: Vec<f64>) -> Outputs {
        let at = p.operands.iter().position(|o| o.written).unwrap();
        Outputs::of([(at, want.into_iter().map(|v| (v as f32).to_bits()).collect())])
    }

    fn values(o: &Operand) -> Vec<f64> {
        (0..o.elements).map(|i| o.content.at(i)).collect()
    }

    #[test]
    fn single_elements_agree_with_the_whole_reference_and_changed_ones_do_not() {
        let caps = Caps::minimal();
        for g in shapes() {
            for pass in Pass::ALL {
                let p = convolution(&caps, g, &[g.whole()], pass, true, Dtype::F32).unwrap();
                let t = transposed(&caps, g, pass, true, Dtype::F32).unwrap();
                let (a, b, c) = (values(&p.operands[0]), values(&p.operands[1]), values(&t.operands[0]));
                let want = match pass {
                    Pass::Forward => reference_forward(&g, &a, &b, Some(&values(&p.operands[2]))),
                    Pass::InputGrad => reference_backward_input(&g, &a, &b),
                    Pass::WeightGrad => reference_backward_weight(&g, &a, &b),
                };
                let want_t = match pass {
                    Pass::Forward => {
                        let bias = values(&t.operands[2]);
                        let y = reference_backward_input(&g, &c, &values(&t.operands[1]));
                        y.iter().enumerate().map(|(i, v)| v + bias[i % g.in_channels]).collect()
                    }
                    Pass::InputGrad => reference_forward(&g, &c, &values(&t.operands[1]), None),
                    Pass::WeightGrad => reference_backward_weight(&g, &c, &values(&t.operands[1])),
                };
                for (p, mut want) in [(p, want), (t, want_t)] {
                    let check = p.check(&exact(&p, want.clone())).unwrap();
                    assert!(check.failure.is_none() && check.elements == want.len(), "{p:?} {check:?}");
                    let middle = want.len() / 2;
                    want[middle] += 0.01;
                    assert!(p.check(&exact(&p, want.clone())).unwrap().failure.is_some(), "{p:?}");
                    want[middle] = f64::NAN;
                    assert!(p.check(&exact(&p, want)).unwrap().failure.is_some(), "{p:?}");
                }
            }
        }
    }

    #[test]
    fn shapes_and_costs_are_those_of_the_layer() {
        let caps = Caps::minimal();
        let g = Geom::new(2, [8, 6, 4], 16, 32, [3; 3], [1; 3], [1; 3]).unwrap();
        let p = convolution(&caps, g, &[g.whole()], Pass::Forward, false, Dtype::F32).unwrap();
        assert_eq!((p.shape.as_str(), p.flops), ("2,16,32,8,6,4", 2 * 2 * 192 * 27 * 16 * 32));
        assert_eq!(p.bytes(), 4 * (2 * 192 * 48 + 27 * 16 * 32));
        assert!(["tile", "plain"].iter().all(|v| p.variants.iter().any(|found| found == v)), "{:?}", p.variants);
        let g = Geom::new(1, [8, 6, 4], 16, 32, [2; 3], [2; 3], [0; 3]).unwrap();
        let t = transposed(&caps, g, Pass::Forward, false, Dtype::F32).unwrap();
        assert_eq!((t.shape.as_str(), t.flops), ("1,32,16,4,3,2", 2 * 24 * 8 * 16 * 32));
        let p = convolution(&caps, g, &[g.whole()], Pass::Forward, false, Dtype::F32).unwrap();
        assert_eq!(p.shape, "1,16,32,8,6,4 kernel=2,2,2 stride=2,2,2 padding=0,0,0");
    }

    #[test]
    fn two_sources_are_one_convolution() {
        let caps = Caps::minimal();
        let g = Geom::new(1, [3, 4, 5], 12, 8, [3; 3], [1; 3], [1; 3]).unwrap();
        let halves = [Source { first: 0, channels: 8 }, Source { first: 8, channels: 4 }];
        let p = convolution(&caps, g, &halves, Pass::Forward, false, Dtype::F32).unwrap();
        let (a, b) = (values(&p.operands[0]), values(&p.operands[1]));
        let joined: Vec<f64> = a.chunks(8).zip(b.chunks(4)).flat_map(|(a, b)| [a, b].concat()).collect();
        let want = reference_forward(&g, &joined, &values(&p.operands[2]), None);
        assert!(p.check(&exact(&p, want)).unwrap().failure.is_none());
        let d = convolution(&caps, g, &halves, Pass::WeightGrad, false, Dtype::F32).unwrap();
        let want = reference_backward_weight(&g, &joined, &values(&d.operands[2]));
        assert!(d.check(&exact(&d, want)).unwrap().failure.is_none());
        let i = convolution(&caps, g, &halves[1..], Pass::InputGrad, false, Dtype::F32).unwrap();
        assert_eq!((i.shape.as_str(), i.operands[2].elements), ("1,4,8,3,4,5", 60 * 4));
    }
}
