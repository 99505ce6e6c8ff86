"""Refine matched orientations until measured and kinematical disks agree best."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.checks import check_flag, check_integer, check_number
from ..base.progress import progress
from ..kernels.kinematic import Lattice, Peaks, Window, refine
from ..kernels.rotations import misorientation_angle
from .misorientation import get_symmetry, is_defined
from .orientation import calibrated_peaks, check_orientation, plan_options

# First and last step of a climb, radian.
_STEPS = np.deg2rad(2), np.deg2rad(0.05)

# Angle from which orientations are not the same, but for errors, radian.
_APART = np.deg2rad(5)


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
            valid = (corr > 0) & is_defined(orientation.matrix[place])
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


def twin_turns(lattice: Lattice, symmetry: NDArray[Any], number: int) -> NDArray[Any]:
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


def _window(bragg: Any, peaks: list[NDArray[Any]]) -> Window:
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
