"""Open a scan from any file that py4DSTEM, NumPy or h5py can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_data
from ..emd import untrusted
from .calibration import step_of
from .dectris import open_scan

_HDF5_SUFFIXES = (".h5", ".hdf5", ".py4dstem", ".emd")
"""Suffixes of the files that py4DSTEM opens as HDF5 (0.14.18)."""

_STAY_ON_DISK = {"dm", "empad", "mib"}
"""File types that py4DSTEM can leave on disk."""

_MAY_LACK_SHAPE = ("empad", "mib")
"""File types that may not state the shape of the scan."""

_MAX_DEFLATE_RATIO = 1032
"""Most bytes that one byte of a zip archive can unpack to. With a larger number, a small file can
ask for more memory."""


def load_scan(path: Path, key: str | None = None, scan_shape: tuple[int, int] | None = None) -> Any:
    """Open a file of py4DSTEM, of a microscope, of NumPy (.npy, .npz) or of HDF5 as a DataCube.

    Files of Arina, DigitalMicrograph, EMPAD and Merlin stay on disk. So do .npy files, and plain
    HDF5 files in which `key` names the dataset.

    Raises
    ------
    ValueError, TypeError, OSError
        If the file holds no scan, or is damaged. The error names the file.
    """
    import py4DSTEM

    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix in (".npy", ".npz"):
        data = _from_numpy(path, key)
    else:
        data = _from_py4dstem(path, key, scan_shape)
    cube = data if isinstance(data, py4DSTEM.DataCube) else None
    values = data if cube is None else cube.data
    if scan_shape is None and values.ndim == 3:
        raise ValueError(
            f"{path} holds a stack of {len(values)} patterns; give its shape as scan_shape"
        )
    if scan_shape is not None:
        values = _reshape(values, scan_shape, path)
    try:
        check_data(values)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path} holds no scan: {error}") from error
    if cube is None:
        return py4DSTEM.DataCube(values, name="datacube")
    if "calibration" not in cube.root.metadata:  # some files have no calibration
        cube.calibration = py4DSTEM.Calibration()
    if not isinstance(cube.calibration, py4DSTEM.Calibration):
        raise ValueError(f"{path} is damaged: its calibration is not one of py4DSTEM")
    with untrusted.name_in_errors(path):
        for axes in ("R", "Q"):
            step_of(cube, cube.calibration, axes)
    if values is not cube.data:
        cube.data = values
        cube.calibrate()
    return cube


def _from_numpy(path: Path, key: str | None) -> NDArray[Any]:
    """The array of an .npy file, left on disk, or an array of an .npz file."""
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return np.load(path, mmap_mode="r", allow_pickle=False)
        with ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if key is None and len(members) == 1:
                (key,) = members
            if key in members:
                return _from_zip(archive, members[key])
            names = ", ".join(members)
    # zipfile, zlib and NumPy raise errors of many kinds.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"NumPy cannot open {path}: {text}") from error
    raise ValueError(f"key must name one of the arrays of {path}: {names:.300}")


def _from_zip(archive: ZipFile, info: ZipInfo) -> NDArray[Any]:
    """An array in an .npz file, after a check that it is as large as its header says.

    NumPy would take all the memory that a header states before it reads the values.
    """
    # With other compressions, a megabyte can unpack to a terabyte.
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is not compressed as by np.savez_compressed")
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
        n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        held = info.file_size - file.tell()
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


def _from_py4dstem(path: Path, key: str | None, scan_shape: tuple[int, int] | None) -> Any:
    """Open a file with py4DSTEM or `open_scan`: a DataCube, or a 3D array of patterns."""
    import py4DSTEM
    from py4DSTEM.io.legacy import is_py4DSTEM_version13
    from py4DSTEM.io.parsefiletype import _parse_filetype

    is_hdf5 = path.suffix.lower() in _HDF5_SUFFIXES
    if is_hdf5:
        _check_hdf5(path)
    # py4DSTEM raises assertions and bare exceptions for files that it cannot open (0.14.18).
    try:
        filetype = _parse_filetype(path)
    except Exception as error:
        if is_hdf5 and key is not None:
            return open_scan(path, dataset=key, scan_shape=scan_shape)
        raise _cannot_open(path, error, "name its dataset with key" if is_hdf5 else "") from error
    if filetype == "arina":  # py4DSTEM would cut the counts to 16 bits
        return open_scan(path, scan_shape=scan_shape)
    hint = ""
    options: dict[str, Any] = {"mem": "MEMMAP"} if filetype in _STAY_ON_DISK else {}
    try:
        if filetype == "legacy" and not is_py4DSTEM_version13(path):
            # Without the name of the data py4DSTEM prints a table and returns None (0.14.18).
            data = py4DSTEM.read(str(path), data_id=_name_in_old_file(path, key))
        elif filetype in ("emd", "legacy"):
            data = py4DSTEM.read(str(path), datapath=key)
        elif filetype in _MAY_LACK_SHAPE and scan_shape is not None:
            # With these options py4DSTEM reads any file as a stack of patterns (0.14.18).
            if filetype == "empad":
                options["EMPAD_shape"] = (_count_empad_patterns(path), 1, 130, 128)
            else:
                options |= {"reshape": False, "scan": tuple(scan_shape)}
            data = py4DSTEM.import_file(str(path), **options)
        else:
            if filetype in _MAY_LACK_SHAPE:
                hint = "give the shape of the scan as scan_shape"
            data = py4DSTEM.import_file(str(path), **options)
    except Exception as error:
        raise _cannot_open(path, error, hint) from error
    if isinstance(data, py4DSTEM.Root):
        cubes = [data.tree(name) for name in data.treekeys]
        cubes = [cube for cube in cubes if isinstance(cube, py4DSTEM.DataCube)]
        if len(cubes) == 1:
            (data,) = cubes
    if type(data) is py4DSTEM.Array and data.data.ndim == 3:  # a stack of DigitalMicrograph
        return data.data
    if not isinstance(data, py4DSTEM.DataCube):
        found = data if isinstance(data, list) else type(data).__name__
        raise ValueError(f"{path} holds no single scan but {found}; name its data path with key")
    return data


def _count_empad_patterns(path: Path) -> int:
    """Number of patterns in an EMPAD file, from its size."""
    number, rest = divmod(path.stat().st_size, 4 * 130 * 128)
    if rest or not number:
        raise ValueError("its size is no multiple of that of a pattern, 130 x 128 in float32")
    return number


def _cannot_open(path: Path, error: Exception, hint: str) -> ValueError:
    text = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"py4DSTEM cannot open {path}: {text}{'; ' if hint else ''}{hint}")


def _name_in_old_file(path: Path, key: str | None) -> str:
    """Name of the data to read from a file of py4DSTEM 0.12 or older: the key, or the only scan."""
    from py4DSTEM.io.legacy import get_py4DSTEM_topgroups

    if key is not None:
        return key.rpartition("/")[2]
    with untrusted.open_file(path) as file:
        groups = [file[top].get("data/datacubes") for top in get_py4DSTEM_topgroups(path)]
        names = [name for group in groups if group is not None for name in group]
    if not names:
        raise ValueError("it holds no scan")
    if len(names) > 1:
        raise ValueError(f"key must name one of its scans: {', '.join(names):.300}")
    return names[0]


def _check_hdf5(path: Path) -> None:
    """Raise an error if it is not safe to open a file with py4DSTEM.

    py4DSTEM follows any link, and takes as much memory as a file asks for (0.14.18).
    """
    with untrusted.open_file(path) as file:
        is_emd = file.attrs.get("emd_group_type") == "file"
        untrusted.check_stored(file, ours=False, dectris=not is_emd)
        chunks = [] if is_emd else untrusted.linked_files(file)
    for chunk in chunks:
        with untrusted.open_file(path.parent / chunk) as file:
            untrusted.check_stored(file, ours=False)


def _reshape(data: Any, scan_shape: tuple[int, int], path: Path) -> NDArray[Any]:
    """The same patterns as a scan of another shape."""
    if tuple(data.shape[:-2]) == tuple(scan_shape):
        return data
    detector = tuple(data.shape[-2:])
    patterns = int(np.prod(data.shape[:-2]))
    if data.ndim < 3 or min(scan_shape) < 1 or scan_shape[0] * scan_shape[1] != patterns:
        raise ValueError(
            f"scan_shape={tuple(scan_shape)} does not fit {path}, which holds "
            f"{patterns} patterns (shape {tuple(data.shape)})"
        )
    return np.reshape(data, (*scan_shape, *detector))
