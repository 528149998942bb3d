//! Which cases are learnt from, which choose the model, and which are reported on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::csv::broken;
use super::{Case, Part, Table};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};

/// A number in `[0, 1)` for a group, from the seed and its name alone: other groups do not change it.
fn place(seed: u32, group: &str, what: u32) -> u64 {
    let key = group.bytes().fold(Key::new(u64::from(seed)).purpose(Purpose::Split, what), |k, b| k.fold(u32::from(b), 0));
    let [a, b] = key.draw(0);
    u64::from(a) << 32 | u64::from(b)
}

/// Divides the cases: as `file` (a CSV table of `id` and `split`) says, else as the data say, else by groups and seed into folds or
/// fractions; then keeps the share of the training cases that is to be used. Order and membership depend on the seed and the names.
///
/// # Errors
/// A file that leaves out a case or names one that is not there; a part to learn from or to validate on that stays empty.
pub fn parts(table: &Table, file: Option<&Path>, config: &Config) -> Result<Vec<(Case, Part)>> {
    let mut parts = match file {
        Some(file) => given(table, file)?,
        None => divided(table, config),
    };
    let f = &config.finetune;
    if f.fraction < 1.0 {
        let groups: BTreeSet<&str> =
            table.cases.iter().zip(&parts).filter(|(_, p)| **p == Some(Part::Train)).map(|(c, _)| c.group.as_str()).collect();
        let mut order: Vec<&str> = groups.into_iter().collect();
        order.sort_by_key(|g| place(config.seed, g, 1));
        // The first groups of one order: those of a smaller share are among those of a larger.
        let keep: BTreeSet<&str> = order.iter().copied().take(((order.len() as f32 * f.fraction).round() as usize).max(1)).collect();
        for (case, part) in table.cases.iter().zip(&mut parts) {
            if *part == Some(Part::Train) && !keep.contains(case.group.as_str()) {
                *part = None;
            }
        }
    }
    Ok(table.cases.iter().cloned().zip(parts).filter_map(|(c, p)| Some((c, p?))).collect())
}

/// As a file says.
fn given(table: &Table, file: &Path) -> Result<Vec<Option<Part>>> {
    let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_path(file).map_err(|e| broken(file, &e))?;
    let names: Vec<String> = reader.headers().map_err(|e| broken(file, &e))?.iter().map(str::to_owned).collect();
    let column = |name: &str| names.iter().position(|n| n == name).ok_or_else(|| Error::input(file, format!("has no column `{name}`")));
    let (id, split) = (column("id")?, column("split")?);
    let known: BTreeSet<&str> = table.cases.iter().flat_map(|c| [c.id.as_str(), c.group.as_str()]).collect();
    let mut found: HashMap<String, Part> = HashMap::new();
    for record in reader.records() {
        let record = record.map_err(|e| broken(file, &e))?;
        let (name, word) = (record.get(id).unwrap_or(""), record.get(split).unwrap_or(""));
        let part = Part::of(word).map_err(|what| Error::input(file, format!("{name}: {what}")))?;
        if !known.contains(name) {
            return Err(Error::input(file, format!("names `{name}`, but the data have no such case or group")));
        }
        found.insert(name.to_owned(), part);
    }
    Ok(table.cases.iter().map(|c| found.get(&c.id).or_else(|| found.get(&c.group)).copied()).collect())
}

