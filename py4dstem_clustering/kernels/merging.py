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

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .borders import (
    MAX_CONTRAST,
    border_values,
    contrasts,
    join_mutual_neighbours,
    refine_borders,
)
from .regions import (
    GRAIN_VARIATION,
    consecutive,
    find_borders,
    grid_pairs,
    noise_of_sum,
    region_means,
)

MAX_COST = 40.0
"""Largest cost of a join in step 1, in units of the noise; less with few features.

A larger value merges more in step 1: small or weak grains are lost to their neighbours.
"""

MAX_COST_PER_FEATURE = 3.0
"""Largest cost of a join per feature, where this gives less than `MAX_COST` (up to 13 features).

A larger value merges more in step 1 when the patterns have few features.
"""

MAX_UNEXPLAINED_SHARE = 0.4
"""Share of the power of a thin region that a mixture of its neighbours may leave unexplained.

A larger value dissolves more thin regions, in the end thin grains too.
"""

MAX_THIN_WIDTH = 1.5
"""A region is thin up to this number of scan positions per unit of its border.

A larger value lets wider regions dissolve.
"""

_PAIRS_PER_CHUNK = 2**16


class Merges(NamedTuple):
    """A binary tree: merge `i` makes node ``n_leaves + i`` from two older nodes."""

    children: NDArray[np.int64]
    """``(n, 2)``; a leaf is the flat index of a scan position."""
    level: NDArray[np.float64]
    """Level of each merge, never below the levels of its children."""
    mask: NDArray[np.bool_]
    """Positions in the tree, ``(Rx, Ry)``."""


def max_cost(rank: int) -> float:
    """Cost up to which step 1 merges `rank` features: fewer features hold less noise."""
    return min(MAX_COST, MAX_COST_PER_FEATURE * rank)


