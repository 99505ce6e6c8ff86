"""Orientations of clusters: as maps of the scan, in files, and across boundaries of clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import emdfile
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..base.checks import check_name, check_number
from ..emd import nodes
from ..kernels.evidence import NOT_INDEXED, VERDICTS
from ..kernels.regions import find_borders
from ..kernels.rotations import misorientation_angle, misorientation_axis
from ..scan.calibration import copy_calibration, measure_distance
from .misorientation import SIGMA_3_TWIN, get_symmetry, has_orientation

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
        ("verdict", "U11"),
    ]
)
"""Fields of `Clusters.get_boundaries`."""

_N_CUBIC = 24
"""Number of symmetry rotations of a cubic metal; no other crystal has this number."""


def check_orientation(orientation: Any, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name of the entry of `shapes` that an OrientationMap has; ValueError if there is none."""
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


def check_calibrated(calibration: Any, what: str) -> None:
    """Check that origin and pixel size of the detector are set.

    `what` is the start of the error message, such as "the datacube is".
    """
    missing = []
    if calibration is None or calibration.get_origin() is None:
        missing.append("the origin (calibration.set_origin())")
    if calibration is None or calibration.get_Q_pixel_units() == "pixels":
        missing.append("the pixel size (calibration.set_Q_pixel_size(), set_Q_pixel_units('A^-1'))")
    if missing:
        raise ValueError(f"{what} not calibrated; set {' and '.join(missing)} first")


def calibrated_peaks(bragg: Any, shape: tuple[int, ...]) -> list[NDArray[Any]]:
    """Calibrated Bragg peaks of each position, row by row; `bragg` does not change.

    Calibrations that the user chose with ``bragg.setcal(...)`` are applied. Without a choice, all
    known calibrations are applied.
    """
    for attribute in ("get_vectors", "calstate", "calibration"):
        if not hasattr(bragg, attribute):
            raise TypeError(
                f"bragg must be BraggVectors from find_Bragg_disks(), not {type(bragg).__name__}"
            )
    found = tuple(map(int, bragg.shape))
    if found != tuple(shape):
        raise ValueError(f"Bragg vectors of shape {found} must have shape {tuple(shape)}")
    calibration = bragg.calibration
    check_calibrated(calibration, "Bragg vectors are")
    chosen = dict(bragg.calstate)
    if not any(chosen.values()):  # no choice, as after find_Bragg_disks
        chosen["ellipse"] = calibration.get_ellipse() is not None
        chosen["rotate"] = calibration.get_QR_rotation() is not None
    chosen["center"] = chosen["pixel"] = True
    return [bragg.get_vectors(x, y, **chosen).data for x, y in np.ndindex(*shape)]


def expand_orientation_map(labels: NDArray[Any], per_cluster: Any) -> Any:
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
    if hasattr(out, "sigma_excitation_error"):
        out.sigma_excitation_error[~inside] = np.nan
    # Without a match, the matrix is set to the identity and the correlation to 0. py4DSTEM leaves a
    # matrix of zeros if there are too few peaks, and then its export to .ang and orix fails
    # (0.14.18). `family` does not show this: without pymatgen it is zero everywhere.
    unmatched = ~has_orientation(out.matrix) | ~(out.corr > 0)
    out.matrix[unmatched] = out.family[unmatched] = np.eye(3)
    out.corr[unmatched] = 0
    return out


def orientation_to_node(orientation: Any, name: str = "orientation_map") -> emdfile.Array:
    """Convert an OrientationMap to a node that can be saved; py4DSTEM cannot save it (0.14.18).

    Parameters
    ----------
    orientation : OrientationMap
    name : str
        Name in the tree: ``datacube.attach(orientation_to_node(orientation))``, then
        ``py4DSTEM.save``.

    Returns
    -------
    emdfile.Array, (Rx, Ry, matches, 3, 3)
        The matrices; all other fields are in the metadata of the node. A file with this node can be
        opened without this package.

    Raises
    ------
    TypeError, ValueError
        If `orientation` is not an OrientationMap, or `name` cannot be a name.

    Examples
    --------
    >>> from py4DSTEM.process.diffraction.utils import OrientationMap
    >>> node = orientation_to_node(OrientationMap(6, 5, 1))
    >>> node.shape
    (6, 5, 1, 3, 3)
    >>> orientation_from_node(node).matrix.shape
    (6, 5, 1, 3, 3)
    """
    check_orientation(orientation, {"": tuple(np.shape(getattr(orientation, "matrix", 0))[:2])})
    node = emdfile.Array(np.array(orientation.matrix), name=check_name(name))
    nodes.tag(node, "orientation_map")
    fields = {
        key: np.array(value)
        for key, value in vars(orientation).items()
        if isinstance(value, np.ndarray) and key != "matrix"
    }
    node.metadata = emdfile.Metadata("arrays", fields)
    return node


