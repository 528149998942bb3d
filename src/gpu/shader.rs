//! WGSL text to a validated naga module, and what an entry point expects, read from it.

use naga::valid::ModuleInfo;
use naga::{AddressSpace, Module, ScalarKind, StorageAccess, TypeInner};

use super::dispatch::Scalar;
use super::translate::inspect;
use crate::error::{Error, Result};

/// A parsed and validated module with its entry points' interfaces.
#[derive(Debug)]
pub struct Reflection {
    /// The module.
    pub module: Module,
    /// Its validation result.
    pub info: ModuleInfo,
}

/// Interface of one entry point.
#[derive(Debug)]
pub(super) struct Interface {
    /// `(binding, read_only)` of each storage buffer, ascending.
    pub(super) storage: Vec<(u32, bool)>,
    /// Binding and layout of the `Params` uniform, when used.
    pub(super) params: Option<ParamsLayout>,
}

/// Byte layout of `Params`.
#[derive(Debug)]
pub(super) struct ParamsLayout {
    pub(super) binding: u32,
    pub(super) size: u32,
    fields: Vec<(String, u32, ScalarKind)>,
}

/// Parses and validates `source` with everything the engine may use.
///
/// # Errors
/// [`Error::Gpu`] with naga's report, positions relative to `source`.
pub fn reflect(label: &str, source: &str) -> Result<Reflection> {
    inspect(label, source).map_err(|fault| Error::Gpu(format!("{label}: the shader is not valid: {}", fault.report)))
}

impl Reflection {
    /// Fields (name, first byte) of the struct called `name` and its size in bytes, if there is one.
    pub fn structure(&self, name: &str) -> Option<(Vec<(String, usize)>, usize)> {
        let (_, ty) = self.module.types.iter().find(|t| t.1.name.as_deref() == Some(name))?;
        let TypeInner::Struct { members, span } = &ty.inner else { return None };
        Some((members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset as usize)).collect(), *span as usize))
    }

    /// The storage buffers and parameters that `entry` uses.
    pub(super) fn interface(&self, label: &str, entry: &str) -> Result<Interface> {
        let index = self
            .module
            .entry_points
            .iter()
            .position(|e| e.name == entry)
            .ok_or_else(|| Error::Gpu(format!("{label}: the shader has no entry point `{entry}`")))?;
        let used = self.info.get_entry_point(index);
        let mut out = Interface { storage: Vec::new(), params: None };
        for (handle, var) in self.module.global_variables.iter() {
            let Some(binding) = &var.binding else { continue };
            if used[handle].is_empty() {
                continue;
            }
            match var.space {
                AddressSpace::Storage { access } => out.storage.push((binding.binding, !access.contains(StorageAccess::STORE))),
                AddressSpace::Uniform => out.params = Some(self.params(label, binding.binding, var.ty)?),
                _ => return Err(Error::Gpu(format!("{label}: only storage buffers and one uniform are bound"))),
            }
        }
        out.storage.sort_unstable();
        Ok(out)
    }

    fn params(&self, label: &str, binding: u32, ty: naga::Handle<naga::Type>) -> Result<ParamsLayout> {
        let odd = || Error::Gpu(format!("{label}: `Params` must be a struct of 32-bit scalars"));
        let TypeInner::Struct { members, span } = &self.module.types[ty].inner else { return Err(odd()) };
        let mut fields = Vec::new();
        for m in members {
            let TypeInner::Scalar(s) = self.module.types[m.ty].inner else { return Err(odd()) };
            if s.width != 4 {
                return Err(odd());
            }
            fields.push((m.name.clone().unwrap_or_default(), m.offset, s.kind));
        }
        Ok(ParamsLayout { binding, size: span.next_multiple_of(16), fields })
    }
}

impl ParamsLayout {
    /// The bytes of the uniform for `values`, which must name every field once with its type.
    pub(super) fn pack(&self, label: &str, values: &[(&'static str, Scalar)]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.size as usize];
        if values.len() != self.fields.len() {
            let names: Vec<_> = self.fields.iter().map(|f| f.0.as_str()).collect();
            return Err(Error::Gpu(format!("{label}: {} parameters given, the shader has {names:?}", values.len())));
        }
        for (name, offset, kind) in &self.fields {
            let value = values.iter().find(|v| v.0 == name).map(|v| v.1);
            let word = match (value, kind) {
                (Some(Scalar::U32(v)), ScalarKind::Uint) => v.to_le_bytes(),
                (Some(Scalar::I32(v)), ScalarKind::Sint) => v.to_le_bytes(),
                (Some(Scalar::F32(v)), ScalarKind::Float) => v.to_le_bytes(),
                (v, k) => return Err(Error::Gpu(format!("{label}: parameter `{name}` is {k:?} in the shader, given {v:?}"))),
            };
            bytes[*offset as usize..*offset as usize + 4].copy_from_slice(&word);
        }
        Ok(bytes)
    }
}
