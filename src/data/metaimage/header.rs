//! The header: lines of `Key = Value`, the last of which is `ElementDataFile`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::data::volume::{self, Affine, IDENTITY};
use crate::data::voxels::{self, Form, Kind};

/// A header is shorter than this.
pub(super) const MAX_BYTES: u64 = 1 << 16;

/// Keys that are read; all others are remarks.
const KEYS: [&str; 22] = [
    "BinaryData",
    "BinaryDataByteOrderMSB",
    "CompressedData",
    "CompressedDataSize",
    "DimSize",
    "DistanceUnits",
    "ElementByteOrderMSB",
    "ElementDataFile",
    "ElementNumberOfChannels",
    "ElementSize",
    "ElementSpacing",
    "ElementToIntensityFunctionOffset",
    "ElementToIntensityFunctionSlope",
    "ElementType",
    "HeaderSize",
    "NDims",
    "ObjectType",
    "Offset",
    "Orientation",
    "Origin",
    "Position",
    "Rotation",
];
/// The direction matrix; `Rotation` and `Orientation` are other names for it.
const MATRIX: &str = "TransformMatrix";

/// What the header says, checked as far as it can be without the data.
#[derive(Debug, PartialEq)]
pub(super) struct Fields {
    pub(super) size: [usize; 3],
    pub(super) kind: Kind,
    pub(super) big_endian: bool,
    pub(super) affine: Affine,
    pub(super) form: Form,
    pub(super) data: Data,
    /// Bytes before the data; `None`: the data are the end of the file.
    pub(super) skip: Option<u64>,
    pub(super) compressed: bool,
    /// Bytes of the compressed data; `None`: all that follow.
    pub(super) compressed_bytes: Option<u64>,
}

/// Where the voxels are.
#[derive(Debug, PartialEq)]
pub(super) enum Data {
    /// In the header's file, from this byte on.
    Local(u64),
    /// In the file of this name, relative to the header's folder.
    File(String),
}

/// Parses the start of a file, which reaches at least to the end of the header.
pub(super) fn parse(bytes: &[u8]) -> Result<Fields, String> {
    let (found, end) = lines(bytes)?;
    let get = |key: &str| found.get(key).map(String::as_str);
    let yes = |key: &str| match get(key) {
        None => Ok(None),
        Some(w) if ["true", "1"].contains(&w.to_ascii_lowercase().as_str()) => Ok(Some(true)),
        Some(w) if ["false", "0"].contains(&w.to_ascii_lowercase().as_str()) => Ok(Some(false)),
        Some(w) => Err(format!("{key} is \"{w}\"; True or False was expected")),
    };

    if let Some(other) = get("ObjectType").filter(|t| *t != "Image") {
        return Err(format!("holds an object of type \"{other}\", but an Image was expected"));
    }
    let dims: Vec<i64> = numbers("NDims", get("NDims").ok_or("is not a MetaImage header: it has no NDims")?)?;
    if dims != [3] {
        return Err(format!("has NDims = {dims:?}, but one three-dimensional volume was expected"));
    }
    let size = voxels::grid(three("DimSize", get("DimSize").ok_or("has no DimSize")?)?)?;
    if let Some(n) = get("ElementNumberOfChannels").filter(|n| *n != "1") {
        return Err(format!("has {n} values per voxel (ElementNumberOfChannels), but one was expected; write one file for each"));
    }
    let kind = kind(get("ElementType").ok_or("has no ElementType")?)?;
    if yes("BinaryData")? == Some(false) {
        return Err("holds its voxels as text (BinaryData = False), which cannot be read; convert it".into());
    }
    for (key, neutral) in [("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0)] {
        if let Some(text) = get(key)
            && numbers::<f64>(key, text)? != [neutral]
        {
            return Err(format!("has {key} = {text}, which readers of the format disagree about; store the intensities themselves"));
        }
    }
    if let Some(unit) = get("DistanceUnits").filter(|u| !["mm", "?"].contains(u)) {
        return Err(format!("has lengths in \"{unit}\" (DistanceUnits), but millimetres (mm) were expected"));
    }
    let big_endian = match (yes("BinaryDataByteOrderMSB")?, yes("ElementByteOrderMSB")?) {
        (Some(a), Some(b)) if a != b => {
            return Err("header contradicts itself: BinaryDataByteOrderMSB and ElementByteOrderMSB differ".into());
        }
        (a, b) => a.or(b).unwrap_or(false),
    };
    let (affine, form) = affine(&get)?;
    let skip = match get("HeaderSize").map(|t| numbers::<i64>("HeaderSize", t)).transpose()?.as_deref() {
        None => Some(0),
        Some([-1]) => None,
        Some(&[n]) if n >= 0 => Some(n.unsigned_abs()),
        Some(other) => return Err(format!("HeaderSize is {other:?}; a number of bytes or -1 was expected")),
    };
    let compressed = yes("CompressedData")?.unwrap_or(false);
    let compressed_bytes = get("CompressedDataSize").map(|t| one::<u64>("CompressedDataSize", t)).transpose()?.filter(|&n| n > 0);
    if compressed && skip.is_none() {
        return Err("has HeaderSize = -1 and compressed data, whose place in the file cannot be told; give HeaderSize".into());
    }
    let data = data_file(get("ElementDataFile").unwrap_or_default(), end)?;
    Ok(Fields { size, kind, big_endian, affine, form, data, skip, compressed, compressed_bytes })
}

/// The known fields, and the byte behind the line of `ElementDataFile`.
fn lines(bytes: &[u8]) -> Result<(BTreeMap<&'static str, String>, u64), String> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        at += line.len() as u64;
        let Some(sign) = line.iter().position(|&b| b == b'=' || b == b':') else {
            // The last line may be cut off by the bound on a header's length.
            if line.iter().all(u8::is_ascii_whitespace) || line.last() != Some(&b'\n') {
                continue;
            }
            return Err("is not a MetaImage header: it has a line that is not of the form Key = Value".into());
        };
        let name = line[..sign].trim_ascii();
        let Some(key) = KEYS.into_iter().chain([MATRIX]).find(|k| k.as_bytes() == name) else { continue };
        let value = std::str::from_utf8(line[sign + 1..].trim_ascii()).map_err(|_| format!("{key} is not UTF-8 text"))?;
        if found.insert(key, value.to_owned()).is_some() {
            return Err(format!("header contradicts itself: it has {key} twice"));
        }
        if key == "ElementDataFile" {
            return Ok((found, at));
        }
    }
    Err("is not a MetaImage header: it has no ElementDataFile, with which a header ends; it is truncated or something else".into())
}

