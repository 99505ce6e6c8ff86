"""Averages, outlines, colours and steps of sliders, for the window."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..grains.tree import ClusterTree
from ..plotting.style import PALETTE, neighbour_pairs

N_WHOLE_STEPS = 100
"""Number of coarsest cuts that are all steps of the slider. A larger number gives more steps."""

STEP_RATIO = 1.03
"""Ratio of the indices of neighbouring steps after the coarsest cuts. A larger ratio gives fewer
steps."""

N_DISTINCT_COLORS = 2000
"""Number of the largest clusters whose colours differ whenever they touch. A larger number makes
drawing slower."""


# --- averages, outlines, colours -------------------------------------------------------------


def outline(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """All borders between labels as one line (x, y) along edges of positions, with NaN at gaps."""
    padded = np.pad(labels, 1, constant_values=-1)
    upright = (padded[1:-1, 1:] != padded[1:-1, :-1]).T  # (Ry + 1, Rx)
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (Rx + 1, Ry)
    (x, y0, y1), (y, x0, x1) = _edge_lines(upright), _edge_lines(level)
    gap, gaps = np.full(len(x), np.nan), np.full(len(y), np.nan)
    across = np.concatenate([np.stack([x, x, gap], 1), np.stack([x0, x1, gaps], 1)]).ravel()
    down = np.concatenate([np.stack([y0, y1, gap], 1), np.stack([y, y, gaps], 1)]).ravel()
    return across, down


def _edge_lines(edges: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Row, start and end of each run of True in a row, as coordinates of edges of positions."""
    step = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    line, start = np.nonzero(step == 1)
    stop = np.nonzero(step == -1)[1]
    return line - 0.5, start - 0.5, stop - 0.5


def lasting_colors(labels: NDArray[Any], n_clusters: int, before: NDArray[Any]) -> NDArray[Any]:
    """Number of the colour of each cluster; clusters that touch differ in colour.

    A cluster keeps the colour that most of its positions had, unless a larger neighbour has it.
    Different colours are certain only among the `N_DISTINCT_COLORS` largest clusters.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Label map, -1 for no cluster.
    n_clusters : int
        Number of clusters.
    before : ndarray, (Rx, Ry), int
        Number of the colour that each position had, -1 for none.
    """
    if n_clusters == 0:
        return np.empty(0, dtype=int)
    inside = labels >= 0
    n_before = int(before.max(initial=0)) + 2
    votes = np.bincount(
        labels[inside] * n_before + before[inside] + 1, minlength=n_clusters * n_before
    ).reshape(n_clusters, n_before)
    sizes = votes.sum(axis=1)
    votes[:, 0] = 0
    wish = np.where(votes.any(axis=1), votes.argmax(axis=1) - 1, -1)
    order = np.argsort(-sizes, kind="stable")[:N_DISTINCT_COLORS]
    # The smaller clusters may have the colour of a neighbour.
    color = np.where(wish >= 0, wish, np.arange(n_clusters) % len(PALETTE))
    color[order] = -1
    chosen = np.append(color < 0, False)[labels]
    touching: dict[int, list[int]] = {k: [] for k in order.tolist()}
    for a, b in neighbour_pairs(np.where(chosen, labels, -1)).tolist():
        touching[a].append(b)
        touching[b].append(a)
    color, wish = color.tolist(), wish.tolist()
    used = [0] * max(len(PALETTE), n_before - 1)
    for k in touching:
        if wish[k] >= 0 and all(color[j] != wish[k] for j in touching[k]):
            color[k] = wish[k]
            used[color[k]] += 1
    for k in touching:
        if color[k] >= 0:
            continue
        taken = {color[j] for j in touching[k]}
        free = [c for c in range(len(PALETTE)) if c not in taken]
        free = free or [c for c in range(len(used)) if c not in taken]
        if not free:
            used.append(0)
            free = [len(used) - 1]
        color[k] = min(free, key=lambda c: (used[c], c))
        used[color[k]] += 1
    return np.array(color)


# --- steps of the sliders --------------------------------------------------------------------


def thinned(n: int, whole: int = N_WHOLE_STEPS) -> NDArray[Any]:
    """Indices below `n`: all of the first `whole`, then in steps that grow by `STEP_RATIO`."""
    if n <= whole:
        return np.arange(n)
    n_more = int(np.ceil(np.log(n / whole) / np.log(STEP_RATIO))) + 1
    more = np.round(np.geomspace(whole, n - 1, n_more)).astype(int)
    return np.unique(np.append(np.arange(whole), more))


def level_steps(tree: ClusterTree) -> NDArray[Any]:
    """Levels of a tree that are steps of a slider, rising; all levels if there are few.

    Merging: all levels from the automatic cut on; below this cut, finer levels are left out more
    often. Growth: the 50 coarsest levels, and levels at even distances in similarity and in rank.
    """
    levels = tree.levels
    n = len(levels)
    if n == 0:
        return np.ones(1)
    if tree.method == "merge":
        coarse = int((levels >= 1).sum())
        return np.sort(levels[::-1][thinned(n, max(N_WHOLE_STEPS, coarse))])
    near = np.searchsorted(-levels, -np.linspace(levels[0], levels[-1], 200))
    ranks = np.linspace(0, n - 1, 200).round()
    which = np.concatenate([near, ranks, np.arange(max(0, n - 50), n)]).astype(int)
    return np.sort(levels[np.unique(np.clip(which, 0, n - 1))])


def size_steps(n_positions: int) -> NDArray[Any]:
    """Values of `min_size` that are steps of a slider, rising."""
    largest = max(2, n_positions // 4)
    more = np.round(np.geomspace(1, largest, 60)).astype(int)
    return np.unique(np.append(np.arange(1, min(10, largest) + 1), more))


def nearest(steps: NDArray[Any], value: float) -> int:
    """Index of the step that is nearest to a value."""
    return int(np.abs(steps - value).argmin())
