//! Which cases are learnt from, validated on and reported on.

use std::collections::BTreeSet;
use std::path::Path;

use super::{finetune, finetune_with, folder, labelled, refused, set, text};
use crate::harness;

/// Ids in a table of cases that a run wrote.
fn ids(path: &Path) -> BTreeSet<String> {
    csv::Reader::from_path(path).unwrap().records().map(|r| r.unwrap()[0].to_owned()).collect()
}

fn names(numbers: &[usize]) -> BTreeSet<String> {
    numbers.iter().map(|n| format!("scan{n}")).collect()
}

#[test]
fn folds_report_on_every_case_once_and_a_file_decides_alone() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    let data = set(dir.path(), 6, &[50.0]);
    let mut tested = BTreeSet::new();
    for fold in 0..3 {
        let out = dir.path().join(format!("fold{fold}"));
        let set = format!("finetune.fold={fold}");
        let summary = finetune("segment", &data, &out, &["train.max_steps=1", "finetune.folds=3", &set]);
        let (test, validation) = (ids(&out.join("test.csv")), ids(&out.join("validation.csv")));
        assert_eq!((summary["labelled"].as_u64(), test.len(), validation.len()), (Some(2), 2, 2));
        assert!(test.is_disjoint(&validation) && tested.is_disjoint(&test));
        tested.extend(test);
    }
    assert_eq!(tested, names(&[0, 1, 2, 3, 4, 5]));

    // A file, which need not name every case.
    let split = dir.path().join("split.csv");
    std::fs::write(&split, "id,split\nscan5,train\nscan0,val\nscan3,test\nscan1,training\nscan4,test\n").unwrap();
    let out = dir.path().join("given");
    let summary = finetune_with("segment", &data, &out, &["train.max_steps=1"], &["--split", text(&split)]);
    assert_eq!(summary["labelled"], 2);
    assert_eq!((ids(&out.join("validation.csv")), ids(&out.join("test.csv"))), (names(&[0]), names(&[3, 4])));
    // No test part, no test result.
    std::fs::write(&split, "id,split\nscan5,train\nscan0,val\n").unwrap();
    let out = dir.path().join("two");
    let summary = finetune_with("segment", &data, &out, &["train.max_steps=1"], &["--split", text(&split)]);
    assert!(summary.get("test").is_none() && !out.join("test.csv").exists());

    let out = dir.path().join("refused");
    for (content, part) in [
        ("id,split\nscan5,train\nscan3,test\n", "to choose the best model by"),
        ("id,split\nscan5,validation\n", "to learn from"),
        ("id,split\nscan5,train\nscan9,val\n", "scan9"),
        ("id,split\nscan5,train\nscan0,vla\n", "vla"),
        ("id,split\nscan5,train\nscan5,val\n", "two parts"),
        ("name,split\nscan5,train\n", "no column `id`"),
        ("", "column"),
    ] {
        std::fs::write(&split, content).unwrap();
        let e = refused("segment", &data, &out, &[], &["--split", text(&split)]);
        assert!(e.contains(part), "{content:?}: {e}");
    }
    let e = refused("segment", &data, &out, &["finetune.folds=3", "finetune.fold=3"], &[]);
    assert!(e.contains("finetune.fold"), "{e}");
}

#[test]
fn a_smaller_fraction_learns_from_some_of_the_cases_and_tests_on_the_same() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = folder();
    // Columns in the table itself: the patient and the part. Two scans of a patient stay together.
    let cells = |n: usize| format!("{},{}", n % 2, n / 2);
    let data = labelled(dir.path(), 16, "label,patient", |_| vec![], cells);
    let mut tests = Vec::new();
    for (fraction, expected) in [("1.0", 12), ("0.5", 6)] {
        let out = dir.path().join(fraction);
        let set = format!("finetune.fraction={fraction}");
        let summary = finetune("classify", &data, &out, &["train.max_steps=1", "finetune.class_weights=balanced", &set]);
        assert_eq!(summary["labelled"], expected);
        let parts = (ids(&out.join("test.csv")), ids(&out.join("validation.csv")));
        for part in [&parts.0, &parts.1] {
            for id in part {
                let n: usize = id["scan".len()..].parse().unwrap();
                assert!(part.contains(&format!("scan{}", n ^ 1)), "patient {} is divided: {part:?}", n / 2);
            }
        }
        tests.push(parts);
    }
    assert_eq!(tests[0], tests[1]);
    let e = refused("classify", &data, &dir.path().join("none"), &["finetune.fraction=0"], &[]);
    assert!(e.contains("finetune.fraction"), "{e}");
}
