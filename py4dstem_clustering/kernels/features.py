"""Low-rank features of diffraction patterns, with noise of standard deviation 1.

Grains differ in few directions of the space of patterns. These directions are found from the
covariance of each pattern with its diagonal neighbours. Independent noise has mean zero there: the
eigenvalues of noise scatter evenly about zero, and the most negative one shows how far. So no noise
is taken for structure, and a camera that lags along either axis of the scan adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from . import binning
from .binning import Binning
from .blas import matmul
from .blocks import (
    MemoryNeed,
    Report,
    iterate_blocks,
    of_each,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)
from .kept_rows import KEPT_BYTES, KeptRows
from .lost import bridge
from .moments import Moments

MAX_RANK = 60
"""Largest number of features, more than the grains of a scan differ in. The memory and the time of
the merging grow with it."""

HIDDEN_BEAM = 0.7
"""Unevenness on rings about the centre of inversion, relative to that about the brightest place,
below which the direct beam counts as hidden. With a beam stop it is 0.5, without one 0.8 to 1.1."""

MAX_ISOTROPIC = 0.65
"""Noise along one direction, relative to that along both axes, below which it is taken. For the
feature in which twin lamellae differ it is mostly 0.1 to 0.6, for those of foils with bend
contours 0.6 to 1. A larger value makes the features of bent crystals count more."""

_ALONG = [
    (dx, dy)
    for dx in range(5)
    for dy in range(-4, 5)
    if (dx, dy) > (0, 0) and np.hypot(dx, dy) < 4.3 and np.gcd(dx, dy) == 1
]
"""Directions along which noise is measured, as steps ``(dx, dy)`` to other scan positions."""

MAX_RADIAL_RANK = 6
"""Largest number of features of the radial profile. More of them take more memory."""

_MIN_PAIRS = 100
"""Pairs of positions from which on the noise along one direction is known well enough."""

_ROWS_AT_ONCE = 32
"""Rows of the scan whose features are one step of the progress."""


class Features(NamedTuple):
    """Features of every scan position."""

    values: NDArray[np.float32]
    """``(Rx, Ry, rank)``, with noise of standard deviation 1."""
    radial: NDArray[np.float32]
    """Features ``(Rx, Ry, n)`` of the radial profile alone, with noise of standard deviation 1."""
    mean: NDArray[np.float64]
    """Mean of each bin of detector pixels."""
    variance: NDArray[np.float64]
    """Variance of the noise of each bin."""
    pixels: NDArray[np.float32]
    """Number of detector pixels in each bin."""
    directions: NDArray[np.float32]
    """Pattern ``(bins, rank)`` that one unit of each feature stands for; a bin is in units of the
    standard deviation of its noise in one pattern."""
    bin_grid: NDArray[np.int64]
    """Row and column ``(bins, 2)`` of each bin on the detector."""
    lost: NDArray[np.bool_]
    """Positions ``(Rx, Ry)`` whose frames are lost, see `lost.py`."""
    bridged: NDArray[np.bool_]
    """Lost positions with features between those on both sides; those of others are 0."""


def find_centre(mean: NDArray[Any]) -> tuple[float, float]:
    """Centre of the direct beam of a mean pattern.

    It is the centroid about the brightest place. A beam stop may hide the direct beam, and a
    reflection may be the brightest place. The centre is then that of the inversion which maps the
    pattern onto itself best, if the pattern is far more even on rings about it.
    """
    beam, inversion = _brightest_spot(mean), _inversion_centre(mean)
    hidden = _unevenness(mean, inversion) < HIDDEN_BEAM * _unevenness(mean, beam)
    return inversion if hidden else beam


def _brightest_spot(mean: NDArray[Any]) -> tuple[float, float]:
    """Centroid about the brightest place."""
    size = max(1.0, min(mean.shape) / 64)
    blurred = gaussian_filter(mean - np.median(mean), size)
    u, v = np.indices(mean.shape)
    top = np.unravel_index(blurred.argmax(), mean.shape)
    near = np.hypot(u - top[0], v - top[1]) <= max(3.0, min(mean.shape) / 16)
    weight = np.maximum(blurred, 0) * near
    if weight.sum() == 0:
        return (mean.shape[0] - 1) / 2, (mean.shape[1] - 1) / 2
    return float((weight * u).sum() / weight.sum()), float((weight * v).sum() / weight.sum())


def _inversion_centre(mean: NDArray[Any]) -> tuple[float, float]:
    """Centre, to half a pixel, about which a pattern and its inverse agree best.

    At least half of the pattern must overlap with its inverse.
    """
    root = np.sqrt(np.maximum(gaussian_filter(mean, max(1.0, min(mean.shape) / 64)), 0))
    one = np.ones_like(root)
    product, power, overlap = (
        fftconvolve(a, b) for a, b in ((root, root), (root**2, one), (one, one))
    )
    agreement = np.where(overlap >= root.size / 2, product / np.maximum(power, 1e-12), 0)
    row, column = np.unravel_index(int(agreement.argmax()), agreement.shape)
    return float(row) / 2, float(column) / 2


def _unevenness(mean: NDArray[Any], centre: tuple[float, float]) -> float:
    """Mean deviation of the roots of pixels from the median of their ring."""
    root = np.sqrt(np.maximum(mean, 0)).ravel()
    u, v = np.indices(mean.shape)
    ring = np.hypot(u - centre[0], v - centre[1]).round().astype(int).ravel()
    order = np.argsort(ring, kind="stable")
    rings = np.split(root[order], np.flatnonzero(np.diff(ring[order])) + 1)
    return float(sum(np.abs(values - np.median(values)).sum() for values in rings)) / root.size


def nuisances(
    u: NDArray[Any], v: NDArray[Any], scale: NDArray[Any], width: float
) -> NDArray[np.float64]:
    """Orthonormal basis ``(pixels, n)`` of the changes of a pattern that do not come from grains.

    These are any radial profile (diffuse rings, thickness, an offset), and any profile times the
    cosine or sine of the azimuth (rings and direct beam that descan has moved). `u` and `v` are the
    places of the pixels from the centre, `scale` is the factor of each pixel, and `width` is the
    step of the profiles in pixels.
    """
    profile = _profiles(u, v, width)
    bases = [profile]
    # With few pixels, the second kind would take most of the differences between grains.
    if 6 * 3 * profile.shape[1] <= len(profile):
        far = np.maximum(np.hypot(u, v), 1e-9)
        bases += [profile * (u / far)[:, None], profile * (v / far)[:, None]]
    return _orthonormal(np.concatenate(bases, axis=1) * scale[:, None])


def radial_profiles(
    u: NDArray[Any], v: NDArray[Any], scale: NDArray[Any], width: float
) -> NDArray[np.float64]:
    """Orthonormal basis ``(pixels, n)`` of all radial profiles; arguments as in `nuisances`."""
    return _orthonormal(_profiles(u, v, width) * scale[:, None])


def _profiles(u: NDArray[Any], v: NDArray[Any], width: float) -> NDArray[np.float64]:
    """Profiles ``(pixels, n)`` that are 1 on one ring and fall to 0 on the next ones."""
    radius = np.hypot(u, v) / width
    inner = radius.astype(int)
    part = radius - inner
    rows = np.arange(radius.size)
    profile = np.zeros((radius.size, inner.max() + 2))
    profile[rows, inner] = 1 - part
    profile[rows, inner + 1] = part
    return profile


def _orthonormal(basis: NDArray[Any]) -> NDArray[np.float64]:
    left, size, _ = np.linalg.svd(basis, full_matrices=False)
    return left[:, size > 1e-6 * size[0]]


def noise_of_neighbours(
    values: NDArray[Any], lost: NDArray[np.bool_] | None = None, n_jobs: int | None = 1
) -> NDArray[np.float64]:
    """Standard deviation of the noise of maps ``(Rx, Ry, n)``, from neighbours; robust.

    Neighbours along both axes of the scan differ by noise, but where most positions lie near a
    border, as in narrow lamellae, they differ by more. The direction in which a map changes least
    then gives its noise. Positions that are `lost` ``(Rx, Ry)`` do not count.
    """
    n = values.shape[2]
    noise = np.ones(n)
    there = np.ones(values.shape[:2], dtype=bool) if lost is None else ~lost
    pairs = there[1:] & there[:-1], there[:, 1:] & there[:, :-1]
    along = _pairs_along(there)

    def measure(k: int) -> None:
        field = np.ascontiguousarray(values[..., k])
        differences = np.concatenate(
            [_where(np.diff(field, axis=axis), pairs[axis]) for axis in (0, 1)]
        )
        if differences.size:
            found = np.median(np.abs(differences)) / 0.6745 / np.sqrt(2)
            # The median is zero where most of the scan is empty.
            noise[k] = found if found > 0 else max(differences.std() / np.sqrt(2), 0)
            noise[k] = _noise_along(field, along, noise[k])

    with workers(n_jobs) as run:
        run(measure, range(n))
    noise[noise == 0] = 1
    return noise


def _pairs_along(there: NDArray[np.bool_]) -> list[tuple[Any, Any, NDArray[np.bool_]]]:
    """For each direction with enough pairs: index of the first positions, of the second, which."""
    found = []
    nx, ny = there.shape
    for dx, dy in _ALONG:
        if dx >= nx or abs(dy) >= ny:
            continue
        here = np.s_[: nx - dx, max(0, -dy) : ny - max(0, dy)]
        beyond = np.s_[dx:, max(0, dy) : ny + min(0, dy)]
        both = there[here] & there[beyond]
        if both.sum() >= _MIN_PAIRS:
            found.append((here, beyond, both))
    return found


def _where(values: NDArray[Any], which: NDArray[np.bool_]) -> NDArray[Any]:
    """``values[which]``; all of them in a fraction of the time."""
    return values.ravel() if which.all() else values[which]


def _noise_along(
    field: NDArray[Any], along: list[tuple[Any, Any, NDArray[np.bool_]]], noise: float
) -> float:
    """Noise of a map along the direction in which it changes least, if it is clearly less.

    Else `noise`, that along both axes. `along` is from `_pairs_along`.
    """
    limit = MAX_ISOTROPIC * noise
    least = np.inf
    highest = limit * 0.6745 * np.sqrt(2) * (1 + 1e-5)  # a little more, for rounding
    for here, beyond, both in along:
        difference = _where(np.abs(field[here] - field[beyond]), both)
        # The median is not below `highest`; to count takes a fraction of its time.
        if 2 * np.count_nonzero(difference < highest) < difference.size:
            continue
        median = float(np.median(difference))
        if median > 0:
            least, highest = median / 0.6745 / np.sqrt(2), median
    return least if least < limit else noise


def features_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `features_core` takes beside the features."""
    ry, qx, qy = data.shape[1:]
    n_bins = min(binning.MAX_BINS, qx * qy)
    binned = 4 * ry * n_bins
    matrices = 6 * 8 * n_bins**2
    sums = 8 * len(tiles(ry)) * qx * qy
    fixed = matrices + 10 * binned + 2 * row_need(data) + scratch_need(data, n_jobs, 64, 2.5)
    # Rows in bins, their neighbours, and what is kept of them; sums of each row in float64.
    of_bins = 3 * binned + 24 * n_bins
    return MemoryNeed(fixed, 2 * (row_need(data) + sums) + of_bins)


