//! `semgen predict`, `embed` and `restore` through the program.
//!
//! The models are made by hand: one level, whose first channel carries the input through, so that what has to come out of a voxel
//! follows from its intensity alone. Scans are sampled from one function of space, so that the right label of a voxel is known in
//! whatever grid it is asked for.

mod models;

use std::path::{Path, PathBuf};

use models::{Kind, Made, write_model};
use semantic_genesis::data::image;
use semantic_genesis::data::nifti::{self, write_f32};
use semantic_genesis::data::volume::{Affine, IDENTITY, Volume, apply, multiply};

use crate::harness::{Program, trusted};

/// Hounsfield units at a point in millimetres.
fn hounsfield([x, y, z]: [f64; 3]) -> f64 {
    250.0 * (x / 9.0).sin() + 200.0 * (y / 11.0 + 1.0).cos() + 150.0 * (z / 8.0).sin()
}

fn scan(size: [usize; 3], affine: Affine) -> Volume {
    let mut data = Vec::new();
    for i in 0..size[0] {
        for j in 0..size[1] {
            for k in 0..size[2] {
                data.push(hounsfield(apply(&affine, [i, j, k].map(|v| v as f64))) as f32);
            }
        }
    }
    Volume::new(data, size, affine).unwrap()
}

/// f32 numbers, as NIfTI-1 keeps them.
fn rounded(a: Affine) -> Affine {
    a.map(|r| r.map(|v| f64::from(v as f32)))
}

/// What the three-class model says of a voxel of that many Hounsfield units; `None` too near a border to tell.
fn class_of(hu: f64) -> Option<f32> {
    let v = (hu + 1000.0) / 2000.0;
    let borders = [models::FIRST, models::SECOND];
    if borders.iter().any(|b| (v - b).abs() < 1e-3) {
        return None;
    }
    Some(models::VALUES[borders.iter().filter(|b| v > **b).count()] as f32)
}

/// Share of the voxels whose label is another than that of their place in space.
fn wrong(labels: &Volume) -> f64 {
    let (mut wrong, mut all) = (0, 0);
    for (n, v) in labels.data.iter().enumerate() {
        let [_, nj, nk] = labels.size;
        let p = [n / (nj * nk), n / nk % nj, n % nk].map(|v| v as f64);
        if let Some(class) = class_of(hounsfield(apply(&labels.affine, p))) {
            all += 1;
            wrong += usize::from(class != *v);
        }
    }
    f64::from(wrong as u32) / f64::from(all as u32)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A folder, and the program with its caches in it.
struct Place(tempfile::TempDir);

impl Place {
    /// `None` only where tests run without an adapter.
    fn new() -> Option<Self> {
        trusted().map(|_| Self(tempfile::tempdir().unwrap()))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, volume: &Volume) -> String {
        write_f32(&self.at(name), volume).unwrap();
        text(&self.at(name))
    }

    fn program(&self) -> Program<'_> {
        Program::new(self.0.path())
    }
}

const LPS: Affine = [[-2.0, 0.0, 0.0, 20.7], [0.0, -2.0, 0.0, 31.1], [0.0, 0.0, 3.0, -12.3], IDENTITY[3]];

/// Grids with the model's voxel size in several orders of axes, and others.
fn grids() -> Vec<(&'static str, [usize; 3], Affine, f64)> {
    let ras = [[2.0, 0.0, 0.0, -25.3], [0.0, 2.0, 0.0, -10.1], [0.0, 0.0, 3.0, -12.3], IDENTITY[3]];
    // i to the front, j down, k to the right.
    let turned = [[0.0, 0.0, 2.0, -25.3], [2.0, 0.0, 0.0, -10.1], [0.0, -3.0, 0.0, 30.0], IDENTITY[3]];
    let anisotropic = [[1.3, 0.0, 0.0, -25.3], [0.0, -1.7, 0.0, 20.1], [0.0, 0.0, 4.0, -12.3], IDENTITY[3]];
    let (s, c) = 0.3f64.sin_cos();
    let slant = multiply(&[[c, -s, 0.0, 1.0], [s, c, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0], IDENTITY[3]], &anisotropic);
    vec![
        ("lps", [24, 21, 17], LPS, 0.0),
        ("ras", [24, 21, 17], ras, 0.0),
        ("turned", [21, 17, 24], turned, 0.0),
        ("anisotropic", [36, 27, 12], anisotropic, 0.04),
        ("slant", [36, 27, 12], rounded(slant), 0.06),
        ("small", [5, 6, 4], LPS, 0.0),
    ]
}

