"""Features carried to the common border of two regions, and borders placed at one half."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, find_objects, maximum_filter, minimum_filter

from .regions import (
    NEIGHBOUR_STEPS,
    NOISE,
    VARIATION,
    Borders,
    consecutive,
    find_borders,
    region_means,
)

LOCAL = 0.05
"""Relative squared difference across a border up to which two regions are the same."""

NEAR = 3.0
"""Standard deviation of the window at a border, scan positions."""

DEEP = 2.0
"""Distance from a border, scan positions, beyond which patterns are hardly blurred by others."""

GRADIENT = 0.1
"""Part of VARIATION, squared, that a grain may have over the distance NEAR."""


def _window(values: NDArray[Any], along_x: int, along_y: int) -> NDArray[Any]:
    """Sums about each position under the window, times powers of the offsets in units of NEAR."""
    offset = np.arange(-int(3 * NEAR + 0.5), int(3 * NEAR + 0.5) + 1) / NEAR
    weight = np.exp(-(offset**2) / 2)
    weight /= weight.sum()
    for axis, power in enumerate((along_x, along_y)):
        values = correlate1d(values, weight * offset**power, axis=axis, mode="constant")
    return values


def _stiffness(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """How little the gradient inside each region may follow the data: ridge of its regression.

    Ratio of noise, over as many positions as the window holds, to what gradients are expected.
    """
    rank = values.shape[2]
    mean, size = region_means(labels, values)
    power = np.maximum((mean**2).sum(axis=1) / rank - 1 / size, 0)
    expected = np.maximum(GRADIENT * VARIATION**2 * power, 1e-6)
    return 1e-3 + 1 / (4 * np.pi * NEAR**2 * expected)


def border_values(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Features of each position as its region has them at this place.

    The mean of the members about it, carried from their middle to the position along the gradient
    of the region. The gradient comes from members deeper than DEEP, where no border is blurred: a
    lattice that bends reaches its border with the slope it has everywhere, a ramp between two
    grains is steep at the border only.
    """
    out = np.zeros(values.shape, dtype=np.float32)
    stiff = _stiffness(labels, values)
    reach = int(DEEP)
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= DEEP
    deep = minimum_filter(labels, footprint=disk) == maximum_filter(labels, footprint=disk)
    for label, box in enumerate(find_objects(labels + 1)):
        member = labels[box] == label
        whole, inner = (mask.astype(np.float64) for mask in (member, member & deep[box]))
        own = np.where(member[..., None], values[box], 0).astype(np.float32)
        count = _window(whole, 0, 0)[member]
        middle_x, middle_y = (
            _window(whole, *powers)[member] / count for powers in ((1, 0), (0, 1))
        )
        level = _window(own, 0, 0)[member] / count[:, None]

        own *= inner[..., None].astype(np.float32)
        total, x, y, xx, xy, yy = (
            _window(inner, *powers)[member]
            for powers in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
        )
        # Least squares about the middle of the inner members; where there are none, no gradient.
        x, y = (moment / np.maximum(total, 1e-12) for moment in (x, y))
        xx = xx - total * x**2 + stiff[label]
        yy = yy - total * y**2 + stiff[label]
        xy = xy - total * x * y
        sums = _window(own, 0, 0)[member]
        along_x = _window(own, 1, 0)[member] - x[:, None] * sums
        along_y = _window(own, 0, 1)[member] - y[:, None] * sums
        # Solved for the shift from the middle of the members to the position itself.
        determinant = xx * yy - xy**2
        shift_x = (yy * middle_x - xy * middle_y) / determinant
        shift_y = (xx * middle_y - xy * middle_x) / determinant
        out[box][member] = level - shift_x[:, None] * along_x - shift_y[:, None] * along_y
    return out


