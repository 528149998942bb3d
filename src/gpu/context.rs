//! Adapter choice, the device, its buffers, uploads and readback.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::pipeline::Pipelines;
use super::{Caps, Choices, Kind, trusted};
use crate::error::{Error, Result};

/// How to get an adapter on a machine that has none.
const NO_ADAPTER: &str =
    "no graphics adapter was found; install the vendor's Vulkan driver, or Mesa's CPU adapter: apt-get install -y mesa-vulkan-drivers";

/// What to do when memory does not suffice.
const SMALLER: &str = "use a smaller train.micro_batch or train.memory (discover.autoencoder.micro_batch for the autoencoder), train.recompute=true, a smaller cube.size or model.base_channels";

/// Bytes of the buffer through which everything is read back, a part at a time.
pub const STAGING: u64 = 4 << 20;

/// What a device has been asked to make so far; nothing of it grows while plans are replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Buffers, those for parameters and for readback included.
    pub buffers: u64,
    /// Pipelines.
    pub pipelines: u64,
    /// Bind groups.
    pub bind_groups: u64,
}

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
    pub(super) pipelines: Pipelines,
    pub(super) checked: bool,
    choices: RwLock<Choices>,
    /// Why cooperative matrices that the adapter lists are not used.
    distrusted: Option<String>,
    /// Names the adapter for the pipeline cache, where the backend has one.
    cache_key: Option<String>,
    failure: Arc<Mutex<Option<String>>>,
    allocated: Arc<AtomicU64>,
    /// Most so far, and most since [`Context::restart_peak`].
    peak: [AtomicU64; 2],
    buffers: AtomicU64,
    bind_groups: AtomicU64,
    /// Buffers for readback that nobody uses at the moment.
    staging: Mutex<Vec<Buffer>>,
}

