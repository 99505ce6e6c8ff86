"""Write EMD files so that a file is complete or absent, never partial.

Only classes of emdfile and py4DSTEM are written, so that every file opens without this package.
"""

from __future__ import annotations

import itertools
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

_SECONDS_TO_LEFTOVER = 60
"""Seconds after its last change until the partial file of a killed process is removed. With a
larger number, partial files stay longer."""

_BYTES_PER_WRITE = 4 * 2**20
"""Bytes that are compressed and written at a time. With a larger number, Ctrl-C waits longer."""


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield the name of a partial file, which is renamed to `path` if no error occurs.

    The partial file is ``.<name>.<host>-<process>-<random>.partial`` in the same folder. After an
    error it is removed, unless only the renaming failed (Windows does not replace a file that is
    open): then the finished file stays, and the error names it. If the process is killed, the
    partial file stays, and the next process that writes `path` removes it. The bytes are on the
    disk before the name changes, so that after a power loss `path` is the old file or the new one.
    """
    path = path.resolve()  # follows symbolic links
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
        try:
            os.replace(partial, path)
        except OSError as error:
            kept = _keep(partial, path)
            raise OSError(
                f"{path} cannot be replaced ({error}); perhaps another program has it open. The "
                f"result is complete in {kept}: close that program, and rename the file"
            ) from error
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _keep(partial: Path, path: Path) -> Path:
    """Give a finished file a name beside that of `path`, which is taken."""
    for n in itertools.count(1):
        kept = path.with_name(f"{path.stem}_new{n}{path.suffix}")
        if not kept.exists():
            break
    partial.rename(kept)
    return kept


def _sync_folder(folder: Path) -> None:
    """Write a new file name to the disk, if the system can open folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _host() -> str:
    return "".join(c if c.isalnum() else "_" for c in socket.gethostname())[:32]


def _remove_leftovers(path: Path) -> None:
    """Remove partial files of `path` that killed processes of this machine left."""
    if os.name != "posix":  # elsewhere signal 0 would end the process
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
            # A process in a container with the same host name may write this file now. Then it
            # has just changed.
            with suppress(OSError):
                if time.time() - partial.stat().st_mtime > _SECONDS_TO_LEFTOVER:
                    partial.unlink()
        except (OSError, OverflowError):
            continue


def save_new(path: Path, data: Any, n_bytes: int | None = None) -> None:
    """Call `py4DSTEM.save` so that the file is complete or absent.

    emdfile alone may leave a partial file (0.0.16). `n_bytes` is the size of the data; by default
    twice that of `data`, because the clusters hold the averages too.
    """
    import py4DSTEM

    # On a full disk, HDF5 may end the process.
    check_room(path, (2 * data.data.nbytes if n_bytes is None else n_bytes) + 2**22)
    with complete_or_absent(path) as partial:
        py4DSTEM.save(str(partial), data, mode="o")


class _Guarded:
    """A file for h5py that hides errors from HDF5; after the first error it writes nothing more.

    If HDF5 cannot write its cache while it closes a file, it ends the process (h5py 3.16: at the
    second close after a failed one). With this file it can close, and `error` keeps the error.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self.error: OSError | None = None
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell
        self.close = self._file.close

    def readinto(self, buffer: Any) -> int:
        n = self._file.readinto(buffer)
        if self.error is not None:  # zeros instead of bytes that were not written
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
        """Do nothing: writes are not buffered."""


class _Target:
    """Accepts ``target[start:stop] = rows`` for a dataset, and writes the rows in the background.

    A second thread writes them in pieces. In the main thread, Ctrl-C could arrive inside a callback
    of h5py; Python would then print the interrupt and continue.
    """

    def __init__(self, dataset: h5py.Dataset, check: Callable[[], None]) -> None:
        self._dataset, self._check = dataset, check
        self._stopped = Event()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        self.wait()
        self._pending = self._thread.submit(self._write, rows, values)

    def fill(self, name: str, values: NDArray[Any]) -> None:
        """Write the data of an array that the skeleton holds in the tree of the scan."""
        self.wait()
        self._dataset.parent[name]["data"][...] = values
        self._check()

    def wait(self) -> None:
        """Wait until all is written."""
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
        step = max(1, _BYTES_PER_WRITE // (4 * qx * qy * per_chunk)) * per_chunk
        for row, patterns in zip(range(rows.start, rows.stop), values, strict=True):
            for start in range(0, columns, step):
                if self._stopped.is_set():
                    return
                self._dataset[row, start : start + step] = patterns[start : start + step]
                self._check()


def check_room(path: Path, n_bytes: int, remedy: str = "make room, or choose another disk") -> None:
    """Raise an OSError if the disk of a file has less than `n_bytes` free."""
    free = shutil.disk_usage(path.resolve().parent).free
    if n_bytes > free:
        raise OSError(
            f"{path} needs {n_bytes / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB free; "
            f"{remedy}"
        )


@contextmanager
def new_file(path: Path, skeleton: Any) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Make an EMD file that holds `skeleton`, to be filled with h5py; it is complete or absent.

    Yields the file, and a function that raises an OSError if a write failed (a full disk), because
    `_Guarded` hides such errors from HDF5.
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
            check()  # closing the file has written the cache of HDF5


@contextmanager
def scan_writer(
    path: Path,
    skeleton: Any,
    shape: tuple[int, ...],
    compression: Mapping[str, Any] | None = None,
) -> Iterator[_Target]:
    """Make an EMD file with a float32 scan that is filled block by block.

    Parameters
    ----------
    path : where the finished file will be.
    skeleton : DataCube of at most 2 x 2 x 2 x 2, with the calibration and metadata to write.
        emdfile stores only the first two coordinates of an evenly spaced axis, so the axes of the
        skeleton are right for a scan of any size. Its data are replaced.
    shape : (Rx, Ry, Qx, Qy)
    compression : options of h5py; by default none.

    Yields
    ------
    An object that accepts ``target[start:stop] = rows``. A chunk of its dataset holds one
    diffraction pattern, or several small ones that make up at most 64 kB.

    Raises
    ------
    OSError
        If the disk is full, or too small for a file without compression.
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
