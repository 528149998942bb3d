//! Convolutions and transposed convolutions, checked at single elements.

use rayon::prelude::*;

use super::op::{Content, Operand, Outputs, Problem, judge};
use super::pick::{elements, unflatten};
use super::result::Check;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Dtype, Recorder, View};
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

/// The element of a convolution's result at (n, d, h, w, o).
fn forward_at(g: &Geom, sources: &[Source], x: &[&Content], w: &Content, bias: Option<&Content>, [n, d, h, wd, o]: [usize; 5]) -> f64 {
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
            sum += (0..s.channels).map(|c| x.at(voxel * s.channels + c) * w.at(k + c)).sum::<f64>();
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
fn weight_grad_at(g: &Geom, s: Source, x: &Content, d_y: &Content, [tap, q, c]: [usize; 3]) -> f64 {
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
                    sum += x.at(from * s.channels + c) * d_y.at(to * g.out_channels + q);
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
    let Some(&source) = sources.first() else { return Err(Error::shape("conv3d", "no source is given")) };
    let sources = if pass == Pass::InputGrad { vec![source] } else { sources.to_vec() };
    let voxels = |grid: [usize; 3]| g.batch * grid.iter().product::<usize>();
    let (xs, ys) = (voxels(g.input), voxels(g.output()) * g.out_channels);
    // Weights as small as a trained network's keep sums of thousands of products near 1.
    let scale = (3.0 / (g.taps() * g.in_channels) as f32).sqrt();
    let weight = || Operand::input("weight", g.weight_len(), Dtype::F32, Content::random(2, g.weight_len(), scale));
    let d_y = || Operand::input("d_y", ys, dtype, Content::random(3, ys, 1.0));
    let inputs =
        sources.iter().zip(10..).map(|(s, seed)| Operand::input("x", xs * s.channels, dtype, Content::random(seed, xs * s.channels, 1.0)));
    let mut operands: Vec<Operand> = Vec::new();
    let n = sources.len();
    match pass {
        Pass::Forward => {
            operands.extend(inputs);
            operands.push(weight());
            if bias {
                operands.push(Operand::input("bias", g.out_channels, Dtype::F32, Content::random(4, g.out_channels, 1.0)));
            }
            operands.push(Operand::output("y", ys, dtype));
        }
        Pass::InputGrad => operands.extend([d_y(), weight(), Operand::output("d_x", xs * source.channels, dtype)]),
        Pass::WeightGrad => {
            operands.extend(inputs);
            operands.push(d_y());
            operands.push(Operand::output("d_weight", g.weight_len(), Dtype::F32));
        }
    }
    let ci: usize = if pass == Pass::InputGrad { source.channels } else { sources.iter().map(|s| s.channels).sum() };
    let [d, h, w] = g.input;
    let shape = format!("{},{ci},{},{d},{h},{w}", g.batch, g.out_channels) + &particulars(&g, ([3; 3], [1; 3], [1; 3]));
    let flops = g.batch as u64 * g.flops_per_sample(ci);
    let recorded = sources.clone();
    let record = move |rec: &mut Recorder<'_>, name: &str, v: &[View]| {
        let variant = variant(name)?;
        match pass {
            Pass::Forward => recorded.iter().enumerate().try_for_each(|(i, &s)| {
                let b = (bias && i == 0).then(|| v[n + 1]);
                {
                    let output = Output { bias: b, ..Output::plain(v[n + 1 + usize::from(bias)]) };
                    conv3d::forward_with(rec, variant, &g, Input::plain(s, v[i]), v[n], &output, i > 0)
                }
            }),
            Pass::InputGrad => conv3d::backward_input_with(rec, variant, &g, source, v[0], v[1], None, v[2]),
            Pass::WeightGrad => recorded
                .iter()
                .enumerate()
                .try_for_each(|(i, &s)| conv3d::backward_weight_with(rec, variant, &g, Input::plain(s, v[i]), v[n], v[n + 1])),
        }
    };
    let check = move |o: &[Operand], out: &Outputs| {
        let terms = terms(&g, pass);
        match pass {
            Pass::Forward => {
                let [od, oh, ow] = g.output();
                let x: Vec<&Content> = o[..n].iter().map(|o| &o.content).collect();
                let b = bias.then(|| &o[n + 1].content);
                let at = n + 1 + usize::from(bias);
                sampled("y", out, at, [g.batch, od, oh, ow, g.out_channels], terms, dtype, |p| {
                    forward_at(&g, &sources, &x, &o[n].content, b, p)
                })
            }
            Pass::InputGrad => {
                let shape = [g.batch, g.input[0], g.input[1], g.input[2], source.channels];
                sampled("d_x", out, 2, shape, terms, dtype, |p| input_grad_at(&g, source, &o[0].content, &o[1].content, None, p))
            }
            Pass::WeightGrad => {
                sampled("d_weight", out, n + 1, [g.taps(), g.out_channels, g.in_channels], terms, Dtype::F32, |[tap, q, c]| {
                    let (i, s) =
                        sources.iter().enumerate().find(|(_, s)| (s.first..s.first + s.channels).contains(&c)).unwrap_or((0, &source));
                    weight_grad_at(&g, *s, &o[i].content, &o[n].content, [tap, q, c - s.first])
                })
            }
        }
    };
    let mut p = Problem::new("conv3d", pass.name(), shape, operands, flops, record, check);
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
            Pass::InputGrad => {
                sampled("d_x", out, 2, coarse, terms, dtype, |p| forward_at(&g, &[s], &[&o[0].content], &o[1].content, None, p))
            }
            Pass::WeightGrad => sampled("d_weight", out, 2, [g.taps(), g.out_channels, g.in_channels], terms, Dtype::F32, |p| {
                weight_grad_at(&g, s, &o[0].content, &o[1].content, p)
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
        assert_eq!(p.variants, ["tile", "plain"]);
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
