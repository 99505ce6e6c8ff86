"""Low-rank filter: patterns rebuilt from a model, with what the model lacks.

The scores of each position are averaged with those of neighbours that agree within noise. Where a
pattern differs from the model by more than noise, in a bin of detector pixels, its own values come
back, in the share that stands out of noise: a pattern that lies at a single position is no noise.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from .binning import move_patterns
from .blas import matmul
from .blocks import (
    MemoryNeed,
    Report,
    iterate_blocks,
    row_need,
    scratch_need,
    tiles,
    workers,
)
from .features import MAX_RANK
from .lowrank import N_REGIONS, Model

REACH = 3
"""Neighbours up to this many positions away are averaged; more of them take longer, and are less
like the position."""

MIN_VARIANCE = 0.05
"""Smallest variance of the noise of a score; where a pattern is dark, the estimate may reach 0."""

SIGNIFICANT = 5.0
"""Standard deviations of noise from which a bin of a pattern keeps its own values. With a smaller
number, more noise comes back: noise alone exceeds 5 in one of 3 million bins."""

_FILLS = 8
"""Times that missing pixels are filled from the model and the model is fitted anew. After a few
times nothing changes, where not most of the pattern is missing."""

_PATTERNS_PER_TASK = 32

_TESTED_POSITIONS = 2000
"""Positions, all over the scan, in which the error of the result is measured. More of them make the
estimate of noise better, and take longer."""


class Left(NamedTuple):
    """What the filter left in its result, or took away."""

    noise: NDArray[np.float32]
    """Noise of a pixel of the result in each region of the detector, ``(Rx, Ry, n, m)``."""
    residual: NDArray[np.float32]
    """Power of what the model lacks, relative to noise, ``(Rx, Ry)``: 1 where it lacks nothing."""
    kept: NDArray[np.float32]
    """Share of the detector in which the pattern kept values of its own, ``(Rx, Ry)``."""


def lowrank_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `lowrank_core` takes beside the model."""
    rx, ry, qx, qy = data.shape
    row = np.dtype(data.dtype).itemsize * ry * qx * qy
    model = 12 * MAX_RANK * qx * qy + 4 * rx * ry * N_REGIONS**2
    kept = 2 * REACH * (row + 4 * ry * (1300 + MAX_RANK))
    return MemoryNeed(
        model + kept + 2 * row_need(data) + scratch_need(data, n_jobs, 64, 5),
        2 * row_need(data) + row + 4 * ry * (qx * qy + 1300 + MAX_RANK),
    )


