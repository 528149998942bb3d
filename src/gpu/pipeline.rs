//! Compiled entry points: each is made once, several side by side, and kept between processes where the backend can.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::shader::{ParamsLayout, Reflection, reflect};
use super::{Context, Dispatch, trusted};
use crate::error::Result;
use crate::files;

/// First line of a cache file.
const MAGIC: &str = "semgen pipelines 1";
/// Least time between two writes of the cache file while pipelines are still being made.
const BETWEEN_WRITES: Duration = Duration::from_secs(2);

/// A compiled entry point.
pub(super) struct Pipeline {
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Binding numbers of the storage buffers, ascending.
    pub(super) storage: Vec<u32>,
    pub(super) params: Option<ParamsLayout>,
}

type Key = (Arc<str>, &'static str);

/// The pipelines of a device.
#[derive(Default)]
pub(super) struct Pipelines {
    made: Mutex<HashMap<Key, Arc<Pipeline>>>,
    /// How many were made so far.
    pub(super) count: AtomicU64,
    kept: Option<Kept>,
}

/// The driver's compiled code, kept in a file.
pub(super) struct Kept {
    raw: wgpu::PipelineCache,
    path: PathBuf,
    key: String,
    /// When the file was written last, and how many pipelines there were.
    written: Mutex<(Instant, u64)>,
}

/// The content of `path` if it was written whole under `key`.
fn read(path: &Path, key: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let mut parts = bytes.splitn(4, |&b| b == b'\n');
    let [magic, its_key, hash, data] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let whole = magic == MAGIC.as_bytes() && its_key == key.as_bytes() && hash == files::sha256_hex(data).as_bytes();
    whole.then(|| data.to_vec())
}

impl Pipelines {
    /// Pipelines kept in a file of `folder` that belongs to `key` (adapter, driver, version of this program) alone; what
    /// is damaged or another's is ignored.
    pub(super) fn kept_in(folder: &Path, device: &wgpu::Device, key: &str) -> Self {
        let key = key.replace('\n', " ");
        let name: String = Sha256::digest(key.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
        let path = folder.join(format!("pipelines-{name}.bin"));
        let raw = trusted::pipeline_cache(device, read(&path, &key).as_deref());
        let kept = Kept { raw, path, key, written: Mutex::new((Instant::now(), 0)) };
        Self { kept: Some(kept), ..Self::default() }
    }

    /// Writes the cache file if there is something new, and if it is time or the `last` chance. A cache that cannot be
    /// written costs time at the next start and nothing else, so it is no error.
    pub(super) fn write(&self, last: bool) {
        let Some(kept) = &self.kept else { return };
        let count = self.count.load(Ordering::Relaxed);
        let mut written = kept.written.lock().unwrap_or_else(PoisonError::into_inner);
        if count == written.1 || !(last || written.0.elapsed() >= BETWEEN_WRITES) {
            return;
        }
        if let (Some(data), Some(folder)) = (kept.raw.get_data(), kept.path.parent()) {
            let head = format!("{MAGIC}\n{}\n{}\n", kept.key, files::sha256_hex(&data));
            let file = [head.as_bytes(), &data].concat();
            let _ = files::create_dir(folder).and_then(|()| files::write_bytes(&kept.path, &file));
        }
        *written = (Instant::now(), count);
    }
}

fn layout_entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

impl Context {
    /// The pipelines of `dispatches`; those that are missing are compiled side by side.
    pub(super) fn pipelines_of(&self, dispatches: &[Dispatch]) -> Result<Vec<Arc<Pipeline>>> {
        let mut missing: Vec<(Arc<str>, Vec<&Dispatch>)> = Vec::new();
        {
            let made = self.pipelines.made.lock().unwrap_or_else(PoisonError::into_inner);
            // Plans name the same text again and again, mostly through the same allocation.
            let mut by_text: HashMap<Arc<str>, usize> = HashMap::new();
            for d in dispatches.iter().filter(|d| !made.contains_key(&(d.source.clone(), d.entry))) {
                let at = *by_text.entry(d.source.clone()).or_insert_with(|| {
                    missing.push((d.source.clone(), Vec::new()));
                    missing.len() - 1
                });
                let entries = &mut missing[at].1;
                if !entries.iter().any(|e| e.entry == d.entry) {
                    entries.push(d);
                }
            }
        }
        if !missing.is_empty() {
            let new: Vec<Vec<(Key, Arc<Pipeline>)>> =
                missing.par_iter().map(|(text, entries)| self.compile(text, entries)).collect::<Result<_>>()?;
            self.check()?;
            let mut made = self.pipelines.made.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, pipeline) in new.into_iter().flatten() {
                made.entry(key).or_insert(pipeline);
            }
            drop(made);
            self.pipelines.write(false);
        }
        let made = self.pipelines.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Every key is there: it was found or has been put in.
        Ok(dispatches.iter().filter_map(|d| made.get(&(d.source.clone(), d.entry)).cloned()).collect())
    }

    /// Compiles the `entries` of one text, which is parsed once.
    fn compile(&self, text: &Arc<str>, entries: &[&Dispatch]) -> Result<Vec<(Key, Arc<Pipeline>)>> {
        let label = entries.first().map_or("", |d| d.label.as_str());
        let reflection = reflect(label, text)?;
        let interfaces = entries.iter().map(|d| reflection.interface(&d.label, d.entry)).collect::<Result<Vec<_>>>()?;
        let Reflection { module, .. } = reflection;
        let module = trusted::shader_module(&self.device, label, module, self.checked);
        let compiled = entries.par_iter().zip(interfaces).map(|(d, interface)| {
            let mut bound: Vec<_> = interface
                .storage
                .iter()
                .map(|&(binding, read_only)| layout_entry(binding, wgpu::BufferBindingType::Storage { read_only }))
                .collect();
            bound.extend(interface.params.as_ref().map(|p| layout_entry(p.binding, wgpu::BufferBindingType::Uniform)));
            let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&d.label), entries: &bound });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&d.label),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&d.label),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(d.entry),
                // Kernels write workgroup memory before they read it.
                compilation_options: wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: false, ..Default::default() },
                cache: self.pipelines.kept.as_ref().map(|k| &k.raw),
            });
            self.pipelines.count.fetch_add(1, Ordering::Relaxed);
            let storage = interface.storage.iter().map(|s| s.0).collect();
            ((text.clone(), d.entry), Arc::new(Pipeline { raw, layout, storage, params: interface.params }))
        });
        Ok(compiled.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_files_are_read_whole_and_by_their_own_key_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.bin");
        let write = |key: &str, data: &[u8]| {
            let file = [format!("{MAGIC}\n{key}\n{}\n", files::sha256_hex(data)).as_bytes(), data].concat();
            std::fs::write(&path, &file).unwrap();
            file
        };
        assert_eq!(read(&path, "k"), None, "no file");
        let file = write("k", b"a\nb\n\nc");
        assert_eq!(read(&path, "k").as_deref(), Some(&b"a\nb\n\nc"[..]));
        assert_eq!(read(&path, "other driver"), None);
        for cut in 0..file.len() {
            std::fs::write(&path, &file[..cut]).unwrap();
            assert_eq!(read(&path, "k"), None, "cut at {cut}");
        }
        let mut flipped = file.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert_eq!(read(&path, "k"), None, "one bit");
        write("k", b"");
        assert_eq!(read(&path, "k").as_deref(), Some(&b""[..]));
    }
}
