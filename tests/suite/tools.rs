//! A user's WGSL in place of a kernel, steps, the loader, and PyTorch's side of comparisons.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;

use semantic_genesis::bench::measure::Rules;
use semantic_genesis::bench::result::Document;
use semantic_genesis::bench::wgsl::{self, Sizes, TEMPLATES, Task, Text};
use semantic_genesis::config::Preset;
use semantic_genesis::gpu::Caps;

use crate::harness::{self, Program};

fn sizes<'a>(op: &str) -> Sizes<'a> {
    let shape = match op {
        "conv3d" => "2,3,5,4,6,5",
        "knn_distance" => "7,9,12",
        _ => "2,5,4,6,8",
    };
    Sizes { shape, ..Sizes::default() }
}

fn tasks(caps: &Caps, op: &str) -> Vec<Task> {
    wgsl::tasks(caps, op, &sizes(op)).unwrap()
}

#[test]
fn every_template_keeps_to_its_contract_and_gives_the_references_numbers() {
    let (Some(ours), Some(theirs)) = (harness::trusted(), harness::checked()) else { return };
    for (op, user) in TEMPLATES {
        let mut done = 0;
        for task in tasks(ours.caps(), op) {
            let text = Text::new(Path::new("template.wgsl"), user, &task.constants).unwrap_or_else(|r| panic!("{op}: {r:?}"));
            if !text.does(task.problem.pass) {
                continue;
            }
            done += 1;
            let rows = wgsl::compare(ours, theirs, &task, &text, None, &Rules::quick(), None).unwrap();
            assert_eq!((rows.len(), rows[1].variant.as_str()), (2, "template.wgsl"));
            for row in rows {
                assert!(row.failure().is_none() && row.time().is_some(), "{op}: {row:?}");
            }
        }
        assert!(done >= 1, "{op}");
    }
    // Strided and padded otherwise.
    let odd = Sizes { shape: "1,4,8,6,5,7", kernel: Some([3, 2, 1]), stride: Some([2, 1, 3]), padding: Some([1, 0, 0]) };
    for task in wgsl::tasks(ours.caps(), "conv3d", &odd).unwrap() {
        let text = Text::new(Path::new("t.wgsl"), wgsl::template("conv3d").unwrap(), &task.constants).unwrap();
        let rows = wgsl::compare(ours, theirs, &task, &text, None, &Rules::quick(), None).unwrap();
        assert!(rows[1].failure().is_none(), "{:?}", rows[1]);
    }
    assert!(wgsl::template("nothing").unwrap_err().to_string().contains("conv3d"));
}

#[test]
fn a_wrong_kernel_is_refused_a_number() {
    let (Some(ours), Some(theirs)) = (harness::trusted(), harness::checked()) else { return };
    let good = wgsl::template("conv3d").unwrap();
    for (what, bad) in [
        ("a sum that begins elsewhere", good.replace("var sum = 0.0;", "var sum = 0.01;")),
        ("fewer workgroups than needed", good.replace("div_up(N * OD * OH * OW * CO, 64)", "1")),
        ("the last channel forgotten", good.replace("c < CI", "c + 1u < CI")),
    ] {
        let task = tasks(ours.caps(), "conv3d").remove(0);
        let text = Text::new(Path::new("bad.wgsl"), &bad, &task.constants).unwrap();
        let row = wgsl::compare(ours, theirs, &task, &text, None, &Rules::quick(), None).unwrap().remove(1);
        assert!(row.failure().is_some() && row.time().is_none() && row.gflop_s.is_none(), "{what}: {row:?}");
    }
}

#[test]
fn faults_are_at_the_users_line_and_the_contract_is_kept() {
    let caps = Caps::minimal();
    let task = tasks(&caps, "conv3d").remove(0);
    let good = wgsl::template("conv3d").unwrap();
    let new = |user: &str| Text::new(Path::new("k.wgsl"), user, &task.constants);
    let line = 1 + good.lines().position(|l| l.contains("sum += x[start + c]")).unwrap();
    let refusal = new(&good.replacen("x[start + c] * weight", "x[start + c] * wieght", 1)).unwrap_err();
    let e = refusal.error.to_string();
    assert!(e.starts_with(&format!("k.wgsl: line {line}, column ")) && e.contains("wieght"), "{e}");
    assert!(refusal.report.unwrap().contains(&format!("k.wgsl:{line}:")));
    // The user's own constant of the same name.
    let e = new(&format!("{good}\nconst CI: u32 = 3u;\n")).unwrap_err().error.to_string();
    assert!(e.contains("CI"), "{e}");
    let launches = |user: &str, groups| new(user).unwrap().launches(&task, groups).map(|l| l.0);
    assert_eq!(launches(good, None).unwrap()[0].groups, (2u64 * 4 * 6 * 5 * 5).div_ceil(64));
    assert_eq!(launches(good, Some("N * 7")).unwrap()[0].groups, 14);
    for (what, user, groups) in [
        ("does not say how many workgroups", good.replace("// groups forward:", "// gruops forward:"), None),
        ("declare it var<storage, read>", good.replace("<storage, read> x:", "<storage, read_write> x:"), None),
        ("no entry point `forward`", good.replace("fn forward(", "fn onward(").replace("groups forward:", "groups onward:"), None),
        ("there is no `M`", good.to_owned(), Some("M")),
        ("no workgroup", good.to_owned(), Some("N - N")),
        ("uses binding 7", good.replace("@binding(1) var<storage, read> weight", "@binding(7) var<storage, read> weight"), None),
    ] {
        let e = launches(&user, groups).unwrap_err().to_string();
        assert!(e.contains(what), "{what}: {e}");
    }
    // Stages before the last, and scratch memory.
    let staged = format!(
        "// scratch: N * CI\n// groups forward_first: N\n{good}\n@group(0) @binding(3) var<storage, read_write> scratch: array<f32>;\n\
         @compute @workgroup_size(1) fn forward_first() {{ scratch[0] = x[0]; }}\n"
    );
    let (list, scratch) = new(&staged).unwrap().launches(&task, None).unwrap();
    assert_eq!((list.iter().map(|d| d.entry).collect::<Vec<_>>(), scratch), (vec!["forward_first", "forward"], vec![4 * 2 * 3]));
    assert!(wgsl::contract(&task).join("\n").contains("@binding(2) var<storage, read_write> y"));
}

