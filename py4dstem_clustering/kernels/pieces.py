"""Pieces of crystals: parts of the scan whose mean pattern shows Bragg disks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_dilation,
    find_objects,
    maximum_filter,
    minimum_filter,
)
from scipy.optimize import nnls
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .borders import MIN_CORE_SIZE, refine_borders
from .disks import DISK_ERRORS, Disks, contrast_limit, disk_contrast
from .extent import extend_crystals, radial_parts
from .merging import MAX_UNEXPLAINED_SHARE, Merges, cut_merges
from .regions import (
    MIN_EMPTY,
    consecutive,
    find_borders,
    grid_pairs,
    have_depth,
    noise_of_sum,
    region_means,
)
from .strips import STRIP_DEPTH, noise_power

# The constants are the same for every scan. They were tuned on Bloch-wave scans (gold, silicon,
# NaCl, magnesium, gold and silicon; seed 100), on kinds of sample of `simulate_sample` (seed 100)
# and on the hard scans of the benchmark (seeds 100 to 103).
FINE_LEVEL = 0.5
"""Level of the merges of positions at which parts of regions are looked at for disks."""

VARYING_LEVEL = 0.7
"""Level of the merges of positions at which regions whose patterns vary are cut, since they may
hold parts of two crystals. With levels from 0.5 to 0.7 bent crystals are found equally well; below
0.6, grains at 100 electrons fall to pieces."""

MAX_SIGNAL = 32.0
"""Power of the mean features of a region, for each feature and in units of the noise, above which
the region is not cut: where noise counts so little, merging has already parted what differs. Bent
foils with contours at 10,000 electrons have more, and would fall to pieces with a larger value;
with a smaller one, two bent wedges at 1,000 electrons stay one region."""

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

EMPTY_ERRORS = 3.0
"""Standard errors by which the contrast of a small part must stay below the limit."""


def find_pieces(
    values: NDArray[Any],
    merges: Merges,
    regions: NDArray[Any],
    disks: Disks,
    radial: NDArray[Any],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pieces of crystals, -1 elsewhere, and the positions ``(Rx, Ry)`` of parts that show disks.

    The pieces also hold what lies beside these parts and scatters as they do (`extent.py`), by the
    features `radial` ``(Rx, Ry, n)`` of the radial profile.
    """
    pieces = _find_parts(values, merges, regions, disks, radial)
    return consecutive(extend_crystals(pieces, radial, merges.mask)), pieces >= 0


def _find_parts(
    values: NDArray[Any],
    merges: Merges,
    regions: NDArray[Any],
    disks: Disks,
    radial: NDArray[Any],
) -> NDArray[np.int64]:
    """Parts of the scan that show disks, -1 elsewhere."""
    if regions.max(initial=-1) < 0:
        return consecutive(regions)
    errors, certain = DISK_ERRORS, region_contrast(regions, values, disks, DISK_ERRORS)
    if certain.max() < CLEAR_CONTRAST:
        errors = 2 * DISK_ERRORS
        certain = region_contrast(regions, values, disks, errors)
    limit = contrast_limit(certain)
    empty = _is_empty(regions, values, disks, limit, errors)
    mean, count = region_means(regions, values)
    rank = values.shape[2]
    varies = ~empty & ~find_uniform(regions, values)[1]
    varies &= (mean**2).sum(axis=1) - rank / count < MAX_SIGNAL * rank
    if varies.any():
        regions = _cut_varying(regions, varies, merges)
        empty = _is_empty(regions, values, disks, limit, errors)
    fine = cut_merges(merges, FINE_LEVEL)
    # Parts of regions with disks that have none.
    full = np.where(np.append(empty, True)[regions], -1, regions)
    parts = split_unconnected(cross_labels(full, fine))
    if parts.max(initial=-1) >= 0:
        size = np.bincount(parts[parts >= 0])
        without = region_contrast(parts, values, disks, -EMPTY_ERRORS) < limit
        without |= (region_contrast(parts, values, disks, 0) < limit) & (size >= MIN_EMPTY)
        full = np.where(np.append(without, True)[parts], -1, full)
    pieces = consecutive(full)
    # Parts without a piece that have disks: first grains that scatter more than what lies about
    # them, whose disks are too weak for single positions, then those of merging.
    parts = split_unconnected(radial_parts(pieces, radial, merges.mask))
    if parts.max(initial=-1) >= 0:
        shown = np.append(_shows_disks(parts, values, disks, limit, errors), False)[parts]
        pieces = consecutive(np.where(shown, parts + pieces.max(initial=-1) + 1, pieces))
    parts = split_unconnected(cross_labels(np.where((pieces < 0) & merges.mask, 0, -1), fine))
    if parts.max(initial=-1) >= 0:
        keep = _shows_disks(parts, values, disks, limit, errors)
        keep &= ~_rims(parts, pieces, values - empty_pattern(pieces, values, merges.mask))
        parts = consecutive(np.where(np.append(keep, False)[parts], parts, -1))
        found = int(parts.max(initial=-1)) + 1
        if found:
            pieces = np.where(parts >= 0, parts + pieces.max(initial=-1) + 1, pieces)
            whole = with_empty(pieces, merges.mask)
            refined = refine_borders(whole, values, rounds=3)
            number = refined[refined >= 0]
            lost = np.bincount(number, (pieces < 0)[refined >= 0]) / np.bincount(number)
            pieces = np.where(np.append(lost > 0.5, True)[refined], -1, refined)
    return consecutive(pieces)


