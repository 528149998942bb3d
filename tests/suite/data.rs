//! From NIfTI bytes to a prepared store.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use semantic_genesis::config::Config;
use semantic_genesis::data::image::Form;
use semantic_genesis::data::nifti::{self, Stored};
use semantic_genesis::data::prepare::{Progress, prepare};
use semantic_genesis::data::recipe::Recipe;
use semantic_genesis::data::scans;
use semantic_genesis::data::store::{Split, Store};
use semantic_genesis::data::volume::{Affine, Volume};
use semantic_genesis::error::{Error, Result};
use semantic_genesis::rng::Key;

const RAS: Affine = [[1.5, 0.0, 0.0, -20.0], [0.0, 2.0, 0.0, 30.0], [0.0, 0.0, 2.5, 40.0], [0.0, 0.0, 0.0, 1.0]];

/// A NIfTI header written field by field, independent of the library's own writer.
#[derive(Clone)]
struct Head {
    version: u8,
    big: bool,
    dim: [i64; 8],
    code: i16,
    bits: i16,
    scale: (f64, f64),
    pixdim: [f64; 8],
    qform: (i16, [f64; 6]),
    sform: (i16, [f64; 12]),
    offset: f64,
    units: u8,
    intent: i16,
}

impl Head {
    fn new(size: [i64; 3], code: i16, bits: i16) -> Self {
        let mut sform = [0.0; 12];
        sform.copy_from_slice(&RAS.concat()[..12]);
        Self {
            version: 1,
            big: false,
            dim: [3, size[0], size[1], size[2], 1, 1, 1, 1],
            code,
            bits,
            scale: (1.0, 0.0),
            pixdim: [1.0, 1.5, 2.0, 2.5, 0.0, 0.0, 0.0, 0.0],
            qform: (0, [0.0; 6]),
            sform: (1, sform),
            offset: 0.0,
            units: 2,
            intent: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut b = vec![0; if self.version == 1 { 352 } else { 544 }];
        let mut put = |at: usize, le: &[u8]| {
            let to = &mut b[at..at + le.len()];
            to.copy_from_slice(le);
            if self.big {
                to.reverse();
            }
        };
        let quad = self.qform.1;
        if self.version == 1 {
            put(0, &348i32.to_le_bytes());
            (0..8).for_each(|d| put(40 + 2 * d, &(self.dim[d] as i16).to_le_bytes()));
            put(68, &self.intent.to_le_bytes());
            put(70, &self.code.to_le_bytes());
            put(72, &self.bits.to_le_bytes());
            (0..8).for_each(|d| put(76 + 4 * d, &(self.pixdim[d] as f32).to_le_bytes()));
            put(108, &(if self.offset == 0.0 { 352.0 } else { self.offset as f32 }).to_le_bytes());
            put(112, &(self.scale.0 as f32).to_le_bytes());
            put(116, &(self.scale.1 as f32).to_le_bytes());
            put(123, &[self.units]);
            put(252, &self.qform.0.to_le_bytes());
            put(254, &self.sform.0.to_le_bytes());
            (0..6).for_each(|d| put(256 + 4 * d, &(quad[d] as f32).to_le_bytes()));
            (0..12).for_each(|d| put(280 + 4 * d, &(self.sform.1[d] as f32).to_le_bytes()));
            b[344..348].copy_from_slice(b"n+1\0");
        } else {
            put(0, &540i32.to_le_bytes());
            put(12, &self.code.to_le_bytes());
            put(14, &self.bits.to_le_bytes());
            (0..8).for_each(|d| put(16 + 8 * d, &self.dim[d].to_le_bytes()));
            (0..8).for_each(|d| put(104 + 8 * d, &self.pixdim[d].to_le_bytes()));
            put(168, &(if self.offset == 0.0 { 544 } else { self.offset as i64 }).to_le_bytes());
            put(176, &self.scale.0.to_le_bytes());
            put(184, &self.scale.1.to_le_bytes());
            put(344, &i32::from(self.qform.0).to_le_bytes());
            put(348, &i32::from(self.sform.0).to_le_bytes());
            (0..6).for_each(|d| put(352 + 8 * d, &quad[d].to_le_bytes()));
            (0..12).for_each(|d| put(400 + 8 * d, &self.sform.1[d].to_le_bytes()));
            put(500, &i32::from(self.units).to_le_bytes());
            put(504, &i32::from(self.intent).to_le_bytes());
            b[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
        }
        b
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut e = GzEncoder::new(Vec::new(), Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

fn read_bytes(bytes: &[u8]) -> Result<Volume> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.nii");
    std::fs::write(&path, bytes).unwrap();
    nifti::read(&path)
}

/// The sentence of an [`Error::Input`]; anything else fails the test.
fn sentence(r: Result<impl Sized>) -> String {
    match r {
        Err(e @ Error::Input { .. }) => e.to_string(),
        Err(e) => panic!("not an input error: {e}"),
        Ok(_) => panic!("accepted"),
    }
}

fn noise(size: [usize; 3], seed: u64) -> Vec<f32> {
    let mut rng = Key::new(seed).rng();
    (0..size.iter().product()).map(|_| rng.int(-1000, 1000) as f32).collect()
}

fn scan(size: [usize; 3], affine: Affine, seed: u64) -> Volume {
    Volume::new(noise(size, seed), size, affine).unwrap()
}

fn config(sets: &[&str]) -> Config {
    Config::load(None, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn run(inputs: &[PathBuf], out: &Path, config: &Config) -> (Result<Store>, Vec<Progress>) {
    let mut seen = Vec::new();
    let store = prepare(inputs, out, config, &mut |p| seen.push(p));
    (store, seen)
}

#[test]
fn every_type_byte_order_version_and_compression_reads_alike() {
    let size = [2i64, 3, 4];
    // File order: i fastest. Values fit every type.
    let values: Vec<u8> = (0..24).map(|v| v * 5).collect();
    macro_rules! case {
        ($t:ty, $code:literal) => {
            for (version, big, zip) in [(1, false, false), (1, true, true), (2, false, true), (2, true, false)] {
                let head = Head { version, big, ..Head::new(size, $code, (size_of::<$t>() * 8) as i16) };
                let mut bytes = head.bytes();
                for &v in &values {
                    let v = v as $t;
                    bytes.extend_from_slice(&if big { v.to_be_bytes() } else { v.to_le_bytes() });
                }
                let v = read_bytes(&if zip { gz(&bytes) } else { bytes }).unwrap();
                assert_eq!(v.size, [2, 3, 4]);
                assert_eq!(v.affine, RAS);
                for i in 0..2 {
                    for j in 0..3 {
                        for k in 0..4 {
                            assert_eq!(
                                v.at(i, j, k),
                                f32::from(values[(k * 3 + j) * 2 + i]),
                                "{} version {version} big {big}",
                                stringify!($t)
                            );
                        }
                    }
                }
            }
        };
    }
    case!(u8, 2);
    case!(i8, 256);
    case!(u16, 512);
    case!(i16, 4);
    case!(u32, 768);
    case!(i32, 8);
    case!(u64, 1280);
    case!(i64, 1024);
    case!(f32, 16);
    case!(f64, 64);
}

#[test]
fn negative_numbers_and_scaling() {
    let mut head = Head::new([2, 2, 2], 4, 16);
    let data: Vec<u8> = [-5i16, -4, -3, -2, -1, 0, 1, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
    let read = |h: &Head| read_bytes(&[h.bytes(), data.clone()].concat());
    assert_eq!(read(&head).unwrap().at(0, 0, 0), -5.0);
    head.scale = (0.5, -1024.0);
    assert_eq!(read(&head).unwrap().at(0, 0, 0), -1026.5);
    // Slope 0 and slopes that are no numbers mean no scaling.
    for slope in [0.0, f64::NAN] {
        head.scale = (slope, 7.0);
        assert_eq!(read(&head).unwrap().at(1, 1, 1), 2.0);
    }
    head.scale = (2.0, f64::INFINITY);
    assert!(sentence(read(&head)).contains("scl_inter"));
}

#[test]
fn the_sform_wins_then_the_quaternion_then_the_voxel_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.nii");
    let geometry = |h: &Head| {
        std::fs::write(&path, [h.bytes(), vec![0; 8]].concat()).unwrap();
        let h = nifti::read_header(&path)?;
        Ok((h.affine, h.form))
    };
    let mut h = Head::new([2, 2, 2], 2, 8);
    // A half turn about z: (b, c, d) = (0, 0, 1), so x and y are reversed.
    h.qform = (1, [0.0, 0.0, 1.0, 7.0, 8.0, 9.0]);
    assert_eq!(geometry(&h).unwrap(), (RAS, Form::Sform));
    h.sform.0 = 0;
    let near = |a: Affine, want: [[f64; 4]; 3]| (0..3).all(|r| (0..4).all(|c| (a[r][c] - want[r][c]).abs() < 1e-6));
    let (a, form) = geometry(&h).unwrap();
    assert!(near(a, [[-1.5, 0.0, 0.0, 7.0], [0.0, -2.0, 0.0, 8.0], [0.0, 0.0, 2.5, 9.0]]) && form == Form::Qform, "{a:?}");
    h.pixdim[0] = -1.0;
    assert!(near(geometry(&h).unwrap().0, [[-1.5, 0.0, 0.0, 7.0], [0.0, -2.0, 0.0, 8.0], [0.0, 0.0, -2.5, 9.0]]));
    // A quarter turn about x: y goes to z.
    let half = 0.5f64.sqrt();
    h.qform.1 = [half, 0.0, 0.0, 0.0, 0.0, 0.0];
    h.pixdim[0] = 1.0;
    assert!(near(geometry(&h).unwrap().0, [[1.5, 0.0, 0.0, 0.0], [0.0, 0.0, -2.5, 0.0], [0.0, 2.0, 0.0, 0.0]]));
    h.qform.0 = 0;
    let (a, form) = geometry(&h).unwrap();
    assert!(near(a, [[1.5, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.5, 0.0]]) && form == Form::Pixdim);
    // Metres; and a coded sform that is all zero gives way to the quaternion, or is an error if there is none.
    h.units = 1;
    assert!((geometry(&h).unwrap().0[0][0] - 1500.0).abs() < 1e-9);
    h.units = 2;
    h.sform = (1, [0.0; 12]);
    assert!(sentence(geometry(&h)).contains("no usable geometry"));
    h.qform = (1, [0.0, 0.0, 1.0, 7.0, 8.0, 9.0]);
    assert_eq!(geometry(&h).unwrap().1, Form::Qform);
    h = Head::new([2, 2, 2], 2, 8);
    h.sform.0 = 0;
    h.pixdim[2] = 0.0;
    assert!(sentence(geometry(&h)).contains("pixdim"));
}

#[test]
fn written_files_read_back_with_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    let (s, c) = 25f64.to_radians().sin_cos();
    let turned = [[1.5 * c, -2.0 * s, 0.0, 4.0], [1.5 * s, 2.0 * c, 0.0, 5.0], [0.0, 0.0, -2.5, 6.0], [0.0, 0.0, 0.0, 1.0]];
    let sheared = [[1.0, 0.2, 0.0, 4.0], [0.0, 2.0, 0.0, 5.0], [0.0, 0.0, 2.5, 6.0], [0.0, 0.0, 0.0, 1.0]];
    for (n, affine) in [RAS, turned, sheared].into_iter().enumerate() {
        for ending in ["nii", "nii.gz"] {
            let v = scan([4, 5, 6], affine, 1);
            let path = dir.path().join(format!("{n}.{ending}"));
            nifti::write_i16(&path, &v).unwrap();
            let close = |a: Affine| (0..16).all(|i| (a[i / 4][i % 4] - affine[i / 4][i % 4]).abs() < 1e-5);
            let back = nifti::read(&path).unwrap();
            assert!(back.data == v.data && close(back.affine), "{:?}", back.affine);
            if ending == "nii" && n < 2 {
                // Without the sform, the quaternion says the same.
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[254] = 0;
                let h = {
                    std::fs::write(&path, &bytes).unwrap();
                    nifti::read_header(&path).unwrap()
                };
                assert!(h.form == Form::Qform && close(h.affine), "{:?}", h.affine);
            }
        }
    }
    let path = dir.path().join("f.nii.gz");
    let mut v = scan([4, 5, 6], RAS, 2);
    v.data[7] = 0.25;
    nifti::write_f32(&path, &v).unwrap();
    assert_eq!(nifti::read(&path).unwrap(), v);
    nifti::write(&path, &v, Stored::I16 { slope: 0.25, inter: 100.0 }).unwrap();
    assert_eq!(nifti::read(&path).unwrap(), v);
    assert!(sentence(nifti::write_u8(&path, &v)).contains("label"));
    v.data.iter_mut().for_each(|x| *x = x.abs().round() % 200.0);
    nifti::write_u8(&path, &v).unwrap();
    assert_eq!(nifti::read(&path).unwrap(), v);
    v.data[0] = 40_000.0;
    assert!(sentence(nifti::write_i16(&path, &v)).contains("40000"));
    assert!(sentence(nifti::write_f32(&dir.path().join("x.mhd"), &v)).contains(".nii"));
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("partial")).count(),
        0
    );
}

#[test]
fn hostile_files_are_sentences() {
    let data = vec![0u8; 24];
    let with = |f: &dyn Fn(&mut Head)| {
        let mut h = Head::new([2, 3, 4], 2, 8);
        f(&mut h);
        [h.bytes(), data.clone()].concat()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "shorter than a NIfTI header"),
        (vec![0; 100], "shorter than a NIfTI header"),
        (vec![0; 4096], "not a NIfTI file"),
        (gz(&vec![0; 4096]), "not a NIfTI file"),
        (gz(&[]), "truncated"),
        (b"\x1f\x8b".to_vec(), "truncated"),
        ([&b"\x1f\x8b"[..], &[7; 500]].concat(), "damaged"),
        (with(&|h| h.dim[1..4].fill(30_000)), "voxels"),
        (with(&|h| (h.version, h.dim[1]) = (2, 1 << 40)), "more than"),
        (with(&|h| (h.version, h.dim[1], h.dim[2]) = (2, i64::MAX, i64::MAX)), "more than"),
        (with(&|h| h.dim[1..4].fill(1000)), "truncated"),
        (gz(&with(&|h| h.dim[1..4].fill(1000))), "can hold at most"),
        (gz(&with(&|h| h.dim[3] = 5)), "truncated"),
        (with(&|h| h.offset = 353.0), "truncated"),
        (with(&|h| h.offset = 10.0), "vox_offset"),
        (with(&|h| h.offset = f64::NAN), "vox_offset"),
        (with(&|h| h.offset = 1e30), "vox_offset"),
        (with(&|h| (h.version, h.offset) = (2, -5.0)), "vox_offset"),
        (with(&|h| h.dim[2] = 0), "not a number of voxels"),
        (with(&|h| h.dim[2] = -3), "not a number of voxels"),
        (with(&|h| h.dim[0] = 0), "dim[0]"),
        (with(&|h| h.dim[..5].copy_from_slice(&[4, 2, 3, 2, 2])), "series of 2 volumes"),
        (with(&|h| h.dim[0] = 2), "two-dimensional"),
        (with(&|h| h.dim[..4].copy_from_slice(&[3, 4, 6, 1])), "single slice"),
        (with(&|h| (h.code, h.bits) = (128, 24)), "RGB"),
        (with(&|h| (h.code, h.bits) = (32, 64)), "complex"),
        (with(&|h| h.code = 77), "datatype 77"),
        (with(&|h| h.bits = 16), "contradicts itself"),
        (with(&|h| h.sform.1[3] = f64::NAN), "no usable geometry"),
    ];
    for (n, (bytes, want)) in cases.iter().enumerate() {
        let got = sentence(read_bytes(bytes));
        assert!(got.contains(want) && got.contains("scan.nii") && !got.contains('\n'), "case {n}: {got}");
    }
    // Damage inside a compressed file is seen, that of the checksum included.
    let noisy: Vec<u8> = noise([20, 30, 40], 5).iter().map(|v| *v as u8).collect();
    let whole = gz(&[Head::new([20, 30, 40], 2, 8).bytes(), noisy].concat());
    assert!(read_bytes(&whole).is_ok());
    assert!(sentence(read_bytes(&whole[..whole.len() / 2])).contains("truncated"));
    assert!(sentence(read_bytes(&whole[..whole.len() - 3])).contains("truncated"));
    let mut flipped = whole.clone();
    let at = whole.len() - 6;
    flipped[at] ^= 1;
    assert!(sentence(read_bytes(&flipped)).contains("damaged"));
    // A bomb behind the claimed voxels is not unpacked, and several members are read as one.
    let mut bomb = [Head::new([2, 3, 4], 2, 8).bytes(), data.clone()].concat();
    bomb.resize(50 << 20, 0);
    assert!(read_bytes(&gz(&bomb)).is_ok());
    assert!(read_bytes(&[gz(&Head::new([2, 3, 4], 2, 8).bytes()), gz(&data)].concat()).is_ok());
    // A trailing dimension of 1 is fine.
    assert!(read_bytes(&with(&|h| h.dim[0] = 5)).is_ok());
    assert!(sentence(nifti::read(Path::new("no/such.nii"))).contains("no such file"));
    assert!(sentence(nifti::read(&std::env::temp_dir())).contains("regular file"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_reading_panic(
        version in 1u8..=2,
        big: bool,
        zip: bool,
        edits in prop::collection::vec((0usize..600, any::<u8>()), 0..12),
        cut in prop::option::of(0usize..700),
    ) {
        let mut bytes = [Head { version, big, ..Head::new([2, 3, 4], 4, 16) }.bytes(), vec![1; 48]].concat();
        for (at, v) in edits {
            if let Some(b) = bytes.get_mut(at) {
                *b = v;
            }
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(v) = read_bytes(&if zip { gz(&bytes) } else { bytes }) {
            prop_assert_eq!(v.data.len(), v.size.iter().product::<usize>());
            // Whatever was read may fail to prepare, but not panic.
            let _ = Recipe { grid: Some([8; 3]), ..recipe() }.apply(v);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..900), zip: bool) {
        let bytes = if zip { [&[0x1f, 0x8b, 8, 0][..], &bytes].concat() } else { bytes };
        prop_assert!(read_bytes(&bytes).is_err());
    }
}

fn recipe() -> Recipe {
    let c = config(&[]).prepare;
    Recipe { modality: c.modality, window: c.window, mri: c.mri, align: c.align, spacing: [1.5; 3], grid: None }
}

#[test]
fn all_48_axis_orders_and_flips_prepare_to_the_same_bytes() {
    for align in ["grid", "body"] {
        let dir = tempfile::tempdir().unwrap();
        let scans = dir.path().join("scans");
        std::fs::create_dir(&scans).unwrap();
        // Left, posterior, superior: 12 x 10 x 9 voxels of 1.25 x 1.5 x 2 mm.
        let (size, mm) = ([12usize, 10, 9], [1.25, 1.5, 2.0]);
        let values = noise(size, 11);
        let mut written = 0;
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for flips in 0..8u8 {
                // Stored axis s runs along patient axis order[s].
                let stored = order.map(|a| size[a]);
                let mut affine = [[0.0; 4]; 4];
                affine[3][3] = 1.0;
                for s in 0..3 {
                    let a = order[s];
                    let to_ras = if a < 2 { -1.0 } else { 1.0 };
                    let flip = flips >> s & 1 == 1;
                    affine[a][s] = to_ras * mm[a] * if flip { -1.0 } else { 1.0 };
                    affine[a][3] = to_ras * if flip { mm[a] * (size[a] - 1) as f64 } else { 0.0 } + 17.0;
                }
                let mut data = Vec::new();
                for i in 0..stored[0] {
                    for j in 0..stored[1] {
                        for k in 0..stored[2] {
                            let mut p = [0; 3];
                            for (s, q) in [i, j, k].into_iter().enumerate() {
                                p[order[s]] = if flips >> s & 1 == 1 { stored[s] - 1 - q } else { q };
                            }
                            data.push(values[(p[0] * size[1] + p[1]) * size[2] + p[2]]);
                        }
                    }
                }
                let v = Volume::new(data, stored, affine).unwrap();
                nifti::write_i16(&scans.join(format!("s{written:02}.nii")), &v).unwrap();
                written += 1;
            }
        }
        assert_eq!(written, 48);
        for (name, sets) in
            [("same", vec!["prepare.grid=[12,10,9]"]), ("other", vec!["prepare.grid=[16,8,9]", "prepare.spacing=[1.0,1.7,3.1]"])]
        {
            let align = format!("prepare.align={align}");
            let store =
                run(std::slice::from_ref(&scans), &dir.path().join(name), &config(&[&sets[..], &[align.as_str()]].concat())).0.unwrap();
            let first = &store.scans()[0];
            assert!(store.scans().iter().all(|s| s.content == first.content), "{name}: not all alike");
            if name == "same" && align.ends_with("grid") {
                let got = store.volume(0).unwrap().all();
                for (g, v) in got.iter().zip(&values) {
                    assert!((g - (v + 1000.0) / 2000.0).abs() < 1e-5, "{g} {v}");
                }
            }
        }
    }
}

#[test]
fn scans_are_told_from_label_maps_with_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n);
    std::fs::create_dir(at("sub")).unwrap();
    let image = scan([6, 7, 8], RAS, 1);
    let labels = Volume { data: image.data.iter().map(|v| f32::from(*v > 0.0)).collect(), ..image.clone() };
    nifti::write_i16(&at("a.nii.gz"), &image).unwrap();
    nifti::write_f32(&at("a_mask.nii.gz"), &image).unwrap();
    nifti::write_u8(&at("b.nii"), &labels).unwrap();
    nifti::write_f32(&at("c_labels.nii"), &labels).unwrap();
    // A name alone, without the scan beside it, says nothing.
    nifti::write_i16(&at("sub/d_seg.nii"), &image).unwrap();
    std::fs::write(at("sub/broken.nii"), b"nonsense").unwrap();
    std::fs::write(at("._a.nii.gz"), b"hidden").unwrap();
    std::fs::write(at("notes.txt"), b"text").unwrap();
    let found = scans::find(&[dir.path().to_path_buf(), at("a.nii.gz")]).unwrap();
    assert_eq!(found.scans, [at("a.nii.gz"), at("sub/broken.nii"), at("sub/d_seg.nii")]);
    let why: Vec<(PathBuf, &str)> = found.left_out.iter().map(|(p, w)| (p.clone(), w.as_str())).collect();
    assert_eq!(why[0], (at("a_mask.nii.gz"), "named after a.nii.gz with \"_mask\" added"));
    assert_eq!(why[1], (at("b.nii"), "its header declares a label map"));
    assert_eq!(why[2], (at("c_labels.nii"), "holds only 2 different whole numbers, none negative"));
    assert_eq!(why.len(), 3);

    assert!(sentence(scans::find(&[at("nowhere")])).contains("no such file or folder"));
    std::fs::create_dir(at("empty")).unwrap();
    assert!(sentence(scans::find(&[at("empty")])).contains("empty folder"));
    std::fs::write(at("empty/x.dcm"), b"x").unwrap();
    assert!(sentence(scans::find(&[at("empty")])).contains("1 files, but none ends in .nii"));
    let only = sentence(scans::find(&[at("b.nii"), at("c_labels.nii")]));
    assert!(only.contains("no scan was found; 2 files were taken for label maps"), "{only}");
}

fn set_of_scans(dir: &Path, n: u64) -> PathBuf {
    let scans = dir.join("scans");
    std::fs::create_dir_all(&scans).unwrap();
    for s in 0..n {
        let size = [10 + s as usize, 12, 9];
        nifti::write_i16(&scans.join(format!("p{s}.nii.gz")), &scan(size, RAS, s)).unwrap();
    }
    scans
}

fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    for e in std::fs::read_dir(dir).unwrap() {
        let p = e.unwrap().path();
        if p.is_dir() {
            out.extend(tree(&p));
        } else {
            out.push((p.clone(), std::fs::read(&p).unwrap()));
        }
    }
    out.sort();
    out
}

#[test]
fn stores_reopen_repeat_byte_for_byte_and_are_reused_or_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let scans = set_of_scans(dir.path(), 5);
    let out = dir.path().join("store");
    let c = config(&["prepare.validation_fraction=0.4"]);
    let inputs = [scans.clone()];
    let first = run(&inputs, &out, &c).0.unwrap();
    assert_eq!(first.grid(), [16, 16, 16]);
    assert_eq!(first.spacing(), [1.5, 2.0, 2.5]);
    assert_eq!(first.scans().iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["p0", "p1", "p2", "p3", "p4"]);
    assert_eq!(first.scans().iter().filter(|s| s.split == Split::Validation).count(), 2);
    assert_eq!(first.scans()[1].padded, [[2, 3], [2, 2], [3, 4]]);
    assert_eq!(first.scans()[1].stored, "i16");
    let before = tree(&out);

