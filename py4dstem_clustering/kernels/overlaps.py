"""Grains that overlap: the pure pattern of each grain, and how much of it is in each position.

Regions of one pattern are the start (`merging.py`). Where two grains lie on top of each other,
patterns are sums, and a region there is no grain of its own:

1. A region whose mean pattern is a sum of those of other regions nearby, or a multiple of one of
   them, is dropped, the smallest first. What stays are the grains.
2. A grain that lies inside another one, such as the core of a particle in its shell, is never seen
   alone. As much of the pattern of the other grain is taken off as its disks allow.
3. Non-negative least squares give the amount of each nearby grain in each position, at most
   `MAX_GRAINS` of them.
4. The support of a grain is where its amount and its share stand out, connected to its core.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    find_objects,
    maximum_filter,
    minimum_filter,
)

from .blocks import Report
from .borders import MIN_CORE_SIZE
from .disks import Disks, shared_disks
from .joining import join_numbers
from .merging import MAX_UNEXPLAINED_SHARE
from .overlap_maps import (
    MAX_GRAINS,
    MIN_AMOUNT,
    disk_shares,
    few_grains,
    find_amounts,
    find_supports,
)
from .pieces import FLAT_DEPTH, cross_labels, empty_pattern
from .regions import (
    consecutive,
    depths,
    find_borders,
    grown_box,
    nearest_label,
    noise_of_sum,
    region_means,
)

# The constants are the same for every scan. They were tuned on `simulate_sample` of the kinds
# 'stacked' and 'core-shell' (seeds 100 to 104, 48 x 42 positions, 1,000 electrons), and 'bent-foil'
# (100 and 101), and the limits of wide regions and of rims on the measured MgO scan.
MAX_UNEXPLAINED = 0.25
"""Share of the power of the mean pattern of a region up to which other regions explain it. With a
larger value, grains with many disks in common vanish; with a smaller one, overlaps and pieces of
grains stay."""

MAX_AMOUNT = 2.0
"""Largest amount of another region in one that it explains. With a larger value, a thin rim
explains the grain that it belongs to; with a smaller one, pieces of a grain that grows thick
stay."""

WIDE = 9.0
"""Depth from which on a region of one pattern is always a grain, scan positions. A larger value
finds wider overlaps, and loses wide grains whose disks others share."""

BESIDE = 3
"""Distance up to which regions lie beside each other, scan positions; thin mixtures may be between
them."""

ALONE_SHARE = 0.9
"""Share of a grain from which on it counts as alone."""

MIN_ENCLOSED = 0.6
"""Part of the border of a grain that lies at another one for the grain to lie inside it."""

PEEL_QUANTILE = 0.5
"""Part of the disks of the outer grain, by intensity, that may be weaker in the inner grain than
what is taken off. A larger value takes off too much where both have disks at the same places."""


MIN_SHARED_DISKS = 0.45
"""Share of disks in common, see `shared_disks`, from which on two cores in one crystal are pieces
of it. With a larger value bent crystals come in pieces, with a smaller one stacked grains with
disks in common are one."""

MAX_RIM = 2
"""How far supports reach into the background, scan positions. A larger value is needed for longer
thin rims, and takes in tails that a camera leaves."""

MIN_ALONE = 0.35
"""Part of a crystal with more than `MAX_GRAINS` cores that shows the pattern of one core alone,
below which it is bent. Bent foils have 0.2, particles on top of each other 0.6."""

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)


class OverlapMaps(NamedTuple):
    """Grains that may overlap, N in all."""

    amounts: NDArray[np.float32]
    """How much of the pure pattern of each grain is in each position ``(Rx, Ry, N)``."""
    supports: NDArray[np.bool_]
    """Where each grain lies ``(Rx, Ry, N)``."""
    cores: NDArray[np.int64]
    """Grain from whose region each position is ``(Rx, Ry)``, -1 elsewhere."""
    alone: NDArray[np.bool_]
    """Positions where one grain is alone ``(Rx, Ry)``."""
    hidden: NDArray[np.bool_]
    """Grains ``(N,)`` that lie inside another one, whose pattern was taken off."""
    patterns: NDArray[np.float64]
    """Pure patterns as features ``(N, rank)``."""
    residual: NDArray[np.float32]
    """Share of the power of each pattern beyond noise that the grains do not explain."""
    shares: NDArray[np.float32]
    """Share of each grain ``(Rx, Ry, N)`` in what the disks of the grains there hold."""
    share_error: NDArray[np.float32]
    """Standard error of the largest share ``(Rx, Ry)``, from noise."""


def join_cut(
    pieces: NDArray[Any], regions: NDArray[Any], crystals: NDArray[Any]
) -> NDArray[np.int64]:
    """Pieces ``(Rx, Ry)``; those of one crystal that were cut from one region are one again.

    The home of a piece is the region in which most of it lies. Its rim may lie in another one, such
    as the film below, whose rims in all crystals would be one more region.
    """
    home = [_most(regions[pieces == k]) for k in range(int(pieces.max(initial=-1)) + 1)]
    return cross_labels(crystals, np.array([*home, -1])[pieces])


def find_ends(
    regions: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Regions whose patterns are no sums of those of others nearby, their means and sizes.

    The numbers of the regions that stay are renewed; -1 elsewhere. The last map gives each region
    that does not stay to the one that explains most of it.
    """
    number = consecutive(regions)
    mean, size = core_means(number, values)
    count = np.bincount(number[number >= 0], minlength=len(mean))
    beside = _beside(number)
    there = np.ones(len(mean), dtype=bool)
    heir = np.arange(len(mean))
    depth = depths(number)
    limit = np.where(depth < FLAT_DEPTH, MAX_UNEXPLAINED_SHARE, MAX_UNEXPLAINED)
    limit[depth >= WIDE] = -np.inf  # no piece of a bent crystal, and hardly an overlap
    for k in np.argsort(count, kind="stable").tolist():
        others = sorted(beside[k])
        if not others:
            continue
        unexplained, most = _unexplained(mean, size, others, k)
        if unexplained < limit[k]:
            there[k] = False
            heir[k] = most
            # What lies beside an overlap may explain what lies on its other side.
            for j in others:
                beside[j] = (beside[j] | beside[k]) - {j, k}
    while not there[heir].all():
        heir = heir[heir]
    renewed = np.where(there, np.cumsum(there) - 1, -1)
    whole = np.append(renewed[heir], -1)[number]
    return np.append(renewed, -1)[number], mean[there], size[there], whole


