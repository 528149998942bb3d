//! A user's kernel in place of ours.
//!
//! The file is complete WGSL except for the numbers of the shape, which are added as constants **behind** its end:
//! declarations of a module may come in any order, so every line and column stays the user's. Binding i of group 0 is
//! the i-th operand of the operation ([`contract`] lists them), the binding after the last is scratch memory. The entry
//! point is called after the pass: `forward`, `backward_input`, `backward_weight`, or else the pass's word; entry
//! points that begin with that name and `_` are further stages. Comments say how many workgroups are launched
//! ([`directives`]). The text is not trusted: it runs with every runtime check unless the user renounces them.

pub mod directives;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalogue::{Kind, Options, problem};
use super::measure::Rules;
use super::op::{Prepared, Problem, bench};
use super::peak::Roof;
use super::result::Row;
use super::shape;
use crate::error::{Error, Result};
use crate::gpu::{BufferId, Caps, Context, Dispatch, Dtype, Fault, Reflection, Target, View, inspect};
use directives::{Directives, evaluate};

/// An operation with the constants that a text for it may use.
#[derive(Debug)]
pub struct Task {
    /// What is computed, how ours does it, and what it should give.
    pub problem: Problem,
    /// Names and values.
    pub constants: Vec<(String, u64)>,
}

/// The sizes of an operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes<'a> {
    /// Numbers separated by commas, as the operation names them.
    pub shape: &'a str,
    /// Kernel or window, where it is not the usual one.
    pub kernel: Option<[usize; 3]>,
    /// Stride.
    pub stride: Option<[usize; 3]>,
    /// Padding.
    pub padding: Option<[usize; 3]>,
}

/// The passes of operation `op` at these sizes.
///
/// # Errors
/// [`Error::Usage`] for an operation that there is not or sizes that are not its own, [`Error::Shape`] for sizes that
/// cannot be.
pub fn tasks(caps: &Caps, op: &str, sizes: &Sizes<'_>) -> Result<Vec<Task>> {
    let kind = Kind::find(op)?;
    let shapes = shape::parse(op, kind.fields, sizes.shape)?;
    let [n] = &shapes[..] else {
        return Err(Error::Usage(format!("--shape {}: a text is for one shape, this stands for {}", sizes.shape, shapes.len())));
    };
    let Sizes { kernel, stride, padding, .. } = *sizes;
    let options = Options { kernel, stride, padding, dtype: Dtype::F32 };
    let task =
        |&pass: &&'static str| Ok(Task { problem: problem(caps, &kind, pass, n, &options)?, constants: constants(&kind, n, &options) });
    kind.passes.iter().map(task).collect()
}

/// The numbers of a shape by the names that the operation has for them, and what follows from them.
fn constants(kind: &Kind, n: &[usize], options: &Options) -> Vec<(String, u64)> {
    let mut out: Vec<(String, u64)> = kind.fields.split(',').zip(n).map(|(name, &v)| (name.to_owned(), v as u64)).collect();
    let Some(first) = kind.fields.split(',').position(|f| f == "D") else { return out };
    let grid: [usize; 3] = std::array::from_fn(|a| n[first + a]);
    let mut put = |prefix: &str, values: [usize; 3]| {
        out.extend(["D", "H", "W"].iter().zip(values).map(|(axis, v)| (format!("{prefix}{axis}"), v as u64)));
    };
    let usual = match kind.name {
        "conv_transpose3d" => ([2; 3], [2; 3]),
        "max_pool" | "avg_pool" => ([2; 3], options.kernel.unwrap_or([2; 3])),
        name if name.starts_with("conv3d") => ([3; 3], [1; 3]),
        name if name.starts_with("upsample") => {
            put("O", grid.map(|v| 2 * v));
            return out;
        }
        _ => return out,
    };
    let (k, s) = (options.kernel.unwrap_or(usual.0), options.stride.unwrap_or(usual.1));
    let p = options.padding.unwrap_or(if kind.name.starts_with("conv3d") { k.map(|k| k / 2) } else { [0; 3] });
    let output: [usize; 3] = std::array::from_fn(|a| match kind.name {
        "conv_transpose3d" => ((grid[a] - 1) * s[a] + k[a]).saturating_sub(2 * p[a]),
        _ => (grid[a] + 2 * p[a]).saturating_sub(k[a]) / s[a] + 1,
    });
    for (prefix, values) in [("O", output), ("K", k), ("S", s), ("P", p)] {
        put(prefix, values);
    }
    out
}

/// The name of the entry point for a pass.
pub fn entry(pass: &str) -> String {
    match pass {
        "input-grad" => "backward_input".into(),
        "weight-grad" => "backward_weight".into(),
        "grad" => "backward".into(),
        other => other.replace('-', "_"),
    }
}

