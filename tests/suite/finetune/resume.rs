//! The same seed gives the same bytes, however often a run was stopped.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use semantic_genesis::train::log;
use serde_json::Value;

use super::{arguments, finetune, finetune_with, folder, program, set, text};
use crate::harness;

/// What must not depend on how often a run was stopped.
const SAME: [&str; 4] = ["checkpoints/last.safetensors", "checkpoints/best.safetensors", "validation.csv", "test.csv"];

/// Settings besides the small ones, under which there is something to stop.
const SETS: [&str; 3] = ["train.max_steps=24", "finetune.windows=4", "finetune.test_flips=true"];

fn assert_same(a: &Path, b: &Path) {
    for name in SAME {
        let (x, y) = (std::fs::read(a.join(name)).unwrap(), std::fs::read(b.join(name)).unwrap());
        assert!(x == y, "{name} differs ({} and {} bytes)", x.len(), y.len());
    }
    let records = |run: &Path| {
        let mut records = log::read(&run.join("metrics.jsonl")).unwrap();
        records.iter_mut().for_each(|r| drop(r.as_object_mut().unwrap().remove("cubes_per_s")));
        records
    };
    assert_eq!(records(a), records(b));
    let summary = |run: &Path| -> Value { serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap() };
    for key in ["validation", "test", "steps", "best_epoch", "labelled"] {
        assert_eq!(summary(a)[key], summary(b)[key], "{key}");
    }
}

/// Steps written so far.
fn steps(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().filter(|l| l.contains("\"kind\":\"step\"")).count()
}

fn start(kind: &str, data: &Path, out: &Path) -> Child {
    let mut args = arguments(kind, data, out, &SETS);
    args.push("--resume".into());
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("semgen"));
    command.args(args).env("SEMGEN_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until so many steps are written; tells whether the process still runs.
fn wait(child: &mut Child, run: &Path, count: usize) -> bool {
    let begun = Instant::now();
    while steps(run) < count {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[cfg(unix)]
#[test]
fn stopped_and_killed_runs_go_on_to_the_same_bytes() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = set(dir.path(), 6, &[50.0, 600.0]);
    let (whole, again, stopped) = (dir.path().join("whole"), dir.path().join("again"), dir.path().join("stopped"));
    finetune("segment", &data, &whole, &SETS);
    finetune("segment", &data, &again, &SETS);
    assert_same(&whole, &again);
    let other = dir.path().join("other");
    finetune_with("segment", &data, &other, &SETS, &["--seed", "4"]);
    let bytes = |run: &Path| std::fs::read(run.join(SAME[0])).unwrap();
    assert!(bytes(&whole) != bytes(&other));

    let mut child = start("segment", &data, &stopped);
    assert!(wait(&mut child, &stopped, 5));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().last().unwrap().contains("--resume"), "{stderr}");
    let mut child = start("segment", &data, &stopped);
    assert!(wait(&mut child, &stopped, 14));
    child.kill().unwrap();
    child.wait().unwrap();
    let output = start("segment", &data, &stopped).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&whole, &stopped);

    // Without --resume it is refused; a finished run is only measured again; other data or settings are no continuation.
    let ask = |more: &[&str]| {
        let args = arguments("segment", &data, &stopped, &[]);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        program().refused(&args)
    };
    assert!(ask(&[]).contains("--resume"));
    assert!(ask(&["--resume", "--set", "finetune.loss=ce"]).contains("`finetune`"));
    assert!(ask(&["--resume", "--weights", text(&whole)]).contains("another --weights"));
    let said = program().json(&["finetune", "segment", "--out", text(&stopped), "--resume"]);
    assert_eq!(said["steps"], 24);
    assert_same(&whole, &stopped);
    // The bound raised, there is more to do.
    let said = program().json(&["finetune", "segment", "--out", text(&stopped), "--resume", "--set", "train.max_steps=26"]);
    assert_eq!(said["steps"], 26);
    let e = program().refused(&["finetune", "classify", "--out", text(&stopped), "--resume"]);
    assert!(e.contains("another task"), "{e}");
    std::fs::copy(dir.path().join("scan0.nii.gz"), dir.path().join("scan1.nii.gz")).unwrap();
    let e = program().refused(&["finetune", "segment", "--out", text(&stopped), "--resume"]);
    assert!(e.contains("other data"), "{e}");
}
