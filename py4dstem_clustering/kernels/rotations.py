"""Rotations of crystals: symmetry, the angle between two orientations, and steady rotation.

Orientation matrices are those of py4DSTEM: the columns of ``M`` are the image axes and the beam in
Cartesian coordinates of the crystal. So ``S @ M`` is the same orientation as ``M`` for each
rotation ``S`` of the symmetry.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

CELL_TOLERANCE = 1e-3
"""Largest difference of atoms (fractions of the cell) or lengths (relative) taken as equal.

A larger value finds more symmetry in a cell that is slightly distorted.
"""

MAX_STARTS = 600
"""Largest number of pairs of orientations that a steady rotation is guessed from.

A larger value finds rotations with more wrong orientations among the right ones, and takes longer.
"""

_ROTATIONS_PER_CHUNK = 2**14


def symmetry_rotations(
    lattice: NDArray[Any], positions: NDArray[Any], numbers: NDArray[Any]
) -> NDArray[np.float64]:
    """Proper rotations ``(n, 3, 3)`` of the Laue class of a crystal, the identity first.

    Diffraction cannot tell orientations apart that differ by one of these rotations.

    Parameters
    ----------
    lattice : ndarray, (3, 3)
        The rows are the lattice vectors of a reduced or conventional cell.
    positions : ndarray, (n, 3)
        Atoms, in fractions of the lattice vectors.
    numbers : ndarray, (n,)
        Atomic number of each atom.
    """
    lattice = np.asarray(lattice, dtype=float)
    positions = np.asarray(positions, dtype=float) % 1
    numbers = np.asarray(numbers)
    metric = lattice @ lattice.T
    # Each row of a matrix is the image of a lattice vector, as a sum of lattice vectors.
    whole = np.array(list(product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    kept = np.abs(whole @ metric @ whole.transpose(0, 2, 1) - metric).max(axis=(1, 2))
    whole = whole[kept <= CELL_TOLERANCE * np.trace(metric)]
    found: list[NDArray[Any]] = []
    for change in whole:
        if _maps_onto_itself(positions @ change, positions, numbers):
            turn = lattice.T @ change.T @ np.linalg.inv(lattice.T)
            u, _, v = np.linalg.svd(turn * np.sign(np.linalg.det(turn)))
            turn = u @ v  # exactly orthogonal, although the cell is symmetric within a tolerance
            if not any(np.abs(turn - other).max() < 1e-3 for other in found):
                found.append(turn)
    found.sort(key=lambda turn: -np.trace(turn))
    return np.array(found)


def _maps_onto_itself(moved: NDArray[Any], positions: NDArray[Any], numbers: NDArray[Any]) -> bool:
    """Whether all atoms fall on atoms of the same kind after one common translation."""
    rarest = min(np.unique(numbers), key=lambda kind: (numbers == kind).sum())
    same = numbers == rarest
    for target in positions[same]:
        gap = (moved + target - moved[same][0])[:, None] - positions
        distance = np.abs(gap - np.round(gap)).max(axis=2)
        if ((distance < CELL_TOLERANCE) & (numbers[:, None] == numbers)).any(axis=1).all():
            return True
    return False


def misorientation_angle(
    a: NDArray[Any], b: NDArray[Any], symmetry: NDArray[Any]
) -> NDArray[np.float64]:
    """Smallest angle ``(...)``, radian, between orientations `a` and `b` ``(..., 3, 3)``.

    `a` and `b` broadcast; `symmetry` ``(n, 3, 3)`` is from `symmetry_rotations`.
    """
    between = np.matmul(a, np.swapaxes(b, -1, -2))
    flat = between.reshape(-1, 3, 3)
    out = np.empty(len(flat))
    operators = symmetry.transpose(0, 2, 1).reshape(-1, 9).T  # dot products give the traces
    for start in range(0, len(flat), _ROTATIONS_PER_CHUNK):
        piece = slice(start, start + _ROTATIONS_PER_CHUNK)
        traces = flat[piece].reshape(-1, 9) @ operators
        out[piece] = _angle_and_axis(symmetry[traces.argmax(axis=1)] @ flat[piece])[0]
    return out.reshape(between.shape[:-2])


def _angle_and_axis(turns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Angles, radian, of rotations ``(..., 3, 3)``; axes ``(..., 3)`` times twice the sine."""
    out = np.stack(
        [
            turns[..., 2, 1] - turns[..., 1, 2],
            turns[..., 0, 2] - turns[..., 2, 0],
            turns[..., 1, 0] - turns[..., 0, 1],
        ],
        axis=-1,
    )
    # Uses sine and cosine: the cosine alone gives angles near 0 and 180 degrees to 1e-8 only.
    trace = np.trace(turns, axis1=-2, axis2=-1)
    return np.arctan2(np.linalg.norm(out, axis=-1), trace - 1), out