def _shows_disks(
    parts: NDArray[Any], values: NDArray[Any], disks: Disks, limit: float, errors: float
) -> NDArray[np.bool_]:
    """Which parts of the background are large enough, and show disks for sure."""
    large = np.bincount(parts[parts >= 0]) >= MIN_PART
    return np.asarray(large & (region_contrast(parts, values, disks, errors) >= limit))


def _cut_varying(
    regions: NDArray[Any], varies: NDArray[np.bool_], merges: Merges
) -> NDArray[np.int64]:
    """The same regions; those that vary are cut into their parts at `VARYING_LEVEL`.

    The parts are not refined: dissolving mixtures would take narrow stripes of a bent crystal for
    mixtures of the stripes beside them.
    """
    parts = cut_merges(merges, VARYING_LEVEL) + 1
    return split_unconnected(
        cross_labels(regions, np.where(np.append(varies, False)[regions], parts, 0))
    )


def region_contrast(
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


def _is_empty(
    labels: NDArray[Any], values: NDArray[Any], disks: Disks, limit: float, errors: float
) -> NDArray[np.bool_]:
    """Which regions show no disks for sure.

    A small grain scatters because the probe blurs its borders. Its disks are certain, too, if they
    are far above the limit and above the noise.
    """
    empty = region_contrast(labels, values, disks, errors) < limit
    empty &= region_contrast(labels, values, disks, errors, False) < FAR_ABOVE * limit
    if not empty.all():  # where a disk is no larger than a bin, grains show by their power
        power = (region_means(labels, values)[0] ** 2).sum(axis=1)
        empty &= power < STRONG_SHARE * power[~empty].max()
    return empty


def empty_pattern(
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
    deep, deeper = have_depth(labels, FLAT_DEPTH), have_depth(labels, STRIP_DEPTH)
    for label, box in enumerate(find_objects(labels + 1)):
        if deep[label]:
            inside = values[box][labels[box] == label].astype(np.float64)
            mean = inside.mean(axis=0)
            squared = ((inside - mean) ** 2).sum(axis=1) - noise
            power = (mean**2).sum()
            # Of a small grain, half of the positions lie at its blurred border.
            flat[label] = np.median(squared) < MAX_FLAT_SCATTER * power
            if deeper[label]:
                wide[label] = squared.mean() < MAX_UNIFORM_SCATTER * power
    return wide, flat | wide


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
        share, explained = mixture_shares(mean, size, sorted(near[k]), part_mean[k], part_size[k])
        if explained and share.sum() < 0.5:
            out[k] = True
            for other in beside[k]:  # a tail may be several parts long
                if not out[other] and not near[k] <= near[other]:
                    near[other] |= near[k]
                    todo.append(other)
    return out


def mixture_shares(
    mean: NDArray[Any], size: NDArray[Any], of: list[int], pattern: NDArray[Any], count: float
) -> tuple[NDArray[np.float64], bool]:
    """Shares of regions in a pattern, and whether they explain it."""
    rank = mean.shape[1]
    share, rest = nnls(mean[of].T, pattern)
    power = max(float((pattern**2).sum() - rank / count), 1e-9)
    noise = noise_of_sum(rank, count, share, size[of])
    return share, bool(rest**2 - noise < MAX_UNEXPLAINED_SHARE * power)


def cross_labels(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int64]:
    """Regions in which neither label changes; -1 where either is."""
    labels = first.astype(np.int64) * (int(second.max(initial=-1)) + 1) + second
    return consecutive(np.where((first >= 0) & (second >= 0), labels, -1))


def with_empty(labels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
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
