//! `evaluate` and `compare` through the program.

use std::path::Path;

use semantic_genesis::data::nifti::{write_f32, write_u8};
use semantic_genesis::data::volume::{Affine, IDENTITY, Volume};
use serde_json::{Value, json};

use crate::harness::Program;

const SIZE: [usize; 3] = [6, 5, 4];

fn affine() -> Affine {
    let mut a = IDENTITY;
    (a[0][0], a[1][1], a[2][2]) = (-1.0, 2.0, 3.0);
    a
}

/// A map with the label `value` in the box from `low` up to `high`.
fn map(boxes: &[([usize; 3], [usize; 3], f32)]) -> Volume {
    let mut data = vec![0.0; SIZE.iter().product()];
    for (low, high, value) in boxes {
        for i in low[0]..high[0] {
            for j in low[1]..high[1] {
                (low[2]..high[2]).for_each(|k| data[(i * SIZE[1] + j) * SIZE[2] + k] = *value);
            }
        }
    }
    Volume::new(data, SIZE, affine()).unwrap()
}

fn folders(dir: &Path) -> (String, String) {
    let (p, t) = (dir.join("p"), dir.join("t"));
    std::fs::create_dir_all(&p).unwrap();
    std::fs::create_dir_all(&t).unwrap();
    // a: label 1 shifted by a voxel along the first axis, label 2 missed. b: label 1 spurious. c: nothing anywhere.
    let one = |from: usize| ([from, 1, 1], [from + 2, 3, 3], 1.0);
    write_u8(&p.join("a.nii.gz"), &map(&[one(2)])).unwrap();
    write_u8(&t.join("a_labels.nii.gz"), &map(&[one(1), ([4, 0, 0], [5, 1, 1], 2.0)])).unwrap();
    write_u8(&t.join("a.nii.gz"), &map(&[one(3)])).unwrap();
    write_u8(&p.join("b.nii"), &map(&[one(0)])).unwrap();
    write_u8(&t.join("b.nii.gz"), &map(&[])).unwrap();
    write_u8(&p.join("c.nii"), &map(&[])).unwrap();
    write_u8(&t.join("c.nii"), &map(&[])).unwrap();
    (p.to_string_lossy().into_owned(), t.to_string_lossy().into_owned())
}

fn near(found: &Value, expected: f64) {
    assert!((found.as_f64().unwrap() - expected).abs() < 1e-9, "{found} instead of {expected}");
}

#[test]
fn label_maps_are_measured_and_empty_ones_counted() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let (p, t) = folders(dir.path());
    let out = dir.path().join("out");
    let said = program.json(&["evaluate", &p, &t, "--out", out.to_str().unwrap(), "--tolerance", "0.5"]);
    let file: Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(said, file);
    let one = &said["labels"]["1"];
    // Eight voxels each, four shared: Dice 0.5 in a, 0 in b, 1 in c.
    near(&one["dice_case"], 0.5);
    near(&one["dice_pooled"], 2.0 * 4.0 / 24.0);
    near(&one["iou_case"], (4.0 / 12.0 + 0.0 + 1.0) / 3.0);
    near(&one["iou_pooled"], 4.0 / 20.0);
    // Half of the voxels of both surfaces coincide, the others lie 1 mm apart; b has none.
    near(&one["surface_dice"], (0.5 + 0.0 + 1.0) / 3.0);
    near(&one["hd95_mm"], 1.0);
    near(&one["assd_mm"], 0.5);
    // Eight voxels of 6 mm³ too many in b.
    near(&one["volume_error_ml"], 0.048 / 3.0);
    assert_eq!([&one["measured"], &one["missed"], &one["spurious"], &one["absent"]], [1, 0, 1, 1]);
    let two = &said["labels"]["2"];
    assert_eq!((&two["missed"], &two["absent"], &two["hd95_mm"]), (&json!(1), &json!(2), &Value::Null));
    near(&two["volume_error_relative"], -1.0);
    let csv = std::fs::read_to_string(out.join("cases.csv")).unwrap();
    assert_eq!(csv.lines().count(), 7);
    assert!(csv.lines().any(|l| l.starts_with("b,1,1,0,0,") && l.ends_with(",spurious")), "{csv}");
    let shown = String::from_utf8(program.run(&["evaluate", &p, &t], 0).stdout).unwrap();
    assert!(shown.contains("HD95") && shown.contains("0.5000"), "{shown}");
    // One file against one file.
    let single = program.json(&["evaluate", &format!("{p}/a.nii.gz"), &format!("{t}/a_labels.nii.gz")]);
    near(&single["labels"]["1"]["dice_case"], 0.5);
}

