//! Probabilities of classes against labels.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::tables::{Table, number};
use super::{Evaluated, cell, shown};
use crate::cli::text;
use crate::error::{Error, Result};
use crate::metrics::classification::{Confusion, OneClass};
use crate::metrics::difference::mean;
use crate::metrics::ranking::{Area, auc, average_precision, delong};

/// How far the probabilities of classes that exclude each other may be from a sum of 1.
const SUM: f64 = 1e-2;

const CONVENTIONS: &str = "AUC counts ties one half; its 95 % interval is DeLong's. Sensitivity, specificity, precision and F1 are those of decisions: more than 0.5, or with classes that exclude each other the most probable one. A share of nothing is left out.";

/// What was predicted.
struct Predictions {
    classes: Vec<String>,
    ids: Vec<String>,
    /// By case, then class.
    values: Vec<Vec<f64>>,
}

/// What is true of the cases, in their order.
enum Truth {
    /// The one class that holds: with one column of probabilities 0 or 1, else the column's number.
    One(Vec<usize>),
    /// By case, then class; `None` where it is not known.
    Each(Vec<Vec<Option<bool>>>),
}

pub(super) fn evaluate(predicted: &Path, truth: &Path, partial: bool) -> Result<Evaluated> {
    let mut predictions = read_predictions(predicted)?;
    let mut notes = Vec::new();
    let table = Table::read(truth)?;
    let rows = match_rows(predicted, &mut predictions, truth, &table, partial, &mut notes)?;
    let truth = read_truth(predicted, &predictions, truth, &table, &rows)?;
    let single = predictions.classes.len() == 1;
    let (decided, table) = match &truth {
        Truth::One(t) => {
            let decide = |v: &Vec<f64>| if single { usize::from(v[0] > 0.5) } else { largest(v) };
            let decided: Vec<usize> = predictions.values.iter().map(decide).collect();
            let names = if single {
                vec![format!("not {}", predictions.classes[0]), predictions.classes[0].clone()]
            } else {
                predictions.classes.clone()
            };
            let confusion = Confusion::of(names.len(), &decided, t);
            (Some(decided), Some((names, confusion)))
        }
        Truth::Each(_) => (None, None),
    };
    let of_class = |c: usize| -> ClassResult {
        let known: Vec<(f64, bool, bool)> = (0..predictions.ids.len())
            .filter_map(|i| {
                let p = predictions.values[i][c];
                let (found, held) = match (&truth, &decided) {
                    (Truth::One(t), Some(d)) => {
                        let number = if single { 1 } else { c };
                        (d[i] == number, t[i] == number)
                    }
                    (Truth::Each(t), _) => (p > 0.5, t[i][c]?),
                    (Truth::One(_), None) => return None,
                };
                Some((p, found, held))
            })
            .collect();
        ClassResult::of(&known)
    };
    let results: Vec<ClassResult> = (0..predictions.classes.len()).map(of_class).collect();
    if let Some((name, _)) = predictions.classes.iter().zip(&results).find(|(_, r)| r.auc.is_none()) {
        notes.push(format!("{name}: all cases are of one kind, so that there is no AUC"));
    }
    let mut summary = json!({ "kind": "classification", "cases": predictions.ids.len() });
    summary["classes"] =
        predictions.classes.iter().cloned().zip(results.iter().map(ClassResult::json)).collect::<serde_json::Map<_, _>>().into();
    summary["mean_auc"] = json!(mean(&results.iter().filter_map(|r| r.auc).collect::<Vec<_>>()));
    let mut lines: Vec<String> = shown_classes(&predictions.classes, &results);
    if !single {
        lines.push(format!("mean AUC over classes {}", shown(summary["mean_auc"].as_f64())));
    }
    if let Some((names, confusion)) = &table {
        summary["accuracy"] = json!(confusion.accuracy());
        summary["balanced_accuracy"] = json!(confusion.balanced_accuracy());
        summary["macro_f1"] = json!(confusion.macro_f1());
        summary["confusion"] = json!({ "classes": names, "rows_are_truth": confusion.counts });
        lines.push(format!(
            "accuracy {}, balanced {}, macro F1 {}",
            shown(confusion.accuracy()),
            shown(confusion.balanced_accuracy()),
            shown(confusion.macro_f1())
        ));
        lines.push(String::new());
        let head: Vec<&str> = std::iter::once("truth \\ decided").chain(names.iter().map(String::as_str)).collect();
        let rows: Vec<Vec<String>> = names
            .iter()
            .zip(&confusion.counts)
            .map(|(n, row)| std::iter::once(n.clone()).chain(row.iter().map(u64::to_string)).collect())
            .collect();
        lines.extend(text::table(&head, &rows).lines().map(str::to_owned));
    }
    summary["conventions"] = json!(CONVENTIONS);
    lines.push(CONVENTIONS.to_owned());
    let (head, cases) = by_case(&predictions, &truth, decided.as_deref());
    Ok(Evaluated { summary, head, cases, lines, notes })
}

