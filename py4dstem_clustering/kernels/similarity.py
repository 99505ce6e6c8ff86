"""Cosine similarity of each diffraction pattern with its eight neighbours.

``S(r, k) = <J(r), J(r + d_k)> / (|J(r)| |J(r + d_k)|)``. Each pattern is read and normalised once,
and each pair is computed once, since direction ``k + 4`` is the opposite of direction ``k``.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from .blas import products_of_few_rows, row_dots
from .blocks import (
    _SAFE_RANGE,
    Need,
    Report,
    as_comparable,
    iterate_blocks,
    row_need,
    scratch_need,
    tiles,
    workers,
)
from .blur import Blur, blur_matrix
from .noise import Noise

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (1, 1), (1, 0), (1, -1), (0, 1))
"""Offsets (dRx, dRy) of the eight neighbours, in the order of the last axis of a similarity."""

FORWARD = (4, 5, 6, 7)
"""One direction of each opposite pair; the other one is ``k - 4``."""

# Columns that are worked on together, few enough to stay in the cache of a core. A task takes more:
# threads that hand over small tasks wait for each other.
_TILE = 4

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
    n_rows: int | None = None,
) -> np.ndarray:
    """Similarity ``(Rx, Ry, 8)``, float32; NaN where the neighbour lies outside the scan.

    With `noise`, each norm is that of the pattern without noise: ``|J|^2`` less the noise power,
    see `noise_weight`, of which at most `MOST_NOISE` of ``|J|^2`` is taken off.
    """
    rx, ry, qx, qy = data.shape
    inside = None if q_mask is None or q_mask.all() else np.flatnonzero(q_mask)
    blur = Blur(blur_matrix(qx, sigma), blur_matrix(qy, sigma)) if sigma > 0 else None
    out = np.full((rx, ry, 8), np.nan, dtype=np.float32)
    # What a dot product is multiplied with to be a cosine: one over the norm of either side.
    scale = np.zeros((rx, ry))
    if noise is not None:
        of_noise = noise_weight((qx, qy), q_mask, sigma).ravel()

    def prepare(patterns: np.ndarray, target: np.ndarray, row: int, columns: slice) -> None:
        for tile in tiles(len(patterns), 2 * _TILE):
            here = slice(columns.start + tile.start, columns.start + tile.stop)
            prepare_tile(patterns[tile], target[tile], row, here)

    def prepare_tile(patterns: np.ndarray, target: np.ndarray, row: int, columns: slice) -> None:
        n = len(patterns)
        flat = patterns.reshape(n, -1)
        # The last step writes to the target, so that nothing is copied.
        if blur is None:
            x = as_comparable(flat, subtract_mean, out=target if inside is None else None)
        else:
            x = as_comparable(flat, subtract_mean).reshape(n, qx, qy)
            x = blur(x, out=target.reshape(x.shape) if inside is None else None).reshape(n, -1)
        if inside is not None:
            np.take(x, inside, axis=1, out=target, mode="clip")
        power = row_dots(target, target)
        if noise is not None:
            share = _noise_power(flat, of_noise, noise)
            np.divide(share, power, out=share, where=power > 0)
            power *= 1 - np.clip(share, 0, MOST_NOISE)
        power[power == 0] = np.inf  # an empty pattern is like nothing
        scale[row, columns] = 1 / np.sqrt(power)

    def compare(row: int, above: np.ndarray, this: np.ndarray, columns: slice) -> None:
        """Pairs within `columns` of a row, and of the row above it at `columns` with that row."""
        start, stop = columns.start, columns.stop
        last = min(ry, stop + 1)
        # Dot products of each column above with the columns to the left, below and to the right;
        # and of each column with the one to the right.
        dots = np.zeros((stop - start, 4))
        for first in range(start, stop, _TILE) if row > 0 else ():
            until, left = min(first + _TILE, stop), max(0, first - 1)
            products = products_of_few_rows(above[first:until], this[left : min(ry, until + 1)])
            for dy in (-1, 0, 1):
                skip = max(0, -dy - first)  # the first column has none to the left
                diagonal = products[skip:, first + skip + dy - left :].diagonal()
                at = first + skip - start
                dots[at : at + len(diagonal), 1 + dy] = diagonal
        for first in range(start, last - 1, _TILE):
            until = min(first + _TILE, last - 1)
            dots[first - start : until - start, 3] = row_dots(
                this[first:until], this[first + 1 : until + 1]
            )
        for direction in FORWARD:
            dx, dy = DIRECTIONS[direction]
            here = slice(max(start, -dy), min(stop, ry - max(0, dy)))
            if here.start >= here.stop or row < dx:
                continue
            there = slice(here.start + dy, here.stop + dy)
            cosine = dots[here.start - start : here.stop - start, 1 + dy if dx else 3]
            cosine = cosine * scale[row - dx, here] * scale[row, there]
            np.clip(cosine, -1, 1, out=cosine)
            out[row - dx, here, direction] = cosine
            out[row, there, direction - 4] = cosine

    # unit[0] is the last row of the block before, unit[1:] the rows of this block: J, not divided
    # by its norm, which is left to the dot products.
    unit = np.empty((1, ry, qx * qy if inside is None else inside.size), dtype=np.float32)
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=3, n_rows=n_rows):
            last = unit[-1].copy()
            if len(unit) != len(rows) + 1:
                unit = np.empty((len(rows) + 1, *last.shape), dtype=np.float32)
            unit[0] = last
            run(
                lambda task, rows=rows, unit=unit, start=start: prepare(
                    rows[task], unit[task[0] + 1, task[1]], start + task[0], task[1]
                ),
                product(range(len(rows)), tiles(ry)),
            )

            def compare_tile(
                task: tuple[int, slice], unit: np.ndarray = unit, start: int = start
            ) -> None:
                i, columns = task
                compare(start + i, unit[i], unit[i + 1], columns)

            run(compare_tile, product(range(len(rows)), tiles(ry)))
            report(len(rows))
    return out


def similarity_need(data: Any, q_mask: np.ndarray | None, noise: bool, n_jobs: int | None) -> Need:
    """Memory that `similarity_core` takes."""
    pixels = int(np.prod(data.shape[2:])) if q_mask is None else int(q_mask.sum())
    unit = 4 * data.shape[1] * pixels
    # With noise, patterns in float64 and what is present of them come on top.
    fixed = 3 * unit + scratch_need(data, n_jobs, _TILE, 24 if noise else 4)
    return Need(fixed, unit + 2 * row_need(data))


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
