"""Read and copy calibrations: pixel sizes of the scan and the detector, and the origin."""

from __future__ import annotations

from copy import deepcopy
from numbers import Real
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from py4DSTEM import Calibration, DataCube

from ..base.progress import warn_user
from ..emd.nodes import damaged, in_one_line

_USED_MAPS = {
    "qx0": "the origin",
    "qy0": "the origin",
    "a": "the ellipse",
    "b": "the ellipse",
    "theta": "the ellipse",
}
"""Entries of a calibration that may hold a number for each scan position, and what they describe.
py4DSTEM leaves them as they are when it crops, bins, thins or reshapes a scan (0.14.18)."""

_OTHER_MAPS = {"qx0_shift", "qy0_shift", "qx0_meas", "qy0_meas", "origin_meas_mask"}
"""Entries of a calibration that hold maps of the scan and are not used here."""

_REMEDIES = {
    "the origin": "datacube.calibration.set_origin((qx0, qy0)): measure it anew "
    "(py4DSTEM.process.calibration.get_origin), crop or bin the maps like the scan, or give "
    "datacube.calibration.get_origin_mean()",
    "the ellipse": "datacube.calibration.set_ellipse((a, b, theta)): three numbers, or maps that "
    "are cropped or binned like the scan",
}


def check_calibration(datacube: Any) -> None:
    """Raise an error if maps in the calibration are of a scan of another shape.

    A median origin outside the detector is warned of: it is that of the detector before py4DSTEM
    cropped or binned it, unless the direct beam was beside the detector.
    """
    calibration = calibration_of(datacube)
    params = getattr(calibration, "_params", {})
    for key, what in _USED_MAPS.items():
        value: Any = params.get(key)
        shape = np.shape(value)
        if shape not in ((), tuple(datacube.Rshape)):
            raise ValueError(
                f"the calibration holds {what} of a scan of {shape} and does not fit this scan of "
                f"{tuple(datacube.Rshape)}; py4DSTEM leaves it as it was when a scan is cropped, "
                f"binned or reshaped. Set it with {_REMEDIES[what]}"
            )
    # py4DSTEM's get_probe_size keeps a mean alone.
    values: list[Any] = [params.get(key, params.get(f"{key}_mean")) for key in ("qx0", "qy0")]
    try:
        origin = [np.asarray(value, dtype=float) for value in values]
    except (TypeError, ValueError):
        found = " and ".join(map(in_one_line, values))
        raise damaged(datacube, f"its calibration has the origin {found}, and no numbers") from None
    known = [part[np.isfinite(part)] for part in origin]
    if not all(part.size for part in known):
        return
    qx0, qy0 = (float(np.median(part)) for part in known)
    nx, ny = datacube.Qshape
    if not (-0.5 <= qx0 <= nx - 0.5 and -0.5 <= qy0 <= ny - 0.5):
        warn_user(
            f"the origin ({qx0:.4g}, {qy0:.4g}) in the calibration lies outside the detector of "
            f"{nx} x {ny} pixels; if the detector was cropped or binned after the origin was "
            "measured, set it anew with datacube.calibration.set_origin"
        )


def carry_calibration(
    datacube: DataCube, labels: NDArray[np.integer[Any]] | None = None
) -> Calibration:
    """A copy of the calibration; with `labels`, maps of the scan become means over each cluster.

    Maps that are not used here, and are of a scan of another shape, are left out.
    """
    copy = copy_calibration(calibration_of(datacube))
    for key in _OTHER_MAPS:
        if np.shape(copy._params.get(key)) not in ((), tuple(datacube.Rshape)):
            del copy._params[key]
    for key in ("qx0", "qy0"):
        # py4DSTEM makes it NaN where one origin is not known, and cannot save the axes (0.14.18).
        values = np.asarray(copy._params.get(key), dtype=float)
        if np.isnan(copy._params.get(f"{key}_mean") or 0.0) and np.isfinite(values).any():
            copy._params[f"{key}_mean"] = float(values[np.isfinite(values)].mean())
    if labels is None:
        return copy

    count_patterns(copy)
    n_clusters = labels.max() + 1
    for key, value in list(copy._params.items()):
        if isinstance(value, np.ndarray) and value.shape == labels.shape:
            if value.dtype == bool:
                del copy._params[key]
                continue
            present = (labels >= 0) & np.isfinite(value)
            count = np.bincount(labels[present], minlength=n_clusters).astype(float)
            count[count == 0] = np.nan
            total = np.bincount(labels[present], value[present], minlength=n_clusters)
            copy._params[key] = (total / count)[:, None]
    return copy


_STEP_KEYS = {"size": "scan_pixel_size", "units": "scan_pixel_units"}
"""Entries that keep the step of the scan in the calibration of averages, which are no scan."""


def count_patterns(calibration: Calibration) -> None:
    """Make the first axis of a datacube of averages count patterns instead of a distance.

    py4DSTEM gives this axis the step of the scan, and other programs would read the number of a
    cluster as a distance. The step is kept under another name, for `step_of`.
    """
    params = calibration._params
    if _STEP_KEYS["size"] in params:
        return
    for name, nothing in (("size", 1), ("units", "")):
        params[_STEP_KEYS[name]] = params.get(f"R_pixel_{name}", 1 if name == "size" else "pixels")
        params[f"R_pixel_{name}"] = nothing


