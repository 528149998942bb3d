"""The networks of the method, written from their description for PyTorch.

Only the reference numbers are made with these classes; the crate never runs Python.
State-dict keys are those of the exchange format:

PyTorch variant (`Unet`, `Ynet`, `Classifier`)
    <block>.ops.<0|1>.conv1.weight / .bias
    <block>.ops.<0|1>.bn1.weight / .bias / .running_mean / .running_var / .num_batches_tracked
    <block>.ops.<0|1>.activation.weight          (PReLU only: one slope per channel)
    up_tr<256|128|64>.up_conv.weight / .bias     (transposed convolution, weight [in, out, 2, 2, 2])
    out_tr.final_conv.weight / .bias
    clc_out.conv1.*, clc_out.bn1.*, clc_out.fc1.*   (class head; always ReLU, whatever the blocks use)

Keras variant (`KerasYnet`, `KerasUnet`) and autoencoder (`Autoencoder`)
    depth_<0..13>.conv.weight / .bias, depth_<0..13>.bn.* (five entries as above)
    final_conv.weight / .bias
    depth_14.conv.*, depth_14.bn.*, cls_fc.*, cls_output.*   (class head)

Channel counts follow from one base width: base 32 is the published network.
Run as a program, it checks the parameter counts at base 32 and writes ynet_keys.txt.
"""

import argparse
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).resolve().parent


def activation(kind, channels):
    """One activation layer: `relu`, `elu` (alpha 1) or `prelu` (a slope per channel, initially 0.25)."""
    if kind == "relu":
        return nn.ReLU()
    if kind == "elu":
        return nn.ELU()
    if kind == "prelu":
        return nn.PReLU(channels)
    raise ValueError(f"unknown activation {kind!r}")


def block_widths(base):
    """(in, out) of each convolution of the encoder, shallow to deep, two per level."""
    return [
        (1, base), (base, 2 * base),
        (2 * base, 2 * base), (2 * base, 4 * base),
        (4 * base, 4 * base), (4 * base, 8 * base),
        (8 * base, 8 * base), (8 * base, 16 * base),
    ]


# ---------------------------------------------------------------- PyTorch variant

class Unit(nn.Module):
    """Convolution 3x3x3, batch norm, activation."""

    def __init__(self, inputs, outputs, act):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.activation = activation(act, outputs)

    def forward(self, x):
        return self.activation(self.bn1(self.conv1(x)))


class Down(nn.Module):
    """Two units at one resolution; pooling happens outside."""

    def __init__(self, first, second, act):
        super().__init__()
        self.ops = nn.Sequential(Unit(*first, act), Unit(*second, act))

    def forward(self, x):
        return self.ops(x)


class Up(nn.Module):
    """Transposed convolution by two, then two units on (upsampled, skip)."""

    def __init__(self, deep, skip, outputs, act):
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(deep, deep, 2, stride=2)
        self.ops = nn.Sequential(Unit(deep + skip, outputs, act), Unit(outputs, outputs, act))

    def forward(self, x, skip):
        return self.ops(torch.cat((self.up_conv(x), skip), dim=1))


class Output(nn.Module):
    """Convolution 1x1x1 to one channel and sigmoid."""

    def __init__(self, inputs):
        super().__init__()
        self.final_conv = nn.Conv3d(inputs, 1, 1)

    def forward(self, x):
        return torch.sigmoid(self.final_conv(x))


class Head(nn.Module):
    """Class head: unit with ReLU, global average, linear to logits."""

    def __init__(self, inputs, outputs, classes):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.fc1 = nn.Linear(outputs, classes)

    def forward(self, x):
        return self.fc1(torch.relu(self.bn1(self.conv1(x))).mean(dim=(2, 3, 4)))


class _Torch(nn.Module):
    def _add_encoder(self, base, act):
        widths = block_widths(base)
        for level, name in enumerate(("down_tr64", "down_tr128", "down_tr256", "down_tr512")):
            self.add_module(name, Down(widths[2 * level], widths[2 * level + 1], act))

    def _add_decoder(self, base, act):
        self.up_tr256 = Up(16 * base, 8 * base, 8 * base, act)
        self.up_tr128 = Up(8 * base, 4 * base, 4 * base, act)
        self.up_tr64 = Up(4 * base, 2 * base, 2 * base, act)
        self.out_tr = Output(2 * base)

    def _add_head(self, base, classes):
        self.clc_out = Head(16 * base, 32 * base, classes)

    def encode(self, x):
        """Block outputs from shallow to deep, each before pooling."""
        maps = [self.down_tr64(x)]
        for block in (self.down_tr128, self.down_tr256, self.down_tr512):
            maps.append(block(F.max_pool3d(maps[-1], 2)))
        return maps

    def decode(self, maps):
        x = self.up_tr256(maps[3], maps[2])
        x = self.up_tr128(x, maps[1])
        return self.out_tr(self.up_tr64(x, maps[0]))


class Unet(_Torch):
    """Restoration only: (restored, None)."""

    def __init__(self, base, act="relu"):
        super().__init__()
        self._add_encoder(base, act)
        self._add_decoder(base, act)

    def forward(self, x):
        return self.decode(self.encode(x)), None


class Ynet(_Torch):
    """Restoration and classification: (restored, logits)."""

    def __init__(self, base, classes, act="relu"):
        super().__init__()
        self._add_encoder(base, act)
        self._add_decoder(base, act)
        self._add_head(base, classes)

    def forward(self, x):
        maps = self.encode(x)
        return self.decode(maps), self.clc_out(maps[3])


