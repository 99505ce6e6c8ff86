"""How a simulated crystal and liquid scatter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

GOLD_CELL = 4.0782
"""Lattice constant of gold, Angstrom."""

ACCELERATING_VOLTAGE = 300e3
"""Volt, as in the paper."""


class Scattering:
    """What gold and the liquid scatter onto one detector."""

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
        self.liquid = 0.5 * self.beam + 0.5 * self.diffuse

    def bragg(self, orientation: NDArray[Any], strain: Any = (0, 0, 0)) -> NDArray[Any]:
        """Bragg disks of one orientation, the direct beam left out; sums to 1."""
        xx, yy, xy = strain
        # Where the lattice is wider, its reciprocal lattice is narrower.
        narrower = np.linalg.inv([[1 + xx, xy], [xy, 1 + yy]])
        return _bragg_disks(
            self.crystal,
            orientation,
            self.shape,
            self.centre,
            narrower / self.pixel_size,
            self.disk_radius,
        )

    def grain(self, disks: NDArray[Any]) -> NDArray[Any]:
        """What a grain scatters, given its Bragg disks: the liquid is above and below it."""
        return 0.6 * self.liquid + 0.4 * disks

    def patterns(self, disks: NDArray[Any]) -> NDArray[Any]:
        """Patterns (N + 1, Qx, Qy) of grains, given their disks, and of the liquid; sums are 1."""
        patterns = np.empty((len(disks) + 1, *self.shape))
        patterns[:-1] = self.grain(disks)
        patterns[-1] = self.liquid
        patterns /= patterns.sum(axis=(1, 2), keepdims=True)
        return patterns

    def speckle(self, strength: float, speckle: float, rng: np.random.Generator) -> NDArray[Any]:
        """What speckle adds to the ring and takes from it, for a ring of `strength`."""
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
    """Orientation matrices (n, 3, 3), evenly over all rotations."""
    # Normal quaternions are uniform rotations; what Rotation.random draws depends on scipy.
    quaternions = rng.standard_normal((n, 4))
    orientations = np.array([Rotation.from_quat(q).as_matrix() for q in quaternions])
    return orientations.reshape(-1, 3, 3)


def largest_count(electrons: float, brightest: float) -> float:
    """What no pixel exceeds, in practice, where the brightest expects so many electrons."""
    return max(electrons, brightest + 8 * np.sqrt(brightest) + 20)


def count_type(largest: float) -> type[np.unsignedinteger]:
    """The smaller of two types that holds recorded values up to `largest`."""
    return np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32


def crystal_of_gold(k_max: float) -> Any:
    """py4DSTEM's Crystal of gold, with structure factors out to `k_max`, 1/Angstrom."""
    from py4DSTEM.process.diffraction import Crystal

    positions = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    crystal = Crystal(np.array(positions), 79, GOLD_CELL)
    crystal.calculate_structure_factors(k_max)
    crystal.setup_diffraction(ACCELERATING_VOLTAGE)
    return crystal


def _disk(shape: tuple[int, int], centre: NDArray[Any], radius: float) -> NDArray[Any]:
    """A disk with an edge one pixel wide, so that its centre can lie between pixels."""
    u, v = np.ogrid[: shape[0], : shape[1]]
    return np.clip(radius + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)


def ring_profile(
    shape: tuple[int, int],
    centre: NDArray[Any],
    pixel_size: float,
    maximum: float = 0.35,
    width: float = 0.12,
) -> NDArray[Any]:
    """Diffuse scattering of a liquid: a broad maximum, and a tail towards the direct beam."""
    u, v = np.ogrid[: shape[0], : shape[1]]
    k = np.hypot(u - centre[0], v - centre[1]) * pixel_size
    return np.exp(-0.5 * ((k - maximum) / width) ** 2) + 0.5 * np.exp(-k / 0.25)


def _bragg_disks(
    crystal: Any,
    orientation: NDArray[Any],
    shape: tuple[int, int],
    centre: NDArray[Any],
    to_pixels: NDArray[Any],
    radius: float,
) -> NDArray[Any]:
    """Bragg disks of one orientation, the direct beam left out; sums to 1."""
    peaks = crystal.generate_diffraction_pattern(
        orientation_matrix=orientation, sigma_excitation_error=0.03
    ).data
    pattern = np.zeros(shape)
    for peak in peaks:
        if np.hypot(peak["qx"], peak["qy"]) > 1e-3:
            place = centre + to_pixels @ [peak["qx"], peak["qy"]]
            # The square root stands in for dynamical scattering, which evens intensities out.
            pattern += np.sqrt(peak["intensity"]) * _disk(shape, place, radius)
    return pattern / max(pattern.sum(), 1e-12)