    let reopened = Store::open(&out).unwrap();
    assert_eq!(reopened.scans(), first.scans());
    assert_eq!(reopened.hash(), first.hash());
    let v = reopened.volume(1).unwrap();
    assert_eq!(v.size(), [16, 16, 16]);
    // RAS to left, posterior: both reversed. p1 has 11 x 12 x 9 voxels at (2, 2, 3).
    let source = scan([11, 12, 9], RAS, 1);
    assert!((v.value(2, 2, 3) - (source.at(10, 11, 0) + 1000.0) / 2000.0).abs() < 1e-5);
    assert_eq!(v.value(1, 8, 8), 0.0);

    let (again, seen) = run(&inputs, &out, &c);
    assert_eq!(again.unwrap().hash(), first.hash());
    assert_eq!(seen.last(), Some(&Progress::Reused { scans: 5 }));
    // A second folder holds the same bytes.
    let other = dir.path().join("other");
    let twin = run(&inputs, &other, &c).0.unwrap();
    assert_eq!(twin.hash(), first.hash());
    let stripped = |root: &Path, t: Vec<(PathBuf, Vec<u8>)>| {
        t.into_iter().map(|(p, b)| (p.strip_prefix(root).unwrap().to_path_buf(), b)).collect::<Vec<_>>()
    };
    assert_eq!(stripped(&out, before.clone()), stripped(&other, tree(&other)));

