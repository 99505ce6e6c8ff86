"""Regions of a label map: their means and their common borders."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    distance_transform_edt,
    find_objects,
    maximum_filter1d,
    minimum_filter1d,
)
from scipy.sparse import coo_array, csc_array
from scipy.sparse.csgraph import connected_components

from .blocks import tiles

# The constants of this file, of `borders.py` and of `merging.py` are the same for every scan and
# dose. They were tuned on simulated scans (seeds 100 to 163 of the benchmark) and on the measured
# MgO scan; the benchmark reports other seeds.
GRAIN_VARIATION = 0.5
"""How much the features inside one grain may vary, relative to their root mean square (no unit).

A larger value joins strong regions more easily: fewer and larger grains, bent grains stay whole.
"""

NOISE_FACTOR = 1.5
"""Factor of the expected power of the noise that is taken off a difference (no unit).

A larger value takes more weak differences for noise: fewer grains at a low dose.
"""

MIN_EMPTY = 30
"""Positions from which on a part without disks is background although this is not certain, and from
which on the background away from crystals gives its mean."""

NEIGHBOUR_OFFSETS = ((1, 0, 1.0), (0, 1, 1.0), (1, 1, 0.5), (1, -1, 0.5))
"""Offset of each neighbour along Rx and along Ry, scan positions, and the border shared with it.

The unit of border length follows from the shares: a straight border has length 2 per position.
"""

FEATURES_AT_ONCE = 8
"""Features that are added up together; more of them take more memory."""

NEIGHBOUR_STEPS = [
    (s * dx, s * dy, border) for dx, dy, border in NEIGHBOUR_OFFSETS for s in (1, -1)
]
"""The same with both of each opposite pair: steps to all neighbours of a position."""


class Borders(NamedTuple):
    """Pairs of touching regions, the lower number first; sorted by both numbers."""

    first: NDArray[np.int64]
    """Lower number of each pair, ``(n,)``."""
    second: NDArray[np.int64]
    """Higher number of each pair."""
    length: NDArray[np.float64]
    """Length of the common border, in the unit of `NEIGHBOUR_OFFSETS`."""


def grid_pairs(
    mask: NDArray[Any],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Neighbouring positions inside `mask` as flat indices, and the length of their border."""
    rx, ry = mask.shape
    position = np.arange(rx * ry).reshape(rx, ry)
    first, second, length = [], [], []
    for dx, dy, border in NEIGHBOUR_OFFSETS:
        here = position[: rx - dx, max(0, -dy) : ry - max(0, dy)]
        there = position[dx:, max(0, dy) : ry + min(0, dy)]
        both = mask.ravel()[here] & mask.ravel()[there]
        first.append(here[both])
        second.append(there[both])
        length.append(np.full(both.sum(), border))
    return np.concatenate(first), np.concatenate(second), np.concatenate(length)


