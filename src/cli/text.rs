//! What is written to the standard streams. A closed stream is no reason to fail.

use std::io::Write;

use serde_json::Value;

/// A line on the output.
pub(super) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A result for machines.
pub(super) fn say_json(value: &Value) {
    say(format_args!("{value:#}"));
}

/// Something worth knowing, on the error stream.
pub(super) fn note(json: bool, text: &str) {
    let _ =
        if json { writeln!(std::io::stderr(), "{}", serde_json::json!({ "note": text })) } else { writeln!(std::io::stderr(), "{text}") };
}

/// An error, in one line.
pub(super) fn complain(sentence: &str) {
    let one_line = sentence.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "semgen: {one_line}");
}

/// Columns of equal width, two blanks apart; cells that are numbers are set flush right.
pub(super) fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count());
        cells.chain(headers.get(c).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let numeric: Vec<bool> = (0..headers.len())
        .map(|c| rows.iter().filter_map(|r| r.get(c)).filter(|s| !s.is_empty()).all(|s| s.starts_with(|l: char| l.is_ascii_digit())))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for ((cell, &w), &right) in cells.zip(&widths).zip(&numeric) {
            out += &if right { format!("{cell:>w$}  ") } else { format!("{cell:<w$}  ") };
        }
        out.trim_end().to_owned()
    };
    let mut out = vec![line(&mut headers.iter().copied())];
    out.extend(rows.iter().map(|r| line(&mut r.iter().map(String::as_str))));
    out.join("\n")
}

/// `3.2 MiB` and the like.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `64 × 64 × 32`.
pub(super) fn by<T: std::fmt::Display>(size: &[T]) -> String {
    size.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_flush_right() {
        let rows = [vec!["a".to_owned(), "5".to_owned()], vec!["bcd".to_owned(), "12 MiB".to_owned()]];
        assert_eq!(table(&["x", "size"], &rows), "x      size\na         5\nbcd  12 MiB");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([0, 1023, 1024, 3 << 30, u64::MAX].map(bytes), ["0 B", "1023 B", "1.0 KiB", "3.0 GiB", "16777216.0 TiB"]);
        assert_eq!(by(&[64, 64, 32]), "64 × 64 × 32");
    }
}
