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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from datetime import datetime, timezone
from functools import lru_cache
from numbers import Real
from pathlib import Path, PureWindowsPath
from threading import Event
from typing import Any

import emdfile
import h5py
import numpy as np

from ._version import __version__

TAG = "py4dstem_clustering"

FORMAT = 1
"""Format of the nodes that are written. Older ones are read, newer ones refused."""

# Seconds after which a file that a dead process was writing counts as left behind.
_STALE = 60

# Settings and groups nest a few levels deep; a file that goes on and on is not ours.
_MAX_DEPTH = 24

# Deflate, which packs more than LZ4 and lzf, makes no more than so many bytes of one.
_MAX_PACKED = 1032

# Larger files are not looked through for damage: that would take as long as reading them.
_MAX_SCANNED = 2**30

# Blocks are compressed and written in pieces of about so many bytes, so that Ctrl-C need not wait.
_PIECE_BYTES = 4 * 2**20

PROVENANCE = (
    "source", "fingerprint", "shape", "created", "seconds", "py4dstem_clustering_version",
    "py4DSTEM_version",
)  # fmt: skip
"""What every result notes of where it is from."""


# --- settings --------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value as plain Python: numpy scalars and lists undone, arrays copied and read-only."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value


class Settings(Mapping):
    """A read-only copy of settings, as plain Python and read-only arrays; can be pickled.

    As a mapping it has the options, so that ``function(**settings)`` does the same again. What was
    found or noted on the way, `noted`, can be looked up like these: ``settings["gain"]``.
    """

    def __init__(self, settings: Mapping[str, Any], noted: Iterable[str] = ()) -> None:
        if isinstance(settings, Settings):
            settings = settings.everything
        self._items = {key: _plain(value) for key, value in settings.items()}
        self._noted = frozenset(noted)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._items if key not in self._noted)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._items, self._noted)

    @property
    def everything(self) -> dict[str, Any]:
        """Options and what was noted."""
        return dict(self._items)

    @property
    def noted(self) -> dict[str, Any]:
        """What is no option: estimates, versions, where the data came from."""
        return {key: value for key, value in self._items.items() if key in self._noted}


def add_settings(node: emdfile.Node, settings: Mapping[str, Any], name: str = "settings") -> None:
    """Keep settings with a node."""
    if isinstance(settings, Settings):
        settings = settings.everything
    node.metadata = emdfile.Metadata(name, dict(settings))


def read_settings(node: emdfile.Node, name: str = "settings") -> Settings:
    """Settings kept with a node; empty where there are none."""
    metadata = node.metadata.get(name)
    params = {} if metadata is None else metadata._params
    for key, value in params.items():
        if not _is_plain(value):
            raise damaged(node, f"its {name} hold a {type(value).__name__} for {short(key)}")
    return Settings(params)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a setting is what settings can be: numbers, texts, arrays, and nested ones."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(_is_plain(item, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "buifcSU"
    return value is None or isinstance(value, (bool, int, float, complex, str))


# --- nodes -----------------------------------------------------------------------------------


