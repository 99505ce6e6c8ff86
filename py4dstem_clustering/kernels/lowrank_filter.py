"""Low-rank filter: patterns rebuilt from a model, with what the model lacks.

Where a pattern differs from the model by more than noise, in a bin of detector pixels, its own
values come back, in the share that stands out of noise: a pattern that lies at a single position is
no noise.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from .binning import move_patterns
from .blas import matmul
from .blocks import MemoryNeed, Report, iterate_blocks, row_need, scratch_need, tiles, workers
from .lowrank import Model
from .lowrank_basis import DARK_SHARE, MAX_DIRECTIONS
from .lowrank_fit import missing_pixels
from .lowrank_windows import N_REGIONS, Regions

SIGNIFICANT = 5.0
"""Standard deviations of noise from which a bin of a pattern keeps its own values. With a smaller
number, more noise comes back: noise alone exceeds 5 in one of 3 million bins."""

_AROUND = 2.0
"""Standard deviation of the weights of the positions around, over which residuals are averaged to
see what the model lacks. With less, chance counts as structure."""

_CERTAIN = 3.0
"""Standard errors from which a lack counts. With less, noise is estimated too large where patterns
are nearly empty."""

_GAIN_ERROR = 0.02
"""By how much the measured gain may be too small, when the model is judged by what it lacks. It may
be too large by any amount, where structure was taken for noise."""

_LEAST = 0.1
"""Share of the detector, by the certainty of its noise, in which the model lacks least."""

_TURNS = 10
"""Times that regions are chosen in which the model lacks nothing."""

_PATTERNS_PER_TASK = 16
"""Patterns that are rebuilt in one task; more of them do not stay in the cache of a core."""


class Left(NamedTuple):
    """What the filter lacks, position by position ``(Rx, Ry)``."""

    residual: NDArray[np.float32]
    """Power of what the model lacks, relative to noise: 1 where it lacks nothing."""
    kept: NDArray[np.float32]
    """Share of the detector in which the pattern kept values of its own."""
    squares: NDArray[np.float32]
    """Mean squared difference of pattern and model in each region of the detector
    ``(Rx, Ry, regions)``. Where the pattern kept values of its own, it is what makes their noise
    count as lacking."""


def lowrank_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `lowrank_core` takes beside the model."""
    ry, qx, qy = data.shape[1:]
    # Noise of the model, squares that are left, and the noise of the result; float64 maps of one.
    maps = data.shape[0] * ry * (4 * 3 * N_REGIONS**2 + 8 * 12)
    model = 4 * MAX_DIRECTIONS * (qx * qy + data.shape[0] * ry) + maps
    return MemoryNeed(
        model + scratch_need(data, n_jobs, _PATTERNS_PER_TASK, 5),
        3 * row_need(data) + 4 * ry * qx * qy,
    )


