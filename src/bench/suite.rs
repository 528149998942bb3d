//! Suites: lists of operations that are timed together, from a network's graph or a user's file.

use std::path::Path;

use serde::Deserialize;

use super::catalogue::{self, Kind, Options};
use super::measure::Rules;
use super::op::{Problem, bench};
use super::ops;
use super::peak::Roof;
use super::result::{Document, Row};
use super::shape;
use crate::config::{Activation, Norm, Variant};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Context, Dtype};
use crate::graph::Graph;
use crate::kernels::optimiser::Rule;
use crate::model::{Mode, Spec};
use crate::plan::{Fusion, fuse};
use crate::train::network::Objective;

/// Names of the suites.
pub const NAMES: [&str; 4] = ["ynet3d", "unet3d", "knn", "transforms"];
/// Classes of the Y-Net's head.
const CLASSES: usize = 44;

/// Which implementations of an operation are timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that is used.
    Default,
    /// Every one.
    All,
    /// One by name.
    Named(String),
}

impl Which {
    /// As `--variant` says it.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None | Some("default") => Self::Default,
            Some("all") => Self::All,
            Some(name) => Self::Named(name.to_owned()),
        }
    }

    /// The variants of `problem` that are meant.
    ///
    /// # Errors
    /// [`Error::Usage`] for one that it has not.
    pub fn of(&self, problem: &Problem) -> Result<Vec<String>> {
        match self {
            Self::Default => Ok(problem.variants[..1].to_vec()),
            Self::All => Ok(problem.variants.clone()),
            Self::Named(name) if problem.variants.contains(name) => Ok(vec![name.clone()]),
            Self::Named(name) => {
                let known: Vec<&str> = problem.variants.iter().map(String::as_str).chain(["all", "default"]).collect();
                let what = format!("--variant: for {} {} {} on this adapter the variant", problem.op, problem.pass, problem.shape);
                Err(catalogue::unknown(&what, name, known.into_iter()))
            }
        }
    }
}

type Make = Box<dyn Fn(&Caps) -> Result<Problem>>;

/// Something to be timed.
pub struct Job {
    /// Makes the problem: all of a suite's at once would take much memory.
    make: Make,
    /// Which of its variants.
    which: Which,
    /// The passes that are wanted; all when empty.
    passes: Vec<String>,
    /// Whether an operation without the variant asked for is timed as it is used: one of many in a suite.
    lenient: bool,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({:?})", self.which)
    }
}

impl Job {
    /// The problem that `make` makes, by the variants meant.
    pub fn new(which: &Which, make: impl Fn(&Caps) -> Result<Problem> + 'static) -> Self {
        Self { make: Box::new(make), which: which.clone(), passes: Vec::new(), lenient: false }
    }

    /// Operation `kind` on a shape.
    pub fn of_kind(which: &Which, kind: Kind, pass: &'static str, shape: Vec<usize>, options: Options) -> Self {
        Self::new(which, move |caps| catalogue::problem(caps, &kind, pass, &shape, &options))
    }

    /// The problem on an adapter.
    ///
    /// # Errors
    /// What the operation refuses.
    pub fn problem(&self, caps: &Caps) -> Result<Problem> {
        (self.make)(caps)
    }
}

/// How a suite of a network is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Channels of the first convolution.
    pub base: usize,
    /// Samples.
    pub batch: usize,
    /// Voxels of a cube.
    pub cube: [usize; 3],
    /// The operations that the planner makes of the network on the adapter, not the network's own.
    pub fused: bool,
}

impl Default for Scale {
    /// The published network on one published cube.
    fn default() -> Self {
        Self { base: 32, batch: 1, cube: [64, 64, 32], fused: false }
    }
}

/// The graph of a training step of the network called `name`.
///
/// # Errors
/// [`Error::Shape`] when the cube does not suit the network.
pub fn network(name: &str, scale: Scale) -> Result<Graph> {
    let spec =
        Spec { base: scale.base, depth: 4, variant: Variant::PyTorch, activation: Activation::Relu, norm: Norm::Running, channels: 1 };
    let objective = match name {
        "ynet3d" => Objective::Joint { classes: CLASSES, restoration: 1.0, classification: 0.01 },
        _ => Objective::Autoencoder { skips: true },
    };
    objective.graph(&spec, scale.batch, scale.cube, Mode::Train)
}