def tag(node: emdfile.Node, kind: str) -> None:
    """Mark a node as ours: what it is, in which format, made by which version and when."""
    node.metadata = emdfile.Metadata(
        TAG,
        {
            "kind": kind,
            "format": FORMAT,
            "version": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    )


def kind_of(node: Any) -> str | None:
    """What one of our nodes is; None for any other object."""
    kind = _tagged(node).get("kind")
    return kind if isinstance(kind, str) else None


def _tagged(node: Any) -> Mapping[str, Any]:
    metadata = getattr(node, "metadata", None)
    ours = metadata.get(TAG) if isinstance(metadata, Mapping) else None
    return ours._params if isinstance(ours, emdfile.Metadata) else {}


def check_kind(node: Any, kind: str, what: str, remedy: str) -> None:
    """One of our nodes of one kind, `what` in words; `remedy` says what to make, and how.

    In a format that this version knows.
    """
    if kind_of(node) != kind:
        name = getattr(node, "name", node)
        raise ValueError(f"{short(name)} holds no {what} of {TAG}; make {remedy}")
    tagged = _tagged(node)
    # Arrays and numbers of other types are damage too.
    found = tagged.get("format")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise damaged(node, f"its format is {short(found)} and must be a whole number from 1")
    if found > FORMAT:
        made_by = tagged.get("version")
        if not isinstance(made_by, str):
            settings = node.metadata.get("settings")
            made_by = getattr(settings, "_params", {}).get(f"{TAG}_version")
        by = f", made by {TAG} {made_by:.20}" if isinstance(made_by, str) else ""
        raise ValueError(
            f"{short(node.name)} holds {what} in format {found}{by}; {TAG} {__version__} reads "
            f"formats up to {FORMAT}, update it (pip install --upgrade py4dstem-clustering)"
        )


def damaged(node: Any, text: str) -> ValueError:
    """The error for a node of ours that is not what `to_node` makes."""
    name = short(getattr(node, "name", node))
    return ValueError(f"{name} is damaged: {text}; copy its file again, or make it anew")


def short(value: Any) -> str:
    """What a file holds, for an error: one line that is not long."""
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_arrays(node: emdfile.Node) -> dict[str, Any]:
    """The arrays that are kept in the metadata of one of our nodes."""
    metadata = node.metadata.get("arrays")
    if not isinstance(metadata, emdfile.Metadata):
        raise damaged(node, "it holds no arrays")
    return dict(metadata._params)


def check_array(
    node: emdfile.Node,
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    kinds: str = "f",
    low: float = -np.inf,
    high: float = np.inf,
    nan: bool = False,
) -> np.ndarray:
    """An array of a node, of one shape (None: any length), kinds of types, and range."""
    found = getattr(value, "shape", None)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        what = getattr(value, "dtype", type(value).__name__)
        raise damaged(node, f"its {name} of type {what} must be {_KINDS[kinds]}")
    if len(found) != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, found, strict=True)
    ):
        rule = ", ".join("any" if n is None else str(n) for n in shape)
        raise damaged(node, f"its {name} of shape {found} must have the shape ({rule})")
    numbers = value[~np.isnan(value)] if nan else value
    if kinds != "b" and numbers.size:
        least, most = numbers.min(), numbers.max()  # NaN if there is one
        if not (low <= least and most <= high and np.isfinite([least, most]).all()):
            rule = "finite" if high == np.inf else f"from {low:g} to {high:g}"
            rule = f"finite and at least {low:g}" if high == np.inf > -low else rule
            raise damaged(node, f"its {name} must be {rule}" + (" or NaN" if nan else ""))
    return value


_KINDS = {"b": "True and False", "iu": "whole numbers", "f": "floating point", "biuf": "numbers"}


def children(parent: emdfile.Node, kind: str) -> dict[str, emdfile.Node]:
    """Our nodes of one kind right under `parent`, from the oldest to the newest."""
    nodes = {name: parent.tree(name) for name in parent.treekeys}
    ours = {name: node for name, node in nodes.items() if kind_of(node) == kind}
    return dict(sorted(ours.items(), key=lambda item: _sequence(item[1])))


def _sequence(node: emdfile.Node) -> int:
    number = _tagged(node).get("sequence", 0)
    if isinstance(number, bool) or not isinstance(number, int):
        raise damaged(node, f"its place among others is {short(number)}, and no whole number")
    return number


def check_free(parent: emdfile.Node, name: str, kind: str) -> None:
    """A name that is free under `parent`, or taken by a node of the same kind.

    emdfile lets nodes of one name replace each other silently (seen in 0.0.16).
    """
    if name in parent.treekeys and kind_of(parent.tree(name)) != kind:
        raise ValueError(
            f"name={name!r} is taken in the tree of {parent.name!r} by a "
            f"{type(parent.tree(name)).__name__}; give another name"
        )


def put(parent: emdfile.Node, node: emdfile.Node) -> None:
    """Add one of our nodes to a tree as the newest of its kind, in place of one of its name."""
    kind = kind_of(node)
    check_free(parent, node.name, kind)
    newest = max(map(_sequence, children(parent, kind).values()), default=0)
    # HDF5 lists names in alphabetical order, so the order of making is kept as a number.
    node.metadata[TAG]["sequence"] = newest + 1
    parent.force_add_to_tree(node)


