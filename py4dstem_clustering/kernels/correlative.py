"""Correlative filter: average each pattern with those neighbours that look like it.

One pass over the scan with a sliding window of rows. Each pattern is read, blurred and normalised
once; each pair is correlated once; correlations and weighted sums are matrix products over tiles
of neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .blas import matmul, products_of_rows, row_dots
from .blocks import (
    Need,
    Report,
    as_comparable,
    iterate_blocks,
    read_rows,
    row_need,
    scratch_need,
    tiles,
    to_float32,
    workers,
)
from .blur import Blur, blur_matrix

# Columns per matrix product. A tile of T columns meets T + 2 radius neighbours, so small tiles
# waste little and large ones feed BLAS better; 16 is best from radius 2 to 6.
_TILE = 16

_PUBLISHED_RANGE = (0.85, 0.95)

# The sample that an automatic range is taken from: pairs of rows, and positions far apart.
_WINDOWS, _FAR = 12, 480


def footprint(radius: float) -> np.ndarray:
    """Offsets ``(n, 2)`` with ``dx^2 + dy^2 <= (radius + 1/2)^2``, the centre among them."""
    reach = int(radius + 0.5)
    steps = np.arange(-reach, reach + 1)
    dx, dy = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    inside = dx**2 + dy**2 <= (radius + 0.5) ** 2
    return np.stack([dx[inside], dy[inside]], axis=1)


def radial_weight(detector: tuple[int, int], edge: int) -> np.ndarray:
    """``|q - q_mean|^2 / (Nu Nv)``, zero within `edge` pixels of the border of the detector."""
    nu, nv = detector
    u, v = np.ogrid[:nu, :nv]
    weight = ((u - (nu - 1) / 2) ** 2 + (v - (nv - 1) / 2) ** 2) / (nu * nv)
    inside = np.zeros(detector, dtype=bool)
    inside[edge : nu - edge, edge : nv - edge] = True
    return np.where(inside, weight, 0)


# Share of the largest singular value below which a mode of the blur is left out. Noise as strong as
# the pattern in every pixel, blurred by 3, then differs by a millionth of its power.
_LEAST_MODE = 1e-4


class _Modes(NamedTuple):
    """What a blur leaves along one axis, in few numbers; see `_mode_normaliser`."""

    read: np.ndarray
    """From pixels to the modes of the blur, ``(n, modes)``."""
    plain: np.ndarray
    """From these to the modes of the weighted pattern, ``(weighted modes, modes)``."""
    square: np.ndarray
    """The same, times the square of the distance from the middle."""
    one: np.ndarray
    """Weighted modes of a constant."""
    far: np.ndarray
    """Weighted modes of the square of the distance."""


def _modes(n: int, sigma: float, edge: int) -> _Modes:
    matrix = blur_matrix(n, sigma)[edge : n - edge].astype(np.float64)
    square = (np.arange(n) - (n - 1) / 2)[edge : n - edge, None] ** 2
    # A constant and its weight are in the bases exactly, so that a flat pattern leaves nothing.
    _, size, right = np.linalg.svd(matrix, full_matrices=False)
    keep = right[size > _LEAST_MODE * size[0]].T
    read, _ = np.linalg.qr(np.concatenate([np.ones((n, 1)), keep], axis=1))
    blurred = matrix @ read
    far = square * blurred
    both = np.concatenate([blurred, far / square.max()], axis=1)
    left, size, _ = np.linalg.svd(both, full_matrices=False)
    keep = left[:, size > _LEAST_MODE * size[0]]
    basis, _ = np.linalg.qr(np.concatenate([np.ones_like(square), square, keep], axis=1))
    return _Modes(
        read=np.ascontiguousarray(read, dtype=np.float32),
        plain=(basis.T @ blurred).astype(np.float32),
        square=(basis.T @ far).astype(np.float32),
        one=basis.sum(axis=0),
        far=(basis.T @ square)[:, 0],
    )


def _mode_normaliser(
    detector: tuple[int, int], along_u: _Modes, along_v: _Modes
) -> tuple[int, Callable[[np.ndarray, np.ndarray], None]]:
    """As `_normaliser`, for a blur that leaves much fewer numbers than there are pixels.

    A blurred pattern has few modes along each axis, the singular vectors of the blur. The weight is
    a sum of squares along the axes, and takes these to a few more. In an orthonormal basis of them
    all a pattern is short, and dot products are what they are between pixels.
    """
    qx, qy = detector
    read_u, read_v = np.ascontiguousarray(along_u.read.T), along_v.read
    modes_u, modes_v = read_u.shape[0], read_v.shape[1]
    n_u, n_v = len(along_u.one), len(along_v.one)
    # weight * pattern = (square along u, plain along v) + (plain along u, square along v)
    to_v = np.ascontiguousarray(np.concatenate([along_v.plain, along_v.square]).T)
    to_u = [along_u.square / np.float32(qx * qy), along_u.plain / np.float32(qx * qy)]
    one = np.outer(along_u.one, along_v.one).ravel()
    weight = np.outer(along_u.far, along_v.one) + np.outer(along_u.one, along_v.far)
    weight = weight.ravel() / (qx * qy)
    share = (one / (weight @ one)).astype(np.float32)
    weight = weight.astype(np.float32)

    def normalise(patterns: np.ndarray, unit: np.ndarray) -> None:
        n = len(patterns)
        x = as_comparable(patterns, subtract_mean=True)
        x = matmul(x.reshape(n * qx, qy), read_v).reshape(n, qx, modes_v)
        both = np.empty((n, modes_u, modes_v), dtype=np.float32)
        for i in range(n):
            matmul(read_u, x[i], out=both[i])
        both = matmul(both.reshape(-1, modes_v), to_v).reshape(n, modes_u, 2, n_v)
        for i in range(n):
            target = unit[i].reshape(n_u, n_v)
            matmul(to_u[0], both[i, :, 0], out=target)
            matmul(to_u[1], both[i, :, 1], add_to=target)
        _to_unit(unit, share, weight)

    return n_u * n_v, normalise


def _to_unit(x: np.ndarray, share: np.ndarray, weight: np.ndarray) -> None:
    """Take the mean off weighted patterns, and divide by their norm."""
    size = np.sqrt(row_dots(x, x))
    for row, mean in zip(x, row_dots(x, share).astype(np.float32), strict=True):
        row -= mean * weight
    norm = np.sqrt(row_dots(x, x))
    # Contrast below a millionth of the signal is the rounding of float32, not a pattern.
    norm[norm <= 1e-6 * size] = np.inf
    x *= (1 / norm).astype(np.float32)[:, None]


def _normaliser(
    detector: tuple[int, int], sigma: float, edge: int
) -> tuple[int, Callable[[np.ndarray, np.ndarray], None]]:
    """Pixels that are compared, and a function that writes patterns as unit vectors of these."""
    qx, qy = detector
    # Not where the blur leaves some pixels unseen: they would leak into the modes.
    if sigma > 0 and int(4 * sigma + 0.5) >= edge:
        along_u, along_v = (_modes(n, sigma, edge) for n in detector)
        modes = len(along_u.one) * len(along_v.one)
        if 2 * modes <= (qx - 2 * edge) * (qy - 2 * edge):
            return _mode_normaliser(detector, along_u, along_v)
    weight = radial_weight(detector, edge).ravel()
    inside = np.flatnonzero(weight)
    weight = weight[inside].astype(np.float32)
    share = np.full(inside.size, 1 / weight.sum(dtype=np.float64), dtype=np.float32)
    blur = Blur(blur_matrix(qx, sigma), blur_matrix(qy, sigma)) if sigma > 0 else None

    def normalise(patterns: np.ndarray, unit: np.ndarray) -> None:
        # Correlations do not feel a constant; without it a flat pattern is exactly zero.
        x = as_comparable(patterns, subtract_mean=True)
        if blur is not None:
            x = blur(x.reshape(-1, qx, qy)).reshape(len(x), -1)
        x = np.take(x, inside, axis=1)
        np.multiply(x, weight, out=unit)
        _to_unit(unit, share, weight)

    return inside.size, normalise


def auto_range(
    data: Any,
    *,
    sigma: float,
    edge: int,
    n_jobs: int | None,
    report: Report = lambda n: None,
) -> tuple[float, float]:
    """A range of correlations for `correlative_core` that suits the noise of a scan.

    From a sample of positions: `same`, the correlation that one tenth of neighbours exceeds, and
    `other`, the median of positions far apart. The range lies between them, near `same` where
    there is little noise. The noisier the patterns, the nearer to `other`: to lose neighbours of
    the same kind then costs more than to take in some of another.
    """
    rx, ry, qx, qy = data.shape
    n_pixels, normalise = _normaliser((qx, qy), sigma, edge)
    height = min(rx, 2)
    n = min(rx // height, _WINDOWS)
    starts = np.linspace(0, rx - height, n).astype(int)
    columns = np.unique(np.linspace(0, ry - 1, min(ry, _FAR // n)).astype(int))
    near, far, places, done = [], [], [], 0
    with workers(n_jobs) as run:
        for start in starts:
            rows = read_rows(data, start, start + height).reshape(height, ry, -1)
            unit = np.empty((height, ry, n_pixels), dtype=np.float32)

            def prepare(
                task: tuple[int, slice], rows: np.ndarray = rows, unit: np.ndarray = unit
            ) -> None:
                normalise(rows[task], unit[task])

            run(prepare, product(range(height), tiles(ry, _TILE)))
            near += [row_dots(row[1:], row[:-1]) for row in unit]
            near += [row_dots(a, b) for a, b in pairwise(unit)]
            far.append(unit[0, columns])
            places += [(start, column) for column in columns]
            report(int(start) + height - done)
            done = int(start) + height
        near = np.concatenate(near)
        if near.size == 0:  # a single position
            return _PUBLISHED_RANGE
        far = np.concatenate(far)
        distance = np.linalg.norm(np.array(places)[:, None] - np.array(places), axis=2)
        apart = distance >= max(np.median(distance), 1)
        other = np.median(products_of_rows(far, far)[apart]) if apart.any() else near.min()
    same = np.quantile(near, 0.9)
    return _place_range(float(same), float(other))


def _place_range(same: float, other: float) -> tuple[float, float]:
    """From correlations of the same and of other patterns, see `auto_range`.

    What tells patterns apart lies between `other` and 1; `kept` is the share of it that noise
    leaves. The third power is measured on simulated scans of 30 to 10,000 electrons a pattern: a
    higher one gains a little at low dose, and loses as much where grains are bent or blurred.
    """
    step = max(same - other, 0.02)
    kept = np.clip((same - other) / max(1 - other, 0.02), 0, 1)
    low = min(max(same - step + 0.75 * kept**3 * step, -1), 0.99)
    return round(float(low), 4), round(float(min(low + 0.25 * step, 1)), 4)


def correlative_need(data: Any, sigma: float, radius: float, edge: int, n_jobs: int | None) -> Need:
    """Memory that `correlative_core` takes: rows within reach of those that are averaged."""
    ry, qx, qy = data.shape[1:]
    reach = int(radius + 0.5)
    row = 4 * ry * qx * qy
    unit = 4 * ry * _normaliser((qx, qy), sigma, edge)[0]
    weights = 4 * ry * len(footprint(radius))
    read, values = row_need(data), row
    if np.dtype(data.dtype) == np.float32:  # the rows that were read serve as they are
        read, values = 0, row_need(data)
    return Need(
        (2 * reach - 1) * values
        + reach * unit
        + 2 * reach * weights
        + scratch_need(data, n_jobs, _TILE, 5),
        2 * values + unit + 2 * weights + 2 * row + 2 * read + row_need(data) * (not read),
    )


def auto_range_need(data: Any, sigma: float, edge: int, n_jobs: int | None) -> Need:
    """Memory that `auto_range` takes."""
    ry, qx, qy = data.shape[1:]
    unit = 4 * _normaliser((qx, qy), sigma, edge)[0]
    return Need(
        4 * row_need(data) + (5 * ry + 2 * _FAR) * unit + scratch_need(data, n_jobs, _TILE, 5)
    )


def correlative_core(
    data: Any,
    out: Any,
    *,
    sigma: float,
    radius: float,
    corr_range: tuple[float, float],
    edge: int,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> None:
    """Write the filtered scan to `out`, anything that takes ``out[start:stop] = rows``."""
    rx, ry, qx, qy = data.shape
    low, high = corr_range
    n_pixels, normalise = _normaliser((qx, qy), sigma, edge)
    offsets = footprint(radius)
    reach = int(offsets[:, 0].max())
    # Offsets with one dx are contiguous and run from dy = -width to width: band_of[dx] is where
    # they start, and their width.
    band_of = {}
    for dx in range(-reach, reach + 1):
        (indices,) = np.nonzero(offsets[:, 0] == dx)
        band_of[dx] = int(indices[0]), len(indices) // 2

    def correlate(row: int, dx: int, columns: slice) -> None:
        index, width = band_of[dx]
        opposite = band_of[-dx][0] + 2 * width
        first, last = max(0, columns.start - width), min(ry, columns.stop + width)
        products = products_of_rows(units[row][columns], units[row + dx][first:last])
        products -= low
        products /= high - low
        np.clip(products, 0, 1, out=products)
        for dy in range(-width, width + 1):
            diagonal = columns.start + dy - first
            a = products.diagonal(diagonal)
            y = columns.start + max(0, -diagonal)
            weights[row][y : y + len(a), index + width + dy] = a
            if dx > 0:  # within one row the neighbour's own tile writes the opposite direction
                y += dy
                weights[row + dx][y : y + len(a), opposite - width - dy] = a

    def average(row: int, columns: slice, target: np.ndarray) -> None:
        n = columns.stop - columns.start
        total = 1 + weights[row][columns].sum(axis=1, dtype=np.float64).astype(np.float32)
        present_total = None
        target[:] = 0
        for dx in range(max(-reach, -row), min(reach, rx - 1 - row) + 1):
            index, width = band_of[dx]
            # Row i of the band matrix holds the weights of position i, shifted i to the right.
            band = np.zeros((n, n + 2 * width), dtype=np.float32)
            step = band.strides[1]
            diagonals = as_strided(
                band, (n, 2 * width + 1), (band.strides[0] + step, step), writeable=True
            )
            diagonals[:] = weights[row][columns, index : index + 2 * width + 1]
            if dx == 0:
                diagonals[:, width] += 1
            first, last = max(0, columns.start - width), min(ry, columns.stop + width)
            band = band[:, first - columns.start + width : last - columns.start + width]
            (used,) = np.nonzero(band.any(axis=0))
            if used.size == 0:
                continue
            band = band[:, used[0] : used[-1] + 1]
            patterns = values[row + dx][first + used[0] : first + used[-1] + 1]
            if has_missing[row + dx]:
                # A missing pixel has no weight, so the weights differ from pixel to pixel.
                present = np.isfinite(patterns)
                patterns = np.where(present, patterns, 0)
                if present_total is None:
                    present_total = np.repeat(total[:, None], target.shape[1], axis=1)
                present_total -= matmul(band, (~present).astype(np.float32))
            matmul(band, patterns, add_to=target)
        if present_total is None:
            target /= total[:, None]
            return
        # What rounding leaves of a weight of zero means that the pixel is missing everywhere.
        present_total[present_total <= 1e-5 * total[:, None]] = np.nan
        target /= present_total

    # Rows in the window, by their number in the scan.
    values: dict[int, np.ndarray] = {}
    units: dict[int, np.ndarray] = {}
    weights: dict[int, np.ndarray] = {}
    has_missing: dict[int, bool] = {}
    written = 0
    # An array takes results where they are made.
    direct = isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.c_contiguous
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=4, n_rows=n_rows):
            stop = start + len(rows)
            convert = rows.dtype.kind != "f"
            if convert:
                block = np.empty((len(rows), ry, qx * qy), dtype=np.float32)
            else:
                block = to_float32(rows, f"row {start} to {stop - 1} of the scan")
                block = block.reshape(len(rows), ry, -1)
            for row in range(start, stop):
                values[row] = block[row - start]
                units[row] = np.empty((ry, n_pixels), dtype=np.float32)
                weights[row] = np.zeros((ry, len(offsets)), dtype=np.float32)
            del block

            def prepare(
                task: tuple[int, slice],
                rows: np.ndarray = rows,
                start: int = start,
                convert: bool = convert,
            ):
                row, columns = task
                patterns = rows[row - start, columns]
                patterns = patterns.reshape(len(patterns), -1)
                if convert:
                    np.copyto(values[row][columns], patterns, casting="same_kind")
                normalise(patterns, units[row][columns])

            run(prepare, product(range(start, stop), tiles(ry, _TILE)))

            def check(row: int):
                has_missing[row] = not np.isfinite(values[row]).all()

            if rows.dtype.kind == "f":
                run(check, range(start, stop))
            else:  # whole numbers are never missing
                has_missing.update(dict.fromkeys(range(start, stop), False))
            run(
                lambda task: correlate(task[0] - task[1], task[1], task[2]),
                (
                    (row, dx, columns)
                    for row in range(start, stop)
                    for dx in range(min(reach, row) + 1)
                    for columns in tiles(ry, _TILE)
                ),
            )

            last = rx if stop == rx else max(written, stop - reach)
            while written < last:
                ready = min(written + len(rows), last)  # no more at a time than were read
                if direct:
                    filtered = out[written:ready].reshape(-1, ry, qx * qy)
                else:
                    filtered = np.empty((ready - written, ry, qx * qy), dtype=np.float32)
                run(
                    lambda task, filtered=filtered, written=written: average(
                        task[0], task[1], filtered[task[0] - written, task[1]]
                    ),
                    product(range(written, ready), tiles(ry, _TILE)),
                )
                if not direct:
                    out[written:ready] = filtered.reshape(-1, ry, qx, qy)
                report(ready - written)
                written = ready
                del filtered
            for row in [row for row in values if row < written - reach]:
                del values[row], weights[row], has_missing[row]
            for row in [row for row in units if row < stop - reach]:
                del units[row]
