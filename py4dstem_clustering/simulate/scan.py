"""Simulated scans with known grains: gold nanoparticles in a disordered liquid.

Diffraction patterns are kinematical, from py4DSTEM's Crystal, so that orientation mapping can be
tested against the truth as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation

from ..base.checks import check_integer, check_number
from ..base.frozen import Frozen
from .scattering import Scattering, count_type, largest_count, random_orientations, ring_profile


@dataclass(frozen=True, eq=False)
class SimulatedScan(Frozen):
    """A simulated scan and the truth about it.

    Attributes
    ----------
    datacube : DataCube
        Counts, calibrated: pixel sizes in Angstrom and inverse Angstrom, and the origin (without
        descan: the centre of the detector).
    labels : ndarray, (Rx, Ry), int
        Grain with the largest share of each scan position, from 0; -1 where that is the liquid.
    orientations : ndarray, (N, 3, 3)
        Orientation matrix of each grain as py4DSTEM writes it: the columns are the image x and y
        axes and the beam in crystal coordinates. Of a bent grain, in its middle.
    crystal : py4DSTEM.process.diffraction.Crystal
        Gold, with structure factors and voltage.
    patterns : ndarray, (N + 1, Qx, Qy)
        Expected pattern of each grain, and of the liquid as the last; each sums to 1. Of a bent
        grain the pattern in its middle, of uneven thickness the thickest; without film, descan and
        what the camera adds.
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
    labels: NDArray[Any]
    orientations: NDArray[Any]
    crystal: Any
    patterns: NDArray[Any]
    shares: NDArray[Any]
    shifts: NDArray[Any]
    strains: NDArray[Any]


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

    Grains are round, or cut by a border where they touch. Every pattern holds the direct
    beam and the diffuse ring of the liquid; grains add Bragg disks. In the liquid the ring is
    speckled, differently at each position. By default borders are sharp, grains perfect and the
    detector counts electrons; the options from `probe_blur` on make it as hard as real scans are.

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
        Chance, 0 to 1, that a grain is the twin of an earlier one that it touches: turned by 60
        degrees about a <111>. Not if that gave it the lattice of another one that it touches.
    small_angles : float
        Chance, at most 1 with `twins`, that a grain differs from an earlier one that it touches by
        `small_angle` only.
    small_angle : float
        Misorientation of such neighbours, degrees, at most 45.
    bending : float
        Misorientation of the opposite ends of each grain, degrees, at most 30: the lattice turns
        evenly about an axis of its own, along a direction of its own.
    strain : float
        Each of ``e_xx``, ``e_yy`` and ``e_xy`` of each grain is drawn evenly from minus to plus
        this, 0 to 0.1; the same everywhere in a grain, and without rotation.
    uneven : float
        Relative variation, 0 to 1, of the thickness of grains and of the liquid over the scan. What
        they scatter less stays in the direct beam.
    overlap : float
        Above 0, grains may lie on top of each other, their centres closer by this share, up to 0.5,
        of the sum of their radii. There, the shares are as the thicknesses of spheres. This alone
        of the options from `probe_blur` on puts grains elsewhere.
    film : float
        Share of the electrons, 0 to 1, that a supporting film scatters into a diffuse ring.
    descan : float
        How far the pattern wanders from one corner of the scan to the opposite one, pixels, at most
        a quarter of the detector. What enters at its border repeats the border.
    gain : float
        Recorded value of one electron, 1e-6 to 1e6. Fractions are rounded up or down by chance.
    offset : float
        Recorded value without electrons, at most 1e6.
    hot_pixels : float
        Share of detector pixels, 0 to 1, that record counts of their own, on average.
    lag : float
        The camera lags by this many positions on average: the signal of each electron decays
        exponentially along the row (Ry) in which it came. Each row starts from a dark camera.
    seed : int
        The same seed gives the same scan, everywhere.

    Returns
    -------
    SimulatedScan

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, or the recorded values do not fit 32 bits.

    Examples
    --------
    >>> scan = simulate_scan((12, 10), (32, 30), n_grains=2, electrons=500, seed=1)
    >>> scan.datacube.shape
    (12, 10, 32, 30)
    >>> bool(scan.labels.max() + 1 == len(scan.orientations))
    True
    """
    scan_shape = check_shape("scan_shape", scan_shape)
    detector_shape = check_shape("detector_shape", detector_shape)
    n_grains = check_integer("n_grains", n_grains, 0)
    electrons = check_number("electrons", electrons, 0, 1e9)
    speckle = check_number("speckle", speckle, 0)
    k_max = check_number("k_max", k_max, 1e-3)
    disk_radius = check_number("disk_radius", disk_radius, 0.5, min(detector_shape) / 8)
    scan_step = check_number("scan_step", scan_step, 1e-12)
    probe_blur = check_number("probe_blur", probe_blur, 0, min(scan_shape))
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
    descan = check_number("descan", descan, 0, min(detector_shape) / 4)
    gain = check_number("gain", gain, 1e-6, 1e6)
    offset = check_number("offset", offset, 0, 1e6)
    hot_pixels = check_number("hot_pixels", hot_pixels, 0, 1)
    lag = check_number("lag", lag, 0)
    seed = check_integer("seed", seed, 0)

    # What was first released draws from `rng`, in its order; what came later has its own generator,
    # so that a seed means the same grains with every option but `overlap`.
    rng = np.random.default_rng(seed)
    extra = np.random.default_rng([seed, 1])
    shares = _grain_shares(scan_shape, n_grains, overlap, rng)
    n_found = shares.shape[2] - 1
    orientations = random_orientations(n_found, rng)
    _relate(orientations, shares, twins, small_angles, small_angle, extra)
    strains = strain * np.random.default_rng([seed, 2]).uniform(-1, 1, (n_found, 3))
    bends = _bends(shares, bending, extra)
    if probe_blur > 0:
        shares = gaussian_filter(shares, (probe_blur, probe_blur, 0), mode="nearest")
        shares /= shares.sum(axis=2, keepdims=True)
    thickness = 1 - uneven * _smooth_fields(scan_shape, 2, extra)

    model = Scattering(detector_shape, k_max, disk_radius)
    support = ring_profile(detector_shape, model.centre, model.pixel_size, maximum=0.55, width=0.05)
    support /= support.sum()
    # Bragg disks of each grain along its bend, from one end to the other.
    turns = np.linspace(-0.5, 0.5, 1 + 2 * int(np.ceil(2 * bending)))
    disks = np.empty((n_found, len(turns), *detector_shape))
    axes = extra.standard_normal((n_found, 3))
    for k, t in np.ndindex(*disks.shape[:2]):
        axis = axes[k] / np.linalg.norm(axes[k])
        turn = Rotation.from_rotvec(np.deg2rad(bending * turns[t]) * axis).as_matrix()
        disks[k, t] = model.bragg(orientations[k] @ turn, strains[k])

    patterns = model.patterns(disks[:, len(turns) // 2])

    warm = extra.uniform(0.2, 2, detector_shape) * (extra.random(detector_shape) < hot_pixels)
    warm *= electrons * model.liquid.max()
    x, y = (np.linspace(-0.5, 0.5, n) for n in scan_shape)
    wander = np.stack(np.broadcast_arrays(x[:, None] + y, x[:, None] - 0.5 * y**2 - y), axis=2)
    shifts = 0.5 * descan * wander
    # No pixel expects more than about half of the electrons, or all where nothing scatters them.
    brightest = electrons * (1 if uneven > 0 else 0.5) + warm.max()
    largest = gain * largest_count(electrons, brightest) + offset
    if largest > np.iinfo(np.uint32).max:
        raise ValueError(f"{electrons=} with {gain=} and {offset=} may not fit 32 bits")
    counts = np.empty((*scan_shape, *detector_shape), dtype=count_type(largest))
    for row in range(scan_shape[0]):
        electrons_of_row = np.empty(counts.shape[1:])
        for column in range(scan_shape[1]):
            position = row, column
            share, (thick, wet) = shares[position], thickness[position]
            expected = np.zeros(detector_shape)
            for k in np.flatnonzero(share[:-1]):
                low, part = divmod((bends[k][position] + 1) / 2 * (len(turns) - 1), 1)
                low = int(low)
                bragg = disks[k, low] * (1 - part)
                if part > 0:
                    bragg += disks[k, low + 1] * part
                # What is not scattered stays in the direct beam.
                grain = model.grain(thick * bragg + (1 - thick) * model.beam)
                # Not 1 where the lattice has no disk on the detector.
                expected += share[k] * (grain / grain.sum())
            expected += share[-1] * patterns[-1]
            amount = 0.3 + 0.2 * share[-1]
            if wet < 1:
                expected += amount * (1 - wet) * (model.beam - model.diffuse)
            if share[-1] > 0 and speckle > 0:
                expected += model.speckle(0.5 * share[-1] * wet, speckle, rng)
            if film > 0:
                expected = (1 - film) * expected + film * support
            if descan > 0:
                expected = shift(expected, shifts[position], order=1, mode="nearest")
            # Rounding may leave less than nothing where nothing scatters.
            electrons_of_row[column] = rng.poisson(electrons * np.maximum(expected, 0))
        if hot_pixels > 0:
            electrons_of_row += extra.poisson(warm, electrons_of_row.shape)
        if lag > 0:
            decay = lag / (1 + lag)
            electrons_of_row = lfilter([1 - decay], [1, -decay], electrons_of_row, axis=0)
        recorded = gain * electrons_of_row + offset
        if lag > 0 or gain % 1 or offset % 1:
            # Rounded up or down by chance, so that small values keep their mean.
            recorded = np.floor(recorded + extra.random(recorded.shape))
        counts[row] = recorded

    cube = model.datacube(counts, scan_step, "simulated_scan")
    labels = largest_share(shares)
    return SimulatedScan(
        cube, labels, orientations, model.crystal, patterns, shares, shifts, strains
    )


def largest_share(shares: NDArray[Any]) -> NDArray[Any]:
    """Labels (Rx, Ry) of shares (Rx, Ry, N + 1); -1 where the last, the liquid, is largest."""
    labels = shares.argmax(axis=2).astype(np.int32)
    labels[labels == shares.shape[2] - 1] = -1
    return labels


def check_shape(name: str, shape: Any) -> tuple[int, int]:
    """Two numbers of scan positions, or of detector pixels, 16 at least."""
    try:
        first, second = shape
    except (TypeError, ValueError):
        raise TypeError(f"{name}={shape!r} must be two whole numbers") from None
    least = 1 if name == "scan_shape" else 16
    return check_integer(name, first, least), check_integer(name, second, least)


def _grain_shares(
    shape: tuple[int, int], n_grains: int, overlap: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Shares (Rx, Ry, N + 1) of grains on about half of the scan, some apart and some touching."""
    if n_grains == 0:
        return np.ones((*shape, 1))
    radius = np.sqrt(0.6 * shape[0] * shape[1] / (np.pi * n_grains))
    centres, radii = [], []
    for _ in range(1000 * n_grains):
        if len(centres) == n_grains:
            break
        centre = rng.uniform(0, shape)
        size = radius * rng.uniform(0.7, 1.3)
        if all(
            np.hypot(*(centre - c)) > (0.8 - overlap) * (size + r)
            for c, r in zip(centres, radii, strict=True)
        ):
            centres.append(centre)
            radii.append(size)
    x, y = np.indices(shape)
    distance = np.stack(
        [np.hypot(x - c[0], y - c[1]) / r for c, r in zip(centres, radii, strict=True)], axis=2
    )
    inside = distance < 1
    if overlap > 0:
        shares = radii * np.sqrt(np.maximum(1 - distance**2, 0))
        shares /= np.maximum(shares.sum(axis=2, keepdims=True), 1e-12)
    else:
        nearest = distance.argmin(axis=2)[..., None] == np.arange(len(centres))
        shares = (nearest & inside).astype(float)
    # Grains that ended up without a position are not counted.
    shares = shares[..., shares.any(axis=(0, 1))]
    liquid = ~inside.any(axis=2, keepdims=True)
    return np.concatenate([shares, liquid.astype(float)], axis=2)


