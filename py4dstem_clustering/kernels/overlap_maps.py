"""Maps of grains that overlap: how much of each is in a position, its support and its share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_fill_holes,
    binary_opening,
    distance_transform_edt,
    find_objects,
    label,
    median_filter,
)
from scipy.optimize import nnls

from .blocks import Report
from .disks import SHARED_ERRORS, Disks
from .regions import grown_box

# The constants are the same for every scan; see `overlaps.py` for how they were tuned.
MAX_GRAINS = 3
"""Most grains at one position."""

MIN_AMOUNT = 0.15
"""Smallest amount of a grain in its support, relative to where it is alone. A larger value cuts off
thin rims."""

MIN_SHARE = 0.12
"""Smallest share of a grain in its support. A larger value cuts off thin grains under thick ones;
a smaller one takes disks that two grains have in common for a second grain."""

SHARE_ERRORS = 3.0
"""Standard errors by which the amount of a grain must exceed zero."""

PLACES = 0.25
"""Power to which pure patterns are raised when a bin is divided among grains. With a small power
the places of disks decide, and hardly how strong they are. With 1, strong grains take what belongs
to weak ones, since disks of a grain become stronger and weaker with its thickness."""

MIN_WIDTH = 3
"""Width of overlaps, scan positions. Narrower ones are borders that the probe blurs; a larger value
is needed for a broader probe."""

MIN_RING = 8
"""Bins of a ring from which on most of them lie between disks."""


def few_grains(system: NDArray[Any], pattern: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Non-negative least squares with at most `MAX_GRAINS` terms that are not zero; amounts and the
    norm of the rest.
    """
    amount, rest = nnls(system, pattern)
    if (amount > 0).sum() > MAX_GRAINS:
        strength = amount * np.sqrt((system**2).sum(axis=0))
        kept = np.argsort(-strength, kind="stable")[:MAX_GRAINS]
        amount = np.zeros_like(amount)
        amount[kept], rest = nnls(system[:, kept], pattern)
    return amount, float(rest)


def reach(count: NDArray[Any]) -> NDArray[np.float64]:
    """How far beyond its core a grain may lie, scan positions, from the size of the core."""
    return np.asarray(2 + 1.2 * np.sqrt(count / np.pi))


def near_maps(number: NDArray[Any]) -> list[tuple[tuple[slice, ...], NDArray[np.bool_]]]:
    """For each region, a box and where in it the grain of this core may lie."""
    count = np.bincount(number[number >= 0], minlength=int(number.max(initial=-1)) + 1)
    far = reach(count)
    found = []
    for k, box in enumerate(find_objects(number + 1)):
        around = grown_box(box, number.shape, int(far[k]) + 1)
        found.append((around, distance_transform_edt(number[around] != k) <= far[k]))
    return found