    // Another seed splits otherwise, another setting or scan rebuilds, and what is no longer wanted goes.
    let (seeded, seen) = run(&inputs, &out, &Config { seed: 1, ..c.clone() });
    let seeded = seeded.unwrap();
    assert!(!seen.contains(&Progress::Reused { scans: 5 }));
    assert!(seeded.scans().iter().zip(first.scans()).all(|(a, b)| a.content == b.content));
    std::fs::remove_file(scans.join("p4.nii.gz")).unwrap();
    nifti::write_i16(&scans.join("p0.nii.gz"), &scan([10, 12, 9], RAS, 77)).unwrap();
    let rebuilt = run(&inputs, &out, &c).0.unwrap();
    assert_ne!(rebuilt.hash(), first.hash());
    assert_ne!(rebuilt.scans()[0].content, first.scans()[0].content);
    assert!(!out.join("volumes/p4.npy").exists());
    // A volume cut short is noticed and made again.
    std::fs::write(out.join("volumes/p1.npy"), b"short").unwrap();
    assert!(sentence(Store::open(&out)).contains("p1.npy"));
    assert!(run(&inputs, &out, &c).0.is_ok());
    // A damaged or newer index is a sentence.
    let index = out.join("index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("\"version\": 1", "\"version\": 9")).unwrap();
    assert!(sentence(Store::open(&out)).contains("version 9"));
    std::fs::write(&index, text.replace("\"p1\"", "\"../p1\"")).unwrap();
    assert!(sentence(Store::open(&out)).contains("no file name"));
    std::fs::write(&index, &text[..text.len() / 2]).unwrap();
    assert!(sentence(Store::open(&out)).contains("not the index"));
}

