//! Adapter choice, the device, its buffers, uploads and readback.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::program::Pipeline;
use super::{Caps, Choices, Kind, trusted};
use crate::error::{Error, Result};

/// How to get an adapter on a machine that has none.
const NO_ADAPTER: &str =
    "no graphics adapter was found; install the vendor's Vulkan driver, or Mesa's CPU adapter: apt-get install -y mesa-vulkan-drivers";

/// A block of device memory.
#[derive(Debug)]
pub struct Buffer {
    pub(super) raw: wgpu::Buffer,
    bytes: u64,
    allocated: Arc<AtomicU64>,
}

impl Buffer {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An adapter as `semgen devices` lists it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    /// Position in the list; `--adapter` takes it.
    pub index: usize,
    /// Capabilities.
    pub caps: Caps,
    /// Whether it would be used by default.
    pub chosen: bool,
    /// Why it is or is not.
    pub why: String,
}

/// The device with everything that lives as long as it does.
pub struct Context {
    caps: Caps,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pipelines: Mutex<HashMap<(Arc<str>, &'static str), Arc<Pipeline>>>,
    pub(super) checked: bool,
    choices: RwLock<Choices>,
    failure: Arc<Mutex<Option<String>>>,
    allocated: Arc<AtomicU64>,
    peak: AtomicU64,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("caps", &self.caps).finish_non_exhaustive()
    }
}

fn instance() -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    desc.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(desc)
}

fn kind(t: wgpu::DeviceType) -> Kind {
    match t {
        wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
        wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
        wgpu::DeviceType::Cpu => Kind::Cpu,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => Kind::Other,
    }
}