#[test]
fn labels_lie_on_their_scan_whatever_its_grid() {
    let Some(place) = Place::new() else { return };
    let model = write_model(&place.at("model.safetensors"), &Made::new(Kind::Three));
    let mut args =
        vec!["predict".to_owned(), text(&model), "--out".into(), text(&place.at("out")), "--probabilities".into(), "--preview".into()];
    for (name, size, affine, _) in grids() {
        args.push(place.write(&format!("{name}.nii.gz"), &scan(size, affine)));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = place.program().json(&args);
    assert_eq!(said["answers"].as_array().unwrap().len(), grids().len());
    for (name, size, _, share) in grids() {
        let (of, labels) = (place.at(&format!("{name}.nii.gz")), place.at(&format!("out/{name}.nii.gz")));
        // Every field that says where voxels lie is the scan's.
        assert_eq!(nifti::geometry(&labels).unwrap(), nifti::geometry(&of).unwrap(), "{name}");
        let header = nifti::read_header(&labels).unwrap();
        assert_eq!((header.size, header.labels, header.kind.word()), (size, true, "u16"), "{name}");
        let map = nifti::read(&labels).unwrap();
        let found = wrong(&map);
        assert!(found <= share, "{name}: {found} of the labels are wrong");
        for value in models::VALUES {
            assert!(name == "small" || map.data.contains(&(value as f32)), "{name}: no voxel has the label {value}");
        }
        // Probabilities are those of the labels.
        let path = place.at(&format!("out/{name}_probabilities.nii.gz"));
        assert_eq!(nifti::read_series_header(&path).unwrap().volumes, 3);
        assert_eq!(nifti::geometry(&path).unwrap(), nifti::geometry(&of).unwrap());
        let p: Vec<Volume> = (0..3).map(|c| nifti::read_volume(&path, c).unwrap()).collect();
        for (n, label) in map.data.iter().enumerate() {
            let row = [p[0].data[n], p[1].data[n], p[2].data[n]];
            let best = (1..3).fold(0, |b, c| if row[c] > row[b] { c } else { b });
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{name}: {row:?}");
            assert_eq!(models::VALUES[best] as f32, *label, "{name}: {row:?}");
        }
        assert!(std::fs::read(place.at(&format!("out/{name}_preview.png"))).unwrap().starts_with(b"\x89PNG"));
    }
    // Nothing else is left behind.
    assert_eq!(std::fs::read_dir(place.at("out")).unwrap().count(), 3 * grids().len());
}

#[test]
fn one_output_is_decided_at_a_half_and_flips_and_overlap_change_nothing_here() {
    let Some(place) = Place::new() else { return };
    let model = text(&write_model(&place.at("model.safetensors"), &Made::new(Kind::Mask)));
    let input = place.write("a.nii", &scan([24, 21, 17], LPS));
    let run = |out: &str, more: &[&str]| {
        let out = place.at(out);
        place.program().run(&[&["predict", &model, &input, "--out", &text(&out), "--probabilities"], more].concat(), 0);
        (nifti::read(&out.join("a.nii.gz")).unwrap(), nifti::read(&out.join("a_probabilities.nii.gz")).unwrap())
    };
    let (labels, p) = run("plain", &[]);
    assert_eq!(nifti::read_header(&place.at("plain/a.nii.gz")).unwrap().kind.word(), "u8");
    let original = nifti::read(Path::new(&input)).unwrap();
    for ((label, p), hu) in labels.data.iter().zip(&p.data).zip(&original.data) {
        assert_eq!(*label == 1.0, *p > 0.5);
        let v = (f64::from(*hu) + 1000.0) / 2000.0;
        let expected = 1.0 / (1.0 + (-models::STEEP * (v - models::FIRST)).exp());
        assert!((f64::from(*p) - expected).abs() < 2e-3, "{p} {expected}");
    }
    for more in [&["--overlap", "0"][..], &["--overlap", "0.8"], &["--flips", "xyz"]] {
        let (_, q) = run(&format!("out{}", more.concat()), more);
        assert!(p.data.iter().zip(&q.data).all(|(a, b)| (a - b).abs() < 1e-4), "{more:?}");
    }
}

#[test]
fn metaimage_scans_get_their_exact_affine() {
    let Some(place) = Place::new() else { return };
    let model = text(&write_model(&place.at("model.safetensors"), &Made::new(Kind::Three)));
    let mut bytes = b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nTransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = -123.4567 7.1 -0.3\nElementSpacing = 1.95 2.05 2.9\nDimSize = 20 19 9\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n".to_vec();
    let path = place.at("a.mha");
    std::fs::write(&path, [&bytes[..], &[0; 20 * 19 * 9 * 4]].concat()).unwrap();
    let affine = image::read_header(&path).unwrap().affine;
    let volume = scan([20, 19, 9], affine);
    for k in 0..9 {
        for j in 0..19 {
            for i in 0..20 {
                bytes.extend(volume.at(i, j, k).to_le_bytes());
            }
        }
    }
    std::fs::write(&path, &bytes).unwrap();
    place.program().run(&["predict", &model, &text(&path), "--out", &text(&place.at("out"))], 0);
    let labels = nifti::read(&place.at("out/a.nii.gz")).unwrap();
    assert_eq!((labels.affine, labels.size), (affine, [20, 19, 9]));
    assert!(wrong(&labels) < 0.04, "{}", wrong(&labels));
}

#[test]
fn several_channels_are_files_or_volumes() {
    let Some(place) = Place::new() else { return };
    let model =
        text(&write_model(&place.at("model.safetensors"), &Made { channels: vec!["flair".into(), "t1".into()], ..Made::new(Kind::Three) }));
    let volume = scan([16, 16, 8], LPS);
    // The model takes the mean of its channels: they are the scan, shifted up and down.
    let shifted = |by: f32| Volume { data: volume.data.iter().map(|v| v + by).collect(), ..volume.clone() };
    std::fs::create_dir(place.at("in")).unwrap();
    place.write("in/a_flair.nii", &shifted(100.0));
    place.write("in/a_t1.nii", &shifted(-100.0));
    let folder = text(&place.at("in"));
    place.program().run(&["predict", &model, &folder, "--out", &text(&place.at("out"))], 0);
    assert_eq!(wrong(&nifti::read(&place.at("out/a.nii.gz")).unwrap()), 0.0);
    let lone = place.write("b_t1.nii", &volume);
    let refused = place.program().refused(&["predict", &model, &lone, "--out", &text(&place.at("out2"))]);
    assert!(refused.contains("channel 0 (flair) is not there"), "{refused}");
    let elsewhere = Volume { affine: multiply(&LPS, &semantic_genesis::data::volume::translation([3.0, 0.0, 0.0])), ..volume };
    place.write("in/a_t1.nii", &elsewhere);
    let refused = place.program().refused(&["predict", &model, &folder, "--out", &text(&place.at("out3"))]);
    assert!(refused.contains("a_t1.nii") && refused.contains("resample it"), "{refused}");
}

#[test]
fn scans_cubes_and_places_are_classified() {
    let Some(place) = Place::new() else { return };
    let whole = text(&write_model(&place.at("whole.safetensors"), &Made::new(Kind::Whole)));
    let constant = |hu: f32, name: &str| {
        let mut v = scan([16, 16, 8], LPS);
        // Not quite the same everywhere, or it would be no image.
        v.data.iter_mut().zip([hu, hu + 0.01].into_iter().cycle()).for_each(|(v, hu)| *v = hu);
        place.write(name, &v)
    };
    let (dark, bright) = (constant(-300.0, "dark.nii"), constant(300.0, "bright.nii"));
    let expected = |hu: f64| 1.0 / (1.0 + (-models::STEEP * ((hu + 1000.0) / 2000.0 - models::FIRST)).exp());
    let rows = |path: PathBuf| -> Vec<Vec<String>> {
        std::fs::read_to_string(path).unwrap().lines().map(|l| l.split(',').map(str::to_owned).collect()).collect()
    };
    let close = |cell: &str, hu: f64| assert!((cell.parse::<f64>().unwrap() - expected(hu)).abs() < 1e-3, "{cell} {}", expected(hu));
    let cubes = place.at("cubes.npy");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 8, 8, 8), }";
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16 + 1).to_le_bytes());
    npy.extend(format!("{header}\n").bytes());
    npy.extend([0.25f32, 0.75].iter().flat_map(|v| std::iter::repeat_n(v.to_le_bytes(), 512)).flatten());
    std::fs::write(&cubes, npy).unwrap();
    place.program().run(&["predict", &whole, &dark, &bright, &text(&cubes), "--out", &text(&place.at("out"))], 0);
    let table = rows(place.at("out/predictions.csv"));
    assert_eq!(table.iter().map(|r| r[0].as_str()).collect::<Vec<_>>(), ["id", "bright", "dark", "cubes:0", "cubes:1"]);
    assert_eq!(table[0][1], "nodule");
    [(1, 300.0), (2, -300.0), (3, -500.0), (4, 500.0)].into_iter().for_each(|(r, hu)| close(&table[r][1], hu));

    let point = text(&write_model(&place.at("point.safetensors"), &Made::new(Kind::Point)));
    // Half of the scan is dark, half is bright.
    let mut halves = scan([32, 16, 8], LPS);
    halves.data.iter_mut().enumerate().for_each(|(n, v)| *v = if n / 128 < 16 { -200.0 } else { 100.0 });
    let input = place.write("1.2.3.nii", &halves);
    let at = |i: f64| {
        let [x, y, z] = apply(&LPS, [i, 8.0, 3.5]);
        format!("{},{},{z}", -x, -y)
    };
    let list = place.at("candidates.csv");
    let write = |rows: &str| std::fs::write(&list, format!("seriesuid,coordX,coordY,coordZ,class\n{rows}")).unwrap();
    write(&format!("1.2.3,{},0\nother,1,2,3,1\n1.2.3,{},1\n", at(8.0), at(24.0)));
    let args = ["predict", &point, &input, "--points", &text(&list), "--out"];
    place.program().run(&[&args[..], &[&text(&place.at("points"))]].concat(), 0);
    let table = rows(place.at("points/predictions.csv"));
    assert_eq!(table[0].join(","), "seriesuid,coordX,coordY,coordZ,class,probability");
    assert_eq!(table.len(), 3);
    assert_eq!((table[1][4].as_str(), table[2][4].as_str()), ("0", "1"));
    close(&table[1][5], -200.0);
    close(&table[2][5], 100.0);
    // Places outside the scan, and what does not fit the model.
    write("1.2.3,1000,0,0,0\n");
    let refused = place.program().refused(&[&args[..], &[&text(&place.at("far"))]].concat());
    assert!(refused.contains("candidates.csv: row 1") && refused.contains("outside the scan"), "{refused}");
    write("1.2,0,0,0,0\n");
    assert!(place.program().refused(&[&args[..], &[&text(&place.at("none"))]].concat()).contains("names none of the scans"));
    let refused = place.program().refused(&["predict", &point, &input, "--out", &text(&place.at("x"))]);
    assert!(refused.contains("--points FILE.csv is missing") && refused.contains("classifies places"), "{refused}");
    let refused = place.program().refused(&["predict", &whole, &input, "--probabilities", "--out", &text(&place.at("x"))]);
    assert!(refused.contains("classifies whole scans"), "{refused}");
}

