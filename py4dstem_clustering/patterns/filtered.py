"""Filtered scans: where they are written, and what is noted with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from py4DSTEM import Calibration, DataCube

from ..base.checks import check_compression, check_out
from ..emd import writing
from ..scan.calibration import carry_calibration
from ..scan.datacubes import files_of, get_provenance, is_one_of, new_datacube


def note_filter(
    datacube: DataCube, name: str, options: dict[str, Any]
) -> dict[str, emdfile.Metadata]:
    """Metadata of a datacube and of the filter `name`; earlier filters keep their entries."""
    metadata = dict(datacube.metadata)
    earlier = sum(key.startswith(name) for key in metadata)
    key = f"{name}_{earlier + 1}" if earlier else name
    metadata[key] = emdfile.Metadata(key, {**options, **get_provenance(datacube)})
    return metadata


def check_target(
    data: Any, out: Any, overwrite: bool, compression: Any
) -> tuple[Path | None, dict[str, Any]]:
    """Path of the file to write (None: no file), and the options of h5py that compress it."""
    path = None if out is None else check_out(out, overwrite)
    if path is not None and is_one_of(path, files_of(data)):
        raise ValueError(f"out={str(path)!r} is the file of the scan itself; give another name")
    packing = check_compression(compression)
    if packing and path is None:
        raise ValueError(
            f"compression={compression!r} does nothing without out; add out, or leave it out"
        )
    return path, packing


def write_filtered(
    datacube: DataCube,
    name: str,
    metadata: Mapping[str, emdfile.Metadata],
    run: Callable[[Any], Mapping[str, NDArray[Any]] | None],
    path: Path | None,
    packing: Mapping[str, Any],
    maps: Mapping[str, tuple[int, ...]] | None = None,
) -> DataCube:
    """The scan that ``run(target)`` writes, in memory or in a new file, with the calibration.

    `run` may return maps of the scan, of the names and shapes in `maps`. They become arrays in the
    tree of the result.
    """

    def cube_of(data: Any, arrays: Mapping[str, NDArray[Any]]) -> DataCube:
        calibration: Calibration = carry_calibration(datacube)
        cube = new_datacube(data, name, calibration, metadata)
        for key, values in arrays.items():
            cube.tree(emdfile.Array(values, name=key))
        return cube

    if path is None:
        data = np.empty(datacube.data.shape, dtype=np.float32)
        return cube_of(data, run(data) or {})

    small = np.zeros([min(n, 2) for n in datacube.data.shape], dtype=np.float32)
    blank = {key: np.zeros(shape, dtype=np.float32) for key, shape in (maps or {}).items()}
    skeleton = cube_of(small, blank)
    with writing.scan_writer(path, skeleton, datacube.data.shape, packing) as target:
        arrays = run(target) or {}
        for key, values in arrays.items():
            target.fill(key, values)
    data = writing.open_dataset(path, skeleton.root.name, name)
    return cube_of(data, arrays)
