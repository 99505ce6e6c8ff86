"""Walk a scan in blocks of rows, over anything array-like, with one pool of threads.

This is the only place that reads the 4D data. A NumPy array, a memmap, an h5py dataset and a dask
array all look the same to the kernels, and memory is bounded by the block, never by the scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blas import row_dots, row_sums, single_threaded_blas

# Bytes of float32 work held for one block. Large enough to keep the threads busy, small enough for
# a laptop; a single row of the scan is the least that can be held.
BLOCK_BYTES = 128 * 2**20

# A block is read in pieces of about so many bytes, so that Ctrl-C need not wait for all of it.
_PIECE_BYTES = 8 * 2**20

# What a walk takes beside the arrays that are counted: stacks of threads, buffers of HDF5 and BLAS.
_OVERHEAD = 64 * 2**20

# Squares of values inside this range, summed over any detector, neither overflow nor vanish in
# float32; patterns outside it are rescaled before they are compared.
SAFE_RANGE = (1e-10, 1e10)

Report = Callable[[int], Any]
Run = Callable[[Callable[[Any], Any], Iterable[Any]], None]


def count_jobs(n_jobs: int | None) -> int:
    """Number of threads: `n_jobs`, or all cores that this process may use."""
    if n_jobs is not None:
        return int(n_jobs)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class MemoryNeed(NamedTuple):
    """Bytes that a kernel holds at most beside its result, as a function of its block of rows."""

    fixed: int
    """Whatever the block: a halo, what threads work with, matrices."""
    row: int = 0
    """More for each row of the scan in a block."""


def row_need(data: Any) -> int:
    """Bytes of a row of the scan as it is read; nothing for an array that is not copied."""
    if isinstance(data, np.ndarray) and not isinstance(data, (np.memmap, np.ma.MaskedArray)):
        return 0
    return np.dtype(data.dtype).itemsize * int(np.prod(data.shape[1:]))


def scratch_need(data: Any, n_jobs: int | None, patterns: int, copies: float) -> int:
    """Bytes of threads that each hold `copies` of a number of patterns in float32, or float64."""
    wide = np.dtype(data.dtype).itemsize > 4 or np.dtype(data.dtype) in (np.int32, np.uint32)
    pixels = int(np.prod(data.shape[2:]))
    jobs, patterns = count_jobs(n_jobs), min(patterns, data.shape[1])
    return _OVERHEAD + int(jobs * patterns * pixels * 4 * (copies + 2 * wide))


class Stopped(Exception):
    """Raised in threads that nobody waits for any more."""


@contextmanager
def workers(n_jobs: int | None) -> Iterator[Run]:
    """A pool of threads as a function ``run(task, items)`` that returns when every item is done.

    The first exception of a task, or Ctrl-C, is raised, and items that have not started are
    dropped; no thread is left.
    """
    jobs = count_jobs(n_jobs)
    with single_threaded_blas:
        pool = ThreadPoolExecutor(jobs)

        def run(task: Callable[[Any], Any], items: Iterable[Any]) -> None:
            waiting = list(enumerate(items))[::-1]
            failed: list[tuple[int, BaseException]] = []

            # A loop in every thread; a future for every item would cost more than many an item.
            def work() -> None:
                while True:
                    try:
                        i, item = waiting.pop()
                    except IndexError:
                        return
                    try:
                        task(item)
                    except BaseException as error:
                        waiting.clear()
                        failed.append((i, error))

            loops = [pool.submit(work) for _ in range(min(jobs, len(waiting)))]
            try:
                for loop in loops:
                    loop.result()
                if failed:
                    raise min(failed, key=lambda pair: pair[0])[1]
            finally:
                waiting.clear()
                failed.clear()

        try:
            yield run
        finally:
            pool.shutdown(cancel_futures=True)


def read_rows(data: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows ``start:stop`` of the scan as a NumPy array in the data's own type.

    In a thread of its own: h5py in the main thread may lose Ctrl-C, which comes up in a callback of
    weak references, where Python prints and drops it.
    """
    if isinstance(data, np.ndarray):
        return _read_now(data, start, stop)
    with ThreadPoolExecutor(1) as reader:
        return reader.submit(_read_now, data, start, stop).result()


