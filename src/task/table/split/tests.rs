use super::super::Image;
use super::*;
use crate::task::Output;

const PLAIN: Division = Division { seed: 0, folds: 0, fold: 0, validation: 0.15, test: 0.15, fraction: 1.0 };

/// Two cases a group; one group in five has class 1.
fn table(n: usize) -> Table {
    let case = |i: usize| Case {
        id: format!("c{i}"),
        images: [Image::Scan(format!("c{i}.nii").into())].into(),
        truth: Truth::Labels(vec![f32::from(u8::from((i / 2).is_multiple_of(5)))]),
        point: None,
        group: format!("p{}", i / 2).as_str().into(),
        part: None,
    };
    Table {
        cases: (0..n).map(case).collect(),
        classes: vec!["a".into(), "b".into()],
        values: vec![],
        merged: vec![],
        channels: vec!["CT".into()],
        output: Output::Binary,
        folds: vec![],
        notes: vec![],
    }
}

fn ids(parts: &[(Case, Part)], part: Part) -> BTreeSet<String> {
    parts.iter().filter(|p| p.1 == part).map(|p| p.0.id.clone()).collect()
}

fn positives(parts: &[(Case, Part)], part: Part) -> usize {
    parts.iter().filter(|p| p.1 == part && p.0.truth == Truth::Labels(vec![1.0])).count()
}

#[test]
fn groups_stay_together_classes_are_spread_and_the_seed_decides() {
    let t = table(80);
    let a = parts(&t, None, &PLAIN).unwrap();
    assert_eq!([Part::Test, Part::Validation, Part::Train].map(|p| ids(&a, p).len()), [12, 12, 56]);
    // Of 40 groups 8 are positive: 0.15 of them is 1.2.
    assert_eq!([Part::Test, Part::Validation, Part::Train].map(|p| positives(&a, p)), [2, 2, 12]);
    for p in [Part::Train, Part::Validation, Part::Test] {
        let groups: BTreeSet<&str> = a.iter().filter(|c| c.1 == p).map(|c| &*c.0.group).collect();
        assert_eq!(groups.len() * 2, ids(&a, p).len());
    }
    assert_eq!(a, parts(&t, None, &PLAIN).unwrap());
    assert_ne!(a, parts(&t, None, &Division { seed: 1, ..PLAIN }).unwrap());
}

#[test]
fn a_case_more_moves_few_others() {
    let (a, b) = (parts(&table(200), None, &PLAIN).unwrap(), parts(&table(202), None, &PLAIN).unwrap());
    let moved = a.iter().filter(|(case, part)| b.iter().any(|(c, p)| c.id == case.id && p != part)).count();
    assert!(moved <= 8, "{moved} of 200 cases changed their part");
}

#[test]
fn smaller_fractions_lie_within_larger_ones_and_change_nothing_else() {
    let t = table(80);
    let of = |fraction: f32| parts(&t, None, &Division { fraction, ..PLAIN }).unwrap();
    let all = of(1.0);
    let mut last = BTreeSet::new();
    for f in [0.01, 0.1, 0.2, 0.5, 0.9] {
        let some = of(f);
        let now = ids(&some, Part::Train);
        assert!(last.is_subset(&now) && now.is_subset(&ids(&all, Part::Train)), "{f}");
        assert!(positives(&some, Part::Train) > 0, "{f}: every class is among the fraction");
        assert_eq!([Part::Validation, Part::Test].map(|p| ids(&some, p)), [Part::Validation, Part::Test].map(|p| ids(&all, p)));
        last = now;
    }
    // 22 groups of one class and 6 of the other.
    assert_eq!((ids(&of(0.1), Part::Train).len(), ids(&of(0.5), Part::Train).len()), (8, 28));
    assert!(last.len() < 56);
}

#[test]
fn folds_report_every_case_once() {
    let t = table(52);
    let mut seen = BTreeSet::new();
    for fold in 0..5 {
        let p = parts(&t, None, &Division { folds: 5, fold, ..PLAIN }).unwrap();
        assert_eq!(p.len(), 52);
        let next = parts(&t, None, &Division { folds: 5, fold: (fold + 1) % 5, ..PLAIN }).unwrap();
        assert_eq!(ids(&p, Part::Validation), ids(&next, Part::Test));
        for id in ids(&p, Part::Test) {
            assert!(seen.insert(id));
        }
    }
    assert_eq!(seen.len(), 52);
    for d in [Division { folds: 1, ..PLAIN }, Division { folds: 5, fold: 5, ..PLAIN }] {
        assert!(parts(&t, None, &d).unwrap_err().to_string().contains("fold"));
    }
}

