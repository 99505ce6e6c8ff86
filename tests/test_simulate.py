"""Simulated scans: what they promise, and that a seed is a seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from py4dstem_clustering import simulate_scan

SMALL = {"scan_shape": (12, 10), "detector_shape": (40, 36), "n_grains": 3}


def test_shapes_and_calibration():
    scan = simulate_scan(**SMALL, seed=3)
    n = len(scan.orientations)
    assert scan.datacube.shape == (12, 10, 40, 36)
    assert scan.datacube.data.dtype == np.uint16
    assert scan.patterns.shape == (n + 1, 40, 36)
    assert set(np.unique(scan.labels)) == set(range(-1, n))
    calibration = scan.datacube.calibration
    assert calibration.get_R_pixel_units() == "A"
    assert calibration.get_Q_pixel_units() == "A^-1"
    assert calibration.get_origin_mean() == (19.5, 17.5)
    np.testing.assert_allclose(scan.patterns.sum(axis=(1, 2)), 1)
    for orientation in scan.orientations:
        np.testing.assert_allclose(orientation @ orientation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(orientation) > 0


def test_the_same_seed_gives_the_same_scan():
    a, b = simulate_scan(**SMALL, seed=3), simulate_scan(**SMALL, seed=3)
    np.testing.assert_array_equal(a.datacube.data, b.datacube.data)
    np.testing.assert_array_equal(a.orientations, b.orientations)
    assert (simulate_scan(**SMALL, seed=4).labels != a.labels).any()


def test_the_same_grains_everywhere():
    # Fixed when first released: a change of the grain map must be meant.
    labels = simulate_scan((48, 40), (32, 30), seed=0).labels
    digest = hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "07f28f221941f4da"


@pytest.mark.parametrize("electrons", [30, 1000, 100_000])
def test_electrons(electrons):
    counts = simulate_scan(**SMALL, electrons=electrons, seed=1).datacube.data.sum(axis=(2, 3))
    assert counts.mean() == pytest.approx(electrons, rel=5 / np.sqrt(120 * electrons))


def test_bright_scans_are_not_cut_off():
    scan = simulate_scan((3, 4), (40, 36), n_grains=0, electrons=1e7, disk_radius=0.5, seed=1)
    assert scan.datacube.data.dtype == np.uint32
    assert scan.datacube.data.max() > 65535


def test_means_converge_to_the_expected_patterns():
    scan = simulate_scan(**SMALL, electrons=50_000, seed=2)
    for k in range(len(scan.orientations)):
        counts = scan.datacube.data[scan.labels == k]
        expected = 50_000 * scan.patterns[k]
        error = np.sqrt(expected / len(counts))
        assert (np.abs(counts.mean(axis=0) - expected) < 6 * error + 1e-3).all()


def test_gold_has_its_rings():
    # {111} at 0.425, {200} at 0.490 inverse Angstrom.
    scan = simulate_scan((24, 20), (120, 110), n_grains=12, seed=5)
    size = scan.datacube.Q_pixel_size
    u, v = np.indices((120, 110))
    k = np.hypot(u - 59.5, v - 54.5) * size
    gain = scan.patterns[:-1].max(axis=0) - 0.6 * scan.patterns[-1]
    bright = k[gain > 0.3 * gain[k > 0.2].max()]
    assert ((bright < 0.05) | (bright > 0.425 - 3.5 * size)).all()


def test_a_scan_of_liquid_only():
    scan = simulate_scan((4, 5), (20, 18), n_grains=0, seed=0)
    assert (scan.labels == -1).all()
    assert scan.orientations.shape == (0, 3, 3)
    assert scan.patterns.shape == (1, 20, 18)


def test_speckle_makes_the_liquid_disordered():
    smooth = simulate_scan((6, 5), (40, 36), n_grains=0, electrons=1e5, speckle=0, seed=0)
    rough = simulate_scan((6, 5), (40, 36), n_grains=0, electrons=1e5, seed=0)
    centre = (19.5, 17.5)
    mask = smooth.datacube.make_detector((40, 36), "annulus", (centre, (4, 17)))
    level = {
        name: scan.datacube.get_similarity(q_mask=mask, progress_bar=False).mean.mean()
        for name, scan in (("smooth", smooth), ("rough", rough))
    }
    assert level["rough"] < level["smooth"] - 0.05


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scan_shape": (0, 5)}, ValueError, "scan_shape=0 must be at least 1"),
        ({"scan_shape": 5}, TypeError, "two whole numbers"),
        ({"detector_shape": (8, 40)}, ValueError, "detector_shape=8 must be at least 16"),
        ({"n_grains": -1}, ValueError, "n_grains=-1"),
        ({"electrons": -1}, ValueError, "electrons=-1"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"seed": None}, TypeError, "seed=None"),
        ({"disk_radius": 0}, ValueError, "disk_radius=0"),
        ({"disk_radius": 30}, ValueError, "disk_radius=30"),
        ({"electrons": 1e10}, ValueError, "electrons=10000000000.0"),
    ],
)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        simulate_scan(**{**SMALL, **options})
