"""Crystals: pieces of one lattice, whatever thickness and bending do to the intensities of disks.

`merging.py` finds regions of one pattern. A crystal that bends or is wedge-shaped comes in many of
them. Here, the scan is cut in pieces and pieces join to crystals:

1. `steps.py`: regions that hold several crystals, such as twin lamellae, come apart.
2. `pieces.py`: regions without Bragg disks are background, the others are pieces. Regions whose
   patterns vary are cut into several pieces. Parts of the background that show disks for sure
   become pieces, and parts of other regions that show none become background, unless they scatter
   diffusely as the piece beside them does (`extent.py`).
3. `joining.py`: two neighbouring pieces join if they share disks, and if the patterns on both sides
   of their border differ by no more than they vary on each side. A uniform bend passes, a step does
   not. A piece that has one pattern over a long way is not bent: two such pieces are never in one
   crystal.
4. `outlines.py`: borders to the background are placed where a crystal has half of its strength.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import find_objects

from .borders import MAX_CONTRAST, contrasts
from .disks import Disks
from .extent import extend_crystals, radial_excess
from .joining import MIN_SHARED, Joining, join_numbers, join_pieces
from .merging import Merges
from .outlines import place_borders
from .pieces import (
    MIN_PART,
    cross_labels,
    empty_pattern,
    find_pieces,
    split_unconnected,
)
from .regions import consecutive, nearest_label
from .steps import split_at_steps

PATTERN_LEVEL = 1.0
"""Level of a cluster tree at which it is cut into pieces of crystals: regions of one pattern, and
parts of regions whose patterns vary."""

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
    values: NDArray[Any],
    merges: Merges,
    regions: NDArray[Any],
    disks: Disks,
    radial: NDArray[Any],
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
    radial : ndarray, (Rx, Ry, n)
        Features of the radial profile.
    """
    regions = split_at_steps(values, merges, regions, disks)
    pieces, shows_disks = find_pieces(values, merges, regions, disks, radial)
    shift = empty_pattern(pieces, values, merges.mask)
    joins, scores = join_pieces(pieces, values - shift, disks, shows_disks)
    n = int(pieces.max(initial=-1)) + 1
    kept = scores >= MIN_SHARED
    crystal = join_numbers(joins[kept], n)
    found = np.append(crystal, -1)[pieces]
    excess = radial_excess(found, radial, merges.mask)
    found = place_borders(consecutive(found), np.concatenate([values, excess], axis=2), merges.mask)
    found = split_unconnected(extend_crystals(found, radial, merges.mask))
    inside = found >= 0
    size = np.bincount(found[inside])
    shown = np.bincount(found[inside & shows_disks], minlength=len(size)) > 0
    is_crystal = np.append((size >= MIN_PART) & shown, False)
    found = consecutive(np.where(is_crystal[found], found, -1))
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
    borders, contrast = contrasts(whole, values)
    if not len(borders.first):
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    ends = np.stack([borders.first, borders.second], axis=1)
    is_empty = np.bincount(whole[labels >= 0], background[labels >= 0]) > 0
    level = CRYSTAL_LEVEL * contrast / MAX_CONTRAST
    level[is_empty[ends].sum(axis=1) == 1] += _WITHOUT_EVIDENCE
    crystals = ~is_empty[ends].any(axis=1)
    if crystals.any():
        empty = np.where(np.append(is_empty, True)[whole], -1, whole)
        shift = empty_pattern(empty, values, labels >= 0)
        state = Joining(whole, values - shift, disks)
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
        parts[box] = np.where(own, nearest_label(inside, missing), parts[box])
    parts = np.where(crystals >= 0, parts, -1)
    grains = cross_labels(crystals, parts)
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
    # Of regions with disks only rims and small parts are left here. They go to the region beside
    # them.
    inside = regions >= 0
    share = np.bincount(regions[inside], background[inside]) / np.bincount(regions[inside])
    rims = background & ((pieces >= 0) | np.append(share < 0.5, False)[regions])
    whole = np.where(rims, -1, empty)
    empty = np.where(rims & (whole >= 0).any(), nearest_label(whole, rims), empty)
    empty = consecutive(np.where(background, empty, -1))
    labels = np.where(background, empty + len(found), grains)
    order = np.argsort(-np.array(score), kind="stable")
    return (
        consecutive(np.where(mask, labels, -1)),
        background,
        np.array(pairs, dtype=np.int64).reshape(-1, 2)[order],
        np.array(score, dtype=np.float64)[order],
    )
