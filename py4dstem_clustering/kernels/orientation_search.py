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
"""Width of relrods in the search, 1/Angstrom: wide, so that a step of zone axes does no harm."""

POWER = 0.25
"""Power of intensities in the search: places count much, intensities little."""

APART_DEG = 4.0
"""Orientations nearer than this to a better one are not candidates, degrees."""

_N_RANKED = 400

_MIN_WEIGHT = 0.1
"""Smallest weight of a disk of a zone axis; the strongest has 1."""

_MOST_DISKS = 100
"""Largest number of disks of a zone axis; of more, the strongest are taken."""

_MIN_NORM = 0.3
"""A zone axis with hardly a disk in the window cannot be ahead by its norm."""


class Plan(NamedTuple):
    """Expected disks of all zone axes, in a polar image."""

    matrices: NDArray[Any]
    """``(z, 3, 3)``, an orientation for each zone axis."""
    disks: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
    """For each: ring, turn and weight of the disks."""
    norms: NDArray[Any]
    """``(z, N_TURNS)``, root of the sum of squared weights of the disks in the window."""
    grid: NDArray[Any]
    """Places ``(rings, N_TURNS, 2)`` of the polar image, 1/Angstrom."""


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


def make_plan(lattice: Lattice, symmetry: NDArray[Any], window: Window, longest: float) -> Plan:
    """Plan of a lattice for patterns of disks up to the scattering vector `longest`."""
    ring = np.arange(int(longest / RING) + 2) * RING
    angle = np.arange(N_TURNS) * 2 * np.pi / N_TURNS
    grid = np.stack([ring[:, None] * np.cos(angle), ring[:, None] * np.sin(angle)], axis=2)
    seen = _turned_views(window.holds(grid))
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
        keep = (weight > _MIN_WEIGHT) & (radius < longest)
        if keep.sum() > _MOST_DISKS:
            keep &= weight >= np.sort(weight[keep])[-_MOST_DISKS]
        angle = np.arctan2(places[0, keep, 1], places[0, keep, 0])
        turn = np.rint(angle / (2 * np.pi) * N_TURNS).astype(int) % N_TURNS
        rings = np.rint(radius[keep] / RING).astype(int)
        disks.append((rings, turn, weight[keep].astype(np.float32)))
    norms = np.sqrt([_turned_sums(seen, *one[:2], one[2] ** 2) for one in disks])
    return Plan(matrices, disks, np.maximum(norms, _MIN_NORM), grid)


def _turned_views(image: NDArray[Any]) -> NDArray[np.float32]:
    """A polar image ``(rings, N_TURNS)`` turned by each step: ``(rings, N_TURNS, N_TURNS)``."""
    twice = np.hstack([image, image]).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(twice, N_TURNS, axis=1)


def _turned_sums(
    views: NDArray[Any], rings: NDArray[Any], turn: NDArray[Any], weight: NDArray[Any]
) -> NDArray[Any]:
    """Weighted sums ``(N_TURNS,)`` of an image at disks that turn; see `_turned_views`."""
    sums: NDArray[Any] = weight @ views[rings, turn]
    return sums


def search(
    plan: Plan,
    symmetry: NDArray[Any],
    places: NDArray[Any],
    weights: NDArray[Any],
    n: int,
) -> NDArray[np.float64]:
    """Up to `n` orientations ``(m, 3, 3)`` whose disks lie at `places` ``(p, 2)``, best first.

    `weights` ``(p,)`` say how much each place counts.
    """
    image = np.zeros(plan.grid.shape[:2])
    for place, weight in zip(places, weights, strict=True):
        squared = ((plan.grid - place) ** 2).sum(axis=2)
        image = np.maximum(image, weight * np.exp(-0.5 * squared / BLUR**2))
    views = _turned_views(image)
    score = np.array([_turned_sums(views, *one) for one in plan.disks]) / plan.norms
    kept: list[NDArray[Any]] = []
    for best in np.argsort(-score, axis=None, kind="stable")[:_N_RANKED]:
        zone, turn = divmod(int(best), N_TURNS)
        angle = 2 * np.pi * turn / N_TURNS
        cosine, sine = np.cos(angle), np.sin(angle)
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