def _relate(
    orientations: NDArray[Any],
    shares: NDArray[Any],
    twins: float,
    small_angles: float,
    small_angle: float,
    rng: np.random.Generator,
) -> None:
    """Turn some grains into twins or small-angle neighbours of the one that they touch most."""
    n = len(orientations)
    main = shares.argmax(axis=2)
    touching = np.zeros((n + 1, n + 1))
    for a, b in ((main[1:], main[:-1]), (main[:, 1:], main[:, :-1])):
        np.add.at(touching, (a, b), 1)
        np.add.at(touching, (b, a), 1)
    for k in range(n):
        chance, which, axis = rng.random(), rng.integers(4), rng.standard_normal(3)
        if k == 0 or not touching[k, :k].any():
            continue
        partner = orientations[touching[k, :k].argmax()]
        if chance < twins:
            # About two of the axes, neighbours that are twins already may get the same lattice.
            earlier = orientations[:k][touching[k, :k] > 0]
            for axis in np.roll([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]], -which, axis=0):
                turn = Rotation.from_rotvec(np.pi / 3 * axis / np.sqrt(3)).as_matrix()
                if not any(_same_lattice(turn @ partner, other) for other in earlier):
                    orientations[k] = turn @ partner
                    break
        elif chance < twins + small_angles:
            turn = np.deg2rad(small_angle) * axis / np.linalg.norm(axis)
            orientations[k] = partner @ Rotation.from_rotvec(turn).as_matrix()


def _same_lattice(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether a symmetry of the cube, axes to axes, turns one orientation into the other."""
    turn = np.abs(a @ b.T)
    return bool(np.all((turn < 1e-6) | (turn > 1 - 1e-6)))


def _bends(shares: NDArray[Any], bending: float, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Place along the bend of each grain, (Rx, Ry), from -1 at one end to 1 at the other."""
    x, y = np.indices(shares.shape[:2])
    bends = []
    for k in range(shares.shape[2] - 1):
        angle = rng.uniform(0, 2 * np.pi)
        along = x * np.cos(angle) + y * np.sin(angle)
        inside = along[shares[..., k] > 0]
        middle, half = (inside.max() + inside.min()) / 2, max(np.ptp(inside) / 2, 0.5)
        bends.append(np.clip((along - middle) / half, -1, 1) * (bending > 0))
    return bends


def _smooth_fields(shape: tuple[int, int], n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Smooth random maps (Rx, Ry, n) with values from 0 to 1."""
    noise = gaussian_filter(rng.standard_normal((*shape, n)), (min(shape) / 8,) * 2 + (0,))
    noise -= noise.min(axis=(0, 1))
    return noise / np.maximum(noise.max(axis=(0, 1)), 1e-12)
