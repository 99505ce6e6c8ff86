"""Find out which kind of HDF5 file a file is, and its scan."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..emd import untrusted
from .axes import Axes, Axis, as_length, axis_from_values, text_of
from .detector import read_facts, scan_step_of_microscope
from .found import Found, as_stack, choose, library_frames
from .pieces import Piece, check_alike, find_pieces, master_pieces
from .py4dstem_files import is_emd_1, open_emd_1, open_py4dstem_0_13

_MAX_LISTED = 100
"""Most datasets of a file that are looked at to find its scan."""


def open_hdf5(path: Path, dataset: str | None, bad_pixels: str) -> Found:
    """Find the scan in an HDF5 file: of Dectris, EMD of any version, py4DSTEM, abTEM, or plain."""
    with untrusted.open_file(path) as file:
        emd_1 = is_emd_1(file)
        old = _version_of_py4dstem(file)
        is_master = isinstance(untrusted.object_at(file, "entry/data"), h5py.Group)
        is_abtem = all(name in file for name in ("array", "sampling", "units"))
        is_velox = "Data" in file and "Version" in file and "version_major" not in file.attrs
    if emd_1:
        found = open_emd_1(path, dataset)
        if found is not None:
            return found
    if old == 13 and not _holds_dataset(path, dataset):
        return open_py4dstem_0_13(path, dataset)
    if dataset is None and is_abtem:
        return _abtem(path)
    if dataset is None and is_master and not emd_1:
        return _dectris(path, None, bad_pixels)
    if is_velox and dataset is None:
        from .rosetta import open_with_rosettasciio

        return open_with_rosettasciio(path, dataset)
    if dataset is not None and not _holds_dataset(path, dataset):
        # A link of a chunk, or a group of EMD, or the name of a scan of py4DSTEM 0.12.
        dataset = _full_name(path, dataset)
    elif dataset is None:
        dataset = choose(path, _datasets(path), None)
    return _dectris(path, dataset, bad_pixels)


def _dectris(path: Path, dataset: str | None, bad_pixels: str) -> Found:
    """A master file with its chunks, or one dataset of any HDF5 file, with its axes."""
    prefix = path.stem.removesuffix("_master")
    facts, mask = read_facts(path, bad_pixels)
    pieces = master_pieces(path, prefix) if dataset is None else find_pieces(path, dataset)
    check_alike(pieces)
    axes = _axes_of_emd(path, dataset) if dataset is not None else None
    if axes is not None and dataset is not None and _is_reversed(axes):
        return _reversed(path, dataset, axes)
    step = scan_step_of_microscope(path.with_name(f"{prefix}.h5"))
    is_dectris = dataset is None or bool(facts)
    if axes is None and step is not None:
        axes = Axes(rx=Axis(step, "A"), ry=Axis(step, "A"))
    return Found(
        pieces,
        "py4dstem_clustering",
        scan=_scan_of(pieces),
        axes=axes,
        facts=facts,
        mask=mask,
        is_dectris=is_dectris,
        square=True,
    )


def _is_reversed(axes: Axes) -> bool:
    """Whether the units show that the detector comes first: HyperSpy writes EMD 0.2 so."""
    first, last = axes[:2], axes[2:]
    return all(axis is not None and as_length(axis.unit) is None for axis in first) and all(
        axis is not None and as_length(axis.unit) not in (None, "pixels") for axis in last
    )


def _reversed(path: Path, dataset: str, axes: Axes) -> Found:
    """A dataset (Qy, Qx, Ry, Rx), as RosettaSciIO turns it."""
    frames = library_frames(path, dataset, partial(_reversed_frames, path, dataset))
    with untrusted.open_file(path) as file:
        shape = file[dataset].shape[::-1]
    return Found([frames], "py4dstem_clustering", scan=(shape[0], shape[1]), axes=Axes(*axes[::-1]))


def _reversed_frames(path: Path, dataset: str) -> Any:
    import dask.array as da

    stored = h5py.File(path, "r")[dataset]
    return as_stack(da.from_array(stored, chunks=stored.chunks or "auto").transpose())


def _scan_of(pieces: list[Piece]) -> tuple[int, int] | None:
    """Rows and columns of a 4D dataset."""
    rows = [piece for piece in pieces if piece.row is not None]
    return (len(rows), rows[0].n_frames) if rows and len(rows) == len(pieces) else None


def _abtem(path: Path) -> Found:
    """A file that abTEM 1.0 wrote, as py4DSTEM opens it."""
    pieces = find_pieces(path, "array")
    with untrusted.open_file(path) as file:
        untrusted.check_stored(file, ours=False)
        sampling = np.ravel(file["sampling"][()])
        units = [text_of(unit) for unit in np.ravel(file["units"][()])]
    if len(sampling) != 4 or len(units) != 4 or _scan_of(pieces) is None:
        raise ValueError(f"{path} holds no scan of abTEM: its array must have four axes")
    axes = [Axis(float(size), unit) for size, unit in zip(sampling, units, strict=True)]
    return Found(pieces, "py4dstem_clustering", scan=_scan_of(pieces), axes=Axes(*axes))


def _version_of_py4dstem(file: h5py.File) -> int | None:
    """The minor version of py4DSTEM before 0.14 that wrote a file; None for other files."""
    for name in file:
        group = untrusted.object_at(file, name)
        if not isinstance(group, h5py.Group):
            continue
        kind = group.attrs.get("emd_group_type")
        minor = group.attrs.get("version_minor")
        if kind == "root" and minor == 13:
            return 13
        if isinstance(kind, (int, np.integer)) and kind == 2 and minor is not None:
            return int(minor)
    return None


def _holds_dataset(path: Path, name: str | None) -> bool:
    if name is None:
        return False
    with untrusted.open_file(path) as file:
        item = untrusted.object_at(file, name)
        return isinstance(item, (h5py.Dataset, h5py.ExternalLink))


def _datasets(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the datasets with 3 or 4 axes."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, item: Any) -> bool | None:
        is_array = isinstance(item, h5py.Dataset) and item.ndim in (3, 4) and item.size
        if is_array and item.dtype.kind in "buif":
            found.append((name, item.shape))
        return True if len(found) == _MAX_LISTED else None  # None continues the search

    with untrusted.open_file(path) as file:
        file.visititems(note)  # does not follow links
    return found


def _full_name(path: Path, name: str) -> str:
    """The dataset in a group of EMD, or of a scan of py4DSTEM 0.12, by the name of the group."""
    names = [full for full, _ in _datasets(path)]
    wanted = name.strip("/")
    fitting = [full for full in names if full in (wanted, f"{wanted}/data")]
    fitting = fitting or [full for full in names if full.endswith(f"/{wanted}/data")]
    return fitting[0] if len(fitting) == 1 else name


def _axes_of_emd(path: Path, dataset: str) -> Axes | None:
    """The axes beside a dataset with four axes: dim1 to dim4 in EMD 0.x, dim0 to dim3 in EMD 1."""
    with untrusted.open_file(path) as file:
        group = untrusted.object_at(file, dataset.rstrip("/").rpartition("/")[0] or "/")
        if not isinstance(group, h5py.Group):
            return None
        first = 0 if untrusted.object_at(group, "dim0") is not None else 1
        axes = [_axis_of_emd(untrusted.object_at(group, f"dim{first + k}")) for k in range(4)]
    return Axes(*axes) if any(axes) else None


def _axis_of_emd(item: Any) -> Axis | None:
    if not isinstance(item, h5py.Dataset) or item.ndim != 1 or item.dtype.kind not in "iuf":
        return None
    if item.external or item.is_virtual or item.size > 2**20:
        return None
    untrusted.check_dataset(item)
    unit = text_of(item.attrs.get("units", "")).replace("[", "").replace("]", "")
    # EMD 0.2 writes [n_m] for nm, and exponents as _^-1.
    return axis_from_values(item[()], unit.replace("n_m", "nm").replace("_", ""))
