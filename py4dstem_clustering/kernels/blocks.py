"""Walk a scan in blocks of rows, over anything array-like, with one pool of threads.

This is the only place that reads the 4D data. A NumPy array, a memmap, an h5py dataset and a dask
array all look the same to the kernels, and memory is bounded by the block, never by the scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from .blas import single_threaded_blas

# Bytes of float32 work held for one block. Large enough to keep the threads busy, small enough for
# a laptop; a single row of the scan is the least that can be held.
BLOCK_BYTES = 128 * 2**20

# Squares of values inside this range, summed over any detector, neither overflow nor vanish in
# float32; patterns outside it are rescaled before they are compared.
_SAFE_RANGE = (1e-10, 1e10)

Report = Callable[[int], Any]


def count_jobs(n_jobs: int | None) -> int:
    """Number of threads: `n_jobs`, or all cores that this process may use."""
    if n_jobs is not None:
        return int(n_jobs)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def workers(n_jobs: int | None) -> Iterator[Callable[[Callable, Iterable], None]]:
    """A pool of threads as a function ``run(task, items)`` that returns when every item is done.

    The first exception of a task is raised, and items that have not started are dropped.
    """
    jobs = count_jobs(n_jobs)
    with single_threaded_blas, ThreadPoolExecutor(jobs) as pool:

        def run(task: Callable, items: Iterable) -> None:
            futures = [pool.submit(task, item) for item in items]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()

        yield run


def read_rows(data: Any, start: int, stop: int) -> np.ndarray:
    """Rows ``start:stop`` of the scan as a NumPy array in the data's own type."""
    rows = data[start:stop]
    if hasattr(rows, "compute"):  # dask
        rows = rows.compute()
    if np.ma.isMaskedArray(rows) and np.ma.is_masked(rows):
        # What is masked is missing.
        rows = rows.astype(np.result_type(rows.dtype, np.float32)).filled(np.nan)
    return np.asarray(rows)


def row_blocks(shape: tuple[int, ...], copies: int = 1) -> Iterator[tuple[int, int]]:
    """Cut the rows of a scan into blocks that hold at most `BLOCK_BYTES` in float32.

    Parameters
    ----------
    shape : (Rx, Ry, Qx, Qy)
    copies : how many float32 copies of a block are alive at once.
    """
    n_rows, n_columns, *detector = shape
    row_bytes = 4 * n_columns * int(np.prod(detector)) * copies
    step = max(1, BLOCK_BYTES // max(row_bytes, 1))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def iterate_blocks(data: Any, copies: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(first_row, rows)`` for every block; the next block is read while one is used."""
    blocks = list(row_blocks(data.shape, copies))
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read_rows, data, *blocks[0])
        for index, (start, _) in enumerate(blocks):
            rows = pending.result()
            if index + 1 < len(blocks):
                pending = reader.submit(read_rows, data, *blocks[index + 1])
            yield start, rows


def tiles(n: int, size: int = 64) -> list[slice]:
    """Cut an axis into tiles of `size`.

    Tiles depend on nothing but the axis, so that every matrix product has the same shape, and the
    result the same bits, whatever the block size and the number of threads.
    """
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def to_float32(values: np.ndarray, what: str) -> np.ndarray:
    """Values as float32; a ValueError where they are too large or all too small for it."""
    with np.errstate(over="ignore", under="ignore"):
        out = values.astype(np.float32, copy=False)
    if values.dtype.kind == "f" and values.dtype.itemsize > 4:
        overflows = np.isfinite(out).sum() < np.isfinite(values).sum()
        if overflows or (values.any() and not out.any()):
            limits = np.finfo(np.float32)
            raise ValueError(
                f"{what} holds values that float32 cannot hold ({limits.tiny:.0e} to "
                f"{limits.max:.0e}); multiply the data by a constant"
            )
    return out


def as_comparable(patterns: np.ndarray, subtract_mean: bool) -> np.ndarray:
    """Copy patterns ``(n, pixels)`` to float32, ready to be compared with each other.

    With `subtract_mean`, each minus its mean, also where the mean is so large that float32 would
    lose the rest. A missing pixel (NaN or infinite) counts as the mean of its pattern. A pattern
    whose values lie far from 1 is divided by its largest magnitude, which changes no cosine and no
    correlation, so that its squares stay inside float32.
    """
    if patterns.dtype.kind in "bui" and patterns.itemsize <= 2:
        out = patterns.astype(np.float32)
        if subtract_mean:
            out -= out.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        return out

    # float32 holds 7 digits; the types that hold more go through float64.
    wide = patterns.itemsize > 4 or patterns.dtype.kind in "iu"
    x = patterns.astype(np.float64 if wide else np.float32)
    peak = np.maximum(x.max(axis=1), -x.min(axis=1))
    low, high = _SAFE_RANGE
    for i in np.flatnonzero(~((peak >= low) & (peak <= high)) & (peak != 0)):
        x[i] = _tame(patterns[i].astype(np.float64))
    if subtract_mean:
        mean = x.mean(axis=1, dtype=np.float64, keepdims=True)
        rounded = mean.astype(x.dtype)
        x -= rounded
        if not wide:
            x -= (mean - rounded).astype(np.float32)
    return x.astype(np.float32, copy=False)


def _tame(pattern: np.ndarray) -> np.ndarray:
    """A pattern without missing pixels and near 1."""
    present = np.isfinite(pattern)
    if not present.any():
        return np.zeros_like(pattern)
    largest = np.abs(pattern[present]).max()
    if largest > 0 and not _SAFE_RANGE[0] <= largest <= _SAFE_RANGE[1]:
        pattern = pattern / largest
    pattern[~present] = pattern[present].mean()
    return pattern
