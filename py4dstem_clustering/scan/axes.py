"""What files say of their axes, in the units of py4DSTEM's calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LENGTHS = {
    "A": ("a", "å", "å", "angstrom", "angstroms", "ångström", "ångstrom"),
    "nm": ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    "pm": ("pm", "picometer", "picometre"),
    "um": ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre"),
    "mm": ("mm", "millimeter", "millimetre"),
    "m": ("m", "meter", "metre"),
    "pixels": ("px", "pixel", "pixels"),
}
"""Units of the distance between scan positions, as py4DSTEM writes them, and other spellings."""

_DETECTOR: dict[str, tuple[float, str]] = {
    "a^-1": (1.0, "A^-1"),
    "1/a": (1.0, "A^-1"),
    "1/å": (1.0, "A^-1"),
    "å^-1": (1.0, "A^-1"),
    "a-1": (1.0, "A^-1"),
    "$a^{-1}$": (1.0, "A^-1"),
    "1/nm": (0.1, "A^-1"),
    "nm^-1": (0.1, "A^-1"),
    "nm-1": (0.1, "A^-1"),
    "$nm^{-1}$": (0.1, "A^-1"),
    "1/pm": (100.0, "A^-1"),
    "1/m": (1e-10, "A^-1"),
    "mrad": (1.0, "mrad"),
    "rad": (1000.0, "mrad"),
    "deg": (1000 * np.pi / 180, "mrad"),
    "°": (1000 * np.pi / 180, "mrad"),
    "pixels": (1.0, "pixels"),
    "px": (1.0, "pixels"),
}
"""Units of detector pixels: factor and unit in py4DSTEM, which knows A^-1, mrad and pixels."""


class Axis(NamedTuple):
    """An axis as a file describes it; the place of element k is ``offset + k * step``."""

    step: float
    unit: str
    offset: float = 0.0


class Axes(NamedTuple):
    """Axes (Rx, Ry, Qx, Qy) of a scan; None where a file does not say."""

    rx: Axis | None = None
    ry: Axis | None = None
    qx: Axis | None = None
    qy: Axis | None = None


def unit_sign(unit: str) -> str:
    """A unit of py4DSTEM as it is printed."""
    return {"A": "Å", "um": "µm", "A^-1": "Å⁻¹"}.get(unit, unit)


def as_length(unit: str) -> str | None:
    """A unit of length as py4DSTEM writes it; None if it is not known."""
    name = unit.strip().lower()
    return next((known for known, spelled in LENGTHS.items() if name in spelled), None)


def axis_from_values(values: Any, unit: Any) -> Axis | None:
    """The axis whose elements have these places; None if they are not evenly spaced."""
    places = np.asarray(values)
    if places.ndim != 1 or places.size < 2 or places.dtype.kind not in "iuf":
        return None
    places = places.astype(float)
    step = float(places[1] - places[0])
    even = np.allclose(np.diff(places), step, rtol=1e-3, atol=0)
    if not np.isfinite(places).all() or not step or not even:
        return None
    return Axis(step, text_of(unit), float(places[0]))


def text_of(value: Any) -> str:
    """A text of an HDF5 file or of RosettaSciIO, which stands for a unit; "" for none."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) and not value.startswith("<") else ""


def set_calibration(cube: Any, axes: Axes) -> list[str]:
    """Write what a file says of its axes into the calibration of a DataCube.

    The scan step keeps its unit; detector pixels become A^-1 or mrad. Where the zero of both
    detector axes lies on the detector, it is the direct beam, and becomes the origin.

    Returns
    -------
    list of str
        What py4DSTEM has no place for, or what is not stated, in words.
    """
    notes: list[str] = []
    step = _one(axes.rx, axes.ry, "scan step", notes)
    if step is not None:
        unit = as_length(step.unit)
        if unit is None:
            notes.append(f"the scan step is {step.step:g} {step.unit}, a unit that is not known")
        elif not (unit == "pixels" and step.step == 1):
            cube.calibration.set_R_pixel_size(step.step)
            cube.calibration.set_R_pixel_units(unit)
    pixel = _one(axes.qx, axes.qy, "size of detector pixels", notes)
    if pixel is None:
        return notes
    factor, unit = _DETECTOR.get(pixel.unit.strip().lower(), (0.0, ""))
    if not factor:
        notes.append(
            f"detector pixels are {pixel.step:g} {pixel.unit}, for which py4DSTEM has no place"
        )
    elif not (unit == "pixels" and pixel.step == 1):
        cube.calibration.set_Q_pixel_size(pixel.step * factor)
        cube.calibration.set_Q_pixel_units(unit)
        if unit != "pixels" and axes.qx is not None and axes.qy is not None:
            origin = [-axis.offset / axis.step for axis in (axes.qx, axes.qy)]
            inside = all(0 < at < n - 1 for at, n in zip(origin, cube.Qshape, strict=True))
            if inside:
                cube.calibration.set_origin((origin[0], origin[1]))
    return notes


def _one(first: Axis | None, second: Axis | None, what: str, notes: list[str]) -> Axis | None:
    """The step of two axes, which must be the same, since py4DSTEM holds one."""
    both = [axis for axis in (first, second) if axis is not None and _states(axis)]
    if not both:
        notes.append(f"the {what} is not stated")
        return None
    sizes = [abs(axis.step) for axis in both]
    if not np.isclose(min(sizes), max(sizes), rtol=1e-3) or both[0].unit != both[-1].unit:
        found = " and ".join(f"{axis.step:g} {axis.unit}" for axis in both)
        notes.append(f"the {what} differs along the two axes ({found}), and py4DSTEM holds one")
        return None
    if any(axis.step < 0 for axis in both):
        notes.append(f"an axis of the {what} counts downwards in the file")
    return both[0]._replace(step=sizes[0])


def _states(axis: Axis) -> bool:
    """Whether an axis says more than that it has elements."""
    return bool(np.isfinite(axis.step) and axis.step and axis.unit.strip())


def plain(value: Any, depth: int = 0) -> Any:
    """A value of a reader's metadata as EMD files can hold it; None where it cannot be held."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, (str, bytes)):
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        return text.replace("\0", "")[:10_000]
    if isinstance(value, dict) and depth < 8:
        items = {str(key).replace("/", "_"): plain(item, depth + 1) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None} or None
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif" and value.size <= 10_000:
        return value if value.size else None
    if isinstance(value, Sequence) and 0 < len(value) <= 1000:
        items_ = [plain(item, depth + 1) for item in value]
        if all(isinstance(item, (bool, int, float)) for item in items_):
            return np.asarray(items_)
        if all(isinstance(item, str) for item in items_):
            return "; ".join(items_)
    return None
