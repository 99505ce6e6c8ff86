"""Regions that hold more than one crystal: they come apart where patterns change in a clear step.

Merging saves cost for each unit of border that disappears. So crystals that are a few positions
wide, such as twin lamellae, join with what lies beside them, whatever patterns they have. Here, the
parts of each region at a finer cut are compared. Where most of the pattern changes, and changes at
once, two crystals touch. A lattice that bends changes gradually, and thickness changes intensities
by a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects

from .borders import refine_borders
from .disks import DISK_ERRORS, MIN_LIMIT, Disks
from .finer import refined_parts
from .joining import difference_across
from .merging import Merges, cut_merges
from .pieces import region_contrast
from .regions import consecutive, find_borders
from .strips import border_strips, find_facing, noise_power

# The constants were tuned on the scans that `pieces.py` names, and on twin lamellae and foils with
# bend contours (seeds 100 and 101).
STEP_LEVEL = 0.35
"""Level of the merges of positions at which parts of regions are compared."""

MIN_STEP = 0.6
"""Squared difference of the patterns on both sides of a step, relative to the stronger one. Twins
of gold along <110> have 0.75 to 1.2, halves of a bent kinematical grain 0.05 to 0.4."""

MAX_STEP_SCATTER = 0.15
"""Scatter of the patterns on both sides, relative to the squared difference, up to which a change
is a step. Twins of gold have 0.01 to 0.14, bend contours 0.3 and more. A uniform gradient gives 1/6
over deep strips and 0.13 over shallow ones, but seldom changes as much as `MIN_STEP`."""

MIN_SIDE = 12
"""Smallest part that may lie on one side of a step, scan positions. Smaller ones are noise too
often."""


def split_at_steps(
    values: NDArray[Any], merges: Merges, regions: NDArray[Any], disks: Disks
) -> NDArray[np.int64]:
    """Regions of one pattern ``(Rx, Ry)``; those that hold several crystals come apart.

    `values` are features ``(Rx, Ry, rank)``, `merges` those of their positions; in `regions`, -1 is
    none.
    """
    regions = consecutive(regions)
    fine = cut_merges(merges, STEP_LEVEL)
    parts = refined_parts(regions, fine, values, np.zeros(regions.shape, dtype=bool))
    if parts.max(initial=-1) == regions.max(initial=-1):
        return regions
    inside = parts >= 0
    large = np.bincount(parts[inside]) >= MIN_SIDE
    certain = large & (region_contrast(parts, values, disks, DISK_ERRORS) >= MIN_LIMIT)
    home = np.zeros(len(large), dtype=np.int64)
    home[parts[inside]] = regions[inside]
    several = np.bincount(home[certain], minlength=int(regions.max()) + 1) >= 2
    noise = noise_power(parts, values)
    out, free = regions.copy(), int(regions.max()) + 1
    for label, box in enumerate(find_objects(regions + 1)):
        if not several[label]:
            continue
        own = regions[box] == label
        number = consecutive(np.where(own, parts[box], -1))
        first = np.unique(number[own], return_index=True)[1]
        known = certain[parts[box][own][first]]
        group = _join_without_steps(number, values[box], known & _reach_out(number), noise)
        group = np.unique(group, return_inverse=True)[1]
        if group.max() > 0:
            out[box][own] = np.where(group == 0, label, free + group - 1)[number[own]]
            free += int(group.max())
    if free == int(regions.max()) + 1:
        return regions
    return refine_borders(consecutive(out), values, rounds=3)


def _reach_out(parts: NDArray[Any]) -> NDArray[np.bool_]:
    """Which parts have a side on what lies outside of their region, or on the border of the scan.

    Lamellae do. A part that others enclose is taken for the thick middle of a grain.
    """
    outside = binary_dilation(np.pad(parts, 1, constant_values=-1) < 0)
    reach = np.zeros(int(parts.max()) + 1, dtype=bool)
    reach[parts[outside[1:-1, 1:-1] & (parts >= 0)]] = True
    return reach


def _join_without_steps(
    parts: NDArray[Any], values: NDArray[Any], certain: NDArray[np.bool_], noise: float
) -> NDArray[np.int64]:
    """Group of each part of a region.

    The pair that differs least joins, until all borders that are left are steps between parts whose
    disks are `certain`.
    """
    region, certain = np.arange(len(certain)), certain.copy()
    borders = find_borders(parts)[0]
    touching = np.stack([borders.first, borders.second], axis=1)
    facing = find_facing(parts)
    faces = np.unique(np.stack([parts.ravel()[facing.position], facing.piece], axis=1), axis=0)
    known: dict[tuple[int, int], tuple[float, float]] = {}
    while True:
        ends = np.sort(region[touching], axis=1)
        pairs = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
        keys = [(i, j) for i, j in pairs.tolist()]
        new = np.array([key not in known for key in keys], dtype=bool)
        if new.any():
            strips = border_strips(facing, region, parts, pairs[new], values, noise)
            difference, strong = difference_across(strips)
            scatter = np.maximum(strips.scatter, 0).sum(axis=1) / np.maximum(difference, 1e-3)
            step = difference / np.maximum(strong, 1e-9)
            found = zip(step.tolist(), scatter.tolist(), strict=True)
            known.update(zip((k for k, n in zip(keys, new, strict=True) if n), found, strict=True))
        step, scatter = np.array([known[key] for key in keys]).reshape(-1, 2).T
        stays = (step >= MIN_STEP) & (scatter <= MAX_STEP_SCATTER) & certain[pairs].all(axis=1)
        if stays.all():
            return region
        i, j = keys[int(np.where(stays, np.inf, step).argmin())]
        # A border with `i` stays as it is where `j` is far from it.
        close = region[faces]
        near = set(close[(close == j).any(axis=1)].ravel().tolist())
        region[region == j] = i
        certain[i] |= certain[j]
        known = {
            key: value
            for key, value in known.items()
            if j not in key and not (i in key and near & (set(key) - {i}))
        }
