//! To and from PyTorch and to ONNX, through the program: files that PyTorch wrote, and what is written for it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod tasks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use semantic_genesis::files::sha256_hex;
use semantic_genesis::interop::onnx::Model;
use semantic_genesis::interop::tensors::{Data, File, Tensor};
use semantic_genesis::interop::weights;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Program, reference};

struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> Program<'_> {
        Program::new(self.dir.path())
    }

    fn import(&self, file: &Path, out: &str) -> (Value, File) {
        let out = self.path(out);
        let report = self.program().json(&["import", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        (report, File::read(&out).unwrap())
    }

    fn export(&self, model: &Path, out: &str, options: &[&str]) -> (Value, PathBuf) {
        let out = self.path(out);
        let args = [&["export", model.to_str().unwrap(), "--out", out.to_str().unwrap()], options].concat();
        (self.program().json(&args), out)
    }

    fn model(&self, model: &Path, options: &[&str]) -> (Model, Vec<u8>) {
        let (_, out) = self.export(model, "model.onnx", options);
        let bytes = std::fs::read(out).unwrap();
        (Model::decode(bytes.as_slice()).unwrap(), bytes)
    }
}

fn ynet() -> File {
    File::read(&reference("ynet_base2/W.safetensors")).unwrap()
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<&str, (Vec<usize>, Vec<i64>)> {
    let of = |t: &Tensor| match &t.data {
        Data::F32(v) => v.iter().map(|x| i64::from(x.to_bits())).collect(),
        Data::I64(v) => v.clone(),
    };
    tensors.iter().map(|(n, t)| (n.as_str(), (t.shape.clone(), of(t)))).collect()
}

/// What PyTorch saved as the published code does gives the bits of the weights it was made from, from both containers.
#[test]
fn official_checkpoints_are_imported_bit_for_bit() {
    let f = Folder::new();
    for (name, source) in [("official.pt", "PyTorch file (zip)"), ("official_legacy.pt", "PyTorch file (legacy)")] {
        let path = reference(&format!("exchange/{name}"));
        let (report, file) = f.import(&path, "in.safetensors");
        assert_eq!(bits(&file.tensors), bits(&ynet().tensors), "{name}");
        assert_eq!(report["source"], source);
        assert_eq!(report["network"], "Y-Net, pytorch variant, base width 2, 4 levels, 5 pseudo classes");
        assert_eq!((report["loaded"].as_array().unwrap().len(), report["missing"].as_array().unwrap().len()), (115, 0));
        let left_out = |name: &str| {
            let list = report["left_out"].as_array().unwrap();
            list.iter().find(|e| e[0] == name).map(|e| e[1].as_str().unwrap().to_owned())
        };
        assert_eq!(left_out("best_loss").unwrap(), "the number 0.0625");
        assert!(left_out("optimizer_state_dict").unwrap().contains("optimiser"));
        for name in ["module.projection_head.0.weight", "module.prototypes.weight", "module.something_else.weight"] {
            assert!(left_out(name).is_some(), "{name}");
        }
        let renamed = report["renamed"].as_array().unwrap();
        assert!(renamed.contains(&json!(["module.classficationNet.clc_out.fc1.bias", "clc_out.fc1.bias"])));
        // The origin is kept with the weights, and shown.
        let about: Value = serde_json::from_str(file.metadata.as_deref().unwrap()).unwrap();
        let sum = sha256_hex(&std::fs::read(&path).unwrap());
        assert_eq!((&about["origin"]["imported"], &about["origin"]["sha256"]), (&json!(name), &json!(sum)));
        let info = f.program().json(&["info", f.path("in.safetensors").to_str().unwrap()]);
        assert_eq!((&info["origin"]["sha256"], &info["network"]), (&json!(sum), &json!("joint")));
        // The library reads the file without a detour.
        assert_eq!(bits(&weights::read(&path).unwrap().tensors), bits(&ynet().tensors));
    }
}

/// Everything that is exported for PyTorch reads back as the same bits and description, again and again the same bytes.
#[test]
fn exports_for_pytorch_read_back_with_their_description() {
    let f = Folder::new();
    let (_, imported) = f.import(&reference("exchange/official.pt"), "in.safetensors");
    for ending in ["pt", "safetensors"] {
        let (report, first) = f.export(&f.path("in.safetensors"), &format!("a.{ending}"), &[]);
        let (_, second) = f.export(&f.path("in.safetensors"), &format!("b.{ending}"), &[]);
        assert_eq!(report["tensors"], 115);
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(second).unwrap());
        let back = weights::read(&first).unwrap();
        assert_eq!(bits(&back.tensors), bits(&imported.tensors));
        assert_eq!(back.metadata, imported.metadata);
        assert_eq!((back.renamed, back.dropped), (vec![], vec![]));
    }
    // An origin is not lost when an export is imported again.
    let (_, again) = f.import(&f.path("a.pt"), "again.safetensors");
    let about: Value = serde_json::from_str(again.metadata.as_deref().unwrap()).unwrap();
    assert_eq!((&about["origin"]["imported"], &about["origin"]["before"]["imported"]), (&json!("a.pt"), &json!("official.pt")));
}

#[test]
fn parts_of_a_y_net_have_the_entries_of_their_classes() {
    let f = Folder::new();
    let path = reference("ynet_base2/W.safetensors");
    for (part, entries) in [(None, 115), (Some("unet"), 106), (Some("classifier"), 65)] {
        let options: Vec<&str> = part.iter().flat_map(|p| ["--part", *p]).collect();
        let (_, out) = f.export(&path, "part.pt", &options);
        let w = weights::read(&out).unwrap();
        assert_eq!(w.tensors.len(), entries);
        assert!(w.tensors.keys().all(|n| !n.starts_with("optimizer.")));
    }
    let (_, unet) = f.export(&path, "unet.safetensors", &["--part", "unet"]);
    let refused =
        f.program().refused(&["export", unet.to_str().unwrap(), "--out", f.path("x.pt").to_str().unwrap(), "--part", "classifier"]);
    assert!(refused.contains("\"U-Net\" and has no such part"), "{refused}");
}

/// `tests/reference/exchange.py check` held these files against PyTorch in onnxruntime.
#[test]
fn onnx_files_are_those_that_onnxruntime_was_checked_with() {
    let f = Folder::new();
    let sums: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(reference("exchange/onnx.json")).unwrap()).unwrap();
    assert_eq!(sums.len(), 5);
    for (what, sum) in sums {
        let mut words = what.split(' ');
        let model = reference(words.next().unwrap());
        let (_, bytes) = f.model(&model, &words.collect::<Vec<_>>());
        assert_eq!(sha256_hex(&bytes), sum, "{what}: run `exchange.py check` again if this change is meant");
    }
}

