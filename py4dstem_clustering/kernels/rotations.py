"""Rotations of crystals: symmetry of a structure, and the angle between two orientations.

An orientation matrix is as py4DSTEM writes it: its columns are the image axes and the beam in
Cartesian coordinates of the crystal, so ``S @ M`` is the same orientation for each rotation ``S``
of the symmetry.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

_CHUNK = 2**14

# Of positions of atoms, in fractions of the cell; of lengths, relative.
_TOLERANCE = 1e-3


def symmetry_rotations(
    lattice: NDArray[Any], positions: NDArray[Any], numbers: NDArray[Any]
) -> NDArray[Any]:
    """Proper rotations ``(n, 3, 3)`` that diffraction cannot tell apart, the identity first.

    Those of the Laue class: each operation of the point group, or its inverse image.

    Parameters
    ----------
    lattice : (3, 3), the rows are the lattice vectors of a reduced or conventional cell.
    positions : (n, 3), atoms in fractions of the lattice vectors.
    numbers : (n,), what they are.
    """
    lattice = np.asarray(lattice, dtype=float)
    positions = np.asarray(positions, dtype=float) % 1
    numbers = np.asarray(numbers)
    metric = lattice @ lattice.T
    # Rows are what the lattice vectors become, in lattice vectors.
    whole = np.array(list(product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    kept = np.abs(whole @ metric @ whole.transpose(0, 2, 1) - metric).max(axis=(1, 2))
    whole = whole[kept <= _TOLERANCE * np.trace(metric)]
    found = []
    for change in whole:
        if _maps_onto_itself(positions @ change, positions, numbers):
            turn = lattice.T @ change.T @ np.linalg.inv(lattice.T)
            u, _, v = np.linalg.svd(turn * np.sign(np.linalg.det(turn)))
            turn = u @ v  # exactly orthogonal, where the cell is so within the tolerance only
            if not any(np.abs(turn - other).max() < 1e-3 for other in found):
                found.append(turn)
    found.sort(key=lambda turn: -np.trace(turn))
    return np.array(found)


def _maps_onto_itself(moved: NDArray[Any], positions: NDArray[Any], numbers: NDArray[Any]) -> bool:
    """Whether atoms fall on atoms of their kind, up to one common translation."""
    rarest = min(np.unique(numbers), key=lambda kind: (numbers == kind).sum())
    same = numbers == rarest
    for target in positions[same]:
        gap = (moved + target - moved[same][0])[:, None] - positions
        distance = np.abs(gap - np.round(gap)).max(axis=2)
        if ((distance < _TOLERANCE) & (numbers[:, None] == numbers)).any(axis=1).all():
            return True
    return False


def misorientation_angle(a: NDArray[Any], b: NDArray[Any], symmetry: NDArray[Any]) -> NDArray[Any]:
    """Smallest angle, radian, that turns orientations `a` ``(..., 3, 3)`` into `b`; broadcast."""
    between = np.matmul(a, np.swapaxes(b, -1, -2))
    flat = between.reshape(-1, 3, 3)
    out = np.empty(len(flat))
    operators = symmetry.transpose(0, 2, 1).reshape(-1, 9).T  # trace of a product
    for start in range(0, len(flat), _CHUNK):
        piece = slice(start, start + _CHUNK)
        traces = flat[piece].reshape(-1, 9) @ operators
        out[piece] = _angle_and_axis(symmetry[traces.argmax(axis=1)] @ flat[piece])[0]
    return out.reshape(between.shape[:-2])


def _angle_and_axis(turns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Angles of rotations ``(..., 3, 3)``; and their axes ``(..., 3)``, times twice the sine."""
    out = np.stack(
        [
            turns[..., 2, 1] - turns[..., 1, 2],
            turns[..., 0, 2] - turns[..., 2, 0],
            turns[..., 1, 0] - turns[..., 0, 1],
        ],
        axis=-1,
    )
    # By the sine too: the cosine alone knows small angles, and those near 180 degrees, to 1e-8.
    trace = np.trace(turns, axis1=-2, axis2=-1)
    return np.arctan2(np.linalg.norm(out, axis=-1), trace - 1), out


def misorientation_axis(
    a: NDArray[Any], b: NDArray[Any], symmetry: NDArray[Any]
) -> tuple[float, NDArray[Any]]:
    """Angle, radian, and axis of the smallest rotation between two orientations ``(3, 3)``.

    The axis is in Cartesian coordinates of the crystal: of all equivalent ones that with the
    largest components, z before y before x. NaN where the orientations are the same.
    """
    turns = symmetry @ (a @ b.T)
    best = turns[np.trace(turns, axis1=1, axis2=2).argmax()]
    angle, twice = _angle_and_axis(best)
    angle = float(angle)
    if angle < 1e-7:
        return angle, np.full(3, np.nan)
    if np.pi - angle < 1e-4:  # no antisymmetric part: the axis is the eigenvector of 1
        values, vectors = np.linalg.eigh((best + best.T) / 2)
        axis = vectors[:, values.argmax()]
    else:
        axis = twice / np.linalg.norm(twice)
    # Conjugation by the symmetry, and exchange of the two crystals.
    equivalent = np.concatenate([symmetry @ axis, -(symmetry @ axis)])
    order = np.lexsort(np.round(equivalent, 6).T)
    return angle, equivalent[order[-1]]


# --- rotation --------------------------------------------------------------------------------


