"""Features at the common border of two regions, and borders where a grain has half its strength."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, find_objects, maximum_filter, minimum_filter

from .regions import (
    GRAIN_VARIATION,
    NEIGHBOUR_OFFSETS,
    NOISE_FACTOR,
    Borders,
    consecutive,
    find_borders,
    region_means,
)

MAX_CONTRAST = 0.05
"""Largest squared difference, relative to the signal, across a border inside one grain.

A larger value joins more neighbours: grains of similar orientation become one.
"""

WINDOW_SIGMA = 3.0
"""Standard deviation of the window about a position whose features are averaged, scan positions.

A larger value averages more noise away, but also takes in what lies farther from the border.
"""

INNER_DEPTH = 2.0
"""Distance from a border, scan positions, from which on the other grain hardly blurs patterns.

A larger value keeps wider probes out of the gradients; small regions then have no gradient.
"""

GRADIENT_SHARE = 0.1
"""Share of the power allowed by `GRAIN_VARIATION` that a grain may gain over `WINDOW_SIGMA`.

A larger value lets grains bend more before their parts differ, but adds noise at the border.
"""

MIN_CORE_SIZE = 8
"""Smallest number of inner positions for which they alone give the mean of a region.

With a larger value, more means are of all positions, also of those that a neighbour blurs.
"""

_PLACES_PER_CHUNK = 4096


def _moment(values: NDArray[Any], power_x: int, power_y: int) -> NDArray[Any]:
    """Sum around each position: values times the window times powers of the offsets (Rx, Ry).

    Offsets are in units of `WINDOW_SIGMA`.
    """
    reach = int(3 * WINDOW_SIGMA + 0.5)
    offset = np.arange(-reach, reach + 1) / WINDOW_SIGMA
    weight = np.exp(-(offset**2) / 2)
    weight /= weight.sum()
    for axis, power in enumerate((power_x, power_y)):
        values = correlate1d(values, weight * offset**power, axis=axis, mode="constant")
    return values


def _gradient_ridge(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Ridge of the regression for the gradient of each region; a large ridge holds it near zero.

    It is the power of the noise in a window, divided by the expected power of gradients.
    """
    rank = values.shape[2]
    mean, size = region_means(labels, values)
    power = np.maximum((mean**2).sum(axis=1) / rank - 1 / size, 0)
    expected = np.maximum(GRADIENT_SHARE * GRAIN_VARIATION**2 * power, 1e-6)
    return 1e-3 + 1 / (4 * np.pi * WINDOW_SIGMA**2 * expected)


def border_values(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float32]:
    """Features ``(Rx, Ry, rank)`` that each region has at each of its positions, without noise.

    The mean of the members in a window about the position holds at the middle of these members.
    The gradient of the region carries the mean from there to the position. Only members deeper
    than `INNER_DEPTH` give the gradient, since no other grain blurs them. A lattice that bends has
    the same slope inside and at its border, so the gradient carries it right up to the border. A
    ramp between two grains is steep at the border only, so the gradient leaves the ramp out.
    """
    out = np.zeros(values.shape, dtype=np.float32)
    ridge = _gradient_ridge(labels, values)
    reach = int(INNER_DEPTH)
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= INNER_DEPTH
    deep = minimum_filter(labels, footprint=disk) == maximum_filter(labels, footprint=disk)
    for label, box in enumerate(find_objects(labels + 1)):
        member = labels[box] == label
        whole, inner = (mask.astype(np.float64) for mask in (member, member & deep[box]))
        own = np.where(member[..., None], values[box], 0).astype(np.float32)
        count = _moment(whole, 0, 0)[member]
        middle_x, middle_y = (_moment(whole, *power)[member] / count for power in ((1, 0), (0, 1)))
        level = _moment(own, 0, 0)[member] / count[:, None]

        own *= inner[..., None].astype(np.float32)
        total, x, y, xx, xy, yy = (
            _moment(inner, *power)[member]
            for power in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
        )
        # Least squares about the middle of the inner members; no gradient where there are none.
        x, y = (moment / np.maximum(total, 1e-12) for moment in (x, y))
        xx = xx - total * x**2 + ridge[label]
        yy = yy - total * y**2 + ridge[label]
        xy = xy - total * x * y
        sums = _moment(own, 0, 0)[member]
        along_x = _moment(own, 1, 0)[member] - x[:, None] * sums
        along_y = _moment(own, 0, 1)[member] - y[:, None] * sums
        # The gradient times the way from the middle of the members to the position.
        determinant = xx * yy - xy**2
        shift_x = (yy * middle_x - xy * middle_y) / determinant
        shift_y = (xx * middle_y - xy * middle_x) / determinant
        out[box][member] = level - shift_x[:, None] * along_x - shift_y[:, None] * along_y
    return out


def contrasts(
    labels: NDArray[Any], values: NDArray[Any], local: NDArray[Any]
) -> tuple[Borders, NDArray[np.float64]]:
    """Borders, and the squared difference across each of them, relative to the signal.

    `local` are the features at the borders, from `border_values`.
    """
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
    factors = 1 + (0.64 / 0.36) / (1 + _gradient_ridge(labels, values) / 0.18) ** 2
    noise = NOISE_FACTOR * rank * sum(
        factors[end] / count
        for end, count in zip((borders.first, borders.second), counts, strict=True)
    )  # fmt: skip
    signal = np.maximum(strong - rank / np.maximum(*counts), 1e-9)
    return borders, np.maximum(squared - noise, 0) / signal


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
    rx, ry = labels.shape
    steps = [(s * dx, s * dy, border) for dx, dy, border in NEIGHBOUR_OFFSETS for s in (1, -1)]
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
            enough = counts[present] >= MIN_CORE_SIZE
            mean[present[enough]] = pure[enough]
        power = (mean**2).sum(axis=1)

        padded = np.pad(labels, 1, constant_values=-1)
        around = np.stack([padded[1 + dx : 1 + dx + rx, 1 + dy : 1 + dy + ry]
                           for dx, dy, _ in steps], axis=2)  # fmt: skip
        at = (labels >= 0) & ((around != labels[..., None]) & (around >= 0)).any(axis=2)
        places = np.argwhere(at)
        moved = labels.copy()
        for start in range(0, len(places), _PLACES_PER_CHUNK):
            x, y = places[start : start + _PLACES_PER_CHUNK].T
            near = around[x, y]
            # The own region comes first, so that a position stays where energies are equal.
            candidates = np.concatenate([labels[x, y][:, None], near], axis=1)
            squared = ((values[x, y][:, None] - mean[candidates]) ** 2).sum(axis=2)
            strongest = np.where(candidates >= 0, power[candidates], 0).max(axis=1)
            spread = 1 + GRAIN_VARIATION**2 * np.maximum(strongest, 1) / rank
            agree = ((near[:, None] == candidates[..., None]) * weights).sum(axis=2)
            energy = squared / spread[:, None] - rank / 8 * agree
            energy[candidates < 0] = np.inf
            moved[x, y] = candidates[np.arange(len(x)), energy.argmin(axis=1)]
        if np.array_equal(moved, labels):
            break
        labels = consecutive(moved)  # a region may have lost all positions
    return consecutive(labels)
