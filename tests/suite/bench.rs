//! The bench: every operation checked and timed on the device, and the program itself on tiny shapes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use semantic_genesis::bench::catalogue::{self, KINDS, Options};
use semantic_genesis::bench::measure::Rules;
use semantic_genesis::bench::op::{Prepared, Problem, bench};
use semantic_genesis::bench::result::Document;
use semantic_genesis::bench::suite::{self, Scale, Which};
use semantic_genesis::gpu::Dtype;
use serde_json::Value;

use crate::{gradients, harness};

/// So little that only the check matters.
fn rules() -> Rules {
    Rules { least: 2, most: 2, ..Rules::within(Duration::from_millis(1)) }
}

/// What is wrong with `problem` by any of its variants.
fn faults(ctx: &semantic_genesis::gpu::Context, problem: &Problem) -> Vec<String> {
    let fault = |variant: &String| {
        let what = format!("{problem:?} {variant}");
        match bench(ctx, problem, variant, &rules(), None) {
            Ok((row, _)) => match (row.failure(), &row.skipped, row.time()) {
                (Some(f), ..) => Some(format!("{what}: {f}")),
                (_, Some(s), _) => Some(format!("{what}: {s}")),
                (.., None) => Some(format!("{what}: no time")),
                (.., Some(t)) if !(t.median > 0.0 && row.check.as_ref().is_some_and(|c| c.elements > 0)) => {
                    Some(format!("{what}: {row:?}"))
                }
                _ => None,
            },
            Err(e) => Some(format!("{what}: {e}")),
        }
    };
    problem.variants.iter().filter_map(fault).collect()
}

