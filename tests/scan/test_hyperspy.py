"""Scans from HyperSpy and back, with the same numbers and axes."""

from __future__ import annotations

from types import SimpleNamespace

import dask.array as da
import numpy as np
import py4DSTEM
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from py4dstem_clustering import ScanArray, from_hyperspy, open_scan, simulate_scan, to_hyperspy

DATA = np.random.default_rng(0).integers(0, 99, (5, 4, 9, 7)).astype("u2")
AXES = [(3.03, 10, "nm"), (3.03, 20, "nm"), (0.5, -2, "1/nm"), (0.5, -1.5, "1/nm")]


def fake_signal(data=DATA, axes=AXES, navigate=(True, True, False, False)):
    """What `from_hyperspy` uses of a signal, so that it is tested without HyperSpy too."""
    described = [
        SimpleNamespace(scale=scale, offset=offset, units=units, navigate=flag)
        for (scale, offset, units), flag in zip(axes, navigate, strict=True)
    ]
    metadata = SimpleNamespace(as_dictionary=lambda: {"General": {"title": "x"}, "n": {"k": 1}})
    return SimpleNamespace(
        data=data, axes_manager=SimpleNamespace(_axes=described), metadata=metadata
    )


def calibration_of(cube):
    found = cube.calibration
    numbers = [found.get_R_pixel_size(), found.get_Q_pixel_size(), *found.get_origin()]
    return found.get_R_pixel_units(), found.get_Q_pixel_units(), np.round(numbers, 9).tolist()


def test_a_signal_becomes_a_datacube():
    cube = from_hyperspy(fake_signal(), name="scan")
    assert cube.data is DATA
    assert cube.name == "scan"
    assert calibration_of(cube) == ("nm", "A^-1", [3.03, 0.05, 4, 3])
    assert cube.metadata["file"]["metadata"] == {"General": {"title": "x"}, "n": {"k": 1}}
    lazy = da.from_array(DATA)
    assert from_hyperspy(fake_signal(lazy)).data is lazy


def test_the_scan_comes_first():
    turned = DATA.transpose(2, 3, 0, 1)
    cube = from_hyperspy(fake_signal(turned, AXES[2:] + AXES[:2], (False, False, True, True)))
    assert_array_equal(cube.data, DATA)
    assert cube.calibration.get_R_pixel_units() == "nm"


def test_what_a_signal_does_not_say_stays_unset():
    cube = from_hyperspy(fake_signal(axes=[(1, 0, "<undefined>")] * 4))
    assert cube.calibration.get_R_pixel_units() == "pixels"
    assert cube.calibration.get_origin() is None
    notes = "the scan step is not stated; the size of detector pixels is not stated"
    assert cube.metadata["file"]["notes"] == notes


def test_what_is_no_scan():
    with pytest.raises(TypeError, match="signal of type ndarray must be a signal of HyperSpy"):
        from_hyperspy(DATA)
    stack = fake_signal(navigate=(True, False, False, False))
    with pytest.raises(ValueError, match="1 navigation axes and 3 signal axes is no scan"):
        from_hyperspy(stack)
    with pytest.raises(TypeError, match="must be a DataCube"):
        to_hyperspy(DATA)


def test_where_hyperspy_is_missing(monkeypatch):
    monkeypatch.setattr("py4dstem_clustering.scan.hyperspy.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="HyperSpy is not installed; pip install hyperspy"):
        to_hyperspy(py4DSTEM.DataCube(DATA))


@pytest.fixture
def hs():
    pytest.importorskip("hyperspy")
    import hyperspy.api

    return hyperspy.api


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("lazy", [False, True])
def test_through_hyperspy_and_back(tmp_path, hs, lazy):
    cube = from_hyperspy(fake_signal())
    np.save(tmp_path / "scan.npy", DATA)
    if lazy:
        cube.data = open_scan(tmp_path / "scan.npy").data
        assert isinstance(cube.data, ScanArray)
    signal = to_hyperspy(cube)
    assert signal._lazy == lazy
    assert signal.axes_manager.shape == (4, 5, 7, 9)
    assert [axis.units for axis in signal.axes_manager._axes] == ["nm", "nm", "1/Å", "1/Å"]
    again = from_hyperspy(signal)
    assert hasattr(again.data, "dask") == lazy
    assert_array_equal(np.asarray(again.data), DATA)
    assert calibration_of(again) == calibration_of(cube)
    signal.save(tmp_path / "scan.hspy")
    stored = open_scan(tmp_path / "scan.hspy")
    assert_array_equal(np.asarray(stored.data), DATA)
    assert calibration_of(stored) == calibration_of(cube)
    py4DSTEM.save(tmp_path / "scan.h5", stored)  # and through EMD
    last = open_scan(tmp_path / "scan.h5")
    assert_array_equal(np.asarray(last.data), DATA)
    assert calibration_of(last) == calibration_of(cube)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_averages_have_an_axis_of_clusters(hs):
    truth = simulate_scan((10, 9), (32, 30), n_grains=2, electrons=20_000, seed=1)
    truth.datacube.calibration.set_R_pixel_size(3.0)
    truth.datacube.calibration.set_R_pixel_units("nm")
    clusters = truth.datacube.cluster(progress_bar=False)
    averages = truth.datacube.get_clustered_datacube(clusters, progress_bar=False)
    signal = to_hyperspy(averages)
    axis = signal.axes_manager._axes[0]
    assert (axis.name, axis.size, axis.scale) == ("cluster", clusters.n_clusters, 1)
    assert_allclose(signal.data, averages.data)
    scan = to_hyperspy(truth.datacube)  # which has clusters in its tree, too
    assert scan.axes_manager._axes[0].name == "y"
