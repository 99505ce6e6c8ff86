"""Round particles of a simulated series: they appear, grow, turn, join, dissolve and drift."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .grains import RADIUS_RANGE
from .scattering import random_orientations

COVERED_SHARE = 0.25
"""Share of the scan that all full-grown particles cover together.

A larger value makes larger particles, of which fewer find room.
"""

NUCLEUS_AREA = 7.0
"""Area of a particle in the frame in which it appears, scan positions.

A larger value makes particles appear suddenly rather than grow from nothing.
"""

MIN_GAP = 2.0
"""Gap, at least, between full-grown particles that do not coalesce, scan positions.

A larger value separates particles better; fewer find room.
"""

APPROACH_FRAMES = 6
"""Number of frames during which one particle moves to another, before they become one.

A larger value makes it move more slowly.
"""

CONTACT_DISTANCE = 0.85
"""Distance of the centres of two particles that become one, relative to the sum of their radii.

A larger value, up to 1, makes a longer joint particle with a thinner neck.
"""


class Particles(NamedTuple):
    """T frames of N particles; each is a disc that is part of one particle."""

    centres: NDArray[np.float64]
    """Centre of each disc ``(T, N, 2)``, scan positions, drift included."""
    radii: NDArray[np.float64]
    """Radius of each disc ``(T, N)``, scan positions; 0 while absent."""
    owners: NDArray[np.int64]
    """Particle ``(T, N)`` that each disc is part of."""
    orientations: NDArray[np.float64]
    """Orientation matrices ``(T, N, 3, 3)``; NaN while absent."""
    drift: NDArray[np.float64]
    """Displacement of the sample ``(T, 2)`` since frame 0, scan positions."""
    growth_rates: NDArray[np.float64]
    """Growth of the area ``(N,)``, scan positions a second."""
    rotation_rates: NDArray[np.float64]
    """Rotation ``(N,)``, degrees a second."""
    merges: list[tuple[int, int, int]]
    """Frame from which on two particles are one, the smaller one, and the larger one."""


def make_particles(
    scan_shape: tuple[int, int],
    times: NDArray[Any],
    n_particles: int,
    *,
    nucleation: float,
    growth: float,
    rotation: float,
    coalescence: float,
    dissolution: float,
    drift: float,
    jitter: float,
    seed: int,
) -> Particles:
    """Draw the lives of particles; the options are those of `simulate_series`."""
    n_frames = len(times)
    # Each has a generator of its own, so that an option of one does not change the others.
    places, lives, turns, moves = (np.random.default_rng([seed, 4, n]) for n in (1, 2, 3, 4))
    n_pairs = int(coalescence * n_particles / 2 + 0.5) if n_frames > 2 else 0
    starts, full, pairs = _place(scan_shape, n_particles, min(n_pairs, n_particles // 2), places)
    n = len(full)
    births, deaths, shrinking = _lives(n, 2 * len(pairs), n_frames, nucleation, dissolution, lives)
    growth_rates = growth * lives.uniform(0.5, 1.5, n) * (births > 0)
    areas = _free_areas(np.pi * full**2, births, deaths, shrinking, growth_rates, times)

    angle = moves.uniform(0, 2 * np.pi)
    sample = drift * np.outer(np.arange(n_frames), [np.cos(angle), np.sin(angle)])
    sample += jitter * moves.standard_normal((n_frames, 2))
    sample = sample - sample[0]

    radii = np.sqrt(areas / np.pi)
    centres = starts + np.zeros((n_frames, 1, 1))
    owners = np.tile(np.arange(n), (n_frames, 1))
    merges = [
        _coalesce(first, second, frame, centres, radii, owners)
        for (first, second), frame in zip(
            pairs, _late_frames(len(pairs), n_frames, lives), strict=True
        )
    ]
    centres += sample[:, None]

    rotation_rates = rotation * turns.uniform(0, 1, n)
    orientations = _turning(random_orientations(n, turns), rotation_rates, times, turns)
    absent = (radii == 0) | (owners != np.arange(n))
    orientations[absent] = np.nan
    return Particles(
        centres, radii, owners, orientations, sample, growth_rates, rotation_rates, merges
    )


def _place(
    scan_shape: tuple[int, int], n_particles: int, n_pairs: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], list[tuple[int, int]]]:
    """Centres ``(N, 2)`` and radii ``(N,)`` of separate full-grown particles; pairs come first."""
    scan = np.array(scan_shape)
    radii = np.sqrt(COVERED_SHARE * scan.prod() / (np.pi * max(n_particles, 1)))
    radii = radii * rng.uniform(*RADIUS_RANGE, n_particles)
    groups: list[tuple[int, ...]] = [(2 * k, 2 * k + 1) for k in range(n_pairs)]
    groups += [(k,) for k in range(2 * n_pairs, n_particles)]
    best: list[tuple[tuple[int, ...], NDArray[Any]]] = []
    for _ in range(20):  # the first particles may leave no room for the others
        placed = _try_to_place(scan, radii, groups, rng)
        if sum(len(group) for group, _ in placed) > sum(len(group) for group, _ in best):
            best = placed
        if len(best) == len(groups):
            break
    found = [k for group, _ in best for k in group]
    centres = np.concatenate([np.empty((0, 2)), *(centres for _, centres in best)])
    n_found = sum(len(group) == 2 for group, _ in best)
    return centres, radii[found], [(2 * k, 2 * k + 1) for k in range(n_found)]


def _try_to_place(
    scan: NDArray[Any], radii: NDArray[Any], groups: list[tuple[int, ...]], rng: np.random.Generator
) -> list[tuple[tuple[int, ...], NDArray[Any]]]:
    """Groups of one or two particles that found room, with their centres ``(1 or 2, 2)``."""
    placed = []
    centres, taken = np.empty((0, 2)), np.empty(0)
    for group in groups:
        own = radii[list(group)]
        room = np.maximum(scan / 2 - own[:, None], 0)  # where 0, only the middle is left
        for _ in range(100):
            new = (scan - 1) / 2 + room * rng.uniform(-1, 1, (len(group), 2))
            if len(group) == 2:
                angle = rng.uniform(0, 2 * np.pi)
                new[1] = new[0] + (own.sum() + MIN_GAP) * np.array([np.cos(angle), np.sin(angle)])
            inside = np.abs(new - (scan - 1) / 2) <= room
            distance = np.hypot(*(new[:, None] - centres).transpose(2, 0, 1))
            if inside.all() and (distance >= own[:, None] + taken + MIN_GAP).all():
                centres, taken = np.concatenate([centres, new]), np.concatenate([taken, own])
                placed.append((group, new))
                break
    return placed


def _late_frames(n: int, n_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Frames ``(n,)`` drawn from the second half, which is after all births."""
    return rng.integers(n_frames // 2 + 1, max(n_frames, n_frames // 2 + 2), n)


def _lives(
    n: int,
    n_paired: int,
    n_frames: int,
    nucleation: float,
    dissolution: float,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """First frame of each particle, first frame without it (or infinity), frames it shrinks for."""
    order = rng.permutation(n)
    births = rng.integers(1, max(n_frames // 2, 1) + 1, n)
    deaths = _late_frames(n, n_frames, rng).astype(float)
    shrinking = n_frames * rng.uniform(0.2, 0.4, n)
    nucleate = order[: int(nucleation * n + 0.5)] if n_frames > 1 else order[:0]
    single = order[order >= n_paired]
    dissolve = single[: int(dissolution * n + 0.5)] if n_frames > 2 else order[:0]
    births[np.setdiff1d(order, nucleate)] = 0
    deaths[np.setdiff1d(order, dissolve)] = np.inf
    return births, deaths, shrinking


def _free_areas(
    full: NDArray[Any],
    births: NDArray[Any],
    deaths: NDArray[Any],
    shrinking: NDArray[Any],
    growth_rates: NDArray[Any],
    times: NDArray[Any],
) -> NDArray[Any]:
    """Areas ``(T, N)`` of particles that join no other; `full` ``(N,)`` are the largest ones."""
    frames = np.arange(len(times))[:, None]
    nuclei = np.where(births > 0, np.minimum(NUCLEUS_AREA, full), full)
    areas = np.minimum(nuclei + growth_rates * (times[:, None] - times[births]), full)
    areas = np.minimum(areas, full * (deaths - frames) / shrinking)
    return np.where(frames >= births, np.maximum(areas, 0), 0)


def _coalesce(
    first: int,
    second: int,
    frame: int,
    centres: NDArray[Any],
    radii: NDArray[Any],
    owners: NDArray[Any],
) -> tuple[int, int, int]:
    """Move the second particle to the first, and make them one from `frame` on.

    Changes centres, radii and owners in place. Returns the frame, the smaller particle, which the
    larger one takes over, and the larger particle.
    """
    apart = centres[frame, second] - centres[frame, first]
    distance = np.hypot(*apart)
    last = CONTACT_DISTANCE * (radii[frame, first] + radii[frame, second])
    begin = max(0, frame - APPROACH_FRAMES)
    way = np.clip((frame - np.arange(len(radii))) / (frame - begin), 0, 1)
    centres[:, second] -= np.outer((1 - way) * (distance - last), apart / distance)
    both = [first, second]
    radii[frame:, both] = radii[frame, both]
    small, large = (first, second) if radii[frame, first] < radii[frame, second] else both[::-1]
    owners[frame:, small] = large
    return frame, small, large


def _turning(
    orientations: NDArray[Any], rates: NDArray[Any], times: NDArray[Any], rng: np.random.Generator
) -> NDArray[Any]:
    """Orientation matrices ``(T, N, 3, 3)`` of particles that turn about random axes."""
    turned = np.empty((len(times), *orientations.shape))
    for k, axis in enumerate(rng.standard_normal((len(orientations), 3))):
        angles = np.deg2rad(rates[k] * times)
        turns = Rotation.from_rotvec(np.outer(angles, axis / np.linalg.norm(axis))).as_matrix()
        # Seen from the crystal, the image and the beam turn the other way.
        turned[:, k] = orientations[k] @ turns.transpose(0, 2, 1)
    return turned
