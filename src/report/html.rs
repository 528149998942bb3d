//! One self-contained page: headings, text, tables, figures, key numbers; no request leaves it.
//!
//! Everything given as text is escaped. Pictures are embedded, charts are inline SVG, styles are inline,
//! and a content security policy forbids anything else.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::files;
use crate::report::chart::Chart;

const STYLE: &str = include_str!("page.css");
/// Sorts a table by the column whose heading is clicked; the only script there is, allowed by its hash.
const SCRIPT: &str = include_str!("sort.js");

/// A cell of a table that can be sorted.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// What it is sorted by, where that is a number.
    pub value: Option<f64>,
    /// Part of the column's greatest, 0 to 1, drawn as a bar behind the text.
    pub bar: Option<f64>,
}

impl Cell {
    /// Text alone.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None, bar: None }
    }

    /// A number as `text`; without one, a dash.
    pub fn number(value: Option<f64>, text: impl FnOnce(f64) -> String) -> Self {
        Self { text: value.map_or_else(|| "–".to_owned(), text), value: value.filter(|v| v.is_finite()), bar: None }
    }

    /// With a bar behind it.
    #[must_use]
    pub fn bar(mut self, part: f64) -> Self {
        self.bar = Some(if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 });
        self
    }
}

/// `text` with the five special characters of HTML replaced, fit for content and attribute values.
/// Control characters that XML forbids become U+FFFD, so that charts stay well-formed.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A page under construction; parts appear in the order they are added, key numbers at the top.
pub struct Report {
    title: String,
    subtitle: String,
    footer: String,
    cards: String,
    body: String,
    headings: Vec<String>,
    sortable: bool,
}