#[test]
fn the_truth_may_be_labelled_scans_and_a_recipe_names_the_classes() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let path = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let text = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let block = |from: usize, value: f32| ([from, 0, 0], [from + 1, 5, 4], value);
    // Labels 2 and 3 are one class of the model, 9 is none.
    let truth = map(&[block(0, 2.0), block(1, 3.0), block(2, 5.0), block(3, 9.0)]);
    let predicted = map(&[block(0, 2.0), block(1, 2.0), block(2, 2.0), block(3, 5.0)]);
    std::fs::write(
        path("organs.toml"),
        "[data]\nclasses = [{ name = \"kidneys\", values = [2, 3] }, { name = \"liver\", values = [5] }, { name = \"spleen\", values = [1] }]\n",
    )
    .unwrap();
    let check = |predictions: &str, truth: &str, recipe: Option<&str>, labels: &[(&str, &str, f64)]| {
        let (predictions, truth) = (text(predictions), text(truth));
        let mut args = vec!["evaluate", &predictions, &truth];
        args.extend(recipe.into_iter().flat_map(|r| ["--recipe", r]));
        let said = program.json(&args);
        assert_eq!(said["labels"].as_object().unwrap().len(), labels.len(), "{said}");
        for (label, name, dice) in labels {
            assert_eq!(said["labels"][label]["name"], *name);
            near(&said["labels"][label]["dice_pooled"], *dice);
        }
    };
    // Plain folders; one file against another.
    write_u8(&path("p/one.nii"), &predicted).unwrap();
    write_u8(&path("t/one_mask.nii"), &truth).unwrap();
    let shown = program.run(&["evaluate", &text("p"), &text("t"), "--recipe", &text("organs.toml")], 0).stdout;
    assert!(String::from_utf8(shown).unwrap().contains("kidneys"));
    let pooled = |labels: &Value, l: &str| labels[l]["dice_pooled"].clone();
    let said = program.json(&["evaluate", &text("p/one.nii"), &text("t/one_mask.nii"), "--recipe", &text("organs.toml")]);
    near(&pooled(&said["labels"], "2"), 0.8);
    // The class that neither has is counted: absent, and right.
    assert_eq!((&said["labels"]["1"]["absent"], &said["labels"]["1"]["name"]), (&json!(1), &json!("spleen")));
    near(&said["labels"]["1"]["dice_case"], 1.0);
    // Without a recipe every value is a label.
    assert_eq!(program.json(&["evaluate", &text("p"), &text("t")])["labels"].as_object().unwrap().len(), 4);
    // A table of scans and masks; the prediction is called after the scan.
    write_u8(&path("scans/one.nii"), &truth).unwrap();
    std::fs::write(path("table.csv"), "id,image,mask\nfirst,scans/one.nii,t/one_mask.nii\n").unwrap();
    std::fs::write(path("some.toml"), "[data]\nclasses = [{ name = \"kidneys\", values = [2, 3] }, { name = \"liver\", values = [5] }]\n")
        .unwrap();
    let said = program.json(&["evaluate", &text("p"), &text("table.csv"), "--recipe", &text("some.toml")]);
    near(&pooled(&said["labels"], "2"), 0.8);
    check("p", "table.csv", None, &[("2", "label 2", 0.5), ("3", "label 3", 0.0), ("5", "label 5", 0.0), ("9", "label 9", 0.0)]);
    // LiTS: tumours (2) are liver (1), in a folder of the archive and in one of masks alone.
    let liver = map(&[block(0, 1.0), block(1, 2.0)]);
    for folder in ["lits", "lits-masks"] {
        write_u8(&path(&format!("{folder}/segmentation-7.nii")), &liver).unwrap();
    }
    write_u8(&path("lits/volume-7.nii"), &liver).unwrap();
    write_u8(&path("lits-p/volume-7.nii.gz"), &map(&[block(0, 1.0)])).unwrap();
    check("lits-p", "lits", Some("lits-lcs"), &[("1", "liver", 2.0 / 3.0)]);
    check("lits-p", "lits-masks", None, &[("1", "1", 1.0), ("2", "2", 0.0)]);
    // BraTS: the prediction is called after the FLAIR scan.
    for what in ["flair", "seg"] {
        write_u8(&path(&format!("brats/HGG/B_1/B_1_{what}.nii.gz")), &map(&[block(0, 1.0), block(1, 4.0)])).unwrap();
    }
    write_u8(&path("brats-p/B_1_flair.nii.gz"), &map(&[block(0, 1.0), block(2, 1.0)])).unwrap();
    check("brats-p", "brats", Some("brats-bms"), &[("1", "tumour", 0.5)]);
    // What makes no sense.
    std::fs::write(path("p.csv"), "id,nodule\na,0.5\n").unwrap();
    assert!(program.refused(&["evaluate", &text("p.csv"), &text("t")]).contains("is a table"));
    assert!(program.refused(&["evaluate", &text("p.csv"), &text("p.csv"), "--recipe", "lits-lcs"]).contains("label maps"));
    assert!(program.refused(&["evaluate", &text("p"), &text("lits"), "--recipe", "lits-lcs"]).contains("no truth for the case one"));
}

