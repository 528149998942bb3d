//! What a bench writes down: one versioned JSON document, whoever measured.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::measure::{Measurement, Stats};
use super::peak::Roof;
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::Caps;

/// The value of `schema`.
pub const SCHEMA: &str = "semgen-bench-1";

/// A document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: String,
    /// Where and with what it was measured.
    pub environment: Environment,
    /// The adapter's measured peaks, when they were known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roof: Option<Roof>,
    /// The measurements.
    pub rows: Vec<Row>,
}

/// Where and with what something was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Who measured: `semgen`, `torch`.
    pub engine: String,
    /// Adapter's name.
    pub adapter: String,
    /// Backend (`vulkan`, `metal`, `dx12`; `cuda`, `cpu`).
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Versions of programs and libraries by name.
    pub versions: BTreeMap<String, String>,
    /// The adapter's limits and features, as the engine knows them.
    #[serde(default)]
    pub limits: serde_json::Value,
    /// SHA-256 of each kernel text that was timed, by label; several texts of one label are numbered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, String>,
    /// Operating system and architecture.
    pub os: String,
    /// The processor's name and its number of threads.
    pub cpu: String,
    /// When it was measured, seconds since 1970 (UTC).
    pub time: u64,
    /// The command line.
    pub command: Vec<String>,
}

/// What limits a measurement by the roof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Moving data.
    Memory,
    /// Starting dispatches.
    Latency,
}

impl Bound {
    /// As documents and tables say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
            Self::Latency => "latency",
        }
    }
}

/// How outputs compare with the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Largest error relative to the reference's scale; absent when it is not a number.
    pub error: Option<f64>,
    /// Largest error allowed.
    pub tolerance: f64,
    /// Elements compared; all others were looked at for values that are not finite.
    pub elements: usize,
    /// What is wrong, when something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Operation.
    pub op: String,
    /// Layer of a network, in suites of networks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layer: String,
    /// Shape, as `--shape` takes it, and what differs from the operation's defaults.
    pub shape: String,
    /// `forward`, `input-grad`, `weight-grad`, `grad`, `step`.
    pub pass: String,
    /// Implementation.
    pub variant: String,
    /// Storage of activations: `f32` or `f16`.
    pub dtype: String,
    /// How often it occurs where the layer comes from.
    #[serde(default = "one")]
    pub times: usize,
    /// Multiply-adds × 2, or the like, of a run.
    pub flops: u64,
    /// Bytes of all operands, each counted once.
    pub bytes: u64,
    /// Dispatches of a run.
    #[serde(default)]
    pub dispatches: usize,
    /// Seconds on the device.
    #[serde(default)]
    pub device_s: Option<Stats>,
    /// Seconds from submission to idle device.
    #[serde(default)]
    pub wall_s: Option<Stats>,
    /// 10⁹ operations a second.
    #[serde(default)]
    pub gflop_s: Option<f64>,
    /// 10⁹ bytes a second.
    #[serde(default)]
    pub gb_s: Option<f64>,
    /// Operations a byte.
    pub intensity: f64,
    /// The time that the measured roof allows, in percent of the time taken.
    #[serde(default)]
    pub roof_percent: Option<f64>,
    /// The time that the measured roof allows, in seconds.
    #[serde(default)]
    pub roof_s: Option<f64>,
    /// What the roof is made of here.
    #[serde(default)]
    pub bound: Option<Bound>,
    /// How the outputs compare with the reference.
    #[serde(default)]
    pub check: Option<Check>,
    /// Why there is no number, if there is none and the outputs were not wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// `drift`, `unstable`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Other numbers that belong to it, by name with unit: `samples_per_s`, `allocated_bytes`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, f64>,
}

fn one() -> usize {
    1
}

impl Row {
    /// The time that counts: the device's where it is known.
    pub fn time(&self) -> Option<&Stats> {
        self.device_s.as_ref().or(self.wall_s.as_ref())
    }

    /// What is wrong with the outputs.
    pub fn failure(&self) -> Option<&str> {
        self.check.as_ref().and_then(|c| c.failure.as_deref())
    }

