//! Every layout of labelled data from end to end: small data laid out as their archives are, fine-tuned with the recipe's settings.

use std::path::{Path, PathBuf};

use semantic_genesis::data::nifti;
use semantic_genesis::data::volume::Volume;
use serde_json::{Value, json};

use super::cubes::npy;
use crate::finetune::{Noise, balls, best, program, text};
use crate::harness;

/// What makes a published recipe small; the rest of its settings stays.
const SMALLER: [&str; 6] = [
    "cube.size=[16,16,8]",
    "model.base_channels=2",
    "model.depth=3",
    "train.max_steps=2",
    "train.batch_size=2",
    "prepare.spacing=[2.0,2.0,3.0]",
];

/// Fine-tunes with a recipe, or without one.
fn finetune(kind: &str, data: &Path, recipe: Option<&str>, out: &Path) -> Value {
    let mut args = vec!["finetune", kind, text(data), "--out", text(out)];
    args.extend(recipe.iter().flat_map(|r| ["--recipe", *r]));
    args.extend(SMALLER.iter().flat_map(|s| ["--set", *s]));
    let summary = program().json(&args);
    assert_eq!(summary["steps"], 2);
    for file in ["checkpoints/best.safetensors", "validation.csv", "report.html"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    summary
}

/// What the model of a run is for.
fn task(out: &Path) -> Value {
    let about: Value = serde_json::from_str(best(out).metadata.as_deref().unwrap()).unwrap();
    about["task"].clone()
}

/// Lines of a table of cases.
fn cases(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap().lines().count() - 1
}

fn folder(path: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A scan of 20 × 18 × 12 voxels of 2 × 2 × 3 mm and a map with the values `labels` in the place of its balls.
fn pair(seed: u64, labels: &[f32]) -> (Volume, Volume) {
    let bright: Vec<f32> = (0..labels.len()).map(|i| 100.0 * i as f32).collect();
    let (mut scan, mut map) = balls(seed, [20, 18, 12], &bright);
    scan.data.iter_mut().for_each(|v| *v = v.round());
    map.data.iter_mut().filter(|v| **v > 0.0).for_each(|v| *v = labels[*v as usize - 1]);
    (scan, map)
}

/// A scan in the pair of files that LUNA16 has: `.mhd` and `.raw` of 16-bit numbers, i fastest.
fn metaimage(folder: &Path, name: &str, seed: u64) {
    let (scan, _) = pair(seed, &[1.0]);
    let header = format!(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
         TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -20 -10 -5\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n\
         ElementSpacing = 2 2 3\nDimSize = 20 18 12\nElementType = MET_SHORT\nElementDataFile = {name}.raw\n"
    );
    std::fs::write(folder.join(format!("{name}.mhd")), header).unwrap();
    let mut raw = Vec::new();
    for k in 0..12 {
        for j in 0..18 {
            (0..20).for_each(|i| raw.extend((scan.at(i, j, k) as i16).to_le_bytes()));
        }
    }
    std::fs::write(folder.join(format!("{name}.raw")), raw).unwrap();
}

#[test]
fn luna16_candidates_are_classified() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path().join("LUNA16"));
    let mut list = "seriesuid,coordX,coordY,coordZ,class\n".to_owned();
    // Subsets to learn from, to validate on and to test on; one is not there.
    for (n, subset) in [0, 4, 5, 6, 7, 9].into_iter().enumerate() {
        let series = format!("1.3.6.1.4.1.14519.5.2.1.6279.6001.{n}");
        metaimage(&folder(data.join(format!("subset{subset}"))), &series, n as u64);
        // One nodule and seven other places, the last in the outermost voxels.
        list += &format!("{series},-2.5,4.25,7.0,1\n");
        (0..6).for_each(|c| list += &format!("{series},{}.5,3,{c},0\n", 2 * c - 10));
        list += &format!("{series},18.0,24.0,28.0,0\n");
    }
    list += "1.3.6.1.4.1.14519.5.2.1.6279.6001.99,0,0,0,1\n";
    for (name, out) in [("candidates_V2.csv", "v2"), ("candidates.csv", "v1")] {
        std::fs::write(data.join(name), &list).unwrap();
        let out = dir.path().join(out);
        let summary = finetune("classify", &data, Some("luna16-ncc"), &out);
        assert_eq!(
            (&summary["metric"], &summary["labelled"], &summary["classes"]),
            (&json!("auc"), &json!(16), &json!(["no nodule", "nodule"]))
        );
        assert_eq!((cases(&out.join("validation.csv")), cases(&out.join("test.csv"))), (16, 16));
        assert_eq!((&task(&out)["view"], &task(&out)["channels"]), (&json!("point"), &json!(["CT"])));
        // Settings that are not overridden are the recipe's own.
        let config = std::fs::read_to_string(out.join("config.toml")).unwrap();
        assert!(config.contains("negatives_per_positive = 5.0") && config.contains("stop_patience = 10"), "{config}");
        std::fs::remove_file(data.join(name)).unwrap();
    }
    let ask = || {
        let out = dir.path().join("refused");
        program().refused(&["finetune", "classify", text(&data), "--recipe", "luna16-ncc", "--out", text(&out)])
    };
    assert!(ask().contains("candidates_V2.csv"));
    std::fs::write(data.join("candidates_V2.csv"), list.replace("18.0,24.0,28.0", "18.0,24.0,280.0")).unwrap();
    let e = ask();
    assert!(e.contains("candidates_V2.csv") || e.contains("LUNA16"), "{e}");
    assert!(e.contains("280.0") && e.contains("outside"), "{e}");
}

