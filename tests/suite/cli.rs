//! The program itself: every verb, wrong input, killed and continued runs.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::Volume;
use semantic_genesis::interop::tensors::File;
use semantic_genesis::train::log;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness;

/// Settings with which a whole run takes seconds.
pub(crate) const TINY: &str = "
seed = 3
[cube]
size = [16, 16, 8]
[model]
base_channels = 2
classes = 3
depth = 3
[prepare]
validation_fraction = 0.3
[discover]
neighbours = 3
validation_neighbours = 2
margin = [2, 2, 1]
min_distance = 2
filter = \"none\"
[discover.autoencoder]
input = [16, 16, 8]
base_channels = 2
batch_size = 2
max_steps = 6
[train]
batch_size = 4
micro_batch = 2
max_steps = 14
checkpoint_steps = 2
";

/// What a run leaves that must not depend on how often it was stopped.
const SAME: [&str; 6] = [
    "checkpoints/last.safetensors",
    "checkpoints/best.safetensors",
    "checkpoints/classification.safetensors",
    "discover/autoencoder/last.safetensors",
    "discover/autoencoder/best.safetensors",
    "discover/manifest.json",
];

fn semgen<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("semgen"));
    command.args(args).env("SEMGEN_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

/// Runs to the end; the exit status must be `code`.
fn run(args: &[&str], code: i32) -> Output {
    let output = semgen(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "semgen {}: {stderr}", args.join(" "));
    assert!(!stderr.contains("panicked"), "{stderr}");
    output
}

/// The result that a successful call prints with `--json`.
fn json(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat(), 0);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.lines().all(|l| l.starts_with('{') || l.contains("WARN")), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The sentence with which a call is refused: the only line on the error stream that is the program's complaint, and the last.
fn refused(args: &[&str]) -> String {
    let output = run(args, 2);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("semgen: ").count(), 1, "{stderr}");
    stderr.lines().last().unwrap().strip_prefix("semgen: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn scratch() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tiny.toml"), TINY).unwrap();
    dir
}

/// A folder that tests share; it stays in the build folder until the next time.
fn shared(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("tiny.toml"), TINY).unwrap();
    dir
}

/// A folder of six small synthetic patients with their label maps.
pub(crate) fn scans() -> &'static Path {
    static SCANS: OnceLock<PathBuf> = OnceLock::new();
    SCANS.get_or_init(|| {
        let out = shared("cli-scans").join("scans");
        let args =
            ["phantom", "--out", text(&out), "--count", "6", "--types", "2", "--seed", "5", "--size", "40,32,24", "--spacing", "9,9,12"];
        run(&args, 0);
        out
    })
}

/// A run that nobody disturbed.
fn undisturbed() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = shared("cli-run");
        let output = pretrain(&dir, &[]).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        dir.join("run")
    })
}

/// Starts `pretrain` into `dir/run`.
fn pretrain(dir: &Path, more: &[&str]) -> Child {
    let (config, out) = (dir.join("tiny.toml"), dir.join("run"));
    let args = [&["pretrain", text(scans()), "--config", text(&config), "--out", text(&out)], more].concat();
    semgen(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn assert_same(run: &Path) {
    for name in SAME {
        let (a, b) = (std::fs::read(undisturbed().join(name)).unwrap(), std::fs::read(run.join(name)).unwrap());
        assert!(a == b, "{name} differs ({} and {} bytes)", a.len(), b.len());
    }
    // Records are the same but for speed.
    let records = |run: &Path| {
        let mut records = log::read(&run.join("metrics.jsonl")).unwrap();
        records.iter_mut().for_each(|r| drop(r.as_object_mut().unwrap().remove("cubes_per_s")));
        records
    };
    assert_eq!(records(undisturbed()), records(run));
    assert_eq!(partials(run), Vec::<PathBuf>::new());
}

/// Files under `dir` that were not finished.
fn partials(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(partials(&path));
        } else if text(&path).ends_with(".partial") {
            found.push(path);
        }
    }
    found
}