#[test]
fn every_operation_agrees_with_its_reference_in_every_pass_and_variant() {
    let Some(ctx) = harness::trusted() else { return };
    let mut wrong = Vec::new();
    for kind in KINDS {
        // Small and odd, and large enough that only a part is compared.
        let shapes: &[Vec<usize>] = &match kind.fields {
            "N,CI,CO,D,H,W" => [vec![2, 8, 12, 4, 3, 5], vec![1, 16, 16, 16, 16, 16]],
            "N,C,D,H,W" => [vec![2, 5, 4, 6, 3], vec![3, 8, 32, 32, 32]],
            "ELEMENTS" => [vec![1003], vec![1 << 18]],
            "ROWS,CLASSES" => [vec![7, 5], vec![5000, 44]],
            "ROWS,COLS,WIDTH" => [vec![9, 33, 7], vec![256, 300, 64]],
            "ROWS,COLS,K" => [vec![9, 33, 7], vec![300, 2048, 200]],
            "ROWS,CI,CO" => [vec![3, 8, 5], vec![64, 256, 44]],
            "N,D,H,W" => [vec![2, 12, 9, 8], vec![1, 32, 32, 16]],
            other => panic!("no shapes for {other}"),
        };
        for pass in kind.passes {
            for shape in shapes {
                let problem = catalogue::problem(ctx.caps(), &kind, pass, shape, &Options::default()).unwrap();
                wrong.extend(faults(ctx, &problem));
                let half = Options { dtype: Dtype::F16, ..Options::default() };
                // Operations on 32-bit values only say so.
                if let Ok(problem) = catalogue::problem(ctx.caps(), &kind, pass, shape, &half) {
                    assert_eq!(problem.row("").dtype, "f16", "{problem:?}");
                    wrong.extend(faults(ctx, &problem).into_iter().map(|f| format!("f16 {f}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} fail:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_operation_of_graphs_has_a_problem_that_holds() {
    let Some(ctx) = harness::trusted() else { return };
    let mut wrong = Vec::new();
    for graph in gradients::graphs() {
        for node in graph.nodes() {
            match catalogue::of_node(ctx.caps(), &graph, node, Dtype::F32) {
                Ok(problem) => wrong.extend(faults(ctx, &problem)),
                Err(e) => wrong.push(format!("{}: {e}", node.label)),
            }
        }
    }
    let scale = Scale { base: 4, batch: 2, cube: [16, 16, 8], fused: true };
    for job in suite::named(ctx.caps(), "ynet3d", scale, &Which::Default, Dtype::F32).unwrap() {
        wrong.extend(faults(ctx, &job.problem(ctx.caps()).unwrap()));
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{} fail:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn each_dispatch_has_a_time_of_its_own() {
    let Some(ctx) = harness::trusted() else { return };
    let kind = catalogue::Kind::find("conv3d").unwrap();
    let problem = catalogue::problem(ctx.caps(), &kind, "weight-grad", &[1, 16, 16, 16, 16, 16], &Options::default()).unwrap();
    let prepared = Prepared::new(ctx, &problem, &problem.variants[0]).unwrap();
    let program = prepared.program();
    let timing = program.time(ctx, 3).unwrap();
    assert!(timing.wall > 0.0);
    let Some(each) = program.run_timed(ctx).unwrap() else {
        assert!(!ctx.caps().timestamps && timing.device.is_none());
        return;
    };
    assert_eq!(each.len(), program.len());
    assert!(each.iter().all(|s| *s >= 0.0 && *s < 60.0) && each.iter().sum::<f64>() > 0.0, "{each:?}");
    let device = timing.device.unwrap();
    assert!(device > 0.0 && device <= timing.wall * 1.05, "{timing:?}");
}

fn semgen(cache: &Path, args: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("semgen")).args(args).env("SEMGEN_CACHE", cache).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn operations_are_timed_written_drawn_and_compared() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b, html) = (at("a.json"), at("b.json"), at("a.html"));
    let common = ["bench", "op", "conv3d", "--shape", "1,8|16,=,4,4,4", "--quick", "--variant", "all"];
    let out = semgen(dir.path(), &[&common[..], &["--json", &a, "--html", &html]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let table = text(&out.stdout);
    assert!(table.contains("weight-grad") && table.contains("GFLOP/s") && table.contains("1,16,16,4,4,4"), "{table}");
    let document = Document::read(Path::new(&a)).unwrap();
    assert!(document.rows.len() >= 12 && document.roof.is_some() && !document.environment.kernels.is_empty());
    for row in &document.rows {
        assert!(row.time().is_some() && row.gflop_s.is_some() && row.roof_percent.is_some() && row.bound.is_some(), "{row:?}");
        assert!(row.check.as_ref().is_some_and(|c| c.failure.is_none() && c.elements > 0), "{row:?}");
    }
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg") && document.rows.iter().all(|r| page.contains(&format!("<td>{}</td>", r.shape))));

    // The result as JSON on the output, and two results side by side.
    let out = semgen(dir.path(), &[&common[..], &["--pass", "forward", "--json"]].concat());
    let value: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stdout)));
    assert_eq!(value["schema"], "semgen-bench-1");
    let mut slower = document.clone();
    for row in &mut slower.rows {
        for t in [&mut row.device_s, &mut row.wall_s].into_iter().flatten() {
            (t.median, t.low, t.high, t.min) = (10.0 * t.median, 10.0 * t.low, 10.0 * t.high, 10.0 * t.min);
        }
    }
    slower.write(Path::new(&b)).unwrap();
    let out = semgen(dir.path(), &["bench", "compare", &a, &b, "--threshold", "50%"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("SLOWER") && text(&out.stderr).contains("is worse than"));
    let out = semgen(dir.path(), &["bench", "compare", &b, &a, "--threshold", "50%", "--json"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["regressed"], false);
    assert!(value["lines"].as_array().unwrap().iter().any(|l| l["verdict"] == "faster"));
    std::fs::write(&b, "nonsense").unwrap();
    for files in [[&a, &b], [&at("absent.json"), &a]] {
        let out = semgen(dir.path(), &["bench", "compare", files[0], files[1]]);
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    }
}

#[test]
fn the_roof_is_measured_once_and_kept() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = semgen(dir.path(), &["bench", "peak", "--quick"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let table = text(&out.stdout);
    assert!(table.contains("multiply-adds, f32") && table.contains("copy GB/s") && table.contains("32.0 KiB"), "{table}");
    assert!(!dir.path().join("roofs").exists(), "a rough roof is not kept");
    let roof = semantic_genesis::bench::peak::Roof::plain(123.0, 45.0);
    assert!(roof.bandwidth(1) > 0.0);
    let out = semgen(dir.path(), &["bench", "peak", "--quick", "--json"]);
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    for field in ["f32_gflop_s", "workgroup_gb_s", "dispatch_s", "submit_s", "upload_gb_s", "readback_gb_s"] {
        assert!(value["roof"][field].as_f64().is_some_and(|v| v > 0.0), "{field}: {value}");
    }
    assert!(value["roof"]["copy"].as_array().is_some_and(|l| l.len() > 4));
}

#[test]
fn a_suite_of_a_network_and_one_of_a_file() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("s.json");
    let args = ["bench", "op", "--suite", "ynet3d", "--base", "2", "--cube", "8,8,8", "--pass", "forward", "--quick", "--time-limit"];
    let out = semgen(dir.path(), &args[..args.len() - 1]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("down_tr64.ops.0.conv1") && text(&out.stderr).contains("1/"), "{}", text(&out.stdout));
    let shapes = dir.path().join("mine.toml");
    std::fs::write(&shapes, "[[shape]]\nop = \"relu\"\nshape = \"1,4,4,4,4\"\nlayer = \"mine\"\n").unwrap();
    let out = semgen(dir.path(), &["bench", "op", "--suite", shapes.to_str().unwrap(), "--quick", "--json", json.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(Document::read(&json).unwrap().rows.iter().map(|r| r.layer.as_str()).collect::<Vec<_>>(), ["mine", "mine"]);
}

#[test]
fn wrong_wishes_are_answered_in_a_sentence() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["op", "conv3"][..], "--shape"),
        (&["op", "conv3", "--shape", "1,2,3,4,5,6"], "did you mean `conv3d`?"),
        (&["op", "conv3d", "--shape", "1,2,3"], "conv3d takes N,CI,CO,D,H,W"),
        (&["op", "conv3d", "--shape", "1,2,3,4,5,6", "--pass", "backward"], "passes"),
        (&["op", "conv3d", "--shape", "1,8,8,4,4,4", "--variant", "tyle", "--quick"], "did you mean `tile`?"),
        (&["op", "conv3d", "--shape", "1,2,3,4,5,6", "--kernel", "0"], "--kernel 0"),
        (&["op", "--suite", "ynet"], "did you mean `ynet3d`?"),
        (&["op", "--suite", "absent.toml"], "absent.toml"),
        (&["op", "relu", "--shape", "1,1,1,1,1", "--time-limit", "0"], "--time-limit"),
        (&["compare", "a.json", "b.json", "--threshold", "x"], "--threshold x"),
    ] {
        let out = semgen(dir.path(), &[&["bench"], args].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
    let out = semgen(dir.path(), &["bench", "op", "--list"]);
    assert!(out.status.success() && KINDS.iter().all(|k| text(&out.stdout).contains(k.name)));
}
