"""Numbers that the metrics are held against: `python metrics.py` (numpy, scipy, scikit-learn, monai with torch).

Prints `tests/suite/metrics_expected.rs`, literals computed by scipy, scikit-learn and MONAI. Masks are made here and in
`tests/suite/metrics.rs` by the same few lines of integer arithmetic, so that no file has to be kept. Where scipy and MONAI compute the
same thing, this script checks that they agree before it prints.
"""

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage, stats
from sklearn import metrics as sk

TOLERANCES = (0.5, 1.0, 2.5)


def ellipsoid(size, centre, radii):
    """Voxels with sum of (d * other radii)^2 <= (product of radii)^2, all in integers."""
    i, j, k = np.indices(size)
    a, b, c = radii
    d = [(i - centre[0]) * b * c, (j - centre[1]) * a * c, (k - centre[2]) * a * b]
    return d[0] ** 2 + d[1] ** 2 + d[2] ** 2 <= (a * b * c) ** 2


def box(size, low, high):
    m = np.zeros(size, bool)
    m[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return m


def noise(size, every, start):
    """Voxels n with (n * n * 31 + n * 17 + start) mod 1009 < every."""
    n = np.arange(np.prod(size), dtype=np.int64)
    return ((n * n * 31 + n * 17 + start) % 1009 < every).reshape(size)


G = (21, 17, 13)
CASES = [
    ("two ellipsoids", (0.7, 0.7, 2.5), ellipsoid(G, (10, 8, 6), (7, 5, 4)), ellipsoid(G, (11, 7, 6), (6, 6, 3))),
    ("a box inside an ellipsoid", (1.0, 1.0, 1.0), box(G, (8, 6, 4), (13, 11, 9)), ellipsoid(G, (10, 8, 6), (9, 7, 5))),
    ("boxes at the border", (0.9, 1.3, 2.0), box(G, (0, 0, 0), (9, 17, 5)), box(G, (2, 3, 0), (21, 17, 6))),
    ("the whole grid and a half", (1.5, 0.5, 3.0), box(G, (0, 0, 0), G), box(G, (0, 0, 0), (21, 9, 13))),
    ("single voxels", (0.8, 1.1, 3.0), box(G, (3, 4, 5), (4, 5, 6)), box(G, (10, 4, 7), (11, 5, 8))),
    ("a voxel and an ellipsoid", (2.0, 1.0, 0.6), box(G, (20, 16, 12), (21, 17, 13)), ellipsoid(G, (9, 8, 6), (6, 6, 5))),
    ("scattered voxels", (1.0, 2.0, 1.7), noise(G, 40, 3), noise(G, 25, 500)),
    ("noise at an ellipsoid", (0.6, 0.6, 1.25), ellipsoid(G, (10, 8, 6), (7, 6, 4)) ^ noise(G, 30, 7), ellipsoid(G, (10, 8, 6), (7, 6, 4))),
    ("shells", (0.45, 0.9, 1.8), ellipsoid(G, (10, 8, 6), (9, 7, 5)) & ~ellipsoid(G, (10, 8, 6), (6, 4, 2)), ellipsoid(G, (9, 8, 6), (8, 7, 5)) & ~ellipsoid(G, (9, 8, 6), (5, 4, 2))),
    ("equal", (0.7, 0.8, 0.9), ellipsoid(G, (10, 8, 6), (7, 5, 4)), ellipsoid(G, (10, 8, 6), (7, 5, 4))),
]


def near(a, b):
    assert abs(a - b) <= 1e-5 * (1 + abs(b)), (a, b)  # MONAI computes in f32 in places
    return b


def surface_numbers(p, t, spacing):
    edge = lambda m: m ^ ndimage.binary_erosion(m)
    ep, et = edge(p), edge(t)
    to = lambda e: ndimage.distance_transform_edt(~e, sampling=spacing)
    dp, dt = to(et)[ep], to(ep)[et]
    both = np.concatenate([dp, dt])
    out = [max(dp.max(), dt.max()), max(np.percentile(dp, 95), np.percentile(dt, 95)), both.mean()]
    out += [np.count_nonzero(both <= tau) / both.size for tau in TOLERANCES]
    one_hot = lambda m: torch.tensor(np.stack([~m, m])[None].astype(np.float32))
    yp, yt = one_hot(p), one_hot(t)
    near(compute_hausdorff_distance(yp, yt, spacing=spacing).item(), out[0])
    near(compute_hausdorff_distance(yp, yt, percentile=95, spacing=spacing).item(), out[1])
    near(compute_average_surface_distance(yp, yt, symmetric=True, spacing=spacing).item(), out[2])
    for tau, found in zip(TOLERANCES, out[3:]):
        near(compute_surface_dice(yp, yt, class_thresholds=[tau], spacing=spacing).item(), found)
    return out


def lit(v):
    return repr(float(v)) if np.isfinite(v) else "f64::NAN"


def row(values):
    return "[" + ", ".join(lit(v) for v in values) + "]"


print("//! Made by `tests/reference/metrics.py`; what the columns are is said there and in `metrics.rs`.\n")
print("/// Name; Dice, `IoU`, HD, HD95, ASSD, surface Dice at 0.5, 1 and 2.5 mm.")
print(f"pub(super) const MASKS: [(&str, [f64; 8]); {len(CASES)}] = [")
for name, spacing, p, t in CASES:
    dice = sk.f1_score(t.ravel(), p.ravel())
    iou = sk.jaccard_score(t.ravel(), p.ravel())
    print(f'    ("{name}", {row([dice, iou, *surface_numbers(p, t, spacing)])}),')
print("];")


def scores(n, seed):
    """Scores in hundredths, with ties, and truth that they have something to do with."""
    i = np.arange(n, dtype=np.int64)
    s = (i * i * 37 + i * 11 + seed) % 101 / 100.0
    t = (i * 29 + seed * 7) % 97 / 97.0 < 0.25 + 0.5 * s
    return s, t


def delong(s, t):
    """By its definition, over all pairs."""
    x, y = s[t], s[~t]
    psi = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    v10, v01 = psi.mean(1), psi.mean(0)
    auc = psi.mean()
    se = np.sqrt(v10.var(ddof=1) / len(x) + v01.var(ddof=1) / len(y))
    z = stats.norm.ppf(0.975)
    return auc, se, max(auc - z * se, 0), min(auc + z * se, 1)


RANKINGS = [(40, 1), (173, 5), (500, 9), (9, 2)]
print("\n/// Number and seed of the scores; AUC, standard error, interval, average precision, then at 0.5: accuracy, balanced accuracy,")
print("/// sensitivity, specificity, precision, F1.")
print(f"pub(super) const RANKINGS: [(i64, i64, [f64; 11]); {len(RANKINGS)}] = [")
for n, seed in RANKINGS:
    s, t = scores(n, seed)
    auc, se, low, high = delong(s, t)
    assert abs(auc - sk.roc_auc_score(t, s)) < 1e-12
    p = s > 0.5
    numbers = [auc, se, low, high, sk.average_precision_score(t, s), sk.accuracy_score(t, p), sk.balanced_accuracy_score(t, p)]
    numbers += [sk.recall_score(t, p), sk.recall_score(~t, ~p), sk.precision_score(t, p), sk.f1_score(t, p)]
    print(f"    ({n}, {seed}, {row(numbers)}),")
print("];")

i = np.arange(200)
truth, predicted = i * i * 7 % 13 % 4, (i * i * 7 % 13 + (i % 5 == 0) * (i % 3)) % 4
print("\n/// Four classes: confusion table, row by row; accuracy, balanced accuracy, macro F1.")
print(f"pub(super) const CONFUSION: [u64; 16] = {sk.confusion_matrix(truth, predicted).ravel().tolist()};")
print(f"pub(super) const FOUR: [f64; 3] = {row([sk.accuracy_score(truth, predicted), sk.balanced_accuracy_score(truth, predicted), sk.f1_score(truth, predicted, average='macro')])};")


def group(n, seed, shift):
    i = np.arange(n, dtype=np.int64)
    return (i * i * 53 + i * 19 + seed) % 211 / 1000.0 + shift


GROUPS = [(5, 5, 0.5, 0.45), (10, 7, 0.9, 0.8), (30, 12, 0.1, 0.1), (3, 3, 0.0, 5.0)]
print("\n/// Sizes and shifts of two groups; Welch's t, freedom, p, one-sided p; Student's t, p.")
print(f"pub(super) const GROUPS: [(i64, i64, f64, f64, [f64; 6]); {len(GROUPS)}] = [")
for n, m, x, y in GROUPS:
    a, b = group(n, 3, x), group(m, 8, y)
    w, st = stats.ttest_ind(a, b, equal_var=False), stats.ttest_ind(a, b)
    one = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    print(f"    ({n}, {m}, {x}, {y}, {row([w.statistic, w.df, w.pvalue, one.pvalue, st.statistic, st.pvalue])}),")
print("];")

PAIRS = [(6, 90.0), (10, 60.0), (25, 21.3), (49, 10.1), (80, 15.0)]
print("\n/// Pairs and shift; Wilcoxon's statistic and p (exact up to 50 pairs; no ties there).")
print(f"pub(super) const PAIRS: [(i64, f64, [f64; 2]); {len(PAIRS)}] = [")
for n, shift in PAIRS:
    i = np.arange(n, dtype=np.int64)
    d = (i * i * 53 + i * 19) % 211 - 105 + i * 1e-4 + shift
    if n <= 50:
        assert len(np.unique(np.abs(d))) == n and (d != 0).all(), n
    w = stats.wilcoxon(d, method="exact" if n <= 50 else "asymptotic")
    print(f"    ({n}, {shift}, {row([w.statistic, w.pvalue])}),")
print("];")

p = [0.04, 0.001, 0.03, 0.5, 0.012]
order = np.argsort(p)
adjusted = np.minimum(np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)), 1)
holm = np.empty(len(p))
holm[order] = adjusted
print("\n/// Holm's correction of 0.04, 0.001, 0.03, 0.5, 0.012.")
print(f"pub(super) const HOLM: [f64; {len(p)}] = {row(holm)};")