fn nothing_in(out: &Path) {
    let entries: Vec<_> = std::fs::read_dir(out).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(entries.is_empty(), "{entries:?}");
}

#[test]
fn help_and_version_are_no_errors() {
    for verb in ["devices", "phantom", "prepare", "discover", "pretrain", "plan", "info", "doctor", "demo"] {
        assert!(String::from_utf8(run(&[verb, "--help"], 0).stdout).unwrap().contains("--json"));
        assert!(String::from_utf8(run(&["--help"], 0).stdout).unwrap().contains(verb));
    }
    assert!(String::from_utf8(run(&["--version"], 0).stdout).unwrap().starts_with("semgen "));
}

#[test]
fn wrong_usage_is_one_sentence() {
    let dir = scratch();
    let out = dir.path().join("out");
    let out = text(&out);
    assert!(refused(&["pretrian"]).contains("pretrain"));
    assert!(refused(&["plan", "--frobnicate"]).contains("--frobnicate"));
    assert!(refused(&["prepare", "--out", out]).contains("SCANS"));
    assert!(refused(&["plan", "--set", "train.batchsize=2"]).contains("did you mean `train.batch_size`"));
    assert!(refused(&["plan", "--set", "train.batch_size"]).contains("KEY=VALUE"));
    assert!(refused(&["plan", "--set", "cube.size=[30,30,30]"]).contains("cube.size"));
    assert!(refused(&["plan", "--set", "train.micro_batch=5"]).contains("train.micro_batch"));
    assert!(refused(&["plan", "--adapter", "none", "--set", "train.memory=0.1"]).contains("train.memory"));
    assert!(refused(&["plan", "--config", "/no/such.toml"]).contains("/no/such.toml"));
    let broken = dir.path().join("broken.toml");
    std::fs::write(&broken, "[train\nepochs = 3").unwrap();
    assert!(refused(&["plan", "--config", text(&broken)]).contains("broken.toml: line 1"));
    assert!(refused(&["phantom", "--out", out, "--size", "1,2"]).contains("three numbers"));
    assert!(refused(&["phantom", "--out", out, "--types", "99"]).contains("--types 99"));
    assert!(refused(&["phantom", "--out", out, "--count", "0"]).contains("--count 0"));
    assert!(refused(&["phantom", "--out", text(dir.path())]).contains("not empty"));
    assert!(refused(&["info", "/no/such/file"]).contains("/no/such/file: no such file"));
    assert!(refused(&["info", text(dir.path())]).contains("neither a run"));
    assert!(refused(&["doctor", "--weights", "w"]).contains("--expected"));
    assert!(refused(&["pretrain", "--out", out]).contains("no scans were given"));
    assert!(refused(&["pretrain", text(dir.path())]).contains("--out is missing"));
    assert!(!Path::new(out).exists());
}

/// The bytes of a NIfTI-1 file of zeros with the given `dim` and as many bytes of i16 voxels.
fn header(dim: [i16; 8], bytes: usize) -> Vec<u8> {
    let mut b = vec![0u8; 352 + bytes];
    b[..4].copy_from_slice(&348i32.to_le_bytes());
    for (i, d) in dim.iter().enumerate() {
        b[40 + 2 * i..42 + 2 * i].copy_from_slice(&d.to_le_bytes());
        b[76 + 4 * i..80 + 4 * i].copy_from_slice(&1f32.to_le_bytes());
    }
    b[70..72].copy_from_slice(&4i16.to_le_bytes());
    b[72..74].copy_from_slice(&16i16.to_le_bytes());
    b[108..112].copy_from_slice(&352f32.to_le_bytes());
    b[344..348].copy_from_slice(b"n+1\0");
    b
}