/// What a text for `task` is given, as lines to read.
pub fn contract(task: &Task) -> Vec<String> {
    let p = &task.problem;
    let mut out = vec![format!("{} {}: entry point `{}`", p.op, p.pass, entry(p.pass))];
    for (i, o) in p.operands.iter().enumerate() {
        let access = if o.written { "read_write" } else { "read" };
        let ty = if o.dtype == Dtype::F16 { "f16" } else { "f32" };
        out.push(format!("  @binding({i}) var<storage, {access}> {}: array<{ty}>; // {} elements", o.name, o.elements));
    }
    out.push(format!("  @binding({}) scratch, if `// scratch: FORMULA` asks for it", p.operands.len()));
    let numbers: Vec<String> = task.constants.iter().map(|(n, v)| format!("{n} = {v}")).collect();
    out.push(format!("  constants: {}", numbers.join(", ")));
    out
}

/// A kernel to start from.
///
/// # Errors
/// [`Error::Usage`] for an operation without one.
pub fn template(op: &str) -> Result<&'static str> {
    TEMPLATES.iter().find(|t| t.0 == op).map(|t| t.1).ok_or_else(|| {
        let known: Vec<_> = TEMPLATES.iter().map(|t| t.0).collect();
        Error::Usage(format!("there is no template for `{op}`; there are {}", known.join(", ")))
    })
}

/// Operations with a kernel to start from.
pub const TEMPLATES: [(&str, &str); 6] = [
    ("conv3d", include_str!("conv3d.wgsl")),
    ("batch_norm_running", include_str!("batch_norm_running.wgsl")),
    ("relu", include_str!("relu.wgsl")),
    ("max_pool", include_str!("max_pool.wgsl")),
    ("upsample_nearest", include_str!("upsample_nearest.wgsl")),
    ("knn_distance", include_str!("knn_distance.wgsl")),
];

/// A user's text, understood.
#[derive(Debug)]
pub struct Text {
    path: PathBuf,
    /// The user's lines, then the constants.
    source: Arc<str>,
    directives: Directives,
    reflection: Reflection,
}

/// Why a text is not used: naga's report, if it is about the text itself, and the error.
#[derive(Debug)]
pub struct Refusal {
    /// Several lines that quote the text.
    pub report: Option<String>,
    /// In one sentence.
    pub error: Error,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { report: None, error }
    }
}

/// The constants as they are added behind the end of a text that does not define them itself.
fn appendix(constants: &[(String, u64)]) -> String {
    let mut out = String::from("\n");
    for (name, value) in constants {
        out += &format!("const {name}: u32 = {value}u;\n");
    }
    out
}

impl Text {
    /// Parses and validates `user`, the content of `path`, with `constants` added.
    ///
    /// # Errors
    /// naga's complaint with the user's line and column.
    pub fn new(path: &Path, user: &str, constants: &[(String, u64)]) -> std::result::Result<Self, Refusal> {
        let source = format!("{user}{}", appendix(constants));
        let own = user.lines().count();
        match inspect(&path.to_string_lossy(), &source) {
            Ok(reflection) => Ok(Self { path: path.to_path_buf(), source: source.into(), directives: Directives::of(user), reflection }),
            Err(Fault { report, what, place }) => {
                let what = match place {
                    Some((line, column)) if line as usize <= own => format!("line {line}, column {column}: {what}"),
                    Some(_) => format!("{what} (in the constants that are added behind its end; give yours other names)"),
                    None => what,
                };
                Err(Refusal { report: Some(report), error: Error::input(path, what) })
            }
        }
    }

    /// The entry points, in the order of the text.
    pub fn entry_points(&self) -> Vec<&str> {
        self.reflection.entry_points()
    }

    /// Whether the text has an entry point for a pass.
    pub fn does(&self, pass: &str) -> bool {
        self.entry_points().contains(&entry(pass).as_str())
    }

    /// The text in another language: `only` one entry point, or all of them one after the other.
    ///
    /// # Errors
    /// [`Error::Gpu`] for what the language has not.
    pub fn translate(&self, only: Option<&str>, target: Target) -> Result<Vec<u8>> {
        let label = self.path.to_string_lossy();
        match only {
            Some(entry) => self.reflection.translate(&label, entry, target),
            None => {
                let parts = self.entry_points().into_iter().map(|e| self.reflection.translate(&label, e, target));
                Ok(parts.collect::<Result<Vec<_>>>()?.concat())
            }
        }
    }

