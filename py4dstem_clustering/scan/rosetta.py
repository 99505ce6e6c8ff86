"""Open files of microscopes with RosettaSciIO, which HyperSpy and pyxem use too.

Values and axes are as RosettaSciIO gives them. It mirrors the frames of a Merlin along Qx, so that
they appear as on the screen of the camera.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from .axes import Axes, Axis, plain, text_of
from .found import Found, as_stack, choose, library_frames

READERS = {
    ".hspy": "hspy",
    ".zspy": "zspy",
    ".mib": "quantumdetector",
    ".blo": "blockfile",
    ".app5": "topspin",
    ".tvips": "tvips",
    ".ser": "tia",
    ".emi": "tia",
    ".mrc": "mrc",
    ".prz": "pantarhei",
    ".xml": "empad",
    ".emd": "emd",
    ".de5": "emd",
}
"""Modules of RosettaSciIO by the ending of the file; `.emd` here is of Velox."""

_WITH_CHUNKS = ("blockfile", "mrc", "pantarhei", "quantumdetector")
"""Readers that can be told in which chunks to read."""

_WITH_ORIGIN = ("hspy", "zspy", "emd")
"""Readers whose offsets of detector axes come from the file. Others give the middle of the detector
or the place of a region on the chip, which is not where the direct beam is."""

_CHUNK = "16MiB"
"""Bytes that are read at a time. With larger chunks a single pattern takes longer; with smaller
ones, dask takes more time than reading."""

_STATED = {
    "beam_energy_keV": "beam_energy",
    "camera_length_mm": "camera_length",
    "convergence_angle_mrad": "convergence_angle",
}
"""Values of the microscope by their name in HyperSpy's metadata, with the units that it has."""


_NAMED = {
    "beam_energy_keV": "the voltage is not stated",
    "camera_length_mm": "the camera length is not stated",
}
"""What is said where a file does not state a value."""


def has_rosettasciio() -> bool:
    """Whether the extra `files` is installed."""
    return find_spec("rsciio") is not None


def check_extra(path: Path, package: str = "rsciio") -> None:
    """Raise an error unless the extra `files` is installed."""
    if find_spec(package) is None:
        name, command = {
            "rsciio": ("RosettaSciIO", "rosettasciio"),
        }.get(package, (package, package))
        raise ValueError(
            f"{path.name} is read by {name}, which is not installed (it is in the extra 'files'); "
            f'pip install {command} "numpy<2"'
        )


def open_with_rosettasciio(path: Path, dataset: str | None) -> Found:
    """Find the scan in a file that RosettaSciIO reads."""
    check_extra(path)
    kind = READERS[path.suffix.lower()]
    if kind == "zspy":
        check_extra(path, "zarr")
    notes: list[str] = []
    try:
        options = _options(kind, path)
        signals = _read(kind, path, options)
        if kind == "quantumdetector":
            stated = _shape_of_merlin(signals[0], notes)
            options["navigation_shape"] = (_n_frames_of_merlin(signals[0]),)
            signals = _read(kind, path, options)
        named = _named(signals)
        # A single image is a scan of one position.
        single = len(named) == 1 and next(iter(named.values()))["data"].ndim == 2
        shapes = [
            (name, tuple(map(int, signal["data"].shape)))
            for name, signal in named.items()
            if signal["data"].ndim in (3, 4) or single
        ]
        if single:
            shapes = [(name, (1, *shape)) for name, shape in shapes]
        name = choose(path, shapes, dataset)
        signal = named[name]
        number = list(named).index(name)
        if kind in _WITH_CHUNKS and options["lazy"]:
            n_axes = 3 if kind == "quantumdetector" else signal["data"].ndim
            options["chunks"] = ("auto",) + (-1,) * (n_axes - 1)
        pieces = [library_frames(path, name, partial(_frames, kind, path, options, number))]
        _read_last(pieces[0].open())
    except MemoryError:
        raise
    except Exception as error:  # RosettaSciIO raises errors of any kind
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, (ValueError, TypeError)) and text.startswith(str(path)):
            raise
        raise ValueError(f"RosettaSciIO cannot open {path}: {text:.500}") from error
    scan, axes = _scan_and_axes(signal)
    if kind not in _WITH_ORIGIN:
        axes = Axes(*(axis and axis._replace(offset=0.0) for axis in axes))
    if kind == "mrc":
        axes = _axes_of_de(signal) or axes
    if kind == "quantumdetector":
        scan = stated
    facts = _facts(signal)
    return Found(
        pieces,
        f"RosettaSciIO, {kind}",
        scan=scan,
        axes=axes,
        facts=facts,
        notes=tuple(notes + [text for key, text in _NAMED.items() if key not in facts]),
        in_memory=not options["lazy"],
    )


def _options(kind: str, path: Path) -> dict[str, Any]:
    """Options of RosettaSciIO for one kind of file."""
    options: dict[str, Any] = {"lazy": True}
    if kind == "topspin":
        options = {"lazy": False, "show_progressbar": False}  # it reads everything all the same
    if kind == "pantarhei":
        with ZipFile(path) as archive:
            # It would map packed values as they are.
            packed = archive.getinfo("data.npy").compress_type != ZIP_STORED
        options["lazy"] = not packed
    return options


