//! What an adapter can do, as plain data: planning needs no device.

use serde::{Deserialize, Serialize};

/// Coarse kind of adapter, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A graphics card with its own memory.
    Discrete,
    /// A graphics unit that shares the host's memory.
    Integrated,
    /// A virtual or unknown adapter.
    Other,
    /// A software rasteriser on the processor.
    Cpu,
}

/// Capabilities of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// Name as the driver reports it.
    pub name: String,
    /// Backend (`vulkan`, `metal`, `dx12`).
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Kind of adapter.
    pub kind: Kind,
    /// Largest storage binding in bytes.
    pub max_binding: u64,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Most workgroups along one dimension of a dispatch.
    pub max_groups: u32,
    /// Most storage buffers of one kernel.
    pub max_storage_buffers: u32,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Alignment of a storage binding's offset in bytes.
    pub storage_align: u64,
    /// Alignment of a uniform binding's offset in bytes.
    pub uniform_align: u64,
    /// Smallest subgroup, 0 without subgroup operations.
    pub subgroup_min: u32,
    /// Largest subgroup, 0 without subgroup operations.
    pub subgroup_max: u32,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// 64-bit integers in shaders.
    #[serde(default)]
    pub int64: bool,
    /// Device timestamps.
    pub timestamps: bool,
    /// Sizes N of usable N×N×N cooperative matrices with f16 factors and f32 sums.
    pub cooperative: Vec<u32>,
}

impl Caps {
    /// Whether every subgroup has exactly eight lanes (Mesa's CPU adapter with 256-bit vectors).
    pub fn subgroup8(&self) -> bool {
        self.subgroup_min == 8 && self.subgroup_max == 8
    }

    /// Most multiply-adds × 2 in one dispatch, so that no driver's watchdog fires.
    pub fn max_dispatch_flops(&self) -> u64 {
        match self.kind {
            Kind::Cpu => u64::MAX,
            Kind::Discrete => 400_000_000_000,
            Kind::Integrated | Kind::Other => 40_000_000_000,
        }
    }

    /// A made-up adapter with the smallest limits WebGPU guarantees, for tests of planning.
    pub fn minimal() -> Self {
        Self {
            name: "minimal".into(),
            backend: "none".into(),
            driver: String::new(),
            kind: Kind::Other,
            max_binding: 128 << 20,
            max_buffer: 256 << 20,
            max_groups: 65_535,
            max_storage_buffers: 8,
            workgroup_memory: 16 << 10,
            storage_align: 256,
            uniform_align: 256,
            subgroup_min: 0,
            subgroup_max: 0,
            f16: false,
            int64: false,
            timestamps: false,
            cooperative: Vec::new(),
        }
    }
}
