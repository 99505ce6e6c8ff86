"""Simulated scans with known grains: gold nanoparticles in a disordered liquid.

Diffraction patterns are kinematical, from py4DSTEM's Crystal, so that orientation mapping can be
tested against the truth as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from .checks import check_integer, check_number

GOLD_CELL = 4.0782
"""Lattice constant of gold, Angstrom."""

ACCELERATING_VOLTAGE = 300e3
"""Volt, as in the paper."""


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """A simulated scan and the truth about it.

    Attributes
    ----------
    datacube : DataCube
        Counts, calibrated: pixel sizes in Angstrom and inverse Angstrom, and the origin.
    labels : ndarray, (Rx, Ry), int
        Grain of each scan position, from 0; -1 in the liquid.
    orientations : ndarray, (N, 3, 3)
        Orientation matrix of each grain as py4DSTEM writes it: the columns are the image x and y
        axes and the beam in crystal coordinates.
    crystal : py4DSTEM.process.diffraction.Crystal
        Gold, with structure factors and voltage.
    patterns : ndarray, (N + 1, Qx, Qy)
        Expected pattern of each grain, and of the liquid as the last; each sums to 1.
    """

    datacube: Any
    labels: np.ndarray
    orientations: np.ndarray
    crystal: Any
    patterns: np.ndarray


def simulate_scan(
    scan_shape: tuple[int, int] = (48, 40),
    detector_shape: tuple[int, int] = (96, 90),
    *,
    n_grains: int = 6,
    electrons: float = 1000,
    speckle: float = 0.5,
    k_max: float = 1.3,
    disk_radius: float = 2.0,
    scan_step: float = 20.0,
    seed: int = 0,
) -> SimulatedScan:
    """Simulate a scan over gold grains of random orientation in a disordered liquid.

    Grains are round or cut by a straight border where they touch, and have sharp borders. Every
    pattern holds the direct beam and the diffuse ring of the liquid; grains add Bragg disks. In the
    liquid the ring is speckled, differently at each position.

    Parameters
    ----------
    scan_shape : (Rx, Ry)
        Scan positions.
    detector_shape : (Qx, Qy)
        Detector pixels.
    n_grains : int
        Number of grains, as far as they find room.
    electrons : float
        Expected electrons in each pattern, at most 1e9; the counts are Poisson distributed.
    speckle : float
        Relative strength of the speckle of the liquid; 0 for a smooth ring.
    k_max : float
        Scattering vector at the nearest border of the detector, inverse Angstrom.
    disk_radius : float
        Radius of the Bragg disks, detector pixels, at most an eighth of the detector.
    scan_step : float
        Distance of scan positions, Angstrom.
    seed : int
        The same seed gives the same scan, everywhere.

    Returns
    -------
    SimulatedScan

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule.

    Examples
    --------
    >>> scan = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=500, seed=1)
    >>> scan.datacube.shape
    (12, 10, 32, 30)
    >>> scan.labels.max() + 1 == len(scan.orientations)
    True
    """
    scan_shape = _check_shape("scan_shape", scan_shape)
    detector_shape = _check_shape("detector_shape", detector_shape)
    n_grains = check_integer("n_grains", n_grains, 0)
    electrons = check_number("electrons", electrons, 0, 1e9)
    speckle = check_number("speckle", speckle, 0)
    k_max = check_number("k_max", k_max, 1e-3)
    disk_radius = check_number("disk_radius", disk_radius, 0.1, min(detector_shape) / 8)
    scan_step = check_number("scan_step", scan_step, 1e-12)
    seed = check_integer("seed", seed, 0)

    import py4DSTEM

    rng = np.random.default_rng(seed)
    labels = _grain_map(scan_shape, n_grains, rng)
    n_found = labels.max() + 1
    # Normal quaternions are uniform rotations; what Rotation.random draws depends on scipy.
    quaternions = rng.standard_normal((n_found, 4))
    orientations = np.array([Rotation.from_quat(q).as_matrix() for q in quaternions])
    orientations = orientations.reshape(-1, 3, 3)

    pixel_size = k_max / (min(detector_shape) / 2 - disk_radius - 1)
    centre = np.array([(n - 1) / 2 for n in detector_shape])
    crystal = _gold(1.5 * k_max)
    beam = _disk(detector_shape, centre, disk_radius)
    ring = _ring(detector_shape, centre, pixel_size)
    liquid = 0.5 * beam / beam.sum() + 0.5 * ring / ring.sum()
    patterns = np.empty((n_found + 1, *detector_shape))
    for k, orientation in enumerate(orientations):
        disks = _bragg_disks(crystal, orientation, detector_shape, centre, pixel_size, disk_radius)
        patterns[k] = 0.6 * liquid + 0.4 * disks
    patterns[-1] = liquid
    patterns /= patterns.sum(axis=(1, 2), keepdims=True)

    # No pixel holds more than about half of the electrons.
    dtype = np.uint16 if electrons <= 65535 else np.uint32
    counts = np.empty((*scan_shape, *detector_shape), dtype=dtype)
    diffuse = 0.5 * ring / ring.sum()
    for position in np.ndindex(*scan_shape):
        expected = patterns[labels[position]]
        if labels[position] < 0 and speckle > 0:
            grains = gaussian_filter(rng.standard_normal(detector_shape), disk_radius)
            grains = np.exp(speckle * grains / grains.std())
            expected = expected + diffuse * (grains / np.average(grains, weights=ring) - 1)
        counts[position] = rng.poisson(electrons * expected)

    cube = py4DSTEM.DataCube(counts, name="simulated_scan")
    cube.calibration.set_R_pixel_size(scan_step)
    cube.calibration.set_R_pixel_units("A")
    cube.calibration.set_Q_pixel_size(pixel_size)
    cube.calibration.set_Q_pixel_units("A^-1")
    cube.calibration.set_origin(tuple(np.full(scan_shape, c) for c in centre))
    return SimulatedScan(cube, labels, orientations, crystal, patterns)


def _check_shape(name: str, shape: Any) -> tuple[int, int]:
    try:
        first, second = shape
    except (TypeError, ValueError):
        raise TypeError(f"{name}={shape!r} must be two whole numbers") from None
    least = 1 if name == "scan_shape" else 16
    return check_integer(name, first, least), check_integer(name, second, least)


def _grain_map(shape: tuple[int, int], n_grains: int, rng: np.random.Generator) -> np.ndarray:
    """Grains on about half of the scan, some apart and some touching."""
    labels = np.full(shape, -1, dtype=np.int32)
    if n_grains == 0:
        return labels
    radius = np.sqrt(0.6 * shape[0] * shape[1] / (np.pi * n_grains))
    centres, radii = [], []
    for _ in range(1000 * n_grains):
        if len(centres) == n_grains:
            break
        centre = rng.uniform(0, shape)
        size = radius * rng.uniform(0.7, 1.3)
        if all(
            np.hypot(*(centre - c)) > 0.8 * (size + r) for c, r in zip(centres, radii, strict=True)
        ):
            centres.append(centre)
            radii.append(size)
    x, y = np.indices(shape)
    distance = np.stack(
        [np.hypot(x - c[0], y - c[1]) / r for c, r in zip(centres, radii, strict=True)]
    )
    nearest = distance.argmin(axis=0)
    labels[:] = np.where(distance.min(axis=0) < 1, nearest, -1)
    # Grains that ended up without a position are not counted.
    found, inverse = np.unique(labels, return_inverse=True)
    return (inverse.reshape(shape) - (found[0] == -1)).astype(np.int32)


def _gold(k_max: float) -> Any:
    from py4DSTEM.process.diffraction import Crystal

    positions = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    crystal = Crystal(np.array(positions), 79, GOLD_CELL)
    crystal.calculate_structure_factors(k_max)
    crystal.setup_diffraction(ACCELERATING_VOLTAGE)
    return crystal


def _disk(shape: tuple[int, int], centre: np.ndarray, radius: float) -> np.ndarray:
    """A disk with an edge one pixel wide, so that its centre can lie between pixels."""
    u, v = np.ogrid[: shape[0], : shape[1]]
    return np.clip(radius + 0.5 - np.hypot(u - centre[0], v - centre[1]), 0, 1)


def _ring(shape: tuple[int, int], centre: np.ndarray, pixel_size: float) -> np.ndarray:
    """Diffuse scattering of a liquid: a broad maximum, and a tail towards the direct beam."""
    u, v = np.ogrid[: shape[0], : shape[1]]
    k = np.hypot(u - centre[0], v - centre[1]) * pixel_size
    return np.exp(-0.5 * ((k - 0.35) / 0.12) ** 2) + 0.5 * np.exp(-k / 0.25)


def _bragg_disks(
    crystal: Any,
    orientation: np.ndarray,
    shape: tuple[int, int],
    centre: np.ndarray,
    pixel_size: float,
    radius: float,
) -> np.ndarray:
    """Bragg disks of one orientation, the direct beam left out; sums to 1."""
    peaks = crystal.generate_diffraction_pattern(
        orientation_matrix=orientation, sigma_excitation_error=0.03
    ).data
    pattern = np.zeros(shape)
    for peak in peaks:
        if np.hypot(peak["qx"], peak["qy"]) > 1e-3:
            place = centre + np.array([peak["qx"], peak["qy"]]) / pixel_size
            # The square root stands in for dynamical scattering, which evens intensities out.
            pattern += np.sqrt(peak["intensity"]) * _disk(shape, place, radius)
    return pattern / max(pattern.sum(), 1e-12)
