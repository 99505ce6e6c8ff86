"""Open HDF5 files that may be damaged or hostile, and check them before values are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import h5py
import numpy as np

from .nodes import in_one_line
from .settings import MAX_DEPTH

_MAX_PACKING_RATIO = 1032
"""Most bytes that one byte of a file can unpack to. This is the limit of deflate; LZ4 and lzf reach
less. With a larger number, a small file can ask for more memory."""

_MAX_TEXTS_OF_DATASET = 4096
_MAX_TEXTS_OF_ATTRIBUTE = 64
"""Longer lists of texts are not checked, because py4DSTEM does not read them. With larger numbers,
opening takes longer, and more memory if many texts of an attribute lie at one place in the file."""


# --- opening ---------------------------------------------------------------------------------


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file from any source to read its metadata.

    Only the parts for which HDF5 asks are read. Any error (but MemoryError) in the `with` block
    becomes an error of one line that names the file.
    """
    with name_in_errors(path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; check the path")
        with closing(CheckedReader(path)) as reader:
            try:
                file = h5py.File(reader, "r")
            except Exception as error:
                if h5py.is_hdf5(path):
                    what = f"is damaged, cut short or still written ({_reason(error)})"
                    raise OSError(f"{path} {what}; copy it again") from error
                raise OSError(
                    f"{path} is no HDF5 file, or its beginning is damaged ({_reason(error)}); give "
                    "an HDF5 file, such as a *_master.h5, or copy it again"
                ) from error
            with file:
                yield file


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Turn errors that occur while a file is read into errors of one line that name the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text = _reason(error)
        ours = isinstance(error, (ValueError, TypeError, OSError))
        if ours and str(path) in text:
            raise
        if isinstance(error, OSError):
            raise OSError(f"{path}: {text}") from error
        if isinstance(error, ValueError):
            raise ValueError(f"{path}: {text}") from error
        # h5py and emdfile raise errors of many other kinds (3.16, 0.0.16).
        raise OSError(f"{path} is damaged ({text}); copy it again") from error


def _reason(error: BaseException) -> str:
    """The text of an error in one line, or the kind of the error if it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:497]}..."


class _DamagedHeap(OSError):
    """A heap of texts in which HDF5 would search without end."""


class CheckedReader:
    """A file for h5py that checks every heap of texts before HDF5 works with it.

    A heap holds texts of any length, one after the other. In a heap of zeros, which a disk error
    can leave, HDF5 (2.0) searches without end, and even Ctrl-C does not stop it. Only heaps for
    which HDF5 asks are checked, so that the time to open a file does not depend on its size.
    """

    _START = b"GCOL\x01\0\0\0"

    _MAX_OBJECTS = 2**16 + 1
    """Most objects in a heap: HDF5 numbers them with 16 bits, and free space has the number 0."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = path.stat().st_size
        self._checked: set[int] = set()
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell
        self.close = self._file.close

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._file.tell()
        n = 0
        while n < len(view) and (more := self._file.readinto(view[n:])):
            n += more
        # The start of a heap may lie in two pieces that are read one after the other.
        before = min(start, len(self._START) - 1)
        self._file.seek(start - before)
        seam = self._file.read(before) + bytes(view[: min(n, before)])
        for offset, piece in ((start - before, seam), (start, view[:n])):
            for match in re.finditer(re.escape(self._START), piece):
                self._check_heap(offset + match.start())
        self._file.seek(start + n)
        return n

    def _check_heap(self, at: int) -> None:
        """Raise an error unless objects of more than 0 bytes fill a heap up to its end."""
        if at in self._checked:
            return
        self._checked.add(at)
        self._file.seek(at + 8)
        end = at + int.from_bytes(self._file.read(8), "little")
        if not at + 16 < end <= self._size:
            return  # HDF5 refuses such a heap itself
        place = at + 16
        for _ in range(self._MAX_OBJECTS):
            if place + 16 > end:
                return
            self._file.seek(place)
            head = self._file.read(16)
            number, n_bytes = (int.from_bytes(part, "little") for part in (head[:2], head[8:]))
            step = n_bytes if number == 0 else 16 + -(-n_bytes // 8) * 8
            if not 0 < step <= end - place:
                break
            place += step
        raise _DamagedHeap(f"the heap of texts at byte {at} is damaged; copy the file again")


# --- checks of sizes and links ------------------------------------------------------------------


def check_stored(
    file: h5py.File, name: str = "/", *, ours: bool = True, dectris: bool = False
) -> Any:
    """Return a group or dataset if it and everything below it is safe to read.

    It is safe if nothing in it links to other files, is nested without end, or declares more values
    than its bytes can hold. Otherwise a small file could take all memory. The check reads no values
    of arrays.

    Parameters
    ----------
    file : the file, from `open_file`.
    name : path of a group or dataset in the file.
    ours : whether the file must be like those of this package: complete arrays of numbers or texts,
        in few classes. If False, the texts of the file are also checked, because another program
        will open the file.
    dectris : whether the file may be a master file of Dectris. Links inside the file are then
        allowed, and links from ``entry/data`` to files in the same folder; see `linked_files`.

    Raises
    ------
    OSError
        If it is not safe; the error says why.
    """
    size = file.id.get_filesize()
    item: Any = file
    for part in name.split("/"):
        if part:
            item = _own_member(item, part)
            if item is None:
                raise ValueError(f"it holds no {name!r}")
    pending = [(item, 0)]
    seen: set[int] = set()
    needed, texts = 0.0, 0
    while pending:
        item, depth = pending.pop()
        address = hash(item.id)
        if address in seen:
            if dectris:
                continue
            raise _damaged(item, "is in the file under two names")
        seen.add(address)
        if ours:
            _check_attributes(item)
        else:
            texts += _read_texts(item)
        if isinstance(item, h5py.Dataset):
            needed += check_dataset(item, ours=ours)
        elif isinstance(item, h5py.Group):
            if depth > MAX_DEPTH:
                raise _damaged(item, f"is nested more than {MAX_DEPTH} levels deep")
            children = (_own_member(item, key, dectris) for key in item)
            pending += [(child, depth + 1) for child in children if child is not None]
        elif ours:
            raise _damaged(item, "is neither a group nor a dataset")
        if (needed if ours else texts) > size:
            raise _damaged(item, "and those before declare more than the file holds")
    return file[name]


_CHUNK_GROUP = "/entry/data"


def linked_files(file: h5py.File) -> list[str]:
    """Names of the files to which a master file of Dectris links for its frames."""
    group = file.get(_CHUNK_GROUP)
    if not isinstance(group, h5py.Group):
        return []
    links = (group.get(key, getlink=True) for key in group)
    return sorted({link.filename for link in links if isinstance(link, h5py.ExternalLink)})


def file_of_link(filename: str) -> tuple[PureWindowsPath, bool]:
    """The path of the file that a link leads to, and whether it lies in the folder of the link."""
    path = PureWindowsPath(filename)  # the computer of a detector may run Windows
    return path, not (path.drive or path.root or ".." in path.parts)


def _own_member(group: Any, key: str, dectris: bool = False) -> Any:
    """The object that a group holds under a name; None if there is none, or an allowed link."""
    link = group.get(key, getlink=True) if isinstance(group, h5py.Group) else None
    if link is None:
        return None
    if isinstance(link, h5py.HardLink):
        return group[key]
    where = f"{group.name.rstrip('/')}/{in_one_line(key)[1:-1]} is a link to"
    if isinstance(link, h5py.ExternalLink):
        if dectris and group.name == _CHUNK_GROUP and file_of_link(link.filename)[1]:
            return None
        raise OSError(
            f"{where} {in_one_line(link.filename)}, another file, which is not followed; copy the "
            "object into the file (h5copy)"
        )
    if dectris:
        return None
    raise OSError(
        f"{where} {in_one_line(link.path)}, which is not followed: files of py4DSTEM have no "
        "links; copy the object (h5copy)"
    )


def object_at(file: h5py.File, path: str, max_links: int = 8) -> Any:
    """The object at a path; an ExternalLink if the path leaves the file; None if there is none.

    Only links inside the file are followed. h5py would also follow a link to any file of the
    computer.
    """
    item: Any = file
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for i, part in enumerate(parts):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        rest = parts[i + 1 :]
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            return h5py.ExternalLink(link.filename, "/".join([link.path, *rest]))
        if isinstance(link, h5py.SoftLink):
            if not max_links:
                return None
            target = link.path if link.path.startswith("/") else f"{item.name}/{link.path}"
            return object_at(file, "/".join([target, *rest]), max_links - 1)
        try:
            item = item[part]
        except (KeyError, OSError, RuntimeError) as error:
            raise OSError(f"{path} cannot be opened ({error}); copy the file again") from error
    return item


def _damaged(item: Any, text: str) -> OSError:
    return OSError(f"{in_one_line(item.name)[1:-1]} {text}; copy the file again, or make it anew")


_TEXT_ATTRIBUTES = ("emd_group_type", "python_class", "type", "units", "name")
"""Attributes that emdfile reads as a text."""

_CLASSES = ("Root", "Node", "Array", "RealSlice", "Metadata", "Calibration")


def _check_attributes(item: Any) -> None:
    """Raise an error unless attributes are single values, and the class is in `_CLASSES`."""
    for key in (*_TEXT_ATTRIBUTES, "length"):
        if not h5py.h5a.exists(item.id, key.encode()):
            continue
        attribute = h5py.h5a.open(item.id, key.encode())
        is_text = attribute.get_type().get_class() == h5py.h5t.STRING
        if attribute.get_space().get_simple_extent_ndims() != 0 or is_text == (key == "length"):
            what = "number" if key == "length" else "text"
            raise _damaged(item, f"has an attribute {key!r} that is no single {what}")
    if not isinstance(item, h5py.Dataset) and "python_class" in item.attrs:
        found = item.attrs["python_class"]
        if found not in _CLASSES:
            raise _damaged(item, f"is of class {in_one_line(found)} and not of py4DSTEM's")


def check_dataset(item: h5py.Dataset, *, ours: bool = False) -> float:
    """Raise an error unless the values are plain, lie in the file, and fit into its bytes.

    Returns the fewest bytes of the file that the values need. For `ours` see `check_stored`.
    """
    file_size = item.file.id.get_filesize()
    if item.external or item.is_virtual:
        raise OSError(
            f"{item.name} takes its values from other files, which is not followed; copy the "
            "values (h5repack)"
        )
    if item.shape is None:
        if ours:
            raise _damaged(item, "is empty")
        return 0.0
    dtype = item.dtype
    if ours and not (
        dtype.kind in "buifcSU" or (item.ndim == 0 and h5py.check_string_dtype(dtype) is not None)
    ):
        raise _damaged(item, f"of type {in_one_line(dtype)} is neither numbers nor a text")
    item_bytes = item.id.get_type().get_size()
    n_bytes = item.size * item_bytes
    if not n_bytes:
        return 0.0
    stored = item.id.get_storage_size()
    ratio, whole = 1, stored >= n_bytes
    if item.chunks is not None:
        check_filters(item, item.name)
        if item.id.get_create_plist().get_nfilters():
            ratio = _MAX_PACKING_RATIO
            # HDF5 unpacks a whole chunk, and a chunk may be larger than the dataset.
            n_bytes = max(n_bytes, int(np.prod(item.chunks, dtype=object)) * item_bytes)
        whole = all_chunks_written(item)
    limit = ratio * min(stored, file_size)
    if not ours:  # HDF5 reads zeros where nothing was written; some programs need that
        limit, whole = max(2**20, limit, _MAX_PACKING_RATIO * file_size), True
    if n_bytes > limit or not whole:
        raise _damaged(
            item,
            f"declares {n_bytes} bytes (shape {in_one_line(item.shape)}, {in_one_line(dtype)}) and "
            f"{stored} are stored in the {file_size} of the file",
        )
    return n_bytes / ratio


def chunk_grid(item: h5py.Dataset) -> list[int]:
    """Number of chunks along each axis."""
    return [-(-n // size) for n, size in zip(item.shape, item.chunks, strict=True)]


def all_chunks_written(item: h5py.Dataset) -> bool:
    """Whether every chunk of a dataset is in the file."""
    return bool(item.id.get_num_chunks() == int(np.prod(chunk_grid(item), dtype=object)))


def _read_texts(item: Any) -> int:
    """Read the texts of a group or dataset, so that `CheckedReader` checks their heaps.

    Returns the bytes of the texts.
    """
    n_bytes = 0
    for key in item.attrs:
        if np.prod(item.attrs.get_id(key).shape or (), dtype=object) <= _MAX_TEXTS_OF_ATTRIBUTE:
            n_bytes += _text_bytes(item.attrs, key)
    if isinstance(item, h5py.Dataset) and item.shape is not None and item.dtype.kind == "O":
        for place in np.ndindex(item.shape) if item.size <= _MAX_TEXTS_OF_DATASET else ():
            n_bytes += _text_bytes(item, place)
    return n_bytes


def _text_bytes(holder: Any, key: Any) -> int:
    try:
        value = holder[key]
    except _DamagedHeap:
        raise
    except Exception:  # h5py does not know the type; the program that needs the value will fail
        return 0
    values = value.flat if isinstance(value, np.ndarray) and value.dtype.kind == "O" else [value]
    return sum(len(text) for text in values if isinstance(text, (str, bytes)))


def check_filters(item: h5py.Dataset, where: str) -> None:
    """Raise an error unless each filter of a dataset is installed; `where` names the dataset."""
    plist = item.id.get_create_plist()
    for i in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(i)
        if not h5py.h5z.filter_avail(code):
            text = in_one_line(name.decode(errors="replace"))
            raise OSError(
                f"{where} is compressed by the HDF5 filter {code} ({text}), which is not "
                "installed; pip install hdf5plugin, and import it"
            )
