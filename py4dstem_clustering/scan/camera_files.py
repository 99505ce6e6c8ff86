"""Open files of DigitalMicrograph and EMPAD with py4DSTEM; they stay on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .axes import Axes, Axis
from .found import Found, as_stack, library_frames

_EMPAD_ROWS, _EMPAD_COLUMNS = 130, 128
"""Rows of a frame in the file, the last two of which are no counts, and columns."""


def open_dm(path: Path) -> Found:
    """Find the scan in a file of DigitalMicrograph."""
    import py4DSTEM

    try:
        data, axes = _map_dm(path)
    except MemoryError:
        raise
    except Exception as error:  # ncempy raises errors of any kind
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"py4DSTEM cannot open {path}: {text}") from error
    if data.ndim not in (3, 4):
        raise ValueError(f"{path} holds no scan but an array of shape {data.shape}")
    return Found(
        [library_frames(path, "data", partial(_dm_frames, path))],
        f"py4DSTEM {py4DSTEM.__version__}, dm",
        scan=(int(data.shape[0]), int(data.shape[1])) if data.ndim == 4 else None,
        axes=axes,
    )


def _map_dm(path: Path) -> tuple[Any, Axes]:
    """The array of the largest number of axes, scan axes first, and its axes."""
    import py4DSTEM
    from ncempy.io.dm import fileDM

    data = py4DSTEM.import_file(str(path), mem="MEMMAP").data
    with fileDM(str(path), on_memory=False) as file:
        thumbnails = int(bool(file.thumbnail))
        shown = [int(n) for n in file.dataShape]
        counts = shown[thumbnails:]
        # Sizes and units of all images follow each other, and those of an image go from its fastest
        # axis to its slowest.
        image = max(range(len(counts)), key=lambda k: (counts[k] > 2, -k))
        start = sum(shown[: thumbnails + image])
        sizes = file.scale[start : start + counts[image]]
        units = file.scaleUnit[start : start + counts[image]]
        voltage = [v for tag, v in file.allTags.items() if "Microscope Info.Voltage" in tag]
    read = [
        Axis(float(size), unit.replace("\0", "")) for size, unit in zip(sizes, units, strict=True)
    ][::-1]
    if data.ndim == 4 and len(read) == 4:
        if _is_length(read[2]) and not _is_length(read[0]) and read[0].unit:
            # A spectrum image, with the scan as the last two axes.
            data, read = data.transpose(2, 3, 0, 1), [*read[2:], *read[:2]]
        axes = Axes(*read)
    else:
        # The scan axes of a stack are one axis, whose step is that along the rows.
        axes = Axes(qx=read[-2], qy=read[-1])
        if len(read) == 3 and _is_length(read[0]):
            axes = axes._replace(rx=read[0], ry=read[0])
    if _is_length(axes.qx):  # py4DSTEM does not believe them either: nothing told the camera
        axes = Axes()
    if axes.qx is not None and axes.qx.unit == "mrad" and voltage:
        from py4DSTEM.process.utils import electron_wavelength_angstrom

        wavelength = float(electron_wavelength_angstrom(float(voltage[0])))
        turned = [
            Axis(axis.step / wavelength / 1000, "A^-1") for axis in (axes.qx, axes.qy) if axis
        ]
        axes = axes._replace(qx=turned[0], qy=turned[-1])
    return data, axes


def _is_length(axis: Axis | None) -> bool:
    return axis is not None and axis.unit in ("nm", "µm", "um", "m", "A", "Å")


def _dm_frames(path: Path) -> Any:
    data, _ = _map_dm(path)
    if data.flags.c_contiguous or data.ndim == 3:
        return as_stack(data)
    back = data.transpose(2, 3, 0, 1)  # a view; reshaping the turned array would copy it
    return np.moveaxis(back.reshape(*back.shape[:2], -1), -1, 0)


def open_empad(path: Path) -> Found:
    """Find the frames of an EMPAD: 130 x 128 numbers, of which the last two rows are no counts."""
    number, rest = divmod(path.stat().st_size, 4 * _EMPAD_ROWS * _EMPAD_COLUMNS)
    if rest or not number:
        raise ValueError(
            f"{path} is no file of an EMPAD, or is cut short: its size is no multiple of that of a "
            "frame, 130 x 128 in float32; copy it again"
        )
    return Found(
        [library_frames(path, "data", partial(_map_empad, path, number))],
        "py4dstem_clustering, empad",
        square=True,
    )


def _map_empad(path: Path, number: int) -> Any:
    shape = (number, _EMPAD_ROWS, _EMPAD_COLUMNS)
    return np.memmap(path, dtype="<f4", mode="r", shape=shape)[:, :128]
