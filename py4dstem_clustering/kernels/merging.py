"""Merging: from single positions to grains, by what regions differ in beyond noise.

Three steps, each on features with noise of standard deviation 1 (`features.py`):

1. Neighbouring regions join, cheapest first, where the sum of squares grows little for the border
   that goes (Mumford and Shah's energy, Koepfler's scheme). Every pair of regions that are each
   other's cheapest neighbour joins at once, round by round.
2. Thin regions that are a mixture of their neighbours are borders, not grains: they dissolve.
3. Regions whose patterns are the same on both sides of their common border join. Only what lies
   near the border is compared, carried to it along the gradients inside, so a lattice may bend
   from one end of a grain to the other.

Then each position at a border goes to the region whose mean is nearest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .borders import LOCAL, border_values, contrasts, mutual_borders, refine_borders
from .regions import NOISE, VARIATION, consecutive, find_borders, grid_pairs, region_means

MAX_COST = 40.0
"""Cost up to which step 1 merges; with few features that hold less noise, see `max_cost`."""

COST_OF_FEATURE = 3.0
"""The same for each feature, where they are few."""

MIXTURE = 0.4
"""Share of the power of a thin region that a mixture of its neighbours may leave unexplained."""

THIN = 1.5
"""Positions for each unit of border below which a region is thin."""

_CHUNK = 2**16


class Merges(NamedTuple):
    """A binary tree: merge `i` makes node ``n_leaves + i`` of two older nodes."""

    children: NDArray[Any]
    """``(n, 2)``; a leaf is the flat index of a scan position."""
    level: NDArray[Any]
    """Level of each merge, never below those of its children."""
    mask: NDArray[Any]
    """Positions in the tree, ``(Rx, Ry)``."""


def max_cost(rank: int) -> float:
    """Cost up to which step 1 merges: noise costs as much as there are features to hold it."""
    return min(MAX_COST, COST_OF_FEATURE * rank)


def _costs(
    mean: NDArray[Any], size: NDArray[Any], a: NDArray[Any], b: NDArray[Any], length: NDArray[Any]
) -> NDArray[Any]:
    """What it costs to join regions, in units of `max_cost`."""
    rank = mean.shape[1]
    out = np.empty(len(a))
    power = np.maximum((mean**2).sum(axis=1) - rank / size, 0)
    for start in range(0, len(a), _CHUNK):
        piece = slice(start, start + _CHUNK)
        i, j = a[piece], b[piece]
        squared = ((mean[i] - mean[j]) ** 2).sum(axis=1)
        # Noise, and the variation of a grain as strong as the stronger of the two.
        spread = 1 + VARIATION**2 * np.maximum(power[i], power[j]) / rank
        weight = size[i] * size[j] / (size[i] + size[j])
        out[piece] = weight * squared / spread / length[piece]
    return out / max_cost(rank)


def merge_positions(values: NDArray[Any], mask: NDArray[Any], stop: float = 1.0) -> Merges:
    """Step 1, up to the level `stop`."""
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
        # Of equally cheap neighbours the first in reading order counts.
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
        length = np.bincount(inverse, length[apart])
        cost = cost[apart][first]
        a, b = np.divmod(pair, len(mean))
        again = np.flatnonzero(changed[a] | changed[b])
        cost[again] = _costs(mean, size, a[again], b[again], length[again])
    return Merges(
        np.concatenate(children) if children else np.empty((0, 2), dtype=np.int64),
        np.concatenate(levels) if levels else np.empty(0),
        mask,
    )


def cut_merges(merges: Merges, level: float) -> NDArray[Any]:
    """Labels ``(Rx, Ry)`` of the regions at one level; -1 outside the mask."""
    n = merges.mask.size
    keep = np.flatnonzero(merges.level <= level)
    nodes = n + len(merges.level)
    edges = merges.children[keep].ravel(), np.repeat(n + keep, 2)
    graph = coo_array((np.ones(2 * len(keep), dtype=bool), edges), shape=(nodes, nodes))
    part = connected_components(graph, directed=False)[1][:n]
    return consecutive(np.where(merges.mask, part.reshape(merges.mask.shape), -1))


def dissolve(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Step 2: thin regions that are mixtures of larger neighbours go to one of them."""
    if labels.max(initial=-1) < 1:
        return labels
    rank = values.shape[2]
    mean, count = region_means(labels, values)  # of what counts as typical of a region
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
        # The smallest first; of equal ones the weakest.
        for i in np.lexsort((strength, size)):
            if not alive[i] or size[i] > THIN * sum(near[i].values()):
                continue
            larger = [j for j in near[i] if (size[j], strength[j]) > (size[i], strength[i])]
            if not larger:
                continue
            j = _explained(mean[i], count[i], mean[larger], count[larger], rank)
            if j is None:
                continue
            share, j = j[1], larger[j[0]]
            if share > 0.8:
                # More of the same; a mixture would spoil the mean.
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


