"""Samples of particles: on films, inside crystals, on each other, and in scans with a defect."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recipes import Sample, Scene
from .scattering import random_orientations
from .textures import bend, looking_along, place_discs, varied

FILM_DEPTH = 0.15
"""What the thin film under particles scatters."""

PLATE_THICKNESS = 120.0
"""Thickness of precipitates, Angstrom."""

FAINTEST_PLATE = 0.005
"""Share of the electrons that the disks of a precipitate hold at least, before it is scaled.

A larger value leaves out more of the orientations in which no reflection is excited.
"""


def precipitates(scene: Scene) -> Sample:
    """Plates of silicon with 5 to 20 % of the intensity in a bent crystal of aluminium."""
    rng, shape = scene.rng, scene.scan_shape
    centres, radii = place_discs(shape, (3, 6), 1.4, rng, n=10, margin=1)
    inside = disc_distances(shape, centres) <= radii
    parts = rng.uniform(0.05, 0.2, len(radii))
    taken = (inside * parts).sum(axis=2)
    thickness = varied(shape, 500, 0.1, rng)
    tilts = bend(shape, 1.5, rng)
    matrix = looking_along((1, 1, 0), rng.uniform(0, 360), 1.0, rng)
    strength = scene.add("aluminium", matrix, thickness, tilts=tilts, weight=1 - taken)
    orientations = np.empty((len(radii), 3, 3))
    for k, part in enumerate(parts):
        own = PLATE_THICKNESS * inside[..., k]
        alone = 0.0
        while alone < FAINTEST_PLATE:
            (orientations[k],) = random_orientations(1, rng)
            alone = scene.strength("silicon", orientations[k], own)
        # So that it has its part of the intensity of all disks.
        scene.add("silicon", orientations[k], own, weight=part * strength / alone)
    nothing = np.zeros(shape)
    regions = _regions([~inside.any(axis=2), *np.moveaxis(inside, 2, 0)], nothing)
    shares = _regions([1 - taken, *np.moveaxis(inside * parts, 2, 0)], nothing)
    n = len(radii)
    return Sample(
        regions,
        shares,
        np.concatenate([matrix[None], orientations]),
        ("aluminium",) + ("silicon",) * n,
        thickness,
        tilts,
    )


def thick_support(scene: Scene) -> Sample:
    """Small grains of gold on an amorphous support that is thick and uneven."""
    return _spheres(scene, (3, 5), 20, varied(scene.scan_shape, 1.1, 0.4, scene.rng))


def stacked(scene: Scene) -> Sample:
    """Particles of gold on a thin film, some of them on top of each other."""
    return _spheres(scene, (6, 9), 9, np.full(scene.scan_shape, FILM_DEPTH), distance=0.65)


def plain(scene: Scene) -> Sample:
    """Particles of gold on a thin film."""
    return _spheres(scene, (5, 8.5), 9, np.full(scene.scan_shape, FILM_DEPTH))


def core_shell(scene: Scene) -> Sample:
    """Particles of gold in shells of silicon, each with an orientation of its own."""
    rng, shape = scene.rng, scene.scan_shape
    centres, radii = place_discs(shape, (7.5, 10), 1.05, rng, n=7, margin=0.9)
    cores = radii * rng.uniform(0.45, 0.6, len(radii))
    whole = sphere_chords(shape, centres, radii)
    core = sphere_chords(shape, centres, cores)
    orientations = random_orientations(2 * len(radii), rng)
    thickness, regions = [], []
    for k in range(len(radii)):
        parts = (whole[..., k] - core[..., k], core[..., k])
        for i, material in enumerate(("silicon", "gold")):
            lengths = SCAN_STEP * parts[i]
            scene.add(material, orientations[2 * k + i], lengths)
            thickness.append(lengths)
        regions += [(whole[..., k] > 0) & (core[..., k] == 0), core[..., k] > 0]
    scene.add_film(np.full(shape, FILM_DEPTH))
    return _on_film(shape, regions, thickness, orientations, ("silicon", "gold") * len(radii))


def hole(scene: Scene) -> Sample:
    """Particles on a thin film that has a hole, in which nothing scatters."""
    rng, shape = scene.rng, scene.scan_shape
    radius = 0.22 * min(shape)
    centre = np.array([n * rng.uniform(0.3, 0.7) for n in shape])
    empty = disc_distances(shape, centre[None])[..., 0] < radius
    return _spheres(scene, (5, 8.5), 9, FILM_DEPTH * ~empty, without=empty)


def beam_stop(scene: Scene) -> Sample:
    """Particles on a thin film; a beam stop with an arm hides the direct beam."""
    scattering = scene.scattering
    u, v = np.indices(scattering.shape)
    du, dv = u - scattering.centre[0], v - scattering.centre[1]
    radius = 1.8 * scattering.disk_radius + 1
    seen = np.hypot(du, dv) > radius
    seen &= (np.abs(du) > 0.5 * radius) | (dv < 0)
    return plain(scene)._replace(seen=seen.astype(np.float32))


def dead_quadrant(scene: Scene) -> Sample:
    """Particles on a thin film; one quarter of the detector records nothing."""
    n_qx, n_qy = scene.scattering.shape
    seen = np.ones((n_qx, n_qy), dtype=np.float32)
    seen[n_qx // 2 :, : n_qy // 2] = 0
    return plain(scene)._replace(seen=seen)


def dead_row(scene: Scene) -> Sample:
    """Particles on a thin film; one row of the scan was lost."""
    brightness = np.ones(scene.scan_shape)
    n = scene.scan_shape[0]
    brightness[scene.rng.integers(n // 3, max(2 * n // 3, n // 3 + 1))] = 0
    return plain(scene)._replace(brightness=brightness)


def fading_beam(scene: Scene) -> Sample:
    """Particles on a thin film; the beam loses 40 % from the first position to the last."""
    n_rx, n_ry = scene.scan_shape
    fade = 1 - 0.4 * np.linspace(0, 1, n_rx * n_ry)
    return plain(scene)._replace(brightness=fade.reshape(n_rx, n_ry))


SCAN_STEP = 12.0
"""Distance of scan positions in scans of particles, Angstrom."""


def _spheres(
    scene: Scene,
    radii: tuple[float, float],
    n: int,
    film_depth: NDArray[Any],
    *,
    distance: float = 0.9,
    without: NDArray[Any] | None = None,
) -> Sample:
    """Round particles of gold, flat below, on a film; `without` is a hole in the film."""
    rng, shape = scene.rng, scene.scan_shape
    centres, sizes = place_discs(shape, radii, distance, rng, n=n, margin=0.3)
    if without is not None:
        # A particle may stick out over the hole, but its middle needs a support.
        held = ~without[tuple(np.round(centres).astype(int).T)]
        centres, sizes = centres[held], sizes[held]
    chords = sphere_chords(shape, centres, sizes)
    if distance > 0.8:
        # Particles that touch side by side share a straight border.
        power = disc_distances(shape, centres) ** 2 - sizes**2
        chords *= power.argmin(axis=2)[..., None] == np.arange(len(sizes))
    orientations = random_orientations(chords.shape[2], rng)
    thickness = [SCAN_STEP * chords[..., k] for k in range(chords.shape[2])]
    for orientation, lengths in zip(orientations, thickness, strict=True):
        scene.add("gold", orientation, lengths)
    scene.add_film(film_depth)
    most = chords.argmax(axis=2)
    regions = [(chords[..., k] > 0) & (most == k) for k in range(chords.shape[2])]
    return _on_film(shape, regions, thickness, orientations, ("gold",) * len(orientations))


def _on_film(
    shape: tuple[int, int],
    regions: list[NDArray[Any]],
    thickness: list[NDArray[Any]],
    orientations: NDArray[Any],
    materials: tuple[str, ...],
) -> Sample:
    """A sample of grains on a film that counts as background; shares are those of thickness."""
    total = np.sum([np.zeros(shape), *thickness], axis=0)
    shares = [part / np.where(total > 0, total, 1) for part in thickness]
    return Sample(
        _regions(regions, background=total == 0),
        _regions(shares, background=total == 0),
        orientations,
        materials,
        total,
        np.zeros((*shape, 2)),
    )


def _regions(parts: list[NDArray[Any]], background: NDArray[Any]) -> NDArray[np.float64]:
    """Maps ``(Rx, Ry)`` as ``(Rx, Ry, N + 1)``, the background last."""
    return np.stack([*parts, background], axis=2).astype(np.float64)


def disc_distances(shape: tuple[int, int], centres: NDArray[Any]) -> NDArray[np.float64]:
    """Distance ``(Rx, Ry, N)`` of each scan position from each centre."""
    x, y = np.indices(shape)
    return np.asarray(np.hypot(x[..., None] - centres[:, 0], y[..., None] - centres[:, 1]))


def sphere_chords(
    shape: tuple[int, int], centres: NDArray[Any], radii: NDArray[Any]
) -> NDArray[np.float64]:
    """Length of the beam in spheres ``(Rx, Ry, N)``, scan positions."""
    return 2 * np.sqrt(np.maximum(radii**2 - disc_distances(shape, centres) ** 2, 0))
