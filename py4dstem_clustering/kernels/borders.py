"""Contrasts across the borders of regions, and borders where a grain has half its strength."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from .border_sides import WINDOW_SIGMA, border_sides, gradient_ridge
from .regions import (
    GRAIN_VARIATION,
    NEIGHBOUR_STEPS,
    NOISE_FACTOR,
    Borders,
    consecutive,
    region_means,
    region_sums,
)

MAX_CONTRAST = 0.05
"""Largest squared difference, relative to the signal, across a border inside one grain.

A larger value joins more neighbours: grains of similar orientation become one.
"""

MIN_CORE_SIZE = 8
"""Smallest number of inner positions for which they alone give the mean of a region.

With a larger value, more means are of all positions, also of those that a neighbour blurs.
"""

_PLACES_PER_CHUNK = 4096


def contrasts(labels: NDArray[Any], values: NDArray[Any]) -> tuple[Borders, NDArray[np.float64]]:
    """Borders, and the squared difference across each of them, relative to the signal."""
    ridge = gradient_ridge(labels, values)
    borders, sides = border_sides(labels, values, ridge)
    return borders, contrast_of_sides(borders, sides, ridge, np.bincount(labels[labels >= 0]))


def contrast_of_sides(
    borders: Borders, sides: NDArray[Any], ridge: NDArray[Any], size: NDArray[Any]
) -> NDArray[np.float64]:
    """Squared difference across each border, relative to the signal.

    `sides` are from `border_sides`, `ridge` from `gradient_ridge`, and `size` ``(n_regions,)`` are
    the numbers of positions of regions.
    """
    if len(borders.first) == 0:
        return np.empty(0)
    rank = sides.shape[2]
    # About as many positions take part as lie in the window along the border.
    window = WINDOW_SIGMA * borders.length + 1
    counts = [np.minimum(size[end], window) for end in (borders.first, borders.second)]
    power = [(side**2).sum(axis=1) for side in sides]
    product = (sides[0] * sides[1]).sum(axis=1)
    weak = np.minimum(*power)
    strong = np.maximum(*power)
    # The weaker side may be a thinner part of the same grain, down to half of the thickness.
    factor = np.clip(product / np.maximum(weak, 1e-9), 0.5, 2)
    squared = strong - 2 * factor * product + factor**2 * weak
    # Under a window at the border, the members lie 0.8 sigma deep on average, with a variance of
    # 0.36 (a half-normal distribution). A gradient carried so far adds noise; the ridge reduces it.
    factors = 1 + (0.64 / 0.36) / (1 + ridge / 0.18) ** 2
    noise = NOISE_FACTOR * rank * sum(
        factors[end] / count
        for end, count in zip((borders.first, borders.second), counts, strict=True)
    )  # fmt: skip
    signal = np.maximum(strong - rank / np.maximum(*counts), 1e-9)
    return np.maximum(squared - noise, 0) / signal


def join_mutual_neighbours(
    borders: Borders, contrast: NDArray[Any], n: int, max_contrast: float
) -> NDArray[np.int64] | None:
    """New number of each of `n` regions when pairs of mutually most similar neighbours join.

    Only borders with a contrast up to `max_contrast` count; None if no pair joins.
    """
    best = np.full(n, np.inf)
    np.minimum.at(best, borders.first, contrast)
    np.minimum.at(best, borders.second, contrast)
    alike = (contrast <= max_contrast) & (contrast == best[borders.first])
    alike &= contrast == best[borders.second]
    if not alike.any():
        return None
    target = np.arange(n)
    free = np.ones(n, dtype=bool)
    # Longest border first, since many contrasts are 0; a region joins with one neighbour only.
    where = np.flatnonzero(alike)
    for k in where[np.argsort(-borders.length[where], kind="stable")]:
        i, j = borders.first[k], borders.second[k]
        if free[i] and free[j]:
            target[j], free[i], free[j] = i, False, False
    return target


def refine_borders(
    labels: NDArray[Any], values: NDArray[Any], rounds: int = 8
) -> NDArray[np.int64]:
    """Give each position at a border to the touching region with the nearest mean.

    The border between a grain and a region without structure then lies where the grain has half of
    its strength. A Potts term keeps borders smooth: each unit of border with the own region counts
    as much as an eighth of the noise.

    Parameters
    ----------
    labels : ndarray, (Rx, Ry), int
    values : ndarray, (Rx, Ry, rank)
    rounds : int
        Rounds at most; a position may move to another region once in each round.
    """
    rank = values.shape[2]
    flat, columns = values.reshape(-1, rank), values.shape[1]
    shifts = np.array([dx * (columns + 2) + dy for dx, dy, _ in NEIGHBOUR_STEPS])
    labels = consecutive(labels)
    changed = np.ones(int(labels.max(initial=-1)) + 1, dtype=bool)
    mean = np.empty((len(changed), rank))
    for _ in range(rounds):
        if len(changed) < 2:
            break
        mean[changed] = _typical_means(labels, values, changed)
        # Where no region has changed since the last round, each position has its region already.
        around, padded = _around(labels)
        touched = np.append(changed, False)
        at = (labels >= 0) & touched[labels]
        border = np.zeros(labels.shape, dtype=bool)
        for near in around:
            border |= (near != labels) & (near >= 0)
            at |= touched[near]
        places = np.flatnonzero(at & border & (labels >= 0))
        moved = labels.copy()
        power = (mean**2).sum(axis=1)
        for start in range(0, len(places), _PLACES_PER_CHUNK):
            some = places[start : start + _PLACES_PER_CHUNK]
            near = padded[(some + 2 * (some // columns) + columns + 3)[:, None] + shifts]
            moved.ravel()[some] = _nearest_region(
                flat[some], labels.ravel()[some], near, mean, power
            )
        new = moved != labels
        if not new.any():
            break
        changed[:] = False
        changed[labels[new]] = changed[moved[new]] = True
        left = np.bincount(moved[moved >= 0], minlength=len(changed)) > 0
        labels, mean, changed = consecutive(moved), mean[left], changed[left]
    return labels


def _around(labels: NDArray[Any]) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Labels of the neighbours of all positions, and the flat labels of the scan with a rim.

    Neighbours are in the order of `NEIGHBOUR_STEPS`; -1 is outside the scan.
    """
    rx, ry = labels.shape
    padded = np.pad(labels, 1, constant_values=-1)
    near = [padded[1 + dx : 1 + dx + rx, 1 + dy : 1 + dy + ry] for dx, dy, _ in NEIGHBOUR_STEPS]
    return near, padded.ravel()


