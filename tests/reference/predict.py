"""Whether answers of `semgen predict` lie on their scans, by nibabel: python predict.py OUT SCAN..."""
import sys
from pathlib import Path

import nibabel as nib
import numpy as np


def stem(path):
    name = Path(path).name
    return next(name[: -len(e)] for e in (".nii.gz", ".nii") if name.endswith(e))


def main(out, scans):
    for path in scans:
        scan = nib.load(path)
        labels = nib.load(Path(out) / f"{stem(path)}.nii.gz")
        assert labels.shape == scan.shape[:3], (path, labels.shape, scan.shape)
        assert labels.affine.tobytes() == scan.affine.tobytes(), (path, labels.affine - scan.affine)
        for name in ("get_sform", "get_qform"):
            ours, theirs = (getattr(i, name)(coded=True) for i in (labels, scan))
            assert ours[1] == theirs[1], (path, name, ours[1], theirs[1])
            assert (ours[0] is None and theirs[0] is None) or ours[0].tobytes() == theirs[0].tobytes(), (path, name)
        assert labels.header.get_zooms() == scan.header.get_zooms()[:3], path
        data = np.asarray(labels.dataobj)
        assert np.issubdtype(data.dtype, np.integer), (path, data.dtype)
        values, counts = np.unique(data, return_counts=True)
        probabilities = Path(out) / f"{stem(path)}_probabilities.nii.gz"
        if probabilities.exists():
            p = nib.load(probabilities)
            assert p.affine.tobytes() == scan.affine.tobytes() and p.shape[:3] == labels.shape, path
            p = p.get_fdata(dtype=np.float32)
            if p.ndim == 4:
                assert np.abs(p.sum(-1) - 1).max() < 1e-4, path
                order = np.argmax(p, -1)
            else:
                order = (p > 0.5).astype(int)
            # Each label value belongs to one class.
            pairs = np.unique(np.stack([order.ravel(), data.ravel()]), axis=1)
            assert pairs.shape[1] == len(values), (path, pairs)
        print(f"{path}: shape {labels.shape} and affine bit-equal, {data.dtype}, " + ", ".join(f"{v}: {c}" for v, c in zip(values, counts)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
