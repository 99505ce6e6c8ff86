"""Unpack patterns that Dectris compressed by bitshuffle and LZ4, on several threads.

HDF5 unpacks one chunk at a time, and h5py holds a lock meanwhile. Here only the packed bytes are
read under this lock. They are unpacked by the same code that HDF5 would call, that of hdf5plugin.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..kernels.blocks import count_jobs

_FILTER = 32008
"""Number under which bitshuffle is registered at the HDF Group."""

_LZ4 = 2
"""Value of the option of the filter that says that LZ4 follows."""

_MAX_THREADS = 4
"""Threads that unpack at most: with more, other work on the scan has to wait."""

_HEADER = 12
"""Bytes before the first block of a chunk: its size unpacked (8), and that of a block (4)."""

_MAX_GAP = 2**20
"""Bytes between packed patterns that are read with them."""

Unpack = Callable[[Any, Any, int, int, int], int]


@cache
def _function() -> Unpack | None:
    """``bshuf_decompress_lz4(packed, out, values, bytes a value, values a block)`` of hdf5plugin.

    None where it is not at hand; HDF5 then unpacks.
    """
    try:
        import hdf5plugin

        library = ctypes.CDLL(hdf5plugin.get_config().registered_filters["bshuf"])
        found = library.bshuf_decompress_lz4
    except (ImportError, AttributeError, KeyError, OSError):
        return None
    found.restype = ctypes.c_int64
    found.argtypes = [ctypes.c_char_p, ctypes.c_void_p, *[ctypes.c_size_t] * 3]
    unpack: Unpack = found
    return unpack


def can_unpack(dataset: h5py.Dataset) -> bool:
    """Whether each pattern of a dataset is a chunk that bitshuffle and LZ4 alone have packed."""
    if dataset.chunks is None or dataset.ndim not in (3, 4) or not dataset.dtype.isnative:
        return False
    if dataset.chunks != (*[1] * (dataset.ndim - 2), *dataset.shape[-2:]):
        return False
    filters = dataset.id.get_create_plist()
    if filters.get_nfilters() != 1:
        return False
    number, _, options, _ = filters.get_filter(0)
    if number != _FILTER or len(options) < 5 or options[4] != _LZ4:
        return False
    return _function() is not None


class ChunkPlaces:
    """Where in a file the packed patterns of a dataset lie.

    HDF5 looks this up for each pattern and holds the lock of Python meanwhile, so that no thread
    can unpack. Here all places are looked up at once; then many patterns are read in one piece.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._n_columns = dataset.shape[1]
        self._bytes: list[NDArray[np.int64]] | None = None
        file = dataset.file
        infos: list[Any] = []
        # In other files, a place is not where the bytes lie, or there is no such call.
        if file.driver != "sec2" or file.userblock_size or not hasattr(os, "pread"):
            return
        if not hasattr(dataset.id, "chunk_iter"):
            return
        dataset.id.chunk_iter(infos.append)
        scan = dataset.shape[:-2]
        if len(infos) != np.prod(scan) or any(info.filter_mask for info in infos):
            return
        places = np.array([info.chunk_offset[: len(scan)] for info in infos])
        at = np.ravel_multi_index(tuple(places.T), scan)
        self._bytes = [np.empty(len(infos), dtype=np.int64) for _ in range(2)]
        self._bytes[0][at] = [info.byte_offset for info in infos]
        self._bytes[1][at] = [info.size for info in infos]

    def read(
        self, dataset: h5py.Dataset, row: int | None, first: int, number: int
    ) -> list[bytes] | None:
        """As `read_packed`; by that function where it must be."""
        if self._bytes is None:
            return read_packed(dataset, row, first, number)
        start = first + (0 if row is None else row * self._n_columns)
        places, sizes = (values[start : start + number] for values in self._bytes)
        begin, end = int(places.min()), int((places + sizes).max())
        # Patterns that lie far apart are read one by one, and so are those of a damaged file.
        if not 0 <= end - begin <= 2 * int(sizes.sum()) + _MAX_GAP:
            return read_packed(dataset, row, first, number)
        if end > dataset.file.id.get_filesize():
            return read_packed(dataset, row, first, number)
        found = os.pread(dataset.file.id.get_vfd_handle(), end - begin, begin)
        starts = (places - begin).tolist()
        return [found[a : a + n] for a, n in zip(starts, sizes.tolist(), strict=True)]


