"""Files as PyTorch writes them, for the import tests; and a check of what `semgen export` writes.

    python exchange.py make                        writes exchange/
    python exchange.py check --semgen BINARY       exports every kind of network, loads the results in PyTorch (strictly) and in
                                                   onnxruntime, compares outputs, and writes exchange/onnx.json

`make` writes, from the weights of ynet_base2/W.safetensors:

    official.pt         a checkpoint dictionary as the published code saves it from several GPUs: keys with `module.`, the
                        state of Adam after a step, NumPy numbers, and keys of no use here; zip container
    official_legacy.pt  the same in the container before PyTorch 1.6, its tensors Parameters
    types.pt, types_legacy.pt
                        one tensor of every type, views into shared storages, a scalar, an empty one (values: see types())
    message.onnx        one small ONNX model as Google's library serialises it

`check` needs onnx and onnxruntime. onnx.json holds the SHA-256 of the ONNX files made from committed weights, by which
the tests know that the program still writes what was checked here.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import subprocess
import tempfile

import numpy
import torch

import common
import networks

OUT = common.HERE / "exchange"
BASE, CLASSES = 2, 5
TOLERANCE = 1e-5


# ------------------------------------------------------------------------------------------------------------ make

def adam_state(net):
    """The state of Adam after one real step on the small parameters; the weights stay as they are (learning rate 0)."""
    small = [p for p in net.parameters() if p.numel() <= 512]
    optimizer = torch.optim.Adam(small, lr=0.0)
    restored, logits = net(torch.rand(1, 1, 8, 8, 8))
    (restored.square().mean() + logits.square().mean()).backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3
    return optimizer.state_dict()


def official(keep_vars):
    torch.manual_seed(5)
    weights = common.load(common.HERE / "ynet_base2" / "W.safetensors")
    net = networks.build("ynet", BASE, CLASSES)
    net.load_state_dict(weights, strict=True)
    net.eval()
    optimizer = adam_state(net)
    wrapped = torch.nn.Module()
    wrapped.module = net
    state = wrapped.state_dict(keep_vars=keep_vars)
    for name, tensor in weights.items():
        assert torch.equal(state["module." + name], tensor), name
    # Keys that the published loading recipe renames or leaves out.
    renamed = "module.clc_out.fc1.bias"
    state["module.classficationNet.clc_out.fc1.bias"] = state.pop(renamed)
    state["module.projection_head.0.weight"] = torch.rand(3, 4)
    state["module.prototypes.weight"] = torch.rand(3, 4)
    state["module.something_else.weight"] = torch.rand(2)
    return {
        "epoch": 12,
        "state_dict": state,
        "optimizer_state_dict": optimizer,
        "num_epoch_no_improvement": 0,
        "best_loss": numpy.float64(0.0625),
        "best_acc": numpy.float64(0.75),
    }


def types():
    """Tensors of every type: the values 0, 1, 2 … (mod 2 for Bool), with the last negative where there is a sign."""
    out = collections.OrderedDict()
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        tensor = torch.arange(6).to(getattr(torch, name)) if name != "bool" else torch.arange(6) % 2 == 1
        if name not in ("uint8", "bool"):
            tensor[-1] = -5
        out[name] = tensor.reshape(2, 3)
    grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    out["whole"] = grid
    out["transposed"] = grid.permute(2, 0, 1)
    out["slice"] = grid[1, :, 1:3]
    out["step"] = grid.reshape(-1)[::5]
    out["scalar"] = torch.tensor(1.5)
    out["empty"] = torch.zeros(0, 3)
    out["parameter"] = torch.nn.Parameter(torch.arange(3, dtype=torch.float32))
    return out


def message():
    import onnx

    model = onnx.ModelProto(ir_version=8, producer_name="semgen")
    model.opset_import.append(onnx.OperatorSetIdProto(version=17))
    model.opset_import[0].domain = ""
    model.opset_import[0].ClearField("domain")
    graph = model.graph
    graph.name = "g"
    node = graph.node.add(input=["a"], output=["b"], name="n", op_type="Elu")
    node.attribute.add(name="alpha", f=1.0, type=onnx.AttributeProto.FLOAT)
    node.attribute.add(name="k", i=0, type=onnx.AttributeProto.INT)
    graph.initializer.add(dims=[1], data_type=onnx.TensorProto.INT64, name="c", raw_data=numpy.int64(2).tobytes())
    value = graph.input.add(name="a")
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    value.type.tensor_type.shape.dim.add(dim_param="batch")
    value.type.tensor_type.shape.dim.add(dim_value=3)
    model.metadata_props.add(key="k", value="v")
    return model.SerializeToString(deterministic=True)


def tasks():
    """What fine-tuned networks answer that start from the Y-Net, with two input channels and three outputs: `segment.*` and
    `classify.*`, logits in f64. The kernel of the first convolution is repeated over the channels; the output layers are
    counted through (`counted`), so that no weights have to be kept."""
    from safetensors.torch import save_file

    weights = common.load(common.HERE / "ynet_base2" / "W.safetensors")
    first = "down_tr64.ops.0.conv1.weight"
    weights[first] = weights[first].repeat(1, 2, 1, 1, 1) / 2
    counted = lambda *shape: torch.arange(int(numpy.prod(shape)), dtype=torch.float32).reshape(shape) / 64 - 0.25
    torch.manual_seed(6)
    out = {}
    for kind, net, layer in (("segment", Segmenter(BASE, 2, 3), "out_tr.final_conv"), ("classify", Answer(BASE, 2, 3), "classifier")):
        state = {k: weights[k] for k in net.state_dict() if not k.startswith(layer)}
        shape = net.state_dict()[layer + ".weight"].shape
        net.load_state_dict({**state, layer + ".weight": counted(*shape), layer + ".bias": counted(3)}, strict=True)
        x = torch.rand(1, 2, 8, 8, 8)
        with torch.no_grad():
            answer = net.double().eval()(x.double())
        # As the engine keeps them: the channel last.
        out[f"{kind}.input"] = x.movedim(1, -1).contiguous()
        out[f"{kind}.logits"] = answer.movedim(1, -1).float().contiguous()
    save_file(out, OUT / "tasks.safetensors")


def make():
    common.deterministic()
    OUT.mkdir(exist_ok=True)
    torch.save(official(keep_vars=False), OUT / "official.pt")
    torch.save(official(keep_vars=True), OUT / "official_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(types(), OUT / "types.pt")
    torch.save(types(), OUT / "types_legacy.pt", _use_new_zipfile_serialization=False)
    (OUT / "message.onnx").write_bytes(message())
    tasks()
    for path in sorted(OUT.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


# ----------------------------------------------------------------------------------------------------------- check

class Segmenter(networks._Torch):
    """A fine-tuned segmentation network: the U-Net with as many input channels and logits as the task has."""

    def __init__(self, base, channels, outputs, act="relu"):
        super().__init__()
        self._add_encoder(base, act)
        self._add_decoder(base, act)
        self.down_tr64.ops[0].conv1 = torch.nn.Conv3d(channels, base, 3, padding=1)
        self.out_tr.final_conv = torch.nn.Conv3d(2 * base, outputs, 1)
        self.out_tr.forward = self.out_tr.final_conv.forward

    def forward(self, x):
        return self.decode(self.encode(x))


class Answer(networks._Torch):
    """A fine-tuned classifier: linear on the global average of the deepest block."""

    def __init__(self, base, channels, outputs, act="relu"):
        super().__init__()
        self._add_encoder(base, act)
        self.down_tr64.ops[0].conv1 = torch.nn.Conv3d(channels, base, 3, padding=1)
        self.classifier = torch.nn.Linear(16 * base, outputs)

    def forward(self, x):
        return self.classifier(self.encode(x)[3].mean(dim=(2, 3, 4)))


def task(kind, output, classes, channels):
    """The description of a fine-tuned model, as the program keeps it."""
    return {
        "kind": kind, "output": output, "view": "windows", "classes": [f"class {i}" for i in range(classes)],
        "values": list(range(classes)) if kind == "segment" else [], "channels": [f"channel {i}" for i in range(channels)],
        "model": {"base_channels": BASE, "classes": 44, "depth": 4, "variant": "pytorch", "activation": "relu", "norm": "running"},
        "window": [16, 16, 8],
        "recipe": {"modality": "ct", "mri": "percentile", "window": [0.0, 1.0], "spacing": [1.0, 1.0, 1.0], "grid": None, "align": "grid"},
    }


def cases():
    """(name, network, metadata, options of export, names of the outputs and how the logits become probabilities)."""
    def pretrained(act):
        return {"config": f"[model]\nactivation = \"{act}\"\n"}

    yield "ynet", networks.build("ynet", BASE, CLASSES), None, [], ("restored", "logits"), None
    yield "unet_of_ynet", networks.build("ynet", BASE, CLASSES), None, ["--part", "unet"], ("restored",), None
    yield "classifier_of_ynet", networks.build("ynet", BASE, CLASSES), None, ["--part", "classifier"], ("logits",), None
    for act in ("relu", "elu", "prelu"):
        yield f"unet_{act}", networks.build("unet", BASE, CLASSES, act), pretrained(act), [], ("restored",), None
    yield "classifier", networks.build("classifier", BASE, CLASSES), None, [], ("logits",), None
    yield "keras_ynet", networks.build("keras-ynet", BASE, CLASSES), None, [], ("restored", "logits"), None
    yield "keras_unet", networks.build("keras-unet", BASE, CLASSES), None, [], ("restored",), None
    yield "autoencoder", networks.build("autoencoder", BASE, CLASSES), None, [], ("restored",), None
    sigmoid, softmax = torch.sigmoid, lambda x: torch.softmax(x, dim=1)
    yield "segment_binary", Segmenter(BASE, 1, 1), task("segment", "binary", 2, 1), [], ("logits", "probabilities"), sigmoid
    yield "segment_multiclass", Segmenter(BASE, 2, 4), task("segment", "multiclass", 4, 2), [], ("logits", "probabilities"), softmax
    yield "classify_binary", Answer(BASE, 1, 1), task("classify", "binary", 2, 1), [], ("logits", "probabilities"), sigmoid
    yield "classify_multilabel", Answer(BASE, 3, 14), task("classify", "multilabel", 14, 3), [], ("logits", "probabilities"), sigmoid


# Committed weights whose exports the tests know by their sums: (name in extra.safetensors, folder, part).
FROZEN = (
    ("ynet", "ynet_base2", None),
    ("ynet", "ynet_base2", "unet"),
    ("ynet", "ynet_base2", "classifier"),
    ("keras", "keras_base2", None),
    ("autoencoder", "autoencoder_base2", None),
)


def randomise(net, seed):
    """Weights that differ from their initial ones everywhere, running statistics and counts included; the same on every machine."""
    rng = numpy.random.default_rng(seed)
    state = net.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
            continue
        draw = rng.standard_normal(tuple(tensor.shape)).astype(numpy.float32)
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith(("bn1.weight", "bn.weight"))):
            draw = 1 + 0.2 * numpy.abs(draw)
        elif name.endswith("activation.weight"):
            draw = 0.25 + 0.1 * draw
        elif tensor.dim() > 1:
            draw = draw * numpy.float32(numpy.sqrt(2 / numpy.prod(tensor.shape[1:])))
        else:
            draw = 0.1 * draw
        tensor.copy_(torch.from_numpy(draw.astype(numpy.float32)))
    return net.eval()


def outputs(net, x):
    with torch.no_grad():
        found = net(x)
    found = found if isinstance(found, tuple) else (found,)
    return [f for f in found if f is not None]


def part_of(name):
    """The class that a part of a Y-Net has to load into."""
    if name == "unet_of_ynet":
        return networks.build("unet", BASE, CLASSES)
    if name == "classifier_of_ynet":
        return networks.build("classifier", BASE, CLASSES)
    return None


def distance(name, got, want):
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    assert got.shape == want.shape, (name, got.shape, want.shape)
    worst = ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()
    assert worst <= TOLERANCE, (name, worst)
    return worst


def trained(folder, run):
    """Models that the program fine-tunes itself, from official.pt: (name, fresh network, run directory, how logits become
    probabilities). Two channels where the table has two, so that the first kernel is adapted."""
    import nibabel

    affine = numpy.diag([1.0, 1.0, 1.0, 1.0])
    rng = numpy.random.default_rng(9)
    tables = {"binary": ["image,mask,split"], "multiclass": ["image_a,image_b,mask,split"], "labels": ["image,label,split"]}
    for i in range(4):
        scan, other = rng.random((2, 16, 16, 8), dtype=numpy.float32)
        mask = numpy.zeros((16, 16, 8), numpy.uint8)
        mask[4:12, 3 + i:9, 2:6], mask[0, 0, 0] = 1, 2
        scan += 0.5 * (mask == 1)
        for name, array in ((f"s{i}", scan), (f"t{i}", other), (f"m{i}", mask), (f"b{i}", (mask == 1).astype(numpy.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii")
        part = "train" if i < 2 else "validation"
        tables["binary"].append(f"s{i}.nii,b{i}.nii,{part}")
        tables["multiclass"].append(f"s{i}.nii,t{i}.nii,m{i}.nii,{part}")
        tables["labels"].append(f"s{i}.nii,{'ny'[i % 2]},{part}")
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    sigmoid, softmax = torch.sigmoid, lambda x: torch.softmax(x, dim=1)
    for kind, table, net, squash in (
        ("segment", "binary", Segmenter(BASE, 1, 1), sigmoid),
        ("segment", "multiclass", Segmenter(BASE, 2, 3), softmax),
        ("classify", "labels", Answer(BASE, 1, 1), sigmoid),
    ):
        out = folder / f"run_{table}"
        settings = ("cube.size=[16,16,8]", "train.max_steps=3", "train.batch_size=2", "train.tune='off'", "prepare.modality='mri'")
        run("finetune", kind, folder / f"{table}.csv", "--weights", OUT / "official.pt", "--out", out,
            *(word for s in settings for word in ("--set", s)))
        yield f"finetune {kind} {table}", net, out, squash


def check(semgen):
    import onnx
    import onnxruntime
    from safetensors.torch import load_file, save_file

    common.deterministic()
    sums, torch_worst, onnx_worst = {}, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run = lambda *args: subprocess.run([semgen, *map(str, args)], check=True, capture_output=True)
        for seed, (name, net, about, options, names, squash) in enumerate(cases()):
            net = randomise(net, 100 + seed)
            model = folder / f"{name}.safetensors"
            metadata = None if about is None else {"semgen": json.dumps({"task": about} if "kind" in about else about, sort_keys=True)}
            save_file(net.state_dict(), model, metadata=metadata)
            expected = part_of(name) or net
            expected.load_state_dict({k: v for k, v in net.state_dict().items() if k in expected.state_dict()}, strict=True)
            expected.eval()
            channels = next(iter(net.parameters())).shape[1]
            scans = [torch.rand(2, channels, 16, 16, 8), torch.rand(3, channels, 8, 24, 16)]
            # PyTorch: strictly into a fresh network, the same bits.
            for ending in ("pt", "safetensors"):
                out = folder / f"{name}.out.{ending}"
                run("export", model, "--out", out, *options)
                state = torch.load(out, weights_only=True)["state_dict"] if ending == "pt" else load_file(out)
                fresh = part_of(name) or next(n for c, n, *_ in cases() if c == name)
                fresh.load_state_dict(state, strict=True)
                fresh.eval()
                assert all(torch.equal(v, expected.state_dict()[k]) for k, v in fresh.state_dict().items()), name
                for x in scans:
                    for got, want in zip(outputs(fresh, x), outputs(expected, x), strict=True):
                        torch_worst = max(torch_worst, distance(name, got, want))
            # ONNX: any batch, any grid.
            out = folder / f"{name}.onnx"
            run("export", model, "--out", out, *options)
            parsed = onnx.load(out)
            onnx.checker.check_model(parsed, full_check=True)
            session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
            assert tuple(o.name for o in session.get_outputs()) == names, (name, session.get_outputs())
            for x in scans:
                want = outputs(expected, x)
                want = want + [squash(want[0])] if squash else want
                for got, w in zip(session.run(None, {"input": x.numpy()}), want, strict=True):
                    onnx_worst = max(onnx_worst, distance(name, got, w))
            print(f"{name}: {len(parsed.graph.node)} operations, {out.stat().st_size} bytes")
        # What the program has trained, back in PyTorch and in onnxruntime.
        for name, net, out, squash in trained(folder, run):
            run("export", out, "--out", folder / "task.pt")
            run("export", out, "--out", folder / "task.onnx")
            net.load_state_dict(torch.load(folder / "task.pt", weights_only=True)["state_dict"], strict=True)
            net.eval()
            own = load_file(out / "checkpoints" / "best.safetensors")
            assert all(torch.equal(v, own[k]) for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")), name
            onnx.checker.check_model(onnx.load(folder / "task.onnx"), full_check=True)
            session = onnxruntime.InferenceSession(folder / "task.onnx", providers=["CPUExecutionProvider"])
            assert [o.name for o in session.get_outputs()] == ["logits", "probabilities"], name
            channels = next(iter(net.parameters())).shape[1]
            for x in (torch.rand(2, channels, 16, 16, 8), torch.rand(1, channels, 24, 8, 16)):
                logits = outputs(net, x)[0]
                for got, want in zip(session.run(None, {"input": x.numpy()}), (logits, squash(logits)), strict=True):
                    onnx_worst = max(onnx_worst, distance(name, got, want))
            print(f"{name}: {len(own)} tensors")
        # The full width of the published networks: how many entries, and that every class takes them.
        for model, part, entries in (("ynet", None, 115), ("ynet", "unet", 106), ("ynet", "classifier", 65)):
            net = networks.build(model, 32, 44)
            save_file(net.state_dict(), folder / "wide.safetensors")
            run("export", folder / "wide.safetensors", "--out", folder / "wide.pt", *(["--part", part] if part else []))
            state = torch.load(folder / "wide.pt", weights_only=True)["state_dict"]
            networks.build(part or model, 32, 44).load_state_dict(state, strict=True)
            assert len(state) == entries, (model, part, len(state))
        # The numbers that the engine itself is held to, and the sums by which the tests know these files again.
        extra = common.load(common.HERE / "extra.safetensors")
        for model, pair, part in FROZEN:
            out = folder / "engine.onnx"
            run("export", common.HERE / pair / "W.safetensors", "--out", out, *(["--part", part] if part else []))
            x = common.load(common.HERE / pair / "E.safetensors")["input"]
            session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
            for output, got in zip(session.get_outputs(), session.run(None, {"input": x.numpy()}), strict=True):
                onnx_worst = max(onnx_worst, distance(output.name, got, extra[f"{model}.{output.name}"]))
            sums[f"{pair}/W.safetensors" + (f" --part {part}" if part else "")] = hashlib.sha256(out.read_bytes()).hexdigest()
    (OUT / "onnx.json").write_text(json.dumps(sums, indent=1) + "\n")
    print(f"PyTorch: largest difference {torch_worst:.1e}; onnxruntime {onnxruntime.__version__}: {onnx_worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("--semgen", type=pathlib.Path, default=common.HERE.parents[1] / "target" / "release" / "semgen")
    options = parser.parse_args()
    make() if options.what == "make" else check(options.semgen.resolve())


if __name__ == "__main__":
    main()
