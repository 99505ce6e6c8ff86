"""Samples that fill the scan: polycrystalline films, twins, layers, foils that bend, polymers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .recipes import Sample, Scene, film
from .scattering import random_orientations
from .textures import (
    as_regions,
    bend,
    cells,
    distinct_angles,
    looking_along,
    numbered,
    ramp,
    stripes,
    varied,
)

FILM_RADII = (2.4, 4.2)
"""Radii of the grains of fine-grained films, scan positions; they have 4 to 10 across."""

HALO = (0.22, 0.035)
"""Maximum and standard deviation of the halo of the amorphous part, 1/Angstrom."""

HALO_DEPTH = 0.7
"""What the halo scatters; about half of the electrons."""

ARC = (0.242, 0.012)
"""Place and standard deviation across the ring of the arcs, 1/Angstrom."""

ARC_DEPTH = 0.06
"""What both arcs scatter; a larger value makes domains easier to find."""

ARC_SHARPNESS = 4.0
"""Sharpness of the arcs; they are about 50 degrees long at half of their maximum."""


def random_film(scene: Scene) -> Sample:
    """Fine grains of gold of every orientation."""
    labels = cells(scene.scan_shape, FILM_RADII, scene.rng)
    orientations = random_orientations(labels.max() + 1, scene.rng)
    return film(scene, "gold", labels, orientations, varied(scene.scan_shape, 120, 0.2, scene.rng))


def fibre_film(scene: Scene) -> Sample:
    """Fine grains of gold with a <111> within 3 degrees of the beam, turned about it."""
    labels = cells(scene.scan_shape, FILM_RADII, scene.rng)
    # The pattern of <111> repeats after 60 degrees.
    angles = distinct_angles(labels, 60, 8, scene.rng)
    orientations = np.array(
        [looking_along((1, 1, 1), a, scene.rng.uniform(0, 3), scene.rng) for a in angles]
    )
    return film(scene, "gold", labels, orientations, varied(scene.scan_shape, 120, 0.2, scene.rng))


def convergent(scene: Scene) -> Sample:
    """Larger grains of gold under a cone so wide that disks touch, with fringes inside them."""
    labels = cells(scene.scan_shape, (5, 8), scene.rng)
    angles = distinct_angles(labels, 180, 12, scene.rng)
    orientations = np.empty((len(angles), 3, 3))
    for k, angle in enumerate(angles):
        zone = ((1, 1, 0), (1, 1, 1), (1, 0, 0), (1, 1, 2))[scene.rng.integers(4)]
        orientations[k] = looking_along(zone, angle, scene.rng.uniform(0, 4), scene.rng)
    thickness = varied(scene.scan_shape, 250, 0.15, scene.rng)
    return film(scene, "gold", labels, orientations, thickness)


def twin_lamellae(scene: Scene) -> Sample:
    """Gold seen along <110>, cut into twins 3 to 6 positions wide by upright {111} planes."""
    labels, across = stripes(scene.scan_shape, (3, 6), scene.rng)
    # The normal of the twin plane lies in the image, across the lamellae.
    normal = np.array([1, 1, 1]) / np.sqrt(3)
    zone = np.array([1, -1, 0]) / np.sqrt(2)
    crystal_axes = np.stack([normal, np.cross(zone, normal), zone], axis=1)
    image_axes = np.array([[across[0], -across[1], 0], [across[1], across[0], 0], [0, 0, 1]])
    tilt = Rotation.from_rotvec(np.deg2rad(1.5) * scene.rng.uniform(-1, 1, 3)).as_matrix()
    matrix = crystal_axes @ image_axes.T @ tilt
    twin = Rotation.from_rotvec(np.pi * normal).as_matrix() @ matrix
    orientations = np.array([(matrix, twin)[k % 2] for k in range(labels.max() + 1)])
    return film(scene, "gold", labels, orientations, varied(scene.scan_shape, 100, 0.15, scene.rng))


def mismatched_layers(scene: Scene) -> Sample:
    """Layers of silicon whose lattices differ by 1 to 2 % across the layers: one crystal."""
    layers, across = stripes(scene.scan_shape, (9, 15), scene.rng)
    strain = np.zeros(layers.max() + 1)
    for k in range(1, len(strain)):
        # Up and down in turn, so that touching layers always differ by 1 to 2 %.
        strain[k] = 0 if k % 2 == 0 else scene.rng.uniform(0.01, 0.02)
    return _strained(scene, strain[layers], across)._replace(pattern_regions=as_regions(layers))


def strain_gradient(scene: Scene) -> Sample:
    """One crystal of silicon whose lattice widens smoothly by 2 % from end to end."""
    place, across = ramp(scene.scan_shape, scene.rng)
    # In steps of 0.02 %, far below what can be seen.
    return _strained(scene, np.round(place * 100) / 100 * 0.02, across)


def _strained(scene: Scene, strain: NDArray[Any], across: NDArray[Any]) -> Sample:
    """A crystal of silicon about along <110>, wider by `strain` ``(Rx, Ry)`` along `across`."""
    orientation = looking_along((1, 1, 0), scene.rng.uniform(0, 360), 1.0, scene.rng)
    thickness = varied(scene.scan_shape, 400, 0.1, scene.rng)
    for value in np.unique(strain):
        stretch = np.eye(2) + value * np.outer(across, across)
        scene.add("silicon", orientation, thickness * (strain == value), stretch=stretch)
    return _one_crystal("silicon", orientation, thickness)


def bent_foil(scene: Scene) -> Sample:
    """One crystal of aluminium near a zone axis, bent and wedge-shaped: contours and fringes."""
    zone = ((1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2))[scene.rng.integers(4)]
    orientation = looking_along(zone, scene.rng.uniform(0, 360), 0.7, scene.rng)
    tilts = bend(scene.scan_shape, 2.0, scene.rng)
    place, _ = ramp(scene.scan_shape, scene.rng)
    thickness = (150 + 1050 * place) * varied(scene.scan_shape, 1, 0.05, scene.rng)
    scene.add("aluminium", orientation, thickness, tilts=tilts)
    return _one_crystal("aluminium", orientation, thickness, tilts)


def _one_crystal(
    material: str,
    orientation: NDArray[Any],
    thickness: NDArray[Any],
    tilts: NDArray[Any] | None = None,
) -> Sample:
    """A sample that is one crystal everywhere."""
    regions = as_regions(np.zeros(thickness.shape, dtype=int))
    if tilts is None:
        tilts = np.zeros((*thickness.shape, 2))
    return Sample(regions, regions, orientation[None], (material,), thickness, tilts)


def polymer_domains(scene: Scene) -> Sample:
    """A semicrystalline polymer in domains, whose chains lie in one direction each."""
    labels = cells(scene.scan_shape, (6, 9), scene.rng)
    angles = distinct_angles(labels, 180, 25, scene.rng)
    return _polymer(scene, labels, angles[labels])


def turning_polymer(scene: Scene) -> Sample:
    """A semicrystalline polymer whose chains turn smoothly by 180 degrees over the scan."""
    place, _ = ramp(scene.scan_shape, scene.rng)
    start = scene.rng.uniform(0, 180)
    return _polymer(scene, np.zeros(scene.scan_shape, dtype=int), start + 180 * place)


def _polymer(scene: Scene, labels: NDArray[Any], angles: NDArray[Any]) -> Sample:
    """Halo and two opposite arcs; `angles` ``(Rx, Ry)`` say where on the ring, degrees."""
    scattering = scene.scattering
    u, v = (axis.astype(np.float32) for axis in np.indices(scattering.shape))
    u, v = u - scattering.centre[0], v - scattering.centre[1]
    k = np.hypot(u, v) * scattering.pixel_size
    polar = np.arctan2(v, u)
    halo = np.exp(-0.5 * ((k - HALO[0]) / HALO[1]) ** 2) + 0.35 * np.exp(-k / 0.12)
    depth = varied(scene.scan_shape, HALO_DEPTH, 0.15, scene.rng)
    scene.exposure.add_diffuse(halo / halo.sum(), depth)
    ring = np.exp(-0.5 * ((k - ARC[0]) / ARC[1]) ** 2)
    order = varied(scene.scan_shape, ARC_DEPTH, 0.25, scene.rng)
    for row in range(scene.scan_shape[0]):
        difference = polar - np.deg2rad(angles[row]).astype(np.float32)[:, None, None]
        arcs = ring * np.exp(ARC_SHARPNESS * (np.cos(2 * difference) - 1))
        arcs *= (order[row] / arcs.sum(axis=(1, 2)))[:, None, None]
        where = np.zeros(scene.scan_shape, dtype=bool)
        where[row] = True
        scene.exposure.add_patterns(where, arcs)
    regions = as_regions(numbered(labels))
    n = regions.shape[2] - 1
    nothing = np.zeros(scene.scan_shape)
    return Sample(
        regions,
        regions,
        np.full((n, 3, 3), np.nan),
        ("polymer",) * n,
        nothing,
        np.stack([nothing, nothing], axis=2),
    )
