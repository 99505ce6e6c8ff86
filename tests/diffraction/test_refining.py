"""Refined orientations: kinematics against py4DSTEM, the climb against known truth."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from py4DSTEM.braggvectors import BraggVectors
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.spatial.transform import Rotation

from py4dstem_clustering import misorientation, refine_orientations
from py4dstem_clustering.diffraction.misorientation import get_symmetry
from py4dstem_clustering.diffraction.refining import twin_rotations
from py4dstem_clustering.kernels.kinematic import (
    MIN_INTENSITY,
    PEAK_SIGMA,
    Lattice,
    Peaks,
    Window,
    expected_weights,
    predict,
    refine,
    score,
    unstrained,
)
from py4dstem_clustering.simulate.crystals import crystal_of_gold

SIGMA, REACH, PIXEL, CENTRE = 0.03, 0.08, 0.03, (47.5, 44.0)
ANYWHERE = Window(np.eye(2), np.full(2, -np.inf), np.full(2, np.inf))


@pytest.fixture(scope="module")
def gold():
    return crystal_of_gold(1.4)


@pytest.fixture(scope="module")
def lattice(gold):
    return lattice_of(gold)


def random_matrix(seed):
    return Rotation.from_quat(np.random.default_rng(seed).standard_normal(4)).as_matrix()


def turned(matrix, degrees, seed):
    axis = np.random.default_rng(seed).standard_normal(3)
    axis *= np.deg2rad(degrees) / np.linalg.norm(axis)
    return matrix @ Rotation.from_rotvec(axis).as_matrix()


def lattice_of(crystal):
    length = np.linalg.norm(crystal.g_vec_all, axis=0)
    keep = length > 1e-6
    intensity = crystal.struct_factors_int[keep]
    return Lattice(
        crystal.g_vec_all[:, keep], intensity / intensity.max(), crystal.wavelength, SIGMA
    )


def pattern(crystal, matrix, deformation=((1, 0), (0, 1))):
    """Exact places and weights of the disks that can be found."""
    places, intensity = predict(lattice_of(crystal), matrix[None])
    weights = expected_weights(intensity[0], 0.25)
    found = weights > 0
    return places[0, found] @ np.linalg.inv(np.array(deformation)), weights[found]


def peaks_of(crystal, matrix, deformation=((1, 0), (0, 1))):
    places, weights = pattern(crystal, matrix, deformation)
    return Peaks(places, weights / np.linalg.norm(weights))


def vectors(patterns):
    """With the direct beam. Intensities so that the root of them are the weights."""
    bragg = BraggVectors((len(patterns), 1), (96, 89))
    for k, (places, intensity) in enumerate(patterns):
        rows = np.zeros(len(places) + 1, dtype=bragg._v_uncal.dtype)
        rows["qx"], rows["qy"] = (np.vstack([places, (0, 0)]) / PIXEL + CENTRE).T
        rows["intensity"] = np.append(intensity**2, 5)
        bragg._v_uncal[k, 0].add(rows)
    bragg.calibration.set_Q_pixel_size(PIXEL)
    bragg.calibration.set_Q_pixel_units("A^-1")
    bragg.calibration.set_origin(CENTRE)
    return bragg


def matches(matrices, corr=1.0):
    out = OrientationMap(len(matrices), 1, 1)
    out.matrix[:, 0, 0], out.corr[:, 0, 0] = matrices, corr
    return out


def test_prediction_is_that_of_py4dstem(gold, lattice):
    matrices = np.array([random_matrix(seed) for seed in range(4)])
    places, intensity = predict(lattice, matrices)
    for k, matrix in enumerate(matrices):
        theirs = gold.generate_diffraction_pattern(
            orientation_matrix=matrix, sigma_excitation_error=SIGMA, tol_intensity=0
        ).data
        theirs = theirs[np.hypot(theirs["qx"], theirs["qy"]) > 1e-6]
        # They cut off at 3 sigma.
        ours = intensity[k] > 0
        near = [np.hypot(*(places[k, ours] - [p["qx"], p["qy"]]).T) < 1e-9 for p in theirs]
        found = np.array([intensity[k, ours][one].sum() for one in near])
        full = gold.struct_factors_int.copy()
        full[np.linalg.norm(gold.g_vec_all, axis=0) < 1e-6] = 0
        assert len(theirs) > 10
        np.testing.assert_allclose(found * full.max(), theirs["intensity"], rtol=1e-6)


def score_by_loops(lattice, window, matrix, peaks, power):
    expected = []
    for g, strength in zip(lattice.vectors.T, lattice.intensity, strict=True):
        x, y, z = matrix.T @ g
        error = (2 * z - lattice.wavelength * (g @ g)) / (2 - 2 * lattice.wavelength * z)
        intensity = strength * np.exp(-0.5 * (error / lattice.sigma) ** 2)
        u, v = np.array([x, y]) @ window.to_pixels
        inside = window.low[0] <= u <= window.high[0] and window.low[1] <= v <= window.high[1]
        if intensity > MIN_INTENSITY and inside:
            weight = intensity**power - MIN_INTENSITY**power if power > 0 else 1
            expected.append((np.array([x, y]), weight))
    measured = list(zip(peaks.places, peaks.weights, strict=True))

    def product(a, b):
        return sum(
            v * w * np.exp(-((p - q) @ (p - q)) / (4 * (PEAK_SIGMA * REACH) ** 2))
            for p, v in a
            for q, w in b
        )

    return product(expected, measured) / np.sqrt(
        product(expected, expected) * product(measured, measured)
    )


@pytest.mark.parametrize("power", [0, 0.25, 1])
def test_score_equals_loops(gold, lattice, power):
    matrices = np.array([random_matrix(1), turned(random_matrix(1), 2, 5), random_matrix(2)])
    peaks = peaks_of(gold, random_matrix(1), ((1.01, 0.004), (0.004, 0.99)))
    window = Window(np.array([[30, 2], [-1, 33]]), np.array([-30.0, -20]), np.array([25.0, 31]))
    for one in (ANYWHERE, window):
        found = score(lattice, one, matrices, peaks, REACH, power)
        expected = [score_by_loops(lattice, one, m, peaks, power) for m in matrices]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert found[0] > 1.5 * found[2]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strain", [0, 0.02])
def test_climb_finds_the_truth(gold, lattice, seed, strain):
    truth = random_matrix(seed)
    xx, yy, xy = strain * np.random.default_rng(seed).uniform(-1, 1, 3)
    peaks = peaks_of(gold, truth, ((1 + xx, xy), (xy, 1 + yy)))
    value, found = refine(
        lattice, ANYWHERE, turned(truth, 3, seed), peaks, REACH, 0.25, np.deg2rad(2),
        np.deg2rad(0.02),
    )  # fmt: skip
    assert np.rad2deg(Rotation.from_matrix(found @ truth.T).magnitude()) < 0.1
    assert 0.99 < value <= 1 + 1e-9


def test_strain_is_taken_out_but_no_rotation(gold, lattice):
    truth = random_matrix(3)
    turn = Rotation.from_rotvec([0, 0, 0.02]).as_matrix()
    deformation = np.array([[1.02, 0.006], [0.006, 0.985]])
    strained = peaks_of(gold, truth @ turn, deformation)
    free = unstrained(lattice, truth, strained, REACH)
    np.testing.assert_allclose(free.places, peaks_of(gold, truth @ turn).places, atol=2e-4)
    assert np.abs(free.places - peaks_of(gold, truth).places).max() > 0.01
    few = Peaks(strained.places[:4], strained.weights[:4])
    assert unstrained(lattice, truth, few, REACH) is few
    line = Peaks(np.linspace(-1, 1, 9)[:, None] * [[0.8, -0.6]], np.full(9, 1 / 3))
    assert unstrained(lattice, truth, line, REACH) is line


def test_twins_are_on_the_planes_of_the_shortest_vectors(gold, lattice):
    symmetry = get_symmetry(gold)
    turns = twin_rotations(lattice, symmetry, 4)
    assert len(turns) == 5
    np.testing.assert_array_equal(turns[0], np.eye(3))
    np.testing.assert_allclose(misorientation(turns[1:], np.eye(3), gold), 60)
    normals = [np.abs(np.linalg.eigh(turn)[1][:, -1]) for turn in turns[1:]]
    np.testing.assert_allclose(normals, 1 / np.sqrt(3), atol=1e-9)
    assert len(twin_rotations(lattice, symmetry, 0)) == 1


@pytest.mark.parametrize("n", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_map_is_refined(gold, n):
    truth = np.array([random_matrix(seed) for seed in range(n)])
    start = np.array([turned(m, 2.5, seed) for seed, m in enumerate(truth)])
    twins = twins_of(gold)
    start[3] = twins[2] @ start[3]  # the matching took its twin
    deformations = [np.eye(2) + 0.01 * np.array([[k - 4, 1], [1, 3 - k]]) / 4 for k in range(n)]
    bragg = vectors([pattern(gold, m, d) for m, d in zip(truth, deformations, strict=True)])
    before = matches(start, corr=3.0)
    kept = before.matrix.copy(), before.corr.copy()
    found = refine_orientations(
        gold, bragg, before, max_distance=REACH, sigma_excitation_error=SIGMA, progress_bar=False
    )
    assert found.num_matches == 2
    error = misorientation(found.matrix[:, 0, 0], truth, gold)
    assert error.max() < 0.3, error
    assert (misorientation(start, truth, gold) > 2).all()
    np.testing.assert_array_equal(found.corr[:, 0, 0], 3)
    second = found.corr[:, 0, 1] / 3
    assert ((second > 0.2) & (second < 1)).all()
    apart = misorientation(found.matrix[:, 0, 1], found.matrix[:, 0, 0], gold)
    assert (apart > 5).all()
    np.testing.assert_array_equal(before.matrix, kept[0])
    np.testing.assert_array_equal(before.corr, kept[1])
    # Angles mean the matrix, as those of py4DSTEM do.
    for k in range(n):
        again = Rotation.from_euler("zxz", found.angles[k, 0, 0]).as_matrix().T
        np.testing.assert_allclose(again, found.matrix[k, 0, 0], atol=1e-9)
    assert not found.mirror.any()


def twins_of(gold):
    return twin_rotations(lattice_of(gold), get_symmetry(gold), 4)


def test_without_twins_the_wrong_one_stays(gold):
    truth = random_matrix(3)
    bragg = vectors([pattern(gold, truth)])
    start = matches([twins_of(gold)[2] @ truth])
    options = {"max_distance": REACH, "sigma_excitation_error": SIGMA, "progress_bar": False}
    alone = refine_orientations(gold, bragg, start, n_twins=0, **options)
    assert misorientation(alone.matrix[0, 0, 0], truth, gold) > 5
    both = refine_orientations(gold, bragg, start, **options)
    assert misorientation(both.matrix[0, 0, 0], truth, gold) < 0.1


def test_a_match_turned_by_180_degrees_about_the_beam_is_turned_back(gold):
    truth = random_matrix(4)
    start = turned(truth, 2, 4) @ np.diag([-1.0, -1.0, 1.0])
    assert misorientation(start, truth, gold) > 5
    found = refine_orientations(
        gold, vectors([pattern(gold, truth)]), matches([start]), max_distance=REACH,
        sigma_excitation_error=SIGMA, n_twins=0, progress_bar=False,
    )  # fmt: skip
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.1


def test_every_match_is_tried(gold):
    truth = random_matrix(4)
    start = OrientationMap(1, 1, 2)
    start.matrix[0, 0] = random_matrix(5), turned(truth, 2, 4)
    start.corr[0, 0] = 3, 2
    start.inds[0, 0] = [[1, 2], [3, 4]]
    found = refine_orientations(
        gold, vectors([pattern(gold, truth)]), start, max_distance=REACH,
        sigma_excitation_error=SIGMA, n_twins=0, progress_bar=False,
    )  # fmt: skip
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.1
    assert found.corr[0, 0, 0] == 2
    np.testing.assert_array_equal(found.inds[0, 0, 0], [3, 4])


def test_intensities_count_to_their_powers(gold):
    truth = random_matrix(4)
    places, weights = pattern(gold, truth)
    start = matches([turned(truth, 2, 4)])
    options = {
        "max_distance": REACH, "sigma_excitation_error": SIGMA, "n_twins": 0, "progress_bar": False,
    }  # fmt: skip
    # `vectors` squares what it is given.
    plain = refine_orientations(gold, vectors([(places, weights)]), start, **options)
    squared = refine_orientations(
        gold, vectors([(places, weights**2)]), start, power_intensity_experiment=0.25, **options
    )
    np.testing.assert_allclose(squared.matrix, plain.matrix, atol=1e-9)
    np.testing.assert_allclose(squared.corr, plain.corr)
    alike = refine_orientations(
        gold, vectors([(places, weights)]), start, power_intensity=0, **options
    )
    assert np.abs(alike.corr - plain.corr).max() > 1e-3


def test_disks_beyond_the_detector_are_not_expected(gold):
    """Where a part of the detector is missing, the orientation is as exact."""
    truth = random_matrix(3)
    places, weights = pattern(gold, truth)
    start = matches([turned(truth, 2, 3)])
    options = {"max_distance": REACH, "sigma_excitation_error": SIGMA, "progress_bar": False}
    inside = places[:, 0] > -0.35
    assert 6 < inside.sum() < 0.8 * len(places)
    bragg = vectors([(places[inside], weights[inside])])
    found = refine_orientations(gold, bragg, start, n_twins=0, **options)
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.1


def test_family_is_that_of_py4dstem(gold):
    pytest.importorskip("pymatgen")
    crystal = crystal_of_gold(1.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy and spglib in py4DSTEM
        crystal.orientation_plan(
            zone_axis_range=np.array([[0, 1, 1], [1, 1, 1]]),
            angle_step_zone_axis=5,
            angle_step_in_plane=5,
            calculate_correlation_array=False,
            progress_bar=False,
        )
    bragg = vectors([pattern(crystal, random_matrix(2))])
    found = refine_orientations(
        crystal, bragg, matches([random_matrix(2)]), sigma_excitation_error=SIGMA,
        progress_bar=False,
    )  # fmt: skip
    for k in range(2):
        family = np.sort(np.abs(found.family[0, 0, k]), axis=0)
        np.testing.assert_allclose(family, np.sort(np.abs(found.matrix[0, 0, k]), axis=0))
        ordered = found.family[0, 0, k]
        assert (np.diff(ordered, axis=0) >= -1e-9).all()  # [x, y, z] with x <= y <= z
        assert (ordered >= -1e-9).all()


def test_what_has_no_orientation_keeps_none(gold):
    truth = random_matrix(1)
    beam = (np.empty((0, 2)), np.empty(0))
    bragg = vectors([pattern(gold, truth), beam, beam, pattern(gold, truth)])
    bragg._v_uncal[1, 0].remove(np.ones(1, dtype=bool))
    start = matches([truth, truth, truth, np.zeros((3, 3))], corr=[2, 2, 2, 0])
    found = refine_orientations(
        gold, bragg, start, max_distance=REACH, sigma_excitation_error=SIGMA, progress_bar=False
    )
    assert found.corr[0, 0, 0] == 2
    assert not found.corr[1:].any()
    np.testing.assert_array_equal(found.matrix[1:, 0], np.broadcast_to(np.eye(3), (3, 2, 3, 3)))


def test_bad_input(gold):
    bragg = vectors([pattern(gold, random_matrix(1))])
    start = matches([random_matrix(1)])
    options = {"max_distance": REACH, "sigma_excitation_error": SIGMA}
    with pytest.raises(ValueError, match="does not fit; it must be"):
        refine_orientations(gold, bragg, matches(np.zeros((2, 3, 3))), **options)
    with pytest.raises(ValueError, match="no orientation plan to take max_distance from"):
        refine_orientations(gold, bragg, start, sigma_excitation_error=SIGMA)
    with pytest.raises(TypeError, match="must be a py4DSTEM Crystal"):
        refine_orientations("gold", bragg, start, **options)
    with pytest.raises(TypeError, match="n_twins"):
        refine_orientations(gold, bragg, start, n_twins=1.5, **options)
    plain = BraggVectors((1, 1), (96, 89))
    with pytest.raises(ValueError, match="not calibrated"):
        refine_orientations(gold, plain, start, **options)
    crystal = crystal_of_gold(1.4)
    crystal.orientation_precession_angle_degrees = 1.0
    with pytest.raises(ValueError, match="precession"):
        refine_orientations(crystal, bragg, start, **options)
    del crystal.orientation_precession_angle_degrees, crystal.wavelength
    with pytest.raises(ValueError, match="no voltage"):
        refine_orientations(crystal, bragg, start, **options)
    del crystal.g_vec_all
    with pytest.raises(ValueError, match="no structure factors"):
        refine_orientations(crystal, bragg, start, **options)


def test_the_bar_is_closed_when_a_pattern_fails(gold, monkeypatch):
    class Bar:
        def __init__(self, *arguments, **options):
            self.closed = False
            bars.append(self)

        def update(self, n):
            """Nothing is shown."""

        def close(self):
            self.closed = True

    def fail(*arguments):
        raise ValueError("no climb")

    bars = []
    monkeypatch.setattr("emdfile.tqdmnd", Bar)
    monkeypatch.setattr("py4dstem_clustering.diffraction.refining.refine", fail)
    bragg = vectors([pattern(gold, random_matrix(1))])
    with pytest.raises(ValueError, match="no climb"):
        refine_orientations(
            gold, bragg, matches([random_matrix(1)]), max_distance=REACH,
            sigma_excitation_error=SIGMA,
        )  # fmt: skip
    assert [bar.closed for bar in bars] == [True]
