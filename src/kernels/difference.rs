//! Finite differences, to hold the f64 references of derivatives against those of values.

/// Asserts that `gradient` is the derivative of `loss` at `x`, by central differences; reports
/// the worst element.
pub(super) fn assert_gradient(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}: as many derivatives as numbers");
    let scale = gradient.iter().fold(1e-3, |m: f64, g| m.max(g.abs()));
    let h = 1e-5;
    let mut worst = (0.0, 0, 0.0);
    let mut at = x.to_vec();
    for i in 0..x.len() {
        at[i] = x[i] + h;
        let up = loss(&at);
        at[i] = x[i] - h;
        let down = loss(&at);
        at[i] = x[i];
        let slope = (up - down) / (2.0 * h);
        let error = (slope - gradient[i]).abs() / scale;
        if error.is_nan() || error > worst.0 {
            worst = (error, i, slope);
        }
    }
    assert!(worst.0 <= 1e-6, "{what}: element {} is {}, differences say {}", worst.1, gradient[worst.1], worst.2);
}

/// The inner product that makes a scalar of a tensor.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Reproducible numbers in f64.
pub(super) fn numbers(seed: u32, n: usize, scale: f32) -> Vec<f64> {
    super::check::numbers(seed, n, scale).into_iter().map(f64::from).collect()
}

#[test]
#[should_panic(expected = "element 1")]
fn a_wrong_derivative_is_found() {
    assert_gradient("square", &[1.0, 2.0], &[2.0, 4.01], |x| x[0] * x[0] + x[1] * x[1]);
}
