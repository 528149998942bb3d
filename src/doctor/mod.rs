//! Whether this machine computes the right numbers.
//!
//! [`run`] holds every kernel variant against its f64 reference and a whole Y-Net against numbers
//! that PyTorch computed: outputs, every gradient and several steps of Adam. Given a pair of
//! files it compares that pair alone. Nothing is printed here: rows go to a callback as they are
//! found, and [`table`] makes text of them.

pub mod parity;
pub mod table;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::gpu::Context;
use crate::interop::tensors::File;
use crate::kernels::check::{Case, all_cases};
use parity::{Network, Source};

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A kernel variant with its f64 reference.
    Kernel,
    /// A tensor of a network with PyTorch's.
    Parity,
}

/// One comparison, or all comparisons of one kernel variant.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// What was compared.
    pub part: Part,
    /// Kernel and variant, or the tensor's name.
    pub name: String,
    /// Cases run, or elements compared.
    pub count: usize,
    /// Error of the case that came closest to its bound or exceeded it most; of a tensor, `‖a - b‖ / ‖b‖`
    /// or what its bound is stated for.
    pub error: f64,
    /// Largest error allowed.
    pub tolerance: f64,
    /// What is wrong, when something is.
    pub failure: Option<String>,
    /// Why the error allowed is not the usual one, when it is not.
    pub note: Option<String>,
}

impl Row {
    /// Whether the comparison holds.
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }
}

/// Everything that was compared.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Summary {
    /// Comparisons in the order in which they were made.
    pub rows: Vec<Row>,
    /// Tensors of the file of expected numbers that stand for nothing that is compared.
    pub ignored: Vec<String>,
}

impl Summary {
    /// Whether something was compared and every comparison holds.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::passed)
    }

    /// Comparisons that do not hold.
    pub fn failures(&self) -> usize {
        self.rows.iter().filter(|r| !r.passed()).count()
    }
}

/// Runs the checks on `ctx`: all of them, or, with `pair` (weights, expected numbers), the comparison of that
/// pair; see [`parity`] for what the files hold. Each row goes to `on_row` as soon as it is known.
///
/// # Errors
/// [`crate::error::Error::Input`] when a file of the pair does not fit, and what the device reports. Wrong numbers are
/// rows, not errors.
pub fn run(ctx: &Context, pair: Option<(&Path, &Path)>, on_row: &mut dyn FnMut(Row)) -> Result<Summary> {
    let mut rows = Vec::new();
    let mut keep = |row: Row| {
        rows.push(row.clone());
        on_row(row);
    };
    let (weights, expected) = match pair {
        Some((w, e)) => (Source::read(w)?, Source::read(e)?),
        None => {
            if let Some(why) = ctx.distrusted() {
                let name = "conv3d on cooperative matrices".to_owned();
                let failure = Some(format!("not used: {why}"));
                keep(Row { part: Part::Kernel, name, count: 1, error: f64::INFINITY, tolerance: 0.0, failure, note: None });
            }
            kernels(ctx, &mut keep)?;
            built_in()?
        }
    };
    let network = Network::of(&weights)?;
    let ignored = parity::compare(ctx, &network, &weights, &expected, &mut keep)?;
    Ok(Summary { rows, ignored })
}

/// The Y-Net of base width 2 that is part of the program.
fn built_in() -> Result<(Source, Source)> {
    let source = |name: &str, bytes: &[u8]| -> Result<Source> {
        let path = PathBuf::from(format!("(built in) {name}"));
        let file = File::parse(bytes).map_err(|what| crate::error::Error::input(&path, what))?;
        Ok(Source { path, tensors: file.tensors })
    };
    Ok((
        source("W.safetensors", include_bytes!("../../tests/reference/ynet_base2/W.safetensors"))?,
        source("E.safetensors", include_bytes!("../../tests/reference/ynet_base2/E.safetensors"))?,
    ))
}

/// Every case of every kernel, one row for each kernel and variant.
fn kernels(ctx: &Context, on_row: &mut dyn FnMut(Row)) -> Result<()> {
    let mut groups: Vec<(String, Vec<Case>)> = Vec::new();
    for case in all_cases() {
        let key = case.name();
        match groups.iter_mut().find(|g| g.0 == key) {
            Some(group) => group.1.push(case),
            None => groups.push((key, vec![case])),
        }
    }
    for (name, cases) in groups {
        on_row(group_row(name, ctx, &cases)?);
    }
    Ok(())
}

/// Runs `cases` and keeps the worst.
fn group_row(name: String, ctx: &Context, cases: &[Case]) -> Result<Row> {
    let mut row = Row { part: Part::Kernel, name, count: 0, error: 0.0, tolerance: 0.0, failure: None, note: None };
    let mut worst = f64::NEG_INFINITY;
    for case in cases {
        if let Some(why) = case.beyond(ctx.caps()) {
            row.note = Some(format!("not run: {why}"));
            continue;
        }
        row.count += 1;
        let (error, tolerance, failure) = match case.run(ctx) {
            Ok(o) => (o.error, o.tolerance, o.failure),
            // A kernel that cannot run is a finding; a device that is gone is an error.
            Err(e) => {
                ctx.check()?;
                (f64::INFINITY, 0.0, Some(e.to_string()))
            }
        };
        let ratio = if error == 0.0 { 0.0 } else { error / tolerance };
        let ratio = if failure.is_some() || ratio.is_nan() { f64::INFINITY } else { ratio };
        if ratio > worst {
            (worst, row.error, row.tolerance) = (ratio, error, tolerance);
            row.failure = failure.map(|f| format!("{}: {f}", case.what));
        }
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_compared_is_no_success_and_one_failure_is_one() {
        let row = |failure| Row { part: Part::Kernel, name: "a".into(), count: 1, error: 0.0, tolerance: 1.0, failure, note: None };
        let mut s = Summary::default();
        assert!(!s.passed());
        s.rows.push(row(None));
        assert!(s.passed());
        s.rows.push(row(Some("wrong".into())));
        assert!(!s.passed() && s.failures() == 1);
    }

    #[test]
    fn the_built_in_pair_is_a_y_net_of_base_two() {
        let (w, e) = built_in().unwrap();
        let n = Network::of(&w).unwrap();
        assert_eq!((n.spec.base, n.classes, n.restores, n.skips), (2, Some(5), true, true));
        assert!(e.tensors.contains_key("adam_losses"));
    }
}
