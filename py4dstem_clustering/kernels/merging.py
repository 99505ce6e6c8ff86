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

from typing import NamedTuple

import numpy as np
from scipy.ndimage import correlate1d, find_objects, maximum_filter, minimum_filter
from scipy.optimize import nnls
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .similarity import DIRECTIONS, FORWARD, with_neighbour

# One setting for every scan and dose, tuned on simulated scans (seeds 100 to 163 of the
# benchmark) and the measured MgO scan; the benchmark reports other seeds.
VARIATION = 0.5
"""Relative variation allowed inside a grain."""

MAX_COST = 40.0
"""Cost up to which step 1 merges; with few features that hold less noise, see `max_cost`."""

COST_OF_FEATURE = 3.0
"""The same for each feature, where they are few."""

MIXTURE = 0.4
"""Share of the power of a thin region that a mixture of its neighbours may leave unexplained."""

THIN = 1.5
"""Positions for each unit of border below which a region is thin."""

LOCAL = 0.05
"""Relative squared difference across a border up to which two regions are the same."""

NEAR = 3.0
"""Standard deviation of the window at a border, scan positions."""

DEEP = 2.0
"""Distance from a border, scan positions, beyond which patterns are hardly blurred by others."""

GRADIENT = 0.1
"""Part of VARIATION, squared, that a grain may have over the distance NEAR."""

NOISE = 1.5
"""Noise counts this many times its expectation before a difference is taken for real."""

_CHUNK = 2**16

# Neighbours: offset, and how much border they share. A straight border of one position has 2.
_STEPS = ((1, 0, 1.0), (0, 1, 1.0), (1, 1, 0.5), (1, -1, 0.5))


class Merges(NamedTuple):
    """A binary tree: merge `i` makes node ``n_leaves + i`` of two older nodes."""

    children: np.ndarray
    """``(n, 2)``; a leaf is the flat index of a scan position."""
    level: np.ndarray
    """Level of each merge, never below those of its children."""
    mask: np.ndarray
    """Positions in the tree, ``(Rx, Ry)``."""


class Borders(NamedTuple):
    """Pairs of touching regions, the lower number first."""

    first: np.ndarray
    second: np.ndarray
    length: np.ndarray


def max_cost(rank: int) -> float:
    """Cost up to which step 1 merges: noise costs as much as there are features to hold it."""
    return min(MAX_COST, COST_OF_FEATURE * rank)


def grid_pairs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbouring positions inside `mask` as flat indices, and the border that they share."""
    rx, ry = mask.shape
    position = np.arange(rx * ry).reshape(rx, ry)
    first, second, length = [], [], []
    for dx, dy, border in _STEPS:
        here = position[: rx - dx, max(0, -dy) : ry - max(0, dy)]
        there = position[dx:, max(0, dy) : ry + min(0, dy)]
        both = mask.ravel()[here] & mask.ravel()[there]
        first.append(here[both])
        second.append(there[both])
        length.append(np.full(both.sum(), border))
    return np.concatenate(first), np.concatenate(second), np.concatenate(length)


def _costs(
    mean: np.ndarray, size: np.ndarray, a: np.ndarray, b: np.ndarray, length: np.ndarray
) -> np.ndarray:
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


def merge_positions(values: np.ndarray, mask: np.ndarray, stop: float = 1.0) -> Merges:
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


def cut_merges(merges: Merges, level: float) -> np.ndarray:
    """Labels ``(Rx, Ry)`` of the regions at one level; -1 outside the mask."""
    n = merges.mask.size
    keep = np.flatnonzero(merges.level <= level)
    nodes = n + len(merges.level)
    edges = merges.children[keep].ravel(), np.repeat(n + keep, 2)
    graph = coo_array((np.ones(2 * len(keep), dtype=bool), edges), shape=(nodes, nodes))
    part = connected_components(graph, directed=False)[1][:n]
    return consecutive(np.where(merges.mask, part.reshape(merges.mask.shape), -1))


def consecutive(labels: np.ndarray) -> np.ndarray:
    """The same regions numbered from 0 without gaps; -1 stays."""
    out = np.full(labels.shape, -1, dtype=np.int64)
    inside = labels >= 0
    out[inside] = np.unique(labels[inside], return_inverse=True)[1]
    return out


def region_means(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean features ``(n, rank)`` and sizes of the regions."""
    inside = labels >= 0
    number = labels[inside]
    size = np.bincount(number).astype(np.float64)
    total = [np.bincount(number, values[..., k][inside]) for k in range(values.shape[2])]
    return np.stack(total, axis=1) / size[:, None], size