def _costs(
    mean: NDArray[Any], size: NDArray[Any], a: NDArray[Any], b: NDArray[Any], length: NDArray[Any]
) -> NDArray[np.float64]:
    """Cost of joining regions `a` with regions `b`, in units of `max_cost`."""
    rank = mean.shape[1]
    out = np.empty(len(a))
    power = np.maximum((mean**2).sum(axis=1) - rank / size, 0)
    for start in range(0, len(a), _PAIRS_PER_CHUNK):
        piece = slice(start, start + _PAIRS_PER_CHUNK)
        i, j = a[piece], b[piece]
        squared = ((mean[i] - mean[j]) ** 2).sum(axis=1)
        # Noise, and the variation of a grain as strong as the stronger of the two.
        spread = 1 + GRAIN_VARIATION**2 * np.maximum(power[i], power[j]) / rank
        weight = size[i] * size[j] / (size[i] + size[j])
        out[piece] = weight * squared / spread / length[piece]
    return out / max_cost(rank)


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
    rx, ry, rank = values.shape
    n = rx * ry
    inside = np.flatnonzero(mask)
    node = inside.copy()
    mean = values.reshape(n, rank)[inside].astype(np.float64)
    size = np.ones(len(inside))
    level = np.zeros(len(inside))
    number = np.full(n, -1)
    number[inside] = np.arange(len(inside))
    a, b, length = grid_pairs(mask)
    a, b = number[a], number[b]
    cost = _costs(mean, size, a, b, length)
    children, levels, n_merges = [], [], 0
    while len(a):
        cheapest = np.full(len(mean), np.inf)
        np.minimum.at(cheapest, a, cost)
        np.minimum.at(cheapest, b, cost)
        # Of equally cheap neighbours, the first in reading order is chosen.
        choice = np.full(len(mean), len(a))
        for end in (a, b):
            best = np.flatnonzero(cost == cheapest[end])
            np.minimum.at(choice, end[best], best)
        edge = np.arange(len(a))
        mutual = np.flatnonzero((choice[a] == edge) & (choice[b] == edge) & (cost <= stop))
        if not len(mutual):
            break
        i, j = a[mutual], b[mutual]
        joined = np.maximum(cost[mutual], np.maximum(level[i], level[j]))
        children.append(np.stack([node[i], node[j]], axis=1))
        levels.append(joined)
        both = size[i] + size[j]
        mean[i] = (size[i, None] * mean[i] + size[j, None] * mean[j]) / both[:, None]
        size[i], level[i] = both, joined
        node[i] = n + n_merges + np.arange(len(i))
        n_merges += len(i)

        target = np.arange(len(mean))
        target[j] = i
        changed = np.zeros(len(mean), dtype=bool)
        changed[i] = True
        stays = np.ones(len(mean), dtype=bool)
        stays[j] = False
        new = np.cumsum(stays) - 1
        mean, size, level, node = mean[stays], size[stays], level[stays], node[stays]
        changed = changed[stays]
        a, b = new[target[a]], new[target[b]]
        apart = a != b
        low, high = np.minimum(a[apart], b[apart]), np.maximum(a[apart], b[apart])
        pair, first, inverse = np.unique(
            low * len(mean) + high, return_index=True, return_inverse=True
        )
        length = np.bincount(inverse, length[apart]).astype(np.float64, copy=False)
        cost = cost[apart][first]
        a, b = np.divmod(pair, len(mean))
        again = np.flatnonzero(changed[a] | changed[b])
        cost[again] = _costs(mean, size, a[again], b[again], length[again])
    return Merges(
        np.concatenate(children) if children else np.empty((0, 2), dtype=np.int64),
        np.concatenate(levels) if levels else np.empty(0),
        mask,
    )


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
    mean, count = region_means(labels, values)
    size = count.copy()
    near: list[dict[int, float]] = [{} for _ in size]
    borders = find_borders(labels)[0]
    for i, j, length in zip(*(x.tolist() for x in borders), strict=True):
        near[i][j] = near[j][i] = length
    target = np.arange(len(size))
    alive = np.ones(len(size), dtype=bool)
    changed = True
    while changed:
        changed = False
        strength = (mean**2).sum(axis=1)
        # The smallest region first; of regions of one size, the weakest.
        for i in np.lexsort((strength, size)):
            if not alive[i] or size[i] > MAX_THIN_WIDTH * sum(near[i].values()):
                continue
            larger = [j for j in near[i] if (size[j], strength[j]) > (size[i], strength[i])]
            if not larger:
                continue
            part = _largest_part(mean[i], count[i], mean[larger], count[larger], rank)
            if part is None:
                continue
            j, share = larger[part[0]], part[1]
            if share > 0.8:  # nearly pure: a true mixture would spoil the mean
                both = count[i] + count[j]
                mean[j] = (count[j] * mean[j] + count[i] * mean[i]) / both
                count[j] = both
            size[j] += size[i]
            for k, length in near[i].items():
                del near[k][i]
                if k != j:
                    near[j][k] = near[k][j] = near[j].get(k, 0) + length
            near[i] = {}
            alive[i], target[i], changed = False, j, True
    while (target[target] != target).any():
        target = target[target]
    return consecutive(np.where(labels >= 0, target[labels], -1))


def _largest_part(
    mean: NDArray[Any], count: float, others: NDArray[Any], counts: NDArray[Any], rank: int
) -> tuple[int, float] | None:
    """Neighbour with the largest share in a region, and this share; None for no mixture."""
    power = max(float((mean**2).sum() - rank / count), 1e-9)
    strength = (others**2).sum(axis=1)
    # A far weaker neighbour, such as noise, would explain any region with a large enough share.
    others = np.where(strength[:, None] < 0.01 * power, 0, others)
    share, rest = nnls(others.T, mean)
    noise = noise_of_sum(rank, count, share, counts)
    if rest**2 - noise >= MAX_UNEXPLAINED_SHARE * power:
        return None
    strong = strength > 0.1 * strength.max()
    if strong.all() and share.sum() < 0.5:
        return None  # a pocket of liquid between grains, not their mixture
    if not strong.all() and share[strong].sum() < 0.5:
        largest = int(strength.argmin())  # more than half has no structure, like the liquid
    else:
        largest = int((share**2 * strength).argmax())
    return largest, float(share[largest])


def join_alike(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Steps 2 and 3 in turn, until no region is a mixture and each border has contrast."""
    while True:
        before = labels
        labels = refine_borders(dissolve(labels, values), values, rounds=2)
        borders, contrast = contrasts(labels, values, border_values(labels, values))
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
