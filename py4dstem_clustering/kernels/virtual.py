"""Virtual images: one number for each scan position, a weighted sum of its diffraction pattern."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median

from .blas import row_dots, sum_present
from .blocks import (
    MemoryNeed,
    Report,
    iterate_blocks,
    read_rows,
    row_need,
    scratch_need,
    tiles,
    workers,
)

_PATTERNS_PER_TASK = 8
"""Patterns that are summed together; more of them take more memory for each thread."""

DISK_SHARE = 0.2
"""Share of the largest excess from which on a pixel belongs to a disk. With a smaller one, noise
does, too; with a larger one, weak disks are left out."""

SAMPLED_ROWS = 8
"""Rows of the scan that `sample_mean` reads. The time grows with them."""


def virtual_image_core(
    data: Any,
    weight: NDArray[Any],
    *,
    n_jobs: int | None,
    report: Report,
    n_rows: int | None = None,
) -> NDArray[np.float64]:
    """``sum_q weight(q) I(r, q)``, (Rx, Ry). A missing pixel (NaN or infinite) adds 0."""
    rx, ry = data.shape[:2]
    image = np.empty((rx, ry))
    inside = np.flatnonzero(weight)
    # Only the pixels from the first to the last that counts are converted.
    first, last = (inside[0], inside[-1] + 1) if inside.size else (0, 0)
    recorded = np.dtype(data.dtype).newbyteorder("=")
    is_wide = recorded.itemsize > 2 and recorded != np.float32
    dtype = np.float64 if is_wide else np.float32
    flat = np.ascontiguousarray(weight.ravel()[first:last], dtype=dtype)
    with workers(n_jobs) as run:
        for start, rows in iterate_blocks(data, n_rows=n_rows, packed=True):

            def add(task: tuple[int, slice], rows: Any = rows, start: int = start) -> None:
                i, columns = task
                patterns = rows[i, columns].reshape(-1, weight.size)[:, first:last].astype(dtype)
                found = row_dots(patterns, flat)
                if not np.isfinite(found).all():
                    found = row_dots(np.nan_to_num(patterns, posinf=0, neginf=0), flat)
                image[start + i, columns] = found

            run(add, product(range(len(rows)), tiles(ry, _PATTERNS_PER_TASK)))
            report(len(rows))
    return image


def virtual_image_need(data: Any, n_jobs: int | None) -> MemoryNeed:
    """Memory that `virtual_image_core` takes."""
    return MemoryNeed(scratch_need(data, n_jobs, _PATTERNS_PER_TASK, 8), 2 * row_need(data))


def scattered(mean: NDArray[Any], centre: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Detector pixels (Qx, Qy) beyond the direct beam of a mean pattern, True where they count.

    The beam ends where its radial profile, from `centre` or the brightest place, falls below a
    tenth of its maximum, in the inner quarter of the detector. Pixels count beyond 1.5 times this
    radius, where nothing of the beam is left.
    """
    values = np.nan_to_num(mean, nan=0, posinf=0, neginf=0).astype(np.float64)
    if centre is None:
        low = values.min()
        # The centroid of the pixels that are at least half as bright as the brightest ones.
        bright = values >= low + 0.5 * (np.sort(values, axis=None)[-4:].mean() - low)
        weights = np.where(bright, values - low, 0)
        total = weights.sum()
        if not total > 0:
            return np.ones(mean.shape, dtype=bool)
        x, y = np.indices(mean.shape)
        centre = float((x * weights).sum() / total), float((y * weights).sum() / total)
    u, v = np.ogrid[: mean.shape[0], : mean.shape[1]]
    distance = np.hypot(u - centre[0], v - centre[1])
    ring = np.round(distance).astype(int)
    count = np.bincount(ring.ravel())
    profile = np.bincount(ring.ravel(), values.ravel()) / np.maximum(count, 1)
    profile = profile[: max(2, min(mean.shape) // 4)] - profile.min()
    falls = np.flatnonzero(profile < 0.1 * profile.max())
    ends = falls[falls > profile.argmax()]
    end = ends[0] if ends.size else profile.argmin()
    found = distance > 1.5 * max(1, end)
    return found if found.any() else np.ones(mean.shape, dtype=bool)


def disks_of(mean: NDArray[Any], centre: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Detector pixels (Qx, Qy) of the Bragg disks of a mean pattern, True in a disk.

    In a disk, the pattern blurred by a pixel exceeds the median at the same distance from `centre`,
    or from the brightest place, by at least a fifth of its largest excess beyond the direct beam.
    """
    blurred = gaussian_filter(np.nan_to_num(mean, nan=0, posinf=0, neginf=0).astype(float), 1.0)
    counts = scattered(mean, centre)
    if centre is None:
        top = np.unravel_index(int(blurred.argmax()), blurred.shape)
        centre = float(top[0]), float(top[1])
    u, v = np.ogrid[: mean.shape[0], : mean.shape[1]]
    ring = np.hypot(u - centre[0], v - centre[1]).round().astype(int)
    usual = median(blurred, ring, np.arange(ring.max() + 1))
    excess = np.where(counts, blurred - np.nan_to_num(usual)[ring], 0)
    return (excess >= DISK_SHARE * excess.max()) & (excess > 0)


def sample_mean(data: Any) -> NDArray[np.float64]:
    """Mean pattern (Qx, Qy) of a few rows all over the scan, missing pixels left out."""
    rows = np.unique(np.linspace(0, data.shape[0] - 1, SAMPLED_ROWS).astype(int))
    total = np.zeros(data.shape[2:])
    count = np.zeros(data.shape[2:])
    for row in rows:
        patterns = read_rows(data, int(row), int(row) + 1)[0]
        of_row, present = sum_present(patterns)
        total += of_row
        count += present
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)