#[test]
fn probabilities_beside_label_maps_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let (p, t) = (dir.path().join("a.nii"), dir.path().join("truth.nii"));
    let block = |v: f32| map(&[([0, 0, 0], [3, 5, 4], v)]);
    write_u8(&p, &block(1.0)).unwrap();
    write_u8(&t, &block(1.0)).unwrap();
    let beside = dir.path().join("a_probabilities.nii.gz");
    write_f32(&beside, &block(0.72)).unwrap();
    let arguments = ["evaluate", p.to_str().unwrap(), t.to_str().unwrap()];
    let said = program.json(&arguments);
    near(&said["foreground_probabilities"]["iou_pooled"], 1.0);
    // Right at the five thresholds below 0.72; above them no foreground, and half of the background is right.
    near(&said["foreground_probabilities"]["miou_thresholds"], (5.0 + 5.0 * 0.25) / 10.0);
    write_f32(&beside, &block(f32::NAN)).unwrap();
    assert!(program.refused(&arguments).contains("no probability"));
}

#[test]
fn label_maps_that_cannot_be_compared_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let (p, t) = folders(dir.path());
    let refused = |what: &[&str]| {
        let sentence = program.refused(&["evaluate", &p, &t]);
        what.iter().for_each(|w| assert!(sentence.contains(w), "{sentence} lacks {w}"));
    };
    let extra = Path::new(&t).join("d.nii");
    write_u8(&extra, &map(&[])).unwrap();
    refused(&["d.nii", "--partial", "no prediction"]);
    assert_eq!(program.json(&["evaluate", &p, &t, "--partial"])["cases"], 3);
    std::fs::remove_file(&extra).unwrap();
    let own = Path::new(&p).join("e.nii");
    write_u8(&own, &map(&[])).unwrap();
    refused(&["e.nii", "no truth"]);
    std::fs::remove_file(&own).unwrap();
    let c = Path::new(&p).join("c.nii");
    let mut moved = map(&[]);
    moved.affine[0][3] = 5.0;
    write_u8(&c, &moved).unwrap();
    refused(&["p/c.nii", "t/c.nii", "mm"]);
    write_u8(&c, &Volume::new(vec![0.0; 60], [6, 5, 2], affine()).unwrap()).unwrap();
    refused(&["p/c.nii", "t/c.nii", "[6, 5, 2]"]);
    for wrong in [f32::NAN, 0.5, -1.0, 70000.0] {
        write_f32(&c, &map(&[([1, 2, 3], [2, 3, 4], wrong)])).unwrap();
        refused(&["c.nii", "[1, 2, 3]", "whole numbers"]);
    }
    std::fs::write(&c, b"short").unwrap();
    refused(&["c.nii"]);
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let sentence = program.refused(&["evaluate", empty.to_str().unwrap(), &t]);
    assert!(sentence.contains("holds no label map"), "{sentence}");
    assert!(program.refused(&["evaluate", "nowhere", &t]).contains("no such file"));
    assert!(program.refused(&["evaluate", &p, &t, "--tolerance=-1"]).contains("--tolerance"));
}

