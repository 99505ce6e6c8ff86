"""Merging: from single positions to grains, by how much regions differ beyond noise.

Three steps, each on features with noise of standard deviation 1 (`features.py`):

1. Neighbouring regions join, cheapest first. A join is cheap when the sum of squares inside regions
   grows little for the length of border that disappears (the energy of Mumford and Shah, the scheme
   of Koepfler). In each round, all pairs of regions that are each other's cheapest neighbour join.
2. Thin regions that are a mixture of their neighbours are borders, not grains: they dissolve.
3. Regions with the same patterns on both sides of their common border join. Before the comparison,
   the features near the border are carried to it along the gradient inside each region, so a
   lattice may bend from one end of a grain to the other.

Finally, each position at a border goes to the region with the nearest mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .borders import (
    MAX_CONTRAST,
    contrasts,
    join_mutual_neighbours,
    refine_borders,
)
from .late_joins import LateJoins
from .region_graph import RegionBorders, Regions
from .regions import (
    consecutive,
    find_borders,
    grid_pairs,
    noise_of_sum,
    region_means,
)

MAX_UNEXPLAINED_SHARE = 0.4
"""Share of the power of a thin region that a mixture of its neighbours may leave unexplained.

A larger value dissolves more thin regions, in the end thin grains too.
"""

MAX_THIN_WIDTH = 1.5
"""A region is thin up to this number of scan positions per unit of its border.

A larger value lets wider regions dissolve.
"""


_FEW_JOINS = 2048
"""With fewer joins in a round than one for so many borders, only what changes is looked at. With a
larger value, more rounds look at all borders; with a smaller one, more of them go through lists of
neighbours, which takes longer for each join."""


class Merges(NamedTuple):
    """A binary tree: merge `i` makes node ``n_leaves + i`` from two older nodes."""

    children: NDArray[np.int64]
    """``(n, 2)``; a leaf is the flat index of a scan position."""
    level: NDArray[np.float64]
    """Level of each merge, never below the levels of its children."""
    mask: NDArray[np.bool_]
    """Positions in the tree, ``(Rx, Ry)``."""


def merge_positions(values: NDArray[Any], mask: NDArray[Any], stop: float = 1.0) -> Merges:
    """Step 1: all merges with a level up to `stop`, in units of `max_cost`.

    Parameters
    ----------
    values : ndarray, (Rx, Ry, rank)
        Features with noise of standard deviation 1.
    mask : ndarray, (Rx, Ry), bool
        Positions that take part.
    stop : float
        The default is the automatic cut; infinity merges all regions that touch.
    """
    inside = np.flatnonzero(mask)
    number = np.cumsum(mask) - 1
    first, second, length = grid_pairs(mask)
    regions = Regions(values.reshape(mask.size, values.shape[2])[inside])
    borders = RegionBorders(regions, number[first], number[second], length, stop)
    node = inside.copy()
    children, levels, n_merges = [np.empty((0, 2), dtype=np.int64)], [np.empty(0)], 0
    for stays, joins, level in _rounds(borders):
        children.append(np.stack([node[stays], node[joins]], axis=1))
        levels.append(level)
        node[stays] = mask.size + n_merges + np.arange(len(stays))
        n_merges += len(stays)
    return Merges(np.concatenate(children), np.concatenate(levels), mask)


def _rounds(
    borders: RegionBorders,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """All rounds of joins: regions that stay, those that join them, and the levels."""
    chosen = borders.mutual()
    while len(chosen):
        yield borders.join(chosen)
        chosen = borders.mutual()
        if len(chosen) < len(borders.first) // _FEW_JOINS:
            late = LateJoins(borders)
            while late.pairs:
                yield late.join()
            return


def cut_merges(merges: Merges, level: float) -> NDArray[np.int64]:
    """Labels ``(Rx, Ry)`` after all merges up to `level`; -1 outside the mask."""
    n = merges.mask.size
    keep = np.flatnonzero(merges.level <= level)
    nodes = n + len(merges.level)
    edges = merges.children[keep].ravel(), np.repeat(n + keep, 2)
    graph = coo_array((np.ones(2 * len(keep), dtype=bool), edges), shape=(nodes, nodes))
    part = connected_components(graph, directed=False)[1][:n]
    return consecutive(np.where(merges.mask, part.reshape(merges.mask.shape), -1))


def dissolve(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Step 2: each thin region that is a mixture of larger neighbours joins one of them."""
    if labels.max(initial=-1) < 1:
        return labels
    rank = values.shape[2]
    # Only typical positions are in the mean and in its count; the size holds all positions.
    mean, counts = region_means(labels, values)
    # Single numbers are looked up far quicker in lists than in arrays.
    count: list[float] = counts.tolist()
    size: list[float] = counts.tolist()
    power: list[float] = (mean**2).sum(axis=1).tolist()
    near: list[dict[int, float]] = [{} for _ in size]
    borders = find_borders(labels)[0]
    for i, j, length in zip(*(x.tolist() for x in borders), strict=True):
        near[i][j] = near[j][i] = length
    target = np.arange(len(size))
    # Regions that are gone, or stay as long as nothing changes beside them.
    settled = [False] * len(size)
    purer: set[int] = set()
    while not all(settled):
        strength = power.copy()
        for j in purer:
            for k in (j, *near[j]):
                settled[k] = bool(target[k] != k)
        purer = set()
        # The smallest region first; of regions of one size, the weakest.
        for i in np.lexsort((strength, size)).tolist():
            if settled[i]:
                continue
            settled[i] = True
            if size[i] > MAX_THIN_WIDTH * sum(near[i].values()):
                continue
            larger = [j for j in near[i] if (size[j], strength[j]) > (size[i], strength[i])]
            if not larger:
                continue
            part = _largest_part(
                mean[i],
                max(power[i] - rank / count[i], 1e-9),
                count[i],
                mean[larger],
                [power[j] for j in larger],
                [count[j] for j in larger],
            )
            if part is None:
                continue
            j, share = larger[part[0]], part[1]
            if share > 0.8:  # nearly pure: a true mixture would spoil the mean
                both = count[i] + count[j]
                mean[j] = (count[j] * mean[j] + count[i] * mean[i]) / both
                count[j] = both
                power[j] = float((mean[j] ** 2).sum())
                purer.add(j)
            size[j] += size[i]
            for k, length in near[i].items():
                del near[k][i]
                if k != j:
                    near[j][k] = near[k][j] = near[j].get(k, 0) + length
            near[i] = {}
            target[i] = j
            for k in (j, *near[j]):
                settled[k] = False
    while (target[target] != target).any():
        target = target[target]
    return consecutive(np.where(labels >= 0, target[labels], -1))


