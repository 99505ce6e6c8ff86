"""The low-rank filter as a method of DataCube: options, result, files."""

from __future__ import annotations

import h5py
import numpy as np
import py4DSTEM
import pytest
from py4DSTEM import DataCube

from py4dstem_clustering import simulate_scan

QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def cube():
    return simulate_scan((14, 12), (36, 32), n_grains=3, electrons=800, seed=3).datacube


def test_result(cube):
    before = cube.data.copy()
    out = cube.filter_lowrank(**QUIET)
    assert out.shape == cube.shape
    assert out.data.dtype == np.float32
    np.testing.assert_array_equal(cube.data, before)
    assert out.calibration.get_R_pixel_size() == cube.calibration.get_R_pixel_size()
    settings = out.metadata["filter_lowrank"]
    assert settings["rank"] >= 2
    assert settings["gain"] == pytest.approx(1, rel=0.1)
    assert settings["local"] is True
    assert out.tree("noise").data.shape == (14, 12, 8, 8)
    assert out.tree("residual").data.shape == out.tree("kept").data.shape == (14, 12)
    again = out.filter_lowrank(rank=2, local=False, **QUIET)
    assert again.metadata["filter_lowrank_2"]["rank"] == 2
    assert again.metadata["filter_lowrank"]["rank"] == settings["rank"]


def test_it_is_in_a_file_with_all_that_belongs_to_it(cube, tmp_path):
    path = tmp_path / "filtered.h5"
    expected = cube.filter_lowrank(**QUIET)
    out = cube.filter_lowrank(out=path, max_memory="300 MB", n_jobs=2, name="clean", **QUIET)
    assert isinstance(out.data, h5py.Dataset)
    read = py4DSTEM.read(path)
    assert read.name == "clean"
    np.testing.assert_array_equal(out.data[:], expected.data)
    for found in (out, read):
        for name in ("noise", "residual", "kept"):
            np.testing.assert_array_equal(found.tree(name).data, expected.tree(name).data)
    assert read.metadata["filter_lowrank"]["rank"] == expected.metadata["filter_lowrank"]["rank"]
    out.data.file.close()


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"rank": 0}, ValueError, "rank=0 must be at least 1"),
        ({"rank": 101}, ValueError, "rank=101 must be 'auto' or a whole number from 1 to 100"),
        ({"rank": "all"}, ValueError, "rank='all' must be 'auto'"),
        ({"rank": 2.5}, TypeError, "rank=2.5 must be a whole number"),
        ({"q_mask": np.ones((3, 3), bool)}, ValueError, "q_mask"),
        ({"local": 1}, TypeError, "local=1 must be True or False"),
        ({"lag": 1.5}, ValueError, "lag=1.5 must be below 1"),
        ({"lag": "yes"}, ValueError, "lag=.yes. must be a share"),
        ({"compression": "gzip"}, ValueError, "does nothing without out"),
        ({"max_memory": "1 kB"}, ValueError, "max_memory"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
    ],
)
def test_wrong_options(cube, options, kind, match):
    with pytest.raises(kind, match=match):
        cube.filter_lowrank(**options, **QUIET)


def test_the_file_of_the_scan_is_not_overwritten(cube, tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["scan"] = cube.data
    with h5py.File(path, "r") as file, pytest.raises(ValueError, match="file of the scan itself"):
        DataCube(file["scan"]).filter_lowrank(out=path, overwrite=True, **QUIET)


@pytest.fixture(scope="module")
def lagging():
    """A scan whose camera leaves half of each pattern in the next one, and the same without."""
    options = {"n_grains": 10, "electrons": 10000, "seed": 100, "speckle": 0.0}
    scans = (simulate_scan((48, 44), (48, 44), lag=lag, **options) for lag in (1.0, 0.0))
    return [scan.datacube for scan in scans]


def test_lag_is_found_and_undone(lagging):
    with_lag, without = lagging
    found = with_lag.filter_lowrank(**QUIET)
    settings = found.metadata["filter_lowrank"]
    assert settings["lag"] == "auto"
    assert settings["lag_axis"] == "+Ry"
    assert settings["lag_share"] == pytest.approx(0.5, abs=0.03)
    none = without.filter_lowrank(**QUIET)
    assert none.metadata["filter_lowrank"]["lag_share"] == 0
    assert none.metadata["filter_lowrank"]["lag_axis"] is None
    stays = with_lag.filter_lowrank(lag=0, **QUIET)

    def error(result):  # the camera is dark before the first pattern of a row, which stays
        return float(np.sqrt(((result.data - none.data)[:, 1:] ** 2).mean()))

    assert error(found) < 0.6 * error(stays)


def test_a_given_lag_is_undone(cube):
    share = 0.5
    data = cube.data.astype(np.float64)
    for y in range(1, data.shape[1]):
        data[:, y] = (1 - share) * data[:, y] + share * data[:, y - 1]
    expected = cube.filter_lowrank(**QUIET)
    found = DataCube(data).filter_lowrank(lag=share, **QUIET)
    assert found.metadata["filter_lowrank"]["lag_share"] == share
    np.testing.assert_allclose(found.data, expected.data, atol=0.05 * expected.data.std())


def test_descan_is_moved_and_moved_back(cube):
    rng = np.random.default_rng(0)
    moves = rng.integers(-3, 4, (*cube.Rshape, 2))
    data = np.stack(
        [
            [np.roll(cube.data[i, j], moves[i, j], (0, 1)) for j in range(cube.shape[1])]
            for i in range(cube.shape[0])
        ]
    )
    moved = DataCube(data)
    centre = [(n - 1) / 2 for n in cube.Qshape]
    moved.calibration.set_origin(tuple(centre[k] + moves[..., k] for k in (0, 1)))
    still = cube.filter_lowrank(**QUIET).data
    found = moved.filter_lowrank(**QUIET).data
    inside = np.s_[6:-6, 6:-6]
    for i, j in ((4, 5), (9, 2)):
        back = np.roll(found[i, j], -moves[i, j], (0, 1))
        difference = np.sqrt(((back - still[i, j])[inside] ** 2).mean())
        noise = np.sqrt(((cube.data[i, j] - still[i, j])[inside] ** 2).mean())
        assert difference < 0.35 * noise
