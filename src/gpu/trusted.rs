//! The one file with unsafe code of the device layer: shader modules without runtime checks.
#![expect(
    unsafe_code,
    reason = "unchecked shader modules are worth a factor of 1.5 to 2 on the CPU adapter; a variable is set before threads start"
)]

use naga::Module;

/// Makes a shader module from a validated naga module. With `checked`, wgpu adds clamps to
/// every index, bounds to every loop and guards to every integer division; without, the text
/// is taken as written.
pub(super) fn shader_module(device: &wgpu::Device, label: &str, module: Module, checked: bool) -> wgpu::ShaderModule {
    let desc = wgpu::ShaderModuleDescriptor { label: Some(label), source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module)) };
    if checked {
        return device.create_shader_module(desc);
    }
    // SAFETY: every shader text is part of this program, not of its input; its indices are
    // derived from geometry that is checked on the host, its loops are bounded by constants or
    // checked counts and its divisors are non-zero. The same texts run with all checks on and
    // with guard bands around every buffer in the tests.
    unsafe { device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// A pipeline cache that starts from `data`, or empty.
pub(super) fn pipeline_cache(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let desc = wgpu::PipelineCacheDescriptor { label: Some("semgen"), data, fallback: true };
    // SAFETY: the data is what a cache of this program gave for the same adapter and driver: the caller has checked its
    // key and its hash, and wgpu checks its own head before a driver sees it.
    unsafe { device.create_pipeline_cache(&desc) }
}

/// The token that wgpu asks for before it enables features it calls experimental: cooperative matrices.
pub(super) fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: the kernels that use them are part of this program, are validated by naga in tests, and are trusted
    // on an adapter only after they gave the reference's numbers there.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// On Linux without a display, keeps Mesa's device-selection layer from asking for one and complaining on the error
/// stream; the layer only orders devices, and this program orders them itself.
///
/// Call it before any thread is started.
pub fn without_display() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the program calls this first of all, while it has one thread.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
