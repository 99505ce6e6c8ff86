"""Simulated scans with known grains: gold nanoparticles in a disordered liquid.

Diffraction patterns are kinematical and come from py4DSTEM's Crystal, so that orientation mapping
can be tested against the truth, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import shift
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation

from ..base.checks import check_integer, check_number
from ..base.frozen import Frozen
from .grains import (
    bend_places,
    blur_shares,
    grain_shares,
    largest_share,
    relate_grains,
    smooth_fields,
)
from .scattering import Scattering, count_type, largest_count, random_orientations


@dataclass(frozen=True, eq=False)
class SimulatedScan(Frozen):
    """A simulated scan and the truth about it; from `simulate_scan`.

    Attributes
    ----------
    datacube : DataCube
        Counts, calibrated: pixel sizes in Angstrom and inverse Angstrom, and the origin (without
        descan: the centre of the detector).
    labels : ndarray, (Rx, Ry), int
        Grain with the largest share of each scan position, from 0; -1 where that is the liquid.
    orientations : ndarray, (N, 3, 3)
        Orientation matrix of each grain as py4DSTEM writes it: the columns are the image x and y
        axes and the beam in crystal coordinates. For a bent grain, the one in its middle.
    crystal : py4DSTEM.process.diffraction.Crystal
        Gold, with structure factors and voltage.
    patterns : ndarray, (N + 1, Qx, Qy)
        Expected pattern of each grain, and of the liquid as the last; each sums to 1. For a bent
        grain, the pattern in its middle; for uneven thickness, the pattern of the thickest place.
        Film, descan and the effects of the camera are left out.
    shares : ndarray, (Rx, Ry, N + 1)
        Share of each grain in the pattern of each scan position, and of the liquid as the last;
        they sum to 1.
    shifts : ndarray, (Rx, Ry, 2)
        How far descan moved each pattern along Qx and Qy, detector pixels.
    strains : ndarray, (N, 3)
        Strain ``e_xx, e_yy, e_xy`` of each grain, in the axes of scan and detector; positive where
        the lattice is wider than that of `crystal`.
    """

    datacube: Any
    labels: NDArray[np.int32]
    orientations: NDArray[np.float64]
    crystal: Any
    patterns: NDArray[np.float64]
    shares: NDArray[np.float64]
    shifts: NDArray[np.float64]
    strains: NDArray[np.float64]


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
    probe_blur: float = 0.0,
    twins: float = 0.0,
    small_angles: float = 0.0,
    small_angle: float = 6.0,
    bending: float = 0.0,
    strain: float = 0.0,
    uneven: float = 0.0,
    overlap: float = 0.0,
    film: float = 0.0,
    descan: float = 0.0,
    gain: float = 1.0,
    offset: float = 0.0,
    hot_pixels: float = 0.0,
    lag: float = 0.0,
    seed: int = 0,
) -> SimulatedScan:
    """Simulate a scan over gold grains of random orientation in a disordered liquid.

    Grains are round; where two grains touch, a straight border cuts both. Every pattern holds the
    direct beam and the diffuse ring of the liquid; grains add Bragg disks. In the liquid, the ring
    has a different speckle at each position. By default, borders are sharp, grains are perfect and
    the detector counts electrons. The options from `probe_blur` on add the difficulties of real
    scans.

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
        Radius of the Bragg disks, detector pixels, from 0.5 to an eighth of the detector.
    scan_step : float
        Distance of scan positions, Angstrom.
    probe_blur : float
        Standard deviation of the probe, scan positions: borders become mixtures.
    twins : float
        Chance, 0 to 1, that a grain is the twin of an earlier grain that it touches: turned by 60
        degrees about a <111> direction. A grain never gets the lattice of a grain that it touches.
    small_angles : float
        Chance that a grain differs by `small_angle` only from an earlier grain that it touches; at
        most 1 together with `twins`.
    small_angle : float
        Misorientation of such neighbours, degrees, at most 45.
    bending : float
        Misorientation between opposite ends of each grain, degrees, at most 30. The lattice turns
        evenly along one direction; axis and direction are random for each grain.
    strain : float
        Largest strain, 0 to 0.1: ``e_xx``, ``e_yy`` and ``e_xy`` of each grain are drawn evenly
        between minus and plus this value. A grain has the same strain everywhere, and no rotation.
    uneven : float
        Relative variation, 0 to 1, of the thickness of grains and of the liquid over the scan.
        Where they are thinner, more electrons stay in the direct beam.
    overlap : float
        Above 0, grains may lie on top of each other: their centres may be closer by this share, up
        to 0.5, of the sum of their radii. Where grains overlap, their shares are in the ratio of
        the thicknesses of spheres. Of the options from `probe_blur` on, only this one changes the
        places of grains.
    film : float
        Share of the electrons, 0 to 1, that a supporting film scatters into a diffuse ring.
    descan : float
        Shift of the pattern between opposite corners of the scan, pixels, at most a quarter of the
        detector. Pixels that enter at the border of the detector repeat the border.
    gain : float
        Recorded value of one electron, 1e-6 to 1e6. Fractions are rounded up or down by chance.
    offset : float
        Recorded value without electrons, at most 1e6.
    hot_pixels : float
        Share of detector pixels, 0 to 1, that record counts of their own, on average.
    lag : float
        Mean delay of the camera, scan positions: the signal of each electron decays exponentially
        along the row (Ry) in which the electron came. Each row starts from a dark camera.
    seed : int
        The same seed gives the same scan on every computer.

    Returns
    -------
    SimulatedScan

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, or the recorded values do not fit 32 bits.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_scan
    >>> scan = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=500, seed=1)
    >>> scan.datacube.shape
    (12, 10, 32, 30)
    >>> bool(scan.labels.max() + 1 == len(scan.orientations))
    True
    """
    scan = (scan_shape, scan_step, probe_blur)
    detector = (detector_shape, k_max, disk_radius)
    setup = check_setup(scan, detector, electrons, speckle, seed)
    n_grains = check_integer("n_grains", n_grains, 0)
    twins = check_number("twins", twins, 0, 1)
    small_angles = check_number("small_angles", small_angles, 0, 1)
    if twins + small_angles > 1 + 1e-9:
        raise ValueError(f"{twins=} and {small_angles=} must be at most 1 together")
    small_angle = check_number("small_angle", small_angle, 0, 45)
    bending = check_number("bending", bending, 0, 30)
    strain = check_number("strain", strain, 0, 0.1)
    uneven = check_number("uneven", uneven, 0, 1)
    overlap = check_number("overlap", overlap, 0, 0.5)
    film = check_number("film", film, 0, 1)
    descan = check_number("descan", descan, 0, min(setup.detector_shape) / 4)
    gain = check_number("gain", gain, 1e-6, 1e6)
    offset = check_number("offset", offset, 0, 1e6)
    hot_pixels = check_number("hot_pixels", hot_pixels, 0, 1)
    lag = check_number("lag", lag, 0)

    # The options of the first release draw from `rng`, in the old order; later options have
    # generators of their own. So a seed means the same grains with every option but `overlap`.
    rng = np.random.default_rng(setup.seed)
    extra = np.random.default_rng([setup.seed, 1])
    shares = grain_shares(setup.scan_shape, n_grains, overlap, rng)
    n_found = shares.shape[2] - 1
    orientations = random_orientations(n_found, rng)
    relate_grains(orientations, shares, twins, small_angles, small_angle, extra)
    strains = strain * np.random.default_rng([setup.seed, 2]).uniform(-1, 1, (n_found, 3))
    bends = bend_places(shares, extra)
    shares = blur_shares(shares, setup.probe_blur)
    thickness = 1 - uneven * smooth_fields(setup.scan_shape, 2, extra)

    scattering = Scattering(setup.detector_shape, setup.k_max, setup.disk_radius)
    disks = _bent_disks(scattering, orientations, strains, bending, extra)
    patterns = scattering.patterns(disks[:, disks.shape[1] // 2])
    sample = _Sample(scattering, shares, thickness, disks, bends, patterns[-1], setup.speckle, film)
    shifts = _descan_shifts(setup.scan_shape, descan)

    warm = extra.uniform(0.2, 2, setup.detector_shape)
    warm *= extra.random(setup.detector_shape) < hot_pixels
    warm *= setup.electrons * scattering.liquid.max()
    camera = _Camera(gain, offset, lag, warm)
    # No pixel expects more than about half of the electrons, or all where nothing scatters them.
    brightest = setup.electrons * (1 if uneven > 0 else 0.5) + warm.max()
    largest = gain * largest_count(setup.electrons, brightest) + offset
    if largest > np.iinfo(np.uint32).max:
        raise ValueError(
            f"electrons={setup.electrons} with {gain=} and {offset=} may not fit 32 bits"
        )
    counts = np.empty((*setup.scan_shape, *setup.detector_shape), dtype=count_type(largest))
    for row in range(len(counts)):
        arrived = sample.electrons(row, setup.electrons, shifts, rng)
        counts[row] = camera.record(arrived, extra)
    return SimulatedScan(
        datacube=scattering.datacube(counts, setup.scan_step, "simulated_scan"),
        labels=largest_share(shares),
        orientations=orientations,
        crystal=scattering.crystal,
        patterns=patterns,
        shares=shares,
        shifts=shifts,
        strains=strains,
    )


class Setup(NamedTuple):
    """The checked options that simulated scans and series share; see `simulate_scan`."""

    scan_shape: tuple[int, int]
    detector_shape: tuple[int, int]
    electrons: float
    speckle: float
    k_max: float
    disk_radius: float
    scan_step: float
    probe_blur: float
    seed: int


def check_setup(
    scan: tuple[Any, Any, Any],
    detector: tuple[Any, Any, Any],
    electrons: Any,
    speckle: Any,
    seed: Any,
) -> Setup:
    """Check the options that simulated scans and series share.

    `scan` are shape, step and blur of the probe; `detector` are shape, `k_max` and radius of disks.
    """
    (scan_shape, scan_step, probe_blur), (detector_shape, k_max, disk_radius) = scan, detector
    scan_shape = _check_shape("scan_shape", scan_shape, 1)
    detector_shape = _check_shape("detector_shape", detector_shape, 16)
    return Setup(
        scan_shape,
        detector_shape,
        check_number("electrons", electrons, 0, 1e9),
        check_number("speckle", speckle, 0),
        check_number("k_max", k_max, 1e-3),
        check_number("disk_radius", disk_radius, 0.5, min(detector_shape) / 8),
        check_number("scan_step", scan_step, 1e-12),
        check_number("probe_blur", probe_blur, 0, min(scan_shape)),
        check_integer("seed", seed, 0),
    )


def _check_shape(name: str, shape: Any, lowest: int) -> tuple[int, int]:
    try:
        first, second = shape
    except (TypeError, ValueError):
        raise TypeError(f"{name}={shape!r} must be two whole numbers") from None
    return check_integer(name, first, lowest), check_integer(name, second, lowest)


def _bent_disks(
    scattering: Scattering,
    orientations: NDArray[Any],
    strains: NDArray[Any],
    bending: float,
    rng: np.random.Generator,
) -> NDArray[Any]:
    """Bragg disks ``(N, n_turns, Qx, Qy)`` of each grain along its bend, from end to end."""
    turns = np.linspace(-0.5, 0.5, 1 + 2 * int(np.ceil(2 * bending)))
    disks = np.empty((len(orientations), len(turns), *scattering.shape))
    axes = rng.standard_normal((len(orientations), 3))
    for k, t in np.ndindex(*disks.shape[:2]):
        axis = axes[k] / np.linalg.norm(axes[k])
        turn = Rotation.from_rotvec(np.deg2rad(bending * turns[t]) * axis).as_matrix()
        disks[k, t] = scattering.bragg(orientations[k] @ turn, strains[k])
    return disks


def _descan_shifts(scan_shape: tuple[int, int], descan: float) -> NDArray[Any]:
    """Shift ``(Rx, Ry, 2)`` of each pattern, pixels; `descan` apart at opposite corners."""
    x, y = (np.linspace(-0.5, 0.5, n) for n in scan_shape)
    wander = np.stack(np.broadcast_arrays(x[:, None] + y, x[:, None] - 0.5 * y**2 - y), axis=2)
    return 0.5 * descan * wander


class _Sample(NamedTuple):
    """What lies at each scan position, and how it scatters."""

    scattering: Scattering
    shares: NDArray[Any]  # (Rx, Ry, N + 1), blurred by the probe
    thickness: NDArray[Any]  # (Rx, Ry, 2) of grains and of the liquid, 0 to 1
    disks: NDArray[Any]  # (N, n_turns, Qx, Qy), of each grain along its bend
    bends: list[NDArray[Any]]  # of each grain, (Rx, Ry): place along its bend, -1 to 1
    liquid: NDArray[Any]  # (Qx, Qy), pattern of the liquid
    speckle: float
    film: float

    def electrons(
        self, row: int, electrons: float, shifts: NDArray[Any], rng: np.random.Generator
    ) -> NDArray[Any]:
        """Electrons that arrive in one row of the scan, ``(Ry, Qx, Qy)``."""
        arrived = np.empty((self.shares.shape[1], *self.scattering.shape))
        for column in range(len(arrived)):
            expected = self.pattern((row, column), rng)
            if shifts[row, column].any():
                expected = shift(expected, shifts[row, column], order=1, mode="nearest")
            # Rounding may leave less than 0 where nothing scatters.
            arrived[column] = rng.poisson(electrons * np.maximum(expected, 0))
        return arrived

    def pattern(self, position: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
        """Expected pattern ``(Qx, Qy)`` at a position; the sum is 1."""
        share, (thick, wet) = self.shares[position], self.thickness[position]
        scattering = self.scattering
        expected = np.zeros(scattering.shape)
        for k in np.flatnonzero(share[:-1]):
            bragg = self._disks_at(k, position)
            # Electrons that a thin grain does not scatter stay in the direct beam.
            grain = scattering.grain(thick * bragg + (1 - thick) * scattering.beam)
            # The sum is below 1 where the lattice has no disk on the detector.
            expected += share[k] * (grain / grain.sum())
        expected += share[-1] * self.liquid
        if wet < 1:
            amount = 0.3 + 0.2 * share[-1]
            expected += amount * (1 - wet) * (scattering.beam - scattering.diffuse)
        if share[-1] > 0 and self.speckle > 0:
            expected += scattering.speckle(0.5 * share[-1] * wet, self.speckle, rng)
        if self.film > 0:
            expected = (1 - self.film) * expected + self.film * scattering.film_ring
        return expected

    def _disks_at(self, k: int, position: tuple[int, int]) -> NDArray[Any]:
        """Bragg disks of grain `k`, between the two turns that are nearest."""
        last = self.disks.shape[1] - 1
        turn, part = divmod((self.bends[k][position] + 1) / 2 * last, 1)
        bragg = self.disks[k, int(turn)] * (1 - part)
        if part > 0:
            bragg += self.disks[k, int(turn) + 1] * part
        return bragg


class _Camera(NamedTuple):
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