def misorientation_axis(
    a: NDArray[Any], b: NDArray[Any], symmetry: NDArray[Any]
) -> tuple[float, NDArray[Any]]:
    """Angle, radian, and axis ``(3,)`` of the smallest rotation between orientations ``(3, 3)``.

    The axis is in Cartesian coordinates of the crystal. Of all equivalent axes, the one with the
    largest components is returned, z before y before x; NaN where the orientations are the same.
    """
    turns = symmetry @ (a @ b.T)
    best = turns[np.trace(turns, axis1=1, axis2=2).argmax()]
    radians, twice = _angle_and_axis(best)
    angle = float(radians)
    if angle < 1e-7:
        return angle, np.full(3, np.nan)
    if np.pi - angle < 1e-4:  # no antisymmetric part: the axis is the eigenvector to eigenvalue 1
        values, vectors = np.linalg.eigh((best + best.T) / 2)
        axis = vectors[:, values.argmax()]
    else:
        axis = twice / np.linalg.norm(twice)
    # Equivalent by the symmetry, and by an exchange of the two crystals.
    equivalent = np.concatenate([symmetry @ axis, -(symmetry @ axis)])
    order = np.lexsort(np.round(equivalent, 6).T)
    return angle, equivalent[order[-1]]


# --- rotation --------------------------------------------------------------------------------


class SteadyRotation(NamedTuple):
    """A rotation about one axis at one speed."""

    velocity: NDArray[np.float64]
    """Rotation vector ``(3,)``, radian a time unit, along the image x and y axes and the beam."""
    error: float
    """Standard error of the length of `velocity`, radian a time unit."""
    angles: NDArray[np.float64]
    """Angle ``(n,)`` about the axis since the first orientation, radian."""
    used: NDArray[np.bool_]
    """Orientations ``(n,)`` that are within the tolerance of the rotation."""


def steady_rotation(
    matrices: NDArray[Any], times: NDArray[Any], symmetry: NDArray[Any], tolerance: float
) -> SteadyRotation:
    """Steady rotation that most orientations ``(n, 3, 3)`` follow within `tolerance`, radian.

    Each pair of orientations that are 1, 2, 4, ... places apart in the list gives a guess. The best
    guess is then fitted to the orientations near to it (Gauss-Newton). All numbers are NaN where
    fewer than two orientations follow a rotation.
    """
    n = len(matrices)
    nothing = SteadyRotation(
        np.full(3, np.nan), np.nan, np.full(n, np.nan), np.zeros(n, dtype=bool)
    )
    if n < 2:
        return nothing
    pairs = [(i, i + 2**p) for p in range(n.bit_length()) for i in range(n - 2**p)]
    pairs = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, MAX_STARTS).astype(int))]
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
            return nothing
        slopes = np.concatenate(
            [
                _rotation(after[:, None] * velocity),
                _left_jacobian(after[:, None] * velocity) * after[:, None, None],
            ],
            axis=2,
        )
        # Cauchy weights, on the scale of the median residual of the orientations in use. With three
        # of them the fit would go through two, and leave out the third.
        spread = max(np.median(size[used]), 1e-9) if used.sum() > 3 else np.inf
        weight = used / (1 + (size / (3 * spread)) ** 2)
        square = np.einsum("n,nij,nik->jk", weight, slopes, slopes)
        target = np.einsum("n,nij,ni->j", weight, slopes, rest)
        inverse = np.linalg.pinv(square)
        step = inverse @ target
        freedom = 3 * used.sum() - 6
        if freedom > 0:
            left = rest - slopes @ step
            # Weights are near 1 but for the largest residuals, which they would make too small.
            freedom = freedom * weight[used].mean()
            covariance = inverse * (weight * (left**2).sum(axis=1)).sum() / freedom
        base = _turned(base, step[None, :3])[0]
        velocity = velocity + step[3:]
        if np.abs(step[:3]).max() < 1e-10 and np.abs(step[3:]).max() * np.ptp(times) < 1e-10:
            break
    rate = np.linalg.norm(velocity)
    axis = velocity / rate if rate > 0 else np.array([0.0, 0.0, 1.0])
    error = float(np.sqrt(axis @ covariance[3:, 3:] @ axis))
    angles = rate * (times - times[0]) + (rest - rest[0]) @ axis
    return SteadyRotation(velocity, error, angles, used)


def _rotation(vectors: NDArray[Any]) -> NDArray[Any]:
    return Rotation.from_rotvec(vectors).as_matrix()


def _turned(matrices: NDArray[Any], vectors: NDArray[Any]) -> NDArray[Any]:
    """Orientations after rotations by vectors ``(n, 3)`` in the axes of the image."""
    return matrices @ np.swapaxes(_rotation(vectors), -1, -2)


def _turns(a: NDArray[Any], b: NDArray[Any], symmetry: NDArray[Any]) -> NDArray[Any]:
    """Smallest rotations from `a` to `b` ``(n, 3, 3)``: vectors ``(n, 3)`` in the image axes."""
    # The smallest angle has the largest trace of b^T S^T a, over all rotations S of the symmetry.
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
    """Rotations ``(n, 3)`` from a steady rotation through orientation `start` to `matrices`."""
    expected = _turned(matrices[start], (times - times[start])[:, None] * velocity)
    return _turns(expected, matrices, symmetry)


def _left_jacobian(vectors: NDArray[Any]) -> NDArray[Any]:
    """Jacobian J ``(n, 3, 3)`` of rotations by vectors v: exp(v + d) = exp(J d) exp(v)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    safe = np.maximum(angle, 1e-9)
    axis = vectors / safe[:, 0]
    x, y, z = axis.T
    zero = np.zeros(len(x))
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine = np.where(angle > 1e-6, np.sin(safe) / safe, 1)
    along = axis[:, :, None] * axis[:, None]
    return sine * np.eye(3) + (1 - sine) * along + (1 - np.cos(angle)) / safe * cross