fn operations(m: &Model) -> BTreeMap<&str, usize> {
    let mut out = BTreeMap::new();
    m.graph.as_ref().unwrap().node.iter().for_each(|n| *out.entry(n.op_type.as_str()).or_default() += 1);
    out
}

fn shapes(m: &Model) -> Vec<(String, String)> {
    let g = m.graph.as_ref().unwrap();
    g.input.iter().chain(&g.output).map(|v| (v.name.clone(), v.shape().join(" "))).collect()
}

#[test]
fn onnx_graphs_have_the_layers_names_and_free_sizes_of_their_networks() {
    let f = Folder::new();
    let path = reference("ynet_base2/W.safetensors");
    let (m, _) = f.model(&path, &[]);
    let grid = "depth height width";
    let expected = [("input", format!("batch 1 {grid}")), ("restored", format!("batch 1 {grid}")), ("logits", "batch 5".to_owned())];
    assert_eq!(shapes(&m), expected.map(|(n, s)| (n.to_owned(), s)));
    let expected = [
        ("BatchNormalization", 15),
        ("Concat", 3),
        ("Conv", 16),
        ("ConvTranspose", 3),
        ("Flatten", 1),
        ("Gemm", 1),
        ("GlobalAveragePool", 1),
        ("MaxPool", 3),
        ("Relu", 15),
        ("Sigmoid", 1),
    ];
    assert_eq!(operations(&m), BTreeMap::from(expected));
    // Every tensor is there as it is in the file; the counts of batches are not needed.
    let g = m.graph.as_ref().unwrap();
    let file = ynet();
    let floats: Vec<&str> = file.tensors.iter().filter(|(_, t)| t.floats().is_some()).map(|(n, _)| n.as_str()).collect();
    assert_eq!(g.initializer.len(), floats.len());
    for c in &g.initializer {
        let t = &file.tensors[&c.name];
        let raw: Vec<u8> = t.floats().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            (c.dims.iter().map(|&d| usize::try_from(d).unwrap()).collect::<Vec<_>>(), &c.raw_data),
            (t.shape.clone(), &raw),
            "{}",
            c.name
        );
    }
    // Operations only use what is there before them.
    let mut there: Vec<&str> = g.input.iter().map(|v| v.name.as_str()).chain(g.initializer.iter().map(|c| c.name.as_str())).collect();
    for n in &g.node {
        assert!(n.input.iter().all(|i| there.contains(&i.as_str())), "{}", n.name);
        there.extend(n.output.iter().map(String::as_str));
    }
    assert!(g.output.iter().all(|o| there.contains(&o.name.as_str())));
    assert_eq!((m.opset_import[0].version, m.ir_version), (17, 8));
    let (keras, _) = f.model(&reference("keras_base2/W.safetensors"), &[]);
    assert_eq!((operations(&keras)["Resize"], operations(&keras)["Gemm"]), (3, 2));
}

