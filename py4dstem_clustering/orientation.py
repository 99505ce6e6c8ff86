"""Orientations: from clusters to py4DSTEM's maps of the scan, and from grain to grain."""

from __future__ import annotations

import warnings
from typing import Any

import emdfile
import numpy as np

from .base.checks import check_flag, check_integer, check_name, check_number
from .base.progress import progress
from .emd import nodes
from .kernels.kinematic import Lattice, Peaks, Window, refine
from .kernels.regions import find_borders
from .kernels.rotations import misorientation_angle, misorientation_axis, symmetry_rotations
from .scan.calibration import copy_calibration

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

# First and last step of a climb, radian.
_STEPS = np.deg2rad(2), np.deg2rad(0.05)

# Angle from which orientations are not the same, but for errors, radian.
_APART = np.deg2rad(5)


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


def check_calibrated(calibration: Any, what: str) -> None:
    """Origin and pixel size of the detector are set; ValueError where `what` is not calibrated."""
    missing = []
    if calibration is None or calibration.get_origin() is None:
        missing.append("the origin (calibration.set_origin())")
    if calibration is None or calibration.get_Q_pixel_units() == "pixels":
        missing.append("the pixel size (calibration.set_Q_pixel_size(), set_Q_pixel_units('A^-1'))")
    if missing:
        raise ValueError(f"{what} not calibrated; set {' and '.join(missing)} first")


def calibrated_peaks(bragg: Any, shape: tuple[int, int]) -> list[np.ndarray]:
    """Calibrated Bragg peaks of each position in reading order, without changing `bragg`.

    With every calibration that is there; or those of ``bragg.setcal(...)``, where the user chose.
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
    if not any(chosen.values()):  # find_Bragg_disks leaves it so
        chosen["ellipse"] = calibration.get_ellipse() is not None
        chosen["rotate"] = calibration.get_QR_rotation() is not None
    chosen["center"] = chosen["pixel"] = True
    return [bragg.get_vectors(x, y, **chosen).data for x, y in np.ndindex(*shape)]


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
    # A matrix of zeros, which also py4DSTEM leaves where peaks are too few, is no rotation: saving
    # to .ang and orix would fail (0.14.18). The correlation of 0 tells them apart. `family` does
    # not: without pymatgen, it is zero everywhere.
    unmatched = ~_defined(out.matrix) | ~(out.corr > 0)
    out.matrix[unmatched] = out.family[unmatched] = np.eye(3)
    out.corr[unmatched] = 0
    return out


def orientation_to_node(orientation: Any, name: str = "orientation_map") -> emdfile.Array:
    """An OrientationMap as something that a file can hold; py4DSTEM cannot save one (0.14.18).

    Parameters
    ----------
    orientation : OrientationMap
    name : str
        Name in the tree: ``datacube.attach(orientation_to_node(orientation))``, then
        ``py4DSTEM.save``.

    Returns
    -------
    emdfile.Array, (Rx, Ry, matches, 3, 3)
        The matrices; all other fields are in its metadata. Opens where this package is missing.
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
    """The OrientationMap in a node of a tree, also one read from a file.

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
        If it is none, was made by a newer version, or is damaged.
    """
    from py4DSTEM.process.diffraction.utils import OrientationMap

    nodes.check_kind(node, "orientation_map", "orientation map", "one with orientation_to_node()")
    data = getattr(node, "data", None)
    matrix = nodes.check_array(node, "data", data, (None, None, None, 3, 3), nan=True)
    out = OrientationMap(*matrix.shape[:3])
    known = {"matrix"} | {key for key in vars(out) if isinstance(getattr(out, key), np.ndarray)}
    out.matrix = np.array(matrix)
    for key, value in nodes.read_arrays(node).items():
        # A name from a file becomes no attribute that is something else.
        if key not in known or key == "matrix":
            if not key.isidentifier() or key.startswith("_") or hasattr(out, key):
                raise nodes.damaged(node, f"it holds an array of the name {nodes.short(key)}")
            nodes.check_array(node, key, value, np.shape(value), "biuf", nan=True)
            if np.shape(value)[:2] != matrix.shape[:2]:
                raise nodes.damaged(node, f"its {key} is not of its positions")
        else:
            own = getattr(out, key)
            kinds = {"b": "b", "i": "iu"}.get(own.dtype.kind, "f")
            nodes.check_array(node, key, value, own.shape, kinds, nan=True)
        setattr(out, key, np.array(value))
    return out


