//! Writing of zip archives that `torch.load(file, weights_only=True)` reads.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::error::{Error, Result};
use crate::files;
use crate::interop::tensors::{Data, Tensor};

/// Storages begin at multiples of this, as PyTorch writes them, so that they can be mapped into memory.
const ALIGN: u16 = 64;

/// Writes the dictionary `{"state_dict": OrderedDict of the tensors, "semgen": metadata}`, the second entry where there is
/// metadata. Equal content gives equal bytes.
///
/// # Errors
/// [`Error::Io`] when it cannot be written.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: Option<&str>) -> Result<()> {
    let bytes = bytes(tensors, metadata).map_err(|e| Error::input(path, format!("cannot be written: {e}")))?;
    files::write_bytes(path, &bytes)
}

fn bytes(tensors: &BTreeMap<String, Tensor>, metadata: Option<&str>) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, content: &[u8]| -> zip::result::ZipResult<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .with_alignment(ALIGN)
            .large_file(u32::try_from(content.len()).is_err());
        zip.start_file(format!("archive/{name}"), options)?;
        Ok(zip.write_all(content)?)
    };
    add("data.pkl", &object(tensors, metadata))?;
    add("byteorder", b"little")?;
    for (key, tensor) in tensors.values().enumerate() {
        let content: Vec<u8> = match &tensor.data {
            Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        add(&format!("data/{key}"), &content)?;
    }
    add("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// The pickle (protocol 2) of the dictionary. The tensor at place k of the map looks at storage k.
fn object(tensors: &BTreeMap<String, Tensor>, metadata: Option<&str>) -> Vec<u8> {
    const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02}(".to_vec();
    text(&mut out, "state_dict");
    out.extend(ORDERED_DICT);
    out.push(b'(');
    for (key, (name, t)) in tensors.iter().enumerate() {
        let (kind, len) = match &t.data {
            Data::F32(v) => ("Float", v.len()),
            Data::I64(v) => ("Long", v.len()),
        };
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{kind}Storage\n").bytes());
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        size(&mut out, len);
        out.extend(b"tQ");
        size(&mut out, 0);
        sizes(&mut out, &t.shape);
        let strides: Vec<usize> = (0..t.shape.len()).map(|axis| t.shape[axis + 1..].iter().product()).collect();
        sizes(&mut out, &strides);
        // requires_grad, and no hooks.
        out.push(0x89);
        out.extend(ORDERED_DICT);
        out.extend(b"tR");
    }
    out.push(b'u');
    if let Some(metadata) = metadata {
        text(&mut out, "semgen");
        text(&mut out, metadata);
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.push(b'X');
    #[expect(clippy::cast_possible_truncation, reason = "names and descriptions are far shorter")]
    out.extend((s.len() as u32).to_le_bytes());
    out.extend(s.bytes());
}

fn size(out: &mut Vec<u8>, n: usize) {
    match i32::try_from(n) {
        Ok(n) => {
            out.push(b'J');
            out.extend(n.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((n as u64).to_le_bytes());
        }
    }
}

fn sizes(out: &mut Vec<u8>, values: &[usize]) {
    out.push(b'(');
    values.iter().for_each(|&n| size(out, n));
    out.push(b't');
}
