//! Contact sheets: labelled rows of grey-scale tiles in one PNG file, on a dark ground.

use std::path::Path;

use crate::error::{Error, Result};
use crate::files;
use crate::report::font;

type Colour = [u8; 3];

const GROUND: Colour = [15, 18, 23];
const TITLE: Colour = [240, 243, 247];
const TEXT: Colour = [198, 206, 216];
const FAINT: Colour = [128, 139, 153];
const RULE: Colour = [38, 44, 53];
const FRAME: Colour = [52, 59, 70];
/// Frame of a tile that the others of its row are compared with.
const ACCENT: Colour = [255, 184, 77];

const MARGIN: usize = 20;
const GAP: usize = 10;
const ROW_GAP: usize = 16;
const TEXT_SCALE: usize = 2;
const TITLE_SCALE: usize = 3;
const LABEL_COLUMNS: usize = 14;
/// Width in pixels up to which the largest tile is enlarged.
const TARGET_WIDTH: usize = 224;
/// Least width in pixels of a column, so that captions have room.
const LEAST_COLUMN: usize = 132;

/// Share of a class's colour inside its area; its outline has all of it.
const TINT: f32 = 0.35;

/// The colour of a class: red, then hues that are far from those before.
pub fn class_colour(class: usize) -> [u8; 3] {
    // The golden angle.
    let hue = (class.saturating_sub(1) as f32 * 137.508) % 360.0 / 60.0;
    let x = 1.0 - (hue % 2.0 - 1.0).abs();
    let [r, g, b] = match hue as u8 {
        0 => [1.0, x, 0.0],
        1 => [x, 1.0, 0.0],
        2 => [0.0, 1.0, x],
        3 => [0.0, x, 1.0],
        4 => [x, 0.0, 1.0],
        _ => [1.0, 0.0, x],
    };
    [r, g, b].map(|v: f32| (70.0 + 185.0 * v) as u8)
}

/// How values become colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tone {
    /// 0 is black, 1 is white; values outside are clamped.
    Grey,
    /// Differences: 0 is black, negative values are blue, positive ones orange, full at the given magnitude.
    Signed(f32),
}

impl Tone {
    /// NaN is shown in magenta, so that it cannot be overlooked.
    fn colour(self, value: f32) -> Colour {
        let mix = |t: f32, to: Colour| to.map(|c| (t.clamp(0.0, 1.0) * f32::from(c)).round() as u8);
        match self {
            _ if value.is_nan() => [255, 0, 255],
            Self::Grey => mix(value, [255; 3]),
            Self::Signed(full) if value < 0.0 => mix(-value / full, [90, 170, 255]),
            Self::Signed(full) => mix(value / full, [255, 150, 50]),
        }
    }
}

/// One picture of a sheet.
#[derive(Clone, Debug)]
pub struct Tile {
    pixels: Vec<f32>,
    width: usize,
    height: usize,
    caption: String,
    tone: Tone,
    aspect: f64,
    accent: bool,
    /// Class of every pixel, 0 for none; empty for no overlay.
    classes: Vec<u16>,
}

impl Tile {
    /// A grey tile from `width * height` values in `[0, 1]`, row by row from the upper left.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no pixel or their number is not `width * height`.
    pub fn new(pixels: Vec<f32>, width: usize, height: usize) -> Result<Self> {
        if pixels.is_empty() || width.checked_mul(height) != Some(pixels.len()) {
            return Err(Error::shape("sheet", format!("{} values do not make a picture of {width} x {height}", pixels.len())));
        }
        Ok(Self { pixels, width, height, caption: String::new(), tone: Tone::Grey, aspect: 1.0, accent: false, classes: Vec::new() })
    }

    /// With a text below; long ones are wrapped.
    #[must_use]
    pub fn caption(mut self, text: impl Into<String>) -> Self {
        self.caption = text.into();
        self
    }

    /// With `text` as a further line below.
    #[must_use]
    pub fn append_caption(mut self, text: &str) -> Self {
        if !self.caption.is_empty() {
            self.caption.push('\n');
        }
        self.caption.push_str(text);
        self
    }

    /// The values, row by row from the upper left.
    pub fn into_pixels(self) -> Vec<f32> {
        self.pixels
    }

    /// With another colouring.
    #[must_use]
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// With pixels `aspect` times as high as wide (voxel spacing down the picture over spacing across); clamped to 1/8 to 8.
    #[must_use]
    pub fn aspect(mut self, aspect: f64) -> Self {
        self.aspect = if aspect.is_finite() { aspect.clamp(0.125, 8.0) } else { 1.0 };
        self
    }

    /// With a bright frame, for the tile that others are compared with.
    #[must_use]
    pub fn accent(mut self) -> Self {
        self.accent = true;
        self
    }