def lowrank_core(
    data: Any,
    out: Any,
    model: Model,
    *,
    shifts: NDArray[np.int64] | None,
    local: bool,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> Left:
    """Write the filtered scan to `out`, anything that takes ``out[start:stop] = rows``.

    With `local` false, scores are not averaged over neighbours.
    """
    rx, ry, qx, qy = data.shape
    regions = _Regions(model, (qx, qy))
    left = Left(
        np.empty((rx, ry, *regions.shape), dtype=np.float32),
        np.empty((rx, ry), dtype=np.float32),
        np.empty((rx, ry), dtype=np.float32),
    )
    reach = min(REACH, rx - 1) if local else 0
    every = max(1, rx * ry // _TESTED_POSITIONS)
    tested: dict[tuple[int, int], _Sums] = {}
    window: dict[int, _Row] = {}
    pieces = tiles(ry, _PATTERNS_PER_TASK)
    written = 0
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            stop = start + len(rows)
            for i in range(start, stop):
                moves = None if shifts is None else shifts[i]
                window[i] = _Row(rows[i - start], moves, model)

            def score(task: tuple[int, slice]) -> None:
                window[task[0]].score(task[1], model)

            run(score, product(range(start, stop), pieces))
            last = rx if stop == rx else max(written, stop - reach)
            smooth: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

            def average(i: int, smooth: dict[int, Any] = smooth) -> None:
                smooth[i] = average_scores(window, i, REACH if local else 0)

            run(average, range(written, last))
            while written < last:
                ready = min(written + len(rows), last)
                result = np.empty((ready - written, ry, qx * qy), dtype=np.float32)

                def rebuild(
                    task: tuple[int, slice],
                    first: int = written,
                    result: NDArray[np.float32] = result,
                    smooth: dict[int, Any] = smooth,
                ) -> None:
                    i, piece = task
                    scores, own = smooth[i]
                    row = window[i]
                    mixed = scores[piece]
                    matmul(mixed, model.directions, out=result[i - first, piece])
                    expected = matmul(mixed, model.in_bins)
                    left.noise[i, piece] = regions.noise(mixed, own[piece, 0])
                    some = np.arange(piece.start, piece.stop) + i * ry
                    some = some[some % every == 0] - i * ry
                    if len(some):
                        tested[i, piece.start] = _sum_up(
                            row.read(some, model),
                            result[i - first, some],
                            row.bins[some],
                            expected[some - piece.start],
                            own[some, 1],
                            model,
                        )
                    left.residual[i, piece], left.kept[i, piece] = keep_residual(
                        row, piece, expected, result[i - first, piece], model, regions
                    )

                run(rebuild, product(range(written, ready), pieces))
                if model.bins.unit != 1:
                    result *= np.float32(model.bins.unit)
                if model.bins.zero:
                    result += np.float32(model.bins.zero)
                out[written:ready] = result.reshape(-1, ry, qx, qy)
                report(ready - written)
                written = ready
            for i in [i for i in window if i < written - reach]:
                del window[i]
            del rows
    if local:
        left.noise[:] *= np.float32(regions.correction(tested, left.noise))
    return left


class _Sums(NamedTuple):
    """Sums over some patterns, for the estimate of noise."""

    n: int
    pixels: NDArray[np.float64]
    """Squared residual, noise that the result follows, result and its square, ``(4, Qx Qy)``."""
    bins: NDArray[np.float64]
    """Squared residual, result and its square, ``(3, bins)``."""


def _sum_up(
    x: NDArray[np.float32],
    result: NDArray[np.float32],
    counts: NDArray[np.float32],
    expected: NDArray[np.float32],
    own: NDArray[np.float32],
    model: Model,
) -> _Sums:
    noise = model.gain * np.maximum(result - np.float32(model.offset), 0)
    follows = own @ noise * model.own_share[0] + noise.sum(axis=0) * model.own_share[1]
    pixels = [
        ((x - result) ** 2).sum(axis=0, dtype=np.float64),
        follows,
        result.sum(axis=0, dtype=np.float64),
        (result**2).sum(axis=0, dtype=np.float64),
    ]
    bins = [
        ((counts - expected) ** 2).sum(axis=0, dtype=np.float64),
        expected.sum(axis=0, dtype=np.float64),
        (expected**2).sum(axis=0, dtype=np.float64),
    ]
    return _Sums(len(x), np.array(pixels), np.array(bins))


class _Row:
    """A row of the scan, as long as it is needed: patterns, bins and scores."""

    def __init__(self, rows: NDArray[Any], moves: NDArray[np.int64] | None, model: Model) -> None:
        self.patterns, self.moves = rows, moves
        n = len(rows)
        self.bins = np.empty((n, len(model.bins.pixels)), dtype=np.float32)
        self.scores = np.empty((n, model.rank), dtype=np.float32)
        self.variance = np.empty((n, model.rank), dtype=np.float32)
        """Variance of the noise of the scores."""

    def read(self, piece: slice | NDArray[Any], model: Model) -> NDArray[np.float32]:
        """Some patterns ``(n, Qx Qy)``, in the unit of the bins and moved."""
        moves = None if self.moves is None else self.moves[piece]
        return model.bins.patterns(self.patterns[piece], moves)

    def score(self, piece: slice, model: Model) -> None:
        """Measure bins, scores and noise of some patterns."""
        x = self.read(piece, model)
        scores = matmul(x, model.to_scores)
        if self.patterns.dtype.kind == "f" and self.moves is None:
            raw = self.patterns[piece].reshape(len(x), -1)
            for i in np.flatnonzero(~np.isfinite(raw).all(axis=1)):
                missing = ~np.isfinite(raw[i])
                # The model says what is missing, and the more is known, the better.
                for _ in range(_FILLS):
                    x[i, missing] = scores[i] @ model.directions[:, missing]
                    scores[i] = x[i] @ model.to_scores
        self.scores[piece] = scores
        variance = matmul(scores, model.to_variance[:-1]) + model.to_variance[-1]
        self.variance[piece] = np.maximum(variance, MIN_VARIANCE)
        model.bins.bin(x, self.bins[piece])


def average_scores(
    window: dict[int, _Row], i: int, reach: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores of row `i`, averaged with neighbours that agree.

    Also returns, ``(Ry, 2)``, what this leaves of the power of noise, and the weight of the
    position itself.

    In units of their noise, `k` scores differ by `k` in square, on average, where patterns are the
    same, and by ``sqrt(2 k)`` more or less. What lies above lowers the weight of a neighbour.
    """
    here = window[i]
    n, k = here.scores.shape
    spread = np.float32(np.sqrt(2 * k))
    total = here.scores.copy()
    weights, squares = np.ones(n, np.float32), np.ones(n, np.float32)
    for dx in range(-reach, reach + 1):
        other = window.get(i + dx)
        if other is None:
            continue
        for dy in range(-reach, reach + 1):
            if (dx, dy) == (0, 0) or dx**2 + dy**2 > (reach + 0.5) ** 2 or abs(dy) >= n:
                continue
            to = slice(max(0, -dy), n - max(0, dy))
            of = slice(max(0, dy), n + min(0, dy))
            step = here.scores[to] - other.scores[of]
            step *= step
            step /= here.variance[to] + other.variance[of]
            excess = step.sum(axis=1) - k
            weight = np.exp(-np.maximum(excess, 0) / spread)
            total[to] += weight[:, None] * other.scores[of]
            weights[to] += weight
            squares[to] += weight**2
    return total / weights[:, None], np.stack([squares / weights**2, 1 / weights], axis=1)


class _Regions:
    """Regions of the detector in which noise is estimated, and how bins belong to them."""

    def __init__(self, model: Model, detector: tuple[int, int]) -> None:
        self.shape = (min(N_REGIONS, detector[0]), min(N_REGIONS, detector[1]))
        self.bin_of = model.bins.bin_of_pixels()
        self._region = model.regions.ravel()
        self._model = model
        weight = 1 / (model.bin_gain * model.mean)
        self.weight = weight.astype(np.float32)
        self.floor = (0.1 * model.mean).astype(np.float32)
        self.dark = (model.offset * model.bins.pixels).astype(np.float32)

    def noise(self, scores: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise of rebuilt patterns ``(n, regions, regions)``, in the unit of the data."""
        model = self._model
        of_scores = matmul(scores, model.score_noise[:-1]) + model.score_noise[-1]
        of_scores *= own[:, None]
        turned = matmul(scores, model.direction_noise).swapaxes(0, 1)  # (n, regions, rank)
        of_directions = matmul(turned, scores[:, :, None])[..., 0]
        power = np.maximum(of_scores, 0) + np.maximum(of_directions, 0)
        found = np.sqrt(power) * np.float32(model.bins.unit)
        return found.reshape(-1, *self.shape)

    def correction(self, tested: dict[tuple[int, int], _Sums], noise: NDArray[np.float32]) -> float:
        """Factor of the noise, so that it holds what the model lacks, too.

        Errors of the model are alike in neighbouring pixels, and the noise of patterns is not: so
        errors show where squared residuals of bins are larger than those of pixels. How much alike
        is known from the model itself, whose patterns have the same kind of structure.
        """
        model = self._model
        n_regions = int(np.prod(self.shape))
        if model.bins.factor == 1:
            return 1.0
        parts = [tested[key] for key in sorted(tested)]
        n = sum(part.n for part in parts)
        pixels = np.sum([part.pixels for part in parts], axis=0) / n
        bins = np.sum([part.bins for part in parts], axis=0) / n
        place = self.bin_of.ravel()
        valid = (place >= 0) & ~model.bins.hot.ravel()
        place = place[valid]

        def mean_of_bins(values: NDArray[np.float64]) -> float:
            return float((values / model.bins.pixels)[place].mean())

        residual, follows, result, square = pixels[:, valid]
        alike = mean_of_bins(bins[2] - bins[1] ** 2) / max(
            float((square - result**2).mean()), 1e-30
        )
        alike = float(np.clip(alike, 2, model.bins.factor**2))
        shared = (mean_of_bins(bins[0]) - float(residual.mean())) / (alike - 1)
        error = (shared + 2 * float(follows.mean())) * model.bins.unit**2
        known = (noise.reshape(-1, n_regions).astype(np.float64) ** 2).mean(axis=0)
        counted = np.bincount(self._region[valid], minlength=n_regions)
        known = float((known * counted).sum() / counted.sum())
        # The noise of scores and directions is there in any case.
        return float(np.sqrt(max(error / max(known, 1e-30), 1.0))) if known > 0 else 1.0


def keep_residual(
    row: _Row,
    piece: slice,
    expected: NDArray[np.float32],
    result: NDArray[np.float32],
    model: Model,
    regions: _Regions,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add to `result` what the model lacks beyond noise; `expected` is the model in bins.

    Returns the power of what it lacks, relative to noise, and the share of bins that were changed.
    """
    counts, pixels = row.bins[piece], model.bins.pixels
    mean = np.maximum(expected - regions.dark, regions.floor)
    difference = counts - expected
    power = (difference**2 * regions.weight).sum(axis=1)
    power /= model.bin_gain * (mean * regions.weight).sum(axis=1)
    odd = np.abs(_deviation(counts - regions.dark, mean, model.bin_gain)) > SIGNIFICANT
    kept = np.zeros(len(counts), dtype=np.float32)
    changed = np.flatnonzero(odd.any(axis=1))
    if len(changed):
        x = row.read(piece, model)[changed]
        raw = row.patterns[piece][changed].reshape(len(changed), -1)
        present = np.isfinite(raw) if raw.dtype.kind == "f" and row.moves is None else None
        for j, n in enumerate(changed):
            inside = (odd[n][regions.bin_of] & (regions.bin_of >= 0)).astype(bool)
            size = 2 * model.bins.factor + 1
            inside = binary_dilation(inside, np.ones((size, size), dtype=bool)).ravel()
            inside &= ~model.bins.hot.ravel()
            if present is not None:
                inside &= present[j]
            lacks = x[j, inside] - result[n, inside]
            level = np.maximum(mean[n] / pixels, 0)[np.maximum(regions.bin_of, 0)].ravel()[inside]
            noise = model.gain * level.sum()
            share = max(0.0, 1 - float(noise / max(float((lacks**2).sum()), 1e-30)))
            result[n, inside] += np.float32(share) * lacks
            kept[n] = inside.mean()
    if row.moves is not None:
        for n in np.flatnonzero(row.moves[piece].any(axis=1)):
            column = piece.start + n
            raw = model.bins.patterns(row.patterns[column : column + 1], None)
            _move_back(result[n], raw, row.moves[column : column + 1], model)
    return power.astype(np.float32), kept


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
