"""HDF5 files that may be damaged or hostile: checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

import h5py
import numpy as np

from .nodes import short
from .settings import MAX_DEPTH
from .writing import PIECE_BYTES

# Deflate, which packs more than LZ4 and lzf, makes no more than so many bytes of one.
_MAX_PACKED = 1032

# Larger files are not looked through for damage: that would take as long as reading them.
_MAX_SCANNED = 2**30


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
        while piece := file.read(PIECE_BYTES):
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
            if depth > MAX_DEPTH:
                raise OSError(_complain(item, f"is nested more than {MAX_DEPTH} levels deep"))
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