    /// The launches for `task`, and the bytes of scratch memory; `groups` replaces the formula of the only launch.
    ///
    /// # Errors
    /// [`Error::Input`] where the text does not keep to the contract.
    pub fn launches(&self, task: &Task, groups: Option<&str>) -> Result<(Vec<Dispatch>, Vec<u64>)> {
        let refuse = |what: String| Err(Error::input(&self.path, what));
        let (p, main) = (&task.problem, entry(task.problem.pass));
        let points = self.entry_points();
        if !points.contains(&main.as_str()) {
            return refuse(format!("has no entry point `{main}` for the pass {}; it has {points:?}", p.pass));
        }
        let prefix = format!("{main}_");
        let mine = |name: &str| name == main || name.starts_with(&prefix);
        let mut stages: Vec<(String, String)> = Vec::new();
        for s in &self.directives.stages {
            let name = if s.entry.is_empty() { main.clone() } else { s.entry.clone() };
            if !points.contains(&name.as_str()) {
                return refuse(format!("line {}: there is no entry point `{name}`; there are {points:?}", s.line));
            }
            if mine(&name) {
                stages.push((name, s.groups.clone()));
            }
        }
        if let Some(formula) = groups {
            if stages.len() > 1 {
                return refuse("has several launches; say their numbers of workgroups in the file, not with --groups".into());
            }
            stages = vec![(main.clone(), formula.to_owned())];
        }
        if let Some(forgotten) = points.iter().find(|e| mine(e) && !stages.iter().any(|s| s.0 == **e)) {
            return refuse(format!(
                "does not say how many workgroups `{forgotten}` has; add a line `// groups {forgotten}: FORMULA` or give --groups"
            ));
        }
        let count = |formula: &str| evaluate(formula, &task.constants).map_err(|e| Error::input(&self.path, e.to_string()));
        let scratch = match &self.directives.scratch {
            Some((formula, _)) => vec![count(formula)?.saturating_mul(4)],
            None => Vec::new(),
        };
        let views = p.views();
        let mut out = Vec::new();
        for (stage, formula) in stages {
            let mut bindings = Vec::new();
            for (number, name, read) in self.reflection.storage(&self.path.to_string_lossy(), &stage)? {
                let number = number as usize;
                match (p.operands.get(number), scratch.first()) {
                    (Some(o), _) if !read && !o.written => {
                        return refuse(format!(
                            "`{stage}` may write binding {number}, `{name}`, but it is the input `{}`; declare it var<storage, read>",
                            o.name
                        ));
                    }
                    (Some(_), _) => bindings.push(views[number]),
                    (None, Some(&bytes)) if number == p.operands.len() => {
                        bindings.push(View { len: bytes, ..View::whole(BufferId::scratch(0), 0) });
                    }
                    (None, _) => {
                        let operands: Vec<_> = p.operands.iter().enumerate().map(|(i, o)| format!("{i} {}", o.name)).collect();
                        return refuse(format!(
                            "`{stage}` uses binding {number}, `{name}`; there are {}, and {} is scratch memory where a line `// scratch: FORMULA` asks for it",
                            operands.join(", "),
                            p.operands.len()
                        ));
                    }
                }
            }
            let groups = count(&formula)?;
            if groups == 0 {
                return refuse(format!("`{stage}` would have no workgroup: `{formula}` is 0"));
            }
            // A text is read anew only when its file changes: what its names take is not worth an owned type everywhere.
            let entry: &'static str = Box::leak(stage.into_boxed_str());
            let mut d = Dispatch::new(&p.op, entry, self.source.clone());
            d.label = format!("{}: {entry}", self.path.display());
            (d.bindings, d.groups) = (bindings, groups);
            // All of the work counts for the last launch.
            out.push(d);
        }
        if let Some(last) = out.last_mut() {
            (last.flops, last.bytes) = (p.flops, p.bytes());
        }
        Ok((out, scratch))
    }
}

/// The name of a user's text in results.
pub fn variant(path: &Path) -> String {
    path.file_name().map_or_else(|| path.to_string_lossy().into_owned(), |n| n.to_string_lossy().into_owned())
}

/// Times our default for `task` on `ours`, then the user's text on `theirs`: the rows, ours first. The user's outputs
/// are checked like ours; without the right ones there is no number.
///
/// # Errors
/// [`Error::Input`] where the text does not keep to the contract, what the devices report. After a [`Error::Gpu`] the
/// device `theirs` is not to be used again.
pub fn compare(
    ours: &Context,
    theirs: &Context,
    task: &Task,
    text: &Text,
    groups: Option<&str>,
    rules: &Rules,
    roof: Option<&Roof>,
) -> Result<Vec<Row>> {
    let (dispatches, scratch) = text.launches(task, groups)?;
    for d in &dispatches {
        // What the writer for this backend cannot do is said before a driver sees it.
        text.reflection.translate(&d.label, d.entry, Target::SpirV)?;
    }
    let p = &task.problem;
    let default = p.variants.first().map_or("default", String::as_str);
    let mut rows = vec![bench(ours, p, default, rules, roof)?.0];
    let name = variant(&text.path);
    rows.push(Prepared::of(theirs, p, &dispatches, &scratch)?.measure(p, &name, rules, roof)?);
    Ok(rows)
}