def expand_bragg(labels: np.ndarray, per_cluster: Any) -> Any:
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
    inside = labels >= 0
    for key, value in calibration._params.items():
        if isinstance(value, np.ndarray) and value.shape == (n, 1):
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
    matrices = cluster_orientations(labels, orientation)

    borders, which, *sides = find_borders(labels)
    rows, columns = (np.subtract(*axis) for axis in np.unravel_index(sides, labels.shape))
    # Cauchy and Crofton: crossings in four directions, those along diagonals of spacing 1 / sqrt 2.
    weight = np.pi / 8 * np.where((rows == 0) | (columns == 0), 1, np.sqrt(0.5))
    table = np.zeros(len(borders.first), dtype=BOUNDARIES)
    table["label_a"], table["label_b"] = borders.first, borders.second
    table["length"] = np.bincount(which, weight, len(table)) * pixel_size
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


def refine_orientations(
    crystal: Any,
    bragg: Any,
    orientation: Any,
    *,
    max_distance: float | None = None,
    sigma_excitation_error: float | None = None,
    power_intensity: float = 0.25,
    power_intensity_experiment: float = 0.5,
    n_twins: int = 4,
    progress_bar: bool = True,
) -> Any:
    """Refine orientations that ``crystal.match_orientations`` found, and rule out their twins.

    Matching compares patterns with a library in steps of degrees, and takes a lattice that has many
    of the same disks in about one case of ten. Here each match climbs to where measured and
    kinematical disks agree best, strain taken out; so do its twins, and all of them turned by 180
    degrees about the beam; the best stays. About 0.4 s a pattern: for clusters, not for scans.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal
        With structure factors out to the border of the detector or farther.
    bragg : BraggVectors, (N, 1) or any other shape
        Calibrated, see `Clusters.calculate_strain`.
    orientation : OrientationMap of the same shape
        All of its matches are tried, the twins of the first.
    max_distance : float, optional
        How far apart measured and expected disk may lie, 1/Angstrom. Default: ``corr_kernel_size``
        of the orientation plan.
    sigma_excitation_error : float, optional
        Excitation error at which a disk has lost 40 % of its intensity, 1/Angstrom: about the
        inverse of the thickness. Default: that of the orientation plan.
    power_intensity, power_intensity_experiment : float
        Expected and measured intensities count to these powers: below 1, since dynamical scattering
        evens measured ones out and kinematical ones are rough.
    n_twins : int
        Twins on this many lattice planes, those of the shortest reciprocal vectors: {111} in cubic
        metals. 0 to refine only.
    progress_bar : bool
        Show progress.

    Returns
    -------
    OrientationMap of the same shape, two matches
        The best one, and the best of those that differ from it by more than 5 degrees. The first
        correlation is that of the match it came from, the second is smaller by the ratio of how
        well the two agree with the pattern: above about 0.995 the pattern does not tell which is
        right, as happens where both lattices have the same disks. 0 where there is none.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, Bragg vectors are not calibrated, or the plan is for
        precession.
    """
    shape = tuple(map(int, getattr(bragg, "shape", ())))
    check_orientation(orientation, {"the Bragg vectors": shape})
    reach, sigma = plan_options(crystal, max_distance, sigma_excitation_error)
    power = check_number("power_intensity", power_intensity, 0)
    measured_power = check_number("power_intensity_experiment", power_intensity_experiment, 0)
    n_twins = check_integer("n_twins", n_twins, 0)
    progress_bar = check_flag("progress_bar", progress_bar)
    if getattr(crystal, "orientation_precession_angle_degrees", None) is not None:
        raise ValueError("orientations from precession cannot be refined; use them as they are")
    peaks = calibrated_peaks(bragg, shape)

    lengths = [np.hypot(found["qx"], found["qy"]) for found in peaks]
    longest = max((length.max(initial=0) for length in lengths), default=0.0)
    lattice = _lattice(crystal, longest + reach, sigma)
    window = _window(bragg, peaks)
    symmetry = get_symmetry(crystal)
    twins = twin_turns(lattice, symmetry, n_twins)
    # The direct beam is nearer to the centre than any reflection.
    beam = 0.5 * np.linalg.norm(lattice.vectors, axis=0).min(initial=np.inf)
    out = type(orientation)(*shape, 2)
    out.matrix[:] = out.family[:] = np.eye(3)
    places = list(np.ndindex(*shape))
    with progress(len(places), "Refining orientations", progress_bar, "pattern") as report:
        for place, found, length in zip(places, peaks, lengths, strict=True):
            found = found[length > beam]
            weights = np.maximum(found["intensity"], 0) ** measured_power
            norm = np.linalg.norm(weights)
            corr = np.nan_to_num(orientation.corr[place])
            valid = (corr > 0) & _defined(orientation.matrix[place])
            report(1)
            if norm == 0 or not valid.any():
                continue
            measured = Peaks(np.stack([found["qx"], found["qy"]], axis=1), weights / norm)
            starts = []
            for match in np.flatnonzero(valid):
                turns = twins if not starts else twins[:1]
                starts += [(match, turn @ orientation.matrix[place][match]) for turn in turns]
            climbed = []
            for match, start in starts:
                for turn in (np.eye(3), np.diag([-1.0, -1.0, 1.0])):
                    value, matrix = refine(
                        lattice, window, start @ turn, measured, reach, power, *_STEPS
                    )
                    climbed.append((value, matrix, match))
            climbed.sort(key=lambda one: -one[0])  # stable, so that of equal ones the first stays
            best = climbed[0]
            chosen = [best]
            for one in climbed[1:]:
                if misorientation_angle(one[1], best[1], symmetry) > _APART:
                    chosen.append(one)
                    break
            for k, (value, matrix, match) in enumerate(chosen):
                out.matrix[place][k], out.inds[place][k] = matrix, orientation.inds[place][match]
                out.corr[place][k] = corr[best[2]] * (value / max(best[0], 1e-12))
                _complete(crystal, out, place, k)
    return out


