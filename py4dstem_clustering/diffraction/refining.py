"""Refine matched orientations, and say which of them to believe."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..base.checks import check_flag, check_integer, check_number
from ..base.progress import progress
from ..kernels.evidence import (
    NOT_INDEXED,
    WIDTHS,
    Agreement,
    Model,
    Peaks,
    agreement,
    choose_model,
    climb,
    make_peaks,
    unstrained,
    verdict_of,
)
from ..kernels.kinematic import TAIL_POWER, Lattice, Window, make_lattice
from ..kernels.orientation_search import POWER, Plan, make_plan, search
from ..kernels.rotations import misorientation_angle
from .misorientation import get_symmetry, has_orientation
from .orientation import calibrated_peaks, check_orientation, plan_options

_FIRST_STEP_RAD = np.deg2rad(1.5)
"""First step of a climb, radian. A larger step corrects larger errors, but may reach a twin."""

_MIDDLE_STEP_RAD = np.deg2rad(0.5)
"""Last step of the first climb, and first of the second, radian."""

_LAST_STEP_RAD = np.deg2rad(0.1)
"""Last step of a climb, radian. A larger step is faster and less exact."""

_SAME_ORIENTATION_RAD = np.deg2rad(5)
"""Misorientation, radian, up to which two orientations count as the same orientation.

A larger angle also joins orientations that are really different, so the second match and twins may
be left out.
"""

_SAME_CLIMB_RAD = np.deg2rad(1)
"""Misorientation, radian, up to which two climbs have reached the same top."""

_N_POLISHED = 6
"""Number of orientations that are refined to the end. More take longer."""

_PLACE_ERRORS = (0.25, 0.15, 0.1)
"""Standard deviation of the places of disks in the three stages, as share of `max_distance`.

