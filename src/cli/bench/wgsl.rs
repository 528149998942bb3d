//! `semgen bench wgsl`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::args::Common;
use super::super::{stop, text};
use super::{rules, seconds, three, write};
use crate::bench::peak::Roof;
use crate::bench::result::{Document, Environment, Row};
use crate::bench::shape;
use crate::bench::wgsl::{self, Refusal, Sizes, Task, Text};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Caps, Context, Target};

/// How often a watched file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Options of `bench wgsl`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The WGSL file; see --contract and --template
    #[arg(value_name = "FILE.wgsl", required_unless_present_any = ["template", "contract"])]
    file: Option<PathBuf>,
    /// Operation whose place it takes
    #[arg(long, value_name = "NAME", default_value = "conv3d")]
    op: String,
    /// Sizes, as `bench op` takes them for the operation; of conv3d N,CI,CO,D,H,W
    #[arg(long, value_name = "SIZES", default_value = "1,32,64,32,32,32")]
    shape: String,
    /// Kernel or window, one number or three, as `bench op` takes it
    #[arg(long, value_name = "D,H,W")]
    kernel: Option<String>,
    /// Stride, one number or three
    #[arg(long, value_name = "D,H,W")]
    stride: Option<String>,
    /// Padding, one number or three
    #[arg(long, value_name = "D,H,W")]
    padding: Option<String>,
    /// Pass: forward, input-grad, weight-grad, or all that the file has an entry point for
    #[arg(long, value_name = "PASS", default_value = "all")]
    pass: String,
    /// Number of workgroups, a formula of the shape's numbers; replaces the file's `// groups` line
    #[arg(long, value_name = "FORMULA")]
    groups: Option<String>,
    /// Print a correct, naive kernel to start from, and nothing else
    #[arg(long, value_name = "OP", exclusive = true)]
    template: Option<String>,
    /// Print what the file is given: bindings, constants, entry points
    #[arg(long)]
    contract: bool,
    /// Measure again whenever the file is saved
    #[arg(long)]
    watch: bool,
    /// Do not measure; translate: spirv, msl or hlsl
    #[arg(long, value_name = "LANGUAGE")]
    emit: Option<String>,
    /// Where the translation goes [default: the output; SPIR-V needs a file]
    #[arg(long, value_name = "FILE", requires = "emit")]
    out: Option<PathBuf>,
    /// Run the file without bounds checks and bounded loops, as our kernels run; a wrong index may crash the driver
    #[arg(long)]
    unchecked: bool,
    /// Seconds for each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    time_limit: f64,
    /// Write the result to a file, - for the output
    #[arg(id = "json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file_json: Option<PathBuf>,
}

pub(super) fn run(common: &Common, a: &Args) -> Result<()> {
    if let Some(op) = &a.template {
        text::say(wgsl::template(op)?.trim_end());
        return Ok(());
    }
    let three = |name: &str, text: &Option<String>, least| text.as_deref().map(|t| shape::triple(name, t, least)).transpose();
    let sizes = Sizes {
        shape: &a.shape,
        kernel: three("--kernel", &a.kernel, 1)?,
        stride: three("--stride", &a.stride, 1)?,
        padding: three("--padding", &a.padding, 0)?,
    };
    if a.contract || a.emit.is_some() {
        // No device is needed; limits only matter when something runs.
        let tasks = wgsl::tasks(&Caps::minimal(), &a.op, &sizes)?;
        if a.contract {
            tasks.iter().flat_map(wgsl::contract).for_each(text::say);
            return Ok(());
        }
        return translate(a, &tasks);
    }
    let file = a.file.as_deref().unwrap_or_else(|| Path::new(""));
    let mut bench = Bench::open(common, a)?;
    let tasks = wgsl::tasks(bench.ours.caps(), &a.op, &sizes)?;
    if !a.watch {
        return bench.once(a, file, &tasks);
    }
    let interrupted = stop::watch()?;
    text::note(common.json, &format!("{} is measured whenever it is saved; Ctrl-C ends", file.display()));
    watch(
        file,
        &mut || {
            if let Err(e) = bench.once(a, file, &tasks) {
                text::complain(&e.to_string());
                // A device that has failed once reports nothing else.
                if matches!(e, Error::Gpu(_)) {
                    bench = Bench::open(common, a)?;
                }
            }
            Ok(())
        },
        &mut || {
            std::thread::sleep(POLL);
            interrupted.load(std::sync::atomic::Ordering::Relaxed)
        },
    )
}