#[test]
fn lits_livers_are_segmented_and_tumours_count_as_liver() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path().join("LiTS"));
    for (batch, n) in
        [("Training Batch 1", 0), ("Training Batch 1", 27), ("Training Batch 2", 99), ("Training Batch 2", 100), ("Training Batch 2", 129)]
    {
        let (scan, map) = pair(n, &[1.0, 2.0]);
        let batch = folder(data.join(batch));
        nifti::write_i16(&batch.join(format!("volume-{n}.nii")), &scan).unwrap();
        nifti::write_u8(&batch.join(format!("segmentation-{n}.nii")), &map).unwrap();
    }
    let out = dir.path().join("run");
    let summary = finetune("segment", &data, Some("lits-lcs"), &out);
    assert_eq!((&summary["labelled"], &summary["classes"]), (&json!(3), &json!(["background", "liver"])));
    assert_eq!((cases(&out.join("validation.csv")), cases(&out.join("test.csv"))), (1, 1));
    let t = task(&out);
    assert_eq!((&t["output"], &t["values"], &t["merged"]), (&json!("binary"), &json!([0, 1]), &json!([[0], [1, 2]])));
    // Without the recipe, the layout is told, and both are classes.
    let out = dir.path().join("both");
    let summary = finetune("segment", &data, None, &out);
    assert_eq!(summary["classes"], json!(["background", "liver", "tumour"]));
    assert_eq!(task(&out)["output"], "multiclass");
}

#[test]
fn brats_tumours_are_segmented_in_one_channel_or_four() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path().join("BraTS"));
    for (n, grade) in ["HGG", "HGG", "LGG", "LGG", "HGG", "LGG"].into_iter().enumerate() {
        let id = format!("Brats18_TCIA0{n}_1");
        let case = folder(data.join(grade).join(&id));
        let (mut scan, map) = pair(n as u64, &[1.0, 2.0, 4.0]);
        scan.data.iter_mut().for_each(|v| *v += 1000.0);
        for modality in ["flair", "t1", "t1ce", "t2"] {
            scan.data.iter_mut().for_each(|v| *v += 1.0);
            nifti::write_i16(&case.join(format!("{id}_{modality}.nii.gz")), &scan).unwrap();
        }
        nifti::write_u8(&case.join(format!("{id}_seg.nii.gz")), &map).unwrap();
    }
    let out = dir.path().join("run");
    let summary = finetune("segment", &data, Some("brats-bms"), &out);
    assert_eq!(summary["classes"], json!(["background", "tumour"]));
    // A third of six cases tests, one validates.
    assert_eq!((&summary["labelled"], cases(&out.join("validation.csv")), cases(&out.join("test.csv"))), (&json!(3), 1, 2));
    let t = task(&out);
    assert_eq!((&t["channels"], &t["merged"], &t["recipe"]["modality"]), (&json!(["flair"]), &json!([[0], [1, 2, 4]]), &json!("mri")));
    let out = dir.path().join("four");
    let summary = finetune("segment", &data, None, &out);
    assert_eq!(summary["classes"], json!(["background", "necrosis", "oedema", "enhancing tumour"]));
    let t = task(&out);
    assert_eq!((&t["channels"], &t["values"]), (&json!(["flair", "t1", "t1ce", "t2"]), &json!([0, 1, 2, 4])));
    assert_eq!(best(&out).tensors["down_tr64.ops.0.conv1.weight"].shape[1], 4);
    // A missing modality is named.
    std::fs::remove_file(data.join("HGG/Brats18_TCIA01_1/Brats18_TCIA01_1_t2.nii.gz")).unwrap();
    let out = dir.path().join("refused");
    let e = program().refused(&["finetune", "segment", text(&data), "--out", text(&out)]);
    assert!(e.contains("Brats18_TCIA01_1_t2"), "{e}");
}