/// The jobs of suite `name`: every operation of a training step of a network, or the shapes of a kind.
///
/// # Errors
/// [`Error::Usage`] for an unknown name, and what the network refuses.
pub fn named(caps: &Caps, name: &str, scale: Scale, which: &Which, dtype: Dtype) -> Result<Vec<Job>> {
    let kinds = |list: &[(&str, Vec<usize>)]| -> Result<Vec<Job>> {
        let job = |(name, shape): &(&str, Vec<usize>)| {
            let kind = Kind::find(name)?;
            Ok(Job::of_kind(which, kind, kind.passes[0], shape.clone(), Options::default()))
        };
        list.iter().map(job).collect()
    };
    match name {
        "ynet3d" | "unet3d" => {
            let graph = network(name, scale)?;
            let graph = std::rc::Rc::new(if scale.fused { fuse(&graph, &Fusion::on(caps), caps) } else { graph });
            let mut jobs: Vec<Job> = (0..graph.nodes().len())
                .map(|i| {
                    let graph = graph.clone();
                    Job::new(which, move |caps| catalogue::of_node(caps, &graph, &graph.nodes()[i], dtype))
                })
                .collect();
            let n = graph.params.flat_len();
            let step = move |_: &Caps| {
                let mut p = ops::optimiser(Rule::Adam, n);
                p.layer = "optimiser".into();
                Ok(p)
            };
            jobs.push(Job::new(which, step));
            Ok(jobs)
        }
        "knn" => kinds(&[
            ("knn_distance", vec![512, 512, 512]),
            ("knn_distance", vec![1024, 4096, 512]),
            ("knn_distance", vec![4096, 4096, 512]),
            ("knn_select", vec![512, 512, 200]),
            ("knn_select", vec![1024, 4096, 200]),
            ("knn_select", vec![4096, 4096, 200]),
        ]),
        "transforms" => {
            let [x, y, z] = scale.cube;
            let names =
                ["transform_flip", "transform_elastic", "transform_shuffle", "transform_non_linear", "transform_paint", "transform"];
            kinds(&names.map(|name| (name, vec![scale.batch, x, y, z])))
        }
        _ => Err(catalogue::unknown("the suite", name, NAMES.into_iter())),
    }
}

/// A user's file of shapes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    shape: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    op: String,
    shape: String,
    #[serde(default)]
    layer: String,
    kernel: Option<String>,
    stride: Option<String>,
    padding: Option<String>,
    pass: Option<String>,
    variant: Option<String>,
    dtype: Option<Dtype>,
}

/// The jobs of a file: TOML with a table `[[shape]]` each, or JSON alike, with `op` and `shape` and, as on the command
/// line, `kernel`, `stride`, `padding`, `pass`, `variant`, `dtype`; `layer` names it.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Input`] for what is wrong in it.
pub fn file(path: &Path, which: &Which, dtype: Dtype) -> Result<Vec<Job>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let listing: Listing = if json {
        serde_json::from_str(&text).map_err(|e| Error::input(path, format!("is no list of shapes: {e}")))?
    } else {
        toml::from_str(&text).map_err(|e| Error::input(path, format!("is no list of shapes: {}", e.to_string().replace('\n', " "))))?
    };
    let mut jobs = Vec::new();
    for (i, e) in listing.shape.into_iter().enumerate() {
        let within = |err: Error| Error::input(path, format!("shape {}: {err}", i + 1));
        let triple = |name: &str, text: &Option<String>, least| text.as_ref().map(|t| shape::triple(name, t, least)).transpose();
        let options = || -> Result<Options> {
            Ok(Options {
                kernel: triple("kernel", &e.kernel, 1)?,
                stride: triple("stride", &e.stride, 1)?,
                padding: triple("padding", &e.padding, 0)?,
                dtype: e.dtype.unwrap_or(dtype),
            })
        };
        let options = options().map_err(within)?;
        let own = e.variant.as_deref().map_or_else(|| which.clone(), |v| Which::parse(Some(v)));
        for (kind, pass, n) in catalogue::requests(&e.op, &e.shape, e.pass.as_deref().unwrap_or("all")).map_err(within)? {
            let (options, layer) = (options.clone(), e.layer.clone());
            jobs.push(Job::new(&own, move |caps| {
                let mut p = catalogue::problem(caps, &kind, pass, &n, &options)?;
                p.layer.clone_from(&layer);
                Ok(p)
            }));
        }
    }
    Ok(jobs)
}

