//! Shapes as the command line takes them: numbers separated by commas, with sweeps.
//!
//! A field is a number; alternatives `32|64`; a range `8..64` (doubling), `8..64*4` (times 4) or `8..20+4` (in steps of
//! 4), both ends included; or `=`, the same as the field before. Fields are combined in every way: `1,16..64,=,32,32,32`
//! has 16→16, 32→32 and 64→64 channels.

use crate::error::{Error, Result};

/// Most shapes of one sweep.
const MOST: usize = 1000;

/// A field: its values, or a copy of the field before.
enum Field {
    Values(Vec<usize>),
    Same,
}

/// Every shape that `text` stands for, of as many numbers as `fields` (`N,C,D,H,W`) names.
///
/// # Errors
/// [`Error::Usage`] that says what is expected.
pub fn parse(op: &str, fields: &str, text: &str) -> Result<Vec<Vec<usize>>> {
    let names: Vec<&str> = fields.split(',').collect();
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let wrong = |what: String| Error::Usage(format!("--shape {text}: {what}; {op} takes {fields}, as in {}", example(fields)));
    if parts.len() != names.len() {
        return Err(wrong(format!("{} numbers were given, {} are expected", parts.len(), names.len())));
    }
    let mut out: Vec<Vec<usize>> = vec![Vec::new()];
    for (part, name) in parts.iter().zip(&names) {
        let field = field(part).map_err(|e| wrong(format!("{name} is `{part}`, {e}")))?;
        out = match field {
            Field::Values(values) => {
                if out.len() * values.len() > MOST {
                    return Err(wrong(format!("the sweep has more than {MOST} shapes")));
                }
                out.iter().flat_map(|shape| values.iter().map(move |v| [shape.as_slice(), &[*v]].concat())).collect()
            }
            Field::Same => {
                let last = |mut shape: Vec<usize>| {
                    shape.last().copied().map(|v| {
                        shape.push(v);
                        shape
                    })
                };
                out.into_iter().map(last).collect::<Option<_>>().ok_or_else(|| wrong("`=` has no field before it".to_owned()))?
            }
        };
    }
    Ok(out)
}

/// A shape with the given fields, for messages.
fn example(fields: &str) -> String {
    let value = |name: &str| match name {
        "N" => "1",
        "CI" | "C" => "32",
        "CO" => "64",
        "ROWS" | "COLS" => "4096",
        "WIDTH" => "512",
        "K" => "200",
        "CLASSES" => "44",
        "ELEMENTS" => "1048576",
        _ => "32",
    };
    fields.split(',').map(value).collect::<Vec<_>>().join(",")
}

fn number(text: &str) -> std::result::Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("but every size must be at least 1".into()),
        Ok(n) if n > u32::MAX as usize => Err("but sizes are at most 4294967295".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("expected a number, alternatives 8|16, a range 8..64, 8..64*4 or 8..20+4, or = for the field before".into()),
    }
}

fn field(text: &str) -> std::result::Result<Field, String> {
    if text == "=" {
        return Ok(Field::Same);
    }
    let mut values = Vec::new();
    for one in text.split('|') {
        let Some((first, rest)) = one.split_once("..") else {
            values.push(number(one)?);
            continue;
        };
        let (last, factor, step) = match (rest.split_once('*'), rest.split_once('+')) {
            (Some((last, factor)), _) => (last, number(factor)?, 0),
            (None, Some((last, step))) => (last, 1, number(step)?),
            (None, None) => (rest, 2, 0),
        };
        let (mut at, last) = (number(first)?, number(last)?);
        if factor == 1 && step == 0 {
            return Err("but a factor of 1 leads nowhere".into());
        }
        if at > last {
            return Err("but a range goes from the smaller to the larger".into());
        }
        while at <= last {
            values.push(at);
            if values.len() > MOST {
                return Err(format!("but a range has at most {MOST} values"));
            }
            at = at * factor + step;
        }
    }
    Ok(Field::Values(values))
}

/// One number for all axes, or three.
///
/// # Errors
/// [`Error::Usage`] that names `option`.
pub fn triple(option: &str, text: &str, least: usize) -> Result<[usize; 3]> {
    let parts: Option<Vec<usize>> = text.split(',').map(|p| p.trim().parse().ok().filter(|v| *v >= least)).collect();
    match parts.as_deref() {
        Some([one]) => Ok([*one; 3]),
        Some([d, h, w]) => Ok([*d, *h, *w]),
        _ => Err(Error::Usage(format!(
            "--{option} {text}: expected one number of at least {least} or three separated by commas, as in 3,3,3"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(text: &str) -> Vec<Vec<usize>> {
        parse("relu", "N,C,D", text).unwrap()
    }

    #[test]
    fn sweeps_are_combined() {
        assert_eq!(shapes("1,2, 3"), [[1, 2, 3]]);
        assert_eq!(shapes("1|2,3,4|5"), [[1, 3, 4], [1, 3, 5], [2, 3, 4], [2, 3, 5]]);
        assert_eq!(shapes("1,8..40,="), [[1, 8, 8], [1, 16, 16], [1, 32, 32]]);
        assert_eq!(shapes("2..18*3,=,1"), [[2, 2, 1], [6, 6, 1], [18, 18, 1]]);
        assert_eq!(shapes("1,1,8..20+4|3"), [[1, 1, 8], [1, 1, 12], [1, 1, 16], [1, 1, 20], [1, 1, 3]]);
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        for (text, part) in [
            ("1,2", "2 numbers were given, 3 are expected; relu takes N,C,D, as in 1,32,32"),
            ("1,x,2", "C is `x`, expected a number"),
            ("1,0,2", "at least 1"),
            ("=,1,2", "no field before"),
            ("1,9..3,2", "from the smaller to the larger"),
            ("1,3..9*1,2", "leads nowhere"),
            ("1..900+1,1..900+1,2", "more than 1000"),
            ("1..9000+1,1,2", "at most 1000"),
        ] {
            let e = parse("relu", "N,C,D", text).unwrap_err();
            assert!(e.to_string().contains(part) && e.exit_code() == 2, "{e}");
        }
        assert_eq!(triple("kernel", "3", 1).unwrap(), [3; 3]);
        assert_eq!(triple("padding", "0, 1,2", 0).unwrap(), [0, 1, 2]);
        assert!(triple("stride", "0", 1).unwrap_err().to_string().starts_with("--stride 0:"));
        assert!(triple("stride", "1,2", 1).is_err());
    }
}
