"""Parts of regions: cuts of merging below the level at which regions of one pattern are cut.

Each level is refined like that level: thin mixtures at borders dissolve, and positions at borders
go to the region with the nearest mean. A part stays inside its region of the level above, so that
all levels are cuts of one tree. The background stays whole, since its parts are noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .borders import refine_borders
from .merging import Merges, cut_merges, dissolve
from .pieces import cross_labels
from .regions import NEIGHBOUR_STEPS, consecutive

FINER_LEVELS = (0.7, 0.5, 0.35, 0.25)
"""Levels below that of regions of one pattern, falling. More of them take longer; below the last
one, regions fall to pieces of noise."""

_ROUNDS = 3
"""Rounds in which positions at borders may move."""


def finer_regions(
    values: NDArray[Any],
    merges: Merges,
    labels: NDArray[Any],
    background: NDArray[np.bool_],
    top: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The finest parts of regions, and their joins up to these regions.

    Parameters
    ----------
    values : ndarray, (Rx, Ry, rank)
        Features.
    merges : Merges
        From `merge_positions`.
    labels : ndarray, (Rx, Ry)
        Regions of one pattern; -1 for none.
    background : ndarray of bool, (Rx, Ry)
    top : float
        Level at which parts have become these regions again.

    Returns
    -------
    parts : ndarray, (Rx, Ry)
    first : ndarray, (n_regions,)
        One part of each region of `labels`.
    pairs, level : ndarray, (n, 2) and (n,)
        Joins of parts, and their levels, rising.
    """
    maps = [labels]
    for level in FINER_LEVELS:
        maps.append(refined_parts(maps[-1], cut_merges(merges, level), values, background))
    parts = maps[-1]
    inside = parts >= 0
    pairs, heights = [], []
    for coarse, level in zip(maps[-2::-1], [*FINER_LEVELS[-2::-1], top], strict=True):
        found = np.unique(np.stack([coarse[inside], parts[inside]], axis=1), axis=0)
        first = np.unique(found[:, 0], return_index=True)[1]
        head = found[first, 1][np.searchsorted(found[first, 0], found[:, 0])]
        new = np.stack([head, found[:, 1]], axis=1)[head != found[:, 1]]
        pairs.append(new)
        heights.append(np.full(len(new), level))
    return parts, found[first, 1], np.concatenate(pairs), np.concatenate(heights)


def refined_parts(
    whole: NDArray[Any], fine: NDArray[Any], values: NDArray[Any], background: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Parts of regions `whole` that the labels `fine` make, refined."""
    parts = cross_labels(whole, np.where(background, 0, fine))
    if parts.max(initial=-1) == whole.max(initial=-1):
        return parts
    parts = refine_borders(dissolve(parts, values), values, rounds=_ROUNDS)
    # A part belongs to the region in which most of it lies; what lies elsewhere goes back.
    n = int(whole.max()) + 1
    inside = parts >= 0
    pair, size = np.unique(parts[inside] * n + whole[inside], return_counts=True)
    order = np.argsort(size, kind="stable")
    home = np.full(int(parts.max()) + 1, -1)
    home[pair[order] // n] = pair[order] % n  # the largest comes last, and stays
    parts = _fill_inside(np.where(inside & (home[parts] == whole), parts, -1), whole)
    return consecutive(np.where(background & inside, parts.max() + 1 + whole, parts))


def _fill_inside(labels: NDArray[Any], whole: NDArray[Any]) -> NDArray[Any]:
    """Give each position without a label that of a neighbour in the same region of `whole`."""
    labels, free = labels.copy(), int(labels.max(initial=-1)) + 1
    while True:
        missing = (labels < 0) & (whole >= 0)
        if not missing.any():
            return labels
        around = np.pad(labels, 1, constant_values=-1)
        homes = np.pad(whole, 1, constant_values=-1)
        found = np.full(labels.shape, -1, dtype=labels.dtype)
        rx, ry = labels.shape
        for dx, dy, _ in NEIGHBOUR_STEPS:
            at = np.s_[1 + dx : 1 + dx + rx, 1 + dy : 1 + dy + ry]
            take = missing & (found < 0) & (around[at] >= 0) & (homes[at] == whole)
            found = np.where(take, around[at], found)
        if (found < 0).all():  # regions that have lost all parts
            return np.where(missing, free + whole, labels)
        labels = np.where(found >= 0, found, labels)