def orientation_from_node(node: emdfile.Array) -> Any:
    """Read the OrientationMap from a node of a tree, also from a tree that was read from a file.

    Parameters
    ----------
    node : emdfile.Array
        ``datacube.tree("orientation_map")``.

    Returns
    -------
    OrientationMap

    Raises
    ------
    ValueError
        If the node is not an orientation map, was made by a newer version, or is damaged.

    Examples
    --------
    See `orientation_to_node`.
    """
    from py4DSTEM.process.diffraction.utils import OrientationMap

    nodes.check_kind(node, "orientation_map", "orientation map", "one with orientation_to_node()")
    data = getattr(node, "data", None)
    matrix = nodes.check_array(node, "data", data, (None, None, None, 3, 3), nan=True)
    out = OrientationMap(*matrix.shape[:3])
    known = {"matrix"} | {key for key in vars(out) if isinstance(getattr(out, key), np.ndarray)}
    out.matrix = np.array(matrix)
    for key, value in nodes.read_arrays(node).items():
        # A file that is not trusted must not overwrite a method or another attribute.
        if key not in known or key == "matrix":
            if not key.isidentifier() or key.startswith("_") or hasattr(out, key):
                raise nodes.damaged(node, f"it holds an array of the name {nodes.in_one_line(key)}")
            nodes.check_array(node, key, value, np.shape(value), "biuf", nan=True)
            if np.shape(value)[:2] != matrix.shape[:2]:
                raise nodes.damaged(node, f"its {key} is not of its positions")
        else:
            own = getattr(out, key)
            kinds = {"b": "b", "i": "iu"}.get(own.dtype.kind, "f")
            nodes.check_array(node, key, value, own.shape, kinds, nan=True)
        setattr(out, key, np.array(value))
    return out


def expand_bragg(labels: NDArray[Any], per_cluster: Any) -> Any:
    """Core of `Clusters.expand_bragg`."""
    n = int(labels.max(initial=-1)) + 1
    if not hasattr(per_cluster, "raw") or not hasattr(per_cluster, "calibration"):
        raise TypeError(
            "per_cluster must be BraggVectors from averages.find_Bragg_disks(), not "
            f"{type(per_cluster).__name__}"
        )
    found = tuple(map(int, per_cluster.shape))
    if found != (n, 1):
        raise ValueError(
            f"Bragg vectors of shape {found} must have shape {(n, 1)}, one entry for each cluster"
        )
    calibration = copy_calibration(per_cluster.calibration)
    measure_distance(calibration)
    inside = labels >= 0
    for key, value in calibration._params.items():
        if isinstance(value, np.ndarray) and value.shape == (n, 1):
            # There are no peaks outside of clusters, but the map must hold a number there.
            spread = np.full(labels.shape, np.nanmean(value) if n else np.nan)
            spread[inside] = value[labels[inside], 0]
            calibration._params[key] = spread
    # With the field of `refine_disks`, if there is one.
    raw = emdfile.PointListArray(per_cluster._v_uncal.dtype, labels.shape)
    for x, y in np.argwhere(inside):
        raw[x, y].add(per_cluster._v_uncal[labels[x, y], 0].data)
    return bragg_with(per_cluster, raw, calibration)


def bragg_with(bragg: Any, raw: emdfile.PointListArray, calibration: Any) -> Any:
    """Bragg vectors with these uncalibrated peaks, and the choice of calibrations of `bragg`."""
    shape = tuple(map(int, raw.shape))
    out = type(bragg)(shape, tuple(bragg.Qshape), name=bragg.name, calibration=calibration)
    out.set_raw_vectors(raw)
    out.setcal(**{key: bool(value) for key, value in bragg.calstate.items()})
    return out


@contextmanager
def kept_orientation_map(crystal: Any) -> Iterator[None]:
    """Restore the crystal's orientation_map at the end; match_orientations overwrites it."""
    kept = vars(crystal).get("orientation_map")
    try:
        yield
    finally:
        if kept is None:
            vars(crystal).pop("orientation_map", None)
        else:
            crystal.orientation_map = kept


def best_positions(labels: NDArray[Any], orientation: Any) -> NDArray[np.int64]:
    """Position in the map, row by row, whose orientation stands for each cluster, (N,).

    `orientation` is a map of the clusters, (N, 1), or of the scan. In a map of the scan it is the
    position with the best verdict, of these the one with the highest correlation. -1 for a cluster
    without an orientation.
    """
    n = int(labels.max(initial=-1)) + 1
    shapes = {"each scan position": labels.shape, "each cluster": (n, 1)}
    which = check_orientation(orientation, shapes)
    corr = np.nan_to_num(orientation.corr[:, :, 0]).ravel()
    known = has_orientation(orientation.matrix[:, :, 0]).ravel() & (corr > 0)
    if which == "each cluster":
        return np.where(known, np.arange(n), -1)
    verdict = getattr(orientation, "verdict", np.zeros(labels.shape, dtype=np.uint8)).ravel()
    members = np.flatnonzero(known & (labels.ravel() >= 0))
    # The sort is stable: of equal ones, the first in the order of the scan.
    members = members[np.lexsort((-corr[members], -verdict[members].astype(int)))]
    label, first = np.unique(labels.ravel()[members], return_index=True)
    out = np.full(n, -1)
    out[label] = members[first]
    return out


