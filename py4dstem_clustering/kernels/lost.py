"""Lost frames: patterns that hold nothing, left by a fault of the camera or of the scan.

A frame is lost if all its pixels have one value (zero, or saturated), or are missing. A gap of one
or two lost frames, such as a lost row of the scan, is bridged: its features are those between both
sides, so that a grain on both sides is one grain. In the end, lost frames belong to no cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_LIT = 20
"""Pixels above the lowest value that frames must hold, at the median, for an even frame to be lost;
half of the pixels of a small detector. With fewer electrons, a frame may be empty by chance."""

MAX_GAP = 2
"""Lost frames in a row or column that are bridged. With more, grains join whose borders nobody has
seen."""

_SAMPLE = 32
"""Pixels of each frame that are looked at first."""


def find_even(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Frames ``(n, Ry)`` of ``(n, Ry, Qx, Qy)`` whose pixels that are not missing have one value.

    Frames of which all pixels are missing (NaN or infinite) are even, too.
    """
    pixels = rows.reshape(*rows.shape[:2], -1)
    step = max(1, pixels.shape[2] // _SAMPLE)
    found = _has_one_value(pixels[..., ::step])
    for at in zip(*np.nonzero(found), strict=True):
        found[at] = _has_one_value(pixels[at])
    return found


def _has_one_value(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the last axis has one value, or none, apart from what is missing."""
    if values.dtype.kind != "f":
        return np.asarray((values == values[..., :1]).all(axis=-1))
    present = np.isfinite(values)
    low = np.min(values, axis=-1, where=present, initial=np.inf)
    high = np.max(values, axis=-1, where=present, initial=-np.inf)
    return np.asarray(low >= high)


def may_be_lost(patterns: NDArray[Any]) -> bool:
    """Whether even frames are lost, and not empty by chance, from a sample ``(n, pixels)``."""
    patterns = patterns[~_has_one_value(patterns)]
    if not len(patterns):
        return False
    present = np.isfinite(patterns)
    low = np.min(patterns, axis=1, where=present, initial=np.inf, keepdims=True)
    with np.errstate(invalid="ignore"):
        lit = ((patterns > low) & present).sum(axis=1)
    return bool(np.median(lit) >= min(MIN_LIT, patterns.shape[1] / 2))


def bridge(
    values: NDArray[np.float32], lost: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features of lost frames from both sides of a gap, and which frames are bridged.

    The gap is crossed along the axis on which it is shorter; Rx if both are equal. Features are
    interpolated between the frames at both ends. They are 0 where nothing is bridged.
    """
    out = values.copy()
    out[lost] = 0
    if not lost.any():
        return out, np.zeros_like(lost)
    best = np.full(lost.shape, np.inf)
    for axis in (0, 1):
        before, after = _distances(lost, axis)
        total = before + after
        at = lost & (total <= MAX_GAP + 1) & (total < best)
        best[at] = total[at]
        x, y = np.nonzero(at)
        dx, dy = (1, 0) if axis == 0 else (0, 1)
        back, ahead = before[at].astype(int), after[at].astype(int)
        share = (back / (back + ahead))[:, None].astype(np.float32)
        first = values[x - dx * back, y - dy * back]
        second = values[x + dx * ahead, y + dy * ahead]
        out[at] = (1 - share) * first + share * second
    return out, np.isfinite(best)


def _distances(lost: NDArray[np.bool_], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions to the next frame that is there, to lower and to higher indices of an axis."""
    line = np.moveaxis(lost, axis, 0)
    index = np.arange(len(line))[:, None]
    before = index - np.maximum.accumulate(np.where(line, -np.inf, index), axis=0)
    after = np.minimum.accumulate(np.where(line, np.inf, index)[::-1], axis=0)[::-1] - index
    return np.moveaxis(before, 0, axis), np.moveaxis(after, 0, axis)


def lost_in_similarity(similarity: NDArray[Any]) -> NDArray[np.bool_]:
    """Positions ``(Rx, Ry)`` that are alike to none of their neighbours: a similarity of exactly 0.

    Frames without any contrast have it. Where all positions have it, none is lost.
    """
    exists = ~np.isnan(similarity)
    alike = (np.where(exists, similarity, 0) != 0).any(axis=2)
    return np.asarray(exists.any(axis=2) & ~alike & alike.any())