/// A fine-tuned model like those of `semgen finetune`, from the tensors of the Y-Net.
fn fine_tuned(f: &Folder, kind: &str, output: &str, classes: usize, outputs: usize) -> PathBuf {
    let mut tensors = ynet().tensors;
    tensors.retain(|n, _| !n.starts_with("clc_out") && (kind == "segment" || n.starts_with("down_tr")));
    let values = |n: usize| (0..n).map(|i| i as f32 / 8.0 - 0.3).collect::<Vec<_>>();
    let (name, shape, len) = match kind {
        "segment" => ("out_tr.final_conv", vec![outputs, 4, 1, 1, 1], 4 * outputs),
        _ => ("classifier", vec![outputs, 32], 32 * outputs),
    };
    tensors.insert(format!("{name}.weight"), Tensor::f32(shape, values(len)));
    tensors.insert(format!("{name}.bias"), Tensor::f32(vec![outputs], values(outputs)));
    let task = json!({
        "kind": kind, "output": output, "view": "windows", "classes": (0..classes).map(|i| format!("class {i}")).collect::<Vec<_>>(),
        "values": if kind == "segment" { (0..classes).collect() } else { vec![] }, "channels": ["scan"],
        "model": { "base_channels": 2, "classes": 44, "depth": 4, "variant": "pytorch", "activation": "elu", "norm": "running" },
        "window": [16, 16, 8],
        "recipe": { "modality": "ct", "mri": "percentile", "window": [0.0, 1.0], "align": "grid", "spacing": [1.0, 1.0, 1.0], "grid": null },
    });
    let path = f.path(&format!("{kind}_{output}.safetensors"));
    File { tensors, metadata: Some(json!({ "task": task }).to_string()) }.write(&path).unwrap();
    path
}