class Steady(NamedTuple):
    """A rotation that goes on steadily."""

    velocity: NDArray[Any]  # (3,), radian a time unit, about its direction in image x, y and beam
    error: float  # standard error of its length
    angles: NDArray[Any]  # (n,), radian about it since the first
    used: NDArray[Any]  # (n,), bool: near to it


_MOST_STARTS = 600
"""Most guesses of a rotation that are tried."""


def steady_rotation(
    matrices: NDArray[Any], times: NDArray[Any], symmetry: NDArray[Any], tolerance: float
) -> Steady:
    """The steady rotation that most orientations (n, 3, 3) keep within `tolerance`, radian.

    Guessed from every pair of orientations that are 1, 2, 4, ... apart, then fitted to those that
    are near to it (Gauss-Newton).
    """
    n = len(matrices)
    nothing = np.full(3, np.nan), np.nan, np.full(n, np.nan), np.zeros(n, dtype=bool)
    if n < 2:
        return Steady(*nothing)
    pairs = [(i, i + 2**p) for p in range(n.bit_length()) for i in range(n - 2**p)]
    pairs = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, _MOST_STARTS).astype(int))]
    best, start, velocity = np.inf, 0, np.zeros(3)
    for i, j in pairs:
        turn = _turns(matrices[i][None], matrices[j][None], symmetry)[0] / (times[j] - times[i])
        rest = np.linalg.norm(_rest(matrices, times, i, turn, symmetry), axis=1)
        cost = (np.minimum(rest, tolerance) ** 2).sum()
        if cost < best * (1 - 1e-9):
            best, start, velocity = cost, i, turn
    middle = times.mean()
    base = _turned(matrices[start], (middle - times[start]) * velocity[None])[0]
    after = times - middle
    used = np.zeros(n, dtype=bool)
    covariance = np.full((6, 6), np.nan)
    rest = np.zeros((n, 3))
    for _ in range(30):
        rest = _turns(_turned(base, after[:, None] * velocity), matrices, symmetry)
        size = np.linalg.norm(rest, axis=1)
        used = size <= tolerance
        if used.sum() < 2:
            return Steady(*nothing)
        slopes = np.concatenate(
            [
                _rotation(after[:, None] * velocity),
                _left_jacobian(after[:, None] * velocity) * after[:, None, None],
            ],
            axis=2,
        )
        # Cauchy, by the spread of those that are near.
        spread = max(np.median(size[used]), 1e-9)
        weight = used / (1 + (size / (3 * spread)) ** 2)
        square = np.einsum("n,nij,nik->jk", weight, slopes, slopes)
        target = np.einsum("n,nij,ni->j", weight, slopes, rest)
        inverse = np.linalg.pinv(square)
        step = inverse @ target
        freedom = 3 * used.sum() - 6
        if freedom > 0:
            left = rest - slopes @ step
            # Weights are below 1 only for the few that are wrong.
            covariance = inverse * (weight * (left**2).sum(axis=1)).sum() / freedom
        base = _turned(base, step[None, :3])[0]
        velocity = velocity + step[3:]
        if np.abs(step[:3]).max() < 1e-10 and np.abs(step[3:]).max() * np.ptp(times) < 1e-10:
            break
    rate = np.linalg.norm(velocity)
    axis = velocity / rate if rate > 0 else np.array([0.0, 0.0, 1.0])
    error = float(np.sqrt(axis @ covariance[3:, 3:] @ axis))
    angles = rate * (times - times[0]) + (rest - rest[0]) @ axis
    return Steady(velocity, error, angles, used)


def _rotation(vectors: NDArray[Any]) -> NDArray[Any]:
    return Rotation.from_rotvec(vectors).as_matrix()


def _turned(matrices: NDArray[Any], vectors: NDArray[Any]) -> NDArray[Any]:
    """Orientations after rotations ``(n, 3)``, vectors in the axes of the image."""
    return matrices @ np.swapaxes(_rotation(vectors), -1, -2)


def _turns(a: NDArray[Any], b: NDArray[Any], symmetry: NDArray[Any]) -> NDArray[Any]:
    """Smallest rotations (n, 3) from `a` to `b` (n, 3, 3), vectors in the axes of the image."""
    # The trace of b^T S^T a, for each operator of the symmetry.
    between = a @ np.swapaxes(b, -1, -2)
    operators = symmetry.reshape(-1, 9).T
    best = (between.reshape(-1, 9) @ operators).argmax(axis=1)
    turns = np.swapaxes(symmetry[best] @ b, -1, -2) @ a
    return Rotation.from_matrix(turns).as_rotvec()


def _rest(
    matrices: NDArray[Any],
    times: NDArray[Any],
    start: int,
    velocity: NDArray[Any],
    symmetry: NDArray[Any],
) -> NDArray[Any]:
    expected = _turned(matrices[start], (times - times[start])[:, None] * velocity)
    return _turns(expected, matrices, symmetry)


def _left_jacobian(vectors: NDArray[Any]) -> NDArray[Any]:
    """How a rotation changes with its vector, (n, 3, 3): exp(v + d) = exp(J d) exp(v)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    safe = np.maximum(angle, 1e-9)
    axis = vectors / safe[:, 0]
    x, y, z = axis.T
    zero = np.zeros(len(x))
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine = np.where(angle > 1e-6, np.sin(safe) / safe, 1)
    along = axis[:, :, None] * axis[:, None]
    return sine * np.eye(3) + (1 - sine) * along + (1 - np.cos(angle)) / safe * cross
