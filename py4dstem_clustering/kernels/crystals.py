"""Crystals: pieces of one lattice, whatever thickness and bending do to the intensities of disks.

`merging.py` finds regions of one pattern. A crystal that bends or is wedge-shaped comes in many of
them. Here, the scan is cut in pieces and pieces join to crystals:

1. Regions without Bragg disks are background. Parts of them that show disks for sure become pieces,
   and parts of other regions that show none become background.
2. Two neighbouring pieces join if they share disks, and if the patterns on both sides of their
   border differ by no more than they vary on each side. A uniform bend passes, a step does not.
   A piece that has one pattern over a long way is not bent: two such pieces are never in one
   crystal.
3. Borders to the background are placed where a crystal has half of its strength.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import (
    binary_dilation,
    distance_transform_edt,
    find_objects,
    gaussian_filter,
    maximum_filter,
    minimum_filter,
)
from scipy.optimize import nnls
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .borders import MAX_CONTRAST, MIN_CORE_SIZE, border_values, contrasts, refine_borders
from .disks import DISK_ERRORS, Disks, contrast_limit, disk_contrast, shared_disks
from .merging import MAX_UNEXPLAINED_SHARE, Merges, cut_merges, dissolve
from .regions import NOISE_FACTOR, consecutive, find_borders, grid_pairs, region_means
from .strips import STRIP_DEPTH, border_strips, find_facing, noise_power

# The constants are the same for every scan. They were tuned on Bloch-wave scans (gold, silicon,
# NaCl, magnesium, gold and silicon; seed 100), on kinds of sample of `simulate_sample` (seed 100)
# and on the hard scans of the benchmark (seeds 100 to 103).
MIN_SHARED = 0.15
"""Score from which on two pieces join: the share of disks in common beyond that of unrelated
pieces, times factors below 1 for a step. A smaller value joins more."""

GRADIENT_RATIO = 0.18
"""Scatter of the patterns inside two strips, relative to the squared difference of their means,
from which on nothing speaks against a common lattice. A uniform gradient gives 1/6, a step 0."""

BENT_SCATTER = 0.06
"""Scatter of the patterns inside two strips, relative to the power of their means, from which on a
lattice may bend. In films of flat grains it is 0.03, in bent wedges mostly above 0.06."""

MAX_GAIN = 3.0
"""Factor of intensity up to which two patterns differ in thickness only."""

STEP_DEPTH = 5.0
"""Depth of both strips together, scan positions, from which on the place of a change is judged."""

MAX_STEP = 1.5
"""Change between direct neighbours across a border, relative to an even change from the middle of
one strip to that of the other, up to which it is no step."""

FULL_BORDER = 8.0
"""Length of a border, in the unit of `Borders`, from which on its evidence counts in full."""

FINE_LEVEL = 0.5
"""Level of the merges of positions at which parts of regions are looked at for disks."""

MAX_UNIFORM_SCATTER = 0.18
"""Scatter of the patterns of a region beyond noise, relative to the power of their mean, up to
which a wide region is one pattern. Cubes of MgO have less, most pieces of a bent foil more."""

FLAT_DEPTH = 2.8
"""Depth from which on a region may be a small grain with one pattern, scan positions."""

MAX_FLAT_SCATTER = 0.04
"""Median scatter, like `MAX_UNIFORM_SCATTER`, up to which a small grain has one pattern. Grains of
flat films have 0.01 to 0.04, pieces of bent wedges 0.03 to 0.2."""

CORE_WIDTH = 5
"""Width, scan positions, of a square that lies in one region for its middle to count in the mean
pattern of the region when disks are looked for."""

STRONG_SHARE = 0.3
"""Share of the power of the strongest grain from which on a region of one pattern is a grain, too.
Film beside cubes of MgO has 0.12."""

CLEAR_CONTRAST = 1.0
"""Contrast of at least one region for disks to be judged by `DISK_ERRORS`. Where all are weaker,
twice as many standard errors are asked for: few electrons do not follow a normal distribution."""

FAR_ABOVE = 3.0
"""Contrast, in units of the limit, from which on disks are certain although patterns scatter."""

MIN_PART = 4
"""Smallest crystal, and smallest part of a background region that becomes a piece, positions."""

MIN_EMPTY = 30
"""Positions from which on a part is background if its contrast is below the limit; smaller parts
must be below it for sure."""

EMPTY_ERRORS = 3.0
"""Standard errors by which the contrast of a small part must stay below the limit."""

BRIDGE_SHARE = 0.1
"""Share of the power of a piece that a second crystal must have for the piece to be a mixture."""


PATTERN_LEVEL = 1.0
"""Level of a cluster tree at which regions of one pattern are cut."""

CRYSTAL_LEVEL = 2.0
"""Level of a cluster tree at which crystals are cut, the automatic level."""

_WITHOUT_EVIDENCE = 20.0
"""Level of joins that nothing speaks for; crystals and background join above it."""


class Crystals(NamedTuple):
    """Pieces of crystals, regions of the background, and how pieces join."""

    labels: NDArray[np.int64]
    """Pieces and background regions, numbered from 0, ``(Rx, Ry)``; -1 outside the mask."""
    background: NDArray[np.bool_]
    """Positions of the background, ``(Rx, Ry)``."""
    pairs: NDArray[np.int64]
    """Joins ``(n, 2)`` of these regions, one region of each side."""
    level: NDArray[np.float64]
    """Level of each join, rising from above `PATTERN_LEVEL`. Joins up to `CRYSTAL_LEVEL` make
    crystals, those above join crystals and background until all regions that touch are one."""


def find_crystals(
    values: NDArray[Any], merges: Merges, regions: NDArray[Any], disks: Disks
) -> Crystals:
    """Pieces of crystals from the merges of positions, and their joins.

    Parameters
    ----------
    values : ndarray, (Rx, Ry, rank)
        Features.
    merges : Merges
        From `merge_positions`.
    regions : ndarray, (Rx, Ry)
        From `find_regions`.
    disks : Disks
    """
    pieces, limit = find_pieces(values, merges, regions, disks)
    joins, scores = join_pieces(pieces, values - _empty_pattern(pieces, values, merges.mask), disks)
    n = int(pieces.max(initial=-1)) + 1
    kept = scores >= MIN_SHARED
    crystal = join_numbers(joins[kept], n)
    found = np.append(crystal, -1)[pieces]
    found = place_borders(consecutive(found), values, merges.mask)
    found = split_unconnected(found)
    size = np.bincount(found[found >= 0], minlength=1)
    found = consecutive(np.where(np.append(size < MIN_PART, True)[found], -1, found))
    found = drop_empty(found, values, disks, limit)
    labels, background, pairs, scores = _with_background(
        regions, pieces, found, joins[kept], scores[kept], merges.mask
    )
    level = CRYSTAL_LEVEL - (scores - MIN_SHARED) / (1 - MIN_SHARED)
    level = np.maximum(np.maximum.accumulate(level), np.nextafter(PATTERN_LEVEL, 2))
    further, above = _coarse_joins(labels, background, pairs, values, disks)
    return Crystals(
        labels,
        background,
        np.concatenate([pairs, further]),
        np.concatenate([level, above]),
    )


def _empty_pattern(
    pieces: NDArray[Any], values: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Mean features ``(rank,)`` of the background, which lie under all pieces; 0 without any.

    A halo that is not round, or a stray reflection, is in all patterns and no sign of one lattice.
    Where the background differs more from place to place than it is strong, it is none.
    """
    empty = (pieces < 0) & mask
    core = empty & ~binary_dilation(pieces >= 0, np.ones((CORE_WIDTH, CORE_WIDTH)))
    chosen = core if core.sum() >= MIN_EMPTY else empty
    if not chosen.any():
        return np.zeros(values.shape[2], dtype=np.float32)
    patterns = values[chosen].astype(np.float64)
    mean = patterns.mean(axis=0)
    scatter = np.median((patterns - mean) ** 2, axis=0).sum() / 0.455 - values.shape[2]
    if scatter > (mean**2).sum():
        return np.zeros(values.shape[2], dtype=np.float32)
    return mean.astype(np.float32)


