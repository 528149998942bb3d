//! Plots with logarithmic axes as SVG text: rooflines, and bandwidth over working sets.

use std::fmt::Write;

use crate::report::html::escape;

const WIDTH: f64 = 1040.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 52.0;
/// Height of a line of the legend.
const LEGEND: f64 = 22.0;
const COLOURS: [&str; 10] = ["#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#0ea5b7", "#eab308", "#ec4899", "#84cc16", "#94a3b8"];
/// Powers of ten that the vertical axis spans at most.
const DECADES: f64 = 4.5;
/// Text keeps its distance from lines behind it by an outline in the ground's colour.
const HALO: &str = "stroke=\"var(--paper, transparent)\" stroke-width=\"4\" paint-order=\"stroke\"";

struct Point {
    x: f64,
    y: f64,
    group: usize,
    /// Area relative to the others', 0 to 1.
    weight: f64,
    label: String,
    title: String,
}

struct Line {
    points: Vec<(f64, f64)>,
    label: String,
    /// A group's colour; the page's ink for roofs.
    group: Option<usize>,
    dashed: bool,
}

/// A plot under construction.
pub struct Plot {
    title: String,
    x_label: String,
    y_label: String,
    groups: Vec<String>,
    points: Vec<Point>,
    lines: Vec<Line>,
    height: f64,
    bytes: bool,
}

/// Positions of a logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, v: f64) -> f64 {
        let part = (v.log10() - self.low) / (self.high - self.low);
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }
}

fn usable(v: f64) -> bool {
    v.is_finite() && v > 0.0
}

