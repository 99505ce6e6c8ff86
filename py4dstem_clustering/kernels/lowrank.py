"""Low-rank model of a scan: the few patterns that all its patterns are mixtures of.

Patterns are divided by the root of their noise. What differs between positions then lies in a few
directions, and noise lies evenly in all. They are found in bins of detector pixels
(`lowrank_basis`). Then, twice:

1. Each pattern is measured along the directions (`lowrank_fit`). In windows of the scan, these
   scores change in fewer directions still; what does not stand out of noise there is removed
   (`lowrank_windows`, with `shrinkage`).
2. Each detector pixel is fitted by the scores of all positions, which gives directions at the full
   resolution. In windows of the detector, what does not stand out of noise is removed.

The first time scores are those of bins, the second time those of the directions of the first time.
Counting noise of bright disks is much larger than that of the mean pattern; it is known in each
window from the model itself, and taken into account.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import MAX_BINS, Binning
from .blas import matmul
from .blocks import MemoryNeed, Report, iterate_blocks, row_need, scratch_need, tiles, workers
from .lag import Lag
from .lowrank_basis import MAX_DIRECTIONS, Sums, binned_basis, find_camera
from .lowrank_fit import Reader, View
from .lowrank_windows import N_REGIONS, SCAN_STEP, SCAN_WINDOW, Regions, shrink_directions
from .noise import Noise
from .unlagged import search_lag

_CERTAIN = 0.5
"""Power of a direction of the full resolution, in units of the root of positions times bins, from
which it stays. Noise alone hides what is below 1 in bins; pixels near each other show more."""

_NOISE_FACTOR = 1.05
"""Error of results over what is counted of it: structure outside the directions is not. It was 0.96
to 1.19 in simulated scans of six kinds (seed 100)."""


class Model(NamedTuple):
    """Directions of a scan; a pattern is ``scores @ directions``, in the unit of `bins`."""

    bins: Binning
    scores: NDArray[np.float32]
    """``(Rx, Ry, rank)``"""
    directions: NDArray[np.float32]
    """``(rank, Qx Qy)``"""
    in_bins: NDArray[np.float32]
    """`directions` in bins ``(rank, bins)``."""
    noise: NDArray[np.float32]
    """Noise of a pixel of the model in each region of the detector ``(Rx, Ry, n, m)``."""
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
    matrices = 6 * 8 * n_bins**2
    row = 4 * ry * qx * qy
    kept = (SCAN_WINDOW + SCAN_STEP) * row_need(data)
    maps = 4 * rx * ry * (2 * MAX_DIRECTIONS + N_REGIONS**2)
    fits = 4 * MAX_DIRECTIONS * (8 * qx * qy + 3 * MAX_DIRECTIONS**2)
    fixed = max(matrices, maps + kept + row + fits) + scratch_need(data, n_jobs, 64, 3.5)
    return MemoryNeed(fixed, 2 * row_need(data) + 8 * ry * n_bins + 8 * len(tiles(ry)) * qx * qy)


def model_core(
    data: Any,
    *,
    q_mask: NDArray[np.bool_] | None,
    rank: int | None,
    noise: Noise | None,
    shifts: NDArray[np.int64] | None,
    local: bool,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
    seek_lag: bool = False,
) -> Model | Lag:
    """Find the model of a scan; with `rank` None, of as many directions as stand out of noise.

    `noise` is that of the camera; None finds it from neighbours, roughly. With `local` false,
    scores are not compared with those of neighbours. Reads the data three times. With `seek_lag`,
    a lag of the camera that is certain is returned instead; undo it and call again.
    """
    scan, n_positions = data.shape[:2], data.shape[0] * data.shape[1]
    bins = Binning(data, q_mask)
    total = np.zeros(bins.hot.size)
    sums = Sums(len(bins.pixels))
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            for row in bins.bin_rows(rows, _part(shifts, start, len(rows)), run, total):
                sums.add(row, run)
            report(len(rows))
        camera = find_camera(
            bins, noise, total / n_positions, sums.mean(n_positions), sums.variance(scan)
        )
        found = binned_basis(sums.covariance, bins, camera, n_positions, rank)
        del sums
        reader = Reader(data, bins, shifts, local, run, report, n_rows)

        scale = np.sqrt(camera.bin_gain * camera.bin)
        view = View(found / scale[:, None], (found * scale[:, None]).T, True)
        fit = reader.fit(view, camera.bin_gain, camera.offset * bins.pixels, keep=seek_lag)
        lag = None if fit.measured is None else search_lag(fit.measured)
        if lag is not None:
            return lag
        fit = fit._replace(measured=None)
        weight = 1 / np.sqrt(camera.gain * camera.pixel)
        weight[bins.hot.ravel()] = 0
        kept, _ = shrink_directions(fit, camera, weight, bins, run, None)
        level, vectors = np.linalg.eigh(kept @ kept.T)
        least = 1e-10 * level[-1]
        if rank is None:
            least = max(least, _CERTAIN * np.sqrt(n_positions * len(bins.pixels)))
        enough = level >= min(least, level[-1])
        axes = (vectors[:, enough] / np.sqrt(np.maximum(level[enough], 1e-30))).T @ kept
        del fit  # its maps and the next ones may not fit in memory together

        regions = Regions(bins)
        with np.errstate(divide="ignore"):
            patterns = np.where(weight > 0, axes / weight, 0)
        view = View((axes * weight).T, patterns, False)
        forms = regions.forms(patterns)
        fit = reader.fit(view, camera.gain, np.full(len(weight), camera.offset), forms)
        kept, of_directions = shrink_directions(fit, camera, weight, bins, run, regions)

    with np.errstate(divide="ignore", invalid="ignore"):
        directions = np.where(weight > 0, kept / weight, fit.patterns).astype(np.float32)
    k = len(directions)
    power = fit.power
    for rows_of_scores, out in zip(fit.scores, power, strict=True):
        turned = matmul(rows_of_scores, of_directions).swapaxes(0, 1)
        out += np.maximum(matmul(turned, rows_of_scores[:, :, None])[..., 0], 0)
    np.sqrt(power, out=power)
    power *= np.float32(_NOISE_FACTOR * bins.unit)
    binned = np.empty((k, len(bins.pixels)), dtype=np.float32)
    bins.bin(directions, binned)
    return Model(
        bins=bins,
        scores=fit.scores,
        directions=np.ascontiguousarray(directions),
        in_bins=binned,
        noise=power.reshape(*scan, *regions.shape),
        gain=camera.gain,
        offset=camera.offset,
        bin_gain=camera.bin_gain,
        mean=camera.bin,
    )


def _part(shifts: NDArray[np.int64] | None, start: int, n: int) -> NDArray[np.int64] | None:
    return None if shifts is None else shifts[start : start + n]
