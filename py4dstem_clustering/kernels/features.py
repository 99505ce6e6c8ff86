"""Low-rank features of diffraction patterns, with noise of standard deviation 1.

What grains differ in lies in few directions of the space of patterns. They are found from the
covariance of each pattern with its diagonal neighbours, in which independent noise has mean zero:
its eigenvalues scatter evenly about zero, and the most negative one says how far. So no noise is
taken for structure, and a camera that lags along either axis of the scan adds nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from .blas import matmul, row_dots
from .blocks import (
    MemoryNeed,
    Report,
    is_small_integer,
    iterate_blocks,
    read_rows,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)

MAX_BINS = 1300
"""Most binned detector pixels; the covariance is a matrix of this size."""

MAX_RANK = 60
"""Most features: more than the grains of a scan differ in."""

SMOOTH = 1.5
"""Standard deviation of the weights of the diagonal neighbours, scan positions."""

REACH = 2
"""Diagonal neighbours out to this many positions along either axis."""

FAR_ZERO = 200.0
"""Dark level, in standard deviations of a pixel, above which it is taken off first: products in
float32 would lose what varies."""

USUAL = (1e-6, 1e6)
"""Largest values of a scan whose products float32 holds as they are."""

LARGEST = 1e10
"""No pixel counts more, in units of those: its square would drown all others."""


class Features(NamedTuple):
    """Features of every scan position."""

    values: NDArray[Any]
    """``(Rx, Ry, rank)``, float32, noise of standard deviation 1."""
    brightness: NDArray[Any]
    """Projection on the mean radial profile ``(Rx, Ry)``, in the same unit."""
    mean: NDArray[Any]
    """Mean of each binned pixel."""
    variance: NDArray[Any]
    """Variance of the noise of each binned pixel."""
    pixels: NDArray[Any]
    """Number of detector pixels in each."""


def bin_matrix(n: int, n_bins: int) -> NDArray[Any]:
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


def find_centre(mean: NDArray[Any]) -> tuple[float, float]:
    """Centre of the direct beam of a mean pattern: centroid about its brightest place."""
    size = max(1.0, min(mean.shape) / 64)
    blurred = gaussian_filter(mean - np.median(mean), size)
    u, v = np.indices(mean.shape)
    top = np.unravel_index(blurred.argmax(), mean.shape)
    near = np.hypot(u - top[0], v - top[1]) <= max(3.0, min(mean.shape) / 16)
    weight = np.maximum(blurred, 0) * near
    if weight.sum() == 0:
        return (mean.shape[0] - 1) / 2, (mean.shape[1] - 1) / 2
    return float((weight * u).sum() / weight.sum()), float((weight * v).sum() / weight.sum())


def find_hot_pixels(data: Any) -> NDArray[Any]:
    """Pixels that shine alone wherever the probe is, ``(Qx, Qy)`` bool.

    Known in the mean patterns of some rows: even in the row that has least of it, where the Bragg
    disks of most grains are missing, three times as bright as the brightest of its eight neighbours
    is on average, and no less than a fiftieth of the direct beam.
    """
    rx, _, qx, qy = data.shape
    means = []
    for row in np.unique(np.linspace(0, rx - 1, min(rx, 8)).astype(int)):
        patterns = read_rows(data, row, row + 1)[0].reshape(-1, qx * qy)
        present = np.isfinite(patterns)
        total = patterns.sum(axis=0, dtype=np.float64, where=present)
        means.append((total / np.maximum(present.sum(axis=0), 1)).reshape(qx, qy))
    dark = np.quantile(means, 0.01)
    least, mean = np.min(means, axis=0) - dark, np.mean(means, axis=0) - dark
    around = maximum_filter(mean, footprint=[[1, 1, 1], [1, 0, 1], [1, 1, 1]], mode="constant")
    return (least > 3 * around) & (least > 0.02 * least.max())


def zero_and_unit(data: Any) -> tuple[float, float]:
    """What to take off all values of a scan, and to divide them by; 0 and 1 as a rule.

    One pair for all patterns, since features tell their strengths apart. From a few patterns all
    over the scan.
    """
    columns = np.unique(np.linspace(0, data.shape[1] - 1, 6).astype(int))
    rows = np.unique(np.linspace(0, data.shape[0] - 1, 3).astype(int))
    patterns = np.concatenate([read_rows(data, row, row + 1)[0, columns] for row in rows])
    patterns = patterns.reshape(len(patterns), -1).astype(np.float64)
    present = np.isfinite(patterns)
    low, high = (
        extreme(patterns, axis=1, where=present, initial=start)
        for extreme, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    told = high > low  # neither lost nor flat
    if not told.any():
        return 0.0, 1.0
    patterns, present = patterns[told], present[told]
    count = present.sum(axis=0)
    known = count > 0

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        return values.sum(axis=0, where=present)[known] / count[known]

    center = np.zeros(len(known))
    center[known] = mean(patterns)
    with np.errstate(invalid="ignore"):
        spread = float(np.median(mean(np.abs(patterns - center))))
    dark = float(np.quantile(center[known], 0.01))
    zero = dark if abs(dark) > FAR_ZERO * spread > 0 else 0.0
    peak = max(high[told].max() - zero, zero - low[told].min())
    usual = USUAL[0] <= peak <= USUAL[1]
    return zero, 1.0 if usual else float(2.0 ** np.round(np.log2(peak)))


def in_unit(patterns: NDArray[Any], zero: float, unit: float) -> NDArray[Any]:
    """Copy patterns ``(n, pixels)`` to float32, less `zero` and in `unit`.

    A missing pixel (NaN or infinite) counts as the mean of its pattern.
    """
    usual = (zero, unit) == (0, 1)
    if usual and is_small_integer(patterns.dtype):
        return patterns.astype(np.float32)
    # float32 holds 7 digits; the types that hold more go through float64.
    narrow = usual and patterns.dtype.kind == "f" and patterns.itemsize <= 4
    x = patterns.astype(np.float32 if narrow else np.float64)
    if not usual:
        x -= zero
        x /= unit
    # The sum of squares tells at once where all is well.
    for i in np.flatnonzero(~(row_dots(x, x) <= LARGEST**2)):
        pattern = x[i].astype(np.float64)
        present = np.isfinite(pattern)
        np.clip(pattern, -LARGEST, LARGEST, out=pattern)
        pattern[~present] = pattern[present].mean() if present.any() else 0
        x[i] = pattern
    return x.astype(np.float32, copy=False)


def nuisances(u: NDArray[Any], v: NDArray[Any], scale: NDArray[Any], width: float) -> NDArray[Any]:
    """Orthonormal basis ``(pixels, n)`` of what tells nothing of grains.

    Any radial profile: diffuse rings, their thickness, an offset. And any profile times the cosine
    or sine of the azimuth: rings and direct beam that descan has moved. `u` and `v` are places of
    the pixels about the centre, `scale` what pixels are multiplied with.
    """
    radius = np.hypot(u, v) / width
    inner = radius.astype(int)
    part = radius - inner
    rows = np.arange(radius.size)
    profile = np.zeros((radius.size, inner.max() + 2))
    profile[rows, inner] = 1 - part
    profile[rows, inner + 1] = part
    bases = [profile]
    # Where the mask leaves little, keep it for the grains.
    if 6 * 3 * profile.shape[1] <= radius.size:
        far = np.maximum(radius * width, 1e-9)
        bases += [profile * (u / far)[:, None], profile * (v / far)[:, None]]
    basis = np.concatenate(bases, axis=1) * scale[:, None]
    left, size, _ = np.linalg.svd(basis, full_matrices=False)
    return left[:, size > 1e-6 * size[0]]


def offsets(scan_shape: tuple[int, int]) -> list[tuple[int, int, float]]:
    """One of each opposite pair of diagonal neighbours ``(dRx, dRy)``, and its weight.

    A scan that is a line has no diagonals; its neighbours along the line must do.
    """
    line = min(scan_shape) == 1
    found = []
    for dx in range(REACH + 1):
        for dy in range(-REACH, REACH + 1):
            forward = (dx, dy) > (0, 0)
            if forward and (line or (dx and dy)):
                found.append((dx, dy, float(np.exp(-0.5 * (dx**2 + dy**2) / SMOOTH**2))))
    total = 2 * sum(weight for *_, weight in found)
    return [(dx, dy, weight / total) for dx, dy, weight in found]


def noise_of_neighbours(values: NDArray[Any]) -> NDArray[Any]:
    """Standard deviation of the noise of maps ``(Rx, Ry, n)``, from neighbours; robust."""
    n = values.shape[2]
    noise = np.ones(n)
    for k in range(n):
        field = values[..., k]
        differences = np.concatenate([np.diff(field, axis=axis).ravel() for axis in (0, 1)])
        if differences.size:
            found = np.median(np.abs(differences)) / 0.6745 / np.sqrt(2)
            # Where most of the scan is empty the median says nothing.
            noise[k] = found if found > 0 else max(differences.std() / np.sqrt(2), 0)
    noise[noise == 0] = 1
    return noise


def features_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `features_core` takes beside the features."""
    ry, qx, qy = data.shape[1:]
    binned = 4 * ry * min(MAX_BINS, qx * qy)
    matrices = 6 * 8 * min(MAX_BINS, qx * qy) ** 2
    sums = 8 * len(tiles(ry)) * qx * qy
    fixed = matrices + 10 * binned + 2 * row_need(data) + scratch_need(data, n_jobs, 64, 2.5)
    return MemoryNeed(fixed, 2 * (row_need(data) + binned + sums))


