"""From expected patterns to recorded values: counting, descan, and the faults of a camera."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import shift
from scipy.signal import lfilter


class Sample(Protocol):
    """What lies at each scan position, and how it scatters."""

    def pattern(self, position: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
        """Expected pattern ``(Qx, Qy)`` at a position, as shares of the electrons."""


def arriving_electrons(
    sample: Sample, row: int, electrons: float, shifts: NDArray[Any], rng: np.random.Generator
) -> NDArray[Any]:
    """Electrons that arrive in one row of the scan, ``(Ry, Qx, Qy)``."""
    arrived = []
    for column in range(shifts.shape[1]):
        expected = sample.pattern((row, column), rng)
        if shifts[row, column].any():
            expected = shift(expected, shifts[row, column], order=1, mode="nearest")
        # Rounding may leave less than 0 where nothing scatters.
        arrived.append(rng.poisson(electrons * np.maximum(expected, 0)))
    return np.array(arrived, dtype=float)


def descan_shifts(scan_shape: tuple[int, int], descan: float) -> NDArray[Any]:
    """Shift ``(Rx, Ry, 2)`` of each pattern, pixels; `descan` apart at opposite corners."""
    x, y = (np.linspace(-0.5, 0.5, n) for n in scan_shape)
    wander = np.stack(np.broadcast_arrays(x[:, None] + y, x[:, None] - 0.5 * y**2 - y), axis=2)
    return 0.5 * descan * wander


class Camera(NamedTuple):
    """How a camera records the electrons that arrive."""

    gain: float
    offset: float
    lag: float
    warm: NDArray[Any]  # (Qx, Qy), counts that hot pixels add on average, electrons

    def record(self, arrived: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Recorded values of one row ``(Ry, Qx, Qy)`` of electron counts."""
        if self.warm.any():
            arrived = arrived + rng.poisson(self.warm, arrived.shape)
        if self.lag > 0:
            decay = self.lag / (1 + self.lag)
            arrived = lfilter([1 - decay], [1, -decay], arrived, axis=0)
        recorded = self.gain * arrived + self.offset
        if self.lag > 0 or self.gain % 1 or self.offset % 1:
            # Rounded up or down by chance, so that small values keep their mean.
            recorded = np.floor(recorded + rng.random(recorded.shape))
        return recorded
