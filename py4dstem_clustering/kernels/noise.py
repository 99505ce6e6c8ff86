"""Gain and offset of the detector, from the noise of a scan.

A recorded value is ``offset + gain * electrons``, and the number of electrons is Poisson
distributed, so noise has the variance ``gain (mean - offset)``. This is measured by second
differences of three positions in a row or column, ``(a - 2 b + c)^2 / 6``, in which an even change
from position to position cancels. With gamma_k, half the mean squared difference of positions k
apart, this is ``(4 gamma_1 - gamma_2) / 3``. Borders of grains and speckle do not cancel, so only
the part of the scan counts where the second differences are smallest.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blas import sum_present
from .blocks import (
    MemoryNeed,
    Report,
    Run,
    is_small_integer,
    read_rows,
    read_window,
    row_need,
    scratch_need,
    tiles,
    workers,
)

_MIN_TRIPLES = 8192
"""Smallest number of triples of positions, if the scan has so many. With these the gain is within
1 %; with more, more of a large scan is read twice. In a wide scan, a window holds only a part of
each of its rows."""

_MIN_WINDOWS = 16
"""Smallest number of windows of rows, if the scan has so many. More windows take longer to read,
and represent the scan better."""

_QUIET_SHARE = 0.2
"""Share of the triples that counts as quiet. Grains must fill about this share of the scan:
otherwise speckle, which also differs from position to position, counts as noise."""

_TRIPLES_PER_TASK = 16
"""Triples that are compared together; more of them take more memory for each thread."""

_PIXELS_PER_TASK = 4096
"""Detector pixels whose moments are one task; more of them take more memory for each thread."""


class Noise(NamedTuple):
    """How the detector records: ``value = offset + gain * electrons``."""

    gain: float
    """Counts per electron."""
    offset: float
    """Counts of a pixel without electrons."""


def noise_windows(scan: tuple[int, int]) -> list[tuple[int, int]]:
    """Windows of rows ``(start, stop)`` to measure in, spread over the scan.

    A window has three rows, or a single one in a scan of fewer than three rows.

    Raises
    ------
    ValueError
        If the scan has fewer than three positions along both axes.
    """
    rx, ry = scan
    if max(rx, ry) < 3:
        raise ValueError(
            f"gain=None cannot be measured in a scan of {rx} x {ry}: telling noise from structure "
            "takes three positions in a row; give the gain, gain=1 for counted electrons"
        )
    height = 3 if rx >= 3 else 1
    triples = height * max(ry - 2, 0) + (ry if height == 3 else 0)
    n = min(rx // height, max(_MIN_WINDOWS, -(-_MIN_TRIPLES // triples)))
    starts = np.linspace(0, rx - height, n).astype(int)
    return [(int(start), int(start) + height) for start in starts]


def _window_columns(n_columns: int, height: int, n: int) -> list[tuple[int, int]]:
    """Columns ``(start, stop)`` of each of `n` windows.

    All columns, or in a wide scan as many as `_MIN_TRIPLES` needs. These lie at another place in
    each window, so that no part of the scan is left out.
    """
    triples = -(-_MIN_TRIPLES // n)
    # A window has `height` (`width` - 2) triples along its rows, and `width` across three rows.
    width = -(-(triples + 2 * height) // (height + (height == 3)))
    if 1.5 * width >= n_columns:
        return [(0, n_columns)] * n
    golden = (np.sqrt(5) - 1) / 2
    starts = ((np.arange(n) * golden % 1) * (n_columns - width + 1)).astype(int)
    return [(int(start), int(start) + width) for start in starts]


def noise_core(
    data: Any, *, n_jobs: int | None, report: Report, offset: float | None = None
) -> Noise:
    """Gain and offset of a scan; where `offset` is given, only the gain is measured.

    Raises
    ------
    ValueError
        If the scan is too small, or holds no noise that grows with the signal.
    """
    mean, variance = noise_moments(data, n_jobs=n_jobs, report=report)
    return fit_noise(mean, variance, offset)


def noise_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `noise_core` takes: three rows of the scan, the next three, and float64."""
    return MemoryNeed(6 * row_need(data) + scratch_need(data, n_jobs, _TRIPLES_PER_TASK, 20))


