"""Writes the committed small references other than ynet_base2 (run ynet.py for that one first) and ops.

Every network here has base width 2. What is in each folder:

    unet_base2            E: U-Net with the weights of ynet_base2
    unet_elu_base2        E: the same with ELU (*)
    unet_prelu_base2      E: the same with PReLU; W holds the slopes only (*)
    classifier_base2      E: encoder and class head with the weights of ynet_base2 (*)
    keras_base2           W, E: Y-Net of the Keras variant (*)
    autoencoder_base2     W, E: autoencoder without skips; input = target (*)

(*) To keep the files small, gradients of more than 4096 elements are left out: those of the deepest convolutions,
through which the gradients kept have passed.

E is laid out as ynet.py describes, without a trace of Adam. extra.safetensors holds results with the running
statistics (evaluation mode) of the same weights and the same inputs:

    ynet.restored, ynet.logits, keras.restored, keras.logits, autoencoder.restored,
    autoencoder.features [N, 16 * base]

and, of the Y-Net in training mode, a trace of SGD (lr 0.1, momentum 0.9, weight decay 1e-4): ynet.sgd_losses
[5] and ynet.sgd_after5.<parameter> of a few parameters. Everything is computed in f64.
"""

import argparse
import pathlib

import torch

import common
import networks
from ynet import expected, make_batch

BASE, CLASSES = 2, 5
LARGEST_GRADIENT = 4096
TRACED = ("down_tr64.ops.0.conv1.weight", "up_tr64.ops.1.bn1.weight", "out_tr.final_conv.weight", "clc_out.fc1.bias")


def without_large_gradients(tensors):
    return {k: v for k, v in tensors.items() if not k.startswith("grad.") or v.numel() <= LARGEST_GRADIENT}


def evaluate(net, batch):
    """Outputs with running statistics, in f64."""
    net = net.double().eval()
    with torch.no_grad():
        return net(batch["input"].double())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ynet", type=pathlib.Path, default=common.HERE / "ynet_base2", help="folder of the Y-Net pair")
    parser.add_argument("--out", type=pathlib.Path, default=common.HERE)
    options = parser.parse_args()
    common.deterministic()
    shared = common.load(options.ynet / "W.safetensors")
    about = {"base": BASE, "classes": CLASSES, "precision": "f64"}
    extra = {}

    def from_shared(model, act="relu"):
        net = networks.build(model, BASE, CLASSES, act)
        state = net.state_dict()
        net.load_state_dict({name: shared.get(name, tensor) for name, tensor in state.items()})
        return net

    unets = (("relu", "unet_base2", 2, (8, 16, 24)), ("elu", "unet_elu_base2", 3, (16, 8, 8)),
             ("prelu", "unet_prelu_base2", 3, (8, 8, 16)))
    for seed, (act, folder, batch, size) in enumerate(unets, start=11):
        net = from_shared("unet", act)
        if act == "prelu":
            slopes = common.randomise_slopes(net, torch.Generator().manual_seed(seed))
            common.save(options.out / folder / "W.safetensors", slopes, {**about, "activation": act})
        result = expected(net, make_batch(batch, size, CLASSES, seed), steps=0, double=True)
        if act != "relu":
            result = without_large_gradients(result)
        common.save(options.out / folder / "E.safetensors", result, {**about, "activation": act})

    net = from_shared("classifier")
    result = expected(net, make_batch(3, (16, 8, 16), CLASSES, 14), steps=0, double=True)
    common.save(options.out / "classifier_base2" / "E.safetensors", without_large_gradients(result), about)

    for seed, (model, folder, size) in enumerate(
        (("keras-ynet", "keras_base2", (16, 8, 16)), ("autoencoder", "autoencoder_base2", (16, 16, 8))), start=21
    ):
        torch.manual_seed(seed)
        net = networks.build(model, BASE, CLASSES)
        common.prepare_state(net, 2, size, seed)
        common.save(options.out / folder / "W.safetensors", net.state_dict(), {**about, "model": model})
        batch = make_batch(2, size, CLASSES, seed, identity=model == "autoencoder")
        result = without_large_gradients(expected(net, batch, steps=0, double=True))
        common.save(options.out / folder / "E.safetensors", result, {**about, "model": model})
        restored, logits = evaluate(net, batch)
        name = model.split("-")[0]
        extra[f"{name}.restored"] = restored
        if logits is not None:
            extra[f"{name}.logits"] = logits
        if model == "autoencoder":
            with torch.no_grad():
                extra["autoencoder.features"] = net.features(batch["input"].double())

    pair = common.load(options.ynet / "E.safetensors")
    batch = {name: pair[name] for name in ("input", "target", "labels")}
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    trace = expected(from_shared("ynet"), batch, steps=5, double=True, optimizer=sgd)
    extra["ynet.sgd_losses"] = trace["adam_losses"]
    extra.update({f"ynet.sgd_after5.{name}": trace[f"after5.{name}"] for name in TRACED})
    extra["ynet.restored"], extra["ynet.logits"] = evaluate(from_shared("ynet"), batch)
    common.save(options.out / "extra.safetensors", extra, about)


if __name__ == "__main__":
    main()