def find_borders(labels: np.ndarray) -> tuple[Borders, np.ndarray, np.ndarray, np.ndarray]:
    """Borders between regions; and for each pair of positions across one: which, and the two."""
    a, b, length = grid_pairs(labels >= 0)
    flat = labels.ravel().astype(np.int64)  # since pairs are numbered
    across = flat[a] != flat[b]
    a, b, length = a[across], b[across], length[across]
    swap = flat[a] > flat[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    n = int(labels.max(initial=-1)) + 1
    pair, which = np.unique(flat[a] * n + flat[b], return_inverse=True)
    borders = Borders(*np.divmod(pair, max(n, 1)), np.bincount(which, length, len(pair)))
    return borders, which, a, b


def dissolve(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
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
    mean: np.ndarray, count: float, others: np.ndarray, counts: np.ndarray, rank: int
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


def _window(values: np.ndarray, along_x: int, along_y: int) -> np.ndarray:
    """Sums about each position under the window, times powers of the offsets in units of NEAR."""
    offset = np.arange(-int(3 * NEAR + 0.5), int(3 * NEAR + 0.5) + 1) / NEAR
    weight = np.exp(-(offset**2) / 2)
    weight /= weight.sum()
    for axis, power in enumerate((along_x, along_y)):
        values = correlate1d(values, weight * offset**power, axis=axis, mode="constant")
    return values


def _stiffness(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How little the gradient inside each region may follow the data: ridge of its regression.

    Ratio of noise, over as many positions as the window holds, to what gradients are expected.
    """
    rank = values.shape[2]
    mean, size = region_means(labels, values)
    power = np.maximum((mean**2).sum(axis=1) / rank - 1 / size, 0)
    expected = np.maximum(GRADIENT * VARIATION**2 * power, 1e-6)
    return 1e-3 + 1 / (4 * np.pi * NEAR**2 * expected)


def border_values(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Features of each position as its region has them at this place.

    The mean of the members about it, carried from their middle to the position along the gradient
    of the region. The gradient comes from members deeper than DEEP, where no border is blurred: a
    lattice that bends reaches its border with the slope it has everywhere, a ramp between two
    grains is steep at the border only.
    """
    out = np.zeros(values.shape, dtype=np.float32)
    stiff = _stiffness(labels, values)
    reach = int(DEEP)
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= DEEP
    deep = minimum_filter(labels, footprint=disk) == maximum_filter(labels, footprint=disk)
    for label, box in enumerate(find_objects(labels + 1)):
        member = labels[box] == label
        whole, inner = (mask.astype(np.float64) for mask in (member, member & deep[box]))
        own = np.where(member[..., None], values[box], 0).astype(np.float32)
        count = _window(whole, 0, 0)[member]
        middle_x, middle_y = (
            _window(whole, *powers)[member] / count for powers in ((1, 0), (0, 1))
        )
        level = _window(own, 0, 0)[member] / count[:, None]

        own *= inner[..., None].astype(np.float32)
        total, x, y, xx, xy, yy = (
            _window(inner, *powers)[member]
            for powers in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
        )
        # Least squares about the middle of the inner members; where there are none, no gradient.
        x, y = (moment / np.maximum(total, 1e-12) for moment in (x, y))
        xx = xx - total * x**2 + stiff[label]
        yy = yy - total * y**2 + stiff[label]
        xy = xy - total * x * y
        sums = _window(own, 0, 0)[member]
        along_x = _window(own, 1, 0)[member] - x[:, None] * sums
        along_y = _window(own, 0, 1)[member] - y[:, None] * sums
        # Solved for the shift from the middle of the members to the position itself.
        determinant = xx * yy - xy**2
        shift_x = (yy * middle_x - xy * middle_y) / determinant
        shift_y = (xx * middle_y - xy * middle_x) / determinant
        out[box][member] = level - shift_x[:, None] * along_x - shift_y[:, None] * along_y
    return out


def contrasts(labels: np.ndarray, values: np.ndarray, local: np.ndarray) -> tuple:
    """Borders, and the relative squared difference across each of them."""
    rank = values.shape[2]
    borders, which, a, b = find_borders(labels)
    n = len(borders.first)
    if n == 0:
        return borders, np.empty(0)
    flat = local.reshape(-1, rank)
    pairs = np.bincount(which, minlength=n)
    sides = [
        np.stack([np.bincount(which, flat[end, k], n) for k in range(rank)], axis=1)
        / pairs[:, None]
        for end in (a, b)
    ]
    size = np.bincount(labels[labels >= 0])
    # About as many positions take part as lie in the window along the border.
    window = NEAR * borders.length + 1
    counts = [np.minimum(size[end], window) for end in (borders.first, borders.second)]
    power = [(side**2).sum(axis=1) for side in sides]
    product = (sides[0] * sides[1]).sum(axis=1)
    weak = np.minimum(*power)
    strong = np.maximum(*power)
    # The weaker side may be thinner, up to a factor of two.
    factor = np.clip(product / np.maximum(weak, 1e-9), 0.5, 2)
    squared = strong - 2 * factor * product + factor**2 * weak
    # Members about the border lie 0.8 NEAR deep with a variance of 0.36: a gradient carried so far
    # adds noise, as far as it may follow the data.
    factors = 1 + (0.64 / 0.36) / (1 + _stiffness(labels, values) / 0.18) ** 2
    noise = NOISE * rank * sum(
        factors[end] / count
        for end, count in zip((borders.first, borders.second), counts, strict=True)
    )  # fmt: skip
    signal = np.maximum(strong - rank / np.maximum(*counts), 1e-9)
    return borders, np.maximum(squared - noise, 0) / signal


def join_alike(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Steps 2 and 3 in turn, until no region is a mixture and no border without contrast."""
    while True:
        before = labels
        labels = refine_borders(dissolve(labels, values), values, rounds=2)
        borders, contrast = contrasts(labels, values, border_values(labels, values))
        target = _mutual(borders, contrast, int(labels.max(initial=-1)) + 1, LOCAL)
        if target is not None:
            labels = consecutive(np.where(labels >= 0, target[labels], -1))
        elif labels.max(initial=-1) == before.max(initial=-1):
            return labels


def _mutual(borders: Borders, contrast: np.ndarray, n: int, limit: float) -> np.ndarray | None:
    """New number of each region when mutual best neighbours below `limit` join; None if none."""
    best = np.full(n, np.inf)
    np.minimum.at(best, borders.first, contrast)
    np.minimum.at(best, borders.second, contrast)
    alike = (contrast <= limit) & (contrast == best[borders.first])
    alike &= contrast == best[borders.second]
    if not alike.any():
        return None
    target = np.arange(n)
    free = np.ones(n, dtype=bool)
    # Longest border first: of equal contrasts (zero) a region takes part in one.
    where = np.flatnonzero(alike)
    for k in where[np.argsort(-borders.length[where], kind="stable")]:
        i, j = borders.first[k], borders.second[k]
        if free[i] and free[j]:
            target[j], free[i], free[j] = i, False, False
    return target


def refine_borders(labels: np.ndarray, values: np.ndarray, rounds: int = 8) -> np.ndarray:
    """Each position at a border to the touching region with the nearest mean.

    The border to a region without structure so comes to lie at one half. A Potts term, as strong
    as an eighth of the noise for each unit of border, keeps it smooth.
    """
    rank = values.shape[2]
    rx, ry = labels.shape
    steps = [(s * dx, s * dy, border) for dx, dy, border in _STEPS for s in (1, -1)]
    weights = np.array([border for *_, border in steps])
    for _ in range(rounds):
        if labels.max(initial=-1) < 1:
            break
        mean, _ = region_means(labels, values)
        inner = minimum_filter(labels, 3) == maximum_filter(labels, 3)
        core = np.where(inner, labels, -1)
        counts = np.bincount(core[core >= 0], minlength=len(mean))
        present = np.flatnonzero(counts)
        if len(present):
            pure, _ = region_means(consecutive(core), values)
            enough = counts[present] >= 8
            mean[present[enough]] = pure[enough]
        power = (mean**2).sum(axis=1)

        padded = np.pad(labels, 1, constant_values=-1)
        around = np.stack([padded[1 + dx : 1 + dx + rx, 1 + dy : 1 + dy + ry]
                           for dx, dy, _ in steps], axis=2)  # fmt: skip
        at = (labels >= 0) & ((around != labels[..., None]) & (around >= 0)).any(axis=2)
        places = np.argwhere(at)
        moved = labels.copy()
        for start in range(0, len(places), 4096):
            x, y = places[start : start + 4096].T
            near = around[x, y]
            # Itself first: it stays where it is just as well there.
            candidates = np.concatenate([labels[x, y][:, None], near], axis=1)
            squared = ((values[x, y][:, None] - mean[candidates]) ** 2).sum(axis=2)
            strongest = np.where(candidates >= 0, power[candidates], 0).max(axis=1)
            spread = 1 + VARIATION**2 * np.maximum(strongest, 1) / rank
            agree = ((near[:, None] == candidates[..., None]) * weights).sum(axis=2)
            energy = squared / spread[:, None] - rank / 8 * agree
            energy[candidates < 0] = np.inf
            moved[x, y] = np.take_along_axis(candidates, energy.argmin(axis=1)[:, None], axis=1)[
                :, 0
            ]
        if np.array_equal(moved, labels):
            break
        labels = consecutive(moved)  # a region may be gone
    return consecutive(labels)


def find_regions(values: np.ndarray, merges: Merges) -> np.ndarray:
    """Labels of the grains: all steps, from the merges of step 1."""
    return refine_borders(join_alike(cut_merges(merges, 1.0), values), values)


def feature_similarity(values: np.ndarray) -> np.ndarray:
    """Similarity of the features of neighbours ``(Rx, Ry, 8)``, float32, with noise taken off.

    The cosine over the lengths that the features have without noise; clipped to -1 and 1.
    """
    rx, ry, rank = values.shape
    length = np.sqrt(np.maximum((values.astype(np.float64) ** 2).sum(axis=2) - rank, rank / 4))
    out = np.full((rx, ry, 8), np.nan, dtype=np.float32)
    for k in FORWARD:
        (here_x, there_x), (here_y, there_y) = (
            with_neighbour(n, step) for n, step in zip((rx, ry), DIRECTIONS[k], strict=True)
        )
        here, there = values[here_x, here_y], values[there_x, there_y]
        cosine = np.einsum("xyk,xyk->xy", here, there, dtype=np.float64)
        cosine /= length[here_x, here_y] * length[there_x, there_y]
        out[here_x, here_y, k] = out[there_x, there_y, k - 4] = np.clip(cosine, -1, 1)
    return out


def coarse_joins(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def joins_of(merges: Merges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges as joins of positions, one of either side, and levels; from the finest on."""
    n = merges.mask.size
    member = np.arange(n + len(merges.level))
    for i, child in enumerate(merges.children[:, 0].tolist()):
        member[n + i] = member[child]
    # Stable, so that children stay before their parents where levels are equal.
    order = np.argsort(merges.level, kind="stable")
    ends = member[merges.children[order]]
    return ends[:, 0], ends[:, 1], merges.level[order]
