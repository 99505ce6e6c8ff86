"""Find the datasets that hold the frames of a scan, and check that they are complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from ..emd import untrusted


class Piece(NamedTuple):
    """Consecutive frames: those of a 3D dataset, or of one row of a 4D dataset."""

    file: Path
    dataset: str
    row: int | None
    shape: tuple[int, ...]  # of the dataset
    dtype: np.dtype[Any]

    @property
    def n_frames(self) -> int:
        return self.shape[0] if self.row is None else self.shape[1]


class LibraryFrames(NamedTuple):
    """Frames (n, Qx, Qy) that another library reads, or that lie in memory."""

    file: Path
    dataset: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], Any]
    """Returns an array (n, Qx, Qy) or (Rx, Ry, Qx, Qy): NumPy's, a memmap, or dask's. Another
    process calls it too."""
    chunk_rows: int = 1
    """Rows of the scan that lie in one chunk of the file, and are unpacked together."""
    row: None = None

    @property
    def n_frames(self) -> int:
        return self.shape[0]


def check_size(path: Path, expected: int) -> None:
    """Raise an OSError if a file is missing, or shorter than it was."""
    try:
        size = size_of(path)
    except OSError as error:
        raise OSError(f"{path} is missing ({error}); put it back") from error
    if size < expected:
        raise OSError(
            f"{path} shrank from {expected} to {size} bytes since it was opened; copy it again, "
            "and open the scan again"
        )


def size_of(path: Path) -> int:
    """Bytes of a file; 0 for a folder, whose size says nothing."""
    found = path.stat()
    return 0 if path.is_dir() else found.st_size


def master_pieces(path: Path, prefix: str) -> list[Piece]:
    """The chunks of a master file, in order; a missing chunk is an error."""
    if re.search(r"_data_\d+$", path.stem):
        master = re.sub(r"_data_\d+$", "_master.h5", path.stem)
        raise ValueError(
            f"{path} is one chunk file of a scan; give the master file, {master}, or this one with "
            "dataset='entry/data/data'"
        )
    with untrusted.open_file(path) as file:
        group = untrusted.object_at(file, "entry/data")
        names = list(group) if isinstance(group, h5py.Group) else None
    if names is None:
        raise ValueError(
            f"{path} is no master file of Dectris: it holds no 'entry/data'; {_suggest(path)}"
        )

    beside = {}
    for sibling in path.parent.glob("*.h5"):
        digits = sibling.stem.removeprefix(f"{prefix}_data_")
        if digits != sibling.stem and digits.isdecimal():
            beside[int(digits)] = sibling
    chunks = {int(n[5:]): n for n in names if n.startswith("data_") and n[5:].isdecimal()}
    if not chunks and "data" in names:
        return find_pieces(path, "entry/data/data")
    numbers = sorted(chunks or beside)
    if not numbers:
        raise FileNotFoundError(
            f"{path} has no chunks: 'entry/data' holds no 'data_000001', and no file "
            f"{prefix}_data_000001.h5 lies beside it; copy the chunk files there"
        )
    # Files are numbered from 1; old firmware started at 0.
    missing = sorted(set(range(min(numbers[0], 1), numbers[-1])) - set(numbers))
    if missing:
        raise FileNotFoundError(
            f"{path} has no chunk data_{missing[0]:06d}, but data_{numbers[-1]:06d}; copy all "
            "chunk files of the scan into its folder"
        )
    pieces: list[Piece] = []
    for number in numbers:
        if chunks:
            pieces += find_pieces(path, f"entry/data/{chunks[number]}", beside.get(number))
        else:
            pieces += find_pieces(beside[number], "entry/data/data")
    return pieces


def check_alike(pieces: list[Piece]) -> None:
    """Raise an error unless the frames of all pieces have the same shape and type."""
    first = pieces[0]
    for piece in pieces[1:]:
        if piece.shape[-2:] != first.shape[-2:] or piece.dtype != first.dtype:
            raise ValueError(
                f"{piece.dataset!r} of {piece.file} holds frames of {piece.shape[-2:]} "
                f"{piece.dtype}, that of {first.file} {first.shape[-2:]} {first.dtype}; these are "
                "not chunks of one scan, copy its files into a folder of their own"
            )


def find_pieces(
    path: Path, name: str, sibling: Path | None = None, max_links: int = 4
) -> list[Piece]:
    """The frames of a complete dataset; links to files in the folder of `path` are followed.

    `sibling` is the file that is taken if the file of a link is missing.
    """
    with untrusted.open_file(path) as file:
        item = untrusted.object_at(file, name)
        if isinstance(item, h5py.Dataset):
            return _pieces(path, item)
    if item is None:
        raise ValueError(f"{path} holds no {name!r}; {_suggest(path)}")
    if not isinstance(item, h5py.ExternalLink):
        raise ValueError(f"{name!r} of {path} is no dataset; {_suggest(path)}")
    if not max_links:
        raise OSError(f"{name!r} of {path} is a chain of links without end; name a dataset")
    return find_pieces(
        _linked_file(path, item.filename, sibling), item.path, max_links=max_links - 1
    )


def _suggest(path: Path) -> str:
    """The datasets of a file that could be a scan, as a remedy for an error."""
    found: list[str] = []

    def note(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.ndim in (3, 4):
            found.append(f"dataset={name!r} {item.shape}")
        return True if len(found) == 5 else None  # None continues the search

    with untrusted.open_file(path) as file:
        file.visititems(note)  # does not follow links
    return f"give {' or '.join(found)}" if found else "there is no 3D or 4D dataset in it"


def _pieces(path: Path, dataset: h5py.Dataset) -> list[Piece]:
    """The frames of one dataset; it must be complete and lie in this file."""
    where, shape, dtype = f"{dataset.name!r} of {path}", dataset.shape, dataset.dtype
    if dataset.ndim not in (3, 4):
        raise ValueError(
            f"{where} of shape {shape} is no scan: it must be (frames, Qx, Qy) or "
            f"(Rx, Ry, Qx, Qy); {_suggest(path)}"
        )
    if dtype.kind not in "buif":
        raise TypeError(f"{where} of type {dtype} is no scan: it must hold real numbers")
    if 0 in shape:
        raise ValueError(f"{where} of shape {shape} is empty")
    if dataset.external or dataset.is_virtual:
        # Such datasets refer to other files. HDF5 reads zeros if those are missing.
        raise OSError(
            f"{where} takes its values from other files, which is not followed; open the file that "
            "holds them, or copy the values (h5repack)"
        )
    untrusted.check_filters(dataset, where)
    _check_written(dataset, where)
    rows = range(shape[0]) if dataset.ndim == 4 else [None]
    return [Piece(path, dataset.name, row, shape, dtype.newbyteorder("=")) for row in rows]


def _check_written(dataset: h5py.Dataset, where: str) -> None:
    """Raise an error unless every frame was written; HDF5 reads zeros for missing frames."""
    if dataset.chunks is None:
        if dataset.id.get_storage_size() >= dataset.size * dataset.dtype.itemsize:
            return
        missing = 0
    else:
        if untrusted.all_chunks_written(dataset):
            return
        grid = untrusted.chunk_grid(dataset)
        corners = (np.multiply(place, dataset.chunks) for place in np.ndindex(*grid))
        chunk = (dataset.id.get_chunk_info_by_coord(tuple(map(int, at))) for at in corners)
        number = next(i for i, info in enumerate(chunk) if info.byte_offset is None)
        missing = int(np.unravel_index(number, grid)[0]) * dataset.chunks[0]
    raise OSError(
        f"{where} was not written to its end: the first frame that is missing is {missing} of "
        f"{len(dataset)}; copy the file again, or, if the scan was stopped, the frames before into "
        "a file of their own"
    )


def _linked_file(master: Path, filename: str, sibling: Path | None) -> Path:
    """The file to which a link in `master` leads: one in its folder, or `sibling`."""
    folder = master.parent
    name, inside = untrusted.file_of_link(filename)
    candidates = [folder.joinpath(*name.parts)] if inside else []
    candidates += [folder / name.name] if name.name else []
    candidates += [sibling] if sibling is not None else []
    for path in candidates:
        if path.is_file():
            return path
    if inside:
        raise FileNotFoundError(
            f"{candidates[0]} is missing, {master.name} links to it; copy all chunk files of the "
            "scan into the folder of the master file"
        )
    raise OSError(
        f"{master} links to {filename!r} outside its folder, which is not followed; copy that file "
        "into the folder of the master file"
    )
