"""Angles between orientations, with the symmetry of the crystal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.rotations import misorientation_angle, symmetry_rotations

SIGMA_3_TWIN = (60.0, (1, 1, 1))
"""The common twin of cubic crystals: angle in degrees, and lattice direction of the axis."""

_MAX_ERROR_OF_ROTATION = 1e-3
"""Largest deviation of ``M @ M.T`` from the identity for a matrix M to pass as a rotation.

A larger limit accepts more rounding, but also matrices that are not rotations.
"""


def get_symmetry(crystal: Any) -> NDArray[np.float64]:
    """Rotations that leave the diffraction patterns of a crystal as they are.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal

    Returns
    -------
    ndarray, (n, 3, 3)
        Proper rotations of the Laue class in Cartesian coordinates of the crystal: 24 for cubic
        metals, 12 for hexagonal ones. They are found from the cell and its atoms, without pymatgen
        or an orientation plan.

    Raises
    ------
    TypeError
        If `crystal` is not a py4DSTEM Crystal.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_scan
    >>> gold = simulate_scan((2, 2), (16, 16), n_grains=0, disk_radius=1).crystal
    >>> get_symmetry(gold).shape
    (24, 3, 3)
    """
    for attribute in ("lat_real", "positions", "numbers"):
        if not hasattr(crystal, attribute):
            raise TypeError(
                f"crystal must be a py4DSTEM Crystal, not {type(crystal).__name__}; it has no "
                f"{attribute}"
            )
    return symmetry_rotations(crystal.lat_real, crystal.positions, crystal.numbers)


def misorientation(a: Any, b: Any, crystal: Any) -> NDArray[np.float64]:
    """Angle between orientations, the smallest that the symmetry of the crystal allows.

    Parameters
    ----------
    a, b : ndarray, (..., 3, 3)
        Orientation matrices as in ``OrientationMap.matrix``: the columns are the image x and y axes
        and the beam in Cartesian coordinates of the crystal. Shapes are broadcast.
    crystal : py4DSTEM.process.diffraction.Crystal

    Returns
    -------
    ndarray, (...)
        Degrees; NaN where a matrix is all zero (no match in py4DSTEM) or not finite.

    Raises
    ------
    ValueError
        If a matrix is not a rotation.
    TypeError
        If `crystal` is not a py4DSTEM Crystal.

    Examples
    --------
    >>> from py4dstem_clustering import simulate_scan
    >>> gold = simulate_scan((2, 2), (16, 16), n_grains=0, disk_radius=1).crystal
    >>> quarter_turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    >>> float(misorientation(np.eye(3), quarter_turn, gold))
    0.0
    """
    a, b = (_as_matrices(name, value) for name, value in (("a", a), ("b", b)))
    angle = np.rad2deg(misorientation_angle(a, b, get_symmetry(crystal)))
    return np.where(has_orientation(a) & has_orientation(b), angle, np.nan)


def _as_matrices(name: str, value: Any) -> NDArray[np.float64]:
    """Check that matrices are rotations; set them to zero where there is no orientation."""
    value = np.asarray(value, dtype=float)
    if value.shape[-2:] != (3, 3):
        raise ValueError(f"{name} of shape {value.shape} must hold 3 x 3 orientation matrices")
    defined = has_orientation(value)
    rotations = value[defined]
    error = np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3))
    if (error > _MAX_ERROR_OF_ROTATION).any() or (np.linalg.det(rotations) < 0).any():
        raise ValueError(f"{name} holds matrices that are no rotations")
    return np.where(defined[..., None, None], value, 0)


def has_orientation(matrices: NDArray[Any]) -> NDArray[np.bool_]:
    """Where matrices ``(..., 3, 3)`` are finite and not all zero; zero means no match."""
    return np.isfinite(matrices).all(axis=(-1, -2)) & matrices.any(axis=(-1, -2))
