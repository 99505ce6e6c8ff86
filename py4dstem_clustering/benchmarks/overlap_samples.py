"""Simulated scans of grains that lie above one another, with all that is known about them.

Three kinds: particles stacked on each other, cores in shells, and a film whose borders between
grains are inclined. Three ways to scatter: kinematical, two-beam and Bloch waves. Patterns of
grains above one another are sums: each grain scatters electrons out of the direct beam, and none of
them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..kernels.blas import single_threaded_blas
from ..simulate.bloch import BlochCrystal
from ..simulate.crystals import ACCELERATING_VOLTAGE, PRESETS, named_material
from ..simulate.dynamical import MIN_REACH, GrainDisks, thermal_background
from ..simulate.grains import Lattice
from ..simulate.recipes_particles import FILM_DEPTH, SCAN_STEP, disc_distances, sphere_chords
from ..simulate.scattering import Scattering, random_orientations
from ..simulate.textures import place_discs
from ..simulate.two_beam import Exposure

PROBE_BLUR = 0.7
"""Standard deviation of the probe, scan positions."""

FILM_THICKNESS = 150.0
"""Thickness of the film of grains, Angstrom."""

INCLINED = 7.0
"""How far the borders of the film of grains move from its lower to its upper side, scan
positions."""

MIN_ALONE = 0.2
"""Part of a grain that is alone from which on its pure pattern is the one where it is alone."""

K_MAX = 1.3
"""Scattering vector at the nearest border of the detector, 1/Angstrom."""

DISK_RADIUS = 2.0
"""Radius of disks, pixels of a detector with 60 pixels."""


class OverlapSample(NamedTuple):
    """A scan of N grains that overlap, and the truth about it."""

    datacube: Any
    supports: NDArray[np.bool_]
    """Where each grain covers at least half of the probe ``(Rx, Ry, N)``."""
    scattered: NDArray[np.float64]
    """Share of all electrons that each grain scatters into its disks ``(Rx, Ry, N)``."""
    thickness: NDArray[np.float64]
    """Thickness of each grain ``(Rx, Ry, N)``, Angstrom, as the probe sees it."""
    pure: NDArray[np.float64]
    """Mean pattern of the disks of each grain ``(N, Qx, Qy)`` without the direct beam, where it is
    alone; of grains that are alone in less than `MIN_ALONE` of their support, over the support."""
    orientations: NDArray[np.float64]
    """Orientation matrices ``(N, 3, 3)``, as py4DSTEM writes them."""
    materials: tuple[str, ...]
    """Material of each grain."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Grain that scatters most at each position ``(Rx, Ry)``; -1 where there is none."""
        strongest = np.where(self.supports, self.scattered, -1).argmax(axis=2)
        return np.where(self.supports.any(axis=2), strongest, -1)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each grain in what the grains in their supports scatter ``(Rx, Ry, N)``."""
        return parts_of_one(self.scattered * self.supports)

    @property
    def shares_of_thickness(self) -> NDArray[np.float64]:
        """Share of each grain in the thickness ``(Rx, Ry, N)``."""
        return parts_of_one(self.thickness * self.supports)


def parts_of_one(amounts: NDArray[Any]) -> NDArray[np.float64]:
    """Amounts ``(Rx, Ry, N)`` over their sum at each position; 0 where there are none."""
    return np.asarray(amounts / np.maximum(amounts.sum(axis=2, keepdims=True), 1e-12))


class _Geometry(NamedTuple):
    thickness: NDArray[np.float64]  # (Rx, Ry, N), Angstrom
    materials: tuple[str, ...]


def _stacked(shape: tuple[int, int], rng: np.random.Generator) -> _Geometry:
    """Nine spheres of gold that may lie on top of each other."""
    centres, radii = place_discs(shape, (6, 9), 0.65, rng, n=9, margin=0.3)
    return _Geometry(SCAN_STEP * sphere_chords(shape, centres, radii), ("gold",) * len(radii))


def _core_shell(shape: tuple[int, int], rng: np.random.Generator) -> _Geometry:
    """Spheres of gold in shells of silicon."""
    centres, radii = place_discs(shape, (7.5, 10), 1.05, rng, n=7, margin=0.9)
    core = sphere_chords(shape, centres, radii * rng.uniform(0.45, 0.6, len(radii)))
    shell = sphere_chords(shape, centres, radii) - core
    both = np.stack([shell, core], axis=3).reshape(*shape, -1)
    return _Geometry(SCAN_STEP * both, ("silicon", "gold") * len(radii))


def _film(shape: tuple[int, int], rng: np.random.Generator) -> _Geometry:
    """A film of gold; the columns of its grains are inclined, each in a direction of its own."""
    centres, radii = place_discs(shape, (5, 8), 0.85, rng)
    angle = rng.uniform(0, 2 * np.pi, len(radii))
    lean = INCLINED / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    heights = np.linspace(-1, 1, 17)
    parts = np.zeros((*shape, len(radii)))
    for height in heights:
        distance = disc_distances(shape, centres + height * lean) ** 2 - radii**2
        np.add.at(parts, (*np.indices(shape), distance.argmin(axis=2)), FILM_THICKNESS)
    kept = parts.any(axis=(0, 1))
    return _Geometry(parts[..., kept] / len(heights), ("gold",) * int(kept.sum()))


_GEOMETRIES: dict[str, Callable[[tuple[int, int], np.random.Generator], _Geometry]] = {
    "stacked": _stacked,
    "core-shell": _core_shell,
    "film": _film,
}

KINDS = tuple(_GEOMETRIES)
"""The kinds of sample."""

SCATTERING = ("kinematical", "two-beam", "bloch")
"""The ways to scatter."""


def make_overlaps(
    kind: str,
    scattering: str,
    doses: Sequence[float],
    seed: int,
    *,
    scan_shape: tuple[int, int] = (48, 42),
    detector_shape: tuple[int, int] = (48, 44),
) -> Iterator[OverlapSample]:
    """Simulate a sample, and yield a scan of it for each dose, electrons a pattern.

    The seed gives the same grains at every dose, detector and way to scatter.
    """
    places, turns, noise = (np.random.default_rng([seed, 24, n]) for n in range(3))
    geometry = _GEOMETRIES[kind](scan_shape, places)
    orientations = random_orientations(len(geometry.materials), turns)
    size = min(detector_shape)
    optics = Scattering(detector_shape, K_MAX, DISK_RADIUS * size / 60)
    make = {"kinematical": _kinematical, "two-beam": _two_beam, "bloch": _bloch}[scattering]
    n = len(orientations)
    disks = np.zeros((n, *scan_shape, *detector_shape), dtype=np.float32)
    depth = np.zeros((*scan_shape, n))
    with single_threaded_blas:
        for k in range(n):
            own = geometry.thickness[..., k]
            if own.any():
                make(optics, geometry.materials[k], orientations[k], own, disks[k], depth[..., k])
    ring = optics.film_ring
    total = depth.sum(axis=2) + FILM_DEPTH
    # Of a depth d in all, the share 1 - exp(-d) of the electrons leaves the direct beam.
    taken = (1 - np.exp(-total)) / total
    disks *= taken[..., None, None].astype(np.float32)
    disks = _blurred(disks, first=1)
    left = _blurred((np.exp(-total))[..., None])[..., 0]
    rest = _blurred((FILM_DEPTH * taken)[..., None])[..., 0]
    diffuse = thermal_background(optics)
    expected = disks.sum(axis=0, dtype=np.float64)
    expected += left[..., None, None] * optics.beam
    gone = np.maximum(1 - left - rest - expected.sum(axis=(2, 3)) + left, 0)
    for x in range(scan_shape[0]):
        speckle = np.stack(
            [optics.speckle(1.0, 0.5, noise) / optics.diffuse for _ in range(scan_shape[1])]
        )
        film = ring * (1 + speckle)
        film /= film.sum(axis=(1, 2), keepdims=True)
        expected[x] += rest[x, :, None, None] * film + gone[x, :, None, None] * diffuse
    covered = _blurred((geometry.thickness > 0) * 1.0)
    supports = covered >= 0.5
    beyond = optics.beam == 0
    scattered = disks[..., beyond].sum(axis=3, dtype=np.float64).transpose(1, 2, 0)
    pure = np.zeros((n, *detector_shape))
    single = supports.sum(axis=2) == 1
    for k in range(n):
        where = supports[..., k]
        if (where & single).sum() >= MIN_ALONE * where.sum():
            where = where & single
        if where.any():
            pure[k] = disks[k][where].mean(axis=0, dtype=np.float64) * beyond
    thickness = _blurred(geometry.thickness)
    for electrons in doses:
        counts = noise.poisson(electrons * np.maximum(expected, 0)).astype(np.uint32)
        yield OverlapSample(
            optics.datacube(counts, SCAN_STEP, "overlaps"),
            supports,
            scattered,
            thickness,
            pure,
            orientations,
            geometry.materials,
        )


def _blurred(maps: NDArray[Any], first: int = 0) -> NDArray[Any]:
    """Maps as a broad probe sees them; the axes of the scan are `first` and the next."""
    widths = np.zeros(maps.ndim)
    widths[first : first + 2] = PROBE_BLUR
    return np.asarray(gaussian_filter(maps, widths, mode="nearest"))


# Each writes the disks without the direct beam, and the optical depth of the grain.


def _kinematical(
    optics: Scattering, material: str, orientation: NDArray[Any], thickness: NDArray[Any],
    disks: NDArray[Any], depth: NDArray[Any],
) -> None:  # fmt: skip
    """The same pattern everywhere, in proportion to thickness."""
    crystal = named_material(material).kinematical(1.5 * K_MAX)
    own = Scattering(optics.shape, K_MAX, optics.disk_radius)
    own.crystal = crystal
    depth[:] = thickness / 200
    disks[:] = depth[..., None, None] * own.bragg(orientation)


def _two_beam(
    optics: Scattering, material: str, orientation: NDArray[Any], thickness: NDArray[Any],
    disks: NDArray[Any], depth: NDArray[Any],
) -> None:  # fmt: skip
    crystal = named_material(material).kinematical(1.5 * K_MAX)
    exposure = Exposure(optics, (thickness.shape[0], thickness.shape[1]))
    (displacement,) = PRESETS[material].displacements.values()
    exposure.add_crystal(crystal, displacement, orientation, thickness)
    disks[:] = exposure.scattered.reshape(disks.shape)
    depth[:] = (exposure.depth @ exposure.beam).reshape(thickness.shape)


def _bloch(
    optics: Scattering, material: str, orientation: NDArray[Any], thickness: NDArray[Any],
    disks: NDArray[Any], depth: NDArray[Any],
) -> None:  # fmt: skip
    k_max = max(optics.pixel_size * float(np.hypot(*optics.shape)) / 2, MIN_REACH)
    crystal = BlochCrystal(
        named_material(material).dynamical(2 * k_max, ACCELERATING_VOLTAGE), k_max
    )
    inside = thickness > 0
    nothing = np.zeros(thickness.shape)
    lattice = Lattice(orientation, np.array([1.0, 0, 0]), nothing, np.zeros(3))
    grain = GrainDisks(optics, crystal, lattice, thickness / 10, inside, even_disks=False)
    beam = optics.beam > 0
    for position in zip(*np.nonzero(inside), strict=True):
        pattern = grain.at(position)[0].reshape(optics.shape)
        through = float(np.clip(pattern[beam].sum(), 0.02, 1))
        depth[position] = -np.log(through)
        # `taken` for one grain is (1 - through) / depth.
        pattern[beam] = 0
        disks[position] = pattern * (depth[position] / max(1 - through, 1e-9))
