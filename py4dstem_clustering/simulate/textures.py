"""Where grains, lamellae, layers and particles of simulated samples lie, and how foils bend."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .grains import smooth_fields


def as_regions(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Regions ``(Rx, Ry, N + 1)`` of labels ``(Rx, Ry)``: 1 inside, 0 outside; -1 is the last."""
    n = labels.max(initial=-1) + 1
    return np.asarray(labels[..., None] == [*range(n), -1], dtype=np.float64)


def place_discs(
    shape: tuple[int, int],
    radii: tuple[float, float],
    distance: float,
    rng: np.random.Generator,
    n: int | None = None,
    margin: float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres ``(N, 2)`` and radii ``(N,)`` of random discs, as many as find room.

    `distance` is the smallest one between two centres, relative to the sum of their radii;
    `margin` that to the border of the scan, relative to the radius. `n` limits the number.
    """
    centres, sizes = np.empty((0, 2)), np.empty(0)
    for _ in range(3000):
        if n is not None and len(sizes) == n:
            break
        size = rng.uniform(*radii)
        edge = margin * size
        room = np.maximum(np.array(shape) - 1 - 2 * edge, 0)
        centre = (np.array(shape) - 1 - room) / 2 + room * rng.random(2)
        if (np.hypot(*(centres - centre).T) >= distance * (sizes + size)).all():
            centres, sizes = np.vstack([centres, centre]), np.append(sizes, size)
    return centres, sizes


def cells(
    shape: tuple[int, int], radii: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Labels ``(Rx, Ry)`` of grains with straight borders that fill the scan."""
    centres, sizes = place_discs(shape, radii, 0.85, rng)
    x, y = np.indices(shape)
    power = [(x - c[0]) ** 2 + (y - c[1]) ** 2 - r**2 for c, r in zip(centres, sizes, strict=True)]
    return numbered(np.argmin(power, axis=0))


def numbered(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The same regions, numbered from 0 without gaps."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def stripes(
    shape: tuple[int, int], widths: tuple[float, float], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels ``(Rx, Ry)`` of parallel bands with random widths, and the direction across them."""
    angle = rng.uniform(0, np.pi)
    across = np.array([np.cos(angle), np.sin(angle)])
    place = np.tensordot(across, np.indices(shape), 1)
    place -= place.min()
    edges = np.cumsum(rng.uniform(*widths, 2 + int(place.max() / widths[0])))
    # The last band gets what would be a narrow rest.
    edges = edges[edges < place.max() - widths[0]]
    return numbered(np.searchsorted(edges, place)), across


def ramp(
    shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A map ``(Rx, Ry)`` that rises evenly from 0 to 1 in a random direction, and the direction."""
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    place = np.tensordot(along, np.indices(shape), 1)
    return (place - place.min()) / max(np.ptp(place), 1), along


def touching(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of N regions touch which, ``(N, N)``; corners count."""
    n = labels.max() + 1
    found = np.zeros((n, n), dtype=bool)
    pairs = (
        (labels[1:], labels[:-1]),
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    )
    for a, b in pairs:
        found[a, b] = found[b, a] = True
    np.fill_diagonal(found, False)
    return found


def distinct_angles(
    labels: NDArray[Any], period: float, smallest: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """An angle ``(N,)`` for each region, degrees; those of touching regions differ by `smallest`.

    Angles are the same modulo `period`. Where no angle is far enough from all, the farthest of 100
    is taken.
    """
    near = touching(labels)
    angles = np.zeros(len(near))
    for k in range(len(near)):
        others = angles[:k][near[k, :k]]
        tried = rng.uniform(0, period, 100)
        gap = np.abs((tried[:, None] - others + period / 2) % period - period / 2)
        gap = gap.min(axis=1, initial=period)
        good = np.flatnonzero(gap >= smallest)
        angles[k] = tried[good[0] if good.size else gap.argmax()]
    return angles


def bend(shape: tuple[int, int], degrees: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Tilts ``(Rx, Ry, 2)`` about the image axes, radians: a sheet bent in both directions.

    Along the direction in which it bends most, tilts run from about minus to plus `degrees`.
    """
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    axes = np.indices(shape) - (np.array(shape)[:, None, None] - 1) / 2
    half = np.abs(along) @ (np.array(shape) - 1) / 2
    u = np.tensordot(along, axes, 1) / max(half, 1)
    v = np.tensordot([-along[1], along[0]], axes, 1) / max(half, 1)
    main = u + 0.2 * (u**2 - 0.5)
    side = 0.4 * v * rng.choice([-1, 1])
    turn = main[..., None] * [-along[1], along[0]] + side[..., None] * along
    return np.asarray(np.deg2rad(degrees) * turn)


def varied(
    shape: tuple[int, int], mean: float, spread: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A smooth map ``(Rx, Ry)`` from ``(1 - spread)`` to ``(1 + spread)`` times its mean."""
    return np.asarray(mean * (1 + spread * (2 * smooth_fields(shape, 1, rng)[..., 0] - 1)))


def looking_along(
    zone: tuple[int, int, int], angle: float, tilt: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Orientation matrix of a cubic crystal seen about along `zone`.

    It is turned by `angle` about the beam, and off the zone by `tilt`, both in degrees.
    """
    z = np.array(zone) / np.linalg.norm(zone)
    x = np.cross(z, [0, 0, 1] if abs(z[2]) < 0.9 else [0, 1, 0])
    x /= np.linalg.norm(x)
    columns = np.stack([x, np.cross(z, x), z], axis=1)
    direction = rng.uniform(0, 2 * np.pi)
    off = np.deg2rad(tilt) * np.array([np.cos(direction), np.sin(direction), 0])
    turn = Rotation.from_rotvec([0, 0, np.deg2rad(angle)]) * Rotation.from_rotvec(off)
    return np.asarray(columns @ turn.as_matrix())