def read_window(data: Any, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
    """Patterns of a window of the scan, as `read_rows` reads them."""
    which = slice(*columns)
    part = data[:, which] if isinstance(data, np.ndarray) else _Columns(data, which)
    return read_rows(part, *rows)


class _Columns:
    """Some columns of a scan that is not in memory, read no sooner than its rows."""

    def __init__(self, data: Any, columns: slice) -> None:
        self._data, self._columns = data, columns

    def __getitem__(self, rows: Any) -> Any:
        return self._data[rows, self._columns]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _read_now(data: Any, start: int, stop: int) -> NDArray[Any]:
    rows = data[start:stop]
    if hasattr(rows, "compute"):  # dask
        rows = rows.compute()
    check_whole(data)
    if np.ma.isMaskedArray(rows) and np.ma.is_masked(rows):
        # What is masked is missing.
        rows = rows.astype(np.result_type(rows.dtype, np.float32)).filled(np.nan)
    return np.asarray(rows)


def check_whole(data: Any) -> None:
    """An OSError if the file of an h5py dataset or a memmap has become shorter.

    HDF5 reads zeros behind the end of a file, and reading a memmap there kills the process.
    """
    if isinstance(data, np.memmap):
        whole = data  # of which it may be a part, as with headers between the patterns
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if getattr(whole, "offset", None) is None:
            return  # a copy, in memory
        path, size = data.filename, whole.offset + whole.nbytes
    elif hasattr(data, "read_direct") and getattr(data.file, "mode", None) == "r":  # h5py
        path, size = data.file.filename, data.file.id.get_filesize()
    else:
        return
    if path is None or not os.path.isfile(path):
        return
    found = os.path.getsize(path)
    if found < size:
        raise OSError(
            f"{os.fspath(path)} shrank from {size} to {found} bytes since it was opened; copy it "
            "again, and open it again"
        )


def _read_block(data: Any, start: int, stop: int, stopped: Event) -> NDArray[Any]:
    """As `read_rows`, in pieces, until `stopped` is set."""
    on_disk = isinstance(data, np.memmap) or not isinstance(data, np.ndarray)
    if not on_disk or hasattr(data, "dask"):
        return _read_now(data, start, stop)
    _, columns, *detector = data.shape
    # Pieces as HDF5 holds them: a chunk that is cut is decompressed twice.
    chunk = getattr(data, "chunks", None) or (1, 1)
    pattern_bytes = np.dtype(data.dtype).itemsize * int(np.prod(detector))
    n_rows = max(chunk[0], _PIECE_BYTES // (pattern_bytes * columns), 1)
    n_columns = columns
    if hasattr(data, "read_direct"):  # h5py
        n_columns = max(1, _PIECE_BYTES // (pattern_bytes * n_rows))
        n_columns = -(-n_columns // chunk[1]) * chunk[1]
    out = np.empty((stop - start, columns, *detector), dtype=data.dtype)
    for first in range(start, stop, n_rows):
        last = min(first + n_rows, stop)
        for column in range(0, columns, n_columns):
            if stopped.is_set():
                raise Stopped
            if n_columns >= columns:
                piece = data[first:last]
            else:
                piece = data[first:last, column : column + n_columns]
            check_whole(data)
            out[first - start : last - start, column : column + n_columns] = piece
    return out


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


def iterate_blocks(
    data: Any, copies: int = 1, n_rows: int | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ``(first_row, rows)`` for every block; the next block is read while one is used.

    Blocks have `n_rows`; by default as `row_blocks` cuts them. When the loop ends early, by an
    error or Ctrl-C, what is being read is given up at once.
    """
    if n_rows is None:
        blocks = list(row_blocks(data.shape, copies))
    else:
        starts = range(0, data.shape[0], n_rows)
        blocks = [(start, min(start + n_rows, data.shape[0])) for start in starts]
    stopped = Event()
    reader = ThreadPoolExecutor(1)
    try:
        pending = reader.submit(_read_block, data, *blocks[0], stopped)
        for index, (start, _) in enumerate(blocks):
            rows = pending.result()
            pending = None  # which would keep the block
            if index + 1 < len(blocks):
                pending = reader.submit(_read_block, data, *blocks[index + 1], stopped)
            yield start, rows
            del rows
    finally:
        stopped.set()
        reader.shutdown(cancel_futures=True)


def tiles(n: int, size: int = 64) -> list[slice]:
    """Cut an axis into tiles of `size`.

    Tiles depend on nothing but the axis, so that every matrix product has the same shape, and the
    result the same bits, whatever the block size and the number of threads.
    """
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def at_once(number: int, pixels: int) -> int:
    """Patterns to work on at once: `number` of a detector of 192 x 192, more of a smaller one.

    Threads wait for each other between calls; small detectors would have nothing but such.
    """
    return max(number, number * 192**2 // max(pixels, 1))


def to_float32(values: NDArray[Any], what: str) -> NDArray[Any]:
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


def is_small_integer(dtype: np.dtype) -> bool:
    """Whether float32 holds every value of a type, none of them missing."""
    return dtype.kind in "bui" and dtype.itemsize <= 2


def as_comparable(patterns: NDArray[Any], subtract_mean: bool) -> NDArray[Any]:
    """Copy patterns ``(n, pixels)`` to float32, ready to be compared.

    With `subtract_mean`, each minus its mean, also where the mean is so large that float32 would
    lose the rest. A missing pixel (NaN or infinite) counts as the mean of its pattern. A pattern
    whose values lie far from 1 is divided by its largest magnitude, which changes no cosine and no
    correlation, so that its squares stay inside float32.
    """
    out = np.empty(patterns.shape, dtype=np.float32)
    mean = nearly_comparable(patterns, subtract_mean, out)
    if subtract_mean:
        out -= mean
    return out


def nearly_comparable(
    patterns: NDArray[Any], subtract_mean: bool, out: NDArray[Any]
) -> NDArray[Any]:
    """Write to `out` what `as_comparable` returns, but for means ``(n, 1)`` left to subtract.

    What becomes of a pattern does not depend on the others.
    """
    none = np.zeros((len(patterns), 1), dtype=np.float32)
    if is_small_integer(patterns.dtype):
        np.copyto(out, patterns)
        return _row_means(out) if subtract_mean else none

    # float32 holds 7 digits; the types that hold more go through float64.
    wide = patterns.itemsize > 4 or patterns.dtype.kind in "iu"
    low, high = SAFE_RANGE
    if wide:
        x = patterns.astype(np.float64)
        doubtful = range(len(x))
    else:
        x = out
        np.copyto(x, patterns, casting="unsafe")
        # The sum of squares tells at once where all is well; in doubt, the largest magnitude does.
        power = row_dots(x, x)
        doubtful = np.flatnonzero(~((power >= x.shape[1] * low**2) & (power <= high**2)))
    for i in doubtful:
        peak = max(x[i].max(), -x[i].min())
        if not low <= peak <= high and peak != 0:
            x[i] = _tame(patterns[i].astype(np.float64))
    if wide:
        if subtract_mean:
            x -= x.mean(axis=1, keepdims=True)
        np.copyto(out, x, casting="same_kind")
    elif subtract_mean:
        # A sum in float32 of large numbers loses some; what it leaves is small, and summed again.
        mean, first = _row_means(x), x[:, :1]
        # A flat pattern becomes zero, not nearly zero.
        np.copyto(mean, first, where=np.abs(first - mean) <= 3e-5 * np.abs(mean))
        x -= mean
        return _row_means(x)
    return none


def _row_means(x: NDArray[Any]) -> NDArray[Any]:
    return (row_sums(x) / x.shape[1]).astype(np.float32)[:, None]


def _tame(pattern: NDArray[Any]) -> NDArray[Any]:
    """A pattern without missing pixels and near 1."""
    present = np.isfinite(pattern)
    if not present.any():
        return np.zeros_like(pattern)
    largest = np.abs(pattern[present]).max()
    if largest > 0 and not SAFE_RANGE[0] <= largest <= SAFE_RANGE[1]:
        pattern = pattern / largest
    pattern[~present] = pattern[present].mean()
    return pattern
