"""Cosine similarity of each diffraction pattern with its eight neighbours.

``S(r, k) = <J(r), J(r + d_k)> / (|J(r)| |J(r + d_k)|)``. Each pattern is read and normalised once,
and each pair is computed once, since direction ``k + 4`` is the opposite of direction ``k``.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .blas import row_dots, times_vector
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

MAX_NOISE_SHARE = 0.7
"""Largest share of noise in the power of a pattern that is corrected. With a larger one, the power
that is left is a small difference of large numbers, and similarities scatter."""

_STRIP_COLUMNS = 16
"""Columns of a strip, see `at_once`. With more, calls are longer and threads wait less for each
other, but the patterns may not fit into the cache of a core."""

_COLUMNS_AT_ONCE = 8
"""Columns of a strip that are converted together, see `at_once`; their buffers grow with it."""

_EXACT = 2**24
"""Whole numbers below this are exact in float32."""

FLOAT32_TERMS = 2048
"""Products of pixels that are summed in float32, before the sum goes on in float64. More of them
are faster, and less exact."""


def with_neighbour(n: int, step: int) -> tuple[slice, slice]:
    """Slices of an axis of length `n`: positions with a neighbour at `step`, and the neighbours."""
    return slice(max(0, -step), n - max(0, step)), slice(max(0, step), n - max(0, -step))


def similarity_core(
    data: Any,
    *,
    q_mask: NDArray[np.bool_] | None,
    sigma: float,
    subtract_mean: bool,
    n_jobs: int | None,
    report: Report,
    noise: Noise | None = None,
    n_rows: int | None = None,
) -> NDArray[np.float32]:
    """Similarity ``(Rx, Ry, 8)``; NaN where the neighbour lies outside the scan.

    With `noise`, each norm is that of the pattern without noise: from ``|J|^2`` the noise power is
    subtracted, see `noise_weight`, but not more than `MAX_NOISE_SHARE` of ``|J|^2``.

    Rounding: sums of ``n = min(pixels, 2048)`` products are in float32, in an order that each BLAS
    chooses for its processor, and longer sums go on in float64. A similarity is therefore within
    about ``4 sqrt(n) 2^-24`` of its exact value, 1.1e-5 at most, and may differ by twice as much
    between processors. On one machine the bits are the same whatever `n_rows` and `n_jobs`: every
    product of two patterns has the same shape.
    """
    rx, ry, qx, qy = data.shape
    preparation = _Preparation((qx, qy), q_mask, sigma, subtract_mean)
    strips = [_Strip(columns, preparation.size) for columns in _strips(ry, qx * qy, n_jobs)]
    products = _Products(
        (rx, ry),
        preparation,
        noise,
        None if noise is None else noise_weight((qx, qy), q_mask, sigma).ravel(),
    )
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=1, n_rows=n_rows, packed=True):
            run(partial(products.add, start, rows), strips)
            report(len(rows))
    return _cosines(products.dots, products.power())


class _Preparation:
    """What is compared of each pattern: J, the pattern without its mean, blurred and masked."""

    size: int
    """Pixels of J."""

    def __init__(
        self,
        detector: tuple[int, int],
        q_mask: NDArray[np.bool_] | None,
        sigma: float,
        subtract_mean: bool,
    ) -> None:
        self._detector = detector
        self._subtract_mean = subtract_mean
        self._chunks = None if q_mask is None or q_mask.all() else Chunks(q_mask)
        self._blur = Blur(*(blur_matrix(n, sigma) for n in detector)) if sigma > 0 else None
        self.n_pixels = int(np.prod(detector))
        self.size = self.n_pixels if self._chunks is None else self._chunks.size

    def buffers(self, n: int) -> list[NDArray[np.float32]]:
        """Buffers for `write`, of `n` patterns at most."""
        sizes = self.n_pixels, self.n_pixels, self.size
        return [np.empty((n, size), dtype=np.float32) for size in sizes]

    def write(
        self,
        patterns: NDArray[Any],
        out: NDArray[np.float32],
        buffers: list[NDArray[np.float32]],
    ) -> None:
        """Write J of patterns ``(n, pixels)`` to `out` ``(n, size)``."""
        if self._blur is None and self._write_counts(patterns, out):
            return
        n = len(patterns)
        x, smooth, taken = (buffer[:n] for buffer in buffers)
        mean = nearly_comparable(patterns, self._subtract_mean, out=x)
        if self._blur is not None:
            x -= mean
            self._blur(x.reshape(n, *self._detector), out=smooth.reshape(n, *self._detector))
            x, mean = smooth, np.zeros_like(mean)
        # Without blur, the mean is subtracted only from the pixels that are compared.
        if self._chunks is not None:
            x = self._chunks.take(x, out=taken)
        np.subtract(x, mean, out=out)
        if self._chunks is not None:
            self._chunks.clear(out)

    def _write_counts(self, patterns: NDArray[Any], out: NDArray[np.float32]) -> bool:
        """As `write` without blur, of small whole numbers: less goes through memory.

        False, and nothing done, for other patterns, and for those that are so bright that their
        mean is not exact in float32.
        """
        if patterns.dtype.kind not in "bu" or patterns.dtype.itemsize > 2:
            return False
        if self._subtract_mean:
            wide = patterns.shape[1] > 2**16  # 32 bits are faster
            total = np.add.reduce(patterns, axis=1, dtype=np.uint64 if wide else np.uint32)
            if total.max(initial=0) >= _EXACT:
                return False
        if self._chunks is None:
            np.copyto(out, patterns)
        else:
            taken = np.empty((len(patterns), self.size), dtype=patterns.dtype)
            np.copyto(out, self._chunks.take(patterns, out=taken))
        if self._subtract_mean:
            out -= (total / self.n_pixels).astype(np.float32)[:, None]
        if self._chunks is not None:
            self._chunks.clear(out)
        return True


class _Strip:
    """A strip of columns, and J of two of its rows: the row at hand and the row above.

    The two rows lie side by side, column by column, with an empty column at either end. Each new
    row overwrites the one two rows above.
    """

    def __init__(self, columns: slice, size: int) -> None:
        self.columns = columns
        n = columns.stop - columns.start
        n_pieces, length = _pieces(size)
        near = np.zeros((n + 2, 2, n_pieces * length), dtype=np.float32)
        self.prepared = near[1:-1, :, :size]
        """J ``(column, row % 2, pixel)``, to be filled."""
        # Each column with its two neighbours, as pieces of matrices (6, length).
        step = near.strides[1]
        shape, strides = (n, n_pieces, 6, length), (2 * step, 4 * length, step, 4)
        self._windows = as_strided(near, shape, strides, writeable=False)
        self._columns = near[1:-1].reshape(n, 2, n_pieces, length, 1)

    def dots(self, row: int) -> NDArray[np.float64]:
        """Dot products of the patterns of a row ``(column, 3, 2)``, see `_cosines`."""
        this = row % 2
        pieces = times_vector(self._windows, self._columns[:, this])
        dots = pieces.sum(axis=1, dtype=np.float64).reshape(-1, 3, 2)
        return dots if this == 1 else dots[..., ::-1]


class _Products:
    """Dot products of all patterns with their neighbours, and the power of their noise."""

    def __init__(
        self,
        scan_shape: tuple[int, int],
        preparation: _Preparation,
        noise: Noise | None,
        weight: NDArray[np.float64] | None,
    ) -> None:
        self.dots = np.zeros((*scan_shape, 3, 2))
        self._preparation = preparation
        self._noise, self._weight = noise, weight
        self._noise_power = np.zeros(scan_shape if noise is not None else 0)
        self._at_once = min(at_once(_COLUMNS_AT_ONCE, preparation.n_pixels), scan_shape[1])

    def add(self, start: int, rows: Any, strip: _Strip) -> None:
        """Go down a strip, row by row, from row `start` of the scan on.

        So the rows that are compared stay in the cache of a core; J never goes to main memory.
        """
        first, stop = strip.columns.start, strip.columns.stop
        # New arrays for every few columns might cost more time than the work: malloc may give
        # their memory back to the system, which clears it before it is used again.
        buffers = self._preparation.buffers(self._at_once)
        inner = first + (first > 0)
        for row in range(start, start + len(rows)):
            for some in tiles(stop - first, self._at_once):
                columns = slice(first + some.start, first + some.stop)
                patterns = rows[row - start, columns].reshape(-1, self._preparation.n_pixels)
                self._preparation.write(patterns, strip.prepared[some, row % 2], buffers)
                if self._noise is not None and self._weight is not None:
                    power = _noise_power(patterns, self._weight, self._noise)
                    self._noise_power[row, columns] = power
            dots = strip.dots(row)
            # Strips share a column: its left neighbours are in one, its right ones in the other.
            self.dots[row, inner:stop, :2] = dots[inner - first :, :2]
            self.dots[row, first : stop - 1, 2] = dots[:-1, 2]

    def power(self) -> NDArray[np.float64]:
        """Power ``(Rx, Ry)`` of the patterns, without that of their noise if it is known."""
        power = self.dots[:, :, 1, 1].copy()
        if self._noise is not None:
            share = np.zeros(power.shape)
            np.divide(self._noise_power, power, out=share, where=power > 0)
            power *= 1 - np.clip(share, 0, MAX_NOISE_SHARE)
        return power


def _cosines(dots: NDArray[Any], power: NDArray[Any]) -> NDArray[Any]:
    """Similarity from `dots` ``(Rx, Ry, 3, 2)`` and `power`, the squared norms ``(Rx, Ry)``.

    The dot products are those with the column to the left, itself and the one to the right, in the
    row above and in the row itself.
    """
    rx, ry = power.shape
    out = np.full((rx, ry, 8), np.nan, dtype=np.float32)
    # A pattern of zeros has a similarity of 0 with every other.
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
    """Pixels of a mask, taken in chunks of neighbouring pixels: single pixels take longer.

    Chunks on the border of the mask hold pixels outside it, too. They come last, see `clear`.
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
    number = max(1, -(-pixels // FLOAT32_TERMS))
    return number, -(-pixels // (16 * number)) * 16


def _strips(n_columns: int, pixels: int, n_jobs: int | None) -> list[slice]:
    """Strips of columns, equally many for each thread; each shares a column with the next."""
    jobs = count_jobs(n_jobs)
    number = -(-n_columns // at_once(_STRIP_COLUMNS, pixels))
    number = max(1, min(-(-number // jobs) * jobs, n_columns // 4))
    edges = [n_columns * i // number for i in range(number + 1)]
    return [slice(a, min(b + 1, n_columns)) for a, b in pairwise(edges)]


def similarity_need(
    data: Any, q_mask: NDArray[np.bool_] | None, noise: bool, n_jobs: int | None
) -> MemoryNeed:
    """Memory that `similarity_core` takes."""
    rx, ry, qx, qy = data.shape
    pixels = qx * qy
    size = pixels if q_mask is None or q_mask.all() else Chunks(q_mask).size
    strips = _strips(ry, pixels, n_jobs)
    columns = sum(strip.stop - strip.start + 2 for strip in strips)
    near = 8 * columns * int(np.prod(_pieces(size)))
    # With noise, patterns in float64 and which of their pixels are present take more.
    tile = min(at_once(_COLUMNS_AT_ONCE, pixels), ry)
    fixed = near + 120 * rx * ry + scratch_need(data, n_jobs, tile, 24 if noise else 5)
    return MemoryNeed(fixed, 2 * row_need(data))


def noise_weight(
    detector: tuple[int, int], q_mask: NDArray[np.bool_] | None, sigma: float
) -> NDArray[np.float64]:
    """Weight ``(Qx, Qy)`` of the noise of each detector pixel in the power ``|J|^2``.

    Blur spreads the variance of a pixel over others, by the square of its kernel; the part that
    falls into `q_mask` counts. The noise power is then the dot product of the variances of the
    noise with this weight. The mean that is subtracted from a pattern of n pixels takes away 1/n of
    the noise power, which is neglected.
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
    else:  # a missing pixel counts as the mean, without noise
        values = np.where(present, values, 0)
        power[:] = row_dots(values, weight) - noise.offset * row_dots(present * 1.0, weight)
    power *= noise.gain
    peak = np.where(present, np.abs(values), 0).max(axis=1)
    low, high = SAFE_RANGE
    scaled = ((peak < low) | (peak > high)) & (peak > 0)
    return np.divide(power, peak**2, out=power, where=scaled)


def similarity_mean(similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the neighbours that exist, ``(Rx, Ry)``; NaN where there is none."""
    exists = ~np.isnan(similarity)
    total = np.where(exists, similarity, 0).sum(axis=2, dtype=np.float64)
    count = exists.sum(axis=2)
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)


def asymmetry(similarity: NDArray[Any]) -> float:
    """Largest difference between the two similarities of a pair, one from each side.

    Infinite if one of the two is missing, or if a neighbour outside the scan has a similarity.
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


def feature_similarity(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Similarity ``(Rx, Ry, 8)`` of the features of neighbours, without the noise in their lengths.

    The dot product divided by the lengths that the features have without noise; clipped to -1
    and 1.
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
