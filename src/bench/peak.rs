//! The roof: what an adapter does at best, measured, and kept per adapter.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::result::Bound;
use crate::error::Result;
use crate::files;
use crate::gpu::Caps;

/// The value of `schema` of a kept roof; another one is measured again.
const SCHEMA: &str = "semgen-roof-1";

/// Bandwidth over a working set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Bytes that are worked on.
    pub bytes: u64,
    /// 10⁹ bytes a second, read and written together.
    pub gb_s: f64,
}

/// Measured peaks of an adapter. Rates are in 10⁹ operations or bytes a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roof {
    /// [`SCHEMA`].
    schema: String,
    /// Adapter's name.
    pub adapter: String,
    /// Driver and its version.
    pub driver: String,
    /// Backend.
    pub backend: String,
    /// When it was measured, seconds since 1970 (UTC).
    pub time: u64,
    /// Multiply-adds × 2 in f32.
    pub f32_gflop_s: f64,
    /// Multiply-adds × 2 in f16, where shaders have it.
    pub f16_gflop_s: Option<f64>,
    /// Multiply-adds × 2 of cooperative matrices, f16 factors and f32 sums, where usable.
    pub cooperative_gflop_s: Option<f64>,
    /// Copying, by working set (source and target together).
    pub copy: Vec<Level>,
    /// Reading, by working set.
    pub read: Vec<Level>,
    /// Writing, by working set.
    pub write: Vec<Level>,
    /// Reading workgroup memory.
    pub workgroup_gb_s: f64,
    /// Seconds of a smallest dispatch that depends on the one before, in one pass.
    pub dispatch_s: f64,
    /// Seconds from submitting a smallest dispatch until it is known to be done.
    pub submit_s: f64,
    /// From host memory to the device.
    pub upload_gb_s: f64,
    /// From the device to host memory.
    pub readback_gb_s: f64,
}

impl Roof {
    /// What was measured on an adapter, now: rates as the fields say, copy, read and write by working set, the
    /// seconds of a dispatch and of a submission, the rates of upload and readback.
    pub(super) fn new(
        caps: &Caps,
        f32_gflop_s: f64,
        f16_gflop_s: Option<f64>,
        cooperative_gflop_s: Option<f64>,
        [copy, read, write]: [Vec<Level>; 3],
        workgroup_gb_s: f64,
        [dispatch_s, submit_s]: [f64; 2],
        [upload_gb_s, readback_gb_s]: [f64; 2],
    ) -> Self {
        Self {
            schema: SCHEMA.into(),
            adapter: caps.name.clone(),
            driver: caps.driver.clone(),
            backend: caps.backend.clone(),
            time: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            f32_gflop_s,
            f16_gflop_s,
            cooperative_gflop_s,
            copy,
            read,
            write,
            workgroup_gb_s,
            dispatch_s,
            submit_s,
            upload_gb_s,
            readback_gb_s,
        }
    }

    /// One compute rate and one bandwidth, for tests.
    pub fn plain(gflop_s: f64, gb_s: f64) -> Self {
        let level = vec![Level { bytes: 1 << 20, gb_s }];
        Self {
            schema: SCHEMA.into(),
            adapter: "plain".into(),
            driver: String::new(),
            backend: "none".into(),
            time: 0,
            f32_gflop_s: gflop_s,
            f16_gflop_s: None,
            cooperative_gflop_s: None,
            copy: level.clone(),
            read: level.clone(),
            write: level,
            workgroup_gb_s: gb_s,
            dispatch_s: 0.0,
            submit_s: 0.0,
            upload_gb_s: gb_s,
            readback_gb_s: gb_s,
        }
    }

    /// The compute peak of a variant: that of cooperative matrices for those that use them, else that of f32, in which
    /// all other arithmetic is done.
    pub fn compute(&self, variant: &str) -> f64 {
        match self.cooperative_gflop_s {
            Some(rate) if variant.contains("coop") => rate,
            _ => self.f32_gflop_s,
        }
    }

    /// The copy bandwidth of a working set of `bytes`, between the measured sizes by the logarithm of the size.
    pub fn bandwidth(&self, bytes: u64) -> f64 {
        let Some(first) = self.copy.first() else { return f64::INFINITY };
        let mut below = first;
        for level in &self.copy {
            if level.bytes > bytes {
                if below.bytes >= level.bytes || bytes <= below.bytes {
                    return below.gb_s;
                }
                let part = (bytes as f64 / below.bytes as f64).ln() / (level.bytes as f64 / below.bytes as f64).ln();
                return below.gb_s + part * (level.gb_s - below.gb_s);
            }
            below = level;
        }
        below.gb_s
    }

    /// The least seconds for an operation, and what they are needed for.
    pub fn seconds(&self, flops: u64, bytes: u64, dispatches: usize, _dtype: &str, variant: &str) -> (f64, Bound) {
        let candidates = [
            (flops as f64 / self.compute(variant) / 1e9, Bound::Compute),
            (bytes as f64 / self.bandwidth(bytes) / 1e9, Bound::Memory),
            (dispatches as f64 * self.dispatch_s, Bound::Latency),
        ];
        candidates.into_iter().fold(candidates[0], |best, c| if c.0 > best.0 { c } else { best })
    }

    /// Where the roof of an adapter is kept; `None` on a system without a place for caches.
    pub fn path(caps: &Caps) -> Option<PathBuf> {
        let key = files::sha256_hex(format!("{}\n{}\n{}", caps.name, caps.driver, caps.backend).as_bytes());
        files::cache_dir().map(|dir| dir.join("roofs").join(format!("{}.json", &key[..16])))
    }

    /// The kept roof of an adapter, if there is one that this program understands.
    pub fn kept(caps: &Caps) -> Option<Self> {
        let bytes = std::fs::read(Self::path(caps)?).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|r: &Self| r.schema == SCHEMA && r.adapter == caps.name && r.driver == caps.driver)
    }

    /// Keeps the roof for later runs; without a place for caches, nothing happens.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when the file cannot be written.
    pub fn keep(&self, caps: &Caps) -> Result<()> {
        let Some(path) = Self::path(caps) else { return Ok(()) };
        path.parent().map_or(Ok(()), files::create_dir)?;
        files::write_bytes(&path, &serde_json::to_vec_pretty(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_read_between_the_measured_sizes() {
        let mut r = Roof::plain(100.0, 10.0);
        r.copy = [(1 << 10, 40.0), (1 << 14, 20.0), (1 << 20, 5.0)].map(|(bytes, gb_s)| Level { bytes, gb_s }).into();
        assert_eq!([1, 1 << 10, 1 << 12, 1 << 14, 1 << 20, 1 << 30].map(|b| r.bandwidth(b)), [40.0, 40.0, 30.0, 20.0, 5.0, 5.0]);
    }

    #[test]
    fn the_bound_is_what_takes_longest() {
        let mut r = Roof { dispatch_s: 1e-5, ..Roof::plain(100.0, 10.0) };
        assert_eq!(r.seconds(1_000_000_000, 1000, 1, "f32", "tile"), (0.01, Bound::Compute));
        assert_eq!(r.seconds(1000, 1_000_000_000, 1, "f32", "tile"), (0.1, Bound::Memory));
        assert_eq!(r.seconds(1000, 1000, 4, "f32", "tile").1, Bound::Latency);
        r.cooperative_gflop_s = Some(1000.0);
        assert_eq!(r.seconds(1_000_000_000, 1000, 1, "f16", "coop").0, 0.001);
        assert_eq!(r.seconds(1_000_000_000, 1000, 1, "f16", "tile").0, 0.01);
    }
}
