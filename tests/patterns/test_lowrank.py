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