/// Wrong inputs by name: what to give, and a part of the sentence expected besides its name.
fn wrong_inputs(dir: &Path) -> BTreeMap<&'static str, (PathBuf, &'static str)> {
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let folder = |name: &str| {
        let path = dir.join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let masks = folder("masks");
    std::fs::copy(scans().join("patient_0000_labels.nii.gz"), masks.join("a.nii.gz")).unwrap();
    let whole = std::fs::read(scans().join("patient_0000.nii.gz")).unwrap();
    BTreeMap::from([
        ("missing", (dir.join("nowhere"), "no such file or folder")),
        ("empty", (folder("empty"), "empty folder")),
        ("masks", (masks, "label maps")),
        ("truncated", (file("cut.nii.gz", &whole[..whole.len() / 2]), "")),
        ("zeros", (file("zeros.nii", &[0; 4096]), "not a NIfTI file")),
        ("4d", (file("series.nii", &header([4, 8, 8, 8, 3, 1, 1, 1], 8 * 8 * 8 * 3 * 2)), "")),
        ("2d", (file("slice.nii", &header([2, 64, 64, 1, 1, 1, 1, 1], 64 * 64 * 2)), "")),
        ("huge", (file("huge.nii", &header([3, 16384, 8192, 8192, 1, 1, 1, 1], 64)), "")),
    ])
}

#[test]
fn wrong_input_is_named_and_nothing_is_left_of_the_run() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    let config = dir.path().join("tiny.toml");
    let mut failures = Vec::new();
    for (what, (input, part)) in wrong_inputs(dir.path()) {
        for verb in ["prepare", "pretrain"] {
            let out = dir.path().join(format!("{verb}-{what}"));
            let e = refused(&[verb, text(&input), "--config", text(&config), "--out", text(&out)]);
            if !e.contains(input.file_name().unwrap().to_str().unwrap()) || !e.contains(part) {
                failures.push(format!("{verb} {what}: {e}"));
            }
            nothing_in(&out);
            // A folder that was there stays, as it was.
            std::fs::create_dir_all(&out).unwrap();
            refused(&[verb, text(&input), "--config", text(&config), "--out", text(&out)]);
            assert!(out.is_dir());
            nothing_in(&out);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_truncated_scan_among_good_ones_fails_unless_it_may_be_skipped() {
    let dir = scratch();
    let input = dir.path().join("scans");
    std::fs::create_dir(&input).unwrap();
    for i in 0..2 {
        let name = format!("patient_000{i}.nii.gz");
        std::fs::copy(scans().join(&name), input.join(&name)).unwrap();
    }
    let whole = std::fs::read(scans().join("patient_0002.nii.gz")).unwrap();
    std::fs::write(input.join("torn.nii.gz"), &whole[..whole.len() * 2 / 3]).unwrap();
    let out = dir.path().join("store");
    assert!(refused(&["prepare", text(&input), "--out", text(&out)]).contains("torn.nii.gz"));
    nothing_in(&out);
    let found = json(&["prepare", text(&input), "--out", text(&out), "--set", "prepare.keep_going=true"]);
    assert_eq!((found["scans"].as_u64(), found["skipped"].as_array().map(Vec::len)), (Some(2), Some(1)));
}

#[test]
fn voxels_that_are_not_numbers_are_told_and_scans_too_small_are_refused_with_the_key() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    let affine = [[-2.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
    let size = [12, 12, 6];
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    for i in 0..3u8 {
        let mut data: Vec<f32> = (0..size.iter().product()).map(|v: usize| (v as f32 * 1.37 + f32::from(i)) % 900.0 - 1000.5).collect();
        data[7] = f32::NAN;
        nifti::write_f32(&small.join(format!("s{i}.nii")), &Volume::new(data, size, affine).unwrap()).unwrap();
    }
    let out = dir.path().join("store");
    let output = run(&["prepare", text(&small), "--out", text(&out)], 0);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("s0.nii") && stderr.contains("1 "), "{stderr}");

    let (config, out) = (dir.path().join("tiny.toml"), dir.path().join("run"));
    let e = refused(&["pretrain", text(&small), "--config", text(&config), "--out", text(&out)]);
    assert!(e.contains("small") && e.contains("cube.size") && e.contains("prepare.grid"), "{e}");
    nothing_in(&out);
    let one = small.join("s0.nii");
    let e = refused(&["discover", text(&one), "--config", text(&config), "--out", text(&out)]);
    assert!(e.contains("s0.nii") && e.contains("at least 2"), "{e}");
    nothing_in(&out);
}

#[test]
fn phantoms_are_files_that_depend_on_the_seed_alone() {
    let dir = scratch();
    let write = |name: &str, seed: &str| {
        let out = dir.path().join(name);
        let said = json(&["phantom", "--out", text(&out), "--count", "2", "--seed", seed, "--size", "24,20,16", "--spacing", "14,14,18"]);
        assert_eq!(said["patients"], 2);
        let picture = std::fs::read(out.join("phantoms.png")).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        ["patient_0000.nii.gz", "patient_0001_labels.nii.gz", "patients.csv", "phantoms.png"].map(|f| std::fs::read(out.join(f)).unwrap())
    };
    assert!(write("a", "1") == write("b", "1"));
    assert!(write("c", "2") != write("a2", "1"));
}

#[test]
fn devices_and_plans_are_tables_or_json() {
    if harness::trusted().is_none() {
        return;
    }
    let devices = json(&["devices"]);
    let list = devices["adapters"].as_array().unwrap();
    assert_eq!(list.iter().filter(|a| a["chosen"] == true).count(), 1);
    let name = list[0]["caps"]["name"].as_str().unwrap();
    let table = String::from_utf8(run(&["devices", "--adapter", "0"], 0).stdout).unwrap();
    assert!(table.contains(name) && table.contains("named by --adapter 0"), "{table}");
    assert!(refused(&["devices", "--adapter", "no such thing"]).contains(name));

    let dir = scratch();
    let config = dir.path().join("tiny.toml");
    let plan = json(&["plan", "--config", text(&config), "--adapter", "none", "--ops"]);
    let phases = plan["phases"].as_array().unwrap();
    assert_eq!(phases.iter().map(|p| p["phase"].as_str().unwrap()).collect::<Vec<_>>(), ["autoencoder", "classification", "joint"]);
    for p in phases {
        let flops: u64 = p["ops"].as_array().unwrap().iter().map(|o| o["flops"].as_u64().unwrap()).sum();
        let parts = p["batch"].as_u64().unwrap() / p["micro_batch"]["micro_batch"].as_u64().unwrap();
        assert_eq!(Some(flops * parts), p["flops_per_step"].as_u64());
        let parts = p["device_bytes"].as_object().unwrap();
        let sum: u64 = parts.iter().filter(|(k, _)| *k != "total").map(|(_, v)| v.as_u64().unwrap()).sum();
        assert_eq!(Some(sum), parts["total"].as_u64());
    }
    let single = json(&["plan", "--config", text(&config), "--adapter", "none", "--ops", "--unfused"]);
    let names = |plan: &Value| -> Vec<String> {
        plan["phases"][2]["ops"].as_array().unwrap().iter().map(|o| o["op"].as_str().unwrap().to_owned()).collect()
    };
    let (fused, apart) = (names(&plan), names(&single));
    assert!(fused.iter().any(|n| n == "load+conv3d+statistics") && fused.len() < apart.len(), "{fused:?}");
    assert!(apart.iter().all(|n| !n.contains('+')), "{apart:?}");
    assert!(phases[2]["bytes_per_step"].as_u64() < single["phases"][2]["bytes_per_step"].as_u64());
    let shown = String::from_utf8(run(&["plan", "--config", text(&config), "--ops"], 0).stdout).unwrap();
    assert!(shown.contains("down_tr64.ops.0.conv1") && shown.contains("conv3d"), "{shown}");
    assert!(refused(&["plan", "--adapter", "none", "--set", "cube.size=[512,512,512]"]).contains("needs"));
}

#[test]
fn a_whole_run_leaves_everything_it_promises() {
    if harness::trusted().is_none() {
        return;
    }
    let run_dir = undisturbed();
    let files = ["config.toml", "environment.json", "inputs.json", "metrics.jsonl", "summary.json", "report.html"];
    let pictures = ["previews/neighbours.png", "previews/crops.png", "previews/autoencoder.png", "previews/restoration_epoch_1.png"];
    for name in files.iter().chain(&pictures).chain(&SAME) {
        assert!(std::fs::metadata(run_dir.join(name)).is_ok_and(|m| m.len() > 0), "{name}");
    }
    let events = |dir: &Path| std::fs::read_dir(dir).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("tfevents"));
    assert!(events(run_dir) && events(&run_dir.join("discover/autoencoder")));
    let page = std::fs::read_to_string(run_dir.join("report.html")).unwrap();
    assert!(page.contains("Validation accuracy") && page.contains("Autoencoder loss") && !page.contains("Left out"));
    assert_eq!(page.matches("data:image/png").count(), std::fs::read_dir(run_dir.join("previews")).unwrap().count());

    // What the run says about itself.
    let info = |path: &Path| json(&["info", text(path)]);
    let about = info(run_dir);
    assert_eq!((&about["kind"], &about["training"]["done"]), (&Value::from("run"), &Value::from(true)));
    assert_eq!(about["training"]["step"], 14);
    let best = info(&run_dir.join("checkpoints/best.safetensors"));
    assert_eq!((&best["network"], &best["optimiser_state"]), (&Value::from("joint"), &Value::from(false)));
    assert!(best["tensors"].as_array().unwrap().iter().any(|t| t["name"] == "down_tr64.ops.0.conv1.weight"));
    assert_eq!(info(&run_dir.join("discover/manifest.json"))["classes"].as_array().unwrap().len(), 3);
    assert_eq!(info(&run_dir.join("prepared"))["grid"], serde_json::json!([40, 32, 24]));
    assert_eq!(info(&scans().join("patient_0000.nii.gz"))["size"], serde_json::json!([40, 32, 24]));
    run(&["info", text(&run_dir.join("checkpoints/last.safetensors"))], 0);
    assert!(refused(&["info", text(&run_dir.join("report.html"))]).contains("report.html"));

    // A second start is refused, and continuing what is done changes nothing.
    assert!(refused(&["pretrain", text(scans()), "--out", text(run_dir)]).contains("--resume"));
    let before: Vec<_> = SAME.iter().map(|n| std::fs::read(run_dir.join(n)).unwrap()).collect();
    let e = refused(&["pretrain", "--resume", "--out", text(run_dir), "--set", "model.base_channels=4"]);
    assert!(e.contains("`model`"), "{e}");
    let said = json(&["pretrain", "--resume", "--out", text(run_dir)]);
    assert_eq!(said["steps"], 14);
    assert!(before == SAME.iter().map(|n| std::fs::read(run_dir.join(n)).unwrap()).collect::<Vec<_>>());
}

#[test]
fn weights_remember_the_voxel_size_of_the_scans_that_they_learnt_from() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    // A scan of other voxels than those of the run, 9 x 9 x 12 mm, which its settings leave to the data.
    let other = dir.path().join("other");
    let args = ["phantom", "--out", text(&other), "--count", "1", "--size", "60,48,32", "--spacing", "6,6,9"];
    run(&args, 0);
    let scan = other.join("patient_0000.nii.gz");
    let features = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        run(&[&["embed", text(undisturbed()), text(&scan), "--out", text(&out)], more].concat(), 0);
        std::fs::read(out.join("features.npy")).unwrap()
    };
    let found = features("found", &[]);
    assert!(found == features("given", &["--set", "prepare.spacing=[9,9,12]"]));
    assert!(found != features("own", &["--set", "prepare.spacing=[6,6,9]"]));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_does_not() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    assert!(pretrain(dir.path(), &[]).wait().unwrap().success());
    assert_same(&dir.path().join("run"));
    let dir = scratch();
    assert!(pretrain(dir.path(), &["--seed", "4", "--set", "train.max_steps=2"]).wait().unwrap().success());
    let name = "discover/autoencoder/best.safetensors";
    assert!(std::fs::read(undisturbed().join(name)).unwrap() != std::fs::read(dir.path().join("run").join(name)).unwrap());
}

