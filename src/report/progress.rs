//! Progress of long work on the standard error stream: a bar on a terminal, plain lines otherwise,
//! one JSON object per line for machines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far one piece of work has come.
pub struct Progress {
    what: String,
    total: u64,
    created: Instant,
    /// When the first report came; speed counts from there.
    started: Instant,
    /// Position at the first report; a resumed run does not start at 0, and its speed must not count what others did.
    first: Option<u64>,
    pacer: Pacer,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Box<dyn Write + Send>),
    Json(Box<dyn Write + Send>),
}

impl Progress {
    /// Starts a piece of work named `what` of `total` steps; 0 means unknown.
    ///
    /// With `json`, every report is an object `{"progress", "position", "total", "per_second", "message"}`
    /// on a line of its own. Reports come about every 5 s (more rarely in long work) and every tenth of the work.
    pub fn new(what: impl Into<String>, total: u64, json: bool) -> Self {
        let what = what.into();
        let stderr = std::io::stderr();
        let shown = if json {
            Shown::Json(Box::new(stderr))
        } else if stderr.is_terminal() {
            Shown::Bar(bar(&what, total))
        } else {
            Shown::Lines(Box::new(stderr))
        };
        Self::with(what, total, shown)
    }

    fn with(what: String, total: u64, shown: Shown) -> Self {
        let now = Instant::now();
        Self { what, total, created: now, started: now, first: None, pacer: Pacer::default(), shown }
    }

    /// Says that `position` steps of the total are done; `message` is short and optional (a loss, a file name).
    pub fn set(&mut self, position: u64, message: &str) {
        let now = Instant::now();
        if self.first.is_none() {
            self.first = Some(position);
            self.started = now;
        }
        let elapsed = now - self.started;
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(position);
                bar.set_message(speed(position, self.total, self.rate(position, elapsed), message));
            }
            Shown::Lines(_) | Shown::Json(_) => {
                if self.pacer.due(elapsed, position, self.total) {
                    self.report(position, elapsed, message);
                }
            }
        }
    }

    /// Steps per second since the first report.
    fn rate(&self, position: u64, elapsed: Duration) -> Option<f64> {
        let done = position.saturating_sub(self.first.unwrap_or(0));
        let seconds = elapsed.as_secs_f64();
        (done > 0 && seconds > 0.0).then(|| done as f64 / seconds)
    }

    /// Ends the work with a last line.
    pub fn finish(self, message: &str) {
        let elapsed = self.created.elapsed();
        let Self { what, shown, .. } = self;
        let text = format!("{what}: {message} ({})", duration(elapsed));
        match shown {
            Shown::Bar(bar) => {
                bar.println(text);
                bar.finish_and_clear();
            }
            Shown::Lines(mut out) => put(&mut out, &text),
            Shown::Json(mut out) => {
                put(&mut out, &serde_json::json!({"progress": what, "finished": message, "seconds": elapsed.as_secs_f64()}).to_string());
            }
        }
    }

    /// A line of its own that does not break the bar.
    pub fn note(&mut self, text: &str) {
        let what = &self.what;
        match &mut self.shown {
            Shown::Bar(bar) => bar.println(text),
            Shown::Lines(out) => put(out, text),
            Shown::Json(out) => put(out, &serde_json::json!({"progress": what, "note": text}).to_string()),
        }
    }

    fn report(&mut self, position: u64, elapsed: Duration, message: &str) {
        let rate = self.rate(position, elapsed);
        let (what, total) = (&self.what, self.total);
        match &mut self.shown {
            Shown::Bar(_) => {}
            Shown::Lines(out) => put(out, &line(what, position, total, rate, message)),
            Shown::Json(out) => {
                let object = serde_json::json!({
                    "progress": what, "position": position, "total": (total > 0).then_some(total), "per_second": rate, "message": message,
                });
                put(out, &object.to_string());
            }
        }
    }
}