/// Makes a suite of `jobs`: of those, the ones whose pass is `pass` (`forward`, `grad` for every gradient, or one by
/// name) are timed, and those without the variant asked for as they are used.
pub fn only(jobs: &mut [Job], pass: &str) {
    let wanted: Vec<String> = match pass {
        "all" => Vec::new(),
        "grad" => ["grad", "input-grad", "weight-grad"].map(str::to_owned).into(),
        one => vec![one.to_owned()],
    };
    for job in jobs {
        job.passes.clone_from(&wanted);
        job.lenient = true;
    }
}

/// Whether every one of `jobs` can be made and has the variant that it asks for.
///
/// # Errors
/// [`Error::Usage`] for a variant that is unknown, and what the operations refuse.
pub fn check(caps: &Caps, jobs: &[Job]) -> Result<()> {
    for job in jobs.iter().filter(|j| !j.lenient && matches!(j.which, Which::Named(_))) {
        job.which.of(&job.problem(caps)?)?;
    }
    Ok(())
}

/// Times `jobs` into `document`; `seen` hears each row as it comes, with its number and how many jobs there are.
///
/// Equal operations are measured once and have a row each.
///
/// # Errors
/// [`Error::Gpu`] when the device has failed, [`Error::Usage`] as [`check`].
pub fn run(
    ctx: &Context,
    jobs: &[Job],
    rules: &Rules,
    roof: Option<&Roof>,
    document: &mut Document,
    seen: &mut dyn FnMut(&Row, usize, usize),
) -> Result<()> {
    let mut measured: Vec<(String, Row)> = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let problem = job.problem(ctx.caps())?;
        if !job.passes.is_empty() && !job.passes.iter().any(|p| p == problem.pass) {
            continue;
        }
        let variants = match job.which.of(&problem) {
            Ok(v) => v,
            Err(_) if job.lenient => problem.variants[..1].to_vec(),
            Err(e) => return Err(e),
        };
        for variant in variants {
            let sizes: Vec<usize> = problem.operands.iter().map(|o| o.elements).collect();
            let key = format!("{} {} {} {:?} {sizes:?} {variant}", problem.op, problem.pass, problem.shape, problem.dtype);
            let row = match measured.iter().find(|(k, _)| *k == key) {
                Some((_, row)) => Row { layer: problem.layer.clone(), ..row.clone() },
                None => {
                    let (row, kernels) = bench(ctx, &problem, &variant, rules, roof)?;
                    document.environment.note_kernels(kernels.iter().map(|(label, text)| (label.as_str(), &**text)));
                    measured.push((key, row.clone()));
                    row
                }
            };
            seen(&row, i + 1, jobs.len());
            document.rows.push(row);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_y_net_is_timed_layer_by_layer() {
        let scale = Scale { base: 8, batch: 2, cube: [16, 16, 16], fused: false };
        let caps = Caps::minimal();
        let jobs = named(&caps, "ynet3d", scale, &Which::Default, Dtype::F32).unwrap();
        let problems: Vec<Problem> = jobs.iter().map(|j| j.problem(&caps).unwrap()).collect();
        let of = |op: &str, pass: &str| problems.iter().filter(|p| p.op == op && p.pass == pass).count();
        // 15 convolutions of 3×3×3, one of 1×1×1, the head's, and a linear layer; the image has no gradient.
        assert_eq!((of("conv3d", "forward"), of("conv3d", "weight-grad")), (17, 17));
        assert_eq!(
            (of("conv_transpose3d", "forward"), of("conv_transpose3d", "input-grad"), of("conv_transpose3d", "weight-grad")),
            (3, 3, 3)
        );
        assert_eq!((of("batch_norm", "forward"), of("batch_norm", "grad"), of("max_pool", "grad"), of("adam", "step")), (15, 15, 3, 1));
        let first = problems.iter().find(|p| p.op == "conv3d").unwrap();
        assert_eq!((first.layer.as_str(), first.shape.as_str()), ("down_tr64.ops.0.conv1", "2,1,8,16,16,16"));
        let flops: u64 = problems.iter().filter(|p| p.op.starts_with("conv")).map(|p| p.flops).sum();
        let graph = network("ynet3d", scale).unwrap();
        let options = crate::plan::Options { fusion: Some(Fusion::NONE), ..Default::default() };
        let plan = crate::plan::Plan::with(&graph, &caps, &options).unwrap();
        let planned: u64 = plan.ops.iter().filter(|o| o.op.starts_with("conv")).map(|o| o.flops).sum();
        assert!((flops as f64 / planned as f64 - 1.0).abs() < 0.05, "{flops} and {planned}");
        let fused = named(&caps, "ynet3d", Scale { fused: true, ..scale }, &Which::Default, Dtype::F32).unwrap();
        let problems: Vec<Problem> = fused.iter().map(|j| j.problem(&caps).unwrap()).collect();
        assert!(
            fused.len() < jobs.len() && problems.iter().any(|p| p.op == "head") && problems.iter().any(|p| p.op.starts_with("conv3d_"))
        );
        assert!(named(&caps, "unet3d", scale, &Which::Default, Dtype::F32).unwrap().len() < jobs.len());
    }

    #[test]
    fn suites_and_files_say_what_is_wrong() {
        let e = named(&Caps::minimal(), "ynet", Scale::default(), &Which::Default, Dtype::F32).unwrap_err();
        assert!(e.to_string().contains("did you mean `ynet3d`?"), "{e}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shapes.toml");
        let good = "[[shape]]\nop = \"conv3d\"\nshape = \"1,8|16,8,4,4,4\"\nkernel = \"1\"\nlayer = \"mine\"\n\n[[shape]]\nop = \"relu\"\nshape = \"1,8,4,4,4\"\npass = \"grad\"\n";
        std::fs::write(&path, good).unwrap();
        let jobs = file(&path, &Which::All, Dtype::F32).unwrap();
        assert_eq!(jobs.len(), 7);
        let p = jobs[0].problem(&Caps::minimal()).unwrap();
        assert_eq!((p.layer.as_str(), p.shape.as_str()), ("mine", "1,8,8,4,4,4 kernel=1,1,1 padding=0,0,0"));
        let json = dir.path().join("shapes.json");
        std::fs::write(&json, r#"{"shape": [{"op": "relu", "shape": "1,8,4,4,4"}]}"#).unwrap();
        assert_eq!(file(&json, &Which::All, Dtype::F32).unwrap().len(), 2);
        for (from, to, part) in [
            ("conv3d", "conv3", "did you mean `conv3d`?"),
            ("4,4,4", "4,4", "shape 1: --shape"),
            ("kernel", "kernal", "kernal"),
            ("\"grad\"", "\"back\"", "shape 2"),
        ] {
            std::fs::write(&path, good.replace(from, to)).unwrap();
            let e = file(&path, &Which::All, Dtype::F32).unwrap_err();
            assert!(e.to_string().contains(part) && e.exit_code() == 2, "{e}");
        }
        assert_eq!(file(&dir.path().join("absent"), &Which::All, Dtype::F32).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn variants_are_chosen_by_name() {
        let caps = Caps::minimal();
        let job = Job::of_kind(&Which::All, Kind::find("conv3d").unwrap(), "forward", vec![1, 8, 8, 4, 4, 4], Options::default());
        let p = job.problem(&caps).unwrap();
        assert!(Which::All.of(&p).unwrap().len() > 1);
        assert_eq!(Which::parse(Some("plain")).of(&p).unwrap(), ["plain"]);
        assert_eq!(Which::parse(None).of(&p).unwrap(), p.variants[..1]);
        let e = Which::parse(Some("plane")).of(&p).unwrap_err();
        assert!(e.to_string().contains("did you mean `plain`?"), "{e}");
    }
}
