"""Orientations: from clusters to py4DSTEM's maps of the scan, and from grain to grain."""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import check_number
from .kernels.merging import grid_pairs
from .kernels.rotations import (
    misorientation_angle,
    misorientation_axis,
    symmetry_rotations,
)

BOUNDARIES = np.dtype(
    [
        ("label_a", np.int32),
        ("label_b", np.int32),
        ("length", np.float64),
        ("angle", np.float64),
        ("axis_x", np.float64),
        ("axis_y", np.float64),
        ("axis_z", np.float64),
        ("twin_deviation", np.float64),
        ("twin", bool),
    ]
)
"""Fields of `Clusters.get_boundaries`."""

SIGMA_3 = (60.0, (1, 1, 1))
"""The twin of cubic crystals: angle, degrees, and axis, a lattice direction."""


def get_symmetry(crystal: Any) -> np.ndarray:
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


def misorientation(a: Any, b: Any, crystal: Any) -> np.ndarray:
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
    undefined = ~_defined(a) | ~_defined(b)
    return np.where(undefined, np.nan, angle)


def _as_matrices(name: str, value: Any) -> np.ndarray:
    value = np.asarray(value, dtype=float)
    if value.shape[-2:] != (3, 3):
        raise ValueError(f"{name} of shape {value.shape} must hold 3 x 3 orientation matrices")
    defined = _defined(value)
    square = value[defined] @ np.swapaxes(value[defined], -1, -2)
    if (np.abs(square - np.eye(3)) > 1e-3).any() or (np.linalg.det(value[defined]) < 0).any():
        raise ValueError(f"{name} holds matrices that are no rotations")
    return np.where(defined[..., None, None], value, 0)


def _defined(matrices: np.ndarray) -> np.ndarray:
    return np.isfinite(matrices).all(axis=(-1, -2)) & matrices.any(axis=(-1, -2))


def check_orientation(orientation: Any, shapes: dict[str, tuple[int, int]]) -> str:
    """Which of some shapes an OrientationMap has, by name; ValueError if none of them."""
    for attribute in ("matrix", "corr", "num_matches"):
        if not hasattr(orientation, attribute):
            raise TypeError(
                f"orientation must be an OrientationMap from crystal.match_orientations(), not "
                f"{type(orientation).__name__}"
            )
    shape = tuple(orientation.matrix.shape[:2])
    for name, expected in shapes.items():
        if shape == tuple(expected):
            return name
    known = " or ".join(f"{expected} ({name})" for name, expected in shapes.items())
    raise ValueError(f"orientation of shape {shape} does not fit; it must be {known}")


def expand_orientation_map(labels: np.ndarray, per_cluster: Any) -> Any:
    """Core of `Clusters.expand_orientation_map`."""
    n = int(labels.max(initial=-1)) + 1
    check_orientation(per_cluster, {"one for each cluster": (n, 1)})
    out = type(per_cluster)(*labels.shape, per_cluster.num_matches)
    inside = labels >= 0
    for key, value in vars(per_cluster).items():
        if isinstance(value, np.ndarray) and value.shape[:2] == (n, 1):
            target = np.zeros(labels.shape + value.shape[2:], dtype=value.dtype)
            target[inside] = value[labels[inside], 0]
            setattr(out, key, target)
    # A matrix of zeros, which also py4DSTEM leaves where nothing matched, is no rotation: saving to
    # .ang and orix would fail (py4DSTEM 0.14.18). The correlation of 0 tells them apart.
    for key in ("matrix", "family"):
        value = getattr(out, key)
        empty = ~_defined(value)
        value[empty] = np.eye(3)
        out.corr[empty] = 0
    return out


def expand_bragg(labels: np.ndarray, per_cluster: Any) -> Any:
    """Core of `Clusters.expand_bragg`."""
    n = int(labels.max(initial=-1)) + 1
    if not hasattr(per_cluster, "raw") or not hasattr(per_cluster, "calibration"):
        raise TypeError(
            "per_cluster must be BraggVectors from averages.find_Bragg_disks(), not "
            f"{type(per_cluster).__name__}"
        )
    if tuple(per_cluster.shape) != (n, 1):
        raise ValueError(
            f"Bragg vectors of shape {tuple(per_cluster.shape)} must have shape {(n, 1)}, one "
            "entry for each cluster"
        )
    calibration = per_cluster.calibration.copy(name="calibration")
    inside = labels >= 0
    for key, value in list(calibration._params.items()):
        if key in ("_root_treepath", "_target_paths"):  # see datacube._calibration
            del calibration._params[key]
        elif isinstance(value, np.ndarray) and value.shape == (n, 1):
            # Outside clusters nobody asks, but a calibration knows no gaps.
            spread = np.full(labels.shape, np.nanmean(value) if n else np.nan)
            spread[inside] = value[labels[inside], 0]
            calibration._params[key] = spread
    out = type(per_cluster)(
        labels.shape, per_cluster.Qshape, name=per_cluster.name, calibration=calibration
    )
    for x, y in np.argwhere(inside):
        out._v_uncal[x, y].add(per_cluster._v_uncal[labels[x, y], 0].data)
    out.setcal(**{key: bool(value) for key, value in per_cluster.calstate.items()})
    return out