#[test]
fn bad_scans_fail_the_run_or_are_skipped_and_an_interrupted_store_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let scans = set_of_scans(dir.path(), 3);
    let out = dir.path().join("store");
    // One without a header, one whose voxels end early, one with too many NaN.
    std::fs::write(scans.join("bad1.nii"), b"nonsense").unwrap();
    let whole = std::fs::read(scans.join("p0.nii.gz")).unwrap();
    std::fs::write(scans.join("bad2.nii.gz"), &whole[..whole.len() - 100]).unwrap();
    let mut nan = scan([10, 12, 9], RAS, 9);
    nan.data[..100].fill(f32::NAN);
    nifti::write_f32(&scans.join("bad3.nii"), &nan).unwrap();
    nan.data[4..100].fill(0.5);
    nifti::write_f32(&scans.join("few_nan.nii"), &nan).unwrap();
    let inputs = [scans.clone()];
    assert!(sentence(run(&inputs, &out, &config(&[])).0).contains("bad1.nii"));
    assert!(!out.exists());
    std::fs::remove_file(scans.join("bad1.nii")).unwrap();
    assert!(sentence(run(&inputs, &out, &config(&[])).0).contains("bad2.nii.gz"));
    assert!(sentence(Store::open(&out)).contains("interrupted"));

    std::fs::write(scans.join("bad1.nii"), b"nonsense").unwrap();
    let keep = config(&["prepare.keep_going=true"]);
    let (store, seen) = run(&inputs, &out, &keep);
    let store = store.unwrap();
    assert_eq!(store.scans().iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["few_nan", "p0", "p1", "p2"]);
    assert_eq!(store.scans()[0].replaced, 4);
    assert_eq!(store.failed().len(), 3);
    assert!(store.failed()[2].reason.contains("100 of 1080 voxels are not finite"), "{:?}", store.failed());
    assert_eq!(seen.iter().filter(|p| matches!(p, Progress::Skipped { .. })).count(), 3);
    assert!(seen.iter().any(|p| matches!(p, Progress::Note { what, .. } if what.contains("4 voxels"))));
    assert!(run(&inputs, &out, &keep).1.contains(&Progress::Reused { scans: 4 }));

    let all_bad = dir.path().join("all_bad");
    std::fs::create_dir(&all_bad).unwrap();
    std::fs::copy(scans.join("bad3.nii"), all_bad.join("x.nii")).unwrap();
    assert!(sentence(run(&[all_bad], &dir.path().join("o2"), &keep).0).contains("none of 1 scans"));
    // A folder with other things in it is not written to.
    assert!(sentence(run(&inputs, &scans, &keep).0).contains("not empty"));
}

