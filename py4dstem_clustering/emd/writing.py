"""Results as stock EMD objects, and files that are complete or absent.

Only classes of emdfile and py4DSTEM are written, so that every file opens where this package is
missing. What makes a node ours is a Metadata called `TAG`.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# Seconds after which a file that a dead process was writing counts as left behind.
_STALE = 60

# Blocks are compressed and written in pieces of about so many bytes, so that Ctrl-C need not wait.
PIECE_BYTES = 4 * 2**20


# --- files -----------------------------------------------------------------------------------


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """A file name to write to; what was written moves to `path` when all went well.

    The other name lies in the same folder, ``.<name>.<host>-<process>-<random>.partial``. It is
    removed on an error; a killed process leaves it behind, never a half-written `path`, and the
    next one that writes `path` removes it.
    """
    path = path.resolve()  # through a link to the file itself
    _remove_leftovers(path)
    prefix = f".{path.name}.{_host()}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # mkstemp makes it private
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let a new name outlive a power loss; where folders can be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _host() -> str:
    return "".join(c if c.isalnum() else "_" for c in socket.gethostname())[:32]


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes of this machine left of `path`; it may be as large as a scan."""
    if os.name != "posix":  # only there a signal 0 asks, and does nothing
        return
    start = f".{path.name}.{_host()}-"
    for partial in path.parent.iterdir():
        name = partial.name
        if not (name.startswith(start) and name.endswith(".partial")):
            continue
        process, dash, _ = name[len(start) :].partition("-")
        if not (dash and process.isdecimal()):
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            # One that is being written now, in a container of the same name, is younger.
            with suppress(OSError):
                if time.time() - partial.stat().st_mtime > _STALE:
                    partial.unlink()
        except (OSError, OverflowError):
            continue


def save_new(path: Path, data: Any, n_bytes: int | None = None) -> None:
    """`py4DSTEM.save`, complete or absent: emdfile writes in place (0.0.16).

    `n_bytes` is what the data take, by default those of averages, which are kept twice, with the
    clusters too.
    """
    import py4DSTEM

    # HDF5 may kill the process on a full disk.
    check_room(path, (2 * data.data.nbytes if n_bytes is None else n_bytes) + 2**22)
    with complete_or_absent(path) as partial:
        py4DSTEM.save(str(partial), data, mode="o")


class _Guarded:
    """A file for h5py that never fails: after a first error nothing more is written to it.

    HDF5 kills the process when it cannot write what it holds back until a file is closed (h5py
    3.16: a second close after a failed one). Here it can close, and the error is kept.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self.error: OSError | None = None
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell
        self.close = self._file.close

    def readinto(self, buffer: Any) -> int:
        n = self._file.readinto(buffer)
        if self.error is not None:  # behind what was written
            memoryview(buffer).cast("B")[n:] = bytes(len(buffer) - n)
            return len(buffer)
        return n

    def write(self, buffer: Any) -> int:
        rest = memoryview(buffer).cast("B")
        try:
            while self.error is None and len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
        return len(buffer)

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                self._file.truncate(size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""


class _Target:
    """Takes ``target[start:stop] = rows`` for a dataset, and writes them while work goes on.

    A thread of its own writes, in pieces. h5py in the main thread may lose Ctrl-C: it comes up in a
    callback of weak references, where Python prints and drops it.
    """

    def __init__(self, dataset: h5py.Dataset, check: Callable[[], None]) -> None:
        self._dataset, self._check = dataset, check
        self._stopped = Event()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        self.wait()
        self._pending = self._thread.submit(self._write, rows, values)

    def wait(self) -> None:
        """Until all is written."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()
        self._thread.shutdown(cancel_futures=True)

    def _write(self, rows: slice, values: NDArray[Any]) -> None:
        columns, qx, qy = self._dataset.shape[1:]
        per_chunk = self._dataset.chunks[1]
        step = max(1, PIECE_BYTES // (4 * qx * qy * per_chunk)) * per_chunk
        for row, patterns in zip(range(rows.start, rows.stop), values, strict=True):
            for start in range(0, columns, step):
                if self._stopped.is_set():
                    return
                self._dataset[row, start : start + step] = patterns[start : start + step]
                self._check()


def check_room(path: Path, n_bytes: int, remedy: str = "make room, or choose another disk") -> None:
    """Room for so many bytes on the disk of a file."""
    free = shutil.disk_usage(path.resolve().parent).free
    if n_bytes > free:
        raise OSError(
            f"{path} needs {n_bytes / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB free; "
            f"{remedy}"
        )


@contextmanager
def new_file(path: Path, skeleton: Any) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """An EMD file that holds `skeleton`, to be filled with h5py; complete or absent.

    Comes with a function that raises an OSError when the disk is full: HDF5 is not told, see
    `_Guarded`.
    """
    import py4DSTEM

    with complete_or_absent(path) as partial:
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "skeleton.h5"
            py4DSTEM.save(str(small), skeleton, mode="o")
            content = small.read_bytes()
        guard = _Guarded(partial)

        def check() -> None:
            if guard.error is not None:
                raise OSError(
                    f"{path} cannot be written ({guard.error}); nothing is left of it. Make room, "
                    "or choose another disk"
                ) from guard.error

        with closing(guard):
            guard.write(content)
            check()
            with h5py.File(guard, "r+") as file:
                yield file, check
            check()  # what HDF5 wrote last


@contextmanager
def scan_writer(
    path: Path,
    skeleton: Any,
    shape: tuple[int, ...],
    compression: Mapping[str, Any] | None = None,
) -> Iterator[_Target]:
    """An EMD file with a float32 scan to be filled block by block.

    Parameters
    ----------
    path : where the finished file will be.
    skeleton : DataCube of at most 2 x 2 x 2 x 2, with the calibration and metadata to write.
        emdfile stores an evenly spaced axis as its first two coordinates, so those of the skeleton
        serve for a scan of any size; its data are replaced.
    shape : (Rx, Ry, Qx, Qy)
    compression : options of h5py; by default none.

    Yields
    ------
    What takes ``target[start:stop] = rows`` for a dataset that is chunked by diffraction pattern,
    chunks of at least 64 kB, or one pattern.

    Raises
    ------
    OSError
        If the disk is full, or too small for what is not compressed.
    """
    if not compression:
        remedy = "make room, choose another disk, or compress it (compression='bitshuffle')"
        check_room(path, 4 * int(np.prod(shape, dtype=object)), remedy)
    per_chunk = int(np.clip(2**16 // (4 * shape[2] * shape[3]), 1, shape[1]))
    with new_file(path, skeleton) as (file, check):
        group = file[f"{skeleton.root.name}/{skeleton.name}"]
        units = group["data"].attrs["units"]
        del group["data"]
        dataset = group.create_dataset(
            "data",
            shape,
            dtype=np.float32,
            chunks=(1, per_chunk, *shape[2:]),
            **(compression or {}),
        )
        dataset.attrs["units"] = units
        target = _Target(dataset, check)
        try:
            yield target
            target.wait()
        finally:
            target.stop()


def open_dataset(path: Path, root: str, name: str) -> h5py.Dataset:
    """The data of an array in an EMD file, left on disk."""
    return h5py.File(path, "r")[f"{root}/{name}/data"]