def _explained(
    mean: NDArray[Any], count: float, others: NDArray[Any], counts: NDArray[Any], rank: int
) -> tuple[int, float] | None:
    """Which neighbour holds the largest share of a region and how much; None if not a mixture."""
    power = max(float((mean**2).sum() - rank / count), 1e-9)
    strength = (others**2).sum(axis=1)
    # What is far weaker, as noise is, would explain anything with a large enough share.
    others = np.where(strength[:, None] < 0.01 * power, 0, others)
    share, rest = nnls(others.T, mean)
    noise = NOISE * rank * (1 / count + (share**2 / counts).sum())
    if rest**2 - noise >= MIXTURE * power:
        return None
    strong = strength > 0.1 * strength.max()
    if strong.all() and share.sum() < 0.5:
        return None  # a pocket of liquid between grains is no mixture of them
    if not strong.all() and share[strong].sum() < 0.5:
        largest = int(strength.argmin())  # more than half is what has no structure
    else:
        largest = int((share**2 * strength).argmax())
    return largest, float(share[largest])


def join_alike(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Steps 2 and 3 in turn, until no region is a mixture and no border without contrast."""
    while True:
        before = labels
        labels = refine_borders(dissolve(labels, values), values, rounds=2)
        borders, contrast = contrasts(labels, values, border_values(labels, values))
        target = mutual_borders(borders, contrast, int(labels.max(initial=-1)) + 1, LOCAL)
        if target is not None:
            labels = consecutive(np.where(labels >= 0, target[labels], -1))
        elif labels.max(initial=-1) == before.max(initial=-1):
            return labels


def find_regions(values: NDArray[Any], merges: Merges) -> NDArray[Any]:
    """Labels of the grains: all steps, from the merges of step 1."""
    return refine_borders(join_alike(cut_merges(merges, 1.0), values), values)


def coarse_joins(labels: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Joins beyond the automatic cut: pairs of regions, and levels from 1 on.

    By the contrast across their common border, in units of what step 3 takes for none.
    """
    borders, contrast = contrasts(labels, values, border_values(labels, values))
    target = np.arange(int(labels.max(initial=-1)) + 1)
    pairs, levels = [], []
    for k in np.argsort(contrast, kind="stable"):
        i, j = target[borders.first[k]], target[borders.second[k]]
        if i != j:
            target[target == j] = i
            pairs.append((borders.first[k], borders.second[k]))
            levels.append(max(contrast[k] / LOCAL, np.nextafter(1.0, 2)))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(levels)


def joins_of(merges: Merges) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Merges as joins of positions, one of either side, and levels; from the finest on."""
    n = merges.mask.size
    member = np.arange(n + len(merges.level))
    for i, child in enumerate(merges.children[:, 0].tolist()):
        member[n + i] = member[child]
    # Stable, so that children stay before their parents where levels are equal.
    order = np.argsort(merges.level, kind="stable")
    ends = member[merges.children[order]]
    return ends[:, 0], ends[:, 1], merges.level[order]