    /// With areas of classes laid over it: tinted, with an outline; `classes` has the class of every pixel, 0 for none.
    ///
    /// # Panics
    /// If there are not as many classes as pixels.
    #[must_use]
    pub fn overlay(mut self, classes: Vec<u16>) -> Self {
        assert_eq!(classes.len(), self.pixels.len(), "a class for every pixel");
        self.classes = classes;
        self
    }

    /// The colour of pixel (`x`, `y`).
    fn colour(&self, x: usize, y: usize) -> Colour {
        let at = y * self.width + x;
        let grey = self.tone.colour(self.pixels[at]);
        let class = self.classes.get(at).copied().unwrap_or(0);
        if class == 0 {
            return grey;
        }
        let other = |x: usize, y: usize| x >= self.width || y >= self.height || self.classes[y * self.width + x] != class;
        let outline = other(x.wrapping_sub(1), y) || other(x + 1, y) || other(x, y.wrapping_sub(1)) || other(x, y + 1);
        let share = if outline { 1.0 } else { TINT };
        let own = class_colour(usize::from(class));
        std::array::from_fn(|c| (f32::from(grey[c]) * (1.0 - share) + f32::from(own[c]) * share) as u8)
    }

    fn shown(&self, scale: usize) -> [usize; 2] {
        [self.width * scale, ((self.height * scale) as f64 * self.aspect).round().max(1.0) as usize]
    }
}

struct Row {
    label: String,
    tiles: Vec<Tile>,
}

/// A contact sheet under construction; every row is drawn below the one before.
pub struct Sheet {
    title: String,
    note: String,
    columns: Vec<String>,
    rows: Vec<Row>,
    scale: Option<usize>,
    legend: Vec<(String, Colour)>,
}

