"""Simulated scans with known grains, in a disordered liquid or in vacuum.

Patterns are kinematical, or dynamical from Bloch waves. They come from py4DSTEM's Crystal, so that
orientation mapping can be tested against the truth, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_integer, check_number
from ..base.frozen import Frozen
from ..kernels.blas import single_threaded_blas
from .camera import Camera, arriving_electrons, descan_shifts
from .dynamical import DynamicalSample, dynamical_sample, thickness_maps
from .grains import (
    Grains,
    Lattice,
    bend_places,
    blur_shares,
    largest_share,
    place_grains,
    relate_grains,
    smooth_fields,
)
from .kinematical import KinematicalSample, bent_disks
from .scattering import Scattering, count_type, largest_count, random_orientations
from .setup import DynamicalSetup, check_dynamical, check_setup, check_together, check_turns


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
        Gold, or the first of `crystals`, with structure factors and voltage.
    patterns : ndarray, (N + 1, Qx, Qy)
        Expected pattern of each grain, and of the liquid as the last; each sums to 1. For a bent
        grain, the pattern in its middle; for uneven thickness, the pattern of the thickest place.
        Film, descan and the effects of the camera are left out. With dynamical scattering: the
        mean over all positions of the grain, whose sum is below 1 because some electrons miss the
        detector.
    shares : ndarray, (Rx, Ry, N + 1)
        Share of each grain in the pattern of each scan position, and of the liquid as the last;
        they sum to 1.
    shifts : ndarray, (Rx, Ry, 2)
        How far descan moved each pattern along Qx and Qy, detector pixels.
    strains : ndarray, (N, 3)
        Strain ``e_xx, e_yy, e_xy`` of each grain, in the axes of scan and detector; positive where
        the lattice is wider than that of `crystal`.
    orientation_at : ndarray, (Rx, Ry, 3, 3)
        Orientation matrix of the grain in `labels` at each position, bend included; NaN where
        there is none.
    bend_at : ndarray, (Rx, Ry)
        Angle by which the lattice is turned there from the middle of the grain, degrees; NaN where
        there is no grain.
    thickness : ndarray, (Rx, Ry), or None
        Thickness of the grain in `labels` at each position, nm; 0 where there is none. None with
        kinematical scattering, whose patterns have no thickness.
    crystals : tuple of py4DSTEM.process.diffraction.Crystal
        The materials, with structure factors and voltage.
    phases : ndarray, (N,), int
        Number, in `crystals`, of the material of each grain.
    """

    datacube: Any
    labels: NDArray[np.int32]
    orientations: NDArray[np.float64]
    crystal: Any
    patterns: NDArray[np.float64]
    shares: NDArray[np.float64]
    shifts: NDArray[np.float64]
    strains: NDArray[np.float64]
    orientation_at: NDArray[np.float64]
    bend_at: NDArray[np.float64]
    thickness: NDArray[np.float64] | None
    crystals: tuple[Any, ...]
    phases: NDArray[np.int64]


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
    scattering: str = "kinematical",
    materials: Any = None,
    thickness: float | tuple[float, float] | None = None,
    thickness_profile: str | None = None,
    bending_per_position: float | None = None,
    accelerating_voltage: float | None = None,
    even_disks: bool | None = None,
    surroundings: str | None = None,
    thermal_displacement: float | Mapping[int, float] | None = None,
    seed: int = 0,
) -> SimulatedScan:
    """Simulate a scan over grains of random orientation in a disordered liquid.

    Grains are round; where two grains touch, a straight border cuts both. Every pattern holds the
    direct beam and the diffuse ring of the liquid; grains add Bragg disks. In the liquid, the ring
    has a different speckle at each position. By default, borders are sharp, grains are perfect and
    the detector counts electrons. The options from `probe_blur` to `lag` add the difficulties of
    real scans; those from `scattering` on say how crystals scatter.

    *Kinematical* scattering is fast and simple: gold, relrods as of 3 nm of crystal, and the square
    root of intensities, so that a grain looks the same from end to end. *Dynamical* scattering
    computes Bloch waves with the structure factors of py4DSTEM, absorption included: intensities
    change with thickness and tilt, as in real crystals of more than a few nanometres. The electrons
    that absorption takes from the beams go to a broad background. Mixtures (`probe_blur`,
    `overlap`) are sums of patterns, and `strain` moves disks without changing their intensities.
    Dynamical scans take about 1 to 5 seconds more for each grain of 40 nm that bends by 2 degrees;
    the time grows with the bend, and with the second to third power of the thickness.

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
    scattering : str
        'kinematical', or 'dynamical' for Bloch waves. The options below need 'dynamical'; None
        stands for their default.
    materials : str, Crystal, or a sequence of these
        'gold' (default), 'aluminium', 'silicon', 'NaCl', 'magnesium' or 'titanium', or any Crystal
        of py4DSTEM. With more than one, each has the same number of grains, if possible. `twins`
        need a cubic material; `twins` and `small_angles` need a single one.
    thickness : float or (low, high)
        Thickness of grains, 2 to 150 nm; by default (5, 40).
    thickness_profile : str
        'wedge' (default): from the low thickness at one end of each grain to the high one at the
        other, in a random direction. 'flat': one thickness for each grain, drawn between both.
        'sphere': the thickness in the centre is drawn between both, and falls to zero at the rim.
    bending_per_position : float
        Instead of `bending`: turn of the lattice from one scan position to the next, degrees. The
        whole grain may bend by 30 degrees at most.
    accelerating_voltage : float
        60e3 to 300e3 volt; by default 300e3.
    even_disks : bool
        By default (False), each pixel of a disk holds one direction of the probe's cone, so that
        intensities differ inside of a disk. True: a whole disk has the intensity of the middle of
        the cone, which takes less time.
    surroundings : str
        'liquid' (default), or 'vacuum' beside, above and below the grains; there, only the direct
        beam is left, and `film` may add a thin amorphous film. Liquid is thinner where a grain is
        thick: the thickest one leaves 0.3 of the electrons in the ring, of 0.5 beside the grains.
    thermal_displacement : float or dict
        For a Crystal among the materials: root mean square displacement of the atoms along one
        axis, Angstrom, 0.01 to 1; one value (default 0.08) or one for each atomic number. The named
        materials have their own, of room temperature.
    seed : int
        The same seed gives the same scan on every computer.

    Returns
    -------
    SimulatedScan

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, if options do not go together, if the recorded values do not
        fit 32 bits, or if thick and strongly bent grains would take too much memory.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_scan
    >>> scan = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=500, seed=1)
    >>> scan.datacube.shape
    (12, 10, 32, 30)
    >>> bool(scan.labels.max() + 1 == len(scan.orientations))
    True

    Silicon particles in vacuum, thickest in the middle:

    >>> options = {"materials": "silicon", "thickness_profile": "sphere", "surroundings": "vacuum"}
    >>> scan = simulate_scan(
    ...     (12, 10), (32, 30), n_grains=1, scattering="dynamical", thickness=10, **options
    ... )
    >>> bool(9 < scan.thickness.max() <= 10)
    True
    """
    scan = (scan_shape, scan_step, probe_blur)
    detector = (detector_shape, k_max, disk_radius)
    setup = check_setup(scan, detector, electrons, speckle, seed)
    dynamical = check_dynamical(
        scattering,
        {
            "materials": materials,
            "thickness": thickness,
            "thickness_profile": thickness_profile,
            "bending_per_position": bending_per_position,
            "accelerating_voltage": accelerating_voltage,
            "even_disks": even_disks,
            "surroundings": surroundings,
            "thermal_displacement": thermal_displacement,
        },
    )
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

    if dynamical is not None:
        check_together(dynamical, twins, small_angles, bending)

    # The options of the first release draw from `rng`, in the old order; later options have
    # generators of their own. So a seed means the same grains with every option but `overlap`.
    rng = np.random.default_rng(setup.seed)
    extra = np.random.default_rng([setup.seed, 1])
    grains = place_grains(setup.scan_shape, n_grains, overlap, rng)
    n_found = len(grains.radii)
    orientations = random_orientations(n_found, rng)
    relate_grains(orientations, grains.shares, twins, small_angles, small_angle, extra)
    strains = strain * np.random.default_rng([setup.seed, 2]).uniform(-1, 1, (n_found, 3))
    bends = bend_places(grains.shares, extra)
    shares = blur_shares(grains.shares, setup.probe_blur)
    relative = 1 - uneven * smooth_fields(setup.scan_shape, 2, extra)
    axes = [axis / np.linalg.norm(axis) for axis in extra.standard_normal((n_found, 3))]
    turns = [bending / 2] * n_found
    if dynamical is not None and dynamical.bending_per_position > 0:
        turns = [dynamical.bending_per_position * half for _, half in bends]
        check_turns(dynamical.bending_per_position, turns)
    angles = [turn * place for turn, (place, _) in zip(turns, bends, strict=True)]
    lattices = [Lattice(*parts) for parts in zip(orientations, axes, angles, strains, strict=True)]

    optics = Scattering(setup.detector_shape, setup.k_max, setup.disk_radius)
    warm = extra.uniform(0.2, 2, setup.detector_shape)
    warm *= extra.random(setup.detector_shape) < hot_pixels
    warm *= setup.electrons * optics.liquid.max()
    camera = Camera(gain, offset, lag, warm)
    # No pixel expects more than about half of the electrons, or all where nothing scatters them.
    bright = uneven > 0 or dynamical is not None
    brightest = setup.electrons * (1 if bright else 0.5) + warm.max()
    largest = gain * largest_count(setup.electrons, brightest) + offset
    if largest > np.iinfo(np.uint32).max:
        raise ValueError(
            f"electrons={setup.electrons} with {gain=} and {offset=} may not fit 32 bits"
        )
    if dynamical is None:
        content = _kinematical(optics, shares, relative, lattices, bends, bending)
    else:
        own = np.random.default_rng([setup.seed, 6])
        content = _dynamical(dynamical, optics, shares, relative, lattices, grains, own)
    sample = content.sample._replace(speckle=setup.speckle, film=film)

    labels = largest_share(shares)
    thickness_at = None
    if content.thickness is not None:
        thickness_at = np.nan_to_num(at_labels(labels, content.thickness))
    shifts = descan_shifts(setup.scan_shape, descan)
    counts = np.empty((*setup.scan_shape, *setup.detector_shape), dtype=count_type(largest))
    for row in range(len(counts)):
        arrived = arriving_electrons(sample, row, setup.electrons, shifts, rng)
        counts[row] = camera.record(arrived, extra)
    return SimulatedScan(
        datacube=optics.datacube(counts, setup.scan_step, "simulated_scan"),
        labels=labels,
        orientations=orientations,
        crystal=content.crystals[0],
        patterns=content.patterns,
        shares=shares,
        shifts=shifts,
        strains=strains,
        orientation_at=at_labels(labels, [lattice.matrices() for lattice in lattices], (3, 3)),
        bend_at=at_labels(labels, angles),
        thickness=thickness_at,
        crystals=content.crystals,
        phases=content.phases,
    )


