"""Open arrays in files of NumPy, .npy and .npz."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from .found import Found, as_stack, choose, frames_in_memory, library_frames

_MAX_DEFLATE_RATIO = 1032
"""Most bytes that one byte of a zip archive can unpack to. With a larger number, a small file can
ask for more memory."""


def open_numpy(path: Path, dataset: str | None) -> Found:
    """Find the array of an .npy file, which stays on disk, or an array of an .npz file."""
    # zipfile, zlib and NumPy raise errors of many kinds.
    try:
        with path.open("rb") as file:
            start = file.read(6)
        is_npy = path.suffix.lower() == ".npy"
        if is_npy and start != b"\x93NUMPY":
            raise ValueError("it does not begin like an array of NumPy; copy it again")
        data = _map(path) if start == b"\x93NUMPY" else _from_archive(path, dataset)
    except Exception as error:
        if isinstance(error, MemoryError) or str(error).startswith(str(path)):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"NumPy cannot open {path}: {text}") from error
    shape = tuple(map(int, data.shape))
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{path} holds no scan: an array of shape {shape}; it must be (Rx, Ry, Qx, Qy), or a "
            "stack (frames, Qx, Qy)"
        )
    in_memory = not isinstance(data, np.memmap)
    if in_memory:
        frames = frames_in_memory(path, data)
    else:
        frames = library_frames(path, "array", partial(_stack_of_file, path))
    return Found(
        [frames],
        "NumPy",
        scan=(shape[0], shape[1]) if len(shape) == 4 else None,
        in_memory=in_memory,
    )


def _map(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _stack_of_file(path: Path) -> Any:
    return as_stack(_map(path))


def _from_archive(path: Path, dataset: str | None) -> NDArray[Any]:
    """An array of an .npz file."""
    with ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if dataset is None and len(members) == 1:
            (dataset,) = members
        if dataset not in members:
            shapes = ((name, _header(archive, info)[0]) for name, info in members.items())
            dataset = choose(path, [s for s in shapes if len(s[1]) in (3, 4)], dataset)
        return _from_zip(archive, members[dataset])


def _from_zip(archive: ZipFile, info: ZipInfo) -> NDArray[Any]:
    """An array in an .npz file, after a check that it is as large as its header says.

    NumPy would take all the memory that a header states before it reads the values.
    """
    # With other compressions, a megabyte can unpack to a terabyte.
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is not compressed as by np.savez_compressed")
    shape, dtype, start = _header(archive, info)
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    held = info.file_size - start
    if (
        min(shape, default=1) < 0
        or n_bytes != held
        or held > _MAX_DEFLATE_RATIO * info.compress_size
    ):
        raise ValueError(
            f"{info.filename} declares {n_bytes} bytes and holds {held}, packed into "
            f"{info.compress_size}"
        )
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(archive: ZipFile, info: ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type of an array in an archive, and where its values begin."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{info.filename} is of version {version} of the format of NumPy")
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which are not read")
        return shape, dtype, file.tell()
