"""Walk a scan in blocks of rows, over anything array-like, with one pool of threads.

This is the only place that reads the 4D data. A NumPy array, a memmap, an h5py dataset and a dask
array all look the same to the kernels, and memory is bounded by the block, never by the scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import product
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blas import row_dots, row_sums, single_threaded_blas
from .block_memory import PackedRows, SpareBlocks

BLOCK_BYTES = 128 * 2**20
"""Bytes of a block of rows in float32; a block holds at least one row. With a larger block, threads
wait less for each other, and the work takes more memory."""

_PIECE_BYTES = 8 * 2**20
"""Bytes of a block that are read from a file at a time. Ctrl-C waits until they are read; smaller
pieces take longer to read."""

_UNPACKED_AT_ONCE = 32
"""Patterns of a window that one thread unpacks at a time."""

_OVERHEAD = 64 * 2**20
"""Bytes of memory that are not counted one by one: stacks of threads, buffers of HDF5 and BLAS."""

SAFE_RANGE = (1e-10, 1e10)
"""Values whose squares, summed over any detector, neither overflow nor vanish in float32. Patterns
with values outside this range are rescaled before they are compared."""

Report = Callable[[int], Any]
"""A function that is called with the number of scan rows just finished."""


def ignore(number: int) -> None:
    """A `Report` that shows nothing."""


Run = Callable[[Callable[[Any], Any], Iterable[Any]], None]
"""``run(task, items)`` of `workers`."""


def count_jobs(n_jobs: int | None) -> int:
    """Number of threads: `n_jobs`, or all cores that this process may use."""
    if n_jobs is not None:
        return int(n_jobs)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class MemoryNeed(NamedTuple):
    """Bytes of memory that a kernel takes at most, beside its result."""

    fixed: int
    """Bytes for any size of the blocks: matrices, buffers of threads, rows around a block."""
    row: int = 0
    """Bytes more for each row of the scan in a block."""


def row_need(data: Any) -> int:
    """Bytes of a row of the scan as it is read; nothing for an array that is not copied."""
    if isinstance(data, np.ndarray) and not isinstance(data, (np.memmap, np.ma.MaskedArray)):
        return 0
    return np.dtype(data.dtype).itemsize * int(np.prod(data.shape[1:]))


def scratch_need(data: Any, n_jobs: int | None, patterns: int, copies: float) -> int:
    """Bytes for threads that each hold `copies` of some `patterns` in float32.

    Types that float32 does not hold take two copies in float64 more.
    """
    wide = np.dtype(data.dtype).itemsize > 4 or np.dtype(data.dtype) in (np.int32, np.uint32)
    pixels = int(np.prod(data.shape[2:]))
    jobs, patterns = count_jobs(n_jobs), min(patterns, data.shape[1])
    return _OVERHEAD + int(jobs * patterns * pixels * 4 * (copies + 2 * wide))


class Stopped(Exception):
    """Ends a thread whose result is not needed any more."""


_cancelled: ContextVar[Event | None] = ContextVar("_cancelled", default=None)


@contextmanager
def stop_with(event: Event) -> Iterator[None]:
    """In this context, work of this thread on a scan ends with `Stopped` soon after `event` is set.

    Ctrl-C reaches the main thread only, so other threads must be told to stop.
    """
    token = _cancelled.set(event)
    try:
        yield
    finally:
        _cancelled.reset(token)


def _check_cancelled() -> None:
    event = _cancelled.get()
    if event is not None and event.is_set():
        raise Stopped


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
            _check_cancelled()
            waiting = list(enumerate(items))[::-1]
            failed: list[tuple[int, BaseException]] = []

            # One loop in every thread: a future for every item would take longer than small items.
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


def of_each(run: Run, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``work(item)`` of each item, by the threads of `run`."""
    items = list(items)
    found: list[Any] = [None] * len(items)

    def do(i: int) -> None:
        found[i] = work(items[i])

    run(do, range(len(items)))
    return found