Larger ones find a lattice from farther away; smaller ones tell near lattices apart.
"""

_TRUST = ((0.4, 1.0), (0.4, 0.6))
"""Scatter of the logarithm of intensities, and a further power of expected intensities, of which
the last climb takes the better pair. It trusts intensities more than the climbs before."""

_FINISHING_STEPS_RAD = (np.deg2rad(0.4), np.deg2rad(0.05))
"""First and last step of the climb with trusted intensities, radian."""

_SIGMA_OF_WIDTH = float(np.sqrt(np.expm1(0.5 / TAIL_POWER)))
"""Excitation error that leaves 61 % of the intensity, as a share of the width of the relrod."""

_KEEP_MATCH = 1.0
"""Evidence by which another orientation must be better than that of the match to replace it."""


def refine_orientations(
    crystal: Any,
    bragg: Any,
    orientation: Any,
    *,
    max_distance: float | None = None,
    sigma_excitation_error: float | None = None,
    n_candidates: int = 20,
    n_twins: int = 4,
    power_intensity: float = 0.25,
    progress_bar: bool = True,
) -> Any:
    """Refine orientations that ``crystal.match_orientations`` found, and say which to believe.

    Matching compares patterns with a library in steps of degrees and with kinematical intensities.
    In thick or bent crystals, intensities differ from kinematical ones, and matching finds a wrong
    lattice in up to half of the cases. This function relies on places more than on intensities:
    what counts is where disks are, and which expected disks are missing.

    It starts from the matches, from their twins, from both turned by 180 degrees about the beam,
    and from the best orientations of a search of its own over all orientations. From each start it
    turns the lattice step by step to where the evidence is best (a climb), with strain taken out.
    The best orientations are refined with narrower tolerances, while the pattern chooses the width
    of the relrods. The matched lattice is left only for one with clearly more evidence. A pattern
    takes about 0.5 s, so use this for averages of clusters, not for whole scans.

    Parameters
    ----------
    crystal : py4DSTEM.process.diffraction.Crystal
        Crystal with structure factors at least out to the border of the detector.
    bragg : BraggVectors, (N, 1) or any other shape
        Calibrated Bragg peaks, see `Clusters.calculate_strain`. False disks, such as those on the
        ring of a film, lead to wrong orientations; `Clusters.propose_disk_options` leaves them out.
    orientation : OrientationMap of the same shape
        All its matches are tried, and the twins of the first match. Give
        ``num_matches_return=5`` to match_orientations for more. Positions without a match stay
        without one.
    max_distance : float, optional
        Largest distance, 1/Angstrom, between a measured disk and the expected disk to which it
        belongs, before the first climb; later ones are stricter. Default: ``corr_kernel_size`` of
        the orientation plan.
    sigma_excitation_error : float, optional
        Excitation error at which a disk has lost 40 % of its intensity, 1/Angstrom: about the
        inverse of the thickness, and more where the crystal is bent. By default each pattern
        chooses its own, from 0.002 to 0.03.
    n_candidates : int
        Number of orientations from the search over all orientations, by default 20. More find the
        right lattice more surely where disks are few, and take longer. With 0 there is no search:
        only lattices near to the matches are found. There is none for a plan of a fibre texture.
    n_twins : int
        Number of lattice planes whose twins are tried, by default 4. They are the planes of the
        shortest reciprocal vectors, {111} in fcc metals. With 0, no twins are tried.
    power_intensity : float
        Power of intensities in the score, by default 0.25. With 0, all disks have the same weight.
        It changes the score only, not which orientation is found.
    progress_bar : bool
        Show progress.

    Returns
    -------
    OrientationMap of the same shape, two matches
        The best orientation, and the best of those that differ from it by more than 5 degrees. The
        correlations are the scores: cosines between expected and measured disks, which can be
        compared between crystals. The correlation is 0 where there is no orientation, or none that
        explains the pattern (the verdict "not indexed"). The entries ``inds`` are -1 where an
        orientation does not come from the match. Verdicts and more are arrays of the map, too: see
        `orientation_scores`.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks its rule, Bragg vectors are not calibrated, or the plan is for
        precession.
    """
    shape = tuple(map(int, getattr(bragg, "shape", ())))
    check_orientation(orientation, {"the Bragg vectors": shape})
    # The width of the plan is not used, but a plan that has none is not checked for it.
    sigma = sigma_excitation_error
    reach, given = plan_options(crystal, max_distance, 0.01 if sigma is None else sigma)
    n_candidates = check_integer("n_candidates", n_candidates, 0)
    n_twins = check_integer("n_twins", n_twins, 0)
    power = check_number("power_intensity", power_intensity, 0)
    progress_bar = check_flag("progress_bar", progress_bar)
    if getattr(crystal, "orientation_precession_angle_degrees", None) is not None:
        raise ValueError("orientations from precession cannot be refined; use them as they are")
    peaks = calibrated_peaks(bragg, shape)

    lengths = [np.hypot(found["qx"], found["qy"]) for found in peaks]
    longest = max((length.max(initial=0) for length in lengths), default=0.0)
    lattice = _lattice(crystal, longest + reach)
    symmetry = get_symmetry(crystal)
    if getattr(crystal, "orientation_fiber", False):
        n_candidates = 0
    window = _detector_window(bragg, peaks)
    refiner = _Refiner(
        lattice,
        symmetry,
        window,
        twin_rotations(lattice, symmetry, n_twins),
        make_plan(lattice, symmetry, window, longest + reach) if n_candidates else None,
        n_candidates,
        reach,
        WIDTHS if sigma is None else np.array([given / _SIGMA_OF_WIDTH]),
        power,
    )
    # A peak nearer to the centre than this is the direct beam, not a reflection.
    beam = 0.5 * np.sqrt(lattice.squared.min(initial=np.inf))
    out = type(orientation)(*shape, 2)
    out.matrix[:] = out.family[:] = np.eye(3)
    out.verdict = np.full(shape, NOT_INDEXED, dtype=np.uint8)
    out.n_disks = np.zeros(shape, dtype=int)
    out.sigma_excitation_error = np.full(shape, np.nan)
    for name in ("score", "evidence", "explained", "runner_up", "runner_up_evidence"):
        setattr(out, name, np.zeros(shape))
    positions = list(np.ndindex(*shape))
    with progress(len(positions), "Refining orientations", progress_bar, "pattern") as report:
        for position, found, length in zip(positions, peaks, lengths, strict=True):
            report(1)
            found = found[(length > beam) & (found["intensity"] > 0)]
            valid = np.nan_to_num(orientation.corr[position]) > 0
            valid &= has_orientation(orientation.matrix[position])
            if not len(found) or not valid.any():
                continue
            places = np.stack([found["qx"], found["qy"]], axis=1)
            refined = refiner.refine(
                orientation.matrix[position],
                np.flatnonzero(valid),
                make_peaks(places, found["intensity"]),
            )
            _fill(out, position, refined, orientation.inds[position])
            for k in range(min(2, len(refined))):
                _fill_angles_and_family(crystal, out, position, k)
    return out


class _Climbed(NamedTuple):
    """An orientation at the end of a climb."""

    evidence: float
    matrix: NDArray[np.float64]
    model: Model
    match: int
    """From which match the climb began, -1 for none."""
    agreement: Agreement = Agreement(0.0, 0, 0.0)


class _Refiner(NamedTuple):
    """Values that all patterns share."""

    lattice: Lattice
    symmetry: NDArray[np.float64]
    window: Window
    twins: NDArray[np.float64]
    """The identity and the rotations of twins."""
    plan: Plan | None
    n_candidates: int
    reach: float
    """Largest distance, 1/Angstrom, between a measured disk and its expected disk."""
    widths: NDArray[np.float64]
    """Widths of relrods from which patterns choose."""
    power: float
    """Power of intensities in the score."""

    def refine(self, matrices: NDArray[Any], valid: NDArray[Any], peaks: Peaks) -> list[_Climbed]:
        """The best orientation, and the best other one if there is one."""
        wide = [self._first_climb(*start, peaks) for start in self._starts(matrices, valid, peaks)]
        polished = [self._polish(one, peaks) for one in self._distinct(wide)[:_N_POLISHED]]
        polished.sort(key=lambda one: -one.evidence)
        best = polished[0]
        matched = [one for one in polished if one.match >= 0 and self._near_match(one, matrices)]
        if matched and matched[0].evidence > best.evidence - _KEEP_MATCH:
            best = matched[0]
        others = [
            one
            for one in polished
            if misorientation_angle(one.matrix, best.matrix, self.symmetry) > _SAME_ORIENTATION_RAD
        ]
        return [
            self._with_agreement(self._finish(one, peaks), peaks) for one in [best, *others[:1]]
        ]

    @property
    def area(self) -> float:
        """Area of the window, 1/Angstrom^2."""
        sides = self.window.high - self.window.low
        area = float(np.prod(sides) / abs(np.linalg.det(self.window.to_pixels)))
        return area if np.isfinite(area) else 4 * float(self.lattice.squared.max(initial=1.0))

    def _starts(
        self, matrices: NDArray[Any], valid: NDArray[Any], peaks: Peaks
    ) -> list[tuple[NDArray[Any], int]]:
        """Orientations from which to climb, and the match of each, -1 for none."""
        starts = []
        twins = self.twins
        for match in valid.tolist():
            for twin in twins:
                for about_beam in (np.eye(3), np.diag([-1.0, -1.0, 1.0])):
                    starts.append((twin @ matrices[match] @ about_beam, match))
            twins = self.twins[:1]
        if self.plan is not None:
            weights = np.exp(POWER * peaks.intensity)
            found = search(self.plan, self.symmetry, peaks.places, weights, self.n_candidates)
            starts += [(matrix, -1) for matrix in found]
        return starts

    def _first_climb(self, matrix: NDArray[Any], match: int, peaks: Peaks) -> _Climbed:
        """Climb with a wide tolerance of places, and few widths of relrods."""
        place_error = _PLACE_ERRORS[0] * self.reach
        widths = self.widths[1::3] if len(self.widths) > 1 else self.widths
        shared = self.lattice, self.window, self.area
        _, model = choose_model(*shared, matrix, peaks, widths, place_error)
        value, matrix = climb(*shared, matrix, peaks, model, _FIRST_STEP_RAD, _MIDDLE_STEP_RAD)
        return _Climbed(value, matrix, model, match)

    def _polish(self, one: _Climbed, peaks: Peaks) -> _Climbed:
        """Climb with strain taken out and narrower tolerances; the pattern chooses the width."""
        value, matrix, model, match, _ = one
        shared = self.lattice, self.window, self.area
        for share in _PLACE_ERRORS[1:]:
            free = unstrained(self.lattice, matrix, peaks, model)
            _, model = choose_model(*shared, matrix, free, self.widths, share * self.reach)
            value, matrix = climb(*shared, matrix, free, model, _MIDDLE_STEP_RAD, _LAST_STEP_RAD)
        return _Climbed(value, matrix, model, match)

    def _finish(self, one: _Climbed, peaks: Peaks) -> _Climbed:
        """Turn the lattice a little to where intensities agree best, too.

        Which lattice it is has been decided before, by places; near to the truth intensities say
        more. The evidence stays as it was, so that it can be compared.
        """
        share = _PLACE_ERRORS[-1] * self.reach
        free = unstrained(self.lattice, one.matrix, peaks, one.model)
        found = []
        for scatter, power in _TRUST:
            lattice = self.lattice._replace(strength=power * self.lattice.strength)
            shared = lattice, self.window, self.area, one.matrix, free
            value, model = choose_model(*shared, self.widths, share, scatter)
            found.append((value, lattice, model))
        _, lattice, model = max(found, key=lambda each: each[0])
        _, matrix = climb(
            lattice, self.window, self.area, one.matrix, free, model, *_FINISHING_STEPS_RAD
        )
        return one._replace(matrix=matrix)

    def _distinct(self, climbed: list[_Climbed]) -> list[_Climbed]:
        """The best of those climbs that reached the same orientation, best first."""
        # The sort is stable, so climbs from matches come first among equal ones.
        kept: list[_Climbed] = []
        for one in sorted(climbed, key=lambda one: -one.evidence):
            known = np.array([other.matrix for other in kept])
            if kept and misorientation_angle(known, one.matrix, self.symmetry).min() < (
                _SAME_CLIMB_RAD
            ):
                continue
            kept.append(one)
        return kept

    def _near_match(self, one: _Climbed, matrices: NDArray[Any]) -> bool:
        """Whether an orientation is that of its match, not of a twin."""
        angle = misorientation_angle(one.matrix, matrices[one.match], self.symmetry)
        return bool(angle < _SAME_ORIENTATION_RAD)

    def _with_agreement(self, one: _Climbed, peaks: Peaks) -> _Climbed:
        free = unstrained(self.lattice, one.matrix, peaks, one.model)
        found = agreement(self.lattice, self.window, one.matrix, free, one.model, self.power)
        return one._replace(agreement=found)


def _fill(out: Any, position: tuple[int, ...], refined: list[_Climbed], inds: NDArray[Any]) -> None:
    """Write the orientations of a pattern, and their scores, to the map."""
    for k, one in enumerate(refined):
        out.matrix[position][k] = one.matrix
        out.corr[position][k] = one.agreement.cosine
        out.inds[position][k] = inds[one.match] if one.match >= 0 else -1
    best, *others = refined
    out.score[position] = best.agreement.cosine
    out.evidence[position] = best.evidence
    out.n_disks[position] = best.agreement.n_disks
    out.explained[position] = best.agreement.explained
    out.sigma_excitation_error[position] = best.model.width * _SIGMA_OF_WIDTH
    if others:
        out.runner_up[position] = others[0].agreement.cosine
        out.runner_up_evidence[position] = others[0].evidence
    out.verdict[position] = verdict_of(
        best.evidence,
        out.runner_up_evidence[position],
        best.agreement.n_disks,
        best.agreement.explained,
    )
    if out.verdict[position] == NOT_INDEXED:
        out.corr[position] = 0


def twin_rotations(lattice: Lattice, symmetry: NDArray[Any], n_planes: int) -> NDArray[np.float64]:
    """The identity, and the rotations of twins on the planes of the shortest reciprocal vectors.

    ``(n, 3, 3)`` with n up to ``n_planes + 1``, in Cartesian coordinates of the crystal. They are
    half turns about the normals of the planes. Half turns that map the lattice onto itself make no
    twin, and are left out.
    """
    length = np.sqrt(lattice.squared)
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


def _lattice(crystal: Any, k_max: float) -> Lattice:
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
    return make_lattice(crystal.g_vec_all[:, keep], intensity, float(crystal.wavelength))


def _detector_window(bragg: Any, peaks: list[NDArray[Any]]) -> Window:
    """The part of the detector in which peaks were found.

    It is found by comparing calibrated and uncalibrated places of the same peaks, so it is correct
    for every calibration. With fewer than 3 peaks, or all on a line, it has no limits.
    """
    uncalibrated = [
        bragg.get_vectors(x, y, center=True, ellipse=False, pixel=False, rotate=False).data
        for x, y in np.ndindex(*bragg.shape)
    ]
    places, pixels = (
        np.concatenate([np.stack([found["qx"], found["qy"]], axis=1) for found in each])
        for each in (peaks, uncalibrated)
    )
    if len(places) < 3 or np.linalg.matrix_rank(places, tol=1e-3) < 2:
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
