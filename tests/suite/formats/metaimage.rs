//! MetaImage files against what ITK reads from them, hostile ones, and as scans of a set.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use semantic_genesis::data::image::{self, Format, Kind};
use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::{IDENTITY, Volume};
use semantic_genesis::error::Error;
use serde_json::Value;

use crate::harness::{Program, reference};

/// A header as ITK writes it, with `lines` before the last.
fn header(size: [usize; 3], kind: &str, lines: &str, data: &str) -> String {
    format!(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\n\
         ElementSpacing = 0.5 2 3\nDimSize = {} {} {}\nElementType = {kind}\n{lines}ElementDataFile = {data}\n",
        size[0], size[1], size[2]
    )
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut e = ZlibEncoder::new(Vec::new(), Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = GzEncoder::new(Vec::new(), Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// A folder with `scan.mhd` of 2 × 3 × 4 voxels and `scan.raw`.
fn pair(kind: &str, lines: &str, raw: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.mhd");
    std::fs::write(&path, header([2, 3, 4], kind, lines, "scan.raw")).unwrap();
    std::fs::write(dir.path().join("scan.raw"), raw).unwrap();
    (dir, path)
}

fn sentence<T: std::fmt::Debug>(r: Result<T, Error>) -> String {
    match r {
        Err(e @ Error::Input { .. }) => e.to_string(),
        other => panic!("not an input error: {other:?}"),
    }
}

#[test]
fn what_itk_wrote_is_read_as_itk_reads_it() {
    let folder = reference("metaimage");
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut kinds = Vec::new();
    for (name, want) in expected.as_object().unwrap() {
        let path = folder.join(name);
        let volume = image::read(&path).unwrap();
        let head = image::read_header(&path).unwrap();
        assert_eq!(head.format, Format::MetaImage);
        assert_eq!((head.size, head.affine), (volume.size, volume.affine));
        kinds.push(head.kind);
        assert_eq!(serde_json::json!(volume.size), want["size"], "{name}");
        for r in 0..4 {
            for c in 0..4 {
                let (got, want) = (volume.affine[r][c], want["affine"][r][c].as_f64().unwrap());
                assert!((got - want).abs() < 1e-12, "{name}: affine[{r}][{c}] is {got}, ITK has {want}");
            }
        }
        let values = want["values"].as_array().unwrap();
        assert_eq!(values.len(), 5);
        for v in values {
            let p: Vec<usize> = v[0].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as usize).collect();
            assert_eq!(f64::from(volume.at(p[0], p[1], p[2])), v[1].as_f64().unwrap(), "{name} at {p:?}");
        }
        // A stream gives the same voxels in file order, i fastest.
        let mut streamed = Vec::new();
        image::stream(&path, &mut |v| {
            streamed.extend_from_slice(v);
            ControlFlow::Continue(())
        })
        .unwrap();
        let plain = |n: usize| volume.at(n % 2, n / 2 % 3, n / 6);
        assert_eq!(streamed, (0..24).map(plain).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(kinds, [Kind::I16, Kind::I32, Kind::F32, Kind::F64, Kind::I8]);
}

#[test]
fn every_element_type_and_byte_order_is_read() {
    let numbers: Vec<i64> = (0..24).map(|v| v * 5 % 24 + 100).collect();
    macro_rules! check {
        ($($word:literal $t:ty),+) => {$(
            for big in [false, true] {
                let bytes = |v: &i64| if big { (*v as $t).to_be_bytes().to_vec() } else { (*v as $t).to_le_bytes().to_vec() };
                let raw: Vec<u8> = numbers.iter().flat_map(bytes).collect();
                let order = format!("BinaryDataByteOrderMSB = {}\n", if big { "True" } else { "False" });
                let (_dir, path) = pair($word, &order, &raw);
                let v = image::read(&path).unwrap();
                assert!((0..24).all(|n| v.at(n % 2, n / 2 % 3, n / 6) == numbers[n] as f32), "{} {big}", $word);
                // The same numbers behind other bytes, before other bytes, and compressed in both ways.
                let shifted = [&[9; 7][..], &raw, &[9; 5]].concat();
                let (_dir, path) = pair($word, &format!("{order}HeaderSize = 7\n"), &shifted);
                assert_eq!(image::read(&path).unwrap(), v);
                let (_dir, path) = pair($word, &format!("{order}HeaderSize = -1\n"), &[&[9; 7][..], &raw].concat());
                assert_eq!(image::read(&path).unwrap(), v);
                for packed in [zlib(&raw), gzip(&raw)] {
                    let lines = format!("{order}CompressedData = True\nCompressedDataSize = {}\n", packed.len());
                    let (_dir, path) = pair($word, &lines, &[&packed[..], b"more"].concat());
                    assert_eq!(image::read(&path).unwrap(), v);
                    let (_dir, path) = pair($word, &format!("{order}CompressedData = True\n"), &packed);
                    assert_eq!(image::read(&path).unwrap(), v);
                }
            }
        )+};
    }
    check!("MET_CHAR" i8, "MET_UCHAR" u8, "MET_SHORT" i16, "MET_USHORT" u16, "MET_INT" i32, "MET_UINT" u32, "MET_LONG" i32);
    check!("MET_ULONG" u32, "MET_LONG_LONG" i64, "MET_ULONG_LONG" u64, "MET_FLOAT" f32, "MET_DOUBLE" f64);
}

#[test]
fn hostile_files_are_sentences() {
    let raw = [7u8; 48];
    let lying = [
        ("", &raw[..47], "has only 47"),
        ("", &[], "has only 0"),
        ("HeaderSize = 1\n", &raw, "has only 48"),
        ("HeaderSize = 18446744073709551615\n", &raw, "numbers were expected"),
        ("HeaderSize = 9223372036854775807\n", &raw, "truncated or damaged"),
        ("HeaderSize = -1\n", &raw[..40], "has only 40"),
        ("CompressedData = True\n", &raw, "cannot be unpacked"),
        ("CompressedData = True\n", &[], "can hold at most 0"),
        ("CompressedData = True\nCompressedDataSize = 49\n", &raw, "claims 49 bytes"),
        ("CompressedData = True\nHeaderSize = 100\n", &raw, "can hold at most 0"),
    ];
    for (lines, raw, want) in lying {
        let (_dir, path) = pair("MET_SHORT", lines, raw);
        let got = sentence(image::read(&path));
        assert!(got.contains(want) && got.contains("scan.mhd") && !got.contains('\n'), "{lines}: {got}");
    }
    let packed = zlib(&(0..48u8).collect::<Vec<_>>());
    for cut in [packed.len() - 1, packed.len() - 4, packed.len() / 2, 3, 1] {
        let (_dir, path) = pair("MET_SHORT", "CompressedData = True\n", &packed[..cut]);
        let got = sentence(image::read(&path));
        assert!(got.contains("truncated") || got.contains("damaged"), "{cut}: {got}");
        let lines = format!("CompressedData = True\nCompressedDataSize = {cut}\n");
        let (_dir, path) = pair("MET_SHORT", &lines, &packed);
        sentence(image::read(&path));
    }
    let mut flipped = packed.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let (_dir, path) = pair("MET_SHORT", "CompressedData = True\n", &flipped);
    assert!(sentence(image::read(&path)).contains("damaged"), "the checksum is checked");
    // Too little behind good compression, and a bomb behind the claimed voxels.
    let (_dir, path) = pair("MET_SHORT", "CompressedData = True\n", &zlib(&raw[..40]));
    assert!(sentence(image::read(&path)).contains("truncated"));
    let (_dir, path) = pair("MET_SHORT", "CompressedData = True\n", &zlib(&vec![0; 50 << 20]));
    assert!(image::read(&path).is_ok());

    // A huge claim takes no memory; data outside the folder, folders and missing files are refused.
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let outside = write("outside.raw", "x");
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::create_dir(dir.path().join("sub/folder.raw")).unwrap();
    for (n, (size, data, want)) in [
        ([1200, 1200, 1200], "missing.raw", "missing.raw cannot be used: no such file"),
        ([1200, 1200, 1200], "LOCAL", "truncated or damaged"),
        ([2, 2, 2], "../outside.raw", "own folder"),
        ([2, 2, 2], outside.to_str().unwrap(), "own folder"),
        ([2, 2, 2], "folder.raw", "not a regular file"),
        ([2, 2, 2], "LIST", "every slice"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = write(&format!("sub/{n}.mhd"), &header(size, "MET_UCHAR", "", data));
        let got = sentence(image::read(&path));
        assert!(got.contains(want) && got.contains(&format!("{n}.mhd")), "{data}: {got}");
        assert_eq!(sentence(image::read_header(&path)), got);
    }
    let path = write("inside.mha", &header([2, 3, 4], "MET_UCHAR", "HeaderSize = 5\n", "LOCAL"));
    assert!(sentence(image::read(&path)).contains("inside the header"));
    assert!(sentence(image::read(&write("a.mhd", &"Comment = x\n".repeat(10_000)))).contains("ElementDataFile"));
    assert!(sentence(image::read(&dir.path().join("no.mha"))).contains("no such file"));
    assert!(sentence(image::read_volume(&reference("metaimage/local.mha"), 1)).contains("volume 2 was asked for"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_files_are_read_or_refused(at in 0usize..600, byte in any::<u8>(), cut in 0usize..600, which in 0usize..3) {
        let name = ["packed_local.mha", "local.mha", "byte.mha"][which];
        let mut bytes = std::fs::read(reference("metaimage").join(name)).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut.max(1));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mha");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(v) = image::read(&path) {
            prop_assert_eq!(v.data.len(), v.size.iter().product::<usize>());
        }
    }
}

/// Writes `data` (`[i][j][k]`) as a pair of 16-bit files.
fn write_scan(path: &Path, volume: &Volume) {
    let [ni, nj, nk] = volume.size;
    let mut raw = Vec::new();
    for k in 0..nk {
        for j in 0..nj {
            (0..ni).for_each(|i| raw.extend_from_slice(&(volume.at(i, j, k) as i16).to_le_bytes()));
        }
    }
    let name = path.with_extension("raw").file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(path, header(volume.size, "MET_SHORT", "", &name)).unwrap();
    std::fs::write(path.with_extension("raw"), raw).unwrap();
}

#[test]
fn folders_of_both_formats_are_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(dir.path());
    let scans = dir.path().join("scans");
    std::fs::create_dir(&scans).unwrap();
    let size = [10, 8, 6];
    let make = |seed: usize| {
        let data = (0..480).map(|n| ((n * 7919 + seed * 104_729) % 1500) as f32 - 1000.0).collect();
        Volume::new(data, size, [[-0.5, 0.0, 0.0, -1.0], [0.0, -2.0, 0.0, -2.0], [0.0, 0.0, 3.0, 3.0], IDENTITY[3]]).unwrap()
    };
    write_scan(&scans.join("a.mhd"), &make(1));
    nifti::write_i16(&scans.join("b.nii.gz"), &make(2)).unwrap();
    // The mask of a MetaImage scan in another format, told by its name.
    nifti::write_f32(&scans.join("a_mask.nii.gz"), &make(3)).unwrap();
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let out = dir.path().join("store");
    let said = program.json(&["prepare", &text(&scans), "--out", &text(&out)]);
    assert_eq!((said["scans"].as_u64(), said["label_maps"].as_array().map(Vec::len)), (Some(2), Some(1)), "{said}");
    let volumes = |name: &str| std::fs::read(out.join("volumes").join(name)).unwrap();
    let first = volumes("a.npy");

    // The same scan as NIfTI gives the same volume.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    nifti::write_i16(&other.join("a.nii"), &make(1)).unwrap();
    nifti::write_i16(&other.join("b.nii"), &make(2)).unwrap();
    let again = dir.path().join("again");
    program.json(&["prepare", &text(&other), "--out", &text(&again)]);
    assert!(std::fs::read(again.join("volumes/a.npy")).unwrap() == first);

    // The hash of a scan covers its data: other voxels behind the same header are noticed.
    write_scan(&scans.join("a.mhd"), &make(4));
    program.json(&["prepare", &text(&scans), "--out", &text(&out)]);
    assert!(volumes("a.npy") != first);
    // Data that are gone are said, and can be skipped.
    std::fs::remove_file(scans.join("a.raw")).unwrap();
    let e = program.refused(&["prepare", &text(&scans), "--out", &text(&dir.path().join("x"))]);
    assert!(e.contains("a.mhd") && e.contains("a.raw"), "{e}");
    let info = program.json(&["info", &text(&reference("metaimage/short.mhd"))]);
    assert_eq!((info["format"].as_str(), info["stored_as"].as_str()), (Some("MetaImage"), Some("i16")));
}

#[test]
fn volumes_of_a_series_are_read_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("series.nii");
    let stacked = Volume::new((0..72u8).map(f32::from).collect(), [2, 3, 12], IDENTITY).unwrap();
    nifti::write_i16(&path, &stacked).unwrap();
    // Three volumes of 2 × 3 × 4 in place of one of 2 × 3 × 12.
    let mut bytes = std::fs::read(&path).unwrap();
    for (at, n) in [(40, 4i16), (46, 4), (48, 3)] {
        bytes[at..at + 2].copy_from_slice(&n.to_le_bytes());
    }
    for file in [bytes.clone(), gzip(&bytes)] {
        std::fs::write(&path, file).unwrap();
        for index in 0..3 {
            let v = image::read_volume(&path, index).unwrap();
            assert_eq!(v.size, [2, 3, 4]);
            for (i, j, k) in [(0, 0, 0), (1, 2, 3), (1, 0, 2)] {
                assert_eq!(v.at(i, j, k), stacked.at(i, j, k + 4 * index));
            }
        }
        assert_eq!(image::read_series_header(&path).unwrap().volumes, 3);
        assert!(sentence(image::read(&path)).contains("series of 3 volumes"));
        assert!(sentence(image::read_header(&path)).contains("series of 3 volumes"));
        assert!(sentence(image::read_volume(&path, 3)).contains("volume 4 was asked for"));
    }
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(sentence(image::read_volume(&path, 0)).contains("3 times 2 x 3 x 4"));
    bytes[48..50].copy_from_slice(&i16::MAX.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert!(sentence(image::read_volume(&path, 0)).contains("truncated"));
}