def _typical_means(
    labels: NDArray[Any], values: NDArray[Any], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean features of the `chosen` regions; of their inner positions if there are enough."""
    number = np.append(np.where(chosen, np.cumsum(chosen) - 1, -1), -1)[labels]
    inside = np.flatnonzero(number >= 0)
    rows = values.reshape(-1, values.shape[2])[inside]
    mean, _ = region_means(number.ravel()[inside], rows)
    inner = (minimum_filter(labels, 3) == maximum_filter(labels, 3)).ravel()[inside]
    core = np.where(inner, number.ravel()[inside], -1)
    count = np.bincount(core[inner], minlength=len(mean))
    enough = count >= MIN_CORE_SIZE
    if enough.any():
        total = region_sums(core, rows, len(mean))
        mean[enough] = total[enough] / count[enough, None]
    return mean


def _nearest_region(
    values: NDArray[Any],
    own: NDArray[Any],
    near: NDArray[Any],
    mean: NDArray[np.float64],
    power: NDArray[np.float64],
) -> NDArray[Any]:
    """Region with the lowest energy for each position, of its own and those of its neighbours."""
    rank = values.shape[1]
    # The own region comes first, so that a position stays where energies are equal.
    candidates = np.concatenate([own[:, None], near], axis=1)
    first = candidates >= 0
    for k in range(1, candidates.shape[1]):
        first[:, k] &= (candidates[:, :k] != candidates[:, k, None]).all(axis=1)
    place, column = np.nonzero(first)  # each region once
    region = candidates[place, column]
    apart = np.take(mean, region, axis=0)
    apart -= np.take(values, place, axis=0)
    squared = np.square(apart, out=apart).sum(axis=1)
    begin = np.flatnonzero(np.diff(place, prepend=-1))
    strongest = np.maximum.reduceat(power[region], begin)
    spread = 1 + GRAIN_VARIATION**2 * np.maximum(strongest, 1) / rank
    agree = (near[place] == region[:, None]) @ np.array([border for *_, border in NEIGHBOUR_STEPS])
    energy = np.full(candidates.shape, np.inf)
    energy[place, column] = squared / spread[place] - rank / 8 * agree
    return candidates[np.arange(len(own)), energy.argmin(axis=1)]
