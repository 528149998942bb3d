//! Between device buffers and named tensors in files.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context};
use crate::graph::Tensors;
use crate::interop::tensors::{Data, Tensor};
use crate::plan::Store;

/// Named tensors.
pub type Named = BTreeMap<String, Tensor>;

/// Reads a flat buffer into `prefix` + name → tensor in file order.
///
/// # Errors
/// What the device reports.
pub fn download(ctx: &Context, buffer: &Buffer, list: &Tensors, prefix: &str, into: &mut Named) -> Result<()> {
    let flat: Vec<f32> = ctx.read(buffer, 0, list.flat_len())?;
    for p in list.list() {
        let data = p.to_file(&flat[p.offset..p.offset + p.len()]);
        into.insert(format!("{prefix}{}", p.name), Tensor::f32(p.file_shape(), data));
    }
    Ok(())
}

/// Parameters, running statistics and `num_batches_tracked` (= `updates`) as a PyTorch state dict.
///
/// # Errors
/// What the device reports.
pub fn state_dict(ctx: &Context, store: &Store, updates: u64) -> Result<Named> {
    let mut out = Named::new();
    download(ctx, &store.params, &store.param_list, "", &mut out)?;
    download(ctx, &store.state, &store.state_list, "", &mut out)?;
    for p in store.state_list.list() {
        if let Some(norm) = p.name.strip_suffix(".running_mean") {
            let data = Data::I64(vec![i64::try_from(updates).unwrap_or(i64::MAX)]);
            out.insert(format!("{norm}.num_batches_tracked"), Tensor { shape: vec![], data });
        }
    }
    Ok(out)
}

/// What [`upload`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// Names taken over.
    pub loaded: Vec<String>,
    /// Names the network has and the file lacks.
    pub missing: Vec<String>,
}

/// Writes the tensors called `prefix` + name into a flat buffer; those that are missing keep their values.
///
/// # Errors
/// [`Error::Failed`] when a tensor has another shape.
pub fn upload(ctx: &Context, buffer: &Buffer, list: &Tensors, prefix: &str, from: &Named) -> Result<Loaded> {
    let mut report = Loaded::default();
    let mut flat: Vec<f32> = ctx.read(buffer, 0, list.flat_len())?;
    for p in list.list() {
        let Some(t) = from.get(&format!("{prefix}{}", p.name)) else {
            report.missing.push(p.name.clone());
            continue;
        };
        let data = t.floats().filter(|_| t.shape == p.file_shape()).ok_or_else(|| {
            Error::Failed(format!(
                "tensor `{}` has shape {:?}, this network needs {:?}; check model.base_channels, model.classes and model.variant",
                p.name,
                t.shape,
                p.file_shape()
            ))
        })?;
        flat[p.offset..p.offset + p.len()].copy_from_slice(&p.to_memory(data));
        report.loaded.push(p.name.clone());
    }
    ctx.upload(buffer, 0, &flat);
    Ok(report)
}

/// Loads a state dict into `store`.
///
/// # Errors
/// As [`upload`]; [`Error::Failed`] when nothing matches, or when something is missing and `strict`.
pub fn load_state_dict(ctx: &Context, store: &Store, from: &Named, strict: bool) -> Result<Loaded> {
    let mut report = upload(ctx, &store.params, &store.param_list, "", from)?;
    let state = upload(ctx, &store.state, &store.state_list, "", from)?;
    report.loaded.extend(state.loaded);
    report.missing.extend(state.missing);
    if report.loaded.is_empty() {
        return Err(Error::Failed(
            "no tensor of the file has a name of this network; check that it is a Semantic Genesis state dict of the same variant".into(),
        ));
    }
    if strict && let Some(name) = report.missing.first() {
        return Err(Error::Failed(format!("the file lacks `{name}` and {} more tensors of this network", report.missing.len() - 1)));
    }
    Ok(report)
}
