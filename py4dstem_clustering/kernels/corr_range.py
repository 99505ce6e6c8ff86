"""The range of correlations that suits the noise of a scan, for the correlative filter."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binning import in_unit
from .blas import products_of_rows, row_dots
from .blocks import (
    MemoryNeed,
    Report,
    count_jobs,
    read_rows,
    read_window,
    row_need,
    scratch_need,
    tiles,
    workers,
)
from .features import find_centre
from .noise import Noise
from .unit_vectors import PATTERNS_PER_TASK, unit_vectors

NO_AVERAGE = (0.9999, 1.0)
"""Range in which no two noisy patterns lie: the filter leaves patterns as they are."""

_PUBLISHED_RANGE = (0.85, 0.95)

_SAMPLED_PAIRS = 12
"""Pairs of rows that are read. More of them take longer, and the range depends less on chance."""

_SAMPLED_POSITIONS = 480
"""Positions all over the scan that are compared with each other. The time grows with their
square."""


_SITES = 7
"""Positions along either axis of the scan where the error is estimated. With more of them, the
choice depends less on chance, and takes longer."""

_BEAM_SHARE = 0.05
"""Radius around the direct beam, as a share of the detector, that does not count for the error: it
is so bright that it would drown all disks."""

_MARGIN = 0.01
"""Error, as a share of that of raw patterns, by which another range must be better than the
published one."""

_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Places of the ranges that are tried, from `other` (0) to `same` (1)."""


