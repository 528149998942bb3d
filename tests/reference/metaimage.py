"""MetaImage files that ITK wrote, and what it reads from them: `python metaimage.py` (SimpleITK, numpy).

One image of 2x3x4 voxels, turned about two axes and stored in five ways. `expected.json` has the affine that maps
voxels to millimetres right, anterior, superior (ITK's own is left, posterior, superior) and some values by index.
"""

import json
import math
import pathlib

import numpy as np
import SimpleITK as sitk

out = pathlib.Path(__file__).parent / "metaimage"
out.mkdir(exist_ok=True)
c, s = math.cos(0.3), math.sin(0.3)
values = (np.arange(24).reshape(4, 3, 2) * 37 % 101 - 50)
expected = {}
for name, dtype, compressed in [
    ("short.mhd", np.int16, False),
    ("packed.mhd", np.int32, True),
    ("local.mha", np.float32, False),
    ("packed_local.mha", np.float64, True),
    ("byte.mha", np.int8, True),
]:
    image = sitk.GetImageFromArray(values.astype(dtype))
    image.SetOrigin((10.5, -20.25, 30.0))
    image.SetSpacing((0.7, 1.5, 2.25))
    image.SetDirection((c, -s, 0, 0, 0, -1, s, c, 0))
    sitk.WriteImage(image, str(out / name), compressed)
    read = sitk.ReadImage(str(out / name))
    corner = [read.TransformIndexToPhysicalPoint(p) for p in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    lps = np.eye(4)
    lps[:3, 3] = corner[0]
    for axis in range(3):
        lps[:3, axis] = np.subtract(corner[axis + 1], corner[0])
    expected[name] = {
        "affine": (np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps).tolist(),
        "size": list(read.GetSize()),
        "values": [[list(p), float(read[p])] for p in [(0, 0, 0), (1, 0, 0), (0, 2, 1), (1, 2, 3), (1, 1, 2)]],
    }
(out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
