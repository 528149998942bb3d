"""Writes ops.safetensors and ops.json: small cases of single operations, computed by PyTorch in f64, stored in f32.

Each entry of ops.json names a case, its operation and settings, and its tensors. A tensor NAME of case CASE is
stored as CASE.NAME:

    x, w, b     input, weight, bias (what of these an operation has)
    y           output
    r           cotangent: the gradients are those of sum(y * r); where there is no r, those of the scalar y
    dx, dw, db  gradients

Inputs are rounded to f32 before anything is computed from them. Layouts are PyTorch's: N, C, D, H, W; convolution
weights [out, in, kd, kh, kw], transposed convolution weights [in, out, kd, kh, kw], linear weights [out, in].
"""

import argparse
import itertools
import json
import pathlib

import torch
from torch.nn import functional as F

import common

CASES, TENSORS = [], {}


class Case:
    """One case: tensors are drawn and stored, settings noted, and the case recorded by `finish`."""

    def __init__(self, name, op, **settings):
        assert all(case["name"] != name for case in CASES), name
        self.name, self.entry, self.tensors = name, {"name": name, "op": op, **settings}, {}
        # The seed depends on the place in the list alone.
        self.generator = torch.Generator().manual_seed(7000 + len(CASES))

    def put(self, name, tensor, grad=False):
        """Stores an input after rounding it to f32 and returns it in f64."""
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32).to(torch.float64)
        self.tensors[name] = tensor.clone()
        return tensor.requires_grad_(grad)

    def normal(self, name, *shape, scale=1.0, offset=0.0):
        """A normally distributed input that gets a gradient."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.put(name, drawn * scale + offset, grad=True)

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def finish(self, y=None, cotangent=True, **inputs):
        """Stores the output and, for inputs given as keywords, their gradients; then records the case."""
        if y is not None:
            self.tensors["y"] = y.detach()
            if cotangent:
                r = torch.randn(y.shape, generator=self.generator, dtype=torch.float64)
                (y * self.put("r", r)).sum().backward()
            else:
                y.backward()
        self.tensors.update({f"d{name}": tensor.grad for name, tensor in inputs.items()})
        self.entry["tensors"] = sorted(self.tensors)
        CASES.append(self.entry)
        TENSORS.update({f"{self.name}.{name}": tensor for name, tensor in self.tensors.items()})


def text(values):
    return "".join(str(v) for v in values)


# ------------------------------------------------------------------ convolution

KERNELS = ((1, 1, 1), (3, 3, 3), (2, 3, 1), (5, 1, 3))
STRIDES = ((1, 1, 1), (2, 2, 2), (1, 2, 1), (2, 1, 3))
PADDINGS = ((0, 0, 0), (1, 1, 1), (2, 0, 1))


def conv(kernel, stride, padding, inputs, outputs, batch, size, bias):
    name = f"conv3d_k{text(kernel)}_s{text(stride)}_p{text(padding)}_{inputs}to{outputs}_n{batch}_{'x'.join(map(str, size))}"
    case = Case(name, "conv3d", kernel=kernel, stride=stride, padding=padding, bias=bias)
    x, w = case.normal("x", batch, inputs, *size), case.normal("w", outputs, inputs, *kernel, scale=0.3)
    b = case.normal("b", outputs) if bias else None
    grads = {"x": x, "w": w, "b": b} if bias else {"x": x, "w": w}
    case.finish(F.conv3d(x, w, b, stride=stride, padding=padding), **grads)


def convolutions():
    # Every pair of kernel and stride, kernel and padding, stride and padding; channels, batch, bias go round.
    channels = itertools.cycle(((1, 3), (3, 4), (4, 1), (3, 8), (8, 3), (1, 4), (4, 4)))
    sizes = itertools.cycle(((5, 4, 5), (6, 5, 3), (7, 3, 4)))
    for number, (k, s) in enumerate(itertools.product(range(4), range(4))):
        bias = (number + number // 4) % 2 == 0
        conv(KERNELS[k], STRIDES[s], PADDINGS[(k + s) % 3], *next(channels), 1 + number % 3, next(sizes), bias)
    one, three = (1, 1, 1), (3, 3, 3)
    conv(three, one, one, 1, 8, 2, (4, 4, 8), True)
    conv(three, one, one, 8, 8, 1, (4, 4, 2), True)
    conv(three, one, one, 3, 4, 3, (1, 5, 3), True)
    conv(three, one, one, 4, 3, 2, (1, 1, 1), True)
    conv(three, one, one, 5, 7, 1, (3, 5, 7), True)
    conv(one, one, (0, 0, 0), 8, 1, 2, (3, 5, 4), True)
    # Two dimensions are depth 1 with kernels of depth 1.
    conv((1, 3, 3), one, (0, 1, 1), 3, 4, 2, (1, 7, 5), False)
    conv((1, 3, 3), (1, 2, 2), (0, 1, 1), 4, 3, 1, (1, 8, 8), False)
    conv((1, 7, 7), (1, 2, 2), (0, 3, 3), 1, 4, 1, (1, 10, 12), False)
    conv(one, (1, 2, 2), (0, 0, 0), 4, 8, 2, (1, 6, 4), False)


def transposed(kernel, stride, padding, inputs, outputs, batch, size, bias=True):
    name = f"conv_transpose3d_k{text(kernel)}_s{text(stride)}_p{text(padding)}_{inputs}to{outputs}_n{batch}"
    case = Case(name, "conv_transpose3d", kernel=kernel, stride=stride, padding=padding, output_padding=(0, 0, 0), bias=bias)
    x, w = case.normal("x", batch, inputs, *size), case.normal("w", inputs, outputs, *kernel, scale=0.3)
    b = case.normal("b", outputs) if bias else None
    grads = {"x": x, "w": w, "b": b} if bias else {"x": x, "w": w}
    case.finish(F.conv_transpose3d(x, w, b, stride=stride, padding=padding), **grads)


def transposed_convolutions():
    two, three, none, one = (2, 2, 2), (3, 3, 3), (0, 0, 0), (1, 1, 1)
    transposed(two, two, none, 8, 8, 1, (2, 1, 2))
    transposed(two, two, none, 3, 4, 2, (3, 2, 1))
    transposed(two, two, none, 4, 1, 3, (1, 3, 2), bias=False)
    transposed(three, two, one, 3, 4, 2, (3, 2, 4))
    transposed(three, two, one, 1, 3, 1, (2, 4, 3))
    transposed((2, 3, 1), (1, 2, 1), none, 4, 3, 2, (3, 2, 4))
    transposed((2, 3, 1), (1, 2, 1), none, 3, 8, 1, (2, 3, 3))


# ------------------------------------------------------------- pooling, resizing

def pooling():
    def pool(name, op, function, x_of, **settings):
        case = Case(name, op, **settings)
        x = x_of(case)
        case.finish(function(x), x=x)

    def maximum(name, kernel, stride, padding, shape, ties=False):
        # Few different values: many windows with several equal maxima, the first of which gets the gradient.
        draw = (lambda c: c.put("x", (c.uniform(*shape) * 3).floor(), grad=True)) if ties else (lambda c: c.normal("x", *shape))
        pool(name, "max_pool3d", lambda x: F.max_pool3d(x, kernel, stride, padding), draw,
             kernel=kernel, stride=stride, padding=padding)

    two, three, none, one = (2, 2, 2), (3, 3, 3), (0, 0, 0), (1, 1, 1)
    maximum("max_pool3d_k2_s2", two, two, none, (2, 3, 4, 6, 2))
    maximum("max_pool3d_k2_s2_odd", two, two, none, (1, 4, 5, 3, 7))
    maximum("max_pool3d_k2_s2_ties", two, two, none, (2, 3, 4, 4, 6), ties=True)
    maximum("max_pool3d_k3_s2_p1", three, two, one, (2, 3, 5, 4, 6))
    maximum("max_pool3d_k3_s2_p1_ties", three, two, one, (1, 4, 6, 5, 4), ties=True)
    maximum("max_pool3d_2d", (1, 3, 3), (1, 2, 2), (0, 1, 1), (2, 3, 1, 6, 7))
    # All inputs negative: padding must never win.
    pool("max_pool3d_k3_s2_p1_negative", "max_pool3d", lambda x: F.max_pool3d(x, three, two, one),
         lambda c: c.put("x", -5 - c.uniform(1, 3, 4, 3, 5), grad=True), kernel=three, stride=two, padding=one)
    for kernel, shape in ((two, (2, 3, 4, 2, 6)), ((2, 1, 3), (1, 4, 5, 3, 6))):
        pool(f"avg_pool3d_k{text(kernel)}", "avg_pool3d", lambda x: F.avg_pool3d(x, kernel, kernel),
             lambda c: c.normal("x", *shape), kernel=kernel, stride=kernel, padding=none)
    for shape in ((2, 3, 4, 2, 5), (3, 8, 1, 1, 1), (1, 5, 8, 8, 4)):
        pool(f"global_avg_{'x'.join(map(str, shape))}", "adaptive_avg_pool3d",
             lambda x: F.adaptive_avg_pool3d(x, 1), lambda c: c.normal("x", *shape), output=one)
    for shape in ((2, 3, 2, 1, 3), (1, 8, 3, 2, 2)):
        pool(f"nearest_x2_{'x'.join(map(str, shape))}", "interpolate_nearest",
             lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), lambda c: c.normal("x", *shape),
             output=tuple(2 * n for n in shape[2:]))
    for shape, output in (((2, 3, 3, 4, 2), (5, 9, 7)), ((1, 2, 7, 8, 5), (3, 5, 4)), ((2, 1, 5, 6, 7), (9, 3, 11)),
                          ((1, 4, 1, 3, 2), (1, 6, 4)), ((1, 3, 1, 5, 4), (4, 5, 2))):
        pool(f"trilinear_{'x'.join(map(str, shape[2:]))}_to_{'x'.join(map(str, output))}", "interpolate_trilinear",
             lambda x: F.interpolate(x, size=output, mode="trilinear", align_corners=False),
             lambda c: c.normal("x", *shape), output=output, align_corners=False)


# ------------------------------------------------------------------- batch norm

def batch_norms():
    def norm(name, shape, training, eps=1e-5, momentum=0.1, scale=1.0, offset=0.0):
        case = Case(name, "batch_norm", training=training, eps=eps, momentum=momentum)
        x = case.normal("x", *shape, scale=scale, offset=offset)
        w, b = case.normal("w", shape[1], scale=0.3, offset=1.0), case.normal("b", shape[1])
        mean = case.put("running_mean", torch.randn(shape[1], generator=case.generator, dtype=torch.float64))
        var = case.put("running_var", 0.5 + case.uniform(shape[1]))
        y = F.batch_norm(x, mean, var, w, b, training, momentum, eps)
        if training:
            case.tensors.update({"running_mean_after": mean.clone(), "running_var_after": var.clone()})
        case.finish(y, x=x, w=w, b=b)

    norm("batch_norm_train", (3, 4, 3, 2, 4), True)
    norm("batch_norm_train_keras", (2, 3, 4, 3, 2), True, eps=1e-3, momentum=0.01)
    norm("batch_norm_train_one_image", (1, 8, 2, 3, 5), True)
    norm("batch_norm_train_few_values", (3, 3, 1, 1, 1), True)
    # Mean far from zero: the variance must not be computed as a difference of large sums.
    norm("batch_norm_train_offset", (2, 3, 4, 4, 4), True, offset=30.0)
    norm("batch_norm_train_small_variance", (2, 3, 4, 4, 2), True, scale=2e-3)
    norm("batch_norm_train_2d", (3, 4, 1, 5, 4), True)
    norm("batch_norm_eval", (2, 4, 3, 2, 5), False)
    norm("batch_norm_eval_keras", (1, 3, 2, 4, 3), False, eps=1e-3, momentum=0.01)


# ------------------------------------------------------------ elementwise, linear

def elementwise():
    shape = (2, 3, 3, 2, 5)
    special = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 20.0, -20.0, 80.0, -80.0], dtype=torch.float64)
    for name, function in (("relu", F.relu), ("elu", F.elu), ("sigmoid", torch.sigmoid)):
        case = Case(name, name)
        x = case.normal("x", *shape, scale=2.0)
        case.finish(function(x), x=x)
        case = Case(f"{name}_special", name)
        x = case.put("x", special.reshape(1, 2, 1, 2, 2), grad=True)
        case.finish(function(x), x=x)
    for channels, batch in ((3, 2), (8, 1), (1, 3)):
        case = Case(f"prelu_{channels}", "prelu")
        x, w = case.normal("x", batch, channels, 3, 2, 5), case.normal("w", channels, scale=0.2, offset=0.25)
        case.finish(F.prelu(x, w), x=x, w=w)
    for batch, inputs, outputs, bias in ((1, 8, 3, True), (3, 5, 7, True), (2, 64, 44, True), (4, 6, 1, False)):
        case = Case(f"linear_{batch}x{inputs}to{outputs}", "linear", bias=bias)
        x, w = case.normal("x", batch, inputs), case.normal("w", outputs, inputs, scale=0.3)
        b = case.normal("b", outputs) if bias else None
        case.finish(F.linear(x, w, b), **({"x": x, "w": w, "b": b} if bias else {"x": x, "w": w}))


# ------------------------------------------------------------------------ losses

def soft_dice(p, target):
    """1 - (2 * sum(p * g) + 1) / (sum(p) + sum(g) + 1), sums over the whole batch."""
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def losses():
    shape = (2, 1, 3, 4, 5)
    for name, function in (("mse", F.mse_loss), ("l1", F.l1_loss)):
        case = Case(name, name)
        x = case.put("x", case.uniform(*shape), grad=True)
        target = case.uniform(*shape)
        target[0, 0, 0, 0] = x.detach()[0, 0, 0, 0]  # equal elements: gradient 0
        case.finish(function(x, case.put("target", target)), cotangent=False, x=x)
    for name, scale in (("bce_with_logits", 2.0), ("bce_with_logits_large", 60.0)):
        case = Case(name, "bce_with_logits")
        x = case.normal("x", 3, 14, scale=scale)
        target = case.put("target", (case.uniform(3, 14) < 0.4).double())
        case.finish(F.binary_cross_entropy_with_logits(x, target), cotangent=False, x=x)
    case = Case("bce_with_logits_soft_targets", "bce_with_logits")
    x = case.normal("x", *shape)
    case.finish(F.binary_cross_entropy_with_logits(x, case.put("target", case.uniform(*shape))), cotangent=False, x=x)
    for batch, classes, scale in ((4, 5, 2.0), (1, 44, 1.0), (3, 44, 100.0), (2, 2, 0.0)):
        case = Case(f"cross_entropy_{batch}x{classes}", "cross_entropy")
        x = case.normal("x", batch, classes, scale=scale)
        labels = case.put("labels", torch.randint(classes, (batch,), generator=case.generator))
        case.finish(F.cross_entropy(x, labels), cotangent=False, x=x)
    for name, probability in (("soft_dice", 0.3), ("soft_dice_empty", 0.0), ("soft_dice_full", 1.0)):
        case = Case(name, "soft_dice")
        p = case.put("x", case.uniform(*shape), grad=True)
        target = case.put("target", (case.uniform(*shape) < probability).double())
        case.finish(soft_dice(p, target), cotangent=False, x=p)
        case = Case(f"{name}_logits", "soft_dice_logits")
        x = case.normal("x", *shape, scale=2.0)
        target = case.put("target", (case.uniform(*shape) < probability).double())
        case.finish(soft_dice(torch.sigmoid(x), target), cotangent=False, x=x)


# -------------------------------------------------------------------- optimisers

def optimisers():
    """p0 [n], g [5, n] (the gradient at each step, fixed beforehand), p [5, n] (after each step), final state."""
    size, steps = 37, 5
    for name, op, make, state, settings in (
        ("sgd", "sgd", torch.optim.SGD, (), dict(lr=0.1, momentum=0.0, weight_decay=0.0)),
        ("sgd_momentum", "sgd", torch.optim.SGD, ("momentum_buffer",), dict(lr=0.1, momentum=0.9, weight_decay=0.0)),
        ("sgd_momentum_decay", "sgd", torch.optim.SGD, ("momentum_buffer",), dict(lr=0.1, momentum=0.9, weight_decay=0.05)),
        ("adam", "adam", torch.optim.Adam, ("exp_avg", "exp_avg_sq"), dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)),
        ("adam_eps", "adam", torch.optim.Adam, ("exp_avg", "exp_avg_sq"), dict(lr=0.02, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.0)),
        ("adamw", "adamw", torch.optim.AdamW, ("exp_avg", "exp_avg_sq"), dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)),
        ("adamw_strong", "adamw", torch.optim.AdamW, ("exp_avg", "exp_avg_sq"), dict(lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)),
    ):
        case = Case(f"optimiser_{name}", op, steps=steps, **settings)
        p = torch.nn.Parameter(case.normal("p0", size).detach().clone())
        # Slopes of a bowl with noise, over many orders of magnitude, some exactly zero.
        magnitude = 10.0 ** (torch.arange(size) % 9 - 6).double()
        noise = torch.randn((steps, size), generator=case.generator, dtype=torch.float64)
        slope = (p.detach() * 0.8 ** torch.arange(steps).double()[:, None] + 0.3 * noise) * magnitude
        slope[:, 5] = 0
        slope[1:, 6] = 0
        gradients, path = case.put("g", slope), []
        stepper = make([p], **settings)
        for gradient in gradients:
            p.grad = gradient.clone()
            stepper.step()
            path.append(p.detach().clone())
        case.tensors["p"] = torch.stack(path)
        for key in state:
            case.tensors[key] = stepper.state[p][key].clone()
        case.finish()


def clipping():
    """g0..g2 and what is left of them (c0..c2) after clipping their common norm; y is that norm."""
    for name, scale, maximum in (("clip_above", 3.0, 1.0), ("clip_below", 0.05, 10.0), ("clip_zero", 0.0, 1.0)):
        case = Case(name, "clip_grad_norm", max_norm=maximum)
        parameters = []
        for index, shape in enumerate(((4, 3, 2), (7,), (1,))):
            gradient = case.normal(f"g{index}", *shape, scale=scale).detach()
            parameters.append(torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)))
            parameters[-1].grad = gradient.clone()
        case.tensors["y"] = torch.nn.utils.clip_grad_norm_(parameters, maximum)
        case.tensors.update({f"c{index}": p.grad for index, p in enumerate(parameters)})
        case.finish()


# ----------------------------------------------------------------- classes of voxels

def class_dice(p, labels, first):
    """The mean over the classes from `first` on of soft_dice, over the whole batch."""
    masks = F.one_hot(labels[:, 0], p.shape[1]).movedim(-1, 1).double()
    return torch.stack([soft_dice(p[:, c], masks[:, c]) for c in range(first, p.shape[1])]).mean()


def classes():
    """labels [N, 1, D, H, W]; largest: the first largest of the classes of each voxel, in the same shape."""
    def scores(name, op, scale, outputs=5, **settings):
        case = Case(name, op, **settings)
        shape = (2, outputs, 2, 3, 4)
        x = case.normal("x", *shape, scale=scale)
        return case, x, torch.randint(outputs, (2, 1, 2, 3, 4), generator=case.generator)

    for name, scale in (("softmax", 2.0), ("softmax_large", 30.0)):
        case, x, _ = scores(name, "softmax", scale)
        case.tensors["largest"] = x.argmax(dim=1, keepdim=True)
        case.finish(torch.softmax(x, dim=1), x=x)
    for first in (0, 1):
        case, x, labels = scores(f"class_dice_from_{first}", "class_dice", 2.0, first=first)
        if first == 1:
            labels[labels == 3] = 0  # a class without a voxel
        case.finish(class_dice(torch.softmax(x, dim=1), case.put("labels", labels), first), cotangent=False, x=x)
    case, x, labels = scores("voxel_cross_entropy", "voxel_cross_entropy", 2.0)
    case.finish(F.cross_entropy(x, case.put("labels", labels)[:, 0]), cotangent=False, x=x)
    case, x, labels = scores("voxel_cross_entropy_weighted", "voxel_cross_entropy", 2.0, outputs=3)
    weights = case.put("weights", 3.0 * case.uniform(3))
    # The mean over voxels, not over weights.
    each = F.cross_entropy(x, case.put("labels", labels)[:, 0], weight=weights, reduction="none")
    case.finish(each.mean(), cotangent=False, x=x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=common.HERE)
    out = parser.parse_args().out
    common.deterministic()
    for make in (convolutions, transposed_convolutions, pooling, batch_norms, elementwise, losses, optimisers, clipping, classes):
        make()
    common.save(out / "ops.safetensors", TENSORS, {"precision": "f64"})
    lines = ",\n".join(json.dumps(case) for case in CASES)
    (out / "ops.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(CASES)} cases")


if __name__ == "__main__":
    main()