def _largest_part(
    mean: NDArray[Any],
    power: float,
    count: float,
    others: NDArray[Any],
    strength: list[float],
    counts: list[float],
) -> tuple[int, float] | None:
    """Neighbour with the largest share in a region, and this share; None for no mixture.

    `power` is that of the region without noise, `strength` the power of each of the `others`.
    """
    # A far weaker neighbour, such as noise, would explain any region with a large enough share.
    weak = [k for k, own in enumerate(strength) if own < 0.01 * power]
    if weak:
        others[weak] = 0
    found, rest = nnls(others.T, mean)
    share: list[float] = found.tolist()
    noise = noise_of_sum(len(mean), count, found, np.array(counts))
    if rest**2 - noise >= MAX_UNEXPLAINED_SHARE * power:
        return None
    least = 0.1 * max(strength)
    strong = sum(part for part, own in zip(share, strength, strict=True) if own > least)
    if strong < 0.5:
        if min(strength) > least:
            return None  # a pocket of liquid between grains, not their mixture
        largest = strength.index(min(strength))  # more than half has no structure, like the liquid
    else:
        parts = [part**2 * own for part, own in zip(share, strength, strict=True)]
        largest = parts.index(max(parts))
    return largest, share[largest]


def join_alike(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Steps 2 and 3 in turn, until no region is a mixture and each border has contrast."""
    while True:
        before = labels
        labels = refine_borders(dissolve(labels, values), values, rounds=2)
        borders, contrast = contrasts(labels, values)
        n = int(labels.max(initial=-1)) + 1
        target = join_mutual_neighbours(borders, contrast, n, MAX_CONTRAST)
        if target is not None:
            labels = consecutive(np.where(labels >= 0, target[labels], -1))
        elif labels.max(initial=-1) == before.max(initial=-1):
            return labels


def find_regions(values: NDArray[Any], merges: Merges) -> NDArray[np.int64]:
    """Labels ``(Rx, Ry)`` of the grains: steps 2 and 3, from the merges of step 1."""
    return refine_borders(join_alike(cut_merges(merges, 1.0), values), values)


def joins_of(
    merges: Merges,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Merges as pairs of positions, one from each side, and their levels; the finest first."""
    n = merges.mask.size
    member = np.arange(n + len(merges.level))
    for i, child in enumerate(merges.children[:, 0].tolist()):
        member[n + i] = member[child]
    # Stable, so that children stay before their parents where levels are equal.
    order = np.argsort(merges.level, kind="stable")
    ends = member[merges.children[order]]
    return ends[:, 0], ends[:, 1], merges.level[order]