impl Sheet {
    /// An empty sheet with a heading.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), note: String::new(), columns: Vec::new(), rows: Vec::new(), scale: None, legend: Vec::new() }
    }

    /// With a line of explanation below the title.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.note = text.into();
        self
    }

    /// With a heading above every column.
    #[must_use]
    pub fn columns(mut self, names: &[&str]) -> Self {
        self.columns = names.iter().map(ToString::to_string).collect();
        self
    }

    /// With names of classes in their colours; the first name is class 1.
    #[must_use]
    pub fn legend(mut self, names: &[String]) -> Self {
        self.legend = names.iter().enumerate().map(|(i, n)| (n.clone(), class_colour(i + 1))).collect();
        self
    }

    /// With pixels enlarged `factor` times (at least 1); otherwise small tiles are enlarged to about 224 pixels.
    #[must_use]
    pub fn scale(mut self, factor: usize) -> Self {
        self.scale = Some(factor.max(1));
        self
    }

    /// Adds a row; one without a label continues the row above.
    #[must_use]
    pub fn row(mut self, label: impl Into<String>, tiles: Vec<Tile>) -> Self {
        self.rows.push(Row { label: label.into(), tiles });
        self
    }

    /// Space above a row. One without a label belongs to the row above: it is closer, and no rule parts them.
    fn gap_above(&self, row: usize) -> usize {
        match self.rows.get(row) {
            Some(_) if row == 0 => 0,
            Some(r) if r.label.is_empty() => GAP,
            _ => ROW_GAP,
        }
    }

    /// The sheet as pixels.
    pub fn draw(&self) -> Picture {
        let tiles = || self.rows.iter().flat_map(|r| &r.tiles);
        let widest = tiles().map(|t| t.width).max().unwrap_or(1);
        let scale = self.scale.unwrap_or((TARGET_WIDTH / widest).max(1));
        let line = font::LINE * TEXT_SCALE;

        let n_columns = self.rows.iter().map(|r| r.tiles.len()).max().unwrap_or(0).max(self.columns.len());
        let column_width: Vec<usize> = (0..n_columns)
            .map(|c| self.rows.iter().filter_map(|r| r.tiles.get(c)).map(|t| t.shown(scale)[0]).max().unwrap_or(0).max(LEAST_COLUMN))
            .collect();
        let letters = |width: usize| width / (font::ADVANCE * TEXT_SCALE);
        let labels: Vec<Vec<String>> = self.rows.iter().map(|r| font::wrap(&r.label, LABEL_COLUMNS)).collect();
        let label_width = labels.iter().flatten().map(|l| font::width(l, TEXT_SCALE)).max().unwrap_or(0);
        let left = MARGIN + if label_width > 0 { label_width + GAP + GAP / 2 } else { 0 };
        let body: usize = column_width.iter().map(|w| w + GAP).sum::<usize>().saturating_sub(GAP);
        let title_width = font::width(&self.title, TITLE_SCALE);
        let width = MARGIN + (left + body).max(MARGIN + title_width);
        let notes = font::wrap(&self.note, letters(width - 2 * MARGIN));
        // Entries of the legend with their places, line by line.
        let (mut places, mut at) = (Vec::new(), [MARGIN, 0]);
        for (name, _) in &self.legend {
            let needs = line + font::width(name, TEXT_SCALE) + 2 * GAP;
            if at[0] > MARGIN && at[0] + needs > width - MARGIN {
                at = [MARGIN, at[1] + 1];
            }
            places.push(at);
            at[0] += needs;
        }
        let legend_lines = if self.legend.is_empty() { 0 } else { at[1] + 1 };
        let heads: Vec<Vec<String>> = self.columns.iter().zip(&column_width).map(|(name, w)| font::wrap(name, letters(*w))).collect();
        let captions: Vec<Vec<Vec<String>>> = self
            .rows
            .iter()
            .map(|r| r.tiles.iter().zip(&column_width).map(|(t, w)| font::wrap(&t.caption, letters(*w))).collect())
            .collect();

        let title_height = font::LINE * TITLE_SCALE + GAP / 2;
        let head_lines = heads.iter().map(Vec::len).max().unwrap_or(0);
        let head_height = if head_lines > 0 { head_lines * line + GAP / 2 } else { 0 };
        let below_notes = MARGIN + title_height + notes.len() * line;
        let top = below_notes + legend_lines * line + GAP;
        let row_height: Vec<usize> = (self.rows.iter().zip(&labels).zip(&captions))
            .map(|((row, label), captions)| {
                let below = |c: &Vec<String>| if c.is_empty() { 0 } else { GAP / 2 + c.len() * line };
                row.tiles.iter().zip(captions).map(|(t, c)| t.shown(scale)[1] + below(c)).max().unwrap_or(0).max(label.len() * line)
            })
            .collect();
        let height = top + head_height + (0..self.rows.len()).map(|i| self.gap_above(i) + row_height[i]).sum::<usize>() + MARGIN;

        let mut picture = Picture::new(width, height);
        picture.text([MARGIN, MARGIN], &self.title, TITLE_SCALE, TITLE);
        for (i, note) in notes.iter().enumerate() {
            picture.text([MARGIN, MARGIN + title_height + i * line], note, TEXT_SCALE, FAINT);
        }
        for ((name, colour), [x, row]) in self.legend.iter().zip(&places) {
            let y = below_notes + row * line;
            picture.fill([*x, y + 2], [line - 8, line - 8], *colour);
            picture.text([x + line, y], name, TEXT_SCALE, TEXT);
        }
        let mut x = left;
        for (head, w) in heads.iter().zip(&column_width) {
            for (i, text) in head.iter().enumerate() {
                picture.text([x, top + i * line], text, TEXT_SCALE, FAINT);
            }
            x += w + GAP;
        }
        let mut y = top + head_height;
        for (r, (((row, label), captions), h)) in self.rows.iter().zip(&labels).zip(&captions).zip(&row_height).enumerate() {
            let gap = self.gap_above(r);
            y += gap;
            if gap == ROW_GAP {
                picture.fill([MARGIN, y - ROW_GAP / 2], [width - 2 * MARGIN, 1], RULE);
            }
            for (i, text) in label.iter().enumerate() {
                picture.text([MARGIN, y + i * line], text, TEXT_SCALE, TITLE);
            }
            let mut x = left;
            for ((tile, caption), w) in row.tiles.iter().zip(captions).zip(&column_width) {
                let [_, shown] = picture.tile([x, y], tile, scale);
                for (i, text) in caption.iter().enumerate() {
                    picture.text([x, y + shown + GAP / 2 + i * line], text, TEXT_SCALE, TEXT);
                }
                x += w + GAP;
            }
            y += h;
        }
        picture
    }

    /// The sheet as the bytes of a PNG file.
    ///
    /// # Errors
    /// [`Error::Failed`] if the sheet is too large for a PNG file.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.draw().encode()
    }

    /// Writes the sheet as a PNG file; the file is whole or absent.
    ///
    /// # Errors
    /// As [`Sheet::encode`], and [`Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_bytes(path, &self.encode()?)
    }
}

