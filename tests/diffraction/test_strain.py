"""Strain against the lattice of the cluster: exact, in the axes of the scan, with a reason."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from functools import lru_cache
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import Calibration, DataCube
from py4DSTEM.braggvectors import BraggVectors
from py4DSTEM.process.diffraction import Crystal
from py4DSTEM.process.diffraction.utils import OrientationMap
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from py4dstem_clustering import Clusters
from py4dstem_clustering.diffraction.scores import _FIELDS as SCORE_FIELDS
from py4dstem_clustering.diffraction.strain import REASONS, SLICES
from py4dstem_clustering.emd import settings
from py4dstem_clustering.patterns.mixture import Mixture

PIXEL = 0.03
DETECTOR = (96, 90)
SIGMA = 0.03
OPTIONS = {"max_distance": 0.08, "sigma_excitation_error": SIGMA, "progress_bar": False}
FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
HCP = [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]


@lru_cache
def crystal_of(name="gold"):
    cell = {"gold": (FCC, 79, 4.0782), "magnesium": (HCP, 12, [3.209, 3.209, 5.211, 90, 90, 120])}
    positions, number, lengths = cell[name]
    crystal = Crystal(np.array(positions), number, lengths)
    crystal.calculate_structure_factors(1.5)
    crystal.setup_diffraction(300e3)
    return crystal


def reference_peaks(crystal, matrix):
    peaks = crystal.generate_diffraction_pattern(
        orientation_matrix=matrix, sigma_excitation_error=SIGMA
    ).data
    places = np.stack([peaks["qx"], peaks["qy"]], axis=1)
    return places[np.hypot(*places.T) > 1e-6]


def clusters_of(labels):
    labels = np.array(labels)
    seeds = np.array([np.argwhere(labels == k)[0] for k in range(labels.max() + 1)])
    return Clusters(labels, seeds.reshape(-1, 2), np.zeros(labels.shape), {})


def map_of(matrices):
    out = OrientationMap(len(matrices), 1, 1)
    out.matrix[:, 0, 0] = matrices
    out.corr[:] = 1
    # As after a match: none of this may show up in theta.
    out.angles[:] = 0.3
    return out


def deformation(e_xx, e_yy, e_xy, theta):
    """From the docstring: F = (I + e) R, and theta is positive from y to x."""
    c, s = np.cos(theta), np.sin(theta)
    return np.array([[1 + e_xx, e_xy], [e_xy, 1 + e_yy]]) @ np.array([[c, s], [-s, c]])


def detected(places, calibration, position):
    """Where the detector sees peaks that lie at `places` along the axes of the scan."""
    places = np.array(places, dtype=float).reshape(-1, 2)
    angle = calibration.get_QR_rotation()
    if angle is not None:
        c, s = np.cos(angle), np.sin(angle)
        places = places @ np.array([[c, -s], [s, c]])
        if calibration.get_QR_flip():
            places = places[:, ::-1]
    places = places / PIXEL
    if calibration.get_ellipse() is not None:
        a, b, theta = calibration.get_ellipse(*position)
        # The ellipse, with semiaxis a along theta and b across it, becomes a circle of radius b.
        along = np.array([np.cos(theta), np.sin(theta)])
        places = places + (a / b - 1) * (places @ along)[:, None] * along
    return places + calibration.get_origin(*position)


def calibration_of(shape, ellipse=None, rotation=None, flip=None):
    calibration = Calibration()
    calibration.set_Q_pixel_size(PIXEL)
    calibration.set_Q_pixel_units("A^-1")
    x, y = np.indices(shape)
    calibration.set_origin((47 + 0.7 * x - 0.3 * y, 44 - 0.2 * x + 0.9 * y))
    if ellipse is not None:
        calibration.set_ellipse(ellipse)
    if rotation is not None:
        calibration.set_QR_rotation(rotation)
    if flip is not None:
        calibration.set_QR_flip(flip)
    return calibration


def bragg_of(peaks, calibration=None):
    """BraggVectors that hold peaks {position: places along the axes of the scan}."""
    shape = tuple(np.max(list(peaks), axis=0) + 1)
    out = BraggVectors(shape, DETECTOR, calibration=calibration or calibration_of(shape))
    for position, places in peaks.items():
        where = detected(places, out.calibration, position)
        rows = np.zeros(len(where), out._v_uncal.dtype)
        rows["qx"], rows["qy"] = where.T
        rows["intensity"] = 1 + np.arange(len(where))
        out._v_uncal[position].add(rows)
    return out


def random_rotations(n, seed=0):
    quaternions = np.random.default_rng(seed).standard_normal((n, 4))
    return Rotation.from_quat(quaternions).as_matrix()


def random_strains(shape, seed, largest=0.02):
    return np.random.default_rng(seed).uniform(-largest, largest, (*shape, 4))


LABELS = np.array([[0, 0, 1, 2], [1, 1, 1, 2], [0, 1, 2, 2]])


def experiment(name="gold", seed=0, labels=LABELS, largest=0.02, **calibration):
    """A scan of strained grains: the crystal, the clusters, peaks, orientations and the truth."""
    labels = np.array(labels)
    crystal = crystal_of(name)
    matrices = random_rotations(labels.max() + 1, seed)
    strains = random_strains(labels.shape, seed, largest)
    peaks = {
        position: reference_peaks(crystal, matrices[labels[position]])
        @ np.linalg.inv(deformation(*strains[position]))
        for position in np.ndindex(*labels.shape)
    }
    return SimpleNamespace(
        crystal=crystal,
        clusters=clusters_of(labels),
        peaks=peaks,
        bragg=bragg_of(peaks, calibration_of(labels.shape, **calibration)),
        orientation=map_of(matrices),
        truth=np.moveaxis(strains, 2, 0),
    )


def strain_of(scan, **options):
    return scan.clusters.calculate_strain(
        scan.crystal, scan.bragg, scan.orientation, **{**OPTIONS, **options}
    )


# --- the numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize(
    "calibration",
    [
        {},
        {"ellipse": (1.05, 0.98, 0.4)},
        {"rotation": 0.7},
        {"rotation": 0.7, "flip": False},
        {"rotation": -0.7, "flip": True},
        {"rotation": 2.1, "flip": True, "ellipse": (0.97, 1.02, -0.6)},
    ],
)
def test_finite_deformations_are_recovered_exactly(calibration, robust):
    scan = experiment(**calibration)
    found = strain_of(scan, robust=robust)
    np.testing.assert_allclose(found.data[:4], scan.truth, atol=1e-10)
    assert (found.get_slice("mask").data == 1).all()
    assert (found.get_slice("reason").data == 0).all()
    for position in np.ndindex(*LABELS.shape):
        peaks = reference_peaks(scan.crystal, scan.orientation.matrix[LABELS[position], 0, 0])
        assert found.get_slice("n_peaks").data[position] == len(peaks)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["gold", "magnesium"])
def test_both_kinds_of_lattices(name, seed):
    scan = experiment(name, seed)
    np.testing.assert_allclose(strain_of(scan).data[:4], scan.truth, atol=1e-10)


def test_signs():
    # The lattice is wider along x, its reciprocal lattice narrower.
    crystal, matrix = crystal_of(), np.eye(3)
    peaks = reference_peaks(crystal, matrix)
    wide, turned = (
        peaks * [1 / 1.01, 1],
        peaks @ Rotation.from_rotvec([0, 0, 0.01]).as_matrix()[:2, :2].T,
    )
    scan = SimpleNamespace(
        crystal=crystal,
        clusters=clusters_of([[0, 0]]),
        bragg=bragg_of({(0, 0): wide, (0, 1): turned}),
        orientation=map_of([matrix]),
    )
    found = strain_of(scan).data[:4, 0]
    np.testing.assert_allclose(found[:, 0], [0.01, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found[:, 1], [0, 0, 0, -0.01], atol=1e-12)  # turned from x to y


@pytest.mark.parametrize("robust", [True, False])
def test_no_strain_at_all(robust):
    scan = experiment(largest=0)
    found = strain_of(scan, robust=robust)
    np.testing.assert_allclose(found.data[:4], 0, atol=1e-12)
    # Also where not even rounding is left.
    calibration = calibration_of(LABELS.shape)
    calibration.set_origin((0, 0))
    calibration.set_Q_pixel_size(1)
    scan.bragg = BraggVectors(LABELS.shape, DETECTOR, calibration=calibration)
    for position, places in scan.peaks.items():
        rows = np.zeros(len(places), scan.bragg._v_uncal.dtype)
        matrix = scan.orientation.matrix[LABELS[position], 0, 0]
        rows["qx"], rows["qy"] = reference_peaks(scan.crystal, matrix).T
        scan.bragg._v_uncal[position].add(rows)
    found = strain_of(scan, robust=robust)
    np.testing.assert_allclose(found.data[:4], 0, atol=1e-12)
    assert (found.data[4] == 1).all()


@pytest.mark.parametrize("axis", ["e_xx", "e_yy", "e_xy", "theta"])
@pytest.mark.parametrize(
    "calibration",
    [
        {},
        {"rotation": 0.5},
        {"rotation": -1.9, "flip": True},
        {"ellipse": (1.04, 0.97, 0.8)},
        {"rotation": 0.5, "flip": True, "ellipse": (0.96, 1.03, -0.4)},
    ],
)
def test_one_strained_axis_at_a_time(axis, calibration):
    """Only this axis, and no other, in the axes of the scan, whatever the detector does."""
    crystal, matrices = crystal_of(), random_rotations(1, 9)
    strain = dict.fromkeys(("e_xx", "e_yy", "e_xy", "theta"), 0.0) | {axis: 0.008}
    places = reference_peaks(crystal, matrices[0]) @ np.linalg.inv(deformation(**strain))
    scan = SimpleNamespace(
        crystal=crystal,
        clusters=clusters_of([[0]]),
        bragg=bragg_of({(0, 0): places}, calibration_of((1, 1), **calibration)),
        orientation=map_of(matrices),
    )
    np.testing.assert_allclose(strain_of(scan).data[:4, 0, 0], list(strain.values()), atol=1e-10)


def test_standard_errors():
    """They grow with the noise, hold the truth in 68 % of the cases, and vanish without noise."""
    exact = strain_of(experiment(seed=4)).data[7:]
    assert (exact < 1e-8).all()
    labels = np.zeros((12, 12), int)
    scan = experiment(seed=4, labels=labels)
    rng = np.random.default_rng(0)
    scan.bragg = bragg_of(
        {at: places + rng.normal(0, 0.004, places.shape) for at, places in scan.peaks.items()}
    )
    for robust in (True, False):
        found = strain_of(scan, robust=robust).data
        inside = np.abs(found[:4] - scan.truth) < found[7:]
        assert 0.6 < inside.mean() < 0.76
        assert 1e-4 < np.median(found[7:]) < 5e-3
    nothing = experiment(seed=4, labels=labels)
    nothing.peaks = {at: places[:2] for at, places in nothing.peaks.items()}
    nothing.bragg = bragg_of(nothing.peaks)
    assert np.isnan(strain_of(nothing).data[7:]).all()


def with_scores(orientation, verdicts):
    """Scores of a map of clusters, as `refine_orientations` gives them."""
    for name in SCORE_FIELDS:
        setattr(orientation, name, np.ones((len(verdicts), 1)))
    orientation.verdict = np.array(verdicts, dtype=np.uint8)[:, None]


def test_verdicts_are_reasons():
    scan = experiment()
    with_scores(scan.orientation, [2, 1, 0])
    for orientation in (scan.orientation, scan.clusters.expand_orientation_map(scan.orientation)):
        found = scan.clusters.calculate_strain(scan.crystal, scan.bragg, orientation, **OPTIONS)
        reason = np.array(REASONS)[found.get_slice("reason").data.astype(int)]
        expected = np.array(["defined", "ambiguous", "not indexed"])[LABELS]
        np.testing.assert_array_equal(reason, expected)
        np.testing.assert_array_equal(found.get_slice("mask").data, LABELS < 2)
        np.testing.assert_array_equal(np.isfinite(found.data[:4]).all(axis=0), LABELS < 2)


def slow_strain(peaks, reference):
    """Least squares on pairs of nearest peaks, then the polar decomposition."""
    pairs = []
    for place in peaks:
        distance = np.hypot(*(reference - place).T)
        if distance.min() <= OPTIONS["max_distance"]:
            pairs.append((place, reference[distance.argmin()]))
    found, expected = np.array(pairs).transpose(1, 0, 2)
    # found = F^-T expected
    inverse, *_ = np.linalg.lstsq(expected, found, rcond=None)
    turn, left = polar(np.linalg.inv(inverse), side="left")
    return [left[0, 0] - 1, left[1, 1] - 1, left[0, 1], np.arctan2(turn[0, 1], turn[1, 1])]


def test_noisy_peaks_equal_a_slow_reference():
    scan = experiment(seed=4)
    rng = np.random.default_rng(0)
    peaks = {
        position: rng.permutation(places + rng.normal(0, 0.004, places.shape))
        for position, places in scan.peaks.items()
    }
    scan.bragg = bragg_of(peaks)
    found = strain_of(scan, robust=False).data
    for position, places in peaks.items():
        matrix = scan.orientation.matrix[LABELS[position], 0, 0]
        expected = slow_strain(places, reference_peaks(scan.crystal, matrix))
        np.testing.assert_allclose(found[(slice(0, 4), *position)], expected, atol=1e-9)
    assert 1e-4 < np.abs(found[:4] - scan.truth).max() < 0.01
    robust = strain_of(scan).data
    assert 1e-6 < np.abs(robust[:4] - found[:4]).max() < 0.005


@pytest.mark.parametrize("turned", [0, 0.02, -0.03])
def test_outliers_lose_weight(turned):
    labels = np.zeros((6, 5), int)
    crystal, matrices = crystal_of(), random_rotations(1, 5)
    reference = reference_peaks(crystal, matrices[0])
    truth = np.array([0.005, -0.004, 0.003, turned])
    rng = np.random.default_rng(1)
    peaks = {}
    for position in np.ndindex(6, 5):
        places = reference @ np.linalg.inv(deformation(*truth))
        places += rng.normal(0, 0.001, places.shape)
        places[rng.integers(len(places))] += 0.03  # still nearest to its own reflection
        peaks[position] = places
    scan = SimpleNamespace(
        crystal=crystal,
        clusters=clusters_of(labels),
        bragg=bragg_of(peaks),
        orientation=map_of(matrices),
    )
    error = {}
    for robust in (True, False):
        found = strain_of(scan, robust=robust).data[:4]
        error[robust] = np.sqrt(((found - truth[:, None, None]) ** 2).mean())
    assert error[True] < 0.3 * error[False]
    assert error[True] < 5e-4


def test_noise_and_the_direct_beam_are_not_matched():
    scan = experiment(seed=6)
    rng = np.random.default_rng(2)
    peaks = {}
    for position, places in scan.peaks.items():
        noise = rng.uniform(-1.2, 1.2, (30, 2))
        distance = np.hypot(*(noise[:, None] - places).transpose(2, 0, 1)).min(axis=1)
        beam = rng.normal(0, 0.005, (1, 2))
        peaks[position] = rng.permutation(np.concatenate([places, noise[distance > 0.12], beam]))
    assert len(peaks[0, 0]) > len(scan.peaks[0, 0]) + 3
    scan.bragg = bragg_of(peaks)
    found = strain_of(scan)
    np.testing.assert_allclose(found.data[:4], scan.truth, atol=1e-10)
    plain = [len(scan.peaks[position]) for position in np.ndindex(*LABELS.shape)]
    np.testing.assert_array_equal(found.get_slice("n_peaks").data.ravel(), plain)


def test_of_two_peaks_at_one_reflection_the_nearer_counts():
    scan = experiment(seed=7, largest=0.005)
    peaks = {
        position: np.concatenate([places, places[:3] + 0.03])
        for position, places in scan.peaks.items()
    }
    scan.bragg = bragg_of(peaks)
    found = strain_of(scan, robust=False)
    np.testing.assert_allclose(found.data[:4], scan.truth, atol=1e-10)
    plain = [len(scan.peaks[position]) for position in np.ndindex(*LABELS.shape)]
    np.testing.assert_array_equal(found.get_slice("n_peaks").data.ravel(), plain)


def test_the_direct_beam_never_stands_for_a_missing_reflection():
    scan = experiment(seed=10, largest=0.005)
    peaks = {}
    for position, places in scan.peaks.items():
        order = np.argsort(np.hypot(*places.T))
        peaks[position] = np.concatenate([places[order[4:]], [[0.001, 0.002]]])
    scan.bragg = bragg_of(peaks)
    found = strain_of(scan, robust=False, max_distance=0.6)
    np.testing.assert_allclose(found.data[:4], scan.truth, atol=1e-10)
    plain = [len(peaks[position]) - 1 for position in np.ndindex(*LABELS.shape)]
    np.testing.assert_array_equal(found.get_slice("n_peaks").data.ravel(), plain)


def test_peaks_farther_than_the_largest_distance_do_not_count():
    scan = experiment(seed=8)
    far = strain_of(scan, max_distance=0.005)
    assert (far.get_slice("n_peaks").data < strain_of(scan).get_slice("n_peaks").data).all()


# --- reasons ---------------------------------------------------------------------------------


def test_every_reason():
    labels = np.array([[0, -1, 0, 0], [0, 0, 1, 0]])
    scan = experiment(seed=3, labels=np.maximum(labels, 0))
    scan.clusters = clusters_of(labels)
    peaks = dict(scan.peaks)
    reference = reference_peaks(scan.crystal, scan.orientation.matrix[0, 0, 0])
    order = np.argsort(np.hypot(*reference.T))
    # Five peaks; none.
    peaks[0, 2] = reference[order[:5]]
    peaks[0, 3] = np.zeros((0, 2))
    scan.bragg = bragg_of(peaks)
    scan.orientation.corr[1] = 0.1
    shares = np.zeros((2, 4, 4))
    which = np.full((2, 4, 4), -2)
    which[..., 0], shares[..., 0] = labels, 1
    which[1, 0, :2], shares[1, 0, :2] = (1, 0), (0.85, 0.15)  # pure, but another's
    which[0, 1, :2], shares[0, 1, :2] = (0, -1), (0.5, 0.5)  # unclustered comes first
    which[1, 3, :2], shares[1, 3, :2] = (0, 1), (0.85, 0.15)  # pure enough
    mixture = Mixture(which, shares)
    found = strain_of(scan, mixture=mixture, min_correlation=0.5)
    expected = [
        ["defined", "unclustered", "too few peaks", "too few peaks"],
        ["mixed", "defined", "low correlation", "defined"],
    ]
    reason = found.get_slice("reason").data
    assert [[REASONS[int(number)] for number in row] for row in reason] == expected
    np.testing.assert_array_equal(found.get_slice("mask").data, reason == 0)
    for position in np.ndindex(2, 4):
        values = found.data[(slice(0, 4), *position)]
        if reason[position] == 0:
            np.testing.assert_allclose(values, scan.truth[(slice(None), *position)], atol=1e-10)
        else:
            assert np.isnan(values).all()
    assert found.get_slice("n_peaks").data[0, 2] == 5
    assert found.get_slice("n_peaks").data[0, 1] == 0
    # One thing less is asked, one position more is defined.
    assert strain_of(scan, mixture=mixture).data[4, 1, 2] == 1
    assert strain_of(scan, mixture=mixture, min_purity=0.1).data[4, 1, 0] == 1
    assert strain_of(scan, mixture=mixture, min_purity=0.9).data[4, 1, 3] == 0
    assert strain_of(scan).data[4, 1, 0] == 1
    assert strain_of(scan, min_num_peaks=5).data[4, 0, 2] == 1
    assert strain_of(scan, mixture=mixture, min_purity=0).get_slice("reason").data[0, 1] == 1


def test_peaks_on_a_line_are_too_few():
    crystal = crystal_of()
    reference = reference_peaks(crystal, np.eye(3))
    row = reference[np.abs(reference[:, 1]) < 1e-9]
    assert len(row) >= 4
    beside = reference[np.hypot(*(reference - [0, 0.49]).T).argmin()]
    scan = SimpleNamespace(
        crystal=crystal,
        clusters=clusters_of([[0, 0]]),
        bragg=bragg_of({(0, 0): row, (0, 1): [*row, beside]}),
        orientation=map_of([np.eye(3)]),
    )
    found = strain_of(scan, min_num_peaks=3)
    assert found.get_slice("reason").data.tolist() == [[2, 0]]
    assert found.get_slice("n_peaks").data.tolist() == [[len(row), len(row) + 1]]
    assert np.isnan(found.data[:4, 0, 0]).all()
    np.testing.assert_allclose(found.data[:4, 0, 1], 0, atol=1e-10)


@pytest.mark.parametrize("missing", ["corr", "nan", "both"])
def test_clusters_without_an_orientation(missing):
    scan = experiment()
    if missing in ("corr", "both"):
        scan.orientation.corr[1] = 0
    if missing == "nan":
        scan.orientation.corr[1] = np.nan
    if missing == "both":
        scan.orientation.matrix[1] = 0
    found = strain_of(scan)
    np.testing.assert_array_equal(found.get_slice("reason").data, np.where(LABELS == 1, 4, 0))
    assert np.isnan(found.data[:4, LABELS == 1]).all()
    expanded = scan.clusters.expand_orientation_map(scan.orientation)
    scan.orientation = expanded
    np.testing.assert_array_equal(strain_of(scan).data, found.data)


def test_nothing_at_all_is_defined():
    scan = experiment()
    scan.bragg = bragg_of({position: [] for position in np.ndindex(*LABELS.shape)})
    found = strain_of(scan)
    assert np.isnan(found.data[:4]).all()
    assert (found.get_slice("reason").data == 2).all()
    assert not found.get_slice("mask").data.any()


# --- what goes in and comes out --------------------------------------------------------------


def test_averages_have_a_strain_each():
    scan = experiment(seed=9, labels=[[0], [1], [2]])
    scan.clusters = clusters_of(LABELS)
    found = strain_of(scan)
    assert found.data.shape == (len(SLICES), 3, 1)
    np.testing.assert_allclose(found.data[:4], scan.truth, atol=1e-10)
    # With orientations of the scan too.
    scan.orientation.corr[1] = 0.2
    scan.orientation.matrix[2] = scan.orientation.corr[2] = 0
    found = strain_of(scan, min_correlation=0.1)
    assert found.get_slice("reason").data.tolist() == [[0], [0], [4]]
    scan.orientation = scan.clusters.expand_orientation_map(scan.orientation)
    np.testing.assert_array_equal(strain_of(scan, min_correlation=0.1).data, found.data)
    scan.orientation.corr[LABELS < 0] = 9
    again = strain_of(scan, min_correlation=0.5).get_slice("reason").data
    assert again.tolist() == [[0], [4], [4]]
    mixture = Mixture(np.zeros((3, 4, 4), int), np.ones((3, 4, 4)))
    with pytest.raises(ValueError, match="mixture belongs to scan positions, not to averages"):
        strain_of(scan, mixture=mixture)


def test_averages_take_the_position_of_the_best_verdict():
    """Not the one of the highest correlation, whose orientation may be ambiguous or missing."""
    scan = experiment(seed=9, labels=[[0], [1], [2]])
    scan.clusters = clusters_of(LABELS)
    expected = strain_of(scan).data
    with_scores(scan.orientation, [2, 1, 1])
    scan.orientation = scan.clusters.expand_orientation_map(scan.orientation)
    first = [tuple(np.argwhere(label == LABELS)[0]) for label in range(3)]
    scan.orientation.matrix[first[0]] = np.eye(3)
    scan.orientation.corr[first[0]], scan.orientation.verdict[first[0]] = 9, 1
    scan.orientation.matrix[first[1]], scan.orientation.corr[first[1]] = 0, 9
    scan.orientation.verdict[first[1]] = 2
    scan.orientation.corr[LABELS == 2] = scan.orientation.verdict[LABELS == 2] = 0
    found = strain_of(scan)
    reason = found.get_slice("reason").data[:, 0].astype(int)
    assert [REASONS[k] for k in reason] == ["defined", "ambiguous", "not indexed"]
    np.testing.assert_allclose(found.data[:4, :2], expected[:4, :2], atol=1e-10)


def test_a_map_of_the_scan_may_differ_inside_a_cluster():
    scan = experiment(seed=2)
    scan.orientation = scan.clusters.expand_orientation_map(scan.orientation)
    np.testing.assert_allclose(strain_of(scan).data[:4], scan.truth, atol=1e-10)
    # Turned about the beam by 0.01, from x to y of the image.
    turn = Rotation.from_rotvec([0, 0, 0.01]).as_matrix()
    scan.orientation.matrix[0, 1, 0] = scan.orientation.matrix[0, 1, 0] @ turn.T
    found = strain_of(scan).data[:4] - scan.truth
    assert found[3, 0, 1] == pytest.approx(0.01, abs=1e-3)
    found[:, 0, 1] = 0
    np.testing.assert_allclose(found, 0, atol=1e-10)


def state_of(thing):
    """All arrays and plain values that an object holds."""
    return {
        key: deepcopy(value)
        for key, value in vars(thing).items()
        if isinstance(value, (np.ndarray, int, float, str, dict, tuple, list))
    }


def test_nothing_is_changed():
    scan = experiment(rotation=0.3, ellipse=(1.02, 1, 0.2))
    scan.orientation.corr[:, 0, 0] = 1, 2, 3
    before = state_of(scan.crystal), state_of(scan.orientation)
    peaks = {position: scan.bragg.raw[position].data.copy() for position in scan.peaks}
    calibration = deepcopy(scan.bragg.calibration._params)
    strain_of(scan)
    for kept, thing in zip(before, (scan.crystal, scan.orientation), strict=True):
        now = state_of(thing)
        assert now.keys() == kept.keys()
        for key, value in kept.items():
            np.testing.assert_array_equal(now[key], value)
    for position, rows in peaks.items():
        np.testing.assert_array_equal(scan.bragg.raw[position].data, rows)
    assert not any(scan.bragg.calstate.values())
    for key, value in calibration.items():
        np.testing.assert_array_equal(scan.bragg.calibration._params[key], value)


def test_calibrations_that_the_user_chose_are_kept():
    scan = experiment(rotation=0.3, ellipse=(1.05, 1, 0.2))
    scan.bragg.setcal()
    np.testing.assert_allclose(strain_of(scan).data[:4], scan.truth, atol=1e-10)
    scan.bragg.setcal(ellipse=False)
    found = strain_of(scan)
    assert np.abs(found.data[:4] - scan.truth).max() > 0.01
    assert scan.bragg.calstate["ellipse"] is False


def test_defaults_are_those_of_the_orientation_plan():
    scan = experiment(seed=3)
    crystal = deepcopy(scan.crystal)
    crystal.orientation_kernel_size, crystal.orientation_sigma_excitation_error = 0.07, 0.02
    scan.crystal = crystal
    options = {"max_distance": None, "sigma_excitation_error": None}
    found = strain_of(scan, **options)
    used = settings.read_settings(found)
    assert (used["max_distance"], used["sigma_excitation_error"]) == (0.07, 0.02)
    same = strain_of(scan, max_distance=0.07, sigma_excitation_error=0.02)
    np.testing.assert_array_equal(found.data, same.data)
    assert settings.read_settings(strain_of(scan))["max_distance"] == 0.08


def test_the_result_survives_a_file(tmp_path):
    scan = experiment()
    scan.clusters = clusters_of(np.where(LABELS == 2, -1, LABELS))
    scan.orientation = map_of(scan.orientation.matrix[:2, 0, 0])
    found = strain_of(scan)
    cube = DataCube(np.ones((*LABELS.shape, 4, 5)), name="scan")
    cube.attach(found)
    py4DSTEM.save(tmp_path / "strain.h5", cube)
    read = py4DSTEM.read(tmp_path / "strain.h5").tree("strain")
    assert type(read) is py4DSTEM.RealSlice
    np.testing.assert_array_equal(read.data, found.data)
    assert tuple(read.slicelabels) == SLICES
    for name in SLICES:
        np.testing.assert_array_equal(read.get_slice(name).data, found.get_slice(name).data)
    expected = {
        "min_num_peaks": 6,
        "max_distance": 0.08,
        "sigma_excitation_error": 0.03,
        "min_correlation": 0.0,
        "min_purity": None,
        "robust": True,
        "reasons": REASONS,
    }
    assert dict(settings.read_settings(found)) == dict(settings.read_settings(read)) == expected


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")  # of py4DSTEM
def test_py4dstem_draws_it():
    scan = experiment()
    scan.clusters = clusters_of(np.where(LABELS == 2, -1, LABELS))
    scan.orientation = map_of(scan.orientation.matrix[:2, 0, 0])
    fig, axes = py4DSTEM.visualize.show_strain(strain_of(scan), returnfig=True)
    assert isinstance(fig, plt.Figure)
    fig.canvas.draw()
    drawn = axes[0][0].images[0].get_array()
    np.testing.assert_allclose(drawn[LABELS < 2], scan.truth[0][LABELS < 2], atol=1e-10)


# --- what is refused -------------------------------------------------------------------------


def uncalibrated(origin=True, units="A^-1"):
    calibration = Calibration()
    calibration.set_Q_pixel_size(PIXEL)
    if units:
        calibration.set_Q_pixel_units(units)
    if origin:
        calibration.set_origin((47.0, 44.0))
    return BraggVectors(LABELS.shape, DETECTOR, calibration=calibration)


@pytest.mark.parametrize(
    ("bragg", "error", "match"),
    [
        (uncalibrated(origin=False), ValueError, r"not calibrated; set the origin \(calibration"),
        (uncalibrated(units=None), ValueError, r"not calibrated; set the pixel size"),
        (uncalibrated(False, None), ValueError, "set the origin .* and the pixel size .* first"),
        (BraggVectors((4, 3), (5, 5)), ValueError, r"of shape \(4, 3\) must have shape \(3, 4\)"),
        (None, TypeError, "bragg must be BraggVectors .* not NoneType"),
        (np.zeros((3, 4)), TypeError, "bragg must be BraggVectors .* not ndarray"),
    ],
)
def test_wrong_bragg_vectors(bragg, error, match):
    scan = experiment()
    scan.bragg = bragg
    with pytest.raises(error, match=match):
        strain_of(scan)


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("crystal", None, TypeError, "crystal must be a py4DSTEM Crystal, not NoneType"),
        ("orientation", None, TypeError, "orientation must be an OrientationMap"),
        ("orientation", OrientationMap(4, 3, 1), ValueError, r"shape \(4, 3\) does not fit"),
        ("clusters", clusters_of(np.full((3, 4), -1)), ValueError, "there are no clusters"),
        ("clusters", clusters_of(LABELS.T), ValueError, r"\(3, 4\) must have shape \(4, 3\)"),
    ],
)
def test_what_does_not_fit_together(name, value, error, match):
    scan = experiment()
    setattr(scan, name, value)
    with pytest.raises(error, match=match):
        strain_of(scan)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_distance": None}, ValueError, "no orientation plan to take max_distance from"),
        ({"sigma_excitation_error": None}, ValueError, "to take sigma_excitation_error from"),
        ({"max_distance": 0}, ValueError, "max_distance=0 must be"),
        ({"max_distance": "x"}, TypeError, "max_distance='x' must be"),
        ({"sigma_excitation_error": -1}, ValueError, "sigma_excitation_error=-1 must be"),
        ({"min_num_peaks": 2}, ValueError, "min_num_peaks=2 must be at least 3"),
        ({"min_num_peaks": 4.5}, TypeError, r"min_num_peaks=4\.5 must be a whole number"),
        ({"min_correlation": -1}, ValueError, "min_correlation=-1 must be"),
        ({"min_purity": 2}, ValueError, "min_purity=2 must be"),
        ({"robust": 1}, TypeError, "robust=1 must be True or False"),
        ({"progress_bar": None}, TypeError, "progress_bar=None must be True or False"),
        ({"mixture": np.ones((3, 4))}, TypeError, "mixture must be a Mixture .* not ndarray"),
        (
            {"mixture": Mixture(np.zeros((4, 3, 4), int), np.ones((4, 3, 4)))},
            ValueError,
            r"mixture of a scan of \(4, 3\) must have the shape of the clusters, \(3, 4\)",
        ),
    ],
)
def test_wrong_arguments(options, error, match):
    with pytest.raises(error, match=match):
        strain_of(experiment(), **options)


def test_a_mixture_of_other_data_is_warned_of():
    scan = experiment()
    labels = np.array(LABELS)
    clusters = scan.clusters
    empty = np.full((*labels.shape, 4), -2)
    empty[..., 0] = labels
    shares = (empty >= 0).astype(float)

    def of(mark, **more):
        settings = {"fingerprint": mark, **more}
        return dataclasses.replace(clusters, settings=settings)

    def strain(own, mixture):
        return strain_of(SimpleNamespace(**{**vars(scan), "clusters": own}), mixture=mixture)

    strain(of("a"), Mixture(empty, shares, ("a",)))
    strain(of("filtered", parents=("a",)), Mixture(empty, shares, ("a",)))
    strain(clusters, Mixture(empty, shares, ("a",)))
    with pytest.warns(UserWarning, match="the mixture was made from clusters of other data"):
        strain(of("b"), Mixture(empty, shares, ("a",)))