/// What is measured of one class against the rest.
struct ClassResult {
    auc: Option<f64>,
    area: Option<Area>,
    precision: Option<f64>,
    cases: usize,
    decisions: OneClass,
    accuracy: Option<f64>,
}

impl ClassResult {
    /// Of probabilities, decisions and truth.
    fn of(known: &[(f64, bool, bool)]) -> Self {
        let scores: Vec<f64> = known.iter().map(|k| k.0).collect();
        let held: Vec<bool> = known.iter().map(|k| k.2).collect();
        let number = |f: &dyn Fn(&(f64, bool, bool)) -> bool| known.iter().map(|k| usize::from(f(k))).collect::<Vec<_>>();
        let confusion = Confusion::of(2, &number(&|k| k.1), &number(&|k| k.2));
        Self {
            auc: auc(&scores, &held),
            area: delong(&scores, &held),
            precision: average_precision(&scores, &held),
            cases: known.len(),
            decisions: confusion.one(1),
            accuracy: confusion.accuracy(),
        }
    }

    fn json(&self) -> Value {
        let d = &self.decisions;
        json!({
            "cases": self.cases, "positive": d.cases, "auc": self.auc, "auc_error": self.area.map(|a| a.error),
            "auc_interval_95": self.area.map(|a| [a.interval.0, a.interval.1]), "average_precision": self.precision,
            "sensitivity": d.sensitivity, "specificity": d.specificity, "precision": d.precision, "f1": d.f1, "accuracy": self.accuracy,
        })
    }
}

fn shown_classes(classes: &[String], results: &[ClassResult]) -> Vec<String> {
    let headers = ["class", "cases", "positive", "AUC", "95 %", "average precision", "sensitivity", "specificity", "precision", "F1"];
    let row = |(name, r): (&String, &ClassResult)| {
        let interval = r.area.map_or_else(|| "–".to_owned(), |a| format!("{:.4} to {:.4}", a.interval.0, a.interval.1));
        let d = &r.decisions;
        let mut row = vec![name.clone(), r.cases.to_string(), d.cases.to_string(), shown(r.auc), interval];
        row.extend([r.precision, d.sensitivity, d.specificity, d.precision, d.f1].map(shown));
        row
    };
    let rows: Vec<Vec<String>> = classes.iter().zip(results).map(row).collect();
    text::table(&headers, &rows).lines().map(str::to_owned).collect()
}

fn largest(values: &[f64]) -> usize {
    let by_value = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]).then(b.cmp(a));
    (0..values.len()).max_by(by_value).unwrap_or(0)
}

fn read_predictions(path: &Path) -> Result<Predictions> {
    let table = Table::read(path)?;
    let id = table.column(path, "id")?;
    let columns: Vec<usize> = (0..table.names.len()).filter(|&c| c != id).collect();
    if columns.is_empty() {
        return Err(Error::input(path, "has no column of probabilities besides id"));
    }
    let mut out = Predictions { classes: columns.iter().map(|&c| table.names[c].clone()).collect(), ids: Vec::new(), values: Vec::new() };
    let mut seen = BTreeSet::new();
    for (line, cells) in table.rows {
        if !seen.insert(cells[id].clone()) {
            return Err(Error::input(path, format!("line {line}: has the id `{}` again", cells[id])));
        }
        let one = |&c: &usize| {
            let p = number(path, line, &table.names[c], &cells[c])?;
            if (0.0..=1.0).contains(&p) {
                return Ok(p);
            }
            Err(Error::input(path, format!("line {line}: column `{}` holds {p}, which is no probability", table.names[c])))
        };
        out.values.push(columns.iter().map(one).collect::<Result<_>>()?);
        out.ids.push(cells[id].clone());
    }
    if out.ids.is_empty() {
        return Err(Error::input(path, "holds no case"));
    }
    Ok(out)
}