#[test]
fn what_cannot_be_predicted_is_said() {
    let Some(place) = Place::new() else { return };
    let model = text(&write_model(&place.at("model.safetensors"), &Made::new(Kind::Three)));
    let good = place.write("good.nii", &scan([16, 16, 8], LPS));
    let bad = place.at("bad.nii");
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&bad, &bytes[..bytes.len() - 100]).unwrap();
    let (bad, out) = (text(&bad), text(&place.at("out")));
    let refused = place.program().refused(&["predict", &model, &bad, &good, "--out", &out]);
    assert!(refused.contains("bad.nii") && refused.contains("truncated"), "{refused}");
    std::fs::remove_dir_all(&out).unwrap();
    let said = place.program().run(&["predict", &model, &bad, &good, "--out", &out, "--keep-going"], 1);
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("bad is left out") && said.contains("1 of 2 scans could not be used"), "{said}");
    assert!(place.at("out/good.nii.gz").exists() && !place.at("out/bad.nii.gz").exists());
    // A folder with answers is not written to again.
    assert!(place.program().refused(&["predict", &model, &good, "--out", &out]).contains("not empty"));
    let other = text(&place.at("other"));
    assert!(place.program().refused(&["predict", &model, &good, "--out", &other, "--overlap", "1"]).contains("overlap of 1"));
    // Not a fine-tuned model; and one that claims nonsense.
    let plain = text(&write_model(&place.at("plain.safetensors"), &Made::new(Kind::Pretrained)));
    let refused = place.program().refused(&["predict", &plain, &good, "--out", &other]);
    assert!(refused.contains("no fine-tuned model"), "{refused}");
    for (window, what) in [([0, 8, 8], "window"), ([8, 8, 1 << 40], "window")] {
        let made = Made { window, ..Made::new(Kind::Three) };
        let lying = text(&write_model(&place.at("lying.safetensors"), &made));
        let refused = place.program().refused(&["predict", &lying, &good, "--out", &other]);
        assert!(refused.contains(what), "{refused}");
    }
    let two = [place.at("x"), place.at("y")].map(|d| {
        std::fs::create_dir(&d).unwrap();
        let to = d.join("same.nii");
        std::fs::copy(&good, &to).unwrap();
        text(&to)
    });
    assert!(place.program().refused(&["predict", &model, &two[0], &two[1], "--out", &other]).contains("same name"));
    assert!(!place.at("other").exists());
}

