//! Published cubes: pretrained on as they are, stopped and continued, and refused where they are something else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::finetune::{Noise, program, text};
use crate::harness;

/// Settings of a run of seconds.
const TINY: &str = "
seed = 3
[cube]
size = [16, 16, 8]
[model]
base_channels = 2
classes = 3
depth = 3
[train]
batch_size = 4
micro_batch = 2
max_steps = 16
checkpoint_steps = 1
";

/// An array of f64 as `numpy.save` writes it.
pub(super) fn npy(path: &Path, shape: &[usize], values: impl IntoIterator<Item = f64>) {
    let list: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let list = if shape.len() == 1 { format!("({},)", shape[0]) } else { format!("({})", list.trim_end_matches(", ")) };
    let mut head = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {list}, }}");
    while !(head.len() + 11).is_multiple_of(64) {
        head.push(' ');
    }
    head.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((head.len() as u16).to_le_bytes());
    bytes.extend(head.as_bytes());
    values.into_iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

/// Cubes of 16 × 16 × 8 voxels with values in [0, 1], which get brighter with their number in `labels`.
fn cubes(path: &Path, labels: &[usize], seed: u64) {
    let mut noise = Noise::new(seed);
    let values: Vec<f64> =
        labels.iter().flat_map(|&l| (0..16 * 16 * 8).map(move |_| l)).map(|l| 0.2 * l as f64 + f64::from(0.3 * noise.next())).collect();
    npy(path, &[labels.len(), 16, 16, 8], values);
}

/// A folder as published: three resolutions to learn from, one to validate on; four labels.
fn published(dir: &Path) -> PathBuf {
    let folder = dir.join("cubes");
    std::fs::create_dir(&folder).unwrap();
    let rows = |each: usize| (0..4 * each).map(|i| i / each).collect::<Vec<_>>();
    for (part, resolutions, each) in [("train", 3, 4), ("val", 1, 2)] {
        for n in 1..=resolutions {
            // The authors' writer loses the last row.
            let mut labels = rows(each);
            labels.pop();
            cubes(&folder.join(format!("{part}_data{n}_vwGen_ex_ref_fold1.0.npy")), &labels, n);
            let path = folder.join(format!("{part}_label{n}_vwGen_ex_ref_fold1.0.npy"));
            npy(&path, &[labels.len(), 1], labels.iter().map(|&l| l as f64));
        }
    }
    std::fs::write(dir.join("tiny.toml"), TINY).unwrap();
    folder
}

fn arguments<'a>(dir: &'a Path, folder: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<String> {
    let config = dir.join("tiny.toml");
    let args = ["pretrain", text(folder), "--out", text(out), "--config", text(&config)];
    args.iter().chain(more).map(|a| (*a).to_owned()).collect()
}

fn pretrain(dir: &Path, folder: &Path, out: &Path, more: &[&str]) -> Value {
    let args = arguments(dir, folder, out, more);
    program().json(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The sentence with which it is refused; nothing is left.
fn refused(dir: &Path, folder: &Path, more: &[&str]) -> String {
    let out = dir.join("refused");
    let args = arguments(dir, folder, &out, more);
    let sentence = program().refused(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!out.exists(), "{sentence}");
    sentence
}

const SAME: [&str; 3] = ["last", "best", "classification"];

fn assert_same(a: &Path, b: &Path) {
    for name in SAME {
        let file = |run: &Path| std::fs::read(run.join(format!("checkpoints/{name}.safetensors"))).unwrap();
        assert!(file(a) == file(b), "{name} differs");
    }
}

#[test]
fn published_cubes_are_learnt_from_to_the_same_bytes_however_often_they_are_stopped() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = published(dir.path());
    let whole = dir.path().join("whole");
    let said = pretrain(dir.path(), &folder, &whole, &[]);
    assert_eq!((said["steps"].as_u64(), said["classes"].as_u64()), (Some(16), Some(3)));
    assert!(said["validation_accuracy"].as_f64().is_some());
    let page = std::fs::read_to_string(whole.join("report.html")).unwrap();
    // Of 3 × 15 and 7 cubes, those of the last label are left out: 3 each of 15, 1 of 7.
    assert!(page.contains("Cubes") && page.contains("36") && page.contains("and 6 to validate on") && !page.contains("Left out"));

    let stopped = dir.path().join("stopped");
    for steps in [4, 11] {
        let args = arguments(dir.path(), &folder, &stopped, &["--resume"]);
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("semgen"));
        command.args(args).env("SEMGEN_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        let written = || {
            let log = std::fs::read_to_string(stopped.join("metrics.jsonl")).unwrap_or_default();
            log.lines().filter(|l| l.contains("\"kind\":\"step\"")).count()
        };
        while written() < steps && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(300), "the run does not get on");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the run was not stopped");
    }
    // Where the cubes are is known; naming them again is allowed, others are not.
    program().json(&["pretrain", "--out", text(&stopped), "--resume"]);
    assert_same(&whole, &stopped);
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        std::fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
    }
    let args = arguments(dir.path(), &other, &stopped, &["--resume"]);
    let e = program().refused(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(e.contains("other scans"), "{e}");
    // A copy gives the same; other cubes under the same name are told apart.
    let copied = dir.path().join("copied");
    pretrain(dir.path(), &other, &copied, &[]);
    assert_same(&whole, &copied);
    let labels: Vec<usize> = (0..15).map(|i| i / 4).collect();
    cubes(&folder.join("train_data2_vwGen_ex_ref_fold1.0.npy"), &labels, 77);
    let e = program().refused(&["pretrain", "--out", text(&stopped), "--resume", "--set", "train.max_steps=18"]);
    assert!(e.contains("other patterns"), "{e}");
}

