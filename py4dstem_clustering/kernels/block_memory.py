"""Memory for blocks of a scan: rows that stay packed, and blocks that are filled again."""

from __future__ import annotations

from sys import getrefcount
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PackedRows:
    """Rows of a scan as they lie packed in files; the thread that uses patterns unpacks them.

    So all threads share this work, and unpacked patterns stay in the cache of a core. Patterns are
    taken as ``rows[i, columns]``, with a slice of columns, as from an array.
    """

    def __init__(self, rows: list[Any], row_shape: tuple[int, ...], dtype: Any) -> None:
        self._rows = rows
        self.shape, self.dtype = (len(rows), *row_shape), np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: tuple[int, slice]) -> NDArray[Any]:
        row, columns = key
        n = len(range(*columns.indices(self.shape[1])))
        out = np.empty((n, *self.shape[2:]), dtype=self.dtype)
        self.copy_to(out, row, columns)
        return out

    def copy_to(self, out: NDArray[Any], row: int, columns: slice) -> None:
        """Unpack patterns ``(n, Qx, Qy)`` of a row to `out`, which is contiguous."""
        try:
            self._rows[row].unpack(columns, out)
        except Exception:
            # Threads come here in any order; the error is to be that of the first wrong pattern.
            every = np.empty(self.shape[1:], dtype=self.dtype)
            for before in self._rows[: row + 1]:
                before.unpack(slice(None), every)
            raise


class SpareBlocks:
    """Blocks that nobody uses any more, to be filled again.

    New memory takes longer to get from the system than what is in it takes to be unpacked.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[Any]] = []

    def take(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array that nothing else refers to; its values are arbitrary."""
        size = int(np.prod(shape))
        known = [block.size >= size and block.dtype == dtype for block in self._blocks]
        for number, fits in enumerate(known):
            if fits and _references(self._blocks, number) == _UNUSED:
                return self._blocks[number][:size].reshape(shape)
        block = np.empty(size, dtype=dtype)
        # One is being read, one is in use, and one is still a variable of the loop.
        self._blocks = [block, *self._blocks[:2]]
        return block.reshape(shape)


def _references(blocks: list[NDArray[Any]], number: int) -> int:
    """How often a block is referred to: by the list, by this call, and by whoever uses it."""
    return getrefcount(blocks[number])


_UNUSED = _references([np.empty(1)], 0)
"""The same for a block that only the list refers to; it depends on the version of Python."""
