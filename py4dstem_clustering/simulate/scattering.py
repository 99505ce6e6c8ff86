"""How a simulated crystal and liquid scatter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from .crystals import crystal_of_gold

LIQUID_SHARE = 0.6
"""Share of the electrons in the pattern of a grain that the liquid above and below it scatters.

A larger value makes Bragg disks weaker.
"""


class Scattering:
    """Diffraction of gold, of the liquid and of a supporting film on one detector."""

    def __init__(self, shape: tuple[int, int], k_max: float, disk_radius: float):
        self.shape = shape
        self.disk_radius = disk_radius
        self.pixel_size = k_max / (min(shape) / 2 - disk_radius - 1)
        self.centre = np.array([(n - 1) / 2 for n in shape])
        self.crystal = crystal_of_gold(1.5 * k_max)
        beam = _disk(shape, self.centre, disk_radius)
        self.beam = beam / beam.sum()
        self.ring = ring_profile(shape, self.centre, self.pixel_size)
        self.diffuse = self.ring / self.ring.sum()
        film = ring_profile(shape, self.centre, self.pixel_size, maximum=0.55, width=0.05)
        self.film_ring = film / film.sum()
        self.liquid = 0.5 * self.beam + 0.5 * self.diffuse

    def bragg(self, orientation: NDArray[Any], strain: Any = (0, 0, 0)) -> NDArray[Any]:
        """Bragg disks ``(Qx, Qy)`` of one orientation without the direct beam; the sum is 1.

        Strain ``e_xx, e_yy, e_xy`` is positive where the lattice is wider.
        """
        xx, yy, xy = strain
        # A wider lattice has a narrower reciprocal lattice.
        to_pixels = np.linalg.inv([[1 + xx, xy], [xy, 1 + yy]]) / self.pixel_size
        peaks = self.crystal.generate_diffraction_pattern(
            orientation_matrix=orientation, sigma_excitation_error=0.03
        ).data
        pattern = np.zeros(self.shape)
        for peak in peaks:
            if np.hypot(peak["qx"], peak["qy"]) > 1e-3:
                place = self.centre + to_pixels @ [peak["qx"], peak["qy"]]
                # The square root stands for dynamical scattering, which makes intensities similar.
                pattern += np.sqrt(peak["intensity"]) * _disk(self.shape, place, self.disk_radius)
        return pattern / max(pattern.sum(), 1e-12)

    def grain(self, disks: NDArray[Any]) -> NDArray[Any]:
        """Pattern of a grain with these Bragg disks, and liquid above and below the grain."""
        return LIQUID_SHARE * self.liquid + (1 - LIQUID_SHARE) * disks

    def patterns(self, disks: NDArray[Any]) -> NDArray[Any]:
        """Patterns ``(N + 1, Qx, Qy)`` of grains with these disks, and of the liquid; sum 1."""
        patterns = np.empty((len(disks) + 1, *self.shape))
        patterns[:-1] = self.grain(disks)
        patterns[-1] = self.liquid
        patterns /= patterns.sum(axis=(1, 2), keepdims=True)
        return patterns

    def speckle(self, strength: float, speckle: float, rng: np.random.Generator) -> NDArray[Any]:
        """Change of the ring by random speckle, for a ring with a sum of `strength`."""
        grains = gaussian_filter(rng.standard_normal(self.shape), self.disk_radius)
        grains = np.exp(speckle * grains / grains.std())
        return strength * self.diffuse * (grains / np.average(grains, weights=self.ring) - 1)

    def datacube(self, counts: NDArray[Any], scan_step: float, name: str) -> Any:
        """The counts as a calibrated DataCube."""
        import py4DSTEM

        cube = py4DSTEM.DataCube(counts, name=name)
        cube.calibration.set_R_pixel_size(scan_step)
        cube.calibration.set_R_pixel_units("A")
        cube.calibration.set_Q_pixel_size(self.pixel_size)
        cube.calibration.set_Q_pixel_units("A^-1")
        cube.calibration.set_origin(tuple(np.full(counts.shape[:2], c) for c in self.centre))
        return cube


def random_orientations(n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Orientation matrices ``(n, 3, 3)``, drawn evenly from all rotations."""
    # Normal quaternions are uniform rotations. Rotation.random differs between versions of scipy.
    quaternions = rng.standard_normal((n, 4))
    orientations = np.array([Rotation.from_quat(q).as_matrix() for q in quaternions])
    return orientations.reshape(-1, 3, 3)


def largest_count(electrons: float, brightest: float) -> float:
    """Electrons that, in practice, no pixel exceeds if the brightest one expects `brightest`."""
    return max(electrons, brightest + 8 * np.sqrt(brightest) + 20)


def count_type(largest: float) -> type[np.uint16] | type[np.uint32]:
    """Smallest type for recorded values up to `largest`: 16 or 32 bits."""
    return np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32


def _disk(shape: tuple[int, int], centre: NDArray[Any], radius: float) -> NDArray[Any]:
    """A disk with an edge one pixel wide, so that the centre can lie between pixels."""
    u, v = np.ogrid[: shape[0], : shape[1]]
    return np.clip(radius + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)


def ring_profile(
    shape: tuple[int, int],
    centre: NDArray[Any],
    pixel_size: float,
    maximum: float = 0.35,
    width: float = 0.12,
) -> NDArray[Any]:
    """Diffuse ring ``(Qx, Qy)``: a broad maximum at `maximum`, and a tail at the direct beam.

    `maximum` and the standard deviation `width` are in 1/Angstrom.
    """
    u, v = np.ogrid[: shape[0], : shape[1]]
    k = np.hypot(u - centre[0], v - centre[1]) * pixel_size
    return np.exp(-0.5 * ((k - maximum) / width) ** 2) + 0.5 * np.exp(-k / 0.25)