/// An array of three constant cubes of 8³ voxels.
fn constants(path: &Path, values: [f32; 3]) -> String {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 8, 8, 8), }";
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16 + 1).to_le_bytes());
    npy.extend(format!("{header}\n").bytes());
    npy.extend(values.iter().flat_map(|v| std::iter::repeat_n(v.to_le_bytes(), 512)).flatten());
    std::fs::write(path, npy).unwrap();
    text(path)
}

fn features(path: &Path) -> (Vec<u64>, Vec<f32>) {
    let file = npyz::NpyFile::new(std::fs::File::open(path).unwrap()).unwrap();
    (file.shape().to_vec(), file.into_vec().unwrap())
}

#[test]
fn features_are_those_of_scans_windows_and_cubes() {
    let Some(place) = Place::new() else { return };
    let model = text(&write_model(&place.at("model.safetensors"), &Made::new(Kind::Pretrained)));
    let cubes = constants(&place.at("cubes.npy"), [0.25, 0.5, 0.75]);
    let input = place.write("a.nii", &scan([16, 16, 8], LPS));
    let run = |out: &str, more: &[&str]| {
        let out = text(&place.at(out));
        place.program().json(&[&["embed", &model, &cubes, &input, "--out", &out, "--set", "prepare.spacing=[2,2,3]"], more].concat())
    };
    let said = run("mean", &[]);
    assert_eq!((said["rows"].as_u64(), said["width"].as_u64()), (Some(4), Some(8)));
    let (shape, mean) = features(&place.at("mean/features.npy"));
    assert_eq!(shape, [4, 8]);
    // The first number of a constant cube is its value, the others are 0.
    for (row, v) in mean[8..].chunks(8).zip([0.25, 0.5, 0.75]) {
        assert!((row[0] - v).abs() < 1e-3 && row[1..].iter().all(|&f| f == 0.0), "{row:?}");
    }
    let table = std::fs::read_to_string(place.at("mean/features.csv")).unwrap();
    assert_eq!(table.lines().collect::<Vec<_>>(), ["row,id,x,y,z", "0,a,,,", "1,cubes:0,,,", "2,cubes:1,,,", "3,cubes:2,,,"]);
    run("windows", &["--windows"]);
    let (shape, each) = features(&place.at("windows/features.npy"));
    assert_eq!(shape, [7, 8]);
    let of_scan = each[..32].chunks(8).map(|r| r[0]).sum::<f32>() / 4.0;
    assert!((of_scan - mean[0]).abs() < 1e-6, "{of_scan} {}", mean[0]);
    // The first window's middle, in the scan's millimetres.
    let table = std::fs::read_to_string(place.at("windows/features.csv")).unwrap();
    let [x, y, z] = apply(&LPS, [3.5, 3.5, 3.5]);
    assert_eq!(table.lines().nth(1), Some(format!("0,a,{x:.3},{y:.3},{z:.3}").as_str()));
    // Fine-tuned models have an encoder too.
    let tuned = text(&write_model(&place.at("tuned.safetensors"), &Made { depth: 2, ..Made::new(Kind::Three) }));
    place.program().run(&["embed", &tuned, &input, "--out", &text(&place.at("tuned"))], 0);
    assert_eq!(features(&place.at("tuned/features.npy")).0, [1, 8]);
}

