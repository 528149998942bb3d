//! What a user's file says in comments about how it is launched.

use crate::error::{Error, Result};

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Entry point; empty where the line names none.
    pub entry: String,
    /// Formula of the number of workgroups.
    pub groups: String,
    /// The line that says so, from 1.
    pub line: usize,
}

/// All directives of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Launches in the order of the file.
    pub stages: Vec<Stage>,
    /// Formula of the 32-bit elements of scratch memory, and its line.
    pub scratch: Option<(String, usize)>,
}

impl Directives {
    /// Reads the lines `// groups: FORMULA`, `// groups ENTRY: FORMULA` and `// scratch: FORMULA`.
    pub fn of(text: &str) -> Self {
        let mut out = Self::default();
        for (line, code) in (1..).zip(text.lines()) {
            let Some(comment) = code.trim_start().strip_prefix("//") else { continue };
            let Some((head, formula)) = comment.split_once(':') else { continue };
            let mut words = head.split_whitespace();
            let formula = formula.trim().to_owned();
            match (words.next(), words.next(), words.next()) {
                (Some("groups"), entry, None) => {
                    out.stages.push(Stage { entry: entry.unwrap_or_default().to_owned(), groups: formula, line });
                }
                (Some("scratch"), None, None) => out.scratch = Some((formula, line)),
                _ => {}
            }
        }
        out
    }
}

/// The value of a formula of whole numbers: names, numbers, `+ - * / %` (division rounds down), parentheses, and
/// `div_up(a, b)`, `min(a, b)`, `max(a, b)`.
///
/// # Errors
/// [`Error::Usage`] that says what is wrong with it.
pub fn evaluate(formula: &str, names: &[(String, u64)]) -> Result<u64> {
    let mut p = Parser { rest: formula, names };
    let value = p.sum().and_then(|v| if p.rest.trim_start().is_empty() { Ok(v) } else { Err(p.unexpected()) });
    value.map_err(|what| Error::Usage(format!("the formula `{formula}`: {what}")))
}

struct Parser<'a> {
    rest: &'a str,
    names: &'a [(String, u64)],
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.rest = &self.rest[c.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, c: char) -> std::result::Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(format!("expected `{c}`, {}", self.unexpected())) }
    }

    fn unexpected(&mut self) -> String {
        self.peek().map_or("found its end".to_owned(), |c| format!("found `{c}`"))
    }

    fn sum(&mut self) -> std::result::Result<u64, String> {
        let mut v = self.product()?;
        loop {
            if self.take('+') {
                v = v.checked_add(self.product()?).ok_or("is too large")?;
            } else if self.take('-') {
                v = v.checked_sub(self.product()?).ok_or("falls below 0")?;
            } else {
                return Ok(v);
            }
        }
    }

    fn product(&mut self) -> std::result::Result<u64, String> {
        let mut v = self.value()?;
        loop {
            if self.take('*') {
                v = v.checked_mul(self.value()?).ok_or("is too large")?;
            } else if self.take('/') {
                v = v.checked_div(self.value()?).ok_or("divides by 0")?;
            } else if self.take('%') {
                v = v.checked_rem(self.value()?).ok_or("divides by 0")?;
            } else {
                return Ok(v);
            }
        }
    }

    fn value(&mut self) -> std::result::Result<u64, String> {
        if self.take('(') {
            let v = self.sum()?;
            return self.expect(')').map(|()| v);
        }
        let word: String = match self.peek() {
            Some(c) if c.is_ascii_alphanumeric() || c == '_' => {
                self.rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
            }
            _ => return Err(format!("expected a number or a name, {}", self.unexpected())),
        };
        self.rest = &self.rest[word.len()..];
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.trim_end_matches('u').parse().map_err(|_| format!("`{word}` is no number"));
        }
        if self.take('(') {
            let a = self.sum()?;
            self.expect(',')?;
            let b = self.sum()?;
            self.expect(')')?;
            return match word.as_str() {
                "div_up" if b == 0 => Err("divides by 0".into()),
                "div_up" => Ok(a.div_ceil(b)),
                "min" => Ok(a.min(b)),
                "max" => Ok(a.max(b)),
                _ => Err(format!("there is no function `{word}`; there are div_up, min and max")),
            };
        }
        let known = || self.names.iter().map(|n| n.0.as_str()).collect::<Vec<_>>().join(", ");
        self.names.iter().find(|n| n.0 == word).map(|n| n.1).ok_or_else(|| format!("there is no `{word}`; there are {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_have_their_values() {
        let names = [("N".to_owned(), 3), ("CO".to_owned(), 64)];
        for (formula, value) in [
            ("1", 1),
            ("N * CO", 192),
            ("(N*CO + 63u) / 64", 3),
            ("2 + 3 * 4 - 1", 13),
            ("div_up(N * CO, 128)", 2),
            (" max( min(5,7) , 6 ) % 4", 2),
            ("10 - 3 - 2", 5),
        ] {
            assert_eq!(evaluate(formula, &names).unwrap(), value, "{formula}");
        }
        for (formula, what) in [
            ("", "its end"),
            ("N +", "its end"),
            ("M", "there is no `M`; there are N, CO"),
            ("1 / 0", "divides by 0"),
            ("N - 4", "below 0"),
            ("N N", "found `N`"),
            ("(N", "expected `)`"),
            ("pow(2, 3)", "no function `pow`"),
            ("12x", "no number"),
            ("99999999999 * 99999999999", "too large"),
        ] {
            let e = evaluate(formula, &names).unwrap_err().to_string();
            assert!(e.contains(what), "{formula}: {e}");
        }
    }

    #[test]
    fn directives_are_comments_of_their_own() {
        let d = Directives::of(
            "// groups: N\nfn f() {} // groups: 5\n  // groups forward_pack: CO / 4\n// groups are many: 3\n// scratch: 8 * N\n",
        );
        let stage = |entry: &str, groups: &str, line| Stage { entry: entry.into(), groups: groups.into(), line };
        assert_eq!(d.stages, [stage("", "N", 1), stage("forward_pack", "CO / 4", 3)]);
        assert_eq!(d.scratch, Some(("8 * N".into(), 5)));
    }
}
