"""Cosine similarity of each diffraction pattern with its eight neighbours.

``S(r, k) = <J(r), J(r + d_k)> / (|J(r)| |J(r + d_k)|)``. Each pattern is read and normalised once,
and each pair is computed once, since direction ``k + 4`` is the opposite of direction ``k``.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from .blas import row_dots
from .blocks import _SAFE_RANGE, Report, as_comparable, iterate_blocks, tiles, workers
from .blur import blur, blur_matrix
from .noise import Noise

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (1, 1), (1, 0), (1, -1), (0, 1))
"""Offsets (dRx, dRy) of the eight neighbours, in the order of the last axis of a similarity."""

FORWARD = (4, 5, 6, 7)
"""One direction of each opposite pair; the other one is ``k - 4``."""

MOST_NOISE = 0.7
"""Largest share of noise in the power of a pattern that is corrected: beyond it, the rest is a
small difference of large numbers."""


def with_neighbour(n: int, step: int) -> tuple[slice, slice]:
    """Slices of an axis of length `n`: the positions that have a neighbour at `step`, and these."""
    return slice(max(0, -step), n - max(0, step)), slice(max(0, step), n - max(0, -step))


def similarity_core(
    data: Any,
    *,
    q_mask: np.ndarray | None,
    sigma: float,
    subtract_mean: bool,
    n_jobs: int | None,
    report: Report,
    noise: Noise | None = None,
) -> np.ndarray:
    """Similarity ``(Rx, Ry, 8)``, float32; NaN where the neighbour lies outside the scan.

    With `noise`, each norm is that of the pattern without noise: ``|J|^2`` less the noise power,
    see `noise_weight`, of which at most `MOST_NOISE` of ``|J|^2`` is taken off.
    """
    rx, ry, qx, qy = data.shape
    inside = None if q_mask is None or q_mask.all() else np.flatnonzero(q_mask)
    matrices = (blur_matrix(qx, sigma), blur_matrix(qy, sigma)) if sigma > 0 else None
    out = np.full((rx, ry, 8), np.nan, dtype=np.float32)
    if noise is not None:
        of_noise = noise_weight((qx, qy), q_mask, sigma).ravel()
        gains = np.ones((rx, ry))  # what the cosines of a position are multiplied with

    def normalise(patterns: np.ndarray, unit: np.ndarray, row: int, columns: slice) -> None:
        x = as_comparable(patterns.reshape(len(patterns), -1), subtract_mean)
        if matrices is not None:
            x = blur(x.reshape(-1, qx, qy), *matrices).reshape(len(x), -1)
        if inside is not None:
            x = np.take(x, inside, axis=1)
        power = row_dots(x, x)
        if noise is not None:
            share = _noise_power(patterns.reshape(len(patterns), -1), of_noise, noise)
            np.divide(share, power, out=share, where=power > 0)
            gains[row, columns] = 1 / np.sqrt(1 - np.clip(share, 0, MOST_NOISE))
        norm = np.sqrt(power).astype(np.float32)[:, None]
        norm[norm == 0] = np.inf  # an empty pattern stays zero
        np.divide(x, norm, out=unit)

    def compare(row: int, first: np.ndarray, second: np.ndarray, direction: int) -> None:
        dx, dy = DIRECTIONS[direction]
        here, there = with_neighbour(ry, dy)
        cosine = row_dots(first[here], second[there])
        if noise is not None:
            cosine *= gains[row, here] * gains[row + dx, there]
        np.clip(cosine, -1, 1, out=cosine)
        out[row, here, direction] = cosine
        out[row + dx, there, direction - 4] = cosine

    # unit[0] is the last row of the block before, unit[1:] the rows of this block.
    unit = np.empty((1, ry, qx * qy if inside is None else inside.size), dtype=np.float32)
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=3):
            last = unit[-1].copy()
            if len(unit) != len(rows) + 1:
                unit = np.empty((len(rows) + 1, *last.shape), dtype=np.float32)
            unit[0] = last
            run(
                lambda task, rows=rows, unit=unit, start=start: normalise(
                    rows[task], unit[task[0] + 1, task[1]], start + task[0], task[1]
                ),
                product(range(len(rows)), tiles(ry)),
            )

            def compare_row(i: int, unit: np.ndarray = unit, start: int = start) -> None:
                row = start + i
                for direction in FORWARD:
                    if DIRECTIONS[direction][0] == 0:
                        compare(row, unit[i + 1], unit[i + 1], direction)
                    elif row > 0:
                        compare(row - 1, unit[i], unit[i + 1], direction)

            run(compare_row, range(len(rows)))
            report(len(rows))
    return out


def noise_weight(detector: tuple[int, int], q_mask: np.ndarray | None, sigma: float) -> np.ndarray:
    """Weight ``(Qx, Qy)`` of the noise of each detector pixel in the power ``|J|^2``.

    Blur spreads the noise of a pixel over others, by the square of the kernel; what falls into
    `q_mask` counts. The noise power is then a dot product: the variances of the noise times this.
    The mean that is subtracted takes away one part in as many as there are pixels; left out here.
    """
    mask = np.ones(detector) if q_mask is None else q_mask.astype(np.float64)
    if sigma > 0:
        along_u, along_v = (blur_matrix(n, sigma).astype(np.float64) ** 2 for n in detector)
        mask = along_u.T @ mask @ along_v
    return mask


def _noise_power(patterns: np.ndarray, weight: np.ndarray, noise: Noise) -> np.ndarray:
    """Noise power of patterns ``(n, pixels)`` as `as_comparable` scales them, float64."""
    values = patterns.astype(np.float64)
    present = np.isfinite(values)
    power = np.empty(len(values))
    if present.all():
        power[:] = row_dots(values, weight) - noise.offset * weight.sum()
    else:  # a missing pixel counts as a mean, which has no noise
        values = np.where(present, values, 0)
        power[:] = row_dots(values, weight) - noise.offset * row_dots(present * 1.0, weight)
    power *= noise.gain
    peak = np.where(present, np.abs(values), 0).max(axis=1)
    low, high = _SAFE_RANGE
    scaled = ((peak < low) | (peak > high)) & (peak > 0)
    return np.divide(power, peak**2, out=power, where=scaled)


def similarity_mean(similarity: np.ndarray) -> np.ndarray:
    """Mean over the neighbours that exist, ``(Rx, Ry)`` float32; NaN where there is none."""
    exists = ~np.isnan(similarity)
    total = np.where(exists, similarity, 0).sum(axis=2, dtype=np.float64)
    count = exists.sum(axis=2)
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)


def asymmetry(similarity: np.ndarray) -> float:
    """Largest difference between a similarity and the one seen from the neighbour's side.

    Infinite where one side is missing and the other is not, or where a neighbour outside the scan
    has a similarity.
    """
    rx, ry, _ = similarity.shape
    worst = 0.0
    for k in FORWARD:
        dx, dy = DIRECTIONS[k]
        here_x, there_x = with_neighbour(rx, dx)
        here_y, there_y = with_neighbour(ry, dy)
        outside = np.ones((2, rx, ry), dtype=bool)
        outside[0, here_x, here_y] = outside[1, there_x, there_y] = False
        forward, backward = similarity[..., k], similarity[..., k - 4]
        if not (np.isnan(forward[outside[0]]).all() and np.isnan(backward[outside[1]]).all()):
            return np.inf
        a, b = forward[here_x, here_y], backward[there_x, there_y]
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return np.inf
        if a.size:
            difference = np.abs(a.astype(np.float64) - b)
            worst = max(worst, float(np.nanmax(np.nan_to_num(difference))))
    return worst
