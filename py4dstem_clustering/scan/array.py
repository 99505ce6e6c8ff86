"""A scan that stays on disk and is indexed like an array."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .pieces import LibraryFrames, Piece, check_size, size_of
from .pixels import good_neighbours, median
from .unpacking import ChunkPlaces, PackedRow, can_unpack, unpack

_BATCH_BYTES = 16 * 2**20
"""Bytes of frames that are read and repaired at a time. With a larger number, reading one detector
pixel of the whole scan takes more memory."""

_MAX_OPEN_FILES = 64
"""Most chunk files that are open at a time. A scan may have thousands of them, but a process can
often open no more than 1,024."""


class ScanArray:
    """A 4D scan that stays on disk and is read by frame; `open_scan` returns a DataCube with it.

    It is indexed like a NumPy array, and gives NumPy arrays. The scan axes take integers, slices,
    arrays of integers and boolean maps; the detector axes take integers and slices. Only the frames
    that the index needs are read. ``numpy.asarray(array)`` reads all frames.

    Any number of threads may read at the same time, but HDF5 serves one at a time. A copied or
    pickled scan holds the names of the files, not the counts.

    Attributes
    ----------
    shape : (Rx, Ry, Qx, Qy)
    dtype : numpy.dtype
        The type in the file, or a floating point type if missing pixels are NaN.
    """

    ndim = 4

    def __init__(
        self,
        pieces: Sequence[Piece | LibraryFrames],
        index: NDArray[Any],
        *,
        path: Path,
        bad: NDArray[Any],
        limit: float | None,
        bad_pixels: str,
        saturated: str,
    ) -> None:
        self._path = path
        self._pieces = list(pieces)
        self._starts = np.cumsum([0, *(piece.n_frames for piece in pieces)])
        self._index = index
        self._limit = limit
        self._saturated = saturated
        self._bad_pixels = bad_pixels
        self._bad = np.flatnonzero(bad)
        self._neighbours = good_neighbours(bad) if bad_pixels == "fill" else []

        self._raw = pieces[0].dtype
        floats = bad_pixels == "missing" and self._bad.size
        floats = floats or (saturated == "missing" and limit is not None)
        self.dtype = np.result_type(self._raw, np.float32) if floats else self._raw
        self.shape = (*index.shape, *pieces[0].shape[-2:])
        self._sizes = {path: size_of(path) for path in {piece.file for piece in pieces}}
        self._start()

    def _start(self) -> None:
        self._handles: OrderedDict[tuple[Path, str], h5py.Dataset] = OrderedDict()  # newest last
        self._packed: dict[tuple[Path, str], ChunkPlaces | None] = {}
        self._arrays: dict[tuple[Path, str], Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        of_process = ("_handles", "_packed", "_arrays", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in of_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    # --- methods of arrays

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Bytes that the whole scan takes in memory."""
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, int] | None:
        """Rows and columns that are best read together; None where any will do."""
        rows = max((getattr(piece, "chunk_rows", 1) for piece in self._pieces), default=1)
        return (rows, self.shape[1]) if rows > 1 else None

    @property
    def files(self) -> list[Path]:
        """The file that was opened, and the files that hold the frames."""
        return sorted({self._path, *self._sizes})

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        files = len(self._sizes)
        first = self._pieces[0].file.name
        more = f" and {files - 1} more" if files > 1 else ""
        return f"<ScanArray {self.shape} {self.dtype} in {first}{more}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        out = self[...]
        return out if dtype is None else out.astype(dtype, copy=False)

    def copy(self) -> ScanArray:
        """Return this array, because it cannot be written to."""
        return self

    def mean(self, axis: Any = None, **options: Any) -> Any:
        """Mean along `axis`, as numpy.mean; with ``axis=(0, 1)`` it is read row by row."""
        if axis != (0, 1) or _beyond_defaults(options):
            return np.asarray(self).mean(axis=axis, **options)
        total = np.zeros(self.shape[2:])
        for row in range(len(self)):
            total += self[row].sum(axis=0, dtype=np.float64)
        return total / self._index.size

    def max(self, axis: Any = None, **options: Any) -> Any:
        """Maximum along `axis`, as numpy.max; with ``axis=(0, 1)`` it is read row by row."""
        if axis != (0, 1) or _beyond_defaults(options):
            return np.asarray(self).max(axis=axis, **options)
        out = self[0].max(axis=0)
        for row in range(1, len(self)):
            np.maximum(out, self[row].max(axis=0), out=out)
        return out

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        with self._lock:
            while self._handles:
                self._handles.popitem()[1].file.close()
            self._arrays.clear()

    # --- reading

    def __getitem__(self, key: Any) -> Any:
        scan_key, pattern_key = self._split(key)
        frames = self._index[scan_key]
        pattern = np.broadcast_to(np.int8(0), self.shape[2:])[pattern_key].shape
        numbers, places = np.unique(frames, return_inverse=True)  # each frame is read once
        out = np.empty((len(numbers), *pattern), dtype=self.dtype)
        frame_bytes = self._raw.itemsize * self.shape[2] * self.shape[3]
        every_frame = (slice(None), *pattern_key)
        whole = pattern == self.shape[2:] and all(k.step in (None, 1) for k in pattern_key)
        for batch in self._batches(numbers, max(1, _BATCH_BYTES // frame_bytes)):
            if whole:
                self._read(numbers[batch], out[batch])
            else:
                out[batch] = self._read(numbers[batch])[every_frame]
        if not np.array_equal(places, np.arange(len(numbers))):
            out = out[places.reshape(-1)]
        return out.reshape(frames.shape + pattern)[()]

    def _batches(self, numbers: NDArray[Any], step: int) -> Iterator[slice]:
        """Parts of the frames to be read at a time: about `step`, but whole chunks of a file."""
        cuts = np.arange(step, len(numbers), step)
        if self.chunks is not None and len(numbers) > self.shape[1]:
            span = self.chunks[0] * self.chunks[1]
            span *= max(1, step // span)
            cuts = np.flatnonzero(np.diff(numbers // span)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(numbers)], strict=True):
            if stop > start:
                yield slice(int(start), int(stop))

    def _split(self, key: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Split an index into one for the scan axes and one for the detector axes."""
        keys = list(key) if isinstance(key, tuple) else [key]
        keys = [k if _is_basic(k) else np.asarray(k) for k in keys]
        if any(k is None for k in keys):
            raise IndexError("None makes no new axis here; read first, data[...][None]")
        axes = [k.ndim if isinstance(k, np.ndarray) and k.dtype == bool else 1 for k in keys]
        dots = [i for i, k in enumerate(keys) if k is Ellipsis]
        if len(dots) > 1:
            raise IndexError("an index may hold one ellipsis (...) only")
        n_axes = sum(axes) - len(dots)
        if n_axes > self.ndim:
            raise IndexError(f"{n_axes} indices for an array of {self.ndim} axes")
        at = dots[0] if dots else len(keys)
        whole = [slice(None)] * (self.ndim - n_axes)
        keys[at : at + 1] = whole
        axes[at : at + 1] = [1] * len(whole)

        n_scan = int(np.searchsorted(np.cumsum(axes), 2)) + 1
        scan, pattern = keys[:n_scan], keys[n_scan:]
        if sum(axes[:n_scan]) != 2 or any(isinstance(k, np.ndarray) for k in pattern):
            raise IndexError(
                "the detector axes take integers and slices, scan axes arrays too; read first, "
                "data[scan index][..., detector index]"
            )
        if any(isinstance(k, np.ndarray) for k in scan) and not all(
            isinstance(k, slice) for k in pattern
        ):
            # For such an index NumPy may move axes.
            raise IndexError(
                "with arrays for the scan axes, the detector axes take slices only; read first, "
                "data[scan index][..., detector index]"
            )
        return tuple(scan), tuple(pattern)

    def read_rows_into(self, out: NDArray[Any], first: int) -> None:
        """Read rows of the scan from number `first` to `out`, without a copy where it can be."""
        numbers = self._index[first : first + len(out)].reshape(-1)
        if not (np.diff(numbers) > 0).all():
            out[...] = self[first : first + len(out)]
            return
        target = out.reshape(-1, *self.shape[2:])
        frame_bytes = self._raw.itemsize * self.shape[2] * self.shape[3]
        for batch in self._batches(numbers, max(1, _BATCH_BYTES // frame_bytes)):
            self._read(numbers[batch], target[batch])

    def packed_row(self, row: int) -> PackedRow | None:
        """A row of the scan, to be unpacked later; None where it is not packed by bitshuffle/LZ4.

        Also None where it cannot be read: to read it as an array raises the error.
        """
        numbers, order = np.unique(self._index[row], return_inverse=True)
        packed: list[bytes] = []
        for piece, first, frames in self._runs(numbers):
            if isinstance(piece, LibraryFrames):
                return None
            with self._lock:
                dataset = self._dataset(piece)
                places = self._packed[piece.file, piece.dataset]
                if places is None:
                    return None
                try:
                    found = places.read(dataset, piece.row, first, frames.stop - frames.start)
                except (OSError, RuntimeError):
                    return None
                check_size(piece.file, self._sizes[piece.file])
            if found is None:
                return None
            packed += found
        in_order = [packed[k] for k in order]
        read, repair = partial(self._read_columns, row), partial(self._repair_columns, row)
        return PackedRow(in_order, self._raw, read, repair)

    def _read_columns(self, row: int, columns: slice) -> NDArray[Any]:
        found: NDArray[Any] = self[row, columns]
        return found

    def _repair_columns(self, row: int, columns: slice, raw: NDArray[Any]) -> NDArray[Any]:
        return self._repair(raw, self._index[row, columns])

    def _runs(self, numbers: NDArray[Any]) -> Iterator[tuple[Piece | LibraryFrames, int, slice]]:
        """Consecutive frames of one dataset: dataset, first frame in it, which of the `numbers`."""
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        cuts = np.flatnonzero((np.diff(numbers) != 1) | np.diff(places)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(numbers)], strict=True):
            if stop > start:
                place = places[start]
                first = int(numbers[start] - self._starts[place])
                yield self._pieces[place], first, slice(int(start), int(stop))

    def _read(self, numbers: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read and repair the frames with these numbers, to `out` if given; they must rise."""
        if out is None or out.dtype != self._raw:
            raw = np.empty((len(numbers), *self.shape[2:]), dtype=self._raw)
        else:
            raw = out
        for piece, first, frames in self._runs(numbers):
            self._read_run(piece, first, raw[frames])
        found = self._repair(raw, numbers)
        if out is not None and raw is not out:
            out[...] = found
        return found

    def _read_run(self, piece: Piece | LibraryFrames, first: int, out: NDArray[Any]) -> None:
        """Read consecutive frames of one dataset into `out`, from number `first`."""
        if isinstance(piece, LibraryFrames):
            self._read_by_library(piece, first, out)
        else:
            self._read_hdf5(piece, first, out)

    def _read_by_library(self, piece: LibraryFrames, first: int, out: NDArray[Any]) -> None:
        key = piece.file, piece.dataset
        # Reading beyond the end of a file that shrank would kill the process.
        check_size(piece.file, self._sizes[piece.file])
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = piece.open()
            frames = self._arrays[key]
        shape = (int(np.prod(frames.shape[:-2])), *frames.shape[-2:])
        if (shape, frames.dtype.newbyteorder("=")) != (piece.shape, piece.dtype):
            raise OSError(f"{piece.file} was changed; open the scan again")
        try:
            if frames.ndim == 3:
                found = _computed(frames[first : first + len(out)])
            else:
                found = _frames_of_rows(frames, first, len(out))
        except (OSError, RuntimeError, ValueError) as error:
            check_size(piece.file, self._sizes[piece.file])
            raise OSError(
                f"frames {first} to {first + len(out) - 1} of {piece.file} cannot be read "
                f"({error}); copy the file again"
            ) from error
        out[...] = found

    def _read_hdf5(self, piece: Piece, first: int, out: NDArray[Any]) -> None:

        def read(start: int, stop: int, out: NDArray[Any]) -> None:
            rows = slice(first + start, first + stop)
            dataset.read_direct(out, rows if piece.row is None else (piece.row, rows))

        packed = None
        with self._lock:
            dataset = self._dataset(piece)
            try:
                places = self._packed[piece.file, piece.dataset]
                if places is not None:
                    packed = places.read(dataset, piece.row, first, len(out))
                if packed is None:
                    read(0, len(out), out)
            except (OSError, RuntimeError) as error:
                check_size(piece.file, self._sizes[piece.file])
                raise self._unreadable(piece, first, out, read) from error
            # HDF5 reads zeros beyond the end of a file that shrank.
            check_size(piece.file, self._sizes[piece.file])
        if packed is None or unpack(packed, out):
            return
        with self._lock:  # HDF5 says what is wrong, frame by frame
            try:
                read(0, len(out), out)
            except (OSError, RuntimeError) as error:
                raise self._unreadable(piece, first, out, read) from error

    def _unreadable(
        self, piece: Piece, first: int, out: NDArray[Any], read: Callable[..., None]
    ) -> OSError:
        """The error for the first frame that cannot be read."""
        for i in range(len(out)):
            try:
                read(i, i + 1, out[i : i + 1])
            except (OSError, RuntimeError) as error:
                at = first + i if piece.row is None else (piece.row, first + i)
                number = self._starts[self._pieces.index(piece)] + first + i
                return OSError(
                    f"frame {at} of {piece.dataset!r} in {piece.file}, {self._position(number)}, "
                    f"cannot be read ({error}); copy the file again, or leave the position out"
                )
        return OSError(f"{piece.file} could not be read, and then it could; try again")

    def _position(self, number: int) -> str:
        x, y = (int(n[0]) for n in np.nonzero(self._index == number))
        return f"scan position ({x}, {y})"

    def _dataset(self, piece: Piece) -> h5py.Dataset:
        key = piece.file, piece.dataset
        if key not in self._handles:
            if len(self._handles) >= _MAX_OPEN_FILES:
                self._handles.popitem(last=False)[1].file.close()
            check_size(piece.file, self._sizes[piece.file])
            try:
                dataset = h5py.File(piece.file, "r")[piece.dataset]
                same = (
                    dataset.shape == piece.shape and dataset.dtype.newbyteorder("=") == piece.dtype
                )
            except (OSError, KeyError, AttributeError) as error:
                raise OSError(f"{piece.file} cannot be opened any more ({error})") from error
            if not same:
                raise OSError(f"{piece.file} was changed; open the scan again")
            self._handles[key] = dataset
            if key not in self._packed:
                self._packed[key] = ChunkPlaces(dataset) if can_unpack(dataset) else None
        self._handles.move_to_end(key)
        return self._handles[key]

    # --- repairing

    def _repair(self, raw: NDArray[Any], numbers: NDArray[Any]) -> NDArray[Any]:
        """Treat saturated counts and bad pixels as the options say."""
        flat = raw.reshape(len(raw), -1)
        out = flat
        if self._limit is not None and self._saturated != "keep":
            recorded = flat[:, self._bad]
            flat[:, self._bad] = 0  # bad pixels do not count as saturated
            over = flat > self._limit if flat.max() > self._limit else None
            flat[:, self._bad] = recorded
            if over is not None and self._saturated == "raise":
                raise self._saturation_error(flat, over, numbers)
            out = flat.astype(self.dtype, copy=False)
            if over is not None:
                out[over] = np.nan
        out = out.astype(self.dtype, copy=False)
        if self._bad_pixels == "missing" and self._bad.size:
            out[:, self._bad] = np.nan
        for pixels, neighbours in self._neighbours:
            values = median(out[:, neighbours])
            out[:, pixels] = np.rint(values) if out.dtype.kind in "iu" else values
        return out.reshape(raw.shape)

    def _saturation_error(
        self, flat: NDArray[Any], over: NDArray[np.bool_], numbers: NDArray[Any]
    ) -> ValueError:
        frame, pixel = (int(n[0]) for n in np.nonzero(over))
        u, v = (int(n) for n in np.unravel_index(pixel, self.shape[2:]))
        return ValueError(
            f"pixel ({u}, {v}) at {self._position(numbers[frame])} is saturated: it holds "
            f"{flat[frame, pixel]}, the largest good count is {self._limit:g}, and so in "
            f"{np.count_nonzero(over)} pixels of the {len(flat)} frames just read; "
            "open_scan(..., saturated='missing') makes them NaN, 'keep' takes them as they are"
        )


def _computed(found: Any) -> Any:
    """The values of a dask array; other arrays as they are."""
    # In this thread: while py4DSTEM.save holds the lock of h5py, others would wait for ever, and a
    # client of dask would read on another computer.
    return found.compute(scheduler="synchronous") if hasattr(found, "dask") else found


def _frames_of_rows(scan: Any, first: int, number: int) -> Any:
    """Consecutive frames (number, Qx, Qy) of a scan (Rx, Ry, Qx, Qy); chunks are unpacked once."""
    columns = scan.shape[1]
    top, left = divmod(first, columns)
    bottom, right = divmod(first + number - 1, columns)
    if top == bottom:
        return _computed(scan[top, left : right + 1])
    rows = _computed(scan[top : bottom + 1])
    return rows.reshape(-1, *rows.shape[2:])[left : left + number]


def _is_basic(key: Any) -> bool:
    """Whether an index is an integer, a slice, None or an ellipsis, not an array."""
    if isinstance(key, (bool, np.bool_)):
        return False
    return key is None or key is Ellipsis or isinstance(key, (slice, int, np.integer))


def _beyond_defaults(options: dict[str, Any]) -> bool:
    """Whether any option differs from its default in numpy.mean and numpy.max."""
    return any(value is not None and value is not False for value in options.values())