def measure_distance(calibration: Calibration) -> None:
    """The reverse of `count_patterns`, for a calibration of averages that is put on a scan."""
    params = calibration._params
    for name, nothing in (("size", 1), ("units", "")):
        kept = params.pop(_STEP_KEYS[name], nothing)
        if params.get(f"R_pixel_{name}") == nothing:
            params[f"R_pixel_{name}"] = kept


def copy_calibration(calibration: Calibration | None = None) -> Calibration:
    """An independent copy of a py4DSTEM Calibration; an empty Calibration for None.

    The copy leaves out the entries that py4DSTEM.read adds: the place in the file, and the names of
    the objects that are calibrated (0.14.18).
    """
    copy = Calibration() if calibration is None else calibration.copy(name="calibration")
    for key, value in list(copy._params.items()):
        if key in ("_root_treepath", "_target_paths"):
            del copy._params[key]
        else:
            copy._params[key] = deepcopy(value)
    return copy


def calibration_of(node: Any) -> Any:
    """The calibration of the tree in which a node is; None if there is none."""
    root = getattr(node, "root", None)
    return None if root is None else root.metadata.get("calibration")


def detector_step(node: Any) -> tuple[float, str]:
    """Size of detector pixels and its unit, from the calibration of a node's tree."""
    return step_of(node, calibration_of(node), "Q")


def scan_step(node: emdfile.Node) -> tuple[float, str]:
    """Distance of scan positions and its unit, from the calibration of a node's tree."""
    return step_of(node, calibration_of(node))


def step_of(node: Any, calibration: Any, axes: str = "R") -> tuple[float, str]:
    """Size and unit of pixels in a calibration: of the scan ("R") or of the detector ("Q")."""
    if calibration is None:
        return 1.0, "pixels"
    if not hasattr(calibration, "get_R_pixel_size"):
        raise damaged(node, f"its calibration is a {type(calibration).__name__}")
    size = getattr(calibration, f"get_{axes}_pixel_size")()
    unit = getattr(calibration, f"get_{axes}_pixel_units")()
    if axes == "R" and unit == "":  # of averages, unless the user has set the step anew
        unit = calibration._params.get(_STEP_KEYS["units"], unit)
        size = calibration._params.get(_STEP_KEYS["size"], size) if size == 1 else size
    number = float(size) if isinstance(size, Real) and not isinstance(size, bool) else np.nan
    if not np.isfinite(number) or number == 0:  # emdfile cannot write axes of step 0 (0.0.16)
        found = in_one_line(size)
        raise damaged(
            node, f"its calibration has the pixel size {found}, and no number other than 0"
        )
    if not isinstance(unit, str):
        raise damaged(node, f"its calibration has the unit {in_one_line(unit)}, and no text")
    return number, unit


def known_centre(datacube: Any) -> tuple[float, float] | None:
    """Mean centre of the direct beam, from the calibration; None if the calibration has none."""
    check_calibration(datacube)
    return mean_centre(datacube)


def mean_centre(datacube: Any) -> tuple[float, float] | None:
    """`known_centre`, whatever scan its maps are of, as for averages with those of their scan."""
    calibration = calibration_of(datacube)
    if calibration is None:
        return None
    origin = calibration.get_origin_mean()
    if origin is not None and not np.isfinite(np.asarray(origin, dtype=float)).all():
        origins = known_origins(datacube)
        origin = None if origins is None else np.nanmean(origins, axis=(0, 1))
    if origin is None or not np.isfinite(np.asarray(origin, dtype=float)).all():
        return None
    return float(origin[0]), float(origin[1])


def known_origins(datacube: Any) -> NDArray[Any] | None:
    """Origin of each pattern (Rx, Ry, 2), NaN where unknown; None if all are unknown."""
    check_calibration(datacube)
    calibration = calibration_of(datacube)
    origin = None if calibration is None else calibration.get_origin()
    if origin is None:
        return None
    parts = [np.broadcast_to(np.asarray(part, dtype=float), datacube.Rshape) for part in origin]
    origin = np.stack(parts, axis=2)
    return origin if np.isfinite(origin).all(axis=2).any() else None


def varies(origin: NDArray[Any]) -> bool:
    """Whether the known origins differ over the scan."""
    known = origin[np.isfinite(origin).all(axis=2)]
    return bool((known != known[0]).any())


def whole_shifts(datacube: Any) -> NDArray[Any] | None:
    """Shifts (Rx, Ry, 2) in whole pixels that move patterns to the mean origin; None if all are 0.

    What remains is less than a pixel. Its effect is no larger than the part of the patterns that
    the features leave out.
    """
    origin = known_origins(datacube)
    if origin is None:
        return None
    known = np.isfinite(origin).all(axis=2)
    shifts = np.zeros(origin.shape, dtype=int)
    shifts[known] = np.round(origin[known].mean(axis=0) - origin[known]).astype(int)
    limit = np.array(datacube.Qshape) // 2
    return np.clip(shifts, -limit, limit) if shifts.any() else None
