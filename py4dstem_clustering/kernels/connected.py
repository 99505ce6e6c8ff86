"""Clusters whose positions touch, at every level of a tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from .pieces import split_unconnected
from .regions import consecutive, find_borders


def connect(
    labels: NDArray[Any],
    pairs: NDArray[np.int64],
    level: NDArray[np.float64],
    lost: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """A tree of regions that touch, with the same clusters, or connected parts of them.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry)
        Regions, some of which may be in parts; -1 for no region.
    pairs, level : ndarray, (n, 2) and (n,)
        Joins of regions, and their levels, rising.
    lost : ndarray of bool, (Rx, Ry)
        Positions that connect what lies on both sides of them, and belong to no region in the end.

    Returns
    -------
    labels, pairs, level
        Numbered from 0, the joins by rising level.
    """
    parts = split_unconnected(labels)
    n = int(parts.max(initial=-1)) + 1
    region = np.zeros(n, dtype=np.int64)
    inside = parts >= 0
    region[parts[inside]] = labels[inside]
    left = np.unique(parts[inside & ~lost])
    number = np.full(n, -1)
    number[left] = np.arange(len(left))

    borders = find_borders(parts)[0]
    ends = np.stack([borders.first, borders.second], axis=1)
    joined = levels_of(region[ends], pairs, level, int(labels.max(initial=-1)) + 1)
    group = DisjointSet(range(n))
    member = number.tolist()  # a part that is left, of each group; -1 if all of it is lost
    new_pairs: list[tuple[int, int]] = []
    new_level: list[float] = []
    for k in np.argsort(joined, kind="stable").tolist():
        if not np.isfinite(joined[k]):
            break
        a, b = (group[i] for i in ends[k].tolist())
        if a == b:
            continue
        group.merge(a, b)
        found = [i for i in (member[a], member[b]) if i >= 0]
        member[group[a]] = found[0] if found else -1
        if len(found) == 2:
            new_pairs.append((found[0], found[1]))
            new_level.append(float(joined[k]))
    return (
        consecutive(np.where(lost, -1, parts)),
        np.array(new_pairs, dtype=np.int64).reshape(-1, 2),
        np.array(new_level, dtype=np.float64),
    )


def levels_of(
    ends: NDArray[np.int64], pairs: NDArray[np.int64], level: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """Level at which both `ends` ``(m, 2)`` of each of some borders are in one cluster of a tree.

    The tree joins `n` regions by `pairs`; infinity where two regions never join.
    """
    out = np.where(ends[:, 0] == ends[:, 1], 0.0, np.inf)
    borders: list[list[int]] = [[] for _ in range(n)]  # of each group, those not yet joined
    for k in np.flatnonzero(out).tolist():
        for end in ends[k]:
            borders[end].append(k)
    group = DisjointSet(range(n))
    for (i, j), height in zip(pairs.tolist(), level.tolist(), strict=True):
        a, b = group[i], group[j]
        if a == b:
            continue
        small, large = sorted((a, b), key=lambda one: len(borders[one]))
        group.merge(a, b)
        rest = []
        for k in borders[small]:
            if np.isfinite(out[k]):
                continue
            if group[int(ends[k, 0])] == group[int(ends[k, 1])]:
                out[k] = height
            else:
                rest.append(k)
        kept = borders[large]
        kept.extend(rest)
        borders[small] = borders[large] = []
        borders[group[a]] = kept
    return out
