"""First look at a scan for its low-rank model: noise of bins, and directions that stand out of it.

The directions are found in bins of detector pixels, from the covariance of each pattern with the
mean of the 3 x 3 patterns around it, of which it is one itself: noise counts there with a quarter
of its power, and what changes from position to position counts, too. The theory of random matrices
says how far noise reaches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import Binning
from .blas import matmul
from .blocks import Run, tiles
from .noise import Noise
from .shrinkage import noise_edge

MAX_DIRECTIONS = 100
"""Largest number of directions. Memory and time grow with it."""

MORE_DIRECTIONS = 1.3
"""Directions that are looked at, for each that stands out of noise. Those behind the edge may still
hold structure; most go later, when they are known at the full resolution."""

DARK_SHARE = 0.02
"""Pixels count as at least this share of the mean brightness. Without it, the noise of pixels that
are nearly always empty would have the weight of all others."""

_COVARIANCE_TILE = 256


def smooth_along(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of each position ``(Ry, n)`` with its two neighbours, weights 1, 2, 1; 0 outside."""
    out = 0.5 * row
    out[1:] += 0.25 * row[:-1]
    out[:-1] += 0.25 * row[1:]
    return out


class Sums:
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


class Camera(NamedTuple):
    """The noise of pixels and bins, in the unit of the bins."""

    gain: float
    bin_gain: float
    offset: float
    pixel: NDArray[np.float64]
    """Mean of each pixel without the offset, at least a floor; ``(Qx Qy,)``."""
    bin: NDArray[np.float64]
    """The same of each bin."""


def find_camera(
    bins: Binning,
    noise: Noise | None,
    mean: NDArray[np.float64],
    bin_mean: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> Camera:
    """Noise of pixels and bins, from their means and the differences of neighbours."""
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
        return Camera(gain, gain, offset, pixel, binned)
    gain = noise.gain / bins.unit
    # Grains raise the differences of neighbours; noise that pixels share raises those of most bins.
    shared = float(np.quantile(variance / binned, 0.25))
    return Camera(gain, max(gain, shared), offset, pixel, binned)


def binned_basis(
    covariance: NDArray[np.float64],
    bins: Binning,
    camera: Camera,
    n_positions: int,
    rank: int | None,
) -> NDArray[np.float64]:
    """Orthonormal directions ``(bins, rank)`` in units of noise. Changes the covariance."""
    n_bins = len(bins.pixels)
    scale = 1 / np.sqrt(camera.bin_gain * camera.bin)
    covariance *= scale[:, None] * scale / n_positions
    level, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if rank is None:
        edge = noise_edge(n_positions, n_bins)
        # Most eigenvalues are noise. Unit noise has a quarter of its power here.
        edge *= max(1.0, float(np.median(level)) / 0.25)
        rank = int(MORE_DIRECTIONS * (level > edge).sum())
    rank = min(max(rank, 1), MAX_DIRECTIONS, n_bins, n_positions)
    return np.ascontiguousarray(vectors[:, ::-1][:, :rank])
