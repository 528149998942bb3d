//! MetaImage files: `.mhd` with its data in a `.raw` or `.zraw` file beside it, and `.mha` with both in one.
//!
//! One three-dimensional volume with one channel of any number type, in one data file. Positions are millimetres to the patient's
//! left, posterior and superior, and the rows of `TransformMatrix` are the directions of the index axes, as ITK writes both; the
//! affine is turned to right, anterior, superior. The data file has to lie in the header's own folder: a header may not name files
//! elsewhere on the machine.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::ZlibDecoder;

use super::nifti::{Form, Header, Kind, MAX_RATIO, Opened};
use super::volume::{self, Affine, IDENTITY, inverse};
use crate::error::{Error, Result};

/// Most bytes of a header.
const MAX_HEADER: u64 = 1 << 16;
/// Most voxels of an axis, as in NIfTI.
const MAX_AXIS: usize = 32_767;

/// A parsed header.
struct Text {
    size: [usize; 3],
    kind: Kind,
    big_endian: bool,
    compressed: bool,
    /// Bytes of the data file before the voxels; -1: they end the file.
    skip: i64,
    affine: Affine,
    /// `None`: behind the header.
    data: Option<String>,
}

/// The file that holds the voxels, if the header at `path` names another.
///
/// # Errors
/// As [`open`].
pub(super) fn data_file(path: &Path) -> Result<Option<PathBuf>> {
    let (text, _) = header(path)?;
    text.data.map(|name| beside(path, &name)).transpose()
}

/// Opens a file for reading.
///
/// # Errors
/// An [`Error::Input`] if it or its data file is missing, is no MetaImage that can be read, contradicts itself or is too short.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let (text, end) = header(path)?;
    let Text { size, kind, big_endian, compressed, skip, affine, data } = text;
    let bytes = size.iter().product::<usize>() as u64 * kind.bytes() as u64;
    let place = match &data {
        Some(name) => beside(path, name)?,
        None => path.to_path_buf(),
    };
    let mut file = File::open(&place).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Error::input(path, format!("names the data file {}, which does not exist; put it beside the header", place.display()))
        }
        _ => Error::io("open", &place)(e),
    })?;
    let length = file.metadata().map_err(Error::io("read", &place))?.len();
    let begin = match (skip, &data) {
        (-1, _) if compressed => {
            return Err(Error::input(path, "has HeaderSize -1 with compressed data, which says nothing; give the size"));
        }
        (-1, _) => length.checked_sub(bytes).ok_or_else(|| short(path, &place, bytes, length))?,
        (n, Some(_)) => n.unsigned_abs(),
        (n, None) => end.saturating_add(n.unsigned_abs()),
    };
    let there = length.saturating_sub(begin);
    let possible = if compressed { there.saturating_mul(MAX_RATIO) } else { there };
    if bytes > possible {
        return Err(short(path, &place, bytes, there));
    }
    file.seek(SeekFrom::Start(begin)).map_err(Error::io("read", &place))?;
    let reader: Box<dyn Read> = if compressed { Box::new(ZlibDecoder::new(BufReader::new(file))) } else { Box::new(BufReader::new(file)) };
    let header = Header { version: 0, big_endian, size, kind, offset: 0, scale: None, affine, form: Form::MetaImage, labels: false };
    Ok(Opened { header, reader, at: 0, gzip: compressed })
}

fn short(path: &Path, place: &Path, needed: u64, there: u64) -> Error {
    Error::input(
        path,
        format!("claims {needed} bytes of voxels, but {} has only {there} for them; it is truncated or damaged", place.display()),
    )
}

/// The data file called `name` beside the header.
fn beside(path: &Path, name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "." && name != "..";
    if !plain {
        return Err(Error::input(path, format!("names the data file `{name}`; only a file in the header's own folder is read")));
    }
    Ok(path.with_file_name(name))
}

/// The parsed header and the place where it ends.
fn header(path: &Path) -> Result<(Text, u64)> {
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::input(path, "no such file"),
        _ => Error::io("open", path)(e),
    })?;
    if !file.metadata().map_err(Error::io("read", path))?.is_file() {
        return Err(Error::input(path, "is not a regular file, but a .mhd or .mha file was expected"));
    }
    let mut reader = BufReader::new(file.take(MAX_HEADER));
    let mut fields = Vec::new();
    let mut end = 0u64;
    loop {
        let mut line = Vec::new();
        let n = reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        end += n as u64;
        let complete = line.ends_with(b"\n");
        let Some((key, value)) = std::str::from_utf8(&line).ok().and_then(|l| l.split_once('=')) else {
            if n > 0 && complete && line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Err(Error::input(
                path,
                "is not a MetaImage header: lines of `Key = Value` that end with ElementDataFile were expected",
            ));
        };
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        let last = key == "ElementDataFile";
        fields.push((key, value));
        if last {
            break;
        }
    }
    parse(&fields).map(|t| (t, end)).map_err(|what| Error::input(path, what))
}

