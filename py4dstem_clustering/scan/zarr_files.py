"""Open zarr folders: of abTEM, or with plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .axes import Axes, Axis, plain
from .found import Found, choose, library_frames
from .rosetta import check_extra

_MAX_LISTED = 100
"""Most arrays of a folder that are looked at to find its scan."""


def is_zarr(path: Path) -> bool:
    """Whether a folder, or a zip file by its name, is a store of zarr."""
    names = ("zarr.json", ".zgroup", ".zarray")
    if path.is_dir():
        return any((path / name).is_file() for name in names)
    return path.name.lower().endswith((".zarr", ".zarr.zip"))


def open_zarr(path: Path, dataset: str | None) -> Found:
    """Find the scan in a zarr folder: patterns of abTEM with their axes, or a plain array."""
    check_extra(path, "zarr")
    try:
        arrays, attributes = _arrays(path)
        shapes = [(name, shape) for name, shape in arrays.items() if len(shape) in (3, 4)]
        name = choose(path, shapes, dataset)
        frames = library_frames(path, name, partial(_frames, path, name))
        opened = frames.open()
        opened[tuple(slice(-1, None) for _ in opened.shape[:-2])].compute(scheduler="synchronous")
    except MemoryError:
        raise
    except Exception as error:  # zarr raises errors of many kinds
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, (ValueError, TypeError)) and text.startswith(str(path)):
            raise
        raise ValueError(f"zarr cannot open {path}: {text:.500}") from error
    shape = arrays[name]
    packed = attributes.get(f"kwargs{name.removeprefix('array')}")
    axes, facts = _of_abtem(packed, shape) if isinstance(packed, Mapping) else (None, {})
    return Found(
        [frames],
        "zarr",
        scan=(shape[0], shape[1]) if len(shape) == 4 else None,
        axes=axes,
        facts=facts,
    )


def _open(path: Path) -> Any:
    import zarr

    return zarr.open(str(path), mode="r")


def _arrays(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the arrays by name, and the attributes of the store."""
    store = _open(path)
    attributes = dict(store.attrs)
    if hasattr(store, "shape"):
        return {path.stem: tuple(map(int, store.shape))}, attributes
    found: dict[str, tuple[int, ...]] = {}
    pending = [("", store)]
    while pending and len(found) < _MAX_LISTED:
        prefix, group = pending.pop()
        found |= {f"{prefix}{name}": tuple(map(int, a.shape)) for name, a in group.arrays()}
        pending += [(f"{prefix}{name}/", inner) for name, inner in group.groups()]
    return found, attributes


def _frames(path: Path, name: str) -> Any:
    import dask.array as da

    store = _open(path)
    array = store if hasattr(store, "shape") else store[name]
    return da.from_array(array, chunks=array.chunks)


def _of_abtem(packed: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Axes, dict[str, Any]]:
    """Axes and metadata of patterns of abTEM, from the arguments that it stores with them.

    The axes of the scan stand in ``ensemble_axes_metadata``. Patterns have the ``sampling`` of
    their pixels in 1/Å, and lie with the direct beam in the middle if ``fftshift`` is true.
    """
    known = [_axis(axis) for axis in packed.get("ensemble_axes_metadata") or []]
    scan: Sequence[Axis | None] = [axis for axis in known if axis is not None][-2:]
    sampling = packed.get("sampling")
    detector: Sequence[Axis | None] = [None, None]
    if isinstance(sampling, (list, tuple)) and len(sampling) == 2:
        shifted = bool(packed.get("fftshift", False))
        detector = [
            Axis(float(size), "1/Å", -float(size) * (n // 2) * shifted)
            for size, n in zip(sampling, shape[-2:], strict=True)
        ]
    metadata = packed.get("metadata")
    facts = {"metadata": plain(metadata)} if isinstance(metadata, Mapping) else {}
    energy = metadata.get("energy") if isinstance(metadata, Mapping) else None
    if isinstance(energy, (int, float)):
        facts["beam_energy_keV"] = energy / 1000
    return Axes(*(scan if len(scan) == 2 else (None, None)), *detector), facts


def _axis(axis: Any) -> Axis | None:
    try:
        return Axis(float(axis["sampling"]), str(axis["units"]))
    except (KeyError, TypeError, ValueError):
        return None