def _coarse_joins(
    labels: NDArray[Any],
    background: NDArray[np.bool_],
    pairs: NDArray[Any],
    values: NDArray[Any],
    disks: Disks,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Joins of crystals and background regions beyond the automatic cut, and their levels.

    Two crystals join by their score, as pieces do, and two regions of the background by the
    contrast across their border. A crystal joins the background last.
    """
    n = int(labels.max(initial=-1)) + 1
    group = join_numbers(pairs, n)
    whole = consecutive(np.append(group, -1)[labels])
    borders, contrast = contrasts(whole, values, border_values(whole, values))
    if not len(borders.first):
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    ends = np.stack([borders.first, borders.second], axis=1)
    is_empty = np.bincount(whole[labels >= 0], background[labels >= 0]) > 0
    level = CRYSTAL_LEVEL * contrast / MAX_CONTRAST
    level[is_empty[ends].sum(axis=1) == 1] += _WITHOUT_EVIDENCE
    crystals = ~is_empty[ends].any(axis=1)
    if crystals.any():
        empty = np.where(np.append(is_empty, True)[whole], -1, whole)
        shift = _empty_pattern(empty, values, labels >= 0)
        state = _Joining(whole, values - shift, disks)
        score = state.scores(np.arange(state.n), ends[crystals])
        unlike = CRYSTAL_LEVEL * MIN_SHARED / np.maximum(score, 1e-9)
        # Without disks in common, the crystals that differ less join first.
        unlike = np.minimum(unlike, _WITHOUT_EVIDENCE / 2) * (1 + 1e-3 * contrast[crystals])
        level[crystals] = np.minimum(unlike, _WITHOUT_EVIDENCE)
    level = np.maximum(level, np.nextafter(CRYSTAL_LEVEL, 3))
    member = np.zeros(int(whole.max()) + 1, dtype=np.int64)
    member[whole[labels >= 0]] = labels[labels >= 0]
    joined = DisjointSet(range(len(member)))
    order = [k for k in np.argsort(level, kind="stable") if joined.merge(*ends[k].tolist())]
    return member[ends[order]].reshape(-1, 2), level[order]


# --- pieces ----------------------------------------------------------------------------------


def _contrast(
    labels: NDArray[Any],
    values: NDArray[Any],
    disks: Disks,
    errors: float,
    own_scatter: bool = True,
) -> NDArray[np.float64]:
    """`disk_contrast` of regions, from their positions away from other regions where there are
    enough of them, since the probe brings disks from there.

    The error follows the scatter of each region, which speckle makes larger, or the noise.
    """
    core = minimum_filter(labels, CORE_WIDTH) == maximum_filter(labels, CORE_WIDTH)
    n = int(labels.max(initial=-1)) + 1
    count = np.bincount(labels[core & (labels >= 0)], minlength=n)
    small = np.append(count < MIN_CORE_SIZE, True)
    chosen = np.where(core | small[labels], labels, -1)
    mean, size = region_means(chosen, values)
    if not own_scatter:
        return disk_contrast(disks, mean, size, errors)
    inside = chosen >= 0
    square = (values[inside].astype(np.float64) ** 2).sum(axis=1)
    scatter = np.bincount(chosen[inside], square, n) / size - (mean**2).sum(axis=1)
    scatter = np.maximum(scatter / values.shape[2], 1)
    return disk_contrast(disks, mean, size / scatter, errors)


def find_pieces(
    values: NDArray[Any], merges: Merges, regions: NDArray[Any], disks: Disks
) -> tuple[NDArray[np.int64], float]:
    """Pieces with disks, -1 elsewhere, and the contrast of disks above which they are pieces."""
    if regions.max(initial=-1) < 0:
        return regions, contrast_limit(np.empty(0))
    certain = _contrast(regions, values, disks, DISK_ERRORS)
    errors = DISK_ERRORS if certain.max() >= CLEAR_CONTRAST else 2 * DISK_ERRORS
    limit = contrast_limit(_contrast(regions, values, disks, errors))
    empty = _is_empty(regions, values, disks, limit, errors)
    fine = cut_merges(merges, FINE_LEVEL)
    # Parts of regions with disks that have none.
    full = np.where(np.append(empty, True)[regions], -1, regions)
    parts = split_unconnected(_both(full, fine))
    if parts.max(initial=-1) >= 0:
        size = np.bincount(parts[parts >= 0])
        without = _contrast(parts, values, disks, -EMPTY_ERRORS) < limit
        without |= (_contrast(parts, values, disks, 0) < limit) & (size >= MIN_EMPTY)
        full = np.where(np.append(without, True)[parts], -1, full)
    pieces = consecutive(full)
    # Parts without a piece that have disks.
    parts = split_unconnected(_both(np.where((pieces < 0) & merges.mask, 0, -1), fine))
    if parts.max(initial=-1) >= 0:
        keep = np.bincount(parts[parts >= 0]) >= MIN_PART
        keep &= _contrast(parts, values, disks, errors) >= limit
        keep &= ~_rims(parts, pieces, values - _empty_pattern(pieces, values, merges.mask))
        parts = consecutive(np.where(np.append(keep, False)[parts], parts, -1))
        found = int(parts.max(initial=-1)) + 1
        if found:
            pieces = np.where(parts >= 0, parts + pieces.max(initial=-1) + 1, pieces)
            whole = _with_empty(pieces, merges.mask)
            refined = refine_borders(whole, values, rounds=3)
            number = refined[refined >= 0]
            lost = np.bincount(number, (pieces < 0)[refined >= 0]) / np.bincount(number)
            pieces = np.where(np.append(lost > 0.5, True)[refined], -1, refined)
    return consecutive(pieces), limit


def _both(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int64]:
    """Regions in which neither label changes; -1 where either is."""
    labels = first.astype(np.int64) * (int(second.max(initial=-1)) + 1) + second
    return consecutive(np.where((first >= 0) & (second >= 0), labels, -1))


def _with_empty(labels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """All of the mask without a label as one more region."""
    return np.where((labels < 0) & mask, labels.max(initial=-1) + 1, labels).astype(np.int64)


def split_unconnected(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The same regions, each in parts whose positions touch at a side or corner."""
    a, b, _ = grid_pairs(labels >= 0)
    flat = labels.ravel()
    same = flat[a] == flat[b]
    a, b = a[same], b[same]
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(flat.size, flat.size))
    part = connected_components(graph, directed=False)[1].reshape(labels.shape)
    return consecutive(np.where(labels >= 0, part, -1))