def features_core(
    data: Any,
    *,
    q_mask: NDArray[Any] | None,
    rank: int | None,
    centre: tuple[float, float] | None,
    n_jobs: int | None,
    report: Report,
    shifts: NDArray[Any] | None = None,
    n_rows: int | None = None,
) -> Features:
    """Features of every pattern; `rank` None counts the eigenvalues above the noise.

    `centre` is that of the direct beam, detector pixels; None finds it. Hot pixels do not count.
    With whole `shifts` ``(Rx, Ry, 2)`` each pattern is moved by so many pixels first, its border
    repeated. Reads the data twice.
    """
    rx, ry, qx, qy = data.shape
    hot = find_hot_pixels(data)
    zero, unit = zero_and_unit(data)
    valid = ~hot
    if q_mask is not None and (valid & q_mask).any():
        valid &= q_mask
    elif q_mask is not None:
        valid = q_mask
    factor = bin_factor((qx, qy), int(valid.sum()))
    n_u, n_v = max(1, round(qx / factor)), max(1, round(qy / factor))
    bin_u, bin_v = bin_matrix(qx, n_u), bin_matrix(qy, n_v)
    pixels = (bin_u @ valid @ bin_v.T).ravel()
    inside = np.flatnonzero(pixels)
    pixels = pixels[inside]
    p = len(inside)
    mask = None if valid.all() else valid.astype(np.float32)

    mean_pattern = np.zeros(qx * qy)
    total, squares = np.zeros(p), np.zeros(p)
    covariance = np.zeros((p, p))
    pairs = offsets((rx, ry))
    # recent[-1] is the last binned row, recent[-2] the one before.
    recent: list[NDArray[Any]] = []
    n_pairs = 0

    def binned(
        patterns: NDArray[Any], moves: NDArray[Any] | None, out: NDArray[Any], total: bool
    ) -> NDArray[Any] | None:
        x = in_unit(patterns.reshape(len(patterns), -1), zero, unit)
        if moves is not None:
            x[:, hot.ravel()] = 0  # or they would move with the pattern
        x = x.reshape(-1, qx, qy)
        if moves is not None:
            for i in np.flatnonzero(moves.any(axis=1)):
                u, v = (
                    np.clip(np.arange(n) - s, 0, n - 1)
                    for n, s in zip((qx, qy), moves[i], strict=True)
                )
                x[i] = x[i][np.ix_(u, v)]
        part = x.reshape(len(x), -1).sum(axis=0, dtype=np.float64) if total else None
        if mask is not None:
            x *= mask
        along_both = matmul(bin_u, matmul(x, bin_v.T)).reshape(len(x), -1)
        np.take(along_both, inside, axis=1, out=out, mode="clip")
        return part

    with workers(n_jobs) as run:

        def bin_block(
            start: int, rows: NDArray[Any], totals: bool
        ) -> tuple[NDArray[Any], list[NDArray[Any]]]:
            out = np.empty((len(rows), ry, p), dtype=np.float32)
            pieces = [(i, tile) for i in range(len(rows)) for tile in tiles(ry)]
            parts: dict[int, NDArray[Any]] = {}

            def task(n: int) -> None:
                i, tile = pieces[n]
                moves = None if shifts is None else shifts[start + i, tile]
                parts[n] = binned(rows[i, tile], moves, out[i, tile], totals)

            run(task, range(len(pieces)))
            # To be added in order: the same bits for any block size and any number of threads.
            return out, [parts[n] for n in range(len(pieces))]

        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            block, sums = bin_block(start, rows, totals=centre is None)
            if centre is None:
                for part in sums:
                    mean_pattern += part
            for row in block:
                total += row.sum(axis=0, dtype=np.float64)
                squares += (np.diff(row, axis=0).astype(np.float64) ** 2).sum(axis=0)
                n_pairs += ry - 1
                if recent:
                    squares += ((row - recent[-1]).astype(np.float64) ** 2).sum(axis=0)
                    n_pairs += ry
                near = np.zeros_like(row)
                for dx, dy, weight in pairs:
                    if dx > len(recent):
                        continue
                    other = row if dx == 0 else recent[-dx]
                    here = slice(max(0, dy), ry + min(0, dy))
                    there = slice(max(0, -dy), ry - max(0, dy))
                    near[here] += np.float32(weight) * other[there]

                def multiply(
                    tile: slice, row: NDArray[Any] = row, near: NDArray[Any] = near
                ) -> None:
                    covariance[tile] += matmul(row[:, tile].T, near)

                run(multiply, tiles(p, 256))
                recent = [*recent, row.copy()][-REACH:]
            report(len(rows))

        n = rx * ry
        mean, variance = total / n, squares / (2 * max(n_pairs, 1))
        floor = 0.02 * variance.mean()
        scale = 1 / np.sqrt(np.maximum(variance, floor)) if floor > 0 else np.ones(p)
        if centre is None:
            mean_pattern = np.where(hot, 0, mean_pattern.reshape(qx, qy)) / n
            centre = find_centre(mean_pattern)
        u, v = (m @ np.arange(m.shape[1]) / m.sum(axis=1) for m in (bin_u, bin_v))
        u, v = np.meshgrid(u - centre[0], v - centre[1], indexing="ij")
        # A bin holds what its pixels hold together: uneven bins must not make a ring uneven.
        rings = nuisances(u.ravel()[inside], v.ravel()[inside], scale * pixels, float(factor))

        covariance *= scale[:, None] * scale / n
        covariance += covariance.T
        covariance -= rings @ (rings.T @ covariance)
        covariance -= (covariance @ rings) @ rings.T
        level, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        if rank is None:
            rank = int((level > -level[0]).sum())
        rank = min(max(rank, 1), MAX_RANK, p)
        basis = vectors[:, ::-1][:, :rank]
        basis -= rings @ (rings.T @ basis)
        # The mean radial profile, as a direction.
        profile = rings @ (rings.T @ (mean * scale))
        profile /= max(np.linalg.norm(profile), 1e-30)
        weights = to_float32(
            np.concatenate([basis, profile[:, None]], axis=1) * scale[:, None], "a pattern"
        )
        values = np.empty((rx, ry, rank + 1), dtype=np.float32)
        for start, rows in iterate_blocks(data, copies=2, n_rows=n_rows):
            block, _ = bin_block(start, rows, totals=False)
            for i, row in enumerate(block):
                values[start + i] = matmul(row, weights)
            report(len(rows))

    noise = noise_of_neighbours(values[..., :-1])
    brightness = values[..., -1] / np.float32(np.median(noise))
    scaled = np.empty((rx, ry, rank), dtype=np.float32)
    for row, found in zip(scaled, values, strict=True):
        row[:] = found[:, :-1] / noise
    return Features(
        values=scaled,
        brightness=brightness,
        mean=mean * unit + zero * pixels,
        variance=variance * unit**2,
        pixels=pixels,
    )