def cluster_orientations(labels: np.ndarray, orientation: Any) -> np.ndarray:
    """Best matrix of each cluster, (N, 3, 3), zeros where there is none.

    From a map of clusters; or of a map of the scan, the position with the highest correlation.
    """
    n = int(labels.max(initial=-1)) + 1
    shapes = {"each scan position": labels.shape, "each cluster": (n, 1)}
    which = check_orientation(orientation, shapes)
    matrix, corr = orientation.matrix[:, :, 0], orientation.corr[:, :, 0]
    corr = np.where(_defined(matrix), np.nan_to_num(corr), 0)
    out = np.zeros((n, 3, 3))
    if which == "each cluster":
        found = corr[:, 0] > 0
        out[found] = matrix[found, 0]
        return out
    for label in range(n):
        member = np.flatnonzero(labels == label)
        best = member[corr.ravel()[member].argmax()]
        if corr.flat[best] > 0:
            out[label] = matrix.reshape(-1, 3, 3)[best]
    return out


def find_boundaries(
    labels: np.ndarray,
    orientation: Any,
    crystal: Any,
    twin: Any,
    tolerance: float,
    pixel_size: float,
) -> np.ndarray:
    """Core of `Clusters.get_boundaries`."""
    symmetry = get_symmetry(crystal)
    if isinstance(twin, str):
        if twin != "auto":
            raise ValueError(f"twin={twin!r} must be 'auto', None, or (degrees, direction)")
        twin = SIGMA_3 if len(symmetry) == 24 else None
    turn = None if twin is None else _twin_rotation(twin, crystal)
    tolerance = check_number("tolerance", tolerance, 0, 180)
    matrices = cluster_orientations(labels, orientation)

    a, b, border = grid_pairs(labels >= 0)
    flat = labels.ravel()
    across = flat[a] != flat[b]
    low = np.minimum(flat[a], flat[b])[across].astype(np.int64)
    high = np.maximum(flat[a], flat[b])[across]
    # Cauchy and Crofton: crossings in four directions, those along diagonals of spacing 1 / sqrt 2.
    weight = np.pi / 8 * np.where(border[across] == 1, 1, np.sqrt(0.5))
    pairs, which = np.unique(low * len(matrices) + high, return_inverse=True)
    table = np.zeros(len(pairs), dtype=BOUNDARIES)
    table["label_a"], table["label_b"] = np.divmod(pairs, max(len(matrices), 1))
    table["length"] = np.bincount(which, weight, len(pairs)) * pixel_size
    for field in ("angle", "axis_x", "axis_y", "axis_z", "twin_deviation"):
        table[field] = np.nan
    for row in table:
        first, second = matrices[row["label_a"]], matrices[row["label_b"]]
        if not (first.any() and second.any()):
            continue
        angle, axis = misorientation_axis(first, second, symmetry)
        row["angle"] = np.rad2deg(angle)
        row["axis_x"], row["axis_y"], row["axis_z"] = axis
        if turn is not None:
            between = first @ second.T @ symmetry
            deviation = min(
                misorientation_angle(between, other, symmetry).min() for other in (turn, turn.T)
            )
            row["twin_deviation"] = np.rad2deg(deviation)
            row["twin"] = row["twin_deviation"] <= tolerance
    return table


def _twin_rotation(twin: Any, crystal: Any) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    try:
        angle, direction = twin
        direction = np.array(direction, dtype=float).reshape(3)
    except (TypeError, ValueError):
        raise TypeError(
            f"twin={twin!r} must be 'auto', None, or (degrees, (u, v, w)), for example "
            "(60, (1, 1, 1))"
        ) from None
    angle = check_number("the angle of twin", angle, 0, 180)
    axis = direction @ np.asarray(crystal.lat_real)
    if not np.linalg.norm(axis) > 0:
        raise ValueError(f"the axis of twin={twin!r} must be a direction, not 0")
    return Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis)).as_matrix()
