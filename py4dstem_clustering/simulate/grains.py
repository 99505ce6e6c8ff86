"""Round grains of a simulated scan: where they lie, how they are related, and how they bend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

COVERED_SHARE = 0.6
"""Share of the scan that all grains would cover without touching, if they find room.

A larger value makes larger grains, of which more touch.
"""

RADIUS_RANGE = (0.7, 1.3)
"""Smallest and largest radius of grains and particles, relative to the mean radius.

A wider range makes sizes less equal.
"""

MIN_DISTANCE = 0.8
"""Distance, at least, between the centres of two grains, relative to the sum of their radii.

Below 1, some grains touch along a straight border; a larger value leaves fewer of them.
"""


class Grains(NamedTuple):
    """Round grains; touching ones share a straight border, or lie on top of each other."""

    shares: NDArray[np.float64]
    """Shares ``(Rx, Ry, N + 1)`` of the grains, and of the liquid (last)."""
    centres: NDArray[np.float64]
    """Centre of each grain ``(N, 2)``, scan positions."""
    radii: NDArray[np.float64]
    """Radius of each grain ``(N,)``, scan positions."""


class Lattice(NamedTuple):
    """The lattice of one grain: its orientation, its bend and its strain."""

    orientation: NDArray[np.float64]
    """Orientation matrix ``(3, 3)`` in the middle of the bend."""
    axis: NDArray[np.float64]
    """Unit vector ``(3,)`` of the bend, in the axes of the image."""
    angles: NDArray[np.float64]
    """Angle ``(Rx, Ry)`` by which the lattice is turned about the axis, degrees."""
    strain: NDArray[np.float64]
    """``e_xx, e_yy, e_xy``."""

    def matrices(self, angles: Any = None) -> NDArray[np.float64]:
        """Orientation matrices ``(..., 3, 3)`` where the lattice is turned; without angles, all."""
        turned = np.deg2rad(np.asarray(self.angles if angles is None else angles, dtype=float))
        vectors = turned.reshape(-1, 1) * self.axis
        matrices: NDArray[np.float64] = self.orientation @ Rotation.from_rotvec(vectors).as_matrix()
        return matrices.reshape(*turned.shape, 3, 3)


def largest_share(shares: NDArray[Any]) -> NDArray[np.int32]:
    """Labels ``(Rx, Ry)`` of shares ``(Rx, Ry, N + 1)``; -1 where the liquid (last) is largest."""
    labels = shares.argmax(axis=2).astype(np.int32)
    labels[labels == shares.shape[2] - 1] = -1
    return labels


def blur_shares(shares: NDArray[Any], probe_blur: float) -> NDArray[Any]:
    """Shares ``(Rx, Ry, N + 1)`` blurred by a probe of this standard deviation; sums stay 1."""
    if probe_blur == 0:
        return shares
    shares = gaussian_filter(shares, (probe_blur, probe_blur, 0), mode="nearest")
    return shares / shares.sum(axis=2, keepdims=True)


def place_grains(
    shape: tuple[int, int], n_grains: int, overlap: float, rng: np.random.Generator
) -> Grains:
    """Place round grains, some of which touch.

    Parameters
    ----------
    shape : (Rx, Ry)
    n_grains : int
        Number of grains, as far as they find room.
    overlap : float
        By how much centres may be closer than `MIN_DISTANCE`, in units of the sum of radii. Above
        0, grains lie on top of each other instead of sharing a border.
    rng : numpy.random.Generator
    """
    if n_grains == 0:
        return Grains(np.ones((*shape, 1)), np.empty((0, 2)), np.empty(0))
    radius = np.sqrt(COVERED_SHARE * shape[0] * shape[1] / (np.pi * n_grains))
    centres: list[NDArray[Any]] = []
    radii: list[float] = []
    for _ in range(1000 * n_grains):
        if len(centres) == n_grains:
            break
        centre = rng.uniform(0, shape)
        size = radius * rng.uniform(*RADIUS_RANGE)
        if all(
            np.hypot(*(centre - c)) > (MIN_DISTANCE - overlap) * (size + r)
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
        # Thickness of a sphere, in units that cancel.
        shares = radii * np.sqrt(np.maximum(1 - distance**2, 0))
        shares /= np.maximum(shares.sum(axis=2, keepdims=True), 1e-12)
    else:
        nearest = distance.argmin(axis=2)[..., None] == np.arange(len(centres))
        shares = (nearest & inside).astype(float)
    # Grains that have no position are left out.
    kept = shares.any(axis=(0, 1))
    liquid = ~inside.any(axis=2, keepdims=True)
    shares = np.concatenate([shares[..., kept], liquid.astype(float)], axis=2)
    return Grains(shares, np.array(centres)[kept], np.array(radii)[kept])


def relate_grains(
    orientations: NDArray[Any],
    shares: NDArray[Any],
    twins: float,
    small_angles: float,
    small_angle: float,
    rng: np.random.Generator,
) -> None:
    """Give some grains an orientation that is related to that of a neighbour, in place.

    The neighbour is the earlier grain that the grain touches most. With the chance `twins`, the
    grain becomes its twin; with the chance `small_angles`, it differs by `small_angle` degrees.
    """
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
            # Two grains that touch must not get the same lattice as twins of a third grain.
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
    """Whether a symmetry of the cube turns one orientation into the other."""
    turn = np.abs(a @ b.T)
    return bool(np.all((turn < 1e-6) | (turn > 1 - 1e-6)))


def bend_places(
    shares: NDArray[Any], rng: np.random.Generator
) -> list[tuple[NDArray[np.float64], float]]:
    """For each grain, `places_along` a direction of its own."""
    return [
        places_along(shares[..., k], rng.uniform(0, 2 * np.pi)) for k in range(shares.shape[2] - 1)
    ]


def places_along(share: NDArray[Any], angle: float) -> tuple[NDArray[np.float64], float]:
    """Place ``(Rx, Ry)`` along a direction of a grain, and half the length of the grain.

    The place runs from -1 at one end to 1 at the other; the length is in scan positions.
    """
    x, y = np.indices(share.shape)
    along = x * np.cos(angle) + y * np.sin(angle)
    inside = along[share > 0]
    middle, half = (inside.max() + inside.min()) / 2, max(np.ptp(inside) / 2, 0.5)
    return np.clip((along - middle) / half, -1, 1), float(half)


def smooth_fields(shape: tuple[int, int], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth random maps ``(Rx, Ry, n)`` with values from 0 to 1."""
    noise = gaussian_filter(rng.standard_normal((*shape, n)), (min(shape) / 8,) * 2 + (0,))
    noise -= noise.min(axis=(0, 1))
    return noise / np.maximum(noise.max(axis=(0, 1)), 1e-12)
