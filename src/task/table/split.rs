//! Which cases are learnt from, which choose the model, and which are reported on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::csv::{Rows, broken};
use super::{Case, Fold, Part, Table, Truth, near_miss, nnunet};
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};

/// How cases are divided where the data do not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Division {
    /// Seed of the draws.
    pub seed: u32,
    /// Parts of a cross-validation: part `fold` is reported on, the next one chooses the model. 0: by the shares below.
    pub folds: usize,
    /// Which of the folds, from 0.
    pub fold: usize,
    /// Share of the groups to choose the model by.
    pub validation: f32,
    /// Share of the groups to report on.
    pub test: f32,
    /// Share of the training cases that are used.
    pub fraction: f32,
}

/// A number for a group, from the seed and its name alone: other groups do not change it.
fn place(seed: u32, group: &str, what: u32) -> u64 {
    let key = group.bytes().fold(Key::new(u64::from(seed)).purpose(Purpose::Split, what), |k, b| k.fold(u32::from(b), 0));
    let [a, b] = key.draw(0);
    u64::from(a) << 32 | u64::from(b)
}

/// Groups in a random order that the seed decides, by stratum: the highest class that one of their cases has. Masks and
/// several labels a case make one stratum.
struct Strata<'a>(BTreeMap<u32, Vec<&'a str>>);

impl<'a> Strata<'a> {
    fn of<'c: 'a>(cases: impl Iterator<Item = &'c Case>, seed: u32, what: u32) -> Self {
        let mut highest: BTreeMap<&str, u32> = BTreeMap::new();
        for case in cases {
            let class = match &case.truth {
                Truth::Labels(values) if values.len() == 1 => values[0] as u32,
                _ => 0,
            };
            let highest = highest.entry(&*case.group).or_default();
            *highest = class.max(*highest);
        }
        let mut strata: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
        for (group, class) in highest {
            strata.entry(class).or_default().push(group);
        }
        for groups in strata.values_mut() {
            groups.sort_by_cached_key(|g| place(seed, g, what));
        }
        Self(strata)
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Takes `count` groups from the front, of each stratum in proportion to its size.
    fn take(&mut self, count: usize) -> Vec<&'a str> {
        let (n, mut seen, mut out) = (self.len().max(1), 0, Vec::new());
        for groups in self.0.values_mut() {
            seen += groups.len();
            // Rounding is carried on, so that the whole is exact.
            let due = ((seen * count) as f64 / n as f64).round() as usize;
            out.extend(groups.drain(..due.saturating_sub(out.len()).min(groups.len())));
        }
        out
    }
}

/// Divides the cases: as `file` says (a CSV table of `id` and `split`, or a `splits_final.json` of nnU-Net), else as the data say,
/// else by groups and seed into folds or shares; then keeps the fraction of the training groups that is to be used. Cases of one
/// group stay together, classes are spread evenly, and the groups of a smaller fraction are among those of a larger.
///
/// # Errors
/// A file that names cases which are not there; a group that data or file divide; no case to learn from or to validate on.
pub fn parts(table: &Table, file: Option<&Path>, division: &Division) -> Result<Vec<(Case, Part)>> {
    let d = division;
    if d.folds == 1 || (d.folds > 0 && d.fold >= d.folds) {
        return Err(Error::Usage(format!("fold {} of {} cannot be: at least 2 folds are needed, numbered from 0", d.fold, d.folds)));
    }
    let mut parts = match file {
        Some(file) if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) => by_fold(table, &nnunet::folds(file)?, d)?,
        Some(file) => given(table, file)?,
        None if !table.folds.is_empty() => by_fold(table, &table.folds, d)?,
        None => divided(table, d),
    };
    undivided(table, &parts)?;
    if d.fraction < 1.0 {
        let training = table.cases.iter().zip(&parts).filter(|(_, p)| **p == Some(Part::Train)).map(|(c, _)| c);
        let keep: BTreeSet<&str> = fraction(Strata::of(training, d.seed, 1), d.fraction);
        for (case, part) in table.cases.iter().zip(&mut parts) {
            if *part == Some(Part::Train) && !keep.contains(&*case.group) {
                *part = None;
            }
        }
    }
    for (part, to) in [(Part::Train, "to learn from"), (Part::Validation, "to choose the best model by")] {
        if !parts.contains(&Some(part)) {
            let n = table.cases.len();
            return Err(Error::Usage(format!("of {n} cases none is left {to}; give more cases, or another split, fold or share")));
        }
    }
    Ok(table.cases.iter().cloned().zip(parts).filter_map(|(c, p)| Some((c, p?))).collect())
}

/// The first groups of every stratum, at least one: those of a smaller share are among those of a larger.
fn fraction(strata: Strata<'_>, share: f32) -> BTreeSet<&str> {
    let mut out = BTreeSet::new();
    for groups in strata.0.into_values() {
        // 0.3 of 10 is 3, whatever the rounding of 0.3.
        let count = (groups.len() as f64 * f64::from(share) - 1e-6).ceil().max(1.0) as usize;
        out.extend(groups.into_iter().take(count));
    }
    out
}

/// An error if cases of one group are in several parts: what is learnt from one would be known in the other.
fn undivided(table: &Table, parts: &[Option<Part>]) -> Result<()> {
    let mut of_group: HashMap<&str, (Part, &str)> = HashMap::new();
    for (case, part) in table.cases.iter().zip(parts) {
        let Some(part) = part else { continue };
        let first = of_group.entry(&*case.group).or_insert((*part, &case.id));
        if first.0 != *part {
            return Err(Error::Usage(format!(
                "group {} is divided: case {} is to {}, case {} to {}; a model would be judged on what it has learnt from",
                case.group,
                first.1,
                first.0.word(),
                case.id,
                part.word()
            )));
        }
    }
    Ok(())
}

