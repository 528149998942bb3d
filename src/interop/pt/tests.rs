use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

const TYPES: [&[u8]; 2] =
    [include_bytes!("../../../tests/reference/exchange/types.pt"), include_bytes!("../../../tests/reference/exchange/types_legacy.pt")];

fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let c = Checkpoint::read(bytes)?;
    let mut out = BTreeMap::new();
    for &(k, v) in c.pickle.entries(c.pickle.root()).unwrap_or_default() {
        if let (Some(name), Some(view)) = (c.pickle.text(k), c.view(v)) {
            out.insert(name.to_owned(), c.tensor(view)?);
        }
    }
    Ok(out)
}

fn floats(shape: &[usize], values: impl IntoIterator<Item = u8>) -> Tensor {
    Tensor::f32(shape.to_vec(), values.into_iter().map(f32::from).collect())
}

/// What `types()` of exchange.py makes.
#[test]
fn every_type_and_every_view_of_a_storage_is_read_from_both_containers() {
    for bytes in TYPES {
        let t = tensors(bytes).unwrap();
        for name in ["float32", "float64", "float16", "bfloat16"] {
            assert_eq!(t[name], Tensor::f32(vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, -5.0]), "{name}");
        }
        for (name, last) in [("int64", -5), ("int32", -5), ("int16", -5), ("int8", -5), ("uint8", 5)] {
            assert_eq!(t[name], Tensor { shape: vec![2, 3], data: Data::I64(vec![0, 1, 2, 3, 4, last]) }, "{name}");
        }
        assert_eq!(t["bool"].data, Data::I64(vec![0, 1, 0, 1, 0, 1]));
        assert_eq!(t["whole"], floats(&[2, 3, 4], 0..24));
        let transposed = (0..4).flat_map(|c| (0..2).flat_map(move |a| (0..3).map(move |b| a * 12 + b * 4 + c)));
        assert_eq!(t["transposed"], floats(&[4, 2, 3], transposed));
        assert_eq!(t["slice"], floats(&[3, 2], [13, 14, 17, 18, 21, 22]));
        assert_eq!(t["step"], floats(&[5], [0, 5, 10, 15, 20]));
        assert_eq!(t["scalar"], Tensor::f32(vec![], vec![1.5]));
        assert_eq!(t["empty"], floats(&[0, 3], []));
        assert_eq!(t["parameter"], floats(&[3], 0..3));
        assert_eq!(t.len(), 17);
    }
}