/// A colour picture, 3 bytes a pixel.
pub struct Picture {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: GROUND.repeat(width * height) }
    }

    /// The colour at column `x` of row `y`, counted from the upper left; `None` outside.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        let at = (y * self.width + x) * 3;
        (x < self.width).then(|| self.pixels.get(at..at + 3)?.try_into().ok()).flatten()
    }

    /// What falls outside is not drawn.
    fn set(&mut self, x: usize, y: usize, colour: Colour) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    fn fill(&mut self, at: [usize; 2], size: [usize; 2], colour: Colour) {
        for y in at[1]..at[1] + size[1] {
            for x in at[0]..at[0] + size[0] {
                self.set(x, y, colour);
            }
        }
    }

    fn text(&mut self, at: [usize; 2], text: &str, scale: usize, colour: Colour) {
        font::draw(text, scale, |x, y| self.set(at[0] + x, at[1] + y, colour));
    }

    /// Draws `tile` inside a frame that lies around it; returns its size.
    fn tile(&mut self, at: [usize; 2], tile: &Tile, scale: usize) -> [usize; 2] {
        let shown = tile.shown(scale);
        let (frame, thickness) = if tile.accent { (ACCENT, 2) } else { (FRAME, 1) };
        self.fill(at.map(|a| a.saturating_sub(thickness)), shown.map(|s| s + 2 * thickness), frame);
        for y in 0..shown[1] {
            let row = (y * tile.height / shown[1]).min(tile.height - 1);
            for x in 0..shown[0] {
                self.set(at[0] + x, at[1] + y, tile.colour(x / scale, row));
            }
        }
        shown
    }

    /// The bytes of a PNG file, 8 bits a channel.
    ///
    /// # Errors
    /// [`Error::Failed`] if the picture is too large for a PNG file.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::Failed(format!("a picture of {} x {} pixels cannot be made a PNG file: {e}", self.width, self.height))
        };
        let (width, height) = (u32::try_from(self.width).map_err(|e| failed(&e))?, u32::try_from(self.height).map_err(|e| failed(&e))?);
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(|e| failed(&e))?;
        writer.write_image_data(&self.pixels).map_err(|e| failed(&e))?;
        writer.finish().map_err(|e| failed(&e))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> (usize, usize, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut out = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut out).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        (info.width as usize, info.height as usize, out)
    }

    #[test]
    fn the_file_decodes_to_the_drawn_pixels() {
        let tile = Tile::new(vec![0.0, 1.0, 0.5, 2.0, f32::NAN, -1.0], 3, 2).unwrap();
        let sheet = Sheet::new("").scale(50).row("", vec![tile]);
        let picture = sheet.draw();
        let (width, height, pixels) = decode(&sheet.encode().unwrap());
        assert_eq!((width, height), (picture.width, picture.height));
        assert_eq!(width, 150 + 2 * MARGIN);
        assert_eq!(pixels, picture.pixels);
        let first = (0..height).find(|&y| picture.pixel(MARGIN + 60, y) == Some([255; 3])).unwrap();
        let colours: Vec<_> =
            [0, 1].iter().flat_map(|r| [0, 1, 2].map(|c| picture.pixel(MARGIN + c * 50 + 49, first + r * 50).unwrap())).collect();
        assert_eq!(colours, [[0; 3], [255; 3], [128; 3], [255; 3], [255, 0, 255], [0; 3]]);
        assert_eq!(picture.pixel(MARGIN + 150, first), Some(FRAME));
        assert_eq!(picture.pixel(width, 0), None);
        assert_eq!(picture.pixel(0, height), None);
    }

    #[test]
    fn differences_are_black_at_zero_and_tell_the_sign() {
        assert_eq!(Tone::Signed(0.5).colour(0.0), [0; 3]);
        assert_eq!(Tone::Signed(0.5).colour(0.5), [255, 150, 50]);
        assert_eq!(Tone::Signed(0.5).colour(-9.0), [90, 170, 255]);
    }

    #[test]
    fn a_tile_of_the_wrong_size_is_refused() {
        for (n, w, h) in [(0, 0, 0), (5, 2, 3), (4, usize::MAX, 2)] {
            assert!(Tile::new(vec![0.0; n], w, h).is_err());
        }
    }

    #[test]
    fn an_aspect_stretches_downwards() {
        let tile = Tile::new(vec![0.0, 1.0], 1, 2).unwrap().aspect(2.5);
        assert_eq!(tile.shown(4), [4, 20]);
        assert_eq!(tile.aspect(f64::NAN).shown(4), [4, 8]);
    }

    #[test]
    fn empty_and_ragged_sheets_are_pictures_too() {
        let tile = || Tile::new(vec![0.5; 6], 2, 3).unwrap().caption("a rather long caption that wraps");
        for sheet in [
            Sheet::new(""),
            Sheet::new("Only a title").note("and a note"),
            Sheet::new("t").columns(&["a", "b", "c"]).row("one", vec![tile()]).row("none", vec![]).row("", vec![tile().accent(), tile()]),
        ] {
            let (width, height, _) = decode(&sheet.encode().unwrap());
            assert!(width >= 2 * MARGIN && height >= 2 * MARGIN);
        }
    }
}