#[test]
fn stages_one_by_one_give_what_the_whole_gives() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    let (config, store, run_dir) = (dir.path().join("tiny.toml"), dir.path().join("store"), dir.path().join("run"));
    let said = json(&["prepare", text(scans()), "--config", text(&config), "--out", text(&store)]);
    assert_eq!((said["scans"].as_u64(), said["label_maps"].as_array().map(Vec::len)), (Some(6), Some(6)));
    assert!(store.join("preview.png").is_file());
    let said = json(&["discover", text(&store), "--config", text(&config), "--out", text(&run_dir)]);
    assert_eq!(said["classes"], 3);
    let manifest = |run: &Path| std::fs::read(run.join("discover/manifest.json")).unwrap();
    assert!(manifest(undisturbed()) == manifest(&run_dir));

    // Settings that cannot be continued with are refused, and not kept.
    let e = refused(&["discover", "--resume", "--out", text(&run_dir), "--set", "discover.autoencoder.base_channels=3"]);
    assert!(e.contains("base_channels"), "{e}");
    let again = dir.path().join("again");
    let said = json(&["discover", text(&run_dir), "--config", text(&config), "--out", text(&again), "--set", "model.classes=2"]);
    assert_eq!(said["classes"], 2);

    // The patterns of a run can be learnt from in place, and elsewhere.
    let elsewhere = dir.path().join("elsewhere");
    let first = json(&["pretrain", text(&run_dir), "--out", text(&elsewhere)]);
    let second = json(&["pretrain", text(&run_dir)]);
    assert_eq!(first["validation_loss"], second["validation_loss"]);
    // What was planned is what was used.
    let plan = json(&["plan", "--config", text(&config)]);
    let planned =
        plan["phases"].as_array().unwrap().iter().skip(1).map(|p| p["device_bytes"]["total"].as_f64().unwrap()).fold(0.0, f64::max);
    let used = first["device_bytes_peak"].as_f64().unwrap();
    assert!((used / planned - 1.0).abs() < 0.02, "{used} bytes were used, {planned} planned");
    let tensors = |run: &Path| File::read(&run.join("checkpoints/last.safetensors")).unwrap().tensors;
    assert!(tensors(&run_dir) == tensors(undisturbed()) && tensors(&elsewhere) == tensors(undisturbed()));
    let other = dir.path().join("other");
    let e = refused(&["pretrain", text(&run_dir), "--out", text(&other), "--set", "discover.neighbours=2"]);
    assert!(e.contains("discover"), "{e}");
}