def froc(scans, nodules):
    """The challenge's own way: hits and false positives into scikit-learn's ROC curve, scaled, and interpolated."""
    gt, prob, missed = [], [], 0
    for marks, findings in scans:
        left = dict(enumerate(marks))
        for (place, diameter, ignored) in findings:
            hits = [n for n, (at, _) in enumerate(marks) if sum((a - b) ** 2 for a, b in zip(place, at)) < (diameter / 2) ** 2]
            for n in hits:
                left.pop(n, None)
            if not ignored and hits:
                gt.append(1)
                prob.append(max(marks[n][1] for n in hits))
            elif not ignored:
                missed += 1
        for _, q in left.values():
            gt.append(0)
            prob.append(q)
    found = sum(gt)
    assert found + missed == nodules
    fpr, tpr, _ = sk.roc_curve(gt, prob)
    fps, sens = fpr * (len(gt) - found) / len(scans), tpr * found / nodules
    at = np.interp([0.125, 0.25, 0.5, 1, 2, 4, 8], fps, sens)
    return [*at, at.mean()]


def luna():
    """Scans with nodules, a finding to ignore, and marks at and off them; integers, in tenths of millimetres."""
    scans, nodules = [], 0
    for s in range(8):
        findings = [((100 + 300 * n, 50 * s, 70 * n), 60 + 20 * ((s + n) % 4), (s + n) % 5 == 4) for n in range(s % 4)]
        nodules += sum(not f[2] for f in findings)
        marks = []
        for m in range(12 + s):
            h = (s * 131 + m * m * 17 + m * 5) % 1000
            if m < 2 * len(findings):
                (x, y, z), d, _ = findings[m // 2]
                marks.append(((x + h % 45, y + m % 7, z - h % 11), (h % 60 + 40) / 100))
            else:
                marks.append(((h * 3, 500 + h, m * 20), (h % 80) / 100))
        scans.append((marks, findings))
    return scans, nodules


print("\n/// Sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan, and their mean.")
print(f"pub(super) const FROC: [f64; 8] = {row(froc(*luna()))};")