/// Calls `work` at once and after each change of the file's time of modification, until `pause`, which is called before
/// every look, says that it is over.
///
/// # Errors
/// What `work` reports.
fn watch(file: &Path, work: &mut dyn FnMut() -> Result<()>, pause: &mut dyn FnMut() -> bool) -> Result<()> {
    // An editor may replace the file; for a moment there is none.
    let changed = || std::fs::metadata(file).and_then(|m| m.modified()).ok();
    let mut seen: Option<SystemTime> = changed();
    work()?;
    while !pause() {
        let now = changed();
        if now.is_some() && now != seen {
            seen = now;
            work()?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(Error::io("read", file))
}

/// The text against one of the tasks; naga's report goes to the error stream.
fn understood(file: &Path, user: &str, task: &Task) -> Result<Text> {
    Text::new(file, user, &task.constants).map_err(|Refusal { report, error }| {
        if let Some(report) = report {
            text::note(false, report.trim_end());
        }
        error
    })
}

fn translate(a: &Args, tasks: &[Task]) -> Result<()> {
    let target = match a.emit.as_deref() {
        Some("spirv") => Target::SpirV,
        Some("msl") => Target::Msl,
        Some("hlsl") => Target::Hlsl,
        other => return Err(Error::Usage(format!("--emit {}: expected spirv, msl or hlsl", other.unwrap_or_default()))),
    };
    let file = a.file.as_deref().unwrap_or_else(|| Path::new(""));
    let Some(task) = tasks.first() else { return Ok(()) };
    let source = understood(file, &read(file)?, task)?;
    let only = (a.pass != "all").then(|| wgsl::entry(&a.pass));
    let points = source.entry_points().len();
    if target == Target::SpirV && only.is_none() && points > 1 {
        return Err(Error::Usage(format!("{} has {points} entry points; choose one with --pass for a SPIR-V module", file.display())));
    }
    let bytes = source.translate(only.as_deref(), target)?;
    match (&a.out, target) {
        (Some(out), _) => files::write_bytes(out, &bytes),
        (None, Target::SpirV) => Err(Error::Usage("--emit spirv writes binary words; name a file with --out".into())),
        (None, _) => {
            text::say(String::from_utf8_lossy(&bytes).trim_end());
            Ok(())
        }
    }
}

/// Two devices on one adapter: ours as production runs it, the user's with every check.
struct Bench {
    ours: Context,
    theirs: Option<Context>,
    roof: Option<Roof>,
}

impl Bench {
    fn open(common: &Common, a: &Args) -> Result<Self> {
        let ours = common.context()?;
        let theirs = if a.unchecked { None } else { Some(Context::with_checks(common.adapter.as_deref())?) };
        let roof = Roof::kept(ours.caps());
        Ok(Self { ours, theirs, roof })
    }

    /// Measures every pass that is asked for.
    fn once(&self, a: &Args, file: &Path, tasks: &[Task]) -> Result<()> {
        let user = read(file)?;
        let theirs = self.theirs.as_ref().unwrap_or(&self.ours);
        let mut document = Document::new(Environment::here(self.ours.caps()), self.roof.clone());
        document.environment.note_kernels([(wgsl::variant(file).as_str(), user.as_str())]);
        let mut done = Vec::new();
        for task in tasks.iter().filter(|t| a.pass == "all" || a.pass == t.problem.pass) {
            let source = understood(file, &user, task)?;
            if a.pass == "all" && !source.does(task.problem.pass) {
                continue;
            }
            done.push(task.problem.pass);
            let rules = rules(a.time_limit)?;
            document.rows.extend(wgsl::compare(&self.ours, theirs, task, &source, a.groups.as_deref(), &rules, self.roof.as_ref())?);
        }
        if done.is_empty() {
            let asked: Vec<_> = tasks.iter().map(|t| format!("{} ({})", wgsl::entry(t.problem.pass), t.problem.pass)).collect();
            return Err(Error::input(file, format!("has no entry point for --pass {}; expected one of {}", a.pass, asked.join(", "))));
        }
        let checks = if a.unchecked { "without runtime checks" } else { "with runtime checks, ours without" };
        if !write(&document, a.file_json.as_deref())? {
            text::say(format_args!("{} {} on {}; the file runs {checks}", a.op, a.shape, self.ours.caps().name));
            text::say(table(&document.rows));
        }
        match document.wrong().next() {
            Some(row) => Err(Error::Failed(format!("{}: {} of {}: {}", row.variant, row.op, row.pass, row.failure().unwrap_or_default()))),
            None => Ok(()),
        }
    }
}

/// Ours and the user's, pass by pass.
fn table(rows: &[Row]) -> String {
    let mut out = Vec::new();
    for pair in rows.chunks(2) {
        let ours = pair.first().and_then(|r| r.time()).map(|t| t.median);
        for r in pair {
            let time = r.time();
            let rate = |v: Option<f64>| v.map_or("-".into(), three);
            let error = r.check.as_ref().and_then(|c| c.error).map_or("-".into(), |e| format!("{e:.1e}"));
            let verdict = match (r.failure(), &r.skipped) {
                (Some(f), _) => format!("wrong: {f}"),
                (None, Some(s)) => s.clone(),
                (None, None) => r.flags.join(", "),
            };
            out.push(vec![
                r.pass.clone(),
                r.variant.clone(),
                time.map_or("-".into(), |t| seconds(t.median)),
                time.map_or("-".into(), |t| format!("±{:.1} %", 50.0 * t.spread)),
                rate(r.gflop_s),
                rate(r.gb_s),
                r.roof_percent.map_or("-".into(), |p| format!("{p:.0} %")),
                ours.zip(time).map_or("-".into(), |(o, t)| format!("{:.2}", o / t.median)),
                error,
                verdict,
            ]);
        }
    }
    text::table(&["pass", "kernel", "time", "spread", "GFLOP/s", "GB/s", "roof", "× ours", "error", ""], &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_file_is_measured_once_and_again_after_it_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k.wgsl");
        std::fs::write(&file, "a").unwrap();
        let (mut runs, mut looks) = (Vec::new(), 0);
        let read = |runs: &mut Vec<String>| runs.push(std::fs::read_to_string(&file).unwrap());
        watch(
            &file,
            &mut || {
                read(&mut runs);
                Ok(())
            },
            &mut || {
                looks += 1;
                if looks == 2 {
                    std::fs::write(&file, "b").unwrap();
                    let later = SystemTime::now() + Duration::from_secs(5);
                    std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
                }
                if looks == 4 {
                    std::fs::remove_file(&file).unwrap();
                }
                looks > 5
            },
        )
        .unwrap();
        assert_eq!(runs, ["a", "b"], "a file that is gone is waited for");
    }
}
