"""Split a cluster at a finer level of the tree from which it was cut."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.regions import consecutive, nearest_label
from ..kernels.tree import link
from .tree import ClusterTree, sum_nodes


def split_pieces(
    labels: NDArray[Any], label: int, tree: ClusterTree, level: float, min_size: int
) -> NDArray[Any]:
    """Pieces of a cluster at a finer level, the largest is 0; -1 outside of the cluster.

    Positions that are in no piece of `min_size` positions go to the nearest one that is.
    """
    member = labels == label
    background = False if tree.method == "merge" else None
    fine = tree.cut(level, drop_background=background).labels
    piece = consecutive(np.where(member, fine, -1))
    sizes = np.bincount(piece[piece >= 0], minlength=1)
    large = np.append(sizes >= min_size, False)[piece]
    if not large.any():
        large = piece >= 0
    piece = consecutive(np.where(large, piece, -1))
    if not large.any():
        return piece
    piece = np.where(member, nearest_label(piece, piece < 0), -1)
    order = np.argsort(-np.bincount(piece[member]), kind="stable")
    return np.append(np.argsort(order), -1)[piece]


def finer_level(tree: ClusterTree, member: NDArray[np.bool_], min_size: int = 1) -> float | None:
    """Coarsest level at which a cluster falls into two pieces of at least `min_size` positions.

    Parameters
    ----------
    tree : ClusterTree
        Tree from which the cluster was cut.
    member : ndarray of bool, (Rx, Ry)
        Members of the cluster.
    min_size : int
        Smallest piece that counts.

    Returns
    -------
    float or None
        The level; None if there is none.
    """
    positions = np.arange(member.size)
    # Joins above `PATTERN_LEVEL` are of whole regions of one pattern, the others of positions.
    for fine in (True,) if tree.method == "grow" else (False, True):
        part = positions if fine else tree._regions.ravel()
        which = np.flatnonzero(tree._fine == fine)
        first, second = part[tree.first[which]], part[tree.second[which]]
        size = np.bincount(part[member.ravel() & (part >= 0)], minlength=int(part.max()) + 2)
        useful = (size[first] > 0) & (size[second] > 0)
        last = _last_large_join(first[useful], second[useful], size, min_size)
        if last is not None:
            return _between(tree, float(tree.level[which[useful][last]]))
    return None


def _last_large_join(
    first: NDArray[Any], second: NDArray[Any], size: NDArray[Any], min_size: int
) -> int | None:
    """Number of the last join of two parts that both have at least `min_size` positions."""
    children, _ = link(first, second, len(size))
    weight = sum_nodes(children, size[:, None])[:, 0]
    large = np.flatnonzero((weight[children] >= min_size).all(axis=1))
    return int(large[-1]) if len(large) else None


def _between(tree: ClusterTree, level: float) -> float:
    """A level between that of a join and the next finer one, at which the join is not made."""
    levels = np.sort(tree.levels)
    if tree.method == "grow":
        finer = levels[levels > level]
        return float((level + finer[0]) / 2) if len(finer) else min(1.0, level + 1e-6)
    finer = levels[levels < level]
    low = float(finer[-1]) if len(finer) else 0.0
    middle = (low + level) / 2
    return middle if low < middle < level else low
