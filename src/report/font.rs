//! A small bitmap font for picture sheets: printable ASCII, 5 dots wide, 7 above the baseline and 2 below.
//!
//! The table is drawn as text so that a glyph can be read and mended in the source. At scale 2 the
//! diagonals are smoothed by the EPX rule, which keeps the strokes one dot wide.

use std::sync::LazyLock;

/// Dots from one glyph to the next, the gap included.
pub(super) const ADVANCE: usize = 6;
/// Dots of a glyph's height, descenders included.
pub(super) const HEIGHT: usize = 9;
/// Dots from one line of text to the next.
pub(super) const LINE: usize = 11;

const WIDTH: usize = 5;
const FIRST: usize = 0x20;
const COUNT: usize = 95;
const PER_BAND: usize = 16;

/// Glyphs `' '` to `'~'` in bands of 16, each band 9 rows high.
#[rustfmt::skip]
const ART: [&str; 54] = [
    "..... ..#.. .#.#. .#.#. ..#.. ##... .##.. ..#.. ...#. .#... ..... ..... ..... ..... ..... ....#",
    "..... ..#.. .#.#. .#.#. .#### ##..# #..#. ..#.. ..#.. ..#.. ..#.. ..#.. ..... ..... ..... ....#",
    "..... ..#.. .#.#. ##### #.#.. ...#. #.#.. ..#.. .#... ...#. #.#.# ..#.. ..... ..... ..... ...#.",
    "..... ..#.. ..... .#.#. .###. ..#.. .#... ..... .#... ...#. .###. ##### ..... ####. ..... ..#..",
    "..... ..#.. ..... ##### ..#.# .#... #.#.# ..... .#... ...#. #.#.# ..#.. ..... ..... ..... .#...",
    "..... ..... ..... .#.#. ####. #..## #..#. ..... ..#.. ..#.. ..#.. ..#.. .##.. ..... .##.. #....",
    "..... ..#.. ..... .#.#. ..#.. ...## .##.# ..... ...#. .#... ..... ..... .##.. ..... .##.. #....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..#.. ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .#... ..... ..... .....",
    ".###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###. ..... ..... ...#. ..... .#... .###.",
    "#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...# ..... ..... ..#.. ..... ..#.. #...#",
    "#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...# .##.. .##.. .#... ##### ...#. ....#",
    "#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .#### .##.. .##.. #.... ..... ....# ...#.",
    "##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....# ..... ..... .#... ##### ...#. ..#..",
    "#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#. .##.. .##.. ..#.. ..... ..#.. .....",
    ".###. .###. ##### .###. ...#. .###. .###. .#... .###. .##.. .##.. .##.. ...#. ..... .#... ..#..",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..#.. ..... ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .#... ..... ..... ..... .....",
    ".###. .###. ####. .###. ###.. ##### ##### .###. #...# .###. ..### #...# #.... #...# #...# .###.",
    "#...# #...# #...# #...# #..#. #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.## #...# #...#",
    "....# #...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.# ##..# #...#",
    ".##.# ##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.# #.#.# #...#",
    "#.#.# #...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...# #..## #...#",
    "#.#.# #...# #...# #...# #..#. #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...# #...# #...#",
    ".###. #...# ####. .###. ###.. ##### #.... .#### #...# .###. .##.. #...# ##### #...# #...# .###.",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    "####. .###. ####. .#### ##### #...# #...# #...# #...# #...# ##### .###. #.... .###. ..#.. .....",
    "#...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....# .#... #.... ...#. .#.#. .....",
    "#...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. #...# ...#. .#... .#... ...#. #...# .....",
    "####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. .#.#. ..#.. .#... ..#.. ...#. ..... .....",
    "#.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#... .#... ...#. ...#. ..... .....",
    "#.... #..#. #..#. ....# ..#.. #...# .#.#. #.#.# #...# ..#.. #.... .#... ....# ...#. ..... .....",
    "#.... .##.# #...# ####. ..#.. .###. ..#.. .#.#. #...# ..#.. ##### .###. ....# .###. ..... .....",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... #####",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....",
    ".#... ..... #.... ..... ....# ..... ..##. ..... #.... ..#.. ...#. #.... .##.. ..... ..... .....",
    "..#.. ..... #.... ..... ....# ..... .#..# ..... #.... ..... ..... #.... ..#.. ..... ..... .....",
    "..... .###. #.##. .###. .##.# .###. .#... .#### #.##. .##.. ..##. #..#. ..#.. ##.#. #.##. .###.",
    "..... ....# ##..# #...# #..## #...# ###.. #...# ##..# ..#.. ...#. #.#.. ..#.. #.#.# ##..# #...#",
    "..... .#### #...# #.... #...# ##### .#... #...# #...# ..#.. ...#. ##... ..#.. #.#.# #...# #...#",
    "..... #...# #...# #...# #...# #.... .#... #...# #...# ..#.. ...#. #.#.. ..#.. #.#.# #...# #...#",
    "..... .#### ####. .###. .#### .###. .#... .#### #...# .###. ...#. #..#. .###. #.#.# #...# .###.",
    "..... ..... ..... ..... ..... ..... ..... ....# ..... ..... #..#. ..... ..... ..... ..... .....",
    "..... ..... ..... ..... ..... ..... ..... .###. ..... ..... .##.. ..... ..... ..... ..... .....",
    "..... ..... ..... ..... .#... ..... ..... ..... ..... ..... ..... ...#. ..#.. .#... .....",
    "..... ..... ..... ..... .#... ..... ..... ..... ..... ..... ..... ..#.. ..#.. ..#.. .....",
    "####. .#### #.##. .#### ###.. #...# #...# #...# #...# #...# ##### ..#.. ..#.. ..#.. .#...",
    "#...# #...# ##..# #.... .#... #...# #...# #...# .#.#. #...# ...#. .#... ..#.. ...#. #.#.#",
    "#...# #...# #.... .###. .#... #...# #...# #.#.# ..#.. #...# ..#.. ..#.. ..#.. ..#.. ...#.",
    "#...# #...# #.... ....# .#..# #..## .#.#. #.#.# .#.#. #...# .#... ..#.. ..#.. ..#.. .....",
    "####. .#### #.... ####. ..##. .##.# ..#.. .#.#. #...# .#### ##### ...#. ..#.. .#... .....",
    "#.... ....# ..... ..... ..... ..... ..... ..... ..... ....# ..... ..... ..... ..... .....",
    "#.... ....# ..... ..... ..... ..... ..... ..... ..... .###. ..... ..... ..... ..... .....",
];