def noise_moments(
    data: Any, *, n_jobs: int | None, report: Report
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the noise of each detector pixel where the scan is quiet.

    The detector is cut in two halves like a chessboard. Triples are chosen where one half is quiet,
    and the other half is measured there: in the half that the choice is made with, the noise is
    small by chance. NaN where a pixel is always missing.
    """
    windows = noise_windows(data.shape[:2])
    n_pixels = int(np.prod(data.shape[2:]))
    u, v = np.indices(data.shape[2:])
    half = ((u + v) % 2).ravel().astype(bool)
    dark, brightness = _brightness(data, windows, n_pixels)
    if not brightness.any():
        raise _no_noise("every pattern is flat")
    # Bright and dim pixels have the same weight, or the direct beam would drown all others; pixels
    # that are nearly dark have less.
    weight = 1 / (brightness + brightness.mean())
    weights = np.stack([weight * ~half, weight * half], axis=1)

    columns = _window_columns(data.shape[1], windows[0][1] - windows[0][0], len(windows))

    height, width = (np.ptp(of_first[0]) for of_first in (windows, columns))
    buffer = np.empty((height, width, *data.shape[2:]), dtype=data.dtype)

    with workers(n_jobs) as run:

        def read(k: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
            rows = read_window(data, windows[k], columns[k], buffer=buffer, run=run)
            return rows.reshape(-1, n_pixels), _triples(*rows.shape[:2])

        ratios = []
        for k, (start, stop) in enumerate(windows):
            ratios.append(_noise_ratios(*read(k), dark, weights, run))
            report(stop - start)
        all_ratios = np.concatenate(ratios)
        has_signal = np.isfinite(all_ratios).all(axis=1)
        if not has_signal.any():
            raise _no_noise("no three neighbouring positions hold a signal")
        limits = np.quantile(all_ratios[has_signal], _QUIET_SHARE, axis=0)
        total = np.zeros((3, n_pixels))  # sums of values and of squares, number of triples
        for k, ((start, stop), ratio) in enumerate(zip(windows, ratios, strict=True)):
            quiet = (ratio <= limits) & np.isfinite(ratio).all(axis=1, keepdims=True)
            _add_quiet(*read(k), quiet, half, total, run)
            report(stop - start)

    mean, square = total[:2] / np.where(total[2] > 0, total[2], np.nan) / [[3], [6]]
    return mean.reshape(data.shape[2:]), square.reshape(data.shape[2:])


def _noise_ratios(
    patterns: NDArray[Any],
    triples: NDArray[np.int64],
    dark: float,
    weights: NDArray[np.float64],
    run: Run,
) -> NDArray[np.float64]:
    """Second differences relative to the signal, of each triple and half of the detector."""
    ratios = np.full((len(triples), 2), np.inf)

    # Whole numbers of 16 bits are exact in float32 until they are squared.
    exact = np.float32 if is_small_integer(patterns.dtype) else np.float64
    # Sums of four small counts fit into 16 bits, which are faster.
    if patterns.dtype.kind == "u" and patterns.itemsize <= 2 and patterns.max() < 2**13:
        patterns = patterns.astype(np.int16)
    narrow = patterns.dtype == np.int16 and -(2**13) < patterns.min() <= patterns.max() < 2**13
    sums = np.int16 if narrow else exact
    halves = np.ascontiguousarray(weights.T, dtype=exact)

    def compare(part: slice) -> None:
        # One triple after the other, in arrays that stay in the cache.
        signal, square = np.empty((2, patterns.shape[1]), dtype=exact)
        total, curve = np.empty((2, patterns.shape[1]), dtype=sums)
        for i in range(part.start, part.stop):
            a, b, c = (patterns[k] for k in triples[i])
            with np.errstate(invalid="ignore"):
                np.add(a, c, out=total, dtype=sums)
                np.multiply(b, 2, out=curve, dtype=sums)
                np.subtract(total, curve, out=square)
                np.multiply(square, square, out=square)
                np.add(total, b, out=total, dtype=sums)
                np.subtract(total, 3 * dark, out=signal, dtype=exact)
                np.maximum(signal, 0, out=signal)
            if patterns.dtype.kind == "f" and not (present := np.isfinite(square)).all():
                signal[~present] = square[~present] = 0
            weighed = halves @ signal
            np.divide(halves @ square, 2 * weighed, out=ratios[i], where=weighed > 0)

    run(compare, tiles(len(triples), _TRIPLES_PER_TASK))
    return ratios


def _add_quiet(
    patterns: NDArray[Any],
    triples: NDArray[np.int64],
    quiet: NDArray[np.bool_],
    half: NDArray[np.bool_],
    total: NDArray[np.float64],
    run: Run,
) -> None:
    """Add to `total` the sums of each half of the detector where the other half is quiet.

    A task owns its pixels, and adds up in order: the same bits for any number of threads.
    """
    exact = np.float32 if is_small_integer(patterns.dtype) else np.float64

    def add(task: tuple[bool, slice]) -> None:
        odd, part = task
        pixels = half[part] == odd
        chosen = triples[quiet[:, 0 if odd else 1]]
        for some in tiles(len(chosen), _TRIPLES_PER_TASK):
            three, square, present = _second_differences(patterns[:, part], chosen[some], exact)
            there = np.full(three.shape, True) if present is None else present
            # All pixels of a part, then those of one half: to pick pixels takes longer.
            found = [values.sum(axis=0, dtype=np.float64) for values in (three, square, there)]
            total[:, part] += np.where(pixels, found, 0)

    run(add, product((False, True), tiles(patterns.shape[1], _PIXELS_PER_TASK)))


def _brightness(
    data: Any, windows: list[tuple[int, int]], n_pixels: int
) -> tuple[float, NDArray[Any]]:
    """Level of the dark pixels, and how far the mean of each pixel lies above it; both rough."""
    means = []
    for start, _ in windows[:: -(-len(windows) // 8)]:
        row = read_rows(data, start, start + 1).reshape(-1, n_pixels)
        total, count = sum_present(row)
        means.append(total / np.maximum(count, 1))
    mean = np.mean(means, axis=0)
    dark = float(np.quantile(mean, 0.01))  # a few pixels may be dead
    return dark, np.maximum(mean - dark, 0)


def _triples(n_rows: int, n_columns: int) -> NDArray[Any]:
    """Positions ``(n, 3)`` of three in a row or in a column, counted row by row."""
    index = np.arange(n_rows * n_columns).reshape(n_rows, n_columns)
    along = [index[:, :-2], index[:, 1:-1], index[:, 2:]] if n_columns >= 3 else []
    across = [index[:-2], index[1:-1], index[2:]] if n_rows >= 3 else []
    threes = [np.stack([x.ravel() for x in three], axis=1) for three in (along, across) if three]
    return np.concatenate(threes)


def _second_differences(
    patterns: NDArray[Any], triples: NDArray[Any], dtype: type[np.floating[Any]]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """``a + b + c`` and ``(a - 2 b + c)^2`` of triples, and where no pixel is missing.

    Both are 0 where a pixel is missing. The last is None where none is missing.
    """
    a, b, c = (patterns[k].astype(dtype) for k in triples.T)
    with np.errstate(invalid="ignore"):
        a += c
        total = a + b
        b *= 2
        a -= b
        a *= a
    if patterns.dtype.kind != "f":
        return total, a, None
    present = np.isfinite(a)
    if present.all():
        return total, a, None
    total[~present] = a[~present] = 0
    return total, a, present


def fit_noise(mean: NDArray[Any], variance: NDArray[Any], offset: float | None = None) -> Noise:
    """Fit ``variance = gain (mean - offset) + c (mean - offset)^2`` with ``c >= 0`` over pixels.

    The square is for structure that looks like noise: speckle and thickness change all pixels in
    proportion. Pixels of similar brightness are averaged in groups first. Squares of a few counts
    are too skewed for a robust fit, which would cut off their long tail, and noise with it.
    """
    present = np.isfinite(mean) & np.isfinite(variance)
    mean, variance = mean[present], variance[present]
    order = np.argsort(mean, kind="stable")
    starts, sizes = _groups(len(mean))
    m, v = (np.add.reduceat(x[order], starts) / sizes for x in (mean, variance))
    dark = m[0] if offset is None else offset
    scale = m.mean() - dark
    if len(m) < 3 or not scale > 0 or not v.any():
        raise _no_noise("all detector pixels are alike")

    # In a unit near the signal, whose fourth power might be out of the range of float64.
    unit = 2.0 ** np.round(np.log2(scale))
    m, v, dark, scale = m / unit, v / unit / unit, dark / unit, scale / unit
    d = (m - dark) / scale  # near 1, so that the squares are well conditioned
    columns = np.stack([d, d**2, np.ones_like(d)][: 3 if offset is None else 2], axis=1)
    gain, curve, zero = v.mean() / scale, 0.0, dark
    keep = np.ones_like(d)
    for _ in range(30):
        # Variance of a Poisson variance, for rare and for many counts; dark groups get a floor.
        x = np.maximum(m - zero, 0) + 1e-3 * scale
        spread = np.sqrt((gain**3 * x + 2 * (gain * x + curve * x**2) ** 2) / sizes)
        factor = np.sqrt(keep) / spread
        before = gain
        gain, zero, curve = _solve(columns * factor[:, None], v * factor, dark, scale)
        if not gain > 0:
            raise _no_noise("the variance does not grow with the signal")
        if abs(gain - before) <= 1e-9 * gain:
            break
        # Tukey's weights: the direct beam and hot pixels do not follow the others.
        x = m - zero
        residual = (v - gain * x - curve * x**2) / spread
        width = 6 * 1.4826 * np.median(np.abs(residual))
        if width > 0:
            keep = np.maximum(1 - (residual / width) ** 2, 0) ** 2
    return Noise(float(gain * unit), float(zero * unit))


def _solve(
    columns: NDArray[Any], values: NDArray[Any], dark: float, scale: float
) -> tuple[float, float, float]:
    """Gain, offset and curvature by least squares; without curvature where it is negative."""
    a = np.linalg.lstsq(columns, values, rcond=None)[0]
    constant = a[2] if len(a) == 3 else 0.0
    inside = a[0] ** 2 - 4 * constant * a[1]
    if a[1] > 0 and a[0] > 0 and inside > 0:
        root = np.sqrt(inside)  # slope where the parabola crosses zero, which is the offset
        return root / scale, dark - scale * 2 * constant / (a[0] + root), a[1] / scale**2
    straight = np.delete(columns, 1, axis=1)
    a = np.linalg.lstsq(straight, values, rcond=None)[0]
    constant = a[1] if len(a) == 2 else 0.0
    if not a[0] > 0:
        return np.nan, np.nan, 0.0
    return a[0] / scale, dark - scale * constant / a[0], 0.0


def _groups(n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Starts and sizes of groups of pixels sorted by brightness, of 8 pixels at least.

    The darker half is cut in 32 groups, then the darker half of the rest, and so on, so that the
    few bright pixels are not all in one group.
    """
    starts: list[int] = []
    start = 0
    while start < n:
        size = max((n - start) // 64, 8)
        stop = n if size == 8 else start + 32 * size
        starts += range(start, stop, size)
        start = stop
    if len(starts) > 1 and n - starts[-1] < 4:
        del starts[-1]
    return np.array(starts), np.diff([*starts, n])


def _no_noise(reason: str) -> ValueError:
    return ValueError(
        f"the gain cannot be measured in this scan: {reason}; give it, for example gain=1 for "
        "counted electrons"
    )