def lowrank_core(
    data: Any,
    out: Any,
    model: Model,
    *,
    shifts: NDArray[np.int64] | None,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> Left:
    """Write the filtered scan to `out`, anything that takes ``out[start:stop] = rows``."""
    rx, ry, qx, qy = data.shape
    bins = _Bins(model)
    shapes = (rx, ry), (rx, ry), (rx, ry, bins.regions.number)
    left = Left(*(np.empty(shape, dtype=np.float32) for shape in shapes))
    unit, zero = np.float32(model.bins.unit), np.float32(model.bins.zero)
    direct = isinstance(out, np.ndarray) and out.flags.c_contiguous
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            if direct:
                result = out[start : start + len(rows)].reshape(len(rows), ry, qx * qy)
            else:
                result = np.empty((len(rows), ry, qx * qy), dtype=np.float32)

            def rebuild(
                task: tuple[int, slice],
                start: int = start,
                rows: NDArray[Any] = rows,
                result: NDArray[np.float32] = result,
            ) -> None:
                i, piece = task
                here, scores = result[i, piece], model.scores[start + i, piece]
                matmul(scores, model.directions, out=here)
                moves = None if shifts is None else shifts[start + i, piece]
                found = keep_residual(
                    rows[i, piece], moves, matmul(scores, model.in_bins), here, model, bins
                )
                for target, values in zip(left, found, strict=True):
                    target[start + i, piece] = values
                if unit != 1:
                    here *= unit
                if zero:
                    here += zero

            run(rebuild, product(range(len(rows)), tiles(ry, _PATTERNS_PER_TASK)))
            if not direct:
                out[start : start + len(rows)] = result.reshape(-1, ry, qx, qy)
            report(len(rows))
            del rows, result
    return left


def whole_noise(model: Model, left: Left, *, known_gain: bool = True) -> NDArray[np.float32]:
    """Noise of the result ``(Rx, Ry, n, m)``: that of the model, and what the model lacks.

    The squared difference of pattern and model has the power of counting noise, plus that of what
    the model lacks, minus that of the noise of the model: the model follows the pattern to that
    extent. So what is lacking is known, for each region over the whole scan, and by position.
    With `known_gain` false, noise of single patterns may be any multiple of what the gain says: a
    lag that was undone raises it, and hardly that of means over neighbours. Then only what differs
    from the mean of the scan is known.
    """
    regions = Regions(model.bins)
    means = regions.means(model.directions.copy())
    known = model.noise.reshape(*model.scores.shape[:2], -1)
    unit = model.bins.unit
    level = np.average(model.scores.mean(axis=(0, 1)) @ means, weights=regions.n_pixels)
    least = model.gain * max(DARK_SHARE * float(level - model.offset), 1e-12)

    # Region by region: maps of all regions in float64 may not fit in memory.
    def powers(region: int) -> NDArray[np.float64]:
        """Squares that are left, power of counting noise, and of what the model says."""
        level = (model.scores @ means[:, region]).astype(np.float64) - model.offset
        own = (known[..., region].astype(np.float64) / unit) ** 2
        return np.stack([left.squares[..., region], model.gain * level, own])

    ratio, error, counts, owns = np.empty((4, regions.number))
    for region in range(regions.number):
        squares, counting, own = powers(region)
        counts[region], owns[region] = max(counting.mean(), 1e-30), own.mean()
        ratio[region] = squares.mean() / counts[region]
        apart = squares + own - (ratio[region] + owns[region] / counts[region]) * counting
        error[region] = apart.std() / (counts[region] * np.sqrt(counting.size))
    certain = np.where(counts > least, error, np.inf)
    scale = _gain_of_rest(ratio + owns / counts, certain) if known_gain else 1.0
    lacks = ratio + scale * (owns / counts - 1)
    gains = np.full(regions.number, scale) if known_gain else scale + lacks
    lacks *= known_gain
    lacks *= np.maximum(1 - (_CERTAIN * error / np.maximum(lacks, 1e-30)) ** 2, 0)
    lacks *= counts / np.maximum(counts, least)

    out = np.empty(known.shape, dtype=np.float32)
    for region in range(regions.number):
        squares, counting, own = powers(region)
        noise, own = np.maximum(counting, least), scale * own
        near = _around(noise)
        lack = _lack((squares + own - gains[region] * counting) / near, lacks[region])
        out[..., region] = unit * np.sqrt(own + lack * near)
    return out.reshape(model.noise.shape)


def _lack(single: NDArray[np.float64], whole: float) -> NDArray[np.float64]:
    """What the model lacks, from values of single positions, and that of the scan as a whole.

    It is the mean over positions around where that is no chance; otherwise that of the whole scan
    where the mean does not speak against it, and nothing where it does.
    """
    near = _around(single)
    chance = _around((single - near) ** 2) / (4 * np.pi * _AROUND**2)
    doubt = _CERTAIN**2 * chance
    found = near * (1 - (doubt / np.maximum(near**2, 1e-30)) ** 2)
    other = np.where((near - whole) ** 2 < doubt, whole, 0)
    return np.asarray(np.maximum(np.where(near**2 > doubt, found, other), 0))


def _gain_of_rest(ratio: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """Gain that the rest of patterns shows, relative to the one that was measured.

    In some regions of the detector the model lacks nothing. There, the `ratio` of the rest to
    counting noise is smallest. It is their mean, over all that do not exceed it by more than
    2 standard errors.
    """
    weight = 1 / np.maximum(error, 1e-4) ** 2
    order = np.argsort(ratio)
    below = np.cumsum(weight[order])
    if not below[-1] > 0:
        return 1.0
    found = float(ratio[order][np.searchsorted(below, _LEAST * below[-1])])
    for _ in range(_TURNS):
        least = weight * (ratio <= found + 2 * error)
        if least.any():
            found = float(np.average(ratio, weights=least))
    return min(found, 1 + _GAIN_ERROR)


def _around(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(gaussian_filter(x, _AROUND))


class _Bins:
    """Noise of bins, and which bin each pixel belongs to."""

    def __init__(self, model: Model) -> None:
        self.of_pixels = model.bins.bin_of_pixels()
        self.regions = Regions(model.bins)
        self.weight = (1 / (model.bin_gain * model.mean)).astype(np.float32)
        self.floor = (0.1 * model.mean).astype(np.float32)
        self.dark = (model.offset * model.bins.pixels).astype(np.float32)


def keep_residual(
    raw: NDArray[Any],
    moves: NDArray[np.int64] | None,
    expected: NDArray[np.float32],
    result: NDArray[np.float32],
    model: Model,
    bins: _Bins,
) -> Left:
    """Add to `result` what the model lacks beyond noise; `expected` is the model in bins."""
    x = model.bins.patterns(raw, moves)
    absent = missing_pixels(raw, moves is not None)
    for n, missing in absent:
        x[n, missing] = result[n, missing]
    pixels = model.bins.pixels
    x -= result
    difference = np.empty((len(x), len(pixels)), dtype=np.float32)
    model.bins.bin(x, difference)
    mean = np.maximum(expected - bins.dark, bins.floor)
    power = (difference**2 * bins.weight).sum(axis=1)
    power /= model.bin_gain * (mean * bins.weight).sum(axis=1)
    counts = difference + (expected - bins.dark)
    odd = np.abs(_deviation(counts, mean, model.bin_gain)) > SIGNIFICANT
    kept = np.zeros(len(counts), dtype=np.float32)
    own = []
    present = dict(absent)
    for n in np.flatnonzero(odd.any(axis=1)):
        inside = (odd[n][bins.of_pixels] & (bins.of_pixels >= 0)).astype(bool)
        size = 2 * model.bins.factor + 1
        inside = binary_dilation(inside, np.ones((size, size), dtype=bool)).ravel()
        inside &= ~model.bins.hot.ravel()
        if int(n) in present:
            inside &= ~present[int(n)]
        lacks = x[n, inside]
        level = np.maximum(mean[n] / pixels, 0)[np.maximum(bins.of_pixels, 0)].ravel()[inside]
        noise = model.gain * level.sum()
        share = max(0.0, 1 - float(noise / max(float((lacks**2).sum()), 1e-30)))
        result[n, inside] += np.float32(share) * lacks
        own.append((n, inside, np.float32(model.gain * (1 + share)) * level))
        kept[n] = inside.mean()
    if moves is not None:
        for n in np.flatnonzero(moves.any(axis=1)):
            unmoved = model.bins.patterns(raw[n : n + 1], None)
            _move_back(result[n], unmoved, moves[n : n + 1], model)
    squares = np.square(x, out=x)
    for n, inside, values in own:
        squares[n, inside] = values
    return Left(power.astype(np.float32), kept, bins.regions.means(squares))


def _deviation(
    counts: NDArray[np.float32], mean: NDArray[np.float32], gain: float
) -> NDArray[np.float32]:
    """Deviation of Poisson counts from their mean, in standard deviations of noise.

    The signed root of the likelihood ratio, which holds for small counts too.
    """
    k, m = np.maximum(counts, 0) / np.float32(gain), mean / np.float32(gain)
    ratio = k * np.log(np.maximum(k, 1e-6) / m) - (k - m)
    return np.sign(k - m) * np.sqrt(2 * np.maximum(ratio, 0))


def _move_back(
    pattern: NDArray[np.float32], raw: NDArray[np.float32], moves: NDArray[np.int64], model: Model
) -> None:
    """Move a rebuilt pattern to its own origin; pixels that had left the detector stay raw."""
    shape = model.bins.hot.shape
    turned = pattern.reshape(1, *shape)
    move_patterns(turned, -moves)
    u, v = (np.arange(n) + s for n, s in zip(shape, moves[0], strict=True))
    outside = ((u < 0) | (u >= shape[0]))[:, None] | ((v < 0) | (v >= shape[1]))
    turned[0][outside] = raw.reshape(shape)[outside]
