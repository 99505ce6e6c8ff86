"""Open scans in EMD files of py4DSTEM: their tree in memory, their patterns on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..emd import untrusted
from .calibration import step_of
from .found import Found, choose, frames_in_memory
from .pieces import find_pieces


def is_emd_1(file: h5py.File) -> bool:
    """Whether a file is EMD 1.0, which py4DSTEM writes since 0.14."""
    return bool(np.all(file.attrs.get("emd_group_type") == "file"))


def open_emd_1(path: Path, dataset: str | None) -> Found | None:
    """Find the scan in an EMD 1.0 file; None if `dataset` is not the place of one.

    Calibration, metadata and everything below the scan in its tree are read; its patterns are not.
    """
    with untrusted.open_file(path) as file:
        # py4DSTEM follows any link, and takes as much memory as a file asks for (0.14.18).
        untrusted.check_stored(file, ours=False)
        cubes = _datacubes(file)
        named = {name: shape for name, shape in cubes if _is_named(name, dataset)}
    if dataset is not None and not named:
        return None
    place = choose(path, named.items() if dataset is not None else cubes, None)
    pieces = find_pieces(path, f"{place}/data")
    with untrusted.open_file(path) as file:
        cube = _read_tree(file, place)
    check_cube(path, cube)
    shape = cube.data.shape
    return Found(
        pieces, "py4DSTEM", scan=(shape[0], shape[1]) if len(shape) == 4 else None, cube=cube
    )


def _datacubes(file: h5py.File) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the DataCubes of a file; of other 4D arrays if it has none."""
    cubes: list[tuple[str, tuple[int, ...]]] = []
    arrays: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Group) or "data" not in item:
            return
        data = item["data"]
        if not isinstance(data, h5py.Dataset) or "metadatabundle" in name.split("/"):
            return
        if item.attrs.get("python_class") == "DataCube":
            cubes.append((name, data.shape))
        elif item.attrs.get("emd_group_type") == "array" and data.ndim == 4:
            arrays.append((name, data.shape))

    file.visititems(note)
    return cubes or arrays


def _is_named(name: str, dataset: str | None) -> bool:
    wanted = (dataset or "").strip("/")
    return wanted in (name, f"{name}/data", name.rpartition("/")[2])


class _Unread:
    """A group of an HDF5 file whose dataset "data" looks like an array, and is not read."""

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        self.name, self.attrs = group.name, group.attrs

    def __getitem__(self, key: str) -> Any:
        return _UnreadData(self._group[key]) if key == "data" else self._group[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


class _UnreadData:
    def __init__(self, dataset: h5py.Dataset) -> None:
        self.attrs, self._dataset = dataset.attrs, dataset

    def __getitem__(self, key: Any) -> Any:
        # Zeros that take no memory; the caller replaces them.
        return np.broadcast_to(np.zeros((), self._dataset.dtype), self._dataset.shape)


def _read_tree(file: h5py.File, place: str) -> Any:
    """A DataCube with its root, calibration and what lies below it, as py4DSTEM.read makes it."""
    import py4DSTEM
    from emdfile import Root
    from emdfile.utils import _populate_tree

    root_name = place.split("/")[0]
    root = Root.from_h5(file[root_name])
    group = file[place]
    cube = py4DSTEM.DataCube.from_h5(_Unread(group))
    root.force_add_to_tree(cube)
    _populate_tree(cube, group)
    calibration = root.metadata.get("calibration")
    if isinstance(calibration, py4DSTEM.Calibration):
        for key in ("_target_paths", "_root_treepath"):
            calibration._params.pop(key, None)
        calibration.register_target(cube)
    return cube


def open_py4dstem_0_13(path: Path, dataset: str | None) -> Found:
    """Read a file of py4DSTEM 0.13 into memory."""
    import py4DSTEM

    with untrusted.open_file(path) as file:
        untrusted.check_stored(file, ours=False)
    try:
        cube = py4DSTEM.read(str(path), datapath=dataset)
    except Exception as error:  # py4DSTEM raises assertions and bare exceptions (0.14.18)
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"py4DSTEM cannot open {path}: {text}") from error
    if not isinstance(cube, py4DSTEM.DataCube):
        found = cube if isinstance(cube, list) else type(cube).__name__
        raise ValueError(
            f"{path} holds no single scan but {found}; name its data path with dataset"
        )
    check_cube(path, cube)
    return Found(
        [frames_in_memory(path, cube.data)],
        "py4DSTEM",
        scan=cube.data.shape[:2] if cube.data.ndim == 4 else None,
        cube=cube,
        in_memory=True,
    )


def check_cube(path: Path, cube: Any) -> None:
    """Raise an error unless the calibration of a DataCube is whole; some files have none."""
    import py4DSTEM

    if "calibration" not in cube.root.metadata:
        cube.calibration = py4DSTEM.Calibration()
    if not isinstance(cube.calibration, py4DSTEM.Calibration):
        raise ValueError(f"{path} is damaged: its calibration is not one of py4DSTEM")
    with untrusted.name_in_errors(path):
        for axes in ("R", "Q"):
            step_of(cube, cube.calibration, axes)