#[test]
fn the_program_tries_translates_and_explains_a_users_kernel() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (cache, file, out) = (dir.path().join("cache"), dir.path().join("k.wgsl"), dir.path().join("k.spv"));
    let semgen = Program::new(&cache);
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let template = semgen.run(&["bench", "wgsl", "--template", "conv3d"], 0).stdout;
    std::fs::write(file, &template).unwrap();
    let small = ["--op", "conv3d", "--shape", "1,4,8,4,4,4", "--time-limit", "0.1"];
    let with = |more: &[&'static str]| [&["bench", "wgsl", file][..], &small, more].concat();
    let shown = String::from_utf8(semgen.run(&with(&[]), 0).stdout).unwrap();
    assert!(shown.contains("k.wgsl") && shown.contains("weight-grad") && shown.contains("× ours"), "{shown}");
    assert_eq!(semgen.json(&with(&["--pass", "forward"]))["rows"].as_array().unwrap().len(), 2);
    let msl = String::from_utf8(semgen.run(&with(&["--emit", "msl", "--pass", "forward"]), 0).stdout).unwrap();
    assert!(msl.contains("kernel void forward"), "{msl}");
    semgen.run(&[&with(&["--emit", "spirv", "--pass", "forward", "--out"])[..], &[out]].concat(), 0);
    assert_eq!(std::fs::read(out).unwrap()[..4], 0x0723_0203u32.to_le_bytes());
    std::fs::write(file, String::from_utf8(template).unwrap().replacen("var sum = 0.0;", "var sum = 0.0", 1)).unwrap();
    let stderr = String::from_utf8(semgen.run(&with(&[]), 2).stderr).unwrap();
    assert!(stderr.contains("k.wgsl:") && stderr.lines().last().unwrap().contains("line "), "{stderr}");
}

#[test]
fn steps_and_the_loader_are_measured_in_parts() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let semgen = Program::new(&cache);
    for model in ["ynet", "unet", "classifier", "autoencoder"] {
        let args =
            ["bench", "step", "--model", model, "--base", "2", "--cube", "16,16,8", "--batch", "2", "--time-limit", "0.3", "--layers"];
        let step = semgen.json(&args);
        let rows = step["rows"].as_array().unwrap();
        let whole = rows.iter().find(|r| r["op"] == "step" && r["pass"] == "step").unwrap();
        let extra = |name: &str| whole["extra"][name].as_f64().unwrap();
        assert!(extra("samples_per_s") > 0.0 && whole["wall_s"]["median"].as_f64().unwrap() > 0.0);
        // What is planned is what is allocated, within five percent.
        assert!((extra("planned_bytes") / extra("allocated_bytes") - 1.0).abs() < 0.05, "{model}: {whole}");
        for part in ["upload", "forward", "backward", "optimiser", "readback"] {
            assert!(rows.iter().any(|r| r["op"] == "step" && r["pass"] == part), "{model}: {part}");
        }
        let layers: Vec<_> = rows.iter().filter(|r| r["op"] != "step").collect();
        let flops: u64 = layers.iter().map(|r| r["flops"].as_u64().unwrap()).sum();
        assert!(layers.is_empty() || flops == whole["flops"].as_u64().unwrap(), "{model}");
    }
    let loader = semgen.json(&["bench", "loader", "--alone", "--cube", "16,16,8", "--batch", "4", "--time-limit", "0.3"]);
    assert!(loader["rows"][0]["extra"]["cubes_per_s"].as_f64().unwrap() > 0.0);
    assert!(semgen.refused(&["bench", "step", "--cube", "17,16,8"]).contains("multiples of 8"));
    assert!(semgen.refused(&["bench", "step", "--model", "vnet"]).contains("ynet"));
}

/// What the script of PyTorch writes is a result like ours. It is run where `SEMGEN_PYTORCH` names a Python that has it.
#[test]
fn pytorchs_results_are_documents_of_the_bench() {
    let Some(python) = std::env::var_os("SEMGEN_PYTORCH") else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("torch.json");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pytorch.py");
    let words = "conv3d --shape 1,4,4,4,4,4 --limit 0.1 + knn --shape 64,64,16,4 --limit 0.1 + step --base 2 --cube 16,16,8 --limit 0.1";
    let status = std::process::Command::new(python)
        .arg(script)
        .args(["conv3d", "--json"])
        .arg(&file)
        .args(words.split_whitespace().skip(1))
        .status()
        .unwrap();
    assert!(status.success());
    let document = Document::read(&file).unwrap();
    assert_eq!(document.environment.engine, "torch");
    assert_eq!(document.rows.iter().map(|r| r.op.as_str()).collect::<Vec<_>>(), ["conv3d", "conv3d", "conv3d", "knn", "step"]);
    assert!(document.rows.iter().all(|r| r.time().is_some()) && document.rows[4].extra["samples_per_s"] > 0.0);
    let _ = Preset::Paper;
}
