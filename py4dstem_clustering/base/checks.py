"""Checks of the arguments of public functions; errors name the value, the rule, the remedy."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import emdfile
import numpy as np
import skimage.filters
from numpy.typing import NDArray

from ..kernels.blocks import MemoryNeed
from ..kernels.noise import noise_windows

COMPRESSIONS = ("gzip", "lzf", "bitshuffle")
"""How HDF5 files may be compressed; bitshuffle, with LZ4, needs the package hdf5plugin."""

_BYTES_TO_TRY = 2**16
"""Bytes that are written to see whether a disk has room at all."""

_UNITS = {"": 1, "b": 1}

for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}

THRESHOLD_NAMES = ("isodata", "li", "mean", "minimum", "otsu", "triangle", "yen")
"""Names of scikit-image's global thresholds, ``skimage.filters.threshold_<name>``."""

# HDF5 names that emdfile uses itself inside the group of a node.
_RESERVED_NAMES = {"data", "metadatabundle", *(f"dim{n}" for n in range(8))}


def check_data(data: Any) -> None:
    """Raise an error unless a scan is 4D, not empty, and holds real numbers."""
    shape = tuple(getattr(data, "shape", ()))
    if len(shape) != 4:
        raise ValueError(
            f"data of shape {shape} is not a scan: it must have the four axes (Rx, Ry, Qx, Qy); "
            "use data.reshape(Rx, Ry, Qx, Qy) or DataCube.set_scan_shape"
        )
    if not all(isinstance(n, Integral) for n in shape):  # dask: NaN where unknown
        raise ValueError(f"data of unknown shape {shape}; use dask's compute_chunk_sizes()")
    if 0 in shape:
        raise ValueError(f"data of shape {shape} is empty: every axis needs at least one element")
    # py4DSTEM's array over files of a Gatan K2 takes four indices only (0.14.18).
    if isinstance(data, Sequence):
        raise TypeError(
            f"data of class {type(data).__name__} cannot be read in blocks; copy it into an array "
            "or an HDF5 file pattern by pattern, data[rx, ry, :, :]"
        )
    dtype = np.dtype(data.dtype)
    if dtype.kind not in "buif":
        raise TypeError(
            f"data of type {dtype} cannot be clustered: it must be integer or floating point; "
            "take the magnitude of complex data, convert objects with .astype(float)"
        )


def check_number(name: str, value: Any, low: float = -np.inf, high: float = np.inf) -> float:
    """Return `value` as a float; it must be finite and in ``[low, high]``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")
    number = float(value)
    if not (np.isfinite(number) and low <= number <= high):
        rule = "" if low == -np.inf else f" of at least {low:g}"
        rule = f" from {low:g} to {high:g}" if np.isfinite(high) else rule
        raise ValueError(f"{name}={value!r} must be a finite number{rule}")
    return number


def check_integer(name: str, value: Any, low: int) -> int:
    """Return `value` as an int; it must be a whole number of at least `low`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be a whole number, not {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name}={value!r} must be at least {low}")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value`; it must be one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; it must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r} must be True or False, not {type(value).__name__}")
    return bool(value)


def check_n_jobs(n_jobs: Any, client: Any = None) -> int | None:
    """Return the number of threads; None stands for the default, which is 1 with a dask `client`.

    A worker does as many tasks at a time as it has threads, so that each task needs one only.
    """
    if n_jobs is None:
        return None if client is None else 1
    return check_integer("n_jobs", n_jobs, 1)