class Classifier(_Torch):
    """The network of phase 1, encoder and class head: (None, logits)."""

    def __init__(self, base, classes, act="relu"):
        super().__init__()
        self._add_encoder(base, act)
        self._add_head(base, classes)

    def forward(self, x):
        return None, self.clc_out(self.encode(x)[3])


# ------------------------------------------------------- Keras variant, autoencoder

class KerasUnit(nn.Module):
    """Convolution 3x3x3, batch norm with the Keras constants, ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)
        # Keras draws weights from the Glorot uniform distribution and starts biases at zero.
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


def _glorot(layer):
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class _Keras(nn.Module):
    def _add_body(self, base, skips):
        self.skips = skips
        widths = block_widths(base)
        for level in (8, 4, 2):
            # The map coming up is twice as wide as the level it is joined to.
            widths += [((3 if skips else 2) * level * base, level * base), (level * base, level * base)]
        for number, width in enumerate(widths):
            self.add_module(f"depth_{number}", KerasUnit(*width))
        self.final_conv = _glorot(nn.Conv3d(2 * base, 1, 1))

    def _depth(self, number, x):
        return getattr(self, f"depth_{number}")(x)

    def encode(self, x):
        maps = []
        for level in range(4):
            x = self._depth(2 * level + 1, self._depth(2 * level, x))
            maps.append(x)
            x = F.max_pool3d(x, 2) if level < 3 else x
        return maps

    def features(self, x):
        """Global average of the deepest map: the description of a scan used to find its neighbours."""
        return self.encode(x)[3].mean(dim=(2, 3, 4))

    def decode(self, maps):
        x = maps[3]
        for step, skip in enumerate((maps[2], maps[1], maps[0])):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            if self.skips:
                x = torch.cat((x, skip), dim=1)
            x = self._depth(9 + 2 * step, self._depth(8 + 2 * step, x))
        return torch.sigmoid(self.final_conv(x))


class KerasUnet(_Keras):
    """U-Net of the Keras variant: (restored, None)."""

    def __init__(self, base):
        super().__init__()
        self._add_body(base, skips=True)

    def forward(self, x):
        return self.decode(self.encode(x)), None


class KerasYnet(_Keras):
    """Y-Net of the Keras variant: (restored, logits)."""

    def __init__(self, base, classes):
        super().__init__()
        self._add_body(base, skips=True)
        self.depth_14 = KerasUnit(16 * base, 16 * base)
        self.cls_fc = _glorot(nn.Linear(16 * base, 32 * base))
        self.cls_output = _glorot(nn.Linear(32 * base, classes))

    def forward(self, x):
        maps = self.encode(x)
        hidden = torch.relu(self.cls_fc(self.depth_14(maps[3]).mean(dim=(2, 3, 4))))
        return self.decode(maps), self.cls_output(hidden)


class Autoencoder(_Keras):
    """The autoencoder of self-discovery, without skip connections: (restored, None)."""

    def __init__(self, base):
        super().__init__()
        self._add_body(base, skips=False)

    def forward(self, x):
        return self.decode(self.encode(x)), None


MODELS = ("ynet", "unet", "classifier", "keras-ynet", "keras-unet", "autoencoder")


def build(model, base, classes, act="relu"):
    """The network called `model` (one of MODELS); `act` concerns the PyTorch variant only."""
    if model not in ("ynet", "unet", "classifier") and act != "relu":
        raise ValueError(f"{model} has ReLU only, found activation {act!r}")
    if model == "ynet":
        return Ynet(base, classes, act)
    if model == "unet":
        return Unet(base, act)
    if model == "classifier":
        return Classifier(base, classes, act)
    if model == "keras-ynet":
        return KerasYnet(base, classes)
    if model == "keras-unet":
        return KerasUnet(base)
    if model == "autoencoder":
        return Autoencoder(base)
    raise ValueError(f"unknown model {model!r}, expected one of {MODELS}")


# ----------------------------------------------------------------------- the check

# Trainable parameters, state-dict entries, floats with batch-norm buffers (None: not stated) at base 32, 44 classes.
COUNTS = {
    "unet": (19_073_665, 106, 19_078_337),
    "ynet": (33_277_613, 115, 33_284_333),
    "classifier": (21_231_724, 65, 21_236_652),
    "keras-unet": (16_320_257, None, None),
    "keras-ynet": (23_970_093, None, None),
    "autoencoder": (13_997_825, None, None),
}


def main():
    parser = argparse.ArgumentParser(description="check the networks and write the list of Y-Net keys")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder for ynet_keys.txt")
    out = parser.parse_args().out
    with torch.device("meta"):
        nets = {name: build(name, 32, 44) for name in MODELS}
        prelu = build("unet", 32, 44, "prelu")
    for name, (parameters, entries, floats) in COUNTS.items():
        state = nets[name].state_dict()
        found = (
            sum(p.numel() for p in nets[name].parameters()),
            len(state),
            sum(t.numel() for t in state.values() if t.is_floating_point()),
        )
        for what, want, got in zip(("parameters", "entries", "floats"), (parameters, entries, floats), found):
            if want is not None and want != got:
                raise SystemExit(f"{name}: expected {want} {what}, found {got}")
        print(f"{name}: {found[0]} parameters, {found[1]} entries, {found[2]} floats")
    assert prelu.state_dict()["down_tr64.ops.1.activation.weight"].shape == (64,)
    lines = []
    for key, tensor in nets["ynet"].state_dict().items():
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        lines.append(f"{key} {kind} {list(tensor.shape)}\n".replace(", ", ","))
    (out / "ynet_keys.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
