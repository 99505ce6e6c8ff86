"""Refined orientations: kinematics against py4DSTEM, the climb against known truth."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from py4DSTEM.braggvectors import BraggVectors
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.spatial.transform import Rotation

from py4dstem_clustering import misorientation, orientation_scores, refine_orientations
from py4dstem_clustering.diffraction.misorientation import get_symmetry
from py4dstem_clustering.diffraction.refining import twin_rotations
from py4dstem_clustering.kernels import evidence as ev
from py4dstem_clustering.kernels.evidence import (
    AMBIGUOUS,
    NOT_INDEXED,
    SURE,
    Model,
    Peaks,
    agreement,
    choose_model,
    climb,
    evidence,
    make_peaks,
    unstrained,
    verdict_of,
)
from py4dstem_clustering.kernels.kinematic import (
    INTENSITY_POWER,
    Window,
    brightness,
    make_lattice,
    near_sphere,
    predict,
)
from py4dstem_clustering.simulate.crystals import crystal_of_gold

REACH, PIXEL, CENTRE = 0.08, 0.03, (47.5, 44.0)
ANYWHERE = Window(np.eye(2), np.full(2, -1.4), np.full(2, 1.4))
AREA = 2.8**2
MODEL = Model(6.0, 0.03, 0.008)


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
    return make_lattice(
        crystal.g_vec_all[:, keep], crystal.struct_factors_int[keep], crystal.wavelength
    )


def pattern(crystal, matrix, deformation=((1, 0), (0, 1))):
    """Exact places and expected intensities of the disks that can be found."""
    lattice = lattice_of(crystal)
    places, error = predict(lattice, matrix[None])
    expected = MODEL.scale + brightness(lattice, error[0], MODEL.width)
    found = (expected > 0) & (np.abs(places[0]) < 1.35).all(axis=1)
    return places[0, found] @ np.linalg.inv(np.array(deformation)), np.exp(expected[found])


def peaks_of(crystal, matrix, deformation=((1, 0), (0, 1))):
    return make_peaks(*pattern(crystal, matrix, deformation))


def vectors(patterns):
    """With the direct beam, which is the brightest disk."""
    bragg = BraggVectors((len(patterns), 1), (96, 89))
    for k, (places, intensity) in enumerate(patterns):
        rows = np.zeros(len(places) + 1, dtype=bragg._v_uncal.dtype)
        rows["qx"], rows["qy"] = (np.vstack([places, (0, 0)]) / PIXEL + CENTRE).T
        rows["intensity"] = np.append(intensity, 5000)
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
    sigma = 0.03
    matrices = np.array([random_matrix(seed) for seed in range(4)])
    places, error = predict(lattice, matrices)
    intensity = np.exp(lattice.strength / INTENSITY_POWER - 0.5 * (error / sigma) ** 2)
    for k, matrix in enumerate(matrices):
        theirs = gold.generate_diffraction_pattern(
            orientation_matrix=matrix, sigma_excitation_error=sigma, tol_intensity=0
        ).data
        theirs = theirs[np.hypot(theirs["qx"], theirs["qy"]) > 1e-6]
        near = [np.hypot(*(places[k] - [p["qx"], p["qy"]]).T) < 1e-9 for p in theirs]
        found = np.array([intensity[k][one].sum() for one in near])
        full = gold.struct_factors_int.copy()
        full[np.linalg.norm(gold.g_vec_all, axis=0) < 1e-6] = 0
        assert len(theirs) > 10
        # They cut off at 3 sigma.
        np.testing.assert_allclose(found * full.max(), theirs["intensity"], rtol=1e-6, atol=1e-9)


def test_near_reflections_are_all_that_are_bright_enough(lattice):
    matrix, angle = random_matrix(3), np.deg2rad(2)
    near = near_sphere(lattice, matrix, angle, 0.016, -5.0)
    assert 5 < near.vectors.shape[1] < lattice.vectors.shape[1]
    for seed in range(20):
        error = predict(lattice, turned(matrix, 2, seed)[None])[1][0]
        bright = brightness(lattice, error, 0.016) > -5
        for vector in lattice.vectors[:, bright].T:
            assert (np.abs(near.vectors.T - vector).max(axis=1) < 1e-12).any()


def evidence_by_loops(lattice, window, area, matrix, peaks, model):
    def logistic_density(x):
        return np.exp(-x / ev.SCATTER) / ev.SCATTER / (1 + np.exp(-x / ev.SCATTER)) ** 2

    total, odds = 0.0, [1.0] * len(peaks.places)
    for g, strength in zip(lattice.vectors.T, lattice.strength, strict=True):
        x, y, z = matrix.T @ g
        error = (2 * z - lattice.wavelength * (g @ g)) / (2 - 2 * lattice.wavelength * z)
        expected = model.scale + strength - 2.36 * np.log(1 + (error / model.width) ** 2)
        u, v = np.array([x, y]) @ window.to_pixels
        if not (window.low[0] <= u <= window.high[0] and window.low[1] <= v <= window.high[1]):
            continue
        hidden = 1 / (1 + np.exp(expected / ev.SCATTER))
        total += np.log(hidden)
        for k, (place, bright) in enumerate(zip(peaks.places, peaks.intensity, strict=True)):
            squared = ((place - [x, y]) ** 2).sum()
            near = np.exp(-0.5 * squared / model.error**2) / (2 * np.pi * model.error**2)
            foreign = ev.N_FOREIGN / area * np.exp(-bright / ev.FOREIGN_DECAY) / ev.FOREIGN_DECAY
            one = 1 + logistic_density(bright - expected) * near / (hidden * foreign)
            odds[k] = max(odds[k], one)
    return total + np.log(odds).sum()


def test_evidence_equals_loops(gold, lattice):
    matrices = np.array([random_matrix(1), turned(random_matrix(1), 1, 5), random_matrix(2)])
    peaks = peaks_of(gold, random_matrix(1), ((1.01, 0.004), (0.004, 0.99)))
    window = Window(np.array([[30, 2], [-1, 33]]), np.array([-30.0, -20]), np.array([25.0, 31]))
    for one in (ANYWHERE, window):
        found = evidence(lattice, one, AREA, matrices, peaks, MODEL)
        expected = [evidence_by_loops(lattice, one, AREA, m, peaks, MODEL) for m in matrices]
        # Beyond six errors of place, a disk belongs to no reflection.
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert found[0] > found[1] > found[2]


def test_nothing_is_evidence_of_nothing(lattice):
    """Without disks, each reflection that should be there speaks against the lattice."""
    empty = Peaks(np.empty((0, 2)), np.empty(0))
    matrix = random_matrix(1)[None]
    found = evidence(lattice, ANYWHERE, AREA, matrix, empty, MODEL)[0]
    assert found == pytest.approx(
        evidence_by_loops(lattice, ANYWHERE, AREA, matrix[0], empty, MODEL)
    )
    assert found < -10


def test_the_model_is_the_best_of_all_choices(gold, lattice):
    matrix = turned(random_matrix(1), 0.3, 2)
    peaks = peaks_of(gold, random_matrix(1))
    value, model = choose_model(lattice, ANYWHERE, AREA, matrix, peaks, ev.WIDTHS, 0.012)
    every = {
        (scale, width): float(
            evidence(lattice, ANYWHERE, AREA, matrix[None], peaks, Model(scale, width, 0.012))[0]
        )
        for scale in ev.SCALES.tolist()
        for width in ev.WIDTHS.tolist()
    }
    best = max(every, key=every.get)
    assert (model.scale, model.width) == best
    # Reflections without a chance to be found are left out.
    assert value == pytest.approx(every[best], abs=0.1)


def test_the_pattern_chooses_its_width(gold, lattice):
    matrix = random_matrix(1)
    chosen = []
    for width in (0.006, 0.016, 0.04):
        places, error = predict(lattice, matrix[None])
        expected = 5 + brightness(lattice, error[0], width)
        found = (expected > 0) & (np.abs(places[0]) < 1.35).all(axis=1)
        peaks = make_peaks(places[0, found], np.exp(expected[found]))
        _, model = choose_model(lattice, ANYWHERE, AREA, matrix, peaks, ev.WIDTHS, 0.008)
        chosen.append(model.width / width)
    np.testing.assert_allclose(chosen, 1, atol=0.5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strain", [0, 0.02])
def test_climb_finds_the_truth(gold, lattice, seed, strain):
    truth = random_matrix(seed)
    xx, yy, xy = strain * np.random.default_rng(seed).uniform(-1, 1, 3)
    peaks = peaks_of(gold, truth, ((1 + xx, xy), (xy, 1 + yy)))
    found = turned(truth, 2.5, seed)
    _, model = choose_model(lattice, ANYWHERE, AREA, found, peaks, ev.WIDTHS[1::3], 0.02)
    _, found = climb(lattice, ANYWHERE, AREA, found, peaks, model, *np.deg2rad([1.5, 0.5]))
    for error in (0.012, 0.008):
        free = unstrained(lattice, found, peaks, model)
        _, model = choose_model(lattice, ANYWHERE, AREA, found, free, ev.WIDTHS, error)
        value, found = climb(lattice, ANYWHERE, AREA, found, free, model, *np.deg2rad([0.5, 0.05]))
    assert np.rad2deg(Rotation.from_matrix(found @ truth.T).magnitude()) < 0.4
    assert value > evidence(lattice, ANYWHERE, AREA, truth[None], peaks_of(gold, truth), MODEL)


def test_strain_is_taken_out_but_no_rotation(gold, lattice):
    truth = random_matrix(3)
    turn = Rotation.from_rotvec([0, 0, 0.01]).as_matrix()
    deformation = np.array([[1.015, 0.006], [0.006, 0.985]])
    strained = peaks_of(gold, truth @ turn, deformation)
    free = unstrained(lattice, truth, strained, MODEL)
    np.testing.assert_allclose(free.places, peaks_of(gold, truth @ turn).places, atol=4e-3)
    assert np.abs(free.places - peaks_of(gold, truth).places).max() > 0.005
    few = Peaks(strained.places[:2], strained.intensity[:2])
    assert unstrained(lattice, truth, few, MODEL) is few
    far = Peaks(strained.places + 0.3, strained.intensity)
    np.testing.assert_allclose(
        unstrained(lattice, truth, far, MODEL).places, far.places, atol=ev.MAX_STRAIN * 2
    )


def test_agreement_of_a_perfect_pattern(gold, lattice):
    truth = random_matrix(3)
    peaks = peaks_of(gold, truth)
    found = agreement(lattice, ANYWHERE, truth, peaks, MODEL, 0.25)
    assert found.n_disks == len(peaks.places)
    assert found.explained == pytest.approx(1)
    assert 0.9 < found.cosine <= 1
    # A foreign disk as bright as the brightest lowers all three.
    far = Peaks(
        np.vstack([peaks.places, [[1.31, 1.27]]]), np.append(peaks.intensity, peaks.intensity.max())
    )
    worse = agreement(lattice, ANYWHERE, truth, far, MODEL, 0.25)
    assert worse.n_disks == found.n_disks
    share = np.exp(peaks.intensity).sum() / np.exp(far.intensity).sum()
    assert worse.explained == pytest.approx(share)
    assert worse.cosine < found.cosine
    # A missing one lowers the cosine, too.
    brightest = peaks.intensity.argmax()
    fewer = Peaks(*(np.delete(one, brightest, axis=0) for one in peaks))
    assert agreement(lattice, ANYWHERE, truth, fewer, MODEL, 0.25).cosine < found.cosine
    nothing = Peaks(np.empty((0, 2)), np.empty(0))
    assert agreement(lattice, ANYWHERE, truth, nothing, MODEL, 0.25) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((60, 40, 9, 0.9), SURE),
        ((60, 57, 9, 0.9), AMBIGUOUS),
        ((60, -5, 9, 0.9), SURE),
        ((60, 40, 4, 0.9), AMBIGUOUS),
        ((60, 40, 9, 0.55), AMBIGUOUS),
        ((60, 40, 9, 0.45), NOT_INDEXED),
        ((11, 0, 9, 0.9), NOT_INDEXED),
        ((60, 40, 2, 0.9), NOT_INDEXED),
    ],
)
def test_verdicts(values, verdict):
    assert verdict_of(*values) == verdict


def test_twins_are_on_the_planes_of_the_shortest_vectors(gold, lattice):
    symmetry = get_symmetry(gold)
    turns = twin_rotations(lattice, symmetry, 4)
    assert len(turns) == 5
    np.testing.assert_array_equal(turns[0], np.eye(3))
    np.testing.assert_allclose(misorientation(turns[1:], np.eye(3), gold), 60)
    normals = [np.abs(np.linalg.eigh(turn)[1][:, -1]) for turn in turns[1:]]
    np.testing.assert_allclose(normals, 1 / np.sqrt(3), atol=1e-9)
    assert len(twin_rotations(lattice, symmetry, 0)) == 1


OPTIONS = {"max_distance": REACH, "progress_bar": False}
NEAR = {**OPTIONS, "n_candidates": 0}


@pytest.mark.parametrize("n", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_map_is_refined(gold, n):
    truth = np.array([random_matrix(seed) for seed in range(n)])
    start = np.array([turned(m, 2.5, seed) for seed, m in enumerate(truth)])
    start[2] = twins_of(gold)[2] @ start[2]  # the matching took its twin
    deformations = [np.eye(2) + 0.01 * np.array([[k - 4, 1], [1, 3 - k]]) / 4 for k in range(n)]
    bragg = vectors([pattern(gold, m, d) for m, d in zip(truth, deformations, strict=True)])
    before = matches(start, corr=3.0)
    kept = before.matrix.copy(), before.corr.copy()
    found = refine_orientations(gold, bragg, before, **OPTIONS)
    assert found.num_matches == 2
    error = misorientation(found.matrix[:, 0, 0], truth, gold)
    sure = orientation_scores(found).is_verdict("sure")[:, 0]
    assert (error[sure] < 0.5).all(), error
    # Two lattices explain the sixth pattern equally well; one of them is the truth.
    np.testing.assert_array_equal(sure, np.arange(n) != 5)
    second = misorientation(found.matrix[:, 0, 1], truth, gold)
    assert (np.minimum(error, second) < 0.5).all(), second
    assert (misorientation(start, truth, gold) > 2).all()
    apart = misorientation(found.matrix[:, 0, 1], found.matrix[:, 0, 0], gold)
    assert (apart > 5).all()
    np.testing.assert_array_equal(before.matrix, kept[0])
    np.testing.assert_array_equal(before.corr, kept[1])
    # Angles mean the matrix, as those of py4DSTEM do.
    for k in range(n):
        again = Rotation.from_euler("zxz", found.angles[k, 0, 0]).as_matrix().T
        np.testing.assert_allclose(again, found.matrix[k, 0, 0], atol=1e-9)
    assert not found.mirror.any()

    scores = orientation_scores(found)
    assert scores.shape == (n, 1)
    np.testing.assert_array_equal(scores.score, found.corr[:, :, 0])
    np.testing.assert_array_equal(scores.runner_up, found.corr[:, :, 1])
    assert (scores.score > 0.9).all()
    assert (scores.score <= 1).all()
    lead = scores.evidence - scores.runner_up_evidence
    np.testing.assert_array_equal(lead[:, 0] > 4, sure)
    assert (lead >= 0).all()
    np.testing.assert_array_equal(scores.runner_up_matrix, found.matrix[:, :, 1])
    n_measured = [len(bragg._v_uncal[k, 0].data) - 1 for k in range(n)]
    assert (scores.n_disks[:, 0] >= np.array(n_measured) - 1).all()
    assert (scores.n_disks[:, 0] <= n_measured).all()
    np.testing.assert_allclose(scores.explained, 1, atol=0.05)
    width = scores.sigma_excitation_error
    assert ((width > 0.01) & (width < 0.02)).all()  # the relrods of the patterns have 0.0146


def twins_of(gold):
    return twin_rotations(lattice_of(gold), get_symmetry(gold), 4)


def test_the_search_needs_no_match(gold):
    truth = random_matrix(7)
    start = matches([random_matrix(8)])
    bragg = vectors([pattern(gold, truth)])
    assert misorientation(start.matrix[0, 0, 0], truth, gold) > 10
    alone = refine_orientations(gold, bragg, start, n_twins=0, **NEAR)
    assert misorientation(alone.matrix[0, 0, 0], truth, gold) > 5
    assert orientation_scores(alone).verdict[0, 0] == NOT_INDEXED
    found = refine_orientations(gold, bragg, start, n_twins=0, **OPTIONS)
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.5
    np.testing.assert_array_equal(found.inds[0, 0, 0], [-1, -1])


def test_a_fibre_texture_is_not_left(gold):
    truth = random_matrix(7)
    crystal = crystal_of_gold(1.4)
    crystal.orientation_fiber = True
    found = refine_orientations(
        crystal, vectors([pattern(gold, truth)]), matches([random_matrix(8)]), n_twins=0, **OPTIONS
    )
    assert misorientation(found.matrix[0, 0, 0], truth, gold) > 5


def test_without_twins_the_wrong_one_stays(gold):
    truth = random_matrix(3)
    bragg = vectors([pattern(gold, truth)])
    start = matches([twins_of(gold)[2] @ truth])
    alone = refine_orientations(gold, bragg, start, n_twins=0, **NEAR)
    assert misorientation(alone.matrix[0, 0, 0], truth, gold) > 5
    both = refine_orientations(gold, bragg, start, **NEAR)
    assert misorientation(both.matrix[0, 0, 0], truth, gold) < 0.5


def test_a_match_turned_by_180_degrees_about_the_beam_is_turned_back(gold):
    truth = random_matrix(2)
    start = turned(truth, 2, 4) @ np.diag([-1.0, -1.0, 1.0])
    assert misorientation(start, truth, gold) > 5
    found = refine_orientations(
        gold, vectors([pattern(gold, truth)]), matches([start]), n_twins=0, **NEAR
    )
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.5


def test_every_match_is_tried(gold):
    truth = random_matrix(2)
    start = OrientationMap(1, 1, 2)
    start.matrix[0, 0] = random_matrix(5), turned(truth, 2, 4)
    start.corr[0, 0] = 3, 2
    start.inds[0, 0] = [[1, 2], [3, 4]]
    found = refine_orientations(gold, vectors([pattern(gold, truth)]), start, n_twins=0, **NEAR)
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.5
    np.testing.assert_array_equal(found.inds[0, 0, 0], [3, 4])


def test_of_two_equal_lattices_the_matched_one_is_kept(gold):
    """A pattern of one plane of the reciprocal lattice, and its half turn about the zone axis."""
    zone = np.array([1.0, 1, 2]) / np.sqrt(6)
    x = np.array([1.0, -1, 0]) / np.sqrt(2)
    truth = np.stack([x, np.cross(zone, x), zone], axis=1)
    half_turn = 2 * np.outer(zone, zone) - np.eye(3)
    assert misorientation(half_turn @ truth, truth, gold) > 50
    places, intensity = pattern(gold, truth)
    inside = np.hypot(*places.T) < 1.0  # farther out, other planes tell them apart
    bragg = vectors([(places[inside], intensity[inside])])
    for start in (truth, half_turn @ truth):
        found = refine_orientations(gold, bragg, matches([start]), **OPTIONS)
        assert misorientation(found.matrix[0, 0, 0], start, gold) < 1
        scores = orientation_scores(found)
        assert scores.verdict[0, 0] == AMBIGUOUS
        assert abs(scores.evidence - scores.runner_up_evidence)[0, 0] < 2


def test_power_of_intensities_changes_the_score_only(gold):
    truth = random_matrix(4)
    bragg, start = vectors([pattern(gold, truth)]), matches([turned(truth, 2, 4)])
    plain, alike = (
        refine_orientations(gold, bragg, start, power_intensity=power, **NEAR)
        for power in (0.25, 0)
    )
    np.testing.assert_array_equal(alike.matrix, plain.matrix)
    assert np.abs(alike.corr - plain.corr).max() > 1e-3


def test_a_given_width_is_used(gold):
    truth = random_matrix(4)
    bragg, start = vectors([pattern(gold, truth)]), matches([turned(truth, 1, 4)])
    found = refine_orientations(gold, bragg, start, sigma_excitation_error=0.013, **NEAR)
    np.testing.assert_allclose(found.sigma_excitation_error, 0.013)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_intensities_does_not_matter(gold, factor):
    places, intensity = pattern(gold, random_matrix(4))
    start = matches([turned(random_matrix(4), 2, 4)])
    one, other = (
        refine_orientations(gold, vectors([(places, intensity * by)]), start, **NEAR)
        for by in (1, factor)
    )
    np.testing.assert_allclose(other.matrix, one.matrix, atol=1e-9)
    np.testing.assert_allclose(other.corr, one.corr)


def test_disks_beyond_the_detector_are_not_expected(gold):
    """Where a part of the detector is missing, the orientation is as exact."""
    truth = random_matrix(3)
    places, intensity = pattern(gold, truth)
    inside = places[:, 0] > -0.35
    assert 6 < inside.sum() < 0.8 * len(places)
    bragg = vectors([(places[inside], intensity[inside])])
    found = refine_orientations(gold, bragg, matches([turned(truth, 2, 3)]), n_twins=0, **NEAR)
    assert misorientation(found.matrix[0, 0, 0], truth, gold) < 0.5


@pytest.mark.parametrize("calibration", ["rotation", "flip", "ellipse", "descan"])
def test_calibrations_change_no_orientation(gold, calibration):
    """Detectors that are turned, mirrored, elliptic or descanned, calibrated: the same within 0.1
    degree."""
    n = 2
    truth = np.array([random_matrix(seed) for seed in (2, 5)])
    patterns = [pattern(gold, one) for one in truth]
    start = matches([turned(one, 1.5, 3) for one in truth])
    plain = refine_orientations(gold, vectors(patterns), start, **NEAR)

    bragg = BraggVectors((n, 1), (96, 89))
    bragg.calibration.set_Q_pixel_size(PIXEL)
    bragg.calibration.set_Q_pixel_units("A^-1")
    origin = np.tile(CENTRE, (n, 1, 1))
    if calibration == "descan":
        origin += [[[0.0, 0.0]], [[5.3, -3.1]]]
    bragg.calibration.set_origin((origin[..., 0], origin[..., 1]))
    if calibration == "ellipse":
        bragg.calibration.set_ellipse((1.06, 1.0, 0.4))
    if calibration in ("rotation", "flip"):
        bragg.calibration.set_QR_rotation_degrees(37.0)
        bragg.calibration.set_QR_flip(calibration == "flip")
    # Where on the detector a disk has its calibrated place: the calibration is linear.
    probe = np.random.default_rng(0).normal(0, 10, (20, 2))
    rows = np.zeros(20, dtype=bragg._v_uncal.dtype)
    rows["qx"], rows["qy"] = (probe + origin[0, 0]).T
    bragg._v_uncal[0, 0].add(rows)
    bragg.setcal()
    seen = bragg.cal[0, 0].data
    seen = np.stack([seen["qx"], seen["qy"]], axis=1)
    to_detector = np.linalg.lstsq(seen, probe, rcond=None)[0]
    np.testing.assert_allclose(seen @ to_detector, probe, atol=1e-6)
    if calibration != "descan":
        assert np.abs(to_detector - np.eye(2) / PIXEL).max() > 0.5
    bragg._v_uncal[0, 0].remove(np.ones(20, dtype=bool))
    for k, (places, intensity) in enumerate(patterns):
        rows = np.zeros(len(places) + 1, dtype=bragg._v_uncal.dtype)
        on_detector = np.vstack([places @ to_detector, (0, 0)]) + origin[k, 0]
        rows["qx"], rows["qy"] = on_detector.T
        rows["intensity"] = np.append(intensity, 5000)
        bragg._v_uncal[k, 0].add(rows)
    found = refine_orientations(gold, bragg, start, **NEAR)
    apart = misorientation(found.matrix[:, 0, 0], plain.matrix[:, 0, 0], gold)
    assert apart.max() < 0.1
    np.testing.assert_array_equal(found.verdict, plain.verdict)


def test_the_wrong_crystal_explains_less(gold):
    """Noise of places is small, so that a lattice of other distances does not fit."""
    truth = random_matrix(6)
    bragg = vectors([pattern(gold, truth)])
    other = crystal_of_gold(1.4)
    other = type(other)(other.positions, other.numbers, 5.0)
    other.calculate_structure_factors(1.4)
    other.setup_diffraction(300e3)
    right, wrong = (
        orientation_scores(refine_orientations(one, bragg, matches([random_matrix(1)]), **OPTIONS))
        for one in (gold, other)
    )
    assert right.is_verdict("sure").all()
    assert not wrong.is_verdict("sure").any()
    assert right.score > wrong.score + 0.05
    assert right.n_disks > wrong.n_disks
    assert right.evidence > wrong.evidence + 10


def test_scores_in_words(gold):
    truth = random_matrix(2)
    beam = (np.empty((0, 2)), np.empty(0))
    bragg = vectors([pattern(gold, truth), beam])
    found = refine_orientations(gold, bragg, matches([truth, truth]), **NEAR)
    scores = orientation_scores(found)
    assert repr(scores) == "OrientationScores(2 x 1: 1 sure, 0 ambiguous, 1 not indexed)"
    table = scores.table()
    assert table["verdict"].tolist() == ["sure", "not indexed"]
    assert table["n_disks"][0] == scores.n_disks[0, 0]
    assert table["score"][1] == 0
    assert np.isnan(scores.runner_up_matrix[1]).all()
    assert np.isnan(table["sigma_excitation_error"][1])
    with pytest.raises(ValueError, match="must be one of 'not indexed'"):
        scores.is_verdict("certain")
    with pytest.raises(ValueError, match="has no scores, because it does not come from"):
        orientation_scores(matches([truth]))
    with pytest.raises(TypeError, match="must be an OrientationMap"):
        orientation_scores("map")


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
    found = refine_orientations(crystal, bragg, matches([random_matrix(2)]), progress_bar=False)
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
    found = refine_orientations(gold, bragg, start, **OPTIONS)
    assert found.corr[0, 0, 0] > 0.9
    assert not found.corr[1:].any()
    np.testing.assert_array_equal(found.matrix[1:, 0], np.broadcast_to(np.eye(3), (3, 2, 3, 3)))


def test_bad_input(gold):
    bragg = vectors([pattern(gold, random_matrix(1))])
    start = matches([random_matrix(1)])
    options = {"max_distance": REACH}
    with pytest.raises(ValueError, match="does not fit; it must be"):
        refine_orientations(gold, bragg, matches(np.zeros((2, 3, 3))), **options)
    with pytest.raises(ValueError, match="no orientation plan to take max_distance from"):
        refine_orientations(gold, bragg, start)
    with pytest.raises(TypeError, match="must be a py4DSTEM Crystal"):
        refine_orientations("gold", bragg, start, **options)
    for name in ("n_twins", "n_candidates"):
        with pytest.raises(TypeError, match=name):
            refine_orientations(gold, bragg, start, **{name: 1.5}, **options)
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
    monkeypatch.setattr("py4dstem_clustering.diffraction.refining.climb", fail)
    bragg = vectors([pattern(gold, random_matrix(1))])
    with pytest.raises(ValueError, match="no climb"):
        refine_orientations(gold, bragg, matches([random_matrix(1)]), max_distance=REACH)
    assert [bar.closed for bar in bars] == [True]