def copy_calibration(calibration: Any = None) -> Any:
    """A copy of a py4DSTEM Calibration that shares nothing with it; of None an empty one.

    Without what py4DSTEM.read leaves in it, the place in the file and what it calibrates (0.14.18).
    """
    from py4DSTEM import Calibration

    copy = Calibration() if calibration is None else calibration.copy(name="calibration")
    for key, value in list(copy._params.items()):
        if key in ("_root_treepath", "_target_paths"):
            del copy._params[key]
        else:
            copy._params[key] = deepcopy(value)
    return copy


def calibration_of(node: Any) -> Any:
    """The calibration of the tree of a node; None for a file, a node or an array without one."""
    root = getattr(node, "root", None)
    return None if root is None else root.metadata.get("calibration")


def detector_step(node: Any) -> tuple[float, str]:
    """Size of detector pixels and its unit, from the calibration of a node's tree."""
    return step_of(node, calibration_of(node), "Q")


def scan_step(node: emdfile.Node) -> tuple[float, str]:
    """Distance of scan positions and its unit, from the calibration of a node's tree."""
    return step_of(node, calibration_of(node))


def step_of(node: Any, calibration: Any, axes: str = "R") -> tuple[float, str]:
    """Size and unit of pixels, of the scan or the detector ("Q"), in the calibration of a node."""
    if calibration is None:
        return 1.0, "pixels"
    if not hasattr(calibration, "get_R_pixel_size"):
        raise damaged(node, f"its calibration is a {type(calibration).__name__}")
    size = getattr(calibration, f"get_{axes}_pixel_size")()
    unit = getattr(calibration, f"get_{axes}_pixel_units")()
    # Of 0, emdfile could not write the axes (0.0.16).
    if isinstance(size, bool) or not isinstance(size, Real) or not np.isfinite(size) or size == 0:
        raise damaged(
            node, f"its calibration has the pixel size {short(size)}, and no number other than 0"
        )
    if not isinstance(unit, str):
        raise damaged(node, f"its calibration has the unit {short(unit)}, and no text")
    return float(size), unit


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
        self._pending: Future | None = None

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
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

    def _write(self, rows: slice, values: np.ndarray) -> None:
        columns, qx, qy = self._dataset.shape[1:]
        per_chunk = self._dataset.chunks[1]
        step = max(1, _PIECE_BYTES // (4 * qx * qy * per_chunk)) * per_chunk
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


# --- files of others ---------------------------------------------------------------------------


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read. What goes wrong meanwhile is a ValueError or OSError that names it."""
    with naming(path):
        if not path.is_file():
            raise OSError(f"{path} is not a file; check the path")
        state = path.stat()
        if state.st_size <= _MAX_SCANNED:
            _check_heaps(path, state.st_size, state.st_mtime_ns)
        try:
            file = h5py.File(path, "r")
        except Exception as error:
            if h5py.is_hdf5(path):
                what = "is damaged, cut short or still written"
            else:
                what = "is no HDF5 file, or its beginning is damaged"
            raise OSError(f"{path} {what} ({_reason(error)}); copy it again") from error
        with file:
            yield file


@lru_cache(maxsize=1024)
def _check_heaps(path: Path, size: int, changed: int) -> None:
    """No heap of texts in which HDF5 looks without end for the next one (2.0).

    That nobody could stop, not even with Ctrl-C. Where a disk lost a block, zeros are in its place.
    """
    overlap = 8
    with path.open("rb") as file:
        start, tail = 0, b""
        while piece := file.read(_PIECE_BYTES):
            piece = tail + piece
            at = piece.find(_HEAP)
            while at >= 0:
                file.seek(start + at)
                _check_heap(file, start + at, size)
                at = piece.find(_HEAP, at + 1)
            tail = piece[-overlap:]
            start += len(piece) - len(tail)
            file.seek(start + len(tail))


_HEAP = b"GCOL\x01\0\0\0"


def _check_heap(file: Any, at: int, file_size: int) -> None:
    """Objects of a heap, one after the other, each of some size, up to its end."""
    size = int.from_bytes(file.read(16)[8:], "little")
    if not 16 < size <= file_size - at:
        return  # HDF5 sees that
    heap = file.read(size - 16)
    place = 0
    while place + 16 <= len(heap):
        number = int.from_bytes(heap[place : place + 2], "little")
        n_bytes = int.from_bytes(heap[place + 8 : place + 16], "little")
        step = n_bytes if number == 0 else 16 + -(-n_bytes // 8) * 8
        if not 0 < step <= len(heap) - place:
            raise OSError(
                f"{file.name} is damaged: the texts from byte {at} on are no list; copy it again, "
                "or make it anew"
            )
        place += step


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as one line that says with which file."""
    try:
        yield
    except MemoryError:
        raise
    except (ValueError, OSError) as error:
        text = _reason(error)
        if str(path) in text:
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{path}: {text}") from error
    except Exception as error:  # h5py and emdfile raise what comes (3.16, 0.0.16)
        raise OSError(f"{path} is damaged ({_reason(error)}); copy it again") from error


def _reason(error: BaseException) -> str:
    """The text of an error in one line; its kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:497]}..."


def check_stored(
    file: h5py.File, name: str = "/", *, plain: bool = True, beside: bool = False
) -> Any:
    """The group of a name, when it can be read without surprise, with all below it.

    Nothing in it leads elsewhere, is nested without end, or declares more than its bytes can hold:
    a few bytes of a file would take any memory otherwise. Costs no more than what is really there.

    Parameters
    ----------
    file : the file, open.
    name : path of a group or dataset in it.
    plain : as this package writes: numbers and texts, stored to the end, in few classes.
    beside : no file of py4DSTEM: links in it may lead through the file, and those in ``entry/data``
        to other files in its folder, see `linked_files`.

    Raises
    ------
    OSError
        If it cannot, and why.
    """
    size = os.path.getsize(file.filename)
    item: Any = file
    for part in name.split("/"):
        if part:
            item = _member(item, part)
            if item is None:
                raise ValueError(f"{file.filename} holds no {name!r}")
    pending = [(item, 0)]
    seen: set[int] = set()
    needed = 0.0
    while pending:
        item, depth = pending.pop()
        place = hash(item.id)  # of its address
        if place in seen:
            if beside:
                continue
            raise OSError(_complain(item, "is in the file under two names"))
        seen.add(place)
        if plain:
            _check_attributes(item)
        if isinstance(item, h5py.Dataset):
            needed += _check_dataset(item, size, plain)
            if plain and needed > size:
                raise OSError(_complain(item, "and those before declare more than the file holds"))
        elif isinstance(item, h5py.Group):
            if depth > _MAX_DEPTH:
                raise OSError(_complain(item, f"is nested more than {_MAX_DEPTH} levels deep"))
            children = (_member(item, key, beside) for key in item)
            pending += [(child, depth + 1) for child in children if child is not None]
        elif plain:
            raise OSError(_complain(item, "is neither a group nor a dataset"))
    return file[name]


_CHUNKS = "/entry/data"


def linked_files(file: h5py.File) -> list[str]:
    """Names of other files, in the folder of a master file of Dectris, that hold its frames."""
    group = file.get(_CHUNKS)
    if not isinstance(group, h5py.Group):
        return []
    links = (group.get(key, getlink=True) for key in group)
    return sorted({link.filename for link in links if isinstance(link, h5py.ExternalLink)})


def linked_name(filename: str) -> tuple[PureWindowsPath, bool]:
    """Name of the file that a link means, and whether it lies in the folder of the link."""
    name = PureWindowsPath(filename)  # the computer of a detector may run Windows
    return name, not (name.drive or name.root or ".." in name.parts)


def _member(group: Any, key: str, beside: bool = False) -> Any:
    """What a group holds itself under a name; None where there is nothing."""
    link = group.get(key, getlink=True) if isinstance(group, h5py.Group) else None
    if link is None:
        return None
    if isinstance(link, h5py.HardLink):
        return group[key]
    where = f"{group.name.rstrip('/')}/{short(key)[1:-1]} is a link to"
    if isinstance(link, h5py.ExternalLink):
        if beside and group.name == _CHUNKS and linked_name(link.filename)[1]:
            return None
        raise OSError(
            f"{where} {short(link.filename)}, another file, which is not followed; copy what it "
            "means into the file (h5copy)"
        )
    if beside:
        return None
    raise OSError(
        f"{where} {short(link.path)}, which is not followed: files of py4DSTEM have none; copy "
        "what it means (h5copy)"
    )


def _complain(item: Any, text: str) -> str:
    return f"{short(item.name)[1:-1]} {text}; copy the file again, or make it anew"


# What emdfile reads of the attributes.
_TEXTS = ("emd_group_type", "python_class", "type", "units", "name")

_CLASSES = ("Root", "Node", "Array", "RealSlice", "Metadata", "Calibration")


def _check_attributes(item: Any) -> None:
    """Attributes are single texts and numbers, and the class is one of those we write."""
    for key in (*_TEXTS, "length"):
        if not h5py.h5a.exists(item.id, key.encode()):
            continue
        attribute = h5py.h5a.open(item.id, key.encode())
        text = attribute.get_type().get_class() == h5py.h5t.STRING
        if attribute.get_space().get_simple_extent_ndims() != 0 or text == (key == "length"):
            raise OSError(_complain(item, f"has an attribute {key!r} that is no single text"))
    if not isinstance(item, h5py.Dataset) and "python_class" in item.attrs:
        found = item.attrs["python_class"]
        if found not in _CLASSES:
            raise OSError(_complain(item, f"is of class {short(found)} and not of py4DSTEM's"))


def _check_dataset(item: h5py.Dataset, file_size: int, plain: bool) -> float:
    """Values lie in the file, are plain, and take no more memory than it can hold.

    Returns the bytes of the file that they need at least.
    """
    if item.external or item.is_virtual:
        raise OSError(
            f"{item.name} takes its values from other files, which is not followed; copy the "
            "values (h5repack)"
        )
    if item.shape is None:
        if plain:
            raise OSError(_complain(item, "is empty"))
        return 0.0
    dtype = item.dtype
    if plain and not (
        dtype.kind in "buifcSU" or (item.ndim == 0 and h5py.check_string_dtype(dtype) is not None)
    ):
        raise OSError(_complain(item, f"of type {short(dtype)} is neither numbers nor a text"))
    n_bytes = item.size * item.id.get_type().get_size()
    if not n_bytes:
        return 0.0
    stored = item.id.get_storage_size()
    packed, whole = 1, stored >= n_bytes
    if item.chunks is not None:
        check_filters(item, item.name)
        if item.id.get_create_plist().get_nfilters():
            packed = _MAX_PACKED
            # HDF5 unpacks a whole chunk, and one may be larger than the dataset.
            chunk = int(np.prod(item.chunks, dtype=object)) * item.id.get_type().get_size()
            n_bytes = max(n_bytes, chunk)
        grid = [-(-n // m) for n, m in zip(item.shape, item.chunks, strict=True)]
        whole = item.id.get_num_chunks() == int(np.prod(grid, dtype=object))
    limit = packed * min(stored, file_size)
    if not plain:  # HDF5 reads zeros where nothing was written, and some programs rely on it
        limit, whole = max(2**20, limit, _MAX_PACKED * file_size), True
    if n_bytes > limit or not whole:
        raise OSError(
            _complain(
                item,
                f"declares {n_bytes} bytes (shape {short(item.shape)}, {short(dtype)}) and "
                f"{stored} are stored in the {file_size} of the file",
            )
        )
    return n_bytes / packed


def check_filters(item: h5py.Dataset, where: str) -> None:
    """What a dataset is compressed by can be undone here; `where` names it in the error."""
    plist = item.id.get_create_plist()
    for i in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(i)
        if not h5py.h5z.filter_avail(code):
            text = short(name.decode(errors="replace"))
            raise OSError(
                f"{where} is compressed by the HDF5 filter {code} ({text}), which is not "
                "installed; pip install hdf5plugin, and import it"
            )