impl Report {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            subtitle: String::new(),
            footer: String::new(),
            cards: String::new(),
            body: String::new(),
            headings: Vec::new(),
            sortable: false,
        }
    }

    /// Sets the line below the title.
    pub fn subtitle(&mut self, text: &str) -> &mut Self {
        text.clone_into(&mut self.subtitle);
        self
    }

    /// Sets the line at the end of the page.
    pub fn footer(&mut self, text: &str) -> &mut Self {
        text.clone_into(&mut self.footer);
        self
    }

    /// Adds a key number; `note` may be empty.
    pub fn card(&mut self, label: &str, value: &str, note: &str) -> &mut Self {
        let _ = write!(
            self.cards,
            "<div class=\"card\"><div class=\"label\">{}</div><div class=\"value\">{}</div>",
            escape(label),
            escape(value)
        );
        if !note.is_empty() {
            let _ = write!(self.cards, "<div class=\"note\">{}</div>", escape(note));
        }
        self.cards.push_str("</div>\n");
        self
    }

    /// Begins a section.
    pub fn section(&mut self, heading: &str) -> &mut Self {
        self.headings.push(heading.to_owned());
        let _ = writeln!(self.body, "<h2 id=\"s{}\">{}</h2>", self.headings.len(), escape(heading));
        self
    }

    /// Begins a part of a section.
    pub fn subsection(&mut self, heading: &str) -> &mut Self {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(heading));
        self
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
        self
    }

    /// Adds a table; cells that read as numbers are set flush right. Short rows are filled with empty cells.
    pub fn table(&mut self, headers: &[&str], rows: &[Vec<String>]) -> &mut Self {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(headers.len());
        let numeric = |c: usize| {
            let mut cells = rows.iter().filter_map(|r| r.get(c)).filter(|cell| !cell.is_empty() && *cell != "–").peekable();
            cells.peek().is_some() && cells.all(|cell| cell.starts_with(|l: char| l.is_ascii_digit() || matches!(l, '-' | '−' | '+' | '.')))
        };
        let class: Vec<&str> = (0..columns).map(|c| if numeric(c) { " class=\"num\"" } else { "" }).collect();
        let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells: String = class.iter().map(|class| format!("<{tag}{class}>{}</{tag}>", escape(cells.next().unwrap_or("")))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let head = if headers.is_empty() { String::new() } else { row("th", &mut headers.iter().copied()) };
        let rows: String = rows.iter().map(|cells| row("td", &mut cells.iter().map(String::as_str))).collect();
        let _ = writeln!(self.body, "<div class=\"table\"><table><thead>{head}</thead><tbody>\n{rows}</tbody></table></div>");
        self
    }

    /// Adds a table that is sorted by a click on a heading. Rows have as many cells as there are headings; a column is
    /// of numbers where one of its cells is.
    pub fn sortable_table(&mut self, headers: &[&str], rows: &[Vec<Cell>]) -> &mut Self {
        self.sortable = true;
        let numeric: Vec<bool> =
            (0..headers.len()).map(|c| rows.iter().any(|r| r.get(c).is_some_and(|cell| cell.value.is_some()))).collect();
        let class = |c: usize| if numeric[c] { " class=\"num\"" } else { "" };
        let head: String = headers.iter().enumerate().map(|(c, h)| format!("<th{}>{}</th>", class(c), escape(h))).collect();
        let _ = writeln!(self.body, "<div class=\"table\"><table class=\"sortable\"><thead><tr>{head}</tr></thead><tbody>");
        for row in rows {
            self.body.push_str("<tr>");
            for (c, cell) in row.iter().take(headers.len()).enumerate() {
                let sort = cell.value.map_or_else(String::new, |v| format!(" data-sort=\"{v}\""));
                let bar = cell.bar.map_or_else(String::new, |b| format!(" style=\"--bar:{:.1}%\"", 100.0 * b));
                let class = if cell.bar.is_some() { " class=\"num bar\"" } else { class(c) };
                let _ = write!(self.body, "<td{class}{sort}{bar}>{}</td>", escape(&cell.text));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
        self
    }

    /// Adds an SVG element over the whole width, with its caption.
    pub fn figure(&mut self, svg: &str, caption: &str) -> &mut Self {
        let _ = writeln!(self.body, "<figure class=\"chart\"><figcaption>{}</figcaption>{svg}</figure>", escape(caption));
        self
    }

    /// Adds a picture, the bytes of a PNG file.
    pub fn picture(&mut self, png: &[u8], caption: &str) -> &mut Self {
        let _ = writeln!(
            self.body,
            "<figure class=\"picture\"><img alt=\"{0}\" src=\"data:image/png;base64,{1}\"><figcaption>{0}</figcaption></figure>",
            escape(caption),
            BASE64.encode(png)
        );
        self
    }

    /// Adds charts, two side by side where the page is wide enough, each with its caption.
    pub fn charts(&mut self, charts: &[(Chart, &str)]) -> &mut Self {
        self.body.push_str("<div class=\"charts\">\n");
        for (chart, caption) in charts {
            let _ = writeln!(self.body, "<figure class=\"chart\"><figcaption>{}</figcaption>{}</figure>", escape(caption), chart.svg());
        }
        self.body.push_str("</div>\n");
        self
    }

    /// Adds text as it stands in a file, folded away under `summary`.
    pub fn details(&mut self, summary: &str, text: &str) -> &mut Self {
        let _ = writeln!(self.body, "<details><summary>{}</summary><pre>{}</pre></details>", escape(summary), escape(text));
        self
    }

    /// Adds pictures folded away under `summary`, each with its caption.
    pub fn folded_pictures(&mut self, summary: &str, pictures: &[(Vec<u8>, String)]) -> &mut Self {
        let _ = writeln!(self.body, "<details><summary>{}</summary>", escape(summary));
        for (png, caption) in pictures {
            self.picture(png, caption);
        }
        self.body.push_str("</details>\n");
        self
    }

    /// The page.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let script = if self.sortable { format!("; script-src 'sha256-{}'", BASE64.encode(Sha256::digest(SCRIPT))) } else { String::new() };
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{script}\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header><div class=\"inner\"><h1>{title}</h1>\n"
        );
        if !self.subtitle.is_empty() {
            let _ = writeln!(out, "<p class=\"subtitle\">{}</p>", escape(&self.subtitle));
        }
        out.push_str("</div></header>\n<main>\n");
        if !self.cards.is_empty() {
            let _ = writeln!(out, "<div class=\"cards\">\n{}</div>", self.cards);
        }
        if self.headings.len() > 2 {
            out.push_str("<nav>");
            for (i, heading) in self.headings.iter().enumerate() {
                let _ = write!(out, "<a href=\"#s{}\">{}</a>", i + 1, escape(heading));
            }
            out.push_str("</nav>\n");
        }
        out.push_str(&self.body);
        out.push_str("</main>\n");
        if !self.footer.is_empty() {
            let _ = writeln!(out, "<footer>{}</footer>", escape(&self.footer));
        }
        if self.sortable {
            let _ = writeln!(out, "<script>{SCRIPT}</script>");
        }
        out.push_str("</body>\n</html>\n");
        out
    }

    /// Writes the page; the file is whole or absent.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_bytes(path, self.html().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "<script>alert(\"x\")</script> & 'y'";

    #[test]
    fn special_characters_are_replaced() {
        assert_eq!(escape("a<b>&\"c'"), "a&lt;b&gt;&amp;&quot;c&#39;");
        assert_eq!(escape("ok\n\u{1}\u{7f}ü"), "ok\n\u{fffd}\u{fffd}ü");
    }

    #[test]
    fn every_text_is_escaped_wherever_it_goes() {
        let mut report = Report::new(EVIL);
        report.subtitle(EVIL).footer(EVIL).card(EVIL, EVIL, EVIL).section(EVIL).section(EVIL).section(EVIL).subsection(EVIL);
        report.paragraph(EVIL).table(&[EVIL], &[vec![EVIL.into()]]).picture(b"png", EVIL).details(EVIL, EVIL);
        report.charts(&[(
            Chart::new(EVIL, EVIL).line(EVIL, vec![(0.0, 1.0)]).line(EVIL, vec![(1.0, 1.0)]).level(1.0, EVIL).boundary(0.0, EVIL),
            EVIL,
        )]);
        report.folded_pictures(EVIL, &[(b"png".to_vec(), EVIL.into())]);
        let html = report.html();
        assert!(!html.contains("<script") && !html.contains("'y'") && !html.contains("\"x\""));
        assert_eq!(html.matches("&lt;script&gt;").count(), 33);
    }

    #[test]
    fn nothing_is_requested_from_outside() {
        let mut report = Report::new("t");
        report.section("s").picture(&[1, 2, 3], "c").charts(&[(Chart::new("t", "x"), "c")]);
        let html = report.html().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("url(") && !html.contains("@import"));
        assert!(html.contains("src=\"data:image/png;base64,AQID\""));
    }

    #[test]
    fn tables_that_sort_bring_their_script_and_nothing_else_may_run() {
        let mut report = Report::new("t");
        let rows = [
            vec![Cell::text(EVIL), Cell::number(Some(1.5), |v| format!("{v} ms")).bar(0.5)],
            vec![Cell::text("b"), Cell::number(None, |_| "x".into())],
        ];
        report.sortable_table(&["name", "time"], &rows);
        let html = report.html();
        assert!(html.contains("<th class=\"num\">time</th>") && html.contains("data-sort=\"1.5\" style=\"--bar:50.0%\">1.5 ms<"), "{html}");
        assert!(html.contains("class=\"num\">–</td>") && html.contains("&lt;script&gt;"));
        assert_eq!((html.matches("<script>").count(), html.matches("</script>").count()), (1, 1));
        let hash = BASE64.encode(Sha256::digest(SCRIPT));
        assert!(html.contains(&format!("script-src 'sha256-{hash}'")));
        assert!(!Report::new("t").html().contains("script"));
    }

    #[test]
    fn numeric_columns_are_set_flush_right_and_short_rows_filled() {
        let mut report = Report::new("t");
        report.table(&["name", "value"], &[vec!["a".into(), "1.5".into()], vec!["b".into(), "–".into()], vec!["3d".into()]]);
        let html = report.html();
        assert!(html.contains("<th>name</th><th class=\"num\">value</th>"));
        assert!(html.contains("<td>3d</td><td class=\"num\"></td>"));
        Report::new("t").table(&[], &[]);
    }
}
