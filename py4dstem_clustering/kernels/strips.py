"""What lies on both sides of the borders between regions: strips of a few positions' depth."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from .regions import NEIGHBOUR_OFFSETS

STRIP_DEPTH = 4.5
"""Depth of the strips, scan positions. Deeper strips have less noise and are mixed less by the
probe, but a bent lattice turns further between their middles."""

_CONTACT_WEIGHTS = ((1.2, 0.15), (1.6, 0.5))
"""Weight of positions up to a distance from the other region; all others have weight 1. The nearest
ones are mixtures where the probe is wide."""

_REACH = int(STRIP_DEPTH)

_OFFSETS = [
    (dx, dy, float(np.hypot(dx, dy)))
    for dx in range(-_REACH, _REACH + 1)
    for dy in range(-_REACH, _REACH + 1)
    if 0 < np.hypot(dx, dy) <= STRIP_DEPTH
]


class Facing(NamedTuple):
    """Which pieces lie near which positions."""

    position: NDArray[np.int64]
    """Flat index of a position, ``(n,)``."""
    piece: NDArray[np.int64]
    """Another piece near it."""
    distance: NDArray[np.float64]
    """Distance to the nearest position of that piece."""


class Strips(NamedTuple):
    """Both sides of each border, ``(n, 2, ...)``, the first region first."""

    mean: NDArray[np.float64]
    """Mean features ``(n, 2, rank)``."""
    size: NDArray[np.float64]
    """Number of positions that the noise of the mean corresponds to."""
    depth: NDArray[np.float64]
    """Mean distance from the border, scan positions."""
    scatter: NDArray[np.float64]
    """Mean squared distance of the features from their mean, less that of noise."""


def find_facing(labels: NDArray[Any]) -> Facing:
    """All pieces up to `STRIP_DEPTH` from each position of another piece; -1 is no piece."""
    rx, ry = labels.shape
    n_positions, n = rx * ry, int(labels.max(initial=-1)) + 1
    index = np.arange(n_positions).reshape(rx, ry)
    keys, distances = [], []
    for dx, dy, distance in _OFFSETS:
        if abs(dx) >= rx or abs(dy) >= ry:
            continue
        here = slice(max(0, -dx), rx - max(0, dx)), slice(max(0, -dy), ry - max(0, dy))
        there = slice(max(0, dx), rx + min(0, dx)), slice(max(0, dy), ry + min(0, dy))
        own, other = labels[here].ravel(), labels[there].ravel()
        apart = (own != other) & (own >= 0) & (other >= 0)
        keys.append(index[here].ravel()[apart] * n + other[apart])
        distances.append(np.full(int(apart.sum()), distance))
    if not keys:  # a single position
        nothing = np.empty(0, dtype=np.int64)
        return Facing(nothing, nothing, np.empty(0))
    key, distance_to = _nearest(np.concatenate(keys), np.concatenate(distances))
    position, piece = np.divmod(key, max(n, 1))
    return Facing(position, piece, distance_to)


def _nearest(
    key: NDArray[np.int64], distance: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each key once, sorted, with its smallest distance."""
    order = np.lexsort((distance, key))
    key, distance = key[order], distance[order]
    first = np.append(True, key[1:] != key[:-1]) if len(key) else np.empty(0, dtype=bool)
    return key[first], distance[first]


def border_strips(
    facing: Facing,
    region: NDArray[Any],
    labels: NDArray[Any],
    pairs: NDArray[Any],
    values: NDArray[Any],
    noise: float,
) -> Strips:
    """Strips on both sides of the borders between pairs of regions.

    Parameters
    ----------
    facing : Facing
        From `find_facing` of `labels`.
    region : ndarray, (n_pieces,)
        Region that each piece of `labels` belongs to.
    labels : ndarray, (Rx, Ry)
        Pieces.
    pairs : ndarray, (n, 2)
        Regions on both sides of each border, the lower number first; sorted.
    values : ndarray, (Rx, Ry, rank)
        Features.
    noise : float
        Sum of the variances of the noise of all features of a position.
    """
    n_positions, n = labels.size, len(pairs)
    flat = values.reshape(n_positions, -1)
    own, other = region[labels.ravel()[facing.position]], region[facing.piece]
    used = np.zeros(len(region), dtype=bool)
    used[pairs] = True
    some = np.flatnonzero(used[own] & used[other] & (own != other))
    own, other = own[some], other[some]
    low, high = np.minimum(own, other), np.maximum(own, other)
    base = len(region)
    borders = pairs[:, 0] * base + pairs[:, 1]
    key = low * base + high
    at = np.minimum(np.searchsorted(borders, key), max(n - 1, 0))
    hit = borders[at] == key if n else np.zeros(len(key), dtype=bool)
    side, some = 2 * at[hit] + (own > other)[hit], some[hit]
    code, distance = _nearest(side * n_positions + facing.position[some], facing.distance[some])
    side, position = np.divmod(code, n_positions)
    weight = np.ones(len(distance))
    for limit, value in reversed(_CONTACT_WEIGHTS):
        weight[distance < limit] = value
    used, column = np.unique(position, return_inverse=True)
    sums = coo_array((weight, (side, column)), shape=(2 * n, len(used))).tocsr()
    points = flat[used].astype(np.float64)
    total = np.bincount(side, weight, 2 * n)
    size = total**2 / np.maximum(np.bincount(side, weight**2, 2 * n), 1e-12)
    total = np.maximum(total, 1e-12)
    mean = (sums @ points) / total[:, None]
    square = (sums @ (points**2).sum(axis=1)) / total - (mean**2).sum(axis=1)
    # The mean follows the noise of its members, which makes their scatter smaller.
    scatter = (square - noise * (1 - 1 / np.maximum(size, 1))) * size / np.maximum(size - 1, 0.5)
    depth = np.bincount(side, weight * (distance - 0.5), 2 * n) / total
    return Strips(
        mean.reshape(n, 2, -1),
        np.maximum(size, 1e-12).reshape(n, 2),
        depth.reshape(n, 2),
        scatter.reshape(n, 2),
    )


def noise_power(labels: NDArray[Any], values: NDArray[Any], least: int = 8) -> float:
    """Sum of the variances of the noise of all features, from neighbours in one region.

    Each feature has a noise of about 1; bright disks of few electrons have more. Of the four
    directions the one with the smallest difference is taken, along which the lattice does not bend,
    and of all regions the first quartile.
    """
    n, rank = int(labels.max(initial=-1)) + 1, values.shape[2]
    rx, ry = labels.shape
    found = np.full(n, np.inf)
    for dx, dy, _ in NEIGHBOUR_OFFSETS:
        here = slice(0, rx - dx), slice(max(0, -dy), ry - max(0, dy))
        there = slice(dx, rx), slice(max(0, dy), ry + min(0, dy))
        same = (labels[here] == labels[there]) & (labels[here] >= 0)
        number = labels[here][same]
        half = ((values[here][same] - values[there][same]).astype(np.float64) ** 2).sum(axis=1) / 2
        count = np.bincount(number, minlength=n)
        mean = np.bincount(number, half, n) / np.maximum(count, 1)
        found = np.minimum(found, np.where(count >= least, mean, np.inf))
    found = found[np.isfinite(found)]
    return max(float(np.quantile(found, 0.25)), float(rank)) if len(found) else float(rank)
