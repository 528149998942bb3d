"""What the reference scripts share: determinism, synthetic scans, network state, files."""

import json
import pathlib

import numpy
import torch
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent


def deterministic():
    """The same numbers on every run on one machine."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def save(path, tensors, about):
    """Writes floats as f32 and integers as i64, with `about` (a dict) as JSON under the metadata key `reference`.

    One metadata key only: the order of several is not fixed, and the file must be the same on every run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        name: tensor.detach().to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous().clone()
        for name, tensor in tensors.items()
    }
    for name, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise SystemExit(f"{path.name}: {name} has values that are not finite")
    about = {**about, "torch": torch.__version__.split("+")[0]}
    save_file(stored, str(path), metadata={"reference": json.dumps(about, sort_keys=True)})
    print(f"{path.parent.name}/{path.name}: {len(stored)} tensors, {path.stat().st_size} bytes")


def load(path):
    return load_file(str(path))


def images(batch, size, seed):
    """(input, target), each f32 [batch, 1, *size] in [0, 1]: smooth blobs with fine noise, and the same distorted.

    The distortion bends the intensities (every other image is turned into a negative), hides one window under
    noise and adds noise everywhere.
    """
    rng = numpy.random.default_rng(seed)
    grid = numpy.meshgrid(*(numpy.arange(n) / n for n in size), indexing="ij")
    inputs, targets = [], []
    for index in range(batch):
        field = numpy.full(size, 0.2)
        for _ in range(6):
            centre, width, height = rng.random(3), rng.uniform(0.1, 0.3), rng.uniform(-0.3, 0.8)
            distance = sum((axis - place) ** 2 for axis, place in zip(grid, centre))
            field += height * numpy.exp(-distance / (2 * width**2))
        target = numpy.clip(field + rng.normal(0, 0.03, size), 0, 1)
        bent = target ** rng.uniform(0.5, 2.0)
        if index % 2:
            bent = 1 - bent
        side = [max(1, n // 4) for n in size]
        start = [int(rng.integers(0, n - s + 1)) for n, s in zip(size, side)]
        window = tuple(slice(a, a + s) for a, s in zip(start, side))
        bent[window] = rng.random(side)
        inputs.append(numpy.clip(bent + rng.normal(0, 0.02, size), 0, 1))
        targets.append(target)
    as_tensor = lambda arrays: torch.from_numpy(numpy.stack(arrays)[:, None].astype(numpy.float32))
    return as_tensor(inputs), as_tensor(targets)


def randomise_slopes(net, generator):
    """Gives every PReLU slopes that differ by channel; returns them by name."""
    slopes = {name: p for name, p in net.named_parameters() if name.endswith(".activation.weight")}
    with torch.no_grad():
        for slope in slopes.values():
            slope.uniform_(0.05, 0.5, generator=generator)
    return slopes


def prepare_state(net, batch, size, seed):
    """Gives a freshly built f32 network a state in which nothing is trivial.

    Batch-norm scales, shifts and running buffers leave their initial ones and zeros, so that forgetting one of
    them shows. The buffers are means over a few training forwards on other images, so that evaluation is sensible.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    momenta = [module.momentum for module in norms]
    with torch.no_grad():
        for module in norms:
            module.momentum = None  # the plain mean over all batches
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.uniform_(-0.3, 0.3, generator=generator)
        randomise_slopes(net, generator)
        net.train()
        for step in range(4):
            net(images(batch, size, seed + 1000 + step)[0])
        for module, momentum in zip(norms, momenta):
            module.momentum = momentum
            module.num_batches_tracked.zero_()


def normalised_bias(name):
    """True for a convolution bias that batch norm removes again.

    Its gradient is zero in exact arithmetic, so what arithmetic of finite precision finds there is rounding noise;
    Adam then turns that noise into steps of up to the learning rate.
    """
    return name.endswith(("conv1.bias", ".conv.bias")) and not name.startswith("final_conv")


def summary(reference, other):
    """Prints how far `other` is from `reference`, by group of tensors: the worst tensor and the median.

    Two errors of a tensor: the largest difference over the largest reference value, and the same with Euclidean
    norms. The second says more of gradients of large networks, where a few of the many values next to a kink of
    ReLU or a tie of max-pooling fall on the other side.
    """
    groups = {}
    for name, want in reference.items():
        if not want.is_floating_point() or name in ("input", "target"):
            continue
        group, _, bare = name.partition(".")
        difference = other[name] - want
        if normalised_bias(bare):
            group += " (biases before batch norm, absolute)"
            scales = (1.0, 1.0)
        else:
            if bare.endswith(("running_mean", "running_var")):
                group += " (running buffers)"
            scales = (want.abs().max().item(), want.norm().item())
        errors = (difference.abs().max().item() / max(scales[0], 1e-30), difference.norm().item() / max(scales[1], 1e-30))
        groups.setdefault(group, []).append((*errors, name))
    for group, errors in groups.items():
        errors.sort()
        norms = sorted(error[1] for error in errors)
        middle = len(errors) // 2
        print(f"  {group}: largest {errors[-1][0]:.1e} ({errors[-1][2]}), median {errors[middle][0]:.1e}; "
              f"norm: largest {norms[-1]:.1e}, median {norms[middle]:.1e}")