def _unexplained(
    mean: NDArray[Any], size: NDArray[Any], others: list[int], k: int
) -> tuple[float, int]:
    """Share of the power of the mean of region `k` that the `others` do not explain, and which of
    them explains most.
    """
    amount, rest = few_grains(mean[others].T, mean[k])
    rank = mean.shape[1]
    power = float((mean[k] ** 2).sum() - rank / size[k])
    most = others[int((amount * np.sqrt((mean[others] ** 2).sum(axis=1))).argmax())]
    if power <= 0:
        return 0.0, most
    if amount.max() > MAX_AMOUNT:
        return 1.0, most  # a weak rim does not explain its grain
    noise = noise_of_sum(rank, size[k], amount, size[others])
    return float(rest**2 - noise) / power, most


def core_means(
    number: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of regions, and numbers of positions in them; those at the border of a region, which
    the probe mixes, count only where it has few others.
    """
    edge = minimum_filter(number, footprint=_CROSS) != maximum_filter(number, footprint=_CROSS)
    count = np.bincount(number[~edge & (number >= 0)], minlength=int(number.max(initial=-1)) + 1)
    small = np.append(count < MIN_CORE_SIZE, True)
    return region_means(np.where(edge & ~small[number], -1, number), values)


def _beside(number: NDArray[Any]) -> list[set[int]]:
    """Regions that lie at most `BESIDE` positions from each region."""
    beside: list[set[int]] = [set() for _ in range(int(number.max(initial=-1)) + 1)]
    for k, box in enumerate(find_objects(number + 1)):
        around = grown_box(box, number.shape, BESIDE)
        inside = maximum_filter(number[around] == k, 2 * BESIDE + 1)
        for j in np.unique(number[around][inside]).tolist():
            if j not in (-1, k):
                beside[j].add(k)
                beside[k].add(j)
    return beside


def peel(
    cores: NDArray[Any], mean: NDArray[Any], size: NDArray[Any], disks: Disks
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Pure patterns, and which grains lie inside another one, whose pattern was taken off."""
    borders = find_borders(cores)[0]
    n = len(mean)
    shared = np.zeros((n, n))
    shared[borders.first, borders.second] = shared[borders.second, borders.first] = borders.length
    # What lies at no other grain counts as border, too.
    outside = np.where(cores < 0, n, cores)
    open_borders = find_borders(outside)[0]
    total = shared.sum(axis=1)
    at = open_borders.second == n
    total[open_borders.first[at]] += open_borders.length[at]
    pure, hidden = mean.copy(), np.zeros(n, dtype=bool)
    for k in range(n):
        around = _around(k, shared, mean, size, disks)
        if shared[k, around].sum() < MIN_ENCLOSED * total[k] or total[k] == 0:
            continue
        outer = np.average(mean[around], axis=0, weights=shared[k, around])
        amount = peel_amount(mean[k], outer, size[around].sum(), disks)
        if amount > MIN_AMOUNT:
            pure[k] = mean[k] - amount * outer
            hidden[k] = True
    return pure, hidden


def _around(
    k: int, shared: NDArray[Any], mean: NDArray[Any], size: NDArray[Any], disks: Disks
) -> NDArray[np.int64]:
    """The region with the longest border to region `k`, and others beside `k` that share its disks,
    as the parts of a shell do.
    """
    first = int(shared[k].argmax())
    others = np.flatnonzero(shared[k] > 0)
    others = others[others != first]
    if len(others):
        pairs = np.stack([np.full(len(others), first), others], axis=1)
        others = others[shared_disks(disks, mean[pairs], size[pairs]) >= MIN_SHARED_DISKS]
    return np.append(first, others)


def peel_amount(inner: NDArray[Any], outer: NDArray[Any], size: float, disks: Disks) -> float:
    """How much of the pattern `outer` is in the pattern `inner`, from the disks of `outer`.

    The disks of another grain may lie at the same places, and add to them, so most disks set the
    amount, not their mean.
    """
    first, second = (disks.directions[disks.counts] @ part for part in (inner, outer))
    strong = second > np.maximum(
        0.2 * second.max(initial=0), 3 * disks.error[disks.counts] / np.sqrt(size)
    )
    if not strong.any():
        return 0.0
    ratio, weight = first[strong] / second[strong], second[strong]
    order = np.argsort(ratio, kind="stable")
    whole = np.cumsum(weight[order])
    return max(0.0, float(ratio[order][np.searchsorted(whole, PEEL_QUANTILE * whole[-1])]))


def alone_means(
    values: NDArray[Any],
    cores: NDArray[Any],
    amounts: NDArray[Any],
    mean: NDArray[Any],
    size: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and sizes of the positions where a grain is alone in its core.

    The values given stay where there are fewer than `MIN_CORE_SIZE`.
    """
    alone = amounts.max(axis=2) > ALONE_SHARE * amounts.sum(axis=2)
    alone &= amounts.argmax(axis=2) == cores
    labels = np.where(alone, cores, -1)
    count = np.bincount(labels[labels >= 0], minlength=len(mean))
    mean, size = mean.copy(), size.copy()
    for k in np.flatnonzero(count >= MIN_CORE_SIZE):
        mean[k], size[k] = values[labels == k].mean(axis=0), count[k]
    return mean, size


def join_ends(
    lead: NDArray[Any],
    cores: NDArray[Any],
    crystals: NDArray[Any],
    alone: NDArray[np.bool_],
    hidden: NDArray[np.bool_],
    mean: NDArray[Any],
    size: NDArray[Any],
    disks: Disks,
) -> NDArray[np.int64]:
    """Number of the grain of each core: the pieces of one bent or wedge-shaped crystal are one.

    Two cores join if they are in one crystal, if places that they lead in `lead` touch, and if they
    share their disks. All cores of a crystal join if it has many and is hardly anywhere `alone` in
    the pattern of one of them.
    """
    n = len(mean)
    borders = find_borders(lead)[0]
    pairs = np.stack([borders.first, borders.second], axis=1)
    home = np.array([_most(crystals[cores == k]) for k in range(n)], dtype=np.int64)
    pairs = pairs[(home[pairs[:, 0]] == home[pairs[:, 1]]) & (home[pairs[:, 0]] >= 0)]
    pairs = pairs[~hidden[pairs].any(axis=1)]
    if len(pairs):
        pairs = pairs[shared_disks(disks, mean[pairs], size[pairs]) >= MIN_SHARED_DISKS]
    # Most of a bent crystal is between two of its many patterns.
    many = np.bincount(home[home >= 0], minlength=int(crystals.max(initial=-1)) + 1) > MAX_GRAINS
    count = np.bincount(crystals[crystals >= 0], minlength=len(many))
    bent = many & (np.bincount(crystals[alone & (crystals >= 0)], minlength=len(many))
                   < MIN_ALONE * count)  # fmt: skip
    inside = [np.flatnonzero(home == c) for c in np.flatnonzero(bent)]
    whole = [np.stack([part[:-1], part[1:]], axis=1) for part in inside]
    return join_numbers(np.concatenate([pairs, *whole]), n)


def _most(numbers: NDArray[Any]) -> int:
    """The most frequent number."""
    found, count = np.unique(numbers, return_counts=True)
    return int(found[count.argmax()])


def overlaps_core(
    values: NDArray[np.float32],
    regions: NDArray[Any],
    crystals: NDArray[Any],
    mask: NDArray[np.bool_],
    disks: Disks,
    report: Report = lambda n: None,
) -> OverlapMaps:
    """Grains that may overlap, from features ``(Rx, Ry, rank)``.

    `regions` of one pattern and `crystals` are label maps ``(Rx, Ry)`` with -1 in the background.
    """
    values = values - empty_pattern(regions, values, mask)
    rank = values.shape[2]
    cores, mean, size, whole = find_ends(regions, values)
    if not len(mean):
        nothing = np.zeros((*regions.shape, 0))
        return OverlapMaps(
            nothing.astype(np.float32), nothing > 0, cores, cores >= 0, np.zeros(0, dtype=bool),
            mean, np.zeros(regions.shape, dtype=np.float32), nothing.astype(np.float32),
            np.zeros(regions.shape, dtype=np.float32),
        )  # fmt: skip
    # What was dropped between a core and its shell is no gap between them.
    whole = np.where(regions >= 0, nearest_label(whole, whole < 0), -1)
    patterns, hidden = peel(whole, mean, size, disks)
    amounts = find_amounts(values, cores, patterns, report)[0]
    # Once more, with patterns from where each grain is alone.
    mean, size = alone_means(values, cores, amounts, mean, size)
    patterns, hidden = peel(whole, mean, size, disks)
    amounts, errors, rest = find_amounts(values, cores, patterns, report)
    lead = np.where(amounts.any(axis=2) & (regions >= 0), amounts.argmax(axis=2), -1)
    single = amounts.max(axis=2) > ALONE_SHARE * amounts.sum(axis=2)
    group = join_ends(lead, cores, crystals, single, hidden, mean, size, disks)
    n = int(group.max()) + 1
    amounts_of_cores, patterns_of_cores = amounts, patterns
    amounts = np.stack([amounts[..., group == g].sum(axis=2) for g in range(n)], axis=2)
    errors = np.stack([errors[..., group == g].min(axis=2) for g in range(n)], axis=2)
    patterns = np.stack([np.average(patterns[group == g], axis=0, weights=size[group == g])
                         for g in range(n)])  # fmt: skip
    hidden = np.bincount(group, hidden) > 0
    cores = np.append(group, -1)[cores]

    # Far from any disks that are certain, what looks like a grain is lag, film or noise.
    close = maximum_filter(regions >= 0, 2 * MAX_RIM + 1) & mask
    supports, met = find_supports(amounts, errors, cores, close)
    kept = supports.any(axis=(0, 1))  # others keep all of a thin grain
    amounts, supports = amounts[..., kept], supports[..., kept]
    patterns, hidden = patterns[kept], hidden[kept]
    renewed = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    cores = renewed[cores]
    shares, share_error = disk_shares(
        values, amounts_of_cores, patterns_of_cores, size, renewed[group], met[..., kept], disks
    )
    power = (values.astype(np.float64) ** 2).sum(axis=2) - rank
    residual = np.where(
        supports.any(axis=2), np.clip((rest - rank) / np.maximum(power, rank), 0, 1), 0
    )
    total = np.maximum(amounts.sum(axis=2), 1e-9)
    alone = supports.sum(axis=2) == 1
    alone &= np.where(supports, amounts, 0).max(axis=2, initial=0) > ALONE_SHARE * total
    return OverlapMaps(
        amounts, supports, cores, alone, hidden, patterns, residual.astype(np.float32),
        shares, share_error,
    )  # fmt: skip
