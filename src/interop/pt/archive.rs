//! The container since PyTorch 1.6: a zip archive of one folder, with everything stored as it is.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use flate2::Crc;
use zip::{CompressionMethod, ZipArchive};

use crate::interop::pickle::Pickle;

/// The object of an archive, in its folder.
const OBJECT: &str = "/data.pkl";

/// The object, and where in `bytes` each storage lies.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle, HashMap<String, Range<usize>>), String> {
    let damaged = |e: zip::result::ZipError| format!("is no whole zip archive ({e}); copy or make it again");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    if archive.has_duplicate_names() {
        return Err("is a zip archive with two files of one name; it is damaged".into());
    }
    let mut files: HashMap<String, (Range<usize>, u32)> = HashMap::new();
    let mut left = bytes.len();
    for i in 0..archive.len() {
        let file = archive.by_index_raw(i).map_err(damaged)?;
        let name = std::str::from_utf8(file.name_raw()).map_err(|_| "is a zip archive with a name that is not UTF-8")?.to_owned();
        if file.is_dir() {
            continue;
        }
        if file.encrypted() {
            return Err(format!("holds `{name}` encrypted; PyTorch does not write such files"));
        }
        if file.compression() != CompressionMethod::Stored || file.compressed_size() != file.size() {
            return Err(format!("holds `{name}` compressed, which PyTorch does not write; unpack it, or save it with torch.save"));
        }
        let place = file.data_start().and_then(|s| usize::try_from(s).ok()).zip(usize::try_from(file.size()).ok());
        let range = place.and_then(|(start, size)| Some(start..start.checked_add(size)?)).filter(|r| r.end <= bytes.len());
        let range = range.ok_or_else(|| format!("ends within `{name}`; copy or make it again"))?;
        left = left.checked_sub(range.len()).ok_or("is a zip archive whose files overlap; it is damaged")?;
        files.insert(name, (range, file.crc32()));
    }
    let mut objects = files.keys().filter_map(|n| n.strip_suffix(OBJECT)).filter(|folder| !folder.contains('/'));
    let (folder, more) = (objects.next(), objects.next());
    let folder = match (folder, more) {
        (Some(folder), None) => folder.to_owned(),
        (None, _) => return Err("is a zip archive without data.pkl in a folder, so no PyTorch file".into()),
        _ => return Err("is a zip archive with several data.pkl; it is no PyTorch file".into()),
    };
    let content = |name: &str| -> Result<Option<Range<usize>>, String> {
        let Some((range, sum)) = files.get(&format!("{folder}/{name}")) else { return Ok(None) };
        let mut crc = Crc::new();
        crc.update(&bytes[range.clone()]);
        // PyTorch can be told to leave the sums out, and then writes 0.
        if *sum == 0 || crc.sum() == *sum {
            Ok(Some(range.clone()))
        } else {
            Err(format!("holds `{folder}/{name}` with a wrong checksum: it was changed after it was written; copy or make it again"))
        }
    };
    if let Some(order) = content("byteorder")?.map(|r| &bytes[r])
        && order != b"little"
    {
        return Err("was not written on a little-endian machine; load and save it there as safetensors".into());
    }
    let object = content("data.pkl")?.ok_or("lacks data.pkl")?;
    let pickle = Pickle::read(&bytes[object])?;
    let prefix = format!("{folder}/data/");
    let mut storages = HashMap::new();
    for key in files.keys().filter_map(|n| n.strip_prefix(&prefix)) {
        if let Some(range) = content(&format!("data/{key}"))? {
            storages.insert(key.to_owned(), range);
        }
    }
    Ok((pickle, storages))
}