/// A closed error stream is no reason to stop working.
fn put(out: &mut Box<dyn Write + Send>, text: &str) {
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn bar(what: &str, total: u64) -> ProgressBar {
    let (length, template) = if total > 0 {
        (Some(total), "{prefix:.bold} {wide_bar:.cyan/238} {human_pos}/{human_len}  {elapsed}  {msg}")
    } else {
        (None, "{prefix:.bold} {spinner:.cyan} {human_pos}  {elapsed}  {msg}")
    };
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_prefix(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// One plain line, for example `pretrain: 250/1000 (25 %), 12.3/s, 1:01 left, loss 0.021`.
fn line(what: &str, position: u64, total: u64, rate: Option<f64>, message: &str) -> String {
    let mut text = format!("{what}: {position}");
    if total > 0 {
        text += &format!("/{total} ({} %)", (100.0 * position as f64 / total as f64).floor());
    }
    let speed = speed(position, total, rate, message);
    if !speed.is_empty() {
        text += &format!(", {speed}");
    }
    text
}

/// Speed, time left and message, as far as they are known.
fn speed(position: u64, total: u64, rate: Option<f64>, message: &str) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = rate {
        parts.push(if rate >= 1.0 { format!("{rate:.1}/s") } else { format!("{:.1} s each", 1.0 / rate) });
        if let Ok(left) = Duration::try_from_secs_f64(total.saturating_sub(position) as f64 / rate)
            && total > position
        {
            parts.push(format!("{} left", duration(left)));
        }
    }
    if !message.is_empty() {
        parts.push(message.to_owned());
    }
    parts.join(", ")
}

/// `3.2 s`, `1:05` or `2:03:04`.
fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}

/// Decides when a plain line is due.
#[derive(Default)]
struct Pacer {
    last: Option<(Duration, u64)>,
}

impl Pacer {
    /// The first report, the last, every tenth of the work, and every 5 s, which stretch to a minute in long work.
    fn due(&mut self, elapsed: Duration, position: u64, total: u64) -> bool {
        let interval = (elapsed / 20).clamp(Duration::from_secs(5), Duration::from_secs(60));
        let tenth = |p: u64| (u128::from(p) * 10).checked_div(u128::from(total)).unwrap_or(0);
        let due = match self.last {
            None => true,
            Some((when, at)) => elapsed.saturating_sub(when) >= interval || tenth(position) > tenth(at),
        };
        if due {
            self.last = Some((elapsed, position));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn fast_work_gives_a_line_every_tenth() {
        let kept = Kept::default();
        let mut progress = Progress::with("prepare".into(), 1000, Shown::Lines(Box::new(kept.clone())));
        for i in 0..=1000 {
            progress.set(i, "");
        }
        progress.note("one scan left out");
        progress.finish("1000 scans");
        let lines = kept.lines();
        assert_eq!(lines.len(), 13, "{lines:?}");
        assert!(lines[0].starts_with("prepare: 0/1000 (0 %)"));
        assert!(lines[10].starts_with("prepare: 1000/1000 (100 %)"));
        assert_eq!(lines[11], "one scan left out");
        assert!(lines[12].starts_with("prepare: 1000 scans ("));
    }

    #[test]
    fn machines_get_one_object_per_line() {
        let kept = Kept::default();
        let mut progress = Progress::with("a \"b\"".into(), 0, Shown::Json(Box::new(kept.clone())));
        progress.set(3, "loss 1");
        progress.note("n");
        progress.finish("done");
        let objects: Vec<serde_json::Value> = kept.lines().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(objects.len(), 3);
        assert_eq!((objects[0]["position"].as_u64(), objects[0]["total"].as_u64()), (Some(3), None));
        assert_eq!((objects[1]["note"].as_str(), objects[2]["finished"].as_str()), (Some("n"), Some("done")));
    }

    #[test]
    fn slow_work_gives_a_line_every_few_seconds() {
        let mut pacer = Pacer::default();
        let due: Vec<u64> = (0..100).filter(|&s| pacer.due(Duration::from_secs(s), s, 1_000_000)).collect();
        assert_eq!(due[..4], [0, 5, 10, 15]);
        let mut pacer = Pacer::default();
        let due = (0..36_000).filter(|&s| pacer.due(Duration::from_secs(s), s, 0)).count();
        assert!((600..700).contains(&due), "{due} lines in ten hours");
    }

    #[test]
    fn lines_say_speed_and_time_left() {
        assert_eq!(line("pretrain", 250, 1000, Some(12.5), "loss 0.02"), "pretrain: 250/1000 (25 %), 12.5/s, 1:00 left, loss 0.02");
        assert_eq!(line("read", 2, 0, Some(0.25), ""), "read: 2, 4.0 s each");
        assert_eq!(line("read", 0, 5, None, ""), "read: 0/5 (0 %)");
        assert_eq!(duration(Duration::from_secs(7384)), "2:03:04");
    }
}
