"""Rows of numbers that are made once and read again: in memory, or in a temporary file."""

from __future__ import annotations

import tempfile
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES = 2**29
"""Bytes that are kept in memory where the user set no limit; what comes later goes to a file. A
larger number takes more memory, and less time where the temporary folder is slow."""


class _Place(NamedTuple):
    """Where a row is in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class KeptRows:
    """Arrays of float32 in the order in which they were added, to be read in any order.

    With `whole_numbers`, an array that holds only whole numbers of 8 or 16 bits takes no more
    room than these. All values come back exactly.

    The file is in the temporary folder of the system and has no name there, so that it is gone as
    soon as the process ends, however it ends. If it cannot be written, `is_complete` becomes False:
    the rows must then be made again.
    """

    def __init__(self, limit: int, whole_numbers: bool) -> None:
        self.is_complete = True
        self._left, self._whole_numbers = limit, whole_numbers
        self._rows: list[NDArray[Any] | _Place] = []
        self._file: Any = None
        self._size = 0
        self._lock = Lock()

    def __enter__(self) -> KeptRows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Free the memory and remove the file."""
        self._rows.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, row: NDArray[np.float32]) -> None:
        """Keep a copy of the next row."""
        self.add_packed(self.pack(row))

    def pack(self, row: NDArray[np.float32]) -> NDArray[Any]:
        """A copy of a row as it is kept; several threads may make one at once."""
        packed = as_small_integers(row) if self._whole_numbers else row
        return packed.copy() if packed is row else packed

    def add_packed(self, row: NDArray[Any]) -> None:
        """Keep what `pack` has made of the next row."""
        if not self.is_complete:
            return
        if row.nbytes <= self._left:
            self._left -= row.nbytes
            self._rows.append(row)
            return
        self._left = 0
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `clear`)
            self._file.write(np.ascontiguousarray(row).data)
            self._file.flush()  # so that a full disk shows here, where it is no error
        except OSError:
            self.is_complete = False
            self.clear()
            return
        self._rows.append(_Place(self._size, row.shape, row.dtype))
        self._size += row.nbytes

    def read(self, number: int) -> NDArray[np.float32]:
        """Row `number`, to be read only; several threads may read at once."""
        row = self._rows[number]
        if isinstance(row, _Place):
            place, row = row, np.empty(row.shape, dtype=row.dtype)
            with self._lock:
                self._file.seek(place.offset)
                n_bytes = self._file.readinto(row.reshape(-1).view(np.uint8))
            if n_bytes != row.nbytes:
                raise OSError("a temporary file has become shorter; do not empty the folder TMPDIR")
        return row.astype(np.float32, copy=False)


def as_small_integers(row: NDArray[np.float32]) -> NDArray[Any]:
    """The row as whole numbers of 8 or 16 bits if these are exact, else as it is."""
    high = row.max(initial=0)
    if not (row.min(initial=0) >= 0 and high <= np.iinfo(np.uint16).max):
        return row
    packed = row.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
    return packed if np.array_equal(packed, row) else row