def features_core(
    data: Any,
    *,
    q_mask: NDArray[np.bool_] | None,
    rank: int | None,
    centre: tuple[float, float] | None,
    n_jobs: int | None,
    report: Report,
    shifts: NDArray[np.int64] | None = None,
    n_rows: int | None = None,
    bin_blocks: BinBlocks | None = None,
) -> Features:
    """Features of every pattern; with `rank` None, as many as eigenvalues lie above the noise.

    `centre` is that of the direct beam, detector pixels; None finds it. Hot pixels do not count.
    With whole `shifts` ``(Rx, Ry, 2)`` each pattern is moved by so many pixels first, its border
    repeated. Reads the data once and keeps them binned, in memory or, with `n_rows`, in a temporary
    file. If there is no room for that file, the data are read twice. `bin_blocks` reads and bins
    the scan; None does it here.
    """
    rx, ry, qx, qy = data.shape
    bins = Binning(data, q_mask)
    moments = Moments((rx, ry), len(bins.pixels))
    total = np.zeros(qx * qy)
    lost = np.zeros((rx, ry), dtype=bool)

    if bin_blocks is None:
        bin_blocks = partial(bin_blocks_here, data, n_jobs=n_jobs, n_rows=n_rows)
    with (
        workers(n_jobs) as run,
        # A limit of memory holds for the blocks; what is kept goes to a file then.
        KeptRows(KEPT_BYTES if n_rows is None else 0, bins.holds_counts(data.dtype)) as kept,
    ):
        for found in bin_blocks(bins, shifts, centre is None):
            some = slice(found.start, found.start + len(found.binned))
            lost[some] = found.lost
            for part in found.sums:
                total += part
            moments.add(found.binned, found.lost, run)
            for row in of_each(run, kept.pack, found.binned):
                kept.add_packed(row)
            report(len(found.binned))

        if centre is None:
            centre = find_centre(np.where(bins.hot, 0, total.reshape(qx, qy)) / (rx * ry))
        mean, variance = moments.mean(), moments.variance()
        basis, weights = _directions(moments, bins, centre, rank)
        values = np.empty((rx, ry, weights.shape[1]), dtype=np.float32)

        def project(i: int) -> None:
            values[i] = matmul(kept.read(i), weights)

        if kept.is_complete:
            for some in tiles(rx, _ROWS_AT_ONCE):
                run(project, range(some.start, some.stop))
                report(some.stop - some.start)
        else:
            for found in bin_blocks(bins, shifts, False):
                for i, row in enumerate(found.binned, found.start):
                    values[i] = matmul(row, weights)
                report(len(found.binned))

    values, bridged = bridge(values, lost)
    noise = noise_of_neighbours(values, lost, n_jobs)
    rank = basis.shape[1]
    scaled = np.empty((rx, ry, rank), dtype=np.float32)
    radial = np.empty((rx, ry, values.shape[2] - rank), dtype=np.float32)
    for row, profile, found in zip(scaled, radial, values, strict=True):
        row[:] = found[:, :rank] / noise[:rank]
        profile[:] = found[:, rank:] / noise[rank:]
    return Features(
        values=scaled,
        radial=radial,
        mean=mean * bins.unit + bins.zero * bins.pixels,
        variance=variance * bins.unit**2,
        pixels=bins.pixels,
        directions=(basis * noise[:rank]).astype(np.float32),
        bin_grid=bins.grid,
        lost=lost,
        bridged=bridged,
    )


