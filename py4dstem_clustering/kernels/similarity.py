"""Cosine similarity of each diffraction pattern with its eight neighbours.

``S(r, k) = <J(r), J(r + d_k)> / (|J(r)| |J(r + d_k)|)``. Each pattern is read and normalised once,
and each pair is computed once, since direction ``k + 4`` is the opposite of direction ``k``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .blas import row_dots
from .blocks import (
    SAFE_RANGE,
    MemoryNeed,
    Report,
    at_once,
    count_jobs,
    iterate_blocks,
    nearly_comparable,
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

# Columns of a strip, and those of them that are converted together: few enough for the caches, and
# enough for few and long calls, between which threads wait for each other. See `at_once`.
_STRIP, _TILE = 16, 8

# Pixels summed in float32, before the sum goes on in float64.
_PIECE = 2048

MOST_NOISE = 0.7
"""Largest share of noise in the power of a pattern that is corrected: beyond it, the rest is a
small difference of large numbers."""


def with_neighbour(n: int, step: int) -> tuple[slice, slice]:
    """Slices of an axis of length `n`: the positions that have a neighbour at `step`, and these."""
    return slice(max(0, -step), n - max(0, step)), slice(max(0, step), n - max(0, -step))


def similarity_core(
    data: Any,
    *,
    q_mask: NDArray[Any] | None,
    sigma: float,
    subtract_mean: bool,
    n_jobs: int | None,
    report: Report,
    noise: Noise | None = None,
    n_rows: int | None = None,
) -> NDArray[Any]:
    """Similarity ``(Rx, Ry, 8)``, float32; NaN where the neighbour lies outside the scan.

    With `noise`, each norm is that of the pattern without noise: ``|J|^2`` less the noise power,
    see `noise_weight`, of which at most `MOST_NOISE` of ``|J|^2`` is taken off.

    Rounding: sums of ``n = min(pixels, 2048)`` products are in float32, in an order that each BLAS
    chooses for its processor, and longer ones go on in float64. A similarity is therefore within
    about ``4 sqrt(n) 2^-24`` of its exact value, 1.1e-5 at most, and may differ by twice as much
    between processors. On one machine the bits are the same whatever `n_rows` and `n_jobs`: every
    product of two patterns has the same shape.
    """
    rx, ry, qx, qy = data.shape
    pixels = qx * qy
    chunks = None if q_mask is None or q_mask.all() else Chunks(q_mask)
    blur = Blur(blur_matrix(qx, sigma), blur_matrix(qy, sigma)) if sigma > 0 else None
    size = pixels if chunks is None else chunks.size
    n_pieces, length = _pieces(size)
    tile = min(at_once(_TILE, pixels), ry)
    dots = np.zeros((rx, ry, 3, 2))
    if noise is not None:
        of_noise = noise_weight((qx, qy), q_mask, sigma).ravel()
        noise_power = np.zeros((rx, ry))

    def prepare(patterns: NDArray[Any], target: NDArray[Any], scratch: list[NDArray[Any]]) -> None:
        """Write J of patterns ``(n, pixels)`` to `target`."""
        n = len(patterns)
        x, smooth, taken = (buffer[:n] for buffer in scratch)
        mean = nearly_comparable(patterns, subtract_mean, out=x)
        if blur is not None:
            x -= mean
            blur(x.reshape(n, qx, qy), out=smooth.reshape(n, qx, qy))
            x, mean = smooth, np.float32(0)
        # Without blur, the mean is taken off those pixels alone that are compared.
        if chunks is not None:
            x = chunks.take(x, out=taken)
        np.subtract(x, mean, out=target)
        if chunks is not None:
            chunks.clear(target)

    def walk(strip: slice, near: NDArray[Any], start: int, rows: NDArray[Any]) -> None:
        """Dot products of a strip of columns, from one row to the next.

        So the rows that are compared are in the cache of a core, and J never in main memory.
        """
        n = strip.stop - strip.start
        used = near[1:-1, :, :size]
        # Every column with its two neighbours, as pieces of matrices (6, length).
        step = near.strides[1]
        windows = as_strided(
            near, (n, n_pieces, 6, length), (2 * step, 4 * length, step, 4), writeable=False
        )
        pieces = near[1:-1].reshape(n, 2, n_pieces, length, 1)
        # Arrays made anew for every tile may cost more time than the work: malloc may hand their
        # memory back, and the kernel clears it again.
        scratch = [np.empty((tile, m), dtype=np.float32) for m in (pixels, pixels, size)]
        first = strip.start + (strip.start > 0)
        for i, row in enumerate(range(start, start + len(rows))):
            this = row % 2
            for some in tiles(n, tile):
                here = slice(strip.start + some.start, strip.start + some.stop)
                patterns = rows[i, here].reshape(-1, pixels)
                prepare(patterns, used[some, this], scratch)
                if noise is not None:
                    noise_power[row, here] = _noise_power(patterns, of_noise, noise)
            products = np.matmul(windows, pieces[:, this]).sum(axis=1, dtype=np.float64)
            products = products.reshape(n, 3, 2)
            if this == 0:
                products = products[..., ::-1]
            # Strips share a column: its left neighbours are in one, its right ones in the other.
            dots[row, first : strip.stop, :2] = products[first - strip.start :, :2]
            dots[row, strip.start : strip.stop - 1, 2] = products[:-1, 2]

    strips = _strips(ry, pixels, n_jobs)
    # J of two rows of each strip, this one and the one above in turn, column by column; an empty
    # column at either side.
    nears = [
        np.zeros((strip.stop - strip.start + 2, 2, n_pieces * length), np.float32)
        for strip in strips
    ]
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=1, n_rows=n_rows):
            run(
                lambda k, start=start, rows=rows: walk(strips[k], nears[k], start, rows),
                range(len(strips)),
            )
            report(len(rows))
    power = dots[:, :, 1, 1].copy()
    if noise is not None:
        share = np.divide(noise_power, power, out=np.zeros((rx, ry)), where=power > 0)
        power *= 1 - np.clip(share, 0, MOST_NOISE)
    return _cosines(dots, power)


def _cosines(dots: NDArray[Any], power: NDArray[Any]) -> NDArray[Any]:
    """Similarity of dot products ``(Rx, Ry, 3, 2)`` and norms, squared, ``(Rx, Ry)``.

    The dot products are those with the column to the left, itself and the one to the right, in the
    row above and in the row itself.
    """
    rx, ry = power.shape
    out = np.full((rx, ry, 8), np.nan, dtype=np.float32)
    # An empty pattern is like nothing.
    scale = np.divide(1, np.sqrt(power), out=np.zeros((rx, ry)), where=power > 0)
    for direction in FORWARD:
        dx, dy = DIRECTIONS[direction]
        (here_x, there_x), (here_y, there_y) = with_neighbour(rx, dx), with_neighbour(ry, dy)
        cosine = dots[there_x, there_y, 1 - dy, 1 - dx] * scale[here_x, here_y]
        cosine *= scale[there_x, there_y]
        np.clip(cosine, -1, 1, out=cosine)
        out[here_x, here_y, direction] = out[there_x, there_y, direction - 4] = cosine
    return out


class Chunks:
    """Pixels of a mask, taken in chunks of neighbours: single ones are slow to gather.

    The chunks on the border of the mask come last, with pixels outside it: see `clear`.
    """

    def __init__(self, q_mask: NDArray[Any]) -> None:
        for width in (8, 4, 2, 1):
            if q_mask.size % width:
                continue
            inside = q_mask.reshape(-1, width)
            full, touched = inside.all(axis=1), inside.any(axis=1)
            self.size = width * int(touched.sum())
            if self.size <= 1.25 * q_mask.sum():
                break
        partial = np.flatnonzero(touched & ~full)
        self._width = width
        self._chosen = np.concatenate([np.flatnonzero(full), partial])
        self._border = inside[partial].ravel().astype(np.float32)

    def take(self, x: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
        """Write pixels ``(n, size)`` of patterns ``(n, pixels)`` to `out`."""
        x, target = (a.reshape(len(a), -1, self._width) for a in (x, out))
        np.take(x, self._chosen, axis=1, out=target, mode="clip")
        return out

    def clear(self, x: NDArray[Any]) -> None:
        """Set to zero what lies outside the mask."""
        x[:, self.size - self._border.size :] *= self._border


def _pieces(pixels: int) -> tuple[int, int]:
    """Number and length of the pieces of a pattern that are summed in float32."""
    number = max(1, -(-pixels // _PIECE))
    return number, -(-pixels // (16 * number)) * 16


def _strips(n_columns: int, pixels: int, n_jobs: int | None) -> list[slice]:
    """Strips of columns, as many for each thread; each shares a column with the next."""
    jobs = count_jobs(n_jobs)
    number = -(-n_columns // at_once(_STRIP, pixels))
    number = max(1, min(-(-number // jobs) * jobs, n_columns // 4))
    edges = [n_columns * i // number for i in range(number + 1)]
    return [slice(a, min(b + 1, n_columns)) for a, b in pairwise(edges)]


def similarity_need(
    data: Any, q_mask: NDArray[Any] | None, noise: bool, n_jobs: int | None
) -> MemoryNeed:
    """Memory that `similarity_core` takes."""
    rx, ry, qx, qy = data.shape
    pixels = qx * qy
    size = pixels if q_mask is None or q_mask.all() else Chunks(q_mask).size
    strips = _strips(ry, pixels, n_jobs)
    columns = sum(strip.stop - strip.start + 2 for strip in strips)
    near = 8 * columns * int(np.prod(_pieces(size)))
    # With noise, patterns in float64 and what is present of them come on top.
    tile = min(at_once(_TILE, pixels), ry)
    fixed = near + 120 * rx * ry + scratch_need(data, n_jobs, tile, 24 if noise else 5)
    return MemoryNeed(fixed, 2 * row_need(data))


def noise_weight(
    detector: tuple[int, int], q_mask: NDArray[Any] | None, sigma: float
) -> NDArray[Any]:
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


def _noise_power(patterns: NDArray[Any], weight: NDArray[Any], noise: Noise) -> NDArray[Any]:
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
    low, high = SAFE_RANGE
    scaled = ((peak < low) | (peak > high)) & (peak > 0)
    return np.divide(power, peak**2, out=power, where=scaled)


def similarity_mean(similarity: NDArray[Any]) -> NDArray[Any]:
    """Mean over the neighbours that exist, ``(Rx, Ry)`` float32; NaN where there is none."""
    exists = ~np.isnan(similarity)
    total = np.where(exists, similarity, 0).sum(axis=2, dtype=np.float64)
    count = exists.sum(axis=2)
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)


def asymmetry(similarity: NDArray[Any]) -> float:
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


def feature_similarity(values: NDArray[Any]) -> NDArray[Any]:
    """Similarity of the features of neighbours ``(Rx, Ry, 8)``, float32, with noise taken off.

    The cosine over the lengths that the features have without noise; clipped to -1 and 1.
    """
    rx, ry, rank = values.shape
    length = np.sqrt(np.maximum((values.astype(np.float64) ** 2).sum(axis=2) - rank, rank / 4))
    out = np.full((rx, ry, 8), np.nan, dtype=np.float32)
    for k in FORWARD:
        (here_x, there_x), (here_y, there_y) = (
            with_neighbour(n, step) for n, step in zip((rx, ry), DIRECTIONS[k], strict=True)
        )
        here, there = values[here_x, here_y], values[there_x, there_y]
        cosine = np.einsum("xyk,xyk->xy", here, there, dtype=np.float64)
        cosine /= length[here_x, here_y] * length[there_x, there_y]
        out[here_x, here_y, k] = out[there_x, there_y, k - 4] = np.clip(cosine, -1, 1)
    return out
