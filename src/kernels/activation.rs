//! ReLU, ELU (α = 1), sigmoid and step, elementwise.

use super::check::{Case, DTYPES, Outcome, Trial, allowed, as_stored, compare, numbers};
use super::elementwise::VECTORS_PER_GROUP;
use super::rows::{Pretend, alike, bound_at_once, elem, element_parts, expect, stored, vector_width};
use super::{Const, specialise};
use crate::error::Result;
use crate::gpu::{Context, Dispatch, Dtype, Recorder, View};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// max(0, x).
    Relu,
    /// x for x > 0, exp(x) - 1 otherwise (Clevert et al., 2016, α = 1).
    Elu,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// 1 for x > 0, else 0; its slope is 0.
    Step,
}

/// Records `entry` over aligned parts of tensors of the same length.
fn record(rec: &mut Recorder<'_>, function: Function, entry: &'static str, inputs: &[View], out: View) {
    let n = out.elements();
    let width = vector_width(n);
    let source = specialise("activation", &[("FUNCTION", Const::U32(function as usize)), elem(width), stored(width, out.dtype)], &[]);
    for (first, count) in element_parts(rec.caps, n, out.dtype) {
        let d = inputs.iter().fold(Dispatch::new("activation", entry, source.clone()), |d, v| d.bind(v.slice(first, count)));
        let d = d.bind(out.slice(first, count)).param("n", count / width);
        rec.push(d.items(count / width, VECTORS_PER_GROUP).flops((inputs.len() * count) as u64));
    }
}

/// `output = f(input)`, elementwise; the two views have the same length, are stored alike and may not overlap. NaN stays NaN, but for its step, which is 0.
///
/// # Errors
/// [`crate::error::Error::Shape`] when lengths or types differ or a length is zero.
pub fn forward(rec: &mut Recorder<'_>, function: Function, input: View, output: View) -> Result<()> {
    let n = output.elements();
    expect("activation", &[("output", output, n), ("input", input, n)])?;
    alike("activation", &[("output", output), ("input", input)])?;
    record(rec, function, "forward", &[input], output);
    Ok(())
}

/// `d_input = d_output · f′`, from the forward *output*.
///
/// # Errors
/// As [`forward`].
pub fn backward(rec: &mut Recorder<'_>, function: Function, output: View, d_output: View, d_input: View) -> Result<()> {
    let n = output.elements();
    expect("activation", &[("output", output, n), ("d_output", d_output, n), ("d_input", d_input, n)])?;
    alike("activation", &[("output", output), ("d_output", d_output), ("d_input", d_input)])?;
    record(rec, function, "backward", &[output, d_output], d_input);
    Ok(())
}

/// f in f64.
pub fn reference_value(function: Function, x: f64) -> f64 {
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
        Function::Step => f64::from(x > 0.0),
    }
}

/// f′ in f64.
pub fn reference_slope(function: Function, x: f64) -> f64 {
    let y = reference_value(function, x);
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
        Function::Step => 0.0,
    }
}

fn check_forward(ctx: &Context, function: Function, x: &[f32], limit: u64, dtype: Dtype) -> Result<Outcome> {
    let x = as_stored(x, dtype);
    let mut t = Trial::new(ctx);
    let (input, output) = (t.tensor(&x, dtype)?, t.empty(x.len(), dtype)?);
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| forward(rec, function, input, output)))?;
    let want: Vec<f64> = x.iter().map(|&v| reference_value(function, f64::from(v))).collect();
    // exp on the device is good to a few units in the last place.
    compare(&t.values(output)?, &want, allowed(2e-6, dtype))
}

fn check_backward(ctx: &Context, function: Function, n: usize, limit: u64, dtype: Dtype) -> Result<Outcome> {
    let (x, r) = (numbers(2, n, 3.0), as_stored(&numbers(3, n, 1.0), dtype));
    let y: Vec<f32> = x.iter().map(|&v| reference_value(function, f64::from(v)) as f32).collect();
    let mut t = Trial::new(ctx);
    let (output, d_output, d_input) = (t.tensor(&y, dtype)?, t.tensor(&r, dtype)?, t.empty(n, dtype)?);
    t.run(|rec| Pretend::limit(ctx, limit).record(rec, |rec| backward(rec, function, output, d_output, d_input)))?;
    let want: Vec<f64> = x.iter().zip(&r).map(|(&v, &r)| f64::from(r) * reference_slope(function, f64::from(v))).collect();
    // The slope comes from the stored output.
    compare(&t.values(d_input)?, &want, allowed(allowed(4e-6, dtype), dtype))
}

fn check_nan(ctx: &Context, function: Function) -> Result<Outcome> {
    let mut t = Trial::new(ctx);
    let (input, output) = (t.input(&[1.0, f32::NAN, -1.0, 2.0])?, t.output(4)?);
    t.run(|rec| forward(rec, function, input, output))?;
    let y: Vec<f32> = t.read(output)?;
    let failure = (y.iter().map(|v| v.is_nan()).ne([false, true, false, false])).then(|| format!("{y:?} where only the second is NaN"));
    Ok(Outcome { error: 0.0, tolerance: 0.0, failure })
}

/// Every function, forward and backward, over awkward lengths, in one part and in several.
pub fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for function in [Function::Relu, Function::Elu, Function::Sigmoid, Function::Step] {
        for (n, limit) in
            [(1, u64::MAX), (3, u64::MAX), (4, u64::MAX), (255, u64::MAX), (1024, u64::MAX), (1028, u64::MAX), (4099, 4096), (5000, 4096)]
        {
            let what = format!("{function:?} {n}{}", bound_at_once(limit));
            for dtype in DTYPES {
                let forward = move |ctx: &Context| check_forward(ctx, function, &numbers(1, n, 3.0), limit, dtype);
                out.push(Case::new("activation", "forward", what.clone(), forward).stored(dtype));
                let backward = move |ctx: &Context| check_backward(ctx, function, n, limit, dtype);
                out.push(Case::new("activation", "backward", what.clone(), backward).stored(dtype));
            }
        }
        let extreme = [0.0, -0.0, -100.0, 60.0, 1e-30, -1e-30, 1e-3, -1e-3];
        out.push(Case::new("activation", "forward", format!("{function:?} extreme"), move |ctx| {
            check_forward(ctx, function, &extreme, u64::MAX, Dtype::F32)
        }));
        if function != Function::Step {
            out.push(Case::new("activation", "forward", format!("{function:?} NaN"), move |ctx| check_nan(ctx, function)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference::{assert_gradient, dot, numbers};
    use super::*;

    #[test]
    fn the_reference_slope_is_the_derivative_of_the_reference() {
        for function in [Function::Relu, Function::Elu, Function::Sigmoid] {
            let (x, r) = (numbers(1, 40, 3.0), numbers(2, 40, 1.0));
            let d: Vec<f64> = x.iter().zip(&r).map(|(&x, r)| r * reference_slope(function, x)).collect();
            assert_gradient(&format!("{function:?}"), &x, &d, |x| {
                dot(&x.iter().map(|&x| reference_value(function, x)).collect::<Vec<_>>(), &r)
            });
        }
    }
}
