//! ReLU, ELU (α = 1) and sigmoid, elementwise.

use super::check::{Case, Trial, compare, numbers};
use super::{Const, specialise};
use crate::gpu::{Dispatch, Recorder, View};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// max(0, x).
    Relu,
    /// x for x > 0, exp(x) - 1 otherwise (Clevert et al., 2016, α = 1).
    Elu,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
}

fn dispatch(function: Function, entry: &'static str) -> Dispatch {
    Dispatch::new("activation", entry, specialise("activation", &[("FUNCTION", Const::U32(function as usize))], &[]))
}

/// `output = f(input)`, elementwise; the two views have the same length and may not overlap.
pub fn forward(rec: &mut Recorder<'_>, function: Function, input: View, output: View) {
    let n = input.elements();
    rec.push(dispatch(function, "forward").bind(input).bind(output).param("n", n).items(n.div_ceil(4), 64).flops(n as u64));
}

/// `d_input = d_output · f′`, from the forward *output*.
pub fn backward(rec: &mut Recorder<'_>, function: Function, output: View, d_output: View, d_input: View) {
    let n = output.elements();
    let d = dispatch(function, "backward").bind(output).bind(d_output).bind(d_input);
    rec.push(d.param("n", n).items(n.div_ceil(4), 64).flops(2 * n as u64));
}

/// f in f64.
fn reference(function: Function, x: f64) -> f64 {
    match function {
        Function::Relu => x.max(0.0),
        Function::Elu => {
            if x > 0.0 {
                x
            } else {
                x.exp() - 1.0
            }
        }
        Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// f′ in f64.
fn reference_slope(function: Function, x: f64) -> f64 {
    let y = reference(function, x);
    match function {
        Function::Relu => f64::from(x > 0.0),
        Function::Elu => {
            if x > 0.0 {
                1.0
            } else {
                y + 1.0
            }
        }
        Function::Sigmoid => y * (1.0 - y),
    }
}

/// Every function, forward and backward, over awkward lengths.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for function in [Function::Relu, Function::Elu, Function::Sigmoid] {
        for n in [1, 3, 255, 256, 257, 4099] {
            out.push(Case::new("activation", "forward", format!("{function:?} {n}"), move |ctx| {
                let x = numbers(1, n, 3.0);
                let mut t = Trial::new(ctx);
                let (input, output) = (t.input(&x)?, t.output(n)?);
                t.run(|rec| {
                    forward(rec, function, input, output);
                    Ok(())
                })?;
                let want: Vec<f64> = x.iter().map(|&v| reference(function, f64::from(v))).collect();
                compare(&t.read(output)?, &want, 2e-6)
            }));
            out.push(Case::new("activation", "backward", format!("{function:?} {n}"), move |ctx| {
                let (x, r) = (numbers(2, n, 3.0), numbers(3, n, 1.0));
                let y: Vec<f32> = x.iter().map(|&v| reference(function, f64::from(v)) as f32).collect();
                let mut t = Trial::new(ctx);
                let (output, d_output, d_input) = (t.input(&y)?, t.input(&r)?, t.output(n)?);
                t.run(|rec| {
                    backward(rec, function, output, d_output, d_input);
                    Ok(())
                })?;
                let want: Vec<f64> = x.iter().zip(&r).map(|(&v, &r)| f64::from(r) * reference_slope(function, f64::from(v))).collect();
                compare(&t.read(d_input)?, &want, 4e-6)
            }));
        }
    }
    out
}