impl Plot {
    /// An empty plot; `title` describes it to screen readers.
    pub fn new(title: impl Into<String>, x_label: impl Into<String>, y_label: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            groups: Vec::new(),
            points: Vec::new(),
            lines: Vec::new(),
            height: HEIGHT,
            bytes: false,
        }
    }

    /// Less high.
    #[must_use]
    pub fn low(mut self) -> Self {
        self.height = 340.0;
        self
    }

    /// The horizontal axis counts bytes.
    #[must_use]
    pub fn bytes(mut self) -> Self {
        self.bytes = true;
        self
    }

    fn group(&mut self, name: &str) -> usize {
        self.groups.iter().position(|g| g == name).unwrap_or_else(|| {
            self.groups.push(name.to_owned());
            self.groups.len() - 1
        })
    }

    /// Adds a point of a group; `label` stands beside it where there is room, `title` shows when it is pointed at.
    pub fn point(&mut self, x: f64, y: f64, group: &str, weight: f64, label: &str, title: &str) {
        if usable(x) && usable(y) {
            let group = self.group(group);
            self.points.push(Point { x, y, group, weight, label: label.to_owned(), title: title.to_owned() });
        }
    }

    /// Adds a roof: a line in the page's ink with its name at the end.
    pub fn roof(&mut self, points: Vec<(f64, f64)>, label: &str, dashed: bool) {
        self.lines.push(Line { points, label: label.to_owned(), group: None, dashed });
    }

    /// Adds a line of a group with a dot at every point.
    pub fn line(&mut self, points: Vec<(f64, f64)>, group: &str) {
        let group = self.group(group);
        self.lines.push(Line { points, label: String::new(), group: Some(group), dashed: false });
    }

    /// The `<svg>` element.
    pub fn svg(&self) -> String {
        let rows = self.legend_rows();
        let height = self.height + LEGEND * rows.len() as f64;
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\" fill=\"none\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12.5\"><title>{}</title>",
            escape(&self.title)
        );
        let all = || self.points.iter().map(|p| (p.x, p.y)).chain(self.lines.iter().flat_map(|l| l.points.iter().copied()));
        let finite = || all().filter(|p| usable(p.0) && usable(p.1));
        if finite().next().is_none() {
            let _ = write!(
                out,
                "<text x=\"{}\" y=\"{}\" fill=\"currentColor\" opacity=\".6\" text-anchor=\"middle\">no data</text></svg>",
                WIDTH / 2.0,
                height / 2.0
            );
            return out;
        }
        let range = |values: &mut dyn Iterator<Item = f64>, room: f64| {
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v.log10()), h.max(v.log10())));
            let room = if high - low < 0.1 { 0.5 } else { room };
            (low - room, high + room)
        };
        let (x_low, x_high) = range(&mut finite().map(|p| p.0), 0.06);
        let (y_low, y_high) = range(&mut finite().map(|p| p.1), 0.12);
        // A few points far below would press all others together: they lie on the lower edge.
        let y_low = y_low.max(y_high - DECADES);
        let bottom = self.height - BOTTOM;
        let x = Axis { low: x_low, high: x_high, from: LEFT, to: WIDTH - RIGHT };
        let y = Axis { low: y_low, high: y_high, from: bottom, to: TOP };
        self.draw_axes(&mut out, &x, &y, bottom);
        self.lines.iter().for_each(|l| self.draw_line(&mut out, l, &x, &y));
        self.draw_points(&mut out, &x, &y);
        self.draw_legend(&mut out, &rows);
        out.push_str("</svg>");
        out
    }

    fn draw_axes(&self, out: &mut String, x: &Axis, y: &Axis, bottom: f64) {
        let right = WIDTH - RIGHT;
        for (tick, strong) in ticks(y.low, y.high) {
            let at = y.place(tick);
            let _ = write!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"currentColor\" stroke-opacity=\"{}\"/>",
                if strong { ".16" } else { ".06" }
            );
            if strong {
                let _ = write!(
                    out,
                    "<text x=\"{}\" y=\"{:.1}\" fill=\"currentColor\" opacity=\".72\" text-anchor=\"end\">{}</text>",
                    LEFT - 8.0,
                    at + 4.0,
                    number(tick)
                );
            }
        }
        let marks = if self.bytes { binary(x.low, x.high) } else { ticks(x.low, x.high) };
        for (tick, strong) in marks {
            let at = x.place(tick);
            let _ = write!(
                out,
                "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"currentColor\" stroke-opacity=\"{}\"/>",
                if strong { ".16" } else { ".06" }
            );
            if strong {
                let text = if self.bytes { size(tick) } else { number(tick) };
                let _ = write!(
                    out,
                    "<text x=\"{at:.1}\" y=\"{}\" fill=\"currentColor\" opacity=\".72\" text-anchor=\"middle\">{text}</text>",
                    bottom + 19.0
                );
            }
        }
        let _ = write!(
            out,
            "<path d=\"M{LEFT} {bottom}H{right}\" stroke=\"currentColor\" stroke-opacity=\".5\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"currentColor\" opacity=\".72\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {}) rotate(-90)\" fill=\"currentColor\" opacity=\".72\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            bottom + 40.0,
            escape(&self.x_label),
            (TOP + bottom) / 2.0,
            escape(&self.y_label)
        );
    }

    fn draw_line(&self, out: &mut String, line: &Line, x: &Axis, y: &Axis) {
        let points: Vec<(f64, f64)> =
            line.points.iter().filter(|p| usable(p.0) && usable(p.1)).map(|p| (x.place(p.0), y.place(p.1))).collect();
        let Some(last) = points.last() else { return };
        let colour = line.group.map_or("currentColor", |g| COLOURS[g % COLOURS.len()]);
        let d: Vec<String> = points.iter().map(|p| format!("{:.1} {:.1}", p.0, p.1)).collect();
        let dash = if line.dashed { " stroke-dasharray=\"5 5\"" } else { "" };
        let _ = write!(
            out,
            "<path d=\"M{}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-opacity=\".8\" stroke-linejoin=\"round\"{dash}><title>{}</title></path>",
            d.join("L"),
            escape(&line.label)
        );
        if line.group.is_some() {
            for p in &points {
                let _ = write!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", p.0, p.1);
            }
        } else {
            // A flat roof is named at its right end, a slope at its foot.
            let flat = points.len() > 1 && (points[0].1 - last.1).abs() < 1.0;
            let (at, anchor) = if flat { (*last, "end") } else { ((points[0].0 + 8.0, points[0].1), "start") };
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"currentColor\" {HALO} font-weight=\"600\" text-anchor=\"{anchor}\">{}</text>",
                at.0,
                at.1 - 6.0,
                escape(&line.label)
            );
        }
    }

    fn draw_points(&self, out: &mut String, x: &Axis, y: &Axis) {
        let mut order: Vec<&Point> = self.points.iter().collect();
        // Large ones first, so that small ones stay visible.
        order.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let mut labels: Vec<(f64, f64, f64)> = Vec::new();
        let mut texts = String::new();
        for p in &order {
            let (cx, cy) = (x.place(p.x), y.place(p.y));
            let r = 3.5 + 9.5 * p.weight.clamp(0.0, 1.0).sqrt();
            let colour = COLOURS[p.group % COLOURS.len()];
            let _ = write!(
                out,
                "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{r:.1}\" fill=\"{colour}\" fill-opacity=\".6\" stroke=\"{colour}\"><title>{}</title></circle>",
                escape(&p.title)
            );
            // A label where no other one is yet.
            let width = 6.4 * p.label.chars().count() as f64;
            let (left, base) = if cx + r + width > WIDTH - RIGHT { (cx - r - 5.0 - width, cy + 4.0) } else { (cx + r + 5.0, cy + 4.0) };
            let free = labels.iter().all(|l| base - l.1 > 14.0 || l.1 - base > 14.0 || left > l.0 + l.2 || l.0 > left + width);
            if !p.label.is_empty() && free && labels.len() < 24 && left > LEFT {
                labels.push((left, base, width));
                let _ = write!(
                    texts,
                    "<text x=\"{left:.1}\" y=\"{base:.1}\" font-size=\"11.5\" fill=\"currentColor\" {HALO}>{}</text>",
                    escape(&p.label)
                );
            }
        }
        out.push_str(&texts);
    }

    /// The groups of each line of the legend, with their places.
    fn legend_rows(&self) -> Vec<Vec<(usize, f64)>> {
        let mut rows: Vec<Vec<(usize, f64)>> = Vec::new();
        let mut at = f64::INFINITY;
        for (i, group) in self.groups.iter().enumerate() {
            let width = 40.0 + 7.0 * group.chars().count() as f64;
            if at + width > WIDTH - RIGHT {
                rows.push(Vec::new());
                at = LEFT;
            }
            if let Some(row) = rows.last_mut() {
                row.push((i, at));
            }
            at += width;
        }
        rows
    }

    fn draw_legend(&self, out: &mut String, rows: &[Vec<(usize, f64)>]) {
        for (k, row) in rows.iter().enumerate() {
            let y = self.height + LEGEND * k as f64 + 8.0;
            for &(i, at) in row {
                let _ = write!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"currentColor\">{}</text>",
                    at + 5.0,
                    COLOURS[i % COLOURS.len()],
                    at + 16.0,
                    y + 4.5,
                    escape(&self.groups[i])
                );
            }
        }
    }
}