def auto_range(
    data: Any,
    *,
    sigma: float,
    edge: int,
    n_jobs: int | None,
    radius: float = 4,
    noise: Noise | None = None,
    report: Report = lambda n: None,
) -> tuple[float, float]:
    """A range of correlations for `correlative_core` that suits the noise of a scan.

    Two correlations are taken from a sample of positions: `same`, the value that one tenth of the
    pairs of neighbours exceed, and `other`, the median of pairs far apart. The range lies between
    them, near `same` where there is little noise. With more noise it lies nearer to `other`: then
    it costs more to lose neighbours of the same grain than to take in some of another grain.

    With the `noise` of the camera, the error of this range and of others is estimated. The best is
    taken, and `NO_AVERAGE` where none makes patterns better than they are.
    """
    rx, ry, qx, qy = data.shape
    vectors = unit_vectors((qx, qy), sigma, edge)
    height = min(rx, 2)
    n = min(rx // height, _SAMPLED_PAIRS)
    starts = np.linspace(0, rx - height, n).astype(int).tolist()
    columns = np.unique(np.linspace(0, ry - 1, min(ry, _SAMPLED_POSITIONS // n)).astype(int))
    near: list[NDArray[np.float64]] = []
    far: list[NDArray[np.float32]] = []
    places: list[tuple[int, int]] = []
    done = 0
    with workers(n_jobs) as run:
        for start in starts:
            rows = read_rows(data, start, start + height).reshape(height, ry, -1)
            unit = np.empty((height, ry, vectors.size), dtype=np.float32)

            def prepare(
                task: tuple[int, slice],
                rows: NDArray[Any] = rows,
                unit: NDArray[np.float32] = unit,
            ) -> None:
                vectors.write(rows[task], unit[task])

            run(prepare, product(range(height), tiles(ry, PATTERNS_PER_TASK)))
            near += [row_dots(row[1:], row[:-1]) for row in unit]
            near += [row_dots(a, b) for a, b in pairwise(unit)]
            far.append(unit[0, columns])
            places += [(start, column) for column in columns.tolist()]
            report(start + height - done)
            done = start + height
        neighbours = np.concatenate(near)
        if neighbours.size == 0:  # a single position
            return _PUBLISHED_RANGE
        sample = np.concatenate(far)
        distance = np.linalg.norm(np.array(places)[:, None] - np.array(places), axis=2)
        apart = distance >= max(np.median(distance), 1)
        correlations = products_of_rows(sample, sample)[apart]
        other = np.median(correlations) if apart.any() else neighbours.min()
    same = float(np.quantile(neighbours, 0.9))
    placed = _place_range(same, float(other))
    if noise is None or not noise.gain > 0:
        return placed
    ranges = [placed, _PUBLISHED_RANGE]
    ranges += [_range_at(same, float(other), step) for step in _STEPS]
    change = expected_change(
        data, ranges, sigma=sigma, radius=radius, edge=edge, noise=noise, n_jobs=n_jobs
    )
    change[1] -= _MARGIN
    best = int(np.argmin(change))
    return ranges[best] if change[best] < 0 else NO_AVERAGE


def expected_change(
    data: Any,
    ranges: list[tuple[float, float]],
    *,
    sigma: float,
    radius: float,
    edge: int,
    noise: Noise,
    n_jobs: int | None,
) -> NDArray[np.float64]:
    """Change of the squared error by the filter, for each range, relative to that of raw patterns.

    It is estimated without the truth (Stein, 1981): the squared change of a pattern holds the error
    that neighbours bring, and the noise that they remove, which is known.
    """
    rx, ry, qx, qy = data.shape
    reach = int(radius + 0.5)
    vectors = unit_vectors((qx, qy), sigma, edge)
    rows, columns = (np.unique(np.linspace(0, n - 1, _SITES).round().astype(int)) for n in (rx, ry))
    sites = list(product(rows.tolist(), columns.tolist()))
    found = np.zeros((len(sites), len(ranges) + 1))

    def measure(n: int) -> None:
        x, y = sites[n]
        top, left = max(0, x - reach), max(0, y - reach)
        window = read_window(data, (top, min(rx, x + reach + 1)), (left, min(ry, y + reach + 1)))
        places = np.indices(window.shape[:2]).reshape(2, -1).T + np.array([top, left])
        away = ((places - (x, y)) ** 2).sum(axis=1)
        patterns = window.reshape(-1, qx * qy)[away <= (radius + 0.5) ** 2]
        centre = int(np.argmin(away[away <= (radius + 0.5) ** 2]))
        unit = np.empty((len(patterns), vectors.size), dtype=np.float32)
        for some in tiles(len(patterns), PATTERNS_PER_TASK):
            vectors.write(patterns[some], unit[some])
        correlation = products_of_rows(unit, unit[centre : centre + 1])[:, 0]
        counts = in_unit(patterns, 0.0, 1.0)
        beam = find_centre(counts.mean(axis=0).reshape(qx, qy))
        u, v = np.ogrid[:qx, :qy]
        far = np.hypot(u - beam[0], v - beam[1]).ravel() > _BEAM_SHARE * min(qx, qy)
        counts = counts[:, far]
        power = noise.gain * np.maximum(counts[centre] - noise.offset, 0).sum(dtype=np.float64)
        steps = counts - counts[centre]
        products = products_of_rows(steps, steps).astype(np.float64)
        found[n, -1] = power
        for k, (low, high) in enumerate(ranges):
            weight = np.clip((correlation - low) / (high - low), 0, 1)
            own = 1 + weight[centre]
            total = 1 + weight.sum()
            change = weight @ products @ weight / total**2
            found[n, k] = change - 2 * (1 - own / total) * power

    with workers(n_jobs) as run:
        run(measure, range(len(sites)))
    total = found.sum(axis=0)
    change: NDArray[np.float64] = total[:-1] / max(total[-1], 1e-30)
    return change


def auto_range_need(
    data: Any, sigma: float, radius: float, edge: int, n_jobs: int | None
) -> MemoryNeed:
    """Memory that `auto_range` takes."""
    ry, qx, qy = data.shape[1:]
    window = (2 * int(radius + 0.5) + 1) ** 2
    sites = count_jobs(n_jobs) * window * qx * qy * (np.dtype(data.dtype).itemsize + 16)
    unit = 4 * unit_vectors((qx, qy), sigma, edge).size
    return MemoryNeed(
        max(sites, 4 * row_need(data))
        + (5 * ry + 2 * _SAMPLED_POSITIONS) * unit
        + scratch_need(data, n_jobs, PATTERNS_PER_TASK, 5)
    )


def _place_range(same: float, other: float) -> tuple[float, float]:
    """The range, from the correlations `same` and `other` of `auto_range`.

    Without noise, `same` would be 1; `kept` is the share of the step from `other` to 1 that noise
    leaves. The third power was chosen on simulated scans of 30 to 10,000 electrons a pattern: a
    higher power gains a little at low dose, and loses as much where grains are bent or blurred.
    """
    kept = float(np.clip((same - other) / max(1 - other, 0.02), 0, 1))
    return _range_at(same, other, 0.75 * kept**3)


def _range_at(same: float, other: float, place: float) -> tuple[float, float]:
    """The range that begins at `place`, from 0 at `other` to 1 at `same`."""
    step = max(same - other, 0.02)
    low = min(max(same - step + place * step, -1), 0.99)
    return round(float(low), 4), round(float(min(low + 0.25 * step, 1)), 4)
