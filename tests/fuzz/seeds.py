"""Writes the seeds of the fuzz targets: small valid files of every kind, which the fuzzer then changes.

    seeds.py RUN        RUN: the run directory of a `semgen demo`, for the files that only the program itself writes
"""

import gzip
import io
import json
import pathlib
import sys
import zipfile

import nibabel
import numpy
import safetensors.torch
import torch

HERE = pathlib.Path(__file__).resolve().parent
RUN = pathlib.Path(sys.argv[1])


def put(target, name, content):
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def pytorch():
    net = {"down_tr64.ops.0.conv1.weight": torch.ones(2, 1, 1, 1, 1), "down_tr64.ops.1.conv1.weight": torch.ones(4, 2, 1, 1, 1)}
    safe = {**net, "down_tr64.ops.0.bn1.num_batches_tracked": torch.tensor(3), "half": torch.ones(2).half()}
    put("safetensors", "weights.safetensors", safetensors.torch.save(safe, {"semgen": '{"origin": {}}'}))
    put("safetensors", "empty.safetensors", safetensors.torch.save({}))
    state = {"module." + k: v for k, v in net.items()}
    state["module.classficationNet.clc_out.fc1.bias"] = torch.nn.Parameter(torch.zeros(3))
    state["module.prototypes.weight"] = torch.ones(4, 4).double().t()[1:]
    whole = {"epoch": 3, "state_dict": state, "optimizer_state_dict": {"state": {0: {"step": 1}}}, "best_loss": numpy.float64(0.5)}
    for name, zipped in (("zip.pt", True), ("legacy.pt", False)):
        out = io.BytesIO()
        torch.save(whole, out, _use_new_zipfile_serialization=zipped)
        put("pytorch", name, out.getvalue())
        if zipped:
            with zipfile.ZipFile(out) as archive:
                put("pickle", "checkpoint.pkl", archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    import pickle

    put("pickle", "plain.pkl", pickle.dumps({"a": [1, -2, 2**40, 2**80, None, True, 1.5, b"xy", "é"], "b": ((), (1,), (1, 2))}, 4))


def scans():
    values = numpy.arange(24, dtype=numpy.int16).reshape(2, 3, 4)
    affine = numpy.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = -5, 6, 7
    scaled = nibabel.Nifti1Image(values, affine)
    scaled.header.set_slope_inter(2.0, 1.0)
    put("nifti", "int16.nii", scaled.to_bytes())
    put("nifti", "int16.nii.gz", gzip.compress(scaled.to_bytes(), mtime=0))
    put("nifti", "float32.nii", nibabel.Nifti1Image(values.astype("f4"), affine).to_bytes())
    put("nifti", "nifti2.nii", nibabel.Nifti2Image(values.astype("u1"), affine).to_bytes())
    put("nifti", "series.nii", nibabel.Nifti1Image(numpy.stack([values, values], -1), affine).to_bytes())
    put("nifti", "big_endian.nii", nibabel.Nifti1Image(values.astype(">i2"), affine, nibabel.Nifti1Header(endianness=">")).to_bytes())
    for path in sorted((HERE.parent / "reference" / "metaimage").glob("*.mh?")):
        put("metaimage", path.name, path.read_bytes())


def arrays():
    for name, array in (
        ("cubes_f4", numpy.linspace(0, 1, 16, dtype="f4").reshape(2, 2, 2, 2)),
        ("cubes_f8_channel", numpy.zeros((1, 1, 2, 2, 2))),
        ("column_big_endian", numpy.arange(3, dtype=">i4")),
        ("mask_bool", numpy.ones((1, 2, 2, 2), bool)),
    ):
        out = io.BytesIO()
        numpy.save(out, array)
        put("arrays", f"{name}.npy", out.getvalue())


def tables():
    """The first byte says which reader is meant; see targets/tables.rs for the scans that are there."""
    labels = {"background": 0, "organ": 1}
    files = (
        (0, "labels.csv", "id,image,label,patient,split,x,y,z\n1,a.nii,no,p,train,1,1,1\n2,b.nii,yes,q,val,0,2,1.5\n3,b.nii,yes,q,val,3,2,1\n"),
        (0, "multilabel.csv", "image0,image1,Edema,Mass\na.nii,b.nii,1,0\nb.nii,a.nii,,1\n"),
        (1, "masks.csv", "image,mask,group\na.nii,b.nii,g\nb.nii,a.nii,h\n"),
        (2, "dataset.json", {"channel_names": {"0": "CT"}, "labels": {**labels, "tumour": [1, 2]}, "file_ending": ".nii"}),
        (2, "decathlon.json", {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"},
                               "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}]}),
        (2, "listed.json", {"channel_names": {"0": "CT"}, "labels": labels,
                            "dataset": {"a": {"images": ["imagesTr/a_0000.nii"], "label": "labelsTr/a.nii"}}}),
        (3, "splits.json", [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]),
        (4, "candidates.csv", "seriesuid,coordX,coordY,coordZ,class\n0,0,0,0,0\n5,1,1,1,1\n7,0.5,-1,2,0\n9,1,1,1,1\n"),
        (5, "split.csv", "id,split\na,train\nb,validation\n"),
        (6, "recipe.toml", "[data]\nlayout = \"lits\"\nchannels = [\"CT\"]\nclasses = [{ name = \"liver\", values = [1, 2] }]\n[train]\nseed = 3\n"),
    )
    for which, name, content in files:
        text = content if isinstance(content, str) else json.dumps(content)
        put("tables", name, bytes([which]) + text.encode())


def own():
    """What the program wrote itself."""
    put("config", "whole.toml", (RUN / "config.toml").read_bytes())
    put("config", "short.toml", "seed = 7\n[cube]\nsize = [32, 32, 16]\n[train]\nmicro_batch = \"auto\"\nbatch_size = 4\n")
    task = {
        "kind": "segment", "output": "binary", "view": "windows", "classes": ["background", "organ"], "values": [0, 1], "channels": ["CT"],
        "model": {"base_channels": 2, "classes": 44, "depth": 2, "variant": "pytorch", "activation": "relu", "norm": "running"},
        "window": [16, 16, 8],
        "recipe": {"modality": "ct", "mri": "percentile", "window": [-1000.0, 1000.0], "align": "grid", "spacing": [1.0, 1.0, 1.0], "grid": None},
    }
    put("metadata", "fine_tuned.json", json.dumps({"task": task, "origin": {"weights": "scratch"}}))
    with safetensors.safe_open(RUN / "checkpoints" / "last.safetensors", "np") as file:
        put("metadata", "pretrained.json", file.metadata()["semgen"])
    put("index", "manifest.json", b"\0" + (RUN / "discover" / "manifest.json").read_bytes())
    index = json.loads((RUN / "prepared" / "index.json").read_bytes())
    index["scans"], index["grid"] = index["scans"][:2], [2, 2, 1]
    for scan in index["scans"]:
        scan["source"] = pathlib.Path(scan["source"]).name
    put("index", "store.json", b"\1" + json.dumps(index, indent=1).encode())
    put("index", "metrics.jsonl", b"\2" + b"".join((RUN / "metrics.jsonl").read_bytes().splitlines(True)[:4]))


for make in (pytorch, scans, arrays, tables, own):
    make()
