"""Reference numbers of the tests in src/data/resize.rs.

Needs numpy, scipy and scikit-image; prints Rust literals:
    python3 tests/reference/resize.py
scikit-image composes the same rule from scipy.ndimage: gaussian_filter(sigma = (f - 1) / 2,
truncate = 4, mode "mirror") and then zoom(order = 1, grid_mode = True, mode "mirror").
"""

import numpy as np
import scipy
import skimage
from skimage.transform import resize

CASES = [
    ((12, 9, 10), (3, 4, 5)),  # all axes shrink, with a filter
    ((3, 2, 4), (4, 5, 4)),  # two axes grow, one stays
    ((16, 3, 1), (2, 7, 1)),  # the filter is wider than the axis; a single slice
    ((15, 2, 1), (12, 2, 1)),  # f = 1.25: sigma 0.125, radius 1
    ((79, 1, 2), (64, 1, 2)),  # largest crop window: sigma 0.117, radius 0
]


def pattern(size):
    """The same closed form as `pattern` in the Rust test."""
    x, y, z = np.indices(size)
    return ((x * 37 + y * 101 + z * 29 + x * y * 7 + y * z * 3) % 97) / 96.0


print(f"// numpy {np.__version__}, scipy {scipy.__version__}, scikit-image {skimage.__version__}")
for size, to in CASES:
    out = resize(pattern(size), to, order=1, mode="reflect", anti_aliasing=True, clip=False)
    numbers = ", ".join(np.format_float_positional(v, trim="0") for v in out.ravel().astype(np.float32))
    print(f"(\n    {list(size)},\n    {list(to)},\n    &[{numbers}],\n),")
