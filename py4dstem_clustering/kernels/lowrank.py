"""Low-rank model of a scan: the few patterns that all its patterns are mixtures of.

Patterns are divided by the root of their noise. What differs between positions then lies in a few
directions, and noise lies evenly in all. The directions are found in bins of detector pixels, from
the covariance of each pattern with the mean of the 3 x 3 patterns around it, of which it is one
itself: noise counts there with a quarter of its power, and what changes from position to position
counts, too. The theory of random matrices says how far noise reaches, and all eigenvalues beyond
are taken. Then each pixel of the detector is fitted by the scores of the positions, which gives the
directions at full resolution, with known noise. What does not stand out of it is removed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import MAX_BINS, Binning
from .blas import matmul
from .blocks import (
    MemoryNeed,
    Report,
    Run,
    iterate_blocks,
    row_need,
    scratch_need,
    tiles,
    workers,
)
from .features import MAX_RANK
from .noise import Noise
from .shrinkage import noise_edge, shrink_locally

DARK_SHARE = 0.02
"""Pixels count as at least this share of the mean brightness. Without it, the noise of pixels that
are nearly always empty would have the weight of all others."""

N_REGIONS = 8
"""Regions of the detector along either axis, for each of which noise is estimated."""

_PIXELS_PER_TASK = 2048
"""Detector pixels that are fitted in one task; fewer of them make calls too short."""

_COVARIANCE_TILE = 256
_GROUP_BYTES = 64 * 2**20
"""Bytes of patterns in float32 that are fitted at a time; with more, threads wait less."""


class Model(NamedTuple):
    """Directions of a scan; a pattern is ``scores @ directions``, in the unit of `bins`."""

    bins: Binning
    directions: NDArray[np.float32]
    """``(rank, Qx Qy)``"""
    to_scores: NDArray[np.float32]
    """``(Qx Qy, rank)``: from a pattern to its scores, with unit noise on average."""
    to_variance: NDArray[np.float32]
    """``(rank + 1, rank)``: from scores, and 1, to the variance of the noise of each score."""
    in_bins: NDArray[np.float32]
    """`directions` in bins ``(rank, bins)``."""
    regions: NDArray[np.int64]
    """Region of each detector pixel, for the estimate of noise, ``(Qx, Qy)``."""
    score_noise: NDArray[np.float32]
    """From scores, and 1, to the power of the noise that they bring to the pixels of each region,
    ``(rank + 1, regions)``."""
    direction_noise: NDArray[np.float32]
    """The same for the noise of the directions: quadratic forms of the scores
    ``(regions, rank, rank)``."""
    own_share: NDArray[np.float32]
    """How much a pixel of the result follows the same pixel of the pattern, by its scores and by
    the directions, ``(2, Qx Qy)``."""
    gain: float
    offset: float
    """Gain and offset of a pixel, in the unit of `bins`."""
    bin_gain: float
    """Gain from the noise of bins: larger where the noise of neighbouring pixels is alike."""
    mean: NDArray[np.float64]
    """Mean of each bin, without the offset, at least a floor."""

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.directions)


def model_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `model_core` takes."""
    rx, ry, qx, qy = data.shape
    n_bins = min(MAX_BINS, qx * qy)
    row = 4 * ry * qx * qy
    fixed = 6 * 8 * n_bins**2 + 8 * 6 * MAX_RANK * qx * qy + 4 * rx * ry * MAX_RANK
    fixed += max(_GROUP_BYTES, row) + 2 * row_need(data) + 12 * ry * n_bins
    sums = 8 * len(tiles(ry)) * qx * qy
    return MemoryNeed(
        fixed + scratch_need(data, n_jobs, 64, 3.5), 2 * row_need(data) + 8 * ry * n_bins + sums
    )