def _read(kind: str, path: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The datasets of a file, as RosettaSciIO returns them."""
    import dask

    reader = importlib.import_module(f"rsciio.{kind}")
    with warnings.catch_warnings(), dask.config.set({"array.chunk-size": _CHUNK}):
        warnings.simplefilter("ignore")
        # A guess about a file that is not what it seems is not wanted.
        warnings.filterwarnings("error", message="Blockfile has unrecognized header")
        found: list[dict[str, Any]] = reader.file_reader(str(path), **options)
    return found


def _frames(kind: str, path: Path, options: Mapping[str, Any], number: int) -> Any:
    """The frames of one dataset of a file, (n, Qx, Qy) or (Rx, Ry, Qx, Qy)."""
    data = _in_order(_read(kind, path, options)[number])
    return data if data.ndim == 4 else as_stack(data)


def _in_order(signal: Mapping[str, Any]) -> Any:
    """The data with the axes of the scan first."""
    navigate = [bool(axis["navigate"]) for axis in signal["axes"]]
    data = signal["data"]
    if len(navigate) != data.ndim or sum(navigate) != data.ndim - 2:
        return data
    order = sorted(range(data.ndim), key=lambda k: not navigate[k])
    return data if order == list(range(data.ndim)) else data.transpose(order)


def _read_last(frames: Any) -> None:
    """Read the last frame, so that a file that was cut short is noticed at once."""
    last = frames[-1:, -1:] if frames.ndim == 4 else frames[-1:]
    if hasattr(last, "dask"):
        last.compute(scheduler="synchronous")


def _named(signals: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The datasets by their titles, or by their numbers where titles are missing or the same."""
    titles = [
        text_of(signal.get("metadata", {}).get("General", {}).get("title")) for signal in signals
    ]
    return {
        title if title and titles.count(title) == 1 else str(number): signal
        for number, (title, signal) in enumerate(zip(titles, signals, strict=True))
    }


def _scan_and_axes(signal: Mapping[str, Any]) -> tuple[tuple[int, int] | None, Axes]:
    """Rows and columns, if the file has them, and the axes."""
    data = _in_order(signal)
    described = sorted(signal["axes"], key=lambda axis: not axis["navigate"])
    axes = [_axis(axis) for axis in described]
    if len(axes) == data.ndim == 4:
        return (int(data.shape[0]), int(data.shape[1])), Axes(*axes)
    return None, Axes(qx=axes[-2], qy=axes[-1]) if len(axes) >= 2 else Axes()


def _axes_of_de(signal: Mapping[str, Any]) -> Axes | None:
    """The axes in the _info.txt of Direct Electron; RosettaSciIO 0.15 gives a step of 1 instead."""
    stated = signal.get("original_metadata", {}).get("de_metadata")
    if stated is None:
        return None

    def axis(key: str, unit: str) -> Axis | None:
        try:
            size = float(stated[key])
        except (KeyError, ValueError):
            return None
        return Axis(size, unit) if size > 0 else None  # -1 where it is not known

    return Axes(
        axis("Specimen Pixel Size Y (nanometers)", "nm"),
        axis("Specimen Pixel Size X (nanometers)", "nm"),
        axis("Diffraction Pixel Size Y", "1/nm"),
        axis("Diffraction Pixel Size X", "1/nm"),
    )


def _axis(axis: Mapping[str, Any]) -> Axis | None:
    try:
        return Axis(
            float(axis["scale"]), text_of(axis.get("units")), float(axis.get("offset") or 0)
        )
    except (KeyError, TypeError, ValueError):  # an axis that is not even
        return None


def _n_frames_of_merlin(signal: Mapping[str, Any]) -> int:
    return int(signal["original_metadata"]["mib_properties"]["frame_number_in_file"])


def _shape_of_merlin(signal: Mapping[str, Any], notes: list[str]) -> tuple[int, int] | None:
    """The scan of a Merlin as its header file states it, or as its times of frames show it."""
    header = signal["original_metadata"].get("hdr_file") or {}
    n_frames = _n_frames_of_merlin(signal)
    if "ScanX" in header and "ScanY" in header:
        return int(header["ScanY"]), int(header["ScanX"])
    per_trigger = int(header.get("Frames per Trigger (Number)", 1))
    if per_trigger > 1:
        # The header file gives the number of frames that were asked for.
        return int(header["Frames in Acquisition (Number)"]) // per_trigger, per_trigger
    if signal["data"].ndim == 4 and n_frames == signal["data"].shape[0] * signal["data"].shape[1]:
        notes.append("the shape of the scan was found in the times of the frames")
        return int(signal["data"].shape[0]), int(signal["data"].shape[1])
    return None


def _facts(signal: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says beside its axes, as EMD files can hold it."""
    metadata = plain(signal.get("metadata") or {}) or {}
    instrument = metadata.get("Acquisition_instrument", {})
    instrument = instrument.get("TEM", instrument)
    facts = {name: instrument[key] for name, key in _STATED.items() if key in instrument}
    facts |= {"metadata": metadata, "original_metadata": plain(signal.get("original_metadata"))}
    return {key: value for key, value in facts.items() if value}