/// Marks at 1, 2, … 9 times powers of ten within 10^low and 10^high, and whether each is named.
fn ticks(low: f64, high: f64) -> Vec<(f64, bool)> {
    let few = high - low < 1.5;
    #[expect(clippy::cast_possible_truncation, reason = "exponents are small")]
    let decades = (low.floor() as i32)..=(high.ceil() as i32);
    decades
        .flat_map(|e| (1..10).map(move |m| (f64::from(m) * 10f64.powi(e), m == 1 || few && (m == 2 || m == 5))))
        .filter(|(v, _)| (low..=high).contains(&v.log10()))
        .collect()
}

/// Marks at powers of 4 bytes, every second one named.
fn binary(low: f64, high: f64) -> Vec<(f64, bool)> {
    (0..40).map(|k| (4f64.powi(k), true)).filter(|(v, _)| (low..=high).contains(&v.log10())).collect()
}

fn size(bytes: f64) -> String {
    let (value, unit) = match bytes {
        b if b >= 1_073_741_824.0 => (b / 1_073_741_824.0, "GiB"),
        b if b >= 1_048_576.0 => (b / 1_048_576.0, "MiB"),
        b => (b / 1024.0, "KiB"),
    };
    format!("{value} {unit}")
}

fn number(v: f64) -> String {
    match v {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v if v >= 1.0 => format!("{v:.0}"),
        v if v >= 1e-3 => format!("{v}").chars().take(6).collect(),
        v => format!("{v:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coordinate_is_finite_whatever_the_data() {
        let mut p = Plot::new("t <", "x &", "y");
        for (x, y) in [(1.0, 1.0), (f64::NAN, 1.0), (0.0, 2.0), (-1.0, 3.0), (1e300, 1e-300), (f64::INFINITY, 1.0)] {
            p.point(x, y, "g<", 0.5, "l<", "t<");
        }
        p.roof(vec![(1.0, f64::NAN), (2.0, 3.0)], "r<", true);
        let svg = p.svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("l<\""), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3, "two points can be shown, and the legend");
        assert!(Plot::new("t", "x", "y").svg().contains("no data"));
    }

    #[test]
    fn axes_are_marked_at_powers() {
        let named: Vec<f64> = ticks(-1.1, 2.2).into_iter().filter(|t| t.1).map(|t| t.0).collect();
        assert_eq!(named, [0.1, 1.0, 10.0, 100.0]);
        assert_eq!(ticks(0.0, 1.0).into_iter().filter(|t| t.1).count(), 4);
        assert_eq!([0.01, 1.0, 100.0, 20_000.0, 3e6].map(number), ["0.01", "1", "100", "20k", "3M"]);
        assert_eq!([65_536.0, 4_194_304.0].map(size), ["64 KiB", "4 MiB"]);
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        let mut p = Plot::new("t", "x", "y");
        for i in 0..10 {
            p.point(1.0 + 1e-6 * f64::from(i), 1.0, "g", 0.1, "label", "title");
        }
        p.point(100.0, 100.0, "g", 0.1, "far", "title");
        let svg = p.svg();
        assert_eq!((svg.matches(">label<").count(), svg.matches(">far<").count(), svg.matches("<circle").count()), (1, 1, 12));
    }
}
