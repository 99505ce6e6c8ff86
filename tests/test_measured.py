"""A test on a measured scan, if it lies beside the project: see its README. Never shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import py4DSTEM
import pytest

MGO = Path(__file__).parents[2] / "shared" / "data" / "mgo_sped.npz"

# A place (Rx, Ry) inside each cube that stands apart from the others.
CUBES = {
    "large": np.s_[48:56, 14:36],
    "small beside it": np.s_[26:40, 46:58],
    "upper right": np.s_[8:18, 70:84],
    "stacked on it": np.s_[28:34, 74:82],
    "corner": np.s_[6:14, 97:104],
    "lower left": np.s_[82:100, 10:28],
    "diamond": np.s_[28:38, 26:34],
}
BACKGROUND = {"film": np.s_[8:18, 8:28], "vacuum": np.s_[45:65, 70:100]}


@pytest.mark.skipif(not MGO.exists(), reason="the measured scan is not here")
def test_mgo_cubes():
    with np.load(MGO) as archive:
        cube = py4DSTEM.DataCube(archive["data"])
    clusters = cube.cluster(drop_background=False, progress_bar=False)
    assert clusters.n_clusters <= 20
    found = {}
    for name, place in {**CUBES, **BACKGROUND}.items():
        labels = clusters.labels[place]
        found[name] = np.bincount(labels.ravel()).argmax()
        assert (labels == found[name]).mean() > 0.95, name
    assert len({found[name] for name in CUBES}) == len(CUBES)
    assert {found[name] for name in BACKGROUND} <= set(clusters.background)
    assert not {found[name] for name in CUBES} & set(clusters.background)