def check_memory(max_memory: Any, *needs: Callable[[], MemoryNeed]) -> int | None:
    """Return how many rows of the scan a block may have within `max_memory`; None for no limit.

    Each of `needs` returns the memory of one step of the work; they are called only if there is a
    limit. A limit below the memory of one row is an error. Without `needs` a block has one row.
    """
    if max_memory is None:
        return None
    rule = "a number of bytes, or a text such as '1 GB', '500 MB' or '1.5 GiB'"
    if isinstance(max_memory, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", max_memory.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"max_memory={max_memory!r} must be {rule}")
        limit = int(float(match[1]) * _UNITS[match[2]])
    elif isinstance(max_memory, Integral) and not isinstance(max_memory, (bool, np.bool_)):
        limit = int(max_memory)
    else:
        raise TypeError(
            f"max_memory={max_memory!r} must be {rule}, not {type(max_memory).__name__}"
        )
    if limit <= 0:
        raise ValueError(f"max_memory={max_memory!r} must be above 0: {rule}")
    found = [need() for need in needs]
    one_row = max((need.fixed + need.row for need in found), default=0)
    if limit < one_row:
        raise ValueError(
            f"max_memory={max_memory!r} must be at least {one_row} bytes "
            f"({-(-one_row // 10**6)} MB), because one row of this scan takes so much here; give "
            "more, fewer n_jobs, or bin the detector (datacube.bin_Q)"
        )
    return max(1, min(((limit - n.fixed) // n.row for n in found if n.row), default=1))


def check_compression(compression: Any) -> dict[str, Any]:
    """Return the options of h5py for one of `COMPRESSIONS`; none for None."""
    if compression is None:
        return {}
    if not isinstance(compression, str) or compression not in COMPRESSIONS:
        names = ", ".join(map(repr, COMPRESSIONS))
        raise ValueError(f"compression={compression!r} must be None or one of {names}")
    if compression != "bitshuffle":
        return {"compression": compression, "shuffle": True}
    if find_spec("hdf5plugin") is None:
        raise ValueError(
            "compression='bitshuffle' needs the package hdf5plugin; pip install hdf5plugin, or use "
            "'lzf'"
        )
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle(cname="lz4"))


def check_corr_range(corr_range: Any) -> tuple[float, float] | str:
    """Return two rising correlations, or "auto"."""
    if isinstance(corr_range, str) and corr_range == "auto":
        return corr_range
    try:
        low, high = corr_range
    except (TypeError, ValueError):
        raise TypeError(
            f"corr_range={corr_range!r} must be two numbers (low, high), such as (0.85, 0.95), "
            'or "auto"'
        ) from None
    low = check_number("corr_range[0]", low, -1, 1)
    high = check_number("corr_range[1]", high, -1, 1)
    if not low < high:
        raise ValueError(f"corr_range={corr_range!r} must rise: the first number below the second")
    return low, high


def check_noise(
    noise_correct: Any, gain: Any, offset: Any, scan: tuple[int, int]
) -> tuple[bool, float | None, float | None]:
    """Return whether to correct for noise, the gain and the offset; None where not given."""
    noise_correct = check_flag("noise_correct", noise_correct)
    if gain is not None:
        if check_number("gain", gain) <= 0:
            raise ValueError(
                f"gain={gain!r} must be above 0: the recorded value of one electron; leave it out "
                "to have it measured"
            )
        gain = float(gain)
    if offset is not None:
        offset = check_number("offset", offset)
    if not noise_correct:
        for name, value in (("gain", gain), ("offset", offset)):
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} does nothing without noise_correct=True; add that, or leave "
                    f"out {name}"
                )
    elif gain is None:
        noise_windows(scan)  # raises an error where the scan is too small
    return noise_correct, gain, offset


def check_edge(edge: Any, detector: tuple[int, int]) -> int:
    """Return the width of the border; it must leave at least two detector pixels."""
    edge = check_integer("edge", edge, 0)
    nu, nv = (n - 2 * edge for n in detector)
    if min(nu, nv) < 1 or nu * nv < 2:
        raise ValueError(
            f"edge={edge} leaves no pixel of a detector of {detector[0]} x {detector[1]}; "
            f"it must be below {min(detector) / 2:g}"
        )
    return edge


def values_of(item: Any) -> Any:
    """Return the array in a py4DSTEM object, or any other `item` as it is."""
    return item.data if isinstance(item, emdfile.Array) else item


def check_mask(name: str, mask: Any, shape: tuple[int, int], what: str) -> NDArray[Any]:
    """Return `mask` as an array: boolean, of this shape, True for at least one of `what`."""
    mask = np.asarray(values_of(mask))
    if mask.shape != tuple(shape):
        raise ValueError(
            f"{name} of shape {mask.shape} must have the shape {tuple(shape)}, True where {what} "
            "count"
        )
    if mask.dtype != bool:
        raise TypeError(
            f"{name} of type {mask.dtype} must be boolean, True where {what} count; "
            "use mask > 0 or mask.astype(bool)"
        )
    if not mask.any():
        raise ValueError(f"{name} is empty: it must be True for at least one of the {what}")
    return mask


def check_q_mask(q_mask: Any, detector: tuple[int, int]) -> NDArray[Any] | None:
    """None, or a boolean map of the detector."""
    return None if q_mask is None else check_mask("q_mask", q_mask, detector, "detector pixels")


def check_r_mask(r_mask: Any, scan: tuple[int, int]) -> float | str | NDArray[Any] | None:
    """None, a boolean map of the scan, a number, or the name of a global threshold."""
    if r_mask is None:
        return None
    if isinstance(r_mask, str):
        if r_mask not in THRESHOLD_NAMES:
            raise ValueError(f"r_mask={r_mask!r} must be one of {', '.join(THRESHOLD_NAMES)}")
        return r_mask
    if np.ndim(values_of(r_mask)) == 0:
        return check_number("r_mask", r_mask, -1, 1)
    return check_mask("r_mask", r_mask, scan, "scan positions")


def resolve_r_mask(r_mask: float | str | NDArray[Any] | None, mean: NDArray[Any]) -> NDArray[Any]:
    """The positions that `r_mask` selects, given the mean similarity of each."""
    if r_mask is None:
        return np.ones(mean.shape, dtype=bool)
    if isinstance(r_mask, np.ndarray):
        return r_mask
    if isinstance(r_mask, str):
        values = mean[np.isfinite(mean)]
        # The histogram of scikit-image has 256 bins. Where the range of the values is less than 256
        # rounding steps, they differ only by rounding, and no position stands out.
        if values.size == 0 or np.ptp(values) <= 256 * np.spacing(np.abs(values).max()):
            return np.zeros(mean.shape, dtype=bool)
        try:
            r_mask = getattr(skimage.filters, f"threshold_{r_mask}")(values)
        except RuntimeError as error:  # threshold_minimum does not find two maxima
            raise ValueError(
                f"r_mask={r_mask!r} finds no threshold in this mean similarity ({error}); "
                "try 'triangle' or 'otsu', or give a number"
            ) from error
    return mean > r_mask


def check_lag(lag: Any) -> float | Literal["auto"]:
    """Check the option `lag`; None is "auto"."""
    if lag is None or (isinstance(lag, str) and lag == "auto"):
        return "auto"
    if isinstance(lag, str):
        raise ValueError(f"lag={lag!r} must be a share from 0 to below 1, or 'auto'")
    share = check_number("lag", lag, 0)
    if share >= 1:
        raise ValueError(
            f"lag={lag!r} must be below 1: it is the share of a pattern that is left in the next "
            f"one; a mean delay of {share:g} positions is lag={share / (1 + share):.2g}"
        )
    return share


def check_same_scan(what: str, shape: Sequence[int], scan: Sequence[int]) -> None:
    """Raise an error unless the result `what` has the shape of the scan with which it is used."""
    if tuple(shape) != tuple(scan):
        raise ValueError(
            f"{what} of a scan of {tuple(shape)} must fit this scan of {tuple(scan)}; make it anew "
            "from this scan"
        )


def check_name(name: Any) -> str:
    """Return a name that EMD and HDF5 can hold."""
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a string, not {type(name).__name__}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"name={name!r} is no valid text") from None
    if not name or "/" in name or "\0" in name or name in (".", "..") or name in _RESERVED_NAMES:
        raise ValueError(
            f"name={name!r} cannot be stored in an EMD file: it must not be empty, contain '/', "
            f"or be one of {', '.join(sorted(_RESERVED_NAMES))}"
        )
    return name


def check_path(name: str, value: Any) -> Path:
    """Return `value`, a path or its text, as a Path."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a path, not {type(value).__name__}") from None


def check_out(out: Any, overwrite: bool, name: str = "out") -> Path:
    """Return the path of a file to write; its folder must exist."""
    path = check_path(name, out)
    given = f"{name}={str(path)!r}"
    if not path.parent.is_dir():
        raise ValueError(f"{given} lies in a folder that does not exist; make it first")
    if path.is_dir():
        raise ValueError(f"{given} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise ValueError(f"{given} exists; give another name, or overwrite=True")
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Raise an OSError unless a file can be written in the folder of `path`, and replace it.

    Where this is found after the work, the work is lost.
    """
    path = path.resolve()
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(_BYTES_TO_TRY))
            file.flush()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}). Make room, or choose another folder"
        ) from error
    if path.is_file():
        try:
            os.rename(path, path)
        except OSError as error:
            raise OSError(
                f"{path} cannot be replaced ({error}); close the program that has it open, or give "
                "another name"
            ) from error
