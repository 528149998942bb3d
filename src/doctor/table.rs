//! Rows as aligned text.

use super::{Part, Row, Summary};

/// The heading of the columns that [`line()`] writes.
pub fn heading(part: Part) -> String {
    let (what, count) = match part {
        Part::Kernel => ("kernel, variant", "cases"),
        Part::Parity => ("tensor", "elements"),
    };
    format!("{what:<46} {count:>9} {:>9} {:>9}  result", "worst", "allowed")
}

/// One row.
pub fn line(row: &Row) -> String {
    let mut result = row.failure.as_ref().map_or("ok".to_owned(), |f| format!("FAILED {f}"));
    if let Some(note) = &row.note {
        result += &format!(" ({note})");
    }
    format!("{:<46} {:>9} {:>9} {:>9}  {result}", row.name, row.count, number(row.error), number(row.tolerance))
}

/// All rows under their headings, what was left out, and the result in one sentence.
pub fn text(summary: &Summary) -> String {
    let mut out = Vec::new();
    let mut part = None;
    for row in &summary.rows {
        if part != Some(row.part) {
            if part.is_some() {
                out.push(String::new());
            }
            out.push(heading(row.part));
            part = Some(row.part);
        }
        out.push(line(row));
    }
    out.push(String::new());
    out.push(verdict(summary));
    out.join("\n") + "\n"
}

/// The result in one sentence, and what was not compared, if anything, in another.
pub fn verdict(summary: &Summary) -> String {
    let n = summary.rows.len();
    let mut out = match (n, summary.failures()) {
        (0, _) => "Nothing was compared.".to_owned(),
        (_, 0) => format!("All {n} comparisons hold."),
        (_, f) => format!("{f} of {n} comparisons FAILED."),
    };
    if !summary.ignored.is_empty() {
        out += &format!(" Not compared: {}.", summary.ignored.join(", "));
    }
    out
}

fn number(v: f64) -> String {
    if v == 0.0 { "0".into() } else { format!("{v:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_failures_stand_out() {
        let row = |part, name: &str, failure: Option<&str>| Row {
            part,
            name: name.into(),
            count: 12,
            error: 1.25e-7,
            tolerance: 1e-5,
            failure: failure.map(str::to_owned),
            note: failure.map(|_| "rounding".to_owned()),
        };
        let mut s = Summary {
            rows: vec![row(Part::Kernel, "conv3d forward", None), row(Part::Parity, "grad.fc1.bias", Some("is 3, expected 4"))],
            ignored: vec!["notes".into()],
        };
        let t = text(&s);
        let lines: Vec<&str> = t.lines().collect();
        assert_eq!(lines.len(), 7, "{t}");
        let at = lines[0].find("result").unwrap();
        assert_eq!(lines[1].find("ok"), Some(at));
        assert_eq!(lines[4].find("FAILED is 3, expected 4 (rounding)"), Some(at));
        assert_eq!(lines[6], "1 of 2 comparisons FAILED. Not compared: notes.");
        s.rows.pop();
        s.ignored.clear();
        assert!(text(&s).ends_with("All 1 comparisons hold.\n"));
        s.rows.clear();
        assert!(text(&s).contains("Nothing was compared"));
    }
}