fn kind(word: &str) -> Result<Kind, String> {
    Ok(match word {
        "MET_CHAR" => Kind::I8,
        "MET_UCHAR" => Kind::U8,
        "MET_SHORT" => Kind::I16,
        "MET_USHORT" => Kind::U16,
        // The format's own table of sizes gives MET_LONG 4 bytes on every machine.
        "MET_INT" | "MET_LONG" => Kind::I32,
        "MET_UINT" | "MET_ULONG" => Kind::U32,
        "MET_LONG_LONG" => Kind::I64,
        "MET_ULONG_LONG" => Kind::U64,
        "MET_FLOAT" => Kind::F32,
        "MET_DOUBLE" => Kind::F64,
        other => return Err(format!("has voxels of type \"{other}\", but one whole or floating number a voxel was expected; convert it")),
    })
}

/// Index to millimetres, right, anterior, superior.
fn affine<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Result<(Affine, Form), String> {
    // Several names of one field must not differ.
    let any = |names: [&'static str; 3]| -> Result<Option<(&'static str, &'a str)>, String> {
        let mut given = names.into_iter().filter_map(|n| get(n).map(|v| (n, v)));
        let first = given.next();
        match (first, given.find(|(_, v)| first.is_some_and(|f| f.1 != *v))) {
            (Some((a, _)), Some((b, _))) => Err(format!("header contradicts itself: {a} and {b} are the same field and differ")),
            (first, _) => Ok(first),
        }
    };
    let spacing = ["ElementSpacing", "ElementSize"].into_iter().find_map(|n| get(n).map(|v| (n, v)));
    let (name, text) = spacing.ok_or("has no ElementSpacing; add the voxel size in millimetres")?;
    let spacing: [f64; 3] = three(name, text)?;
    let origin: [f64; 3] = any(["Offset", "Position", "Origin"])?.map_or(Ok([0.0; 3]), |(n, t)| three(n, t))?;
    let (matrix, form) = match any([MATRIX, "Rotation", "Orientation"])? {
        None => (vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], Form::Spacing),
        Some((n, t)) => (numbers::<f64>(n, t)?, Form::Matrix),
    };
    if matrix.len() != 9 {
        return Err(format!("has a direction matrix of {} numbers, but 9 were expected", matrix.len()));
    }
    let mut out = IDENTITY;
    for (r, row) in out[..3].iter_mut().enumerate() {
        // From left, posterior to right, anterior; a difference leaves no negative zero.
        let sign = |v: f64| if r < 2 { 0.0 - v } else { v };
        for c in 0..3 {
            row[c] = sign(matrix[3 * c + r] * spacing[c]);
        }
        row[3] = sign(origin[r]);
    }
    if volume::inverse(&out).is_none() {
        return Err(format!("has no usable geometry: voxels of {spacing:?} mm with directions {matrix:?}; repair its header"));
    }
    Ok((out, form))
}