impl Drop for Context {
    fn drop(&mut self) {
        self.pipelines.write(true);
    }
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
        int64: features.contains(wgpu::Features::SHADER_INT64),
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
        let info = adapter.get_info();
        let cache_key = adapter
            .features()
            .contains(wgpu::Features::PIPELINE_CACHE)
            .then(|| wgpu::util::pipeline_cache_key(&info))
            .flatten()
            .map(|id| format!("{id} {} {} semgen {}", caps.name, caps.driver, env!("CARGO_PKG_VERSION")));
        let mut wanted = wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::PIPELINE_CACHE;
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
                    format!("{name}: out of device memory; {SMALLER}")
                }
                e => format!("{name}: {e}"),
            };
            note(&f, text);
        }));
        let (f, name) = (failure.clone(), caps.name.clone());
        device.set_device_lost_callback(move |reason, text| {
            if !matches!(reason, wgpu::DeviceLostReason::Destroyed) {
                note(&f, format!("{name}: the device was lost ({text}); update the driver or use a smaller train.micro_batch, then continue with --resume"));
            }
        });
        Ok(Self {
            caps,
            device,
            queue,
            pipelines: Pipelines::default(),
            checked,
            choices: RwLock::default(),
            distrusted: None,
            cache_key,
            failure,
            allocated: Arc::default(),
            peak: Default::default(),
            buffers: AtomicU64::new(0),
            bind_groups: AtomicU64::new(0),
            staging: Mutex::default(),
        })
    }

    /// This device with its compiled pipelines kept in `folder` between processes, where the backend can do that. Files
    /// there that are damaged or belong to another adapter, driver or version are ignored.
    #[must_use]
    pub fn keep_pipelines(mut self, folder: &Path) -> Self {
        if let Some(key) = &self.cache_key {
            self.pipelines = Pipelines::kept_in(folder, &self.device, key);
        }
        self
    }

    /// Plans without cooperative matrices from now on, because of `why`.
    #[must_use]
    pub fn without_matrices(mut self, why: String) -> Self {
        self.caps.cooperative.clear();
        self.distrusted = Some(why);
        self
    }

    /// Why cooperative matrices that the adapter lists are not used, when they are not.
    pub fn distrusted(&self) -> Option<&str> {
        self.distrusted.as_deref()
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

    /// Bytes of device memory in use now, and the most so far: all buffers of the engine, those for parameters of kernels
    /// and for readback included.
    pub fn memory(&self) -> (u64, u64) {
        (self.allocated.load(Ordering::Relaxed), self.peak[0].load(Ordering::Relaxed))
    }

    /// Begins to look for the most memory in use anew, for [`Context::recent_peak`].
    pub fn restart_peak(&self) {
        self.peak[1].store(self.allocated.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The most bytes of device memory in use since [`Context::restart_peak`].
    pub fn recent_peak(&self) -> u64 {
        self.peak[1].load(Ordering::Relaxed)
    }

    /// What has been made so far.
    pub fn counters(&self) -> Counters {
        Counters {
            buffers: self.buffers.load(Ordering::Relaxed),
            pipelines: self.pipelines.count.load(Ordering::Relaxed),
            bind_groups: self.bind_groups.load(Ordering::Relaxed),
        }
    }

    /// A zeroed buffer of `bytes` (at least 4, rounded up to a multiple of 4).
    ///
    /// # Errors
    /// [`Error::ExceedsLimit`] when the adapter has no buffer that large, [`Error::Gpu`] when
    /// memory is exhausted.
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.allocate(label, bytes, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC)
    }

    /// A buffer for parameters of kernels.
    pub(super) fn uniforms(&self, label: &str, bytes: u64) -> Result<Buffer> {
        self.allocate(label, bytes, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST)
    }

    fn allocate(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<Buffer> {
        let bytes = bytes.max(4).next_multiple_of(4);
        if bytes > self.caps.max_buffer {
            return Err(Error::ExceedsLimit {
                what: format!("the buffer `{label}`"),
                need: format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
                have: format!("{:.1} MiB per buffer", self.caps.max_buffer as f64 / 1_048_576.0),
                remedy: SMALLER.into(),
            });
        }
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false });
        self.check()?;
        self.buffers.fetch_add(1, Ordering::Relaxed);
        let now = self.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        for peak in &self.peak {
            peak.fetch_max(now, Ordering::Relaxed);
        }
        Ok(Buffer { raw, bytes, allocated: self.allocated.clone() })
    }

    pub(super) fn bind_group(&self, desc: &wgpu::BindGroupDescriptor<'_>) -> wgpu::BindGroup {
        self.bind_groups.fetch_add(1, Ordering::Relaxed);
        self.device.create_bind_group(desc)
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
        let mut out = vec![T::zeroed(); count];
        let mut at = offset;
        for part in bytemuck::cast_slice_mut::<T, u8>(&mut out).chunks_mut(STAGING as usize) {
            self.fetch(&[(buffer, at, part.len() as u64)], part)?;
            at += part.len() as u64;
        }
        Ok(out)
    }

    /// As [`Context::read`], from the start of several buffers, `(buffer, elements)` each: with one wait where it fits.
    ///
    /// # Errors
    /// [`Error::Gpu`] when the device failed.
    pub fn read_all<T: bytemuck::Pod>(&self, from: &[(&Buffer, usize)]) -> Result<Vec<Vec<T>>> {
        let bytes = |count: usize| ((count * size_of::<T>()) as u64).next_multiple_of(4);
        let total: u64 = from.iter().map(|f| bytes(f.1)).sum();
        if total > STAGING || !size_of::<T>().is_multiple_of(4) {
            return from.iter().map(|&(buffer, count)| self.read(buffer, 0, count)).collect();
        }
        let mut all = vec![T::zeroed(); from.iter().map(|f| f.1).sum()];
        let pieces: Vec<_> = from.iter().map(|&(buffer, count)| (buffer, 0, bytes(count))).collect();
        self.fetch(&pieces, bytemuck::cast_slice_mut(&mut all))?;
        let mut rest = &all[..];
        Ok(from
            .iter()
            .map(|&(_, count)| {
                let (part, tail) = rest.split_at(count);
                rest = tail;
                part.to_vec()
            })
            .collect())
    }

    /// Copies `pieces` (buffer, first byte, bytes) one after the other into `out`, of at most [`STAGING`] bytes: one copy
    /// to the host, one wait, nothing allocated after the first time.
    fn fetch(&self, pieces: &[(&Buffer, u64, u64)], out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let free = self.staging.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let staging = match free {
            Some(staging) => staging,
            None => self.allocate("semgen.readback", STAGING, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?,
        };
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut to = 0;
        for &(buffer, offset, bytes) in pieces {
            let bytes = bytes.next_multiple_of(4);
            encoder.copy_buffer_to_buffer(&buffer.raw, offset, &staging.raw, to, bytes);
            to += bytes;
        }
        self.queue.submit([encoder.finish()]);
        let mapped = staging.raw.slice(..to);
        mapped.map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        {
            let view = mapped.get_mapped_range().map_err(|e| Error::Gpu(format!("{}: readback failed: {e}", self.caps.name)))?;
            out.copy_from_slice(&view[..out.len()]);
        }
        staging.raw.unmap();
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
        Ok(())
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
                "{}: the device was lost; update the driver or use a smaller train.micro_batch, then continue with --resume",
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