#[test]
fn probabilities_of_classes() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let p = write("p.csv", "id,nodule\na,0.9\nb,0.4\nc,0.8\nd,0.1\ne,0.7\n");
    let t = write("t.csv", "image,id,label\nx,e,none\nx,a,nodule\nx,b,nodule\nx,c,nodule\nx,d,none\n");
    let out = dir.path().join("out");
    let said = program.json(&["evaluate", &p, &t, "--out", out.to_str().unwrap()]);
    let nodule = &said["classes"]["nodule"];
    near(&nodule["auc"], 5.0 / 6.0);
    near(&nodule["sensitivity"], 2.0 / 3.0);
    near(&nodule["specificity"], 0.5);
    near(&said["accuracy"], 0.6);
    assert_eq!(said["confusion"]["rows_are_truth"], json!([[1, 1], [1, 2]]));
    assert!(nodule["auc_interval_95"][0].as_f64().unwrap() < 5.0 / 6.0);
    assert!(std::fs::read_to_string(out.join("cases.csv")).unwrap().contains("b,0.4,nodule,not nodule,0"));
    // The same as 0 and 1, as a column of the class.
    for table in ["id,label\na,1\nb,1\nc,1\nd,0\ne,0\n", "id,nodule\na,1\nb,1\nc,1\nd,0\ne,0\n"] {
        assert_eq!(program.json(&["evaluate", &p, &write("n.csv", table)]), said);
    }
    // Classes that exclude each other, and classes that do not, one of them unknown once.
    let many = write("m.csv", "id,x,y,z\na,0.5,0.3,0.2\nb,0.1,0.6,0.3\nc,0.2,0.2,0.6\n");
    let said = program.json(&["evaluate", &many, &write("mt.csv", "id,label\na,x\nb,z\nc,z\n")]);
    near(&said["accuracy"], 2.0 / 3.0);
    let said = program.json(&["evaluate", &many, &write("ml.csv", "id,x,y,z\na,1,1,0\nb,0,1,\nc,0,0,1\n")]);
    assert_eq!((said.get("accuracy"), &said["classes"]["z"]["cases"]), (None, &json!(2)));
    near(&said["classes"]["y"]["auc"], 1.0);
    let refused = |p: &str, t: &str, what: &str| {
        let sentence = program.refused(&["evaluate", p, t]);
        assert!(sentence.contains(what), "{sentence} lacks {what}");
    };
    refused(&p, &write("1.csv", "id,label\na,1\n"), "no truth for the case `b`");
    refused(&write("2.csv", "id,nodule\na,0.5\n"), &t, "have no prediction");
    refused(&write("3.csv", "id,nodule\na,NaN\n"), &t, "`NaN`");
    refused(&write("4.csv", "id,nodule\na,1.5\n"), &t, "no probability");
    refused(&write("5.csv", "id,nodule\na,0.5\na,0.6\n"), &t, "again");
    refused(&write("6.csv", "id,nodule\n"), &t, "no case");
    refused(&write("7.csv", "id,nodule\na\n"), &t, "not a CSV table");
    refused(&many, &write("8.csv", "id,label\na,x\nb,q\nc,z\n"), "`q`");
    refused(&p, dir.path().to_str().unwrap(), "a table");
}

#[test]
fn marks_as_luna16_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let truth = write("annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm\ns,0,0,0,10\nt,50,0,0,6\n");
    let marks = write(
        "marks.csv",
        "seriesuid,coordX,coordY,coordZ,probability\ns,4,0,0,0.9\ns,1,0,0,0.3\ns,40,0,0,0.8\nt,50,2,0,0.5\nt,0,0,0,0.6\n",
    );
    let scans = write("seriesuids.csv", "s\nt\nu\nv\n");
    let said = program.json(&["evaluate", &marks, &truth, "--scans", &scans]);
    assert_eq!([&said["scans"], &said["nodules"], &said["hit"], &said["false_positives"]], [4, 2, 2, 2]);
    // (0, 0.5) after the first mark, then false positives at 1/4 and 1/2 a scan, and at the latter the second nodule.
    let at = |n: usize| &said["sensitivities"][n]["sensitivity"];
    near(at(0), 0.5);
    near(at(1), 0.5);
    near(at(2), 1.0);
    near(&said["cpm"], 6.0 / 7.0);
    let excluded = write("excluded.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm\ns,40,0,0,-1\n");
    assert_eq!(program.json(&["evaluate", &marks, &truth, "--excluded", &excluded])["false_positives"], 1);
    // Probabilities by id, places in the list of candidates.
    let candidates =
        write("candidates.csv", "seriesuid,coordX,coordY,coordZ,class\ns,4,0,0,1\ns,1,0,0,1\ns,40,0,0,0\nt,50,2,0,1\nt,0,0,0,0\n");
    let by_id = write("ids.csv", "id,nodule\ns:1,0.9\ns:2,0.3\ns:3,0.8\nt:4,0.5\nt:5,0.6\n");
    assert_eq!(program.json(&["evaluate", &by_id, &truth, "--scans", &scans, "--candidates", &candidates]), said);
    assert!(program.refused(&["evaluate", &by_id, &truth]).contains("--candidates"));
    let wrong = write("wrong.csv", "seriesuid,coordX,coordY,coordZ,probability\ns,4,x,0,0.9\n");
    assert!(program.refused(&["evaluate", &wrong, &truth]).contains("`x`"));
    let none = write("none.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm\n");
    assert!(program.refused(&["evaluate", &marks, &none]).contains("no nodule"));
}