/// As a table says; cases that it does not name are left out.
fn given(table: &Table, file: &Path) -> Result<Vec<Option<Part>>> {
    let mut rows = Rows::open(file)?;
    let column = |wanted: &[&str]| {
        let found = rows.names.iter().position(|n| wanted.contains(&n.as_str()));
        let near = || near_miss(wanted[0], rows.names.iter().map(String::as_str));
        found.ok_or_else(|| Error::input(file, format!("has no column `{}`{}", wanted[0], near())))
    };
    let (id, split) = (column(&["id", "group", "patient"])?, column(&["split"])?);
    let known: BTreeSet<&str> = table.cases.iter().flat_map(|c| [c.id.as_str(), &*c.group]).collect();
    let mut found: HashMap<String, Part> = HashMap::new();
    let mut record = ::csv::StringRecord::new();
    while rows.reader.read_record(&mut record).map_err(|e| broken(file, &e))? {
        let (name, word) = (record.get(id).unwrap_or(""), record.get(split).unwrap_or(""));
        let part = Part::of(word).map_err(|what| Error::input(file, format!("{name}: {what}")))?;
        if !known.contains(name) {
            let near = near_miss(name, known.iter().copied());
            return Err(Error::input(file, format!("names `{name}`, but the data have no such case or group{near}")));
        }
        if found.insert(name.to_owned(), part).is_some_and(|other| other != part) {
            return Err(Error::input(file, format!("names `{name}` in two parts")));
        }
    }
    Ok(table.cases.iter().map(|c| found.get(&c.id).or_else(|| found.get(&*c.group)).copied()).collect())
}

/// As a fold of a cross-validation that is there says; cases that it does not name are left out, but those to test on.
fn by_fold(table: &Table, folds: &[Fold], d: &Division) -> Result<Vec<Option<Part>>> {
    let Some(fold) = folds.get(d.fold).filter(|_| d.folds == 0 || d.folds == folds.len()) else {
        return Err(Error::Usage(format!(
            "fold {} of {} is asked for, but the cross-validation that the data come with has {} folds",
            d.fold,
            if d.folds == 0 { folds.len() } else { d.folds },
            folds.len()
        )));
    };
    let known: BTreeSet<&str> = table.cases.iter().map(|c| c.id.as_str()).collect();
    if let Some(id) = folds.iter().flat_map(|f| f.train.iter().chain(&f.validation)).find(|id| !known.contains(id.as_str())) {
        return Err(Error::Usage(format!("the cross-validation names `{id}`, but the data have no such case{}", near_miss(id, known))));
    }
    let [learnt, held_out] = [&fold.train, &fold.validation].map(|l| l.iter().map(String::as_str).collect::<BTreeSet<_>>());
    let part = |c: &Case| match (c.part, c.id.as_str()) {
        (Some(Part::Test), _) => Some(Part::Test),
        (_, id) if held_out.contains(id) => Some(Part::Validation),
        (_, id) => learnt.contains(id).then_some(Part::Train),
    };
    Ok(table.cases.iter().map(part).collect())
}

/// As the data say as far as they do, the rest by seed.
fn divided(table: &Table, d: &Division) -> Vec<Option<Part>> {
    let said = |part: Part| table.cases.iter().any(|c| c.part == Some(part));
    if d.folds == 0 && said(Part::Validation) {
        return table.cases.iter().map(|c| c.part.or(Some(Part::Train))).collect();
    }
    // What the data hold out for the end stays held out.
    let fixed_test = d.folds == 0 && said(Part::Test);
    let free = |c: &&Case| !(fixed_test && c.part == Some(Part::Test));
    let mut strata = Strata::of(table.cases.iter().filter(free), d.seed, 0);
    let n = strata.len();
    let mut of_group: BTreeMap<&str, Part> = BTreeMap::new();
    let mut take = |strata: &mut Strata<'_>, count: usize, part: Part| {
        // Names are looked up again: the strata only lend them.
        let taken: BTreeSet<String> = strata.take(count).into_iter().map(str::to_owned).collect();
        for case in table.cases.iter().filter(|c| taken.contains(&*c.group)) {
            of_group.insert(&case.group, part);
        }
    };
    if d.folds > 0 {
        for fold in 0..d.folds {
            // The same groups make up a fold whichever is asked for.
            let part = match fold {
                k if k == d.fold => Part::Test,
                k if k == (d.fold + 1) % d.folds => Part::Validation,
                _ => Part::Train,
            };
            take(&mut strata, (n * (fold + 1) / d.folds) - (n * fold / d.folds), part);
        }
    } else {
        let count = |share: f32| (n as f64 * f64::from(share)).round() as usize;
        // With three groups or more, every part that is asked for has one.
        let test = if fixed_test || d.test <= 0.0 || n < 3 { 0 } else { count(d.test).clamp(1, n - 2) };
        let validation = if n < 2 { 0 } else { count(d.validation).clamp(1, n - 1 - test) };
        take(&mut strata, test, Part::Test);
        take(&mut strata, validation, Part::Validation);
    }
    let part = |c: &Case| if free(&c) { of_group.get(&*c.group).copied().unwrap_or(Part::Train) } else { Part::Test };
    table.cases.iter().map(|c| Some(part(c))).collect()
}

#[cfg(test)]
mod tests;