/// The truth's row of each prediction.
fn match_rows(
    predicted: &Path,
    predictions: &mut Predictions,
    truth: &Path,
    table: &Table,
    partial: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<usize>> {
    let id = table.column(truth, "id")?;
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    for (n, (line, cells)) in table.rows.iter().enumerate() {
        if by_id.insert(&cells[id], n).is_some() {
            return Err(Error::input(truth, format!("line {line}: has the id `{}` again", cells[id])));
        }
    }
    let mut rows = Vec::with_capacity(predictions.ids.len());
    for case in &predictions.ids {
        let row = by_id.remove(case.as_str());
        rows.push(row.ok_or_else(|| Error::input(predicted, format!("there is no truth for the case `{case}` in {}", truth.display())))?);
    }
    if let Some(first) = by_id.values().min() {
        let what =
            format!("{} cases of {} have no prediction, the first being `{}`", by_id.len(), truth.display(), table.rows[*first].1[id]);
        if !partial {
            return Err(Error::input(predicted, format!("{what}; predict them, or give --partial to evaluate the others")));
        }
        notes.push(format!("{what}; they are left out"));
    }
    Ok(rows)
}

fn read_truth(predicted: &Path, predictions: &Predictions, path: &Path, table: &Table, rows: &[usize]) -> Result<Truth> {
    let classes = &predictions.classes;
    let rows = || rows.iter().map(|&r| &table.rows[r]);
    if let Some(label) = table.find("label") {
        let names: BTreeSet<&str> = table.rows.iter().map(|r| r.1[label].as_str()).collect();
        let numbered = names.iter().all(|n| n.parse::<u64>().is_ok()) && !classes.iter().any(|c| names.contains(c.as_str()));
        let of = |(line, cells): &(u64, Vec<String>)| {
            let word = cells[label].as_str();
            let bad = |expected: String| Error::input(path, format!("line {line}: the label `{word}` is none of {expected}"));
            if let [only] = classes.as_slice() {
                return match word {
                    _ if word == only => Ok(1),
                    "0" | "1" if numbered => Ok(usize::from(word == "1")),
                    // Of two names the other one is "no".
                    _ if !numbered && names.len() <= 2 && (names.len() == 1 || names.contains(only.as_str())) && !word.is_empty() => Ok(0),
                    _ => Err(bad(format!("`{only}` and one other name, or 1 and 0"))),
                };
            }
            let found = if numbered { word.parse().ok().filter(|n| *n < classes.len()) } else { classes.iter().position(|c| c == word) };
            found.ok_or_else(|| bad(format!("the predicted classes, {}, or their numbers from 0", classes.join(", "))))
        };
        return rows().map(of).collect::<Result<_>>().map(Truth::One);
    }
    let columns: Vec<usize> = classes
        .iter()
        .map(|c| {
            let found = table.names.iter().position(|n| n == c);
            found.ok_or_else(|| {
                Error::input(path, format!("has neither `label` nor the column `{c}`, a class that {} predicts", predicted.display()))
            })
        })
        .collect::<Result<_>>()?;
    let known = |(line, cells): &(u64, Vec<String>)| -> Result<Vec<Option<bool>>> {
        let one = |&c: &usize| match cells[c].to_ascii_lowercase().as_str() {
            "" | "nan" => Ok(None),
            "0" | "0.0" => Ok(Some(false)),
            "1" | "1.0" => Ok(Some(true)),
            other => Err(Error::input(
                path,
                format!("line {line}: column `{}` holds `{other}`, but 1, 0 or nothing was expected", table.names[c]),
            )),
        };
        columns.iter().map(one).collect()
    };
    let each: Vec<Vec<Option<bool>>> = rows().map(known).collect::<Result<_>>()?;
    let one_holds = |t: &Vec<Option<bool>>| t.iter().all(Option::is_some) && t.iter().filter(|v| **v == Some(true)).count() == 1;
    let sums = predictions.values.iter().all(|v| (v.iter().sum::<f64>() - 1.0).abs() < SUM);
    let one_output = classes.len() == 1 && each.iter().all(|t| t[0].is_some());
    if one_output {
        return Ok(Truth::One(each.iter().map(|t| usize::from(t[0] == Some(true))).collect()));
    }
    if classes.len() > 1 && sums && each.iter().all(one_holds) {
        return Ok(Truth::One(each.iter().map(|t| t.iter().position(|v| *v == Some(true)).unwrap_or(0)).collect()));
    }
    Ok(Truth::Each(each))
}

fn by_case(predictions: &Predictions, truth: &Truth, decided: Option<&[usize]>) -> (Vec<String>, Vec<Vec<String>>) {
    let classes = &predictions.classes;
    let mut head = vec!["id".to_owned()];
    head.extend(classes.iter().cloned());
    match truth {
        Truth::One(_) => head.extend(["truth", "decided", "right"].map(str::to_owned)),
        Truth::Each(_) => head.extend(classes.iter().map(|c| format!("truth of {c}"))),
    }
    let name = |n: usize| match classes.as_slice() {
        [only] if n == 1 => only.clone(),
        [only] => format!("not {only}"),
        many => many[n].clone(),
    };
    let rows = predictions.ids.iter().zip(&predictions.values).enumerate().map(|(i, (id, values))| {
        let mut row = vec![id.clone()];
        row.extend(values.iter().map(|&v| cell(Some(v))));
        match (truth, decided) {
            (Truth::One(t), Some(d)) => row.extend([name(t[i]), name(d[i]), u8::from(t[i] == d[i]).to_string()]),
            (Truth::Each(t), _) => row.extend(t[i].iter().map(|v| v.map_or_else(String::new, |v| u8::from(v).to_string()))),
            (Truth::One(_), None) => {}
        }
        row
    });
    (head, rows.collect())
}
