"""One scan on the workers of a dask cluster: blocks of rows as tasks.

A task sees a block of rows, with the rows around it that it needs, as a scan of its own. Its result
goes to this process, which puts the blocks together in the order of the scan. So the results are
those of one machine.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.blocks import Report, check_whole

_TASKS_A_THREAD = 4
"""Blocks for each thread of a worker, if the scan has so many. With more, less is done again after
a worker was lost, and the rows around a block are read more often."""

_BLOCK_BYTES = 2**28
"""Largest size of a block in float32, bytes; a block holds at least one row."""

_SENT_AHEAD = 2
"""Blocks for each thread that are in work or wait on the cluster at a time."""


class Block(NamedTuple):
    """Rows ``start:stop`` of a scan, and those around them, ``first:last``, that a task reads."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def inside(self) -> slice:
        """The rows of the block among those that are read."""
        return slice(self.start - self.first, self.stop - self.first)


def check_client(client: Any) -> Any:
    """Check that `client` is None or a dask.distributed.Client with workers."""
    if client is None:
        return None
    if not (hasattr(client, "submit") and hasattr(client, "nthreads")):
        raise TypeError(f"client={client!r} must be a dask.distributed.Client")
    if not client.nthreads():
        raise ValueError(
            "the client has no workers; start some, or wait: client.wait_for_workers(1)"
        )
    return client


def cut_in_blocks(client: Any, data: Any, halo: int) -> list[Block]:
    """Blocks of rows for the workers of `client`, each with `halo` rows on either side.

    With a halo, the first row that a task reads has an even number, because kernels may go down the
    scan in pairs of rows.
    """
    rx, *row = data.shape
    threads = max(1, sum(client.nthreads().values()))
    step = max(2 * halo, -(-rx // (_TASKS_A_THREAD * threads)))
    step = max(1, min(step, _BLOCK_BYTES // (4 * int(np.prod(row)))))
    blocks = []
    for start in range(0, rx, step):
        stop, first = min(start + step, rx), max(0, start - halo)
        first -= first % 2 if halo else 0
        blocks.append(Block(start, stop, first, min(stop + halo, rx)))
    return blocks


def map_blocks(
    client: Any,
    work: Callable[..., Any],
    data: Any,
    blocks: list[Block],
    arguments: Callable[[Block], dict[str, Any]] = lambda block: {},
) -> Iterator[tuple[Block, Any]]:
    """Yield each block with ``work(rows, block, **arguments(block))``, in the order of the scan.

    `rows` are the rows that the block reads, anything that kernels take for a scan. If a worker is
    lost, dask does its blocks again.
    """
    import dask

    ahead = _SENT_AHEAD * max(1, sum(client.nthreads().values()))
    pending: dict[int, Any] = {}

    def send(k: int) -> Any:
        rows = _rows_for_worker(client, data, blocks[k].first, blocks[k].last)
        name = f"py4dstem_clustering-{uuid.uuid4().hex}"
        # Rows of an array in memory are a part of the task, so that dask can do it again where a
        # worker was lost. Dask would warn of such large tasks.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
            return client.submit(
                _on_worker, work, rows, blocks[k], arguments(blocks[k]), key=name, pure=False
            )

    try:
        for k, block in enumerate(blocks):
            for other in range(k, min(k + ahead, len(blocks))):
                if other not in pending:
                    pending[other] = send(other)
            future = pending[k]
            result = future.result()
            future.release()
            del pending[k], future
            yield block, result
            del result
    finally:
        if pending:
            client.cancel(list(pending.values()))


def fill_from_blocks(
    client: Any, work: Callable[..., Any], data: Any, halo: int, target: Any, report: Report
) -> None:
    """Write to the rows of each block of `target` what ``work(rows, block)`` returns."""
    for block, found in map_blocks(client, work, data, cut_in_blocks(client, data, halo)):
        target[block.start : block.stop] = found
        report(block.stop - block.start)


def _on_worker(work: Callable[..., Any], rows: Any, block: Block, arguments: dict[str, Any]) -> Any:
    """Run a task on a worker; what lies in a file is opened there."""
    if isinstance(rows, partial):
        rows = rows()
    return work(rows, block, **arguments)


# --- how the rows get to a worker ----------------------------------------------------------------


class Rows:
    """Some rows of a scan that is not in memory, as a scan of its own."""

    ndim = 4

    def __init__(self, data: Any, first: int, last: int) -> None:
        self._data, self._first = data, first
        self.shape, self.dtype = (last - first, *data.shape[1:]), data.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def packed_row(self, row: int) -> Any:
        """See `ScanArray.packed_row`."""
        find = getattr(self._data, "packed_row", None)
        return None if find is None else find(row + self._first)

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        rows = keys[0]
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            rows = slice(start + self._first, stop + self._first, step)
        else:
            rows = rows + self._first
        key = (rows, *keys[1:])
        found = self._data[key]
        check_whole(self._data)
        return found


def _rows_for_worker(client: Any, data: Any, first: int, last: int) -> Any:
    """Rows of a scan as an argument of a task.

    Data in files are read by the worker, which must have access to them. What dask computes, or
    holds on its workers, becomes a part of the graph, and is worked on there.
    """
    if hasattr(data, "dask"):
        return client.compute(data[first:last])
    if isinstance(data, np.memmap) and type(data.base).__name__ == "mmap":
        order = "C" if data.flags.c_contiguous else "F"
        stored = str(data.filename), data.dtype, data.offset, data.shape, order
        return partial(_open_memmap, *stored, first, last)
    if isinstance(data, np.ndarray):
        return np.ma.copy(data[first:last]) if np.ma.isMaskedArray(data) else data[first:last]
    if hasattr(data, "read_direct"):  # h5py
        return partial(_open_hdf5, data.file.filename, data.name, first, last)
    return Rows(data, first, last)


def _open_memmap(
    path: str,
    dtype: np.dtype[Any],
    offset: int,
    shape: tuple[int, ...],
    order: Any,
    first: int,
    last: int,
) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, shape, order)[first:last]


def _open_hdf5(path: str, name: str, first: int, last: int) -> Rows:
    import h5py

    return Rows(h5py.File(path, "r")[name], first, last)
