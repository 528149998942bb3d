//! Every kernel variant against its f64 reference, with guard bands.

use semantic_genesis::kernels::check::{Case, all_cases};

use crate::harness;

fn run_all(ctx: &semantic_genesis::gpu::Context) {
    let cases = all_cases();
    assert!(!cases.is_empty(), "no cases");
    let (cases, beyond): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|c| c.beyond(ctx.caps()).is_none());
    if let Some(case) = beyond.first() {
        eprintln!("{} cases such as {case:?} are not run: {}", beyond.len(), case.beyond(ctx.caps()).unwrap_or_default());
    }
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| match case.run(ctx) {
            Ok(outcome) => outcome.failure.map(|f| format!("{case:?}: {f}")),
            Err(e) => Some(format!("{case:?}: {e}")),
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} cases fail:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_variant_agrees_with_its_reference_with_runtime_checks() {
    if let Some(ctx) = harness::checked() {
        run_all(ctx);
    }
}

#[test]
fn every_variant_agrees_with_its_reference_without_runtime_checks() {
    if let Some(ctx) = harness::trusted() {
        run_all(ctx);
    }
}