    /// Puts the times in, with the rates and the part of `roof` they make.
    pub fn measured(&mut self, m: &Measurement, roof: Option<&Roof>) {
        self.device_s = m.device;
        self.wall_s = Some(m.wall);
        let seconds = m.time().median;
        let rate = |n: u64| (n > 0 && seconds > 0.0).then(|| n as f64 / seconds / 1e9);
        (self.gflop_s, self.gb_s) = (rate(self.flops), rate(self.bytes));
        self.flags = [(m.drift, "drift"), (m.unstable, "unstable")].iter().filter(|f| f.0).map(|f| f.1.to_owned()).collect();
        if let Some(roof) = roof {
            let (best, bound) = roof.seconds(self.flops, self.bytes, self.dispatches, &self.dtype, &self.variant);
            self.roof_s = Some(best);
            self.bound = Some(bound);
            self.roof_percent = (seconds > 0.0).then(|| 100.0 * best / seconds);
        }
    }
}

impl Environment {
    /// This program on an adapter, now.
    pub fn here(caps: &Caps) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            engine: "semgen".into(),
            adapter: caps.name.clone(),
            backend: caps.backend.clone(),
            driver: caps.driver.clone(),
            versions: versions(),
            limits: serde_json::to_value(caps).unwrap_or_default(),
            kernels: BTreeMap::new(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: format!("{} ({threads} threads)", processor()),
            time: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        }
    }

    /// Notes the texts of kernels by (label, text).
    pub fn note_kernels<'a>(&mut self, texts: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (label, text) in texts {
            let hash = files::sha256_hex(text.as_bytes());
            let taken = |name: &str, kernels: &BTreeMap<String, String>| kernels.get(name).is_some_and(|h| *h != hash);
            let name = (1..)
                .map(|i| if i == 1 { label.to_owned() } else { format!("{label}.{i}") })
                .find(|name| !taken(name, &self.kernels))
                .unwrap_or_default();
            self.kernels.insert(name, hash);
        }
    }
}

