"""Writes a pair of files: the weights of a network, and what PyTorch makes of them.

    python ynet.py --base 2 --classes 5 --batch 2 --size 16 16 8 --double --out ynet_base2

W.safetensors is the state dict. E.safetensors holds
    input, target [N, 1, A, B, C] and labels [N];
    restored, logits, loss, loss_rec, loss_cls: one forward pass in training mode (statistics of the batch), with
        loss = loss_rec + 0.01 * loss_cls, mean squared error and mean cross-entropy;
    grad.<parameter>: the gradient of loss, for every parameter;
    adam_losses [K]: the loss before each of K steps of Adam (lr 1e-3, betas 0.9 and 0.999, eps 1e-8, no decay) on
        this batch, starting at W;
    after<K>.<parameter or running buffer>: the state after those K steps.
What a network has not (logits of a U-Net, restored of a classifier) is left out; loss is then the loss it has.
Without --double everything is computed in f32; with it, in f64 from the same f32 weights and images, and rounded
to f32 when stored.
"""

import argparse
import copy
import pathlib

import torch
from torch.nn import functional as F

import common
import networks

CLASS_WEIGHT = 0.01


def losses(net, batch):
    """Forward pass and losses: (dict for E, loss)."""
    restored, logits = net(batch["input"])
    found = {}
    if restored is not None:
        found["restored"] = restored
        found["loss_rec"] = F.mse_loss(restored, batch["target"])
    if logits is not None:
        found["logits"] = logits
        found["loss_cls"] = F.cross_entropy(logits, batch["labels"])
    if restored is None:
        found["loss"] = found["loss_cls"]
    elif logits is None:
        found["loss"] = found["loss_rec"]
    else:
        found["loss"] = found["loss_rec"] + CLASS_WEIGHT * found["loss_cls"]
    return found, found["loss"]


def make_batch(batch, size, classes, seed, identity=False):
    """Inputs for E: the distorted images, the images, and labels that differ within the batch."""
    inputs, targets = common.images(batch, size, seed)
    labels = (torch.arange(batch) * 3 + 1) % classes
    return {"input": targets.clone() if identity else inputs, "target": targets, "labels": labels}


def expected(net, batch, steps, double, optimizer=None):
    """Everything in E for `net` (not changed) on `batch`; `optimizer` makes one from parameters, Adam by default."""
    net = copy.deepcopy(net).train()
    work = dict(batch)
    if double:
        net.double()
        work["input"], work["target"] = batch["input"].double(), batch["target"].double()
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8))
    stepper = make(net.parameters())
    result, before_steps = dict(batch), []
    for step in range(max(steps, 1)):
        stepper.zero_grad()
        found, loss = losses(net, work)
        loss.backward()
        if step == 0:
            result.update({name: value.detach().clone() for name, value in found.items()})
            result.update({f"grad.{name}": p.grad.clone() for name, p in net.named_parameters()})
        if steps:
            before_steps.append(loss.detach())
            stepper.step()
    if steps:
        result["adam_losses"] = torch.stack(before_steps)
        for name, tensor in net.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                result[f"after{steps}.{name}"] = tensor.clone()
    if "logits" not in result:
        del result["labels"]
    if "restored" not in result:
        del result["target"]
    return result


def as_f32(tensors):
    return {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=networks.MODELS, default="ynet")
    parser.add_argument("--activation", choices=("relu", "elu", "prelu"), default="relu")
    parser.add_argument("--base", type=int, default=2, help="channels of the first convolution; 32 is the published net")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=(16, 16, 8), help="each divisible by 8")
    parser.add_argument("--steps", type=int, default=5, help="steps of Adam; 0 leaves the trace out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=pathlib.Path, help="use these weights (safetensors) in place of random ones")
    parser.add_argument("--double", action="store_true", help="compute in f64")
    parser.add_argument("--compare", action="store_true", help="also compute in the other precision; print the distance")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for W.safetensors and E.safetensors")
    options = parser.parse_args()
    if any(n % 8 or n <= 0 for n in options.size):
        parser.error(f"--size {options.size}: each must be a positive multiple of 8")

    common.deterministic()
    torch.manual_seed(options.seed)
    size = tuple(options.size)
    net = networks.build(options.model, options.base, options.classes, options.activation)
    if options.weights:
        net.load_state_dict(common.load(options.weights))
    else:
        common.prepare_state(net, options.batch, size, options.seed)
    about = {k: str(v) for k, v in vars(options).items() if k not in ("out", "compare", "weights")}
    common.save(options.out / "W.safetensors", net.state_dict(), about)
    batch = make_batch(options.batch, size, options.classes, options.seed, identity=options.model == "autoencoder")
    result = expected(net, batch, options.steps, options.double)
    common.save(options.out / "E.safetensors", result, about)
    if options.compare:
        other = expected(net, batch, options.steps, not options.double)
        pair = (as_f32(result), as_f32(other))
        print("f32 against f64 (largest difference over largest value of each tensor):")
        common.summary(*(pair if options.double else reversed(pair)))


if __name__ == "__main__":
    main()