def find_amounts(
    values: NDArray[Any],
    cores: NDArray[Any],
    patterns: NDArray[Any],
    report: Report = lambda n: None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Amount of each grain in each position ``(Rx, Ry, N)``, its standard error, and the power that
    the grains leave.
    """
    rx, ry, _ = values.shape
    n = len(patterns)
    allowed = np.zeros((rx, ry, n), dtype=bool)
    for k, (box, inside) in enumerate(near_maps(cores)):
        allowed[box][..., k] = inside
    amounts = np.zeros((rx, ry, n), dtype=np.float32)
    errors = np.full((rx, ry, n), np.inf, dtype=np.float32)
    rest = (values.astype(np.float64) ** 2).sum(axis=2)
    known: dict[tuple[int, ...], NDArray[Any]] = {}
    for x in range(rx):
        for y in range(ry):
            near = np.flatnonzero(allowed[x, y])
            if not len(near):
                continue
            amount, norm = few_grains(patterns[near].T, values[x, y].astype(np.float64))
            amounts[x, y, near] = amount
            rest[x, y] = norm**2
            used = near[amount > 0]
            if len(used):
                key = tuple(used.tolist())
                if key not in known:
                    gram = patterns[used] @ patterns[used].T
                    known[key] = np.sqrt(np.abs(np.diag(np.linalg.pinv(gram))))
                errors[x, y, used] = known[key]
        report(1)
    return amounts, errors, rest.astype(np.float32)


def disk_shares(
    values: NDArray[Any],
    amounts: NDArray[Any],
    patterns: NDArray[Any],
    size: NDArray[Any],
    group: NDArray[np.int64],
    met: NDArray[np.bool_],
    disks: Disks,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each grain in what the disks of all grains hold, and the standard error of the
    largest share ``(Rx, Ry)``, from noise.

    At each position only the grains count that the probe meets: `met` is ``(Rx, Ry, N)``. What a
    bin of a pattern holds is divided among the grains that have disks there. So the disks of a
    grain may be brighter or darker than in its pure pattern, as they are where it is thicker; only
    their places must be the same. A grain may have several of the M `patterns`: `group` ``(M,)`` is
    the grain of each of them, and `amounts` ``(Rx, Ry, M)`` and `size` belong to the patterns.
    """
    shares = met.astype(np.float32)
    error = np.zeros(met.shape[:2], dtype=np.float32)
    bins = disks.counts
    back = disks.directions[bins]
    weight = np.broadcast_to(disks.deviation, len(bins))[bins]
    pure = patterns @ back.T
    noise = disks.error[bins] / np.sqrt(np.maximum(size, 1))[:, None]
    rings = _rings(disks)[bins]
    lift = -_medians(pure * weight, rings) / weight
    pure = pure + lift
    pure = np.where(pure > SHARED_ERRORS * noise, pure, 0)
    for x, y in np.argwhere(met.sum(axis=2) > 1).tolist():
        there = np.flatnonzero(met[x, y])
        own = [group == g for g in there.tolist()]
        expected = np.stack([amounts[x, y, k] @ pure[k] for k in own]) ** PLACES
        parts = expected / np.maximum(expected.sum(axis=0), 1e-12) * weight
        level = sum(amounts[x, y, k] @ lift[k] for k in own)
        features = parts @ back  # what a feature adds to each grain
        held = np.maximum(features @ values[x, y] + parts @ level, 0)
        if held.max() <= 0:
            shares[x, y, there] = 1 / len(there)
            error[x, y] = 1
            continue
        held = np.maximum(held, 1e-3 * held.max())  # a grain that is met has a share
        total = held.sum()
        share = held / total
        shares[x, y, there] = share
        first = share.argmax()
        change = (features[first] - share[first] * features.sum(axis=0)) / total
        error[x, y] = min(1.0, float(np.sqrt((change**2).sum())))
    return shares, error


def _rings(disks: Disks) -> NDArray[np.int64]:
    """Distance of each bin from the direct beam, rounded."""
    bright = disks.mean * disks.deviation
    top = disks.grid[bright > bright.max() / 2].mean(axis=0)
    return np.asarray(np.hypot(*(disks.grid - top).T).round().astype(np.int64))


def _medians(patterns: NDArray[Any], rings: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median of each ring of patterns ``(n, bins)``, at all bins of the ring.

    Features have no radial mean. Most of a ring is between disks, so its median shows by how much
    the disks have lowered it. 0 in rings of fewer than `MIN_RING` bins.
    """
    out = np.zeros(patterns.shape)
    for ring in np.unique(rings):
        own = rings == ring
        if own.sum() < MIN_RING:
            continue
        out[:, own] = np.median(patterns[:, own], axis=1, keepdims=True)
    return out


def find_supports(
    amounts: NDArray[Any], errors: NDArray[Any], cores: NDArray[Any], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where each grain lies ``(Rx, Ry, N)``: its amount and its share stand out, also from noise,
    and the place is connected to its core. And where the probe meets each grain.

    The probe mixes grains that touch side by side. Where supports overlap by less than
    `MIN_WIDTH` positions, each position is support of the strongest grain alone.
    """
    total = amounts.sum(axis=2)
    supports = np.zeros(amounts.shape, dtype=bool)
    boxes = [_box(amounts[..., k] > MIN_AMOUNT) for k in range(amounts.shape[2])]
    for k, box in enumerate(boxes):
        own = amounts[box][..., k]
        there = (own > MIN_AMOUNT) & (own > MIN_SHARE * total[box])
        there &= own > SHARE_ERRORS * errors[box][..., k]
        there = median_filter(there & mask[box], 3, mode="nearest")
        supports[box][..., k] = _with_core(there, cores[box] == k)
    met = supports.copy()
    _drop_narrow(supports, amounts, boxes)
    for k, box in enumerate(boxes):
        whole = _with_core(supports[box][..., k], cores[box] == k) & mask[box]
        supports[box][..., k] = whole
    return supports, (met | supports) & supports.any(axis=2, keepdims=True)


def _box(there: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest box with all positions of a map, and `MIN_WIDTH` positions around it."""
    rows, columns = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    first, second = (
        slice(max(0, int(part[0]) - MIN_WIDTH), int(part[-1]) + 1 + MIN_WIDTH)
        for part in (rows, columns)
    )
    return first, second


def _drop_narrow(
    supports: NDArray[np.bool_], amounts: NDArray[Any], boxes: list[tuple[slice, slice]]
) -> None:
    """Take the weaker of two grains out of narrow overlaps, in place; `boxes` hold the grains."""
    flat = supports.reshape(-1, supports.shape[2])
    several = flat[flat.sum(axis=1) > 1].astype(np.float32)
    square = np.ones((MIN_WIDTH, MIN_WIDTH))
    for j, k in np.argwhere(np.triu(several.T @ several, 1) > 0).tolist():
        box = boxes[j]
        both = supports[box][..., j] & supports[box][..., k]
        # Half of an overlap may lie outside of the scan.
        wide = binary_opening(np.pad(both, MIN_WIDTH, mode="edge"), square)
        part, _ = label(both, np.ones((3, 3)))
        kept = np.unique(part[wide[MIN_WIDTH:-MIN_WIDTH, MIN_WIDTH:-MIN_WIDTH] & both])
        narrow = both & ~np.isin(part, kept)
        first = amounts[box][..., j] >= amounts[box][..., k]
        supports[box][..., j] &= ~narrow | first
        supports[box][..., k] &= ~narrow | ~first


def _with_core(there: NDArray[np.bool_], core: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Parts of a map that hold positions of the core, without holes."""
    part, _ = label(there, np.ones((3, 3)))
    kept = np.unique(part[core & there])
    return np.asarray(binary_fill_holes(np.isin(part, kept[kept > 0])))