/// Versions of this crate and of what makes and runs shaders, as they are locked.
fn versions() -> BTreeMap<String, String> {
    let lock = include_str!("../../Cargo.lock");
    let mut out = BTreeMap::from([("semgen".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    for name in ["wgpu", "naga"] {
        let at = lock.find(&format!("name = \"{name}\"\nversion = \""));
        let version = at.and_then(|at| lock[at..].split('"').nth(3));
        out.insert(name.to_owned(), version.unwrap_or("unknown").to_owned());
    }
    out
}

/// The processor's name, as far as the system tells.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split(':').nth(1));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |n| n.trim().to_owned())
}

impl Document {
    /// A document without rows.
    pub fn new(environment: Environment, roof: Option<Roof>) -> Self {
        Self { schema: SCHEMA.into(), environment, roof, rows: Vec::new() }
    }

    /// Reads and checks a document.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Input`] when it is no such document.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(path, format!("is not JSON ({e}); expected a result of `semgen bench`")))?;
        match value.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(other) => return Err(Error::input(path, format!("has the schema `{other}`; this program reads `{SCHEMA}`"))),
            None => return Err(Error::input(path, format!("has no `schema`; expected a result of `semgen bench` with `{SCHEMA}`"))),
        }
        serde_json::from_value(value).map_err(|e| Error::input(path, format!("is no valid `{SCHEMA}` document: {e}")))
    }

    /// Writes the document; the file is whole or absent.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::Failed(format!("the result cannot be written as JSON: {e}")))?;
        bytes.push(b'\n');
        files::write_bytes(path, &bytes)
    }

    /// The rows whose outputs were wrong.
    pub fn wrong(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|r| r.failure().is_some())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row that took about `seconds`, give or take `noise` of it.
    pub(in crate::bench) fn row(op: &str, variant: &str, seconds: f64, noise: f64) -> Row {
        let stats =
            Stats { median: seconds, min: seconds, low: seconds * (1.0 - noise), high: seconds * (1.0 + noise), spread: noise, count: 9 };
        Row {
            op: op.into(),
            layer: String::new(),
            shape: "1,8,8,4,4,4".into(),
            pass: "forward".into(),
            variant: variant.into(),
            dtype: "f32".into(),
            times: 1,
            flops: 1_000_000,
            bytes: 10_000,
            dispatches: 1,
            device_s: Some(stats),
            wall_s: Some(stats),
            gflop_s: Some(1e-3 / seconds),
            gb_s: Some(1e-5 / seconds),
            intensity: 100.0,
            roof_percent: Some(50.0),
            roof_s: Some(seconds / 2.0),
            bound: Some(Bound::Compute),
            check: Some(Check { error: Some(1e-7), tolerance: 1e-5, elements: 64, failure: None }),
            skipped: None,
            flags: vec!["drift".into()],
            extra: BTreeMap::new(),
        }
    }

    /// A document of `rows`.
    pub(in crate::bench) fn document(engine: &str, rows: Vec<Row>) -> Document {
        let environment = Environment { engine: engine.into(), ..Environment::here(&Caps::minimal()) };
        Document { rows, ..Document::new(environment, None) }
    }

    #[test]
    fn a_document_survives_writing_and_reading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let mut doc = document("semgen", vec![row("conv3d", "sub8", 1.25e-3, 0.01), row("copy", "default", 3e-5, 0.2)]);
        doc.environment.note_kernels([("a", "text"), ("a", "other"), ("a", "text"), ("b", "text")]);
        assert_eq!(doc.environment.kernels.keys().collect::<Vec<_>>(), ["a", "a.2", "b"]);
        doc.roof = Some(Roof::plain(100.0, 10.0));
        doc.write(&path).unwrap();
        assert_eq!(Document::read(&path).unwrap(), doc);
        let text = std::fs::read_to_string(&path).unwrap();
        for field in
            ["\"schema\": \"semgen-bench-1\"", "\"wgpu\": \"30.", "\"naga\": \"30.", "\"device_s\"", "\"roof_percent\"", "\"kernels\""]
        {
            assert!(text.contains(field), "{field} is missing in {text}");
        }
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        for (text, reason) in [
            ("nonsense", "is not JSON"),
            ("{}", "has no `schema`"),
            ("{\"schema\": \"semgen-bench-9\"}", "semgen-bench-9"),
            ("{\"schema\": \"semgen-bench-1\", \"rows\": []}", "environment"),
        ] {
            std::fs::write(&path, text).unwrap();
            let e = Document::read(&path).unwrap_err();
            assert!(e.to_string().contains(reason) && e.exit_code() == 2, "{e}");
        }
        assert_eq!(Document::read(&dir.path().join("absent.json")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_others_measure_needs_only_the_essential_fields() {
        let text = r#"{"schema": "semgen-bench-1",
            "environment": {"engine": "torch", "adapter": "CPU", "backend": "cpu", "driver": "", "versions": {"torch": "2.15"},
                "os": "linux", "cpu": "x", "time": 0, "command": []},
            "rows": [{"op": "conv3d", "shape": "1,8,8,4,4,4", "pass": "forward", "variant": "torch", "dtype": "f32", "flops": 1, "bytes": 2,
                "intensity": 0.5, "wall_s": {"median": 1, "min": 1, "low": 1, "high": 1, "spread": 0, "count": 5}}]}"#;
        let doc: Document = serde_json::from_str(text).unwrap();
        assert_eq!((doc.rows[0].times, doc.rows[0].time().unwrap().median), (1, 1.0));
    }

    #[test]
    fn rates_and_the_bound_follow_from_the_time() {
        let mut r = row("conv3d", "tile", 1.0, 0.0);
        (r.flops, r.bytes) = (50_000_000_000, 1_000_000_000);
        let t = Stats::of(&[0.5]);
        let m = Measurement { device: Some(t), wall: Stats::of(&[0.9]), runs: 1, drift: false, unstable: true };
        r.measured(&m, Some(&Roof::plain(200.0, 10.0)));
        assert_eq!((r.gflop_s, r.gb_s, r.bound), (Some(100.0), Some(2.0), Some(Bound::Compute)));
        assert!((r.roof_percent.unwrap() - 50.0).abs() < 1e-9 && r.flags == ["unstable"]);
        r.flops = 1000;
        r.measured(&m, Some(&Roof::plain(200.0, 10.0)));
        assert_eq!(r.bound, Some(Bound::Memory));
        assert!((r.roof_percent.unwrap() - 20.0).abs() < 1e-9);
    }
}
