//! What naga makes of a text: where it is wrong, what an entry point binds, and the same in other shading languages.

use std::panic::{AssertUnwindSafe, catch_unwind};

use naga::ShaderStage;
use naga::back::{PipelineConstants, hlsl, msl, pipeline_constants, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::shader::Reflection;
use crate::error::{Error, Result};

/// A language that naga writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// SPIR-V 1.3, as little-endian words.
    SpirV,
    /// Metal shading language 2.4 (2.3 where nothing newer is used).
    Msl,
    /// HLSL, shader model 6.0.
    Hlsl,
}

/// Why a text is no shader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// naga's whole report, several lines that quote the text.
    pub report: String,
    /// Its first line: what is wrong.
    pub what: String,
    /// Line and column, both from 1, where there is a place.
    pub place: Option<(u32, u32)>,
}

/// Parses and validates `source`; `path` names it in reports.
///
/// # Errors
/// Where and why it is wrong.
pub fn inspect(path: &str, source: &str) -> std::result::Result<Reflection, Fault> {
    let place = |l: Option<naga::SourceLocation>| l.map(|l| (l.line_number, l.line_position));
    let module = naga::front::wgsl::parse_str(source).map_err(|e| Fault {
        report: e.emit_to_string_with_path(source, path),
        what: e.message().to_owned(),
        place: place(e.location(source)),
    })?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).map_err(|e| {
        // The outermost error names the item, the innermost the reason.
        let mut what = e.as_inner().to_string();
        let mut cause = std::error::Error::source(e.as_inner());
        while let Some(inner) = cause {
            what = format!("{what}: {inner}");
            cause = inner.source();
        }
        Fault { report: e.emit_to_string_with_path(source, path), what, place: place(e.location(source)) }
    })?;
    Ok(Reflection { module, info })
}

impl Reflection {
    /// The entry points, in the order of the text.
    pub fn entry_points(&self) -> Vec<&str> {
        self.module.entry_points.iter().map(|e| e.name.as_str()).collect()
    }

    /// Number, name and whether it is only read, of each storage buffer that `entry` uses, ascending.
    ///
    /// # Errors
    /// [`Error::Gpu`] when there is no such entry point or it binds something else.
    pub fn storage(&self, label: &str, entry: &str) -> Result<Vec<(u32, String, bool)>> {
        let name = |number: u32| {
            let all = self.module.global_variables.iter();
            let mut named = all.filter(|(_, v)| v.binding.as_ref().is_some_and(|b| b.binding == number));
            named.find_map(|(_, v)| v.name.clone()).unwrap_or_default()
        };
        Ok(self.interface(label, entry)?.storage.into_iter().map(|(n, read)| (n, name(n), read)).collect())
    }

    /// `entry` in another language; SPIR-V as bytes, the others as text.
    ///
    /// # Errors
    /// [`Error::Gpu`] for what the language has not.
    pub fn translate(&self, label: &str, entry: &str, target: Target) -> Result<Vec<u8>> {
        // The writers panic where they find what they have not been taught.
        let written = catch_unwind(AssertUnwindSafe(|| self.write(entry, target)));
        match written {
            Ok(Ok(bytes)) if !bytes.is_empty() => Ok(bytes),
            Ok(Ok(_)) => Err(Error::Gpu(format!("{label}: the translation of `{entry}` is empty"))),
            Ok(Err(e)) => Err(Error::Gpu(format!("{label}: `{entry}` cannot be written as {target:?}: {e}"))),
            Err(_) => Err(Error::Gpu(format!(
                "{label}: naga's {target:?} writer gives up on `{entry}`; bind what is computed inside the arguments of a coop function with `let` first"
            ))),
        }
    }

    fn write(&self, entry: &str, target: Target) -> std::result::Result<Vec<u8>, String> {
        let (stage, entry) = (ShaderStage::Compute, entry.to_owned());
        let constants = PipelineConstants::default();
        let (module, info) = pipeline_constants::process_overrides(&self.module, &self.info, Some((stage, &entry)), &constants)
            .map_err(|e| e.to_string())?;
        match target {
            Target::SpirV => {
                let options = spv::Options { lang_version: (1, 3), ..Default::default() };
                let point = spv::PipelineOptions { shader_stage: stage, entry_point: entry };
                let words = spv::write_vec(&module, &info, &options, Some(&point)).map_err(|e| e.to_string())?;
                Ok(words.iter().flat_map(|w| w.to_le_bytes()).collect())
            }
            Target::Msl => {
                let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
                let point = msl::PipelineOptions { entry_point: Some((stage, entry)), ..Default::default() };
                let (text, names) = msl::write_string(&module, &info, &options, &point).map_err(|e| e.to_string())?;
                names.entry_point_names.into_iter().find_map(std::result::Result::err).map_or(Ok(text.into_bytes()), |e| Err(e.to_string()))
            }
            Target::Hlsl => {
                let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, fake_missing_bindings: true, ..Default::default() };
                let point = hlsl::PipelineOptions { entry_point: Some((stage, entry)) };
                let mut text = String::new();
                let names = hlsl::Writer::new(&mut text, &options, &point).write(&module, &info, None).map_err(|e| e.to_string())?;
                names.entry_point_names.into_iter().find_map(std::result::Result::err).map_or(Ok(text.into_bytes()), |e| Err(e.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "@group(0) @binding(3) var<storage, read_write> x: array<f32>;\n@compute @workgroup_size(1)\nfn main() { x[0] = 1.0; }\n";

    #[test]
    fn a_fault_is_at_its_line_and_column() {
        let fault = inspect("a.wgsl", &GOOD.replace("1.0", "y")).unwrap_err();
        assert_eq!(fault.place, Some((3, 20)));
        assert!(fault.report.contains("a.wgsl:3:20") && fault.what.contains('y'), "{fault:?}");
        let fault = inspect("a.wgsl", &GOOD.replace("1.0", "1u")).unwrap_err();
        assert_eq!(fault.place.map(|p| p.0), Some(3), "{fault:?}");
    }

    #[test]
    fn what_is_right_is_described_and_translated() {
        let r = inspect("a.wgsl", GOOD).unwrap();
        assert_eq!(r.entry_points(), ["main"]);
        assert_eq!(r.storage("a", "main").unwrap(), [(3, "x".to_owned(), false)]);
        assert!(r.storage("a", "other").is_err());
        let [spirv, msl, hlsl] = [Target::SpirV, Target::Msl, Target::Hlsl].map(|t| r.translate("a", "main", t).unwrap());
        assert_eq!(spirv[..4], 0x0723_0203u32.to_le_bytes());
        assert!(String::from_utf8(msl).unwrap().contains("kernel void") && String::from_utf8(hlsl).unwrap().contains("numthreads"));
        assert!(r.translate("a", "other", Target::Msl).is_err());
    }
}