#[test]
fn small_sets_have_something_in_every_part() {
    for n in [4, 6, 8, 10] {
        let p = parts(&table(n), None, &PLAIN).unwrap();
        assert_eq!(ids(&p, Part::Validation).len(), 2, "{n}");
        assert_eq!(ids(&p, Part::Test).len(), if n < 6 { 0 } else { 2 }, "{n}");
    }
    assert!(parts(&table(2), None, &PLAIN).unwrap_err().to_string().contains("none is left"));
    let most = parts(&table(6), None, &Division { validation: 1.0, test: 1.0, ..PLAIN }).unwrap();
    assert_eq!([Part::Test, Part::Validation, Part::Train].map(|p| ids(&most, p).len()), [2, 2, 2]);
}

#[test]
fn what_the_data_say_stays() {
    let mut t = table(40);
    for i in 0..4 {
        t.cases[i].part = Some(Part::Test);
    }
    let p = parts(&t, None, &PLAIN).unwrap();
    assert_eq!((ids(&p, Part::Test).len(), ids(&p, Part::Validation).len()), (4, 6));
    t.cases[4].part = Some(Part::Validation);
    assert!(parts(&t, None, &PLAIN).unwrap_err().to_string().contains("group p2 is divided"));
    t.cases[5].part = Some(Part::Validation);
    let p = parts(&t, None, &PLAIN).unwrap();
    assert_eq!(ids(&p, Part::Validation), ["c4", "c5"].map(str::to_owned).into());
    assert_eq!(ids(&p, Part::Train).len(), 34);
}

#[test]
fn a_table_decides_and_has_to_know_the_cases() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("split.csv");
    let of = |text: &str| {
        std::fs::write(&path, text).unwrap();
        parts(&table(8), Some(&path), &PLAIN)
    };
    let p = of("id,split\np0,train\np1,val\nc4,test\n").unwrap();
    let got: Vec<(&str, Part)> = p.iter().map(|c| (c.0.id.as_str(), c.1)).collect();
    let want = [("c0", Part::Train), ("c1", Part::Train), ("c2", Part::Validation), ("c3", Part::Validation), ("c4", Part::Test)];
    assert_eq!(got, want);
    for (text, part) in [
        ("id,split\nc99,train\n", "c99"),
        ("id,split\nc1,train\nc1,test\n", "two parts"),
        ("id,split\nc0,train\nc1,test\nc2,val\n", "group p0 is divided"),
        ("id,split\nc0,practice\n", "practice"),
        ("id,spilt\nc0,train\n", "did you mean `spilt`?"),
        ("id,split\nc0,train\n", "none is left to choose"),
    ] {
        let e = of(text).unwrap_err().to_string();
        assert!(e.contains(part), "{text}: {e}");
    }
}

#[test]
fn a_cross_validation_that_is_there_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("splits_final.json");
    std::fs::write(&path, r#"[{"train": ["c2", "c3"], "val": ["c0", "c1"]}, {"train": ["c0", "c1"], "val": ["c2", "c3"]}]"#).unwrap();
    let mut t = table(6);
    t.cases[5].part = Some(Part::Test);
    t.cases[4].part = Some(Part::Test);
    let p = parts(&t, Some(&path), &Division { fold: 1, ..PLAIN }).unwrap();
    assert_eq!(ids(&p, Part::Validation), ["c2", "c3"].map(str::to_owned).into());
    assert_eq!((ids(&p, Part::Train).len(), ids(&p, Part::Test).len()), (2, 2));
    t.folds = nnunet::folds(&path).unwrap();
    assert_eq!(parts(&t, None, &Division { fold: 1, ..PLAIN }).unwrap(), p);
    let e = parts(&t, None, &Division { fold: 2, ..PLAIN }).unwrap_err().to_string();
    assert!(e.contains("2 folds"), "{e}");
    t.folds[0].validation[0] = "c77".into();
    assert!(parts(&t, None, &PLAIN).unwrap_err().to_string().contains("c77"));
    std::fs::write(&path, r#"[{"train": ["c0"], "val": ["c0"]}]"#).unwrap();
    assert!(parts(&t, Some(&path), &PLAIN).unwrap_err().to_string().contains("both"));
    std::fs::write(&path, r#"{"train": []}"#).unwrap();
    assert!(parts(&t, Some(&path), &PLAIN).unwrap_err().to_string().contains("list of"));
}
