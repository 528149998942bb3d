"""Do running statistics decide what `semgen demo --finetune` finds?

    python running_statistics.py DEMO        a folder that `semgen demo --finetune` wrote

Networks are measured with the running statistics of their batch norms, which follow the last steps of the training. After few steps at
a high rate they lag behind the weights, more so for a network from small random weights, which a step changes more; a comparison would
then say little about features. Here those of every segmentation with the fewest labels are estimated again, from the labelled scans in
all eight orientations with the weights as they are, and the Dice on the test part is computed before and after.
"""

import csv
import itertools
import pathlib
import sys

import nibabel
import numpy
import torch
from safetensors.torch import load_file

from exchange import Segmenter

BASE = 4
FLIPS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]


def part(folder, share, name):
    """Images in [0, 1] and masks of a part, `[n, 1, x, y, z]` and `[n, x, y, z]`; `share` of the labels, in thousandths."""
    rows = {r["id"]: r for r in csv.DictReader((folder / "segment.csv").open())}
    split = csv.DictReader((folder / f"segment.{share}.csv").open())

    def read(file):
        # To +x left, +y posterior, +z superior, as scans are prepared.
        return nibabel.as_closest_canonical(nibabel.load(folder / file)).get_fdata(dtype="f4")[::-1, ::-1].copy()

    cases = [rows[r["id"]] for r in split if r["split"] == name]
    images = numpy.stack([numpy.clip((read(r["image"]) + 1000) / 2000, 0, 1)[None] for r in cases])
    return torch.from_numpy(images), torch.from_numpy(numpy.stack([read(r["mask"]) > 0 for r in cases]))


def dice(net, images, masks):
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(x)[:, 0] > 0 for x in images.split(25)])
    return (2 * (found & masks).sum() / (found.sum() + masks.sum())).item()


def estimate(net, images, batch=4):
    """The running statistics from the weights as they are: means over the batches."""
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)):
        norm.reset_running_stats()
        norm.momentum = None
    images = torch.cat([images.flip(axes) if axes else images for axes in FLIPS])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    net.train()
    with torch.no_grad():
        for places in order.split(batch):
            net(images[places])


def main():
    demo = pathlib.Path(sys.argv[1])
    share = min(int(path.suffixes[0][1:]) for path in demo.glob("nodules/segment.*.csv"))
    (images, _), test = (part(demo / "nodules", share, name) for name in ("train", "test"))
    for init in ("pretrained", "scratch"):
        before, after = [], []
        for run in sorted(demo.glob(f"tasks/segment-{share}-{init}-*")):
            net = Segmenter(BASE, 1, 1)
            net.load_state_dict(load_file(run / "checkpoints/best.safetensors"), strict=True)
            before.append(dice(net, *test))
            estimate(net, images)
            after.append(dice(net, *test))
        for what, values in (("as they are", before), ("estimated again", after)):
            print(f"{init:10}  {what:15}  {numpy.mean(values):.3f} ± {numpy.std(values, ddof=1):.3f}  {numpy.round(values, 3)}")


if __name__ == "__main__":
    main()
