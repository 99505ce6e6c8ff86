"""Kernels that look again only at what has changed, against looking at everything each time."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from py4dstem_clustering.kernels import merging
from py4dstem_clustering.kernels.borders import refine_borders
from py4dstem_clustering.kernels.merging import dissolve
from py4dstem_clustering.kernels.regions import NOISE_FACTOR, consecutive, find_borders


def dissolved_by_loops(labels, values):
    """Pass after pass over all regions, until a pass changes nothing."""
    rank, n = values.shape[2], int(labels.max()) + 1
    mean = np.array([values[labels == k].astype(float).mean(axis=0) for k in range(n)])
    count = [float((labels == k).sum()) for k in range(n)]
    size, target = list(count), list(range(n))
    length = {}
    for i, j, border in zip(*(x.tolist() for x in find_borders(labels)[0]), strict=True):
        length[i, j] = length[j, i] = border
    changed, passes = True, 0
    while changed:
        changed, passes = False, passes + 1
        strength = (mean**2).sum(axis=1)
        for i in sorted(range(n), key=lambda k: (size[k], strength[k])):
            near = [j for j in range(n) if (i, j) in length]
            if target[i] != i or size[i] > merging.MAX_THIN_WIDTH * sum(length[i, j] for j in near):
                continue
            near = [j for j in near if (size[j], strength[j]) > (size[i], strength[i])]
            if not near:
                continue
            power = max((mean[i] ** 2).sum() - rank / count[i], 1e-9)
            now = np.array([(mean[j] ** 2).sum() for j in near])
            others = np.where(now[:, None] < 0.01 * power, 0, mean[near])
            share, rest = nnls(others.T, mean[i])
            noise = sum(s**2 / count[j] for s, j in zip(share, near, strict=True)) + 1 / count[i]
            if rest**2 - NOISE_FACTOR * rank * noise >= merging.MAX_UNEXPLAINED_SHARE * power:
                continue
            strong = now > 0.1 * now.max()
            if strong.all() and share.sum() < 0.5:
                continue
            most = share**2 * now if share[strong].sum() >= 0.5 else -now
            at = int(np.argmax(most))
            j = near[at]
            if share[at] > 0.8:
                both = count[i] + count[j]
                mean[j] = (count[j] * mean[j] + count[i] * mean[i]) / both
                count[j] = both
            size[j] += size[i]
            for k in [k for k in range(n) if (i, k) in length]:
                border = length.pop((i, k))
                del length[k, i]
                if k != j:
                    length[j, k] = length[k, j] = length.get((j, k), 0) + border
            target[i], changed = j, True
    for i in range(n):
        while target[target[i]] != target[i]:
            target[i] = target[target[i]]
    return consecutive(np.where(labels >= 0, np.array(target)[labels], -1)), passes


def crumbs(seed):
    """Thin regions that are mixtures of a few patterns, beside larger ones."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(6, 22)), int(rng.integers(8, 24))
    n = int(rng.integers(4, 30))
    coarse = rng.integers(-1, n, size=(shape[0] // 2 + 1, shape[1] // 3 + 1))
    labels = coarse.repeat(2, axis=0).repeat(3, axis=1)[: shape[0], : shape[1]]
    labels[:, : shape[1] // 2] = np.where(rng.random((shape[0], 1)) < 0.7, 0, 1)
    labels = consecutive(labels)
    means = rng.normal(size=(3, 4)) * rng.choice([1, 3, 9])
    parts = rng.dirichlet([0.3, 0.3, 0.3], n + 2) @ means
    values = rng.normal(size=(*shape, 4)) + np.where(labels[..., None] < 0, 0, parts[labels])
    return labels, values.astype(np.float32)


def test_dissolving_equals_passes_over_all_regions():
    changed, most = 0, 0
    for seed in range(40):
        labels, values = crumbs(seed)
        expected, passes = dissolved_by_loops(labels, values)
        np.testing.assert_array_equal(dissolve(labels, values), expected)
        changed += expected.max() < labels.max()
        most = max(most, passes)
    assert changed > 10
    assert most > 2


def test_refining_equals_single_rounds():
    moved = []
    for seed in range(20):
        labels, values = crumbs(seed)
        expected = labels
        for rounds in range(1, 7):
            before, expected = expected, refine_borders(expected, values, rounds=1)
            np.testing.assert_array_equal(refine_borders(labels, values, rounds), expected)
            moved.append((rounds, not np.array_equal(before, expected)))
    assert (4, True) in moved  # some go on for several rounds
    assert (6, False) in moved