#[test]
fn what_is_written_is_read_back_bit_for_bit_and_is_the_same_every_time() {
    let mut t = BTreeMap::new();
    let odd = [0.1, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0, f32::MAX];
    t.insert("a.weight".to_owned(), Tensor::f32(vec![1, 2, 3], odd.to_vec()));
    t.insert("b".to_owned(), Tensor { shape: vec![], data: Data::I64(vec![i64::MIN]) });
    t.insert("é".to_owned(), Tensor::f32(vec![0], vec![]));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(&path("a.pt"), &t, Some("{\"x\":1}")).unwrap();
    write(&path("b.pt"), &t, Some("{\"x\":1}")).unwrap();
    let bytes = std::fs::read(path("a.pt")).unwrap();
    assert_eq!(bytes, std::fs::read(path("b.pt")).unwrap());
    let c = Checkpoint::read(&bytes).unwrap();
    let root = c.pickle.root();
    assert_eq!(c.pickle.get(root, "semgen").and_then(|id| c.pickle.text(id)), Some("{\"x\":1}"));
    let dict = c.pickle.get(root, "state_dict").unwrap();
    for (name, want) in &t {
        let got = c.tensor(c.view(c.pickle.get(dict, name).unwrap()).unwrap()).unwrap();
        let bits = |t: &Tensor| match &t.data {
            Data::F32(v) => v.iter().map(|x| u64::from(x.to_bits())).collect::<Vec<_>>(),
            Data::I64(v) => v.iter().map(|x| x.cast_unsigned()).collect(),
        };
        assert_eq!((&got.shape, bits(&got)), (&want.shape, bits(want)), "{name}");
    }
    // Storages can be mapped: they begin where PyTorch expects them to.
    for (key, range) in &c.storages {
        assert_eq!(range.start % 64, 0, "storage {key}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for bytes in TYPES {
        for n in 0..bytes.len() {
            assert!(Checkpoint::read(&bytes[..n]).is_err(), "{n} of {} bytes were accepted", bytes.len());
        }
    }
    let longer = [TYPES[1], b"x"].concat();
    assert!(Checkpoint::read(&longer).unwrap_err().contains("1 bytes after its last storage"));
}

/// A zip archive of these files.
fn archive(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn stored(files: &[(&str, &[u8])]) -> String {
    Checkpoint::read(&archive(files, CompressionMethod::Stored)).unwrap_err()
}

/// The pickle of one tensor of six floats.
const ONE: &[u8] = b"\x80\x02ctorch._utils\n_rebuild_tensor\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x06\0\0\0cuda:0K\x06tQK\0K\x06\x85K\x01\x85tR.";

#[test]
fn archives_that_lie_are_refused_with_the_reason() {
    let good = archive(&[("a/data.pkl", ONE), ("a/data/0", &[0; 24])], CompressionMethod::Stored);
    assert!(Checkpoint::read(&good).is_ok(), "the device of a tensor plays no role");
    for (files, what) in [
        (vec![("a/data.pkl", ONE)], "lacks the storage `0`"),
        (vec![("a/data.pkl", ONE), ("a/data/0", &[0; 20])], "20 bytes where 6 elements of type Float"),
        (vec![("a/data.pkl", ONE), ("a/data/0", &[0; 28])], "28 bytes"),
        (vec![("a/data.pkl", ONE), ("b/data.pkl", ONE)], "several data.pkl"),
        (vec![("data.pkl", ONE)], "without data.pkl in a folder"),
        (vec![("a/data.pkl", ONE), ("a/byteorder", b"big")], "little-endian"),
        (vec![("a/data.pkl", b"\x80\x02cos\nsystem\n.")], "`os.system`"),
    ] {
        let e = stored(&files);
        assert!(e.contains(what), "{e}");
    }
    // One bit of a weight.
    let at = good.windows(24).position(|w| w == [0; 24]).unwrap();
    let mut damaged = good.clone();
    damaged[at + 3] ^= 1;
    assert!(Checkpoint::read(&damaged).unwrap_err().contains("wrong checksum"));
    // The central directory says that the storage is compressed, or encrypted.
    let header = good.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    for (offset, value, what) in [(10, 8, "compressed"), (8, 1, "encrypted")] {
        let mut changed = good.clone();
        changed[header + offset] = value;
        let e = Checkpoint::read(&changed).unwrap_err();
        assert!(e.contains(what), "{e}");
    }
    // Sizes beyond the file, and beyond any file.
    for size in [1000u32, u32::MAX - 1] {
        let mut changed = good.clone();
        for field in [20, 24] {
            changed[header + field..header + field + 4].copy_from_slice(&size.to_le_bytes());
        }
        assert!(Checkpoint::read(&changed).is_err());
    }
}

/// Where the central directory of an archive begins and ends.
fn directory(archive: &[u8]) -> (usize, usize) {
    let end = archive.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    (archive.windows(4).position(|w| w == b"PK\x01\x02").unwrap(), end)
}

/// The directory lists the same 4000 bytes under a hundred names, which is how small archives become large ones.
#[test]
fn archives_whose_files_overlap_are_refused() {
    let object = ONE.to_vec();
    let good = archive(&[("a/data.pkl", &object), ("a/data/0", &[0; 4000])], CompressionMethod::Stored);
    let (begin, end) = directory(&good);
    let last = good.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let mut bytes = good[..end].to_vec();
    for i in 0..100u8 {
        let mut entry = good[last..end].to_vec();
        // The key is the last letter of the name, which ends the entry.
        *entry.last_mut().unwrap() = b'1' + i;
        bytes.extend(entry);
    }
    let size = u32::try_from(bytes.len() - begin).unwrap();
    let mut tail = good[end..].to_vec();
    tail[8..10].copy_from_slice(&102u16.to_le_bytes());
    tail[10..12].copy_from_slice(&102u16.to_le_bytes());
    tail[12..16].copy_from_slice(&size.to_le_bytes());
    bytes.extend(tail);
    let e = Checkpoint::read(&bytes).unwrap_err();
    assert!(e.contains("overlap"), "{e}");
}

/// PyTorch writes the 64-bit fields of zip for large storages; what they claim is checked like the rest.
#[test]
fn archives_with_64_bit_sizes_are_read_and_their_lies_refused() {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in [("a/data.pkl", ONE), ("a/data/0", &[0; 24])] {
        zip.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true)).unwrap();
        zip.write_all(content).unwrap();
    }
    let large = zip.finish().unwrap().into_inner();
    assert!(Checkpoint::read(&large).is_ok());
    // An end record of 64 bits behind an ordinary directory, with what it says about number, size and place of the entries.
    let good = archive(&[("a/data.pkl", ONE), ("a/data/0", &[0; 24])], CompressionMethod::Stored);
    let (begin, end) = directory(&good);
    let with = |count: u64, size: u64, offset: u64| {
        let mut out = good[..end].to_vec();
        out.extend(b"PK\x06\x06");
        out.extend(44u64.to_le_bytes());
        out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for value in [count, count, size, offset] {
            out.extend(value.to_le_bytes());
        }
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend((end as u64).to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([0xff; 12]);
        out.extend([0, 0]);
        out
    };
    let (size, offset) = ((end - begin) as u64, begin as u64);
    assert!(Checkpoint::read(&with(2, size, offset)).is_ok());
    for (count, size, offset) in [(u64::MAX, size, offset), (1 << 40, size, offset), (2, size, u64::MAX), (2, size, 1 << 40)] {
        let e = Checkpoint::read(&with(count, size, offset)).unwrap_err();
        assert!(e.contains("no whole zip archive"), "{e}");
    }
}

/// No elements, but axes whose product is beyond all numbers.
#[test]
fn empty_tensors_may_claim_any_shape() {
    let huge = b"\x8a\x08\0\0\0\0\0\0\0\x40";
    let head = &ONE[..ONE.len() - b"K\0K\x06\x85K\x01\x85tR.".len()];
    let object = [head, b"K\0K\0", huge, huge, b"\x87K\x01", huge, b"K\x01\x87tR."].concat();
    let bytes = archive(&[("a/data.pkl", &object), ("a/data/0", &[0; 24])], CompressionMethod::Stored);
    let c = Checkpoint::read(&bytes).unwrap();
    let t = c.tensor(c.view(c.pickle.root()).unwrap()).unwrap();
    assert_eq!((t.shape, t.data), (vec![0, 1 << 62, 1 << 62], Data::F32(vec![])));
}

/// A legacy file: the five pickles and what follows.
fn legacy(system: &[u8], object: &[u8], keys: &[u8], rest: &[u8]) -> Result<(), String> {
    let bytes = [&legacy::MAGIC, b"\x80\x02M\xe9\x03.".as_slice(), system, object, keys, rest].concat();
    Checkpoint::read(&bytes).map(drop)
}

const SYSTEM: &[u8] = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
const BIG: &[u8] = b"\x80\x02}X\x0d\0\0\0little_endian\x89s.";
const KEYS: &[u8] = b"\x80\x02]X\x01\0\0\x000a.";

#[test]
fn legacy_files_that_lie_are_refused_with_the_reason() {
    let data = |count: u64, bytes: usize| [count.to_le_bytes().as_slice(), &vec![0; bytes]].concat();
    legacy(SYSTEM, ONE, KEYS, &data(6, 24)).unwrap();
    for (system, object, keys, rest, what) in [
        (BIG, ONE, KEYS, data(6, 24), "big-endian"),
        (b"\x80\x02}.".as_slice(), ONE, KEYS, data(6, 24), "byte order"),
        (SYSTEM, ONE, KEYS, data(6, 23), "ends within the storage `0`"),
        (SYSTEM, ONE, KEYS, data(u64::MAX, 24), "ends within the storage `0`"),
        (SYSTEM, ONE, KEYS, data(1 << 62, 24), "ends within the storage `0`"),
        (SYSTEM, ONE, KEYS, data(5, 20), "20 bytes where 6 elements"),
        (SYSTEM, ONE, b"\x80\x02].", data(6, 24), "after its last storage"),
        (SYSTEM, ONE, b"\x80\x02].", vec![], "lacks the storage `0`"),
        (SYSTEM, ONE, b"\x80\x02}.", data(6, 24), "list of storages"),
        (SYSTEM, ONE, b"\x80\x02]X\x01\0\0\x001a.", data(6, 24), "that no tensor uses"),
        (SYSTEM, ONE, b"\x80\x02](X\x01\0\0\x000X\x01\0\0\x000e.", [data(6, 24), data(6, 24)].concat(), "twice"),
        (SYSTEM, b"\x80\x02cos\nsystem\n.", KEYS, data(6, 24), "`os.system`"),
    ] {
        let e = legacy(system, object, keys, &rest).unwrap_err();
        assert!(e.contains(what), "{e}");
    }
}

#[test]
fn one_storage_cannot_be_copied_without_end() {
    // A list of 1000 tensors that all show the same storage.
    let tensor = &ONE[2..ONE.len() - 1];
    let object = [b"\x80\x02](", tensor, b"q\0", &b"h\0".repeat(999), b"e."].concat();
    let bytes = archive(&[("a/data.pkl", &object), ("a/data/0", &[0; 24])], CompressionMethod::Stored);
    let c = Checkpoint::read(&bytes).unwrap();
    let Node::List(items) = c.pickle.node(c.pickle.root()) else { panic!() };
    assert_eq!(items.len(), 1000);
    let copied = items.iter().map(|&id| c.tensor(c.view(id).unwrap())).take_while(Result::is_ok).count();
    assert!(copied > 1 && copied * 24 <= MOST_COPIES * bytes.len() && copied < 1000, "{copied}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Damage gives an error or other numbers, never a panic, and never more memory than the file justifies.
    #[test]
    fn damage_never_panics(which in 0..2usize, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let mut bytes = TYPES[which].to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(t) = tensors(&bytes) {
            let elements: usize = t.values().map(|t| match &t.data { Data::F32(v) => v.len(), Data::I64(v) => v.len() }).sum();
            prop_assert!(elements <= MOST_COPIES * bytes.len());
        }
    }

    /// Pickles of instructions that this reader knows, in any order.
    #[test]
    fn random_programs_never_panic(parts in prop::collection::vec(prop::sample::select(vec![
        b"(".as_slice(), b")", b"]", b"}", b"N", b"\x88", b"K\x01", b"K\x06", b"J\xff\xff\xff\xff", b"X\x01\0\0\x000", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e",
        b"s", b"u", b"q\0", b"h\0", b"q\x01", b"h\x01", b"R", b"b", b"Q", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n", b"c_codecs\nencode\n", &ONE[2..ONE.len() - 1],
    ]), 0..60)) {
        let program = [b"\x80\x02".to_vec(), parts.concat(), b".".to_vec()].concat();
        let _ = Pickle::read(&program);
    }
}
