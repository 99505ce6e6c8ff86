"""Make, copy and recognise datacubes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import emdfile
import numpy as np
import py4DSTEM
from py4DSTEM import Calibration, DataCube

from .._version import __version__
from ..base.progress import warn_user
from ..emd import nodes
from ..kernels.blocks import read_window
from .array import ScanArray
from .calibration import carry_calibration


def get_provenance(
    datacube: DataCube, start: float | None = None, known: str | None = None
) -> dict[str, Any]:
    """Where a result is from: the data, versions and time, and the seconds since `start`.

    `known` is the fingerprint of the data, if the caller has it already.
    """
    found: dict[str, Any] = {
        "source": datacube.name,
        "fingerprint": known or fingerprint(datacube.data),
        "shape": tuple(map(int, datacube.data.shape)),
        "created": nodes.now(),
        f"{nodes.TAG}_version": __version__,
        "py4DSTEM_version": py4DSTEM.__version__,
    }
    parents = _parents(datacube)
    if parents:
        found["parents"] = parents
    if start is not None:
        found["seconds"] = round(perf_counter() - start, 3)
    return found


def _parents(datacube: DataCube) -> tuple[str, ...]:
    """Fingerprints of the scans from which a filtered scan was made; empty for a scan as recorded.

    The filters have noted them in the metadata.
    """
    found = (
        getattr(note, "_params", {}).get("fingerprint")
        for key, note in datacube.metadata.items()
        if key.startswith(("filter_correlative", "filter_lowrank"))
    )
    return tuple(mark for mark in found if isinstance(mark, str))


def marks_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Fingerprints of the data of a result, and of the scans they were filtered from, if known."""
    mark, parents = settings.get("fingerprint"), settings.get("parents")
    if not isinstance(mark, str):
        return ()
    return (mark, *(parents if isinstance(parents, tuple) else ()))


def warn_of_other_data(
    what: str, settings: Mapping[str, Any], datacube: DataCube, known: str | None = None
) -> None:
    """Warn if a result with these settings was made of other data than those of a datacube.

    A scan and what was filtered from it fit. So does a result that does not know its data.
    `known` is the fingerprint of the datacube, if the caller has it already.
    """
    made_from = {*marks_of(settings)}
    if not made_from:
        return
    here = known or fingerprint(datacube.data)
    if made_from.isdisjoint({here, *_parents(datacube)}):
        warn_user(
            f"{what} made from {nodes.in_one_line(settings.get('source'))} (fingerprint "
            f"{nodes.in_one_line(settings.get('fingerprint'))}), and the data of this scan, "
            f"{datacube.name!r} (fingerprint {here}), are others. Use what was made from this "
            "scan, unless you only changed its data since"
        )


def new_datacube(
    data: Any,
    name: str,
    calibration: Calibration,
    metadata: Mapping[str, emdfile.Metadata],
    axis: str | None = None,
) -> DataCube:
    """A DataCube in a tree of its own; `axis` names the first axis where it counts patterns."""
    cube = DataCube(data=data, name=name, calibration=calibration)
    if axis is not None:
        cube.set_dim_name(0, axis)
    for key, item in metadata.items():
        cube.metadata = emdfile.Metadata(key, deepcopy(item._params))
    return cube


def copy_datacube(datacube: DataCube) -> DataCube:
    """The same data in a tree of its own, with a copy of the calibration and metadata."""
    metadata = {k: v for k, v in datacube.metadata.items() if k != "calibration"}
    return new_datacube(datacube.data, datacube.name, carry_calibration(datacube), metadata)


# --- files of a scan -----------------------------------------------------------------------------


def files_of(data: Any) -> list[Path]:
    """The files that hold the data of a scan; an empty list if they are not known."""
    if isinstance(data, ScanArray):
        return data.files
    if hasattr(data, "read_direct"):  # h5py
        return [Path(data.file.filename)]
    while isinstance(data, np.ndarray):
        if isinstance(data, np.memmap) and data.filename is not None:
            return [Path(data.filename)]
        data = data.base
    return []


def is_one_of(path: Path, files: Iterable[Path]) -> bool:
    """Whether `path` is one of `files`, even under another name (a link)."""
    return path.exists() and any(file.exists() and path.samefile(file) for file in files)


# --- fingerprint of a scan ----------------------------------------------------------------------

_SAMPLED_PATTERNS = 16
"""Number of patterns from which a fingerprint is made. With a larger number, more changes of the
data are noticed, and more data are read."""


def fingerprint(data: Any) -> str:
    """Hash of the shape, the type and 16 patterns all over a scan, to recognise its data later.

    It is the first 32 characters of a SHA-256. Scans that differ only in other patterns have the
    same fingerprint.
    """
    rx, ry = data.shape[:2]
    found = hashlib.sha256(repr((tuple(data.shape), np.dtype(data.dtype).str)).encode())
    # Steps of the golden ratio spread the columns evenly.
    steps = np.arange(_SAMPLED_PATTERNS)
    rows = np.unique(np.linspace(0, rx - 1, _SAMPLED_PATTERNS).astype(int))
    for row, share in zip(rows, (0.5 + 0.618034 * steps) % 1, strict=False):
        column = int(share * ry)
        row = int(row)
        pattern = read_window(data, (row, row + 1), (column, column + 1))[0, 0]
        found.update(np.ascontiguousarray(pattern).tobytes())
    return found.hexdigest()[:32]