fn caps(adapter: &wgpu::Adapter) -> Caps {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let subgroups = features.contains(wgpu::Features::SUBGROUP);
    let mut cooperative: Vec<u32> = adapter
        .cooperative_matrix_properties()
        .iter()
        .filter(|p| {
            p.m_size == p.n_size
                && p.n_size == p.k_size
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
        .map(|p| p.m_size)
        .collect();
    cooperative.sort_unstable();
    cooperative.dedup();
    Caps {
        name: info.name,
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        kind: kind(info.device_type),
        max_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        max_groups: limits.max_compute_workgroups_per_dimension,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        storage_align: u64::from(limits.min_storage_buffer_offset_alignment),
        uniform_align: u64::from(limits.min_uniform_buffer_offset_alignment),
        subgroup_min: if subgroups { info.subgroup_min_size } else { 0 },
        subgroup_max: if subgroups { info.subgroup_max_size } else { 0 },
        f16: features.contains(wgpu::Features::SHADER_F16),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        cooperative,
    }
}

/// All adapters, and which one `choice` (a name part or an index; default: the best kind) selects.
fn select(choice: Option<&str>) -> Result<(Vec<wgpu::Adapter>, usize)> {
    let found = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    if found.is_empty() {
        return Err(Error::Gpu(NO_ADAPTER.into()));
    }
    let chosen = match choice {
        None => (0..found.len()).min_by_key(|&i| (kind(found[i].get_info().device_type), i)).unwrap_or(0),
        Some(text) => text
            .parse::<usize>()
            .ok()
            .filter(|&i| i < found.len())
            .or_else(|| found.iter().position(|a| a.get_info().name.to_lowercase().contains(&text.to_lowercase())))
            .ok_or_else(|| {
                let names: Vec<_> = found.iter().enumerate().map(|(i, a)| format!("{i}: {}", a.get_info().name)).collect();
                Error::Usage(format!("--adapter {text}: no such adapter; there are {}", names.join(", ")))
            })?,
    };
    Ok((found, chosen))
}

/// Lists the adapters of this machine.
///
/// # Errors
/// [`Error::Gpu`] when there is none, [`Error::Usage`] when `choice` names none of them.
pub fn adapters(choice: Option<&str>) -> Result<Vec<AdapterReport>> {
    let (found, chosen) = select(choice)?;
    Ok(found
        .iter()
        .enumerate()
        .map(|(index, a)| {
            let why = match (index == chosen, choice) {
                (true, Some(c)) => format!("named by --adapter {c}"),
                (true, None) => "first of the best kind (discrete, integrated, other, cpu)".to_owned(),
                (false, _) => format!("choose it with --adapter {index}"),
            };
            AdapterReport { index, caps: caps(a), chosen: index == chosen, why }
        })
        .collect())
}

impl Context {
    /// Opens an adapter: `choice` is a part of its name or its index; default: the best kind.
    ///
    /// # Errors
    /// [`Error::Gpu`] when there is no adapter or it cannot be opened, [`Error::Usage`] when
    /// `choice` names none.
    pub fn new(choice: Option<&str>) -> Result<Self> {
        Self::open(choice, false)
    }

    /// As [`Context::new`], with wgpu's runtime checks in every shader: for tests.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn with_checks(choice: Option<&str>) -> Result<Self> {
        Self::open(choice, true)
    }

    fn open(choice: Option<&str>, checked: bool) -> Result<Self> {
        let (mut found, chosen) = select(choice)?;
        let adapter = found.swap_remove(chosen);
        let caps = caps(&adapter);
        let mut wanted = wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SHADER_F16;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if !caps.cooperative.is_empty() {
            wanted |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            experimental = trusted::experimental();
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("semgen"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            experimental_features: experimental,
            ..Default::default()
        }))
        .map_err(|e| Error::Gpu(format!("{}: the device cannot be opened: {e}", caps.name)))?;
        let failure = Arc::new(Mutex::new(None));
        let note = |failure: &Arc<Mutex<Option<String>>>, text: String| {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        };
        let (f, name) = (failure.clone(), caps.name.clone());
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let text = match e {
                wgpu::Error::OutOfMemory { .. } => {
                    format!("{name}: out of device memory; use a smaller train.batch_size, cube.size or model.base_channels")
                }
                e => format!("{name}: {e}"),
            };
            note(&f, text);
        }));
        let (f, name) = (failure.clone(), caps.name.clone());
        device.set_device_lost_callback(move |reason, text| {
            if !matches!(reason, wgpu::DeviceLostReason::Destroyed) {
                note(&f, format!("{name}: the device was lost ({text}); update the driver or use a smaller train.batch_size, then continue with --resume"));
            }
        });
        Ok(Self {
            caps,
            device,
            queue,
            pipelines: Mutex::default(),
            checked,
            choices: RwLock::default(),
            failure,
            allocated: Arc::default(),
            peak: AtomicU64::new(0),
        })
    }

    /// What the adapter can do.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// The variants that plans for this device use; kernels' defaults until [`Context::choose`] says otherwise.
    pub fn choices(&self) -> Choices {
        self.choices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets plans for this device use `choices` from now on.
    pub fn choose(&self, choices: Choices) {
        *self.choices.write().unwrap_or_else(PoisonError::into_inner) = choices;
    }

    /// Bytes of device memory in use through [`Context::buffer`] now, and the most so far.
    pub fn memory(&self) -> (u64, u64) {
        (self.allocated.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    /// A zeroed buffer of `bytes` (at least 4, rounded up to a multiple of 4).
    ///
    /// # Errors
    /// [`Error::ExceedsLimit`] when the adapter has no buffer that large, [`Error::Gpu`] when
    /// memory is exhausted.
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let bytes = bytes.max(4).next_multiple_of(4);
        if bytes > self.caps.max_buffer {
            return Err(Error::ExceedsLimit {
                what: format!("the buffer `{label}`"),
                need: format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
                have: format!("{:.1} MiB per buffer", self.caps.max_buffer as f64 / 1_048_576.0),
                remedy: "use a smaller train.batch_size, cube.size or model.base_channels".into(),
            });
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false });
        self.check()?;
        let now = self.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        Ok(Buffer { raw, bytes, allocated: self.allocated.clone() })
    }

    /// Overwrites `buffer` from byte `offset` (a multiple of 4) before anything submitted later runs.
    pub fn upload<T: bytemuck::NoUninit>(&self, buffer: &Buffer, offset: u64, data: &[T]) {
        self.queue.write_buffer(&buffer.raw, offset, bytemuck::cast_slice(data));
    }

    /// Hands staged uploads to the device now, so that their staging memory can be used again soon.
    pub fn flush(&self) {
        self.queue.submit([]);
    }

    /// Sets `bytes` bytes from `offset` to zero.
    pub fn clear(&self, buffer: &Buffer, offset: u64, bytes: u64) {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.clear_buffer(&buffer.raw, offset, Some(bytes));
        self.queue.submit([encoder.finish()]);
    }

    /// Waits for everything submitted and reads `count` elements from byte `offset`.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device failed.
    pub fn read<T: bytemuck::Pod>(&self, buffer: &Buffer, offset: u64, count: usize) -> Result<Vec<T>> {
        let bytes = (count * size_of::<T>()) as u64;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("semgen.readback"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&buffer.raw, offset, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        staging.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        let view = staging.slice(..).get_mapped_range().map_err(|e| Error::Gpu(format!("{}: readback failed: {e}", self.caps.name)))?;
        Ok(bytemuck::pod_collect_to_vec(&view[..]))
    }

    /// Waits until everything submitted has run.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device failed or hangs.
    pub fn wait(&self) -> Result<()> {
        self.check()?;
        // A software adapter may be legitimately slow; a hung one is found by its driver. wgpu panics when the device is
        // lost while it waits; that is an error like any other here.
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: None });
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll));
        self.check()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Error::Gpu(format!("{}: waiting for the device failed: {e}", self.caps.name))),
            Err(_) => Err(Error::Gpu(format!(
                "{}: the device was lost; update the driver or use a smaller train.batch_size, then continue with --resume",
                self.caps.name
            ))),
        }
    }

    /// The first failure the device has reported, as an error.
    ///
    /// # Errors
    /// [`Error::Gpu`] when there was one.
    pub fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(text) => Err(Error::Gpu(text.clone())),
            None => Ok(()),
        }
    }
}
