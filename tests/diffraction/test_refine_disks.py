"""refine_disks: places and errors of peaks, in files and through strain."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import DataCube, Probe
from test_strain import (
    DETECTOR,
    PIXEL,
    bragg_of,
    calibration_of,
    clusters_of,
    crystal_of,
    detected,
    map_of,
    random_rotations,
    reference_peaks,
)

from py4dstem_clustering import refine_disks

RADIUS = 2.5


def disk(place, light=(1, 0, 0)):
    u, v = np.ogrid[: DETECTOR[0], : DETECTOR[1]]
    x, y = u - place[0], v - place[1]
    inside = np.clip(RADIUS + 0.5 - np.hypot(x, y), 0, 1)
    return inside * np.maximum(light[0] + (light[1] * x + light[2] * y) / RADIUS, 0)


PROBE = Probe(disk((47.5, 44.5)))


@pytest.fixture(scope="module")
def scan():
    """Two averages of gold with a strain, whose disks are lit on the side towards the centre."""
    labels = np.array([[0, 1], [1, 1]])
    crystal, matrices = crystal_of(), random_rotations(2, 5)
    strain = np.array([[1.006, -0.002], [-0.002, 0.997]])
    calibration = calibration_of((2, 1))
    rng = np.random.default_rng(0)
    patterns, found = np.full((2, 1, *DETECTOR), 2.0), {}
    for k in range(2):
        places = reference_peaks(crystal, matrices[k])
        places = places[np.hypot(*places.T) < 1.15] @ np.linalg.inv(strain)
        towards = -places / np.hypot(*places.T)[:, None]
        for place, side in zip(detected(places, calibration, (k, 0)), towards, strict=True):
            patterns[k, 0] += 400 * disk(place, (1, *(0.7 * side)))
        # Correlation finds disks too far on their bright side.
        found[k, 0] = places + 0.4 * PIXEL * towards + rng.normal(0, 0.1 * PIXEL, places.shape)
    cube = DataCube(rng.poisson(patterns).astype(np.float32))
    return SimpleNamespace(
        cube=cube,
        crystal=crystal,
        strain=strain,
        bragg=bragg_of(found, calibration),
        clusters=clusters_of(labels),
        orientation=map_of(matrices),
    )


def errors(scan, bragg):
    found = scan.clusters.calculate_strain(
        scan.crystal, bragg, scan.orientation, max_distance=0.08, sigma_excitation_error=0.03,
        progress_bar=False,
    )  # fmt: skip
    assert (found.get_slice("mask").data == 1).all()
    truth = [scan.strain[0, 0] - 1, scan.strain[1, 1] - 1, scan.strain[0, 1]]
    return np.abs(found.data[:3, :, 0] - np.array(truth)[:, None]), found.data[7:10, :, 0]


def test_strain_of_unevenly_lit_disks(scan):
    before, _ = errors(scan, scan.bragg)
    after, standard = errors(scan, refine_disks(scan.cube, scan.bragg, PROBE, progress_bar=False))
    assert before[:2].min() > 0.004
    assert after.max() < 0.002
    assert (after < 3 * standard).all()


def test_peaks_keep_their_order_and_nothing_else_changes(scan):
    raw = [scan.bragg.raw[k, 0].data.copy() for k in range(2)]
    refined = refine_disks(scan.cube, scan.bragg, PROBE.probe, progress_bar=False)
    again = refine_disks(scan.cube, refined, PROBE, progress_bar=False)
    for k in range(2):
        np.testing.assert_array_equal(scan.bragg.raw[k, 0].data, raw[k])
        one, two = refined.raw[k, 0].data, again.raw[k, 0].data
        assert one.dtype.names == two.dtype.names == ("qx", "qy", "intensity", "error")
        np.testing.assert_array_equal(one["intensity"], raw[k]["intensity"])
        assert np.hypot(one["qx"] - raw[k]["qx"], one["qy"] - raw[k]["qy"]).max() < RADIUS
        np.testing.assert_allclose(two["qx"], one["qx"], atol=0.1)
    assert refined.calibration is not scan.bragg.calibration
    assert refined.calstate == scan.bragg.calstate


def test_errors_travel(scan, tmp_path):
    refined = refine_disks(scan.cube, scan.bragg, PROBE, progress_bar=False)
    expanded = scan.clusters.expand_bragg(refined)
    np.testing.assert_array_equal(expanded.raw[1, 0].data, refined.raw[1, 0].data)
    py4DSTEM.save(tmp_path / "bragg.h5", refined)
    back = py4DSTEM.read(tmp_path / "bragg.h5")
    np.testing.assert_array_equal(back.raw[1, 0].data["error"], refined.raw[1, 0].data["error"])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cube": DataCube(np.zeros((3, 1, *DETECTOR)))}, ValueError, "do not belong"),
        ({"cube": None}, TypeError, "datacube must be"),
        ({"bragg": 3}, TypeError, "BraggVectors"),
        ({"probe": np.ones((4, 4))}, ValueError, "shape"),
        ({"probe": np.zeros(DETECTOR)}, ValueError, "bright disk"),
        ({"probe": np.full(DETECTOR, np.nan)}, ValueError, "finite"),
        ({"probe": disk((40, 40)) - 0.2}, ValueError, "kernel"),
        ({"progress_bar": 3}, TypeError, "progress_bar"),
    ],
)
def test_wrong_arguments(scan, change, error, match):
    given = {"cube": scan.cube, "bragg": scan.bragg, "probe": PROBE, **change}
    with pytest.raises(error, match=match):
        refine_disks(given["cube"], given["bragg"], given["probe"],
                     progress_bar=given.get("progress_bar", False))  # fmt: skip