def at_positions(values: NDArray[Any], positions: NDArray[Any], missing: Any = 0) -> NDArray[Any]:
    """Values ``(Rx, Ry, ...)`` of a map at `best_positions`; `missing` where there is none."""
    found = values.reshape(-1, *values.shape[2:])[positions]
    found[positions < 0] = missing
    return found


def cluster_orientations(labels: NDArray[Any], orientation: Any) -> NDArray[np.float64]:
    """Matrix of each cluster, (N, 3, 3); zeros for a cluster without an orientation.

    `orientation` is a map of the clusters or of the scan, see `best_positions`.
    """
    positions = best_positions(labels, orientation)
    return at_positions(orientation.matrix[:, :, 0], positions)


def find_boundaries(
    labels: NDArray[Any],
    orientation: Any,
    crystal: Any,
    twin: Any,
    tolerance: float,
    pixel_size: float,
) -> NDArray[Any]:
    """Core of `Clusters.get_boundaries`."""
    symmetry = get_symmetry(crystal)
    if isinstance(twin, str):
        if twin != "auto":
            raise ValueError(f"twin={twin!r} must be 'auto', None, or (degrees, direction)")
        twin = SIGMA_3_TWIN if len(symmetry) == _N_CUBIC else None
    twin_rotation = None if twin is None else _twin_rotation(twin, crystal)
    best = best_positions(labels, orientation)
    matrices = at_positions(orientation.matrix[:, :, 0], best)
    verdicts = None
    if hasattr(orientation, "verdict"):
        verdicts = at_positions(orientation.verdict, best, NOT_INDEXED)

    table = _boundary_lengths(labels, pixel_size)
    for field in ("angle", "axis_x", "axis_y", "axis_z", "twin_deviation"):
        table[field] = np.nan
    for row in table:
        first, second = matrices[row["label_a"]], matrices[row["label_b"]]
        if not (first.any() and second.any()):
            continue
        angle, axis = misorientation_axis(first, second, symmetry)
        row["angle"] = np.rad2deg(angle)
        if verdicts is not None:
            row["verdict"] = VERDICTS[min(verdicts[row["label_a"]], verdicts[row["label_b"]])]
        row["axis_x"], row["axis_y"], row["axis_z"] = axis
        if twin_rotation is not None:
            between = first @ second.T @ symmetry
            # Either cluster may be the twin of the other.
            deviation = min(
                misorientation_angle(between, rotation, symmetry).min()
                for rotation in (twin_rotation, twin_rotation.T)
            )
            row["twin_deviation"] = np.rad2deg(deviation)
            row["twin"] = row["twin_deviation"] <= tolerance
    return table


def _boundary_lengths(labels: NDArray[Any], pixel_size: float) -> NDArray[Any]:
    """Table of `BOUNDARIES` with labels and lengths; all other fields are 0.

    Lengths follow the formula of Cauchy and Crofton: for each of four directions, the number of
    crossings between two clusters is multiplied by the distance of parallel lines.
    """
    borders, which, *sides = find_borders(labels)
    rows, columns = (np.subtract(*axis) for axis in np.unravel_index(sides, labels.shape))
    is_diagonal = (rows != 0) & (columns != 0)
    weight = np.pi / 8 * np.where(is_diagonal, np.sqrt(0.5), 1)
    table = np.zeros(len(borders.first), dtype=BOUNDARIES)
    table["label_a"], table["label_b"] = borders.first, borders.second
    table["length"] = np.bincount(which, weight, len(table)) * pixel_size
    return table


def _twin_rotation(twin: Any, crystal: Any) -> NDArray[np.float64]:
    """Rotation ``(3, 3)`` of a twin, from its angle in degrees and its lattice direction."""
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
    length = np.linalg.norm(axis)
    if not length > 0:
        raise ValueError(f"the axis of twin={twin!r} must be a direction, not 0")
    return Rotation.from_rotvec(np.deg2rad(angle) * axis / length).as_matrix()


def plan_options(
    crystal: Any, max_distance: float | None, sigma_excitation_error: float | None = None
) -> tuple[float, float]:
    """Both options, 1/Angstrom; for None, the value of the orientation plan of the crystal."""
    if not hasattr(crystal, "generate_diffraction_pattern"):
        raise TypeError(f"crystal must be a py4DSTEM Crystal, not {type(crystal).__name__}")
    found = []
    for name, value, attribute in (
        ("max_distance", max_distance, "orientation_kernel_size"),
        ("sigma_excitation_error", sigma_excitation_error, "orientation_sigma_excitation_error"),
    ):
        if value is not None:
            value = check_number(name, value, 1e-6)
        elif (value := getattr(crystal, attribute, None)) is None:
            raise ValueError(
                f"the crystal has no orientation plan to take {name} from; call "
                f"crystal.orientation_plan(), or give {name}"
            )
        found.append(float(value))
    return found[0], found[1]
