"""Scans from HyperSpy and pyxem, and back."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import emdfile
import numpy as np

from ..emd import nodes
from .axes import Axes, Axis, plain, set_calibration, text_of
from .calibration import mean_centre

if TYPE_CHECKING:
    from py4DSTEM import DataCube

_UNITS = {"A": "Å", "um": "µm", "pixels": "px", "A^-1": "1/Å"}
"""Units of py4DSTEM as HyperSpy writes them; for the units library of HyperSpy, A is the ampere."""


def from_hyperspy(signal: Any, *, name: str = "datacube") -> DataCube:
    """Make a DataCube of a signal of HyperSpy or pyxem.

    Parameters
    ----------
    signal : hyperspy.signals.Signal2D, or a class of pyxem
        Two navigation axes, the scan, and two signal axes, the detector. A lazy signal stays lazy:
        the data are the same dask array.
    name : str
        Name of the datacube.

    Returns
    -------
    DataCube
        (Rx, Ry, Qx, Qy) as in ``signal.data``, which is not copied. Steps and units of the axes
        become the calibration. Where the zero of both detector axes lies on the detector, as after
        a calibration with pyxem, it becomes the origin. ``datacube.metadata["file"]`` holds the
        metadata of the signal, and in ``"notes"`` what has no place.

    Raises
    ------
    TypeError, ValueError
        If it is no signal, or has other axes.

    Examples
    --------
    >>> import hyperspy.api as hs  # doctest: +SKIP
    >>> datacube = from_hyperspy(hs.load("scan.hspy", lazy=True))  # doctest: +SKIP
    >>> clusters = datacube.cluster()  # doctest: +SKIP
    """
    from py4DSTEM import DataCube

    manager = getattr(signal, "axes_manager", None)
    if manager is None or not hasattr(signal, "data"):
        raise TypeError(
            f"signal of type {type(signal).__name__} must be a signal of HyperSpy or pyxem"
        )
    described = list(manager._axes)
    navigate = [bool(axis.navigate) for axis in described]
    if len(described) != 4 or sum(navigate) != 2:
        raise ValueError(
            f"a signal with {sum(navigate)} navigation axes and {len(navigate) - sum(navigate)} "
            "signal axes is no scan: it must have two of each; use signal.transpose, or select one "
            "with signal.inav"
        )
    order = sorted(range(4), key=lambda k: not navigate[k])
    data = signal.data if order == [0, 1, 2, 3] else signal.data.transpose(order)
    cube = DataCube(data=data, name=name)
    notes = set_calibration(cube, Axes(*(_axis(described[k]) for k in order)))
    cube.calibrate()
    metadata = plain(signal.metadata.as_dictionary()) or {}
    cube.metadata = emdfile.Metadata("file", {"metadata": metadata, "notes": "; ".join(notes)})
    return cube


def _axis(axis: Any) -> Axis | None:
    if not hasattr(axis, "scale"):  # an axis that is not even
        return None
    return Axis(float(axis.scale), text_of(str(axis.units)), float(axis.offset))


def to_hyperspy(datacube: Any) -> Any:
    """Make a signal of HyperSpy of a DataCube: a scan, a filtered scan, or averages.

    Parameters
    ----------
    datacube : DataCube
        (Rx, Ry, Qx, Qy). Data that are not in memory become a lazy signal.

    Returns
    -------
    hyperspy.signals.Signal2D, or LazySignal2D
        With the same data, which are not copied, and axes y, x, ky and kx with the steps, the units
        and the origin of the calibration. Of averages, the first axis is the number of the cluster.
        ``from_hyperspy`` gives the same calibration back.

    Raises
    ------
    TypeError, ValueError
        If it is no DataCube, or HyperSpy is not installed.

    Examples
    --------
    >>> signal = to_hyperspy(datacube)  # doctest: +SKIP
    >>> signal.save("scan.hspy")  # doctest: +SKIP
    """
    from py4DSTEM import DataCube

    if not isinstance(datacube, DataCube):
        raise TypeError(f"datacube of type {type(datacube).__name__} must be a DataCube")
    if find_spec("hyperspy") is None:
        raise ValueError('HyperSpy is not installed; pip install hyperspy "numpy<2"')
    import hyperspy.api as hs

    data = datacube.data
    lazy = not isinstance(data, np.ndarray) or isinstance(data, np.memmap)
    if lazy and not hasattr(data, "dask"):
        import dask.array as da

        pattern_bytes = max(1, np.dtype(data.dtype).itemsize * int(np.prod(data.shape[2:])))
        rows = max(1, 2**24 // (pattern_bytes * data.shape[1]))
        data = da.from_array(data, chunks=(rows, -1, -1, -1), fancy=False)
    signal = hs.signals.Signal2D(data, axes=describe_axes(datacube))
    signal.metadata.General.title = datacube.name
    return signal.as_lazy() if lazy and not signal._lazy else signal


def describe_axes(datacube: Any) -> list[dict[str, Any]]:
    """The axes of a DataCube as HyperSpy and RosettaSciIO describe them."""
    calibration = datacube.calibration
    step, unit = calibration.get_R_pixel_size(), calibration.get_R_pixel_units()
    pixel, pixel_unit = calibration.get_Q_pixel_size(), calibration.get_Q_pixel_units()
    centre = mean_centre(datacube) if pixel_unit != "pixels" else None
    offsets = (0.0, 0.0) if centre is None else (-centre[0] * pixel, -centre[1] * pixel)
    described = [
        ("y", step, 0.0, unit),
        ("x", step, 0.0, unit),
        ("ky", pixel, offsets[0], pixel_unit),
        ("kx", pixel, offsets[1], pixel_unit),
    ]
    axes = [
        {
            "name": name,
            "size": int(n),
            "scale": float(scale),
            "offset": float(offset),
            "units": _UNITS.get(text, text),
            "navigate": k < 2,
            "index_in_array": k,
        }
        for k, ((name, scale, offset, text), n) in enumerate(
            zip(described, datacube.data.shape, strict=True)
        )
    ]
    if _is_averages(datacube):
        axes[0] |= {"name": "cluster", "scale": 1.0, "units": ""}
        axes[1] |= {"scale": 1.0, "units": ""}
    return axes


def _is_averages(datacube: Any) -> bool:
    """Whether a DataCube holds the averages of clusters, (N, 1, Qx, Qy)."""
    clusters = nodes.children(datacube, "clusters").values()
    shape = tuple(datacube.data.shape[:2])
    return any(np.shape(getattr(node, "data", ())) != shape for node in clusters)
