"""The pixels around Bragg disks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class DiskWindows(NamedTuple):
    """Pixels around n places, p for each."""

    at: NDArray[np.int64]
    """Row and column ``(n, p, 2)``; they may lie beside the detector."""
    inside: NDArray[np.bool_]
    """Which of them ``(n, p)`` lie on the detector."""
    offset: NDArray[np.float64]
    """From the place to the pixel ``(n, p, 2)``, pixels."""

    def values_of(self, image: NDArray[Any]) -> NDArray[Any]:
        """Values ``(n, p)`` of an image at these pixels; those outside repeat its border."""
        at = np.clip(self.at, 0, np.array(image.shape) - 1)
        values: NDArray[Any] = image[at[..., 0], at[..., 1]]
        return values


def disk_windows(
    places: NDArray[Any], radius: float, shape: tuple[int, ...], *, square: bool = True
) -> DiskWindows:
    """Pixels up to `radius` from the pixel nearest to each of `places` ``(n, 2)``, pixels.

    With `square`, those up to this distance along each axis, rounded up.
    """
    reach = int(np.ceil(radius))
    window = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=2)
    window = window.reshape(-1, 2)
    if not square:
        window = window[np.hypot(*window.T) <= radius]
    nearest = np.rint(places).astype(int)
    at = nearest[:, None] + window
    inside = ((at >= 0) & (at < shape)).all(axis=2)
    return DiskWindows(at, inside, (nearest - places)[:, None] + window)
