"""Rotations of crystals: symmetry of a structure, and the angle between two orientations.

An orientation matrix is as py4DSTEM writes it: its columns are the image axes and the beam in
Cartesian coordinates of the crystal, so ``S @ M`` is the same orientation for each rotation ``S``
of the symmetry.
"""

from __future__ import annotations

from itertools import product

import numpy as np

_CHUNK = 2**14

# Of positions of atoms, in fractions of the cell; of lengths, relative.
_TOLERANCE = 1e-3


def symmetry_rotations(
    lattice: np.ndarray, positions: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
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


def _maps_onto_itself(moved: np.ndarray, positions: np.ndarray, numbers: np.ndarray) -> bool:
    """Whether atoms fall on atoms of their kind, up to one common translation."""
    rarest = min(np.unique(numbers), key=lambda kind: (numbers == kind).sum())
    same = numbers == rarest
    for target in positions[same]:
        gap = (moved + target - moved[same][0])[:, None] - positions
        distance = np.abs(gap - np.round(gap)).max(axis=2)
        if ((distance < _TOLERANCE) & (numbers[:, None] == numbers)).any(axis=1).all():
            return True
    return False


def misorientation_angle(a: np.ndarray, b: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
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


def _angle_and_axis(turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    a: np.ndarray, b: np.ndarray, symmetry: np.ndarray
) -> tuple[float, np.ndarray]:
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