fn data_file(name: &str, end: u64) -> Result<Data, String> {
    let word = name.to_ascii_uppercase();
    if word == "LOCAL" {
        return Ok(Data::Local(end));
    }
    if word.split_ascii_whitespace().next() == Some("LIST") || name.contains('%') {
        return Err(format!("names one data file for every slice (ElementDataFile = {name}), which cannot be read; write one file"));
    }
    let path = Path::new(name);
    let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || name.contains('\0') || !inside || path.file_name().is_none() {
        return Err(format!("names \"{name}\" as its data (ElementDataFile), but a file in its own folder or below was expected"));
    }
    Ok(Data::File(name.to_owned()))
}

fn numbers<T: std::str::FromStr>(key: &str, text: &str) -> Result<Vec<T>, String> {
    let all: Result<Vec<T>, _> = text.split_ascii_whitespace().map(str::parse).collect();
    all.map_err(|_| format!("{key} is \"{text}\"; numbers were expected"))
}

fn one<T: std::str::FromStr + Copy>(key: &str, text: &str) -> Result<T, String> {
    match numbers(key, text)?.as_slice() {
        [n] => Ok(*n),
        _ => Err(format!("{key} is \"{text}\"; one number was expected")),
    }
}

fn three<T: std::str::FromStr>(key: &str, text: &str) -> Result<[T; 3], String> {
    <[T; 3]>::try_from(numbers(key, text)?).map_err(|_| format!("{key} is \"{text}\"; three numbers were expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str =
        "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementSpacing = 0.5 2 3\nElementType = MET_SHORT\nElementDataFile = a.raw\n";

    fn with(line: &str) -> Result<Fields, String> {
        parse(format!("{line}\n{PLAIN}").as_bytes())
    }

    /// Origins, directions and spacings of `SimpleITK` 2.5.7 for the same headers, as affines that map to right, anterior, superior.
    #[test]
    fn geometry_is_that_of_itk() {
        let matrix = "0 1 0 0 0 1 1 0 0";
        let expected = [[0.0, 0.0, -3.0, -1.0], [-0.5, 0.0, 0.0, -2.0], [0.0, 2.0, 0.0, 3.0], IDENTITY[3]];
        for (m, o) in [("TransformMatrix", "Offset"), ("Orientation", "Origin"), ("Rotation", "Position")] {
            let f = with(&format!("{m} = {matrix}\n{o} = 1 2 3\nCenterOfRotation = 5 6 7\nAnatomicalOrientation = LPS")).unwrap();
            assert_eq!((f.affine, f.form), (expected, Form::Matrix));
        }
        let f = with("Offset: 1 2 3").unwrap();
        let expected = [[-0.5, 0.0, 0.0, -1.0], [0.0, -2.0, 0.0, -2.0], [0.0, 0.0, 3.0, 3.0], IDENTITY[3]];
        assert_eq!((f.affine, f.form), (expected, Form::Spacing));
        assert!(f.affine.iter().flatten().all(|v| !(*v == 0.0 && v.is_sign_negative())));
        // Spacing goes before size; a negative one turns its axis round.
        assert_eq!(with("ElementSize = 4 4 4").unwrap().affine[0][0], -0.5);
        let sized = PLAIN.replace("ElementSpacing", "ElementSize").replace("0.5", "-0.5");
        assert_eq!(parse(sized.as_bytes()).unwrap().affine[0][0], 0.5);
    }

    #[test]
    fn fields_of_the_format_are_known() {
        let f = with("HeaderSize = -1\nElementByteOrderMSB = True\nComment = x = y : z").unwrap();
        assert_eq!((f.skip, f.big_endian, f.compressed, f.data), (None, true, false, Data::File("a.raw".into())));
        let f = with("HeaderSize = 10\nCompressedData = True\nCompressedDataSize = 44\nBinaryDataByteOrderMSB = False").unwrap();
        assert_eq!((f.skip, f.big_endian, f.compressed, f.compressed_bytes), (Some(10), false, true, Some(44)));
        let local = PLAIN.replace("a.raw\n", "LOCAL\r\n");
        assert_eq!(parse(format!("{local}\x01\x02").as_bytes()).unwrap().data, Data::Local(local.len() as u64));
        let name = |n: &str| parse(PLAIN.replace("a.raw", n).as_bytes()).map(|f| f.data);
        assert_eq!(name("my scan.raw"), Ok(Data::File("my scan.raw".into())));
        assert_eq!(name("./raw/a.zraw"), Ok(Data::File("./raw/a.zraw".into())));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (line, part) in [
            ("ElementNumberOfChannels = 3", "3 values per voxel"),
            ("BinaryData = False", "as text"),
            ("BinaryData = perhaps", "True or False"),
            ("ElementToIntensityFunctionSlope = 2", "disagree"),
            ("DistanceUnits = um", "millimetres"),
            ("BinaryDataByteOrderMSB = True\nElementByteOrderMSB = False", "contradicts"),
            ("Offset = 1 2 3\nOrigin = 1 2 4", "Offset and Origin"),
            ("TransformMatrix = 1 0 0 0 1 0", "9 were expected"),
            ("TransformMatrix = 1 0 0 1 0 0 0 0 1", "no usable geometry"),
            ("TransformMatrix = 1 0 0 0 nan 0 0 0 1", "no usable geometry"),
            ("Offset = 1 2", "three numbers"),
            ("HeaderSize = -2", "HeaderSize"),
            ("HeaderSize = -1\nCompressedData = True", "place in the file"),
            ("CompressedDataSize = many", "numbers were expected"),
            ("DimSize = 5 5 5", "DimSize twice"),
            ("just text", "Key = Value"),
            ("DimSize", "Key = Value"),
            ("ElementDataFile = b.raw", "NDims"),
        ] {
            let e = with(line).unwrap_err();
            assert!(e.contains(part), "{line}: {e}");
        }
        let replaced = |from: &str, to: &str| parse(PLAIN.replace(from, to).as_bytes()).unwrap_err();
        for (from, to, part) in [
            ("Image", "Tube", "Tube"),
            ("NDims = 3", "NDims = 4", "NDims"),
            ("2 3 4", "2 3", "three numbers"),
            ("2 3 4", "1 3 4", "single slice"),
            ("2 3 4", "-2 3 4", "not a number of voxels"),
            ("2 3 4", "2000000 3000000 4000000", "more than"),
            ("2 3 4", "99999999999999999999 3 4", "numbers were expected"),
            ("MET_SHORT", "MET_SHORT_ARRAY", "MET_SHORT_ARRAY"),
            ("ElementSpacing", "Remark", "no ElementSpacing"),
            ("0.5 2 3", "0 2 3", "no usable geometry"),
            ("0.5 2 3", "inf 2 3", "no usable geometry"),
            ("ElementDataFile = a.raw\n", "", "no ElementDataFile"),
            ("a.raw", "LIST 2", "every slice"),
            ("a.raw", "a%03d.raw 1 4 1", "every slice"),
            ("a.raw", "../a.raw", "own folder"),
            ("a.raw", "/etc/passwd", "own folder"),
            ("a.raw", "sub/../../a.raw", "own folder"),
            ("a.raw", ".", "own folder"),
            ("a.raw", "", "own folder"),
        ] {
            let e = replaced(from, to);
            assert!(e.contains(part), "{to}: {e}");
        }
        assert!(parse(b"").unwrap_err().contains("ElementDataFile"));
        assert!(parse(b"DimSize = \xff 3 4\n").unwrap_err().contains("UTF-8"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..40), at in 0usize..120) {
            let mut bytes = PLAIN.as_bytes().to_vec();
            let at = at.min(bytes.len());
            bytes.splice(at..(at + noise.len() / 2).min(PLAIN.len()), noise);
            let _ = parse(&bytes);
        }
    }
}
