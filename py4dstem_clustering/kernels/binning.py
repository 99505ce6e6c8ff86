"""Diffraction patterns in bins of detector pixels: which pixels count, and in which unit."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from .blas import matmul, row_dots, sum_counts, sum_present
from .blocks import Run, at_once, is_small_integer, read_rows, tiles
from .lost import find_even, may_be_lost

MAX_BINS = 1300
"""Largest number of bins. The covariance is a matrix of this size: more bins show finer detail, and
take more time and memory, with the square of their number."""

MAX_DARK_LEVEL = 200.0
"""Dark level, in standard deviations of a pixel, above which it is subtracted first. With a
larger value, products in float32 lose digits of what varies."""

SAFE_PEAKS = (1e-6, 1e6)
"""Largest values of a scan whose products float32 holds without a change of unit."""

MAX_PIXEL = 1e10
"""Largest value that a pixel may have, in units of the largest values of the scan. The square of a
larger one would drown all others."""


_COUNTS_AT_ONCE = 16
"""Patterns of whole numbers that are binned together, see `at_once`. More of them do not fit into
the cache of a core."""

_MAX_WIDTH = 200
"""Pixels along the side of a bin up to which float32 adds sums of 16 bits without error."""


class Binning:
    """Bins of those detector pixels of a scan that count."""

    factor: int
    """Pixels along the side of a bin."""
    hot: NDArray[np.bool_]
    """Hot pixels ``(Qx, Qy)``, which do not count."""
    zero: float
    """What is subtracted from all values of the scan."""
    unit: float
    """What all values are divided by."""
    finds_lost: bool
    """Whether a frame of one value is lost; otherwise it may hold nothing by chance."""
    pixels: NDArray[np.float32]
    """Number of detector pixels in each bin that holds any."""
    grid: NDArray[np.int64]
    """Row and column ``(bins, 2)`` of each such bin."""

    def __init__(self, data: Any, q_mask: NDArray[np.bool_] | None) -> None:
        qx, qy = self._detector = data.shape[2:]
        self.hot = find_hot_pixels(data)
        patterns = sample_patterns(data)
        self.zero, self.unit = zero_and_unit(patterns)
        self.finds_lost = may_be_lost(patterns)
        valid = ~self.hot
        if q_mask is not None:
            valid = valid & q_mask if (valid & q_mask).any() else q_mask
        self.factor = bin_factor((qx, qy), int(valid.sum()))
        self._along_u, self._along_v = (
            bin_matrix(n, max(1, round(n / self.factor))) for n in (qx, qy)
        )
        pixels = (self._along_u @ valid @ self._along_v.T).ravel()
        self._inside = np.flatnonzero(pixels)
        self.pixels = pixels[self._inside]
        self.grid = np.stack(np.divmod(self._inside, len(self._along_v)), axis=1)
        self._mask = None if valid.all() else valid.astype(np.float32)
        whole = qx % len(self._along_u) == 0
        self._width_u = qx // len(self._along_u) if whole else None

    def holds_counts(self, dtype: Any) -> bool:
        """Whether data of this type are whole numbers of 8 or 16 bits, which stay as they are."""
        return is_small_integer(np.dtype(dtype)) and (self.zero, self.unit) == (0, 1)

    def places(
        self, centre: tuple[float, float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Detector pixels along both axes from `centre` to the middle of each bin."""
        u, v = (m @ np.arange(m.shape[1]) / m.sum(axis=1) for m in (self._along_u, self._along_v))
        u, v = np.meshgrid(u - centre[0], v - centre[1], indexing="ij")
        return u.ravel()[self._inside], v.ravel()[self._inside]

    def bin_rows(
        self,
        rows: NDArray[Any],
        shifts: NDArray[np.int64] | None,
        run: Run,
        total: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Bin patterns ``(rows, Ry, Qx, Qy)``, each moved by its whole `shifts` first.

        Returns ``(rows, Ry, bins)``. The patterns, moved but not binned, are added to `total`
        ``(Qx Qy)``.
        """
        out, _, sums = self.bin_and_sum(rows, shifts, run, total is not None)
        if total is not None:
            for part in sums:
                total += part
        return out

    def bin_and_sum(
        self, rows: Any, shifts: NDArray[np.int64] | None, run: Run, with_sums: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
        """As `bin_rows`; also which frames ``(rows, Ry)`` are lost, and sums ``(n, Qx Qy)``.

        The sums are of groups of patterns, to be added in this order, for the same bits with any
        block size and any number of threads. `rows` may be `PackedRows`.
        """
        pieces = tiles(rows.shape[1])
        out = np.empty((*rows.shape[:2], len(self.pixels)), dtype=np.float32)
        lost = np.zeros(rows.shape[:2], dtype=bool)
        is_exact = self.holds_counts(rows.dtype)
        fast = is_exact and shifts is None and rows.dtype.kind == "u" and self._width_u is not None
        # Few patterns at a time stay in the cache.
        step = at_once(_COUNTS_AT_ONCE, self.hot.size) if fast else pieces[0].stop
        # Sums of whole numbers are the same in any order.
        n_sums = with_sums * (1 if is_exact else len(rows) * len(pieces))
        sums = np.zeros((n_sums, self.hot.size))
        adding = Lock()

        def bin_parts(i: int, piece: slice) -> Iterator[NDArray[Any]]:
            for first in range(piece.start, piece.stop, step):
                some = slice(first, min(first + step, piece.stop))
                raw = rows[i, some]
                if self.finds_lost:
                    lost[i, some] = find_even(raw[None])[0]
                x = raw.reshape(len(raw), -1)
                if not (fast and self._bin_counts(raw, out[i, some])):
                    x = self.patterns(raw, None if shifts is None else shifts[i, some])
                    self.bin(x, out[i, some])
                yield x

        def bin_piece(task: tuple[int, int]) -> None:
            i, k = task
            parts = bin_parts(i, pieces[k])
            if not with_sums:
                for _ in parts:
                    pass
            elif is_exact:
                part = sum_counts(parts, self.hot.size)
                with adding:
                    sums[0] += part
            else:
                next(parts).sum(axis=0, dtype=np.float64, out=sums[i * len(pieces) + k])

        run(bin_piece, np.ndindex(len(rows), len(pieces)))
        return out, lost, sums

    def _bin_counts(self, patterns: NDArray[Any], out: NDArray[np.float32]) -> bool:
        """As `bin`, of unsigned whole numbers, in a third of the time.

        All sums are exact, so the bits are the same. False, and nothing done, where numbers are too
        large for that.
        """
        width = self._width_u or 1
        if int(patterns.max(initial=0)) * width > np.iinfo(np.uint16).max or width > _MAX_WIDTH:
            return False
        x = patterns.astype(np.uint16, copy=False)
        if self._mask is not None:
            x = x * self._mask.astype(np.uint16)
        lines = x[:, ::width]
        if width > 1:
            lines = lines + x[:, 1::width]
            for k in range(2, width):
                lines += x[:, k::width]
        both = matmul(lines.reshape(-1, x.shape[2]).astype(np.float32), self._along_v.T)
        both = both.reshape(len(x), -1)
        np.take(both, self._inside, axis=1, out=out, mode="clip")
        return True

    def patterns(
        self, patterns: NDArray[Any], shifts: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """Copy patterns ``(n, Qx, Qy)`` to ``(n, Qx Qy)``, in the unit of bins, and move them."""
        x = in_unit(patterns.reshape(-1, self.hot.size), self.zero, self.unit)
        if shifts is not None:
            x[:, self.hot.ravel()] = 0  # or they would move with the pattern
            move_patterns(x.reshape(-1, *self._detector), shifts)
        return x

    def bin(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Bin `patterns` to `out` ``(n, bins)``."""
        x = x.reshape(-1, *self._detector)
        if self._mask is not None:
            x = x * self._mask
        both = matmul(self._along_u, matmul(x, self._along_v.T)).reshape(len(x), -1)
        np.take(both, self._inside, axis=1, out=out, mode="clip")

    def bin_of_pixels(self) -> NDArray[np.int64]:
        """Bin of each detector pixel ``(Qx, Qy)``; -1 where the bin holds no pixel that counts."""
        u, v = (matrix.argmax(axis=0) for matrix in (self._along_u, self._along_v))
        found = np.full(len(self._along_u) * len(self._along_v), -1)
        found[self._inside] = np.arange(len(self._inside))
        return found[u[:, None] * len(self._along_v) + v]


def move_patterns(patterns: NDArray[np.float32], shifts: NDArray[np.int64]) -> None:
    """Move patterns ``(n, Qx, Qy)`` by whole pixels ``(n, 2)``, in place; their border repeats."""
    for i in np.flatnonzero(shifts.any(axis=1)):
        u, v = (
            np.clip(np.arange(n) - shift, 0, n - 1)
            for n, shift in zip(patterns.shape[1:], shifts[i], strict=True)
        )
        patterns[i] = patterns[i][np.ix_(u, v)]


def bin_matrix(n: int, n_bins: int) -> NDArray[np.float32]:
    """Matrix ``(n_bins, n)`` that sums `n` pixels into bins of nearly equal width."""
    edges = np.round(np.linspace(0, n, n_bins + 1)).astype(int)
    matrix = np.zeros((n_bins, n), dtype=np.float32)
    for i in range(n_bins):
        matrix[i, edges[i] : edges[i + 1]] = 1
    return matrix


def bin_factor(shape: tuple[int, int], n_valid: int) -> int:
    """Smallest whole factor that leaves at most `MAX_BINS` bins of the valid pixels."""
    factor = 1
    while n_valid > MAX_BINS * factor**2 and factor < min(shape):
        factor += 1
    return factor


def find_hot_pixels(data: Any) -> NDArray[np.bool_]:
    """Pixels that are bright, alone among their neighbours, wherever the probe is; ``(Qx, Qy)``.

    They are found in the mean patterns of up to eight rows of the scan. The dimmest of these means
    must be three times as bright as the brightest of the eight neighbours is on average, which
    keeps Bragg disks out: most grains lack them. It must also be above 2 % of the brightest pixel.
    """
    rx, _, qx, qy = data.shape
    means = []
    for row in np.unique(np.linspace(0, rx - 1, min(rx, 8)).astype(int)):
        patterns = read_rows(data, row, row + 1)[0].reshape(-1, qx * qy)
        total, count = sum_present(patterns)
        means.append((total / np.maximum(count, 1)).reshape(qx, qy))
    # Lost rows, which are even, would hide all hot pixels.
    means = [mean for mean in means if np.ptp(mean) > 0] or means
    dark = np.quantile(means, 0.01)
    dimmest, mean = np.min(means, axis=0) - dark, np.mean(means, axis=0) - dark
    around = maximum_filter(mean, footprint=[[1, 1, 1], [1, 0, 1], [1, 1, 1]], mode="constant")
    return (dimmest > 3 * around) & (dimmest > 0.02 * dimmest.max())


def sample_patterns(data: Any) -> NDArray[np.float64]:
    """A few patterns ``(n, pixels)`` from all over the scan."""
    columns = np.unique(np.linspace(0, data.shape[1] - 1, 6).astype(int))
    rows = np.unique(np.linspace(0, data.shape[0] - 1, 3).astype(int))
    patterns = np.concatenate([read_rows(data, row, row + 1)[0, columns] for row in rows])
    return patterns.reshape(len(patterns), -1).astype(np.float64)


def zero_and_unit(patterns: NDArray[np.float64]) -> tuple[float, float]:
    """What to subtract from all values of a scan, and what to divide them by; most often 0 and 1.

    There is one pair for all patterns, because features compare their intensities. It comes from
    `sample_patterns`.
    """
    present = np.isfinite(patterns)
    low = np.min(patterns, axis=1, where=present, initial=np.inf)
    high = np.max(patterns, axis=1, where=present, initial=-np.inf)
    usable = high > low  # neither lost nor flat
    if not usable.any():
        return 0.0, 1.0
    patterns, present = patterns[usable], present[usable]
    count = present.sum(axis=0)
    known = count > 0

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.sum(axis=0, where=present)[known] / count[known]

    center = np.zeros(len(known))
    center[known] = mean(patterns)
    with np.errstate(invalid="ignore"):
        spread = float(np.median(mean(np.abs(patterns - center))))
    dark = float(np.quantile(center[known], 0.01))
    zero = dark if abs(dark) > MAX_DARK_LEVEL * spread > 0 else 0.0
    peak = max(high[usable].max() - zero, zero - low[usable].min())
    is_safe = SAFE_PEAKS[0] <= peak <= SAFE_PEAKS[1]
    return zero, 1.0 if is_safe else float(2.0 ** np.round(np.log2(peak)))


def in_unit(patterns: NDArray[Any], zero: float, unit: float) -> NDArray[np.float32]:
    """Copy patterns ``(n, pixels)`` to float32, less `zero` and in `unit`.

    A missing pixel (NaN or infinite) counts as the mean of its pattern.
    """
    unchanged = (zero, unit) == (0, 1)
    if unchanged and is_small_integer(patterns.dtype):
        return patterns.astype(np.float32)
    # float32 holds 7 digits; the types that hold more go through float64.
    narrow = unchanged and patterns.dtype.kind == "f" and patterns.itemsize <= 4
    x: NDArray[Any] = patterns.astype(np.float32 if narrow else np.float64)
    if not unchanged:
        x -= zero
        x /= unit
    # The sum of squares shows at once whether a pattern holds missing or too large values.
    for i in np.flatnonzero(~(row_dots(x, x) <= MAX_PIXEL**2)):
        pattern = x[i].astype(np.float64)
        present = np.isfinite(pattern)
        np.clip(pattern, -MAX_PIXEL, MAX_PIXEL, out=pattern)
        pattern[~present] = pattern[present].mean() if present.any() else 0
        x[i] = pattern
    return x.astype(np.float32, copy=False)
