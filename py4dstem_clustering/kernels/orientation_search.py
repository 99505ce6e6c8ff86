"""Search all orientations of a crystal for those that have disks where a pattern has them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .kinematic import Lattice, Window, brightness, predict
from .rotations import misorientation_angle

ZONE_STEP_DEG = 2.0
"""Angle between zone axes, degrees. A smaller one takes longer (to the second power)."""

N_TURNS = 120
"""Number of rotations about the beam. More take longer."""

RING = 0.01
"""Width of a ring of the polar image, 1/Angstrom."""

BLUR = 0.03
"""Standard deviation, 1/Angstrom, of a disk in the polar image: the steps of the search move the
outer disks by as much. A larger one finds a lattice more surely, together with more wrong ones."""

PLAN_WIDTH = 0.04
"""Width of relrods in the search, 1/Angstrom; wide, so that a step of the zone axis does no harm."""

POWER = 0.25
"""Power of intensities in the search: places count much, intensities little."""

APART_DEG = 4.0
"""Orientations nearer than this to a better one are not candidates, degrees."""

_N_RANKED = 400


class Plan(NamedTuple):
    """Expected disks of all zone axes, in a polar image."""

    matrices: NDArray[Any]
    """``(z, 3, 3)``, an orientation for each zone axis."""
    disks: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
    """For each: ring, turn and weight of the disks."""
    n_rings: int


def zone_axes(symmetry: NDArray[Any], step: float) -> NDArray[np.float64]:
    """Directions ``(n, 3)`` about `step` radian apart, one of each set of equivalent ones."""
    n = int(4 * np.pi / step**2)
    k = np.arange(n) + 0.5
    height = 1 - 2 * k / n
    turn = np.pi * (1 + 5**0.5) * k  # a Fibonacci sphere
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)
    # Of equivalent directions, the one nearest to a direction without symmetry is kept.
    reference = np.array([0.3, 0.2, 0.93])
    nearness = np.einsum("sij,nj,i->ns", symmetry, points, reference)
    kept: NDArray[np.float64] = points[nearness.argmax(axis=1) == 0]
    return kept


def make_plan(lattice: Lattice, symmetry: NDArray[Any], longest: float) -> Plan:
    """Plan of a lattice for patterns of disks up to the scattering vector `longest`."""
    beam = zone_axes(symmetry, np.deg2rad(ZONE_STEP_DEG))
    helper = np.where(np.abs(beam[:, [2]]) < 0.9, [[0.0, 0, 1]], [[1.0, 0, 0]])
    x = np.cross(helper, beam)
    x /= np.linalg.norm(x, axis=1)[:, None]
    matrices = np.stack([x, np.cross(beam, x), beam], axis=2)
    disks = []
    for matrix in matrices:
        places, error = predict(lattice, matrix[None])
        weight = np.exp(POWER * brightness(lattice, error[0], PLAN_WIDTH))
        radius = np.hypot(places[0, :, 0], places[0, :, 1])
        keep = (weight > 0.05) & (radius < longest)
        angle = np.arctan2(places[0, keep, 1], places[0, keep, 0])
        turn = np.rint(angle / (2 * np.pi) * N_TURNS).astype(int) % N_TURNS
        disks.append((np.rint(radius[keep] / RING).astype(int), turn, weight[keep]))
    return Plan(matrices, disks, int(longest / RING) + 2)


def search(
    plan: Plan,
    window: Window,
    symmetry: NDArray[Any],
    places: NDArray[Any],
    weights: NDArray[Any],
    n: int,
) -> NDArray[np.float64]:
    """Up to `n` orientations ``(m, 3, 3)`` whose disks lie at `places` ``(p, 2)``, best first.

    `weights` ``(p,)`` say how much each place counts.
    """
    ring = np.arange(plan.n_rings) * RING
    angle = np.arange(N_TURNS) * 2 * np.pi / N_TURNS
    grid = np.stack([ring[:, None] * np.cos(angle), ring[:, None] * np.sin(angle)], axis=2)
    image = np.zeros(grid.shape[:2])
    for place, weight in zip(places, weights, strict=True):
        squared = ((grid - place) ** 2).sum(axis=2)
        image = np.maximum(image, weight * np.exp(-0.5 * squared / BLUR**2))
    seen = window.holds(grid).astype(float)
    # Twice around, so that no turn has to be wrapped.
    image, seen = np.hstack([image, image]), np.hstack([seen, seen])
    turns = np.arange(N_TURNS)
    score = np.empty((len(plan.disks), N_TURNS))
    for k, (rings, first, weight) in enumerate(plan.disks):
        index = rings[:, None], first[:, None] + turns
        score[k] = weight @ image[index] / np.sqrt(weight**2 @ seen[index] + 1e-6)
    kept: list[NDArray[Any]] = []
    for best in np.argsort(-score, axis=None, kind="stable")[:_N_RANKED]:
        zone, turn = divmod(int(best), N_TURNS)
        cosine, sine = np.cos(angle[turn]), np.sin(angle[turn])
        about_beam = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
        matrix = plan.matrices[zone] @ about_beam
        if kept:
            apart = misorientation_angle(np.array(kept), matrix, symmetry).min()
            if apart < np.deg2rad(APART_DEG):
                continue
        kept.append(matrix)
        if len(kept) == n:
            break
    return np.array(kept).reshape(-1, 3, 3)
