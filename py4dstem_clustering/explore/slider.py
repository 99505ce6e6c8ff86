"""Steps of the sliders: levels, numbers of clusters and sizes at which the picture changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..grains.options import Method
from ..grains.tree import ClusterTree

N_STEPS = 80
"""Number of steps of the slider of growth. With more, each step changes less."""

N_MERGE_STEPS = 12, 60, 60
"""Numbers of steps of merging: below the level "pattern", from there to "crystal", and above it.
There are fewer if there are fewer joins. Below "pattern", crystals are in pieces, which few want to
see."""

VISIBLE_SHARE = 1 / 4000
"""Smallest share of the scan that a cluster must have so that its changes space the steps. With a
larger share, fewer steps lie at fine levels, where clusters are too small to be seen."""

N_WHOLE_STEPS = 40
"""Numbers of clusters up to this one are all steps of the slider."""

STEP_RATIO = 1.05
"""Ratio of the steps beyond `N_WHOLE_STEPS`. A larger ratio gives fewer steps."""


def changes(tree: ClusterTree, min_size: int, drop: bool) -> NDArray[np.float64]:
    """Scan positions whose colour changes at each of ``tree.levels``, from the finest on.

    Only clusters of `min_size` positions are coloured, and no background if `drop` is True.
    """
    children, sizes = tree._links
    shown = sizes >= min_size
    level = tree.level[tree._fine]
    if tree.method == "grow":
        changed = _changed(children, sizes, shown)
        at = np.searchsorted(-tree.levels, -level)
        return np.bincount(at, changed, len(tree.levels)).astype(np.float64)
    joins, above, _ = tree.branches()
    background, region_background, region_sizes = tree._node_background
    large = region_sizes >= min_size
    if drop:
        shown, large = shown & ~background, large & ~region_background
    changed = np.append(_changed(children, sizes, shown), _changed(joins, region_sizes, large))
    at = np.searchsorted(tree.levels, np.append(level, above))
    return np.bincount(at, changed, len(tree.levels)).astype(np.float64)


def _changed(
    children: NDArray[Any], sizes: NDArray[Any], shown: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Positions whose colour changes at each join of two nodes of a tree."""
    a, b = children.reshape(-1, 2).T
    joined = shown[len(sizes) - len(children) :]
    both = shown[a] & shown[b]
    appear = sizes[a] * ~shown[a] + sizes[b] * ~shown[b]
    vanish = sizes[a] * shown[a] + sizes[b] * shown[b]
    smaller = np.minimum(sizes[a], sizes[b])
    return np.where(joined, np.where(both, smaller, appear), vanish).astype(np.float64)


def level_steps(tree: ClusterTree, min_size: int = 1, drop: bool = True) -> NDArray[Any]:
    """Levels of a tree that are steps of a slider, rising.

    Each step changes about the same number of scan positions. The finest level at which there are
    clusters of a visible size, and the levels with names, are steps too.
    """
    levels = tree.levels
    if not len(levels):
        return np.ones(1)
    visible = max(min_size, int(tree.mask.size * VISIBLE_SHARE) + 1)
    changed = changes(tree, visible, drop)
    names = list(tree.named_levels.values())
    ends = np.searchsorted(levels, names, side="right").tolist() if names else []
    numbers = N_MERGE_STEPS if names else (N_STEPS,)
    start, chosen = 0, [int(min(np.flatnonzero(changed), default=0))]
    for end, number in zip([*ends, len(levels)], numbers, strict=False):
        total = np.cumsum(changed[start:end])
        if len(total) and total[-1] > 0:
            wanted = np.linspace(0, total[-1], number + 1)[1:]
            chosen += (start + np.searchsorted(total, wanted)).tolist()
        start = end
    return np.unique(np.append(levels[np.clip(chosen, 0, len(levels) - 1)], names))


def count_steps(counts: NDArray[Any], method: Method) -> NDArray[Any]:
    """Numbers of clusters that are steps of a slider, rising; `counts` are those at all levels."""
    if method == "merge":  # starts at the level with the most clusters
        counts = counts[len(counts) - 1 - counts[::-1].argmax() :]
    counts = np.unique(counts[counts > 0])
    if not len(counts):
        return np.ones(1, dtype=int)
    return counts[thinned(len(counts))]


def thinned(n: int, whole: int = N_WHOLE_STEPS) -> NDArray[Any]:
    """Indices below `n`: all of the first `whole`, then in steps that grow by `STEP_RATIO`."""
    if n <= whole:
        return np.arange(n)
    n_more = int(np.ceil(np.log(n / whole) / np.log(STEP_RATIO))) + 1
    more = np.round(np.geomspace(whole, n - 1, n_more)).astype(int)
    return np.unique(np.append(np.arange(whole), more))


def size_steps(n_positions: int) -> NDArray[Any]:
    """Values of `min_size` that are steps of a slider, rising."""
    largest = max(2, n_positions // 4)
    more = np.round(np.geomspace(1, largest, 60)).astype(int)
    return np.unique(np.append(np.arange(1, min(10, largest) + 1), more))


def nearest(steps: NDArray[Any], value: float) -> int:
    """Index of the step that is nearest to a value."""
    return int(np.abs(steps - value).argmin())
