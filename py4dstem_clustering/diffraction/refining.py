"""Refine matched orientations until measured and kinematical disks agree best."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..base.checks import check_flag, check_integer, check_number
from ..base.progress import progress
from ..kernels.kinematic import Lattice, Peaks, Window, refine
from ..kernels.rotations import misorientation_angle
from .misorientation import get_symmetry, has_orientation
from .orientation import calibrated_peaks, check_orientation, plan_options

_FIRST_STEP_RAD = np.deg2rad(2)
"""First step of a climb, radian. A larger step corrects larger errors, but may reach a twin."""

_LAST_STEP_RAD = np.deg2rad(0.05)
"""Last step of a climb, radian. A larger step is faster and less exact."""

_SAME_ORIENTATION_RAD = np.deg2rad(5)
"""Misorientation, radian, up to which two orientations count as the same orientation.

A larger angle also joins orientations that are really different, so the second match and twins may
be left out.
"""


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

    Matching compares patterns with a library in steps of degrees. In about one case of ten it finds
    a twin of the grain instead, because the twin has many of the same disks. This function turns
    each match, step by step, until measured and kinematical disks agree best (a climb); strain is
    taken into account. Other climbs start from the twins of the match, and from all of these turned
    by 180 degrees about the beam. The best result is kept. A pattern takes about 0.4 s, so use this
    for averages of clusters, not for whole scans.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal
        Crystal with structure factors at least out to the border of the detector.
    bragg : BraggVectors, (N, 1) or any other shape
        Calibrated Bragg peaks, see `Clusters.calculate_strain`.
    orientation : OrientationMap of the same shape
        All its matches are tried, and the twins of the first match.
    max_distance : float, optional
        Largest distance, 1/Angstrom, between a measured disk and the expected disk to which it
        belongs. Default: ``corr_kernel_size`` of the orientation plan.
    sigma_excitation_error : float, optional
        Excitation error at which a disk has lost 40 % of its intensity, 1/Angstrom: about the
        inverse of the thickness. Default: that of the orientation plan.
    power_intensity, power_intensity_experiment : float
        Powers of expected and measured intensities, by default 0.25 and 0.5. Powers below 1 give
        strong disks less weight, because dynamical scattering makes measured intensities more equal
        and kinematical intensities are only rough. With 0, all disks have the same weight.
    n_twins : int
        Number of lattice planes whose twins are tried, by default 4. They are the planes of the
        shortest reciprocal vectors, {111} in fcc metals. With 0, no twins are tried.
    progress_bar : bool
        Show progress.

    Returns
    -------
    OrientationMap of the same shape, two matches
        The best orientation, and the best of those that differ from it by more than 5 degrees. The
        first correlation is that of the match from which the climb began. The second correlation
        is the first times a ratio: the agreement of the second orientation with the pattern,
        divided by that of the first. Above a ratio of about 0.995 the pattern does not show which
        of the two is right, for example if both lattices have the same disks. The correlation is 0
        where there is no orientation.

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
    symmetry = get_symmetry(crystal)
    twins = twin_rotations(lattice, symmetry, n_twins)
    climb = _Climb(lattice, _detector_window(bragg, peaks), twins, reach, power)
    # A peak nearer to the centre than this is the direct beam, not a reflection.
    beam = 0.5 * np.linalg.norm(lattice.vectors, axis=0).min(initial=np.inf)
    out = type(orientation)(*shape, 2)
    out.matrix[:] = out.family[:] = np.eye(3)
    positions = list(np.ndindex(*shape))
    with progress(len(positions), "Refining orientations", progress_bar, "pattern") as report:
        for position, found, length in zip(positions, peaks, lengths, strict=True):
            found = found[length > beam]
            weights = np.maximum(found["intensity"], 0) ** measured_power
            norm = np.linalg.norm(weights)
            corr = np.nan_to_num(orientation.corr[position])
            valid = (corr > 0) & has_orientation(orientation.matrix[position])
            report(1)
            if norm == 0 or not valid.any():
                continue
            measured = Peaks(np.stack([found["qx"], found["qy"]], axis=1), weights / norm)
            climbed = climb.from_all(orientation.matrix[position], valid, measured)
            best = climbed[0]
            for k, one in enumerate(_best_two(climbed, symmetry)):
                out.matrix[position][k] = one.matrix
                out.inds[position][k] = orientation.inds[position][one.match]
                out.corr[position][k] = corr[best.match] * (one.score / max(best.score, 1e-12))
                _fill_angles_and_family(crystal, out, position, k)
    return out


class _Climbed(NamedTuple):
    """Result of a climb."""

    score: float  # how well the orientation agrees with the pattern, 0 to 1
    matrix: NDArray[np.float64]
    match: int  # from which match the climb began


class _Climb(NamedTuple):
    """Values that the climbs of all patterns share."""

    lattice: Lattice
    window: Window
    twins: NDArray[np.float64]
    """The identity and the rotations of twins."""
    reach: float
    """Largest distance, 1/Angstrom, between a measured disk and its expected disk."""
    power: float
    """Power of expected intensities."""

    def from_all(
        self, matrices: NDArray[Any], valid: NDArray[np.bool_], measured: Peaks
    ) -> list[_Climbed]:
        """Climb from the valid matches and the twins of the first one; the best result is first."""
        climbed = []
        twins = self.twins
        for match in np.flatnonzero(valid).tolist():
            for twin in twins:
                for about_beam in (np.eye(3), np.diag([-1.0, -1.0, 1.0])):
                    score, matrix = refine(
                        self.lattice,
                        self.window,
                        twin @ matrices[match] @ about_beam,
                        measured,
                        self.reach,
                        self.power,
                        _FIRST_STEP_RAD,
                        _LAST_STEP_RAD,
                    )
                    climbed.append(_Climbed(score, matrix, match))
            twins = self.twins[:1]
        # The sort is stable, so the first climb comes first among equal scores.
        return sorted(climbed, key=lambda one: -one.score)


def _best_two(climbed: list[_Climbed], symmetry: NDArray[Any]) -> list[_Climbed]:
    """The best result, and the best result with another orientation, if there is one."""
    best = climbed[0]
    for one in climbed[1:]:
        if misorientation_angle(one.matrix, best.matrix, symmetry) > _SAME_ORIENTATION_RAD:
            return [best, one]
    return [best]


def twin_rotations(lattice: Lattice, symmetry: NDArray[Any], n_planes: int) -> NDArray[np.float64]:
    """The identity, and the rotations of twins on the planes of the shortest reciprocal vectors.

    ``(n, 3, 3)`` with n up to ``n_planes + 1``, in Cartesian coordinates of the crystal. They are
    half turns about the normals of the planes. Half turns that map the lattice onto itself make no
    twin, and are left out.
    """
    length = np.linalg.norm(lattice.vectors, axis=0)
    rotations = [np.eye(3)]
    # Lengths are rounded, so that equal lengths keep their order.
    for k in np.argsort(length.round(6), kind="stable"):
        if len(rotations) > n_planes:
            break
        normal = lattice.vectors[:, k] / length[k]
        half_turn = 2 * np.outer(normal, normal) - np.eye(3)
        angles = misorientation_angle(np.array(rotations), half_turn, symmetry)
        if angles.min() > _SAME_ORIENTATION_RAD:
            rotations.append(half_turn)
    return np.array(rotations)


def _lattice(crystal: Any, k_max: float, sigma: float) -> Lattice:
    """Reflections of the crystal up to the length `k_max`, 1/Angstrom, without the direct beam."""
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


def _detector_window(bragg: Any, peaks: list[NDArray[Any]]) -> Window:
    """The part of the detector in which peaks were found.

    It is found by comparing calibrated and uncalibrated places of the same peaks, so it is correct
    for every calibration. With fewer than 3 peaks it has no limits.
    """
    uncalibrated = [
        bragg.get_vectors(x, y, center=True, ellipse=False, pixel=False, rotate=False).data
        for x, y in np.ndindex(*bragg.shape)
    ]
    places, pixels = (
        np.concatenate([np.stack([found["qx"], found["qy"]], axis=1) for found in each])
        for each in (peaks, uncalibrated)
    )
    if len(places) < 3:
        return Window(np.eye(2), np.full(2, -np.inf), np.full(2, np.inf))
    to_pixels = np.linalg.lstsq(places, pixels, rcond=None)[0]
    return Window(to_pixels, pixels.min(axis=0) - 0.5, pixels.max(axis=0) + 0.5)


def _fill_angles_and_family(
    crystal: Any, orientation: Any, position: tuple[int, ...], match: int
) -> None:
    """Set Euler angles and symmetry-reduced axes from the matrix, as py4DSTEM does."""
    matrix = orientation.matrix[position][match]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # at gimbal lock the third angle is 0
        orientation.angles[position][match] = Rotation.from_matrix(matrix.T).as_euler("zxz")
    orientation.family[position][match] = matrix
    if hasattr(crystal, "symmetry_reduction"):
        one = orientation.get_orientation(*position)
        crystal.symmetry_reduce_directions(one, match_ind=match)
        orientation.family[position] = one.family
