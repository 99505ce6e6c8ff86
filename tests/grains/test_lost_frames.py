"""Lost frames: a grain on both sides of a lost row is one cluster, and lost frames are in none."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from py4DSTEM import DataCube
from scipy.ndimage import label

from py4dstem_clustering import simulate_sample, simulate_scan
from py4dstem_clustering.metrics import panoptic_quality

QUIET = {"progress_bar": False}
ROW = 8


@cache
def whole():
    return simulate_scan((24, 20), (48, 44), n_grains=3, electrons=2000, seed=2)


def damaged(value, where=np.s_[ROW]):
    data = whole().datacube.data.astype(np.float32)
    data[where] = value
    return DataCube(data)


def n_parts(labels):
    """Parts of each cluster that do not touch, in a scan without its lost row."""
    rest = np.delete(labels, ROW, axis=0)
    return [label(rest == k, np.ones((3, 3)))[1] for k in range(labels.max() + 1)]


@pytest.mark.parametrize("value", [0, np.nan, 65535])
def test_a_lost_row_is_bridged(value):
    expected = whole().datacube.cluster(**QUIET)
    assert (np.unique(expected.labels[ROW]) >= 0).sum() >= 2  # grains lie there
    found = damaged(value).cluster(**QUIET)
    assert found.n_clusters == expected.n_clusters
    assert (found.labels[ROW] == -1).all()
    rest = np.arange(24) != ROW
    assert panoptic_quality(found.labels[rest], expected.labels[rest]).quality > 0.97
    assert n_parts(found.labels) == [1] * found.n_clusters


@pytest.mark.parametrize("level", [0.4, 1.0, 2.0])
def test_lost_frames_are_in_no_cluster_at_any_level(level):
    cube = damaged(np.nan)
    tree = cube.get_cluster_tree(**QUIET)
    for drop in (True, False):
        found = tree.cut(level, drop_background=drop)
        assert (found.labels[ROW] == -1).all()
    assert not tree.mask[ROW].any()
    np.testing.assert_array_equal(found.labels >= 0, tree.mask)
    counts = tree.n_clusters(min_size=5, drop_background=False)
    for i in np.linspace(0, len(counts) - 1, 12).astype(int):
        cut = tree.cut(tree.levels[i], min_size=5, drop_background=False)
        assert cut.n_clusters == counts[i]


@pytest.mark.parametrize("value", [0, np.nan, 65535])
def test_lost_frames_are_in_no_cluster_of_growth(value):
    cube = damaged(value, np.s_[ROW, 3:])
    for threshold in (-1, 0.3):
        found = cube.cluster(threshold=threshold, **QUIET)
        assert (found.labels[ROW, 3:] == -1).all()
        assert (found.labels[ROW, :3] >= 0).all()
    averages = cube.get_clustered_datacube(found, **QUIET)
    assert np.isfinite(averages.data).all()


def test_a_wide_gap_and_lost_corners_are_not_bridged():
    cube = damaged(0, np.s_[6:11])
    found = cube.cluster(drop_background=False, **QUIET)
    assert (found.labels[6:11] == -1).all()
    above, below = (set(np.unique(part)) for part in (found.labels[:6], found.labels[11:]))
    assert not above & below
    corner = damaged(np.nan, np.s_[:3, :4]).cluster(drop_background=False, **QUIET)
    assert (corner.labels[:3, :4] == -1).all()
    assert (corner.labels >= 0).sum() == 24 * 20 - 12


def test_few_electrons_leave_empty_frames_that_are_not_lost():
    rng = np.random.default_rng(0)
    data = rng.poisson(0.002, (12, 11, 30, 28)).astype(np.uint16)  # two electrons
    assert (data.sum(axis=(2, 3)) == 0).sum() > 10
    found = DataCube(data).cluster(drop_background=False, **QUIET)
    assert (found.labels >= 0).all()


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_scan_of_lost_frames_has_no_clusters_to_join(value):
    data = np.full((4, 5, 9, 8), value, dtype=np.float32)
    assert DataCube(data).cluster(**QUIET).n_clusters == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_particles_with_a_lost_row(seed):
    lost, plain = (
        simulate_sample(kind, (64, 56), (40, 36), electrons=1000, seed=seed)
        for kind in ("dead-row", "particles")
    )
    row = np.flatnonzero((lost.datacube.data == 0).all(axis=(1, 2, 3)))
    assert len(row) == 1
    found, expected = (sample.datacube.cluster(**QUIET) for sample in (lost, plain))
    assert (found.labels[row] == -1).all()
    quality = [
        panoptic_quality(clusters.labels, sample.labels).quality
        for clusters, sample in ((found, lost), (expected, plain))
    ]
    assert quality[0] > quality[1] - 0.05
