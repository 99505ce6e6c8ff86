"""Branches of a cluster tree: joins of large clusters, for a dendrogram."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.tree import link


class Branches(NamedTuple):
    """Joins of large clusters."""

    joins: NDArray[np.int64]
    """Numbers of the two branches of each join, (n, 2); join `i` makes branch ``n_leaves + i``."""
    level: NDArray[np.float64]
    """Level of each join, (n,)."""
    places: NDArray[np.int64]
    """Flat index of one scan position of each leaf, (n_leaves,); -1 for a leaf without any."""


def branches_of_regions(
    regions: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    level: NDArray[np.float64],
) -> Branches:
    """Branches of merging: the leaves are the regions (Rx, Ry) of one pattern."""
    flat = regions.ravel()
    labels, places = np.unique(flat, return_index=True)
    joins, _ = link(flat[first], flat[second], int(flat.max(initial=-1)) + 1)
    return Branches(joins, level, places[labels >= 0])


def branches_of_growth(
    children: NDArray[np.int64],
    sizes: NDArray[np.int64],
    level: NDArray[np.float64],
    min_size: int,
) -> Branches:
    """Branches of growth: clusters of fewer positions than `min_size` are none.

    `children` are the two parts of each join, (n, 2), numbered from the positions on; `sizes` are
    those of all nodes.
    """
    n = len(sizes) - len(children)
    large = sizes >= min_size
    branch: dict[int, int] = {}  # large node: k for leaf k, -1 - k for join k
    leaves: list[int] = []
    pairs: list[tuple[int, int]] = []
    levels: list[float] = []
    for i, (a, b) in enumerate(children.tolist()):
        parts = [k for k in (a, b) if large[k]]
        for k in parts:
            if k not in branch:
                branch[k] = len(leaves)
                leaves.append(k)
        if len(parts) == 2:
            branch[n + i] = -1 - len(pairs)
            pairs.append((branch[a], branch[b]))
            levels.append(level[i])
        elif parts:
            branch[n + i] = branch[parts[0]]
    joins = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    joins = np.where(joins < 0, len(leaves) - 1 - joins, joins)
    places = [_first_position(children, node, n) for node in leaves]
    return Branches(joins, np.array(levels), np.array(places or [-1], dtype=np.int64))


def _first_position(children: NDArray[np.int64], node: int, n: int) -> int:
    """A position below a node."""
    while node >= n:
        node = int(children[node - n, 0])
    return node