def twin_turns(lattice: Lattice, symmetry: np.ndarray, number: int) -> np.ndarray:
    """The identity, and the half turns of twins on the planes of the shortest vectors.

    ``(n, 3, 3)`` in Cartesian coordinates of the crystal.
    Those that leave the lattice as it is are no twins.
    """
    length = np.linalg.norm(lattice.vectors, axis=0)
    found = [np.eye(3)]
    for k in np.argsort(length.round(6), kind="stable"):
        if len(found) > number:
            break
        normal = lattice.vectors[:, k] / length[k]
        turn = 2 * np.outer(normal, normal) - np.eye(3)
        if misorientation_angle(np.array(found), turn, symmetry).min() > _APART:
            found.append(turn)
    return np.array(found)


def plan_options(
    crystal: Any, max_distance: float | None, sigma_excitation_error: float | None = None
) -> tuple[float, float]:
    """Both options, from the orientation plan of the crystal where they are not given."""
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


def _lattice(crystal: Any, k_max: float, sigma: float) -> Lattice:
    if not hasattr(crystal, "g_vec_all"):
        raise ValueError(
            "the crystal has no structure factors; call crystal.calculate_structure_factors()"
        )
    if not hasattr(crystal, "wavelength"):
        raise ValueError(
            "the crystal has no voltage; call crystal.setup_diffraction(accelerating_voltage)"
        )
    length = np.linalg.norm(crystal.g_vec_all, axis=0)
    keep = (length > 1e-6) & (length <= k_max)
    intensity = np.asarray(crystal.struct_factors_int)[keep]
    return Lattice(
        crystal.g_vec_all[:, keep],
        intensity / max(intensity.max(initial=0), 1e-300),
        float(crystal.wavelength),
        sigma,
    )


def _window(bragg: Any, peaks: list[np.ndarray]) -> Window:
    """Where on the detector peaks were found at all, whatever its edges and calibrations."""
    places = np.concatenate([np.stack([found["qx"], found["qy"]], axis=1) for found in peaks])
    pixels = np.concatenate(
        [
            np.stack([found["qx"], found["qy"]], axis=1)
            for found in (
                bragg.get_vectors(x, y, center=True, ellipse=False, pixel=False, rotate=False).data
                for x, y in np.ndindex(*bragg.shape)
            )
        ]
    )
    if len(places) < 3:
        return Window(np.eye(2), np.full(2, -np.inf), np.full(2, np.inf))
    to_pixels = np.linalg.lstsq(places, pixels, rcond=None)[0]
    return Window(to_pixels, pixels.min(axis=0) - 0.5, pixels.max(axis=0) + 0.5)


def _complete(crystal: Any, orientation: Any, place: tuple[int, ...], match: int) -> None:
    """Euler angles and the symmetry-reduced axes of a matrix, as py4DSTEM has them."""
    from scipy.spatial.transform import Rotation

    matrix = orientation.matrix[place][match]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # gimbal lock: the third angle is 0
        orientation.angles[place][match] = Rotation.from_matrix(matrix.T).as_euler("zxz")
    orientation.family[place][match] = matrix
    if hasattr(crystal, "symmetry_reduction"):
        one = orientation.get_orientation(*place)
        crystal.symmetry_reduce_directions(one, match_ind=match)
        orientation.family[place] = one.family