#[test]
fn every_phase_takes_the_memory_that_was_planned() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    let sets = [
        "model.base_channels=4",
        "cube.size=[32,24,16]",
        "discover.autoencoder.input=[32,32,16]",
        "discover.autoencoder.base_channels=6",
        "discover.autoencoder.max_steps=1",
        "train.max_steps=2",
        "discover.margin=[0,0,0]",
        "discover.look_ahead=[0,0,0]",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    for more in [&["--set", "train.micro_batch=auto"][..], &["--set", "train.recompute=true"]] {
        let (config, out) = (dir.path().join("tiny.toml"), tempfile::tempdir().unwrap());
        let out = out.path().join("run");
        let planned = json(&[&["plan", "--config", text(&config)], &sets[..], more].concat());
        let used = json(&[&["pretrain", text(scans()), "--config", text(&config), "--out", text(&out)], &sets[..], more].concat());
        for phase in planned["phases"].as_array().unwrap() {
            let name = phase["phase"].as_str().unwrap();
            let (plan, use_) = (phase["device_bytes"]["total"].as_f64().unwrap(), used["device_bytes_by_phase"][name].as_f64().unwrap());
            assert!((use_ / plan - 1.0).abs() < 0.05, "{name}: {use_} bytes were used, {plan} planned");
            assert!(plan > 6e6, "{name}: {plan} bytes say nothing");
        }
        let most = planned["phases"].as_array().unwrap().iter().map(|p| p["device_bytes"]["total"].as_f64().unwrap()).fold(0.0, f64::max);
        assert!((used["device_bytes_peak"].as_f64().unwrap() / most - 1.0).abs() < 0.05);
        // What was decided is kept.
        let kept = std::fs::read_to_string(out.join("config.toml")).unwrap();
        assert_eq!(kept.matches("micro_batch = \"auto\"").count(), 0, "{kept}");
        let environment = std::fs::read_to_string(out.join("environment.json")).unwrap();
        assert!(environment.contains("whole batch"), "{environment}");
    }
}