/// A run's folder with what `finetune` leaves there.
fn finished(dir: &Path, name: &str, init: &str, labelled: u64, seed: u64, dice: f64) -> String {
    let run = dir.join(name);
    std::fs::create_dir_all(&run).unwrap();
    let summary = json!({
        "task": "segment", "metric": "dice", "validation": { "dice": dice - 0.1 }, "test": { "dice": dice }, "seed": seed,
        "init": init, "labelled": labelled, "steps": 10, "seconds": 1.0,
    });
    std::fs::write(run.join("summary.json"), summary.to_string()).unwrap();
    run.to_string_lossy().into_owned()
}

#[test]
fn runs_are_grouped_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let runs = dir.path().join("runs");
    let own = "/w/pretrained/checkpoints/best.safetensors";
    for seed in 0..5 {
        let noise = (seed * seed % 5) as f64 / 100.0;
        finished(&runs, &format!("o{seed}"), own, 4, seed, 0.7 + 1.3 * noise);
        finished(&runs, &format!("s{seed}"), "scratch", 4, seed, 0.6 + noise);
    }
    let (all, out) = (runs.to_string_lossy().into_owned(), dir.path().join("out"));
    let arguments = ["compare", &all, "--out", out.to_str().unwrap()];
    let said = program.json(&arguments);
    assert_eq!((&said["metric"], &said["part"]), (&json!("dice"), &json!("test")));
    let names: Vec<&str> = said["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["scratch", "pretrained"]);
    let d = &said["differences"][0];
    assert_eq!((&d["first"], &d["wilcoxon"]["p"]), (&json!("pretrained"), &json!(0.0625)));
    let p = d["welch"]["p"].as_f64().unwrap();
    assert!(p < 0.01 && d["welch_p_holm"] == d["welch"]["p"] && d["bootstrap_95"][0].as_f64().unwrap() > 0.05, "{d}");
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(out.join("compare.json")).unwrap()).unwrap(), said);
    let page = std::fs::read_to_string(out.join("compare.html")).unwrap();
    assert!(page.contains("<svg") && page.matches("<circle").count() >= 10);
    // Groups of one's own.
    let group = |letter: &str| (0..3).map(|s| format!("{all}/{letter}{s}")).collect::<Vec<_>>().join(",");
    let (a, b) = (format!("A={}", group("s")), format!("B={}", group("o")));
    let said = program.json(&["compare", &a, &b, "--out", out.to_str().unwrap()]);
    assert_eq!((&said["groups"][0]["name"], &said["groups"][0]["n"]), (&json!("A"), &json!(3)));
    let refused = |more: &[&str], what: &str| {
        let sentence = program.refused(&[&["compare", "--out", out.to_str().unwrap()], more].concat());
        assert!(sentence.contains(what), "{sentence} lacks {what}");
    };
    refused(&[&a, &all], "NAME=");
    refused(&[&all, &format!("{all}/s1")], "twice");
    refused(&[&all, "--metric", "auc"], "auc");
    refused(&["nowhere"], "no folder");
    refused(&[out.to_str().unwrap()], "no finished run");
    std::fs::write(runs.join("s1/summary.json"), "{").unwrap();
    refused(&[&all], "not JSON");
    std::fs::write(runs.join("s1/summary.json"), "{}").unwrap();
    refused(&[&all], "no summary of a finished");
}