#[test]
fn one_scan_is_for_training_and_two_are_one_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let scans = set_of_scans(dir.path(), 2);
    let two = run(std::slice::from_ref(&scans), &dir.path().join("two"), &config(&[])).0.unwrap();
    assert_eq!(two.scans().iter().filter(|s| s.split == Split::Train).count(), 1);
    let one = run(&[scans.join("p0.nii.gz")], &dir.path().join("one"), &config(&[])).0.unwrap();
    assert_eq!((one.scans().len(), one.scans()[0].split), (1, Split::Train));
}

#[test]
fn an_oblique_scan_is_straightened_through_its_true_affine() {
    // The same smooth world, stored straight and turned by 20 degrees about z.
    let world = |p: [f64; 3]| (200.0 * ((p[0] / 9.0).sin() + (p[1] / 11.0).cos() + p[2] / 40.0)) as f32;
    let (s, c) = 20f64.to_radians().sin_cos();
    let oblique = [[c, -s, 0.0, -16.0], [s, c, 0.0, -28.0], [0.0, 0.0, 1.0, -20.0], [0.0, 0.0, 0.0, 1.0]];
    let size = [48, 48, 40];
    let mut data = Vec::new();
    for i in 0..48u8 {
        for j in 0..48u8 {
            for k in 0..40u8 {
                data.push(world(semantic_genesis::data::volume::apply(&oblique, [i, j, k].map(f64::from))));
            }
        }
    }
    let ready = Recipe { spacing: [1.0; 3], ..recipe() }.apply(Volume::new(data, size, oblique).unwrap()).unwrap();
    assert!(ready.frame.oblique);
    let [nx, ny, nz] = ready.frame.grid;
    let mut checked = 0;
    for x in 0..nx {
        for y in 0..ny {
            for z in 0..nz {
                let at = [x, y, z].map(|v| v as f64);
                let inside = semantic_genesis::data::volume::apply(&ready.frame.to_source, at);
                if (0..3).all(|a| (0.0..=size[a] as f64 - 1.0).contains(&inside[a])) {
                    let want = (world(semantic_genesis::data::volume::apply(&ready.frame.affine, at)) + 1000.0) / 2000.0;
                    let got = ready.data[(x * ny + y) * nz + z];
                    assert!((got - want).abs() < 1e-3, "{got} {want}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 48 * 48 * 30, "{checked}");
    // In front of the turned scan's corner there is nothing.
    assert_eq!(ready.data[0], 0.0);
}

#[test]
fn shrinking_does_not_alias() {
    // A checkerboard along z has mean 0 HU; sampled every second voxel without a filter it would be -800 or 800 everywhere.
    let size = [8, 8, 64];
    let mut data = Vec::new();
    for n in 0..8 * 8 * 64 {
        data.push(if n % 2 == 0 { -800.0 } else { 800.0 });
    }
    let affine = [[1.5, 0.0, 0.0, 0.0], [0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]];
    let ready = recipe().apply(Volume::new(data, size, affine).unwrap()).unwrap();
    assert_eq!(ready.frame.grid, [8, 8, 21]);
    assert!(ready.data.iter().all(|v| (v - 0.5).abs() < 0.03), "{:?}", &ready.data[..21]);
}
