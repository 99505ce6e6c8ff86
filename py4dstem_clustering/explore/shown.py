"""Outlines and colours of clusters, for the window."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plotting.style import PALETTE, neighbour_pairs

N_DISTINCT_COLORS = 2000
"""Number of the largest clusters whose colours differ whenever they touch. A larger number makes
drawing slower."""


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
