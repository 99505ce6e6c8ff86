"""Read the settings of the detector, bad pixels and saturation from a Dectris file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..emd import untrusted

_DETECTOR = "entry/instrument/detector"

_PIXEL_MASKS = (f"{_DETECTOR}/detectorSpecific/pixel_mask", f"{_DETECTOR}/pixel_mask")

_FACTS = (
    "entry/instrument/beam/incident_energy",
    "entry/instrument/beam/incident_wavelength",
    *(
        f"{_DETECTOR}/{name}"
        for name in (
            "bit_depth_image",
            "bit_depth_readout",
            "count_time",
            "countrate_correction_applied",
            "description",
            "detector_distance",
            "detector_number",
            "flatfield_correction_applied",
            "frame_time",
            "pixel_mask_applied",
            "saturation_value",
            "sensor_material",
            "sensor_thickness",
            "threshold_energy",
            "x_pixel_size",
            "y_pixel_size",
        )
    ),
    *(
        f"{_DETECTOR}/detectorSpecific/{name}"
        for name in (
            "countrate_correction_count_cutoff",
            "data_collection_date",
            "nimages",
            "ntrigger",
            "pixel_mask_applied",
            "saturation_value",
            "software_version",
        )
    ),
)
"""Values of the file that are copied, under the same names, into the metadata of the datacube."""

_BAD_BITS = 0xFFFF
"""Bits of the pixel mask that mark a bad pixel. Higher bits mark special pixels with good counts
(NeXus, NXdetector)."""


def read_facts(path: Path, bad_pixels: str) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Settings of the detector, with the names and units of the file, and its pixel mask."""
    facts: dict[str, Any] = {}
    with untrusted.open_file(path) as file:
        for place in _FACTS:
            value = _single_value(file, place)
            if value is not None:
                name = place.rpartition("/")[2]
                facts[name] = value
                units = untrusted.object_at(file, place).attrs.get("units")
                if isinstance(units, (str, bytes)):
                    facts[f"{name}_units"] = _text(units)
        for place in _PIXEL_MASKS:
            item = untrusted.object_at(file, place)
            if item is None:
                continue
            if isinstance(item, h5py.ExternalLink) and bad_pixels == "keep":
                continue
            if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                raise OSError(
                    f"{place!r} of {path} leads to another file, which is not followed; copy the "
                    "pixel mask into the master file, or do without, bad_pixels='keep'"
                )
            if item.ndim != 2 or item.dtype.kind not in "bui":
                raise ValueError(
                    f"{place!r} of {path}, {item.dtype} of shape {item.shape}, is no pixel mask: "
                    "it must be whole numbers (Qx, Qy)"
                )
            untrusted.check_filters(item, f"{place!r} of {path}")
            untrusted.check_dataset(item)
            try:
                return facts, item[...]
            except (OSError, RuntimeError) as error:
                raise OSError(
                    f"{place!r} of {path} cannot be read ({error}); copy the file again"
                ) from error
    return facts, None


def load_filters() -> None:
    """Make bitshuffle and LZ4 known to HDF5 if hdf5plugin is installed."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401


def bad_map(
    mask: NDArray[Any] | None,
    detector: tuple[int, ...],
    facts: dict[str, Any],
    bad_pixels: str,
    path: Path,
) -> NDArray[Any]:
    """Boolean map of bad pixels, (Qx, Qy)."""
    if mask is None:
        return np.zeros(detector, dtype=bool)
    if mask.shape != detector:
        raise ValueError(
            f"the pixel mask of {path}, {mask.shape}, does not fit its frames, {detector}; "
            "copy the frames into a file of their own, without the mask"
        )
    # If the detector applies its mask, a pixel with any bit set is bad (EIGER2 manual, 11.1).
    bad = mask != 0 if facts.get("pixel_mask_applied") else (mask & _BAD_BITS) != 0
    if bad.all() and bad_pixels != "keep":
        raise ValueError(
            f"the pixel mask of {path} marks every pixel as bad; bad_pixels='keep' takes them as "
            "they are"
        )
    return bad


def largest_good_count(dtype: np.dtype[Any], facts: dict[str, Any]) -> int | float | None:
    """The largest value that is not saturated; None for floating point and boolean data."""
    if dtype.kind not in "iu":
        return None
    largest = int(np.iinfo(dtype).max)
    bits = facts.get("bit_depth_image")
    if isinstance(bits, int) and 1 < bits < 8 * dtype.itemsize:
        largest = 2**bits - 1
    limits: list[float] = [largest - 1]
    for name in ("saturation_value", "countrate_correction_count_cutoff"):
        value = facts.get(name)
        if isinstance(value, (int, float)) and value > 0:
            limits.append(value)
            break
    return min(limits)


def scan_step_of_microscope(path: Path) -> float | None:
    """Distance of scan positions in Å, from the file of the microscope; None if it is not there."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    with untrusted.open_file(path) as file:
        group = untrusted.object_at(file, "STEM Metadata")
        if not isinstance(group, h5py.Group) or "Pixel Size" not in group.attrs:
            return None
        size = np.ravel(group.attrs["Pixel Size"])
    if size.size == 0 or size.dtype.kind not in "iuf" or not (np.isfinite(size[0]) and size[0] > 0):
        return None
    return 10 * float(size[0])  # nm to Å


def _single_value(file: h5py.File, path: str) -> Any:
    """The value of a dataset with one value, as plain Python; None if there is no such dataset."""
    item = untrusted.object_at(file, path)
    if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "buifSO":
        return None
    if item.external or item.is_virtual:
        return None
    untrusted.check_dataset(item)
    value = np.asarray(item[()]).reshape(-1)[0]
    if isinstance(value, (bytes, str)):
        return _text(value)
    return value.item() if isinstance(value, np.generic) else None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