def consecutive(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The same regions in the same order, numbered from 0 without gaps; -1 stays."""
    top = int(labels.max(initial=-1))
    if top >= 4 * labels.size:  # a table of all numbers would be large
        out = np.full(labels.shape, -1, dtype=np.int64)
        inside = labels >= 0
        out[inside] = np.unique(labels[inside], return_inverse=True)[1]
        return out
    found = np.zeros(top + 2, dtype=bool)
    found[labels.ravel()] = True
    found[-1] = False
    number = np.cumsum(found) - 1
    number[-1] = -1
    return number[labels]


def region_means(
    labels: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean features ``(n, rank)`` and sizes ``(n,)``, scan positions, of regions 0 to n - 1.

    `labels` ``(...)`` and `values` ``(..., rank)`` are of a scan, or of some of its positions.
    """
    size = np.bincount(labels[labels >= 0]).astype(np.float64)
    return region_sums(labels, values, len(size)) / size[:, None], size


def region_sums(labels: NDArray[Any], values: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Sums of the features ``(n, rank)`` of regions 0 to `n` - 1, added up in reading order."""
    flat, rows = labels.ravel(), values.reshape(labels.size, values.shape[-1])
    # Each position is a column of a matrix with one 1 in the row of its region, or with none.
    inside = flat >= 0
    start = np.zeros(flat.size + 1, dtype=np.int32)
    np.cumsum(inside, out=start[1:])
    number = flat[inside].astype(np.int32)
    member = csc_array((np.ones(len(number)), number, start), shape=(n, flat.size))
    total = np.empty((n, rows.shape[1]))
    for part in tiles(rows.shape[1], FEATURES_AT_ONCE):
        total[:, part] = member @ rows[:, part].astype(np.float64)
    return total


def find_borders(
    labels: NDArray[Any],
) -> tuple[Borders, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Borders between the regions of a label map ``(Rx, Ry)``; -1 is no region.

    Returns
    -------
    borders : Borders
    which : ndarray, (n_pairs,)
        Index of the border that each pair of neighbouring positions lies across.
    a, b : ndarray, (n_pairs,)
        Flat index of the position in the first region, and of that in the second.
    """
    a, b, length = grid_pairs(labels >= 0)
    flat = labels.ravel().astype(np.int64)  # n * n, below, may not fit 32 bits
    across = flat[a] != flat[b]
    a, b, length = a[across], b[across], length[across]
    swap = flat[a] > flat[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    n = int(labels.max(initial=-1)) + 1
    pair, which = np.unique(flat[a] * n + flat[b], return_inverse=True)
    total = np.bincount(which, length, len(pair)).astype(np.float64, copy=False)
    return Borders(*np.divmod(pair, max(n, 1)), total), which, a, b


def noise_of_sum(rank: int, count: float, share: NDArray[Any], counts: NDArray[Any]) -> float:
    """Power of the noise in the difference of a mean of `count` positions and a sum of the means of
    `counts` positions with these shares; a little more, so that a larger difference is certain.
    """
    return float(NOISE_FACTOR * rank * (1 / count + (share**2 / counts).sum()))


def grown_box(box: tuple[slice, ...], shape: tuple[int, ...], by: int) -> tuple[slice, ...]:
    """The box of a region, larger by so many positions on all sides, inside the scan."""
    return tuple(
        slice(max(0, s.start - by), min(n, s.stop + by)) for s, n in zip(box, shape, strict=True)
    )


def depths(number: NDArray[Any]) -> NDArray[np.float64]:
    """Largest distance of a position in each region from its border, scan positions."""
    found = []
    for k, box in enumerate(find_objects(number + 1)):
        # The border of the scan is no border of a region.
        own = np.pad(number[grown_box(box, number.shape, 1)] == k, 1, mode="edge")
        found.append(np.inf if own.all() else distance_transform_edt(own).max())
    return np.array(found)


def have_depth(labels: NDArray[Any], depth: float) -> NDArray[np.bool_]:
    """Which regions have `depths` of at least this, scan positions."""
    n = int(labels.max(initial=-1)) + 1
    labels = np.pad(labels, 1, mode="edge")
    deep = labels >= 0
    reach = int(np.ceil(depth)) - 1
    for dx in range(-min(reach, len(labels) - 1), min(reach, len(labels) - 1) + 1):
        # All positions of a row that are nearer than the depth.
        width = 2 * (int(np.ceil(np.sqrt(depth**2 - dx**2))) - 1) + 1
        low, high = (
            edge(labels, width, axis=1, mode="nearest")
            for edge in (minimum_filter1d, maximum_filter1d)
        )
        here = np.s_[max(0, -dx) : len(labels) - max(0, dx)]
        there = np.s_[max(0, dx) : len(labels) + min(0, dx)]
        deep[here] &= (low[there] == labels[here]) & (high[there] == labels[here])
    return np.bincount(labels[deep], minlength=n) > 0


def nearest_label(labels: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Labels, and in the positions `where` that of the nearest position elsewhere with a label."""
    known = (labels >= 0) & ~where
    if not known.any():
        return np.where(where, 0, labels)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.where(where, labels[tuple(nearest)], labels)


def join_pairs(first: NDArray[Any], second: NDArray[Any], n: int) -> NDArray[np.int32]:
    """Group number of each of `n` items after the pairs ``(first, second)`` of items are joined.

    Groups are numbered in the order of their first members.
    """
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
    return connected_components(graph, directed=False)[1]
