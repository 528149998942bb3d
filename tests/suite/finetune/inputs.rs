//! Wrong tables, scans and masks are refused in one sentence that names the file, and nothing is left of the run.

use std::path::{Path, PathBuf};

use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::Volume;

use super::{balls, finetune, folder, labelled, refused, set, whole};
use crate::harness;

/// Refused, with the named file and a part of the sentence.
fn expect(kind: &str, data: &Path, file: &str, part: &str) {
    let e = refused(kind, data, &data.parent().unwrap().join("out"), &[], &[]);
    assert!(e.contains(file) && e.contains(part), "expected {file} and `{part}`: {e}");
}

/// A table of good cases and one that `change` has spoilt.
fn spoilt(change: impl FnOnce(&Path, Volume, Volume)) -> (tempfile::TempDir, PathBuf) {
    let dir = folder();
    let data = set(dir.path(), 4, &[50.0]);
    let (scan, map) = balls(2, [20, 18, 12], &[50.0]);
    change(dir.path(), whole(scan), map);
    (dir, data)
}

#[test]
fn masks_that_do_not_lie_on_their_scan_or_are_no_masks() {
    if harness::trusted().is_none() {
        return;
    }
    let map = |dir: &Path| dir.join("map2.nii.gz");
    let (_dir, data) = spoilt(|dir, _, mut m| {
        m.affine[0][3] += 4.0;
        nifti::write_u8(&map(dir), &m).unwrap();
    });
    expect("segment", &data, "map2.nii.gz", "scan2");
    let (_dir, data) = spoilt(|dir, _, _| {
        let (_, other) = balls(2, [20, 18, 13], &[50.0]);
        nifti::write_u8(&map(dir), &other).unwrap();
    });
    expect("segment", &data, "map2.nii.gz", "13");
    let (_dir, data) = spoilt(|dir, _, mut m| {
        m.data[5] = 0.5;
        nifti::write_f32(&map(dir), &m).unwrap();
    });
    expect("segment", &data, "map2.nii.gz", "0.5");
    let (_dir, data) = spoilt(|dir, _, mut m| {
        m.data[5] = -1.0;
        nifti::write_f32(&map(dir), &m).unwrap();
    });
    expect("segment", &data, "map2.nii.gz", "-1");
    let (_dir, data) = spoilt(|dir, _, mut m| {
        m.data[5] = f32::NAN;
        nifti::write_f32(&map(dir), &m).unwrap();
    });
    expect("segment", &data, "map2.nii.gz", "NaN");
    let (_dir, data) = spoilt(|dir, scan, _| nifti::write_i16(&map(dir), &scan).unwrap());
    expect("segment", &data, "map2.nii.gz", "label map");
    let (_dir, data) = spoilt(|dir, _, _| std::fs::remove_file(map(dir)).unwrap());
    expect("segment", &data, "map2.nii.gz", "no such file");
    // Masks without anything in them.
    let (_dir, data) = spoilt(|dir, _, mut m| {
        m.data.fill(0.0);
        (0..4).for_each(|n| nifti::write_u8(&dir.join(format!("map{n}.nii.gz")), &m).unwrap());
    });
    expect("segment", &data, "data.csv", "nothing to learn");
    // One mask without anything in it is a case like others.
    let (dir, data) = spoilt(|dir, _, mut m| {
        m.data.fill(0.0);
        nifti::write_u8(&map(dir), &m).unwrap();
    });
    finetune("segment", &data, &dir.path().join("out"), &["train.max_steps=1"]);
}

#[test]
fn scans_that_are_torn_missing_or_not_numbers() {
    if harness::trusted().is_none() {
        return;
    }
    let scan = |dir: &Path| dir.join("scan1.nii.gz");
    let (_dir, data) = spoilt(|dir, _, _| std::fs::remove_file(scan(dir)).unwrap());
    expect("segment", &data, "scan1.nii.gz", "no such file");
    let (_dir, data) = spoilt(|dir, _, _| {
        let bytes = std::fs::read(scan(dir)).unwrap();
        std::fs::write(scan(dir), &bytes[..bytes.len() * 2 / 3]).unwrap();
    });
    expect("segment", &data, "scan1.nii.gz", "");
    let (_dir, data) = spoilt(|dir, _, _| std::fs::write(scan(dir), "hello").unwrap());
    expect("segment", &data, "scan1.nii.gz", "");
    // Some voxels that are not numbers are told; nothing but such voxels is no scan.
    let (dir, data) = spoilt(|dir, mut s, _| {
        let affine = nifti::read_header(&scan(dir)).unwrap().affine;
        s.affine = affine;
        s.data[..7].fill(f32::NAN);
        nifti::write_f32(&scan(dir), &s).unwrap();
    });
    let said = super::arguments("segment", &data, &dir.path().join("out"), &["train.max_steps=1"]);
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    let stderr = String::from_utf8(super::program().run(&said, 0).stderr).unwrap();
    assert!(stderr.contains("scan1.nii.gz: ") && stderr.contains('7'), "{stderr}");
    let (_dir, data) = spoilt(|dir, mut s, _| {
        s.data.fill(f32::NAN);
        nifti::write_f32(&scan(dir), &s).unwrap();
    });
    expect("segment", &data, "scan1.nii.gz", "");
}