def _rims(parts: NDArray[Any], pieces: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which parts hold less than half of the patterns of wide pieces beside them.

    They are blurred rims, or tails that a camera with lag leaves. Beside a bent crystal, which has
    no wide pieces, they may be weak places of the crystal.
    """
    n, wide = int(pieces.max(initial=-1)) + 1, find_uniform(pieces, values)[0]
    out = np.zeros(int(parts.max(initial=-1)) + 1, dtype=bool)
    if not wide.any():
        return out
    mean, size = region_means(pieces, values)
    part_mean, part_size = region_means(parts, values)
    borders = find_borders(np.where(pieces >= 0, pieces, np.where(parts >= 0, parts + n, -1)))[0]
    near: list[set[int]] = [set() for _ in out]
    beside: list[set[int]] = [set() for _ in out]
    for i, j in zip(borders.first.tolist(), borders.second.tolist(), strict=True):
        if i < n <= j and wide[i]:
            near[j - n].add(i)
        elif i >= n:
            beside[i - n].add(j - n)
            beside[j - n].add(i - n)
    todo = [k for k in range(len(out)) if near[k]]
    while todo:
        k = todo.pop()
        if out[k]:
            continue
        share, explained = _shares(mean, size, sorted(near[k]), part_mean[k], part_size[k])
        if explained and share.sum() < 0.5:
            out[k] = True
            for other in beside[k]:  # a tail may be several parts long
                if not out[other] and not near[k] <= near[other]:
                    near[other] |= near[k]
                    todo.append(other)
    return out


def _shares(
    mean: NDArray[Any], size: NDArray[Any], of: list[int], pattern: NDArray[Any], count: float
) -> tuple[NDArray[np.float64], bool]:
    """Shares of regions in a pattern, and whether they explain it."""
    rank = mean.shape[1]
    share, rest = nnls(mean[of].T, pattern)
    power = max(float((pattern**2).sum() - rank / count), 1e-9)
    noise = NOISE_FACTOR * rank * (1 / count + (share**2 / size[of]).sum())
    return share, bool(rest**2 - noise < MAX_UNEXPLAINED_SHARE * power)


# --- joining ---------------------------------------------------------------------------------


def join_numbers(pairs: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Number of the group of each of `n` items after joining pairs of them."""
    pairs = np.reshape(pairs, (-1, 2))
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _is_empty(
    labels: NDArray[Any], values: NDArray[Any], disks: Disks, limit: float, errors: float
) -> NDArray[np.bool_]:
    """Which regions show no disks for sure.

    A small grain scatters because the probe blurs its borders. Its disks are certain, too, if they
    are far above the limit and above the noise.
    """
    empty = _contrast(labels, values, disks, errors) < limit
    empty &= _contrast(labels, values, disks, errors, False) < FAR_ABOVE * limit
    if not empty.all():  # where a disk is no larger than a bin, grains show by their power
        power = (region_means(labels, values)[0] ** 2).sum(axis=1)
        empty &= power < STRONG_SHARE * power[~empty].max()
    return empty


def find_uniform(
    labels: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which regions have one pattern over a long way, and which over a shorter one.

    The first are deeper than strips and hardly vary, the second are small grains that are flat but
    for their blurred borders.
    """
    n = int(labels.max(initial=-1)) + 1
    wide, flat = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    noise = noise_power(labels, values)
    for label, box in enumerate(find_objects(labels + 1)):
        around = tuple(
            slice(max(0, s.start - 1), min(n, s.stop + 1))
            for s, n in zip(box, labels.shape, strict=True)
        )
        # The border of the scan is no border of a region.
        own = np.pad(labels[around] == label, 1, mode="edge")
        depth = np.inf if own.all() else distance_transform_edt(own).max()
        if depth >= FLAT_DEPTH:
            inside = values[box][labels[box] == label].astype(np.float64)
            mean = inside.mean(axis=0)
            squared = ((inside - mean) ** 2).sum(axis=1) - noise
            power = (mean**2).sum()
            # Of a small grain, half of the positions lie at its blurred border.
            flat[label] = np.median(squared) < MAX_FLAT_SCATTER * power
            if depth >= STRIP_DEPTH:
                wide[label] = squared.mean() < MAX_UNIFORM_SCATTER * power
    return wide, flat | wide


class _Joining:
    """Pieces on their way to crystals."""

    def __init__(self, pieces: NDArray[Any], values: NDArray[Any], disks: Disks) -> None:
        self.pieces, self.values, self.disks = pieces, values, disks
        self.n = int(pieces.max(initial=-1)) + 1
        self.facing = find_facing(pieces)
        self.noise = noise_power(pieces, values)
        self.mean, self.size = region_means(pieces, values)
        borders, which, first, second = find_borders(pieces)
        self.touching = np.stack([borders.first, borders.second], axis=1)
        self.lengths = borders.length
        self.wide, flat = find_uniform(pieces, values)
        self.flat = borders.length * flat[self.touching].all(axis=1)
        ry = pieces.shape[1]
        straight = np.isin(np.abs(first - second), (1, ry))
        self.straight = which[straight], first[straight], second[straight]
        self.unrelated = self._unrelated()

    def _unrelated(self) -> float:
        """Share of disks in common of pieces that do not touch, lower quartile."""
        if self.n < 4:
            return 0.0
        rng = np.random.default_rng(0)
        some = rng.integers(self.n, size=(min(self.n**2, 4000), 2))
        some = np.unique(np.sort(some, axis=1), axis=0)
        some = some[some[:, 0] != some[:, 1]]
        touching = np.isin(
            some[:, 0] * self.n + some[:, 1], self.touching[:, 0] * self.n + self.touching[:, 1]
        )
        some = some[~touching]
        if len(some) < 3:
            return 0.0
        shared = shared_disks(self.disks, self.mean[some], self.size[some])
        return min(float(np.quantile(shared, 0.25)), 0.9)

    def scores(self, region: NDArray[Any], pairs: NDArray[Any]) -> NDArray[np.float64]:
        """Score of each of `pairs` ``(n, 2)`` of regions, the lower number first; sorted."""
        if not len(pairs):
            return np.empty(0)
        strips = border_strips(self.facing, region, self.pieces, pairs, self.values, self.noise)
        shared = shared_disks(self.disks, strips.mean, strips.size)
        shared = (shared - self.unrelated) / (1 - self.unrelated)
        ends = region[self.touching]
        code = np.minimum(*ends.T) * self.n + np.maximum(*ends.T)
        key = pairs[:, 0] * self.n + pairs[:, 1]
        at = np.minimum(np.searchsorted(key, code), len(key) - 1)
        hit = (key[at] == code) & (ends[:, 0] != ends[:, 1])
        length, flat = (
            np.bincount(at[hit], part[hit], len(key)) for part in (self.lengths, self.flat)
        )
        long = np.minimum(1, (length + 2) / FULL_BORDER) * (1 - flat / np.maximum(length, 1e-9))
        return shared * long * self._gradual(strips) * self._step(region, pairs, strips)

    def _gradual(self, strips: Any) -> NDArray[np.float64]:
        """1 where strips scatter as much as a gradient would make them, 0 where they do not."""
        power = (strips.mean**2).sum(axis=2)
        product = (strips.mean[:, 0] * strips.mean[:, 1]).sum(axis=1)
        weaker = power.argmin(axis=1)
        rows = np.arange(len(power))
        weak, strong = power[rows, weaker], power[rows, 1 - weaker]
        # A thinner part of one crystal differs by a factor only.
        gain = np.clip(product / np.maximum(weak, 1e-9), 1, MAX_GAIN)
        difference = strong - 2 * gain * product + gain**2 * weak
        rank = strips.mean.shape[2]
        difference -= rank * (
            1 / strips.size[rows, 1 - weaker] + gain**2 / strips.size[rows, weaker]
        )
        scatter = np.maximum(strips.scatter, 0).sum(axis=1)
        gradual = np.minimum(1, scatter / np.maximum(difference, 1e-3) / GRADIENT_RATIO)
        return gradual * np.minimum(1, scatter / np.maximum(power.sum(axis=1), 1e-9) / BENT_SCATTER)

    def _step(self, region: NDArray[Any], pairs: NDArray[Any], strips: Any) -> NDArray[np.float64]:
        """Below 1 where patterns change right at the border and not from strip to strip."""
        across = strips.mean[:, 1] - strips.mean[:, 0]
        distance = np.linalg.norm(across, axis=1)
        unit = across / np.maximum(distance, 1e-9)[:, None]
        which, first, second = self.straight
        ends = region[self.touching[which]]
        low, high = ends.min(axis=1), ends.max(axis=1)
        key = pairs[:, 0] * self.n + pairs[:, 1]
        code = low * self.n + high
        at = np.minimum(np.searchsorted(key, code), len(key) - 1)
        hit = (key[at] == code) & (low != high)
        turned = np.where(ends[:, 0] > ends[:, 1], -1.0, 1.0)[hit]
        flat = self.values.reshape(-1, self.values.shape[2])
        change = (flat[second[hit]] - flat[first[hit]]) * unit[at[hit]]
        total = np.bincount(at[hit], change.sum(axis=1) * turned, len(key))
        count = np.bincount(at[hit], minlength=len(key))
        depth = strips.depth.sum(axis=1)
        step = total / np.maximum(count, 1) / np.maximum(distance, 1e-9) * depth
        factor = np.minimum(1, MAX_STEP / np.maximum(step, 1e-9)) ** 2
        return np.where((depth >= STEP_DEPTH) & (count > 0), factor, 1.0)


def join_pieces(
    pieces: NDArray[Any], values: NDArray[Any], disks: Disks
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Joins of pieces ``(n, 2)`` and their scores, falling, down to `MIN_SHARED`.

    In each round, regions that are each other's best neighbour join if their score is near the best
    of all. The scores of changed regions are then measured again.
    """
    n = int(pieces.max(initial=-1)) + 1
    joins: list[tuple[int, int]] = []
    levels: list[float] = []
    if n > 1:
        state = _Joining(pieces, values, disks)
        region = np.arange(n)
        mean, size = state.mean.copy(), state.size.copy()
        wide = state.wide.copy()
        score: dict[tuple[int, int], float] = {}
        bridges: set[tuple[int, int]] = set()
        level = np.inf
        while True:
            ends = np.sort(region[state.touching], axis=1)
            pairs = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
            keys = list(map(tuple, pairs.tolist()))
            new = np.array([key not in score for key in keys], dtype=bool)
            score.update(
                zip(
                    (key for key, is_new in zip(keys, new, strict=True) if is_new),
                    state.scores(region, pairs[new]).tolist(),
                    strict=True,
                )
            )
            current = np.array([0.0 if key in bridges else score[key] for key in keys])
            current[wide[pairs].all(axis=1)] = 0.0
            best = np.full(n, -np.inf)
            for end in pairs.T:
                np.maximum.at(best, end, current)
            top = float(current.max(initial=-np.inf))
            if top < MIN_SHARED:
                break
            level = min(level, top)
            near: list[dict[int, float]] = [{} for _ in range(n)]
            for key in keys:
                near[key[0]][key[1]] = near[key[1]][key[0]] = score[key]
            mutual = (current == best[pairs[:, 0]]) & (current == best[pairs[:, 1]])
            mutual &= current >= max(0.9 * level, MIN_SHARED)
            changed: set[int] = set()
            for k in np.flatnonzero(mutual)[np.argsort(-current[mutual], kind="stable")]:
                i, j = keys[k]
                if i in changed or j in changed:
                    continue
                small, large = (i, j) if size[i] < size[j] else (j, i)
                if _is_bridge(small, large, near, mean, size):
                    bridges.add((i, j))
                    continue
                joins.append((i, j))
                levels.append(min(level, float(current[k])))
                both = size[i] + size[j]
                mean[i] = (size[i] * mean[i] + size[j] * mean[j]) / both
                size[i] = both
                wide[i] |= wide[j]
                region[region == j] = i
                changed |= {i, j}
            if changed:
                score = {key: s for key, s in score.items() if not changed & set(key)}
                bridges = {key for key in bridges if not changed & set(key)}
    pairs = np.array(joins, dtype=np.int64).reshape(-1, 2)
    return pairs, np.minimum.accumulate(np.array(levels, dtype=np.float64))


def _is_bridge(
    small: int, large: int, near: list[dict[int, float]], mean: NDArray[Any], size: NDArray[Any]
) -> bool:
    """Whether a region mixes `large` and another one that is known not to belong to `large`."""
    for other in near[small]:
        if other == large or size[other] <= size[small]:
            continue
        if near[large].get(other, 1.0) >= 0.4 * MIN_SHARED:
            continue
        share, explained = _shares(mean, size, [large, other], mean[small], size[small])
        power = max(float((mean[small] ** 2).sum() - mean.shape[1] / size[small]), 1e-9)
        if explained and share[1] ** 2 * (mean[other] ** 2).sum() > BRIDGE_SHARE * power:
            return True
    return False


# --- borders to the background ---------------------------------------------------------------


def place_borders(
    labels: NDArray[Any], values: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Dissolve thin mixtures, and place borders to the background at half of the strength."""
    whole = _with_empty(labels, mask)
    dissolved = dissolve(whole, values)
    outside = (labels < 0) & mask
    if outside.any():
        empty = int(np.bincount(dissolved[outside]).argmax())
        dissolved = np.where(dissolved == empty, -1, dissolved)
    return trim(_drop_pockets(consecutive(dissolved), values), values, mask)


def _drop_pockets(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Label -1 for regions that hold less than half of the patterns of larger ones around them."""
    if labels.max(initial=-1) < 1:
        return labels.astype(np.int64)
    mean, size = region_means(labels, values)
    near: list[list[int]] = [[] for _ in size]
    borders = find_borders(labels)[0]
    for i, j in zip(borders.first.tolist(), borders.second.tolist(), strict=True):
        small, large = (i, j) if size[i] < size[j] else (j, i)
        near[small].append(large)
    gone = np.zeros(len(size) + 1, dtype=bool)
    for k in np.argsort(size, kind="stable").tolist():
        around = [j for j in near[k] if not gone[j]]
        if around:
            share, explained = _shares(mean, size, around, mean[k], size[k])
            gone[k] = explained and share.sum() < 0.5
    gone[-1] = True
    return consecutive(np.where(gone[labels], -1, labels))


def trim(
    labels: NDArray[Any], values: NDArray[Any], mask: NDArray[np.bool_], rounds: int = 3
) -> NDArray[np.int64]:
    """Move borders to the background to half of the strength that a crystal has behind them.

    They move only where the crystal is as strong one to three positions behind the border as deeper
    inside. Where it grows thin towards its border, as a sphere does, half of the strength is not
    its border.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Crystals; -1 is background, or outside the mask.
    values : ndarray, (Rx, Ry, rank)
    mask : ndarray, (Rx, Ry), bool
    rounds : int
        Positions by which a border may move.
    """
    around = np.ones((3, 3))
    for _ in range(rounds):
        empty = (labels < 0) & mask
        beside = binary_dilation(empty, around)
        new, best = labels.copy(), np.full(labels.shape, -np.inf)
        for label, box in enumerate(find_objects(labels + 1)):
            area = tuple(
                slice(max(0, s.start - 6), min(n, s.stop + 6))
                for s, n in zip(box, labels.shape, strict=True)
            )
            own, field = labels[area] == label, values[area]
            depth = distance_transform_edt(np.pad(own, 1, mode="edge"))[1:-1, 1:-1]
            inner = own & (depth > 2.1)
            if inner.sum() < MIN_PART:
                continue
            gained = empty[area] & binary_dilation(own, around)
            places = np.argwhere((own & beside[area]) | gained)
            at = tuple(places.T)
            inside, has_inside = _local_mean(field, inner, at)
            deep, has_deep = _local_mean(field, own & (depth > 3.1), at)
            middle, has_middle = _local_mean(field, own & (depth > 1.1) & (depth < 3.1), at)
            level = (deep * middle).sum(axis=1) >= 0.8 * (deep**2).sum(axis=1)
            level &= has_inside & has_deep & has_middle
            power = np.maximum((inside**2).sum(axis=1), 1e-9)
            share = (field[at] * inside).sum(axis=1) / power
            x, y = at[0] + area[0].start, at[1] + area[1].start
            mine = own[at]
            lost = level & mine & (share < 0.5)
            new[x[lost], y[lost]] = -1
            won = level & ~mine & (share >= 0.5) & (share > best[x, y])
            new[x[won], y[won]] = label
            best[x[won], y[won]] = share[won]
        if np.array_equal(new, labels):
            break
        labels = consecutive(new)
    return consecutive(labels)


def _local_mean(
    field: NDArray[Any], members: NDArray[np.bool_], at: tuple[NDArray[Any], ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean of the members near places, and whether there are any."""
    weight = gaussian_filter(members.astype(np.float64), 2.0, mode="constant", truncate=3)[at]
    total = gaussian_filter(
        np.where(members[..., None], field, 0).astype(np.float64),
        (2.0, 2.0, 0),
        mode="constant",
        truncate=3,
    )[at]
    return total / np.maximum(weight, 1e-9)[:, None], weight > 1e-3


def drop_empty(
    labels: NDArray[Any], values: NDArray[Any], disks: Disks, limit: float
) -> NDArray[np.int64]:
    """Label -1 for regions whose disks are not certain."""
    if labels.max(initial=-1) < 0:
        return consecutive(labels)
    empty = _is_empty(labels, values, disks, limit, DISK_ERRORS)
    return consecutive(np.where(np.append(empty, True)[labels], -1, labels))


def _nearest_label(labels: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Labels, and in the positions `where` that of the nearest position elsewhere with a label."""
    known = (labels >= 0) & ~where
    if not known.any():
        return np.where(where, 0, labels)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.where(where, labels[tuple(nearest)], labels)


def _with_background(
    regions: NDArray[Any],
    pieces: NDArray[Any],
    crystals: NDArray[Any],
    joins: NDArray[Any],
    scores: NDArray[Any],
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Pieces within their crystals and regions of the background, numbered from 0, and positions of
    the background; joins of pieces, and their scores, falling.
    """
    n = int(pieces.max(initial=-1)) + 1
    parts = np.full(pieces.shape, -1, dtype=np.int64)
    for label, box in enumerate(find_objects(crystals + 1)):
        own = crystals[box] == label
        inside = np.where(own, pieces[box], -1)
        missing = own & (inside < 0)
        parts[box] = np.where(own, _nearest_label(inside, missing), parts[box])
    parts = np.where(crystals >= 0, parts, -1)
    grains = _both(crystals, parts)
    found, at = np.unique(grains[grains >= 0], return_index=True)
    crystal_of, piece_of = crystals[grains >= 0][at], parts[grains >= 0][at]

    # Replay the joins of pieces inside each crystal.
    held: list[dict[int, int]] = [{} for _ in range(max(n, 1))]
    for number, crystal, piece in zip(
        found.tolist(), crystal_of.tolist(), piece_of.tolist(), strict=True
    ):
        held[piece][crystal] = number
    pairs: list[tuple[int, int]] = []
    score: list[float] = []
    for (i, j), value in zip(joins.tolist(), scores.tolist(), strict=True):
        for crystal in sorted(held[i].keys() & held[j].keys()):
            pairs.append((held[i][crystal], held[j][crystal]))
            score.append(value)
        held[i] = {**held[j], **held[i]}
        held[j] = {}
    # What dissolved into a crystal has no join of its own.
    group = join_numbers(np.array(pairs, dtype=np.int64), len(found))
    first: dict[int, int] = {}
    for number in np.unique(group, return_index=True)[1].tolist():
        crystal = int(crystal_of[number])
        if crystal in first:
            pairs.append((first[crystal], number))
            score.append(MIN_SHARED)
        else:
            first[crystal] = number

    background = (grains < 0) & mask
    empty = np.where(background, regions, -1)
    # Regions with disks have none left here but their rims, which go to the region beside them.
    rims = background & (pieces >= 0)
    whole = np.where(rims, -1, empty)
    empty = np.where(rims & (whole >= 0).any(), _nearest_label(whole, rims), empty)
    empty = consecutive(np.where(background, empty, -1))
    labels = np.where(background, empty + len(found), grains)
    order = np.argsort(-np.array(score), kind="stable")
    return (
        consecutive(np.where(mask, labels, -1)),
        background,
        np.array(pairs, dtype=np.int64).reshape(-1, 2)[order],
        np.array(score, dtype=np.float64)[order],
    )
