//! What the tests share: the devices, graphs on them, reference files.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::OnceLock;

use semantic_genesis::gpu::Context;
use semantic_genesis::graph::Graph;
use semantic_genesis::plan::{Plan, Session, Store};

fn open(checked: bool) -> Option<Context> {
    if std::env::var("SEMGEN_GPU").as_deref() == Ok("none") {
        eprintln!("SEMGEN_GPU=none: tests that need an adapter are not run");
        return None;
    }
    let ctx = if checked { Context::with_checks(None) } else { Context::new(None) };
    Some(ctx.unwrap_or_else(|e| panic!("{e} (or set SEMGEN_GPU=none to leave out the tests that need one)")))
}

/// The device with every runtime check in its shaders; `None` only under `SEMGEN_GPU=none`.
pub(crate) fn checked() -> Option<&'static Context> {
    static CTX: OnceLock<Option<Context>> = OnceLock::new();
    CTX.get_or_init(|| open(true)).as_ref()
}

/// The device as users run it.
pub(crate) fn trusted() -> Option<&'static Context> {
    static CTX: OnceLock<Option<Context>> = OnceLock::new();
    CTX.get_or_init(|| open(false)).as_ref()
}

/// A graph on the device with its buffers; inputs are filled by name.
pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) session: Session,
}

impl Rig {
    pub(crate) fn new(ctx: &Context, graph: &Graph) -> Self {
        Self::planned(ctx, graph, Plan::new(graph, ctx.caps()).unwrap())
    }

    /// With a plan of one's own for `graph`.
    pub(crate) fn planned(ctx: &Context, graph: &Graph, plan: Plan) -> Self {
        let store = Store::new(ctx, graph, 0).unwrap();
        let session = Session::new(ctx, plan, &store).unwrap();
        Self { store, session }
    }

    pub(crate) fn feed<T: bytemuck::NoUninit>(&self, ctx: &Context, name: &str, data: &[T]) {
        let buffer = self.session.input(name).unwrap();
        assert_eq!(size_of_val(data) as u64, buffer.bytes(), "the size of input `{name}`");
        ctx.upload(buffer, 0, data);
    }

    pub(crate) fn run(&self, ctx: &Context) {
        self.session.run(ctx).unwrap();
    }

    pub(crate) fn read(&self, ctx: &Context, name: &str) -> Vec<f32> {
        self.session.read(ctx, name).unwrap()
    }
}

/// The program with a folder for caches of its own.
pub(crate) struct Program<'a> {
    cache: &'a std::path::Path,
}

impl<'a> Program<'a> {
    pub(crate) fn new(cache: &'a std::path::Path) -> Self {
        Self { cache }
    }

    /// Runs to the end; the exit status must be `code`.
    pub(crate) fn run(&self, args: &[&str], code: i32) -> std::process::Output {
        let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("semgen"))
            .args(args)
            .env("SEMGEN_CACHE", self.cache)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "semgen {}: {stderr}", args.join(" "));
        assert!(!stderr.contains("panicked"), "{stderr}");
        output
    }

    /// The result that a successful call prints with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_slice(&self.run(&[args, &["--json"]].concat(), 0).stdout).unwrap()
    }

    /// The sentence with which a call is refused.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args, 2);
        String::from_utf8(output.stderr).unwrap().lines().last().unwrap().trim_start_matches("semgen: ").to_owned()
    }
}

/// f32 as f64.
pub(crate) fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&x| f64::from(x)).collect()
}

/// The Euclidean length of a tensor.
pub(crate) fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The target t for which the mean squared error of a tensor y has the gradient r: y - r · len / 2. It makes a scalar
/// of any tensor whose gradient is a chosen cotangent.
pub(crate) fn target_for(y: &[f32], r: &[f32]) -> Vec<f32> {
    let half = y.len() as f64 / 2.0;
    y.iter().zip(r).map(|(&y, &r)| (f64::from(y) - f64::from(r) * half) as f32).collect()
}

/// A file of `tests/reference`.
pub(crate) fn reference(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}