#[test]
fn lidc_cubes_are_segmented() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = folder(dir.path().join("LIDC"));
    let voxels = 16 * 16 * 8;
    for (part, rows) in [("train", 5), ("valid", 2), ("test", 3)] {
        let mut noise = Noise::new(rows as u64);
        let cubes: Vec<f64> = (0..rows * voxels).map(|_| f64::from(noise.next())).collect();
        npy(&data.join(format!("m_{part}_64x64x32.npy")), &[rows, 16, 16, 8], cubes.iter().map(|&v| f64::from(u8::from(v > 0.7))));
        npy(&data.join(format!("x_{part}_64x64x32.npy")), &[rows, 16, 16, 8], cubes);
    }
    let out = dir.path().join("run");
    let summary = finetune("segment", &data, Some("lidc-ncs"), &out);
    assert_eq!((&summary["labelled"], &summary["classes"]), (&json!(5), &json!(["background", "nodule"])));
    assert_eq!((cases(&out.join("validation.csv")), cases(&out.join("test.csv"))), (2, 3));
    npy(&data.join("m_valid_64x64x32.npy"), &[2, 16, 16, 8], vec![0.5; 2 * voxels]);
    let refused = dir.path().join("refused");
    let e = program().refused(&["finetune", "segment", text(&data), "--recipe", "lidc-ncs", "--out", text(&refused)]);
    assert!(e.contains("m_valid_64x64x32.npy") && e.contains("0.5"), "{e}");
}

#[test]
fn folders_of_nnunet_and_of_the_decathlon_are_segmented() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // nnU-Net, second version: channel_names, a file a channel.
    let second = folder(dir.path().join("Dataset007_Two"));
    let (images, labels) = (folder(second.join("imagesTr")), folder(second.join("labelsTr")));
    for n in 0..4u64 {
        let (scan, map) = pair(n, &[1.0, 2.0]);
        (0..2).for_each(|c| nifti::write_i16(&images.join(format!("case_{n:03}_{c:04}.nii.gz")), &scan).unwrap());
        nifti::write_u8(&labels.join(format!("case_{n:03}.nii.gz")), &map).unwrap();
    }
    let about = json!({
        "channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "organ": 1, "lesion": 2}, "numTraining": 4,
        "file_ending": ".nii.gz",
    });
    std::fs::write(second.join("dataset.json"), about.to_string()).unwrap();
    let out = dir.path().join("second");
    let summary = finetune("segment", &second, None, &out);
    assert_eq!((&summary["classes"], &task(&out)["channels"]), (&json!(["background", "organ", "lesion"]), &json!(["CT", "PET"])));

    // A recipe of one's own: the first channel, the lesion alone.
    let recipe = dir.path().join("own.toml");
    std::fs::write(&recipe, "[data]\nchannels = [\"CT\"]\nclasses = [{ name = \"lesion\" }]\n[finetune]\nloss = \"ce\"\n").unwrap();
    let out = dir.path().join("own");
    let summary = finetune("segment", &second, Some(text(&recipe)), &out);
    assert_eq!((&summary["classes"], &task(&out)["merged"]), (&json!(["background", "lesion"]), &json!([[0, 1], [2]])));
    assert_eq!(task(&out)["channels"], json!(["CT"]));

    // The folds that nnU-Net has drawn.
    let folds = json!([
        {"train": ["case_000", "case_002"], "val": ["case_003"]},
        {"train": ["case_003", "case_001", "case_002"], "val": ["case_000"]},
    ]);
    std::fs::write(second.join("splits_final.json"), folds.to_string()).unwrap();
    let out = dir.path().join("folds");
    let summary = finetune("segment", &second, None, &out);
    assert_eq!((&summary["labelled"], summary.get("test")), (&json!(2), None));
    assert!(std::fs::read_to_string(out.join("validation.csv")).unwrap().contains("case_003"));

    // Medical Segmentation Decathlon: modality, a list of cases, hidden files of an archive among them.
    let first = folder(dir.path().join("Task09_Spleen"));
    let (images, labels) = (folder(first.join("imagesTr")), folder(first.join("labelsTr")));
    let mut training = Vec::new();
    for n in 2..6u64 {
        let (scan, map) = pair(n, &[1.0]);
        nifti::write_i16(&images.join(format!("spleen_{n}.nii.gz")), &scan).unwrap();
        nifti::write_u8(&labels.join(format!("spleen_{n}.nii.gz")), &map).unwrap();
        std::fs::write(images.join(format!("._spleen_{n}.nii.gz")), "resource").unwrap();
        training.push(json!({"image": format!("./imagesTr/spleen_{n}.nii.gz"), "label": format!("./labelsTr/spleen_{n}.nii.gz")}));
    }
    let about = json!({
        "name": "Spleen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "numTraining": 4, "training": training,
        "test": ["./imagesTs/spleen_1.nii.gz"],
    });
    std::fs::write(first.join("dataset.json"), about.to_string()).unwrap();
    let out = dir.path().join("first");
    let summary = finetune("segment", &first, None, &out);
    assert_eq!((&summary["classes"], &task(&out)["channels"]), (&json!(["background", "spleen"]), &json!(["CT"])));
    std::fs::remove_file(labels.join("spleen_3.nii.gz")).unwrap();
    let out = dir.path().join("refused");
    let e = program().refused(&["finetune", "segment", text(&first), "--out", text(&out)]);
    assert!(e.contains("spleen_3.nii.gz"), "{e}");
}
