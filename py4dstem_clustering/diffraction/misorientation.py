"""Angles between orientations, with the symmetry of the crystal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.rotations import misorientation_angle, symmetry_rotations

SIGMA_3 = (60.0, (1, 1, 1))
"""The twin of cubic crystals: angle, degrees, and axis, a lattice direction."""


def get_symmetry(crystal: Any) -> NDArray[Any]:
    """Rotations that leave the diffraction patterns of a crystal as they are.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal

    Returns
    -------
    ndarray, (n, 3, 3)
        Proper rotations of its Laue class in Cartesian coordinates of the crystal: 24 for cubic
        metals, 12 for hexagonal ones. Found from the cell and its atoms; needs neither pymatgen nor
        an orientation plan.

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


def misorientation(a: Any, b: Any, crystal: Any) -> NDArray[Any]:
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
        Degrees; NaN where a matrix is all zero (py4DSTEM's sign for no match) or not finite.

    Raises
    ------
    ValueError, TypeError
        If a matrix is no rotation.

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
    undefined = ~is_defined(a) | ~is_defined(b)
    return np.where(undefined, np.nan, angle)


def _as_matrices(name: str, value: Any) -> NDArray[Any]:
    value = np.asarray(value, dtype=float)
    if value.shape[-2:] != (3, 3):
        raise ValueError(f"{name} of shape {value.shape} must hold 3 x 3 orientation matrices")
    defined = is_defined(value)
    square = value[defined] @ np.swapaxes(value[defined], -1, -2)
    if (np.abs(square - np.eye(3)) > 1e-3).any() or (np.linalg.det(value[defined]) < 0).any():
        raise ValueError(f"{name} holds matrices that are no rotations")
    return np.where(defined[..., None, None], value, 0)


def is_defined(matrices: NDArray[Any]) -> NDArray[Any]:
    return np.isfinite(matrices).all(axis=(-1, -2)) & matrices.any(axis=(-1, -2))
