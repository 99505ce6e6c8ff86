"""Origins of patterns, as calibrations hold them."""

from __future__ import annotations

import re

import numpy as np
import py4DSTEM
import pytest
from conftest import forbid

from py4dstem_clustering import Clusters, cluster_series, simulate_scan
from py4dstem_clustering.metrics import adjusted_rand_index
from py4dstem_clustering.scan.calibration import known_centre, whole_shifts


def test_a_shift_is_at_most_half_the_detector():
    cube = py4DSTEM.DataCube(np.ones((3, 3, 8, 6), np.uint16))
    along = np.zeros((3, 3))
    along[0, 0] = 900.0  # as where the origin of one pattern was fitted wrongly
    cube.calibration.set_origin((along, np.zeros((3, 3))))
    shifts = whole_shifts(cube)
    assert shifts[0, 0].tolist() == [-4, 0]
    assert shifts[1, 1].tolist() == [4, 0]


# --- maps of a scan of another shape ---------------------------------------------------------

RESHAPES = {
    "crop_R": lambda cube: cube.crop_R((1, 6, 0, 7)),
    "bin_R": lambda cube: cube.bin_R(2),
    "thin_R": lambda cube: cube.thin_R(2),
    "set_scan_shape": lambda cube: cube.set_scan_shape((9, 7)),
}

CALLS = {
    "merge": lambda cube: cube.cluster(progress_bar=False),
    "grow": lambda cube: cube.cluster(threshold=0.5, progress_bar=False),
    "tree": lambda cube: cube.get_cluster_tree(progress_bar=False),
    "filter": lambda cube: cube.filter_correlative(edge=2, progress_bar=False),
    "averages": lambda cube: cube.get_clustered_datacube(labels_of(cube), progress_bar=False),
    "mixture": lambda cube: labels_of(cube).get_mixture(cube, progress_bar=False),
    "cross-validation": lambda cube: cube.cross_validate_orientation(None, None),
    "explore": lambda cube: cube.explore_clusters(progress_bar=False),
}


def labels_of(cube):
    """Clusters of two halves, which need no measurement."""
    labels = np.zeros(cube.Rshape, dtype=int)
    labels[:, cube.R_Ny // 2 :] = 1
    seeds = [(0, 0), (0, cube.R_Ny // 2)]
    return Clusters(labels, seeds, np.zeros(cube.Rshape))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("reshape", RESHAPES)
def test_an_origin_of_another_shape_is_refused(cube, monkeypatch, reshape, call):
    forbid(monkeypatch, "features_core", "similarity_core", "correlative_core", "averaging_core")
    RESHAPES[reshape](cube)
    shape = re.escape(str(tuple(cube.Rshape)))
    match = rf"the origin of a scan of \(7, 9\) and does not fit this scan of {shape}; .*set_origin"
    with pytest.raises(ValueError, match=match):
        CALLS[call](cube)


def test_what_the_error_says_helps(cube):
    cube.crop_R((1, 6, 0, 7))
    cube.calibration.set_origin(cube.calibration.get_origin_mean())
    assert cube.cluster(progress_bar=False).shape == (5, 7)


def test_a_map_of_the_ellipse_of_another_shape_is_refused(cube):
    cube.calibration.set_ellipse((np.full((7, 9), 1.02), 1.0, 0.3))
    cube.cluster(progress_bar=False)
    cube.calibration.set_ellipse((np.full((9, 7), 1.02), 1.0, 0.3))
    with pytest.raises(ValueError, match=r"the ellipse of a scan of \(9, 7\) .*set_ellipse"):
        cube.cluster(progress_bar=False)


def test_maps_that_are_not_used_are_not_handed_on(cube):
    cube.calibration.set_origin_meas((np.ones((7, 9)), np.ones((7, 9))))
    cube.crop_R((1, 6, 0, 7))
    x, y = np.indices((5, 7))
    cube.calibration.set_origin((6 + 0.1 * x, 5 + 0.2 * y))
    averages = cube.get_clustered_datacube(labels_of(cube), progress_bar=False)
    assert averages.calibration.get_origin_meas() is None
    np.testing.assert_allclose(averages.calibration.get_qx0()[:, 0], 6.2)
    np.testing.assert_allclose(averages.calibration.get_qy0()[:, 0], [5.2, 5.9])


@pytest.mark.parametrize("mean_alone", [False, True])
def test_an_origin_outside_the_detector_is_warned_of(cube, mean_alone):
    cube.calibration.set_origin((12.0, 9.0))
    if mean_alone:  # as py4DSTEM's get_probe_size keeps it
        del cube.calibration._params["qx0"], cube.calibration._params["qy0"]
    cube.bin_Q(2)
    with pytest.warns(UserWarning, match=r"the origin \(12, 9\) .* detector of 7 x 5") as found:
        cube.cluster(progress_bar=False)
    assert {warning.filename for warning in found} == {__file__}


def test_a_series_records_the_frame_whose_origin_does_not_fit(cube, tmp_path):
    wrong = cube.copy()
    wrong.crop_R((1, 6, 0, 7))
    series = cluster_series([cube, wrong], out=tmp_path / "series.h5", progress_bar=False)
    assert list(series.errors) == [1]
    assert "the origin of a scan of (7, 9) and does not fit" in series.errors[1]


def test_an_origin_that_is_not_known_everywhere(cube, tmp_path):
    x, y = np.indices((7, 9))
    qx0, qy0 = 6 + 0.1 * x, 5 + 0.2 * y
    qx0[2, 3] = np.nan
    cube.calibration.set_origin((qx0, qy0))
    assert np.isnan(cube.calibration.get_origin_mean()[0])
    np.testing.assert_allclose(known_centre(cube), (np.nanmean(qx0), qy0.mean()))
    averages = cube.get_clustered_datacube(labels_of(cube), progress_bar=False)
    py4DSTEM.save(tmp_path / "averages.h5", averages)  # py4DSTEM cannot save an axis of NaN
    read = py4DSTEM.read(tmp_path / "averages.h5").calibration
    assert read.get_qx0_mean() == pytest.approx(np.nanmean(qx0))


def test_maps_that_are_cropped_alike_give_the_right_grains():
    made = simulate_scan((30, 24), (48, 44), n_grains=4, electrons=1000, seed=2, descan=6)
    scan = made.datacube
    qx0, qy0, _ = py4DSTEM.process.calibration.get_origin(scan)
    scan.calibration.set_origin((qx0, qy0))
    part = np.s_[2:25, 3:20]
    scan.crop_R((2, 25, 3, 20))
    scan.calibration.set_origin((qx0[part], qy0[part]))
    found = scan.cluster(progress_bar=False)
    assert adjusted_rand_index(found.labels, made.labels[part]) > 0.95
    averages = scan.get_clustered_datacube(progress_bar=False)
    for k in range(found.n_clusters):
        expected = qx0[part][found.labels == k].mean()
        assert averages.calibration.get_qx0()[k, 0] == pytest.approx(expected)


def test_an_origin_that_is_no_number_is_refused(cube):
    cube.calibration._params["qx0"] = "left"
    with pytest.raises(ValueError, match=r"'cube' is damaged: .* origin 'left' and .* no numbers"):
        cube.cluster(progress_bar=False)