#[test]
fn cubes_without_labels_teach_restoration_alone() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cubes");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(dir.path().join("tiny.toml"), TINY).unwrap();
    for (name, rows) in
        [("bat_32_s_16x16x8_0.npy", 5), ("bat_32_s_16x16x8_4.npy", 4), ("bat_32_16x16x8_5.npy", 3), ("bat_32_s_16x16x8_9.npy", 2)]
    {
        cubes(&folder.join(name), &vec![1; rows], rows as u64);
    }
    let out = dir.path().join("run");
    let said = pretrain(dir.path(), &folder, &out, &[]);
    assert_eq!((&said["steps"], &said["validation_accuracy"], &said["chance"]), (&Value::from(16), &Value::Null, &Value::Null));
    let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
    assert!(summary.contains("and 3 to validate on") && summary.contains("\"value\": \"9\""), "{summary}");
    assert!(!out.join("checkpoints/classification.safetensors").exists());
    let config = std::fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(config.contains("classification = 0.0") && config.contains("classification_epochs = 0"), "{config}");
}

#[test]
fn folders_of_something_else_are_refused() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = published(dir.path());
    let data = |what: &str| folder.join(format!("{what}_vwGen_ex_ref_fold1.0.npy"));
    let labels: Vec<usize> = (0..15).map(|i| i / 4).collect();
    let good = |path: &Path| std::fs::read(path).unwrap();

    let e = refused(dir.path(), &folder, &["--set", "model.classes=44"]);
    assert!(e.contains("4 pseudo labels") && e.contains("model.classes=4"), "{e}");
    let e = refused(dir.path(), &folder, &["--set", "cube.size=[16,16,16]"]);
    assert!(e.contains("cube.size=[16, 16, 8]"), "{e}");
    let e = program().refused(&["discover", text(&folder), "--out", text(&dir.path().join("refused"))]);
    assert!(e.contains("semgen pretrain"), "{e}");
    let scans = crate::cli::scans();
    let e = program().refused(&["pretrain", text(&folder), text(scans), "--out", text(&dir.path().join("refused"))]);
    assert!(e.contains("only input"), "{e}");

    // One file after the other is spoilt and put back.
    type Spoil<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>, &'a str);
    let spoilt: [Spoil; 10] = [
        ("train_data2", Box::new(|p| npy(p, &[15, 16, 16, 4], vec![0.5; 15 * 1024])), "[16, 16, 4]"),
        ("train_data2", Box::new(|p| npy(p, &[15, 2048], vec![0.5; 15 * 2048])), "[15, 2048]"),
        ("train_data2", Box::new(|p| npy(p, &[15, 16, 16, 8], vec![-500.0; 15 * 2048])), "-500"),
        ("train_data2", Box::new(|p| npy(p, &[15, 16, 16, 8], vec![f64::NAN; 15 * 2048])), "NaN"),
        ("train_data2", Box::new(|p| npy(p, &[15, 16, 16, 8], vec![0.5; 14 * 2048])), "truncated"),
        ("train_data2", Box::new(|p| std::fs::write(p, "no array").unwrap()), "not a .npy"),
        ("train_label2", Box::new(|p| npy(p, &[14, 1], vec![0.0; 14])), "14 labels"),
        ("train_label2", Box::new(|p| npy(p, &[15, 2], vec![0.0; 30])), "[15, 2]"),
        ("train_label2", Box::new(|p| npy(p, &[15, 1], labels.iter().map(|&l| l as f64 + 0.5))), "0.5"),
        ("val_label1", Box::new(|p| npy(p, &[7, 1], vec![-1.0; 7])), "-1"),
    ];
    for (what, spoil, part) in spoilt {
        let path = data(what);
        let before = good(&path);
        spoil(&path);
        let e = refused(dir.path(), &folder, &[]);
        assert!(e.contains(what) && e.contains(part), "{what}: expected `{part}`: {e}");
        std::fs::write(&path, before).unwrap();
    }
    for (what, named, part) in [
        ("train_label3", "train_data3", "train_label3"),
        ("train_data3", "train_label3", "train_data3"),
        ("val_data1", "val_label1", "val_data1"),
    ] {
        let path = data(what);
        let before = good(&path);
        std::fs::remove_file(&path).unwrap();
        let e = refused(dir.path(), &folder, &[]);
        assert!(e.contains(named) && e.contains(part), "{e}");
        std::fs::write(&path, before).unwrap();
    }
    for what in ["val_data1", "val_label1"] {
        std::fs::remove_file(data(what)).unwrap();
    }
    let e = refused(dir.path(), &folder, &[]);
    assert!(e.contains("no cubes to validate on"), "{e}");
    cubes(&folder.join("bat_32_s_16x16x8_5.npy"), &[1; 3], 1);
    let e = refused(dir.path(), &folder, &[]);
    assert!(e.contains("folders of their own"), "{e}");

    // A value that only training meets ends it with a sentence.
    let folder = {
        std::fs::remove_dir_all(&folder).unwrap();
        published(dir.path())
    };
    let path = folder.join("train_data1_vwGen_ex_ref_fold1.0.npy");
    npy(&path, &[15, 16, 16, 8], (0..15 * 2048).map(|i| if i / 2048 == 3 { 7.0 } else { 0.5 }));
    let out = dir.path().join("met");
    let args = arguments(dir.path(), &folder, &out, &["--set", "model.classes=4", "--set", "train.max_steps=40"]);
    let e = program().refused(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(e.contains("cube 3 holds 7"), "{e}");
}