def read_packed(
    dataset: h5py.Dataset, row: int | None, first: int, number: int
) -> list[bytes] | None:
    """Packed bytes of consecutive patterns; None where a chunk is stored in another way."""
    before = () if row is None else (row,)
    packed = []
    for k in range(first, first + number):
        skipped, content = dataset.id.read_direct_chunk((*before, k, 0, 0))
        if skipped:  # filters that were not applied to this chunk
            return None
        packed.append(content)
    return packed


def unpack(packed: list[bytes], out: NDArray[Any]) -> bool:
    """Unpack patterns to `out` ``(n, Qx, Qy)``; False where one of them is damaged.

    `out` may then hold anything.
    """
    function = _function()
    if function is None:
        return False

    def some(part: slice) -> bool:
        return _unpack_some(function, packed[part], out[part])

    jobs = min(_MAX_THREADS, count_jobs(None), len(packed))
    if jobs == 1:
        return some(slice(None))
    edges = [len(packed) * k // jobs for k in range(jobs + 1)]
    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(some, [slice(a, b) for a, b in pairwise(edges)])))


class PackedRow:
    """Packed patterns of a row of a scan, which any thread can unpack."""

    def __init__(
        self,
        packed: list[bytes],
        raw: np.dtype[Any],
        read: Callable[[slice], NDArray[Any]],
        repair: Callable[[slice, NDArray[Any]], NDArray[Any]],
    ) -> None:
        self._packed, self._raw = packed, raw
        self._read, self._repair = read, repair

    def unpack(self, columns: slice, out: NDArray[Any]) -> None:
        """Unpack some patterns to `out` ``(n, Qx, Qy)``, and repair them.

        A damaged pattern is read by HDF5, which says what is wrong.
        """
        if not len(out):
            return
        function = _function()
        raw = out if out.dtype == self._raw else np.empty(out.shape, dtype=self._raw)
        packed = self._packed[columns]
        if function is None or not _unpack_some(function, packed, raw):
            out[...] = self._read(columns)
            return
        found = self._repair(columns, raw)
        if raw is not out:
            out[...] = found


def _unpack_some(function: Unpack, packed: list[bytes], out: NDArray[Any]) -> bool:
    """Unpack patterns to `out` ``(n, Qx, Qy)``, contiguous; False where one of them is damaged.

    A pattern is a row of blocks. Where all blocks are whole, many patterns are one long row, which
    is unpacked in one call: between two calls a thread needs the lock of Python.
    """
    headers = {one[8:_HEADER] for one in packed}
    size, itemsize = out[0].size, out.itemsize
    values_a_block = int.from_bytes(packed[0][8:_HEADER], "big") // itemsize
    if len(headers) > 1 or values_a_block <= 0 or size % values_a_block:
        return all(map(partial(_unpack_one, function), packed, out))
    if not all(_is_sound(one, out[0], values_a_block) for one in packed):
        return False
    joined = b"".join([one[_HEADER:] for one in packed])
    used = function(joined, out.ctypes.data, out.size, itemsize, values_a_block)
    return used == len(joined)


def _unpack_one(function: Unpack, packed: bytes, out: NDArray[Any]) -> bool:
    block_bytes = int.from_bytes(packed[8:12], "big")
    values_a_block = block_bytes // out.itemsize
    if not _is_sound(packed, out, values_a_block):
        return False
    used = function(packed[_HEADER:], out.ctypes.data, out.size, out.itemsize, values_a_block)
    return used == len(packed) - _HEADER


def _is_sound(packed: bytes, out: NDArray[Any], values_a_block: int) -> bool:
    """Whether the sizes in a chunk fit; the code that unpacks believes them, and would read on."""
    if int.from_bytes(packed[:8], "big") != out.nbytes:
        return False
    if values_a_block <= 0 or values_a_block % 8:
        return False
    whole, rest = divmod(out.size, values_a_block)
    n_blocks = whole + (rest >= 8)
    place = _HEADER
    for _ in range(n_blocks):  # beyond the end, `place` goes on growing
        place += 4 + int.from_bytes(packed[place : place + 4], "big")
    # Fewer than eight values at the end are not packed.
    return place + out.size % 8 * out.itemsize == len(packed)
