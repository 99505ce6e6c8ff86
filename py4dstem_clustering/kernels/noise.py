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

from .blocks import (
    MemoryNeed,
    Report,
    Run,
    is_small_integer,
    read_rows,
    row_need,
    scratch_need,
    tiles,
    workers,
)

_MIN_TRIPLES = 8192
"""Smallest number of triples of positions, if the scan has so many. With these the gain is within
1 %; with more, more of a large scan is read twice."""

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

    def read(window: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        rows = read_rows(data, *window)
        return rows.reshape(-1, n_pixels), _triples(*rows.shape[:2])

    with workers(n_jobs) as run:
        ratios = []
        for window in windows:
            ratios.append(_noise_ratios(*read(window), dark, weights, run))
            report(window[1] - window[0])
        all_ratios = np.concatenate(ratios)
        has_signal = np.isfinite(all_ratios).all(axis=1)
        if not has_signal.any():
            raise _no_noise("no three neighbouring positions hold a signal")
        limits = np.quantile(all_ratios[has_signal], _QUIET_SHARE, axis=0)
        total = np.zeros((3, n_pixels))  # sum of means, sum of squares, number of triples
        for window, ratio in zip(windows, ratios, strict=True):
            quiet = (ratio <= limits) & np.isfinite(ratio).all(axis=1, keepdims=True)
            _add_quiet(*read(window), quiet, half, total, run)
            report(window[1] - window[0])

    mean, square = total[:2] / np.where(total[2] > 0, total[2], np.nan)
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
    weights = weights.astype(_float_type(patterns))

    def compare(part: slice) -> None:
        signal, square, present = _second_differences(patterns, triples[part])
        signal -= signal.dtype.type(dark)
        np.maximum(signal, 0, out=signal)
        if present is not None:
            signal[~present] = 0
        power = signal @ weights
        np.divide(square @ weights, power, out=ratios[part], where=power > 0)

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
    """Add to `total` the moments of each half of the detector where the other half is quiet.

    A task owns its pixels, and adds up in order: the same bits for any number of threads.
    """

    def add(task: tuple[bool, slice]) -> None:
        odd, part = task
        pixels = part.start + np.flatnonzero(half[part] == odd)
        chosen = triples[quiet[:, 0 if odd else 1]]
        for some in tiles(len(chosen), _TRIPLES_PER_TASK):
            mean, square, present = _second_differences(patterns, chosen[some], pixels)
            count = len(mean) if present is None else present.sum(axis=0)
            total[0, pixels] += mean.sum(axis=0)
            total[1, pixels] += square.sum(axis=0)
            total[2, pixels] += count

    run(add, product((False, True), tiles(patterns.shape[1], _PIXELS_PER_TASK)))


def _brightness(
    data: Any, windows: list[tuple[int, int]], n_pixels: int
) -> tuple[float, NDArray[Any]]:
    """Level of the dark pixels, and how far the mean of each pixel lies above it; both rough."""
    means = []
    for start, _ in windows[:: -(-len(windows) // 8)]:
        row = read_rows(data, start, start + 1).reshape(-1, n_pixels)
        present = np.isfinite(row)
        total = row.sum(axis=0, dtype=np.float64, where=present)
        means.append(total / np.maximum(present.sum(axis=0), 1))
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


def _float_type(patterns: NDArray[Any]) -> type[np.float32] | type[np.float64]:
    """Type to compare in: float32 holds sums and squares of whole numbers of 8 or 16 bits."""
    return np.float32 if is_small_integer(patterns.dtype) else np.float64


def _second_differences(
    patterns: NDArray[Any], triples: NDArray[Any], pixels: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_] | None]:
    """Mean and ``(a - 2 b + c)^2 / 6`` of triples, and whether no pixel is missing there.

    Both are 0 where a pixel is missing; None says that none is.
    """
    kind = _float_type(patterns)
    a, b, c = (
        (patterns[k] if pixels is None else patterns[k[:, None], pixels]).astype(kind)
        for k in triples.T
    )
    with np.errstate(invalid="ignore"):
        a += c
        mean = a + b
        mean /= kind(3)
        b *= kind(2)
        a -= b
        square = np.square(a, out=a)
        square /= kind(6)
    if patterns.dtype.kind != "f":
        return mean, square, None
    present = np.isfinite(square)
    if present.all():
        return mean, square, None
    mean[~present] = square[~present] = 0
    return mean, square, present


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