class BinnedRows(NamedTuple):
    """Some rows of a scan in bins."""

    start: int
    """Number of the first row."""
    binned: NDArray[np.float32]
    """``(rows, Ry, bins)``"""
    lost: NDArray[np.bool_]
    """Positions ``(rows, Ry)`` whose frames are lost."""
    sums: NDArray[np.float64]
    """Sums of groups of patterns ``(n, Qx Qy)``, to be added in this order; empty if not wanted."""


BinBlocks = Callable[[Binning, "NDArray[np.int64] | None", bool], Iterator[BinnedRows]]
"""Yields all rows of a scan in bins, in their order: ``bin_blocks(bins, shifts, with_sums)``."""


def bin_blocks_here(
    data: Any,
    bins: Binning,
    shifts: NDArray[np.int64] | None,
    with_sums: bool,
    *,
    n_jobs: int | None,
    n_rows: int | None,
) -> Iterator[BinnedRows]:
    """Read and bin a scan in this process; see `BinBlocks`."""
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows, packed=True):
            moves = None if shifts is None else shifts[start : start + len(rows)]
            yield BinnedRows(start, *bins.bin_and_sum(rows, moves, run, with_sums))


def _directions(
    moments: Moments, bins: Binning, centre: tuple[float, float], rank: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Basis ``(bins, rank)``, and matrix ``(bins, rank + n)`` to features and those of the profile.

    The basis is in units of the noise of each bin; the matrix takes binned patterns.

    The covariance of `moments` is changed in place, to save memory.
    """
    variance, covariance = moments.variance(), moments.covariance
    n_bins = len(variance)
    floor = 0.02 * variance.mean()
    scale = 1 / np.sqrt(np.maximum(variance, floor)) if floor > 0 else np.ones(n_bins)
    # A bin is the sum of its pixels, so an even ring grows with the number of pixels in a bin.
    rings = nuisances(*bins.places(centre), scale * bins.pixels, float(bins.factor))

    covariance *= scale[:, None] * scale / moments.n_positions
    covariance += covariance.T
    profiles = radial_profiles(*bins.places(centre), scale * bins.pixels, float(bins.factor))
    level, vectors = np.linalg.eigh(profiles.T @ covariance @ profiles)
    n_radial = min(max(int((level > -level[0]).sum()), 1), MAX_RADIAL_RANK)
    radial = profiles @ vectors[:, ::-1][:, :n_radial]
    covariance -= rings @ (rings.T @ covariance)
    covariance -= (covariance @ rings) @ rings.T
    level, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if rank is None:
        rank = int((level > -level[0]).sum())
    rank = min(max(rank, 1), MAX_RANK, n_bins)
    basis = vectors[:, ::-1][:, :rank]
    basis -= rings @ (rings.T @ basis)
    directions = np.concatenate([basis, radial], axis=1)
    return basis, to_float32(directions * scale[:, None], "a pattern")