/// Reads the fields of a header.
fn parse(fields: &[(String, String)]) -> Result<Text, String> {
    let get = |names: &[&str]| fields.iter().find(|(k, _)| names.contains(&k.as_str())).map(|(_, v)| v.as_str());
    let yes = |names: &[&str]| get(names).is_some_and(|v| v.eq_ignore_ascii_case("true") || v == "1");
    let numbers = |names: &[&str], n: usize| -> Result<Option<Vec<f64>>, String> {
        let Some(text) = get(names) else { return Ok(None) };
        let values: Option<Vec<f64>> = text.split_whitespace().map(|w| w.parse().ok().filter(|v: &f64| v.is_finite())).collect();
        match values {
            Some(v) if v.len() == n => Ok(Some(v)),
            _ => Err(format!("field {} is `{text}`, expected {n} numbers", names[0])),
        }
    };
    if let Some(kind) = get(&["ObjectType"])
        && !kind.eq_ignore_ascii_case("image")
    {
        return Err(format!("holds an object of type {kind}, not an image"));
    }
    let dims: usize = get(&["NDims"]).and_then(|v| v.parse().ok()).ok_or("lacks the field NDims with the number of dimensions")?;
    if dims != 3 {
        return Err(format!("has {dims} dimensions, but only volumes of 3 are read"));
    }
    let sizes = get(&["DimSize"]).ok_or("lacks the field DimSize with the voxels of each axis")?;
    let size: Option<Vec<usize>> = sizes.split_whitespace().map(|w| w.parse().ok().filter(|n| (1..=MAX_AXIS).contains(n))).collect();
    let size: [usize; 3] =
        size.and_then(|s| s.try_into().ok()).ok_or_else(|| format!("field DimSize is `{sizes}`, expected 3 numbers in 1..={MAX_AXIS}"))?;
    if let Some(channels) = get(&["ElementNumberOfChannels"])
        && channels != "1"
    {
        return Err(format!("has {channels} channels a voxel, but only 1 is read; save each as a volume of its own"));
    }
    if get(&["BinaryData"]).is_some_and(|v| v.eq_ignore_ascii_case("false")) {
        return Err("holds its voxels as text, which is not read; save it with binary data".into());
    }
    let word = get(&["ElementType"]).ok_or("lacks the field ElementType")?;
    let kind = match word {
        "MET_CHAR" => Kind::I8,
        "MET_UCHAR" => Kind::U8,
        "MET_SHORT" => Kind::I16,
        "MET_USHORT" => Kind::U16,
        "MET_INT" | "MET_LONG" => Kind::I32,
        "MET_UINT" | "MET_ULONG" => Kind::U32,
        "MET_LONG_LONG" => Kind::I64,
        "MET_ULONG_LONG" => Kind::U64,
        "MET_FLOAT" => Kind::F32,
        "MET_DOUBLE" => Kind::F64,
        _ => return Err(format!("has voxels of type {word}, which is not read; save it as numbers")),
    };
    let spacing = numbers(&["ElementSpacing", "ElementSize"], 3)?.unwrap_or_else(|| vec![1.0; 3]);
    if spacing.iter().any(|&s| s <= 0.0) {
        return Err(format!("has the voxel size {spacing:?}, expected positive millimetres"));
    }
    let origin = numbers(&["Offset", "Position", "Origin"], 3)?.unwrap_or_else(|| vec![0.0; 3]);
    let matrix =
        numbers(&["TransformMatrix", "Rotation", "Orientation"], 9)?.unwrap_or_else(|| vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    let mut affine = IDENTITY;
    for r in 0..3 {
        // Left and posterior become right and anterior.
        let sign = if r < 2 { -1.0 } else { 1.0 };
        for c in 0..3 {
            affine[r][c] = sign * matrix[3 * c + r] * spacing[c];
        }
        affine[r][3] = sign * origin[r];
    }
    if inverse(&affine).is_none() || volume::spacing(&affine).iter().any(|s| !s.is_finite()) {
        return Err("has a TransformMatrix that cannot be inverted; repair its header".into());
    }
    let skip: i64 = match get(&["HeaderSize"]) {
        None => 0,
        Some(v) => {
            v.parse().ok().filter(|&n| n >= -1).ok_or_else(|| format!("field HeaderSize is `{v}`, expected a number of bytes or -1"))?
        }
    };
    let data = match get(&["ElementDataFile"]) {
        None | Some("") => return Err("lacks the field ElementDataFile".into()),
        Some("LOCAL" | "Local" | "local") => None,
        Some(name) if name.starts_with("LIST") || name.contains('%') => {
            return Err("keeps its slices in several files, which are not read; save it as one".into());
        }
        Some(name) => Some(name.to_owned()),
    };
    let big_endian = yes(&["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]);
    Ok(Text { size, kind, big_endian, compressed: yes(&["CompressedData"]), skip, affine, data })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::image::{read, read_header};
    use super::*;

    const HEAD: &str = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
        TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 10 20 30\nCenterOfRotation = 0 0 0\nElementSpacing = 0.5 2 3\nDimSize = 2 3 4\n\
        ElementType = MET_SHORT\n";

    fn voxels() -> Vec<u8> {
        (0..24i16).flat_map(|v| (v * 10 - 50).to_le_bytes()).collect()
    }

    fn write(dir: &Path, name: &str, head: &str, tail: &[u8]) -> PathBuf {
        let path = dir.join(name);
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(tail);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn header_and_data_apart_or_together_plain_or_compressed_are_the_same_volume() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        std::fs::write(d.join("a.raw"), voxels()).unwrap();
        let mut behind = vec![7u8; 13];
        behind.extend(voxels());
        std::fs::write(d.join("c.raw"), &behind).unwrap();
        std::fs::write(d.join("b.zraw"), zlib(&voxels())).unwrap();
        let compressed = HEAD.replace("CompressedData = False", "CompressedData = True\nCompressedDataSize = 50");
        let swapped: Vec<u8> = voxels().chunks(2).flat_map(|c| [c[1], c[0]]).collect();
        std::fs::write(d.join("m.raw"), swapped).unwrap();
        let files = [
            write(d, "a.mhd", HEAD, b"ElementDataFile = a.raw\n"),
            write(d, "a2.mhd", HEAD, b"ElementDataFile = a.raw"),
            write(d, "b.mhd", &compressed, b"ElementDataFile = b.zraw\n"),
            write(d, "c.mhd", HEAD, b"HeaderSize = 13\nElementDataFile = c.raw\n"),
            write(d, "d.mhd", HEAD, b"HeaderSize = -1\nElementDataFile = c.raw\n"),
            write(d, "e.mha", HEAD, &[b"ElementDataFile = LOCAL\n".as_slice(), &voxels()].concat()),
            write(d, "f.mha", &compressed, &[b"ElementDataFile = LOCAL\n".as_slice(), &zlib(&voxels())].concat()),
            write(d, "m.mhd", &HEAD.replace("MSB = False", "MSB = True"), b"ElementDataFile = m.raw\n"),
        ];
        for file in files {
            let v = read(&file).unwrap();
            assert_eq!(v.size, [2, 3, 4], "{}", file.display());
            // x is fastest in the file.
            assert_eq!((v.at(1, 0, 0), v.at(0, 1, 0), v.at(0, 0, 1), v.at(1, 2, 3)), (-40.0, -30.0, 10.0, 180.0));
            // Index axis x runs along world y (posterior), y against world x: LPS (0, 0.5, 0) and (-2, 0, 0) a step.
            let want = [[0.0, 2.0, 0.0, -10.0], [-0.5, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], IDENTITY[3]];
            for r in 0..4 {
                for c in 0..4 {
                    assert!((v.affine[r][c] - want[r][c]).abs() < 1e-12, "{:?}", v.affine);
                }
            }
            assert_eq!(read_header(&file).unwrap().form.word(), "MetaImage");
        }
    }

    #[test]
    fn lies_and_escapes_are_refused_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        std::fs::write(d.join("a.raw"), voxels()).unwrap();
        std::fs::write(d.join("z.zraw"), &zlib(&voxels())[..20]).unwrap();
        let tail = b"ElementDataFile = a.raw\n".as_slice();
        let compressed = HEAD.replace("CompressedData = False", "CompressedData = True");
        for (name, head, tail, word) in [
            ("size", HEAD.replace("2 3 4", "2 3 400"), tail, "truncated"),
            ("huge", HEAD.replace("2 3 4", "32767 32767 32767"), tail, "truncated"),
            ("negative", HEAD.replace("2 3 4", "2 -3 4"), tail, "DimSize"),
            ("dims", HEAD.replace("NDims = 3", "NDims = 4"), tail, "dimensions"),
            ("type", HEAD.replace("MET_SHORT", "MET_STRING"), tail, "MET_STRING"),
            ("matrix", HEAD.replace("0 1 0 -1 0 0 0 0 1", "0 0 0 0 0 0 0 0 1"), tail, "inverted"),
            ("spacing", HEAD.replace("0.5 2 3", "0 2 3"), tail, "voxel size"),
            ("nan", HEAD.replace("10 20 30", "10 nan 30"), tail, "Offset"),
            ("escape", HEAD.to_owned(), b"ElementDataFile = ../a.raw\n".as_slice(), "own folder"),
            ("absolute", HEAD.to_owned(), b"ElementDataFile = /etc/passwd\n", "own folder"),
            ("list", HEAD.to_owned(), b"ElementDataFile = LIST\n", "several files"),
            ("gone", HEAD.to_owned(), b"ElementDataFile = gone.raw\n", "does not exist"),
            ("cut", HEAD.to_owned(), b"ElementData", "Key = Value"),
            ("zlib", compressed, b"ElementDataFile = z.zraw\n", "z"),
            ("channels", HEAD.replace("NDims = 3", "NDims = 3\nElementNumberOfChannels = 3"), tail, "channels"),
        ] {
            let path = write(d, &format!("{name}.mhd"), &head, tail);
            let e = read(&path).unwrap_err();
            assert!(e.to_string().contains(word) && e.exit_code() == 2 && !e.to_string().contains('\n'), "{name}: {e}");
        }
    }
}
