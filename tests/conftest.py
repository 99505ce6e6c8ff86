"""Shared data: small, not square and not symmetric, so that swapped axes are noticed."""

from __future__ import annotations

import sys

import matplotlib as mpl

mpl.use("agg")

import dask.array as da
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from py4DSTEM import DataCube

from py4dstem_clustering import simulate_scan

SCAN, DETECTOR = (7, 9), (14, 11)

# Options of Python for tests that start a process: warnings are errors, except the deprecation
# warnings that old dependencies raise about other dependencies.
STRICT = ("-W", "error", "-W", "ignore::DeprecationWarning")


def forbid(monkeypatch, *names):
    """Make functions of these names fail when any module of the package calls them."""
    for path, module in list(sys.modules.items()):
        if path.startswith("py4dstem_clustering"):
            for name in names:
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, None)


def first_quick(values, n_quick=1):
    """Cases of a test of which the first ones run always, and the others with the slow tests."""
    values = list(values)
    slow = [pytest.param(value, marks=pytest.mark.slow) for value in values[n_quick:]]
    return [*values[:n_quick], *slow]


def make_scan(scan=SCAN, detector=DETECTOR, seed=0):
    """Counts of three grains in stripes that are neither rows nor columns, and noise."""
    rng = np.random.default_rng(seed)
    x, y = np.indices(scan)
    grain = ((2 * x + 3 * y) // 12) % 3
    means = rng.gamma(0.5, 20, size=(3, *detector))
    return rng.poisson(means[grain]).astype(np.uint16)


@pytest.fixture(scope="session")
def scan():
    data = make_scan()
    data.flags.writeable = False
    return data


@pytest.fixture(params=["numpy", "strided", "memmap", "h5py", "dask"])
def wrap(request, tmp_path):
    """Put a scan into each kind of array that a DataCube may hold."""

    def wrap(data):
        if request.param == "strided":
            return np.repeat(data, 2, axis=1)[:, ::2]
        if request.param == "memmap":
            np.save(tmp_path / "scan.npy", data)
            return np.load(tmp_path / "scan.npy", mmap_mode="r")
        if request.param == "h5py":
            with h5py.File(tmp_path / "scan.h5", "w") as file:
                file.create_dataset("d", data=data, chunks=(1, 2, *data.shape[2:]))
            return h5py.File(tmp_path / "scan.h5", "r")["d"]
        if request.param == "dask":
            return da.from_array(data, chunks=(3, 2, 5, -1))
        return data

    return wrap


@pytest.fixture
def cube(scan):
    datacube = DataCube(scan.copy(), name="cube")
    datacube.calibration.set_R_pixel_size(2.5)
    datacube.calibration.set_R_pixel_units("nm")
    datacube.calibration.set_Q_pixel_size(0.02)
    datacube.calibration.set_Q_pixel_units("A^-1")
    x, y = np.indices(SCAN)
    datacube.calibration.set_origin((6 + 0.1 * x, 5 + 0.2 * y))
    datacube.calibration.set_ellipse((1.02, 1.0, 0.3))
    datacube.calibration.set_QR_rotation_degrees(12.0)
    return datacube


@pytest.fixture(scope="session")
def simulated():
    return simulate_scan(scan_shape=(30, 24), detector_shape=(48, 44), n_grains=4, seed=11)


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")