def model_core(
    data: Any,
    *,
    q_mask: NDArray[np.bool_] | None,
    rank: int | None,
    noise: Noise | None,
    shifts: NDArray[np.int64] | None,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> Model:
    """Find the model of a scan; with `rank` None, of as many directions as stand out of noise.

    `noise` is that of the camera; None finds it from neighbours, roughly. Reads the data twice.
    """
    rx, ry, qx, qy = data.shape
    bins = Binning(data, q_mask)
    total = np.zeros(qx * qy)
    sums = _Sums(len(bins.pixels))
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            for row in bins.bin_rows(rows, _part(shifts, start, len(rows)), run, total):
                sums.add(row, run)
            report(len(rows))
        mean = total / (rx * ry)
        found = _camera(bins, noise, mean, sums.mean(rx * ry), sums.variance((rx, ry)))
        basis = _binned_basis(sums.covariance, bins, found, rx * ry, rank)

        k = basis.shape[1]
        products, near = np.zeros((k, qx * qy)), np.zeros((k, k))
        # Counting noise of the products grows with the patterns, thus with the scores.
        own, before = np.zeros((k, k, k + 1)), np.zeros((ry, k), dtype=np.float32)
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            for i, x, scores in _groups(rows, bins, _part(shifts, start, len(rows)), basis, run):
                means = []
                for row in scores:
                    smooth = smooth_along(row)
                    means.append(0.5 * (smooth + before))
                    near += means[-1].T.astype(np.float64) @ row
                    own += _third_moments(means[-1], row)
                    before = smooth
                _add_products(products, means, x, run)
                del i, x
            report(len(rows))
        return _full_model(bins, found, products, near, own, run, rx * ry)


def _third_moments(means: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum over positions of mean x mean x (scores, 1), ``(k, k, k + 1)``."""
    n, k = means.shape
    squares = (means[:, :, None] * means[:, None]).reshape(n, -1)
    ones = np.ones((n, 1), dtype=np.float32)
    found: NDArray[Any] = matmul(squares.T, np.concatenate([scores, ones], axis=1))
    return found.reshape(k, k, k + 1).astype(np.float64)


def _part(shifts: NDArray[np.int64] | None, start: int, n: int) -> NDArray[np.int64] | None:
    return None if shifts is None else shifts[start : start + n]


def smooth_along(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of each position ``(Ry, n)`` with its two neighbours, weights 1, 2, 1; 0 outside."""
    out = 0.5 * row
    out[1:] += 0.25 * row[:-1]
    out[:-1] += 0.25 * row[1:]
    return out


class _Sums:
    """Sums over all binned patterns of a scan, row by row."""

    def __init__(self, n_bins: int) -> None:
        self._total, self._squares = np.zeros(n_bins), np.zeros(n_bins)
        self.covariance = np.zeros((n_bins, n_bins))
        """Sum of products with the mean of the neighbours in this row and in the row before. The
        other half follows from symmetry."""
        self._last: NDArray[np.float32] | None = None
        self._before: NDArray[np.float32] | None = None

    def add(self, row: NDArray[np.float32], run: Run) -> None:
        """Add the binned patterns ``(Ry, bins)`` of the next row."""
        self._total += row.sum(axis=0, dtype=np.float64)
        self._squares += (np.diff(row, axis=0).astype(np.float64) ** 2).sum(axis=0)
        smooth = smooth_along(row)
        near = 0.5 * smooth
        if self._last is not None and self._before is not None:
            self._squares += ((row - self._last).astype(np.float64) ** 2).sum(axis=0)
            near += 0.5 * self._before

        def multiply(tile: slice) -> None:
            self.covariance[tile] += matmul(row[:, tile].T, near)

        run(multiply, tiles(row.shape[1], _COVARIANCE_TILE))
        self._last, self._before = row.copy(), smooth

    def mean(self, n_positions: int) -> NDArray[np.float64]:
        """Mean of each bin."""
        return self._total / n_positions

    def variance(self, scan: tuple[int, int]) -> NDArray[np.float64]:
        """Half the mean squared difference of direct neighbours, of each bin."""
        n_pairs = scan[0] * (scan[1] - 1) + (scan[0] - 1) * scan[1]
        return self._squares / (2 * max(n_pairs, 1))


class _Camera(NamedTuple):
    """The noise of pixels and bins, in the unit of the bins."""

    gain: float
    bin_gain: float
    offset: float
    pixel: NDArray[np.float64]
    """Mean of each pixel without the offset, at least a floor; ``(Qx Qy,)``."""
    bin: NDArray[np.float64]
    """The same of each bin."""


def _camera(
    bins: Binning,
    noise: Noise | None,
    mean: NDArray[np.float64],
    bin_mean: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> _Camera:
    if noise is None:
        offset = float(np.quantile(mean, 0.01))
    else:
        offset = (noise.offset - bins.zero) / bins.unit
    valid = ~bins.hot.ravel()
    signal = bin_mean - offset * bins.pixels
    pixel_signal = mean - offset
    floor = DARK_SHARE * max(float(pixel_signal[valid].mean()), 0.0)
    if not floor > 0:
        floor = 1.0
    pixel = np.maximum(pixel_signal, floor)
    binned = np.maximum(signal, floor * bins.pixels)
    from_bins = float(np.median(variance / binned))
    if noise is None:
        gain = from_bins if from_bins > 0 else 1.0
        return _Camera(gain, gain, offset, pixel, binned)
    gain = noise.gain / bins.unit
    # Grains raise the differences of neighbours; noise that pixels share raises those of most bins.
    shared = float(np.quantile(variance / binned, 0.25))
    return _Camera(gain, max(gain, shared), offset, pixel, binned)


def _binned_basis(
    covariance: NDArray[np.float64],
    bins: Binning,
    camera: _Camera,
    n_positions: int,
    rank: int | None,
) -> NDArray[np.float32]:
    """Matrix ``(bins, rank)`` from binned patterns to their scores. Changes the covariance."""
    n_bins = len(bins.pixels)
    scale = 1 / np.sqrt(camera.bin_gain * camera.bin)
    covariance *= scale[:, None] * scale / n_positions
    level, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if rank is None:
        edge = noise_edge(n_positions, n_bins)
        # Most eigenvalues are noise. Unit noise has a quarter of its power here.
        edge *= max(1.0, float(np.median(level)) / 0.25)
        rank = int((level > edge).sum())
    rank = min(max(rank, 1), MAX_RANK, n_bins, n_positions)
    basis = vectors[:, ::-1][:, :rank] * scale[:, None]
    return np.ascontiguousarray(basis, dtype=np.float32)


def _groups(
    rows: NDArray[Any],
    bins: Binning,
    shifts: NDArray[np.int64] | None,
    basis: NDArray[np.float32],
    run: Run,
) -> Any:
    """Yield the first row, patterns ``(n, Ry, Qx Qy)`` and scores ``(n, Ry, rank)`` of groups."""
    n, ry = rows.shape[:2]
    n_pixels = bins.hot.size
    step = max(1, _GROUP_BYTES // (4 * ry * n_pixels))
    pieces = tiles(ry)
    for start in range(0, n, step):
        stop = min(start + step, n)
        x = np.empty((stop - start, ry, n_pixels), dtype=np.float32)
        scores = np.empty((stop - start, ry, basis.shape[1]), dtype=np.float32)

        def score(
            task: tuple[int, int],
            start: int = start,
            x: NDArray[np.float32] = x,
            scores: NDArray[np.float32] = scores,
        ) -> None:
            i, piece = task[0], pieces[task[1]]
            moves = None if shifts is None else shifts[start + i, piece]
            part = bins.patterns(rows[start + i, piece], moves)
            x[i, piece] = part
            binned = np.empty((len(part), len(basis)), dtype=np.float32)
            bins.bin(part, binned)
            scores[i, piece] = matmul(binned, basis)

        run(score, np.ndindex(stop - start, len(pieces)))
        yield start, x, scores


def _add_products(
    products: NDArray[np.float64], means: list[NDArray[np.float32]], x: NDArray[Any], run: Run
) -> None:
    """Add the products of mean scores and patterns, row by row: the same bits in any block."""

    def add(part: slice) -> None:
        for mean, row in zip(means, x, strict=True):
            products[:, part] += matmul(mean.T, row[:, part])

    run(add, tiles(products.shape[1], _PIXELS_PER_TASK))


def _full_model(
    bins: Binning,
    camera: _Camera,
    products: NDArray[np.float64],
    near: NDArray[np.float64],
    own: NDArray[np.float64],
    run: Run,
    n_positions: int,
) -> Model:
    """Directions at full resolution, without the noise that can be told from them."""
    qx, qy = bins.hot.shape
    inverse = np.linalg.pinv(near, rcond=1e-10)
    fitted = inverse @ products  # (rank, pixels)
    hot = bins.hot.ravel()
    weight = 1 / np.sqrt(camera.gain * camera.pixel)
    weight[hot] = 0
    orthonormal, turn = np.linalg.qr((fitted * weight).T)
    rank = orthonormal.shape[1]
    back = np.linalg.pinv(turn, rcond=1e-10)
    # From the scores of bins to those of the full resolution.
    to_fit = back.T @ inverse
    constant = to_fit @ own[..., -1] @ to_fit.T
    level, vectors = np.linalg.eigh(constant)
    root = np.sqrt(np.maximum(level, max(1e-10 * level[-1], 1e-20)))
    # In units of their noise, with the same noise in all directions.
    unit = ((vectors.T @ orthonormal.T) / root[:, None]).T.reshape(qx, qy, -1)

    regions, n_regions = _regions((qx, qy))
    # Counting noise of a direction at a pixel: `moments` times the direction itself.
    to_unit = (vectors / root).T @ to_fit
    moments = np.einsum("ai,ijk,bj->abk", to_unit, own, to_unit, optimize=True)
    pattern = np.concatenate([fitted, np.full((1, qx * qy), -camera.offset)])
    pattern *= camera.gain * weight**2
    pattern = pattern.T.reshape(qx, qy, -1).astype(np.float32)
    flat_moments = moments.reshape(-1, rank + 1).T.astype(np.float32)
    inverse_power = (1 / np.where(hot, 1, weight) ** 2).reshape(qx, qy)
    inverse_power[bins.hot] = 0
    parts: dict[int, NDArray[np.float64]] = {}
    followed = np.empty((qx, qy))

    def add_noise(rows: slice, keep: NDArray[np.float32]) -> None:
        noise = matmul(pattern[rows].reshape(-1, rank + 1), flat_moments)
        noise = keep @ noise.reshape(keep.shape) @ keep
        noise *= inverse_power[rows][..., None, None].astype(np.float32)
        part = np.zeros((n_regions, rank, rank))
        for region in np.unique(regions[rows]):
            part[region] = noise[regions[rows] == region].sum(axis=0, dtype=np.float64)
        parts[rows.start] = part
        followed[rows] = np.trace(keep, axis1=2, axis2=3) / n_positions

    kept = shrink_locally(unit.astype(np.float32), max(1.0, bins.factor / 2), run, add_noise)
    shrunk = vectors @ (root[:, None] * kept.reshape(qx * qy, -1).T.astype(np.float64))
    directions = shrunk / np.where(hot, 1, weight)
    directions[:, hot] = (back.T @ fitted)[:, hot]
    with_dark = np.concatenate([directions, np.full((1, qx * qy), -camera.offset)])
    to_variance = with_dark @ (camera.gain * (orthonormal * weight[:, None]) ** 2)
    own_share = [(orthonormal.T * shrunk).sum(axis=0), followed.ravel()]

    count = np.maximum(np.bincount(regions[~bins.hot], minlength=n_regions), 1)
    turn_back = vectors * root
    direction_noise = turn_back @ sum(parts[key] for key in sorted(parts)) @ turn_back.T
    direction_noise /= count[:, None, None]

    binned = np.empty((rank, len(bins.pixels)), dtype=np.float32)
    bins.bin(directions.astype(np.float32), binned)
    return Model(
        bins=bins,
        directions=np.ascontiguousarray(directions, dtype=np.float32),
        to_scores=np.ascontiguousarray(orthonormal * weight[:, None], dtype=np.float32),
        to_variance=to_variance.astype(np.float32),
        in_bins=binned,
        regions=regions,
        score_noise=_score_noise(with_dark, orthonormal, weight, camera.gain, regions, count),
        direction_noise=direction_noise.astype(np.float32),
        own_share=np.array(own_share, dtype=np.float32),
        gain=camera.gain,
        offset=camera.offset,
        bin_gain=camera.bin_gain,
        mean=camera.bin,
    )


def _score_noise(
    with_dark: NDArray[np.float64],
    orthonormal: NDArray[np.float64],
    weight: NDArray[np.float64],
    gain: float,
    regions: NDArray[np.int64],
    count: NDArray[np.int64],
) -> NDArray[np.float32]:
    """See `Model.score_noise`."""
    out = np.empty((len(with_dark), len(count)), dtype=np.float32)
    for region, n in enumerate(count):
        some = with_dark[:-1, (regions.ravel() == region) & (weight > 0)]
        form = some @ some.T / n
        power = gain * ((orthonormal @ form) * orthonormal).sum(axis=1) * weight**2
        out[:, region] = with_dark @ power
    return out


def _regions(detector: tuple[int, int]) -> tuple[NDArray[np.int64], int]:
    """Region of each detector pixel, and the number of regions."""
    along = [np.arange(n) * min(N_REGIONS, n) // n for n in detector]
    n = [min(N_REGIONS, size) for size in detector]
    return along[0][:, None] * n[1] + along[1], n[0] * n[1]