#[test]
fn damage_is_restored_by_pretrained_networks_only() {
    let Some(place) = Place::new() else { return };
    let model = text(&write_model(&place.at("model.safetensors"), &Made::new(Kind::Pretrained)));
    let volume = scan([16, 20, 8], LPS);
    let (cubes, input) = (constants(&place.at("cubes.npy"), [0.25, 0.5, 0.75]), place.write("a.nii", &volume));
    let out = place.at("out");
    let said = place.program().json(&["restore", &model, &cubes, &input, "--out", &text(&out), "--set", "prepare.spacing=[2,2,3]"]);
    assert_eq!(said["volumes"].as_array().unwrap().len(), 4);
    let read = |name: &str| nifti::read(&out.join(name)).unwrap();
    let (before, damaged, restored) = (read("a_before.nii.gz"), read("a_damaged.nii.gz"), read("a_restored.nii.gz"));
    // The paper's distortions reverse nothing: what was before is the scan, to what 16 bits keep of 2000 units.
    let turned = image::read(Path::new(&input)).unwrap();
    assert!(before.data.iter().zip(&turned.data).all(|(a, b)| (a - b).abs() < 0.05));
    assert_eq!(before.affine, rounded(LPS));
    let changed = before.data.iter().zip(&damaged.data).filter(|(a, b)| (**a - **b).abs() > 1.0).count();
    assert!(changed * 4 > before.data.len(), "{changed} voxels of {} are damaged", before.data.len());
    // This network makes of every voxel what follows from the damaged one.
    for (d, r) in damaged.data.iter().zip(&restored.data) {
        let v = |hu: f32| (f64::from(hu) + 1000.0) / 2000.0;
        let expected = 1.0 / (1.0 + (-models::STEEP * (v(*d) - models::FIRST)).exp());
        assert!((v(*r) - expected).abs() < 2e-3, "{d} {r}");
    }
    assert!(std::fs::read(out.join("restored.png")).unwrap().starts_with(b"\x89PNG"));
    for (kind, what) in [(Kind::Mask, "fine-tuned to segment"), (Kind::Whole, "fine-tuned to classify")] {
        let other = text(&write_model(&place.at("other.safetensors"), &Made { depth: 2, ..Made::new(kind) }));
        let refused = place.program().refused(&["restore", &other, &input, "--out", &text(&place.at("none"))]);
        assert!(refused.contains(what) && !place.at("none").exists(), "{refused}");
    }
}