#[test]
fn fine_tuned_models_become_onnx_with_probabilities() {
    let f = Folder::new();
    for (kind, output, classes, outputs, squash) in
        [("segment", "binary", 2, 1, "Sigmoid"), ("segment", "multiclass", 3, 3, "Softmax"), ("classify", "multilabel", 4, 4, "Sigmoid")]
    {
        let path = fine_tuned(&f, kind, output, classes, outputs);
        let (m, _) = f.model(&path, &[]);
        let grid = if kind == "segment" { " depth height width" } else { "" };
        let wanted = ["logits", "probabilities"].map(|n| (n.to_owned(), format!("batch {outputs}{grid}")));
        assert_eq!(shapes(&m)[1..], wanted);
        let last = m.graph.as_ref().unwrap().node.last().unwrap();
        assert_eq!((last.op_type.as_str(), last.input[0].as_str(), last.output[0].as_str()), (squash, "logits", "probabilities"));
        // The activation has no tensors: it is what the model's description says.
        assert!(operations(&m).contains_key("Elu") && !operations(&m).contains_key("Relu"));
        let about = m.metadata_props.iter().find(|e| e.key == "semgen").map(|e| serde_json::from_str::<Value>(&e.value).unwrap());
        assert_eq!(about.unwrap()["task"]["output"], output);
        // For PyTorch it keeps its description too.
        let (_, pt) = f.export(&path, "task.pt", &[]);
        let back = weights::read(&pt).unwrap();
        assert!(back.metadata.unwrap().contains("\"task\""));
        let counts = back.tensors.keys().filter(|n| n.ends_with("num_batches_tracked")).count();
        assert_eq!(counts, if kind == "segment" { 14 } else { 8 });
    }
}

#[test]
fn what_cannot_be_exchanged_is_refused_and_nothing_is_written() {
    let f = Folder::new();
    let out = f.path("out.safetensors");
    let out = out.to_str().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(f.path(name), bytes).unwrap();
        f.path(name).to_str().unwrap().to_owned()
    };
    let official = std::fs::read(reference("exchange/official.pt")).unwrap();
    let legacy = std::fs::read(reference("exchange/official_legacy.pt")).unwrap();
    let magic = &legacy[..15];
    let evil = [
        magic,
        b"\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s.\x80\x02cposix\nsystem\nX\x0c\0\0\0touch hackedq\0\x85R.\x80\x02].",
    ]
    .concat();
    let mut other = File::default();
    other.tensors.insert("fc.weight".into(), Tensor::f32(vec![1], vec![0.0]));
    other.write(&f.path("other.safetensors")).unwrap();
    for (file, what) in [
        (write("evil.pt", &evil), "names `posix.system`"),
        (write("half.pt", &official[..official.len() / 2]), "no whole zip archive"),
        (write("legacy.pt", &legacy[..legacy.len() - 4]), "ends within the storage"),
        (write("page.pt", b"<html>"), "web page"),
        (write("empty.pt", b""), "empty"),
        (f.path("other.safetensors").to_str().unwrap().to_owned(), "found `fc.weight`"),
        (f.path("nowhere.pt").to_str().unwrap().to_owned(), "cannot read"),
    ] {
        let refused = f.program().refused(&["import", &file, "--out", out]);
        assert!(refused.contains(what) && refused.contains(&file), "{refused}");
    }
    assert!(!Path::new(out).exists() && !f.path("hacked").exists() && !Path::new("hacked").exists());
    let official = reference("exchange/official.pt");
    let official = official.to_str().unwrap();
    assert!(f.program().refused(&["import", official, "--out", "x.pt"]).contains("ends in .safetensors"));
    assert!(f.program().refused(&["export", official, "--out", "x.bin"]).contains("ends in .safetensors, .pt or .onnx"));
    assert!(f.program().refused(&["export", f.dir.path().to_str().unwrap(), "--out", out]).contains("best.safetensors"));
    // A network with a hole cannot be exported; importing it says what is missing.
    let mut holed = ynet();
    holed.tensors.remove("up_tr64.ops.0.conv1.bias");
    holed.tensors.insert("out_tr.final_conv.bias".into(), Tensor::f32(vec![3], vec![0.0; 3]));
    holed.write(&f.path("holed.safetensors")).unwrap();
    let path = f.path("holed.safetensors");
    let refused = f.program().refused(&["export", path.to_str().unwrap(), "--out", out]);
    assert!(refused.contains("`out_tr.final_conv.bias` has shape [3], the network needs [1], and 1 more"), "{refused}");
    let (report, file) = f.import(&path, "part.safetensors");
    assert_eq!(report["missing"], json!(["out_tr.final_conv.bias", "up_tr64.ops.0.conv1.bias"]));
    assert_eq!(file.tensors.len(), 113);
}