/// Bit `WIDTH - 1 - x` of row `y` is dot `(x, y)`.
static GLYPHS: LazyLock<[[u8; HEIGHT]; COUNT]> = LazyLock::new(|| {
    let mut glyphs = [[0u8; HEIGHT]; COUNT];
    for (line, row) in ART.iter().enumerate() {
        for (column, cell) in row.split(' ').enumerate() {
            if let Some(glyph) = glyphs.get_mut(line / HEIGHT * PER_BAND + column) {
                glyph[line % HEIGHT] = cell.bytes().fold(0, |bits, dot| (bits << 1) | u8::from(dot == b'#'));
            }
        }
    }
    glyphs
});

/// The ASCII letter that stands for `c`; `?` where there is none.
fn fold(c: char) -> char {
    match c {
        ' '..='~' => c,
        '\u{a0}' | '\t' | '\n' => ' ',
        '−' | '–' | '—' | '‑' => '-',
        '·' | '•' => '.',
        '×' => 'x',
        '→' => '>',
        '←' => '<',
        '≈' | '∼' => '~',
        '’' | '‘' | '′' => '\'',
        '“' | '”' => '"',
        'µ' | 'μ' => 'u',
        '²' => '2',
        '³' => '3',
        _ => '?',
    }
}

/// Width of `text` in pixels at `scale`.
pub(super) fn width(text: &str, scale: usize) -> usize {
    (text.chars().count() * ADVANCE).saturating_sub(1) * scale
}

/// Calls `plot(x, y)` for every lit pixel of `text`, the origin at its upper left.
pub(super) fn draw(text: &str, scale: usize, mut plot: impl FnMut(usize, usize)) {
    for (at, c) in text.chars().enumerate() {
        let glyph = &GLYPHS[fold(c) as usize - FIRST];
        let lit = |x: isize, y: isize| {
            (0..WIDTH as isize).contains(&x) && (0..HEIGHT as isize).contains(&y) && glyph[y as usize] >> (WIDTH as isize - 1 - x) & 1 == 1
        };
        for y in 0..HEIGHT * scale {
            for x in 0..WIDTH * scale {
                let (dot_x, dot_y) = ((x / scale) as isize, (y / scale) as isize);
                let on = if scale == 2 {
                    // EPX: a quarter takes the colour of its two outer neighbours where they agree and the opposite ones differ.
                    let (dx, dy) = (if x % 2 == 0 { -1 } else { 1 }, if y % 2 == 0 { -1 } else { 1 });
                    let (side, above) = (lit(dot_x + dx, dot_y), lit(dot_x, dot_y + dy));
                    let (far_side, far_above) = (lit(dot_x - dx, dot_y), lit(dot_x, dot_y - dy));
                    if side == above && side != far_above && above != far_side { side } else { lit(dot_x, dot_y) }
                } else {
                    lit(dot_x, dot_y)
                };
                if on {
                    plot(at * ADVANCE * scale + x, y);
                }
            }
        }
    }
}

/// Breaks `text` into lines of at most `columns` letters, between words where possible.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            if !line.is_empty() && line.chars().count() + 1 + word.len() > columns {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > columns {
                let rest = word.split_off(columns);
                lines.push(word.into_iter().collect());
                word = rest;
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_band_is_well_formed() {
        for (i, row) in ART.iter().enumerate() {
            let cells: Vec<_> = row.split(' ').collect();
            assert_eq!(cells.len(), if i / HEIGHT == 5 { COUNT - 5 * PER_BAND } else { PER_BAND }, "row {i}");
            assert!(cells.iter().all(|c| c.len() == WIDTH && c.bytes().all(|b| b == b'#' || b == b'.')), "row {i}");
        }
    }

    #[test]
    fn every_letter_is_its_own_drawing() {
        for a in 1..COUNT {
            assert_ne!(GLYPHS[a], [0; HEIGHT], "letter {a} is empty");
            for b in 0..a {
                assert_ne!(GLYPHS[a], GLYPHS[b], "letters {a} and {b}");
            }
        }
    }

    #[test]
    fn text_stays_inside_its_width() {
        for scale in [1, 2, 3] {
            let (mut right, mut bottom) = (0, 0);
            draw("gW|−é", scale, |x, y| (right, bottom) = (right.max(x + 1), bottom.max(y + 1)));
            assert_eq!(right, width("gW|−é", scale));
            assert!(bottom <= HEIGHT * scale && bottom > 7 * scale);
        }
    }

    #[test]
    fn lines_break_between_words_and_long_words_break_inside() {
        assert_eq!(wrap("loss 0.01 of step 12", 10), ["loss 0.01", "of step 12"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("a abcdef\nb", 4), ["a", "abcd", "ef", "b"]);
        assert!(wrap("", 4).is_empty());
        assert_eq!(wrap("ab", 0), ["a", "b"]);
    }
}