def read_rows(data: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows ``start:stop`` of the scan as a NumPy array in the data's own type.

    It reads in a separate thread. In the main thread, Ctrl-C may be raised inside a callback of
    h5py, where Python prints it and goes on.
    """
    if isinstance(data, np.ndarray):
        return _read_now(data, start, stop)
    with ThreadPoolExecutor(1) as reader:
        return reader.submit(_read_now, data, start, stop).result()


def read_window(
    data: Any,
    rows: tuple[int, int],
    columns: tuple[int, int],
    *,
    buffer: NDArray[Any] | None = None,
    run: Run | None = None,
) -> NDArray[Any]:
    """Patterns of a window of the scan, as `read_rows` reads them.

    They may be written to a `buffer` of the shape and type of the window, by the threads of `run`,
    if both are given.
    """
    which = slice(*columns)
    if buffer is not None and run is not None and hasattr(data, "packed_row"):
        with ThreadPoolExecutor(1) as reader:
            found = reader.submit(_read_packed_block, data, *rows, Event(), SpareBlocks()).result()
        if isinstance(found, PackedRows):
            packed, out = found, buffer

            def unpack(task: tuple[int, slice]) -> None:
                i, some = task
                of_scan = slice(which.start + some.start, which.start + some.stop)
                packed.copy_to(out[i, some], i, of_scan)

            run(unpack, product(range(len(packed)), tiles(out.shape[1], _UNPACKED_AT_ONCE)))
            return buffer
    part = data[:, which] if isinstance(data, np.ndarray) else _Columns(data, which)
    return read_rows(part, *rows)


class _Columns:
    """Some columns of a scan that is not in memory; they are read together with the rows."""

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
    """Raise an OSError if the file of an h5py dataset or a memmap has become shorter.

    HDF5 reads zeros behind the end of a file, and reading a memmap there kills the process.
    """
    if isinstance(data, np.memmap):
        whole: Any = data  # `data` may be a part of it, as with headers between the patterns
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


def _read_block(
    data: Any, start: int, stop: int, stopped: Event, spare: SpareBlocks
) -> NDArray[Any]:
    """As `read_rows`, in pieces; ends with `Stopped` once `stopped` is set."""
    on_disk = isinstance(data, np.memmap) or not isinstance(data, np.ndarray)
    if not on_disk or hasattr(data, "dask"):
        return _read_now(data, start, stop)
    _, columns, *detector = data.shape
    # Pieces are whole chunks of HDF5: a chunk that is cut is decompressed twice.
    chunk = getattr(data, "chunks", None) or (1, 1)
    pattern_bytes = np.dtype(data.dtype).itemsize * int(np.prod(detector))
    n_rows = max(1, _PIECE_BYTES // (pattern_bytes * columns) // chunk[0]) * chunk[0]
    n_columns = columns
    if hasattr(data, "read_direct"):  # h5py
        n_columns = max(1, _PIECE_BYTES // (pattern_bytes * n_rows))
        n_columns = -(-n_columns // chunk[1]) * chunk[1]
    out = spare.take((stop - start, columns, *detector), data.dtype)
    reads_into = hasattr(data, "read_rows_into")  # saves a copy
    cuts = range((start // n_rows + 1) * n_rows, stop, n_rows)
    for first, last in zip([start, *cuts], [*cuts, stop], strict=True):
        for column in range(0, columns, n_columns):
            if stopped.is_set():
                raise Stopped
            if reads_into:
                data.read_rows_into(out[first - start : last - start], first)
                continue
            if n_columns >= columns:
                piece = data[first:last]
            else:
                piece = data[first:last, column : column + n_columns]
            check_whole(data)
            out[first - start : last - start, column : column + n_columns] = piece
    return out


def _read_packed_block(data: Any, start: int, stop: int, stopped: Event, spare: SpareBlocks) -> Any:
    """Rows as `PackedRows` if they are packed, else as `_read_block` reads them."""
    rows = []
    for row in range(start, stop):
        if stopped.is_set():
            raise Stopped
        packed = data.packed_row(row)
        if packed is None:
            return _read_block(data, start, stop, stopped, spare)
        rows.append(packed)
    return PackedRows(rows, data.shape[1:], data.dtype)


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
    data: Any, copies: int = 1, n_rows: int | None = None, packed: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield ``(first_row, rows)`` for every block; the next block is read while one is used.

    Blocks have `n_rows`; by default as `row_blocks` cuts them. When the loop ends early, by an
    error or Ctrl-C, reading stops after the piece at hand. With `packed`, the rows of a scan that
    is packed in files are `PackedRows`, else arrays.
    """
    stopped, spare = Event(), SpareBlocks()
    read = partial(_read_block, data, stopped=stopped, spare=spare)
    if packed and hasattr(data, "packed_row"):
        read = partial(_read_packed_block, data, stopped=stopped, spare=spare)
        if n_rows is None:  # these take a fraction of the memory of unpacked ones
            row_bytes = np.dtype(data.dtype).itemsize * int(np.prod(data.shape[1:]))
            n_rows = max(1, BLOCK_BYTES // max(row_bytes, 1))
    if n_rows is None:
        blocks = list(row_blocks(data.shape, copies))
    else:
        starts = range(0, data.shape[0], n_rows)
        blocks = [(start, min(start + n_rows, data.shape[0])) for start in starts]
    reader = ThreadPoolExecutor(1)
    try:
        # A list, so that nothing keeps a block in memory that has been taken out.
        pending = [reader.submit(read, *blocks[0])]
        for index, (start, _) in enumerate(blocks):
            _check_cancelled()
            rows = pending.pop().result()
            if index + 1 < len(blocks):
                pending.append(reader.submit(read, *blocks[index + 1]))
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

    Threads wait for each other between calls, so that calls must not be short.
    """
    return max(number, number * 192**2 // max(pixels, 1))


def to_float32(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Values as float32; a ValueError where one is too large, or all are too small for it."""
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


def is_small_integer(dtype: np.dtype[Any]) -> bool:
    """Whether a type holds whole numbers of 8 or 16 bits, which float32 holds exactly."""
    return dtype.kind in "bui" and dtype.itemsize <= 2


def as_comparable(patterns: NDArray[Any], subtract_mean: bool) -> NDArray[np.float32]:
    """Copy patterns ``(n, pixels)`` to float32, ready to be compared.

    With `subtract_mean`, the mean of each pattern is subtracted, also where it is so large that
    float32 would lose the rest. A missing pixel (NaN or infinite) counts as the mean of its
    pattern. A pattern whose values lie far from 1 is divided by its largest magnitude, so that its
    squares stay inside float32; this changes no cosine and no correlation.
    """
    out = np.empty(patterns.shape, dtype=np.float32)
    mean = nearly_comparable(patterns, subtract_mean, out)
    if subtract_mean:
        out -= mean
    return out


def nearly_comparable(
    patterns: NDArray[Any], subtract_mean: bool, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """As `as_comparable`, to `out`, except that means ``(n, 1)`` are left to subtract.

    Returns these means. The result of a pattern does not depend on the other patterns.
    """
    none = np.zeros((len(patterns), 1), dtype=np.float32)
    if is_small_integer(patterns.dtype):
        np.copyto(out, patterns)
        return _row_means(out) if subtract_mean else none

    # float32 holds 7 digits; the types that hold more go through float64.
    wide = patterns.itemsize > 4 or patterns.dtype.kind in "iu"
    low, high = SAFE_RANGE
    x: NDArray[Any]
    if wide:
        x = patterns.astype(np.float64)
        doubtful = np.arange(len(x))
    else:
        x = out
        np.copyto(x, patterns, casting="unsafe")
        # A sum of squares in this range shows that a pattern needs no change; otherwise its largest
        # magnitude decides.
        power = row_dots(x, x)
        doubtful = np.flatnonzero(~((power >= x.shape[1] * low**2) & (power <= high**2)))
    for i in doubtful:
        peak = max(x[i].max(), -x[i].min())
        if not low <= peak <= high and peak != 0:
            x[i] = _rescaled(patterns[i].astype(np.float64))
    if wide:
        if subtract_mean:
            # The mean of equal values is rounded; a flat pattern becomes zero, not nearly zero.
            flat = x.max(axis=1) == x.min(axis=1)
            x -= x.mean(axis=1, keepdims=True)
            x[flat] = 0
        np.copyto(out, x, casting="same_kind")
    elif subtract_mean:
        # The mean of large numbers is not exact in float32, so the mean of the rest is taken again.
        mean, first = _row_means(x), x[:, :1]
        # A flat pattern becomes zero, not nearly zero.
        np.copyto(mean, first, where=np.abs(first - mean) <= 3e-5 * np.abs(mean))
        x -= mean
        return _row_means(x)
    return none


def _row_means(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return (row_sums(x) / x.shape[1]).astype(np.float32)[:, None]


def _rescaled(pattern: NDArray[Any]) -> NDArray[Any]:
    """A pattern whose missing pixels are its mean, and whose largest magnitude is in range."""
    present = np.isfinite(pattern)
    if not present.any():
        return np.zeros_like(pattern)
    largest = np.abs(pattern[present]).max()
    if largest > 0 and not SAFE_RANGE[0] <= largest <= SAFE_RANGE[1]:
        pattern = pattern / largest
    pattern[~present] = pattern[present].mean()
    return pattern
