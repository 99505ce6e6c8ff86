"""Where the disks of a lattice lie, and how strongly they are expected to be lit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

INTENSITY_POWER = 0.8
"""Power of kinematical intensities in expected ones. Thick crystals make intensities more equal;
with a smaller power, weak reflections are expected more often.
"""

TAIL_POWER = 2.36
"""Power of the tail of relrods: ``(1 + (s / width)^2)^-TAIL_POWER`` over the excitation error s.
A smaller power expects more disks far from the Ewald sphere.
"""


class Lattice(NamedTuple):
    """Reflections of a crystal, the direct beam left out."""

    vectors: NDArray[Any]
    """Reciprocal lattice vectors ``(3, n)``, 1/Angstrom, Cartesian coordinates of the crystal."""
    strength: NDArray[Any]
    """Logarithm ``(n,)`` of the expected intensity at the Bragg angle, at most 0."""
    squared: NDArray[Any]
    """Squared lengths ``(n,)`` of the vectors."""
    wavelength: float
    """Wavelength of the electrons, Angstrom."""


class Window(NamedTuple):
    """Rectangle of the detector in which disks were searched."""

    to_pixels: NDArray[Any]
    """``(2, 2)``: places in 1/Angstrom times this matrix are detector pixels from the origin."""
    low: NDArray[Any]
    """Lowest corner ``(2,)``, pixels from the origin."""
    high: NDArray[Any]
    """Highest corner ``(2,)``, pixels from the origin."""

    def holds(self, places: NDArray[Any]) -> NDArray[np.bool_]:
        """Where places ``(..., 2)``, 1/Angstrom, lie in the window."""
        pixels = places @ self.to_pixels
        inside: NDArray[np.bool_] = ((pixels >= self.low) & (pixels <= self.high)).all(axis=-1)
        return inside


def make_lattice(vectors: NDArray[Any], intensity: NDArray[Any], wavelength: float) -> Lattice:
    """A lattice of reciprocal vectors ``(3, n)`` and their kinematical intensities ``(n,)``."""
    strongest = max(intensity.max(initial=0), 1e-300)
    keep = intensity > 1e-9 * strongest
    vectors = vectors[:, keep]
    strength = INTENSITY_POWER * np.log(intensity[keep] / strongest)
    return Lattice(vectors, strength, (vectors**2).sum(axis=0), wavelength)


def predict(
    lattice: Lattice, matrices: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places ``(m, n, 2)`` and excitation errors ``(m, n)`` in orientations ``(m, 3, 3)``.

    The excitation error is the distance to the Ewald sphere along the beam, as in py4DSTEM.
    """
    turned = np.matmul(matrices.transpose(0, 2, 1), lattice.vectors)
    along = turned[:, 2]
    error = (2 * along - lattice.wavelength * lattice.squared) / (
        2 - 2 * lattice.wavelength * along
    )
    return turned[:, :2].transpose(0, 2, 1), error


def brightness(
    lattice: Lattice, error: NDArray[Any], width: float | NDArray[Any]
) -> NDArray[np.float64]:
    """Logarithm ``(..., n)`` of expected intensities at excitation errors; the strongest is 0."""
    return lattice.strength - TAIL_POWER * np.log1p((error / width) ** 2)


def near_sphere(
    lattice: Lattice, matrix: NDArray[Any], angle: float, width: float, faintest: float
) -> Lattice:
    """The reflections whose logarithm of the expected intensity is above `faintest`.

    In any orientation that differs from `matrix` by at most `angle`, radian.
    """
    error = np.abs(predict(lattice, matrix[None])[1][0])
    error = np.maximum(error - np.sqrt(lattice.squared) * angle, 0)
    return pick(lattice, brightness(lattice, error, width) > faintest)


def pick(lattice: Lattice, keep: NDArray[np.bool_]) -> Lattice:
    """The lattice of some of the reflections."""
    return Lattice(
        lattice.vectors[:, keep], lattice.strength[keep], lattice.squared[keep], lattice.wavelength
    )