/// As the data say, or by seed.
fn divided(table: &Table, config: &Config) -> Vec<Option<Part>> {
    let f = &config.finetune;
    let said = |part: Part| table.cases.iter().any(|c| c.part == Some(part));
    if f.folds == 0 && said(Part::Validation) {
        return table.cases.iter().map(|c| c.part.or(Some(Part::Train))).collect();
    }
    // What the data hold out for the end stays held out.
    let fixed_test = f.folds == 0 && said(Part::Test);
    let free = |c: &Case| !(fixed_test && c.part == Some(Part::Test));
    let mut groups: Vec<&str> =
        table.cases.iter().filter(|c| free(c)).map(|c| c.group.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    groups.sort_by_key(|g| place(config.seed, g, 0));
    let n = groups.len();
    let count = |share: f32| if share <= 0.0 || n < 3 { 0 } else { ((n as f32 * share).round() as usize).clamp(1, n) };
    let part_of: BTreeMap<&str, Part> = if f.folds > 0 {
        let fold = |i: usize| i * f.folds / n.max(1);
        let next = (f.fold + 1) % f.folds;
        let part = |i: usize| match fold(i) {
            k if k == f.fold => Part::Test,
            k if k == next => Part::Validation,
            _ => Part::Train,
        };
        groups.iter().enumerate().map(|(i, g)| (*g, part(i))).collect()
    } else {
        let test = if fixed_test { 0 } else { count(f.test_fraction) };
        let validation = count(f.validation_fraction).max(usize::from(n > 1));
        let part = |i: usize| match i {
            i if i < test => Part::Test,
            i if i < test + validation => Part::Validation,
            _ => Part::Train,
        };
        groups.iter().enumerate().map(|(i, g)| (*g, part(i))).collect()
    };
    table.cases.iter().map(|c| if free(c) { part_of.get(c.group.as_str()).copied() } else { Some(Part::Test) }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Image, Truth};
    use super::*;
    use crate::task::Output;

    fn table(n: usize) -> Table {
        let case = |i: usize| Case {
            id: format!("c{i}"),
            images: vec![Image::Scan(format!("c{i}.nii").into())],
            truth: Truth::Labels(vec![0.0]),
            point: None,
            group: format!("p{}", i / 2),
            part: None,
        };
        Table {
            cases: (0..n).map(case).collect(),
            classes: vec!["a".into(), "b".into()],
            values: vec![],
            merged: vec![],
            channels: vec!["CT".into()],
            output: Output::Binary,
            notes: vec![],
        }
    }

    fn config(sets: &[&str]) -> Config {
        Config::load(None, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn ids(parts: &[(Case, Part)], part: Part) -> BTreeSet<String> {
        parts.iter().filter(|p| p.1 == part).map(|p| p.0.id.clone()).collect()
    }

    #[test]
    fn groups_stay_together_and_the_seed_decides() {
        let t = table(80);
        let a = parts(&t, None, &config(&[])).unwrap();
        assert_eq!((ids(&a, Part::Test).len(), ids(&a, Part::Validation).len(), ids(&a, Part::Train).len()), (12, 12, 56));
        for p in [Part::Train, Part::Validation, Part::Test] {
            let groups: BTreeSet<&str> = a.iter().filter(|c| c.1 == p).map(|c| c.0.group.as_str()).collect();
            assert_eq!(groups.len() * 2, ids(&a, p).len());
        }
        assert_eq!(a, parts(&t, None, &config(&[])).unwrap());
        assert_ne!(a, parts(&t, None, &config(&["seed=1"])).unwrap());
    }

    #[test]
    fn smaller_shares_lie_within_larger_ones_and_change_nothing_else() {
        let t = table(80);
        let of = |f: &str| parts(&t, None, &config(&[&format!("finetune.fraction={f}")])).unwrap();
        let (few, more, all) = (of("0.1"), of("0.5"), of("1"));
        assert!(ids(&few, Part::Train).len() == 6 && ids(&few, Part::Train).is_subset(&ids(&more, Part::Train)));
        assert!(ids(&more, Part::Train).is_subset(&ids(&all, Part::Train)));
        assert_eq!(ids(&few, Part::Test), ids(&all, Part::Test));
    }

    #[test]
    fn folds_report_every_case_once() {
        let t = table(50);
        let mut seen = BTreeSet::new();
        for k in 0..5 {
            let p = parts(&t, None, &config(&["finetune.folds=5", &format!("finetune.fold={k}")])).unwrap();
            assert_eq!(p.len(), 50);
            for id in ids(&p, Part::Test) {
                assert!(seen.insert(id));
            }
        }
        assert_eq!(seen.len(), 50);
    }

    #[test]
    fn a_file_decides_and_has_to_know_the_cases() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.csv");
        std::fs::write(&path, "id,split\nc0,train\np1,val\nc4,test\n").unwrap();
        let p = parts(&table(8), Some(&path), &config(&[])).unwrap();
        let got: Vec<(&str, Part)> = p.iter().map(|c| (c.0.id.as_str(), c.1)).collect();
        assert_eq!(got, [("c0", Part::Train), ("c2", Part::Validation), ("c3", Part::Validation), ("c4", Part::Test)]);
        std::fs::write(&path, "id,split\nc99,train\n").unwrap();
        assert!(parts(&table(8), Some(&path), &config(&[])).unwrap_err().to_string().contains("c99"));
    }
}
