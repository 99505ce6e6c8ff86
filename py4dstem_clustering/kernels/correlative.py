"""Correlative filter: average each pattern with those neighbours that look like it.

One pass over the scan with a sliding window of rows. Each pattern is read, blurred and normalised
once; each pair is correlated once; correlations and weighted sums are matrix products over tiles
of neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .blas import matmul, products_of_rows, row_dots
from .blocks import Report, as_comparable, iterate_blocks, read_rows, tiles, to_float32, workers
from .blur import blur, blur_matrix

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


def _normaliser(
    detector: tuple[int, int], sigma: float, edge: int
) -> tuple[int, Callable[[np.ndarray, np.ndarray], None]]:
    """Pixels that are compared, and a function that writes patterns as unit vectors of these."""
    qx, qy = detector
    weight = radial_weight(detector, edge).ravel()
    inside = np.flatnonzero(weight)
    weight = weight[inside].astype(np.float32)
    share = (weight / weight.sum(dtype=np.float64)).astype(np.float32)
    matrices = (blur_matrix(qx, sigma), blur_matrix(qy, sigma)) if sigma > 0 else None

    def normalise(patterns: np.ndarray, unit: np.ndarray) -> None:
        # Correlations do not feel a constant; without it a flat pattern is exactly zero.
        x = as_comparable(patterns, subtract_mean=True)
        if matrices is not None:
            x = blur(x.reshape(-1, qx, qy), *matrices).reshape(len(x), -1)
        x = np.take(x, inside, axis=1)
        size = np.sqrt(row_dots(x, x * weight**2))[:, None]
        x -= row_dots(x, share).astype(np.float32)[:, None]
        x *= weight
        norm = np.sqrt(row_dots(x, x)).astype(np.float32)[:, None]
        # Contrast below a millionth of the signal is the rounding of float32, not a pattern.
        norm[norm <= 1e-6 * size] = np.inf
        np.divide(x, norm, out=unit)

    return inside.size, normalise


def auto_range(data: Any, *, sigma: float, edge: int, n_jobs: int | None) -> tuple[float, float]:
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
    near, far, places = [], [], []
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
            patterns = values[row + dx][first:last]
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
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, copies=4):
            stop = start + len(rows)
            block = to_float32(rows, f"row {start} to {stop - 1} of the scan")
            block = block.reshape(len(rows), ry, -1)
            for row in range(start, stop):
                values[row] = block[row - start]
                units[row] = np.empty((ry, n_pixels), dtype=np.float32)
                weights[row] = np.zeros((ry, len(offsets)), dtype=np.float32)
            del block

            def prepare(task: tuple[int, slice], rows: np.ndarray = rows, start: int = start):
                row, columns = task
                patterns = rows[row - start, columns]
                normalise(patterns.reshape(len(patterns), -1), units[row][columns])

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

            ready = rx if stop == rx else max(written, stop - reach)
            if ready > written:
                filtered = np.empty((ready - written, ry, qx * qy), dtype=np.float32)
                run(
                    lambda task, filtered=filtered, written=written: average(
                        task[0], task[1], filtered[task[0] - written, task[1]]
                    ),
                    product(range(written, ready), tiles(ry, _TILE)),
                )
                out[written:ready] = filtered.reshape(-1, ry, qx, qy)
                report(ready - written)
                written = ready
            for row in [row for row in values if row < written - reach]:
                del values[row], weights[row], has_missing[row]
            for row in [row for row in units if row < stop - reach]:
                del units[row]
