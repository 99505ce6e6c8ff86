"""Regions of a label map: their means and their common borders."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# One setting for every scan and dose, tuned on simulated scans (seeds 100 to 163 of the
# benchmark) and the measured MgO scan; the benchmark reports other seeds.
VARIATION = 0.5
"""Relative variation allowed inside a grain."""

NOISE = 1.5
"""Noise counts this many times its expectation before a difference is taken for real."""

# Neighbours: offset, and how much border they share. A straight border of one position has 2.
NEIGHBOUR_STEPS = ((1, 0, 1.0), (0, 1, 1.0), (1, 1, 0.5), (1, -1, 0.5))


class Borders(NamedTuple):
    """Pairs of touching regions, the lower number first."""

    first: NDArray[Any]
    second: NDArray[Any]
    length: NDArray[Any]


def grid_pairs(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Neighbouring positions inside `mask` as flat indices, and the border that they share."""
    rx, ry = mask.shape
    position = np.arange(rx * ry).reshape(rx, ry)
    first, second, length = [], [], []
    for dx, dy, border in NEIGHBOUR_STEPS:
        here = position[: rx - dx, max(0, -dy) : ry - max(0, dy)]
        there = position[dx:, max(0, dy) : ry + min(0, dy)]
        both = mask.ravel()[here] & mask.ravel()[there]
        first.append(here[both])
        second.append(there[both])
        length.append(np.full(both.sum(), border))
    return np.concatenate(first), np.concatenate(second), np.concatenate(length)


def consecutive(labels: NDArray[Any]) -> NDArray[Any]:
    """The same regions numbered from 0 without gaps; -1 stays."""
    out = np.full(labels.shape, -1, dtype=np.int64)
    inside = labels >= 0
    out[inside] = np.unique(labels[inside], return_inverse=True)[1]
    return out


def region_means(labels: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean features ``(n, rank)`` and sizes of the regions."""
    inside = labels >= 0
    number = labels[inside]
    size = np.bincount(number).astype(np.float64)
    total = [np.bincount(number, values[..., k][inside]) for k in range(values.shape[2])]
    return np.stack(total, axis=1) / size[:, None], size


def find_borders(labels: NDArray[Any]) -> tuple[Borders, NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Borders between regions; and for each pair of positions across one: which, and the two."""
    a, b, length = grid_pairs(labels >= 0)
    flat = labels.ravel().astype(np.int64)  # since pairs are numbered
    across = flat[a] != flat[b]
    a, b, length = a[across], b[across], length[across]
    swap = flat[a] > flat[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    n = int(labels.max(initial=-1)) + 1
    pair, which = np.unique(flat[a] * n + flat[b], return_inverse=True)
    borders = Borders(*np.divmod(pair, max(n, 1)), np.bincount(which, length, len(pair)))
    return borders, which, a, b