#[test]
fn tables_that_say_too_little_or_something_else() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = labelled(dir.path(), 4, "label", |_| vec![0.0], |n| (n % 2).to_string());
    let rows = |head: &str, cells: [&str; 4]| {
        let lines: String = cells.iter().enumerate().map(|(n, c)| format!("scan{n}.nii.gz,{c}\n")).collect();
        std::fs::write(&data, format!("image,{head}\n{lines}")).unwrap();
    };
    for (head, cells, part) in [
        ("label", ["1", "1", "1", "1"], "at least two classes"),
        ("label", ["1", "0", "", "1"], "line 4"),
        ("lable", ["yes", "no", "no", "yes"], "did you mean `label`"),
        ("soft,hard", ["1,0", "0,1", "2,0", "1,1"], "line 4"),
        ("soft,hard", ["1,0", "0,1", "0,no", "1,1"], "`no`"),
        ("label,split", ["1,train", "0,train", "1,vall", "0,test"], "vall"),
        ("label,split", ["1,train", "0,train", "1,train", "0,train"], ""),
        ("label,split", ["1,test", "0,test", "1,val", "0,val"], "to learn from"),
        ("label,x,y", ["1,0,0", "0,0,0", "0,0,0", "1,0,0"], "x, y, z"),
        ("label,x,y,z", ["1,0,0,0", "0,0,0,zero", "0,0,0,0", "1,0,0,0"], "`zero`"),
        ("label,x,y,z", ["1,0,0,0", "0,0,0,0", "0,0,0,4000", "1,0,0,0"], "4000"),
        ("label,id", ["1,a", "0,a", "0,b", "1,c"], "`a`"),
    ] {
        // What the table itself divides without anything to validate on is divided further.
        rows(head, cells);
        if part.is_empty() {
            let out = dir.path().join("divided");
            assert_eq!(finetune("classify", &data, &out, &["train.max_steps=1"])["labelled"], 2);
            continue;
        }
        let e = refused("classify", &data, &dir.path().join("out"), &[], &[]);
        assert!(e.contains(part), "{head}: expected `{part}`: {e}");
    }
    rows("label", ["1", "0", "1", "0"]);
    expect("segment", &data, "data.csv", "`mask`");
    std::fs::write(&data, "").unwrap();
    expect("classify", &data, "data.csv", "");
    std::fs::write(&data, "image,label\n").unwrap();
    expect("classify", &data, "data.csv", "no labelled case");
    std::fs::write(&data, "image;label\na;1\n").unwrap();
    expect("classify", &data, "data.csv", "commas");
    std::fs::write(&data, [0xff, 0xfe, 0x00, 0x0a, 0x80]).unwrap();
    expect("classify", &data, "data.csv", "");
    expect("classify", &dir.path().join("nowhere.csv"), "nowhere.csv", "no such file");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let e = refused("segment", &empty, &dir.path().join("out"), &[], &[]);
    assert!(e.contains("empty") && e.contains("dataset.json"), "{e}");

    // Settings that cannot be.
    rows("label", ["1", "0", "1", "0"]);
    for (sets, part) in [
        (["finetune.encoder_rate=-1"], "finetune.encoder_rate"),
        (["finetune.loss=dise"], "finetune.loss"),
        (["finetune.windows=0"], "finetune.windows"),
        (["cube.size=[18,16,8]"], "cube.size"),
        (["finetune.folds=1"], "finetune.fold"),
    ] {
        let e = refused("classify", &data, &dir.path().join("out"), &sets, &[]);
        assert!(e.contains(part), "{part}: {e}");
    }
    let e = refused("classify", &data, &dir.path().join("out"), &[], &["--recipe", "luna"]);
    assert!(e.contains("luna16-ncc"), "{e}");
}