def contrasts(labels: NDArray[Any], values: NDArray[Any], local: NDArray[Any]) -> tuple:
    """Borders, and the relative squared difference across each of them."""
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
    window = NEAR * borders.length + 1
    counts = [np.minimum(size[end], window) for end in (borders.first, borders.second)]
    power = [(side**2).sum(axis=1) for side in sides]
    product = (sides[0] * sides[1]).sum(axis=1)
    weak = np.minimum(*power)
    strong = np.maximum(*power)
    # The weaker side may be thinner, up to a factor of two.
    factor = np.clip(product / np.maximum(weak, 1e-9), 0.5, 2)
    squared = strong - 2 * factor * product + factor**2 * weak
    # Members about the border lie 0.8 NEAR deep with a variance of 0.36: a gradient carried so far
    # adds noise, as far as it may follow the data.
    factors = 1 + (0.64 / 0.36) / (1 + _stiffness(labels, values) / 0.18) ** 2
    noise = NOISE * rank * sum(
        factors[end] / count
        for end, count in zip((borders.first, borders.second), counts, strict=True)
    )  # fmt: skip
    signal = np.maximum(strong - rank / np.maximum(*counts), 1e-9)
    return borders, np.maximum(squared - noise, 0) / signal


def mutual_borders(
    borders: Borders, contrast: NDArray[Any], n: int, limit: float
) -> NDArray[Any] | None:
    """New number of each region when mutual best neighbours below `limit` join; None if none."""
    best = np.full(n, np.inf)
    np.minimum.at(best, borders.first, contrast)
    np.minimum.at(best, borders.second, contrast)
    alike = (contrast <= limit) & (contrast == best[borders.first])
    alike &= contrast == best[borders.second]
    if not alike.any():
        return None
    target = np.arange(n)
    free = np.ones(n, dtype=bool)
    # Longest border first: of equal contrasts (zero) a region takes part in one.
    where = np.flatnonzero(alike)
    for k in where[np.argsort(-borders.length[where], kind="stable")]:
        i, j = borders.first[k], borders.second[k]
        if free[i] and free[j]:
            target[j], free[i], free[j] = i, False, False
    return target


def refine_borders(labels: NDArray[Any], values: NDArray[Any], rounds: int = 8) -> NDArray[Any]:
    """Each position at a border to the touching region with the nearest mean.

    The border to a region without structure so comes to lie at one half. A Potts term, as strong
    as an eighth of the noise for each unit of border, keeps it smooth.
    """
    rank = values.shape[2]
    rx, ry = labels.shape
    steps = [(s * dx, s * dy, border) for dx, dy, border in NEIGHBOUR_STEPS for s in (1, -1)]
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
            enough = counts[present] >= 8
            mean[present[enough]] = pure[enough]
        power = (mean**2).sum(axis=1)

        padded = np.pad(labels, 1, constant_values=-1)
        around = np.stack([padded[1 + dx : 1 + dx + rx, 1 + dy : 1 + dy + ry]
                           for dx, dy, _ in steps], axis=2)  # fmt: skip
        at = (labels >= 0) & ((around != labels[..., None]) & (around >= 0)).any(axis=2)
        places = np.argwhere(at)
        moved = labels.copy()
        for start in range(0, len(places), 4096):
            x, y = places[start : start + 4096].T
            near = around[x, y]
            # Itself first: it stays where it is just as well there.
            candidates = np.concatenate([labels[x, y][:, None], near], axis=1)
            squared = ((values[x, y][:, None] - mean[candidates]) ** 2).sum(axis=2)
            strongest = np.where(candidates >= 0, power[candidates], 0).max(axis=1)
            spread = 1 + VARIATION**2 * np.maximum(strongest, 1) / rank
            agree = ((near[:, None] == candidates[..., None]) * weights).sum(axis=2)
            energy = squared / spread[:, None] - rank / 8 * agree
            energy[candidates < 0] = np.inf
            moved[x, y] = np.take_along_axis(candidates, energy.argmin(axis=1)[:, None], axis=1)[
                :, 0
            ]
        if np.array_equal(moved, labels):
            break
        labels = consecutive(moved)  # a region may be gone
    return consecutive(labels)
