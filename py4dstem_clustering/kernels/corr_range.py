"""The range of correlations that suits the noise of a scan, for the correlative filter."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blas import products_of_rows, row_dots
from .blocks import MemoryNeed, Report, read_rows, row_need, scratch_need, tiles, workers
from .unit_vectors import PATTERNS_PER_TASK, unit_vectors

_PUBLISHED_RANGE = (0.85, 0.95)

_SAMPLED_PAIRS = 12
"""Pairs of rows that are read. More of them take longer, and the range depends less on chance."""

_SAMPLED_POSITIONS = 480
"""Positions all over the scan that are compared with each other. The time grows with their
square."""


def auto_range(
    data: Any,
    *,
    sigma: float,
    edge: int,
    n_jobs: int | None,
    report: Report = lambda n: None,
) -> tuple[float, float]:
    """A range of correlations for `correlative_core` that suits the noise of a scan.

    Two correlations are taken from a sample of positions: `same`, the value that one tenth of the
    pairs of neighbours exceed, and `other`, the median of pairs far apart. The range lies between
    them, near `same` where there is little noise. With more noise it lies nearer to `other`: then
    it costs more to lose neighbours of the same grain than to take in some of another grain.
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
    return _place_range(float(np.quantile(neighbours, 0.9)), float(other))


def auto_range_need(data: Any, sigma: float, edge: int, n_jobs: int | None) -> MemoryNeed:
    """Memory that `auto_range` takes."""
    ry, qx, qy = data.shape[1:]
    unit = 4 * unit_vectors((qx, qy), sigma, edge).size
    return MemoryNeed(
        4 * row_need(data)
        + (5 * ry + 2 * _SAMPLED_POSITIONS) * unit
        + scratch_need(data, n_jobs, PATTERNS_PER_TASK, 5)
    )


def _place_range(same: float, other: float) -> tuple[float, float]:
    """The range, from the correlations `same` and `other` of `auto_range`.

    Without noise, `same` would be 1; `kept` is the share of the step from `other` to 1 that noise
    leaves. The third power was chosen on simulated scans of 30 to 10,000 electrons a pattern: a
    higher power gains a little at low dose, and loses as much where grains are bent or blurred.
    """
    step = max(same - other, 0.02)
    kept = np.clip((same - other) / max(1 - other, 0.02), 0, 1)
    low = min(max(same - step + 0.75 * kept**3 * step, -1), 0.99)
    return round(float(low), 4), round(float(min(low + 0.25 * step, 1)), 4)