/// Records of `phase` written so far.
fn records(run: &Path, phase: &str) -> usize {
    let file = if phase == "autoencoder" { "discover/autoencoder/metrics.jsonl" } else { "metrics.jsonl" };
    let text = std::fs::read_to_string(run.join(file)).unwrap_or_default();
    text.lines().filter(|l| l.contains("\"step\"") && l.contains(&format!("\"phase\":\"{phase}\""))).count()
}

/// Waits until `reached`, or the process ends.
fn wait_until(child: &mut Child, reached: impl Fn() -> bool) {
    let begun = Instant::now();
    while !reached() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(300), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    if harness::trusted().is_none() {
        return;
    }
    undisturbed();
    let dir = scratch();
    let run_dir = dir.path().join("run");
    // One run that is killed again and again: while scans are prepared, and in every phase.
    let moments: [(&str, &dyn Fn() -> bool); 5] = [
        ("prepare", &|| run_dir.join("prepared/volumes").is_dir()),
        ("autoencoder", &|| records(&run_dir, "autoencoder") >= 3),
        ("classification", &|| records(&run_dir, "classification") >= 1),
        ("classification", &|| records(&run_dir, "classification") >= 5),
        ("joint", &|| records(&run_dir, "joint") >= 3),
    ];
    let mut killed = 0;
    for (phase, reached) in moments {
        let mut child = pretrain(dir.path(), &["--resume"]);
        wait_until(&mut child, reached);
        killed += usize::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.code().is_none_or(|c| c == 0), "{phase}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Preparing is fast, so that one kill may come late.
    assert!(killed >= 4, "only {killed} kills hit");
    let output = pretrain(dir.path(), &["--resume"]).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&run_dir);
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_run_in_order_and_it_can_be_continued() {
    if harness::trusted().is_none() {
        return;
    }
    undisturbed();
    let dir = scratch();
    let run_dir = dir.path().join("run");
    for (signal, phase) in [("-INT", "autoencoder"), ("-TERM", "joint")] {
        let mut child = pretrain(dir.path(), &["--resume"]);
        wait_until(&mut child, || records(&run_dir, phase) >= 2);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("stopped") && stderr.lines().last().unwrap().contains("--resume"), "{stderr}");
        assert_eq!(partials(&run_dir), Vec::<PathBuf>::new());
    }
    assert!(pretrain(dir.path(), &["--resume"]).wait().unwrap().success());
    assert_same(&run_dir);
}

#[test]
fn doctor_compares_a_pair_of_files() {
    if harness::trusted().is_none() {
        return;
    }
    let pair = |name: &str| format!("{}/tests/reference/ynet_base2/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let said = json(&["doctor", "--weights", &pair("W"), "--expected", &pair("E")]);
    assert_eq!(said["passed"], true);
    let missing = refused(&["doctor", "--weights", "/no/W.safetensors", "--expected", &pair("E")]);
    assert!(missing.contains("/no/W.safetensors"), "{missing}");
}

#[test]
fn the_demo_ends_in_a_page() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = scratch();
    let (config, out) = (dir.path().join("tiny.toml"), dir.path().join("demo"));
    let said = json(&["demo", "--out", text(&out), "--config", text(&config), "--set", "train.max_steps=4"]);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(said["report"], text(&out.join("report.html")));
    assert!(page.contains("Neighbours of the same body type") && page.contains("Synthetic patients"));
    assert!(said["neighbours_of_same_type"]["share"].as_f64().is_some());
    assert!(refused(&["demo", "--out", text(&out)]).contains("--resume"));
    assert!(refused(&["demo", "--out", text(dir.path())]).contains("holds no demo"));
}
