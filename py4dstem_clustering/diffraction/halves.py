"""The two halves of a scan, split like a checkerboard, and how far their orientations differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.blocks import read_rows
from ..scan.calibration import calibration_of, copy_calibration
from .misorientation import misorientation


def checkerboard(
    scan_shape: tuple[int, int], half: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scan positions ``(x, y)`` of half 0 or 1, as two maps ``(Rx, Ry // 2)``.

    Half 0 has the positions with ``x + y`` even, half 1 the others. If the number of columns is
    odd, the last column is in neither half.
    """
    x, column = np.indices((scan_shape[0], scan_shape[1] // 2))
    return x, 2 * column + (x + half) % 2


def take_half(datacube: Any, half: int) -> Any:
    """DataCube of half 0 or 1 of the scan, see `checkerboard`."""
    return take_positions(datacube, checkerboard(datacube.Rshape, half))


def take_positions(datacube: Any, positions: tuple[NDArray[Any], NDArray[Any]]) -> Any:
    """DataCube of the patterns at some scan positions, with the calibration of these positions.

    Patterns are not copied, see `PartOfScan`.
    """
    from py4DSTEM import DataCube

    calibration = copy_calibration(calibration_of(datacube))
    for key, value in calibration._params.items():
        if isinstance(value, np.ndarray) and value.shape == datacube.Rshape:
            calibration._params[key] = value[positions]
    part = PartOfScan(datacube.data, positions)
    return DataCube(data=part, name="half", calibration=calibration)


class PartOfScan:
    """Patterns of some scan positions as an array ``(n, m, Qx, Qy)``, read only when used.

    Parameters
    ----------
    data : array of any kind, (Rx, Ry, Qx, Qy)
    positions : (x, y)
        Two maps ``(n, m)`` of row and column in the scan.
    """

    ndim = 4

    def __init__(self, data: Any, positions: tuple[NDArray[Any], NDArray[Any]]) -> None:
        self._data, self._positions = data, positions
        self.shape = (*positions[0].shape, *data.shape[2:])
        self.dtype = np.dtype(data.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        x, y = (position[key[:2]] for position in self._positions)
        pixels = (*[slice(None)] * x.ndim, *key[2:])
        if x.size == 0:
            return np.empty((*x.shape, *self.shape[2:]), dtype=self.dtype)[pixels]
        if x.size == 1:  # reads one pattern, not its whole row
            row, column = x.item(), y.item()
            pattern = read_rows(self._data[row : row + 1, column : column + 1], 0, 1)
            return pattern.reshape(*x.shape, *self.shape[2:])[pixels]
        first, last = int(x.min()), int(x.max())
        return read_rows(self._data, first, last + 1)[x - first, y][pixels]


def neighbour_errors(matrices: NDArray[Any], crystal: Any) -> NDArray[np.float64]:
    """Smallest misorientation of each position to its four neighbours, degrees, ``(Rx, Ry)``.

    All four are in the other half of the checkerboard. `matrices` are ``(Rx, Ry, 3, 3)``. The error
    is NaN if the position or all four neighbours have no orientation.
    """
    out = np.full(matrices.shape[:2], np.nan)
    for low, high in (
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        angle = misorientation(matrices[low], matrices[high], crystal)
        for side in (low, high):
            out[side] = np.fmin(out[side], angle)
    return out
