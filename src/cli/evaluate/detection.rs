//! Marks against nodules, as the LUNA16 challenge has it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::json;

use super::tables::{Table, lines, number};
use super::{Args, Evaluated};
use crate::cli::text;
use crate::error::{Error, Result};
use crate::metrics::detection::{Finding, Froc, MARKS, Mark, RATES, Scan};

/// Whether a table lists findings with their diameters.
pub(super) fn is_list(path: &Path) -> Result<bool> {
    let table = Table::read(path)?;
    Ok(table.find("seriesuid").is_some() && table.find("diameter_mm").is_some())
}

/// A row with a scan and a place in it.
struct Row {
    line: u64,
    scan: String,
    place: [f64; 3],
    cells: Vec<String>,
}

/// The rows of a table of places, and its head.
fn places(path: &Path) -> Result<(Table, Vec<Row>)> {
    let mut table = Table::read(path)?;
    let scan = table.column(path, "seriesuid")?;
    let columns = [table.column(path, "coordX")?, table.column(path, "coordY")?, table.column(path, "coordZ")?];
    let mut rows = Vec::with_capacity(table.rows.len());
    for (line, cells) in std::mem::take(&mut table.rows) {
        let mut place = [0.0; 3];
        for (p, &c) in place.iter_mut().zip(&columns) {
            *p = number(path, line, &table.names[c], &cells[c])?;
        }
        rows.push(Row { line, scan: cells[scan].clone(), place, cells });
    }
    Ok((table, rows))
}

pub(super) fn evaluate(a: &Args) -> Result<Evaluated> {
    let marks = marks(&a.predictions, a.candidates.as_deref())?;
    let mut findings = findings(&a.truth, false)?;
    if let Some(excluded) = &a.excluded {
        findings.extend(self::findings(excluded, true)?);
    }
    let mut scans: BTreeMap<String, Scan> = BTreeMap::new();
    let listed: Option<HashSet<String>> =
        a.scans.as_deref().map(lines).transpose()?.map(|l| l.into_iter().filter(|l| l != "seriesuid").collect());
    if let Some(listed) = &listed {
        scans.extend(listed.iter().map(|s| (s.clone(), Scan::default())));
    }
    let mut left_out = [0usize; 2];
    let counts = |scan: &str| listed.as_ref().is_none_or(|l| l.contains(scan));
    for (scan, mark) in marks {
        if counts(&scan) {
            scans.entry(scan).or_default().marks.push(mark);
        } else {
            left_out[0] += 1;
        }
    }
    for (scan, finding) in findings {
        if counts(&scan) {
            scans.entry(scan).or_default().findings.push(finding);
        } else {
            left_out[1] += 1;
        }
    }
    let mut notes = Vec::new();
    match (&a.scans, left_out) {
        (None, _) => notes.push(format!(
            "the set is taken to be the {} scans with a mark or a finding; --scans names all, also those with nothing in them",
            scans.len()
        )),
        (Some(_), [0, 0]) => {}
        (Some(list), [m, f]) => {
            notes.push(format!("{m} marks and {f} findings lie in scans that {} does not name, and are left out", list.display()));
        }
    }
    let cut = scans.values().filter(|s| s.marks.len() > MARKS).count();
    if cut > 0 {
        notes.push(format!("{cut} scans have more than {MARKS} marks; the {MARKS} most probable ones of each count, as in the challenge"));
    }
    let froc = Froc::of(&scans).ok_or_else(|| Error::input(&a.truth, "holds no nodule in the scans of the set"))?;
    let rates: Vec<_> = RATES.iter().map(|&r| json!({ "false_positives_per_scan": r, "sensitivity": froc.sensitivity(r) })).collect();
    let summary = json!({
        "kind": "detection", "scans": froc.scans, "nodules": froc.nodules, "hit": froc.hit, "false_positives": froc.false_positives,
        "cpm": froc.cpm(), "sensitivities": rates,
        "conventions": format!("A mark nearer to a nodule than its radius hits it; at most {MARKS} marks a scan; linear between operating points."),
    });
    let shown: Vec<Vec<String>> = RATES.iter().map(|&r| vec![r.to_string(), format!("{:.4}", froc.sensitivity(r))]).collect();
    let mut shown: Vec<String> = text::table(&["false positives a scan", "sensitivity"], &shown).lines().map(str::to_owned).collect();
    shown.push(format!(
        "CPM {:.4}: {} of {} nodules hit, {} false positives in {} scans",
        froc.cpm(),
        froc.hit,
        froc.nodules,
        froc.false_positives,
        froc.scans
    ));
    let curve = froc.curve.iter().skip(1).map(|(f, s, p)| vec![p.to_string(), f.to_string(), s.to_string()]).collect();
    let head = ["probability", "false_positives_per_scan", "sensitivity"].map(str::to_owned).to_vec();
    Ok(Evaluated { summary, head, cases: curve, lines: shown, notes })
}

fn findings(path: &Path, ignored: bool) -> Result<Vec<(String, Finding)>> {
    let (table, rows) = places(path)?;
    let column = table.column(path, "diameter_mm")?;
    let one = |r: Row| {
        let diameter = number(path, r.line, "diameter_mm", &r.cells[column])?;
        Ok((r.scan, Finding { place: r.place, diameter, ignored }))
    };
    rows.into_iter().map(one).collect()
}

/// The marks of a table with coordinates, or of one with ids whose places are in `candidates`.
fn marks(path: &Path, candidates: Option<&Path>) -> Result<Vec<(String, Mark)>> {
    let table = Table::read(path)?;
    let Some(candidates) = candidates else {
        if table.find("coordX").is_none() && table.find("id").is_some() {
            return Err(Error::input(path, "has ids and no coordinates; name LUNA16's list with --candidates"));
        }
        let (table, rows) = places(path)?;
        let column = table.column(path, "probability")?;
        return rows
            .into_iter()
            .map(|r| Ok((r.scan, Mark { place: r.place, probability: number(path, r.line, "probability", &r.cells[column])? })))
            .collect();
    };
    let id = table.column(path, "id")?;
    let (_, listed) = places(candidates)?;
    let listed: HashMap<String, (String, [f64; 3])> =
        listed.into_iter().enumerate().map(|(n, r)| (format!("{}:{}", r.scan, n + 1), (r.scan, r.place))).collect();
    let [column] = (0..table.names.len()).filter(|&c| c != id).collect::<Vec<_>>()[..] else {
        return Err(Error::input(
            path,
            format!("has the columns {}, but id and one of probabilities were expected", table.names.join(", ")),
        ));
    };
    let mut seen = HashSet::new();
    let mut out = Vec::with_capacity(table.rows.len());
    for (line, cells) in &table.rows {
        let name = &cells[id];
        let (scan, place) = listed.get(name).ok_or_else(|| {
            Error::input(path, format!("line {line}: `{name}` is no candidate of {}; ids are seriesuid:row", candidates.display()))
        })?;
        if !seen.insert(name) {
            return Err(Error::input(path, format!("line {line}: has the candidate `{name}` again")));
        }
        out.push((scan.clone(), Mark { place: *place, probability: number(path, *line, &table.names[column], &cells[column])? }));
    }
    Ok(out)
}