class _Content(NamedTuple):
    """What lies on the scan, without speckle and film."""

    sample: KinematicalSample | DynamicalSample
    patterns: NDArray[np.float64]
    crystals: tuple[Any, ...]
    phases: NDArray[np.int64]
    thickness: list[NDArray[np.float64]] | None  # (Rx, Ry) of each grain, nm


def _kinematical(
    optics: Scattering,
    shares: NDArray[Any],
    relative: NDArray[Any],
    lattices: list[Lattice],
    bends: list[tuple[NDArray[Any], float]],
    bending: float,
) -> _Content:
    disks = bent_disks(optics, lattices, bending)
    patterns = optics.patterns(disks[:, disks.shape[1] // 2])
    places = [place for place, _ in bends]
    sample = KinematicalSample(optics, shares, relative, disks, places, patterns[-1])
    phases = np.zeros(len(lattices), dtype=np.int64)
    return _Content(sample, patterns, (optics.crystal,), phases, None)


def _dynamical(
    setup: DynamicalSetup,
    optics: Scattering,
    shares: NDArray[Any],
    relative: NDArray[Any],
    lattices: list[Lattice],
    grains: Grains,
    rng: np.random.Generator,
) -> _Content:
    phases = rng.permutation(len(lattices)) % len(setup.materials)
    maps = thickness_maps(grains, setup.profile, setup.thickness, rng)
    maps = [relative[..., 0] * whole for whole in maps]
    with single_threaded_blas:  # the products are small: threads would wait for each other
        sample = dynamical_sample(setup, optics, lattices, phases, maps, shares, relative[..., 1])
    # As many structure factors as the Crystal of a kinematical scan has.
    k_max = optics.crystal.k_max
    crystals = tuple(
        material.kinematical(float(k_max), setup.accelerating_voltage)
        for material in setup.materials
    )
    return _Content(sample, sample.mean_patterns(), crystals, phases, maps)


def at_labels(
    labels: NDArray[Any], maps: list[NDArray[Any]], each: tuple[int, ...] = ()
) -> NDArray[np.float64]:
    """Values ``(Rx, Ry, *each)`` of the grain of each position; NaN where there is none."""
    found = np.full((*labels.shape, *each), np.nan)
    for k, values in enumerate(maps):
        found[labels == k] = values[labels == k]
    return found
